r"""A program compiled together with its network.

Runs of steps of equal structure are cut into blocks, each one function of (live vectors, coefficients, times, draws, conditions) under
torch.compile; blocks of one shape share it, whatever their numbers. A run of few steps is one block. On CUDA a whole run is one graph,
replayed. Before a function is compiled the network is asked once with every check of ``execution``.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .execution import Lost, Ran, Seen, Watched, caller, context, finish, look, loop, retraced, trusted
from .programs import Evaluate, Program, Sum
from .random import Draws, GeneratorNoise, Noise
from .score import NetworkScore

UNROLLED = 50           # steps in one compiled block, at most: a block costs some 50 us to enter; fewer of a network of many layers
LAYERS = 350            # layers in one compiled block, about


class Block:
    """Steps ``first`` .. ``first + length - 1`` of a program as one compiled function of (live vectors, coefficients, times, draws,
    conditions). ``shape`` says all about the function but the network: steps of equal structure share it."""

    def __init__(self, p: Program, first: int, length: int) -> None:
        self.p, self.first, self.length = p, first, length
        number: dict[int, int] = {}             # of the value that is in a register
        self.inputs: list[int] = []
        self.coefficients: list[float] = []
        self.draws = 0
        self.calls: list[int] = []
        lines: list[Any] = []
        count = 0

        def read(register: int) -> int:
            nonlocal count
            if register not in number:
                self.inputs.append(register)
                number[register] = count
                lines.append(("input", count))
                count += 1
            return number[register]

        def write(register: int | None) -> int:
            nonlocal count
            count += 1
            if register is not None:
                written[register] = number[register] = count - 1
            return count - 1

        written: dict[int, int] = {}
        for ops, *_ in p.steps[first:first + length]:
            for op in ops:
                if isinstance(op, Sum):
                    uses = (read(op.source), *(read(v) for v, _ in op.terms))
                    self.coefficients += ([] if op.lead is None else [p.leads[op.lead]]) + [c for _, c in op.terms]
                    lines.append(("sum", op.lead is None, uses, write(op.dest)))
                elif isinstance(op, Evaluate):
                    of = read(op.source)
                    self.calls.append(op.call)
                    lines.append(("call", of, write(op.dests[0])))
                else:
                    self.draws += 1
                    lines.append(("draw", write(op.dest)))
        dead = set(p.steps[first + length - 1].frees)
        out = sorted((n, register) for register, n in written.items() if register not in dead)
        self.outputs = [register for _, register in out]
        self.shape = (tuple(lines), tuple(n for n, _ in out))

    def bind(self, compiled: _Compiled, times: list[Tensor], dtype: torch.dtype, device: torch.device) -> None:
        """Takes the compiled steps, and its coefficients and times as tensors."""
        self.compiled = compiled
        self.weights = torch.tensor(self.coefficients, dtype=dtype, device=device)
        self.times = torch.stack([times[i] for i in self.calls]) if self.calls else torch.zeros(0, device=device)

    def run(self, held: list[Any], watched: Watched, draws: Iterable[Tensor], conditions: Mapping[str, Any]) -> int:
        """Does the steps, and returns the number of the step after them."""
        live: list[Tensor] = [held[r] for r in self.inputs]
        drawn: tuple[Tensor, ...] = ()
        if self.draws:                          # one tensor: every further argument of a compiled function takes a microsecond or two
            drawn = (draws.take(self.draws) if isinstance(draws, Draws) else torch.stack(list(itertools.islice(draws, self.draws))),)
        *out, sums = self.compiled(live, self.weights, self.times, drawn, conditions)
        for register, value in zip(self.outputs, out):
            held[register] = value
        if sums is None:
            return self.first + self.length
        if sums.device.type != "cpu":
            watched.later.append(("output", sums, self.calls[0] if self.calls else 0))
        elif not math.isfinite(sums.numpy().sum()):
            bad = (~torch.isfinite(sums)).nonzero().flatten().tolist()
            if bad and not all(bool(torch.isfinite(v).all()) for v in out):
                raise watched.not_finite("output", None, self.p.where(self.calls[bad[0]]))
        return self.first + self.length


class _Compiled:
    """A block's function under torch.compile for one network, shape, dtype and device. ``seconds``: what its first call took."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function, self.seconds, self.ready = name, function, 0.0, False

    def __call__(self, live: list[Tensor], weights: Tensor, times: Tensor, draws: tuple[Tensor, ...], conditions: Mapping[str, Any]) -> Any:
        arguments = (*live, weights, times, *draws, *conditions.values())
        if self.ready:
            return self.function(*arguments)
        began = time.perf_counter()
        try:
            out = self.function(*arguments)
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RuntimeError(f"compile=True: torch.compile does not take network {self.name} ({type(error).__name__}: {reason}); "
                               "sample(..., compile=False), the default, runs it as it is.") from error
        self.ready, self.seconds = True, time.perf_counter() - began
        return out


