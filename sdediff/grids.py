r"""Time grids: where a solver evaluates. A grid is called with (sde, steps, t_start, t_end) and returns steps + 1 strictly
decreasing times, the first t_start and the last t_end.

Grids that are uniform in a function of lambda = log(alpha/sigma) need it finite. Where the span ends at sigma = 0 (or starts
at alpha = 0), the last (first) interval goes there from the process's t_min (from lambda = -lambda(t_min)); on a discrete
chain, from the knot beside it.

References: Karras et al. 2022, eq. 5; Lu et al. 2022a, Sec. 3.3 (log-SNR); Song et al. 2021a, App. D.3 (quadratic); Lin et al.
2024, Table 2 (leading, trailing, linspace).
"""
from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .contracts import MOST, choice, instance, integer, real, sequence, shown
from .sde import A_PROCESS, SDE


class Grid(abc.ABC):
    """Callable[(sde, steps, t_start, t_end)] -> list of steps + 1 decreasing times. ``steps``: the one number of steps that it has, if it
    belongs to one."""

    steps: int | None = None

    def __call__(self, sde: SDE, steps: int, t_start: float | None = None, t_end: float | None = None) -> list[float]:
        """Raises TypeError or ValueError on steps < 1, or times outside [0, t_max], or t_start <= t_end."""
        instance("sde", sde, SDE, A_PROCESS)
        steps = integer("steps", steps, 1, MOST)
        start = sde.t_max if t_start is None else real("t_start", t_start, 0.0, sde.t_max)
        end = sde.t_min if t_end is None else real("t_end", t_end, 0.0, sde.t_max)
        if not end < start:
            raise ValueError(f"t_start={start}, t_end={end}: expected t_end < t_start, since sampling runs from noise down to data.")
        times = self.times(sde, steps, start, end)
        return checked(sde, times)

    @abc.abstractmethod
    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        """The grid itself, for a valid span."""


def checked(sde: SDE, times: Sequence[float]) -> list[float]:
    """A decreasing list of at least two finite times in [0, t_max]; anything else raises ValueError."""
    instance("sde", sde, SDE, A_PROCESS)
    such = "[0.9, 0.5, 0.1], two or more times from noise down to data"
    grid = [real(f"times[{i}]", t, 0.0, sde.t_max) for i, t in enumerate(sequence("times", times, such, 2))]
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        if not s < t:
            raise ValueError(f"times[{i}]={t}, times[{i + 1}]={s}: expected strictly decreasing times, from noise down to data.")
    return grid


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in t."""

    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        return _between(start, end, np.linspace(start, end, steps + 1))


@dataclass(frozen=True)
class Quadratic(Grid):
    """Equal steps in t^(1/power)."""

    power: float = 2.0

    def __post_init__(self) -> None:
        real("power", self.power, 0.0, low_open=True)

    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        return _between(start, end, np.linspace(start**(1 / self.power), end**(1 / self.power), steps + 1)**self.power)


class _InLambda(Grid):
    """Times whose lambdas are ``spacing(lambda_start, lambda_end, intervals)``."""

    def spacing(self, first: float, last: float, intervals: int) -> np.ndarray:
        raise NotImplementedError

    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        if steps == 1:
            return _between(start, end, np.array([start, end]))
        inner_start, inner_end = finite_span(sde, start, end)
        head, tail = [start] * (inner_start != start), [end] * (inner_end != end)
        inner = steps - len(head) - len(tail)
        if inner < 1:                             # no interval is left between the two ends
            return Uniform().times(sde, steps, start, end)
        a, b = (sde.at(t).lam for t in (inner_start, inner_end))
        lam = torch.from_numpy(self.spacing(a, b, inner))
        return head + _between(inner_start, inner_end, sde.time_of(lam).numpy()) + tail


@dataclass(frozen=True)
class LogSNR(_InLambda):
    """Equal steps in lambda = log(alpha/sigma)."""

    def spacing(self, first: float, last: float, intervals: int) -> np.ndarray:
        """Equal steps of lambda."""
        return np.linspace(first, last, intervals + 1)


@dataclass(frozen=True)
class Karras(_InLambda):
    """Equal steps in (sigma/alpha)^(1/rho). Karras et al. 2022, eq. 5."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        real("rho", self.rho, 0.0, low_open=True)

    def spacing(self, first: float, last: float, intervals: int) -> np.ndarray:
        """Lambdas of equal steps in (sigma/alpha)^(1/rho)."""
        return -self.rho * np.log(np.linspace(math.exp(-first / self.rho), math.exp(-last / self.rho), intervals + 1))


