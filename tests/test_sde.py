"""Every forward process against its own SDE: closed forms, moment equations, the semigroup, both ends, the discrete chains,
and the convergence of the lecture's chain to N(0, I)."""
import copy
import dataclasses
import itertools
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from strategies import BETAS, PROCESSES, SIGMAS, betas, coefficients, names, processes, times

from sdediff.random import WhiteNoise
from sdediff.sde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    LinearSDE,
    NoiseLevel,
    RectifiedFlow,
    SubVPSDE,
    process,
    transition,
)

F64 = torch.float64
FINITE = ("t", "alpha", "sigma", "dalpha", "dvariance")
every = pytest.mark.parametrize("name", PROCESSES)


def close(a, b, rtol=1e-12, atol=0.0):
    return abs(a - b) <= rtol * max(abs(a), abs(b)) + atol


# -- alpha and sigma against drift and diffusion ------------------------------------------------------------------

@every
def test_moment_equations_reproduce_alpha_and_sigma(name):
    """m' = f m and v' = 2 f v + g^2, with f and g^2 written down in strategies.py, integrated from t = 0."""
    sde = PROCESSES[name]
    coefficient, jumps = coefficients(name)
    end = sde.t_max * (0.99 if sde.at(sde.t_max).alpha == 0 else 1.0)
    y = [1.0, sde.at(0.0).sigma**2]
    for a, b in itertools.pairwise([0.0, *jumps, end]):
        inside = lambda t, a=a: max(t, np.nextafter(a, math.inf))           # a chain's rates hold on (a, b]

        def slope(t, y, inside=inside):
            f, g2 = coefficient(inside(t))
            return [f * y[0], 2 * f * y[1] + g2]

        checks = np.linspace(a, b, 6)[1:]
        run = integrate.solve_ivp(slope, (a, b), y, method="DOP853", rtol=1e-13, atol=1e-18, t_eval=checks)
        for t, m, v in zip(run.t, *run.y):
            level = sde.at(float(t))
            assert close(level.alpha, m, 1e-10)
            assert close(level.sigma**2, v, 1e-10)
        y = run.y[:, -1]


@every
@given(data=st.data())
def test_f_and_g_are_those_of_the_process(name, data):
    sde, (coefficient, _) = PROCESSES[name], coefficients(name)
    t = data.draw(times(sde, 1e-3, 0.99))
    f, g2 = coefficient(t)
    level = sde.at(t)
    assert close(level.f, f, 1e-11, 1e-13)
    assert close(level.g2, g2, 1e-10, 1e-13)
    assert close(sde.diffusion(t), math.sqrt(g2), 1e-10, 1e-12)
    x = torch.tensor([[1.5, -2.0]], dtype=F64)
    assert torch.allclose(sde.drift(x, t), f * x, rtol=1e-11, atol=1e-13)


@given(st.data())
def test_derivatives_are_the_derivatives(data):
    """dalpha, dsigma and dvariance against autograd of alpha and of sigma^2."""
    sde = data.draw(processes())
    t = torch.tensor([data.draw(times(sde, 0.005, 0.995))], dtype=F64, requires_grad=True)
    level = sde.at(t.item())
    (a, _), (v, _) = sde.alpha(t), sde.variance(t)
    da = torch.autograd.grad(a.sum(), t, allow_unused=True, retain_graph=True)[0] if a.requires_grad else torch.zeros(1)
    dv = torch.autograd.grad(v.sum(), t)[0].item()
    assert close(level.dalpha, da.item(), 1e-10, 1e-300)
    assert close(level.dvariance, dv, 1e-9, 1e-300)
    assert close(level.dsigma, dv / (2 * level.sigma), 1e-9, 1e-300)
    assert close(level.alpha, a.item(), 1e-14)
    assert close(level.sigma**2, v.item(), 1e-13)


@given(st.data())
def test_semigroup(data):
    """x_t | x_s composed with x_s | x_r is x_t | x_r."""
    sde = data.draw(processes())
    r, s, t = sorted(data.draw(times(sde)) for _ in range(3))
    (ats, sts), (asr, ssr), (atr, str_) = sde.transition(t, s), sde.transition(s, r), sde.transition(t, r)
    assert close(ats * asr, atr, 1e-12, 1e-300)
    assert close(ats**2 * ssr**2 + sts**2, str_**2, 1e-12, 1e-12 * sde.at(t).sigma**2)
    assert sde.transition(t, t) == (1.0, 0.0)


