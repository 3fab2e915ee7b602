r"""What the rows of a benchmark say: curves, budgets, ties, ranks, slopes, and the sentences that follow from them.

A row is one metric of one cell: the error e of a method at some number of network calls (NFE) in a case c, which is a process and a
target, with its 95 % interval and its floor, the same metric between two exact samples of equal size. A *contestant* is a method on a grid.
At a budget of N calls it stands with the run that used most of the budget, NFE in (N/2, N].

Two errors are told apart when their intervals do not overlap; an error whose interval meets the floor's is as small as n samples can
show. So, with e* the least error of a case,

    r(m, c, N) = 1                                 where m is not told apart from the best, or from the floor,        (1)
               = e(m, c, N) / max(e*(c, N), floor) elsewhere (infinite where m diverged),
    R(m, N)    = median over c of r(m, c, N),                                                                         (2)

and methods of equal R share a rank. The order that a method shows in a case is the least-squares slope

    p(m, c) = - d log e / d log NFE          through the last ``TAIL`` runs above the floor,                          (3)

which is where the theory speaks: an order is the slope for many steps. There e is the median path error, where it was measured. Path
errors and exact moments have no Monte Carlo floor; theirs is ``ROUNDING``, the accuracy of the reference.
"""
from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from . import cells

PATH, MEDIAN, SLICED, MOMENT = "path_rmse", "path_median", "sliced_w2", "moment_w2"
KINDS = ("ODE", "SDE")
HEADLINES = (10, 20, 50, 100)                # the budgets that sentences speak of, or those nearest to them
ROUNDING = 1e-11
TAIL, SHORT, STEEPER = 3, 0.3, 0.2          # runs in a slope; what it may lack; the rise from pair to pair of one not yet settled
SAME = 1e-6                                 # relative; two spellings of one method differ by rounding


class Row(cells.Row):
    """A line of results.csv. ``value`` is infinite where the run diverged."""

    __slots__ = ()

    @property
    def case(self) -> Case:
        """Where it ran."""
        return Case(self.process, self.target)

    @property
    def reach(self) -> float | None:
        """The largest error that is not told apart from the floor; None where there is no floor."""
        if self.floor is not None:
            return self.floor_high if self.floor_high is not None else self.floor
        return ROUNDING if self.metric.startswith(("path", "moment")) else None

    @property
    def at_floor(self) -> bool:
        """Whether its interval meets the floor's, or lies below it; where the floor is that of rounding, its value."""
        return self.reach is not None and (self.low if self.floor is not None else self.value) <= self.reach


class Case(NamedTuple):
    """A process and a target."""

    process: str
    target: str

    def __str__(self) -> str:
        return f"{self.target}, {self.process}"


class Contestant(NamedTuple):
    """A method on a grid. ``grid`` is empty where the method ran on one grid a process, its own."""

    source: str
    method: str
    grid: str
    kind: str
    order: float | None

    def __str__(self) -> str:
        source = self.source.removesuffix(f":{self.method}")
        return (f"{self.method}, {self.grid}" if self.grid else self.method) + ("" if source == "sdediff" else f" ({source})")


# -- curves ----------------------------------------------------------------------------------------------------------------------
Curves = dict[tuple[Contestant, Case], list[Row]]


