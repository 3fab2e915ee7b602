r"""Inverse problems: samples x_0 that agree with a measurement y = A x_0 + n, n ~ N(0, v I), as a Score made of the prior's.

Were x_0 given x_t Gaussian with covariance C, its mean given y as well would be a Kalman update of the denoiser,

    E[x_0 | x_t, y] = x0 + C A^T (A C A^T + v I)^{-1} (y - A x0),                                           theory, eq. (32)

and Tweedie's second-order formula (theory, eq. (6)) says which C that is: C = sigma^2/alpha J^T, J = d x0/d x_t, a backward pass. Methods
differ in what they put in place of the first C, the gain's direction, and of the second one, the uncertainty of A x0:

                                                        C outside           C inside the inverse
    tweedie   Boys et al. 2023; Rozet et al. 2024       sigma^2/alpha J^T   sigma^2/alpha J^T, by conjugate gradients
    pigdm     Song et al. 2023                          sigma^2/alpha J^T   r^2 I,  r^2 = sigma^2 s^2/(alpha^2 s^2 + sigma^2)
    plug_in   Chung et al. 2023, before its step sizes  sigma^2/alpha J^T   0
    diffpir   Zhu et al. 2023                           r^2 I               r^2 I,  r^2 = (sigma/alpha)^2/strength
    ddnm      Wang et al. 2022                          r^2 I               r^2 I,  r^2 -> infinity: x0 + A^+ (y - A x0)

With both by Tweedie it is exact for Gaussian data; the r^2 of pigdm is C itself for data N(m, s^2 I). None is exact otherwise: benchmarks
and docs measure by how much. As Scores they work with every method. What cannot be said as a Score, for it acts on the state,
are methods of their own, on a score that observes: replacement and RePaint, DPS with the step sizes of its paper, DDRM, and twisted
sequential Monte Carlo, which is exact in the limit of many particles (``solvers.observing``).
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .contracts import MOST, integer, real, shown
from .guidance import Guided
from .operators import Operator, check
from .score import Prediction, Score, cut, pullback, spread
from .sde import NoiseLevel

MEASUREMENT = "measurement"     # the condition's name
TRUST = 10.0                    # sigma/alpha over the data's scale, above which the covariance of the data is all that there is to know


@dataclass(frozen=True)
class Observation:
    """y = A x_0 + N(0, std^2 I). ``y``: (*measured) for all samples, (B, *measured), or None while it is not known yet. ``used``: whether
    what the score says contains it already."""

    operator: Operator
    std: float
    y: Tensor | None = None
    used: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise TypeError(f"operator={shown(self.operator)}: expected an Operator of sdediff.operators, such as Mask(known).")
        real("std", self.std, 0.0, low_open=True, hint="that of the measurement's noise; for exact measurements a small one")
        if self.y is None:
            return
        shape = self.operator.measured
        expected = f"a floating tensor of shape {shape}, or (B, {', '.join(map(str, shape))})"
        if not isinstance(self.y, Tensor) or not self.y.is_floating_point():
            raise TypeError(f"{MEASUREMENT}={shown(self.y)}: expected {expected}.")
        if self.y.shape != shape and self.y.shape[1:] != shape:
            raise ValueError(f"{MEASUREMENT}: got shape {tuple(self.y.shape)}; {type(self.operator).__name__} measures {shape}; expected "
                             f"{expected}.")
        if not bool(torch.isfinite(self.y).all()):
            raise ValueError(f"{MEASUREMENT}: it holds NaN or inf; expected finite values (coordinates that are not measured are the "
                             "operator's to leave out, Mask(known)).")

    def of(self, x: Tensor) -> Tensor:
        """The measurements (B or 1, *measured) of the samples x, in their dtype; a batch that asks about several states of a sample repeats
        them. ValueError where the shapes differ, or none was given."""
        self.operator.fits("x", tuple(x.shape[1:]))
        if self.y is None:
            raise ValueError(f"{MEASUREMENT}: none was given; expected sample(..., conditions={{{MEASUREMENT!r}: y}}) with y of shape (B, "
                             f"{', '.join(map(str, self.operator.measured))}).")
        y = self.y[None] if self.y.ndim == len(self.operator.measured) else spread(self.y, len(x))
        if len(y) not in (1, len(x)):
            raise ValueError(f"{MEASUREMENT}: {len(y)} rows for {len(x)} samples; expected one for each.")
        return y.to(x)

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x0."""
        return self.of(x0) - self.operator.forward(x0)

    def blank(self) -> Observation:
        """The same problem with a measurement of zeros."""
        return dataclasses.replace(self, y=torch.zeros(self.operator.measured, dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class Observed(Guided):
    """A score that carries an observation, for the methods that read it from the equation; it says what the prior says."""

    seen: Observation

    @property
    def observation(self) -> Observation:
        return self.seen

    @property
    def conditions(self) -> Mapping[str, Any]:
        y = self.seen.y
        return {**super().conditions, **({} if y is None or y.ndim == len(self.seen.operator.measured) else {MEASUREMENT: y})}

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.score, "observation", None) is not None:
            raise ValueError("score: it carries a measurement already; expected the prior's score, and all that was measured in one "
                             "operator.")

    def condition(self, **conditions: Any) -> Observed:
        """The same with more conditions; ``measurement`` is the observation's y."""
        own = conditions.pop(MEASUREMENT, None)
        made: Any = super().condition(**conditions) if conditions else self
        return made if own is None else dataclasses.replace(made, seen=dataclasses.replace(self.seen, y=own))

    def rows(self, start: int, stop: int) -> Observed:
        made: Any = super().rows(start, stop)
        y = self.observation.y
        shared = y is None or y.ndim == len(self.observation.operator.measured)
        return made if shared else dataclasses.replace(made, seen=dataclasses.replace(self.seen, y=cut(y, start, stop)))

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        self.observation.of(x)
        return self.score(x, level)


@dataclass(frozen=True)
class Posterior(Observed):
    """Theory, eq. (32). ``inside``: r^2 of the isotropic covariance in the inverse is ``inside`` sigma^2 s^2/(alpha^2 s^2 + sigma^2), s =
    ``scale``. ``jacobian``: whether the gain is along Tweedie's covariance, or along r^2 I. ``iterations``: of conjugate gradients on
    Tweedie's covariance in the inverse as well, in place of r^2 I. ``strength`` multiplies the update. Where sigma/alpha > ``trust``
    ``scale`` the covariance is r^2 I throughout: it is close to the prior's there, while an error of the network in eps enters Tweedie's
    with the factor (sigma/alpha)^2."""

    inside: float = 1.0
    scale: float = 1.0
    jacobian: bool = True
    iterations: int | None = None
    strength: float = 1.0
    trust: float = math.inf

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        seen, m = self.observation, level.to(x)
        if not isinstance(m.sigma, Tensor) and m.sigma == 0:
            return super().__call__(x, level)
        seen.of(x)                              # refused before the network is called
        far = m.alpha * self.trust * self.scale < m.sigma if math.isfinite(self.trust) else m.alpha == 0
        if not self.jacobian or far is True:
            p = self.score(x, level)
            return p.shifted(x0=self.strength * self._isotropic(seen.residual(p.x0), m))
        p, pull = pullback(self.score, x, level)
        residual = seen.residual(p.x0)
        factor = m.sigma**2 / (m.alpha.clamp_min(1e-30) if isinstance(m.alpha, Tensor) else m.alpha)
        shift = factor * pull(self._whitened(residual, m, lambda u: factor * pull(seen.operator.transpose(u))))
        if isinstance(far, Tensor) and bool(far.any()):
            shift = torch.where(far, self._isotropic(residual, m), shift)
        return p.shifted(x0=self.strength * shift)

    def _r2(self, m: NoiseLevel) -> Any:
        if math.isinf(self.scale):
            return self.inside * (m.sigma / m.alpha)**2 if isinstance(m.alpha, Tensor) or m.alpha else math.inf
        return self.inside * m.sigma**2 * self.scale**2 / ((m.alpha * self.scale)**2 + m.sigma**2)

    def _isotropic(self, residual: Tensor, m: NoiseLevel) -> Tensor:
        """r^2 A^T (r^2 A A^T + v I)^{-1} times the residual."""
        return self.observation.operator.gain(residual, _per_sample(self._r2(m)), self.observation.std**2)

    def _whitened(self, residual: Tensor, m: NoiseLevel, tweedie: Callable[[Tensor], Tensor]) -> Tensor:
        """A^T (A C A^T + v I)^{-1} times the residual."""
        a, v = self.observation.operator, self.observation.std**2
        if self.iterations is not None:
            return a.transpose(_conjugate_gradients(lambda u: a.forward(tweedie(u)) + v * u, residual, v, self.iterations))
        if self.inside == 0:
            return a.transpose(residual) / v
        return a.whitened(residual, _per_sample(self._r2(m)), v)


def _per_sample(r2: Any) -> Any:
    return r2.flatten() if isinstance(r2, Tensor) else r2


def _conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, least: float, iterations: int) -> Tensor:
    """M^{-1} b for each sample, ``product`` u -> M u, M symmetric with no eigenvalue below ``least`` (Hestenes & Stiefel 1952). Where
    rounding or a network's Jacobian says otherwise, ``least`` bounds the step."""
    dot = lambda a, c: (a * c).flatten(1).sum(1).reshape(-1, *[1] * (b.ndim - 1))
    tiny = torch.finfo(b.dtype).tiny
    u, r, p, rr = torch.zeros_like(b), b, b, dot(b, b)
    for _ in range(iterations):
        q = product(p)
        step = rr / torch.maximum(dot(p, q), least * dot(p, p)).clamp_min(tiny)
        u, r = u + step * p, r - step * q
        rr, old = dot(r, r), rr
        p = r + rr / old.clamp_min(tiny) * p
    return u


