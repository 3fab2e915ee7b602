"""The pages of a benchmark say what its rows say: every table is recomputed here, sentences are checked on crafted rows, and nothing is fetched."""
import csv
import html.parser
import json
import math
import re
import statistics

import hypothesis
import hypothesis.strategies as st
import matplotlib
import numpy as np
import pytest

from sdediff.bench import figures, findings, page
from sdediff.bench.cells import Row
from sdediff.bench.findings import MOMENT, PATH, SLICED, Case, Contestant, Results
from sdediff.plots import _figure

NFE = (5, 10, 20, 40, 80)
FLOOR = (0.02, 0.016, 0.025)
NASTY = 'bad<b>|"&*x'


def row(method="ddim", nfe=10, value=0.1, *, low=None, high=None, metric=PATH, kind="ODE", order=1, grid="logsnr", process="VPSDE",
        target="gaussian", source="sdediff", score="exact", floor=None, seed=0, seconds=None):
    """A row whose interval is +-10 %, unless it is said."""
    spread = 0.0 if metric == MOMENT else 0.1
    cell = f"{abs(hash((source, method, grid, nfe, process, target, score, seed))):x}"[:12]
    return Row(cell, source, method, kind, order, grid, nfe, nfe, process, target, score, metric, value,
               value * (1 - spread) if low is None else low, value * (1 + spread) if high is None else high, *(floor or (None, None, None)), 1000,
               2e-3 * nfe if seconds is None else seconds, seed)


def curve(method, constant, slope, **options):
    """value = constant nfe^-slope, over NFE."""
    return [row(method, nfe, constant * nfe**-float(slope), **options) for nfe in NFE]


def study():
    """Two targets, three ODE methods, a guest, two SDE methods; one ODE method is a power short of its order, one SDE method diverged once."""
    rows = []
    for target, hard in (("gaussian", 1.0), ("8-gaussians", 3.0)):
        for method, constant, order, real, options in (("ddim", 1.0, 1, 1, {}), ("heun", 9.0, 2, 2, {}), (NASTY, 9.5, 3, 2, {}),
                                                       ("Mine", 5.0, 2, 2, {"source": "my.module:Mine"}),
                                                       ("ddpm", 4.0, 1, 1, {"kind": "SDE"}), ("seeds-2", 8.0, 1, 1, {"kind": "SDE"})):
            where = {"order": order, "target": target, **options}
            exact = curve(method, hard * constant, real, **where)
            if where.get("kind") != "SDE":
                rows += exact
            for r in exact:
                seen = math.hypot(r.value / 2, FLOOR[0])
                if (method, target, r.nfe) == ("seeds-2", "8-gaussians", 5):
                    seen = math.inf
                rows.append(row(method, r.nfe, seen, metric=SLICED, floor=FLOOR, **where))
                if target == "gaussian":
                    rows.append(row(method, r.nfe, r.value / 3, metric=MOMENT, **where))
    return rows


def save(folder, rows, **documents):
    folder.mkdir(exist_ok=True)
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(["" if v is None else v for v in r] for r in rows)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


