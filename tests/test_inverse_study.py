"""The committed study of posterior samplers: some of its rows computed again, and the page that is made of them."""
import pytest

from benchmarks import inverse as study
from benchmarks.inverse_page import page

ROWS = {row[:3]: row for row in study.read()}


def test_the_study_is_whole():
    assert set(ROWS) == set(study.cells())


@pytest.mark.parametrize(("problem", "method", "calls"), [
    ("plane, one coordinate", "tweedie", 20), ("plane, one coordinate", "smc, 16 particles", 50), ("plane, one coordinate", "repaint", 20),
    ("plane, one coordinate", "dps, zeta=0.3", 20), ("8 dimensions, projection", "diffpir", 20), ("8 dimensions, projection", "ddrm", 20),
    ("8 dimensions, projection", "exact posterior score", 20)])
def test_a_row_computed_again(problem, method, calls):
    again, kept = study.measure(problem, method, calls), ROWS[problem, method, calls]
    assert again.nfe == kept.nfe <= calls
    assert again[4:7] == pytest.approx(kept[4:7], rel=1e-2)
    assert (again.ess is None) == (kept.ess is None)


def test_the_page_says_what_the_rows_say():
    assert (study.PAGE / "README.md").read_text() == page()


def test_the_exact_score_is_at_the_floor_and_smc_converges():
    for problem in study.PROBLEMS:
        floor, last = ROWS[problem, "floor", 0], study.BUDGETS[-1]
        assert ROWS[problem, "exact posterior score", last].sliced_w2 < 2 * floor.sliced_w2
        few, many = (ROWS[problem, f"smc, {k} particles", last].sliced_w2 for k in (study.PARTICLES[0], study.PARTICLES[-1]))
        assert many < few
