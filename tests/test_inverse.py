"""Posterior sampling: identities on Gaussians, the exact posterior of mixtures, methods that act on the state, and refusals."""
import dataclasses
import math

import numpy as np
import pytest
import torch

import sdediff
from sdediff import evaluate, guidance, inverse, metrics, operators, random
from sdediff.cli import main
from sdediff.inverse import GUIDANCES, observe
from sdediff.nets import MLP
from sdediff.solvers import DDIM, State

F64 = torch.float64
VP = sdediff.VPSDE()
G = torch.Generator().manual_seed(3)
ROOT = torch.randn(5, 5, generator=G, dtype=F64)
GAUSSIAN = sdediff.targets.Gaussian(torch.randn(5, generator=G, dtype=F64), ROOT @ ROOT.T / 5 + 0.05 * torch.eye(5))
A, STD = operators.Matrix(torch.randn(3, 5, generator=G, dtype=F64)), 0.2
Y = torch.randn(3, generator=G, dtype=F64)
MIXTURE = sdediff.targets.GaussianMixture([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0]], [[0.1, 0.2]] * 3, [0.5, 0.2, 0.3])
SEEN, Y1 = operators.Mask(torch.tensor([True, False])), torch.tensor([0.7])
POSTERIOR = MIXTURE.given(SEEN, Y1, 0.1)


# -- the truth ------------------------------------------------------------------------------------------------------------
def test_the_posterior_of_a_mixture_is_bayes():
    x = MIXTURE.sample(50, seed=0, dtype=F64)
    likelihood = -0.5 * ((Y1 - x[:, :1]) / 0.1)[:, 0]**2 - 0.5 * math.log(2 * math.pi * 0.01)
    expected = MIXTURE.log_prob(x) + likelihood - MIXTURE.log_evidence(SEEN, Y1, 0.1)
    assert torch.allclose(POSTERIOR.log_prob(x), expected, rtol=1e-10, atol=1e-10)


def test_the_evidence_integrates_to_one():
    y = torch.linspace(-4, 4, 801, dtype=F64)
    density = torch.tensor([math.exp(MIXTURE.log_evidence(SEEN, v[None], 0.1)) for v in y], dtype=F64)
    assert float(torch.trapezoid(density, y)) == pytest.approx(1.0, abs=1e-9)


def test_full_covariances_and_several_measurements():
    prior = sdediff.targets.GaussianMixture(torch.randn(3, 5, generator=G, dtype=F64), [GAUSSIAN.covs[0], 0.3, torch.ones(5)])
    posterior, x = prior.given(A, Y, STD), torch.randn(20, 5, generator=G, dtype=F64)
    likelihood = -0.5 * ((Y - A(x)) / STD).square().sum(1) - 1.5 * math.log(2 * math.pi * STD**2)
    assert torch.allclose(posterior.log_prob(x), prior.log_prob(x) + likelihood - prior.log_evidence(A, Y, STD), rtol=1e-9)


# -- guidances ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde", [VP, sdediff.EDMSDE(), sdediff.RectifiedFlow(), sdediff.SubVPSDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("given", ["x0", "eps", "score", "v", "velocity"])
def test_tweedie_is_exact_for_gaussian_data(sde, given):
    def score(x, level):
        return sdediff.Prediction(x, level, **{given: getattr(GAUSSIAN.score(x, level), given)})

    posterior = GAUSSIAN.given(A, Y, STD)
    for t in (0.9, 0.4, 0.05):
        level, x = sde.at(t * sde.t_max), 2 * torch.randn(4, 5, generator=G, dtype=F64)
        found, exact = inverse.tweedie(score, A, STD, Y, iterations=3, trust=math.inf)(x, level), posterior.score(x, level)
        assert found.given == (given,)
        assert torch.allclose(found.x0, exact.x0, atol=1e-8 * max(1.0, level.sigma / level.alpha))
        assert torch.allclose(found.eps, exact.eps, atol=1e-8 * max(1.0, level.alpha / level.sigma))


def test_pigdm_is_exact_for_isotropic_gaussian_data_also_at_alpha_zero():
    prior = sdediff.targets.Gaussian(GAUSSIAN.means[0], 0.49)
    guided, posterior, flow = inverse.pigdm(prior.score, A, STD, Y, scale=0.7), prior.given(A, Y, STD), sdediff.RectifiedFlow()
    x = torch.randn(4, 5, generator=G, dtype=F64)
    for sde, t in ((VP, 0.5), (flow, 0.5), (flow, 1.0)):
        assert torch.allclose(guided(x, sde.at(t)).x0, posterior.score(x, sde.at(t)).x0, atol=1e-12)


def test_fewer_conjugate_gradients_are_a_krylov_method():
    exact = GAUSSIAN.given(A, Y, STD).score
    level, x = VP.at(0.4), torch.randn(4, 5, generator=G, dtype=F64)
    error = [float((inverse.tweedie(GAUSSIAN.score, A, STD, Y, iterations=k, trust=math.inf)(x, level).x0 - exact(x, level).x0).norm()) for k in (1, 2, 3, 6)]
    assert error[0] > error[2] and error[2] < 1e-8 and error[3] < 1e-8      # three measured numbers; more iterations do no harm


