"""Names that choose: what "auto" takes where nothing, a spectrum, data or tuned methods are known; its gain where nothing was searched."""
import dataclasses
import statistics

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sdediff
from sdediff import EDMSDE, VPSDE, from_network, sample, sample_info, targets
from sdediff.analysis import gaussian_error, spectrum_of
from sdediff.grids import DDPM, Sech
from sdediff.random import WhiteNoise
from sdediff.recipes import Run
from sdediff.selection import FEW, MANY, SOME, auto, untuned
from sdediff.solvers import Angular, Exponential
from sdediff.tuned import Gain, Knots, Tuned

F64 = torch.float64
VP = VPSDE()
CHAIN = VPSDE.from_betas(np.linspace(1e-4, 0.02, 100) * 10)
TARGET = targets.toy("8-gaussians")
DATA = TARGET.sample(200, seed=1, dtype=F64)


def run(**known):
    return Run(known.pop("sde", VP), known.pop("score", TARGET.score), **known)


def test_auto_is_the_default_and_says_why():
    info = sample_info(VP, TARGET.score, shape=(3, 2), nfe=10, seed=0)
    assert info.nfe == 10 and "Angular" in info.explain and "chosen by auto: the rule for 10 calls" in info.explain
    assert torch.equal(info.x, sample(VP, TARGET.score, shape=(3, 2), method="auto", nfe=10, seed=0))
    assert torch.equal(info.x, torch.cat(list(sdediff.sample_chunks(VP, TARGET.score, shape=(3, 2), chunk=3, nfe=10, seed=0))))


@pytest.mark.parametrize("budget", ["nfe", "steps"])
def test_where_nothing_is_known_the_budget_decides(budget):
    for calls, grid, corrector in ((1, FEW, 0), (2, FEW, 0), (5, FEW, 0), (7, FEW, 0), (8, SOME, 4), (12, SOME, 4), (13, MANY, 4), (300, MANY, 4)):
        m = auto(run(**{budget: calls}))
        assert (m.solver, m.grid) == (Angular(min(3, calls), corrector), grid) and m.name == f"angular-{min(3, calls)}"
        assert m.solver.remembers < calls
    assert auto(run(grid=[1.0, 0.5, 0.1])).solver == Angular(2)
    assert auto(run()).solver == Angular(3, 4)
    assert sample_info(VP, TARGET.score, shape=(3, 2), grid=[1.0, 0.5, 0.1], seed=0).times == (1.0, 0.5, 0.1)


def test_knots_lie_between_those_of_a_chain_unless_the_network_takes_an_index():
    between = sample_info(CHAIN, TARGET.score, shape=(3, 2), nfe=6, seed=0).times
    assert len(between) == 7 and any(t != round(t) for t in between)
    net = from_network(lambda x, c: x, time_input="index")
    assert sample_info(CHAIN, net, shape=(3, 2), nfe=6, seed=0).times == tuple(DDPM()(CHAIN, 6))
    assert sample_info(CHAIN, net, shape=(3, 2), nfe=6, data=DATA, seed=0).times == tuple(DDPM()(CHAIN, 6))


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_a_spectrum_sets_the_scale(scale):
    """Data of another scale: the rule moves with it, and is kept where no candidate has half its error."""
    spectrum = scale**2 * torch.tensor([0.5, 1.0, 1.5], dtype=F64)
    sde = EDMSDE(sigma_min=0.002 * scale, sigma_max=80 * scale)
    m = auto(run(sde=sde, nfe=8), spectrum=spectrum)
    assert m.solver.scale == pytest.approx(scale) and m.grid.centre == pytest.approx(untuned(8, scale).grid.centre)
    one = auto(run(sde=EDMSDE(), nfe=8), spectrum=spectrum / scale**2)
    assert dataclasses.replace(m.solver, scale=1.0) == dataclasses.replace(one.solver, scale=1.0)
    assert "path RMSE" in m.why and "given spectrum" in m.why


def test_data_say_what_their_spectrum_says_and_less_error_is_taken():
    a, b = auto(run(nfe=20), data=DATA), auto(run(nfe=20), spectrum=spectrum_of(DATA))
    assert a == b
    spectrum = torch.logspace(-3, 0.6, 16, dtype=F64)
    error = lambda m: float(gaussian_error(m, VP, nfe=20, spectrum=spectrum).total.path_rmse)
    chosen = auto(run(nfe=20), spectrum=spectrum)
    assert error(chosen) < 0.6 * error(untuned(20))
    assert sample_info(VP, TARGET.score, shape=(3, 2), nfe=20, spectrum=spectrum, grid="karras", seed=0).nfe == 20