def observe(score: Score, operator: Operator, std: float, y: Tensor | None = None) -> Observed:
    """``score`` with an observation, for methods that act on the state: method="replacement", "repaint", "dps", "ddrm", "smc".

        seen = sdediff.inverse.observe(score, sdediff.operators.Mask(known), std=0.05)
        x = sdediff.sample(sde, seen, shape=(64, 2), method="smc", steps=100, conditions={"measurement": y})

    Parameters
    ----------
    operator : A, of ``sdediff.operators`` or your own; it is refused unless A^T is its transpose and its decomposition is its own.
    std : of the measurement's noise, > 0.
    y : (*measured) for all samples, or (B, *measured); or ``conditions={"measurement": y}`` of ``sample``, a row for each sample.

    Raises TypeError or ValueError where the operator, std or y are not as they must be; before the network is called, where x has another
    shape than the operator measures.
    """
    return Observed(score, dataclasses.replace(_checked(operator, std, y, True), used=False))


def plug_in(score: Score, operator: Operator, std: float, y: Tensor | None = None, *, strength: float = 1.0) -> Posterior:
    """The denoiser plugged into the likelihood, p(y|x_t) by N(y; A x0, v I), as diffusion posterior sampling is derived (Chung et al. 2023,
    eq. 11). Stiff where ``std`` is small; method="dps" has the step sizes of the paper's algorithm. Arguments as for ``observe``;
    ``strength`` multiplies the update."""
    return Posterior(score, _checked(operator, std, y, False), 0.0, strength=_strength(strength))