class Parsed(html.parser.HTMLParser):
    """Tables as lists of lists of texts, with an asterisk before the strong ones; texts of other tags; attributes."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.texts, self.attributes, self.tags, self.open = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("p", "li", "h1", "h2", "h3", "pre"):
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag                                              # well-formed

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += "*" * ("strong" in self.open) + data
        elif {"p", "li", "h1", "h2", "h3", "pre"} & set(self.open):
            self.texts[-1] += data

    def table(self, corner):
        """Its head and rows, by the text in its corner or the start of its head."""
        return next(t for t in self.tables if t[0][0] == corner)


BUDGET = {"run": "runs/moons", "sampler": "eab-3", "nfe": 20, "n": 1000, "repeats": 4, "metric": "sliced_w2", "unit": "data units",
          "ingredients": [{"name": "prior", "value": 0.01, "low": 0.008, "high": 0.012, "how": "moved"}, {"name": "score", "value": 0.05,
                          "low": None, "high": None}], "total": 0.055, "total_low": 0.05, "total_high": 0.06}
STUDY = {"command": "sdediff bench --quick --out <here>", "versions": {"sdediff": "0.1.0", "torch": "2.6"},
         "failures": [{"method": "mala", "grid": "own", "budget": "5 calls", "target": "funnel", "process": "VPSDE", "error": "ValueError: a < b"}]}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder, its rows, and the page parsed."""
    rows = study()
    folder = save(tmp_path_factory.mktemp("bench"), rows, study=STUDY, budget={"budgets": [BUDGET]})
    (folder / "samples").mkdir()
    for r in rows:
        if r.target == "8-gaussians" and r.method in ("ddim", "ddpm"):
            np.savez(folder / "samples" / f"{r.cell}.npz", x=np.random.default_rng(r.nfe).normal(size=(300, 2)).astype(np.float32))
    assert page.write(folder) == folder / "index.html"
    return folder, rows, Parsed((folder / "index.html").read_text(encoding="utf-8"))


# -- the page --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "metric", "name"), [("ODE", PATH, "path RMSE"), ("SDE", SLICED, "sliced W2"), ("ODE", MOMENT, "W2 of exact moments")])
def test_rankings_are_recomputed(written, kind, metric, name):
    _, rows, parsed = written
    head, least, *lines = parsed.table(f"{kind} methods, {name}")
    assert head[1:] == [f"{n} calls" for n in NFE]
    mine = [r for r in rows if r.kind == kind and r.metric == metric]
    targets = sorted({r.target for r in mine})
    expected = {}
    for n in NFE:
        ratios = {}
        for target in targets:
            here = [r for r in mine if r.nfe == n and r.target == target]
            best = min(here, key=lambda r: r.value)
            for r in here:
                tie = math.isfinite(r.value) and (r.low <= best.high or (r.floor_high is not None and r.low <= r.floor_high))
                ratios.setdefault(r.method, []).append(1.0 if tie else r.value / best.value)
        expected[n] = {m: statistics.median(v) for m, v in ratios.items()}
        assert least[NFE.index(n) + 1] == findings.number(statistics.median(min(r.value for r in mine if (r.nfe, r.target) == (n, t)) for t in targets))
    assert {line[0] for line in lines} == {m if m != "Mine" else "Mine (my.module)" for m in expected[5]}
    for line in lines:
        for n, text in zip(NFE, line[1:]):
            ratio = expected[n][line[0].split(" (")[0]]
            rank = 1 + sum(other < ratio * (1 - 1e-9) for other in expected[n].values())
            shown = "*1" if ratio == 1 else "∞" if math.isinf(ratio) else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
            assert text == f"{shown} ({rank})"
    assert any("*1" in line[1] for line in lines)


def test_slopes_are_recomputed(written):
    _, rows, parsed = written
    table = next(t for t in parsed.tables if t[0][:3] == ["method", "kind", "verdict"])
    assert {line[0] for line in table[1:]} == {"ddim", "heun", NASTY, "Mine (my.module)", "ddpm", "seeds-2"}
    for name, kind, verdict, declared, median, _, cases in table[1:]:
        metric = PATH if kind == "ODE" else MOMENT
        mine = [r for r in rows if r.method == name.split(" (")[0] and r.metric == metric]
        slopes = [-np.polyfit(np.log(NFE[-3:]), np.log([r.value for r in mine if r.target == t][-3:]), 1)[0] for t in dict.fromkeys(r.target for r in mine)]
        assert (float(median), int(cases)) == (round(statistics.median(slopes), 2), len(slopes))
        assert declared == f"{mine[0].order:g}"
        assert verdict == ("*short in 2 of 2" if name == NASTY else "as declared")
    outside = next(t for t in parsed.tables if t[0][-1] == "still steepening")
    assert [line[:3] + line[5:] for line in outside[1:]] == [[NASTY, t, "VPSDE", "3", "2.00", "20 and 80", "no"] for t in ("gaussian", "8-gaussians")]


