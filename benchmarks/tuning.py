"""The best answer for a given number of network calls: our methods, untuned and tuned, against every method of the peers, cell by cell.

    pip install 'sdediff[peers]' && pip install --no-deps k-diffusion==0.1.1 azula==0.11.1 einops
    python benchmarks/tuning.py run --out tuning              # 25 minutes on one core; a run that was stopped goes on
    python benchmarks/tuning.py summary

A cell is an exact target under a process with a budget of calls. Every contestant starts from the same exact draws at t_max, in float64,
and is judged by the root mean square of its distance to the exact end of the probability flow at the process's end, over ``test``
trajectories that nothing was chosen on; ``train`` and ``validation`` are for methods that tune themselves. The end is in closed form for a
Gaussian, else by DOP853 at a relative tolerance of 1e-10 in the clock log(sigma/alpha), kept in OUT/references.
"""
from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import itertools
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from benchmarks.peers import Method as PeerMethod
from benchmarks.peers import Peer, peers
from sdediff import random, targets
from sdediff.equation import ReverseSDE
from sdediff.grids import Grid, Karras, LogSNR, Quadratic, Sech, Uniform
from sdediff.recipes import Method
from sdediff.sampling import count_calls, iterate
from sdediff.score import Prediction, Score
from sdediff.sde import SDE, NoiseLevel
from sdediff.selection import FEW, MANY, SOME, untuned
from sdediff.solvers import Angular, Exponential, PredictorCorrector

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
SETS = {"train": 1, "validation": 2, "test": 3, "again": 4}             # the seeds of their draws
AGAIN = 1024                # trajectories of the last, for a second look at single cells
FILE = Path(__file__).resolve().parent / "results" / "tuning_untuned.csv"


# -- targets ------------------------------------------------------------------------------------------------------------
def _normals(seed: int, *shape: int) -> Tensor:
    return random.WhiteNoise(seed, shape, dtype=torch.float64).normal()


def _rotation(seed: int, d: int) -> Tensor:
    return torch.linalg.qr(_normals(seed, d, d))[0]


def _covariance(basis: Tensor, eigenvalues: Tensor) -> Tensor:
    cov = basis @ torch.diag(eigenvalues) @ basis.T
    return (cov + cov.T) / 2


def unequal_modes() -> targets.GaussianMixture:
    """Nine modes on a 3 x 3 grid whose lines are unequally spaced, each of its own weight, axes (0.05 to 0.25) and direction."""
    side = torch.tensor([-1.3, -0.2, 1.4], dtype=torch.float64)
    z = _normals(21, 9, 3)
    covs = []
    for angle, a, b in z.tolist():
        turn = torch.tensor([[math.cos(3 * angle), -math.sin(3 * angle)], [math.sin(3 * angle), math.cos(3 * angle)]], dtype=torch.float64)
        widths = [0.05 + 0.2 / (1 + math.exp(-1.5 * v)) for v in (a, b)]
        covs.append(_covariance(turn, torch.tensor(widths, dtype=torch.float64)**2))
    return targets.GaussianMixture(torch.cartesian_prod(side, side), covs, 0.3 + torch.arange(9, dtype=torch.float64), name="modes")


def mixture(d: int = 16, modes: int = 10) -> targets.GaussianMixture:
    """Modes at N(0, I), each with axes spread log-uniformly from 0.05 to 0.7 in its own directions, weights 1 to 3."""
    means, covs = _normals(31, modes, d), []
    for k in range(modes):
        u = torch.special.ndtr(_normals(40 + k, d))
        covs.append(_covariance(_rotation(60 + k, d), (0.05 * 14**u)**2))
    return targets.GaussianMixture(means, covs, 1 + 2 * torch.special.ndtr(_normals(32, modes)), name=f"mixture-{d}")


