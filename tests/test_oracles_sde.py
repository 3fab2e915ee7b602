r"""Oracles of the stochastic samplers: code by others, or a paper's step written out, on the same network, grid and noise.

*k-diffusion* works in x/alpha with the clock sigma/alpha, which is ``EDMSDE()``; its model(x, sigma) is our exact x0. Of the package only
sampling.py is loaded, without the image libraries that its __init__ asks for. *diffusers* runs in double, as in test_oracles.py.
*Noise.* Theirs draws one normal for an interval of its own choice, ours one for each step, or for each stage of a single-step solver: the
tests hand theirs ours, stages combined into the exact noise of the step. SEEDS, ER-SDE and Restart are written out from their papers.

Tests named ``deviation`` pin what differs and say why. Measured with k-diffusion 0.1.1 and diffusers 0.42.1.
"""
import dataclasses
import importlib.metadata
import importlib.util
import math
import sys
import types
from itertools import pairwise

import pytest
import test_oracles
import torch
from scipy.integrate import quad
from test_oracles import F64, PROBLEM, _place, _theirs

from sdediff import EDMSDE, VPSDE, ReverseSDE, grids, iterate, method
from sdediff.random import WhiteNoise
from sdediff.solvers import Exponential, PredictorCorrector, State
from sdediff.solvers.exponential import weights
from sdediff.solvers.multistep import extended_eta
from sdediff.testing import Convergence, converge, mixture_problem

build = test_oracles.build          # the fixture
SDE, WIDE, TARGET, ROWS = EDMSDE(), EDMSDE(sigma_max=200.0), PROBLEM.target, 16
DOUBLE = 1e-12                      # greatest difference of a state, relative to its greatest entry
pytestmark = test_oracles.pytestmark


def _gap(a, b):
    assert len(a) == len(b)
    return max(float((u - v).abs().max() / v.abs().max()) for u, v in zip(a, b))


# -- k-diffusion ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def k_diffusion():
    """Its sampling.py as a module of its own: of its package's utils it uses append_dims alone."""
    try:
        files = importlib.metadata.files("k-diffusion") or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is the oracle here: pip install --no-deps k-diffusion==0.1.1")
    path, = (f.locate() for f in files if f.name == "sampling.py")
    package, utils = types.ModuleType("k_diffusion_alone"), types.ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda v, n: v[(..., *(None,) * (n - v.ndim))]
    package.utils, package.__path__ = utils, []
    spec = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", path)
    sampling = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for module in (package, utils, sampling):
            patch.setitem(sys.modules, module.__name__, module)
        spec.loader.exec_module(sampling)
    return sampling


def _start():
    return SDE.sigma_max * WhiteNoise(4, (ROWS, 2), dtype=F64).normal()


def _noise():
    return WhiteNoise(9, (ROWS, 2), dtype=F64)


def _z(step, stage=None):
    """The normal that a solver draws in a step, or for a stage of it."""
    source = _noise().at(step)
    return source.normal(0) if stage is None else source.within().at(stage).normal(0)


def _grid(steps, end=0.0):
    return grids.Karras()(SDE, steps, t_end=end)


def _denoiser(x, sigma):
    return TARGET.score(x, WIDE.at(float(sigma[0]))).x0


def _their_states(sampler, times, noise=None, **options):
    """The states at the knots. ``noise``: (sigma, sigma_next) -> normal, by default that of the step which starts at sigma."""
    states, step = [], {t: k for k, t in enumerate(times)}
    white = lambda sigma, sigma_next: _z(step[float(sigma)])
    end = sampler(_denoiser, _start(), torch.tensor(times, dtype=F64), callback=lambda info: states.append(info["x"]), disable=True,
                  noise_sampler=noise or white, **options)
    return [*states, end]


