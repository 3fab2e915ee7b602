r"""Likelihood: log densities by the probability flow, and lower bounds by the reverse SDE, each with its error.

*Density.* With Delta the change of the log density along the flow from x at t_end up to x_T (theory, eq. (25)),

    log p(x) = log pi(x_T) - Delta,      dDelta/dt = -div v,                                                  theory, eq. (26)

where pi is N(0, prior_std^2 I), or the process's true marginal where that is known. p is the law at t_end of the flow started in pi.

*Divergence.* J = dv/dx is seen through products u^T J, one backward pass each, chunks of them at once:

    exact        sum_i e_i^T J e_i                                                            d products
    hutchinson   u^T J u, E[u u^T] = I: rademacher variance 2 sum_{i != j} S_ij^2, gaussian 2 |S|_F^2, S = (J + J^T)/2
    hutch++      tr Q^T J Q + g^T (I - Q Q^T) J (I - Q Q^T) g, Q an orthonormal basis of J^T s for normal probes s, a third of all

Probes belong to a sample's seed and are fixed along the path. Each carries an integral of its own, an unbiased estimate of log p on one
and the same path x_t, so their mean and spread are an estimate and its standard error. (hutch++: unbiased given Q, hence over all.)

*Bounds* (theory, eq. (27)). For the path measure q of the process from data x_0, and p of the reverse SDE from pi, with r_x =
|x_0 - x0_hat|^2,

    -KL(q||p) = -KL(q(x_T|x_0)||pi) - int E r_x d(SNR)/2            over [t_end, T]           (continuous)
    -KL(q||p) = -KL(q(x_T|x_0)||pi) - sum_i E r_x(t_i) (SNR_{i-1} - SNR_i)/2                  (a chain with posterior variance)

bound E[log p(x_{t_end}) | x_0] from below by -KL - H(q(x_{t_end}|x_0)), with equality for the exact score and prior (continuous). The
integral is estimated at random times; in lambda = log SNR/2 its rate is E|eps - eps_hat|^2, and half of the times follow the law of least
variance for Gaussian data, half are uniform in lambda, which bounds the weights (both laws in all weights: Veach & Guibas 1995). Times
are drawn two to a stratum, whose differences give the standard error.

*Bits.* Data on a lattice of width w have a discrete law, P(k) >= exp E_q log(p(x)/r(x)) for x ~ q(x|k), r(x) = sum_k q(x|k): noise makes
them continuous and its entropy is paid back. For x = k + uniform noise on the bin r = 1/w, so that

    bits/dim = -log p(x)/(d log 2) - log2 w.                theory, eq. (28)

References: Song et al. 2021 (arXiv:2011.13456), App. D.2; Hutchinson 1990; Meyer et al. 2021 (arXiv:2010.09649); Song et al. 2021b
(arXiv:2101.09258), Thm 3; Huang et al. 2021 (arXiv:2106.02808); Kingma et al. 2021 (arXiv:2107.00630), App. A-B; Ho et al. 2020, eq. 5;
Theis et al. 2016 (arXiv:1511.01844) for dequantisation.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import contracts, random
from .equation import with_density
from .progress import bar
from .recipes import Method
from .sampling import check_conditions, iterate, prepared, times_of
from .score import Score
from .sde import SDE, NoiseLevel, likelihood_law

DIVERGENCES, LAWS = ("exact", "hutchinson", "hutch++"), ("rademacher", "gaussian")
AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 18}     # rows (products x samples) in one backward pass, about; one product at least
_PROBE, _TIME, _NOISE, _BINS = (1 << k for k in (17, 18, 19, 20))          # uses of a seed that are no solver's and no training's
Density = Callable[[Tensor, NoiseLevel], Tensor]


# -- the divergence ---------------------------------------------------------------------------------------------------
def products(v: Tensor, x: Tensor, u: Tensor, graph: bool = False) -> Tensor:
    """u_k^T dv/dx for vectors u (K, B, d): (K, B, d). v, x: (B, *D), row b of v a function of row b of x alone; ``graph``: to be
    differentiated again."""
    if not v.requires_grad:
        return torch.zeros_like(u)
    back = lambda w, several: torch.autograd.grad(v, x, w, retain_graph=True, create_graph=graph, is_grads_batched=several,
                                                  materialize_grads=True)[0]
    done = []
    for part in u.reshape(len(u), *v.shape).split(max(1, AT_ONCE.get(x.device.type, AT_ONCE["cpu"]) // max(1, len(x)))):
        try:
            done.append(back(part, True) if len(part) > 1 else back(part[0], False)[None])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:                    # an operation whose derivative is not batched
            done.append(torch.stack([back(w, False) for w in part]))
    return torch.cat(done).reshape(u.shape)


@dataclass(frozen=True)
class Divergence:
    """div v for ``with_density``: of ``kind``, through ``probes`` (K, B, d), None for the exact one. ``estimates``: how many it gives;
    ``products``: how many it takes."""

    kind: str
    probes: Tensor | None
    d: int

    @property
    def sketch(self) -> int:
        """Columns of the basis of hutch++: a third of its probes."""
        return 0 if self.probes is None or self.kind != "hutch++" else min(len(self.probes) // 3, self.d)

    @property
    def estimates(self) -> int:
        return 1 if self.probes is None else len(self.probes) - 2 * self.sketch

    @property
    def products(self) -> int:
        return self.d if self.probes is None else len(self.probes)

    def __call__(self, v: Tensor, x: Tensor, graph: bool) -> Tensor:
        if self.probes is None:
            return self._exact(v, x, graph)
        # methods that hold several states of each sample stack them in blocks of the batch
        u = self.probes.repeat(1, len(x) // max(1, self.probes.shape[1]), 1)
        s, u = u[:self.sketch], u[2 * self.sketch:]
        if not self.sketch:
            return (u * products(v, x, u, graph)).sum(2).T
        q = torch.linalg.qr(products(v, x, s, graph).permute(1, 2, 0))[0].permute(2, 0, 1)         # (k, B, d), orthonormal in k
        u = u - torch.einsum("kbi,kbd->ibd", torch.einsum("kbd,ibd->kbi", q, u), q)
        w = torch.cat([q, u])
        part = (w * products(v, x, w, graph)).sum(2).T
        return part[:, :len(q)].sum(1, keepdim=True) + part[:, len(q):]

    def _exact(self, v: Tensor, x: Tensor, graph: bool) -> Tensor:
        total = x.new_zeros(len(x), 1)
        rows = max(1, AT_ONCE.get(x.device.type, AT_ONCE["cpu"]) // max(1, len(x)))
        for i in torch.arange(self.d, device=x.device).split(rows):
            e = torch.nn.functional.one_hot(i, self.d).to(x)[:, None].expand(-1, len(x), -1)
            total = total + (e * products(v, x, e, graph)).sum((0, 2))[:, None]
        return total


def divergence(kind: str, probes: int | None, law: str, d: int, noise: random.Noise | None) -> Divergence:
    """A ``Divergence`` of d coordinates, its probes drawn from ``noise``, a source (B, d). Raises on wrong names and numbers. TypeError
    for types, ValueError for values."""
    contracts.choice("divergence", kind, DIVERGENCES)
    contracts.choice("law", law, LAWS)
    if kind == "exact":
        if probes is not None:
            raise ValueError(f"probes={probes!r}, divergence='exact': it has none; expected divergence='hutchinson' or 'hutch++' as well.")
        return Divergence(kind, None, d)
    n = contracts.integer("probes", 16 if probes is None else probes, 3 if kind == "hutch++" else 1)
    z = torch.stack([noise.at(k).normal(_PROBE) for k in range(n)])                             # type: ignore[union-attr]
    found = Divergence(kind, z, d)              # a sketch is normal: signs alone would often repeat, and span less than they seem to
    if law == "rademacher":
        z[2 * found.sketch:] = torch.where(z[2 * found.sketch:] < 0, -1.0, 1.0).to(z)
    return found


# -- data on a lattice --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bins:
    """A lattice of ``levels`` values in every coordinate: level k = 0, 1, ... is the bin [low + k w, low + (k + 1) w] of width
    w = (high - low)/levels. ``Bins(256)`` are 8-bit images on [-1, 1]."""

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        contracts.integer("levels", self.levels, 2, 2**32)
        contracts.real("low", self.low)
        contracts.real("high", self.high, self.low, low_open=True)

    @staticmethod
    def of(bits: int | Bins) -> Bins:
        """``bits`` of depth on [-1, 1], or the bins given."""
        return bits if isinstance(bits, Bins) else Bins(2**contracts.integer("bits", bits, 1, 32))

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / self.levels

    @property
    def centres(self) -> Tensor:
        """(levels,), float64."""
        return self.low + self.width * (torch.arange(self.levels, dtype=torch.float64) + 0.5)

    def check(self, x: Tensor) -> None:
        """ValueError unless x can be data plus uniform noise on their bins."""
        contracts.state("x", x)
        outside = (x < self.low - 1e-6) | (x > self.high + 1e-6)
        works = f"expected x = sdediff.dequantise(k, {self!r}, seed=0), k the integers 0 to {self.levels - 1}"
        if bool(outside.any()):
            raise ValueError(f"bits: x runs from {x.min():g} to {x.max():g}, the bins from {self.low:g} to {self.high:g}; {works}.")
        u = (x.double() - self.low) / (self.high - self.low)
        # values of a lattice: edges or centres of the bins, or the same number of points from end to end
        for lattice in (2 * self.levels * u, (self.levels - 1) * u):
            if x.numel() and float(((lattice - lattice.round()).abs() < 1e-3).double().mean()) > 0.5:
                raise ValueError(f"bits: x lies on a lattice of {self.levels} levels, where data have no density; {works}.")


def dequantise(k: Tensor, bits: int | Bins = 8, *, seed: random.Seed = None, dtype: torch.dtype | None = None) -> Tensor:
    """Integers k (B, *D) in 0..levels-1 with uniform noise on their bins, low + w (k + u), in [low, high): by default 8 bits on [-1, 1].
    A sample's noise belongs to its seed. Raises TypeError or ValueError on k that are no such integers."""
    bins = Bins.of(bits)
    whole = isinstance(k, Tensor) and k.ndim > 0 and k.dtype != torch.bool and not k.is_complex()
    if not whole or bool((k != k.round() if k.is_floating_point() else k != k).any()):
        raise TypeError(f"k={contracts.shown(k)}: expected a tensor (B, ...) of integers from 0 to {bins.levels - 1}.")
    dtype = contracts.dtype_of("dtype", dtype)
    if k.numel() and not 0 <= float(k.min()) <= float(k.max()) <= bins.levels - 1:
        raise ValueError(f"k runs from {k.min()} to {k.max()}; expected integers from 0 to {bins.levels - 1}, as bits={bits!r} says.")
    noise = random.source(seed, tuple(k.shape), dtype=torch.float64, device=k.device)
    u = torch.special.ndtr(noise.at(_BINS).within().initial()).clamp(2.0**-30, 1 - 2.0**-20)
    return (bins.low + bins.width * (k + u)).to(dtype)


