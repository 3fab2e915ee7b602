r"""Linear measurements y = A x + noise: what A does, its transpose, and its singular value decomposition.

A = U diag(s) V^T with U^T U = V^T V = I and every s > 0 (what A does not see is not in V). Methods of inversion need little more than
a few products with A and A^T; some work coordinate by coordinate where A is diagonal, for which U^T y, V^T x and V c are enough. Then

    A^+ y = V diag(1/s) U^T y,        r^2 A^T (r^2 A A^T + v I)^{-1} y = V diag(s/(s^2 + v/r^2)) U^T y.

Coordinates of the decomposition may be complex (a blur in Fourier space); a white x then has white coordinates, E|c|^2 = 1.
``check`` proves what an operator claims by the dot-product test <A x, y> = <x, A^T y>, and its decomposition by products of random
vectors. A new operator is a frozen dataclass with an event shape and ``forward``: A^T then comes from autograd, and the decomposition from
the dense matrix; ``Mask``, ``Downsample`` and ``Colourise``, for which A A^T is a multiple of I, and ``Blur`` have their own, which cost
no memory.
"""
from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .contracts import flags, floating, instance, integer, numbers, real, sequence, shown

DENSE = 8192            # largest number of coordinates of x for which a matrix is made


class Operator(abc.ABC):
    """A linear map from events (B, *event) to measurements (B, *measured)."""

    event: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (B, *event) -> (B, *measured)."""

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y: (B, *measured) -> (B, *event)."""
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *self.event, dtype=y.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(self.forward(x), x, y.clone())[0]

    def __call__(self, x: Tensor) -> Tensor:
        """A x, with x checked. ValueError or TypeError where x is not (B, *event), real and floating."""
        if not floating("x", x, f"of shape (B, {', '.join(map(str, self.event))})").ndim:
            raise ValueError(f"x.shape=(): expected (B, {', '.join(map(str, self.event))}).")
        self.fits("x", tuple(x.shape[1:]))
        return self.forward(x)

    def fits(self, name: str, event: Sequence[int]) -> None:
        """ValueError unless samples of shape ``event`` are what the operator measures."""
        if tuple(event) != self.event:
            raise ValueError(f"{name}.shape=(B, {', '.join(map(str, event))}): {type(self).__name__} measures events of shape "
                             f"{self.event}; expected (B, {', '.join(map(str, self.event))}).")

    @cached_property
    def measured(self) -> tuple[int, ...]:
        """The shape of one measurement."""
        with torch.no_grad():
            return tuple(self.forward(torch.zeros(1, *self.event, dtype=torch.float64, device="cpu")).shape[1:])

    # -- the decomposition ----------------------------------------------------------------------------------------------
    @cached_property
    def matrix(self) -> Tensor:
        """A as a float64 matrix (m, d) over flattened events, on the CPU. ValueError for events of more than ``DENSE`` numbers."""
        d = math.prod(self.event)
        if d > DENSE:
            raise ValueError(f"{type(self).__name__}: a matrix over {d} coordinates was asked for; expected at most {DENSE}, or an "
                             "operator that gives singular, left, right and back itself.")
        with torch.no_grad():
            return self.forward(torch.eye(d, dtype=torch.float64, device="cpu").reshape(d, *self.event)).reshape(d, -1).T.contiguous()

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vt = torch.linalg.svd(self.matrix, full_matrices=False)
        seen = s > s.max() * max(self.matrix.shape) * torch.finfo(s.dtype).eps
        if not bool(seen.any()):
            raise ValueError(f"{type(self).__name__} measures nothing: it is zero everywhere; expected a linear map that is not.")
        return u[:, seen], s[seen], vt[seen]

    @property
    def singular(self) -> Tensor:
        """s > 0, float64, on the CPU, in a shape (r,) that coordinates (B, r) go with."""
        return self._dense[1]

    def left(self, y: Tensor) -> Tensor:
        """U^T y: (B, *measured) -> (B, r)."""
        return y.flatten(1) @ self._dense[0].to(y)

    def right(self, x: Tensor) -> Tensor:
        """V^T x: (B, *event) -> (B, r)."""
        return x.flatten(1) @ self._dense[2].T.to(x)

    def back(self, c: Tensor) -> Tensor:
        """V c: (B, r) -> (B, *event)."""
        return (c @ self._dense[2].to(c)).reshape(len(c), *self.event)

    def scaled(self, c: Tensor, f: Tensor) -> Tensor:
        """Coordinates times numbers f (r,), in their dtype."""
        return c * f.to(device=c.device, dtype=c.real.dtype)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y: (B, *measured) -> (B, *event), the least x among those of least |A x - y|."""
        return self.back(self.scaled(self.left(y), 1 / self.singular))

    def gain(self, y: Tensor, prior: float | Tensor, noise: float) -> Tensor:
        """r^2 A^T (r^2 A A^T + v I)^{-1} y for r^2 = ``prior``, v = ``noise``: (B, *measured) -> (B, *event). ``prior`` may be (B,), or
        infinite, for which it is ``pinv``."""
        s = self.singular
        return self.back(self.scaled(self.left(y), s / (s**2 + noise / _columns(prior))))

    def whitened(self, y: Tensor, prior: float | Tensor, noise: float) -> Tensor:
        """A^T (r^2 A A^T + v I)^{-1} y, arguments as for ``gain``: finite at r^2 = 0, and without the difference of near numbers that
        (y - A gain)/v would be."""
        s = self.singular
        return self.back(self.scaled(self.left(y), s / (_columns(prior) * s**2 + noise)))

    def energy(self, y: Tensor, prior: float, noise: float) -> Tensor:
        """y^T (r^2 A A^T + v I)^{-1} y of each row, (B,), float64."""
        c = self.left(y)
        seen = self.scaled(c, (prior * self.singular**2 + noise).rsqrt()).abs().double().square().flatten(1).sum(1)
        if self.singular.numel() == math.prod(self.measured):
            return seen
        unseen = y.double().square().flatten(1).sum(1) - c.abs().double().square().flatten(1).sum(1)    # what no x explains
        return seen + unseen.clamp_min(0) / noise


def _columns(prior: float | Tensor) -> Tensor:
    """r^2 as it meets singular values: () or (B, 1)."""
    r2 = torch.as_tensor(prior, dtype=torch.float64).detach().cpu()
    return r2.reshape(-1, 1) if r2.ndim else r2


@dataclass(frozen=True, eq=False)
class Matrix(Operator):
    """A projection or any other matrix: ``weights`` (m, d) applied to flattened events. ``event``: its shape, by default (d,)."""

    weights: Tensor
    event: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        w, _ = numbers("weights", self.weights)
        if w.ndim != 2 or not w.numel():
            raise ValueError(f"weights.shape={tuple(w.shape)}: expected a matrix (m, d).")
        object.__setattr__(self, "weights", w)
        object.__setattr__(self, "event", (w.shape[1],) if isinstance(self.event, tuple) and not self.event else _event(self.event, 1))
        if math.prod(self.event) != w.shape[1]:
            raise ValueError(f"event={self.event}: it holds {math.prod(self.event)} numbers; expected {w.shape[1]}, as many as weights has "
                             "columns.")

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights.T.to(x)

    def transpose(self, y: Tensor) -> Tensor:
        return (y @ self.weights.to(y)).reshape(len(y), *self.event)


class _Tight(Operator):
    """An operator with A A^T = scale^2 I: U = I, s = scale, V = A^T/scale. Its coordinates are the flattened measurements."""

    scale: float = 1.0

    @property
    def singular(self) -> Tensor:
        return torch.full((math.prod(self.measured),), self.scale, dtype=torch.float64)

    def left(self, y: Tensor) -> Tensor:
        return y.flatten(1)

    def right(self, x: Tensor) -> Tensor:
        return self.forward(x).flatten(1) / self.scale

    def back(self, c: Tensor) -> Tensor:
        return self.transpose(c.reshape(len(c), *self.measured)) / self.scale


@dataclass(frozen=True, eq=False)
class Mask(_Tight):
    """The coordinates where ``known`` (a bool tensor of the event's shape) is True, as one vector: inpainting."""

    known: Tensor

    def __post_init__(self) -> None:
        try:
            known = torch.as_tensor(self.known)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            known = torch.empty(0)
        if known.dtype != torch.bool or not known.ndim:
            raise TypeError(f"known={shown(self.known)}: expected a bool tensor of the event's shape, torch.tensor([True, False]).")
        if not bool(known.any()):
            raise ValueError(f"known={shown(self.known)}: no coordinate is; expected at least one True.")
        object.__setattr__(self, "known", known.detach().cpu().clone())

    @property
    def event(self) -> tuple[int, ...]:                                                      # type: ignore[override]
        """The shape of what is masked."""
        return tuple(self.known.shape)

    @cached_property
    def _where(self) -> Tensor:
        return self.known.flatten().nonzero().flatten()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self._where.to(x.device))

    def transpose(self, y: Tensor) -> Tensor:
        flat = y.new_zeros(len(y), self.known.numel())
        return flat.index_copy(1, self._where.to(y.device), y).reshape(len(y), *self.event)