class Results:
    """The rows of one score, as they came, and by curve."""

    def __init__(self, rows: Iterable[cells.Row]) -> None:
        self.rows = [_finite(Row(*row)) for row in rows]
        self._curves: dict[tuple[str, str | None], Curves] = {}
        self._rankings: dict[tuple[str, str | None], Ranking] = {}

    @cached_property
    def _by_metric(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = defaultdict(list)
        for r in self.rows:
            found[r.metric].append(r)
        return found

    def measured(self, case: Case) -> list[str]:
        """The metrics of a case."""
        return [metric for metric, rows in self._by_metric.items() if any(r.case == case for r in rows)]

    @cached_property
    def cases(self) -> list[Case]:
        """The cases, in the order of their first row."""
        return list(dict.fromkeys(r.case for r in self.rows))

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """The call counts that the study asked for, up to eight: those that most contestants met, each at least 1.3 times the one before,
        and by a quarter of the contestants at least."""
        who: dict[int, set[Any]] = defaultdict(set)
        for r in self.rows:
            who[math.floor(r.nfe)].add((r.source, r.method, r.grid))
        few = len({(r.source, r.method, r.grid) for r in self.rows}) / 4
        kept: list[int] = []
        for nfe in sorted(who, key=lambda nfe: (-len(who[nfe]), -nfe)):
            if len(who[nfe]) >= few and len(kept) < 8 and all(not 1 / 1.3 < nfe / other < 1.3 for other in kept):
                kept.append(nfe)
        return tuple(sorted(kept))

    @cached_property
    def _crossed(self) -> set[tuple[str, str]]:
        """The methods that ran on several grids."""
        grids: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        for r in self.rows:
            grids[r.source, r.method, r.process].add(r.grid)
        return {(source, method) for (source, method, _), names in grids.items() if len(names) > 1}

    def curves(self, metric: str, kind: str | None = None) -> Curves:
        """A metric's rows by contestant and case, by increasing NFE. Runs that differ in their seed alone are averaged."""
        if (metric, kind) not in self._curves:
            same: dict[Any, list[Row]] = defaultdict(list)
            for r in self._by_metric.get(metric, ()):
                if kind in (None, r.kind):
                    who = Contestant(r.source, r.method, r.grid if (r.source, r.method) in self._crossed else "", r.kind, r.order)
                    same[who, r.case, r.nfe, r.steps].append(r)
            found: Curves = defaultdict(list)
            for (who, case, _, _), equal in sorted(same.items(), key=lambda item: item[0][2]):
                found[who, case].append(_averaged(equal))
            self._curves[metric, kind] = dict(found)
        return self._curves[metric, kind]


def _finite(row: Row) -> Row:
    """What is not finite is infinite: a run that diverged."""
    value = row.value if math.isfinite(row.value) else math.inf
    low, high = (v if math.isfinite(v) else value for v in (row.low, row.high))
    return row._replace(value=value, low=low, high=high)


def _averaged(rows: Sequence[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    mean: dict[str, Any] = {}
    for name in ("value", "low", "high", "floor", "floor_low", "floor_high", "seconds"):
        values = [v for v in (getattr(r, name) for r in rows) if v is not None]
        mean[name] = sum(values) / len(values) if values else None
    return rows[0]._replace(**mean)


# -- ranks -----------------------------------------------------------------------------------------------------------------------
class Place(NamedTuple):
    """A contestant at a budget: ``ratio`` is (2) over the ``ran`` cases that it ran, of the ``of`` that anyone ran at this budget;
    ``rank`` is among the contestants that ran all of its cases, and on those."""

    ratio: float
    rank: int
    ran: int
    of: int

    @property
    def tied(self) -> bool:
        """Not told apart from the best in the median case."""
        return self.ratio <= 1

    @property
    def complete(self) -> bool:
        """Whether it ran every case."""
        return self.ran == self.of


class Ranking(NamedTuple):
    """Places by contestant, the best over all budgets first, and the least error at each budget, median over cases."""

    metric: str
    kind: str | None
    budgets: tuple[int, ...]
    best: tuple[float, ...]
    places: dict[Contestant, tuple[Place | None, ...]]

    def at(self, budget: int) -> list[tuple[Contestant, Place]]:
        """Who stands at a budget, by rank."""
        k = self.budgets.index(budget)
        found = [(who, place) for who, places in self.places.items() if (place := places[k]) is not None]
        return sorted(found, key=lambda item: (not item[1].complete, item[1].rank))

    @property
    def headlines(self) -> list[int]:
        """The budgets nearest to ``HEADLINES``."""
        near = (min(self.budgets, key=lambda b: abs(math.log(b / wanted)), default=0) for wanted in HEADLINES)
        return sorted({b for b, wanted in zip(near, HEADLINES) if b and abs(math.log(b / wanted)) < 0.5})


def within(runs: Sequence[Row], budget: int) -> Row | None:
    """The run that used most of the budget, and more than half of it."""
    fitting = [r for r in runs if budget / 2 < r.nfe <= budget]
    return fitting[-1] if fitting else None


def tied(row: Row, best: Row) -> bool:
    """Whether a row is not told apart from the best of its case, or from the floor."""
    return math.isfinite(row.value) and (row.at_floor or row.low <= best.high * (1 + SAME) or row.value <= best.value * (1 + SAME))


def ranking(results: Results, metric: str, kind: str | None = None) -> Ranking:
    """The contestants of a kind by (2). Budgets at which nobody ran are left out, and so are contestants that ran at none."""
    if (metric, kind) not in results._rankings:
        results._rankings[metric, kind] = _ranking(results, metric, kind)
    return results._rankings[metric, kind]


def _ranking(results: Results, metric: str, kind: str | None) -> Ranking:
    found = results.curves(metric, kind)
    everyone = list(dict.fromkeys(who for who, _ in found))
    kept, least = list[int](), list[float]()
    places: dict[Contestant, list[Place | None]] = {who: [] for who in everyone}
    for budget in results.budgets:
        standing: dict[Case, dict[Contestant, Row]] = defaultdict(dict)
        for (who, case), runs in found.items():
            run = within(runs, budget)
            if run is not None:
                standing[case][who] = run
        if not standing:
            continue
        ratios: dict[Contestant, dict[Case, float]] = defaultdict(dict)
        for case, entries in standing.items():
            best = min(entries.values(), key=lambda run: run.value)
            for who, run in entries.items():
                ratios[who][case] = (1.0 if tied(run, best) else math.inf if math.isinf(run.value) else
                                     max(1.0, run.value / max(best.value, best.floor or (best.reach or 0.0), 1e-300)))
        kept.append(budget)
        least.append(statistics.median(min(run.value for run in entries.values()) for entries in standing.values()))
        medians: dict[frozenset[Case], list[float]] = {}                  # of all who ran these cases, over these cases
        for who in everyone:
            mine = ratios.get(who)
            if not mine:
                places[who].append(None)
                continue
            median, over = statistics.median(mine.values()), frozenset(mine)
            if over not in medians:
                medians[over] = [statistics.median(other[c] for c in over) for other in ratios.values() if other.keys() >= over]
            rivals = medians[over]
            places[who].append(Place(median, 1 + sum(rival < median * (1 - SAME) for rival in rivals), len(mine), len(standing)))
    shown = {who: tuple(row) for who, row in places.items() if any(row)}
    return Ranking(metric, kind, tuple(kept), tuple(least), dict(sorted(shown.items(), key=lambda item: overall(item[1]))))


def overall(places: Sequence[Place | None]) -> tuple[bool, float]:
    """A key to sort by: the geometric mean over budgets of (2), after those who ran at fewer than half of the budgets and cases."""
    there = [p for p in places if p is not None]
    covered = sum(p.ran / p.of for p in there) / len(places)
    return covered < 0.5, statistics.fmean(math.log(min(p.ratio, 1e9)) for p in there)


def leading(results: Results, kind: str) -> Ranking | None:
    """The ranking that stands for a kind: path errors of ODE methods, sliced W2 of SDE methods; else what there is."""
    for metric in (PATH, SLICED, MOMENT) if kind == "ODE" else (SLICED, MOMENT):
        found = ranking(results, metric, kind)
        if found.places:
            return found
    return None


BASELINES = {"ODE": "ddim", "SDE": "ddpm"}
NAMED, GUESTS = {"ODE": 4, "SDE": 2}, 4


def highlights(results: Results) -> list[Contestant]:
    """Whom the figures show by name: of each kind the best over all budgets, one grid a method and one name of methods whose numbers are
    the same; the baseline, ddim or ddpm; and the best of each source that is not ours."""
    chosen: list[Contestant] = []
    for kind in KINDS:
        table = leading(results, kind)
        if table is None:
            continue
        numbers: dict[Contestant, dict[Any, float]] = defaultdict(dict)
        for (who, case), runs in results.curves(table.metric, kind).items():
            numbers[who].update({(case, r.nfe): r.value for r in runs})
        ours, guests = list[Contestant](), list[Contestant]()
        for who in table.places:
            if who.source != "sdediff":
                if len(guests) < GUESTS and who.source not in {w.source for w in guests}:
                    guests.append(who)
            elif who.method not in {w.method for w in ours} and not any(_same(numbers[who], numbers[w]) for w in ours) \
                    and (len(ours) < NAMED[kind] or who.method == BASELINES[kind]):
                ours.append(who)
        chosen += ours + guests
    return chosen


def _same(a: Mapping[Any, float], b: Mapping[Any, float]) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=SAME, abs_tol=ROUNDING) for k in a)


# -- orders ----------------------------------------------------------------------------------------------------------------------
class Slope(NamedTuple):
    """What (3) gives for one contestant in one case, between ``first`` and ``last`` calls. ``rising``: each pair of runs is steeper than
    the pair before it by more than ``STEEPER``: the slope has not settled. ``short``: below the declared order by more than ``SHORT``."""

    who: Contestant
    case: Case
    metric: str
    grid: str
    slope: float
    first: float
    last: float
    points: int
    rising: bool

    @property
    def short(self) -> bool:
        """Outside its theory."""
        return self.who.order is not None and self.slope < self.who.order - SHORT


def slope(who: Contestant, case: Case, runs: Sequence[Row]) -> Slope | None:
    """(3), or None where fewer than two runs lie above the floor or they span less than half an octave."""
    above = []
    for r in runs:
        if not math.isfinite(r.value):
            continue
        if r.at_floor or r.value <= 10 * ROUNDING:
            break                                                        # at the floor, and so is what follows
        above.append((math.log(r.nfe), math.log(r.value)))
    tail = above[-TAIL:]
    if len(tail) < 2 or tail[-1][0] - tail[0][0] < 0.5 * math.log(2):
        return None
    mean_x, mean_y = (statistics.fmean(v) for v in zip(*tail))
    fitted = sum((x - mean_x) * (y - mean_y) for x, y in tail) / sum((x - mean_x)**2 for x, _ in tail)
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(tail, tail[1:])]
    rising = len(pairs) > 1 and all(b < a - STEEPER for a, b in zip(pairs, pairs[1:]))
    return Slope(who, case, runs[0].metric, runs[0].grid, -fitted, math.exp(tail[0][0]), math.exp(tail[-1][0]), len(tail), rising)


