"""Adaptive steps: the error follows the tolerance, samples never meet, outputs are interpolated, and rejections leave the path Brownian."""
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import kstest

import sdediff
from sdediff import EDMSDE, VPSDE, LinearSDE, RectifiedFlow, ReverseSDE, StepBudgetError, from_network, iterate, method, sample
from sdediff.equation import exploded
from sdediff.random import BrownianPath, Noise, WhiteNoise
from sdediff.score import Prediction
from sdediff.solvers import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    AdaptiveRungeKutta,
    Chain,
    Exploded,
    GottaGoFast,
    Langevin,
    State,
    StochasticHeun,
    adaptive,
)
from sdediff.solvers.adaptive import Pieces
from sdediff.targets import Gaussian
from sdediff.testing import gaussian_problem, mixture_problem

F64 = torch.float64
VP = VPSDE()
PROBLEM = mixture_problem()
PAIRS = pytest.mark.parametrize("pair", [DORMAND_PRINCE, BOGACKI_SHAMPINE], ids=lambda p: p.name)


def rms(x):
    return float(x.square().mean().sqrt())


class Counted:
    """A score that counts its calls and remembers their times."""

    def __init__(self, score):
        self.score, self.times = score, []

    def __call__(self, x, level):
        self.times.append(torch.as_tensor(level.t, dtype=F64).flatten())
        return self.score(x, level)

    @property
    def calls(self):
        return len(self.times)


def run(solver, x, times, *, score=PROBLEM.target.score, sde=VP, eta=0.0, noise=None):
    """All states at the times."""
    return list(iterate(ReverseSDE(sde, score, eta), solver, x, sde.levels(times), noise))


def front(state):
    """The integrator's own account of a run."""
    return state.memory[0][1]


# -- the pairs ------------------------------------------------------------------------------------------------------
@PAIRS
def test_a_pair_satisfies_its_conditions(pair):
    c, b, e = (np.array(v) for v in (pair.c, (*pair.a[-1], 0.0), pair.e))
    assert np.allclose([sum(row) for row in pair.a], c, atol=1e-14)
    for weights, order in ((b, pair.order), (b - e, pair.order - 1)):           # the quadrature conditions; the test below has the others
        assert all(abs(weights @ c**k - 1 / (k + 1)) < 1e-14 for k in range(order))
    assert abs(sum(pair.d)) < 1e-12


@PAIRS
def test_one_step_its_estimate_and_its_interpolant_have_their_orders(pair):
    """On y' = -2 t y^2, y = 1/(1 + t^2): local errors h^(p+1), h^p and, between the ends, h^5 or h^4."""
    exact, slope = (lambda t: 1 / (1 + t * t)), (lambda t, y: -2 * t * y * y)
    sizes = []
    for h in (0.1, 0.05, 0.025):
        y, t = torch.tensor([exact(0.4)], dtype=F64), 0.4
        slopes, x = [slope(t, y)], y
        for c, a in zip(pair.c[1:], pair.a[1:]):
            x = y + h * adaptive._combined(a, slopes)
            slopes.append(slope(t + c * h, x))
        between = AdaptiveRungeKutta(pair)._between(y, x, torch.tensor(h, dtype=F64), slopes, torch.tensor(0.4, dtype=F64))
        estimate = h * adaptive._combined(pair.e, slopes)
        sizes.append([abs(float(v)) for v in (x - exact(t + h), estimate, between - exact(t + 0.4 * h))])
    orders = [math.log2(b / a) for b, a in zip(sizes[-2], sizes[-1])]
    for seen, expected in zip(orders, (pair.order + 1, pair.order, 5 if pair.d else 4)):
        assert seen > expected - 0.3


