"""The benchmark: what a cell measures, that a study is kept, continued and the same in parallel, plug-ins, and what is refused."""
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import sdediff
from sdediff import bench, metrics, runs
from sdediff.bench import cells
from sdediff.cli import main

F64 = torch.float64
TINY = {"methods": ("heun", "ddpm"), "targets": ("gaussian", "mixture"), "processes": ("VPSDE",), "nfe": (16, 32, 64), "n": 40}
PLUG_IN = """
from dataclasses import dataclass
import torch
import sdediff
from sdediff.solvers import Solver, State

@dataclass(frozen=True)
class Plain(Solver):
    noise = "never"

    def step(self, eq, state, t, s, noise):
        return State(state.x + (s.t - t.t) * eq.drift(state.x, t))

tilted = sdediff.method("ddim", eta=0.5)

def made():
    return Plain()

class Broken(Plain):
    def step(self, eq, state, t, s, noise):
        raise RuntimeError("no luck today")

class Explodes(Plain):
    def step(self, eq, state, t, s, noise):
        return State(1e40 * Plain.step(self, eq, state, t, s, noise).x)

class Pair:
    inner = sdediff.targets.GaussianMixture([[1.0, 0.0], [-1.0, 0.0]], 0.1)
    score, log_prob = inner.score, inner.log_prob

    def sample(self, n, seed=0):
        return self.inner.sample(n, seed=seed, dtype=torch.float32)

number = 3
"""


@pytest.fixture
def no_page(monkeypatch):
    """The pages have tests of their own."""
    monkeypatch.setattr("sdediff.bench.page.write", lambda out: Path(out) / "index.html")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A plug-in module, by a name of its own."""
    name = f"plug_in_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study, its folder and its rows."""
    out = tmp_path_factory.mktemp("bench") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdediff.bench.page.write", lambda out: None)
        rows = bench.run(bench.Study(**TINY), out, progress=False)
    return out, rows


def copied(finished, tmp_path):
    import shutil
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    return out


def timeless(rows):
    return [row._replace(seconds=0.0) for row in rows]


# -- what is measured ------------------------------------------------------------------------------------------------------------
def test_the_table(finished):
    out, rows = finished
    with open(out / "results.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["cell", "source", "method", "kind", "order", "grid", "steps", "nfe", "process", "target", "score", "metric", "value",
                        "low", "high", "floor", "floor_low", "floor_high", "n", "seconds", "seed"]
    assert bench.read(out) == rows and len(table) == len(rows) + 1
    assert {(r.method, r.kind, r.order) for r in rows} == {("heun", "ODE", 2), ("ddpm", "SDE", 1)}
    assert len({r.cell for r in rows}) == 12 == len(list((out / "cells").iterdir()))
    assert {r.source for r in rows} == {"sdediff"} and {r.score for r in rows} == {"exact"} and {r.grid for r in rows} == {"quadratic"}
    assert {r.metric for r in rows if r.kind == "SDE"} >= {"sliced_w2", "w2", "energy", "mmd", "mmd_bank", "nll", "moment_w2"}
    assert {r.metric for r in rows if r.kind == "ODE"} - {r.metric for r in rows if r.kind == "SDE"} == {"path_rmse", "path_median"}
    for r in rows:
        exact = r.metric in ("path_rmse", "path_median", "moment_w2")
        assert (r.floor is None) == exact
        assert r.low <= r.value <= r.high and r.seconds > 0
        assert not exact or (r.value > 0 and (r.metric == "moment_w2") == (r.low == r.high))
    document = json.loads((out / "study.json").read_text())
    assert document["study"]["methods"] == ["heun", "ddpm"] and document["cells"] == 12 and document["failures"] == []
    assert str(out.parent) not in (out / "study.json").read_text()


