"""Does the error predicted on a Gaussian surrogate rank methods as the measured one does? Spearman's correlation, target by target.

    OMP_NUM_THREADS=1 python benchmarks/predicted.py                # four minutes of processor time; writes results/predicted.csv

Methods times grids at 8, 15 and 30 network calls, VPSDE, exact scores, from the exact marginal at t_max to t_min. Measured: for ODE
methods the RMSE of 128 paths to their probability-flow endpoints (closed form or DOP853), and beside it the median path error, which a few
paths near a ridge do not own; for SDE methods the sliced W2 of 2000 samples to as many exact ones. Predicted by ``gaussian_error``:

    total     a Gaussian with the target's mean and covariance
    within    one with the mean covariance of the target's modes
    both      the two spectra together, errors added in squares
    span      thirteen variances, equally spaced in their logarithm, from the least of ``within`` to the greatest of ``total``: where modes
              meet, the data are for a while as wide as their distance, which neither spectrum holds
    all       the first two and ``span`` together
    modes     each mode as a Gaussian of its own, its mean included, errors averaged in squares by weight
    band      what is taken where nothing is known of the data

The table has one line a target, budget and kind; ``n`` counts (method, grid) pairs with finite numbers. For SDE methods only those count
whose sliced W2 is twice that of two exact samples or more: below, the measurement ranks noise.
"""
from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from scipy.stats import spearmanr

from sdediff import VPSDE, ReverseSDE, iterate, metrics, random, recipes, targets
from sdediff.analysis import GaussianError, gaussian_error, spectrum_of
from sdediff.testing import Problem, gaussian_problem, mixture_problem

F64 = torch.float64
SDE = VPSDE()
BUDGETS = (8, 15, 30)
GRIDS = ("uniform", "quadratic", "logsnr", "karras")
ODE = ("euler", "heun", "ddim", "edm-heun", "dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "dpm++2m", "dpm++3m", "unipc-2",
       "unipc-3", "deis-2", "deis-3", "ab-3", "ipndm", "eab-2", "eab-3", "eab-4", "rk4")
STOCHASTIC = ("euler-maruyama", "reverse-diffusion", "sde-heun", "ddpm", "dpm++2m-sde", "dpm++3m-sde", "dpm++sde", "seeds-2", "sa-solver",
              "er-sde-2", "er-sde-3", "euler-ancestral", "dpm++2s-ancestral", "edm-stochastic")
SAMPLES = 2000
SURROGATES = ("total", "within", "both", "span", "all", "modes", "band")


def sixteen() -> Problem:
    """Six modes in sixteen dimensions, unequal in weight and width, each with a spectrum over two decades in a basis of its own."""
    z = random.WhiteNoise(7, (6, 16, 17), dtype=F64).normal()
    bases = torch.linalg.qr(z[:, :, :16])[0]
    spectrum = torch.logspace(-2.5, -0.5, 16, dtype=F64) * torch.tensor([0.3, 0.5, 0.8, 1.0, 1.5, 2.0], dtype=F64)[:, None]
    covs = bases @ torch.diag_embed(spectrum) @ bases.mT
    return Problem("16-dim", SDE, targets.GaussianMixture(z[:, :, 16], (covs + covs.mT) / 2, torch.arange(1.0, 7.0, dtype=F64)), 128)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "gaussian": lambda: Problem("gaussian", SDE, gaussian_problem().target, 128),
    "gaussian-32": lambda: Problem("gaussian-32", SDE, targets.Gaussian(torch.zeros(32), torch.logspace(-4, 0.5, 32)), 128),
    "two modes": lambda: Problem("two modes", SDE, mixture_problem().target, 128),
    "ring of 8": lambda: Problem("ring of 8", SDE, targets.eight_gaussians(), 128),
    "16-dim": sixteen,
}


