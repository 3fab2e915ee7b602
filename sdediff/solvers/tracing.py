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

from ..contracts import choice, instance, sequence
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
    choice("predicts", predicts, QUANTITIES), instance("solver", solver, Solver, "a solver such as sdediff.solvers.DDIM()")
    for i, level in enumerate(sequence("levels", levels, "sde.levels([0.9, 0.5, 0.1])", 2)):
        instance(f"levels[{i}]", level, NoiseLevel, "levels such as sde.levels([0.9, 0.5, 0.1])")
    score, inputs, called = _outputs(predicts)
    eq = ReverseSDE(sde, score, eta)
    solver.accepts(eq)
    solver, state, noise = solver.over(levels), State(Form({("x",): 1.0})), _Labels()
    states = [state.x]
    for k, (t, s) in enumerate(pairwise(levels)):
        state = solver.step(eq, state, t, s, noise.at(k))
        states.append(_linear(solver, state.x))
    return Table(states, inputs, called, predicts)


Ask = tuple[tuple[int | None, ...], str, tuple[Any, ...]]      # at(k), for None within(), in turn; then a method and its arguments


def draw(source: Noise, ask: Ask) -> Any:
    """What a source answers."""
    path, name, levels = ask
    for step in path:
        source = source.within() if step is None else source.at(step)
    return getattr(source, name)(*levels)


class _Draws(Noise):
    """A noise source whose draws are terms: ``term`` makes one of what is asked. ``folds``: methods that are their base-class formulas in
    the others, so that their factors become coefficients."""

    def __init__(self, term: Callable[[Ask], Any], path: tuple[int | None, ...] = (), folds: frozenset[str] = frozenset()) -> None:
        self.term, self.path, self.folds = term, path, folds

    def at(self, step: int) -> _Draws:
        return _Draws(self.term, (*self.path, step), self.folds)

    def within(self) -> _Draws:
        return _Draws(self.term, (*self.path, None), self.folds)

    def normal(self, use: int = 1) -> Any:
        return self.term((self.path, "normal", (use,)))

    def unit(self, t: Any, s: Any) -> Any:
        return self.term((self.path, "unit", (t, s)))

    def increment(self, t: Any, s: Any) -> Any:
        return super().increment(t, s) if "increment" in self.folds else self.term((self.path, "increment", (t, s)))

    def area(self, t: Any, s: Any) -> Any:
        return super().area(t, s) if "area" in self.folds else self.term((self.path, "area", (t, s)))


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

    def term(ask: Ask) -> Form:
        draws.append(lambda source: draw(source, ask))
        return Form({("noise", len(draws) - 1): 1.0})

    state = solver.step(dataclasses.replace(eq, score=score), State(Form({("x",): 1.0})), t, s, _Draws(term))
    return Step(inputs, levels, _linear(solver, state.x), draws)


class Draw(NamedTuple):
    """``value`` is what the source answers."""

    value: Term
    ask: Ask


class Call(NamedTuple):
    """``values`` are what the network returns for ``given`` at ``level``."""

    values: tuple[Term, ...]
    given: Form
    level: NoiseLevel


class Define(NamedTuple):
    """``value`` is a combination of earlier values."""

    value: Term
    form: Form


Event = Draw | Call | Define


class Tape(NamedTuple):
    """A run written down step by step: ``steps[k]``, its events in order; ``states[k]``, the value that is the state after k steps. The
    value ("x",) is the start. A step's forms hold values that are live, not the whole past."""

    steps: list[list[Event]]
    states: list[Term]


def tape(solver: Solver, sde: SDE, levels: Sequence[NoiseLevel], *, eta: Any = 0.0, feed: Callable[[Form, NoiseLevel], Form],
         interpret: Callable[..., Prediction], outputs: int = 1, keep: int = 2, folds: frozenset[str] | None = None) -> Tape:
    """The tape of a solver on a grid. The network is given ``feed(x, level)``, and its ``outputs`` vectors mean ``interpret(x, level,
    *vectors)``. After a step the state is a value, and of what the solver remembers forms of up to ``keep`` terms stay as they are,
    longer ones become values. ``folds``: see ``_Draws``, for a source that answers the same to the same question; with None every
    question is a draw of its own. Raises TypeError on a solver that is not linear in its vectors."""
    events: list[Event] = []
    drawn: dict[Ask, Form] = {}
    calls = 0

    def term(ask: Ask) -> Form:
        if folds is not None and ask in drawn:
            return drawn[ask]
        value: Term = ("noise", *ask) if folds is not None else ("noise", *ask, len(events))
        events.append(Draw(value, ask))
        drawn[ask] = Form({value: 1.0})
        return drawn[ask]

    def score(x: Form, level: NoiseLevel) -> Prediction:
        nonlocal calls
        values = tuple(("D", calls, i) for i in range(outputs))
        given = feed(x, level)
        if len(x) > _LONG:                      # from here on the solver's own x is one value
            events.append(Define(("in", calls), Form(given)))
            whole = _ratio(x, given)
            x.clear()
            x[("in", calls)] = whole
            given = Form({("in", calls): 1.0})
        events.append(Call(values, Form(given), level))
        calls += 1
        return interpret(x, level, *(Form({v: 1.0}) for v in values))

    def define(form: Form, name: Term) -> Form:
        events.append(Define(name, form))
        return Form({name: 1.0})

    eq = ReverseSDE(sde, score, eta)
    solver, noise = solver.over(levels), _Draws(term, (), folds or frozenset())
    state, steps = State(Form({("x",): 1.0})), []
    states: list[Term] = [("x",)]
    for k, (t, s) in enumerate(pairwise(levels)):
        drawn.clear()
        state = solver.step(eq, state, t, s, noise.at(k))
        known: dict[int, Form] = {id(state.x): define(_linear(solver, state.x), ("x", k))}

        def rebased(v: Any, known: dict[int, Form] = known, k: int = k) -> Any:
            if isinstance(v, Form):
                if id(v) not in known and len(v) > keep:
                    known[id(v)] = define(v, ("m", k, len(known)))
                return known.get(id(v), v)
            if isinstance(v, Prediction):
                return Prediction(rebased(v.x), v.level, **{name: rebased(v._known[name]) for name in v.given})
            if isinstance(v, tuple) and not isinstance(v, NoiseLevel):
                parts = map(rebased, v)
                return type(v)(*parts) if hasattr(v, "_fields") else tuple(parts)
            return v

        state = State(rebased(state.x), rebased(state.memory), rebased(state.prediction))
        steps.append(events)
        states.append(("x", k))
        events = []
    return Tape(steps, states)


_LONG = 8       # terms of a network's input from which a step (of many Langevin moves) is cut there


def _ratio(x: Form, given: Form) -> float:
    """x/given, two forms that are multiples of each other."""
    key = max(x, key=lambda k: abs(x[k]))
    return x[key] / given[key]


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
