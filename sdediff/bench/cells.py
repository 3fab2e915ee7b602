r"""Cells: one method on one problem with one budget, and the rows that it yields.

*The problem.* A process, a target with a known law, a score (the exact one, or a trained network's), n samples and a seed. The state starts
from the exact marginal at the noisy end, x = alpha x_0 + sigma z (from the prior if the score is a network's), and is compared at t_min
with exact draws of the law *noised to t_min*: neither prior mismatch nor truncation is in a solver's error. Where alpha(t_max) = 0
the span starts at sigma/alpha = 1000, so that black-box methods of the reverse SDE, whose coefficients are infinite there, run on it too.
Everything is float64; a network is cast to it.

*What is measured.*

    path_rmse, path_median   over the first ``PATHS`` samples: the distance of each to the endpoint of the probability flow from the
                             same start, phi(x). ODE methods alone. The flow is in closed form for a Gaussian, else DOP853 at rtol 1e-11
                             (1e-9 on a network's score, whose flow is then the network's own: the solver's error, not the model's)
    moment_w2                on a Gaussian with its exact score a solver that is linear in its vectors is affine in (start, noises): its
                             output law is Gaussian, and W2^2 = sum over eigenvalues of (error of mean)^2 + (error of deviation)^2
    all others               ``metrics.compare``: distances of samples to as many exact samples, with their ``metrics.floors``, the
                             same number for two exact sets

Intervals hold at 95 %: for the RMSE by the central limit theorem for the logarithm of the mean squared distance (a factor, since distances
are skewed and error axes logarithmic), for the median by the ranks n/2 +- 0.98 sqrt(n).
Network calls are counted by a wrapper around the score. ``seconds`` is the median of three runs where one is short. A method that diverges
(NaN, or samples beyond ``ASTRAY``) has infinite errors and its error recorded.

*Identity.* A cell's id is a digest of what determines its numbers: the solver with all its parameters, eta, grid and budget, process,
target, score (for a network the digest of its checkpoint), n, seed, the version of the library, and, for a plug-in, its module's source.
"""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import math
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import files, metrics, random, recipes, sampling
from .. import sde as processes
from ..contracts import choice
from ..equation import ReverseSDE
from ..grids import GRIDS, Grid
from ..grids import grid as as_grid
from ..metrics import Estimate
from ..recipes import Method
from ..runs import spelled
from ..score import NetworkError, Score
from ..sde import SDE, NoiseLevel
from ..solvers import SciPy, Solver, table
from ..targets import TOYS, Gaussian, Target, toy
from ..testing import affine_law, gaussian_problem, mixture_problem

F64 = torch.float64
FORMAT = 1                      # of the files; a change makes every cell a new one
PATHS = 256                     # samples whose distance to the flow's endpoint is measured
SHOWN = 400                     # samples kept for pictures
CHEAP = 0.05                    # seconds below which a run is timed three times
ASTRAY = 1e6                    # a sample this far out has left the target
FARTHEST = 1e3                  # sigma/alpha at the start where alpha(t_max) = 0
PROCESSES: dict[str, Callable[..., SDE]] = {name: getattr(processes, name) for name in
                                            ("VPSDE", "SubVPSDE", "CosineVPSDE", "VESDE", "EDMSDE", "RectifiedFlow")}
LAWS: dict[str, Callable[[], Target]] = {"gaussian": lambda: gaussian_problem().target, "mixture": lambda: mixture_problem().target, **TOYS}


class Row(NamedTuple):
    """One number of one cell: a line of results.csv. None: empty."""

    cell: str
    source: str
    method: str
    kind: str
    order: int | None
    grid: str
    steps: int | None
    nfe: int
    process: str
    target: str
    score: str
    metric: str
    value: float
    low: float
    high: float
    floor: float | None
    floor_low: float | None
    floor_high: float | None
    n: int
    seconds: float
    seed: int


