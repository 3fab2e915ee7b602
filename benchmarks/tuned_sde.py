"""Stochastic methods, tuned and as they come, by the law of their samples.

    python benchmarks/tuned_sde.py          # half an hour of processor time; writes results/tuning_sde.csv; goes on where it was stopped

On the Gaussian in 16 dimensions the W2 distance of the output's law is exact, by ``analysis.gaussian_error``: no samples. On the plane it
is the sliced W2 of 20 000 samples to as many exact ones, beside the floor of two exact samples. The field: the stochastic multistep and
single-step methods of the libraries (SDE-DPM-Solver++ 2M and DPM++ SDE, SA-Solver with its corrector and without, Euler-Maruyama, DDPM),
which ours equal to rounding on the same noise (tests/test_oracles_sde.py), on four grids; the best of them, in hindsight, cell by cell.
"""
from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from benchmarks.tuning import TARGETS
from sdediff import grids, metrics
from sdediff.analysis import gaussian_error
from sdediff.recipes import Method

FILE = Path(__file__).resolve().parent / "results" / "tuning_sde.csv"
FIELDS = ("target", "process", "calls", "metric", "best of the field", "its error", "tuned", "eta", "error of the tuned", "floor")
FIELD = [sdediff.method(name, **options) for name, options in (
    ("dpm++2m-sde", {}), ("dpm++sde", {}), ("sa-solver", {"start": False}), ("sa-solver", {"predictor": 3, "corrector": 4, "start": False}),
    ("sa-solver", {"predictor": 2, "corrector": 0}), ("euler-maruyama", {}), ("ddpm", {}))]
PROCESSES = {"VPSDE": sdediff.VPSDE(), "EDMSDE": sdediff.EDMSDE()}
N = 20_000


def error(target: sdediff.targets.Target, sde: sdediff.SDE, method: Method, calls: int, grid: object, exact: torch.Tensor) -> float:
    """W2 of the law per root dimension, or the sliced W2 of samples."""
    if isinstance(target, sdediff.targets.Gaussian):
        values, basis = torch.linalg.eigh(target.cov)
        found = gaussian_error(method, sde, nfe=calls, grid=grid, spectrum=values, mean=basis.T @ target.mean)
        return float(found.total.w2) / target.dim**0.5
    start, level = target.sample(N, seed=5, dtype=torch.float64), sde.at(sde.t_max)
    x = level.alpha * start + level.sigma * sdediff.random.WhiteNoise(6, start.shape, dtype=torch.float64).normal()
    return metrics.sliced_w2(sdediff.sample(sde, target.score, x_init=x, method=method, nfe=calls, grid=grid, seed=7), exact).value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=["gaussian-16", "ring", "modes"])
    parser.add_argument("--calls", nargs="*", type=int, default=[8, 15, 30])
    parser.add_argument("--results", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {tuple(line.split(",")[:3]) for line in given.results.read_text().splitlines()} if given.results.exists() else set()
    for name, process, calls in tqdm(list(itertools.product(given.targets, PROCESSES, given.calls)), unit="cell"):
        if (name, process, str(calls)) in done:
            continue
        target, sde = TARGETS[name](), PROCESSES[process]
        exact, other = (target.sample(N, seed=k, dtype=torch.float64) for k in (1, 2))
        field = {}
        for method, grid in itertools.product(FIELD, (grids.LogSNR(), grids.Karras(), grids.Uniform(), grids.Quadratic())):
            try:
                field[f"{method.name} on {grid!r}"] = error(target, sde, method, calls, grid, exact)
            except ValueError:                      # fewer calls than a step takes, or steps into negative variance: not in the field
                continue
        best = min(field, key=field.__getitem__)
        m = sdediff.tune("auto", sde, target.score, nfe=calls, data=target.sample(4000, seed=3, dtype=torch.float64), stochastic=True,
                         starts=2, iterations=40)
        exactly = isinstance(target, sdediff.targets.Gaussian)
        floor = "0" if exactly else f"{metrics.sliced_w2(other, exact).value:.4g}"
        row = (name, process, calls, "W2/sqrt(d), exact" if exactly else "sliced W2", best, f"{field[best]:.4g}",
               type(m.solver).__name__, f"{m.eta:.3g}", f"{error(target, sde, m, calls, None, exact):.4g}", floor)
        with given.results.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not done:
                writer.writerow(FIELDS)
                done.add(())
            writer.writerow(row)
        tqdm.write("  ".join(map(str, row)))


if __name__ == "__main__":
    main()
