r"""What a model says about x at a noise level, and adapters from any callable to it.

With x = alpha x0 + sigma eps, every parameterisation is linear in (x, x0, eps):

    score    = -eps/sigma = (alpha x0 - x)/sigma^2                 grad log p_t (Tweedie, x0 = E[x_0 | x_t]): theory, eq. (5)
    v        = alpha eps - sigma x0                                Salimans & Ho 2022, App. D
    velocity = alpha' x0 + sigma' eps = f x - g^2/2 score          dx/dt of the probability flow: theory, eq. (10)
    F        : x0 = (alpha s^2 x + sigma s m F)/m^2,  m^2 = sigma^2 + alpha^2 s^2,  s = sigma_data;  Karras et al. 2022, Table 1

Conversions divide by alpha or by sigma where the quantity itself is lost: eps says nothing at alpha = 0 beyond x, x0 nothing
at sigma = 0. ``Prediction`` keeps what it was given and converts when asked, so that a solver which interpolates x0 never
forms eps from an x0 network, and refuses, by name, a conversion that does not exist.
"""
from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .contracts import choice, instance, names, real, shown
from .sde import NoiseLevel

QUANTITIES = ("x0", "eps", "score", "v", "velocity")


class NetworkError(ValueError):
    """A fault of the network or score at a call: its name, the time, and (inside ``sample``) the step are in the message."""


