"""Names that stand for the method that suits a run."""
from __future__ import annotations

import os
from collections.abc import Mapping

from . import tuned as store
from .grids import Sech
from .recipes import Method, Run, chooser
from .solvers import Angular
from .tuned import Tuned

FEW, SOME, MANY = Sech(-0.25, 1.67, 2.37, 0.18), Sech(0.45, 1.5, 2.75, 0.055), Sech(0.62, 1.4, 1.6, 0.14)


def untuned(calls: int) -> Method:
    """What to take for a budget of network calls when nothing is known of the data but that its standard deviation is about one.

    The grids were found by a search, at 5 and 8, at 8, and at 15 and 20 calls, under VPSDE and EDMSDE on rings, pinwheel, 25 Gaussians,
    banana, Gaussians in 8 and 24 dimensions and mixtures in 2, 8 and 32. On the 147 cells of benchmarks/results/tuning_untuned.csv, other
    targets, the median of the path RMSE is 0.30 of that of exponential Adams-Bashforth 4 on log-SNR."""
    if calls < 8:
        return Method("angular-3", Angular(3), grid=FEW)
    return Method("angular-3", Angular(3, 4), grid=SOME if calls < 13 else MANY)


@chooser("tuned")
def tuned(run: Run, methods: str | os.PathLike[str] | Mapping[int, Tuned] | None = None) -> Method:
    """The method tuned for the run's number of network calls (or steps): of ``methods``, a file that ``sdediff tune`` wrote or a mapping
    from calls to methods; by default of those that came with the score. ValueError where there is none for that number."""
    kept = getattr(run.score, "tuned", {}) if methods is None else methods
    found = store.read(kept) if isinstance(kept, (str, os.PathLike)) else kept
    if not found:
        raise ValueError("method='tuned': nothing was tuned for this score; expected methods=FILE as `sdediff tune RUN --nfe 5 10 20` "
                         "writes it, or a method of your own, method=sdediff.tune('auto', sde, score, nfe=10, data=x).")
    if run.nfe is None and run.steps is None:
        raise ValueError("method='tuned': a tuned method has a grid of its own; expected nfe= or steps=, without grid=.")
    for m in found.values():
        if (run.nfe is not None and m.fits(run.nfe)) or (run.nfe is None and m.grid is not None and m.grid.steps == run.steps):
            return m
    budgets = ", ".join(f"nfe={m.calls}" for m in found.values())
    raise ValueError(f"method='tuned', nfe={run.nfe!r}, steps={run.steps!r}: there are methods for {budgets}; expected one of them, "
                     "or tune for this one.")