def pigdm(score: Score, operator: Operator, std: float, y: Tensor | None = None, *, scale: float = 1.0, strength: float = 1.0,
          trust: float = TRUST) -> Posterior:
    """Pseudo-inverse guidance: A x0 is uncertain by r^2 A A^T, exact for data N(m, scale^2 I) (Song et al. 2023, eq. 7). ``scale``: the
    data's standard deviation. ``trust``: the noise level sigma/alpha, in units of ``scale``, above which the network's Jacobian is not used
    (``math.inf``: it always is, which suits exact scores); otherwise as ``observe``."""
    return Posterior(score, _checked(operator, std, y, True), scale=real("scale", scale, 0.0, low_open=True), strength=_strength(strength),
                     trust=_trust(trust))


def tweedie(score: Score, operator: Operator, std: float, y: Tensor | None = None, *, iterations: int = 2,
            scale: float = 1.0, trust: float = TRUST) -> Posterior:
    """The posterior covariance by Tweedie's formula, solved for by ``iterations`` of conjugate gradients, a backward pass each (Boys et al.
    2023; Rozet et al. 2024). As many as there are measured numbers, and ``trust=math.inf``, are exact for Gaussian data; a network's
    Jacobian is neither symmetric nor positive, and few iterations keep its faults out. ``scale`` and ``trust`` as for ``pigdm``, which it
    is above that noise level; otherwise as ``observe``."""
    seen = _checked(operator, std, y, True)
    return Posterior(score, seen, scale=real("scale", scale, 0.0, low_open=True), iterations=integer("iterations", iterations, 1, MOST),
                     trust=_trust(trust))


def diffpir(score: Score, operator: Operator, std: float, y: Tensor | None = None, *, strength: float = 1.0) -> Posterior:
    """Plug-and-play restoration: x0 moved to the minimum of |y - A x|^2/v + strength (alpha/sigma)^2 |x - x0|^2, without a backward pass
    (Zhu et al. 2023, eq. 12; ``strength`` is its lambda). Otherwise as ``observe``."""
    return Posterior(score, _checked(operator, std, y, True), 1 / _strength(strength), math.inf, jacobian=False)


def ddnm(score: Score, operator: Operator, std: float, y: Tensor | None = None) -> Posterior:
    """Range-null space: x0 + A^+ (y - A x0), which takes y for exact (Wang et al. 2022, eq. 13). Arguments as for ``observe``."""
    return Posterior(score, _checked(operator, std, y, True), math.inf, jacobian=False)


#: The guidances by name; each is called (score, operator, std, y, **options).
GUIDANCES: dict[str, Callable[..., Posterior]] = {"tweedie": tweedie, "pigdm": pigdm, "plug_in": plug_in, "diffpir": diffpir, "ddnm": ddnm}


def _checked(operator: Any, std: float, y: Tensor | None, decomposition: bool) -> Observation:
    seen = Observation(operator, std, y, used=True)
    check(operator, decomposition=decomposition)
    return seen


def _trust(value: float) -> float:
    return real("trust", value, 0.0, infinite=True)


def _strength(value: float) -> float:
    return real("strength", value, 0.0, low_open=True)
