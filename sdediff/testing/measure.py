r"""Instruments that measure a solver: its order, its law, its strong error; shared by tests, docs and benchmarks.

*Order of an ODE method.* errors e(n) of n steps to an exact or independent reference; slopes log2(e(n)/e(2n)); the measured
order is the mean of the last two slopes above the rounding floor.

*Law of a stochastic method without Monte Carlo (affine probe).* With an affine score every fixed-step scheme is affine in
(start, noises), so a batch of K + 2 rows (all zero; unit start; one unit noise each) through the black box gives its gain and
every noise weight, and with them the exact output mean and variance on Gaussian data.

*Strong order.* One Brownian path for all step sizes; the reference is the method's own solution on a finer grid.

The problems are defined here, once: an anisotropic Gaussian (exact flow) and a two-mode mixture (DOP853 reference), under VP.
References: Kloeden & Platen 1992, ch. 9-10; Hairer, Norsett & Wanner 1993.
"""
from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import contracts, random
from ..equation import ReverseSDE
from ..grids import Grid, LogSNR
from ..random import Noise
from ..recipes import Method
from ..recipes import method as as_method
from ..sampling import iterate
from ..score import Prediction
from ..sde import SDE, VPSDE, NoiseLevel
from ..solvers import DDIM
from ..targets import Gaussian, GaussianMixture, Target

STEPS = (40, 80, 160, 320)
FLOOR = 1e-11                   # errors below it are rounding
SUCH = "a forward process such as sdediff.VPSDE()"
MIDWAY = 0.35                   # a start in mid-trajectory of VPSDE(): log-SNR/2 about -0.2


@dataclass(frozen=True, eq=False)
class Problem:
    """A process, an exact target and starting points drawn from the exact marginal; float64."""

    name: str
    sde: SDE
    target: Any
    rows: int = 64

    def __post_init__(self) -> None:
        contracts.text("name", self.name, "mixture"), contracts.instance("sde", self.sde, SDE, SUCH)
        contracts.instance("target", self.target, Target, "an exact law such as sdediff.targets.Gaussian([0.0, 0.0])")
        contracts.integer("rows", self.rows, 1)

    def start(self, t_start: float) -> Tensor:
        """States (rows, d) at t_start, drawn from the exact marginal there."""
        level = self.sde.at(t_start)
        x0 = self.target.sample(self.rows, seed=11, dtype=torch.float64)
        return level.alpha * x0 + level.sigma * random.WhiteNoise(12, x0.shape, dtype=torch.float64).normal()

    @functools.cached_property
    def _solutions(self) -> dict[tuple[float, float], Tensor]:
        return {}

    def solution(self, t_start: float, t_end: float) -> Tensor:
        """The probability-flow endpoint of those states: in closed form for a Gaussian, else by DOP853 at rtol 1e-12."""
        key = (t_start, t_end)
        if key not in self._solutions:
            x, (t, s) = self.start(t_start), (self.sde.at(v) for v in key)
            if isinstance(self.target, Gaussian):
                self._solutions[key] = self.target.flow(x, t, s)
            else:
                from ..solvers import SciPy
                eq = ReverseSDE(self.sde, self.target.score)
                *_, end = iterate(eq, SciPy("DOP853", 1e-12, 1e-13), x, [t, s])
                self._solutions[key] = end.x
        return self._solutions[key]


def _rotation(d: int) -> Tensor:
    q, _ = torch.linalg.qr(random.WhiteNoise(3, (d, d), dtype=torch.float64).normal())
    return q


def _once(make: Callable[[SDE], Problem]) -> Callable[..., Problem]:
    """The same problem for the same process, VPSDE() by default, so that its reference is computed once."""
    kept = functools.cache(make)

    def problem(sde: SDE | None = None) -> Problem:
        contracts.instance("sde", sde, SDE, SUCH, none=True)
        return kept(sde or VPSDE())

    problem.__name__, problem.__qualname__, problem.__doc__ = make.__name__, make.__qualname__, make.__doc__
    return problem


@_once
def gaussian_problem(sde: SDE) -> Problem:
    """N(m, S) in three dimensions, S with eigenvalues 0.05, 0.5, 2 in a rotated basis."""
    q = _rotation(3)
    cov = q @ torch.diag(torch.tensor([0.05, 0.5, 2.0], dtype=torch.float64)) @ q.T
    return Problem("gaussian", sde, Gaussian(torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64), (cov + cov.T) / 2))