class _Callable(torch.nn.Module):
    """Any callable as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Any:
        return self.function(x, c, **conditions)


@functools.lru_cache(maxsize=32)        # keeps as many networks alive
def _block(network: Any, name: str, shape: Any, cast: torch.dtype, dtype: torch.dtype, conditions: tuple[str, ...],
           device: torch.device, summed: bool, *fixed: Any) -> _Compiled:
    """The function of a block; with ``summed`` it sums every output, to show whether it is finite. ``fixed``: what else it was compiled
    for (shape, autocast, conditions)."""
    lines, outputs = shape
    graph = torch.fx.Graph()
    values: dict[int, Any] = {n: graph.placeholder(f"v{n}") for kind, n, *_ in lines if kind == "input"}
    weights, times = graph.placeholder("weights"), graph.placeholder("times")
    drawn = [line[1] for line in lines if line[0] == "draw"]
    if drawn:
        draws = graph.placeholder("draws")
        values |= {n: graph.call_function(operator.getitem, (draws, k)) for k, n in enumerate(drawn)}
    given: dict[str, Any] = {key: graph.placeholder(f"given_{key}") for key in conditions}
    sums: list[Any] = []
    used = called = 0

    def weight() -> Any:
        nonlocal used
        used += 1
        return graph.call_function(operator.getitem, (weights, used - 1))

    for line in lines:
        if line[0] == "sum":
            _, bare, (of, *terms), dest = line
            y = values[of] if bare else graph.call_function(torch.mul, (values[of], weight()))
            for n in terms:
                y = graph.call_function(torch.add, (y, graph.call_function(torch.mul, (values[n], weight()))))
            values[dest] = y
        elif line[0] == "call":
            _, of, dest = line
            x = values[of] if cast == dtype else graph.call_method("to", (values[of], cast))
            out = graph.call_module("network", (x, graph.call_function(operator.getitem, (times, called))), given)
            values[dest] = graph.call_method("to", (out, dtype))
            called += 1
            if summed:
                sums.append(graph.call_method("sum", (values[dest],)))
    total = None if not summed else graph.call_function(torch.stack, (sums,)) if sums else graph.call_function(torch.zeros, (0,))
    graph.output((*(values[n] for n in outputs), total))
    root = torch.nn.Module()
    root.network = network if isinstance(network, torch.nn.Module) else _Callable(network)
    options: Any = {"cpp_wrapper": True} if device.type == "cpu" else {}     # generated Python would be half of a small network's time
    return _Compiled(name, torch.compile(torch.fx.GraphModule(root, graph).forward, fullgraph=True, dynamic=False, options=options))


def _blocks(p: Program, start: Tensor, score: NetworkScore, one_by_one: bool, summed: bool = True) -> tuple[dict[int, Block], list[Tensor]]:
    """Runs of steps of equal structure, or a whole run of few steps, cut into compiled blocks, by their first step, and the time inputs of
    all calls; kept where the time input is known by name."""
    conditions = score.conditions_of(len(start))
    kinds = tuple((k, type(v), getattr(v, "shape", None)) for k, v in conditions.items())
    kept = _bound if isinstance(score.time_input, str) else _bound.__wrapped__
    return kept(p, score.network, score.time_input, score.dtype_of(start), tuple(start.shape), start.dtype, start.device, score.autocast,
                kinds, one_by_one, summed)


@functools.lru_cache(maxsize=32)        # keeps as many networks alive
def _bound(p: Program, network: Any, time_input: Any, cast: torch.dtype, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device,
           autocast: torch.dtype | None, kinds: tuple[Any, ...], one_by_one: bool, summed: bool) -> tuple[dict[int, Block], list[Tensor]]:
    score = NetworkScore(network, "eps", time_input)
    times = list(score.times(p.levels, shape[0], cast, device))
    if len({c.dtype for c in times}) > 1:
        raise ValueError("compile=True: the time inputs are partly integers, partly fractions; expected a grid of knots, or compile=False.")
    layers = sum(not list(m.children()) for m in network.modules()) if isinstance(network, torch.nn.Module) else LAYERS // 4
    most = 1 if one_by_one else max(1, min(UNROLLED, LAYERS // max(1, layers)))
    names = tuple(name for name, *_ in kinds)
    found: dict[int, Block] = {}
    for first, length in _cut(p, most):
        block = found[first] = Block(p, first, length)
        function = _block(network, score.name, block.shape, cast, dtype, names, device, summed, shape, autocast, kinds)
        block.bind(function, times, dtype, device)
    return found, times


def _cut(p: Program, most: int) -> list[tuple[int, int]]:
    """Blocks of at most so many steps, (first, length): the whole run, if it is no longer, or runs of steps of equal structure, cut into
    blocks of equal shape. A step alone is no block."""
    if most > 1 and len(p.steps) <= most:
        return [(0, len(p.steps))]
    shapes = [Block(p, k, 1).shape for k in range(len(p.steps))]
    cut, first = [], 0
    for _, run in itertools.groupby(shapes):
        n = len(list(run))
        length = min(range(min(n, most), min(n, most) // 2, -1), key=lambda length: n % length)
        whole = Block(p, first, length).shape
        cut += [(k, length) for k in range(first, first + n - length + 1, length)
                if (n > 1 or most == 1) and Block(p, k, length).shape == whole]
        first += n
    return cut


def compiled(p: Program, start: Tensor, watched: Watched, source: Noise | None, seen: Seen | None = None) -> Ran:
    """As ``run``, with runs of equal steps compiled together with the network (all but the first step, which is checked), and on CUDA the
    whole trajectory in one graph."""
    score: Any = watched.score
    if type(score) is not NetworkScore:
        raise TypeError(f"compile=True: {type(score).__name__} is no network; expected sdediff.from_network(...), or compile=False.")
    if start.device.type == "cuda" and seen is None:
        mine = type(source) is GeneratorNoise and source.generator.device.type != "cuda"
        if not mine and len(p.asks) * start.nbytes <= torch.cuda.mem_get_info(start.device)[0] // 4:
            return _graphed(p, start, watched, source)
    trusting = seen is None and trusted(p, start, source) and p.shown_at_its_end
    (blocks, times), conditions = _blocks(p, start, score, seen is not None, not trusting), score.conditions_of(len(start))
    before, dtype = _seconds(blocks), score.dtype_of(start)
    steps = {k: functools.partial(block.run, conditions=conditions) for k, block in blocks.items()}
    with context(score, start.device):
        if not all(block.compiled.ready for block in blocks.values()):
            _check(p, start, score, times)
        y = loop(p, start, watched, caller(p, start, watched, times, dtype), p.draws(source), seen, steps)
    if trusting:
        try:
            look(y, "the end")
        except Lost as lost:
            y = retraced(p, start, watched, source, lost)
    finish(p, y, watched)
    warmup = _seconds(blocks) - before
    return y, f"coefficient table, {_described(blocks)}, {warmup:.1f} s of compilation in this run", warmup


def _check(p: Program, start: Tensor, score: NetworkScore, times: list[Tensor]) -> None:
    """One call of the network with every check, which a compiled function does not make."""
    caller(p, start, Watched(score), times, score.dtype_of(start))(Evaluate((None,), 0, 0), [start])


def _seconds(blocks: Mapping[int, Block]) -> float:
    return sum({id(b.compiled): b.compiled.seconds for b in blocks.values()}.values())


def _described(blocks: Mapping[int, Block]) -> str:
    lengths = [b.length for b in blocks.values()]
    return f"{sum(lengths)} steps compiled in blocks of up to {max(lengths, default=0)}"


class _Graph:
    """A whole run as one CUDA graph on vectors of its own. Noise of a CUDA generator is drawn in the graph; other sources seed by sample
    and label on the host, so theirs is drawn before the replay."""

    def __init__(self, p: Program, start: Tensor, score: NetworkScore, source: Noise | None) -> None:
        began = time.perf_counter()
        generator = source.generator if type(source) is GeneratorNoise else None
        self.start = start.clone()
        self.conditions = {k: v.clone() if isinstance(v, Tensor) else v for k, v in score.conditions_of(len(start)).items()}
        self.p, self.noise = p, [torch.empty_like(start) for _ in p.asks] if generator is None else []
        score = dataclasses.replace(score, conditions=self.conditions)
        self.blocks, times = _blocks(p, self.start, score, False)
        steps = {k: functools.partial(block.run, conditions=self.conditions) for k, block in self.blocks.items()}

        def body() -> tuple[Tensor, Watched]:
            watched, draws = Watched(score), p.draws(source) if generator is not None else iter(self.noise)
            with context(score, start.device):
                call = caller(p, self.start, watched, times, score.dtype_of(start))
                return loop(p, self.start, watched, call, draws, None, steps), watched

        with context(score, start.device):
            _check(p, self.start, score, times)
        before = generator.get_state() if generator is not None else None
        side = torch.cuda.Stream(start.device)
        side.wait_stream(torch.cuda.current_stream(start.device))
        with torch.cuda.stream(side):
            body()                              # compiles, and loads what the capture must not load
        torch.cuda.current_stream(start.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        if generator is not None:
            generator.set_state(before)
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.end, watched = body()
        self.later, self.seconds = watched.later, time.perf_counter() - began

    def replay(self, start: Tensor, conditions: Mapping[str, Any], source: Noise | None) -> Tensor:
        self.start.copy_(start)
        for key, value in conditions.items():
            if isinstance(value, Tensor):
                self.conditions[key].copy_(value)
        for z, drawn in zip(self.noise, self.p.draws(source)):
            z.copy_(drawn)
        self.graph.replay()
        return self.end.clone()


_GRAPHS: dict[Any, _Graph] = {}         # the latest few


def _graphed(p: Program, start: Tensor, watched: Watched, source: Noise | None) -> Ran:
    score: Any = watched.score
    network, conditions = score.network, score.conditions_of(len(start))
    weights = tuple(w.data_ptr() for w in network.parameters()) if isinstance(network, torch.nn.Module) else ()
    fixed = {k: (v.shape, v.dtype) if isinstance(v, Tensor) else repr(v) for k, v in conditions.items()}
    key = (p, network, weights, getattr(network, "training", None), score.time_input, score.autocast, tuple(start.shape), start.dtype,
           start.device, tuple(fixed.items()), source.generator if type(source) is GeneratorNoise else None)
    graph, warmup = _GRAPHS.pop(key, None), 0.0
    if graph is None:
        while len(_GRAPHS) > 1:
            _GRAPHS.pop(next(iter(_GRAPHS)))
        graph = _Graph(p, start, score, source)
        warmup = graph.seconds
    _GRAPHS[key] = graph
    y = graph.replay(start, conditions, source)
    watched.calls, watched.rows = watched.calls + len(p.levels), watched.rows + len(start) * len(p.levels)
    watched.later += graph.later
    finish(p, y, watched)
    return y, f"coefficient table, one CUDA graph, {_described(graph.blocks)}, {warmup:.1f} s of compilation in this run", warmup
