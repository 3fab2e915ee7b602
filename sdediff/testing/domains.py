"""What an argument may be, as data: a domain tells what it holds, gives values inside it and values outside.

Values outside are one pool of wrong things, every kind of them, and the domain's own edges, less what it holds. ``trial`` makes one call
with one such value and says how it ended:

    refused   TypeError or ValueError raised by the library, naming the argument, the value and what was expected, before the first call
              of a network, within a second, with the random states, the grad mode and the default dtype as they were
    served    it returned
    unclear   any other error, or one that leaves out any of this
    silent    a value outside the domain that was served

The table of the public callables and their arguments' domains is ``doors``.
"""
from __future__ import annotations

import math
import numbers
import pathlib
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import contracts

PACKAGE = str(pathlib.Path(__file__).parent.parent)
OMIT: Any = type("Omit", (), {"__repr__": lambda self: "OMIT"})()          # an argument that is left out
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INT64 = 2**63 - 1
HUGE = 10**400


class _Opaque:
    """A thing of no use to anyone."""


OPAQUE = _Opaque()
POOL: tuple[Any, ...] = (
    None, True, 3, -1, 2.5, -0.5, math.nan, math.inf, -math.inf, 1j, HUGE, "no-such-name", "", b"bytes", [], {}, {1}, ["a"], OPAQUE,
    _Opaque,
    torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.complex64), torch.full((2, 2), math.nan),
    torch.tensor([True, False]))


class Domain:
    """``holds`` says what is inside; ``inside`` are values that calls are served with, ``edges`` values that may be wrong."""

    none: bool
    inside: tuple[Any, ...] = ()
    edges: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        raise NotImplementedError

    def outside(self) -> Iterator[Any]:
        """Values that a call is to refuse."""
        for value in (*POOL, *self.edges):
            if not (value is None and getattr(self, "none", False)) and not self.holds(value):
                yield value


@dataclass(frozen=True)
class Integer(Domain):
    """Integers from ``low`` to ``high``."""

    low: int | None = None
    high: int | None = None
    none: bool = False
    inside: tuple[Any, ...] = ()

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        return (*([] if self.low is None else [self.low - 1]), *([] if self.high is None else [self.high + 1]), 1.0, "1")

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return False
        n = int(value)
        return (-INT64 if self.low is None else self.low) <= n <= (INT64 if self.high is None else self.high)


@dataclass(frozen=True)
class Real(Domain):
    """The interval from low to high, without the ends that are ``open``; ``infinite``: infinities that belong to it."""

    low: float | None = None
    high: float | None = None
    open: str = ""              # "low", "high" or "low high"
    none: bool = False
    infinite: str = ""          # "inf" or "inf -inf"
    inside: tuple[Any, ...] = ()

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        ends = [(self.low, -1, "low" in self.open), (self.high, 1, "high" in self.open)]
        return (*(end if is_open else end + way * 0.5 for end, way, is_open in ends if end is not None), "0.5", [0.5])

    def holds(self, value: Any) -> bool:
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or (type(value) is int and abs(value) > 2**64):
            return False
        value = float(value)
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        above = value > low if "low" in self.open else value >= low
        below = value < high if "high" in self.open else value <= high
        return above and below and (math.isfinite(value) or (math.isinf(value) and str(value) in self.infinite.split()))


@dataclass(frozen=True)
class Flag(Domain):
    """True or False."""

    none: bool = False
    inside: tuple[Any, ...] = (True, False)
    edges: tuple[Any, ...] = (0, 1, "yes")

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice(Domain):
    """One of ``names``."""

    names: tuple[str, ...]
    none: bool = False

    @property
    def inside(self) -> tuple[Any, ...]:                                                     # type: ignore[override]
        return self.names

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names


@dataclass(frozen=True)
class Text(Domain):
    """Any string but the empty one."""

    none: bool = False
    empty: bool = False
    inside: tuple[Any, ...] = ("a name",)

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and (self.empty or bool(value))


