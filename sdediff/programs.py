r"""A run without its scalars: the coefficient table of a solver on a grid, as a program.

A fixed-step solver that looks at no norms is linear in (start, network outputs, noises) (``solvers.tracing``). Its run is then a
straight line of network calls, draws and combinations

    y = c_1 v_1 + ... + c_n v_n

of vectors that are live, with float64 coefficients that depend on (solver, process, times, eta, parameterisation) alone. They are traced
once and kept. What a network's output means, and the scaling of an EDM network's input, are folded into them:

* a call is given a value as it is; a value that is only ever fed to the network scaled (c_in x) is held scaled;
* what a solver remembers stays as up to ``keep`` raw vectors or becomes one, whichever makes fewer terms in all;
* a combination that contains an earlier input of the same step starts from it.

``execution`` runs it, ``compilation`` compiles it.
"""
from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .random import BrownianPath, Noise, WhiteNoise, names
from .score import NetworkScore, Prediction, Score
from .sde import SDE, NoiseLevel
from .solvers import Form, Solver
from .solvers.tracing import Ask, Call, Define, Draw, Tape, Term, draw, tape

LOOK = 64               # calls between two looks at a state that vouches for small outputs
SAME = 1e-14            # a relative difference that is the rounding of float64 coefficients


class Sum(NamedTuple):
    """``dest`` = lead ``source`` + sum c ``register``. ``lead``: which of ``Program.leads``, or None for 1 (then there are terms)."""

    dest: int
    source: int
    lead: int | None
    terms: tuple[tuple[int, float], ...]


class Evaluate(NamedTuple):
    """Network call ``call`` on ``source``; output ``j`` goes to ``dests[j]`` unless that is None."""

    dests: tuple[int | None, ...]
    source: int
    call: int


class Fill(NamedTuple):
    """A draw."""

    dest: int
    ask: Ask


Op = Sum | Evaluate | Fill


