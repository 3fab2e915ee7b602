r"""Studies: which cells, run resumably and in parallel, and the table that they make.

    OUT/cells/<id>.json     a finished cell each, whole or not at all: a study that was killed goes on where it stopped, and a study with
                            other lists in the same folder runs what is new
    OUT/ground/<id>.json    flow endpoints and floors of a problem, computed once
    OUT/samples/<id>.npz    some samples of each cell in the plane
    OUT/results.csv         the rows of this study, in the order of its lists: they do not depend on the number of jobs, but for the seconds
    OUT/budget.json         the error budget of a trained run, where one was asked for
    OUT/study.json          its lists, versions and command, and the cells that failed
    OUT/index.html, README.md, figures/

A study is the product of methods, grids, budgets, processes and targets; a trained network brings its own process and target. Methods that
choose their steps run once for each tolerance, the others once for each budget that pays for one step at least.
"""
from __future__ import annotations

import csv
import dataclasses
import io
import multiprocessing
import multiprocessing.connection
import numbers
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import files, recipes, sampling
from ..contracts import choice, flags, instance, integer, known, real, sequence
from ..grids import GRIDS, Grid
from ..progress import bar
from ..sde import SDE
from . import cells
from .cells import LAWS, PROCESSES, Cell, Problem, Row

RESULTS, STUDY, BUDGET = "results.csv", "study.json", "budget.json"
OWN = "own"
NOISY = 3e-2
EXTERNAL = ("scipy-", "torchdiffeq-", "torchsde-")
# Another name of rk45; Langevin steps by the hundred; and calls that hold many states each, not to be compared call by call.
LEFT_OUT = ("dopri5", "annealed-langevin", "picard")


