r"""What a solver does to Gaussian data: its output's law and its error, in closed form, without samples and without Monte Carlo.

On data N(m, S) what a perfect network says is affine, and in the eigenbasis of S every eigenvalue c moves alone: V = alpha^2 c + sigma^2,

    x0 = (sigma^2 m + alpha c x)/V,     score = -(x - alpha m)/V,                                                       (1)

which cancel nowhere, not at alpha = 0 nor at sigma = 0. A fixed-step solver is linear in (start, outputs, noises), so its output is
A x + b m + sum_j w_j xi_j. Its tape (``solvers.tracing``) is read backwards once for all eigenvalues: a value's adjoint is the coefficient
with which it enters the output, the start's is A, a draw's is w_j, and each call passes its own on by (1). From a start N(mu, v),

    output   N(A mu + b m, A^2 v + sum_j w_j^2),          exact   N(alpha_s m, V_s),
    W2^2   = (difference of means)^2 + (difference of standard deviations)^2,
    KL     = (r - log(1 + r))/2 + (difference of means)^2/(2 V_s),     r = output variance/V_s - 1,                     (2)
    RMSE^2 = (A - F)^2 v + (A mu + b m - alpha_s m - F (mu - alpha_t m))^2,     F = sqrt(V_s/V_t),

the last path by path, for a deterministic method against the probability flow x -> alpha_s m + F (x - alpha_t m) of the same start.

References: Särkkä & Solin 2019, ch. 6; Pierret & Galerne 2025 (arXiv:2405.14250), W2 errors of schemes on Gaussian data; Sabour et al. 2024
(arXiv:2404.14507) and Xue et al. 2024 (arXiv:2402.17376) on grids chosen by an error.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .contracts import MOST, flags, integer, names, numbers, sequence, state
from .grids import GRIDS, checked
from .grids import grid as as_grid
from .recipes import Method
from .recipes import method as as_method
from .recipes import methods as registered
from .sampling import prepared, times_of
from .score import Prediction
from .sde import SDE, NoiseLevel
from .solvers.tracing import Call, Define, Draw, Tape, Term, tape
from .targets import Target

F64 = torch.float64
BAND = tuple(np.geomspace(1e-4, 4.0, 25).tolist())      # see gaussian_error
STEP = 3e-3                                             # of differences in a time, relative to the distance to the nearest other, or to 0


class Total(NamedTuple):
    """Errors of the whole vector: root sums of squares over the spectrum, and for ``kl`` the sum, each eigenvalue counted as often as it
    occurs. ``path_rmse`` is None for a stochastic method."""

    w2: Tensor
    kl: Tensor
    path_rmse: Tensor | None


@dataclass(frozen=True, eq=False)
class GaussianError:
    """A method's output on Gaussian data; float64 tensors (E,), one number for each eigenvalue ``spectrum`` of the data's covariance.

    ``multiplicity``: how often an eigenvalue occurs. ``times``, the grid; ``calls`` of the network; ``stochastic``, whether noise is drawn.
    ``gain`` A and ``flow_gain`` F: what a displacement of the start becomes, by the method and by the exact flow. ``mean``, ``variance``:
    of the output; ``exact_mean``, ``exact_variance``: of the law at the last time; ``flow_mean``: to where the exact flow takes the
    start's mean; ``start_variance``."""

    spectrum: Tensor
    multiplicity: Tensor
    times: tuple[float, ...]
    calls: int
    stochastic: bool
    gain: Tensor
    flow_gain: Tensor
    mean: Tensor
    flow_mean: Tensor
    exact_mean: Tensor
    variance: Tensor
    exact_variance: Tensor
    start_variance: Tensor

    @property
    def w2(self) -> Tensor:
        """Wasserstein-2 distance of output and exact law, in each eigendirection."""
        return torch.hypot(self.mean - self.exact_mean, self.variance.sqrt() - self.exact_variance.sqrt())

    @property
    def kl(self) -> Tensor:
        """KL(output || exact) in nats, in each eigendirection."""
        excess = (self.variance - self.exact_variance) / self.exact_variance
        return (_above_log(excess) + (self.mean - self.exact_mean).square() / self.exact_variance) / 2

    @property
    def path_rmse(self) -> Tensor:
        """Root-mean-square distance to the probability-flow endpoint of the same start, in each eigendirection. ValueError for a
        stochastic method, whose paths have no such endpoint."""
        if self.stochastic:
            raise ValueError("path_rmse: a stochastic method's paths end where its noise takes them, not at the flow's endpoint; "
                             "expected a deterministic method such as 'ddim', or .w2 and .kl, the errors of the law.")
        return torch.hypot((self.gain - self.flow_gain) * self.start_variance.sqrt(), self.mean - self.flow_mean)

    @property
    def total(self) -> Total:
        """The errors of the whole vector."""
        whole = lambda e: (self.multiplicity * e.square()).sum().sqrt()
        return Total(whole(self.w2), (self.multiplicity * self.kl).sum(), None if self.stochastic else whole(self.path_rmse))


