r"""Multistep methods in the angle of signal and noise: exact for N(0, scale^2 I), so that only what is not Gaussian is interpolated.

With m^2 = sigma^2 + alpha^2 c^2 for data of scale c, phi = atan2(sigma, c alpha) and z = x/m, the probability flow of every process is

    dz = -F dphi,     F = (sigma/c x0 - c alpha eps)/m,     dphi = -sech(lambda + log c)/2 dlambda.             theory, eq. (22)

F is the output of a network in EDM's preconditioning, and -v for a variance-preserving process and c = 1: zero on N(0, c^2 I), where z is
at rest. c -> infinity is the eps form of the exponential integrators, c -> 0 the x0 form. Over a step, F is a Lagrange polynomial in lambda
through evaluations, the predicted one included where the step is corrected:

    z_s = z_t - sum_j w_j F_j,     w_j = int_{phi_t}^{phi_s} l_j(lambda) dphi.                                  theory, eq. (23)

phi is finite where lambda is not: a step from alpha = 0 or into sigma = 0 holds F fixed and is exact on N(0, c^2 I) too.

References: Karras et al. 2022 (arXiv:2206.00364), Table 1 (F); Salimans & Ho 2022 (arXiv:2202.00512), App. D (v, phi); Zhao et al. 2023
(arXiv:2302.04867), a corrector without a call of its own.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contracts import integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction
from ..sde import NoiseLevel
from .base import Multistep, State
from .multistep import lagrange_integrals


@dataclass(frozen=True)
class Angular(Multistep):
    """Theory, eq. (23) through the last ``nodes`` evaluations; then, where ``corrector`` > 0, again through the predicted level and the
    latest others, ``corrector`` in all. The next step evaluates the network at the predicted state and corrects that before it goes on,
    so that a step is one call and the last one stays as predicted. Order ``nodes``, with a corrector min(nodes + 1, corrector).
    ``scale``: the standard deviation of the data, as far as known."""

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
        """Evaluations kept from step to step."""
        return max(self.nodes, self.corrector - 1) if self.corrector else self.nodes - 1

    @property
    def starts(self) -> int:
        return max(0, self.order - 2)

    @property
    def corrects(self) -> bool:                                                              # type: ignore[override]
        """Whether a step ends with a corrector."""
        return self.corrector > 0

    def norm(self, level: NoiseLevel) -> float:
        """m = sqrt(sigma^2 + c^2 alpha^2) of a level."""
        return math.hypot(level.sigma, self.scale * level.alpha)

    def remember(self, p: Prediction, nodes: int = 0) -> tuple[Any, int]:
        """F, and through how many nodes the step from there was predicted (0: it was not). Terms with weight zero are not asked for: they
        need not exist."""
        alpha, sigma, c = p.level.alpha, p.level.sigma, self.scale
        return p.x0 / c if alpha == 0 else -p.eps if sigma == 0 else (sigma / c * p.x0 - c * alpha * p.eps) / self.norm(p.level), nodes

    def weights(self, levels: Sequence[NoiseLevel], t: NoiseLevel, s: NoiseLevel) -> list[float]:
        """The w_j of theory, eq. (23) for evaluations at ``levels``."""
        if len(levels) == 1:
            c = self.scale
            return [math.atan2(c * (s.sigma * t.alpha - t.sigma * s.alpha), s.sigma * t.sigma + c**2 * s.alpha * t.alpha)]
        return lagrange_integrals([level.lam for level in levels], lambda lam: lam, t.lam, s.lam,
                                  lambda lam: -0.5 / np.cosh(lam + math.log(self.scale)))

    def advance(self, z: Any, t: NoiseLevel, s: NoiseLevel, memory: Sequence[tuple[NoiseLevel, tuple[Any, int]]]) -> Any:
        """z at s from z at t by theory, eq. (23)."""
        for w, (_, (f, _)) in zip(self.weights([level for level, _ in memory], t, s), memory):
            z = z - w * f
        return z

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p, z, finite = eq.predict(state.x, t), state.x / self.norm(t), math.isfinite(s.lam - t.lam)
        nodes = min(self.nodes, len(state.memory) + 1) if finite else 1
        memory = ((t, self.remember(p, nodes)), *state.memory)
        if self.corrector and len(memory) > 1 and (used := memory[1][1][1]):
            before = memory[1][0]
            z = self.advance(z, t, before, memory[1:1 + used])                  # the prediction taken back,
            z = self.advance(z, before, t, memory[:self.corrector])             # and the step taken again with F at its end
        x = self.norm(s) * self.advance(z, t, s, memory[:nodes])
        return State(x, memory[:self.remembers] if finite else (), p)