def test_floors_are_recomputed(written):
    _, rows, parsed = written
    table = next(t for t in parsed.tables if t[0][:3] == ["target", "process", "quickest ODE method"])
    for target, process, ode, sde, none, floor, *calls in table[1:]:
        mine = [r for r in rows if r.metric == SLICED and r.target == target]
        first = {}
        for kind in ("ODE", "SDE"):
            reach = {}
            for method in dict.fromkeys(r.method for r in mine if r.kind == kind):
                high = max((r.nfe for r in mine if r.method == method and r.low > FLOOR[2]), default=0)
                after = [r.nfe for r in mine if r.method == method and r.nfe > high]
                reach[method] = min(after, default=math.inf)
            first[kind] = min(reach.values())
        assert process == "VPSDE" and floor == "0.0200"
        assert calls == [f"{v:g}" if v < math.inf else "-" for v in first.values()]
        assert (ode, sde) != ("-", "-") and ("calls" in none or "never" in none)


def test_every_metric_is_shown_with_its_interval_and_floor(written):
    _, rows, parsed = written
    table = next(t for t in parsed.tables if t[0][-1] == "floor")
    names = table[0][1:-1]
    lines = {line[0]: line[1:] for line in table[1:]}
    assert lines["NFE"] == ["20"] * len(names) + [""]
    assert lines["sliced W2"][-1] == "0.0200 ± 0.0045"
    for metric, name in ((PATH, "path RMSE"), (SLICED, "sliced W2"), (MOMENT, "W2 of exact moments")):
        for who, text in zip(names, lines[name]):
            r = next((r for r in rows if (r.method, r.nfe, r.target, r.metric) == (who.split(" (")[0], 20, "gaussian", metric)), None)
            half = "" if r is None or r.low == r.high else f" ± {findings.number((r.high - r.low) / 2, 2)}"
            meets = r is not None and r.floor is not None and r.low <= FLOOR[2]
            assert text == ("-" if r is None else "*" * meets + findings.number(r.value) + half)


def test_what_was_run_the_budget_and_the_failures(written):
    _, rows, parsed = written
    facts = dict(next(t for t in parsed.tables if t[0][1] == "in this study")[1:])
    assert facts["cells"] == str(len({r.cell for r in rows}))
    assert facts["methods"] == "5 of sdediff, 1 of my.module:Mine"
    assert facts["targets"] == "gaussian, 8-gaussians" and facts["network calls per sample (NFE), counted"] == "5 to 80"
    assert STUDY["command"] in parsed.texts and "Versions: sdediff 0.1.0, torch 2.6." in parsed.texts
    assert parsed.table("ingredient")[1:] == [["prior", "moved", "0.0100", "0.00800 to 0.0120"], ["score", "", "0.0500", ""],
                                              ["sum of these", "", "0.0600", ""], ["*total, measured", "", "*0.0550", "0.0500 to 0.0600"]]
    assert next(t for t in parsed.tables if t[0][-1] == "error")[1:] == [["mala", "own", "5 calls", "funnel", "VPSDE", "ValueError: a < b"]]


def test_html_is_self_contained_and_escaped(written):
    folder, _, parsed = written
    text = (folder / "index.html").read_text(encoding="utf-8")
    links = [(tag, value) for tag, name, value in parsed.attributes if name in ("src", "href")]
    assert all(value.startswith("data:image/png;base64,") if tag == "img" else value.startswith("#s") for tag, value in links)
    assert not re.search(r"https?:|@import|url\(", text) and "script" not in parsed.tags and "link" not in parsed.tags
    assert "b" not in parsed.tags and not parsed.open
    assert {v[1:] for t, v in links if t == "a"} == {v for t, n, v in parsed.attributes if (t, n) == ("h2", "id")}
    assert len(text) < 3e6
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["README.md", "budget.json", "figures", "index.html", "results.csv", "samples", "study.json"]


