"""k-diffusion: its model(y, r) is E[x_0 | y], its sigmas are our knots without a zero at the end. Of the package only sampling.py is
loaded, without the image libraries that its __init__ asks for: pip install --no-deps k-diffusion==0.1.1."""
from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor

from . import Clock, Method, Model, Peer

METHODS = {
    "euler": Method("ODE", 1), "heun": Method("ODE", 2, 2), "dpm_2": Method("ODE", 2, 2), "lms": Method("ODE", 4),
    "dpmpp_2m": Method("ODE", 2), "dpmpp_2m_sde(eta=0)": Method("ODE", 2), "dpmpp_3m_sde(eta=0)": Method("ODE", 3),
    "dpmpp_sde(eta=0)": Method("ODE", 2, 2),
    "euler_ancestral": Method("SDE", None), "dpm_2_ancestral": Method("SDE", None, 2), "dpmpp_2s_ancestral": Method("SDE", None, 2),
    "dpmpp_sde": Method("SDE", None, 2), "dpmpp_2m_sde": Method("SDE", None), "dpmpp_3m_sde": Method("SDE", None),
}


@functools.cache
def sampling() -> types.ModuleType:
    """Its sampling.py as a module of its own: of its package's utils it uses append_dims alone."""
    path = next(f.locate() for f in importlib.metadata.files("k-diffusion") or () if f.name == "sampling.py")
    package, utils = types.ModuleType("k_diffusion_alone"), types.ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda v, n: v[(..., *(None,) * (n - v.ndim))]                      # type: ignore[attr-defined]
    package.utils, package.__path__ = utils, []                                             # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    alone = {m.__name__: m for m in (package, utils, module)}
    sys.modules.update(alone)
    try:
        spec.loader.exec_module(module)
    finally:
        for name in alone:
            sys.modules.pop(name, None)
    return module


def solve(name: str, model: Model, y: Tensor, clock: Clock, seed: int, tolerance: float) -> Tensor:
    name, _, flow = name.partition("(")
    generator = torch.Generator().manual_seed(seed)
    given: dict[str, Any] = {"eta": 0.0} if flow else {}
    if METHODS[name].kind == "SDE":
        given["noise_sampler"] = lambda r, s: torch.randn(y.shape, dtype=y.dtype, generator=generator)
    r = torch.tensor(clock.knots, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):             # its Euler and Heun draw noise that they do not use
        return getattr(sampling(), f"sample_{name}")(lambda y, r: model.x0(y, float(r[0])), y, r, disable=True, **given)


PEER = Peer("k-diffusion", METHODS, solve)
