"""What there is: every public callable, read from the modules, beside the doors that are declared for it.

What has no door is in ``MADE`` (what the library makes and callers read) or in ``PROTOCOL`` (what the loops call, on values that a door has
checked); a new public name that is in none of the three, and a new argument without a domain, are found here.
"""
from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from .. import recipes
from . import workshop
from .doors import DOORS, arguments

__all__ = ["DOORS", "MADE", "MODULES", "PROTOCOL", "public", "without_a_domain", "without_a_door", "workshop"]

MODULES = (
    "grids", "guidance", "inverse", "operators", "random", "selection", "solvers", "targets", "metrics", "analysis", "likelihood",
    "latent", "nets", "data", "training", "plots", "tuned", "doctor", "evaluate", "adapters", "testing", "bench")
#: What the library makes and callers read: results, objects that a door makes and checks, and records whose fields a door checks.
MADE = frozenset((
    "sdediff.NumericalWarning", "sdediff.SampleInfo", "sdediff.Path", "sdediff.LogProb", "sdediff.Bound", "sdediff.NoiseLevel",
    "sdediff.NetworkError", "sdediff.StepBudgetError", "latent.RoundTrip", "likelihood.Divergence", "likelihood.LogProb",
    "likelihood.Bound", "metrics.Estimate", "metrics.Moments", "metrics.ChiSquare", "analysis.Total", "analysis.GaussianError",
    "analysis.Ranked", "random.Draws", "guidance.Guided", "guidance.Extrapolated", "guidance.ClassifierGuided", "guidance.Tempered",
    "inverse.Observation", "inverse.Observed", "inverse.Posterior", "targets.ClassScore", "solvers.Table", "solvers.Form",
    "solvers.State", "solvers.TorchSDEForm", "solvers.StepBudgetError", "solvers.NonStationary", "solvers.EmbeddedPair",
    "solvers.RungeKutta", "solvers.SingleStep", "training.Checkpoint", "training.Trained", "data.Dataset", "plots.Panel", "plots.Track",
    "tuned.Gain", "tuned.Knots", "tuned.Tuned", "doctor.Line", "doctor.Health", "doctor.Report", "evaluate.Row", "evaluate.Inpainted",
    "adapters.Adapted", "adapters.Listed", "adapters.Denoiser", "adapters.Stepped", "testing.ConformanceError", "testing.Convergence",
    "testing.Finding", "testing.Law", "testing.Report", "testing.Result", "testing.Subject", "bench.Cell", "bench.Problem", "bench.Row"))
#: What the loops and the doors call, on values that a door has checked; and abstract classes, whose constructors are those of their kinds.
PROTOCOL = frozenset((
    "training.denoising", "training.classifying", "testing.NotApplicable", "testing.Suite",
    "likelihood.products", "likelihood.divergence", "selection.tuned", "random.names", "random.undone", "sdediff.SDE", "grids.Grid",
    "operators.Operator", "random.Noise", "solvers.Solver", "solvers.Multistep", "solvers.Observing", "targets.Target"))


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions and classes, by name: those of the package and those that its modules define."""
    for module in ("", *MODULES):
        where = importlib.import_module(f"sdediff.{module}" if module else "sdediff")
        named = getattr(where, "__all__", None) or [n for n, v in vars(where).items() if not n.startswith("_")]
        for name in named:
            value = getattr(where, name)
            if callable(value) and str(getattr(value, "__module__", "")).startswith(where.__name__):
                yield f"{module or 'sdediff'}.{name}", value


def without_a_door() -> list[str]:
    """Public callables that nothing is declared for."""
    known = {door.function for door in DOORS.values()}
    return [name for name, value in public() if value not in known and name not in MADE | PROTOCOL]


def without_a_domain() -> list[str]:
    """Arguments of doors, and options of methods, that no domain is declared for."""
    lacking = [f"{door.name}({argument})" for door in DOORS.values() if not door.name.startswith("method ")
               for argument in arguments(door.function) if argument not in door.domains]
    every = (*recipes.methods(), *recipes.methods(True))
    return lacking + [f"method {name}({option})" for name in every for option in recipes.options(name)
                      if option not in DOORS[f"method {name}"].domains]
