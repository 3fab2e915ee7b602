r"""Distances between samples and laws, each with a 95 % interval for what it estimates, and with its floor.

Samples x_1..x_n ~ Q and y_1..y_m ~ P, of a sampler and exact; the floor of a metric is its mean at Q = P and the same n.

*Distances of Hilbert kind.* With rho = |x - y| (energy) or rho = 1 - k, k Gaussian or a mean of Gaussians (MMD^2),

    theta = 2 E rho(X, Y) - E rho(X, X') - E rho(Y, Y') = |delta|^2,     delta = E phi(X) - E phi(Y) in a Hilbert space,            (1)

estimated by the U-statistic v: unbiased, and so sometimes negative. The squared norm of any mean, |E g|^2, has the same form; here it
serves the first two moments, g = x - m and (x - m)(x - m)^T - C, and mode weights, g_k = (1{mode k} - w_k)/sqrt w_k, whose |E g|^2 is the
chi-square divergence sum (p_k - w_k)^2/w_k. With S the covariance of d, the estimate of delta (|d|^2 = v + tr S is the V-statistic),

    Var v = 4 <delta, S delta> + 2 tr S^2   (Hoeffding's two terms),                                                               (2)

where the first vanishes at equal laws and grows with theta. Hence the interval collects the theta that a test would not reject, as
Wilson's does for a proportion:

    |v - theta| <= z sqrt(s + c theta^+),      s = 2 tr S^2,      c = min(4 <d, S d>/v^+, sqrt(8 s)).                                (3)

The second slope holds for any direction of delta, <delta, S delta> <= sqrt(tr S^2) theta; the first is lower, and right, where v is clearly
positive (4 <d, S d> has mean 4 <delta, S delta> + 2 s). No choice between equal and different laws is needed: 0 is inside iff
|v| <= z sqrt s.

*Wasserstein distances* are biased upwards, for there the empirical laws are compared; intervals cover the mean at this n. Sliced:

    SW^2 = mean over directions r of int_0^1 (F^-1(q) - G^-1(q))^2 dq,   F, G the empirical laws of r.x and r.y,                     (4)

with the grouped jackknife: leave out one of g blocks of pairs (x_i, y_i); the variance of the g values without block j, times
(g - 1)^2/g, is on average not below 1 - 1/g of the variance of SW at n (1 - 1/g) (Efron & Stein), which is that at n if it falls like 1/n.
It is right to first order at clearly different laws; at equal laws, where SW is the norm of a mean about zero, it is too large by a factor
of up to about 2, and the interval on the safe side. W2 itself,

    W2^2 = min over permutations pi of mean |x_i - y_pi(i)|^2,                                                                      (5)

costs n^3; it is taken on disjoint subsamples of one size, a mean of independent values with Student's interval for E W2 at that size.
A translation changes no optimal pi.

*Densities.* The mean of -log p(x), and its excess over the entropy of p, - mean log p(x) + mean log p(y), have normal intervals.
*Modes.* A sample belongs to component k with its posterior probability r_k(x); drawn by r, the counts are multinomial with the
true weights at Q = P, however much the components overlap (overlap costs power, not validity): Pearson's chi-square applies.
*Neighbours.* With r_k(y) the distance of y from its k-th nearest other exact sample, precision is the share of samples within r_k(y) of
some y, recall the same with x and y exchanged; the intervals are Wilson's, for the other set as it is. Of copies tells the
Mann-Whitney share P(d(X) < d(Y)), d the distance from the nearest training sample: 1/2 for samples as fresh as held-out data, 1 for copies;
DeLong's variance v is that of n' = p(1-p)/v trials, for which the interval is Wilson's. (Samples of less variety than the data lie nearer
to training samples too, without being copies of them, and those that are like no data lie farther away.)
*Gaussians.* W2 in a form without cancellation (Procrustes), and KL, from means and covariances A, B:

    W2^2 = |m_A - m_B|^2 + |A^(1/2) - U B^(1/2)|_F^2,  U the polar factor of A^(1/2) B^(1/2),
    KL(A|B) = 1/2 sum (l - log(1 + l)) + 1/2 (m_A - m_B)^T B^-1 (m_A - m_B),   l the eigenvalues of B^-1 (A - B).                      (6)

*Floors.* The mean of m draws at Q = P. A squared norm at Q = P is as skewed as a chi-square of few degrees (skewness 1.7 for the energy
distance in two dimensions), and Student's interval, symmetric, covers its mean at 90 % from 8 draws. Hall's transformation removes the
skewness: with u = (mean - theta)/s, s the standard deviation and g the skewness of the draws,

    u + g u^2/3 + g^2 u^3/27 + g/(6 m) = ((1 + g u/3)^3 - 1)/g + g/(6 m)   is within   +- t/sqrt m,                                (7)

monotone in u; g = 0 is Student's. It covers at 93 % from 8 draws, at 94.4 % from 16.

Everything is float64 on the CPU. References: Hoeffding 1948; Wilson 1927; Szekely & Rizzo 2013 (energy); Gretton et al. 2012 (MMD, median
heuristic); Sejdinovic et al. 2013 (both are one); Bonneel et al. 2015 (sliced W2); Efron & Stein 1981 (jackknife); Hall 1992 (7);
Clopper & Pearson 1934; Bhatia, Jain & Lim 2019 (Bures); Kynkaanniemi et al. 2019 (precision, recall); Meehan et al. 2020 (copies);
DeLong et al. 1988.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import random
from .contracts import function, instance, integer, numbers, real, sequence, shown, state
from .sde import NoiseLevel
from .targets import GaussianMixture

Z = 1.959963984540054                                   # the normal quantile of 97.5 %
BANK = (2.0, 1.0, 1 / 2, 1 / 4, 1 / 8)                    # bandwidths, where the data have unit variance
MEDIAN = 1000                                           # samples for the median heuristic, at most
SIZE = 500                                              # samples in one assignment, by default, at most: some 50 ms
TINY = 1e-75                                            # nothing, and so is its fourth power, but a normal number
APART = 0.9                                             # mixture components are modes if a sample's is known so well, on average


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def stderr(self) -> float:
        """Half the interval's length over 1.96: the standard error where the interval is a normal one."""
        return (self.high - self.low) / (2 * Z)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of samples, and the standard error of each entry."""

    mean: Tensor
    mean_stderr: Tensor
    cov: Tensor
    cov_stderr: Tensor


class ChiSquare(NamedTuple):
    """Pearson's statistic, its degrees of freedom, and the probability of a larger one at the true weights."""

    statistic: float
    dof: int
    p: float


