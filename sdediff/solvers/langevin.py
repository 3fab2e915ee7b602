r"""Langevin correctors: MCMC on p_s at a fixed level, x <- x + h score + sqrt(2 h) z: theory, eq. (24).

A corrector is a step of zero duration: it moves x at s and leaves time alone. On N(0, v) the stationary variance is
v / (1 - h/(2 v)), stable for h < 2 v; the Metropolis correction makes it v. References: Song & Ermon 2019; Song et al. 2021,
Alg. 4-5; Roberts & Tweedie 1996.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contracts import MOST, choice, function, integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction
from ..sde import NoiseLevel
from .base import Solver, State


@dataclass(frozen=True)
class Langevin(Solver):
    """``steps`` Langevin steps at the level s.

    ``snr`` r > 0 sets the step size. ``rule``: "level", h = 2 (r sigma)^2, read from the level, so that samples never meet and
    the step stays linear; "norm", Song's h = 2 (r |z|/|score|)^2 with norms averaged over the batch (App. G), which couples
    the samples of a batch (the factor alpha_i of their VP code, within 2 % of 1, is left out). ``density``, a function (x, level) -> log
    density (B,), adds the Metropolis correction, MALA, under which p_s is exactly invariant; it needs rule="level".
    At sigma = 0 nothing is done.
    """

    snr: float = 0.16
    steps: int = 1
    rule: str = "level"
    density: Callable[[Tensor, NoiseLevel], Tensor] | None = None

    order = None
    noise = "always"

    def __post_init__(self) -> None:
        real("snr", self.snr, 0.0, low_open=True)
        integer("steps", self.steps, 1, MOST)
        choice("rule", self.rule, ("level", "norm"))
        function("density", self.density, "(x, level) -> (B,), target.log_prob", none=True)
        if self.density is not None and self.rule != "level":
            raise ValueError(f"rule={self.rule!r}: the Metropolis correction takes its step size from the level; expected rule='level'.")

    @property
    def weak_order(self) -> None:
        return None

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        """Langevin steps at s. The Metropolis correction has no coefficient table: TypeError on a symbolic state."""
        if s.sigma == 0:
            return state
        if self.density is not None and not isinstance(state.x, Tensor):
            raise TypeError("the Metropolis correction is not linear in the state, so this step has no coefficient table.")
        x, source, p = state.x, noise.within(), eq.predict(state.x, s)                       # type: ignore[union-attr]
        for k in range(self.steps):
            z = source.at(k).normal(3)
            h = 2 * (self.snr * (s.sigma if self.rule == "level" else _norm(z) / _norm(p.score)))**2
            y = x + h * p.score + (2 * h)**0.5 * z
            if self.density is not None:
                q = eq.predict(y, s)
                y, p = self._metropolis(x, p, y, q, h, s, source.at(k).normal(6))
            elif k + 1 < self.steps:
                p = eq.predict(y, s)
            x = y
        return State(x, state.memory, p)

    def _metropolis(self, x: Tensor, p: Prediction, y: Tensor, q: Prediction, h: Any, s: NoiseLevel,
                    z: Tensor) -> tuple[Tensor, Prediction]:
        """The proposal y, or x where it is rejected: accepted with probability p(y) q(x|y) / (p(x) q(y|x))."""
        proposal = lambda a, pa, b: -_rows(b - a - h * pa.score).square().sum(1) / (4 * h)
        old, new = self.density(x, s), self.density(y, s)                                    # type: ignore[misc]
        if old.shape != (len(x),) or new.shape != old.shape:
            raise ValueError(f"density returned shape {tuple(old.shape)} for x of shape {tuple(x.shape)}; expected ({len(x)},), one log "
                             "density per sample.")
        ratio = new - old + proposal(y, q, x) - proposal(x, p, y)
        uniform = torch.special.ndtr(_rows(z)[:, 0].double())
        taken = (uniform.log() < ratio).view(-1, *[1] * (x.ndim - 1))
        return torch.where(taken, y, x), Prediction(x, s, score=torch.where(taken, q.score, p.score))


def _norm(z: Tensor) -> Tensor:
    if not isinstance(z, Tensor):
        raise TypeError("rule='norm' reads norms of the state, so this step is not linear and has no coefficient table; "
                        "rule='level' has one.")
    return _rows(z).norm(dim=1).mean()


def _rows(z: Tensor) -> Tensor:
    return z.flatten(1) if z.ndim > 1 else z[:, None]
