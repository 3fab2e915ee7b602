"""Methods: a recipe of solver, eta and grid under one name, so that a change of method is a change of one word.

A method is a function of its options registered under its name; the first line of its docstring is its entry in the catalogue.
"""
from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .contracts import MOST, choice, flags, instance, integer, known, real, sequence, shown
from .grids import DDPM, Grid, Karras, LogSNR, Quadratic, Sech, grid
from .sde import A_PROCESS, SDE, NoiseLevel
from .solvers import (
    BOGACKI_SHAMPINE,
    DDIM,
    DDRM,
    DORMAND_PRINCE,
    DPS,
    ERSDE,
    EULER,
    HEUN,
    IPNDM,
    MIDPOINT,
    RK4,
    SRA1,
    AdamsBashforth,
    AdaptiveRungeKutta,
    Ancestral,
    Angular,
    Chain,
    Churn,
    EulerMaruyama,
    Exploded,
    Exponential,
    GottaGoFast,
    Interval,
    Langevin,
    Multistep,
    Picard,
    PredictorCorrector,
    Replacement,
    Restart,
    ReverseDiffusion,
    Rosenbrock,
    SciPy,
    Solver,
    StochasticHeun,
    TorchDiffEq,
    TorchDiffEqFixed,
    TorchSDE,
    TwistedSMC,
    dpm_solver,
    extended_eta,
    started,
    unipc,
)

Eta = float | Callable[[NoiseLevel], float]


@dataclass(frozen=True)
class Method:
    """``solver``, the ``eta`` of the equation it solves, and the ``grid`` it prefers (None: the process's own). ``why``: the reasons, of a
    method that was chosen. ``between``: whether the grid stands on a discrete chain too, between its knots."""

    name: str
    solver: Solver
    eta: Eta = 0.0
    grid: Grid | None = None
    why: str = ""
    between: bool = False

    def __post_init__(self) -> None:
        instance("name", self.name, str, "a string such as 'euler'")
        instance("solver", self.solver, Solver, "a solver such as sdediff.solvers.DDIM()")
        _eta("eta", self.eta)
        instance("grid", self.grid, Grid, "an instance such as sdediff.grids.Karras()", none=True)
        instance("why", self.why, str, "a string")
        flags(between=self.between)

    def default_grid(self, sde: SDE) -> Grid:
        """A grid that is the method's alone; else the knots of a discrete chain; else the grid it prefers; else the process's own
        (``SDE.spacing``)."""
        instance("sde", sde, SDE, A_PROCESS)
        if self.grid is not None and (self.between or self.grid.steps is not None):
            return self.grid
        return DDPM() if sde.knots else self.grid or grid(sde.spacing)

    @property
    def stochastic(self) -> bool:
        """Whether a run draws noise beyond its start."""
        return self.solver.noise == "always" or (self.solver.noise == "eta" and self.eta != 0)


class Run(NamedTuple):
    """What is known of a run when its method is chosen: the process, the score, and the budget, grid intervals or network calls (both
    None where the grid lists its times); its span, None for the process's own; the grid, None for the method's; ``up``: whether it
    runs up, from data to noise."""

    sde: SDE
    score: Any
    steps: int | None = None
    nfe: int | None = None
    t_start: float | None = None
    t_end: float | None = None
    grid: Any = None
    up: bool = False


_RECIPES: dict[str, Callable[..., Method]] = {}
_OBSERVING: set[Callable[..., Method]] = set()           # recipes of solvers that read a measurement
_CHOICES: dict[str, Callable[..., Method]] = {}         # names that stand for the method that suits a run


def chooser(name: str) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Registers ``choose(run, **options) -> Method`` under a name that runs may give in place of a method's."""
    def add(choose: Callable[..., Method]) -> Callable[..., Method]:
        _CHOICES[name] = choose
        return choose
    return add


class Choice(NamedTuple):
    """A method that is not known before its run: a name that chooses, and its options."""

    name: str
    options: Mapping[str, Any]


def chooses(name: Any) -> bool:
    """Whether it is a name that stands for the method that suits a run."""
    return isinstance(name, str) and name in _CHOICES


def spelled(name: str | Method, **given: Any) -> Method | Choice:
    """``method``, or a name that chooses one for a run. Raises as ``method`` does."""
    if not isinstance(name, str) or not chooses(name):
        return method(name, **given)
    known(f"method {name!r}", given, [k for k in inspect.signature(_CHOICES[name]).parameters if k != "run"])
    return Choice(name, given)