def test_markdown_holds_the_same_tables_and_pictures(written):
    folder, _, parsed = written
    text = (folder / "README.md").read_text(encoding="utf-8")
    plain = lambda cell: re.sub(r"\\([\\*_<>\[\]#~|])", r"\1", re.sub(r"^\*\*(.*)\*\*$", r"*\1", cell).replace("`", ""))
    tables, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif lines:
            tables.append([lines[0], *lines[2:]])
            lines = []
    assert tables == parsed.tables
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert sorted(pictures) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())
    assert len(pictures) == parsed.tags.count("img") == 5                          # two cases, samples of one, slopes, the budget
    assert [t for t in parsed.texts if t.startswith("At ")] == [line[2:].replace("`", "").replace("\\", "") for line in text.splitlines()
                                                              if line.startswith("- At ")]


def test_without_optional_inputs_nothing_is_said_of_them(tmp_path):
    page.write(save(tmp_path, [row(nfe=n, value=1 / n) for n in NFE]))
    text = (tmp_path / "README.md").read_text()
    assert "Failed" not in text and "budget of a trained" not in text and "Versions" not in text and "floor of a distance" not in text
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["gaussian-vpsde-work-precision.png", "orders.png"]
    (tmp_path / "figures" / "stale.png").write_bytes(b"")
    page.write(tmp_path)
    assert not (tmp_path / "figures" / "stale.png").exists()


@pytest.mark.parametrize("header", [True, False])
def test_an_empty_study_says_so(tmp_path, header):
    if header:
        save(tmp_path, [], study={"command": "sdediff bench", "versions": {}, "failures": []})
    page.write(tmp_path)
    for name in ("index.html", "README.md"):
        assert "No cell has finished yet" in (tmp_path / name).read_text()
    assert not (tmp_path / "figures").exists()


def test_a_network_has_sections_of_its_own(tmp_path):
    rows = curve("ddim", 1, 1) + [row("ddim", n, 0.1, metric=SLICED, floor=FLOOR, score="network:moons") for n in NFE]
    page.write(save(tmp_path, rows))
    text = (tmp_path / "README.md").read_text()
    assert "## Ranking at each budget, score `exact`" in text and "## Ranking at each budget, score `network:moons`" in text
    assert text.count("Does the error fall at the declared order?") == 1
    assert (tmp_path / "figures" / "network-moons-gaussian-vpsde-work-precision.png").is_file()


# -- sentences on crafted rows ---------------------------------------------------------------------------------------------------
def said(rows):
    return findings.statements(Results(rows))


def test_the_best_is_named_with_its_lead():
    rows = [row("a", 10, 0.1), row("b", 10, 0.25), row("c", 10, 0.5)]
    assert "At 10 calls the best ODE method is `a`, 2.50 times ahead of `b` (path RMSE, one case)." in said(rows)


def test_overlapping_intervals_are_not_told_apart():
    rows = [row("a", 10, 0.1, low=0.08, high=0.12), row("b", 10, 0.13, low=0.11, high=0.15), row("c", 10, 0.4, low=0.3, high=0.5)]
    assert "At 10 calls the best ODE methods are `a` and `b`, not told apart, 4.00 times ahead of `c` (path RMSE, one case)." in said(rows)
    table = findings.ranking(Results(rows), PATH, "ODE")
    assert [(who.method, place.rank, place.tied) for who, place in table.at(10)] == [("a", 1, True), ("b", 1, True), ("c", 3, False)]


def test_whoever_meets_the_floor_is_not_ranked_behind_the_best():
    floor = (0.1, 0.08, 0.12)
    rows = [row("a", 10, 0.02, metric=SLICED, floor=floor), row("b", 10, 0.125, metric=SLICED, floor=floor), row("c", 10, 0.2, metric=SLICED, floor=floor)]
    table = findings.ranking(Results(rows), SLICED)
    assert [(who.method, place.rank, round(place.ratio, 6)) for who, place in table.at(10)] == [("a", 1, 1), ("b", 1, 1), ("c", 3, 2)]


