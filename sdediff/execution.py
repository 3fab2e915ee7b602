r"""A run without its scalars: the coefficient table of a solver on a grid, executed.

A fixed-step solver that looks at no norms is linear in (start, network outputs, noises) (``solvers.tracing``). Its run is then a
straight line of network calls, draws and combinations

    y = c_1 v_1 + ... + c_n v_n

of vectors that are live, with float64 coefficients that depend on (solver, process, times, eta, parameterisation) alone. They are traced
once and kept. What a network's output means, and the scaling of an EDM network's input, are folded into them:

* a call is given a value as it is; a value that is only ever fed to the network scaled (c_in x) is held scaled;
* what a solver remembers stays as up to ``keep`` raw vectors or becomes one, whichever makes fewer terms in all;
* a combination that contains an earlier input of the same step starts from it.

Nothing in the loop reads a number from the device. That outputs are finite is seen from their sums: on the CPU at the call, elsewhere after
the run. Where they are so small that a sum costs as much as a step, a state vouches for all outputs that went into it (y = a x + b out is
not finite where out is not), and a run that lost its way is made again, with a look at every call. Whatever is not linear takes the
readable path, ``sampling.iterate``; both draw the same noise.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .equation import ReverseSDE
from .random import BrownianPath, Noise, WhiteNoise, names
from .score import FunctionScore, NetworkError, NetworkScore, Prediction, Score, calls_at
from .sde import SDE, NoiseLevel
from .solvers import Form, Solver
from .solvers.tracing import Ask, Call, Define, Draw, Tape, Term, draw, tape

KEPT = 1 << 16          # numbers in the time inputs that are kept for the next run, at most
LOOK, SMALL = 64, 1 << 12       # calls between two looks at a state that vouches for small outputs
SAME = 1e-14            # a relative difference that is the rounding of float64 coefficients


class Watched:
    """A score that counts its calls, and the rows in them, and names the fault of a call: what, at which call, step and time. On a
    device other than the CPU finiteness is checked after the run, so that no call waits for the device. ``batch``: samples of the run;
    a call may hold several states of each, in blocks of the batch."""

    def __init__(self, score: Score) -> None:
        self.score, self.calls, self.rows, self.step, self.batch = score, 0, 0, 0, 0
        self._first: Tensor | None = None                   # what the first call returned, before it was copied
        self._reuses = False                                # whether the network writes every output to one buffer
        self.later: list[tuple[str, Tensor, int]] = []     # sums of outputs on another device, from a call on, to be read at the end
        self._pending: list[tuple[str, Tensor]] = []

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        n = self.calls_at(level)
        self.calls, self.rows = self.calls + n, self.rows + n * len(x)
        where = self.where(level)
        try:
            p = self.score(x, level)
        except NetworkError as error:
            raise NetworkError(f"{error} ({where})") from None
        if not isinstance(p, Prediction):
            raise TypeError(f"score returned {type(p).__name__} ({where}); expected a Prediction: wrap a network as "
                            "sdediff.from_network(net, predicts='eps'), a formula as sdediff.from_score(fn).")
        for name in p.given:
            value = p._known[name].detach()
            if value.shape != x.shape:
                raise NetworkError(f"{self.name} returned {name} of shape {tuple(value.shape)} ({where}); expected {tuple(x.shape)}.")
            if x.device.type == "cpu":
                if not math.isfinite(value.sum()) and not bool(torch.isfinite(value).all()):
                    raise self.not_finite(name, value, where)
            else:
                self._pending.append((f"{name}|{where}", torch.isfinite(value).all()))
        self._own(p)
        return p

    def _own(self, p: Prediction) -> None:
        """A network that writes every output to one buffer would overwrite what a solver remembers: then each output is copied."""
        (name, value), *_ = p._known.items()
        if self.calls == 1:
            self._first = value
        elif self._first is not None:
            same = value.data_ptr() == self._first.data_ptr() != p.x.data_ptr()
            self._reuses, self._first = same and value.numel() > 0, None
        if self._reuses or self._first is not None:
            p._known[name] = value.clone()

    @property
    def observation(self) -> Any:
        """What the score observes, if it does."""
        return getattr(self.score, "observation", None)

    def calls_at(self, level: NoiseLevel) -> int:
        """Network calls that the score makes at a level."""
        return calls_at(self.score, level)

    def where(self, level: NoiseLevel) -> str:
        """The present call, in words."""
        return f"call {self.calls}, step {self.step}{_at_time(level.t)}"

    @property
    def name(self) -> str:
        """The score, in words."""
        known = getattr(self.score, "name", None)
        return f"network {known}" if known else f"score {getattr(self.score, '__name__', type(self.score).__name__)}"

    def not_finite(self, name: str, value: Tensor | None, where: str) -> NetworkError:
        """The error that names what is not finite, where and when."""
        bad = [] if value is None or value.ndim < 2 else (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()
        batch = self.batch or (0 if value is None else len(value))
        rows = sorted({row % batch for row in bad})
        which = f" in {len(rows)} of {batch} samples, first sample {rows[0]}" if rows else ""
        return NetworkError(f"{self.name} returned NaN or inf ({name}{which}; {where}); expected finite values.")

    @property
    def evaluations(self) -> str:
        """Evaluations per sample, in words, where they are not the calls."""
        return f" in sequence, {self.rows / self.batch:g} evaluations per sample" if self.rows != self.calls * self.batch else ""

    def finish(self) -> None:
        """Raises the error of the first check that failed, where checks wait for the end of the run."""
        if self._pending and not bool(torch.stack([ok for _, ok in self._pending]).all()):
            label = next(label for label, ok in self._pending if not ok)
            name, where = label.split("|")
            raise self.not_finite(name, None, where)


def _at_time(t: Any) -> str:
    """The time of a call, or the range of its samples' times where that does not wait for a device."""
    if not isinstance(t, Tensor):
        return f", t={t:.6g}"
    return f", t={t.min().item():.6g}..{t.max().item():.6g}" if t.device.type == "cpu" and t.numel() else ""