# -- the error follows the tolerance --------------------------------------------------------------------------------
@PAIRS
def test_the_error_falls_with_the_tolerance_over_six_decades(pair):
    x, exact, tolerances = PROBLEM.start(1.0)[:6], PROBLEM.solution(1.0, VP.t_min)[:6], [10.0**-k for k in range(3, 10)]
    errors = [rms(run(AdaptiveRungeKutta(pair, tol, tol), x, [1.0, VP.t_min])[-1].x - exact) for tol in tolerances]
    assert all(a > b for a, b in pairwise(errors))
    assert all(error <= 20 * tol for error, tol in zip(errors, tolerances))
    assert errors[0] / errors[-1] > 1e5


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_one_sample_is_stepped_as_scipy_steps_it(tolerance):
    """The same pair, norm, controller and first step as scipy's RK45 (on a span of length 1): the same work and nearly the same result."""
    eq, x, exact = ReverseSDE(VP, PROBLEM.target.score), PROBLEM.start(1.0)[:4], PROBLEM.solution(1.0, VP.t_min)[:4]
    for row, target in zip(x, exact):
        score = Counted(eq.score)
        ours = run(AdaptiveRungeKutta(rtol=tolerance, atol=tolerance), row[None], [1.0, VP.t_min], score=score)[-1].x[0]
        theirs = solve_ivp(lambda t, y: eq.drift(torch.from_numpy(y)[None], VP.at(max(t, VP.t_min)))[0].numpy(), (1.0, VP.t_min), row.numpy(),
                           method="RK45", rtol=tolerance, atol=tolerance)
        errors = [float((torch.as_tensor(v) - target).square().mean().sqrt()) for v in (ours, theirs.y[:, -1])]
        assert errors[0] < 2 * errors[1] + tolerance
        assert abs(score.calls - theirs.nfev) <= 12


@PAIRS
@pytest.mark.parametrize("sde, start, end", [(VP, 1.0, 0.0), (RectifiedFlow(), 1.0, 0.0), (EDMSDE(), 80.0, 0.0), (VP, 0.0, 1.0)],
                         ids=["vp", "flow", "edm", "vp-up"])
def test_the_clean_level_and_the_noise_are_reached_within_the_tolerance(pair, sde, start, end):
    problem, tolerance = gaussian_problem(sde), 1e-6
    t, s = sde.at(start), sde.at(end)
    x = problem.start(start)
    exact = problem.target.flow(x, t, s) if t.alpha else None
    score = Counted(problem.target.score)
    out = run(AdaptiveRungeKutta(pair, tolerance, tolerance), x, [start, end], score=score, sde=sde)[-1].x
    if exact is None:                           # alpha = 0: the flow map from N(0, I) keeps the eigenvectors
        values, q = torch.linalg.eigh(problem.target.cov)
        exact = problem.target.mean + (x @ q) * values.sqrt() @ q.T
    assert rms(out - exact) < 30 * tolerance
    if end == 0:
        assert min(float(u.min()) for u in score.times) > 0
        assert rms(run(AdaptiveRungeKutta(pair, tolerance, tolerance), x, [start, end], score=_predicting("eps" if t.alpha else "v", problem),
                       sde=sde)[-1].x - exact) < 30 * tolerance


def _predicting(kind, problem=PROBLEM):
    return lambda x, level: Prediction(x, level.to(x), **{kind: getattr(problem.target.score(x, level), kind)})


def test_an_eps_model_is_encoded_into_alpha_zero_and_not_asked_there():
    sde, tolerance = RectifiedFlow(), 1e-6
    x = PROBLEM.target.sample(8, seed=0, dtype=F64)
    score = Counted(_predicting("eps"))
    up = run(AdaptiveRungeKutta(rtol=tolerance, atol=tolerance), x, [1e-3, 1.0], score=score, sde=sde)[-1].x
    assert max(float(u.max()) for u in score.times) < 1
    reference = run(AdaptiveRungeKutta(rtol=1e-10, atol=1e-10), x, [1e-3, 1.0], score=_predicting("v"), sde=sde)[-1].x
    assert rms(up - reference) < 30 * tolerance
    with pytest.raises(ValueError, match="alpha = 0"):
        run(AdaptiveRungeKutta(), up, [1.0, 1e-3], score=score, sde=sde)


