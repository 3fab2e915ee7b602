"""Tuning: the table's derivative, two roads to one run, what tuned coefficients must keep, gains on trajectories that nothing saw, files."""
import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import sdediff
from sdediff import nets, tuned, tuning
from sdediff.equation import ReverseSDE
from sdediff.random import WhiteNoise
from sdediff.recipes import method
from sdediff.sampling import iterate
from sdediff.score import Prediction
from sdediff.solvers import Exploded, Exponential, NonStationary, SciPy
from sdediff.solvers.nonstationary import BOUND
from sdediff.solvers.tracing import draw
from sdediff.testing import affine_law
from sdediff.tuning import Run, tune

VP, EDM = sdediff.VPSDE(), sdediff.EDMSDE()
CHAIN = sdediff.VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000))
RING = sdediff.targets.toy("8-gaussians")
DATA = RING.sample(300, seed=5, dtype=torch.float64)
FAMILIES = [("eab-2", {}), ("eab-3", {"form": "x0", "start": False}), ("unipc-2", {"start": False}), ("dpm-solver-2", {}), ("heun", {}),
            ("deis-2", {}), ("ddpm", {}), ("dpm++2m-sde", {}), ("sa-solver", {"start": False}), ("seeds-2", {}), ("euler-maruyama", {})]


def run_of(name, options, sde=VP, steps=6, grid="logsnr", t_end=None, score=RING.score, reach=0):
    times = sdediff.grids.grid(grid)(sde, steps, None, t_end)
    return Run(sde, score, method(name, **options), times, grid, reach)


def starts(sde, n, seed=0, target=RING):
    level = sde.at(sde.t_max)
    x0 = target.sample(n, seed=seed, dtype=torch.float64)
    return level.alpha * x0 + level.sigma * WhiteNoise(seed + 1, x0.shape, dtype=torch.float64).normal()


def flow(sde, x, t_end=None, score=RING.score):
    *_, end = iterate(ReverseSDE(sde, score), Exploded(SciPy("DOP853", 1e-9, 1e-10)), x, sde.levels([sde.t_max, t_end or sde.t_min]))
    return end.x


def theta_of(run, seed=3, size=0.3):
    return size * np.random.default_rng(seed).standard_normal(run.zero.shape)


# -- a run as a function of theta -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, options", FAMILIES, ids=[f"{n}{o or ''}" for n, o in FAMILIES])
@pytest.mark.parametrize("sde, t_end", [(VP, None), (EDM, None), (CHAIN, 1.0)], ids=["vp", "edm", "chain"])
def test_the_run_of_theta_is_the_method_of_theta(name, options, sde, t_end):
    """Two roads: the differentiable run of the table, and the solver's own steps on the grid and eta of theta."""
    run = run_of(name, options, sde, t_end=t_end)
    x = starts(sde, 5)
    for theta in (run.zero, theta_of(run)):
        source = WhiteNoise(7, x.shape, dtype=x.dtype)
        found = run(torch.from_numpy(theta), x, {term: draw(source, ask) for term, ask in run.draws}, RING.score)
        m = run.method(theta)
        *_, end = iterate(ReverseSDE(sde, RING.score, m.eta), m.solver, x, sde.levels(m.grid.knots), source)
        assert torch.allclose(found, end.x, rtol=1e-9, atol=1e-9)
        assert m.grid.knots[0] == run.start[0] and m.grid.knots[-1] == run.start[-1]
        assert all(b < a for a, b in zip(m.grid.knots, m.grid.knots[1:]))
    assert theta.any() and m.grid.knots[1:-1] != tuple(run.start[1:-1])


@pytest.mark.parametrize("name, options", [("eab-1", {}), ("eab-3", {"start": False}), ("eab-2", {"form": "x0"}), ("deis-2", {}),
                                           ("er-sde-2", {"eta": 0.0})])
@pytest.mark.parametrize("sde, t_end", [(VP, None), (EDM, None), (CHAIN, None), (sdediff.RectifiedFlow(), None)],
                         ids=["vp", "edm", "chain to 0", "flow from alpha = 0"])
