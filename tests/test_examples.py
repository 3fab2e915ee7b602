"""The examples as they are run, at their small size: what they write and what they print."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name, *more, timeout=240):
    """What it prints."""
    ran = subprocess.run([sys.executable, EXAMPLES / name, *more], capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def shape(path):
    """Frames, width and height of a picture."""
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1), *image.size


def test_every_example_is_run_here():
    named = set(re.findall(r'example\("(\w+\.py)"', Path(__file__).read_text()))
    assert named == {p.name for p in EXAMPLES.glob("*.py")}


def test_ddpm_is_a_solver():
    gaps = [float(line.split()[-1]) for line in example("ddpm_is_an_sde_solver.py").splitlines() if re.match(r" +\d+ ", line)]
    assert len(gaps) == 2 * (6 + 3 * 2) and max(gaps) < 1e-12


@pytest.mark.slow
def test_one_picture(tmp_path):
    """A network trained for seconds: DDPM and the stochastic fast method find the picture, the slip does not; the run goes on."""
    said = example("single_image.py", "--quick", "true", "--threads", "1", "--out", str(tmp_path))
    table = [re.match(r"(\S[\w+ -]*?\S)((?: +[\d.-]+)+)$", line) for line in said.splitlines()]
    rows = [(m[1], [float(v) for v in m[2].split()]) for m in table if m]
    assert [name for name, _ in rows] == ["ddpm", "ddim", "dpm++2m", "unipc-3", "deis-3", "ddpm", "sa-solver", "the slip"]
    assert rows[0][1][0] == 180 and rows[0][1][3] == 300 and all(row[0] == row[3] == 30 for _, row in rows[1:-1])
    for name, row in rows[:-1]:
        assert row[2] > 16 and (row[5] > 16 or name not in ("ddpm", "sa-solver")), name       # the least decibels, from either start
    assert rows[-1][1][1] < 10
    for name in ("forward.png", "denoised.png"):
        assert min(shape(tmp_path / name)[1:]) > 600
    assert shape(tmp_path / "denoising.gif")[0] == 36
    assert example("single_image.py", "--quick", "true", "--threads", "1", "--out", str(tmp_path)) == said      # nothing is trained again


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_digits(data, tmp_path):
    said = example("digits.py", "--data", data, "--quick", "true", "--threads", "1", "--out", str(tmp_path))
    accuracy = {line[:30].strip(): float(line.split("%")[0].split()[-1]) for line in said.splitlines() if "%" in line}
    assert len(accuracy) == 9 and accuracy["real digits"] > 95
    assert accuracy["dpm++2m, classifier-free 3"] > {"digits": 90, "mnist": 60}[data]
    graded = (tmp_path / "graded.txt").read_text().splitlines()
    assert len(graded) >= 10 and set(graded) <= {"", *said.splitlines()}
    assert ("bits/dim" in said) == (data == "digits")
    for name in ("samples.png", "inpaint.png", "interpolation.png"):
        assert min(shape(tmp_path / name)[1:]) > 300
