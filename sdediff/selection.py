"""Names that stand for the method that suits a run."""
from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import tuned as store
from .contracts import flags, instance, integer, numbers, real
from .grids import LogSNR, Sech
from .programs import is_value
from .recipes import Method, Run, chooser
from .recipes import method as as_method
from .score import calls_at
from .sde import SDE
from .solvers import Angular, NonStationary
from .tuned import Tuned

FEW, SOME, MANY = Sech(-0.25, 1.67, 2.37, 0.18), Sech(0.45, 1.5, 2.75, 0.055), Sech(0.62, 1.4, 1.6, 0.14)


def untuned(calls: int, scale: float = 1.0) -> Method:
    """What to take for a budget of network calls when nothing is known of the data but their standard deviation, ``scale``.

    The grids were found by a search, at 5 and 8, at 8, and at 15 and 20 calls, under VPSDE and EDMSDE on rings, pinwheel, 25 Gaussians,
    banana, Gaussians in 8 and 24 dimensions and mixtures in 2, 8 and 32. On the 147 cells of benchmarks/results/tuning_untuned.csv, other
    targets, the median of the path RMSE is 0.30 of that of exponential Adams-Bashforth 4 on log-SNR. Known misses, at 10 calls: a Gaussian
    on which the errors of the other happen to cancel (2.7 and 2.9 times its error, VPSDE and a DDPM chain), and the squares of a
    checkerboard under VPSDE (1.6)."""
    return _untuned(integer("calls", calls, 1), real("scale", scale, 0.0, low_open=True))


@functools.lru_cache(maxsize=256)
def _untuned(calls: int, scale: float) -> Method:
    nodes, grid = min(3, calls), (FEW if calls < 8 else SOME if calls < 13 else MANY).at_scale(scale)
    return Method(f"angular-{nodes}", Angular(nodes, 4 if calls >= 8 else 0, scale), grid=grid)


@chooser("auto")
def auto(run: Run, spectrum: Any = None, data: Tensor | None = None, stochastic: bool = False) -> Method:
    """The method for a run's budget and for what is known of the data; ``Method.why`` says which, and why.

    What was tuned for this score, span and number of calls (``sdediff tune``), where there is such a method and nothing else is given.
    Else, where ``data`` (n, *D) or the ``spectrum`` of their covariance are given, the rule of ``untuned`` at their scale, or a candidate
    with less than half its error, exact on Gaussian data (``analysis``) with that spectrum and with variances equally spaced in their
    logarithm down to a thousandth of the greatest: where modes meet, data are for a while as wide as their distance. Else that rule, for
    data whose standard deviation is about one. ``stochastic``: a method that draws noise, the candidate of least error in the law, and
    "dpm++2m-sde" where nothing is known.

    The number of calls is ``nfe``, or ``steps`` of one call. Knots lie between those of a discrete chain, unless the network takes an
    index. Raises TypeError or ValueError on wrong data, spectrum or ``stochastic``.
    """
    instance("run", run, Run, "a sdediff.recipes.Run(sde, score, nfe=10)")
    flags(stochastic=stochastic)
    if data is not None and spectrum is not None:
        raise ValueError("data, spectrum: expected one of them; spectrum=sdediff.analysis.spectrum_of(data) says all that is read of data.")
    calls = _calls(run)
    from .analysis import spectrum_of  # here, since sampling without data has no use for it

    known = spectrum_of(data) if data is not None else None if spectrum is None else numbers("spectrum", spectrum)[0]
    if known is None and (own := _tuned(run, calls, stochastic)) is not None:
        gain = f", {own.gain}" if own.gain else ""
        return dataclasses.replace(own, why=f"chosen by auto: tuned for this score at {calls} calls{gain}")
    between = getattr(run.score, "time_input", None) != "index"
    if known is None or calls is None:
        found = as_method("dpm++2m-sde") if stochastic else untuned(calls or 10)
        reason = ("the best stochastic methods of the reference run are not told apart" if stochastic else
                  f"the rule for {calls} calls, for data of unit variance" if calls else "for a grid that lists its times")
        return dataclasses.replace(found, between=between, why=f"chosen by auto: {reason}; data= or spectrum= would say more")
    if known.ndim != 1 or not known.numel() or not bool((torch.isfinite(known) & (known >= 0)).all()) or not bool(known.max() > 0):
        raise ValueError(f"spectrum={known.tolist()}: expected (E,) finite variances >= 0, not all zero, such as "
                         "sdediff.analysis.spectrum_of(data).")
    values = tuple(known.double().tolist())
    grid = tuple(map(float, run.grid)) if _lists(run.grid) else run.grid
    keys = (run.sde, values, run.steps is None, calls, run.t_start, run.t_end, grid, stochastic, between)
    best, error, count = (_best if all(map(is_value, keys)) else _best.__wrapped__)(*keys)
    return dataclasses.replace(best, why=f"chosen by auto from {count} methods: {'W2' if stochastic else 'path RMSE'} {error:.2g} in "
                                         "the mean over Gaussian data of the given spectrum and narrower")