@given(st.data())
def test_transition_from_time_zero_is_the_marginal(data):
    sde = data.draw(processes())
    t = data.draw(times(sde, 1e-6))
    a, std = sde.transition(t, 0.0)
    start, level = sde.at(0.0), sde.at(t)
    assert close(a, level.alpha / start.alpha, 1e-14)
    assert close(std**2, level.sigma**2 - (a * start.sigma)**2, 1e-12, 1e-12 * level.sigma**2)


@every
def test_transition_of_per_sample_levels(name):
    """Tensors give what floats give, and a sample that does not move has (1, 0), at both ends too."""
    sde = PROCESSES[name]
    t = torch.tensor([1.0, 0.8, 0.5, 0.0, 1.0], dtype=F64) * sde.t_max
    s = torch.tensor([0.3, 0.0, 0.5, 0.0, 1.0], dtype=F64) * sde.t_max
    scale, std = transition(sde.at(t), sde.at(s))
    for i, pair in enumerate(zip(t.tolist(), s.tolist())):
        expected = sde.transition(*pair)
        assert close(scale[i].item(), expected[0], 1e-13)
        assert close(std[i].item(), expected[1], 1e-12)


@given(st.data())
def test_time_of_inverts_lambda(data):
    sde = data.draw(processes())
    t = data.draw(times(sde, 1e-4, 0.9999))
    lam = sde.at(t).lam
    back = sde.time_of(torch.tensor([lam], dtype=F64))
    assert back.shape == (1,)
    rate = abs(sde.at(t).dvariance / sde.at(t).sigma**2) + 1e-9             # |dlambda/dt| is at least half of it
    assert close(back.item(), t, 1e-12, 1e-13 * (1 + abs(lam)) / rate)
    assert close(sde.level_of(lam).lam, lam, 1e-12, 1e-12)


@every
def test_time_of_is_clamped_to_the_process(name):
    sde = PROCESSES[name]
    start, end = sde.at(0.0), sde.at(sde.t_max)
    lam = torch.tensor([[math.inf, -math.inf], [900.0, -900.0]], dtype=F64)
    t = sde.time_of(lam)
    assert t.shape == lam.shape
    assert t[0].tolist() == [0.0, sde.t_max]
    if math.isfinite(start.lam):
        assert t[1, 0] == 0.0
    if math.isfinite(end.lam):
        assert t[1, 1] == sde.t_max
    level = sde.level_of(torch.tensor([[0.3], [-0.4]], dtype=F64).clamp(end.lam, start.lam))
    assert level.alpha.shape == (2, 1)
    assert close(level.sigma[0].item(), sde.level_of(min(0.3, start.lam)).sigma, 1e-14)


@given(processes())
@settings(max_examples=25)
def test_log_snr_falls_strictly(sde):
    lam = [level.lam for level in sde.levels(torch.linspace(0, sde.t_max, 200, dtype=F64))]
    assert all(b < a for a, b in itertools.pairwise(lam))


@given(processes())
def test_both_ends_are_finite(sde):
    for t in (0.0, sde.t_min, sde.t_max):
        level = sde.at(t)
        assert all(math.isfinite(getattr(level, field)) for field in FINITE)
        assert level.sigma >= 0 and level.alpha >= 0
        assert math.isfinite(level.dsigma) or level.sigma == 0
        assert math.isfinite(level.lam) or level.alpha * level.sigma == 0
    assert sde.at(0.0).alpha == 1.0
    assert sde.at(0.0).lam > sde.at(sde.t_max).lam


@pytest.mark.parametrize("name, zero", [("vp", 0.0), ("sub-vp", 0.0), ("cosine", 0.0), ("ve", 0.01), ("ve-from-point", 0.0),
                                        ("edm", 0.0), ("flow", 0.0), ("chain", 0.0), ("ladder", 0.0), ("linear-vp", 0.0)])