def _our_states(recipe, times, sde=SDE, **options):
    recipe = method(recipe, **options)
    eq = ReverseSDE(sde, TARGET.score, recipe.eta)
    return [state.x for state in iterate(eq, recipe.solver, _start(), sde.levels(times), _noise())]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name, theirs", [("euler-ancestral", "sample_euler_ancestral"), ("dpm2-ancestral", "sample_dpm_2_ancestral"),
                                          ("dpm++2s-ancestral", "sample_dpmpp_2s_ancestral")])
def test_ancestral(k_diffusion, name, theirs, eta):
    """Song's eta on both sides; the last step, into sigma = 0, is the model's x0."""
    for times in (_grid(12), _grid(30, 0.01)):
        assert _gap(_their_states(getattr(k_diffusion, theirs), times, eta=eta), _our_states(name, times, eta=eta)) < DOUBLE


def _their_churned_end(k_diffusion, monkeypatch, times, options):
    """Theirs draws by torch.randn_like in every step, also where gamma = 0."""
    draws = iter(range(len(times)))
    monkeypatch.setattr(torch, "randn_like", lambda x: _z(next(draws)))
    return k_diffusion.sample_heun(_denoiser, _start(), torch.tensor(times, dtype=F64), disable=True,
                                   **{name.lower(): value for name, value in options.items()})


@pytest.mark.parametrize("S_churn, S_tmin, S_tmax, S_noise", [(0.0, 0.0, math.inf, 1.0), (5.0, 0.05, 50.0, 1.0), (40.0, 0.05, 50.0, 1.003),
                                                              (4.0, 0.0, math.inf, 0.9)])
def test_edm_stochastic(k_diffusion, monkeypatch, S_churn, S_tmin, S_tmax, S_noise):
    """Karras et al. 2022, Alg. 2, from sigma = 80 on a process that reaches higher."""
    options = {"S_churn": S_churn, "S_tmin": S_tmin, "S_tmax": S_tmax, "S_noise": S_noise}
    for times in (_grid(12), _grid(40, 0.01)):
        theirs = _their_churned_end(k_diffusion, monkeypatch, times, options)
        assert _gap([theirs], _our_states("edm-stochastic", times, WIDE, **options)[-1:]) < DOUBLE


def test_deviation_churn_stays_below_the_end_of_the_process(k_diffusion, monkeypatch):
    """S_tmax = inf, the default of theirs, asks the model above the noise that it was made for. Ours raises no level above t_max: here the
    first step, from t_max itself, is not raised, and S_tmax below it is the same."""
    times = _grid(12)
    options = {"S_churn": 5.0, "S_tmin": 0.0, "S_noise": 1.0}
    ours = _our_states("edm-stochastic", times, **options, S_tmax=math.inf)[-1:]
    assert _gap([_their_churned_end(k_diffusion, monkeypatch, times, {**options, "S_tmax": math.inf})], ours) > 1e-4
    raised = times[1] * (1 + 5.0 / 12)
    assert raised < SDE.sigma_max
    assert _gap([_their_churned_end(k_diffusion, monkeypatch, times, {**options, "S_tmax": 79.0})], ours) < DOUBLE


def _stage_noise(times, eta, c=0.5):
    """For a sampler that draws for the stage at lambda + c h and again for the step: the stage's normal, and what both stages amount to
    over the step, (sqrt(e^{-2 eta^2 (1-c) h} - e^{-2 eta^2 h}) z_1 + sqrt(1 - e^{-2 eta^2 (1-c) h}) z_2) / sqrt(1 - e^{-2 eta^2 h})."""
    def draws():
        for k, (t, s) in enumerate(pairwise(times)):
            z1, z2, rate = _z(k, 0), _z(k, 1), 2 * eta**2 * math.log(t / s) if s else math.inf
            yield (t, t * (s / t)**c), z1
            a, b = (math.exp(-rate * (1 - c)) - math.exp(-rate), -math.expm1(-rate * (1 - c))) if eta else (1.0, 0.0)
            yield (t, s), (math.sqrt(a) * z1 + math.sqrt(b) * z2) / math.sqrt(a + b)

    supply = draws()

    def sampler(*asked):
        interval, z = next(supply)
        assert [float(v) for v in asked] == pytest.approx(interval, rel=1e-12)
        return z

    return sampler


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_sde(k_diffusion, eta):
    """The stage and the step each with its noise, handed to theirs as one path."""
    for times in (_grid(12), _grid(30, 0.01)):
        theirs = _their_states(k_diffusion.sample_dpmpp_sde, times, _stage_noise(times, eta), eta=eta)
        assert _gap(theirs, _our_states("dpm++sde", times, eta=eta)) < DOUBLE


