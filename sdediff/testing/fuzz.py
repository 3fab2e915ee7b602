"""Everything that reads a file, on files that were damaged, forged or never meant well.

``trials`` gives a reader thousands of them: its own valid files with bits turned, pieces cut out, doubled, moved or put in (among them
what the format's own traps are made of), and whole files made for harm. Each reading ends as one of

    refused   ValueError, TypeError or OSError that names the file
    served    it was read, and ``holds`` of what was read
    unclear   any other error, a message without the file's name, or more than ``SECONDS``
    silent    it was read, and ``holds`` not: for a format with a checksum, any file that is not the one that was written; and any that
              ran a program of its own

    for row in rows(): print(row)
"""
from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import random
import re
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import data, nets, recipes, runs, sampling, targets, training, tuned
from ..score import from_network
from ..sde import VPSDE

SECONDS = 5.0
CANARY = "canary"                           # the folder that a file's own program would make


class Row(NamedTuple):
    """What became of the files that a reader was given."""

    entry: str
    tried: int
    refused: int
    served: int
    unclear: int
    silent: int
    examples: tuple[str, ...] = ()          # of the last two


@dataclasses.dataclass(frozen=True)
class Reader:
    """``read(path)`` reads a file of that ``name``; ``valid``: files that it reads; ``words``: what else is put into them; ``harmful``:
    whole files that must be refused; ``holds(content, found)``: whether what was read is sound; ``change``: how files are made."""

    entry: str
    name: str
    valid: Callable[[], Sequence[bytes]]
    read: Callable[[Path], Any]
    holds: Callable[[bytes, Any], bool]
    words: tuple[bytes, ...] = ()
    harmful: tuple[bytes, ...] = ()
    change: Callable[[bytes, Sequence[bytes], random.Random], bytes] | None = None