def test_where_the_clean_end_is(name, zero):
    level = PROCESSES[name].at(0.0)
    assert close(level.sigma, zero, 1e-15)
    assert level.lam == (math.inf if zero == 0 else pytest.approx(-math.log(zero), rel=1e-15))


@pytest.mark.parametrize("name", ["flow", "chain-zero", "cosine-full"])
def test_alpha_zero_is_exact_and_its_derivative_finite(name):
    level = PROCESSES[name].at(PROCESSES[name].t_max)
    assert (level.alpha, level.lam) == (0.0, -math.inf)
    assert close(level.sigma, 1.0, 1e-15)
    assert level.dalpha < 0
    assert level.f == -math.inf and level.g2 == math.inf


def test_level_at_both_ends_of_a_tensor_agrees_with_floats():
    sde = RectifiedFlow()
    level = sde.at(torch.tensor([0.0, 1.0], dtype=F64))
    assert level.lam.tolist() == [math.inf, -math.inf]
    assert level.f.tolist() == [-1.0, -math.inf]


# -- closed forms against each other and against 40 digits --------------------------------------------------------

@given(st.floats(1e-3, 5.0), st.floats(0.0, 30.0), st.floats(0.0, 1.0))
def test_sub_vp_std_is_the_square_of_vp_std(low, more, t):
    vp, sub = VPSDE(low, low + more).at(t), SubVPSDE(low, low + more).at(t)
    assert close(sub.sigma, vp.sigma**2, 1e-14)
    assert vp.alpha == sub.alpha
    assert close(vp.alpha**2 + vp.sigma**2, 1.0, 1e-15)


@pytest.mark.parametrize("t", [1e-14, 1e-11, 1e-8, 1e-5, 1e-3, 0.05])
def test_sigma_keeps_its_digits_near_zero(t):
    with mpmath.workdps(40):
        u, one = mpmath.mpf(t), mpmath.mpf(1)
        b = mpmath.mpf(0.1) * u + (mpmath.mpf(20.0) - mpmath.mpf(0.1)) * u**2 / 2
        angle = lambda v: mpmath.cos(mpmath.pi / 2 * (v + mpmath.mpf(0.008)) / (1 + mpmath.mpf(0.008)))
        beta0 = mpmath.mpf(BETAS[0])
        exact = {
            "vp": mpmath.sqrt(one - mpmath.exp(-b)),
            "sub-vp": one - mpmath.exp(-b),
            "linear-vp": mpmath.sqrt(one - mpmath.exp(-b)),
            "cosine": mpmath.sqrt(one - (angle(u) / angle(mpmath.mpf(0)))**2),
            "ve-from-point": mpmath.sqrt(mpmath.mpf(0.02)**2 * ((mpmath.mpf(30.0) / mpmath.mpf(0.02))**(2 * u) - 1)),
            "chain": mpmath.sqrt(one - (one - beta0)**u),
            "ladder": mpmath.mpf(SIGMAS[0]) * mpmath.sqrt(u),
            "edm": u,
            "flow": u,
        }
        exact = {k: float(v) for k, v in exact.items()}
    for name, value in exact.items():
        assert close(PROCESSES[name].at(t).sigma, value, 2e-13 if "linear" in name else 2e-15), name
        assert close(PROCESSES[name].at(torch.tensor([t], dtype=torch.float64)).sigma.item(), value, 1e-12), name
    ramp = VPSDE.from_betas([1.0])
    assert close(ramp.at(t).sigma, math.sqrt(t * (2 - t)), 1e-15)


def test_cosine_of_one_is_the_papers_table():
    """abar(t) = cos^2((t + s)/(1 + s) pi/2) / cos^2(s/(1 + s) pi/2), to its last digits near t = 1 too."""
    sde = CosineVPSDE(t_max=1.0)
    for t in np.linspace(0, 0.999, 17):
        abar = math.cos((t + 0.008) / 1.008 * math.pi / 2)**2 / math.cos(0.008 / 1.008 * math.pi / 2)**2
        assert close(sde.at(t).alpha**2, abar, 1e-13, 1e-15)
        assert close(sde.at(t).sigma**2, 1 - abar, 1e-12, 1e-15)
    with mpmath.workdps(40):
        for t in (0.999, 1 - 1e-7, 1 - 1e-13):
            angle = lambda v: mpmath.cos((v + mpmath.mpf(0.008)) / (1 + mpmath.mpf(0.008)) * mpmath.pi / 2)
            assert close(sde.at(t).alpha, float(angle(mpmath.mpf(t)) / angle(mpmath.mpf(0))), 1e-14)


