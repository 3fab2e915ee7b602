r"""Adaptive steps, one step size per sample: every row of a batch has its own time, error norm and accept-or-reject, and the whole
batch is evaluated in one network call a stage. Samples that are done idle where they are.

*Flow.* An embedded Runge-Kutta pair with slopes k_1..k_s, the last one at the new point (where the next step starts), gives

    x' = x + h sum_j b_j k_j,      e = h sum_j (b_j - b^_j) k_j,      E^2 = mean over the event of (e/(atol + rtol max(|x|, |x'|)))^2;

the step is accepted where E <= 1, and either way h <- h min(10, max(1/5, 0.9 E^{-1/p})), without growth right after a rejection. The
first h is Hairer, Norsett & Wanner's, II.4. Between t and t + h the solution is, with D = x' - x and 0 <= u <= 1,

    x(t + u h) = x + u (D + (1 - u) (h k_1 - D + u (2 D - h k_1 - h k_s + (1 - u) h sum_j d_j k_j))),

the cubic Hermite interpolant (d = 0), or Dormand & Prince's of fourth order. Steps over a grid do not know of its output times.

*SDE.* Euler-Maruyama x' and stochastic Heun x'' on the same dW differ by the error estimate (Jolicoeur-Martineau et al. 2021, Alg. 1):

    x' = x + h a(x, t) + b(t) dW,      e = x'' - x' = (h a(x', t + h) - h a(x, t) + (b(t + h) - b(t)) dW)/2,

relative to max(atol, rtol max(|x|, |x'|)); x'' is kept where E <= 1, and h <- theta h E^{-r}. A rejected step has seen its dW, and a
new draw would bias the path. So what is known of the path ahead is kept, as a stack of pieces (l, W) per sample: a step h < l splits the
top one by the Brownian bridge, dW ~ N(h/l W, h (1 - h/l) I), a rejected step is put back, and no step crosses the top's end. The
path is Brownian whatever was rejected, and at the knots of the grid it is that of the noise source (RSwM1 of Rackauckas & Nie 2017).
Which normal refines the path depends on the steps taken: a change of rounding that changed a step size would change the path. Hence
h is rounded to the powers of 2^(1/4), and is then, with the gradient of the run, locally constant in x.

*Infinite log-SNR.* At sigma = 0 the velocity need not exist, nor at alpha = 0 that of an eps model. Towards such a level the integration
ends where kappa = sigma/alpha (or its inverse) is a tenth of the tolerance, and one step without an estimate goes on, DDIM's for the
flow and Euler-Maruyama's for the SDE: as eps (there: x_0) is of order 1, it moves x by O(kappa), less than the tolerance.

References: Dormand & Prince 1980; Bogacki & Shampine 1989; Hairer, Norsett & Wanner 1993, II.4-6; Jolicoeur-Martineau et al. 2021
(arXiv:2105.14080); Rackauckas & Nie 2017 (Discrete Contin. Dyn. Syst. B 22).
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contracts import MOST, integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..sde import SDE, NoiseLevel
from .base import Solver, State
from .exponential import infinite_step

F64 = torch.float64
EPS, TINY = torch.finfo(F64).eps, torch.finfo(F64).tiny
AHEAD = 64              # output levels that a sample may run ahead of the slowest one; each holds one state


class StepBudgetError(RuntimeError):
    """An adaptive solver did not reach its level within ``max_steps`` attempted steps of a sample, or its step size underflowed."""


# -- one number per sample: float64 (B, 1, ..., 1) ------------------------------------------------------------------
def _per_sample(x: Tensor, values: Tensor) -> Tensor:
    """(B,), shaped to meet x."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _finite(x: Tensor) -> Tensor:
    """Which samples are finite throughout."""
    return _per_sample(x, torch.isfinite(x).reshape(len(x), -1).all(1))


