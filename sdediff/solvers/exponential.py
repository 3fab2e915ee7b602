r"""Exponential integrators: the linear part of the equation is solved exactly, the network is interpolated in lambda.

With h = lambda_s - lambda_t, q = 1 + eta^2 and kappa = sigma/alpha, variation of constants gives two exact forms,

    x0:   x_s = sigma_s/sigma_t e^{-eta^2 h} x + alpha_s int_0^h q e^{-q (h - u)} x0(lambda_t + u) du
                + sigma_s sqrt(1 - e^{-2 eta^2 h}) xi,                                                      theory, eq. (12)
    eps:  x_s = alpha_s/alpha_t x - q alpha_s kappa_t int_0^h e^{-u} eps(lambda_t + u) du
                + eta alpha_s sqrt(kappa_t^2 - kappa_s^2) xi,                                               theory, eq. (13)

and a Lagrange polynomial through evaluations makes them a method: through the last ones a multistep method (``Exponential``), through
stages inside the step a single-step one (``SingleStep``), through the predicted level too a corrector (``PredictorCorrector``). A shorter
memory gives the lower order without a branch. The weights follow from the moments of the kernel, in closed form by phi functions.

References: Hochbruck & Ostermann 2010; Song et al. 2021a (DDIM: order 1); Lu et al. 2022a (arXiv:2206.00927, DPM-Solver) and 2022b
(arXiv:2211.01095, DPM-Solver++ and SDE-DPM-Solver++); Zhang & Chen 2023 (arXiv:2204.13902, exponential Adams-Bashforth, DEIS);
Zhao et al. 2023 (arXiv:2302.04867, UniPC); Xue et al. 2023 (arXiv:2309.05019, SA-Solver); Gonzalez et al. 2023 (arXiv:2305.14267, SEEDS).
"""
from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..contracts import choice, integer
from ..equation import ReverseSDE
from ..random import Noise
from ..score import Prediction
from ..sde import NoiseLevel
from .base import Multistep, Solver, State

Node = tuple[NoiseLevel, Any]           # an evaluation, x0 or eps, and where it was made


_SERIES = [[math.factorial(k) / math.factorial(j + k + 1) for j in range(20)] for k in range(8)]        # k! phi_{k+1}


def moments(z: float, n: int) -> list[float]:
    """int_0^1 z e^{-z (1 - v)} v^k dv = k! z phi_{k+1}(-z) for k < n: by series for short steps, else by the recurrence
    m_k = 1 - (k/z) m_{k-1}, which loses no more than k!/z^k."""
    if abs(z) < 1:
        powers = [(-z)**j for j in range(20)]
        return [z * math.fsum(map(operator.mul, powers, series)) for series in _SERIES[:n]]
    m = [-math.expm1(-z)]
    for k in range(1, n):
        m.append(1 - k / z * m[-1])
    return m


def _bh1(z: float, n: int) -> list[float]:
    # UniPC with B(h) = h: its degenerate two-node case takes the coefficient 1/2 (Zhao et al. 2023, Sec. 3.2 and App. B)
    return [moments(z, 1)[0], z / 2] if n == 2 else moments(z, n)


def _bh2(z: float, n: int) -> list[float]:
    # UniPC with B(h) = e^h - 1
    m = moments(z, n)
    return [m[0], m[0] / 2] if n == 2 else m


def _published(z: float, n: int) -> list[float]:
    # DPM-Solver++ multistep as published and as its official code has it: the first moment taken as half of the zeroth, which keeps
    # order 2 (Lu et al. 2022b, Alg. 2), and in the third order half of the second moment, which does not keep order 3.
    m = _bh2(z, n)
    return [m[0], m[1], m[2] / 2] if n == 3 else m


KERNELS: dict[str, Callable[[float, int], list[float]]] = {"exact": moments, "published": _published, "bh1": _bh1, "bh2": _bh2}


def weights(nodes: Sequence[float], h: float, q: float, kernel: str = "exact") -> list[float]:
    """int_0^h q e^{-q (h - u)} l_j(u) du over the Lagrange basis of ``nodes``: exact for polynomials below their number."""
    m = KERNELS[kernel](q * h, len(nodes))
    if len(nodes) == 1:
        return m
    powers = np.vander(np.asarray(nodes, dtype=np.float64) / h, increasing=True).T
    return np.linalg.solve(powers, np.asarray(m)).tolist()


