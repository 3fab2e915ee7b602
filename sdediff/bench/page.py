r"""The pages of a benchmark: index.html, which holds its pictures and needs no network; README.md beside figures/ with the same tables.

    OUT/results.csv     in   the rows, one a (cell, metric)
    OUT/study.json      in   command, versions and failures of the study; may be absent
    OUT/budget.json     in   the error budget of a trained model; may be absent
    OUT/samples/*.npz   in   x (n, 2), samples of the cell of that name; may be absent
    OUT/index.html, README.md, figures/*.png    out

Every number and every sentence that holds one is computed from those files (``findings``). A page is a list of blocks, written twice: once
as HTML, once as Markdown.
"""
from __future__ import annotations

import base64
import html
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import files, metrics
from . import cells, figures, findings, study
from .findings import (
    KINDS,
    MEDIAN,
    MOMENT,
    NAMES,
    PATH,
    ROUNDING,
    SHORT,
    SLICED,
    TAIL,
    Case,
    Contestant,
    Ranking,
    Results,
    Row,
    code,
    number,
)
from .study import BUDGET, RESULTS, STUDY

SAMPLES = "samples"


# -- blocks ----------------------------------------------------------------------------------------------------------------------
class Heading(NamedTuple):
    """``level`` 1 is the page's title."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph; `backticks` are code."""

    text: str


class Items(NamedTuple):
    """A list."""

    texts: Sequence[str]


class Shell(NamedTuple):
    """Lines to be copied."""

    text: str


