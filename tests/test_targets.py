"""Targets are held to theorems: score = grad log p, Tweedie of both orders, Stein-free normalisation, the exact flow against an ODE
solver, draws against the density. Statistical bounds: z < 5 (false alarm 6e-7 each), p > 1e-5, with fixed seeds."""
from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from sdediff import targets
from sdediff.sde import EDMSDE, VESDE, VPSDE, NoiseLevel, RectifiedFlow, SubVPSDE
from sdediff.targets import TOYS, Empirical, Gaussian, GaussianMixture, Target, toy

F64 = torch.float64
LEVELS = {"vp-0.02": VPSDE().at(0.02), "vp-0.5": VPSDE().at(0.5), "vp-1": VPSDE().at(1.0), "sub-vp": SubVPSDE().at(0.3),
          "ve": VESDE().at(0.4), "edm": EDMSDE().at(2.5), "flow": RectifiedFlow().at(0.3), "flow-1": RectifiedFlow().at(1.0)}
SMOOTH = [n for n in TOYS if n != "checkerboard"]


def full_mixture(d: int = 3, k: int = 4, seed: int = 0) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(k, d, d, generator=g, dtype=F64) / d**0.5
    return GaussianMixture(2 * torch.randn(k, d, generator=g, dtype=F64), a @ a.transpose(1, 2) + 0.05 * torch.eye(d),
                           torch.rand(k, generator=g, dtype=F64) + 0.1)


OTHERS = {
    "gaussian": lambda: Gaussian([1.0, -0.5], [[0.5, 0.3], [0.3, 0.4]]),
    "full": full_mixture,
    "diagonal": lambda: GaussianMixture([[0.0, 1.0], [2.0, -1.0]], [[0.1, 0.5], [0.3, 0.02]], [1, 3]),
    "shared": lambda: GaussianMixture([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]], [[[0.5, 0.2], [0.2, 0.3]]]),
    "one-dimensional": lambda: GaussianMixture([[-1.0], [1.0]], [0.04, 0.3], [0.3, 0.7]),
    "singular": lambda: GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [[[1.0, 1.0], [1.0, 1.0]], [[0.2, 0.0], [0.0, 0.0]]]),
    "points": lambda: Empirical(torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=F64)),
}
_MADE: dict[str, Target] = {}


def make(name: str) -> Target:
    if name not in _MADE:
        _MADE[name] = toy(name) if name in TOYS else OTHERS[name]()
    return _MADE[name]


