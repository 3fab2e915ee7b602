"""Theorems about solvers: measured orders, identities between families, fixed points, coefficient tables."""
import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sdediff import VPSDE, Prediction, RectifiedFlow, ReverseSDE, grids, iterate, method, random, sample
from sdediff.sampling import count_calls
from sdediff.solvers import DDIM, EULER, HEUN, Chain, EulerMaruyama, Exploded, Exponential, Langevin, Start, TorchSDE, started, table
from sdediff.solvers.exponential import moments, weights
from sdediff.targets import Gaussian
from sdediff.testing import (
    MIDWAY,
    affine_law,
    converge,
    gaussian_problem,
    knot_path,
    mixture_problem,
    overlap_problem,
    strong_convergence,
    weak_convergence,
)

F64 = torch.float64
CHAIN = VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000))

# Every registered method is measured in test_conformance.py; here are the forms that options give.
VARIANTS = {"eab-1 x0": method("eab-1", form="x0"), "eab-2 x0": method("eab-2", form="x0"), "eab-3 x0": method("eab-3", form="x0"),
            "eab-4 x0": method("eab-4", form="x0"), "unipc-1 bh1": method("unipc-1", kernel="bh1"), "unipc-2 bh1": method("unipc-2", kernel="bh1"),
            "unipc-2 eps": method("unipc-2", form="eps"), "unipc-3 eps": method("unipc-3", form="eps"), "deis-2 rho": method("deis-2", variable="rho"),
            "deis-3 rho": method("deis-3", variable="rho"), "euler-maruyama eta=0": method("euler-maruyama", eta=0.0),
            "sde-heun eta=0": method("sde-heun", eta=0.0), "reverse-diffusion eta=0": method("reverse-diffusion", eta=0.0),
            "dpm++2m-sde eta=0": method("dpm++2m-sde", eta=0.0)}


def _finest_bound(order):
    return {1: 1e-1, 2: 2e-3, 3: 2e-4, 4: 2e-5}[order]


@pytest.mark.parametrize("t_start", [1.0, MIDWAY], ids=["from-t-max", "midway"])
@pytest.mark.parametrize("problem", [gaussian_problem, mixture_problem], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_form_of_an_ode_method_meets_its_declared_order(recipe, problem, t_start):
    order = 1 if recipe.name == "reverse-diffusion" else recipe.solver.order
    measured = converge(recipe, problem(), t_start=t_start)
    assert measured.meets(order), measured
    assert measured.errors[-1] < _finest_bound(order), measured


def test_a_multistep_method_of_order_three_needs_its_start_in_mid_trajectory():
    bare = converge(method("eab-3", start=False), gaussian_problem(), t_start=MIDWAY)
    assert 1.85 < bare.order < 2.3, bare                    # the first step of order 1 leaves an error O(h^2)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("name, order", [("euler-maruyama", 1), ("reverse-diffusion", 1), ("sde-heun", 2), ("sra1", 2), ("dpm++2m-sde", 1),
                                         ("dpm++3m-sde", 1), ("dpm++sde", 2), ("seeds-2", 2), ("seeds-3", 2), ("er-sde-2", 1), ("er-sde-3", 1),
                                         ("torchsde-euler", 1)])
def test_weak_order_without_monte_carlo(name, order, eta):
    late = (name, eta) in (("dpm++sde", 1.5), ("er-sde-2", 1.5))        # 200 steps do not show their order yet
    measured = weak_convergence(method(name, eta=eta), steps=(50, 100, 200, 400) if late else (50, 100, 200))
    assert measured.order > order - 0.1, measured
    assert measured.errors[-1] < 0.05 / 100**(order - 1), measured
    assert method(name, eta=eta).solver.weak_order == order


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_weak_order_of_the_ddpm_chain(variance):
    measured = weak_convergence(method("ddpm", variance=variance), steps=(100, 200, 400, 800))
    assert measured.order > 0.9, measured