def test_in_the_exploded_chart_it_keeps_dtype_and_tolerance():
    """And there a discrete chain, whose velocity in t jumps at the knots, is smooth."""
    x, exact = PROBLEM.start(1.0), PROBLEM.solution(1.0, VP.t_min)
    out = run(Exploded(AdaptiveRungeKutta(rtol=1e-4, atol=1e-4)), x.float(), [1.0, VP.t_min])[-1].x
    assert out.dtype == torch.float32
    assert rms(out - exact) < 1e-3
    chain = VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000))
    problem = gaussian_problem(chain)
    x = problem.start(1000.0)
    exact = problem.target.flow(x, chain.at(1000.0), chain.at(1.0))
    assert rms(run(Exploded(AdaptiveRungeKutta(rtol=1e-7, atol=1e-7)), x, [1000.0, 1.0], score=problem.target.score, sde=chain)[-1].x - exact) < 1e-6


# -- samples never meet ---------------------------------------------------------------------------------------------
SOLVERS = {"rk45": (AdaptiveRungeKutta(), 0.0), "rk23": (AdaptiveRungeKutta(BOGACKI_SHAMPINE), 0.0), "gotta-go-fast": (GottaGoFast(), 1.0),
           "gotta-go-fast-ode": (GottaGoFast(), 0.0)}


def elementwise(x, level):
    """Two modes in each coordinate, by elementwise operations alone: the same bits in any batch."""
    m = level.to(x)
    s = m.alpha**2 * 0.1 + m.sigma**2
    return Prediction(x, m, score=(m.alpha * torch.tanh(m.alpha * x / s) - x) / s)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_does_not_depend_on_its_neighbours(name):
    solver, eta = SOLVERS[name]
    times = [1.0, 0.6, 0.3, 0.1, VP.t_min]
    x, scale = WhiteNoise(0, (9, 3), dtype=F64).normal(), torch.tensor([1e-3, 0.1, 1, 1, 1, 2, 5, 20, 400.0])[:, None]
    seeds = list(range(9))
    go = lambda rows: run(solver, (scale * x)[rows], times, score=elementwise, eta=eta, noise=WhiteNoise([seeds[r] for r in rows], (len(rows), 3), dtype=F64))
    whole = go(range(9))
    for rows in ([3], [8], [5, 0, 8, 2]):
        for a, b in zip(go(rows), whole):
            assert (a.x - b.x[rows]).abs().max() <= 1e-13 * (1 + b.x[rows].abs().max())
        assert torch.equal(front(go(rows)[-1]).attempts, front(whole[-1]).attempts[rows])
    tried = front(whole[-1]).attempts.flatten()
    assert tried.max() > tried.min()                                            # they do step differently


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("fault", ["start", "later"])
def test_a_sample_that_is_not_finite_stops_alone(name, fault):
    """From the start, or where its network fails at t < 0.5."""
    solver, eta = SOLVERS[name]
    x = WhiteNoise(0, (6, 2), dtype=F64).normal()
    go = lambda x, score: run(solver, x, [1.0, 0.4, 0.2, 0.0], score=score, eta=eta, noise=WhiteNoise(1, (6, 2), dtype=F64))
    clean, bad = go(x, elementwise), x.clone()

    def failing(x, level):
        p = elementwise(x, level)
        broken = (torch.as_tensor(level.t).expand(6, 1) < 0.5) & (torch.arange(6)[:, None] == 4)
        return Prediction(x, p.level, score=torch.where(broken, math.nan, p.score))

    if fault == "start":
        bad[4, 0] = math.nan
    score = Counted(failing if fault == "later" else elementwise)
    states = go(bad, score)
    keep = [0, 1, 2, 3, 5]
    assert all((a.x[keep] - b.x[keep]).abs().max() < 1e-13 for a, b in zip(states, clean))
    assert all(torch.isnan(state.x[4]).all() for state in states[1:])
    assert score.calls < 2000