def test_errors_below_the_reference_are_equal():
    rows = [row("a", 10, 1e-15, metric=MOMENT), row("b", 10, 9e-12, metric=MOMENT), row("c", 10, 3e-11, metric=MOMENT)]
    assert [place.ratio for _, place in findings.ranking(Results(rows), MOMENT).at(10)] == pytest.approx([1, 1, 3])


def test_an_interval_of_a_path_error_that_reaches_zero_is_not_at_the_floor():
    assert not Results([row("a", 10, 0.1, low=0.0)]).rows[0].at_floor


def test_medians_over_cases_and_missing_cases():
    rows = [row("a", 10, v, target=t) for t, v in (("x", 1.0), ("y", 1.0), ("z", 8.0))]
    rows += [row("b", 10, v, target=t) for t, v in (("x", 3.0), ("y", 2.0), ("z", 1.0))]
    rows += [row("c", 10, 6.0, target="x")]
    table = findings.ranking(Results(rows), PATH)
    places = {who.method: place for who, place in table.at(10)}
    assert places["a"] == (1, 1, 3, 3) and places["b"] == (2, 2, 3, 3) and places["c"] == (6, 3, 1, 3)
    assert [who.method for who, _ in table.at(10)] == ["a", "b", "c"] and table.best == (1.0,)
    assert "At 10 calls the best ODE method is `a`, 2.00 times ahead of `b` (path RMSE, median over 3 cases)." in said(rows)


def test_a_budget_takes_the_run_that_used_most_of_it():
    runs = Results([row(nfe=n, value=1 / n) for n in (3, 5, 6, 9, 10, 12)]).curves(PATH)
    (mine,) = runs.values()
    assert [r.nfe if (r := findings.within(mine, b)) else None for b in (2, 5, 10, 11, 25)] == [None, 5, 10, 10, None]


def test_budgets_are_what_most_contestants_met():
    rows = [row(f"m{k}", n, 1.0) for k in range(6) for n in NFE] + [row("two", n - 1, 1.0) for n in NFE] + [row("odd", 33, 1.0)]
    assert Results(rows).budgets == NFE
    assert Results([row("heun", n, 1.0) for n in (9, 19, 39)]).budgets == (9, 19, 39)


def test_diverged_runs_are_infinitely_far_and_infinite_seeds_stay_so():
    rows = [row("a", 10, 0.1), row("b", 10, math.nan, low=math.nan, high=math.nan)]
    assert [p.ratio for _, p in findings.ranking(Results(rows), PATH).at(10)] == [1, math.inf]
    assert "At 10 calls the best ODE method is `a`, all others diverged (path RMSE, one case)." in said(rows)


def test_seeds_are_averaged():
    (mine,) = Results([row(value=1.0, seed=0), row(value=3.0, seed=1)]).curves(PATH).values()
    assert [(r.value, r.low, r.high) for r in mine] == [pytest.approx((2.0, 1.8, 2.2))]


def test_sentences_that_say_the_same_are_merged():
    rows = [r for n in NFE for r in (row("a", n, 0.1, metric=SLICED, kind="SDE", floor=FLOOR), row("b", n, 0.1, metric=SLICED, kind="SDE", floor=FLOOR))]
    assert "At 10, 20, 40 and 80 calls the 2 SDE methods are not told apart (sliced W2, one case)." in said(rows)


def test_floor_sentences():
    rows = curve("a", 2, 2, metric=SLICED, floor=FLOOR) + curve("b", 1, 1, metric=SLICED, floor=FLOOR)
    assert "No method differs from the floor of sliced W2 from 40 calls on gaussian under VPSDE." in said(rows)
    assert "The quickest ODE methods reach the floor of sliced W2 with 10 calls, in one case." in said(rows)
    stuck = [row("c", n, 0.5, metric=SLICED, floor=FLOOR) for n in NFE]
    assert not [s for s in said(rows + stuck) if s.startswith("No method differs")]
    assert "No method reaches the floor of sliced W2 in one case: gaussian, VPSDE." in said(stuck)


