"""Chunked sampling: the chunks are the batch, the file is whole or not there, and an interrupted call goes on.

Truth: bits. A Gaussian target's score is elementwise, so that the chunks of any size are the unchunked run exactly."""
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sdediff
from sdediff import VPSDE, NetworkError, chunks, nets, sample, sample_chunks, sample_info
from sdediff.chunks import fingerprint

SDE, TARGET = VPSDE(), sdediff.targets.Gaussian([0.5, -1.0], 0.2)
CALL = {"shape": (50, 2), "method": "ddpm", "steps": 4, "seed": 3}


def draw(score=TARGET.score, **more):
    return sample(SDE, score, **{**CALL, **more})


class Counted:
    """The score, which counts what it is asked, and fails at the given call. Without attributes in a dict its fingerprint is its class."""

    __slots__ = ("calls", "fails", "rows")

    def __init__(self, fails=None):
        self.calls, self.rows, self.fails = 0, 0, fails

    def __call__(self, x, level):
        self.calls += 1
        if self.calls == self.fails:
            raise KeyboardInterrupt
        self.rows += len(x)
        return TARGET.score(x, level)


# -- the chunks are the batch

@given(st.integers(4, 60), st.sampled_from(["ddim", "ddpm", "dpm++2m-sde", "pc", "edm-heun", "gotta-go-fast"]),
       st.sampled_from(["white", "brownian"]))
@example(7, "dpm++2m-sde", "clock")
@settings(max_examples=10)
def test_chunks_of_any_size_are_the_batch(chunk, method, noise):
    whole = draw(method=method, noise=noise)
    assert torch.equal(draw(method=method, noise=noise, chunk=chunk), whole)
    parts = list(sample_chunks(SDE, TARGET.score, chunk=chunk, **{**CALL, "method": method, "noise": noise}))
    assert torch.equal(torch.cat(parts), whole) and {len(x) for x in parts[:-1]} <= {chunk}


def test_samples_from_an_index_on_are_a_batch_of_their_own():
    whole = sample_info(SDE, TARGET.score, **CALL)
    tail = sample_info(SDE, TARGET.score, **{**CALL, "shape": (30, 2)}, first=20)
    assert torch.equal(tail.x, whole.x[20:])


def test_what_belongs_to_a_sample_is_sliced():
    net = nets.MLP(2, 16, 1, classes=3)
    torch.nn.init.normal_(net.leave.weight, generator=torch.Generator().manual_seed(0))
    labels, start = torch.arange(50) % 3, torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    for given_, bound in (({"x_init": start, "seed": 5}, {}), ({"shape": (50, 2), "seed": list(range(100, 150))}, {}),
                          ({"shape": (50, 2), "seed": 5}, {"y": labels})):
        score = sdediff.from_network(net, "eps", conditions=bound)
        call = {"method": "ddpm", "steps": 3, **given_, **({} if bound else {"conditions": {"y": labels}})}
        whole, chunked = sample(SDE, score, **call), sample(SDE, score, chunk=8, **call)
        assert (whole - chunked).abs().max() < 1e-5 * whole.abs().max()             # the network's rounding
        assert (whole - sample(SDE, score, **{**call, "conditions": {"y": 0}})).abs().max() > 1e-3


