"""Identities inside and between the solver families, exactness of the optimal covariance, invariance under MALA."""
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.linalg import expm

from sdediff import VESDE, VPSDE, Prediction, ReverseSDE, grids, iterate, method, random, sample
from sdediff.solvers import (
    DDIM,
    EULER,
    IPNDM,
    AdamsBashforth,
    Ancestral,
    Exploded,
    Exponential,
    Langevin,
    PredictorCorrector,
    Rosenbrock,
    SingleStep,
    State,
    analytic_variance,
    dpm_solver,
    table,
    unipc,
)
from sdediff.solvers.multistep import lagrange_integrals
from sdediff.solvers.rosenbrock import exponential_action
from sdediff.testing import affine_law, converge, gaussian_problem, mixture_problem

F64 = torch.float64
SDE = VPSDE()
SCORE = mixture_problem().target.score


def _run(solver, times, x, noise=None, eta=0.0, sde=SDE, score=SCORE):
    *_, state = iterate(ReverseSDE(sde, score, eta), solver, x, sde.levels(times), noise)
    return state.x


def _start(rows=16, d=2):
    return random.WhiteNoise(4, (rows, d), dtype=F64).normal()


@pytest.mark.parametrize("solver", [dpm_solver(1), dpm_solver(1, "x0"), Exponential(1), Exponential(1, "eps"), AdamsBashforth(1), AdamsBashforth(1, "t"),
                                    Exploded(EULER)], ids=repr)
def test_order_one_of_every_family_is_ddim(solver):
    times = grids.Karras()(SDE, 9)
    assert (_run(solver, times, _start()) - _run(DDIM(), times, _start())).abs().max() < 1e-12


@pytest.mark.parametrize("solver", [AdamsBashforth(4), AdamsBashforth(3, "t"), Exponential(4), Exponential(3, "eps"), IPNDM(), unipc(3)], ids=repr)
def test_the_first_step_of_a_multistep_method_is_ddim_or_its_corrected_form(solver):
    times = [0.8, 0.6]
    step, ddim = _run(solver, times, _start()), _run(DDIM(), times, _start())
    gap = (step - ddim).abs().max()
    assert gap < 1e-12 if not isinstance(solver, PredictorCorrector) else 1e-6 < gap < 0.1


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("grid", [grids.LogSNR(), grids.Quadratic()])
def test_ancestral_sampling_by_ddim_is_songs_ddim_eta(eta, grid):
    times, noise = grid(SDE, 12, t_end=0.0), random.WhiteNoise(1, (16, 2), dtype=F64)
    for inner in (DDIM(), Exploded(EULER), dpm_solver(1)):
        a, b = (_run(s, times, _start(), noise) for s in (Ancestral(inner, eta), DDIM(eta)))
        assert (a - b).abs().max() < 1e-11


def test_ancestral_at_eta_zero_is_its_inner_solver():
    times = grids.LogSNR()(SDE, 8)
    inner = method("edm-heun").solver
    assert (_run(Ancestral(inner, 0.0), times, _start(), random.WhiteNoise(0, (16, 2))) - _run(inner, times, _start())).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["dpm++2m", "ab-2", "unipc-2", "eab-3", "ipndm", "ddpm", "deis-2"])
def test_ancestral_refuses_a_solver_with_memory_or_noise(name):
    with pytest.raises(ValueError, match="one-step solver"):
        method("ancestral", inner=name)


def test_a_multistep_step_inside_an_ancestral_loop_would_spoil_the_variance():
    """What the refusal guards against: re-noising by hand around DPM-Solver++ 2M."""
    levels = SDE.levels(grids.LogSNR()(SDE, 60))

    class Naive(Ancestral):
        def __post_init__(self):
            pass

        def step(self, eq, state, t, s, noise):
            share = -math.expm1(2 * (t.lam - s.lam))
            middle = eq.sde.level_of(s.lam - 0.5 * math.log1p(-share))
            inner = self.inner.step(eq, state, t, middle, noise)
            return State(s.alpha / middle.alpha * inner.x + s.sigma * math.sqrt(share) * noise.unit(t, s), inner.memory)

    from sdediff import Method
    good, bad = (affine_law(Method("", s), SDE, levels) for s in (Ancestral(Exploded(EULER)), Naive(Exponential(2))))
    assert bad.variance / bad.exact_variance > 1.2 > 1.1 > good.variance / good.exact_variance


# -- the published third order, and equal-step coefficients ------------------------------------------------------------
def test_the_published_third_order_multistep_converges_at_order_two():
    published, ours = (converge(method(n), mixture_problem()) for n in ("dpm++3m-published", "dpm++3m"))
    assert 1.9 < published.order < 2.35 and ours.order > 2.7
    assert published.errors[-1] > 5 * ours.errors[-1]