def test_deviation_dpmpp_sde_reads_eta_as_songs(k_diffusion):
    """Theirs is ancestral stage by stage: its eta is Song's, which between 0 and 1 is no member of our family. On the same noise the two
    come together as the steps shrink, at first order: 0.040 apart at 48 steps, 0.0075 at 384."""
    gaps = []
    for n in (48, 384):
        times = _grid(n, 0.01)
        theirs = _their_states(k_diffusion.sample_dpmpp_sde, times, _stage_noise(times, 0.5), eta=0.5)
        gaps.append(float((theirs[-1] - _our_states("dpm++sde", times, eta=0.5)[-1]).square().mean().sqrt()))
    assert gaps[0] > 0.02 and gaps[1] < gaps[0] / 4, gaps


def test_deviation_their_brownian_tree_lives_in_sigma(k_diffusion):
    """The default noise of theirs is a Brownian path in sigma. Within a step the normals of stage and step then have the correlation
    1/sqrt(1 + e^{-h/2}), where the equation's own is e^{-h/2}/sqrt(1 + e^{-h}): 0.79 and 0.52 at h = 1, both 1/sqrt 2 for short steps."""
    n, h = 1 << 16, 1.0
    t, mid, s = (torch.tensor(math.exp(-u), dtype=F64) for u in (0.0, h / 2, h))
    tree = k_diffusion.BrownianTreeNoiseSampler(torch.zeros(n, dtype=F64), s, t, seed=3)
    seen = float((tree(t, mid) * tree(t, s)).mean())
    theirs, exact = 1 / math.sqrt(1 + math.exp(-h / 2)), math.exp(-h / 2) / math.sqrt(1 + math.exp(-h))
    assert abs(seen - theirs) < 5 * math.sqrt((1 + theirs**2) / n) < (theirs - exact) / 5
    z = _stage_noise([1.0, math.exp(-h)], 1.0)
    stage, step = z(1.0, math.exp(-h / 2)), z(1.0, math.exp(-h))
    alone = (step - exact * stage) / math.sqrt(1 - exact**2)                # what is left of the step's normal is the second stage's
    assert (alone - _z(0, 1)).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind, kernel", [("midpoint", "published"), ("heun", "exact")])
def test_dpmpp_2m_sde(k_diffusion, kind, kernel, eta):
    """solver_type "midpoint" is the published kernel, "heun" the exact integral of the same interpolant."""
    recipe = dataclasses.replace(method("dpm++2m-sde", eta=eta), solver=Exponential(2, "x0", kernel))
    for times in (_grid(12), _grid(30, 0.01)):
        theirs = _their_states(k_diffusion.sample_dpmpp_2m_sde, times, eta=eta, solver_type=kind)
        assert _gap(theirs, _our_states(recipe, times)) < DOUBLE
        if kernel == "published":
            assert _gap(theirs, _our_states("dpm++2m-sde", times, eta=eta)) < DOUBLE


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.5])
def test_deviation_eta_of_the_multistep_sde_samplers_is_our_eta_squared(k_diffusion, eta):
    """Theirs damps by e^{-eta h}, the x0 form (4) by e^{-eta^2 h}: one family, another parameter, ours = sqrt(theirs)."""
    times = _grid(30, 0.01)
    theirs = _their_states(k_diffusion.sample_dpmpp_2m_sde, times, eta=eta)
    assert _gap(theirs, _our_states("dpm++2m-sde", times, eta=math.sqrt(eta))) < DOUBLE
    assert _gap(theirs, _our_states("dpm++2m-sde", times, eta=eta)) > 0.1


