"""The page docs/inverse/README.md and its pictures, computed from benchmarks/results/inverse.csv (``benchmarks/inverse.py page``)."""
from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from benchmarks import inverse as study
from benchmarks.inverse import BUDGETS, CONTESTANTS, PAGE, PARTICLES, PROBLEMS, ZETAS, Row
from sdediff.plots import BLUE, FAINT, GREEN, MUTED, ORANGE, PURPLE, SKY, VERMILLION, _dots, _figure, _style

HEURISTICS = tuple(name for name in CONTESTANTS if name != "exact posterior score" and not name.startswith(("smc", "dps, zeta")))
DPS = "dps (best zeta)"
LAST = BUDGETS[-1]

THEORY = r"""# Inverse problems, each method against the exact posterior

A measurement y = A x + n, n ~ N(0, v I), of a sample whose law a diffusion model knows: what is x? With a Gaussian mixture as the prior the
answer is a mixture again, in closed form (`GaussianMixture.given`), so that every method of posterior sampling has a measured error here,
not a picture.

```python
import torch

import sdediff
from sdediff import inverse, operators

sde, score = sdediff.VPSDE(), sdediff.targets.toy("two-moons").score    # or that of a network
known, y = operators.Mask(torch.tensor([True, False])), torch.full((64, 1), 0.5)        # or Blur, Downsample, Matrix, or your own
guided = inverse.tweedie(score, known, std=0.1)                         # a Score: any method samples it, log_prob too
x = sdediff.sample(sde, guided, shape=(64, 2), method="dpm++2m-sde", steps=100, conditions={"measurement": y})

seen = inverse.observe(score, known, std=0.1)                           # for methods that act on the state
z = sdediff.sample(sde, seen, shape=(64, 2), method="smc", steps=100, conditions={"measurement": y})
print(x.mean(0), z.mean(0))
```

    sdediff inpaint runs/digits --measured upper                            # the same on a trained run

## One formula

Were x_0 given x_t Gaussian with covariance C, the denoiser given y as well would be a Kalman update,

    E[x_0 | x_t, y] = x0 + C A^T (A C' A^T + v I)^{-1} (y - A x0),        C = C' = Cov[x_0 | x_t] = sigma^2/alpha J^T,   J = d x0/d x_t,

which is exact for Gaussian data (a test: to 1e-14). Guidances differ in C, the direction, and C', the uncertainty:

| guidance | C | C' | backward passes a call | source |
| --- | --- | --- | --- | --- |
| `tweedie` | sigma^2/alpha J^T | the same, by conjugate gradients | 1 + iterations | Boys et al. 2023; Rozet et al. 2024 |
| `pigdm` | sigma^2/alpha J^T | r^2 I, r^2 = sigma^2 s^2/(alpha^2 s^2 + sigma^2) | 1 | Song et al. 2023 |
| `plug_in` | sigma^2/alpha J^T | 0 | 1 | Chung et al. 2023, as derived |
| `diffpir` | r^2 I, r = sigma/alpha | the same | 0 | Zhu et al. 2023 |
| `ddnm` | r^2 I, r to infinity | the same: x0 + A^+ (y - A x0) | 0 | Wang et al. 2022 |

Methods that act on the state: `replacement` (Song et al. 2021), `repaint` (Lugmayr et al. 2022), `dps` with the step sizes of its paper
(Chung et al. 2023), `ddrm` (Kawar et al. 2022), and `smc`, twisted sequential Monte Carlo (Wu et al. 2023): particles that are moved by a
guidance, weighted for what is wrong with it, and resampled. It alone is exact in a limit, of many particles and steps; it also
estimates the evidence p(y), without bias (`SampleInfo.diagnostics`).

A network that predicts eps knows x0 at sigma/alpha = k up to k times its error, and the covariance up to k^2 times. `tweedie`, `pigdm` and
the proposals of `smc` therefore take r^2 I above sigma/alpha = 10 s (`trust=`), where x_t says next to nothing of x_0. For the same reason
`tweedie` makes 2 iterations unless it is told otherwise; with exact scores it may make more: 10, in the tables here.
"""


def _best(rows: dict[tuple[str, str, int], Row], problem: str, method: str, calls: int) -> Row:
    """A row; of DPS the best zeta in hindsight."""
    if method != DPS:
        return rows[problem, method, calls]
    return min((rows[problem, f"dps, zeta={z:g}", calls] for z in ZETAS), key=lambda r: r.sliced_w2)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]


