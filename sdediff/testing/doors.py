"""Every public callable with a valid call and the domain of each argument.

An argument's name means one thing in the library, so that most domains stand once, in ``EVERYWHERE``, and a door names only what is its own.
``public`` is what there is, read from the modules; what has no door is in ``MADE`` (results, which the library makes and callers read) or
``PROTOCOL`` (methods that the loops call, on values that a door has checked).
"""
from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import sdediff
from sdediff import equation, grids, latent, likelihood, recipes, sampling, sde
from sdediff.contracts import MOST
from sdediff.sde import SDE, NoiseLevel
from sdediff.targets import Gaussian, GaussianMixture

from .domains import (
    OMIT,
    Choice,
    Device,
    Domain,
    Door,
    DType,
    Each,
    Flag,
    Free,
    Function,
    Instance,
    Integer,
    Names,
    Numbers,
    OneOf,
    Real,
    Seed,
    Shape,
    State,
    Text,
    Times,
    Unknown,
)

VP, CHAIN = sdediff.VPSDE(), sdediff.VPSDE.from_betas([0.02, 0.3, 0.1, 0.55, 0.2])
TARGET = GaussianMixture([[-1.0, 0.5], [1.0, -0.5]], 0.1)
X, POINTS = torch.tensor([[0.5, -0.25], [1.0, 0.75]]), Gaussian([0.0, 0.0]).sample(40, seed=0)