def test_the_run_of_theta_with_coefficients_is_the_method_of_theta(name, options, sde, t_end):
    run = run_of(name, options, sde, 7, t_end=t_end, reach=5)
    x, theta = starts(sde, 5), theta_of(run)
    m = run.method(theta)
    assert isinstance(m.solver, NonStationary) and run.free >= 2 * (1 + 2 + 3)
    *_, end = iterate(ReverseSDE(sde, RING.score), m.solver, x, sde.levels(m.grid.knots))
    assert torch.allclose(run(torch.from_numpy(theta), x, {}, RING.score), end.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, options", FAMILIES, ids=[f"{n}{o or ''}" for n, o in FAMILIES])
def test_the_gradient_is_that_of_finite_differences(name, options):
    run = run_of(name, options, steps=5)
    x = starts(VP, 4)
    source = WhiteNoise(7, x.shape, dtype=x.dtype)
    noise = {term: draw(source, ask) for term, ask in run.draws}
    loss = lambda p: run(p, x, noise, RING.score).square().mean()
    theta = torch.from_numpy(theta_of(run)).requires_grad_()
    gradient, = torch.autograd.grad(loss(theta), theta)
    with torch.no_grad():
        for i, unit in enumerate(torch.eye(len(theta), dtype=torch.float64) * 1e-4):
            five = [float(loss(theta + k * unit)) for k in (-2, -1, 1, 2)]
            slope = (five[0] - 8 * five[1] + 8 * five[2] - five[3]) / 12e-4
            assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_the_gradient_in_the_coefficients_of_a_non_stationary_method():
    run = run_of("eab-2", {}, steps=5, reach=4)
    assert run.free == 2 * (1 + 2 + 3 + 4)
    x, theta = starts(VP, 4), torch.from_numpy(theta_of(run, size=0.1)).requires_grad_()
    loss = lambda p: run(p, x, {}, RING.score).square().mean()
    gradient, = torch.autograd.grad(loss(theta), theta)
    with torch.no_grad():
        for i, unit in enumerate(torch.eye(len(theta), dtype=torch.float64) * 1e-5):
            assert gradient[i] == pytest.approx(float(loss(theta + unit) - loss(theta - unit)) / 2e-5, rel=1e-4, abs=1e-6)


def test_grids_of_many_steps_move_by_cosines():
    run = run_of("eab-2", {}, steps=40)
    assert len(run.zero) == tuning.COSINES
    steps = np.diff([VP.at(t).lam for t in run.times(theta_of(run))])
    assert (steps > 0).all() and steps.std() > 0.05 * steps.mean()
    wild = np.diff([VP.at(t).lam for t in run.times(theta_of(run, size=100))])
    assert (wild > 0).all()                                         # knots stay apart for any theta


# -- non-stationary methods ---------------------------------------------------------------------------------------------------
def _random_rows(n, reach, seed):
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.uniform(-1, 1, min(k, reach))) for k in range(n))


@pytest.mark.parametrize("sde, t_end", [(VP, None), (EDM, None), (CHAIN, None), (sdediff.RectifiedFlow(), None)],
                         ids=["vp", "edm", "chain to 0", "flow from alpha = 0"])
def test_any_coefficients_are_exact_on_a_point_mass(sde, t_end):
    """The theorem of solvers.nonstationary: theory, eq. (36) is exact there whatever a and b are."""
    point = torch.tensor([0.7, -1.3], dtype=torch.float64)

    def score(x, level):
        eps = (x - level.alpha * point) / level.sigma
        return Prediction(x, level, x0=point.expand_as(x), eps=eps)

    times = tuple(sdediff.grids.LogSNR()(sde, 7, None, t_end))
    finite = [math.isfinite(level.lam) for level in sde.levels(times)]
    rows = tuple(row[:sum(finite[:k])] if finite[k] and finite[k + 1] else () for k, row in enumerate(_random_rows(7, 4, 0)))
    other = tuple(tuple(-0.7 * c + 0.1 for c in row[::-1]) for row in rows)
    solver = NonStationary(Exponential(2, "x0"), times, rows, other)
    first, last = sde.at(times[0]), sde.at(times[-1])
    z = WhiteNoise(1, (6, 2), dtype=torch.float64).normal()
    x = first.alpha * point + first.sigma * z
    *_, end = iterate(ReverseSDE(sde, score), solver, x, sde.levels(times))
    assert torch.allclose(end.x, last.alpha * point + last.sigma * z, rtol=1e-10, atol=1e-10 * max(1.0, float(first.sigma)))


