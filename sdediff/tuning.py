r"""Methods tuned to a model: the best answer for a given number of network calls.

A fixed-step method is a table of coefficients c and of levels at which the network is called; both are functions of the grid, read off the
readable step (``solvers.tracing``). A run is then a composition of network calls and combinations, differentiable in c and in the levels,

    x_N(theta) = F(c(theta), t(theta)),        d x_N/d theta = F_c dc/d theta + F_t dt/d theta,                      theory, eq. (34)

where F_c and F_t come from automatic differentiation through the run (each network call is recomputed on the way back, so that memory holds
the states and no activations), and dc/d theta, dt/d theta from differences of the float64 table, for any linear method alike. theta holds

* the grid: log-SNR knots lambda_0 < ... < lambda_N between fixed ends, their increments a softmax of those of a standard grid plus theta,
  one number a step up to 16 steps, then 12 cosines along the grid;
* eta, for equations with noise, within a factor of two;
* the coefficients a, b of a non-stationary method (theory, eq. (36); ``solvers.nonstationary``), which keep it exact on a point mass.

*What is minimised.* For the flow, log mean |x_N - x*|^2 over trajectories whose exact ends x* a fine solver gives: the root-mean-square
path error. Where data have modes, this mean is that of a few trajectories, those that pass close to the ridge between two and may end in
the other, and its landscape is rough; so log mean |x_N - x*|, in which every trajectory has a say, is minimised as well, and what is better
by the squares on other trajectories is kept. (On nine modes at 15 calls the squares end at an error of 0.0063, the distances at 0.0015.)
For equations with noise, the law of the output: the squared sliced Wasserstein-2 distance to reference samples y, with common noise,

    log mean over directions r of mean_i (sort(r.x_N)_i - sort(r.y)_i)^2.                                            theory, eq. (35)

*How.* The problem is not convex: standard methods and grids are ranked, the best few are starts, L-BFGS-B descends from each on one set of
trajectories, a second set stops it and chooses, and a third, which nothing was fitted to, tells the gain; if the best standard method of
the ranking is not beaten there, it is what is returned.

References: Shaul et al. 2023 (arXiv:2310.19075, Bespoke solvers) and 2024 (arXiv:2403.01329, non-stationary solvers); Watson et al. 2022
(arXiv:2202.05830); Sabour et al. 2024 (arXiv:2404.14507); Byrd et al. 1995 (L-BFGS-B); Chen et al. 2016 (arXiv:1604.06174, recomputation).
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import contracts, grids, random
from .equation import ReverseSDE
from .grids import Grid
from .progress import bar as progress_bar
from .random import WhiteNoise
from .recipes import Method
from .recipes import method as as_method
from .sampling import check_conditions, iterate, prepared, times_of
from .score import NetworkScore, Prediction, Score
from .sde import SDE, NoiseLevel
from .solvers import Exploded, Exponential, Multistep, NonStationary, SciPy, Start
from .solvers.nonstationary import BOUND, correction
from .solvers.tracing import Call, Draw, draw, tape
from .tuned import Gain, Knots, Tuned

WHAT = ("grid", "grid+coefficients")
FREE = 16               # steps up to which every increment is free
COSINES = 12            # numbers that shape a longer grid
ETA = math.log(2.0)      # eta stays within a factor of two: less noise is nearly always less error, and no longer what was asked for
REACH = 5.0             # log increments move by less than this from those of the standard grid: knots stay apart
MEMORY = 10             # steps up to which a tuned step may look back at every evaluation,
SHORT = 4               # and evaluations beyond the latest that it looks back at in longer runs
LAW = 16                # times as many trajectories where laws are compared
PROJECTIONS = 64        # directions of theory, eq. (35)
POWERS = 1.0, 0.5       # of the squared distance in the means that are minimised on the flow
PATIENCE = 40           # iterations without improvement on the second set after which a descent ends
DIFFERENCE = 1e-7       # of theta: some six digits of the derivative, which is all that a descent can use

#: Methods that "auto" ranks on the flow, and on the SDE, each on every one of ``GRIDS``.
FLOW: tuple[Method, ...] = tuple(as_method(name, **options) for name, options in (
    ("eab-2", {}), ("eab-3", {"start": False}), ("eab-4", {"start": False}), ("eab-2", {"form": "x0"}),
    ("eab-3", {"form": "x0", "start": False}), ("unipc-2", {"start": False}), ("unipc-3", {"start": False}), ("dpm-solver-3", {}),
    ("angular-2", {"corrector": False, "start": False}), ("angular-3", {"corrector": False, "start": False}),
    ("angular-4", {"corrector": False, "start": False}), ("angular-3", {"start": False}), ("angular-4", {"start": False})))
NOISY: tuple[Method, ...] = tuple(as_method(name, **options) for name, options in (
    ("ddpm", {}), ("dpm++2m-sde", {}), ("dpm++2m-sde", {"eta": 0.5}), ("sa-solver", {"start": False}),
    ("sa-solver", {"tau": 0.5, "start": False}), ("eab-2", {"eta": 0.5}), ("seeds-2", {}), ("dpm++sde", {})))
GRIDS: tuple[Grid, ...] = (grids.LogSNR(), grids.Karras(), grids.Uniform(), grids.Quadratic(), grids.Sech(-0.25, 1.67, 2.37, 0.18),
                           grids.Sech(0.45, 1.5, 2.75, 0.055), grids.Sech(0.62, 1.4, 1.6, 0.14))
KNOTS: tuple[Grid, ...] = (grids.DDPM(), grids.DDPM("leading"), grids.DDPM("linspace"))
NEIGHBOUR = "a neighbour's grid"


def tune(method: str | Method, sde: SDE, score: Score, *, steps: int | None = None, nfe: int | None = None, data: Tensor | None = None,
         shape: Sequence[int] | None = None, what: str = "grid+coefficients", stochastic: bool = False, near: Sequence[Tuned] = (),
         t_start: float | None = None, t_end: float | None = None, trajectories: int = 256, iterations: int = 200, starts: int = 3,
         seed: int = 0, rtol: float | None = None, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None,
         progress: bool = False, **options: Any) -> Tuned:
    """A method of ``nfe`` network calls (or ``steps`` grid intervals) tuned to a model.

    Parameters
    ----------
    method : a name (with its ``options``) or a Method, any that is linear on a grid; "auto" ranks the families, orders and forms of
        ``FLOW`` (with ``stochastic=True`` of ``NOISY``) on the grids of ``GRIDS`` and tunes the best few.
    data | shape : samples (n, *D), from which starts are made by noising, so that they have the true law at ``t_start``; or a shape
        (any number, *D): starts are drawn from the prior. Conditions of the score go with the samples row by row.
    what : "grid" places the knots (and eta, where there is noise); "grid+coefficients" then gives every step coefficients of its own, where
        the method is multistep with one call a step and the equation is the flow (elsewhere it places the knots).
    near : methods tuned for a neighbouring budget: the best of their grids, stretched to this one, is one start more.
    trajectories : how many to fit on; as many again choose, and as many tell the gain. ``iterations`` of L-BFGS-B from each of ``starts``.
    rtol : of the reference, an adaptive solver of order 8 (default 1e-8, for a network in single precision 1e-5, in half 1e-2).
    dtype, device : of the state, float32 or float64, by default where the data or the network are; the network runs in its own dtype.

    A network that knows a chain's integer indices alone (time_input="index") keeps its knots: its coefficients are tuned.

    Returns a ``Tuned`` method, never one that is worse on the third set than the best standard method and grid. Deterministic for one seed.
    Raises TypeError or ValueError on a wrong argument before the first network call.
    """
    contracts.choice("what", what, WHAT)
    n = contracts.integer("trajectories", trajectories, 8, contracts.MOST)
    limit = contracts.integer("iterations", iterations, 1, contracts.MOST)
    contracts.integer("starts", starts, 1, contracts.MOST), contracts.integer("seed", seed, 0)
    contracts.flags(stochastic=stochastic, progress=progress)
    for i, other in enumerate(contracts.sequence("near", near, "[sdediff.tune('auto', sde, score, nfe=8, data=x)], tuned methods", 0)):
        contracts.instance(f"near[{i}]", other, Tuned, "a tuned method, such as sdediff.tune(...) returns")
    for name, value in (("steps", steps), ("nfe", nfe)):
        if value is not None:
            contracts.integer(name, value, 1, contracts.MOST)
    if (steps is None) == (nfe is None):
        raise ValueError(f"steps={steps!r}, nfe={nfe!r}: give exactly one; steps= counts grid intervals, nfe= network calls.")
    if (data is None) == (shape is None):
        raise ValueError(f"data={'None' if data is None else 'a tensor'}, shape={shape!r}: give exactly one; data=samples (n, *D) are "
                         "noised to the start, shape=(n, *D) draws it from the prior.")
    if contracts.dtype("dtype", dtype) not in (torch.float32, torch.float64):
        raise TypeError(f"dtype={dtype!r}: expected torch.float32 or torch.float64, in which states are integrated.")
    if device is not None:
        contracts.device("device", device)
    if data is not None:
        check_conditions(getattr(score, "conditions", None), len(contracts.state("data", data, 2)))
    if method == "auto" and options:
        raise TypeError(f"options {sorted(options)}: method='auto' takes none; name a method to set its options.")
    families = list(NOISY if stochastic else FLOW) if method == "auto" else [as_method(method, **options)]
    if stochastic and not families[0].stochastic:
        raise ValueError(f"stochastic=True, method={families[0].name!r}: it draws no noise; expected a stochastic method such as "
                         "'dpm++2m-sde', 'auto', or stochastic left out (a named method is what it is).")
    # a start of its own has a length that depends on the grid; tuned first steps take its place
    families += [dataclasses.replace(f, solver=f.solver.multistep) for f in families if isinstance(f.solver, Start)]
    at_knots = getattr(score, "time_input", None) == "index"
    if at_knots:
        families = [f for f in families if isinstance(f.solver, Multistep)]
        if what == "grid" or stochastic or not families:
            raise ValueError("time_input='index': the network is asked at the chain's knots alone, so that coefficients can be tuned, of "
                             f"a deterministic multistep method; got method={method!r}, what={what!r}, stochastic={stochastic}.")
    for family in families:
        prepared(sde, score, family, None, {})
    standards = _standard(families, () if at_knots else near, sde, score, steps, nfe, t_start, t_end)
    runs = [Run(sde, score, family, times, label) for family, times, label in standards]
    if not runs:
        raise ValueError(f"steps={steps!r}, nfe={nfe!r}: none of {sorted({f.name for f in families})} has a grid of so few calls; "
                         "expected more.")
    fit, choose, tell = _sets(runs[0], data, shape, n, seed, dtype, device, rtol)
    ranked = sorted(runs, key=lambda run: choose.error(run, run.zero))
    standard = next(run for run in ranked if run.label != NEIGHBOUR)
    best, least = (standard, standard.zero), choose.error(standard, standard.zero)

    free = [run for run in ranked if not isinstance(run.solver, Start)]
    begin = _distinct([run for run in free if run.label != NEIGHBOUR], starts) + [run for run in free if run.label == NEIGHBOUR][:1]
    powers = (1.0,) if runs[0].noisy else POWERS
    with progress_bar(limit * len(powers) * (len(begin) + (what == WHAT[1])), progress, desc="tune", unit="iteration", leave=False) as bar:
        for power in powers:
            tuned: list[tuple[float, Run, np.ndarray]] = []
            descend = lambda run, theta, power=power: _descend(run, theta, fit, choose, power, limit, bar)
            for run in begin:
                theta = descend(run, run.zero) if len(run.zero) else run.zero
                tuned.append((choose.error(run, theta, power), run, theta))
            tuned.sort(key=lambda row: row[0])
            if what == WHAT[1] and (narrow := next((row for row in tuned if row[1].extensible), None)):
                wide = narrow[1].extended()
                theta = descend(wide, np.concatenate([narrow[2], np.zeros(wide.free)]))
                tuned.append((choose.error(wide, theta, power), wide, theta))
            for _, run, theta in tuned:
                if (error := choose.error(run, theta)) < least:
                    best, least = (run, theta), error
    gain = _gain(tell, standard, *best)
    if not gain.ratio <= 1:
        best, gain = (standard, standard.zero), gain._replace(after=gain.before, ratio=1.0, low=1.0, high=1.0)
    return dataclasses.replace(best[0].method(best[1], gain), budget=best[0].calls if nfe is None else nfe)


# -- a run as a function of theta -------------------------------------------------------------------------------------
class _Line(NamedTuple):
    """``name`` = sum of coefficients times ``terms``; of a call, what the network is given, whose output is ``name``."""

    call: bool
    name: Any
    terms: tuple[Any, ...]


class Run:
    """A method on a grid of fixed ends as a function of theta = (grid, eta where the equation has noise, a and b of theory, eq. (36))."""

    def __init__(self, sde: SDE, score: Score, family: Method, times: Sequence[float], label: str, reach: int = 0) -> None:
        self.sde, self.score, self.family, self.start, self.label = sde, score, family, list(times), label
        self.solver, self.eta = family.solver, float(family.eta)                             # type: ignore[arg-type]
        levels = sde.levels(times)
        finite = [k for k, level in enumerate(levels) if math.isfinite(level.lam)]
        self.first, self.last = finite[0], finite[-1]               # an end at infinity stays where it is
        lam = np.array([levels[k].lam for k in finite])
        self.ends, self.increments = (lam[0], lam[-1]), np.log(np.diff(lam))
        steps = len(self.increments)
        place = (np.arange(steps)[:, None] + 0.5) / steps
        self.shapes = np.eye(steps) if steps <= FREE else np.cos(np.pi * np.arange(1, COSINES + 1) * place)
        if getattr(score, "time_input", None) == "index":
            self.shapes = self.shapes[:, :0]
        self.rows = [min(max(0, k - self.first), reach) if self.last > k >= self.first else 0 for k in range(len(times) - 1)]
        self.free = 2 * sum(self.rows)
        self.lines, self.draws, values = self._read(self.start, self.eta)
        self.coefficients, self.calls = len(values[0]), len(values[1])

    @property
    def zero(self) -> np.ndarray:
        """theta of the grid and the method that it was made of."""
        return np.zeros(self.shapes.shape[1] + (self.eta != 0) + self.free)

    @property
    def noisy(self) -> bool:
        """Whether it draws noise, so that its error is that of a law."""
        return self.eta != 0 or self.solver.noise == "always"

    @property
    def extensible(self) -> bool:
        """Whether steps can have coefficients of their own."""
        return not self.noisy and isinstance(self.solver, Multistep) and not self.solver.corrects

    def extended(self) -> Run:
        """The same run, with a and b of theory, eq. (36) behind its theta."""
        steps = len(self.start) - 1
        return Run(self.sde, self.score, self.family, self.start, self.label, steps - 1 if steps <= MEMORY else SHORT)

    def times(self, theta: np.ndarray) -> list[float]:
        """The grid of theta."""
        if not theta[:self.shapes.shape[1]].any():
            return self.start
        z = self.increments + REACH * np.tanh(self.shapes @ theta[:self.shapes.shape[1]] / REACH)
        w = np.cumsum(np.exp(z - z.max()))
        lam = self.ends[0] + (self.ends[1] - self.ends[0]) * w[:-1] / w[-1]
        inner = self.sde.time_of(torch.from_numpy(lam)).tolist()
        return [*self.start[:self.first + 1], *inner, *self.start[self.last:]]

    def eta_of(self, theta: np.ndarray) -> float:
        """eta of theta."""
        return self.eta * math.exp(theta[self.shapes.shape[1]]) if self.eta else 0.0

    def _read(self, times: Sequence[float], eta: float) -> tuple[Any, Any, tuple[list[float], list[float]]]:
        """The table: its form, its draws, and its numbers (coefficients; times of the calls)."""
        t = tape(self.solver, self.sde, self.sde.levels(times), eta=eta, feed=lambda x, m: x, folds=frozenset({"increment", "area"}),
                 interpret=lambda x, m, out: Prediction(x, m, v=out))          # v gives x0 and eps, at alpha = 0 and sigma = 0 too
        steps, draws, numbers, called = [], [], [], []      # type: ignore[var-annotated]
        for events, end in zip(t.steps, t.states[1:]):
            lines: list[Any] = []
            plain = lambda v: (*v[:3],) if v[0] == "noise" else v    # which draw it is, without the levels it was asked for
            for e in events:
                if isinstance(e, Draw):
                    draws.append((plain(e.value), e.ask))
                else:
                    form = e.given if isinstance(e, Call) else e.form
                    lines.append(_Line(isinstance(e, Call), e.values[0] if isinstance(e, Call) else e.value, tuple(map(plain, form))))
                    numbers += form.values()
                    called += [e.level.t] if isinstance(e, Call) else []
            steps.append((tuple(lines), end))
        return tuple(steps), draws, (numbers, called)

    def table(self, theta: np.ndarray) -> np.ndarray:
        """Coefficients, times of the calls and knots, in one vector. Raises ValueError where another grid has other steps."""
        times = self.times(theta)
        lines, _, (numbers, called) = self._read(times, self.eta_of(theta))
        if lines != self.lines:
            raise ValueError(f"{self.family.name} takes other steps on other grids, so that it has no derivative; expected a method that "
                             "takes the same steps on every grid, such as 'eab-3' or 'unipc-2'.")
        return np.array([*numbers, *called, *times])

    def __call__(self, theta: Tensor, x: Tensor, noise: Mapping[Any, Tensor], score: Score) -> Tensor:
        """x_N from x (B, *D), differentiable in theta."""
        fixed = self.shapes.shape[1] + (self.eta != 0)
        values = _Table.apply(theta[:fixed], self.table)
        c, called, knots = (v.unbind() for v in values.split([self.coefficients, self.calls, len(self.start)]))
        a_b, extra, used, asked = theta[fixed:].to(x).unbind(), 0, 0, 0
        column = lambda t: t.to(x.device).reshape(1, *[1] * (x.ndim - 1))
        held: dict[Any, Tensor] = {("x",): x, **noise}
        history: list[Prediction] = []
        for k, (lines, end) in enumerate(self.lines):
            for call, name, terms in lines:
                y: Any = 0.0
                for term in terms:
                    y, used = y + c[used].to(x) * held[term], used + 1
                if call:
                    level = self.sde.at(column(called[asked]).expand(len(x), *[1] * (x.ndim - 1)))
                    prediction, asked = _ask(score, y, level), asked + 1
                    held[name] = prediction.v
                    if self.first <= k < self.last:
                        history.insert(0, prediction)
                else:
                    held[name] = y
            if self.rows[k]:
                n = self.rows[k]
                level = self.sde.at(column(knots[k + 1])).to(x)
                held[end] = held[end] + correction(history, level, a_b[extra:extra + n], a_b[extra + n:extra + 2 * n])
                extra += 2 * n
        return held[self.lines[-1][1]]

    def method(self, theta: np.ndarray, gain: Gain | None = None) -> Tuned:
        """The method that theta is."""
        times = tuple(self.times(theta))
        solver, fixed = self.solver, self.shapes.shape[1] + (self.eta != 0)
        if self.free:
            rows, extra = ([], []), theta[fixed:].tolist()                                  # type: ignore[var-annotated]
            for n in self.rows:
                rows[0].append(tuple(extra[:n]))
                rows[1].append(tuple(extra[n:2 * n]))
                extra = extra[2 * n:]
            solver = NonStationary(solver, times, *map(tuple, rows))                         # type: ignore[arg-type]
        knots = Knots(times, tuple(level.lam for level in self.sde.levels(times)))
        return Tuned("tuned", solver, self.eta_of(theta), knots, calls=self.calls, gain=gain)


def _ask(score: Score, x: Tensor, level: NoiseLevel) -> Prediction:
    """A network call, which keeps its input alone for the way back."""
    if not (isinstance(score, NetworkScore) and torch.is_grad_enabled()):
        return score(x, level)
    given: tuple[str, ...] = ()

    def ask(x: Tensor, *level: Tensor) -> tuple[Tensor, ...]:
        nonlocal given
        p = score(x, NoiseLevel(*level))
        given = p.given
        return tuple(p._known[name] for name in given)

    out = checkpoint(ask, x, *level, use_reentrant=False)
    return Prediction(x, level.to(x), **dict(zip(given, out)))


class _Table(torch.autograd.Function):
    """theta -> the numbers of a table, in float64; its derivative by forward differences."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, table: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        ctx.table, ctx.theta = table, theta.detach().cpu().double().numpy()
        ctx.value = table(ctx.theta)
        return torch.from_numpy(ctx.value).to(theta.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        g = gradients[0].detach().cpu().double().numpy()
        out = np.zeros_like(ctx.theta)
        for i, unit in enumerate(np.eye(len(out)) * DIFFERENCE):
            out[i] = g @ (ctx.table(ctx.theta + unit) - ctx.value) / DIFFERENCE
        return torch.from_numpy(out).to(gradients[0]), None


def _standard(families: Sequence[Method], near: Sequence[Tuned], sde: SDE, score: Score, steps: int | None, nfe: int | None,
              t_start: float | None, t_end: float | None) -> Iterator[tuple[Method, list[float], str]]:
    """Every family on every standard grid that fits the budget, and on the grids of neighbours."""
    for family in families:
        if callable(family.eta) or family.solver.adaptive or family.solver.looks_ahead:
            raise ValueError(f"method={family.name!r}: it is not linear on a grid, or its eta is a function; expected a fixed-step method "
                             "with a number for eta, such as 'eab-3', 'unipc-2', 'heun' or 'dpm++2m-sde'.")
        standard = KNOTS if getattr(score, "time_input", None) == "index" else dict.fromkeys([family.default_grid(sde), *GRIDS])
        times: list[float] | None = None
        for grid in standard:
            try:
                times = times_of(family, sde, steps, nfe, grid, t_start, t_end)
            except ValueError as error:
                if len(families) == 1:
                    raise ValueError(f"method={family.name!r}: {error}") from error
                continue
            yield family, times, repr(grid)
        for other in near:
            if times is None:
                break
            lam = np.array([lam for lam in other.grid.log_snr if math.isfinite(lam)])         # type: ignore[union-attr]
            levels = sde.levels(times)
            inner = [k for k, level in enumerate(levels) if math.isfinite(level.lam)]
            first, last = levels[inner[0]].lam, levels[inner[-1]].lam
            lam = first + (last - first) * (lam - lam[0]) / (lam[-1] - lam[0])
            places = np.interp(np.linspace(0, 1, len(inner)), np.linspace(0, 1, len(lam)), lam)[1:-1]
            knots = [*times[:inner[0] + 1], *sde.time_of(torch.from_numpy(places)).tolist(), *times[inner[-1]:]]
            yield family, knots, NEIGHBOUR


def _distinct(ranked: Sequence[Run], count: int) -> list[Run]:
    """The best of each family first, up to ``count``."""
    seen: dict[int, int] = {}
    order = []
    for place, run in enumerate(ranked):
        seen[id(run.family)] = seen.get(id(run.family), -1) + 1
        order.append((seen[id(run.family)], place))
    return [ranked[place] for _, place in sorted(order)][:count]


# -- trajectories -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Trajectories:
    """Starts x (n, *D), and what belongs at their ends: y, the exact end of each (``directions`` None), or samples of the law there,
    compared along ``directions`` (projections, d). ``score``: with the conditions of these rows."""

    score: Score
    x: Tensor
    y: Tensor
    noise: WhiteNoise
    directions: Tensor | None

    def ends(self, run: Run, theta: Tensor) -> Tensor:
        """x_N of a run at theta."""
        noise = {name: draw(self.noise, ask) for name, ask in run.draws}
        return run(theta, self.x, noise, self.score)

    def squares(self, ends: Tensor, rows: Any = slice(None)) -> Tensor:
        """What is averaged over these rows: squared errors of the paths (n, d), or of the sorted projections (n, projections):
        theory, eq. (35)."""
        if self.directions is None:
            return (ends - self.y)[rows].square().flatten(1)
        project = lambda v: (v[rows].flatten(1) @ self.directions.T).sort(0).values
        return (project(ends) - project(self.y)).square()

    def mean(self, ends: Tensor, power: float = 1.0) -> Tensor:
        """The power mean of the squared errors: that of the trajectories' squared distances, raised to ``power``."""
        squares = self.squares(ends)
        if power == 1:
            return squares.mean()
        return squares.mean(1).clamp_min(torch.finfo(squares.dtype).tiny).pow(power).mean().pow(1 / power)     # 0 has no slope

    def error(self, run: Run, theta: np.ndarray, power: float = 1.0) -> float:
        """Root-mean-square path error (or the root of another power mean), or sliced W2."""
        with torch.no_grad():
            error = math.sqrt(float(self.mean(self.ends(run, torch.from_numpy(theta)), power)))
        return error if math.isfinite(error) else math.inf

    def descent(self, run: Run, theta: np.ndarray, power: float = 1.0) -> tuple[float, np.ndarray]:
        """The logarithm of the mean and its gradient; a wall where the run overflows."""
        p = torch.from_numpy(theta.copy()).requires_grad_()
        loss = self.mean(self.ends(run, p), power).log()
        if not math.isfinite(loss.item()):
            return 1e3, np.zeros_like(theta)
        gradient, = torch.autograd.grad(loss, p)
        return loss.item(), gradient.numpy()


def _sets(run: Run, data: Tensor | None, shape: Sequence[int] | None, n: int, seed: int, dtype: torch.dtype,
          device: torch.device | str | None, rtol: float | None) -> list[Trajectories]:
    """Three sets: to fit, to choose, to tell."""
    sde, score, law = run.sde, run.score, run.noisy
    n, parts = (LAW * n, 6) if law else (n, 3)          # of a law, starts and reference samples are independent
    start, total = sde.at(run.start[0]), parts * n
    if data is not None:
        data = contracts.state("data", data, 2)
        if not len(data):
            raise ValueError("data has no rows; expected samples (n, *D).")
        where = torch.device(device) if device is not None else data.device
        index = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[torch.arange(total) % len(data)]
        z = random.source(contracts.integer("seed", seed, 0), (total, *data.shape[1:]), dtype=dtype, device=where).initial()
        x = start.alpha * data.to(device=where, dtype=dtype)[index.to(where)] + start.sigma * z
    else:
        event = contracts.shape("shape", shape)[1:]
        network = getattr(score, "network", None)
        weights = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
        index, where = torch.arange(total), torch.device(device or (weights.device if weights is not None else "cpu"))
        x = sde.prior_std(start) * random.source(contracts.integer("seed", seed, 0), (total, *event), dtype=dtype, device=where).initial()
    single = isinstance(score, NetworkScore) and score.dtype_of(x) != torch.float64
    coarse = isinstance(score, NetworkScore) and (score.autocast is not None or score.dtype_of(x) in (torch.float16, torch.bfloat16))
    tolerance = contracts.real("rtol", rtol, 0.0, 1.0, low_open=True) if rtol is not None else 1e-2 if coarse else 1e-5 if single else 1e-8
    directions = None
    if law:
        r = random.source(seed + 1, (PROJECTIONS, x[0].numel()), dtype=dtype, device=where).normal()
        directions = r / r.norm(dim=1, keepdim=True)
    sets = []
    for part in range(3):
        rows = slice(part * n, (part + 1) * n)
        far = slice((part + 3) * n, (part + 4) * n) if law else rows
        sets.append(Trajectories(_rows(score, index[rows]), x[rows], _flow(sde, _rows(score, index[far]), x[far], run.start, tolerance),
                                 WhiteNoise(seed + 2 + part, (n, *x.shape[1:]), dtype=dtype, device=where), directions))
    return sets


def _rows(score: Score, index: Tensor) -> Score:
    """The score with its batch-shaped conditions at these rows."""
    if not isinstance(score, NetworkScore) or not score.conditions:
        return score
    pick = lambda v: v[index.to(v.device) % len(v)] if isinstance(v, Tensor) and v.ndim else v
    return dataclasses.replace(score, conditions={k: pick(v) for k, v in score.conditions.items()})


def _flow(sde: SDE, score: Score, x: Tensor, times: Sequence[float], rtol: float) -> Tensor:
    """The exact probability-flow end of x. A first step out of alpha = 0, or a last one into sigma = 0, goes as every method takes it, over
    the interval that log-SNR grids leave there."""
    solver = Exploded(SciPy("DOP853", rtol, rtol / 10))
    knots = list(dict.fromkeys([times[0], *grids.finite_span(sde, times[0], times[-1]), times[-1]]))
    if getattr(score, "time_input", None) == "index":           # its finest flow is that of every knot
        solver, knots = Exponential(3, "eps"), [float(k) for k in range(round(times[0]), round(times[-1]) - 1, -1)]      # type: ignore[assignment]
    with torch.no_grad():
        *_, end = iterate(ReverseSDE(sde, score), solver, x, sde.levels(knots))
    return end.x


# -- descent ------------------------------------------------------------------------------------------------------------
def _descend(run: Run, theta: np.ndarray, fit: Trajectories, choose: Trajectories, power: float, limit: int, bar: Any) -> np.ndarray:
    """L-BFGS-B from theta on ``fit``; the theta on its way that is best on ``choose``, both by the power mean. It stops when that has not
    fallen for ``PATIENCE`` iterations."""
    from scipy.optimize import minimize

    best: list[Any] = [theta, choose.error(run, theta, power)]
    since = 0

    def seen(now: np.ndarray) -> None:
        nonlocal since
        bar.update()
        error, since = choose.error(run, now, power), since + 1
        if error < best[1]:
            best[:], since = [now.copy(), error], 0
        bar.set_postfix(method=run.family.name, error=f"{best[1]:.3g}", refresh=False)
        if since >= PATIENCE:
            raise StopIteration

    grid = run.shapes.shape[1]
    bounds = [(-6.0, 6.0)] * grid + [(-ETA, ETA)] * (len(theta) - grid - run.free) + [(-BOUND, BOUND)] * run.free
    minimize(lambda p: fit.descent(run, p, power), theta, jac=True, method="L-BFGS-B", bounds=bounds, callback=seen,
             options={"maxiter": limit, "maxfun": 2 * limit, "maxcor": 30})
    return best[0]


def _gain(tell: Trajectories, standard: Run, run: Run, theta: np.ndarray, blocks: int = 20) -> Gain:
    """Errors before and after on the third set; the ratio's interval by the jackknife over blocks of trajectories, on its logarithm."""
    from scipy.special import stdtrit

    with torch.no_grad():
        a, b = (tell.ends(r, torch.from_numpy(p)) for r, p in ((standard, standard.zero), (run, theta)))
    means = lambda rows=slice(None): [float(tell.squares(ends, rows).mean()) for ends in (a, b)]
    ratio = lambda before, after: 0.5 * math.log(after / max(before, 1e-300)) if after > 0 else -math.inf
    whole, g = means(), min(blocks, len(a))
    block = torch.arange(len(a), device=a.device) * g // len(a)
    parts = np.array([ratio(*means(block != k)) for k in range(g)])
    half = float(stdtrit(g - 1, 0.975)) * (g - 1) * parts.std(ddof=1) / math.sqrt(g)
    return Gain("path RMSE" if tell.directions is None else "sliced W2", f"{standard.family.name} on {standard.label}",
                *map(math.sqrt, whole), *(math.exp(ratio(*whole) + v) for v in (0.0, -half, half)))