@functools.cache
def _tree(seed, shape):
    return random.BrownianPath(seed, shape, span=(0.0, 1.0), dtype=F64)


@pytest.mark.slow
@pytest.mark.parametrize("name, order", [("euler-maruyama", 1), ("sde-heun", 1), ("sra1", 1.5), ("reverse-diffusion", 1), ("ddpm", 1)])
def test_strong_order_on_a_shared_brownian_path(name, order):
    """On the dyadic Brownian tree; the catalogue measures every method on a cheaper path (``knot_path``)."""
    measured = strong_convergence(name, overlap_problem(), steps=(128, 256, 512), finest=2048, paths=400, reference="sra1", source=_tree)
    assert abs(measured.order - order) < 0.25, measured


def test_on_a_linear_equation_sra1_has_strong_order_two():
    """What it leaves out is the drift's curvature, f'' g^2: the reason why strong orders are measured on a nonlinear problem."""
    measured = strong_convergence("sra1", gaussian_problem(), steps=(16, 32, 64), finest=256, paths=100, source=lambda seed, shape: knot_path(seed, shape, 256))
    assert 1.85 < measured.order < 2.25, measured


def test_the_black_box_schemes_solve_the_same_equation_path_by_path():
    """Euler-Maruyama, stochastic Heun and SRA1 on 1024 steps of one Brownian path: apart by the strong error of the coarsest."""
    noise, levels = knot_path(3, (50, 2), 1024), VPSDE().levels(grids.LogSNR()(VPSDE(), 1024))
    x = overlap_problem().start(1.0)[:50]
    ends = [list(iterate(ReverseSDE(VPSDE(), overlap_problem().target.score, 1.0), method(name).solver, x, levels, noise))[-1].x
            for name in ("sra1", "sde-heun", "euler-maruyama")]
    assert (ends[0] - ends[1]).square().mean().sqrt() < 2e-3 and (ends[0] - ends[2]).square().mean().sqrt() < 5e-3


# -- identities -----------------------------------------------------------------------------------------------------
def _run(solver, sde, times, x, eta=0.0, score=None, noise=None):
    eq = ReverseSDE(sde, score or mixture_problem().target.score, eta)
    *_, state = iterate(eq, solver, x, sde.levels(times), noise)
    return state.x


def _start(rows=32, d=2):
    return random.WhiteNoise(4, (rows, d), dtype=F64).normal()


@pytest.mark.parametrize("grid", [grids.LogSNR(), grids.Karras(), grids.Uniform()])
def test_ddim_is_the_exponential_euler_step_and_euler_in_the_exploded_chart(grid):
    sde = VPSDE()
    times, x = grid(sde, 17), _start()
    ddim = _run(DDIM(), sde, times, x)
    for other in (Exponential(1, "x0"), Exponential(1, "eps"), Exploded(EULER)):
        assert (ddim - _run(other, sde, times, x)).abs().max() < 1e-12


@pytest.mark.parametrize("steps, spacing", [(1000, "trailing"), (50, "trailing"), (50, "leading"), (37, "linspace")])
def test_the_ddpm_chain_is_the_order_one_sde_solver_at_its_knots(steps, spacing):
    """Ho et al. 2020, eq. 6-7, written out beside the exponential solver at eta = 1."""
    times = grids.DDPM(spacing)(CHAIN, steps)
    x, noise = _start(8), random.WhiteNoise(9, (8, 2), dtype=F64)
    ours = _run(Exponential(1, "x0"), CHAIN, times, x, eta=1.0, noise=noise)
    ddpm = _run(DDIM(1.0), CHAIN, times, x, noise=noise)
    abar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    score = mixture_problem().target.score
    for k, (t, s) in enumerate(zip(times, times[1:])):
        a, b = abar[int(t)], abar[int(s)]
        beta = 1 - a / b
        x0 = score(x, CHAIN.at(t)).x0
        mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
        std = math.sqrt(beta * (1 - b) / (1 - a))
        x = mean + (std * noise.at(k).normal(0) if std else 0.0)
    assert (ours - x).abs().max() < 1e-12 * 100 and (ddpm - x).abs().max() < 1e-12 * 100 and (ours - ddpm).abs().max() < 1e-12