def chosen(name: str | Method | Choice, run: Run, **given: Any) -> Method:
    """The method of a run: ``method``, or what its name chooses. Raises as ``method`` does."""
    if type(name) is Method and not given:
        return name
    what = name if isinstance(name, Choice) else spelled(name, **given)
    return _CHOICES[what.name](run, **what.options) if isinstance(what, Choice) else what


def _register(*names: str) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    def add(recipe: Callable[..., Method]) -> Callable[..., Method]:
        _RECIPES.update(dict.fromkeys(names, recipe))
        return recipe
    return add


def methods(observing: bool = False) -> tuple[str, ...]:
    """Names of every registered method that a score suffices for; with ``observing`` of those that need one with a measurement as well
    (``inverse.observe``)."""
    flags(observing=observing)
    return tuple(name for name, recipe in _RECIPES.items() if (recipe in _OBSERVING) == observing)


def describe(name: str) -> str:
    """One line on a method."""
    return (inspect.getdoc(_recipe(name)) or "").split("\n")[0]


def options(name: str) -> dict[str, Any]:
    """A method's options with their defaults."""
    return dict(_options(_recipe(name)))


@functools.cache
def _options(recipe: Callable[..., Method]) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(recipe).parameters.items() if k != "name"}


def method(name: str | Method, **given: Any) -> Method:
    """The method of that name with its options set: ``method("ddim", eta=0.5)``. An unknown name is a ValueError that lists the
    nearest ones, an unknown option a TypeError that lists the method's options."""
    if isinstance(name, Method):
        if given:
            option, value = next(iter(given.items()))
            raise TypeError(f"{option}={shown(value)}: {name.name!r} is a finished Method; expected its options where it is made, "
                            f"sdediff.method({name.name!r}, {option}=...).")
        return name
    recipe = _recipe(name)
    known(f"method {name!r}", given, options(name))
    return recipe(name, **given)


def _recipe(name: Any) -> Callable[..., Method]:
    if chooses(name):
        raise ValueError(f"method={name!r}: it is chosen for a run, by its process and budget; give the name to sdediff.sample(...), or "
                         f"take one of {', '.join(list(_RECIPES)[:3])}, ...")
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
    return _multistep(name, unipc(int(name[-1]), kernel, form), start)


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


@_register("angular-2", "angular-3", "angular-4")
def _angular(name: str, corrector: bool = True, scale: float = 1.0, start: bool = True) -> Method:
    """Multistep in the angle of signal and noise, exact for N(0, scale^2 I), corrected without a call (Karras et al. 2022, Table 1)."""
    if not isinstance(corrector, bool):
        raise TypeError(f"corrector={corrector!r}: expected True (one order more, no extra network calls) or False.")
    nodes = int(name[-1])
    return _multistep(name, Angular(nodes, (nodes + 1) * corrector, scale), start, Sech().at_scale(scale))


@_register("rosenbrock-1", "rosenbrock-2", "rosenbrock-3")
def _rosenbrock(name: str, start: bool = True) -> Method:
    """Exponential Rosenbrock of Adams type: the model linearised in every step by its Jacobian (Hochbruck & Ostermann 2010)."""
    return _multistep(name, Rosenbrock(int(name[-1])), start, Karras())


@_register("rk45", "dopri5", "rk23")
def _embedded(name: str, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000) -> Method:
    """Embedded Runge-Kutta 5(4) (rk45, dopri5) or 3(2), a step size per sample, interpolated outputs (Dormand & Prince 1980)."""
    return Method(name, AdaptiveRungeKutta(BOGACKI_SHAMPINE if name == "rk23" else DORMAND_PRINCE, rtol, atol, max_steps), grid=LogSNR())


@_register("scipy-rk45", "scipy-dop853", "scipy-lsoda")
def _scipy(name: str, rtol: float = 1e-5, atol: float = 1e-5, max_calls: int = 10_000) -> Method:
    """scipy's adaptive RK45, DOP853 or LSODA; the grid only lists output times (Hairer, Norsett & Wanner 1993; Petzold 1983)."""
    return Method(name, SciPy(name[6:].upper(), rtol, atol, max_calls), grid=LogSNR())


