r"""One-step methods on the black-box face of the equation, dx = drift dt + diffusion dW, stepping from t to s (dt = s - t < 0).

The noise is additive (g depends on t alone), so Euler-Maruyama has strong order 1, stochastic Heun weak order 2, and the area
int (W(u) - W(t)) du of the path beside its increment is enough for strong order 3/2. References: Kloeden & Platen 1992, ch. 10 and 15;
Roessler 2010 (SRA1); Song et al. 2021, App. E (reverse diffusion); Butcher 2016 for the tableaux.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contracts import integer
from ..equation import ReverseSDE
from ..random import Noise
from ..sde import NoiseLevel, transition
from .base import Solver, State


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x_s = x + drift dt + diffusion dW. Weak order 1, strong order 1. Maruyama 1955."""

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        x = state.x + (s.t - t.t) * eq.drift(state.x, t)
        return State(x + eq.diffusion(t) * noise.increment(t, s) if eq.eta_at(t) else x)    # type: ignore[union-attr]


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """Trapezoidal drift and diffusion around an Euler-Maruyama predictor with the same dW. Weak order 2, strong order 1;
    Heun's method where eta = 0. A step into sigma = 0, where the score need not exist, is an Euler-Maruyama step."""

    order = 2

    @property
    def weak_order(self) -> int:
        return 2

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if s.sigma == 0:
            return EulerMaruyama().step(eq, state, t, s, noise)
        x, dt, k1, gt, gs = state.x, s.t - t.t, eq.drift(state.x, t), eq.diffusion(t), eq.diffusion(s)
        if not gt and not gs:
            return State(x + dt / 2 * (k1 + eq.drift(x + dt * k1, s)))
        dw = noise.increment(t, s)                                                           # type: ignore[union-attr]
        k2 = eq.drift(x + dt * k1 + gt * dw, s)
        return State(x + dt / 2 * (k1 + k2) + (gt + gs) / 2 * dw)


@dataclass(frozen=True)
class SRA1(Solver):
    """Stages at t and t + 3/4 dt, the second displaced by the area of the path over dt. Strong order 3/2, weak order 2; Ralston's
    second-order method where eta = 0. Roessler 2010, SIAM J. Numer. Anal. 48, Table 6.3."""

    order = 2

    @property
    def weak_order(self) -> int:
        return 2

    @property
    def strong_order(self) -> float:
        return 1.5

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.t == s.t:
            return state
        x, dt, k1, gt, gs = state.x, s.t - t.t, eq.drift(state.x, t), eq.diffusion(t), eq.diffusion(s)
        middle = eq.at(t.t + 0.75 * dt)
        if not gt and not gs:
            return State(x + dt / 3 * (k1 + 2 * eq.drift(x + 0.75 * dt * k1, middle)))
        dw, area = noise.increment(t, s), noise.area(t, s) / dt                              # type: ignore[union-attr]
        k2 = eq.drift(x + 0.75 * dt * k1 + 1.5 * gs * area, middle)
        return State(x + dt / 3 * (k1 + 2 * k2) + gs * dw + (gt - gs) * area)


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """The forward step s -> t, x_t = A x_s + G u with its exact A and G, run backwards with the drift taken at t:
    x_s = (2 - A) x + (1 + eta^2)/2 G^2 score + eta G u. Song et al. 2021, eq. 46. Weak order 1."""

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        """The step down to s. Raises ValueError on s > t."""
        if s.t > t.t:
            raise ValueError(f"t={t.t:g}, s={s.t:g}: reverse diffusion undoes forward steps; expected s <= t (to encode, take 'heun').")
        (a, g), eta = transition(t, s), eq.eta_at(t)
        x = (2 - a) * state.x + (1 + eta**2) / 2 * g**2 * eq.predict(state.x, t).score
        return State(x + eta * g * noise.unit(t, s) if eta else x)                           # type: ignore[union-attr]


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method of the probability-flow ODE, given by its Butcher tableau (c, a, b).
    A step that begins or ends at sigma = 0 with a stage there falls back to Euler's where it ends (Karras et al. 2022, Alg. 1)."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    noise = "never"

    def __post_init__(self) -> None:
        integer("order", self.order, 1)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if s.sigma == 0 and 1.0 in self.c:
            return EULER.step(eq, state, t, s, noise)
        h = s.t - t.t
        slopes: list[Any] = []
        for c, a in zip(self.c, self.a):
            level = t if c == 0 else s if c == 1 else eq.at(t.t + c * h)
            slopes.append(eq.drift(_combine(state.x, h, a, slopes), level))
        return State(_combine(state.x, h, self.b, slopes))


def _combine(x: Any, h: float, weights: tuple[float, ...], slopes: list[Any]) -> Any:
    for w, k in zip(weights, slopes):
        if w:
            x = x + h * w * k
    return x


EULER = RungeKutta((0.0,), ((),), (1.0,), 1)
MIDPOINT = RungeKutta((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2)
HEUN = RungeKutta((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2)
KUTTA = RungeKutta((0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3)
RK4 = RungeKutta((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)