@_once
def mixture_problem(sde: SDE) -> Problem:
    """Two anisotropic modes of unequal weight in the plane."""
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64)
    covs = torch.tensor([[[0.15, 0.05], [0.05, 0.25]], [[0.30, -0.08], [-0.08, 0.12]]], dtype=torch.float64)
    return Problem("mixture", sde, GaussianMixture(means, covs, torch.tensor([0.4, 0.6], dtype=torch.float64)))


@_once
def overlap_problem(sde: SDE) -> Problem:
    """Two overlapping modes in the plane: nonlinear, so that no scheme shows the order that it has on linear equations alone, and smooth
    enough for strong orders to show on few steps (no ridge at which paths part)."""
    means = torch.tensor([[0.7, 0.3], [-0.7, -0.3]], dtype=torch.float64)
    return Problem("overlap", sde, GaussianMixture(means, [0.3, 0.3]))


class Convergence(NamedTuple):
    """Errors of a method on a sequence of grids, coarse to fine; ``order`` is nan where too few lie above rounding."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slopes(self) -> tuple[float, ...]:
        """Local orders between neighbouring grids, up to the rounding floor."""
        pairs = zip(zip(self.steps, self.errors), zip(self.steps[1:], self.errors[1:]))
        return tuple(math.log(e / f) / math.log(n / m) for (m, e), (n, f) in pairs if f > FLOOR)

    @property
    def order(self) -> float:
        """The mean of the last two slopes."""
        return sum(self.slopes[-2:]) / len(self.slopes[-2:]) if self.slopes else math.nan

    def meets(self, order: int) -> bool:
        """Whether the measured order is at least order - 0.15 (order - 0.3 from order 3 on, for start-up steps)."""
        return self.order >= order - (0.15 if order <= 2 else 0.3)


def _run(sde: SDE, steps: Any, grid: Any, t_start: Any, t_end: Any) -> tuple[tuple[int, ...], Grid, float, float]:
    """The numbers of steps, the grid and the span of a measurement, by default uniform log-SNR over all of the process."""
    contracts.instance("grid", grid, Grid, "a grid such as sdediff.grids.LogSNR()", none=True)
    every = contracts.sequence("steps", steps, "such as (40, 80)")
    n = tuple(contracts.integer(f"steps[{k}]", v, 1, contracts.MOST) for k, v in enumerate(every))
    start = sde.t_max if t_start is None else contracts.real("t_start", t_start, sde.t_min, sde.t_max, low_open=True)
    end = sde.t_min if t_end is None else contracts.real("t_end", t_end, 0.0, start, high_open=True)
    return n, LogSNR() if grid is None else grid, start, end


def _gaussian(mean: Any, variance: Any) -> None:
    contracts.real("mean", mean), contracts.real("variance", variance, 0.0, low_open=True)


def converge(method: str | Method, problem: Problem, *, t_start: float | None = None, t_end: float | None = None,
             steps: Sequence[int] = STEPS, grid: Grid | None = None) -> Convergence:
    """Root-mean-square errors of a deterministic method to the problem's probability-flow endpoint, on uniform log-SNR."""
    recipe, sde = as_method(method), contracts.instance("problem", problem, Problem, "a Problem such as mixture_problem()").sde
    steps, grid, t_start, t_end = _run(sde, steps, grid, t_start, t_end)
    eq, errors = ReverseSDE(sde, problem.target.score, recipe.eta), []
    for n in steps:
        *_, state = iterate(eq, recipe.solver, problem.start(t_start), sde.levels(grid(sde, n, t_start, t_end)))
        errors.append(float((state.x - problem.solution(t_start, t_end)).square().mean().sqrt()))
    return Convergence(tuple(steps), tuple(errors))


class _Impulses(Noise):
    """Unit noises, one row each: draw j is zero but for row j + 2. With ``rows`` = 0 it counts the draws."""

    def __init__(self, rows: int, seen: dict[tuple[Any, ...], int] | None = None, path: tuple[int, ...] = (), step: int = 0) -> None:
        self.shape, self.rows, self.seen, self.path, self.step = (rows, 1), rows, {} if seen is None else seen, path, step

    def at(self, step: int) -> _Impulses:
        return _Impulses(self.rows, self.seen, self.path, step)

    def within(self) -> _Impulses:
        return _Impulses(self.rows, self.seen, (*self.path, self.step))

    def normal(self, use: int = 1) -> Tensor:
        j = self.seen.setdefault((self.path, self.step, use), len(self.seen))
        z = torch.zeros(max(self.rows, 1), 1, dtype=torch.float64)
        if self.rows:
            z[j + 2] = 1.0
        return z


class Law(NamedTuple):
    """The exact output law of a method on one-dimensional Gaussian data."""

    mean: float
    variance: float
    exact_mean: float
    exact_variance: float

    @property
    def w2(self) -> float:
        """Wasserstein-2 distance to the exact law."""
        return math.hypot(self.mean - self.exact_mean, math.sqrt(self.variance) - math.sqrt(self.exact_variance))


