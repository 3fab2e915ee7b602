r"""Other libraries' solvers on sdediff's exact targets: one adapter a library, a function from states at the start to states at the end.

*What a peer is handed.* Every process is the same one in the chart y = x/alpha, with the clock r = sigma/alpha:

    dy = (1 + eta^2) eps(y, r) dr + eta sqrt(2 r |dr|) z,          z ~ N(0, I),  r from r(t_max) down to r(t_min)                    (1)

(eta = 0 the probability flow, eta = 1 the reverse SDE). In it Euler is DDIM, which is why k-diffusion works there. ``Model`` is the network
of (1), E[eps | y] or E[x_0 | y], from the score that our own methods get, and counts its calls. ``Clock`` places the knots, where our grids
"logsnr" and "karras" do, and gives r at any place u between them, for libraries that know equal steps alone. Black-box libraries get the
form of (1) in which they do best: see torchdiffeq_.py.

*What is theirs.* Everything else: a library's own defaults but for the grid, float64, its random numbers (seeded), and an end at t_min > 0,
where the exact solution is known. Start-up steps, lowered orders at the end, and network calls in a library's checks all count.

    from benchmarks.peers import peers
    x, calls = peers()["k-diffusion"].run("dpmpp_2m", sde, score, x_init, nfe=20, seed=0)
"""
from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.contracts import choice, integer
from sdediff.grids import Grid
from sdediff.score import Prediction, Score
from sdediff.sde import SDE

PACKAGES = ("diffusers", "k-diffusion", "azula", "torchdiffeq", "torchsde")
GRIDS = ("logsnr", "karras")
TOLERANCES = [10 ** (-k / 4) for k in range(2, 53)]      # of adaptive methods, from 0.3 to 1e-13


class Method(NamedTuple):
    """``kind``: "ODE" or "SDE". ``order`` (weak for "SDE"): what the library or its paper promises, None where nothing. Calls: ``calls`` a
    step, and ``fixed`` more; the number of steps is a multiple of ``multiple``. ``adaptive``: steered by a tolerance."""

    kind: str
    order: int | None
    calls: int = 1
    fixed: int = 0
    multiple: int = 1
    adaptive: bool = False


class Clock:
    """The way from r = ``first`` down to r = ``last``: r(u) for u in [0, steps], whole at the knots of our grid of that name."""

    @staticmethod
    def of(grid: str | Grid, sde: SDE, start: float, end: float, steps: int) -> Clock:
        """The clock of a grid by name, or of any grid of ours on that span of a process."""
        first, last = (math.exp(-sde.at(t).lam) for t in (start, end))
        if isinstance(grid, str):
            return Clock(grid, first, last, steps)
        return Listed([first, *(math.exp(-level.lam) for level in sde.levels(grid(sde, steps, start, end)[1:-1])), last])

    def __init__(self, grid: str, first: float, last: float, steps: int) -> None:
        self.grid, self.first, self.last, self.steps = choice("grid", grid, GRIDS), first, last, steps
        self._ends = (math.log(first), math.log(last)) if grid == "logsnr" else (first ** (1 / 7), last ** (1 / 7))

    def r(self, u: float) -> float:
        """sigma/alpha at the place u."""
        if u in (0, self.steps):
            return self.first if u == 0 else self.last
        a, b = self._ends
        v = a + (b - a) * u / self.steps
        return math.exp(v) if self.grid == "logsnr" else v**7

    def slope(self, u: float) -> float:
        """dr/du < 0."""
        (a, b), r = self._ends, self.r(u)
        return (b - a) / self.steps * (r if self.grid == "logsnr" else 7 * r ** (6 / 7))

    @property
    def knots(self) -> list[float]:
        """r(0), ..., r(steps)."""
        return [self.r(k) for k in range(self.steps + 1)]


class Listed(Clock):
    """The clock whose knots are listed, log r linear between them."""

    def __init__(self, knots: list[float]) -> None:
        self.first, self.last, self.steps = knots[0], knots[-1], len(knots) - 1
        self._knots = knots

    def r(self, u: float) -> float:
        k = min(int(u), self.steps - 1)
        a, b, part = self._knots[k], self._knots[k + 1], u - k
        return a if part == 0 else b if part == 1 else a ** (1 - part) * b**part

    def slope(self, u: float) -> float:
        k = min(int(u), self.steps - 1)
        return self.r(u) * math.log(self._knots[k + 1] / self._knots[k])