def mutated(content: bytes, words: Sequence[bytes], rng: random.Random) -> bytes:
    """The content with one to three changes."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        a, b = sorted(rng.randrange(len(found) + 1) for _ in range(2))
        b, short = min(b, a + 64), a + rng.randrange(9)
        kind = rng.randrange(8)
        if kind <= 1 and found:
            found[min(a, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del found[a:short]
        elif kind == 3:
            found[a:a] = found[a:b]
        elif kind == 4:
            found[a:short] = rng.randbytes(short - a)
        elif kind == 5:
            del found[a:]
        elif kind == 6:
            piece = found[a:b]
            del found[a:b]
            at = rng.randrange(len(found) + 1)
            found[at:at] = piece
        elif words:
            found[a:rng.choice((a, short))] = rng.choice(words)
    return bytes(found)


def trials(reader: Reader, n: int, seed: int = 0) -> Row:
    """A reader on n mutated files, and on its harmful ones."""
    rng, ends, examples = random.Random(f"{seed}/{reader.entry}"), dict.fromkeys(("refused", "served", "unclear", "silent"), 0), []
    valid = reader.valid()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(place) / reader.name
        for k in range(n + len(reader.harmful)):
            content = (reader.change or mutated)(rng.choice(valid), reader.words, rng) if k < n else reader.harmful[k - n]
            path.write_bytes(content)                                           # not by ``files``: what is read here is not kept
            start, said = time.monotonic(), ""
            try:
                found = reader.read(path)
                end = "served" if k < n and reader.holds(content, found) else "silent"
            except (ValueError, TypeError, OSError) as error:
                end, said = "refused" if reader.name in str(error) else "unclear", f"{type(error).__name__}: {error}"
            except Exception as error:
                end, said = "unclear", f"{type(error).__name__}: {error}"
            if time.monotonic() - start > SECONDS:
                end, said = "unclear", f"{time.monotonic() - start:.0f} s"
            if (Path(place) / CANARY).exists() or Path(CANARY).exists():
                end, said = "silent", "it ran a program"
            ends[end] += 1
            if end in ("unclear", "silent"):
                examples.append(f"{end}: {said or 'read'} {content[:200]!r}")
    return Row(reader.entry, n + len(reader.harmful), **ends, examples=tuple(examples[:5]))


# -- readers ----------------------------------------------------------------------------------------------------------------------
_PICKLE = f"cos\nmkdir\n(S'{CANARY}'\ntR.".encode()
_NUMBERS = (b"nan", b"inf", b"1e999", b"-1", b"9" * 400, b"0x10", b"1_0", b"\0", b"\xff\xfe", "\u0661".encode(), b'"', b",,", b"\n\n", b"#")
_JSON = (b"[" * 5000, b'{"a":' * 3000, b"null", b"true", b"NaN", b"1e999", b"1" * 5000, b'"\\ud800"', b"{}", b"[]", b"-1")


def _array_file(descr: str, shape: str, body: bytes) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def _written(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _array(kind: str) -> bytes:
    return _written(lambda file: np.save(file, (9 * _points()).astype(kind)))


def _points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 2))


@functools.cache
def _checkpoint() -> training.Checkpoint:
    """Of a training of three steps."""
    with tempfile.TemporaryDirectory() as place:
        score = from_network(nets.MLP(2, 8, 1), "v", time_input="lam")
        training.train(score, VPSDE(), torch.from_numpy(_points()).float(), training.TrainingConfig(steps=3, batch=8),
                       checkpoint=Path(place) / "c.safetensors", progress=False)
        return training.load_checkpoint(Path(place) / "c.safetensors")


@functools.cache
def _as_written() -> bytes:
    saved = _checkpoint()
    with tempfile.TemporaryDirectory() as place:
        training.save_checkpoint(Path(place) / "c", saved.document, saved.parts, saved.losses)
        return (Path(place) / "c").read_bytes()


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 10**9, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf, "", "v", "VPSDE", "SDE", "UNet", "os", [], [1, 2],
    [[0.1], [0.2, 0.3]], {}, {"type": "MLP"}, [10**9] * 2)


def restated(content: bytes, words: Sequence[bytes], rng: random.Random) -> bytes:
    """A JSON document with one to three of its entries changed, taken out or put in."""
    document = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree, key = document, rng.choice(list(document))
        while isinstance(tree[key], dict) and tree[key] and rng.random() < 0.8:
            tree, key = tree[key], rng.choice(list(tree[key]))
        if rng.random() < 0.2:
            del tree[key]
        else:
            tree[key if rng.random() < 0.8 else "extra"] = rng.choice(_VALUES)
    return json.dumps(document).encode()


def _forged(path: Path) -> Any:
    """A checkpoint with whatever document, and a checksum that is right."""
    saved = _checkpoint()
    with tempfile.TemporaryDirectory() as place:
        run, document = Path(place), json.loads(path.read_bytes())
        (run / runs.CONFIG).write_text("data: two-moons\n")
        training.save_checkpoint(run / runs.CHECKPOINT, document, saved.parts, saved.losses)
        _, found, score = runs.read(run)
        return found.sde.at(0.5), score(torch.zeros(3, 2), VPSDE().at(0.5)).x0


def _named_by(read: Callable[[Path], Any], *names: str) -> Callable[[Path], Any]:
    """The same, of a file in a folder, where an error may name the folder's other files."""
    def again(path: Path) -> Any:
        try:
            return read(path)
        except (ValueError, TypeError, OSError) as error:
            if any(name in str(error) for name in names):
                raise ValueError(f"{path.name}: {error}") from None
            raise
    return again


def _finite(content: bytes, found: data.Dataset) -> bool:
    return bool(torch.isfinite(found.train).all()) and len(found.train) >= 12 and bool((found.scale > 0).all())


def _lines(content: bytes, found: data.Dataset) -> bool:
    """All rows are there: as many as there are lines, but for a header."""
    lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows = len(found.train) + len(found.draw("held-out", 10**9)) + len(found.draw("fresh-0", 10**9))
    return _finite(content, found) and len(lines) - 1 <= rows <= len(lines)


def _tuned() -> bytes:
    sde = VPSDE()
    knots = tuned.Knots((1.0, 0.5, 0.001), tuple(sde.at(t).lam for t in (1.0, 0.5, 0.001)))
    gain = tuned.Gain("path RMSE", "ddim", 0.2, 0.1, 0.5, 0.4, 0.6)
    made = {n: tuned.Tuned("tuned", recipes.method(name).solver, 0.0, knots, calls=n, gain=gain, budget=n)
            for n, name in ((2, "ddim"), (4, "dpm++2m"), (6, "unipc-3"))}
    with tempfile.TemporaryDirectory() as place:
        tuned.write(Path(place) / "t", made)
        return (Path(place) / "t").read_bytes()