def test_the_beta_variance_differs_from_the_posterior_as_the_paper_says():
    levels = [CHAIN.at(500.0), CHAIN.at(499.0)]
    forms = {v: table(DDIM(1.0, v), CHAIN, levels).states[1] for v in ("posterior", "beta")}
    noise = next(k for k in forms["beta"] if k[0] == "noise")
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    beta = np.linspace(1e-4, 0.02, 1000)[499]
    assert forms["beta"][noise]**2 == pytest.approx(beta, rel=1e-10)
    assert forms["posterior"][noise]**2 == pytest.approx(beta * (1 - abar[498]) / (1 - abar[499]), rel=1e-10)
    assert all(forms["beta"][k] == forms["posterior"][k] for k in forms["beta"] if k != noise)


def test_the_two_slips_of_the_blog_miss_and_the_right_form_does_not():
    """truth.md 2.6: T = 1000, exact network, N(0.5, 0.5^2); the exact law by the affine probe."""
    levels = CHAIN.levels(grids.DDPM()(CHAIN, 1000))
    law = affine_law(method("ddpm", variance="beta"), CHAIN, levels, mean=0.5, variance=0.25)
    assert abs(law.mean - 0.5) < 1e-3 and abs(math.sqrt(law.variance) / 0.5 - 1) < 0.01
    # the recursion of the mean and variance with 1/alpha_t in place of 1/sqrt(alpha_t), and with 1 - abar for its root
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas, abar = 1 - betas, np.cumprod(1 - betas)
    for power, noise_std in ((1.0, np.sqrt(1 - abar)), (0.5, 1 - abar)):
        mean, variance = 0.0, 1.0
        for i in range(999, -1, -1):
            total = abar[i] * 0.25 + noise_std[i]**2
            gain = noise_std[i] / total                                      # eps = gain (x - sqrt(abar) m)
            c = betas[i] / math.sqrt(1 - abar[i])
            mean = (mean - c * gain * (mean - math.sqrt(abar[i]) * 0.5)) / alphas[i]**power
            variance = variance * ((1 - c * gain) / alphas[i]**power)**2 + (betas[i] if i else 0.0)
        assert abs(math.sqrt(variance) / 0.5 - 1) > 0.25


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_songs_eta_and_the_continuous_eta_meet_at_zero_and_one_only(eta):
    sde = VPSDE()
    levels = sde.levels([0.8, 0.5])
    ours, song = (table(s, sde, levels, eta=e).states[1] for s, e in ((Exponential(1), eta), (DDIM(eta), 0.0)))
    gap = max(abs(ours.get(k, 0.0) - song.get(k, 0.0)) for k in ours | song)
    assert gap < 1e-12 if eta in (0.0, 1.0) else gap > 1e-3
    h = levels[1].lam - levels[0].lam
    for form, variance in ((ours, -math.expm1(-2 * eta**2 * h)), (song, -eta**2 * math.expm1(-2 * h))):
        assert sum(v**2 for k, v in form.items() if k[0] == "noise") == pytest.approx(levels[1].sigma**2 * variance, abs=1e-15)