class Problem(NamedTuple):
    """What a method is run on: ``process``, ``target`` and ``score`` by name ("exact", or "network:" and the folder of a run)."""

    process: str
    target: str
    score: str
    n: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """``source``: "sdediff", or the dotted name of a plug-in; ``method``: NAME or NAME:KEY=VALUE,... (empty for a plug-in); ``grid``: "own"
    or a name; the budget: ``nfe`` network calls, the most steps that fit, or a ``tolerance`` (rtol = atol) for a method that chooses
    its steps."""

    source: str
    method: str
    grid: str
    problem: Problem
    nfe: int | None = None
    tolerance: float | None = None

    @property
    def name(self) -> str:
        """In words, for messages."""
        budget = f"nfe={self.nfe}" if self.tolerance is None else f"tolerance={self.tolerance:g}"
        return f"{self.method or self.source} ({self.grid} grid, {budget}) on {self.problem.target}, {self.problem.process}"


# -- names ----------------------------------------------------------------------------------------------------------------------
def plug_in(name: str, dotted: str) -> Any:
    """What MODULE:NAME names. ValueError where it is not of this form, ImportError where it cannot be imported; both say ``name``."""
    module, colon, attribute = dotted.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{name}={dotted!r}: expected MODULE:NAME, such as mypackage.mymodule:MySolver.")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ImportError(f"{name}={dotted!r}: cannot import {module} ({error}); expected an installed module, or one in the current "
                          "folder.") from error
    except AttributeError:
        raise ImportError(f"{name}={dotted!r}: {module} has no {attribute}; expected a name that it defines.") from None
    return found


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of NAME:KEY=VALUE,...; ValueError where a part has no value, or names the budget or the grid."""
    name, options = spelled(text)
    for key in ("steps", "nfe", "grid"):
        if key in options:
            raise ValueError(f"method={text!r}: {key} is the study's; expected --nfe or --grids to say it.")
    return name, options


class Entrant(NamedTuple):
    """A method that takes part, and its name in the table."""

    label: str
    method: Method


def entrant(source: str, text: str, target: Any = None) -> Entrant:
    """The method of a cell. A plug-in is a Solver class, an instance of one, a Method, or a function that returns one of these. A method
    that needs a log density gets the target's. Raises TypeError on anything else."""
    if source != "sdediff":
        made = plug_in("solver", source)
        if callable(made) and not isinstance(made, (Solver, Method)):
            made = made()
        if isinstance(made, Method):
            return Entrant(made.name, made)
        if isinstance(made, Solver):
            label = source.rpartition(":")[2]
            return Entrant(label, Method(label, made))
        raise TypeError(f"solver={source!r}: got {type(made).__name__}; expected a Solver class, an instance of one, a Method, or a "
                        "function that returns one of these.")
    name, given = parse(text)
    defaults = recipes.options(name)
    said = ", ".join(f"{k}={v}" for k, v in given.items() if k not in defaults or v != defaults[k])
    if name == "mala" or given.get("corrector") == "mala":
        given["density"] = getattr(target, "log_prob", None) or (lambda x, level: -0.5 * x.flatten(1).square().sum(1))
    return Entrant(f"{name}({said})" if said else name, recipes.method(name, **given))


def law(name: str) -> Any:
    """A target by name, or a plug-in's: an object with ``score`` and ``sample``, or a function that returns one. The library's come
    anew with every call. Raises TypeError on an object that lacks one of them."""
    if ":" not in name:
        return LAWS[choice("target", name, LAWS)]() if name in ("gaussian", "mixture") else toy(choice("target", name, LAWS))
    made = plug_in("target", name)
    if not hasattr(made, "score") or isinstance(made, type):
        made = made() if callable(made) else made
    missing = [a for a in ("score", "sample", "log_prob") if not callable(getattr(made, a, None))]
    if missing:
        raise TypeError(f"target={name!r}: {type(made).__name__} has no method {' and no '.join(missing)}; expected score(x, level) -> "
                        "Prediction, sample(n, seed=) -> Tensor and log_prob(x, level) -> Tensor, as sdediff.targets.GaussianMixture has.")
    return made if isinstance(made, Target) else Guest(made)


