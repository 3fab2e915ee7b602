r"""External engines: scipy, torchdiffeq and torchsde as steps of ours, and our equations and noise handed to torchsde.

The oracles call the other library directly, on a drift written out here: data N(0, V) in the plane under VP with beta = 0.1 + 19.9 t,

    S(t) = alpha^2 V + sigma^2,   score = -x/S,   velocity = -beta/2 (x + score),   reverse drift = -beta/2 x - (1 + eta^2)/2 beta score.
"""
import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde
from scipy.integrate import solve_ivp

import sdediff
from sdediff import (
    EDMSDE,
    VPSDE,
    Method,
    Prediction,
    RectifiedFlow,
    ReverseSDE,
    SubVPSDE,
    encode,
    from_network,
    iterate,
    method,
    sample,
    simulate,
)
from sdediff.random import BrownianPath, WhiteNoise
from sdediff.solvers import SRA1, EulerMaruyama, RungeKutta, SciPy, StepBudgetError, StochasticHeun, TorchDiffEq, TorchDiffEqFixed, TorchSDE
from sdediff.testing import gaussian_problem, mixture_problem

F64 = torch.float64
VP, PROBLEM = VPSDE(), mixture_problem()
ADAPTIVE = [name for name in sdediff.methods() if name.startswith(("scipy-", "torchdiffeq-")) and method(name).solver.adaptive]
FLOWS = [name for name in sdediff.methods() if name.startswith(("scipy-", "torchdiffeq-"))]
PREDICTS = ("eps", "x0", "v", "score")
needs_torchdiffeq = pytest.mark.skipif("torchdiffeq-rk4" not in FLOWS, reason="needs torchdiffeq: pip install 'sdediff[test]'")


def _end(solver, eq, x, times, noise=None):
    *_, state = iterate(eq, solver, x, eq.sde.levels(times), noise)
    return state.x


def _steps(start, end, n):
    return [start + (end - start) * k / n for k in range(n + 1)]


# -- oracles on a drift written by hand -----------------------------------------------------------------------------
V = torch.tensor([0.3, 1.7], dtype=F64)


def _hand_score(x, t):
    b = 0.1 * t + 9.95 * t**2
    return -x / (math.exp(-b) * V + 1 - math.exp(-b))


def _hand_velocity(t, x):
    t = min(max(float(t), 0.0), 1.0)
    return -0.5 * (0.1 + 19.9 * t) * (x + _hand_score(x, t))


BY_HAND = ReverseSDE(VP, sdediff.from_score(_hand_score))
X = WhiteNoise(2, (6, 2), dtype=F64).normal()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_engines_agree_with_the_library_called_directly(name):
    """To rounding where the call is the same, and both with the closed form within the tolerance."""
    package, kind = name.split("-")
    ours = sample(VP, BY_HAND.score, x_init=X, method=name, grid=[1.0, 0.25], rtol=1e-8, atol=1e-8)
    if package == "scipy":
        field = lambda t, y: _hand_velocity(t, torch.from_numpy(y).view_as(X)).numpy().ravel()
        run = solve_ivp(field, (1.0, 0.25), X.numpy().ravel(), method=kind.upper(), rtol=1e-8, atol=1e-8)
        theirs = torch.from_numpy(run.y[:, -1]).view_as(X)
    else:
        from torchdiffeq import odeint
        times = torch.tensor([1.0, 0.25], dtype=F64)
        theirs = odeint(_hand_velocity, X, times, method=kind, rtol=1e-8, atol=1e-8, options={"step_t": times[1:]})[-1]
    a, b = (math.exp(-0.1 * t - 9.95 * t**2) for t in (1.0, 0.25))
    exact = X * torch.sqrt((b * V + 1 - b) / (a * V + 1 - a))
    assert (ours - exact).abs().max() < 1e-6 and (theirs - exact).abs().max() < 1e-6
    if package == "scipy" and kind != "lsoda":          # LSODA is told of a band
        assert (ours - theirs).abs().max() < 1e-12


