r"""Training by denoising score matching, with checkpoints from which a run continues to the same bits.

*The loss.* Corrupt x = alpha x_0 + sigma eps and regress. In every parameterisation the error of a model is the same up to
a factor k of the level,

    q_hat - q = k_q (x0_hat - x_0),    k = 1 (x0),   -alpha/sigma (eps),   alpha/sigma^2 (score),
                                           -(alpha^2 + sigma^2)/sigma (v),   alpha' - sigma' alpha/sigma (velocity),

so a weighting is a function w(level) on |x0_hat - x_0|^2, whatever the network predicts, and the loss is computed as
w/k_q^2 |q_hat - q|^2 in the network's own quantity, where nothing cancels. Its minimum is the true score, and its excess
over the minimum is the weighted score error (theory, eq. (7); Vincent 2011),

    E |s_theta - grad log p(x|x_0)|^2 - E |s - grad log p(x|x_0)|^2 = E |s_theta - s|^2.

Weightings w, with SNR = alpha^2/sigma^2 and s = sigma_data:

    eps         SNR                 plain noise prediction, the sigma^2-weighted score       Ho et al. 2020; Song et al. 2021
    x0          1                   plain prediction of the data                             Salimans & Ho 2022, sec. 4
    v           SNR + 1             plain v, where alpha^2 + sigma^2 = 1                     Salimans & Ho 2022, sec. 4
    velocity    (alpha lambda')^2   plain flow matching                                      Lipman et al. 2022
    edm         SNR + 1/s^2         = (r^2 + s^2)/(r s)^2 with r = sigma/alpha               Karras et al. 2022, Table 1
    min-snr     min(SNR, gamma)                                                              Hang et al. 2023, sec. 3.4
    likelihood  -lambda' SNR        = g^2/2 on the score error; the ELBO under uniform times, or importance   Song et al. 2021b

*The times.* In expectation only the weight times the density of the levels matters (Kingma & Gao 2023); the density alone
sets the variance. A sampler is the inverse distribution function of its law, applied to uniforms that are independent or
of low discrepancy, u_i = (i + u)/B mod 1 with one u for the batch (Kingma et al. 2021, App. I.1): each u_i is uniform,
and every B-th part of (0, 1) holds exactly one. With ``importance`` the loss is divided by the density of its times: its expectation
is then that of uniform times whatever the law, which is left to set the variance. The law "likelihood" makes it least for the weighting
"likelihood" on data N(0, s^2 I) (``sde.likelihood_law``), and leaves the weight SNR + 1/s^2, that of "edm", bounded against the error.

*Conditions.* With probability ``drop`` all conditions of a sample are replaced by those that mean none, so that one network learns the
conditional and the unconditional score (Ho & Salimans 2022). A noise-aware classifier p(y | x_t) is trained in the same loop, by the
cross-entropy at the same times and noises (Dhariwal & Nichol 2021); its minimum is the exact posterior. So is an autoencoder, for
diffusion in its latents, by the loss that it gives itself.

*Randomness.* The batch, its times and its noise are pure functions of (seed, step): no generator runs along, so none needs
saving. Rows are drawn with replacement. What a network takes from the global generators (dropout) is seeded by the step
as well, and the global state is put back at the end.

*Several processes.* The draws are functions of (seed, step, row of the batch), so rank r of W takes the rows from B r/W to B (r+1)/W of
the same batch, and gradients of sums over rows, added over ranks and divided by B, are those of one process, whether or not W divides B.
Every rank takes the same optimiser step; rank 0 writes the checkpoints. A run may go on with another number of ranks.

*Checkpoints* are one safetensors file: the network, its moving average, the moments of AdamW and the losses so far, with
a JSON document in the metadata. A file appears whole or not at all, the one before it is kept as NAME.previous.SUFFIX, and nothing in it
is ever executed. The document holds a checksum, that of the file with zeros in its place: no bit of it can change unnoticed.
"""
from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import contracts, files, guards
from . import sde as processes
from .contracts import choice, flags, floating, instance, integer, real, scored, shown, state
from .progress import bar
from .random import WhiteNoise
from .ranks import ALONE, Ranks
from .score import NetworkClassifier, NetworkError, NetworkScore, Prediction, Score, from_classifier, from_network, log_posterior
from .sde import SDE, NoiseLevel, likelihood_law

# -- the loss ---------------------------------------------------------------------------------------------------------


def _slope(m: NoiseLevel) -> Any:
    """alpha sigma' - alpha' sigma = -alpha sigma lambda' >= 0."""
    return m.alpha * m.dsigma - m.dalpha * m.sigma


# sigma^2 w and sigma^2 k^2: finite at both ends, alpha -> 0 and sigma -> 0
WEIGHTINGS: dict[str, Callable[[NoiseLevel, float, float], Any]] = {
    "eps": lambda m, sigma_data, gamma: m.alpha**2,
    "x0": lambda m, sigma_data, gamma: m.sigma**2,
    "v": lambda m, sigma_data, gamma: m.alpha**2 + m.sigma**2,
    "velocity": lambda m, sigma_data, gamma: _slope(m)**2,
    "edm": lambda m, sigma_data, gamma: m.alpha**2 + m.sigma**2 / sigma_data**2,
    "min-snr": lambda m, sigma_data, gamma: torch.minimum(m.alpha**2, gamma * m.sigma**2),
    "likelihood": lambda m, sigma_data, gamma: m.alpha * _slope(m) / m.sigma,
}
_ERRORS: dict[str, Callable[[NoiseLevel], Any]] = {
    "eps": lambda m: m.alpha**2,
    "x0": lambda m: m.sigma**2,
    "score": lambda m: (m.alpha / m.sigma)**2,
    "v": lambda m: (m.alpha**2 + m.sigma**2)**2,
    "velocity": lambda m: _slope(m)**2,
}


def weight(weighting: str, level: NoiseLevel, *, sigma_data: float = 0.5, gamma: float = 5.0) -> Tensor:
    """w(level), the factor on |x0_hat - x_0|^2, a tensor shaped as the level's. ``weighting``: a name of the table above;
    ``sigma_data`` enters "edm", ``gamma`` "min-snr". Raises on an unknown name."""
    real("sigma_data", sigma_data, 0.0, low_open=True), real("gamma", gamma, 0.0, low_open=True)
    instance("level", level, NoiseLevel, "a level of tensors such as sdediff.VPSDE().at(torch.tensor([0.5]))")
    return WEIGHTINGS[choice("weighting", weighting, WEIGHTINGS)](level, sigma_data, gamma) / level.sigma**2


