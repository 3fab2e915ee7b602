"""Tuned methods as data: what ``sdediff.tuning`` finds, kept as JSON beside a model.

A file is a list of methods by the network calls they take. A solver is written as the name of its class in ``sdediff.solvers`` and its
fields, which are numbers, words and tuples of them; reading it back runs the checks of the class and nothing else. The log-SNR of each
knot is kept beside its time, so that a method is refused under a process other than its own.
"""
from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import files, solvers
from .contracts import integer, real, shown
from .grids import Grid
from .recipes import Method
from .sde import SDE
from .solvers import Solver

FORMAT = "sdediff tuned methods 1"


class Gain(NamedTuple):
    """What tuning bought, on trajectories that nothing was fitted to: the error ``before``, of the best standard method (``standard``: its
    name and grid), and ``after``; ``ratio`` = after/before with the ends of its 95 % interval; ``kind``: "path RMSE" or "sliced W2"."""

    kind: str
    standard: str
    before: float
    after: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return (f"{self.kind} {self.before:.3g} ({self.standard}) to {self.after:.3g}: {self.ratio:.2f} times "
                f"[{self.low:.2f}, {self.high:.2f}]")


@dataclass(frozen=True)
class Knots(Grid):
    """One grid and no other: N + 1 ``times`` with their ``log_snr`` = log(alpha/sigma), for N steps from the first time to the last."""

    knots: tuple[float, ...]
    log_snr: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.log_snr) or len(self.knots) < 2 or any(s >= t for t, s in zip(self.knots, self.knots[1:])):
            raise ValueError(f"knots={self.knots!r}: expected at least two decreasing times, with one log_snr for each.")

    @property
    def steps(self) -> int:                                                                  # type: ignore[override]
        return len(self.knots) - 1

    def __call__(self, sde: SDE, steps: int, t_start: float | None = None, t_end: float | None = None) -> list[float]:
        if integer("steps", steps, 1) != self.steps:
            raise ValueError(f"steps={steps}: this grid was tuned for {self.steps} steps; expected steps={self.steps}, or a method that "
                             "sdediff.tune(...) makes for as many.")
        for name, given, own in (("t_start", t_start, self.knots[0]), ("t_end", t_end, self.knots[-1])):
            if given is not None and given != own:
                raise ValueError(f"{name}={given!r}: this grid was tuned from t={self.knots[0]} to t={self.knots[-1]}; leave {name} out.")
        for t, lam in zip(self.knots, self.log_snr):
            if not (0 <= t <= sde.t_max) or not math.isclose(sde.at(t).lam, lam, rel_tol=1e-9, abs_tol=1e-9):
                raise ValueError(f"grid: it was tuned under a process with log(alpha/sigma) = {lam:.6g} at t={t}; "
                                 f"{type(sde).__name__} has another. Tune a method for this process: sdediff.tune(...).")
        return list(self.knots)

    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        return self(sde, steps, start, end)


@dataclass(frozen=True)
class Tuned(Method):
    """A tuned method: a ``Method`` whose grid is its own (``Knots``). ``calls``: the network calls it takes; ``budget``: those it was
    allowed, more where another step would not have fitted; ``gain``: what it is worth."""

    calls: int = 0
    gain: Gain | None = None
    budget: int = 0

    @property
    def label(self) -> str:
        """Its solver in words."""
        inner = getattr(self.solver, "inner", self.solver)
        return f"{type(inner).__name__} of order {inner.order}" + (" with coefficients of its own" if inner is not self.solver else "")

    @staticmethod
    def by_calls(methods: Any) -> list[tuple[int, Tuned]]:
        """Methods by network calls, the fewest first. TypeError on what is no mapping from calls to tuned methods."""
        if not isinstance(methods, Mapping) or not all(type(n) is int and isinstance(m, Tuned) for n, m in methods.items()):
            raise TypeError(f"methods={shown(methods)}: expected a mapping from calls to methods made by sdediff.tune(...), as "
                            "sdediff.tuned.read returns.")
        return sorted(methods.items())

    def fits(self, nfe: int) -> bool:
        """Whether it is a method for a budget of that many calls: no fewer than it takes, and no more than it was tuned for."""
        return self.calls <= nfe <= max(self.calls, self.budget)


def best(methods: Mapping[int, Tuned], nfe: int) -> Tuned | None:
    """The one for a budget of that many calls: of those that fit it, the one that spends most."""
    integer("nfe", nfe, 1)
    return max((m for m in methods.values() if m.fits(nfe)), key=lambda m: m.calls, default=None)


def write(path: str | os.PathLike[str], methods: Mapping[int, Tuned]) -> None:
    """Writes tuned methods, by the network calls they take, in place of what the file held; whole or not at all. TypeError for a method
    that holds a function."""
    path = files.named("path", path)
    whole = {"format": FORMAT, "methods": [_as_json(m) for _, m in Tuned.by_calls(methods)]}
    files.write(path, json.dumps(whole, indent=1) + "\n")


def read(path: str | os.PathLike[str]) -> dict[int, Tuned]:
    """The tuned methods of a file, by the network calls they take. ValueError, with the file's name, where it is no such file."""
    path = files.named("path", path)
    try:
        whole = json.loads(Path(path).read_bytes())
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ValueError(f"expected a JSON object with format={FORMAT!r}")
        found = [_from_json(entry) for entry in whole["methods"]]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: no file of tuned methods ({type(error).__name__}: {error}); mend it, delete "
                         "it, or tune again with --overwrite.") from error
    return {m.calls: m for m in found}


def _as_json(method: Tuned) -> dict[str, Any]:
    grid = method.grid
    if callable(method.eta) or not isinstance(grid, Knots):
        raise TypeError(f"method={method.name!r}: its eta is a function or its grid no Knots; expected a method made by sdediff.tune(...).")
    return {"calls": method.calls, "budget": method.budget, "solver": _plain(method.solver), "eta": method.eta, "times": grid.knots,
            "log_snr": [lam if math.isfinite(lam) else str(lam) for lam in grid.log_snr],
            "gain": method.gain._asdict() if method.gain else None}


def _from_json(entry: dict[str, Any]) -> Tuned:
    knots = Knots(tuple(real("times", t, 0.0) for t in entry["times"]), tuple(float(lam) for lam in entry["log_snr"]))
    solver = _made(entry["solver"])
    if not isinstance(solver, Solver):
        raise TypeError(f"solver={entry['solver']!r}: expected a solver")
    return Tuned("tuned", solver, real("eta", entry["eta"], 0.0), knots, calls=integer("calls", entry["calls"], 1),
                 gain=_gain(entry["gain"]) if entry["gain"] else None, budget=integer("budget", entry["budget"], 0))


def _gain(entry: dict[str, Any]) -> Gain:
    gain = Gain(**entry)
    return Gain(str(gain.kind), str(gain.standard), *(real(name, v) for name, v in zip(Gain._fields[2:], gain[2:])))


def _plain(value: Any) -> Any:
    """A solver as its class and fields."""
    if dataclasses.is_dataclass(value):
        return {"class": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r}: a method that holds a {type(value).__name__} cannot be written to a file.")


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        kind = getattr(solvers, value["class"], None) if value["class"] in solvers.__all__ else None
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise ValueError(f"class={value['class']!r}: expected a solver of sdediff.solvers")
        return kind(**{k: _made(v) for k, v in value.items() if k != "class"})
    return tuple(map(_made, value)) if isinstance(value, list) else value