def test_ipndm_has_order_four_on_equal_steps_in_kappa_and_two_elsewhere():
    class EqualKappa(grids.Grid):
        def times(self, sde, steps, start, end):
            a, b = (math.exp(-sde.at(t).lam) for t in (start, end))
            return [start, *sde.time_of(-torch.linspace(a, b, steps + 1, dtype=F64).log())[1:-1].tolist(), end]

    times = EqualKappa()(SDE, 7, 0.5, 0.1)
    ab4, ipndm = (table(s, SDE, SDE.levels(times)).states[-1] for s in (AdamsBashforth(4), IPNDM()))
    assert max(abs(ab4[k] - ipndm[k]) for k in ab4) < 1e-12
    assert 1.8 < converge(method("ipndm"), mixture_problem()).order < 2.3


@pytest.mark.parametrize("nodes", [[0.9], [0.9, 1.0], [0.7, 0.85, 1.0]])
def test_t_deis_weights_against_quadrature(nodes):
    t, s = SDE.at(nodes[0]), SDE.at(0.4)
    levels = [SDE.at(u) for u in nodes]
    w = AdamsBashforth(3, "t").weights(ReverseSDE(SDE, SCORE), levels, t, s)
    kappa_slope = lambda u: SDE.at(u).g2 / (2 * SDE.at(u).sigma * SDE.at(u).alpha)        # d(kappa)/dt
    for j, value in enumerate(w):
        basis = lambda u, j=j: math.prod((u - n) / (nodes[j] - n) for i, n in enumerate(nodes) if i != j)
        assert value == pytest.approx(quad(lambda u, basis=basis: basis(u) * kappa_slope(u), nodes[0], 0.4, epsabs=0, epsrel=1e-13)[0], rel=1e-11)
    assert lagrange_integrals([0.0, 1.0], lambda y: y, 0.0, 2.0) == pytest.approx([0.0, 2.0])


def test_single_step_methods_take_their_papers_formulas():
    """DPM-Solver-2 and -3 (Lu et al. 2022a, Alg. 1-2) and DPM-Solver++ 2S (2022b, Alg. 1), written out on one step."""
    t, s = SDE.at(0.7), SDE.at(0.4)
    x, h = _start(), s.lam - t.lam
    eps = lambda y, m: SCORE(y, m).eps
    at = lambda r: SDE.level_of(t.lam + r * h)
    e0, m = eps(x, t), at(0.5)
    u = m.alpha / t.alpha * x - m.sigma * math.expm1(h / 2) * e0
    second = s.alpha / t.alpha * x - s.sigma * math.expm1(h) * eps(u, m)
    d0 = SCORE(x, t).x0
    v = m.sigma / t.sigma * x - m.alpha * math.expm1(-h / 2) * d0
    plus = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * SCORE(v, m).x0
    m1, m2, (r1, r2) = at(1 / 3), at(2 / 3), (1 / 3, 2 / 3)
    u1 = m1.alpha / t.alpha * x - m1.sigma * math.expm1(r1 * h) * e0
    d1 = eps(u1, m1) - e0
    u2 = m2.alpha / t.alpha * x - m2.sigma * math.expm1(r2 * h) * e0 - m2.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    third = s.alpha / t.alpha * x - s.sigma * math.expm1(h) * e0 - s.sigma / r2 * (math.expm1(h) / h - 1) * (eps(u2, m2) - e0)
    for name, exact in (("dpm-solver-2", second), ("dpm++2s", plus), ("dpm-solver-3", third)):
        assert isinstance(method(name).solver, SingleStep)
        assert (_run(method(name).solver, [0.7, 0.4], x) - exact).abs().max() < 1e-12


def test_the_augmented_exponential_is_the_sum_of_phi_functions():
    """Against scipy's matrix exponential and the recurrence phi_{k+1}(A) = A^{-1} (phi_k(A) - I/k!)."""
    a = 0.7 * random.WhiteNoise(1, (2, 3, 3), dtype=F64).normal()
    y, *b = (random.WhiteNoise(k, (2, 3), dtype=F64).normal() for k in range(2, 6))
    for i in range(2):
        phi, total = expm(a[i].numpy()), expm(a[i].numpy()) @ y[i].numpy()
        for k, b_k in enumerate(b):
            phi = np.linalg.solve(a[i].numpy(), phi - np.eye(3) / math.factorial(k))
            total = total + phi @ b_k[i].numpy()
        assert np.abs(exponential_action(a, y, b)[i].numpy() - total).max() < 1e-10