def noised(t: Target, level: NoiseLevel, n: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    x0 = t.sample(n, seed=seed, dtype=F64)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=F64)
    return (level.alpha * x0 + level.sigma * eps).to(dtype)


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to max(1, |b|)."""
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(((a - b).abs() / b.abs().clamp_min(1)).max())


def autograd_score(t: Target, x: Tensor, level: NoiseLevel | None) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(t.log_prob(x, level).sum(), x)[0]


# -- the score is the gradient of the density -----------------------------------------------------------------------------
@pytest.mark.parametrize("where", LEVELS)
@pytest.mark.parametrize("name", [*TOYS, *OTHERS])
def test_score_is_the_gradient_of_log_prob(name: str, where: str) -> None:
    t, level = make(name), LEVELS[where]
    x = torch.cat([noised(t, level, 24), 1.5 * level.sigma * torch.randn(8, t.dim, generator=torch.Generator().manual_seed(9), dtype=F64)])
    p = t.score(x, level)
    assert gap(p.score, autograd_score(t, x, level)) < 1e-9
    assert gap(level.alpha * p.x0, x + level.sigma**2 * p.score) < 1e-12 * max(1.0, level.sigma)       # Tweedie
    half = x.float()
    q = t.score(half, level)
    assert q.x0.dtype == q.score.dtype == t.log_prob(half, level).dtype == torch.float32
    want = t.score(half.double(), level)
    if name != "points":                                                # its score comes from x0: sigma^-2 of its digits
        assert gap(q.score, want.score.float()) < 1e-4 * max(1.0, 0.03 / level.sigma)**2
        assert gap(autograd_score(t, half, level), want.score.float()) < 1e-4 * max(1.0, 0.03 / level.sigma)**2
    assert gap(q.x0, want.x0.float()) < 2e-4


@pytest.mark.parametrize("name", [*SMOOTH, "gaussian", "full", "diagonal", "shared"])
def test_clean_level(name: str) -> None:
    t = make(name)
    x = t.sample(32, seed=3, dtype=F64)
    for level in (VPSDE().at(0.0), EDMSDE().at(0.0), RectifiedFlow().at(0.0)):
        p = t.score(x, level)
        score = autograd_score(t, x, None)
        assert float((p.score - score).abs().max() / score.abs().max()) < 1e-10
        assert gap(p.x0, x) < 1e-11
        assert bool(torch.isfinite(p.velocity).all())
        torch.testing.assert_close(t.log_prob(x), t.log_prob(x, level), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*TOYS, *OTHERS])
def test_alpha_zero_knows_only_the_mean(name: str) -> None:
    t, level = make(name), RectifiedFlow().at(1.0)
    assert level.alpha == 0
    x = noised(t, level, 16)
    p = t.score(x, level)
    assert gap(p.x0, t.mean.expand(16, -1)) < 1e-12
    assert gap(p.score, -x) < 1e-13
    assert gap(p.velocity, x - t.mean) < 1e-12
    assert gap(t.log_prob(x, level), -0.5 * (x**2).sum(1) - 0.5 * t.dim * math.log(2 * math.pi)) < 1e-12


@pytest.mark.parametrize("name", ["checkerboard", "singular"])
def test_no_score_at_the_clean_level_of_a_rough_law(name: str) -> None:
    t, level = make(name), RectifiedFlow().at(0.0)
    x = t.sample(5, seed=0, dtype=F64)
    p = t.score(x, level)
    assert torch.equal(p.x0, x)
    with pytest.raises(ValueError, match="sigma = 0"):
        p.score  # noqa: B018
    with pytest.raises(ValueError, match="sigma = 0 for some samples"):
        t.score(x, RectifiedFlow().at(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])[:, None]))


# -- the density is a density, and the draws are its draws -----------------------------------------------------------------
@pytest.mark.parametrize("name, sigma, reach, step", [
    ("two-moons", 0.0, 4.0, 0.1), ("swiss-roll", 0.0, 4.0, 0.1), ("8-gaussians", 0.0, 3.0, 0.1), ("25-gaussians", 0.0, 1.7, 0.025),
    ("two-spirals", 0.0, 3.2, 0.06), ("rings", 0.0, 3.2, 0.08), ("banana", 0.0, 16.0, 0.15), ("pinwheel", 0.15, 6.0, 0.12),
    ("funnel", 0.4, 40.0, 0.25), ("checkerboard", 0.15, 3.5, 0.1), ("gaussian", 0.0, 6.0, 0.15), ("singular", 0.3, 8.0, 0.2)])
def test_density_integrates_to_one(name: str, sigma: float, reach: float, step: float) -> None:
    # The trapezoidal rule is exact to exp(-2 pi^2 (width/step)^2) for features of that width; the funnel's neck is narrower than any
    # grid at sigma = 0, and its tails are wider than the box by 1e-7.
    axis = torch.arange(-reach, reach + step / 2, step, dtype=F64)
    other = torch.arange(-6, 6.01, step, dtype=F64) if name in ("banana", "funnel") else axis
    x = torch.cartesian_prod(other, axis)
    level = None if not sigma else EDMSDE().at(sigma)
    assert abs(float(make(name).log_prob(x, level).exp().sum()) * step**2 - 1) < 1e-6


def test_checkerboard_is_uniform() -> None:
    t = make("checkerboard")
    side = math.sqrt(12) / 4
    axis = (torch.arange(60, dtype=F64) + 0.5) * side / 10 - 3 * side
    x = torch.cartesian_prod(axis, axis)
    p = t.log_prob(x).exp()
    assert abs(float(p.sum()) * (side / 10)**2 - 1) < 1e-12
    assert torch.equal(p > 0, (torch.floor(x / side).sum(1) % 2 == 0) & (x.abs().amax(1) < 2 * side))
    assert bool(torch.isfinite(t.log_prob(t.sample(5000, seed=0, dtype=F64))).all())
    inside = t.log_prob(x[p > 0])
    deep = x[p > 0][(torch.remainder(x[p > 0] / side, 1) - 0.5).abs().amax(1) < 0.3]
    torch.testing.assert_close(t.log_prob(deep, EDMSDE().at(0.01)), inside[:len(deep)], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="even number"):
        toy("checkerboard", cells=3)


@pytest.mark.parametrize("name", [*TOYS, "gaussian", "diagonal", "shared", "singular"])
def test_draws_follow_the_density(name: str) -> None:
    """Chi-square of noised draws on 64 squares and the rest, whose probabilities are 5 x 5 Gauss-Legendre sums of the density."""
    t, level, n = make(name), RectifiedFlow().at(0.25), 20_000
    edges = np.linspace(-2.0, 2.0, 9)
    u, w = np.polynomial.legendre.leggauss(5)
    points = (edges[:-1, None] + 0.25 * (u + 1)).reshape(-1)
    grid = torch.cartesian_prod(*(torch.from_numpy(points),) * 2)
    p = t.log_prob(grid, level).exp().numpy().reshape(8, 5, 8, 5)
    cells = np.einsum("aibj,i,j->ab", p, w / 4, w / 4).ravel()
    x = noised(t, level, n, seed=5).numpy()
    seen = np.histogram2d(x[:, 0], x[:, 1], bins=[edges, edges])[0].ravel()
    expected, seen = (np.append(v, total - v.sum()) for v, total in ((cells * n, n), (seen, n)))
    few = expected < 8
    expected, seen = (np.append(v[~few], v[few].sum()) for v in (expected, seen))
    assert stats.chi2.sf(((seen - expected)**2 / np.maximum(expected, 1e-3)).sum(), len(seen) - 1) > 1e-5


@pytest.mark.parametrize("name", [n for n in [*TOYS, *OTHERS] if isinstance(make(n), GaussianMixture)])
def test_clean_draws_along_random_lines(name: str) -> None:
    """Kolmogorov-Smirnov of v.x_0 against sum w_k Phi((q - v.mu_k)/sqrt(v C_k v)): thin features, no noise added."""
    t = make(name)
    assert isinstance(t, GaussianMixture)
    x = t.sample(10_000, seed=11, dtype=F64)
    for v in torch.randn(3, t.dim, generator=torch.Generator().manual_seed(4), dtype=F64):
        std = torch.einsum("d,kde,e->k", v, t.covs, v).sqrt()
        q = (x @ v).sort().values
        cdf = torch.cat([torch.special.ndtr((c[:, None] - t.means @ v) / std) @ t.weights for c in q.split(2000)]).numpy()
        assert stats.kstest(cdf, "uniform").pvalue > 1e-5


def test_banana_and_funnel_by_their_definition() -> None:
    for name, law in (("banana", lambda u: (math.sqrt(0.455) * (u**2 - 1), 0.3)), ("funnel", lambda u: (0.0, np.exp(0.75 * u - 0.5625)))):
        u, y = make(name).sample(20_000, seed=2, dtype=F64).numpy().T
        mean, std = law(u)
        assert stats.kstest(u, "norm").pvalue > 1e-5
        assert stats.kstest((y - mean) / std, "norm").pvalue > 1e-5
        x = torch.from_numpy(np.stack([u, y], 1))
        want = stats.norm.logpdf(u) + stats.norm.logpdf(y, mean, std)
        assert gap(make(name).log_prob(x), torch.from_numpy(want)) < 1e-12


@pytest.mark.parametrize("name", [*TOYS, *OTHERS])
def test_mean_and_covariance_of_draws(name: str) -> None:
    t, n = make(name), 20_000
    x = t.sample(n, seed=7, dtype=F64)
    assert x.shape == (n, *t.event)
    off = x.flatten(1) - t.mean
    assert float((off.mean(0).abs() / (off.std(0) / n**0.5)).max()) < 5
    products = off[:, :, None] * off[:, None, :]
    assert float(((products.mean(0) - t.cov).abs() / (products.std(0) / n**0.5)).max()) < 5
    if name in TOYS:
        assert float(t.mean.abs().max()) < 1e-12
        assert abs(float(t.cov.trace()) - 2) < 1e-12


@pytest.mark.parametrize("name", [n for n in SMOOTH if "gaussians" not in n])
def test_quadrature_has_settled(name: str) -> None:
    """Half as many nodes again change the log density of 2000 clean draws by less than 1e-10, and the noised one too."""
    t, fine = make(name), toy(name, refine=1.5)
    for level in (None, LEVELS["vp-0.02"], LEVELS["flow"]):
        x = t.sample(2000, seed=1, dtype=F64) if level is None else noised(t, level, 400)
        assert gap(t.log_prob(x, level), fine.log_prob(x, level)) < 1e-10


# -- identities between targets ---------------------------------------------------------------------------------------------
def same(a: Target, b: Target, level: NoiseLevel, tol: float = 1e-14, n: int = 32) -> None:
    x = noised(b, level, n)
    p, q = a.score(x, level), b.score(x, level)
    assert gap(a.log_prob(x, level), b.log_prob(x, level)) < tol
    assert gap(p.x0, q.x0) < tol
    assert float((p.score - q.score).abs().max() / q.score.abs().max()) < tol


@pytest.mark.parametrize("where", ["vp-0.5", "flow", "edm"])
def test_mixture_identities(where: str) -> None:
    level, m = LEVELS[where], full_mixture()
    one = Gaussian(m.means[0], m.covs[0])
    same(GaussianMixture(m.means[:1], m.covs[:1]), one, level)
    same(GaussianMixture(m.means[:1].expand(5, -1), m.covs[:1], [1, 2, 3, 4, 5]), one, level)
    order = [2, 0, 3, 1]
    same(GaussianMixture(m.means[order], m.covs[order], m.weights[order]), m, level)
    same(GaussianMixture(m.means, m.covs, 7 * m.weights), m, level)
    same(GaussianMixture(torch.cat([m.means, m.means[:1] + 1]), torch.cat([m.covs, m.covs[:1]]), [*m.weights, 0.0]), m, level)


def test_covariances_in_every_form() -> None:
    means, level, eye = [[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]], LEVELS["flow"], torch.eye(2, dtype=F64)
    forms = [0.3, [0.3], [0.3, 0.3, 0.3], [[0.3, 0.3]], 0.3 * eye[None], [0.3, [0.3, 0.3], 0.3 * eye], np.full((3, 2), 0.3)]
    for covs in forms:
        same(GaussianMixture(means, covs), GaussianMixture(means, 0.3), level)
    near = 0.3 * eye + 1e-13 * (1 - eye)                                # through eigh
    same(GaussianMixture(means, near[None]), GaussianMixture(means, 0.3), level, tol=1e-11)
    assert torch.allclose(full_mixture().covs, full_mixture().covs.transpose(1, 2))
    assert Gaussian([0.0, 0.0], np.float32([[1, 0.1], [0.1, 1]])).has_density
    assert not make("singular").has_density
    assert not make("points").has_density
    assert all(make(n).has_density for n in TOYS)


@pytest.mark.parametrize("where", ["vp-0.02", "vp-0.5", "edm", "flow-1"])
def test_empirical_is_a_mixture_of_points(where: str) -> None:
    t, level = make("points"), LEVELS[where]
    assert isinstance(t, Empirical)
    same(t, GaussianMixture(t.data, 0.0), level, tol=1e-9)
    same(t, GaussianMixture(t.data, 1e-12), level, tol=1e-6)
    torch.testing.assert_close(t.cov, GaussianMixture(t.data, 0.0).cov, rtol=1e-12, atol=1e-14)


def test_empirical_at_the_clean_level_is_the_nearest_point() -> None:
    t, level = make("points"), EDMSDE().at(0.0)
    assert isinstance(t, Empirical)
    x = t.data + 1e-3
    assert gap(t.score(x, level).x0, t.data[torch.cdist(x, t.data).argmin(1)]) < 1e-15
    per_sample = EDMSDE().at(torch.zeros(len(x), 1))
    assert torch.equal(t.score(x, per_sample).x0, t.score(x, level).x0)
    with pytest.raises(ValueError, match="sigma = 0"):
        t.score(x, level).score  # noqa: B018
    with pytest.raises(ValueError, match="no density at sigma = 0"):
        t.log_prob(x)
    picture = Empirical(torch.rand(7, 1, 4, 4))
    assert picture.sample(3, seed=0).shape == (3, 1, 4, 4)
    assert picture.dim == 16
    assert picture.score(torch.rand(5, 1, 4, 4), LEVELS["flow"]).x0.shape == (5, 1, 4, 4)


@pytest.mark.parametrize("name", ["gaussian", "full", "diagonal", "shared", "singular", "two-moons", "pinwheel"])
def test_second_order_tweedie(name: str) -> None:
    """Cov[x_0|x] = sigma^2/alpha^2 (I + sigma^2 grad score), and the law of total covariance."""
    t, level = make(name), LEVELS["flow"]
    assert isinstance(t, GaussianMixture)
    x = noised(t, level, 6)
    mean, cov = t.posterior(x, level)
    hessian = torch.stack([torch.autograd.functional.jacobian(lambda v: t.score(v[None], level).score[0], row) for row in x])
    v = level.sigma**2
    assert gap(cov, v / level.alpha**2 * (torch.eye(t.dim, dtype=F64) + v * hessian)) < 1e-11
    assert gap(mean, t.score(x, level).x0) < 1e-13
    assert gap(t.posterior(x, RectifiedFlow().at(1.0))[1], t.cov.expand(6, -1, -1)) < 1e-12
    x = t.sample(4, seed=0, dtype=F64)
    mean, cov = t.posterior(x, RectifiedFlow().at(0.0))
    assert gap(mean, x) < 1e-12 and float(cov.abs().max()) < 1e-12


# -- the exact flow ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sde, end", [(VPSDE(), 1e-3), (SubVPSDE(), 1e-3), (VESDE(), 1e-5), (EDMSDE(), 0.0), (RectifiedFlow(), 0.0)])
def test_flow_map_against_an_ode_solver(sde, end: float) -> None:
    a = torch.tensor([[1.0, 0.3, 0.0], [0.2, 0.7, -0.4], [0.1, 0.0, 0.3]], dtype=F64)
    g = Gaussian([0.5, -1.0, 2.0], a @ a.T)
    start, finish = sde.at(sde.t_max), sde.at(end)
    x = noised(g, start, 4)

    def velocity(t: float, y: np.ndarray) -> np.ndarray:
        return g.score(torch.from_numpy(y).reshape(4, 3), sde.at(t)).velocity.numpy().ravel()

    solved = integrate.solve_ivp(velocity, (start.t, end), x.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
    exact = g.flow(x, start, finish)
    assert gap(torch.from_numpy(solved).reshape(4, 3), exact) < 1e-8
    assert gap(g.flow(exact, finish, start), x) < 1e-12                 # there and back
    middle = sde.at((start.t + end) / 2)
    assert gap(g.flow(g.flow(x, start, middle), middle, finish), exact) < 1e-13
    times = torch.full((4, 1), start.t, dtype=F64)
    assert gap(g.flow(x, sde.at(times), finish), exact) < 1e-13


def test_flow_of_a_point_and_a_plane() -> None:
    sde = RectifiedFlow()
    point = Gaussian([1.0, 2.0], 0.0)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert gap(point.flow(x, sde.at(1.0), sde.at(0.0)), torch.tensor([[1.0, 2.0]], dtype=F64).expand(5, -1)) < 1e-15
    with pytest.raises(ValueError, match="has no flow"):
        point.flow(x, sde.at(0.0), sde.at(1.0))
    assert point.flow(x.float().reshape(5, 1, 2), sde.at(1.0), sde.at(0.5)).shape == (5, 1, 2)


# -- the interval law, the one delicate formula ------------------------------------------------------------------------------
@pytest.mark.parametrize("ratio", [0.0, 1e-12, 1e-3, 0.2499, 0.2501, 1.0, 7.0, 60.0])
def test_interval_law(ratio: float) -> None:
    """Against a 600-node mixture, at interval/noise = ratio, from the middle to 30 sigma outside, both sides; floats and tensors."""
    left, side, sigma = torch.tensor([-0.7, 0.4], dtype=F64), 0.9, 0.8
    alpha = ratio * sigma / side
    x = torch.cat([torch.linspace(-24, 24 + 2 * alpha, 41, dtype=F64), alpha * torch.linspace(-1, 1.5, 7, dtype=F64)])[:, None]
    u, w = targets._legendre_rule(600)
    level = NoiseLevel(0.5, alpha, sigma, 0.0, 0.0, 0.0)
    got = targets._interval(x, alpha, sigma, left, side)
    rows = targets._interval(x[..., None], torch.full((len(x), 1, 1), alpha, dtype=F64), sigma, left, side)
    for i in range(2):
        many = GaussianMixture((left[i] + side * u)[:, None], 0.0, w)
        p = many.score(x, level)
        for value, want in zip(got, (many.log_prob(x, level), p.x0[:, 0], p.score[:, 0])):
            assert gap(value[:, i], want) < 1e-11
        assert all(gap(r[:, 0, i], v[:, i]) < 1e-14 for r, v in zip(rows, got))


# -- levels, shapes, dtypes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*TOYS, *OTHERS])
def test_per_sample_levels_are_rows(name: str) -> None:
    t, sde = make(name), RectifiedFlow()
    times = torch.tensor([1.0, 0.97, 0.8, 0.5, 0.1, 0.02], dtype=F64)
    x = noised(t, sde.at(0.5), 6)
    level = sde.at(times[:, None])
    p, log_p = t.score(x, level), t.log_prob(x, level)
    assert p.score.shape == x.shape and log_p.shape == (6,)
    for i, s in enumerate(times.tolist()):
        q = t.score(x[i:i + 1], sde.at(s))
        assert gap(p.x0[i:i + 1], q.x0) < 1e-12
        assert gap(p.score[i:i + 1], q.score) < (1e-12 if name != "points" else 1e-10)
        assert gap(log_p[i:i + 1], t.log_prob(x[i:i + 1], sde.at(s))) < 1e-12
    assert t.score(x.float(), level).score.dtype == torch.float32
    leaf = x.clone().requires_grad_()
    grad = torch.autograd.grad(t.score(leaf, level).score.square().sum(), leaf)[0]
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", ["full", "points", "two-moons", "banana", "checkerboard"])
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    t, sde = make(name), VPSDE()
    x = noised(t, sde.at(0.3), 50)
    for level in (sde.at(0.3), sde.at(torch.linspace(0.1, 1, 50)[:, None])):
        whole = t.score(x, level), t.log_prob(x, level)
        with monkeypatch.context() as m:
            m.setitem(targets.CHUNK, "cpu", 7 * t._width)
            parts = t.score(x, level), t.log_prob(x, level)
        assert gap(parts[0].score, whole[0].score) < 1e-11
        assert gap(parts[0].x0, whole[0].x0) < 1e-12
        assert gap(parts[1], whole[1]) < 1e-12


def test_events_of_any_rank_and_dtype() -> None:
    t, level = full_mixture(d=12, k=3), LEVELS["flow"]
    x = noised(t, level, 5)
    shaped = x.reshape(5, 1, 3, 4)
    assert torch.equal(t.score(shaped, level).score.flatten(1), t.score(x, level).score)
    assert torch.equal(t.log_prob(shaped, level), t.log_prob(x, level))
    mean, cov = t.posterior(shaped, level)
    assert mean.shape == shaped.shape and cov.shape == (5, 12, 12)
    times = RectifiedFlow().at(torch.full((5, 1, 1, 1), 0.3))
    assert gap(t.score(shaped, times).x0, t.score(shaped, level).x0) < 1e-6        # 0.3 came in float32
    for dtype in (torch.float16, torch.bfloat16):
        p = t.score(x.to(dtype), level)
        assert p.x0.dtype == p.score.dtype == dtype
        assert gap(p.x0.double(), t.score(x.to(dtype).double(), level).x0) < 1e-2
    empty = t.score(x[:0], level)
    assert empty.x0.shape == (0, 12) and t.log_prob(x[:0]).shape == (0,)
    assert make("one-dimensional").log_prob(torch.zeros(3), level).shape == (3,)


def test_autograd_after_inference_mode_and_under_functorch() -> None:
    t, level = full_mixture(), LEVELS["flow"]
    x = noised(t, level, 4, dtype=torch.float32)
    with torch.inference_mode():
        first = t.score(x, level).score
    assert gap(autograd_score(t, x, level), first) < 1e-4
    fresh = full_mixture()
    out, pull = torch.func.vjp(lambda v: fresh.score(v, level).score, x)
    jacobian = torch.func.vmap(pull)(torch.eye(3).repeat_interleave(4, 0).reshape(3, 4, 3))[0]
    assert gap(jacobian, jacobian.permute(2, 1, 0)) < 1e-4              # the score's Jacobian is symmetric
    assert torch.equal(out, t.score(x, level).score)


# -- draws are functions of (seed, index) --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*TOYS, *OTHERS])
def test_seeds_belong_to_samples(name: str) -> None:
    t = make(name)
    whole = t.sample(2500, seed=3, dtype=F64)
    for k in (0, 1, 7, 1024, 1025):
        assert torch.equal(t.sample(k, seed=3, dtype=F64), whole[:k])
    assert torch.equal(t.sample(40, seed=3, dtype=torch.float32), whole[:40].float())
    assert not torch.equal(t.sample(40, seed=4, dtype=F64), whole[:40])
    own = t.sample(3, seed=[5, 6, 5], dtype=F64)
    assert torch.equal(own[0], own[2]) and not torch.equal(own[0], own[1])
    state = torch.random.get_rng_state()
    t.sample(3, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(8)
    first, second = t.sample(4), t.sample(4)
    torch.manual_seed(8)
    assert torch.equal(t.sample(4), first) and not torch.equal(first, second)
    g = torch.Generator().manual_seed(1)
    assert torch.equal(t.sample(4, seed=g), t.sample(4, seed=torch.Generator().manual_seed(1)))
    clone = pickle.loads(pickle.dumps(copy.deepcopy(t)))
    assert torch.equal(clone.sample(5, seed=3, dtype=F64), whole[:5])
    assert clone.name == t.name and name in (t.name, name)


def test_sample_dtype_and_device() -> None:
    t = make("two-moons")
    assert t.sample(2, seed=0).dtype == torch.get_default_dtype()
    assert t.sample(2, seed=0, dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16
    assert t.sample(2, seed=0, device="meta").device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*TOYS, *OTHERS])
def test_on_the_gpu_as_on_the_cpu(name: str, cuda: torch.device) -> None:
    t, sde = make(name), RectifiedFlow()
    x = noised(t, sde.at(0.3), 200)
    assert torch.equal(t.sample(50, seed=1, dtype=F64, device=cuda).cpu(), t.sample(50, seed=1, dtype=F64))
    for level in (sde.at(0.3), sde.at(torch.linspace(0.05, 1, 200, dtype=F64)[:, None]).to(x)):
        there, here = t.score(x.to(cuda), level), t.score(x, level)
        assert there.x0.device.type == "cuda"
        assert gap(there.score.cpu(), here.score) < 1e-10
        assert gap(there.x0.cpu(), here.x0) < 1e-11
        assert gap(t.log_prob(x.to(cuda), level).cpu(), t.log_prob(x, level)) < 1e-11
        assert t.score(x.float().to(cuda), level).score.dtype == torch.float32


# -- refusals -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("build, error, match", [
    (lambda: GaussianMixture([0.0, 1.0], 1.0), ValueError, r"means\.shape=\(2,\)"),
    (lambda: GaussianMixture(torch.zeros(0, 2), 1.0), ValueError, r"means\.shape=\(0, 2\)"),
    (lambda: GaussianMixture([[0.0, math.nan]], 1.0), ValueError, "means holds NaN or inf in 1 of 2"),
    (lambda: GaussianMixture([["a", "b"]], 1.0), TypeError, "means=.*expected real numbers"),
    (lambda: GaussianMixture([[1j, 0]], 1.0), TypeError, "means=.*expected real numbers"),
    (lambda: GaussianMixture([[0.0], [1.0, 2.0]], 1.0), TypeError, "rectangular"),
    (lambda: GaussianMixture([[0.0, 1.0]], -1.0), ValueError, "negative variance, -1.0"),
    (lambda: GaussianMixture([[0.0, 1.0]], [[[1.0, 0.5], [0.4, 1.0]]]), ValueError, "symmetric.*0.1"),
    (lambda: GaussianMixture([[0.0, 1.0]], [[[1.0, 2.0], [2.0, 1.0]]]), ValueError, "semi-definite.*-1"),
    (lambda: GaussianMixture([[0.0, 1.0]], [[[1.0, 0.0], [0.0, -1.0]]]), ValueError, "semi-definite.*-1"),
    (lambda: GaussianMixture([[0.0, 1.0]] * 3, torch.eye(2)), ValueError, r"covs\.shape=\(2, 2\).*\(3, 2, 2\)"),
    (lambda: GaussianMixture([[0.0, 1.0]] * 3, []), ValueError, r"covs\.shape=\(0,\)"),
    (lambda: GaussianMixture([[0.0, 1.0]] * 2, [1.0, [1.0, 2.0, 3.0]]), ValueError, r"covs\[1\]\.shape=\(3,\)"),
    (lambda: GaussianMixture([[0.0, 1.0]] * 2, 1.0, [1.0]), ValueError, r"weights=\[1\.0\].*2 non-negative"),
    (lambda: GaussianMixture([[0.0, 1.0]] * 2, 1.0, [1.0, -1.0]), ValueError, "weights=.*non-negative"),
    (lambda: GaussianMixture([[0.0, 1.0]] * 2, 1.0, [0.0, 0.0]), ValueError, "positive sum"),
    (lambda: Gaussian([[0.0, 1.0]]), ValueError, r"mean\.shape=\(1, 2\)"),
    (lambda: Empirical([1.0, 2.0]), ValueError, r"data\.shape=\(2,\)"),
    (lambda: toy("two-moon"), ValueError, "name='two-moon' is unknown; nearest: two-moons"),
    (lambda: toy("rings", noise=0.0), ValueError, "noise=0.0"),
    (lambda: toy("banana", noise=1.0), ValueError, "noise=1.0"),
    (lambda: toy("funnel", refine=0), ValueError, "refine=0"),
    (lambda: toy("rings").sample(-1), ValueError, "n=-1"),
    (lambda: toy("rings").sample(2.0), TypeError, "n=2.0"),
    (lambda: toy("rings").sample(2, seed=-1), ValueError, "seed=-1"),
    (lambda: toy("rings").sample(2, dtype=torch.int64), TypeError, "dtype=torch.int64"),
    (lambda: toy("rings").score(torch.zeros(3, 3), LEVELS["flow"]), ValueError, r"x\.shape=\(3, 3\).*2 numbers per sample"),
    (lambda: toy("rings").score(torch.zeros(3, 2, dtype=torch.int64), LEVELS["flow"]), TypeError, "x.dtype=torch.int64"),
    (lambda: toy("rings").score([[0.0, 0.0]], LEVELS["flow"]), TypeError, r"x=\["),
    (lambda: toy("rings").score(torch.zeros(3, 2), 0.5), TypeError, "level=0.5: expected a NoiseLevel"),
    (lambda: toy("rings").score(torch.zeros(3, 2), VPSDE().at(torch.ones(2, 1))), ValueError, r"level\.alpha\.shape=\(2, 1\).*B=3"),
    (lambda: make("singular").log_prob(torch.zeros(3, 2)), ValueError, "no density at sigma = 0"),
    (lambda: make("checkerboard").log_prob(torch.zeros(2, 2), EDMSDE().at(torch.tensor([[0.0], [1.0]]))), ValueError, "for some samples"),
])
def test_refusals(build, error, match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_registry() -> None:
    assert set(TOYS) == {"two-moons", "swiss-roll", "checkerboard", "8-gaussians", "25-gaussians", "pinwheel", "two-spirals", "rings",
                         "banana", "funnel"}
    for name in TOYS:
        t = make(name)
        assert t.name == name and t.dim == 2 and t.event == (2,) and name in repr(t)
