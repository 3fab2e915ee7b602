"""The examples as they are run, at their small size: what they write and what they print."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import sdediff
from sdediff import nets
from sdediff.data import load
from sdediff.targets import Gaussian

EXAMPLES = Path(__file__).parents[1] / "examples"


def module(name):
    """An example as a module, for its parts."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


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
    named = set(re.findall(r'(?:example|quick)\("(\w+\.py)"', Path(__file__).read_text()))
    assert named == {p.name for p in EXAMPLES.glob("*.py")}


def test_the_tour():
    rows = [line.split() for line in example("00_tour.py").splitlines()]
    assert [row[0] for row in rows] == ["ddim", "dpm++2m", "unipc-3", "auto", "ddpm", "sa-solver", "exact"]
    distance = {row[0]: float(row[1]) for row in rows}
    assert distance["auto"] < 0.05 < distance["ddim"] < 0.1


@pytest.mark.slow
def test_a_network_of_one_s_own():
    distance = {line.split()[0]: float(line.split()[1]) for line in example("01_own_network.py").splitlines()}
    assert all(distance[name] < 0.1 for name in ("heun", "dpm++2m", "ddpm", "euler-maruyama")) and distance["exact"] < 0.05


@pytest.mark.slow
def test_a_solver_of_one_s_own(tmp_path):
    said = example("10_own_solver.py", str(tmp_path))
    assert "18 passed" in said and "failed" not in said
    assert 1.85 < float(re.search(r"order +passed +([\d.]+)", said)[1]) < 2.2
    assert len(re.findall(r"^\d+ calls: .*ExponentialMidpoint", said, re.MULTILINE)) == 4 and (tmp_path / "index.html").is_file()


def test_ddpm_is_a_solver():
    gaps = [float(line.split()[-1]) for line in example("02_ddpm_is_an_sde_solver.py").splitlines() if re.match(r" +\d+ ", line)]
    assert len(gaps) == 2 * (6 + 3 * 2) and max(gaps) < 1e-12


@pytest.mark.slow
def test_one_picture(tmp_path):
    """A network trained for seconds: DDPM and the stochastic fast method find the picture, the slip does not; the run goes on."""
    said = example("03_single_image.py", "--quick", "true", "--threads", "1", "--out", str(tmp_path))
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
    assert example("03_single_image.py", "--quick", "true", "--threads", "1", "--out", str(tmp_path)) == said      # nothing is trained again


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_digits(data, tmp_path):
    said = example("04_digits.py", "--data", data, "--quick", "true", "--threads", "1", "--out", str(tmp_path))
    accuracy = {line[:30].strip(): float(line.split("%")[0].split()[-1]) for line in said.splitlines() if "%" in line}
    assert len(accuracy) == 9 and accuracy["real digits"] > 95
    assert accuracy["dpm++2m, classifier-free 3"] > {"digits": 90, "mnist": 60}[data]
    graded = (tmp_path / "graded.txt").read_text().splitlines()
    assert len(graded) >= 10 and set(graded) <= {"", *said.splitlines()}
    assert ("bits/dim" in said) == (data == "digits")
    for name in ("samples.png", "inpaint.png", "interpolation.png"):
        assert min(shape(tmp_path / name)[1:]) > 300


# -- small versions of famous systems -----------------------------------------------------------------------------------
def quick(name, out, *more):
    """The lines that an example prints and keeps, at its small size; the second time it trains nothing."""
    said = example(name, "--quick", "true", "--threads", "1", "--out", str(out), *more)
    kept = (out / "measured.txt").read_text().splitlines()
    assert set(kept) <= set(said.splitlines())
    return kept


@pytest.mark.slow
def test_cascade(tmp_path):
    lines = quick("05_cascade.py", tmp_path)
    assert [line.split(":")[0] for line in lines[:2]] == ["7x7 to 14x14", "14x14 to 28x28"]
    assert float(lines[2].split(": ")[1]) > 0.01
    assert shape(tmp_path / "cascade.png")[1:] > (600, 100) and shape(tmp_path / "several.png")[1:] > (300, 300)


@pytest.mark.slow
def test_sketch(tmp_path):
    rows = [line.split()[-4:] for line in quick("06_sketch.py", tmp_path)[1:5]]
    own, theirs = ([float(row[k]) for row in rows] for k in (0, 1))
    assert all(a > b for a, b in zip(own, theirs)) and min(shape(tmp_path / "sketches.png")[1:]) > 300


@pytest.mark.slow
def test_video(tmp_path):
    lines = quick("09_video.py", tmp_path)
    distance = {line[:28].strip(): float(line[28:].split()[0]) for line in lines[1:4]}
    assert distance["real clips, others"] < 0.7 * distance["samples, frames shuffled"]
    assert shape(tmp_path / "clips.gif")[0] == 8 and min(shape(tmp_path / "continued.png")[1:]) > 300