# -- outputs --------------------------------------------------------------------------------------------------------
@PAIRS
@pytest.mark.parametrize("up", [False, True])
def test_fifty_output_times_cost_no_network_calls_and_are_within_the_tolerance(pair, up):
    tolerance, ends = 1e-5, [1.0, VP.t_min][::-1 if up else 1]
    times = np.linspace(*ends, 51).tolist()
    x = PROBLEM.start(ends[0])[:24]
    once, often = Counted(PROBLEM.target.score), Counted(PROBLEM.target.score)
    solver = AdaptiveRungeKutta(pair, tolerance, tolerance)
    single, many = run(solver, x, ends, score=once), run(solver, x, times, score=often)
    assert often.calls == once.calls
    assert torch.equal(single[-1].x, many[-1].x)
    tight = lambda s: run(Exploded(AdaptiveRungeKutta(rtol=1e-7, atol=1e-7)), x, [ends[0], s])[-1].x        # another clock, no outputs
    at_end = rms(single[-1].x - tight(ends[1]))
    for k in (3, 25, 44):
        exact = tight(times[k])
        assert rms(many[k].x - exact) < 3 * at_end + 10 * tolerance
    calls = often.calls
    run(solver, x, np.linspace(*ends, 201).tolist(), score=often)               # more than a sample may run ahead
    assert often.calls - calls <= once.calls + 3 * len(pair.c)


def test_samples_wait_for_each_other_without_a_trace(monkeypatch):
    times = np.linspace(1.0, VP.t_min, 41).tolist()
    free = run(AdaptiveRungeKutta(), PROBLEM.start(1.0), times)
    monkeypatch.setattr(adaptive, "AHEAD", 2)
    held = run(AdaptiveRungeKutta(), PROBLEM.start(1.0), times)
    assert all(torch.equal(a.x, b.x) for a, b in zip(free, held))
    assert max(len(front(state).outputs) for state in held[1:]) < max(len(front(state).outputs) for state in free[1:])


def test_a_bare_step_stays_within_its_interval_and_hands_its_pace_on():
    eq = ReverseSDE(VP, Counted(PROBLEM.target.score))
    solver, x = AdaptiveRungeKutta(), PROBLEM.start(1.0)
    levels = VP.levels([1.0, 0.9, 0.5, 0.2])
    state, calls = State(x), []
    for t, s in pairwise(levels):
        eq.score.times.clear()
        state = solver.step(eq, state, t, s, None)
        assert min(float(u.min()) for u in eq.score.times) >= s.t
        assert max(float(u.max()) for u in eq.score.times) <= t.t
        calls.append(eq.score.calls)
    fresh = solver.step(ReverseSDE(VP, score := Counted(PROBLEM.target.score)), State(state.x), levels[-1], VP.at(0.1), None)
    eq.score.times.clear()
    again = solver.step(eq, state, levels[-1], VP.at(0.1), None)
    assert rms(again.x - fresh.x) < 1e-4
    at_start = lambda counted: sum(int((u == levels[-1].t).sum()) for u in counted.times)
    assert at_start(eq.score) == 0 < at_start(score)                            # no first slope and no first step size to find


def test_a_state_that_was_changed_is_integrated_anew():
    """The memory belongs to the state that was handed out: a corrector's is another."""
    levels = VP.levels([1.0, 0.5, 0.2, 0.05])
    solver, eq = AdaptiveRungeKutta().over(levels), ReverseSDE(VP, PROBLEM.target.score)
    state = solver.step(eq, State(PROBLEM.start(1.0)), *levels[:2], None)
    moved = State(state.x + 0.1, state.memory)
    assert torch.equal(solver.step(eq, moved, *levels[1:3], None).x, solver.step(eq, State(moved.x), *levels[1:3], None).x)
    back = solver.step(eq, state, levels[1], levels[0], None)                   # the other way
    assert rms(back.x - PROBLEM.start(1.0)) < 1e-3
    chained = run(Chain(AdaptiveRungeKutta(), Langevin()), PROBLEM.start(1.0), [1.0, 0.5, 0.2], noise=WhiteNoise(0, (64, 2), dtype=F64))
    assert torch.isfinite(chained[-1].x).all()
    copied = pickle.loads(pickle.dumps(state))
    assert torch.equal(solver.step(eq, copied, *levels[1:3], None).x, solver.step(eq, state, *levels[1:3], None).x)


