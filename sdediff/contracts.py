"""What an argument may be. Each check returns the value in its canonical type, or raises an error that names the
argument, the value that came and what was expected."""
from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTEGRATED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INT64 = 2**63 - 1
MOST = 10**6            # steps and network calls of a run: more than any has, and few enough to be counted


def shown(value: Any) -> str:
    """A value as a message shows it: plain ones whole if they are short, others by their type."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {tuple(value.shape)} of {value.dtype}"
    if not isinstance(value, _PLAIN):
        return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


_PLAIN = (Real, complex, str, bytes, Sequence, Mapping, set, type(None), torch.dtype, torch.device)


def integer(name: str, value: Any, low: int | None = None, high: int | None = None, hint: str = "") -> int:
    """An integer in [low, high]; bools and floats (also 10.0) are refused."""
    if type(value) is int and (-INT64 if low is None else low) <= value <= (INT64 if high is None else high):
        return value                            # nothing to say, at a fifth of the price
    expected = f"an integer{_range(low, high, True, True)}{hint and '; ' + hint}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={shown(value)}: expected {expected}.")
    n = int(value)
    if (low is not None and n < low) or (high is not None and n > high) or abs(n) > INT64:
        raise ValueError(f"{name}={shown(value)}: expected {expected}.")
    return n


def real(name: str, value: Any, low: float | None = None, high: float | None = None, *, low_open: bool = False,
         high_open: bool = False, infinite: bool = False, hint: str = "") -> float:
    """A finite real number in the interval from low to high (open at an end where ``*_open``); with ``infinite`` also inf."""
    if type(value) is float and ((value == low and not low_open)
                                 or (-math.inf if low is None else low) < value < (math.inf if high is None else high)):
        return value                            # nothing to say, at a fifth of the price
    expected = f"a finite number{_range(low, high, not low_open, not high_open)}{infinite * ', or inf'}{hint and '; ' + hint}"
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={shown(value)}: expected {expected}.")
    try:
        v = float(value)
    except OverflowError:                       # an integer beyond all floats
        v = math.nan
    below = low is not None and (v <= low if low_open else v < low)
    above = high is not None and (v >= high if high_open else v > high)
    if (not math.isfinite(v) and not (infinite and v == math.inf)) or below or above:
        raise ValueError(f"{name}={shown(value)}: expected {expected}.")
    return v


def flags(**values: Any) -> None:
    """Each True or False, and nothing that merely counts as one of them."""
    for name, value in values.items():
        if value is not True and value is not False and not isinstance(value, np.bool_):
            raise TypeError(f"{name}={shown(value)}: expected True or False.")


def text(name: str, value: Any, such: str) -> str:
    """A string that is not empty, ``such`` as an example."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)}: expected a string such as {such!r}.")
    if not value:
        raise ValueError(f"{name}='': expected a string such as {such!r}.")
    return value


def function(name: str, value: Any, such: str, none: bool = False) -> Any:
    """Something to call, ``such`` as an example; with ``none`` also None. A module of torch is a network, which no function here is."""
    if not (none and value is None) and (not callable(value) or isinstance(value, (type, torch.nn.Module))):
        raise TypeError(f"{name}={shown(value)}: expected a function such as {such}{' or None' * none}.")
    return value


def instance(name: str, value: Any, kind: type | tuple[type, ...], such: str, none: bool = False) -> Any:
    """An instance of a class, ``such`` as an example; with ``none`` also None."""
    if not (none and value is None) and not isinstance(value, kind):
        raise TypeError(f"{name}={shown(value)}: expected {such}{' or None' * none}.")
    return value


def names(name: str, value: Any, such: str) -> dict[str, Any]:
    """A mapping from names, copied; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={shown(value)}: expected a mapping such as {such}, or None.")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name}={shown(value)}: expected names for keys, as in {such}.")
    return dict(value)


def known(whose: str, given: Iterable[str] | Mapping[str, Any], options: Iterable[str] | Mapping[str, Any]) -> None:
    """Names of options that there are, of those that ``options`` lists, or gives with their defaults."""
    every = {name: f"{name}={shown(options[name])}" if isinstance(options, Mapping) else name for name in options}
    for name in given:
        if name not in every:
            near = difflib.get_close_matches(name, every, n=1)
            raise TypeError(f"{name}={shown(given[name]) if isinstance(given, Mapping) else '...'}: {whose} has no such option"
                            f"{f', nearest: {near[0]}' if near else ''}; expected "
                            + (f"one of: {', '.join(every.values())}." if every else "no option."))


def sequence(name: str, value: Any, such: str, least: int = 1) -> list[Any]:
    """A list of at least so many values: of a sequence or an array of one axis, and no text, mapping or set."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name}={shown(value)}: expected a sequence, {such}.")
    if len(value) < least:
        raise ValueError(f"{name}={shown(value)}: expected {such}.")
    return list(value)


def scored(name: str, value: Any) -> Any:
    """A score: what is called as score(x, level), and no bare network."""
    if not callable(value) or isinstance(value, (type, torch.nn.Module)):
        raise TypeError(f"{name}={shown(value)}: expected a Score; wrap a network as sdediff.from_network(net, predicts='eps').")
    return value