@pytest.mark.slow
def test_latent(tmp_path):
    lines = quick("07_latent.py", tmp_path)
    error = {line.split()[0]: float(line.split()[2]) for line in lines[1:3]}
    assert 0.1 < error["principal"] < 0.25 and error["convolutional"] < 0.6 and min(shape(tmp_path / "latent.png")[1:]) > 200


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["false", "true"])
def test_text(prior, tmp_path):
    lines = quick("08_text_to_digit.py", tmp_path, "--prior", prior, "--caption", '["a bold seven", "the digit two"]')
    assert [line.split(":")[0] for line in lines] == ["guidance 1", "    ink", "    slant", "guidance 2", "    ink", "    slant", "real digits"]
    assert min(shape(tmp_path / "captions.png")[1:]) > 400 and min(shape(tmp_path / "own.png")[1:]) > 100


def test_captions_say_what_is_measured():
    """Thirds of a class are thirds; a sheared picture is more slanted, a brighter one has more ink; unknown words are refused."""
    text = module("08_text_to_digit")
    data = load("mnist")
    x, y = data.train[:1000], data.labels[:1000]
    ink, slant = text.measured(x)
    assert torch.bincount(text.thirds(ink, y)).float().div(1000).sub(1 / 3).abs().max() < 0.02
    turn = torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, 0.0]]).expand(1000, 2, 3)           # output (x, y) is read at (x + 0.3 y, y)
    sheared = torch.nn.functional.grid_sample((x + 1) / 2, torch.nn.functional.affine_grid(turn, list(x.shape), align_corners=False),
                                              align_corners=False) * 2 - 1
    assert float((text.measured(sheared)[1] - slant).median()) == pytest.approx(0.3, abs=0.05)
    assert bool((text.measured((x + 0.5).clamp(-1, 1))[0] > ink).all())
    assert text.tokens("a bold seven").tolist() == [text.VOCABULARY.index(w) for w in ("a", "bold", "seven")] + [0] * 4
    with pytest.raises(ValueError, match="'purple' is not among the words"):
        text.tokens("a purple seven")


def test_latent_and_pixel_samplers_agree_on_gaussian_data():
    """Principal components keep lengths: with the exact scores of N(m, C) in pixels and of its components, a path in the latents, decoded,
    is the path in pixels from the decoded start, by any method of the flow."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=g, dtype=torch.float64) / 3
    mean, cov = torch.randn(12, generator=g, dtype=torch.float64), mix @ mix.T
    data = mean + torch.randn(4000, 12, generator=g, dtype=torch.float64) @ mix.T
    coder, sde = nets.Principal(data.view(-1, 3, 2, 2), 12), sdediff.VPSDE()
    centred = data.mean(0) - mean                                                         # the coder's centre is that of the samples
    pixels = Gaussian(-centred, cov)
    latents = Gaussian(-(coder.axes @ centred), coder.axes @ cov @ coder.axes.T)
    z = torch.randn(5, 12, generator=g, dtype=torch.float64)
    for method in ("ddim", "dpm++2m", "heun", "unipc-3"):
        a = sdediff.sample(sde, latents.score, x_init=z, method=method, steps=12)
        b = sdediff.sample(sde, pixels.score, x_init=z @ coder.axes, method=method, steps=12)
        assert float((coder.decode(a).flatten(1) - (b + coder.mean)).abs().max()) < 1e-10
        assert torch.allclose(coder.encode(coder.decode(a)), a, atol=1e-10)
    few = nets.Principal(data, 4)
    kept = few.decode(few.encode(data)) - data
    values = torch.linalg.eigvalsh(torch.cov(data.T))
    assert float(kept.square().sum(1).mean()) == pytest.approx(float(values[:-4].sum()), rel=1e-3)   # the least there is


def test_clips_move_by_a_pixel_or_not_and_stay_inside():
    video = module("09_video")
    clip = video.clips(load("mnist").train[:50], 0)
    assert clip.shape == (50, 8, 1, 12, 16)
    mass = (clip + 1).sum((2, 3, 4))
    assert torch.allclose(mass, mass[:, :1].expand_as(mass), rtol=1e-4)                  # all of the digit is in every frame
    speed = video.velocity(clip).abs()
    assert torch.allclose(speed, speed[:, :1].round().expand_as(speed), atol=1e-2) and set(speed[:, 0].round().tolist()) == {0.0, 1.0}
    assert torch.equal(clip, video.clips(load("mnist").train[:50], 0))
    shown = video.given(clip, torch.tensor([k % 5 for k in range(50)]))
    assert all(torch.equal(shown[k, :k % 5], clip[k, :k % 5] + 2) and not shown[k, k % 5:].any() for k in range(50))