def test_gradients_are_those_of_the_run():
    """Through step sizes (flow) and through the pieces of the path (SDE): a central difference agrees."""
    for solver, eta in ((AdaptiveRungeKutta(rtol=1e-3, atol=1e-3), 0.0), (GottaGoFast(), 1.0)):
        x = PROBLEM.start(1.0)[:4].requires_grad_()
        direction, weight = (WhiteNoise(k, (4, 2), dtype=F64).normal() for k in (1, 2))
        value = lambda x, solver=solver, eta=eta, weight=weight: (
            weight * run(solver, x, [1.0, 0.3, 0.05], eta=eta, noise=WhiteNoise(3, (4, 2), dtype=F64))[-1].x).sum()
        slope = float((torch.autograd.grad(value(x), x)[0] * direction).sum())
        with torch.no_grad():
            difference = float(value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-6)


# -- the path under rejections --------------------------------------------------------------------------------------
KNOTS = [1.0, 0.7, 0.45, 0.2, 0.0]


def walk(rows, seed, accept, memory=True):
    """Steps of random lengths down from 1 to 0, stopping at the knots, each kept where ``accept`` says so: the increment over every interval
    between knots (4, rows, 1), the total, and how many steps were rejected. Without ``memory`` a rejected step is drawn anew."""
    noise = WhiteNoise(seed, (rows, 1), dtype=F64)
    total = noise.increment(VP.at(1.0), VP.at(0.0))
    pieces, time = Pieces.whole(0.0, total), torch.ones(rows, 1, dtype=F64)
    sums, knots, rejected = torch.zeros(len(KNOTS) - 1, rows, 1, dtype=F64), torch.tensor(KNOTS, dtype=F64), 0
    for k in range(1000):
        moving = time > 0
        if not moving.any():
            return sums, total, rejected
        interval = (knots[1:, None, None] >= time).sum(0)
        z, u, v = (noise.within().at(k).normal(use) for use in (1, 2, 3))
        h = 5e-3 + 0.3 * torch.special.ndtr(u)**3
        then = torch.maximum(torch.maximum(time - h, knots[1:][interval.clamp(max=3)]), pieces.end)
        then = torch.where(moving, then, time)
        dw, left = pieces.split(time, then, z) if memory else ((time - then).sqrt() * z, pieces)
        kept = moving & accept(dw, time - then, torch.special.ndtr(v))
        rejected += int((moving & ~kept).sum())
        pieces = left.put(moving & ~kept, then, dw) if memory else pieces
        sums = sums + torch.where((torch.arange(4)[:, None, None] == interval) & kept, dw, 0.0)
        time = torch.where(kept, then, time)
    raise AssertionError("1000 steps, and no end")


RULES = {"at random": lambda dw, h, v: v > 0.6, "large increments": lambda dw, h, v: (dw.abs() < h.sqrt()) | (h < 1e-2),
         "increments upwards": lambda dw, h, v: (dw < 0.3 * h.sqrt()) | (h < 1e-2)}


@pytest.mark.parametrize("rule", RULES)
def test_accepted_increments_are_brownian_however_steps_are_rejected(rule):
    rows = 6000
    sums, total, rejected = walk(rows, 4, RULES[rule])
    assert rejected > rows
    assert (sums.sum(0) - total).abs().max() < 1e-12
    lengths = [a - b for a, b in pairwise(KNOTS)]
    for w, dt in zip(sums, lengths):
        z = (w / math.sqrt(dt)).flatten().numpy()
        assert kstest(z, "norm").pvalue > 1e-5
        assert abs(z.mean()) * math.sqrt(rows) < 5
        assert abs((z**2).mean() - 1) / math.sqrt(2 / rows) < 5
    correlations = np.corrcoef(sums[:, :, 0].numpy()) - np.eye(4)
    assert np.abs(correlations).max() * math.sqrt(rows) < 5