@dataclass(frozen=True)
class Study:
    """What is compared. Lists are tuples of names.

    Args:
        methods: NAME or NAME:KEY=VALUE,... of the catalogue.
        solvers: plug-ins, MODULE:NAME of a Solver class, an instance, a Method, or a function that returns one.
        grids: "own" (the method's own on the process), uniform, quadratic, logsnr, karras or sech.
        nfe: budgets in network calls; a method takes the most steps that fit.
        tolerances: rtol = atol of the methods that choose their steps. One that draws noise takes those from ``NOISY`` up (else the
            largest): its steps shrink like the tolerance itself, to thousands.
        processes: of the exact scores, by class name.
        targets: of the exact scores: toys, "gaussian", "mixture", or plug-ins, MODULE:NAME.
        scores: "exact", and "network:FOLDER" of trained runs.
        train: also train a small network for each process and target (toys).
        n: samples of a cell.
        seed: of starts, noises, exact samples and training.
    """

    methods: Sequence[str] = ()
    solvers: Sequence[Any] = ()
    grids: Sequence[str] = (OWN,)
    nfe: Sequence[int] = (5, 10, 20, 50)
    tolerances: Sequence[float] = (1e-2, 1e-3, 1e-4)
    processes: Sequence[str] = ("VPSDE", "EDMSDE")
    targets: Sequence[Any] = ("gaussian", "mixture")
    scores: Sequence[str] = ("exact",)
    train: bool = False
    n: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                value = sequence(field.name, value, f"a list such as {list(field.default)}", 0)
                kind = numbers.Real if field.name in ("nfe", "tolerances") else object if field.name in ("solvers", "targets") else str
                for k, v in enumerate(value):
                    instance(f"{field.name}[{k}]", v, kind, "a number" if kind is numbers.Real else "a name")
                named = [_dotted(field.name[:-1], v) if field.name in ("solvers", "targets") else v for v in value]
                object.__setattr__(self, field.name, tuple(dict.fromkeys(named)))
        for dotted in self.solvers:
            cells.plug_in("solver", dotted)
        for source, text in self.entries:
            cells.entrant(source, text)
        for name in self.grids:
            choice("grid", name, [OWN, *(g for g in GRIDS if g != "ddpm")])
        for name in self.processes:
            choice("process", name, PROCESSES)
        for name in self.targets:
            cells.law(name)
        for score in self.scores:
            self._check_score(score)
        for k, budget in enumerate(self.nfe):
            integer(f"nfe[{k}]", budget, 1)
        for k, tolerance in enumerate(self.tolerances):
            real(f"tolerances[{k}]", tolerance, 0.0, 1.0, low_open=True)
        integer("n", self.n, 20)
        flags(train=self.train)
        integer("seed", self.seed, 0, (1 << 28) - 1)
        if not self.entries:
            raise ValueError("methods=(), solvers=(): nothing to compare; expected methods such as ['ddim', 'dpm++2m'] or a solver.")
        if not self.scores and not self.train:
            raise ValueError("scores=(): nothing to run on; expected ['exact'], or train=True.")
        for name in self.targets if self.train else ():
            if name not in LAWS or name in ("gaussian", "mixture"):
                raise ValueError(f"train=True, target={name!r}: networks are trained on toys; expected targets among "
                                 f"{', '.join(k for k in LAWS if k not in ('gaussian', 'mixture'))}.")

    @staticmethod
    def _check_score(score: Any) -> None:
        if score == "exact":
            return
        kind, _, folder = str(score).partition(":")
        if kind != "network" or not folder:
            raise ValueError(f"score={score!r}: expected 'exact', or 'network:FOLDER' with the folder of a trained run.")
        Problems.of_network(score, 20, 0)

    @property
    def entries(self) -> list[tuple[str, str]]:
        """(source, method) of all who take part, plug-ins last."""
        return [("sdediff", text) for text in self.methods] + [(dotted, "") for dotted in self.solvers]

    def _affordable(self, method: recipes.Method) -> Sequence[float]:
        """The tolerances that a method takes: see ``tolerances``."""
        if not cells.stochastic(method):
            return self.tolerances
        return [v for v in self.tolerances if v >= NOISY] or sorted(self.tolerances)[-1:]

    def problems(self, networks: Sequence[str] = ()) -> list[Problem]:
        """The problems of the exact scores, and those of the networks (of the study, and ``networks``, scores made by training)."""
        found = [Problem(process, target, "exact", self.n, self.seed) for process in self.processes for target in self.targets] \
            if "exact" in self.scores else []
        return found + [Problems.of_network(s, self.n, self.seed) for s in (*self.scores, *networks) if s != "exact"]

    def cells(self, networks: Sequence[str] = ()) -> list[Cell]:
        """The cells, each once, in the order of the lists."""
        found: dict[Any, Cell] = {}
        for problem in self.problems(networks):
            sde = cells.sde_of(problem)
            for source, text in self.entries:
                method = cells.entrant(source, text).method
                if cells.tolerant(method):
                    for tolerance in self._affordable(method):
                        found[source, text, problem, tolerance] = Cell(source, text, OWN, problem, tolerance=tolerance)
                    continue
                for name in self.grids:
                    grid = cells.grid_of(Cell(source, text, name, problem), method, sde)
                    least = _least(method, sde, grid)
                    for budget in self.nfe:
                        if budget >= least:
                            found.setdefault((source, text, problem, grid, budget), Cell(source, text, name, problem, nfe=budget))
        return list(found.values())


def _least(method: recipes.Method, sde: SDE, grid: Grid) -> int:
    """Calls of one step. One, where the method fails: its cells will say how."""
    try:
        return 1 if method.solver.adaptive else sampling.count_calls(method, sde, grid(sde, 1, *cells.span(sde)))
    except Exception:
        return 1


class Problems:
    """What a trained run is about."""

    @staticmethod
    def of_network(score: str, n: int, seed: int) -> Problem:
        """The problem of a trained run: its process, its toy, its score. ValueError where its data are no toy: their law is not known."""
        from .. import runs
        folder = score.partition(":")[2]
        config, checkpoint, _ = runs.read(Path(folder))
        if config["data"] not in LAWS:
            raise ValueError(f"score={score!r}: it was trained on {config['data']!r}, whose law is not known; expected a run on a toy, as "
                             "`sdediff train --data two-moons` makes it.")
        return Problem(type(checkpoint.sde).__name__, config["data"], score, n, seed)