def test_plug_in_is_the_gradient_of_its_likelihood():
    level, x = VP.at(0.3), torch.randn(4, 2, generator=G, dtype=F64, requires_grad=True)
    x0 = MIXTURE.score(x, level).x0
    likelihood = -0.5 * ((Y1 - x0[:, :1]) / 0.1).square().sum()
    gradient = torch.autograd.grad(likelihood, x)[0]
    x = x.detach()
    found = inverse.plug_in(MIXTURE.score, SEEN, 0.1, Y1)(x, level).score - MIXTURE.score(x, level).score
    assert torch.allclose(found, gradient, atol=1e-10)


def test_diffpir_is_the_minimum_of_its_cost_and_ddnm_its_limit():
    level, x = VP.at(0.3), torch.randn(4, 5, generator=G, dtype=F64)
    x0, weight = GAUSSIAN.score(x, level).x0, 2.0 * (level.alpha / level.sigma)**2
    found = inverse.diffpir(GAUSSIAN.score, A, STD, Y, strength=2.0)(x, level).x0.clone().requires_grad_()
    cost = ((Y - A(found)) / STD).square().sum() + weight * (found - x0).square().sum()
    assert float(torch.autograd.grad(cost, found)[0].abs().max()) < 1e-9 * cost.item()
    hard = inverse.ddnm(GAUSSIAN.score, A, STD, Y)(x, level).x0
    assert torch.allclose(A(hard), Y.expand(4, 3), atol=1e-12)
    assert torch.allclose(inverse.diffpir(GAUSSIAN.score, A, 1e-9, Y)(x, level).x0, hard, atol=1e-9)


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_guidance_takes_levels_that_differ_per_sample(name):
    guided, x = GUIDANCES[name](MIXTURE.score, SEEN, 0.1, Y1), torch.randn(3, 2, generator=G, dtype=F64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    together = guided(x, VP.at(t[:, None])).x0
    alone = torch.cat([guided(x[k:k + 1], VP.at(float(t[k]))).x0 for k in range(3)])
    assert torch.allclose(together, alone, atol=1e-10)


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("method", ["ddim", "dpm++2m-sde", "heun", "pc", "picard"])
def test_every_method_serves_every_guidance(name, method):
    guided, y = GUIDANCES[name](MIXTURE.score, SEEN, 0.3), torch.linspace(-1, 1, 12)[:, None]
    call = {"method": method, "steps": 12, "seed": 0}
    whole = sdediff.sample(VP, guided, shape=(12, 2), conditions={"measurement": y}, **call)
    assert torch.isfinite(whole).all()
    chunked = sdediff.sample(VP, guided, shape=(12, 2), conditions={"measurement": y}, chunk=5, **call)
    assert torch.allclose(whole, chunked, atol=1e-5)
    own = sdediff.sample(VP, GUIDANCES[name](MIXTURE.score, SEEN, 0.3, y), shape=(12, 2), **call)
    assert torch.equal(whole, own)


def test_a_network_prior_with_conditions_of_its_own():
    net = MLP(2, 16, 1, classes=3)
    torch.nn.init.normal_(net.leave.weight, generator=torch.Generator().manual_seed(0), std=0.1)
    score = sdediff.from_network(net, "x0", time_input="lam")
    y, labels = torch.linspace(-1, 1, 6)[:, None], torch.arange(6) % 3
    hard = inverse.ddnm(score, SEEN, 0.1)
    x = sdediff.sample(VP, hard, shape=(6, 2), method="ddim", steps=8, seed=1, conditions={"measurement": y, "y": labels})
    assert torch.allclose(x[:, 0], y[:, 0], atol=0.1)
    other = sdediff.sample(VP, hard, shape=(6, 2), method="ddim", steps=8, seed=1, conditions={"measurement": y, "y": 2 - labels})
    assert not torch.allclose(x[:, 1], other[:, 1], atol=1e-3)
    info = sdediff.sample_info(VP, inverse.pigdm(score, SEEN, 0.1), shape=(6, 2), method="heun", nfe=10, seed=1, conditions={"measurement": y, "y": labels})
    assert info.nfe == 10 and all(p.grad is None for p in net.parameters())


def test_likelihood_under_a_posterior():
    """The density that the flow of the exact posterior score has is the posterior's; that of a guided Gaussian likewise."""
    x = GAUSSIAN.given(A, Y, STD).sample(6, seed=1, dtype=F64)
    found = sdediff.log_prob(VP, inverse.tweedie(GAUSSIAN.score, A, STD, Y, iterations=3, trust=math.inf), x, method="rk45", steps=1, rtol=1e-8, atol=1e-8)
    exact = GAUSSIAN.given(A, Y, STD).log_prob(x, VP.at(VP.t_min))
    assert torch.allclose(found.value, exact, atol=0.02)        # the prior at T is N(0, I), not the exact marginal


def test_samples_of_the_exact_guidance_are_the_posterior():
    """On Gaussian data Tweedie's guidance is exact, so that a fine solver leaves Monte Carlo error alone."""
    exact = GAUSSIAN.given(A, Y, STD)
    x = sdediff.sample(VP, inverse.tweedie(GAUSSIAN.score, A, STD, Y, iterations=3, trust=math.inf), shape=(4000, 5), method="eab-3", steps=60, seed=0, dtype=F64)
    z = (x.mean(0) - exact.mean) / (torch.diag(exact.cov) / 4000).sqrt()
    assert float(z.abs().max()) < 5
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(exact.cov), (x - x.mean(0)).T, upper=False)
    assert float((torch.cov(white) - torch.eye(5, dtype=F64)).abs().max()) < 5 * (2 / 4000)**0.5


