"""Hypothesis strategies for what solvers are made of and run on: processes, levels, grids, solvers, methods, shapes.

    from hypothesis import given
    from sdediff.testing import strategies

    @given(strategies.processes(), strategies.solvers())
    def test_mine(sde, solver): ...

Hypothesis is imported by this module alone: pip install hypothesis.
"""
from __future__ import annotations

import functools
import math

import numpy as np
import torch
from hypothesis import strategies as st

from .. import recipes
from ..grids import DDPM, Grid, Karras, LogSNR, Quadratic, Sech, Uniform
from ..recipes import Method
from ..sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, LinearSDE, NoiseLevel, RectifiedFlow, SubVPSDE
from ..solvers import Solver

FOREIGN = ("scipy-", "torchdiffeq-", "torchsde-")       # engines of other packages
SLOW = ("annealed-langevin", "mala", "restart")         # by the hundred, or with a density of their own

seeds = st.integers(0, 2**63 - 1)


@st.composite
def betas(draw: st.DrawFn, max_size: int = 60, low: float = 1e-4, high: float = 0.98) -> list[float]:
    """A beta table of any length, any order, inside (0, 1)."""
    return draw(st.lists(st.floats(low, high), min_size=1, max_size=max_size))


@st.composite
def processes(draw: st.DrawFn) -> SDE:
    """A process of any kind with random parameters."""
    kind = draw(st.sampled_from(["vp", "sub-vp", "cosine", "ve", "edm", "flow", "chain", "ladder", "linear"]))
    if kind in ("vp", "sub-vp"):
        low = draw(st.floats(1e-3, 3.0))
        return (VPSDE if kind == "vp" else SubVPSDE)(low, low + draw(st.floats(0.0, 30.0)))
    if kind == "cosine":
        return CosineVPSDE(offset=draw(st.floats(0.0, 0.1)), t_max=draw(st.floats(0.5, 1.0)))
    if kind == "ve":
        low = draw(st.floats(1e-3, 0.5))
        return VESDE(low, low * draw(st.floats(2.0, 1e4)), subtract_min=draw(st.booleans()))
    if kind == "edm":
        return EDMSDE(sigma_max=draw(st.floats(0.5, 200.0)))
    if kind == "chain":
        return VPSDE.from_betas([*draw(betas(12)), *draw(st.sampled_from([[], [1.0]]))])
    if kind == "ladder":
        gaps = draw(st.lists(st.floats(0.05, 3.0), min_size=1, max_size=8))
        return VESDE.from_sigmas(np.cumsum(gaps))
    return RectifiedFlow() if kind == "flow" else _linear()


@functools.cache
def _linear() -> SDE:
    """An integration, done once."""
    return LinearSDE(f=lambda t: torch.sin(3 * t) - 0.2, g=lambda t: 1 + t**2 / 2, t_max=2.0)


@st.composite
def times(draw: st.DrawFn, sde: SDE, low: float = 0.0, high: float = 1.0) -> float:
    """A time in [low, high] t_max."""
    return sde.t_max * draw(st.floats(low, high))


@st.composite
def levels(draw: st.DrawFn, least: float = 0.03) -> tuple[SDE, NoiseLevel]:
    """A process and a level of it with alpha/sigma in [least, 1/least]: away from both ends."""
    sde = draw(processes())
    cap = abs(math.log(least))
    low = max(-cap, sde.at(sde.t_max).lam)
    high = min(cap, sde.at(0.0).lam)
    return sde, sde.level_of(low + (max(high, low) - low) * draw(st.floats(0.02, 0.98)))


@st.composite
def shapes(draw: st.DrawFn, max_batch: int = 6, max_rank: int = 5) -> tuple[int, ...]:
    """(B, *D), of rank 1 (no event axis) to ``max_rank``."""
    rank = draw(st.integers(1, max_rank))
    return (draw(st.integers(1, max_batch)), *(draw(st.integers(1, 4)) for _ in range(rank - 1)))


def grids(sde: SDE) -> st.SearchStrategy[Grid]:
    """A rule that lays times for a process, with its parameters; the spacings of a chain for a chain alone."""
    general = [st.builds(Uniform), st.builds(LogSNR), st.builds(Quadratic), st.builds(Karras, rho=st.floats(1.0, 12.0)), st.builds(Sech)]
    chain = st.builds(DDPM, spacing=st.sampled_from(["leading", "trailing", "linspace"]))
    return st.one_of(*general, *([chain] if sde.knots is not None else []))


def methods(*, stochastic: bool | None = None) -> st.SearchStrategy[Method]:
    """A method of the catalogue with its own options; only those that draw noise, or none, where ``stochastic`` says so. Engines of other
    packages and samplers that step by the hundred are left out."""
    found = [recipes.method(name) for name in recipes.methods() if not name.startswith(FOREIGN) and name not in SLOW]
    return st.sampled_from([m for m in found if stochastic is None or m.stochastic == stochastic])


def solvers(*, stochastic: bool | None = None) -> st.SearchStrategy[Solver]:
    """The solver of such a method."""
    return methods(stochastic=stochastic).map(lambda method: method.solver)
