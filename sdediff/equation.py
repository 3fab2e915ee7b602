r"""The reverse-time equation that a solver integrates, from the noisy end down to the data.

For every eta >= 0 the equation

    dx = [f x - (1 + eta^2)/2 g^2 grad log p_t(x)] dt + eta g dW        (time runs from t_max down to 0)     theory, eq. (9)

has the marginals of the forward process: eta = 0 is the probability-flow ODE, eta = 1 Anderson's reverse SDE, and Karras'
churn and SA-Solver's tau are this family. Two faces: ``drift`` and ``diffusion`` for black-box methods, ``predict`` for those
that integrate the linear part exactly.

*Density.* Along the probability flow dx/dt = v the log density l = log p_t(x) is one more coordinate without a linear part of its own,

    d(x, l)/dt = (v, -div v).                                                                                 theory, eq. (25)

Every quantity of a model is linear in (x, v), hence so is that of the pair: an x0, an eps for l follow from (l, -div v) as they do for
x from (x, v), and the pair obeys the semilinear equation of the process. So a solver of any kind moves it, to its own order, and moves x
as it does without l. Several coordinates l_i, one for each of several estimates of div v, ride along as well as one.

References: Anderson 1982; Song et al. 2021, App. D; Huang et al. 2021; Karras et al. 2022, eq. 6; Zhang & Chen 2023; Chen et al. 2018
(arXiv:1806.07366), Thm 1 for the density.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .contracts import instance, real
from .score import Prediction, Score, differentiated
from .sde import A_PROCESS, SDE, NoiseLevel


@dataclass(frozen=True)
class ReverseSDE:
    """The equation of theory, eq. (9). ``eta``: a number >= 0 or a function of the level (one of tensors for methods whose samples differ
    in time); ``score``: (x, level) -> Prediction."""

    sde: SDE
    score: Score
    eta: float | Callable[[NoiseLevel], Any] = 0.0

    def __post_init__(self) -> None:
        instance("sde", self.sde, SDE, A_PROCESS)
        if not callable(self.score):
            raise TypeError(f"score={type(self.score).__name__}: expected a callable (x, level) -> Prediction; "
                            "sdediff.from_network(net, predicts='eps') makes one.")
        if not callable(self.eta):
            real("eta", self.eta, 0.0)

    def at(self, t: float | Tensor) -> NoiseLevel:
        """The noise level at time t."""
        return self.sde.at(t)

    def eta_at(self, level: NoiseLevel) -> Any:
        """eta at a level: a float >= 0; for per-sample levels and a function, a float64 tensor shaped as their times."""
        if not callable(self.eta):
            return self.eta
        if isinstance(level.t, Tensor) and level.t.ndim:
            return self._eta_per_sample(level)
        return real("eta(level)", self.eta(level), 0.0)

    def _eta_per_sample(self, level: NoiseLevel) -> Tensor:
        works = "expected numbers >= 0 from tensors of times, such as eta=lambda level: torch.where(level.t < 0.5, 1.0, 0.0)"
        try:
            eta = torch.as_tensor(self.eta(level), dtype=torch.float64, device=level.t.device).expand(level.t.shape)  # type: ignore[operator]
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"eta(level) on levels that differ per sample: {str(error).splitlines()[0]}; {works}.") from error
        if eta.device.type == "cpu" and not bool(((eta >= 0) & torch.isfinite(eta)).all()):        # elsewhere it would wait for the device
            raise ValueError(f"eta(level)={eta.min().item()}..{eta.max().item()}: {works}.")
        return eta

    @property
    def is_ode(self) -> bool:
        """Whether eta = 0 throughout: the probability-flow ODE."""
        return not callable(self.eta) and self.eta == 0

    @property
    def observation(self) -> Any:
        """The measurement y = A x_0 + noise that samples are to agree with, of a score that carries one (``inverse``); else None."""
        return getattr(self.score, "observation", None)

    def predict(self, x: Any, level: NoiseLevel) -> Prediction:
        """What the model says about x (B, *D) at the level: one network evaluation."""
        return self.score(x, level)

    def drift(self, x: Any, level: NoiseLevel) -> Any:
        """The bracket of theory, eq. (9), shaped as x and of its dtype. Finite at alpha = 0 for eta = 0 alone; there eta > 0 is a
        ValueError."""
        eta = self.eta_at(level)
        flow = not isinstance(eta, Tensor) and eta == 0
        if not flow:
            self._refuse_alpha_zero(level)      # before the network is called
        p = self.predict(x, level)
        v = p.velocity if flow else p.velocity - _like(x, 0.5 * eta**2 * level.g2) * p.score
        return _like(x, v)

    def diffusion(self, level: NoiseLevel) -> Any:
        """eta g at the level."""
        eta = self.eta_at(level)
        if not isinstance(eta, Tensor) and eta == 0:
            return 0.0
        self._refuse_alpha_zero(level)
        return eta * (level.g2.sqrt() if isinstance(level.g2, Tensor) else math.sqrt(level.g2))

    def _refuse_alpha_zero(self, level: NoiseLevel) -> None:
        if not isinstance(level.alpha, Tensor) and level.alpha == 0:
            raise ValueError(f"t={level.t:g}: alpha = 0, where drift and diffusion of the SDE are infinite; start a black-box "
                             "method later (t_start=), take eta=0, or an exponential method such as 'ddpm' or 'dpm++2m-sde'.")


def _like(x: Any, value: Any) -> Any:
    """A per-sample tensor in x's dtype and device; a float, and a vector that is no tensor, as they are."""
    return value.to(x) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class ExplodedSDE(SDE):
    """alpha = 1, sigma(t) = t without an upper end: the chart in which every process becomes the same one."""

    t_max: float = math.inf

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


