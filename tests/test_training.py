"""Losses, times, the training loop and its checkpoints; the reference network.

Truth: identities in float64 (one predictor has one loss in every parameterisation; the denoising gap by quadrature), laws
by KS with p > 1e-5, and bits: a run killed at any step ends where the uninterrupted one does."""
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from sdediff import EDMSDE, VESDE, VPSDE, CosineVPSDE, LinearSDE, Prediction, RectifiedFlow, SubVPSDE, from_network
from sdediff.nets import MLP, Autoencoder, build
from sdediff.sde import process
from sdediff.training import (
    TIMES,
    WEIGHTINGS,
    TrainingConfig,
    _uninterrupted,
    build_sde,
    load_checkpoint,
    loss,
    save_checkpoint,
    sde_config,
    times,
    train,
    train_autoencoder,
    uniforms,
    weight,
)

F64 = torch.float64
SDES = [VPSDE(), SubVPSDE(), CosineVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()]
NAMES = ["vp", "sub-vp", "cosine", "ve", "edm", "flow"]
QUANTITIES = ("x0", "eps", "score", "v", "velocity")


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def guess(x):
    """Some denoiser."""
    return 0.7 * torch.tanh(x) + 0.1


def as_quantity(name):
    def score(x, level):
        m = level.to(x)
        return Prediction(x, m, **{name: getattr(Prediction(x, m, x0=guess(x)), name)})
    return score


def as_edm(sde, s):
    """The same denoiser as an EDM network F."""
    def network(y, t):
        m = sde.at(t.reshape(-1, 1))
        scale = (m.sigma**2 + (m.alpha * s)**2).sqrt()
        x = y * scale
        return (scale**2 * guess(x) - m.alpha * s**2 * x) / (m.sigma * s * scale)
    return from_network(network, "edm", time_input="t", sigma_data=s)


# -- the loss

@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sde", SDES, ids=NAMES)
def test_one_predictor_has_one_loss_in_every_parameterisation(sde, weighting):
    x0, eps = normal(64, 3), normal(64, 3, seed=1)
    t = sde.t_max * torch.linspace(0.05, 0.95, 64, dtype=F64)
    level = sde.at(t.reshape(-1, 1))
    error = (guess(level.alpha * x0 + level.sigma * eps) - x0).square().mean(1)
    expected = weight(weighting, level, sigma_data=0.8).flatten() * error
    scores = {name: as_quantity(name) for name in QUANTITIES} | {"edm": as_edm(sde, 0.8)}
    for name, score in scores.items():
        got = loss(score, sde, x0, t, eps, weighting, sigma_data=0.8)
        assert got.shape == (64,)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", ["x0", "eps", "velocity", "v"])
@pytest.mark.parametrize("sde", SDES, ids=NAMES)
def test_plain_regression_is_its_own_weighting(sde, name):
    x0, eps, t = normal(16, 2), normal(16, 2, seed=1), sde.t_max * torch.linspace(0.1, 0.9, 16, dtype=F64)
    m = sde.at(t.reshape(-1, 1))
    x = m.alpha * x0 + m.sigma * eps
    target = {"x0": x0, "eps": eps, "velocity": m.dalpha * x0 + m.dsigma * eps, "v": m.alpha * eps - m.sigma * x0}[name]
    plain = (getattr(as_quantity(name)(x, m), name) - target).square().mean(1)
    if name == "v":         # v weighting is SNR + 1: plain v over alpha^2 + sigma^2
        plain = plain / (m.alpha**2 + m.sigma**2).flatten()
    torch.testing.assert_close(loss(as_quantity(name), sde, x0, t, eps, name), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sde", SDES, ids=NAMES)
def test_weightings_as_their_papers_print_them(sde):
    m = sde.at(sde.t_max * torch.linspace(0.02, 0.98, 33, dtype=F64))
    snr, s = (m.alpha / m.sigma)**2, m.sigma / m.alpha
    dlam = m.dalpha / m.alpha - m.dsigma / m.sigma
    printed = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1, "edm": (s**2 + 0.5**2) / (s * 0.5)**2,
               "min-snr": snr.clamp(max=3.0), "velocity": (m.alpha * dlam)**2,
               "likelihood": m.g2 / 2 * m.alpha**2 / m.sigma**4}
    assert printed.keys() == WEIGHTINGS.keys()
    for name, w in printed.items():
        torch.testing.assert_close(weight(name, m, sigma_data=0.5, gamma=3.0), w, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0), RectifiedFlow()], ids=["vp", "ve", "flow"])
