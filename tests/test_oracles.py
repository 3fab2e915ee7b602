r"""Oracles: code by others on the same network, grid and noise, and each place where theirs and the paper part.

Two readings of diffusers. *As shipped* its tables and states are float32, and what remains is its rounding. *In double* the same code
runs with ``torch.float32`` and ``numpy.float32`` of its module read as float64: then the formulas alone are compared, to 1e-9.
Its timestep i is our chain time t = i + 1; its sigma is our sigma/alpha; its final sigma of 0 is our clean level t = 0.

Tests named ``deviation`` pin what differs and say why. Measured with diffusers 0.42.1, torchsde 0.2.6, torchdiffeq 0.2.5.
"""
import importlib
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sdediff import RectifiedFlow, ReverseSDE, VPSDE, encode, from_network, from_score, grids, iterate, method, sample
from sdediff.random import Noise, WhiteNoise
from sdediff.solvers import (DDIM, EULER, HEUN, IPNDM, MIDPOINT, RK4, AdamsBashforth, Ancestral, EulerMaruyama, Exploded, Exponential, RungeKutta,
                             State, StochasticHeun, UniPC, dpm_solver, table)
from sdediff.testing import Convergence, mixture_problem

F32, F64 = torch.float32, torch.float64
SHIPPED, DOUBLE = 2e-5, 1e-9        # greatest difference over the trajectory, relative to its greatest entry
PROBLEM = mixture_problem()
pytestmark = [pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),       # numpy 2 on torch's tensors, inside theirs
              pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]


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
    """build(name, reading, **config): a diffusers scheduler. Its noise is that of ``draws``, in order of asking."""
    pytest.importorskip("diffusers.schedulers", reason="diffusers is the oracle here: pip install 'sdediff[test]'")

    def make(name, reading="double", draws=None, **config):
        from diffusers import schedulers
        kind = getattr(schedulers, name + "Scheduler")
        module = importlib.import_module(kind.__module__)
        if reading == "double":
            for library in ("torch", "np"):
                if not isinstance(getattr(module, library, None), _Wide) and hasattr(module, library):
                    monkeypatch.setattr(module, library, _Wide(getattr(module, library)))
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
        fed = scheduler.scale_model_input(inner, t)
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


@pytest.mark.parametrize("spacing, steps", [*SPACINGS, ("leading", 1000)])
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
    if not noisy_end:
        assert _gap(theirs, ours) < _bound(reading)
    if variance == "posterior":
        assert _gap(_ours(Exponential(1, "x0"), chain, _knots(scheduler), _x("double"), 1.0, _noise()), ours) < 1e-12


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
    """DDIMInverse, "leading": the DDIM step upwards from level i to i + stride, but the network is told i + stride (its loop passes the level
    of arrival, so that decoding's calls are repeated); ours asks the network where the state is. With the same question both agree."""
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
@pytest.mark.parametrize("order, algorithm, kind", [(1, "dpmsolver++", "midpoint"), (2, "dpmsolver++", "midpoint"), (2, "dpmsolver++", "heun"),
                                                    (3, "dpmsolver++", "midpoint"), (1, "dpmsolver", "midpoint"), (2, "dpmsolver", "midpoint"),
                                                    (2, "dpmsolver", "heun"), (3, "dpmsolver", "midpoint")])
