r"""Adams-Bashforth in the exploded chart, d(x/alpha) = eps d(kappa) with kappa = sigma/alpha: eps is interpolated in a variable of choice,

    x_s = alpha_s/alpha_t x + alpha_s sum_j w_j eps_j,     w_j = int_{kappa_t}^{kappa_s} l_j(u(kappa)) d(kappa).    theory, eq. (15)

u = kappa ("rho") gives the linear multistep method of k-diffusion and rho-DEIS, in closed form; u = t gives t-DEIS, by quadrature.
The same polynomial in kappa through x0, with eta and H(lambda) = int_lambda^{lambda_s} eta^2, is the extended reverse-time solver,

    x_s = sigma_s/sigma_t e^{-H(lambda_t)} x + alpha_s sum_j w_j x0_j + sigma_s sqrt(1 - e^{-2 H(lambda_t)}) xi,
    w_j = int l_j(kappa(lambda)) (1 + eta^2) e^{lambda - lambda_s - H(lambda)} d(lambda).                           theory, eq. (21)

References: Zhang & Chen 2023 (arXiv:2204.13902), Sec. 3 and App. B; Liu et al. 2022 (PNDM); Cui et al. 2023 (arXiv:2309.06169, ER-SDE);
Hairer, Norsett & Wanner 1993, III.5.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..contracts import choice, instance, integer
from ..equation import ReverseSDE
from ..random import Noise
from ..sde import NoiseLevel
from .base import Multistep, Solver, State
from .exponential import infinite_step

_X, _W = np.polynomial.legendre.leggauss(16)


def lagrange_integrals(nodes: Sequence[float], variable: Callable[[np.ndarray], np.ndarray], a: float, b: float,
                       density: Callable[[np.ndarray], np.ndarray] = np.ones_like) -> list[float]:
    """int_a^b l_j(variable(y)) density(y) dy over the Lagrange basis of ``nodes``, by Gauss-Legendre on panels doubled until they
    agree to 1e-14."""
    def on(panels: int) -> np.ndarray:
        edges = np.linspace(a, b, panels + 1)
        half, middle = np.diff(edges)[:, None] / 2, (edges[:-1, None] + edges[1:, None]) / 2
        y = (middle + half * _X).ravel()
        u, w = variable(y), (half * _W).ravel() * density(y)
        basis = [np.prod([(u - n) / (m - n) for n in nodes if n != m] or [np.ones_like(u)], axis=0) for m in nodes]
        return np.array([(w * values).sum() for values in basis])

    panels, now = 1, on(1)
    while True:
        panels, before, now = 2 * panels, now, on(2 * panels)
        if np.abs(now - before).max() <= 1e-14 * np.abs(now).max() or panels >= 256:
            return now.tolist()


@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    """Theory, eq. (15) through the last ``nodes`` evaluations; ``variable`` "rho" (kappa itself) or "t". Order ``nodes``."""

    nodes: int = 2
    variable: str = "rho"

    noise = "never"

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, 1, 4)
        choice("variable", self.variable, ("rho", "t"))

    def weights(self, eq: ReverseSDE, levels: Sequence[NoiseLevel], t: NoiseLevel, s: NoiseLevel) -> list[float]:
        """The w_j of theory, eq. (15) for evaluations at ``levels``."""
        a, b = t.sigma / t.alpha, s.sigma / s.alpha
        if self.variable == "rho":              # polynomials of degree below 4 in the integration variable: exact on one panel
            return lagrange_integrals([m.sigma / m.alpha for m in levels], lambda k: k, a, b)
        # t is a smooth function of log kappa on a panel, so that is the variable of quadrature: d(kappa) = kappa d(log kappa)
        time = lambda log_kappa: eq.sde.time_of(torch.from_numpy(-log_kappa)).numpy()
        return lagrange_integrals([m.t for m in levels], time, math.log(a), math.log(b), np.exp)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p = eq.predict(state.x, t)
        if not math.isfinite(s.lam - t.lam):
            return State(infinite_step(p, s, None), (), p)
        memory = ((t, p.eps), *state.memory)[:self.nodes]
        x = s.alpha / t.alpha * state.x
        for w, (_, eps) in zip(self.weights(eq, [level for level, _ in memory], t, s), memory):
            x = x + s.alpha * w * eps
        return State(x, memory[:self.nodes - 1], p)


@dataclass(frozen=True)
class ERSDE(Multistep):
    """Theory, eq. (21) through the last ``nodes`` evaluations of x0, interpolated in kappa; eta may vary along the step, and its integral
    is exact. Order ``nodes`` on the flow. The published third order takes a one-sided difference for the first derivative and has order
    2."""

    nodes: int = 2

    form = "x0"

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, 1, 4)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p, stochastic = eq.predict(state.x, t), not eq.is_ode
        if not math.isfinite(s.lam - t.lam):
            return State(infinite_step(p, s, noise.unit(t, s) if stochastic and s.sigma else None), (), p)   # type: ignore[union-attr]
        memory = ((t, p.x0), *state.memory)[:self.nodes]
        eta2, churn = _churn(eq, t, s)
        weights = lagrange_integrals([math.exp(-level.lam) for level, _ in memory], lambda lam: np.exp(-lam), t.lam, s.lam,
                                     lambda lam: (1 + eta2(lam)) * np.exp(lam - s.lam - churn(lam)))
        total = float(churn(t.lam))
        x = s.sigma / t.sigma * math.exp(-total) * state.x
        for w, (_, x0) in zip(weights, memory):
            x = x + s.alpha * w * x0
        if stochastic:
            x = x + s.sigma * math.sqrt(max(0.0, -math.expm1(-2 * total))) * noise.unit(t, s)          # type: ignore[union-attr]
        return State(x, memory[:self.nodes - 1], p)


def _churn(eq: ReverseSDE, t: NoiseLevel, s: NoiseLevel) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """eta^2 as a function of lambda in the step, and its integral from lambda to lambda_s: of a Chebyshev interpolant where eta varies."""
    if not callable(eq.eta):
        eta2 = eq.eta**2
        return lambda lam: eta2, lambda lam: eta2 * (s.lam - lam)

    def at(lam: np.ndarray) -> np.ndarray:
        return np.array([eq.eta_at(level)**2 for level in eq.sde.levels([float(v) for v in eq.sde.time_of(torch.as_tensor(lam))])])

    fit = np.polynomial.Chebyshev.interpolate(at, 24, [t.lam, s.lam])
    integral = fit.integ(lbnd=s.lam)
    return fit, lambda lam: -integral(lam)


def extended_eta(level: NoiseLevel) -> Any:
    """eta of the noise scale phi(kappa) = kappa (exp(kappa^0.3) + 10), the one that the authors of ER-SDE recommend:
    eta^2 = d log phi/d log kappa - 1. Cui et al. 2023, Sec. 4 and App. B."""
    instance("level", level, NoiseLevel, "a level such as sde.at(t)")
    several = isinstance(level.lam, torch.Tensor)
    lam, exp = (level.lam.clamp(min=-20.0), torch.exp) if several else (max(level.lam, -20.0), math.exp)     # past e^20 all is noise
    u: Any = exp(-0.3 * lam)                    # kappa^0.3                                  # type: ignore[arg-type]
    return (0.3 * u / (1 + 10 * exp(-u)))**0.5


@dataclass(frozen=True)
class IPNDM(Solver):
    """DDIM steps with eps replaced by the Adams-Bashforth combination of equal steps, whatever the grid. Order 2 on smooth grids, 4 on
    grids uniform in kappa. Liu et al. 2022 (arXiv:2202.09778), eq. 9; Zhang & Chen 2023, App. B.2."""

    order = 2
    noise = "never"
    remembers = 3

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p = eq.predict(state.x, t)
        if not math.isfinite(s.lam - t.lam):
            return State(infinite_step(p, s, None), (), p)
        memory = ((t, p.eps), *state.memory)[:4]
        x = s.alpha / t.alpha * state.x
        for w, (_, eps) in zip(_EQUAL_STEPS[len(memory)], memory):
            x = x + s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha) * w * eps
        return State(x, memory[:3], p)


_EQUAL_STEPS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
