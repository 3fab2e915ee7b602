"""Nothing is lost: whatever the moment at which a process is killed, every file is whole, and what goes on ends in the same bits.

Kills are real: a parent of one thread, which has imported everything, forks children that work, and kills them. They come at random
moments, and at every line of the code that writes, which random moments seldom hit; and in the middle of a write, at the byte where the
system's limit on the size of a file is."""
import ast
import dataclasses
import errno
import itertools
import json
import mmap
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tqdm import tqdm

import sdediff
from sdediff import VPSDE, bench, chunks, files, from_network, nets, runs, sample, training, tuned
from sdediff.bench import page
from sdediff.cli import main
from sdediff.training import TrainingConfig, load_checkpoint, previous, train

ROOT = pathlib.Path(sdediff.__file__).parent
DATA = torch.randn(60, 2, generator=torch.Generator().manual_seed(9))
CONFIG = TrainingConfig(steps=24, batch=8, warmup=2, checkpoint_every=4)
TARGET = sdediff.targets.Gaussian([0.5, -1.0], 0.2)
CALL = {"shape": (400, 2), "method": "ddpm", "steps": 4, "seed": 3, "chunk": 8}
STUDY = {"methods": ("ddim", "ddpm"), "processes": ("VPSDE",), "targets": ("gaussian",), "nfe": (2, 4, 8), "n": 20}
DONE = np.frombuffer(mmap.mmap(-1, 8), np.int64)                # of a child's work, as its parent sees it


# -- what is killed ---------------------------------------------------------------------------------------------------------------
class Work(NamedTuple):
    """``do`` goes on in a folder where it stands; ``check`` says what is true of the folder at any moment, of a result known before;
    ``result``: what has to be the same."""

    do: Callable[[pathlib.Path], Any]
    check: Callable[[pathlib.Path, Any], None]
    result: Callable[[pathlib.Path], Any]


def trained(folder, config=CONFIG, net=None, **options):
    score = from_network(net or nets.MLP(2, 8, 1), "v", time_input="lam")
    return train(score, VPSDE(), DATA, config, **{"checkpoint": folder / "a.safetensors", "resume": True, "progress": False, **options})


def visible(folder):
    return {p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".tmp")}


def _training(folder):
    advance = training._Run.advance

    def counted(run):
        advance(run)
        DONE[0] = run.step

    training._Run.advance = counted
    trained(folder)


def _checkpoints(folder, whole):
    saved = {p.name: load_checkpoint(p).step for p in visible(folder)}
    assert saved.keys() <= {"a.safetensors", "a.previous.safetensors"} and all(step % 4 == 0 for step in saved.values())
    lost = DONE[0] - saved.get("a.safetensors", 0)
    assert 0 <= lost <= CONFIG.checkpoint_every, f"{DONE[0]} steps were done, {saved} are there"
    DONE[0] -= lost


def _sampling(folder):
    if not (folder / "x.npy").exists():
        sample(VPSDE(), TARGET.score, out=folder / "x.npy", **CALL)


def _chunks(folder, whole):
    for path in visible(folder):
        if path.name == "x.npy.partial":
            if not (folder / "x.npy.partial.json").exists():            # not begun yet
                continue
            content, size = path.read_bytes(), len(whole)
            rows = np.frombuffer(content[:size], np.uint8)[128:].reshape(50, -1)
            marks = np.frombuffer(content[size:], np.int64) != 0 if len(content) > size else np.ones(50, bool)
            assert content[:128] == whole[:128] and len(marks) == 50
            assert np.array_equal(rows[marks], np.frombuffer(whole, np.uint8)[128:].reshape(50, -1)[marks])
            assert marks.sum() >= DONE[0]
            DONE[0] = marks.sum()
        elif path.name == "x.npy":
            assert path.read_bytes() == whole
        else:
            assert path.name == "x.npy.partial.json" and json.loads(path.read_text())["call"]["seed"] == 3


def _study(folder):
    page.write = lambda out: None                         # seconds of pictures; they are written as all else is
    bench.run(bench.Study(**STUDY), folder, progress=False)