def _dotted(name: str, value: Any) -> str:
    """A plug-in as MODULE:NAME: what it is already, or that of a class or function."""
    if isinstance(value, str):
        return value
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualified, str) or "<" in qualified:
        raise TypeError(f"{name}={value!r}: expected MODULE:NAME, or a class or function that a module defines, since parallel processes "
                        "import it by that name.")
    return f"{module}:{qualified}"


_FIELDS = {field.name: field.default for field in dataclasses.fields(Study)}


# -- ready-made studies -----------------------------------------------------------------------------------------------------------
def quick(**lists: Any) -> Study:
    """The main methods on four targets with 5 to 50 calls: 3 minutes on two cores. ``lists`` replace fields."""
    known("bench.quick", lists, _FIELDS)
    return Study(**{"methods": ("euler", "ddim", "heun", "edm-heun", "dpm-solver-2", "dpm++2m", "dpm++3m", "unipc-2", "deis-2", "eab-3",
                                "rk45", "euler-maruyama", "ddpm", "pc", "dpm++2m-sde", "sa-solver", "er-sde-2"),
                    "targets": ("gaussian", "mixture", "8-gaussians", "two-moons"), **lists})


def full(**lists: Any) -> Study:
    """Every method of the catalogue on its own grid and on log-SNR, with 5 to 200 calls, three processes, five targets: an hour on two
    cores. Other libraries' engines are left out, since they are these methods again. ``lists`` replace fields."""
    known("bench.full", lists, _FIELDS)
    names = [m for m in recipes.methods() if not m.startswith(EXTERNAL) and m not in LEFT_OUT]
    return Study(**{"methods": tuple(names), "grids": (OWN, "logsnr"), "nfe": (5, 10, 20, 50, 100, 200),
                    "tolerances": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5), "processes": ("VPSDE", "EDMSDE", "RectifiedFlow"),
                    "targets": ("gaussian", "mixture", "8-gaussians", "two-moons", "checkerboard"), **lists})


# -- running ----------------------------------------------------------------------------------------------------------------------
def run(study: Study, out: str | Path, *, jobs: int = 1, progress: bool = True, command: str = "") -> list[Row]:
    """Run what is missing of a study into the folder ``out``, write its table and its page, and return its rows.

    ``jobs`` processes with one thread each (they are spawned: a script needs ``if __name__ == "__main__":``); with 1, all runs here.
    ``command``: what the page shows as the line that made it. A cell that fails records its error and the study goes on. Raises
    FileExistsError for a folder that holds something else, and what training raises.
    """
    instance("study", study, Study, "a Study such as bench.quick()"), integer("jobs", jobs, 1)
    flags(progress=progress)
    instance("command", command, str, "the line that made it")
    folder = claimed(out)
    cells.write_json(folder / STUDY, _document(study, command, []))
    for inner in (folder, *filter(Path.is_dir, folder.iterdir())):
        files.sweep(inner)
    networks = [f"network:{_trained(process, target, study.seed, folder, progress)}"
                for process in study.processes for target in study.targets] if study.train else []
    wanted = {cells.identify(cell): cell for cell in study.cells(networks)}
    missing = [cell for identity, cell in wanted.items() if cells.kept(identity, folder) is None]
    with _bar(len(missing), progress) as bar:
        if missing:
            _prepare(list(dict.fromkeys(cell.problem for cell in missing)), folder, jobs, bar)
            _run_all(missing, folder, jobs, bar)
    records = [record for identity in wanted if (record := cells.kept(identity, folder)) is not None]
    rows = [row for record in records for row in record.rows]
    files.write(folder / RESULTS, as_csv(rows))
    failed = [{**_words(wanted[r.id]), "cell": r.id, "error": r.error} for r in records if r.error]
    total = {"cells": len(records), "seconds": sum(record.elapsed for record in records)}
    cells.write_json(folder / STUDY, _document(study, command, failed) | total)
    from . import page
    page.write(folder)
    return rows


