"""The pages docs/choosing.md, docs/peers.md and docs/performance.md, computed from benchmarks/results.

    python benchmarks/pages.py
"""
from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tuning import BUDGETS, FILE, Cell, Row, by_cell, read
from benchmarks.tuning_page import TUNED
from sdediff.bench import findings, study
from sdediff.bench.findings import MOMENT, PATH, SLICED, Results, code, listed, number, ranking

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs"
NEEDS = [
    ["samples, and nothing is known",
     'nothing: `method="auto"` is the default, and `sample_info(...).explain` says what it chose and why'],
    ["the least error for so many calls of one model", "`sdediff.tune`, or `sdediff tune RUN --nfe 10`"],
    ["likelihood, latent codes, interpolation, round trips",
     "a deterministic method: `rk45` to a tolerance, or one of the first table with many calls"],
    ["a network whose own error shows in the samples",
     "try an SDE method too: fresh noise may forget earlier errors, as on the picture of [the gallery](gallery/README.md)"],
    ["classes, text, a weaker model", "any method, with [guidance](guidance/README.md); each call then costs two"],
    ["measurements, missing parts", "[a posterior sampler](inverse/README.md)"],
    ["the published algorithm", "its name in [the catalogue](catalogue.md): `ddpm`, `ddim`, `dpm++2m`, `unipc-3`, ..."],
]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


# -- choosing -----------------------------------------------------------------------------------------------------------------------
def best(results: Results, metric: str, kind: str, baseline: str) -> Callable[[int], str]:
    """A cell of the table: who is first at a budget, up to two of those not told apart, and how far ahead of a baseline."""
    standing = ranking(results, metric, kind)

    def cell(budget: int) -> str:
        places = [(who, place) for who, place in standing.at(budget) if place.complete]
        first = [code(who) for who, place in places if place.rank == 1]
        behind = next(place.ratio for who, place in places if who.method == baseline)
        more = f" and {len(first) - 2} more" if len(first) > 2 else ""
        return f"{', '.join(first[:2])}{more}" + (f" ({number(behind / places[0][1].ratio)})" if behind > 1 else "")

    return cell


def by_process(rows: Sequence[findings.Row], metric: str, kind: str, baseline: str) -> str:
    processes = list(dict.fromkeys(r.process for r in rows))
    cells = [best(Results([r for r in rows if r.process == p]), metric, kind, baseline) for p in processes]
    budgets = ranking(Results(rows), metric, kind).budgets
    return table(["calls", *map(code, processes)], [[str(n), *(cell(n) for cell in cells)] for n in budgets])


def pair(row: Row) -> str:
    return " ".join(filter(None, row[4:7]))


def hindsight(rows: Iterable[Row]) -> dict[Cell, Row]:
    """The least error in each cell."""
    return {cell: min(here, key=lambda r: r.rmse) for cell, here in by_cell(rows).items()}


def single(rows: Sequence[Row], against: dict[Cell, Row]) -> tuple[str, list[float]]:
    """The (method, grid) pair of least median ratio over the cells, of those that ran them all, and its ratios."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row[:3] in against:
            ratios.setdefault(pair(row), []).append(row.rmse / against[row[:3]].rmse)
    whole = max(map(len, ratios.values()))
    return min(((name, found) for name, found in ratios.items() if len(found) == whole), key=lambda item: statistics.median(item[1]))


def choosing() -> str:
    rows = study.read(RESULTS / "reference.csv")
    results, studied = Results(rows), read(FILE)
    ours = [r for r in studied if r.source == "sdediff" and r.method != "auto"]
    auto = {r[:3]: r for r in studied if r.source == "sdediff" and r.method == "auto"}
    tuned = {r[:3]: r for r in read(TUNED)}
    sampled = ranking(results, SLICED, "SDE")
    level = [sum(place.complete and place.rank == 1 for _, place in sampled.at(n)) for n in sampled.budgets]
    lines = []
    for n in BUDGETS:
        here = {cell: row for cell, row in hindsight(ours).items() if cell[2] == n}
        name, fixed = single([r for r in ours if r.calls == n], here)
        share = lambda other, here=here: statistics.median(other[c].rmse / here[c].rmse for c in here)
        lines.append([str(n), code(name), f"{statistics.median(fixed):.2f}", f"{share(auto):.2f}", f"{share(tuned):.2f}"])
    networks = rows_of("tuning_networks.csv")
    left = sorted(float(r["ratio"].split()[0]) for r in networks)
    alike = [said for said in findings.statements(results) if "the best ODE method and the best SDE method" in said]
    return f"""# Choosing a solver