def test_without_coefficients_it_is_the_solver_inside():
    times = tuple(sdediff.grids.LogSNR()(VP, 8))
    inner = Exponential(3, "eps")
    solver = NonStationary(inner, times, ((),) * 8, ((),) * 8)
    x = starts(VP, 5)
    ends = [list(iterate(ReverseSDE(VP, RING.score), s, x, VP.levels(times)))[-1].x for s in (inner, solver)]
    assert torch.equal(*ends)


def test_a_non_stationary_method_runs_from_its_table_as_by_its_steps():
    times = tuple(sdediff.grids.LogSNR()(VP, 6))
    rows = _random_rows(6, 5, 1)
    m = tuned.Tuned("tuned", NonStationary(Exponential(2, "eps"), times, rows, rows), 0.0,
                    tuned.Knots(times, tuple(VP.at(t).lam for t in times)), calls=6)
    a, b = (sdediff.sample_info(VP, RING.score, x_init=starts(VP, 9), method=m, nfe=6, table=table) for table in (True, False))
    assert "coefficient table" in a.explain and "readable" in b.explain
    assert a.nfe == b.nfe == 6 and torch.allclose(a.x, b.x, rtol=1e-10, atol=1e-10)


def test_a_non_stationary_method_refuses_what_it_is_not():
    times = tuple(sdediff.grids.LogSNR()(VP, 3))
    row = ((), (0.1,), (0.1, 0.2))
    solver = NonStationary(Exponential(2, "eps"), times, row, row)
    eq = ReverseSDE(VP, RING.score)
    with pytest.raises(ValueError, match="tuned for the grid"):
        list(iterate(eq, solver, starts(VP, 2), VP.levels([1.0, 0.5, 0.001])))
    with pytest.raises(ValueError, match="tuned for the grid"):
        sdediff.encode(VP, RING.score, starts(VP, 2), method=sdediff.Method("mine", solver), grid=list(times))
    with pytest.raises(TypeError, match="one evaluation a step"):
        NonStationary(method("unipc-2").solver, times, row, row)
    with pytest.raises(ValueError, match="expected 3 rows"):
        NonStationary(Exponential(2), times, row[:2], row[:2])
    with pytest.raises(ValueError, match="row k of"):
        NonStationary(Exponential(2), times, ((0.1,), (), ()), ((0.1,), (), ()))
    with pytest.raises(ValueError, match="equal lengths"):
        NonStationary(Exponential(2), times, row, ((), (), ()))
    with pytest.raises(ValueError, match=r"a\[1\]\[0\]"):
        NonStationary(Exponential(2), times, ((), (2 * BOUND,), ()), ((), (0.0,), ()))


# -- tuning --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def five():
    return tune("eab-2", VP, RING.score, nfe=5, data=DATA, trajectories=96, iterations=60, starts=1)


def test_a_tuned_method_is_better_on_trajectories_that_nothing_saw(five):
    x = starts(VP, 512, seed=77)
    exact = flow(VP, x)
    rmse = lambda m, **kw: float((sdediff.sample(VP, RING.score, x_init=x, method=m, nfe=5, **kw) - exact).square().mean().sqrt())
    standard = min(rmse(name, grid=grid) for name in ("eab-2", "dpm++2m", "unipc-2", "ddim")
                   for grid in ("logsnr", "karras", "uniform", "quadratic"))
    assert rmse(five) < 0.4 * standard
    assert five.gain.high < 0.5 and five.gain.low < five.gain.ratio < five.gain.high
    assert rmse(five) == pytest.approx(five.gain.after, rel=0.5)       # what it was said to be worth
    assert five.calls == 5 and sdediff.sample_info(VP, RING.score, x_init=x, method=five, nfe=5).nfe == 5