def test_kinds_are_compared_by_the_distance_both_have():
    rows = [row("a", 10, 0.1, metric=SLICED, floor=FLOOR), row("s", 10, 0.3, metric=SLICED, kind="SDE", floor=FLOOR)]
    assert "At 10 calls the best ODE method, `a`, is ahead of `s`, the best SDE method, by a factor of 3.00 (sliced W2, one case)." in said(rows)


def test_slopes_outside_their_theory():
    rows = curve("short", 1, 1.6, order=2) + curve("nearly", 1, 1.75, order=2) + curve("steep", 1, 3, order=2)
    bend = [row("bends", n, v, order=3) for n, v in zip(NFE, (1, 0.5, 0.2, 0.06, 0.01))]
    seen = {s.who.method: s for s in findings.slopes(Results(rows + bend))}
    assert {name: (s.short, s.rising) for name, s in seen.items()} == {"short": (True, False), "nearly": (False, False), "steep": (False, False),
                                                                         "bends": (True, True)}
    assert seen["short"].slope == pytest.approx(1.6) and (seen["short"].first, seen["short"].last) == pytest.approx((20, 80))
    sentences = said(rows + bend)
    assert any(s.startswith("2 of 4 methods with a declared order fall at it in every case") for s in sentences)
    assert "`short` is outside its theory in one case on gaussian under VPSDE: slope 1.60 of 2, 20 to 80 calls." in sentences
    assert "Short of its order only where the curve is still steepening at its last run: `bends`." in sentences


def test_the_floor_is_left_out_of_slopes():
    values = (1e-4, 1e-6, 1e-8, 2e-11, 1e-12)
    (seen,) = findings.slopes(Results([row("a", n, v, metric=MOMENT, order=4) for n, v in zip(NFE, values)]))
    assert (seen.first, seen.last, seen.points) == (pytest.approx(5), pytest.approx(20), 3)
    assert seen.slope == pytest.approx(-np.polyfit(np.log(NFE[:3]), np.log(values[:3]), 1)[0])
    assert findings.slopes(Results([row("a", 5, 1.0), row("a", 6, 0.5)])) == []


def test_grids_and_guests():
    rows = [row("a", 10, v, grid=g) for g, v in (("logsnr", 0.1), ("karras", 0.3))] + [row("b", 10, 0.2), row("Mine", 10, 0.15, source="m:Mine")]
    sentences = said(rows)
    assert "At 10 calls `logsnr` is the best grid for 1 of the 1 ODE methods that ran on several (path RMSE)." in sentences
    assert "`Mine (m)` is 2nd at 10 calls among 4 ODE methods (path RMSE)." in sentences
    assert {str(who) for who, _ in Results(rows).curves(PATH)} == {"a, logsnr", "a, karras", "b", "Mine (m)"}


def test_a_grid_of_the_process_is_no_name():
    rows = [row("a", 10, 0.1, grid="logsnr"), row("a", 10, 0.1, grid="karras", process="EDMSDE")]
    assert [str(who) for who, _ in Results(rows).curves(PATH)] == ["a", "a"]


def test_highlights_are_few_distinct_and_include_baselines_and_guests():
    rows = [r for k in range(9) for r in curve(f"m{k}", 1 + k, 2)] + curve("twin", 1, 2) + curve("ddim", 40, 1)
    rows += curve("Mine", 90, 1, source="m:Mine") + curve("Worse", 95, 1, source="m:Worse")
    assert [who.method for who in findings.highlights(Results(rows))] == ["m0", "m1", "m2", "m3", "ddim", "Mine", "Worse"]


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (None, ""), (math.inf, "∞"), (0.0123456, "0.0123"), (123.456, "123"), (1.5e-5, "1.5e-5"),
                                             (-2.5, "-2.50"), (99999, "1.0e5")])
def test_numbers(value, text):
    assert findings.number(value) == text


def test_ordinals():
    assert [findings.ordinal(k) for k in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]


