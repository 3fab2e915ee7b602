r"""Conformance of a forward process and of a score.

    testing.check_sde(MyProcess())                       # nine checks
    testing.check_score(from_network(net), sde, (64, 2))  # six

*Kernel.* m' = f m and v' = 2 f v + g^2 from (1, 0) at s, integrated by DOP853 with the process's own f and g^2, end at (alpha_ts,
sigma_ts^2) at t. *Semigroup.* alpha_tr = alpha_ts alpha_sr, sigma_tr^2 = alpha_ts^2 sigma_sr^2 + sigma_ts^2. *Prior.* For unit data,
KL(N(0, alpha^2 + sigma^2) || N(0, prior^2)) + alpha^2/(2 prior^2), the second term for a mean of one. *Curl.* A score is a gradient if
and only if its Jacobian is symmetric, u.Jw = w.Ju; a network's need not be, so it is reported.

References: Song et al. 2021, App. B and D; Särkkä & Solin 2019, ch. 6 (moments); Chao et al. 2023 (ICML) on curl.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import contracts
from ..equation import ReverseSDE
from ..random import WhiteNoise
from ..score import Prediction, Score
from ..sde import SDE, NoiseLevel
from .report import Finding, Report, Result, Suite, at_most, holds, reported

F64 = torch.float64
PROCESS, SCORE = Suite(), Suite()


# -- a process ------------------------------------------------------------------------------------------------------
def _times(sde: SDE, n: int = 24) -> list[float]:
    """Times inside (0, t_max), away from the kinks of a chain: uniform, and in decades towards 0."""
    top = sde.t_max
    inside = [top * (k + 0.37) / n for k in range(n)]
    if sde.knots:
        return sorted({min(math.floor(t) + 0.37, top - 0.5) for t in inside})
    return sorted({*inside, *(top * 10.0**-k for k in range(1, 6))})


@PROCESS.check
def kernel(sde: SDE) -> Iterator[Finding]:
    """The transition kernel solves the moment equations (relative 1e-8; times from which alpha has fallen below 1e-3 alone)."""
    from scipy.integrate import solve_ivp
    for s, t in _intervals(sde):
        a, std = sde.transition(t, s)

        def slope(u: float, y: np.ndarray, scale: float = std**2) -> np.ndarray:
            m = sde.at(float(u))
            return np.array([m.f * y[0], 2 * m.f * y[1] + m.g2 / scale])

        out = solve_ivp(slope, (s, t), [1.0, 0.0], method="DOP853", rtol=1e-11, atol=1e-12 * a)
        mean, variance = out.y[:, -1]
        yield at_most(f"alpha_ts for s={s:.4g}, t={t:.4g}, relative", abs(mean / a - 1), 1e-8)
        yield at_most(f"sigma_ts^2 for s={s:.4g}, t={t:.4g}, relative", abs(variance - 1), 1e-8)


def _intervals(sde: SDE) -> list[tuple[float, float]]:
    if sde.knots:                               # inside a knot's cell, where the coefficients are smooth
        return [(k + 0.2, k + 0.8) for k in sorted({0, sde.knots // 2, sde.knots - 1})]
    times = [t for t in _times(sde) if sde.at(t).alpha > 1e-3 and t >= 0.01 * sde.t_max]
    return [(s, t) for s, t in pairwise(times[::4])] + [(times[2], times[-2])]


@PROCESS.check
def semigroup(sde: SDE) -> Iterator[Finding]:
    """Transitions compose (relative 1e-12, of the alphas' own digits where they are tiny)."""
    times = _times(sde)
    for r, s, t in zip(times[::3], times[1::3], times[2::3]):
        (ats, sts), (asr, ssr), (atr, str_) = sde.transition(t, s), sde.transition(s, r), sde.transition(t, r)
        yield at_most(f"alpha over r={r:.4g}, s={s:.4g}, t={t:.4g}", abs(ats * asr / atr - 1) if atr else abs(ats * asr), 1e-12)
        yield at_most(f"sigma^2 over r={r:.4g}, s={s:.4g}, t={t:.4g}", abs((ats**2 * ssr**2 + sts**2) / str_**2 - 1), 1e-11)
        level = sde.at(t), sde.at(s)
        variance = level[1].sigma**2 * ats**2 + sts**2
        yield at_most(f"the kernel from 0 to t={t:.4g} by way of s={s:.4g}", abs(variance / level[0].sigma**2 - 1), 1e-11)


@PROCESS.check
def snr(sde: SDE) -> Iterator[Finding]:
    """The signal-to-noise ratio falls strictly; g^2 >= 0."""
    levels = sde.levels([sde.t_max * (k / 400) for k in range(401)])
    lam = np.array([m.lam for m in levels])
    yield at_most("intervals of 400 on which log(alpha/sigma) does not fall", int((~(np.diff(lam) < 0)).sum()), 0)
    yield at_most("times with g^2 < 0", sum(m.g2 < 0 for m in levels), 0)


@PROCESS.check
def prior(sde: SDE) -> Iterator[Finding]:
    """The prior stands for the marginal at t_max: KL <= 0.02 nats a dimension for data of unit variance and mean one; its draws have
    its variance, and belong to their seed."""
    m, std = sde.at(sde.t_max), sde.prior_std()
    ratio = (m.alpha**2 + m.sigma**2) / std**2
    yield at_most("KL of the marginal at t_max from the prior", (ratio - 1 - math.log(ratio) + (m.alpha / std)**2) / 2, 0.02)
    x = sde.prior((4000, 2), seed=0, dtype=F64)
    yield at_most("z of the draws' variance", abs(float(x.square().mean()) / std**2 - 1) * math.sqrt(8000 / 2), 5.0)
    again, other = (sde.prior((7, 2), seed=seed, dtype=F64) for seed in (0, 1))
    yield holds("draws belong to their seed", torch.equal(x[:7], again) and not torch.equal(x[:7], other))


@PROCESS.check
def score(sde: SDE) -> Iterator[Finding]:
    """The score of the kernel by autograd; Tweedie; velocity = f x - g^2/2 score; the reverse drift is linear in eta^2 (1e-9)."""
    x0, z = WhiteNoise(1, (6, 2), dtype=F64).normal(), WhiteNoise(2, (6, 2), dtype=F64).normal()
    for t in _times(sde)[1::5]:
        m = sde.at(t)
        if m.alpha < 1e-3:
            continue
        mean, std = sde.marginal(x0, t)
        x = (mean + std * z).requires_grad_()
        log_p = -((x - mean) / std).square().sum() / 2
        gradient, = torch.autograd.grad(log_p, x)
        x = x.detach()
        p = Prediction(x, m, x0=x0, eps=z)
        scale = float(gradient.abs().max())
        yield at_most(f"score at t={t:.4g}", float((p.score - gradient).abs().max()) / scale, 1e-9)
        size = float(p.velocity.abs().max()) + 1e-30
        black_box = sde.drift(x, t) - sde.diffusion(t)**2 / 2 * gradient
        yield at_most(f"velocity = f x - g^2/2 score at t={t:.4g}", float((p.velocity - black_box).abs().max()) / size, 1e-8)
        kernel = lambda y, level, t=t: Prediction(y, level, x0=x0, eps=(y - level.alpha * x0) / level.sigma)
        drifts = [ReverseSDE(sde, kernel, eta).drift(x, m) for eta in (0.0, 1.0)]
        change = drifts[1] - drifts[0] + sde.diffusion(t)**2 / 2 * gradient
        yield at_most(f"reverse drift at t={t:.4g}", float(change.abs().max()) / size, 1e-8)


@PROCESS.check
def ends(sde: SDE) -> Iterator[Finding]:
    """alpha, sigma and what a sampler reads are finite at both ends, where f, g^2 or sigma' need not be."""
    for t in (0.0, sde.t_min, sde.t_max):
        m = sde.at(t)
        finite = all(math.isfinite(v) for v in (m.alpha, m.sigma, m.dalpha, m.dvariance))
        yield holds(f"t={t:g}: alpha, sigma >= 0, alpha', (sigma^2)' finite", finite
                    and m.alpha >= 0 and m.sigma >= 0)
        yield holds(f"t={t:g}: lambda is a number", not math.isnan(m.lam))
    yield at_most("alpha(0) = 1", abs(sde.at(0.0).alpha - 1), 1e-12)
    yield holds("0 <= t_min < t_max", 0 <= sde.t_min < sde.t_max)
    still = [v - w for t in (0.0, sde.t_max) for v, w in zip(sde.transition(t, t), (1.0, 0.0))]
    yield at_most("transition over no time, at both ends", max(map(abs, still)), 0.0)


@PROCESS.check
def derivatives(sde: SDE) -> Iterator[Finding]:
    """alpha', sigma' and (sigma^2)' are the derivatives of alpha, sigma and sigma^2: central differences, of their scale."""
    for t in _times(sde):
        h = 1e-5 * min(t, sde.t_max - t, 0.1 if sde.knots else math.inf)
        low, m, high = sde.at(t - h), sde.at(t), sde.at(t + h)
        for name, value, slope in (("alpha", lambda u: u.alpha, m.dalpha), ("sigma", lambda u: u.sigma, m.dsigma),
                                   ("sigma^2", lambda u: u.sigma**2, m.dvariance)):
            numeric = (value(high) - value(low)) / (2 * h)
            scale = abs(slope) + 1e-10 * abs(value(m)) / h
            yield at_most(f"({name})' at t={t:.4g}, relative", abs(numeric - slope) / scale if scale else 0.0, 1e-4)


@PROCESS.check
def inverse(sde: SDE) -> Iterator[Finding]:
    """time_of inverts log(alpha/sigma), and level_of stands on it."""
    for t in _times(sde):
        m = sde.at(t)
        back = float(sde.time_of(torch.tensor([m.lam], dtype=F64)))
        speed = abs(m.dalpha / m.alpha - m.dvariance / (2 * m.sigma**2))        # of lambda, whose own rounding is allowed for
        slack = 8 * math.ulp(max(1.0, abs(m.lam))) / speed / t
        yield at_most(f"time_of(lambda(t)) at t={t:.4g}, relative", abs(back / t - 1), 1e-9 + slack)
    lam = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    inside = lam[(lam < sde.at(0.0).lam) & (lam > sde.at(sde.t_max).lam)]
    found = sde.level_of(inside).lam if len(inside) else inside
    yield at_most("lambda of level_of(lambda)", float((found - inside).abs().max()) if len(inside) else 0.0, 1e-8)


@PROCESS.check
def agreement(sde: SDE) -> Iterator[Finding]:
    """One time, a list of times and a tensor of times, in any shape, give the same level; other times are refused."""
    times = _times(sde)
    column = sde.at(torch.tensor(times, dtype=F64)[:, None])
    gap = 0.0
    for i, (t, listed) in enumerate(zip(times, sde.levels(times))):
        alone = sde.at(t)
        gap = max(gap, *(abs(a - b) / (abs(a) or 1.0) for a, b in zip(alone, listed)),
                  *(abs(a - float(b[i, 0])) / (abs(a) or 1.0) for a, b in zip(alone, column)))
    yield at_most("scalar, list and column, relative", gap, 1e-12)
    yield holds("a scalar's level is of floats, a column's float64 (N, 1)",
                all(isinstance(v, float) for v in sde.at(times[0])) and all(v.shape == (len(times), 1) and v.dtype == F64 for v in column))
    for wrong in (-1.0, 2 * sde.t_max + 1, math.nan):
        try:
            sde.at(wrong)
        except ValueError as refusal:
            yield holds(f"at({wrong}): {refusal}", "t=" in str(refusal))
        else:
            yield holds(f"at({wrong}) is refused", math.isinf(sde.t_max) and wrong > 0)


def check_sde(sde: SDE, *, expected_failures: Mapping[str, str] | None = None) -> Report:
    """Nine checks of a forward process: kernel, semigroup, snr, prior, score, ends, derivatives, inverse, agreement. Raises TypeError
    on what is no process."""
    _process(sde)
    return PROCESS.report(type(sde).__name__, "full", sde, expected_failures)


def _process(sde: Any) -> SDE:
    return contracts.instance("sde", sde, SDE, "a forward process, such as sdediff.VPSDE() or your subclass of sdediff.SDE")


# -- a score --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Model:
    score: Score
    sde: SDE
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    tolerance: float
    curl: float | None

    @functools.cached_property
    def levels(self) -> list[NoiseLevel]:
        """Seven levels over the noise range, equally spaced in lambda where it is finite."""
        sde = self.sde
        if sde.knots:
            return sde.levels([float(round(1 + (sde.knots - 1) * k / 6)) for k in range(7)])
        top = sde.t_max if sde.at(sde.t_max).alpha else 0.999 * sde.t_max
        bottom = sde.t_min if sde.at(sde.t_min).sigma else 1e-3 * sde.t_max
        a, b = sde.at(top).lam, sde.at(bottom).lam
        return [sde.at(top), *(sde.level_of(a + (b - a) * k / 6) for k in range(1, 6)), sde.at(bottom)]

    def x(self, level: NoiseLevel, seed: int = 0) -> Tensor:
        """States at the level, of data with unit variance."""
        noise = WhiteNoise(seed, self.shape, dtype=self.dtype, device=self.device)
        return math.hypot(level.alpha, level.sigma) * noise.normal()

    def out(self, x: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        with torch.no_grad():
            p = self.score(x, level)
        if not isinstance(p, Prediction):
            raise TypeError(f"the score returned {type(p).__name__}; expected a Prediction: sdediff.from_network(net), "
                            "sdediff.from_score(fn).")
        return {name: getattr(p, name) for name in p.given}

    def gap(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        if a.keys() != b.keys():
            return math.inf
        far = lambda u, v: float((u.double() - v.double()).abs().max() / (1e-30 + u.double().abs().max()))
        return max(far(a[k], b[k]) if a[k].shape == b[k].shape else math.inf
                   for k in a)


@SCORE.check
def form(m: _Model) -> Iterator[Finding]:
    """What is predicted has x's shape, dtype and device, at every level; x is unchanged."""
    for level in m.levels:
        x = m.x(level)
        kept = x.clone()
        for name, value in m.out(x, level).items():
            like = (value.shape, value.dtype, value.device) == (x.shape, x.dtype, x.device)
            yield holds(f"{name} at t={level.t:.4g} is {tuple(value.shape)} {value.dtype}", like)
        yield holds("x is unchanged", torch.equal(x, kept))


@SCORE.check
def finite(m: _Model) -> Iterator[Finding]:
    """No NaN or inf over the noise range, near the data, and far from it (ten deviations)."""
    for level in m.levels:
        for scale in (0.0, 1.0, 10.0):
            for name, value in m.out(scale * m.x(level), level).items():
                yield holds(f"{name} at t={level.t:.4g}, {scale:g} deviations", bool(torch.isfinite(value).all()))


@SCORE.check
def times(m: _Model) -> Iterator[Finding]:
    """One level for all, and a level per sample, give the same; samples at different levels do not mix."""
    x, column = m.x(m.levels[3]), (m.shape[0], *[1] * (len(m.shape) - 1))
    for level in m.levels:
        per_sample = m.sde.at(torch.full(column, level.t, dtype=F64))
        yield at_most(f"scalar and per-sample t={level.t:.4g}, relative", m.gap(m.out(x, level), m.out(x, per_sample)), m.tolerance)
    mixed = torch.tensor([m.levels[k % 7].t for k in range(m.shape[0])], dtype=F64).reshape(column)
    together = m.out(x, m.sde.at(mixed))
    rows = [m.out(x, m.levels[k % 7]) for k in range(min(7, m.shape[0]))]
    gap = max(m.gap({n: v[k:k + 1] for n, v in row.items()}, {n: v[k:k + 1] for n, v in together.items()}) for k, row in enumerate(rows))
    yield at_most("samples at seven levels in one batch, relative", gap, m.tolerance)


@SCORE.check
def determinism(m: _Model) -> Iterator[Finding]:
    """Two calls agree to the bit and draw nothing (dropout is off); a sample does not depend on its neighbours."""
    level = m.levels[3]
    x, before = m.x(level), torch.random.get_rng_state()
    a, b = m.out(x, level), m.out(x, level)
    yield at_most("two calls, relative", m.gap(a, b), 0.0)
    yield holds("the global random state is untouched", torch.equal(before, torch.random.get_rng_state()))
    half = (m.shape[0] + 1) // 2
    rows = getattr(m.score, "rows", None)
    part = rows(0, half) if rows else m.score
    with torch.no_grad():
        p = part(x[:half], level)
    gap = m.gap({k: v[:half] for k, v in a.items()}, {k: getattr(p, k) for k in a})
    yield at_most("half of the batch alone, relative", gap, m.tolerance)


@SCORE.check
def tweedie(m: _Model) -> Iterator[Finding]:
    """x = alpha x0 + sigma eps with score = -eps/sigma, among all that is predicted."""
    for level in m.levels:
        x = m.x(level)
        with torch.no_grad():
            p = m.score(x, level)
        scale = float(x.abs().max())
        sum_, score = level.alpha * p.x0 + level.sigma * p.eps - x, level.sigma * (level.sigma * p.score + p.eps)
        yield at_most(f"x = alpha x0 + sigma eps at t={level.t:.4g}, of x", float(sum_.abs().max()) / scale, 10 * m.tolerance)
        yield at_most(f"score = -eps/sigma at t={level.t:.4g}, of x", float(score.abs().max()) / scale, 10 * m.tolerance)


@SCORE.check
def curl(m: _Model) -> Iterator[Finding]:
    """The asymmetry |u.Jw - w.Ju| / (|u.Jw| + |w.Ju|) of the Jacobian, by autograd, at its worst level: reported, or bounded on request."""
    u, w = (WhiteNoise(k, m.shape, dtype=m.dtype, device=m.device).normal() for k in (3, 4))
    for level in m.levels[1:-1]:
        with torch.enable_grad():
            x = m.x(level).requires_grad_()
            out = m.score(x, level).score
            ju, jw = (torch.autograd.grad(out, x, v, retain_graph=True)[0] for v in (u, w))       # J^T u, J^T w
        a, b = ((ju * w).flatten(1).sum(1), (jw * u).flatten(1).sum(1)) if x.ndim > 1 else (ju * w, jw * u)
        measured = float((a - b).abs().mean() / (a.abs().mean() + b.abs().mean() + 1e-30))
        case = f"asymmetry of the score's Jacobian at t={level.t:.4g}"
        yield reported(case, measured) if m.curl is None else at_most(case, measured, m.curl)


def _model(score: Score, sde: SDE, shape: Sequence[int], dtype: torch.dtype, device: Any, tolerance: float | None,
           curl: float | None) -> _Model:
    contracts.scored("score", score), _process(sde), contracts.dtype("dtype", dtype)
    for name, value in (("tolerance", tolerance), ("curl", curl)):
        if value is not None:
            contracts.real(name, value, 0.0, low_open=True)
    sizes = contracts.shape("shape", shape)
    if not sizes or sizes[0] < 2:
        raise ValueError(f"shape={sizes}: expected (B, ...) with B >= 2 samples.")
    agree = (1e-12 if dtype == F64 else 2e-5) if tolerance is None else tolerance
    return _Model(score, sde, sizes, dtype, contracts.device("device", "cpu" if device is None else device), agree, curl)


def check_score(score: Score, sde: SDE, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: Any = None,
                tolerance: float | None = None, curl: float | None = None, expected_failures: Mapping[str, str] | None = None) -> Report:
    """Six checks of a score under a process: form, finite, times, determinism, tweedie, curl.

    ``shape`` (B, *D) with B >= 2; ``tolerance``, relative, for two ways to one number (by default 2e-5, 1e-12 in float64); ``curl``, the
    asymmetry of the Jacobian that is allowed (None: reported; 1e-10 for an exact score in float64).
    """
    model = _model(score, sde, shape, dtype, device, tolerance, curl)
    name = getattr(score, "name", None) or getattr(score, "__name__", type(score).__name__)
    return SCORE.report(f"{name} under {type(sde).__name__}", "full", model, expected_failures)


def run_sde_check(name: str, sde: SDE) -> Result:
    """One check of ``check_sde``."""
    return PROCESS.run(name, _process(sde))