def _methods(content: bytes, found: dict[int, tuned.Tuned]) -> bool:
    return all(m.calls == n >= 1 and m.budget >= 0 and m.grid.knots == tuple(sorted(m.grid.knots, reverse=True))             # type: ignore
               and math.isfinite(m.eta) for n, m in found.items())                                                        # type: ignore


def _table() -> bytes:
    from ..bench.cells import Row as Cell
    from ..bench.study import as_csv
    cell = Cell("0" * 12, "sdediff", "ddim", "ODE", 1, "logsnr", 5, 5, "VPSDE", "gaussian", "exact", "path_rmse", 0.1, 0.09, 0.11,
                None, None, None, 40, 0.001, 0)
    return as_csv([cell] * 5).encode()


def _results(path: Path) -> Any:
    from ..bench.study import read
    return read(path)


def _counted(content: bytes, found: Any) -> bool:
    return len(found) == len(list(csv.reader(io.StringIO(content.decode(), newline="")))) - 1


class _Score:
    """That of a Gaussian, which is interrupted at a call. It has no attributes that a fingerprint would tell apart."""

    __slots__ = ("left",)

    def __init__(self, left: float = math.inf) -> None:
        self.left = left

    def __call__(self, x: Any, level: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return targets.Gaussian([0.5, -1.0], 0.2).score(x, level)


_CALL: dict[str, Any] = {"shape": (12, 2), "method": "ddim", "steps": 2, "seed": 3, "chunk": 2}


@functools.cache
def _left() -> tuple[bytes, bytes]:
    """What a sampling leaves that is stopped after three of six chunks: its file and its note."""
    with tempfile.TemporaryDirectory() as place:
        try:
            sampling.sample(VPSDE(), _Score(6), out=Path(place) / "x.npy", **_CALL)
        except KeyboardInterrupt:
            return (Path(place) / "x.npy.partial").read_bytes(), (Path(place) / "x.npy.partial.json").read_bytes()
        raise AssertionError("the sampling was not stopped")


def _continued(path: Path) -> Any:
    """With a note, or a file, that is not what was left."""
    content, (file, note) = path.read_bytes(), _left()
    place = path.parent
    (place / "x.npy").unlink(missing_ok=True)
    (place / "x.npy.partial").write_bytes(content if path.suffix == ".partial" else file)
    (place / "x.npy.partial.json").write_bytes(content if path.suffix == ".json" else note)
    return sampling.sample(VPSDE(), _Score(), out=place / "x.npy", **_CALL)


def _same(content: bytes, found: torch.Tensor) -> bool:
    return torch.equal(found, sampling.sample(VPSDE(), _Score(), **_CALL))


def _picture(form: str) -> bytes:
    from PIL import Image
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    return _written(lambda file: Image.fromarray(pixels).save(file, form))


def _pictures(path: Path) -> data.Dataset:
    for k in range(1, data.FEWEST):
        if not (other := path.with_name(f"{k}.png")).exists():
            other.write_bytes(_picture("PNG"))
    return data.load(str(path.parent), size=8)


def _job(path: Path) -> Any:
    """The words of `sdediff train --config FILE`, read and checked."""
    from .. import cli
    argv = ["train", "--config", str(path)]
    try:
        parser, commands, _ = cli._parsers(argv)
        made = commands["train"].instantiate_classes(parser.parse_args(argv)["train"])
        return runs.Job(**{f.name: made[f.name] for f in dataclasses.fields(runs.Job)})
    except (cli._Usage, ValueError, TypeError) as error:
        if not re.search(r"\b\w+=|[Kk]ey|option|\.yaml", str(error)):               # of a job the argument is named
            raise
        raise ValueError(f"{path.name}: {error}") from None


_YAML = (b"&a [*a, *a]", b"*a", b"&a {b: *a}", f"!!python/object/apply:os.mkdir [{CANARY}]".encode(), b"!!int ''", b"!!timestamp x",
         b"[" * 5000, b"\t", b"? [a]\n: b\n", b"<<: *a\n", b"class_path: antigravity.Network\n", b"---\n", b"%YAML 9.9\n",
         b"!!binary x", *_NUMBERS)
_SETTINGS = (b"data: two-moons\nprocess: vp\nnetwork:\n  kind: mlp\n  width: 64\n"
             b"training:\n  steps: 40\n  lr: 0.003\n  clip: null\nseed: 0\n")

READERS = (
    Reader("training.load_checkpoint", "c.safetensors", lambda: [_as_written()], training.load_checkpoint,
           lambda content, found: content == _as_written(), (*_JSON, b'"__metadata__"'),
           (b"", _PICKLE, b"\xff" * 64, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**4) + b"[" * 10**4,
            b"PK\x03\x04" + b"\0" * 99)),
    Reader("runs.read of a forged checkpoint", "document.json", lambda: [json.dumps(dict(_checkpoint().document)).encode()],
           _named_by(_forged, runs.CHECKPOINT), lambda content, found: all(bool(torch.isfinite(v).all()) for v in found[1:]),
           change=restated),
    Reader("data.load of .npy", "x.npy", lambda: [_array(kind) for kind in ("<f8", ">f4", "<i4")],
           lambda path: data.load(str(path)), _finite,
           (b"|O", b"<f8", b"10000000000000", b"-1", b"(" * 900, b"True", b"99999999999999999999999"),
           (b"", _PICKLE, _array_file("'|O'", "(40, 2)", _PICKLE), _array_file("'<f8'", "(10000000000, 1000)", b""),
            _array_file("'<f8'", "(9223372036854775807, 9223372036854775807)", b"\0" * 64), _array_file("'<f8'", "(40, 2)", b"\0" * 999),
            _written(lambda f: np.savez_compressed(f, x=np.zeros((10**6, 2)))), _array_file("[('a', '<f8')]", "(40,)", b"\0" * 320))),
    Reader("data.load of .csv", "x.csv", lambda: [b"x,y\n" + _written(lambda f: np.savetxt(f, _points(), delimiter=",", fmt="%.4g")),
                                                  _written(lambda f: np.savetxt(f, _points(), delimiter="\t", fmt="%.4g"))],
           lambda path: data.load(str(path)), _lines, _NUMBERS, (b"", _PICKLE, b"a,b\n" * 40, b"1,2\n" * 3, b"\0" * 999)),
    Reader("data.load of images", "0.png", lambda: [_picture(form) for form in ("PNG", "JPEG", "GIF", "BMP")], _pictures, _finite, (),
           (b"", _PICKLE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(canary) (w) file closefile\n")),
    Reader("runs.settings", "config.yaml", lambda: [_SETTINGS], runs.settings,
           lambda content, found: isinstance(found, dict) and all(isinstance(k, str) for k in found), _YAML,
           (b"", b"- a", b"a: &a [x, x]\nb: &b [*a, *a]\n", b"a: !!python/object/apply:os.mkdir [canary]\n", b"a: " + b"[" * 5000,
            b"training: {class_path: antigravity.X}\n")),
    Reader("sdediff train --config", "job.yaml", lambda: [_SETTINGS], _job,
           lambda content, found: isinstance(found.training.steps, int), _YAML,
           (b"training: antigravity.X\n", b"network: {class_path: antigravity.X}\n", b"config: other.yaml\n", b"out: /tmp/elsewhere\n")),
    Reader("tuned.read", "tuned.json", lambda: [_tuned()], tuned.read, _methods, (*_JSON, b'"class": "Solver"', b'"class": "TorchSDE"'),
           (b"", _PICKLE, b"{}", b"[]")),
    Reader("bench.read", "results.csv", lambda: [_table()], _results, _counted, _NUMBERS, (b"", _PICKLE, b"cell,value\n")),
    Reader("sample(out=) going on, its note", "x.npy.partial.json", lambda: [_left()[1]], _continued, _same, _JSON,
           (_PICKLE, b"{}", b"[]")),
    Reader("sample(out=) going on, its file", "x.npy.partial", lambda: [_left()[0]], _continued, _same, (b"|O",)))
SHARE = {"sdediff train --config": 0.05, "data.load of images": 0.3, "runs.read of a forged checkpoint": 0.5,
         "sample(out=) going on, its note": 0.1, "sample(out=) going on, its file": 0.1}                # of n, of what takes longer


def rows(n: int = 400, seed: int = 0) -> Iterator[Row]:
    """A row for each reader, with about n files for each."""
    for reader in READERS:
        yield trials(reader, math.ceil(SHARE.get(reader.entry, 1.0) * n), seed)
