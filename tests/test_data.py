"""Datasets: three disjoint parts in the network's units, and clear words for files that cannot be read."""
import numpy as np
import pytest
import torch

from sdediff import data, targets


def _file(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=content.dtype == object)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    return str(path)


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(100, 3)) * [1, 10, 1e-3] + [0, 5, 1e6]


@pytest.mark.parametrize("name", targets.TOYS)
def test_toys(name):
    d = data.load(name, seed=3)
    assert d.event == (2,) and d.limit is None and not d.is_image and len(d.axes) == 2
    held, fresh = d.held_out(500), d.fresh(500)
    assert torch.equal(held, data.load(name, seed=3).held_out(500)) and not torch.equal(held, data.load(name, seed=4).held_out(500))
    assert not torch.equal(fresh, d.fresh(500, 1)) and not torch.equal(fresh, held) and not torch.equal(held, d.train[:500])
    assert torch.allclose(d.restore(held).float(), held)
    assert 0.5 < float(d.train.square().mean()) < 2


def test_digits():
    d = data.load("digits", seed=1)
    assert d.event == (1, 8, 8) and d.is_image and len(d.train) + 2 * d.limit in (1796, 1797)
    assert d.train.min() == -1 and d.train.max() == 1
    assert torch.equal(d.train, data.load("digits", seed=2).train)
    with pytest.raises(ValueError, match="n=1000"):
        d.held_out(1000)
    with pytest.raises(ValueError, match="draw=1"):
        d.fresh(10, 1)


def test_quantisation_undoes_dequantisation_and_leaves_points():
    d = data.load("digits")
    noise = torch.rand(d.train.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(d.quantise(d.train), d.train) and torch.equal(d.quantise(d.train + 0.999 * noise * 2 / 16), d.train)
    assert d.quantise(torch.tensor([-3.0, 3.0])).tolist() == [-1, 1]
    moons = data.load("two-moons")
    assert torch.equal(moons.quantise(moons.train), moons.train)


def test_mnist():
    d = data.load("mnist", seed=1)
    assert d.event == (1, 28, 28) and (len(d.train), d.limit) == (3000, 1000) and d.classes == tuple("0123456789")
    assert d.train.min() == -1 and d.train.max() == 1 and d.bins[0] == 256
    k = (d.train.double() - d.bins[1]) / (d.bins[2] - d.bins[1]) * 256 - 0.5                  # pixels are centres of their bins
    assert float((k - k.round()).abs().max()) < 1e-4 and int(k.max().round()) == 255
    assert torch.bincount(torch.cat([d.labels, d.labels_of("held-out", 1000), d.labels_of("fresh-0", 1000)])).tolist() == [500] * 10
    near = torch.cdist(d.held_out(200).flatten(1), d.train.flatten(1)).argmin(1)
    assert float((d.labels[near] == d.labels_of("held-out", 200)).double().mean()) > 0.85


# -- folders of images -----------------------------------------------------------------------------------------------------
@pytest.fixture
def pictures(tmp_path):
    """A folder of 24 images of 20x30 pixels, each of one colour, kind and size of file differ."""
    from PIL import Image
    for k in range(24):
        Image.new("RGB", (30, 20 + k % 3), (10 * k, 255 - 10 * k, 7)).save(tmp_path / f"{k:02d}.{('png', 'bmp', 'tiff')[k % 3]}")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image either")
    return tmp_path


def test_a_folder_of_images(pictures):
    d = data.load(str(pictures), size=8)
    assert d.event == (3, 8, 8) and (len(d.train), d.limit) == (14, 5) and d.classes == () and d.name == pictures.name
    assert data.load(pictures).event == (3, 32, 32)
    every = torch.cat([d.train, d.held_out(5), d.fresh(5)])
    assert torch.equal(every, every[:, :, :1, :1].expand_as(every))                            # one colour each
    red = ((every[:, 0, 0, 0] + 1) * 127.5).round().sort().values
    assert red.tolist() == [10 * k for k in range(24)] and torch.equal(every[:, 2], torch.full_like(every[:, 2], 2 * 7 / 255 - 1))
    with pytest.raises(ValueError, match="has no labels"):
        d.labels  # noqa: B018


def test_the_middle_square_is_kept_and_grey_images_have_one_channel(tmp_path):
    from PIL import Image
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 10:30] = np.repeat([0, 255], 10)
    for k in range(20):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    d = data.load(tmp_path, size=4)
    assert d.event == (1, 4, 4)
    assert bool((d.train[..., :2] < -0.8).all()) and bool((d.train[..., 2:] > 0.8).all())


