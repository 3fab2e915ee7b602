r"""Engines that a researcher already trusts, as steps between two levels; and our equations and noise as theirs.

*scipy and torchdiffeq* integrate the probability flow dx/dt = velocity(x, t) over one grid interval, by step sizes of their own (to a
tolerance) or in one step of a fixed method. The velocity need not exist at sigma = 0 (that of VP behaves like eps/sqrt(t)), so that an
adaptive step into or out of sigma = 0 is integrated between the noisy end and the level sigma/alpha = tolerance, and a DDIM step joins that
level and the clean one: its error, sigma/alpha times the change of eps, is at the tolerance.

*torchsde* integrates dy = f dtau + g dB forward in its clock tau alone. With tau = -t on a way down (tau = t on a way up) and
B(tau) = W(t) the equation dx = a dt + b dW reads

    f = -a,    g = b,    B(tau_s) - B(tau_t) = W(s) - W(t),    U = int (B - B(tau_t)) dtau = -int_t^s (W(u) - W(t)) du,

(without the signs on a way up), so that one Brownian path of ours drives its methods and ours alike. The noise is additive, so the Ito and
the Stratonovich reading are one equation.

The packages are imported when a step is taken.
References: Hairer, Norsett & Wanner 1993 (the Runge-Kutta pairs); Petzold 1983 (LSODA); Chen 2018 (torchdiffeq); Li et al. 2020
(torchsde); Roessler 2010 (SRA1, torchsde's "srk" where the noise is additive).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..contracts import MOST, choice, integer, real, sequence
from ..equation import ReverseSDE
from ..random import BrownianPath, Noise
from ..sde import SDE, NoiseLevel
from .adaptive import StepBudgetError
from .base import Solver, State
from .exponential import infinite_step

Slope = Callable[[float, Tensor], Tensor]           # (t, x) -> dx/dt


# -- the probability flow -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Adaptive(Solver):
    """An engine that integrates the probability flow by steps of its own to a tolerance."""

    method: str
    rtol: float = 1e-5
    atol: float = 1e-5
    max_calls: int = 10_000

    order = None
    noise = "never"
    adaptive = True
    methods: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        choice("method", self.method, self.methods)
        real("rtol", self.rtol, 0.0)
        real("atol", self.atol, 0.0)
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("rtol=0, atol=0: expected at least one of them > 0.")
        integer("max_calls", self.max_calls, 1, MOST)

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        x = _tensor(self, state.x)
        if t.t == s.t or not x.numel():
            return state
        if t.sigma == 0 or s.sigma == 0:
            near = eq.sde.level_of(-math.log(max(self.rtol, self.atol)))
            if min(t.t, s.t) < near.t < max(t.t, s.t):
                return self.step(eq, self.step(eq, state, t, near, noise), near, s, noise)
            return State(infinite_step(eq.predict(x, t), s, None))
        calls, velocity = 0, _velocity(eq, t, s)

        def slope(u: float, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if math.isnan(u):
                raise _Stopped("its step size is NaN, for the state or the velocity is not finite")
            if calls > self.max_calls:
                raise _Stopped(f"max_calls={self.max_calls} network calls do not suffice; it stood at t={u:.9g}")
            return velocity(u, y)

        try:
            return State(self._integrate(slope, x, t.t, s.t, max(self.atol, torch.finfo(torch.float32).tiny)))       # no 0/0 in a norm
        except _Stopped as reason:
            raise StepBudgetError(f"{type(self).__name__}({self.method!r}) from t={t.t:.6g} to t={s.t:.6g}: {reason}. Expected a finite "
                                  f"state, looser tolerances than rtol={self.rtol:g}, atol={self.atol:g}, or a larger max_calls.") from None

    def _integrate(self, slope: Slope, x: Tensor, t: float, s: float, atol: float) -> Tensor:
        """x at s, from x at t; _Stopped where the engine gives up."""
        raise NotImplementedError


class _Stopped(Exception):
    """An engine gave up, for this reason."""


@dataclass(frozen=True)
class SciPy(_Adaptive):
    """``scipy.integrate.solve_ivp`` over each grid interval, in float64 on the CPU, without gradients.

    ``rtol``, ``atol``: the tolerance of a step, both >= 0 and one of them > 0 (scipy takes no rtol below 2.2e-14). One error norm is shared
    by the whole batch, so a sample's result depends on its neighbours within the tolerance. ``max_calls``: network calls for one interval,
    beyond which StepBudgetError. LSODA is told that the Jacobian has a band of d, for samples do not see each other.
    """

    method: str = "RK45"

    methods = ("RK45", "RK23", "DOP853", "LSODA", "Radau", "BDF")

    def _integrate(self, slope: Slope, x: Tensor, t: float, s: float, atol: float) -> Tensor:
        from scipy.integrate import solve_ivp

        def flat(u: float, y: np.ndarray) -> np.ndarray:
            return slope(float(u), torch.from_numpy(y.copy()).to(x).view(x.shape)).double().flatten().cpu().numpy()

        band = {"lband": x[0].numel() - 1, "uband": x[0].numel() - 1} if self.method == "LSODA" else {}
        solution = solve_ivp(flat, (t, s), x.double().flatten().cpu().numpy(), method=self.method, atol=atol,
                             rtol=max(self.rtol, 100 * np.finfo(float).eps), t_eval=(s,), **band)
        if not solution.success:
            raise _Stopped(f"scipy says: {solution.message.rstrip('.')}")
        return torch.from_numpy(solution.y[:, -1]).to(x).view(x.shape)


@dataclass(frozen=True)
class TorchDiffEq(_Adaptive):
    """``torchdiffeq.odeint`` over each grid interval by an adaptive method, in the state's dtype and on its device. Gradients are those of
    the steps that were taken, their sizes held fixed. ``rtol``, ``atol``, ``max_calls``: as for ``SciPy``; here too one error norm is
    shared by the whole batch."""

    method: str = "dopri5"

    methods = ("dopri5", "dopri8", "bosh3")

    def _integrate(self, slope: Slope, x: Tensor, t: float, s: float, atol: float) -> Tensor:
        from torchdiffeq import odeint
        times = torch.tensor([t, s], dtype=torch.float64, device=x.device)
        # The last step ends at s, in place of beyond s with a fourth-order interpolation back. The norm, theirs but for detach(), keeps
        # the derivative of the first step size out of the gradient, where it would lack that of the velocity in t.
        steps = {"step_t": times[1:], "norm": lambda e: e.detach().square().mean().sqrt()}
        try:
            return odeint(lambda u, y: slope(float(u), y), x, times, rtol=self.rtol, atol=atol, method=self.method, options=steps)[-1]
        except AssertionError as error:
            if not str(error).startswith(("underflow in dt", "non-finite values in state")):
                raise
            raise _Stopped(f"torchdiffeq says: {str(error).split(':')[0]}") from None


@dataclass(frozen=True)
class TorchDiffEqFixed(Solver):
    """``torchdiffeq.odeint``, one step of a fixed method per grid interval; "rk4" is Kutta's 3/8 rule. A step into sigma = 0 that would put
    a stage there is Euler's (Karras et al. 2022, Alg. 1)."""

    method: str = "rk4"

    noise = "never"

    def __post_init__(self) -> None:
        choice("method", self.method, _FIXED)

    @property
    def order(self) -> int:                                                                  # type: ignore[override]
        return _FIXED[self.method]

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        from torchdiffeq import odeint
        x = _tensor(self, state.x)
        if t.t == s.t or not x.numel():
            return state
        velocity, method = _velocity(eq, t, s), "euler" if s.sigma == 0 and self.method in ("heun2", "rk4") else self.method
        times = torch.tensor([t.t, s.t], dtype=torch.float64, device=x.device)
        return State(odeint(lambda u, y: velocity(float(u), y), x, times, method=method)[-1])