class Step(NamedTuple):
    """``ops`` in order; then ``frees`` are dead, and the state is register ``state`` over ``scale``."""

    ops: tuple[Op, ...]
    frees: tuple[int, ...]
    state: int
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A run as operations on ``registers`` vectors; register 0 holds the start. ``levels``: those of the calls. ``leads``: the leading
    coefficients. ``remembers``: some output is live while the network is called again. ``cost``: terms in all combinations."""

    steps: tuple[Step, ...]
    levels: tuple[NoiseLevel, ...]
    leads: tuple[float, ...]
    registers: int
    remembers: bool
    cost: int
    inputs: dict[Any, list[Tensor]] = dataclasses.field(default_factory=dict)      # time inputs that are not lent, by kind

    @functools.cached_property
    def times(self) -> list[Any]:
        """The times of the calls."""
        return [level.t for level in self.levels]

    @functools.cached_property
    def asks(self) -> list[Ask]:
        """The draws of the run, in order."""
        return [op.ask for step in self.steps for op in step.ops if isinstance(op, Fill)]

    @functools.cached_property
    def labels(self) -> list[Any]:
        """The same, for white noise: the labels that it draws."""
        white = names()
        return [draw(white, ask) for ask in self.asks]

    def draws(self, source: Noise | None) -> Iterable[Tensor]:
        """What the source answers, in order. The tensors are to be read only."""
        if type(source) is WhiteNoise:
            return source.sequence(self.labels)
        return (draw(source, ask) for ask in self.asks)                                      # type: ignore[arg-type]

    @functools.cached_property
    def looks(self) -> frozenset[int] | None:
        """The calls before which a look at their input shows, with one at the end, whether every output was finite: each goes into one of
        these states. None where some output does not."""
        last = len(self.levels) - 1
        some = frozenset(range(LOOK, last, LOOK))
        return next((looks for looks in (some, some | {last}) if self._shown(looks)), None)

    @functools.cached_property
    def shown_at_its_end(self) -> bool:
        """Whether every output goes into the end."""
        return self._shown(frozenset())

    def _shown(self, looks: frozenset[int]) -> bool:
        """Whether every output goes into the input of one of these calls or into the end. The bits of a register are the calls whose
        outputs, not finite, make it so, whatever the network does with them."""
        bits, hidden = [0] * self.registers, (1 << len(self.levels)) - 1
        for step in self.steps:
            for op in step.ops:
                if isinstance(op, Sum):
                    bits[op.dest] = functools.reduce(operator.or_, (bits[v] for v, _ in op.terms), bits[op.source])
                elif isinstance(op, Fill):
                    bits[op.dest] = 0
                else:
                    hidden &= ~bits[op.source] if op.call in looks else -1
                    for dest in op.dests:
                        if dest is not None:
                            bits[dest] = 1 << op.call
        return not hidden & ~bits[self.steps[-1].state]

    def where(self, call: int) -> str:
        """A call, in words."""
        step = next(k for k, s in enumerate(self.steps) for op in s.ops if isinstance(op, Evaluate) and op.call == call)
        return f"call {call + 1}, step {step}{at_time(self.levels[call].t)}"


Programs = dict[Any, "Program"]


def program(solver: Solver, sde: SDE, levels: Sequence[NoiseLevel], eta: Any, score: Score, source: Noise | None,
            gives: tuple[str, ...] = (), kept: Programs | None = None) -> Program:
    """The program of a run for a network score, a function score, or a score whose predictions are given as ``gives``. Kept for the next
    run where solver, process and eta are values (frozen dataclasses without functions in them), in ``kept`` where that belongs to the same
    solver, process, levels and eta. Raises TypeError where the run is not linear."""
    if solver.adaptive or solver.looks_ahead:
        raise TypeError(f"{type(solver).__name__} chooses its network calls as it goes")
    network = type(score) is NetworkScore
    means: Any = (score.predicts, score.sigma_data) if network else gives or ("score",)      # type: ignore[attr-defined]
    folds = _folds(type(source))                # type: ignore[arg-type]
    if kept is not None and (known := kept.get((means, network, folds))) is not None:
        return known
    traced = _traced if all(map(is_value, (solver, sde, eta))) else _traced.__wrapped__
    try:
        found = traced(solver, sde, tuple([level.t for level in levels]), eta, means, network, folds)
    except TypeError:
        raise
    except (AttributeError, ValueError, ArithmeticError) as error:         # the readable path raises it again, at its step
        raise TypeError(f"tracing stopped at {type(error).__name__}: {error}") from error
    if kept is not None:
        kept[means, network, folds] = found
    return found


@functools.cache
def _folds(kind: type) -> frozenset[str] | None:
    """Which draws of a source are made of others, as for any; None for a source that is not pure."""
    if kind not in (WhiteNoise, BrownianPath):
        return None
    return frozenset(name for name in ("increment", "area") if getattr(kind, name) is getattr(Noise, name))


def at_time(t: Any) -> str:
    """The time of a call, or the range of its samples' times where that does not wait for a device."""
    if not isinstance(t, Tensor):
        return f", t={t:.6g}"
    return f", t={t.min().item():.6g}..{t.max().item():.6g}" if t.device.type == "cpu" and t.numel() else ""


def is_value(v: Any) -> bool:
    """Whether equality and hash say all about v."""
    if isinstance(v, (int, float, str, type(None))):
        return True
    if isinstance(v, tuple):
        return all(map(is_value, v))
    names = _fields(type(v))                                                                 # type: ignore[arg-type]
    return names is not None and (not names or all(is_value(getattr(v, name)) for name in names))


@functools.cache
def _fields(kind: Any) -> tuple[str, ...] | None:
    """What the values of a type depend on, None where that is not known."""
    if "__dataclass_fields__" not in vars(kind) or kind.__hash__ is None:
        return None
    return () if issubclass(kind, SDE) else tuple(f.name for f in dataclasses.fields(kind))


