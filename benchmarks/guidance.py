r"""What guidance samples, measured where everything is exact: labelled mixtures, their scores and posteriors, draws of p(x) p(y|x)^w.

    OMP_NUM_THREADS=1 python benchmarks/guidance.py           # three minutes: results/guidance.csv and the page, docs/guidance
    python benchmarks/guidance.py --page                      # the page alone, from the results

A cell is a law, a method and a scale: samples of class 0 by an ODE method of third order (or an SDE method) with so many steps that its
error is small beside the floor, against as many exact draws of the law that guidance is meant for and of p(x|y). The floor is the same
distance of two exact sets of draws, a mean over three. Temperature is measured against p(x)^(1/T).
"""
from __future__ import annotations

import argparse
import csv
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdediff
from sdediff import guidance, metrics, plots, targets
from sdediff.plots import BLUE, GREEN, MUTED, ORANGE, PURPLE, VERMILLION, _figure, _style

ROOT = Path(__file__).resolve().parent.parent
FILE, PAGE = ROOT / "benchmarks" / "results" / "guidance.csv", ROOT / "docs" / "guidance"
SDE, F64, N, CLASS = sdediff.VPSDE(), torch.float64, 2000, 0
ODE = {"method": "eab-3", "steps": 50, "grid": "logsnr", "t_end": 1e-5}
SDE_RUN = {"method": "dpm++2m-sde", "steps": 200, "grid": "logsnr", "t_end": 1e-5}
SCALES, INTERVAL, RESCALE, TEMPERATURES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (0.2, 2.0), 0.7, (0.25, 0.5, 1.0)
WIDE = "16 dimensions"                      # the one law whose samples have a spread over their coordinates
LAWS: dict[str, Callable[[], targets.GaussianMixture]] = {
    "overlapping": lambda: targets.GaussianMixture([[-0.6, 0.0], [0.6, 0.0]], 0.8),
    "three classes": lambda: targets.GaussianMixture([[-1.0, 0.0], [0.2, 1.4], [1.0, 0.0], [0.3, -1.2]], [0.3, 0.4, 0.2, 0.15],
                                                     [2, 2, 2, 1], labels=[0, 0, 1, 2]),
    "two moons": lambda: targets.two_moons(refine=0.6),
    WIDE: lambda: targets.GaussianMixture(0.4 * torch.cos(torch.arange(1.0, 4.0)[:, None] * torch.arange(16.0)), 0.5),
}
METHODS = ("classifier", "classifier-free", "classifier-free, SDE", "interval", "rescale")
COOLED = [("gaussian", "s of the data"), *(("three classes", s) for s in ("s of the data", "s of a class", "score/T"))]
PRODUCT, GIVEN = "p(x) p(y|x)^w", "p(x|y)"


class Row(NamedTuple):
    """A line of the table: a cell, and its samples' distances to a law."""

    law: str
    method: str
    scale: float
    to: str
    sliced_w2: float
    stderr: float = 0.0
    floor: float = 0.0
    energy: float = 0.0
    energy_stderr: float = 0.0
    energy_floor: float = 0.0
    calls: int = 0


def guided(law: targets.GaussianMixture, method: str, w: float) -> Any:
    """The guided score of a method."""
    if method == "classifier":
        return guidance.classifier(law.score, law.log_posterior, w)
    more = {"interval": {"interval": INTERVAL}, "rescale": {"rescale": RESCALE}}.get(method, {})
    return guidance.classifier_free(law.conditional, w, **more)


def samples(score: Any, dim: int = 2, n: int = N, **run: Any) -> sdediff.SampleInfo:
    return sdediff.sample_info(SDE, score, shape=(n, dim), seed=1, dtype=F64, **{**ODE, **run})


def draw(law: targets.GaussianMixture, method: str, w: float) -> sdediff.SampleInfo:
    return samples(guided(law, method, w), law.dim, conditions={"y": CLASS}, **(SDE_RUN if method.endswith("SDE") else {}))


class Truth(NamedTuple):
    """Exact draws, and how far other exact draws are from them: sliced W2 and energy distance."""

    exact: Tensor
    floors: tuple[float, float]


MEASURES = (metrics.sliced_w2, metrics.energy_distance)