_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


def _tensor(solver: Solver, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{type(solver).__name__} hands tensors to another library, so this solver has no coefficient table.")
    return x


def _velocity(eq: ReverseSDE, t: NoiseLevel, s: NoiseLevel) -> Slope:
    """dx/dt on the interval, at whose ends times are clamped: engines look beyond them by rounding, or to choose a first step."""
    low, high = min(t.t, s.t), max(t.t, s.t)
    return lambda u, x: eq.drift(x, eq.at(min(max(u, low), high)))


# -- torchsde -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Forward:
    """The forward process dX = f X dt + g dW with the face of an equation."""

    sde: SDE

    def drift(self, x: Tensor, level: NoiseLevel) -> Tensor:
        if level.alpha == 0:
            raise ValueError(f"t={level.t:g}: alpha = 0, where f and g of the process are infinite; end earlier, or draw "
                             "sde.marginal(x0, t), which is exact.")
        return level.f * x

    def diffusion(self, level: NoiseLevel) -> float:
        return math.sqrt(max(0.0, level.g2))


class TorchSDEForm(torch.nn.Module):
    """An equation in the form that ``torchsde.sdeint`` takes, made by ``as_torchsde``.

    ``f(tau, y)`` and ``g(tau, y)`` in torchsde's clock: tau = t for a forward process, tau = -t for a reverse equation (exact in both
    directions, unlike t_max - t). y is the flat state (B, d), d the size of the event; or (B d, 1), B d systems of one dimension, for which
    additive noise needs no d x d matrix. The parameters of a network score are this module's, so that ``sdeint_adjoint`` finds them.
    """

    def __init__(self, process: SDE | ReverseSDE, event: Sequence[int], noise_type: str = "diagonal", sde_type: str = "ito") -> None:
        super().__init__()
        if not all(callable(getattr(process, name, None)) for name in ("at", "drift", "diffusion")):
            raise TypeError(f"process={type(process).__name__}: expected a forward process such as sdediff.VPSDE(), or "
                            "sdediff.ReverseSDE(sde, score, eta=1.0).")
        self.equation: Any = _Forward(process) if isinstance(process, SDE) else process
        self.event = _event(event)
        self.noise_type = choice("noise_type", noise_type, ("diagonal", "additive"))
        self.sde_type = choice("sde_type", sde_type, ("ito", "stratonovich"))
        self.sign = 1.0 if isinstance(process, SDE) else -1.0
        network = getattr(getattr(process, "score", None), "network", None)
        if isinstance(network, torch.nn.Module):
            self.network = network

    def times(self, times: Sequence[float]) -> Tensor:
        """Times t of the process, in the order of the run (falling for a reverse equation), as torchsde's ``ts``: float64 (N,)."""
        sde = self.equation.sde
        return self.sign * torch.tensor([real(f"times[{i}]", t, 0.0, sde.t_max) for i, t in enumerate(times)], dtype=torch.float64)

    def level(self, tau: Any) -> NoiseLevel:
        """The noise level at torchsde's time tau; times beyond the ends by rounding are those of the ends."""
        sde, u = self.equation.sde, self.sign * float(tau)
        end = min(max(u, 0.0), sde.t_max)
        return sde.at(end if abs(u - end) < 1e-6 * sde.t_max else u)

    def f(self, tau: Any, y: Tensor) -> Tensor:
        """The drift in tau, shaped as y. Raises ValueError on another shape."""
        d = math.prod(self.event)
        if y.ndim != 2 or (y.shape[1] != d and (y.shape[1] != 1 or len(y) % d)):
            raise ValueError(f"y.shape={tuple(y.shape)} for events of shape {self.event}; expected (B, {d}), or (B * {d}, 1).")
        return self.sign * self.equation.drift(y.reshape(-1, *self.event), self.level(tau)).reshape(y.shape)

    def g(self, tau: Any, y: Tensor) -> Tensor:
        """The diffusion: shaped as y for noise_type "diagonal", (len(y), k, k) for "additive", k = y.shape[1]."""
        size, k = self.equation.diffusion(self.level(tau)), y.shape[1]
        if self.noise_type == "diagonal":
            return torch.full_like(y, size)
        return (size * torch.eye(k, dtype=y.dtype, device=y.device)).expand(len(y), k, k)

    def brownian(self, path: BrownianPath, y: Tensor) -> TorchSDEBrownian:
        """``sdeint``'s ``bm=`` for a state y: this Brownian path, which lives in t, in the clock tau, with its space-time area. Raises
        TypeError on another kind of noise, ValueError on one of another shape or dtype."""
        if not isinstance(path, BrownianPath) or not path.timed:
            raise TypeError(f"path={type(path).__name__}: torchsde asks for one path over intervals of its own; expected "
                            "sdediff.random.BrownianPath(seed, shape, span=(0.0, sde.t_max)) with clock=None.")
        if math.prod(path.shape) != y.numel() or path.shape[1:] != self.event or path.dtype != y.dtype:
            raise ValueError(f"path: it is bound to shape {path.shape} and {path.dtype}, for y of shape {tuple(y.shape)} and {y.dtype}; "
                             f"expected shape {(y.numel() // math.prod(self.event), *self.event)} and {y.dtype}.")
        return TorchSDEBrownian(self, path, y)


class TorchSDEBrownian:
    """A noise source of ours behind torchsde's Brownian interface, in the clock of a form."""

    levy_area_approximation = "space-time"

    def __init__(self, form: TorchSDEForm, noise: Noise | None, y: Tensor) -> None:
        self.form, self.noise, self.shape, self.dtype, self.device = form, noise, y.shape, y.dtype, y.device

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
        """B(tb) - B(ta), and with ``return_U`` also int_ta^tb (B - B(ta)) dtau; each of the state's shape."""
        if return_A:
            raise ValueError("return_A=True: this Brownian motion knows its space-time area alone; expected a method other than 'log_ode'.")
        if self.noise is None:                  # a deterministic run
            w = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            return (w, w) if return_U else w
        t, s = self.form.level(ta), self.form.level(tb)
        w = self.noise.increment(t, s).reshape(self.shape)
        return (w, self.form.sign * self.noise.area(t, s).reshape(self.shape)) if return_U else w


def as_torchsde(process: SDE | ReverseSDE, event: Sequence[int], *, noise_type: str = "diagonal", sde_type: str = "ito") -> TorchSDEForm:
    """An equation as an object for ``torchsde.sdeint``: a forward process in tau = t, or a reverse equation in tau = -t.

        form = sdediff.as_torchsde(sdediff.ReverseSDE(sde, score, eta=1.0), event=(2,))
        path = sdediff.random.BrownianPath(0, (100, 2), span=(0.0, sde.t_max))
        x = torchsde.sdeint(form, x_init, form.times([1.0, 0.0625]), bm=form.brownian(path, x_init), method="euler", dt=1 / 64)[-1]

    Parameters
    ----------
    event : the shape D of one sample; torchsde's state y is flat, (B, d) with d = prod(D).
    noise_type : "diagonal" (g is (B, d), any method), or "additive" (g is (B, d, d); torchsde's "srk" is then SRA1, two stages).
    sde_type : "ito" or "stratonovich", one and the same equation here; torchsde's methods ask for either.

    Raises TypeError or ValueError on a wrong argument.
    """
    return TorchSDEForm(process, event, noise_type, sde_type)


def _event(event: Any) -> tuple[int, ...]:
    such = "(2,) or (3, 32, 32), the shape of one sample"
    return tuple(integer(f"event[{i}]", n, 1) for i, n in enumerate(sequence("event", event, such, 0)))


class _Interval(TorchSDEForm):
    """One interval of a reverse equation, either way, as B d one-dimensional systems with additive noise: no d x d matrix. The drift at its
    start is known: torchsde asks for it again in its contract check and in a stage, which must not cost network calls."""

    def __init__(self, eq: ReverseSDE, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> None:
        super().__init__(eq, x.shape[1:], "additive")
        self.t, self.s, self.sign = t, s, 1.0 if s.t > t.t else -1.0
        self.first = self.sign * eq.drift(x, t).reshape(-1, 1)

    def level(self, tau: Any) -> NoiseLevel:
        u = self.sign * float(tau)
        low, high = min(self.t.t, self.s.t), max(self.t.t, self.s.t)
        return self.t if u == self.t.t else self.s if u == self.s.t else self.equation.at(min(max(u, low), high))

    def f(self, tau: Any, y: Tensor) -> Tensor:
        return self.first if self.sign * float(tau) == self.t.t else super().f(tau, y)


@dataclass(frozen=True)
class TorchSDE(Solver):
    """``torchsde.sdeint``, one step of its ``method`` per grid interval, driven by our noise: "euler" (our EulerMaruyama) or "srk" (our
    SRA1: weak order 2, strong order 3/2, two calls a step, neither at the end of the step)."""

    method: str = "euler"

    def __post_init__(self) -> None:
        choice("method", self.method, ("euler", "srk"))

    @property
    def order(self) -> int:                                                                  # type: ignore[override]
        return 2 if self.method == "srk" else 1

    @property
    def weak_order(self) -> int:
        return self.order

    @property
    def strong_order(self) -> float:
        return 1.5 if self.method == "srk" else 1

    def step(self, eq: ReverseSDE, state: State, t: NoiseLevel, s: NoiseLevel, noise: Noise | None) -> State:
        import torchsde
        x = _tensor(self, state.x)
        if t.t == s.t or not x.numel():
            return state
        interval, y = _Interval(eq, x, t, s), x.reshape(-1, 1)
        bm = TorchSDEBrownian(interval, None if eq.is_ode else noise, y)
        ys = torchsde.sdeint(interval, y, interval.times([t.t, s.t]), bm=bm, method=self.method, dt=2 * abs(t.t - s.t))
        return State(ys[-1].reshape(x.shape))
