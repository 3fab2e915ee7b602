"""Latent codes: round trips at the method's order, arcs on the sphere, partial noising by the exact law; and the commands on them."""
import json
import math

import numpy as np
import pytest
import torch

import sdediff
from sdediff import data, evaluate, runs
from sdediff.cli import main
from sdediff.latent import decode, denoise_from, interpolate, renoise, round_trip, slerp
from sdediff.likelihood import Bins, dequantise
from sdediff.random import WhiteNoise

F64 = torch.float64
VP = sdediff.VPSDE()
MIXTURE = sdediff.targets.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]], [0.3, 0.7])
X = MIXTURE.sample(40, seed=0, dtype=F64)


# -- codes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("spelled", "order"), [("ddim", 1), ("heun", 2), ("dpm++2m", 2), ("eab-3", 3), ("unipc-2", 3), ("rk4", 4)])
def test_the_round_trip_falls_at_the_methods_order(spelled, order):
    trips = [round_trip(VP, MIXTURE.score, X, method=spelled, grid="logsnr", t_end=0.01, steps=n) for n in (32, 64, 128)]
    slopes = [math.log2(a.median / b.median) for a, b in zip(trips, trips[1:])]
    assert np.mean(slopes) > order - (0.15 if order < 3 else 0.3)
    code = sdediff.encode(VP, MIXTURE.score, X, method=spelled, grid="logsnr", t_end=0.01, steps=128)
    assert torch.equal(trips[-1].code, code)
    assert torch.equal(trips[-1].error, (trips[-1].back - X).square().mean(1).sqrt())