def _three_nodes(kernel, eta, times):
    """Three nodes with ``kernel``, after two steps with exact weights."""
    eq, levels = ReverseSDE(SDE, TARGET.score, eta), SDE.levels(times)
    states = [State(_start())]
    for k, (t, s) in enumerate(pairwise(levels)):
        states.append(Exponential(3, "x0", kernel if k > 1 else "exact").step(eq, states[-1], t, s, _noise().at(k)))
    return [state.x for state in states]


@pytest.mark.parametrize("eta", [0.0, 0.25, 1.0])
def test_deviation_dpmpp_3m_sde_has_half_of_the_second_difference(k_diffusion, eta):
    """Their second divided difference is h^2 x0''/2, its weight phi_3 that of h^2 x0'': kernel="published", but for the second step, where
    two nodes take exact weights in theirs and the midpoint's in "published". Ours is "exact" throughout."""
    for times in (_grid(12), _grid(30, 0.01)):
        theirs = _their_states(k_diffusion.sample_dpmpp_3m_sde, times, eta=eta)
        assert _gap(theirs, _three_nodes("published", math.sqrt(eta), times)) < DOUBLE
        ours = _our_states("dpm++3m-sde", times, eta=math.sqrt(eta), start=False)
        assert _gap(theirs[:3], ours[:3]) < DOUBLE
        assert _gap(theirs, ours) > 1e-3
        published = dataclasses.replace(method("dpm++3m-sde", eta=math.sqrt(eta)), solver=Exponential(3, "x0", "published"))
        published = _our_states(published, times)
        assert _gap(theirs[:2], published[:2]) < DOUBLE < 1e-8 < _gap(theirs, published) < 1e-4


def test_deviation_dpmpp_3m_sde_has_order_two_on_the_flow(k_diffusion):
    """Ours has order 3."""
    sde, steps, errors = EDMSDE(0.01, 20.0), (40, 80, 160, 320), []
    problem = mixture_problem(sde)
    for n in steps:
        times = torch.tensor(grids.LogSNR()(sde, n), dtype=F64)
        end = k_diffusion.sample_dpmpp_3m_sde(_denoiser, problem.start(20.0), times, eta=0.0, disable=True, noise_sampler=lambda *_: 0.0)
        errors.append(float((end - problem.solution(20.0, 0.01)).square().mean().sqrt()))
    theirs, ours = Convergence(steps, tuple(errors)), converge(method("dpm++3m-sde", eta=0.0), problem)
    assert 1.8 < theirs.order < 2.2 and ours.meets(3), (theirs, ours)


# -- diffusers ------------------------------------------------------------------------------------------------------
def _draws(steps):
    return [_z(k) for k in range(steps)]


def _sa_solver(build, predictor, corrector, tau, algorithm="data_prediction", steps=20):
    """Their trajectory on a log-SNR grid of VPSDE, and ours as a function of a solver. Theirs corrects a state when it next sees it, so
    never its last: there our prediction is compared."""
    sde, x = VPSDE(), WhiteNoise(4, (ROWS, 2), dtype=F64).normal()
    by_timestep = lambda t: tau(levels[steps - int(t)]) if callable(tau) else tau
    scheduler = build("SASolver", draws=_draws(steps), predictor_order=predictor, corrector_order=corrector, tau_func=by_timestep,
                      algorithm_type=algorithm, lower_order_final=False)
    levels, network = _place(scheduler, sde, steps)

    def ours(solver):
        states = list(iterate(ReverseSDE(sde, TARGET.score, tau), solver, x, levels, _noise()))
        return [*(state.x for state in states[:-1]), states[-1].prediction.x]

    return _theirs(scheduler, network, x), ours


