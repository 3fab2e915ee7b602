"""From a thousand samples to ten million, on one to eight processes: seconds, samples a second, memory, and whether the bits are the same.

A small network (or the exact score of a Gaussian), ddim with 10 steps, chunks of one size into a .npy file. Every line is one job in
processes of its own. Seconds are those of the sampling call, the slowest rank's; memory is the peak resident memory of a rank in MB, and
its growth over what it was after importing torch and drawing one chunk; "same bits" compares the file with that of one process.

    python benchmarks/scale.py                                        # 1e3 .. 1e6 samples, 1 and 2 ranks
    python benchmarks/scale.py --largest 10000000 --ranks 1 2 4 8 --out scale.csv
"""
import argparse
import csv
import filecmp
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import sdediff
from sdediff import nets
from sdediff.ranks import job

FIELDS = ("score", "samples", "ranks", "chunk", "seconds", "samples_per_second", "peak_mb", "growth_mb", "same_bits")


def scored(name: str) -> sdediff.score.Score:
    """The score that is asked: a residual MLP of width 64 on points in the plane, or the exact one of a Gaussian."""
    if name == "gaussian":
        return sdediff.targets.Gaussian([0.5, -1.0], 0.2).score
    return sdediff.from_network(nets.MLP(2, 64, 1), "eps", time_input="lam")


def peak() -> float:
    """MB, of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def work(given: argparse.Namespace) -> None:
    """One rank of one job."""
    torch.set_num_threads(1)
    sde, score = sdediff.VPSDE(), scored(given.score)
    call = {"method": "ddim", "steps": given.steps, "seed": 0, "chunk": given.chunk}
    with job() as (ranks, _):
        sdediff.sample(sde, score, shape=(given.chunk, 2), **call)
        before = peak()
        ranks.agree()
        start = time.perf_counter()
        sdediff.sample(sde, score, shape=(given.samples, 2), **call, out=given.file, group=ranks.group)
        said = {"seconds": time.perf_counter() - start, "peak_mb": peak(), "growth_mb": peak() - before}
    Path(f"{given.file}.{ranks.rank}.json").write_text(json.dumps(said), encoding="utf-8")


def measure(given: argparse.Namespace, samples: int, ranks: int, folder: Path) -> dict[str, object]:
    """One job in processes of its own."""
    file = folder / f"{samples}-{ranks}.npy"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    subprocess.run([sys.executable, *torchrun, __file__, "--file", str(file), "--samples", str(samples), "--chunk", str(given.chunk),
                    "--steps", str(given.steps), "--score", given.score], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = [json.loads(Path(f"{file}.{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    seconds, memory, growth = (max(row[key] for row in said) for key in ("seconds", "peak_mb", "growth_mb"))
    same = filecmp.cmp(file, folder / f"{samples}-1.npy", shallow=False) if ranks > 1 else ""
    return dict(zip(FIELDS, (given.score, samples, ranks, given.chunk, round(seconds, 3), round(samples / seconds), round(memory),
                             round(growth, 1), same)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000, help="samples; smaller powers of ten from a thousand on are measured too")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes; 1 is always measured, for the bits")
    parser.add_argument("--chunk", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--score", choices=("mlp", "gaussian"), default="mlp")
    parser.add_argument("--out", type=Path, help="a .csv file for the table")
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file:
        return work(given)
    sizes = [10**k for k in range(3, 12) if 10**k < given.largest] + [given.largest]
    print(f"{'samples':>10} {'ranks':>5} {'seconds':>9} {'samples/s':>10} {'peak MB':>8} {'growth MB':>10}  same bits", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for samples in sizes:
            for ranks in sorted({1, *given.ranks}):
                row = measure(given, samples, ranks, Path(folder))
                rows.append(row)
                print(f"{row['samples']:>10} {row['ranks']:>5} {row['seconds']:>9} {row['samples_per_second']:>10} {row['peak_mb']:>8} "
                      f"{row['growth_mb']:>10}  {'' if ranks == 1 else 'yes' if row['same_bits'] else 'NO'}", flush=True)
            for file in Path(folder).iterdir():
                file.unlink()
    if given.out:
        with open(given.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    return None


if __name__ == "__main__":
    main()