@pytest.mark.parametrize("spelled", ["rk45", "rk23", "scipy-dop853"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
def test_the_round_trip_of_adaptive_methods_holds_their_tolerance(spelled, rtol):
    trip = round_trip(VP, MIXTURE.score, X[:20], method=spelled, steps=1, rtol=rtol, atol=rtol)
    assert trip.median <= 100 * rtol
    assert trip.relative == pytest.approx(trip.median / X[:20].square().mean(1).sqrt().median().item())


def test_codes_are_those_of_the_exact_flow():
    target = sdediff.targets.Gaussian([0.5, 0.0], [[1.0, 0.6], [0.6, 0.8]])
    low, high = VP.at(VP.t_min), VP.at(VP.t_max)
    x = target.sample(10, seed=0, dtype=F64)
    z = sdediff.encode(VP, target.score, x, method="rk45", steps=1, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(z, target.flow(x, low, high), atol=1e-6, rtol=0)
    torch.testing.assert_close(decode(VP, target.score, z, method="rk45", steps=1, rtol=1e-8, atol=1e-8), x, atol=1e-6, rtol=0)


# -- arcs -----------------------------------------------------------------------------------------------------------------
def test_arcs_stay_on_the_sphere_and_turn_evenly():
    a, b = (WhiteNoise(k, (5, 3, 4), dtype=F64).initial() for k in (0, 1))
    unit = lambda v: v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    w = [0.0, 0.25, 0.5, 1.0]
    arc = slerp(unit(a), unit(b), w)
    assert arc.shape == (4, 5, 3, 4)
    torch.testing.assert_close(arc.flatten(2).norm(dim=2), torch.ones(4, 5, dtype=F64), atol=1e-12, rtol=0)
    angle = lambda u, v: 2 * torch.atan2((u - v).flatten(1).norm(dim=1), (u + v).flatten(1).norm(dim=1))
    whole = angle(unit(a), unit(b))
    for k, share in enumerate(w):
        torch.testing.assert_close(angle(arc[0], arc[k]), share * whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(slerp(a, b, [0.0, 1.0]), torch.stack([a, b]), atol=1e-12, rtol=0)
    lengths = slerp(a, -a + 1e-3 * b, w).flatten(2).norm(dim=2)         # no overshoot between almost opposite codes
    assert (lengths < 1.01 * a.flatten(1).norm(dim=1)).all()
    torch.testing.assert_close(slerp(a, 2 * a, [0.5])[0], 1.5 * a, atol=1e-12, rtol=0)                 # parallel: the chord
    near = slerp(a, a + 1e-9 * b, [0.5])[0]
    torch.testing.assert_close(near, a + 0.5e-9 * b, atol=1e-14, rtol=0)


def test_interpolation_joins_the_samples_through_the_code_space():
    run = {"method": "eab-3", "steps": 100, "t_end": 0.01}
    a, b = X[:3], X[3:6]
    paths = interpolate(VP, MIXTURE.score, a, b, points=5, **run)
    assert paths.shape == (5, 3, 2)
    torch.testing.assert_close(paths[0], a, atol=1e-3, rtol=0)
    torch.testing.assert_close(paths[-1], b, atol=1e-3, rtol=0)
    codes = [sdediff.encode(VP, MIXTURE.score, v, **run) for v in (a, b)]
    torch.testing.assert_close(paths[2], decode(VP, MIXTURE.score, slerp(*codes, [0.5])[0], **run), atol=1e-12, rtol=0)
    torch.testing.assert_close(interpolate(VP, MIXTURE.score, a, b, points=[0.5], **run)[0], paths[2], atol=1e-12, rtol=0)


def test_interpolation_hands_every_state_its_condition():
    seen = []

    def network(x, c, y):
        seen.append((len(x), len(y)))
        return x * y[:, None]

    score = sdediff.from_network(network, "eps")
    y, run = torch.tensor([0.1, 0.2, 0.3], dtype=F64), {"method": "ddim", "steps": 4}
    paths = interpolate(VP, score, X[:3], X[3:6], points=5, conditions={"y": y}, **run)
    assert set(seen) == {(6, 6), (15, 15)}
    one = interpolate(VP, score, X[1:2], X[4:5], points=5, conditions={"y": y[1:2]}, **run)
    torch.testing.assert_close(paths[:, 1], one[:, 0], atol=1e-12, rtol=0)


# -- partial noising --------------------------------------------------------------------------------------------------------
def test_renoising_in_one_go_or_in_two_is_one_law():
    x = torch.zeros(40000, 1, dtype=F64) + 2.0
    once = renoise(VP, x, 0.4, seed=0)
    twice = renoise(VP, renoise(VP, x, 0.1, seed=1), 0.4, t_from=0.1, seed=2)
    level = VP.at(0.4)
    for z in (once, twice):
        assert abs(z.mean() - 2 * level.alpha) < 5 * level.sigma / 200
        assert abs(z.var() / level.sigma**2 - 1) < 5 * (2 / 40000)**0.5
    assert torch.equal(renoise(VP, x, 0.4, t_from=0.4, seed=0), x)
    assert torch.equal(renoise(VP, x[:3], 0.4, seed=0), once[:3])


def test_one_seed_serves_bins_renoising_and_starts_independently():
    x = torch.zeros(4000, 1, dtype=F64)
    draws = torch.cat([dequantise(x, 1, seed=0, dtype=F64), renoise(VP, x, 0.5, seed=0), VP.prior((4000, 1), seed=0, dtype=F64),
                       WhiteNoise(0, (4000, 1), dtype=F64).unit(None, None)], 1)
    off = torch.corrcoef(draws.T) - torch.eye(4, dtype=F64)
    assert off.abs().max() < 5 / 4000**0.5


def test_denoising_from_a_level_returns_the_law_and_keeps_what_the_noise_leaves():
    x = MIXTURE.sample(4000, seed=1, dtype=F64)
    for spelled, steps in (("eab-3", 40), ("dpm++2m-sde", 80)):
        y = denoise_from(VP, MIXTURE.score, x, 0.15, method=spelled, steps=steps, seed=0)
        off = y - x
        assert (off.mean(0).abs() < 5 * off.std(0) / 4000**0.5 + 5e-3).all()                   # the law is kept
        spread = (y.var(0) / x.var(0)).log().abs()
        assert (spread < 0.1).all()
        assert torch.corrcoef(torch.stack([y[:, 0], x[:, 0]]))[0, 1] > 0.8
    assert torch.equal(denoise_from(VP, MIXTURE.score, x[:5], 0.3, steps=5, seed=4), denoise_from(VP, MIXTURE.score, x[:5], 0.3, steps=5, seed=4))
    state = renoise(VP, x[:5], 0.3, seed=4)
    assert torch.equal(denoise_from(VP, MIXTURE.score, state, 0.3, steps=5, seed=4, renoised=False),
                       denoise_from(VP, MIXTURE.score, x[:5], 0.3, steps=5, seed=4))


# -- refusals -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: decode(VP, MIXTURE.score, X, method="euler-maruyama", steps=3), ValueError, r"method='euler-maruyama': decoding follows"),
    (lambda: decode(VP, MIXTURE.score, X, steps=3, seed=0), TypeError, r"seed: decoding starts from the codes"),
    (lambda: decode(VP, MIXTURE.score, X, method="heun", step=3), TypeError, r"step=3: method 'heun' has no such option"),
    (lambda: round_trip(VP, MIXTURE.score, X, method="pc", steps=3), ValueError, r"method='pc': encoding follows"),
    (lambda: slerp(X, X[:2], [0.5]), ValueError, r"b.shape=\(2, 2\): expected \(40, 2\)"),
    (lambda: slerp(X, X, [1.5]), ValueError, r"weights\[0\]=1.5: expected a finite number in \[0.0, 1.0\]"),
    (lambda: slerp(X, -X, [0.5]), ValueError, r"opposite codes in sample 0"),
    (lambda: interpolate(VP, MIXTURE.score, X, X, points=1, steps=3), ValueError, r"points=1: expected an integer >= 2"),
    (lambda: renoise(VP, X, 0.1, t_from=0.2), ValueError, r"t=0.1: expected a finite number in \[0.2, 1.0\]"),
    (lambda: denoise_from(VP, MIXTURE.score, X, 0.3, x_init=X, steps=3), TypeError, r"x_init: denoising starts from x at t"),
])
def test_wrong_arguments_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- the commands ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "moons"
    assert main(["train", "--out", str(out), "--training.steps", "30", "--training.batch", "64", "--network.width", "16", "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--data", "digits", "--out", str(out), "--training.steps", "20", "--training.batch", "32", "--network.width", "16",
                 "--training.dequantise", "0.125", "--training.weighting", "likelihood", "--training.times", "likelihood",
                 "--training.importance", "true", "--quiet"]) == 0
    return out


def test_likelihood_of_a_run(moons, capsys):
    assert main(["likelihood", str(moons), "--n", "30", "--method", "dpm++2m:steps=20", "--quiet"]) == 0
    said = capsys.readouterr().out
    document = json.loads((moons / "likelihood.json").read_text())
    flow, bound, exact = document["rows"]
    assert [row["label"] for row in document["rows"]] == ["flow, dpm++2m:steps=20", "SDE, lower bound", "the exact law"]
    assert all(f"{row['nats']:.4f} ± {row['nats_stderr']:.4f}" in said for row in document["rows"])
    assert exact["nats"] > flow["nats"]
    assert document["refinement"] < 0.5
    gap, error = document["gaps"]["the exact law"]
    assert gap == pytest.approx(flow["nats"] - exact["nats"], abs=1e-6)
    assert error < math.hypot(flow["nats_stderr"], exact["nats_stderr"])                # paired
    assert flow["bits"] == pytest.approx(-flow["nats"] / (2 * math.log(2)))
    _, checkpoint, score = runs.read(moons)
    x = data.load("two-moons", seed=0).held_out(30)
    z = renoise(checkpoint.sde, x, checkpoint.sde.t_min, seed=1)
    p = sdediff.log_prob(checkpoint.sde, score, z, method="dpm++2m", steps=40)
    assert flow["nats"] == pytest.approx(p.value.double().mean().item(), abs=1e-5)
    assert np.mean(document["samples"]["bound"]) == pytest.approx(bound["nats"], abs=1e-5)


def test_likelihood_of_digits_counts_bits_of_the_data(digits, capsys):
    assert main(["likelihood", str(digits), "--n", "4", "--method", "ddim:steps=4", "--divergence", "hutchinson", "--probes", "2", "--draws", "8",
                 "--refine", "false", "--quiet"]) == 0
    said = capsys.readouterr().out
    document = json.loads((digits / "likelihood.json").read_text())
    assert "17 levels, uniform noise on their bins" in document["bits"]
    assert document["probes_stderr"] > 0 and "from its probes" in said
    assert document["refinement"] is None
    row, level = document["rows"][0], sdediff.VPSDE().at(document["t_end"])
    inside = -row["nats"] / (64 * math.log(2)) - math.log2(level.alpha / 8)
    assert inside - 0.3 < row["bits"] < inside  # less, for the noise that leaves the outer bins


@pytest.mark.parametrize("dequantised", [True, False])
def test_the_reference_of_bits_is_the_sum_over_levels(dequantised):
    bins, level = Bins(5, -1.0, 1.0), VP.at(0.05)
    k = torch.arange(5)[:, None]
    x = dequantise(k.repeat(20000, 1), bins, seed=0, dtype=F64) if dequantised else bins.centres[k].repeat(20000, 1)
    z = renoise(VP, x, 0.05, seed=1).flatten()
    edges = torch.linspace(-2.5, 2.5, 61, dtype=F64)
    share = torch.histogram(z, edges).hist / len(z)
    axis = torch.linspace(-2.5, 2.5, 6001, dtype=F64)
    density = evaluate.log_reference(bins, axis[:, None], level, dequantised).exp() / 5
    exact = (density[:-1] + density[1:]).div(2).reshape(60, 100).sum(1) * (axis[1] - axis[0])
    assert exact.sum().item() == pytest.approx(1, abs=1e-6)
    assert ((share - exact).abs() < 5 * (exact / len(z)).sqrt() + 1e-4).all()


@pytest.mark.parametrize("name", ["moons", "digits"])
def test_interpolation_of_a_run(name, request, capsys):
    run = request.getfixturevalue(name)
    assert main(["interpolate", str(run), "--n", "3", "--points", "4", "--method", "ddim:steps=5"]) == 0
    assert "round trip of the ends to" in capsys.readouterr().out
    assert (run / "interpolation.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("argv", "message"), [
    (["likelihood", "RUN", "--method", "euler-maruyama"], "a likelihood follows the probability-flow ODE"),
    (["likelihood", "RUN", "--divergence", "exactly"], "divergence='exactly' is unknown"),
    (["likelihood", "RUN", "--divergence", "hutchinson", "--probes", "0"], "probes=0: expected an integer >= 1"),
    (["likelihood", "nowhere"], "run='nowhere': no config.yaml"),
    (["interpolate", "RUN", "--points", "1"], "points=1: expected an integer >= 2"),
    (["interpolate", "RUN", "--method", "pc"], "encoding follows the probability-flow ODE"),
])
def test_commands_refuse_by_name(moons, capsys, argv, message):
    assert main([str(moons) if a == "RUN" else a for a in argv]) == 2
    assert message in capsys.readouterr().err
