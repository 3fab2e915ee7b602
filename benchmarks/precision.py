"""What autocast adds to the samples, beside what a finite sample and a network of finite training leave anyway.

    python benchmarks/precision.py [--samples 4096] [--train 3000] [--steps 20] [--out FILE.csv]

Two networks that predict eps under VPSDE. "exact": the score of two Gaussian modes, whose output is rounded to the half precision (an
autocast network returns such numbers, whatever it computes within). "trained": an MLP on two moons, trained here, under
``autocast=``. Numbers, from the same starts and the same noise: the root mean square distance of a sample to the one in float32, over
that of the samples; and for the trained network sliced W2 of float32 and of half-precision samples to data, which is what the rounding
costs in distribution. Half precision runs on any CPU, fast or not.
"""
from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import sdediff
from sdediff import metrics, nets, targets, training
from sdediff.testing import mixture_problem

METHODS = ("ddim", "dpm++2m", "heun", "ddpm", "euler-maruyama")
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = ("network", "method", "steps", "dtype", "relative_rms", "w2_float32", "w2_half")
SDE = sdediff.VPSDE()


def moved(plain: Tensor, half: Tensor) -> float:
    """Root mean square of the difference over that of the samples."""
    return ((plain - half).square().mean() / plain.square().mean()).sqrt().item()


def exact(samples: int, steps: int) -> Iterator[tuple[object, ...]]:
    """Rows of the exact score."""
    target = mixture_problem().target
    eps = lambda x, c: target.score(x, SDE.at(float(c[0]))).eps
    for name in METHODS:
        call = {"shape": (samples, 2), "method": name, "steps": steps, "seed": 0}
        run = lambda network, call=call: sdediff.sample(SDE, sdediff.from_network(network), **call)
        plain = run(eps)
        for label, dtype in HALF.items():
            yield "exact", name, steps, label, moved(plain, run(lambda x, c, dtype=dtype: eps(x, c).to(dtype).to(x.dtype))), "", ""


def trained(samples: int, steps: int, training_steps: int) -> Iterator[tuple[object, ...]]:
    """Rows of a network trained on two moons."""
    moons = targets.toy("two-moons")
    score = sdediff.from_network(nets.MLP(2, seed=0), predicts="eps", time_input="lam")
    data = moons.sample(50_000, seed=1).float()
    score = training.train(score, SDE, data, training.TrainingConfig(steps=training_steps), progress=False).score
    truth = moons.sample(samples, seed=2).float()
    for name in METHODS:
        run = lambda name=name, **how: sdediff.sample(SDE, score, shape=(samples, 2), method=name, steps=steps, seed=0, **how)
        plain = run()
        for label, dtype in HALF.items():
            half = run(autocast=dtype)
            yield ("trained", name, steps, label, moved(plain, half), metrics.sliced_w2(plain, truth).value,
                   metrics.sliced_w2(half, truth).value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--train", type=int, default=3000, help="optimiser steps of the trained network")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the rows there, as CSV")
    a = parser.parse_args()
    rows = []
    for row in (*exact(a.samples, a.steps), *trained(a.samples, a.steps, a.train)):
        rows.append([f"{v:.3g}" if isinstance(v, float) else v for v in row])
        print(*(f"{v!s:15}" for v in rows[-1]))
        sys.stdout.flush()
    if a.out:
        with a.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