def each(name: str, value: Any, kind: type | tuple[type, ...], such: str, least: int = 1) -> list[Any]:
    """A list of at least so many values of a class."""
    return [instance(f"{name}[{i}]", v, kind, such) for i, v in enumerate(sequence(name, value, f"such as [{such}]", least))]


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the names; the error lists the nearest ones first."""
    names = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)}: expected one of the names {', '.join(names)}.")
    if value not in names:
        near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
        raise ValueError(f"{name}={shown(value)} is unknown; " + (f"nearest: {', '.join(near)}. " if near else "")
                         + f"Expected one of: {', '.join(names)}.")
    return value


def floating(name: str, x: Any, like: str = "of shape (B, ...)") -> Tensor:
    """A real floating tensor, whose shape and values are not looked at."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}={shown(x)}: expected a torch.Tensor {like}; torch.as_tensor({name}).")
    if x.dtype not in INTEGRATED:
        raise TypeError(f"{name}.dtype={x.dtype}: expected a floating dtype (float16, bfloat16, float32, float64); "
                        f"{name}.float() converts.")
    return x


def state(name: str, x: Any, rank: int = 1) -> Tensor:
    """A real floating tensor (B, *D) with a leading batch axis, finite."""
    rms(name, x, rank)
    return x


def rms(name: str, x: Any, rank: int = 1) -> float:
    """The root mean square of a state, a real floating tensor (B, *D) with a leading batch axis, which is finite."""
    floating(name, x)
    if x.ndim < rank:
        raise ValueError(f"{name}.shape={tuple(x.shape)}: expected a leading batch axis, (B, ...); {name}[None] adds one.")
    norm = torch.linalg.vector_norm(x).item()
    if not norm or not math.isfinite(norm):     # it may have overflowed, or nothing is left of it; in float64 it costs twice as much
        norm = torch.linalg.vector_norm(x, dtype=torch.float64).item()
    if not math.isfinite(norm) and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds NaN or inf in {int((~torch.isfinite(x)).sum())} of {x.numel()} entries; "
                         "expected finite values.")
    return norm / math.sqrt(x.numel()) if norm else 0.0


def numbers(name: str, value: Any) -> tuple[Tensor, float]:
    """Finite real numbers in a rectangular array: a float64 tensor of its own on the CPU, and the rounding unit of what came."""
    try:
        given = value
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            value = torch.stack([torch.as_tensor(v) for v in value])
        if not isinstance(value, Tensor):
            value = np.asarray(value)
            if value.dtype.kind not in "iuf":
                raise TypeError
            value = torch.from_numpy(np.array(value, dtype=value.dtype if value.dtype.kind == "f" else np.float64))
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}={shown(given)}: expected real numbers in a rectangular array.") from None
    unit = torch.finfo(value.dtype if value.is_floating_point() else torch.float64).eps
    out = value.detach().to(device="cpu", dtype=torch.float64, copy=True)
    if not bool(torch.isfinite(out).all()):
        bad = int((~torch.isfinite(out)).sum())
        raise ValueError(f"{name} holds NaN or inf in {bad} of {out.numel()} entries; expected finite values.")
    return out, unit


def labels(name: str, value: Any, batch: int, classes: int, device: torch.device, none: str = "") -> Tensor:
    """Integer labels (batch,) in [0, classes - 1] from as many or from one; ``none``: what the label ``classes`` means, where it is one.
    On another device than the CPU the range is not looked at."""
    y, top = torch.as_tensor(value, device=device), classes if none else classes - 1
    where = f"labels in [0, {top}]{none and f', where {classes} means {none}'}"
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{name}.dtype={y.dtype}: expected integer {where}.")
    if y.shape not in ((), (batch,)):
        raise ValueError(f"{name}.shape={tuple(y.shape)}: expected ({batch},), a label a sample, or one number.")
    if y.device.type == "cpu" and batch and not bool(((y >= 0) & (y <= top)).all()):
        raise ValueError(f"{name}={f'{y.min()}..{y.max()}' if y.ndim else value}: expected {where}.")
    return y.long().expand(batch)


def dtype(name: str, value: Any) -> torch.dtype:
    """A floating dtype that states may have."""
    if not isinstance(value, torch.dtype) or value not in INTEGRATED:
        raise TypeError(f"{name}={shown(value)}: expected a floating dtype (float16, bfloat16, float32, float64).")
    return value


def device(name: str, value: Any) -> torch.device:
    """A device that is there."""
    if type(value) is torch.device and value.type == "cpu":
        return value                            # nothing to say, at a fifth of the price
    if not isinstance(value, (str, int, torch.device)) or isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)}: expected the name of a device such as 'cpu' or 'cuda', or a torch.device.")
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, OverflowError, ValueError) as error:
        raise ValueError(f"{name}={shown(value)}: no such device here ({str(error).splitlines()[0]}); expected 'cpu'"
                         + (" or 'cuda'." if torch.cuda.is_available() else ".")) from None


def dtype_of(name: str, value: Any) -> torch.dtype:
    """The same, None for the default one."""
    return dtype(name, torch.get_default_dtype() if value is None else value)


def device_of(name: str, value: Any) -> torch.device:
    """A device that is there, None for the default one."""
    return device(name, torch.get_default_device() if value is None else value)


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape (B, ...): non-negative integers, the first is the batch."""
    if type(value) is tuple and {int}.issuperset(map(type, value)) and value and 0 <= min(value) <= max(value) <= INT64:
        return value                            # nothing to say, at a fifth of the price
    if (type(value) is not tuple and not isinstance(value, Sequence)) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name}={shown(value)}: expected a tuple of integers such as (1000, 2).")
    if not len(value):
        raise ValueError(f"{name}={shown(value)}: expected a leading batch axis, such as (1000, 2).")
    return tuple(integer(f"{name}[{i}]", n, 0) for i, n in enumerate(value))


def _range(low: float | None, high: float | None, low_in: bool, high_in: bool) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" {'>=' if low_in else '>'} {low}"
    if low is None:
        return f" {'<=' if high_in else '<'} {high}"
    return f" in {'[' if low_in else '('}{low}, {high}{']' if high_in else ')'}"