def loss(score: Score, sde: SDE, x0: Tensor, t: Tensor, eps: Tensor, weighting: str = "eps", *,
         sigma_data: float | None = None, gamma: float = 5.0) -> Tensor:
    """The denoising loss of each sample, (B,): w(t) |x0_hat - x_0|^2 at x = alpha x_0 + sigma eps, a mean over the event.

    x0, eps: (B, *D); t: (B,), times of the process. ``sigma_data`` is by default that of the score's preconditioning, else
    0.5. Raises ValueError on times outside [0, t_max] and on shapes that do not fit, and what the score raises.
    """
    choice("weighting", weighting, WEIGHTINGS)
    instance("sde", sde, SDE, _SUCH), scored("score", score), real("gamma", gamma, 0.0, low_open=True)
    for name, value in (("x0", x0), ("t", t), ("eps", eps)):
        floating(name, value)
    if sigma_data is not None:
        real("sigma_data", sigma_data, 0.0, low_open=True)
    if eps.shape != x0.shape or t.shape != x0.shape[:1]:
        raise ValueError(f"t.shape={tuple(t.shape)}, eps.shape={tuple(eps.shape)}, x0.shape={tuple(x0.shape)}: expected "
                         f"{tuple(x0.shape[:1])}, a time for each sample, and {tuple(x0.shape)}, noise shaped as x0.")
    if not bool(((t >= 0) & (t <= sde.t_max)).all()):
        raise ValueError(f"t={t}: expected times in [0, {sde.t_max}].")
    level = sde.at(t.reshape(-1, *[1] * (x0.ndim - 1)))
    m = level.to(x0)
    x = m.alpha * x0 + m.sigma * eps
    said = score(x, level)
    name = said.given[0] if len(said.given) == 1 else "v"       # EDM gives x0 and eps: v is stable at both ends
    error = getattr(said, name) - getattr(Prediction(x, m, x0=x0, eps=eps), name)
    edge = level._replace(alpha=level.alpha.clamp_min(1e-30))   # at alpha = 0 the ratio below is a limit
    s = getattr(score, "sigma_data", 0.5) if sigma_data is None else sigma_data
    factor = WEIGHTINGS[weighting](edge, s, gamma) / _ERRORS[name](edge)
    return factor.flatten().to(x0) * error.square().flatten(1).mean(1)


# -- the times --------------------------------------------------------------------------------------------------------
TIMES = ("uniform", "logsnr", "lognormal", "likelihood")
_SUCH = "a forward process such as sdediff.VPSDE()"


def _check(law: str, sde: SDE, p_mean: float, p_std: float, sigma_data: float) -> None:
    """A law of times, and its parameters."""
    choice("times", law, TIMES)
    instance("sde", sde, SDE, _SUCH)
    real("p_mean", p_mean), real("p_std", p_std, 0.0, low_open=True), real("sigma_data", sigma_data, 0.0, low_open=True)


def uniforms(n: int, rng: np.random.Generator, low_discrepancy: bool = True) -> Tensor:
    """n uniforms on (0, 1), float64: independent, or u_i = (i + u)/n mod 1 of one uniform u."""
    integer("n", n, 0), instance("rng", rng, np.random.Generator, "np.random.default_rng(0)")
    flags(low_discrepancy=low_discrepancy)
    u = (np.arange(n) / n + rng.random()) % 1.0 if low_discrepancy else rng.random(n)
    return torch.from_numpy(u).clamp(2.0**-53, 1 - 2.0**-53)


def times(law: str, sde: SDE, u: Tensor, *, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5) -> Tensor:
    """Times in [t_min, t_max] from uniforms u on (0, 1): the inverse distribution function of a law of levels, float64 as u.

    law : "uniform" in t; "logsnr", lambda uniform; "lognormal", log(sigma/alpha) = -lambda normal of mean ``p_mean`` and
        standard deviation ``p_std``, conditioned on the span (Karras et al. 2022, Table 1; on RectifiedFlow it is the
        logit-normal law of Esser et al. 2024); "likelihood", lambda with density proportional to s^2 alpha^2/(s^2 alpha^2 +
        sigma^2), s = ``sigma_data``. A chain's times are its knots 1..N: "uniform" over them, the other laws rounded up to the
        next.

    Raises ValueError on an unknown law, and for "logsnr" where lambda is infinite at an end.
    """
    _check(law, sde, p_mean, p_std, sigma_data)
    state("u", u)
    if law == "uniform" and sde.knots is not None:
        return (u * sde.knots).floor().clamp(0, sde.knots - 1) + 1
    first = 1.0 if sde.knots is not None else sde.t_min
    if law == "uniform":
        return first + (sde.t_max - first) * u
    ends = sde.levels([sde.t_max, first])
    low, high = ends[0].lam, ends[1].lam
    if law == "logsnr":
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"times='logsnr': lambda runs from {low} to {high} on [{first}, {sde.t_max}]; expected finite "
                             "ends. Use times='uniform' or 'lognormal'.")
        lam = low + (high - low) * u
    elif law == "likelihood":
        lam = likelihood_law(u, low, high, sigma_data)[0]
    else:
        # P(-lambda <= y) = Phi((y - p_mean)/p_std), between the ends
        a, b = (torch.special.ndtr(torch.tensor((-e - p_mean) / p_std, dtype=u.dtype)) for e in (high, low))
        if not bool(b - a > 1e-12):
            raise ValueError(f"p_mean={p_mean}, p_std={p_std}: expected a normal law with mass on the process's "
                             f"log(sigma/alpha), [{-high:g}, {-low:g}].")
        lam = -(p_mean + p_std * torch.special.ndtri(a + (b - a) * u))
    t = sde.time_of(lam.clamp(low, high)).clamp(first, sde.t_max)
    return t if sde.knots is None else t.ceil()


