"""azula: its denoiser q(X | X_t) is E[x_0 | y], its schedule alpha = 1, sigma = r(u), its equal time steps are ours in u. It imports
without the image libraries that it lists: pip install --no-deps azula==0.11.1 einops."""
from __future__ import annotations

from typing import Any

import azula.denoise
import azula.sample
import torch
from torch import Tensor

from . import Clock, Method, Model, Peer

METHODS = {
    "DDIM": Method("ODE", 1), "Euler": Method("ODE", 1), "Heun": Method("ODE", 2, 2),
    "zAB": Method("ODE", 2), "zAB(order=3)": Method("ODE", 3), "vAB": Method("ODE", 2), "vAB(order=3)": Method("ODE", 3),
    "zEAB": Method("ODE", 2), "zEAB(order=3)": Method("ODE", 3), "zEAB(order=4)": Method("ODE", 4),
    "xEAB": Method("ODE", 2), "xEAB(order=3)": Method("ODE", 3),
    "REAB": Method("ODE", 2), "REAB(order=3)": Method("ODE", 3),
    "DDPM": Method("SDE", None), "Ito": Method("SDE", None), "PC": Method("SDE", None, 2),
}


class _Denoiser(azula.denoise.Denoiser):
    def __init__(self, model: Model, clock: Clock) -> None:
        super().__init__()
        self.model, self.clock = model, clock

    def schedule(self, u: Tensor) -> tuple[Tensor, Tensor]:                                 # type: ignore[override]
        r = torch.tensor([self.clock.r(v) for v in u.flatten().tolist()], dtype=torch.float64).view(u.shape)
        return torch.ones_like(r), r

    def forward(self, y: Tensor, u: Tensor, **_: Any) -> azula.denoise.DiracPosterior:
        return azula.denoise.DiracPosterior(self.model.x0(y, self.clock.r(float(u))))


def solve(name: str, model: Model, y: Tensor, clock: Clock, seed: int, tolerance: float) -> Tensor:
    kind, _, order = name.partition("(order=")
    given = {"order": int(order[:-1])} if order else {}
    sampler = getattr(azula.sample, f"{kind}Sampler")(_Denoiser(model, clock), start=0.0, stop=float(clock.steps), steps=clock.steps,
                                                      silent=True, dtype=torch.float64, **given)
    with torch.random.fork_rng(devices=[]):             # it draws from the global generator, DDIM too
        torch.manual_seed(seed)
        return sampler(y)


PEER = Peer("azula", METHODS, solve)
