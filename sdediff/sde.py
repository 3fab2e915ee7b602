r"""Forward processes and noise levels.

Every process is linear, dX = f(t) X dt + g(t) dW (theory, eq. (1)), so its marginals given the data are Gaussian,

    p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I),    alpha = exp int f,    sigma^2 = alpha^2 int g^2 / alpha^2,  theory, eq. (2)

and alpha, sigma^2 with their time derivatives are all that a solver, a network or a loss ever asks for:

    f = alpha'/alpha,     g^2 = (sigma^2)' - 2 f sigma^2,     lambda = log(alpha/sigma)  (half the log-SNR).  theory, eq. (3)

A process states alpha(t) and sigma(t), or sigma^2(t), each with its derivative, and the inverse t(lambda), in forms that do
not cancel; the rest is derived here. Scalars are float64: Python floats inside a loop, tensors (B, 1, ..., 1) where times
differ per sample.

References: Song et al. 2021 (arXiv:2011.13456), App. B; Karras et al. 2022 (arXiv:2206.00364); Kingma et al. 2021
(arXiv:2107.00630) for lambda; Nichol & Dhariwal 2021 (arXiv:2102.09672); Liu et al. 2022 and Lipman et al. 2022 for the flow.
"""
from __future__ import annotations

import abc
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import contracts, random
from .contracts import choice, real, shown

A_PROCESS = "a forward process such as sdediff.VPSDE()"
Scalar = Any        # a float in a loop; a float64 tensor (B, 1, ..., 1) when times differ per sample


class NoiseLevel(NamedTuple):
    """A point of the forward process: the "time" that every solver and every network is given.

    ``t``, ``alpha``, ``sigma``; ``dalpha`` and ``dsigma``, their time derivatives; ``dvariance`` = (sigma^2)', which is
    finite also where sigma = 0 and ``dsigma`` is not. Derived: ``lam`` = log(alpha/sigma), ``f``, ``g2`` = g^2.
    """

    t: Scalar
    alpha: Scalar
    sigma: Scalar
    dalpha: Scalar
    dsigma: Scalar
    dvariance: Scalar

    @property
    def lam(self) -> Scalar:
        """log(alpha/sigma): +inf at sigma = 0, -inf at alpha = 0."""
        if isinstance(self.alpha, Tensor):
            return torch.log(self.alpha) - torch.log(self.sigma)
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.alpha else -math.inf
        return math.log(self.alpha) - math.log(self.sigma)

    @property
    def f(self) -> Scalar:
        """The drift coefficient alpha'/alpha, infinite at alpha = 0."""
        return self.dalpha / self.alpha if isinstance(self.alpha, Tensor) or self.alpha else -math.inf

    @property
    def g2(self) -> Scalar:
        """The squared diffusion coefficient, infinite at alpha = 0."""
        if not isinstance(self.alpha, Tensor) and not self.alpha:
            return math.inf
        return self.dvariance - 2 * self.f * self.sigma**2

    def to(self, x: Tensor) -> NoiseLevel:
        """Per-sample scalars in x's dtype and device; floats stay floats (they never promote x)."""
        return NoiseLevel(*(v.to(x) if isinstance(v, Tensor) else v for v in self))