def _calls(run: Run) -> int | None:
    """The evaluations of the score in a run, as far as known."""
    if run.nfe is not None:
        return max(1, integer("nfe", run.nfe, 1) // max(1, calls_at(run.score, run.sde.level_of(0.0))))
    if run.steps is not None:
        return integer("steps", run.steps, 1)
    return max(1, len(run.grid) - 1) if _lists(run.grid) else None


def _lists(grid: Any) -> bool:
    """Whether a grid lists its times."""
    return grid is not None and not isinstance(grid, (str, type)) and not callable(grid)


def _tuned(run: Run, calls: int | None, stochastic: bool) -> Tuned | None:
    """The score's own method for these calls, where it stands on the run's process and span."""
    own = _of(_methods(getattr(run.score, "tuned", {})), run)
    if own is None or own.grid is None or own.grid.steps is None or run.grid is not None or own.stochastic != stochastic:
        return None
    if run.up and isinstance(own.solver, NonStationary):            # it runs down alone
        return None
    try:
        own.grid(run.sde, own.grid.steps, run.t_start, run.t_end)
    except ValueError:
        return None
    return own


def _methods(kept: str | os.PathLike[str] | Mapping[int, Tuned]) -> Mapping[int, Tuned]:
    """Tuned methods, read from their file where they are kept in one."""
    return store.read(kept) if isinstance(kept, (str, os.PathLike)) else kept


def _of(methods: Mapping[int, Tuned], run: Run) -> Tuned | None:
    """Of tuned methods, the one for a run's calls or steps."""
    if run.nfe is not None:
        return store.best(methods, run.nfe)
    return next((m for m in methods.values() if m.grid is not None and m.grid.steps == run.steps), None)


def _candidates(calls: int, scale: float, stochastic: bool) -> Iterator[Method]:
    if stochastic:
        for name, options in NOISY:
            yield dataclasses.replace(as_method(name, **options), grid=LogSNR())
        return
    yield untuned(calls, scale)
    for nodes, corrector, grid in itertools.product((3, 4), (False, True), (FEW, SOME, MANY)):
        if nodes < calls:
            yield Method(f"angular-{nodes}", Angular(nodes, (nodes + 1) * corrector, scale), grid=grid.at_scale(scale))
    for name in ("eab-3", "eab-4", "unipc-2", "unipc-3"):
        yield as_method(name, start=False)
    if calls >= 20:
        yield as_method("edm-heun")
        yield as_method("dpm-solver-3")


NOISY: tuple[tuple[str, dict[str, Any]], ...] = (("dpm++2m-sde", {}), ("dpm++2m-sde", {"eta": 0.5}), ("sa-solver", {"start": False}),
                                                 ("er-sde-2", {"start": False}), ("ddpm", {}), ("eab-2", {"eta": 0.5}))


@functools.lru_cache(maxsize=64)
def _best(sde: SDE, spectrum: tuple[float, ...], by_calls: bool, calls: int, t_start: float | None, t_end: float | None, grid: Any,
          stochastic: bool, between: bool) -> tuple[Method, float, int]:
    """The method, its error, and how many there were to choose from."""
    from .analysis import gaussian_error

    c = torch.tensor(spectrum, dtype=torch.float64)
    wide = float(c.max())
    c = c.clamp(min=1e-6 * wide)
    span = torch.logspace(math.log10(min(float(c.min()), 1e-3 * wide)), math.log10(wide), 13, dtype=torch.float64)
    weights = torch.cat([torch.full_like(c, 0.5 / len(c)), torch.full_like(span, 0.5 / len(span))])
    budget: dict[str, Any] = {} if isinstance(grid, tuple) else {"nfe" if by_calls else "steps": calls}
    found, reason = list[tuple[float, Method]](), "none fits the budget"
    for one in _candidates(calls, math.sqrt(float(c.mean())), stochastic):
        one = dataclasses.replace(one, between=between)
        try:
            e = gaussian_error(one, sde, **budget, grid=grid, t_start=t_start, t_end=t_end, spectrum=torch.cat([c, span]),
                               multiplicity=weights).total
        except ValueError as refusal:
            reason = str(refusal)
        else:
            found.append((float(e.w2 if e.path_rmse is None else e.path_rmse), one))
    found = [entry for entry in found if math.isfinite(entry[0])]
    if not found:
        raise ValueError(f"method='auto': no candidate for this run; the last reason: {reason}")
    best = min(found, key=lambda entry: entry[0])
    kept = found[0] if not stochastic and found[0][0] < 2 * best[0] else best
    return kept[1], kept[0], len(found)


@chooser("tuned")
def tuned(run: Run, methods: str | os.PathLike[str] | Mapping[int, Tuned] | None = None) -> Method:
    """The method tuned for the run's number of network calls (or steps): of ``methods``, a file that ``sdediff tune`` wrote or a mapping
    from calls to methods; by default of those that came with the score. ValueError where there is none for that number."""
    found = _methods(getattr(run.score, "tuned", {}) if methods is None else methods)
    if not found:
        raise ValueError("method='tuned': nothing was tuned for this score; expected methods=FILE as `sdediff tune RUN --nfe 5 10 20` "
                         "writes it, or a method of your own, method=sdediff.tune('auto', sde, score, nfe=10, data=x).")
    if run.nfe is None and run.steps is None:
        raise ValueError("method='tuned': a tuned method has a grid of its own; expected nfe= or steps=, without grid=.")
    if (m := _of(found, run)) is not None:
        return m
    budgets = ", ".join(f"nfe={m.calls}" for m in found.values())
    raise ValueError(f"method='tuned', nfe={run.nfe!r}, steps={run.steps!r}: there are methods for {budgets}; expected one of them, "
                     "or tune for this one.")
