r"""Distances between two sets of samples, each with the standard error of its own number.

    sliced W2^2 = mean over directions u of  int_0^1 (F^-1(q) - G^-1(q))^2 dq,   F, G the laws of u.x and u.y           (1)
    energy      = 2 E|X - Y| - E|X - X'| - E|Y - Y'|                                                                (2)

Both are zero iff the laws agree. (1) is biased upwards, by O(1/sqrt n) at equal laws: read it against its floor, the same
number for two sets of exact data. (2) is a U-statistic, unbiased, and may therefore be slightly negative.

The standard errors cover the draw of both sets of samples, not the choice of directions, which is the same for every call
with the same seed. References: Bonneel et al. 2015 (sliced W2); Szekely & Rizzo 2013 (energy); Politis & Romano 1994 (blocks).
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import random
from .contracts import integer, state


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.stderr:.4f}"


def sliced_w2(x: Tensor, y: Tensor, *, projections: int = 128, blocks: int = 10, seed: int = 0) -> Estimate:
    """Sliced 2-Wasserstein distance (not squared) between x and y, both (n, *D).

    ``projections`` directions are drawn by ``sdediff.random`` from ``seed``; the distance along each is exact, by sorting. The
    standard error is the spread of the distance over ``blocks`` disjoint pairs of blocks, over sqrt(blocks): the distance
    fluctuates like 1/sqrt(n) at equal laws as at clearly different ones, so the scaling is right for both (in between it is up to
    a third too small; with fewer than two points a block it is nan). Raises on shapes that differ, or samples that are not finite.
    """
    a, b = _pair(x, y)
    if len(a) != len(b):
        raise ValueError(f"x has {len(a)} samples and y {len(b)}; expected equally many, since quantiles are matched one to one.")
    integer("projections", projections, 1)
    integer("blocks", blocks, 2)
    u = random.source(integer("seed", seed, 0), (projections, a.shape[1]), dtype=torch.float64).normal()
    u = u / u.norm(dim=1, keepdim=True)
    a, b = u @ a.T, u @ b.T                                  # (projections, n)
    size = a.shape[1] // blocks
    stderr = float("nan")
    if size > 1:
        p, q = (v[:, :size * blocks].unflatten(1, (blocks, size)).sort(dim=2).values for v in (a, b))
        stderr = float((p - q).square().mean(dim=(0, 2)).sqrt().std() / blocks**0.5)
    return Estimate(float((a.sort(dim=1).values - b.sort(dim=1).values).square().mean().sqrt()), stderr)


def energy_distance(x: Tensor, y: Tensor, *, chunk: int = 1024) -> Estimate:
    r"""Energy distance (2), the squared form, between x (n, *D) and y (m, *D): unbiased; at least two samples each.

    The standard error is that of a U-statistic, from Hoeffding's decomposition with both of its terms, estimated from the same
    distances, so that it holds at equal laws too, where the first one vanishes (there it is on the safe side, by a third). ``chunk``:
    rows of the distance matrix held at once.
    """
    a, b = _pair(x, y)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"x has {n} samples and y {m}; expected at least two each.")
    integer("chunk", chunk, 1)
    xx, yy, xy = _Distances(a, a, chunk), _Distances(b, b, chunk), _Distances(a, b, chunk)
    # Hoeffding: g_x(x) = 2 (E|x - Y| - E|x - X'|), likewise g_y, and the doubly centred distances V beyond them. The plug-in
    # variance of the row means counts the second term twice, hence its subtraction; the total is never below the second term.
    first = (2 * (xy.rows - xx.rows)).var() / n + (2 * (xy.columns - yy.rows)).var() / m
    second = 2 * xx.remainder / n**2 + 2 * yy.remainder / m**2 + 4 * xy.remainder / (n * m)
    return Estimate(float(2 * xy.mean - xx.mean - yy.mean), float(torch.maximum(first - second, second).sqrt()))


class _Distances:
    """Row means, column means, the mean, and the variance beyond rows and columns of the distances |a_i - b_j|; i != j if a is b."""

    def __init__(self, a: Tensor, b: Tensor, chunk: int) -> None:
        own = a is b
        n, m = len(a) - own, len(b) - own
        rows, columns, square = torch.empty(len(a), dtype=a.dtype), torch.zeros(len(b), dtype=a.dtype), torch.zeros((), dtype=a.dtype)
        for i in range(0, len(a), chunk):
            d = torch.cdist(a[i:i + chunk], b, compute_mode="donot_use_mm_for_euclid_dist")
            if own:                                          # exactly zero, also where rounding would leave a trace
                d.diagonal(i).zero_()
            rows[i:i + chunk] = d.sum(1) / m
            columns += d.sum(0) / n
            square += d.square().sum()
        self.rows, self.columns, self.mean = rows, columns, rows.mean()
        variance = square / (len(a) * m) - self.mean**2
        self.remainder = (variance - rows.var(unbiased=False) - columns.var(unbiased=False)).clamp(min=0)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 (n, d) on the CPU."""
    for name, v in (("x", x), ("y", y)):
        if not len(state(name, v, 2)):
            raise ValueError(f"{name}.shape={tuple(v.shape)}: expected at least one sample.")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x.shape={tuple(x.shape)}, y.shape={tuple(y.shape)}: expected samples of one shape, (n, *D) and (m, *D).")
    a = x.detach().double().cpu().flatten(1)
    return a, a if y is x else y.detach().double().cpu().flatten(1)
