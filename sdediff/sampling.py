"""The one loop, and the front doors on it: sample (noise to data), encode (data to noise), simulate (the forward process)."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import chunks, compilation, contracts, execution, guards, random
from .equation import ReverseSDE
from .execution import Watched
from .grids import DDPM, checked
from .grids import grid as as_grid
from .programs import Programs, is_value
from .progress import bar as progress_bar
from .random import BrownianPath, Noise, quadratic_variation
from .ranks import Ranks
from .recipes import Choice, Method, Run, chooses, chosen, methods
from .recipes import method as as_method
from .score import NetworkError, NetworkScore, Prediction, Score, autocast_dtype, calls_at
from .sde import A_PROCESS, SDE, NoiseLevel, transition
from .solvers import Form, Observing, Solver, State


def iterate(eq: ReverseSDE, solver: Solver, x: Any, levels: Sequence[NoiseLevel], noise: Noise | None = None) -> Iterator[State]:
    """The only loop of the library: yields the state at every level, the first included.

    It is a generator: wrap it in a progress bar, record it, or stop it. ``x`` (B, *D) is the state at ``levels[0]``; ``noise``
    is a source bound to x's shape (see ``random``), needed unless the run is deterministic. Gradients flow through it.
    ValueError where noise is needed and none is given.
    """
    contracts.instance("eq", eq, ReverseSDE, "a sdediff.ReverseSDE(sde, score)")
    contracts.instance("solver", solver, Solver, "a solver such as sdediff.method('heun').solver")
    contracts.instance("x", x, (Tensor, Form), "a torch.Tensor (B, ...)")
    contracts.instance("noise", noise, Noise, "a source such as sdediff.random.WhiteNoise(seed, x.shape)", none=True)
    for i, level in enumerate(contracts.sequence("levels", levels, "sde.levels([0.9, 0.5, 0.1])", 1)):
        contracts.instance(f"levels[{i}]", level, NoiseLevel, "levels such as sde.levels([0.9, 0.5, 0.1])")
    solver.accepts(eq)
    if noise is None and (solver.noise == "always" or (solver.noise == "eta" and not eq.is_ode)):
        raise ValueError(f"noise=None: {type(solver).__name__} on an equation with eta={eq.eta!r} draws noise; expected a source "
                         "such as sdediff.random.WhiteNoise(seed, x.shape).")
    solver, state = solver.over(levels), State(x)
    yield state
    for k, (t, s) in enumerate(pairwise(levels)):
        state = solver.step(eq, state, t, s, noise.at(k) if noise is not None else None)
        yield state


@dataclass(frozen=True)
class SampleInfo:
    """A finished run: ``x`` (B, *D); ``nfe``, network calls counted, one after the other, however many rows a call has; ``times``, the
    grid; ``trajectory`` (steps + 1, B, *D) if it was recorded, else None; ``explain``, what was run, in words (``told`` has the facts);
    ``seed``, which reproduces the run (None where the noise came from a generator or a source, or nothing was drawn); ``warmup``, seconds
    spent on compilation; ``diagnostics``, what the method tells beside the samples, by name ("ess" and "log_evidence" of method="smc")."""

    x: Tensor
    nfe: int
    times: tuple[float, ...]
    trajectory: Tensor | None
    told: tuple[Any, ...] = dataclasses.field(repr=False)
    seed: int | tuple[int, ...] | None
    warmup: float = 0.0
    diagnostics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def explain(self) -> str:
        """What was run, in words."""
        return _EXPLAINED.format(*self.told) if self.told else ""


_EXPLAINED = ("{}: {} on {}, eta={}, {} steps from t={:.6g} to t={:.6g} (sigma {:.4g} to {:.4g}), {} network calls{}, {} state{}{}; {}{}")


def sample_info(sde: SDE, score: Score, *, shape: Sequence[int] | None = None, x_init: Tensor | None = None,
                method: str | Method = "auto", steps: int | None = None, nfe: int | None = None, grid: Any = None,
                t_start: float | None = None, t_end: float | None = None, seed: random.Seed = None, noise: str | Noise = "white",
                conditions: Mapping[str, Any] | None = None, device: torch.device | str | None = None,
                dtype: torch.dtype | None = None, progress: bool = False, record: bool = False, first: int = 0, table: bool = True,
                compile: bool = False, autocast: torch.dtype | None = None, **options: Any) -> SampleInfo:
    """As ``sample``, and returns a ``SampleInfo``; ``record=True`` keeps the trajectory. ``first``: the index of the first sample, from
    which an integer ``seed`` counts: samples a..b of a batch are a batch of their own with ``first=a``. x is (B, *D). Raises as
    ``sample`` does: TypeError or ValueError on wrong arguments, before the first network call."""
    contracts.flags(progress=progress, record=record, table=table, compile=compile)
    recipe, times, levels, programs = _course(sde, score, method, options, steps, nfe, grid, t_start, t_end)
    contracts.scored("score", score)
    eq, watched = equation(sde, score, recipe, conditions, autocast)
    if device is not None:
        device = contracts.device("device", device)
    if dtype is not None:
        contracts.dtype("dtype", dtype)
    few = len(times) - 1 <= recipe.solver.remembers
    if (shape is None) == (x_init is None):
        raise ValueError(f"shape={shape!r}, x_init={'None' if x_init is None else 'a tensor'}: give exactly one; shape=(B, ...) draws "
                         "from the prior, x_init= starts from a state at the first time of the grid.")
    if x_init is None:
        size = contracts.shape("shape", shape)
        device, dtype = _where(score, device, dtype)
        start = rms = None
    else:
        rms, start = contracts.rms("x_init", x_init), x_init
        if device is not None or dtype is not None:
            start = start.to(device=device or start.device, dtype=dtype or start.dtype)
        size, device, dtype = tuple(start.shape), start.device, start.dtype
    inner = dtype if dtype in (torch.float32, torch.float64) else torch.float32           # half precision integrates in float32
    check_conditions({**getattr(score, "conditions", {}), **(conditions or {})}, size[0])
    _check_coupled(recipe.solver, "batch", size[0])
    if eq.observation is not None:
        eq.observation.operator.fits("shape" if start is None else "x_init", size[1:])
    _check_noise(noise, seed, size, inner)
    if callable(recipe.eta):
        for level in levels:
            eq.eta_at(level)
    if few:
        warnings.warn(f"steps={len(times) - 1}: {recipe.name} has its order from {recipe.solver.remembers + 1} steps on, when it remembers "
                      f"{recipe.solver.remembers} evaluations; these steps use the ones that there are, at lower order.", stacklevel=3)

    guards.start(sde, score, levels[0], rms if start is None or start.numel() >= guards.FEW else 0.0)
    guards.half(score, levels, autocast)

    draws = start is None or recipe.solver.noise == "always" or (recipe.solver.noise == "eta" and not eq.is_ode)
    contracts.integer("first", first, 0)
    trajectory: list[Tensor] = []
    keep = (lambda x: trajectory.append(x.to(dtype))) if record else None
    watched.batch = size[0]
    with random.undone(seed), _bar(progress, recipe.name, len(levels)) as bar:
        source, used = _noise(noise, seed, size, inner, device, eq, levels, first) if draws else (None, None)
        x = sde.prior_std(levels[0]) * source.initial() if start is None else start if inner is dtype else start.to(inner)  # type: ignore[union-attr]
        x, path, warmup, diagnostics = _solve(recipe.solver, eq, watched, x, levels, source, table, compile, bar, keep, programs)
    x = guards.cast(x, dtype)
    if x_init is not None and x.data_ptr() == x_init.data_ptr():
        x = x.clone()
    eta = "a function" if callable(recipe.eta) else recipe.eta
    told = (recipe.name, type(recipe.solver).__name__, type(sde).__name__, eta, len(times) - 1, times[0], times[-1], levels[0].sigma,
            levels[-1].sigma, watched.calls, watched.evaluations, inner, f" returned as {dtype}" if inner != dtype else "",
            "; too few steps for the method's full order" if few else "", path, recipe.why and f"; {recipe.why}")
    return SampleInfo(x, watched.calls, times, torch.stack(trajectory) if record else None, told, used, warmup, diagnostics)


def _solve(solver: Solver, eq: ReverseSDE, watched: Watched, x: Tensor, levels: Sequence[NoiseLevel], source: Noise | None, table: bool,
           compile: bool, bar: Any = None, keep: Callable[[Tensor], None] | None = None,
           programs: Programs | None = None) -> tuple[Tensor, str, float, Mapping[str, Any]]:
    """The state at the last level; which path led there, in words; seconds of compilation; and the method's diagnostics. ``keep`` is given
    every state; ``programs`` are those that are known of solver, process, levels and eta."""
    def seen(k: int, state: Callable[[], Tensor]) -> None:
        watched.step = k
        if keep is not None:
            keep(state())
        if bar is not None:
            bar.update()

    answers: list[Prediction] = []
    watching = seen if keep is not None or bar is not None else None
    with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
        plan = execution.plan(solver, eq, levels, watched, x, source, programs) if table else execution.Plan(None, "table=False")
        if compile:
            if plan.program is None:
                raise ValueError(f"compile=True: {type(solver).__name__} takes readable steps ({plan.reason}); leave compile out.")
            return *compilation.compiled(plan.program, x, watched, source, watching), {}
        if plan.program is not None:
            return *execution.run(plan.program, x, watched, source, watching, plan.first), {}
        if plan.first is not None:
            answers.append(plan.first)
            eq = dataclasses.replace(eq, score=lambda x, level: answers.pop() if answers else watched(x, level))
        for k, state in enumerate(iterate(eq, solver, x, levels, source)):
            seen(k, lambda x=state.x: x)        # type: ignore[misc]
    watched.finish()
    return state.x, f"readable steps: {plan.reason}", 0.0, solver.diagnostics(state)


def _bar(progress: bool, name: str, total: int) -> Any:
    """A progress bar over levels, or None, as a context."""
    if not progress:
        return contextlib.nullcontext()
    return progress_bar(total, True, desc=name, unit="level", leave=False)


def sample(sde: SDE, score: Score, *, shape: Sequence[int] | None = None, x_init: Tensor | None = None,
           method: str | Method = "auto", steps: int | None = None, nfe: int | None = None, grid: Any = None,
           t_start: float | None = None, t_end: float | None = None, seed: random.Seed = None, noise: str | Noise = "white",
           conditions: Mapping[str, Any] | None = None, device: torch.device | str | None = None,
           dtype: torch.dtype | None = None, progress: bool = False, chunk: int | None = None, out: str | os.PathLike[str] | None = None,
           overwrite: bool = False, group: Any = None, table: bool = True, compile: bool = False, autocast: torch.dtype | None = None,
           **options: Any) -> Tensor:
    """Draw samples by solving the reverse equation from noise down to data. Returns a Tensor (B, *D).

    Parameters
    ----------
    sde, score : the forward process, and what is known of its score (``from_network``, ``from_score``, a target's ``.score``).
    shape | x_init : (B, *D), drawn from the prior at the grid's first time; or a state to start from. Give one.
    method : a name of ``methods()`` or a ``Method``; its options go by name (``method="ddim", eta=0.5``). "auto" chooses one for the budget
        and for what is known of the data: ``data=`` samples or their ``spectrum=``; ``stochastic=True`` for an SDE (``selection.auto``).
    steps | nfe : grid intervals, or a budget of network calls (the most steps that fit). Give one, unless ``grid`` lists times.
    grid : "uniform", "quadratic", "logsnr", "karras", "sech", "ddpm", an instance of ``grids``, or a decreasing list of times.
    t_start, t_end : the span; by default from the process's t_max to its t_min.
    seed : an int, B ints (one per sample), a torch.Generator, or None (a fresh seed from torch's default generator).
    noise : "white"; "brownian" (one path in t per sample, shared by all grids and black-box methods); "clock" (one path in the
        equation's own clock); or a source from ``random`` bound to the state's shape.
    conditions : passed to the network by keyword; tensors with a leading batch axis, or scalars.
    device, dtype : for ``shape``: by default those of the network's parameters, else torch's defaults.
    progress : show a progress bar; over chunks where there are chunks.
    chunk : samples drawn at a time, so that memory is that of the result and of one chunk, whatever B. The samples are those of the
        whole batch: bit for bit for an elementwise score, to a network's own rounding otherwise. (A method that couples the samples of
        a batch, by Langevin steps of rule="norm" or one adaptive step for all, couples those of a chunk.) By default, with ``out``,
        fitted to the event.
    out : a .npy file. The result is a Tensor over its memory map, on the CPU, and memory is that of one chunk. The file appears when
        it is complete. An interrupted call, made again with the same arguments, goes on; other arguments are refused.
    overwrite : replace ``out`` if it exists.
    group : a torch.distributed process group whose processes all make this call and share the chunks of ``out``. The file is the one
        that a single process writes on that kind of device, bit for bit.
    table : run a method that is linear in its vectors from its coefficient table (``execution``), equal to its readable steps up to
        rounding; False takes the readable steps. ``sample_info(...).explain`` says which ran, and why.
    compile : compile the network together with the steps (torch.compile; on CUDA the whole run is one CUDA graph). It takes seconds to
        minutes, once for a network, method and shape (``sample_info(...).warmup``); the compiled function is kept for the next call.
    autocast : torch.bfloat16 or torch.float16: the network runs under ``torch.autocast`` in that dtype; the state keeps its own.

    Raises TypeError or ValueError on a wrong argument before the first network call, and ``NetworkError`` (a ValueError) naming
    the call, step and time where the network returns a wrong shape or dtype, NaN or inf; with ``out`` FileExistsError, and
    ``sdediff.ranks.RankError`` where another process fails.
    """
    contracts.flags(overwrite=overwrite)
    call = {"shape": shape, "x_init": x_init, "method": method, "steps": steps, "nfe": nfe, "grid": grid, "t_start": t_start,
            "t_end": t_end, "seed": seed, "noise": noise, "conditions": conditions, "device": device, "dtype": dtype, "table": table,
            "compile": compile, "autocast": autocast, **options}
    if out is not None:
        return chunked(sde, score, chunk=chunk, group=group, **call).write(out, overwrite=overwrite, progress=progress)
    if overwrite or group is not None:
        which = "overwrite=True" if overwrite else f"group={contracts.shown(group)}"
        raise ValueError(f"{which}: it belongs to a file; expected out='samples.npy' as well"
                         + ("." if overwrite else ", or sdediff.sample_chunks(..., group=group) for this process's share."))
    if chunk is not None:
        return chunked(sde, score, chunk=chunk, **call).fill(progress)
    return sample_info(sde, score, progress=progress, **call).x


def sample_chunks(sde: SDE, score: Score, *, chunk: int | None = None, group: Any = None, progress: bool = False,
                  **call: Any) -> Iterator[Tensor]:
    """The samples of ``sample(sde, score, **call)``, consecutive chunks (chunk, *D) of them, to be reduced on the way: memory is
    that of one chunk. The last one may be shorter. With ``group``, a torch.distributed process group, rank r of W yields the chunks
    r, r + W, ...

        mean = sum(x.sum(0) for x in sdediff.sample_chunks(sde, score, shape=(10_000_000, 2), chunk=65536, steps=10)) / 10_000_000

    Arguments, and what is raised, as for ``sample``; wrong arguments raise here, not at the first chunk.
    """
    contracts.flags(progress=progress)
    return chunked(sde, score, chunk=chunk, group=group, **call).each(progress)


def chunked(sde: SDE, score: Score, *, chunk: int | None = None, group: Any = None, shape: Sequence[int] | None = None,
            x_init: Tensor | None = None, method: str | Method = "auto", steps: int | None = None, nfe: int | None = None,
            grid: Any = None, t_start: float | None = None, t_end: float | None = None, seed: random.Seed = None,
            noise: str | Noise = "white", conditions: Mapping[str, Any] | None = None, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None, table: bool = True, compile: bool = False, autocast: torch.dtype | None = None,
            **options: Any) -> chunks.Chunks:
    """The samples of ``sample`` with these arguments, as chunks that are still to be drawn. Raises TypeError or ValueError on arguments
    that concern a whole batch, NetworkError with the chunk in which it happened."""
    contracts.flags(table=table, compile=compile)
    if "record" in options:
        raise TypeError("record: a trajectory is that of a whole batch, sample_info(..., record=True); expected no record= with chunks.")
    if isinstance(seed, torch.Generator) or isinstance(noise, Noise):
        name, value = ("seed", seed) if isinstance(seed, torch.Generator) else ("noise", noise)
        raise TypeError(f"{name}={type(value).__name__}: it gives noise to a whole batch, and chunks need noise that belongs to a sample; "
                        "expected an integer seed (seed=0) or one for each sample, and noise='white', 'brownian' or 'clock'.")
    recipe, eq, _ = prepared(sde, score, method, conditions, options, autocast, steps, nfe, t_start, t_end, grid)
    times = times_of(recipe, sde, steps, nfe, grid, t_start, t_end, score)
    if (shape is None) == (x_init is None):
        raise ValueError(f"shape={shape!r}, x_init={'None' if x_init is None else 'a tensor'}: give exactly one; shape=(B, ...) draws "
                         "from the prior, x_init= starts from a state at the first time of the grid.")
    if x_init is None:
        size = contracts.shape("shape", shape)
        device, dtype = _where(score, device and contracts.device("device", device), dtype and contracts.dtype("dtype", dtype))
    else:
        if not isinstance(x_init, Tensor) or not x_init.ndim:
            contracts.state("x_init", x_init)
        size = tuple(x_init.shape)
        device, dtype = contracts.device("device", device or x_init.device), contracts.dtype("dtype", dtype or x_init.dtype)
    length = chunks.size(chunk, size[1:])
    if recipe.solver.couples is not None:
        _check_coupled(recipe.solver, "batch", size[0])
        length = length if chunk is not None else max(1, length // recipe.solver.couples) * recipe.solver.couples
        _check_coupled(recipe.solver, "chunk", length)
    for rows in () if x_init is None else x_init.split(length):
        contracts.state("x_init", rows)
    check_conditions({**getattr(score, "conditions", {}), **(conditions or {})}, size[0])
    _check_noise(noise, seed, size, torch.float32)
    score = score.condition(**conditions) if conditions else score                                           # type: ignore[attr-defined]
    seed = None if seed is None else random.canonical_seed(seed, size[0])

    def draw(start: int, stop: int, seed: Any) -> Tensor:
        rows = sliced(start, stop) if callable(sliced := getattr(score, "rows", None)) else score
        given = {"shape": (stop - start, *size[1:])} if x_init is None else {"x_init": x_init[start:stop].clone()}
        try:
            return sample_info(sde, rows, **given, method=recipe, grid=times, noise=noise, device=device, dtype=dtype, first=start,
                               seed=seed[start:stop] if isinstance(seed, list) else seed, table=table, compile=compile,
                               autocast=autocast).x
        except NetworkError as error:
            raise NetworkError(f"{error} This is in the chunk of samples {start} to {stop - 1}.") from None

    def call() -> dict[str, Any]:
        digest = chunks.fingerprint
        return {"shape": list(size), "chunk": length, "dtype": str(dtype), "device": device.type, "process": digest(sde),
                "score": digest(score), "method": f"{recipe.name} {digest((recipe.solver, recipe.eta))}", "noise": noise,
                "times": f"{len(times) - 1} steps from {times[0]:.6g} to {times[-1]:.6g} {digest(times)}", "x_init": digest(x_init),
                "seed": seed if not isinstance(seed, list) else digest(seed), "torch": torch.__version__,
                "table": table, "compile": compile, "autocast": str(autocast)}

    draws = x_init is None or recipe.solver.noise == "always" or (recipe.solver.noise == "eta" and not eq.is_ode)
    return chunks.Chunks(draw, size, length, dtype, device, seed, draws, call, Ranks.of(group))


def encode(sde: SDE, score: Score, x: Tensor, *, method: str | Method = "heun", steps: int | None = None, nfe: int | None = None,
           grid: Any = None, t_start: float | None = None, t_end: float | None = None, conditions: Mapping[str, Any] | None = None,
           progress: bool = False, table: bool = True, **options: Any) -> Tensor:
    """The latent code of x (B, *D): the probability-flow ODE run upwards, from t_end (data) to t_start (noise). Arguments as for
    ``sample``; the grid is the same, read backwards, so that ``sample(..., x_init=encode(...))`` returns x up to the solver's error.
    A stochastic method is a ValueError."""
    contracts.flags(progress=progress, table=table)
    recipe, eq, watched = prepared(sde, score, method, conditions, options, None, steps, nfe, t_start, t_end, grid, True)
    if recipe.solver.noise == "always" or not eq.is_ode:
        raise ValueError(f"method={recipe.name!r}: encoding follows the probability-flow ODE; expected a deterministic method such as "
                         "'heun', 'dpm++2m' or 'ddim' with eta=0.")
    times = times_of(recipe, sde, steps, nfe, grid, t_start, t_end, score)[::-1]
    contracts.state("x", x)
    check_conditions({**getattr(score, "conditions", {}), **(conditions or {})}, len(x))
    watched.batch = len(x)
    inner = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    with _bar(progress, f"encode {recipe.name}", len(times)) as bar:
        end, *_ = _solve(recipe.solver, eq, watched, x.to(inner), sde.levels(times), None, table, False, bar)
    return end.to(x.dtype)


class Path(NamedTuple):
    """``times`` (N + 1,) float64 and ``x`` (N + 1, B, *D), the path with its start."""

    times: Tensor
    x: Tensor


def simulate(sde: SDE | None = None, x0: Tensor | None = None, *, steps: int | None = None, times: Sequence[float] | None = None,
             method: str | None = None, seed: random.Seed = None, noise: str | Noise = "white",
             drift: Callable[[Tensor, float], Tensor] | None = None, diffusion: Callable[[Tensor, float], Any] | None = None,
             t_max: float | None = None) -> Path:
    """Run a process forward from x0 (B, *D) at t = 0.

    ``simulate(sde, x0, steps=300, seed=0)`` draws the path by the exact transition law at every step (method="exact", the
    default), or by Euler-Maruyama (method="euler-maruyama"). ``simulate(drift=a, diffusion=b, x0=..., steps=..., t_max=1.0)`` runs
    dX = a(X, t) dt + b(X, t) dW by Euler-Maruyama for any two callables: a shaped as x, b a number or a tensor that broadcasts
    against x (noise acts coordinate by coordinate). Times are ``steps`` equal steps on [0, t_max], or an increasing list ``times``
    that starts at 0. Strong order 1/2 for noise that depends on the state, 1 for additive noise.
    Raises ValueError on wrong arguments, and where the path leaves the finite numbers.
    """
    own = drift is not None or diffusion is not None
    if own == (sde is not None):
        raise ValueError(f"sde={contracts.shown(sde)}, drift={contracts.shown(drift)}, diffusion={contracts.shown(diffusion)}: expected a "
                         "process (sde), or both drift= and diffusion= callables; not both kinds.")
    if own:
        contracts.function("drift", drift, "lambda x, t: -x"), contracts.function("diffusion", diffusion, "lambda x, t: 1.0")
    else:
        contracts.instance("sde", sde, SDE, A_PROCESS)
    if x0 is None:
        raise ValueError("x0=None: expected the starting state, a tensor (B, ...).")
    x = contracts.state("x0", x0)
    method = contracts.choice("method", ("euler-maruyama" if own else "exact") if method is None else method,
                             ("euler-maruyama", "exact"))
    if own and method == "exact":
        raise ValueError("method='exact': the transition law of a general SDE is not known; expected 'euler-maruyama'.")
    if (steps is None) == (times is None):
        raise ValueError(f"steps={steps!r}, times={times!r}: give exactly one.")
    end = sde.t_max if sde is not None else contracts.real("t_max", 1.0 if t_max is None else t_max, 0.0, low_open=True)
    if sde is not None and t_max is not None:
        end = contracts.real("t_max", t_max, 0.0, sde.t_max, low_open=True)
    if times is None:
        n = contracts.integer("steps", steps, 1, contracts.MOST)
        times = [end * k / n for k in range(n + 1)]
    knots = [contracts.real(f"times[{i}]", t, 0.0, None if own else end)
             for i, t in enumerate(contracts.sequence("times", times, "[0.0, 0.5, 1.0], two or more times", 2))]
    if knots[0] != 0.0 or not all(a < b for a, b in pairwise(knots)):
        raise ValueError(f"times={knots}: expected a strictly increasing list that starts at 0.0.")
    levels = sde.levels(knots) if sde is not None else [NoiseLevel(t, 1.0, 0.0, 0.0, 0.0, 0.0) for t in knots]
    inner = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    x, path = x.to(inner), [x0]
    _check_noise(noise, seed, tuple(x.shape), inner)
    source, _ = _noise(noise, seed, tuple(x.shape), inner, x.device, None, levels[::-1])
    with torch.no_grad():
        for k, (t, s) in enumerate(pairwise(levels)):
            step = source.at(k)
            if method == "exact":
                scale, std = transition(s, t)
                x = scale * x + std * step.unit(t, s)
            elif sde is not None:
                x = x + (s.t - t.t) * t.f * x + math.sqrt(max(0.0, t.g2)) * step.increment(t, s)
            else:
                a, b = _shaped("drift", drift(x, t.t), x), _shaped("diffusion", diffusion(x, t.t), x)  # type: ignore[misc]
                x = x + (s.t - t.t) * a + b * step.increment(t, s)
                if not bool(torch.isfinite(x).all()):
                    raise ValueError(f"drift, diffusion: the path left the finite numbers between t={t.t:.6g} and t={s.t:.6g} (step {k}); "
                                     "expected coefficients that are finite there, or smaller steps.")
            path.append(x.to(x0.dtype))
    return Path(torch.tensor(knots, dtype=torch.float64), torch.stack(path))


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1]))


def _shaped(name: str, value: Any, x: Tensor) -> Any:
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.device != x.device:
            raise TypeError(f"{name}(x, t) returned {value.dtype} on {value.device}; expected real floating numbers on {x.device}.")
        fits = value.shape == x.shape if name == "drift" else _broadcasts(value.shape, x.shape)
        if not fits:
            raise ValueError(f"{name}(x, t) returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}; expected {tuple(x.shape)}"
                             + (", or a shape that broadcasts to it." if name == "diffusion" else "."))
        return value
    return contracts.real(f"{name}(x, t)", value)


def prepared(sde: SDE, score: Score, method: str | Method | Choice, conditions: Mapping[str, Any] | None,
             options: Mapping[str, Any], autocast: torch.dtype | None = None, steps: int | None = None, nfe: int | None = None,
             t_start: float | None = None, t_end: float | None = None, grid: Any = None,
             up: bool = False) -> tuple[Method, ReverseSDE, Watched]:
    """A run's method, equation and watched score, each checked. Budget, span, grid and whether it runs ``up`` are for names that choose a
    method for them. Raises TypeError or ValueError on what does not fit together."""
    contracts.instance("sde", sde, SDE, A_PROCESS)
    contracts.scored("score", score)
    recipe = chosen(method, Run(sde, score, steps, nfe, t_start, t_end, grid, up), **options)
    return recipe, *equation(sde, score, recipe, conditions, autocast)


def equation(sde: SDE, score: Score, recipe: Method, conditions: Mapping[str, Any] | None,
             autocast: torch.dtype | None = None) -> tuple[ReverseSDE, Watched]:
    """The equation of a run, and its watched score, checked. ValueError or TypeError on what does not fit together."""
    if getattr(score, "time_input", None) == "index" and not sde.knots:
        raise ValueError(f"time_input='index' with {type(sde).__name__}: a timestep index belongs to a discrete chain; expected a process "
                         "made by VPSDE.from_betas(betas) or VESDE.from_sigmas(sigmas), or another time_input.")
    if more := contracts.names("conditions", conditions, "{'y': labels}"):
        if not hasattr(score, "condition"):
            raise TypeError(f"conditions={sorted(more)}: this score takes none; expected a network score, sdediff.from_network(...).")
        score = score.condition(**more)
    if autocast_dtype(autocast) is not None:
        if not hasattr(score, "cast"):
            raise TypeError(f"autocast={autocast}: {type(score).__name__} is no network; expected sdediff.from_network(...), or none.")
        score = score.cast(autocast)
    watched = Watched(score)
    eq = ReverseSDE(sde, watched, recipe.eta)
    if eq.observation is not None and not eq.observation.used and not isinstance(recipe.solver, Observing):
        raise ValueError(f"method={recipe.name!r}: it does not read the measurement that this score carries; expected one of "
                         f"{', '.join(methods(observing=True))}, or a guidance such as sdediff.inverse.tweedie(score, operator, std).")
    recipe.solver.accepts(eq)
    return eq, watched


def times_of(recipe: Method, sde: SDE, steps: int | None, nfe: int | None, grid: Any, t_start: float | None,
             t_end: float | None, score: Any = None) -> list[float]:
    """The grid of a run, from whichever of steps, nfe and a list of times was given. ``score``: whose calls ``nfe`` counts, where one
    evaluation of it is not one call. Raises ValueError where these disagree or do not fit the method."""
    if grid is not None and not isinstance(grid, (str, type)) and not callable(grid):
        if not isinstance(grid, (Sequence, np.ndarray, Tensor)) or isinstance(grid, bytes):
            as_grid(grid)                       # which refuses it
        listed = checked(sde, grid)
        if nfe is not None or t_start is not None or t_end is not None:
            raise ValueError("grid lists its times: nfe, t_start and t_end do not apply; leave them out.")
        if steps is not None and contracts.integer("steps", steps, 1) != len(listed) - 1:
            raise ValueError(f"steps={steps}: the grid lists {len(listed)} times, {len(listed) - 1} steps; leave steps out.")
        return listed
    build = as_grid(grid) if grid is not None else recipe.default_grid(sde)
    if (steps is None) == (nfe is None):
        raise ValueError(f"steps={steps!r}, nfe={nfe!r}: give exactly one; steps= counts grid intervals, nfe= network calls.")
    if steps is not None:
        return build(sde, steps, t_start, t_end)
    budget = contracts.integer("nfe", nfe, 1, contracts.MOST)
    calls = lambda n: count_calls(recipe, sde, build(sde, n, t_start, t_end), score)
    if recipe.solver.adaptive:
        raise ValueError(f"nfe={nfe}: {recipe.name} chooses its own number of network calls; give steps= and its tolerance.")
    if (own := getattr(build, "steps", None)) is not None:
        times, used = build(sde, own, t_start, t_end), calls(own)
        if not used <= budget <= max(used, getattr(recipe, "budget", 0)):
            raise ValueError(f"nfe={nfe}: {recipe.name} was tuned for {used} network calls; expected nfe={used}.")
        return times
    low, high, n, used = 1, budget, 1, calls(1)
    if used > budget:
        raise ValueError(f"nfe={nfe}: one step of {recipe.name} takes {used} network calls; expected nfe >= {used}.")
    if isinstance(build, DDPM) and sde.knots:           # no more steps than the span has knots
        start, end = sde.t_max if t_start is None else t_start, sde.t_min if t_end is None else t_end
        high = max(1, min(high, math.floor(start) - math.floor(end)))
    while low < high:                            # the most steps that fit: calls grow with steps, and about in proportion
        n = min(high, max(low + 1, budget * n // max(1, used)))
        used = calls(n)
        low, high = (n, high) if used <= budget else (low, n - 1)
    return build(sde, low, t_start, t_end)


_Course = tuple[Method, tuple[float, ...], tuple[NoiseLevel, ...], Programs | None]
_PLAIN = {int, float, str, bool, type(None)}


def _course(sde: SDE, score: Score, method: str | Method, options: Mapping[str, Any], *span: Any) -> _Course:
    """The method, the times, the levels of a run, and the programs that it has had. ``span``: steps, nfe, grid, t_start, t_end. Kept where
    plain values say all about it, since looking it up costs a tenth."""
    if chooses(method):
        steps, nfe, grid, t_start, t_end = span
        method, options = chosen(method, Run(sde, score, steps, nfe, t_start, t_end, grid), **options), {}
    told: Any = score if says_more(score) else None
    plain = (told is None and (type(method) is str or (isinstance(method, Method) and _kept(method))) and is_value(sde)
             and _PLAIN.issuperset(map(type, (*span, *options.values()))))
    if plain:
        return _coursed(sde, method, told, *span, **options)
    return *_coursed.__wrapped__(sde, method, told, *span, **options)[:3], None


def _kept(method: Method) -> bool:
    """Whether a method is plain values, so that what follows from it can be kept."""
    return all(map(is_value, (method.solver, method.eta, method.grid)))


@functools.lru_cache(maxsize=64, typed=True)            # typed: steps=True is not steps=1
def _coursed(sde: SDE, method: str | Method, score: Any, /, *span: Any, **options: Any) -> _Course:
    contracts.instance("sde", sde, SDE, A_PROCESS)
    recipe = as_method(method, **options)
    steps, nfe, grid, t_start, t_end = span
    times = tuple(times_of(recipe, sde, steps, nfe, grid, t_start, t_end, score))
    return recipe, times, tuple(sde.levels(times)), {}


def says_more(score: Any) -> bool:
    """Whether a score's calls are not simply its evaluations, or depend on what it observes."""
    if type(score) is NetworkScore:
        return False
    return hasattr(score, "calls_at") or getattr(score, "observation", None) is not None


class _Zero:
    """A score of zero that counts the calls which ``score`` would make."""

    def __init__(self, score: Any) -> None:
        self.score, self.calls, seen = score, 0, getattr(score, "observation", None)
        self.observation = None if seen is None else seen.blank()

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        self.calls += calls_at(self.score, level)
        zero = 0 * x                            # which has a gradient, where a method asks for one
        return Prediction(x, level, x0=zero, eps=zero, score=1 + zero)


def count_calls(recipe: Method, sde: SDE, times: Sequence[float], score: Any = None) -> int:
    """Network calls of a method on a grid, counted on a state of few numbers with a score of zero. ``score``: the one meant, where an
    evaluation of it is not one call."""
    zero = _Zero(score)
    event = (1,) if zero.observation is None else zero.observation.operator.event
    solver = recipe.solver.smallest()
    x = torch.zeros(solver.couples or 1, *event, dtype=torch.float64)
    noise = random.WhiteNoise(0, tuple(x.shape), dtype=x.dtype, device=x.device)
    for _ in iterate(ReverseSDE(sde, zero, recipe.eta), solver, x, sde.levels(times), noise):
        continue
    return zero.calls


def _where(score: Any, device: Any, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for a shape: the caller's, else those of the network's parameters, else torch's defaults."""
    network = getattr(score, "network", None)
    like = next((p for p in network.parameters() if p.is_floating_point()), None) if isinstance(network, torch.nn.Module) else None
    device = torch.device(device) if device is not None else like.device if like is not None else torch.get_default_device()
    return device, dtype or (like.dtype if like is not None else torch.get_default_dtype())


def _noise(noise: str | Noise, seed: random.Seed, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device,
           eq: ReverseSDE | None, levels: Sequence[NoiseLevel], first: int = 0) -> tuple[Noise, int | tuple[int, ...] | None]:
    """The source of a run and the seed that reproduces it. ``levels`` run from noise to data; ``first`` is the first sample's index."""
    if type(noise) is not str and isinstance(noise, Noise):
        return noise, None
    if isinstance(seed, torch.Generator):
        if noise != "white":
            raise ValueError(f"noise={noise!r}: a Brownian path needs an integer seed, not a torch.Generator.")
        return random.GeneratorNoise(seed, shape, dtype=dtype, device=device), None
    key = random.canonical_seed(seed, shape[0])
    used = key if isinstance(key, int) else tuple(key)
    if noise == "white":
        return random.WhiteNoise(key, shape, dtype=dtype, device=device, first=first), used
    if noise == "brownian":
        return BrownianPath(key, shape, span=(0.0, eq.sde.t_max if eq else levels[0].t), dtype=dtype, device=device, first=first), used
    if eq is None or callable(eq.eta) or not eq.eta:
        raise ValueError(f"noise='clock': the equation's own clock needs a constant eta > 0, got eta={eq.eta if eq else None!r}.")
    clock = quadratic_variation(eq.eta)
    finite = [level for level in levels if math.isfinite(level.lam)]
    return BrownianPath(key, shape, span=(0.0, clock(finite[-1])), clock=clock, dtype=dtype, device=device, first=first), used


def _check_noise(noise: str | Noise, seed: random.Seed, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What can be refused of noise and seed, whether or not the run will draw."""
    if type(noise) is not str and isinstance(noise, Noise):
        if seed is not None:
            raise ValueError("seed, noise: a noise source carries its own seed; leave seed out.")
        if noise.shape != shape or noise.dtype != dtype:
            raise ValueError(f"noise is bound to shape {noise.shape} and {noise.dtype}; expected {shape} and {dtype}, those of the state.")
        return
    if type(noise) is not str or noise != "white":
        contracts.choice("noise", noise, ("white", "brownian", "clock"))
    if seed is not None and not isinstance(seed, torch.Generator):
        random.canonical_seed(seed, shape[0])


def _check_coupled(solver: Solver, name: str, samples: int) -> None:
    """ValueError where samples that belong together would be parted."""
    if solver.couples and samples % solver.couples:
        raise ValueError(f"{name}={samples}: {type(solver).__name__} moves {solver.couples} samples together; expected a multiple of "
                         f"{solver.couples}.")


def check_conditions(conditions: Mapping[str, Any] | None, batch: int) -> None:
    """ValueError where a condition has no row for each sample."""
    for name, value in (conditions or {}).items():
        if isinstance(value, Tensor) and value.ndim and len(value) != batch:
            raise ValueError(f"conditions[{name!r}] has {len(value)} rows for a batch of {batch}; expected a leading batch axis of "
                             f"{batch}, or a scalar (what all samples share otherwise belongs to the score itself).")