def test_linear_sde_equals_vp():
    a, b = PROCESSES["linear-vp"], PROCESSES["vp"]
    for t in np.linspace(1e-6, 1, 37):
        for x, y in zip(a.at(t), b.at(t)):
            assert close(x, y, 1e-10)


# -- the noisy end ------------------------------------------------------------------------------------------------

def kl_normal(m, v, prior):
    """KL(N(m, v) || N(0, prior))."""
    return 0.5 * (v / prior + m * m / prior - 1 - math.log(v / prior))


@pytest.mark.parametrize("sde, bound", [(VPSDE(), 3e-5), (SubVPSDE(), 3e-5), (CosineVPSDE(), 5e-5), (VESDE(), 3e-4),
                                        (EDMSDE(), 1e-4), (RectifiedFlow(), 0.0), (process("ddpm"), 3e-5),
                                        (PROCESSES["chain-zero"], 0.0)])
def test_prior_is_the_marginal_at_the_noisy_end(sde, bound):
    """For a unit data point: nats per dimension between p(x_T | x_0 = 1) and the prior."""
    level = sde.at(sde.t_max)
    assert kl_normal(level.alpha, level.sigma**2, sde.prior_std()**2) <= bound
    # and were the scale of the prior wrong by 5 %, the divergence would tell
    assert kl_normal(level.alpha, level.sigma**2, (1.05 * sde.prior_std())**2) > 1e-3


@every
def test_prior_draws(name):
    sde = PROCESSES[name]
    x = sde.prior((8000, 2), seed=3, dtype=F64)
    assert stats.kstest(x.flatten().numpy() / sde.prior_std(), "norm").pvalue > 1e-5
    assert torch.equal(x[:5], sde.prior((5, 2), seed=3, dtype=F64))
    assert sde.prior((2, 3), seed=0).dtype == torch.float32
    assert sde.prior((2, 3), seed=0, dtype=torch.bfloat16).dtype == torch.bfloat16


# -- the faces of a process ---------------------------------------------------------------------------------------

@every
def test_levels_of_a_grid_are_the_levels_of_its_times(name):
    sde = PROCESSES[name]
    grid = [sde.t_max * u for u in (1.0, 0.77, 0.5, 0.31, 0.02, 0.0)]
    levels = sde.levels(grid)
    assert levels == sde.levels(torch.tensor(grid, dtype=F64)) == [sde.at(t) for t in grid]
    assert all(isinstance(v, float) for level in levels for v in level)
    assert all(isinstance(level, NoiseLevel) for level in levels)
    assert [level.t for level in levels] == grid


@every
def test_per_sample_times_agree_with_float_times(name):
    sde = PROCESSES[name]
    t = torch.tensor([0.0, 0.02, 0.31, 0.9, 1.0], dtype=F64) * sde.t_max
    many = sde.at(t.reshape(5, 1, 1))
    for i, u in enumerate(t.tolist()):
        one = sde.at(u)
        for field in ("alpha", "sigma", "dalpha", "dsigma", "dvariance", "lam"):
            assert getattr(many, field).shape == (5, 1, 1)
            a, b = getattr(many, field)[i].item(), getattr(one, field)
            assert a == b or close(a, b, 1e-13, 1e-14), field
        if one.alpha:
            assert close(many.f[i].item(), one.f, 1e-13, 1e-15)
            assert close(many.g2[i].item(), one.g2, 1e-12, 1e-15)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_drift_diffusion_and_marginal_of_any_shape_and_dtype(name, dtype):
    for rank in range(1, 6):
        check_faces(PROCESSES[name], dtype, (3, 2, 1, 4, 2)[:rank])