def test_denoising_gap_is_the_score_error(sde):
    """E|s_theta - grad log p(x|x0)|^2 - E|s - grad log p(x|x0)|^2 = E|s_theta - s|^2, by quadrature, for N(0.4, 0.5^2)."""
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
    x0, eps = (v.reshape(-1, 1) for v in torch.meshgrid(0.4 + 0.5 * z, z, indexing="ij"))
    w = (w[:, None] * w / w.sum()**2).flatten()

    def exact(x, m):
        return (m.alpha * 0.4 - x) / (m.alpha**2 * 0.25 + m.sigma**2)

    def wrong(x, m):
        return exact(x, m) + 0.3 * torch.sin(x) + 0.2

    def mean_loss(s, t):
        return (w * loss(lambda x, m: Prediction(x, m, score=s(x, m)), sde, x0, t.expand(len(x0)), eps, "eps")).sum()

    for u in (0.2, 0.5, 0.9):
        t = torch.tensor(u * sde.t_max, dtype=F64)
        m = sde.at(float(t))
        x = m.alpha * x0 + m.sigma * eps
        gap = m.sigma**2 * (w * (wrong(x, m) - exact(x, m)).square().flatten()).sum()
        assert abs(mean_loss(wrong, t) - mean_loss(exact, t) - gap) < 1e-10 * mean_loss(wrong, t)


def test_the_loss_is_finite_at_both_ends():
    chain = VPSDE.from_betas([0.1, 0.5, 1.0])                     # zero terminal SNR: alpha = 0 at t = 3
    x0, eps = normal(3, 2), normal(3, 2, seed=1)
    t = torch.tensor([1.0, 2.0, 3.0])
    for name in ("x0", "v", "velocity", "eps"):
        for weighting in ("eps", "min-snr", "velocity") if name == "eps" else WEIGHTINGS:
            if (name, weighting) != ("eps", "velocity"):          # where eps says nothing, a weight on x0 cannot act
                value = loss(lambda x, m, name=name: Prediction(x, m.to(x), **{name: x}), chain, x0, t, eps, weighting)
                assert value.isfinite().all(), (name, weighting)
    edm = EDMSDE()
    network = from_network(lambda x, c: torch.zeros_like(x), "edm", sigma_data=0.5)
    x0 = 0.5 * normal(20_000, 1, seed=3, dtype=torch.float32)
    for sigma in (1e-4, 80.0):                                    # F = 0 has unit error at every level: c_skip is Wiener's
        value = loss(network, edm, x0, torch.full((20_000,), sigma), normal(20_000, 1, dtype=torch.float32), "edm")
        assert abs(value.mean().item() - 1.0) < 5 * math.sqrt(2 / 20_000)        # and w = 1/c_out^2: Karras et al. 2022


def test_loss_refuses():
    x0 = normal(4, 2)
    score, t = as_quantity("eps"), torch.full((4,), 0.5)
    with pytest.raises(ValueError, match="nearest: min-snr"):
        loss(score, VPSDE(), x0, t, x0, "minsnr")
    with pytest.raises(ValueError, match=r"t.shape=\(4, 1\).*expected \(4,\)"):
        loss(score, VPSDE(), x0, t[:, None], x0)
    with pytest.raises(ValueError, match=r"eps\.shape"):
        loss(score, VPSDE(), x0, t, x0[:, :1])
    with pytest.raises(ValueError, match=r"expected times in \[0, 1.0\]"):
        loss(score, VPSDE(), x0, t + 1, x0)
    with pytest.raises(ValueError, match="weighting"):
        weight("no", VPSDE().at(0.5))


# -- the times