def digits() -> targets.GaussianMixture:
    """The 8 x 8 digits of scikit-learn in [-1, 1]: a Gaussian with full covariance per class, eigenvalues raised to 1e-3 at least."""
    from sklearn.datasets import load_digits
    data = load_digits()
    x = torch.from_numpy(data.data).double() / 8 - 1
    means, covs, weights = [], [], []
    for label in range(10):
        own = x[torch.from_numpy(data.target) == label]
        values, basis = torch.linalg.eigh(torch.cov(own.T))
        means.append(own.mean(0))
        covs.append(_covariance(basis, values.clamp_min(1e-3)))
        weights.append(float(len(own)))
    return targets.GaussianMixture(torch.stack(means), covs, torch.tensor(weights, dtype=torch.float64), name="digits-64")


def gaussian(d: int = 16) -> targets.Gaussian:
    """N(m, C), the eigenvalues of C log-spaced from 1e-3 to 4, in a random basis."""
    return targets.Gaussian(0.5 * _normals(71, d), _covariance(_rotation(72, d), torch.logspace(-3, math.log10(4), d, dtype=torch.float64)),
                            name=f"gaussian-{d}")


TARGETS: dict[str, Callable[[], targets.Target]] = {
    "ring": functools.partial(targets.toy, "8-gaussians"), "modes": unequal_modes,
    "spirals": functools.partial(targets.toy, "two-spirals", refine=0.6), "moons": functools.partial(targets.toy, "two-moons"),
    "mixture-16": mixture, "digits-64": digits, "gaussian-16": gaussian,
}
COSTLY = ("spirals", "mixture-16", "digits-64")             # 256 test trajectories in place of 512
PLANE = ("ring", "modes", "spirals", "moons")

# -- processes ----------------------------------------------------------------------------------------------------------
PROCESSES: dict[str, tuple[Callable[[], SDE], float | None]] = {            # with the time where sampling ends, None: t_min
    "VPSDE": (sdediff.VPSDE, None),
    "DDPM-table": (lambda: sdediff.VPSDE.from_betas(np.linspace(1e-4, 0.02, 1000)), 1.0),      # the knot of index 0: lambda is finite
    "EDMSDE": (sdediff.EDMSDE, None),
}


@functools.cache
def _target(name: str) -> targets.Target:
    return TARGETS[name]()


@functools.cache
def _score(name: str) -> Score:
    """The target's score; where all modes share one isotropic covariance tau^2 I, in the form that needs no vector per mode."""
    target = _target(name)
    if not isinstance(target, targets.GaussianMixture) or len(target.means) < 32:
        return target.score
    means, variance = target.means, float(target.covs[0, 0, 0])
    if not torch.equal(target.covs, (variance * torch.eye(target.dim, dtype=torch.float64)).expand(len(means), -1, -1)):
        return target.score
    half, log_w = means.square().sum(1) / 2, target.weights.log()

    def score(x: Tensor, level: NoiseLevel) -> Prediction:
        s = level.alpha**2 * variance + level.sigma**2
        logits = torch.addmm(log_w - level.alpha**2 / s * half, level.alpha / s * x, means.T)
        centre = logits.softmax(1) @ means
        y = (x - level.alpha * centre) / s
        return Prediction(x, level, x0=centre + level.alpha * variance * y, score=-y)

    return score


@functools.cache
def _process(name: str) -> SDE:
    return PROCESSES[name][0]()


@dataclasses.dataclass(frozen=True)
class Ground:
    """A target under a process: draws at the noisy end, and where the probability flow takes them."""

    target_name: str
    process_name: str
    folder: Path

    @property
    def target(self) -> targets.Target:
        return _target(self.target_name)

    @property
    def sde(self) -> SDE:
        return _process(self.process_name)

    @property
    def score(self) -> Score:
        return _score(self.target_name)

    @property
    def span(self) -> tuple[float, float]:
        """(t_start, t_end)."""
        end = PROCESSES[self.process_name][1]
        return self.sde.t_max, self.sde.t_min if end is None else end

    def draws(self, kind: str) -> Tensor:
        """Exact draws at t_start, (n, d) float64; ``kind``: "train", "validation", "test" or "again"."""
        n = AGAIN if kind == "again" else 512 if kind == "test" and self.target_name not in COSTLY else 256
        level, seed = self.sde.at(self.span[0]), SETS[kind]
        x0 = self.target.sample(n, seed=100 + seed, dtype=torch.float64)
        return level.alpha * x0 + level.sigma * _normals(200 + seed, *x0.shape)

    def ends(self, kind: str) -> Tensor:
        """The probability flow's exact end of ``draws(kind)``."""
        x, (t, s) = self.draws(kind), (self.sde.at(v) for v in self.span)
        if isinstance(self.target, targets.Gaussian):
            return self.target.flow(x, t, s)
        file = self.folder / "references" / f"{self.target_name}-{self.process_name}-{kind}.npy"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, _flow(self.sde, self.score, x, -t.lam, -s.lam).numpy())
        return torch.from_numpy(np.load(file))