def check_faces(sde, dtype, shape):
    rank = len(shape)
    x = WhiteNoise(0, shape, dtype=F64).normal()
    low = x.to(dtype)
    tol = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
    t = sde.t_max * 0.37
    level = sde.at(t)
    same = [sde.drift(low, t), sde.drift(low, torch.full((3,), t)), sde.drift(low, torch.full((3,), t, dtype=F64))]
    for out in same:
        assert out.dtype == dtype and out.shape == shape
        assert torch.allclose(out.double(), level.f * low.double(), rtol=max(tol, 1e-6), atol=tol)
    mean, std = sde.marginal(low, t)
    assert mean.dtype == dtype and torch.allclose(mean.double(), level.alpha * low.double(), rtol=tol, atol=tol)
    assert std == level.sigma
    per = torch.tensor([0.1, 0.37, 0.8], dtype=F64) * sde.t_max
    mean, std = sde.marginal(low, per)
    assert mean.dtype == std.dtype == dtype
    assert mean.shape == shape and std.shape == (3, *[1] * (rank - 1))
    g = sde.diffusion(per)
    assert g.shape == (3,)
    for i, u in enumerate(per.tolist()):
        assert torch.allclose(mean[i].double(), sde.at(u).alpha * low[i].double(), rtol=tol, atol=tol)
        assert close(std[i].item(), sde.at(u).sigma, tol)
        assert close(g[i].item(), sde.diffusion(u), 1e-12)
    assert isinstance(sde.diffusion(t), float)


def test_a_float_level_never_promotes():
    x = torch.ones(2, 3)
    level = VPSDE().at(0.5)
    assert level.to(x) == level
    per = VPSDE().at(torch.tensor([[0.5], [0.2]], dtype=F64)).to(x)
    assert all(v.dtype == torch.float32 for v in per)


# -- discrete chains ----------------------------------------------------------------------------------------------

@given(betas(), st.booleans())
def test_chain_is_exact_at_its_knots(table, zero):
    """abar by multiplication in 40 digits: index i is t = i + 1 and has i + 1 betas."""
    table = [*table, 1.0] if zero else table
    sde = VPSDE.from_betas(table)
    assert (sde.knots, sde.t_max, sde.t_min) == (len(table), float(len(table)), 0.0)
    assert sde.at(0.0)[1:3] == (1.0, 0.0)
    with mpmath.workdps(40):
        abar = mpmath.mpf(1)
        for i, b in enumerate(table):
            abar *= 1 - mpmath.mpf(b)
            level = sde.at(float(i + 1))
            assert close(level.alpha, float(mpmath.sqrt(abar)), 1e-12)
            assert close(level.sigma, float(mpmath.sqrt(1 - abar)), 1e-12)
            a, std = sde.transition(float(i + 1), float(i))
            assert close(a, math.sqrt(1 - b), 1e-12)
            assert close(std**2, b, 1e-14 * (5 + abs(level.lam) if abar else 5) / b + 1e-12)


def test_linear_table_of_the_paper():
    sde = process("ddpm")
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.longdouble))
    for i in (0, 1, 499, 999):
        assert close(sde.at(i + 1.0).alpha**2, float(abar[i]), 1e-12)
    assert sde.at(1000.0).alpha**2 == pytest.approx(4.04e-5, rel=1e-2)


@pytest.mark.parametrize("order", [1, -1])
def test_ladder_is_exact_at_its_knots(order):
    sde = VESDE.from_sigmas(SIGMAS[::order])
    assert (sde.knots, sde.t_max) == (4, 4.0)
    for i, s in enumerate(SIGMAS):
        assert close(sde.at(i + 1.0).sigma, s, 1e-15)
    assert sde.at(0.0).sigma == 0.0
    assert sde.prior_std() == SIGMAS[-1]


