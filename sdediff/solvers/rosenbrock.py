r"""Methods that linearise the model: its Jacobian in every step, one forward and d backward passes for d coordinates.

In the exploded chart y = x/alpha, kappa = sigma/alpha, the probability flow is dy/d(kappa) = eps(y, kappa). With J = d eps/dy at the
current point and the remainder N = eps - J y interpolated through the last evaluations, N(kappa_t + v h) = sum_k c_k v^k,

    y_s = e^{hJ} y + h sum_k k! phi_{k+1}(hJ) c_k,      h = kappa_s - kappa_t,                                theory, eq. (20)

an exponential Rosenbrock method of Adams type, order = the number of evaluations. The sum is one matrix exponential of an augmented
matrix. References: Hochbruck & Ostermann 2010, Sec. 2.4 and 2.7; Al-Mohy & Higham 2011, Thm 2.1.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import integer
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction, differentiated
from ..sde import NoiseLevel
from .base import LONG, Multistep, State
from .exponential import infinite_step


def linearised(eq: ReverseSDE, x: Tensor, t: NoiseLevel) -> tuple[Prediction, Tensor]:
    """The prediction at (x, t), and the Jacobian d x0/dx of every sample, (B, d, d)."""
    _refuse_forms(x)
    tracked = torch.is_grad_enabled() and x.requires_grad       # then gradients flow through the Jacobian too
    with differentiated():
        start = x if tracked else x.detach().clone().requires_grad_()
        p = eq.predict(start.clone(), t)        # a clone: a model's edit in place is then named
        x0 = rows(p.x0)
        if not x0.requires_grad:                # a model that does not look at x, such as a point mass
            return p, x.new_zeros(*x0.shape, x0.shape[1])
        slopes = [rows(torch.autograd.grad(x0[:, i].sum(), p.x, retain_graph=True, create_graph=tracked, materialize_grads=True)[0])
                  for i in range(x0.shape[1])]
    x0, eps = (p.x0, p.eps) if tracked else (p.x0.detach(), p.eps.detach())
    return Prediction(x, t, x0=x0, eps=eps), torch.stack(slopes, 1)


def _refuse_forms(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError("this step reads the model's Jacobian: it is not linear in the state and has no coefficient table.")


def rows(x: Tensor) -> Tensor:
    """(B, *D) as (B, d); (B,) as (B, 1)."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def exponential_action(a: Tensor, y: Tensor, b: list[Tensor]) -> Tensor:
    """e^A y + sum_k phi_k(A) b_k, k = 1 .. p, for A (B, d, d) and vectors (B, d): the top of the exponential of an augmented matrix."""
    n, d, p = len(a), a.shape[1], len(b)
    augmented = a.new_zeros(n, d + p, d + p)
    augmented[:, :d, :d] = a
    augmented[:, :d, d:] = torch.stack(b[::-1], 2)
    augmented[:, d:, d:] = torch.diag(a.new_ones(p - 1), 1)
    last = a.new_zeros(n, p)
    last[:, -1] = 1.0
    return (torch.linalg.matrix_exp(augmented) @ torch.cat([y, last], 1)[..., None])[:, :d, 0]


@dataclass(frozen=True)
class Rosenbrock(Multistep):
    """Theory, eq. (20) through the last ``nodes`` evaluations, order ``nodes``. Steps longer than 1 in lambda, over which neither J
    nor the remainder stays what it was, are DDIM steps."""

    nodes: int = 2

    noise = "never"

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, 1, 4)

    def remember(self, p: Prediction) -> Prediction:
        return Prediction(p.x, p.level, eps=p.eps)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        _refuse_forms(state.x)
        if t.lam == s.lam:
            return state
        if not abs(s.lam - t.lam) <= 2 * LONG:
            p = eq.predict(state.x, t)
            return State(infinite_step(p, s, None), (), p)
        p, slope = linearised(eq, state.x, t)
        h = s.sigma / s.alpha - t.sigma / t.alpha
        j = t.alpha / t.sigma * (torch.eye(slope.shape[1]).to(slope) - t.alpha * slope)           # d eps/dy = alpha d eps/dx
        memory = ((t, self.remember(p)), *state.memory)[:self.nodes]
        remainders = [rows(q.eps) - (j @ rows(q.x / m.alpha)[..., None])[..., 0] for m, q in memory]
        places = np.array([(m.sigma / m.alpha - t.sigma / t.alpha) / h for m, _ in memory])
        basis = np.linalg.inv(np.vander(places, increasing=True))                            # monomial coefficients of the Lagrange basis
        c = [sum(float(w) * r for w, r in zip(row, remainders)) for row in basis]
        y = exponential_action(h * j, rows(state.x / t.alpha), [h * math.factorial(k) * c_k for k, c_k in enumerate(c)])
        return State(s.alpha * y.view_as(state.x), memory[:self.nodes - 1], p)