def test_forgetting_what_was_rejected_biases_the_path():
    """The test above has power: with a new draw after a rejection the same rule is seen at once."""
    sums, _, _ = walk(6000, 4, RULES["increments upwards"], memory=False)
    z = (sums[0] / math.sqrt(KNOTS[0] - KNOTS[1])).flatten().numpy()
    assert abs(z.mean()) * math.sqrt(6000) > 10


def test_a_stack_returns_what_was_put():
    w, z = (WhiteNoise(k, (3, 2), dtype=F64).normal() for k in (1, 2))
    whole = Pieces.whole(0.0, w)
    now, then = torch.ones(3, 1, dtype=F64), torch.tensor([[0.4], [0.0], [1.0]], dtype=F64)
    dw, left = whole.split(now, then, z)
    assert torch.equal(dw[0], 0.6 * w[0] + math.sqrt(0.24) * z[0])              # the bridge
    assert torch.equal(dw[1], w[1])                                             # the whole piece
    assert torch.equal(dw[2], torch.zeros(2))                                   # no step
    assert left.depth.flatten().tolist() == [1, 0, 1]
    back = left.put(torch.tensor([[True], [True], [False]]), then, dw)
    assert torch.allclose(back.rest(), w, rtol=0, atol=1e-15)
    assert back.end.flatten().tolist() == [0.4, 0.0, 0.0]
    again, _ = back.split(now, back.end, -z)
    assert torch.equal(again[:2], dw[:2])


# -- Gotta Go Fast --------------------------------------------------------------------------------------------------
def test_the_weak_error_falls_with_the_tolerance():
    rows, data = 10_000, Gaussian(torch.tensor([0.5], dtype=F64), torch.tensor([[0.25]], dtype=F64))
    first, last = VP.at(1.0), VP.at(VP.t_min)
    x = first.alpha * data.sample(rows, seed=1, dtype=F64) + first.sigma * WhiteNoise(2, (rows, 1), dtype=F64).normal()
    variance, errors = last.alpha**2 * 0.25 + last.sigma**2, []
    for tolerance in (0.5, 0.2, 0.05):
        out = run(GottaGoFast(tolerance, tolerance), x, [1.0, VP.t_min], score=data.score, eta=1.0, noise=WhiteNoise(5, (rows, 1), dtype=F64))[-1].x
        centred = out - last.alpha * 0.5
        errors.append(float(centred.square().mean()) / variance - 1)
    assert errors[0] > 0.1
    assert abs(errors[1]) < errors[0] / 2
    assert abs(errors[2]) / math.sqrt(2 / rows) < 5
    assert abs(float(centred.mean())) / math.sqrt(variance / rows) < 5


def test_the_path_at_the_knots_is_the_sources():
    """With constant g and no drift x_s - x_t = g (W_s - W_t), whatever the steps in between; and a shared path is shared."""
    sde = LinearSDE(f=lambda t: 0.0 * t, g=lambda t: 2.0 + 0.0 * t)
    noise, times = BrownianPath(3, (5, 2), dtype=F64), [1.0, 0.8, 0.3, 0.05]
    still = lambda x, level: Prediction(x, level.to(x), score=torch.zeros_like(x))
    states = run(GottaGoFast(), torch.zeros(5, 2, dtype=F64), times, score=still, sde=sde, eta=1.0, noise=noise)
    for (t, s), (before, after) in zip(pairwise(sde.levels(times)), pairwise(states)):
        assert (after.x - before.x - 2 * noise.increment(t, s)).abs().max() < 1e-7        # g is integrated to 1e-10


def test_a_whole_interval_in_one_step_is_stochastic_heun():
    times = np.linspace(0.5, 0.3, 9).tolist()
    levels, noise, eq = VP.levels(times), WhiteNoise(1, (4, 2), dtype=F64), ReverseSDE(VP, PROBLEM.target.score, 1.0)
    states = run(GottaGoFast(10.0, 10.0), PROBLEM.start(0.5)[:4], times, eta=1.0, noise=noise)
    assert (front(states[-1]).attempts - front(states[4]).attempts).flatten().tolist() == [4] * 4
    for k in range(4, 8):
        heun = StochasticHeun().step(eq, State(states[k].x), levels[k], levels[k + 1], noise.at(k))
        assert (states[k + 1].x - heun.x).abs().max() < 1e-12


