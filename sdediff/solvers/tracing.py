r"""Coefficient tables are read off a solver, not written.

A fixed-step solver whose step does not look at norms or Jacobians is linear in (start, network outputs, noises), and the levels
are floats. Running its readable ``step`` once on a symbolic vector (a dict of coefficients that adds and scales) therefore
returns its exact float64 table: state k = c_0 x + sum c_i D_i + sum c_j xi_j.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ..contracts import choice
from ..equation import ReverseSDE
from ..random import Noise
from ..score import QUANTITIES, Prediction, Score
from ..sde import SDE, NoiseLevel
from .base import Solver, State

Term = tuple[Any, ...]          # ("x",): the start; ("D", i): the i-th network output; ("noise", path, step, use), ("noise", i) in a Step


class Form(dict[Term, float]):
    """A linear form: coefficients by term. Adds to forms, scales by floats; anything else raises TypeError."""

    def __add__(self, other: Any) -> Form:
        if isinstance(other, (int, float)) and other == 0:
            return self
        if not isinstance(other, Form):
            return NotImplemented
        return Form({k: self.get(k, 0.0) + other.get(k, 0.0) for k in self | other})

    __radd__ = __add__

    def __mul__(self, scale: Any) -> Form:
        return Form({k: scale * v for k, v in self.items()}) if isinstance(scale, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, scale: Any) -> Form:
        return Form({k: v / scale for k, v in self.items()}) if isinstance(scale, (int, float)) else NotImplemented

    def __sub__(self, other: Any) -> Form:
        return self + -1.0 * other

    def __rsub__(self, other: Any) -> Form:
        return -1.0 * self + other

    def __neg__(self) -> Form:
        return -1.0 * self


class _Labels(Noise):
    """A noise source whose draws are terms."""

    def __init__(self, path: tuple[int, ...] = (), step: int = 0) -> None:
        self.path, self.step = path, step

    def at(self, step: int) -> _Labels:
        return _Labels(self.path, step)

    def within(self) -> _Labels:
        return _Labels((*self.path, self.step))

    def normal(self, use: int = 1) -> Any:
        return Form({("noise", self.path, self.step, use): 1.0})


class Table(NamedTuple):
    """``states[k]``: the state after k steps as a form of the start, the outputs and the noises. ``inputs[i]``: the form that
    network call i is given; ``levels[i]``: the level it is given. ``predicts``: what an output D_i means."""

    states: list[Form]
    inputs: list[Form]
    levels: list[NoiseLevel]
    predicts: str


def table(solver: Solver, sde: SDE, levels: Sequence[NoiseLevel], *, eta: Any = 0.0, predicts: str = "eps") -> Table:
    """The coefficient table of a solver on a grid, for a network that predicts ``predicts``. Raises TypeError on a solver that
    is not linear in its vectors."""
    choice("predicts", predicts, QUANTITIES)
    score, inputs, called = _outputs(predicts)
    eq = ReverseSDE(sde, score, eta)
    solver.accepts(eq)
    solver, state, noise = solver.over(levels), State(Form({("x",): 1.0})), _Labels()
    states = [state.x]
    for k, (t, s) in enumerate(pairwise(levels)):
        state = solver.step(eq, state, t, s, noise.at(k))
        states.append(_linear(solver, state.x))
    return Table(states, inputs, called, predicts)


class _Draws(Noise):
    """A noise source whose draws are terms, and which writes down what was asked for: ``asked[i]`` gets draw i from a real source."""

    def __init__(self, asked: list[Callable[[Noise], Any]], reach: Callable[[Noise], Noise] = lambda source: source) -> None:
        self.asked, self.reach = asked, reach

    def _term(self, ask: Callable[[Noise], Any]) -> Any:
        reach = self.reach
        self.asked.append(lambda source: ask(reach(source)))
        return Form({("noise", len(self.asked) - 1): 1.0})

    def at(self, step: int) -> _Draws:
        return _Draws(self.asked, lambda source, reach=self.reach: reach(source).at(step))              # type: ignore[misc]

    def within(self) -> _Draws:
        return _Draws(self.asked, lambda source, reach=self.reach: reach(source).within())              # type: ignore[misc]

    def normal(self, use: int = 1) -> Any:
        return self._term(lambda source: source.normal(use))

    def unit(self, t: Any, s: Any) -> Any:
        return self._term(lambda source: source.unit(t, s))

    def increment(self, t: Any, s: Any) -> Any:
        return self._term(lambda source: source.increment(t, s))

    def area(self, t: Any, s: Any) -> Any:
        return self._term(lambda source: source.area(t, s))


class Step(NamedTuple):
    """One step read off: ``inputs[i]``, the form that network call i is given, at ``levels[i]``; ``end``, the state after the step;
    ``draws[i]``, noise i of these forms as a function of the source that the step is given. Terms: ("x",), ("D", i), ("noise", i)."""

    inputs: list[Form]
    levels: list[NoiseLevel]
    end: Form
    draws: list[Callable[[Noise], Any]]


def linear_step(solver: Solver, eq: ReverseSDE, t: NoiseLevel, s: NoiseLevel, *, predicts: str = "x0") -> Step:
    """A one-step solver's step from t to s of the equation, for a network that predicts ``predicts``. The draws keep the order and the
    labels of the step, so that a real source gives what it would have given the step itself. Raises TypeError on a solver that is not
    linear in its vectors."""
    score, inputs, levels = _outputs(predicts)
    draws: list[Callable[[Noise], Any]] = []
    state = solver.step(dataclasses.replace(eq, score=score), State(Form({("x",): 1.0})), t, s, _Draws(draws))
    return Step(inputs, levels, _linear(solver, state.x), draws)


def _outputs(predicts: str) -> tuple[Score, list[Form], list[NoiseLevel]]:
    """A score whose outputs are terms, and the lists that its inputs and levels are written to."""
    inputs: list[Form] = []
    levels: list[NoiseLevel] = []

    def score(x: Any, level: NoiseLevel) -> Prediction:
        inputs.append(x)
        levels.append(level)
        return Prediction(x, level, **{predicts: Form({("D", len(inputs) - 1): 1.0})})

    return score, inputs, levels


def _linear(solver: Solver, x: Any) -> Form:
    if not isinstance(x, Form):
        raise TypeError(f"{type(solver).__name__}: the step is not linear in its vectors, so it has no coefficient table.")
    return x
