"""Distances against scipy, against closed forms, and their standard errors against the spread they claim."""
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from sdediff import metrics


def _normals(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_sliced_w2_in_one_dimension_is_the_optimal_assignment():
    x, y = _normals(60, 1, 0), 2 * _normals(60, 1, 1) + 1
    cost = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    exact = np.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert metrics.sliced_w2(x, y, projections=3).value == pytest.approx(exact, rel=1e-12)


def test_sliced_w2_of_a_translation_is_its_length_over_root_d():
    # along u the distance is |u . shift|, and the mean of (u . shift)^2 over the sphere is |shift|^2/d
    x = _normals(500, 3, 0)
    value = metrics.sliced_w2(x, x + torch.tensor([1.0, -2.0, 0.5]), projections=20_000).value
    assert value == pytest.approx((5.25 / 3)**0.5, rel=0.02)


def test_sliced_w2_of_shifted_gaussians_within_its_standard_error():
    errors = []
    for k in range(20):
        e = metrics.sliced_w2(_normals(2000, 2, 2 * k), _normals(2000, 2, 2 * k + 1, 1.0), projections=256)
        errors.append((e.value - 1.0) / e.stderr)          # |shift|^2/d = 1
    assert abs(np.mean(errors)) < 1.5 and 0.4 < np.std(errors) < 2.5


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("metric", [lambda x, y: metrics.sliced_w2(x, y, projections=32), metrics.energy_distance],
                         ids=["sliced-w2", "energy"])
def test_standard_errors_are_the_spread(metric, shift):
    found = np.array([metric(_normals(400, 2, 2 * k), _normals(400, 2, 2 * k + 1, shift)) for k in range(150)])
    assert 0.7 < np.sqrt((found[:, 1]**2).mean()) / found[:, 0].std() < 1.6


def test_energy_distance_is_unbiased_at_equal_laws():
    found = np.array([metrics.energy_distance(_normals(100, 3, 2 * k), _normals(150, 3, 2 * k + 1)).value for k in range(400)])
    assert abs(found.mean() / (found.std() / 20)) < 5
    assert (found < 0).any()


def test_energy_distance_against_scipy():
    # scipy gives the root of the V-statistic of half of (2): the diagonals, which are zero, count there
    n, m = 80, 50
    x, y = _normals(n, 1, 0), _normals(m, 1, 1, 0.7)
    x, y = x.numpy(), y.numpy()
    mean = lambda a, b: np.abs(a - b.T).sum()
    v = lambda p, q: 2 * mean(x, y) / (n * m) - mean(x, x) / p - mean(y, y) / q
    assert metrics.energy_distance(torch.from_numpy(x), torch.from_numpy(y), chunk=7).value == pytest.approx(float(v(n * (n - 1), m * (m - 1))), rel=1e-10)
    assert scipy.stats.energy_distance(x[:, 0], y[:, 0])**2 == pytest.approx(float(v(n * n, m * m)), rel=1e-10)


def test_energy_distance_of_gaussians_in_one_dimension():
    # E|N(m, 2)| by scipy; three samples pooled against the exact value
    folded = lambda m: scipy.stats.foldnorm(m / 2**0.5, scale=2**0.5).mean()
    e = metrics.energy_distance(_normals(3000, 1, 0), _normals(3000, 1, 1, 1.0))
    assert abs(e.value - (2 * folded(1.0) - 2 * folded(0.0))) < 5 * e.stderr


@pytest.mark.parametrize("metric", [metrics.sliced_w2, metrics.energy_distance])
def test_permutations_symmetry_and_repetition(metric):
    x, y = _normals(200, 2, 0), _normals(200, 2, 1, 0.3)
    p = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    value = metric(x, y).value
    assert metric(x[p], y).value == pytest.approx(value, rel=1e-10)
    assert metric(y, x).value == pytest.approx(value, rel=1e-10)
    assert metric(x, y) == metric(x, y)


def test_equal_samples_and_images():
    x = _normals(64, 64, 0).float().view(64, 1, 8, 8)
    assert metrics.sliced_w2(x, x).value == 0
    assert metrics.energy_distance(x, x.clone()).value < 0      # the diagonal of x against itself
    assert metrics.sliced_w2(x, x + 1).value == metrics.sliced_w2(x.flatten(1), x.flatten(1) + 1).value
    assert np.isnan(metrics.sliced_w2(x[:15], x[15:30]).stderr)
    assert str(metrics.Estimate(0.12345, 0.01)) == "0.1235 ± 0.0100" or str(metrics.Estimate(0.12345, 0.01)) == "0.1234 ± 0.0100"


@pytest.mark.parametrize("call, words", [
    (lambda x: metrics.sliced_w2(x, x[:3]), "equally many"),
    (lambda x: metrics.sliced_w2(x, x[:, :1]), "one shape"),
    (lambda x: metrics.sliced_w2(x, x * float("nan")), "y holds NaN"),
    (lambda x: metrics.sliced_w2(x, x, projections=0), "projections=0"),
    (lambda x: metrics.sliced_w2(x, x, blocks=1), "blocks=1"),
    (lambda x: metrics.sliced_w2(x.long(), x), "x.dtype"),
    (lambda x: metrics.energy_distance(x[:1], x), "at least two"),
    (lambda x: metrics.energy_distance(x[:0], x), "x.shape=\\(0, 2\\)"),
    (lambda x: metrics.energy_distance(x, x, chunk=0), "chunk=0"),
])
def test_refusals(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(_normals(10, 2, 0))
