r"""Oracles: code by others on the same network, grid and noise, and each place where theirs and the paper part.

Two readings of diffusers. *As shipped* its tables and states are float32, and what remains is its rounding. *In double* the same code
runs with ``torch.float32`` and ``numpy.float32`` of its module read as float64: then the formulas alone are compared, to 1e-12.
Its timestep i is our chain time t = i + 1; its sigma is our sigma/alpha; its final sigma of 0 is our clean level t = 0.

Tests named ``deviation`` pin what differs and say why. Measured with diffusers 0.42.1, torchsde 0.2.6, torchdiffeq 0.2.5.
"""
import dataclasses
import importlib
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sdediff import VPSDE, RectifiedFlow, ReverseSDE, encode, from_network, grids, iterate, method, sample
from sdediff.random import Noise, WhiteNoise
from sdediff.solvers import DDIM, IPNDM, AdamsBashforth, Ancestral, Exploded, Exponential, State, dpm_solver, unipc
from sdediff.solvers.exponential import advance, weights
from sdediff.solvers.multistep import lagrange_integrals
from sdediff.solvers.onestep import EULER, HEUN, MIDPOINT, RK4, EulerMaruyama, RungeKutta, StochasticHeun
from sdediff.testing import Convergence, affine_law, converge, mixture_problem

F32, F64 = torch.float32, torch.float64
SHIPPED, DOUBLE = 2e-5, 1e-12        # greatest difference over the trajectory, relative to its greatest entry
PROBLEM = mixture_problem()
# numpy 2 on torch's tensors, inside theirs
pytestmark = [pytest.mark.filterwarnings(f"ignore:{name}:DeprecationWarning") for name in ("__array__ implementation", "__array_wrap__")]


class _Wide:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self._module, name)


@pytest.fixture(params=["shipped", "double"])
def reading(request):
    return request.param


