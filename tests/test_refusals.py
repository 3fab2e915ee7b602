"""Every wrong value of every argument of every public callable is refused in words, and every legitimate one is served."""
import csv
import pathlib

import pytest

from sdediff.cli import main
from sdediff.testing import census, doors
from sdediff.testing.domains import INT64, Integer, Real, State, cases, trial

ROOT = pathlib.Path(__file__).parent.parent
SLOW = ("tuning.tune", "likelihood.log_prob", "metrics.judge", "sampling.sample", "method gotta-go-fast",
        "testing.check_solver", "testing.strong_convergence", "plots.trajectory", "plots.forward", "doctor.examine", "doctor.of_run",
        "evaluate.inpaint", "evaluate.tune", "evaluate.measure", "evaluate.interpolate")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in census.DOORS]


@pytest.mark.filterwarnings("ignore::sdediff.NumericalWarning", "ignore:steps=:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_are_refused_and_others_are_served(name):
    if name in ("adapters.from_diffusers", "adapters.Scheduler"):
        pytest.importorskip("diffusers", reason="diffusers is adapted there: pip install 'sdediff[adapters]'")
    bad = []
    for case in cases(census.DOORS[name]):
        kind, said = trial(case, lambda: doors.NETWORK.calls)
        if kind != ("refused" if case.wrong else "served"):
            bad.append(f"{kind:8} {case}: {said}")
    assert not bad, f"{len(bad)} cases:\n" + "\n".join(bad)


def test_every_public_callable_has_a_door_and_every_argument_a_domain():
    assert not census.without_a_door()
    assert not census.without_a_domain()
    stale = [name for name in census.MADE | census.PROTOCOL if name not in dict(census.public())]
    assert not stale, f"declared, and not there: {stale}"


def test_a_domain_gives_values_on_both_sides_of_its_edges():
    assert {0, 11, 1.0} <= {v for v in Integer(1, 10).outside() if isinstance(v, (int, float))} and 10**400 in Integer().outside()
    assert {0.0, 1.5} <= {v for v in Real(0.0, 1.0, "low").outside() if isinstance(v, float)}
    assert 1.0 not in [v for v in Real(0.0, 1.0).outside() if isinstance(v, float)]
    assert all(not State((2, 2)).holds(v) for v in State((2, 2)).outside()) and None not in Integer(none=True).outside()
    assert Integer(0).holds(INT64) and not Integer(0).holds(True)


def accepts_anything(steps):
    return steps


def refuses_silently_late(steps):
    doors.NETWORK.calls += 1
    raise ValueError(f"steps={steps!r}: expected something else.")


@pytest.mark.parametrize("function, kind, word", [(accepts_anything, "silent", ""), (refuses_silently_late, "unclear", "after a network call"),
                                                  (lambda steps: len(steps), "unclear", "not raised by the library")])
def test_what_is_not_refused_in_words_is_seen(function, kind, word):
    """The instrument itself: calls that serve anything, fail late or fail with another's words are not counted as refused."""
    door = doors.Door("door", function, lambda: {"steps": 1}, {"steps": Integer(1)})
    found = [trial(case, lambda: doors.NETWORK.calls) for case in cases(door) if case.wrong]
    assert any(outcome.kind == kind and word in outcome.said for outcome in found) and not any(o.kind == "refused" for o in found)


def test_the_committed_table_is_of_these_entry_points_and_has_nothing_silent():
    with (ROOT / "benchmarks" / "results" / "reliability.csv").open() as file:
        rows = {row["entry"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(census.DOORS)
    assert all(int(row["silent"]) == int(row["unclear"]) == 0 for row in rows.values())
    assert all(int(row["cases"]) == sum(1 for _ in cases(census.DOORS[name])) for name, row in rows.items())
    total = sum(int(row["cases"]) for row in rows.values())
    assert f"{total} of them" in (ROOT / "docs" / "reliability" / "README.md").read_text()


# -- the command line ---------------------------------------------------------------------------------------------------
COMMANDS = ("train", "sample", "compare", "methods", "bench", "likelihood", "interpolate", "inpaint", "tune")
RUN = ("sample", "likelihood", "interpolate", "inpaint", "tune")
FLAGS = (["--no-such-flag"], ["--no-such-flag", "3"], ["--seed", "a"], ["--seed", "-1"], ["--seed", "1.5"], ["--n", "0"], ["--n", "x"], ["--n", "-3"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_flag_ends_a_command_with_one_clear_line(command, flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = ["run"] if command in RUN else []
    code = main([command, *needed, *flags])
    out, err = capsys.readouterr()
    assert code == 2 and not out and len(err.splitlines()) == 1, (code, out, err)
    assert flags[0].lstrip("-") in err or (needed and "run='run'" in err), err           # of a run that is not there nothing else is asked
    assert not list(tmp_path.iterdir())