def claimed(out: str | Path) -> Path:
    """The folder of a benchmark: new, empty, or one that holds a benchmark. Anything else is a FileExistsError."""
    folder = files.named("out", out)
    for name in (STUDY, BUDGET):
        files.sweep(folder, name)
    ours = any((folder / name).is_file() for name in (STUDY, BUDGET))
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not ours)):
        raise FileExistsError(f"out='{out}' holds something that is not a benchmark; expected a new or empty folder, or one to go on with.")
    return folder


def read(path: str | Path) -> list[Row]:
    """The rows of a benchmark's folder, or of a results.csv. ValueError where its columns are others."""
    path = files.named("path", path)
    file = path / RESULTS if path.is_dir() else path
    rows, k = list[Row](), 0
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            for k, line in enumerate(csv.reader(lines), 1):
                if k == 1 and tuple(line) != Row._fields:
                    raise ValueError(f"its columns are {', '.join(line)}; expected {', '.join(Row._fields)}")
                if k > 1:
                    rows.append(Row._make(_typed(name, text) for name, text in zip(Row._fields, line, strict=True)))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"path='{file}', line {k}: {error}. It is no table of `sdediff bench`, or damaged.") from None
    if not k:
        raise ValueError(f"path='{file}': its columns are none; expected {', '.join(Row._fields)}.")
    return rows


def _typed(name: str, text: str) -> Any:
    if name in ("cell", "source", "method", "kind", "grid", "process", "target", "score", "metric"):
        return text
    return None if text == "" else int(text) if name in ("order", "steps", "nfe", "n", "seed") else float(text)


def failures(path: str | Path) -> list[dict[str, Any]]:
    """The cells of a benchmark's folder that failed, in words, each with its ``error``."""
    return (cells.read_json(files.named("path", path) / STUDY) or {}).get("failures", [])


