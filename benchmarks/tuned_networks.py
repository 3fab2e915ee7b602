"""Methods tuned to trained networks: the error against a fine solution for the same network, and the quality of samples.

    sdediff train --data two-moons --out runs/two-moons && sdediff train --data digits --out runs/digits
    python benchmarks/tuned_networks.py runs/two-moons runs/digits          # a minute or two a budget; writes results/tuning_networks.csv

RMSE over paths from starts that nothing was fitted to or chosen on. Sliced W2 in the network's units, of n samples to held-out data, beside
the floor: training data as a sampler of the same size.
"""
from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path

import torch

import sdediff
from sdediff import evaluate, metrics, runs

FILE = Path(__file__).resolve().parent / "results" / "tuning_networks.csv"
FIELDS = ("network", "calls", "best standard", "RMSE before", "RMSE after", "ratio", "W2 before", "W2 after", "W2 floor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 15, 20])
    parser.add_argument("--iterations", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in given.runs:
        methods = {m.calls: m for m in evaluate.tune(run, given.nfe, starts=2, iterations=given.iterations, progress=sys.stderr.isatty())}
        config, checkpoint, score = runs.read(run)
        data, sde = runs.data_of(config, checkpoint), checkpoint.sde
        n = min(data.limit or 4000, 4000)
        held = data.held_out(n)
        floor = metrics.sliced_w2(data.train[:n], held)
        for nfe in given.nfe:
            m, gain = methods[nfe], methods[nfe].gain
            name = re.match(r"(\S+) on (.*)", gain.standard)
            draw = lambda method, **more: metrics.sliced_w2(
                sdediff.sample(sde, score, shape=(n, *data.event), method=method, nfe=nfe, seed=1, **more), held)       # noqa: B023
            grid = next((g for g in sdediff.tuning.GRIDS if repr(g) == name[2]), None)
            before = draw(name[1], grid=grid) if grid is not None else None
            rows.append((config["data"], nfe, gain.standard, f"{gain.before:.3g}", f"{gain.after:.3g}",
                         f"{gain.ratio:.2f} [{gain.low:.2f}, {gain.high:.2f}]", f"{before.value:.4f}" if before else "-",
                         f"{draw(m).value:.4f}", f"{floor.value:.4f}"))
            print(*rows[-1], sep="  ", flush=True)
    with FILE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([FIELDS, *rows])


if __name__ == "__main__":
    main()