# -- methods on the state -------------------------------------------------------------------------------------------------
ON_STATE = [("replacement", {}), ("repaint", {"repeats": 3, "jump": 4}), ("dps", {"zeta": 0.1}), ("ddrm", {}), ("smc", {"particles": 4})]


@pytest.mark.parametrize(("name", "options"), ON_STATE)
def test_a_measurement_belongs_to_its_sample(name, options):
    y, call = torch.linspace(-1, 1, 12)[:, None].repeat_interleave(4, 0), dict(method=name, steps=12, seed=0, **options)
    seen = observe(MIXTURE.score, SEEN, 0.3)
    whole = sdediff.sample(VP, seen, shape=(48, 2), conditions={"measurement": y}, **call)
    parts = sdediff.sample(VP, seen, shape=(48, 2), conditions={"measurement": y}, chunk=8, **call)
    assert torch.allclose(whole, parts, atol=1e-5)
    again = sdediff.sample_info(VP, seen, shape=(4, 2), conditions={"measurement": y[8:12]}, first=8, **call).x
    assert torch.allclose(whole[8:12], again, atol=1e-5)


@pytest.mark.parametrize(("name", "calls"), [("replacement", 20), ("repaint", 200), ("dps", 20), ("ddrm", 20), ("smc", 21)])
def test_calls_are_counted(name, calls):
    seen = observe(MIXTURE.score, SEEN, 0.3, Y1)
    assert sdediff.sample_info(VP, seen, shape=(64, 2), method=name, steps=20, seed=0).nfe == calls
    if name != "repaint":
        assert sdediff.sample_info(VP, seen, shape=(64, 2), method=name, nfe=calls, seed=0).times[0] == 1.0


def test_repaint_on_a_grid_shorter_than_its_jump_repeats_all_of_it():
    seen = observe(MIXTURE.score, SEEN, 0.3, Y1)
    call = {"shape": (8, 2), "method": "repaint", "steps": 4, "seed": 0, "repeats": 3}
    assert sdediff.sample_info(VP, seen, jump=10, **call).nfe == 12
    assert torch.equal(sdediff.sample(VP, seen, jump=10, **call), sdediff.sample(VP, seen, jump=4, **call))


def test_replacement_of_everything_is_the_measurement():
    """A mask that hides nothing: the state is alpha y + sigma xi, and its end y, to the noise of the measurement."""
    every, y = operators.Mask(torch.tensor([True, True])), torch.tensor([[0.3, -0.4]]).expand(4000, 2)
    info = sdediff.sample_info(VP, observe(MIXTURE.score, every, 1e-4), shape=(4000, 2), method="replacement", steps=30, seed=0, record=True,
                               conditions={"measurement": y})
    for t, x in list(zip(info.times, info.trajectory))[5:-1]:
        level = VP.at(t)
        z = (x - level.alpha * y) / level.sigma
        assert float(z.mean(0).abs().max()) < 5 / 4000**0.5
        assert float((z.var(0) - 1).abs().max()) < 5 * (2 / 4000)**0.5


def test_ddrm_is_ddim_where_nothing_is_measured_and_the_measurement_where_it_is_known():
    """On independent coordinates: the hidden one takes DDIM steps, the one measured is alpha (y + sqrt(kappa^2 - std^2) xi)."""
    product = sdediff.targets.Gaussian([0.3, -0.2], [0.2, 0.5])
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    seen = observe(product.score, SEEN, 0.05, Y1)
    info = sdediff.sample_info(VP, seen, x_init=x, method="ddrm", eta=0.0, steps=10, seed=0, record=True)
    plain = sdediff.sample_info(VP, product.score, x_init=x, method="ddim", steps=10, record=True)
    assert torch.allclose(info.trajectory[..., 1], plain.trajectory[..., 1], atol=1e-12)
    for t, state in list(zip(info.times, info.trajectory))[1:-1]:
        level = VP.at(t)
        z = (state[:, 0] / level.alpha - 0.7) / ((level.sigma / level.alpha)**2 - 0.05**2)**0.5
        assert abs(float(z.mean())) < 5 / 4000**0.5 and abs(float(z.var()) - 1) < 5 * (2 / 4000)**0.5