# -- all at once --------------------------------------------------------------------------------------------------------
def compare(x: Tensor, target: Any, level: NoiseLevel | None = None, *, reference: Tensor | None = None,
            seed: int = 0) -> dict[str, Estimate]:
    """Every metric that applies to samples x (n, *D) of the law of a target, noised to ``level`` (None: the clean law).

    ``reference``: n exact samples, independent of x (None: drawn from ``seed``, as ``noised``). ``seed`` also gives the projections and
    the random assignment to modes. The keys, in this order:

    sliced_w2, w2            distances, biased upwards: read them against ``floors``
    energy, mmd, mmd_bank    squared distances, unbiased; Gaussian kernels, by the reference's median distance and the mean over ``BANK``
    nll, excess_nll          mean -log p, and its excess over the entropy; infinite where a sample leaves the support. Left out where the
                             target has no density
    mean_error, cov_error    |E x - m|^2 and |E (x - m)(x - m)^T - C|_F^2, unbiased
    mode_coverage, mode_chi2, mode_p   for a mixture whose components stand apart and expect at least 5 samples each: see the functions
                             of these names; mode_p is the probability of ``mode_test``

    Needs n >= 4. Raises as the metrics do: TypeError or ValueError on samples that are not finite, or shapes that differ.
    """
    _law(target)
    _scales(level), integer("seed", seed, 0)
    if reference is None:
        reference = noised(target, len(state("x", x, 2)), level, seed=_seeds(seed, 1)[0])
    a, b = _pair(x, reference)
    out = {"sliced_w2": sliced_w2(a, b, seed=seed), "w2": w2(a, b)}
    out |= zip(("energy", "mmd", "mmd_bank"), _distances(a, b, [_distance, _gaussian(median_bandwidth(b)), _gaussian(*BANK)]))
    alpha, sigma = _scales(level)
    if getattr(target, "has_density", True) or sigma > 0:
        out |= {"nll": nll(x, target, level), "excess_nll": excess_nll(x, reference, target, level)}
    identity = torch.eye(a.shape[1], dtype=a.dtype)
    out |= zip(("mean_error", "cov_error"), moment_errors(a, alpha * target.mean, alpha**2 * target.cov + sigma**2 * identity))
    if _has_modes(target, level, b):
        test = mode_test(x, target, level, seed=seed)
        out |= {"mode_coverage": mode_coverage(x, target, level, seed=seed), "mode_chi2": mode_chi2(x, target, level, seed=seed),
                "mode_p": Estimate(test.p, test.p, test.p)}
    return out


def noised(target: Any, n: int, level: NoiseLevel | None = None, *, seed: int = 0) -> Tensor:
    """n exact samples (n, *event) of a target's law at a level (None: the clean law), float64."""
    _law(target)
    _scales(level), integer("n", n, 1), integer("seed", seed, 0)
    x = target.sample(n, seed=seed, dtype=torch.float64)
    return x if level is None else level.alpha * x + level.sigma * random.WhiteNoise(seed, x.shape, dtype=torch.float64).initial()


