r"""Samplers that weave deterministic steps with exact forward transitions.

A forward transition from a cleaner level m to a noisier one s, x_s = alpha_s/alpha_m x_m + std xi, carries the marginal p_m to p_s
without error. So whatever noise is added this way, the law at the end differs from p by the errors of the deterministic steps alone: the
order of the law is the order of the inner solver on the probability flow. Three ways to weave are published,

    ancestral   every step goes below s, and noise lifts it to s,
    churn       noise lifts t to a level above, and the step goes from there to s,
    restart     a whole interval is noised back and solved again, several times.

The inner solver takes one step at a time: a memory would hold evaluations that lie on another path than the re-noised state.
References: Song et al. 2021a (arXiv:2010.02502), eq. 12; Karras et al. 2022 (arXiv:2206.00364), Alg. 2; Xu et al. 2023 (arXiv:2306.14878),
Alg. 1 and 2; k-diffusion for the ancestral forms of Euler, DPM-Solver-2 and DPM-Solver++ 2S.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..contracts import MOST, integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..sde import SDE, NoiseLevel, transition
from .base import Solver, State


@dataclass(frozen=True)
class Renoised(Solver):
    """What the three share: a deterministic one-step solver inside, and an equation without noise of its own."""

    inner: Solver

    strong_order = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Solver):
            raise TypeError(f"inner={self.inner!r}: expected a solver, such as Exploded(HEUN).")
        if self.inner.remembers or self.inner.noise == "always":
            raise ValueError(f"inner={self.inner!r}: expected a deterministic one-step solver inside {type(self).__name__}, such as "
                             "Exploded(HEUN); a multistep method takes its noise from the equation, ReverseSDE(eta=1).")

    @property
    def adds_noise(self) -> bool:
        """Whether it is more than its inner solver."""
        return True

    @property
    def noise(self) -> str:                                                                  # type: ignore[override]
        return "always" if self.adds_noise else "never"

    @property
    def order(self) -> int | None:                                                           # type: ignore[override]
        return self.inner.order

    @property
    def weak_order(self) -> int | None:
        return self.inner.order if self.adds_noise else None

    @property
    def adaptive(self) -> bool:                                                              # type: ignore[override]
        return self.inner.adaptive

    def accepts(self, eq: ReverseSDE) -> None:
        if not eq.is_ode:
            raise ValueError(f"eta={eq.eta!r}: {type(self).__name__} adds noise of its own; expected an equation with eta=0.")
        self.inner.accepts(eq)


def forward(x: Any, t: NoiseLevel, s: NoiseLevel, xi: Any, scale: float = 1.0) -> Any:
    """x lifted from t to the noisier level s by the forward transition; ``scale`` times its noise."""
    a, std = transition(s, t)
    return a * x + scale * std * xi


@dataclass(frozen=True)
class Ancestral(Renoised):
    """x/alpha from kappa_t down to kappa_m, then noise of standard deviation ``eta`` kappa_s sqrt(1 - (kappa_s/kappa_t)^2),
    kappa = sigma/alpha. With DDIM inside it is DDIM(eta)."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        real("eta", self.eta, 0.0, 1.0)

    @property
    def adds_noise(self) -> bool:
        return self.eta > 0

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if s.t == t.t:
            return state
        if s.sigma == 0 or self.eta == 0:
            return self.inner.step(eq, state, t, s, None)
        share = self.eta**2 * -math.expm1(2 * (t.lam - s.lam))
        # from alpha = 0 with eta = 1 all noise is fresh, and the level below is the clean one
        middle = eq.sde.at(0.0) if share >= 1 else eq.sde.level_of(s.lam - 0.5 * math.log1p(-share))
        x = s.alpha / middle.alpha * self.inner.step(eq, State(state.x), t, middle, None).x
        return State(x + s.sigma * math.sqrt(share) * noise.unit(t, s))                      # type: ignore[union-attr]