def _flow(sde: SDE, exact: Score, x: Tensor, first: float, last: float) -> Tensor:
    """dy/du = r eps(y, r) for y = x/alpha, u = log r, r = sigma/alpha: smooth whatever the process's own clock."""
    from scipy.integrate import solve_ivp

    def slope(u: float, y: np.ndarray) -> np.ndarray:
        level = sde.level_of(-u)
        eps = exact(level.alpha * torch.from_numpy(y).view(x.shape), level).eps
        return math.exp(u) * eps.flatten().numpy()

    start, end = sde.level_of(-first), sde.level_of(-last)
    found = solve_ivp(slope, (first, last), (x / start.alpha).flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-11, t_eval=(last,))
    if not found.success:
        raise RuntimeError(found.message)
    return end.alpha * torch.from_numpy(found.y[:, -1]).view(x.shape)


# -- contestants --------------------------------------------------------------------------------------------------------
class Contestant(NamedTuple):
    """``run``: (ground, x, calls) -> (the states at the end, network calls); ValueError where the budget buys no step."""

    source: str
    method: str
    options: str
    grid: str
    run: Callable[[Ground, Tensor, int], tuple[Tensor, int]]

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.method, self.options, self.grid)))


# Options of the peers beyond those of their adapters' tables: other forms and kernels, and no lowered order at the end.
FURTHER = {
    "diffusers": {
        **{f"DPMSolverMultistep({o}lower_order_final=False)": PeerMethod("ODE", None) for o in ("", "solver_order=3, ")},
        **{f"DPMSolverMultistep({o}algorithm_type=dpmsolver)": PeerMethod("ODE", None) for o in ("", "solver_order=3, ")},
        "DPMSolverMultistep(solver_type=heun)": PeerMethod("ODE", 2),
        **{f"DPMSolverSinglestep(solver_order={p}, algorithm_type=dpmsolver)": PeerMethod("ODE", None, multiple=p) for p in (2, 3)},
        **{f"UniPCMultistep({o}lower_order_final=False)": PeerMethod("ODE", None) for o in ("", "solver_order=3, ")},
        **{f"UniPCMultistep({o}predict_x0=False)": PeerMethod("ODE", None) for o in ("", "solver_order=3, ")},
        **{f"UniPCMultistep(solver_order=3, solver_type=bh1{o})": PeerMethod("ODE", None) for o in ("", ", predict_x0=False")},
        "UniPCMultistep(solver_order=3, predict_x0=False, lower_order_final=False)": PeerMethod("ODE", None),
        **{f"DEISMultistep({o}lower_order_final=False)": PeerMethod("ODE", None) for o in ("", "solver_order=3, ")},
        **{f"SASolver(predictor_order={p}, corrector_order={c}, tau=0{o})": PeerMethod("ODE", None)
           for p, c in ((2, 2), (3, 3), (3, 4)) for o in ("", ", lower_order_final=False")},
    },
    "azula": {"xEAB(order=4)": PeerMethod("ODE", 4), "zAB(order=4)": PeerMethod("ODE", 4), "vAB(order=4)": PeerMethod("ODE", 4)},
}
# Names under which a method comes a second time: equal to rounding, see tests/test_peers.py.
SAME = {"diffusers": ("EulerDiscrete",), "k-diffusion": ("euler", "heun", "dpmpp_2m_sde(eta=0)"), "azula": ("DDIM", "Euler", "Heun")}
BASELINE = ("zEAB(order=4)", "logsnr")                      # azula's exponential Adams-Bashforth 4: the best single configuration of a peer


