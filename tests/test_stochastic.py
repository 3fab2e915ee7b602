"""Stochastic exponential solvers and re-noising samplers: without noise they are their ODE solvers to the bit, in their own clock coarse
steps are fine ones, and the law that exact transitions carry has the order of the inner solver."""
import dataclasses
import math

import pytest
import torch

import sdediff
from sdediff import EDMSDE, VESDE, VPSDE, Method, Prediction, ReverseSDE, grids, iterate, method, random, sample, sample_info
from sdediff.solvers import (
    DDIM,
    ERSDE,
    EULER,
    HEUN,
    Ancestral,
    Churn,
    Exploded,
    Exponential,
    Interval,
    PredictorCorrector,
    Restart,
    SingleStep,
    State,
    dpm_solver,
    extended_eta,
    table,
    unipc,
)
from sdediff.testing import TWINS, affine_law, affine_laws, converge, knot_path, mixture_problem, overlap_problem, strong_convergence

F64 = torch.float64
VP = VPSDE()
SCORE = mixture_problem().target.score
TIMES = grids.LogSNR()(VP, 12)


def _run(method, x, times=TIMES, sde=VP, score=SCORE, seed=0, noise=None):
    *_, state = iterate(ReverseSDE(sde, score, method.eta), method.solver, x, sde.levels(times),
                        noise or random.WhiteNoise(seed, tuple(x.shape), dtype=F64))
    return state.x


def _start(rows=16, d=2, seed=4):
    return random.WhiteNoise(seed, (rows, d), dtype=F64).normal()


# -- without noise ----------------------------------------------------------------------------------------------------
SILENT = [("seeds-2", {"eta": 0.0}, "dpm-solver-2"), ("seeds-3", {"eta": 0.0}, "dpm-solver-3"), ("dpm++sde", {"eta": 0.0}, "dpm++2s"),
          ("dpm++2m-sde", {"eta": 0.0}, "dpm++2m"), ("dpm++3m-sde", {"eta": 0.0}, "dpm++3m"),
          ("sa-solver", {"tau": 0.0, "kernel": "bh2"}, "unipc-2"), ("sa-solver", {"tau": 0.0, "predictor": 3, "corrector": 0}, "dpm++3m"),
          ("euler-ancestral", {"eta": 0.0}, Method("", Exploded(EULER))), ("dpm2-ancestral", {"eta": 0.0}, "dpm-solver-2"),
          ("dpm++2s-ancestral", {"eta": 0.0}, "dpm++2s"), ("edm-stochastic", {"S_churn": 0.0}, "edm-heun"),
          ("edm-stochastic", {"S_tmin": 200.0, "S_tmax": 300.0}, "edm-heun"), ("restart", {"intervals": [(0.06, 0.3, 0)]}, "edm-heun"),
          ("restart", {"intervals": ()}, "edm-heun")]


@pytest.mark.parametrize("name, options, ode", SILENT, ids=[f"{n}-{list(o)}" for n, o, _ in SILENT])
def test_without_noise_each_is_its_ode_solver_to_the_bit(name, options, ode):
    assert torch.equal(_run(method(name, **options), _start()), _run(method(ode), _start()))


@pytest.mark.parametrize("name, options", [("edm-stochastic", {"S_churn": 0.0}), ("euler-ancestral", {"eta": 0.0}), ("sa-solver", {"tau": 0.0}),
                                           ("restart", {"intervals": ()}), ("er-sde-3", {"eta": 0.0})])
def test_without_noise_nothing_is_drawn_and_the_run_can_be_reversed(name, options):
    m = method(name, **options)
    assert m.solver.noise != "always" and m.eta == 0
    x = mixture_problem().target.sample(8, seed=1, dtype=F64)

    def missed(steps):
        z = sdediff.encode(VP, SCORE, x, method=m, steps=steps, grid="logsnr")
        return float((sample(VP, SCORE, x_init=z, method=m, steps=steps, grid="logsnr") - x).square().mean().sqrt())

    coarse, fine = missed(100), missed(200)
    assert fine < 0.6 * coarse < 0.03                                       # of first order at least