# -- from a tape to a program ---------------------------------------------------------------------------------------
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
        return f"call {call + 1}, step {step}{_at_time(self.levels[call].t)}"


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


class Plan(NamedTuple):
    """How to run: the program, or None with the reason; and what the score answered if it had to be asked."""

    program: Program | None
    reason: str
    first: Prediction | None = None


def plan(solver: Solver, eq: ReverseSDE, levels: Sequence[NoiseLevel], watched: Watched, x: Tensor, source: Noise | None,
         kept: Programs | None = None) -> Plan:
    """The program of a run from x, if it has one, looked up in ``kept`` first. A score that is neither network nor function is asked what
    it says about x: what its predictions are given as is not known before."""
    def of(gives: tuple[str, ...] = ()) -> Program:
        return program(solver, eq.sde, levels, eq.eta, score, source, gives, kept)

    score, first = watched.score, None
    try:
        p = of()
    except TypeError as error:
        return Plan(None, _because(error))
    if type(score) not in (NetworkScore, FunctionScore):
        op = next(iter(p.steps[0].ops), None)
        if not isinstance(op, Evaluate) or op.source != 0 or p.steps[0].scale != 1:
            return Plan(None, "the run does not begin with the score at its start")
        first = watched(x, p.levels[0])
        if first.x is not x or first.level != p.levels[0]:
            return Plan(None, "the score answers about another state than it is given", first)
        try:
            p = of(first.given)
        except TypeError as error:
            return Plan(None, _because(error), first)
    return Plan(p, "", first)


def _because(error: TypeError) -> str:
    return str(error).split(":")[-1].strip().rstrip(".")


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


# -- a program's run ------------------------------------------------------------------------------------------------
Seen = Callable[[int, Callable[[], Tensor]], None]
Ran = tuple[Tensor, str, float]         # the state at the end; how, in words; seconds of compilation


def run(p: Program, start: Tensor, watched: Watched, source: Noise | None, seen: Seen | None = None,
        first: Prediction | None = None) -> Ran:
    """The state after the last step of the program, from ``start``. ``seen(k, x)`` is called after k steps; ``x()`` is the state then.
    ``first``: what the score answered to call 0, if it was asked already."""
    start = start.clone() if start.is_inference() and not torch.is_inference_mode_enabled() else start      # it has no version counter
    if type(watched.score) in (NetworkScore, FunctionScore):
        y = _asked(p, start, watched, source, seen)
    else:
        y = loop(p, start, watched, _any_score(p, watched, first), p.draws(source), seen)
    finish(p, y, watched)
    return y, "coefficient table", 0.0


def _asked(p: Program, start: Tensor, watched: Watched, source: Noise | None, seen: Seen | None) -> Tensor:
    """The run of a network or a function."""
    score, dtype = watched.score, dtype_of(watched.score, start)
    trusting = trusted(p, start, source) and p.looks is not None
    with context(score, start.device):
        times, kind = lent(p, score, start, dtype)
        try:
            y = loop(p, start, watched, caller(p, start, watched, times, dtype, trusting), p.draws(source), seen)
            if trusting:
                look(y, "the end")
        except Lost as lost:
            return retraced(p, start, watched, source, lost)
    if kind is not None:
        give_back(p, times, kind)
    return y