def slopes(results: Results) -> list[Slope]:
    """Of every contestant in every case: by the median path error where there is one (the RMSE is that of the few paths that pass near a
    ridge between modes, and end in either), else by path RMSE or the W2 of exact moments."""
    found: dict[tuple[Contestant, Case], Slope] = {}
    for metric in (MEDIAN, PATH, MOMENT):
        for (who, case), runs in results.curves(metric).items():
            seen = slope(who, case, runs) if (who, case) not in found else None
            if seen is not None:
                found[who, case] = seen
    return list(found.values())


# -- the floor -------------------------------------------------------------------------------------------------------------------
class Reach(NamedTuple):
    """When the floor of a metric is reached in a case. ``first``: by kind, who reaches it with the fewest calls, and how many;
    ``none_from``: from how many calls on no method differs from it; ``differing``: how many of ``methods`` still do at their most calls."""

    case: Case
    floor: float
    first: dict[str, tuple[Contestant, float]]
    none_from: float | None
    differing: int
    methods: int


def reaches(results: Results, metric: str = SLICED) -> list[Reach]:
    """Of every case whose metric has a floor. A method is there from the call count from which all its runs meet the floor."""
    found = results.curves(metric)
    result = []
    for case in dict.fromkeys(case for _, case in found):
        mine = {who: runs for (who, other), runs in found.items() if other == case}
        every = [r for runs in mine.values() for r in runs]
        floors = [r.floor for r in every if r.floor is not None]
        if not floors:
            continue
        first: dict[str, tuple[Contestant, float]] = {}
        for who, runs in mine.items():
            above = [r.nfe for r in runs if not r.at_floor]
            there = [r.nfe for r in runs if r.nfe > max(above, default=0)]
            if there and (who.kind not in first or there[0] < first[who.kind][1]):
                first[who.kind] = (who, there[0])
        away = max((r.nfe for r in every if not r.at_floor), default=0)
        after = [r for r in every if r.nfe > away]
        still = sum(not runs[-1].at_floor for runs in mine.values())
        reached = len({r.method for r in after}) > 1 and still == 0
        result.append(Reach(case, statistics.median(floors), first, min(r.nfe for r in after) if reached else None, still, len(mine)))
    return result


