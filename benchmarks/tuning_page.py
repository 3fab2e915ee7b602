"""The page docs/tuning/README.md: how methods are tuned, and what it is worth, computed from benchmarks/results.

    python benchmarks/tuning_page.py
"""
from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tuning import BUDGETS, FILE, GROUPS, PLANE, PROCESSES, TARGETS, Cell, Row, baselines, best_peers, by_cell, read
from sdediff import plots, tuned
from sdediff.plots import BLUE, MUTED, VERMILLION, _figure, _style

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "tuning"
TUNED = RESULTS / "tuning_tuned.csv"

THEORY = r"""# The best answer for a number of network calls

Which method, and which grid, gives the least error for 5, 10 or 20 calls of a network? There are three answers, each better than the one
before: a method that suits data of unit scale, when nothing is known; the exact error of every method on Gaussian data with the data's
spectrum; and a method tuned to the model itself.

## A method is a table

Every fixed-step solver that looks at no norm or Jacobian is linear in its start x, the network's outputs D_i and its noises xi_j:

    x_N = c_0 x + sum c_i D_i + sum c_j xi_j,        D_i = what the network says of an earlier combination u_i, at a level t_i.

The coefficients c and the levels t are functions of the grid. They are read off by running the readable step on symbols
(`sdediff.solvers.tracing`): nothing is written twice. Two things follow.

**The exact error on Gaussian data.** There the network is affine, D = K (u - alpha m) + ..., so the output's law is known: along an
eigenvalue of the data's covariance its gain, its mean and its variance are sums over the table (`sdediff.analysis.gaussian_error`; W2, KL
and path errors in a few milliseconds, without a sample):

```python
import sdediff
from sdediff import analysis

data = sdediff.targets.toy("two-moons").sample(1000, seed=0)
print(analysis.gaussian_error("dpm++2m", sdediff.VPSDE(), nfe=10, spectrum=analysis.spectrum_of(data)).total)
```

**A derivative for any method.** The run is a composition of network calls and combinations. Its derivative in c and t is that of automatic
differentiation (each call recomputed on the way back, so that memory holds states alone), and dc/d theta, dt/d theta are differences of the
float64 table. So the grid of any linear method can be tuned, and no solver was rewritten for it (`sdediff.tuning`; theory, eq. (34)).

## Between x0 and eps: the angle

Multistep methods interpolate what the network says. x0 is nearly constant in noise, eps nearly constant close to the data. With s the
data's standard deviation, m^2 = sigma^2 + alpha^2 s^2, z = x/m and the angle phi = atan2(sigma, s alpha), the probability flow of every
process is

    dz = -F d phi,        F = (sigma x0/s - alpha s eps)/m,

where F is what an EDM network puts out (-v under a variance-preserving process, s = 1): zero on N(0, s^2 I), where any number of steps is
exact. s to infinity is the eps form, s to 0 the x0 form. `angular-2`, `-3`, `-4` interpolate F through as many evaluations.

## Coefficients of one's own

A method with one call a step that is exact on a point mass differs from any other such method by terms that vanish when the evaluations
agree (`sdediff.solvers.NonStationary`; theory, eq. (36)):

    x_{k+1} = Phi(x_k) + alpha_s sum_j a_kj (x0_j - x0_0) + sigma_s sum_j b_kj (eps_j - eps_0).

`sdediff.tune` places the knots first, then fits a and b, each within +-4: whatever they are, a point mass is returned exactly.

*What is minimised.* The mean square of the path errors is decided by the few paths that pass close to the ridge between two modes and may
end in the other: a rough landscape, in which a descent soon stops. In the mean distance every path has a say. So both are minimised, and
what is better by the squares on trajectories that neither saw is kept.

```python
import sdediff

sde, target = sdediff.VPSDE(), sdediff.targets.toy("two-moons")
quick = {"trajectories": 32, "iterations": 5, "starts": 1}              # left out for what is measured below
m = sdediff.tune("auto", sde, target.score, nfe=5, data=target.sample(300, seed=0), **quick)
x = sdediff.sample(sde, target.score, shape=(1000, 2), method=m, nfe=5, seed=0)
print(m.gain)                                                           # before and after, on starts that nothing saw
```

    sdediff tune RUN --nfe 5 10 20                              # for a trained run; then sdediff sample RUN --method tuned --nfe 10
"""


def main() -> None:
    PAGE.mkdir(parents=True, exist_ok=True)
    (PAGE / "README.md").write_text(page())
    _errors(*_contest(read(FILE), read(TUNED))).savefig(PAGE / "errors.png")
    _grids().savefig(PAGE / "grids.png")
    print(PAGE / "README.md")


