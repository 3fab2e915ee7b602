"""Multistep methods in the angle: exact on their Gaussian, between the eps and the x0 form, one call a step, and corrected consistently."""
import math

import numpy as np
import pytest
import torch

import sdediff
from sdediff import VESDE, VPSDE, Method, RectifiedFlow, ReverseSDE, grids, iterate, method, random, sample
from sdediff.sampling import count_calls
from sdediff.solvers import Angular, Exponential, Langevin, NonStationary, State
from sdediff.solvers.wrappers import Chain
from sdediff.targets import Gaussian
from sdediff.testing import MIDWAY, converge, gaussian_problem, mixture_problem

F64 = torch.float64
SDE = VPSDE()
SCORE = mixture_problem().target.score
CHAIN = VPSDE.from_betas(np.linspace(1e-4, 0.02, 100) * 10)
PROCESSES = {"vp": SDE, "ve": VESDE(), "flow": RectifiedFlow(), "chain": CHAIN}


def ends(solver, times, x, sde=SDE, score=SCORE):
    *_, state = iterate(ReverseSDE(sde, score), solver, x, sde.levels(times))
    return state.x


def start(rows=16, d=2):
    return random.WhiteNoise(4, (rows, d), dtype=F64).normal()


def scaled(c):
    return Gaussian(torch.zeros(2, dtype=F64), c**2 * torch.eye(2, dtype=F64)).score


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("c", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("solver", [(1, 0), (3, 0), (3, 4), (4, 5), (2, 1)])
def test_it_is_exact_on_its_gaussian_on_any_grid(process, c, solver):
    """The theorem: F = 0, so that z rests; from alpha = 0 and into sigma = 0 as well."""
    sde = PROCESSES[process]
    u = random.WhiteNoise(9, (7,), dtype=F64).normal().abs().cumsum(0)
    for end in (0.0, 0.1 * sde.t_max):
        times = [sde.t_max, *(sde.t_max * (0.9 - 0.75 * u / u[-1])).tolist(), end]
        first, last = sde.at(times[0]), sde.at(times[-1])
        x = start()
        exact = math.hypot(last.sigma, c * last.alpha) / math.hypot(first.sigma, c * first.alpha) * x
        out = ends(Angular(*solver, scale=c), times, x, sde, scaled(c))
        assert (out - exact).abs().max() < 1e-12 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("form, limit", [("eps", 1), ("x0", -1)])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_the_limits_of_the_scale_are_the_eps_and_the_x0_form(form, limit, nodes):
    """Two roads; dphi = -sech(lambda + log c)/2 dlambda differs from its limit by a factor 1 + O(c^{-2 limit})."""
    times = grids.LogSNR()(SDE, 12, 0.8, 0.05)
    target = ends(Exponential(nodes, form), times, start())
    gaps = [float((ends(Angular(nodes, scale=10.0**(limit * k)), times, start()) - target).abs().max()) for k in (3, 4, 6)]
    assert gaps[2] < 1e-8 < gaps[0] < 1e-3 and gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("t_start", [1.0, MIDWAY])
@pytest.mark.parametrize("problem", [gaussian_problem, mixture_problem])
@pytest.mark.parametrize("nodes", [2, 3, 4])
@pytest.mark.parametrize("corrector", [False, True])
def test_its_order_from_both_starts(t_start, problem, nodes, corrector):
    recipe = method(f"angular-{nodes}", corrector=corrector, scale=0.7)
    assert recipe.solver.order == nodes + corrector
    assert converge(recipe, problem(), t_start=t_start).order > nodes + corrector - 0.25


@pytest.mark.parametrize("corrector", [False, True])
def test_a_step_is_a_call(corrector):
    for nodes, n in ((2, 1), (3, 2), (3, 5), (4, 40)):
        recipe = method(f"angular-{nodes}", corrector=corrector, start=False)
        assert count_calls(recipe, SDE, grids.Sech()(SDE, n)) == n
    chain = method("angular-3", corrector=corrector, start=False)
    assert sdediff.sample_info(CHAIN, SCORE, shape=(2, 2), method=chain, nfe=9, seed=0).nfe == 9


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["angular-2", "angular-3", "angular-4"])
def test_the_table_is_the_readable_path(process, name):
    sde = PROCESSES[process]
    end = 0.0 if process in ("flow", "chain") else None
    a, b = (sample(sde, SCORE, x_init=start() * sde.prior_std(sde.at(sde.t_max)), method=name, steps=9, t_end=end, table=table)
            for table in (True, False))
    assert (a - b).abs().max() < 1e-11