@given(n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_low_discrepancy_puts_one_in_every_part(n, seed):
    u = uniforms(n, np.random.default_rng(seed))
    assert ((u > 0) & (u < 1)).all()
    shifted = ((u - u.min()) * n).round().sort().values
    assert torch.equal(shifted, torch.arange(n, dtype=F64))
    assert u.min() < 1 / n


def test_low_discrepancy_is_unbiased_and_less_noisy():
    rng = np.random.default_rng(0)
    draws = torch.stack([uniforms(8, rng) for _ in range(20_000)])
    for i in (0, 3, 7):
        assert stats.kstest(draws[:, i].numpy(), "uniform").pvalue > 1e-5
    plain = torch.stack([uniforms(8, rng, low_discrepancy=False) for _ in range(20_000)])
    f = lambda u: (3 * u).exp().mean(1)
    truth = (math.exp(3) - 1) / 3
    for u in (draws, plain):
        assert abs(f(u).mean() - truth) < 5 * f(u).std() / math.sqrt(len(u))
    assert f(draws).var() < f(plain).var() / 6            # 1/B^2 against 1/B


@pytest.mark.parametrize("sde", SDES, ids=NAMES)
def test_times_have_their_laws(sde):
    u = uniforms(20_000, np.random.default_rng(1), low_discrepancy=False)
    low, high = sde.at(sde.t_max).lam, sde.at(sde.t_min).lam
    span = sde.t_max - sde.t_min
    assert stats.kstest(times("uniform", sde, u).numpy(), stats.uniform(sde.t_min, span).cdf).pvalue > 1e-5
    if math.isfinite(low):
        lam = sde.at(times("logsnr", sde, u)).lam
        assert stats.kstest(lam.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-5
    else:
        with pytest.raises(ValueError, match="expected finite ends"):
            times("logsnr", sde, u)
    law = stats.truncnorm((-high + 0.4) / 1.5, (-low + 0.4) / 1.5, -0.4, 1.5)
    t = times("lognormal", sde, u, p_mean=-0.4, p_std=1.5)
    assert ((t >= sde.t_min) & (t <= sde.t_max)).all()
    assert stats.kstest(-sde.at(t).lam.numpy(), law.cdf).pvalue > 1e-5


def test_times_of_a_chain_are_its_knots():
    chain = process("ddpm", steps=100)
    u = uniforms(20_000, np.random.default_rng(2), low_discrepancy=False)
    t = times("uniform", chain, u)
    counts = torch.bincount(t.long(), minlength=101)
    assert counts[0] == 0 and stats.chisquare(counts[1:].numpy()).pvalue > 1e-5
    for law in TIMES:
        t = times(law, chain, u)
        assert torch.equal(t, t.round()) and t.min() >= 1 and t.max() <= 100
    with pytest.raises(ValueError, match="expected a normal law with mass"):
        times("lognormal", VPSDE(), u, p_mean=100.0)
    with pytest.raises(ValueError, match=r"times='log'.*nearest: logsnr"):
        times("log", VPSDE(), u)


# -- the network

def test_mlp_starts_at_zero_and_is_a_function_of_its_seed():
    before = torch.get_rng_state()
    a, b, other = MLP((3, 2), 16, 2), MLP((3, 2), 16, 2), MLP((3, 2), 16, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    x, c = normal(5, 3, 2, dtype=torch.float32), torch.linspace(-5, 7, 5)
    assert torch.equal(a(x, c), torch.zeros_like(x))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.enter.weight, other.enter.weight)


@pytest.mark.parametrize("options", [{}, {"fourier": 3}, {"classes": 4}, {"frequencies": 0, "depth": 0, "time_scale": 0.01}])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_mlp_shapes_dtypes_and_config(options, dtype):
    net = MLP((2, 3), 16, **{"depth": 2, **options}).to(dtype)
    nn.init.normal_(net.leave.weight, generator=torch.Generator().manual_seed(0))
    x = normal(7, 2, 3).to(dtype)
    out = net(x, torch.arange(7))
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()
    if net.depth:
        assert not torch.equal(out, net(x, torch.arange(7) + 1))
    assert net(x, torch.tensor([math.inf, -math.inf] * 3 + [0.0], dtype=dtype)).isfinite().all()
    again = build(json.loads(json.dumps(net.config))).to(dtype)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, torch.arange(7)), out)
    if net.classes:
        y = torch.tensor([0, 1, 2, 3, 4, 4, 0])
        labelled = net(x, torch.arange(7), y=y)
        assert torch.equal(labelled[4:6], out[4:6]) and not torch.equal(labelled[:4], out[:4])
        assert torch.equal(net(x, torch.arange(7), y=4), out)


def test_mlp_refuses():
    for wrong, error in [({"event": 0}, "event"), ({"event": 2.0}, "event"), ({"width": 0}, "width"), ({"depth": -1}, "depth"),
                         ({"frequencies": -1}, "frequencies"), ({"time_scale": 0.0}, "time_scale"), ({"fourier": 99}, "fourier"),
                         ({"classes": 0}, "classes"), ({"seed": -1}, "seed")]:
        with pytest.raises((TypeError, ValueError), match=error):
            MLP(**{"event": 2, **wrong})
    net, x, c = MLP(2, 8, classes=3), torch.zeros(4, 2), torch.zeros(4)
    for y, error in [(torch.zeros(4), "integer labels"), (torch.zeros(3, dtype=torch.long), r"expected \(4,\)"),
                     (4, r"labels in \[0, 3\]"), (-1, r"labels in \[0, 3\]")]:
        with pytest.raises((TypeError, ValueError), match=error):
            net(x, c, y=y)
    with pytest.raises(ValueError, match="without labels"):
        MLP(2, 8)(x, c, y=1)
    with pytest.raises(ValueError, match=r"x.shape=\(4, 3\): expected \(B, 2\)"):
        net(torch.zeros(4, 3), c)
    with pytest.raises(ValueError, match="config"):
        build({"type": "MPL", "event": 2})
    with pytest.raises(TypeError, match="no_such"):
        build({"type": "MLP", "event": 2, "no_such": 1})
    with pytest.raises(TypeError, match="config"):
        build(3)