def _cells(folder, whole):
    for path in visible(folder):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            assert np.load(path)["x"].shape == (20, 2)
        else:
            assert path.name == "results.csv" and len(bench.read(path)) == len(whole)
    done = len(list(folder.glob("cells/[!.]*.json")))
    assert done >= DONE[0]
    DONE[0] = done


def _run(folder):
    job = runs.Job(network=runs.NetworkConfig(width=8, depth=1), training=dataclasses.replace(CONFIG, batch=16))
    if not (folder / "metrics.json").exists():
        runs.prepare(folder, yaml.safe_dump(dataclasses.asdict(job)), resume=True, overwrite=False)
        runs.run(job, folder, sdediff.data.load("two-moons"), [runs.Entry.parse("ddim:steps=2")], 50, reference=False, pictures=False,
                 report=lambda line: None)


def _folder(folder, whole):
    for path in visible(folder):
        if path.suffix == ".safetensors":
            load_checkpoint(path)
        else:
            assert path.name in ("config.yaml", "metrics.json") and yaml.safe_load(path.read_text())


def _numbers(folder):
    document = json.loads((folder / "metrics.json").read_text())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in (*document["methods"], document["floor"])]


WORKS = {
    "training": Work(_training, _checkpoints, lambda folder: (folder / "a.safetensors").read_bytes()),
    "sampling": Work(_sampling, _chunks, lambda folder: (folder / "x.npy").read_bytes()),
    "study": Work(_study, _cells, lambda folder: [row._replace(seconds=0.0) for row in bench.read(folder)]),
    "run": Work(_run, _folder, _numbers)}


# -- the parent -------------------------------------------------------------------------------------------------------------------
def child(do, *args):
    """The id of a process that does this and ends, by 0 if it came to the end."""
    assert len(os.listdir("/proc/self/task")) == 1                      # a fork copies one thread only
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        do(*args)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(pid):
    """Whether it came to the end; False where it was killed."""
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
    return not os.WIFSIGNALED(status)


def emptied(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    DONE[0] = 0
    return folder


def prepared(name, place):
    """The work, its result without a kill, and the seconds that it takes. It is done here first, so that all that it imports is there."""
    tqdm.monitor_interval = 0                                           # a thread of its own, even of a bar that is not shown
    work = WORKS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "advance", training._Run.advance)
        work.do(emptied(place))
    start = time.monotonic()
    assert ended(child(work.do, emptied(place)))
    return work, work.result(place), time.monotonic() - start


def killed_at_random(name, kills, place):
    """Prints how many children were killed, and how many works came to their end, all with the result of one that nobody kills."""
    work, whole, seconds = prepared(name, place)
    rng, died, finished = random.Random(name), 0, 0
    folder = emptied(place)
    while died < kills or not finished:
        pid = child(work.do, folder)
        time.sleep(rng.uniform(0.0, 0.5 * seconds) if died < kills else 10 * seconds)
        os.kill(pid, signal.SIGKILL)
        if ended(pid):
            finished += 1
            assert work.result(folder) == whole
            folder = emptied(place)
        else:
            died += 1
            work.check(folder, whole)
    print(json.dumps({"killed": died, "finished": finished}))


WRITING = {"begin", "open", "noted", "goes_on", "marks", "put", "sync", "finish", "close", "write", "_sync"}              # of chunks


def at_line(k):
    """The process dies before the k-th line that it executes of the code that writes: all of ``files``, and the file of ``chunks``."""
    def line(frame, event, arg):
        nonlocal k
        if event == "line":
            k -= 1
            if k < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame, event, arg):
        code = frame.f_code
        return line if code.co_filename == files.__file__ or (code.co_filename == chunks.__file__ and code.co_name in WRITING) else None

    sys.settrace(call)


