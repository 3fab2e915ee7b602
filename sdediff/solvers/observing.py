r"""Samplers that act on the state so that it agrees with their equation's measurement, y = A x_0 + N(0, v I) (``eq.observation``).

With A = U diag(s) V^T, the coordinates V^T x_t that A sees are measured, each by itself, as (U^T y)_i/s_i with variance v/s_i^2.

    replacement   after a step, measured coordinates are drawn anew: alpha ybar_i + N(0, sigma^2 - alpha^2 v/s_i^2), where that is positive
    repaint       the same, and stretches of the grid are noised back and solved again, so that the rest can agree
    dps           after a step, one gradient step on |y - A x0(x_t)|
    ddrm          a step of its own in these coordinates, each pulled to its measurement according to its noise
    smc           a cloud of particles, weighted and resampled: exact in the limit of many

*Twisted sequential Monte Carlo.* With psi_t(x_t) = N(y; A x0(x_t), r_t^2 A A^T + v I), an estimate of p(y|x_t) that is exact at
sigma = 0, a particle moves by the DDPM kernel p(x_s|x_t) with its denoiser updated by sigma^2/alpha grad log psi_t, its weight by

    w <- w  p(x_s|x_t) psi_s(x_s) / (q(x_s|x_t) psi_t(x_t)),        w = psi_T(x_T) at the start,        theory, eq. (33)

so that, whatever psi is before the end, weighted averages converge to those under p(x_0) p(y|x_0)/p(y), with p(x_0) the law of the DDPM
sampler on this grid, and the mean weight to p(y). Clouds are resampled, systematically, when their effective sample size 1/sum W^2 falls
below a share of their size, and at the end. A cloud is ``particles`` consecutive samples: they depend on one another, clouds do not.

References: Song et al. 2021, App. I.2 (replacement); Lugmayr et al. 2022 (arXiv:2201.09865), Alg. 1; Chung et al. 2023 (arXiv:2209.14687),
Alg. 1; Kawar et al. 2022 (arXiv:2201.11793), eq. 7-8; Wu et al. 2023 (arXiv:2306.17775), Alg. 1; Douc & Cappe 2005 (systematic resampling).
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contracts import MOST, integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction, pullback
from ..sde import NoiseLevel
from .base import Solver, State
from .renoising import forward

_FRESH, _RESAMPLE = 8, 9        # uses of the noise source


@dataclass(frozen=True)
class Observing(Solver):
    """A solver whose equation must carry an observation. It converges to no posterior by refining the grid, and has no table."""

    order = None
    noise = "always"

    @property
    def weak_order(self) -> None:
        return None

    def accepts(self, eq: ReverseSDE) -> None:
        if eq.observation is None:
            raise ValueError(f"score: {type(self).__name__} needs a measurement, and this score carries none; expected "
                             "sdediff.inverse.observe(score, operator, std=0.1), with conditions={'measurement': y}.")
        if eq.observation.used:
            raise ValueError(f"score: it is guided by the measurement already, which {type(self).__name__} would count twice; expected "
                             "sdediff.inverse.observe(score, operator, std=0.1), or a method such as 'dpm++2m-sde'.")
        if not eq.is_ode:
            raise ValueError(f"eta={eq.eta!r}: {type(self).__name__} adds noise of its own; expected an equation with eta=0.")

    @staticmethod
    def vector(x: Any) -> Tensor:
        """x, unless it is the symbol of one. That is a TypeError, for there is no coefficient table."""
        if not isinstance(x, Tensor):
            raise TypeError("the step reads a measurement, so it has no coefficient table.")
        return x


@dataclass(frozen=True)
class _Around(Observing):
    """An observing solver around a one-step solver."""

    inner: Solver

    @property
    def adaptive(self) -> bool:                                                              # type: ignore[override]
        return self.inner.adaptive

    def over(self, levels: Sequence[NoiseLevel]) -> Observing:
        # the state is moved off the path along which an inner solver might have run ahead
        return self if self.inner.looks_ahead else dataclasses.replace(self, inner=self.inner.over(levels))

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Solver) or self.inner.remembers or isinstance(self.inner, Observing):
            raise ValueError(f"inner={self.inner!r}: expected a one-step solver that reads no measurement, such as DDIM(1.0); a memory "
                             "would hold evaluations of states that were changed since.")

    def accepts(self, eq: ReverseSDE) -> None:
        super().accepts(eq)
        self.inner.accepts(eq)


@dataclass(frozen=True)
class Replacement(_Around):
    """Replacement, and with ``repeats`` > 1 RePaint: whenever ``jump`` steps are done, noise lifts the state back over them and they are
    solved again, ``repeats`` times in all, and so are the steps that are left at the end. Lugmayr et al. 2022 have repeats=10, jump=10
    on 250 steps; calls are ``repeats`` times the steps."""

    repeats: int = 1
    jump: int = 1
    levels: tuple[NoiseLevel, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("repeats", self.repeats, 1, MOST)
        integer("jump", self.jump, 1, MOST)

    def over(self, levels: Sequence[NoiseLevel]) -> Observing:
        return dataclasses.replace(super().over(levels), levels=tuple(levels))                # type: ignore[call-arg]

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        x, k = self._once(eq, self.vector(state.x), t, s, noise), 0
        end = next((i for i, m in enumerate(self.levels) if m.t == s.t), 0)
        done = end and (end % self.jump == 0 or end == len(self.levels) - 1)
        stretch = self.levels[(end - 1) // self.jump * self.jump:end + 1] if done else ()
        for _ in range(self.repeats - 1 if stretch else 0):
            again = noise.within()                                                           # type: ignore[union-attr]
            x, k = forward(x, stretch[-1], stretch[0], again.at(k).normal(_FRESH)), k + 1
            for a, b in pairwise(stretch):
                x, k = self._once(eq, x, a, b, again.at(k)), k + 1
        return State(x)

    def _once(self, eq: ReverseSDE, x: Tensor, t: NoiseLevel, s: NoiseLevel, noise: Any) -> Tensor:
        x, seen = self.inner.step(eq, State(x), t, s, noise).x, eq.observation
        a = seen.operator
        variance = s.sigma**2 - (s.alpha * seen.std / a.singular)**2
        drawn = a.scaled(a.left(seen.of(x)), s.alpha / a.singular) + a.scaled(a.right(noise.normal(_FRESH)), variance.clamp_min(0).sqrt())
        return x + a.back(a.scaled(drawn - a.right(x), (variance > 0).double()))


@dataclass(frozen=True)
class DPS(_Around):
    """Diffusion posterior sampling with the step size of its algorithm: x - zeta grad |y - A x0(x_t)|^2/|y - A x0|, so zeta times twice
    the gradient of the norm, after each step of ``inner``. The paper's zeta, 0.3 to 1, is for 1000 steps."""

    zeta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        real("zeta", self.zeta, 0.0, low_open=True)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        """The inner solver's step, and a gradient step on the misfit. Raises ValueError where the state leaves the finite numbers."""
        p, pull = pullback(eq.score, self.vector(state.x), t)
        known, residual = [p], eq.observation.residual(p.x0)

        def score(x: Any, level: NoiseLevel) -> Prediction:     # p where it is asked for, and its value alone
            here = not isinstance(level.t, Tensor) and math.isclose(level.t, t.t, rel_tol=1e-9) and not x.requires_grad
            return known.pop() if known and here else eq.predict(x, level)

        again = dataclasses.replace(eq, score=score)
        norm = residual.flatten(1).norm(dim=1).clamp_min(torch.finfo(residual.dtype).tiny).reshape(-1, *[1] * (residual.ndim - 1))
        uphill = -pull(eq.observation.operator.transpose(residual / norm))
        x = self.inner.step(again, State(state.x), t, s, noise).x - 2 * self.zeta * uphill
        if x.device.type == "cpu" and not bool(torch.isfinite(x).all()):
            raise ValueError(f"zeta={self.zeta!r}: the state left the finite numbers at t={s.t:g}; expected a smaller one.")
        return State(x, (), p)