def test_the_corrected_step_is_the_formula():
    """Two steps written out: the second starts from the first one taken again with F at its end."""
    solver, levels = Angular(2, 2, scale=0.5), SDE.levels([0.6, 0.5, 0.4])
    a, b, c = levels
    x, f = start(), lambda x, m: solver.remember(SCORE(x, m))[0]
    w = lambda nodes, t, s: solver.weights(nodes, t, s)
    z0 = x / solver.norm(a)
    f0 = f(x, a)
    f1 = f(solver.norm(b) * (z0 - w([a], a, b)[0] * f0), b)
    one, two = w([b, a], a, b)
    z1 = z0 - one * f1 - two * f0
    one, two = w([b, a], b, c)
    assert (ends(solver, [0.6, 0.5, 0.4], x) - solver.norm(c) * (z1 - one * f1 - two * f0)).abs().max() < 1e-13
    from scipy.integrate import quad
    phi = lambda lam: math.atan2(math.exp(-lam), 0.5)
    slope = lambda lam: (phi(lam + 1e-5) - phi(lam - 1e-5)) / 2e-5
    basis = lambda lam: (lam - a.lam) / (b.lam - a.lam)
    assert one == pytest.approx(quad(lambda lam: basis(lam) * slope(lam), b.lam, c.lam)[0], rel=1e-7)


def test_what_moves_the_state_between_steps_is_kept():
    """A correction changes the prediction, it does not replace the state: a displacement of the state goes on by z."""
    solver, levels = Angular(3, 4), SDE.levels(grids.LogSNR()(SDE, 8, 0.8, 0.1))
    eq = ReverseSDE(SDE, lambda x, level: SCORE(start(), level))                     # outputs that do not depend on the state
    plain = moved = State(start())
    for k, (t, s) in enumerate(zip(levels, levels[1:])):
        plain, moved = solver.step(eq, plain, t, s, None), solver.step(eq, moved, t, s, None)
        if k == 3:
            moved, at = moved._replace(x=moved.x + 0.1), s
    gain = solver.norm(levels[-1]) / solver.norm(at)
    assert (moved.x - plain.x - 0.1 * gain).abs().max() < 1e-12
    pc = Method("pc", Chain(solver, Langevin(0.1)))
    assert torch.isfinite(sample(SDE, SCORE, shape=(4, 2), method=pc, grid="logsnr", steps=12, seed=0)).all()


def test_a_shorter_way_back_returns():
    x = start()
    for name in ("angular-3", "angular-4"):
        z = sdediff.encode(SDE, SCORE, x, method=name, steps=60, t_start=0.5, t_end=0.01)
        again = sample(SDE, SCORE, x_init=z, method=name, steps=60, t_start=0.5, t_end=0.01)
        assert (again - x).abs().max() < 1e-3


@pytest.mark.parametrize("call, error, words", [
    (lambda: Angular(5), ValueError, "nodes=5"), (lambda: Angular(3, 6), ValueError, "corrector=6"), (lambda: Angular(scale=0.0), ValueError, "scale=0.0"),
    (lambda: method("angular-3", scale=-1.0), ValueError, "scale=-1.0"), (lambda: method("angular-3", corrector=1), TypeError, "corrector=1.*True"),
    (lambda: method("angular-3", start=None), TypeError, "start=None"), (lambda: method("angular-3", eta=1.0), TypeError, "eta"),
    (lambda: NonStationary(Angular(2, 3), (1.0, 0.5), ((),), ((),)), TypeError, "no corrector"),
    (lambda: list(iterate(ReverseSDE(SDE, SCORE, 1.0), Angular(), start(), SDE.levels([0.6, 0.5]))), ValueError, "probability-flow ODE")])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