def _above_log(r: Tensor) -> Tensor:
    """r - log(1 + r) for r >= -1, without cancellation: with s = r/(2 + r) it is r s - 2 (s^3/3 + s^5/5 + ...)."""
    s = torch.where(r.abs() < 0.25, r / (2 + r), 0.0)           # |s| < 1/7: the next term is below 1e-17 of the first
    series = r * s - 2 * sum(s**k / k for k in range(3, 21, 2))
    return torch.where(r.abs() < 0.25, series, r - torch.log1p(r))


def gaussian_error(method: str | Method, sde: SDE, steps: int | None = None, *, nfe: int | None = None, grid: Any = None,
                   times: Sequence[float] | Tensor | None = None, t_start: float | None = None, t_end: float | None = None,
                   spectrum: Any = None, mean: Any = 0.0, multiplicity: Any = 1.0, prior: bool = False, **options: Any) -> GaussianError:
    """The exact law and error of a method's output on Gaussian data, in some milliseconds.

        gaussian_error("dpm++2m", sdediff.VPSDE(), nfe=10, spectrum=spectrum_of(data)).total.w2

    Parameters
    ----------
    method, steps | nfe, grid, t_start, t_end, options : as for ``sample``.
    times : instead of these, the decreasing times themselves. Where they are a float64 tensor that requires a gradient, the results
        carry it: by central differences of fourth order, good to about 1e-9, at four runs for each time. The errors are smooth in the
        times but for two places: a knot of a discrete chain, where the derivative is the mean of both sides', and a step of 0.5 in lambda,
        up to which ``Start`` takes its extra stages. A time at which alpha or sigma is zero is held fixed: its derivative is given as 0.
    spectrum : variances of the data (E,), eigenvalues of their covariance: ``spectrum_of(data)``. By default 25 of them, equally spaced in
        their logarithm from 1e-4 to 4, so that no scale has more say than another. Data scaled to a variance of about one have theirs
        there: 4 is a direction of twice the width, and below 1e-4 one is narrower than the noise that is left at VPSDE's t_min.
    mean : of the data in each eigendirection; a number or (E,).
    multiplicity : how often each eigenvalue counts in ``total``; a number or (E,).
    prior : start from the process's prior, as ``sample`` does with ``shape=``, so that its mismatch is part of the errors of the law. By
        default from the exact law at the first time.

    ValueError for a method that is not linear in its vectors (adaptive, Rosenbrock, Metropolis-adjusted, by norms), and for wrong numbers.
    TypeError for times that are not float64.
    """
    flags(prior=prior)
    recipe, *_ = prepared(sde, _unasked, method, None, options)
    if recipe.solver.adaptive or recipe.solver.looks_ahead:
        raise _not_linear(recipe, "it chooses its own network calls")
    if times is None:
        knots = times_of(recipe, sde, steps, nfe, grid, t_start, t_end)
    elif any(v is not None for v in (steps, nfe, grid, t_start, t_end)):
        raise ValueError("times: it lists the grid; expected none of steps, nfe, grid, t_start and t_end beside it.")
    else:
        knots = checked(sde, times.tolist() if isinstance(times, Tensor) else times)
    c = _spectrum(spectrum)
    m, count = _numbers("mean", mean, len(c)), _numbers("multiplicity", multiplicity, len(c), low=0.0)

    def law(traced: Tape, levels: Sequence[NoiseLevel]) -> Tensor:
        return torch.from_numpy(_law(traced, levels, c.numpy(), m.numpy(), sde.prior_std(levels[0]) if prior else None))

    levels = sde.levels(knots)
    traced = _traced(recipe, sde, levels)
    rows = law(traced, levels)
    if isinstance(times, Tensor) and times.requires_grad:
        if times.dtype != F64:
            raise TypeError(f"times.dtype={times.dtype}: differences in float64 stand behind the gradient; expected times.double().")
        rows = _InTimes.apply(times, rows, levels, sde.t_max, lambda at: law(_traced(recipe, sde, at := sde.levels(at)), at))
    calls, draws = (sum(isinstance(e, kind) for step in traced.steps for e in step) for kind in (Call, Draw))
    return GaussianError(c, count, tuple(knots), calls, draws > 0, *rows)


