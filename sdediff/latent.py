r"""Latent codes: the probability flow as a map between data and noise, and what is done with its codes.

*Round trip.* A method of order p runs up and down the same grid with an error of O(h^p) each way, and so does decode(encode(x)) - x, which
needs no truth to be measured; for methods of even order the leading errors of the two ways often cancel, and O(h^{p+1}) is left.

*Interpolation.* Codes are normal, at a distance of sqrt(d) from the origin in d dimensions, and a chord leaves that shell. The arc between
directions u and v at an angle omega, (sin((1 - w) omega) u + sin(w omega) v)/sin(omega), stays on it; lengths, where they differ, go
linearly from |a| to |b| (weighting a and b in place of u and v would overshoot by 1/sin(omega)). Shoemake 1985; Song et al. 2021a.

*Partial noising.* x_t | x_s is normal; a sample noised to an intermediate t and denoised by any method keeps what the noise at t does not
hide: image to image, SDEdit. Meng et al. 2022 (arXiv:2108.01073).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import contracts, random
from .recipes import Method
from .recipes import method as as_method
from .sampling import encode, sample
from .score import Score
from .sde import A_PROCESS, SDE

_RENOISE = 1 << 21                              # a use of a seed that is no solver's and no start's


def decode(sde: SDE, score: Score, z: Tensor, *, method: str | Method = "heun", **run: Any) -> Tensor:
    """The data (B, *D) of latent codes z: the probability flow run down from t_start. Arguments as for ``encode``, which it inverts up to
    the solver's error on the same grid. A stochastic method is a ValueError. TypeError on arguments that have no part in it."""
    contracts.state("z", z)
    unknown = run.keys() & {"x_init", "shape", "seed", "noise"}
    if unknown:
        raise TypeError(f"{sorted(unknown)[0]}: decoding starts from the codes z and draws nothing; expected it left out.")
    names = {"steps", "nfe", "grid", "t_start", "t_end", "conditions", "progress"}
    options = {k: v for k, v in run.items() if k not in names}
    recipe = as_method(method, **options)
    if recipe.solver.noise == "always" or callable(recipe.eta) or recipe.eta:
        raise ValueError(f"method={recipe.name!r}: decoding follows the probability-flow ODE; expected a deterministic method such as "
                         "'heun', 'dpm++2m' or 'ddim' with eta=0.")
    return sample(sde, score, x_init=z, method=recipe, **{k: v for k, v in run.items() if k in names})


@dataclass(frozen=True)
class RoundTrip:
    """``code`` and ``back`` (B, *D), encode(x) and decode(code); ``error`` (B,), the root mean square of back - x over the event;
    ``relative``, its median over that of x."""

    code: Tensor
    back: Tensor
    error: Tensor
    relative: float

    @property
    def median(self) -> float:
        """The median error, in the units of x."""
        return self.error.median().item() if len(self.error) else 0.0


def round_trip(sde: SDE, score: Score, x: Tensor, **run: Any) -> RoundTrip:
    """Encode x (B, *D) and decode its codes, with the error of the trip. Arguments as for ``encode``."""
    code = encode(sde, score, x, **run)
    back = decode(sde, score, code, **run)
    rms = lambda v: v.reshape(len(v), -1).double().square().mean(1).sqrt() if len(v) else v.new_zeros(0)
    error, size = rms(back - x), rms(x)
    return RoundTrip(code, back, error.to(x.dtype), (error.median() / size.median()).item() if len(x) else 0.0)