def _cell(row: Row) -> str:
    if not math.isfinite(row.sliced_w2) or row.sliced_w2 > 10:
        return "diverged"
    return f"{row.sliced_w2:.3f} ({row.mean_error:.2f}, {row.cov_error:.2f})"


def _methods() -> list[str]:
    return ["exact posterior score", *HEURISTICS, DPS, *(f"smc, {k} particles" for k in PARTICLES)]


def page() -> str:
    """The text, every number of it from the rows."""
    rows = {row[:3]: row for row in study.read()}
    heuristics = [*HEURISTICS, DPS]
    many = f"smc, {PARTICLES[-1]} particles"
    lines = [THEORY, "## What was measured", ""]
    lines += [f"{len(PROBLEMS)} problems, {study.MEASUREMENTS} measurements each, {study.SAMPLES} samples a measurement, exact scores "
              "of the prior under VPSDE; guidances are sampled by `dpm++2m-sde`, the others on the same log-SNR grid. Errors are means "
              "over the measurements; the floor is that of as many exact samples. Every call of `repaint` counts (5 repeats of 2 steps), "
              "and the calls of `smc` are those of one particle.", ""]
    lines += ["## Findings", "", "Each sentence is computed from the rows.", ""]
    for problem in PROBLEMS:
        floor, best = rows[problem, "floor", 0], min(heuristics, key=lambda m: _best(rows, problem, m, LAST).sliced_w2)
        least, smc, exact = _best(rows, problem, best, LAST), rows[problem, many, LAST], rows[problem, "exact posterior score", LAST]
        over = lambda row, floor=floor: f"{row.sliced_w2 / floor.sliced_w2:.1f} times the floor"
        lines.append(f"- **{problem}**, {LAST} calls: of the heuristics `{best}` is nearest to the posterior, at {over(least)}; `smc` with "
                     f"{PARTICLES[-1]} particles is at {over(smc)}, the exact posterior's own score at {over(exact)}.")
    falls = [rows[p, f"smc, {PARTICLES[0]} particles", LAST].sliced_w2 / rows[p, many, LAST].sliced_w2 for p in PROBLEMS]
    lines.append(f"- From {PARTICLES[0]} to {PARTICLES[-1]} particles the error of `smc` at {LAST} calls falls by {min(falls):.1f} to "
                 f"{max(falls):.1f} times.")
    stuck = sum(_best(rows, p, m, LAST).sliced_w2 > 0.8 * _best(rows, p, m, BUDGETS[1]).sliced_w2 for p in PROBLEMS for m in heuristics)
    lines.append(f"- More calls do not remove a bias: in {stuck} of {len(PROBLEMS) * len(heuristics)} cases of a heuristic the error at "
                 f"{LAST} calls is more than 0.8 times that at {BUDGETS[1]}.")
    near = statistics.median(rows[p, "exact posterior score", LAST].sliced_w2 / rows[p, "floor", 0].sliced_w2 for p in PROBLEMS)
    lines.append(f"- It is not the solver: with the posterior's exact score the same method is at {near:.2f} times the floor, in the "
                 "median.")
    lines += ["", "![Error against network calls](errors.png)", "", "![Error of smc against particles](particles.png)", "",
              "![Posterior samples in the plane](plane.png)", ""]
    for problem, what in PROBLEMS.items():
        words = what.words[0].upper() + what.words[1:]
        lines += [f"## {problem[0].upper() + problem[1:]}", "", f"{words}; noise {what.std:g}. For each number of network calls sliced W2 "
                  "to the exact posterior, and in brackets the relative errors of mean and covariance; ESS, the least effective sample "
                  f"size of a cloud on its way, at {LAST} calls.", ""]
        body = [["floor", *[_cell(rows[problem, "floor", 0])] * len(BUDGETS), ""]]
        for method in _methods():
            found = [_best(rows, problem, method, n) for n in BUDGETS]
            ess = found[-1].ess
            body.append([method, *map(_cell, found), "" if ess is None else f"{100 * ess:.0f} %"])
        lines += [*_table(["method", *(f"{n} calls" for n in BUDGETS), "ESS"], body), ""]
    lines += ["Made by `python benchmarks/inverse.py run` and `page`; rows in `benchmarks/results/inverse.csv`.", ""]
    return "\n".join(lines)