@dataclass(frozen=True)
class DDRM(Observing):
    """Denoising diffusion restoration. In x/alpha with kappa = sigma/alpha, a coordinate measured with noise n_i = std/s_i goes to

        x0_i + sqrt(1 - eta^2) kappa (ybar_i - x0_i)/n_i + eta kappa xi        kappa < n_i
        (1 - eta_b) x0_i + eta_b ybar_i + sqrt(kappa^2 - eta_b^2 n_i^2) xi     else

    and one that is not measured takes a DDIM step with noise eta kappa."""

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        real("eta", self.eta, 0.0, 1.0)
        real("eta_b", self.eta_b, 0.0, 1.0)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        seen, p, z = eq.observation, eq.predict(self.vector(state.x), t), noise.normal(_FRESH)               # type: ignore[union-attr]
        a, kappa, keep = seen.operator, s.sigma / s.alpha, math.sqrt(1 - self.eta**2)
        n, c0 = seen.std / a.singular, a.right(p.x0)
        off, xi, far = a.scaled(a.left(seen.of(p.x0)), 1 / a.singular) - c0, a.right(z), kappa >= n
        pulled = a.scaled(off, torch.where(far, self.eta_b, keep * kappa / n))
        fresh = a.scaled(xi, torch.where(far, (kappa**2 - (self.eta_b * n)**2).clamp_min(0).sqrt(), self.eta * kappa))
        rest = p.x0 + kappa * (keep * p.eps + self.eta * z)
        return State(s.alpha * (rest + a.back(c0 + pulled + fresh - a.right(rest))), (), p)


