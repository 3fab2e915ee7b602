"""The command line, in process, on tiny settings: what it writes, what it refuses, and that it goes on where it was stopped."""
import json
import shutil
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


COMMANDS = ("compare", "train", "sample", "inpaint", "tune", "likelihood", "interpolate", "doctor", "methods", "bench", "completion")
LONG = ("compare", "train", "sample", "tune", "bench")


@pytest.mark.parametrize("command", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_shows_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:\n  " in said and "--traceback" in said
    assert all(f"\n  {code:<4} " in said for code in (0, 1, 2, 130))
    assert ("--dry-run" in said) == (command[:1] in ([], ["--help"], *([name] for name in LONG)))
    assert command[:1] not in ([], ["--help"]) or all(f"\n    {name} " in said for name in COMMANDS)


def plan(capsys, *argv):
    """The lines of a dry run."""
    assert main([*argv, "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said and all(line.startswith("would ") for line in said)
    return "\n".join(said)


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_dry_runs_say_what_would_be_done_and_do_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path), everything(run)
    fresh = plan(capsys, "train", *TINY[:-3], "--quiet", "--out", "new")
    assert "train 40 steps of 64 samples" in fresh and "write config.yaml, checkpoint.safetensors" in fresh and "'new'" in fresh
    assert "keep the training of 40 steps" in (said := plan(capsys, "compare", *TINY, "--out", str(run), "--resume",
                                                             "--methods", "heun:steps=3", "pc:steps=2", "rk45"))
    assert "draw 200 samples by heun:steps=3: 3 steps, 6 network calls" in said and "by rk45: as many" in said and "metrics.json" in said
    assert "lose the training" in plan(capsys, "train", *TINY[:-3], "--out", str(run), "--overwrite")
    drawn = plan(capsys, "sample", str(run), "--n", "50", "--chunk", "20", "--method", "ddim", "--nfe", "4")
    assert "draw 50 samples of shape (2,) by ddim: 4 steps, 4 network calls" in drawn and "in 3 chunks of 20" in drawn and "ddim-seed1.npy" in drawn
    assert "tune a method for 6 calls: 3 starts of at most 200" in plan(capsys, "tune", str(run), "--nfe", "6")
    cells = plan(capsys, "bench", "--methods", "ddim", "heun", "rk45", "--nfe", "4", "8", "--targets", "gaussian", "--processes", "VPSDE",
                 "--grids", "own", "--tolerances", "0.1", "--n", "50", "--out", "bench")
    assert "run 5 of 5 cells of 50 samples by 1 process: 24 network calls, and those of 1 cells" in cells
    assert "dpm++2m: 20 steps, 20 network calls" in plan(capsys, "bench", "--budget", str(run), "--out", "bench")
    assert "holds a finished run" in refused(capsys, "compare", *TINY, "--out", str(run), "--dry-run")              # what cannot be is refused
    assert (everything(tmp_path), everything(run)) == before


def test_a_dry_run_knows_where_an_interrupted_one_stood(run, tmp_path, monkeypatch, capsys):
    from sdediff import sampling
    argv = ["sample", str(run), "--n", "50", "--chunk", "20", "--method", "ddim", "--steps", "3", "--out", str(tmp_path / "x.npy"), "--quiet"]
    info, drawn = sampling.sample_info, []

    def stop(*args, **kwargs):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(1)
        return info(*args, **kwargs)

    monkeypatch.setattr(sampling, "sample_info", stop)
    assert main(argv) == 130 and "goes on" in capsys.readouterr().err
    monkeypatch.setattr(sampling, "sample_info", info)
    before = everything(tmp_path)
    assert "in 3 chunks of 20, of which 1 are there already" in plan(capsys, *argv) and everything(tmp_path) == before
    assert "in 3 chunks of 20\n" in plan(capsys, *argv, "--seed", "9")                # another call
    assert main(argv) == 0 and (tmp_path / "x.npy").is_file()


def test_exit_codes(run, tmp_path, monkeypatch, capsys):
    """1 where the work fails, 2 where the line is wrong; nothing shows a traceback that was not asked for, wherever it is asked for."""
    import errno

    from sdediff import NetworkError, evaluate
    for error, code, words in ((NetworkError("network MLP returned NaN"), 1, "error: network MLP"), (ValueError("n=0"), 2, "error: n=0"),
                               (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"), (FloatingPointError("inf"), 1, "inf"),
                               (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2, "No such file"), (KeyError("x"), 1, "KeyError: 'x'"),
                               (ImportError("needs scikit-learn"), 2, "needs scikit"), (RuntimeError("CUDA"), 1, "RuntimeError: CUDA"),
                               (KeyboardInterrupt(), 130, "interrupted")):
        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(evaluate, "measure", fail)
        assert main(["likelihood", str(run)]) == code
        said = capsys.readouterr().err
        assert words in said and said.startswith("sdediff: ") and said.count("\n") == 1 and "Traceback" not in said
        assert ("--traceback shows where" in said) == (type(error) in (KeyError, RuntimeError))
        for argv in (["--traceback", "likelihood", str(run)], ["likelihood", "--traceback", str(run)], ["likelihood", str(run), "--traceback"]):
            if code != 130:
                with pytest.raises(type(error)):
                    main(argv)
    with pytest.raises(ValueError, match="nearest: digits"):               # the presets of a command are found behind the option
        main(["--traceback", "train", "--data", "digit", "--out", str(tmp_path / "x")])


def test_warnings_are_lines(run, monkeypatch, capsys):
    import warnings

    from sdediff import guards, runs

    def draw(*args, **kwargs):
        warnings.simplefilter("always")
        guards.warn("the start\nis wrong")
        return run

    monkeypatch.setattr(runs, "draw", draw)
    assert main(["sample", str(run)]) == 0
    assert capsys.readouterr().err == "sdediff: warning: the start is wrong\n"


def test_colours_on_a_terminal_alone(monkeypatch):
    import io

    from sdediff import cli

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli._painted("bad", cli.BAD, Terminal()) == "\x1b[31mbad\x1b[0m" and cli._painted("bad", cli.BAD, io.StringIO()) == "bad"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["sample", "nowhere"]) == 2 and sys.stderr.getvalue().startswith("sdediff: \x1b[31merror: \x1b[0mrun='nowhere'")
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli._painted("bad", cli.BAD, Terminal()) == "bad"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_complete(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert all(name in script.read_text() for name in COMMANDS)
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shell == "bash":
        def completed(*words):
            line = f'source "$1"; COMP_WORDS=({" ".join(words)} ""); COMP_CWORD={len(words) - 1}; _sdediff; echo "${{COMPREPLY[@]}}"'
            return subprocess.run(["bash", "-c", line, "bash", str(script)], check=True, capture_output=True, text=True).stdout.split()
        assert completed("sdediff", "t") == ["train", "tune"] and completed("sdediff", "sample", "runs/x", "--method", "dd") == ["ddim", "ddpm"]
        assert completed("sdediff", "compare", "--methods", "heun", "ddi") == ["ddim"] and completed("sdediff", "methods", "hun") == []
        assert "--training.steps" in completed("sdediff", "train", "--training.s") and "--nfe" in completed("sdediff", "tune", "--n")
        assert completed("sdediff", "completion", "f") == ["fish"] and completed("sdediff", "doctor", "--st") == ["--strict"]


def test_completion_for_fish_and_no_other_shell(capsys):
    assert main(["completion", "fish"]) == 0
    said = capsys.readouterr().out
    assert all(f"__fish_use_subcommand -a {name} " in said for name in COMMANDS) and all(line.startswith("complete -c sdediff ")
                                                                                         for line in said.splitlines())
    assert "-l method -x -a 'auto tuned" in said and "bash, zsh, fish" in said.replace("'", "").replace(" ", ", ")
    assert "nearest" in refused(capsys, "completion", "basch")


def test_bars_in_a_pipe_are_lines(tmp_path):
    """One now and then, each ended, no carriage return."""
    code = ("import sys; from sdediff import progress, cli; progress.EVERY = 0.2; "
            "sys.exit(cli.main(sys.argv[1:]))")
    tiny = [*TINY[:-3], "--training.steps", "150", "--out", str(tmp_path / "r")]
    said = subprocess.run([sys.executable, "-c", code, "train", *tiny], capture_output=True, check=True)
    lines = said.stderr.decode().splitlines(keepends=True)
    assert b"\r" not in said.stderr and b"\x1b" not in said.stderr and 2 <= len(lines) <= 200 and "150/150" in lines[-1]
    assert all(line.startswith("train: ") and line.endswith("\n") for line in lines)


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


@pytest.mark.slow
@pytest.mark.parametrize("process", ["sub-vp", "cosine", "ve", "edm", "flow", "ddpm"])
def test_every_process(process, tmp_path):
    methods = ["dpm++2m:steps=4", "ddpm:steps=4"]
    drawn = str(process in ("edm", "ddpm")).lower()
    assert compare(tmp_path / "p", "--process", process, "--methods", *methods, "--reference", "false", "--pictures", drawn) == 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_methods_tuned_to_a_run(run, tmp_path, capsys):
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