@needs_torchdiffeq
def test_torchdiffeqs_interpolation_at_the_end_would_miss_the_tolerance():
    """Why our steps of dopri8 end at the level: theirs go beyond it, and back by a polynomial of order 4. 8e-6 at a tolerance of 1e-8."""
    from torchdiffeq import odeint
    times = torch.tensor([1.0, 0.25], dtype=F64)
    exact = _end(KUTTA_38, BY_HAND, X, _steps(1.0, 0.25, 400))
    plain, ours = (odeint(_hand_velocity, X, times, method="dopri8", rtol=1e-8, atol=1e-8)[-1], _end(TorchDiffEq("dopri8", 1e-8, 1e-8), BY_HAND, X, [1.0, 0.25]))
    assert (ours - exact).abs().max() < 1e-8 and 1e-6 < (plain - exact).abs().max() < 1e-4


KUTTA_38 = RungeKutta((0.0, 1 / 3, 2 / 3, 1.0), ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4)


@needs_torchdiffeq
def test_torchdiffeqs_rk4_is_kuttas_three_eighths_rule():
    """Through our class, called directly on the drift by hand, and the tableau written out: one number."""
    from torchdiffeq import odeint
    times = _steps(1.0, 1 / 16, 30)
    ours = sample(VP, BY_HAND.score, x_init=X, method="torchdiffeq-rk4", grid=times)
    theirs = odeint(_hand_velocity, X, torch.tensor(times, dtype=F64), method="rk4")[-1]
    assert (ours - theirs).abs().max() < 1e-12
    assert (ours - _end(KUTTA_38, BY_HAND, X, times)).abs().max() < 1e-12