def truth(draws: Callable[[int], Tensor]) -> Truth:
    """``draws`` by seed."""
    exact, *others = (draws(seed) for seed in (11, 12, 13, 14))
    first, second = (sum(measure(x, exact).value for x in others) / len(others) for measure in MEASURES)
    return Truth(exact, (first, second))


@functools.cache
def product(law: str, w: float) -> Truth:
    """p(x) p(y|x)^w."""
    p = LAWS[law]()
    return truth(lambda seed: p.tempered(CLASS, w, N, seed=seed, dtype=F64))


def distances(x: Tensor, true: Truth) -> dict[str, float]:
    """Sliced W2 and energy distance, each with its standard error and its floor."""
    near, energy = (measure(x, true.exact) for measure in MEASURES)
    return {"sliced_w2": near.value, "stderr": near.stderr, "floor": true.floors[0], "energy": energy.value, "energy_stderr": energy.stderr,
            "energy_floor": true.floors[1]}


def cooled(law: targets.GaussianMixture, T: float, n: int, seed: int) -> Tensor:
    """Exact draws of p^(1/T)/Z, T <= 1: of p, each kept with probability (p/m)^(1/T - 1), m the sum of the components' peaks."""
    bound = (law.weights / (2 * math.pi * torch.linalg.det(law.covs).sqrt())).sum()
    g, kept = torch.Generator().manual_seed(seed), [torch.empty(0, 2, dtype=F64)]
    while sum(map(len, kept)) < n:
        x = law.sample(4096, seed=g, dtype=F64)
        kept.append(x[torch.rand(4096, generator=g, dtype=F64).log() < (1 / T - 1) * (law.log_prob(x) - bound.log())])
    return torch.cat(kept)[:n]


def cell(law: str, method: str, w: float) -> list[Row]:
    """The samples of a method at a scale, against both laws."""
    info = draw(LAWS[law](), method, w)
    return [Row(law, method, w, to, **distances(info.x, product(law, power)), calls=info.nfe) for to, power in ((PRODUCT, w), (GIVEN, 1.0))]


def temperature_cell(law: str, s: str, T: float) -> list[Row]:
    """The unconditional law at a temperature. ``s``: what the scale is."""
    p = targets.Gaussian([0.5, -0.3], 0.49) if law == "gaussian" else LAWS[law]()
    scale = {"s of the data": math.sqrt(float(p.cov.trace()) / 2), "s of a class": math.sqrt(float(p.of_class(0).cov.trace()) / 2),
             "score/T": math.inf}[s]
    info = samples(guidance.temperature(p.score, T, scale))
    return [Row(law, f"temperature, {s}", T, "p(x)^(1/T)", **distances(info.x, truth(lambda seed: cooled(p, T, N, seed))), calls=info.nfe)]


def solver_error(law: str, w: float) -> float:
    """Root mean square change of samples when the steps are doubled."""
    p = LAWS[law]()
    coarse, fine = (samples(guided(p, "classifier-free", w), p.dim, 500, conditions={"y": CLASS}, steps=k * 50).x for k in (1, 2))
    return float((coarse - fine).square().sum(1).mean().sqrt())


def methods(law: str) -> tuple[str, ...]:
    return METHODS if law == WIDE else METHODS[:-1]


def study() -> list[Row]:
    rows = [row for law in LAWS for method in methods(law) for w in SCALES for row in cell(law, method, w)]
    rows += [row for law, s in COOLED for T in TEMPERATURES for row in temperature_cell(law, s, T)]
    return rows + [Row(law, "steps doubled", w, "itself", solver_error(law, w)) for law in LAWS for w in (1.0, 8.0)]


def write(rows: Sequence[Row], path: Path = FILE) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(Row._fields)
        out.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)


def read(path: Path = FILE) -> list[Row]:
    kinds = {"law": str, "method": str, "to": str, "calls": int}
    with open(path, newline="", encoding="utf-8") as file:
        return [Row(**{k: kinds.get(k, float)(v) for k, v in row.items()}) for row in csv.DictReader(file)]