def affine_laws(method: str | Method, sde: SDE, levels: Sequence[NoiseLevel], mean: float = 0.5, variance: float = 0.25) -> list[Law]:
    """The law of a method's state at every level, on data N(mean, variance), started from the exact marginal at ``levels[0]``, by
    unit impulses through the black box: no Monte Carlo error."""
    recipe = as_method(method)
    contracts.instance("sde", sde, SDE, SUCH)
    _gaussian(mean, variance)
    levels = contracts.each("levels", levels, NoiseLevel, "sde.at(0.5)", 2)

    def score(x: Tensor, level: NoiseLevel) -> Prediction:
        total = level.alpha**2 * variance + level.sigma**2
        residual = x - level.alpha * mean
        return Prediction(x, level, x0=mean + level.alpha * variance / total * residual, score=-residual / total)

    eq, probe = ReverseSDE(sde, score, recipe.eta), _Impulses(0)
    for _ in iterate(eq, recipe.solver, torch.zeros(1, 1, dtype=torch.float64), levels, probe):
        continue
    rows = len(probe.seen) + 2
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[1] = 1.0
    first, laws = levels[0], []
    start_mean, start_variance = first.alpha * mean, first.alpha**2 * variance + first.sigma**2
    for level, state in zip(levels, iterate(eq, recipe.solver, x, levels, _Impulses(rows))):
        base, response = state.x[0, 0].item(), state.x[1:, 0] - state.x[0, 0]
        laws.append(Law(base + response[0].item() * start_mean, response[0].item()**2 * start_variance + response[1:].square().sum().item(),
                        level.alpha * mean, level.alpha**2 * variance + level.sigma**2))
    return laws


def affine_law(method: str | Method, sde: SDE, levels: Sequence[NoiseLevel], mean: float = 0.5, variance: float = 0.25) -> Law:
    """The law at the last level (``affine_laws``)."""
    return affine_laws(method, sde, levels, mean, variance)[-1]


def weak_convergence(method: str | Method, sde: SDE | None = None, *, t_start: float | None = None, t_end: float | None = None,
                     steps: Sequence[int] = (50, 100, 200, 400), grid: Grid | None = None, mean: float = 0.5,
                     variance: float = 0.25) -> Convergence:
    """Errors |variance - exact| of a method's output on Gaussian data, by the affine probe."""
    sde = contracts.instance("sde", sde, SDE, SUCH, none=True) or VPSDE()
    _gaussian(mean, variance)
    steps, grid, t_start, t_end = _run(sde, steps, grid, t_start, t_end)
    laws = [affine_law(method, sde, sde.levels(grid(sde, n, t_start, t_end)), mean, variance) for n in steps]
    return Convergence(tuple(steps), tuple(abs(law.variance - law.exact_variance) for law in laws))


class KnotPath(Noise):
    """A Brownian path in t with its area, known at the times of one fine grid alone and hence cheap: white noise summed up. Steps
    between other times raise ValueError; draws that belong to no interval are white noise of the same seed."""

    def __init__(self, seed: int, shape: Sequence[int], levels: Sequence[NoiseLevel]) -> None:
        contracts.integer("seed", seed, 0)
        levels = contracts.each("levels", levels, NoiseLevel, "sde.at(0.5)", 2)
        self.shape, self.dtype, self.device = contracts.shape("shape", shape), torch.float64, torch.device("cpu")
        self.white = random.WhiteNoise(seed, shape, dtype=torch.float64)
        self.times = [level.t for level in levels]
        w, a = torch.zeros(self.shape, dtype=torch.float64), torch.zeros(self.shape, dtype=torch.float64)
        self.pairs = [(w, a)]
        for k, dt in enumerate(s - t for t, s in zip(self.times, self.times[1:])):
            z, y = (self.white.at(k).normal(use) for use in (32, 33))
            w, a = w + math.sqrt(abs(dt)) * z, a + dt * w + dt * math.sqrt(abs(dt)) * (z / 2 + y / math.sqrt(12.0))
            self.pairs.append((w, a))

    def _with(self, white: random.WhiteNoise) -> KnotPath:
        view = object.__new__(KnotPath)
        view.__dict__.update(self.__dict__, white=white)
        return view

    def at(self, step: int) -> KnotPath:
        return self._with(self.white.at(step))

    def within(self) -> KnotPath:
        return self._with(self.white.within())

    def normal(self, use: int = 1) -> Tensor:
        return self.white.normal(use + 16)

    def unit(self, t: Any, s: Any) -> Tensor:
        return (self._pair(s.t)[0] - self._pair(t.t)[0]) / math.sqrt(abs(s.t - t.t) or 1.0)

    def area(self, t: Any, s: Any) -> Tensor:
        (wt, at), (_, as_) = self._pair(t.t), self._pair(s.t)
        return as_ - at - (s.t - t.t) * wt

    def _pair(self, t: float) -> tuple[Tensor, Tensor]:
        k = min(bisect.bisect_left(self.times, -t, key=lambda v: -v), len(self.times) - 1)      # times decrease
        k = min((k, max(k - 1, 0)), key=lambda i: abs(self.times[i] - t))
        if abs(self.times[k] - t) > 1e-9 * self.times[0]:
            raise ValueError(f"t={t}: this path is known at {len(self.times)} knots alone, the nearest {self.times[k]}.")
        return self.pairs[k]


