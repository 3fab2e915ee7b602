"""Posterior samplers against exact posteriors: benchmarks/results/inverse.csv, and the page docs/inverse/README.md.

    python benchmarks/inverse.py run                    # some ten minutes on one core; finished rows are kept
    python benchmarks/inverse.py page                   # the page and its pictures, from the rows

Priors are mixtures, so that the posterior of a linear measurement is a mixture too (``GaussianMixture.given``), with an exact sampler, mean
and covariance. Every method samples the posteriors of four measurements, drawn from the model, with exact scores of the prior: what is left
is the method's own bias, the solver's error, and Monte Carlo error, which the floor shows.
"""
from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from sdediff import inverse, metrics, operators
from sdediff.operators import Operator

ROOT = Path(__file__).resolve().parent.parent
FILE, PAGE = ROOT / "benchmarks" / "results" / "inverse.csv", ROOT / "docs" / "inverse"
F64, SDE = torch.float64, sdediff.VPSDE()
BUDGETS, MEASUREMENTS, SAMPLES = (20, 50, 100, 200), 4, 1024
PARTICLES = (1, 4, 16, 64, 256)
ZETAS = (0.1, 0.3, 1.0)                         # of method="dps": the best in hindsight stands in the table


# -- problems -----------------------------------------------------------------------------------------------------------
def _normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def plane() -> sdediff.targets.GaussianMixture:
    """Three modes of unequal weight, two of which a measurement of the first coordinate cannot tell apart."""
    return sdediff.targets.GaussianMixture([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0]], [[0.1, 0.2]] * 3, [0.5, 0.2, 0.3], name="plane")


def modes_8() -> sdediff.targets.GaussianMixture:
    """Ten modes in eight dimensions, each with a covariance of its own."""
    root = 0.35 * _normals(1, 10, 8, 8) / 8**0.5
    return sdediff.targets.GaussianMixture(_normals(2, 10, 8), root @ root.transpose(1, 2) + 0.01 * torch.eye(8), name="modes-8")


def digits() -> sdediff.targets.GaussianMixture:
    """The real 8x8 digits, a Gaussian a class: means and covariances of scikit-learn's data in [-1, 1], 0.02 I added."""
    from sklearn.datasets import load_digits
    data = load_digits()
    x, y = torch.from_numpy(data.images).double().flatten(1) / 8 - 1, torch.from_numpy(data.target)
    parts = [x[y == k] for k in range(10)]
    return sdediff.targets.GaussianMixture(torch.stack([p.mean(0) for p in parts]),
                                           torch.stack([torch.cov(p.T) for p in parts]) + 0.02 * torch.eye(64), name="digits")


@dataclasses.dataclass(frozen=True, eq=False)
class Flat(Operator):
    """An operator on images, for a prior whose samples are vectors."""

    image: Operator

    @property
    def event(self) -> tuple[int, ...]:                                                      # type: ignore[override]
        return (self.image.event[-1] * self.image.event[-2],)

    def forward(self, x: Tensor) -> Tensor:
        return self.image.forward(x.reshape(-1, *self.image.event)).flatten(1)


class Problem(NamedTuple):
    prior: Callable[[], sdediff.targets.GaussianMixture]
    operator: Callable[[], Operator]
    std: float
    words: str


def _upper() -> Tensor:
    return torch.arange(64) < 32


PROBLEMS: dict[str, Problem] = {
    "plane, one coordinate": Problem(plane, lambda: operators.Mask(torch.tensor([True, False])), 0.1,
                                     "three modes in the plane; the first coordinate is measured"),
    "8 dimensions, projection": Problem(modes_8, lambda: operators.Matrix(_normals(3, 3, 8) / 8**0.5), 0.1,
                                        "ten modes in eight dimensions; three random projections are measured"),
    "digits, upper half": Problem(digits, lambda: operators.Mask(_upper()), 0.1,
                                  "8x8 digits, a Gaussian a class; inpainting of the lower half"),
    "digits, blurred": Problem(digits, lambda: Flat(operators.Blur((1, 8, 8), 1.0)), 0.1, "8x8 digits; Gaussian blur of one pixel"),
}


