r"""A program's run (``programs``): combination, network, combination.

Nothing in the loop reads a number from the device. That outputs are finite is seen from their sums: on the CPU at the call, elsewhere after
the run. Where they are so small that a sum costs as much as a step, a state vouches for all outputs that went into it (y = a x + b out is
not finite where out is not), and a run that lost its way is made again, with a look at every call. Whatever is not linear takes the
readable path, ``sampling.iterate``; both draw the same noise.
"""
from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .equation import ReverseSDE
from .programs import Evaluate, Program, Programs, Sum, at_time, program
from .random import BrownianPath, Noise, WhiteNoise
from .score import FunctionScore, NetworkError, NetworkScore, Prediction, Score, calls_at
from .sde import NoiseLevel
from .solvers import Solver

KEPT = 1 << 16          # numbers in the time inputs that are kept for the next run, at most
SMALL = 1 << 12         # numbers in outputs that a state vouches for, at most


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
        return f"call {self.calls}, step {self.step}{at_time(level.t)}"

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
