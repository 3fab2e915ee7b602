"""What noise costs that belongs to samples: the ratio of a draw to ``torch.randn`` of the same shape.

    python benchmarks/noise.py [--device cuda] [--steps 50] [--rounds 5] [--shapes 50000x2,1x100000] [--out benchmarks/results/noise.csv]

float32, one thread. A run asks for the noise of its steps one after the other, at equal steps in time from 1 down to 0.02, with a source
and a seed of its own. All contenders take a step in turn, ``torch.randn`` first, so that a slow moment of the machine meets all of them;
a number is the median over the rounds of a run's time over that of ``torch.randn`` in the same run. Other libraries' sources take turns of
their own with it: a step of theirs, of milliseconds, leaves nothing of the others in the caches. On the CPU that is processor time, in
which waiting for other processes does not count; on a GPU the device is waited for before and after a step.

    white            WhiteNoise, the default: a pure function of (seed, sample, label)
    white, start     its draw for the start of a run
    white, own seeds the same with a seed for every sample
    generator        GeneratorNoise: in order of asking, for comparison
    path             BrownianPath: W at any time, in any order
    path, again      the same grid a second time, of a path that keeps it: BrownianPath.over(levels)
    k-diffusion      its BrownianTreeNoiseSampler, and torchsde's BrownianInterval with its own cache, where they are installed
"""
from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdediff.random import BrownianPath, GeneratorNoise, WhiteNoise

SHAPES = {"cpu": "50000x2,1563x64,128x1x28x28,1x100000,500000x2,256x2,1x2", "cuda": "5000000x2,12755x1x28x28,50000x2,1x2"}
OWN = 5000                                      # samples at most that get seeds of their own here
Draw = Callable[[int], Any]


class Level(NamedTuple):
    t: float


Contenders = Iterator[tuple[str, Callable[[int], Draw]]]        # a name, and what makes a run's draw(step) from its seed


def plain(shape: tuple[int, ...], device: str) -> Contenders:
    yield "torch.randn", lambda seed: lambda k: torch.randn(shape, device=device)


def ours(shape: tuple[int, ...], device: str, levels: list[Level]) -> Contenders:
    white = lambda seed: WhiteNoise(seed, shape, device=device)

    def steps(seed: int) -> Draw:
        noise = white(seed)
        return lambda k: noise.at(k).normal(0)

    yield "white", steps
    yield "white, start", lambda seed: lambda k: white(100 * seed + k).initial()
    if shape[0] <= OWN:
        def own(seed: int) -> Draw:
            noise = WhiteNoise(range(seed, seed + shape[0]), shape, device=device)
            return lambda k: noise.at(k).normal(0)
        yield "white, own seeds", own

    def generator(seed: int) -> Draw:
        noise = GeneratorNoise(torch.Generator(device).manual_seed(seed), shape, device=device)
        return lambda k: noise.normal()

    yield "generator", generator

    def path(seed: int) -> Draw:
        noise = BrownianPath(seed, shape, device=device)
        return lambda k: noise.unit(levels[k], levels[k + 1])

    yield "path", path
    kept = BrownianPath(0, shape, device=device).over(levels)

    def again(seed: int) -> Draw:
        if seed == 1:
            for t, s in zip(levels, levels[1:]):
                kept.unit(t, s)
        return lambda k: kept.unit(levels[k], levels[k + 1])

    yield "path, again", again


def others(shape: tuple[int, ...], device: str, levels: list[Level]) -> Contenders:
    if importlib.util.find_spec("torchsde"):
        import torchsde

        def interval(seed: int) -> Draw:
            noise = torchsde.BrownianInterval(0.0, 1.0, size=shape, device=device, entropy=seed)
            return lambda k: noise(levels[k + 1].t, levels[k].t)
        yield "torchsde", interval
    if importlib.util.find_spec("torchsde") and importlib.util.find_spec("k_diffusion"):
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from benchmarks.peers.k_diffusion_ import sampling

        def tree(seed: int) -> Draw:
            x = torch.zeros(shape, device=device)
            noise = sampling().BrownianTreeNoiseSampler(x, torch.tensor(0.01), torch.tensor(1.0), seed=seed)
            sigmas = torch.tensor([t for t, in levels])
            return lambda k: noise(sigmas[k], sigmas[k + 1])
        yield "k-diffusion", tree


def measure(shape: tuple[int, ...], device: str, steps: int, rounds: int, peers: bool) -> dict[str, tuple[float, float]]:
    """Microseconds a draw, and the ratio to torch.randn, of every contender."""
    levels = [Level(1 - 0.98 * k / steps) for k in range(steps + 1)]
    found: dict[str, tuple[float, float]] = {}
    for kind in (ours, others) if peers else (ours,):
        took = in_turn({**dict(plain(shape, device)), **dict(kind(shape, device, levels))}, device, steps, rounds)
        found |= {name: took[name] for name in took if name not in found}
    return found


def in_turn(made: dict[str, Callable[[int], Draw]], device: str, steps: int, rounds: int) -> dict[str, tuple[float, float]]:
    """The same of contenders that take turns."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    totals: dict[str, list[float]] = {name: [] for name in made}
    for seed in range(rounds + 1):                           # round 0 warms up
        draws, spent = {name: make(seed + 1) for name, make in made.items()}, dict.fromkeys(made, 0.0)
        for k in range(steps if seed else 2):
            for name, draw in draws.items():
                wait()
                begin = clock()
                draw(k)
                wait()
                spent[name] += clock() - begin
        for name, seconds in spent.items() if seed else ():
            totals[name].append(seconds)
    base = totals["torch.randn"]
    return {name: (1e6 * statistics.median(v) / steps, statistics.median(a / b for a, b in zip(v, base))) for name, v in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", help="comma-separated, such as 50000x2,128x1x28x28")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, help="a CSV file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(args.device) if args.device != "cpu" else "cpu"
    print(f"torch {torch.__version__}, {name}, {args.steps} steps, {args.rounds} rounds\n")
    print(f"{'shape':>15} {'source':18} {'us a draw':>10} {'to randn':>9}")
    rows = []
    for text in (args.shapes or SHAPES[args.device.split(":")[0]]).split(","):
        found = measure(tuple(map(int, text.split("x"))), args.device, args.steps, args.rounds, not args.no_peers)
        for source, (us, ratio) in found.items():
            print(f"{text:>15} {source:18} {us:10.1f} {ratio:9.2f}", flush=True)
            rows.append((name, torch.__version__, text, source, f"{us:.4g}", f"{ratio:.3g}"))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("device", "torch", "shape", "source", "us", "to_randn"), *rows])


if __name__ == "__main__":
    main()