@needs_torchdiffeq
@pytest.mark.parametrize("kind", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_torchdiffeqs_fixed_methods_have_their_order(kind):
    solver = TorchDiffEqFixed(kind)
    exact = _end(SciPy("DOP853", 1e-12, 1e-12), BY_HAND, X, [1.0, 1 / 16])
    coarse, fine = (float((_end(solver, BY_HAND, X, _steps(1.0, 1 / 16, n)) - exact).abs().max()) for n in (40, 80))
    assert math.log2(coarse / fine) > solver.order - 0.2


class ByHand(torch.nn.Module):
    """The reverse SDE in tau = -t, by hand."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, kind="ito", additive=False, eta=1.0):
        super().__init__()
        self.sde_type, self.noise_type, self.eta = kind, "additive" if additive else "diagonal", eta

    def f(self, tau, y):
        t = -float(tau)
        beta = 0.1 + 19.9 * t
        return 0.5 * beta * y + (1 + self.eta**2) / 2 * beta * _hand_score(y, t)

    def g(self, tau, y):
        g = self.eta * math.sqrt(0.1 - 19.9 * float(tau))
        return torch.full_like(y, g) if self.noise_type == "diagonal" else (g * torch.eye(2, dtype=F64)).expand(len(y), 2, 2)


def _path(x, seed=5, sde=VP):
    return BrownianPath(seed, tuple(x.shape), span=(0.0, sde.t_max), dtype=x.dtype)


@pytest.mark.parametrize("theirs, ours, kind, additive", [("euler", "euler-maruyama", "ito", False), ("euler", "torchsde-euler", "ito", False),
                                                          ("srk", "sra1", "ito", True), ("srk", "torchsde-srk", "ito", True),
                                                          ("heun", "sde-heun", "stratonovich", False)])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_torchsde_called_directly_on_our_brownian_path(theirs, ours, kind, additive, eta):
    """A whole grid of theirs, by hand, against a run of ours: one path, one result."""
    eq = dataclasses.replace(BY_HAND, eta=eta)
    bm = sdediff.as_torchsde(eq, event=(2,)).brownian(_path(X), X)
    run = torchsde.sdeint(ByHand(kind, additive, eta), X, torch.tensor([-1.0, -1 / 16], dtype=F64), bm=bm, method=theirs, dt=1 / 64)[-1]
    assert (run - _end(method(ours).solver, eq, X, _steps(1.0, 1 / 16, 60), _path(X))).abs().max() < 1e-10


# -- torchsde as a solver -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("solver, own", [(TorchSDE("euler"), EulerMaruyama()), (TorchSDE("srk"), SRA1())], ids=["euler", "srk"])
@pytest.mark.parametrize("eta", [0.0, 0.7, lambda level: 1 / (1 + level.sigma)], ids=["0", "0.7", "falling"])
@pytest.mark.parametrize("shape", [(5,), (5, 2), (2, 1, 3, 2), (0, 2)])
def test_torchsde_on_one_path_is_our_own_method(solver, own, eta, shape):
    """torchsde's "srk" is SRA1 for additive noise; on every shape, down to sigma = 0 and on the way up."""
    x, score = WhiteNoise(1, shape, dtype=F64).normal(), from_network(lambda x, c: 0.3 * torch.tanh(x), "x0")
    eq = ReverseSDE(VP, score, eta)
    for times in (_steps(1.0, 0.01, 20), [1.0, 0.7, 0.7, 0.2, 0.0], _steps(0.05, 0.9, 12)):
        a, b = (_end(s, eq, x, times, _path(x)) for s in (solver, own))
        assert a.shape == x.shape and torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name, stages", [("torchsde-euler", 1), ("torchsde-srk", 2)])
def test_torchsde_calls_the_network_once_a_stage_and_never_at_sigma_zero(name, stages):
    levels, state = [], torch.random.get_rng_state()

    def score(x, level):
        levels.append(level)
        return PROBLEM.target.score(x, level)

    times = [*_steps(1.0, 0.1, 9), 0.0]
    _end(method(name).solver, ReverseSDE(VP, score, 1.0), PROBLEM.start(1.0), times, WhiteNoise(1, (64, 2), dtype=F64))
    assert len(levels) == stages * 10 and min(level.sigma for level in levels) > 0
    for k, (t, s) in enumerate(pairwise(times)):
        assert all(s <= level.t <= t for level in levels[stages * k:stages * (k + 1)])
    assert torch.equal(state, torch.random.get_rng_state())


def test_torchsde_srk_makes_no_matrix_of_the_event():
    """A d x d matrix of this event would hold 160 GB."""
    x = torch.zeros(1, 200_000)
    assert torch.isfinite(_end(TorchSDE("srk"), ReverseSDE(VP, lambda x, level: Prediction(x, level, score=-x), 1.0), x, [1.0, 0.5],
                               WhiteNoise(0, x.shape))).all()


def test_the_declared_orders_of_torchsde():
    assert [(s.order, s.weak_order, s.strong_order) for s in (TorchSDE("euler"), TorchSDE("srk"))] == [(1, 1, 1), (2, 2, 1.5)]


# -- steps into and out of sigma = 0 --------------------------------------------------------------------------------
GAUSSIAN = gaussian_problem()


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sde", [VP, SubVPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_engines_reach_sigma_zero_for_every_network(name, sde, predicts):
    """In one step, to the tolerance, and without asking the network there, where velocity and score need not exist."""
    levels = []

    def score(x, level):
        levels.append(level)
        return Prediction(x, level, **{predicts: getattr(GAUSSIAN.target.score(x, level), predicts)})

    t, s = sde.level_of(-2.0), sde.at(0.0)
    x = t.alpha * GAUSSIAN.target.sample(16, seed=1, dtype=F64) + t.sigma * WhiteNoise(2, (16, 3), dtype=F64).normal()
    solver = dataclasses.replace(method(name).solver, rtol=1e-6, atol=1e-6)
    end = solver.step(ReverseSDE(sde, score), sdediff.solvers.State(x), t, s, None).x
    assert (end - GAUSSIAN.target.flow(x, t, s)).abs().max() < 1e-4
    assert min(level.sigma for level in levels) > 0


@pytest.mark.parametrize("name", FLOWS)
def test_encoding_from_sigma_zero(name):
    """A DDIM step leaves sigma = 0 where the network says what eps is there; else the refusal names it."""
    x, end = GAUSSIAN.target.sample(8, seed=1, dtype=F64), VP.at(0.5)
    score = lambda predicts: lambda x, level: Prediction(x, level, **{predicts: torch.zeros_like(x) if level.sigma == 0 and predicts == "eps" else
                                                                      getattr(GAUSSIAN.target.score(x, level), predicts)})
    run = lambda predicts: encode(VP, score(predicts), x, method=name, grid=[0.5, 0.0])
    if method(name).solver.adaptive:
        assert (run("eps") - GAUSSIAN.target.flow(x, VP.at(0.0), end)).abs().max() < 1e-3
    with pytest.raises(ValueError, match="at t=0: it does not follow from x0 where sigma = 0"):
        run("x0")


def test_a_target_coarser_than_the_interval_is_one_ddim_step():
    x, t, s = PROBLEM.start(1.0), VP.level_of(3.0), VP.at(0.0)
    eq = ReverseSDE(VP, PROBLEM.target.score)
    end = SciPy(rtol=0.5, atol=0.5).step(eq, sdediff.solvers.State(x), t, s, None).x
    assert torch.equal(end, eq.predict(x, t).x0)


# -- budgets, tolerances, refusals ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_budget_of_calls_ends_the_run_by_name(name):
    net, calls = lambda x, c: torch.sign(torch.sin(1e6 * x)), []
    score = from_network(lambda x, c: calls.append(1) or net(x, c))
    with pytest.raises(StepBudgetError, match=r"from t=1 to t=0\.001: max_calls=300 network calls do not suffice; it stood at t=.*rtol=1e-12"):
        sample(VP, score, x_init=X, method=name, grid=[1.0, 1e-3], rtol=1e-12, atol=1e-12, max_calls=300)
    assert len(calls) == 300


@pytest.mark.parametrize("name", FLOWS)
def test_an_engine_for_odes_refuses_an_equation_with_noise(name):
    calls = []
    score = from_network(lambda x, c: calls.append(1) or x)
    solver = method(name).solver
    with pytest.raises(ValueError, match=rf"eta=1\.0: {type(solver).__name__} solves the probability-flow ODE alone"):
        next(iterate(ReverseSDE(VP, score, 1.0), solver, X, VP.levels([0.9, 0.5]), WhiteNoise(0, X.shape, dtype=F64)))
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        sample(VP, score, x_init=X, method=Method(name, solver, 0.5), steps=3)
    with pytest.raises(TypeError, match=r"eta=1\.0: method"):
        sample(VP, score, x_init=X, method=name, eta=1.0, steps=3)
    assert not calls


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("wrong, kind, word", [
    ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol=0, atol=0"), ({"rtol": -1e-5}, ValueError, "rtol=-1e-05"),
    ({"atol": -1.0}, ValueError, "atol=-1.0"), ({"rtol": math.nan}, ValueError, "rtol=nan"), ({"atol": math.inf}, ValueError, "atol=inf"),
    ({"rtol": "fine"}, TypeError, "rtol='fine'"), ({"atol": None}, TypeError, "atol=None"), ({"max_calls": 0}, ValueError, "max_calls=0"),
    ({"max_calls": 1e4}, TypeError, "max_calls=10000.0")])
def test_wrong_tolerances_are_refused_by_name(name, wrong, kind, word):
    with pytest.raises(kind, match=word):
        method(name, **wrong)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_one_tolerance_may_be_zero(name):
    for given in ({"rtol": 0.0, "atol": 1e-6}, {"rtol": 1e-6, "atol": 0.0}):
        end = sample(VP, BY_HAND.score, x_init=X, method=name, grid=[1.0, 0.25], **given)
        assert (end - _end(KUTTA_38, BY_HAND, X, _steps(1.0, 0.25, 200))).abs().max() < 1e-4


def test_engines_have_no_coefficient_table():
    for name in [*FLOWS, "torchsde-srk"]:
        with pytest.raises(TypeError, match="no coefficient table"):
            sdediff.solvers.table(method(name).solver, VP, VP.levels([0.9, 0.5]), eta=method(name).eta)


def test_unknown_methods_are_refused_by_name():
    for build, near in ((SciPy, "RK45"), (TorchDiffEq, "dopri5"), (TorchDiffEqFixed, "rk4"), (TorchSDE, "srk")):
        with pytest.raises(ValueError, match=f"method='nonsense' is unknown.*{near}"):
            build("nonsense")


def test_lsoda_forms_its_jacobian_by_bands():
    """A stiff flow of 400 independent numbers: a full Jacobian by differences alone would cost 400 calls."""
    calls = []
    stiff = sdediff.from_score(lambda x, t: calls.append(1) or -1e5 * x)
    x = WhiteNoise(3, (400, 1), dtype=F64).normal()
    end = sample(VP, stiff, x_init=x, method="scipy-lsoda", grid=[0.5, 0.3])
    assert end.abs().max() < 1e-4 and len(calls) < 400


@needs_torchdiffeq
@pytest.mark.parametrize("name", [n for n in FLOWS if n.startswith("torchdiffeq")])
def test_gradients_flow_through_torchdiffeq(name):
    """Against the derivative of the exact flow, to the tolerance: the gradient holds the step sizes fixed."""
    options = {"rtol": 1e-9, "atol": 1e-9} if name in ADAPTIVE else {}
    x = X.clone().requires_grad_()
    end = _end(method(name, **options).solver, BY_HAND, x, _steps(1.0, 0.25, 2 if options else 60))
    gradient, = torch.autograd.grad(end.sum(), x)
    a, b = (math.exp(-0.1 * t - 9.95 * t**2) for t in (1.0, 0.25))
    assert (gradient - torch.sqrt((b * V + 1 - b) / (a * V + 1 - a))).abs().max() < 1e-6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_flow_that_leaves_the_finite_numbers_ends_by_name(name):
    explosive = lambda x, level: Prediction(x, level, score=torch.full_like(x, -1e308))
    with pytest.raises(StepBudgetError, match=r"from t=1 to t=0\.5: "), np.errstate(all="ignore"):
        _end(method(name).solver, ReverseSDE(VP, explosive), X, [1.0, 0.5])
    for x in (X * math.nan, X * math.inf):
        with pytest.raises((StepBudgetError, ValueError), match="finite"):
            _end(method(name).solver, BY_HAND, x, [1.0, 0.5])


def test_a_relative_tolerance_alone_holds_at_zero():
    for name in ADAPTIVE:
        assert not _end(method(name, rtol=1e-6, atol=0.0).solver, BY_HAND, 0 * X, [1.0, 0.5]).any()


# -- the export -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde, steps", [(VP, 64), (SubVPSDE(), 64), (EDMSDE(sigma_max=4.0), 64), (RectifiedFlow(), 56)],
                         ids=["vp", "sub-vp", "edm", "flow"])