def advance(x: Any, t: NoiseLevel, s: NoiseLevel, nodes: Sequence[Node], form: str, kernel: str = "exact", eta: float = 0.0) -> Any:
    """The step from t to s of theory, eqs. (12) or (13) without its noise, x0 or eps interpolated through the nodes."""
    h, q = s.lam - t.lam, 1 + eta**2
    places = [level.lam - t.lam for level, _ in nodes]
    if form == "x0":
        scale, w = s.alpha, weights(places, h, q, kernel)
    else:                                       # alpha_s kappa_t e^{-u} = sigma_s e^{h - u}: the kernel of (12) with q = -1
        scale, w = q * s.sigma, weights(places, h, -1.0, kernel)
    x = gain(t, s, form, eta) * x
    for w_j, (_, value) in zip(w, nodes):
        x = x + scale * w_j * value
    return x


def noise_std(t: NoiseLevel, s: NoiseLevel, form: str, eta: float) -> float:
    """Standard deviation of the noise that theory, eqs. (12) or (13) adds between t and s."""
    h = s.lam - t.lam
    if form == "x0":
        return s.sigma * math.sqrt(abs(math.expm1(-2 * eta**2 * h)))
    return eta * s.sigma * math.sqrt(abs(math.expm1(2 * h)))               # sigma_s e^{h} = alpha_s kappa_t


def gain(t: NoiseLevel, s: NoiseLevel, form: str, eta: float) -> float:
    """The linear part of theory, eqs. (12) or (13): what is left at s of a displacement of x at t, the evaluations held fixed."""
    return s.sigma / t.sigma * math.exp(-eta**2 * (s.lam - t.lam)) if form == "x0" else s.alpha / t.alpha


def infinite_step(p: Prediction, s: NoiseLevel, xi: Any) -> Any:
    """A step of infinite length in lambda, out of alpha = 0 or into sigma = 0: what the model says, noised to s (by the
    fresh noise xi, or by the model's eps). Terms with weight zero are not asked for: they need not exist."""
    x = s.alpha * p.x0 if s.alpha else None
    if s.sigma:
        noised = s.sigma * (p.eps if xi is None else xi)
        x = noised if x is None else x + noised
    return x


@dataclass(frozen=True)
class Exponential(Multistep):
    """The multistep exponential integrator of order 1 to 4, for any eta.

    ``form``: "x0" or "eps", what is interpolated: theory, eqs. (12) or (13). ``kernel``: "exact" integrals, or "published" for
    DPM-Solver++ 2M and 3M as printed (x0 form; its third order converges at order 2). Order 1 in x0 form is DDIM (eta = 0) and the DDPM
    posterior chain (eta = 1). For eta > 0 it has weak order 1; there three nodes and more are for steps below 0.5 in lambda (some 20 over
    the whole span), since the kernel sits at the far end of the step, where a parabola through noisy evaluations has left the data. A
    step from alpha = 0 or into sigma = 0 has infinite length in lambda and order 1.
    """

    nodes: int = 2
    form: str = "x0"
    kernel: str = "exact"

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, 1, 4)
        choice("form", self.form, ("x0", "eps"))
        choice("kernel", self.kernel, ("exact", "published"))
        if self.kernel == "published" and self.nodes > 3:
            raise ValueError(f"nodes={self.nodes}: kernel='published' is DPM-Solver++ 2M or 3M; expected nodes <= 3.")

    @property
    def order(self) -> int:                                                                  # type: ignore[override]
        return min(self.nodes, 2) if self.kernel == "published" else self.nodes

    @property
    def starts(self) -> int:
        return max(0, self.order - 2)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p, h, eta = eq.predict(state.x, t), s.lam - t.lam, eq.eta_at(t)
        if not math.isfinite(h):
            return State(infinite_step(p, s, noise.unit(t, s) if eta and s.sigma else None), (), p)  # type: ignore[union-attr]
        memory = ((t, self.remember(p)), *state.memory)[:self.nodes]
        x = advance(state.x, t, s, memory, self.form, self.kernel, eta)
        if eta:
            x = x + noise_std(t, s, self.form, eta) * noise.unit(t, s)                       # type: ignore[union-attr]
        return State(x, memory[:self.nodes - 1], p)


