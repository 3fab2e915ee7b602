r"""Noise as a pure function: of (seed, sample, label) for white noise, of (seed, sample, times) for a Brownian path.

A seed belongs to a sample, not to a batch: the noise of sample 3 is bit for bit the same alone, in a batch of 8, in a
chunk or on another rank. Nothing here reads or moves the global random state, except that ``seed=None`` takes one fresh
seed from torch's default generator, so that ``torch.manual_seed`` reproduces a run.

*Streams.* A key (seed, label) names an endless row of normals, by way of a 256-bit hash; sample i of a batch takes the numbers
i d .. (i + 1) d of it, d numbers an event (with a seed per sample, each has rows of its own). On the CPU the row is that of a
generator that can be entered anywhere, PCG-DXSM with 128-bit state and increment, whose 64-bit words become pairs by Box & Muller:

    z = r cos(theta), y = r sin(theta),    r = sqrt(-2 log u),    u and theta / pi in steps of 2^-31.

So nothing is drawn in vain or held for another day, however large the batch, and how many labels a small batch draws at once is a
matter of speed alone. Words come in blocks of 64, and a block is 64 cosines, then 64 sines: each number is computed at one place
of a vector register, whatever is computed around it. On a GPU, whose generator cannot be entered so, the row is cut into tiles of
2^22 numbers, each with a seed of its own (64 bits, which that generator keeps). Normals are drawn in float32 and cast: a seed means the
same noise in every dtype.

*Brownian path.* The pair (W, A), A(t) = int_0^t W, is a Gaussian Markov process; on a cell of length h, given both ends,

    E[W_p] = (1 - p) W_0 + ... the derivative of the cubic Hermite interpolant of A with slopes W_0 and W_1,
    E[A_p] = that interpolant,   Cov[(W_p, A_p)] fixed by p and h,

so that a dyadic tree keyed by (seed, sample, node) gives W and its area at any time, in any order of asking, with the
exact joint law for any two times that do not share a cell of relative size 2^-14. (Foster, Lyons & Oberhauser 2020, for
the midpoint; the tree is Gaines & Lyons 1997.) W(t) is linear in the pairs (z, y) of the nodes on the way down; the weights are found
on the way back up, in floats, and a node then costs one pass over its words:

    a z + b y = rho r cos(theta - phi),    rho = |(a, b)|,    phi = arg(a, b).

The pairs of the nodes near the root, which neighbouring times share, are held.
"""
from __future__ import annotations

import abc
import contextlib
import copy
import hashlib
import itertools
import math
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .contracts import device as checked_device
from .contracts import dtype as checked_dtype
from .contracts import function, instance, integer, real, sequence, shown
from .contracts import shape as checked_shape

Seed = int | Sequence[int] | Tensor | torch.Generator | None
TURN = math.pi * 2.0**-31                      # an angle's unit, in radians
BLOCK = 64                                     # words in a block: 64 pairs, 128 normals
WINDOW = 1024                                  # blocks that are worked on at once: they fit in the second-level cache
TILE = 1 << 22                                 # normals of a tile on a GPU: a launch takes as long as writing so many
ROW = {"cpu": 2 * BLOCK, "cuda": 1 << 12}      # normals that a sample with a seed of its own draws at least, over several labels
AHEAD = 1 << 16                                # normals of later labels that a small batch draws at once, at most
LABELS = 32                                    # labels that are drawn at once, at most; twice as many for a run, whose labels are known
NARROW = 16                                    # numbers at the head of a block that are worked on alone, if no more are asked for
KEPT = 4                                       # streams whose latest labels are kept: the uses of a step and of a loop in it
SHARED = 5                                     # levels of a Brownian tree whose nodes are held, with the root


class Noise(abc.ABC):
    """What a solver may ask for. Sources are bound to a state's shape (B, *D), dtype and device; ``at(k)`` is the
    source as step k sees it. Every answer is a Tensor (B, *D)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @abc.abstractmethod
    def at(self, step: int) -> Noise:
        """The source for step ``step`` of the current loop."""

    @abc.abstractmethod
    def within(self) -> Noise:
        """The source for a loop inside this step (a sub-grid, a restart): its own labels, independent of ours."""

    @abc.abstractmethod
    def normal(self, use: int = 1) -> Tensor:
        """N(0, I), independent for every (step, use). Use 0 belongs to ``unit``."""

    def initial(self) -> Tensor:
        """N(0, I), the draw that a run starts from, independent of every other."""
        return self.normal(4)

    def unit(self, t: Any, s: Any) -> Tensor:
        """N(0, I) that drives the step between the levels t and s: the increment of the path over its root length."""
        return self.normal(0)

    def increment(self, t: Any, s: Any) -> Tensor:
        """W(t_s) - W(t_t) ~ N(0, |t_s - t_t| I)."""
        return math.sqrt(abs(s.t - t.t)) * self.unit(t, s)

    def area(self, t: Any, s: Any) -> Tensor:
        """int (W(u) - W(t_t)) du from t_t to t_s along the step: variance |dt|^3/3, covariance with the increment dt|dt|/2."""
        dt = s.t - t.t
        return dt * math.sqrt(abs(dt)) * (0.5 * self.unit(t, s) + self.normal(2) / math.sqrt(12.0))


def fresh_seed() -> int:
    """A seed from torch's default generator: the one place where the global random state is read."""
    return int(torch.randint(0, 2**62, (), dtype=torch.int64))