if importlib.util.find_spec("torchdiffeq"):
    @_register("torchdiffeq-dopri5", "torchdiffeq-dopri8", "torchdiffeq-bosh3")
    def _torchdiffeq(name: str, rtol: float = 1e-5, atol: float = 1e-5, max_calls: int = 10_000) -> Method:
        """torchdiffeq's adaptive Runge-Kutta pairs; the grid only lists output times (Hairer, Norsett & Wanner 1993; Chen 2018)."""
        return Method(name, TorchDiffEq(name[12:], rtol, atol, max_calls), grid=LogSNR())

    @_register("torchdiffeq-rk4")
    def _torchdiffeq_fixed(name: str) -> Method:
        """torchdiffeq's fixed fourth-order method, Kutta's 3/8 rule, one step per grid interval (Kutta 1901; Chen 2018)."""
        return Method(name, TorchDiffEqFixed("rk4"))


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


@_register("sra1")
def _sra1(name: str, eta: Eta = 1.0) -> Method:
    """SRA1, which reads the area of the path beside its increment (Roessler 2010)."""
    return Method(name, SRA1(), eta)


@_register("gotta-go-fast")
def _gotta_go_fast(name: str, eta: Eta = 1.0, rtol: float = 0.05, atol: float = 0.0078, safety: float = 0.9, exponent: float = 0.9,
                   max_steps: int = 10_000) -> Method:
    """Adaptive stochastic Heun, a step size per sample, rejections true to the path (Jolicoeur-Martineau et al. 2021)."""
    return Method(name, GottaGoFast(rtol, atol, safety, exponent, max_steps), eta, LogSNR())


@_register("torchsde-euler", "torchsde-srk")
def _torchsde(name: str, eta: Eta = 1.0) -> Method:
    """torchsde's Euler-Maruyama, or its SRA1, one step per grid interval, on our noise (Li et al. 2020; Roessler 2010)."""
    return Method(name, TorchSDE(name[9:]), eta)


@_register("dpm++2m-sde")
def _dpmpp_2m_sde(name: str, eta: Eta = 1.0) -> Method:
    """SDE-DPM-Solver++ 2M, for any eta (Lu et al. 2022b)."""
    return Method(name, Exponential(2, "x0", "published"), eta, LogSNR())


@_register("dpm++3m-sde")
def _dpmpp_3m_sde(name: str, eta: Eta = 1.0, start: bool = True) -> Method:
    """SDE-DPM-Solver++ with three nodes, third order on the flow, for any eta; for 20 steps and more (Lu et al. 2022b)."""
    return _multistep(name, Exponential(3, "x0"), start, eta=eta)


@_register("dpm++sde")
def _dpmpp_sde(name: str, eta: Eta = 1.0) -> Method:
    """DPM++ SDE: two stages in x0, each with its own part of the noise; dpm++2s at eta = 0 (Lu et al. 2022b; k-diffusion 2022)."""
    return Method(name, dpm_solver(2, "x0"), eta, LogSNR())


@_register("seeds-2", "seeds-3")
def _seeds(name: str, eta: Eta = 1.0) -> Method:
    """SEEDS: stages in eps, each with its own part of the noise; dpm-solver-2, -3 at eta = 0 (Gonzalez et al. 2023)."""
    return Method(name, dpm_solver(int(name[-1])), eta, LogSNR())


@_register("sa-solver")
def _sa_solver(name: str, predictor: int = 2, corrector: int = 3, tau: Eta = 1.0, kernel: str = "exact", start: bool = True) -> Method:
    """Stochastic Adams predictor and corrector (0: none; nodes, the predicted one included), noise tau (Xue et al. 2023)."""
    _eta("tau", tau)
    integer("predictor", predictor, 1, 4)
    if integer("corrector", corrector, 0, 5) == 0:
        if kernel != "exact":
            raise ValueError(f"kernel={kernel!r}, corrector=0: the predictor alone has exact weights; expected kernel='exact'.")
        return _multistep(name, Exponential(predictor, "x0"), start, eta=tau)
    return _multistep(name, PredictorCorrector(predictor, corrector, kernel), start, eta=tau)


@_register("er-sde-2", "er-sde-3")
def _er_sde(name: str, eta: Eta = extended_eta, start: bool = True) -> Method:
    """Extended reverse-time SDE solver: x0 interpolated in sigma/alpha, eta varying along the step (Cui et al. 2023)."""
    return _multistep(name, ERSDE(int(name[-1])), start, Karras(), eta)