@dataclass(frozen=True)
class Churn(Renoised):
    """kappa_t raised by the factor 1 + gamma, gamma = min(S_churn/N, sqrt 2 - 1), where S_tmin <= kappa_t <= S_tmax; then the inner step
    down to s. N is the number of steps of the grid (``over``). ``S_noise`` scales the fresh noise: other than 1 it inflates the law on
    purpose, against a network that removes too much, and then nothing converges to p. No level is raised above t_max. Karras et al. 2022,
    Alg. 2, where kappa is called sigma."""

    S_churn: float = 5.0
    S_tmin: float = 0.05
    S_tmax: float = field(default=50.0, metadata={"infinite": True})
    S_noise: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        real("S_churn", self.S_churn, 0.0)
        real("S_tmin", self.S_tmin, 0.0)
        real("S_tmax", self.S_tmax, self.S_tmin, infinite=True)
        real("S_noise", self.S_noise, 0.0)
        if self.steps is not None:
            integer("steps", self.steps, 1, MOST)

    @property
    def adds_noise(self) -> bool:
        return self.S_churn > 0

    def over(self, levels: Sequence[NoiseLevel]) -> Churn:
        return dataclasses.replace(self, steps=max(1, len(levels) - 1))

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        top = self._raised(eq.sde, t) if self.S_churn and t.t != s.t else t
        if top.t == t.t:
            return self.inner.step(eq, state, t, s, None)
        return self.inner.step(eq, State(forward(state.x, t, top, noise.unit(top, t), self.S_noise)), top, s, None)  # type: ignore[union-attr]

    def _raised(self, sde: SDE, t: NoiseLevel) -> NoiseLevel:
        if self.steps is None:
            raise ValueError(f"steps=None: S_churn={self.S_churn:g} is spread over the steps of a grid; take steps of solver.over(levels), "
                             "as sample and iterate do.")
        if not t.sigma or not t.alpha or not self.S_tmin <= t.sigma / t.alpha <= self.S_tmax:
            return t
        lam, top = t.lam - math.log1p(min(self.S_churn / self.steps, math.sqrt(2) - 1)), sde.at(sde.t_max)
        return sde.level_of(lam) if lam > top.lam else top


@dataclass(frozen=True)
class Interval:
    """A restart: from kappa = ``low`` noise lifts the state to ``high``, and ``steps`` inner steps on a Karras grid bring it back;
    ``repeats`` times. ``steps=None`` takes as many as make them as long on average, in lambda, as the step of the grid that reaches
    ``low``."""

    low: float
    high: float
    repeats: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        real("low", self.low, 0.0, low_open=True)
        real("high", self.high, self.low, low_open=True)
        integer("repeats", self.repeats, 0, MOST)
        if self.steps is not None:
            integer("steps", self.steps, 1, MOST)

    def levels(self, sde: SDE, h: float) -> list[NoiseLevel]:
        """From high to low on a Karras grid, rho = 7; ``h`` is the step in lambda of the grid that reaches low."""
        n = self.steps or max(1, math.ceil(math.log(self.high / self.low) / h))
        a, b = self.high**(1 / 7), self.low**(1 / 7)
        return [sde.level_of(-7 * math.log(a + (b - a) * k / n)) for k in range(n + 1)]


@dataclass(frozen=True)
class Restart(Renoised):
    """The inner solver, and whenever it passes the low end of an interval, that interval again with fresh noise, from its high end. The
    step that passes is split there, so that any grid will do. Xu et al. 2023, where kappa is called t."""

    intervals: tuple[Interval, ...] = (Interval(0.06, 0.3, 2),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.intervals, tuple) or not all(isinstance(i, Interval) for i in self.intervals):
            raise TypeError(f"intervals={self.intervals!r}: expected a tuple of Interval(low, high, repeats), in the units of sigma/alpha.")

    @property
    def adds_noise(self) -> bool:
        return any(i.repeats for i in self.intervals)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        x, now, drawn = state.x, t, 0
        for i in sorted(self.intervals, key=lambda i: -i.low):
            if not (i.repeats and t.lam < -math.log(i.low) <= s.lam):
                continue
            grid = i.levels(eq.sde, s.lam - t.lam)
            low, high = grid[-1], grid[0]
            x, now = self.inner.step(eq, State(x), now, low, None).x, low
            for _ in range(i.repeats):
                x = forward(x, low, high, noise.within().at(drawn).unit(high, low))          # type: ignore[union-attr]
                drawn += 1
                for a, b in pairwise(grid):
                    x = self.inner.step(eq, State(x), a, b, None).x
        return State(x) if now.t == s.t else self.inner.step(eq, State(x) if drawn else state, now, s, None)

    def accepts(self, eq: ReverseSDE) -> None:
        super().accepts(eq)
        top = eq.sde.at(eq.sde.t_max)
        for i in self.intervals:
            if top.alpha and i.high > top.sigma / top.alpha * (1 + 1e-9):
                raise ValueError(f"high={i.high:g}: {type(eq.sde).__name__} ends at sigma/alpha = {top.sigma / top.alpha:g}; expected "
                                 "restart intervals below it.")