@pytest.mark.parametrize("sde", [VP, sdediff.RectifiedFlow()], ids=["vp", "flow"])
def test_smc_estimates_the_evidence_without_bias(sde):
    """E exp(log_evidence) = p(y), here under the sampler's own law, which 200 steps bring near the prior's."""
    info = sdediff.sample_info(sde, observe(MIXTURE.score, SEEN, 0.1, Y1), shape=(100 * 32, 2), method="smc", particles=32, steps=200, seed=1,
                               dtype=F64)
    z = info.diagnostics["log_evidence"].exp()
    assert z.shape == (100,) and info.diagnostics["ess"].shape == (200, 100)
    assert bool((info.diagnostics["ess"] >= 1 - 1e-9).all() and (info.diagnostics["ess"] <= 32 + 1e-9).all())
    truth = math.exp(MIXTURE.log_evidence(SEEN, Y1, 0.1))
    assert abs(float(z.mean()) - truth) < 5 * float(z.std()) / 10 + 0.02 * truth


def test_smc_converges_to_the_posterior_as_particles_grow():
    """With a twist that is wrong on purpose (data three times as wide), so that the weights have to mend it."""
    exact = POSTERIOR.sample(4096, seed=7, dtype=F64)
    seen, error, mean = observe(MIXTURE.score, SEEN, 0.1, Y1), [], []
    for particles in (1, 8, 64):
        x = sdediff.sample(VP, seen, shape=(4096, 2), method="smc", particles=particles, scale=3.0, steps=100, seed=0, dtype=F64)
        error.append(metrics.sliced_w2(x, exact).value)
        mean.append(float((x.mean(0) - POSTERIOR.mean).abs().max()))
    floor = metrics.sliced_w2(POSTERIOR.sample(4096, seed=8, dtype=F64), exact).value
    assert error[0] > 5 * error[1] and max(error[1:]) < 1.5 * floor + 0.01
    assert mean[0] > 0.2 and max(mean[1:]) < 5 * 1.1 * (64 / 4096)**0.5 / 4


def test_smc_of_one_cloud_and_of_clouds_of_one():
    seen, call = observe(MIXTURE.score, SEEN, 0.2, Y1), {"shape": (24, 2), "steps": 20, "seed": 0, "dtype": F64}
    one = sdediff.sample_info(VP, seen, method="smc", particles=None, **call)
    assert one.diagnostics["ess"].shape == (20, 1)
    single = sdediff.sample_info(VP, seen, method="smc", particles=1, threshold=0.0, **call)
    assert torch.equal(single.diagnostics["ess"], torch.ones(20, 24, dtype=F64))
    assert torch.isfinite(single.diagnostics["log_evidence"]).all()


# -- steps, by hand -------------------------------------------------------------------------------------------------------
class Fixed(random.Noise):
    """Noise that is given, by use."""

    def __init__(self, **by):
        self.by, self.shape, self.dtype, self.device = by, tuple(next(iter(by.values())).shape), F64, torch.device("cpu")

    def at(self, step):
        return self

    def within(self):
        return self

    def normal(self, use=1):
        return self.by[f"use{use}"]


def one_step(name, score, x, t, s, noise, std=0.1, seen=SEEN, y=Y1, **options):
    recipe, observed = sdediff.method(name, **options), observe(score, seen, std, y)
    eq, levels = sdediff.ReverseSDE(VP, observed), VP.levels([t, s])
    return recipe.solver.over(levels).step(eq, State(x), *levels, noise).x


def test_a_step_of_dps_descends_on_the_residual():
    x, z = torch.randn(5, 2, generator=G, dtype=F64), torch.randn(5, 2, generator=G, dtype=F64)
    noise = Fixed(use0=z)
    alone = DDIM(1.0).step(sdediff.ReverseSDE(VP, MIXTURE.score), State(x), *VP.levels([0.5, 0.4]), noise).x
    at = x.clone().requires_grad_()
    squared = (Y1 - MIXTURE.score(at, VP.at(0.5)).x0[:, :1]).square().sum(1)
    gradient = torch.autograd.grad(squared.sum(), at)[0] / squared.detach().sqrt()[:, None]
    assert torch.allclose(one_step("dps", MIXTURE.score, x, 0.5, 0.4, noise, zeta=0.3), alone - 0.3 * gradient, atol=1e-12)


@pytest.mark.parametrize("inner", ["langevin", "rosenbrock-1", "edm-heun", "edm-stochastic", "heun", "picard"])
def test_dps_without_a_pull_is_its_inner_method(inner):
    seen, call = observe(MIXTURE.score, SEEN, 0.1, Y1), {"shape": (8, 2), "steps": 6, "seed": 0, "dtype": F64, "grid": "logsnr"}
    found = sdediff.sample(VP, seen, method="dps", inner=inner, zeta=1e-12, **call)
    plain = sdediff.sample(VP, MIXTURE.score, method=inner, **call)
    assert torch.allclose(found, plain, atol=1e-5 if inner == "picard" else 1e-8)