def _unasked(x: Tensor, level: NoiseLevel) -> Prediction:
    raise AssertionError("the analysis asks no network")


def _not_linear(recipe: Method, why: str) -> ValueError:
    return ValueError(f"method={recipe.name!r}: {why}, and so has no coefficients to read off; expected fixed steps that are linear in the "
                      "state, such as 'ddim', 'dpm++2m', 'heun', 'eab-3', 'ddpm' or 'pc'.")


def _traced(recipe: Method, sde: SDE, levels: Sequence[NoiseLevel]) -> Tape:
    """The method's tape for a network that says x0 and the score."""
    try:
        return tape(recipe.solver, sde, levels, eta=recipe.eta, feed=lambda x, level: x, outputs=2, folds=frozenset({"increment", "area"}),
                    interpret=lambda x, level, x0, score: Prediction(x, level, x0=x0, score=score))
    except (TypeError, AttributeError) as error:
        raise _not_linear(recipe, f"its step takes more than sums and multiples ({str(error).rstrip('.')})") from error


def _law(traced: Tape, levels: Sequence[NoiseLevel], c: np.ndarray, m: np.ndarray, prior: float | None) -> np.ndarray:
    """The fields of ``GaussianError`` from ``gain`` on, (8, E), from the tape read backwards."""
    first, last = levels[0], levels[-1]
    total = lambda level: level.alpha**2 * c + level.sigma**2
    adjoint: dict[Term, Any] = {traced.states[-1]: np.ones_like(c)}
    offset, noise = np.zeros_like(c), np.zeros_like(c)

    def spread(form: Mapping[Term, float], w: Any) -> None:
        for term, k in form.items():
            adjoint[term] = adjoint.get(term, 0.0) + k * w

    for event in (e for step in reversed(traced.steps) for e in reversed(step)):
        if isinstance(event, Call):                     # (1)
            (x0, score), level = (adjoint.pop(v, 0.0) for v in event.values), event.level
            offset += (level.sigma**2 * x0 + level.alpha * score) / total(level) * m
            spread(event.given, (level.alpha * c * x0 - score) / total(level))
        elif isinstance(event, Define):
            spread(event.form, adjoint.pop(event.value, 0.0))
        else:
            noise += np.square(adjoint.pop(event.value, 0.0))
    gain, flow = adjoint[("x",)], np.sqrt(total(last) / total(first))
    mu, v = (first.alpha * m, total(first)) if prior is None else (0.0 * m, np.full_like(c, prior**2))
    return np.stack([gain, flow, gain * mu + offset, last.alpha * m + flow * (mu - first.alpha * m), last.alpha * m,
                     gain**2 * v + noise, total(last), v])