def trusted(p: Program, start: Tensor, source: Noise | None) -> bool:
    """Whether it is worth while not to look at every output, and the run can be made again."""
    return start.is_cpu and start.numel() <= SMALL and (not p.asks or type(source) in (WhiteNoise, BrownianPath))


def retraced(p: Program, start: Tensor, watched: Watched, source: Noise | None, lost: Lost) -> Tensor:
    """The end of a run that lost its way, made again with a look at every output: NetworkError names the first that is not finite."""
    dtype = dtype_of(watched.score, start)
    with context(watched.score, start.device):
        times, _ = lent(p, watched.score, start, dtype)
        y = loop(p, start, watched, caller(p, start, watched, times, dtype), p.draws(source))
    if bool(torch.isfinite(y).all()):
        raise NetworkError(f"{watched.name} returned NaN or inf before {lost}, but not when the run was made again: it is no function of "
                           "what it is given. Expected such a network; sample(..., table=False) looks at each of its calls.")
    return y                                    # finite outputs, but not their combinations


class Lost(Exception):
    """A state that is not finite, in words."""


def look(x: Tensor, where: str) -> None:
    """Raises Lost where a state is not finite."""
    if not math.isfinite((x.detach() if x.requires_grad else x).sum().numpy()) and not bool(torch.isfinite(x).all()):
        raise Lost(where)


def context(score: Any, device: torch.device) -> Any:
    """The autocast that the score asks for on this device, or none."""
    return score.autocasting(device) if type(score) is NetworkScore else contextlib.nullcontext()


def finish(p: Program, y: Tensor, watched: Watched) -> None:
    """The checks that wait for the end of a run; off the CPU its one wait."""
    watched.finish()
    for name, sums, first in watched.later:
        bad = (~torch.isfinite(sums)).nonzero().flatten().tolist()
        if bad and not bool(torch.isfinite(y).all()):
            raise watched.not_finite(name, None, p.where(first + bad[0]))


def loop(p: Program, start: Tensor, watched: Watched, call: Caller, draws: Iterable[Tensor], seen: Seen | None = None,
           blocks: Mapping[int, Callable[..., int]] | None = None) -> Tensor:
    """The loop: combination, network, combination. ``blocks``: compiled steps, by the first of them."""
    add, mul = torch.add, torch.mul
    leads = _numbers(p, start.dtype)
    held: list[Any] = [None] * p.registers
    held[0], k, last, drawn = start, 0, len(p.steps), iter(draws)
    if seen is not None:
        seen(0, lambda: start)
    while k < last:
        watched.step = k
        ops, frees, state, scale = p.steps[k]
        if blocks and k in blocks:
            k = blocks[k](held, watched, draws)
            frees, state, scale = p.steps[k - 1][1:]
        else:
            k += 1
            for op in ops:
                kind = type(op)
                if kind is Sum:
                    dest, of, lead, terms = op  # type: ignore[misc]
                    if lead is None:
                        (v, c), *terms = terms
                        y = add(held[of], held[v], alpha=c)
                    else:
                        y = mul(held[of], leads[lead])
                    for v, c in terms:
                        y.add_(held[v], alpha=c)
                    held[dest] = y
                elif kind is Evaluate:
                    call(op, held)              # type: ignore[arg-type]
                else:
                    held[op.dest] = next(drawn)     # type: ignore[union-attr]
        for dead in frees:
            held[dead] = None
        if seen is not None:
            watched.step = k
            seen(k, lambda y=held[state], scale=scale: y if scale == 1 else y / scale)       # type: ignore[misc]
    y = held[state].detach() if held[state].requires_grad else held[state]
    return y if scale == 1 else y / scale


@functools.lru_cache(maxsize=64)
def _numbers(p: Program, dtype: torch.dtype) -> Sequence[Tensor]:
    """The leading coefficients as tensors on the CPU, which any device takes: half the price of floats."""
    return torch.tensor(p.leads, dtype=dtype, device="cpu").unbind()


Times = Sequence[Any]           # what the calls of a run are told of their levels, by call


class _Streamed(Sequence[Any]):
    """Time inputs that are made as they are asked for, in turn."""

    def __init__(self, inputs: Iterator[Any], length: int) -> None:
        self.inputs, self.length = inputs, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: Any) -> Any:
        return next(self.inputs)


def dtype_of(score: Any, start: Tensor) -> torch.dtype:
    """The dtype in which a network is asked, or a function."""
    return score.dtype_of(start) if type(score) is NetworkScore else start.dtype