class Guest:
    """A target that is not of ours, in float64 and, where it does not give its ``mean`` and ``cov``, with those of 200 000 draws."""

    def __init__(self, target: Any) -> None:
        self.target, self.score, self.log_prob = target, target.score, target.log_prob

    def sample(self, n: int, *, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
        """Draws (n, *D) of the target; ValueError where it gives another shape."""
        x = self.target.sample(n, seed=seed)
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != n:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{type(self.target).__name__}.sample({n}) returned {got}; expected a tensor ({n}, *D).")
        return x.to(dtype)

    @functools.cached_property
    def _draws(self) -> Tensor:
        return self.sample(200_000, seed=2**31 - 1).flatten(1)

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.target.mean, dtype=F64) if hasattr(self.target, "mean") else self._draws.mean(0)

    @property
    def cov(self) -> Tensor:
        return torch.as_tensor(self.target.cov, dtype=F64) if hasattr(self.target, "cov") else self._draws.T.cov()


def process(name: str) -> SDE:
    """A process by the name of its class, with its defaults."""
    return PROCESSES[choice("process", name, PROCESSES)]()


def span(sde: SDE) -> tuple[float, float]:
    """Start and end of every run: t_max, or the time at which sigma/alpha = FARTHEST where alpha(t_max) = 0; and t_min."""
    noisy = sde.t_max if sde.at(sde.t_max).alpha > 0 else sde.level_of(-math.log(FARTHEST)).t
    return noisy, sde.t_min


def tolerant(method: Method) -> bool:
    """Whether the method is steered by rtol and atol."""
    return method.solver.adaptive and dataclasses.is_dataclass(method.solver) and \
        {"rtol", "atol"} <= {f.name for f in dataclasses.fields(method.solver)}


def stochastic(method: Method) -> bool:
    """Whether it draws noise: kind "SDE"."""
    return method.solver.noise == "always" or (method.solver.noise == "eta" and method.eta != 0)


def grid_of(cell: Cell, method: Method, sde: SDE) -> Grid:
    """The grid of a cell: the method's own on this process, or the one named."""
    return method.default_grid(sde) if cell.grid == "own" else as_grid(cell.grid)


def grid_name(grid: Grid) -> str:
    """Its registered name, with the parameters that differ from the default."""
    name = next((k for k, kind in GRIDS.items() if type(grid) is kind), type(grid).__name__)
    said = "" if not dataclasses.is_dataclass(grid) else ", ".join(
        f"{f.name}={getattr(grid, f.name)}" for f in dataclasses.fields(grid) if getattr(grid, f.name) != f.default)
    return f"{name}({said})" if said else name


# -- identity -------------------------------------------------------------------------------------------------------------------
def _plain(value: Any) -> Any:
    """A value as a JSON document that says what it is: dataclasses by their fields, functions by their names."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__qualname__} | {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, Tensor)):
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__qualname__)


def _source(dotted: str) -> str:
    """Digest of a plug-in's module, so that an edited plug-in is run again."""
    module = importlib.import_module(dotted.partition(":")[0])
    file = inspect.getsourcefile(module) if isinstance(module, ModuleType) else None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


@functools.lru_cache
def _checkpoint(folder: str) -> str:
    from ..runs import CHECKPOINT
    return hashlib.sha256((Path(folder) / CHECKPOINT).read_bytes()).hexdigest()[:16]


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


def _problem_document(p: Problem) -> dict[str, Any]:
    from .. import __version__
    kind, _, folder = p.score.partition(":")
    return {"format": FORMAT, "sdediff": __version__, **p._asdict(), "score": kind if not folder else f"network:{_checkpoint(folder)}",
            "sde": _plain(sde_of(p)), "span": span(sde_of(p)), "target_source": _source(p.target) if ":" in p.target else None}


