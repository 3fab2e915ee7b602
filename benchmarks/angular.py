r"""A candidate for the library: exponential multistep integrators that are exact for N(0, scale^2 I), on a grid dense in the middle.

With m^2 = sigma^2 + alpha^2 s^2, the angle phi = atan2(sigma, s alpha) and z = x/m, the probability flow of every process reads

    dz = -F dphi,     F = (sigma x0/s - alpha s eps)/m,                                                                           (1)

where F is the network's output in EDM's preconditioning (-v for a variance-preserving process and s = 1): zero on Gaussian data of standard
deviation s, so that only what is not Gaussian about the data is left to interpolate. s -> infinity is the eps form, s -> 0 the x0 form of
the exponential integrators. F is interpolated in lambda through the last evaluations, the predicted one included in the corrector:

    z_{n+1} = z_n - sum_j w_j F_j,     w_j = int l_j(lambda) dphi.                                                                (2)

Karras et al. 2022, Table 1; Salimans & Ho 2022, App. D; Zhao et al. 2023 (the corrector without a call of its own).
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdediff.contracts import integer, real
from sdediff.equation import ReverseSDE
from sdediff.grids import _InLambda
from sdediff.random import Noise
from sdediff.recipes import Method
from sdediff.score import Prediction
from sdediff.sde import NoiseLevel
from sdediff.solvers import State
from sdediff.solvers.base import Multistep
from sdediff.solvers.exponential import infinite_step
from sdediff.solvers.multistep import lagrange_integrals


@dataclass(frozen=True)
class Angular(Multistep):
    """(2) through the last ``nodes`` evaluations, then, where ``corrector`` > 0, again through the predicted level and the latest others,
    ``corrector`` in all. The corrected state is found when the next step evaluates the network at the predicted one, so that a step is one
    call; the last step stays as predicted. ``scale``: the data's standard deviation, as far as known. Order ``nodes``, with a corrector
    min(nodes + 1, corrector)."""

    nodes: int = 3
    corrector: int = 0
    scale: float = 1.0

    noise = "never"

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, 1, 4)
        integer("corrector", self.corrector, 0, 5)
        real("scale", self.scale, 0.0, low_open=True)

    @property
    def order(self) -> int:                                                                  # type: ignore[override]
        return min(self.nodes + 1, self.corrector) if self.corrector else self.nodes

    @property
    def remembers(self) -> int:                                                              # type: ignore[override]
        return max(self.nodes - 1, self.corrector)

    def norm(self, m: NoiseLevel) -> float:
        return math.hypot(m.sigma, self.scale * m.alpha)

    def remember(self, p: Prediction) -> Any:
        """F."""
        m = p.level
        return (m.sigma / self.scale * p.x0 - m.alpha * self.scale * p.eps) / self.norm(m)

    def advance(self, x: Any, t: NoiseLevel, s: NoiseLevel, nodes: tuple[tuple[NoiseLevel, Any], ...]) -> Any:
        """(2) for x, with F through the nodes."""
        slope = lambda lam: -self.scale * np.exp(-lam) / (self.scale**2 + np.exp(-2 * lam))          # dphi/dlambda
        w = lagrange_integrals([level.lam for level, _ in nodes], lambda lam: lam, t.lam, s.lam, slope)
        x = self.norm(s) / self.norm(t) * x
        for w_j, (_, value) in zip(w, nodes):
            x = x - self.norm(s) * w_j * value
        return x

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p, x, memory = eq.predict(state.x, t), state.x, state.memory
        if not math.isfinite(s.lam - t.lam):
            return State(infinite_step(p, s, None), (), p)
        before, memory = (memory[0], memory[1:]) if memory else (None, memory)      # the corrected state one step back leads the memory
        memory = ((t, self.remember(p)), *memory)[:max(self.nodes, self.corrector)]
        if before is not None and self.corrector:
            x = self.advance(before[1], before[0], t, memory[:self.corrector])
        return State(self.advance(x, t, s, memory[:self.nodes]), ((t, x), *memory), p)


@dataclass(frozen=True)
class Bump(_InLambda):
    """Knots with density ``floor`` + sech((lambda - centre)/width) in lambda, the widths of the two sides their own: dense where the noise
    is as large as the data's structure, lambda = 0 to 2 for data of unit variance, and sparse at both ends."""

    centre: float = 0.62
    noisy: float = 1.4
    clean: float = 1.6
    floor: float = 0.14

    def spacing(self, first: float, last: float, intervals: int) -> np.ndarray:
        lam = np.linspace(first, last, 4001)
        off = lam - self.centre
        density = self.floor + 1 / np.cosh(np.where(off < 0, off / self.noisy, off / self.clean))
        mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        return np.interp(np.linspace(0, mass[-1], intervals + 1), mass, lam)


FEW, SOME, MANY = Bump(-0.25, 1.67, 2.37, 0.18), Bump(0.45, 1.5, 2.75, 0.055), Bump(0.62, 1.4, 1.6, 0.14)


def untuned(calls: int) -> Method:
    """What to take for a budget of calls when nothing is known of the data but that its scale is about one. The grids were found by a
    search, at 5 and 8, at 8, and at 15 and 20 calls, on other targets than the benchmark's, under VPSDE and EDMSDE: rings, pinwheel,
    25 Gaussians, banana, Gaussians in 8 and 24 dimensions, mixtures in 2, 8 and 32."""
    if calls < 8:
        return Method("auto", Angular(3), grid=FEW)
    return Method("auto", Angular(3, 4), grid=SOME if calls < 13 else MANY)