# -- one family, several names ----------------------------------------------------------------------------------------
def test_sa_solver_and_unipc_are_one_class():
    assert unipc(3) == PredictorCorrector(3, 4, "bh2", "x0")
    assert method("sa-solver", predictor=3, corrector=4, tau=0.0).solver.multistep == PredictorCorrector(3, 4)


@pytest.mark.parametrize("predictor, corrector, order", [(1, 1, 1), (1, 2, 2), (2, 3, 3), (3, 2, 2), (2, 4, 3), (4, 5, 5)])
def test_the_order_of_a_predictor_with_a_corrector(predictor, corrector, order):
    m = method("sa-solver", predictor=predictor, corrector=corrector, tau=0.0)
    assert m.solver.order == order
    assert converge(m, mixture_problem()).order > order - (0.15 if order <= 2 else 0.3)


def test_a_corrector_through_the_predicted_level_alone_is_implicit_eulers_first_iterate():
    t, s = VP.at(0.6), VP.at(0.4)
    eq, x = ReverseSDE(VP, SCORE), _start()
    predicted = DDIM().step(eq, State(x), t, s, None).x
    expected = s.sigma / t.sigma * x + s.alpha * -math.expm1(t.lam - s.lam) * SCORE(predicted, s).x0
    assert (PredictorCorrector(1, 1).step(eq, State(x), t, s, None).x - expected).abs().max() < 1e-13


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.7])
def test_stage_noise_adds_up_to_the_noise_of_the_step(eta):
    """Whatever the stages, the noise of a step into the same level is one Gaussian: its variance is the sum of the parts."""
    t, s = VP.at(0.5), VP.at(0.45)
    for form in ("x0", "eps"):
        whole = table(Exponential(1, form), VP, [t, s], eta=eta, predicts=form).states[-1]
        for order in (2, 3):
            parts = table(dpm_solver(order, form), VP, [t, s], eta=eta, predicts=form).states[-1]
            variance = lambda form: sum(v**2 for k, v in form.items() if k[0] == "noise")
            assert variance(parts) == pytest.approx(variance(whole), rel=1e-12)


def test_a_stage_sees_the_noise_of_its_own_part_of_the_step():
    """SEEDS-2: the covariance of the midpoint's noise with that of the step is the transition's, alpha_s/alpha_m Var(noise at m)."""
    t, s = VP.at(0.5), VP.at(0.3)
    traced = table(dpm_solver(2), VP, [t, s], eta=1.0)
    stage, end = traced.inputs[1], traced.states[-1]
    noise = [k for k in end if k[0] == "noise"]
    assert len(noise) == 2
    at_stage = sum(v**2 for k, v in stage.items() if k[0] == "noise")
    covariance = sum(stage.get(k, 0.0) * end[k] for k in noise)
    assert covariance == pytest.approx(s.alpha / traced.levels[1].alpha * at_stage, rel=1e-12)


# -- the family's own clock -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["dpm++2m-sde", "dpm++3m-sde", "dpm++sde", "sa-solver", "ddpm"])
def test_in_its_own_clock_a_coarse_run_is_the_fine_one_on_a_point_mass(name):
    """x0 is constant, so every step is exact and a coarse step receives the weighted sum of the fine steps' noise."""
    def score(x, level):
        return Prediction(x, level, x0=torch.full_like(x, 0.3), eps=(x - 0.3 * level.alpha) / level.sigma)

    m, x = method(name), _start()
    fine = grids.LogSNR()(VP, 48)
    levels = VP.levels(fine)
    ends = [_run(m, x, fine[::k], score=score, noise=random.BrownianPath(3, x.shape, span=(0.0, clock(levels[-1])), clock=clock, dtype=F64))
            for clock in [random.quadratic_variation(1.0)] for k in (1, 2, 6, 24)]
    assert all((end - ends[0]).abs().max() < 1e-11 for end in ends[1:])