# -- the loop

DATA = normal(200, 2, seed=9, dtype=torch.float32) * torch.tensor([1.0, 0.4]) + 0.3
SMALL = TrainingConfig(steps=60, batch=16, warmup=5, checkpoint_every=20)


def score_of(net, **options):
    return from_network(net, "v", time_input="lam", **options)


def small(config=SMALL, net=None, data=DATA, **options):
    return train(score_of(net or MLP(2, 16, 2)), VPSDE(), data, config, progress=False, **options)


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


def same(a, b):
    return equal(a.network, b.network) and equal(a.ema, b.ema) and torch.equal(a.losses, b.losses)


@pytest.fixture(scope="module")
def whole():
    return small()


class Bomb(MLP):
    """Raises at the n-th call."""

    def __init__(self, n, error):
        super().__init__(2, 16, 2)
        self.left, self.error = n, error

    def forward(self, x, c, y=None):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().forward(x, c, y)


def test_same_seed_same_bits_and_no_global_randomness(whole):
    torch.manual_seed(123)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()       # noqa: NPY002
    with torch.no_grad():
        again = small()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1]) and random.getstate() == state[2]     # noqa: NPY002
    assert same(whole, again)
    assert whole.losses.shape == (60,) and (whole.losses > 0).all()
    assert whole.score.network is whole.ema and whole.score.predicts == "v"
    assert not equal(whole.network, whole.ema)


@pytest.mark.parametrize("calls", [20, 21, 45, 59])
def test_an_exception_loses_what_follows_the_checkpoint_and_resuming_gives_the_same_bits(tmp_path, whole, calls):
    path = tmp_path / "a.safetensors"
    with pytest.raises(RuntimeError, match="out of power"):
        small(net=Bomb(calls, RuntimeError("out of power")), checkpoint=path)
    assert load_checkpoint(path).step == calls // 20 * 20
    resumed = small(net=MLP(2, 16, 2, seed=0), checkpoint=path, resume=True)
    assert same(whole, resumed)
    assert load_checkpoint(path).step == 60
    assert same(whole, small(net=MLP(2, 16, 2), checkpoint=path, resume=True))       # done already: nothing is trained


@pytest.mark.parametrize("calls", [0, 7, 33])
def test_an_interrupt_saves_where_it_stands(tmp_path, whole, calls):
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        small(net=Bomb(calls, KeyboardInterrupt()), checkpoint=path)
    assert load_checkpoint(path).step == calls if calls else not path.exists()
    assert same(whole, small(checkpoint=path, resume=True))