def definition(cell: Cell) -> dict[str, Any]:
    """What determines a cell's numbers, as a JSON document. Raises what a wrong name raises."""
    method = entrant(cell.source, cell.method).method
    return _problem_document(cell.problem) | {
        "source": cell.source, "solver_source": _source(cell.source) if cell.source != "sdediff" else None, "name": method.name,
        "solver": _plain(method.solver), "eta": _plain(method.eta), "grid": _plain(grid_of(cell, method, sde_of(cell.problem))),
        "grid_type": grid_name(grid_of(cell, method, sde_of(cell.problem))), "nfe": cell.nfe, "tolerance": cell.tolerance}


def identify(cell: Cell) -> str:
    """The cell's id: 12 hex digits."""
    return _digest(definition(cell))


# -- the ground truth of a problem ----------------------------------------------------------------------------------------------
class Ground(NamedTuple):
    """``start`` (n, *D) at ``noisy``, ``reference`` (n, *D), exact draws at ``clean``; ``flow`` (<= PATHS, *D), the endpoints of the
    probability flow of the first starts; ``floor``: what each metric says of two exact sets; ``call``: seconds of one call of the score."""

    sde: SDE
    target: Any
    score: Score
    noisy: NoiseLevel
    clean: NoiseLevel
    start: Tensor
    reference: Tensor
    flow: Tensor
    floor: dict[str, list[float]]
    call: float


@functools.lru_cache(maxsize=8)
def _network(folder: str) -> tuple[SDE, Score]:
    from .. import runs
    _, checkpoint, score = runs.read(Path(folder))
    if isinstance(score.network, torch.nn.Module):
        score.network.double()
    return checkpoint.sde, score


@functools.lru_cache(maxsize=16)
def _law(name: str) -> Any:
    return law(name)


@functools.lru_cache(maxsize=16)
def _process(name: str) -> SDE:
    return process(name)


def sde_of(p: Problem) -> SDE:
    """The process of a cell: by its name, or that of its run."""
    return _process(p.process) if p.score == "exact" else _network(p.score.partition(":")[2])[0]


def ground(p: Problem, folder: Path) -> Ground:
    """The ground truth of a problem; what is costly of it is kept in ``folder``/ground."""
    return _ground(p, str(folder))


@functools.lru_cache(maxsize=4)
def _ground(p: Problem, folder: str) -> Ground:
    sde, target = sde_of(p), _law(p.target)
    noisy, clean = sde.levels(span(sde))
    exact = p.score == "exact"
    score: Score = target.score if exact else _network(p.score.partition(":")[2])[1]
    start = metrics.noised(target, p.n, noisy, seed=p.seed)
    if not exact:
        start = sde.prior_std(noisy) * random.source(p.seed, tuple(start.shape), dtype=F64).initial()
    reference = metrics.noised(target, p.n, clean, seed=p.seed + (1 << 28))
    file = Path(folder) / "ground" / f"{_digest(_problem_document(p))}.json"
    kept = read_json(file)
    if kept is None or not {"flow", "floor", "call"} <= kept.keys():
        clock = time.perf_counter()
        score(start, noisy)
        call = time.perf_counter() - clock
        kept = {"flow": _flow(sde, target if exact else None, score, noisy, clean, start[:PATHS]).tolist(), "call": call,
                "floor": {k: list(v) for k, v in metrics.floors(target, p.n, clean, seed=p.seed + (2 << 28)).items()}}
        write_json(file, kept)
        if exact and reference.ndim == 2 and reference.shape[1] == 2:
            write_samples(Path(folder), files.component(f"exact-{p.process}-{p.target}"), reference)
    return Ground(sde, target, score, noisy, clean, start, reference, torch.tensor(kept["flow"], dtype=F64), kept["floor"], kept["call"])


def _flow(sde: SDE, target: Any, score: Score, noisy: NoiseLevel, clean: NoiseLevel, x: Tensor) -> Tensor:
    """The probability flow's endpoints; ``target`` None: the score is a network's."""
    if isinstance(target, Gaussian):
        return target.flow(x, noisy, clean)
    fine = SciPy("DOP853", 1e-11, 1e-12, max_calls=100_000) if target is not None else SciPy("DOP853", 1e-9, 1e-10, max_calls=100_000)
    with torch.no_grad():
        *_, end = sampling.iterate(ReverseSDE(sde, score), fine, x, [noisy, clean])
    return end.x


