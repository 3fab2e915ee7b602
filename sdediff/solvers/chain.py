r"""The discrete chain samplers, DDPM and DDIM, between any two levels.

With h = lambda_s - lambda_t and fresh = 1 - e^{-2h}, the share of the noise at t that a forward step s -> t has put there,

    x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 fresh) eps + eta std xi,   std = sigma_s sqrt(fresh)  ("posterior", beta tilde)
                                                                    or   std = sigma_t sqrt(fresh)  ("beta"): theory, eq. (18).

Adding alpha_s fresh Cov(x_0 | x_t)^{1/2} xi' makes the reverse covariance the optimal one: exact for Gaussian data at any number of
steps. References: Ho et al. 2020 (eq. 6-7), Song et al. 2021a (eq. 12), Bao et al. 2022 (arXiv:2201.06503, Analytic-DPM).
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contracts import choice, function, instance, integer, real, state
from ..equation import ReverseSDE
from ..random import Noise, WhiteNoise
from ..score import Prediction, Score
from ..sde import A_PROCESS, SDE, NoiseLevel
from .base import Solver, State
from .rosenbrock import linearised, rows


@dataclass(frozen=True)
class DDIM(Solver):
    """Theory, eq. (18). ``eta`` is Song's, in [0, 1]: 0 is DDIM, 1 the DDPM chain.

    ``variance``: "posterior", "beta", "optimal" (eta = 1: the full posterior covariance sigma_t^2/alpha_t d x0/dx, from the
    model's Jacobian, d backward passes a step for d coordinates), or a function of the level: the mean variance of a coordinate
    of x_0 given x_t (Analytic-DPM; ``analytic_variance`` estimates it from data). Without a posterior covariance no noise is
    added into sigma = 0.
    """

    eta: float = 0.0
    variance: str | Callable[[NoiseLevel], float] = "posterior"

    def __post_init__(self) -> None:
        real("eta", self.eta, 0.0, 1.0, hint="Song's eta; the continuous family is ReverseSDE(eta=)")
        if not callable(self.variance):
            choice("variance", self.variance, ("posterior", "beta", "optimal"))
        if self.eta != 1 and (callable(self.variance) or self.variance == "optimal"):
            raise ValueError(f"eta={self.eta}: a reverse covariance beyond the posterior's belongs to the DDPM chain; expected eta=1.")

    @property
    def noise(self) -> str:                                                                  # type: ignore[override]
        return "always" if self.eta else "never"

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if s.t == t.t:
            return state
        p, root = (_with_covariance if self.variance == "optimal" else _without)(eq, state.x, t)
        fresh = -math.expm1(2 * (t.lam - s.lam))
        x = s.alpha * p.x0 if s.alpha else 0.0
        kept = s.sigma * (math.sqrt(max(0.0, 1 - self.eta**2 * fresh)) if self.eta else 1.0)        # fresh = -inf upwards from sigma = 0
        if kept:
            x = x + kept * p.eps
        std = self.eta * (t if self.variance == "beta" and s.sigma else s).sigma * math.sqrt(max(0.0, fresh))
        if callable(self.variance):
            std = math.hypot(std, s.alpha * fresh * math.sqrt(real("variance(level)", self.variance(t), 0.0)))
        if std:
            x = x + std * noise.unit(t, s)                                                   # type: ignore[union-attr]
        if root is not None:
            x = x + s.alpha * fresh * root(noise.normal(5))                                  # type: ignore[union-attr]
        return State(x, (), p)

    def accepts(self, eq: ReverseSDE) -> None:
        if eq.eta not in (0, self.eta):
            raise ValueError(f"eta={eq.eta!r}: DDIM carries its own eta={self.eta}; expected an equation with eta=0, or "
                             "DDIM(eta=...), or Exponential(nodes=1) for the continuous family.")


def _without(eq: ReverseSDE, x: Any, t: NoiseLevel) -> tuple[Prediction, None]:
    return eq.predict(x, t), None


def _with_covariance(eq: ReverseSDE, x: Any, t: NoiseLevel) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """The prediction, and the product with the root of Cov(x_0 | x_t) = sigma^2/alpha dx0/dx (second-order Tweedie)."""
    if t.alpha == 0:
        raise ValueError(f"t={t.t:g}: alpha = 0, where the posterior covariance is that of the data and no Jacobian shows it; "
                         "start later (t_start=).")
    p, jacobian = linearised(eq, x, t)
    values, vectors = torch.linalg.eigh((jacobian + jacobian.mT) / 2 * (t.sigma**2 / t.alpha))
    root = vectors * values.clamp_min(0).sqrt()[:, None]
    return p, lambda xi: (root @ rows(xi)[..., None]).view_as(xi)


def analytic_variance(sde: SDE, score: Score, data: Tensor, *, seed: int = 0) -> Callable[[NoiseLevel], float]:
    """The mean posterior variance of a coordinate, E|x_0 - E[x_0 | x_t]|^2/d, estimated from data (N, *D) noised once per level. For
    ``method("ddpm", variance=...)``. Bao et al. 2022, whose form sigma^2/alpha^2 (1 - sigma^2 E|score|^2/d) is equal and cancels."""
    instance("sde", sde, SDE, A_PROCESS), function("score", score, "target.score, or sdediff.from_network(net)")
    state("data", data, 2), integer("seed", seed, 0)

    @functools.cache
    def variance(level: NoiseLevel) -> float:
        with torch.no_grad():
            x = level.alpha * data + level.sigma * WhiteNoise(seed, data.shape, dtype=data.dtype, device=data.device).initial()
            return float((score(x, level).x0 - data).square().mean())
    return variance
