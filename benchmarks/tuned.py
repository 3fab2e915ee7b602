"""Methods tuned to each cell of the study in tuning.py: what the best answer is for a number of network calls.

    python benchmarks/tuned.py --out tuning --targets ring modes          # some 45 s of processor time a cell; goes on where it was stopped

Each method is tuned on draws of its own (tuning's three sets come from ``data``), and judged on the study's ``test`` trajectories, which
nothing was fitted to or chosen on. The methods themselves are kept as JSON in results/tuned, the numbers in results/tuning_tuned.csv.
"""
from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from benchmarks.tuning import BUDGETS, PROCESSES, TARGETS, Contestant, Ground, measure, read
from sdediff import tuned

FILE = Path(__file__).resolve().parent / "results" / "tuning_tuned.csv"
TRAJECTORIES = 1024     # to fit on, and to choose on: among 256 there are few or none of the paths that pass a ridge between modes
FIELDS = ("target", "process", "calls", "source", "method", "options", "grid", "calls_used", "rmse", "median")


def one(ground: Ground, calls: int, near: list[tuned.Tuned], iterations: int) -> tuned.Tuned:
    """The method tuned to a cell; a smaller budget's is a start."""
    data = ground.target.sample(3 * TRAJECTORIES, seed=900, dtype=torch.float64)
    return sdediff.tune("auto", ground.sde, ground.score, nfe=calls, data=data, t_end=ground.span[1], near=near[-1:], starts=2,
                        iterations=iterations, seed=calls, trajectories=TRAJECTORIES)


def contestant(method: tuned.Tuned) -> Contestant:
    """A tuned method as the study runs it."""
    def run(ground: Ground, x: torch.Tensor, calls: int) -> tuple[torch.Tensor, int]:
        info = sdediff.sample_info(ground.sde, ground.score, x_init=x, method=method, nfe=calls)
        return info.x, info.nfe

    inner = getattr(method.solver, "inner", method.solver)
    return Contestant("sdediff", "tuned", repr(inner), "own, with coefficients" if inner is not method.solver else "own", run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tuning"))
    parser.add_argument("--results", type=Path, default=FILE)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--calls", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--iterations", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from tqdm import tqdm
    done = {row[:3] for row in read(given.results)}
    cells = [(t, p) for t in given.targets for p in given.processes]
    for target, process in tqdm(cells, unit="pair"):
        ground, near = Ground(target, process, given.out), []
        x, exact = ground.draws("test"), ground.ends("test")
        path = given.results.parent / "tuned" / f"{target}-{process}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        methods = tuned.read(path) if path.exists() else {}
        for calls in sorted(given.calls):
            method = tuned.best(methods, calls)
            if method is None:
                method = one(ground, calls, near, given.iterations // (2 if calls > 20 else 1))
                methods[method.calls] = method
                tuned.write(path, methods)
            near.append(method)
            if (target, process, calls) not in done and (row := measure(ground, contestant(method), calls, x, exact)):
                new = not given.results.exists()
                with given.results.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if new:
                        writer.writerow(FIELDS)
                    writer.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in row])
                tqdm.write(f"{target:12} {process:10} {calls:3d}  rmse {row.rmse:.3g}  {row.options}, {row.grid}; {method.gain}")


if __name__ == "__main__":
    main()