def test_a_point_mass_is_returned_by_ddim_in_any_number_of_steps():
    point = torch.tensor([0.7, -0.3], dtype=F64)
    score = lambda x, level: Prediction(x, level, x0=point.expand_as(x))
    for steps in (1, 2, 9):
        out = _run(DDIM(), VPSDE(), grids.LogSNR()(VPSDE(), steps, t_end=0.0) if steps > 1 else [1.0, 0.0], _start(), score=score)
        assert (out - point).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_coarse_equals_fine_in_the_equations_own_clock_on_a_point_target(eta):
    sde, point = VPSDE(), torch.tensor([0.7, -0.3], dtype=F64)
    score = lambda x, level: Prediction(x, level, x0=point.expand_as(x))
    x, clock = _start(8), random.quadratic_variation(eta)
    path = random.BrownianPath(2, (8, 2), span=(0.0, clock(sde.at(1e-3))), clock=clock, dtype=F64)
    fine = grids.LogSNR()(sde, 64)
    coarse = [_run(Exponential(1), sde, fine[::stride], x, eta=eta, score=score, noise=path) for stride in (1, 4, 32)]
    assert max((c - coarse[0]).abs().max() for c in coarse) < 1e-12


@pytest.mark.parametrize("predicts", ["x0", "eps", "v", "score", "velocity"])
def test_models_in_every_parameterisation_give_the_same_path(predicts):
    exact = mixture_problem().target.score
    score = lambda x, level: Prediction(x, level, **{predicts: getattr(exact(x, level), predicts)})
    for name in ("dpm++2m", "eab-3", "heun", "euler-maruyama"):
        a, b = (sample(VPSDE(), s, x_init=_start(), method=name, steps=12, seed=1) for s in (exact, score))
        assert (a - b).abs().max() < 1e-10


def test_torchsde_on_our_noise_is_our_euler_maruyama():
    a, b = (_run(s, VPSDE(), grids.Uniform()(VPSDE(), 20), _start(), eta=1.0, noise=random.WhiteNoise(1, (32, 2), dtype=F64))
            for s in (EulerMaruyama(), TorchSDE()))
    assert (a - b).abs().max() < 1e-12


def test_scipy_returns_the_exact_flow():
    problem = gaussian_problem()
    x = sample(problem.sde, problem.target.score, x_init=problem.start(1.0), method="scipy-rk45", steps=2, rtol=1e-9, atol=1e-9)
    assert (x - problem.solution(1.0, 1e-3)).abs().max() < 1e-6


# -- weights --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("z", [1e-12, 1e-6, 1e-2, 0.5, 0.999, 1.0, 3.0, 30.0, -1e-3, -0.7, -2.0, -8.0])
def test_moments_of_the_kernel(z):
    for k, m in enumerate(moments(z, 4)):
        exact = quad(lambda v, k=k: z * math.exp(-z * (1 - v)) * v**k, 0, 1, epsabs=0, epsrel=1e-13)[0]
        assert m == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("q", [1.0, 2.0, 3.25])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.3], [0.0, -0.1, -0.5], [0.0, -0.2, -0.25, -0.8]])
def test_weights_integrate_polynomials_exactly(nodes, q):
    h = 0.37
    w = weights(nodes, h, q)
    assert sum(w) == pytest.approx(-math.expm1(-q * h), rel=1e-13)
    for k in range(len(nodes)):
        exact = quad(lambda u, k=k: q * math.exp(-q * (h - u)) * u**k, 0, h, epsabs=0, epsrel=1e-13)[0]
        assert sum(w_j * u**k for w_j, u in zip(w, nodes)) == pytest.approx(exact, rel=1e-11, abs=1e-16)


# -- tables ---------------------------------------------------------------------------------------------------------
LINEAR = [method(n) for n in ("euler-maruyama", "reverse-diffusion", "sde-heun", "euler", "heun", "rk4", "ddim", "ddpm", "dpm++2m", "dpm++2m-sde",
                              "eab-3", "eab-4", "pc")]


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("recipe", LINEAR, ids=lambda m: m.name)
def test_the_table_replayed_equals_the_readable_run(recipe, predicts):
    sde, exact = VPSDE(), mixture_problem().target.score
    levels, x, noise = sde.levels(recipe.default_grid(sde)(sde, 7)), _start(5), random.WhiteNoise(3, (5, 2), dtype=F64)
    score = lambda x, level: Prediction(x, level, **{predicts: getattr(exact(x, level), predicts)})
    run = [s.x for s in iterate(ReverseSDE(sde, score, recipe.eta), recipe.solver, x, levels, noise)]
    coefficients, outputs = table(recipe.solver, sde, levels, eta=recipe.eta, predicts=predicts), []

    def value(form):
        total = torch.zeros_like(x)
        for term, c in form.items():
            if term[0] == "noise":
                source = noise
                for step in term[1]:
                    source = source.at(step).within()
                total = total + c * source.at(term[2]).normal(term[3])
            else:
                total = total + c * (x if term[0] == "x" else outputs[term[1]])
        return total

    for form, level in zip(coefficients.inputs, coefficients.levels):
        outputs.append(getattr(exact(value(form), level), predicts))
    assert len(outputs) == count_calls(recipe, sde, [m.t for m in levels])
    for form, state in zip(coefficients.states, run):
        assert (value(form) - state).abs().max() < 1e-11


