r"""Noise as a pure function: of (seed, sample, label) for white noise, of (seed, sample, times) for a Brownian path.

A seed belongs to a sample, not to a batch: the noise of sample 3 is bit for bit the same alone, in a batch of 8, in a
chunk or on another rank. Nothing here reads or moves the global random state, except that ``seed=None`` takes one fresh
seed from torch's default generator, so that ``torch.manual_seed`` reproduces a run.

*Tiles.* Normals are drawn in tiles of (S samples) x (L labels) x (event), one generator seeding per tile; S and L follow
from the event shape and the device type alone, so that one sample draws many steps at once and many samples share one
call. Normals are drawn in float32 and cast: a seed means the same noise in every dtype.

*Brownian path.* The pair (W, A), A(t) = int_0^t W, is a Gaussian Markov process; on a cell of length h, given both ends,

    E[W_p] = (1 - p) W_0 + ... the derivative of the cubic Hermite interpolant of A with slopes W_0 and W_1,
    E[A_p] = that interpolant,   Cov[(W_p, A_p)] fixed by p and h,

so that a dyadic tree keyed by (seed, sample, node) gives W and its area at any time, in any order of asking, with the
exact joint law for any two times that do not share a cell of relative size 2^-20. (Foster, Lyons & Oberhauser 2020, for
the midpoint; the tree is Gaines & Lyons 1997.)
"""
from __future__ import annotations

import abc
import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .contracts import integer, real

Seed = int | Sequence[int] | Tensor | torch.Generator | None
TILE = {"cpu": 1 << 14, "cuda": 1 << 20}       # normals in a tile: large against a seeding (1 us, 10 us)
LABELS = 32                                    # labels in a tile, at most: what a batch keeps in memory
KEPT = 4                                       # streams whose latest tiles are kept: the uses of a step and of a loop in it


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


def _digest(*words: int) -> bytes:
    return hashlib.blake2b(struct.pack(f"<{len(words)}q", *words), digest_size=16).digest()


class Tiles:
    """Normals as a pure function of (seed, sample index, stream, label).

    Parameters: ``seed``, an int (the sample index then counts from ``first``) or a sequence of B ints, one per sample
    (a sample's noise then depends on its own seed alone); ``shape`` = (B, *D); ``labels``, how many consecutive labels
    share a tile; ``tile``, normals in a tile, by default large against the cost of seeding it.
    """

    def __init__(self, seed: int | Sequence[int], shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", first: int = 0, labels: int = LABELS, tile: int | None = None) -> None:
        self.shape, self.dtype, self.device = tuple(shape), dtype, torch.device(device)
        self.seed, self.first = seed, first
        batch, self.event = self.shape[0], self.shape[1:]
        size = max(1, math.prod(self.event))
        self.where = self.device if self.device.type in TILE else torch.device("cpu")
        room = max(1, (tile or TILE[self.where.type]) // size).bit_length() - 1       # log2 of (samples x labels) in a tile
        self.labels = min(labels, 1 << (room + 1) // 2)
        if isinstance(seed, int):
            self.samples = (1 << room) // self.labels
            self.skip = first % self.samples
            blocks = range(first // self.samples, -(-(first + batch) // self.samples) if batch else 0)
            self.keys = [(seed, b) for b in blocks]
        else:
            self.samples, self.skip, self.keys = 1, 0, [(int(s), -1) for s in seed]
        self._held: dict[tuple[int, ...], tuple[int, Tensor]] = {}

    def draw(self, stream: tuple[int, ...], label: int) -> Tensor:
        """The normals (B, *D) of one label of one stream, in storage of their own. The latest tiles of a few streams are kept."""
        block, row = divmod(label, self.labels)
        held = self._held.pop(stream, None)
        if held is None or held[0] != block:
            held = (block, self._tiles(stream, block))
        self._held[stream] = held               # the latest stream last; the oldest goes
        while len(self._held) > KEPT:
            self._held.pop(next(iter(self._held)), None)
        return held[1][:, row].to(device=self.device, dtype=self.dtype, copy=True)

    def single(self, stream: tuple[int, ...]) -> Tensor:
        """The normals (B, *D) of a stream with one label, from tiles of samples alone."""
        return Tiles(self.seed, self.shape, dtype=self.dtype, device=self.device, first=self.first, labels=1).draw(stream, 0)

    def _tiles(self, stream: tuple[int, ...], block: int) -> Tensor:
        digests = [_digest(seed, samples, block, *stream) for seed, samples in self.keys]
        z = torch.empty(len(self.keys), self.samples * self.labels * math.prod(self.event), dtype=torch.float32, device=self.where)
        generator = torch.Generator(self.where)
        for tile, digest in zip(z.unbind(), digests):
            tile.normal_(generator=generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True)))
        # torch's CPU engine keeps 32 bits of its seed, so that seeds collide among some 10^5 tiles; 64 sign bits, repeated
        # over the tile, leave the law exact and keep tiles that share a seed uncorrelated.
        bits = np.unpackbits(np.frombuffer(b"".join(d[8:] for d in digests), dtype=np.uint8)).reshape(-1, 1, 64)
        signs = torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32)).to(self.where)
        whole = z.shape[1] // 64 * 64
        z[:, :whole].unflatten(1, (-1, 64)).mul_(signs)
        z[:, whole:].mul_(signs[:, 0, :z.shape[1] - whole])
        return z.view(len(self.keys) * self.samples, self.labels, *self.event)[self.skip:self.skip + self.shape[0]]