def test_dtypes_and_empty_batches(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        x = draw(dtype=dtype, chunk=9)
        assert x.dtype == dtype and torch.equal(x, draw(dtype=dtype))
    half = draw(dtype=torch.float16, out=tmp_path / "h.npy")
    assert half.dtype == torch.float16 and torch.equal(half, draw(dtype=torch.float16))
    assert draw(shape=(0, 2), chunk=4).shape == draw(shape=(0, 2), out=tmp_path / "x.npy").shape == np.load(tmp_path / "x.npy").shape == (0, 2)


def test_a_fresh_seed_is_one_for_all_chunks_and_none_where_nothing_is_drawn(tmp_path):
    torch.manual_seed(11)
    whole = draw(seed=None)
    for more in ({"chunk": 8}, {"chunk": 8, "out": tmp_path / "x.npy"}):
        torch.manual_seed(11)
        assert torch.equal(draw(seed=None, **more), whole)
    before = torch.get_rng_state()
    draw(method="ddim", x_init=torch.ones(20, 2), shape=None, seed=None, chunk=6, out=tmp_path / "y.npy")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_chunk_depends_on_the_event_alone():
    assert chunks.size(None, (2,)) * 2 == chunks.size(None, (1,)) == chunks.NUMBERS
    assert chunks.size(None, (3, 10**4)) == 1 and chunks.size(None, ()) == chunks.NUMBERS


# -- the file

def test_the_file_is_plain_npy_and_the_result_its_private_map(tmp_path):
    out = tmp_path / "x.npy"
    x = draw(chunk=8, out=str(out))
    assert torch.equal(x, draw()) and np.array_equal(np.load(out, allow_pickle=False), x.numpy()) and os.listdir(tmp_path) == ["x.npy"]
    x.zero_()
    assert np.load(out).any()
    with pytest.raises(FileExistsError, match="overwrite=True replaces it"):
        draw(chunk=8, out=out)
    assert torch.equal(draw(chunk=8, out=out, overwrite=True, seed=4), draw(seed=4)) and os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("seed", [3, None])
def test_an_interrupted_call_goes_on(tmp_path, seed):
    out = tmp_path / "x.npy"
    first = Counted(fails=4 * 3 + 2)                                                # in the fourth chunk of 8
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        draw(first, chunk=8, out=out, seed=seed)
    assert sorted(os.listdir(tmp_path)) == ["x.npy.partial", "x.npy.partial.json"]
    second = Counted()
    x = draw(second, chunk=8, out=out, seed=seed)
    torch.manual_seed(1)
    assert torch.equal(x, draw(seed=seed)) and second.rows == 4 * (50 - 3 * 8) and os.listdir(tmp_path) == ["x.npy"]


def test_a_chunk_that_fails_is_named_and_nothing_is_left_of_nothing(tmp_path):
    def broken(x, level):
        return sdediff.Prediction(x, level, eps=torch.where(x == x[5], torch.nan, x))
    with pytest.raises(NetworkError, match=r"in 1 of 8 samples, first sample 5.*chunk of samples 0 to 7"):
        draw(broken, chunk=8, out=tmp_path / "x.npy")
    assert not os.listdir(tmp_path)


def test_a_crash_before_the_name_loses_nothing(tmp_path, monkeypatch):
    out, replace = tmp_path / "x.npy", os.replace

    def crash(a, b):
        if str(b) == str(out):
            raise OSError("no")
        replace(a, b)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no"):
        draw(chunk=8, out=out)
    monkeypatch.setattr(os, "replace", replace)
    assert not out.exists()
    assert torch.equal(draw(chunk=8, out=out), draw()) and os.listdir(tmp_path) == ["x.npy"]


def test_a_file_that_was_never_described_is_begun_again(tmp_path):
    (tmp_path / "x.npy.partial").write_bytes(b"half a header")
    assert torch.equal(draw(chunk=8, out=tmp_path / "x.npy"), draw()) and os.listdir(tmp_path) == ["x.npy"]


class Table(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x, c):
        return self.weight * x


@pytest.mark.parametrize("change, name", [
    ({"seed": 4}, "seed"), ({"steps": 5}, "times"), ({"grid": "karras"}, "times"), ({"method": "ddim"}, "method"), ({"chunk": 9}, "chunk"),
    ({"method": "pc", "snr": 0.1}, "method"), ({"shape": (51, 2)}, "shape"), ({"noise": "brownian"}, "noise"),
    ({"dtype": torch.float64}, "dtype"), ({"score": sdediff.from_network(Table(0.5))}, "score")])
def test_only_the_same_call_goes_on(tmp_path, change, name):
    network, out, calls = Table(0.4), tmp_path / "x.npy", []

    def interrupt(module, args):
        calls.append(args)
        if len(calls) == 7:                                                         # in the second chunk
            raise KeyboardInterrupt

    call = {"score": sdediff.from_network(network), "chunk": 8, "out": out}
    hook = network.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(**call)
    hook.remove()
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"^{name}=.* begun by an earlier call, has {name}=.*overwrite=True begins again"):
        draw(**{**call, **change})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept and json.loads(kept["x.npy.partial.json"])["call"]["seed"] == 3
    assert torch.equal(draw(**{**call, **change}, overwrite=True), draw(**{k: v for k, v in {**call, **change}.items() if k != "out"}))