def floor(metric: Callable[[Tensor, Tensor], Estimate], target: Any, n: int, level: NoiseLevel | None = None, *, draws: int = 8,
          seed: int = 0) -> Estimate:
    """The mean of ``metric(x, y)`` over ``draws`` fresh pairs of n exact samples each, with Hall's interval (7) for its expectation."""
    function("metric", metric, "sdediff.metrics.energy_distance"), integer("n", n, 1)
    seeds = _seeds(seed, 2 * integer("draws", draws, 2))
    return _hall([metric(noised(target, n, level, seed=p), noised(target, n, level, seed=q)).value
                     for p, q in zip(seeds[::2], seeds[1::2])])


def floors(target: Any, n: int, level: NoiseLevel | None = None, *, draws: int = 8, seed: int = 0) -> dict[str, Estimate]:
    """``floor`` of every metric that ``compare`` gives."""
    integer("n", n, 4)
    seeds = _seeds(seed, 2 * integer("draws", draws, 2))
    found = [compare(noised(target, n, level, seed=p), target, level, reference=noised(target, n, level, seed=q), seed=seed)
             for p, q in zip(seeds[::2], seeds[1::2])]
    return {name: _hall([f[name].value for f in found]) for name in found[0] if all(name in f for f in found)}


# -- Wasserstein --------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=8)
def _directions(seed: int, projections: int, d: int) -> Tensor:
    """Uniform on the sphere: (projections, d)."""
    r = random.source(seed, (projections, d), dtype=torch.float64).normal()
    return r / r.norm(dim=1, keepdim=True)