@dataclass(frozen=True)
class Downsample(_Tight):
    """Means over ``factor`` x ``factor`` blocks of the last two axes: super-resolution."""

    event: tuple[int, ...]
    factor: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", _event(self.event, 2))
        f = integer("factor", self.factor, 1)
        if self.event[-1] % f or self.event[-2] % f:
            raise ValueError(f"factor={f}: it does not divide the last two axes of event={self.event}; expected a divisor of both.")

    @property
    def scale(self) -> float:                                                                # type: ignore[override]
        """The one singular value."""
        return 1 / self.factor

    def forward(self, x: Tensor) -> Tensor:
        f = self.factor
        return x.unflatten(-1, (-1, f)).unflatten(-3, (-1, f)).mean((-3, -1))

    def transpose(self, y: Tensor) -> Tensor:
        f = self.factor
        return y.repeat_interleave(f, -1).repeat_interleave(f, -2) / f**2


@dataclass(frozen=True)
class Colourise(_Tight):
    """The mean of the channels, the first axis of an event (C, H, W): colour from grey."""

    event: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", _event(self.event, 2))

    @property
    def scale(self) -> float:                                                                # type: ignore[override]
        """The one singular value."""
        return self.event[0]**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def transpose(self, y: Tensor) -> Tensor:
        return y[:, None].expand(len(y), *self.event) / self.event[0]