@pytest.mark.parametrize(("std", "near"), [(0.05, False), (3.0, True)])
def test_a_step_of_ddrm_by_its_equations(std, near):
    """Kawar et al. 2022, eq. 7 and 8 in x/alpha: both branches of the measured coordinate, and the hidden one."""
    t, s, eta, eta_b = 0.5, 0.4, 0.6, 0.7
    x, z = torch.randn(6, 2, generator=G, dtype=F64), torch.randn(6, 2, generator=G, dtype=F64)
    found = one_step("ddrm", MIXTURE.score, x, t, s, Fixed(use8=z), std=std, eta=eta, eta_b=eta_b) / VP.at(s).alpha
    p, kappa = MIXTURE.score(x, VP.at(t)), VP.at(s).sigma / VP.at(s).alpha
    assert (kappa < std) == near
    x0, eps = p.x0, p.eps
    if near:
        measured = x0[:, 0] + (1 - eta**2)**0.5 * kappa * (0.7 - x0[:, 0]) / std + eta * kappa * z[:, 0]
    else:
        measured = (1 - eta_b) * x0[:, 0] + eta_b * 0.7 + (kappa**2 - (eta_b * std)**2)**0.5 * z[:, 0]
    hidden = x0[:, 1] + kappa * ((1 - eta**2)**0.5 * eps[:, 1] + eta * z[:, 1])
    assert torch.allclose(found, torch.stack([measured, hidden], 1), atol=1e-7)     # the measurement is float32


@pytest.mark.parametrize("std", [0.05, 0.5, 50.0])
def test_a_step_of_replacement_draws_what_was_measured(std):
    t, s = 0.5, 0.4
    x, z = torch.randn(6, 2, generator=G, dtype=F64), torch.randn(6, 2, generator=G, dtype=F64)
    noise, level = Fixed(use0=z.flip(0), use8=z), VP.at(s)
    found = one_step("replacement", MIXTURE.score, x, t, s, noise, std=std)
    expected = DDIM(1.0).step(sdediff.ReverseSDE(VP, MIXTURE.score), State(x), *VP.levels([t, s]), noise).x
    left = level.sigma**2 - (level.alpha * std)**2
    if left > 0:
        expected[:, 0] = level.alpha * 0.7 + left**0.5 * z[:, 0]
    assert (left > 0) == (std < 1) and torch.allclose(found, expected, atol=1e-7)


def test_repaint_noises_back_with_fresh_noise():
    """A model that says x0 = 0 and DDIM without noise: on the hidden coordinate a step is a factor, and what a repeat adds is known."""
    def nothing(x, level):
        return sdediff.Prediction(x, level, x0=0 * x)

    seen, levels = observe(nothing, SEEN, 0.1, Y1), [1.0, 0.6, 0.3]
    call = {"x_init": torch.ones(20_000, 2, dtype=F64), "grid": levels, "inner": "ddim", "jump": 2, "seed": 0}
    sigma = [VP.at(t).sigma for t in levels]
    once, twice, thrice = (sdediff.sample(VP, seen, method="repaint", repeats=r, **call)[:, 1] for r in (1, 2, 3))
    assert torch.allclose(once, torch.full_like(once, sigma[2] / sigma[0]), atol=1e-12)
    a = VP.at(1.0).alpha / VP.at(0.3).alpha                     # lifted: a x + sqrt(sigma_T^2 - a^2 sigma_s^2) xi, and down again
    factor, fresh = a * sigma[2] / sigma[0], (sigma[0]**2 - (a * sigma[2])**2)**0.5 * sigma[2] / sigma[0]
    for found, before in ((twice, once), (thrice, twice)):
        xi = (found - factor * before) / fresh
        assert abs(float(xi.mean())) < 5 / 20_000**0.5 and abs(float(xi.var()) - 1) < 5 * (2 / 20_000)**0.5
    first, second = (twice - factor * once) / fresh, (thrice - factor * twice) / fresh
    assert abs(float((first * second).mean())) < 5 / 20_000**0.5


def test_repaint_repeats_the_steps_that_are_left_at_the_end():
    info = sdediff.sample_info(VP, observe(MIXTURE.score, SEEN, 0.3, Y1), shape=(8, 2), method="repaint", steps=25, seed=0)
    assert info.nfe == 250


