r"""Warnings: what the numbers of a run say is wrong where nothing forbids it. Their category is ``NumericalWarning``.

*The start.* A sampler draws its first state from N(0, s^2 I) in place of the law of x = alpha x_0 + sigma eps. The divergence is convex, so
that per coordinate, with c = E x_0^2,

    KL(p || N(0, s^2)) <= E KL(N(alpha x_0, sigma^2) || N(0, s^2)) = (alpha^2 c/s^2 + u - 1 - log u)/2,     u = (sigma/s)^2,            (1)

the term L_T of Ho et al. 2020. Above ``START`` = 0.02 nats, where a coordinate's law may be off by a tenth (Pinsker: total variation <=
sqrt(KL/2)), a run warns: for data of unit mean square that is alpha > 0.2, or sigma_max < 5 where alpha = 1. The processes in use lie far
below: 1000 betas 2e-5 nats, the continuous VP and cosine ones 2e-5 and 4e-5, EDM 8e-5, VE 2e-4, 300 betas of 1e-4 to 0.04 1e-3. Training
warns where the process would do for data of unit mean square, and does not for the data at hand: they want scaling.

*A given state* at a level has E x^2 >= sigma^2 whatever the data are. Below a quarter of sigma it is no state of that level (most often
N(0, I) where N(0, sigma^2 I) was meant); zeros, the middle of the latent space, are let pass, and so is all that is small in number.

*Half precision.* float16 ends at 65504; bfloat16 has 8 binary digits, so that a network told t in it cannot tell t = 0.998 from 1.
"""
from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .sde import SDE, NoiseLevel

START, SMALL, FEW = 0.02, 0.25, 64              # nats per coordinate; of sigma; numbers in a state too few to judge
HALF = (torch.float16, torch.bfloat16)
_NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")         # a state of single precision
FLUSHED = 0.01                                  # share of a state's numbers that may become 0 in a cast


class NumericalWarning(UserWarning):
    """Numbers that are allowed and look wrong: the message says which, by how much, and what to do."""


def warn(text: str) -> None:
    """A ``NumericalWarning`` at the line outside of this package that led here."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == __package__:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, NumericalWarning, stacklevel=depth)


def prior_kl(level: NoiseLevel, std: float, square: float = 1.0) -> float:
    """The bound (1), in nats per coordinate, at a level of floats: N(0, std^2) in place of the law of x, for data of mean square
    ``square``. Infinite where the level has no noise."""
    if not level.sigma or not std:
        return math.inf
    u = (level.sigma / std)**2
    return 0.5 * ((level.alpha / std)**2 * square + u - 1 - math.log(u))


def square_of(score: Any) -> float | None:
    """E x_0^2 per coordinate where a score knows its data: an exact law, or a network with the ``sigma_data`` that it was given."""
    law = getattr(score, "__self__", None)      # the score of a target is a method of it
    if isinstance(getattr(law, "cov", None), Tensor):
        return float((law.cov.diagonal() + law.mean**2).mean())                                  # type: ignore[union-attr]
    said = getattr(score, "sigma_data", None)
    return said**2 if said is not None and (said != 0.5 or score.predicts == "edm") else None


def start(sde: SDE, score: Any, level: NoiseLevel, rms: float | None) -> None:
    """Warn where a run starts from the prior (``rms`` None) at a level that still shows the data, or from a state whose root mean square is
    too small for its level."""
    if rms is not None:
        if 0 < rms < SMALL * level.sigma:
            warn(f"x_init has the root mean square {rms:.3g} at t={level.t:.6g}, where a state alpha x0 + sigma eps has at least sigma = "
                 f"{level.sigma:.4g}: it is no state of that level. Expected sde.prior_std() * noise, or t_start= the time it belongs to.")
        return
    std = sde.prior_std(level)
    if prior_kl(level, std) <= START:
        return
    square = square_of(score)
    if (kl := prior_kl(level, std, 1.0 if square is None else square)) > START:
        data = "data of unit variance" if square is None else f"the score's data (root mean square {math.sqrt(square):.3g})"
        warn(f"the run starts from N(0, {std:.4g}^2 I) at t={level.t:.6g}, where alpha = {level.alpha:.3g} and sigma = {level.sigma:.3g} "
             f"still show {data}: up to {kl:.2g} nats a coordinate between the two, above {START}. Expected "
             + ("a process that ends with less of the data (more or greater betas, a greater sigma_max)" if level.t == sde.t_max else
                f"a start at t_max={sde.t_max:g} (leave t_start out)")
             + ", or x_init=, states of that level such as sdediff.renoise(sde, x, t)"
             + ("; a network of data on another scale says so by from_network(..., sigma_data=)." if square is None else "."))


def data(sde: SDE, x: Tensor) -> None:
    """Warn where the noisy end of a process, though it would hide data of unit variance, shows the data x (N, *D) that are trained on."""
    square, level, std = float(x.detach().square().mean(dtype=torch.float64)), sde.at(sde.t_max), sde.prior_std()
    if prior_kl(level, std) <= START < (kl := prior_kl(level, std, square)):
        warn(f"data of root mean square {math.sqrt(square):.3g} are still seen at t_max={sde.t_max:g}, where alpha = {level.alpha:.3g}, "
             f"sigma = {level.sigma:.3g} and sampling starts from N(0, {std:.4g}^2 I): up to {kl:.2g} nats a coordinate, above {START}. "
             "Expected data scaled to unit variance, data / data.std().")


def half(score: Any, levels: Sequence[NoiseLevel], autocast: torch.dtype | None) -> None:
    """Warn where a network in half precision cannot hold what it is given or says, or cannot tell a grid's levels apart."""
    if not hasattr(score, "time_table"):
        return
    own = score.dtype_of(_NOTHING)
    dtype = autocast or score.autocast or own
    if dtype not in HALF and own not in HALF:
        return
    asked = levels[:-1]
    if dtype == torch.float16:
        top, noisiest = torch.finfo(dtype).max, max(level.sigma for level in levels)
        cleanest = min((level.sigma for level in asked if level.sigma), default=1.0)
        sizes = {"is given states": (score.predicts != "edm") * noisiest, "says scores": (score.predicts == "score") / cleanest}
        for what, size in sizes.items():
            if 4 * size > top:
                warn(f"network {score.name} in float16 {what} of size {size:.3g}, and float16 ends at {top:.5g}. Expected bfloat16 or "
                     "float32, or an EDM-preconditioned network, from_network(..., predicts='edm').")
    table = score.time_table(asked, own, torch.device("cpu")) if own in HALF else None
    same = 0 if table is None else int((table[1:] == table[:-1]).sum())
    if same:
        warn(f"network {score.name} is told {same} of {len(asked)} levels as it was told the level before: time_input={score.time_input!r} "
             f"in {own} does not resolve so fine a grid. Expected fewer steps, or a network that is told the level in float32.")


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the dtype of the result; warns where half precision overflows to infinity, or flushes more than a hundredth of x to 0."""
    if x.dtype == dtype:
        return x
    y = x.to(dtype)
    if dtype in HALF and x.numel():
        over, under = int((y.isinf() & x.isfinite()).sum()), int(((y == 0) & (x != 0)).sum())
        if over or under > FLUSHED * x.numel():
            warn(f"the state in {dtype}: {f'{over} numbers became infinite' if over else f'{under} numbers became 0'}, of {x.numel()} "
                 f"up to {float(x.abs().max()):.3g}. Expected dtype=torch.float32{' or bfloat16' if dtype == torch.float16 else ''}.")
    return y