def _common_grids(process: str) -> dict[str, Grid]:
    """The grids in common use. For EDM's sigma(t) = t equal steps in t or in its root waste all but the last few calls."""
    return {"logsnr": LogSNR(), "karras": Karras()} | ({} if process == "EDMSDE" else {"uniform": Uniform(), "quadratic": Quadratic()})


def peer_contestants(process: str) -> Iterator[Contestant]:
    """Every deterministic method of the installed peers that takes fixed steps, on every grid in common use."""
    for package, peer in peers().items():
        if package in ("torchdiffeq", "torchsde"):          # black boxes; their Heun and RK4 are those of the others
            continue
        whole = dataclasses.replace(peer, methods={**peer.methods, **FURTHER.get(package, {})})
        for name, method in whole.methods.items():
            if method.kind == "ODE" and not method.adaptive and name not in SAME[package]:
                for grid_name, grid in _common_grids(process).items():
                    yield Contestant(whole.source, name, "", grid_name, functools.partial(_run_peer, whole, name, grid))


def _run_peer(peer: Peer, name: str, grid: Grid, ground: Ground, x: Tensor, calls: int) -> tuple[Tensor, int]:
    t, s = ground.span
    return peer.run(name, ground.sde, ground.score, x, calls, grid=grid, t_start=t, t_end=s)


