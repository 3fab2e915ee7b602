"""Methods: a recipe of solver, eta and grid under one name, so that a change of method is a change of one word.

A method is a function of its options registered under its name; the first line of its docstring is its entry in the catalogue.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .contracts import choice
from .grids import DDPM, Grid, Karras, LogSNR, Quadratic, grid
from .sde import SDE, NoiseLevel
from .solvers import (
    DDIM,
    EULER,
    HEUN,
    IPNDM,
    MIDPOINT,
    RK4,
    AdamsBashforth,
    Ancestral,
    Chain,
    EulerMaruyama,
    Exploded,
    Exponential,
    Langevin,
    Multistep,
    ReverseDiffusion,
    Rosenbrock,
    SciPy,
    Solver,
    StochasticHeun,
    TorchSDE,
    UniPC,
    dpm_solver,
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


# -- the probability-flow ODE ---------------------------------------------------------------------------------------
@_register("euler", "midpoint", "heun", "rk4")
def _runge_kutta(name: str) -> Method:
    """Explicit Runge-Kutta on the probability-flow ODE in t (Butcher 2016)."""
    return Method(name, {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4}[name])


@_register("edm-heun")
def _edm_heun(name: str) -> Method:
    """Heun in the chart x/alpha, sigma/alpha, its last step into sigma = 0 Euler's (Karras et al. 2022, Alg. 1)."""
    return Method(name, Exploded(HEUN), grid=Karras())


@_register("ddim")
def _ddim(name: str, eta: float = 0.0) -> Method:
    """DDIM with Song's eta in [0, 1], exact for a point mass (Song et al. 2021a)."""
    return Method(name, DDIM(eta))


@_register("dpm-solver-1", "dpm-solver-2", "dpm-solver-3")
def _dpm_solver(name: str) -> Method:
    """Single-step DPM-Solver, eps form (Lu et al. 2022a)."""
    return Method(name, dpm_solver(int(name[-1])), grid=LogSNR())


@_register("dpm++2s", "dpm++3s")
def _dpmpp_s(name: str) -> Method:
    """Single-step DPM-Solver++, x0 form (Lu et al. 2022b)."""
    return Method(name, dpm_solver(int(name[-2]), "x0"), grid=LogSNR())


@_register("dpm++2m")
def _dpmpp_2m(name: str) -> Method:
    """DPM-Solver++ 2M (Lu et al. 2022b, Alg. 2)."""
    return Method(name, Exponential(2, "x0", "published"), grid=LogSNR())


@_register("dpm++3m")
def _dpmpp_3m(name: str, start: bool = True) -> Method:
    """DPM-Solver++ 3M with the coefficients that make it third order (Lu et al. 2022b; Hochbruck & Ostermann 2010)."""
    return _multistep(name, Exponential(3, "x0"), start)


@_register("dpm++3m-published")
def _dpmpp_3m_published(name: str) -> Method:
    """DPM-Solver++ 3M as its official code has it, order 2, for compatibility (Lu et al. 2022b)."""
    return Method(name, Exponential(3, "x0", "published"), grid=LogSNR())


@_register("unipc-1", "unipc-2", "unipc-3", "unipc-4")
def _unipc(name: str, kernel: str = "bh2", form: str = "x0", start: bool = True) -> Method:
    """UniPC-p, predictor and corrector in one evaluation, order p + 1 (Zhao et al. 2023)."""
    return _multistep(name, UniPC(int(name[-1]), kernel, form), start)


@_register("deis-1", "deis-2", "deis-3")
def _deis(name: str, variable: str = "t", start: bool = True) -> Method:
    """DEIS: exponential Adams-Bashforth, eps interpolated in t or rho (Zhang & Chen 2023)."""
    return _multistep(name, AdamsBashforth(int(name[-1]), variable), start, Quadratic())


@_register("ab-2", "ab-3", "ab-4")
def _ab(name: str, start: bool = True) -> Method:
    """Adams-Bashforth in the chart x/alpha, sigma/alpha, also called LMS (Hairer, Norsett & Wanner 1993, III.5)."""
    return _multistep(name, AdamsBashforth(int(name[-1]), "rho"), start, Karras())


@_register("ipndm")
def _ipndm(name: str) -> Method:
    """iPNDM: the Adams-Bashforth combination of equal steps on any grid (Liu et al. 2022)."""
    return Method(name, IPNDM(), grid=Karras())


@_register("eab-1", "eab-2", "eab-3", "eab-4")
def _eab(name: str, form: str = "eps", eta: Eta = 0.0, start: bool = True) -> Method:
    """Exponential Adams-Bashforth, eps (or form='x0') interpolated in log-SNR, for any eta (Hochbruck & Ostermann 2010)."""
    return _multistep(name, Exponential(int(name[-1]), form), start, eta=eta)


@_register("rosenbrock-1", "rosenbrock-2", "rosenbrock-3")
def _rosenbrock(name: str, start: bool = True) -> Method:
    """Exponential Rosenbrock of Adams type: the model linearised in every step by its Jacobian (Hochbruck & Ostermann 2010)."""
    return _multistep(name, Rosenbrock(int(name[-1])), start, Karras())


