r"""Many samples in bounded memory: a batch drawn in chunks, into a .npy file that is whole or not there.

A run x = F(noise) acts sample by sample, and the noise of sample i is a function of (seed, i). Hence, with a_k = k * chunk,

    x[a_k : a_{k+1}] = F(noise[a_k : a_{k+1}])

costs the memory of one chunk, and chunks may be drawn in any order, by any process, once more after an interruption. The bits are the
same where F is elementwise. A network's matrix products round differently for batches of different sizes; the boundaries a_k belong
to the call, not to the processes that share it, so that their number changes no bit.

*The file.* OUT.partial is the .npy header, the samples, and a mark for each chunk: zeros, and once its samples are on the disk their
digest, so that what goes on knows them again. A process writes the marks of its own chunks only. OUT.partial.json holds the call, and
whether all is done: then the marks are cut off and the file takes its name. Chunks are written, not mapped: a full disk is an error that
loses nothing, and the memory of the process stays flat.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files
from .contracts import integer
from .progress import bar
from .random import fresh_seed
from .ranks import ALONE, Ranks

MARK = 8                    # bytes
NUMBERS = 1 << 15           # in a chunk where none is asked for: the activations of a small network then stay in the cache


def size(chunk: int | None, event: Sequence[int]) -> int:
    """Samples in a chunk: as asked for, else a power of two that the event's shape fixes."""
    if chunk is not None:
        return integer("chunk", chunk, 1, hint="samples in a chunk, such as chunk=65536")
    return 1 << max(1, NUMBERS // max(1, math.prod(event))).bit_length() - 1


@dataclass(frozen=True)
class Chunks:
    """A batch that is drawn in chunks. ``draw(start, stop, seed)`` gives the samples start..stop of (N, *D) = ``shape``; where ``seed`` is
    None and the run ``draws`` noise, one fresh seed is taken for all. ``call()`` (JSON) says what the samples depend on. ``ranks``
    share the chunks."""

    draw: Callable[[int, int, Any], Tensor]
    shape: tuple[int, ...]
    chunk: int
    dtype: torch.dtype
    device: torch.device
    seed: Any
    draws: bool
    call: Callable[[], Mapping[str, Any]]
    ranks: Ranks = ALONE

    def __len__(self) -> int:
        return -(-self.shape[0] // self.chunk)

    def span(self, k: int) -> tuple[int, int]:
        """First sample of chunk k, and the one after its last."""
        return k * self.chunk, min((k + 1) * self.chunk, self.shape[0])

    def then(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Chunks:
        """The same with ``function`` applied to every chunk, which keeps its shape and returns it on the CPU in ``dtype``."""
        return dataclasses.replace(self, draw=lambda start, stop, seed: function(self.draw(start, stop, seed)), dtype=dtype,
                                   device=torch.device("cpu"),
                                   call=lambda: {**self.call(), "dtype": str(dtype), "then": fingerprint(function)})

    def fresh(self) -> Any:
        """The seed of the run."""
        return self.seed if self.seed is not None or not self.draws else self.ranks.share(fresh_seed() if self.ranks.rank == 0 else None)

    def each(self, progress: bool = False) -> Iterator[Tensor]:
        """This rank's chunks, one after the other."""
        seed, mine = self.fresh(), range(self.ranks.rank, len(self), self.ranks.size)
        with _bar(len(mine), progress and self.ranks.rank == 0) as bar:
            for k in mine:
                yield self.draw(*self.span(k), seed)
                bar.update()

    def fill(self, progress: bool = False) -> Tensor:
        """All samples, in one tensor."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for rows, x in zip(whole.split(self.chunk), self.each(progress)):
            rows.copy_(x)
        return whole

    def done(self, path: str | os.PathLike[str]) -> int:
        """How many chunks of a .npy file an interrupted call of these chunks has left behind; nothing is touched."""
        file = _Partial(Path(path), self)
        if not file.partial.is_file():
            return 0
        with open(file.partial, "rb") as file.file:
            there = file.noted(overwrite=True)
            return 0 if there is None or there["call"] != json.loads(json.dumps(self.call())) else sum(map(any, file.marks()))

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False, progress: bool = False) -> Tensor:
        """All samples, in a .npy file; returns a Tensor over its memory map (writing to it leaves the file as it is). Ranks share the
        file, which every one of them must reach. An interrupted call goes on where it stood when it is made again.

        Raises FileExistsError for a file that exists or is being written, ValueError for one that another call has begun, and ``RankError``
        where another rank fails."""
        path = npy(path, self.dtype)
        file, call = _Partial(path, self), json.loads(json.dumps(self.call()))
        try:
            self.ranks.same(call)
            begun = self.ranks.first(lambda: file.begin(call, overwrite))
            with self.ranks.together():
                file.open()
            todo, size, seed = begun["todo"], self.ranks.size, begun["fresh"] if self.seed is None and self.draws else self.seed
            with _bar(len(self), progress and self.ranks.rank == 0, len(self) - len(todo)) as bar:
                for first in range(0, len(todo), size):
                    with self.ranks.together():
                        for k in todo[first + self.ranks.rank:first + size][:1]:
                            file.put(k, self.draw(*self.span(k), seed))
                    bar.update(min(size, len(todo) - first))
            with self.ranks.together():
                file.sync()
            self.ranks.first(file.finish)
        finally:
            file.close()
        return torch.from_numpy(np.load(path, mmap_mode="c")) if math.prod(self.shape) else torch.empty(self.shape, dtype=self.dtype)


def npy(path: str | os.PathLike[str], dtype: torch.dtype) -> Path:
    """The path of a file that can be written. TypeError for a dtype that .npy has not, ValueError for another ending,
    FileNotFoundError where the folder is missing."""
    path = files.named("out", path)
    if path.suffix != ".npy":
        raise ValueError(f"out='{path}': expected a file that ends in .npy, such as out='{path.with_suffix('.npy')}'.")
    if dtype == torch.bfloat16:
        raise TypeError(f"out='{path}': .npy has no bfloat16; expected dtype=torch.float32 (or float16); a network runs in its own.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out='{path}': expected its folder '{path.parent}' to exist.")
    return path


def _bar(total: int, progress: bool, done: int = 0) -> Any:
    return bar(total, progress, initial=done, unit="chunk", leave=False)


class _Partial:
    """OUT.partial while it is written."""

    def __init__(self, path: Path, chunks: Chunks) -> None:
        self.path, self.chunks = path, chunks
        self.partial, self.note = (path.with_name(path.name + end) for end in (".partial", ".partial.json"))
        dtype, header = torch.empty(0, dtype=chunks.dtype).numpy().dtype, io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": chunks.shape})
        self.header, self.row = header.getvalue(), math.prod(chunks.shape[1:]) * dtype.itemsize
        self.end = len(self.header) + chunks.shape[0] * self.row
        self.whole = self.end + len(chunks) * MARK
        self.there: dict[str, Any] = {}
        self.file: Any = None
        self.begun = False
        self.pending: dict[int, bytes] = {}     # written, not marked yet
        self.synced, self.cost = -math.inf, 0.0

    def open(self, create: bool = False) -> None:
        if self.file is None:                   # never through a link that lies there
            flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | create * os.O_CREAT
            self.file = os.fdopen(os.open(self.partial, flags, 0o666), "r+b")

    def begin(self, call: dict[str, Any], overwrite: bool) -> dict[str, Any]:
        """Find the file or make it: the call, the fresh seed if it took one, and the chunks to do."""
        if self.path.exists() and not overwrite:
            raise FileExistsError(f"out='{self.path}' exists; overwrite=True replaces it, or choose another name.")
        self.open(create=True)
        if not files.locked(self.file):         # until it is closed, or the process dies
            raise FileExistsError(f"out='{self.path}': another process writes '{self.partial}' now; expected a name for each, or processes "
                                  "that share the work, group=torch.distributed.group.WORLD.")
        there = self.noted(overwrite)
        if there is not None and not overwrite:
            for key in sorted(call.keys() | there["call"].keys()):
                if (here := call.get(key)) != (begun := there["call"].get(key)):
                    raise ValueError(f"{key}={here!r}: '{self.partial}', begun by an earlier call, has {key}={begun!r}; expected the same "
                                     "arguments, to go on with it; overwrite=True begins again, another out= keeps both.")
        if there is None or there["call"] != call or not self.goes_on(there["done"], overwrite):
            there = {"call": call, "fresh": fresh_seed() if self.chunks.seed is None and self.chunks.draws else None, "done": False}
            self.note.unlink(missing_ok=True)
            with self.saving():
                self.file.truncate(0)
                self.file.seek(0)
                self.file.write(self.header)
                self.file.truncate(self.whole)
                _sync(self.file)
            self.write(there)
        self.there, self.begun = there, True
        return {**there, "todo": [k for k, mark in enumerate(self.marks()) if not any(mark)]}

    def write(self, there: dict[str, Any]) -> None:
        """The note."""
        files.sweep(self.note.parent, self.note.name)
        files.write(self.note, json.dumps({**there, "digest": fingerprint(there)}, indent=1) + "\n")

    def noted(self, overwrite: bool) -> dict[str, Any] | None:
        """What an earlier call left: its ``call``, the ``fresh`` seed that it took, if any, and whether all is ``done``."""
        if not self.note.exists() or not self.file.seek(0, 2):          # or one that outlived its file
            return None
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            there = json.loads(self.note.read_bytes())
            if there.pop("digest") == fingerprint(there) and there.keys() == {"call", "fresh", "done"} and isinstance(there["call"], dict):
                return there
        self.damaged(self.note, overwrite)
        return None

    def goes_on(self, done: bool, overwrite: bool) -> bool:
        """Whether the file is that of this call, as it was left: its marks are those of its samples, or cut off where all is done."""
        size = self.file.seek(0, 2)
        self.file.seek(0)
        sound = size in (self.whole, self.end if done else self.whole) and self.file.read(len(self.header)) == self.header
        for k, mark in enumerate(self.marks() if sound and size == self.whole else ()):
            start, stop = self.chunks.span(k)
            self.file.seek(len(self.header) + start * self.row)
            sound = sound and (not any(mark) or mark == _mark(k, self.file.read((stop - start) * self.row)))
        if not sound:
            self.damaged(self.partial, overwrite)
        return sound

    def damaged(self, file: Path, overwrite: bool) -> None:
        """Refuse to go on with it, unless it is to be overwritten."""
        if not overwrite:
            raise ValueError(f"out='{self.path}': '{file}', begun by an earlier call, is damaged; expected it as it was left: "
                             "overwrite=True begins again, another out= keeps both.")

    def saving(self) -> contextlib.AbstractContextManager[None]:
        return files.naming(self.partial, "what is marked in it is kept, and the same call goes on with it")

    def marks(self) -> list[bytes]:
        """That of each chunk. Where they are cut off all is done, and only the name is missing."""
        self.file.seek(self.end)
        marks = self.file.read().ljust(len(self.chunks) * MARK, b"\1")
        return [marks[k:k + MARK] for k in range(0, len(marks), MARK)]

    def put(self, k: int, x: Tensor) -> None:
        """Write a chunk. It is marked when it is on the disk; waiting for the disk takes a twentieth of the time at most."""
        start, stop = self.chunks.span(k)
        shape, dtype = (stop - start, *self.chunks.shape[1:]), self.chunks.dtype
        if x.shape != shape or x.dtype != dtype:
            raise ValueError(f"chunk {k} is {tuple(x.shape)}, {x.dtype}; expected {shape}, {dtype}.")
        with self.saving():
            samples = x.detach().cpu().contiguous().view(-1).numpy().data
            self.file.seek(len(self.header) + start * self.row)
            self.file.write(samples)
            self.pending[k] = _mark(k, samples)
        if time.monotonic() - self.synced > 20 * self.cost:
            self.sync()

    def sync(self) -> None:
        """Bring to the disk what was written, then mark it."""
        start = time.monotonic()
        with self.saving():
            _sync(self.file)
            for k, mark in self.pending.items():
                self.file.seek(self.end + k * MARK)
                self.file.write(mark)
            self.file.flush()
        self.pending, self.synced = {}, time.monotonic()
        self.cost = self.synced - start

    def finish(self) -> None:
        """All chunks are there: the file takes its name."""
        self.write({**self.there, "done": True})
        with self.saving():
            self.file.truncate(self.end)
            _sync(self.file)
            files.rename(self.partial, self.path)
            self.note.unlink(missing_ok=True)

    def close(self) -> None:
        """Mark what was written, and let go of the file; one in which nothing is done goes."""
        if self.file is not None:
            with contextlib.suppress(OSError), self.file:       # a full disk is found again when a file is closed
                if self.pending:
                    self.sync()
                if self.begun and self.note.exists() and not any(map(any, self.marks())):
                    self.partial.unlink()
                    self.note.unlink()


def _mark(k: int, samples: Any) -> bytes:
    """Of chunk k; never zeros, but for one in 2^64."""
    return hashlib.blake2b(samples, digest_size=MARK, salt=k.to_bytes(8, "little")).digest()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


# -- what a call is ---------------------------------------------------------------------------------------------------------------
def fingerprint(value: Any) -> str:
    """A digest of a value, the same in every process: numbers, text, tensors and arrays, collections, dataclasses, networks (classes,
    parameters, buffers), functions (code, defaults, what they close over) and objects (class, attributes). What a function reads
    from its module is not seen."""
    h, seen = hashlib.blake2b(digest_size=12), dict[int, int]()

    def add(v: Any) -> None:
        if v is None or isinstance(v, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
            h.update(f"{type(v).__name__} {v!r};".encode())
        elif isinstance(v, Tensor):
            h.update(f"tensor {tuple(v.shape)} {v.dtype};".encode())
            flat = v.detach().reshape(-1)
            for part in flat.split(1 << 22):
                h.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
        elif isinstance(v, np.ndarray) and v.dtype.kind in "biufc":
            h.update(f"array {v.shape} {v.dtype};".encode())
            h.update(np.ascontiguousarray(v).data)
        elif id(v) in seen:                     # a cycle, or the same object again
            h.update(f"again {seen[id(v)]};".encode())
        else:
            seen[id(v)] = len(seen)
            keep.append(v)
            h.update(f"{type(v).__module__}.{type(v).__qualname__}(".encode())
            for part in _parts(v):
                add(part)
            h.update(b")")

    keep: list[Any] = []                        # while they live, no other object has their id
    add(value)
    return h.hexdigest()


def _parts(v: Any) -> Iterator[Any]:
    if isinstance(v, torch.nn.Module):
        yield from ((name, type(m).__module__, type(m).__qualname__) for name, m in v.named_modules())
        yield from v.named_parameters()
        yield from v.named_buffers()
        yield v.training
    elif isinstance(v, Mapping):
        yield from v.items()
    elif isinstance(v, (set, frozenset)):
        yield from sorted(fingerprint(item) for item in v)
    elif isinstance(v, (list, tuple, range)):
        yield from v
    elif isinstance(v, types.MethodType):
        yield from (v.__func__, v.__self__)
    elif isinstance(v, types.FunctionType):
        cells = [cell.cell_contents for cell in v.__closure__ or ()]
        yield from (v.__module__, v.__qualname__, v.__code__, v.__defaults__, v.__kwdefaults__, cells)
    elif isinstance(v, types.CodeType):
        yield from (v.co_code, v.co_names, v.co_consts)
    elif isinstance(v, (type, types.BuiltinFunctionType, types.ModuleType)):
        yield from (getattr(v, "__module__", None), getattr(v, "__qualname__", v.__name__))
    elif dataclasses.is_dataclass(v):
        yield from ((f.name, getattr(v, f.name)) for f in dataclasses.fields(v))
    else:                                       # what was computed from the rest and kept says nothing new
        yield from sorted((k, part) for k, part in getattr(v, "__dict__", {}).items()
                          if not isinstance(getattr(type(v), k, None), functools.cached_property))
