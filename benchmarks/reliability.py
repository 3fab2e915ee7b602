"""How the library answers wrong and unusual calls: every case of ``sdediff.testing.census``, by public entry point.

    python benchmarks/reliability.py            # some four minutes; writes results/reliability*.csv and docs/reliability/README.md
"""
from __future__ import annotations

import csv
import pathlib
import warnings
from collections import Counter

from sdediff.testing import census, doors
from sdediff.testing.domains import cases, trial

ROOT = pathlib.Path(__file__).parent
TABLE, FILES = ROOT / "results" / "reliability.csv", ROOT / "results" / "reliability_files.csv"
PAGE = ROOT.parent / "docs" / "reliability" / "README.md"
KINDS = ("refused", "served", "unclear", "silent")


def measured() -> list[dict[str, object]]:
    """A row for each entry point."""
    rows = []
    for name, door in census.DOORS.items():
        found, tried = Counter[str](), 0
        for case in cases(door):
            outcome = trial(case, lambda: doors.NETWORK.calls)
            tried += 1
            found[outcome.kind if outcome.kind in ("refused", "silent") or not case.wrong else "unclear"] += 1
        rows.append({"entry": name, "cases": tried, **{kind: found[kind] for kind in KINDS}})
    return rows


def table(of: str, rows: list[dict[str, object]]) -> str:
    """A Markdown table of rows, their total first."""
    line = lambda row: f"| {row['entry']} | " + " | ".join(str(row[key]) for key in ("cases", *KINDS)) + " |"
    return "\n".join((f"| {of} | cases | refused | served | unclear | silent |", "|---|---|---|---|---|---|",
        *map(line, (total(rows), *rows))))


def total(rows: list[dict[str, object]]) -> dict[str, object]:
    """The sum of all rows."""
    return {"entry": "**all**", **{key: sum(int(str(row[key])) for row in rows) for key in ("cases", *KINDS)}}


def page(rows: list[dict[str, object]], damaged: list[dict[str, object]]) -> str:
    """The page, from the two tables alone."""
    return f"""# Wrong calls and unusual ones

Every argument of the public callables below has a declared domain: a type, a range, finiteness, an order, a shape
(`sdediff/testing/doors.py`).
From these domains calls are made, {total(rows)['cases']} of them: for each argument in turn, a valid call with that argument replaced.
What came back is counted below, by entry point ({len(rows)} of them, the options of every method included).

*How it is counted.* Values outside a domain are one pool of wrong things (no value, True, whole numbers and fractions of both signs, NaN,
both infinities, a complex number, an integer beyond all floats, strings, bytes, empty and wrong containers, an object and a class, tensors
that are integer, complex, Boolean or not finite), and the domain's own edges (just below and above a range, a float for an integer, a
Boolean for a number, a wrong rank, times that rise, repeat or leave the span, lists that are too long), less what the domain holds.
A wrong call is *refused* if the library itself raised TypeError or ValueError that names the argument, the value and what was expected,
before the first call of a network, within a second, with the random states of torch, numpy and Python, the grad mode and the default
dtype as they were. It is *silent* if it returned, and *unclear* if anything else happened. Values inside a domain, its ends and its unusual
members (an empty batch, ranks 1 to 5, half precision, a list of times, infinity where it has a meaning), are to be *served*; one that is
not counts as unclear. `tests/test_refusals.py` asks for no other answer than these two; a new public callable or argument that has no
domain fails there too.

What a network may do wrong, and what a caller may raise, is in `tests/test_faults.py`; layouts, modes, dtypes, gradients, threads, copies
and processes, and that work ends whatever the score, in `tests/test_unusual.py`; files, checkpoints and interruptions in
`tests/test_durability.py`. The methods of networks and results, the modules behind the commands (`sdediff.runs`, `sdediff.cli`), those
that the loops run on (`execution`, `chunks`, `ranks`, `plans`) and an argument that is a mapping beyond its names are not in this table.
Of entry points that train, draw or measure for seconds the valid call is made and every wrong one, and of the values inside the domains
that call's alone.

## By public entry point

{table('entry point', rows)}

## By reader of files

Each reader is given its own valid files with bits turned, pieces cut out, doubled, moved or put in, and files made for harm
(`sdediff/testing/fuzz.py`, which says what counts as what).

{table('reader', damaged)}

Made by `python benchmarks/reliability.py`; the numbers are those of `benchmarks/results/reliability.csv`
and `reliability_files.csv`.
"""


def files() -> list[dict[str, object]]:
    """A row for each reader of files, on damaged and forged ones."""
    from sdediff.testing import fuzz
    return [{"entry": row.entry, "cases": row.tried, **{kind: getattr(row, kind) for kind in KINDS}} for row in fuzz.rows()]


def read(path: pathlib.Path) -> list[dict[str, object]]:
    """A committed table."""
    with path.open() as file:
        return [dict(row) for row in csv.DictReader(file)]


def write(path: pathlib.Path, rows: list[dict[str, object]]) -> None:
    """Writes a table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("entry", "cases", *KINDS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write(TABLE, measured())
    write(FILES, files())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(read(TABLE), read(FILES)))
    for found in (read(TABLE), read(FILES)):
        print(total(found), *(row for row in found if row["unclear"] != "0" or row["silent"] != "0"), sep="\n")
