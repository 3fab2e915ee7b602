"""Sampling on a GPU against the bare forwards of the network: eager readable steps, table, compiled with one CUDA graph.

    python benchmarks/gpu.py [--steps 50] [--rounds 20] [--out benchmarks/results/gpu.md]

Prints one table with the card's name. Floor: as many eager network calls as the method makes, on the same input; "graph floor": the same
calls captured in one CUDA graph, which is what the card can do at best without touching the network. Every contender is timed in turn in
every round, by the wall clock around a synchronised run; a cell is the median over the rounds of its ratio to the eager floor. Compilation
is reported apart. Ends with a message where no CUDA device is visible.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from overhead import MLP, SDE, UNet, calls

import sdediff

METHODS = ("ddim", "dpm++2m", "heun", "ddpm")
HEAD = ("network", "batch", "method", "forward us", "readable", "table", "compiled, graph", "graph floor", "warm-up s",
        "largest difference")


def graph_floor(net: torch.nn.Module, x: torch.Tensor, c: torch.Tensor, n: int) -> Callable[[], None]:
    """n calls of the network in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            net(x, c)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(n):
            net(x, c)
    return graph.replay


def row(key: str, net: torch.nn.Module, shape: tuple[int, ...], name: str, steps: int, rounds: int) -> tuple[str, ...]:
    x, c, n = torch.randn(shape, device="cuda"), torch.full(shape[:1], 0.5, device="cuda"), calls(name, steps)
    score = sdediff.from_network(net)

    def bare() -> None:
        for _ in range(n):
            net(x, c)

    run = lambda **how: sdediff.sample_info(SDE, score, x_init=x, method=name, steps=steps, seed=0, **how)
    compiled = run(compile=True)
    plain = run()
    contenders = {"bare": bare, "readable": lambda: run(table=False), "table": run, "compiled": lambda: run(compile=True),
                  "floor": graph_floor(net, x, c, n)}
    took: dict[str, list[float]] = {k: [] for k in contenders}
    for _ in range(rounds):
        for k, contender in contenders.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            contender()
            torch.cuda.synchronize()
            took[k].append(time.perf_counter() - began)
    ratio = lambda k: f"{statistics.median(a / b for a, b in zip(took[k], took['bare'])):.3f} x"
    difference = float((compiled.x - plain.x).abs().max() / plain.x.abs().max())
    forward = statistics.median(took["bare"]) / n * 1e6
    return (key, str(shape[0]), name, f"{forward:.1f}", *map(ratio, ("readable", "table", "compiled", "floor")), f"{compiled.warmup:.1f}",
            f"{difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--out", type=Path, help="write the table there as well (Markdown)")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no CUDA device is visible to torch "
                 f"{torch.__version__}; run it on a machine with one (torch.cuda.is_available() must be True).")
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    networks = (("MLP 2-128-128-128-2", MLP(), (1, 2)), ("MLP 2-128-128-128-2", MLP(), (65536, 2)),
                ("U-Net 28x28", UNet(64), (16, 1, 28, 28)), ("U-Net 28x28", UNet(64), (256, 1, 28, 28)))
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, {a.steps} steps: "
             "seconds over those of the eager bare forwards.", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    print("\n".join(lines))
    with torch.no_grad():
        for key, net, shape in networks:
            net.cuda().requires_grad_(False)
            for name in a.only.split(","):
                lines.append("| " + " | ".join(row(key, net, shape, name, a.steps, a.rounds)) + " |")
                print(lines[-1], flush=True)
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text("\n".join(lines) + f"\n\n`python benchmarks/gpu.py --steps {a.steps} --rounds {a.rounds}`\n")


if __name__ == "__main__":
    main()