def our_methods() -> Iterator[tuple[str, str, Method]]:
    """(name, options, method): every deterministic method of fixed steps, with the options that matter."""
    plain = ("heun", "edm-heun", "ddim", "dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "dpm++2m", "dpm++3m-published", "ipndm")
    for name in plain:
        yield name, "", sdediff.method(name)
    options: dict[str, Sequence[dict[str, Any]]] = {
        **{name: [{"start": False}] for name in ("deis-2", "deis-3", "ab-2", "ab-3", "ab-4")},
        **{f"eab-{p}": [{"form": form, "start": start} for form in ("eps", "x0") for start in ((False, True) if p > 2 else (False,))]
           for p in (2, 3, 4)},
        **{f"unipc-{p}": [{"form": form, "kernel": kernel, "start": start} for form in ("eps", "x0")
                          for kernel, start in (("bh2", False), ("bh1", False), ("bh2", True))] for p in (1, 2, 3)},
        "er-sde-2": [{"eta": 0.0, "start": False}], "er-sde-3": [{"eta": 0.0, "start": False}],
    }
    for name, choices in options.items():
        for given in choices:
            yield name, " ".join(f"{k}={v}" for k, v in given.items()), sdediff.method(name, **given)
    for p, c, form in itertools.product((2, 3, 4), (2, 3, 4, 5), ("eps", "x0")):        # SA-Solver's family at tau = 0, in either form
        if p <= c <= p + 1:
            yield "sa-solver", f"predictor={p} corrector={c} form={form}", Method("sa-solver", PredictorCorrector(p, c, "exact", form))


def _our_grids(process: str) -> dict[str, Grid]:
    return _common_grids(process) | {f"karras-{rho}": Karras(rho) for rho in (3, 5, 10)}


def our_contestants(process: str) -> Iterator[Contestant]:
    for name, options, method in our_methods():
        for grid_name, grid in _our_grids(process).items():
            yield Contestant("sdediff", name, options, grid_name, functools.partial(run_ours, method, grid))


def _sech_name(grid: Sech) -> str:
    return f"sech({grid.centre:g},{grid.noisy:g},{grid.clean:g},{grid.floor:g})"


def candidates(process: str) -> Iterator[Contestant]:
    """What might become ours: the rule for a budget, the angular methods on every grid, and every other method on the dense grid."""
    yield Contestant("sdediff", "auto", "", "own", lambda ground, x, calls: run_ours(untuned(calls), untuned(calls).grid, ground, x, calls))
    sechs = {_sech_name(grid): grid for grid in (FEW, SOME, MANY)}
    for nodes, corrector in ((3, 0), (4, 0), (3, 4), (4, 5)):
        method = Method("angular", Angular(nodes, corrector))
        for name, grid in (_common_grids(process) | sechs).items():
            yield Contestant("sdediff", "angular", f"nodes={nodes} corrector={corrector}", name, functools.partial(run_ours, method, grid))
    for kind, options, method in our_methods():
        yield Contestant("sdediff", kind, options, _sech_name(MANY), functools.partial(run_ours, method, MANY))


def run_ours(method: Method, grid: Grid, ground: Ground, x: Tensor, calls: int) -> tuple[Tensor, int]:
    """A method of ours with the most steps of the grid that the calls pay for."""
    times, used = _steps(method, grid, ground.sde, ground.span, calls), 0

    def score(x: Tensor, level: NoiseLevel) -> Prediction:
        nonlocal used
        used += 1
        return ground.score(x, level)

    with torch.no_grad():
        *_, state = iterate(ReverseSDE(ground.sde, score, method.eta), method.solver, x, ground.sde.levels(times))
    return state.x, used


@functools.lru_cache(maxsize=4096)
def _steps(method: Method, grid: Grid, sde: SDE, span: tuple[float, float], calls: int) -> tuple[float, ...]:
    if isinstance(method.solver, (Exponential, PredictorCorrector)):
        return tuple(grid(sde, calls - isinstance(method.solver, PredictorCorrector), *span))
    for steps in range(calls, 0, -1):
        times = grid(sde, steps, *span)
        if count_calls(method, sde, times) <= calls:
            return tuple(times)
    raise ValueError(f"calls={calls}: expected as many as one step of {method.name} takes.")


FIELDS = {"peers": peer_contestants, "ours": our_contestants, "candidates": candidates}


# -- the study ----------------------------------------------------------------------------------------------------------
class Row(NamedTuple):
    """``rmse``: sqrt of the mean over samples and dimensions of the squared error; ``median``: over samples of the same of one sample."""

    target: str
    process: str
    calls: int
    source: str
    method: str
    options: str
    grid: str
    calls_used: int
    rmse: float
    median: float


Key = tuple[str, ...]


def key(row: Row) -> Key:
    return tuple(map(str, row[:7]))


def measure(ground: Ground, contestant: Contestant, calls: int, x: Tensor, exact: Tensor) -> Row | None:
    """None where the budget buys no step; infinite where the method diverges."""
    try:
        end, used = contestant.run(ground, x, calls)
    except ValueError as error:
        if "expected as many" not in str(error):
            raise
        return None
    if used > calls:
        raise RuntimeError(f"{contestant.label} took {used} calls of {calls}.")
    errors = (end - exact).square().flatten(1).mean(1)
    rmse, median = float(errors.mean().sqrt()), float(errors.median().sqrt())
    finite = math.isfinite(rmse)
    return Row(ground.target_name, ground.process_name, calls, *contestant[:4], used, rmse if finite else math.inf,
               median if finite else math.inf)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Row(r["target"], r["process"], int(r["calls"]), r["source"], r["method"], r["options"], r["grid"], int(r["calls_used"]),
                    float(r["rmse"]), float(r["median"])) for r in csv.DictReader(file)]


