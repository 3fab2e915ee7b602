r"""Small reference networks, called as ``network(x, c, y=None)`` with x (B, *D), the level c (B,) and labels y (B,): a residual MLP for
points and small pictures, a U-Net for images (Ronneberger et al. 2015; Ho et al. 2020, App. B; Dhariwal & Nichol 2021).

The level enters through Fourier features (Tancik et al. 2020; Song et al. 2021, App. G): with u = ``time_scale`` c,

    gamma(c) = (u, cos w_1 u, sin w_1 u, ..., cos w_K u, sin w_K u),       w_k geometric from pi/32 to 2 pi,

so that features resolve u on scales from 1 to 64: right for c = lambda = log(alpha/sigma), which spans about -5..7; other
levels are brought to such a span by ``time_scale``: 10 for t in [0, 1], 4 for "edm", 10/N for the index of N steps. An
infinite u (lambda at alpha = 0 or sigma = 0) reads as +-10.
A residual block is modulated by the features in scale and shift (FiLM; Perez et al. 2018),

    h <- h + W_b silu((1 + S_b gamma) * W_a silu(h) + T_b gamma),

and the last layer starts at zero, so that an untrained network predicts 0. Points of few dimensions may enter with
Fourier features of their own (``fourier`` octaves), which sharpen edges: a network is otherwise smooth in x.

Weights are drawn from a generator of the network's own: the same ``seed`` gives the same network, and the global random
state is neither read nor moved. ``config`` is a JSON document from which ``build`` makes the network again.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import choice, integer, labels, real, sequence, shown, state


class _Conditioned(nn.Module):
    """What networks share: the features of the level and of conditions."""

    frequency: Tensor

    def _prepare(self, size: int, frequencies: int, time_scale: float, classes: int | None, seed: int) -> torch.Generator:
        """Check and keep the arguments, and draw the embedding of labels, ``size`` numbers each. ``features``: numbers that say a level."""
        self.frequencies, self.time_scale = integer("frequencies", frequencies, 0), real("time_scale", time_scale, 0.0, low_open=True)
        self.classes = None if classes is None else integer("classes", classes, 1)
        self.seed = integer("seed", seed, 0, 2**63 - 1)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        self.register_buffer("frequency", math.pi * torch.logspace(-5, 1, self.frequencies, 2.0, device="cpu"), persistent=False)
        self.label: nn.Embedding | None = None
        self.features = 1 + 2 * self.frequencies
        if self.classes is not None:
            self.label = nn.utils.skip_init(nn.Embedding, self.classes + 1, size, device="cpu")
            nn.init.normal_(self.label.weight, generator=generator)
            self.features += size
        return generator

    def _level(self, x: Tensor, c: Tensor, y: Tensor | int | None) -> Tensor:
        """The features (B, features) of levels c (B,) and labels y."""
        u = self.time_scale * c.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, 1)
        u = torch.nan_to_num(u, nan=math.nan, posinf=10.0, neginf=-10.0)
        angle = u * self.frequency
        level = torch.cat([u, angle.cos(), angle.sin()], 1).to(x.dtype)
        if self.label is not None and self.classes is not None:
            y = labels("y", self.classes if y is None else y, len(x), self.classes, x.device, "no label")
            return torch.cat([level, self.label(y)], 1)
        if y is not None:
            raise ValueError(f"y was given to a network without labels; expected y=None, or {type(self).__name__}(..., classes=...).")
        return level


class MLP(_Conditioned):
    """A residual network for points and small pictures: the event is flattened, the output is shaped as x.

    Parameters
    ----------
    event : the event shape D, or an int for points of that many coordinates.
    width, depth : units of a layer, and number of residual blocks (two layers each).
    frequencies : K, the number of Fourier frequencies of the level.
    time_scale : what c is multiplied by, so that it spans about -5..7.
    fourier : octaves of Fourier features of x, cos and sin of 2^j pi x/4, j = 0..fourier-1; 0 for none.
    outputs : numbers that it returns for a sample, (B, outputs), as a classifier's logits; None: a tensor shaped as x.
    classes : number of labels, or None. Labels are integers 0..classes-1; ``y=None`` and the label ``classes`` mean "no
        label", which has an embedding of its own (for classifier-free guidance).
    seed : of the initial weights.

    Raises TypeError or ValueError where an argument is not of its range.
    """

    octave: Tensor

    def __init__(self, event: int | Sequence[int], width: int = 128, depth: int = 2, *, frequencies: int = 16,
                 time_scale: float = 1.0, fourier: int = 0, classes: int | None = None, outputs: int | None = None,
                 seed: int = 0) -> None:
        super().__init__()
        sizes = event if isinstance(event, Sequence) and not isinstance(event, (str, bytes)) else (event,)
        self.event = tuple(integer(f"event[{i}]", n, 1) for i, n in enumerate(sizes))
        self.width, self.depth = integer("width", width, 1), integer("depth", depth, 0)
        self.fourier = integer("fourier", fourier, 0, 16)
        self.outputs = None if outputs is None else integer("outputs", outputs, 1)
        generator = self._prepare(self.width // 2 + 1, frequencies, time_scale, classes, seed)
        size, level = math.prod(self.event), self.features
        self.register_buffer("octave", math.pi * 2.0**torch.arange(-2, self.fourier - 2, device="cpu"), persistent=False)
        self.enter = _linear(size * (1 + 2 * self.fourier), self.width, generator)
        self.first = nn.ModuleList(_linear(self.width, self.width, generator) for _ in range(self.depth))
        self.film = nn.ModuleList(_linear(level, 2 * self.width, generator) for _ in range(self.depth))
        self.second = nn.ModuleList(_linear(self.width, self.width, generator) for _ in range(self.depth))
        self.leave = _linear(self.width, self.outputs or size, generator)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def config(self) -> dict[str, Any]:
        """A JSON document of the constructor's arguments: ``build(network.config)`` is the untrained network."""
        return {"type": "MLP", "event": list(self.event)} | {name: getattr(self, name) for name in (
            "width", "depth", "frequencies", "time_scale", "fourier", "classes", "seed")} | (
            {} if self.outputs is None else {"outputs": self.outputs})

    def forward(self, x: Tensor, c: Tensor, y: Tensor | int | None = None) -> Tensor:
        """x (B, *D), c (B,) of a floating or integer dtype, y (B,) of labels or one label for all. Returns a tensor
        shaped as x, or (B, outputs). Raises ValueError where a shape or a label does not fit."""
        if x.shape[1:] != self.event:
            raise ValueError(f"x.shape={tuple(x.shape)}: expected (B, {', '.join(map(str, self.event))}).")
        h = x.flatten(1)
        if self.fourier:
            angle = (h.unsqueeze(-1) * self.octave).flatten(1)
            h = torch.cat([h, angle.cos(), angle.sin()], 1)
        level = self._level(x, c, y)
        h = self.enter(h)
        for first, film, second in zip(self.first, self.film, self.second):
            scale, shift = film(level).chunk(2, 1)
            h = h + second(nn.functional.silu(torch.addcmul(shift, 1 + scale, first(nn.functional.silu(h)))))
        return self.leave(nn.functional.silu(h)).view(x.shape if self.outputs is None else (len(x), self.outputs))