def test_nonlinear_solvers_have_no_table():
    levels = VPSDE().levels([0.9, 0.5, 0.1])
    for solver in (Chain(EulerMaruyama(), Langevin(rule="norm")), method("scipy-rk45").solver, TorchSDE()):
        with pytest.raises(TypeError, match="table"):
            table(solver, VPSDE(), levels, eta=0.0 if solver.noise == "never" else 1.0)


# -- correctors -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("snr", [0.05, 0.16, 0.4])
def test_the_langevin_fixed_point(snr):
    """On N(0, v): v / (1 - h/(2 v)) with h = 2 (snr sigma)^2, by the affine recursion."""
    sde, v = VPSDE(), 0.3
    level = sde.at(0.4)
    total = level.alpha**2 * v + level.sigma**2
    form = table(Langevin(snr), sde, [level, level], predicts="score").states[1]
    noise = sum(c**2 for k, c in form.items() if k[0] == "noise")
    gain = form["x",] - form["D", 0] / total
    h = 2 * (snr * level.sigma)**2
    assert noise / (1 - gain**2) == pytest.approx(total / (1 - h / (2 * total)), rel=1e-12)


def test_songs_norm_rule_reaches_its_fixed_point_in_many_dimensions():
    """Variance v (1 + r^2) for large d (truth.md 2.10)."""
    d, r, sde = 3072, 0.16, VPSDE()
    level = sde.at(0.5)
    score = lambda x, m: Prediction(x, m, score=-x)
    x = random.WhiteNoise(0, (64, d), dtype=F64).normal()
    state = Langevin(r, 60, "norm").step(ReverseSDE(sde, score), type(next(iterate(ReverseSDE(sde, score), DDIM(), x, [level])))(x), level, level,
                                         random.WhiteNoise(1, (64, d), dtype=F64))
    assert state.x.var().item() == pytest.approx(1 + r**2, abs=0.003 + 3 * math.sqrt(2 / (64 * d)))


def test_a_corrector_leaves_the_exact_marginal_nearly_invariant_and_the_clean_level_alone():
    problem = mixture_problem()
    level, n = problem.sde.at(0.3), 20_000
    x0 = problem.target.sample(n, seed=1, dtype=F64)
    x = level.alpha * x0 + level.sigma * random.WhiteNoise(2, (n, 2), dtype=F64).normal()
    eq = ReverseSDE(problem.sde, problem.target.score)
    start = next(iterate(eq, DDIM(), x, [level]))
    out = Langevin(0.05, 50).step(eq, start, level, level, random.WhiteNoise(3, (n, 2), dtype=F64)).x
    for a, b in ((out.mean(0), x.mean(0)), (out.var(0), x.var(0))):
        assert (a - b).abs().max() < 5 * x.var(0).max() * math.sqrt(4 / n) + 0.01
    clean = problem.sde.at(0.0)
    assert Langevin().step(eq, start, clean, clean, None) is start


# -- edges ----------------------------------------------------------------------------------------------------------
FLOW_TARGET = Gaussian(torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=F64))