def density(law: str, sde: SDE, t: Tensor, *, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5) -> Tensor:
    """The density of ``times`` of that law at t, relative to uniform times on [t_min, t_max]; shaped as t, float64. ValueError on a chain,
    whose times are knots."""
    _check(law, sde, p_mean, p_std, sigma_data)
    floating("t", t, "of times")
    if sde.knots is not None:
        raise ValueError(f"density of times='{law}' on {type(sde).__name__}: the times of a chain are its knots; expected a process in "
                         "continuous time.")
    if law == "uniform":
        return torch.ones_like(t, dtype=torch.float64)
    level, (low, high) = sde.at(t.double()), (m.lam for m in sde.levels([sde.t_max, sde.t_min]))
    alpha = level.alpha.clamp_min(1e-30)        # at alpha = 0 what is divided by the density has a limit
    level, lam = level._replace(alpha=alpha), alpha.log() - level.sigma.log()
    if law == "logsnr":
        rate = torch.full_like(lam, 1 / (high - low))
    elif law == "likelihood":
        rate = torch.sigmoid(2 * lam + 2 * math.log(sigma_data)) / likelihood_law(t[:0], low, high, sigma_data)[1]
    else:
        a, b = (torch.special.ndtr(torch.tensor((-e - p_mean) / p_std, dtype=torch.float64)) for e in (high, low))
        rate = torch.exp(-0.5 * ((lam + p_mean) / p_std)**2) / (p_std * math.sqrt(2 * math.pi) * (b - a))
    return (sde.t_max - sde.t_min) * rate * _slope(level) / (level.alpha * level.sigma)


# -- the configuration ------------------------------------------------------------------------------------------------
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults suit points in the plane.

    Args:
        steps: optimiser steps.
        batch: samples in a step, drawn with replacement.
        lr: the peak learning rate of AdamW.
        schedule: "cosine" falls to zero at the last step; "constant" stays at lr.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW, decoupled.
        beta2: of AdamW, decay of the second moments.
        clip: largest global norm of the gradient; None for no clipping.
        ema: decay of the moving average of the weights, min(ema, (1 + k)/(10 + k)) at step k.
        weighting: "eps", "x0", "v", "velocity", "edm", "min-snr" or "likelihood".
        gamma: the bound of "min-snr".
        times: law of the levels: "uniform" in t, "logsnr", "lognormal", or "likelihood", of least variance for that weighting.
        importance: divide by the density of the times, so that the law sets the variance of the loss and not its expectation.
        drop: probability that all conditions of a sample are replaced by those that mean none (classifier-free guidance: 0.1).
        dequantise: width of uniform noise on the data, drawn anew in every batch: the bin width of data on a lattice, for likelihoods.
        low_discrepancy: spread the levels of a batch evenly over their law.
        p_mean: mean of log(sigma/alpha) under "lognormal".
        p_std: its standard deviation.
        seed: of batches, times and noise.
        checkpoint_every: steps between two checkpoints (one more is written at the end).
    """

    steps: int = 4000
    batch: int = 256
    lr: float = 2e-3
    schedule: str = "cosine"
    warmup: int = 100
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip: float | None = 1.0
    ema: float = 0.999
    weighting: str = "eps"
    gamma: float = 5.0
    times: str = "uniform"
    low_discrepancy: bool = True
    p_mean: float = -1.2
    p_std: float = 1.2
    importance: bool = False
    drop: float = 0.0
    dequantise: float = 0.0
    seed: int = 0
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch", 1), ("warmup", 0), ("checkpoint_every", 1)):
            integer(name, getattr(self, name), low)
        integer("seed", self.seed, 0, 2**63 - 1)
        for name in ("lr", "gamma", "p_std"):
            real(name, getattr(self, name), 0.0, low_open=True)
        if self.clip is not None:
            real("clip", self.clip, 0.0, low_open=True, hint="or None for no clipping")
        for name in ("weight_decay", "dequantise"):
            real(name, getattr(self, name), 0.0)
        real("p_mean", self.p_mean)
        for name in ("beta2", "ema", "drop"):
            real(name, getattr(self, name), 0.0, 1.0, high_open=True)
        choice("schedule", self.schedule, SCHEDULES)
        choice("weighting", self.weighting, WEIGHTINGS)
        choice("times", self.times, TIMES)
        flags(low_discrepancy=self.low_discrepancy, importance=self.importance)

    def rate(self, step: int) -> float:
        """The learning rate of step 0..steps-1, a pure function of the step."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * warm * (0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.schedule == "cosine" else 1.0)

    def decay(self, step: int) -> float:
        """The decay of the moving average at step 0, 1, ...: the average starts at the initial weights and warms up."""
        return min(self.ema, (1 + step) / (10 + step))


# -- checkpoints ------------------------------------------------------------------------------------------------------
FORMAT, SCHEMA, CHECKSUM = "sdediff.training", 2, "checksum"
_READ = (1, SCHEMA)                             # files of schema 1 have no checksum
_BLANK = "0" * 32
CLASS, ITSELF = "class", "itself"                # what a classifier predicts, and what an autoencoder does
_MOMENTS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "adamw_step": "step"}      # part: AdamW's name
_PARTS = ("network", "ema", *_MOMENTS)
_DOCUMENT: dict[str, tuple[type, ...]] = {
    "step": (int,), "training": (dict,), "network": (dict, type(None)), "predicts": (str,), "time_input": (str, type(None)),
    "sigma_data": (float,), "sde": (dict,), "data": (str,)}


def sde_config(sde: SDE) -> dict[str, Any]:
    """A process as a JSON document, {"type": ..., its fields}. Fields that are no numbers, flags or tables (the
    coefficients of a LinearSDE) are left out."""
    instance("sde", sde, SDE, _SUCH)
    names: list[str] = [f.name for f in dataclasses.fields(sde) if f.init] if dataclasses.is_dataclass(sde) else []
    values = {name: getattr(sde, name) for name in names}
    return {"type": type(sde).__name__} | {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()
                                           if isinstance(v, (bool, int, float, str, np.ndarray))}