def test_tuning_is_deterministic_and_moves_no_random_state(five):
    before = torch.get_rng_state()
    again = tune("eab-2", VP, RING.score, nfe=5, data=DATA, trajectories=96, iterations=60, starts=1)
    assert again == five and torch.equal(before, torch.get_rng_state())


def test_coefficients_are_worth_more_than_the_grid_alone(five):
    grid = tune("eab-2", VP, RING.score, nfe=5, data=DATA, trajectories=96, iterations=60, starts=1, what="grid")
    assert isinstance(grid.solver, Exponential) and isinstance(five.solver, NonStationary)
    assert five.gain.after < grid.gain.after < 0.8 * grid.gain.before


def test_nothing_worse_than_the_best_standard_grid_is_returned():
    gaussian = sdediff.targets.Gaussian([0.0, 0.0], 1.0)            # the flow of unit variance is x itself: nothing is to be won
    m = tune("dpm-solver-2", VP, gaussian.score, nfe=8, data=gaussian.sample(60, seed=0, dtype=torch.float64), trajectories=16,
             iterations=1, starts=1)
    assert m.gain.ratio <= 1 and m.gain.after <= m.gain.before


def test_the_mean_of_a_smaller_power_hears_every_trajectory():
    """(mean of d^{2p})^{1/p} of the paths' distances d: the mean square at p = 1, the squared mean distance at 1/2; with a slope where a
    path is exact."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    paths = tuning.Trajectories(RING.score, x, torch.zeros(3, 2, dtype=torch.float64), WhiteNoise(0, (3, 2)), None)
    assert paths.mean(x).item() == pytest.approx((25 + 0 + 1) / 6)
    assert paths.mean(x, 0.5).item() == pytest.approx((5 + 0 + 1)**2 / 9 / 2)
    gradient, = torch.autograd.grad(paths.mean(x, 0.5).log(), x)
    assert torch.isfinite(gradient).all() and gradient[0].norm().item() == pytest.approx(gradient[2].norm().item()) and not gradient[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("sde, nfe", [(EDM, 6), (CHAIN, 6), (sdediff.RectifiedFlow(), 6)], ids=["edm", "chain", "flow"])
def test_every_kind_of_process(sde, nfe):
    m = tune("eab-2", sde, RING.score, nfe=nfe, data=DATA, trajectories=32, iterations=25, starts=1)
    assert m.gain.ratio < 0.9 and m.calls == nfe
    x = sdediff.sample(sde, RING.score, shape=(50, 2), method=m, nfe=nfe, seed=0)
    assert torch.isfinite(x).all() and m.grid.knots[0] == sde.t_max and m.grid.knots[-1] == sde.t_min


def test_a_smaller_budget_is_a_start_for_a_larger_one(five):
    m = tune("eab-2", VP, RING.score, nfe=7, data=DATA, trajectories=64, iterations=30, starts=1, near=[five])
    assert m.calls == 7 and m.gain.ratio < 0.5


@pytest.mark.slow
def test_stochastic_methods_are_tuned_by_their_law():
    """Judged without Monte Carlo: the exact law on Gaussian data, by unit impulses."""
    gaussian = sdediff.targets.Gaussian([0.5], 0.25)
    m = tune("dpm++2m-sde", VP, gaussian.score, nfe=6, data=gaussian.sample(999, seed=0, dtype=torch.float64), trajectories=128,
             iterations=25, starts=1)
    assert m.gain.kind == "sliced W2" and m.eta != 0 and 0.5 <= m.eta <= 2
    standard = min(affine_law("dpm++2m-sde", VP, VP.levels(grid(VP, 6))).w2 for grid in tuning.GRIDS)
    assert affine_law(m, VP, VP.levels(m.grid.knots)).w2 < 0.5 * standard


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_is_left_as_it_was_and_its_calls_are_made_again_on_the_way_back(dtype):
    net = nets.MLP(2, 16, 1)
    with torch.no_grad():                                           # its last layer begins at zero
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    score = sdediff.from_network(net, "eps", time_input="lam")
    assert float(score(starts(VP, 9), VP.at(0.5)).eps.detach().std()) > 0.01
    m = tune("eab-2", VP, score, nfe=5, shape=(1, 2), trajectories=24, iterations=8, starts=1, dtype=dtype)
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and net.training
    assert m.gain.ratio <= 1 and torch.is_grad_enabled()
    run = run_of("eab-2", {}, steps=5, score=score)
    x, theta = starts(VP, 4), torch.from_numpy(theta_of(run)).requires_grad_()
    plain = lambda x, level: score(x, level)                        # no NetworkScore: nothing is recomputed
    gradients = [torch.autograd.grad(run(theta, x, {}, s).square().mean(), theta)[0] for s in (score, plain)]
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-10)


def test_conditions_go_with_their_samples():
    seen = set()

    class Points(torch.nn.Module):
        """The eps of a point mass at the condition: zero-mean noise of unit variance is left if x came from there."""

        def forward(self, x, c, y):
            level = VP.at(c.double()[:, None])
            if bool((c > 0.999).all()):
                seen.update(y.tolist())
            return (x - level.alpha * y[:, None]) / level.sigma

    y = torch.arange(40.0).double().sort().values
    data = y[:, None].expand(40, 2).contiguous()
    score = sdediff.from_network(Points(), "eps", conditions={"y": y})
    m = tune("eab-2", VP, score, nfe=4, data=data, trajectories=16, iterations=2, starts=1)
    assert m.gain.after < 1e-6                                      # exact on a point mass, each with its own
    assert len(seen) == 40 and max(seen) == 39                      # all rows of sorted data, not the first ones
    with pytest.raises(ValueError, match="conditions"):
        tune("eab-2", VP, score, nfe=4, data=data[:30])


def test_the_reference_does_not_depend_on_the_grid():
    """Out of alpha = 0 the first step of a grid that is coarse in log-SNR would be part of it."""
    flow, x = sdediff.RectifiedFlow(), WhiteNoise(0, (20, 2), dtype=torch.float64).normal()
    ends = [tuning._flow(flow, RING.score, x, grid(flow, 5), 1e-8) for grid in (sdediff.grids.Uniform(), sdediff.grids.LogSNR())]
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.slow
def test_the_interval_of_a_law_covers():
    """The jackknife leaves out trajectories, not quantiles: over fresh sets the ratio's spread lies within its interval."""
    gaussian = sdediff.targets.Gaussian([0.5], 0.25)
    a, b = (run_of("dpm++2m-sde", {}, steps=6, grid=grid, score=gaussian.score) for grid in ("logsnr", "karras"))
    found = []
    for seed in range(16):
        data = gaussian.sample(500, seed=seed, dtype=torch.float64)
        *_, tell = tuning._sets(a, data, None, 16, 10 * seed, torch.float64, None, None)
        found.append(tuning._gain(tell, a, b, b.zero))
    spread = np.std([math.log(g.ratio) for g in found], ddof=1)
    assert np.median([math.log(g.high / g.ratio) for g in found]) > 1.5 * spread