def _contest(rows: Sequence[Row], own: Sequence[Row]) -> tuple[dict[Cell, Row], ...]:
    """By cell: the baseline, the best peer, auto, the tuned method."""
    auto = {r[:3]: r for r in rows if r.source == "sdediff" and r.method == "auto"}
    return baselines(rows), best_peers(rows), auto, {r[:3]: r for r in own}


def page() -> str:
    """The page, every number of it from the results."""
    rows = read(FILE)
    base, best, auto, mine = _contest(rows, read(TUNED))
    text = [THEORY, "## What it is worth\n"]
    plane, high = ([t for t in TARGETS if (t in PLANE) == here] for here in (True, False))
    peers = len({r[3:7] for r in rows if r.source != "sdediff"})
    text.append(f"""Exact scores; {len(TARGETS)} targets ({', '.join(plane)} in the plane; {', '.join(high)}), {len(PROCESSES)} processes,
{', '.join(map(str, BUDGETS))} calls. RMSE of the paths to the exact end of the probability flow, on trajectories that nothing was fitted to
or chosen on. *Best peer*: the least error, in hindsight, of {peers} (method, grid) pairs of diffusers, k-diffusion and azula, cell by cell.
*Baseline*: exponential Adams-Bashforth 4 (eps form) on log-SNR, the best single pair in the sketch that this study began with. *auto*:
`method="auto"` when nothing is known of the data. *Tuned*: `sdediff.tune`, two starts, 1024 trajectories to fit and as many to choose on;
the mean distance beside the mean square for the three targets of unequal modes (modes, mixture-16, digits-64) under VPSDE and DDPM-table at
8 to 20 calls, which are the cells that it was introduced for (mixture-16 at 8 calls from six starts), elsewhere the square alone.
""")
    text += _ratios("Tuned methods over the best peer in hindsight", mine, best)
    typical = {c: min((r for r in here if r.source != "sdediff"), key=lambda r: r.median) for c, here in by_cell(rows).items()}
    text.append("The RMSE of a mixture is that of the few paths that end in another mode than they should. By the *median* path error, "
                "against the peer that is best in it, cell by cell:\n")
    text += _ratios("Tuned methods over the best peer, by the median path error", mine, typical, "median")
    text += _ratios("Untuned auto over the baseline", auto, base)
    text += _ratios("Untuned auto over the best peer in hindsight", auto, best)
    above = sorted(((mine[c].rmse / best[c].rmse, c) for c in mine if c in best and mine[c].rmse > 1.1 * best[c].rmse), reverse=True)
    text.append(f"Tuned cells above 1.1 times the best peer: {len(above)} of {len(mine)}"
                + ("; " + ", ".join(f"{_name(c)} ({r:.2f})" for r, c in above) if above else "") + ".\n")
    over = sorted(((auto[c].rmse / base[c].rmse, c) for c in auto if c in base and auto[c].rmse > 1.3 * base[c].rmse), reverse=True)
    text += _again()
    text.append(f"Cells of auto above 1.3 times the baseline: {len(over)} of {len(auto)}"
                + ("; " + ", ".join(f"{_name(c)} ({r:.2f})" for r, c in over) if over else "") + ".\n")
    text.append("![errors against calls](errors.png)\n\n![grids](grids.png)\n")
    text.append("## Every cell\n\nRMSE of the baseline, the best peer, auto, the tuned method.\n")
    for process in PROCESSES:
        text.append(f"### {process}\n")
        text += _table(["target", *(f"{n} calls" for n in BUDGETS)],
                       [[target, *(" / ".join(_number(of.get((target, process, n))) for of in (base, best, auto, mine)) for n in BUDGETS)]
                        for target in TARGETS])
    for extra in (_stochastic, _predicted, _networks):
        text += extra()
    return "\n".join(text).rstrip() + "\n"


def _name(cell: Cell) -> str:
    return f"{cell[0]}, {cell[1]}, {cell[2]} calls"


def _number(row: Row | None) -> str:
    return f"{row.rmse:.2g}" if row else "-"


def _ratios(title: str, a: dict[Cell, Row], b: dict[Cell, Row], error: str = "rmse") -> list[str]:
    groups: list[tuple[str, Callable[[Cell], bool]]] = list(GROUPS.items())
    lines = []
    for name, where in groups:
        ratios = [getattr(a[c], error) / getattr(b[c], error) for c in a if c in b and where(c)]
        if ratios:
            lines.append([name, str(len(ratios)), f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}"])
    return [f"**{title}**\n", *_table(["cells", "how many", "median ratio", "largest"], lines)]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines), ""]


