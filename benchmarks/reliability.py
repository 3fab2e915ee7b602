"""How the library answers wrong and unusual calls: every case of ``sdediff.testing.doors``, by public entry point.

    python benchmarks/reliability.py            # some two minutes; writes results/reliability.csv and docs/reliability/README.md
"""
from __future__ import annotations

import csv
import json
import pathlib
import warnings
from collections import Counter

from sdediff.testing import doors
from sdediff.testing.domains import cases, trial

ROOT = pathlib.Path(__file__).parent
TABLE, PAGE, MORE = ROOT / "results" / "reliability.csv", ROOT.parent / "docs" / "reliability" / "README.md", ROOT / "results" / "fuzz.json"
KINDS = ("refused", "served", "unclear", "silent")


def measured() -> list[dict[str, object]]:
    """A row for each entry point."""
    rows = []
    for name, door in doors.DOORS.items():
        found, total = Counter[str](), 0
        for case in cases(door):
            outcome = trial(case, lambda: doors.NETWORK.calls)
            total += 1
            found[outcome.kind if outcome.kind in ("refused", "silent") or not case.wrong else "unclear"] += 1
        rows.append({"entry": name, "cases": total, **{kind: found[kind] for kind in KINDS}})
    return rows


def page(rows: list[dict[str, object]]) -> str:
    """The page, from the table alone."""
    line = lambda row: f"| {row['entry']} | " + " | ".join(str(row[key]) for key in ("cases", *KINDS)) + " |"
    total = {"entry": "**all**", **{key: sum(int(str(row[key])) for row in rows) for key in ("cases", *KINDS)}}
    return f"""# Wrong calls and unusual ones

Every argument of every public callable has a declared domain: a type, a range, finiteness, an order, a shape (`sdediff/testing/doors.py`).
From these domains calls are made, {total['cases']} of them: for each argument in turn, a valid call with that argument replaced. What came
back is counted below, by entry point ({len(rows)} of them, the options of every method included).

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
`tests/test_durability.py`. Networks, training, data, plots and the instruments of `sdediff.testing` are not in this table: their arguments
are checked by hand, in the tests of these modules.
{more()}
| entry point | cases | refused | served | unclear | silent |
|---|---|---|---|---|---|
{line(total)}
{chr(10).join(map(line, rows))}

Made by `python benchmarks/reliability.py`; the numbers are those of `benchmarks/results/reliability.csv`.
"""


def more() -> str:
    """What other tests counted of files, where they have left it."""
    if not MORE.exists():
        return ""
    rows = json.loads(MORE.read_text())
    return "\n| files | inputs tried | refused | served |\n|---|---|---|---|\n" + "".join(
        f"| {name} | {row['tried']} | {row['refused']} | {row['served']} |\n" for name, row in rows.items())


def read() -> list[dict[str, object]]:
    """The committed table."""
    with TABLE.open() as file:
        return [dict(row) for row in csv.DictReader(file)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    rows = measured()
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("entry", "cases", *KINDS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(read()))
    print(page(read()).split("|---|\n", 1)[-1].splitlines()[0])
    for row in rows:
        if row["unclear"] or row["silent"]:
            print(row)