def _mean_square(e: Tensor, scale: Tensor) -> Tensor:
    """Mean of (e/scale)^2 over the event."""
    ratio = (e / scale.clamp_min(torch.finfo(e.dtype).tiny)).to(F64)
    return _per_sample(e, ratio.square().reshape(len(e), -1).mean(1))


def _root(square: Tensor) -> Tensor:
    """The square root, with slope 0 at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _factor(square: Tensor, safety: float, exponent: float) -> Tensor:
    """safety E^-exponent from E^2, between 1/5 and 10; 1/5 where E is not a number. The bounds are put on E^2, so that the power is only
    taken where its slope exists."""
    low, high = (safety / 10.0)**(2 / exponent), (safety * 5.0)**(2 / exponent)
    return safety * torch.where(torch.isnan(square), high, square).clamp(low, high)**(-exponent / 2)


def _least(time: Tensor) -> Tensor:
    """Steps below it are lost in the rounding of the time."""
    return (10 * EPS * time.abs()).clamp_min(TINY)


# -- what both solvers share ----------------------------------------------------------------------------------------
def _check(solver: Any) -> None:
    real("rtol", solver.rtol, 0.0)
    real("atol", solver.atol, 0.0)
    if solver.rtol == 0 and solver.atol == 0:
        raise ValueError("rtol=0, atol=0: expected at least one of them > 0.")
    integer("max_steps", solver.max_steps, 1, MOST)


def _refuse_symbols(solver: Solver, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{type(solver).__name__} chooses its own steps, so this solver is not linear and has no coefficient table.")


def _last_finite(sde: SDE, t: NoiseLevel, s: NoiseLevel, tolerance: float) -> NoiseLevel:
    """s; or, where its log-SNR is infinite, the level short of it where the integration ends (t, if that lies nearer)."""
    if math.isfinite(s.lam):
        return s
    near = sde.level_of(math.copysign(-math.log(0.1 * min(tolerance, 1.0)), s.lam))
    return near if (near.t - t.t) * (s.t - t.t) > 0 else t


def _waiting(solver: Any, name: str, t: NoiseLevel, s: NoiseLevel, goal: float, front: Any) -> tuple[bool, Tensor]:
    """Whether the step must go on, and which samples can: StepBudgetError if one that must cannot."""
    behind = front.alive & ((goal - front.time) * (s.t - t.t) > 0)
    free = front.alive & (front.attempts < solver.max_steps) & (front.h >= _least(front.time))
    waiting, stuck = torch.stack([behind.any(), (behind & ~free).any()]).tolist()
    if stuck:
        first = int((behind & ~free).flatten().nonzero()[0])
        at, h, tried = (v.flatten()[first].item() for v in (front.time, front.h, front.attempts))
        fault = f"max_steps={solver.max_steps} attempted steps do not suffice" if tried >= solver.max_steps else \
            f"the step size underflowed after {tried} attempted steps"
        raise StepBudgetError(
            f"{name} from t={t.t:.6g} to t={s.t:.6g}: {fault}; {int(behind.sum())} of {len(behind)} samples are unfinished, the first that "
            f"cannot go on is sample {first}, at t={at:.9g} with a step of {h:.2g}. Expected looser tolerances than rtol={solver.rtol:g}, "
            f"atol={solver.atol:g} or a larger budget: sdediff.method({name!r}, rtol={10 * solver.rtol:g}, atol={10 * solver.atol:g}) or "
            f"sdediff.method({name!r}, max_steps={10 * solver.max_steps}).")
    return waiting, free


# -- the flow: embedded Runge-Kutta ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class EmbeddedPair:
    """An explicit pair whose last stage is at its result: the last row of ``a`` is b. ``order`` p is that of b, ``e`` = b - b^, and ``d``
    the weights in the quartic term of the interpolant (empty: cubic Hermite)."""

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]
    d: tuple[float, ...] = ()


DORMAND_PRINCE = EmbeddedPair(
    "rk45", 5, (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    ((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9), (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
     (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656), (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    (-12715105075 / 11282082432, 0.0, 87487479700 / 32700410799, -10690763975 / 1880347072, 701980252875 / 199316789632,
     -1453857185 / 822651844, 69997945 / 29380423))

BOGACKI_SHAMPINE = EmbeddedPair(
    "rk23", 3, (0.0, 1 / 2, 3 / 4, 1.0), ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (-5 / 72, 1 / 12, 1 / 9, -1 / 8))


class _Front(NamedTuple):
    """How far every sample is integrated: the ``time``, the state ``y`` and the ``slope`` there, the length ``h`` of the next step, whether
    the last attempt was ``rejected``, how many ``attempts`` were made, and which samples are ``alive`` (finite). ``outputs``: states at
    later times of the grid that some samples have passed. ``x``: the state that was handed out, on the way to the time ``end``."""

    x: Tensor
    end: float
    time: Tensor
    y: Tensor
    slope: Tensor
    h: Tensor
    rejected: Tensor
    attempts: Tensor
    alive: Tensor
    outputs: Mapping[float, Tensor]


@dataclass(frozen=True)
class AdaptiveRungeKutta(Solver):
    """The probability-flow ODE in t by an embedded pair; every sample holds ``rtol`` and ``atol`` for itself and depends on itself alone.

    Over a grid (``over``) the steps run to the end of the grid and outputs are interpolated, so that output times cost no network calls;
    without one a step never passes s. A sample that is not finite stops and is NaN. More than ``max_steps`` attempted steps of a
    sample in a run, or a step size that underflows, raise ``StepBudgetError``. Gradients are those of the run as it was stepped, step
    sizes included. On a discrete chain, whose velocity jumps at the knots, the estimate is blind to a part of the error: there
    ``Exploded(AdaptiveRungeKutta())`` holds the tolerance.
    """

    pair: EmbeddedPair = DORMAND_PRINCE
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    grid: tuple[NoiseLevel, ...] = field(default=(), repr=False)        # set by ``over``

    order = None
    noise = "never"
    adaptive = True
    looks_ahead = True

    def __post_init__(self) -> None:
        if not isinstance(self.pair, EmbeddedPair):
            raise TypeError(f"pair={self.pair!r}: expected an EmbeddedPair, DORMAND_PRINCE or BOGACKI_SHAMPINE.")
        _check(self)

    def over(self, levels: Sequence[NoiseLevel]) -> AdaptiveRungeKutta:
        return replace(self, grid=tuple(levels))

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        _refuse_symbols(self, state.x)
        if t.t == s.t or not state.x.numel():
            return state
        sign, end = math.copysign(1.0, s.t - t.t), self._end(eq.sde, t, s)
        if end.t == t.t:                                # next to infinite log-SNR
            return self._infinite(eq, state.x, t, s)
        goal = end.t if (end.t - s.t) * sign < 0 else s.t
        ahead = [m.t for m in self.grid if 0 < (m.t - s.t) * sign < (end.t - s.t) * sign]
        due, pause = [goal, *ahead] if goal != end.t else [], end.t if len(ahead) < AHEAD else ahead[AHEAD - 1]
        front = self._resumed(state, t, end, sign) or self._start(eq, state.x, t, end)
        while True:
            waiting, free = _waiting(self, self.pair.name, t, s, goal, front)
            if not waiting:
                break
            front = self._attempt(eq, front, free & ((pause - front.time) * sign > 0), due, sign)
        if goal != s.t:
            return self._infinite(eq, front.y, end, s)
        # samples that have not passed s are there, or have stopped and are NaN
        x = torch.where((front.time - s.t) * sign > 0, front.outputs.get(s.t, front.y), front.y)
        return State(x, ((s, front._replace(x=x, outputs={u: v for u, v in front.outputs.items() if u != s.t})),))

    def _end(self, sde: SDE, t: NoiseLevel, s: NoiseLevel) -> NoiseLevel:
        """Where the integration ends: at the end of the grid if that lies beyond s, else at s; short of infinite log-SNR."""
        beyond = bool(self.grid) and (self.grid[-1].t - s.t) * (s.t - t.t) > 0
        end = _last_finite(sde, t, self.grid[-1] if beyond else s, self.rtol + self.atol)
        return s if beyond and (end.t - s.t) * (s.t - t.t) < 0 else end

    @staticmethod
    def _infinite(eq: ReverseSDE, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> State:
        p = eq.predict(x, t)
        return State(infinite_step(p, s, None), (), p)

    @staticmethod
    def _resumed(state: State, t: NoiseLevel, end: NoiseLevel, sign: float) -> _Front | None:
        """The integration that handed this state out, unless it ran elsewhere."""
        if not state.memory or state.memory[0][0] != t or not isinstance(state.memory[0][1], _Front):
            return None
        front = state.memory[0][1]
        within = (front.end - t.t) * sign >= 0 and (end.t - front.end) * sign >= 0
        return front._replace(end=end.t) if front.x is state.x and within else None

    def _start(self, eq: ReverseSDE, x: Tensor, t: NoiseLevel, end: NoiseLevel) -> _Front:
        """The slope at t, and a first step size from a second one (Hairer, Norsett & Wanner 1993, II.4, in units of the span)."""
        slope, span, scale = eq.drift(x, t), end.t - t.t, self.atol + self.rtol * x.abs()
        alive = _finite(x) & _finite(slope)
        d0, d1 = _root(_mean_square(x, scale)), abs(span) * _root(_mean_square(slope, scale))
        small = (d0 < 1e-5) | (d1 < 1e-5)
        u = torch.where(small, 1e-6, 0.01 * d0 / torch.where(small, 1.0, d1)).clamp(max=1.0)
        u = torch.where(alive, u, 0.0)
        other = eq.drift(x + (span * u).to(x.dtype) * slope, eq.at(t.t + span * u))
        d2 = abs(span) * _root(_mean_square(other - slope, scale)) / torch.where(alive, u, 1.0)
        most = torch.maximum(d1, d2)
        flat = most <= 1e-15
        guess = torch.where(flat, (1e-3 * u).clamp_min(1e-6), (0.01 / torch.where(flat, 1.0, most))**(1 / self.pair.order))
        u = torch.where(torch.isfinite(guess), torch.minimum(100 * u, guess), u).clamp(max=1.0)
        time = torch.full_like(u, t.t)
        return _Front(x, end.t, time, torch.where(alive, x, math.nan), slope, torch.maximum(abs(span) * u, _least(time)),
                      torch.zeros_like(alive), torch.zeros_like(alive, dtype=torch.int64), alive, {})

    def _attempt(self, eq: ReverseSDE, front: _Front, moving: Tensor, due: Sequence[float], sign: float) -> _Front:
        """One attempted step of the samples ``moving``; the others take one of length zero."""
        pair, time, y = self.pair, front.time, front.y
        room = (front.end - time) * sign
        last = moving & (1.01 * front.h >= room)        # rather a step longer by 1 % than one more of 1 %
        h = torch.where(last, room, torch.where(moving, front.h, 0.0))
        then, dt = torch.where(last, front.end, time + sign * h), (sign * h).to(y.dtype)
        levels = eq.at(torch.stack([then if c == 1 else time + c * sign * h for c in pair.c[1:]]))
        slopes, x = [front.slope], y
        for i, a in enumerate(pair.a[1:]):
            x = y + dt * _combined(a, slopes)
            slopes.append(eq.drift(x, NoiseLevel(*(v[i] for v in levels))))
        square = _mean_square(dt * _combined(pair.e, slopes), self.atol + self.rtol * torch.maximum(y.abs(), x.abs()))
        accepted, factor = moving & (square <= 1), _factor(square, 0.9, 1 / pair.order)
        outputs = dict(front.outputs)
        for u in _passed(due, time, then, accepted, sign):
            over = accepted & ((u - time) * sign > 0) & ((then - u) * sign >= 0)
            share = torch.where(over, (u - time) * sign / torch.where(over, h, 1.0), 0.0).to(y.dtype)
            outputs[u] = torch.where(over, self._between(y, x, dt, slopes, share), outputs.get(u, y))
        longer = h * torch.where(front.rejected, factor.clamp(max=1.0), factor)
        longer = torch.where(last, torch.maximum(longer, front.h), longer)                  # cut by the end, not by its error
        after = torch.where(accepted, longer, torch.where(moving, h * factor, front.h))
        lost = moving & ~accepted & ~torch.isfinite(square) & (after < _least(time))        # not finite however short the step
        y = torch.where(lost, math.nan, torch.where(accepted, x, y))
        return _Front(front.x, front.end, torch.where(accepted, then, time), y, torch.where(accepted, slopes[-1], front.slope), after,
                      torch.where(moving, ~accepted, front.rejected), front.attempts + moving, front.alive & ~lost, outputs)

    def _between(self, y: Tensor, x: Tensor, dt: Tensor, slopes: Sequence[Tensor], u: Tensor) -> Tensor:
        """The solution at a share u of the step from y to x."""
        step, v = x - y, 1 - u
        bend, back = dt * slopes[0] - step, 2 * step - dt * slopes[0] - dt * slopes[-1]
        return y + u * (step + v * (bend + u * (back + v * dt * _combined(self.pair.d, slopes) if self.pair.d else back)))


def _combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    first, *others = ((w, k) for w, k in zip(weights, slopes) if w)
    total = first[0] * first[1]
    for w, k in others:
        total = total + w * k
    return total


def _passed(due: Sequence[float], time: Tensor, then: Tensor, accepted: Tensor, sign: float) -> list[float]:
    """The times that some accepted step may pass."""
    if not due:
        return []
    low, high = torch.where(accepted, sign * time, math.inf).min(), torch.where(accepted, sign * then, -math.inf).max()
    low, high = torch.stack([low, high]).tolist()
    return [u for u in due if low < sign * u <= high]


# -- the SDE: Gotta Go Fast -----------------------------------------------------------------------------------------
class Pieces(NamedTuple):
    """What is known of the Brownian path ahead of every sample: a stack of pieces, each with the time ``until`` (K, B, 1, ..., 1) where it
    ends and its ``increment`` (K, B, *D). ``depth`` (B, 1, ..., 1) of them are there; the next one is the last of these, and the
    pieces below follow it in time."""

    until: Tensor
    increment: Tensor
    depth: Tensor

    @staticmethod
    def whole(until: float, increment: Tensor) -> Pieces:
        """One piece for all samples."""
        ones = torch.ones(len(increment), *[1] * (increment.ndim - 1), dtype=torch.int64, device=increment.device)
        return Pieces(until * ones[None].to(F64), increment[None], ones)

    def _place(self, offset: int) -> Tensor:
        """Whether a place of the stack is the one ``offset`` above the next piece."""
        return torch.arange(len(self.until), device=self.depth.device).view(-1, *[1] * self.depth.ndim) == self.depth - 1 + offset

    @property
    def end(self) -> Tensor:
        """Where the next piece ends; where the last one did, if there is none."""
        return torch.gather(self.until, 0, (self.depth - 1).clamp_min(0)[None])[0]

    def split(self, time: Tensor, then: Tensor, z: Tensor) -> tuple[Tensor, Pieces]:
        """The increment from ``time``, where the next piece begins, to ``then``, not beyond its end, by the Brownian bridge with the normal
        z (B, *D); and what is left. Samples with then = time take nothing."""
        top, end = self._place(0), self.end
        w = torch.where(top, self.increment, 0.0).sum(0)
        moving, h = then != time, (then - time).abs()
        inside = moving & (then != end)
        share = torch.where(inside, h / torch.where(inside, (end - time).abs(), 1.0), 0.0)
        root = torch.where(inside, torch.where(inside, h * (1 - share), 1.0).sqrt(), 0.0)
        bridge = share.to(w.dtype) * w + root.to(w.dtype) * z
        dw = torch.where(inside, bridge, torch.where(moving, w, 0.0))
        return dw, Pieces(self.until, torch.where(top, w - dw, self.increment), self.depth - (moving & ~inside).long())

    def put(self, which: Tensor, until: Tensor, increment: Tensor) -> Pieces:
        """With a piece put before the next one, for the samples ``which``."""
        ends, w = self.until, self.increment
        if int(torch.where(which, self.depth, 0).max()) == len(ends):
            ends, w = (torch.cat([v, torch.zeros_like(v[:1])]) for v in (ends, w))
        stack = Pieces(ends, w, self.depth)
        place = stack._place(1) & which
        return Pieces(torch.where(place, until, ends), torch.where(place, increment, w), self.depth + which)

    def rest(self) -> Tensor:
        """The increment over all pieces."""
        below = torch.arange(len(self.until), device=self.depth.device).view(-1, *[1] * self.depth.ndim) < self.depth
        return torch.where(below, self.increment, 0.0).sum(0)


class _Walk(NamedTuple):
    """How far every sample is: ``time``, state ``y``, ``slope`` and diffusion ``spread`` there (None: not asked for yet), the length ``h``
    of the next step, ``attempts``, which samples are ``alive``, and the ``pieces`` of the path ahead (None without noise)."""

    time: Tensor
    y: Tensor
    slope: Tensor | None
    spread: Any
    h: Tensor
    attempts: Tensor
    alive: Tensor
    pieces: Pieces | None


class _Pace(NamedTuple):
    """What a step hands to the next: the step size, and the attempts so far."""

    h: Tensor
    attempts: Tensor


@dataclass(frozen=True)
class GottaGoFast(Solver):
    """The reverse SDE by stochastic Heun with Euler-Maruyama's difference from it as the error estimate, and the improved Euler method
    where eta = 0. Jolicoeur-Martineau et al. 2021, Alg. 1.

    Every sample steps for itself, and its noise depends on its own history alone. ``rtol`` and ``atol`` are the paper's eps_rel and
    eps_abs, ``safety`` its theta, ``exponent`` its r. The first step is a hundredth of the first interval (the paper's, of 1); h changes by
    factors in [1/5, 10]; in the error norm x stands for its Euler value of the step before. Two network calls an attempt. No step
    passes s; the step size is handed on. A sample that is not finite stops and is NaN; ``StepBudgetError`` as for ``AdaptiveRungeKutta``.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    safety: float = 0.9
    exponent: float = 0.9
    max_steps: int = 10_000

    order = None
    adaptive = True

    def __post_init__(self) -> None:
        _check(self)
        real("safety", self.safety, 0.0, 1.0, low_open=True, high_open=True)
        real("exponent", self.exponent, 0.0, 1.0, low_open=True)

    @property
    def weak_order(self) -> None:
        return None

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        _refuse_symbols(self, state.x)
        if t.t == s.t or not state.x.numel():
            return state
        m, source = _last_finite(eq.sde, t, s, self.rtol + self.atol), None
        walk = self._start(state, t, s)
        if not eq.is_ode:
            walk = walk._replace(pieces=Pieces.whole(s.t, noise.increment(t, s)))            # type: ignore[union-attr]
            source = noise.within()                                                          # type: ignore[union-attr]
        if m.t != t.t:
            slope = eq.drift(walk.y, t)
            alive = _finite(walk.y) & _finite(slope)
            walk = walk._replace(slope=slope, spread=eq.diffusion(t), alive=alive, y=torch.where(alive, walk.y, math.nan))
        for k in itertools.count():
            waiting, free = _waiting(self, "gotta-go-fast", t, s, m.t, walk)
            if not waiting:
                break
            moving = free & (walk.time != m.t)
            walk = self._attempt(eq, walk, moving, m.t, math.copysign(1.0, s.t - t.t), source.at(k).normal() if source else None)
        if m.t == s.t:
            return State(walk.y, ((s, _Pace(walk.h, walk.attempts)),))
        x = walk.y + (s.t - m.t) * eq.drift(walk.y, m)
        return State(x + eq.diffusion(m) * walk.pieces.rest() if walk.pieces else x)

    def _start(self, state: State, t: NoiseLevel, s: NoiseLevel) -> _Walk:
        y, pace = state.x, state.memory[0][1] if state.memory and state.memory[0][0] == t else None
        time = _per_sample(y, torch.full((len(y),), t.t, dtype=F64, device=y.device))
        if not isinstance(pace, _Pace):
            pace = _Pace(torch.full_like(time, 0.01 * abs(s.t - t.t)), torch.zeros_like(time, dtype=torch.int64))
        return _Walk(time, y, None, 0.0, torch.maximum(pace.h, _least(time)), pace.attempts, torch.ones_like(time, dtype=torch.bool), None)

    def _attempt(self, eq: ReverseSDE, walk: _Walk, moving: Tensor, goal: float, sign: float, z: Tensor | None) -> _Walk:
        """One attempted step of the samples ``moving``; the others take one of length zero."""
        time, y, pieces, slope, spread = walk.time, walk.y, walk.pieces, walk.slope, walk.spread
        end = torch.full_like(time, goal)
        if pieces is not None:
            end = torch.where((pieces.end - goal) * sign < 0, pieces.end, end)
        room = (end - time) * sign
        cut = moving & (1.01 * walk.h >= room)
        h = torch.where(cut, room, torch.where(moving, walk.h, 0.0))
        then = torch.where(cut, end, time + sign * h)
        levels, dt, dw, left = eq.at(torch.stack([time, then])), (sign * h).to(y.dtype), None, None
        here, there = (NoiseLevel(*(v[i] for v in levels)) for i in range(2))
        if slope is None:
            slope, spread = eq.drift(y, here), eq.diffusion(here)
        if pieces is not None:
            dw, left = pieces.split(time, then, z)                                           # type: ignore[arg-type]
        euler = y + dt * slope + _kick(spread, dw)
        e = 0.5 * (dt * (eq.drift(euler, there) - slope) + _kick(eq.diffusion(there), dw) - _kick(spread, dw))
        x = euler + e                                   # (y + euler + dt drift(euler) + diffusion dW)/2, without its cancellation in e
        square = _mean_square(e.detach(), (self.rtol * torch.maximum(y.abs(), euler.abs())).clamp_min(self.atol).detach())
        accepted, wanted = moving & (square <= 1), _notched(h * _factor(square, self.safety, self.exponent))
        longer = torch.where(cut, torch.maximum(wanted, walk.h), wanted)                     # cut by the piece, not by its error
        after = torch.where(accepted, longer, torch.where(moving, wanted, walk.h))
        lost = moving & ~accepted & ~torch.isfinite(square) & (after < _least(time))         # not finite however short the step
        if left is not None:
            left = left.put(moving & ~accepted, then, dw)                                    # type: ignore[arg-type]
        return _Walk(torch.where(accepted, then, time), torch.where(lost, math.nan, torch.where(accepted, x, y)), None, 0.0, after,
                     walk.attempts + moving, walk.alive & ~lost, left)


def _notched(h: Tensor) -> Tensor:
    """The nearest power of 2^(1/4)."""
    return torch.exp2(torch.round(4 * torch.log2(h)) / 4)


def _kick(spread: Any, dw: Tensor | None) -> Any:
    """diffusion dW, in dW's dtype."""
    return 0.0 if dw is None else (spread.to(dw) if isinstance(spread, Tensor) else spread) * dw