@dataclass(frozen=True)
class SingleStep(Solver):
    """Exponential Runge-Kutta for any eta: evaluations at lambda_t + c h, each reached by interpolating through earlier ones.

    ``c``: the stages, increasing from 0. ``uses[i]``: which evaluations stage i, and last the whole step, interpolates through. With the
    right stages few nodes suffice: c = 2/3 makes a linear interpolant third order. A stage carries the noise of its part of the step,
    exactly as the whole step would end up with it, so that the weak order is 2 from two stages on. With eta = 0: Lu et al. 2022a,
    Alg. 1-2, and 2022b, Alg. 1; with eta = 1 and eps: Gonzalez et al. 2023 (SEEDS), Alg. 2-4; with x0: k-diffusion's DPM++ SDE.
    """

    c: tuple[float, ...]
    uses: tuple[tuple[int, ...], ...]
    order: int
    form: str = "eps"
    kernel: str = "exact"

    def __post_init__(self) -> None:
        integer("order", self.order, 1)
        choice("form", self.form, ("x0", "eps"))
        choice("kernel", self.kernel, KERNELS)

    @property
    def weak_order(self) -> int:
        return min(self.order, 2)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p, h, eta = eq.predict(state.x, t), s.lam - t.lam, eq.eta_at(t)
        if not math.isfinite(h):
            return State(infinite_step(p, s, noise.unit(t, s) if eta and s.sigma else None), (), p)  # type: ignore[union-attr]
        nodes: list[Node] = [(t, getattr(p, self.form))]
        levels = [t, *(eq.sde.level_of(t.lam + c * h) for c in self.c[1:]), s]
        inner = noise.within() if eta and len(levels) > 2 else None                          # type: ignore[union-attr]
        xi: Any = 0.0                           # what the noise so far amounts to at the current stage
        for k, (below, level) in enumerate(pairwise(levels)):
            x = advance(state.x, t, level, [nodes[j] for j in self.uses[k + 1]], self.form, self.kernel, eta)
            if eta:
                z = (inner.at(k) if inner else noise).unit(below, level)                     # type: ignore[union-attr]
                xi = gain(below, level, self.form, eta) * xi + noise_std(below, level, self.form, eta) * z
                x = x + xi
            if k + 1 < len(self.c):
                nodes.append((level, getattr(eq.predict(x, level), self.form)))
        return State(x, (), p)


def dpm_solver(order: int, form: str = "eps") -> SingleStep:
    """DPM-Solver-1, -2, -3 (form "eps") and DPM-Solver++ 2S, 3S (form "x0"), with the papers' stages; with eta = 1 SEEDS-1, -2, -3 and
    DPM++ SDE."""
    integer("order", order, 1, 3)
    return {1: SingleStep((0.0,), ((), (0,)), 1, form), 2: SingleStep((0.0, 1 / 2), ((), (0,), (0, 1)), 2, form, "bh2"),
            3: SingleStep((0.0, 1 / 3, 2 / 3), ((), (0,), (0, 1), (0, 2)), 3, form)}[order]


@dataclass(frozen=True)
class PredictorCorrector(Multistep):
    """The exponential multistep predictor through ``nodes`` evaluations, then a corrector through the predicted level and the latest
    others, ``corrector`` in all, with the same noise; the next step starts from the evaluation at the predicted state. One evaluation a
    step (and one at the start), order min(nodes + 1, corrector) on the flow, for any eta.

    ``corrector`` = nodes + 1 is UniPC-p (``unipc``), for eta = 0 as published: Zhao et al. 2023, Alg. 5-8. With eta (the paper's tau) it is
    SA-Solver in PEC mode: Xue et al. 2023, Alg. 1. ``form`` "x0" or "eps"; ``kernel`` "exact", or "bh1", "bh2": the choice of B(h), which
    matters where two nodes meet (SA-Solver's official code takes bh1). Every step that ends at sigma > 0 is corrected, the last included.
    """

    nodes: int = 2
    corrector: int = 3
    kernel: str = "exact"
    form: str = "x0"

    corrects = True

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, 1, 4)
        integer("corrector", self.corrector, 1, 5)
        choice("kernel", self.kernel, ("exact", "bh1", "bh2"))
        choice("form", self.form, ("x0", "eps"))

    @property
    def order(self) -> int:                                                                  # type: ignore[override]
        return min(self.nodes + 1, self.corrector)

    @property
    def remembers(self) -> int:                                                              # type: ignore[override]
        """Evaluations kept from step to step."""
        return max(self.nodes, self.corrector - 1)

    @property
    def starts(self) -> int:
        return max(0, self.order - 2)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        if t.lam == s.lam:
            return state
        p, memory, eta = state.prediction, state.memory, eq.eta_at(t)
        if p is None or not memory or memory[0][0] != t:
            p = eq.predict(state.x, t)
            memory = ((t, self.remember(p)), *memory)
        if not math.isfinite(s.lam - t.lam):
            return State(infinite_step(p, s, noise.unit(t, s) if eta and s.sigma else None), (), None)  # type: ignore[union-attr]
        xi = noise_std(t, s, self.form, eta) * noise.unit(t, s) if eta else 0.0              # type: ignore[union-attr]
        x = advance(state.x, t, s, memory[:self.nodes], self.form, self.kernel, eta) + xi
        p = eq.predict(x, s)
        memory = ((s, self.remember(p)), *memory)[:self.remembers + 1]
        x = advance(state.x, t, s, memory[:self.corrector], self.form, self.kernel, eta) + xi
        return State(x, memory[:self.remembers], p)


def unipc(order: int, kernel: str = "bh2", form: str = "x0") -> PredictorCorrector:
    """UniPC-p, of order p + 1."""
    return PredictorCorrector(integer("order", order, 1, 4), order + 1, kernel, form)
