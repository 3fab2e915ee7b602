"""The catalogue of methods, generated from the code: declared and measured order, cost, memory, and coefficient tableaux.

Measured orders live beside this file in orders.json, written by ``sdediff methods --measure``; the tests recompute them.
"""
from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import files
from .progress import bar
from .recipes import Method, describe, methods
from .recipes import method as as_method
from .sampling import count_calls
from .sde import SDE, VPSDE
from .solvers import Start, table

FILE = "orders.json"


class Entry(NamedTuple):
    """One method: ``order`` on the probability-flow ODE and ``weak`` on the SDE, declared (None: it has none); ``strong``, the order path
    by path on a shared Brownian path; each with its measured value, None where not measured; ``calls`` of the network a step;
    ``memory``, evaluations remembered."""

    name: str
    family: str
    stochastic: bool
    order: int | None
    measured: float | None
    weak: int | None
    measured_weak: float | None
    strong: float | None
    measured_strong: float | None
    calls: float
    memory: int
    summary: str
    reference: str


def _recipe(name: str) -> Method:
    """The method with its defaults; a required log density is that of N(0, I), which counts and costs the same."""
    if name == "mala":
        return as_method(name, density=lambda x, level: -0.5 * x.flatten(1).square().sum(1))
    return as_method(name)


def _facts(name: str) -> dict[str, Any]:
    recipe = _recipe(name)
    solver = recipe.solver.multistep if isinstance(recipe.solver, Start) else recipe.solver
    stochastic = recipe.stochastic
    grid, sde = recipe.default_grid(VPSDE()), VPSDE()
    calls = math.nan
    if not recipe.solver.adaptive:
        calls = (count_calls(recipe, sde, grid(sde, 12)) - count_calls(recipe, sde, grid(sde, 8))) / 4
    return {"family": type(solver).__module__.rsplit(".", 1)[-1], "stochastic": stochastic,
            "order": None if stochastic else recipe.solver.order,
            "weak": recipe.solver.weak_order if stochastic else None, "calls": calls, "memory": recipe.solver.remembers,
            "strong": recipe.solver.strong_order if stochastic else None}


def measure(name: str) -> dict[str, float]:
    """The measured orders of a method: on the probability flow (the worst over both problems, from t_max and from mid-trajectory), or
    the weak order by the affine probe and the strong order on a shared Brownian path. Empty where the method declares none."""
    from .testing import (
        MIDWAY,
        converge,
        gaussian_problem,
        knot_path,
        mixture_problem,
        overlap_problem,
        path_reference,
        strong_convergence,
        weak_convergence,
    )
    facts, recipe = _facts(name), _recipe(name)
    if facts["stochastic"]:
        found = {"weak": weak_convergence(recipe).order} if facts["weak"] else {}
        if facts["strong"]:
            found["strong"] = strong_convergence(recipe, overlap_problem(), steps=(64, 128, 256, 512), finest=2048,
                                                 reference=path_reference(recipe),
                                                 source=lambda seed, shape: knot_path(seed, shape, 2048)).order
        return {k: round(v, 3) for k, v in found.items()}
    if facts["order"] is None:
        return {}
    runs = [converge(recipe, problem(), t_start=t) for problem in (gaussian_problem, mixture_problem) for t in (1.0, MIDWAY)]
    return {"order": round(min(run.order for run in runs), 3)}


def measured() -> dict[str, dict[str, float]]:
    """The committed measurements, by method."""
    return json.loads((importlib.resources.files("sdediff") / FILE).read_text())


def write_measurements(path: str | Path, names: Iterable[str] | None = None) -> None:
    """Measure every method and write the file that ``measured`` reads; a minute on one core."""
    wanted = list(names or methods())
    results = {name: measure(name) for name in bar(len(wanted), True, iterable=wanted, desc="measuring", unit="method")}
    files.write(path, json.dumps(results, indent=1) + "\n")


def catalogue() -> list[Entry]:
    """Every registered method, in order of registration."""
    found, entries = measured(), []
    for name in methods():
        facts, seen = _facts(name), found.get(name, {})
        summary, _, reference = describe(name).removesuffix(").").rpartition(" (")
        entries.append(Entry(name, facts["family"], facts["stochastic"], facts["order"], seen.get("order"), facts["weak"], seen.get("weak"),
                             facts["strong"], seen.get("strong"), facts["calls"], facts["memory"], summary, reference))
    return entries


def report(entries: Iterable[Entry] | None = None) -> str:
    """The catalogue as an aligned table."""
    show = lambda declared, seen: "-" if declared is None else f"{declared} ({seen:.2f})" if seen is not None else str(declared)
    rows = [("method", "family", "kind", "order (measured)", "weak", "strong", "calls/step", "memory", "what it is", "reference")]
    for e in entries or catalogue():
        calls = "adaptive" if math.isnan(e.calls) else f"{e.calls:g}"
        rows.append((e.name, e.family, "SDE" if e.stochastic else "ODE", show(e.order, e.measured), show(e.weak, e.measured_weak),
                     show(e.strong, e.measured_strong), calls, str(e.memory), e.summary, e.reference))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([cell.ljust(w) for cell, w in zip(row, widths)] + [row[-1]]).rstrip() for row in rows)


def tableau(name: str | Method, sde: SDE | None = None, *, steps: int = 3, predicts: str = "eps", **given: Any) -> str:
    """A method's coefficients on a small grid, read off its step: every state and every network input as a combination of the start x,
    the outputs D and the noises z. Raises TypeError where the method is not linear in them."""
    recipe, sde = (as_method(name, **given) if given or isinstance(name, Method) else _recipe(name)), sde or VPSDE()
    times = recipe.default_grid(sde)(sde, steps)
    traced = table(recipe.solver, sde, sde.levels(times), eta=recipe.eta, predicts=predicts)
    names: dict[Any, str] = {("x",): "x"}

    def label(term: tuple[Any, ...]) -> str:
        if term[0] == "D":
            return f"D{term[1]}"
        return names.setdefault(term, f"z{sum(v.startswith('z') for v in names.values())}")

    def row(form: dict[Any, float]) -> str:
        return "  ".join(f"{value:+.6g} {label(term)}" for term, value in form.items() if value)

    lines = [f"{recipe.name} on {type(sde).__name__}, {steps} steps, D = the network's {predicts}, "
             f"eta = {recipe.eta if not callable(recipe.eta) else 'a function'}"]
    lines += [f"  D{i} = {predicts}(t={level.t:.6g}; {row(form)})" for i, (form, level) in enumerate(zip(traced.inputs, traced.levels))]
    lines += [f"  x(t={t:.6g}) = {row(form)}" for t, form in zip(times, traced.states)]
    return "\n".join(lines)