@dataclass(frozen=True)
class State(Domain):
    """A real floating tensor of this shape; sizes that are None are free; ``rank`` alone where there is no shape."""

    shape: tuple[int | None, ...] = ()
    rank: int = 1
    none: bool = False
    inside: tuple[Any, ...] = ()
    finite: bool = True         # whether its values are looked at

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        size = [2 if n is None else n for n in self.shape] or [2] * max(1, self.rank)
        x = torch.zeros(size)
        wrong = [torch.zeros([n + 1 if fixed is not None else n for n, fixed in zip(size, self.shape)])] if any(
            n is not None for n in self.shape) else []
        return (x.long(), x.to(torch.complex64), x.bool(), torch.full(size, math.inf), torch.full(size, math.nan), x.numpy(), x.tolist(),
                torch.tensor(1.0), *wrong)

    def holds(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dtype not in FLOATING or value.ndim < self.rank or (
                self.finite and not bool(value.isfinite().all())):
            return False
        return not self.shape or (value.ndim == len(self.shape) and all(n in (None, m) for n, m in zip(self.shape, value.shape)))


@dataclass(frozen=True)
class Shape(Domain):
    """A tuple of sizes; with ``batch`` the first counts samples, which may be none, as any size may then; ``empty``: () is one too."""

    batch: bool = True
    empty: bool = False
    none: bool = False
    inside: tuple[Any, ...] = ()

    edges = ((), (2.5, 2), (True, 2), (-1, 2), (2, -1), (math.nan, 2), ("2", 2), ((2, 2), 2), (None, 2), torch.ones(2), "22")

    def holds(self, value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or (not value and not self.empty):
            return False
        return all(type(n) is int and n >= (0 if self.batch else 1) for n in value)


@dataclass(frozen=True)
class Seed(Domain):
    """An integer, ``batch`` of them, a generator, or None."""

    batch: int = 2
    none: bool = True
    generator: bool = True

    @property
    def inside(self) -> tuple[Any, ...]:                                                     # type: ignore[override]
        return (0, INT64, *([None] if self.none else []), list(range(self.batch)), *([torch.Generator()] if self.generator else []))

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        return -1, INT64 + 1, list(range(self.batch + 1)), [0.5] * self.batch, [-1] * self.batch, [True] * self.batch, "0"

    def holds(self, value: Any) -> bool:
        if isinstance(value, torch.Generator):
            return self.generator
        if isinstance(value, list):
            return len(value) == self.batch and all(self.holds(v) for v in value)
        return type(value) is int and 0 <= value <= INT64


@dataclass(frozen=True)
class Times(Domain):
    """Several times in [0, high], ``falling`` or rising strictly; ``names``: of grids that may stand for them."""

    high: float = 1.0
    falling: bool = True
    names: tuple[str, ...] = ()
    none: bool = False
    least: int = 2
    inside: tuple[Any, ...] = ()

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        way = 1 if self.falling else -1
        lists = ([0.9, 0.5][::-way], [0.5, 0.5], [0.9, math.nan, 0.1], [math.inf, 0.5], [-0.1, -0.2], [self.high + 0.5, 0.1][::way], [0.9],
            ["a", "b"],
                 [True, False], [0.9 + 0j, 0.1], [[0.9, 0.1]], [None, 0.1])
        return lists if self.least > 1 else tuple(v for v in lists if v != [0.9])

    def holds(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self.names
        if not isinstance(value, Sequence) or isinstance(value, bytes) or len(value) < self.least or not all(
                type(v) in (int, float) for v in value):
            return False
        pairs = list(zip(value, value[1:]))
        return all(0 <= v <= self.high for v in value) and all((a > b) if self.falling else (a < b) for a, b in pairs)


@dataclass(frozen=True)
class Function(Domain):
    """Something to call. (A class is callable, so the pool's is not asked.)"""

    none: bool = False
    inside: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        return callable(value)


@dataclass(frozen=True)
class Instance(Domain):
    """Of one of these types; ``edges``: what looks like one and is not."""

    types: tuple[type, ...]
    none: bool = False
    inside: tuple[Any, ...] = ()
    edges: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        return isinstance(value, self.types)


@dataclass(frozen=True)
class Numbers(Domain):
    """Real finite numbers in [low, high] as nested sequences or an array: of these ranks; along the first axis ``length``, or ``least`` and
    more; ``whole``: integers."""

    ranks: tuple[int, ...] = (1,)
    length: int | None = None
    low: float = -math.inf
    high: float = math.inf
    least: int = 1
    none: bool = False
    inside: tuple[Any, ...] = ()
    whole: bool = False

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        def nest(v: Any, k: int) -> Any:
            return v if k == 0 else [nest(v, k - 1)] * (self.length or 2 if k == self.ranks[-1] else 2)

        wrong = (math.nan, math.inf, 1j, "a", None, True, HUGE, *(v for v in (self.low - 1, self.high + 1) if math.isfinite(v)))
        return (*(nest(v, self.ranks[-1]) for v in wrong), *([nest(0.5, self.ranks[-1])] * (self.length is not None)))

    def holds(self, value: Any) -> bool:
        if isinstance(value, Tensor) and value.dtype in (torch.bool, torch.complex64):
            return False
        if not isinstance(value, Tensor) and any(isinstance(v, bool) for v in np.ravel(np.asarray(value, dtype=object))):
            return False
        try:
            array = np.asarray(value.numpy() if isinstance(value, Tensor) else value)
            finite = array.dtype.kind in ("iu" if self.whole else "iuf") and bool(np.isfinite(array).all())
        except (TypeError, ValueError):
            return False
        if array.ndim == 1 and not array.size and isinstance(value, (list, tuple, Tensor)):
            return self.least == 0 and 1 in self.ranks
        return (finite and array.ndim in self.ranks and array.size > 0 and (not array.ndim or len(array) >= self.least)
                and (self.length is None or not array.ndim or len(array) == self.length)
                and bool(((array >= self.low) & (array <= self.high)).all()))


@dataclass(frozen=True)
class Labels(Domain):
    """A tensor of whole numbers 0 to ``count`` - 1, of any dtype that holds them."""

    count: int
    none: bool = False
    inside: tuple[Any, ...] = ()

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        return torch.tensor([-1, 0]), torch.tensor([0, self.count]), torch.tensor([0.5, 1.0]), torch.tensor([0.0, math.inf]), [0,
            1], torch.tensor(1)

    def holds(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or not value.ndim or value.is_complex() or value.dtype == torch.bool:
            return False
        whole = value.double()
        return bool(((whole == whole.round()) & (whole >= 0) & (whole < self.count)).all())


@dataclass(frozen=True)
class Bools(Domain):
    """True and False in a rectangular array, one True at least."""

    none: bool = False
    inside: tuple[Any, ...] = ()
    edges: tuple[Any, ...] = ([False, False], [0, 1], [[True], [True, False]], torch.tensor(True))

    def holds(self, value: Any) -> bool:
        if not isinstance(value, (list, Tensor)) or not _even(value):
            return False
        array = np.asarray(value)
        return array.dtype == bool and array.ndim > 0 and bool(array.any())


@dataclass(frozen=True)
class Classes(Domain):
    """A tensor of ``length`` labels, two of them at least different."""

    length: int
    none: bool = False

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        return torch.zeros(self.length), torch.arange(self.length + 1), [0] * self.length, torch.eye(2)

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == (self.length,) and len(value.unique()) > 1


@dataclass(frozen=True)
class Pair(Domain):
    """(low, high), low < high; ``least``: of low."""

    least: float | None = None
    none: bool = False
    inside: tuple[Any, ...] = ()
    edges: tuple[Any, ...] = ((1.0, 0.5), (0.5, 0.5), (math.nan, 1.0), (0.0, math.nan), (-math.inf, 1.0), ("a", "b"), (0.5,),
        (0.1, 0.2, 0.3), (1j, 2.0),
                              (True, 2.0), (None, 1.0), (HUGE, HUGE))

    def holds(self, value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(type(v) in (int, float) and v != HUGE for v in value):
            return False
        return (self.least is None or value[0] >= self.least) and value[0] < value[1] and math.isfinite(value[0])


@dataclass(frozen=True)
class Names(Domain):
    """A mapping from names; ``keys``: the names that it may hold (None: any)."""

    none: bool = True
    inside: tuple[Any, ...] = ()
    edges: tuple[Any, ...] = ([("y", 1)], {1: 2})

    def holds(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(k, str) for k in value)


@dataclass(frozen=True)
class DType(Domain):
    """A dtype of torch."""

    allowed: tuple[Any, ...] = FLOATING
    none: bool = True
    edges: tuple[Any, ...] = (torch.int64, torch.complex64, torch.bool, "float32", np.float32, float)

    @property
    def inside(self) -> tuple[Any, ...]:                                                     # type: ignore[override]
        return self.allowed

    def holds(self, value: Any) -> bool:
        return isinstance(value, torch.dtype) and value in self.allowed


@dataclass(frozen=True)
class Device(Domain):
    """A device, by name or itself."""

    none: bool = True
    inside: tuple[Any, ...] = ("cpu", torch.device("cpu"))
    edges: tuple[Any, ...] = ("nowhere", "cuda:99", 0.5)

    def holds(self, value: Any) -> bool:
        return value in ("cpu", torch.device("cpu")) if isinstance(value, (str, torch.device)) else False


@dataclass(frozen=True)
class File(Domain):
    """A path."""

    none: bool = False
    inside: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        return isinstance(value, (str, pathlib.Path)) and str(value) not in ("", ".")


@dataclass(frozen=True)
class OneOf(Domain):
    """A value of any of these domains."""

    domains: tuple[Domain, ...]
    none: bool = False

    @property
    def inside(self) -> tuple[Any, ...]:                                                     # type: ignore[override]
        return tuple(v for d in self.domains for v in d.inside)

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        return tuple(v for d in self.domains for v in d.edges)

    def holds(self, value: Any) -> bool:
        return any(d.holds(value) or (value is None and getattr(d, "none", False)) for d in self.domains)


@dataclass(frozen=True)
class Each(Domain):
    """A sequence of values of one domain, at least ``least`` and at most ``most`` of them."""

    domain: Domain
    least: int = 1
    most: int | None = None
    none: bool = False
    inside: tuple[Any, ...] = ()

    @property
    def edges(self) -> tuple[Any, ...]:                                                      # type: ignore[override]
        return tuple([v] * max(1, self.least) for v in (*self.domain.edges, None, OPAQUE))

    def holds(self, value: Any) -> bool:
        return (isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and self.least <= len(value)
                and (self.most is None or len(value) <= self.most) and all(map(self.domain.holds, value)))


@dataclass(frozen=True)
class Free(Domain):
    """Whatever it is, it is passed on to something of the caller's: ``why`` says to what."""

    why: str
    none: bool = True

    def holds(self, value: Any) -> bool:
        return True


class Unknown(Domain):
    """The place of options: one that nobody knows is refused by name."""

    none = True

    def outside(self) -> Iterator[Any]:
        yield 1


@dataclass(frozen=True)
class Door:
    """A public callable, a valid call of it, and the domains of its arguments that are its own. ``beside``: what else changes in the call
    when an argument does (OMIT: left out). ``also``: other names that errors may use for an argument. ``costly``: a served call takes
    seconds, so that only the valid call is served."""

    name: str
    function: Callable[..., Any]
    call: Callable[[], dict[str, Any]]
    domains: Mapping[str, Domain]
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    costly: bool = False


class Case(NamedTuple):
    """One call: the argument's name (None: the valid call itself), its value, and whether that is to be refused."""

    door: Door
    argument: str | None
    value: Any
    wrong: bool

    def __str__(self) -> str:
        return f"{self.door.name}({'' if self.argument is None else f'{self.argument}={contracts.shown(self.value)}'})"


class Outcome(NamedTuple):
    """What a case came to."""

    kind: str                   # refused, served, unclear, silent
    said: str                   # the error's words, or what is wrong


def cases(door: Door) -> Iterator[Case]:
    """Every case of a door: the valid call, then each argument in turn."""
    yield Case(door, None, None, False)
    for name, domain in door.domains.items():
        if not door.costly:
            yield from (Case(door, name, value, False) for value in (*domain.inside,
                *([None] if getattr(domain, "none", False) and not isinstance(domain, Unknown) else [])))
        yield from (Case(door, name, value, True) for value in domain.outside())


def _even(value: Any) -> bool:
    try:
        return np.asarray(value).dtype != object
    except ValueError:
        return False


def _spoken(value: Any) -> tuple[str, ...]:
    """Words, any of which names a value."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return kind, "tensor(", str(value.dtype), str(tuple(value.shape)), "NaN", str(len(value)) if value.ndim else "()", *map(str,
            value.flatten()[:2].tolist())
    if isinstance(value, (list, tuple, np.ndarray)):
        return (kind, contracts.shown(value), repr(tuple(value)), *(word for v in value for word in _spoken(v)), "[]", "()",
            f"{len(value)} ", f"shape={np.shape(value)}" if _even(value) else kind)
    unseen = ("NaN or inf",) if isinstance(value, float) and not math.isfinite(value) else ("shape=()",)
    return contracts.shown(value), str(value) or "''", kind, *unseen


def _world() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The random states of torch, Python and numpy, and the modes, as values that compare."""
    known: Any = np.random.get_state()                                                      # noqa: NPY002  a state that is not to move
    return ((torch.random.get_rng_state().numpy().tobytes(), random.getstate(), known[1].tobytes(), known[2]),
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()))


def trial(case: Case, calls: Callable[[], int] = lambda: 0) -> Outcome:
    """One call, and how it ended. ``calls``: how often the network was called so far."""
    door, name, value, wrong = case
    given = door.call()
    if name is not None:
        given |= {} if name not in door.beside or (value is None and not wrong) else door.beside[name]
        given["no_such_option" if name.startswith("**") else name] = value
    given = {k: v for k, v in given.items() if v is not OMIT}
    (states, modes), called, started = _world(), calls(), time.perf_counter()
    try:
        out = door.function(**given)
        if isinstance(out, Iterator):
            next(out, None)
    except Exception as error:
        if not wrong:
            return Outcome("unclear", f"not served: {type(error).__name__}: {error}")
        seconds, raised = time.perf_counter() - started, traceback.extract_tb(error.__traceback__)[-1].filename
        words, label = str(error), "no_such_option" if (name or "").startswith("**") else (name or "")
        labels, after = (label, *door.also.get(label, ())), _world()
        found = [what for what, bad in (
            ("not TypeError or ValueError", type(error) not in (TypeError, ValueError)),
            ("not raised by the library", not raised.startswith(PACKAGE) or raised == __file__),
            (f"{label} is not named", not any(re.search(rf"(?<![A-Za-z]){re.escape(n)}(?![a-z])", words) for n in labels)),
            ("the value is not named", not any(word in words for word in _spoken(value))),
            ("nothing is said of what was expected", not re.search(r"[Ee]xpected|give exactly one", words)),
            ("after a network call", calls() != called), ("after more than a second", seconds > 1.0),
            ("a random state moved", after[0] != states), ("a mode changed", after[1] != modes)) if bad]
        return Outcome("unclear" if found else "refused", f"{'; '.join(found)}: {type(error).__name__}: {words}" if found else words)
    return Outcome("silent" if wrong else "served", "")
