"""The committed study of guidance: its cells come out again, its page is what they say, and says no more than they do."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import guidance as study

ROWS = study.read()
BY = {(r.law, r.method, r.scale, r.to): r for r in ROWS}
PRODUCT, CLASS = study.PRODUCT, study.GIVEN


@pytest.mark.parametrize(("law", "method", "w"), [("overlapping", "classifier", 4.0), ("three classes", "interval", 8.0),
                                                  ("three classes", "classifier-free", 1.0)])
def test_cells_come_out_again(law, method, w):
    for row in study.cell(law, method, w):
        kept = BY[row.law, row.method, row.scale, row.to]
        assert row.calls == kept.calls
        assert (row.sliced_w2, row.floor, row.energy) == pytest.approx((kept.sliced_w2, kept.floor, kept.energy), rel=1e-3, abs=1e-5)


def test_a_cold_cell_comes_out_again():
    (row,), kept = study.temperature_cell("gaussian", "s of the data", 0.25), BY["gaussian", "temperature, s of the data", 0.25, "p(x)^(1/T)"]
    assert row.sliced_w2 == pytest.approx(kept.sliced_w2, rel=1e-3)


def test_the_page_is_what_the_results_say():
    assert (study.PAGE / "README.md").read_text(encoding="utf-8") == study.page(ROWS)


def far(row):
    return row.sliced_w2 > row.floor + 3 * row.stderr


def test_what_the_page_claims():
    """At scale 1 every method samples the conditional law, from 4 on none of the plain ones the product; the flow is not the SDE."""
    for law in study.LAWS:
        assert not any(far(BY[law, m, 1.0, CLASS]) for m in study.methods(law))
        for w in (4.0, 8.0):
            flow, sde = (BY[law, m, w, PRODUCT] for m in ("classifier-free", "classifier-free, SDE"))
            assert far(flow) and far(sde) and flow.sliced_w2 > sde.sliced_w2 + 3 * sde.stderr
            assert BY[law, "interval", w, PRODUCT].sliced_w2 < flow.sliced_w2
    assert not any(far(BY["gaussian", "temperature, s of the data", T, "p(x)^(1/T)"]) for T in study.TEMPERATURES)
    assert max(r.sliced_w2 for r in ROWS if r.to == "itself") < 0.2 * min(r.floor for r in ROWS if r.floor)