# -- running --------------------------------------------------------------------------------------------------------------------
def path_errors(x: Tensor, flow: Tensor) -> dict[str, Estimate]:
    """RMSE and median of the distances of samples to their flow endpoints, with 95 % intervals."""
    square = (x[:len(flow)] - flow).flatten(1).square().sum(1)
    rmse = math.sqrt(float(square.mean()))
    factor = math.exp(0.98 * float(square.std()) / math.sqrt(len(square)) / rmse**2) if rmse else 1.0
    ordered, m = square.sqrt().sort().values.tolist(), len(square)
    low, high = max(0, math.floor(m / 2 - 0.98 * math.sqrt(m))), min(m - 1, math.ceil(m / 2 + 0.98 * math.sqrt(m)))
    return {"path_rmse": Estimate(rmse, rmse / factor, rmse * factor),
            "path_median": Estimate(statistics.median(ordered), ordered[low], ordered[high])}


def moment_w2(method: Method, sde: SDE, levels: Sequence[NoiseLevel], target: Gaussian) -> dict[str, Estimate]:
    """The exact Wasserstein-2 error of a method's output law on a Gaussian; nothing where the method is not linear in its vectors."""
    try:
        table(method.solver, sde, levels[:5], eta=method.eta)
    except TypeError:
        return {}
    variances, basis = torch.linalg.eigh(target.cov)
    laws = [affine_law(method, sde, levels, float(m), float(v)) for m, v in zip(basis.T @ target.mean, variances)]
    return {"moment_w2": Estimate(*[math.sqrt(sum(law.w2**2 for law in laws))] * 3)}


@functools.lru_cache(maxsize=4096)
def _times(source: str, text: str, grid: Grid, sde: SDE, nfe: int) -> tuple[float, ...]:
    """The finest grid on which the method's calls stay within the budget. A parallel method, whose calls are not known beforehand,
    takes as many steps."""
    method = entrant(source, text).method
    noisy, clean = span(sde)
    if method.solver.adaptive:
        return tuple(grid(sde, nfe, noisy, clean))
    return tuple(sampling.times_of(method, sde, None, nfe, grid, noisy, clean))


class Result(NamedTuple):
    """The rows of a cell, its samples, and why its errors are infinite, if they are."""

    rows: list[Row]
    x: Tensor
    error: str | None = None


def run(cell: Cell, folder: Path) -> Result:
    """Run a cell. Raises what the method or the target raises."""
    p, g = cell.problem, ground(cell.problem, folder)
    label, method = entrant(cell.source, cell.method, g.target)
    grid = grid_of(cell, method, g.sde)
    if cell.tolerance is None:
        times = _times(cell.source, cell.method, grid, g.sde, cell.nfe or 0)
    else:
        times = span(g.sde)
        method = dataclasses.replace(method, solver=dataclasses.replace(method.solver, rtol=cell.tolerance, atol=cell.tolerance))  # type: ignore[type-var]
    kind = "SDE" if stochastic(method) else "ODE"
    info, seconds, error = _sample(g, method, times, p.seed)
    if error is None:
        found = dict(metrics.compare(info.x, g.target, g.clean, reference=g.reference, seed=p.seed))
        if kind == "ODE":
            found |= path_errors(info.x, g.flow)
        if isinstance(g.target, Gaussian) and p.score == "exact" and not method.solver.adaptive:
            found |= moment_w2(method, g.sde, g.sde.levels(times), g.target)
    else:
        found = dict.fromkeys([*g.floor, *(("path_rmse", "path_median") if kind == "ODE" else ())], Estimate(*[math.inf] * 3))
    free = cell.tolerance is not None
    head = (identify(cell), cell.source, label, kind, method.solver.order if kind == "ODE" else method.solver.weak_order,
            "own" if free else grid_name(grid), None if free else len(times) - 1, info.nfe, p.process, p.target, score_name(p.score))
    tail = (p.n, seconds, p.seed)
    rows = [Row._make((*head, name, *value, *g.floor.get(name, (None,) * 3), *tail)) for name, value in found.items()]
    return Result(rows, info.x, error)