def _errors() -> Any:
    rows = {row[:3]: row for row in study.read()}
    styles = {"exact posterior score": (MUTED, "o--"), "tweedie": (BLUE, "o-"), "pigdm": (SKY, "s-"), "diffpir": (GREEN, "^-"),
              DPS: (ORANGE, "D-"), "repaint": (PURPLE, "v-"), "ddrm": (VERMILLION, "x-"),
              f"smc, {PARTICLES[-1]} particles": ("black", "*-")}
    with _style():
        figure = _figure(3.0 * len(PROBLEMS), 3.4)
        for ax, problem in zip(figure.subplots(1, len(PROBLEMS), sharey=True), PROBLEMS):
            for name, (colour, style) in styles.items():
                error = [_best(rows, problem, name, n).sliced_w2 for n in BUDGETS]
                ax.loglog(BUDGETS, error, style, color=colour, ms=4, lw=1.2, label=name)
            ax.axhline(rows[problem, "floor", 0].sliced_w2, color=MUTED, lw=0.8, ls=":")
            ax.set_title(problem, loc="left")
            ax.set_xticks(BUDGETS, labels=[str(n) for n in BUDGETS])
            ax.minorticks_off()
            ax.set_xlabel("network calls")
        figure.axes[0].set_ylabel("sliced W2 to the exact posterior")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(styles), fontsize=8)
        return figure


def _particles() -> Any:
    rows = {row[:3]: row for row in study.read()}
    colours = dict(zip(PROBLEMS, (BLUE, VERMILLION, GREEN, ORANGE, PURPLE)))
    with _style():
        figure = _figure(8.2, 3.2)
        left, right = figure.subplots(1, 2)
        for problem, colour in colours.items():
            found = [rows[problem, f"smc, {k} particles", LAST] for k in PARTICLES]
            floor = rows[problem, "floor", 0].sliced_w2
            left.loglog(PARTICLES, [r.sliced_w2 / floor for r in found], "o-", color=colour, ms=4, label=problem)
            right.semilogx(PARTICLES, [r.ess for r in found], "o-", color=colour, ms=4)
        left.axhline(1, color=MUTED, lw=0.8, ls=":")
        left.set(xlabel="particles", ylabel="sliced W2 / floor")
        right.set(xlabel="particles", ylabel="least effective sample size / particles", ylim=(0, 1.05))
        for ax in (left, right):
            ax.set_xticks(PARTICLES, labels=[str(k) for k in PARTICLES])
            ax.minorticks_off()
        left.legend(fontsize=8)
        return figure


def _plane() -> Any:
    """Samples of one posterior by every kind of method, beside exact ones."""
    problem = "plane, one coordinate"
    g = study.ground(problem)
    shown = ("tweedie", "pigdm", "diffpir", "repaint", "dps, zeta=0.3", "ddrm", f"smc, {PARTICLES[-1]} particles")
    # the measurement whose posterior is least sure of its mode
    entropy = [float(-(p.weights * p.weights.clamp_min(1e-30).log()).sum()) for p in g.posteriors]
    k = max(range(len(entropy)), key=entropy.__getitem__)
    prior = g.prior.sample(3000, seed=1)
    with _style():
        figure = _figure(9.2, 4.9)
        for ax, name in zip(figure.subplots(2, 4, sharex=True, sharey=True).ravel(), ("exact", *shown)):
            x = g.exact[k] if name == "exact" else CONTESTANTS[name].run(g, 100)[0][k]
            _dots(ax, prior, 2, FAINT)
            _dots(ax, x.float(), 5, MUTED if name == "exact" else BLUE, 0.6)
            ax.axvline(float(g.y[k]), color=VERMILLION, lw=0.7, zorder=1)
            upper = float((x[:, 1] > 0).double().mean())
            ax.set_title(name, loc="left", fontsize=9)
            ax.text(0.03, 0.03, f"{100 * upper:.0f} % above 0", transform=ax.transAxes, fontsize=7.5, color=MUTED)
            ax.set(xlim=(-2.3, 2.3), ylim=(-2.5, 2.5))
        figure.suptitle("100 calls; the first coordinate is measured (line)", x=0.01, ha="left", fontsize=10, fontweight="bold")
        return figure


def write() -> None:
    PAGE.mkdir(parents=True, exist_ok=True)
    (PAGE / "README.md").write_text(page())
    with torch.random.fork_rng():
        for name, draw in (("errors", _errors), ("particles", _particles), ("plane", _plane)):
            draw().savefig(PAGE / f"{name}.png")