def test_folders_in_a_folder_are_classes(pictures):
    for k, f in enumerate(sorted(f for f in pictures.iterdir() if f.suffix != ".txt" and not f.name.startswith("."))):
        kind = pictures / ("cats", "dogs")[k % 2]
        kind.mkdir(exist_ok=True)
        f.rename(kind / f.name)
    d = data.load(pictures, size=4)
    assert d.classes == ("cats", "dogs") and (d.label_of("dogs"), d.label_of("0")) == (1, 0)
    for part, x in (("train", d.train), ("held-out", d.held_out(5)), ("fresh-0", d.fresh(5))):
        number = ((x[:, 0, 0, 0] + 1) * 12.75).round().long()
        assert torch.equal(d.labels_of(part, len(x)), number % 2)
    for name in ("birds", "2", "-1"):
        with pytest.raises(ValueError, match=f"class='{name}': .* has the classes cats, dogs"):
            d.label_of(name)
    (pictures / "cats" / "00.png").rename(pictures / "00.png")
    with pytest.raises(ValueError, match=r"'00\.png' lies beside the folder 'cats'"):
        data.load(pictures)


def test_what_images_may_be(pictures):
    """Links are followed, once; transparent is white; more than 8 bits a channel are refused; a class needs a training image."""
    from PIL import Image
    (pictures / "loop").symlink_to(pictures)
    assert len(data.load(pictures, size=2).train) == 14
    (pictures / "loop").unlink()
    for k in range(24):
        Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(pictures / f"clear{k}.png")
    d = data.load(pictures, size=2)
    every = torch.cat([d.train, d.held_out(d.limit), d.fresh(d.limit)])
    assert int((every == 1).flatten(1).all(1).sum()) == 24
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(pictures / "deep.png")
    with pytest.raises(ValueError, match=r"'deep\.png' cannot be read \(of more than 8 bits a channel, mode I;16\)"):
        data.load(pictures)
    (pictures / "deep.png").unlink()
    for k, file in enumerate(sorted(pictures.glob("*.*"))):
        if file.suffix != ".txt" and not file.name.startswith("."):
            (pictures / f"kind{min(k, 9)}").mkdir(exist_ok=True)
            file.rename(pictures / f"kind{min(k, 9)}" / file.name)
    with pytest.raises(ValueError, match=r"none of the 1 images of class 'kind\d' falls to the training part"):
        data.load(pictures)


def test_classes_that_are_numbers_are_called_by_name(tmp_path):
    from PIL import Image
    for k in range(40):
        (tmp_path / str(1 + k % 2)).mkdir(exist_ok=True)
        Image.new("L", (2, 2), k).save(tmp_path / str(1 + k % 2) / f"{k}.png")
    d = data.load(tmp_path)
    assert (d.label_of("1"), d.label_of("2")) == (0, 1)
    with pytest.raises(ValueError, match=r"class='0': .* has the classes 1, 2"):
        d.label_of("0")


def test_names_come_before_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert data.load("digits").event == (1, 8, 8)
    with pytest.raises(ValueError, match="holds 0 images; expected at least 20"):
        data.load("./digits")


@pytest.mark.parametrize("call, words", [
    (lambda p: data.load("digits", size=16), "size=16: data='digits' have a size of their own"),
    (lambda p: data.load(p, size=0), "size=0"),
    (lambda p: ((p / "05.png").write_bytes(b"not an image"), data.load(p)), "'05.png' cannot be read"),
    (lambda p: ((p / "03.png").write_bytes((p / "03.png").read_bytes()[:60]), data.load(p)), "'03.png' cannot be read"),
    (lambda p: data.load("two-moons").label_of("2"), "class='2': two-moons has the classes 0, 1"),
    (lambda p: data.load("funnel").label_of("0"), "class='0': funnel has no classes"),
])
def test_refusals_of_images(pictures, call, words):
    with pytest.raises(ValueError, match=words):
        call(pictures)