class Prediction:
    """What a model said about ``x`` at ``level``: given one or more of x0, eps, score, v, velocity, it offers all of them.

    Each is a tensor shaped as x (or any vector that adds and scales). A conversion that would divide by zero (x0 from eps or
    score at alpha = 0; eps or score from x0 at sigma = 0) raises ValueError.
    """

    __slots__ = ("_known", "given", "level", "x")

    def __init__(self, x: Any, level: NoiseLevel, **given: Any) -> None:
        if type(level) is not NoiseLevel:
            instance("level", level, NoiseLevel, "a level such as sde.at(t)")
        if not given or not set(given) <= set(QUANTITIES):
            wrong = ", ".join(f"{name}={shown(value)}" for name, value in given.items() if name not in QUANTITIES)
            raise TypeError(f"Prediction({wrong}): expected one or more of {', '.join(QUANTITIES)}.")
        self.x, self.level, self.given, self._known = x, level, tuple(given), given

    def _get(self, name: str, convert: Callable[[], Any]) -> Any:
        if name not in self._known:
            self._known[name] = convert()
        return self._known[name]

    @property
    def x0(self) -> Any:
        """E[x_0 | x_t], the denoised x."""
        return self._get("x0", self._x0)

    @property
    def eps(self) -> Any:
        """The noise in x, (x - alpha x0)/sigma."""
        return self._get("eps", self._eps)

    @property
    def score(self) -> Any:
        """grad log p_t(x)."""
        return self._get("score", self._score)

    @property
    def v(self) -> Any:
        """alpha eps - sigma x0."""
        return self._get("v", lambda: self.level.alpha * self.eps - self.level.sigma * self.x0)

    @property
    def velocity(self) -> Any:
        """dx/dt of the probability-flow ODE, finite at alpha = 0 and at sigma = 0 where the data and the process allow it."""
        return self._get("velocity", self._velocity)

    # Each conversion starts from what was given, never from another conversion: the answer does not depend on the order of asking.
    def _x0(self) -> Any:
        x, m, given, known = self.x, self.level, self.given, self._known
        if "v" in given:
            return (m.alpha * x - m.sigma * known["v"]) / (m.alpha**2 + m.sigma**2)
        if "velocity" in given:
            a, b = _slopes(m)
            return (b * x - a * m.sigma * known["velocity"]) / (m.alpha * b - a * m.sigma * m.dalpha)
        self._refuse(m.alpha, "x0", "alpha = 0", "x0, v or velocity")
        if "eps" in given:
            return (x - m.sigma * known["eps"]) / m.alpha
        return (x + m.sigma**2 * known["score"]) / m.alpha

    def _eps(self) -> Any:
        x, m, given, known = self.x, self.level, self.given, self._known
        if "score" in given:
            return -m.sigma * known["score"]
        if "v" in given:
            return (m.sigma * x + m.alpha * known["v"]) / (m.alpha**2 + m.sigma**2)
        if "velocity" in given:
            a, b = _slopes(m)
            return a * (m.alpha * known["velocity"] - m.dalpha * x) / (m.alpha * b - a * m.sigma * m.dalpha)
        self._refuse(m.sigma, "eps", "sigma = 0", "eps, score, v or velocity")
        return (x - m.alpha * known["x0"]) / m.sigma

    def _score(self) -> Any:
        m = self.level
        self._refuse(m.sigma, "score", "sigma = 0", "score")
        if "x0" in self.given and "eps" not in self.given:
            return (m.alpha * self._known["x0"] - self.x) / m.sigma**2
        return -self.eps / m.sigma

    def _velocity(self) -> Any:
        m, given, known = self.level, self.given, self._known
        if "score" in given and "x0" in given:
            return m.dalpha * known["x0"] - 0.5 * m.dvariance * known["score"]
        if "score" in given:
            self._refuse(m.alpha, "velocity", "alpha = 0", "x0, v or velocity")
            return m.f * self.x - 0.5 * m.g2 * known["score"]
        if not isinstance(m.dsigma, Tensor) and math.isinf(m.dsigma):
            self._refuse(m.sigma, "velocity", "sigma = 0", "score or velocity")
        return m.dalpha * self.x0 + m.dsigma * self.eps

    def _refuse(self, scale: Any, wanted: str, where: str, instead: str) -> None:
        if not isinstance(scale, Tensor) and scale == 0:
            raise ValueError(f"{wanted} at t={self.level.t:g}: it does not follow from {' and '.join(self.given)} where {where}; "
                             f"use a model that predicts {instead}, or a grid that does not reach this level (t_start=, t_end=).")

    def shifted(self, *, x0: Any = None, score: Any = None) -> Prediction:
        """The prediction whose x0 is greater by ``x0``, or its score by ``score``: each quantity that was given moves with it, so that
        nothing is converted. A shift of the score has no x0 at alpha = 0, one of x0 no score at sigma = 0: ValueError where one is asked
        for."""
        m, by, in_x0 = self.level, score if x0 is None else x0, x0 is not None
        if not in_x0 and {"x0", "v", "velocity"} & set(self.given):
            self._refuse(m.alpha, "x0 of a guided score", "alpha = 0", "eps or the score itself")
        if in_x0 and {"eps", "score", "v"} & set(self.given):
            self._refuse(m.sigma, "a shifted score", "sigma = 0", "x0 or velocity")
        rates: dict[str, Callable[[], Any]] = {
            "x0": lambda: 1.0 if in_x0 else m.sigma**2 / m.alpha,
            "eps": lambda: -m.alpha / m.sigma if in_x0 else -m.sigma,
            "score": lambda: m.alpha / m.sigma**2 if in_x0 else 1.0,
            "v": lambda: -(m.alpha**2 + m.sigma**2) * (1 / m.sigma if in_x0 else m.sigma / m.alpha),
            "velocity": lambda: m.dalpha - m.dsigma * m.alpha / m.sigma if in_x0 else -0.5 * m.g2}
        return Prediction(self.x, m, **{k: self._known[k] + rates[k]() * by for k in self.given})

    def rescaled(self, y: Any, level: NoiseLevel, scale: float) -> Prediction:
        """The same statement about y = scale x, at the level of y's own process (x0 and eps are common to both)."""
        known = {k: self._known[k] for k in self.given if k in ("x0", "eps")}
        if "score" in self.given:
            known["score"] = self._known["score"] / scale
        return Prediction(y, level, **(known or {"x0": self.x0, "eps": self.eps}))


def _slopes(m: NoiseLevel) -> tuple[Any, Any]:
    """(a, b) proportional to (1, sigma'), finite where sigma' is not (VP at t = 0, where sigma sigma' is)."""
    if isinstance(m.dsigma, Tensor) or math.isfinite(m.dsigma):
        return 1.0, m.dsigma
    return 2 * m.sigma, m.dvariance


class Score(Protocol):
    """Callable[[Tensor, NoiseLevel], Prediction]: a network adapter, an exact target, or a guidance of either. One that calls a network
    more or less than once says so: ``calls_at(level)``."""

    def __call__(self, x: Any, level: NoiseLevel, /) -> Prediction: ...