def at_byte(n):
    """The process dies when it has written n bytes of a file, and would write another."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


def killed_while_writing(name, place, stride):
    work, whole, _ = prepared(name, place)

    def dies(aim, n, folder):
        aim(n)
        work.do(folder)

    died = 0
    for aim, points in ((at_line, range(0, 10**6, stride)), (at_byte, (0, 1, 100, 700, 1500))):
        for n in points:
            folder = emptied(place)
            if ended(child(dies, aim, n, folder)):
                assert work.result(folder) == whole
                break
            died += 1
            work.check(folder, whole)
            assert ended(child(work.do, folder))
            assert work.result(folder) == whole
            assert not list(folder.rglob("*.tmp")), "what a killed writer left is there"
    print(json.dumps({"killed": died}))


def forked(call, place):
    """What a parent of its own prints."""
    code = f"import pathlib, test_durability as t; place = pathlib.Path({str(place)!r}); {call}"
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), str(ROOT.parent)])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                         env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path})
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name, kills", [("training", 90), ("sampling", 70), ("study", 40), ("run", 20)])
def test_kills_at_random_moments(tmp_path, record_property, name, kills):
    said = forked(f"t.killed_at_random({name!r}, {kills}, place / 'work')", tmp_path)
    record_property("kills", said["killed"])
    print(f"{name}: {said['killed']} kills at random moments, {said['finished']} works at their end, the same bits")
    assert said["killed"] >= kills and said["finished"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name, stride", [("training", 9), ("sampling", 23), ("study", 61)])
def test_kills_while_writing(tmp_path, record_property, name, stride):
    said = forked(f"t.killed_while_writing({name!r}, place / 'work', {stride})", tmp_path)
    record_property("kills", said["killed"])
    print(f"{name}: {said['killed']} kills in the code that writes")
    assert said["killed"] >= 8


# -- one writer -------------------------------------------------------------------------------------------------------------------
def test_a_write_that_is_cut_anywhere_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    """Each system call of a write fails in turn, by itself, or by what it was given."""
    path = tmp_path / "a.json"
    for fault in ("fsync", "replace", "open", "link"):
        files.write(path, "old")
        with monkeypatch.context() as patch:
            def fail(*args):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, fault, fail)
            if fault == "link":                                         # a file system without links: a copy
                files.keep(path, tmp_path / "b.json")
            else:
                with pytest.raises(OSError, match="No space left on device") as raised:
                    files.write(path, "new")
                assert fault == "open" or (raised.value.filename == str(path) and "it is as it was" in str(raised.value))
        assert path.read_text() == ("new" if fault == "open" else "old")
    assert (tmp_path / "b.json").read_text() == "old" and sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]

    def half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(path, half)
    assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]


def test_writers_leave_each_other_alone_and_the_dead_are_swept(tmp_path):
    (tmp_path / ".a.77.tmp").write_text("torn")
    (tmp_path / ".b.77.tmp").write_text("torn")
    (tmp_path / ".a.mine.tmp").write_text("a user's")

    def another(file):
        files.sweep(tmp_path, "a")
        files.write(tmp_path / "b", "b")
        file.write(b"a")

    files.write(tmp_path / "a", another)
    assert (tmp_path / "a").read_text() == "a" and sorted(os.listdir(tmp_path)) == [".a.mine.tmp", ".b.77.tmp", "a", "b"]
    files.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a.mine.tmp", "a", "b"]


def _writes(call):
    """Whether a call may write a file by itself; one that is given ``file``, which ``files.write`` opened, does not."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name == "open":
        modes = [v.value for v in (*call.args[1:], *(k.value for k in call.keywords)) if isinstance(v, ast.Constant)]
        return any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
    named = name in ("write_text", "write_bytes", "savefig", "save", "savez", "savetxt", "tofile", "save_file")
    return (named and not any(getattr(v, "id", "") == "file" for v in call.args)) or ast.unparse(call.func) in ("os.replace", "os.rename")


def test_everything_that_writes_goes_through_one_function():
    """All but ``testing.fuzz``, whose files are damaged on purpose and gone at its end."""
    found = {(path.relative_to(ROOT).as_posix(), ast.unparse(node.func)) for path in set(ROOT.rglob("*.py")) - {ROOT / "testing/fuzz.py"}
             for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and _writes(node)}
    # what makes bytes for it, or calls it
    assert found == {("files.py", "open"), ("files.py", "os.replace"), ("training.py", "save"), ("training.py", "self.save")}