def _sample(g: Ground, method: Method, times: Sequence[float], seed: int) -> tuple[sampling.SampleInfo, float, str | None]:
    """The run, its seconds, and how it diverged, if it did. With a score that is finite everywhere, NaN is the method's doing."""
    calls, seconds = 0, list[float]()

    def counted(x: Tensor, level: NoiseLevel) -> Any:
        nonlocal calls
        calls += 1
        return g.score(x, level)

    while not seconds or (seconds[0] < CHEAP and len(seconds) < 3):
        calls, clock = 0, time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "steps=.* has its order from", UserWarning)       # what a budget of few calls buys
                info = sampling.sample_info(g.sde, counted, x_init=g.start, method=method, grid=list(times), seed=seed)
        except NetworkError as error:
            lost = sampling.SampleInfo(torch.empty(0, 2), calls, tuple(times), None, (), seed)
            return lost, time.perf_counter() - clock, f"diverged: {error}"
        seconds.append(time.perf_counter() - clock)
    astray = ~(info.x.abs() < ASTRAY).flatten(1).all(1)
    fault = f"diverged: {int(astray.sum())} of {len(astray)} samples end beyond {ASTRAY:g}" if bool(astray.any()) else None
    return info, statistics.median(seconds), fault


def score_name(score: str) -> str:
    """"exact", or "network:" and the name of the run's folder: no path."""
    kind, colon, folder = score.partition(":")
    return f"{kind}:{Path(folder).resolve().name}" if colon else kind


# -- files ----------------------------------------------------------------------------------------------------------------------
def write_json(file: Path, document: dict[str, Any]) -> None:
    """A JSON document, whole or not at all; floats keep every bit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, json.dumps(document) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """The document; None where there is none, or a torn one."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def write_samples(folder: Path, name: str, x: Tensor) -> None:
    """samples/NAME.npz with the first SHOWN of x, float32: for pictures."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    files.write(folder / "samples" / f"{name}.npz", lambda file: np.savez(file, x=x[:SHOWN].float().numpy()))


class Record(NamedTuple):
    """What is kept of a cell: its rows, or the error that it ended with; ``elapsed``, seconds that it took in all."""

    id: str
    rows: list[Row]
    error: str | None
    elapsed: float


def _file(folder: Path, identity: str) -> Path:
    return folder / "cells" / f"{identity}.json"


def keep(cell: Cell, folder: Path, error: str | None = None) -> Record:
    """Run a cell and write its record; an error that it raises (or ``error``) is recorded by name."""
    clock, identity, result = time.perf_counter(), identify(cell), Result([], torch.empty(0))
    if error is None:
        try:
            result = run(cell, folder)
            error = result.error
        except Exception as raised:
            where = traceback.extract_tb(raised.__traceback__)[-1]
            error = f"{type(raised).__name__}: {raised} ({Path(where.filename).name}:{where.lineno})"
    record = Record(identity, result.rows, error, time.perf_counter() - clock)
    if result.x.ndim == 2 and result.x.shape[1] == 2 and len(result.x):
        write_samples(folder, identity, result.x)
    write_json(_file(folder, identity), {"cell": identity, "definition": definition(cell), "rows": [r._asdict() for r in record.rows],
                                         "error": error, "elapsed": record.elapsed})
    return record


def kept(identity: str, folder: Path) -> Record | None:
    """The record of a finished cell; None where there is none, or where its file does not hold one."""
    document = read_json(_file(folder, identity))
    if document is None or document.get("cell") != identity:
        return None
    try:
        rows = [Row(**row) for row in document["rows"]]
        return Record(identity, rows, document["error"], float(document["elapsed"])) if rows or document["error"] else None
    except (KeyError, TypeError, ValueError):
        return None