def lent(p: Program, score: Any, start: Tensor, dtype: torch.dtype) -> tuple[Times, Any]:
    """The time inputs of a run. Few numbers, of a kind that has a name, are kept with the program, lent to one run at a time, and given
    back under the kind that comes with them."""
    if type(score) is FunctionScore:
        return p.times, None
    batch, device = len(start), start.device
    if isinstance(score.time_input, str) and batch * len(p.levels) <= KEPT:
        kind = score.time_input, dtype, device, batch
        times = p.inputs.pop(kind, None)
        if times is None:
            with torch.inference_mode(False):
                times = list(score.times(p.levels, batch, dtype, device))
        return times, kind
    return _Streamed(score.times(p.levels, batch, dtype, device), len(p.levels)), None


def give_back(p: Program, times: Times, kind: Any) -> None:
    """Keeps what was lent, unless the network wrote into it."""
    if times[0]._version == 0:
        p.inputs[kind] = times                  # type: ignore[assignment]
        while len(p.inputs) > 4:
            p.inputs.pop(next(iter(p.inputs)), None)


Caller = Callable[[Evaluate, list[Any]], None]


def caller(p: Program, start: Tensor, watched: Watched, times: Times, dtype: torch.dtype, trusting: bool = False) -> Caller:
    """One call of the program's network or function, in ``dtype``, with the checks that cost no waiting, its output put in its register.
    ``trusting``: whether outputs are finite is seen from the states of ``p.looks``."""
    score: Any = watched.score
    levels, shape, kind, device = p.levels, start.shape, start.dtype, start.device
    batch, axes, on_cpu, time = shape[0], tuple(range(start.ndim)), start.is_cpu, times.__getitem__
    if type(score) is NetworkScore:
        ask, conditions = score.network, score.conditions_of(batch)
        name = score.predicts if score.predicts != "edm" else "F"
    else:
        ask, conditions, name = score.function, {}, "score"
    plain = dtype is kind and not torch.is_inference_mode_enabled()
    looks = p.looks if trusting and p.looks is not None else frozenset()
    remembers, own = p.remembers, False
    earlier: Any = None
    watched.calls += len(levels)
    watched.rows += batch * len(levels)
    slots: Any = ()
    if not on_cpu:
        sums = torch.zeros(len(levels), dtype=kind, device=device)
        watched.later.append((name, sums, 0))
        slots = sums.unbind()

    def call(op: Evaluate, held: list[Any]) -> None:
        nonlocal own, earlier
        (dest,), of, i = op
        x = held[of]
        if i in looks:
            look(x, p.where(i))
        try:
            if plain:
                version = x._version
                out = ask(x, time(i), **conditions)
                if (type(out) is not Tensor or out.shape != shape or out.dtype is not kind or out.is_cpu is not on_cpu
                        or x._version != version):
                    out = score.checked(out, x, version, x, levels[i])
            else:
                out = score.ask(x, time(i), conditions, dtype, levels[i])
        except Exception as error:
            if trusting:                        # what it stumbled on may be its own earlier output
                look(x, p.where(i))
            if isinstance(error, NetworkError):
                raise NetworkError(f"{error} ({p.where(i)})") from None
            raise
        if not on_cpu:
            torch.sum(out, axes, out=slots[i])
        elif not trusting and not math.isfinite(out.detach().sum().numpy()) and not bool(torch.isfinite(out).all()):
            raise watched.not_finite(name, out.detach(), p.where(i))
        if remembers and (own or i < 2):
            # A network that writes every output to one buffer would overwrite what is remembered: then each output is copied.
            if i == 0:
                earlier, out = out, out.clone()
            elif i == 1:
                own, earlier = out.data_ptr() == earlier.data_ptr() != x.data_ptr() and out.numel() > 0, None
            if own:
                out = out.clone()
        if dest is not None:
            held[dest] = out

    return call


def _any_score(p: Program, watched: Watched, first: Prediction | None) -> Caller:
    """Calls of a score that is neither network nor function: its predictions must be about the x and the level that it was given."""
    known = [first] if first is not None else []
    names = first.given if first is not None else ()

    def call(op: Evaluate, held: list[Any]) -> None:
        x, level = held[op.source], p.levels[op.call]
        prediction = known.pop() if known else watched(x, level)
        if prediction.x is not x or prediction.level != level:
            raise NetworkError(f"{watched.name} answered about another state or level than it was given ({watched.where(level)}), and did "
                               "not at its first call; sample(..., table=False) takes its word.")
        for name, dest in zip(names, op.dests):
            if dest is not None:
                held[dest] = getattr(prediction, name)

    return call