@pytest.mark.parametrize("noise_type", ["diagonal", "additive"])
def test_the_forward_export_is_our_forward_process_path_by_path(sde, steps, noise_type):
    """On dyadic steps, which torchsde adds up without rounding."""
    form, x0, dt = sdediff.as_torchsde(sde, event=(2,), noise_type=noise_type), X, sde.t_max / 64
    times = form.times(_steps(0.0, dt * steps, steps))
    theirs = torchsde.sdeint(form, x0, times, bm=form.brownian(_path(x0, sde=sde), x0), method="euler", dt=dt)
    ours = simulate(sde, x0, times=times.tolist(), method="euler-maruyama", noise=_path(x0, sde=sde)).x
    assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 1e-12 * float(ours.abs().max())


def test_the_forward_export_has_the_mean_and_variance_of_the_transition():
    rows, x0 = 4000, torch.tensor([[1.5, -0.5]], dtype=F64)
    form, y = sdediff.as_torchsde(VP, event=(2,), noise_type="additive"), x0.expand(rows, 2).contiguous()
    at = [0.0, 0.25, 0.5, 1.0]
    out = torchsde.sdeint(form, y, form.times(at), bm=form.brownian(_path(y), y), method="srk", dt=1 / 64)
    for t, x in zip(at[1:], out[1:]):
        mean, std = VP.marginal(x0, t)
        assert ((x.mean(0) - mean[0]).abs() * math.sqrt(rows) / std).max() < 5
        assert ((x.var(0) / std**2 - 1).abs() * math.sqrt(rows / 2)).max() < 5