PAIRS = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4), (4, 1)]


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, lambda level: 0.8 if abs(level.lam) < 2 else 0.0], ids=["0", "0.6", "1", "in between"])
@pytest.mark.parametrize("predictor, corrector", PAIRS)
def test_sa_solver(build, predictor, corrector, tau):
    """Xue et al. 2023, Alg. 1 in PEC mode. Where two nodes meet, in predictor or corrector and on the way to more, theirs takes the first
    moment of bh1 (a "modification" of third order)."""
    theirs, ours = _sa_solver(build, predictor, corrector, tau)
    recipe = method("sa-solver", predictor=predictor, corrector=corrector, tau=tau, kernel="bh1", start=False)
    assert recipe.eta == tau and _gap(theirs, ours(recipe.solver)) < DOUBLE
    if max(predictor, corrector) > 1:
        assert _gap(theirs, ours(PredictorCorrector(predictor, corrector))) > 1e-10


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("predictor, corrector", PAIRS)
def test_sa_solver_in_eps(build, predictor, corrector, tau):
    """No modification here. From three nodes on theirs loses digits, see test_deviation_sa_solver_...; with tau = 1 20 steps diverge."""
    theirs, ours = _sa_solver(build, predictor, corrector, tau, "noise_prediction")
    assert _gap(theirs, ours(PredictorCorrector(predictor, corrector, form="eps"))) < (DOUBLE if max(predictor, corrector) < 3 else 1e-11)


def test_deviation_sa_solver_never_corrects_its_last_state(build):
    theirs, _ = _sa_solver(build, 2, 3, 1.0)
    *_, end = iterate(ReverseSDE(VPSDE(), TARGET.score, 1.0), PredictorCorrector(2, 3, "bh1"), theirs[0],
                      VPSDE().levels(grids.LogSNR()(VPSDE(), 20)), _noise())
    assert _gap([end.prediction.x], theirs[-1:]) < DOUBLE < 1e-6 < _gap([end.x], theirs[-1:])


def test_deviation_sa_solver_loses_its_digits(build):
    """Its weights are sums of monomials in lambda itself, not in lambda - lambda_t: they cancel as (lambda/h)^(nodes - 1). As shipped, in
    float32, four nodes are worth 4 digits at 20 steps and 1 at 200; in double theirs and ours agree to 3e-14 and 5e-11."""
    gaps = []
    for steps in (20, 200):
        ends = []
        for reading, dtype in (("shipped", torch.float32), ("double", F64)):
            scheduler = build("SASolver", reading, predictor_order=4, corrector_order=4, tau_func=lambda t: 0.0, lower_order_final=False)
            _, network = _place(scheduler, VPSDE(), steps)
            ends.append(_theirs(scheduler, network, WhiteNoise(4, (ROWS, 2), dtype=dtype).normal())[-1])
        gaps.append(float((ends[0] - ends[1]).abs().max()))
    assert gaps[0] < 5e-4 and gaps[1] > 5e-3, gaps          # on two processors 1.2e-4 and 1.5e-4, 0.04 and 0.05; at 100 steps 3e-4 and 5e-3


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_weights_of_the_stochastic_adams_formulas(build, nodes, tau):
    """Before the modification, on an uneven grid: (1 + tau^2) sigma_s e^{-tau^2 lambda_s} times their coefficients is alpha_s w_j."""
    scheduler, t, s = build("SASolver"), -0.3, 0.2
    double = lambda v: torch.tensor(v, dtype=F64)
    for lam in ([t, -0.45, -1.1, -1.3], [s, t, -0.45, -1.1]):               # predictor, corrector
        lam = lam[:nodes]
        theirs = scheduler.get_coefficients_fn(nodes, double(t), double(s), [double(v) for v in lam], tau)
        scale = (1 + tau**2) * math.exp(-(1 + tau**2) * s)
        assert [scale * float(c) for c in theirs] == pytest.approx(weights([v - t for v in lam], s - t, 1 + tau**2), rel=1e-10)