# -- the page ---------------------------------------------------------------------------------------------------------
TEXT = r"""# What guidance samples

Guidance makes a score of scores, so every method and the likelihood work with it:

```python
import torch

from sdediff import VPSDE, guidance, sample, targets

sde, law = VPSDE(), targets.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.3, labels=[0, 1])
score, labels = law.conditional, torch.tensor([0, 1]).repeat(32)    # it takes conditions={"y": ...}; without, it is unconditional
guided = guidance.classifier_free(score, 2.0)
x = sample(sde, guided, shape=(64, 2), nfe=40, conditions={"y": labels})        # 20 evaluations of two calls
print(x[labels == 0].mean(0), x[labels == 1].mean(0))

weaker = targets.Gaussian(law.mean, law.cov).score
guidance.classifier_free(score, 2.0, null={"y": 1})                 # a network with a label that means none
guidance.classifier_free(score, 3.0, interval=(0.2, 2.0))           # guided between these sigma/alpha, one call elsewhere
guidance.classifier_free(score, 6.0, rescale=0.7)                   # x0 brought back to the conditional spread
guidance.autoguidance(score, weaker, 2.0)                           # away from a weaker model of the same law
guidance.classifier(law.score, law.log_posterior, 2.0)              # (x, level) -> logits, see training.train_classifier
guidance.temperature(score, 0.5)                                    # N(m, I) becomes N(m, I/2)
```

On the command line: `sdediff train --data digits --conditional true`, then `sdediff sample runs/digits --class 3 --guidance 2`.

## The law at scale w

With exact scores, w = 1 is p(x|y). Other scales are often said to sample p(x) p(y|x)^w. They do not: that law, noised, is another one than
p_t(x) p_t(y|x)^w, whose score guidance follows ([theory](../theory.md#guidance), eqs. (29) and (30)). How much it matters is measured
here with exact scores and posteriors, so that nothing is a network's fault, and a solver whose own error is given below. Sliced W2 of <n>
samples of class <cls> to as many exact draws; the floor is that of two exact sets; **bold** is more than the floor by three standard
errors. Guidance by the exact classifier (autograd through the posterior) and without (two scores) is one law by Bayes' rule; the two
distances differ by less than <roads>, so that one column, "flow", stands for both. "SDE" is the reverse SDE with the same score.
"product" heads distances to p(x) p(y|x)^w, "class" those to p(x|y).

![distances by scale](distances.png)

<tables>At w = 1 every entry is at the floor; from w = 4 on the flow and the SDE miss the product on every law. They miss it also where the
classes hardly overlap (two moons): there p(x) p(y|x)^w is nearly p(x|y) whatever w, but noised they do overlap, and guidance pushes. The
flow and the SDE, which share their law at w = 1, differ at other scales: a guided score is that of no noised law. An interval takes part
of the push away.
`rescale` is for events of many numbers: of two coordinates the spread may vanish, and the factor grows without bound.

![samples at w = 4](samples.png)

Energy distances say the same; they are in [guidance.csv](../../benchmarks/results/guidance.csv). When the solver's steps are doubled the
samples move by <solver> (root mean square, the greatest of all laws, at w = 1 and w = 8).

## Temperature

Against p(x)^(1/T). On a Gaussian it is exact; elsewhere it hangs on the s that is said.

<cold>
Computed by `benchmarks/guidance.py` (<sde>, `<method>` with <steps> steps; the SDE column `<sde_method>` with <sde_steps>).
"""


def _cell(row: Row) -> str:
    text = f"{row.sliced_w2:.3f}"
    return f"**{text}**" if row.sliced_w2 > row.floor + 3 * row.stderr else text