def run(folder: Path, path: Path = FILE, *, names: Iterable[str] = TARGETS, processes: Iterable[str] = PROCESSES,
        budgets: Iterable[int] = BUDGETS, contestants: Callable[[str], Iterable[Contestant]] | None = None, progress: bool = True) -> None:
    """Adds to ``path`` the cells that it lacks. ``contestants``: of a process; default: peers, ours and the candidates."""
    from tqdm.auto import tqdm
    done, new = {key(row) for row in read(path)}, not path.exists()
    field = contestants or (lambda process: itertools.chain(*(one(process) for one in FIELDS.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = [(target, process, list(field(process))) for target, process in itertools.product(names, processes)]
    with path.open("a", newline="") as file, tqdm(total=sum(len(c) for *_, c in plan), unit="method", disable=not progress) as bar:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(Row._fields)
        for target, process, field_here in plan:
            ground = Ground(target, process, folder)
            x, exact = ground.draws("test"), ground.ends("test")
            bar.set_description(f"{target}, {process}")
            for contestant in field_here:
                for calls in budgets:
                    if (target, process, str(calls), *contestant[:4]) not in done:
                        row = measure(ground, contestant, calls, x, exact)
                        if row:
                            writer.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in row])
                bar.update()
            file.flush()


# -- what it says -------------------------------------------------------------------------------------------------------
Cell = tuple[str, str, int]


def by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        cells[row[:3]].append(row)
    return cells


def is_baseline(row: Row) -> bool:
    return row.source.startswith("azula") and (row.method, row.grid) == BASELINE


def best_peers(rows: Iterable[Row]) -> dict[Cell, Row]:
    """The best configuration of a peer in each cell, in hindsight."""
    return {cell: min((r for r in here if r.source != "sdediff"), key=lambda r: r.rmse) for cell, here in by_cell(rows).items()}


def baselines(rows: Iterable[Row]) -> dict[Cell, Row]:
    return {row[:3]: row for row in rows if is_baseline(row)}


def ranking(rows: Sequence[Row], where: Callable[[Cell], bool] = lambda cell: True) -> list[tuple[float, float, str]]:
    """(median, largest ratio of its RMSE to the baseline's, configuration) over the cells; best median first. A configuration that lacks a
    cell is left out."""
    base, ratios = baselines(rows), defaultdict(list)
    for row in rows:
        if where(row[:3]):
            ratios[" ".join(filter(None, row[3:7]))].append(row.rmse / base[row[:3]].rmse)
    full = max(map(len, ratios.values()))
    return sorted((statistics.median(v), max(v), k) for k, v in ratios.items() if len(v) == full)


GROUPS: dict[str, Callable[[Cell], bool]] = {
    "all cells": lambda c: True, "2D": lambda c: c[0] in PLANE, "16 dimensions and more": lambda c: c[0] not in PLANE,
    **{f"{p}": (lambda c, p=p: c[1] == p) for p in PROCESSES}, **{f"{n} calls": (lambda c, n=n: c[2] == n) for n in BUDGETS},
}


def summary(rows: Sequence[Row], top: int = 8) -> Iterator[str]:
    best, base = best_peers(rows), baselines(rows)
    ratios = {cell: base[cell].rmse / best[cell].rmse for cell in best}
    for name, where in GROUPS.items():
        here = [v for cell, v in ratios.items() if where(cell)]
        if here:
            yield (f"{name}: the baseline's RMSE is {statistics.median(here):.2f} times that of the best peer in hindsight in the median, "
                   f"{max(here):.2f} at most")
    for name, where in GROUPS.items():
        if any(where(cell) for cell in best):
            yield f"\n{name}: median and largest ratio to the baseline"
            ranked = ranking(rows, where)
            yield from (f"  {m:8.3f} {w:10.3f}  {label}" for m, w, label in ranked[:top])
            yield "  by the largest:"
            yield from (f"  {m:8.3f} {w:10.3f}  {label}" for m, w, label in sorted(ranked, key=lambda r: r[1])[:top // 2])
    yield "\nbest peer in each cell"
    for (target, process, calls), row in best.items():
        mine = min((r for r in by_cell(rows)[target, process, calls] if r.source == "sdediff"), key=lambda r: r.rmse, default=None)
        ours = f"{mine.rmse:9.3g} {mine.method} {mine.options} {mine.grid}" if mine else ""
        yield (f"{target:12} {process:10} {calls:3d}  {base[target, process, calls].rmse:9.3g}  {row.rmse:9.3g} "
               f"{row.method + ' ' + row.grid:55}  {ours}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("run", help="measure what is missing")
    study.add_argument("--out", type=Path, required=True, help="a folder for the reference solutions")
    study.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    study.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    study.add_argument("--only", choices=list(FIELDS))
    study.add_argument("--calls", type=int, nargs="+", default=list(BUDGETS))
    for command in (study, commands.add_parser("summary", help="what the table says")):
        command.add_argument("--results", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "summary":
        print("\n".join(summary(read(given.results))))
        return
    clock = time.perf_counter(), time.process_time()
    run(given.out, given.results, names=given.targets, processes=given.processes, budgets=given.calls, contestants=FIELDS.get(given.only))
    print(f"{time.perf_counter() - clock[0]:.0f} s, {time.process_time() - clock[1]:.0f} s of one core")


if __name__ == "__main__":
    main()