# -- figures ---------------------------------------------------------------------------------------------------------------------
def test_work_precision_axes():
    before = dict(matplotlib.rcParams)
    results = Results(study())
    figure = figures.work_precision(results, Case("VPSDE", "gaussian"), figures.marks(findings.highlights(results)))
    assert [ax.get_ylabel() for ax in figure.axes] == ["path RMSE [data units]", "", "sliced $W_2$ [data units]", "", "$W_2$ of exact moments [data units]", ""]
    assert [ax.get_xlabel() for ax in figure.axes[-2:]] == ["NFE [network calls per sample]", "wall time of the run [seconds]"]
    assert all((ax.get_xscale(), ax.get_yscale()) == ("log", "log") for ax in figure.axes)
    assert "floor, two exact samples of n = 1000" in figure.axes[3].get_title(loc="right")
    texts = {text.get_text() for text in figure.axes[2].texts}
    assert {"ddim", "heun", "Mine (my.module)", "ddpm", "seeds-2"} <= texts
    assert dict(matplotlib.rcParams) == before
    figure.canvas.draw()
    size = figure.get_size_inches() * figure.dpi
    boxes = [text.get_window_extent() for ax in figure.axes for text in ax.texts if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= size[0] for box in boxes)                  # nothing is clipped
    labels = [text.get_window_extent() for text in figure.axes[2].texts if text.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])


def test_marks_survive_black_and_white():
    named = findings.highlights(Results(study()))
    marks = figures.marks(named)
    assert len({(m.marker, str(m.dashes), m.filled) for m in marks.values()}) == len(named)
    assert len(set(marks.values())) == len(named)


def test_a_picture_is_a_small_png_on_white_paper():
    from io import BytesIO

    from PIL import Image
    figure = _figure(2, 1)
    figure.subplots().plot([1, 2], color=figures.VERMILLION)
    image = Image.open(BytesIO(figures.png(figure)))
    assert image.mode == "P" and image.size == (2 * figures.DPI, figures.DPI)
    colours = {colour for _, colour in image.convert("RGB").getcolors(10000)}
    assert (255, 255, 255) in colours and (0xd5, 0x5e, 0x00) in colours


def test_slopes_samples_and_budget_are_drawn():
    seen = findings.slopes(Results(study()))
    figure = figures.orders(seen)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["ddim", "ddpm", "seeds-2", "Mine (my.module)", "heun", NASTY]
    x = np.random.default_rng(0).normal(size=(50, 2))
    figure = figures.samples(Case("VPSDE", "banana"), [x, x], [("ddim", [("5 calls", 9 + x), ("80 calls", x)])])
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["one draw", "another draw", "5 calls, 50 outside", "80 calls"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"", "$x_1$ [data units]"}
    parts = [figures.Part("a", 2.0, 1.0, 3.0), figures.Part("b", -0.5, -0.6, -0.4)]
    figure = figures.budget(parts, figures.Part("total", 1.4, 1.2, 1.6), "sliced W2 [data units]")
    bars = figure.axes[0].patches
    assert [(b.get_x(), b.get_width()) for b in bars] == [(0, 2), (-0.5, 0.5), (0, 1.4)] and figure.axes[0].get_xlabel() == "sliced W2 [data units]"


@hypothesis.given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(lambda v: sorted(v, reverse=True)))
def test_labels_are_spread_in_order_and_inside(heights):
    gap = min(0.07, 1 / max(1, len(heights) - 1))
    placed = figures._spread(heights, 0.07)
    assert len(placed) == len(heights) and all(-1e-9 <= p <= 1 + 1e-9 for p in placed)
    assert all(a - b >= gap - 1e-9 for a, b in zip(placed, placed[1:]))
    if all(a - b >= gap for a, b in zip(heights, heights[1:])) and len(heights) > 1:
        assert placed == pytest.approx(heights, abs=1e-9)


def test_contestants_are_named():
    assert str(Contestant("sdediff", "ddim", "", "ODE", 1)) == "ddim"
    assert str(Contestant("diffusers 0.42", "UniPC", "karras", "ODE", 2)) == "UniPC, karras (diffusers 0.42)"