def page(rows: Sequence[Row]) -> str:
    by = {(r.law, r.method, r.scale, r.to): r for r in rows}
    tables, short = "", {"classifier-free": "flow", "classifier-free, SDE": "SDE"}
    for law in LAWS:
        shown = methods(law)[1:]
        heads = [short.get(method, method) for method in (*shown, "floor")]
        heads = [f"product: {heads[0]}", *heads[1:], f"class: {heads[0]}", *heads[1:]]
        tables += f"**{law}**\n\n| w | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n"
        for w in SCALES:
            row = [by[law, method, w, to] for to in (PRODUCT, GIVEN) for method in shown]
            texts = [_cell(r) for r in row]
            texts[len(shown):len(shown)] = [f"{row[0].floor:.3f}"]
            tables += f"| {w:g} | {' | '.join(texts)} | {row[-1].floor:.3f} |\n"
        tables += "\n"
    roads = max(abs(by[law, "classifier", w, PRODUCT].sliced_w2 - by[law, "classifier-free", w, PRODUCT].sliced_w2)
                for law in LAWS for w in SCALES)
    cold = f"| law, s | {' | '.join(f'T = {T:g}' for T in TEMPERATURES)} |\n|---|{'---|' * len(TEMPERATURES)}\n"
    for law, s in COOLED:
        found = [by[law, f"temperature, {s}", T, "p(x)^(1/T)"] for T in TEMPERATURES]
        cold += f"| {law}, {s} | {' | '.join(f'{_cell(r)} (floor {r.floor:.3f})' for r in found)} |\n"
    worst = max(r.sliced_w2 for r in rows if r.to == "itself")
    text = TEXT
    for key, value in {"n": N, "cls": CLASS, "tables": tables, "cold": cold, "solver": f"{worst:.1e}", "roads": f"{max(roads, 1e-6):.0e}",
                       "sde": type(SDE).__name__, "method": ODE["method"], "steps": ODE["steps"], "sde_method": SDE_RUN["method"],
                       "sde_steps": SDE_RUN["steps"]}.items():
        text = text.replace(f"<{key}>", str(value))
    return text


def figures(rows: Sequence[Row]) -> None:
    """distances.png and samples.png."""
    looks = dict(zip(METHODS, ((BLUE, "o", "-"), (VERMILLION, "x", "--"), (GREEN, "s", "-"), (ORANGE, "^", "-"), (PURPLE, "v", "-"))))
    with _style():
        figure = _figure(11.0, 4.8, layout="constrained")
        axes = figure.subplots(2, len(LAWS), sharex=True)
        for i, to in enumerate((PRODUCT, GIVEN)):
            for ax, law in zip(axes[i], LAWS):
                for method, (colour, marker, line) in looks.items():
                    mine = [r for r in rows if (r.law, r.method, r.to) == (law, method, to)]
                    if not mine:
                        continue
                    ax.plot([r.scale for r in mine], [r.sliced_w2 for r in mine], color=colour, marker=marker, ls=line, ms=4, lw=1.1,
                            label=method)
                floor = [r for r in rows if (r.law, r.method, r.to) == (law, "classifier-free", to)]
                ax.plot([r.scale for r in floor], [r.floor for r in floor], color=MUTED, ls=":", lw=1.2, label="floor")
                ax.set_xscale("symlog", base=2, linthresh=0.5)
                ax.set(yscale="log", xticks=SCALES, xticklabels=[f"{w:g}" for w in SCALES])
                ax.minorticks_off()
                ax.set_title(f"{law}: to {to}", loc="left")
                if i:
                    ax.set_xlabel("guidance scale w")
            axes[i][0].set_ylabel("sliced $W_2$")
        figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        figure.savefig(PAGE / "distances.png")
    w, panels, n = 4.0, [], 1500
    for law in ("three classes", "two moons"):
        p = LAWS[law]()
        panels += [plots.Panel(f"{law}: p(x|y)", p.of_class(CLASS).sample(n, seed=3)),
                   plots.Panel(f"p(x) p(y|x)^{w:g}, exact", p.tempered(CLASS, w, n, seed=3)),
                   plots.Panel(f"guided, w = {w:g}", draw(p, "classifier-free", w).x[:n]),
                   plots.Panel(f"guided, w = {w:g}, interval", draw(p, "interval", w).x[:n])]
    clouds(panels, 4)


def clouds(panels: Sequence[plots.Panel], columns: int) -> None:
    """Panels of points, the rows on axes of their own."""
    with _style():
        figure = _figure(9.0, 2.35 * (len(panels) // columns), layout="constrained")
        for i, row in enumerate(figure.subplots(len(panels) // columns, columns, sharex="row", sharey="row")):
            for ax, panel in zip(row, panels[columns * i:]):
                ax.plot(*panel.x.T.numpy(), ".", color=BLUE, ms=2.2, alpha=0.4, mew=0)
                ax.set_title(panel.title, loc="left")
                ax.set_aspect("equal", adjustable="box")
        figure.savefig(PAGE / "samples.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="the page alone, from the results")
    if not parser.parse_args().page:
        write(study())
    PAGE.mkdir(exist_ok=True)
    (PAGE / "README.md").write_text(page(read()), encoding="utf-8")
    figures(read())


if __name__ == "__main__":
    main()
