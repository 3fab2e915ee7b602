"""Metrics against scipy, POT, geomloss and plain loops, against closed forms, and their intervals against the rate they claim.

An interval's coverage is a count of independent replicates. ``fewest`` is the count that a true rate of 95 % falls below with probability
1e-3 at most, ``most`` the one it exceeds as rarely; all seeds are fixed.
"""
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats
import torch

import sdediff
from sdediff import metrics, targets
from sdediff.metrics import BANK, Estimate
from sdediff.targets import Gaussian, GaussianMixture

RATE, FALSE_ALARM = 0.95, 1e-3


def fewest(replicates):
    return scipy.stats.binom.ppf(FALSE_ALARM, replicates, RATE)


def most(replicates):
    return scipy.stats.binom.ppf(1 - FALSE_ALARM, replicates, RATE)


def covered(estimates, truth):
    low, high = np.array([e.low for e in estimates]), np.array([e.high for e in estimates])
    return int(((low <= truth) & (truth <= high)).sum())


def _normals(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _gaussian_pairs(replicates, n, shift, scale=1.0, d=2, seed=0):
    """Pairs of n samples of N(0, I) and N(shift e_1, scale^2 I)."""
    z = torch.randn(replicates, 2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z[:, 1] *= scale
    z[:, 1, :, 0] += shift
    return z.unbind()


def energy_of_gaussians(shift, scale):
    """In the plane, where E|N(m, s^2 I)| is the mean of Rice's law."""
    mean = lambda m, s: scipy.stats.rice(m / s, scale=s).mean()
    return 2 * mean(shift, math.hypot(1, scale)) - mean(0, 2**0.5) - mean(0, scale * 2**0.5)


def mmd_of_gaussians(shift, scale, h):
    """In the plane, E exp(-|N(m, v I)|^2 / 2h^2) = h^2/(h^2 + v) exp(-m^2 / 2(h^2 + v))."""
    mean = lambda m, v: h**2 / (h**2 + v) * math.exp(-0.5 * m**2 / (h**2 + v))
    return mean(0, 2) + mean(0, 2 * scale**2) - 2 * mean(shift, 1 + scale**2)


# -- sliced W2 ----------------------------------------------------------------------------------------------------------
def test_sliced_w2_in_one_dimension_is_the_optimal_assignment():
    x, y = _normals(60, 1, 0), 2 * _normals(60, 1, 1) + 1
    cost = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    exact = np.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert metrics.sliced_w2(x, y, projections=3).value == pytest.approx(exact, rel=1e-12)
    assert metrics.w2(x, y, size=60).value == pytest.approx(exact, rel=1e-12)


def test_sliced_w2_of_a_translation_is_its_length_over_root_d():
    # along u the distance is |u . shift|, and the mean of (u . shift)^2 over the sphere is |shift|^2/d
    x = _normals(20, 3, 0)
    value = metrics.sliced_w2(x, x + torch.tensor([1.0, -2.0, 0.5]), projections=20_000, blocks=2).value
    assert value == pytest.approx((5.25 / 3)**0.5, rel=0.02)


def test_sliced_w2_of_shifted_gaussians_within_its_standard_error():
    errors = []
    for k in range(20):
        e = metrics.sliced_w2(_normals(2000, 2, 2 * k), _normals(2000, 2, 2 * k + 1, 1.0), projections=64)
        errors.append((e.value - 1.0) / e.stderr)          # |shift|^2/d = 1
    assert abs(np.mean(errors)) < 1.5 and 0.4 < np.std(errors) < 2.5


def test_the_jackknife_leaves_out_one_block_at_a_time():
    x, y, g = _normals(53, 2, 0), _normals(53, 2, 1, 0.2), 7
    kept = [[i for i in range(53) if i * g // 53 != k] for k in range(g)]
    values = np.array([metrics.sliced_w2(x[k], y[k], projections=9).value for k in kept])
    e = metrics.sliced_w2(x, y, projections=9, blocks=g)
    half = scipy.stats.t(g - 1).ppf(0.975) * np.sqrt((g - 1) / g * ((values - values.mean())**2).sum())
    assert (e.low, e.high) == (pytest.approx(max(0, e.value - half)), pytest.approx(e.value + half))


MODES = lambda n, seed: GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.09).sample(n, seed=seed, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("n, law", [
    *((200, lambda k, s=s: _gaussian_pairs(1, 200, s, seed=k)[0]) for s in (0.0, 0.1, 0.2, 0.7)),
    (200, lambda k: _gaussian_pairs(1, 200, 0.0, 1.3, seed=k)[0]),
    (200, lambda k: (MODES(200, 2 * k), MODES(200, 2 * k + 1))),        # where the transport along a line is far from linear
    (150, lambda k: (_normals(150, 10, 2 * k), _normals(150, 10, 2 * k + 1))),
], ids=["equal", "close", "apart", "far", "scaled", "modes", "10d"])
def test_biased_distances_cover_their_own_expectation_at_this_n(n, law):
    replicates = 400
    pairs = [law(k) for k in range(replicates)]
    for metric in (lambda x, y: metrics.sliced_w2(x, y, projections=16), lambda x, y: metrics.w2(x, y, size=n // 10)):
        found = [metric(*pair) for pair in pairs]
        assert covered(found, np.mean([e.value for e in found])) >= fewest(replicates)


def test_w2_covers_its_own_expectation_exactly_as_often_as_student_says():
    # the subsamples are independent: nothing is asymptotic but the mean of 8 being normal
    found = [metrics.w2(x, y, size=12) for x, y in _gaussian_pairs(400, 96, 0.3)]
    assert fewest(400) <= covered(found, np.mean([e.value for e in found])) <= most(400)


# -- exact W2 -----------------------------------------------------------------------------------------------------------
def test_w2_against_scipy_on_every_subsample():
    x, y = _normals(70, 3, 0), _normals(70, 3, 1, 2.0)
    values = []
    for k in range(3):
        cost = scipy.spatial.distance.cdist(x[20 * k:20 * k + 20], y[20 * k:20 * k + 20], "sqeuclidean")
        values.append(np.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean()))
    e = metrics.w2(x, y, size=20)                           # 10 samples are left over
    assert e.value == pytest.approx(np.mean(values), rel=1e-12)
    assert e.high - e.low == pytest.approx(2 * scipy.stats.t(2).ppf(0.975) * np.std(values, ddof=1) / 3**0.5)


def test_w2_of_a_translation_and_of_all_samples():
    x, shift = _normals(400, 2, 0), torch.tensor([3.0, -4.0])
    e = metrics.w2(x, x + shift)                            # 8 subsamples of 50
    assert e.value == pytest.approx(5, rel=1e-12) and e.stderr < 1e-12
    assert np.isnan(metrics.w2(x[:20], x[20:40], size=20).stderr) and metrics.w2(x[:3], x[:3]).value == 0


def test_w2_is_not_below_sliced_w2():
    x, y = _normals(100, 2, 0), 2 * _normals(100, 2, 1) + 0.5
    assert metrics.w2(x, y, size=100).value > metrics.sliced_w2(x, y).value


# -- energy distance and MMD --------------------------------------------------------------------------------------------
def _loops(x, y, rho):
    """(1) by plain loops over pairs."""
    x, y = x.numpy(), y.numpy()
    between = np.mean([rho(np.linalg.norm(p - q)) for p in x for q in y])
    within = lambda v: np.mean([rho(np.linalg.norm(v[i] - v[j])) for i in range(len(v)) for j in range(len(v)) if i != j])
    return 2 * between - within(x) - within(y)


def test_energy_and_mmd_against_plain_loops():
    x, y = _normals(23, 3, 0), _normals(17, 3, 1, 0.4)
    k = lambda h: lambda r: 1 - np.exp(-r**2 / (2 * h**2))
    assert metrics.energy_distance(x, y, chunk=5).value == pytest.approx(_loops(x, y, lambda r: r), rel=1e-12)
    assert metrics.mmd(x, y, bandwidth=0.7, chunk=4).value == pytest.approx(_loops(x, y, k(0.7)), rel=1e-12)
    for bank in (BANK, (0.3, 2.0, 0.6)):                    # with and without the powers of a wider kernel
        assert metrics.mmd(x, y, bandwidth=bank).value == pytest.approx(np.mean([_loops(x, y, k(h)) for h in bank]), rel=1e-11)
    pairs = [np.linalg.norm(y[i] - y[j]) for i in range(17) for j in range(i)]
    assert metrics.median_bandwidth(y) == pytest.approx(np.median(pairs), rel=1e-12)
    assert metrics.mmd(x, y) == metrics.mmd(x, y, bandwidth=metrics.median_bandwidth(y))


def test_powers_of_a_wide_kernel_are_the_narrow_kernels():
    x, y = 3 * _normals(200, 2, 0), 3 * _normals(200, 2, 1)             # far tails, where the narrow kernels vanish
    one = np.mean([metrics.mmd(x, y, bandwidth=h).value for h in BANK])
    assert metrics.mmd(x, y, bandwidth=BANK).value == pytest.approx(one, rel=1e-9)


def test_energy_distance_against_scipy():
    # scipy gives the root of the V-statistic of half of (1): the diagonals, which are zero, count there
    n, m = 80, 50
    x, y = _normals(n, 1, 0), _normals(m, 1, 1, 0.7)
    x, y = x.numpy(), y.numpy()
    mean = lambda a, b: np.abs(a - b.T).sum()
    v = lambda p, q: 2 * mean(x, y) / (n * m) - mean(x, x) / p - mean(y, y) / q
    value = metrics.energy_distance(torch.from_numpy(x), torch.from_numpy(y), chunk=7).value
    assert value == pytest.approx(float(v(n * (n - 1), m * (m - 1))), rel=1e-10)
    assert scipy.stats.energy_distance(x[:, 0], y[:, 0])**2 == pytest.approx(float(v(n * n, m * m)), rel=1e-10)


def test_energy_distance_of_gaussians_in_one_dimension():
    # E|N(m, 2)| by scipy; three samples pooled against the exact value
    folded = lambda m: scipy.stats.foldnorm(m / 2**0.5, scale=2**0.5).mean()
    e = metrics.energy_distance(_normals(3000, 1, 0), _normals(3000, 1, 1, 1.0))
    assert abs(e.value - (2 * folded(1.0) - 2 * folded(0.0))) < 5 * e.stderr


def test_the_variance_is_hoeffdings():
    # on the points 0 and 1 the energy distance is 2 (p - q)^2; at p = q = 1/2, p^ - q^ has variance 1/2n, so 2 (p^ - q^)^2 has 8 (1/2n)^2
    n = 4000
    x, y = ((_normals(n, 1, seed) > 0).double() for seed in (0, 1))
    e = metrics.energy_distance(x, y)
    assert e.value == pytest.approx(float(2 * (x.mean() - y.mean())**2 - 2 * (x.var() + y.var()) / n), rel=1e-9)
    assert e.value - e.low == pytest.approx(metrics.Z * math.sqrt(2) / n, rel=0.01)


CASES = [(0.0, 1.0), (0.1, 1.0), (0.25, 1.0), (1.0, 1.0), (0.0, 1.5)]


def _kernels(shift, scale):
    """(semimetric, truth) of the energy distance and three MMDs."""
    yield metrics._distance, energy_of_gaussians(shift, scale)
    for widths in ((0.3,), (1.0,), BANK):
        yield metrics._gaussian(*widths), np.mean([mmd_of_gaussians(shift, scale, h) for h in widths])


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.5, 1.0),
                                          *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_energy_and_mmd_are_unbiased_and_their_intervals_cover_the_truth(shift, scale):
    replicates, n = 400, 120
    semimetrics, truths = zip(*_kernels(shift, scale))
    found = [metrics._distances(x, y, semimetrics) for x, y in _gaussian_pairs(replicates, n, shift, scale, seed=5)]
    for estimates, truth in zip(zip(*found), truths):
        values = np.array([e.value for e in estimates])
        assert abs(values.mean() - truth) < 5 * values.std() / replicates**0.5
        assert covered(estimates, truth) >= fewest(replicates)
        if shift in (0.0, 1.0) and scale == 1:              # in between, where S is unknown in the direction of delta, on the safe side
            assert covered(estimates, truth) <= most(replicates)


def test_energy_distance_covers_at_unequal_sizes():
    found = [metrics.energy_distance(_normals(60, 3, 2 * k), _normals(150, 3, 2 * k + 1)) for k in range(400)]
    values = np.array([e.value for e in found])
    assert abs(values.mean() / (values.std() / 20)) < 5 and (values < 0).any()
    assert fewest(400) <= covered(found, 0.0) <= most(400)


# -- densities ----------------------------------------------------------------------------------------------------------
def test_nll_of_gaussians_covers_cross_entropy_and_excess():
    target = Gaussian([0.0, 0.0], 1.0)
    cross = lambda m, s: math.log(2 * math.pi) + 0.5 * (2 * s**2 + m**2)
    for shift, scale in ((0.0, 1.0), (0.5, 1.2)):
        pairs = _gaussian_pairs(400, 100, shift, scale)
        found = [metrics.nll(y, target) for _, y in pairs]
        assert fewest(400) <= covered(found, cross(shift, scale)) <= most(400)
        excess = [metrics.excess_nll(y, x, target) for x, y in pairs]
        assert fewest(400) <= covered(excess, cross(shift, scale) - cross(0, 1)) <= most(400)


def test_nll_at_a_level_and_outside_the_support():
    level, x = sdediff.VPSDE().at(0.3), _normals(50, 2, 0)
    mixture, board = targets.toy("8-gaussians"), targets.toy("checkerboard")
    assert metrics.nll(x.float(), mixture, level).value == pytest.approx(-float(mixture.log_prob(x.float().double(), level).mean()), rel=1e-12)
    inside = board.sample(50, seed=0)
    assert metrics.nll(inside, board).value == pytest.approx(-float(board.log_prob(inside[:1])), rel=1e-6)
    assert metrics.nll(torch.cat([inside, inside + 9]), board) == (math.inf, math.inf, math.inf)
    assert metrics.compare(inside + 9, board)["excess_nll"] == (math.inf, math.inf, math.inf)


# -- moments ------------------------------------------------------------------------------------------------------------
def test_moments_against_numpy_and_their_standard_errors():
    truth = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    z = torch.randn(400, 300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.linalg.cholesky(truth).T + 1
    found = [metrics.moments(x) for x in z]
    first = z[0].numpy()
    assert np.allclose(found[0].mean, first.mean(0), rtol=1e-12) and np.allclose(found[0].cov, np.cov(first.T), rtol=1e-12)
    for name, exact in (("mean", torch.ones(2)), ("cov", truth)):
        z_scores = torch.stack([(getattr(m, name) - exact) / getattr(m, f"{name}_stderr") for m in found])
        counts = (z_scores.abs() <= metrics.Z).sum(0).double()
        assert float(counts.min()) >= fewest(400) and float(counts.max()) <= most(400)


@pytest.mark.parametrize("shift, scale", CASES)
def test_moment_errors_are_unbiased_and_cover(shift, scale):
    found = [metrics.moment_errors(y, torch.zeros(2), torch.eye(2)) for _, y in _gaussian_pairs(400, 200, shift, scale, seed=3)]
    excess = torch.diag(torch.tensor([scale**2 - 1 + shift**2, scale**2 - 1]))
    for estimates, truth in zip(zip(*found), (shift**2, float(excess.square().sum()))):
        values = np.array([e.value for e in estimates])
        assert abs(values.mean() - truth) < 5 * values.std() / 20
        assert covered(estimates, truth) >= fewest(400)


def test_moment_errors_against_plain_loops():
    x, m, c = _normals(12, 2, 0), torch.tensor([0.3, -0.1], dtype=torch.float64), torch.tensor([[1.0, 0.2], [0.2, 0.8]], dtype=torch.float64)
    off = lambda g: np.mean([float((g[i] * g[j]).sum()) for i in range(12) for j in range(12) if i != j])
    g = x - m
    first, second = metrics.moment_errors(x, m, c)
    assert first.value == pytest.approx(off(g), rel=1e-12)
    assert second.value == pytest.approx(off(g[:, :, None] * g[:, None, :] - c), rel=1e-12)


def _covariance(seed, d=3):
    a = _normals(d, d, seed)
    return a @ a.T + 0.1 * torch.eye(d)


def test_gaussian_w2_known_values():
    zero, one = torch.zeros(3), torch.tensor([1.0, -2.0, 2.0])
    eye = torch.eye(3)
    assert metrics.gaussian_w2(zero, eye, one, eye) == pytest.approx(3, rel=1e-14)
    assert metrics.gaussian_w2(zero, torch.diag(torch.tensor([4.0, 9, 1])), zero, torch.diag(torch.tensor([1.0, 1, 16]))) == \
        pytest.approx(math.sqrt(1 + 4 + 9), rel=1e-14)
    a, b = _covariance(0), _covariance(1)
    root = scipy.linalg.sqrtm(a.numpy())
    bures = np.trace(a.numpy() + b.numpy() - 2 * scipy.linalg.sqrtm(root @ b.numpy() @ root).real)
    assert metrics.gaussian_w2(zero, a, one, b) == pytest.approx(math.sqrt(9 + bures), rel=1e-10)
    assert metrics.gaussian_w2(one, b, zero, a) == pytest.approx(metrics.gaussian_w2(zero, a, one, b), rel=1e-12)
    assert metrics.gaussian_w2(zero, torch.zeros(3, 3), one, torch.zeros(3, 3)) == pytest.approx(3)
    assert metrics.gaussian_w2([0.0], [[1.0]], [0.0], [[4.0]]) == pytest.approx(1)


@pytest.mark.parametrize("eps", [1e-4, 1e-8, 1e-12])
def test_gaussian_w2_and_kl_keep_their_digits_for_close_laws(eps):
    # (1 + eps)^2 A has the root (1 + eps) A^(1/2); W2 = eps sqrt(tr A), and KL = d (eps^2 + O(eps^3))
    a, zero = _covariance(2), torch.zeros(3)
    assert metrics.gaussian_w2(zero, a, zero, (1 + eps)**2 * a) == pytest.approx(eps * float(a.trace().sqrt()), rel=1e-14 / eps + 1e-12)
    assert metrics.gaussian_kl(zero, (1 + eps)**2 * a, zero, a) == pytest.approx(3 * eps**2, rel=2e-14 / eps + 2 * eps)


def test_gaussian_kl_against_torch():
    a, b, m, k = _covariance(0), _covariance(1), _normals(1, 3, 2)[0], _normals(1, 3, 3)[0]
    laws = [torch.distributions.MultivariateNormal(*v) for v in ((m, a), (k, b))]
    assert metrics.gaussian_kl(m, a, k, b) == pytest.approx(float(torch.distributions.kl_divergence(*laws)), rel=1e-12)
    assert metrics.gaussian_kl(m, torch.zeros(3, 3), k, b) == math.inf and metrics.gaussian_kl(m, a, m, a) == pytest.approx(0, abs=1e-14)


def test_w2_of_samples_approaches_gaussian_w2():
    # an upper bound on average, with a bias of a few per cent at this n
    x, y = 1.5 * _normals(1600, 2, 0), _normals(1600, 2, 1, 2.0)
    exact = metrics.gaussian_w2(torch.zeros(2), 2.25 * torch.eye(2), torch.full((2,), 2.0), torch.eye(2))
    e = metrics.w2(x, y, size=200)
    assert e.high > exact and e.value == pytest.approx(exact, rel=0.05)


# -- modes --------------------------------------------------------------------------------------------------------------
OVERLAP = GaussianMixture([[0.0, 0.0], [1.0, 0.0], [0.0, 1.5], [3.0, 3.0]], [0.5, 1.0, 0.7, 0.2], [0.4, 0.3, 0.2, 0.1])


def test_modes_are_drawn_by_their_posterior():
    x, level, eye = _normals(4000, 2, 0), sdediff.VPSDE().at(0.4), torch.eye(2, dtype=torch.float64)
    for m in (None, level):
        alpha, sigma = (1.0, 0.0) if m is None else (m.alpha, m.sigma)
        log_p = torch.stack([w.log() + torch.distributions.MultivariateNormal(alpha * mu, alpha**2 * c + sigma**2 * eye).log_prob(x)
                             for mu, c, w in zip(OVERLAP.means, OVERLAP.covs, OVERLAP.weights)], 1)
        assert torch.allclose(metrics._responsibilities(x, OVERLAP, m), log_p.softmax(1), rtol=1e-10, atol=1e-300)
    r = metrics._responsibilities(x, OVERLAP, None)
    counts = torch.bincount(metrics.modes(x, OVERLAP, seed=1), minlength=4)
    assert float(((counts - r.sum(0)) / (r * (1 - r)).sum(0).sqrt()).abs().max()) < 5
    assert torch.equal(metrics.modes(x, OVERLAP, seed=1)[:100], metrics.modes(x[:100], OVERLAP, seed=1))


@pytest.mark.parametrize("level", [None, sdediff.VPSDE().at(0.2)], ids=["clean", "noised"])
def test_the_mode_test_is_uniform_at_the_true_weights(level):
    # however much the modes overlap; Kolmogorov-Smirnov at 1e-3 against the uniform law of p
    p = [metrics.mode_test(metrics.noised(OVERLAP, 400, level, seed=k), OVERLAP, level, seed=k) for k in range(300)]
    assert scipy.stats.kstest([t.p for t in p], "uniform").pvalue > FALSE_ALARM
    assert scipy.stats.kstest([t.statistic for t in p], scipy.stats.chi2(3).cdf).pvalue > FALSE_ALARM and p[0].dof == 3


def test_the_mode_test_against_scipy_and_wrong_weights():
    x = OVERLAP.sample(1000, seed=0, dtype=torch.float64)
    counts = torch.bincount(metrics.modes(x, OVERLAP), minlength=4).numpy()
    expected = scipy.stats.chisquare(counts, 1000 * OVERLAP.weights.numpy())
    test = metrics.mode_test(x, OVERLAP)
    assert (test.statistic, test.p) == (pytest.approx(expected.statistic, rel=1e-12), pytest.approx(expected.pvalue, rel=1e-9))
    apart = lambda *w: GaussianMixture(10 * OVERLAP.means, OVERLAP.covs, w)
    assert metrics.mode_test(apart(0.4, 0.3, 0.2, 0.1).sample(1000, seed=0), apart(0.3, 0.4, 0.2, 0.1)).p < 1e-6


def test_mode_chi2_is_unbiased_and_covers():
    apart = 10 * torch.eye(4, dtype=torch.float64)
    law = GaussianMixture(apart, 0.01, [0.4, 0.3, 0.2, 0.1])
    for weights in ([0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2], [0.5, 0.0, 0.3, 0.2]):
        drawn = GaussianMixture(apart, 0.01, weights)
        truth = float(((drawn.weights - law.weights)**2 / law.weights).sum())
        found = [metrics.mode_chi2(drawn.sample(300, seed=k), law) for k in range(400)]
        values = np.array([e.value for e in found])
        assert abs(values.mean() - truth) < 5 * values.std() / 20
        assert covered(found, truth) >= fewest(400)
    x = law.sample(300, seed=0)
    n, statistic = 300, metrics.mode_test(x, law).statistic
    assert metrics.mode_chi2(x, law).value == pytest.approx(_chi2_from_counts(x, law), rel=1e-10)
    assert abs(n * metrics.mode_chi2(x, law).value + 3 - statistic) < 0.5


def _chi2_from_counts(x, law):
    """sum_k of the unbiased estimate of (p_k - w_k)^2, over w_k."""
    n, w = len(x), law.weights
    c = torch.bincount(metrics.modes(x, law), minlength=len(w)).double()
    return float(((c * (c - 1) / (n * (n - 1)) - 2 * w * c / n + w**2) / w).sum())


def test_mode_coverage_of_all_and_of_half_the_modes():
    law = targets.toy("8-gaussians")
    x = law.sample(2000, seed=0)
    assert metrics.mode_coverage(x, law) == (1, 1, 1)
    half = x[metrics.modes(x, law) < 4]
    assert metrics.mode_coverage(half, law) == (0.5, 0.5, 0.5)
    assert metrics.mode_test(half, law).p < 1e-100
    few = metrics.mode_coverage(x[:40], law)                # 5 a mode: little is sure
    assert few.low < few.value <= few.high == 1
    assert metrics.mode_coverage(half, law, share=1.0).low == 0.5
    thin = GaussianMixture(law.means, law.covs, [1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2])
    assert metrics.mode_coverage(thin.sample(4000, seed=0), law, share=0.25) == (1, 1, 1)
    assert metrics.mode_coverage(thin.sample(4000, seed=0), law).value == 0.5


def test_modes_of_weight_zero_do_not_count():
    law = GaussianMixture([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], 0.1, [0.5, 0.0, 0.5])
    x = law.sample(500, seed=0)
    assert metrics.mode_test(x, law).dof == 1 and metrics.mode_coverage(x, law).value == 1


# -- floors and all at once ---------------------------------------------------------------------------------------------
LEVEL = sdediff.VPSDE().at(1e-3)
ALWAYS = ["sliced_w2", "w2", "energy", "mmd", "mmd_bank", "nll", "excess_nll", "mean_error", "cov_error"]
OF_MODES = ["mode_coverage", "mode_chi2", "mode_p"]


@pytest.mark.parametrize("name", targets.TOYS)
def test_compare_on_exact_samples_and_on_wrong_ones(name):
    target = targets.toy(name)
    x, y = (metrics.noised(target, 1000, LEVEL, seed=seed) for seed in (1, 2))
    found, wrong = metrics.compare(x, target, LEVEL, reference=y), metrics.compare(1.5 * x + 0.3, target, LEVEL, reference=y)
    assert list(found) == ALWAYS + (OF_MODES if name in ("8-gaussians", "25-gaussians") else [])
    for metric in ("energy", "mmd", "mmd_bank", "excess_nll", "mean_error", "cov_error"):
        e, off = found[metric], wrong[metric]
        assert abs(e.value) < 5 * max(e.stderr, 1e-12) and off.low > 0 and off.value > found[metric].high
    for metric in ("sliced_w2", "w2"):
        assert wrong[metric].low > found[metric].high and 0 <= found[metric].low <= found[metric].value <= found[metric].high
    alone = {"sliced_w2": metrics.sliced_w2(x, y), "w2": metrics.w2(x, y), "energy": metrics.energy_distance(x, y),
             "mmd": metrics.mmd(x, y), "mmd_bank": metrics.mmd(x, y, bandwidth=BANK), "nll": metrics.nll(x, target, LEVEL)}
    for metric, e in alone.items():
        assert found[metric] == pytest.approx(e, rel=1e-10, abs=1e-14)


def test_compare_draws_its_reference_and_leaves_out_what_has_no_meaning():
    points = targets.Empirical(_normals(20, 2, 0))
    x = points.sample(100, seed=0)
    assert metrics.compare(x, points, seed=3) == metrics.compare(x, points, seed=3) != metrics.compare(x, points, seed=4)
    assert "nll" not in metrics.compare(x, points) and "nll" in metrics.compare(x, points, LEVEL)
    few = metrics.compare(targets.toy("25-gaussians").sample(100, seed=0), targets.toy("25-gaussians"))     # 4 a mode
    assert "mode_chi2" not in few


def test_noised_samples_have_the_law_of_the_level():
    level, law = sdediff.VPSDE().at(0.5), Gaussian([1.0, -1.0], [[1.0, 0.5], [0.5, 2.0]])
    found = metrics.moments(metrics.noised(law, 20_000, level, seed=0))
    cov = level.alpha**2 * law.cov + level.sigma**2 * torch.eye(2)
    assert float(((found.mean - level.alpha * law.mean) / found.mean_stderr).abs().max()) < 5
    assert float(((found.cov - cov) / found.cov_stderr).abs().max()) < 5
    assert torch.equal(metrics.noised(law, 50, seed=3), law.sample(50, seed=3, dtype=torch.float64))


def test_floors_are_means_over_fresh_pairs_of_exact_samples():
    law = targets.toy("8-gaussians")
    found = metrics.floors(law, 400, LEVEL, draws=6, seed=0)
    assert list(found) == ALWAYS + OF_MODES
    one = metrics.floor(metrics.energy_distance, law, 400, LEVEL, draws=6, seed=0)
    assert found["energy"] == pytest.approx(one, rel=1e-10)
    assert metrics.floor(metrics.sliced_w2, law, 400, LEVEL, draws=6, seed=0) == pytest.approx(found["sliced_w2"], rel=1e-10)
    assert found["sliced_w2"].low > 0 and found["w2"].low > found["sliced_w2"].high
    assert found["mode_coverage"] == (1, 1, 1)
    seen = metrics.compare(metrics.noised(law, 400, LEVEL, seed=8), law, LEVEL)
    assert seen["sliced_w2"].low < found["sliced_w2"].high and seen["w2"].low < found["w2"].high


@pytest.mark.slow
def test_floors_cover_the_expectation():
    law = Gaussian([0.0, 0.0], 1.0)
    for metric, truth in ((lambda x, y: metrics.sliced_w2(x, y, projections=8), None), (metrics.energy_distance, 0.0)):
        found = [metrics.floor(metric, law, 50, draws=16, seed=k) for k in range(400)]
        truth = np.mean([e.value for e in found]) if truth is None else truth
        assert fewest(400) <= covered(found, truth) <= most(400)
        below, above = sum(e.high < truth for e in found), sum(e.low > truth for e in found)
        assert max(below, above) <= 30                          # 10 expected a side; Student's misses 50 on one side and none on the other


def test_the_interval_of_a_floor_is_students_without_skewness_and_follows_the_data():
    symmetric = metrics._hall([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert symmetric == pytest.approx(metrics._student([-2.0, -1.0, 0.0, 1.0, 2.0]), abs=1e-12)
    skewed = [0.0, 0.1, 0.1, 0.2, 0.3, 1.9]
    right, left = metrics._hall(skewed), metrics._hall([-v for v in skewed])
    assert (right.value, right.low, right.high) == pytest.approx((-left.value, -left.high, -left.low))
    assert right.high - right.value > 1.5 * (right.value - right.low)
    nearly = metrics._hall([-2.0, -1.0, 1e-5, 1.0, 2.0])         # the limit g -> 0 is continuous
    assert nearly == pytest.approx(symmetric, abs=1e-4)
    assert metrics._hall([1.0, 3.0]) == metrics._student([1.0, 3.0])


# -- pictures -----------------------------------------------------------------------------------------------------------
def test_psnr():
    """Of a constant error d on a span of 2: 20 log10(2/d); values beyond the span count as its ends."""
    y = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    assert metrics.psnr(torch.cat([y + 0.02, y - 0.2, y]), y).tolist() == pytest.approx([40, 20, math.inf], abs=1e-4)
    assert metrics.psnr(torch.full((2, 4), 7.0), torch.ones(2, 4)).tolist() == [math.inf] * 2
    assert metrics.psnr(100 * y + 1, 100 * y, span=255).tolist() == pytest.approx([20 * math.log10(255)], abs=1e-4)


def test_the_judge_knows_real_classes_and_refuses_what_has_no_labels():
    x, y = torch.cat([_normals(50, 3, 0), _normals(50, 3, 1, 6.0)]), torch.arange(100) // 50
    assert metrics.judge(x, y)(torch.cat([_normals(5, 3, 2), _normals(5, 3, 3, 6.0)]).float()).tolist() == [0] * 5 + [1] * 5
    with pytest.raises(ValueError, match=r"labels\.shape"):
        metrics.judge(x, y[:3])


# -- neighbours ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_against_scikit_learn_and_plain_loops(k):
    from sklearn.neighbors import NearestNeighbors
    x, y = _normals(60, 3, 0, 0.5), _normals(80, 3, 1)
    found = NearestNeighbors().fit(y.numpy())
    assert np.allclose(metrics.nearest(x, y, k), found.kneighbors(x.numpy(), k)[0][:, -1])
    assert np.allclose(metrics.nearest(y, y, k), found.kneighbors(y.numpy(), k + 1)[0][:, -1])
    radius = {"x": metrics.nearest(x, x, k), "y": metrics.nearest(y, y, k)}
    share = lambda a, b, r: float(np.mean([any((p - q).norm() <= s for q, s in zip(b, r)) for p in a]))
    precision, recall = metrics.precision_recall(x, y, k)
    assert (precision.value, recall.value) == (share(x, y, radius["y"]), share(y, x, radius["x"]))
    low, high = scipy.stats.binomtest(round(60 * precision.value), 60).proportion_ci(method="wilson")
    assert precision == pytest.approx((precision.value, low, high), abs=1e-12)


def test_precision_falls_with_quality_and_recall_with_variety():
    y = torch.cat([_normals(300, 2, 0), _normals(300, 2, 1, 20.0)])
    fresh = metrics.precision_recall(torch.cat([_normals(300, 2, 2), _normals(300, 2, 3, 20.0)]), y)
    one = metrics.precision_recall(_normals(600, 2, 2), y)                                      # a mode is missing
    wide = metrics.precision_recall(4 * _normals(600, 2, 2), y)
    assert min(fresh).value > 0.9 and one[0].value > 0.9 and 0.4 < one[1].value <= 0.5 and wide[0].value < 0.4


def test_copies_are_told_from_fresh_samples():
    """The value is Mann and Whitney's; fresh samples are at 1/2 within the interval at the rate it claims, copies at 1."""
    train, fresh, held = _normals(200, 3, 0), _normals(50, 3, 1), _normals(70, 3, 2)
    u = scipy.stats.mannwhitneyu(metrics.nearest(held, train), metrics.nearest(fresh, train)).statistic
    assert metrics.copying(fresh, train, held).value == pytest.approx(u / (50 * 70), abs=1e-12)
    copied = metrics.copying(train[:50], train, held)
    assert copied.value == 1 and 0.9 < copied.low < 0.95 and copied.high == pytest.approx(1, abs=1e-12)
    half = metrics.copying(torch.cat([train[:25], fresh[:25]]), train, held)
    assert half.low > 0.6
    assert metrics.copying(held, train, held).value == 0.5
    found = [metrics.copying(_normals(100, 3, 3 * s + 10), _normals(150, 3, 3 * s + 11), _normals(120, 3, 3 * s + 12)) for s in range(200)]
    assert fewest(200) <= covered(found, 0.5) <= most(200)
    few = [metrics.copying(_normals(10, 3, 3 * s + 10), _normals(150, 3, 3 * s + 11), _normals(10, 3, 3 * s + 12)) for s in range(200)]
    assert covered(few, 0.5) >= fewest(200) and all(e.low >= 0 and e.high <= 1 + 1e-12 for e in few)


# -- invariances, shapes, refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", [metrics.sliced_w2, metrics.energy_distance, lambda x, y: metrics.mmd(x, y, bandwidth=1.0),
                                    lambda x, y: metrics.w2(x, y, size=200)], ids=["sliced", "energy", "mmd", "w2"])
def test_permutations_symmetry_and_repetition(metric):
    x, y = _normals(200, 2, 0), _normals(200, 2, 1, 0.3)
    p = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    value = metric(x, y).value
    assert metric(x[p], y).value == pytest.approx(value, rel=1e-10)
    assert metric(y, x).value == pytest.approx(value, rel=1e-10)
    assert metric(x, y).low == metric(x, y).low or math.isnan(metric(x, y).low)


@pytest.mark.parametrize("metric, degree", [(metrics.energy_distance, 1), (metrics.w2, 1), (metrics.mmd, 0),
                                            (lambda x, y: metrics.sliced_w2(x, y, projections=4000), None)],
                         ids=["energy", "w2", "mmd", "sliced"])
def test_motions_change_nothing_and_units_scale(metric, degree):
    x, y = _normals(160, 3, 0), 1.3 * _normals(160, 3, 1, 0.3)
    turn, _ = torch.linalg.qr(_normals(3, 3, 2))
    rel = 1e-9 if degree is not None else 0.02              # sliced: but for the choice of directions
    assert metric(x @ turn + 5, y @ turn + 5) == pytest.approx(metric(x, y), rel=rel)
    if degree is not None:
        assert metric(3 * x, 3 * y) == pytest.approx(tuple(3**degree * v for v in metric(x, y)), rel=1e-9)


def test_equal_samples_and_images():
    x = _normals(64, 64, 0).float().view(64, 1, 8, 8)
    assert metrics.sliced_w2(x, x) == (0, 0, 0) and metrics.w2(x, x) == (0, 0, 0)
    assert metrics.energy_distance(x, x.clone()).value < 0      # the diagonal of x against itself
    assert metrics.sliced_w2(x, x + 1).value == metrics.sliced_w2(x.flatten(1), x.flatten(1) + 1).value
    assert np.isnan(metrics.sliced_w2(x[:9], x[9:18]).stderr)


def test_estimates():
    e = Estimate(0.12345, 0.1, 0.2)
    assert str(e) == "0.1235 [0.1, 0.2]" or str(e) == "0.1234 [0.1, 0.2]"
    assert e.stderr == pytest.approx(0.1 / 3.919928, rel=1e-6) and abs(metrics.Z - scipy.special.ndtri(0.975)) < 1e-15


@pytest.mark.parametrize("v, slope, second", [(1.0, 0.3, 0.05), (0.2, 0.3, 0.05), (-0.2, 0.3, 0.05), (-0.9, 0.3, 0.05), (1.0, 0.0, 0.04),
                                              (0.5, 0.1, 0.0), (0.0, 0.0, 0.0)])
def test_an_interval_ends_where_the_test_rejects(v, slope, second):
    low, high = metrics._collect(v, slope, second, 2.0)
    assert low <= v <= high
    for end in (low, high):
        assert abs(v - end) == pytest.approx(2 * math.sqrt(second + slope * max(end, 0.0)), abs=1e-12)


@pytest.mark.parametrize("call, words", [
    (lambda x: metrics.sliced_w2(x, x[:3]), "equally many"),
    (lambda x: metrics.sliced_w2(x, x[:, :1]), "one shape"),
    (lambda x: metrics.sliced_w2(x, x * float("nan")), "y holds NaN"),
    (lambda x: metrics.sliced_w2(x, x, projections=0), "projections=0"),
    (lambda x: metrics.sliced_w2(x, x, blocks=1), "blocks=1"),
    (lambda x: metrics.sliced_w2(x.long(), x), "x.dtype"),
    (lambda x: metrics.w2(x, x[:3]), "equally many"),
    (lambda x: metrics.w2(x, x, size=11), "size=11"),
    (lambda x: metrics.w2(x[:, 0], x), "x.shape=\\(10,\\)"),
    (lambda x: metrics.energy_distance(x[:1], x), "at least two"),
    (lambda x: metrics.energy_distance(x[:0], x), "x.shape=\\(0, 2\\)"),
    (lambda x: metrics.energy_distance(x, x, chunk=0), "chunk=0"),
    (lambda x: metrics.mmd(x, x, bandwidth=0.0), "bandwidth=0.0"),
    (lambda x: metrics.mmd(x, x, bandwidth=[]), "BANK"),
    (lambda x: metrics.mmd(x, torch.ones(4, 2)), "median distance"),
    (lambda x: metrics.median_bandwidth(x[:1]), "at least two"),
    (lambda x: metrics.moments(x[:1]), "at least two"),
    (lambda x: metrics.moment_errors(x, torch.zeros(3), torch.eye(3)), "expected \\(2,\\) and \\(2, 2\\)"),
    (lambda x: metrics.gaussian_w2(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3)), "mean_b.shape=\\(3,\\)"),
    (lambda x: metrics.gaussian_w2(torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2)), "cov_a: expected a positive"),
    (lambda x: metrics.gaussian_w2(torch.zeros(2), torch.eye(2) * math.nan, torch.zeros(2), torch.eye(2)), "NaN"),
    (lambda x: metrics.gaussian_kl(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.zeros(2, 2)), "cov_b: expected a positive definite"),
    (lambda x: metrics.mode_test(x[:, :1], OVERLAP), "expected 2"),
    (lambda x: metrics.mode_test(x, targets.toy("checkerboard")), "GaussianMixture"),
    (lambda x: metrics.mode_coverage(x, GaussianMixture([[0.0, 0.0]], 0.0)), "singular"),
    (lambda x: metrics.mode_coverage(x, OVERLAP, share=0.0), "share=0.0"),
    (lambda x: metrics.mode_chi2(x[:1], OVERLAP), "at least two"),
    (lambda x: metrics.compare(x, OVERLAP, reference=x[:4]), "equally many"),
    (lambda x: metrics.compare(x * math.inf, OVERLAP), "x holds NaN or inf"),
    (lambda x: metrics.compare(x[0], OVERLAP), "leading batch axis"),
    (lambda x: metrics.modes(x, OVERLAP, sdediff.VPSDE().at(torch.rand(10, 1))), "one level"),
    (lambda x: metrics.floor(metrics.w2, OVERLAP, 20, draws=1), "draws=1"),
    (lambda x: metrics.nearest(x, x, 10), "k=10.*x itself"),
    (lambda x: metrics.nearest(x, x[:2], 3), "k=3"),
    (lambda x: metrics.precision_recall(x, x[:, :1]), "one shape"),
    (lambda x: metrics.precision_recall(x, x[:3]), "k=3"),
    (lambda x: metrics.copying(x, x, x[:1]), "at least two of each"),
    (lambda x: metrics.psnr(x, 0 * x[:3]), "or one for all"),
    (lambda x: metrics.psnr(x, x, span=0.0), "span=0.0"),
    (lambda x: metrics.psnr(x, x + 9), "y reaches"),
])
def test_refusals(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(_normals(10, 2, 0))


# -- other packages -----------------------------------------------------------------------------------------------------
def test_w2_and_sliced_w2_against_pot():
    ot = pytest.importorskip("ot", reason="needs POT (pip install sdediff[oracles])")
    x, y = _normals(120, 3, 0), 1.4 * _normals(120, 3, 1, 0.5)
    plan = ot.emd2(ot.unif(120), ot.unif(120), ot.dist(x.numpy(), y.numpy(), metric="sqeuclidean"))
    assert metrics.w2(x, y, size=120).value == pytest.approx(math.sqrt(plan), rel=1e-6)
    r = sdediff.random.source(7, (50, 3), dtype=torch.float64).normal()
    sliced = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=(r / r.norm(dim=1, keepdim=True)).T.numpy(), p=2)
    assert metrics.sliced_w2(x, y, projections=50, seed=7).value == pytest.approx(float(sliced), rel=1e-6)
    a, b, m = _covariance(0), _covariance(1), _normals(1, 3, 2)[0]
    bures = float(ot.gaussian.bures_wasserstein_distance(np.zeros(3), m.numpy(), a.numpy(), b.numpy()))
    assert metrics.gaussian_w2(torch.zeros(3), a, m, b) == pytest.approx(bures, rel=1e-6)


def test_energy_and_mmd_against_geomloss():
    # geomloss gives half of (1) as a V-statistic, over all pairs: ours differs by the diagonals, mean rho / n. Its distances are at
    # least 1e-4, that of a point to itself too.
    geomloss = pytest.importorskip("geomloss", reason="needs geomloss (pip install sdediff[oracles])")
    x, y = _normals(90, 3, 0), _normals(70, 3, 1, 0.5)
    loss = lambda kind, **options: 2 * float(geomloss.SamplesLoss(kind, backend="tensorized", **options)(x, y))
    within = lambda v, rho: float(rho(torch.nn.functional.pdist(v)).mean()) / len(v)
    kernel = lambda r: 1 - torch.exp(-r**2 / (2 * 0.8**2))
    energy = metrics.energy_distance(x, y).value + within(x, lambda r: r) + within(y, lambda r: r)
    mmd = metrics.mmd(x, y, bandwidth=0.8).value + within(x, kernel) + within(y, kernel)
    assert energy == pytest.approx(loss("energy") + 1e-4 * (1 / 90 + 1 / 70), rel=1e-6)
    assert mmd == pytest.approx(loss("gaussian", blur=0.8), rel=1e-6)
