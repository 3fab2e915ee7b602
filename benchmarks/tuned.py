"""Methods tuned to each cell of the study in tuning.py: what the best answer is for a number of network calls.

    python benchmarks/tuned.py --out tuning --targets ring modes          # some two minutes of processor time a cell; goes on
    python benchmarks/tuned.py --out tuning --again                       # a second look at the cells that are above the bar

Each method is tuned on draws of its own (tuning's three sets come from ``data``), and judged on the study's ``test`` trajectories, which
nothing was fitted to or chosen on. The methods themselves are kept as JSON in results/tuned, the numbers in results/tuning_tuned.csv.

The best peer is the best of all on the test trajectories themselves, so that where a few paths decide, it is also the luckiest. ``--again``
runs it and the tuned method on other trajectories, in the cells where the tuned method has more than 1.1 times its error, and writes
results/tuning_again.csv.
"""
from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from benchmarks import tuning
from benchmarks.tuning import BUDGETS, PROCESSES, TARGETS, Contestant, Ground, best_peers, measure, peer_contestants, read
from sdediff import tuned

AGAIN = Path(__file__).resolve().parent / "results" / "tuning_again.csv"
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


def again(folder: Path, results: Path, bar: float = 1.1) -> None:
    """The cells where the tuned method is above the bar: it and the peer that was best there, on trajectories that chose neither."""
    best, lines = best_peers(read(tuning.FILE)), []
    for row in read(results):
        peer = best[row[:3]]
        if row.rmse > bar * peer.rmse:
            ground, calls = Ground(row.target, row.process, folder), row.calls
            x, exact = ground.draws("again"), ground.ends("again")
            theirs = next(c for c in peer_contestants(row.process) if c[:4] == peer[3:7])
            method = tuned.best(tuned.read(results.parent / "tuned" / f"{row.target}-{row.process}.json"), calls)
            a, b = (measure(ground, c, calls, x, exact) for c in (theirs, contestant(method)))          # type: ignore[arg-type]
            lines.append([*row[:3], f"{row.rmse / peer.rmse:.2f}", " ".join(filter(None, peer[4:7])), len(x), f"{a.rmse:.3g}",
                          f"{b.rmse:.3g}", f"{b.rmse / a.rmse:.2f}"])
            print(*lines[-1], sep="  ", flush=True)
    with AGAIN.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["target", "process", "calls", "ratio", "best peer", "other trajectories",
                                                          "its RMSE", "RMSE of the tuned", "ratio there"], *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tuning"))
    parser.add_argument("--results", type=Path, default=FILE)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--calls", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--again", action="store_true", help="a second look at the cells above the bar, in place of tuning")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.again:
        again(given.out, given.results)
        return
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