Computed by `benchmarks/pages.py` from the committed results: [the reference run](benchmark/README.md) of
{len({r.method for r in rows})} methods, and [the study of tuned methods](tuning/README.md). Exact scores: what differs is the solver.

## In short

{table(["what for", "take"], NEEDS)}
## Deterministic methods, by calls

The least path error to the exact probability flow, median over {len({c.target for c in results.cases})} targets; in brackets how
many times more `ddim` has. Methods that are not told apart stand together.

{by_process(rows, PATH, "ODE", "ddim")}
## Stochastic methods, by calls

The least W2 error of the output's law on Gaussian data, exact, without Monte Carlo; in brackets how many times more `ddpm` has.

{by_process(rows, MOMENT, "SDE", "ddpm")}
Samples say less: by sliced W2 of {rows[0].n} of them, median over all {len(results.cases)} cases, {listed([str(n) for n in level])} of
{len(sampled.places)} methods are not told apart from the best at {listed([str(n) for n in sampled.budgets])} calls.

## Flow or SDE

{" ".join(alike)}

## Method and grid together

{len(tuned)} cells of targets, processes and calls. The reference is our best untuned method and grid in hindsight, cell by cell; a number
is the median of an error over that. The best single pair is the one with the least such median.

{table(["calls", "best single pair", "its median", "`auto`", "tuned"], lines)}
## Trained networks

