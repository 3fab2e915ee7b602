"""The reverse family has the marginals of the forward process for every eta, with the right sign and the right form."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from strategies import PROCESSES, levels, seeds

from sdediff.equation import ReverseSDE, exploded
from sdediff.random import WhiteNoise
from sdediff.score import Prediction, from_network, from_score
from sdediff.sde import EDMSDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE

F64 = torch.float64
MEAN, STD = 0.7, 0.5                                            # the Gaussian data


def gaussian(sde, sign=1.0):
    """The exact score of N(MEAN, STD^2) data under a process, as a Score."""
    def score(x, level):
        var = (level.alpha * STD)**2 + level.sigma**2
        return Prediction(x, level, score=sign * (level.alpha * MEAN - x) / var)
    return score


def law(level):
    return level.alpha * MEAN, (level.alpha * STD)**2 + level.sigma**2


def reverse_moments(eq, start, end, mean, var):
    """Mean and variance at t = end of equation (3) run from t = start down, for a drift that is affine in x: read off the
    drift A x + b at two points, then m' = A m + b and, in reversed time, v' = -2 A v + diffusion^2."""
    two = torch.tensor([[0.0], [1.0]], dtype=F64)

    def slope(u, y):
        level = eq.at(start - u)
        b, ab = eq.drift(two, level).flatten().tolist()
        return [-((ab - b) * y[0] + b), -2 * (ab - b) * y[1] + float(eq.diffusion(level))**2]

    run = integrate.solve_ivp(slope, (0.0, start - end), [mean, var], method="DOP853", rtol=1e-10, atol=1e-12)
    return run.y[:, -1]


CASES = [(VPSDE(), 1.0, 0.05), (SubVPSDE(), 1.0, 0.2), (CosineVPSDE(), 0.99, 0.05), (VESDE(0.02, 5.0), 1.0, 0.1), (EDMSDE(), 5.0, 0.1),
         (RectifiedFlow(), 0.95, 0.1), (PROCESSES["linear-waves"], 1.2, 0.4)]
case_ids = [type(c[0]).__name__ for c in CASES]


@pytest.mark.parametrize("sde, start, end", CASES, ids=case_ids)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0, "level"])
def test_every_eta_has_the_forward_marginals(sde, start, end, eta):
    """Moment equations of the reversed Gaussian, started at the forward law, end in the forward law."""
    eta = (lambda level: 0.3 + level.sigma / (1 + level.sigma)) if eta == "level" else eta
    mean, var = reverse_moments(ReverseSDE(sde, gaussian(sde), eta=eta), start, end, *law(sde.at(start)))
    expected = law(sde.at(end))
    assert mean == pytest.approx(expected[0], rel=1e-8)
    assert var == pytest.approx(expected[1], rel=1e-8)


@pytest.mark.parametrize("sde, start, end", CASES[::3], ids=case_ids[::3])
def test_eta_forgets_a_wrong_start_and_the_ode_does_not(sde, start, end):
    """With noise, a wrong variance at the start is forgotten, the more the larger eta; the flow transports it unchanged."""
    expected, wrong = law(sde.at(end)), 1.21 * law(sde.at(start))[1]
    errors = []
    for eta in (0.0, 0.5, 1.0, 2.0):
        _, var = reverse_moments(ReverseSDE(sde, gaussian(sde), eta=eta), start, end, law(sde.at(start))[0], wrong)
        errors.append(var / expected[1] - 1)
    assert errors[0] == pytest.approx(0.21, rel=1e-6)         # the ratio of variances of the affine flow
    assert all(0 <= b < a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("sde, start, end", CASES, ids=case_ids)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_wrong_sign_of_the_score_does_not_return(sde, start, end, eta):
    _, var = reverse_moments(ReverseSDE(sde, gaussian(sde, -1.0), eta=eta), start, end, *law(sde.at(start)))
    assert var > 3 * law(sde.at(end))[1]


@given(levels(), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans())
def test_a_step_back_in_time_approaches_the_mode(drawn, eta, above):
    """A point beside the data's mode, carried by -dt times the drift, comes closer to it in units of alpha, on either side;
    with the opposite score it goes away."""
    sde, level = drawn
    y = MEAN + (2.0 if above else -2.0) * math.sqrt(STD**2 + (level.sigma / level.alpha)**2)
    x = torch.tensor([[level.alpha * y]], dtype=F64)
    drift = lambda sign: ReverseSDE(sde, gaussian(sde, sign), eta=eta).drift(x, level).item() - level.f * x.item()
    toward = (MEAN - y) * level.alpha                           # dx = drift dt, dt < 0: the score's part points away, reversed
    assert -drift(1.0) * toward > 0
    assert -drift(-1.0) * toward < 0


@given(levels(), seeds, st.floats(0.0, 3.0))
def test_the_drift_is_the_formula(drawn, seed, eta):
    """f x - (1 + eta^2)/2 g^2 score and eta g: Anderson's f x - g^2 score at eta = 1, the flow at eta = 0; and the forward
    drift where the score is 0."""
    sde, level = drawn
    x, s = WhiteNoise(seed, (3, 2), dtype=F64).normal(1), WhiteNoise(seed, (3, 2), dtype=F64).normal(2)
    eq = ReverseSDE(sde, from_score(lambda x, t: s), eta=eta)
    expected = level.f * x - (1 + eta**2) / 2 * level.g2 * s
    size = abs(level.f) * float(x.abs().max()) + (1 + eta**2) * level.g2 * float(s.abs().max())
    assert torch.allclose(eq.drift(x, level), expected, rtol=1e-12, atol=1e-13 * size)
    assert eq.diffusion(level) == pytest.approx(eta * sde.diffusion(level.t), rel=1e-12, abs=0)
    free = ReverseSDE(sde, from_score(lambda x, t: torch.zeros_like(x)), eta=eta)
    assert torch.allclose(free.drift(x, level), sde.drift(x, level.t), rtol=1e-12, atol=1e-13 * size)


@given(levels(0.1), seeds, st.sampled_from(["x0", "eps", "v", "velocity"]), st.sampled_from([0.0, 0.7, 1.0]))
def test_every_parameterisation_gives_the_same_drift(drawn, seed, predicts, eta):
    sde, level = drawn
    x = WhiteNoise(seed, (3, 2), dtype=F64).normal()
    exact = gaussian(sde)
    network = lambda x, c: getattr(exact(x, level), predicts)
    a = ReverseSDE(sde, exact, eta=eta).drift(x, level)
    b = ReverseSDE(sde, from_network(network, predicts=predicts), eta=eta).drift(x, level)
    size = (abs(level.dalpha) + abs(level.dsigma) + level.g2 / level.sigma) * (1 + float(x.abs().max())) / min(level.sigma, 1.0)
    assert torch.allclose(a, b, rtol=1e-11, atol=1e-12 * size)


def test_eta_as_a_function_of_the_level():
    sde = VPSDE()
    x, level = torch.ones(2, 2, dtype=F64), sde.at(0.4)
    constant, callable_ = (ReverseSDE(sde, gaussian(sde), eta=e) for e in (0.6, lambda m: 0.6))
    assert torch.equal(constant.drift(x, level), callable_.drift(x, level))
    assert constant.diffusion(level) == callable_.diffusion(level) > 0
    churned = ReverseSDE(sde, gaussian(sde), eta=lambda m: 1.0 if 0.3 < m.t < 0.5 else 0.0)
    assert churned.diffusion(level) == sde.diffusion(0.4)
    assert churned.diffusion(sde.at(0.6)) == 0.0
    assert (churned.eta_at(level), churned.eta_at(sde.at(0.6))) == (1.0, 0.0)
    assert not churned.is_ode and not constant.is_ode
    assert ReverseSDE(sde, gaussian(sde)).is_ode and ReverseSDE(sde, gaussian(sde), eta=0).is_ode
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="eta"):
            ReverseSDE(sde, gaussian(sde), eta=lambda m, wrong=wrong: wrong).drift(x, level)


@pytest.mark.parametrize("make, error, match", [
    (lambda: ReverseSDE(VPSDE(), gaussian(None), eta=-1.0), ValueError, "eta"),
    (lambda: ReverseSDE(VPSDE(), gaussian(None), eta=math.nan), ValueError, "eta"),
    (lambda: ReverseSDE(VPSDE(), gaussian(None), eta=True), TypeError, "eta"),
    (lambda: ReverseSDE(VPSDE(), gaussian(None), eta="1"), TypeError, "eta"),
    (lambda: ReverseSDE(VPSDE, gaussian(None)), TypeError, "sde="), (lambda: ReverseSDE(VPSDE(), 3), TypeError, "score=int")])
def test_wrong_arguments_are_refused_by_name(make, error, match):
    with pytest.raises(error, match=match):
        make()


# -- alpha = 0 ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["flow", "chain-zero", "cosine-full"])
@pytest.mark.parametrize("predicts", ["x0", "v", "velocity"])
def test_flow_is_finite_at_alpha_zero_and_the_sde_refuses(name, predicts):
    sde = PROCESSES[name]
    level = sde.at(sde.t_max)
    x0, eps = torch.full((2, 2), MEAN, dtype=F64), torch.tensor([[1.0, -2.0], [0.3, 4.0]], dtype=F64)
    x = level.sigma * eps
    truth = {"x0": x0, "v": level.alpha * eps - level.sigma * x0, "velocity": level.dalpha * x0 + level.dsigma * eps}
    score = from_network(lambda x, c: truth[predicts], predicts=predicts)
    assert torch.allclose(ReverseSDE(sde, score).drift(x, level), truth["velocity"], rtol=1e-13)
    assert ReverseSDE(sde, score).diffusion(level) == 0.0
    eq = ReverseSDE(sde, score, eta=1.0)
    for ask in (lambda: eq.drift(x, level), lambda: eq.diffusion(level)):
        with pytest.raises(ValueError, match="alpha = 0"):
            ask()
    assert torch.isfinite(eq.drift(x, sde.at(0.999 * sde.t_max))).all()
    with pytest.raises(ValueError, match="alpha = 0"):
        ReverseSDE(sde, from_network(lambda x, c: eps)).drift(x, level)


# -- shapes and dtypes --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_float_and_per_sample_levels_agree_and_keep_the_dtype(dtype, eta, rank):
    sde = VPSDE()
    x = WhiteNoise(0, (3, 2, 4, 1)[:rank], dtype=dtype).normal()
    eq = ReverseSDE(sde, gaussian_per_sample, eta=eta)
    level = sde.at(torch.tensor([0.2, 0.5, 0.9], dtype=F64).view(3, *[1] * (rank - 1)))
    out, g = eq.drift(x, level), eq.diffusion(level)
    assert out.dtype == dtype and out.shape == x.shape
    for i, t in enumerate((0.2, 0.5, 0.9)):
        one = eq.drift(x[i:i + 1], sde.at(t))
        assert one.dtype == dtype
        assert torch.allclose(out[i], one[0], rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5 if dtype == torch.float32 else 0)
        assert float(g.flatten()[i] if eta else g) == pytest.approx(eq.diffusion(sde.at(t)), rel=1e-12)


def gaussian_per_sample(x, level):
    m = level.to(x)
    return Prediction(x, m, score=(m.alpha * MEAN - x) / ((m.alpha * STD)**2 + m.sigma**2))


# -- the exploded chart -------------------------------------------------------------------------------------------

@given(levels(), seeds)
def test_exploded_flow_is_eps_and_equals_the_original_flow(drawn, seed):
    """d(x/alpha)/d(sigma/alpha) = eps: the chart's drift, and the chain rule on the original velocity."""
    sde, level = drawn
    x = level.alpha * MEAN + math.sqrt(law(level)[1]) * WhiteNoise(seed, (3, 2), dtype=F64).normal()
    eq = ReverseSDE(sde, gaussian(sde))
    chart = exploded(eq)
    p = eq.predict(x, level)
    drift = chart.drift(x / level.alpha, chart.at(level.sigma / level.alpha))
    assert torch.allclose(drift, p.eps, rtol=1e-10, atol=1e-10)
    clock = (level.dsigma - level.f * level.sigma) / level.alpha                    # d(sigma/alpha)/dt
    chain_rule = (eq.drift(x, level) - level.f * x) / level.alpha / clock
    assert torch.allclose(drift, chain_rule, rtol=1e-10, atol=1e-10)