class Table(NamedTuple):
    """``rows`` of texts, as many each as the head has; the first ``left`` columns are words, the others numbers. A text that starts with
    an asterisk is strong. Rows past ``shown`` are folded away."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    caption: str = ""
    shown: int = 25

    @property
    def parts(self) -> list[Table]:
        """The table, or what is shown of it and what is folded."""
        if len(self.rows) <= self.shown + 5:
            return [self]
        return [self._replace(rows=self.rows[:self.shown]), self._replace(rows=self.rows[self.shown:], caption="", shown=len(self.rows))]


class Picture(NamedTuple):
    """A PNG, with what it shows in words."""

    name: str
    caption: str
    png: bytes


Block = Heading | Text | Items | Shell | Table | Picture


# -- HTML ------------------------------------------------------------------------------------------------------------------------
CSS = """
:root { color-scheme: light; --ink: #22262b; --muted: #6b7480; --faint: #dfe3e7; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .8rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .5rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 46rem; } li { margin: .25rem 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em; }
pre { background: #f4f6f8; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }
nav { font-size: .92rem; } nav a { margin-right: 1rem; white-space: nowrap; display: inline-block; } a { color: #005a8c; }
.wide { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: 0 0 .35rem; max-width: 46rem; }
th, td { padding: .22rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
th.w, td.w { text-align: left; white-space: normal; }
thead th { border-bottom: 1.2px solid var(--ink); vertical-align: bottom; }
tbody tr { border-bottom: 1px solid var(--faint); } tbody td:first-child { min-width: 7rem; }
figure { margin: .8rem 0 1.2rem; } figure img { display: block; width: 100%; max-width: 60rem; height: auto; }
summary { color: #005a8c; font-size: .88rem; cursor: pointer; }
figcaption { color: var(--muted); font-size: .86rem; max-width: 46rem; margin-top: .3rem; }
@media (max-width: 44rem) { body { font-size: 15px; padding: .8rem .7rem 3rem; } figure .wide img { min-width: 42rem; } }
@page { margin: 16mm 14mm; }
@media print {
  html { font-size: 9.5pt; } body { max-width: none; padding: 0; font-size: 1rem; } nav { display: none; }
  p, ul, caption, figcaption { max-width: none; } table { font-size: 7pt; } table.many { font-size: 5.7pt; }
  th, td { padding: .12rem .35rem; } .many th, .many td { padding: .1rem .2rem; }
  .many th { white-space: normal; overflow-wrap: anywhere; }
  thead { display: table-header-group; } tr, figure, pre { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; } figure img { max-width: 100%; min-width: 0; } a { color: inherit; text-decoration: none; }
}
"""


def _marked(text: str) -> str:
    """Escaped, with code for what stands in backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _cell(tag: str, text: str, words: bool) -> str:
    strong = text.startswith("*")
    inner = f"<strong>{_marked(text[1:])}</strong>" if strong else _marked(text)
    kind = ' class="w"' if words else ""
    return f"<{tag}{kind}>{inner}</{tag}>"


def _table(table: Table) -> str:
    line = lambda tag, row: "<tr>" + "".join(_cell(tag, text, k < table.left) for k, text in enumerate(row)) + "</tr>"
    caption = f"<caption>{_marked(table.caption)}</caption>" if table.caption else ""
    body = "\n".join(line("td", row) for row in table.rows)
    many = ' class="many"' if len(table.head) > 6 and table.left == 1 else ""
    return f'<div class="wide"><table{many}>{caption}<thead>{line("th", table.head)}</thead>\n<tbody>{body}</tbody></table></div>'


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The whole page in one string that refers to nothing outside it."""
    body, contents = list[str](), list[str]()
    for block in blocks:
        if isinstance(block, Heading):
            anchor = f"s{len(contents) + 1}"
            identity = f' id="{anchor}"' if block.level == 2 else ""
            body.append(f"<h{block.level}{identity}>{_marked(block.text)}</h{block.level}>")
            if block.level == 2:
                contents.append(f'<a href="#{anchor}">{_marked(block.text)}</a>')
        elif isinstance(block, Text):
            body.append(f"<p>{_marked(block.text)}</p>")
        elif isinstance(block, Items):
            body.append("<ul>" + "".join(f"<li>{_marked(text)}</li>" for text in block.texts) + "</ul>")
        elif isinstance(block, Shell):
            body.append(f"<pre>{html.escape(block.text)}</pre>")
        elif isinstance(block, Table):
            first, *folded = (_table(part) for part in block.parts)
            body.append(first)
            body += [f"<details><summary>{len(block.rows) - block.shown} more</summary>{rest}</details>" for rest in folded]
        else:
            data = base64.b64encode(block.png).decode("ascii")
            body.append(f'<figure><div class="wide"><img alt="{html.escape(block.caption)}" src="data:image/png;base64,{data}"></div>'
                        f"<figcaption>{_marked(block.caption)}</figcaption></figure>")
    nav = [f"<nav>{' '.join(contents)}</nav>"] if len(contents) > 1 else []
    return "\n".join(['<!DOCTYPE html>', '<html lang="en"><head><meta charset="utf-8">',
                      '<meta name="viewport" content="width=device-width, initial-scale=1">',
                      f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body>",
                      body[0], *nav, *body[1:], "</body></html>", ""])


# -- Markdown --------------------------------------------------------------------------------------------------------------------
def _escaped(text: str) -> str:
    """Escaped outside backticks; a bar is escaped everywhere, as GitHub's tables ask for."""
    parts = text.split("`")
    plain = [re.sub(r"([\\*_<>\[\]#~])", r"\\\1", part) if k % 2 == 0 else part for k, part in enumerate(parts)]
    return "`".join(plain).replace("|", "\\|")


def _lines(table: Table) -> list[list[str]]:
    cell = lambda text: f"**{_escaped(text[1:])}**" if text.startswith("*") else _escaped(text)
    head, *rows = ([cell(text) for text in row] for row in (table.head, *table.rows))
    return [head, ["---" if k < table.left else "--:" for k in range(len(head))], *rows]


def as_markdown(blocks: Sequence[Block]) -> str:
    """The same page; pictures are files under figures/."""
    found = []
    for block in blocks:
        if isinstance(block, Heading):
            found.append("#" * block.level + " " + _escaped(block.text))
        elif isinstance(block, Text):
            found.append(_escaped(block.text))
        elif isinstance(block, Items):
            found.append("\n".join(f"- {_escaped(text)}" for text in block.texts))
        elif isinstance(block, Shell):
            found.append("```\n" + block.text.replace("```", "'''") + "\n```")
        elif isinstance(block, Table):
            first, *folded = ("\n".join(f"| {' | '.join(line)} |" for line in _lines(part)) for part in block.parts)
            found += [_escaped(block.caption)] if block.caption else []
            found.append(first)
            found += [f"<details><summary>{len(block.rows) - block.shown} more</summary>\n\n{rest}\n\n</details>" for rest in folded]
        else:
            found.append(f"![{_escaped(block.caption.replace('`', ''))}](figures/{block.name}.png)")
    return "\n\n".join(found) + "\n"


# -- what the page says ----------------------------------------------------------------------------------------------------------
def write(out: str | Path) -> Path:
    """Make index.html, README.md and figures/ from the rows and the documents in ``out``; returns the path of index.html.

    A study without a finished cell gives pages that say so. Raises ValueError where results.csv lacks a column or holds no number where
    one is expected.
    """
    out = Path(out)
    rows = study.read(out) if (out / RESULTS).is_file() else []
    document = _json(out / STUDY)
    scores = {name: Results(group) for name, group in _grouped(rows).items()}
    budgets = _budgets(_json(out / BUDGET))
    alone = bool(budgets) and not rows and not document
    title = "Whose error is it?" if alone else "Solvers of score-based diffusion on exact targets: work and precision"
    blocks: list[Block] = [Heading(1, title)]
    blocks += _findings(scores)
    blocks += [] if alone else _what_ran([r for results in scores.values() for r in results.rows], document)
    for score, results in scores.items():
        blocks += _of_a_score(results, score, out, alone=len(scores) == 1)
    blocks += budgets
    blocks += _failures(document)
    folder = out / "figures"
    pictures = [block for block in blocks if isinstance(block, Picture)]
    if pictures:
        folder.mkdir(exist_ok=True)
    for picture in pictures:
        files.write(folder / f"{picture.name}.png", picture.png)
    files.write(out / "README.md", as_markdown(blocks))
    files.write(out / "index.html", as_html("sdediff bench", blocks))
    for old in set(folder.glob("*.png")) - {folder / f"{picture.name}.png" for picture in pictures}:
        old.unlink()
    return out / "index.html"


def _grouped(rows: Sequence[cells.Row]) -> dict[str, list[cells.Row]]:
    """The rows by score; all networks under one name, unless two of them are of one process and target."""
    networks: dict[Case, set[str]] = {}
    for r in rows:
        if r.score != "exact":
            networks.setdefault(Case(r.process, r.target), set()).add(r.score)
    several = len(set().union(*networks.values())) > 1 and all(len(names) == 1 for names in networks.values())
    found: dict[str, list[cells.Row]] = {}
    for r in rows:
        found.setdefault("network" if several and r.score != "exact" else r.score, []).append(r)
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _named(values: Iterable[Any]) -> str:
    return ", ".join(code(v) for v in dict.fromkeys(values))


def _findings(scores: Mapping[str, Results]) -> list[Block]:
    said = []
    for score, results in scores.items():
        behind = "" if len(scores) == 1 else f"Score {code(score)}. "
        said += [behind + sentence for sentence in findings.statements(results)]
    return [Heading(2, "Findings"), Text("Each sentence is computed from the rows."), Items(said)] if said else []


def _what_ran(rows: Sequence[Row], document: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    blocks.append(Heading(2, "What was run"))
    if document.get("command"):
        blocks.append(Shell(document["command"]))
    if document.get("versions"):
        blocks.append(Text("Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + "."))
    if not rows:
        return [*blocks, Text("No cell has finished yet: there is nothing to show.")]
    methods = {(r.source, r.method) for r in rows}
    sources = dict.fromkeys(["sdediff", *(r.source for r in rows)])
    facts = [("cells", str(len({r.cell for r in rows}))),
             ("methods", ", ".join(f"{count} of {code(s)}" for s in sources if (count := sum(m[0] == s for m in methods)))),
             ("processes", _named(r.process for r in rows)), ("targets", _named(r.target for r in rows)),
             ("grids", _named(r.grid for r in rows if r.grid)), ("score", _named(r.score for r in rows)),
             ("metrics", ", ".join(dict.fromkeys(NAMES.get(r.metric, r.metric) for r in rows))),
             ("network calls per sample (NFE), counted", _spread([r.nfe for r in rows])),
             ("samples a cell, n", _spread([r.n for r in rows])), ("seed", _named(r.seed for r in rows if r.seed is not None))]
    blocks.append(Table(("", "in this study"), [(name, value) for name, value in facts if value], left=2))
    return [*blocks, *_how_errors(rows)]


def _spread(values: Sequence[float | None]) -> str:
    there = [v for v in values if v is not None]
    return "" if not there else f"{min(there):g}" if min(there) == max(there) else f"{min(there):g} to {max(there):g}"


def _how_errors(rows: Sequence[Row]) -> list[Block]:
    scores = {r.score for r in rows}
    measured = {r.metric for r in rows}
    parts = []
    if "exact" in scores:
        parts.append("With an exact score there is no model error: what is left is the solver's error and, where samples are compared, the "
                     "noise of finitely many.")
    if scores - {"exact"}:
        parts.append("With a network's score a distance to exact samples is the whole pipeline's: model error is what remains however many "
                     "calls are spent.")
    if measured & {PATH, MEDIAN}:
        parts.append("Path errors compare each sample of an ODE method with the endpoint of the probability flow from the same start, "
                     "known in closed form or to the accuracy of the reference: solver error, with no noise but the choice of starts.")
    if MOMENT in measured:
        parts.append("On Gaussian targets the mean and covariance that a method produces are computed without sampling: the W2 of exact "
                     "moments is solver error alone.")
    if SLICED in measured:
        parts.append("Sliced W2 and the other distances between samples carry Monte Carlo error, shown by their 95 % interval.")
    with_floor = [r.n for r in rows if r.floor is not None]
    floor = []
    if with_floor:
        size = f" of n = {with_floor[0]}" if len(set(with_floor)) == 1 and with_floor[0] else " of the same size"
        floor.append(f"The floor of a distance is the same distance between two exact samples{size}: no solver can be seen to do better, "
                     "and an error whose interval meets the floor's is as small as these samples can show.")
    if any(r.reach == ROUNDING and r.floor is None for r in rows):
        floor.append(f"The floor of path errors and exact moments is {number(ROUNDING)}, the accuracy of the reference and of rounding.")
    found: list[Block] = []
    if parts:
        found += [Heading(3, "How errors are told apart"), Text(" ".join(parts))]
    if floor:
        found += [Heading(3, "What the floor is"), Text(" ".join(floor))]
    return found


def _of_a_score(results: Results, score: str, out: Path, *, alone: bool) -> list[Block]:
    behind, stem = ("", "") if alone else (f", score {code(score)}", _stem(score) + "-")
    named = figures.marks(findings.highlights(results))
    blocks: list[Block] = [Heading(2, "Ranking at each budget" + behind), *_rankings(results)]
    blocks += [Heading(2, "Work and precision" + behind)]
    if named:
        blocks.append(Text(f"Named are {_named(named)}: the best of each kind over all budgets and cases, one name where methods give the "
                           "same numbers, the first-order baselines, and the best of each other source. Everyone else is grey. Solid lines "
                           "with filled marks are ODE methods, dashed lines with open marks SDE methods; bands are 95 % intervals, drawn "
                           "down to the floor."))
    kept = _kept(results.rows, out)
    for case in results.cases:
        name = f"{stem}{_stem(case.target)}-{_stem(case.process)}"
        blocks.append(Heading(3, f"{case.target} under {case.process}"))
        shown = figures.metrics_of(results, case)
        if shown:
            words = findings.listed([NAMES[m] for m in shown])
            blocks.append(Picture(f"{name}-work-precision", f"{case}: {words} against network calls (left) and seconds (right).",
                                  figures.png(figures.work_precision(results, case, named))))
        blocks += _every_metric(results, case, _few(list(named)))
        if case in kept:
            drawn = _samples([r for r in results.rows if r.case == case], case, kept[case], list(named))
            if drawn is not None:
                blocks.append(Picture(f"{name}-samples", f"{case}: exact samples, and methods at few and at many network calls.",
                                      figures.png(drawn)))
    blocks += _floors(results, behind)
    if score == "exact":
        blocks += _orders(results, stem)
    return blocks


def _stem(name: str) -> str:
    """For a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


# -- tables ----------------------------------------------------------------------------------------------------------------------
def _rankings(results: Results) -> list[Block]:
    blocks: list[Block] = [Text(
        "Error relative to the least error of any method of the kind with the same budget (to the floor where that is larger), median over "
        "the cases (a process and a target). A method stands with the run that used most of the budget, and more than half of it. Bold 1: "
        "not told apart from the best, because its 95 % interval meets the best's or the floor's. In brackets the rank; equal medians "
        "share it. k/m: it ran k of m cases, and is compared on those.")]
    for kind in KINDS:
        for metric in (PATH, SLICED, MOMENT):
            table = findings.ranking(results, metric, kind)
            if table.places:
                blocks.append(ranking_table(table))
    return blocks


def ranking_table(table: Ranking) -> Table:
    """Method by budget, the best over all budgets first."""
    best = ["least error, median over cases", *(number(v) for v in table.best)]
    rows = [[code(who), *(_place(place) for place in places)] for who, places in table.places.items()]
    return Table((f"{table.kind} methods, {NAMES[table.metric]}", *(f"{b} calls" for b in table.budgets)), [best, *rows])


def _place(place: findings.Place | None) -> str:
    if place is None:
        return "-"
    part = "" if place.complete else f", {place.ran}/{place.of}"
    return ("*1" if place.tied else _ratio(place.ratio)) + f" ({place.rank}{part})"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e4 else number(value)


def _few(named: Sequence[Contestant], most: int = 6) -> list[Contestant]:
    """As many as fit a page's width: a guest of each kind, the two best and the baseline, in their order."""
    best: dict[Contestant, int] = {}
    for kind in KINDS:
        mine = [who for who in named if who.kind == kind]
        for place, who in enumerate([w for w in mine if w.source != "sdediff"][:1] + [w for w in mine if w.source == "sdediff"]):
            best[who] = 0 if who.method == findings.BASELINES[kind] else place
    kept = sorted(best, key=lambda who: best[who])[:most]
    return [who for who in named if who in kept]


def _every_metric(results: Results, case: Case, named: Sequence[Contestant], calls: int = 20) -> list[Block]:
    """Every metric of some methods at the study's budget nearest to ``calls``, with intervals, and the floor."""
    near = min(results.budgets, key=lambda b: abs(math.log(b / calls)), default=0)
    measured = results.measured(case)
    runs = {who: {m: findings.within(results.curves(m).get((who, case), []), near) for m in measured} for who in named}
    there = {who: next(filter(None, runs[who].values())) for who in named if any(runs[who].values())}
    if not there:
        return []
    lines = [["NFE", *(f"{run.nfe:g}" for run in there.values()), ""]]
    for metric in measured:
        mine = [runs[who][metric] for who in there]
        floor = next((r for r in mine if r is not None and r.floor is not None), None)
        lines.append([NAMES.get(metric, metric), *(_estimate(r) for r in mine),
                      "" if floor is None else _plus_minus(floor.floor, floor.floor_low, floor.floor_high)])
    return [Table(("", *(code(who) for who in there), "floor"), lines,
                  caption=f"{case}, at most {near} calls: value ± half the width of its 95 % interval; bold where it meets the floor's.")]


def _estimate(row: Row | None) -> str:
    if row is None:
        return "-"
    meets = row.floor is not None and row.low <= (row.floor_high or row.floor) and row.high >= (row.floor_low or row.floor)
    return "*" * meets + _plus_minus(row.value, row.low, row.high)


def _plus_minus(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None or low == high or not math.isfinite(value):
        return number(value)
    return f"{number(value)} ± {number((high - low) / 2, 2)}"


def _floors(results: Results, behind: str) -> list[Block]:
    seen = findings.reaches(results)
    if not seen:
        return []
    lines = []
    for r in seen:
        names = [code(r.first[kind][0]) if kind in r.first else "-" for kind in KINDS]
        calls = [f"{r.first[kind][1]:g}" if kind in r.first else "-" for kind in KINDS]
        none = f"{r.none_from:g} calls" if r.none_from is not None else f"never: {r.differing} of {r.methods} differ"
        lines.append([r.case.target, r.case.process, *names, none, number(r.floor), *calls])
    return [Heading(2, "How many calls reach the floor" + behind),
            Text("The fewest calls from which on all runs of a method meet the floor of sliced W2, for the quickest method of each kind; "
                 "and the calls from which on no method differs from the floor, or how many still do at their most calls."),
            Table(("target", "process", "quickest ODE method", "quickest SDE method", "no method differs from", "floor", "ODE calls",
                   "SDE calls"), lines, left=5)]


def _orders(results: Results, stem: str) -> list[Block]:
    seen = findings.slopes(results)
    if not seen:
        return []
    everyone = sorted({s.who for s in seen}, key=lambda who: (who.kind, who.order is None, who.order or 0, str(who)))
    lines = []
    for who in everyone:
        mine = [s.slope for s in seen if s.who == who]
        short = [s for s in seen if s.who == who and s.short]
        settled = [s for s in short if not s.rising]
        verdict = ("no order declared" if who.order is None else "as declared" if not short else
                   f"*short in {len(short)} of {len(mine)}" + (", still steepening there" if not settled else ""))
        lines.append([code(who), who.kind, verdict, _order(who.order), f"{statistics.median(mine):.2f}",
                      f"{min(mine):.2f} to {max(mine):.2f}" if len(mine) > 1 else f"{mine[0]:.2f}", str(len(mine))])
    out = sorted((s for s in seen if s.short), key=lambda s: (str(s.who), s.slope - (s.who.order or 0)))
    blocks: list[Block] = [
        Heading(2, "Does the error fall at the declared order?"),
        Text(f"The slope of log error against log NFE, sign reversed, by least squares through the last {TAIL} runs above the floor: of "
             "the median path error, or of the W2 of exact moments where a method has no path error. A method is outside its theory in a "
             f"case where the slope is short of its declared order by more than {SHORT}; it is still steepening there if each pair of runs "
             "falls faster than the pair before. Slopes above the declared order are not faults."),
        Picture(f"{stem}orders", "The slope that each method shows in each case, beside its declared order.",
                figures.png(figures.orders(seen))),
        Table(("method", "kind", "verdict", "declared", "median slope", "range over cases", "cases"), lines, left=3)]
    if out:
        head = ("method", "target", "process", "grid", "measured by", "declared", "slope", "between NFE", "still steepening")
        blocks += [Heading(3, "Outside their theory, case by case"),
                   Table(head, [[code(s.who), s.case.target, s.case.process, s.grid or "-", NAMES[s.metric], _order(s.who.order),
                                 f"{s.slope:.2f}", f"{s.first:.0f} and {s.last:.0f}", "yes" if s.rising else "no"] for s in out], left=5)]
    return blocks


def _order(order: float | None) -> str:
    return "-" if order is None else f"{order:g}"


# -- samples, budgets, failures --------------------------------------------------------------------------------------------------
def _kept(rows: Sequence[Row], out: Path) -> dict[Case, dict[str, np.ndarray]]:
    """By case, the samples (n, 2) that cells kept, by cell."""
    found: dict[Case, dict[str, np.ndarray]] = {}
    for cell, case in {r.cell: r.case for r in rows}.items():
        file = out / SAMPLES / f"{cell}.npz"
        if file.is_file():
            with np.load(file, allow_pickle=False) as arrays:
                x = arrays["x"]
            if x.ndim == 2 and x.shape[1] == 2 and len(x):
                found.setdefault(case, {})[cell] = x
    return found


def _samples(rows: Sequence[Row], case: Case, kept: Mapping[str, np.ndarray], named: Sequence[Contestant]) -> Any:
    """Of the best ODE method, its baseline and the best SDE method, the runs of fewest and of most calls; None where none kept samples."""
    columns: list[tuple[str, list[tuple[str, np.ndarray]]]] = []
    ode, sde = ([who for who in named if who.kind == kind] for kind in KINDS)
    for who in dict.fromkeys((*ode[:1], *(w for w in ode if w.method == findings.BASELINES["ODE"]), *sde[:1])):
        mine = sorted({(r.nfe, r.cell) for r in rows if (r.source, r.method, r.kind) == (who.source, who.method, who.kind)
                       and who.grid in ("", r.grid) and r.cell in kept})
        if mine:
            columns.append((str(who), [(f"{nfe:g} calls", kept[cell]) for nfe, cell in dict.fromkeys((mine[0], mine[-1]))]))
    return figures.samples(case, _exact(case), columns) if columns else None


def _exact(case: Case) -> list[np.ndarray]:
    """Two draws of exact samples at the clean end; none where the target is a plug-in's and not at hand."""
    try:
        sde, target = cells.process(case.process), cells.law(case.target)
        return [metrics.noised(target, cells.SHOWN, sde.at(cells.span(sde)[1]), seed=seed).numpy()[:, :2] for seed in (1, 2)]
    except (ImportError, ValueError, TypeError):
        return []


def _budgets(document: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    for k, budget in enumerate(document.get("budgets", [])):
        parts = [_part(i["name"], i) for i in budget.get("ingredients", []) if i.get("value") is not None]
        if not parts:
            continue
        name = str(budget.get("metric", "error"))
        metric, unit = NAMES.get(name, name), f" [{budget['unit']}]" if budget.get("unit") else ""
        total = budget.get("total")
        if total is not None:
            total = _part("total", total if isinstance(total, Mapping) else
                          {"value": total, "low": budget.get("total_low"), "high": budget.get("total_high")})
        if not blocks:
            blocks += [Heading(2, "Error budget of a trained model"),
                       Text("What each ingredient of the error amounts to, measured by replacing it alone by its exact counterpart. "
                            "Distances need not add up: the sum stands beside the total.")]
        how = {str(i["name"]): str(i.get("how", "")) for i in budget["ingredients"]}
        lines = [[p.name, how[p.name], number(p.value), _span(p)] for p in parts]
        lines.append(["sum of these", "", number(sum(p.value for p in parts)), ""])
        if total is not None:
            lines.append(["*total, measured", "", f"*{number(total.value)}", _span(total)])
        of = [f"Run {code(budget['run'])}"] if budget.get("run") else []
        of += [code(budget["sampler"])] if budget.get("sampler") else []
        of += [f"{budget['nfe']:g} calls"] if budget.get("nfe") else []
        of += [f"{budget['repeats']:g} x {budget['n']:g} samples"] if budget.get("n") and budget.get("repeats") else []
        caption = f"{', '.join(of)}{'; ' if of and unit else ''}{unit.strip(' []')}"
        blocks += [Table(("ingredient", "made exact by", metric, "95 % interval"), lines, left=2, caption=caption),
                   Picture(f"budget-{k + 1}", f"{', '.join(of) or 'Error budget'}: the ingredients stacked, and the total.",
                           figures.png(figures.budget(parts, total, metric + unit)))]
    return blocks


def _part(name: Any, given: Mapping[str, Any]) -> figures.Part:
    value = float(given["value"])
    low, high = (value if given.get(end) is None else float(given[end]) for end in ("low", "high"))
    return figures.Part(str(name), value, low, high)


def _span(part: figures.Part) -> str:
    return "" if part.low == part.high else f"{number(part.low)} to {number(part.high)}"


def _failures(document: Mapping[str, Any]) -> list[Block]:
    """Cells that ended with an error, as study.json lists them."""
    failures = document.get("failures") or []
    if not failures:
        return []
    rows = [[code(f.get("method", "")), *(str(f.get(k, "")) for k in ("grid", "budget", "target", "process")), code(f.get("error", ""))]
            for f in failures]
    return [Heading(2, "Failed cells"),
            Text(f"{len(rows)} {'cell' if len(rows) == 1 else 'cells'} ended with an error. A method that diverged counts as infinitely "
                 "far off; one that could not run has no place at that budget."),
            Table(("method", "grid", "budget", "target", "process", "error"), rows, left=6)]