def slerp(a: Tensor, b: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """The points at ``weights`` in [0, 1] (a at 0, b at 1) of the arc from a to b, (n, B, *D) for codes (B, *D) of one shape. On parallel
    codes, the chord. Raises TypeError or ValueError on codes of two shapes, and on opposite ones, which no arc joins alone."""
    contracts.state("a", a)
    if contracts.state("b", b).shape != a.shape:
        raise ValueError(f"b.shape={tuple(b.shape)}: expected {tuple(a.shape)}, that of a.")
    w = torch.tensor(_weights("weights", weights, 0), dtype=torch.float64, device=a.device)
    w, flat = w.reshape(-1, 1, 1), [v.reshape(len(v), math.prod(v.shape[1:])).double() for v in (a, b)]
    lengths, (u, v) = [x.norm(dim=1, keepdim=True) for x in flat], [torch.nn.functional.normalize(x, dim=1) for x in flat]
    # of unit vectors; exact near 0 and pi, where the arc cosine is not (Kahan)
    omega = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    opposite = (omega > math.pi - 1e-6).flatten()
    if bool(opposite.any()):
        raise ValueError(f"a, b: opposite codes in sample {int(opposite.nonzero()[0])}, between which every arc is as short; expected "
                         "another pair, or a point between them.")
    near, far = (torch.where(omega < 1e-6, s, torch.sin(s * omega) / torch.sin(omega.clamp_min(1e-6))) for s in (1 - w, w))
    arc = ((1 - w) * lengths[0] + w * lengths[1]) * (near * u + far * v)
    return arc.reshape(-1, *a.shape).to(a.dtype)


def _weights(name: str, values: Any, least: int) -> list[float]:
    every = contracts.sequence(name, values, "[0.0, 0.5, 1.0], numbers from 0 to 1", least)
    return [contracts.real(f"{name}[{i}]", v, 0.0, 1.0) for i, v in enumerate(every)]


def interpolate(sde: SDE, score: Score, a: Tensor, b: Tensor, *, points: int | Sequence[float] = 9, **run: Any) -> Tensor:
    """From samples a to samples b (B, *D) through the latent space, (n, B, *D): both are encoded, their codes joined by arcs (``slerp``)
    and decoded. ``points``: how many, equally spaced, the ends included (as their round trips), or the weights. Other arguments as for
    ``encode``. Raises ValueError on shapes that differ."""
    if isinstance(points, Sequence):
        weights = _weights("points", points, 1)
    else:
        n = contracts.integer("points", points, 2)
        weights = [k / (n - 1) for k in range(n)]
    contracts.state("a", a)
    if contracts.state("b", b).shape != a.shape:
        raise ValueError(f"b.shape={tuple(b.shape)}: expected {tuple(a.shape)}, that of a.")
    both = {k: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim else v for k, v in (run.get("conditions") or {}).items()}
    code = encode(sde, score, torch.cat([a, b]), **(run | {"conditions": both or None}))
    arcs = slerp(code[:len(a)], code[len(a):], weights)
    many = {k: v.repeat(len(weights), *[1] * (v.ndim - 1)) if isinstance(v, Tensor) and v.ndim else v
            for k, v in (run.get("conditions") or {}).items()}
    return decode(sde, score, arcs.flatten(0, 1), **(run | {"conditions": many or None})).reshape(arcs.shape)


def renoise(sde: SDE, x: Tensor, t: float, *, t_from: float = 0.0, seed: random.Seed = None) -> Tensor:
    """x (B, *D) at the time ``t_from`` (by default clean data), noised to the time t >= t_from by the exact transition law."""
    contracts.state("x", x)
    contracts.instance("sde", sde, SDE, A_PROCESS)
    start = contracts.real("t_from", t_from, 0.0, sde.t_max)
    end = contracts.real("t", t, start, sde.t_max)
    level = sde.at(end)
    scale, std = (level.alpha, level.sigma) if start == 0 else sde.transition(end, start)
    inner = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    z = random.source(seed, tuple(x.shape), dtype=inner, device=x.device).at(_RENOISE).within().initial()
    return (scale * x.to(inner) + std * z).to(x.dtype)


def denoise_from(sde: SDE, score: Score, x: Tensor, t: float, *, method: str | Method = "dpm++2m", seed: random.Seed = None,
                 renoised: bool = True, **run: Any) -> Tensor:
    """Image to image: x (B, *D), clean data, noised to the time t and denoised from there by any method; with ``renoised=False`` x is a
    state at t already. One seed serves both. Other arguments as for ``sample``. Raises TypeError on shape, x_init and t_start, which x
    and t say already."""
    if {"shape", "x_init", "t_start"} & run.keys():
        raise TypeError(f"{sorted({'shape', 'x_init', 't_start'} & run.keys())[0]}: denoising starts from x at t; expected it left out.")
    contracts.flags(renoised=renoised)
    with random.undone(seed):
        key = random.fresh_seed() if seed is None else seed
        return sample(sde, score, x_init=renoise(sde, x, t, seed=key) if renoised else x, t_start=t, method=method, seed=key, **run)