OWN_CLOCK = ["dpm++2m-sde", "dpm++3m-sde", "dpm++sde", "sa-solver", "er-sde-2", "er-sde-3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_CLOCK)
def test_the_order_in_the_familys_own_clock(name):
    """Path by path in the clock in which the noise is exact: order 1, what is lost being the curvature of x0 along a rough path."""
    clock = random.quadratic_variation(1.0)
    options = {"eta": 1.0} if name != "sa-solver" else {"tau": 1.0}
    build = lambda seed, shape: random.BrownianPath(seed, shape, span=(0.0, clock(VP.at(VP.t_min))), clock=clock, dtype=F64)
    measured = strong_convergence(method(name, **options), overlap_problem(), steps=(32, 64, 128), finest=512, paths=100, source=build)
    assert measured.order > 0.75


# -- eta along a step -------------------------------------------------------------------------------------------------
def test_er_sde_with_constant_eta_and_one_node_is_the_exponential_step():
    for eta in (0.0, 0.5, 1.0, 2.0):
        a, b = (_run(Method("", solver, eta), _start()) for solver in (ERSDE(1), Exponential(1)))
        assert (a - b).abs().max() < 1e-11


def test_er_sde_takes_the_integral_of_a_varying_eta():
    """The gain and the noise of a step from phi(kappa) = kappa (exp(kappa^0.3) + 10) itself: Cui et al. 2023, eq. 13."""
    t, s = VP.at(0.8), VP.at(0.2)
    kappa = lambda m: m.sigma / m.alpha
    phi = lambda k: k * (math.exp(k**0.3) + 10)
    ratio = phi(kappa(s)) / phi(kappa(t))
    form = table(ERSDE(1), VP, [t, s], eta=extended_eta, predicts="x0").states[-1]
    noise = next(v for k, v in form.items() if k[0] == "noise")
    assert form[("x",)] == pytest.approx(s.alpha / t.alpha * ratio, rel=1e-11)
    assert form[("D", 0)] == pytest.approx(s.alpha * (1 - ratio), rel=1e-11)
    assert noise == pytest.approx(s.alpha * math.sqrt(kappa(s)**2 - (kappa(t) * ratio)**2), rel=1e-10)


def test_the_recommended_eta_is_the_slope_of_the_recommended_scale():
    for t in (0.01, 0.3, 1.0):
        level, h = VP.at(t), 1e-5
        log_phi = lambda lam: -lam + math.log(math.exp(math.exp(-0.3 * lam)) + 10)
        slope = (log_phi(level.lam - h) - log_phi(level.lam + h)) / (2 * h)
        assert extended_eta(level)**2 == pytest.approx(slope - 1, rel=1e-6)
    batch = VP.at(torch.tensor([[0.01], [0.3]], dtype=F64))
    assert torch.allclose(extended_eta(batch), torch.tensor([[extended_eta(VP.at(0.01))], [extended_eta(VP.at(0.3))]], dtype=F64), atol=1e-14)


@pytest.mark.parametrize("name", ["sa-solver", "er-sde-2", "seeds-2"])
def test_eta_may_be_a_function_of_the_level(name):
    """SA-Solver's band: noise in the middle only. The law stays right."""
    band = lambda level: 1.0 if 0.05 < level.sigma / level.alpha < 1 else 0.0
    m = method(name, **{"tau" if name == "sa-solver" else "eta": band})
    laws = [affine_law(m, VP, VP.levels(grids.LogSNR()(VP, n))) for n in (100, 200)]
    assert laws[1].w2 < 5e-3 and laws[1].w2 < 0.7 * laws[0].w2


# -- re-noising -------------------------------------------------------------------------------------------------------
RENOISED = [(lambda inner: Ancestral(inner), "ancestral"), (lambda inner: Churn(inner), "churn"), (lambda inner: Restart(inner), "restart")]


@pytest.mark.parametrize("wrap", [w for w, _ in RENOISED], ids=[n for _, n in RENOISED])
@pytest.mark.parametrize("inner, order", [(Exploded(EULER), 1), (Exploded(HEUN), 2), (dpm_solver(2, "x0"), 2), (dpm_solver(3), 3)], ids=repr)
def test_the_law_has_the_order_of_the_inner_solver(wrap, inner, order):
    """From the exact marginal, by the affine probe; churn beyond the cap sqrt 2 - 1, which needs n > S_churn/0.41."""
    grids_of = [VP.levels(grids.LogSNR()(VP, n)) for n in ((50, 100, 200, 400) if order > 2 else (50, 100, 200))]
    errors = [abs(law.variance - law.exact_variance) for law in (affine_law(Method("", wrap(inner)), VP, levels) for levels in grids_of)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:]) if b > 1e-11]
    assert sum(slopes[-2:]) / 2 > order - 0.15 * order