def test_a_network_of_integer_indices_keeps_its_knots():
    class Indexed(torch.nn.Module):
        """The exact eps of the ring, which knows integers alone, as a table of embeddings does."""

        def forward(self, x, c):
            assert c.dtype == torch.int64
            return RING.score(x, CHAIN.at(c.double()[:, None] + 1)).eps

    score = sdediff.from_network(Indexed(), "eps", time_input="index")
    m = tune("eab-2", CHAIN, score, nfe=6, data=DATA, trajectories=48, iterations=30)
    assert all(t == round(t) for t in m.grid.knots) and isinstance(m.solver, NonStationary) and m.gain.ratio < 0.7
    assert torch.isfinite(sdediff.sample(CHAIN, score, shape=(20, 2), method=m, nfe=6, seed=0)).all()
    for wrong in ({"what": "grid"}, {"method": "heun"}, {"method": "dpm++2m-sde", "stochastic": True}):
        with pytest.raises(ValueError, match="index"):
            tune(**({"method": "eab-2", "sde": CHAIN, "score": score, "nfe": 6, "data": DATA} | wrong))


@pytest.mark.parametrize("wrong, words", [
    ({"nfe": 5, "steps": 5}, "give exactly one"), ({}, "give exactly one"), ({"nfe": 0}, "nfe=0"),
    ({"nfe": 5, "data": None}, "data=None, shape=None"), ({"nfe": 5, "shape": (9, 2)}, "give exactly one"),
    ({"nfe": 5, "what": "everything"}, "what='everything'"), ({"nfe": 5, "trajectories": 2}, "trajectories=2"),
    ({"nfe": 5, "iterations": 0}, "iterations=0"), ({"nfe": 5, "starts": 0}, "starts=0"), ({"nfe": 5, "rtol": 0.0}, "rtol=0.0"),
    ({"nfe": 5, "method": "rk45"}, "fixed-step"), ({"nfe": 5, "method": "er-sde-2"}, "fixed-step"), ({"nfe": 5, "method": "eab-9"}, "eab-9"),
    ({"nfe": 5, "method": "auto", "form": "x0"}, "takes none"), ({"nfe": 5, "order": 3}, "order"),
    ({"nfe": 1, "method": "heun"}, "nfe=1"), ({"nfe": 5, "data": DATA[:0]}, "no rows"), ({"nfe": 5, "data": DATA * math.nan}, "NaN"),
    ({"nfe": 5, "method": "mala"}, "density"), ({"nfe": 5, "stochastic": True}, "draws no noise"), ({"nfe": 5, "dtype": torch.int64}, "int64"),
    ({"nfe": 5, "device": "nowhere"}, "nowhere")])