def test_calls_are_those_that_the_score_gets(finished):
    calls = 0

    def score(x, level):
        nonlocal calls
        calls += 1
        return cells.law("gaussian").score(x, level)

    for r in {(r.method, r.steps, r.nfe) for r in finished[1]}:
        calls, x = 0, torch.zeros(2, 3, dtype=F64)
        sdediff.sample(sdediff.VPSDE(), score, x_init=x, method=r[0], steps=r[1], grid="quadratic", seed=0)
        assert calls == r[2]


def test_errors_fall_at_the_order(finished):
    for target in TINY["targets"]:
        errors = [(r.nfe, r.value) for r in finished[1] if (r.method, r.target, r.metric) == ("heun", target, "path_rmse")]
        slopes = [math.log(a / b) / math.log(n / m) for (m, a), (n, b) in pairwise(errors)]
        assert len(slopes) == 2 and slopes[-1] == pytest.approx(2.0, abs=0.25)
    weak = [r.value for r in finished[1] if (r.method, r.target, r.metric) == ("ddpm", "gaussian", "moment_w2")]
    assert math.log2(weak[1] / weak[2]) == pytest.approx(1.0, abs=0.2)


def test_the_flow_is_the_flow(finished):
    """The endpoints of a mixture's flow, by DOP853, against eab-4 in many steps."""
    g = cells.ground(cells.Problem("VPSDE", "mixture", "exact", 40, 0), finished[0])
    x = sdediff.sample(g.sde, g.score, x_init=g.start, method="eab-4", steps=1500)
    assert float((x - g.flow).abs().max()) < 1e-7


def test_exact_moments_are_those_of_the_affine_map():
    """A deterministic linear method maps x to A x + b: two roads to the W2 between its output law and the target's."""
    target, sde = cells.law("gaussian"), sdediff.EDMSDE()
    recipe, levels = sdediff.method("dpm++2m"), sde.levels(sdediff.grids.LogSNR()(sde, 12))
    *_, end = sdediff.iterate(sdediff.ReverseSDE(sde, target.score), recipe.solver, torch.cat([torch.zeros(1, 3), torch.eye(3)]).to(F64), levels)
    b, a = end.x[0], (end.x[1:] - end.x[0]).T
    at = lambda m: (m.alpha * target.mean, m.alpha**2 * target.cov + m.sigma**2 * torch.eye(3, dtype=F64))
    mean, cov = at(levels[0])
    expected = metrics.gaussian_w2(a @ mean + b, a @ cov @ a.T, *at(levels[-1]))
    assert cells.moment_w2(recipe, sde, levels, target)["moment_w2"].value == pytest.approx(expected, rel=1e-8)
    assert cells.moment_w2(sdediff.method("rosenbrock-2"), sde, levels, target) == {}


