"""Methods: a recipe of solver, eta and grid under one name, so that a change of method is a change of one word.

A method is a function of its options registered under its name; the first line of its docstring is its entry in the catalogue.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .contracts import choice
from .grids import DDPM, Grid, LogSNR, grid
from .sde import SDE, NoiseLevel
from .solvers import (
    DDIM,
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    Chain,
    EulerMaruyama,
    Exponential,
    Langevin,
    ReverseDiffusion,
    SciPy,
    Solver,
    StochasticHeun,
    TorchSDE,
    started,
)

Eta = float | Callable[[NoiseLevel], float]


@dataclass(frozen=True)
class Method:
    """``solver``, the ``eta`` of the equation it solves, and the ``grid`` it prefers (None: the process's own)."""

    name: str
    solver: Solver
    eta: Eta = 0.0
    grid: Grid | None = None

    def default_grid(self, sde: SDE) -> Grid:
        """The knots of a discrete chain; else this method's grid; else the process's own (``SDE.spacing``)."""
        return DDPM() if sde.knots else self.grid or grid(sde.spacing)


_RECIPES: dict[str, Callable[..., Method]] = {}


def _register(*names: str) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    def add(recipe: Callable[..., Method]) -> Callable[..., Method]:
        _RECIPES.update(dict.fromkeys(names, recipe))
        return recipe
    return add


def methods() -> tuple[str, ...]:
    """Names of every registered method."""
    return tuple(_RECIPES)


def describe(name: str) -> str:
    """One line on a method."""
    return (inspect.getdoc(_recipe(name)) or "").split("\n")[0]


def options(name: str) -> dict[str, Any]:
    """A method's options with their defaults."""
    return {k: p.default for k, p in inspect.signature(_recipe(name)).parameters.items() if k != "name"}


def method(name: str | Method, **given: Any) -> Method:
    """The method of that name with its options set: ``method("ddim", eta=0.5)``. An unknown name is a ValueError that lists the
    nearest ones, an unknown option a TypeError that lists the method's options."""
    if isinstance(name, Method):
        if given:
            raise TypeError(f"options {sorted(given)}: {name.name!r} is a finished Method; set them where it is made, "
                            f"sdediff.method({name.name!r}, {next(iter(given))}=...).")
        return name
    recipe, known = _recipe(name), options(name)
    for option in given:
        if option not in known:
            raise TypeError(f"{option}={given[option]!r}: method {name!r} has no such option; expected "
                            + (f"one of: {', '.join(f'{k}={v!r}' for k, v in known.items())}." if known else "no option."))
    return recipe(name, **given)


def _recipe(name: Any) -> Callable[..., Method]:
    return _RECIPES[choice("method", name, _RECIPES)]


@_register("euler-maruyama")
def _euler_maruyama(name: str, eta: Eta = 1.0) -> Method:
    """Euler-Maruyama on the reverse SDE: weak order 1, strong order 1 (additive noise)."""
    return Method(name, EulerMaruyama(), eta)


@_register("reverse-diffusion")
def _reverse_diffusion(name: str, eta: Eta = 1.0) -> Method:
    """The exact forward transition run backwards (Song et al. 2021): weak order 1."""
    return Method(name, ReverseDiffusion(), eta)


@_register("sde-heun")
def _sde_heun(name: str, eta: Eta = 1.0) -> Method:
    """Stochastic Heun on the reverse SDE: weak order 2."""
    return Method(name, StochasticHeun(), eta)


@_register("euler", "midpoint", "heun", "rk4")
def _runge_kutta(name: str) -> Method:
    """Explicit Runge-Kutta on the probability-flow ODE in t: order 1 (euler), 2 (midpoint, heun), 4 (rk4)."""
    return Method(name, {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4}[name])


@_register("ddim")
def _ddim(name: str, eta: float = 0.0) -> Method:
    """DDIM (Song et al. 2021a) with Song's eta in [0, 1]: order 1, exact for a point mass."""
    return Method(name, DDIM(eta))


@_register("ddpm")
def _ddpm(name: str, variance: str = "posterior") -> Method:
    """The DDPM chain (Ho et al. 2020) between any levels, variance 'posterior' or 'beta': weak order 1."""
    return Method(name, DDIM(1.0, variance))


@_register("dpm++2m")
def _dpmpp_2m(name: str) -> Method:
    """DPM-Solver++ 2M (Lu et al. 2022b): order 2, one evaluation a step."""
    return Method(name, Exponential(2, "x0", "midpoint"), grid=LogSNR())


@_register("dpm++2m-sde")
def _dpmpp_2m_sde(name: str, eta: Eta = 1.0) -> Method:
    """SDE-DPM-Solver++ 2M (Lu et al. 2022b), for any eta: weak order 1 (order 2 at eta = 0)."""
    return Method(name, Exponential(2, "x0", "midpoint"), eta, LogSNR())


@_register("eab-1", "eab-2", "eab-3", "eab-4")
def _eab(name: str, form: str = "eps", eta: Eta = 0.0, start: bool = True) -> Method:
    """Exponential Adams-Bashforth of that order: eps (or form='x0') interpolated in log-SNR, one evaluation a step."""
    solver: Any = Exponential(int(name[-1]), form)
    return Method(name, started(solver) if start else solver, eta, LogSNR())


@_register("pc")
def _pc(name: str, predictor: str | Method = "reverse-diffusion", corrector: str = "langevin", snr: float = 0.16,
        corrector_steps: int = 1, rule: str = "level") -> Method:
    """Predictor-corrector (Song et al. 2021): any method's step, then Langevin steps at the new level."""
    choice("corrector", corrector, ("langevin",))
    first = method(predictor)
    return Method(name, Chain(first.solver, Langevin(snr, corrector_steps, rule)), first.eta, first.grid)


@_register("scipy-rk45")
def _scipy(name: str, rtol: float = 1e-5, atol: float = 1e-5) -> Method:
    """scipy's adaptive Runge-Kutta 4(5) on the probability-flow ODE; the grid only lists output times."""
    return Method(name, SciPy("RK45", rtol, atol), grid=LogSNR())


@_register("torchsde-euler")
def _torchsde(name: str, eta: Eta = 1.0) -> Method:
    """torchsde's Euler-Maruyama, one step per grid interval, on our noise."""
    return Method(name, TorchSDE("euler"), eta)