def calls_at(score: Any, level: NoiseLevel) -> int:
    """Network calls of one evaluation of a score: one, unless it says otherwise."""
    says = getattr(score, "calls_at", None)
    return 1 if says is None else says(level)


def cut(condition: Any, start: int, stop: int) -> Any:
    """A condition's rows start..stop, where it has a row for each sample."""
    return condition[start:stop] if isinstance(condition, Tensor) and condition.ndim else condition


def spread(condition: Any, rows: int) -> Any:
    """A condition for ``rows`` states: one of B samples is repeated for n B states, n of every sample in blocks of B."""
    if isinstance(condition, Tensor) and condition.ndim > 0 and 0 < len(condition) < rows and rows % len(condition) == 0:
        return condition.repeat(rows // len(condition), *[1] * (condition.ndim - 1))
    return condition


# Whether the Jacobian of a call will be read. A network that gives no gradient is then refused where its own output is seen: x0 has one of
# its own through x, whatever the network did, unless x0 is what it predicts.
_DIFFERENTIATED: ContextVar[bool] = ContextVar("differentiated", default=False)


@contextlib.contextmanager
def differentiated() -> Iterator[None]:
    """Gradients are enabled, and a network without one is refused."""
    token = _DIFFERENTIATED.set(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _DIFFERENTIATED.reset(token)


def pullback(score: Score, x: Tensor, level: NoiseLevel) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """What ``score`` says about x (B, *D), and v -> J^T v for its Jacobian J = d x0/dx, sample by sample: one backward pass each. Gradients
    flow on where they are asked for (x requires them and they are enabled); else all is detached."""
    graph = torch.is_grad_enabled() and x.requires_grad
    with differentiated():
        at = x if graph else x.detach().clone().requires_grad_()
        p = score(at, level)
        x0 = p.x0

    def pull(v: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(x0, at, v if graph else v.detach().clone(), create_graph=graph, retain_graph=True)[0]

    if graph:
        return p, pull
    return Prediction(x, p.level, **{k: p._known[k].detach() for k in p.given}), pull


Classifier = Callable[[Tensor, NoiseLevel], Tensor]         # noise-aware: (x, level) -> logits (B, C)
PREDICTS = (*QUANTITIES, "edm")
TimeInput = str | Callable[[NoiseLevel], Any]
_TIME_INPUTS: dict[str, Callable[[NoiseLevel], Any]] = {
    "t": lambda m: m.t,
    "lam": lambda m: m.lam,
    "sigma": lambda m: m.sigma,
    "index": lambda m: m.t - 1,
    "edm": lambda m: -0.25 * m.lam,                    # log(sigma/alpha)/4, Karras et al. 2022, Table 1
}


class _Timed:
    """A network that is told the noise level."""

    network: Callable[..., Any]
    time_input: TimeInput

    @property
    def name(self) -> str:
        return getattr(self.network, "__name__", type(self.network).__name__)

    def dtype_of(self, x: Tensor) -> torch.dtype:
        """The dtype that the network is called in: that of its parameters, else x's."""
        return _parameter_dtype(self.network) or x.dtype

    def _time(self, level: NoiseLevel, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        read = _TIME_INPUTS[self.time_input] if isinstance(self.time_input, str) else self.time_input
        value = read(level)
        if isinstance(value, Tensor):
            if self.time_input == "index" and bool(((value - value.round()).abs() < 1e-9).all()):
                value = value.round().long()
            return value.reshape(-1).expand(batch).to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
        if self.time_input == "index" and abs(value - round(value)) < 1e-9:
            return torch.full((batch,), round(value), dtype=torch.int64, device=device)
        if isinstance(value, int):
            return torch.full((batch,), value, dtype=torch.int64, device=device)
        return torch.full((batch,), value, dtype=dtype, device=device)


@dataclass(frozen=True)
class NetworkScore(_Timed):
    """A network as a Score; made by ``from_network``. ``tuned``: methods tuned to it, by the network calls they
    take, or the file that they are kept in."""

    network: Callable[..., Any]
    predicts: str
    time_input: TimeInput
    sigma_data: float = 0.5
    conditions: Mapping[str, Any] = field(default_factory=dict)
    autocast: torch.dtype | None = None
    tuned: Any = field(default_factory=dict, compare=False, repr=False)

    def condition(self, **conditions: Any) -> NetworkScore:
        """The same score with more conditions: tensors (B, ...) or scalars, passed to the network by keyword."""
        return dataclasses.replace(self, conditions={**self.conditions, **conditions})

    def cast(self, autocast: torch.dtype) -> NetworkScore:
        """The same score with the network under ``torch.autocast`` in that dtype."""
        return dataclasses.replace(self, autocast=autocast)

    def rows(self, start: int, stop: int) -> NetworkScore:
        """The same score for the samples start..stop of a batch: its batch-shaped conditions are sliced."""
        return dataclasses.replace(self, conditions={k: cut(v, start, stop) for k, v in self.conditions.items()})

    def conditions_of(self, rows: int) -> dict[str, Any]:
        """The conditions of ``rows`` states. Conditions of B samples are repeated for n B states, n of every sample in blocks of B: row r
        belongs to sample r % B. Any other mismatch is the network's to refuse."""
        if not self.conditions:
            return {}
        return {k: spread(v, rows) for k, v in self.conditions.items()}

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        m, dtype = level.to(x), self.dtype_of(x)
        with self.autocasting(x.device):
            out = self.ask(self.feed(x, m), self._time(level, len(x), dtype, x.device), self.conditions_of(len(x)), dtype, level)
        return self.interpret(x, m, out)

    def feed(self, x: Any, m: NoiseLevel) -> Any:
        """What the network is given for x."""
        return x / self._scale(m) if self.predicts == "edm" else x

    def interpret(self, x: Any, m: NoiseLevel, out: Any) -> Prediction:
        """What the network's output for x means; ``x`` and ``out`` may be any vectors that add and scale."""
        if self.predicts != "edm":
            return Prediction(x, m, **{self.predicts: out})
        scale, s = self._scale(m), self.sigma_data     # x0 and eps are both stable at both ends, so both are given
        return Prediction(x, m, x0=(m.alpha * s**2 / scale**2) * x + (m.sigma * s / scale) * out,
                          eps=(m.sigma / scale**2) * x - (m.alpha * s / scale) * out)

    def _scale(self, m: NoiseLevel) -> Any:
        return (m.sigma**2 + (m.alpha * self.sigma_data)**2)**0.5

    def autocasting(self, device: torch.device) -> Any:
        """The context of a call, or of a run of calls, which then casts the weights once."""
        return torch.autocast(device.type, self.autocast) if self.autocast is not None else contextlib.nullcontext()

    def ask(self, x: Tensor, c: Tensor, conditions: Mapping[str, Any], dtype: torch.dtype, level: NoiseLevel) -> Tensor:
        """The network's own output in x's dtype, checked; ``level`` is for the message."""
        fed = x if x.dtype is dtype else x.to(dtype)
        if fed is x and x.is_inference():              # no version counter tells whether the network wrote into it
            fed = x.clone()
        version = None if fed.is_inference() else fed._version
        return self.checked(self.network(fed, c, **conditions), fed, version, x, level)

    def checked(self, out: Any, fed: Tensor, version: int | None, x: Tensor, level: NoiseLevel) -> Tensor:
        """What the network returned for x, in x's dtype; ``fed``, what it was given, was at ``version``. NetworkError where it is no
        such tensor, not finite, or the input was changed."""
        return _returned(f"network {self.name} at t={show(level.t)}", out, x, fed, version)

    def times(self, levels: Sequence[NoiseLevel], batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
        """The time inputs (B,) of a run's calls, one after the other, each the network's own: one transfer to the device, and memory that
        does not grow with the number of calls."""
        table = self.time_table(levels, dtype, device)
        if table is None:
            yield from (self._time(level, batch, dtype, device) for level in levels)
            return
        block = max(1, 16384 // max(1, batch))
        for first in range(0, len(table), block):
            yield from table[first:first + block, None].expand(-1, batch).clone(memory_format=torch.contiguous_format).unbind()

    def time_table(self, levels: Sequence[NoiseLevel], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The numbers that the network is conditioned on, (calls,); None where they are of several kinds, or tensors."""
        read = _TIME_INPUTS[self.time_input] if isinstance(self.time_input, str) else self.time_input
        values = [read(level) for level in levels]
        if self.time_input == "index":
            values = [round(v) if abs(v - round(v)) < 1e-9 else v for v in values]
        whole = {isinstance(v, int) for v in values}
        if len(whole) != 1 or any(isinstance(v, Tensor) for v in values):
            return None
        return torch.tensor(values, dtype=torch.int64 if True in whole else dtype, device=device)


def from_network(network: Callable[..., Any], predicts: str = "eps", *, time_input: TimeInput | None = None,
                 conditions: Mapping[str, Any] | None = None, sigma_data: float = 0.5,
                 autocast: torch.dtype | None = None) -> NetworkScore:
    """Any callable as a Score. It is called as ``network(x, c, **conditions)`` with x (B, *D) in the network's own dtype
    (that of its parameters, else x's) and c (B,), and returns a tensor shaped as x.

    Parameters
    ----------
    predicts : "eps", "x0", "score", "v", "velocity", or "edm" (the raw F of Karras et al. 2022; its input is scaled by c_in,
        ``sigma_data`` is that of its preconditioning).
    time_input : what c is. "t" (default), "lam" (log(alpha/sigma)), "sigma", "index" (the DDPM integer of a chain process:
        int64 at a knot, a fraction between knots), "edm" (log(sigma/alpha)/4, the default with predicts="edm"), or a function
        of the level.
    conditions : passed by keyword; tensors have a leading batch axis, and are repeated where a method asks about several states of each
        sample at once (in blocks of the batch). ``sample(..., conditions=...)`` adds to them.
    autocast : torch.bfloat16 or torch.float16: the network runs under ``torch.autocast`` in that dtype. The state keeps its own.

    Raises TypeError or ValueError on a wrong argument; faults of the network at a call raise ``NetworkError``.
    """
    choice("predicts", predicts, PREDICTS)
    if time_input is None:
        time_input = "edm" if predicts == "edm" else "t"
    _told(network, time_input)
    real("sigma_data", sigma_data, 0.0, low_open=True)
    given = names("conditions", conditions, "{'y': labels}")
    return NetworkScore(network, predicts, time_input, sigma_data, given, autocast_dtype(autocast))


def _told(network: Any, time_input: TimeInput) -> None:
    """Checks a network and what it is told of the level."""
    if not callable(network):
        raise TypeError(f"network={type(network).__name__}: expected a callable network(x, c, **conditions).")
    if not callable(time_input):
        choice("time_input", time_input, _TIME_INPUTS)


def autocast_dtype(value: Any) -> torch.dtype | None:
    """A dtype that autocast knows, or None. Raises TypeError on anything else."""
    if value is not None and not (isinstance(value, torch.dtype) and value in (torch.bfloat16, torch.float16)):
        raise TypeError(f"autocast={shown(value)}: expected torch.bfloat16, torch.float16 or None.")
    return value


@dataclass(frozen=True)
class NetworkClassifier(_Timed):
    """A network as a noise-aware classifier, (x, level) -> logits (B, C); made by ``from_classifier``."""

    network: Callable[..., Any]
    time_input: TimeInput

    def __call__(self, x: Tensor, level: NoiseLevel) -> Tensor:
        dtype = self.dtype_of(x)
        return self.network(x.to(dtype), self._time(level, len(x), dtype, x.device))


def from_classifier(network: Callable[..., Any], *, time_input: TimeInput = "lam") -> NetworkClassifier:
    """Any callable as a classifier of noised x. It is called as ``network(x, c)`` with x (B, *D) in its own dtype and c (B,), what
    ``time_input`` names as in ``from_network``, and returns logits (B, C). Raises TypeError or ValueError on a wrong argument."""
    _told(network, time_input)
    return NetworkClassifier(network, time_input)


def log_posterior(classifier: Classifier, x: Tensor, level: NoiseLevel) -> Tensor:
    """log p(y | x_t) of every class (B, C) in x's dtype, from a classifier's logits; NetworkError where they are none."""
    logits = classifier(x, level)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(f"{named(classifier, level)}: returned {given}; expected logits of shape ({len(x)}, C).")
    if not logits.is_floating_point() or logits.device != x.device:
        raise NetworkError(f"{named(classifier, level)}: returned {logits.dtype} on {logits.device}; expected floating logits on "
                           f"{x.device}.")
    return logits.to(x.dtype).log_softmax(1)


def named(classifier: Classifier, level: NoiseLevel) -> str:
    """A classifier at a time, in words."""
    name = getattr(classifier, "name", None) or getattr(classifier, "__name__", type(classifier).__name__)
    return f"classifier {name} at t={show(level.t)}"


@dataclass(frozen=True)
class FunctionScore:
    """A score given as a formula; made by ``from_score``."""

    function: Callable[[Tensor, Any], Tensor]

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        m = level.to(x)
        return self.interpret(x, m, self.ask(x, m.t, {}, x.dtype, m))

    def interpret(self, x: Any, m: NoiseLevel, out: Any) -> Prediction:
        """What the function's value for x means."""
        return Prediction(x, m, score=out)

    def ask(self, x: Tensor, t: Any, conditions: Mapping[str, Any], dtype: torch.dtype, level: NoiseLevel) -> Tensor:
        """The function's value at x and t, checked; ``level`` is for the message. A function has no conditions and no dtype of its own."""
        version = None if x.is_inference() else x._version
        return self.checked(self.function(x, t), x, version, x, level)

    def checked(self, out: Any, fed: Tensor, version: int | None, x: Tensor, level: NoiseLevel) -> Tensor:
        """What the function returned for x, as for a network."""
        return _returned(f"score function at t={show(level.t)}", out, x, fed, version)


def from_score(function: Callable[[Tensor, Any], Tensor]) -> FunctionScore:
    """A Score from ``function(x, t)`` = grad log p_t(x), shaped as x. t is a float, or a tensor (B, 1, ..., 1) that
    broadcasts against x where times differ per sample. Raises TypeError on what is not callable."""
    if not callable(function):
        raise TypeError(f"function={function!r}: expected a callable of (x, t), such as lambda x, t: -x.")
    return FunctionScore(function)


def _returned(where: str, out: Any, x: Tensor, fed: Tensor, version: int | None) -> Tensor:
    """What a model returned for x, in x's dtype; ``fed``, what it was given, was at ``version`` (None: nothing tells). Broadcastable shapes
    are refused like any other wrong shape."""
    if version is not None and fed._version != version:
        raise NetworkError(f"{where}: changed its input in place, which would corrupt the trajectory; let it work on x.clone().")
    if isinstance(out, Tensor) and _DIFFERENTIATED.get() and not out.requires_grad:
        raise NetworkError(f"{where}: its output has no gradient with respect to x, which this method needs; expected a network that is "
                           "not run under torch.no_grad() and does not detach x.")
    if not isinstance(out, Tensor):
        raise NetworkError(f"{where}: returned {type(out).__name__}; expected one tensor of shape {tuple(x.shape)}.")
    if out.shape != x.shape:
        raise NetworkError(f"{where}: returned shape {tuple(out.shape)}; expected {tuple(x.shape)}, that of x.")
    if not out.is_floating_point():
        raise NetworkError(f"{where}: returned dtype {out.dtype}; expected a real floating dtype.")
    if out.device != x.device:
        raise NetworkError(f"{where}: returned a tensor on {out.device}; x is on {x.device}.")
    return out.to(x.dtype)


def _parameter_dtype(network: Any) -> torch.dtype | None:
    """The dtype of the first floating parameter. ``network.parameters()`` would cost a tenth of a short run."""
    modules = [network] if isinstance(network, torch.nn.Module) else []
    while modules:
        module = modules.pop()
        for p in module._parameters.values():
            if p is not None and p.is_floating_point():
                return p.dtype
        modules.extend(m for m in reversed(module._modules.values()) if m is not None)
    return None


def show(t: Any) -> str:
    """A time, or the range of several, in words."""
    if isinstance(t, (int, float)):
        return f"{t:.6g}"
    return f"{t.min().item():.6g}..{t.max().item():.6g}" if t.numel() else "no time"
