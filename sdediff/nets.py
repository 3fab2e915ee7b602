r"""Small reference networks, called as ``network(x, c, y=None)`` with x (B, *D), the level c (B,) and labels y (B,).

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

from .contracts import choice, integer, labels, real


class MLP(nn.Module):
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

    frequency: Tensor
    octave: Tensor

    def __init__(self, event: int | Sequence[int], width: int = 128, depth: int = 2, *, frequencies: int = 16,
                 time_scale: float = 1.0, fourier: int = 0, classes: int | None = None, outputs: int | None = None,
                 seed: int = 0) -> None:
        super().__init__()
        sizes = event if isinstance(event, Sequence) and not isinstance(event, str) else (event,)
        self.event = tuple(integer(f"event[{i}]", n, 1) for i, n in enumerate(sizes))
        self.width, self.depth = integer("width", width, 1), integer("depth", depth, 0)
        self.frequencies, self.fourier = integer("frequencies", frequencies, 0), integer("fourier", fourier, 0, 16)
        self.time_scale = real("time_scale", time_scale, 0.0, low_open=True)
        self.classes = None if classes is None else integer("classes", classes, 1)
        self.outputs = None if outputs is None else integer("outputs", outputs, 1)
        self.seed = integer("seed", seed, 0, 2**63 - 1)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        size, level = math.prod(self.event), 1 + 2 * self.frequencies
        scales = torch.logspace(-5, 1, self.frequencies, 2.0, device="cpu"), 2.0**torch.arange(-2, self.fourier - 2, device="cpu")
        self.register_buffer("frequency", math.pi * scales[0], persistent=False)
        self.register_buffer("octave", math.pi * scales[1], persistent=False)
        self.label: nn.Embedding | None = None
        if self.classes is not None:
            self.label = nn.utils.skip_init(nn.Embedding, self.classes + 1, self.width // 2 + 1, device="cpu")
            nn.init.normal_(self.label.weight, generator=generator)
            level += self.width // 2 + 1
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
        u = self.time_scale * c.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, 1)
        u = torch.nan_to_num(u, nan=math.nan, posinf=10.0, neginf=-10.0)
        angle = u * self.frequency
        level = torch.cat([u, angle.cos(), angle.sin()], 1).to(x.dtype)
        if self.label is not None and self.classes is not None:
            y = labels("y", self.classes if y is None else y, len(x), self.classes, x.device, "no label")
            level = torch.cat([level, self.label(y)], 1)
        elif y is not None:
            raise ValueError("y was given to a network without labels; expected y=None, or MLP(..., classes=...).")
        h = self.enter(h)
        for first, film, second in zip(self.first, self.film, self.second):
            scale, shift = film(level).chunk(2, 1)
            h = h + second(nn.functional.silu(torch.addcmul(shift, 1 + scale, first(nn.functional.silu(h)))))
        return self.leave(nn.functional.silu(h)).view(x.shape if self.outputs is None else (len(x), self.outputs))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """torch's default initialisation of a linear layer, uniform on +-1/sqrt(inputs), from a generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device="cpu")
    for p in (layer.weight, layer.bias):
        nn.init.uniform_(p, -inputs**-0.5, inputs**-0.5, generator=generator)
    return layer


NETWORKS: dict[str, Callable[..., nn.Module]] = {"MLP": MLP}


def build(config: Mapping[str, Any]) -> nn.Module:
    """The untrained network of a ``config``. Raises ValueError or TypeError on an unknown type or argument."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config={config!r}: expected the config of a network, such as MLP(2).config.")
    kind, arguments = config.get("type"), {k: v for k, v in config.items() if k != "type"}
    network = NETWORKS[choice("config['type']", kind, NETWORKS)]
    try:
        return network(**arguments)
    except TypeError as e:
        raise TypeError(f"config={dict(config)!r}: {e}") from None