# -- chains, ancestral and Langevin samplers ------------------------------------------------------------------------
@_register("ddpm")
def _ddpm(name: str, variance: Any = "posterior") -> Method:
    """The DDPM chain between any levels; variance 'posterior', 'beta', 'optimal' or a function (Ho et al. 2020; Bao et al. 2022)."""
    return Method(name, DDIM(1.0, variance))


@_register("ancestral")
def _ancestral(name: str, inner: str | Method = "dpm++2s", eta: float = 1.0) -> Method:
    """A one-step ODE method stepped below the level and lifted back by fresh noise (Karras et al. 2022; k-diffusion 2022)."""
    within = _deterministic(inner)
    return Method(name, Ancestral(within.solver, eta), grid=within.grid)


@_register("euler-ancestral", "dpm2-ancestral", "dpm++2s-ancestral")
def _named_ancestral(name: str, eta: float = 1.0) -> Method:
    """An ancestral sampler of k-diffusion: Euler, DPM-Solver-2 or DPM-Solver++ 2S inside (k-diffusion 2022)."""
    inner = {"euler": Exploded(EULER), "dpm2": dpm_solver(2), "dpm++2s": dpm_solver(2, "x0")}[name.removesuffix("-ancestral")]
    return Method(name, Ancestral(inner, eta), grid=Karras())


@_register("edm-stochastic")
def _edm_stochastic(name: str, inner: str | Method = "edm-heun", S_churn: float = 5.0, S_tmin: float = 0.05, S_tmax: float = 50.0,
                    S_noise: float = 1.0) -> Method:
    """EDM's stochastic sampler: before a step, noise raises the level (Karras et al. 2022, Alg. 2)."""
    within = _deterministic(inner)
    return Method(name, Churn(within.solver, S_churn, S_tmin, S_tmax, S_noise), grid=within.grid)


@_register("restart")
def _restart(name: str, inner: str | Method = "edm-heun", intervals: Sequence[Sequence[Any]] = ((0.06, 0.3, 2),)) -> Method:
    """An ODE method that solves intervals (low, high, repeats[, steps]) of sigma/alpha again with fresh noise (Xu et al. 2023)."""
    within = _deterministic(inner)
    such = "[(0.06, 0.3, 2)], rows (low, high, repeats) or (low, high, repeats, steps) in the units of sigma/alpha"
    rows = [sequence(f"intervals[{i}]", row, such, 3) for i, row in enumerate(sequence("intervals", intervals, such, 0))]
    if any(len(row) > 4 for row in rows):
        raise ValueError(f"intervals={shown(intervals)}: expected {such}.")
    return Method(name, Restart(within.solver, tuple(Interval(*row) for row in rows)), grid=within.grid)


def _named(option: str, inner: str | Method) -> Method:
    """The method that an option of another one names."""
    return inner if isinstance(inner, Method) else method(choice(option, inner, _RECIPES))


def _deterministic(inner: str | Method, such: str = "'dpm++2s', 'edm-heun'") -> Method:
    within = _named("inner", inner)
    if within.eta != 0:
        raise ValueError(f"inner={within.name!r}: it solves an SDE, eta={within.eta!r}; expected a one-step method on the probability "
                         f"flow, such as {such} or 'ddim'.")
    return within


@_register("pc")
def _pc(name: str, predictor: str | Method = "reverse-diffusion", corrector: str = "langevin", snr: float = 0.16, corrector_steps: int = 1,
        rule: str = "level", density: Any = None) -> Method:
    """Predictor-corrector: any method's step, then Langevin (or MALA) steps at the new level (Song et al. 2021)."""
    first = _named("predictor", predictor)
    choice("corrector", corrector, ("langevin", "mala"))
    steps = integer("corrector_steps", corrector_steps, 1, MOST)
    return Method(name, Chain(first.solver, _langevin_steps(corrector, snr, steps, rule, density)), first.eta, first.grid)


@_register("langevin")
def _langevin(name: str, snr: float = 0.16, steps_per_level: int = 1, rule: str = "level") -> Method:
    """Unadjusted Langevin steps at each level in turn, without a predictor (Roberts & Tweedie 1996)."""
    return Method(name, Langevin(snr, integer("steps_per_level", steps_per_level, 1, MOST), rule), grid=LogSNR())