# -- covariances ----------------------------------------------------------------------------------------------------------
def test_beyond_its_trust_the_covariance_is_isotropic_and_strength_multiplies():
    x = torch.randn(4, 5, generator=G, dtype=F64)
    level = VP.at(0.5)
    ratio = level.sigma / level.alpha
    near, far = (inverse.pigdm(GAUSSIAN.score, A, STD, Y, trust=trust)(x, level).x0 for trust in (1.01 * ratio, 0.99 * ratio))
    x0, r2 = GAUSSIAN.score(x, level).x0, level.sigma**2 / (level.alpha**2 + level.sigma**2)
    assert torch.allclose(far, x0 + A.gain(Y - A(x0), r2, STD**2), atol=1e-12)
    assert not torch.allclose(near, far, atol=1e-3)
    for name in ("pigdm", "plug_in"):
        double = GUIDANCES[name](GAUSSIAN.score, A, STD, Y, strength=2.0)(x, level).x0
        single = GUIDANCES[name](GAUSSIAN.score, A, STD, Y)(x, level).x0
        assert torch.allclose(double - x0, 2 * (single - x0), rtol=1e-9)


def test_conjugate_gradients_stay_bounded_on_what_is_not_positive():
    """The least eigenvalue that is promised bounds a step along a direction whose curvature is none, or negative."""
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=F64)
    u = inverse._conjugate_gradients(lambda u: u * torch.tensor([-1e-9, 1.0], dtype=F64), b, 0.5, 1)
    assert torch.allclose(u[0], torch.tensor([2.0, 0.0], dtype=F64)) and float(u.norm(dim=1).max()) <= 2 + 1e-9


@pytest.mark.parametrize("std", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("name", ["pigdm", "tweedie", "diffpir", "ddnm"])
def test_an_update_keeps_its_digits_in_single_precision(name, std):
    x, level = torch.randn(6, 2, generator=G, dtype=F64), VP.at(0.3)
    shift = [GUIDANCES[name](MIXTURE.score, SEEN, std, Y1)(v, level).x0 - MIXTURE.score(v, level).x0 for v in (x, x.float())]
    assert torch.allclose(shift[1].double(), shift[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("std", [1e-1, 1e-4])
def test_smc_keeps_its_digits_in_single_precision(std):
    found = [sdediff.sample_info(VP, observe(MIXTURE.score, SEEN, std, Y1), shape=(512, 2), method="smc", steps=20, seed=0, dtype=dtype)
             for dtype in (torch.float32, F64)]
    weights = [info.diagnostics["ess"][:3] for info in found]           # before rounding decides a resampling
    assert torch.allclose(*weights, rtol=1e-3)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "velocity", "edm"])
@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_a_network_without_a_gradient_is_refused_whatever_it_predicts(predicts, how):
    def net(x, c):
        with torch.set_grad_enabled(how == "detach"):
            return 0.1 * (x.detach() if how == "detach" else x)

    score = sdediff.from_network(net, predicts)
    for call in (lambda: sdediff.sample(VP, inverse.pigdm(score, SEEN, 0.1, Y1), x_init=torch.ones(4, 2), method="ddim", grid=[0.5, 0.4]),
                 lambda: sdediff.sample(VP, observe(score, SEEN, 0.1, Y1), x_init=torch.ones(4, 2), method="dps", grid=[0.5, 0.4]),
                 lambda: sdediff.sample(VP, observe(score, SEEN, 0.1, Y1), x_init=torch.ones(4, 2), method="smc", particles=4, grid=[0.5, 0.4]),
                 lambda: sdediff.sample(VP, score, x_init=torch.ones(4, 2), method="rosenbrock-1", grid=[0.5, 0.4]),
                 lambda: sdediff.log_prob(VP, score, torch.ones(4, 2), t_end=0.5)):
        with pytest.raises(sdediff.NetworkError, match=r"network net at t=0\.5: its output has no gradient"):
            call()
    assert torch.isfinite(sdediff.sample(VP, score, x_init=torch.ones(4, 2), method="ddim", grid=[0.5, 0.4])).all()


def test_an_observation_is_seen_through_a_temperature():
    seen = observe(MIXTURE.score, SEEN, 0.1, Y1)
    warm = guidance.temperature(seen, 1.0)
    assert torch.equal(*(sdediff.sample(VP, s, shape=(64, 2), method="smc", steps=10, seed=0) for s in (seen, warm)))


def test_the_posterior_of_a_mixture_keeps_its_classes():
    law = sdediff.targets.GaussianMixture([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0]], 0.1, labels=[0, 1, 0])
    posterior = law.given(SEEN, Y1, 0.1)
    assert posterior.classes == 2 and torch.equal(posterior.labels, law.labels)
    x = posterior.sample(50, seed=0, dtype=F64)                 # given x_0 the measurement says no more of the class
    assert torch.allclose(posterior.log_posterior(x), law.log_posterior(x), atol=1e-9)


# -- refusals -------------------------------------------------------------------------------------------------------------
class Scaled(operators.Matrix):
    def transpose(self, y):
        return 2 * super().transpose(y)


CALLS = []