def test_a_stochastic_method_on_request():
    for known in ({}, {"data": DATA}):
        m = auto(run(nfe=10), stochastic=True, **known)
        assert m.stochastic and m.why.startswith("chosen by auto")
    assert "W2" in m.why
    assert sample_info(VP, TARGET.score, shape=(3, 2), nfe=10, stochastic=True, data=DATA, seed=0).nfe == 10


def test_a_tuned_method_of_the_score_comes_first_where_it_fits():
    times = tuple(Sech()(VP, 6))
    own = Tuned("tuned", Exponential(2, "eps"), 0.0, Knots(times, tuple(VP.at(t).lam for t in times)), calls=6,
                gain=Gain("path RMSE", "eab-2 on logsnr", 0.2, 0.1, 0.5, 0.4, 0.6))
    net = dataclasses.replace(from_network(lambda x, c: x), tuned={6: own})
    m = auto(run(score=net, nfe=6))
    assert m.name == "tuned" and m.grid == own.grid and "tuned for this score at 6 calls, path RMSE 0.2" in m.why
    assert auto(run(score=net, steps=6)).grid == own.grid
    for other in ({"nfe": 7}, {"nfe": 6, "t_end": 0.1}, {"nfe": 6, "sde": EDMSDE()}, {"nfe": 6, "grid": "karras"}):
        assert auto(run(score=net, **other)).name == "angular-3"
    assert auto(run(score=net, nfe=6), stochastic=True).name == "dpm++2m-sde"
    assert sample_info(VP, net, shape=(3, 2), nfe=6, grid="karras", seed=0).nfe == 6


@pytest.mark.parametrize("call, error, words", [
    (lambda: auto(run(nfe=8), data=DATA, spectrum=[1.0]), ValueError, "data, spectrum: expected one"),
    (lambda: auto(run(nfe=8), spectrum=[1.0, -1.0]), ValueError, r"spectrum=\[1.0, -1.0\]: expected"),
    (lambda: auto(run(nfe=8), spectrum=[0.0]), ValueError, r"spectrum=\[0.0\].*not all zero"),
    (lambda: auto(run(nfe=8), stochastic=1), TypeError, "stochastic=1: expected True"),
    (lambda: auto(run(nfe=0)), ValueError, "nfe=0"), (lambda: auto(run(steps="3")), TypeError, "steps='3'"),
    (lambda: sample(VP, TARGET.score, shape=(2, 2), nfe=5, eta=1.0), TypeError, "eta=1.0.*'auto' has no such option.*spectrum"),
    (lambda: sample(VP, TARGET.score, shape=(2, 2)), ValueError, "give exactly one"),
    (lambda: sample(VP, TARGET.score, shape=(2, 2), nfe=5, steps=5), ValueError, "give exactly one"),
    (lambda: sdediff.method("auto"), ValueError, "chosen for a run")])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def flow(sde, target, x, t, s):
    """The probability flow in the clock log(sigma/alpha), by DOP853."""
    def slope(u, y):
        level = sde.level_of(-u)
        return np.exp(u) * target.score(level.alpha * torch.from_numpy(y).view(x.shape), level).eps.numpy().ravel()
    y = solve_ivp(slope, (-t.lam, -s.lam), (x / t.alpha).numpy().ravel(), method="DOP853", rtol=1e-8, atol=1e-9).y[:, -1]
    return s.alpha * torch.from_numpy(y).view(x.shape)


def test_auto_against_the_best_standard_method_on_targets_of_neither_search_nor_study():
    """Path RMSE against exponential Adams-Bashforth 4 on log-SNR. One miss is known: the squares of the checkerboard, at 10 calls under
    VPSDE, 1.6 times."""
    ratios = {}
    for name in ("checkerboard", "swiss-roll", "funnel"):
        target = targets.toy(name)
        for sde in (VP, EDMSDE()):
            t, s = sde.at(sde.t_max), sde.at(sde.t_min)
            x0 = target.sample(256, seed=2, dtype=F64)
            x = t.alpha * x0 + t.sigma * WhiteNoise(3, x0.shape, dtype=F64).normal()
            exact = flow(sde, target, x, t, s)
            for nfe in (5, 10, 20):
                auto, standard = (float((sample(sde, target.score, x_init=x, nfe=nfe, **how) - exact).square().mean().sqrt())
                                  for how in ({}, {"method": "eab-4", "start": False}))
                ratios[name, type(sde).__name__, nfe] = auto / standard
    missed = ratios.pop(("checkerboard", "VPSDE", 10))
    assert statistics.median(ratios.values()) < 0.5 and max(ratios.values()) <= 1.3 and missed < 2, ratios