class WhiteNoise(Noise):
    """Independent noise for every step, from tiles. See ``Tiles`` for ``seed``, ``shape`` and ``first``."""

    def __init__(self, seed: Seed, shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", first: int = 0) -> None:
        self._bind(Tiles(canonical_seed(seed, shape[0]), shape, dtype=dtype, device=device, first=first), (), 0)

    def _bind(self, tiles: Tiles, path: tuple[int, ...], step: int) -> WhiteNoise:
        self.tiles, self.path, self.step = tiles, path, step
        self.shape, self.dtype, self.device = tiles.shape, tiles.dtype, tiles.device
        return self

    def at(self, step: int) -> WhiteNoise:
        return object.__new__(WhiteNoise)._bind(self.tiles, self.path, step)

    def within(self) -> WhiteNoise:
        return object.__new__(WhiteNoise)._bind(self.tiles, (*self.path, self.step), 0)

    def normal(self, use: int = 1) -> Tensor:
        return self.tiles.draw((use, *self.path), self.step)

    def initial(self) -> Tensor:
        return self.tiles.single((-2, *self.path))         # no use is negative: no tile is shared with ``normal``


class GeneratorNoise(Noise):
    """Noise drawn in order of asking from a ``torch.Generator`` of the caller's. It then belongs to the batch: another
    batch size gives other noise, and two runs differ unless the generator is seeded again."""

    def __init__(self, generator: torch.Generator, shape: Sequence[int], *, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu") -> None:
        self.generator, self.shape, self.dtype, self.device = generator, tuple(shape), dtype, torch.device(device)

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


class BrownianPath(Noise):
    """One Brownian path W per sample, the same on every grid and for every method that asks in the same clock.

    Parameters: ``span`` = (low, high), the clock's range, W(low) = 0; ``clock``, a function level -> float, by default the
    level's time t. ``unit(t, s)`` is (W(clock s) - W(clock t)) / sqrt|clock s - clock t|. Draws that belong to no interval
    (``normal``: a corrector's) are white noise of the same seed. Times outside the span raise ValueError.

    With ``clock=quadratic_variation(eta)`` the path lives in the clock in which the noise of an exponential step with that
    eta accumulates: a coarse order-1 step then receives exactly the weighted sum of the fine steps' noise.
    """

    def __init__(self, seed: Seed, shape: Sequence[int], *, span: tuple[float, float] = (0.0, 1.0),
                 clock: Callable[[Any], float] | None = None, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu", first: int = 0, resolution: float = 2.0**-20) -> None:
        self.low, self.high = real("span[0]", span[0]), real("span[1]", span[1], span[0], low_open=True)
        self.clock, self.resolution, self.timed = clock or (lambda level: level.t), resolution, clock is None
        seed = canonical_seed(seed, shape[0])
        self.white = WhiteNoise(seed, shape, dtype=dtype, device=device, first=first)
        self.tree = Tiles(seed, shape, dtype=torch.float64, device=device, first=first, labels=2, tile=1 << 12)
        self.shape, self.dtype, self.device = tuple(shape), dtype, torch.device(device)
        self._recent: dict[float, tuple[Tensor, Tensor]] = {}
        self._cells: list[_Cell] = []

    def _with(self, white: WhiteNoise) -> BrownianPath:
        view = object.__new__(BrownianPath)
        view.__dict__.update(self.__dict__, white=white)
        return view

    def at(self, step: int) -> BrownianPath:
        return self._with(self.white.at(step))

    def within(self) -> BrownianPath:
        return self._with(self.white.within())

    def normal(self, use: int = 1) -> Tensor:
        return self.white.normal(use + 16)      # uses below 16 name white noise of intervals, which the path replaces

    def initial(self) -> Tensor:
        return self.white.initial()

    def value(self, c: float) -> Tensor:
        """W at the clock value c: (B, *D), N(0, (c - low) I)."""
        return self._pair(c)[0].to(self.dtype, copy=True)

    def unit(self, t: Any, s: Any) -> Tensor:
        ct, cs = self.clock(t), self.clock(s)
        return ((self._pair(cs)[0] - self._pair(ct)[0]) / math.sqrt(abs(cs - ct) or 1.0)).to(self.dtype)

    def area(self, t: Any, s: Any) -> Tensor:
        if not self.timed:
            raise ValueError("area: this path lives in a clock other than t; use BrownianPath(..., clock=None).")
        (wt, at), (_, as_) = self._pair(t.t), self._pair(s.t)
        return (as_ - at - (s.t - t.t) * wt).to(self.dtype)

    def _pair(self, c: float) -> tuple[Tensor, Tensor]:
        pair = self._recent.get(c)
        if pair is None:
            while len(self._recent) > 3:
                self._recent.pop(next(iter(self._recent)), None)
            pair = self._recent[c] = self._descend(c)
        return pair

    def _node(self, node: int) -> tuple[Tensor, Tensor]:
        stream = (-1, node >> 62, node & (1 << 62) - 1)
        pair = self.tree.draw(stream, 0), self.tree.draw(stream, 1)
        self.tree._held.clear()
        return pair

    def _descend(self, c: float) -> tuple[Tensor, Tensor]:
        real("clock value", c, self.low, self.high, hint=f"the path was built on the span ({self.low}, {self.high})")
        target = c - self.low
        cells = self._cells                     # from the root to the cell of the latest query: neighbours share most of it
        while len(cells) > 1 and not cells[-1].left <= target <= cells[-1].right:
            cells.pop()
        if not cells:
            length, (z, y) = self.high - self.low, self._node(0)
            zero = torch.zeros_like(z)
            cells.append(_Cell(0.0, length, 1, (zero, zero), (math.sqrt(length) * z, length**1.5 * (z / 2 + y / math.sqrt(12.0)))))
        while True:
            left, right, node, (wl, al), (wr, ar) = cell = cells[-1]
            if target in (left, right):
                return cell.low if target == left else cell.high
            h = right - left
            # Too fine to split: the query point itself, drawn from the bridge over its cell.
            last = h <= self.resolution * right or node >= 1 << 100
            mid = target if last else left + h / 2
            (w_w, w_a), (a_w, a_a), (lww, law, laa) = _bridge((mid - left) / h)
            dw, da = wr - wl, ar - al - h * wl                                        # relative to the left end
            z, y = self._node(node)
            middle = (wl + w_w * dw + w_a / h * da + math.sqrt(h) * lww * z,
                      al + (mid - left) * wl + a_w * h * dw + a_a * da + h**1.5 * (law * z + laa * y))
            if last:
                return middle
            cells.append(_Cell(mid, right, 2 * node + 1, middle, cell.high) if target >= mid
                         else _Cell(left, mid, 2 * node, cell.low, middle))


class _Cell(NamedTuple):
    """A cell of the Brownian tree: its ends, its number in the tree, and (W, A) at either end."""

    left: float
    right: float
    node: int
    low: tuple[Tensor, Tensor]
    high: tuple[Tensor, Tensor]


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
    """An int, or a list of one int per sample. Raises on bools, floats, negatives and a wrong number of seeds."""
    if seed is None:
        return fresh_seed()
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != batch:
            raise ValueError(f"seed holds {len(seed)} seeds for a batch of {batch}; expected one int, or one per sample.")
        return [integer(f"seed[{i}]", s, 0, 2**63 - 1) for i, s in enumerate(seed)]
    return integer("seed", seed, 0, 2**63 - 1)
