r"""Langevin correctors: MCMC on p_s at a fixed level, x <- x + h score + sqrt(2 h) z.

A corrector is a step of zero duration: it moves x at s and leaves time alone. On N(0, v) the stationary variance is
v / (1 - h/(2 v)), stable for h < 2 v. References: Song & Ermon 2019; Song et al. 2021, Alg. 4-5; Roberts & Tweedie 1996.
"""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..contracts import choice, integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..sde import NoiseLevel
from .base import Solver, State


@dataclass(frozen=True)
class Langevin(Solver):
    """``steps`` unadjusted Langevin steps at the level s.

    ``snr`` r > 0 sets the step size. ``rule``: "level", h = 2 (r sigma)^2, read from the level, so that samples never meet and
    the step stays linear; "norm", Song's h = 2 (r |z|/|score|)^2 with norms averaged over the batch (App. G), which couples
    the samples of a batch (the factor alpha_i of their VP code, within 2 % of 1, is left out). At sigma = 0 it does nothing.
    """

    snr: float = 0.16
    steps: int = 1
    rule: str = "level"

    order = None
    noise = "always"

    def __post_init__(self) -> None:
        real("snr", self.snr, 0.0, low_open=True)
        integer("steps", self.steps, 1)
        choice("rule", self.rule, ("level", "norm"))

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if s.sigma == 0:
            return state
        x, source, p = state.x, noise.within(), state.prediction                             # type: ignore[union-attr]
        for k in range(self.steps):
            p, z = eq.predict(x, s), source.at(k).normal(3)
            h = 2 * (self.snr * (s.sigma if self.rule == "level" else _norm(z) / _norm(p.score)))**2
            x = x + h * p.score + (2 * h)**0.5 * z
        return State(x, state.memory, p)


def _norm(z: Tensor) -> Tensor:
    if not isinstance(z, Tensor):
        raise TypeError("rule='norm' reads norms of the state, so this step is not linear and has no coefficient table; "
                        "rule='level' has one.")
    return z.flatten(1).norm(dim=1).mean()