@pytest.mark.slow
def test_the_law_of_restart_beyond_the_affine():
    """E cos(x) and E cos(2 x) on two modes: at 64 steps within 5 standard errors of exact, at 16 far from it."""
    n = 400_000
    x = TWINS.sample(VP.at(1.0), (n, 1), seed=1)
    off = {}
    for steps in (16, 64):
        out = _run(method("restart"), x, grids.LogSNR()(VP, steps), score=TWINS.score, seed=steps)
        last = VP.at(VP.t_min)
        for f in (1.0, 2.0):
            exact = math.cos(f * last.alpha) * math.exp(-f**2 * (last.alpha**2 * TWINS.variance + last.sigma**2) / 2)
            off[steps, f] = float(torch.cos(f * out).mean() - exact) / (float(torch.cos(f * out).std()) / math.sqrt(n))
    assert min(abs(off[16, f]) for f in (1.0, 2.0)) > 15 and max(abs(off[64, f]) for f in (1.0, 2.0)) < 5


@pytest.mark.parametrize("name", ["euler-ancestral", "dpm2-ancestral", "edm-stochastic", "restart"])
@pytest.mark.parametrize("sde", [VP, EDMSDE(), VESDE()], ids=repr)
def test_the_law_at_every_knot_is_the_marginal(name, sde):
    laws = affine_laws(name, sde, sde.levels(grids.LogSNR()(sde, 200)))
    assert max(abs(law.variance / law.exact_variance - 1) for law in laws) < 0.08


def test_churn_is_spread_over_the_steps_of_the_grid():
    levels = VP.levels(TIMES)
    solver = Churn(Exploded(HEUN), S_churn=3.0)
    with pytest.raises(ValueError, match="S_churn"):
        solver.step(ReverseSDE(VP, SCORE), State(_start()), levels[3], levels[4], random.WhiteNoise(0, (16, 2), dtype=F64))
    seen = []

    def score(x, level):
        seen.append(level)
        return SCORE(x, level)

    solver.over(levels).step(ReverseSDE(VP, score), State(_start()), levels[3], levels[4], random.WhiteNoise(0, (16, 2), dtype=F64))
    assert seen[0].lam == pytest.approx(levels[3].lam - math.log1p(3.0 / 12), abs=1e-12)
    assert [solver.over(VP.levels(grids.LogSNR()(VP, n))).steps for n in (1, 12, 100)] == [1, 12, 100]


def test_churn_never_rises_above_the_noisy_end():
    m = method("edm-stochastic", S_tmax=math.inf, S_churn=40.0)
    seen = []

    def score(x, level):
        seen.append(level.t)
        return SCORE(x, level)

    _run(m, _start(), score=score)
    assert 1 - 1e-12 < max(seen) <= 1.0


def test_noise_scaled_by_s_noise_inflates_the_law():
    laws = [affine_law(method("edm-stochastic", S_noise=scale, S_churn=10.0), VP, VP.levels(grids.LogSNR()(VP, 200))) for scale in (1.0, 1.05)]
    assert laws[1].variance > 1.01 * laws[0].variance and abs(laws[0].variance / laws[0].exact_variance - 1) < 5e-3


def test_restart_repeats_its_interval_from_any_grid_and_counts_its_calls():
    plain = sample_info(VP, SCORE, x_init=_start(), method="edm-heun", steps=12, grid="logsnr").nfe
    for repeats in (1, 3):
        m = method("restart", intervals=[(0.06, 0.3, repeats, 4)])
        info = sample_info(VP, SCORE, x_init=_start(), method=m, steps=12, grid="logsnr", seed=0)
        assert info.nfe == plain + 2 + repeats * 4 * 2          # one more step where the interval ends, then 4 Heun steps a repeat
    two = method("restart", intervals=[(0.06, 0.3, 1, 2), (1.0, 2.0, 2, 2)])
    assert sample_info(VP, SCORE, x_init=_start(), method=two, steps=12, grid="logsnr", seed=0).nfe == plain + 4 + 3 * 2 * 2