@pytest.mark.parametrize("theirs, ours, noise_type, kind", [("euler", "euler-maruyama", "diagonal", "ito"), ("srk", "sra1", "additive", "ito"),
                                                            ("heun", "sde-heun", "diagonal", "stratonovich"),
                                                            ("milstein", "euler-maruyama", "diagonal", "ito")])
@pytest.mark.parametrize("layout", ["rows", "numbers"])
def test_the_reverse_export_over_a_whole_grid_is_our_method_on_the_same_path(theirs, ours, noise_type, kind, layout):
    """y flat, (B, d), or as B d one-dimensional systems, (B d, 1)."""
    eq, x = ReverseSDE(VP, PROBLEM.target.score, 0.8), PROBLEM.start(1.0)
    form, times = sdediff.as_torchsde(eq, event=(2,), noise_type=noise_type, sde_type=kind), _steps(1.0, 1 / 16, 60)
    y = x if layout == "rows" else x.reshape(-1, 1)
    out = torchsde.sdeint(form, y, form.times(times), bm=form.brownian(_path(x), y), method=theirs, dt=1 / 64)
    states = [state.x for state in iterate(eq, method(ours).solver, x, VP.levels(times), _path(x))]
    assert max(float((a.reshape(x.shape) - b).abs().max()) for a, b in zip(out, states)) < 1e-10