# -- images -----------------------------------------------------------------------------------------------------------
class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, the second modulated by the level in scale and shift. Those of a clip see a quarter of their
    channels one frame earlier and a quarter one frame later, so that each is one over space and time at the price of one over space."""

    def __init__(self, inputs: int, outputs: int, level: int, generator: torch.Generator, frames: int | None = None) -> None:
        super().__init__()
        self.frames = frames
        self.norms = nn.ModuleList(_norm(n) for n in (inputs, outputs))
        self.first, self.film = _conv(inputs, outputs, 3, generator), _linear(level, 2 * outputs, generator)
        self.second = _zeroed(_conv(outputs, outputs, 3, generator))
        self.skip = _conv(inputs, outputs, 1, generator) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level)[..., None, None].chunk(2, 1)
        inner = self.norms[1](self.first(self.neighbours(nn.functional.silu(self.norms[0](h)))))
        return self.skip(h) + self.second(self.neighbours(nn.functional.silu(torch.addcmul(shift, 1 + scale, inner))))

    def neighbours(self, h: Tensor) -> Tensor:
        """h (B F, C, H, W), the frames of a clip in turn, with channels of the frames before and after; 0 beyond the ends."""
        if not self.frames:
            return h
        clip, n = h.unflatten(0, (-1, self.frames)), h.shape[1] // 4
        beyond = torch.zeros_like(clip[:, :1, :n])
        earlier, later = torch.cat([beyond, clip[:, :-1, :n]], 1), torch.cat([clip[:, 1:, n:2 * n], beyond], 1)
        return torch.cat([earlier, later, clip[:, :, 2 * n:]], 2).flatten(0, 1)


class _Attention(nn.Module):
    """Self-attention over the pixels of a picture, or of all frames of a clip; heads of 32 channels, or of all where they are fewer."""

    def __init__(self, channels: int, generator: torch.Generator, frames: int | None = None) -> None:
        super().__init__()
        self.heads, self.frames = max(1, channels // 32), frames or 1
        self.norm, self.enter = _norm(channels), _conv(channels, 3 * channels, 1, generator)
        self.leave = _zeroed(_conv(channels, channels, 1, generator))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        parts = self.enter(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1)).unflatten(0, (-1, self.frames))
        q, k, v = parts.permute(2, 0, 3, 1, 5, 4).flatten(3, 4).unbind()                    # of (B, heads, F pixels, C / heads)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return h + self.leave(mixed.unflatten(2, (self.frames, -1)).permute(0, 2, 1, 4, 3).reshape(h.shape))


class UNet(_Conditioned):
    """A U-Net: residual blocks at several resolutions on the way down and up, joined across by their outputs on the way down.

    Parameters
    ----------
    event : (C, H, W); or of clips (F, C, H, W): F frames with the same weights, whose convolutions see channels of the frames before and
        after (Lin et al. 2019, sec. 3).
    width : channels at the first resolution; ``multipliers``: times as many at each of the resolutions, H, H/2 (rounded up), H/4, ...
    blocks : residual blocks at a resolution on the way down; one more on the way up.
    attention : heights at which pixels attend to each other, those of a clip across its frames; the coarsest resolution does in the
        middle if it is one of them.
    patch : side of the squares of pixels that become the channels of one (Hoogeboom et al. 2023, sec. 3.3): H and W above are then those
        in patches. At patch = 2 a picture costs a quarter.
    frequencies, time_scale, classes, seed : as for ``MLP``.
    embedding : numbers in a condition e (B, embedding), as of a text or a picture; ``e=None`` is a learnt one. None: no such condition.
    context : channels of a picture (B, context, H, W), of each frame of a clip (B, F, context, H, W), that is given beside x, as a sketch
        or a smaller picture brought to its size; ``context=None`` is a black one, 0 everywhere. None: no such condition.

    The width must be a multiple of 8 (group normalisation in groups of at least 8 channels). Raises TypeError or ValueError where an
    argument is not of its range.
    """

    def __init__(self, event: Sequence[int], width: int = 32, multipliers: Sequence[int] = (1, 2, 2), blocks: int = 1, *,
                 attention: Sequence[int] = (), patch: int = 1, frequencies: int = 16, time_scale: float = 1.0,
                 classes: int | None = None, embedding: int | None = None, context: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.event = _sizes("event", event, "such as (1, 28, 28)")
        if len(self.event) not in (3, 4):
            raise ValueError(f"event={self.event}: expected (C, H, W) of one image, such as (1, 28, 28), or (F, C, H, W) of a clip.")
        self.frames = self.event[0] if len(self.event) == 4 else None
        image, height, breadth = self.event[-3:]
        self.patch = integer("patch", patch, 1)
        if height % self.patch or breadth % self.patch:
            raise ValueError(f"patch={patch}: expected a divisor of the height and the width, {height} and {breadth}.")
        self.width, self.blocks = integer("width", width, 8), integer("blocks", blocks, 1)
        if self.width % 8:
            raise ValueError(f"width={width}: expected a multiple of 8.")
        self.multipliers = _sizes("multipliers", multipliers, "such as (1, 2, 2)")
        self.attention = _sizes("attention", attention, "heights such as (7,)")
        heights = [-(-height // (self.patch * 2**k)) for k in range(len(self.multipliers))]
        if not heights or not set(self.attention) <= set(heights):
            raise ValueError(f"attention={self.attention}, multipliers={self.multipliers}: expected at least one multiplier, and heights "
                             f"among {heights}.")
        self.embedding = None if embedding is None else integer("embedding", embedding, 1)
        self.context = None if context is None else integer("context", context, 1)
        generator = self._prepare(self.width, frequencies, time_scale, classes, seed)
        level = 4 * self.width
        self.levels = nn.Sequential(_linear(self.features, level, generator), nn.SiLU(), _linear(level, level, generator), nn.SiLU())
        if self.embedding is not None:
            self.absent = nn.Parameter(torch.zeros(self.embedding, device="cpu"))
            self.embed = _linear(self.embedding, level, generator)
        channels, skips, pixels = self.width, [self.width], image * self.patch**2
        given = pixels + (self.context or 0) * self.patch**2
        self.enter, self.down, self.up = _conv(given, channels, 3, generator), nn.ModuleList(), nn.ModuleList()
        block = lambda inputs, outputs: _Block(inputs, outputs, level, generator, self.frames)
        attend = lambda n, height: [_Attention(n, generator, self.frames)] if height in self.attention else []
        for k, (m, height) in enumerate(zip(self.multipliers, heights)):
            if k:
                self.down.append(_stage(_conv(channels, channels, 3, generator, stride=2)))
                skips.append(channels)
            for _ in range(self.blocks):
                self.down.append(_stage(block(channels, m * self.width), *attend(m * self.width, height)))
                channels = m * self.width
                skips.append(channels)
        self.middle = _stage(block(channels, channels), *attend(channels, heights[-1]), block(channels, channels))
        for m, height in zip(self.multipliers[::-1], heights[::-1]):
            for _ in range(self.blocks + 1):
                self.up.append(_stage(block(channels + skips.pop(), m * self.width), *attend(m * self.width, height)))
                channels = m * self.width
        self.norm, self.leave = _norm(channels), _zeroed(_conv(channels, pixels, 3, generator))

    @property
    def config(self) -> dict[str, Any]:
        """A JSON document of the constructor's arguments: ``build(network.config)`` is the untrained network."""
        names = ("width", "blocks", "patch", "frequencies", "time_scale", "classes", "embedding", "context", "seed")
        return {"type": "UNet", "event": list(self.event), "multipliers": list(self.multipliers), "attention": list(self.attention)} | {
            name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, c: Tensor, y: Tensor | int | None = None, e: Tensor | None = None,
                context: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) or (B, F, C, H, W), c (B,), y (B,) of labels or one label for all, e (B, embedding), context shaped as x but for
        its channels. Returns a tensor shaped as x. Raises ValueError where a shape or a label does not fit."""
        if x.shape[1:] != self.event:
            raise ValueError(f"x.shape={tuple(x.shape)}: expected (B, {', '.join(map(str, self.event))}).")
        level = self.levels(self._level(x, c, y))
        if self.embedding is not None:
            given = self.absent.expand(len(x), -1) if e is None else e
            if given.shape != (len(x), self.embedding):
                raise ValueError(f"e.shape={tuple(given.shape)}: expected ({len(x)}, {self.embedding}).")
            level = level + self.embed(given.to(x.dtype))
        elif e is not None:
            raise ValueError("e was given to a network without an embedding; expected e=None, or UNet(..., embedding=...).")
        if self.context is not None:
            shape = (*x.shape[:-3], self.context, *x.shape[-2:])
            beside = x.new_zeros(shape) if context is None else context.to(x.dtype)
            if beside.shape != shape:
                raise ValueError(f"context.shape={tuple(beside.shape)}: expected {shape}.")
            x = torch.cat([x, beside], -3)
        elif context is not None:
            raise ValueError("context was given to a network without one; expected context=None, or UNet(..., context=...).")
        if self.frames:
            x, level = x.flatten(0, 1), level.repeat_interleave(self.frames, 0)
        held = [h := self.enter(nn.functional.pixel_unshuffle(x, self.patch))]
        for stage in self.down:
            held.append(h := _through(stage, h, level))
        h = _through(self.middle, h, level)
        for stage in self.up:
            across = held.pop()
            if h.shape[-2:] != across.shape[-2:]:
                h = nn.functional.interpolate(h, size=across.shape[-2:], mode="nearest")
            h = _through(stage, torch.cat([h, across], 1), level)
        out = nn.functional.pixel_shuffle(self.leave(nn.functional.silu(self.norm(h))), self.patch)
        return out.unflatten(0, (-1, self.frames)) if self.frames else out


def _sizes(name: str, value: Any, such: str) -> tuple[int, ...]:
    """Integers from 1 up, any number of them."""
    return tuple(integer(f"{name}[{i}]", n, 1) for i, n in enumerate(sequence(name, value, such, 0)))


def _stage(*parts: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(parts)


def _through(stage: Any, h: Tensor, level: Tensor) -> Tensor:
    """h through the parts of a stage, of which blocks and attention are told the level."""
    for part in stage:
        h = part(h) if isinstance(part, nn.Conv2d) else part(h, level)
    return h


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8) if channels < 256 else 32, channels, device="cpu")


def _conv(inputs: int, outputs: int, size: int, generator: torch.Generator, stride: int = 1) -> nn.Conv2d:
    """torch's default initialisation of a convolution, from a generator."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, stride, padding=size // 2, device="cpu")
    return _uniform(layer, inputs * size**2, generator)                                      # type: ignore[return-value]


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def _uniform(layer: nn.Module, inputs: int, generator: torch.Generator) -> nn.Module:
    for p in layer.parameters():
        nn.init.uniform_(p, -inputs**-0.5, inputs**-0.5, generator=generator)
    return layer


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """torch's default initialisation of a linear layer, uniform on +-1/sqrt(inputs), from a generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device="cpu")
    return _uniform(layer, inputs, generator)                                                # type: ignore[return-value]


# -- autoencoders ----------------------------------------------------------------------------------------------------------
class Autoencoder(nn.Module):
    """Convolutions from images (C, H, W) to latents (latent, H/4, W/4) and back (``encode``, ``decode``), for diffusion in the latent space
    (Rombach et al. 2022). H and W must be multiples of 4; Raises TypeError or ValueError where an argument is not of its range.

    Calling it gives ``losses`` (B,), to be made small: the squared error of decoding latents that noise of standard deviation ``noise``
    disturbs, and a small penalty on their size, so that near latents mean near pictures (Ghosh et al. 2020)."""

    def __init__(self, event: Sequence[int], latent: int = 4, width: int = 32, *, noise: float = 0.1, penalty: float = 1e-3,
                 seed: int = 0) -> None:
        super().__init__()
        self.event = _sizes("event", event, "such as (1, 28, 28)")
        if len(self.event) != 3 or self.event[1] % 4 or self.event[2] % 4:
            raise ValueError(f"event={self.event}: expected (C, H, W) with H and W multiples of 4, such as (1, 28, 28).")
        self.noise, self.penalty = real("noise", noise, 0.0), real("penalty", penalty, 0.0)
        c, w, k = self.event[0], integer("width", width, 8), integer("latent", latent, 1)
        self.latent = (k, self.event[1] // 4, self.event[2] // 4)
        g = torch.Generator("cpu").manual_seed(integer("seed", seed, 0, 2**63 - 1))
        self.encode = nn.Sequential(nn.PixelUnshuffle(2), _conv(4 * c, w, 3, g), nn.SiLU(), _conv(w, w, 3, g), nn.SiLU(),
                                    _conv(w, 2 * w, 3, g, stride=2), nn.SiLU(), _conv(2 * w, k, 3, g))
        self.decode = nn.Sequential(_conv(k, 2 * w, 3, g), nn.SiLU(), _conv(2 * w, 4 * w, 3, g), nn.PixelShuffle(2), nn.SiLU(),
                                    _conv(w, w, 3, g), nn.SiLU(), _conv(w, 4 * c, 3, g), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """The losses (B,) of images x (B, *event)."""
        z = self.encode(x)
        error = (self.decode(z + self.noise * torch.randn_like(z)) - x).square()
        return error.flatten(1).mean(1) + self.penalty * z.square().flatten(1).mean(1)


class Principal(nn.Module):
    """The linear autoencoder of least squared error: the first ``components`` principal components of ``data`` (N, *D), with the same
    ``encode`` and ``decode``. In these coordinates, which keep lengths, a process on the data is the same process on the latents."""

    mean: Tensor
    axes: Tensor

    def __init__(self, data: Tensor, components: int) -> None:
        super().__init__()
        flat = state("data", data, 2).flatten(1)
        self.event = tuple(data.shape[1:])
        self.latent = (integer("components", components, 1, min(flat.shape)),)
        self.register_buffer("mean", flat.double().mean(0).to(data))
        self.register_buffer("axes", torch.linalg.svd(flat.double() - flat.double().mean(0), full_matrices=False).Vh[:components].to(data))

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.axes.T

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.axes + self.mean).unflatten(1, self.event)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP, "UNet": UNet}


def build(config: Mapping[str, Any]) -> nn.Module:
    """The untrained network of a ``config``. Raises ValueError or TypeError on an unknown type or argument."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config={shown(config)}: expected the config of a network, such as MLP(2).config.")
    kind, arguments = config.get("type"), {k: v for k, v in config.items() if k != "type"}
    if "type" not in config:
        raise ValueError(f"config={shown(config)}: expected the config of a network, such as MLP(2).config, with its type.")
    network = NETWORKS[choice("config['type']", kind, NETWORKS)]
    try:
        return network(**arguments)
    except TypeError as e:
        raise TypeError(f"config={dict(config)!r}: {e}") from None