def bits_per_dim(nats: Tensor, d: int, width: float = 1.0) -> Tensor:
    """-nats/(d log 2) - log2(width), for log densities ``nats`` of d coordinates and bins of ``width`` (1: none)."""
    contracts.floating("nats", nats)
    return -nats / (contracts.integer("d", d, 1) * math.log(2)) - math.log2(contracts.real("width", width, 0.0, low_open=True))


# -- the density ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LogProb:
    """``value`` (B,), log densities in nats; ``stderr`` (B,), standard errors from the probes: 0 for the exact divergence, NaN for one
    probe; ``error`` (B,), what refinement changed (None without ``refine``); ``latent`` (B, *D), the code x_T; ``nfe``, network calls
    counted, with ``products`` backward passes each; ``times``; ``seed``, that of the probes; ``explain``, what was computed, in words."""

    value: Tensor
    stderr: Tensor
    error: Tensor | None
    latent: Tensor
    nfe: int
    products: int
    times: tuple[float, ...]
    seed: int | tuple[int, ...] | None
    explain: str
    width: float = 1.0

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,): of the discrete data where bins were given (``bits``), else of the density."""
        return bits_per_dim(self.value, max(1, self.latent[0].numel()) if len(self.latent) else 1, self.width)


def log_prob(sde: SDE, score: Score, x: Tensor, *, method: str | Method = "rk45", steps: int | None = None, nfe: int | None = None,
             grid: Any = None, t_start: float | None = None, t_end: float | None = None, divergence: str = "exact",
             probes: int | None = None, law: str = "rademacher", seed: random.Seed = None, first: int = 0, prior: Density | None = None,
             bits: int | Bins | None = None, refine: bool = False, conditions: Mapping[str, Any] | None = None,
             progress: bool = False, **options: Any) -> LogProb:
    """Log density of x (B, *D) at t_end under the probability flow of a model, in nats.

        sde, target = sdediff.VPSDE(), sdediff.targets.Gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
        x = target.sample(5, seed=0, dtype=torch.float64)
        p = sdediff.log_prob(sde, target.score, x, rtol=1e-9, atol=1e-9, prior=target.log_prob)
        p.value - target.log_prob(x, sde.at(sde.t_min))         # 1e-8

    Parameters
    ----------
    method, steps, nfe, grid, t_start, t_end, conditions, options : as for ``sample``; a method for the probability flow, fixed or adaptive
        (an adaptive one takes one interval by default). The default end t_end is t_min, and the first knot of a discrete chain, whose
        clean level has no density.
    divergence : "exact", d backward passes a call; "hutchinson" or "hutch++", ``probes`` of them (default 16). The estimates are unbiased
        up to the solver's error; ``stderr`` has probes - 1 degrees of freedom (hutch++: a third of them).
    law : of the probes, "rademacher" or "gaussian".
    seed : of the probes, as for ``sample``; ``first``, the index of the first sample, from which an integer seed counts.
    prior : (x, level) -> (B,), the log density at t_start; by default that of N(0, prior_std^2 I). A target's ``log_prob`` makes the
        density that of the target itself.
    bits : x are data of this depth (or ``Bins``) with uniform noise on their bins (``dequantise``), for ``bits_per_dim``.
    refine : compute again, with twice the steps or a tenth of the tolerances, and return that with the differences as ``error``.

    Raises TypeError or ValueError on a wrong argument before the first network call; faults of the network as ``sample`` does.
    """
    contracts.flags(refine=refine, progress=progress)
    contracts.choice("divergence", divergence, DIVERGENCES), contracts.choice("law", law, LAWS), contracts.integer("first", first, 0)
    if probes is not None:
        contracts.integer("probes", probes, 1)
    recipe, eq, watched = prepared(sde, score, method, conditions, options, None, steps, nfe, t_start, t_end, grid, True)
    if recipe.solver.noise == "always" or not eq.is_ode:
        raise ValueError(f"method={recipe.name!r}: a likelihood follows the probability-flow ODE; expected a deterministic method such as "
                         "'rk45', 'heun' or 'dpm++2m' with eta=0.")
    contracts.state("x", x)
    if prior is not None and not callable(prior):
        raise TypeError(f"prior={prior!r}: expected a log density (x, level) -> (B,), such as target.log_prob, or None for a normal law.")
    bins = None if bits is None else Bins.of(bits)
    if bins is not None:
        bins.check(x)
    if steps is None and nfe is None and recipe.solver.adaptive and (grid is None or isinstance(grid, (str, type)) or callable(grid)):
        steps = 1
    listed = grid is not None and not isinstance(grid, (str, type)) and not callable(grid)
    if t_end is None and not listed and sde.at(sde.t_min).sigma == 0 and sde.knots:
        t_end = 1.0
    times = times_of(recipe, sde, steps, nfe, grid, t_start, t_end)[::-1]
    check_conditions({**getattr(score, "conditions", {}), **(conditions or {})}, len(x))
    inner = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    d, key = x[:1].numel() or math.prod(x.shape[1:]), None
    source = None
    if divergence != "exact":
        key = random.canonical_seed(seed, len(x)) if not isinstance(seed, torch.Generator) else seed
        source = random.source(key, (len(x), d), dtype=inner, device=x.device, first=first)
    trace = _divergence(divergence, probes, law, d, source)
    watched.batch = len(x)
    flow = with_density(eq, x.shape[1:], trace)
    run = lambda method, times: _run(flow, method, x.to(inner), sde, times, prior, trace.estimates, watched, progress)
    estimates, latent = run(recipe, times)
    error, calls = None, watched.calls
    if refine:
        coarse, (recipe, times) = estimates, _refined(recipe, eq, times, steps, nfe, grid, t_start, t_end)
        estimates, latent = run(recipe, times)
        error, calls = (estimates.mean(1) - coarse.mean(1)).abs(), watched.calls - calls
    watched.finish()
    n = trace.estimates
    stderr = torch.zeros_like(estimates[:, 0]) if trace.probes is None or trace.sketch >= d else \
        estimates.std(1) / math.sqrt(n) if n > 1 else torch.full_like(estimates[:, 0], math.nan)
    ends, end = sde.levels([times[-1], times[0]]), type(recipe.solver).__name__
    explain = (f"log density at t={times[0]:.6g} (sigma {ends[1].sigma:.4g}) by {recipe.name}: {end} on the probability flow of "
               f"{type(sde).__name__}, {len(times) - 1} steps to t={times[-1]:.6g}, {calls} network calls; divergence {divergence}, "
               f"{trace.products} products a call" + (f", {n} {law} estimates" if trace.probes is not None else "")
               + f"; prior {'given' if prior is not None else f'N(0, {sde.prior_std(ends[0]):.6g}^2 I)'}"
               + ("" if bins is None else f"; {bins.levels} levels on [{bins.low:g}, {bins.high:g}], uniform dequantisation")
               + ("" if error is None or not len(error) else f"; refinement changed it by at most {error.max().item():.2g} nats"))
    used = None if key is None or isinstance(key, torch.Generator) else key if isinstance(key, int) else tuple(key)
    return LogProb(estimates.mean(1), stderr, error, latent.to(x.dtype), calls, trace.products, tuple(times), used, explain,
                   1.0 if bins is None else bins.width)


_divergence = divergence                        # the argument of log_prob bears its name


def _run(flow: Any, recipe: Method, x: Tensor, sde: SDE, times: Sequence[float], prior: Density | None, n: int, watched: Any,
         progress: bool) -> tuple[Tensor, Tensor]:
    """n estimates of log p (B, n), and the code."""
    levels, flat = sde.levels(times), x.reshape(len(x), math.prod(x.shape[1:]))
    states: Any = iterate(flow, recipe.solver, torch.cat([flat, flat.new_zeros(len(x), n)], 1), levels)
    if progress:
        states = bar(len(levels), True, iterable=states, desc=f"log_prob {recipe.name}", unit="level", leave=False)
    with torch.no_grad():
        for k, state in enumerate(states):
            watched.step, z = k, state.x
        end, change = z[:, :flat.shape[1]].reshape(x.shape), z[:, flat.shape[1]:]
        if prior is None:
            std = sde.prior_std(levels[-1])
            at_end = -0.5 * (z[:, :flat.shape[1]] / std).square().sum(1) - flat.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))
        else:
            at_end = prior(end, levels[-1])
            if not isinstance(at_end, Tensor) or at_end.shape != (len(x),):
                raise ValueError(f"prior returned {tuple(at_end.shape) if isinstance(at_end, Tensor) else type(at_end).__name__}; expected "
                                 f"a tensor of shape ({len(x)},), a log density for each sample.")
    return at_end[:, None] - change, end


def _refined(recipe: Method, eq: Any, times: Sequence[float], steps: int | None, nfe: int | None, grid: Any, t_start: float | None,
             t_end: float | None) -> tuple[Method, list[float]]:
    """The method and the rising grid of a finer run: a tenth of the tolerances, or twice the steps."""
    if recipe.solver.adaptive:
        return dataclasses.replace(recipe, solver=_tighter(recipe.solver)), list(times)
    if steps is None and nfe is None:
        return recipe, [t for a, b in pairwise(times) for t in (a, (a + b) / 2)] + [times[-1]]
    return recipe, times_of(recipe, eq.sde, 2 * (len(times) - 1), None, grid, t_start, t_end)[::-1]


def _tighter(solver: Any) -> Any:
    """An adaptive solver, or one in a wrapper, at a tenth of its tolerances."""
    if hasattr(solver, "inner"):
        return dataclasses.replace(solver, inner=_tighter(solver.inner))
    return dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)


# -- bounds -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bound:
    """A lower bound and its parts, each (B,) in nats: ``value`` = -(``prior`` + ``diffusion``) - ``entropy``, of E[log p(x_t_end)|x_0];
    with bins -(``prior`` + ``diffusion`` + ``reconstruction``), of log P(k). ``stderr`` (B,), standard error from the random times and
    noises; ``nfe``, evaluations of the network per sample; ``d``, coordinates; ``explain``, in words."""

    value: Tensor
    stderr: Tensor
    prior: Tensor
    diffusion: Tensor
    entropy: float
    reconstruction: Tensor | None
    nfe: int
    d: int
    explain: str

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,), an upper bound on the bits: of the discrete data with bins, else of the density."""
        return bits_per_dim(self.value, self.d)


