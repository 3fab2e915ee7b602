"""The command line, in process, on tiny settings: what it writes, what it refuses, and that it goes on where it was stopped."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import sdediff
from sdediff import runs, training
from sdediff.cli import main

TINY = ["--training.steps", "40", "--training.batch", "64", "--network.width", "16", "--n", "200", "--quiet"]


def compare(out, *more):
    return main(["compare", *TINY, "--out", str(out), *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "moons"
    assert compare(out, "--methods", "euler-maruyama:steps=8", "ddim:steps=6", "dpm++2m:nfe=5,grid=karras") == 0
    return out


def refused(capsys, *argv):
    """The one line on stderr."""
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("sdediff: error: ") and said.count("\n") == 1, said
    return said


def test_a_run_folder(run, capsys):
    names = {p.name for p in run.iterdir()}
    assert names == {"config.yaml", "checkpoint.safetensors", "metrics.json", "samples.png", "forward.png", "score.png", "trajectory.gif"}
    document = json.loads((run / "metrics.json").read_text())
    assert [m["label"] for m in document["methods"]] == ["euler-maruyama:steps=8", "ddim:steps=6", "dpm++2m:nfe=5,grid=karras"]
    assert [m["nfe"] for m in document["methods"]] == [8, 6, 5] and document["n"] == 200
    assert document["versions"]["sdediff"] == sdediff.__version__ and document["versions"]["torch"] == torch.__version__
    for row in (*document["methods"], document["floor"]):
        for key in ("sliced_w2", "energy", "reference"):
            assert set(row[key]) == {"value", "low", "high"} and np.isfinite(row[key]["value"]) and row[key]["low"] < row[key]["high"]
    assert 0 < document["floor"]["sliced_w2"]["value"] < 0.5 < document["methods"][1]["sliced_w2"]["value"]     # hardly trained
    assert (run / "samples.png").read_bytes()[:4] == b"\x89PNG" and (run / "trajectory.gif").read_bytes()[:4] == b"GIF8"
    assert (run / "trajectory.gif").stat().st_size < 3e6


def test_the_table_is_aligned_and_fits_a_hundred_columns(tmp_path, capsys):
    assert compare(tmp_path / "a", "--methods", "heun:steps=3", "pc:steps=3", "--pictures", "false") == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 and rows[-1].startswith("fresh data (the floor)") and str(tmp_path) in last
    assert all(len(line) <= 100 for line in (head, *rows))
    assert len({line.index("±") for line in rows}) == 1 and head.index("sliced W2") == rows[0].index("±") - 7
    assert not list((tmp_path / "a").glob("*.png"))


def test_config_reruns_the_job(run, tmp_path):
    assert main(["compare", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "b"), "--pictures", "false", "--quiet"]) == 0
    first, second = (json.loads((p / "metrics.json").read_text()) for p in (run, tmp_path / "b"))
    for a, b in zip(first["methods"], second["methods"]):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert first["floor"] == second["floor"]


def test_sampling_a_trained_run(run, tmp_path, capsys):
    argv = ["sample", str(run), "--method", "ddim:eta=0.5", "--steps", "4", "--n", "50", "--seed", "3", "--quiet"]
    before = (run / "checkpoint.safetensors").read_bytes()
    assert main(argv) == 0
    path = run / "samples" / "ddim-eta=0.5-seed3.npy"
    assert capsys.readouterr().out.strip() == str(path)
    x = np.load(path, allow_pickle=False)
    _, checkpoint, score = runs.read(run)
    expected = sdediff.sample(checkpoint.sde, score, shape=(50, 2), method="ddim", eta=0.5, steps=4, seed=3)
    assert np.array_equal(x, expected.double().numpy())
    assert "exists" in refused(capsys, *argv)
    assert main([*argv, "--overwrite"]) == 0
    assert main([*argv, "--out", str(tmp_path / "x.csv")]) == 0
    assert np.allclose(np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1), x, rtol=1e-6)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert "expected a file that ends in" in refused(capsys, *argv, "--out", str(tmp_path / "x.txt"))
    (run / "samples").joinpath("ddim-eta=0.5-seed3.npy").unlink()
    (run / "samples").rmdir()


def test_finished_runs_are_never_overwritten_silently(run, tmp_path, capsys):
    kept = (run / "metrics.json").read_bytes()
    assert "holds a finished run; --resume" in refused(capsys, "compare", *TINY, "--out", str(run))
    assert "was trained with training.steps=40" in refused(capsys, "compare", *TINY, "--out", str(run), "--resume", "--training.steps", "50")
    assert "exclude each other" in refused(capsys, "compare", "--resume", "--overwrite", "--out", str(run))
    (tmp_path / "diary.txt").write_text("mine")
    assert "not a run of sdediff" in refused(capsys, "compare", *TINY, "--out", str(tmp_path), "--overwrite")
    assert "is a file" in refused(capsys, "compare", *TINY, "--out", str(tmp_path / "diary.txt"))
    assert (run / "metrics.json").read_bytes() == kept and "steps: 40" in (run / "config.yaml").read_text()


def test_other_methods_without_training_again(tmp_path, monkeypatch):
    out = tmp_path / "r"
    assert main(["train", *[a for a in TINY if a not in ("--n", "200")], "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"config.yaml", "checkpoint.safetensors"}
    monkeypatch.setattr(training._Run, "advance", lambda self: pytest.fail("trained again"))
    assert compare(out, "--resume", "--methods", "euler:steps=2", "--pictures", "false", "--reference", "false") == 0
    assert json.loads((out / "metrics.json").read_text())["methods"][0]["reference"] is None


def test_a_killed_run_goes_on(tmp_path, monkeypatch, capsys):
    whole, broken, argv = tmp_path / "whole", tmp_path / "broken", ["--methods", "ddim:steps=2", "--pictures", "false"]
    assert compare(whole, *argv) == 0
    advance = training._Run.advance

    def stop(self):
        if self.step == 25:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(training._Run, "advance", stop)
    assert compare(broken, *argv) == 130
    assert "--resume` goes on" in capsys.readouterr().err and not (broken / "metrics.json").exists()
    monkeypatch.setattr(training._Run, "advance", advance)
    assert "holds an unfinished run" in refused(capsys, "compare", *TINY, "--out", str(broken), *argv)
    assert "trained for 25 of 40 steps" in refused(capsys, "sample", str(broken))
    assert compare(broken, *argv, "--resume") == 0
    scores = [json.loads((p / "metrics.json").read_text())["methods"][0]["sliced_w2"] for p in (whole, broken)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("more, words", [
    (["--data", "two-mons"], "nearest: two-moons"),
    (["--data", "none.csv"], "no such file"),
    (["--methods", "ddmi"], "nearest: ddrm, ddpm, ddim"),
    (["--methods", "ddim:eta"], "has no value"),
    (["--methods", "ddim:etta=1"], "no such option"),
    (["--methods", "ddim:steps=3,nfe=4"], "expected one of them"),
    (["--methods", "heun", "heun"], "named twice"),
    (["--process", "vq"], "process='vq'"),
    (["--process_options", "{beta: 3}"], "has no such option"),
    (["--time_input", "clock"], "time_input='clock'"),
    (["--predicts", "noise"], "predicts='noise'"),
    (["--training.lr", "-1"], "lr=-1.0"),
    (["--training.steps", "many"], "training.steps"),
    (["--traning.steps", "3"], "unrecognized arguments: --traning.steps 3. See: sdediff compare --help"),
    (["--n", "1"], "n=1"),
    (["--threads", "0"], "threads=0"),
    (["--config", "none.yaml"], "none.yaml"),
])
def test_refusals_are_one_line(tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "compare", *more)
    assert not list(tmp_path.iterdir())


def test_refusals_of_other_commands(tmp_path, capsys):
    assert "expected the folder of a run" in refused(capsys, "sample", str(tmp_path))
    assert "required" in refused(capsys, "sample")
    assert "invalid choice" in refused(capsys, "compar")
    with pytest.raises(ValueError, match="expected the folder of a run"):
        main(["sample", str(tmp_path), "--traceback"])


@pytest.mark.parametrize("command", [[], ["--help"], ["compare", "--help"], ["sample", "--help"], ["train", "--help"]])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0 and "example" in capsys.readouterr().out


def test_methods_are_listed(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + said for name in sdediff.methods())


@pytest.mark.parametrize("data, process, expected", [
    ("digits", "vp", {"predicts": "v"}), ("two-moons", "flow", {"predicts": "velocity", "time_input": "t"}), ("rings", "edm", {"predicts": "edm"})])
def test_defaults_suit_data_and_process(data, process, expected, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(f"process: {process}\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "c.yaml"), f"--data={data}", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert {k: config[k] for k in expected} == expected and config["data"] == data


@pytest.mark.parametrize("process", ["sub-vp", "cosine", "ve", "edm", "flow", "ddpm"])
def test_every_process(process, tmp_path):
    methods = ["dpm++2m:steps=4", "ddpm:steps=4"]
    drawn = str(process in ("edm", "ddpm")).lower()
    assert compare(tmp_path / "p", "--process", process, "--methods", *methods, "--reference", "false", "--pictures", drawn) == 0


@pytest.mark.parametrize("columns", [1, 5])
def test_points_of_any_dimension(tmp_path, columns):
    np.save(tmp_path / "x.npy", 100 + np.random.default_rng(0).normal(size=(150, columns)))
    out = tmp_path / "r"
    assert compare(out, "--data", str(tmp_path / "x.npy"), "--methods", "ddim:steps=4") == 0
    assert json.loads((out / "metrics.json").read_text())["n"] == 30
    assert main(["sample", str(out), "--n", "10", "--quiet"]) == 0
    x = np.load(next((out / "samples").iterdir()))
    assert x.shape == (10, columns) and np.isfinite(x).all()


def test_digits(tmp_path):
    assert compare(tmp_path / "d", "--data", "digits", "--methods", "dpm++2m:steps=4", "ddim:steps=3") == 0
    assert main(["sample", str(tmp_path / "d"), "--n", "3", "--quiet"]) == 0
    assert np.load(next((tmp_path / "d" / "samples").iterdir())).shape == (3, 1, 8, 8)


def test_python_m_sdediff_and_a_cheap_import():
    out = subprocess.run([sys.executable, "-m", "sdediff", "--version"], capture_output=True, text=True, check=True)
    assert sdediff.__version__ in out.stdout
    heavy = "import sys, sdediff.cli; print([m for m in ('matplotlib', 'sklearn', 'scipy.stats', 'torchsde', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_catalogue_and_the_coefficients_of_a_method(capsys):
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert "dpm++3m" in text and "order (measured)" in text
    assert main(["methods", "unipc-3", "--steps", "2", "--process", "edm", "--predicts", "x0"]) == 0
    text = capsys.readouterr().out
    assert "kernel='bh2'" in text and "unipc-3 on EDMSDE, 2 steps" in text and "D2 = x0(" in text
    assert main(["methods", "mala"]) == 2 and "no coefficient table" in capsys.readouterr().err
    assert main(["methods", "dpm++2n"]) == 2 and "nearest: dpm++2s, dpm++2m" in capsys.readouterr().err


def test_methods_tuned_to_a_run(run, tmp_path, capsys):
    import shutil

    from sdediff import tuned
    mine, little = tmp_path / "moons", ("--trajectories", "24", "--iterations", "4", "--starts", "1", "--quiet")
    shutil.copytree(run, mine)
    assert main(["tune", str(mine), "--nfe", "6", "4", *little]) == 0
    said = capsys.readouterr().out
    assert "4 calls: path RMSE" in said and "6 calls: path RMSE" in said and "--method tuned --nfe 6" in said
    kept = tuned.read(mine / "tuned.json")
    assert set(kept) == {4, 6} and (mine / "tuned.png").read_bytes()[:4] == b"\x89PNG"
    before = (mine / "tuned.json").read_bytes()
    assert main(["tune", str(mine), "--nfe", "4", "6", *little]) == 0 and (mine / "tuned.json").read_bytes() == before      # it goes on
    for method in ("tuned", "auto", "tuned:nfe=4"):
        assert main(["sample", str(mine), "--method", method, *([] if ":" in method else ["--nfe", "6"]), "--n", "20", "--quiet"]) == 0
    assert np.isfinite(np.load(mine / "samples" / "tuned-seed1.npy")).all()
    assert main(["sample", str(mine), "--method", "auto", "--nfe", "6", "--grid", "karras", "--n", "20", "--quiet", "--overwrite"]) == 0
    assert main(["interpolate", str(mine), "--method", "auto:nfe=6", "--n", "2"]) == 0
    assert "--overwrite" in refused(capsys, "tune", str(mine), "--nfe", "6", "--method", "dpm++2m-sde", "--stochastic", *little)
    assert "draws no noise" in refused(capsys, "tune", str(mine), "--nfe", "7", "--method", "eab-2", "--stochastic", *little)
    assert "nfe=0" in refused(capsys, "tune", str(mine), "--nfe", "0", *little)
    assert "methods for nfe=4, nfe=6" in refused(capsys, "sample", str(mine), "--method", "tuned", "--nfe", "9", "--overwrite")
    assert main(["tune", str(mine), "--nfe", "6", "--method", "eab-2", "--what", "grid", "--overwrite", *little]) == 0
    assert type(tuned.read(mine / "tuned.json")[6].solver).__name__ == "Exponential"
    (mine / "tuned.json").write_text("{}")                  # a broken file is in the way of those alone who need it
    assert main(["sample", str(mine), "--method", "ddim", "--nfe", "4", "--n", "20", "--quiet"]) == 0
    assert "tuned.json" in refused(capsys, "sample", str(mine), "--method", "tuned", "--nfe", "6", "--n", "20", "--quiet", "--overwrite")
    assert main(["tune", str(mine), "--nfe", "4", "--overwrite", *little]) == 0 and set(tuned.read(mine / "tuned.json")) == {4}
    assert compare(mine, "--methods", "ddim:steps=4", "--overwrite") == 0
    assert not (mine / "tuned.json").exists()               # another network: nothing is tuned for it