# -- sentences -------------------------------------------------------------------------------------------------------------------
NAMES = {PATH: "path RMSE", MEDIAN: "median path error", SLICED: "sliced W2", MOMENT: "W2 of exact moments", "w2": "W2",
         "energy": "energy distance", "mmd": "MMD²", "mmd_bank": "MMD², bank", "nll": "NLL", "excess_nll": "excess NLL",
         "mean_error": "error of the mean, squared", "cov_error": "error of the covariance, squared", "mode_coverage": "mode coverage",
         "mode_chi2": "mode chi-square", "mode_p": "p of the mode weights"}


def code(name: object) -> str:
    """A name as code, in one line."""
    return "`" + " ".join(str(name).replace("`", "'").split()) + "`"


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, 1.2e-05 where they are far from 1, nothing for None."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def several(names: Sequence[object], most: int = 4) -> str:
    """`a`, `b` and `c`; past ``most`` the rest are counted."""
    return listed([code(name) for name in names[:most]] + ([f"{len(names) - most} more"] if len(names) > most else []))


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def statements(results: Results) -> list[str]:
    """Sentences computed from the rows of one score."""
    found: list[str] = []
    for kind in KINDS:
        table = leading(results, kind)
        for metric in dict.fromkeys((table.metric, *((MOMENT,) if kind == "SDE" else ()))) if table is not None else ():
            found += _merged(_best(ranking(results, metric, kind)))
    found += _merged(_kinds(results))
    found += _floors(results)
    found += _orders(slopes(results))
    found += _grids(results)
    found += _guests(results)
    return found