def _csv(name: str) -> list[dict[str, str]]:
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _again() -> list[str]:
    rows = _csv("tuning_again.csv")
    if not rows:
        return []
    return ["The best peer of a cell is the best of all on the very trajectories that it is judged on, and where a few paths decide, the "
            "luckiest. The same two methods on other trajectories (`benchmarks/tuned.py --again`):\n",
            *_table(list(rows[0]), [list(r.values()) for r in rows])]


def _stochastic() -> list[str]:
    rows = _csv("tuning_sde.csv")
    if not rows:
        return []
    ratios = [float(r["error of the tuned"]) / float(r["its error"]) for r in rows]
    return ["## Stochastic methods\n",
            "The distance of the output's law, of the best of the field in hindsight and of the tuned method: exact on the Gaussian, of "
            f"samples beside their floor in the plane (`benchmarks/tuned_sde.py`). Median ratio {statistics.median(ratios):.2f}, largest "
            f"{max(ratios):.2f}; where both stand at the floor a ratio says nothing.\n",
            *_table(list(rows[0]), [list(r.values()) for r in rows])]


def _predicted() -> list[str]:
    from scipy.stats import spearmanr
    rows = [r for r in _csv("predicted.csv") if r["kind"] == "ODE"]
    if not rows:
        return []
    surrogates = [name for name in rows[0] if name not in ("target", "kind", "nfe", "method", "grid", "measured", "median")]
    lines = []
    for target, nfe in dict.fromkeys((r["target"], r["nfe"]) for r in rows):
        here = [r for r in rows if (r["target"], r["nfe"]) == (target, nfe)]
        found = [spearmanr(*([float(r[name]) for r in here] for name in ("measured", s))).statistic for s in surrogates]
        lines.append([target, nfe, str(len(here)), *(f"{v:.2f}" for v in found)])
    return ["## Does the predicted error rank methods as the measured one does?\n",
            "Spearman's rank correlation of the error predicted on a Gaussian surrogate with the measured path RMSE, over methods and "
            "grids (`benchmarks/predicted.py`, which says what the surrogates are, and prints the same for stochastic methods).\n",
            *_table(["target", "calls", "pairs", *surrogates], lines)]


def _networks() -> list[str]:
    rows = _csv("tuning_networks.csv")
    if not rows:
        return []
    return ["## Trained networks\n",
            "Error against a fine solution for the same network, before (the best standard method and grid) and after tuning, on starts "
            "that nothing was fitted to; and the sliced W2 of samples to held-out data, with its floor (`benchmarks/tuned_networks.py`).\n",
            *_table(list(rows[0]), [list(r.values()) for r in rows])]


def _errors(*kinds: dict[Cell, Row]) -> Any:
    marks = ((":", "", MUTED, "baseline"), ("--", "v", MUTED, "best peer in hindsight"), ("-", "o", BLUE, "auto, untuned"),
             ("-", "s", VERMILLION, "tuned"))
    with _style():
        figure = _figure(9.0, 4.4)
        axes = figure.subplots(2, 4, sharex=True)
        for ax, target in zip(axes.flat, TARGETS):
            for of, (line, marker, colour, label) in zip(kinds, marks):
                found = [(n, of[target, "VPSDE", n].rmse) for n in BUDGETS if (target, "VPSDE", n) in of]
                if found:
                    ax.plot(*zip(*found), line, marker=marker, color=colour, ms=3.5, lw=1.2, label=label)
            ax.set(xscale="log", yscale="log")
            ax.set_title(target, loc="left")
            ax.set_xticks(BUDGETS, labels=[str(n) for n in BUDGETS])
            ax.minorticks_off()
        for ax in axes[-1]:
            ax.set_xlabel("network calls")
        for ax in axes[:, 0]:
            ax.set_ylabel("path RMSE [data units]")
        axes.flat[3].tick_params(labelbottom=True)
        axes.flat[-1].axis("off")
        axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", fontsize=9)
        figure.suptitle("Error against calls, VPSDE", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        return figure


def _grids() -> Any:
    """The tuned grids of the ring beside the standard ones."""
    from benchmarks.tuning import PROCESSES as processes
    methods = tuned.read(RESULTS / "tuned" / "ring-VPSDE.json")
    return plots.tuned(processes["VPSDE"][0](), {n: m for n, m in methods.items() if n <= 20}, "ring, VPSDE")


if __name__ == "__main__":
    main()