def _in_exploded_chart(scheduler, chain, x):
    """Their trajectory in x, the network told the level of the sigma that the integrator is at; states inside a step are left out."""
    alpha = lambda sigma: 1 / torch.sqrt(1 + sigma**2)
    y, states = x / alpha(scheduler.sigmas[0]), [x]
    for k, t in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(y, t)
        if scheduler.state_in_first_order:
            sigma = scheduler.sigmas[scheduler.step_index]
        else:
            sigma = getattr(scheduler, "mid_point_sigma", None) or scheduler.sigmas_interpol[scheduler.step_index - 1]
        y = scheduler.step(TARGET.score(fed, chain.level_of(-math.log(sigma))).eps, t, y).prev_sample
        if scheduler.state_in_first_order or k == len(scheduler.timesteps) - 1:
            states.append(y * alpha(scheduler.sigmas[scheduler.step_index]))
    return states


@pytest.mark.parametrize("spacing, steps", [("leading", 20), ("trailing", 37)])
@pytest.mark.parametrize("name, ours", [("KDPM2AncestralDiscrete", "dpm2-ancestral"), ("DPMSolverSDE", "dpm++sde")])
def test_two_stage_schedulers(build, name, ours, spacing, steps):
    """In sigma/alpha, on the knots of a chain and down to sigma = 0."""
    scheduler = build(name, draws=_draws(steps) if name == "KDPM2AncestralDiscrete" else None, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    chain = VPSDE.from_betas(scheduler.betas)
    times = [*dict.fromkeys(chain.level_of(-math.log(v)).t for v in scheduler.sigmas.tolist() if v), 0.0]
    recipe, levels = method(ours), chain.levels(times)
    scheduler.noise_sampler = _stage_noise([level.sigma / level.alpha for level in levels], 1.0)
    x = WhiteNoise(4, (ROWS, 2), dtype=F64).normal()
    theirs = _in_exploded_chart(scheduler, chain, x)
    states = [state.x for state in iterate(ReverseSDE(chain, TARGET.score, recipe.eta), recipe.solver, x, levels, _noise())]
    assert _gap(theirs, states) < DOUBLE


# -- written out from the papers ------------------------------------------------------------------------------------
def _vp_states(recipe, levels, x):
    return [state.x for state in iterate(ReverseSDE(VPSDE(), TARGET.score, recipe.eta), recipe.solver, x, levels, _noise())]


def _vp_start(level):
    return level.alpha * TARGET.sample(ROWS, seed=1, dtype=F64) + level.sigma * WhiteNoise(4, (ROWS, 2), dtype=F64).normal()


def _seeds_2(eps, x, t, s, z1, z2):
    """Gonzalez et al. 2023, SEEDS-2: the stage in the middle, and its evaluation for the whole step."""
    h = s.lam - t.lam
    m = VPSDE().level_of(t.lam + h / 2)
    u = m.alpha / t.alpha * x - 2 * m.sigma * math.expm1(h / 2) * eps(x, t) - m.sigma * math.sqrt(math.expm1(h)) * z1
    return (s.alpha / t.alpha * x - 2 * s.sigma * math.expm1(h) * eps(u, m)
            - s.sigma * (math.sqrt(math.exp(2 * h) - math.exp(h)) * z1 + math.sqrt(math.expm1(h)) * z2))


def _seeds_3(eps, x, t, s, z1, z2, z3):
    """SEEDS-3, r1 = 1/3, r2 = 2/3."""
    h, r1, r2 = s.lam - t.lam, 1 / 3, 2 / 3
    m1, m2 = (VPSDE().level_of(t.lam + r * h) for r in (r1, r2))
    a, b, c = (math.sqrt(math.exp(2 * v * h) - math.exp(2 * w * h)) for v, w in ((r1, 0.0), (r2, r1), (1.0, r2)))
    e = eps(x, t)
    u1 = m1.alpha / t.alpha * x - 2 * m1.sigma * math.expm1(r1 * h) * e - m1.sigma * a * z1
    d1 = eps(u1, m1) - e
    u2 = (m2.alpha / t.alpha * x - 2 * m2.sigma * math.expm1(r2 * h) * e
          - 2 * m2.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1 - m2.sigma * (b * z1 + a * z2))
    d2 = eps(u2, m2) - e
    return (s.alpha / t.alpha * x - 2 * s.sigma * math.expm1(h) * e - 2 * s.sigma / r2 * (math.expm1(h) / h - 1) * d2
            - s.sigma * (c * z1 + b * z2 + a * z3))


@pytest.mark.parametrize("name, step, stages", [("seeds-2", _seeds_2, 2), ("seeds-3", _seeds_3, 3)])
def test_seeds(name, step, stages):
    """The paper's noise carries a minus sign."""
    levels = VPSDE().levels(grids.LogSNR()(VPSDE(), 8))
    written = [_vp_start(levels[0])]
    for k, (t, s) in enumerate(pairwise(levels)):
        written.append(step(lambda x, level: TARGET.score(x, level).eps, written[-1], t, s, *(-_z(k, i) for i in range(stages))))
    assert _gap(_vp_states(method(name), levels, written[0]), written) < DOUBLE


def _er_sde(nodes, phi, levels, x, lagrange=False, noise=_z):
    """Cui et al. 2023, Taylor form of ER-SDE-Solver-1, -2, -3, with phi(kappa) of kappa = sigma/alpha (their lambda) and exact integrals. D
    is the backward difference; ``lagrange`` adds what makes it, with D2, the slope of the parabola through three nodes."""
    kappa, x0, states = [m.sigma / m.alpha for m in levels], [], [x]
    for k, (t, s) in enumerate(pairwise(levels)):
        a, b = kappa[k], kappa[k + 1]
        x0.append(TARGET.score(x, t).x0)
        r = phi(b) / phi(a)
        mean = r * x / t.alpha + (1 - r) * x0[k]
        if nodes > 1 and k > 0:
            c1 = b - a + phi(b) * quad(lambda v: 1 / phi(v), b, a, epsabs=0, epsrel=1e-13)[0]
            d = (x0[k] - x0[k - 1]) / (a - kappa[k - 1])
            mean = mean + c1 * d
            if nodes > 2 and k > 1:
                c2 = (b - a)**2 / 2 + phi(b) * quad(lambda v, a=a: (v - a) / phi(v), b, a, epsabs=0, epsrel=1e-13)[0]
                d2 = (d - (x0[k - 1] - x0[k - 2]) / (kappa[k - 1] - kappa[k - 2])) / ((a - kappa[k - 2]) / 2)
                mean = mean + c2 * d2 + (c1 * (a - kappa[k - 1]) / 2 * d2 if lagrange else 0.0)
        x = s.alpha * (mean + math.sqrt(max(0.0, b**2 - a**2 * r**2)) * noise(k))
        states.append(x)
    return states


PHI = [("the flow", 0.0, lambda v: v), ("reverse SDE", 1.0, lambda v: v**2), ("SDE_2", math.sqrt(0.5), lambda v: v**1.5),
       ("SDE_5", extended_eta, lambda v: v * (math.exp(v**0.3) + 10))]


@pytest.mark.parametrize("eta, phi", [row[1:] for row in PHI], ids=[row[0] for row in PHI])
@pytest.mark.parametrize("nodes", [2, 3])
def test_er_sde(nodes, eta, phi):
    """Any phi is an eta, eta^2 = d log phi/d log kappa - 1; the default is their SDE_5. Third order: see test_deviation_er_sde_3_..."""
    levels = VPSDE().levels(grids.Karras()(VPSDE(), 8))
    x = _vp_start(levels[0])
    ours = _vp_states(method(f"er-sde-{nodes}", eta=eta, start=False), levels, x)
    written = _er_sde(nodes, phi, levels, x, lagrange=True, noise=_z if eta else lambda k: 0.0)
    assert _gap(ours, written) < DOUBLE
    if eta is extended_eta:
        assert method(f"er-sde-{nodes}").eta is extended_eta


@pytest.mark.parametrize("eta, phi", [row[1:] for row in PHI[1:]], ids=[row[0] for row in PHI[1:]])
def test_deviation_er_sde_3_published_takes_a_backward_difference(eta, phi):
    """Published, the backward difference D stands for the slope at t, with D2 beside it: one and two nodes agree with ours, three differ by
    alpha_s c_1 (kappa_t - kappa_-1)/2 D2, where c_1 is the weight of D (``lagrange`` above)."""
    levels = VPSDE().levels(grids.Karras()(VPSDE(), 8))
    x = _vp_start(levels[0])
    ours, published = _vp_states(method("er-sde-3", eta=eta), levels, x), _er_sde(3, phi, levels, x)
    assert _gap(ours[:3], published[:3]) < DOUBLE and _gap(ours[3:4], published[3:4]) > 1e-6, _gap(ours[3:4], published[3:4])


def test_deviation_er_sde_3_published_has_order_two_on_the_flow():
    """phi = kappa. Ours has order 3."""
    steps, errors = (40, 80, 160, 320), []
    for n in steps:
        levels = VPSDE().levels(grids.LogSNR()(VPSDE(), n))
        end = _er_sde(3, lambda v: v, levels, PROBLEM.start(1.0), noise=lambda k: 0.0)[-1]
        errors.append(float((end - PROBLEM.solution(1.0, VPSDE().t_min)).square().mean().sqrt()))
    published, ours = Convergence(steps, tuple(errors)), converge(method("er-sde-3", eta=0.0), PROBLEM)
    assert 1.8 < published.order < 2.2 and ours.meets(3), (published, ours)


def _heun(x, t, s):
    """Karras et al. 2022, Alg. 1: Euler alone into 0."""
    d = (x - TARGET.score(x, SDE.at(t)).x0) / t
    y = x + (s - t) * d
    return x + (s - t) / 2 * (d + (y - TARGET.score(y, SDE.at(s)).x0) / s) if s else y


@pytest.mark.parametrize("end", [0.0, 0.02])
@pytest.mark.parametrize("knot", [True, False], ids=["at a knot", "between knots"])
def test_restart(knot, end):
    """Xu et al. 2023, Alg. 1: at low, K times: noise up to high, and back by Heun on a Karras grid (their N_restart counts its points, our
    steps its intervals). They take low from the grid; between knots the step that passes it is split."""
    times, high, repeats, steps = _grid(14, end), 1.5, 3, 4
    k = next(k for k, t in enumerate(times) if t < 0.5)
    low = times[k] if knot else 0.4 * times[k - 1] + 0.6 * times[k]
    back = [(high**(1 / 7) + j / steps * (low**(1 / 7) - high**(1 / 7)))**7 for j in range(steps)] + [low]
    written = [_start()]
    for k, (t, s) in enumerate(pairwise(times)):
        x = written[-1]
        if s <= low < t:
            x, t = _heun(x, t, low), low
            for i in range(repeats):
                x = x + math.sqrt(high**2 - low**2) * _z(k, i)
                for a, b in pairwise(back):
                    x = _heun(x, a, b)
        written.append(_heun(x, t, s) if s < t else x)
    assert _gap(_our_states("restart", times, intervals=[(low, high, repeats, steps)]), written) < DOUBLE
    assert _gap(_our_states("edm-heun", times), written) > 0.1