class Ground(NamedTuple):
    """A problem with its measurements, their posteriors, and exact samples of them."""

    prior: sdediff.targets.GaussianMixture
    operator: Operator
    std: float
    y: Tensor
    posteriors: list[sdediff.targets.GaussianMixture]
    exact: list[Tensor]


@functools.cache
def ground(name: str) -> Ground:
    problem = PROBLEMS[name]
    prior, operator = problem.prior(), problem.operator()
    x = prior.sample(MEASUREMENTS, seed=11, dtype=F64)
    y = operator.forward(x) + problem.std * _normals(12, MEASUREMENTS, *operator.measured)
    posteriors = [prior.given(operator, one, problem.std) for one in y]
    exact = [p.sample(SAMPLES, seed=13 + k, dtype=F64) for k, p in enumerate(posteriors)]
    return Ground(prior, operator, problem.std, y, posteriors, exact)


# -- contestants --------------------------------------------------------------------------------------------------------
class Contestant(NamedTuple):
    """``backward``: backward passes a call; ``run``: (ground, calls) -> samples (measurements, n, d), network calls, and diagnostics."""

    backward: Callable[[Ground], int]
    run: Callable[[Ground, int], tuple[Tensor, int, dict[str, Any]]]


def _sampled(score: Any, g: Ground, **call: Any) -> tuple[Tensor, int, dict[str, Any]]:
    y = g.y.repeat_interleave(SAMPLES, 0)
    info = sdediff.sample_info(SDE, score, shape=(len(y), g.prior.dim), seed=5, dtype=F64, conditions={"measurement": y}, **call)
    return info.x.reshape(MEASUREMENTS, SAMPLES, -1), info.nfe, dict(info.diagnostics)


def _guided(name: str, **options: Any) -> Callable[[Ground, int], tuple[Tensor, int, dict[str, Any]]]:
    def run(g: Ground, calls: int) -> tuple[Tensor, int, dict[str, Any]]:
        return _sampled(inverse.GUIDANCES[name](g.prior.score, g.operator, g.std, **options), g, method="dpm++2m-sde", nfe=calls)
    return run


def _on_state(name: str, **options: Any) -> Callable[[Ground, int], tuple[Tensor, int, dict[str, Any]]]:
    def run(g: Ground, calls: int) -> tuple[Tensor, int, dict[str, Any]]:
        return _sampled(inverse.observe(g.prior.score, g.operator, g.std), g, method=name, nfe=calls, grid="logsnr", **options)
    return run


def _exact(g: Ground, calls: int) -> tuple[Tensor, int, dict[str, Any]]:
    x = [sdediff.sample_info(SDE, p.score, shape=(SAMPLES, p.dim), method="dpm++2m-sde", nfe=calls, seed=5, first=k * SAMPLES, dtype=F64).x
         for k, p in enumerate(g.posteriors)]
    return torch.stack(x), calls, {}


NONE: Callable[[Ground], int] = lambda g: 0
CONTESTANTS: dict[str, Contestant] = {
    "exact posterior score": Contestant(NONE, _exact),
    "tweedie": Contestant(lambda g: 11, _guided("tweedie", iterations=10)),
    "tweedie, 2 iterations": Contestant(lambda g: 3, _guided("tweedie")),
    "pigdm": Contestant(lambda g: 1, _guided("pigdm")),
    "plug-in": Contestant(lambda g: 1, _guided("plug_in")),
    "diffpir": Contestant(NONE, _guided("diffpir")),
    "ddnm": Contestant(NONE, _guided("ddnm")),
    "replacement": Contestant(NONE, _on_state("replacement")),
    "repaint": Contestant(NONE, _on_state("repaint", repeats=5, jump=2)),
    **{f"dps, zeta={z:g}": Contestant(lambda g: 1, _on_state("dps", zeta=z)) for z in ZETAS},
    "ddrm": Contestant(NONE, _on_state("ddrm")),
    **{f"smc, {k} particles": Contestant(lambda g: 1, _on_state("smc", particles=k)) for k in PARTICLES},
}