def test_wrong_calls_are_refused_before_the_first_network_call(wrong, words):
    def score(x, level):
        raise AssertionError("the network was called")

    with pytest.raises((ValueError, TypeError), match=words):
        tune(**({"method": "eab-2", "sde": VP, "score": score, "data": DATA} | wrong))


# -- kept ----------------------------------------------------------------------------------------------------------------------
def test_files_bring_back_what_they_were_given(five, tmp_path):
    single = tune("unipc-2", VP, RING.score, nfe=6, data=DATA, trajectories=16, iterations=2, starts=1, what="grid")
    chain = dataclasses.replace(single, calls=7, grid=tuned.Knots((5.0, 1.0, 0.0), (-1.0, 1.0, math.inf)))
    tuned.write(tmp_path / "t.json", {5: five, 6: single, 7: chain})
    assert tuned.read(tmp_path / "t.json") == {5: five, 6: single, 7: chain}
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]
    x = starts(VP, 20)
    by_name = sdediff.sample(VP, RING.score, x_init=x, method="tuned", nfe=5, methods=tmp_path / "t.json")
    assert torch.equal(by_name, sdediff.sample(VP, RING.score, x_init=x, method=five, nfe=5))


def test_of_several_that_fit_the_one_that_spends_most_is_taken(five):
    six = dataclasses.replace(five, calls=6)
    assert tuned.best({6: six, 5: five}, 5) is five and tuned.best({5: five, 6: six}, 6) is six and tuned.best({5: five}, 9) is None
    with pytest.raises(ValueError, match="decreasing"):
        tuned.Knots((1.0, 0.3, 0.6), (-1.0, 0.0, 1.0))


def test_auto_takes_what_was_tuned_and_leaves_it_where_it_cannot_run(five):
    net = dataclasses.replace(sdediff.from_network(nets.MLP(2, 8, 1), "eps"), tuned={5: five})
    x = starts(VP, 3)
    assert "tuned for this score" in sdediff.sample_info(VP, net, x_init=x, nfe=5).explain
    assert "tuned for this score" not in sdediff.sample_info(VP, net, x_init=x, nfe=5, grid="karras").explain
    assert torch.isfinite(sdediff.encode(VP, net, x, method="auto", nfe=5)).all()


