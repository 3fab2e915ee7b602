r"""torchsde: the reverse SDE in the chart of alpha^2 + sigma^2 = 1, x = y/(1 + r^2)^{1/2}, where explicit steps start from unit variance,
and in the place u = 0 .. steps, which runs forward and where its steps are all 1: with lambda = -log r, (1) at eta = 1 is

    dx = lambda' (sigma^2 x - 2 sigma eps) du + (2 lambda')^{1/2} sigma dW.

The noise is additive, given as B d equations of one dimension, on its own Brownian interval. Its contract check asks for the drift once
before it starts, which is a call; so is srk's second look at the start of every step. Left out: reversible_heun, which is unstable on
equations that contract (states of 1e3 with 400 calls)."""
from __future__ import annotations

import math

import torch
import torchsde
from torch import Tensor

from . import Clock, Method, Model, Peer

METHODS = {
    "euler": Method("SDE", 1, 1, 1), "heun": Method("SDE", 1, 2, 1), "midpoint": Method("SDE", 1, 2, 1),
    "srk": Method("SDE", 2, 3, 1),                      # SRA1, weak order 2 (Roessler 2010); the library says 1.5
}


class _Equation(torch.nn.Module):
    noise_type = "additive"

    def __init__(self, model: Model, clock: Clock, shape: torch.Size, sde_type: str) -> None:
        super().__init__()
        self.model, self.clock, self.shape, self.sde_type = model, clock, shape, sde_type

    def level(self, u: Tensor) -> tuple[float, float, float]:
        """r, sigma and lambda' at the place u."""
        r = self.clock.r(float(u))
        return r, r / math.sqrt(1 + r**2), -self.clock.slope(float(u)) / r

    def f(self, u: Tensor, x: Tensor) -> Tensor:
        r, sigma, rate = self.level(u)
        eps = self.model.eps((x * math.sqrt(1 + r**2)).view(self.shape), r).reshape(-1, 1)
        return rate * (sigma**2 * x - 2 * sigma * eps)

    def g(self, u: Tensor, x: Tensor) -> Tensor:
        _, sigma, rate = self.level(u)
        return x.new_full((len(x), 1, 1), math.sqrt(2 * rate) * sigma)


def solve(name: str, model: Model, y: Tensor, clock: Clock, seed: int, tolerance: float) -> Tensor:
    equation = _Equation(model, clock, y.shape, "ito" if name in ("euler", "srk") else "stratonovich")
    x, ends = y.reshape(-1, 1) / math.sqrt(1 + clock.first**2), torch.tensor([0.0, clock.steps], dtype=torch.float64)
    path = torchsde.BrownianInterval(0.0, float(clock.steps), size=x.shape, dtype=x.dtype, entropy=seed,
                                     levy_area_approximation="space-time" if name == "srk" else "none")
    return torchsde.sdeint(equation, x, ends, bm=path, method=name, dt=1.0)[-1].view(y.shape) * math.sqrt(1 + clock.last**2)


PEER = Peer("torchsde", METHODS, solve)