def _merged(said: Iterable[tuple[int, str]]) -> list[str]:
    """Sentences of a budget each, those that say the same in one."""
    by: dict[str, list[str]] = defaultdict(list)
    for budget, sentence in said:
        by[sentence].append(f"{budget}")
    return [f"At {listed(budgets)} calls {sentence}" for sentence, budgets in by.items()]


def _best(table: Ranking) -> Iterator[tuple[int, str]]:
    for budget in table.headlines:
        standing = table.at(budget)
        complete = [(who, place) for who, place in standing if place.ran == standing[0][1].ran]
        first = [who for who, place in complete if place.rank == complete[0][1].rank]
        rest = [(who, place) for who, place in complete if who not in first]
        where = f"{NAMES[table.metric]}, {_median(complete[0][1].ran)}"
        if not rest:
            yield budget, (f"the {len(first)} {table.kind} methods are not told apart ({where})." if len(first) > 1 else
                           f"{code(first[0])} is the only {table.kind} method ({where}).")
            continue
        gap = rest[0][1].ratio / complete[0][1].ratio
        factor = "all others diverged" if math.isinf(gap) else f"{gap:.2f} times ahead of {code(rest[0][0])}"
        yield budget, (f"the best {table.kind} method is {code(first[0])}, {factor} ({where})." if len(first) == 1 else
                       f"the best {table.kind} methods are {several(first)}, not told apart, {factor} ({where}).")


def _median(count: int) -> str:
    return f"median over {count} cases" if count > 1 else "one case"


def _kinds(results: Results) -> Iterator[tuple[int, str]]:
    """ODE against SDE methods by the distance that both have."""
    table = ranking(results, SLICED)
    for budget in table.headlines:
        best: dict[str, tuple[Contestant, Place]] = {}
        for who, place in table.at(budget):
            if place.complete:
                best.setdefault(who.kind, (who, place))
        if len(best) < 2:
            continue
        (ode, a), (sde, b) = best["ODE"], best["SDE"]
        if a.tied and b.tied:
            yield budget, f"the best ODE method and the best SDE method are not told apart by sliced W2 ({_median(a.of)})."
        elif math.isfinite(a.ratio + b.ratio):
            one, other = (ode, sde) if a.ratio <= b.ratio else (sde, ode)
            yield budget, (f"the best {one.kind} method, {code(one)}, is ahead of {code(other)}, the best {other.kind} method, by a factor "
                           f"of {max(a.ratio, b.ratio) / min(a.ratio, b.ratio):.2f} ({NAMES[SLICED]}, {_median(a.of)}).")