@pytest.mark.parametrize("event", [(), (3,), (1, 2, 2)])
def test_events_of_any_rank_are_flat_for_torchsde(event):
    eq = ReverseSDE(VP, from_network(lambda x, c: 0.3 * x, "x0"), 1.0)
    x = WhiteNoise(1, (4, *event), dtype=F64).normal()
    form, y = sdediff.as_torchsde(eq, event=event), x.reshape(4, -1)
    out = torchsde.sdeint(form, y, form.times([1.0, 0.5]), bm=form.brownian(_path(x), y), method="euler", dt=1 / 16)[-1]
    assert (out.reshape(x.shape) - _end(EulerMaruyama(), eq, x, _steps(1.0, 0.5, 8), _path(x))).abs().max() < 1e-12


@pytest.mark.parametrize("process", [VP, ReverseSDE(VP, PROBLEM.target.score, 1.0)], ids=["forward", "reverse"])
def test_the_space_time_area_obeys_chens_relation(process):
    """U(a, c) = U(a, b) + U(b, c) + W(a, b) (c - b), and W adds."""
    form = sdediff.as_torchsde(process, event=(2,))
    bm = form.brownian(_path(X), X)
    for a, b, c in ((0.125, 0.5, 0.75), (0.25, 0.3, 0.875)):
        a, b, c = sorted(form.sign * v for v in (a, b, c))
        (w1, u1), (w2, u2), (w, u) = (bm(*ends, return_U=True) for ends in ((a, b), (b, c), (a, c)))
        assert torch.equal(bm(a, c), w)
        assert (w1 + w2 - w).abs().max() < 1e-14 and (u1 + u2 + w1 * (c - b) - u).abs().max() < 1e-14