def test_rosenbrock_is_exact_where_the_model_is_linear_in_x_with_a_constant_jacobian():
    """eps = J y + c(kappa) with c a polynomial of degree below the order: one step from remembered exact values is exact."""
    j = torch.tensor([[-0.3, 0.1], [0.05, -0.2]], dtype=F64)
    score = lambda x, level: Prediction(x, level, eps=(x / level.alpha) @ j.T + torch.tensor([1.0, -2.0], dtype=F64))
    from scipy.integrate import solve_ivp
    times, x = [0.5, 0.4], _start(3)
    out = _run(Rosenbrock(1), times, x, score=score)
    kappa = [SDE.at(t).sigma / SDE.at(t).alpha for t in times]
    for row, exact in zip(x, out):
        y = solve_ivp(lambda k, y: j.numpy() @ y + np.array([1.0, -2.0]), kappa, row.numpy() / SDE.at(0.5).alpha, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        assert np.abs(y * SDE.at(0.4).alpha - exact.numpy()).max() < 1e-10


# -- the optimal reverse covariance -------------------------------------------------------------------------------------
class _Impulses(random.Noise):
    """One unit noise per coordinate, draw and row; see sdediff.testing for the one-dimensional form."""

    def __init__(self, rows, d, seen=None, step=0):
        self.rows, self.d, self.seen, self.step = rows, d, {} if seen is None else seen, step

    def at(self, step):
        return _Impulses(self.rows, self.d, self.seen, step)

    def within(self):
        return self

    def normal(self, use=1):
        j = self.seen.setdefault((self.step, use), len(self.seen))
        z = torch.zeros(max(self.rows, 1), self.d, dtype=F64)
        if self.rows:
            z[1 + self.d * (j + 1):1 + self.d * (j + 2)] = torch.eye(self.d, dtype=F64)
        return z


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("t_end", [0.0, 1e-3])
def test_ddpm_with_the_optimal_covariance_is_exact_for_gaussian_data(steps, t_end):
    problem = gaussian_problem()
    levels = SDE.levels(grids.Uniform()(SDE, steps, t_end=t_end))
    eq, solver, d = ReverseSDE(SDE, problem.target.score), DDIM(1.0, "optimal"), 3
    probe = _Impulses(0, d)
    for _ in iterate(eq, solver, torch.zeros(1, d, dtype=F64), levels, probe):
        continue
    rows = 1 + d + d * len(probe.seen)
    x = torch.zeros(rows, d, dtype=F64)
    x[1:1 + d] = torch.eye(d, dtype=F64)
    *_, state = iterate(eq, solver, x, levels, _Impulses(rows, d))
    response = state.x[1:] - state.x[0]
    gain, noise = response[:d].T, response[d:].T
    cov, mean = problem.target.cov, problem.target.mean
    law = lambda m: (m.alpha * mean, m.alpha**2 * cov + m.sigma**2 * torch.eye(d, dtype=F64))
    (mean_in, cov_in), (mean_out, cov_out) = law(levels[0]), law(levels[-1])
    assert (state.x[0] + gain @ mean_in - mean_out).abs().max() < 1e-10
    assert (gain @ cov_in @ gain.T + noise @ noise.T - cov_out).abs().max() < 1e-10


@pytest.mark.parametrize("variance, exact", [("posterior", False), ("beta", False), ("analytic", True)])
def test_the_bias_of_the_ddpm_variances_on_scalar_gaussian_data(variance, exact):
    """truth.md 2.6: relative error of the standard deviation at T = 100, c = 0.5: -6.4 %, +1.5 %, 0."""
    chain = VPSDE.from_betas(np.linspace(1e-4, 0.02, 100) * 10)
    optimum = lambda m: 0.25 * m.sigma**2 / (0.25 * m.alpha**2 + m.sigma**2)
    law = affine_law(method("ddpm", variance=optimum if variance == "analytic" else variance), chain, chain.levels(grids.DDPM()(chain, 100)))
    bias = math.sqrt(law.variance / law.exact_variance) - 1
    assert abs(bias) < 1e-10 if exact else bias == pytest.approx({"posterior": -0.064, "beta": 0.015}[variance], abs=1e-3)


def test_analytic_variance_estimates_the_posterior_variance_from_data():
    problem = mixture_problem()
    data = problem.target.sample(20_000, seed=1, dtype=F64)
    estimate = analytic_variance(SDE, problem.target.score, data)
    for t in (0.1, 0.4, 0.8):
        level = SDE.at(t)
        x = level.alpha * data + level.sigma * random.WhiteNoise(7, data.shape, dtype=F64).normal()
        _, cov = problem.target.posterior(x[:4000], level)
        assert estimate(level) == pytest.approx(float(torch.diagonal(cov, dim1=1, dim2=2).mean()), rel=0.05)


# -- Langevin, MALA, SMLD -------------------------------------------------------------------------------------------------
def test_mala_leaves_the_exact_marginal_invariant_where_ula_does_not():
    """A large step on N(0, v): ULA's stationary variance v/(1 - h/(2v)) is far off, MALA's is v."""
    problem, n = gaussian_problem(), 4000
    level, target = SDE.at(0.3), problem.target
    x0 = target.sample(n, seed=1, dtype=F64)
    x = level.alpha * x0 + level.sigma * random.WhiteNoise(2, (n, 3), dtype=F64).normal()
    eq, exact = ReverseSDE(SDE, target.score), level.alpha**2 * target.cov + level.sigma**2 * torch.eye(3, dtype=F64)
    out = {}
    for name, density in (("mala", target.log_prob), ("ula", None)):
        out[name] = Langevin(0.6, 100, density=density).step(eq, State(x), level, level, random.WhiteNoise(3, (n, 3), dtype=F64)).x
    u = torch.linalg.eigh(exact).eigenvectors
    ratio = {k: ((v - level.alpha * target.mean) @ u).var(0) / torch.linalg.eigvalsh(exact) for k, v in out.items()}
    z = (ratio["mala"] - 1) / math.sqrt(2 / n)
    assert z.abs().max() < 5 and (ratio["ula"] - 1).max() > 0.3
    assert 0.2 < float((out["mala"] != x).any(1).double().mean()) <= 1.0
    for i in range(3):
        w = ((out["mala"] - level.alpha * target.mean) @ u)[:, i] / torch.linalg.eigvalsh(exact)[i].sqrt()
        assert stats.kstest(w.numpy(), "norm").pvalue > 1e-5


def test_mala_samples_the_mixture_and_needs_its_density():
    problem = mixture_problem()
    x = sample(SDE, problem.target.score, shape=(2000, 2), method="mala", density=problem.target.log_prob, steps=30, steps_per_level=20, seed=0,
               dtype=F64)
    exact = problem.target.sample(20_000, seed=5, dtype=F64)
    assert ((x.mean(0) - exact.mean(0)).abs() < 0.15).all() and ((x.var(0) / exact.var(0) - 1).abs() < 0.2).all()
    y = sample(SDE, problem.target.score, shape=(200, 2), method="pc", corrector="mala", density=problem.target.log_prob, steps=20, seed=0)
    assert torch.isfinite(y).all()
    for call in (lambda: method("mala"), lambda: method("pc", corrector="mala"), lambda: method("pc", density=problem.target.log_prob)):
        with pytest.raises(ValueError, match="density"):
            call()


def test_annealed_langevin_on_a_sigma_ladder_is_ncsns_algorithm():
    """Song & Ermon 2019, Alg. 1: x <- x + a_i/2 s + sqrt(a_i) z with a_i = eps sigma_i^2/sigma_L^2, T steps on every level."""
    ladder = VESDE.from_sigmas(np.geomspace(1.0, 0.01, 10))
    eps, sigma_last, steps = 2e-5, 0.01, 3
    recipe = method("annealed-langevin", snr=math.sqrt(eps) / (2 * sigma_last), steps_per_level=steps)
    x, noise = _start(), random.WhiteNoise(5, (16, 2), dtype=F64)
    times = grids.DDPM()(ladder, 10)[:-1]
    ours = _run(recipe.solver, times, x, noise, sde=ladder)
    for i, t in enumerate(times[1:]):
        level = ladder.at(t)
        a = eps * level.sigma**2 / sigma_last**2
        for k in range(steps):
            x = x + a / 2 * SCORE(x, level).score + math.sqrt(a) * noise.at(i).within().at(k).normal(3)
    assert (ours - x).abs().max() < 1e-10


def test_every_memory_is_declared():
    for solver, remembered in ((Exponential(3), 2), (unipc(2), 2), (AdamsBashforth(4), 3), (IPNDM(), 3), (DDIM(), 0), (Rosenbrock(3), 2), (dpm_solver(3), 0), (method("eab-3").solver, 2)):
        assert solver.remembers == remembered
        states = list(iterate(ReverseSDE(SDE, SCORE), solver, _start(), SDE.levels(grids.LogSNR()(SDE, 24))))
        assert len(states[-1].memory) == remembered