def exploded(eq: ReverseSDE) -> ReverseSDE:
    """The same equation for y = x/alpha in the clock sigma/alpha: dy = (1 + eta^2) eps d(sigma/alpha) + noise, without a linear
    part (Karras et al. 2022, eq. 1; Song et al. 2021a, eq. 14). Any solver may run on it. Levels with alpha = 0 lie at infinity."""
    def score(y: Any, level: NoiseLevel) -> Prediction:
        inner = eq.sde.level_of(level.lam)
        alpha = _like(y, inner.alpha)
        return eq.predict(alpha * y, inner).rescaled(y, level.to(y), 1 / alpha)

    eta = eq.eta
    if callable(eta):
        outer = eta
        eta = lambda level: outer(eq.sde.level_of(level.lam))
    return dataclasses.replace(eq, sde=ExplodedSDE(), score=score, eta=eta)


class _Joint(Prediction):
    """What is said about a flat vector (B, d + n) made of parts: each converts for itself."""

    __slots__ = ("parts",)

    def __init__(self, z: Tensor, level: NoiseLevel, *parts: Prediction) -> None:
        self.x, self.level, self.given, self._known, self.parts = z, level, (), {}, parts

    def _get(self, name: str, convert: Callable[[], Any]) -> Tensor:
        return super()._get(name, lambda: torch.cat([_rows(getattr(p, name)) for p in self.parts], 1))


def _rows(x: Tensor) -> Tensor:
    """(B, *D) as (B, d), also where B = 0 or D = ()."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def with_density(eq: ReverseSDE, event: Sequence[int], divergence: Callable[[Tensor, Tensor, bool], Tensor]) -> ReverseSDE:
    """Theory, eq. (25) as an equation for z = (x, l_1 .. l_n), a flat tensor (B, d + n), x of shape (B, *event) first.

    ``divergence``: (v, x, graph) -> (B, n), n values or estimates of div v at x, by differentiating v, which is a function of x row by row.
    It is called with gradients enabled, ``graph`` where its result must be differentiable too: gradients with respect to z flow where
    they are asked for; a network that gives none raises NetworkError. ValueError for an equation with eta > 0. TypeError for the symbols of
    a coefficient table.
    """
    if not eq.is_ode:
        raise ValueError(f"eta={eq.eta!r}: the density is carried by the probability flow alone; expected eta=0.")
    d = math.prod(event)

    def score(z: Tensor, level: NoiseLevel) -> Prediction:
        if not isinstance(z, Tensor):
            raise TypeError("the density needs the model's Jacobian, so this equation has no coefficient table.")
        tracked = torch.is_grad_enabled() and z.requires_grad
        with differentiated():
            m = NoiseLevel(*(v.reshape(-1, *[1] * len(event)).clone() if isinstance(v, Tensor) and v.ndim else v for v in level))
            x = z[:, :d].reshape(len(z), *event) if tracked else z[:, :d].reshape(len(z), *event).clone().requires_grad_().clone()
            p = eq.predict(x, m)
            change = -divergence(p.velocity, x, tracked)
        if not tracked:
            p, change = Prediction(x.detach(), p.level, **{k: p._known[k].detach() for k in p.given}), change.detach()
        flat = level.to(z)
        return _Joint(z, flat, p, Prediction(z[:, d:], flat, velocity=change))

    return dataclasses.replace(eq, score=score)