def sliced_w2(x: Tensor, y: Tensor, *, projections: int = 128, blocks: int = 10, seed: int = 0) -> Estimate:
    """Sliced 2-Wasserstein distance (4) (not squared) between x and y, both (n, *D).

    ``projections`` directions are drawn by ``sdediff.random`` from ``seed``; the distance along each is exact, by sorting. The interval is
    for the expectation at this n and these directions, by the jackknife that leaves out one of ``blocks`` pairs of consecutive
    blocks; nan if n < blocks. Raises on shapes that differ, or samples that are not finite.
    """
    a, b = _same(x, y)
    integer("projections", projections, 1)
    g = integer("blocks", blocks, 2)
    r: Any = _directions(integer("seed", seed, 0), projections, a.shape[1])
    n = len(a)
    block = (np.arange(n) * g // n).astype(np.int16)
    p, q = ((r @ v.T).numpy() for v in (a, b))               # (projections, n)
    i, j = p.argsort(axis=1), q.argsort(axis=1)
    p, q = np.take_along_axis(p, i, 1), np.take_along_axis(q, j, 1)
    distance = lambda x, y: math.sqrt(np.mean((x - y)**2))
    value = distance(p, q)
    if n < g:
        return Estimate(value, math.nan, math.nan)
    i, j = block[i], block[j]
    without = [distance(p[i != k], q[j != k]) for k in range(g)]        # sorted once: row by row, what is left stays in order
    half = _t(g - 1) * (g - 1) * _mean_stderr(without)
    return Estimate(value, max(0.0, value - half), value + half)


def w2(x: Tensor, y: Tensor, *, size: int | None = None) -> Estimate:
    """The exact 2-Wasserstein distance (5) (not squared) of ``size`` samples to ``size`` samples, x and y both (n, *D): its mean over
    n // size disjoint consecutive subsamples.

    ``size``: at most n; by default n // 8 up to 500, so that there are 8 or more. The cost is that of a linear assignment, some size^3.
    The interval is for the expectation at this size; nan if there is only one subsample. Raises on shapes that differ, or samples
    that are not finite.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = _same(x, y)
    size = max(1, min(SIZE, len(a) // 8)) if size is None else integer("size", size, 1, len(a))
    found = []
    for p, q in list(zip(a.split(size), b.split(size)))[:len(a) // size]:
        i, j = linear_sum_assignment(_cdist(p - p.mean(0), q - q.mean(0)).square().numpy())     # faster where they overlap
        found.append(math.sqrt(float((p[i] - q[j]).square().sum(1).mean())))
    return _student(found)


# -- energy distance and MMD --------------------------------------------------------------------------------------------
def energy_distance(x: Tensor, y: Tensor, *, chunk: int | None = None) -> Estimate:
    """Energy distance (1), the squared form, between x (n, *D) and y (m, *D), at least two samples each; unbiased, interval (3).

    ``chunk``: rows of the distance matrix held at once, by default some 4 MB of them.
    """
    return _distances(*_pair(x, y), [_distance], chunk)[0]


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | Sequence[float] | None = None, chunk: int | None = None) -> Estimate:
    """Squared maximum mean discrepancy (1) between x (n, *D) and y (m, *D), at least two samples each; unbiased, interval (3).

    The kernel is exp(-|x - y|^2 / (2 h^2)), h = ``bandwidth``, or its mean over a sequence of them (``BANK``); None: the median heuristic,
    ``median_bandwidth(y)``, so that one reference y means one kernel. ``chunk`` as in ``energy_distance``.
    Raises ValueError on wrong numbers or shapes.
    """
    a, b = _pair(x, y)
    if bandwidth is None:
        bandwidth = median_bandwidth(b)
    single = not isinstance(bandwidth, Sequence) or isinstance(bandwidth, (str, bytes))
    widths = [bandwidth] if single else sequence("bandwidth", bandwidth, "sdediff.metrics.BANK, at least one positive number")
    return _distances(a, b, [_gaussian(*(real("bandwidth", h, 0.0, low_open=True) for h in widths))], chunk)[0]


def median_bandwidth(y: Tensor) -> float:
    """The median distance between (the first 1000) samples y (m, *D), m >= 2. ValueError if it is zero."""
    b = _one("y", y)
    if len(b) < 2:
        raise ValueError(f"y.shape={tuple(y.shape)}: expected at least two samples.")
    h = float(torch.nn.functional.pdist(b[:MEDIAN]).quantile(0.5))
    if h == 0:
        raise ValueError("y: the median distance of its samples is 0; expected different samples, or bandwidth= as a number.")
    return h


Semimetric = Callable[[Tensor], Tensor]                     # rho as a function of the distance


def _distance(d: Tensor) -> Tensor:
    return d


def _gaussian(*widths: float) -> Semimetric:
    """rho = 1 - k. Halving h raises k to the fourth power, cheaper than an exponential but where numbers turn denormal."""
    h = sorted(widths, reverse=True)

    def rho(d: Tensor) -> Tensor:
        k = d.square().mul_(-0.5 / h[0]**2).exp_()
        total = k.clone() if len(h) > 1 else k
        for wide, narrow in zip(h, h[1:]):
            k = k.clamp_(min=TINY).square_().square_() if wide == 2 * narrow else d.square().mul_(-0.5 / narrow**2).exp_()
            total += k
        return total.mul_(-1 / len(h)).add_(1)

    return rho


class _Pairs(NamedTuple):
    """Of rho(a_i, b_j): row means, column means, the mean, and the variance beyond rows and columns; i != j if a is b."""

    rows: Tensor
    columns: Tensor
    mean: Tensor
    remainder: Tensor


def _distances(a: Tensor, b: Tensor, semimetrics: Sequence[Semimetric], chunk: int | None = None) -> list[Estimate]:
    """(1) with its interval (3) for each semimetric, in one pass over the distances."""
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"x has {n} samples and y {m}; expected at least two each.")
    chunk = max(1, (1 << 19) // max(n, m)) if chunk is None else integer("chunk", chunk, 1)
    out = []
    for xx, yy, xy in zip(*(_pairs(p, q, semimetrics, chunk) for p, q in ((a, a), (b, b), (a, b)))):
        # g_x(x) = 2 (E rho(x, Y) - E rho(x, X')) is the first term's influence of x; beyond it, the doubly centred rho
        first = (2 * (xy.rows - xx.rows)).var() / n + (2 * (xy.columns - yy.rows)).var() / m
        second = 2 * xx.remainder / n**2 + 2 * yy.remainder / m**2 + 4 * xy.remainder / (n * m)
        v = 2 * xy.mean - xx.mean - yy.mean
        out.append(_unbiased(v, first, second))
    return out


def _pairs(a: Tensor, b: Tensor, semimetrics: Sequence[Semimetric], chunk: int) -> list[_Pairs]:
    own = a is b
    n, m = len(a) - own, len(b) - own
    rows, columns, square = a.new_zeros(len(semimetrics), len(a)), a.new_zeros(len(semimetrics), len(b)), a.new_zeros(len(semimetrics))
    for i in range(0, len(a), chunk):
        end = min(i + chunk, len(a))
        d = _cdist(a[i:end], b[i:] if own else b)                   # of a symmetric matrix, the part from the diagonal on
        for k, rho in enumerate(semimetrics):
            r = rho(d)
            if own:
                r.diagonal().zero_()                                # also where rounding would leave a trace
                after = r[:, end - i:]
                rows[k, end:] += after.sum(0)
                square[k] += torch.linalg.vector_norm(after)**2
            else:
                columns[k] += r.sum(0)
            rows[k, i:end] += r.sum(1)
            square[k] += torch.linalg.vector_norm(r)**2
    out = []
    for row, column, total in zip(rows / m, (rows if own else columns) / n, square / (len(a) * m)):
        remainder = total - row.mean()**2 - row.var(unbiased=False) - column.var(unbiased=False)
        out.append(_Pairs(row, column, row.mean(), remainder.clamp(min=0)))
    return out


def _cdist(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


# -- densities and moments ----------------------------------------------------------------------------------------------
def nll(x: Tensor, target: Any, level: NoiseLevel | None = None) -> Estimate:
    """Mean -log p of samples x (n, *D) under the exact density at a level (None: the clean one), in nats; unbiased for its expectation
    (for exact samples: the entropy). Infinite where a sample has no density. Raises as ``target.log_prob``."""
    p = _surprise(x, target, level)
    return _normal(p.mean(), p.var() / len(p))


def excess_nll(x: Tensor, y: Tensor, target: Any, level: NoiseLevel | None = None) -> Estimate:
    """``nll`` of samples x (n, *D) less the entropy by independent exact samples y (m, *D): unbiased, zero on average for exact x. (It is
    no divergence: samples that cluster where p is large make it negative.)"""
    _pair(x, y)
    p, q = (_surprise(v, target, level) for v in (x, y))
    return _normal(p.mean() - q.mean(), p.var() / len(p) + q.var() / len(q))


def moments(x: Tensor) -> Moments:
    """Mean and (unbiased) covariance of samples x (n, *D), n >= 2, with standard errors; ±1.96 of them make 95 % intervals. Raises
    ValueError on wrong numbers or shapes."""
    a, _ = _pair(x, x)
    if len(a) < 2:
        raise ValueError(f"x.shape={tuple(x.shape)}: expected at least two samples.")
    n, mean = len(a), a.mean(0)
    c = a - mean
    cov = c.T @ c / (n - 1)
    fourth = c.square().T @ c.square() / n                          # Var of c_i c_j is its mean square less the covariance's
    return Moments(mean, (cov.diagonal() / n).sqrt(), cov, ((fourth - cov.square()).clamp(min=0) / n).sqrt())


def moment_errors(x: Tensor, mean: Tensor, cov: Tensor) -> tuple[Estimate, Estimate]:
    """|E x - m|^2 and |E (x - m)(x - m)^T - C|_F^2 of samples x (n, *D), n >= 2, m = ``mean`` (d,), C = ``cov`` (d, d): unbiased, so that
    they are zero on average for exact samples, with interval (3). The second is about the true mean. Memory: n d^2 numbers. Raises
    ValueError on wrong numbers or shapes."""
    a, _ = _pair(x, x)
    n, d = a.shape
    if n < 2:
        raise ValueError(f"x.shape={tuple(x.shape)}: expected at least two samples.")
    mean, cov = _matrices("mean", mean, "cov", cov, d)
    g = a - mean
    return _squared_mean(g), _squared_mean((g[:, :, None] * g[:, None, :] - cov).flatten(1))


def gaussian_w2(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    """W2 (not squared) between N(mean_a, cov_a) and N(mean_b, cov_b), by (6): exact to rounding, also for close laws. Means (d,),
    covariances (d, d), positive semi-definite; ValueError on other shapes."""
    a, first = _matrices("mean_a", mean_a, "cov_a", cov_a)
    b, second = _matrices("mean_b", mean_b, "cov_b", cov_b, len(a))
    p, q = _root("cov_a", first), _root("cov_b", second)
    left, _, right = torch.linalg.svd(p @ q)
    return float(torch.hypot((a - b).norm(), (p - left @ right @ q).norm()))


def gaussian_kl(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    """KL(N(mean_a, cov_a) | N(mean_b, cov_b)) in nats, by (6). cov_b positive definite (else ValueError); infinite if cov_a is singular."""
    a, first = _matrices("mean_a", mean_a, "cov_a", cov_a)
    b, second = _matrices("mean_b", mean_b, "cov_b", cov_b, len(a))
    root, info = torch.linalg.cholesky_ex(second)
    if int(info):
        raise ValueError("cov_b: expected a positive definite matrix (d, d).")
    solve = lambda v: torch.linalg.solve_triangular(root, v, upper=False)
    excess = torch.linalg.eigvalsh(solve(solve(first - second).T)).clamp(min=-1)
    return 0.5 * float((excess - torch.log1p(excess)).sum() + solve((a - b)[:, None]).square().sum())


# -- modes --------------------------------------------------------------------------------------------------------------
def modes(x: Tensor, mixture: GaussianMixture, level: NoiseLevel | None = None, *, seed: int = 0) -> Tensor:
    """The component (n,) of each sample x (n, *D) of a Gaussian mixture noised to ``level`` (None: the clean law), drawn from ``seed`` with
    its posterior probabilities. ValueError for singular components at sigma = 0."""
    a, _ = _pair(x, x)
    steps = _responsibilities(a, mixture, level).cumsum(1)
    uniform = torch.special.ndtr(random.source(_seeds(seed, 1)[0], (len(a), 1), dtype=torch.float64).normal())
    return (uniform * steps[:, -1:] > steps).sum(1).clamp_max(steps.shape[1] - 1)


def mode_coverage(x: Tensor, mixture: GaussianMixture, level: NoiseLevel | None = None, *, share: float = 0.5, seed: int = 0) -> Estimate:
    """Share of the modes of a Gaussian mixture that hold at least ``share`` of their mass, by the samples x (n, *D) that ``modes`` gives
    them. The interval counts the modes of which that is sure, and those of which it is possible, by Clopper-Pearson intervals that hold
    for all the modes at once."""
    from scipy.special import betaincinv

    counts, w = _counts(x, mixture, level, seed)
    n, needed = int(counts.sum()), real("share", share, 0.0, 1.0, low_open=True) * w
    tail, k = 0.025 / len(w), counts.numpy()
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    high = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail), 1.0)
    return Estimate(*(float(np.mean(mass >= needed.numpy() * (1 - 1e-12))) for mass in (k / n, low, high)))


def mode_chi2(x: Tensor, mixture: GaussianMixture, level: NoiseLevel | None = None, *, seed: int = 0) -> Estimate:
    """The chi-square divergence sum (p_k - w_k)^2/w_k of the modes' masses p from their weights w, from samples x (n, *D), n >= 2, in their
    ``modes``: unbiased, with interval (3). (Pearson's statistic is about n times this plus its degrees of freedom.) Raises ValueError
    on wrong numbers or shapes."""
    counts, w = _counts(x, mixture, level, seed)
    n = float(counts.sum())
    if n < 2:
        raise ValueError(f"x.shape={tuple(x.shape)}: expected at least two samples.")
    g = (torch.eye(len(w), dtype=w.dtype) - w) / w.sqrt()               # row k: what a sample in mode k contributes
    return _squared_mean(g, counts)


def mode_test(x: Tensor, mixture: GaussianMixture, level: NoiseLevel | None = None, *, seed: int = 0) -> ChiSquare:
    """Pearson's chi-square test of the ``modes`` of samples x (n, *D) against the mixture's weights. Trust it where each mode expects 5
    samples or more."""
    from scipy.special import chdtrc

    counts, w = _counts(x, mixture, level, seed)
    expected = w * counts.sum()
    statistic = float(((counts - expected)**2 / expected).sum())
    return ChiSquare(statistic, len(w) - 1, float(chdtrc(len(w) - 1, statistic)) if len(w) > 1 else 1.0)


# -- pictures -----------------------------------------------------------------------------------------------------------
def psnr(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """The peak signal-to-noise ratio (n,) in dB, 10 log10(span^2/mean |x - y|^2), of images x (n, *D), cut to [-span/2, span/2], against y
    (n, *D) or one picture (1, *D). Infinite where they are equal. Raises ValueError on wrong numbers or shapes."""
    half = real("span", span, 0.0, low_open=True) / 2
    a, b = _pair(x, y)
    if float(b.abs().max()) > half * (1 + 1e-6):
        raise ValueError(f"y reaches {float(b.abs().max()):g}: expected pictures in [-{half:g}, {half:g}], as span={span:g} says.")
    if len(b) not in (1, len(a)):
        raise ValueError(f"y.shape={tuple(y.shape)}: expected a picture for each of the {len(a)} samples, or one for all.")
    return 10 * torch.log10(span**2 / (a.clamp(-half, half) - b).square().mean(1))


def judge(x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """A classifier of clean samples that knows no generator: a support vector machine on real x (n, *D) and their labels (n,), by
    scikit-learn. It gives the labels (m,) of samples (m, *D). ImportError without scikit-learn, ValueError on labels of another number."""
    try:
        from sklearn.svm import SVC
    except ImportError:
        raise ImportError("metrics.judge needs scikit-learn: pip install 'sdediff[images]'.") from None
    a, _ = _pair(x, x)
    instance("labels", labels, Tensor, "a torch.Tensor of labels (n,)")
    if labels.shape != a.shape[:1]:
        raise ValueError(f"labels.shape={tuple(labels.shape)}: expected ({len(a)},), a label for each sample.")
    if len(labels.unique()) < 2:
        raise ValueError(f"labels={shown(labels)}: one class alone; expected two or more, which a judge tells apart.")
    machine = SVC(C=10.0).fit(a.numpy(), labels.cpu().numpy())
    return lambda x: torch.from_numpy(machine.predict(_pair(x, x)[0].numpy()))


# -- neighbours ---------------------------------------------------------------------------------------------------------
def nearest(x: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """The distance (n,) of each sample x (n, *D) from its k-th nearest of y (m, *D), float64; where y is x: of the others. k of them at
    least."""
    a, b = _pair(x, y)
    itself = y is x
    integer("k", k, 1, len(b) - itself, f"y has {len(b)} samples" + (", x itself" if itself else ""))
    return torch.cat([_cdist(part, b).kthvalue(k + itself, 1).values for part in a.split(max(1, 10**7 // len(b)))])


def precision_recall(x: Tensor, y: Tensor, k: int = 3) -> tuple[Estimate, Estimate]:
    """Precision and recall of samples x (n, *D) against exact ones y (m, *D) by their k nearest neighbours: the share of x that lies among
    the y (quality), and of y among the x (variety). At equal laws and n = m both have one mean, below 1: compare with fresh data's."""
    a, b = _pair(x, y)
    shares = []
    for some, others in ((a, b), (b, a)):
        radius = nearest(others, others, k)
        inside = torch.cat([(_cdist(part, others) <= radius).any(1) for part in some.split(max(1, 10**7 // len(others)))])
        shares.append(_wilson(int(inside.sum()), len(some)))
    return shares[0], shares[1]


def copying(x: Tensor, train: Tensor, held_out: Tensor) -> Estimate:
    """The probability that a sample x (n, *D) lies nearer to the training data (N, *D) than a held-out one (m, *D) does: 1/2 for samples as
    fresh as those, towards 1 for copies of training data. Equal distances count half. Needs n, m >= 2. Raises ValueError on wrong
    numbers or shapes."""
    near, far = nearest(x, train), nearest(held_out, train)
    if min(len(near), len(far)) < 2:
        raise ValueError(f"x and held_out have {len(near)} and {len(far)} samples; expected at least two of each.")
    wins = (near[:, None] < far).double() + 0.5 * (near[:, None] == far)
    value, fewer = float(wins.mean()), min(len(near), len(far))
    variance = float(wins.mean(1).var() / len(near) + wins.mean(0).var() / len(far))
    worth = value * (1 - value) / variance if variance > 0 else fewer              # independent trials of the same variance
    return _wilson(value * worth, worth)


def _has_modes(target: Any, level: NoiseLevel | None, exact: Tensor) -> bool:
    """Whether these exact samples (n, d) know their components, each of which expects at least 5 of them. (Some toys are mixtures by
    quadrature, of components that lie closer than their widths.)"""
    if not isinstance(target, GaussianMixture) or len(target.means) < 2 or len(exact) * float(target.weights[target.weights > 0].min()) < 5:
        return False
    return float(_responsibilities(exact[:MEDIAN], target, level).amax(1).mean()) >= APART


def _counts(x: Tensor, mixture: GaussianMixture, level: NoiseLevel | None, seed: int) -> tuple[Tensor, Tensor]:
    """Samples in each mode of positive weight, and these weights."""
    counts = torch.bincount(modes(x, mixture, level, seed=seed), minlength=len(mixture.weights)).double()
    return counts[mixture.weights > 0], mixture.weights[mixture.weights > 0]


def _responsibilities(a: Tensor, mixture: GaussianMixture, level: NoiseLevel | None) -> Tensor:
    """P(component | x), (n, K)."""
    if not isinstance(mixture, GaussianMixture):
        raise TypeError(f"mixture={mixture!r}: expected a sdediff.targets.GaussianMixture.")
    if a.shape[1] != mixture.dim:
        raise ValueError(f"x has {a.shape[1]} numbers per sample; expected {mixture.dim} ({mixture.name}).")
    alpha, sigma = _scales(level)
    root, info = torch.linalg.cholesky_ex(alpha**2 * mixture.covs + sigma**2 * torch.eye(mixture.dim, dtype=a.dtype))
    if int(info.max()):
        raise ValueError(f"{mixture.name} has singular components; expected a level with sigma > 0.")
    z = torch.linalg.solve_triangular(root, (a - alpha * mixture.means[:, None]).transpose(1, 2), upper=False)      # (K, d, n)
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    return (mixture.weights.log() - log_det - 0.5 * z.square().sum(1).T).softmax(1)


# -- intervals ----------------------------------------------------------------------------------------------------------
def _collect(v: float, slope: float, second: float, z: float) -> tuple[float, float]:
    """The ends of {theta: |v - theta| <= z sqrt(second + slope theta^+)}: (3)."""
    half = z * math.sqrt(second)
    middle = v + z**2 * slope / 2                            # for theta >= 0, the roots of (v - theta)^2 = z^2 (second + slope theta)
    reach = math.sqrt(max(0.0, middle**2 - v**2 + half**2))
    return v - half if v <= half else middle - reach, v + half if v <= -half else middle + reach


def _unbiased(v: Tensor, first: Tensor, second: Tensor) -> Estimate:
    """An unbiased estimate v of a squared norm; first and second: the plug-in terms 4 <d, S d> and 2 tr S^2."""
    value, s = float(v), float(second)
    bound = math.sqrt(8 * s)
    slope = min(bound, float(first) / value) if value > 0 else bound
    return Estimate(value, *_collect(value, slope, s, Z))


def _squared_mean(g: Tensor, counts: Tensor | None = None) -> Estimate:
    """|E g|^2 from the rows of g (n, k), each counted ``counts`` times (None: once)."""
    w = g.new_ones(len(g)) if counts is None else counts
    n, norm = w.sum(), g.square().sum(1)
    mean = w @ g / n
    v = (n * mean.square().sum() - w @ norm / n) / (n - 1)
    gram = (g * w[:, None]).T @ g / n                                                       # E g g^T
    row = (n * g @ mean - norm) / (n - 1)                                                   # E over j of <g_i, g_j>, j != i
    variance = w @ (row - v).square() / (n - 1)
    remainder = (n * gram.square().sum() - w @ norm.square() / n) / (n - 1) - v**2 - 2 * variance
    return _unbiased(v, 4 * variance / n, 2 * remainder.clamp(min=0) / n**2)


def _normal(value: Tensor, variance: Tensor) -> Estimate:
    v = float(value)
    half = Z * math.sqrt(float(variance)) if math.isfinite(v) else 0.0
    return Estimate(v, v - half, v + half)


def _wilson(hits: float, n: float) -> Estimate:
    """A proportion with Wilson's interval."""
    centre = (hits + Z**2 / 2) / (n + Z**2)
    half = Z * math.sqrt(hits * (n - hits) / n + Z**2 / 4) / (n + Z**2)
    return Estimate(hits / n, centre - half, centre + half)


def _student(values: Sequence[float]) -> Estimate:
    """The mean of independent values with the interval of Student's t; nan if there is one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = _t(len(values) - 1) * _mean_stderr(values) if math.isfinite(mean) else 0.0
    return Estimate(mean, mean - half, mean + half)


def _hall(values: Sequence[float]) -> Estimate:
    """The mean of independent values with Hall's interval (7) for it; Student's if there are only two."""
    n, mean = len(values), math.fsum(values) / len(values)
    s = _mean_stderr(values) * math.sqrt(n) if math.isfinite(mean) else 0.0
    g = math.fsum(((v - mean) / s)**3 for v in values) * n / ((n - 1) * (n - 2)) if s > 0 and n > 2 else 0.0
    half = _t(n - 1) / math.sqrt(n)
    u = [3 * (float(np.cbrt(1 + g * (y - g / (6 * n)))) - 1) / g if abs(g) > 1e-6 else y for y in (half, -half)]
    return Estimate(mean, *(mean - s * v for v in u))


def _mean_stderr(values: Sequence[float]) -> float:
    n, mean = len(values), math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean)**2 for v in values) / (n * (n - 1)))


def _t(dof: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(dof, 0.975))


# -- numbers in ---------------------------------------------------------------------------------------------------------
def _one(name: str, x: Tensor) -> Tensor:
    """x as float64 (n, d) on the CPU."""
    if not len(state(name, x, 2)):
        raise ValueError(f"{name}.shape={tuple(x.shape)}: expected at least one sample.")
    return x.detach().double().cpu().flatten(1)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 (n, d) on the CPU."""
    for name, v in (("x", x), ("y", y)):
        if not len(state(name, v, 2)):
            raise ValueError(f"{name}.shape={tuple(v.shape)}: expected at least one sample.")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x.shape={tuple(x.shape)}, y.shape={tuple(y.shape)}: expected samples of one shape, (n, *D) and (m, *D).")
    a = x.detach().double().cpu().flatten(1)
    return a, a if y is x else y.detach().double().cpu().flatten(1)


def _same(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _pair(x, y)
    if len(a) != len(b):
        raise ValueError(f"x has {len(a)} samples and y {len(b)}; expected equally many, since they are matched one to one.")
    return a, b


def _law(target: Any) -> None:
    if isinstance(target, type) or not callable(getattr(target, "sample", None)) or not callable(getattr(target, "log_prob", None)):
        raise TypeError(f"target={shown(target)}: expected a law with exact samples and densities, such as sdediff.targets.toy('rings').")


def _surprise(x: Tensor, target: Any, level: NoiseLevel | None) -> Tensor:
    """-log p (n,), float64."""
    _law(target)
    a, _ = _pair(x, x)
    return -target.log_prob(a.reshape(x.shape), level).double()


def _scales(level: NoiseLevel | None) -> tuple[float, float]:
    instance("level", level, NoiseLevel, "a level such as sde.at(t)", none=True)
    if level is None:
        return 1.0, 0.0
    if any(isinstance(v, Tensor) and v.numel() != 1 for v in (level.alpha, level.sigma)):
        raise ValueError(f"level.alpha.shape={tuple(torch.as_tensor(level.alpha).shape)}: expected one level for all samples, sde.at(t).")
    return float(level.alpha), float(level.sigma)


def _seeds(seed: int, count: int) -> list[int]:
    """Seeds that no other use of ``seed`` shares."""
    return [int(s) >> 1 for s in np.random.SeedSequence([integer("seed", seed, 0), 0x666C6F6F72]).generate_state(count, np.uint64)]


def _matrices(name: str, mean: Any, cov_name: str, cov: Any, d: int | None = None) -> tuple[Tensor, Tensor]:
    m, c = (numbers(which, v)[0] for which, v in ((name, mean), (cov_name, cov)))
    if m.ndim != 1 or (d is not None and len(m) != d) or c.shape != (len(m), len(m)):
        want = f"({d},) and ({d}, {d})" if d is not None else "(d,) and (d, d)"
        raise ValueError(f"{name}.shape={tuple(m.shape)}, {cov_name}.shape={tuple(c.shape)}: expected {want}.")
    return m, (c + c.T) / 2


def _root(name: str, c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    if float(values.min()) < -1e-10 * float(values.abs().max()):
        raise ValueError(f"{name}: expected a positive semi-definite matrix; the smallest eigenvalue is {float(values.min()):.3g}.")
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