def knot_path(seed: int, shape: tuple[int, ...], steps: int, sde: SDE | None = None) -> KnotPath:
    """A path for log-SNR grids of up to ``steps`` steps, known at their halves and thirds too, where stages lie."""
    sde = contracts.instance("sde", sde, SDE, SUCH, none=True) or VPSDE()
    shape, steps = contracts.shape("shape", shape), contracts.integer("steps", steps, 1, contracts.MOST // 6)
    return _knot_path(contracts.integer("seed", seed, 0), shape, steps, sde)


@functools.lru_cache(maxsize=2)
def _knot_path(seed: int, shape: tuple[int, ...], steps: int, sde: SDE) -> KnotPath:
    return KnotPath(seed, shape, sde.levels(LogSNR()(sde, 6 * steps)))


def strong_convergence(method: str | Method, problem: Problem, *, t_start: float | None = None, t_end: float | None = None,
                       steps: Sequence[int] = (32, 64, 128, 256), finest: int = 4096, paths: int = 400, seed: int = 5,
                       reference: str | Method | None = None, grid: Grid | None = None,
                       source: Callable[..., Noise] | None = None) -> Convergence:
    """Root-mean-square distance, path by path, to a fine solution on the same Brownian path in t: of ``reference``, which is kept for the
    next method that is held against it on the same path, or by default the method's own."""
    recipe, sde = as_method(method), contracts.instance("problem", problem, Problem, "a Problem such as mixture_problem()").sde
    steps, grid, t_start, t_end = _run(sde, steps, grid, t_start, t_end)
    contracts.integer("finest", finest, 1, contracts.MOST), contracts.integer("paths", paths, 1), contracts.integer("seed", seed, 0)
    contracts.function("source", source, "lambda seed, shape: WhiteNoise(seed, shape)", none=True)
    contracts.instance("reference", reference, (str, Method), "a method or the name of one", none=True)
    build = source or (lambda seed, shape: random.BrownianPath(seed, shape, span=(0.0, sde.t_max), dtype=torch.float64))
    x = _path_start(problem, t_start, paths, seed)
    where = problem, t_start, t_end, grid, paths, seed, build(seed + 2, tuple(x.shape))
    fine = _path_end(recipe, finest, *where) if reference is None else _reference_end(as_method(reference), finest, *where)
    return Convergence(tuple(steps), tuple(float((_path_end(recipe, n, *where) - fine).square().sum(1).mean().sqrt()) for n in steps))


def _path_start(problem: Problem, t_start: float, paths: int, seed: int) -> Tensor:
    level, x0 = problem.sde.at(t_start), problem.target.sample(paths, seed=seed, dtype=torch.float64)
    return level.alpha * x0 + level.sigma * random.WhiteNoise(seed + 1, x0.shape, dtype=torch.float64).normal()


def _path_end(recipe: Method, n: int, problem: Problem, t_start: float, t_end: float, grid: Grid, paths: int, seed: int,
              noise: Noise) -> Tensor:
    eq, levels = ReverseSDE(problem.sde, problem.target.score, recipe.eta), problem.sde.levels(grid(problem.sde, n, t_start, t_end))
    *_, state = iterate(eq, recipe.solver, _path_start(problem, t_start, paths, seed), levels, noise)
    return state.x


_reference_end = functools.lru_cache(maxsize=4)(_path_end)


def path_reference(recipe: Method) -> Method | None:
    """The method of strong order 3/2 for the equation that a method solves path by path; None where that equation is not known."""
    contracts.instance("recipe", recipe, Method, "a method such as sdediff.method('ddim')")
    eta = recipe.eta if recipe.solver.noise == "eta" else recipe.solver.eta if isinstance(recipe.solver, DDIM) else None
    return None if eta is None else as_method("sra1", eta=eta)