def counted(x, level):
    CALLS.append(level)
    return MIXTURE.score(x, level)


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: observe(counted, SEEN, 0.0, Y1), ValueError, "std=0.0"),
    (lambda: observe(counted, SEEN, -1.0, Y1), ValueError, "std=-1.0"),
    (lambda: observe(counted, SEEN, float("nan"), Y1), ValueError, "std=nan"),
    (lambda: observe(counted, Scaled(torch.ones(1, 2)), 0.1, Y1), ValueError, r"Scaled: A\^T is not the transpose"),
    (lambda: inverse.plug_in(counted, Scaled(torch.ones(1, 2)), 0.1, Y1), ValueError, r"A\^T is not the transpose"),
    (lambda: observe(counted, torch.ones(1, 2), 0.1), TypeError, "operator=Tensor"),
    (lambda: observe(None, SEEN, 0.1), TypeError, "score=None"),
    (lambda: observe(counted, SEEN, 0.1, torch.zeros(2)), ValueError, r"measurement: got shape \(2,\); Mask measures \(1,\)"),
    (lambda: observe(counted, SEEN, 0.1, torch.tensor([math.nan])), ValueError, "measurement: it holds NaN"),
    (lambda: inverse.pigdm(counted, SEEN, 0.1, scale=0.0), ValueError, "scale=0.0"),
    (lambda: inverse.plug_in(counted, SEEN, 0.1, strength=-2.0), ValueError, "strength=-2.0"),
    (lambda: inverse.tweedie(counted, SEEN, 0.1, iterations=0), ValueError, "iterations=0"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1), shape=(64, 2), method="smc", steps=5), ValueError, "measurement: none was given"),
    (lambda: sdediff.sample(VP, inverse.plug_in(counted, SEEN, 0.1), shape=(64, 2), steps=5), ValueError, "measurement: none was given"),
    (lambda: sdediff.sample(VP, inverse.plug_in(counted, SEEN, 0.1, Y1), shape=(64, 3), steps=5), ValueError, r"measures events of shape \(2,\)"),
    (lambda: sdediff.sample(VP, counted, shape=(64, 2), method="ddrm", steps=5), ValueError, "this score carries none"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, Y1), shape=(63, 2), method="smc", steps=5), ValueError, "batch=63"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, Y1), shape=(64, 2), method="smc", particles=8, chunk=12, steps=5), ValueError,
     "chunk=12"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1), shape=(4, 2), steps=5, method="ddrm", conditions={"measurement": torch.zeros(3, 1)}),
     ValueError, "3 rows for a batch of 4"),
    (lambda: sdediff.sample(VP, inverse.pigdm(counted, SEEN, 0.1, torch.zeros(2, 1)), shape=(4, 2), steps=5), ValueError,
     "2 rows for a batch of 4"),
    (lambda: sdediff.sample(VP, inverse.pigdm(counted, SEEN, 0.1, torch.zeros(10, 1)), shape=(4, 2), steps=5, chunk=2), ValueError,
     "10 rows for a batch of 4"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, Y1), shape=(4, 2), steps=5), ValueError, "it does not read the measurement"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, Y1), shape=(4, 2), steps=5, method="pc", predictor="ddrm"), ValueError,
     "it does not read the measurement"),
    (lambda: sdediff.log_prob(VP, observe(counted, SEEN, 0.1, Y1), torch.zeros(4, 2), steps=5), ValueError, "does not read the measurement"),
    (lambda: sdediff.encode(VP, observe(counted, SEEN, 0.1, Y1), torch.zeros(4, 2), steps=5), ValueError, "does not read the measurement"),
    (lambda: sdediff.elbo(VP, observe(counted, SEEN, 0.1, Y1), torch.zeros(4, 2)), ValueError, "does not read the measurement"),
    (lambda: observe(guidance.temperature(inverse.pigdm(counted, SEEN, 0.1, Y1), 0.5), SEEN, 0.1, Y1), ValueError, "carries a measurement already"),
    (lambda: guidance.classifier_free(inverse.pigdm(counted, SEEN, 0.1, Y1), 2.0), ValueError, "expected it outside"),
    (lambda: sdediff.method("dps", inner="euler-maruyama"), ValueError, "inner='euler-maruyama': it solves an SDE"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, Y1), shape=(4, 2), nfe=50, method="dps", inner="rk45"), ValueError,
     "chooses its own number"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, Y1), shape=(4, 2), steps=5, method="repaint", inner="dpm++2m"), ValueError,
     "inner="),
    (lambda: sdediff.sample(VP, inverse.pigdm(counted, SEEN, 0.1, Y1), shape=(64, 2), method="ddrm", steps=5), ValueError,
     "guided by the measurement already"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1, torch.ones(1, dtype=torch.int64)), shape=(4, 2), steps=5, method="ddrm"), TypeError,
     "measurement=Tensor .* of torch.int64"),
    (lambda: sdediff.sample(VP, observe(counted, SEEN, 0.1), shape=(4, 2), steps=5, method="ddrm", conditions={"measurment": torch.ones(4, 1)}), TypeError,
     "measurment"),
    (lambda: inverse.pigdm(inverse.pigdm(counted, SEEN, 0.1, Y1), SEEN, 0.1, Y1), ValueError, "carries a measurement already"),
    (lambda: sdediff.method("repaint", inner="smc"), ValueError, "one-step solver that reads no measurement"),
    (lambda: sdediff.method("smc", particles=0), ValueError, "particles=0"),
    (lambda: sdediff.method("ddrm", eta=1.5), ValueError, "eta=1.5"),
    (lambda: sdediff.method("dps", zeta=math.nan), ValueError, "zeta=nan"),
    (lambda: MIXTURE.given(SEEN, Y1, 0.0), ValueError, "std=0.0"),
    (lambda: MIXTURE.given(SEEN, torch.zeros(2), 0.1), ValueError, "operator.shape")])