def surrogates(target: targets.GaussianMixture) -> Callable[[str, list[float]], dict[str, float]]:
    """The predicted errors of a method on a grid, by surrogate."""
    _, basis = torch.linalg.eigh(target.cov)
    covs = target.covs.expand(len(target.weights), -1, -1)
    outer, inner = spectrum_of(target), torch.linalg.eigvalsh(torch.einsum("k,kij->ij", target.weights, covs)).clamp(min=0)
    between = torch.logspace(math.log10(float(inner.min())), math.log10(float(outer.max())), 13, dtype=F64)
    modes = [(w, *torch.linalg.eigh(c), m) for w, c, m in zip(target.weights.tolist(), covs, target.means)]

    def predict(name: str, times: list[float]) -> dict[str, float]:
        def error(**given: object) -> float:
            found: GaussianError = gaussian_error(name, SDE, times=times, **given)                       # type: ignore[arg-type]
            return float(found.total.w2 if found.stochastic else found.total.path_rmse)                  # type: ignore[arg-type]

        total, within, span = error(spectrum=outer, mean=basis.T @ target.mean), error(spectrum=inner), error(spectrum=between)
        each = math.sqrt(sum(w * error(spectrum=c, mean=q.T @ m)**2 for w, c, q, m in modes))
        return {"total": total, "within": within, "both": math.hypot(total, within), "span": span, "all": math.hypot(total, within, span),
                "modes": each, "band": error()}

    return predict


def grids_of(names: tuple[str, ...], nfe: int) -> Iterator[tuple[str, str, list[float]]]:
    """(method, grid, times) for every pair that fits the budget."""
    for name in names:
        for grid in GRIDS:
            try:
                yield name, grid, list(gaussian_error(name, SDE, nfe=nfe, grid=grid, spectrum=[1.0]).times)
            except ValueError:                  # one step takes more calls
                continue


def measured(problem: Problem, name: str, times: list[float]) -> tuple[float, float]:
    """RMSE and median error of the paths, or sliced W2 and nothing."""
    recipe, levels = recipes.method(name), SDE.levels(times)
    eq = ReverseSDE(SDE, problem.target.score, recipe.eta)
    if not recipe.stochastic:
        *_, end = iterate(eq, recipe.solver, problem.start(times[0]), levels)
        distance = (end.x - problem.solution(times[0], times[-1])).square().sum(1).sqrt()
        return float(distance.square().mean().sqrt()), float(distance.median())
    start, exact = (metrics.noised(problem.target, SAMPLES, level, seed=seed) for level, seed in ((levels[0], 1), (levels[-1], 2)))
    *_, end = iterate(eq, recipe.solver, start, levels, random.WhiteNoise(3, start.shape, dtype=F64))
    return metrics.sliced_w2(end.x, exact, projections=64, blocks=2).value, math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "predicted.csv")
    parser.add_argument("--targets", default=",".join(PROBLEMS), help="of: " + ", ".join(PROBLEMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, table = time.process_time(), {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(("target", "kind", "nfe", "method", "grid", "measured", "median", *SURROGATES))
    print(f"{'target':12} {'kind':4} {'nfe':>3} {'n':>3}  " + "  ".join(f"{name:>7}" for name in (*SURROGATES, "rmse~median")))
    for label in args.targets.split(","):
        problem = PROBLEMS[label]()
        predict = surrogates(problem.target)
        exact = (metrics.noised(problem.target, SAMPLES, SDE.at(SDE.t_min), seed=seed) for seed in (4, 2))
        floor = metrics.sliced_w2(*exact, projections=64, blocks=2).value
        for kind, names in (("ODE", ODE), ("SDE", STOCHASTIC)):
            for nfe in BUDGETS:
                cells, rows = [], []
                for name, grid, times in grids_of(names, nfe):
                    value, median = measured(problem, name, times)
                    guess = predict(name, times)
                    rows.append((label, kind, nfe, name, grid, *(f"{v:.4g}" for v in (value, median, *guess.values()))))
                    if math.isfinite(value) and (kind == "ODE" or value > 2 * floor):
                        cells.append((value, median, *guess.values()))
                with args.out.open("a", newline="") as file:        # as it goes: an interrupted run keeps its rows
                    csv.writer(file, lineterminator="\n").writerows(rows)
                by = list(zip(*cells))
                found = [float(spearmanr(by[0], column).statistic) for column in (*by[2:], *by[1:2] * (kind == "ODE"))]
                table[label, kind, nfe] = found
                print(f"{label:12} {kind:4} {nfe:3} {len(cells):3}  " + "  ".join(f"{v:7.3f}" for v in found), flush=True)
    for kind in ("ODE", "SDE"):
        for group, member in (("Gaussian", lambda t: t.startswith("gaussian")), ("mixtures", lambda t: not t.startswith("gaussian"))):
            found = [v for (label, k, _), v in table.items() if k == kind and member(label)]
            if found:
                print(f"{group}, {kind}: smallest / median over targets and budgets  " + "  ".join(
                    f"{name} {min(column):.2f} / {statistics.median(column):.2f}" for name, column in zip(SURROGATES, zip(*found))))
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