def test_npy_is_split_and_standardised(tmp_path, points):
    d = data.load(_file(tmp_path, "p.npy", points))
    assert (len(d.train), d.limit) == (60, 20)
    assert torch.allclose(d.train.mean(0), torch.zeros(3), atol=1e-5) and torch.allclose(d.train.std(0), torch.ones(3), atol=1e-4)
    parts = torch.cat([d.restore(v) for v in (d.train, d.held_out(20), d.fresh(20))]).numpy()
    order, original = np.argsort(parts[:, 1]), points[np.argsort(points[:, 1])]
    assert np.allclose((parts[order] - original) / points.std(0), 0, atol=1e-6)          # all points, once each, in the user's units


@pytest.mark.parametrize("text, axes", [
    ("a,b\n" + "1,2\n" * 30, ("a", "b")),
    ("# a comment\n\n" + "1;2.5\n" * 30, ("$x_{1}$", "$x_{2}$")),
    ("1\t2\n" * 30, ("$x_{1}$", "$x_{2}$")),
    ("1 2e3\n" * 30, ("$x_{1}$", "$x_{2}$")),
    ("height\n" + "1.5\n" * 30, ("height",)),
])
def test_text_tables(tmp_path, text, axes):
    d = data.load(_file(tmp_path, "t.csv", text))
    assert d.axes == axes and len(d.train) == 18
    assert torch.equal(d.train, torch.zeros_like(d.train))          # constant columns stay where they are
    assert d.restore(d.train)[0].tolist() == [float(v) for v in text.splitlines()[-1].replace(";", " ").replace(",", " ").split()]


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", "", "is empty"),
    ("a.csv", "x,y\n", "is empty"),
    ("a.csv", "1,2\n" * 20 + "3\n", "line 21: 1 columns where the first line has 2"),
    ("a.csv", "1,2\n" * 20 + "3,\n", "line 21, column 2: ''"),
    ("a.csv", "1,2\n" * 20 + "3,nan\n", "line 21, column 2: 'nan'"),
    ("a.csv", "1,2\n" * 20 + "inf,3\n", "line 21, column 1: 'inf'"),
    ("a.csv", "1,2\n" * 20 + "hello,3\n", "column 1: 'hello'"),
    ("a.csv", "1,2\n" * 5, "5 points; expected at least 20"),
    ("a.csv", b"\xff\xfe\x00\x01" * 9, "UTF-8"),
    ("a.npy", b"", "not a readable .npy"),
    ("a.npy", b"nonsense", "not a readable .npy"),
    ("a.npy", np.array([{"a": 1}], dtype=object), "not a readable .npy"),
    ("a.npy", np.full((30, 2), "x"), "expected real numbers"),
    ("a.npy", np.zeros((30, 2), dtype=complex), "expected real numbers"),
    ("a.npy", np.zeros((30, 2, 2)), r"shape \(30, 2, 2\)"),
    ("a.npy", np.zeros((0, 2)), r"shape \(0, 2\)"),
    ("a.npy", np.array([[0.0, 1.0]] * 30 + [[np.inf, 0.0]]), "1 entries that are NaN or infinite, the first in point 31, column 1"),
    ("a.parquet", "1", "expected a file that ends in"),
])
def test_wrong_files(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words) as caught:
        data.load(_file(tmp_path, name, content))
    assert name in str(caught.value)


@pytest.mark.parametrize("wrong, words", [("two-mons", "nearest: two-moons"), ("nowhere/a.npy", "no such file"), ("b.csv", "no such file")])
def test_wrong_names(wrong, words):
    with pytest.raises(ValueError, match=words):
        data.load(wrong)
    with pytest.raises(TypeError, match="data=3"):
        data.load(3)
    with pytest.raises(ValueError, match="seed=-1"):
        data.load("two-moons", seed=-1)


def test_points_whose_moments_overflow_are_refused(tmp_path):
    path = tmp_path / "huge.csv"
    path.write_text("1e308,2\n-1e308,3\n" * 40)
    with pytest.raises(ValueError, match="column 1 overflows"):
        data.load(str(path))
