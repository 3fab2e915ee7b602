"""diffusers: schedulers in the chart of alpha^2 + sigma^2 = 1, those named in ``EXPLODED`` in y itself.

A scheduler's table is replaced by our knots after set_timesteps: its steps read nothing else. Chain samplers (DDIM, DDPM) get the chain
whose levels are the knots. As shipped, tables and states are float32; here the same code runs in double, its module's ``torch.float32``
and ``numpy.float32`` read as float64 while a run lasts (hence one run at a time in a process). Options that are set: clip_sample=False,
final_sigmas_type="sigma_min" where there is one, since the run ends at t_min > 0 (there Heun's last step is Heun's, not Euler's), and
SA-Solver's tau = 1 throughout, or the number given (its default reads a timestep of 0 .. 1000)."""
from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import Clock, Method, Model, Peer

METHODS = {
    "DDIM": Method("ODE", 1), "EulerDiscrete": Method("ODE", 1), "HeunDiscrete": Method("ODE", 2, 2),
    "DPMSolverMultistep": Method("ODE", 2), "DPMSolverMultistep(solver_order=3)": Method("ODE", 3),
    "DPMSolverSinglestep": Method("ODE", 2, multiple=2), "DPMSolverSinglestep(solver_order=3)": Method("ODE", 3, multiple=3),
    "UniPCMultistep": Method("ODE", 3), "UniPCMultistep(solver_order=3)": Method("ODE", 4),
    "DEISMultistep": Method("ODE", 2), "DEISMultistep(solver_order=3)": Method("ODE", 3),
    "DDPM": Method("SDE", None), "EulerAncestralDiscrete": Method("SDE", None), "SASolver": Method("SDE", None),
    "DPMSolverMultistep(algorithm_type=sde-dpmsolver++)": Method("SDE", None),
}
CHAIN, EXPLODED = ("DDIM", "DDPM"), ("EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete")
OURS = {"clip_sample": False, "final_sigmas_type": "sigma_min", "tau_func": lambda t: 1.0}


class _Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def in_double(module: Any) -> Iterator[None]:
    """The module's float32 read as float64."""
    held = {name: library for name, library in (("torch", torch), ("np", np)) if hasattr(module, name)}
    for name, library in held.items():
        setattr(module, name, _Wide(library))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)         # numpy 2 on torch's tensors, inside theirs
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for name, library in held.items():
            setattr(module, name, library)


def _scheduler(name: str, steps: int) -> Any:
    from diffusers import schedulers
    kind, _, options = name.partition("(")
    made = getattr(schedulers, f"{kind}Scheduler")
    accepted = inspect.signature(made.__init__).parameters
    given: dict[str, Any] = {k: v for k, v in OURS.items() if k in accepted} | {"num_train_timesteps": max(1000, steps + 1)}
    for option in filter(None, options.rstrip(")").split(", ")):
        key, _, value = option.partition("=")
        given[key] = int(value) if value.isdigit() else {"True": True, "False": False}.get(value, value)
    if "tau" in given:
        tau = float(given.pop("tau"))
        given["tau_func"] = lambda t: tau
    return made, given


def solve(name: str, model: Model, y: Tensor, clock: Clock, seed: int, tolerance: float) -> Tensor:
    kind, knots = name.partition("(")[0], clock.knots
    made, given = _scheduler(name, clock.steps)
    r = torch.tensor(knots, dtype=torch.float64)
    with in_double(importlib.import_module(made.__module__)):
        if kind in CHAIN:                                               # index i of its chain is our knot steps - i
            scheduler = made(**given | {"num_train_timesteps": clock.steps + 1})
            scheduler.set_timesteps(clock.steps + 1)
            scheduler.alphas_cumprod = 1 / (1 + r.flip(0)**2)
            scheduler.timesteps = torch.arange(clock.steps, -1, -1)
            calls = [(i, knots[clock.steps - i]) for i in range(clock.steps, 0, -1)]
        else:
            scheduler = made(**given)
            scheduler.set_timesteps(clock.steps)
            sigmas = torch.cat([r[:1], r[1:].repeat_interleave(2)]) if kind == "HeunDiscrete" else r
            scheduler.sigmas, scheduler.timesteps = sigmas, sigmas[:-1]
            calls = [(v, float(v)) for v in sigmas[:-1]]
            if kind == "HeunDiscrete":                                  # its last call is at the last knot
                scheduler.timesteps = sigmas
                calls = [(v, float(v)) for v in sigmas[:-1]]
        draws = "generator" in inspect.signature(scheduler.step).parameters
        given_step = {"generator": torch.Generator().manual_seed(seed)} if draws else {}
        scale = 1.0 if kind in EXPLODED else 1 / math.sqrt(1 + knots[0]**2)
        x = scale * y
        for t, at in calls:
            if kind in EXPLODED:
                scheduler.scale_model_input(x, t)                       # its network's input, and its cursor
            unscaled = x if kind in EXPLODED else x * math.sqrt(1 + at**2)
            x = scheduler.step(model.eps(unscaled, at), t, x, **given_step).prev_sample
    return x if kind in EXPLODED else x * math.sqrt(1 + knots[-1]**2)


PEER = Peer("diffusers", METHODS, solve)