def test_a_score_brings_its_tuned_methods(five):
    net = sdediff.from_network(nets.MLP(2, 8, 1), "eps")
    with pytest.raises(ValueError, match="nothing was tuned"):
        sdediff.sample(VP, net, shape=(3, 2), method="tuned", nfe=5)
    net = dataclasses.replace(net, tuned={5: five})
    assert sdediff.sample_info(VP, net, shape=(3, 2), method="tuned", nfe=5, seed=0).nfe == 5
    assert sdediff.sample_info(VP, net, shape=(3, 2), method="tuned", steps=5, seed=0).nfe == 5
    for budget in ({"nfe": 6}, {"steps": 4}):
        with pytest.raises(ValueError, match="methods for nfe=5"):
            sdediff.sample(VP, net, shape=(3, 2), method="tuned", **budget)
    with pytest.raises(ValueError, match="grid of its own"):
        sdediff.sample(VP, net, shape=(3, 2), method="tuned", grid=[1.0, 0.5, 0.001])


def test_a_tuned_method_belongs_to_its_process_its_span_and_its_budget(five):
    for sde in (sdediff.VPSDE(beta_max=15.0), EDM):
        with pytest.raises(ValueError, match="tuned under a process"):
            sdediff.sample(sde, RING.score, shape=(3, 2), method=five, steps=5)
    for wrong, words in (({"nfe": 6}, "tuned for 5 network calls"), ({"steps": 6}, "tuned for 5 steps"), ({"nfe": 5, "t_end": 0.1}, "t_end=0.1"),
                         ({"nfe": 5, "grid": "karras"}, "tuned for the grid")):
        with pytest.raises(ValueError, match=words):
            sdediff.sample(VP, RING.score, shape=(3, 2), method=five, **wrong)


def test_a_budget_that_a_method_cannot_spend_to_the_last_call(tmp_path):
    m = tune("dpm-solver-2", VP, RING.score, nfe=7, data=DATA, trajectories=16, iterations=2, starts=1)
    assert m.calls == 6 and m.fits(7) and m.fits(6) and not m.fits(8) and not m.fits(5)
    tuned.write(tmp_path / "t.json", {m.calls: m})
    for nfe in (6, 7):
        info = sdediff.sample_info(VP, RING.score, shape=(3, 2), method="tuned", methods=tmp_path / "t.json", nfe=nfe, seed=0)
        assert info.nfe == 6
    for wrong in (5, 8):
        with pytest.raises(ValueError, match="tuned for 6"):
            sdediff.sample(VP, RING.score, shape=(3, 2), method=m, nfe=wrong)


def test_files_that_are_none_are_refused_by_name(five, tmp_path):
    path = tmp_path / "t.json"
    tuned.write(path, {5: five})
    whole = json.loads(path.read_text())
    entry = whole["methods"][0]
    broken = [[], {}, whole | {"format": "other"}, whole | {"methods": [{}]},
              whole | {"methods": [entry | {"solver": {"class": "Path"}}]}, whole | {"methods": [entry | {"solver": {"class": "table"}}]},
              whole | {"methods": [entry | {"solver": entry["solver"] | {"b": []}}]}, whole | {"methods": [entry | {"eta": -1}]},
              whole | {"methods": [entry | {"log_snr": entry["log_snr"][:-1]}]}, whole | {"methods": [entry | {"solver": 3}]}]
    for document in broken:
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=r"t\.json: no file of tuned methods"):
            tuned.read(path)
    path.write_text("not json")
    with pytest.raises(ValueError, match=r"t\.json"):
        tuned.read(path)
    with pytest.raises(TypeError, match="eta is a function"):
        tuned.write(path, {5: dataclasses.replace(five, eta=lambda level: 1.0)})


def test_names_that_choose_are_for_runs_alone():
    with pytest.raises(ValueError, match="chosen for a run"):
        method("tuned")
    with pytest.raises(TypeError, match="no such option"):
        sdediff.sample(VP, RING.score, shape=(3, 2), method="tuned", nfe=5, order=2)