def undone(seed: Any) -> contextlib.AbstractContextManager[None]:
    """A block that may take a fresh seed: where it raises, none was taken. With a ``seed`` of the caller's there is nothing to undo."""
    return _undone() if seed is None else contextlib.nullcontext()


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    before = torch.random.get_rng_state()
    try:
        yield
    except BaseException:
        torch.random.set_rng_state(before)
        raise


class _Engine(threading.local):
    """What a thread draws with on the CPU: a generator, which is set anew for every key, and room for a window."""

    def __init__(self) -> None:
        self.generator = np.random.PCG64DXSM(0)
        self.at: tuple[Key | None, int] = None, 0           # the key that the generator is set to, and its next word
        with torch.inference_mode(False):       # the first draw may be within it, a later one not
            self.room = torch.empty(4, WINDOW * BLOCK, dtype=torch.float32, device="cpu")
            self.least, self.turn = (torch.tensor(c, dtype=torch.float32, device="cpu") for c in (2.0**-66, TURN))
        self.views: dict[tuple[int, int], tuple[np.ndarray, Tensor, _Window]] = {}     # of the room, for the latest shapes
        self.narrow: dict[int, tuple[np.ndarray, Tensor, Tensor, Tensor]] = {}         # the same, for so many heads

    def words(self, streams: Sequence[Stream], first: int, count: int) -> list[np.ndarray]:
        """The words ``first`` .. ``first + count`` of every stream."""
        (key, position), self.at = self.at, (None, 0)       # nowhere, should this be interrupted
        generator, advance, draw = self.generator, self.generator.advance, self.generator.random_raw
        out = []
        for name, jumps in streams:
            if name is not key and name != key:
                digest = _digest(name)
                generator.state = {"bit_generator": "PCG64DXSM", "has_uint32": 0, "uinteger": 0, "state": {
                    "state": int.from_bytes(digest[:16], "little"), "inc": int.from_bytes(digest[16:], "little") | 1}}
                key, position = name, 0
            start = jumps * JUMP + first
            if start != position:
                advance(start - position)       # modulo 2^128
            position = start + count
            out.append(draw(count))
        self.at = key, position
        return out

    def window(self, words: Sequence[np.ndarray], blocks: int) -> _Window:
        """Words of as many keys as pairs. What the last window held is lost."""
        shape = len(words), blocks
        if shape not in self.views:
            if len(self.views) > 32:
                self.views.clear()
            size = len(words) * blocks * BLOCK
            with torch.inference_mode(False):
                flat = self.room[:2].view(-1)[:2 * size]
                u, turn = flat.view(*shape, 2, BLOCK).unbind(2)
                r, work = self.room[2:, :size].view(2, *shape, BLOCK).unbind()
                self.views[shape] = flat.numpy(), u, _Window(r, turn, work, flat[:size].view(*shape, BLOCK))
        numbers, u, window = self.views[shape]
        np.copyto(numbers, _halves(words), casting="unsafe")
        self.radius(u, window.r)
        return window

    def radius(self, u: Tensor, r: Tensor) -> Tensor:
        """r^2 = -log u^2: the sign of u is not used, and u = 0 stands for its half of the cell around it, hence the 2^-66."""
        return torch.add(self.least, torch.mul(u, u, out=r), alpha=2.0**-62, out=r).log_().neg_().sqrt_()

    def heads(self, streams: Sequence[Stream], first: int) -> Tensor:
        """The first NARROW normals of the block at word ``first`` of every stream: (streams, NARROW), in storage of their own."""
        n = len(streams)
        if n not in self.narrow:
            if len(self.narrow) > 32:
                self.narrow.clear()
            with torch.inference_mode(False):
                whole = -(-n * NARROW // BLOCK) * BLOCK     # what is left of the last block of numbers is garbage
                halves = self.room[:2, :n * NARROW].view(2, n, NARROW).transpose(0, 1).numpy()
                self.narrow[n] = halves, self.room[0, :whole], self.room[1, :whole], self.room[2, :whole]
        halves, u, turn, r = self.narrow[n]
        np.copyto(halves, _halves(self.words(streams, first, BLOCK)).reshape(n, 2, BLOCK)[:, :, :NARROW], casting="unsafe")
        return torch.mul(self.radius(u, r), turn.mul_(self.turn).cos_())[:n * NARROW].view(n, NARROW)


class _Window(NamedTuple):
    """Pairs in polar form, each (keys, blocks, BLOCK): r, the angle in steps of pi / 2^31, room for work, and more on top of the angle."""

    r: Tensor
    turn: Tensor
    work: Tensor
    over: Tensor


JUMP = 0x9E3779B97F4A7C15F39CC0605CEDC835       # the golden section of 2^128, made odd: labels of one key start so far apart
_WORD, _HALF = np.dtype("<u8"), np.dtype("<i4")
Key = tuple[int, ...]
Name = tuple[Key, int]                         # of a draw: a stream and a label
Stream = tuple[Key, int]                       # of a key, from so many jumps on
_engine = _Engine()


def _halves(words: Sequence[np.ndarray]) -> np.ndarray:
    """Words as twice as many signed integers."""
    return (words[0] if len(words) == 1 else np.concatenate(words)).astype(_WORD, copy=False).view(_HALF)


def _digest(key: Key, size: int = 32) -> bytes:
    return hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=size).digest()