def test_dpm_solver_multistep(build, reading, order, algorithm, kind, spacing, steps):
    """DPM-Solver(++) 1, 2M and 3M as published; "heun" is the exact integral of the same interpolant. The x0 form ends at sigma = 0, by a
    step of order 1 in both; the eps form ends at index 0."""
    end = "zero" if algorithm == "dpmsolver++" else "sigma_min"
    scheduler = build("DPMSolverMultistep", reading, solver_order=order, algorithm_type=algorithm, solver_type=kind, timestep_spacing=spacing,
                      lower_order_final=False, final_sigmas_type=end)
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
    """UniPC-p, both B(h), both forms. The x0 form ends at sigma = 0 by order 1 (3 comes down by way of 2); the eps form ends at index 0,
    where theirs corrects a step at the start of the next and so never its last: there our prediction is compared."""
    scheduler = build("UniPCMultistep", reading, solver_order=order, solver_type=kernel, predict_x0=x0, lower_order_final=x0,
                      final_sigmas_type="zero" if x0 else "sigma_min")
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    levels, n = chain.levels(_knots(scheduler, 0.0 if x0 else 1.0)), len(scheduler.timesteps)
    eq = ReverseSDE(chain, from_network(_network(chain), "eps", time_input="index"))
    ours = [State(_x("double"))]
    for k, (t, s) in enumerate(pairwise(levels)):
        p = min(order, n - k) if x0 else order
        ours.append(UniPC(p, kernel, "x0" if x0 else "eps").step(eq, ours[-1], t, s, None))
    theirs, ours = _theirs(scheduler, _network(chain), _x(reading)), ours
    corrected, last = [state.x for state in ours], ours[-1]
    assert _gap(theirs[:-1], corrected[:-1]) < _bound(reading)
    predicted = last.x if x0 else last.prediction.x
    assert _gap(theirs[-1:], [predicted]) < _bound(reading)
    if not x0:
        assert (predicted - last.x).abs().max() > 1e-9


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
@pytest.mark.parametrize("name, solver", [("EulerDiscrete", Exploded(EULER)), ("EulerDiscrete", DDIM()), ("HeunDiscrete", Exploded(HEUN)),
                                          ("EulerAncestralDiscrete", Ancestral(Exploded(EULER))), ("EulerAncestralDiscrete", DDIM(1.0)),
                                          ("LMSDiscrete", AdamsBashforth(4, "rho"))], ids=lambda v: v if isinstance(v, str) else type(v).__name__)
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


@pytest.mark.parametrize("name, solver", [("DPMSolverMultistep", Exponential(2, "x0", "published")), ("EulerDiscrete", DDIM()), ("HeunDiscrete", Exploded(HEUN))],
                         ids=["dpm++2m", "euler", "heun"])
def test_karras_sigmas_between_the_knots(build, reading, name, solver):
    """On Karras' sigmas, and on our Karras grid, which is the same one from knot to knot."""
    scheduler = build(name, reading, use_karras_sigmas=True, **({"lower_order_final": False} if name == "DPMSolverMultistep" else {"timestep_spacing": "trailing"}))
    scheduler.set_timesteps(20)
    chain = _chain(scheduler)
    network = _network(chain)
    theirs = _theirs(scheduler, _sigma_told(scheduler, chain, network), _x(reading))
    ours = _ours(solver, chain, _sigma_times(scheduler, chain), _x("double"))
    assert _gap(theirs, ours) < (1e-8 if reading == "double" else SHIPPED)
    if name == "DPMSolverMultistep":
        assert np.allclose(_sigma_times(scheduler, chain)[1:-2], grids.Karras()(chain, 20, t_end=0.0)[1:-2], atol=1e-6 if reading == "double" else 0.1)


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_singlestep(build, reading, order):
    """DPM-Solver++ 2S and 3S take their stages from the grid: on one uniform in lambda they are the papers' (1/2; 1/3 and 2/3)."""
    scheduler, chain = build("DPMSolverSinglestep", reading, solver_order=order, final_sigmas_type="sigma_min", lower_order_final=False), None
    scheduler.set_timesteps(24)
    sde = VPSDE()
    levels, network = _place(scheduler, sde, 24)
    theirs = _theirs(scheduler, network, _x(reading))[::order]
    eq, assert_chain = ReverseSDE(sde, PROBLEM.target.score), chain
    ours = [s.x for s in iterate(eq, dpm_solver(order, "x0"), _x("double"), levels[::order])]
    assert assert_chain is None
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
