r"""The most general explicit linear method that is exact on a point mass.

A method with one evaluation a step is linear: x_{k+1} = c x_k + sum_j (p_j x0_j + q_j eps_j) over all evaluations so far, j = 0 the latest.
On a point mass x0_j and eps_j do not depend on j, and the exact step is x_{k+1} = alpha_s x0 + sigma_s eps. A method is exact there iff it
differs from any other exact one, such as a multistep exponential step Phi, by terms that vanish when the evaluations agree:

    x_{k+1} = Phi(x_k; x0_0, ...) + alpha_s sum_{j>0} a_kj (x0_j - x0_0) + sigma_s sum_{j>0} b_kj (eps_j - eps_0).   theory, eq. (36)

(x_k = alpha x0_0 + sigma eps_0 is among them.) With a = b = 0 it is Phi; with a and b of its own in every step the method belongs to one
grid, and to the model that it was tuned on (``sdediff.tuning``). Non-stationary solvers: Shaul et al. 2024 (arXiv:2403.01329).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..contracts import real
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction
from ..sde import NoiseLevel
from .base import Multistep, Solver, State

BOUND = 4.0             # of |a| and |b|: n of them amplify the rounding of an evaluation by no more than 8 n

Rows = tuple[tuple[float, ...], ...]


def correction(history: Sequence[Prediction], s: NoiseLevel, a: Sequence[Any], b: Sequence[Any]) -> Any:
    """The sums of theory, eq. (36) at level s, ``history`` predictions, the latest first. Coefficients: numbers or elements of tensors."""
    latest, total = history[0], 0.0
    for p, a_j, b_j in zip(history[1:len(a) + 1], a, b, strict=True):
        total = total + (s.alpha * a_j) * p.x0 + (s.sigma * b_j) * p.eps
    return total - (s.alpha * sum(a)) * latest.x0 - (s.sigma * sum(b)) * latest.eps


@dataclass(frozen=True)
class NonStationary(Solver):
    """Theory, eq. (36): ``inner`` is Phi, a multistep solver with one evaluation a step; ``times``, the N + 1 knots that it belongs to;
    ``a`` and ``b``, for each of the N steps a row of coefficients, each within +-4, for the evaluations before the latest, newest first
    (none where a step is left as it is). It runs down its own grid alone; elsewhere a step raises ValueError. It has no order: on its one
    grid its error is what it was tuned to."""

    inner: Multistep
    times: tuple[float, ...]
    a: Rows
    b: Rows

    order = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Multistep) or self.inner.corrects:
            raise TypeError(f"inner={self.inner!r}: expected a multistep solver with one evaluation a step and no corrector, such as "
                            "Exponential(3, 'eps').")
        n = len(self.times) - 1
        for name, rows in (("a", self.a), ("b", self.b)):
            if len(rows) != n or any(len(row) > k for k, row in enumerate(rows)):
                raise ValueError(f"{name} has rows of {[len(row) for row in rows]} coefficients; expected {n} rows, one for each step, "
                                 "row k of at most k, one for each evaluation before the latest.")
            for k, row in enumerate(rows):
                for j, c in enumerate(row):
                    real(f"{name}[{k}][{j}]", c, -BOUND, BOUND)
        if [len(row) for row in self.a] != [len(row) for row in self.b]:
            raise ValueError("a, b: expected rows of equal lengths.")

    @property
    def noise(self) -> str:                                                                  # type: ignore[override]
        return self.inner.noise

    @property
    def remembers(self) -> int:                                                              # type: ignore[override]
        """Evaluations kept: as many as the longest row has weights for."""
        return max(self.inner.remembers, *(len(row) for row in self.a))

    def accepts(self, eq: ReverseSDE) -> None:
        self.inner.accepts(eq)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.t == s.t:
            return state
        k = self.times.index(t.t) if t.t in self.times[:-1] else None
        if k is None or self.times[k + 1] != s.t:
            raise ValueError(f"step from t={t.t} to t={s.t}: it was tuned for the grid {list(self.times)}, and runs down that alone; leave "
                             "grid=, t_start= and t_end= out, or take the solver inside.")
        own, *earlier = state.memory or ((t, ()),)                 # the solver's own memory, then all evaluations so far
        after = self.inner.step(eq, State(state.x, own[1], state.prediction), t, s, noise)
        history = ((t, after.prediction), *earlier) if math.isfinite(t.lam) else ()          # alpha = 0 is no node
        x = after.x
        if self.a[k]:
            x = x + correction([p for _, p in history], s, self.a[k], self.b[k])
        return State(x, ((s, after.memory), *history[:self.remembers]), after.prediction)