# -- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrap", ["ancestral", "edm-stochastic", "restart"])
@pytest.mark.parametrize("inner", ["dpm++2m", "ab-2", "unipc-2", "eab-3", "ipndm", "deis-2", "sa-solver", "euler-maruyama", "ddpm"])
def test_wrappers_refuse_memory_and_noise_inside(wrap, inner):
    with pytest.raises(ValueError, match="inner="):
        method(wrap, inner=inner)


REFUSED = [("sa-solver", {"tau": -0.1}, "tau"), ("sa-solver", {"tau": math.nan}, "tau"), ("sa-solver", {"corrector": 6}, "corrector"),
           ("sa-solver", {"predictor": 0}, "predictor"), ("sa-solver", {"corrector": 0, "kernel": "bh1"}, "kernel"),
           ("sa-solver", {"kernel": "published"}, "kernel"), ("edm-stochastic", {"S_churn": -1.0}, "S_churn"),
           ("edm-stochastic", {"S_tmin": 2.0, "S_tmax": 1.0}, "S_tmax"), ("edm-stochastic", {"S_noise": -1.0}, "S_noise"),
           ("restart", {"intervals": [(0.3, 0.06, 2)]}, "high"), ("restart", {"intervals": [(0.1, 0.3)]}, "intervals"),
           ("restart", {"intervals": [(0.1, 0.3, -1)]}, "repeats"), ("restart", {"intervals": [(0.1, 0.3, 1, 0)]}, "steps"),
           ("euler-ancestral", {"eta": 1.5}, "eta"), ("euler-ancestral", {"eta": -0.5}, "eta"), ("seeds-2", {"churn": 1.0}, "no such option")]


@pytest.mark.parametrize("name, options, word", REFUSED, ids=[f"{n}-{o}" for n, o, _ in REFUSED])
def test_wrong_options_are_refused_by_name(name, options, word):
    with pytest.raises((ValueError, TypeError), match=word):
        method(name, **options)


@pytest.mark.parametrize("name", ["seeds-2", "dpm++sde", "er-sde-2", "sra1"])
@pytest.mark.parametrize("eta", [-1.0, math.nan, "1"])
def test_a_wrong_eta_is_refused_before_the_first_call(name, eta):
    with pytest.raises((ValueError, TypeError), match="eta"):
        sample(VP, SCORE, shape=(2, 2), steps=3, seed=0, method=name, eta=eta)


def test_a_negative_tau_of_a_function_is_refused():
    with pytest.raises(ValueError, match="eta"):
        sample(VP, SCORE, shape=(2, 2), steps=3, seed=0, method="sa-solver", tau=lambda level: -1.0)


def test_a_renoising_sampler_refuses_an_equation_with_noise_and_a_process_that_ends_below_its_interval():
    for solver in (Ancestral(Exploded(HEUN)), Churn(Exploded(HEUN)), Restart(Exploded(HEUN))):
        with pytest.raises(ValueError, match="eta"):
            next(iterate(ReverseSDE(VP, SCORE, 1.0), solver, _start(), VP.levels(TIMES), random.WhiteNoise(0, (16, 2), dtype=F64)))
    with pytest.raises(ValueError, match="high"):
        sample(VP, SCORE, shape=(2, 2), steps=3, seed=0, method="restart", intervals=[(1.0, 1e4, 1)])


def test_solvers_say_what_they_are():
    assert SingleStep((0.0,), ((), (0,)), 1).weak_order == 1 and dpm_solver(3).weak_order == 2
    assert Ancestral(dpm_solver(2)).weak_order == 2 and Ancestral(dpm_solver(2), 0.0).weak_order is None
    assert dataclasses.replace(Churn(Exploded(HEUN)), S_churn=0.0).noise == "never"
    assert Restart(Exploded(HEUN), (Interval(0.1, 0.2, 0),)).noise == "never"
    assert knot_path(1, (2, 1), 4).times[0] == 1.0