The same for networks trained on points and digits, against a fine solution for the same network: tuning leaves
{left[0]:.2f} to {left[-1]:.2f} of the error of the best standard method and grid, in {len(networks)} cells of {networks[0]["calls"]} to
{networks[-1]["calls"]} calls ([the table](tuning/README.md#trained-networks)).
"""


# -- peers --------------------------------------------------------------------------------------------------------------------------
def peers() -> str:
    rows = read(FILE)
    auto = {r[:3]: r for r in rows if r.source == "sdediff" and r.method == "auto"}
    tuned = {r[:3]: r for r in read(TUNED)}
    sources = sorted({r.source for r in rows} - {"sdediff"})
    field = {s: hindsight(r for r in rows if r.source == s) for s in sources}
    field["all of them"] = hindsight(r for r in rows if r.source != "sdediff")
    lines = []
    for source, theirs in field.items():
        pairs = len({r[3:7] for r in rows if r.source == source or (source not in sources and r.source != "sdediff")})
        ratios = [[mine[c].rmse / theirs[c].rmse for c in theirs] for mine in (auto, tuned)]
        lines.append([source, str(pairs), str(len(theirs)),
                      *(f"{statistics.median(found):.2f}, {sum(v < 1 for v in found) / len(found):.0%}" for found in ratios)])
    fixed = []
    for source in (*sources, "sdediff"):
        name, found = single([r for r in rows if r.source == source and r.method != "auto"], field["all of them"])
        fixed.append([source, code(name), str(len(found)), f"{statistics.median(found):.2f}", f"{max(found):.2f}"])
    return f"""# Beside other libraries

Computed by `benchmarks/pages.py` from [the study of tuned methods](tuning/README.md): every configuration of the other libraries on the
same targets, starts, ends and budgets in network calls, exact scores in double, by the RMSE of paths to the exact end of the probability
flow. How to run it, and what is equal and what is theirs: [benchmarks](reproducing.md#sdediff-against-the-others).

## Against their best in hindsight

Their reference is the least error among all (method, grid) pairs of a library, cell by cell; ours are one untuned method, `method="auto"`,
and one tuned method a cell, judged on starts that nothing was fitted to. The median ratio of errors, and the share of cells in which ours
is smaller:

{table(["library", "pairs", "cells", "`auto`", "tuned"], lines)}
## One method and grid for everything

The pair of each library with the least median ratio to the best peer in hindsight, over the cells that it could run:

{table(["library", "pair", "cells", "median", "largest"], fixed)}
## Orders that are not the promised ones

Third-order DPM-Solver++ multistep of two libraries converges at order 2, and one library's exponential Rosenbrock solver at order 1; the
measured errors are [in a table](reproducing.md#where-a-library-s-order-is-not-the-one-promised), and `tests/test_peers.py` fails when a
release changes them.

## What a step costs

In [performance](performance.md), every library in the same run.
"""


# -- performance --------------------------------------------------------------------------------------------------------------------
def crossed(rows: Sequence[dict[str, str]], down: str, across: str, value: str, show: Callable[[str], str]) -> str:
    """One column of a table of results, by two others."""
    found = {(r[down], r[across]): show(r[value]) for r in rows}
    columns = list(dict.fromkeys(r[across] for r in rows))
    return table([down, *columns], [[name, *(found.get((name, c), "") for c in columns)] for name in dict.fromkeys(r[down] for r in rows)])


def performance() -> str:
    over, half, noise = (rows_of(f"{name}.csv") for name in ("overhead", "precision", "noise"))
    over = [r | {"contender": r["contender"].split(" 0.")[0]} for r in over if r["contender"] != "bare"]
    costs = lambda shape, column, digits: crossed([r for r in over if r["shape"] == shape], "method", "contender", column,
                                                  lambda v: f"{float(v):.{digits}f}")
    points, pictures = ([s for s in dict.fromkeys(r["shape"] for r in over) if (s.count("x") == 1) == here] for here in (True, False))
    steps = "".join(f"Batch {s.split('x')[0]}:\n\n{costs(s, 'us_a_step_over_bare', 0)}\n" for s in points)
    steps += "".join(f"A small U-Net on {s}, times bare forwards:\n\n{costs(s, 'ratio_to_bare', 3)}\n" for s in pictures)
    named = {"exact": "exact score", "trained": "trained MLP"}
    half = [r | {"network": f"{named[r['network']]}, {r['dtype']}"} for r in half]
    return f"""# Performance

Computed by `benchmarks/pages.py` from the committed results. All on the CPU, one thread, on a machine that did other work as well: numbers
of one table compare, and a number is good to a few microseconds. What they mean, and how to run them: [benchmarks](reproducing.md).

## What a step costs beyond the network

Microseconds a step over bare forwards of an MLP of {float(over[0]["bare_us_a_call"]):.0f} us a call, {over[0]["steps"]} steps
(`benchmarks/overhead.py`). The minimal loop is the method written by hand; `sdediff` runs from its coefficient table, `readable` its steps
as they are written; compiled, the network is compiled too, and a step may cost less than the bare forward.

{steps}## What half precision costs

Root mean square distance to the samples in float32 from the same starts and noise, over that of the samples, {half[0]["steps"]} steps
(`benchmarks/precision.py`):

{crossed(half, "network", "method", "relative_rms", lambda v: f"{float(v):.4f}")}
## What noise costs

Times `torch.randn` of the same shape, which takes {float(noise[0]["us"]):.0f} us for {noise[0]["shape"]}
(`benchmarks/noise.py`); noise that belongs to samples is `white`, a Brownian path for any grid `path`:

{crossed(noise, "source", "shape", "to_randn", lambda v: number(float(v), 2))}"""


PAGES: dict[str, Callable[[], str]] = {"choosing.md": choosing, "peers.md": peers, "performance.md": performance}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        print(DOCS / name)
