"""Engines that a researcher already trusts, as steps between two levels: scipy for the probability-flow ODE, torchsde for the
SDE with our noise as its Brownian motion. Their packages are imported when a step is taken."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import choice, real
from ..equation import ReverseSDE
from ..random import Noise
from ..sde import NoiseLevel
from .base import Solver, State


@dataclass(frozen=True)
class SciPy(Solver):
    """``scipy.integrate.solve_ivp`` over each grid interval, with its own adaptive steps. One error norm is shared by the whole
    batch, so a sample's result depends on its neighbours within the tolerance."""

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5

    order = None
    noise = "never"
    adaptive = True

    def __post_init__(self) -> None:
        choice("method", self.method, ("RK45", "RK23", "DOP853", "LSODA", "Radau", "BDF"))
        real("rtol", self.rtol, 0.0)
        real("atol", self.atol, 0.0)
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("rtol=0, atol=0: expected at least one of them > 0.")

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        from scipy.integrate import solve_ivp
        x = state.x
        if not isinstance(x, Tensor):
            raise TypeError("SciPy chooses its own steps, so this solver is not linear and has no coefficient table.")
        if t.t == s.t:
            return state

        def slope(u: float, y: np.ndarray) -> np.ndarray:
            drift = eq.drift(torch.from_numpy(y).to(x).view_as(x), eq.at(min(max(float(u), min(t.t, s.t)), max(t.t, s.t))))
            return drift.double().flatten().cpu().numpy()

        solution = solve_ivp(slope, (t.t, s.t), x.double().flatten().cpu().numpy(), method=self.method, rtol=self.rtol, atol=self.atol,
                             t_eval=(s.t,))
        if not solution.success:
            raise RuntimeError(f"scipy's {self.method} stopped between t={t.t:g} and t={s.t:g}: {solution.message}")
        return State(torch.from_numpy(solution.y[:, -1]).to(x).view_as(x))


class _OurBrownian:
    """Our noise behind torchsde's Brownian interface, for one interval in torchsde's forward clock."""

    levy_area_approximation = "none"

    def __init__(self, dw: Tensor) -> None:
        self.dw, self.shape, self.dtype, self.device = dw, dw.shape, dw.dtype, dw.device

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        return self.dw


class _EulerInterval(torch.nn.Module):
    """One interval of the reverse equation in torchsde's convention, tau = -t. Drift and diffusion are those at its start, the one place
    where Euler's method asks for them: torchsde's contract check asks there once more, which must not cost a network call."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: Tensor, diffusion: float) -> None:
        super().__init__()
        self.drift, self.diffusion = drift, diffusion

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        return -self.drift

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, self.diffusion)


@dataclass(frozen=True)
class TorchSDE(Solver):
    """``torchsde.sdeint``, one step of its ``method`` per grid interval, driven by our Brownian increments."""

    method: str = "euler"

    def __post_init__(self) -> None:
        choice("method", self.method, ("euler",))

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        import torchsde
        x = state.x
        if not isinstance(x, Tensor):
            raise TypeError("torchsde works on tensors, so this solver has no coefficient table; 'euler-maruyama' has one.")
        if t.t == s.t:
            return state
        y = x.flatten(1) if x.ndim > 1 else x[:, None]
        dw = noise.increment(t, s).reshape(y.shape) if noise is not None else torch.zeros_like(y)
        times = torch.tensor([-t.t, -s.t], dtype=torch.float64, device=x.device)
        interval = _EulerInterval(eq.drift(x, t).reshape(y.shape), eq.diffusion(t))
        out = torchsde.sdeint(interval, y, times, bm=_OurBrownian(dw), method=self.method, dt=2 * abs(t.t - s.t))
        return State(out[-1].view_as(x))