class Silent(Noise):
    """A source that must not be asked."""

    def __init__(self, shape):
        self.shape, self.dtype, self.device = shape, F64, torch.device("cpu")

    def at(self, step):
        return self

    def within(self):
        raise AssertionError("a deterministic run draws nothing")

    def normal(self, use=1):
        raise AssertionError("a deterministic run draws nothing")


def test_without_eta_it_draws_nothing_and_converges():
    x, exact, errors = PROBLEM.start(1.0)[:8], PROBLEM.solution(1.0, VP.t_min)[:8], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        out = run(GottaGoFast(tolerance, tolerance), x, [1.0, VP.t_min], noise=Silent((8, 2)))[-1].x
        errors.append(rms(out - exact))
        assert torch.equal(out, run(GottaGoFast(tolerance, tolerance), x, [1.0, VP.t_min])[-1].x)
    assert all(error < 20 * tol for error, tol in zip(errors, (1e-2, 1e-3, 1e-4)))
    assert errors[0] > 10 * errors[2]


def test_it_is_not_asked_at_the_clean_level_and_lands_near_its_mean():
    score = Counted(PROBLEM.target.score)
    out = run(GottaGoFast(), PROBLEM.start(0.3), [0.3, 0.0], score=score, eta=1.0, noise=WhiteNoise(0, (64, 2), dtype=F64))[-1].x
    assert torch.isfinite(out).all()
    assert min(float(u.min()) for u in score.times) > 0
    with pytest.raises(ValueError, match="alpha = 0"):
        run(GottaGoFast(), PROBLEM.start(0.3), [1.0, 0.5], sde=RectifiedFlow(), eta=1.0, noise=WhiteNoise(0, (64, 2), dtype=F64))


# -- eta as a function, per sample ----------------------------------------------------------------------------------
def test_eta_as_a_function_of_tensors():
    x, times = PROBLEM.start(1.0)[:5], [1.0, 0.4, VP.t_min]
    go = lambda eta: run(GottaGoFast(), x, times, eta=eta, noise=WhiteNoise(2, (5, 2), dtype=F64))[-1].x
    assert (go(lambda level: 0.7) - go(0.7)).abs().max() < 1e-12
    falling = go(lambda level: 1 / (1 + level.sigma))
    assert torch.isfinite(falling).all()
    assert (falling - go(1.0)).abs().max() > 1e-2
    level = VP.at(torch.tensor([0.2, 0.5, 0.9], dtype=F64)[:, None])
    eq = ReverseSDE(VP, PROBLEM.target.score, lambda level: 1 / (1 + level.sigma))
    drift, spread = eq.drift(x[:3].float(), level), eq.diffusion(level)
    assert drift.dtype == torch.float32
    for k, t in enumerate((0.2, 0.5, 0.9)):
        assert torch.allclose(eq.drift(x[k:k + 1].float(), VP.at(t)), drift[k:k + 1], rtol=1e-5, atol=1e-5)
        assert float(spread[k]) == pytest.approx(eq.diffusion(VP.at(t)), rel=1e-12)
        assert float(eq.eta_at(level)[k]) == pytest.approx(eq.eta_at(VP.at(t)), rel=1e-12)
    chart = exploded(eq)
    assert torch.allclose(chart.drift(x[:3] / level.alpha, chart.at(level.sigma / level.alpha)),
                          (1 + eq.eta_at(level)**2) * PROBLEM.target.score(x[:3], level).eps)


@pytest.mark.parametrize("eta", [lambda level: 1.0 if level.t > 0.5 else 0.0, lambda level: -level.t, lambda level: level.t.new_ones(7),
                                 lambda level: 0.1 / (level.t - level.t)])
