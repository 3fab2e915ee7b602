"""Runs of images from the command line: a folder of them, U-Nets, sheets of samples and their animation."""
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sdediff import nets, plots, runs
from sdediff.cli import main

TINY = ["--network.width", "8", "--network.multipliers", "[1, 2]", "--network.attention", "[]", "--training.steps", "150", "--training.batch", "16",
        "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red and blue pictures, a folder each."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(40):
        kind = ("blue", "red")[k % 2]
        (folder / kind).mkdir(exist_ok=True)
        Image.new("RGB", (12, 9), (200 + k, 0, 30) if kind == "red" else (30, 0, 200 + k)).save(folder / kind / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "photos"
    assert main(["train", "--data", str(folder), "--size", "8", "--conditional", "true", *TINY, "--out", str(out)]) == 0
    return out


def sample(run, *more):
    return main(["sample", str(run), "--steps", "8", "--quiet", *more])


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def frames(path):
    """Size and number of an animation's frames, and the last."""
    with Image.open(path) as image:
        image.seek(image.n_frames - 1)
        return image.size, image.n_frames, np.array(image.convert("RGB"))


def refused(capsys, *argv):
    assert main([str(a) for a in argv]) == 2
    return capsys.readouterr().err


def test_a_folder_is_learned_by_class(run, folder, tmp_path):
    config, checkpoint, score = runs.read(run)
    assert config["size"] == 8 and isinstance(score.network, nets.UNet) and score.network.event == (3, 8, 8) and score.network.classes == 2
    assert (checkpoint.config.weighting, checkpoint.config.drop, score.predicts) == ("v", 0.1, "v")
    for name, label, red in (("red", "1", 0), ("blue", "0", 2)):
        for which in (name, label):
            assert sample(run, "--class", which, "--guidance", "2", "--n", "6", "--out", str(tmp_path / f"{which}.npy")) == 0
        x = np.load(tmp_path / f"{name}.npy")
        assert x.shape == (6, 3, 8, 8) and np.array_equal(x, np.load(tmp_path / f"{label}.npy"))
        assert (x[:, red].mean((1, 2)) > x[:, 2 - red].mean((1, 2))).all()
    assert (yaml.safe_load((run / "config.yaml").read_text())["data"]) == str(folder)


def test_a_sheet_shows_the_samples(run, tmp_path, capsys):
    assert sample(run, "--grid", "2x3") == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("dpm++2m-seed1.png")
    assert sample(run, "--n", "6", "--out", str(tmp_path / "x.npy")) == 0
    picture, x = pixels_of(path), np.load(tmp_path / "x.npy")
    times = picture.shape[0] // (2 * 9 - 1)
    assert picture.shape == (17 * times, 26 * times, 3) and 500 < picture.shape[1] < 900
    pixels = picture[::times, ::times]
    for k in range(6):
        tile = pixels[k // 3 * 9:, k % 3 * 9:][:8, :8]
        assert np.abs(tile - ((x[k].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255)).max() <= 1
    assert (pixels[8] == 255).all()
    assert sample(run, "--n", "5", "--out", str(tmp_path / "five.png")) == 0          # 2 rows of 3, one of them empty
    assert pixels_of(tmp_path / "five.png").shape == picture.shape


def test_an_animation_ends_at_the_samples(run, tmp_path):
    assert sample(run, "--grid", "2x2", "--out", str(tmp_path / "way.gif"), "--class", "red", "blue") == 0
    size, count, last = frames(tmp_path / "way.gif")
    assert count == 48 and min(size) >= 250
    red, blue = ((last[..., k].astype(int) - last[..., 2 - k] > 120).mean() for k in (0, 2))
    assert red > 0.1 and blue > 0.1                                                     # of each half the pictures


def test_points_have_pictures_too(tmp_path):
    out = tmp_path / "moons"
    assert main(["train", "--network.width", "8", "--training.steps", "20", "--quiet", "--out", str(out)]) == 0
    for name in ("x.png", "x.gif"):
        assert sample(out, "--n", "50", "--out", str(tmp_path / name)) == 0
    assert min(pixels_of(tmp_path / "x.png").shape[:2]) >= 250 and frames(tmp_path / "x.gif")[:2] == ((250, 300), 48)


def test_wrong_lines_are_refused_by_name(run, folder, tmp_path, capsys):
    line = ["sample", run, "--steps", "3", "--quiet"]
    assert "n=5, grid='2x2': a sheet of 4 images" in refused(capsys, *line, "--grid", "2x2", "--n", "5")
    assert "expected a run of images, and a picture" in refused(capsys, *line, "--grid", "2x2", "--out", tmp_path / "x.npy")
    assert "grid='0x2'" in refused(capsys, *line, "--grid", "0x2")
    assert "class='green': photos" in refused(capsys, *line, "--class", "green")
    assert "it chooses its own steps" in refused(capsys, "sample", run, "--method", "rk45", "--out", tmp_path / "x.gif", "--quiet")
    assert "ends in .npy, .csv, .png or .gif" in refused(capsys, *line, "--out", tmp_path / "x.jpg")
    train = ["train", "--data", folder, *TINY, "--out", tmp_path / "new"]
    assert "network.fourier=2: a network of kind 'unet' has none" in refused(capsys, *train, "--network.fourier", "2")
    assert "network.patch=2: a network of kind 'mlp' has none" in refused(
        capsys, "train", *TINY[-1:], "--out", tmp_path / "new", "--network.patch", "2")
    assert "network.kind='net'" in refused(capsys, *train, "--network.kind", "net")
    assert "size=16: data='digits' have a size of their own" in refused(capsys, "train", "--data", "digits", "--size", "16", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not (tmp_path / "x.npy").exists()
    again = ["train", "--data", folder, "--size", "4", "--conditional", "true", "--network.width", "8", "--out", run, "--resume"]
    assert "size=4: the run in" in refused(capsys, *again)
    assert "chunk=3, out=" in refused(capsys, *line, "--chunk", "3", "--out", tmp_path / "x.gif")
    assert "is a folder; expected a file" in refused(capsys, *line, "--out", (tmp_path / "f.png").mkdir() or tmp_path / "f.png", "--overwrite")
    assert "grid='8*8': expected ROWSxCOLUMNS" in refused(capsys, *line, "--grid", "8*8")
    before = sorted(run.rglob("*"))
    assert "class='../x': photos" in refused(capsys, *line, "--class", "../x") and sorted(run.rglob("*")) == before
    assert "data='phtos': no such folder" in refused(capsys, "train", "--data", "phtos", "--size", "8", "--out", tmp_path / "new")
    assert "data='': expected a name" in refused(capsys, "train", "--data", "", "--out", tmp_path / "new")


def test_a_folder_that_has_changed_is_refused(folder, tmp_path, capsys, monkeypatch):
    """Its classes and its held-out part would be others. The run knows where the folder is, from wherever it is asked."""
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "mine", "--size", "8", "--conditional", "true", *TINY[:-1], "--training.steps", "2", "--quiet"]) == 0
    monkeypatch.chdir(mine)
    run = tmp_path / "runs" / "mine"
    assert sample(run, "--class", "blue", "--n", "2") == 0
    (mine / "azure").mkdir()
    for k in range(0, 20, 2):
        shutil.copy(mine / "blue" / f"{k}.png", mine / "azure" / f"{k}.png")
    assert "it has changed since the run was trained" in refused(capsys, "sample", run, "--class", "blue", "--n", "2")


def test_a_network_of_the_other_kind_needs_no_more_words(tmp_path):
    for more in (["--network.kind", "mlp"], ["--network.patch", "4"], ["--network.multipliers", "[1, 2]"]):
        out = tmp_path / more[1][:2]
        assert main(["train", "--data", "mnist", *more, "--network.width", "8", "--training.steps", "1", "--training.batch", "2", "--quiet",
                     "--out", str(out)]) == 0
        assert isinstance(runs.read(out)[2].network, nets.MLP) == (more[1] == "mlp")


@pytest.mark.parametrize(("data", "size", "patch", "heights"), [("mnist", None, 2, [7]), ("folder", None, 2, [8]), ("folder", 64, 4, [8]),
                                                               ("folder", 128, 8, [8]), ("folder", 27, 1, [14]), ("folder", 12, 1, [6])])
def test_the_preset_of_images_is_a_network_that_can_be_built(data, size, patch, heights, folder):
    side = size or {"mnist": 28}.get(data, 32)
    chosen = runs.preset(str(folder) if data == "folder" else data, "vp", size=size)
    network = runs.NetworkConfig(**{k[8:]: v for k, v in chosen.items() if k.startswith("network.")})
    assert (network.patch, network.attention) == (patch, heights)
    assert network.build((1, side, side), seed=0)(torch.zeros(2, 1, side, side), torch.zeros(2)).shape == (2, 1, side, side)


def test_a_sheet_of_grey_images_is_not_inverted():
    x = torch.stack([torch.full((1, 4, 4), v) for v in (-1.0, 0.0, 1.0, 5.0)])
    pixels = np.array(plots.sheet(x, (2, 2), width=1))
    assert pixels.shape == (9, 9) and (pixels[:4, :4] == 0).all() and (pixels[:4, 5:] == 128).all() and (pixels[5:] == 255).all()