def test_two_calls_do_not_write_one_file(tmp_path):
    out = tmp_path / "x.npy"

    def score(x, level):
        if level.t == SDE.t_max:
            with pytest.raises(FileExistsError, match="another process writes"):
                draw(chunk=8, out=out)
        return TARGET.score(x, level)

    assert torch.equal(draw(score, chunk=8, out=out), draw()) and os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("wrong, error, words", [
    ({"chunk": 0}, ValueError, "chunk=0"), ({"chunk": -3}, ValueError, "chunk=-3"), ({"chunk": True}, TypeError, "chunk=True"),
    ({"chunk": 8.0}, TypeError, "chunk=8.0"), ({"out": "x.txt"}, ValueError, "expected a file that ends in .npy"),
    ({"out": 3}, TypeError, "expected a path"), ({"out": "none/x.npy"}, FileNotFoundError, "its folder"),
    ({"out": "x.npy", "dtype": torch.bfloat16}, TypeError, "dtype=torch.float32"), ({"overwrite": True}, ValueError, "expected out="),
    ({"chunk": 8, "seed": torch.Generator()}, TypeError, "seed=0"), ({"chunk": 8, "seed": [1, 2]}, ValueError, "2 seeds"),
    ({"chunk": 8, "seed": None, "noise": sdediff.random.WhiteNoise(0, (50, 2))}, TypeError, "noise='white'"),
    ({"chunk": 8, "record": True}, TypeError, "sample_info"), ({"out": "x.npy", "group": "all"}, TypeError, "group='all'"),
    ({"chunk": 8, "group": 4}, ValueError, "sample_chunks"), ({"chunk": 8, "steps": None}, ValueError, "give exactly one"),
    ({"chunk": 8, "x_init": torch.ones(50, 2)}, ValueError, "give exactly one"),
    ({"chunk": 8, "shape": None, "x_init": torch.full((50, 2), torch.nan)}, ValueError, "x_init holds NaN"),
    ({"chunk": 8, "shape": None, "x_init": [1.0]}, TypeError, r"x_init=\["),
    ({"chunk": 8, "score": sdediff.from_network(Table(1.0)), "conditions": {"y": torch.ones(8)}}, ValueError, "has 8 rows for a batch of 50"),
])
def test_wrong_calls_are_refused_before_the_first_network_call(tmp_path, monkeypatch, wrong, error, words):
    monkeypatch.chdir(tmp_path)
    counted = Counted()
    with pytest.raises(error, match=words):
        draw(**{"score": counted, **wrong})
    assert not counted.calls and not os.listdir(tmp_path)


def test_the_bar_counts_chunks(capsys, tmp_path, monkeypatch):
    draw(chunk=8, out=tmp_path / "x.npy", progress=True)
    assert capsys.readouterr().err == ""                    # in a pipe what is short is silent
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    draw(chunk=8, out=tmp_path / "y.npy", progress=True)
    assert "0/7" in capsys.readouterr().err


# -- fingerprints

def _closure(v):
    return lambda x: x + v


VALUES = [None, True, 1, 1.0, "1", b"1", (1,), [1], {"a": 1}, {1, 2}, torch.ones(2), torch.ones(2, 1), torch.ones(2, dtype=torch.float64),
          np.ones(2), torch.float32, TARGET, TARGET.score, sdediff.targets.Gaussian([0.5, -1.0], 0.3), SDE, VPSDE(beta_max=15.0), VPSDE,
          Table(1.0), Table(2.0), _closure(1), _closure(2), lambda x: x, lambda x: -x, max, sdediff.method("ddim"), sdediff.method("ddim", eta=0.5)]


def test_fingerprints_tell_values_apart_and_know_copies():
    digests = [fingerprint(v) for v in VALUES]
    assert len(set(digests)) == len(VALUES)
    assert digests == [fingerprint(v) for v in VALUES]
    assert fingerprint(_closure(1)) == fingerprint(_closure(1)) and fingerprint(Table(1.0)) == fingerprint(Table(1.0))
    loop = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)


# -- memory

@pytest.mark.slow
def test_memory_is_flat_in_samples_and_steps():
    code = """
    import resource, sys, torch, sdediff
    torch.set_num_threads(1)
    sde, target = sdediff.VPSDE(), sdediff.targets.Gaussian([0.0, 0.0], 0.3)
    def peak(n, steps):
        for x in sdediff.sample_chunks(sde, target.score, shape=(n, 2), chunk=16384, method="ddpm", steps=steps, seed=0):
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak(3 * 16384, 10), peak(3 * 16384, 60), peak(600_000, 10))
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    few, steps, samples = (int(v) / 1024 for v in out.stdout.split())
    assert steps - few < 4 and samples - few < 4                                   # MB; the batch itself has 4.8
