r"""Conformance of a solver: twenty checks that any solver of the protocol can be held to, ours or a third party's.

    import sdediff.testing as testing
    report = testing.check_solver(MySolver(), expected_failures={"budget": "no gradient through C++"})
    report.raise_on_failure()                           # or print(report); testing.run_check("order", MySolver()) is one check

What applies is decided by declared facts: ``order``, ``weak_order``, ``strong_order`` (where declared), ``noise`` and ``remembers`` of
the solver, ``rtol`` (it chooses its own steps), ``eta`` of the method. The theorems and numbers behind the checks, for steps h = O(1/n):

*Order.* On the probability flow e(n) = O(n^-p). On a family in eta the flow is its eta = 0; its weak order is measured there for eta > 0.
*Affine probe.* With an affine score a step is affine in (start, noises): unit impulses give the exact output law (``measure``).
*Weak order beyond the affine.* For a step without memory, F_k(x, z), the backward equation u_k(x) = E u_{k+1}(F_k(x, Z)), u_n = phi, is
solved on a grid in x (cubic splines) by Gauss-Hermite quadrature in z; the error is int p_T u_0 dx - E phi(X_0), without Monte Carlo.
With memory: differences on common paths.
*Fixed point* (no order: a corrector). A Langevin step on N(0, v) is x -> a x + b z; k of them, a step, have the stationary variance
v_s = b^2/(1 - a^2), which is that of the discretised Langevin equation, v/(1 - h/(2v)), if and only if a = (1 - h/v)^k for a whole k.
*Limit.* Richardson: 2^q x_2n - x_n over 2^q - 1 cancels an error h^q; Aitken's three-term rule one of any order. Neither can cancel a
limit that is wrong.
*Smoothness.* In float64 the result is a smooth function of a knot: its second difference over 1e-6 in lambda is 1e-10 at most. Coefficients
formed in float32 leave 1e-8.
*Invariance.* With x0 = E[x_0|x]: rotating data, start and noise rotates the result. A method that is exact on every point mass commutes
with a shift b of the data (start moved by alpha_T b), and with the change to x/alpha at the same times.

The law of the checks that need no anisotropy is ``Twins``: independent coordinates, each of two modes +-1 of variance v. With
S = alpha^2 v + sigma^2 and h = tanh(alpha x/S),  E[x_0|x] = (alpha v x + sigma^2 h)/S,  score = (alpha h - x)/S.

References: Kloeden & Platen 1992, ch. 9-10, 14; Talay & Tubaro 1990 (weak errors expand in h); Hairer, Norsett & Wanner 1993, II.4, II.9.
"""
from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import math
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import choice, flags, integer, known, real
from ..equation import ReverseSDE
from ..grids import LogSNR
from ..random import Noise, WhiteNoise
from ..recipes import Method
from ..recipes import method as as_method
from ..sampling import count_calls, encode, iterate, sample, sample_info
from ..score import NetworkError, Prediction, from_network
from ..sde import EDMSDE, SDE, VESDE, VPSDE, NoiseLevel, RectifiedFlow, SubVPSDE
from ..solvers import DDIM, Solver, State, table
from .measure import (
    FLOOR,
    MIDWAY,
    Convergence,
    Law,
    Problem,
    affine_laws,
    gaussian_problem,
    knot_path,
    mixture_problem,
    overlap_problem,
    path_reference,
    strong_convergence,
)
from .report import Finding, NotApplicable, Report, Result, Suite, at_least, at_most, holds

F64, F32 = torch.float64, torch.float32
VP = VPSDE()
SHORT = 6                                   # steps of the runs that measure no order
SPAN = 5.0 + 4.6                            # of lambda, VPSDE() from t_max to t_min: h = SPAN/n