def build_sde(config: Mapping[str, Any]) -> SDE:
    """The process of a document of ``sde_config``. Raises ValueError where it is not the library's, or not complete."""
    config = contracts.names("config", instance("config", config, Mapping, "a document of sde_config(sde)"), "{'type': 'VPSDE'}")
    kind = getattr(processes, str(config.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, SDE)):
        raise ValueError(f"sde={dict(config)!r}: expected a process of sdediff; make your own yourself and pass it.")
    try:
        return kind(**{k: np.array(v) if isinstance(v, list) else v for k, v in config.items() if k != "type"})
    except TypeError as e:
        raise ValueError(f"sde={dict(config)!r}: this document does not determine the process ({e}).") from None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: the JSON ``document``, and the tensors by part ("network", "ema", "exp_avg", ...) and name."""

    path: Path
    document: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Tensor]]
    losses: Tensor

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.document["step"]

    @property
    def config(self) -> TrainingConfig:
        """How the run was configured."""
        return TrainingConfig(**self.document["training"])

    @property
    def sde(self) -> SDE:
        """The process it was trained under; raises ValueError where the file does not determine it (a LinearSDE)."""
        with _said_in(self.path):
            return build_sde(self.document["sde"])

    def score(self, network: nn.Module, *, ema: bool = True) -> NetworkScore:
        """Load the weights (the average, or the last ones) into ``network``, such as ``nets.build(document["network"])``,
        and return it as the Score that was trained. Raises ValueError where names or shapes do not fit, and where the
        time input was a function, which a file does not hold."""
        other = {CLASS: "classifier", ITSELF: "autoencoder"}.get(self.document["predicts"])
        if other:
            raise ValueError(f"{self.path}: it holds a {other}, not a score; expected checkpoint.{other}(network).")
        _load(network, self.parts["ema" if ema else "network"], self.path)
        time_input = self.document["time_input"]
        if time_input is None:
            raise ValueError(f"{self.path}: time_input was a function, which a file does not hold; expected a name. "
                             "from_network(network, predicts, time_input=...) takes the function again.")
        with _said_in(self.path):
            return from_network(network, self.document["predicts"], time_input=time_input, sigma_data=self.document["sigma_data"])

    def classifier(self, network: nn.Module, *, ema: bool = True) -> NetworkClassifier:
        """The same for a classifier, of ``train_classifier``. Raises ValueError on a score's checkpoint."""
        _load(network, self.parts["ema" if ema else "network"], self.path)
        time_input = self.document["time_input"]
        if self.document["predicts"] != CLASS or time_input is None:
            raise ValueError(f"{self.path}: it holds {'a score' if time_input else 'no name of the time input'}; expected a classifier's "
                             "checkpoint, made by train_classifier with a time_input that has a name.")
        with _said_in(self.path):
            return from_classifier(network, time_input=time_input)

    def autoencoder(self, network: nn.Module, *, ema: bool = True) -> nn.Module:
        """The same for an autoencoder, of ``train_autoencoder``. Raises ValueError on another checkpoint."""
        if self.document["predicts"] != ITSELF:
            raise ValueError(f"{self.path}: it holds no autoencoder; expected a checkpoint made by train_autoencoder.")
        _load(network, self.parts["ema" if ema else "network"], self.path)
        return network