class Cloud(NamedTuple):
    """Particles at a level, with their twist: ``shift`` of x0 and ``log_psi`` (B,); ``log_w`` (B,), their weights since the last
    resampling; ``ess`` (clouds,) at every level so far; ``log_evidence`` (clouds,) up to the last resampling."""

    p: Prediction
    shift: Tensor
    log_psi: Tensor
    log_w: Tensor
    ess: tuple[Tensor, ...]
    log_evidence: Tensor


@dataclass(frozen=True)
class TwistedSMC(Observing):
    """Sequential Monte Carlo with twisted proposals. ``particles`` of a cloud (None: the whole batch); ``threshold``: the effective sample
    size, as a share of the cloud, below which it is resampled; ``scale``: s of r_t^2 = sigma^2 s^2/(alpha^2 s^2 + sigma^2). Where
    sigma/alpha > ``trust`` s the proposal takes r_t^2 I for the covariance of x_0, not the score's Jacobian: weights mend it."""

    particles: int | None = 64
    threshold: float = 0.5
    scale: float = 1.0
    trust: float = dataclasses.field(default=10.0, metadata={"infinite": True})
    last: float = dataclasses.field(default=math.nan, repr=False)

    def __post_init__(self) -> None:
        if self.particles is not None:
            integer("particles", self.particles, 1, MOST)
        real("threshold", self.threshold, 0.0, 1.0)
        real("scale", self.scale, 0.0, low_open=True)
        real("trust", self.trust, 0.0, infinite=True)

    @property
    def couples(self) -> int | None:                                                         # type: ignore[override]
        """The number of particles of a cloud."""
        return self.particles

    def over(self, levels: Sequence[NoiseLevel]) -> TwistedSMC:
        return dataclasses.replace(self, last=levels[-1].t)

    def smallest(self) -> TwistedSMC:
        return dataclasses.replace(self, particles=1)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        cloud = state.memory[0][1] if state.memory else self._begin(eq, self.vector(state.x), t)
        x, z = cloud.p.x, noise.unit(t, s)                                                   # type: ignore[union-attr]
        share = -math.expm1(2 * (t.lam - s.lam))                        # 1 - e^{-2h}; 1 from alpha = 0 and to sigma = 0
        std, c0 = s.sigma * math.sqrt(share), s.alpha * share
        mean = math.sqrt(1 - share) * s.sigma / t.sigma * x + c0 * cloud.p.x0 if share < 1 else c0 * cloud.p.x0
        delta = c0 * cloud.shift if std else torch.zeros_like(x)        # a step without noise cannot be twisted
        p, shift, log_psi = self._twist(eq, mean + delta + std * z, s)
        log_w = cloud.log_w + log_psi - cloud.log_psi
        if std:
            log_w = log_w - ((delta / std).double().square() / 2 + (delta / std).double() * z).flatten(1).sum(1)
        return self._settled(cloud._replace(p=p, shift=shift, log_psi=log_psi, log_w=log_w), s, noise)

    def _begin(self, eq: ReverseSDE, x: Tensor, t: NoiseLevel) -> Cloud:
        size = self.particles or len(x)
        p, shift, log_psi = self._twist(eq, x, t)
        return Cloud(p, shift, log_psi, log_psi, (), log_psi.new_zeros(len(x) // size if size else 0))

    def _twist(self, eq: ReverseSDE, x: Tensor, m: NoiseLevel) -> tuple[Prediction, Tensor, Tensor]:
        """What is said about x; sigma^2/alpha grad log psi; log psi (B,), normalised at sigma = 0."""
        seen = eq.observation
        pull: Callable[[Tensor], Tensor] = torch.zeros_like
        far = m.sigma > m.alpha * self.trust * self.scale or not m.alpha
        if m.sigma == 0:
            p: Prediction = Prediction(x, m, x0=x / m.alpha)
        elif far:
            p = eq.predict(x, m)
        else:
            p, pull = pullback(eq.score, x, m)
        a, v, residual = seen.operator, seen.std**2, seen.residual(p.x0)
        r2 = m.sigma**2 * self.scale**2 / ((m.alpha * self.scale)**2 + m.sigma**2)
        shift = a.gain(residual, r2, v) if far else m.sigma**2 / m.alpha * pull(a.whitened(residual, r2, v))
        log_det = float(torch.log1p(r2 / v * a.singular**2).sum()) + math.prod(a.measured) * math.log(2 * math.pi * v)
        return p, shift, -0.5 * (a.energy(residual, r2, v) + log_det)

    def _settled(self, cloud: Cloud, s: NoiseLevel, noise: Any) -> State:
        """The state at s, its clouds resampled where that is due."""
        x, size = cloud.p.x, self.particles or max(1, len(cloud.p.x))
        log_w = cloud.log_w.reshape(-1, size)
        w, end = log_w.softmax(1), s.t == self.last
        ess = 1 / w.square().sum(1)
        due = ess < (self.threshold * size if not end else size * (1 - 1e-9))
        cloud = cloud._replace(ess=(*cloud.ess, ess))
        if bool(due.any()):
            first = noise.normal(_RESAMPLE).flatten(1)[::size, :1].double()          # a cloud's uniform is its first particle's
            place = (torch.arange(size, device=x.device) + torch.special.ndtr(first)) / size
            chosen = torch.searchsorted(w.cumsum(1), place).clamp(max=size - 1)
            chosen = torch.where(due[:, None], chosen, torch.arange(size, device=x.device))
            rows = (chosen + size * torch.arange(len(w), device=x.device)[:, None]).flatten()
            p = Prediction(x[rows], s, **{k: cloud.p._known[k][rows] for k in cloud.p.given})
            gathered = torch.where(due, log_w.logsumexp(1) - math.log(size), 0.0)
            cloud = cloud._replace(p=p, shift=cloud.shift[rows], log_psi=cloud.log_psi[rows], log_evidence=cloud.log_evidence + gathered,
                                   log_w=torch.where(due[:, None], 0.0, log_w).flatten())
        return State(cloud.p.x, ((s, cloud),), cloud.p)

    def diagnostics(self, state: State) -> dict[str, Tensor]:
        """``ess`` (steps, clouds), effective sample sizes before resampling; ``log_evidence`` (clouds,), estimates of log p(y) in nats, of
        which the exponentials are unbiased; at an end with sigma > 0, of y = A x0(x) + N(0, r^2 A A^T + v I). Where ``ess`` comes near 1
        the law of the estimate has a heavy tail, and most runs lie below its mean: more steps, more particles, or ``trust=0``."""
        if not state.memory:
            return {}
        cloud = state.memory[0][1]
        size = self.particles or max(1, len(state.x))
        pending = cloud.log_w.reshape(-1, size).logsumexp(1) - math.log(size)
        return {"ess": torch.stack(cloud.ess), "log_evidence": cloud.log_evidence + pending}