def test_wrong_input_is_refused_by_name_before_the_network_is_called(call, error, said):
    CALLS.clear()
    with pytest.raises(error, match=said):
        call()
    assert not CALLS


def test_a_guided_score_keeps_the_dtype_and_the_state_of_autograd():
    guided = inverse.tweedie(MIXTURE.score, SEEN, 0.1, Y1)
    for dtype in (torch.float32, F64, torch.bfloat16):
        assert sdediff.sample(VP, guided, shape=(4, 2), dtype=dtype, steps=6, seed=0).dtype == dtype
    with torch.inference_mode():
        x = sdediff.sample(VP, guided, shape=(4, 2), steps=6, seed=0, method="ddim")
    assert torch.equal(x.clone(), sdediff.sample(VP, guided, shape=(4, 2), steps=6, seed=0, method="ddim"))


def test_gradients_flow_through_a_guided_score():
    guided, level = inverse.pigdm(MIXTURE.score, SEEN, 0.3, Y1), VP.at(0.4)
    x = torch.randn(3, 2, generator=G, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: guided(x, level).x0, (x,))


def test_observing_methods_are_listed_apart(capsys):
    assert sdediff.methods(observing=True) == ("replacement", "repaint", "dps", "ddrm", "smc")
    assert not set(sdediff.methods()) & set(sdediff.methods(observing=True))
    assert dataclasses.is_dataclass(sdediff.method("smc").solver)
    assert np.isclose(sdediff.method("dps", zeta=0.3).solver.zeta, 0.3)
    assert main(["methods", "ddrm"]) == 0 and "Its steps read a measurement" in capsys.readouterr().out
    assert main(["methods"]) == 0 and "repaint " in capsys.readouterr().out


# -- the command line -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inverse") / "moons"
    assert main(["train", "--data", "two-moons", "--training.steps", "300", "--training.batch", "128", "--network.width", "32", "--out",
                 str(folder), "--quiet"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["smc", "tweedie:iterations=1", "repaint:repeats=2", "ddrm"])
def test_inpainting_a_run(run, posterior, capsys):
    line = ["inpaint", str(run), "--measured", "1", "--posterior", posterior, "--n", "2", "--draws", "32", "--steps", "20", "--std", "0.1"]
    capsys.readouterr()
    assert main([*line, "--overwrite"]) == 0
    said, drawn = capsys.readouterr().out, np.load(run / "inpaint.npy")
    assert "network calls; |A x - y|/std" in said and "sliced W2 to the exact posterior" in said
    assert ("effective sample size" in said) == (posterior == "smc")
    assert drawn.shape == (2, 32, 2) and np.isfinite(drawn).all() and (run / "inpaint.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*line, "--overwrite"]) == 0
    assert np.array_equal(drawn, np.load(run / "inpaint.npy"))
    assert main(line) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "said"), [
    (["--measured", "3"], "coordinate=3: expected an integer in [1, 2]"), (["--measured", "upper"], "expected coordinates such as 1"),
    (["--measured", "1", "--posterior", "smd"], "posterior='smd' is unknown; nearest: smc"), (["--measured", "1", "--std", "0"], "std=0.0"),
    (["--measured", "random:2"], "SHARE=2.0"), (["--measured", "1", "--posterior", "ddrm:eta=2"], "eta=2"),
    (["--draws", "0"], "draws=0")])
def test_wrong_inpainting_is_refused_in_one_line(run, line, said, capsys):
    assert main(["inpaint", str(run), *line]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(("text", "known"), [("upper", 32), ("left", 32), ("outside", 48), ("random:0.25", 16)])
def test_measurements_of_images_as_they_are_spelled(text, known):
    operator = evaluate.measurement(text, (1, 8, 8))
    operators.check(operator)
    assert abs(operator.measured[0] - known) <= (12 if "random" in text else 0)
    with pytest.raises(ValueError, match="'upper' takes no value"):
        evaluate.measurement("upper:5", (1, 8, 8))
    assert evaluate.measurement("mean:2", (1, 8, 8)).measured == (1, 4, 4)
    assert evaluate.measurement("blur:1", (1, 8, 8)).measured == (1, 8, 8)