def test_sdeint_adjoint_finds_the_networks_parameters():
    """Reversible Heun and its adjoint are algebraically exact: the gradient is that of backpropagation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 2).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, c):
            return self.layer(x)

    eq = ReverseSDE(VP, from_network(Net(), "x0"), 1.0)
    form = sdediff.as_torchsde(eq, event=(2,), sde_type="stratonovich")
    assert [p.shape for p in form.parameters()] == [(2, 2), (2,)]
    gradients = []
    for integrate, options in ((torchsde.sdeint, {}), (torchsde.sdeint_adjoint, {"adjoint_method": "adjoint_reversible_heun"})):
        out = integrate(form, X, form.times([1.0, 0.5]), bm=form.brownian(_path(X), X), method="reversible_heun", dt=1 / 32, **options)[-1]
        gradients.append(torch.autograd.grad(out.square().sum(), layer.weight)[0])
    assert gradients[0].abs().max() > 1e-3 and (gradients[0] - gradients[1]).abs().max() < 1e-9


def test_deviation_reversible_heun_loses_to_its_parasitic_root_on_two_modes():
    """Why "torchsde-reversible-heun" is no method here, though its state was carried over the whole grid. y - z alternates in sign and grows
    where the drift contracts, by about exp(int |df/dx| dt); where df/dx also changes its sign, on two modes, it reaches the result. Measured
    on one path at eta = 1, equal steps from t = 1 to 1/16, root mean square, at 60, 240, 960 steps (data of variance about 1):

        two modes   reversible Heun 3.2   1.1    0.44      Heun 0.017  0.009  0.001      y - z 43, 8, 2
        Gaussian    reversible Heun 0.79  0.011  0.0009    Heun 0.012  0.003  0.0009     y - z 71, 16, 5
    """
    errors = {}
    for problem in (PROBLEM, GAUSSIAN):
        eq, x = ReverseSDE(VP, problem.target.score, 1.0), problem.start(1.0)
        form = sdediff.as_torchsde(eq, event=x.shape[1:], sde_type="stratonovich")
        exact = _end(SRA1(), eq, x, _steps(1.0, 1 / 16, 480), _path(x))
        for kind, n in (("heun", 60), ("reversible_heun", 60), ("reversible_heun", 240)):
            end = torchsde.sdeint(form, x, form.times([1.0, 1 / 16]), bm=form.brownian(_path(x), x), method=kind, dt=15 / 16 / n)[-1]
            errors[problem.name, kind, n] = float((end - exact).square().mean().sqrt())
    assert errors["mixture", "reversible_heun", 60] > 20 * errors["mixture", "heun", 60] and errors["gaussian", "heun", 60] < 0.03
    assert errors["mixture", "reversible_heun", 60] > 2 and errors["mixture", "reversible_heun", 240] > 0.5
    assert errors["gaussian", "reversible_heun", 60] > 0.3 and errors["gaussian", "reversible_heun", 240] < 0.03


def test_wrong_exports_are_refused_by_name():
    form = sdediff.as_torchsde(VP, event=(2,))
    for call, kind, word in (
            (lambda: sdediff.as_torchsde("vp", event=(2,)), TypeError, "process=str"),
            (lambda: sdediff.as_torchsde(VP, event=2), TypeError, "event=2"),
            (lambda: sdediff.as_torchsde(VP, event=(2.5,)), TypeError, r"event\[0\]=2.5"),
            (lambda: sdediff.as_torchsde(VP, event=(2,), noise_type="general"), ValueError, "noise_type='general'"),
            (lambda: sdediff.as_torchsde(VP, event=(2,), sde_type="Ito"), ValueError, "sde_type='Ito'"),
            (lambda: form.f(0.5, torch.zeros(4, 3)), ValueError, r"y.shape=\(4, 3\)"),
            (lambda: form.f(0.5, torch.zeros(3, 1)), ValueError, r"y.shape=\(3, 1\)"),
            (lambda: form.f(1.5, X), ValueError, "t=1.5"),
            (lambda: form.times([0.0, 2.0]), ValueError, r"times\[1\]=2.0"),
            (lambda: form.brownian(WhiteNoise(0, (6, 2), dtype=F64), X), TypeError, "path=WhiteNoise"),
            (lambda: form.brownian(BrownianPath(0, (6, 2), clock=lambda level: level.t, dtype=F64), X), TypeError, "clock=None"),
            (lambda: form.brownian(BrownianPath(0, (6, 2)), X), ValueError, "float32"),
            (lambda: form.brownian(BrownianPath(0, (5, 2), dtype=F64), X), ValueError, r"expected shape \(6, 2\)"),
            (lambda: form.brownian(_path(X), X)(0.0, 0.5, return_A=True), ValueError, "return_A=True"),
            (lambda: sdediff.as_torchsde(RectifiedFlow(), event=(2,)).f(1.0, X), ValueError, "t=1: alpha = 0")):
        with pytest.raises(kind, match=word):
            call()


def test_times_beyond_the_ends_by_rounding_are_those_of_the_ends():
    form = sdediff.as_torchsde(ReverseSDE(VP, PROBLEM.target.score, 1.0), event=(2,))
    assert form.level(-1.0 - 1e-12) == VP.at(1.0) and form.level(torch.tensor(1e-12)) == VP.at(0.0)
    assert form.times(np.array([1.0, 0.5])).tolist() == [-1.0, -0.5]


def test_the_example_in_the_docstring_runs():
    sde, score = VP, PROBLEM.target.score
    form = sdediff.as_torchsde(sdediff.ReverseSDE(sde, score, eta=1.0), event=(2,))
    path, x_init = sdediff.random.BrownianPath(0, (100, 2), span=(0.0, sde.t_max)), torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    x = torchsde.sdeint(form, x_init, form.times([1.0, 0.0625]), bm=form.brownian(path, x_init), method="euler", dt=1 / 64)[-1]
    assert x.shape == (100, 2) and x.dtype == torch.float32
    assert (x - _end(EulerMaruyama(), form.equation, x_init, _steps(1.0, 1 / 16, 60), path)).abs().max() < 1e-4
    assert (x - _end(StochasticHeun(), form.equation, x_init, _steps(1.0, 1 / 16, 60), path)).abs().max() < 1
