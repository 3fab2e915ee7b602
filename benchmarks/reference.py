"""The committed reference run: benchmarks/results/reference.csv, and its page, docs/benchmark/.

    sdediff bench --grids own --jobs 2 --out full           # every method on its own grid, forty minutes on two cores
    python benchmarks/reference.py full

Of a full study it keeps what its page ranks by, so that the table stays small: methods on their own grids, with the RMSE and the median of
path errors, sliced W2 and the W2 of exact moments, to five digits. ``tests/test_reference.py`` computes some of its cells again, and the
sentences of its page.
"""
from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from sdediff import files
from sdediff.bench import cells, findings, full, page, study

ROOT = Path(__file__).resolve().parent.parent

TABLE, DOCUMENT, PAGE = ROOT / "benchmarks/results/reference.csv", ROOT / "benchmarks/results/reference.json", ROOT / "docs/benchmark"
METRICS = (findings.PATH, findings.MEDIAN, findings.SLICED, findings.MOMENT)
WIDE = 1400                                     # pixels of a committed picture


def kept(rows: list[cells.Row]) -> list[cells.Row]:
    """The rows of the reference, from those of a full study."""
    own = {cells.identify(cell) for cell in full(grids=(study.OWN,)).cells()}
    shorter = lambda v: float(f"{v:.5g}") if isinstance(v, float) else v
    return [cells.Row._make(map(shorter, row)) for row in rows if row.cell in own and row.metric in METRICS]


def write(folder: Path) -> None:
    rows = kept(study.read(folder))
    files.write(TABLE, study.as_csv(rows))
    shutil.copy(folder / study.STUDY, DOCUMENT)
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(TABLE, Path(place) / study.RESULTS)
        shutil.copy(DOCUMENT, Path(place) / study.STUDY)
        page.write(place)
        shutil.rmtree(PAGE, ignore_errors=True)
        (PAGE / "figures").mkdir(parents=True)
        shutil.copy(Path(place) / "README.md", PAGE / "README.md")
        for picture in sorted(Path(place).glob("figures/*.png")):
            image, file = Image.open(picture).convert("RGB"), io.BytesIO()
            small = image.resize((WIDE, round(image.height * WIDE / image.width)), Image.Resampling.LANCZOS)
            small.quantize(64).save(file, "PNG", optimize=True)
            (PAGE / "figures" / picture.name).write_bytes(file.getvalue())
    print(f"{TABLE.relative_to(ROOT)}: {len({r.cell for r in rows})} cells, {len(rows)} rows; {PAGE.relative_to(ROOT)}/README.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a finished full study")
    write(parser.parse_args().folder)