@dataclass(frozen=True)
class Sech(_InLambda):
    """Knots with density ``floor`` + sech((lambda - centre)/width) in lambda, the widths of the ``noisy`` side (lambda < centre) and of the
    ``clean`` one their own: dense where the noise is as large as the data's structure, lambda = 0 to 2 for data of unit variance, and
    sparse at both ends. sech(lambda) alone is equal steps in the angle of signal and noise. The defaults are for some 8 to 12 network
    calls; see ``selection.auto`` for fewer and for more."""

    centre: float = 0.45
    noisy: float = 1.5
    clean: float = 2.75
    floor: float = 0.055

    def __post_init__(self) -> None:
        real("centre", self.centre)
        for name in ("noisy", "clean", "floor"):
            real(name, getattr(self, name), 0.0, low_open=True)

    def at_scale(self, scale: float) -> Sech:
        """This grid for data of another standard deviation than one."""
        return dataclasses.replace(self, centre=self.centre - math.log(real("scale", scale, 0.0, low_open=True)))

    def mass(self, lam: np.ndarray) -> np.ndarray:
        """The integral of the density from the centre to ``lam``: int sech = 2 atan(tanh(u/2))."""
        off = lam - self.centre
        width = np.where(off < 0, self.noisy, self.clean)
        return self.floor * off + 2 * width * np.arctan(np.tanh(off / (2 * width)))

    def spacing(self, first: float, last: float, intervals: int) -> np.ndarray:
        """Lambdas at equal parts of the density's integral."""
        start, end = self.mass(np.array([first, last])).tolist()
        wanted = np.linspace(start, end, intervals + 1)
        low, high = np.full_like(wanted, first), np.full_like(wanted, last)
        for _ in range(60):                       # bisection of an increasing function
            middle = (low + high) / 2
            below = self.mass(middle) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class DDPM(Grid):
    """Knots of a discrete chain (a process made by ``from_betas`` or ``from_sigmas``): ``steps`` of its N indices, then the clean
    level. ``spacing``: "trailing" counts down from the last index N-1, "leading" up from index 0 in strides of N // steps,
    "linspace" holds both ends. Step counts that do not divide N are rounded as in the papers' code (Lin et al. 2024, Table 2).
    With a span, the indices inside it are used.
    """

    spacing: str = "trailing"

    def __post_init__(self) -> None:
        choice("spacing", self.spacing, ("trailing", "leading", "linspace"))

    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        """Raises ValueError on another process than a chain, and on more steps than the span has timesteps."""
        if sde.knots is None:
            raise ValueError(f"grid='ddpm': {type(sde).__name__} is not a discrete chain; expected a process made by "
                             "VPSDE.from_betas(betas) or VESDE.from_sigmas(sigmas), or another grid.")
        first, last = math.floor(end), math.floor(start)        # knots first+1 .. last lie in (end, start]
        n = last - first
        if steps > n:
            raise ValueError(f"steps={steps}: this span of the chain holds {n} timesteps; expected steps <= {n}.")
        if self.spacing == "leading":
            index = np.arange(steps) * (n // steps)
        elif self.spacing == "linspace":
            index = np.round(np.linspace(0, n - 1, steps)) if steps > 1 else np.array([n - 1])
        else:
            index = np.round(n - np.arange(steps) * (n / steps))[::-1] - 1
        return [float(first + i + 1) for i in index[::-1]] + [end]


GRIDS: dict[str, Callable[..., Grid]] = {"uniform": Uniform, "quadratic": Quadratic, "logsnr": LogSNR, "karras": Karras, "sech": Sech,
                                    "ddpm": DDPM}


def grid(spec: Any) -> Grid:
    """A grid from its name or itself. Raises TypeError on anything else, ValueError on an unknown name."""
    if isinstance(spec, Grid):
        return spec
    if isinstance(spec, type) and issubclass(spec, Grid):
        return spec()
    if not isinstance(spec, str):
        raise TypeError(f"grid={shown(spec)}: expected a name ({', '.join(GRIDS)}), an instance such as sdediff.grids.Karras(rho=7), "
                        "or a decreasing list of times.")
    return GRIDS[choice("grid", spec, GRIDS)]()


def finite_span(sde: SDE, start: float, end: float) -> tuple[float, float]:
    """The span's ends, moved inwards where lambda is infinite: the level beside them that a log-SNR grid can reach. Raises ValueError
    on a span without any."""
    instance("sde", sde, SDE, A_PROCESS)
    start, end = real("start", start, 0.0, sde.t_max), real("end", end, 0.0, sde.t_max)
    inner_end = end
    if sde.at(end).sigma == 0:
        inner_end = 1.0 if sde.knots else (sde.t_min or 1e-3 * sde.t_max)
    inner_start = start
    if sde.at(start).alpha == 0:
        inner_start = start - 1.0 if sde.knots else float(sde.time_of(torch.tensor([-abs(sde.at(inner_end).lam)], dtype=torch.float64)))
    if not inner_end < inner_start:
        raise ValueError(f"start={start}, end={end}: the span holds no interval with finite log-SNR; expected a longer one.")
    return inner_start, inner_end


def _between(start: float, end: float, times: np.ndarray) -> list[float]:
    """The times as floats with both ends exact."""
    return [float(start), *(float(t) for t in times[1:-1]), float(end)]