# -- a full disk ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def limited():
    """No file may grow beyond so many bytes: EFBIG, which is how a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing_of_a_training(tmp_path, limited):
    whole, folder = trained(emptied(tmp_path / "whole")), emptied(tmp_path / "full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "advance", _stopping(13, RuntimeError("stop")))
        with pytest.raises(RuntimeError, match="stop"):
            trained(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    limited(len(before["a.safetensors"]) // 2)
    with pytest.raises(OSError, match=r"File too large; it is as it was: .*a\.safetensors"):
        trained(folder)
    limited(resource.RLIM_INFINITY)
    assert load_checkpoint(folder / "a.safetensors").step == 12 and {p.name for p in folder.iterdir()} == before.keys()
    again = trained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.ema.state_dict().values(), whole.ema.state_dict().values()))


def test_a_full_disk_loses_nothing_of_a_sampling(tmp_path, limited):
    out = tmp_path / "x.npy"
    limited(128 + 8 * 8 * 20)                                           # 20 of 50 chunks
    with pytest.raises(OSError, match=r"File too large; what is marked in it is kept.*x\.npy\.partial"):
        sample(VPSDE(), TARGET.score, out=out, **CALL)
    limited(resource.RLIM_INFINITY)
    assert not out.exists()
    assert torch.equal(sample(VPSDE(), TARGET.score, out=out, **CALL), sample(VPSDE(), TARGET.score, **CALL))
    assert os.listdir(tmp_path) == ["x.npy"]


def test_a_disk_that_is_full(tmp_path):
    """The real thing, where this may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training._Run, "advance", _stopping(5, RuntimeError("stop")))
            with pytest.raises(RuntimeError, match="stop"):
                trained(disk)
        filled(disk / "filler")
        with pytest.raises(OSError, match=r"No space left on device; it is as it was: .*a\.(previous\.)?safetensors"):
            trained(disk)
        with pytest.raises(OSError, match="No space left on device"):
            sample(VPSDE(), TARGET.score, out=disk / "x.npy", **CALL)
        assert load_checkpoint(disk / "a.safetensors").step == 4 and not list(disk.glob("*.tmp"))
        (disk / "filler").unlink()
        assert len(trained(disk).losses) == CONFIG.steps
        assert torch.equal(sample(VPSDE(), TARGET.score, out=disk / "x.npy", **CALL), sample(VPSDE(), TARGET.score, **CALL))
    finally:
        subprocess.run(["umount", disk], check=True)


def filled(path):
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left on device"):
        all(file.write(b"x" * 4096) for _ in itertools.count())


def _stopping(step, error):
    advance = training._Run.advance

    def stop(run):
        if run.step == step:
            raise error
        advance(run)

    return stop


# -- what was damaged -------------------------------------------------------------------------------------------------------------
def test_every_bit_of_a_checkpoint_counts_and_the_one_before_is_offered(tmp_path):
    trained(tmp_path, dataclasses.replace(CONFIG, steps=8))
    path = tmp_path / "a.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(0, 8), *rng.sample(range(8, header), 150), *rng.sample(range(header, len(whole)), 150)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:])
        with pytest.raises(ValueError, match=r"a\.safetensors: .*The one before it, of step 4, is whole: `mv .*a\.previous\.safetensors .*`"):
            load_checkpoint(path)
    with pytest.raises(ValueError, match="is whole: `mv") as raised:
        trained(tmp_path, dataclasses.replace(CONFIG, steps=8))
    subprocess.run(re.search("`(mv .*?)`", str(raised.value))[1], shell=True, check=True)
    trained(tmp_path, dataclasses.replace(CONFIG, steps=8))
    assert path.read_bytes() == whole


def test_a_network_that_does_not_fit_is_left_as_it_was(tmp_path):
    trained(tmp_path, dataclasses.replace(CONFIG, steps=4))
    saved, other = load_checkpoint(tmp_path / "a.safetensors"), nets.MLP(2, 8, 2)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"a\.safetensors: its weights do not fit the network MLP: 'film\.1\.bias' is missing in the file"):
        saved.score(other)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    for wrong, words in (({"net": nets.MLP(2, 8, 1).double()}, "torch.float32, that of MLP torch.float64"), ({"net": nets.MLP(2, 16, 1)}, "network")):
        with pytest.raises(ValueError, match=rf"a\.safetensors: its .*{words}"):
            trained(tmp_path, dataclasses.replace(CONFIG, steps=4), **wrong)


