r"""Exact targets: laws of x_0 whose noised score, denoiser and density are known, with exact samplers. The ground truth.

At a level (alpha, sigma) the noised law is that of x = alpha x_0 + sigma eps. For a Gaussian mixture sum w_k N(mu_k, C_k) with
C_k = U_k L_k U_k^T, everything follows in the eigenbases, S_k = alpha^2 L_k + sigma^2 and y_k = U_k^T (x - alpha mu_k):

    p(x)        = sum w_k N(y_k; 0, S_k),               r_k = w_k N(y_k; 0, S_k) / p(x)  (a softmax of logarithms)
    score       = - sum r_k U_k S_k^{-1} y_k            grad log p
    E[x_0 | x]  =   sum r_k m_k,                        m_k = mu_k + alpha U_k (L_k / S_k) y_k
    Cov[x_0|x]  =   sum r_k (U_k (sigma^2 L_k / S_k) U_k^T + (m_k - m)(m_k - m)^T)

Components carry labels: p(y|x) is the sum of r_k over the class, and p(x|y) the mixture of its components, whatever the level.

Score and denoiser are each a sum without cancellation, at alpha = 0 and, for non-singular C_k, at sigma = 0. Point masses
(``Empirical``) have C_k = 0. A curve with Gaussian thickness is a mixture over a continuous latent u, x_0 | u ~ N(c(u), C(u)); a
quadrature in u makes it a mixture of the nodes, which lie closer than the thickness: the trapezoidal rule on a closed curve (192
nodes a ring) and for a normal latent (337 a pinwheel arm), Gauss-Legendre on an open one (86 a moon, 310 the roll, 671 a spiral
arm). Half as many nodes again move the log density of clean draws by less than 1e-10 (see the tests). A latent that
is itself a coordinate (banana, funnel) has x_1 = u ~ N(0, 1), x_2 | u ~ N(c(u), q(u)); given the noised x_1 it is again Gaussian,
u ~ N(alpha x_1/A, sigma^2/A), A = alpha^2 + sigma^2, so that the nodes follow x_1 and close up as sigma -> 0:

    p(x) = N(x_1; 0, A) E_u N(x_2; alpha c(u), alpha^2 q(u) + sigma^2).

Uniform squares (checkerboard) are products of truncated normals, in closed form.

``TOYS`` names the 2D laws; all have mean zero and E|x|^2 = 2, that is unit variance per axis on average, and all have an exact
density. Samples are pure functions of (seed, sample index), the same in every dtype and on every device up to the final cast.

References: Efron 2011 (Tweedie); Grathwohl et al. 2019 (FFJORD) and Johnson et al. 2016 (pinwheel) for the toys; Neal 2003
(funnel); Haario et al. 1999 (banana); Trefethen & Weideman 2014 for the trapezoidal rule.
"""
from __future__ import annotations

import abc
import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contracts import choice, device_of, dtype_of, floating, instance, integer, known, labels, numbers, real, shown, text
from .operators import Operator
from .random import Normals, Seed, canonical_seed
from .score import Prediction, cut, spread
from .sde import NoiseLevel

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 25}       # numbers in an intermediate tensor, at most (one sample at least)
BLOCK = 1024                                    # samples are drawn in whole blocks: the arithmetic never depends on n
STREAM = 0x7461726765747321                     # keeps data of seed 0 independent of a solver's noise of seed 0
LOG_2PI = math.log(2 * math.pi)