def _windows(streams: Sequence[Stream], block: int, blocks: int) -> Iterator[tuple[slice, slice, _Window]]:
    """The pairs of ``blocks`` blocks, from ``block`` on, of every stream, window by window: which streams, which blocks, and the
    window, which the next one overwrites."""
    many = max(1, WINDOW // max(1, blocks))                  # streams in a window
    for k in range(0, len(streams), many):
        for b in range(0, blocks, WINDOW):
            m = min(WINDOW, blocks - b)
            words = _engine.words(streams[k:k + many], (block + b) * BLOCK, m * BLOCK)
            yield slice(k, k + len(words)), slice(b, b + m), _engine.window(words, m)


def _rows(streams: Sequence[Stream], start: int, count: int) -> Tensor:
    """The normals ``start`` .. ``start + count`` of every stream, on the CPU: (streams, count), in storage of their own."""
    size = 2 * BLOCK
    block = start // size
    blocks = -(-(start + count) // size) - block if count else 0
    begin = start - block * size
    if 0 < begin + count <= NARROW and len(streams) <= WINDOW:
        return _engine.heads(streams, block * BLOCK)[:, begin:begin + count]
    half = begin + count <= BLOCK               # the sines of a single block are not asked for
    out = torch.empty(len(streams), blocks, 2, BLOCK, dtype=torch.float32, device="cpu")
    for which, part, (r, turn, theta, cosine) in _windows(streams, block, blocks):
        z, y = (out if r.shape[:2] == out.shape[:2] else out[which, part]).unbind(2)
        torch.mul(turn, _engine.turn, out=theta)
        torch.mul(r, torch.cos(theta, out=cosine), out=z)
        if not half:
            torch.mul(r, theta.sin_(), out=y)
    z = out.view(len(streams), blocks * size)
    return z if count == blocks * size else z[:, begin:begin + count]


def _tiles(streams: Sequence[Stream], start: int, count: int, tile: int, device: torch.device) -> Tensor:
    """The same on a GPU, from tiles of the device's own generator. Nothing waits for the device."""
    out = torch.empty(len(streams), count, dtype=torch.float32, device=device)
    generator = torch.Generator(device)
    for row, (key, jumps) in zip(out.unbind(), streams):
        for k in range(start // tile, -(-(start + count) // tile) if count else 0):
            generator.manual_seed(int.from_bytes(_digest((*key, jumps, k), 8), "little", signed=True))
            begin = k * tile - start
            low, high = max(0, begin), min(count, begin + tile)
            if high - low == tile:
                row[low:high].normal_(generator=generator)
            else:                               # a launch of another size draws other numbers
                whole = torch.empty(tile, dtype=torch.float32, device=device).normal_(generator=generator)
                row[low:high] = whole[low - begin:high - begin]
    return out


def _bound(shape: Any, dtype: Any, device: Any, first: Any = 0) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """What a source is bound to, checked before a seed is taken."""
    integer("first", first, 0)
    return checked_shape("shape", shape), checked_dtype("dtype", dtype), checked_device("device", device)


class Normals:
    """Normals as a pure function of (seed, sample index, stream, label).

    Parameters: ``seed``, an int (the sample index then counts from ``first``) or a sequence of B ints, one per sample
    (a sample's noise then depends on its own seed alone); ``shape`` = (B, *D). A ``stream`` is a tuple of ints.
    """

    def __init__(self, seed: int | Sequence[int], shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", first: int = 0) -> None:
        self.shape, self.dtype, self.device = _bound(shape, dtype, device, first)
        seed = canonical_seed(seed, self.shape[0]) if seed is not None else integer("seed", seed, 0)
        self.where = self.device if self.device.type in ROW else torch.device("cpu")
        self.size = math.prod(self.shape[1:])
        self.shared = isinstance(seed, int)
        self.seeds = [seed] if isinstance(seed, int) else [int(s) for s in seed]
        self.first, self.count = (first * self.size, self.shape[0] * self.size) if self.shared else (0, self.size)
        # Labels drawn at once: of a shared seed for speed alone; of a sample's own seed they are neighbours in one row.
        many = (AHEAD if self.where.type == "cpu" else 1) if self.shared else ROW[self.where.type]
        self.labels = max(1, min(LABELS, many // max(1, self.count)))
        self._held: dict[tuple[int, ...], tuple[int, tuple[Tensor, ...]]] = {}

    def draw(self, stream: tuple[int, ...], label: int) -> Tensor:
        """The normals (B, *D) of one label of one stream, in storage of their own. The latest labels of a few streams are kept."""
        if self.labels == 1:
            return self._draw(stream, label, 1)[0]
        block, row = divmod(label, self.labels)
        held = self._held.pop(stream, None)
        if held is None or held[0] != block:
            held = (block, self._draw(stream, block * self.labels, self.labels).unbind())
        self._held[stream] = held               # the latest stream last; the oldest goes
        while len(self._held) > KEPT:
            self._held.pop(next(iter(self._held)), None)
        return held[1][row].clone()

    def sequence(self, names: Sequence[Name]) -> Draws:
        """``draw`` for many (stream, label) in turn, and no other is drawn. The tensors are to be read only."""
        return Draws(self._several, names, 2 * self.labels if self.labels > 1 else 1)

    def _several(self, names: Sequence[Name]) -> Tensor:
        """(names, B, *D), in the order of the names."""
        order = sorted(range(len(names)), key=names.__getitem__)
        if self.shared:
            streams = [((0, self.seeds[0], label // LABELS, *stream), label % LABELS) for stream, label in (names[k] for k in order)]
            z = self._shaped(self._stream(streams, self.first, self.count, TILE), len(names))
        else:                                   # neighbours in one row are drawn together
            place = lambda nk: (names[nk[1]][0], names[nk[1]][1] // self.labels, names[nk[1]][1] - nk[0])
            runs = [[names[k] for _, k in run] for _, run in itertools.groupby(enumerate(order), place)]
            z = torch.cat([self._draw(*run[0], len(run)) for run in runs])
        return z if order == sorted(order) else z[sorted(range(len(order)), key=order.__getitem__)]

    def single(self, stream: tuple[int, ...]) -> Tensor:
        """``draw(stream, 0)`` of a stream that has one label alone: nothing is drawn ahead or kept."""
        return self._draw(stream, 0, 1)[0]

    def _draw(self, stream: tuple[int, ...], label: int, labels: int) -> Tensor:
        """(labels, B, *D)."""
        if self.shared:
            streams = [((0, self.seeds[0], k // LABELS, *stream), k % LABELS) for k in range(label, label + labels)]
            return self._shaped(self._stream(streams, self.first, self.count, TILE), labels)
        block, row = divmod(label, self.labels)
        z = self._stream([((1, s, block, *stream), 0) for s in self.seeds], row * self.size, labels * self.size,
                         min(TILE, max(1, self.labels * self.size)))
        return self._shaped(z.unflatten(1, (labels, self.size)).transpose(0, 1), labels)

    def _shaped(self, z: Tensor, labels: int) -> Tensor:
        if self.dtype is not torch.float32 or self.where is not self.device:
            z = z.to(device=self.device, dtype=self.dtype)
        return z.reshape(labels, *self.shape)

    def _stream(self, streams: Sequence[Stream], start: int, count: int, tile: int) -> Tensor:
        return _rows(streams, start, count) if self.where.type == "cpu" else _tiles(streams, start, count, tile, self.where)

    def pair(self, stream: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Two independent N(0, I), each (samples, numbers) in float32: a stream's pairs (r cos, r sin), one for every number."""
        if self.where.type != "cpu":
            tile = TILE if self.shared else min(TILE, max(1, self.count))
            z, y = (_tiles([(key, k) for key, _ in self._pairs(stream)], self.first, self.count, tile, self.where) for k in (0, 1))
            return z, y
        block, blocks = self._span()
        both = _rows(self._pairs(stream), 2 * BLOCK * block, 2 * BLOCK * blocks).view(len(self.seeds), blocks, 2, BLOCK)
        z, y = (part.reshape(len(self.seeds), blocks * BLOCK)[:, self.first - BLOCK * block:][:, :self.count] for part in both.unbind(2))
        return z, y

    def combine(self, streams: Sequence[tuple[int, ...]], weights: Sequence[Sequence[tuple[float, float]]]) -> Tensor:
        """Sums over the streams' pairs, sum_k a_k z_k + b_k y_k for every row of weights (a_k, b_k): (rows, samples, numbers), float32."""
        if self.where.type != "cpu":
            out = torch.zeros(len(weights), len(self.seeds), self.count, dtype=torch.float32, device=self.where)
            for k, stream in enumerate(streams):
                z, y = self.pair(stream)
                for row, w in zip(out, weights):
                    row.add_(z, alpha=w[k][0]).add_(y, alpha=w[k][1])
            return out
        block, blocks = self._span()
        out = torch.zeros(len(weights), len(self.seeds), blocks, BLOCK, dtype=torch.float32, device="cpu")
        phase = torch.tensor([[-math.atan2(b, a) for a, b in row] for row in weights], dtype=torch.float32, device="cpu")
        rho = [[math.hypot(a, b) for a, b in row] for row in weights]
        # A seed of all samples has one key a stream, and a window may hold several. Own seeds: a stream at a time.
        groups = [(0, streams)] if self.shared else [(k, [stream]) for k, stream in enumerate(streams)]
        for k, some in groups:
            for which, part, (r, turn, theta, _) in _windows([key for stream in some for key in self._pairs(stream)], block, blocks):
                for f, total in enumerate(out):
                    angles = phase[f, which] if self.shared else phase[f, k:k + 1]
                    torch.add(angles[:, None, None], turn, alpha=TURN, out=theta).cos_()
                    if self.shared:             # one after the other, so that windows of any shape give the same bits
                        for j, (radius, cosine) in enumerate(zip(r, theta)):
                            total[0, part].addcmul_(radius, cosine, value=rho[f][which.start + j])
                    else:
                        total[which, part].addcmul_(r, theta, value=rho[f][k])
        return out.view(len(weights), len(self.seeds), blocks * BLOCK)[:, :, self.first - BLOCK * block:][:, :, :self.count]

    def _pairs(self, stream: tuple[int, ...]) -> list[Stream]:
        return [((0 if self.shared else 1, s, 0, *stream), 0) for s in self.seeds]

    def _span(self) -> tuple[int, int]:
        """The first block of pairs, and how many."""
        block = self.first // BLOCK
        return block, -(-(self.first + self.count) // BLOCK) - block if self.count else 0


class Draws(Iterable[Tensor]):
    """Draws in turn, one by one or several in one tensor, of which ``most`` are made at once by ``several``."""

    def __init__(self, several: Callable[[Sequence[Name]], Tensor], names: Sequence[Name], most: int) -> None:
        self.several, self.names, self.most = several, names, most
        self.made, self.at = torch.empty(0, device="cpu"), 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < len(self.made) or self.names:
            if self.at == len(self.made):
                self._make()
            rows = self.made.unbind()
            while self.at < len(rows):
                self.at += 1
                yield rows[self.at - 1]
            del rows

    def take(self, n: int) -> Tensor:
        """The next n, (n, B, *D)."""
        if self.at == len(self.made):
            self._make()
        some = self.made[self.at:self.at + n]
        self.at += len(some)
        return some if len(some) == n else torch.cat([some, self.take(n - len(some))])

    def _make(self) -> None:
        some, self.names, self.at = self.names[:self.most], self.names[self.most:], 0
        del self.made                           # before as much is made again
        self.made = self.several(some)


class WhiteNoise(Noise):
    """Independent noise for every step, from streams. See ``Normals`` for ``seed``, ``shape`` and ``first``."""

    def __init__(self, seed: Seed, shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", first: int = 0) -> None:
        if seed is None:
            _bound(shape, dtype, device, first)             # before a seed is taken
            seed = fresh_seed()
        self._bind(Normals(seed, shape, dtype=dtype, device=device, first=first), (), 0)                    # type: ignore[arg-type]

    def _bind(self, normals: Normals, path: tuple[int, ...], step: int) -> WhiteNoise:
        self.normals, self.path, self.step = normals, path, step
        self.shape, self.dtype, self.device = normals.shape, normals.dtype, normals.device
        return self

    def at(self, step: int) -> WhiteNoise:
        return object.__new__(WhiteNoise)._bind(self.normals, self.path, step)

    def within(self) -> WhiteNoise:
        return object.__new__(WhiteNoise)._bind(self.normals, (*self.path, self.step), 0)

    def normal(self, use: int = 1) -> Tensor:
        return self.normals.draw((use, *self.path), self.step)

    def initial(self) -> Tensor:
        return self.normals.single((-2, *self.path))         # no use is negative: no key is shared with ``normal``

    def sequence(self, labels: Sequence[Name]) -> Draws:
        """The draws of those names (see ``names``), to be read only."""
        return self.normals.sequence([((use, *self.path, *path), step) for (use, *path), step in labels] if self.path else labels)


class _Names:
    """In the place of ``Normals``: what is drawn is the name of the draw."""

    shape, dtype, device = (), torch.float32, torch.device("cpu")

    def draw(self, stream: tuple[int, ...], label: int) -> tuple[tuple[int, ...], int]:
        return stream, label


def names() -> WhiteNoise:
    """White noise that answers with a (stream, label) in the place of a draw."""
    return object.__new__(WhiteNoise)._bind(_Names(), (), 0)                                                 # type: ignore[arg-type]


class GeneratorNoise(Noise):
    """Noise drawn in order of asking from a ``torch.Generator`` of the caller's. It then belongs to the batch: another
    batch size gives other noise, and two runs differ unless the generator is seeded again."""

    def __init__(self, generator: torch.Generator, shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu") -> None:
        self.generator = instance("generator", generator, torch.Generator, "a torch.Generator")
        self.shape, self.dtype, self.device = _bound(shape, dtype, device)

    def at(self, step: int) -> GeneratorNoise:
        return self

    def within(self) -> GeneratorNoise:
        return self

    def normal(self, use: int = 1) -> Tensor:
        z = torch.randn(self.shape, generator=self.generator, dtype=self.dtype, device=self.generator.device)
        return z.to(self.device)


# Cov of (W_1, A_1), and its inverse, on a cell of length 1.
_INVERSE = ((4.0, -6.0), (-6.0, 12.0))


def _bridge(p: float) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float, float]]:
    """(W_p, A_p) given (W_0 = A_0 = 0; W_1, A_1) on a unit cell: the mean's weights on (W_1, A_1) for W and for A, and
    the Cholesky factor (l_ww, l_aw, l_aa) of the conditional covariance."""
    cw, ca = (p, p - p * p / 2), (p * p / 2, p * p / 2 - p**3 / 6)          # Cov(W_p, (W_1, A_1)), Cov(A_p, (W_1, A_1))
    mw, ma = ((c[0] * _INVERSE[0][0] + c[1] * _INVERSE[1][0], c[0] * _INVERSE[0][1] + c[1] * _INVERSE[1][1]) for c in (cw, ca))
    q = 1 - p                                   # p - mw.cw, p^2/2 - mw.ca and p^3/3 - ma.ca, multiplied out
    vww, vwa, vaa = p * q * (1 - 3 * p * q), p * p * q * q * (1 - 2 * p) / 2, p**3 * q**3 / 3
    lww = math.sqrt(vww)
    law = vwa / lww if lww else 0.0
    return tuple(mw), tuple(ma), (lww, law, math.sqrt(max(0.0, vaa - law * law)))  # type: ignore[return-value]


def _time(level: Any) -> float:
    return level.t


class BrownianPath(Noise):
    """One Brownian path W per sample, the same on every grid and for every method that asks in the same clock.

    Parameters: ``span`` = (low, high), the clock's range, W(low) = 0; ``clock``, a function level -> float, by default the
    level's time t. ``unit(t, s)`` is (W(clock s) - W(clock t)) / sqrt|clock s - clock t|. Draws that belong to no interval
    (``normal``: a corrector's) are white noise of the same seed. Times outside the span raise ValueError. Below ``resolution`` times the
    distance from ``low`` the path is smooth: increments of shorter steps have the wrong law.

    With ``clock=quadratic_variation(eta)`` the path lives in the clock in which the noise of an exponential step with that
    eta accumulates: a coarse order-1 step then receives exactly the weighted sum of the fine steps' noise.
    """

    def __init__(self, seed: Seed, shape: Sequence[int], *, span: tuple[float, float] = (0.0, 1.0),
                 clock: Callable[[Any], float] | None = None, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", first: int = 0, resolution: float = 2.0**-14) -> None:
        ends = sequence("span", span, "(0.0, 1.0)", 2)
        if len(ends) > 2:
            raise ValueError(f"span={shown(span)}: expected (low, high), such as (0.0, 1.0).")
        self.low, self.high = real("span[0]", ends[0]), real("span[1]", ends[1], ends[0], low_open=True)
        function("clock", clock, "sdediff.random.quadratic_variation(1.0)", none=True)
        self.resolution = real("resolution", resolution, 0.0, 1.0, low_open=True)
        self.clock, self.timed = clock or _time, clock is None
        self.white = WhiteNoise(seed, shape, dtype=dtype, device=device, first=first)
        self.shape, self.dtype, self.device = self.white.shape, self.white.dtype, self.white.device
        self._memo = _Memo({}, {}, {}, [False])

    def _with(self, **changes: Any) -> BrownianPath:
        view = copy.copy(self)
        view.__dict__.update(changes)
        return view

    def at(self, step: int) -> BrownianPath:
        return self._with(white=self.white.at(step))

    def within(self) -> BrownianPath:
        return self._with(white=self.white.within())

    def over(self, levels: Iterable[Any]) -> BrownianPath:
        """The same path, which keeps what it draws at these levels: for several runs, or methods, over one grid. From the second
        run on a step costs a difference, and has the same bits. Memory: a float32 state for every level asked
        for, and a float64 state where its area is."""
        known = {self.clock(level): {} for level in levels}                  # type: dict[float, dict[str, Tensor]]
        return self._with(_memo=self._memo._replace(known=known))

    def normal(self, use: int = 1) -> Tensor:
        return self.white.normal(use + 16)      # uses below 16 name white noise of intervals, which the path replaces

    def initial(self) -> Tensor:
        return self.white.initial()

    def value(self, c: float) -> Tensor:
        """W at the clock value c: (B, *D), N(0, (c - low) I)."""
        return self._at(real("clock value", c), "w").to(self.dtype, copy=True)

    def unit(self, t: Any, s: Any) -> Tensor:
        ct, cs = self.clock(t), self.clock(s)
        return (self._at(cs, "w").double() - self._at(ct, "w")).div_(math.sqrt(abs(cs - ct) or 1.0)).to(self.dtype)

    def area(self, t: Any, s: Any) -> Tensor:
        if not self.timed:
            raise ValueError("area: this path lives in a clock other than t; use BrownianPath(..., clock=None).")
        self._memo.both[0] = True               # from now on W and A are found together: half the work
        return (self._at(s.t, "a") - self._at(t.t, "a")).sub_(self._at(t.t, "w"), alpha=s.t - t.t).to(self.dtype)

    def _at(self, c: float, what: str) -> Tensor:
        """W ("w") or A ("a") at c. Differences are taken in float64, so that they add up."""
        known, recent, _, both = self._memo
        found = known.get(c)
        if found is None:
            found = recent.setdefault(c, {})
            while len(recent) > 4:
                recent.pop(next(iter(recent)), None)
        if what not in found:
            missing = [w for w in ("wa" if both[0] else what) if w not in found]
            found.update(zip(missing, self._sums(c, missing)))
        return found[what]

    def _sums(self, c: float, missing: Sequence[str]) -> list[Tensor]:
        """W, summed in float32, or A, whose small differences matter, in float64: each (B, *D)."""
        real("clock value", c, self.low, self.high, hint=f"the path was built on the span ({self.low}, {self.high})")
        cells, end = self._descend(c - self.low)
        weights = [self._weights(cells, end, (1.0, 0.0) if w == "w" else (0.0, 1.0)) for w in missing]
        normals, held = self.white.normals, self._memo.held
        streams = [(-1, cell.node >> 62, cell.node & (1 << 62) - 1) for cell in cells]
        near = sum(cell.node < 1 << SHARED for cell in cells)
        far = normals.combine(streams[near:], [w[near:] for w in weights])
        out = [row.double() if w == "a" else row for row, w in zip(far, missing)]
        for k, cell in enumerate(cells[:near]):
            z, y = held[cell.node] = held.get(cell.node) or normals.pair(streams[k])
            for row, w in zip(out, weights):
                row.add_(z, alpha=w[k][0]).add_(y, alpha=w[k][1])
        for node in held.keys() - {cell.node for cell in cells}:
            held.pop(node, None)
        return [row.reshape(self.shape).to(self.device) for row in out]

    def _descend(self, target: float) -> tuple[list[_Cell], int]:
        """The cells from the whole span to the one that ``target`` splits, and where it lies in the last: an end, 0 or 1, or 2: inside."""
        length = self.high - self.low
        cells, left, right, node = [_Cell(0, length, 1.0, 0)], 0.0, length, 1
        side = 1                                # which end of the cell is the point that its parent was split at
        while target not in (left, right):
            h = right - left
            # Too fine to split: the query point itself, drawn from the bridge over its cell.
            if h <= self.resolution * right or node >= 1 << 100:
                return [*cells, _Cell(node, h, (target - left) / h, 2)], 2
            mid = left + h / 2
            side = int(target < mid)
            cells.append(_Cell(node, h, 0.5, side))
            left, right, node = (left, mid, 2 * node) if side else (mid, right, 2 * node + 1)
        return cells, int(target == right)

    def _weights(self, cells: Sequence[_Cell], end: int, what: tuple[float, float]) -> list[tuple[float, float]]:
        """The weights of the cells' pairs (z, y) in what[0] W + what[1] A at the point that ``_descend`` ended at."""
        low, high = what if end == 0 else (0.0, 0.0), what if end == 1 else (0.0, 0.0)
        out = []
        for cell in reversed(cells[1:]):        # from weights at a cell's ends, and the point inside, to those of its parent
            h, p = cell.length, cell.point
            if cell.side == 2:
                w, a = what
            elif cell.side:                     # the left half: its high end is the point
                (w, a), high = high, (0.0, 0.0)
            else:
                (w, a), low = low, (0.0, 0.0)
            (w_w, w_a), (a_w, a_a), (lww, law, laa) = _MIDDLE if p == 0.5 else _bridge(p)
            out.append((w * math.sqrt(h) * lww + a * h**1.5 * law, a * h**1.5 * laa))
            w1, a1 = w * w_w + a * a_w * h, w * w_a / h + a * a_a         # on the cell's increments of W, and of A - h W_low
            low = low[0] + w + a * p * h - w1 - h * a1, low[1] + a - a1
            high = high[0] + w1, high[1] + a1
        h = cells[0].length
        out.append((high[0] * math.sqrt(h) + high[1] * h**1.5 / 2, high[1] * h**1.5 / math.sqrt(12.0)))
        return out[::-1]


_MIDDLE = _bridge(0.5)


class _Memo(NamedTuple):
    """What the views of a path share: {"w": W, "a": A} at known and at the latest times; the pairs held; whether areas are asked for."""

    known: dict[float, dict[str, Tensor]]
    recent: dict[float, dict[str, Tensor]]
    held: dict[int, tuple[Tensor, Tensor]]
    both: list[bool]


class _Cell(NamedTuple):
    """A cell of the Brownian tree on the way to a point: its number, its length, where it is split, and which part comes next: 1, left,
    0, right, or 2, none."""

    node: int
    length: float
    point: float
    side: int


def quadratic_variation(eta: float = 1.0) -> Callable[[Any], float]:
    """The clock exp(2 eta^2 lambda) in which the noise of the exponential x0-form step of ``ReverseSDE(eta=eta)`` has unit rate."""
    rate = 2 * real("eta", eta, 0.0, low_open=True) ** 2
    return lambda level: math.exp(rate * level.lam)


def source(seed: Seed, shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
           device: torch.device | str = "cpu", first: int = 0) -> Noise:
    """White noise for a seed of any kind: an int, B ints (one per sample), a ``torch.Generator``, or None (a fresh seed)."""
    if isinstance(seed, torch.Generator):
        return GeneratorNoise(seed, shape, dtype=dtype, device=device)
    return WhiteNoise(seed, shape, dtype=dtype, device=device, first=first)


def canonical_seed(seed: Seed, batch: int) -> int | list[int]:
    """An int, or a list of one int per sample. Raises on bools, floats, negatives and a wrong number of seeds. TypeError for types,
    ValueError for values."""
    integer("batch", batch, 0)
    if type(seed) is int:
        return integer("seed", seed, 0)         # the common case, at a fifth of the price
    if seed is None:
        return fresh_seed()
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        if len(seed) != batch:
            raise ValueError(f"seed holds {len(seed)} seeds for a batch of {batch}; expected one int, or one per sample.")
        return [integer(f"seed[{i}]", s, 0, 2**63 - 1) for i, s in enumerate(seed)]
    return integer("seed", seed, 0, 2**63 - 1)