@dataclass(frozen=True)
class Blur(Operator):
    """Gaussian blur of standard deviation ``std`` pixels on the last two axes, periodic: a circular convolution, diagonal in Fourier
    space. Frequencies that it damps below ``floor`` of the mean are taken as lost: A sets them to 0."""

    event: tuple[int, ...]
    std: float = 1.0
    floor: float = field(default=1e-6)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", _event(self.event, 2))
        real("std", self.std, 0.0, low_open=True)
        real("floor", self.floor, 0.0, 1.0, low_open=True, high_open=True)

    @cached_property
    def _response(self) -> Tensor:
        """exp(-2 pi^2 std^2 |f|^2), (H, W): that of the sampled kernel up to aliasing; real, even, 1 at f = 0."""
        fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64, device="cpu") for n in self.event[-2:])
        k = torch.exp(-2 * (math.pi * self.std)**2 * (fy[:, None]**2 + fx**2))
        return torch.where(k < self.floor, 0.0, k)

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return torch.fft.ifft2(torch.fft.fft2(wide) * response.to(wide)).real.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._response)

    def transpose(self, y: Tensor) -> Tensor:
        return self._filtered(y, self._response)

    @cached_property
    def _seen(self) -> Tensor:
        return self._response.expand(self.event).flatten().nonzero().flatten()

    @property
    def singular(self) -> Tensor:
        return self._response.expand(self.event).flatten()[self._seen]

    def left(self, y: Tensor) -> Tensor:
        wide = y if y.dtype == torch.float64 else y.float()
        return torch.fft.fft2(wide, norm="ortho").flatten(1).index_select(1, self._seen.to(y.device))

    def right(self, x: Tensor) -> Tensor:
        return self.left(x)

    def back(self, c: Tensor) -> Tensor:
        whole = c.new_zeros(len(c), math.prod(self.event)).index_copy(1, self._seen.to(c.device), c)
        return torch.fft.ifft2(whole.reshape(len(c), *self.event), norm="ortho").real


def _event(value: Any, least: int) -> tuple[int, ...]:
    such = "(1, 28, 28), the shape of one image" if least > 1 else "(2,), the shape of one sample"
    return tuple(integer(f"event[{i}]", n, 1) for i, n in enumerate(sequence("event", value, such, least)))


def check(operator: Operator, *, decomposition: bool = True, seed: int = 0, tolerance: float = 1e-9) -> None:
    """Prove an operator by random vectors in float64: linear; <A x, y> = <x, A^T y>, the dot-product test; and, with ``decomposition``,
    A x = U s V^T x and U^T U = V^T V = I. ValueError names the claim that fails, and by how much. TypeError on what is no operator."""
    instance("operator", operator, Operator, "an Operator of sdediff.operators, such as Mask(known)")
    flags(decomposition=decomposition)
    integer("seed", seed, 0), real("tolerance", tolerance, 0.0, low_open=True)
    g = torch.Generator("cpu").manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        x, y = draw(3, *operator.event), draw(3, *operator.measured)
        ax, aty = operator.forward(x), operator.transpose(y)
        if aty.shape != x.shape:
            raise ValueError(f"{type(operator).__name__}: A^T y has shape {tuple(aty.shape)}; expected {tuple(x.shape)}, that of x.")
        _equal(operator, "A is not linear: A(2 x1 + x2) and 2 A x1 + A x2", operator.forward(2 * x[:1] + x[1:2]), 2 * ax[:1] + ax[1:2],
               tolerance)
        dot = lambda a, b: (a * b).flatten(1).sum(1)
        _equal(operator, "A^T is not the transpose of A: <x, A^T y> and <A x, y>", dot(x, aty), dot(ax, y), tolerance, ax.norm() * y.norm())
        if not decomposition:
            return
        c = operator.scaled(operator.right(x), operator.singular)
        _equal(operator, "the decomposition is not A's: U^T A x and s V^T x", operator.left(ax), c, tolerance)
        _equal(operator, "V is not orthonormal: V^T V V^T x and V^T x", operator.right(operator.back(operator.right(x))), operator.right(x),
               tolerance)
        _equal(operator, "the decomposition is not A's: |U^T A x| and |A x|", operator.left(ax).abs().square().sum(1),
               ax.flatten(1).square().sum(1), tolerance)


def _equal(operator: Operator, claim: str, a: Tensor, b: Tensor, tolerance: float, size: Any = None) -> None:
    size = max(float(b.abs().max()), 1e-300) if size is None else float(size)
    error = float((a - b).abs().max()) / size if a.shape == b.shape else math.inf
    if not error <= tolerance:
        raise ValueError(f"operator {type(operator).__name__}: {claim} differ by {error:.2g} of their size; expected at most "
                         f"{tolerance:g}.")