@contextlib.contextmanager
def _said_in(path: Path) -> Iterator[None]:
    """An error is about what a file says, and names it."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as e:
        raise ValueError(f"{path}: {e}") from None


def previous(path: str | Path) -> Path:
    """Where the checkpoint before the last one is kept: a.safetensors, a.previous.safetensors."""
    path = files.named("path", path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: str | Path, document: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]],
                    losses: Tensor) -> None:
    """Write a checkpoint, whole or not at all, and keep the one that was there as ``previous(path)``. Raises OSError where it cannot be
    written; the file is then as it was; TypeError or ValueError on what is no document, tensors by part, or losses (steps,)."""
    from safetensors.torch import save

    document = contracts.names("document", instance("document", document, Mapping, "a document such as {'step': 0}"), "{'step': 0}")
    if floating("losses", losses, "of a loss for each step").ndim != 1:
        raise ValueError(f"losses.shape={tuple(losses.shape)}: expected (steps,), a loss for each step.")
    for part, named in contracts.names("parts", instance("parts", parts, Mapping, "tensors by part"), "{'network': {...}}").items():
        for name, v in instance(f"parts[{part!r}]", named, Mapping, "tensors by name").items():
            instance(f"parts[{part!r}][{name!r}]", v, Tensor, "a tensor")
    path = files.named("path", path)
    tensors = {f"{part}/{name}": v.detach().cpu().clone(memory_format=torch.contiguous_format)
               for part, named in parts.items() for name, v in named.items()}
    full = {CHECKSUM: _BLANK, "format": FORMAT, "schema": SCHEMA} | dict(document)
    content = bytearray(save(tensors | {"losses": losses.detach().cpu().clone()}, {FORMAT: json.dumps(full)}))
    at = content.index(_BLANK.encode())         # the document comes first in the file, and this first in the document
    content[at:at + len(_BLANK)] = hashlib.blake2b(content, digest_size=len(_BLANK) // 2).hexdigest().encode()
    if Path(path).exists():
        files.keep(path, previous(path))
    files.write(path, content)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed. Raises FileNotFoundError, and ValueError for a file that is damaged, no
    checkpoint, of an unknown schema or incomplete, with its name, what was expected, and the checkpoint before it, if that is whole."""
    path, before = files.named("path", path), previous(path)
    try:
        return _read(path)
    except ValueError as error:
        try:
            step = _read(before).step
        except (OSError, ValueError):
            raise error from None
        raise ValueError(f"{error} The one before it, of step {step}, is whole: `mv {shlex.quote(str(before))} {shlex.quote(str(path))}` "
                         "and resume from it.") from None


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        metadata = json.loads(content[8:8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
        tensors = load(content)
    except (SafetensorError, ValueError, AttributeError, KeyError, AssertionError, RuntimeError) as e:    # RuntimeError: nested too deep
        raise ValueError(f"{path}: damaged, or no safetensors file ({_short(str(e))}); expected a checkpoint of sdediff.") from None
    try:
        document = json.loads(metadata[FORMAT])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: no document {FORMAT!r} in its metadata; expected a checkpoint of sdediff.") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in _READ:
        raise ValueError(f"{path}: schema {schema!r}; expected {SCHEMA}. A file of a newer sdediff needs that version.")
    checksum = document.pop(CHECKSUM, None)
    if schema > 1 and not _intact(content, checksum):
        raise ValueError(f"{path}: damaged, its checksum is not that of its content; expected a checkpoint of sdediff as it was written.")
    for key, kind in _DOCUMENT.items():
        if not isinstance(document.get(key, ...), kind):
            raise ValueError(f"{path}: {key!r} is {_short(document.get(key, 'missing'))} in its document; expected "
                             f"{' or '.join(k.__name__ for k in kind)}.")
    try:
        TrainingConfig(**document["training"])
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path}: 'training' in its document does not fit TrainingConfig: {e}") from None
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    losses = tensors.pop("losses", torch.empty(0))
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    sizes = [{name: v.shape for name, v in parts[part].items()} for part in ("network", "ema", "exp_avg", "exp_avg_sq")]
    steps = parts["adamw_step"].keys()
    if not sizes[0] or sizes[0] != sizes[1] or sizes[2] != sizes[3] or sizes[2].keys() != steps or not sizes[2].items() <= sizes[0].items():
        raise ValueError(f"{path}: tensors are missing, or of different shapes; expected {', '.join(_PARTS)} for every parameter.")
    if losses.shape != (document["step"],):
        raise ValueError(f"{path}: {len(losses)} losses at step {document['step']}; expected as many as steps.")
    return Checkpoint(path, document, parts, losses)


def _intact(content: bytes, checksum: Any) -> bool:
    """Whether a file is as it was when this checksum was written into it."""
    if not isinstance(checksum, str) or len(checksum) != len(_BLANK) or (at := content.find(checksum.encode(errors="replace"))) < 0:
        return False
    h = hashlib.blake2b(digest_size=len(_BLANK) // 2)
    for part in (memoryview(content)[:at], _BLANK.encode(), memoryview(content)[at + len(_BLANK):]):
        h.update(part)
    return h.hexdigest() == checksum


def _load(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Weights into a network that they fit; one that they do not is left as it was."""
    theirs, ours = ({k: tuple(v.shape) for k, v in named.items()} for named in (weights, network.state_dict()))
    if theirs != ours:
        name = min(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
        raise ValueError(f"{path}: its weights do not fit the network {type(network).__name__}: {name!r} is {theirs.get(name, 'missing')} "
                         f"in the file and {ours.get(name, 'missing')} in the network.")
    network.load_state_dict(weights)


# -- the loop ---------------------------------------------------------------------------------------------------------
_USE = 1 << 16                                  # of the noise source: a stream that no solver draws from


@dataclass(frozen=True)
class Trained:
    """What training returns. ``network``: the one given, trained in place; ``ema``: its moving average, the one to sample from; ``model``:
    the adapter given, around ``ema``; ``losses`` (steps,): the mean loss of each batch."""

    network: nn.Module
    ema: nn.Module
    losses: Tensor
    model: Any
    sde: SDE
    config: TrainingConfig

    @property
    def score(self) -> NetworkScore:
        """The trained score."""
        return self.model

    @property
    def classifier(self) -> NetworkClassifier:
        """The trained classifier."""
        return self.model


class _Rounded(nn.Module):
    """A bfloat16 network with weights kept in float32, where the small updates of training are not lost to rounding."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.master, self.dtype = copy.deepcopy(network).float(), dtype

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        cast = lambda v: v.to(self.dtype) if v.is_floating_point() else v
        weights = {k: cast(v) for k, v in [*self.master.named_parameters(), *self.master.named_buffers()]}
        return torch.func.functional_call(self.master, weights, (cast(x), cast(c)), conditions)


def train(score: NetworkScore, sde: SDE, data: Tensor, config: TrainingConfig | None = None, *,
          conditions: Mapping[str, Tensor] | None = None, null: Mapping[str, Any] | None = None,
          checkpoint: str | Path | None = None, resume: bool = False, progress: bool = True, group: Any = None) -> Trained:
    """Train a network by denoising score matching: AdamW on the weighted loss, gradients clipped, weights averaged.

    Parameters
    ----------
    score : a network as ``from_network(network, predicts=..., time_input=...)``. The network is trained in place, on the
        device where it is, in its own dtype (bfloat16 with float32 weights behind it; float16 is refused).
    sde : the forward process.
    data : (N, *D), moved to the device once.
    conditions : tensors with a leading axis of N, passed to the network by keyword, as ``{"y": labels}``.
    null : what ``config.drop`` puts in place of each condition, as ``{"y": 10}``: values that mean none.
    checkpoint : a file, written every ``config.checkpoint_every`` steps, at the end, and on KeyboardInterrupt. An existing
        file raises FileExistsError, unless ``resume`` is set: the run then continues from it, and ends where an
        uninterrupted one would have, bit for bit (on one kind of machine with one number of threads; on a GPU, where its
        kernels are deterministic). With ``resume``, a file that does not exist yet is a fresh start.
    progress : show a tqdm bar with the loss; into a pipe it writes a line every 10 s.
    group : a torch.distributed process group whose processes all make this call, each with its own copy of the data. ``batch`` is
        then shared by them, and the losses are those of one process to rounding (batch normalisation apart, whose statistics are
        those of a rank's rows, and dropout, which draws other masks). All start from rank 0's weights.

    Raises TypeError or ValueError for wrong arguments and for a checkpoint of another run (other network, data, process or
    configuration), FloatingPointError when the loss is not finite, and ``ranks.RankError`` where another process fails. The global
    random state is left as it was.
    """
    config = TrainingConfig() if config is None else config
    if not isinstance(score, NetworkScore) or not isinstance(score.network, nn.Module):
        raise TypeError(f"score={type(score).__name__}: expected from_network(network, ...) around a torch.nn.Module.")

    return _trained(score, denoising(sde, config), sde, data, conditions, null, config, checkpoint, resume, progress, group)


def train_classifier(classifier: NetworkClassifier, sde: SDE, data: Tensor, labels: Tensor, config: TrainingConfig | None = None, *,
                     checkpoint: str | Path | None = None, resume: bool = False, progress: bool = True, group: Any = None) -> Trained:
    """Train a noise-aware classifier, log p(y | x_t), for classifier guidance: as ``train``, with the cross-entropy for the loss.

        trained = training.train_classifier(from_classifier(nets.MLP(2, outputs=3)), sde, data, labels)     # trained.classifier

    labels : (N,) integers in [0, C - 1], C the logits that the network returns. ``config.weighting`` and ``gamma`` do not enter; ``times``,
    and ``importance``, do. Raises as ``train`` does, and ``NetworkError`` where the network returns no logits (B, C).
    TypeError on what is no classifier, ValueError on ``drop`` > 0.
    """
    config = TrainingConfig() if config is None else config
    if not isinstance(classifier, NetworkClassifier) or not isinstance(classifier.network, nn.Module):
        raise TypeError(f"classifier={type(classifier).__name__}: expected from_classifier(network) around a torch.nn.Module.")
    if getattr(config, "drop", 0.0):
        raise ValueError(f"drop={config.drop}: a classifier is trained on all labels; expected drop=0.0.")

    if not isinstance(labels, Tensor) or labels.shape != (len(state("data", data)),):
        raise ValueError(f"labels={shown(labels)}: expected integers ({len(data)},), a label for each sample of data.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels.dtype={labels.dtype}: expected integer labels from 0 up.")
    return _trained(classifier, classifying(sde, labels), sde, data, {"y": labels}, None, config, checkpoint, resume, progress, group)


def train_autoencoder(coder: nn.Module, data: Tensor, config: TrainingConfig | None = None, *, checkpoint: str | Path | None = None,
                      resume: bool = False, progress: bool = True, group: Any = None) -> Trained:
    """Train the autoencoder of a latent diffusion, any module that returns the loss (B,) of x (B, *D): as ``train``, without a process.

        coder = training.train_autoencoder(nets.Autoencoder((1, 28, 28)), data).ema

    Of ``config`` the batch, the optimiser and the average enter; times and weightings do not. Raises as ``train`` does, TypeError on what
    is no module, ValueError on ``drop`` > 0 and where the module returns no losses (B,).
    """
    config = TrainingConfig() if config is None else config
    if not isinstance(coder, nn.Module):
        raise TypeError(f"coder={type(coder).__name__}: expected a torch.nn.Module such as nets.Autoencoder((1, 28, 28)).")
    if getattr(config, "drop", 0.0):
        raise ValueError(f"drop={config.drop}: an autoencoder has no conditions; expected drop=0.0.")

    def losses(coder: _Coder, x0: Tensor, conditions: Mapping[str, Tensor], t: Tensor, eps: Tensor) -> Tensor:
        value = coder.network(x0)
        if not isinstance(value, Tensor) or value.shape != x0.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"coder {coder.name}: returned {got} for x {tuple(x0.shape)}; expected the loss of each sample, ({len(x0)},).")
        return value

    return _trained(_Coder(coder), losses, processes.VPSDE(), data, None, None, config, checkpoint, resume, progress, group)


@dataclass(frozen=True)
class _Coder:
    """An autoencoder, to the training loop."""

    network: nn.Module
    predicts: str = ITSELF
    time_input: None = None

    @property
    def name(self) -> str:
        return type(self.network).__name__


Losses = Callable[[Any, Tensor, Mapping[str, Tensor], Tensor, Tensor], Tensor]


def denoising(sde: SDE, config: TrainingConfig) -> Losses:
    """``loss`` as the training loop asks for it: of (score, x0, conditions, t, eps)."""
    return lambda score, x0, conditions, t, eps: loss(score.condition(**conditions) if conditions else score, sde, x0, t, eps,
                                                      config.weighting, gamma=config.gamma)


def classifying(sde: SDE, every: Tensor) -> Losses:
    """-log p(y | x_t) of each sample, of (classifier, x0, {"y": labels}, t, eps). ``every``: all labels there are, so that a wrong one is
    found at the first step and not when it is drawn."""
    ends = torch.stack(every.aminmax()).cpu() if isinstance(every, Tensor) and every.numel() else None

    def losses(classifier: NetworkClassifier, x0: Tensor, conditions: Mapping[str, Tensor], t: Tensor, eps: Tensor) -> Tensor:
        level = sde.at(t.reshape(-1, *[1] * (x0.ndim - 1))).to(x0)
        log_p = log_posterior(classifier, level.alpha * x0 + level.sigma * eps, level)
        if ends is not None:
            contracts.labels("labels", ends, 2, log_p.shape[1], ends.device)
        y = contracts.labels("labels", conditions["y"], len(x0), log_p.shape[1], x0.device)
        return nn.functional.nll_loss(log_p, y, reduction="none")

    return losses


def _trained(model: Any, losses: Losses, sde: SDE, data: Tensor, conditions: Mapping[str, Tensor] | None, null: Mapping[str, Any] | None,
             config: TrainingConfig, checkpoint: str | Path | None, resume: bool, progress: bool, group: Any) -> Trained:
    """``losses(model, x0, conditions, t, eps)`` (B,) made small."""
    instance("config", config, TrainingConfig, "a TrainingConfig, such as TrainingConfig(steps=1000)")
    instance("sde", sde, SDE, _SUCH)
    flags(resume=resume, progress=progress)
    if not len(state("data", data)):
        raise ValueError(f"data.shape={tuple(data.shape)}: expected at least one sample.")
    conditions, null = contracts.names("conditions", conditions, "{'y': labels}"), contracts.names("null", null, "{'y': 10}")
    for name, value in conditions.items():
        if not isinstance(value, Tensor) or value.shape[:1] != data.shape[:1]:
            raise ValueError(f"conditions[{name!r}]={getattr(value, 'shape', value)}: expected a tensor with a leading axis "
                             f"of {len(data)}, that of data.")
    if isinstance(model, NetworkScore):
        guards.data(sde, data)
    null = _nulls(config.drop, conditions, null)
    path = None if checkpoint is None else files.named("checkpoint", checkpoint)
    if path is not None and path.exists() and not resume:
        raise FileExistsError(f"checkpoint={str(path)!r} exists; resume=True continues it, or choose another name.")
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"checkpoint={str(path)!r}: expected its directory to exist.")

    ranks, network = Ranks.of(group), model.network
    if config.batch < ranks.size:
        raise ValueError(f"batch={config.batch}: {ranks.size} processes share it; expected batch >= {ranks.size}.")
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters or any(p.dtype not in (torch.bfloat16, torch.float32, torch.float64) for p in parameters):
        raise TypeError(f"network {model.name}: its parameters are {sorted({str(p.dtype) for p in network.parameters()})}; "
                        "expected trainable ones of float32, float64 or bfloat16.")
    rounded = parameters[0].dtype == torch.bfloat16
    with torch.no_grad():
        ranks.from_first(*(p.data for p in network.parameters()), *network.buffers())
    with torch.random.fork_rng(devices=_cuda(parameters[0].device)), torch.enable_grad():
        for file in (path, previous(path)) if path is not None and ranks.rank == 0 else ():
            files.sweep(file.parent, file.name)
        run = _Run(_Rounded(network, torch.bfloat16) if rounded else network, model, losses, sde, data, conditions, null, config, ranks)
        if path is not None and path.exists():
            run.restore(load_checkpoint(path))
        if ranks.size > 1:
            ranks.same(run.document())
        run.loop(path, progress)
    ema = run.average.module
    if rounded:
        network.load_state_dict(_bare(run.network).state_dict())
        ema = copy.deepcopy(network)
        ema.load_state_dict(_bare(run.average.module).state_dict())
    ema.train(network.training)
    return Trained(network, ema, run.losses.cpu(), dataclasses.replace(model, network=ema), sde, config)


def _nulls(drop: float, conditions: Mapping[str, Tensor], null: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """What stands for each condition where it is dropped."""
    if not drop:
        return {}
    if not conditions or set(null or {}) != set(conditions):
        raise ValueError(f"drop={drop}, null={null!r}: expected a value that means none for each of the conditions {sorted(conditions)}, "
                         "such as null={'y': 10}" + ("." if conditions else "; there is none to drop: drop=0.0."))
    made = {k: torch.as_tensor(v) for k, v in (null or {}).items()}
    for k, v in made.items():
        if v.shape not in ((), conditions[k].shape[1:]) or not torch.can_cast(v.dtype, conditions[k].dtype):
            raise ValueError(f"null[{k!r}]={v}: expected a value for conditions[{k!r}] of one sample, {tuple(conditions[k].shape[1:])} and "
                             f"{conditions[k].dtype}.")
    return made


class _Run:
    """The state of a training run after ``step`` steps."""

    def __init__(self, network: nn.Module, model: Any, losses: Losses, sde: SDE, data: Tensor, conditions: Mapping[str, Tensor],
                 null: Mapping[str, Tensor], config: TrainingConfig, ranks: Ranks = ALONE) -> None:
        self.network, self.model, self.sde, self.config = network, dataclasses.replace(model, network=network), sde, config
        self.each = losses
        self.ranks, share = ranks, [config.batch * r // ranks.size for r in (ranks.rank, ranks.rank + 1)]
        self.rows = slice(*share)               # of the batch: this rank's
        self.step = 0
        self.named = {k: p for k, p in _bare(network).named_parameters() if p.requires_grad}
        first = next(iter(self.named.values()))
        self.given = data, conditions, null
        self.data = data.detach().to(device=first.device, dtype=first.dtype)
        self.conditions = {k: v.detach().to(first.device) for k, v in conditions.items()}
        self.null = {k: v.to(self.conditions[k]) for k, v in null.items()}
        self.noise = WhiteNoise(config.seed, (share[1] - share[0], *data.shape[1:]), dtype=first.dtype, device=first.device,
                                first=share[0])
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=config.lr, betas=(0.9, config.beta2),
                                           weight_decay=config.weight_decay, fused=first.device.type in ("cpu", "cuda"))
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.decay(0)))
        self.average.n_averaged.fill_(1)        # the average starts at the initial weights
        self.losses = torch.zeros(config.steps, device=first.device)
        self.law = {"p_mean": config.p_mean, "p_std": config.p_std, "sigma_data": getattr(model, "sigma_data", 0.5)}

    def draw(self) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """This rank's rows of the batch of this step, their conditions, times and noise: pure functions of (seed, step, row)."""
        c, rng = self.config, np.random.Generator(np.random.Philox(key=self.config.seed, counter=self.step << 64))
        rows = torch.from_numpy((rng.random(c.batch) * len(self.data)).astype(np.int64)[self.rows]).to(self.data.device)
        t = times(c.times, self.sde, uniforms(c.batch, rng, c.low_discrepancy)[self.rows], **self.law)
        x0, noise = self.data[rows], self.noise.at(self.step)
        if c.dequantise:
            x0 = x0 + c.dequantise * (torch.special.ndtr(noise.normal(_USE + 1).float()) - 0.5).to(x0)
        conditions = {k: v[rows] for k, v in self.conditions.items()}
        if c.drop:
            dropped = torch.from_numpy(rng.random(c.batch) < c.drop)[self.rows].to(rows.device)
            conditions = {k: torch.where(dropped.view(-1, *[1] * (v.ndim - 1)), self.null[k], v) for k, v in conditions.items()}
        return x0, conditions, t, noise.normal(_USE)

    def advance(self) -> None:
        """One step. Ctrl-C comes before or after the update, never between its parts."""
        x0, conditions, t, eps = self.draw()
        c = self.config
        _seed(c.seed, self.step, self.rows.start, self.data.device)
        try:
            losses = self.each(self.model, x0, conditions, t, eps)
        except NetworkError as error:
            raise NetworkError(f"{error} (training step {self.step})") from None
        if c.importance:
            losses = losses / density(c.times, self.sde, t, **self.law).to(losses)
        value = losses.sum() / c.batch
        self.optimizer.zero_grad()
        value.backward()
        if self.ranks.size > 1:
            value = self.total(value.detach())
        if value.is_cpu:                        # elsewhere it would wait for the device: then at the next checkpoint
            self.check(value.item())
        if c.clip is not None:
            nn.utils.clip_grad_norm_(self.named.values(), c.clip)
        with _uninterrupted():
            for group in self.optimizer.param_groups:
                group["lr"] = c.rate(self.step)
            self.optimizer.step()
            self.average.multi_avg_fn = get_ema_multi_avg_fn(c.decay(self.step))
            self.average.update_parameters(self.network)
            self.losses[self.step] = value.detach()
            self.step += 1

    def total(self, value: Tensor) -> Tensor:
        """The loss of the whole batch, and its gradients in place of this rank's, in one message. A parameter has a gradient where any
        rank used it."""
        parameters = list(self.named.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = value.new_tensor([p.grad is not None for p in parameters])
        flat = torch.cat([value.view(1), used, *(g.flatten() for g in gradients)])
        self.ranks.add(flat)
        value, used, *summed = flat.split([1, len(used), *(g.numel() for g in gradients)])
        for p, gradient, total, users in zip(parameters, gradients, summed, used):
            gradient.copy_(total.view_as(p))
            if p.grad is None and bool(users):
                p.grad = gradient
        return value[0]

    def loop(self, path: Path | None, progress: bool) -> None:
        config, training, first = self.config, self.network.training, self.ranks.rank == 0
        path, progress = (path, progress) if first else (None, False)
        self.network.train()
        try:
            with bar(config.steps, progress, initial=self.step, desc="train", dynamic_ncols=True, mininterval=0.2) as shown:
                while self.step < config.steps:
                    self.advance()
                    if shown.update() or self.step == config.steps:
                        shown.set_postfix_str(f"loss {self.recent():.4g}", refresh=False)
                    if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                        self.check(self.recent())
                        if path is not None:
                            self.save(path)
            self.ranks.agree()                  # the checkpoint is there
        except KeyboardInterrupt:
            if path is not None and self.step and math.isfinite(self.recent()):
                self.save(path)
            raise
        finally:
            self.network.train(training)

    def recent(self) -> float:
        """The mean of the last 100 losses."""
        return self.losses[max(0, self.step - 100):self.step].mean().item()

    def check(self, value: float) -> None:
        """Raise FloatingPointError for a loss that is not finite, before the weights or a checkpoint hold what follows from it."""
        if not math.isfinite(value):
            c = self.config
            raise FloatingPointError(f"the loss is {value} at step {self.step}; expected finite losses. Lower lr={c.lr}, clip "
                                     f"gradients (clip={c.clip}), or check the data and weighting={c.weighting!r}.")

    @functools.cached_property
    def digest(self) -> str:
        return fingerprint(*self.given)

    def document(self) -> dict[str, Any]:
        shown, given = getattr(_bare(self.network), "config", None), self.model.time_input
        return {"step": self.step, "training": dataclasses.asdict(self.config), "sde": sde_config(self.sde),
                "network": shown if isinstance(shown, dict) else None, "predicts": getattr(self.model, "predicts", CLASS),
                "time_input": given if isinstance(given, str) else None, "sigma_data": float(self.law["sigma_data"]),
                "data": self.digest}

    def save(self, path: Path) -> None:
        parts = {"network": _bare(self.network).state_dict(), "ema": _bare(self.average.module).state_dict()}
        for part, key in _MOMENTS.items():
            parts[part] = {k: self.optimizer.state[p][key] for k, p in self.named.items() if p in self.optimizer.state}
        save_checkpoint(path, self.document(), parts, self.losses[:self.step])

    def restore(self, saved: Checkpoint) -> None:
        c, theirs = self.config, saved.document
        for name, value in dataclasses.asdict(c).items():
            free = name == "checkpoint_every" or (name == "steps" and c.schedule == "constant")
            if value != getattr(saved.config, name) and not free:
                raise ValueError(f"{name}={value!r}: the run of {saved.path} has {name}={getattr(saved.config, name)!r}; expected "
                                 "the same, to continue it.")
        for name, value in self.document().items():
            if name not in ("step", "training") and json.loads(json.dumps(value)) != theirs[name]:
                raise ValueError(f"{saved.path}: its run has {name} {_short(theirs[name])}; this one has {_short(value)}; "
                                 "expected the same, to continue it.")
        if saved.step > c.steps:
            raise ValueError(f"steps={c.steps}: the checkpoint {saved.path} is at step {saved.step} already.")
        network = _bare(self.network)
        if not set(saved.parts["exp_avg"]) <= set(self.named):
            raise ValueError(f"{saved.path}: it has moments of other parameters than {type(network).__name__} has.")
        for name, value in network.state_dict().items():
            if (was := saved.parts["network"].get(name, value)).dtype != value.dtype:
                raise ValueError(f"{saved.path}: its {name!r} is {was.dtype}, that of {type(network).__name__} {value.dtype}; expected the "
                                 "same, to continue it.")
        _load(network, saved.parts["network"], saved.path)
        _load(_bare(self.average.module), saved.parts["ema"], saved.path)
        for name in saved.parts["exp_avg"]:
            p = self.named[name]
            self.optimizer.state[p] = {key: saved.parts[part][name].to(p.device) for part, key in _MOMENTS.items()}
        self.step = saved.step
        self.losses[:saved.step] = saved.losses.to(self.losses)


def _bare(network: Any) -> nn.Module:
    """The network whose weights are trained and saved."""
    return network.master if isinstance(network, _Rounded) else network


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    came: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        previous(*came[0])


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _seed(seed: int, step: int, row: int, device: torch.device) -> None:
    """The global generators, inside train's fork: what dropout draws is a function of (seed, step) too, and of a rank's first row."""
    word = int.from_bytes(hashlib.blake2b(f"{seed}/{step}{f'/{row}' if row else ''}".encode(), digest_size=7).digest(), "little")
    torch.default_generator.manual_seed(word)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(word)


def fingerprint(data: Tensor, conditions: Mapping[str, Tensor], null: Mapping[str, Tensor]) -> str:
    """Of data (N, *D), their conditions, and what is put in place of these, as checkpoints hold it: a run continues on the data it was
    begun with."""
    instance("data", data, Tensor, "a torch.Tensor (N, ...)")
    for of, given in (("conditions", conditions), ("null", null)):
        for k, v in contracts.names(of, instance(of, given, Mapping, "tensors by name, {} for none"), "{'y': labels}").items():
            instance(f"{of}[{k!r}]", v, Tensor, "a torch.Tensor")
    conditions = {**conditions, **{f"{k} dropped": v for k, v in null.items()}}
    h = hashlib.blake2b(digest_size=16)
    for name, v in {"": data, **dict(sorted(conditions.items()))}.items():
        h.update(f"{name} {tuple(v.shape)} {v.dtype};".encode())
        h.update(v.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:197] + "..."
