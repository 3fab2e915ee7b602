"""Solvers made of solvers."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..contracts import instance
from ..equation import ReverseSDE, exploded
from ..random import Noise
from ..sde import NoiseLevel
from .base import LONG, Multistep, Solver, State
from .exponential import infinite_step
from .onestep import HEUN, KUTTA, RK4


@dataclass(frozen=True)
class Chain(Solver):
    """Predictor-corrector: the predictor's step from t to s, then the corrector's step of zero duration at s.
    Song et al. 2021, Alg. 1."""

    predictor: Solver
    corrector: Solver

    def __post_init__(self) -> None:
        for name in ("predictor", "corrector"):
            instance(name, getattr(self, name), Solver, "a solver such as sdediff.solvers.DDIM()")

    order = None

    @property
    def noise(self) -> str:                                                                  # type: ignore[override]
        return self.corrector.noise if self.corrector.noise == "always" else self.predictor.noise

    @property
    def remembers(self) -> int:                                                              # type: ignore[override]
        """What the predictor remembers."""
        return self.predictor.remembers

    @property
    def adaptive(self) -> bool:                                                              # type: ignore[override]
        return self.predictor.adaptive

    @property
    def weak_order(self) -> None:
        return None

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        return self.corrector.step(eq, self.predictor.step(eq, state, t, s, noise), s, s, noise)

    def over(self, levels: Sequence[NoiseLevel]) -> Chain:
        # the corrector moves the state off the path along which a predictor might have run ahead
        return self if self.predictor.looks_ahead else dataclasses.replace(self, predictor=self.predictor.over(levels))

    def accepts(self, eq: ReverseSDE) -> None:
        self.predictor.accepts(eq)


@dataclass(frozen=True)
class Exploded(Solver):
    """A one-step ODE solver in the chart y = x/alpha with the clock sigma/alpha, where Euler is DDIM and Heun is EDM's.
    Steps that reach infinity there (alpha = 0) are DDIM steps."""

    inner: Solver

    noise = "never"

    def __post_init__(self) -> None:
        instance("inner", self.inner, Solver, "a solver such as sdediff.solvers.DDIM()")

    @property
    def adaptive(self) -> bool:                                                              # type: ignore[override]
        return self.inner.adaptive

    @property
    def order(self) -> int | None:                                                           # type: ignore[override]
        return self.inner.order

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.alpha == 0 or s.alpha == 0:
            return State(infinite_step(eq.predict(state.x, t), s, None))
        chart = exploded(eq)
        x = self.inner.step(chart, State(state.x / t.alpha), chart.at(t.sigma / t.alpha), chart.at(s.sigma / s.alpha), noise).x
        return State(s.alpha * x)


@dataclass(frozen=True)
class Start(Solver):
    """A multistep solver of order p, its first ``starts`` steps taken by a one-step solver of order p - 1 (from where its own lower
    orders suffice), so that order p holds from any starting time. The starter's first evaluation is the one that the multistep solver
    remembers, so a start costs the starter's further stages only. Left to the multistep solver are steps longer than 0.5 in lambda, where
    no order is to be seen and the starter's stages would extrapolate over decades, and equations with eta > 0, where it has weak order
    1 anyway."""

    starter: Solver
    multistep: Multistep

    def __post_init__(self) -> None:
        instance("starter", self.starter, Solver, "a solver such as sdediff.solvers.DDIM()")
        instance("multistep", self.multistep, Multistep, "a multistep solver such as sdediff.solvers.Exponential(3)")

    @property
    def order(self) -> int | None:                                                           # type: ignore[override]
        return self.multistep.order

    @property
    def noise(self) -> str:                                                                  # type: ignore[override]
        return self.multistep.noise

    @property
    def remembers(self) -> int:                                                              # type: ignore[override]
        """What the multistep method remembers."""
        return self.multistep.remembers

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if len(state.memory) >= self.multistep.starts or not eq.is_ode or not 0 < abs(s.lam - t.lam) <= LONG:
            return self.multistep.step(eq, state, t, s, noise)
        p = eq.predict(state.x, t)
        known = [p]
        again = dataclasses.replace(eq, score=lambda x, level: known.pop() if known else eq.predict(x, level))
        x = self.starter.step(again, State(state.x), t, s, noise).x
        return State(x, ((t, self.multistep.remember(p)), *state.memory), p)

    def accepts(self, eq: ReverseSDE) -> None:
        self.multistep.accepts(eq)


def started(multistep: Multistep) -> Solver:
    """The multistep solver with the start that its order demands, if any: Heun, Kutta's third or the classical fourth order, in the
    exploded chart."""
    instance("multistep", multistep, Multistep, "a multistep solver such as sdediff.solvers.Exponential(3)")
    return Start(Exploded({3: HEUN, 4: KUTTA, 5: RK4}[multistep.order]), multistep) if multistep.starts else multistep