class SDE(abc.ABC):
    """dX = f(t) X dt + g(t) dW on [0, t_max]. A subclass is immutable and gives ``alpha`` and one of ``sigma``,
    ``variance``, each as (value, time derivative) of a float64 tensor, and ``time_of``, the inverse of lambda(t).

    ``t_max``: the noisy end. ``t_min``: the default end of sampling. ``knots``: number of steps of a discrete chain, else None.
    ``spacing``: name of the time grid that suits the process.
    """

    t_max: float = 1.0
    t_min: float = 0.0
    knots: int | None = None
    spacing: str = "quadratic"          # the grid on which one-step methods do best, by their exact error on Gaussian data

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and its time derivative."""

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma(t) and its time derivative."""
        v, dv = self.variance(t)
        s = v.sqrt()
        return s, dv / (2 * s)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma(t)^2 and its time derivative."""
        s, ds = self.sigma(t)
        return s * s, 2 * s * ds

    def time_of(self, lam: Tensor) -> Tensor:
        """The time t at which log(alpha/sigma) = lam; clamped to [0, t_max]. By default a bracketing root search."""
        from scipy.optimize import elementwise

        def residual(t: np.ndarray, target: np.ndarray) -> np.ndarray:
            # the angle atan(e^-lambda), finite at both ends, in place of lambda
            u = torch.from_numpy(np.atleast_1d(t))
            angle = torch.atan2(self.sigma(u)[0], self.alpha(u)[0]) - torch.atan(torch.exp(-torch.from_numpy(np.atleast_1d(target))))
            return angle.numpy().reshape(np.shape(t))

        target = lam.detach().double().reshape(-1).numpy()
        ends = self._levels(torch.tensor([0.0, self.t_max], dtype=torch.float64))
        target = np.clip(target, ends[1].lam, ends[0].lam)
        found = elementwise.find_root(residual, (np.zeros_like(target), np.full_like(target, self.t_max)), args=(target,),
                                      tolerances={"xatol": 0.0, "xrtol": 4e-16, "fatol": 0.0, "frtol": 0.0})
        t = np.asarray(found.x)
        for i in np.flatnonzero(np.isnan(t)):       # an end's own lambda, whose rounding leaves it just outside the bracket
            off = [abs(residual(np.array([end]), target[i:i + 1])[0]) for end in (0.0, self.t_max)]
            t[i] = 0.0 if off[0] < off[1] else self.t_max
        return torch.from_numpy(t).reshape(lam.shape)

    # -- levels ---------------------------------------------------------------------------------------------------
    def _over(self, t: Tensor) -> NoiseLevel:
        (a, da), (s, ds), (_, dv) = self.alpha(t), self.sigma(t), self.variance(t)
        return NoiseLevel(t, *torch.broadcast_tensors(a, s, da, ds, dv))

    def _levels(self, t: Tensor) -> list[NoiseLevel]:
        return [NoiseLevel(*row) for row in zip(*(v.tolist() for v in self._over(t)))]

    def at(self, t: float | Tensor) -> NoiseLevel:
        """The level at time t: floats for a number, float64 tensors for a tensor (shape it (B, 1, ..., 1) to meet x). A number
        outside [0, t_max] raises ValueError; a tensor is taken as it is (a check would synchronise the device)."""
        if isinstance(t, Tensor) and t.ndim:
            return self._over(contracts.floating("t", t).double())
        return _cached_level(self, t if type(t) is float else real("t", t, 0.0, self.t_max))

    def levels(self, times: Sequence[float] | Tensor) -> list[NoiseLevel]:
        """The levels of a whole grid, evaluated at once: N+1 times -> N+1 levels of floats. Times outside [0, t_max] and
        times that are not finite raise ValueError."""
        grid = [real(f"times[{i}]", t, 0.0, self.t_max) for i, t in enumerate(contracts.sequence("times", times, "[0.9, 0.5, 0.1]", 0))]
        return self._levels(torch.tensor(grid, dtype=torch.float64))

    def level_of(self, lam: float | Tensor) -> NoiseLevel:
        """The level whose log(alpha/sigma) is lam: floats for a number, tensors shaped as lam for a tensor."""
        if isinstance(lam, Tensor) and lam.ndim:
            return self.at(self.time_of(contracts.floating("lam", lam).double()))
        value = lam if isinstance(lam, float) and math.isinf(lam) else real("lam", lam)                      # an end's may be infinite
        return self.at(float(self.time_of(torch.tensor([value], dtype=torch.float64))))

    # -- the process, as a textbook writes it ---------------------------------------------------------------------
    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """f(t) x. x: (B, *D); t: a number or (B,)."""
        return self._at("x", x, t).f * x

    def diffusion(self, t: float | Tensor) -> Any:
        """g(t): a float for a number, a tensor shaped as t otherwise."""
        g2 = self.at(self._time(t)).g2
        return g2.sqrt() if isinstance(g2, Tensor) else math.sqrt(g2)

    def marginal(self, x0: Tensor, t: float | Tensor) -> tuple[Tensor, Any]:
        """Mean (B, *D) and standard deviation (float or (B, 1, ..)) of x_t given x_0."""
        level = self._at("x0", x0, t)
        return level.alpha * x0, level.sigma

    def transition(self, t: float | NoiseLevel, s: float | NoiseLevel) -> tuple[float, float]:
        """(alpha_ts, sigma_ts) of x_t | x_s = N(alpha_ts x_s, sigma_ts^2 I) for times s <= t, without the
        cancellation of sigma_t^2 - alpha_ts^2 sigma_s^2 near the data: sigma_ts^2 = sigma_t^2 (1 - exp(2 (lambda_t - lambda_s))).
        Raises ValueError on s > t."""
        lt, ls = (v if isinstance(v, NoiseLevel) else self.at(real(name, v, 0.0, self.t_max)) for name, v in (("t", t), ("s", s)))
        if ls.t > lt.t:
            raise ValueError(f"s={ls.t} lies after t={lt.t}; expected s <= t, the law of x_t given x_s.")
        return transition(lt, ls)

    def prior_std(self, level: NoiseLevel | None = None) -> float:
        """Standard deviation of the law that stands for p(x_t) at the noisy end, N(0, prior_std^2 I)."""
        return self._noisy(level).sigma

    def _noisy(self, level: NoiseLevel | None) -> NoiseLevel:
        contracts.instance("level", level, NoiseLevel, "a level such as sde.at(t)", none=True)
        return self.at(self.t_max) if level is None else level

    def prior(self, shape: Sequence[int], *, seed: random.Seed = None, dtype: torch.dtype | None = None,
              device: torch.device | str | None = None) -> Tensor:
        """Draws of x at t_max: (B, *D)."""
        noise = random.source(seed, contracts.shape("shape", shape), dtype=contracts.dtype_of("dtype", dtype),
                              device=contracts.device_of("device", device))
        return self.prior_std() * noise.initial()

    def _time(self, t: float | Tensor) -> float | Tensor:
        if isinstance(t, Tensor) and t.ndim:
            if not bool(((contracts.floating("t", t) >= 0) & (t <= self.t_max)).all()):
                raise ValueError(f"t={shown(t)}, from {t.min():g} to {t.max():g}: expected times in [0, {self.t_max}].")
            return t
        return real("t", t, 0.0, self.t_max)

    def _at(self, name: str, x: Tensor, t: float | Tensor) -> NoiseLevel:
        contracts.state(name, x)
        t = self._time(t)
        if isinstance(t, Tensor) and t.shape not in ((1,), (len(x),)):
            raise ValueError(f"t.shape={tuple(t.shape)} for a batch of {len(x)}; expected a number or one time per sample, ({len(x)},).")
        return self.at(t.reshape(-1, *[1] * (x.ndim - 1))).to(x) if isinstance(t, Tensor) else self.at(t)


@functools.lru_cache(maxsize=1 << 14)           # a process is immutable and compares by its parameters or by identity
def _cached_level(sde: SDE, t: float) -> NoiseLevel:
    return sde._levels(torch.tensor([real("t", t, 0.0, sde.t_max)], dtype=torch.float64))[0]


def transition(t: NoiseLevel, s: NoiseLevel) -> tuple[Scalar, Scalar]:
    """(alpha_ts, sigma_ts) of x_t given x_s, s the cleaner level: scale and standard deviation of the forward step."""
    if isinstance(t.alpha, Tensor):
        still = t.t == s.t                      # also at alpha = 0 and at sigma = 0, where the formulas read 0/0 and inf - inf
        std = t.sigma * torch.sqrt((-torch.expm1(2 * (t.lam - s.lam))).clamp(min=0))
        return torch.where(still, 1.0, t.alpha / s.alpha), torch.where(still, 0.0, std)
    if t.t == s.t:
        return 1.0, 0.0
    return t.alpha / s.alpha, t.sigma * math.sqrt(max(0.0, -math.expm1(2 * (t.lam - s.lam))))


def likelihood_law(u: Tensor, low: float, high: float, std: float) -> tuple[Tensor, float]:
    """(lambda, Z): the inverse distribution function, at u in (0, 1), of the law of lambda on [low, high] with density r/Z,
    r(lambda) = std^2 alpha^2/(std^2 alpha^2 + sigma^2) = 1/(1 + e^{-2 lambda}/std^2).

    For data N(0, std^2 I) r is E|eps - eps_hat|^2 of a coordinate, the rate in lambda of the likelihood bound, and its standard deviation
    is the same share of it at every level: no other law of levels estimates the bound with less variance. ``low`` may be -inf."""
    c = 2 * math.log(std)
    a, b = (_softplus(torch.tensor(2 * v + c, dtype=torch.float64)) for v in (low, high))         # twice the integral of r
    y = a + (b - a) * u
    return ((y + torch.log(-torch.expm1(-y)) - c) / 2).clamp(low, high), 0.5 * (b - a).item()


class _Exponential(SDE):
    """alpha = exp(-B/2) with B(t) = int_0^t beta: what VP and sub-VP share."""

    def integral(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta = self.integral(t)
        a = torch.exp(-b / 2)
        return a, -beta / 2 * a

    def prior_std(self, level: NoiseLevel | None = None) -> float:
        self._noisy(level)
        return 1.0


@dataclass(frozen=True)
class VPSDE(_Exponential):
    """Variance preserving: dX = -beta(t)/2 X dt + sqrt(beta(t)) dW, beta linear from ``beta_min`` to ``beta_max`` on [0, 1].
    alpha^2 + sigma^2 = 1, prior N(0, I). Song et al. 2021, eq. 32-33."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        real("beta_min", self.beta_min, 0.0, low_open=True)
        real("beta_max", self.beta_max, self.beta_min)
        real("t_min", self.t_min, 0.0, self.t_max, high_open=True)

    def integral(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """B(t) = int_0^t beta, and beta(t)."""
        d = self.beta_max - self.beta_min
        return t * (self.beta_min + t * d / 2), self.beta_min + t * d

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta = self.integral(t)
        return -torch.expm1(-b), beta * torch.exp(-b)

    def time_of_integral(self, b: Tensor) -> Tensor:
        """The time at which B is ``b``, clamped to [0, t_max]."""
        b = b.clamp(max=(self.beta_min + self.beta_max) / 2)            # B(t_max); b is infinite at alpha = 0
        return (2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))).clamp(0, self.t_max)

    def time_of(self, lam: Tensor) -> Tensor:
        # e^{-B} = alpha^2 = 1/(1 + e^{-2 lambda})
        return self.time_of_integral(_softplus(-2 * lam))

    @staticmethod
    def from_betas(betas: Sequence[float] | np.ndarray | Tensor) -> ChainVPSDE:
        """The chain x_{i+1} = sqrt(1 - beta_i) x_i + sqrt(beta_i) u as a process that is exact at its knots.

        Time counts the betas applied: t in [0, N], the clean level is t = 0, and index i (what a DDPM network sees, 0 to
        N-1) is t = i + 1. Between knots beta(t) is constant. Every beta lies in (0, 1); the last alone may be 1 (zero
        terminal SNR), alpha then falls linearly to 0 over the last interval. Ho et al. 2020; Lin et al. 2024.
        """
        return ChainVPSDE(_table("betas", betas))


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """Sub-variance preserving: sigma = 1 - exp(-B), the square of VP's variance root. Song et al. 2021, eq. 34."""

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return VPSDE.variance(self, t)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return SDE.variance(self, t)

    def time_of(self, lam: Tensor) -> Tensor:
        # alpha/(1 - alpha^2) = e^lambda  <=>  B = 2 asinh(e^{-lambda}/2)
        return self.time_of_integral(2 * torch.asinh(torch.exp(-lam) / 2))


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Variance preserving with alpha(t) = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), ``offset`` s. Nichol & Dhariwal
    2021, eq. 17. alpha = 0 and beta is infinite at t = 1, hence ``t_max`` below it (Lu et al. 2022a, App. D.4)."""

    offset: float = 0.008
    t_max: float = 0.9946
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        real("offset", self.offset, 0.0)
        real("t_max", self.t_max, 0.0, 1.0, low_open=True)
        real("t_min", self.t_min, 0.0, self.t_max, high_open=True)

    @property
    def _angle(self) -> tuple[float, float]:
        w = math.pi / 2 / (1 + self.offset)
        return w, w * self.offset

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # u0 + w = pi/2, so that cos(u0 + wt) = sin(w (1 - t)): exactly 0 at t = 1
        w, u0 = self._angle
        a = torch.where(t < 0.5, torch.cos(u0 + w * t), torch.sin(w * (1 - t)))
        return a / math.cos(u0), -w * torch.sin(u0 + w * t) / math.cos(u0)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # cos^2 u0 - cos^2(u0 + wt) = sin(wt) sin(2 u0 + wt)
        w, u0 = self._angle
        return torch.sin(w * t) * torch.sin(2 * u0 + w * t) / math.cos(u0)**2, w * torch.sin(2 * (u0 + w * t)) / math.cos(u0)**2

    def time_of(self, lam: Tensor) -> Tensor:
        # cos(u) = alpha cos(u0) and, for small times, sin(u)^2 - sin(u0)^2 = sigma^2 cos(u0)^2: the difference of the
        # angles from sin(u - u0) sin(u + u0) = sigma^2 cos(u0)^2, free of cancellation
        w, u0 = self._angle
        var = torch.sigmoid(-2 * lam)
        u = torch.atan2(torch.sqrt(math.sin(u0)**2 + var * math.cos(u0)**2), torch.sqrt(torch.sigmoid(2 * lam)) * math.cos(u0))
        near = torch.asin((var * math.cos(u0)**2 / torch.sin(u + u0).clamp_min(1e-300)).clamp(0, 1))
        return (torch.where(u < 1.0, near, u - u0) / w).clamp(0, self.t_max)

    def prior_std(self, level: NoiseLevel | None = None) -> float:
        self._noisy(level)
        return 1.0


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, sigma(t) = s(t) = sigma_min (sigma_max/sigma_min)^t on [0, 1] (Song's code, the default),
    or sigma^2 = s(t)^2 - sigma_min^2 with ``subtract_min`` (the paper's SDE, eq. 30, started at a point)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    subtract_min: bool = False
    t_min: float = 1e-5

    spacing = "uniform"

    def __post_init__(self) -> None:
        real("sigma_min", self.sigma_min, 0.0, low_open=True)
        real("sigma_max", self.sigma_max, self.sigma_min, low_open=True, hint="sigma_min < sigma_max")
        contracts.flags(subtract_min=self.subtract_min)
        real("t_min", self.t_min, 0.0, self.t_max, high_open=True)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s2 = self.sigma_min**2 * torch.exp(2 * t * self._rate)
        v = self.sigma_min**2 * torch.expm1(2 * t * self._rate) if self.subtract_min else s2
        return v, 2 * self._rate * s2

    def time_of(self, lam: Tensor) -> Tensor:
        log_ratio = -lam - math.log(self.sigma_min)                                     # log(sigma/sigma_min)
        return ((_softplus(2 * log_ratio) / 2 if self.subtract_min else log_ratio) / self._rate).clamp(0, self.t_max)

    @staticmethod
    def from_sigmas(sigmas: Sequence[float] | np.ndarray | Tensor) -> ChainVESDE:
        """The noise ladder of NCSN as a process that is exact at its knots. ``sigmas``: strictly increasing or strictly
        decreasing, all > 0. Time t in [0, N]: t = 0 is clean, t = i + 1 is the i-th smallest sigma; between knots g is
        constant. Song & Ermon 2019."""
        return ChainVESDE(_table("sigmas", sigmas))


@dataclass(frozen=True)
class EDMSDE(SDE):
    """alpha = 1, sigma(t) = t, on [0, ``sigma_max``]; sampling ends at ``sigma_min``. Karras et al. 2022."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    spacing = "karras"

    def __post_init__(self) -> None:
        real("sigma_min", self.sigma_min, 0.0)
        real("sigma_max", self.sigma_max, self.sigma_min, low_open=True, hint="sigma_min < sigma_max")

    @property
    def t_max(self) -> float:                   # type: ignore[override]
        return self.sigma_max

    @property
    def t_min(self) -> float:                   # type: ignore[override]
        return self.sigma_min

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam).clamp(max=self.sigma_max)


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    """The straight path x_t = (1 - t) x_0 + t eps, t = 0 data, t = 1 noise. f and g^2 are infinite at t = 1, where alpha = 0;
    the probability-flow velocity is finite. Liu et al. 2022 (arXiv:2209.03003)."""

    t_min: float = 1e-3

    spacing = "uniform"

    def __post_init__(self) -> None:
        real("t_min", self.t_min, 0.0, self.t_max, high_open=True)

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, -torch.ones_like(t)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True, eq=False)
class ChainVPSDE(SDE):
    """``VPSDE.from_betas``: a discrete beta table as a process, exact at its knots t = 0, 1, ..., N."""

    betas: np.ndarray
    _log_abar: Tensor = field(init=False, repr=False)       # log abar at t = 0..N; -inf last for zero terminal SNR

    def __post_init__(self) -> None:
        for i, b in enumerate(self.betas.tolist()):
            if not (0 < b < 1 or (b == 1 and i == len(self.betas) - 1)):
                raise ValueError(f"betas[{i}]={b!r}: expected a number in (0, 1) (1 is allowed for the last one alone: zero terminal SNR).")
        with np.errstate(divide="ignore"):
            log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))])
        object.__setattr__(self, "_log_abar", torch.from_numpy(log_abar))

    @property
    def knots(self) -> int:                     # type: ignore[override]
        return len(self.betas)

    @property
    def t_max(self) -> float:                   # type: ignore[override]
        return float(len(self.betas))

    def _abar(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B = -log abar and beta on the interval below t; and which times lie in a last interval that ends at alpha = 0."""
        i = (torch.ceil(t).long() - 1).clamp(0, self.knots - 1)
        table = self._log_abar.to(t.device)
        low, high = table[i], table[i + 1]
        zero = torch.isinf(high)
        high = torch.where(zero, low, high)
        return -(low + (t - i) * (high - low)), low - high, zero

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta, zero = self._abar(t)
        a = torch.exp(-b / 2)
        return torch.where(zero, a * (self.knots - t), a), torch.where(zero, -a, -beta / 2 * a)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta, zero = self._abar(t)
        v, u = 0.0 - torch.expm1(-b), t - (self.knots - 1)
        return (torch.where(zero, v + torch.exp(-b) * u * (2 - u), v),              # 1 - abar (1 - u)^2
                torch.where(zero, 2 * (1 - u), beta) * torch.exp(-b))

    def time_of(self, lam: Tensor) -> Tensor:
        b = _softplus(-2 * lam).contiguous()
        knots = -self._log_abar
        i = (torch.searchsorted(knots, b) - 1).clamp(0, self.knots - 1)
        inside = torch.isfinite(knots[i + 1])
        t = i + (b - knots[i]) / torch.where(inside, knots[i + 1] - knots[i], 1.0)
        ramp = self.knots - torch.exp((knots[i] - b) / 2)           # alpha falls linearly to zero
        return torch.where(inside, t, ramp).clamp(0, self.t_max)

    def prior_std(self, level: NoiseLevel | None = None) -> float:
        self._noisy(level)
        return 1.0


@dataclass(frozen=True, eq=False)
class ChainVESDE(SDE):
    """``VESDE.from_sigmas``: a ladder of noise levels as a process, exact at its knots t = 0, 1, ..., N."""

    sigmas: np.ndarray
    _var: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for i, s in enumerate(self.sigmas.tolist()):
            real(f"sigmas[{i}]", s, 0.0, low_open=True)
        steps = np.diff(self.sigmas)
        if len(steps) and not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError(f"sigmas={shown(self.sigmas.tolist())}: expected a strictly increasing or strictly decreasing sequence.")
        object.__setattr__(self, "_var", torch.from_numpy(np.concatenate([[0.0], np.sort(self.sigmas)**2])))

    @property
    def knots(self) -> int:                     # type: ignore[override]
        return len(self.sigmas)

    @property
    def t_max(self) -> float:                   # type: ignore[override]
        return float(len(self.sigmas))

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        i = (torch.ceil(t).long() - 1).clamp(0, self.knots - 1)
        table = self._var.to(t.device)
        g2 = table[i + 1] - table[i]
        return table[i] + (t - i) * g2, g2

    def time_of(self, lam: Tensor) -> Tensor:
        v = torch.exp(-2 * lam).contiguous()
        i = (torch.searchsorted(self._var, v) - 1).clamp(0, self.knots - 1)
        return (i + (v - self._var[i]) / (self._var[i + 1] - self._var[i])).clamp(0, self.t_max)


@dataclass(frozen=True, eq=False)
class ChainSDE(SDE):
    """Any table of noise levels as a process, exact at its knots: t = 0 is clean, t = i + 1 has (``alphas[i]``, ``sigmas[i]``).

    alpha/sigma falls strictly with the index; every alpha is > 0 but the last, which may be 0, and every sigma > 0. Between knots log alpha
    and sigma^2/alpha^2 are linear in t; over a last interval that ends at alpha = 0, alpha and sigma^2 are."""

    alphas: np.ndarray
    sigmas: np.ndarray
    _table: tuple[Tensor, Tensor, Tensor] = field(init=False, repr=False)       # alpha, sigma^2 and their quotient q at t = 0..N

    def __post_init__(self) -> None:
        a, s = _table("alphas", self.alphas), _table("sigmas", self.sigmas)
        if len(a) != len(s):
            raise ValueError(f"alphas, sigmas: tables of {len(a)} and {len(s)} numbers; expected as many of both, one pair a level.")
        for i, (alpha, sigma) in enumerate(zip(a.tolist(), s.tolist())):
            real(f"alphas[{i}]", alpha, 0.0, low_open=i < len(a) - 1)
            real(f"sigmas[{i}]", sigma, 0.0, low_open=True)
        with np.errstate(divide="ignore"):
            a, v = np.concatenate([[1.0], a]), np.concatenate([[0.0], s**2])
            q = v / a**2
        if (np.diff(q) <= 0).any():
            i = int(np.argmax(np.diff(q) <= 0))
            raise ValueError(f"alphas, sigmas: alpha/sigma at index {i} is not below that at index {i - 1}; expected levels from the "
                             "cleanest to the noisiest; alphas[::-1], sigmas[::-1] turns a table round.")
        object.__setattr__(self, "_table", tuple(map(torch.from_numpy, (a, v, q))))

    @property
    def knots(self) -> int:                     # type: ignore[override]
        return len(self.alphas)

    @property
    def t_max(self) -> float:                   # type: ignore[override]
        return float(len(self.alphas))

    def _ends(self, t: Tensor) -> tuple[Tensor, ...]:
        """The place u in [0, 1] of t between its knots, alpha, sigma^2 and q at both, and whether the upper one has alpha = 0."""
        i = (torch.ceil(t).long() - 1).clamp(0, self.knots - 1)
        (a, b), (v, w), (q, r) = ((x[i], x[i + 1]) for x in (x.to(t.device) for x in self._table))
        return t - i, a, b, v, w, q, torch.where(torch.isinf(r), q, r), torch.isinf(r)

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u, a, b, *_, zero = self._ends(t)
        rate = torch.log(torch.where(zero, a, b) / a)
        c = a * torch.exp(u * rate)
        return torch.where(zero, a * (1 - u), c), torch.where(zero, -a, rate * c)

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u, _, _, v, w, q, r, zero = self._ends(t)
        (c, dc), k = self.alpha(t), q + u * (r - q)
        return torch.where(zero, v + u * (w - v), c**2 * k), torch.where(zero, w - v, 2 * c * dc * k + c**2 * (r - q))

    def time_of(self, lam: Tensor) -> Tensor:
        target, (a, v, q) = torch.exp(-2 * lam).contiguous(), self._table
        i = (torch.searchsorted(q, target) - 1).clamp(0, self.knots - 1)
        inside = torch.isfinite(q[i + 1])
        t = i + (target - q[i]) / torch.where(inside, q[i + 1] - q[i], 1.0)
        # at alpha = a (1 - u), sigma^2 = v + u d the quotient is ``target`` for the root w = 1 - u of a^2 target w^2 + d w = v + d
        d, end = v[i + 1] - v[i], v[i + 1]
        ramp = self.knots - 2 * end / (d + torch.sqrt(d**2 + 4 * a[i]**2 * target * end))
        return torch.where(inside, t, ramp).clamp(0, self.t_max)


@dataclass(frozen=True, eq=False)
class LinearSDE(SDE):
    """dX = f(t) X dt + g(t) dW from the two coefficients alone. alpha, sigma and lambda are integrated to a relative 1e-10.

    ``f``, ``g``: callables of a float64 tensor of times (returning a tensor of its shape, or a number), g(t) != 0 almost
    everywhere; ``t_max``: the noisy end; ``t_min``: the default end of sampling. Coefficients that Gauss-Legendre
    quadrature cannot resolve on 4096 panels (kinks or poles inside) raise ValueError.
    """

    f: Callable[[Tensor], Any]
    g: Callable[[Tensor], Any]
    t_max: float = 1.0
    t_min: float | None = None                  # type: ignore[assignment]
    _panels: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, fn in (("f", self.f), ("g", self.g)):
            if not callable(fn):
                raise TypeError(f"{name}={fn!r}: expected a callable of t, such as {name}=lambda t: -0.5 * t.")
        real("t_max", self.t_max, 0.0, low_open=True)
        object.__setattr__(self, "t_min", real("t_min", self.t_max * 1e-3 if self.t_min is None else self.t_min,
                                               0.0, self.t_max, high_open=True))
        probe = torch.linspace(0, self.t_max, 33, dtype=torch.float64)[1:]
        previous = None
        for panels in (8, 32, 128, 512, 2048, 4096):
            object.__setattr__(self, "_panels", self._integrate(panels))
            a, v = self.alpha(probe)[0], self.variance(probe)[0]
            now = torch.stack([a, v])
            if not bool(torch.isfinite(now).all() and (v > 0).all()):
                raise ValueError("f, g: the integrals of f and g^2 are not finite and positive on (0, t_max]; expected "
                                 f"integrable coefficients with g != 0 (t_max={self.t_max}).")
            if previous is not None and bool(((now - previous).abs() <= 1e-11 * now.abs()).all()):
                return
            previous = now
        raise ValueError("f, g: the integrals do not settle to 1e-11 on 4096 panels; expected coefficients that are smooth "
                         f"on [0, {self.t_max}].")

    def _call(self, name: str, t: Tensor) -> Tensor:
        value = torch.as_tensor(getattr(self, name)(t), dtype=torch.float64)
        if value.shape not in ((), t.shape):
            raise ValueError(f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}; "
                             "expected the same shape, or a number.")
        return value.expand(t.shape)

    def _integrate(self, panels: int) -> tuple[Tensor, Tensor]:
        """log alpha and q = int g^2/alpha^2 at the panel ends."""
        edges = torch.linspace(0, self.t_max, panels + 1, dtype=torch.float64)
        object.__setattr__(self, "_panels", (torch.zeros(panels + 1, dtype=torch.float64),) * 2)
        log_a = torch.cat([edges[:1], self._partial_log_alpha(edges[:-1], edges[1:])]).cumsum(0)
        object.__setattr__(self, "_panels", (log_a, torch.zeros_like(log_a)))
        q = torch.cat([edges[:1], self._partial_q(edges[:-1], edges[1:])]).cumsum(0)
        return log_a, q

    def _partial_log_alpha(self, a: Tensor, b: Tensor) -> Tensor:
        u = a[..., None] + (b - a)[..., None] * _GL_X
        return (self._call("f", u) * _GL_W).sum(-1) * (b - a)

    def _partial_q(self, a: Tensor, b: Tensor) -> Tensor:
        u = a[..., None] + (b - a)[..., None] * _GL_X
        return (self._call("g", u)**2 * torch.exp(-2 * self._log_alpha(u)) * _GL_W).sum(-1) * (b - a)

    def _left(self, t: Tensor) -> tuple[Tensor, Tensor]:
        panels = len(self._panels[0]) - 1
        i = (t * (panels / self.t_max)).floor().long().clamp(0, panels - 1)
        return i, i.double() * (self.t_max / panels)

    def _log_alpha(self, t: Tensor) -> Tensor:
        i, left = self._left(t)
        return self._panels[0][i] + self._partial_log_alpha(left, t)

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.exp(self._log_alpha(t))
        return a, self._call("f", t) * a

    def variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        i, left = self._left(t)
        v = (self._panels[1][i] + self._partial_q(left, t)) * torch.exp(2 * self._log_alpha(t))
        return v, 2 * self._call("f", t) * v + self._call("g", t)**2


_GL_X, _GL_W = (torch.from_numpy(v / 2) for v in np.polynomial.legendre.leggauss(16))       # on [-1/2, 1/2], then on [0, 1]
_GL_X = _GL_X + 0.5


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) with full relative precision at both ends (torch's own switches to the identity at a threshold)."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _table(name: str, values: Sequence[float] | np.ndarray | Tensor) -> np.ndarray:
    such = "[0.1, 0.2, 0.3], a table of numbers"
    table = np.array([real(f"{name}[{i}]", v) for i, v in enumerate(contracts.sequence(name, values, such))])
    table.setflags(write=False)
    return table


def process(name: str, **options: Any) -> SDE:
    """A process by name: "vp", "sub-vp", "cosine", "ve", "edm", "flow", or "ddpm" (the linear table of ``steps`` betas,
    scaled by 1000/steps as in Song et al. 2021)."""
    kind = PROCESSES[choice("process", name, PROCESSES)]
    contracts.known(f"process {name!r}", options, {k: v.default for k, v in inspect.signature(kind).parameters.items()})
    return kind(**options)


def _linear_chain(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> ChainVPSDE:
    return VPSDE.from_betas(np.linspace(beta_min, beta_max, steps) * (1000 / steps))


PROCESSES: dict[str, Callable[..., SDE]] = {"vp": VPSDE, "sub-vp": SubVPSDE, "cosine": CosineVPSDE, "ve": VESDE, "edm": EDMSDE,
                                            "flow": RectifiedFlow, "ddpm": _linear_chain}