class _InTimes(torch.autograd.Function):
    """``rows`` (R, E), which ``law`` makes of a list of times, as a function of ``times`` (N + 1,): a solver's scalars are floats, so the
    derivative is by differences of fourth order, from one side where the process ends."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, rows: Tensor, levels: Sequence[NoiseLevel], t_max: float, law: Callable[..., Tensor]) -> Tensor:
        ctx.levels, ctx.t_max, ctx.law, ctx.device = levels, t_max, law, times.device
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        at, slopes = [level.t for level in ctx.levels], []
        for i, level in enumerate(ctx.levels):
            h = STEP * min(abs(level.t - t) for t in (0.0, *at[max(0, i - 1):i + 2]) if t != level.t)    # sigma may be a root at 0
            side = 1 if level.t == 0 else -1 if level.t > ctx.t_max - 2 * h else 0
            moved = {} if math.isinf(level.lam) else _ONE_SIDED if side else _CENTRAL
            change = sum(w * ctx.law([*at[:i], level.t + k * (side or 1) * h, *at[i + 1:]]) for k, w in moved.items())
            slopes.append((gradient * change).sum() / (12 * h * (side or 1)) if moved else gradient.new_zeros(()))
        return torch.stack(slopes).to(ctx.device), None, None, None, None


_CENTRAL = {-2: 1.0, -1: -8.0, 1: 8.0, 2: -1.0}
_ONE_SIDED = {0: -25.0, 1: 48.0, 2: -36.0, 3: 16.0, 4: -3.0}


# -- spectra and rankings -------------------------------------------------------------------------------------------
def spectrum_of(data: Tensor | Target) -> Tensor:
    """The eigenvalues (d,) of the covariance of data (n, *D), d = prod(D), or of a target; ascending, float64, none below zero. Of a
    covariance matrix itself they are ``torch.linalg.eigvalsh(cov)``."""
    if isinstance(data, Target):
        return torch.linalg.eigvalsh(data.cov).clamp(min=0)
    x = state("data", data, rank=2).detach().to("cpu", F64).flatten(1)
    found = torch.linalg.svdvals(x - x.mean(0)).square() / len(x)
    return torch.nn.functional.pad(found, (0, x.shape[1] - len(found))).flip(0)


class Ranked(NamedTuple):
    """A method by name with its options, on a grid, and its predicted error."""

    name: str
    options: dict[str, Any]
    grid: Any
    error: GaussianError


def ranking(sde: SDE, *, nfe: int, spectrum: Any = None, methods: Iterable[str | tuple[str, Mapping[str, Any]]] | None = None,
            grids: Iterable[Any] = tuple(GRIDS), stochastic: bool = False, **how: Any) -> list[Ranked]:
    """Methods on grids by their predicted error at ``nfe`` network calls, best first: by ``total.path_rmse``, or ``total.w2`` of
    ``stochastic`` ones.

    ``methods``: names, or pairs of a name and options; by default all that are registered. Left out are those of the other kind, those
    that are not linear, pairs that do not exist (a chain's grid elsewhere, a step that takes more calls than there are), and errors that
    are no finite numbers; where nothing is left, the last reason is raised. ``how``: as for ``gaussian_error`` (t_start, t_end, mean,
    multiplicity, prior). Raises ValueError where nothing is left.
    """
    c, found = _spectrum(spectrum), list[Ranked]()
    flags(stochastic=stochastic)
    integer("nfe", nfe, 1, MOST)
    entries = registered() if methods is None else sequence("methods", methods, "['ddim', 'heun'], names of methods")
    for one in (built := sequence("grids", grids, "['logsnr', 'karras'], names of grids or instances")):
        as_grid(one)
    reason = f"no method is {'stochastic' if stochastic else 'deterministic'}"
    for entry in entries:
        pair: Any = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
        name, options = pair[0], names("methods", pair[1], "{'eta': 0.5}")
        if name == "mala" or as_method(name, **options).stochastic != stochastic:         # mala is no method without a density
            continue
        for grid in built:
            try:
                predicted = gaussian_error(name, sde, nfe=nfe, grid=grid, spectrum=c, **how, **options)
            except ValueError as error:
                reason = str(error)
            else:
                found.append(Ranked(name, options, grid, predicted))
    if not found:
        raise ValueError(f"methods, grids: nothing to rank; the last reason: {reason}")
    value = lambda entry: float(getattr(entry.error.total, "w2" if stochastic else "path_rmse"))
    return sorted((entry for entry in found if math.isfinite(value(entry))), key=value)


def _spectrum(given: Any) -> Tensor:
    return _numbers("spectrum", BAND if given is None else given, low=0.0)


def _numbers(name: str, value: Any, count: int | None = None, low: float = -math.inf) -> Tensor:
    """Float64 numbers (E,); with ``count``, that many, or one for all."""
    v, _ = numbers(name, value)
    wanted = "(E,), variances such as spectrum_of(data)" if count is None else f"a number or ({count},), one for each eigenvalue"
    if v.ndim > 1 or (count is None and not v.ndim) or (count is not None and v.ndim == 1 and len(v) != count):
        raise ValueError(f"{name}.shape={tuple(v.shape)}: expected {wanted}.")
    if not bool((torch.isfinite(v) & (v >= low)).all()) or not v.numel():
        raise ValueError(f"{name}={v.tolist()}: expected finite numbers{f' >= {low:g}' if low > -math.inf else ''}, {wanted}.")
    return v.reshape(-1) if count is None else v.expand(count)