class Model:
    """The score of a process as a network of (y, r). ``calls`` counts."""

    def __init__(self, sde: SDE, score: Score) -> None:
        self.sde, self.score, self.calls = sde, score, 0

    def __call__(self, y: Tensor, r: float) -> Prediction:
        self.calls += 1
        level = self.sde.level_of(-math.log(r))
        return self.score(level.alpha * y, level)

    def eps(self, y: Tensor, r: float) -> Tensor:
        """E[eps | y]."""
        return self(y, r).eps

    def x0(self, y: Tensor, r: float) -> Tensor:
        """E[x_0 | y]."""
        return self(y, r).x0


Solve = Callable[[str, Model, Tensor, Clock, int, float], Tensor]


@dataclass(frozen=True)
class Peer:
    """A library. ``solve``: (method, model, y, clock, seed, tolerance) -> y at the clock's end."""

    package: str
    methods: Mapping[str, Method]
    solve: Solve

    @cached_property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    @property
    def source(self) -> str:
        """"<package> <version>", as the tables of the benchmark name it."""
        return f"{self.package} {self.version}"

    def steps(self, name: str, nfe: int) -> int:
        """The most steps that ``nfe`` calls pay for; ValueError where they pay for none."""
        m = self.methods[choice("method", name, self.methods)]
        count = (integer("nfe", nfe, 1) - m.fixed) // m.calls // m.multiple * m.multiple
        if count < 1:
            least = m.fixed + m.calls * m.multiple
            raise ValueError(f"nfe={nfe}: a step of {self.package}'s {name} takes {least} calls; expected as many.")
        return count

    def run(self, name: str, sde: SDE, score: Score, x_init: Tensor, nfe: int, seed: int = 0, *, grid: str | Grid = "logsnr",
            t_start: float | None = None, t_end: float | None = None, tolerance: float | None = None) -> tuple[Tensor, int]:
        """The states at t_end (default t_min) of a run from x_init (B, *D), float64, at t_start (default t_max), and the calls that it
        took: at most ``nfe``. An adaptive method takes the least tolerance of ``TOLERANCES`` that keeps within them (the calls of the
        search do not count; ``tolerance`` leaves it out). Raises ValueError where alpha(t_start) = 0, where sigma(t_end) = 0, and for a
        budget that is too small."""
        m = self.methods[choice("method", name, self.methods)]
        first, last = (sde.at(t) for t in (sde.t_max if t_start is None else t_start, sde.t_min if t_end is None else t_end))
        if first.alpha == 0 or last.sigma == 0:
            raise ValueError(f"t_start={first.t}, t_end={last.t}: expected a span where alpha > 0 and sigma > 0, since peers work in "
                             "x/alpha and log(sigma/alpha).")
        if m.adaptive and tolerance is None:
            tolerance = self.tolerance(name, sde, score, x_init, nfe, seed, grid=grid, t_start=t_start, t_end=t_end)
        steps = 1 if m.adaptive else self.steps(name, nfe)
        clock = Clock.of(grid, sde, first.t, last.t, steps)
        model = Model(sde, score)
        with torch.no_grad():
            y = self.solve(name, model, x_init.double() / first.alpha, clock, seed, tolerance or 0.0)
        return last.alpha * y, model.calls

    def tolerance(self, name: str, sde: SDE, score: Score, x_init: Tensor, nfe: int, seed: int = 0, **span: object) -> float:
        """The least tolerance of ``TOLERANCES`` with which an adaptive method keeps within nfe calls, by bisection."""
        def calls(k: int) -> int:
            return self.run(name, sde, score, x_init, nfe, seed, tolerance=TOLERANCES[k], **span)[1]        # type: ignore[arg-type]

        low, high = 0, len(TOLERANCES) - 1
        if (least := calls(low)) > nfe:
            raise ValueError(f"nfe={nfe}: {self.package}'s {name} takes {least} calls at the tolerance {TOLERANCES[0]:.1g}; "
                             "expected as many.")
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if calls(middle) <= nfe else (low, middle - 1)
        return TOLERANCES[low]


def peers() -> dict[str, Peer]:
    """The libraries that are installed, by package name."""
    found = {}
    for package in PACKAGES:
        try:
            importlib.metadata.version(package)
            module = importlib.import_module(f"{__name__}.{package.replace('-', '_')}_")
        except (importlib.metadata.PackageNotFoundError, ImportError):
            continue
        found[package] = module.PEER
    return found