class Network:
    """eps = x/2, called so many times."""

    calls = 0

    def __call__(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        self.calls += 1
        return 0.5 * x


NETWORK = Network()
SCORE = sdediff.from_network(NETWORK)
A_GRID = Times(names=("uniform", "quadratic", "logsnr", "karras", "sech"), inside=("uniform", [0.9, 0.5, 0.1], (0.9, 0.5, 0.1)), none=True)
METHOD = OneOf((Choice(tuple(name for name in recipes.methods() if name != "mala")), Instance((recipes.Method,), inside=(sdediff.method("heun"),))))


DETERMINISTIC = tuple(name for name in recipes.methods() if name != "mala" and not sdediff.method(name).stochastic)
FLOW = OneOf((Choice(DETERMINISTIC), Instance((recipes.Method,), inside=(sdediff.method("heun"),))))


SOLVER = Instance((sdediff.solvers.Solver,), inside=(sdediff.solvers.DDIM(),), edges=(sdediff.solvers.DDIM, "ddim"))


def _process(instance: type[SDE] = SDE) -> Domain:
    return Instance((instance,), inside=(VP,), edges=("vp", sdediff.VPSDE))


SCORED = Function(inside=(SCORE,))
SPAN = Real(0.0, 1.0, none=True, inside=(0.5,))

EVERYWHERE: dict[str, Domain] = {
    "sde": _process(),
    "score": SCORED,
    "shape": Shape(inside=((2, 2), (0, 2), (1, 3, 1, 1, 2), (4,))),
    "x_init": State(none=True, inside=(X, X.double(), X[:0], X.half())),
    "x": State(inside=(X, X.double())),
    "steps": Integer(1, MOST, inside=(1, 3)),
    "nfe": Integer(1, MOST, none=True, inside=(2, 5)),
    "grid": A_GRID,
    "t_start": SPAN,
    "t_end": Real(0.0, 1.0, "high", none=True, inside=(0.0, 0.1)),
    "seed": Seed(),
    "conditions": Names(inside=({},)),
    "device": Device(),
    "dtype": DType(),
    "progress": Flag(inside=(False,)),
    "record": Flag(),
    "first": Integer(0, inside=(0, 5)),
    "table": Flag(),
    "compile": Flag(inside=(False,)),
    "autocast": DType((torch.bfloat16, torch.float16), edges=(torch.float32, "bfloat16")),
    "overwrite": Flag(inside=(False,)),
    "chunk": Integer(1, none=True, inside=(1, 5)),
    "group": Instance((torch.distributed.ProcessGroup,), none=True) if torch.distributed.is_available() else Free("", True),
    "**options": Unknown(),
    "**run": Unknown(),
    "**call": Unknown(),
    "name": Text(),
    "level": Instance((NoiseLevel,), none=True, inside=(VP.at(0.5),), edges=(0.5, (0.5,) * 6)),
}
DOORS: dict[str, Door] = {}


def door(function: Callable[..., Any], call: Mapping[str, Any] | Callable[[], dict[str, Any]], own: Mapping[str, Domain] | None = None, *,
         name: str = "", beside: Mapping[str, Mapping[str, Any]] | None = None, also: Mapping[str, tuple[str, ...]] | None = None,
         costly: bool = False) -> None:
    """Registers a door: its domains are its own, and for the other arguments those of ``EVERYWHERE``."""
    name = name or f"{function.__module__.removeprefix('sdediff.').split('.')[0]}.{function.__qualname__}"
    known = {**EVERYWHERE, **(own or {})}
    spelled = [{p.VAR_KEYWORD: "**", p.VAR_POSITIONAL: "*"}.get(p.kind, "") + n for n, p in inspect.signature(function).parameters.items()]
    make = call if callable(call) else lambda: dict(call)
    DOORS[name] = Door(name, function, make, {n: known[n] for n in spelled if n in known}, beside or {}, also or {}, costly)


def arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a callable's arguments, as domains are declared for them."""
    return tuple({p.VAR_KEYWORD: "**", p.VAR_POSITIONAL: "*"}.get(p.kind, "") + n for n, p in inspect.signature(function).parameters.items())


# -- samples ------------------------------------------------------------------------------------------------------------
RUN = {"sde": VP, "score": SCORE, "method": "ddim", "steps": 2}
LISTS = {"x_init": {"shape": OMIT}, "nfe": {"steps": OMIT}}
FROM_NOISE = {"method": METHOD, "noise": OneOf((Choice(("white", "brownian")), Instance((sdediff.random.Noise,))))}
ALSO = {"grid": ("times",)}
for function in (sampling.sample, sampling.sample_info, sampling.sample_chunks):
    door(function, {**RUN, "shape": (2, 2), "seed": 0}, {**FROM_NOISE, "out": Free("none here", True)}, beside=LISTS, also=ALSO)
door(sampling.encode, {**RUN, "x": X}, {"method": FLOW}, beside=LISTS, also=ALSO)
door(sampling.iterate, {"eq": equation.ReverseSDE(VP, SCORE), "solver": sdediff.solvers.DDIM(), "x": X, "levels": VP.levels([0.9, 0.5, 0.1])},
     {"x": Instance((Tensor, sdediff.solvers.Form), inside=(X, X[:0])), "eq": Instance((equation.ReverseSDE,)), "solver": Instance((sdediff.solvers.Solver,)), "levels": Each(Instance((NoiseLevel,)), 2),
      "noise": Instance((sdediff.random.Noise,), none=True)})
door(sampling.simulate, {"sde": VP, "x0": X, "steps": 2, "seed": 0},
     {"sde": _process(), "x0": State(inside=(X, X[:0])), "steps": Integer(1, inside=(1, 3)), "times": Times(1.0, False, inside=([0.0, 0.5],)),
      "method": Choice(("exact", "euler-maruyama"), none=True), "noise": FROM_NOISE["noise"], "drift": Function(), "diffusion": Function(),
      "t_max": Real(0.0, 1.0, "low", none=True, inside=(0.5,))},
     beside={"times": {"steps": OMIT}, "drift": {"sde": OMIT, "diffusion": lambda x, t: 1.0},
             "diffusion": {"sde": OMIT, "drift": lambda x, t: -x}})


# -- processes, levels, grids ---------------------------------------------------------------------------------------------
def positive(*inside: float, **more: Any) -> Real:
    """Real numbers above 0."""
    return Real(0.0, None, "low", inside=inside, **more)


T_MIN = {"t_min": Real(0.0, 1.0, "high", inside=(0.0, 0.01))}
AT = {"t": OneOf((Real(0.0, 1.0, inside=(0.0, 1.0)), State((2,), inside=(torch.tensor([0.2, 1.0]),)))), "x0": State(inside=(X, X.half()))}
LATER = {"t": OneOf((Real(0.0, 1.0, inside=(0.0, 1.0)), State(finite=False, inside=(torch.tensor([0.2, 1.0]),))))}
LAM = {"lam": OneOf((Real(infinite="inf -inf", inside=(0.5,)), State(finite=False, inside=(torch.tensor([0.2, 1.0]),))))}
for kind in (sdediff.VPSDE, sdediff.SubVPSDE):
    door(kind, {}, {"beta_min": Real(0.0, 20.0, "low", inside=(1.0,)), "beta_max": Real(0.1, inside=(0.1, 9.0)), **T_MIN},
         also={"beta_min": ("beta_max",)})
door(sdediff.CosineVPSDE, {}, {"offset": Real(0.0, inside=(0.0, 0.1)), "t_max": Real(0.0, 1.0, "low", inside=(1.0,)), **T_MIN},
     also={"t_max": ("t_min",)})
door(sdediff.VESDE, {}, {"sigma_min": Real(0.0, 50.0, "low high", inside=(0.02,)), "sigma_max": Real(0.01, None, "low", inside=(9.0,)),
                         "subtract_min": Flag(), **T_MIN}, also={"sigma_min": ("sigma_max",)})
door(sdediff.EDMSDE, {}, {"sigma_min": Real(0.0, 80.0, "high", inside=(0.0,)), "sigma_max": Real(0.002, None, "low", inside=(9.0,))},
     also={"sigma_min": ("sigma_max",)})
door(sdediff.RectifiedFlow, {}, T_MIN)
door(sdediff.LinearSDE, {"f": lambda t: -0.5 * t, "g": lambda t: 1.0}, {
    "f": Function(), "g": Function(), "t_max": positive(0.5), "t_min": Real(0.0, 1.0, "high", none=True, inside=(0.1,))},
     also={"t_max": ("t_min",)})
door(sdediff.VPSDE.from_betas, {"betas": [0.1, 0.2]}, {"betas": Numbers((1,), low=1e-12, inside=([0.5, 1.0], torch.tensor([0.5])))}, name="sde.VPSDE.from_betas")
door(sdediff.VESDE.from_sigmas, {"sigmas": [0.1, 2.0]}, {"sigmas": Numbers((1,), low=1e-12, inside=([5.0, 1.0], torch.tensor([0.5])))}, name="sde.VESDE.from_sigmas")
door(sde.process, {"name": "vp"}, {"name": Choice(("vp", "sub-vp", "cosine", "ve", "edm", "flow", "ddpm"))}, also={"name": ("process",)})
door(VP.at, {"t": 0.5}, LATER, name="SDE.at")
door(VP.levels, {"times": [0.9, 0.1]}, {"times": Numbers((1,), low=0.0, high=1.0, least=0, inside=([0.5], (0.1, 0.9), [0], [], X[0] ** 2))}, name="SDE.levels")
door(VP.level_of, {"lam": 0.5}, LAM, name="SDE.level_of")
door(VP.drift, {"x": X, "t": 0.5}, AT, name="SDE.drift")
door(VP.diffusion, {"t": 0.5}, {"t": OneOf((Real(0.0, 1.0, inside=(0.5,)), State(inside=(torch.tensor([0.2, 1.0, 0.0]),))))}, name="SDE.diffusion")
door(VP.marginal, {"x0": X, "t": 0.5}, AT, name="SDE.marginal")
ON_LEVEL = OneOf((Real(0.5, 1.0, inside=(1.0,)), Instance((NoiseLevel,), inside=(VP.at(1.0),))))
door(VP.transition, {"t": 0.75, "s": 0.5}, {"t": ON_LEVEL, "s": OneOf((Real(0.0, 0.75, inside=(0.75,)), Instance((NoiseLevel,), inside=(VP.at(0.0),))))}, name="SDE.transition")
door(VP.prior_std, {}, name="SDE.prior_std")
door(VP.prior, {"shape": (2, 2)}, name="SDE.prior")
for kind, own in ((grids.Uniform, {}), (grids.LogSNR, {}), (grids.Quadratic, {"power": positive(3.0)}), (grids.Karras, {"rho": positive(5.0)}),
                  (grids.Sech, {"centre": Real(inside=(0.0,)), "noisy": positive(1.0), "clean": positive(1.0), "floor": positive(1.0)}),
                  (grids.DDPM, {"spacing": Choice(("trailing", "leading", "linspace"))})):
    door(kind, {}, own)
door(grids.Uniform().__call__, {"sde": VP, "steps": 2}, name="Grid.__call__")
door(grids.Sech().at_scale, {"scale": 2.0}, {"scale": positive(0.5)}, name="Sech.at_scale")
door(grids.grid, {"spec": "karras"}, {"spec": OneOf((Choice(tuple(grids.GRIDS)), Instance((grids.Grid,), inside=(grids.Karras(),))))}, also={"spec": ("grid",)})
door(grids.checked, {"sde": VP, "times": [0.9, 0.1]}, {"times": Times(inside=((1.0, 0.0), [1, 0]))})
door(grids.finite_span, {"sde": VP, "start": 1.0, "end": 0.1}, {"start": Real(0.1, 1.0, "low", inside=(0.5,)), "end": Real(0.0, 1.0, "high", inside=(0.0,))})

# -- scores and equations -------------------------------------------------------------------------------------------------
TIME_INPUT = OneOf((Choice(("t", "lam", "sigma", "index", "edm")), Function(inside=(lambda level: level.t,))), none=True)
door(sdediff.from_network, {"network": NETWORK}, {"network": Function(), "predicts": Choice(("x0", "eps", "score", "v", "velocity", "edm")), "time_input": TIME_INPUT, "sigma_data": positive(1.0)})
door(sdediff.from_classifier, {"network": NETWORK}, {"network": Function(), "time_input": OneOf(TIME_INPUT.domains)})
door(sdediff.from_score, {"function": lambda x, t: -x}, {"function": Function()})
LEVEL = Instance((NoiseLevel,), inside=(VP.at(0.5),), edges=(0.5, (0.5,) * 6))
door(sdediff.Prediction, {"x": X, "level": VP.at(0.5), "eps": X}, {"x": Free("any vector that adds and scales"), "level": LEVEL, "**given": Unknown()})
ETA = OneOf((Real(0.0, inside=(0.0, 0.5)), Function(inside=(lambda level: 0.5,))))
door(sdediff.ReverseSDE, {"sde": VP, "score": SCORE}, {"eta": ETA})
door(equation.ReverseSDE(VP, SCORE).at, {"t": 0.5}, LATER, name="ReverseSDE.at")
door(recipes.method, {"name": "ddim"}, {"name": METHOD, "**given": Unknown()}, also={"name": ("method",)})
door(recipes.methods, {}, {"observing": Flag()})
door(recipes.Method, {"name": "mine", "solver": sdediff.solvers.DDIM()}, {"solver": SOLVER, "eta": ETA, "grid": Instance((grids.Grid,), none=True), "why": Text(empty=True), "between": Flag()})
door(sdediff.method("heun").default_grid, {"sde": VP}, name="Method.default_grid")
