"""Every wrong value of every argument of every public callable is refused in words, and every legitimate one is served."""
import pytest

from sdediff.testing import doors
from sdediff.testing.domains import cases, trial

CALLED = lambda: doors.NETWORK.calls


@pytest.mark.parametrize("name", doors.DOORS)
def test_wrong_calls_are_refused_and_others_are_served(name):
    bad = []
    for case in cases(doors.DOORS[name]):
        kind, said = trial(case, CALLED)
        if kind != ("refused" if case.wrong else "served"):
            bad.append(f"{kind:8} {case}: {said}")
    assert not bad, f"{len(bad)} cases:\n" + "\n".join(bad)