def test_a_run_larger_than_its_weights_is_refused_before_it_is_built(tmp_path):
    _run(tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoint.safetensors")
    for name, value in (("width", 10**9), ("depth", 10**9), ("event", [10**12])):
        network = {**saved.document["network"], name: value}
        training.save_checkpoint(tmp_path / "checkpoint.safetensors", {**saved.document, "network": network}, saved.parts, saved.losses)
        with pytest.raises(ValueError, match=rf"checkpoint\.safetensors: its network has {name}="):
            runs.read(tmp_path)


# -- names ------------------------------------------------------------------------------------------------------------------------
@given(st.text(max_size=40))
def test_no_text_leads_out_of_a_folder(text):
    folder = pathlib.Path("/runs/moons")
    path = files.inside(folder, text)
    assert path.parent == folder and path.name not in ("", ".", "..") and not path.name.startswith(".") and "\0" not in path.name


@pytest.mark.parametrize("text", ["../../x", "/etc/passwd", "a\0b", "..", ".", "", "a/../../b", "C:\\x", "~/x", "-rf"])
def test_names_that_would_lead_elsewhere(tmp_path, text):
    path = files.inside(tmp_path, text)
    files.write(path, "x")
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "x"


def test_names_from_data_config_and_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("...npy", np.random.default_rng(0).normal(size=(40, 2)))
    tiny = ["--training.steps", "4", "--training.batch", "8", "--network.width", "8", "--network.depth", "1", "--quiet"]
    assert main(["train", "--data", "...npy", *tiny]) == 0
    assert sorted(os.listdir(tmp_path)) == ["...npy", "runs"] and os.listdir("runs") == ["-."]
    run = tmp_path / "runs/-."
    for out, words in (("../up", "leads out of this folder"), (str(tmp_path / "abs"), "leads out of this folder")):
        (tmp_path / "job.yaml").write_text(f"out: {out}\n")
        assert main(["train", "--config", "job.yaml"]) == 2 and words in capsys.readouterr().err
    for argv in (["train", *tiny, "--out", "a\nb: 1"], ["sample", str(run), "--out", "x\0.npy"], ["bench", "--quick", "--out", "a\nb"]):
        assert main(argv) == 2 and "without control characters" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    (run / "samples").symlink_to(tmp_path / "elsewhere")
    sampling = ["sample", str(run), "--method", "ddim:steps=2", "--n", "20", "--quiet"]
    assert main(sampling) == 2 and "expected no link out of it" in capsys.readouterr().err
    assert not os.listdir("elsewhere") and main([*sampling, "--out", "elsewhere/x.npy"]) == 0
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "y.npy.partial").symlink_to(tmp_path / "precious")
    assert main([*sampling, "--out", "y.npy"]) and "symbolic links" in capsys.readouterr().err
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(tmp_path / "precious")
    files.write(run / "config.yaml", "new")
    assert (tmp_path / "precious").read_text() == "mine" and not (run / "config.yaml").is_symlink()