def as_csv(rows: Sequence[Row]) -> str:
    """The text of a results.csv; floats keep every bit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([["" if v is None else repr(v) if isinstance(v, float) else v for v in row] for row in rows])
    return text.getvalue()


def _words(cell: Cell) -> dict[str, Any]:
    """A cell for the list of failures."""
    p = cell.problem
    budget = f"{cell.nfe} calls" if cell.tolerance is None else f"tolerance {cell.tolerance:g}"
    return {"source": cell.source, "method": cells.entrant(cell.source, cell.method).label, "grid": cell.grid, "budget": budget,
            "process": p.process, "target": p.target, "score": cells.score_name(p.score)}


def _document(study: Study, command: str, failures: list[dict[str, Any]]) -> dict[str, Any]:
    """study.json: no paths and no names of machines."""
    from ..runs import versions
    lists = dataclasses.asdict(study) | {"scores": [cells.score_name(s) for s in study.scores]}
    return {"study": lists, "versions": versions(), "command": command, "failures": failures}


def _trained(process: str, target: str, seed: int, folder: Path, progress: bool) -> Path:
    """The run folder of a small network for a process and a toy, trained here if it is not there yet."""
    from .. import data, runs
    from ..training import TrainingConfig
    out = folder / "networks" / f"{process}-{target}"
    short = {"VPSDE": "vp", "SubVPSDE": "sub-vp", "CosineVPSDE": "cosine", "VESDE": "ve", "EDMSDE": "edm", "RectifiedFlow": "flow"}[process]
    given = runs.preset(target, short)
    part = lambda prefix: {k[len(prefix):]: v for k, v in given.items() if k.startswith(prefix)}
    job = runs.Job(target, short, network=runs.NetworkConfig(**part("network.")), training=TrainingConfig(**part("training.")), seed=seed,
                   **{k: v for k, v in given.items() if "." not in k})
    import yaml
    runs.prepare(out, yaml.safe_dump(dataclasses.asdict(job), sort_keys=False), resume=True, overwrite=False)
    runs.train(job, out, data.load(target, seed=seed), progress=progress)
    return out


# -- tasks, here or in processes ---------------------------------------------------------------------------------------------------
Task = tuple[str, Any, str]         # ("ground", problem, folder) or ("cell", cell, folder)


def _do(task: Task) -> float:
    """Seconds of one call of the score for a problem, 0 where it fails (its cells will say why); nothing for a cell."""
    kind, subject, folder = task
    if kind == "cell":
        cells.keep(subject, Path(folder))
        return 0.0
    try:
        return cells.ground(subject, Path(folder)).call
    except Exception:
        return 0.0


def _cost(cell: Cell, call: float) -> float:
    """Seconds that a cell takes, about: its calls, and what the metrics take."""
    return call * (cell.nfe or 300) + 2e-4 * cell.problem.n


def _prepare(problems: Sequence[Problem], folder: Path, jobs: int, bar: Any) -> None:
    for task, call in _results([("ground", p, str(folder)) for p in problems], jobs):
        bar.calls[task[1]] = call


def _run_all(missing: Sequence[Cell], folder: Path, jobs: int, bar: Any) -> None:
    """The cells, the longest first, so that no process is left alone with one at the end."""
    cost = {cell: _cost(cell, bar.calls.get(cell.problem, 0.0)) for cell in missing}
    bar.begin(sum(cost.values()))
    for task, _ in _results([("cell", cell, str(folder)) for cell in sorted(missing, key=lambda c: -cost[c])], jobs):
        bar.advance(cost[task[1]])


class _Progress:
    """A bar whose time left counts costs, not cells. ``calls``: seconds of a call of each problem's score."""

    def __init__(self, count: int, shown: bool) -> None:
        self.calls: dict[Problem, float] = {}
        self.count, self.done = count, 0
        self.tqdm = bar(1.0, shown and count > 0, desc="exact solutions", mininterval=0.5, leave=False,
                        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left")

    def begin(self, total: float) -> None:
        self.tqdm.reset(total)
        self.tqdm.set_description(f"0/{self.count} cells")

    def advance(self, cost: float) -> None:
        self.done += 1
        self.tqdm.set_description(f"{self.done}/{self.count} cells", refresh=False)
        self.tqdm.update(cost)


@contextmanager
def _bar(count: int, shown: bool) -> Iterator[_Progress]:
    bar = _Progress(count, shown)
    try:
        yield bar
    finally:
        bar.tqdm.close()


def _results(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, float]]:
    """The tasks as they are finished, with what they return."""
    if not tasks:
        return
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                yield task, _do(task)
        finally:
            torch.set_num_threads(threads)
        return
    context, waiting = multiprocessing.get_context("spawn"), list(reversed(tasks))
    busy: dict[Any, tuple[Any, Task]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                pipe, process = _spawn(context)
                busy[pipe] = (process, waiting.pop())
                pipe.send(busy[pipe][1])
            ready: list[Any] = multiprocessing.connection.wait(list(busy))
            for pipe in ready:
                process, task = busy[pipe]
                try:
                    result = pipe.recv()
                except (EOFError, ConnectionError):             # it crashed, or was killed
                    process.join()
                    del busy[pipe]
                    result = 0.0
                    if task[0] == "cell":
                        cells.keep(task[1], Path(task[2]), f"its process ended with exit code {process.exitcode}")
                else:
                    if waiting:
                        busy[pipe] = (process, waiting.pop())
                        pipe.send(busy[pipe][1])
                    else:
                        del busy[pipe]
                        pipe.close()
                        process.join()
                yield task, result
    finally:
        for process, _ in busy.values():
            process.terminate()
        for process, _ in busy.values():
            process.join()


def _spawn(context: Any) -> tuple[Any, Any]:
    """A worker and our end of its pipe. It alone holds the other end, so that it ends when we do. OpenMP reads its variable when it is
    loaded: hence it is set before."""
    ours, theirs = context.Pipe()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        process = context.Process(target=_worker, args=(theirs,), daemon=True)
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()
    return ours, process


def _worker(pipe: Any) -> None:
    """Do tasks until the pipe is closed. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            task = pipe.recv()
            pipe.send(_do(task))
        except (EOFError, ConnectionError):
            return
