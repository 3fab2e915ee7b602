"""sdediff against the others: other libraries' solvers in the table of a study, on the same exact targets, starts, budgets and metrics.

    pip install 'sdediff[peers]' && pip install --no-deps k-diffusion==0.1.1 azula==0.11.1 einops
    python benchmarks/against_peers.py --out peers                    # 25 minutes on two cores
    python benchmarks/against_peers.py --out peers --nfe 10 20 --targets mixture --only azula

The folder is that of `sdediff bench`: our methods run as a study of it, each on its own grid and on log-SNR; every peer's method then runs
on log-SNR, its rows join results.csv under the source "<package> <version>", and the page is written again. Finished runs are kept in
OUT/peers, one file each, so that a run that was stopped goes on.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from benchmarks.peers import Peer, peers
from sdediff import files, metrics
from sdediff.bench import cells, page, study

OURS = ("ddim", "heun", "edm-heun", "dpm-solver-2", "dpm++2m", "dpm++3m", "dpm++3m-published", "unipc-2", "unipc-3", "deis-3", "ab-3",
        "eab-3", "eab-4", "rosenbrock-2", "rk45", "euler-maruyama", "ddpm", "sra1", "euler-ancestral", "dpm++2m-sde", "sa-solver")


def keep(peer: Peer, name: str, problem: cells.Problem, nfe: int, grid: str, folder: Path) -> list[cells.Row]:
    """The rows of one run of a peer, from its file, or measured now; none where the budget buys no step."""
    words = [cells.FORMAT, sdediff.__version__, peer.source, name, *problem, nfe, grid]
    identity = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]
    file = folder / "peers" / f"{identity}.json"
    kept = cells.read_json(file)
    if kept is None:
        kept = {"run": words, "rows": [row._asdict() for row in measure(identity, peer, name, problem, nfe, grid, folder)]}
        cells.write_json(file, kept)
    return [cells.Row(**row) for row in kept["rows"]]


def measure(identity: str, peer: Peer, name: str, problem: cells.Problem, nfe: int, grid: str, folder: Path) -> Iterator[cells.Row]:
    """One run by the metrics of a study. Nothing where the budget is too small; infinite errors where the method diverges."""
    ground, method = cells.ground(problem, folder), peer.methods[name]
    span = {"grid": grid, "t_start": ground.noisy.t, "t_end": ground.clean.t}
    tolerance, seconds = None, []
    try:
        if method.adaptive:
            tolerance = peer.tolerance(name, ground.sde, ground.score, ground.start, nfe, problem.seed, **span)
        while not seconds or (seconds[0] < cells.CHEAP and len(seconds) < 3):
            clock = time.perf_counter()
            x, calls = peer.run(name, ground.sde, ground.score, ground.start, nfe, problem.seed, tolerance=tolerance, **span)
            seconds.append(time.perf_counter() - clock)
    except ValueError as error:
        if "expected as many" not in str(error):
            raise
        return
    if bool((x.abs() < cells.ASTRAY).all()):                            # NaN is not
        found = metrics.compare(x, ground.target, ground.clean, reference=ground.reference, seed=problem.seed)
        found |= cells.path_errors(x, ground.flow) if method.kind == "ODE" else {}
    else:
        names = [*ground.floor, *(("path_rmse", "path_median") if method.kind == "ODE" else ())]
        found = dict.fromkeys(names, metrics.Estimate(*[math.inf] * 3))
    if x.ndim == 2 and x.shape[1] == 2:
        cells.write_samples(folder, identity, x)
    for metric, estimate in found.items():
        yield cells.Row(identity, peer.source, name, method.kind, method.order, "own" if method.adaptive else grid, None, calls,
                        problem.process, problem.target, cells.score_name(problem.score), metric, estimate.value, estimate.low,
                        estimate.high, *ground.floor.get(metric, (None,) * 3), problem.n, statistics.median(seconds), problem.seed)


def run(out: Path, *, methods: Sequence[str] = OURS, only: Sequence[str] = (), grids: Sequence[str] = ("logsnr",), jobs: int = 2,
        progress: bool = True, **lists: object) -> list[cells.Row]:
    """The whole comparison, resumably. ``only``: packages; ``lists``: fields of a study (processes, targets, nfe, tolerances, n, seed)."""
    ours = study.Study(methods=tuple(methods), grids=("own", *grids), **lists)                          # type: ignore[arg-type]
    rows = study.run(ours, out, jobs=jobs, progress=progress, command=" ".join(["python", "benchmarks/against_peers.py", *sys.argv[1:]]))
    found = {name: peer for name, peer in peers().items() if not only or name in only}
    runs = [(peer, name, problem, nfe, grid) for problem in ours.problems() for peer in found.values()
            for name, method in peer.methods.items() for nfe in ours.nfe for grid in (grids[:1] if method.adaptive else grids)]
    from tqdm.auto import tqdm
    for peer, name, problem, nfe, grid in tqdm(runs, desc="peers", disable=not progress, unit="run"):
        rows += keep(peer, name, problem, nfe, grid, out)
    files.write(out / study.RESULTS, study.as_csv(rows))
    page.write(out)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder, new or one to go on with")
    parser.add_argument("--nfe", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--processes", nargs="+", default=["VPSDE", "EDMSDE"])
    parser.add_argument("--targets", nargs="+", default=["gaussian", "mixture", "two-moons"])
    parser.add_argument("--grids", nargs="+", default=["logsnr"], choices=["logsnr", "karras"])
    parser.add_argument("--only", nargs="+", default=[], help="packages")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="for our methods; peers run one by one")
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    run(given.pop("out"), **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


if __name__ == "__main__":
    main()