@functools.lru_cache(maxsize=64)
def _traced(solver: Solver, sde: SDE, times: tuple[float, ...], eta: Any, means: tuple[Any, ...], network: bool,
            folds: frozenset[str] | None) -> Program:
    if network:
        known = NetworkScore(_traced, means[0], "t", means[1])
        feed, interpret, outputs = known.feed, known.interpret, 1
    else:
        feed, outputs = (lambda x, m: x), len(means)
        interpret = lambda x, m, *out: Prediction(x, m, **dict(zip(means, out)))
    levels = sde.levels(times)
    written = lambda keep: tape(solver, sde, levels, eta=eta, feed=feed, interpret=interpret, outputs=outputs, keep=keep, folds=folds)
    tapes = [written(1)]
    if any(isinstance(e, Define) and e.value[0] == "m" and len(e.form) == 2 for events in tapes[0].steps for e in events):
        tapes.append(written(2))                # it would be the same tape where no form of two terms is remembered
    return min((_allocated(*_lowered(t, folds is not None)) for t in tapes), key=lambda p: p.cost)


class _Fed(NamedTuple):
    """A call whose input is one value."""

    values: tuple[Term, ...]
    given: Term
    level: NoiseLevel


_START: Term = ("x",)


def _lowered(t: Tape, pure: bool) -> tuple[list[list[Draw | _Fed | Define]], list[Term], dict[Term, float]]:
    """Calls that are given values, and only what is used. Also the values that are the states, and the scales of values that are held
    scaled."""
    steps: list[list[Any]] = []
    fed: dict[Term, set[float]] = {}
    for k, events in enumerate(t.steps):
        ops: list[Any] = []
        made: list[Define] = []
        for e in events:
            if isinstance(e, Call):
                form = _clean(e.given)
                if len(form) != 1:
                    made.append(Define(("in", k, len(ops)), form))
                    ops.append(made[-1])
                    form = Form({made[-1].value: 1.0})
                ((value, c),) = form.items()
                c = 1.0 if abs(c - 1) < SAME else c
                fed.setdefault(value, set()).add(c)
                ops.append((e.values, value, c, e.level))
            elif isinstance(e, Define):
                ops.append(Define(e.value, _through(_clean(e.form), made)))
            else:
                ops.append(e)
        steps.append(ops)
    held: Term = ("held",)                      # the start as it is held
    scale = {v: c for v, (c, *more) in fed.items() if not more and c != 1 and v[0] in ("x", "in", "m")}
    alias: dict[Term, Term] = {}
    if _START in scale:
        steps[0].insert(0, Define(held, Form({_START: 1.0})))
        scale[held] = scale.pop(_START)
    start = held if held in scale else _START
    named = lambda v: alias.get(start if v == _START else v, start if v == _START else v)

    done: list[list[Any]] = []
    for ops in steps:
        out: list[Any] = []
        for op in ops:
            if isinstance(op, Define):
                own = scale.get(op.value, 1.0)
                if op.value == held:
                    out.append(Define(held, Form({_START: own})))
                    continue
                form = Form({})
                for v, c in op.form.items():
                    v = named(v)
                    form[v] = form.get(v, 0.0) + own * c / scale.get(v, 1.0)
                (value, c), *more = form.items()
                if not more and abs(c - 1) < SAME and own == scale.get(value, 1.0) and value[0] in ("x", "in", "m", "held"):
                    alias[op.value] = value
                else:
                    out.append(Define(op.value, form))
            elif isinstance(op, Draw):
                out.append(op)
            else:
                values, value, c, level = op
                value = named(value)
                c /= scale.get(value, 1.0)
                if abs(c - 1) >= SAME:          # fed at several scales
                    out.append(Define((*values[0], "in"), Form({value: c})))
                    value = (*values[0], "in")
                out.append(_Fed(values, value, level))
        done.append(out)
    states = [named(v) for v in t.states]

    live = set(states)
    for ops in reversed(done):
        for i in reversed(range(len(ops))):
            op = ops[i]
            if isinstance(op, Define):
                live |= set(op.form) if op.value in live else set()
            elif isinstance(op, _Fed):
                live.add(op.given)
        ops[:] = [op for op in ops if isinstance(op, _Fed) or op.value in live or (isinstance(op, Draw) and not pure)]
    return done, states, scale