# -- going on, in any order of events ----------------------------------------------------------------------------------------------
class Resumed(RuleBasedStateMachine):
    """Trainings are stopped, killed, continued, misled and damaged; the weights after n steps are those of one that nobody touched."""

    steps = 12
    config = dataclasses.replace(CONFIG, steps=steps)
    weights: ClassVar[dict[int, dict[str, torch.Tensor]]] = {}          # of the one that nobody touched

    def __init__(self):
        super().__init__()
        if not self.weights:
            def kept(run, advance=training._Run.advance):
                advance(run)
                self.weights[run.step] = {k: v.clone() for k, v in run.network.state_dict().items()}

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training._Run, "advance", kept)
                trained(pathlib.Path(), self.config, checkpoint=None)
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.path, self.saved = self.folder / "a.safetensors", 0
        self.damaged = False

    def teardown(self):
        shutil.rmtree(self.folder)

    def go(self, until, every, error):
        config = dataclasses.replace(self.config, checkpoint_every=every)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training._Run, "advance", _stopping(until, error))
            if until < self.steps and not self.damaged and until >= self.saved:
                with pytest.raises(type(error)):
                    trained(self.folder, config)
            elif self.damaged:
                with pytest.raises(ValueError, match=r"a\.safetensors"):
                    trained(self.folder, config)
                return False
            else:
                trained(self.folder, config)
        return True

    @rule(until=st.integers(0, steps - 1), every=st.integers(1, 5))
    def stop(self, until, every):
        """Ctrl-C, which saves."""
        if self.go(until, every, KeyboardInterrupt()):
            self.saved = until if until >= self.saved else self.steps

    @rule(until=st.integers(0, steps - 1), every=st.integers(1, 5))
    def kill(self, until, every):
        """What was done since the last checkpoint is lost, and a temporary file is left."""
        if self.go(until, every, SystemError("killed")):
            self.saved = max(self.saved, until // every * every) if until >= self.saved else self.steps
        (self.folder / ".a.safetensors.1.tmp").write_bytes(b"torn")

    @rule(every=st.integers(1, 5))
    def finish(self, every):
        if self.go(self.steps, every, SystemError()):
            self.saved = self.steps
            assert not list(self.folder.glob("*.tmp"))

    @precondition(lambda self: self.saved and not self.damaged)
    @rule(change=st.sampled_from([{"lr": 0.5}, {"batch": 9}, {"seed": 1}, {"ema": 0.5}, {"weighting": "x0"}, {"steps": 13}]))
    def another_run(self, change):
        before = {p.name: p.read_bytes() for p in visible(self.folder)}
        with pytest.raises(ValueError, match=f"{next(iter(change))}=.*expected the same"):
            trained(self.folder, dataclasses.replace(self.config, **change))
        assert {p.name: p.read_bytes() for p in visible(self.folder)} == before

    @precondition(lambda self: self.saved and not self.damaged)
    @rule(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage(self, where, bit):
        content = bytearray(self.path.read_bytes())
        content[int(where * len(content))] ^= 1 << bit
        self.path.write_bytes(content)
        self.damaged = True

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self):
        """By the line that the error gives, or from the beginning where there is none."""
        with pytest.raises(ValueError, match=r"a\.safetensors") as raised:
            load_checkpoint(self.path)
        line = re.search(r"of step (\d+), is whole: `(mv .*?)`", str(raised.value))
        assert (line is not None) == previous(self.path).exists()
        if line:
            subprocess.run(line[2], shell=True, check=True)
        else:
            self.path.unlink()
        self.saved, self.damaged = int(line[1]) if line else 0, False

    @invariant()
    def the_weights_are_those_of_an_uninterrupted_run(self):
        if not self.damaged:
            assert self.path.exists() == (self.saved > 0)
        for path in visible(self.folder):
            if not (self.damaged and path == self.path):
                checkpoint = load_checkpoint(path)
                assert path != self.path or checkpoint.step == self.saved
                assert all(torch.equal(v, self.weights[checkpoint.step][k]) for k, v in checkpoint.parts["network"].items())


def test_going_on_in_any_order_of_events():
    run_state_machine_as_test(Resumed, settings=settings(max_examples=12, stateful_step_count=10, deadline=None))


@pytest.mark.slow
def test_tuned_methods_are_written_whole(tmp_path):
    """Killed before every line of the write, the file is the old one or the new one."""
    said = forked("t.killed_tuned(place)", tmp_path)
    assert said["killed"] >= 10 and said["old"] and said["new"]


def killed_tuned(place):
    path, solver, seen = place / "tuned.json", sdediff.method("ddim").solver, {"old": 0, "new": 0}
    knots = tuned.Knots((1.0, 0.001), tuple(VPSDE().at(t).lam for t in (1.0, 0.001)))
    methods = {n: tuned.Tuned("tuned", solver, 0.0, knots, calls=n, budget=n) for n in (1, 2)}

    def dies(k):
        at_line(k)
        tuned.write(path, methods)

    for k in range(10**6):
        tuned.write(path, {1: methods[1]})
        if ended(child(dies, k)):
            break
        seen["new" if len(tuned.read(path)) == 2 else "old"] += 1
    print(json.dumps({"killed": k, **seen}))
