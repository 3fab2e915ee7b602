r"""Exponential integrators: the linear part of the equation is solved exactly, the network is interpolated in lambda.

With h = lambda_s - lambda_t, q = 1 + eta^2 and kappa = sigma/alpha, variation of constants gives two exact forms,

    x0:   x_s = sigma_s/sigma_t e^{-eta^2 h} x + alpha_s int_0^h q e^{-q (h - u)} x0(lambda_t + u) du
                + sigma_s sqrt(1 - e^{-2 eta^2 h}) xi,                                                                   (4)
    eps:  x_s = alpha_s/alpha_t x - q alpha_s kappa_t int_0^h e^{-u} eps(lambda_t + u) du
                + eta alpha_s sqrt(kappa_t^2 - kappa_s^2) xi,                                                            (5)

and a Lagrange polynomial through the last ``order`` evaluations makes them a method; a shorter memory gives the lower order
without a branch. The weights follow from the moments of the kernel, in closed form by phi functions.

References: Hochbruck & Ostermann 2010; Song et al. 2021a (DDIM: order 1); Lu et al. 2022b (arXiv:2211.01095, DPM-Solver++ 2M and
SDE-DPM-Solver++); Zhang & Chen 2023 (exponential Adams-Bashforth); Xue et al. 2023 (SA-Solver, eq. 4); Gonzalez et al. 2023 (eq. 5).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contracts import choice, integer, real
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction
from ..sde import NoiseLevel
from .base import Solver, State


def moments(z: float, n: int) -> list[float]:
    """int_0^1 z e^{-z (1 - v)} v^k dv = k! z phi_{k+1}(-z) for k < n: by series for short steps, else by the recurrence
    m_k = 1 - (k/z) m_{k-1}, which loses no more than k!/z^k."""
    if abs(z) < 1:
        return [z * math.fsum((-z)**j * math.factorial(k) / math.factorial(j + k + 1) for j in range(20)) for k in range(n)]
    m = [-math.expm1(-z)]
    for k in range(1, n):
        m.append(1 - k / z * m[-1])
    return m


def weights(nodes: Sequence[float], h: float, q: float, moment: Any = moments) -> list[float]:
    """int_0^h q e^{-q (h - u)} l_j(u) du over the Lagrange basis of ``nodes``: exact for polynomials below their number."""
    m = moment(q * h, len(nodes))
    if len(nodes) == 1:
        return m
    powers = np.vander(np.asarray(nodes, dtype=np.float64) / h, increasing=True).T
    return np.linalg.solve(powers, np.asarray(m)).tolist()


def _midpoint(z: float, n: int) -> list[float]:
    # DPM-Solver++ takes the first moment as half of the zeroth, which keeps order 2 (Lu et al. 2022b, eq. 12 and Alg. 2)
    m = moments(z, 1)[0]
    return [m, m / 2]


@dataclass(frozen=True)
class Exponential(Solver):
    """The multistep exponential integrator of order 1 to 4, for any eta.

    ``form``: "x0" (4) or "eps" (5), what is interpolated. ``kernel``: "exact" integrals, or "midpoint" for the published
    DPM-Solver++ 2M (order 2, x0 form). Order 1 in x0 form is DDIM (eta = 0) and the DDPM posterior chain (eta = 1).
    Weak order 1 for eta > 0. A step from alpha = 0 or into sigma = 0 has infinite length in lambda and order 1.
    """

    order: int = 2
    form: str = "x0"
    kernel: str = "exact"

    def __post_init__(self) -> None:
        integer("order", self.order, 1, 4)
        choice("form", self.form, ("x0", "eps"))
        choice("kernel", self.kernel, ("exact", "midpoint"))
        if self.kernel == "midpoint" and self.order != 2:
            raise ValueError(f"order={self.order}: kernel='midpoint' is DPM-Solver++ 2M, of order 2; expected kernel='exact'.")

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        p, h, eta = eq.predict(state.x, t), s.lam - t.lam, eq.eta_at(t)
        if h == 0:
            return state
        if not math.isfinite(h):
            return State(infinite_step(p, s, noise.unit(t, s) if eta and s.sigma else None), (), p)  # type: ignore[union-attr]
        memory = ((t.lam, getattr(p, self.form)), *state.memory)[:self.order]
        nodes, q, moment = [lam - t.lam for lam, _ in memory], 1 + eta**2, moments if self.kernel == "exact" else _midpoint
        if self.form == "x0":
            x = s.sigma / t.sigma * math.exp(-eta**2 * h) * state.x
            scale, w, std = s.alpha, weights(nodes, h, q, moment), s.sigma * math.sqrt(max(0.0, -math.expm1(-2 * eta**2 * h)))
        else:
            # the kernel e^{-u} is that of (4) read from the other end of the step
            x = s.alpha / t.alpha * state.x
            scale, w = -q * s.alpha * t.sigma / t.alpha, weights([h - u for u in nodes], h, 1.0, moment)
            std = eta * s.alpha * t.sigma / t.alpha * math.sqrt(max(0.0, -math.expm1(-2 * h)))
        for w_j, (_, value) in zip(w, memory):
            x = x + scale * w_j * value
        if eta:
            x = x + std * noise.unit(t, s)                                                   # type: ignore[union-attr]
        return State(x, memory[:self.order - 1], p)


def infinite_step(p: Prediction, s: NoiseLevel, xi: Any) -> Any:
    """A step of infinite length in lambda, out of alpha = 0 or into sigma = 0: what the model says, noised to s (by the
    fresh noise xi, or by the model's eps). Terms with weight zero are not asked for: they need not exist."""
    x = s.alpha * p.x0 if s.alpha else None
    if s.sigma:
        noised = s.sigma * (p.eps if xi is None else xi)
        x = noised if x is None else x + noised
    return x


@dataclass(frozen=True)
class DDIM(Solver):
    r"""The discrete chain samplers between any two levels (Song et al. 2021a, eq. 12; Ho et al. 2020, eq. 6-7):

        x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 (1 - e^{-2h})) eps + eta std xi,
        std = sigma_s sqrt(1 - e^{-2h})  ("posterior": beta tilde)   or   sigma_t sqrt(1 - e^{-2h})  ("beta").

    ``eta`` is Song's, in [0, 1]: 0 is DDIM, 1 the DDPM chain. No noise is added on a step into sigma = 0.
    """

    eta: float = 0.0
    variance: str = "posterior"

    def __post_init__(self) -> None:
        real("eta", self.eta, 0.0, 1.0, hint="Song's eta; the continuous family is ReverseSDE(eta=)")
        choice("variance", self.variance, ("posterior", "beta"))

    @property
    def noise(self) -> str:                                                                  # type: ignore[override]
        return "always" if self.eta else "never"

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        p, fresh = eq.predict(state.x, t), -math.expm1(2 * (t.lam - s.lam)) if s.t != t.t else 0.0
        kept = s.sigma * math.sqrt(1 - self.eta**2 * fresh)
        x = s.alpha * p.x0 if s.alpha else 0.0
        if kept:
            x = x + kept * p.eps
        if self.eta and s.sigma:
            std = (s if self.variance == "posterior" else t).sigma * math.sqrt(fresh)
            x = x + self.eta * std * noise.unit(t, s)                                        # type: ignore[union-attr]
        return State(x, (), p)

    def accepts(self, eq: ReverseSDE) -> None:
        if eq.eta not in (0, self.eta):
            raise ValueError(f"eta={eq.eta!r}: DDIM carries its own eta={self.eta}; expected an equation with eta=0, or "
                             "DDIM(eta=...), or Exponential(order=1) for the continuous family.")