@pytest.fixture
def build(monkeypatch):
    """build(name, reading, **config): a diffusers scheduler. Its noise is that of ``draws``, in order of asking. The reading holds for its
    whole module until the next build."""
    pytest.importorskip("diffusers.schedulers", reason="diffusers is the oracle here: pip install 'sdediff[test]'")

    def make(name, reading="double", draws=None, **config):
        from diffusers import schedulers
        kind = getattr(schedulers, name + "Scheduler")
        module = importlib.import_module(kind.__module__)
        for name, library in (("torch", torch), ("np", np)):
            monkeypatch.setattr(module, name, _Wide(library) if reading == "double" else library, raising=False)
        if draws is not None:
            supply = iter(draws)
            monkeypatch.setattr(module, "randn_tensor", lambda *shape, dtype, **_: next(supply).to(dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)      # its eps-form algorithms are announced as deprecated
            return kind(**config)

    return make


def _chain(scheduler):
    return VPSDE.from_betas(scheduler.betas)


def _network(chain, score=PROBLEM.target.score):
    """eps(x, index): the exact one of a mixture, computed in float64 and returned in x's dtype; the index may be fractional."""
    return lambda x, index: score(x.double(), chain.at(float(index.reshape(-1)[0]) + 1)).eps.to(x.dtype)


def _start(rows=16, d=2, dtype=F64):
    return WhiteNoise(4, (rows, d), dtype=dtype).normal()


def _noise(rows=16, d=2):
    return WhiteNoise(9, (rows, d), dtype=F64)


def _draws(steps):
    return [_noise().at(k).normal(0) for k in range(steps)]


def _theirs(scheduler, network, x, **step):
    """Their trajectory. Schedulers that work on x/alpha (Euler, Heun, ...) are fed and read in x; Heun's inner states are left out."""
    exploded = type(scheduler).__name__[:-len("Scheduler")] in ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete")
    alpha = 1 / torch.sqrt(1 + scheduler.sigmas**2) if exploded else None
    inner = x / alpha[0] if exploded else x
    states = [x]
    for k, t in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(inner, t) if exploded else inner
        inner = scheduler.step(network(fed, t), t, inner, **step).prev_sample
        if getattr(scheduler, "last_sample", None) is not None:
            states[-1] = scheduler.last_sample                           # UniPC corrects a state when it next sees it
        if getattr(scheduler, "state_in_first_order", True) or k == len(scheduler.timesteps) - 1:
            states.append(inner * alpha[k + 1] if exploded else inner)
    return states


def _ours(solver, chain, times, x, eta=0.0, noise=None, network=None):
    score = from_network(network or _network(chain), "eps", time_input="index")
    return [state.x for state in iterate(ReverseSDE(chain, score, eta), solver, x, chain.levels(times), noise)]


def _knots(scheduler, last=0.0):
    """Their integer timesteps as chain times, and the level at which they end."""
    t = [float(i) + 1 for i in scheduler.timesteps.tolist()]
    return [*dict.fromkeys(t), last]


def _gap(a, b):
    assert len(a) == len(b)
    return max(float((u.double() - v.double()).abs().max()) for u, v in zip(a, b)) / max(float(v.abs().max()) for v in b)


def _bound(reading):
    return DOUBLE if reading == "double" else SHIPPED


def _x(reading):
    return _start(dtype=F64 if reading == "double" else F32)


SPACINGS = [("leading", 50), ("leading", 37), ("trailing", 50), ("trailing", 37), ("linspace", 37)]


# -- the chain samplers ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_timesteps_of_the_chain_grids(build, name):
    """Every step count from 2 to 1000. Trailing indices round k 1000/n; where that is a half, theirs and ours may fall on either side."""
    for spacing in ("leading", "trailing", "linspace"):
        scheduler = build(name, timestep_spacing=spacing)
        chain = _chain(scheduler)
        for n in [*range(2, 200), *range(200, 1001, 7), 1000]:
            scheduler.set_timesteps(n)
            theirs, ours = scheduler.timesteps.numpy(), np.array(grids.DDPM(spacing)(chain, n)[:-1]) - 1
            if spacing == "trailing":
                theirs = theirs[:n]                                      # test_deviation_trailing_...
                half = 2000 * np.arange(n) % (2 * n) == n
                assert (np.abs(theirs - ours) <= half).all()
            else:
                assert (theirs == ours).all()


@pytest.mark.parametrize("spacing, steps", SPACINGS)
@pytest.mark.parametrize("kind, variance", [("fixed_small", "posterior"), ("fixed_large", "beta")])
def test_ddpm(build, reading, kind, variance, spacing, steps):
    """Ho et al. 2020, Alg. 2, and sub-sampled. The step into the clean level is compared below where they add noise to it."""
    scheduler = build("DDPM", reading, _draws(steps), variance_type=kind, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    ours = _ours(DDIM(1.0, variance), chain, _knots(scheduler), _x("double"), noise=_noise())
    noisy_end = kind == "fixed_large" and scheduler.timesteps[-1] > 0
    assert _gap(theirs[:-1], ours[:-1]) < _bound(reading)
    if not noisy_end:                           # their clamp of the variance at 1e-20 leaves noise of 1e-10 on a last timestep other than 0
        assert _gap(theirs, ours) < max(_bound(reading), 1e-9)
    if variance == "posterior":
        assert _gap(_ours(Exponential(1, "x0"), chain, _knots(scheduler), _x("double"), 1.0, _noise()), ours) < 1e-12


def test_the_full_ddpm_chain_of_1000_steps(build, reading):
    scheduler = build("DDPM", reading, _draws(1000), clip_sample=False)
    scheduler.set_timesteps(1000)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    ours = _ours(Exponential(1, "x0"), chain, _knots(scheduler), _x("double"), 1.0, _noise())
    assert _gap(theirs, ours) < (DOUBLE if reading == "double" else 2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing, steps", [("leading", 50), ("leading", 37), ("trailing", 50)])
def test_ddim(build, reading, spacing, steps, eta):
    """Song et al. 2021a, eq. 12, where their fixed stride N // n meets the next timestep (it always does for "leading")."""
    scheduler = build("DDIM", reading, _draws(steps), timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading), eta=eta)
    assert _gap(theirs, _ours(DDIM(eta), chain, _knots(scheduler), _x("double"), noise=_noise())) < _bound(reading)


def test_ddim_ending_at_the_first_level(build, reading):
    """set_alpha_to_one=False ends at index 0, our t = 1. With "leading" the last step then has zero length and is left out."""
    scheduler = build("DDIM", reading, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    assert _gap(theirs[:-1], _ours(DDIM(), chain, _knots(scheduler)[:-1], _x("double"))) < _bound(reading)
    assert (theirs[-1] - theirs[-2]).abs().max() < SHIPPED


def test_ddim_inverse_is_encoding_one_level_late(build, reading):
    """DDIMInverse, "leading": the DDIM step upwards from level i to i + stride, but the network is told i + stride (its loop passes the
    level of arrival); ours asks the network where the state is. With the same question both agree."""
    scheduler = build("DDIMInverse", reading, timestep_spacing="leading", clip_sample=False)
    scheduler.set_timesteps(50)
    chain, stride = _chain(scheduler), 20
    network = _network(chain)
    late = lambda x, index: network(x, index + (stride if index.reshape(-1)[0] >= 0 else 1))
    times = [0.0, *(float(t) + 1 for t in scheduler.timesteps.tolist())]
    theirs = _theirs(scheduler, network, 0.5 * _x(reading))
    assert _gap(theirs, _ours(DDIM(), chain, times, 0.5 * _x("double"), network=late)) < _bound(reading)
    ours = encode(chain, from_network(network, "eps", time_input="index"), theirs[1].double(), method="ddim", grid=times[:0:-1])
    assert 1e-3 < float((theirs[-1].double() - ours).abs().max()) < 1


# -- exponential multistep methods ----------------------------------------------------------------------------------
PUBLISHED = {("dpmsolver++", "midpoint"): ("x0", "published"), ("dpmsolver++", "heun"): ("x0", "exact"),
             ("dpmsolver", "midpoint"): ("eps", "published"), ("dpmsolver", "heun"): ("eps", "exact")}


@pytest.mark.parametrize("spacing, steps", [("linspace", 20), ("leading", 20), ("trailing", 20), ("trailing", 37)])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order, kind", [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")])
def test_dpm_solver_multistep(build, reading, order, algorithm, kind, spacing, steps):
    """DPM-Solver(++) 1, 2M and 3M as published; "heun" is the exact integral of the same interpolant. The x0 form ends at sigma = 0, by a
    step of order 1 in both; the eps form ends at index 0."""
    end = "zero" if algorithm == "dpmsolver++" else "sigma_min"
    scheduler = build("DPMSolverMultistep", reading, solver_order=order, algorithm_type=algorithm, solver_type=kind,
                      timestep_spacing=spacing, lower_order_final=False, final_sigmas_type=end)
    scheduler.set_timesteps(steps)
    chain = _chain(scheduler)
    form, kernel = PUBLISHED[algorithm, kind]
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    ours = _ours(Exponential(order, form, kernel), chain, _knots(scheduler, 0.0 if end == "zero" else 1.0), _x("double"))
    assert _gap(theirs, ours) < _bound(reading)