def test_an_interrupt_within_the_update_waits(tmp_path, whole, monkeypatch, request):
    path, step, calls = tmp_path / "a.safetensors", torch.optim.AdamW.step, []
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)        # a shell that starts tests in the background has them ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(checkpoint=path)
    assert load_checkpoint(path).step == 13
    assert same(whole, small(checkpoint=path, resume=True))
    done = []

    def update():
        with _uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        update()
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_kill_9_and_resume(tmp_path, whole):
    path = tmp_path / "a.safetensors"
    code = textwrap.dedent(f"""
        import sys, time, torch
        sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
        from sdediff.nets import MLP
        from sdediff.training import TrainingConfig, train
        from sdediff import VPSDE, from_network
        class Slow(MLP):
            def forward(self, x, c, y=None):
                time.sleep(0.03)
                return super().forward(x, c, y)
        torch.set_num_threads(1)
        data = torch.tensor({DATA.tolist()})
        train(from_network(Slow(2, 16, 2), "v", time_input="lam"), VPSDE(), data,
              TrainingConfig(**{dataclasses.asdict(SMALL)}), checkpoint={str(path)!r}, progress=False)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert load_checkpoint(path).step in (20, 40)
    assert same(whole, small(checkpoint=path, resume=True))


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path, monkeypatch, whole):
    path = tmp_path / "a.safetensors"
    for fault in ("fsync", "replace"):
        path.unlink(missing_ok=True)
        with pytest.raises(RuntimeError):
            small(net=Bomb(25, RuntimeError()), checkpoint=path)
        before = path.read_bytes()

        def fail(*args):
            raise OSError("disk full")

        with monkeypatch.context() as m:
            m.setattr(os, fault, fail)
            with pytest.raises(OSError, match="disk full"):
                small(checkpoint=path, resume=True)
        assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.previous.safetensors", "a.safetensors"]
        assert same(whole, small(checkpoint=path, resume=True))


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    small(dataclasses.replace(SMALL, steps=3), checkpoint=path)
    whole = path.read_bytes()
    good = load_checkpoint(path)
    bad = tmp_path / "bad.safetensors"
    for content in (b"", whole[:5], whole[:200], whole[:len(whole) // 2], whole[:-1], b"x" * len(whole)):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.safetensors.*expected a checkpoint of sdediff"):
            load_checkpoint(bad)
        with pytest.raises(ValueError, match=r"bad\.safetensors"):
            small(checkpoint=bad, resume=True)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")

    from safetensors.torch import save_file
    save_file({"w": torch.zeros(2)}, bad)
    with pytest.raises(ValueError, match=r"no document 'sdediff\.training'"):
        load_checkpoint(bad)

    def written(error, document=None, parts=None, losses=good.losses):
        save_checkpoint(bad, document or good.document, parts or good.parts, losses)
        with pytest.raises(ValueError, match=f"bad.safetensors.*{error}"):
            load_checkpoint(bad)

    written("schema 3; expected 2", {**good.document, "schema": 3})
    for key in ("step", "training", "network", "predicts", "time_input", "sigma_data", "sde", "data"):
        written(f"'{key}' is 'missing'", {k: v for k, v in good.document.items() if k != key})
    written("'step' is 'three' in its document; expected int", {**good.document, "step": "three"})
    written("does not fit TrainingConfig.*lr", {**good.document, "training": {**good.document["training"], "lr": -1.0}})
    written("does not fit TrainingConfig", {**good.document, "training": {"no_such": 1}})
    written("losses at step", losses=good.losses[1:])
    for part in good.parts:
        for name in list(good.parts[part])[:1]:
            parts = {k: {n: v for n, v in named.items() if (k, n) != (part, name)} for k, named in good.parts.items()}
            written("tensors are missing", parts=parts)


def test_a_checkpoint_rebuilds_the_score(tmp_path, whole):
    path = tmp_path / "a.safetensors"
    small(checkpoint=path)
    saved = load_checkpoint(path)
    assert saved.config == SMALL and saved.sde == VPSDE()
    assert saved.document["schema"] == 2 and saved.document["predicts"] == "v"
    score = saved.score(build(saved.document["network"]))
    x = normal(5, 2, dtype=torch.float32)
    m = VPSDE().at(0.3)
    assert torch.equal(score(x, m).x0, whole.score(x, m).x0)
    assert equal(saved.score(MLP(2, 16, 2), ema=False).network, whole.network)
    with pytest.raises(ValueError, match=r"a\.safetensors: its weights do not fit the network MLP"):
        saved.score(MLP(2, 32, 2))
    lam = from_network(MLP(2, 8, 1), "v", time_input=lambda m: m.lam)
    train(lam, VPSDE(), DATA, dataclasses.replace(SMALL, steps=2), checkpoint=tmp_path / "b", progress=False)
    with pytest.raises(ValueError, match="time_input was a function"):
        load_checkpoint(tmp_path / "b").score(MLP(2, 8, 1))


@pytest.mark.parametrize("sde", [*SDES, VESDE(subtract_min=True), VPSDE.from_betas([0.1, 0.2]), VESDE.from_sigmas([0.1, 2.0])],
                         ids=lambda s: type(s).__name__)
def test_a_process_survives_its_document(sde):
    again = build_sde(json.loads(json.dumps(sde_config(sde))))
    t = 0.4 * sde.t_max
    assert type(again) is type(sde) and again.at(t) == sde.at(t)


def test_processes_that_a_file_does_not_hold():
    with pytest.raises(ValueError, match="does not determine"):
        build_sde(sde_config(LinearSDE(f=lambda t: -t, g=lambda t: 1 + t)))
    with pytest.raises(ValueError, match="expected a process of sdediff"):
        build_sde({"type": "os"})


def test_only_the_same_run_is_continued(tmp_path):
    path = tmp_path / "a.safetensors"
    short = dataclasses.replace(SMALL, steps=4, schedule="constant")
    first = small(short, checkpoint=path)
    with pytest.raises(FileExistsError, match="resume=True"):
        small(short, checkpoint=path)
    with pytest.raises(ValueError, match=r"lr=0.5: the run of .*a\.safetensors has lr=0.002"):
        small(dataclasses.replace(short, lr=0.5), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="at step 4 already"):
        small(dataclasses.replace(short, steps=3), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="has data"):
        small(short, data=DATA + 1, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="has network"):
        small(short, net=MLP(2, 8, 2), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"has sde.*beta_min"):
        train(score_of(MLP(2, 16, 2)), VPSDE(beta_min=0.2), DATA, short, checkpoint=path, resume=True, progress=False)
    with pytest.raises(ValueError, match="has predicts 'v'; this one has 'eps'"):
        train(from_network(MLP(2, 16, 2), time_input="lam"), VPSDE(), DATA, short, checkpoint=path, resume=True, progress=False)
    longer = small(dataclasses.replace(short, steps=9, checkpoint_every=2), checkpoint=path, resume=True)
    assert same(longer, small(dataclasses.replace(short, steps=9)))           # a constant rate may go on
    assert torch.equal(longer.losses[:4], first.losses)


def test_the_average_is_the_formula():
    config = dataclasses.replace(SMALL, schedule="constant", ema=0.15)
    average = [p.clone() for p in MLP(2, 16, 2).parameters()]
    for k in range(4):
        run = small(dataclasses.replace(config, steps=k + 1))
        decay = min(0.15, (1 + k) / (10 + k))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, run.network.parameters())]
        for a, p in zip(average, run.ema.parameters()):
            torch.testing.assert_close(a, p.detach(), rtol=1e-5, atol=1e-7)
    assert [round(config.decay(k), 12) for k in range(3)] == [0.1, 0.15, 0.15]


def test_gradients_are_clipped_and_the_rate_follows_its_schedule(monkeypatch):
    norms, rates, step = [], [], torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        (group,) = self.param_groups
        norms.append(torch.cat([p.grad.flatten() for p in group["params"]]).norm().item())
        rates.append(group["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    config = TrainingConfig(steps=20, batch=16, warmup=4, lr=1e-2, clip=0.05)
    small(config)
    clipped, norms[:] = list(norms), []
    small(dataclasses.replace(config, clip=None))
    assert max(clipped) <= 0.05 * (1 + 1e-5) < 0.2 < max(norms)
    assert rates[:20] == [config.rate(k) for k in range(20)]
    assert rates[0] == 1e-2 / 4 and rates[3] == pytest.approx(1e-2 * (1 + math.cos(math.pi * 3 / 20)) / 2)
    assert dataclasses.replace(config, schedule="constant", warmup=0).rate(19) == 1e-2


@pytest.mark.parametrize("change", [
    {"steps": 7}, {"batch": 17}, {"lr": 1e-3}, {"schedule": "constant"}, {"warmup": 3}, {"weight_decay": 0.5}, {"beta2": 0.9},
    {"clip": 0.01}, {"ema": 0.2}, {"weighting": "x0"}, {"times": "lognormal"}, {"low_discrepancy": False}, {"seed": 1},
    {"weighting": "min-snr", "gamma": 1.0}, {"times": "lognormal", "p_mean": 0.0}, {"times": "lognormal", "p_std": 2.0},
], ids=lambda c: list(c)[-1])
def test_every_field_acts(change):
    base = TrainingConfig(steps=8, batch=16, warmup=2)
    *context, field = change
    base = dataclasses.replace(base, **{k: change[k] for k in context})
    changed = dataclasses.replace(base, **{field: change[field]})
    assert not equal(small(base).ema, small(changed).ema)


@pytest.mark.parametrize("wrong", [
    {"steps": 0}, {"steps": 1.0}, {"batch": 0}, {"lr": 0.0}, {"lr": math.nan}, {"schedule": "cosin"}, {"warmup": -1},
    {"weight_decay": -1.0}, {"beta2": 1.0}, {"clip": 0.0}, {"clip": "no"}, {"ema": 1.0}, {"weighting": "snr"}, {"gamma": 0.0},
    {"times": 3}, {"low_discrepancy": 1}, {"p_mean": math.inf}, {"p_std": 0.0}, {"seed": -1}, {"seed": None},
    {"checkpoint_every": 0}], ids=str)
def test_every_field_is_checked(wrong):
    (name,) = wrong
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        TrainingConfig(**wrong)


def test_train_refuses(tmp_path):
    net = MLP(2, 8, 1)
    good = {"score": score_of(net), "sde": VPSDE(), "data": DATA, "config": SMALL, "progress": False}
    for wrong, error in [
        ({"score": net}, "from_network"), ({"score": from_network(lambda x, c: x)}, "torch.nn.Module"), ({"sde": "vp"}, "sde='vp'"),
        ({"data": DATA.long()}, "data.dtype"), ({"data": DATA[:0]}, "at least one sample"), ({"data": DATA / 0}, "NaN or inf"),
        ({"config": {}}, "TrainingConfig"), ({"conditions": {"y": torch.zeros(3)}}, r"conditions\['y'\].*200"),
        ({"checkpoint": tmp_path / "no" / "a"}, "directory to exist"), ({"score": score_of(MLP(2, 8, 1).half())}, "float16"),
        ({"score": score_of(MLP(2, 8, 1).requires_grad_(False))}, "trainable"), ({"data": DATA[:, :1]}, r"expected \(B, 2\)"),
    ]:
        with pytest.raises((TypeError, ValueError, FileNotFoundError), match=error):
            train(**{**good, **wrong})
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step .*lr=1e[+]30"):
        small(dataclasses.replace(SMALL, lr=1e30, clip=None))


def test_a_run_gone_wrong_is_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FloatingPointError):
        small(dataclasses.replace(SMALL, lr=1e30, clip=None), checkpoint=path)
    assert not path.exists()


def test_conditions_stay_with_their_samples():
    labels = torch.arange(50)
    data = labels[:, None].float()

    class Watch(MLP):
        def forward(self, x, c, y=None):
            assert (x[:, 0] - y).abs().max() < 0.1                # sigma <= 0.01: x is the sample itself
            seen.update(y.tolist())
            return super().forward(x, c, y)

    seen: set[int] = set()
    train(from_network(Watch(1, 8, 1, classes=50), "x0"), EDMSDE(0.001, 0.01), data, TrainingConfig(steps=30, batch=16),
          conditions={"y": labels}, progress=False)
    assert len(seen) > 45


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_other_dtypes_train_and_resume(tmp_path, dtype):
    run = lambda **options: small(net=MLP(2, 16, 2).to(dtype), **options)
    full, path = run(), tmp_path / "a.safetensors"
    assert {p.dtype for p in full.network.parameters()} == {p.dtype for p in full.ema.parameters()} == {dtype}
    assert full.network.leave.weight.abs().max() > 0.01 and not equal(full.network, full.ema)

    class Dies(MLP):
        calls = 0

        def forward(self, x, c, y=None):
            Dies.calls += 1
            if Dies.calls > 30:
                raise RuntimeError
            return super().forward(x, c, y)

    with pytest.raises(RuntimeError):
        small(net=Dies(2, 16, 2).to(dtype), checkpoint=path)
    assert load_checkpoint(path).step == 20
    assert same(full, run(checkpoint=path, resume=True))
    weights = load_checkpoint(path).parts["ema"]
    assert {v.dtype for v in weights.values()} == {torch.float32 if dtype == torch.bfloat16 else dtype}


def test_dropout_buffers_frozen_unused_and_tied_parameters(tmp_path):
    class Odd(nn.Module):
        """No config, dropout, batch statistics, frozen, unused and tied parameters: what a user's network may have."""

        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.a, self.c, self.norm = nn.Linear(3, 8), nn.Linear(8, 2), nn.BatchNorm1d(8)
            for p in self.parameters():
                nn.init.normal_(p, generator=generator)
            self.b = self.a
            self.frozen, self.unused = nn.Parameter(torch.ones(8), requires_grad=False), nn.Parameter(torch.ones(3))
            self.calls = 0

        def forward(self, x, c):
            self.calls += 1
            if self.calls == bomb:
                raise RuntimeError("bomb")
            h = self.norm(self.b(torch.cat([x, c[:, None]], 1)) * self.frozen)
            return self.c(nn.functional.dropout(h.relu(), 0.3, self.training))

    bomb = -1
    net = Odd().eval()
    first, path = small(net=net), tmp_path / "a.safetensors"
    assert not net.training and not first.ema.training and torch.equal(net.frozen, torch.ones(8))
    bomb = 31
    with pytest.raises(RuntimeError, match="bomb"):
        small(net=Odd(), checkpoint=path)
    bomb = -1
    assert same(first, small(net=Odd(), checkpoint=path, resume=True))


def test_an_autoencoder_is_trained_in_the_same_loop(tmp_path):
    """It learns, it goes on to the same bits after a stop (its noise is that of the step), its checkpoint is its own kind."""
    images = (normal(64, 2, seed=1).float() @ torch.linspace(-1, 1, 128).reshape(2, 64).sin()).reshape(64, 1, 8, 8)
    config = dataclasses.replace(SMALL, steps=60, lr=1e-2, checkpoint_every=20)
    made = lambda: Autoencoder((1, 8, 8), 4, 8, seed=2)
    full = train_autoencoder(made(), images, config, progress=False)
    assert float(full.losses[-10:].mean()) < 0.3 * float(full.losses[:5].mean())
    path = tmp_path / "a.safetensors"

    class Dies(Autoencoder):
        calls = 0

        def forward(self, x):
            Dies.calls += 1
            if Dies.calls > 30:
                raise RuntimeError
            return super().forward(x)

    with pytest.raises(RuntimeError):
        train_autoencoder(Dies((1, 8, 8), 4, 8, seed=2), images, config, checkpoint=path, progress=False)
    again = train_autoencoder(made(), images, config, checkpoint=path, resume=True, progress=False)
    assert same(full, again)
    read = load_checkpoint(path).autoencoder(Autoencoder((1, 8, 8), 4, 8, seed=3))
    assert torch.equal(read.decode(read.encode(images)), full.ema.decode(full.ema.encode(images)))
    with pytest.raises(ValueError, match=r"autoencoder, not a score; expected checkpoint\.autoencoder"):
        load_checkpoint(path).score(made())
    with pytest.raises(ValueError, match=r"returned \(12, 1, 8, 8\)"):
        train_autoencoder(nn.Conv2d(1, 1, 1), images, dataclasses.replace(config, batch=12), progress=False)


def test_the_bar_shows_the_loss(capsys):
    short = dataclasses.replace(SMALL, steps=5)
    train(score_of(MLP(2, 16, 2)), VPSDE(), DATA, short)
    shown = capsys.readouterr()
    assert "5/5" in shown.err and "loss" in shown.err and not shown.out
    assert shown.err.count("\r") <= 4                             # a pipe gets a line every 10 s
    small(short)
    assert capsys.readouterr().err == ""


def test_a_chain_trains_on_its_indices():
    seen = []

    class Watch(MLP):
        def forward(self, x, c, y=None):
            seen.append(c.detach())
            return super().forward(x, c, y)

    chain = process("ddpm", steps=50)
    net = Watch(2, 16, 1, time_scale=0.2)
    train(from_network(net, "eps", time_input="index"), chain, DATA, dataclasses.replace(SMALL, batch=200), progress=False)
    c = torch.cat(seen)
    assert torch.equal(c.unique().long(), torch.arange(50)) and torch.equal(c, c.round())


@pytest.mark.slow
@pytest.mark.parametrize("sde, options", [
    (VPSDE(), {}), (EDMSDE(), {"weighting": "edm", "times": "lognormal"}), (RectifiedFlow(), {"weighting": "velocity"})],
    ids=["vp", "edm", "flow"])
def test_a_gaussian_is_learned(sde, options):
    """The score of N(m, S), anisotropic, after some 2 s. Seen: relative errors of eps of 0.004 .. 0.09; bound 0.15."""
    chol, mean = torch.tensor([[1.0, 0.0], [0.6, 0.3]], dtype=F64), torch.tensor([0.5, -0.3], dtype=F64)
    data = (normal(20_000, 2, seed=4) @ chol.T + mean).float()
    net = from_network(MLP(2, 48, 1), "edm", time_input="lam", sigma_data=0.9)
    config = TrainingConfig(steps=500, batch=256, lr=4e-3, ema=0.98, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(net, sde, data, config, progress=False)
    cov = chol @ chol.T
    errors = []
    for lam in (-1.5, -0.5, 0.5, 1.5):
        m = sde.level_of(lam)
        total = m.alpha**2 * cov + m.sigma**2 * torch.eye(2, dtype=F64)
        x = normal(2000, 2, seed=5) @ torch.linalg.cholesky(total).T + m.alpha * mean
        exact = m.sigma * (x - m.alpha * mean) @ torch.linalg.inv(total)
        with torch.no_grad():
            got = run.score(x.float(), m).eps.double()
        errors.append(((got - exact).square().mean() / exact.square().mean()).sqrt().item())
    assert max(errors) < 0.15, errors
