"""What an argument may be. Each check returns the value in its canonical type, or raises an error that names the
argument, the value that came and what was expected."""
from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

INTEGRATED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def integer(name: str, value: Any, low: int | None = None, high: int | None = None, hint: str = "") -> int:
    """An integer in [low, high]; bools and floats (also 10.0) are refused."""
    if type(value) is int and (low is None or low <= value) and (high is None or value <= high):
        return value                            # nothing to say, at a fifth of the price
    expected = f"an integer{_range(low, high, True, True)}{hint and '; ' + hint}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r}: expected {expected}.")
    n = int(value)
    if (low is not None and n < low) or (high is not None and n > high):
        raise ValueError(f"{name}={value!r}: expected {expected}.")
    return n


def real(name: str, value: Any, low: float | None = None, high: float | None = None, *, low_open: bool = False,
         high_open: bool = False, hint: str = "") -> float:
    """A finite real number in the interval from low to high (open at an end where ``*_open``)."""
    if type(value) is float and (-math.inf if low is None else low) < value < (math.inf if high is None else high):
        return value
    expected = f"a finite number{_range(low, high, not low_open, not high_open)}{hint and '; ' + hint}"
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}: expected {expected}.")
    v = float(value)
    below = low is not None and (v <= low if low_open else v < low)
    above = high is not None and (v >= high if high_open else v > high)
    if not math.isfinite(v) or below or above:
        raise ValueError(f"{name}={value!r}: expected {expected}.")
    return v


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the names; the error lists the nearest ones first."""
    names = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r}: expected one of the names {', '.join(names)}.")
    if value not in names:
        near = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
        raise ValueError(f"{name}={value!r} is unknown; " + (f"nearest: {', '.join(near)}. " if near else "")
                         + f"Expected one of: {', '.join(names)}.")
    return value


def state(name: str, x: Any, rank: int = 1) -> Tensor:
    """A real floating tensor (B, *D) with a leading batch axis, finite."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}={type(x).__name__}: expected a torch.Tensor of shape (B, ...); torch.as_tensor({name}).")
    if x.dtype not in INTEGRATED:
        raise TypeError(f"{name}.dtype={x.dtype}: expected a floating dtype (float16, bfloat16, float32, float64); "
                        f"{name}.float() converts.")
    if x.ndim < rank:
        raise ValueError(f"{name}.shape={tuple(x.shape)}: expected a leading batch axis, (B, ...); {name}[None] adds one.")
    if not math.isfinite(x.detach().sum().item()) and not bool(torch.isfinite(x).all()):       # a sum costs less, and may overflow
        raise ValueError(f"{name} holds NaN or inf in {int((~torch.isfinite(x)).sum())} of {x.numel()} entries; "
                         "expected finite values.")
    return x


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
    if value not in INTEGRATED:
        raise TypeError(f"{name}={value!r}: expected a floating dtype (float16, bfloat16, float32, float64).")
    return value


def device(name: str, value: Any) -> torch.device:
    """A device that is there."""
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"{name}={value!r}: no such device here ({str(error).splitlines()[0]}); expected 'cpu'"
                         + (" or 'cuda'." if torch.cuda.is_available() else ".")) from None


def shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape (B, ...): non-negative integers, the first is the batch."""
    try:
        sizes = tuple(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected a tuple of integers such as (1000, 2).") from None
    if not sizes:
        raise ValueError(f"{name}=(): expected a leading batch axis, such as (1000, 2).")
    return tuple(integer(f"{name}[{i}]", n, 0) for i, n in enumerate(sizes))


def _range(low: float | None, high: float | None, low_in: bool, high_in: bool) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" {'>=' if low_in else '>'} {low}"
    if low is None:
        return f" {'<=' if high_in else '<'} {high}"
    return f" in {'[' if low_in else '('}{low}, {high}{']' if high_in else ')'}"