@pytest.mark.parametrize("sde", [RectifiedFlow(), RectifiedFlow(t_min=0.0), VPSDE.from_betas([*np.linspace(2e-4, 0.2, 100), 1.0])], ids=["flow", "flow0", "zero-snr"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++2m", "dpm++2m-sde", "eab-3", "euler", "heun", "rk4"])
@pytest.mark.parametrize("predicts", ["x0", "v", "velocity"])
def test_alpha_zero_at_the_start_and_sigma_zero_at_the_end(sde, name, predicts):
    score = lambda x, level: Prediction(x, level, **{predicts: getattr(FLOW_TARGET.score(x, level), predicts)})
    x = sample(sde, score, shape=(4000, 2), method=name, steps=sde.knots or 60, seed=0, dtype=F64)
    assert torch.isfinite(x).all()
    assert (x.mean(0) - FLOW_TARGET.mean).abs().max() < 0.06
    assert (x.var(0) - torch.diagonal(FLOW_TARGET.cov)).abs().max() < 0.06


def test_eps_prediction_is_refused_where_alpha_is_zero():
    score = lambda x, level: Prediction(x, level, eps=x)
    with pytest.raises(ValueError, match=r"alpha = 0.*x0, v or velocity"):
        sample(RectifiedFlow(), score, shape=(2, 2), method="ddim", steps=3, seed=0)
    with pytest.raises(ValueError, match=r"t=1: alpha = 0.*t_start"):
        sample(RectifiedFlow(), FLOW_TARGET.score, shape=(2, 2), method="euler-maruyama", steps=3, seed=0)
    out = sample(RectifiedFlow(), FLOW_TARGET.score, shape=(2, 2), method="euler-maruyama", steps=3, seed=0, t_start=0.99)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("eta", [0.2, 0.5, 0.8, 1.0])
def test_every_eta_between_the_ode_and_the_sde_has_the_same_limit(eta):
    for name in ("euler-maruyama", "dpm++2m-sde"):
        law = affine_law(method(name, eta=eta), VPSDE(), VPSDE().levels(grids.LogSNR()(VPSDE(), 800)))
        assert law.w2 < 2e-3, (name, law)


def test_no_noise_is_added_on_a_last_step_into_the_clean_level():
    for recipe in (method("ddpm"), method("ddpm", variance="beta"), method("ddim", eta=0.5), method("dpm++2m-sde"), method("eab-2", eta=1.0)):
        last = table(recipe.solver, CHAIN, CHAIN.levels([2.0, 1.0, 0.0]), eta=recipe.eta)
        assert not [v for k, v in last.states[2].items() if k[0] == "noise" and k[2] == 1 and v]


@pytest.mark.parametrize("solver, eta", [(HEUN, 1.0), (Exploded(HEUN), 0.5), (DDIM(0.5), 0.3), (method("scipy-rk45").solver, 1.0)])
def test_a_solver_refuses_an_equation_that_it_cannot_integrate(solver, eta):
    eq = ReverseSDE(VPSDE(), mixture_problem().target.score, eta)
    with pytest.raises(ValueError, match="eta="):
        next(iterate(eq, solver, _start(), VPSDE().levels([0.9, 0.5]), random.WhiteNoise(0, (32, 2))))


def test_a_stochastic_run_without_noise_is_refused():
    with pytest.raises(ValueError, match="noise=None"):
        next(iterate(ReverseSDE(VPSDE(), mixture_problem().target.score, 1.0), EulerMaruyama(), _start(), VPSDE().levels([0.9, 0.5])))


def test_started_adds_a_start_only_where_the_order_demands_it():
    assert [isinstance(started(Exponential(p)), Start) for p in (1, 2, 3, 4)] == [False, False, True, True]
    extra = {p: count_calls(method(f"eab-{p}"), VPSDE(), grids.LogSNR()(VPSDE(), 24)) - 24 for p in (1, 2, 3, 4)}
    assert extra == {1: 0, 2: 0, 3: 1, 4: 4}