@pytest.mark.parametrize("order, algorithm", [(1, "sde-dpmsolver++"), (2, "sde-dpmsolver++"), (1, "sde-dpmsolver"), (2, "sde-dpmsolver")])
def test_sde_dpm_solver_multistep(build, reading, order, algorithm):
    """SDE-DPM-Solver(++) 1 and 2M: ReverseSDE(eta=1), the same noise."""
    end = "zero" if algorithm == "sde-dpmsolver++" else "sigma_min"
    scheduler = build("DPMSolverMultistep", reading, _draws(20), solver_order=order, algorithm_type=algorithm, lower_order_final=False,
                      final_sigmas_type=end)
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    ours = _ours(Exponential(order, "x0" if algorithm.endswith("++") else "eps", "published"), chain,
                 _knots(scheduler, 0.0 if end == "zero" else 1.0), _x("double"), 1.0, _noise())
    assert _gap(theirs, ours) < _bound(reading)


@pytest.mark.parametrize("x0", [True, False], ids=["x0", "eps"])
@pytest.mark.parametrize("kernel", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(build, reading, order, kernel, x0):
    """UniPC-p, both B(h), both forms. bh2 in x0 form ends at sigma = 0 by order 1 (3 comes down by way of 2). The others end at index 0
    (see test_deviation_unipc_bh1); theirs corrects a step at the start of the next, so never its last: there our prediction is compared."""
    clean = x0 and kernel == "bh2"
    scheduler = build("UniPCMultistep", reading, solver_order=order, solver_type=kernel, predict_x0=x0, lower_order_final=clean,
                      final_sigmas_type="zero" if clean else "sigma_min")
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    levels, n = chain.levels(_knots(scheduler, 0.0 if clean else 1.0)), len(scheduler.timesteps)
    eq = ReverseSDE(chain, from_network(_network(chain), "eps", time_input="index"))
    ours = [State(_x("double"))]
    for k, (t, s) in enumerate(pairwise(levels)):
        p = min(order, n - k) if clean else order
        ours.append(unipc(p, kernel, "x0" if x0 else "eps").step(eq, ours[-1], t, s, None))
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    assert _gap(theirs[:-1], [state.x for state in ours[:-1]]) < _bound(reading)
    end = ours[-1].x if clean else ours[-1].prediction.x
    assert _gap(theirs[-1:], [end]) < 5 * _bound(reading)                # their sigma at index 0 is off by 1e-4 in float32
    if not clean:
        assert (ours[-1].prediction.x - ours[-1].x).abs().max() > 1e-8


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_of_diffusers_interpolates_in_log_snr(build, reading, order):
    """DEISMultistep integrates polynomials in log(sigma/alpha), logrho: our eab-p, not the paper's t-DEIS (our deis-p); it ends at index 0.
    As shipped the third order is compared on few steps alone, see test_deviation_deis_3_..."""
    scheduler = build("DEISMultistep", reading, solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    ours = _ours(Exponential(order, "eps"), chain, _knots(scheduler, 1.0), _x("double"))
    assert _gap(theirs, ours) < (1e-3 if order == 3 and reading == "shipped" else _bound(reading))
    if order > 1:
        for variable in ("t", "rho"):
            assert _gap(theirs, _ours(AdamsBashforth(order, variable), chain, _knots(scheduler, 1.0), _x("double"))) > 1e-3


# -- the chart x/alpha ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spacing, steps", [("leading", 50), ("trailing", 37)])
@pytest.mark.parametrize("name, solver", [
    ("EulerDiscrete", Exploded(EULER)), ("EulerDiscrete", DDIM()), ("EulerAncestralDiscrete", Ancestral(Exploded(EULER))),
    ("EulerAncestralDiscrete", DDIM(1.0)), ("HeunDiscrete", Exploded(HEUN)), ("LMSDiscrete", AdamsBashforth(4, "rho"))],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_schedulers_in_the_exploded_chart(build, reading, name, solver, spacing, steps):
    """Euler = DDIM, ancestral Euler = DDPM, Heun with Euler into sigma = 0 = EDM, LMS = Adams-Bashforth in sigma/alpha."""
    scheduler = build(name, reading, _draws(steps) if "Ancestral" in name else None, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _x(reading))
    ours = _ours(solver, chain, _knots(scheduler), _x("double"), noise=_noise())
    if name == "LMSDiscrete":                   # the last step: test_deviation_lms_...
        theirs, ours = theirs[:-1], ours[:-1]
    assert _gap(theirs, ours) < _bound(reading)


def _sigma_told(scheduler, chain, network):
    """A network that is told the level of the integrator's own sigma, not the timestep that the scheduler announces."""
    return lambda x, t: network(x, torch.tensor(chain.level_of(-math.log(scheduler.sigmas[scheduler.step_index or 0])).t - 1, dtype=F64))


def _sigma_times(scheduler, chain):
    return [chain.level_of(-math.log(v)).t if v else 0.0 for v in dict.fromkeys(scheduler.sigmas.tolist())]


@pytest.mark.parametrize("name, solver, config", [
    ("DPMSolverMultistep", Exponential(2, "x0", "published"), {"lower_order_final": False}), ("EulerDiscrete", DDIM(), {}),
    ("HeunDiscrete", Exploded(HEUN), {})], ids=["dpm++2m", "euler", "heun"])
def test_karras_sigmas_between_the_knots(build, reading, name, solver, config):
    """On Karras' sigmas, and on our Karras grid, which is the same one from knot to knot."""
    scheduler = build(name, reading, use_karras_sigmas=True, **config)
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    network = _network(chain)
    theirs = _theirs(scheduler, _sigma_told(scheduler, chain, network), _x(reading))
    ours = _ours(solver, chain, _sigma_times(scheduler, chain), _x("double"))
    assert _gap(theirs, ours) < _bound(reading)
    if name == "DPMSolverMultistep":
        ours = grids.Karras()(chain, 20, t_end=0.0)
        assert np.allclose(_sigma_times(scheduler, chain)[1:-2], ours[1:-2], atol=1e-6 if reading == "double" else 0.1)


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_singlestep(build, reading, order):
    """DPM-Solver++ 2S and 3S take their stages from the grid: on one uniform in lambda they are the papers' (1/2; 1/3 and 2/3), but that
    the second stage of their 3S takes half of the zeroth moment for the first (a local difference of fourth order)."""
    scheduler = build("DPMSolverSinglestep", reading, solver_order=order, final_sigmas_type="sigma_min", lower_order_final=False)
    sde = VPSDE()
    levels, network = _place(scheduler, sde, 24)
    theirs = _theirs(scheduler, network, _x(reading))[::order]
    eq = ReverseSDE(sde, PROBLEM.target.score)
    ours = [s.x for s in iterate(eq, dpm_solver(order, "x0"), _x("double"), levels[::order])]
    if order == 3:
        written = [_x("double")]
        for t, one, two, s in zip(levels[::3], levels[1::3], levels[2::3], levels[3::3]):
            nodes = [(t, eq.predict(written[-1], t).x0)]
            nodes.append((one, eq.predict(advance(written[-1], t, one, nodes, "x0"), one).x0))
            nodes.append((two, eq.predict(advance(written[-1], t, two, nodes, "x0", "bh2"), two).x0))
            written.append(advance(written[-1], t, s, nodes[::2], "x0"))
        assert 1e-4 < _gap(written, ours) < 1e-2
        ours = written
    assert _gap(theirs, ours) < _bound(reading)


def _place(scheduler, sde, steps, t_start=None):
    """Put a sigma-based scheduler on ``steps`` intervals uniform in lambda of our process. Returns the levels and the network there."""
    scheduler.set_timesteps(steps)
    levels = sde.levels(grids.LogSNR()(sde, steps, t_start))
    scheduler.sigmas = torch.tensor([m.sigma / m.alpha for m in levels], dtype=scheduler.sigmas.dtype)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    return levels, lambda x, t: PROBLEM.target.score(x.double(), levels[steps - int(t)]).eps.to(x.dtype)


def test_ipndm(build, reading):
    """IPNDM knows no beta table (its levels are sin and cos, its network predicts v): given a process's levels it is our ipndm."""
    scheduler = build("IPNDM", reading)
    scheduler.set_timesteps(30)
    sde = VPSDE()
    levels = sde.levels(grids.Karras()(sde, 30))
    dtype = F64 if reading == "double" else F32
    scheduler.betas, scheduler.alphas = (torch.tensor([getattr(m, v) for m in levels], dtype=dtype) for v in ("sigma", "alpha"))
    by_time = dict(zip(scheduler.timesteps.tolist(), levels))
    theirs = _theirs(scheduler, lambda x, t: PROBLEM.target.score(x.double(), by_time[float(t)]).v.to(x.dtype), _x(reading))
    ours = [s.x for s in iterate(ReverseSDE(sde, PROBLEM.target.score), IPNDM(), _x("double"), levels)]
    assert _gap(theirs, ours) < _bound(reading)


def test_flow_matching_euler(build, reading):
    """FlowMatchEulerDiscrete: Euler on the straight path, from alpha = 0 to sigma = 0."""
    scheduler = build("FlowMatchEulerDiscrete", reading)
    scheduler.set_timesteps(25)
    sde, score = RectifiedFlow(t_min=0.0), PROBLEM.target.score
    theirs = _theirs(scheduler, lambda x, t: score(x.double(), sde.at(float(t) / 1000)).velocity.to(x.dtype), _x(reading))
    ours = [s.x for s in iterate(ReverseSDE(sde, score), EULER, _x("double"), sde.levels(scheduler.sigmas.tolist()))]
    assert _gap(theirs, ours) < _bound(reading)


# -- orders ---------------------------------------------------------------------------------------------------------
THEIR_ORDERS = [("DPMSolverMultistep", 1, 1), ("DPMSolverMultistep", 2, 2), ("DEISMultistep", 2, 2), ("DEISMultistep", 3, 3),
                ("UniPCMultistep", 1, 2), ("UniPCMultistep", 2, 3)]


def _their_convergence(build, name, steps=(40, 80, 160, 320), **config):
    """On the problem and the grids of ``sdediff.testing``, in double."""
    errors, sde = [], PROBLEM.sde
    end = {} if name == "DEISMultistep" else {"final_sigmas_type": "sigma_min"}
    for n in steps:
        scheduler = build(name, lower_order_final=False, **end, **config)
        _, network = _place(scheduler, sde, n)
        x = _theirs(scheduler, network, PROBLEM.start(1.0))[-1]
        errors.append(float((x - PROBLEM.solution(1.0, sde.t_min)).square().mean().sqrt()))
    return Convergence(steps, tuple(errors))


@pytest.mark.parametrize("name, solver_order, order", THEIR_ORDERS)
def test_their_orders_are_the_papers(build, name, solver_order, order):
    measured = _their_convergence(build, name, solver_order=solver_order)
    assert measured.meets(order), measured
    assert measured.order < order + 0.5, measured


@pytest.mark.parametrize("algorithm, form", [("dpmsolver++", "x0"), ("dpmsolver", "eps")])
def test_deviation_their_third_order_multistep_has_order_two(build, algorithm, form):
    """solver_order=3: the divided difference D2 = (D1_0 - D1_1)/(r0 + r1) is h^2 x''/2, the weight phi_2/h - 1/2 belongs to h^2 x'': a
    factor 2 is missing, as in Lu et al.'s own code. Ours is third order; with kernel="published" it is theirs (above)."""
    theirs = _their_convergence(build, "DPMSolverMultistep", solver_order=3, algorithm_type=algorithm)
    ours = converge(method("eab-3", form=form), PROBLEM)
    assert 1.8 < theirs.order < 2.2, theirs
    assert ours.order > 2.9 and ours.errors[-1] < theirs.errors[-1] / 5, (ours, theirs)


# -- deviations -----------------------------------------------------------------------------------------------------
SDE_MULTISTEP = {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False, "final_sigmas_type": "sigma_min"}


def test_deviation_sde_third_order_has_a_sign_error(build):
    """sde-dpmsolver++ with solver_order=3 weighs D2 by (1 - e^{-2h} - 2h)/(2h)^2 - 1/2 -> -1 where + 1/2 -> 0 is meant: off by -alpha_s D2
    for every step size. The bias of the variance on Gaussian data, exact by unit impulses, is 9 times the right form's at 50 steps (8.5 %
    of the variance) and 30 times at 200: third order is worse than second."""
    scheduler = build("DPMSolverMultistep", **SDE_MULTISTEP, solver_order=3)
    sde = VPSDE()
    levels, _ = _place(scheduler, sde, 10)
    scheduler._step_index, (a, b, c, s) = 5, levels[3:7]
    outputs, zero = [_start() + k for k in (0.0, 0.3, 1.0)], torch.zeros(16, 2, dtype=F64)
    theirs = scheduler.multistep_dpm_solver_third_order_update(outputs, sample=zero, noise=zero)
    w = weights([v.lam - c.lam for v in (c, b, a)], s.lam - c.lam, 2.0, "published")
    ours = s.alpha * sum(w_j * v for w_j, v in zip(w, reversed(outputs)))
    h, h0, h1 = s.lam - c.lam, c.lam - b.lam, b.lam - a.lam
    d10, d11 = (outputs[2] - outputs[1]) * h / h0, (outputs[1] - outputs[0]) * h / h1
    assert (ours - theirs - s.alpha * h / (h0 + h1) * (d10 - d11)).abs().max() < 1e-12
    published = dataclasses.replace(method("dpm++2m-sde"), solver=Exponential(3, "x0", "published"))
    exact, biases = affine_law("ddim", sde, sde.levels([1.0, sde.t_min])).exact_variance, {}
    for n in (50, 200):
        right = affine_law(published, sde, sde.levels(grids.LogSNR()(sde, n))).variance
        second, third = (_their_law(build, n, order) for order in (2, 3))
        biases[n] = second - exact, third - exact, right - exact
        assert abs(second - exact) < abs(third - exact) / 6
    assert biases[50][1] > 9 * biases[50][2] > 0 and biases[200][1] > 30 * biases[200][2] > 0, biases


def _their_law(build, n, order, mean=0.5, variance=0.25):
    """The exact output variance of theirs on N(mean, variance): row 1 has a unit start, row k + 2 a unit noise in step k alone."""
    rows, sde = n + 2, VPSDE()
    draws = torch.zeros(n, rows, 1, dtype=F64)
    for k in range(n):
        draws[k, k + 2] = 1.0
    scheduler = build("DPMSolverMultistep", "double", draws, **SDE_MULTISTEP, solver_order=order)
    levels, _ = _place(scheduler, sde, n)

    def network(x, t):
        m = levels[n - int(t)]
        return m.sigma * (x - m.alpha * mean) / (m.alpha**2 * variance + m.sigma**2)

    x = torch.zeros(rows, 1, dtype=F64)
    x[1] = 1.0
    out = _theirs(scheduler, network, x)[-1][:, 0]
    response, first = out[1:] - out[0], levels[0]
    return float(response[0]**2 * (first.alpha**2 * variance + first.sigma**2) + response[1:].square().sum())


def test_deviation_ddim_linspace_steps_by_a_fixed_stride(build):
    """DDIM steps from t to t - N // n whatever the grid. On "linspace" (and on "trailing" where n does not divide N) the next timestep is
    another one: the state of level t - N // n is handed to the network as one of the next level. Reproduced here with our step. The error
    then grows with the number of steps: 0.033 at 50, 0.11 at 350 (0.15 at 600), where DDIM's falls from 0.036 to 0.005."""
    scheduler = build("DDIM", timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(50)
    chain, x = _chain(scheduler), _start()
    eq = ReverseSDE(chain, from_network(_network(chain), "eps", time_input="index"))
    slipped = [State(x)]
    for t in _knots(scheduler)[:-1]:
        slipped.append(DDIM().step(eq, slipped[-1], chain.at(t), chain.at(max(0.0, t - 1000 // 50)), None))
    theirs = _theirs(scheduler, _network(chain), x)
    assert _gap(theirs, [state.x for state in slipped]) < DOUBLE
    exact = _ours(Exponential(3, "eps"), chain, [*map(float, range(1000, 0, -5)), 1.0, 0.0], x)[-1]
    errors = []
    for n in (50, 350):
        scheduler.set_timesteps(n)
        runs = _theirs(scheduler, _network(chain), x), _ours(DDIM(), chain, _knots(scheduler), x)
        errors.append([float((run[-1] - exact).square().mean().sqrt()) for run in runs])
    (theirs_50, ours_50), (theirs_350, ours_350) = errors
    assert ours_350 < ours_50 / 5 and theirs_350 > 2 * theirs_50 and theirs_350 > 15 * ours_350, errors


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_deviation_trailing_appends_a_timestep_of_minus_one(build, name):
    """np.arange(N, 0, -N/n) reaches past its end by rounding for 62 of the step counts up to 1000, 61 the first: one timestep too many,
    and it is -1, which indexes the *noisiest* entry of the table. The finished sample is denoised as if it were pure noise."""
    scheduler = build(name, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(61)
    chain = _chain(scheduler)
    assert len(scheduler.timesteps) == 62 and scheduler.timesteps[-1] == -1
    states = _theirs(scheduler, lambda x, t: _network(chain)(x, t) if t >= 0 else torch.zeros_like(x), _start())
    assert (states[-1] / states[-2]).mean() == pytest.approx(math.exp(-0.5 * float(chain._log_abar[-1])), rel=0.5)
    ours = grids.DDPM("trailing")(chain, 61)
    assert len(ours) == 62 and ours[-1] == 0.0 and ours[-2] > 1.0


def test_deviation_linspace_with_one_step_starts_clean(build):
    """linspace with n = 1 is [0]: the noise is taken for the cleanest level. Ours is the noisiest index."""
    for name in ("DDPM", "DDIM"):
        scheduler = build(name, timestep_spacing="linspace")
        scheduler.set_timesteps(1)
        assert scheduler.timesteps.tolist() == [0]
        assert grids.DDPM("linspace")(_chain(scheduler), 1) == [1000.0, 0.0]


def test_deviation_ddpm_fixed_large_adds_noise_to_the_clean_level(build):
    """Noise is left out where t == 0, not where the step is the last: with "trailing" the last timestep is N/n - 1, and "fixed_large" adds
    sqrt(1 - abar) xi to the finished sample. Ours adds none at sigma = 0."""
    scheduler = build("DDPM", "double", _draws(50), variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(50)
    chain = _chain(scheduler)
    theirs = _theirs(scheduler, _network(chain), _start())[-1]
    ours = _ours(DDIM(1.0, "beta"), chain, _knots(scheduler), _start(), noise=_noise())[-1]
    assert (theirs - ours - chain.at(20.0).sigma * _draws(50)[-1]).abs().max() < DOUBLE
    assert chain.at(20.0).sigma > 0.07


def test_deviation_ddpm_fixed_large_log_is_nan(build):
    """variance_type="fixed_large_log" returns log(beta), and step takes its square root."""
    scheduler = build("DDPM", "shipped", _draws(50), variance_type="fixed_large_log", clip_sample=False)
    scheduler.set_timesteps(50)
    assert _theirs(scheduler, _network(_chain(scheduler)), _start())[1].isnan().all()


def test_deviation_unipc_bh1_is_nan_at_sigma_zero(build):
    """solver_type="bh1" with the default final_sigmas_type="zero": B(h) = -h is infinite and meets the empty correction, inf * 0."""
    scheduler = build("UniPCMultistep", "shipped", solver_type="bh1")
    scheduler.set_timesteps(20)
    states = _theirs(scheduler, _network(_chain(scheduler)), _start(dtype=F32))
    assert states[-1].isnan().all() and states[-2].isfinite().all()


def test_deviation_lms_keeps_its_order_into_sigma_zero(build):
    """LMSDiscrete integrates its polynomial down to sigma = 0; our Adams-Bashforth takes that step of infinite length in lambda by DDIM."""
    scheduler = build("LMSDiscrete", timestep_spacing="leading")
    scheduler.set_timesteps(50)
    chain = _chain(scheduler)
    theirs, ours = _theirs(scheduler, _network(chain), _start()), _ours(AdamsBashforth(4, "rho"), chain, _knots(scheduler), _start())
    t, clean = chain.at(1.0), chain.at(0.0)
    recent = [chain.at(v) for v in _knots(scheduler)[-2:-6:-1]]
    eps = [_network(chain)(x, torch.tensor([m.t - 1])) for m, x in zip(recent, ours[-2::-1])]
    w = lagrange_integrals([m.sigma / m.alpha for m in recent], lambda k: k, t.sigma / t.alpha, 0.0)
    assert (theirs[-1] - clean.alpha * (ours[-2] / t.alpha + sum(a * b for a, b in zip(w, eps)))).abs().max() < DOUBLE
    assert (theirs[-1] - ours[-1]).abs().max() > 1e-6


def test_deviation_karras_sigmas_are_not_the_levels_the_network_is_told(build):
    """DPMSolverMultistep with Karras sigmas tells the network the *rounded* index while the integrator uses the sigma between two."""
    scheduler = build("DPMSolverMultistep", use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    assert not scheduler.timesteps.is_floating_point()
    told = _theirs(scheduler, _network(chain), _start())[-1]
    scheduler.set_timesteps(20)
    right = _theirs(scheduler, _sigma_told(scheduler, chain, _network(chain)), _start())[-1]
    assert (told - right).abs().max() > 1e-3


def test_deviation_linspace_of_the_sigma_schedulers_is_fractional(build):
    """EulerDiscrete does not round "linspace": sigma is interpolated between knots linearly in sigma, ours linearly in log abar, so the
    level that belongs to its sigma is not the fractional index that it tells the network (by a few thousandths)."""
    scheduler = build("EulerDiscrete", timestep_spacing="linspace")
    scheduler.set_timesteps(37)
    chain = _chain(scheduler)
    index = scheduler.timesteps.double().numpy()
    assert np.abs(index - index.round()).max() > 0.3
    drift = np.array(_sigma_times(scheduler, chain)[:-1]) - 1 - index
    assert 1e-3 < np.abs(drift).max() < 1e-2


def test_deviation_the_tables_are_float32(build):
    """1 - abar is formed in float32: sigma at the first index is off by 1e-4 of itself; a float64 sample is stepped in float32 by DPM++."""
    sigmas, ends = [], []
    for reading in ("shipped", "double"):
        scheduler = build("DPMSolverMultistep", reading)
        sigmas.append(scheduler.sigmas.double())
        scheduler.set_timesteps(20)
        ends.append(_theirs(scheduler, _network(_chain(scheduler)), _start())[-1])
        assert ends[-1].dtype == F64
    off = (sigmas[0] / sigmas[1] - 1).abs()
    assert 5e-5 < off[0] < 2e-4 and off[100:].max() < 1e-5
    assert 1e-9 < (ends[0] - ends[1]).abs().max() < 1e-4


def test_deviation_deis_3_loses_its_digits_in_float32(build):
    """Its third-order weights are differences of t (log c log d ...) formed in float32: the finer the grid, the fewer digits remain."""
    sde, gaps = VPSDE(), []
    for n in (50, 250):
        runs = []
        for reading in ("shipped", "double"):
            scheduler = build("DEISMultistep", reading, solver_order=3, lower_order_final=False)
            _, network = _place(scheduler, sde, n)
            runs.append(_theirs(scheduler, network, _x(reading))[-1])
        gaps.append(float((runs[0] - runs[1]).abs().max()))
    assert gaps[0] < 5e-4 and gaps[1] > 1e-3, gaps              # 4e-5 and 6e-3; 0.07 at 900 steps


# -- torchdiffeq, torchsde, scipy -----------------------------------------------------------------------------------
KUTTA_38 = RungeKutta((0.0, 1 / 3, 2 / 3, 1.0), ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4)
HEUN_3 = RungeKutta((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3)
EQ, TIMES = ReverseSDE(PROBLEM.sde, PROBLEM.target.score), [1.0 - k / 32 for k in range(32)]


def _field(t, y):
    return EQ.drift(y, EQ.at(min(max(float(t), 1e-4), 1.0)))             # adaptive methods look past the ends


def _end(solver, x, times=TIMES):
    *_, state = iterate(EQ, solver, x, EQ.sde.levels(times))
    return state.x


@pytest.mark.parametrize("name, solver", [("euler", EULER), ("midpoint", MIDPOINT), ("heun2", HEUN), ("heun3", HEUN_3), ("rk4", KUTTA_38)],
                         ids=lambda v: v if isinstance(v, str) else "")
def test_torchdiffeq_fixed_grid(name, solver):
    odeint = pytest.importorskip("torchdiffeq", reason="torchdiffeq is the oracle here: pip install 'sdediff[test]'").odeint
    theirs = odeint(_field, _start(), torch.tensor(TIMES, dtype=F64), method=name)[-1]
    assert (theirs - _end(solver, _start())).abs().max() < 1e-12


def test_deviation_torchdiffeq_rk4_is_kuttas_three_eighths_rule():
    """method="rk4" is not the classical tableau (0, 1/2, 1/2, 1); both have order 4."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    theirs = odeint(_field, _start(), torch.tensor(TIMES, dtype=F64), method="rk4")[-1]
    assert 1e-8 < (theirs - _end(RK4, _start())).abs().max() < 1e-3


def test_adaptive_integrators_agree():
    """torchdiffeq's dopri5, scipy's DOP853 called directly, scipy-rk45 through ``sample``, and our rk4 on a fine grid: one endpoint."""
    x, span = _start(), [1.0, 0.0625]
    scipy = solve_ivp(lambda t, y: _field(t, torch.from_numpy(y).view_as(x)).numpy().ravel(), span, x.numpy().ravel(), method="DOP853",
                      rtol=1e-11, atol=1e-11, t_eval=span[1:])
    exact = torch.from_numpy(scipy.y[:, -1]).view_as(x)
    runs = {"scipy-rk45": sample(EQ.sde, EQ.score, x_init=x, method="scipy-rk45", grid=span, rtol=1e-9, atol=1e-9),
            "rk4": _end(RK4, x, np.linspace(*span, 241).tolist()),
            "eab-4": _end(method("eab-4").solver, x, grids.LogSNR()(EQ.sde, 240, *span))}
    try:
        from torchdiffeq import odeint
        runs["dopri5"] = odeint(_field, x, torch.tensor(span, dtype=F64), method="dopri5", rtol=1e-10, atol=1e-10)[-1]
    except ImportError:
        pass
    for name, run in runs.items():
        assert (run - exact).abs().max() < 3e-7, name


class _Path(Noise):
    """torchsde's Brownian path in its clock -t as our noise source."""

    def __init__(self, path, shape):
        self.path, self.shape, self.dtype, self.device = path, shape, F64, torch.device("cpu")

    def at(self, step):
        return self

    def within(self):
        return self

    def normal(self, use=1):
        raise NotImplementedError("a path has no draws of its own")

    def unit(self, t, s):
        return self.path(torch.tensor(-t.t, dtype=F64), torch.tensor(-s.t, dtype=F64)).view(self.shape) / math.sqrt(t.t - s.t)


@pytest.fixture
def their_sde():
    """run(method, steps): torchsde on [1, 1/16] in the clock -t; noise: its path, as a source for ours."""
    torchsde = pytest.importorskip("torchsde")
    eq, x = ReverseSDE(PROBLEM.sde, PROBLEM.target.score, 1.0), PROBLEM.start(1.0)
    ends = torch.tensor([-1.0, -1 / 16], dtype=F64)
    path = torchsde.BrownianInterval(ends[0], ends[1], size=tuple(x.shape), dtype=F64, entropy=7, levy_area_approximation="space-time")

    class Reverse(torch.nn.Module):
        noise_type = "diagonal"

        def __init__(self, kind):
            super().__init__()
            self.sde_type = kind

        def f(self, tau, y):
            return -eq.drift(y, eq.at(-float(tau)))

        def g(self, tau, y):
            return torch.full_like(y, eq.diffusion(eq.at(-float(tau))))

    def theirs(name, steps):
        kind = "stratonovich" if name in ("heun", "midpoint") else "ito"
        return torchsde.sdeint(Reverse(kind), x, ends, bm=path, method=name, dt=15 / 16 / steps)[-1]

    def ours(solver, steps):
        levels = eq.sde.levels([1.0 - k * 15 / 16 / steps for k in range(steps + 1)])
        *_, state = iterate(eq, solver, x, levels, _Path(path, tuple(x.shape)))
        return state.x

    return theirs, ours


@pytest.mark.parametrize("name, solver", [("euler", EulerMaruyama()), ("milstein", EulerMaruyama()), ("heun", StochasticHeun())],
                         ids=["euler", "milstein", "heun"])
def test_torchsde_on_its_own_brownian_path(their_sde, name, solver):
    """With additive noise Milstein's correction vanishes, and Stratonovich's Heun is Ito's."""
    theirs, ours = their_sde
    assert (theirs(name, 60) - ours(solver, 60)).abs().max() < 1e-11


def test_our_sde_methods_converge_to_torchsdes_srk_path_by_path(their_sde):
    """srk (order 1.5) on a fine grid of the same path is the truth: Euler-Maruyama and stochastic Heun have strong order 1."""
    theirs, ours = their_sde
    fine = theirs("srk", 240)
    for solver in (EulerMaruyama(), StochasticHeun()):
        errors = tuple(float((ours(solver, n) - fine).square().mean().sqrt()) for n in (30, 60, 120))
        assert Convergence((30, 60, 120), errors).order == pytest.approx(1.0, abs=0.25), (solver, errors)