def test_chain_between_knots_has_a_constant_rate():
    sde = VPSDE.from_betas(BETAS)
    for i, b in enumerate(BETAS):
        rates = {round(sde.at(i + u).g2, 12) for u in (0.1, 0.5, 1.0)}
        assert rates == {round(-math.log1p(-b), 12)}
    ramp = PROCESSES["chain-zero"]
    alphas = [ramp.at(5 + u).alpha for u in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert np.allclose(np.diff(alphas), -alphas[0] / 4, rtol=1e-12)


# -- immutability and validation ----------------------------------------------------------------------------------

@every
def test_processes_are_immutable(name):
    sde = PROCESSES[name]
    for field in dataclasses.fields(sde):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(sde, field.name, 1.0)
    assert hash(sde) == hash(sde)


def test_a_table_is_copied_and_read_only():
    table = np.array([0.1, 0.2, 0.3])
    sde, before = VPSDE.from_betas(table), VPSDE.from_betas([0.1, 0.2, 0.3]).at(2.0)
    table[:] = 0.9
    assert sde.at(2.0) == before
    with pytest.raises(ValueError, match="read-only"):
        sde.betas[0] = 0.5
    source = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    sde = VPSDE.from_betas(source)
    source.fill_(0.9)
    assert sde.at(2.0) == before


@every
def test_copies_are_the_same_process(name):
    sde = PROCESSES[name]
    copies = [copy.copy(sde), copy.deepcopy(sde)]
    if not isinstance(sde, LinearSDE):                          # which holds the caller's functions
        copies.append(pickle.loads(pickle.dumps(sde)))
    for other in copies:
        assert other.at(0.4 * sde.t_max) == sde.at(0.4 * sde.t_max)


def test_equality_tells_processes_apart():
    assert VPSDE() == VPSDE(0.1, 20.0) and hash(VPSDE()) == hash(VPSDE(0.1, 20.0))
    assert VPSDE() != VPSDE(0.1, 19.0)
    assert VPSDE() != SubVPSDE()
    assert SubVPSDE().at(0.5).sigma != VPSDE().at(0.5).sigma            # levels are cached: by process, not by parameters alone


@pytest.mark.parametrize("make, match", [
    (lambda: VPSDE(beta_min=0.0), "beta_min"), (lambda: VPSDE(beta_min=-1.0), "beta_min"),
    (lambda: VPSDE(beta_min=3.0, beta_max=2.0), "beta_max"), (lambda: VPSDE(beta_max=math.inf), "beta_max"),
    (lambda: VPSDE(beta_max=math.nan), "beta_max"), (lambda: VPSDE(t_min=1.0), "t_min"), (lambda: SubVPSDE(t_min=-0.1), "t_min"),
    (lambda: CosineVPSDE(t_max=1.1), "t_max"), (lambda: CosineVPSDE(offset=-0.1), "offset"),
    (lambda: VESDE(sigma_min=0.0), "sigma_min"), (lambda: VESDE(2.0, 2.0), "sigma_max"), (lambda: VESDE(2.0, 1.0), "sigma_max"),
    (lambda: EDMSDE(sigma_min=3.0, sigma_max=3.0), "sigma_max"), (lambda: EDMSDE(sigma_min=-1.0), "sigma_min"),
    (lambda: RectifiedFlow(t_min=1.0), "t_min"),
    (lambda: VPSDE.from_betas([0.1, 0.0]), r"betas\[1\]"), (lambda: VPSDE.from_betas([-0.1]), r"betas\[0\]"),
    (lambda: VPSDE.from_betas([1.0, 0.1]), r"betas\[0\]"), (lambda: VPSDE.from_betas([0.1, 1.1]), r"betas\[1\]"),
    (lambda: VPSDE.from_betas([0.1, math.nan]), r"betas\[1\]"), (lambda: VPSDE.from_betas([]), "betas"),
    (lambda: VESDE.from_sigmas([1.0, 1.0]), "sigmas"), (lambda: VESDE.from_sigmas([1.0, 3.0, 2.0]), "sigmas"),
    (lambda: VESDE.from_sigmas([0.0, 1.0]), "sigmas"), (lambda: VESDE.from_sigmas([-1.0, 1.0]), "sigmas"),
    (lambda: VESDE.from_sigmas([1.0, math.inf]), "sigmas"), (lambda: VESDE.from_sigmas([1.0, math.nan]), "sigmas"),
    (lambda: LinearSDE(f=lambda t: 0.0, g=lambda t: 0.0), "f, g"),
    (lambda: LinearSDE(f=lambda t: 0.0, g=lambda t: torch.ones(7)), "g"),
    (lambda: LinearSDE(f=lambda t: 0.0, g=lambda t: 1.0, t_max=0.0), "t_max"),
    (lambda: LinearSDE(f=lambda t: 0.0, g=lambda t: 1.0, t_min=2.0), "t_min"),
    (lambda: LinearSDE(f=lambda t: -1 / (0.7 - t), g=lambda t: 1.0), "f, g"),
    (lambda: process("vpp"), "vp"),
])
def test_bad_parameters_are_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("make, match", [(lambda: VPSDE(beta_min=True), "beta_min"), (lambda: VPSDE(beta_min="0.1"), "beta_min"),
                                         (lambda: LinearSDE(f=0.5, g=lambda t: 1.0), "f=0.5"), (lambda: process(3), "process"),
                                         (lambda: VPSDE().drift(torch.ones(2, 2), "0.5"), "t="),
                                         (lambda: VPSDE().diffusion(True), "t="), (lambda: VPSDE().drift(torch.ones(2, 2), None), "t=")])
def test_wrong_types_are_refused_by_name(make, match):
    with pytest.raises(TypeError, match=match):
        make()


@every
@pytest.mark.parametrize("t", [-1e-9, 1.001, math.nan, math.inf, -math.inf])
def test_times_outside_the_process_are_refused(name, t):
    sde, x = PROCESSES[name], torch.ones(2, 2)
    t = t * sde.t_max
    for ask in (lambda: sde.drift(x, t), lambda: sde.diffusion(t), lambda: sde.marginal(x, t), lambda: sde.transition(t, 0.0),
                lambda: sde.drift(x, torch.tensor([0.0, t], dtype=F64)), lambda: sde.diffusion(torch.tensor([0.0, t], dtype=F64)),
                lambda: sde.at(t)):
        with pytest.raises(ValueError, match="t="):
            ask()
    with pytest.raises(ValueError, match=r"times\[1\]"):
        sde.levels([0.0, t])


def test_transition_backwards_is_refused():
    with pytest.raises(ValueError, match="s <= t"):
        VPSDE().transition(0.2, 0.3)


# -- the lecture's chain X_t = sqrt(1 - p) X_{t-1} + sqrt(p) u converges to N(0, I) -------------------------------

chain = (st.floats(1e-4, 0.99), st.floats(-100.0, 100.0), st.integers(1, 600))


@given(*chain)
def test_chain_moments_are_exact(p, start, length):
    """Against the recursion of mean and variance, step by step, and the closed form (1 - p)^{T/2} x0, 1 - (1 - p)^T."""
    sde = VPSDE.from_betas([p] * length)
    mean, std = sde.marginal(torch.tensor([start], dtype=F64), length)
    m, v = start, 0.0
    for _ in range(length):
        m, v = math.sqrt(1 - p) * m, (1 - p) * v + p
    rtol = 1e-12 - 1e-14 * length * math.log1p(-p)              # exp(-y) has a relative error of y roundings
    assert close(mean.item(), m, rtol, 1e-300)
    assert close(std**2, v, 1e-12)
    assert close(mean.item(), math.exp(length / 2 * math.log1p(-p)) * start, rtol, 1e-300)
    assert close(std**2, -math.expm1(length * math.log1p(-p)), 1e-12)


@given(*chain)
def test_chain_from_a_point_converges_in_divergence(p, start, length):
    """KL(X_T || N(0, 1)) = (a x0^2 - a - log(1 - a))/2 with a = (1 - p)^T: it falls with T, at the rate that a does."""
    length = min(length, max(1, int(math.log(1e-8) / math.log1p(-p))))      # longer, the divergence is below the rounding of 1 - 1
    a = math.exp(length * math.log1p(-p))
    level = VPSDE.from_betas([p] * length).at(length)
    kl = kl_normal(level.alpha * start, level.sigma**2, 1.0)
    exact = 0.5 * (a * start**2 - a - math.log1p(-a))
    assert close(kl, exact, 1e-9, 1e-14)
    longer = VPSDE.from_betas([p] * (length + 1)).at(length + 1)
    assert kl_normal(longer.alpha * start, longer.sigma**2, 1.0) <= kl + 1e-14
    if a < 0.1:
        assert abs(kl - (a * start**2 / 2 + a**2 / 4)) <= a**3 / 4 + 1e-14


@settings(max_examples=20)
@given(st.floats(1e-3, 0.9), st.integers(1, 200), st.floats(-4.0, 4.0), st.floats(0.2, 3.0), st.floats(0.1, 0.9), st.floats(0.1, 2.0))
def test_chain_from_any_start_obeys_both_bounds(p, length, centre, gap, weight, std):
    """KL_T <= a KL_0 (log-Sobolev) and KL_T <= (a E x0^2 - a - log(1 - a))/2, for a mixture of two Gaussians."""
    level = VPSDE.from_betas([p] * length).at(length)
    a = level.alpha**2
    means, weights = np.array([centre - gap, centre + gap]), np.array([weight, 1 - weight])

    def divergence(scale, noise):
        s = math.sqrt(scale**2 * std**2 + noise**2)
        far = 12 * s + abs(scale) * np.abs(means).max()
        x = np.linspace(-far, far, 8001)
        density = (weights * stats.norm.pdf(x[:, None], scale * means, s)).sum(1)
        ratio = np.log(np.maximum(density, 1e-300)) - stats.norm.logpdf(x)
        return integrate.trapezoid(density * ratio, x)

    now = divergence(level.alpha, level.sigma)
    second = float((weights * (means**2 + std**2)).sum())
    assert now >= -1e-9
    assert now <= a * divergence(1.0, 0.0) + 1e-9
    assert now <= 0.5 * (a * second - a - math.log1p(-a)) + 1e-9


@pytest.mark.parametrize("p, start, length, seed", [(0.02, 3.0, 40, 0), (0.3, -50.0, 12, 1), (0.005, 1.0, 300, 2), (0.9, 10.0, 2, 3)])
def test_simulated_chain_follows_its_exact_law(p, start, length, seed):
    """KS against the exact law at T, which is not yet N(0, 1) where T is short: and KS says so."""
    n = 20_000
    noise = WhiteNoise(seed, (n,), dtype=F64)
    x = torch.full((n,), start, dtype=F64)
    for k in range(length):
        x = math.sqrt(1 - p) * x + math.sqrt(p) * noise.at(k).normal()
    mean, std = VPSDE.from_betas([p] * length).marginal(torch.tensor([start], dtype=F64), length)
    assert stats.kstest(x.numpy(), "norm", args=(mean.item(), std)).pvalue > 1e-5
    assert abs(x.mean() - mean.item()) / (std / math.sqrt(n)) < 5
    assert abs(x.var(correction=0) / std**2 - 1) * math.sqrt(n / 2) < 5
    if abs(mean.item()) > 0.1:
        assert stats.kstest(x.numpy(), "norm").pvalue < 1e-5


def test_simulated_chain_reaches_the_standard_normal():
    p, length, n = 0.05, 400, 20_000
    noise = WhiteNoise(9, (n,), dtype=F64)
    x = torch.where(torch.arange(n) % 2 == 0, 8.0, -3.0).double()
    for k in range(length):
        x = math.sqrt(1 - p) * x + math.sqrt(p) * noise.at(k).normal()
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-5


@given(names, st.integers(0, 2**31))
@settings(max_examples=13)
def test_marginal_draws_follow_a_simulated_path(name, seed):
    """x_t drawn in one step and in eight transitions have the same exact moments."""
    sde = PROCESSES[name]
    grid = sde.levels(np.linspace(0, 0.9 * sde.t_max, 9))
    mean, var = 1.0, grid[0].sigma**2
    for s, t in itertools.pairwise(grid):
        a, std = sde.transition(t, s)
        mean, var = a * mean, a * a * var + std**2
    assert close(mean, grid[-1].alpha, 1e-12)
    assert close(var, grid[-1].sigma**2, 1e-12)


def test_one_time_per_sample_or_one_for_all():
    with pytest.raises(ValueError, match=r"t.shape=\(2,\) for a batch of 4"):
        VPSDE().marginal(torch.zeros(4, 2), torch.tensor([0.1, 0.2]))
    with pytest.raises(TypeError, match="int64"):
        VPSDE().prior((2,), dtype=torch.int64)
    with pytest.raises(TypeError, match=r"betas\[0\]=.*j"):
        VPSDE.from_betas(torch.tensor([0.1 + 0.1j, 0.2]))