class Target(abc.ABC):
    """A law of x_0 on R^dim with exact samples, score and noised density.

    ``name``; ``dim``; ``event``, the shape of one sample; ``mean`` (dim,) and ``cov`` (dim, dim), float64; ``has_density``, whether
    the clean law has a density (every law noised with sigma > 0 has one). Tensors x are (B, *D) with prod(D) = dim, of any floating
    dtype on any device; results follow x (half precision is computed in float32).
    """

    name: str
    event: tuple[int, ...]
    has_density: bool = True
    _scored: bool = True                        # whether the score formulas hold at sigma = 0
    _width: int = 1                             # numbers per sample in the largest intermediate
    _normals: int = 0                           # normals that one draw takes
    _parameters: tuple[Tensor | None, ...] = ()

    @property
    def dim(self) -> int:
        return math.prod(self.event)

    @property
    @abc.abstractmethod
    def mean(self) -> Tensor:
        """E[x_0], float64 (dim,)."""

    @property
    @abc.abstractmethod
    def cov(self) -> Tensor:
        """Cov[x_0], float64 (dim, dim)."""

    @abc.abstractmethod
    def _log_prob(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        """(log p,): x (B, dim); alpha, sigma floats or (B, 1)."""

    @abc.abstractmethod
    def _predict(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        """(E[x_0|x], score), or (E[x_0|x],) where the score is no better known."""

    @abc.abstractmethod
    def _draw(self, z: Tensor) -> Tensor:
        """Samples (n, dim) from normals (normals, n), float64."""

    # -- the public face --------------------------------------------------------------------------------------------
    def score(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """What is known about x (B, *D) at a level of any process: a ``Prediction`` with x0 and score. Where the score does not
        exist (sigma = 0 and a singular or discontinuous law) it gives x0 = x/alpha alone. Raises TypeError or ValueError on
        a wrong x or level, and for a per-sample level with sigma = 0 where the score does not exist."""
        return self._scored_at(x, level)

    def _scored_at(self, x: Tensor, level: NoiseLevel, *given: Tensor) -> Prediction:
        """``score`` from ``_predict`` with ``given``, tensors of B rows."""
        flat, m = self._flat(x), self._level(x, level)
        if not self._scored and self._clean(m.sigma):
            if isinstance(m.sigma, Tensor):
                raise ValueError(f"level: sigma = 0 for some samples, where {self.name} has no score; expected sigma > 0.")
            return Prediction(x, m, x0=x / m.alpha)
        parts = self._chunked(self._predict, flat, m, self._width, *given)
        return Prediction(x, m.to(x), **{k: v.reshape(x.shape).to(x.dtype) for k, v in zip(("x0", "score"), parts)})

    def log_prob(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Log density (B,) in nats of the law noised to ``level``, or of the clean law (None). ValueError if it has none."""
        flat = self._flat(x)
        m = CLEAN if level is None else self._level(x, level)
        if not self.has_density and self._clean(m.sigma):
            raise ValueError(f"{self.name} has no density at sigma = 0 (its law is singular); expected a level with sigma > 0.")
        return self._chunked(self._log_prob, flat, m, self._width)[0].to(x.dtype)

    def sample(self, n: int, *, seed: Seed = None, dtype: torch.dtype | None = None,
               device: torch.device | str | None = None) -> Tensor:
        """Exact draws (n, *event). The sample of index i depends on (seed, i) alone: the first k rows of ``sample(n)`` are
        ``sample(k)``, bit for bit. ``seed``: an int, one int per sample, a ``torch.Generator``, or None (a fresh seed). Raises
        TypeError on a dtype that is not floating."""
        n = integer("n", n, 0)
        dtype, device = dtype_of("dtype", dtype), device_of("device", device)
        x = self._drawn(self._draw, n, seed)
        return x.reshape(n, *self.event).to(dtype=dtype, device=device)

    def _drawn(self, draw: Callable[[Tensor], Tensor], n: int, seed: Seed) -> Tensor:
        """``draw`` of the normals of n samples, block by block."""
        if isinstance(seed, torch.Generator):
            z = torch.randn(n, self._normals, generator=seed, dtype=torch.float64, device=seed.device).cpu()
        else:
            z = Normals(canonical_seed(seed, n), (n, self._normals), dtype=torch.float64, device="cpu").single((STREAM,))
        z = torch.nn.functional.pad(z, (0, 0, 0, -n % BLOCK))
        return torch.cat([draw(block.T.contiguous()) for block in z.split(BLOCK)])[:n]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, dim={self.dim})"

    # -- shapes, dtypes, memory -------------------------------------------------------------------------------------
    def _flat(self, x: Any) -> Tensor:
        floating("x", x, f"of shape (B, ...) with {self.dim} numbers per sample")
        if x.ndim < 1 or math.prod(x.shape[1:]) != self.dim:
            raise ValueError(f"x.shape={tuple(x.shape)}: expected (B, ...) with {self.dim} numbers per sample ({self.name}).")
        return x.reshape(len(x), self.dim).to(x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32)

    def _level(self, x: Tensor, level: Any) -> NoiseLevel:
        instance("level", level, NoiseLevel, "a NoiseLevel, such as sde.at(t)")
        for name, value in zip(("alpha", "sigma"), level[1:3]):
            if isinstance(value, Tensor) and value.numel() not in (1, len(x)):
                raise ValueError(f"level.{name}.shape={tuple(value.shape)}: expected one number, or one per sample, "
                                 f"(B, 1, ..., 1) with B={len(x)}.")
        return level

    @staticmethod
    def _clean(sigma: Any) -> bool:
        return bool((sigma == 0).any()) if isinstance(sigma, Tensor) else sigma == 0

    def _chunked(self, function: Callable[..., tuple[Tensor, ...]], x: Tensor, m: NoiseLevel, width: int,
                 *given: Tensor) -> tuple[Tensor, ...]:
        """``function`` on slices of the batch (and of ``given``) that keep its intermediates within CHUNK numbers."""
        alpha, sigma = _columns(m, x)
        rows = max(1, CHUNK.get(x.device.type, CHUNK["cpu"]) // width)
        if len(x) <= rows:
            return function(x, alpha, sigma, *given)
        cut = lambda v, i: v[i:i + rows] if isinstance(v, Tensor) and len(v) > 1 else v
        parts = [function(x[i:i + rows], cut(alpha, i), cut(sigma, i), *(v[i:i + rows] for v in given)) for i in range(0, len(x), rows)]
        return tuple(torch.cat(p) for p in zip(*parts))

    @cached_property
    def _held(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor | None, ...]]:
        return {}

    def _on(self, x: Tensor) -> tuple[Any, ...]:
        """The parameters in x's dtype and device, cast once."""
        key = (x.dtype, x.device)
        if key not in self._held:
            with torch.inference_mode(False):   # else they could not serve autograd later
                self._held[key] = tuple(p if p is None else p.to(dtype=x.dtype, device=x.device, copy=True) for p in self._parameters)
        return self._held[key]


CLEAN = NoiseLevel(0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def _columns(m: NoiseLevel, x: Tensor) -> tuple[Any, Any]:
    """alpha and sigma: floats, or (B, 1) in x's dtype and device."""
    alpha, sigma = (v.to(x).reshape(-1, 1) if isinstance(v, Tensor) else v for v in m[1:3])
    return alpha, sigma


class GaussianMixture(Target):
    """sum_k w_k N(mu_k, C_k).

    Parameters
    ----------
    means : (K, d).
    covs : a number; (K,) variances; (K, d) diagonals; (K, d, d) full matrices; K may be 1 for a covariance that all share. Or
        a sequence of K of these, one per component (a number, (d,) or (d, d) each). Symmetric, positive semi-definite; with a
        singular one the law has no density at sigma = 0.
    weights : (K,), non-negative; normalised. None: equal.
    labels : (K,) integers, the class of each component; every class 0..C-1 has weight. None: each component is its own.

    ``log_posterior`` is the exact classifier at every level, ``of_class`` the law of a class, ``conditional`` the score given labels,
    ``tempered`` draws of p(x) p(y|x)^w: the ground truth of guidance.

    Raises TypeError on what are not real numbers, ValueError on wrong shapes, values that are not finite, a covariance that
    is not symmetric positive semi-definite, weights that are negative or all zero, and labels of classes without weight.
    """

    labels: Tensor
    classes: int

    def __init__(self, means: Any, covs: Any = 1.0, weights: Any = None, *, labels: Any = None, name: str = "gaussian-mixture") -> None:
        mu, _ = numbers("means", means)
        if mu.ndim != 2 or not mu.numel():
            raise ValueError(f"means.shape={tuple(mu.shape)}: expected (K, d), one mean per component; means[None] adds the axis.")
        components, d = mu.shape
        w = torch.ones(components, dtype=torch.float64) if weights is None else numbers("weights", weights)[0]
        if w.shape != (components,) or bool((w < 0).any()) or not float(w.sum()) > 0:
            raise ValueError(f"weights={weights!r}: expected {components} non-negative numbers, one per component, with a "
                             "positive sum.")
        y = torch.arange(components, device="cpu") if labels is None else _classes(labels, w)
        self._build(name, mu, *_spectra(covs, components, d), w, y)

    def _build(self, name: str, mu: Tensor, spectra: Tensor, bases: Tensor | None, weights: Tensor, labels: Tensor) -> None:
        """spectra: (K or 1, d); bases: (K or 1, d, d), eigenvectors in columns, or None for the identity; labels (K,)."""
        components, d = mu.shape
        self.labels, self.classes = labels, int(labels.max()) + 1
        self.name, self.event = text("name", name, "gaussian-mixture"), (d,)
        self.means, self.weights, self._spectra, self._bases = mu, weights / weights.sum(), spectra, bases
        self.has_density = self._scored = bool((spectra > 0).all())
        self._width, self._normals = components * d, d + 1
        frame = None if bases is None else bases.permute(2, 0, 1).reshape(-1, d)        # rows (e, k): eigenvector e of C_k
        inside = mu.T if bases is None else torch.einsum("kde,kd->ek", bases.expand(components, d, d), mu)
        self._parameters = (mu, inside.contiguous(), spectra.T.contiguous(), frame, self.weights.log(), labels.double())

    @property
    def covs(self) -> Tensor:
        """The component covariances, (K, d, d)."""
        d, components = self.dim, len(self.means)
        u = torch.eye(d, dtype=torch.float64)[None] if self._bases is None else self._bases
        return ((u * self._spectra[:, None, :]) @ u.transpose(1, 2)).expand(components, d, d)

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def cov(self) -> Tensor:
        off = self.means - self.mean
        if self._bases is None:
            within = torch.diag((self.weights[:, None] * self._spectra).sum(0))
        else:
            within = torch.einsum("k,kde->de", self.weights, self.covs)
        return within + (off * self.weights[:, None]).T @ off

    def _terms(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Any, Any]:
        """log w_k N(y_k; 0, S_k) up to the power of 2 pi (B, K); y_k / S_k (B, d, K); alpha, sigma for (B, d, K)."""
        _, inside, spectra, frame, log_w, _ = self._on(x)
        alpha, sigma = (v[:, None] if isinstance(v, Tensor) else v for v in (alpha, sigma))
        s = alpha**2 * spectra + sigma**2
        y = (x if frame is None else x @ frame.T).unflatten(1, (self.dim, -1)) - alpha * inside
        z = y / s
        return log_w - 0.5 * ((y * z).sum(1) + s.log().sum(-2)), z, alpha, sigma

    def _out(self, t: Tensor) -> Tensor:
        """sum_k U_k t_k: (B, d, K) -> (B, d)."""
        frame = self._on(t)[3]
        if frame is None:
            return t.sum(2)
        return (t if len(frame) > self.dim else t.sum(2)).flatten(1) @ frame

    def _log_prob(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        return (self._terms(x, alpha, sigma)[0].logsumexp(1) - 0.5 * self.dim * LOG_2PI,)

    def _predict(self, x: Tensor, alpha: Any, sigma: Any, y: Tensor | None = None) -> tuple[Tensor, ...]:
        mu, _, spectra, _, _, labels = self._on(x)
        logits, z, a, _ = self._terms(x, alpha, sigma)
        if y is not None:
            logits = logits.masked_fill(labels != y[:, None], -math.inf)
        r = logits.softmax(1)
        z = r[:, None] * z
        return r @ mu + self._out(a * spectra * z), -self._out(z)

    # -- classes ----------------------------------------------------------------------------------------------------
    def log_posterior(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """log p(y | x_t) of every class, (B, C): at x (B, *D) of the law noised to ``level``, or of the clean law (None). A classifier
        whose logits are exact. Raises as ``log_prob`` does."""
        flat = self._flat(x)
        m = CLEAN if level is None else self._level(x, level)
        if not self.has_density and self._clean(m.sigma):
            raise ValueError(f"{self.name} has no density at sigma = 0 (its law is singular); expected a level with sigma > 0.")
        return self._chunked(self._log_posterior, flat, m, self._width)[0].to(x.dtype)

    def _log_posterior(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        logits = self._terms(x, alpha, sigma)[0]
        if self.classes < len(self.means):
            logits = torch.stack([logits[:, k].logsumexp(1) for k in self._components], 1)
        else:
            logits = logits[:, torch.cat(self._components)]
        return (logits.log_softmax(1),)

    @cached_property
    def _components(self) -> list[Tensor]:
        """The components of each class."""
        with torch.inference_mode(False):       # else they could not serve autograd later
            return [(self.labels == y).nonzero().flatten() for y in range(self.classes)]

    def of_class(self, y: int) -> GaussianMixture:
        """The law p(x_0 | y), exactly: the components of that class. ValueError where there is none, or without weight."""
        k = self._components[integer("y", y, 0, self.classes - 1)]
        if not float(self.weights[k].sum()) > 0:
            raise ValueError(f"y={y}: this class of {self.name} has no weight; expected another one.")
        part, own = GaussianMixture.__new__(GaussianMixture), lambda v: v if v is None or len(v) == 1 else v[k]
        part._build(f"{self.name}[{y}]", self.means[k], own(self._spectra), own(self._bases), self.weights[k], torch.zeros_like(k))
        return part

    @property
    def conditional(self) -> ClassScore:
        """The exact score given labels: ``sample(sde, target.conditional, conditions={"y": labels}, ...)``."""
        return ClassScore(self)

    def sample_labels(self, n: int, *, seed: Seed = None) -> Tensor:
        """The classes (n,) of the draws that ``sample(n, seed=seed)`` makes; ``seed`` as there."""
        return self._drawn(self._draw_label, integer("n", n, 0), seed)

    def tempered(self, y: int, w: float, n: int, *, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Exact draws (n, *event) of the law that guidance by a factor w >= 0 is meant for, p(x) p(y|x)^w / Z, by rejection: from p(x|y)
        with probability p(y|x)^(w-1), for w < 1 from p(x) with p(y|x)^w. RuntimeError where that accepts less than one of 10^4."""
        integer("y", y, 0, self.classes - 1), integer("n", n, 0), integer("seed", seed, 0)
        dtype = dtype_of("dtype", dtype)
        source, power = (self.of_class(y), w - 1) if real("w", w, 0.0) >= 1 else (self, w)
        generator, kept, tried = torch.Generator("cpu").manual_seed(seed), [torch.empty(0, *self.event, dtype=torch.float64)], 0
        while (found := sum(map(len, kept))) < n:
            if tried > 1e4 * (found + 100):
                raise RuntimeError(f"w={w}: of {tried} draws of {source.name} {found} were accepted; expected a smaller w.")
            x = source.sample(max(n, BLOCK), seed=generator, dtype=torch.float64, device="cpu")
            u = torch.rand(len(x), generator=generator, dtype=torch.float64)
            kept.append(x[u.log() < power * self.log_posterior(x)[:, y]])
            tried += len(x)
        return torch.cat(kept)[:n].to(dtype)

    def posterior(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Mean, shaped as x, and covariance (B, d, d) of x_0 given x (B, *D) at the level. Raises as ``score`` does; at
        sigma = 0 the posterior is the point x/alpha."""
        flat, m = self._flat(x), self._level(x, level)
        if not self._scored and self._clean(m.sigma):
            if isinstance(m.sigma, Tensor):
                raise ValueError(f"level: sigma = 0 for some samples, where {self.name} is singular; expected sigma > 0.")
            return x / m.alpha, x.new_zeros(len(x), self.dim, self.dim)
        mean, cov = self._chunked(self._posterior, flat, m, self._width + self.dim**2)
        return mean.reshape(x.shape).to(x.dtype), cov.to(x.dtype)

    def _posterior(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        mu, _, spectra, frame, *_ = self._on(x)
        logits, z, a, s = self._terms(x, alpha, sigma)
        r = logits.softmax(1)
        within = r[:, None] * (s**2 * spectra / (a**2 * spectra + s**2))                # (B, d, K)
        shift = a * spectra * z
        if frame is None:
            cov = torch.diag_embed(within.sum(2))
        else:
            u = frame.unflatten(0, (self.dim, -1))                                      # (e, K or 1, d)
            shift = torch.einsum("bek,ekd->bdk", shift, u.expand(-1, len(mu), -1))
            within = within if u.shape[1] == len(mu) else within.sum(2, keepdim=True)
            cov = torch.einsum("bek,ekd,ekf->bdf", within, u, u)
        each = mu.T + shift
        mean = (r[:, None] * each).sum(2)
        off = each - mean[..., None]
        return mean, cov + (r[:, None] * off) @ off.transpose(1, 2)

    def given(self, operator: Any, y: Any, std: float) -> GaussianMixture:
        """The law of x_0 given y = A x_0 + N(0, std^2 I), again a mixture: with S_k = A C_k A^T + std^2 I and K_k = C_k A^T S_k^{-1} it
        has the weights, means and covariances

            w_k N(y; A mu_k, S_k),        mu_k + K_k (y - A mu_k),        (I - K_k A) C_k (I - K_k A)^T + std^2 K_k K_k^T.

        ``operator``: one of ``sdediff.operators``, or a matrix (m, d); ``y``: (*measured), one measurement. Raises TypeError or ValueError
        on values that are not finite, wrong shapes, and std <= 0."""
        terms, means, covs = self._observed(operator, y, std)
        posterior = GaussianMixture.__new__(GaussianMixture)    # with our labels, of which the weights may leave some without any
        posterior._build(f"{self.name} given y", means, *_spectra(covs, *means.shape), (terms - terms.max()).exp(), self.labels)
        return posterior

    def log_evidence(self, operator: Any, y: Any, std: float) -> float:
        """log p(y) in nats, of one measurement y = A x_0 + N(0, std^2 I). Arguments as for ``given``."""
        return float(self._observed(operator, y, std)[0].logsumexp(0))

    def _observed(self, operator: Any, y: Any, std: float) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(y; A mu_k, S_k); means and covariances of the components given y."""
        a = numbers("operator", operator.matrix if isinstance(operator, Operator) else operator)[0]
        v, measured = real("std", std, 0.0, low_open=True)**2, numbers("y", y)[0].flatten()
        if a.ndim != 2 or a.shape != (len(measured), self.dim):
            raise ValueError(f"operator.shape={tuple(a.shape)} for y of {len(measured)} numbers and {self.name} in {self.dim} dimensions; "
                             f"expected ({len(measured)}, {self.dim}).")
        c, off = self.covs, measured - self.means @ a.T
        lower, failed = torch.linalg.cholesky_ex(a @ c @ a.T + v * torch.eye(len(a), dtype=torch.float64))
        if bool(failed.any()):
            raise ValueError(f"std={std!r}: lost in rounding beside the law's own covariance, which is singular for this operator; "
                             "expected a larger one.")
        gain = torch.cholesky_solve(a @ c, lower).transpose(1, 2)                       # C A^T S^{-1}
        white = torch.linalg.solve_triangular(lower, off[..., None], upper=False)[..., 0]
        log_det = 2 * torch.diagonal(lower, dim1=1, dim2=2).log().sum(1)
        kept = torch.eye(self.dim, dtype=torch.float64) - gain @ a
        covs = kept @ c @ kept.transpose(1, 2) + v * gain @ gain.transpose(1, 2)
        return (self.weights.log() - 0.5 * ((white**2).sum(1) + log_det + len(measured) * LOG_2PI),
                self.means + (gain @ off[..., None])[..., 0], 0.5 * (covs + covs.transpose(1, 2)))

    def _draw(self, z: Tensor) -> Tensor:
        k = _pick(self.weights, z[0])
        z = z[1:].T * self._spectra.sqrt().expand(len(self.means), -1)[k]
        if self._bases is not None:
            bases = self._bases.expand(len(self.means), -1, -1)
            if len(self._bases) == 1:
                z = z @ bases[0].T
            else:
                for j in k.unique().tolist():
                    z = torch.where((k == j)[:, None], z @ bases[j].T, z)
        return self.means[k] + z

    def _draw_label(self, z: Tensor) -> Tensor:
        return self.labels[_pick(self.weights, z[0])]


@dataclass(frozen=True)
class ClassScore:
    """The exact score of p(x_t | y): that of the components of the labels ``y`` ((B,) or one for all), of all of them where y is None."""

    mixture: GaussianMixture
    y: Any = None

    @property
    def conditions(self) -> dict[str, Any]:
        """The labels, where there are any."""
        return {} if self.y is None else {"y": self.y}

    def condition(self, y: Any) -> ClassScore:
        """The same score for other labels."""
        return dataclasses.replace(self, y=y)

    def rows(self, start: int, stop: int) -> ClassScore:
        """The same score for the samples start..stop of a batch."""
        return dataclasses.replace(self, y=cut(self.y, start, stop))

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        if self.y is None:
            return self.mixture.score(x, level)
        chosen = labels("y", spread(self.y, len(x)), len(x), self.mixture.classes, x.device)
        weights = torch.zeros(self.mixture.classes, dtype=torch.float64).index_add(0, self.mixture.labels, self.mixture.weights)
        if x.device.type == "cpu" and not bool((weights[chosen] > 0).all()):
            raise ValueError(f"y={int(chosen[weights[chosen] == 0][0])}: this class of {self.mixture.name} has no weight; expected another "
                             "one.")
        return self.mixture._scored_at(x, level, chosen)


class Gaussian(GaussianMixture):
    """N(mean, cov): the mixture of one component. ``mean``: (d,); ``cov``: a number, a diagonal (d,) or a matrix (d, d)."""

    def __init__(self, mean: Any, cov: Any = 1.0, *, name: str = "gaussian") -> None:
        mu, _ = numbers("mean", mean)
        if mu.ndim != 1 or not len(mu):
            raise ValueError(f"mean.shape={tuple(mu.shape)}: expected (d,), one number per dimension.")
        d, form = len(mu), tuple(numbers("cov", cov)[0].shape)
        if form not in ((), (d,), (d, d)):
            raise ValueError(f"cov.shape={form}: expected a number, a diagonal ({d},) or a matrix ({d}, {d}).")
        super().__init__(mu[None], [cov], name=name)

    def flow(self, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        """The probability-flow ODE solved exactly from level t to level s (either direction) of one process:
        x_s = alpha_s m + S_s^{1/2} S_t^{-1/2} (x - alpha_t m). x: (B, *D). ValueError for a singular covariance at sigma_t = 0."""
        flat, mt, ms = self._flat(x), self._level(x, t), self._level(x, s)
        if not self._scored and self._clean(mt.sigma):
            raise ValueError(f"t: sigma = 0, from where a singular {self.name} has no flow; expected sigma > 0.")
        mu, _, spectra, frame, *_ = self._on(flat)
        (at, st), (a, b) = _columns(mt, flat), _columns(ms, flat)
        y = flat - at * mu
        spectrum = spectra[:, 0]
        y = (y if frame is None else y @ frame.T) * torch.sqrt((a**2 * spectrum + b**2) / (at**2 * spectrum + st**2))
        return (a * mu + (y if frame is None else y @ frame)).reshape(x.shape).to(x.dtype)


class Empirical(Target):
    """The uniform law on finitely many points, ``data`` (N, *event): E[x_0|x] is a softmax over the data, N x rows in memory at a
    time. It has no density; every noised law (sigma > 0) has. At sigma = 0, x0 is the nearest point.

    The logits come from (alpha y.c - alpha^2 |c|^2/2)/sigma^2, centred on the data's mean and always in float64, for they lose
    |x|^2/sigma^2 digits. Prediction gives x0 only: the score (alpha x0 - x)/sigma^2 is no better known than that.

    Raises TypeError or ValueError unless data is finite, real and has shape (N, ...) with N >= 1.
    """

    has_density = False

    def __init__(self, data: Any, *, name: str = "empirical") -> None:
        points, _ = numbers("data", data)
        if points.ndim < 2 or not points.numel():
            raise ValueError(f"data.shape={tuple(points.shape)}: expected (N, ...) with N >= 1 points; data[:, None] for numbers.")
        self.name, self.event, self.data = text("name", name, "empirical"), tuple(points.shape[1:]), points
        flat = points.flatten(1)
        self._width, self._normals = max(len(flat), self.dim), 1
        centred = flat - flat.mean(0)
        self._parameters = (flat.mean(0), centred, 0.5 * (centred**2).sum(1))

    @property
    def mean(self) -> Tensor:
        return self.data.flatten(1).mean(0)

    @property
    def cov(self) -> Tensor:
        centred = self.data.flatten(1) - self.mean
        return centred.T @ centred / len(centred)

    def _logits(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Any]:
        """(logits (B, N), their largest made 0; the exponent (B,) taken off; sigma^2), float64."""
        x, alpha, sigma = (v.double() if isinstance(v, Tensor) else v for v in (x, alpha, sigma))
        centre, points, half = self._on(x)
        y = x - alpha * centre
        t = alpha * (y @ points.T) - alpha**2 * half
        top = t.detach().amax(1, keepdim=True)
        tiny = torch.finfo(torch.float64).tiny
        v = (sigma**2).clamp_min(tiny) if isinstance(sigma, Tensor) else max(sigma**2, tiny)
        return (t - top) / v, ((top - 0.5 * (y**2).sum(1, keepdim=True)) / v)[:, 0], v

    def _log_prob(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        logits, top, v = self._logits(x, alpha, sigma)
        log_v = v[:, 0].log() if isinstance(v, Tensor) else math.log(v)
        return (logits.logsumexp(1) + top - math.log(len(self.data)) - 0.5 * self.dim * (LOG_2PI + log_v),)

    def _predict(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        centre, points, _ = self._on(x)
        return (centre + self._logits(x, alpha, sigma)[0].softmax(1).to(x.dtype) @ points,)

    def _draw(self, z: Tensor) -> Tensor:
        return self.data.flatten(1)[_pick(torch.ones(len(self.data), dtype=torch.float64), z[0])]


class _Latent(GaussianMixture):
    """x_0 | (a, u) ~ N(c_a(u), tau_1^2 e e^T + tau_2^2 (I - e e^T)) in the plane, the arm a uniform among ``arms``, u = ``latent``(z)
    for a standard normal z, c and e = ``frame``(a, u) (e None: tau_1 = tau_2). ``rule``: nodes and weights of a quadrature for u's
    law. The density is the mixture of the nodes; draws take u itself. Centred and scaled to E|x|^2 = 2."""

    def __init__(self, name: str, arms: int, frame: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
                 latent: Callable[[Tensor], Tensor], rule: tuple[Tensor, Tensor], spread: tuple[float, float]) -> None:
        u, w = rule
        arm = torch.arange(arms, dtype=torch.float64).repeat_interleave(len(u))
        c, e = frame(arm, u.repeat(arms))
        w = w.repeat(arms) / (arms * w.sum())
        self._frame, self._latent, self._arms = frame, latent, arms
        tau = torch.tensor(spread, dtype=torch.float64)
        self._shift = w @ c
        self._scale = float(torch.sqrt(2 / (w @ ((c - self._shift)**2).sum(1) + (tau**2).sum())))
        self._tau = self._scale * tau
        self._build(name, (c - self._shift) * self._scale, self._tau[None]**2, None if e is None else _turn(e), w, arm.long())
        self._normals = 4

    def _draw_label(self, z: Tensor) -> Tensor:
        return _pick(torch.ones(self._arms, dtype=torch.float64), z[0])

    def _draw(self, z: Tensor) -> Tensor:
        arm = self._draw_label(z).double()
        c, e = self._frame(arm, self._latent(z[1]))
        noise = self._tau * z[2:].T
        if e is not None:
            noise = (_turn(e) * noise[:, None, :]).sum(2)
        return (c - self._shift) * self._scale + noise


class _Regression(Target):
    """x_1 = u ~ N(0, 1), x_2 | u ~ N(c(u), q(u)), with ``law``(u) -> (c, c', q, q'), q > 0, E x_2 = 0 and Var x_2 = 1.

    The latent's law given x_1 is integrated by the trapezoidal rule of ``nodes`` points on +-10 standard deviations, whose error
    falls like exp(-2 pi^2 (width/spacing)^2) in the width of the integrand. With G = E[d/du log N(x_2; alpha c, alpha^2 q + sigma^2) | x],

        score_1 = (alpha G - x_1)/A,    E[x_1|x] = (alpha x_1 + sigma^2 G)/A        (Stein's identity)
    """

    event, _normals = (2,), 2

    def __init__(self, name: str, law: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]], nodes: int) -> None:
        self.name, self._law, self._width = name, law, nodes
        z, w = _normal_rule(nodes, 10.0)
        self._parameters = (z, w.log())

    @property
    def mean(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    @property
    def cov(self) -> Tensor:
        return torch.eye(2, dtype=torch.float64)

    def _terms(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        z, log_w = self._on(x)
        a = alpha**2 + sigma**2
        c, dc, q, dq = self._law(alpha * x[:, :1] / a + (sigma / a**0.5) * z)
        s = alpha**2 * q + sigma**2
        y = x[:, 1:] - alpha * c
        return log_w - 0.5 * (y**2 / s + s.log()), y / s, c, dc, q, dq, s

    def _log_prob(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        a = alpha**2 + sigma**2
        log_a = a.log() if isinstance(a, Tensor) else math.log(a)
        first = -0.5 * (x[:, :1]**2 / a + log_a) - LOG_2PI
        return (first[:, 0] + self._terms(x, alpha, sigma)[0].logsumexp(1),)

    def _predict(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        logits, z, c, dc, q, dq, s = self._terms(x, alpha, sigma)
        r = logits.softmax(1)
        mean = lambda v: (r * v).sum(1, keepdim=True)
        a = alpha**2 + sigma**2
        g = mean(alpha * z * dc + 0.5 * alpha**2 * dq * (z**2 - 1 / s))
        x0 = torch.cat([(alpha * x[:, :1] + sigma**2 * g) / a, mean(c + alpha * q * z)], 1)
        return x0, torch.cat([(alpha * g - x[:, :1]) / a, -mean(z)], 1)

    def _draw(self, z: Tensor) -> Tensor:
        c, _, q, _ = self._law(z[0])
        return torch.stack([z[0], c + q.sqrt() * z[1]], 1)


class _Checkerboard(Target):
    """Uniform on the squares [i, i+1] x [j, j+1], i + j even, of an n x n board centred at 0 (n even), scaled to unit variance per
    axis. The noised law is a product of interval laws in each square: see ``_interval``. At sigma = 0 the density jumps: it is
    -inf in the log outside, and there is no score. It takes a point on a border as inside the square to its right or above."""

    event, _normals, _scored = (2,), 3, False

    def __init__(self, cells: int = 4, *, name: str = "checkerboard") -> None:
        if integer("cells", cells, 2) % 2:
            raise ValueError(f"cells={cells}: expected an even number of squares per side.")
        self.name = name
        self._side = math.sqrt(12) / cells
        self._left = (torch.arange(cells, dtype=torch.float64) - cells / 2) * self._side
        i, j = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        self._cells = torch.stack([i, j], -1)[(i + j) % 2 == 0]                         # (M, 2)
        self._parameters, self._width = (self._left,), 2 * len(_GAUSS[0]) * cells + 2 * len(self._cells)

    @property
    def _centres(self) -> Tensor:
        return self._left[self._cells] + self._side / 2

    @property
    def mean(self) -> Tensor:
        return self._centres.mean(0)

    @property
    def cov(self) -> Tensor:
        off = self._centres - self.mean
        return off.T @ off / len(off) + self._side**2 / 12 * torch.eye(2, dtype=torch.float64)

    def _terms(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Tensor]:
        """For each square: log density (B, M); E[x_0|x] and score, (B, M, 2)."""
        left, = self._on(x)
        alpha, sigma = (v[..., None] if isinstance(v, Tensor) else v for v in (alpha, sigma))
        log_p, x0, score = _interval(x[..., None], alpha, sigma, left, self._side)      # (B, 2, n)
        cells = self._cells.to(x.device)
        pick = lambda v: torch.stack([v[:, 0, cells[:, 0]], v[:, 1, cells[:, 1]]], -1)
        return pick(log_p).sum(-1), pick(x0), pick(score)

    def _log_prob(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        if not isinstance(sigma, Tensor) and sigma == 0:
            index = torch.floor((x / alpha - self._left[0]) / self._side)
            on = ((index >= 0) & (index < len(self._left))).all(1) & (index.sum(1) % 2 == 0)
            log_area = math.log(len(self._cells)) + 2 * math.log(self._side * alpha)
            return (x.new_full((len(x),), -log_area).masked_fill(~on, -math.inf),)
        if self._clean(sigma):
            raise ValueError(f"level: sigma = 0 for some samples of {self.name}; expected sigma > 0, or level=None for all.")
        return (self._terms(x, alpha, sigma)[0].logsumexp(1) - math.log(len(self._cells)),)

    def _predict(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, ...]:
        logits, x0, score = self._terms(x, alpha, sigma)
        r = logits.softmax(1)[..., None]
        return (r * x0).sum(1), (r * score).sum(1)

    def _draw(self, z: Tensor) -> Tensor:
        cell = self._cells[_pick(torch.ones(len(self._cells), dtype=torch.float64), z[0])]
        return self._left[cell] + self._side * torch.special.ndtr(z[1:]).T


def _interval(x: Tensor, alpha: Any, sigma: Any, left: Tensor, side: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""The law of alpha u + sigma eps, u uniform on [left, left + side]: log density, E[u|x] and score, each (..., n).

    With A = (alpha left - x)/sigma, B = A + alpha side/sigma, phi and Phi the normal density and distribution,

        p = (Phi(B) - Phi(A))/(alpha side),   score = (phi(A) - phi(B))/(sigma (Phi(B) - Phi(A))),   u = (x + sigma^2 score)/alpha.

    By symmetry |A| <= B. In the tail (A > 0) everything is scaled by phi(A), through erfcx. Where the interval is short against
    sigma (B - A < 1/4; alpha = 0 among them) these differences cancel, and 16-point Gauss-Legendre in u is exact to rounding.
    """
    def wide(alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Tensor]:
        lo = (alpha * left - x) / sigma
        h = alpha * side / sigma
        flip = 2 * lo + h < 0
        a = torch.where(flip, -lo - h, lo)
        b = a + h
        gap = 0.5 * h * (a + b)                                                         # (B^2 - A^2)/2
        tail, near, root = a.clamp_min(0), a.clamp_max(0), math.sqrt(0.5)
        scaled = torch.special.erfcx(tail * root) - torch.exp(-gap) * torch.special.erfcx(b * root)
        between = torch.special.erf(b * root) - torch.special.erf(near * root)          # both are twice a probability
        out = a > 0
        mass = torch.where(out, scaled, between)
        log_p = torch.where(out, -0.5 * a**2, 0.0) + torch.log(mass / (2 * alpha * side))
        ratio = -math.sqrt(2 / math.pi) * torch.expm1(-gap) * torch.where(out, 1.0, torch.exp(-0.5 * near**2)) / mass
        score = torch.where(flip, -ratio, ratio) / sigma
        return log_p, (x + sigma**2 * score) / alpha, score

    def short(alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Tensor]:
        nodes, weights = (v.to(x) for v in _GAUSS)
        u = left[:, None] + side * nodes                                                # (n, J)
        widen = lambda v: v[..., None] if isinstance(v, Tensor) else v
        y = (x[..., None] - widen(alpha) * u) / widen(sigma)
        terms = weights.log() - 0.5 * y**2
        mean = (terms.softmax(-1) * u).sum(-1)
        log_sigma = sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)
        return terms.logsumexp(-1) - log_sigma - 0.5 * LOG_2PI, mean, (alpha * mean - x) / sigma**2

    if not isinstance(alpha, Tensor) and not isinstance(sigma, Tensor):
        return (short if alpha * side < 0.25 * sigma else wide)(alpha, sigma)
    alpha, sigma = (v if isinstance(v, Tensor) else x.new_full((1, 1, 1), v) for v in (alpha, sigma))
    brief = alpha * side < 0.25 * sigma                 # each form sees only arguments it is good for, for autograd's sake
    long_form = wide(torch.where(brief, sigma / side, alpha), sigma)
    short_form = short(alpha, torch.where(brief, sigma, 4 * side * alpha))
    return tuple(torch.where(brief, p, q) for p, q in zip(short_form, long_form))       # type: ignore[return-value]


# -- numbers in, nodes out ----------------------------------------------------------------------------------------------
def _classes(labels: Any, weights: Tensor) -> Tensor:
    """Labels (K,) of components with these weights, checked."""
    try:
        y = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"labels={shown(labels)}: expected {len(weights)} integers >= 0, the class of each component.") from None
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != weights.shape or bool((y < 0).any()):
        raise ValueError(f"labels={shown(labels)}: expected {len(weights)} integers >= 0, the class of each component.")
    if bool((torch.bincount(y, weights) == 0).any()):
        raise ValueError(f"labels={shown(labels)}: a class has no weight; expected labels 0..C-1, each of a component that has some.")
    return y.long()


def _spectra(covs: Any, components: int, d: int) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues (K or 1, d) and eigenvectors (K or 1, d, d; None: the axes) of covariances in any of the accepted forms."""
    if isinstance(covs, (list, tuple)):
        each = [numbers(f"covs[{k}]", c) for k, c in enumerate(covs)]
        unit = max((e for _, e in each), default=0.0)
        parts = [c for c, _ in each]
        if len({c.shape for c in parts}) > 1:
            parts = [_matrix(k, c, d) for k, c in enumerate(parts)]
        c = torch.stack(parts) if parts else torch.empty(0)
    else:
        c, unit = numbers("covs", covs)
    if c.ndim == 0:
        c = c[None]
    if c.ndim > 3 or c.shape[0] not in (1, components) or c.shape[1:] not in ((), (d,), (d, d)):
        raise ValueError(f"covs.shape={tuple(c.shape)}: expected a number, ({components},), ({components}, {d}) or "
                         f"({components}, {d}, {d}) for {components} means in {d} dimensions; a leading 1 is shared by all "
                         "(covs[None] adds it).")
    if c.ndim < 3:
        if bool((c < 0).any()):
            raise ValueError(f"covs holds a negative variance, {float(c.min())}; expected variances >= 0.")
        return c if c.ndim == 2 else c[:, None].expand(-1, d).clone(), None
    size = c.abs().amax((1, 2), keepdim=True)
    if bool(((c - c.transpose(1, 2)).abs() > 8 * d * unit * size).any()):
        off = float((c - c.transpose(1, 2)).abs().max())
        raise ValueError(f"covs={shown(covs)}: expected symmetric matrices; the largest asymmetry is {off:.3g}.")
    if not bool((c - torch.diag_embed(c.diagonal(dim1=1, dim2=2))).any()):
        values, vectors = c.diagonal(dim1=1, dim2=2).clone(), None
    else:
        values, vectors = torch.linalg.eigh((c + c.transpose(1, 2)) / 2)
    floor = 8 * d * unit * size[:, 0] if vectors is not None else torch.zeros_like(values)
    if bool((values < -floor).any()):
        raise ValueError(f"covs={shown(covs)}: expected positive semi-definite matrices; the smallest eigenvalue is "
                         f"{float(values.min()):.3g}.")
    return torch.where(values.abs() <= floor, 0.0, values), vectors


def _matrix(k: int, c: Tensor, d: int) -> Tensor:
    if c.shape not in ((), (d,), (d, d)):
        raise ValueError(f"covs[{k}].shape={tuple(c.shape)}: expected a number, ({d},) or ({d}, {d}).")
    return c if c.ndim == 2 else torch.diag(c.expand(d))


def _pick(weights: Tensor, z: Tensor) -> Tensor:
    """Indices with these probabilities from normals z, by the inverse distribution function."""
    steps = weights.cumsum(0)
    return torch.searchsorted(steps / steps[-1], torch.special.ndtr(z), right=True).clamp_max(len(weights) - 1)


def _turn(e: Tensor) -> Tensor:
    """Rotations (n, 2, 2) whose first column is the unit vector e (n, 2)."""
    return torch.stack([e, torch.stack([-e[:, 1], e[:, 0]], 1)], 2)


def _polar(angle: Tensor) -> Tensor:
    return torch.stack([torch.cos(angle), torch.sin(angle)], -1)


def _legendre_rule(n: int, power: int = 1) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on (0, 1) for the density p u^(p-1), that of U^(1/p) for a uniform U."""
    u, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(n))
    u = (1 + u) / 2
    return u, w / 2 * power * u**(power - 1)


def _normal_rule(n: int, reach: float) -> tuple[Tensor, Tensor]:
    """The trapezoidal rule for N(0, 1) on +-reach."""
    z = torch.linspace(-reach, reach, n, dtype=torch.float64)
    w = torch.exp(-0.5 * z**2)
    return z, w / w.sum()


_GAUSS = _legendre_rule(16)


def _uniform(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)


def _root_uniform(z: Tensor) -> Tensor:
    return torch.special.ndtr(z).sqrt()


def _itself(z: Tensor) -> Tensor:
    return z


def _count(speed: float, noise: Any, refine: Any) -> int:
    """Nodes of a curve parametrised on (0, 1) with this largest speed: 1.4 per thickness, the trapezoidal rule's error
    2 exp(-2 pi^2 1.4^2) = 3e-17; Gauss-Legendre spaces its nodes pi/2 wider in the middle, which callers put into ``speed``."""
    return math.ceil(real("refine", refine, 0.0, low_open=True) * (1.4 * speed / real("noise", noise, 0.0, low_open=True) + 16))


# -- the toys -----------------------------------------------------------------------------------------------------------
# Each formula is followed by the centring and scaling to E x = 0, E|x|^2 = 2. ``noise`` is in the formula's own units;
# ``refine`` multiplies the number of quadrature nodes.
def _moons(arm: Tensor, u: Tensor) -> tuple[Tensor, None]:
    c = _polar(math.pi * u)
    return torch.stack([arm + (1 - 2 * arm) * c[:, 0], arm / 2 + (1 - 2 * arm) * c[:, 1]], 1), None


def _roll(arm: Tensor, u: Tensor) -> tuple[Tensor, None]:
    t = 1.5 * math.pi * (1 + 2 * u)
    return t[:, None] * _polar(t), None


def _spirals(arm: Tensor, u: Tensor) -> tuple[Tensor, None]:
    t = 3 * math.pi * u
    return ((1 - 2 * arm) * t / 3)[:, None] * _polar(math.pi - t), None


def _rings(arm: Tensor, u: Tensor) -> tuple[Tensor, None]:
    return ((arm + 1) / 4)[:, None] * _polar(2 * math.pi * u), None


def _pinwheel(arm: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    r = 1 + 0.3 * z
    e = _polar(2 * math.pi / 5 * arm + 0.25 * torch.exp(r))
    return r[:, None] * e, e


def two_moons(noise: float = 0.1, refine: float = 1.0) -> Target:
    """Half circles (cos u, sin u) and (1 - cos u, 1/2 - sin u), u uniform on [0, pi], + N(0, noise^2 I)."""
    return _Latent("two-moons", 2, _moons, _uniform, _legendre_rule(_count(math.pi**2 / 2, noise, refine)), (noise, noise))


def swiss_roll(noise: float = 1.0, refine: float = 1.0) -> Target:
    """t (cos t, sin t), t uniform on [3 pi/2, 9 pi/2], + N(0, noise^2 I)."""
    speed = 3 * math.pi * math.hypot(1, 4.5 * math.pi)
    return _Latent("swiss-roll", 1, _roll, _uniform, _legendre_rule(_count(math.pi / 2 * speed, noise, refine)), (noise, noise))


def two_spirals(noise: float = 0.1, refine: float = 1.0) -> Target:
    """+-(t/3) (-cos t, sin t), t = 3 pi sqrt(U), U uniform (density 2t/(3 pi)^2), + N(0, noise^2 I)."""
    speed = math.pi * math.hypot(1, 3 * math.pi)
    rule = _legendre_rule(_count(math.pi / 2 * speed, noise, refine), power=2)
    return _Latent("two-spirals", 2, _spirals, _root_uniform, rule, (noise, noise))


def rings(noise: float = 0.05, refine: float = 1.0) -> Target:
    """Circles of radius 1/4, 1/2, 3/4 and 1, one as likely as another, uniform in angle, + N(0, noise^2 I)."""
    n = _count(2 * math.pi, noise, refine)
    u = torch.arange(n, dtype=torch.float64) / n
    return _Latent("rings", 4, _rings, _uniform, (u, torch.ones_like(u)), (noise, noise))


def pinwheel(refine: float = 1.0) -> Target:
    """Five arms a: x = R(2 pi a/5 + e^r/4) (r + 0.05 z_1, 0.1 z_2), r ~ N(1, 0.3^2), z ~ N(0, I), R(.) a rotation. (Johnson et al.
    have no z_1; with it the law is a mixture over r that a 1D quadrature resolves. Nodes: 337 per arm on +-7 deviations.)"""
    nodes = math.ceil(336 * real("refine", refine, 0.0, low_open=True)) + 1
    return _Latent("pinwheel", 5, _pinwheel, _itself, _normal_rule(nodes, 7.0), (0.05, 0.1))


def eight_gaussians() -> Target:
    """Eight equal Gaussians on a circle, standard deviation an eighth of its radius."""
    radius = math.sqrt(2 / (1 + 2 / 64))
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture(radius * _polar(angle), (radius / 8)**2, name="8-gaussians")


def twenty_five_gaussians() -> Target:
    """A 5 x 5 grid of equal Gaussians, standard deviation a twentieth of the spacing."""
    spacing = 1 / math.sqrt(2 + 1 / 400)
    side = (torch.arange(5, dtype=torch.float64) - 2) * spacing
    return GaussianMixture(torch.cartesian_prod(side, side), (spacing / 20)**2, name="25-gaussians")


class _Banana:
    def __init__(self, noise: float) -> None:
        self.q = real("noise", noise, 0.0, 1.0, low_open=True, high_open=True)**2
        self.k = math.sqrt((1 - self.q) / 2)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k * (u**2 - 1), 2 * self.k * u, torch.full_like(u, self.q), torch.zeros_like(u)


class _Funnel:
    def __init__(self, width: float) -> None:
        self.b = real("width", width, 0.0)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = torch.exp(self.b * u - 0.5 * self.b**2)
        return torch.zeros_like(u), torch.zeros_like(u), q, self.b * q


def banana(noise: float = 0.3, refine: float = 1.0) -> Target:
    """x_1 ~ N(0, 1), x_2 | x_1 ~ N(k (x_1^2 - 1), noise^2), 2 k^2 = 1 - noise^2 (so that Var x_2 = 1). 201 nodes."""
    return _Regression("banana", _Banana(noise), math.ceil(200 * real("refine", refine, 0.0, low_open=True)) + 1)


def funnel(width: float = 1.5, refine: float = 1.0) -> Target:
    """x_1 ~ N(0, 1), x_2 | x_1 ~ N(0, exp(b x_1 - b^2/2)), b = ``width`` (Var x_2 = 1; Neal's has b = 3). 201 nodes."""
    return _Regression("funnel", _Funnel(width), math.ceil(200 * real("refine", refine, 0.0, low_open=True)) + 1)


def checkerboard(cells: int = 4) -> Target:
    """Uniform on the dark squares of a board with ``cells`` (even) squares per side."""
    return _Checkerboard(cells)


TOYS: dict[str, Callable[..., Target]] = {
    "two-moons": two_moons, "swiss-roll": swiss_roll, "checkerboard": checkerboard, "8-gaussians": eight_gaussians,
    "25-gaussians": twenty_five_gaussians, "pinwheel": pinwheel, "two-spirals": two_spirals, "rings": rings, "banana": banana,
    "funnel": funnel,
}


def toy(name: str, **options: Any) -> Target:
    """A 2D toy by name, with the options of its factory (``noise``, ``cells``, ...). ValueError lists the names."""
    make = TOYS[choice("name", name, TOYS)]
    known(f"target {name!r}", options, {k: v.default for k, v in inspect.signature(make).parameters.items()})
    return make(**options)