def _clean(form: Form) -> Form:
    """Without terms of coefficient zero (one stays)."""
    return Form({v: c for v, c in form.items() if c}) or Form(dict([next(iter(form.items()), (_START, 0.0))]))


def _through(form: Form, made: Sequence[Define]) -> Form:
    """The form by way of the latest input of its step that shortens it, where that loses no accuracy."""
    for value, inner in reversed(made):
        key = max(inner, key=lambda v: abs(inner[v]))
        r = form.get(key, 0.0) / inner[key]
        if not 0 < abs(r) * sum(map(abs, inner.values())) <= 2 * sum(map(abs, form.values())):
            continue
        rest = {v: form.get(v, 0.0) - r * inner.get(v, 0.0) for v in form | inner}
        rest = {v: c for v, c in rest.items() if abs(c) > SAME * max(abs(form.get(v, 0.0)), abs(r * inner.get(v, 0.0)))}
        if len(rest) + 1 < len(form):
            return Form({value: r, **rest})
    return form


def _allocated(steps: list[list[Draw | _Fed | Define]], states: list[Term], scale: dict[Term, float]) -> Program:
    """Registers for values: a register is free again after the last use of its value."""
    last: dict[Term, tuple[int, int]] = {}
    calls: dict[Term, int] = {}
    index = 0
    remembers = False
    for k, ops in enumerate(steps):
        for i, op in enumerate(ops):
            uses = op.form if isinstance(op, Define) else (op.given,) if isinstance(op, _Fed) else ()
            for v in uses:
                last[v] = (k, i)
                remembers |= v in calls and calls[v] < index
            if isinstance(op, _Fed):
                index += 1
                calls.update(dict.fromkeys(op.values, index))
        last[states[k + 1]] = (k, len(ops))
    last[states[-1]] = (len(steps), 0)

    where, free, size = {_START: 0}, [], 1      # type: ignore[var-annotated]
    out, levels, leads = [], [], []             # type: ignore[var-annotated]
    cost = 0

    def place(value: Term) -> int:
        nonlocal size
        if not free:
            free.append(size)
            size += 1
        where[value] = free.pop()
        return where[value]

    def release(k: int, i: int) -> list[int]:
        dead = [v for v in where if last.get(v, (-1, 0)) <= (k, i)]
        freed = [where.pop(v) for v in dead]
        free.extend(freed)
        return freed

    for k, ops in enumerate(steps):
        instructions: list[Op] = []
        for i, op in enumerate(ops):
            if isinstance(op, Define):
                cost += len(op.form)
                terms = sorted(((where[v], c) for v, c in op.form.items()), key=lambda vc: vc[1] != 1.0)     # a coefficient 1 leads
                release(k, i)
                (source, c), *rest = terms
                lead = None if c == 1.0 and rest else len(leads)
                leads.extend([c] if lead is not None else [])
                instructions.append(Sum(place(op.value), source, lead, tuple(rest)))
            elif isinstance(op, _Fed):
                source = where[op.given]
                instructions.append(Evaluate(tuple(place(v) if v in last else None for v in op.values), source, len(levels)))
                levels.append(op.level)
                release(k, i)
            else:
                instructions.append(Fill(place(op.value), op.ask))
                release(k, i)
        state = where[states[k + 1]]
        release(k, len(ops))
        held = set(where.values()) | {state}
        out.append(Step(tuple(instructions), tuple(r for r in range(size) if r not in held), state, scale.get(states[k + 1], 1.0)))
    return Program(tuple(out), tuple(levels), tuple(leads), size, remembers, cost)
