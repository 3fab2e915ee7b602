"""The committed reference run: some of its cells computed again, its page from its rows, and what they must show."""
from pathlib import Path

import pytest

from sdediff.bench import Study, cells, findings, page, study

ROOT = Path(__file__).resolve().parent.parent
ROWS = study.read(ROOT / "benchmarks/results/reference.csv")
PAGE = (ROOT / "docs/benchmark/README.md").read_text(encoding="utf-8")
AGAIN = Study(methods=("ddim", "heun", "eab-3", "unipc-2", "ddpm", "dpm++2m-sde"), targets=("gaussian", "8-gaussians"), nfe=(10, 50))


@pytest.mark.slow
@pytest.mark.parametrize("cell", AGAIN.cells()[::5], ids=lambda cell: cell.name)
def test_cells_come_out_again(cell, tmp_path_factory):
    """To the five digits that are kept. A sliced W2 is a mean over sorted samples, as exact as they are."""
    folder = tmp_path_factory.getbasetemp() / "reference"
    kept = {r.metric: r for r in ROWS if r.cell == cells.identify(cell)}
    found = {r.metric: r for r in cells.run(cell, folder).rows if r.metric in kept}
    assert findings.SLICED in found and found.keys() == kept.keys()
    for name, row in found.items():
        assert row.value == pytest.approx(kept[name].value, rel=1e-4) and (row.nfe, row.kind) == (kept[name].nfe, kept[name].kind), name


def test_the_page_says_what_the_rows_say():
    said = findings.statements(findings.Results(ROWS))
    assert len(said) > 10 and page.as_markdown([page.Items(said)]).strip() in PAGE
    assert all((ROOT / "docs/benchmark" / name).is_file() for name in
               [line.split("](")[1].rstrip(")") for line in PAGE.splitlines() if line.startswith("![")])