@_register("annealed-langevin")
def _annealed(name: str, snr: float = 0.22, steps_per_level: int = 100) -> Method:
    """Annealed Langevin of NCSN, 100 steps a level with step size proportional to sigma^2: SMLD (Song & Ermon 2019, Alg. 1)."""
    return Method(name, Langevin(snr, integer("steps_per_level", steps_per_level, 1, MOST)), grid=LogSNR())


@_register("mala")
def _mala(name: str, density: Any = None, snr: float = 0.3, steps_per_level: int = 1) -> Method:
    """Metropolis-adjusted Langevin at each level in turn; density=target.log_prob (Roberts & Tweedie 1996)."""
    return Method(name, _langevin_steps("mala", snr, integer("steps_per_level", steps_per_level, 1, MOST), "level", density), grid=LogSNR())


@_register("picard")
def _picard(name: str, inner: str | Method = "ddim", window: int = 16, tol: float = 1e-6, secant: bool = True) -> Method:
    """Parallel in time: a one-step method's steps swept over a window in one call, to a tolerance (Shih et al. 2023)."""
    within = _named("inner", inner)
    return Method(name, Picard(within.solver, window, tol, secant), within.eta, within.grid)


# -- with a measurement ---------------------------------------------------------------------------------------------
def _observing(*names: str) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    def add(recipe: Callable[..., Method]) -> Callable[..., Method]:
        _OBSERVING.add(recipe)
        return _register(*names)(recipe)
    return add


@_observing("replacement")
def _replacement(name: str, inner: str | Method = "ddpm") -> Method:
    """Measured coordinates drawn anew at every level, around a one-step method (Song et al. 2021, App. I.2)."""
    within = _deterministic(inner, "'ddpm'")
    return Method(name, Replacement(within.solver), grid=within.grid)


@_observing("repaint")
def _repaint(name: str, inner: str | Method = "ddpm", repeats: int = 10, jump: int = 10) -> Method:
    """Replacement, with stretches of ``jump`` steps noised back and solved again, ``repeats`` times in all (Lugmayr et al. 2022)."""
    within = _deterministic(inner, "'ddpm'")
    return Method(name, Replacement(within.solver, repeats, jump), grid=within.grid)


@_observing("dps")
def _dps(name: str, inner: str | Method = "ddpm", zeta: float = 1.0) -> Method:
    """Diffusion posterior sampling with its algorithm's step sizes, zeta for 1000 steps (Chung et al. 2023, Alg. 1)."""
    within = _deterministic(inner, "'ddpm'")
    return Method(name, DPS(within.solver, zeta), grid=within.grid)


@_observing("ddrm")
def _ddrm(name: str, eta: float = 0.85, eta_b: float = 1.0) -> Method:
    """Denoising diffusion restoration, coordinate by coordinate of the operator's decomposition (Kawar et al. 2022)."""
    return Method(name, DDRM(eta, eta_b))


@_observing("smc")
def _smc(name: str, particles: int | None = 64, threshold: float = 0.5, scale: float = 1.0,
         trust: float = 10.0) -> Method:
    """Twisted sequential Monte Carlo, exact in the limit of many particles; clouds of consecutive samples (Wu et al. 2023)."""
    return Method(name, TwistedSMC(particles, threshold, scale, trust), grid=LogSNR())


def _langevin_steps(kind: str, snr: float, steps: int, rule: str, density: Any) -> Langevin:
    if (kind == "mala") != (density is not None):
        raise ValueError(f"density={shown(density)}: the Metropolis correction of 'mala' needs the log density, expected "
                         "density=target.log_prob; 'langevin' takes none, expected None.")
    return Langevin(snr, steps, rule, density)


def _eta(name: str, value: Eta) -> None:
    """Refuses what is no eta, under the name that the method gives it."""
    if not callable(value):
        real(name, value, 0.0)


def _multistep(name: str, solver: Multistep, start: bool, grid: Grid | None = None, eta: Eta = 0.0) -> Method:
    if not isinstance(start, bool):
        raise TypeError(f"start={start!r}: expected True (the order holds from any starting time) or False (no extra network calls).")
    return Method(name, started(solver) if start else solver, eta, grid or LogSNR())