@dataclass(frozen=True)
class _Rate:
    """E over noise and times: the diffusion part, from E|eps - eps_hat|^2 in lambda (continuous) or at the knots of a chain."""

    score: Score
    x: Tensor
    noise: random.Noise
    times: random.Noise
    batch: int

    def uniform(self, k: int, pairs: int) -> Tensor:
        """(B,): draw k of 2 ``pairs``, two to a stratum of (0, 1)."""
        u = torch.special.ndtr(self.times.at(k).normal(_TIME)[:, 0].double())
        return ((k // 2 + u) / pairs).clamp(1e-12, 1 - 1e-12)

    def error(self, k: int, level: NoiseLevel, quantity: str) -> Tensor:
        """|eps - eps_hat|^2, or that of x0, of each sample (B,) at its level, float64."""
        eps, m = self.noise.at(k).normal(_NOISE), level.to(self.x)
        p = self.score(m.alpha * self.x + m.sigma * eps, level)
        off = p.eps - eps if quantity == "eps" else p.x0 - self.x
        return off.reshape(self.batch, math.prod(off.shape[1:])).double().square().sum(1)


def elbo(sde: SDE, score: Score, x: Tensor, *, draws: int = 64, seed: random.Seed = None, first: int = 0, t_end: float | None = None,
         chain: bool = False, bits: int | Bins | None = None, conditions: Mapping[str, Any] | None = None) -> Bound:
    """The lower bound that denoising estimates, for data x (B, *D) at t = 0: of E[log p(x_t_end) | x] under the reverse SDE (equality for
    the exact score and prior), in nats with a standard error.

    Parameters
    ----------
    draws : random times per sample, two to a stratum, at least 4; each is one evaluation of the network.
    seed, first : of times and noise, as for ``log_prob``.
    t_end : the clean end, sigma > 0 there; by default t_min, and the first knot of a chain.
    chain : the bound of the discrete chain with posterior variance between the knots of the process, in place of the SDE's: what DDPM's
        loss simplifies.
    bits : x lies on the centres of the bins of this depth (or ``Bins``): the bound is then of log P(k), with the reconstruction term
        -E log P(k|x_t_end), P(k|x) proportional to q(x|k) (for DDPM's L_0 of a chain: a normal law around x0_hat, integrated over the bin).

    Raises TypeError or ValueError on a wrong argument before the first evaluation.
    """
    _, _, watched = prepared(sde, score, "ddim", conditions, {})
    contracts.state("x", x)
    n = contracts.integer("draws", draws, 4) // 2 * 2
    contracts.flags(chain=chain)
    contracts.integer("first", first, 0)
    if chain and not sde.knots:
        raise ValueError(f"chain=True: {type(sde).__name__} is no discrete chain; expected VPSDE.from_betas(betas), or chain=False.")
    end = sde.at(contracts.real("t_end", (1.0 if sde.knots else sde.t_min) if t_end is None else t_end, 0.0, sde.t_max, high_open=True))
    if end.sigma == 0:
        raise ValueError(f"t_end={end.t:g}: sigma = 0, where the bound is not finite; expected a later time, such as "
                         f"t_end={sde.t_max / 1000:g}.")
    bins = None if bits is None else Bins.of(bits)
    if bins is not None:
        place = (x.double() - bins.low) / bins.width - 0.5
        if bool(((place - place.round()).abs() > 1e-3).any() | (place < -0.01).any() | (place > bins.levels - 0.99).any()):
            raise ValueError(f"bits={bits!r}: x is not on the {bins.levels} centres {bins.centres[0]:g}, {bins.centres[1]:g}, ... of its "
                             "bins; expected the discrete data themselves, without noise (log_prob takes them dequantised).")
    check_conditions({**getattr(score, "conditions", {}), **(conditions or {})}, len(x))
    inner = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    y, top, watched.batch = x.to(inner), sde.at(sde.t_max), len(x)
    flat = y.reshape(len(x), math.prod(y.shape[1:])).double()
    d, key = flat.shape[1], random.canonical_seed(seed, len(x)) if not isinstance(seed, torch.Generator) else seed
    make = lambda shape: random.source(key, shape, dtype=inner, device=x.device, first=first)
    rate = _Rate(watched, y, make(tuple(y.shape)), make((len(x), 1)), len(x))
    std = sde.prior_std(top)
    prior = 0.5 * ((top.alpha * flat / std).square().sum(1) + d * (top.sigma**2 / std**2 - 1 - 2 * math.log(top.sigma / std)))
    with torch.no_grad():
        terms = _at_knots(rate, sde, end, n) if chain else _in_lambda(rate, sde, end, top, n, getattr(score, "sigma_data", 0.5))
        diffusion, stderr = terms.sum(1), (terms[:, ::2] - terms[:, 1::2]).square().sum(1).sqrt()
        reconstruction = None if bins is None else _reconstruction(rate, sde, end, n, chain, bins, place.round())
    watched.finish()
    entropy = 0.5 * d * math.log(2 * math.pi * math.e * end.sigma**2)
    value = -(prior + diffusion) - (entropy if reconstruction is None else reconstruction)
    explain = (f"{'chain' if chain else 'SDE'} bound at t={end.t:.6g} (sigma {end.sigma:.4g}) on {type(sde).__name__}, {n} draws, prior "
               f"N(0, {std:.6g}^2 I)" + ("" if bins is None else f"; {bins.levels} levels on [{bins.low:g}, {bins.high:g}]"))
    return Bound(value.to(inner), stderr.to(inner), prior.to(inner), diffusion.to(inner), entropy,
                 None if reconstruction is None else reconstruction.to(inner), watched.rows // max(1, len(x)), d, explain)


def _in_lambda(rate: _Rate, sde: SDE, end: NoiseLevel, top: NoiseLevel, n: int, s: float) -> Tensor:
    """The terms (B, n) of the integral over lambda."""
    low, high = top.lam, end.lam
    share = n // 4 * 2 if math.isfinite(low) else n                     # draws from the law of least variance; the others are uniform
    mass = likelihood_law(torch.empty(0, dtype=torch.float64), low, high, s)[1]
    terms = []
    for k in range(n):
        if k < share:
            lam = likelihood_law(rate.uniform(k, share // 2), low, high, s)[0]
        else:
            lam = low + (high - low) * rate.uniform(k - share, (n - share) // 2)
        level = sde.at(sde.time_of(lam).clamp(end.t, top.t).reshape(-1, *[1] * (rate.x.ndim - 1)))
        r = torch.sigmoid(2 * lam + 2 * math.log(s)) / mass
        density = share * r + ((n - share) / (high - low) if share < n else 0.0)
        terms.append(rate.error(k, level, "eps") / density)
    return torch.stack(terms, 1) if terms else rate.x.new_zeros(0, 0)


def _knots(sde: SDE, end: NoiseLevel) -> list[NoiseLevel]:
    if end.t != round(end.t):
        raise ValueError(f"t_end={end.t:g}: the steps of a chain end at its knots; expected an integer from 1 to {sde.knots}.")
    return sde.levels([float(i) for i in range(round(end.t), int(sde.t_max) + 1)])


def _at_knots(rate: _Rate, sde: SDE, end: NoiseLevel, n: int) -> Tensor:
    """The terms (B, n) of the sum over knots, half of them drawn in proportion to their shares for data of unit variance."""
    levels = _knots(sde, end)
    snr = torch.tensor([(m.alpha / m.sigma)**2 for m in levels], dtype=torch.float64)
    weight = 0.5 * (snr[:-1] - snr[1:])
    share = weight / (1 + snr[1:])              # with the variance of x0 at the level
    share = (0.5 * share / share.sum() + 0.5 / len(share)).to(rate.x.device)
    terms, ends = [], share.cumsum(0)
    for k in range(n):
        i = torch.searchsorted(ends, rate.uniform(k, n // 2) * ends[-1]).clamp(max=len(share) - 1)
        level = sde.at((end.t + 1 + i).double().reshape(-1, *[1] * (rate.x.ndim - 1)))
        terms.append(rate.error(k, level, "x0") * weight.to(share)[i] / (n * share[i]))
    return torch.stack(terms, 1)


def _reconstruction(rate: _Rate, sde: SDE, end: NoiseLevel, n: int, chain: bool, bins: Bins, k: Tensor) -> Tensor:
    """-E log P(k | x_t_end), (B,), from a few draws."""
    total = torch.zeros(rate.batch, dtype=torch.float64, device=rate.x.device)
    repeats, centres = max(2, n // 16), bins.centres.to(rate.x.device)
    for j in range(repeats):
        x = end.alpha * rate.x + end.sigma * rate.noise.at(n + j).normal(_NOISE)
        if chain and end.t == 1.0:              # the last step of the chain: N(x0_hat, beta_1 I), its outer bins open
            mean = rate.score(x, end).x0.double()
            low, high = ((centres[k.long()] + sign * bins.width / 2 - mean) / end.sigma for sign in (-1, 1))
            low, high = torch.where(k == 0, -math.inf, low), torch.where(k == bins.levels - 1, math.inf, high)
            flip = low > 0                      # the difference of two small tails
            low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
            a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
            term = -(b + torch.log(-torch.expm1((a - b).clamp(max=-1e-300))))
        else:
            logits = -0.5 * ((x.double()[..., None] - end.alpha * centres) / end.sigma).square()
            term = logits.logsumexp(-1) - logits.gather(-1, k.long()[..., None])[..., 0]
        total += term.reshape(rate.batch, -1).sum(1)
    return total / repeats