@given(levels(), st.floats(0.1, 2.0))
@settings(max_examples=25)
def test_exploded_sde_is_the_same_sde(drawn, eta):
    """(1 + eta^2) eps and eta sqrt(2 sigma/alpha), and the quadratic variation of x/alpha is that of the original."""
    sde, level = drawn
    x = torch.tensor([[0.3], [-1.7]], dtype=F64) * (level.alpha + level.sigma)
    for churn in (eta, lambda m: eta * (1 + m.sigma)):
        eq = ReverseSDE(sde, gaussian(sde), eta=churn)
        chart, here = exploded(eq), eq.eta_at(level)
        outer = chart.at(level.sigma / level.alpha)
        assert chart.eta_at(outer) == pytest.approx(here, rel=1e-10)
        drift = chart.drift(x / level.alpha, outer)
        assert torch.allclose(drift, (1 + here**2) * eq.predict(x, level).eps, rtol=1e-9, atol=1e-10 * (1 + here**2))
        clock = (level.dsigma - level.f * level.sigma) / level.alpha
        assert chart.diffusion(outer)**2 * clock == pytest.approx(eq.diffusion(level)**2 / level.alpha**2, rel=1e-8)


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), SubVPSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_exploded_moments_end_in_the_forward_law(sde):
    top, bottom = sde.at(0.6), sde.at(0.1)
    chart = exploded(ReverseSDE(sde, gaussian(sde), eta=0.5))
    mean, var = law(top)
    mean, var = reverse_moments(chart, top.sigma / top.alpha, bottom.sigma / bottom.alpha, mean / top.alpha, var / top.alpha**2)
    assert mean * bottom.alpha == pytest.approx(law(bottom)[0], rel=1e-8)
    assert var * bottom.alpha**2 == pytest.approx(law(bottom)[1], rel=1e-8)


def test_exploded_with_per_sample_levels():
    sde = VPSDE()
    chart = exploded(ReverseSDE(sde, gaussian_per_sample))
    y, t = torch.tensor([[0.3], [-1.7]], dtype=F64), torch.tensor([[0.5], [2.0]], dtype=F64)
    out = chart.drift(y, chart.at(t))
    for i in range(2):
        assert torch.allclose(out[i:i + 1], chart.drift(y[i:i + 1], chart.at(t[i].item())), rtol=1e-12)