@_register("scipy-rk45")
def _scipy(name: str, rtol: float = 1e-5, atol: float = 1e-5) -> Method:
    """scipy's adaptive Runge-Kutta 4(5); the grid only lists output times (Dormand & Prince 1980)."""
    return Method(name, SciPy("RK45", rtol, atol), grid=LogSNR())


# -- the reverse SDE ------------------------------------------------------------------------------------------------
@_register("euler-maruyama")
def _euler_maruyama(name: str, eta: Eta = 1.0) -> Method:
    """Euler-Maruyama (Maruyama 1955)."""
    return Method(name, EulerMaruyama(), eta)


@_register("reverse-diffusion")
def _reverse_diffusion(name: str, eta: Eta = 1.0) -> Method:
    """The exact forward transition run backwards (Song et al. 2021, eq. 46)."""
    return Method(name, ReverseDiffusion(), eta)


@_register("sde-heun")
def _sde_heun(name: str, eta: Eta = 1.0) -> Method:
    """Stochastic Heun, the same noise in both stages (Kloeden & Platen 1992, ch. 15)."""
    return Method(name, StochasticHeun(), eta)


@_register("torchsde-euler")
def _torchsde(name: str, eta: Eta = 1.0) -> Method:
    """torchsde's Euler-Maruyama, one step per grid interval, on our noise (Li et al. 2020)."""
    return Method(name, TorchSDE("euler"), eta)


@_register("dpm++2m-sde")
def _dpmpp_2m_sde(name: str, eta: Eta = 1.0) -> Method:
    """SDE-DPM-Solver++ 2M, for any eta (Lu et al. 2022b)."""
    return Method(name, Exponential(2, "x0", "published"), eta, LogSNR())


# -- chains, ancestral and Langevin samplers ------------------------------------------------------------------------
@_register("ddpm")
def _ddpm(name: str, variance: Any = "posterior") -> Method:
    """The DDPM chain between any levels; variance 'posterior', 'beta', 'optimal' or a function (Ho et al. 2020; Bao et al. 2022)."""
    return Method(name, DDIM(1.0, variance))


@_register("ancestral")
def _ancestral(name: str, inner: str | Method = "dpm++2s", eta: float = 1.0) -> Method:
    """A one-step ODE method stepped below the level and lifted back by fresh noise (Karras et al. 2022; k-diffusion)."""
    within = method(inner)
    if within.eta != 0:
        raise ValueError(f"inner={within.name!r}: it solves an SDE, eta={within.eta!r}; expected a deterministic one-step method, such as "
                         "'dpm++2s', 'edm-heun' or 'ddim'.")
    return Method(name, Ancestral(within.solver, eta), grid=within.grid)


@_register("pc")
def _pc(name: str, predictor: str | Method = "reverse-diffusion", corrector: str = "langevin", snr: float = 0.16, corrector_steps: int = 1,
        rule: str = "level", density: Any = None) -> Method:
    """Predictor-corrector: any method's step, then Langevin (or MALA) steps at the new level (Song et al. 2021)."""
    first = method(predictor)
    choice("corrector", corrector, ("langevin", "mala"))
    return Method(name, Chain(first.solver, _langevin_steps(corrector, snr, corrector_steps, rule, density)), first.eta, first.grid)


@_register("langevin")
def _langevin(name: str, snr: float = 0.16, steps_per_level: int = 1, rule: str = "level") -> Method:
    """Unadjusted Langevin steps at each level in turn, without a predictor (Roberts & Tweedie 1996)."""
    return Method(name, Langevin(snr, steps_per_level, rule), grid=LogSNR())


@_register("annealed-langevin")
def _annealed(name: str, snr: float = 0.22, steps_per_level: int = 100) -> Method:
    """Annealed Langevin of NCSN, 100 steps a level with step size proportional to sigma^2: SMLD (Song & Ermon 2019, Alg. 1)."""
    return Method(name, Langevin(snr, steps_per_level), grid=LogSNR())


@_register("mala")
def _mala(name: str, density: Any = None, snr: float = 0.3, steps_per_level: int = 1) -> Method:
    """Metropolis-adjusted Langevin at each level in turn; density=target.log_prob (Roberts & Tweedie 1996)."""
    return Method(name, _langevin_steps("mala", snr, steps_per_level, "level", density), grid=LogSNR())


def _langevin_steps(kind: str, snr: float, steps: int, rule: str, density: Any) -> Langevin:
    if (kind == "mala") != (density is not None):
        raise ValueError(f"density={density!r}: the Metropolis correction of 'mala' needs the log density, density=target.log_prob, and "
                         "'langevin' takes none.")
    return Langevin(snr, steps, rule, density)


def _multistep(name: str, solver: Multistep, start: bool, grid: Grid | None = None, eta: Eta = 0.0) -> Method:
    if not isinstance(start, bool):
        raise TypeError(f"start={start!r}: expected True (the order holds from any starting time) or False (no extra network calls).")
    return Method(name, started(solver) if start else solver, eta, grid or LogSNR())