def _floors(results: Results) -> list[str]:
    found = []
    seen = reaches(results)
    for kind in KINDS:
        calls = [r.first[kind][1] for r in seen if kind in r.first]
        if calls:
            span = f"{min(calls):g}" if min(calls) == max(calls) else f"{min(calls):g} to {max(calls):g}"
            missing = f", and not in the other {len(seen) - len(calls)}" if len(calls) < len(seen) else ""
            found.append(f"The quickest {kind} methods reach the floor of sliced W2 with {span} calls, in {_cases(len(calls))}{missing}.")
    none = [f"from {r.none_from:g} calls on {r.case.target} under {r.case.process}" for r in seen if r.none_from is not None]
    if none:
        found.append(f"No method differs from the floor of sliced W2 {listed(none)}.")
    never = [str(r.case) for r in seen if not r.first]
    if never:
        found.append(f"No method reaches the floor of sliced W2 in {_cases(len(never))}: {'; '.join(never)}.")
    return found


def _cases(count: int, more: str = "") -> str:
    return f"{count} cases{more}" if count > 1 else "one case"


def _orders(seen: Sequence[Slope]) -> list[str]:
    """Who falls at the declared order in every case, and who does not."""
    declared = [s for s in seen if s.who.order is not None]
    if not declared:
        return []
    everyone = list(dict.fromkeys(s.who for s in declared))
    outside = {who: [s for s in declared if s.who == who and s.short] for who in everyone}
    late = {who: short for who, short in outside.items() if short and all(s.rising for s in short)}
    firm = {who: short for who, short in outside.items() if short and who not in late}
    found = [f"{len(everyone) - len(firm) - len(late)} of {len(everyone)} methods with a declared order fall at it in every case measured: "
             f"the slope of their error against NFE, above the floor, is short of it by {SHORT} at most."]
    if firm:
        for who in sorted(firm, key=lambda who: min(s.slope - (who.order or 0) for s in firm[who]))[:3]:
            worst = min(firm[who], key=lambda s: s.slope)
            found.append(f"{code(who)} is outside its theory in {_cases(len(firm[who]), ', worst')} on {worst.case.target} under "
                         f"{worst.case.process}: slope {worst.slope:.2f} of {who.order:g}, {worst.first:.0f} to {worst.last:.0f} calls.")
        if len(firm) > 3:
            found.append(f"So are {len(firm) - 3} more; all cases are in the table of slopes.")
    if late:
        found.append(f"Short of its order only where the curve is still steepening at its last run: {several(list(late), 6)}.")
    return found


def _grids(results: Results) -> list[str]:
    """The grid that most methods do best on, where methods ran on several."""
    found = []
    for kind in KINDS:
        table = leading(results, kind)
        said = []
        for budget in table.headlines if table is not None else ():
            assert table is not None
            by: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
            for who, place in table.at(budget):
                if who.grid and place.complete:
                    by[who.source, who.method].append((who.grid, place.ratio))
            crossed = [entries for entries in by.values() if len(entries) > 1]
            wins: dict[str, int] = defaultdict(int)
            for entries in crossed:
                least = min(ratio for _, ratio in entries)
                for grid, ratio in entries:
                    wins[grid] += ratio <= least * (1 + SAME)
            if wins:
                top = max(wins.values())
                names = [grid for grid, count in wins.items() if count == top]
                said.append((budget, f"{several(names)} {'is' if len(names) == 1 else 'are each'} the best grid for {top} of the "
                                     f"{len(crossed)} {kind} methods that ran on several ({NAMES[table.metric]})."))
        found += _merged(said)
    return found


def _guests(results: Results) -> list[str]:
    """Where the methods of other sources stand."""
    found = []
    for kind in KINDS:
        table = leading(results, kind)
        if table is None:
            continue
        for who, places in table.places.items():
            if who.source != "sdediff":
                stands = [f"{ordinal(place.rank)} at {budget} calls" for budget, place in zip(table.budgets, places) if place is not None]
                found.append(f"{code(who)} is {', '.join(stands)} among {len(table.places)} {kind} methods ({NAMES[table.metric]}).")
    return found


def ordinal(rank: int) -> str:
    """1st, 2nd, 3rd, 11th."""
    ending = "th" if 10 <= rank % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"