def test_a_function_that_is_none_of_tensors_is_refused_by_name(eta):
    level = VP.at(torch.tensor([0.2, 0.5, 0.9], dtype=F64)[:, None])
    with pytest.raises(ValueError, match=r"eta\(level\).*torch\.where"):
        ReverseSDE(VP, PROBLEM.target.score, eta).eta_at(level)


# -- budgets and refusals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, eta", [("rk45", None), ("rk23", None), ("gotta-go-fast", 1.0)])
def test_a_spent_budget_is_named(name, eta):
    given = {} if eta is None else {"eta": eta}
    with pytest.raises(StepBudgetError) as caught:
        sample(VP, PROBLEM.target.score, shape=(5, 2), method=name, steps=1, seed=0, dtype=F64, max_steps=3, **given)
    for word in (name, "max_steps=3", "from t=1 to t=0.001", "5 of 5 samples", "sample 0", "at t=", f"sdediff.method('{name}', rtol=", "max_steps=30"):
        assert word in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert sdediff.StepBudgetError is sdediff.solvers.StepBudgetError


def test_the_budget_is_a_run_s_not_a_step_s():
    tried = front(run(AdaptiveRungeKutta(), PROBLEM.start(1.0), [1.0, 0.3, VP.t_min])[-1]).attempts.max()
    run(AdaptiveRungeKutta(max_steps=int(tried)), PROBLEM.start(1.0), [1.0, 0.3, VP.t_min])
    with pytest.raises(StepBudgetError):
        run(AdaptiveRungeKutta(max_steps=int(tried) - 1), PROBLEM.start(1.0), [1.0, 0.3, VP.t_min])


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_size_that_underflows_is_named_and_work_is_finite(name):
    solver, eta = SOLVERS[name]
    wild = lambda x, level: Prediction(x, level.to(x), score=1e40 * torch.sin(1e20 * x))
    with pytest.raises(StepBudgetError, match=r"underflowed after \d+ attempted steps; 2 of 2"):
        run(solver, PROBLEM.start(1.0)[:2], [1.0, 0.1], score=wild, eta=eta, noise=WhiteNoise(0, (2, 2), dtype=F64))


@pytest.mark.parametrize("name", ["rk45", "dopri5", "rk23", "gotta-go-fast"])
@pytest.mark.parametrize("wrong, error", [({"rtol": 0.0, "atol": 0.0}, ValueError), ({"rtol": -1e-3}, ValueError), ({"atol": -1e-3}, ValueError),
                                          ({"rtol": math.nan}, ValueError), ({"atol": math.inf}, ValueError), ({"rtol": "1"}, TypeError),
                                          ({"max_steps": 0}, ValueError), ({"max_steps": 10.0}, TypeError)])
def test_wrong_options_are_refused_by_name(name, wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        method(name, **wrong)


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(TypeError, match="pair="):
        AdaptiveRungeKutta("rk45")
    with pytest.raises(ValueError, match="safety"):
        GottaGoFast(safety=1.5)
    with pytest.raises(ValueError, match="exponent"):
        GottaGoFast(exponent=0.0)
    with pytest.raises(ValueError, match="eta=1"):
        run(AdaptiveRungeKutta(), PROBLEM.start(1.0), [1.0, 0.5], eta=1.0)
    with pytest.raises(ValueError, match="noise=None"):
        run(GottaGoFast(), PROBLEM.start(1.0), [1.0, 0.5], eta=1.0)


def test_the_aliases_are_one_method_and_conditions_keep_their_rows():
    assert method("rk45").solver == method("dopri5").solver
    shift = torch.tensor([-1.0, 0.0, 2.0])
    net = lambda x, c, y: torch.tanh(x - y[:, None]) * (1 + c[:, None])
    score = from_network(net)
    together = sample(VP, score, x_init=torch.ones(3, 2), method="rk45", steps=1, conditions={"y": shift})
    alone = [sample(VP, score, x_init=torch.ones(1, 2), method="rk45", steps=1, conditions={"y": shift[k:k + 1]}) for k in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    assert not torch.allclose(together[0], together[2])