# -- the law of the structural checks -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Twins:
    """Independent coordinates, each half N(-1, v), half N(1, v): exact score, density and distribution in any shape."""

    variance: float = 0.15

    def __post_init__(self) -> None:
        real("variance", self.variance, 0.0, low_open=True)

    def score(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """What is known of x (B, *D) at a level, exactly."""
        m = level.to(x)
        s = m.alpha**2 * self.variance + m.sigma**2
        h = torch.tanh(m.alpha / s * x)
        return Prediction(x, level, x0=(m.alpha * self.variance / s) * x + (m.sigma**2 / s) * h, score=(m.alpha / s) * h - x / s)

    def log_prob(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Log density (B,)."""
        s = level.alpha**2 * self.variance + level.sigma**2
        u = level.alpha * x / s
        each = u.abs() + torch.log1p(torch.exp(-2 * u.abs())) - (x**2 + level.alpha**2) / (2 * s) - 0.5 * math.log(8 * math.pi * s)
        return _each(each)

    def cdf(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Distribution function of a coordinate."""
        root = math.sqrt(level.alpha**2 * self.variance + level.sigma**2)
        return (torch.special.ndtr((x - level.alpha) / root) + torch.special.ndtr((x + level.alpha) / root)) / 2

    def sample(self, level: NoiseLevel, shape: Sequence[int], seed: int = 0) -> Tensor:
        """Draws of the noised law, float64."""
        noise = WhiteNoise(seed, shape, dtype=F64)
        modes = torch.sign(noise.normal(21))
        return level.alpha * modes + math.sqrt(level.alpha**2 * self.variance + level.sigma**2) * noise.normal(20)


@dataclass(frozen=True)
class _Normal:
    """Independent coordinates N(0, v): a score that is elementwise and linear, hence the same bits in any batch."""

    variance: float = 0.25

    def score(self, x: Tensor, level: NoiseLevel) -> Prediction:
        s = level.alpha**2 * self.variance + level.sigma**2
        return Prediction(x, level, x0=(level.alpha * self.variance / s) * x, score=(-1 / s) * x)

    def log_prob(self, x: Tensor, level: NoiseLevel) -> Tensor:
        s = level.alpha**2 * self.variance + level.sigma**2
        return _each(-(x**2 / (2 * s) + 0.5 * math.log(2 * math.pi * s)))


def _each(terms: Tensor) -> Tensor:
    """Sums over the event: (B, *D) -> (B,)."""
    return terms.flatten(1).sum(1) if terms.ndim > 1 else terms


TWINS, NORMAL = Twins(), _Normal()


# -- the subject ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Subject:
    """A method with what is declared of it. ``make``: target -> Method (constant, unless the method needs a density)."""

    name: str
    make: Callable[[Any], Method]
    order: int | None
    weak: int | None
    strong: float | None
    stochastic: bool
    full: bool = False
    _ends: dict[Any, list[Tensor]] = field(default_factory=dict, repr=False)

    def recipe(self, target: Any = TWINS) -> Method:
        """The method under test, for a target."""
        return self.make(target)

    @property
    def solver(self) -> Solver:
        """Its solver."""
        return self.recipe().solver

    @property
    def flow(self) -> Method | None:
        """The method on the probability flow; None if it always draws noise."""
        return None if self.solver.noise == "always" else dataclasses.replace(self.recipe(), eta=0.0)

    @property
    def tolerance(self) -> float:
        """The relative tolerance of a solver that chooses its own steps, else 0."""
        return float(getattr(self.solver, "rtol", 0.0))

    @property
    def fixed_point(self) -> bool:
        """No order and no tolerance: the method is defined by the law it leaves in place at a level."""
        return self.stochastic and self.order is None and self.weak is None and not self.tolerance

    def run(self, x: Tensor, levels: Sequence[NoiseLevel] | None = None, *, target: Any = TWINS, score: Any = None, seed: int = 7,
            noise: Noise | None = None, sde: SDE = VP, recipe: Method | None = None) -> Tensor:
        """The end of a run of the bare loop."""
        *_, state = self.states(x, levels, target=target, score=score, seed=seed, noise=noise, sde=sde, recipe=recipe)
        return state.x

    def states(self, x: Tensor, levels: Sequence[NoiseLevel] | None = None, *, target: Any = TWINS, score: Any = None, seed: int = 7,
               noise: Noise | None = None, sde: SDE = VP, recipe: Method | None = None) -> Iterator[State]:
        """The states of a run, one a level."""
        recipe = recipe or self.recipe(target)
        noise = noise or WhiteNoise(seed, tuple(x.shape), dtype=x.dtype)
        return iterate(ReverseSDE(sde, score or target.score, recipe.eta), recipe.solver, x, levels or _grid(SHORT), noise)

    def sample(self, score: Any = None, **kwargs: Any) -> Tensor:
        """The front door, on a short log-SNR grid. The solver's own steps are meant, not their table."""
        return sample(VP, score or TWINS.score, method=self.recipe(), **{"grid": "logsnr", "steps": SHORT, "table": False, **kwargs})


@functools.cache
def _grid(n: int, sde: SDE = VP, t_start: float | None = None, t_end: float | None = None) -> list[NoiseLevel]:
    return sde.levels(LogSNR()(sde, n, t_start, t_end))


def _start(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return TWINS.sample(VP.at(1.0), shape, seed=3).to(dtype)


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, inf where either is not finite."""
    if a.shape != b.shape:
        return math.inf
    gap = float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0
    return gap if math.isfinite(gap) else math.inf


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


SOLVER = Suite()


# -- 1-6: what a step may touch and what it must not depend on ------------------------------------------------------
@SOLVER.check
def contract(s: Subject) -> Iterator[Finding]:
    """State in, state out: shape, dtype and device are x's; nothing that was handed in is changed or shared."""
    for dtype in (F64, F32):
        x = _start(5, 2, dtype=dtype)
        kept = x.clone()
        out = s.sample(x_init=x, seed=0)
        yield holds(f"shape, dtype and device of x, {dtype}", (out.shape, out.dtype, out.device) == (x.shape, dtype, x.device))
        yield holds("the caller's x is unchanged", torch.equal(x, kept))
        yield holds("the result has storage of its own", _storage(out) != _storage(x))
    given: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, level: NoiseLevel) -> Prediction:
        p = TWINS.score(x, level)
        given.extend((v, v.clone()) for v in (p.x0, p.score))
        return p

    kept_states = [(state.x, state.x.clone()) for state in s.states(_start(5, 2), score=watched)]
    yield at_most("earlier states are unchanged", max(_gap(a, b) for a, b in kept_states), 0.0)
    yield at_most("what the model returned is unchanged", max(_gap(a, b) for a, b in given), 0.0)
    yield holds("the result is no tensor of the model's", _storage(kept_states[-1][0]) not in {_storage(a) for a, _ in given})


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@SOLVER.check
def seed(s: Subject) -> Iterator[Finding]:
    """A run is a pure function of (start, levels, seed): every draw belongs to one step, and the global random state to the user."""
    x = _start(5, 2)
    before, numpy_before = torch.random.get_rng_state(), _numpy_state()
    a, b, other = s.run(x, seed=1), s.run(x, seed=1), s.run(x, seed=2)
    if not s.stochastic:
        s.sample(x_init=x)
    untouched = torch.equal(before, torch.random.get_rng_state()) and numpy_before == _numpy_state()
    yield holds("the global random state is untouched", untouched)
    yield at_most("the same seed gives the same bits", _gap(a, b), 0.0)
    log: dict[Any, set[int]] = {}
    levels = [VP.at(0.5)] * (SHORT + 1) if s.fixed_point else _grid(SHORT)
    s.run(x, levels, noise=_Logged(WhiteNoise(1, x.shape, dtype=F64), log))
    if not s.stochastic:
        yield at_most("draws of a deterministic run", len(log), 0)
        yield at_most("another seed gives the same bits", _gap(a, other), 0.0)
        return
    if not s.solver.looks_ahead:                # one that looks ahead draws for several steps in one
        yield at_least("steps that draw", len(set().union(*log.values())), 1)
        yield at_most("steps that share a draw", max(len(steps) for steps in log.values()), 1)
    yield at_least("another seed gives another result", _gap(a, other), 1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        c = s.sample(x_init=x)
        torch.manual_seed(5)
        info = sample_info(VP, TWINS.score, x_init=x, method=s.recipe(), grid="logsnr", steps=SHORT, table=False)
    yield at_most("seed=None follows torch.manual_seed", _gap(c, info.x), 0.0)
    yield at_most("the seed that a run reports repeats it", _gap(c, s.sample(x_init=x, seed=info.seed)), 0.0)


def _numpy_state() -> bytes:
    return pickle.dumps(np.random.get_state())  # noqa: NPY002  (the legacy state is the global one)


class _Around(Noise):
    """A source in terms of another."""

    def __init__(self, inner: Noise, shape: Sequence[int] | None = None) -> None:
        self.inner, self.shape, self.dtype, self.device = inner, tuple(inner.shape if shape is None else shape), inner.dtype, inner.device

    def _like(self, inner: Noise) -> Any:
        raise NotImplementedError

    def _map(self, z: Tensor, kind: str) -> Tensor:
        return z

    def at(self, step: int) -> Noise:
        return self._like(self.inner.at(step))

    def within(self) -> Noise:
        return self._like(self.inner.within())

    def normal(self, use: int = 1) -> Tensor:
        return self._map(self.inner.normal(use), f"normal {use}")

    def unit(self, t: Any, s: Any) -> Tensor:
        return self._map(self.inner.unit(t, s), "unit")

    def area(self, t: Any, s: Any) -> Tensor:
        return self._map(self.inner.area(t, s), "area")


class _Logged(_Around):
    """Remembers which steps of the outer loop asked for each draw."""

    def __init__(self, inner: Noise, log: dict[Any, set[int]], path: tuple[int, ...] = (), step: int = 0, outer: int | None = None,
                 clock: list[int] | None = None) -> None:
        super().__init__(inner)
        self.log, self.path, self.step, self.outer = log, path, step, outer
        self.clock = [0] if clock is None else clock            # the step that the loop is in

    def at(self, step: int) -> Noise:
        if self.outer is None:                                  # the loop's own call: a new step begins
            self.clock[0] = step
        return _Logged(self.inner.at(step), self.log, self.path, step, step if self.outer is None else self.outer, self.clock)

    def within(self) -> Noise:
        return _Logged(self.inner.within(), self.log, (*self.path, self.step), 0, self.outer, self.clock)

    def _map(self, z: Tensor, kind: str) -> Tensor:
        self.log.setdefault((self.path, self.step, kind), set()).add(self.clock[0])
        return z


class _Reshaped(_Around):
    """The draws of a flat state (B, n) in another event shape."""

    def _like(self, inner: Noise) -> Any:
        return _Reshaped(inner, self.shape)

    def _map(self, z: Tensor, kind: str) -> Tensor:
        return z.reshape(self.shape)


class _Rotated(_Around):
    """Draws times a matrix."""

    def __init__(self, inner: Noise, q: Tensor) -> None:
        super().__init__(inner)
        self.q = q

    def _like(self, inner: Noise) -> Any:
        return _Rotated(inner, self.q)

    def _map(self, z: Tensor, kind: str) -> Tensor:
        return z @ self.q


@SOLVER.check
def batch(s: Subject) -> Iterator[Finding]:
    """A sample belongs to its seed: alone, in a chunk, permuted or beside a NaN it is the same (1e-13: the tails of vector loops)."""
    x, n = _start(8, 2), 8
    run = lambda x, seed: s.run(x, target=NORMAL, noise=WhiteNoise(seed, tuple(x.shape), dtype=F64))
    whole, bound = run(x, 1), 1e-13
    yield at_most("the first three of eight alone", _gap(run(x[:3], 1), whole[:3]), bound)
    chunk = s.run(x[3:], target=NORMAL, noise=WhiteNoise(1, (5, 2), dtype=F64, first=3))
    yield at_most("the last five of eight alone", _gap(chunk, whole[3:]), bound)
    seeds, order = [11 * k for k in range(n)], [3, 1, 7, 0, 2, 6, 5, 4]
    yield at_most("rows permuted", _gap(run(x[order], [seeds[k] for k in order]), run(x, seeds)[order]), bound)
    poisoned = x.clone()
    poisoned[4] = math.nan
    keep = [k for k in range(n) if k != 4]
    yield at_most("beside a row of NaN", _gap(run(poisoned, 1)[keep], whole[keep]), bound)


@SOLVER.check
def dtype(s: Subject) -> Iterator[Finding]:
    """x decides the dtype; coefficients are float64 in every dtype; a seed means the same noise in all."""
    x = _start(16, 2)
    exact = s.sample(x_init=x, seed=2)
    for kind, bound in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        out = s.sample(x_init=x.to(kind), seed=2)
        yield holds(f"{kind} stays", out.dtype == kind)
        gap = _gap(out, exact) / float(exact.abs().max())
        yield at_most(f"{kind} against float64, of the largest entry", gap, bound + 100 * s.tolerance)
    n = 400 if s.full else 60
    n = SHORT if s.tolerance else min(n, 12) if s.fixed_point and not s.full else n
    levels = [VP.at(0.5)] * (n + 1) if s.fixed_point else _grid(n)
    a, b = (s.run(x.to(kind), levels, seed=2) for kind in (F64, F32))
    yield holds("float64 and float32 stay", (a.dtype, b.dtype) == (F64, F32))
    yield at_most(f"float32 against float64 after {n} steps, of rms(x)", _rms(a - b) / _rms(a), max(1.2e-5, 10 * s.tolerance))
    try:
        torch.set_default_dtype(F64)
        wide = s.run(x.to(F32), seed=2)
    finally:
        torch.set_default_dtype(F32)
    yield holds("another default dtype does not promote", wide.dtype == F32)
    yield at_most("another default dtype, the same bits", _gap(wide, s.run(x.to(F32), seed=2)), 0.0)
    if not s.tolerance:
        knots, middle = _grid(SHORT), s.run(x, seed=2)
        for k in range(1, SHORT):
            low, high = (s.run(x, [*knots[:k], VP.level_of(knots[k].lam + d), *knots[k + 1:]], seed=2) for d in (-1e-6, 1e-6))
            yield at_most(f"second difference in knot {k}, of rms(x)", _rms(low - 2 * middle + high) / _rms(middle), 1e-9)
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    out = s.sample(from_network(lambda x, c: layer(x.float()).to(x)), x_init=x, seed=2)
    yield at_most("weights of another dtype", _gap(out, s.sample(from_network(_Module(layer)), x_init=x, seed=2)), 1e-5 + 100 * s.tolerance)


class _Module(torch.nn.Module):
    """A layer as a network (x, c)."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layer(x)


@SOLVER.check
def layout(s: Subject) -> Iterator[Finding]:
    """The event's rank, the strides and the autograd state of x change nothing."""
    bound = 1e-12 + 10 * s.tolerance
    flat = _start(4, 6)
    whole = s.run(flat, seed=3)
    for shape in ((4, 2, 3), (4, 3, 1, 2), (4, 1, 2, 1, 3)):
        out = s.run(flat.reshape(shape), noise=_Reshaped(WhiteNoise(3, (4, 6), dtype=F64), shape))
        yield at_most(f"shape {shape} against (4, 6)", _gap(out.reshape(4, 6), whole), bound)
    one = _start(4, 1)
    yield at_most("shape (4,) against (4, 1)", _gap(s.run(one[:, 0], noise=_Reshaped(WhiteNoise(3, (4, 1), dtype=F64), (4,))),
                                                    s.run(one, seed=3)[:, 0]), bound)
    yield holds("an empty batch", s.sample(x_init=torch.zeros(0, 2), seed=0).shape == (0, 2))
    yield at_most("a transposed x", _gap(s.run(flat.t().contiguous().t(), seed=3), whole), bound)
    row = flat[:1].expand(4, 6)
    yield at_most("an expanded x", _gap(s.run(row, seed=3), s.run(row.contiguous(), seed=3)), bound)
    image = _start(2, 3, 2, 2)
    yield at_most("channels last", _gap(s.run(image.to(memory_format=torch.channels_last), seed=3), s.run(image, seed=3)), bound)
    with torch.inference_mode():
        yield at_most("inference mode", _gap(s.sample(x_init=flat, seed=3), s.sample(x_init=flat.clone(), seed=3)), 0.0)
    out = s.sample(x_init=flat.clone().requires_grad_(), seed=3)
    yield at_most("an x that requires grad", _gap(out.detach(), s.sample(x_init=flat, seed=3)), 0.0)


@SOLVER.check
def degenerate(s: Subject) -> Iterator[Finding]:
    """Steps of zero length do nothing, one step is a run, and a last knot at sigma = 0 is reached."""
    x = _start(16, 2)
    levels = _grid(SHORT)
    if not s.fixed_point:
        bound = 1e-12 + 10 * s.tolerance
        yield at_most("an empty span returns x", _gap(s.run(x, [levels[0]] * 2, seed=4), x), 1e-12)
        twice = list(s.states(x, [*levels[:3], *levels[2:]], seed=4))
        yield at_most("two equal knots: the second step does nothing", _gap(twice[2].x, twice[3].x), 1e-12)
        if not s.stochastic:
            yield at_most("two equal knots change nothing", _gap(twice[-1].x, s.run(x, levels)), bound)
    one = s.run(x, [levels[0], levels[-1]], seed=4)
    yield holds("one step from end to end is finite", torch.isfinite(one).all())
    clean = [*_grid(40), VP.at(0.0)]
    out = s.run(x, clean, seed=4)
    yield holds("the last knot at sigma = 0 is finite", torch.isfinite(out).all())
    before = s.run(x, clean[:-1], seed=4)
    yield at_most("the last step to sigma = 0, of rms(x)", _rms(out - before) / _rms(before), 0.05)
    flow = [RectifiedFlow().at(t) for t in (1.0, 0.6, 0.2)]
    try:
        out = s.run(x, flow, seed=4, sde=RectifiedFlow())
    except ValueError as refusal:
        yield holds("a start at alpha = 0 is refused by that name", "alpha = 0" in str(refusal))
    else:
        yield holds("a start at alpha = 0 is finite", torch.isfinite(out).all())


# -- 7-9: convergence of the flow -----------------------------------------------------------------------------------
PROCESSES: tuple[tuple[SDE, float], ...] = ((VP, 1.0), (SubVPSDE(), 1.0), (VESDE(), 1.0), (EDMSDE(), 80.0), (RectifiedFlow(), 0.99))
GAUSSIAN_C = {1: 2.5, 2: 1.0, 3: 1.0, 4: 2.0, 5: 4.0}     # error <= C h^p, h the step in lambda: some three times the largest of ours


@SOLVER.check
def gaussian(s: Subject) -> Iterator[Finding]:
    """The flow map on an anisotropic Gaussian, or mean and variance on a Gaussian, under every process: error <= C h^p; for a
    corrector, its fixed point."""
    if not (s.fixed_point or s.tolerance or s.weak or (s.flow is not None and s.order)):
        raise NotApplicable("it declares no order")
    for sde, t_start in PROCESSES if s.full else PROCESSES[3:]:        # VP is the process of the other checks
        name, problem = type(sde).__name__, gaussian_problem(sde)
        if s.fixed_point:
            yield from _stationary(s, sde)
            continue
        grids = [_grid(n, sde, t_start) for n in ((2,) if s.tolerance else (50, 100))]
        exact, start = problem.solution(t_start, sde.t_min), problem.start(t_start)
        if s.flow is not None:
            errors = [_rms(s.run(start, levels, target=problem.target, sde=sde, recipe=s.flow) - exact) for levels in grids]
            if s.tolerance:
                yield at_most(f"flow map under {name}", errors[0], 1e3 * s.tolerance)
            elif s.order is not None:
                yield from _falls(f"flow map under {name}", errors, grids[-1], s.order)
        if s.stochastic and s.weak:
            errors = [affine_laws(s.recipe(), sde, levels)[-1].w2 for levels in grids]
            yield from _falls(f"W2 of the law under {name}", errors, grids[-1], s.weak)


def _falls(what: str, errors: Sequence[float], fine: Sequence[NoiseLevel], p: int) -> Iterator[Finding]:
    h = (fine[-1].lam - fine[0].lam) / (len(fine) - 1)
    bound = GAUSSIAN_C[min(p, 5)] * h**p
    yield at_most(f"{what}, n={len(fine) - 1}, against C h^{p}", errors[-1], bound)
    if errors[-1] > bound / 50:                 # errors smaller yet may be passing through zero
        yield at_least(f"{what}, log2 e(n)/e(2n), errors {errors[0]:.1e} {errors[1]:.1e}", math.log2(errors[0] / errors[1]), 0.7 * p)


def _stationary(s: Subject, sde: SDE) -> Iterator[Finding]:
    level = sde.level_of(0.2)
    v = level.alpha**2 * 0.25 + level.sigma**2
    try:
        table(s.solver, sde, [level, level], eta=s.recipe().eta)
    except Exception:                           # it reads norms or a density, or works on tensors alone: not linear, by its own word
        yield from _invariant(s, sde, level)
        return
    _, one, two = affine_laws(s.recipe(), sde, [level] * 3)
    gain2 = (two.variance - one.variance) / (one.variance - v) if one.variance != v else math.nan   # var_k - v_s = a^2k (v - v_s)
    stationary = (one.variance - gain2 * v) / (1 - gain2)
    h = 2 * v * (1 - v / stationary)
    count = math.log(gain2) / (2 * math.log(1 - h / v)) if 0 < gain2 < 1 and 0 < h < v else math.nan
    off = abs(count - max(1, round(count))) if math.isfinite(count) else math.nan
    yield at_most(f"fixed point under {type(sde).__name__}: Langevin steps in a step are whole", off, 1e-6)
    yield at_most("bias of the fixed point, var/v - 1", abs(stationary / v - 1), 0.15)
    yield at_most("the mean stays", abs(two.mean - two.exact_mean), 1e-12)


def _invariant(s: Subject, sde: SDE, level: NoiseLevel) -> Iterator[Finding]:
    """Without a table: draws of the exact law stay draws of it (variance: 5 standard errors, and 10 % unless it is exact)."""
    n, event = 4000, 1
    x = TWINS.sample(level, (n, event), seed=6)
    out = s.run(x, [level] * 21, sde=sde, seed=8)
    slack = 0.0 if getattr(s.solver, "density", None) is not None else 0.1
    second = out.square()
    exact = level.alpha**2 * (1 + TWINS.variance) + level.sigma**2
    off = abs(float(second.mean()) / exact - 1)
    yield at_most(f"mean square at a fixed level of {type(sde).__name__}", off, 5 * float(second.std()) / exact / math.sqrt(n) + slack)


def _ends(s: Subject, problem: Problem, t_start: float) -> list[Tensor]:
    """Ends of the flow, one grid after the other; kept, for two checks read them."""
    key, steps = (problem.name, t_start), _steps(s, t_start)
    if key not in s._ends:
        sde = problem.sde
        s._ends[key] = [s.run(problem.start(t_start), _grid(n, sde, t_start), target=problem.target, sde=sde, recipe=s.flow) for n in steps]
    return s._ends[key]


def _cases(s: Subject) -> Iterable[tuple[Problem, float]]:
    yield mixture_problem(), 1.0
    yield mixture_problem(), MIDWAY
    if s.full:
        yield gaussian_problem(), 1.0
        yield gaussian_problem(), MIDWAY


def _steps(s: Subject, t_start: float) -> tuple[int, ...]:
    return (40, 80, 160, 320) if s.full else (40, 80, 160) if t_start == VP.t_max else (20, 40, 80)     # half the span, half the steps


@SOLVER.check
def order(s: Subject) -> Iterator[Finding]:
    """Fixed steps: the declared order, from the start and from mid-trajectory. Own steps: the error follows the tolerance. Noise that
    is a path's: the strong order on one path."""
    if s.flow is not None and s.tolerance:
        yield from _tolerances(s)
    elif s.flow is not None and s.order is not None:
        for problem, t_start in _cases(s):
            exact = problem.solution(t_start, VP.t_min)
            measured = Convergence(_steps(s, t_start), tuple(_rms(end - exact) for end in _ends(s, problem, t_start)))
            where = f"{problem.name} from t={t_start}, errors {' '.join(f'{e:.1e}' for e in measured.errors)}"
            if measured.errors[-1] < FLOOR:
                yield at_most(f"error at the finest grid, {where}", measured.errors[-1], FLOOR)
            else:
                slack = 0.15 if s.order <= 2 else 0.3 if s.order == 3 or s.full else 0.5       # 160 steps are few for order 4
                yield at_least(f"order, {where}", measured.order if s.full else measured.slopes[-1], s.order - slack)
    elif s.strong is None or not s.stochastic:
        raise NotApplicable("it declares no order on the flow, and no strong order")
    if s.strong is not None and s.stochastic:
        yield _strong(s)


def _tolerances(s: Subject) -> Iterator[Finding]:
    problem, errors, tolerances = mixture_problem(), [], _affordable(s, (1e-3, 1e-5, 1e-7))
    for rtol in tolerances:
        recipe = _at_tolerance(s.flow, rtol)
        end = s.run(problem.start(1.0), _grid(2), target=problem.target, recipe=recipe)
        errors.append(_rms(end - problem.solution(1.0, VP.t_min)))
        yield at_most(f"error at rtol={rtol:g}", errors[-1], 100 * rtol)
    first, last = tolerances[0], tolerances[-1]
    yield at_least(f"error at rtol={first:g} over error at {last:g}", errors[0] / errors[-1], math.sqrt(first / last))


def _affordable(s: Subject, tolerances: Sequence[float]) -> list[float]:
    """Those that a sample reaches within 3000 network calls, or the loosest: the work of a method of low order, which grows as
    tolerance^(-1/p), is predicted from that at 1e-3 and 1e-5."""
    problem, counts = mixture_problem(), []
    for rtol in (1e-3, 1e-5):
        calls: list[NoiseLevel] = []
        score = lambda x, level, calls=calls: calls.append(level) or problem.target.score(x, level)
        s.run(problem.start(1.0)[:1], _grid(2), target=problem.target, score=score, recipe=_at_tolerance(s.flow, rtol))
        counts.append(len(calls))
    rate = math.log(counts[1] / counts[0]) / math.log(100)
    return [rtol for rtol in tolerances if counts[1] * (1e-5 / rtol)**rate <= 3000] or [max(tolerances)]


def _strong(s: Subject) -> Finding:
    steps, finest, paths = ((32, 64, 128, 256), 2048, 400) if s.full else ((32, 64, 128), 1024, 200)
    source, problem = (lambda seed, shape: knot_path(seed, shape, finest)), overlap_problem()
    recipe = s.recipe(problem.target)
    measured = strong_convergence(recipe, problem, steps=steps, finest=finest, paths=paths, source=source, reference=path_reference(recipe))
    distances = " ".join(f"{e:.1e}" for e in measured.errors)
    return at_least(f"strong order on one path, distances {distances}", measured.order, (s.strong or 0) - 0.25)


def _at_tolerance(recipe: Any, tolerance: float) -> Method:
    return dataclasses.replace(recipe, solver=dataclasses.replace(recipe.solver, rtol=tolerance, atol=tolerance))


@SOLVER.check
def limit(s: Subject) -> Iterator[Finding]:
    """The flow that the grids converge to is that of an independent integrator."""
    if s.flow is None or (s.order is None and not s.tolerance):
        raise NotApplicable("it has no limit on the flow; its law is measured")
    if s.tolerance:
        rtol = min(_affordable(s, (1e-5, 1e-9)))
        end = s.run(mixture_problem().start(1.0), _grid(2), target=mixture_problem().target, recipe=_at_tolerance(s.flow, rtol))
        yield at_most(f"error at rtol={rtol:g}", _rms(end - mixture_problem().solution(1.0, VP.t_min)), max(1e-6, 10 * rtol))
        return
    for problem, t_start in _cases(s):
        exact = problem.solution(t_start, VP.t_min)
        *_, coarse, fine = _ends(s, problem, t_start)
        finest = _rms(fine - exact)
        bound = FINEST[min(s.order or 1, 4)] * (1 if s.full else 2**(s.order or 1))
        yield at_most(f"error at n={_steps(s, t_start)[-1]}, {problem.name} from t={t_start}", finest, bound)
        weights = [2.0**((s.order or 1) + j) for j in range(3)]
        beyond = min(_rms((w * fine - coarse) / (w - 1) - exact) for w in weights)
        yield at_most(f"error extrapolated to n=inf, {problem.name} from t={t_start}", beyond, max(1e-6, finest / 2))


FINEST = {1: 1e-1, 2: 2e-3, 3: 2e-4, 4: 2e-5}       # at 320 steps


# -- 10-12: laws ----------------------------------------------------------------------------------------------------
@SOLVER.check
def affine_probe(s: Subject) -> Iterator[Finding]:
    """The weak order: of mean and variance on a Gaussian, exact; and of E cos on two modes, by quadrature or on common paths."""
    if not s.stochastic or s.weak is None:
        raise NotApplicable("it declares no weak order" if s.stochastic else "it draws nothing")
    steps = (100, 200, 400) if s.full else (50, 100, 200)
    laws = [affine_laws(s.recipe(), VP, _grid(n))[-1] for n in steps]
    measured = [np.array([law.variance - law.exact_variance]) for law in laws]
    yield from _weak("the variance on a Gaussian", steps, measured, s.weak, 0.1 if s.full else 0.15, 4)
    if s.solver.remembers or s.solver.looks_ahead:          # no step stands alone
        yield from _common_paths(s)
        return
    counts = (16, 32, 64, 128) if s.full else (16, 32, 64)
    errors = [_weak_error(s, _grid(n)) for n in counts]
    if np.abs(_weak_error(s, _grid(counts[-1]), nodes=13) - errors[-1]).max() > 0.05 * np.abs(errors[-1]).max():
        raise NotApplicable("the noise of one step carries it over the ridge between the modes, where quadrature does not converge")
    yield from _weak("E cos on two modes", counts, errors, s.weak, 0.25, 2)


def _weak(what: str, steps: Sequence[int], errors: Sequence[np.ndarray], p: int, slack: float, better: float) -> Iterator[Finding]:
    """The order of the errors, and that they extrapolate to none: some ``better`` times less than the finest is left."""
    size = lambda e: float(np.sqrt(np.mean(e**2)))
    sizes = tuple(size(e) for e in errors)
    text = f"{what}, errors {' '.join(f'{e:.1e}' for e in sizes)}"
    if sizes[-1] < 1e-9:
        yield at_most(f"weak error of {text}", sizes[-1], 1e-9)
        return
    yield at_least(f"weak order of {text}", Convergence(tuple(steps), sizes).order, p - slack)
    first, second = errors[-2] - errors[-3], errors[-1] - errors[-2]
    aitken = errors[-1] - second**2 / np.where(second == first, math.inf, second - first)            # of whatever order
    left = min(size(aitken), *(size((2**(p + j) * errors[-1] - errors[-2]) / (2**(p + j) - 1)) for j in range(2)))
    # a finest error that passes through zero is no measure: a thousandth of the coarsest will do
    yield at_most(f"extrapolated to n=inf: {text}", left, max(1e-8, sizes[0] / 1000, sizes[-1] / better))


class _Nodes(Noise):
    """Fixed values for the draws of one step, by order of first asking; without values it counts them."""

    def __init__(self, values: Sequence[Tensor] = (), seen: dict[Any, int] | None = None, path: tuple[int, ...] = ()) -> None:
        self.values, self.seen, self.path, self.shape, self.dtype = values, {} if seen is None else seen, path, (1, 1), F64

    def at(self, step: int) -> Noise:
        return _Nodes(self.values, self.seen, (*self.path, step))

    def within(self) -> Noise:
        return _Nodes(self.values, self.seen, (*self.path, -1))

    def normal(self, use: int = 1) -> Tensor:
        j = self.seen.setdefault((self.path, use), len(self.seen))
        return self.values[j] if self.values else torch.zeros(1, 1, dtype=F64)


def _weak_error(s: Subject, levels: Sequence[NoiseLevel], points: int = 241, nodes: int = 9) -> np.ndarray:
    """int p_T u_0 - E phi(X_0) for phi = cos(x), cos(2 x), cos(3 x) on ``Twins``, by the backward equation of a step without memory."""
    from scipy.interpolate import CubicSpline
    recipe = s.recipe()
    solver = recipe.solver.over(levels)
    eq, phi = ReverseSDE(VP, TWINS.score, recipe.eta), lambda x: np.cos(x[..., None] * FREQUENCIES)
    u: Any = phi
    for t, v in reversed(list(pairwise(levels))):
        probe = _Nodes()
        solver.step(eq, State(torch.zeros(1, 1, dtype=F64)), t, v, probe)
        x = (t.alpha + 8 * math.sqrt(t.alpha**2 * TWINS.variance + t.sigma**2)) * torch.linspace(-1, 1, points, dtype=F64)
        draws = len(probe.seen)
        if draws > (3 if s.full else 2):
            raise NotApplicable(f"a step draws {draws} noises, too many for quadrature")
        z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes if draws < 3 else 7))
        mesh = torch.cartesian_prod(x, *[z] * draws).reshape(-1, draws + 1)
        weight = torch.cartesian_prod(*[w / w.sum()] * draws).reshape(-1, draws).prod(1) if draws else torch.ones(1, dtype=F64)
        out = solver.step(eq, State(mesh[:, :1].contiguous()), t, v, _Nodes([mesh[:, j + 1:j + 2] for j in range(draws)], {})).x
        u = CubicSpline(x.numpy(), np.einsum("ijf,j->if", u(out.detach().numpy().reshape(points, -1)), weight.numpy()))
    first, last = levels[0], levels[-1]
    root = math.sqrt(first.alpha**2 * TWINS.variance + first.sigma**2)
    modes = [first.alpha, -first.alpha]
    fine, weights = np.polynomial.hermite_e.hermegauss(60)
    start = np.mean([weights @ u(m + root * fine) for m in modes], axis=0) / weights.sum()
    return start - _cosines(last)


FREQUENCIES = np.array([1.0, 2.0, 3.0])


def _cosines(level: NoiseLevel) -> np.ndarray:
    """E cos(f x) on ``Twins``."""
    return np.cos(FREQUENCIES * level.alpha) * np.exp(-FREQUENCIES**2 * (level.alpha**2 * TWINS.variance + level.sigma**2) / 2)


def _common_paths(s: Subject) -> Iterator[Finding]:
    rows, counts = 4000, (16, 32, 64)
    x = TWINS.sample(VP.at(1.0), (rows, 1), seed=5)
    path = knot_path(6, (rows, 1), counts[-1])
    values = [torch.cos(s.run(x, _grid(n), noise=path)) for n in counts]
    error = lambda v: 5 * float(v.std()) / math.sqrt(rows)
    exact = float(_cosines(VP.at(VP.t_min))[0])
    first, second = values[0] - values[1], values[1] - values[2]
    bound = abs(float(first.mean())) / 2**(s.weak - 0.25) + error(second) + error(first) / 2          # type: ignore[operator]
    yield at_most("E cos on two modes, common paths: difference of n=32 and 64", abs(float(second.mean())), bound)
    bound = error(values[2]) + 2 * abs(float(second.mean())) + error(second)
    yield at_most("E cos on two modes, n=64 against exact", abs(float(values[2].mean()) - exact), bound)


@SOLVER.check
def reductions(s: Subject) -> Iterator[Finding]:
    """A family in eta is its ODE solver at eta = 0, to the bit, and near it for small eta. A method that is exact on every point mass and
    makes one call a step is DDIM when it remembers nothing (and the DDPM chain at eta = 1): a x + b E[x_0|x] has no other coefficients."""
    x, found = _start(8, 2), False
    if s.solver.noise == "eta":
        found = True
        flow = s.flow
        at_zero = s.run(x, recipe=flow, seed=1)
        *_, bare = iterate(ReverseSDE(VP, TWINS.score), s.solver, x, _grid(SHORT))
        yield at_most("eta = 0 needs no noise, to the bit", _gap(at_zero, bare.x), 0.0)
        yield at_most("eta = 0 ignores the seed, to the bit", _gap(at_zero, s.run(x, recipe=flow, seed=2)), 0.0)
        near = [s.run(x, recipe=dataclasses.replace(flow, eta=e), seed=1) for e in (1e-3, 2e-3, 3e-3)]      # type: ignore[type-var]
        yield at_most("eta = 1e-3 lies near eta = 0", _rms(near[0] - at_zero), 3e-2 + 10 * s.tolerance)
        moved = _rms(near[1] - near[0])
        yield at_least("it moves with eta", moved, 1e-4)
        yield at_most("in proportion to eta, relative", _rms(near[2] - 2 * near[1] + near[0]) / moved, 0.2 + s.tolerance * 1e4)
    at_one = dataclasses.replace(s.recipe(), eta=1.0) if s.solver.noise == "eta" else s.recipe() if s.stochastic else None
    kinds = [(0.0, s.flow, DDIM()), (1.0 if s.solver.noise == "eta" else 0.0, at_one, DDIM(1.0))]
    for eta, recipe, ddim in kinds:
        if recipe is None or s.tolerance or _calls_in_a_step(recipe) != 1 or not _exact_on_points(recipe, ddim):
            continue
        found = True
        noise, gap = WhiteNoise(1, x.shape, dtype=F64), 0.0
        for k, (t, v) in enumerate(pairwise(_grid(SHORT))):
            ours, theirs = (solver.step(ReverseSDE(VP, TWINS.score, e), State(x), t, v, noise.at(k)).x
                            for solver, e in ((recipe.solver.over(_grid(SHORT)), eta), (ddim, 0.0)))
            gap = max(gap, _gap(ours, theirs))
        yield at_most(f"without memory it is {'the DDPM chain' if ddim.eta else 'DDIM'}", gap, 1e-12)
    if not found:
        raise NotApplicable("no family in eta, and not a one-call method that is exact on a point mass")


def _calls_in_a_step(recipe: Method) -> int:
    return count_calls(recipe, VP, [0.5, 0.4])


def _point(x: Tensor, level: NoiseLevel) -> Prediction:
    return Prediction(x, level, x0=torch.full_like(x, 0.7), eps=(x - 0.7 * level.alpha) / level.sigma)


def _exact_on_points(recipe: Method, ddim: DDIM | None = None) -> bool:
    """Whether the flow of a point mass is exact, x - alpha c scales with sigma; or, at eta = 1, the mean: with (sigma_s/sigma_t) e^{-h},
    and the variance of a step, sigma_s^2 (1 - e^{-2h})."""
    levels, x, one = _grid(SHORT), _start(4, 2), ddim is not None and ddim.eta == 1
    zero, unit = (_Constant(value, x) for value in (0.0, 1.0))
    eq, solver = ReverseSDE(VP, _point, recipe.eta if one else 0.0), recipe.solver.over(levels)
    for t, v in pairwise(levels):
        shrink = math.exp(t.lam - v.lam) if one else 1.0
        exact = 0.7 * v.alpha + v.sigma / t.sigma * shrink * (x - 0.7 * t.alpha)
        out = solver.step(eq, State(x), t, v, zero).x
        if _gap(out, exact) > 1e-10:
            return False
        noise = solver.step(eq, State(x), t, v, unit).x - out
        if one and _gap(noise, torch.full_like(x, v.sigma * math.sqrt(1 - shrink**2))) > 1e-10:
            return False
    return True


class _Constant(Noise):
    """Every draw the same number."""

    def __init__(self, value: float, like: Tensor) -> None:
        self.value, self.shape, self.dtype, self.device = torch.full_like(like, value), tuple(like.shape), like.dtype, like.device

    def at(self, step: int) -> Noise:
        return self

    def within(self) -> Noise:
        return self

    def normal(self, use: int = 1) -> Tensor:
        return self.value.clone()


@SOLVER.check
def marginals(s: Subject) -> Iterator[Finding]:
    """Started from the exact marginal, the law at every knot is the marginal there: exact moments where the probe applies, and always
    4000 draws on two modes (mean square, 5 standard errors and the discretisation's share; Kolmogorov-Smirnov at 1e-5)."""
    n = 64 if not s.tolerance else 8
    levels = _grid(n)
    if s.stochastic and s.weak is not None:
        laws = affine_laws(s.recipe(), VP, levels)
        worst: Law = max(laws, key=lambda law: abs(law.variance / law.exact_variance - 1))
        yield at_most(f"variance on a Gaussian at the worst of {n} knots, relative", abs(worst.variance / worst.exact_variance - 1), 0.2)
        yield at_most("mean on a Gaussian at the worst knot", max(abs(law.mean - law.exact_mean) for law in laws), 0.1)
    if s.fixed_point and not hasattr(s.solver, "predictor"):
        levels = [VP.at(0.3)] * 21
    rows = 4000
    x, ks = TWINS.sample(levels[0], (rows, 1), seed=9), math.sqrt(math.log(2 / 1e-5) / (2 * rows))
    for k, state in enumerate(s.states(x, levels, seed=10)):
        if k not in (len(levels) // 3, 2 * len(levels) // 3, len(levels) - 1):
            continue
        level, out = levels[k], state.x
        exact = level.alpha**2 * (1 + TWINS.variance) + level.sigma**2
        second = out.square()
        yield at_most(f"mean square on two modes at knot {k}, relative", abs(float(second.mean()) / exact - 1),
                      0.1 + 5 * float(second.std()) / exact / math.sqrt(rows))
        grade = torch.arange(1, rows + 1, dtype=F64) / rows
        cdf = TWINS.cdf(out[:, 0].sort().values, level)
        distance = float(torch.maximum((cdf - grade).abs(), (cdf - grade + 1 / rows).abs()).max())
        yield at_most(f"Kolmogorov-Smirnov on two modes at knot {k}", distance, ks)


# -- 13-14: symmetries ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Unscaled(SDE):
    """x/alpha of another process, at the same times."""

    inner: SDE = VP

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (a, da), (s, ds) = self.inner.alpha(t), self.inner.sigma(t)
        return s / a, (ds * a - s * da) / a**2

    def time_of(self, lam: Tensor) -> Tensor:
        return self.inner.time_of(lam)


@SOLVER.check
def invariance(s: Subject) -> Iterator[Finding]:
    """What a model predicts, the frame of the data, and for methods exact on point masses its origin and scale, change nothing."""
    bound = 1e-10 + 100 * s.tolerance
    x = _start(8, 2)
    path = s.run(x, seed=1)
    for kind in ("x0", "eps", "v", "score", "velocity"):
        score = lambda x, level, kind=kind: Prediction(x, level, **{kind: getattr(TWINS.score(x, level), kind)})
        yield at_most(f"a model that predicts {kind}", _gap(s.run(x, score=score, seed=1), path), bound)
    q, source = _turn(), WhiteNoise(1, x.shape, dtype=F64)

    def turned(y: Tensor, level: NoiseLevel) -> Prediction:
        p = TWINS.score(y @ q.T, level)
        return Prediction(y, level, x0=p.x0 @ q, score=p.score @ q)

    recipe = s.make(_Turned(q))
    out = s.run(x @ q, score=turned, noise=_Rotated(source, q), recipe=recipe)
    # An error norm by coordinates chooses other steps: two solutions to the tolerance, each within the bound of the flow-map check.
    yield at_most("data, start and noise rotated", _gap(out, path @ q), 1e-10 + 1e3 * s.tolerance)
    exact = s.recipe() if s.solver.noise != "always" else None
    if exact is None or s.tolerance or not _exact_on_points(exact):
        return
    shift, levels = torch.tensor([0.4, -1.1], dtype=F64), _grid(SHORT)

    def shifted(y: Tensor, level: NoiseLevel) -> Prediction:
        p = TWINS.score(y - level.alpha * shift, level)
        return Prediction(y, level, x0=p.x0 + shift, score=p.score)

    yield at_most("data shifted", _gap(s.run(x + levels[0].alpha * shift, score=shifted, seed=1), path + levels[-1].alpha * shift), bound)
    chart = _Unscaled()
    other = chart.levels([level.t for level in levels])
    yield at_most("the chart x/alpha", _gap(levels[-1].alpha * s.run(x / levels[0].alpha, other, sde=chart, seed=1), path), bound)


def _turn() -> Tensor:
    c, s = math.cos(0.6), math.sin(0.6)
    return torch.tensor([[c, -s], [s, c]], dtype=F64)


@dataclass(frozen=True, eq=False)
class _Turned:
    """``Twins`` in a rotated frame, for methods that read the density."""

    q: Tensor

    def log_prob(self, y: Tensor, level: NoiseLevel) -> Tensor:
        return TWINS.log_prob(y @ self.q.T, level)


@SOLVER.check
def reversal(s: Subject) -> Iterator[Finding]:
    """Up and down again: the round trip returns x with an error that falls at the order. A stochastic method refuses to encode."""
    x, calls = mixture_problem().target.sample(32, seed=0, dtype=F64), _Calls(lambda x, c: x)
    if s.stochastic:
        with _expect(ValueError) as caught:
            encode(VP, from_network(calls), x, method=s.recipe(), steps=3)
        yield holds(f"encoding is refused, before the first model call: {caught.text}", caught.hit and not calls.count)
        if s.flow is None or (s.order is None and not s.tolerance):
            return
    if s.order is None and not s.tolerance:
        raise NotApplicable("it declares no order")
    score, flow = mixture_problem().target.score, s.flow

    def trip(n: int) -> Tensor:
        z = encode(VP, score, x, method=flow, steps=n, grid="logsnr", table=False)                   # type: ignore[arg-type]
        return sample(VP, score, x_init=z, method=flow, steps=n, grid="logsnr", table=False) - x     # type: ignore[arg-type]

    if s.tolerance:
        yield at_most("median of the round trip", float(trip(2).abs().median()), 100 * s.tolerance)
        return
    coarse, fine = (_rms(trip(n)) for n in ((64, 128) if s.full else (40, 80)))
    yield at_least(f"order of the round trip, errors {coarse:.1e} {fine:.1e}", math.log2(coarse / fine) if fine > FLOOR else math.inf,
                   0.8 * (s.order or 1))
    yield at_most("error of the round trip", fine, 0.1)


class _Calls:
    """A network that counts its calls, and runs ``fault`` instead at one of them."""

    def __init__(self, network: Callable[[Tensor, Tensor], Any], at: int = 0, fault: Callable[[Tensor], Any] | None = None) -> None:
        self.network, self.at, self.fault, self.count = network, at, fault, 0
        self.seen: list[tuple[tuple[int, ...], torch.dtype, tuple[int, ...], torch.dtype, float]] = []

    def __call__(self, x: Tensor, c: Tensor) -> Any:
        self.count += 1
        self.seen.append((tuple(x.shape), x.dtype, tuple(c.shape), c.dtype, float(c[0]) if len(c) else math.nan))
        return self.fault(x) if self.fault is not None and self.count == self.at else self.network(x, c)


class _expect:
    """A context that swallows the expected exceptions: ``hit``, ``error``, ``text``."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self.kinds, self.hit, self.error, self.text = kinds, False, None, "nothing was raised"

    def __enter__(self) -> _expect:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None:
            return False
        self.hit, self.error, self.text = issubclass(kind, self.kinds), error, f"{kind.__name__}: {error}"
        return self.hit or issubclass(kind, Exception)


# -- 15-18: the model, and wrong calls ------------------------------------------------------------------------------
@SOLVER.check
def calls(s: Subject) -> Iterator[Finding]:
    """The model is called nfe times, with x of the state's shape and dtype and c (B,), at times of the interval being stepped over."""
    net = _Calls(lambda x, c: 0.1 * x)
    info = sample_info(VP, from_network(net), shape=(3, 2), method=s.recipe(), steps=SHORT, grid="logsnr", seed=0)
    yield at_most("calls made against calls reported", abs(net.count - info.nfe), 0)
    yield at_least("calls", net.count, 1 if s.solver.adaptive else SHORT)
    if not s.solver.adaptive:
        yield at_most("calls made against calls planned", abs(net.count - count_calls(s.recipe(), VP, info.times)), 0)
    rows = {v[0][0] for v in net.seen}
    yield holds("rows of a call: those of the state (looking ahead, whole multiples)", all(r % 3 == 0 for r in rows)
                if s.solver.looks_ahead else rows == {3})
    yield holds("x as the state, c (rows,) of its dtype", all(v[:4] == ((v[0][0], 2), F32, (v[0][0],), F32) for v in net.seen))
    intervals: list[tuple[int, float]] = []
    step, levels = 0, _grid(SHORT)

    def timed(x: Tensor, level: NoiseLevel) -> Prediction:
        intervals.extend((step, float(u)) for u in torch.as_tensor(level.t, dtype=F64).aminmax())
        return TWINS.score(x, level)

    for _ in s.states(_start(3, 2), levels, score=timed):
        step += 1
        continue
    # noise may take a step below its level (ancestral) or above (churn, restarts); a solver that knows the grid may run ahead on it
    low = lambda k: 0.0 if s.solver.noise == "always" else levels[-1].t if s.solver.looks_ahead else levels[k].t
    high = lambda k: levels[0].t if s.solver.noise == "always" else levels[k - 1].t
    outside = [max(t - high(k), low(k) - t) for k, t in intervals]
    yield at_most("times outside the interval being stepped over", max(outside), 1e-9)


WRONG_CALLS: tuple[dict[str, Any], ...] = (
    {"steps": 0}, {"steps": -1}, {"steps": 2.5}, {"steps": True}, {"steps": None}, {"steps": 3, "nfe": 3}, {"seed": -1}, {"seed": 1.5},
    {"t_start": math.nan}, {"t_start": 2.0}, {"t_start": 0.2, "t_end": 0.5}, {"grid": [0.1, 0.5], "steps": None}, {"grid": "nonsense"},
    {"grid": [0.5, 0.5], "steps": None}, {"grid": [0.9, math.nan, 0.1], "steps": None}, {"shape": None}, {"shape": (2.5, 2)},
    {"shape": None, "x_init": torch.full((2, 2), math.inf)}, {"shape": None, "x_init": torch.zeros(2, 2, dtype=torch.int64)})


@SOLVER.check
def refusal(s: Subject) -> Iterator[Finding]:
    """Wrong calls, and wrong values of every numeric or named field of the solver (and of solvers in it), raise ValueError or TypeError
    that names the argument, before the first model call."""
    net = _Calls(lambda x, c: 0.1 * x)
    for wrong in WRONG_CALLS:
        with _expect(ValueError, TypeError) as caught:
            sample(VP, from_network(net), **{"shape": (2, 2), "steps": 3, "seed": 0, "method": s.recipe(), **wrong})
        named = any(key in caught.text for key in (*wrong, "times"))
        yield holds(f"sample({', '.join(f'{k}={v!r}' for k, v in wrong.items())}): {caught.text[:90]}", caught.hit and named)
    x = _start(2, 2)
    if s.solver.noise == "never":
        with _expect(ValueError) as caught:
            next(iterate(ReverseSDE(VP, from_network(net), 1.0), s.solver, x, _grid(3), WhiteNoise(0, x.shape)))
        yield holds(f"an equation with noise, eta=1: {caught.text[:90]}", caught.hit and "eta" in caught.text)
    if s.stochastic:
        with _expect(ValueError) as caught:
            next(iterate(ReverseSDE(VP, from_network(net), s.recipe().eta), s.solver, x, _grid(3)))
        yield holds(f"no source of noise: {caught.text[:90]}", caught.hit and "noise" in caught.text)
    if s.solver.noise == "eta":
        for eta in (-1.0, math.nan, "1"):
            with _expect(ValueError, TypeError) as caught:
                wrong_eta = dataclasses.replace(s.recipe(), eta=eta)                                 # type: ignore[arg-type]
                sample(VP, from_network(net), shape=(2, 2), steps=3, seed=0, method=wrong_eta)
            yield holds(f"eta={eta!r}: {caught.text[:90]}", caught.hit and "eta" in caught.text)
    for solver in _parts(s.solver):
        for f in dataclasses.fields(solver):
            for value in _outside(f):
                with _expect(ValueError, TypeError) as caught:
                    dataclasses.replace(solver, **{f.name: value})
                yield holds(f"{type(solver).__name__}({f.name}={value!r}): {caught.text[:90]}", caught.hit and f.name in caught.text)
    yield at_most("model calls before a refusal", net.count, 0)


def _parts(solver: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(solver):
        yield solver
        for f in dataclasses.fields(solver):
            if isinstance(getattr(solver, f.name), Solver):
                yield from _parts(getattr(solver, f.name))


def _outside(f: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """Values outside the declared domain of a field; ``metadata={"infinite": True}`` admits inf."""
    names = str(f.type).replace(" ", "").split("|")
    if "float" in names:
        return (math.nan, *(() if f.metadata.get("infinite") else (math.inf,)), "x", *(() if "None" in names else (None,)))
    if "int" in names:
        return (-1, 2.5, "x", *(() if "None" in names else (None,)))
    return ("no such name", 3) if "str" in names else ()


class _Mine(Exception):
    """An exception of the user's."""


FAULTS: tuple[tuple[str, Callable[[Tensor], Any], str], ...] = (
    ("one column", lambda x: x[:, :1], "shape"), ("one row", lambda x: x[:1], "shape"), ("a scalar", lambda x: x.sum(), "shape"),
    ("None", lambda x: None, "NoneType"), ("a tuple", lambda x: (x, x), "tuple"), ("complex", lambda x: x.to(torch.complex64), "complex"),
    ("integers", lambda x: x.long(), "int64"), ("NaN", lambda x: x * math.nan, "NaN"),
    ("inf in one row", lambda x: torch.where(x == x[1, 0], math.inf, x), "1 of 3"),
    ("an edit in place", lambda x: x.add_(1.0), "in place"))


@SOLVER.check
def bad_model(s: Subject) -> Iterator[Finding]:
    """A model's fault ends the run at that call, by name, step and time; the user's own exceptions pass unchanged."""
    k, step = (3, "step ") if s.solver.adaptive else (_calls_before_step(s, 2) + 1, "step 2")
    run = lambda net: sample(VP, from_network(net), shape=(3, 2), method=s.recipe(), steps=SHORT, grid="logsnr", seed=0, table=False)
    for name, fault, word in FAULTS:
        net = _Calls(lambda x, c: 0.1 * x, k, fault)
        with _expect(NetworkError) as caught:
            run(net)
        text = caught.text
        named = all(w in text for w in (word, "_Calls", f"call {k}", step, "t="))
        yield holds(f"{name}: {text[:160]}", caught.hit and named and net.count == k)

    def mine(x: Tensor) -> Any:
        raise _Mine

    with _expect(_Mine) as caught:
        run(_Calls(lambda x, c: 0.1 * x, k, mine))
    yield holds(f"an exception of the user's: {caught.text[:160]}", caught.hit)


def _calls_before_step(s: Subject, step: int) -> int:
    count = 0

    def counting(x: Tensor, level: NoiseLevel) -> Prediction:
        nonlocal count
        count += 1
        return Prediction(x, level, eps=0.1 * x)

    for k, _ in enumerate(s.states(torch.zeros(3, 2), score=counting)):
        if k == step:
            return count
    return count


@SOLVER.check
def interrupt(s: Subject) -> Iterator[Finding]:
    """An interrupt at any call, and a loop left early, leave torch as it was and the next run as a first one."""
    layer = torch.nn.Linear(2, 2)
    fresh = s.sample(x_init=_start(3, 2), seed=1)
    total = _Calls(lambda x, c: 0.1 * layer(x))            # the same network: a solver's own steps depend on it
    s.sample(from_network(total), shape=(3, 2), seed=1)
    for k in sorted({1, 2, total.count // 2, total.count}):
        def stop(x: Tensor) -> Any:
            raise KeyboardInterrupt
        before, net = torch.random.get_rng_state(), _Calls(lambda x, c: 0.1 * layer(x), k, stop)
        with _expect(KeyboardInterrupt) as caught:
            s.sample(from_network(net), shape=(3, 2), seed=1)
        yield holds(f"interrupted at call {k} of {total.count}", caught.hit)
        restored = torch.equal(before, torch.random.get_rng_state()) and torch.is_grad_enabled() and torch.get_default_dtype() == F32
        yield holds("random state, grad mode, default dtype and training flag are restored", restored and layer.training)
    for k, _ in enumerate(s.states(_start(3, 2))):
        if k == 2:
            break
    yield at_most("the next run is as a first one", _gap(s.sample(x_init=_start(3, 2), seed=1), fresh), 0.0)


# -- 19-20: the object and the work ---------------------------------------------------------------------------------
@SOLVER.check
def state(s: Subject) -> Iterator[Finding]:
    """The solver is its hyperparameters: used twice, interleaved, in threads, copied, pickled, rebuilt from its fields, or resumed."""
    solver, x, y = s.solver, _start(5, 2), 2 * _start(5, 2)
    run = lambda x, seed, solver=solver: s.run(x, seed=seed, recipe=dataclasses.replace(s.recipe(), solver=solver))
    a, b = run(x, 1), run(y, 2)
    pair = list(zip(s.states(x, seed=1), s.states(y, seed=2)))[-1]
    yield at_most("two runs interleaved", max(_gap(pair[0].x, a), _gap(pair[1].x, b)), 0.0)
    yield at_most("the same object again", _gap(run(x, 1), a), 0.0)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda k: run(x, 1) if k % 2 == 0 else run(y, 2), range(4)))
    yield at_most("two threads", max(_gap(out, (a, b)[k % 2]) for k, out in enumerate(done)), 0.0)
    yield at_most("deepcopy", _gap(run(x, 1, copy.deepcopy(solver)), a), 0.0)
    yield at_most("pickle", _gap(run(x, 1, pickle.loads(pickle.dumps(solver))), a), 0.0)
    fields = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver)}                   # type: ignore[arg-type]
    yield at_most("rebuilt from its fields", _gap(run(x, 1, type(solver)(**fields)), a), 0.0)
    yield holds("nothing but its fields is kept in it", set(vars(solver)) <= set(fields))
    levels, recipe, noise = _grid(SHORT), s.recipe(), WhiteNoise(1, x.shape, dtype=F64)
    states = list(s.states(x, seed=1))
    resumed, stepping = states[3], recipe.solver.over(levels)
    for k in range(3, SHORT):
        resumed = stepping.step(ReverseSDE(VP, TWINS.score, recipe.eta), resumed, levels[k], levels[k + 1], noise.at(k))
    yield at_most("resumed from a state in the middle", _gap(resumed.x, a), 0.0)


@SOLVER.check
def budget(s: Subject) -> Iterator[Finding]:
    """Finite work for finite input, memory that does not grow with the steps, no graph unless asked for, and the right gradient then."""
    count = 0

    def limited(x: Tensor, level: NoiseLevel) -> Prediction:
        nonlocal count
        count += 1
        if count > 20_000:
            raise RuntimeError("20 000 model calls, and no end")
        return NORMAL.score(x, level)

    out = s.run(1e4 * _start(3, 2), score=limited, target=NORMAL)
    yield holds("a large start is finite", torch.isfinite(out).all())
    yield at_most("model calls from a large start", count, 20_000)
    alive = [_alive(s, n) for n in (8, 24)]
    yield at_most("tensors of the model alive after 24 steps, above those after 8", alive[1] - alive[0], 0)
    layer = torch.nn.Linear(2, 2)
    out = s.sample(from_network(lambda x, c: 0.1 * layer(x)), x_init=torch.zeros(3, 2).requires_grad_(), seed=0)
    yield holds("no graph unless asked for", not out.requires_grad)
    x = _start(4, 2).requires_grad_()
    direction, weight = (WhiteNoise(k, (4, 2), dtype=F64).normal() for k in (31, 32))
    value = lambda x: (weight * s.run(x, _grid(4), seed=1)).sum()
    gradient, = torch.autograd.grad(value(x), x)
    h = 1e-5
    with torch.no_grad():
        difference = float(value(x + h * direction) - value(x - h * direction)) / (2 * h)
    slope = float((gradient * direction).sum())
    yield at_most("gradient against a central difference, relative", abs(slope - difference) / (1 + abs(difference)), 1e-6)


def _alive(s: Subject, n: int) -> int:
    refs: list[Any] = []

    def watched(x: Tensor, level: NoiseLevel) -> Prediction:
        p = TWINS.score(x, level)
        refs.append(weakref.ref(p.x0))
        return p

    with torch.no_grad():
        for state in s.states(_start(3, 2), _grid(n), score=watched):
            last = state
    held = sum(r() is not None for r in refs)
    if held > 8:                                # cycles that wait for the collector are not memory kept
        gc.collect()
        held = sum(r() is not None for r in refs)
    del last
    return held


# -- doors ----------------------------------------------------------------------------------------------------------
_CLAIMS: dict[str, Any] = {"order": None, "stochastic": None, "eta": None, "level": "fast"}
Candidate = Solver | Method | str | Callable[[Any], Method]


def subject(solver: Candidate, *, order: int | None = None, stochastic: bool | None = None, eta: Any = None,
            level: str = "fast") -> Subject:
    """A method as the suite sees it; see ``check_solver``. Raises TypeError or ValueError on what is none."""
    choice("level", level, ("fast", "full"))
    if order is not None:
        integer("order", order, 1, 20)
    if stochastic is not None:
        flags(stochastic=stochastic)
    if isinstance(solver, Solver):
        given = Method(type(solver).__name__, solver, (1.0 if solver.noise == "eta" else 0.0) if eta is None else eta)
    elif isinstance(solver, (str, Method)):
        given = as_method(solver)
    elif callable(solver):
        given = solver(TWINS)
    else:
        raise TypeError(f"solver={solver!r}: expected a Solver, a Method, the name of one, or a function target -> Method.")
    if eta is not None:
        given = dataclasses.replace(given, eta=eta)
    make = (lambda target: given) if isinstance(solver, (str, Method, Solver)) else solver
    inner = given.solver
    if stochastic is None:
        stochastic = inner.noise == "always" or (inner.noise == "eta" and (callable(given.eta) or given.eta != 0))
    weak = inner.weak_order if stochastic else None
    strong = getattr(inner, "strong_order", 1 if inner.noise == "eta" and weak is not None else None)
    return Subject(given.name, make, inner.order if order is None else order, weak, strong, stochastic, level == "full")


@functools.lru_cache(maxsize=8)
def _kept(solver: Any, options: tuple[tuple[str, Any], ...]) -> Subject:
    return subject(solver, **dict(options))


def checks(level: str = "fast") -> tuple[str, ...]:
    """Names of the twenty checks, for ``pytest.mark.parametrize("check", checks())``. Both levels have the same; "full" measures more.
    Raises ValueError on another level."""
    choice("level", level, ("fast", "full"))
    return tuple(SOLVER)


def run_check(name: str, solver: Candidate, *, expected_failures: Mapping[str, str] | None = None, **options: Any) -> Result:
    """One check; options as for ``check_solver``. ``result.ok`` and ``str(result)`` say all."""
    known("run_check", options, _CLAIMS)
    try:
        what = _kept(solver, tuple(options.items()))
    except TypeError:                           # not hashable
        what = subject(solver, **options)
    return SOLVER.run(name, what, expected_failures)


def check_solver(solver: Candidate, *, order: int | None = None, stochastic: bool | None = None, eta: Any = None,
                 expected_failures: Mapping[str, str] | None = None, level: str = "fast") -> Report:
    """The twenty checks on a solver.

    Parameters
    ----------
    solver : a ``Solver``, a ``Method``, the name of one, or a function target -> Method for a method that reads the target's density.
    order : the order claimed on the probability flow; by default what the solver declares.
    stochastic : whether a run draws noise; by default what the solver and eta say.
    eta : the equation's; by default the method's own, or 1 for a bare solver with noise="eta".
    expected_failures : {check: reason}. One that passes is a failure.
    level : "fast" (about a second) or "full" (more grids, processes and paths).
    """
    SOLVER.expected(expected_failures)
    what = subject(solver, order=order, stochastic=stochastic, eta=eta, level=level)
    return SOLVER.report(what.name, level, what, expected_failures)


def assert_conforms(solver: Candidate, **options: Any) -> None:
    """``check_solver``, or ConformanceError with the report."""
    known("assert_conforms", options, {**_CLAIMS, "expected_failures": None})
    check_solver(solver, **options).raise_on_failure()