def test_intervals_of_path_errors_cover():
    """At 95 %, on distances of a known law: |N(0, I_2)| has RMSE sqrt 2 and median sqrt(2 log 2). 5 z of a binomial of 1000."""
    z = torch.randn(1000, 256, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    found = [cells.path_errors(x, torch.zeros(256, 2, dtype=F64)) for x in z]
    for name, truth in (("path_rmse", math.sqrt(2)), ("path_median", math.sqrt(2 * math.log(2)))):
        covered = sum(f[name].low <= truth <= f[name].high for f in found) / len(found)
        assert abs(covered - 0.95) < 5 * math.sqrt(0.95 * 0.05 / len(found))


def test_black_box_sdes_run_where_alpha_starts_at_zero(tmp_path, no_page):
    study = bench.Study(methods=("euler-maruyama", "ddim"), processes=("RectifiedFlow",), targets=("gaussian",), nfe=(10,), n=40)
    rows = bench.run(study, tmp_path / "flow", progress=False)
    assert {r.method for r in rows} == {"euler-maruyama", "ddim"} and bench.failures(tmp_path / "flow") == []
    assert cells.span(sdediff.RectifiedFlow())[0] == pytest.approx(1000 / 1001)


def test_tolerances_stand_for_budgets(tmp_path, no_page):
    study = bench.Study(methods=("rk45", "ddim"), processes=("VPSDE",), targets=("gaussian",), nfe=(3,), tolerances=(1e-2, 1e-6), n=40)
    rows = [r for r in bench.run(study, tmp_path / "a", progress=False) if r.metric == "path_rmse" and r.method == "rk45"]
    assert [(r.grid, r.steps, r.order) for r in rows] == [("own", None, None)] * 2
    assert rows[0].nfe < rows[1].nfe and rows[0].value > 100 * rows[1].value


def test_one_cell_for_one_thing():
    """A grid named twice, and budgets that do not pay for a step."""
    study = bench.Study(methods=("dpm++2m", "heun", "ddim:eta=0.0"), grids=("own", "logsnr"), nfe=(1, 10), processes=("VPSDE",), targets=("gaussian",))
    found = [(c.method, c.grid, c.nfe) for c in study.cells()]
    assert found == [("dpm++2m", "own", 1), ("dpm++2m", "own", 10), ("heun", "own", 10), ("heun", "logsnr", 10),
                     ("ddim:eta=0.0", "own", 1), ("ddim:eta=0.0", "own", 10), ("ddim:eta=0.0", "logsnr", 1), ("ddim:eta=0.0", "logsnr", 10)]
    assert cells.entrant("sdediff", "ddim:eta=0.0").label == "ddim"
    assert cells.entrant("sdediff", "sa-solver:tau=0.5").label == "sa-solver(tau=0.5)"
    assert cells.entrant("sdediff", "rk45:rtol=1e-3").method.solver.rtol == 1e-3
    assert cells.grid_name(sdediff.grids.Karras(rho=5)) == "karras(rho=5)" and cells.grid_name(sdediff.grids.Karras()) == "karras"


def test_identity_is_of_what_determines_the_numbers():
    problem = cells.Problem("VPSDE", "gaussian", "exact", 40, 0)
    base = cells.Cell("sdediff", "ddim", "own", problem, nfe=10)
    same = [cells.Cell("sdediff", "ddim:eta=0.0", "own", problem, nfe=10), cells.Cell("sdediff", "ddim", "quadratic", problem, nfe=10)]
    other = [cells.Cell("sdediff", "ddim:eta=0.5", "own", problem, nfe=10), cells.Cell("sdediff", "ddim", "karras", problem, nfe=10),
             cells.Cell("sdediff", "ddim", "own", problem, nfe=11), cells.Cell("sdediff", "ddim", "own", problem._replace(seed=1), nfe=10),
             cells.Cell("sdediff", "ddim", "own", problem._replace(n=41), nfe=10),
             cells.Cell("sdediff", "er-sde-2", "own", problem, nfe=10), cells.Cell("sdediff", "er-sde-3", "own", problem, nfe=10)]
    assert {cells.identify(c) for c in same} == {cells.identify(base)}
    assert len({cells.identify(c) for c in [base, *other]}) == 1 + len(other)


@pytest.mark.slow
def test_ready_made_studies():
    assert len(bench.quick().cells()) > 400 and len(bench.full().cells()) > 3000
    assert bench.quick(nfe=(7,)).nfe == (7,) and bench.quick(nfe=(7,)).methods == bench.quick().methods
    named = {m for m in sdediff.methods() if not m.startswith(("scipy-", "torchdiffeq-", "torchsde-"))}
    assert named - set(bench.full().methods) == {"dopri5", "annealed-langevin", "picard"}


# -- what is kept ----------------------------------------------------------------------------------------------------------------
def test_a_second_run_does_no_work(finished, tmp_path, no_page, monkeypatch):
    out = copied(finished, tmp_path)
    monkeypatch.setattr(cells, "run", lambda *_: pytest.fail("a cell was run"))
    monkeypatch.setattr(cells, "_ground", lambda *_: pytest.fail("a problem was solved"))
    assert bench.run(bench.Study(**TINY), out, progress=False) == finished[1]
    assert (out / "results.csv").read_bytes() == (finished[0] / "results.csv").read_bytes()


def test_torn_and_missing_cells_are_made_again(finished, tmp_path, no_page, monkeypatch):
    out = copied(finished, tmp_path)
    files = sorted((out / "cells").iterdir())
    files[0].unlink()
    files[1].write_text(files[1].read_text()[:200])
    files[2].write_text('{"cell": "another"}')
    files[3].write_text(json.dumps(json.loads(files[3].read_text()) | {"rows": [{"cell": files[3].stem}]}))
    (out / "cells" / f".{files[4].name}.1.tmp").write_text("torn")
    next((out / "ground").iterdir()).write_text("{")
    made, run = [], cells.run
    monkeypatch.setattr(cells, "run", lambda cell, folder: made.append(cells.identify(cell)) or run(cell, folder))
    rows = bench.run(bench.Study(**TINY), out, progress=False)
    assert sorted(made) == sorted(f.stem for f in files[:4])
    assert timeless(rows) == timeless(finished[1]) and not list(out.rglob("*.tmp"))


def test_a_study_may_grow(finished, tmp_path, no_page, monkeypatch):
    out = copied(finished, tmp_path)
    made, run = [], cells.run
    monkeypatch.setattr(cells, "run", lambda cell, folder: made.append(cell) or run(cell, folder))
    rows = bench.run(bench.Study(**TINY | {"methods": ("ddpm", "ddim"), "nfe": (16,), "targets": ("gaussian",)}), out, progress=False)
    assert [c.method for c in made] == ["ddim"] and [r.method for r in rows] == sorted((r.method for r in rows), reverse=True)
    assert len(list((out / "cells").iterdir())) == 13


@pytest.mark.slow
def test_a_killed_study_goes_on(finished, tmp_path, no_page):
    out = tmp_path / "killed"
    lists = ["--methods", *TINY["methods"], "--targets", *TINY["targets"], "--processes", "VPSDE", "--nfe", "16", "32", "64", "--n", "40"]
    child = subprocess.Popen([sys.executable, "-m", "sdediff", "bench", *lists, "--out", str(out), "--quiet"],
                             env={**os.environ, "PYTHONPATH": str(Path(sdediff.__file__).parent.parent)})
    try:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and child.poll() is None and not list(out.glob("cells/[!.]*.json")):
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    survivors = {f: f.stat().st_mtime_ns for f in out.glob("cells/[!.]*.json")}
    assert 1 <= len(survivors) < 12
    assert timeless(bench.run(bench.Study(**TINY), out, progress=False)) == timeless(finished[1])
    assert {f: f.stat().st_mtime_ns for f in survivors} == survivors


@pytest.mark.slow
def test_parallel_processes_give_the_same_table(finished, tmp_path, no_page):
    rows = bench.run(bench.Study(**TINY), tmp_path / "parallel", jobs=2, progress=False)
    assert timeless(rows) == timeless(finished[1])
    assert bench.read(tmp_path / "parallel") == rows


@pytest.mark.slow
def test_a_process_that_dies_costs_one_cell(tmp_path, no_page, module):
    (tmp_path / f"{module}.py").write_text(PLUG_IN + "\nimport os\nclass Dies(Plain):\n    def step(self, eq, state, t, s, noise):\n"
                                           "        os._exit(3) if len(state.x) > 1 else None\n        return state\n")
    study = bench.Study(methods=("ddim",), solvers=(f"{module}:Dies",), processes=("VPSDE",), targets=("gaussian",), nfe=(4, 8), n=40)
    rows = bench.run(study, tmp_path / "out", jobs=2, progress=False)
    assert {(r.method, r.nfe) for r in rows} == {("ddim", 4), ("ddim", 8)}
    assert [f["error"] for f in bench.failures(tmp_path / "out")] == ["its process ended with exit code 3"] * 2


# -- plug-ins and failures -------------------------------------------------------------------------------------------------------
def test_plug_ins(tmp_path, no_page, module):
    study = bench.Study(methods=("euler",), solvers=[f"{module}:{n}" for n in ("Plain", "made", "tilted")], targets=[f"{module}:Pair"],
                        processes=("VPSDE",), nfe=(20,), n=60)
    rows = bench.run(study, tmp_path / "out", progress=False)
    found = {r.source: r for r in rows if r.metric == "sliced_w2"}
    assert {s: (r.method, r.kind) for s, r in found.items()} == {
        "sdediff": ("euler", "ODE"), f"{module}:Plain": ("Plain", "ODE"), f"{module}:made": ("made", "ODE"), f"{module}:tilted": ("ddim", "SDE")}
    assert {r.target for r in rows} == {f"{module}:Pair"} and {r.nfe for r in rows} == {20}
    paths = {r.source: r.value for r in rows if r.metric == "path_rmse"}                    # Euler under another name
    assert paths[f"{module}:Plain"] == pytest.approx(paths["sdediff"], rel=1e-12) and paths["sdediff"] < 0.2
    shown = np.load(tmp_path / "out" / "samples" / f"{rows[0].cell}.npz", allow_pickle=False)["x"]
    assert shown.shape == (60, 2)


def test_classes_and_functions_from_python(module):
    import importlib
    made = importlib.import_module(module)
    study = bench.Study(solvers=[made.Plain, made.made], targets=[made.Pair])
    assert study.solvers == (f"{module}:Plain", f"{module}:made") and study.targets == (f"{module}:Pair",)
    with pytest.raises(TypeError, match=r"expected MODULE:NAME, or a class or function"):
        bench.Study(solvers=[made.Plain()])


def test_an_edited_plug_in_is_run_again(tmp_path, module):
    cell = cells.Cell(f"{module}:Plain", "", "own", cells.Problem("VPSDE", "gaussian", "exact", 40, 0), nfe=5)
    before = cells.identify(cell)
    assert cells.identify(cell) == before
    (tmp_path / f"{module}.py").write_text(PLUG_IN + "\n# edited\n")
    assert cells.identify(cell) != before


def test_failures_are_recorded_and_the_study_goes_on(tmp_path, no_page, module, monkeypatch):
    study = bench.Study(methods=("ddim",), solvers=[f"{module}:Broken", f"{module}:Explodes"], targets=("mixture",), processes=("VPSDE",),
                        nfe=(6,), n=40)
    rows = bench.run(study, tmp_path / "out", progress=False)
    broken, exploded = bench.failures(tmp_path / "out")
    assert broken["method"] == "Broken" and "RuntimeError: no luck today" in broken["error"] and str(tmp_path) not in broken["error"]
    assert exploded["method"] == "Explodes" and exploded["error"].startswith("diverged: ")
    assert {r.method for r in rows} == {"ddim", "Explodes"}
    for r in rows:
        assert math.isinf(r.value) == (r.method == "Explodes")
    assert bench.read(tmp_path / "out") == rows
    monkeypatch.setattr(cells, "run", lambda *_: pytest.fail("a failed cell is a finished one"))
    assert bench.run(study, tmp_path / "out", progress=False) == rows


# -- networks and the command line -----------------------------------------------------------------------------------------------
def test_a_trained_network_brings_its_process_and_target(tmp_path, no_page):
    assert main(["train", "--data", "8-gaussians", "--training.steps", "300", "--training.batch", "128", "--network.width", "32",
                 "--out", str(tmp_path / "octo"), "--quiet"]) == 0
    study = bench.Study(methods=("heun",), scores=(f"network:{tmp_path / 'octo'}",), nfe=(40, 80, 160), n=60)
    rows = bench.run(study, tmp_path / "out", progress=False)
    assert {(r.process, r.target, r.score) for r in rows} == {("VPSDE", "8-gaussians", "network:octo")}
    assert str(tmp_path) not in (tmp_path / "out" / "study.json").read_text()
    errors = [r.value for r in rows if r.metric == "path_rmse"]                 # to the network's own flow
    assert errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 3
    assert {r.metric for r in rows} >= {"sliced_w2", "nll", "mode_coverage"} and "moment_w2" not in {r.metric for r in rows}
    assert runs.read(tmp_path / "octo")[1].sde == sdediff.VPSDE()


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "--solver" in said and "--tolerances" in said and "sdediff bench --quick" in said


def test_print_config_makes_the_study(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["bench", "--quick", "--nfe", "8", "--print_config"])
    import yaml
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["nfe"] == [8] and tuple(settings["methods"]) == bench.quick().methods and tuple(settings["targets"]) == bench.quick().targets


def test_the_command_writes_a_page(tmp_path, capsys):
    out = tmp_path / "page"
    argv = ["bench", "--methods", "ddim", "heun", "--targets", "8-gaussians", "--processes", "VPSDE", "--nfe", "4", "8", "16", "--n", "40",
            "--grids", "own", "--out", str(out), "--quiet"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"{out / 'index.html'}: 6 cells with ")
    assert {"index.html", "README.md", "results.csv", "study.json"} <= {p.name for p in out.iterdir()}
    document = json.loads((out / "study.json").read_text())
    assert document["command"].startswith("sdediff bench --methods ddim heun ") and str(tmp_path) not in document["command"]
    assert "ddim" in (out / "README.md").read_text()


@pytest.mark.parametrize(("argv", "words"), [
    (["--methods", "dim"], ["method='dim' is unknown", "ddim"]),
    (["--methods", "ddim:eta"], ["'eta' has no value"]),
    (["--methods", "ddim:steps=5"], ["steps is the study's", "--nfe"]),
    (["--methods", "ddim:etta=1"], ["etta=1", "eta=0.0"]),
    (["--methods"], ["nothing to compare"]),
    (["--grids", "log"], ["grid='log'", "logsnr", "own"]),
    (["--processes", "VP"], ["process='VP'", "VPSDE", "RectifiedFlow"]),
    (["--targets", "moons"], ["target='moons'", "two-moons", "gaussian"]),
    (["--scores", "net"], ["score='net'", "network:FOLDER"]),
    (["--scores", "network:nowhere"], ["nowhere", "sdediff train"]),
    (["--nfe", "0"], ["nfe[0]=0"]),
    (["--tolerances", "2"], ["tolerances[0]=2"]),
    (["--n", "3"], ["n=3"]),
    (["--jobs", "0"], ["jobs=0"]),
    (["--train", "true", "--targets", "gaussian"], ["target='gaussian'", "two-moons"]),
    (["--solver", "nowhere_at_all:X"], ["solver='nowhere_at_all:X'", "cannot import nowhere_at_all"]),
    (["--solver", "sdediff:nothing"], ["sdediff has no nothing"]),
    (["--solver", "sdediff"], ["expected MODULE:NAME"]),
    (["--solver", "math:pi"], ["math:pi", "float", "Solver class"]),
    (["--target", "math:pi"], ["math:pi", "no method score", "log_prob"]),
])
def test_wrong_names_are_refused(argv, words, tmp_path, capsys):
    assert main(["bench", "--quick", "--quiet", "--out", str(tmp_path / "out"), *argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sdediff: error: ") and said.count("\n") == 1
    for word in words:
        assert word in said, said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, no_page):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="not a benchmark"):
        bench.run(bench.Study(**TINY), tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupt_says_how_to_go_on(tmp_path, no_page, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(cells, "run", stopped)
    argv = ["bench", "--methods", "ddim", "--targets", "gaussian", "--processes", "VPSDE", "--n", "40", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(argv) == 130
    assert f"`sdediff {' '.join(argv)}` goes on" in capsys.readouterr().err


def test_a_table_with_other_columns_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("cell,value\n")
    with pytest.raises(ValueError, match="its columns are cell, value"):
        bench.read(tmp_path)