# -- rows ---------------------------------------------------------------------------------------------------------------
class Row(NamedTuple):
    """Means over the measurements. ``mean_error``: |m - m*|/sqrt(tr C*); ``cov_error``: |C - C*|/|C*|; ``ess``: least effective sample size
    of a cloud on its way, as a share of it, on average."""

    problem: str
    method: str
    calls: int
    nfe: int
    sliced_w2: float
    mean_error: float
    cov_error: float
    ess: float | None


def measure(problem: str, method: str, calls: int) -> Row:
    """One row, computed."""
    g = ground(problem)
    x, nfe, told = CONTESTANTS[method].run(g, calls)
    ess = float((told["ess"].amin(0) / int(method.split()[1])).mean()) if "ess" in told else None
    return Row(problem, method, calls, nfe, *errors(g, x), ess)


def errors(g: Ground, x: Sequence[Tensor] | Tensor) -> tuple[float, float, float]:
    """Sliced W2, and relative errors of mean and covariance, on average over the measurements."""
    found = []
    for samples, posterior, exact in zip(x, g.posteriors, g.exact):
        cov = torch.cov(samples.T)
        found.append((metrics.sliced_w2(samples, exact).value,
                      float((samples.mean(0) - posterior.mean).norm() / posterior.cov.trace().sqrt()),
                      float((cov - posterior.cov).norm() / posterior.cov.norm())))
    return tuple(statistics.fmean(column) for column in zip(*found))        # type: ignore[return-value]


def floor(problem: str) -> tuple[float, float, float]:
    """The same of exact samples, on average over draws."""
    g = ground(problem)
    draws = [errors(g, [p.sample(SAMPLES, seed=100 + 10 * k + j, dtype=F64) for j, p in enumerate(g.posteriors)]) for k in range(4)]
    return tuple(statistics.fmean(column) for column in zip(*draws))        # type: ignore[return-value]


def read(file: Path = FILE) -> list[Row]:
    if not file.exists():
        return []
    with file.open(newline="") as f:
        return [Row(r["problem"], r["method"], int(r["calls"]), int(r["nfe"]), float(r["sliced_w2"]), float(r["mean_error"]),
                    float(r["cov_error"]), float(r["ess"]) if r["ess"] else None) for r in csv.DictReader(f)]


def cells() -> Iterator[tuple[str, str, int]]:
    for problem in PROBLEMS:
        yield problem, "floor", 0
        for method in CONTESTANTS:
            for calls in BUDGETS:
                yield problem, method, calls


def run(file: Path = FILE) -> None:
    """Compute what is missing."""
    from tqdm import tqdm
    done = {row[:3] for row in read(file)}
    for problem, method, calls in tqdm([c for c in cells() if c not in done], unit="row"):
        row = Row(problem, method, 0, 0, *floor(problem), None) if method == "floor" else measure(problem, method, calls)
        new = not file.exists()
        with file.open("a", newline="") as f:
            writer = csv.writer(f, lineterminator="\n")
            if new:
                writer.writerow(Row._fields)
            writer.writerow(["" if v is None else f"{v:.4g}" if isinstance(v, float) else v for v in row])
    order = {cell: k for k, cell in enumerate(cells())}
    rows = sorted(read(file), key=lambda row: order[row[:3]])
    with file.open("w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([Row._fields, *(["" if v is None else v for v in row] for row in rows)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "run":
        run()
    else:
        from benchmarks.inverse_page import write
        write()
