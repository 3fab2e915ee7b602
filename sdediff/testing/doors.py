"""Every public callable with a valid call and the domain of each argument.

An argument's name means one thing in the library, so that most domains stand once, in ``EVERYWHERE``, and a door names only what is its
own. The doors of networks, training, data and instruments are in ``workshop``; ``census`` holds all of them against what there is.
"""
from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import sdediff
import sdediff.tuned
from sdediff import (
    analysis,
    equation,
    grids,
    guidance,
    inverse,
    latent,
    likelihood,
    metrics,
    operators,
    random,
    recipes,
    sampling,
    sde,
    selection,
    solvers,
    targets,
)
from sdediff.contracts import MOST
from sdediff.sde import SDE, NoiseLevel
from sdediff.targets import Gaussian, GaussianMixture

from .domains import (
    OMIT,
    Bools,
    Choice,
    Classes,
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
    Labels,
    Names,
    Numbers,
    OneOf,
    Pair,
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
X, POINTS_LAW = torch.tensor([[0.5, -0.25], [1.0, 0.75]]), Gaussian([0.0, 0.0])
POINTS = POINTS_LAW.sample(40, seed=0)


class Network:
    """eps = x/2, called so many times."""

    calls = 0

    def __call__(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        self.calls += 1
        return 0.5 * x


NETWORK = Network()
SCORE = sdediff.from_network(NETWORK)
A_GRID = Times(names=("uniform", "quadratic", "logsnr", "karras", "sech"), inside=("uniform", [0.9, 0.5, 0.1], (0.9, 0.5, 0.1)), none=True)
METHOD = OneOf((Choice(tuple(name for name in recipes.methods() if name != "mala")),
    Instance((recipes.Method,), inside=(sdediff.method("heun"),))))


FLOW = OneOf((Choice(("ddim", "heun", "dpm++2m", "unipc-3", "rosenbrock-2", "rk45")),
    Instance((recipes.Method,), inside=(sdediff.method("heun"),))))


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
function: Any               # what the loops below run over
kind: Any
call: Any
own: Any
name: str
given: Any


def door(function: Callable[..., Any], call: Mapping[str, Any] | Callable[[], dict[str, Any]], own: Mapping[str, Domain] | None = None, *,
         name: str = "", beside: Mapping[str, Mapping[str, Any]] | None = None, also: Mapping[str, tuple[str, ...]] | None = None,
         costly: bool = False) -> None:
    """Registers a door: its domains are its own, and for the other arguments those of ``EVERYWHERE``."""
    name = name or f"{function.__module__.removeprefix('sdediff.').split('.')[0]}.{function.__qualname__}"
    known = {**EVERYWHERE, **(own or {})}
    spelled = arguments(function)
    make = call if callable(call) else lambda: dict(call)
    DOORS[name] = Door(name, function, make, {n: known[n] for n in spelled if n in known}, beside or {}, also or {}, costly)


def arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a callable's arguments, as domains are declared for them: "**options" for any option."""
    return tuple("**" * (p.kind is p.VAR_KEYWORD) + name for name, p in inspect.signature(function).parameters.items())


# -- samples ------------------------------------------------------------------------------------------------------------
RUN = {"sde": VP, "score": SCORE, "method": "ddim", "steps": 2}
LISTS = {"x_init": {"shape": OMIT}, "nfe": {"steps": OMIT}}
FROM_NOISE = {"method": METHOD, "noise": OneOf((Choice(("white", "brownian")), Instance((sdediff.random.Noise,))))}
ALSO = {"grid": ("times",)}
for function in (sampling.sample, sampling.sample_info, sampling.sample_chunks):
    door(function, {**RUN, "shape": (2, 2), "seed": 0}, {
        **FROM_NOISE, "method": METHOD if function is sampling.sample else FLOW, "out": Free("none here", True)}, beside=LISTS, also=ALSO)
door(sampling.encode, {**RUN, "x": X}, {"method": FLOW}, beside=LISTS, also=ALSO)
door(sampling.iterate, {"eq": equation.ReverseSDE(VP, SCORE), "solver": sdediff.solvers.DDIM(), "x": X,
    "levels": VP.levels([0.9, 0.5, 0.1])},
     {"x": Instance((Tensor, sdediff.solvers.Form), inside=(X, X[:0])), "eq": Instance((equation.ReverseSDE,)),
    "solver": Instance((sdediff.solvers.Solver,)), "levels": Each(Instance((NoiseLevel,)), 2),
      "noise": Instance((sdediff.random.Noise,), none=True)})
door(sampling.simulate, {"sde": VP, "x0": X, "steps": 2, "seed": 0},
     {"sde": _process(), "x0": State(inside=(X, X[:0])), "steps": Integer(1, inside=(1, 3)),
    "times": Times(1.0, False, inside=([0.0, 0.5],)),
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
door(sdediff.VPSDE.from_betas, {"betas": [0.1, 0.2]}, {"betas": Numbers((1,), low=1e-12, inside=([0.5, 1.0], torch.tensor([0.5])))},
    name="sde.VPSDE.from_betas")
door(sdediff.VESDE.from_sigmas, {"sigmas": [0.1, 2.0]}, {"sigmas": Numbers((1,), low=1e-12, inside=([5.0, 1.0], torch.tensor([0.5])))},
    name="sde.VESDE.from_sigmas")
door(sde.process, {"name": "vp"}, {"name": Choice(tuple(sde.PROCESSES))}, also={"name": ("process",)})
door(VP.at, {"t": 0.5}, LATER, name="SDE.at")
door(VP.levels, {"times": [0.9, 0.1]}, {"times": Numbers((1,), low=0.0, high=1.0, least=0,
    inside=([0.5], (0.1, 0.9), [0], [], X[0] ** 2))}, name="SDE.levels")
door(VP.level_of, {"lam": 0.5}, LAM, name="SDE.level_of")
door(VP.drift, {"x": X, "t": 0.5}, AT, name="SDE.drift")
door(VP.diffusion, {"t": 0.5}, {"t": OneOf((Real(0.0, 1.0, inside=(0.5,)), State(inside=(torch.tensor([0.2, 1.0, 0.0]),))))},
    name="SDE.diffusion")
door(VP.marginal, {"x0": X, "t": 0.5}, AT, name="SDE.marginal")
ON_LEVEL = OneOf((Real(0.5, 1.0, inside=(1.0,)), Instance((NoiseLevel,), inside=(VP.at(1.0),))))
door(VP.transition, {"t": 0.75, "s": 0.5}, {"t": ON_LEVEL, "s": OneOf((Real(0.0, 0.75, inside=(0.75,)),
    Instance((NoiseLevel,), inside=(VP.at(0.0),))))}, name="SDE.transition")
door(VP.prior_std, {}, name="SDE.prior_std")
door(VP.prior, {"shape": (2, 2)}, name="SDE.prior")
for kind, own in ((grids.Uniform, {}), (grids.LogSNR, {}), (grids.Quadratic, {"power": positive(3.0)}),
    (grids.Karras, {"rho": positive(5.0)}),
                  (grids.Sech, {"centre": Real(inside=(0.0,)), "noisy": positive(1.0), "clean": positive(1.0), "floor": positive(1.0)}),
                  (grids.DDPM, {"spacing": Choice(("trailing", "leading", "linspace"))})):
    door(kind, {}, own)
door(grids.Uniform().__call__, {"sde": VP, "steps": 2}, name="Grid.__call__")
door(grids.Sech().at_scale, {"scale": 2.0}, {"scale": positive(0.5)}, name="Sech.at_scale")
door(grids.grid, {"spec": "karras"}, {"spec": OneOf((Choice(tuple(grids.GRIDS)), Instance((grids.Grid,), inside=(grids.Karras(),))))},
    also={"spec": ("grid",)})
door(grids.checked, {"sde": VP, "times": [0.9, 0.1]}, {"times": Times(inside=((1.0, 0.0), [1, 0]))})
door(grids.finite_span, {"sde": VP, "start": 1.0, "end": 0.1}, {"start": Real(0.1, 1.0, "low", inside=(0.5,)),
    "end": Real(0.0, 1.0, "high", inside=(0.0,))})

# -- scores and equations -------------------------------------------------------------------------------------------------
TIME_INPUT = OneOf((Choice(("t", "lam", "sigma", "index", "edm")), Function(inside=(lambda level: level.t,))), none=True)
door(sdediff.from_network, {"network": NETWORK}, {"network": Function(),
    "predicts": Choice(("x0", "eps", "score", "v", "velocity", "edm")), "time_input": TIME_INPUT, "sigma_data": positive(1.0)})
door(sdediff.from_classifier, {"network": NETWORK}, {"network": Function(), "time_input": OneOf(TIME_INPUT.domains)})
door(sdediff.from_score, {"function": lambda x, t: -x}, {"function": Function()})
LEVEL = Instance((NoiseLevel,), inside=(VP.at(0.5),), edges=(0.5, (0.5,) * 6))
door(sdediff.Prediction, {"x": X, "level": VP.at(0.5), "eps": X}, {"x": Free("any vector that adds and scales"), "level": LEVEL,
    "**given": Unknown()})
ETA = OneOf((Real(0.0, inside=(0.0, 0.5)), Function(inside=(lambda level: 0.5,))))
door(sdediff.ReverseSDE, {"sde": VP, "score": SCORE}, {"eta": ETA})
door(equation.ReverseSDE(VP, SCORE).at, {"t": 0.5}, LATER, name="ReverseSDE.at")
door(recipes.method, {"name": "ddim"}, {"name": METHOD, "**given": Unknown()}, also={"name": ("method",)})
door(recipes.methods, {}, {"observing": Flag()})
door(recipes.Method, {"name": "mine", "solver": sdediff.solvers.DDIM()},
    {"name": Text(empty=True), "solver": SOLVER, "eta": ETA, "grid": Instance((grids.Grid,), none=True), "why": Text(empty=True),
    "between": Flag()})
door(sdediff.method("heun").default_grid, {"sde": VP}, name="Method.default_grid")

# -- likelihood and codes -------------------------------------------------------------------------------------------------
HEUN = {"sde": VP, "score": SCORE, "x": X, "method": "heun", "steps": 2}
BITS = OneOf((Integer(1, 32, inside=(8,)), Instance((likelihood.Bins,), inside=(likelihood.Bins(4, -2.0, 2.0),))))
DENSITY = Function(none=True, inside=(lambda x, level: x.sum(1),))
door(likelihood.log_prob, HEUN, {
    "method": OneOf((Choice(("ddim", "heun", "dpm++2m", "unipc-3", "rk45", "scipy-lsoda")), FLOW.domains[1])),
    "divergence": Choice(("exact", "hutchinson", "hutch++")), "probes": Integer(1, none=True, inside=(1, 2)),
    "law": Choice(("rademacher", "gaussian")), "prior": DENSITY, "bits": OneOf(BITS.domains, none=True), "refine": Flag(),
    "t_end": Real(0.0, 1.0, "high", none=True, inside=(0.1,))},
     beside={"nfe": {"steps": OMIT}, "probes": {"divergence": "hutchinson"}, "seed": {"divergence": "hutchinson"},
             "first": {"divergence": "hutchinson"}, "bits": {"x": torch.tensor([[0.1234, -0.777]])}}, also=ALSO)
door(likelihood.elbo, {"sde": CHAIN, "score": SCORE, "x": X, "draws": 4}, {
    "sde": Instance((SDE,), inside=(VP, CHAIN)), "draws": Integer(4, inside=(4, 5)),
    "t_end": Real(0.0, 5.0, "low high", none=True, inside=(1.0,)), "chain": Flag(), "bits": OneOf(BITS.domains[1:], none=True)},
     beside={"bits": {"x": torch.tensor([[-1.5, 0.5], [0.5, 1.5]])}})
door(likelihood.Bins, {}, {"levels": Integer(2, 2**32, inside=(2,)), "low": Real(None, 1.0, "high", inside=(0.0,)),
                           "high": Real(-1.0, None, "low", inside=(0.0,))}, also={"low": ("high",)})
door(likelihood.Bins.of, {"bits": 8}, {"bits": BITS}, name="Bins.of")
door(likelihood.Bins().check, {"x": torch.tensor([[0.1234, -0.777]])}, {"x": State(inside=())}, name="Bins.check", also={"x": ("bins",)})
WHOLE = torch.tensor([[0, 255], [3, 4]])
door(likelihood.dequantise, {"k": WHOLE}, {"k": Labels(256, inside=(WHOLE, WHOLE.float(), WHOLE.byte())),
    "bits": OneOf((Integer(8, 32, inside=(16,)),
     Instance((likelihood.Bins,), inside=(likelihood.Bins(),))))})
door(likelihood.bits_per_dim, {"nats": X[0], "d": 2}, {"nats": State(rank=0, finite=False, inside=(X[0],)), "d": Integer(1, inside=(1,)),
    "width": positive(0.5)})
door(latent.decode, {"sde": VP, "score": SCORE, "z": X, "steps": 2}, {"z": State(inside=(X, X.double())), "method": FLOW}, also=ALSO)
door(latent.round_trip, {"sde": VP, "score": SCORE, "x": X, "steps": 2})
A, B = X, X.flip(0) + 0.25
CODES = {"a": State((2, 2), inside=(A,)), "b": State((2, 2), inside=(B, B.double().float()))}
door(latent.slerp, {"a": A, "b": B, "weights": [0.5]}, {**CODES, "weights": Numbers((1,), low=0.0, high=1.0, least=0,
    inside=([0.0, 1.0], X[:, 0].abs()))},
     also={"a": ("b",)})
door(latent.interpolate, {"sde": VP, "score": SCORE, "a": A, "b": B, "steps": 2}, {
    **CODES, "points": OneOf((Integer(2, inside=(2, 3)), Numbers((1,), low=0.0, high=1.0, inside=([0.0, 0.25],))))},
    also={"a": ("b",), "points": ("weights",)})
door(latent.renoise, {"sde": VP, "x": X, "t": 0.5}, {"t": Real(0.0, 1.0, inside=(0.0, 1.0)), "t_from": Real(0.0, 0.5, inside=(0.5,))},
    also={"t_from": ("t",)})
door(latent.denoise_from, {"sde": VP, "score": SCORE, "x": X, "t": 0.5, "steps": 2}, {
    "t": Real(0.1, 1.0, inside=(1.0,)), "method": Choice(("ddim", "dpm++2m", "euler-maruyama")), "renoised": Flag()})
door(sdediff.tune, {"method": "ddim", "sde": VP, "score": SCORE, "nfe": 3, "data": POINTS, "trajectories": 8,
                   "iterations": 1, "starts": 1}, {
    "method": METHOD, "steps": Integer(1, MOST, none=True), "nfe": Integer(1, MOST), "data": State(rank=2), "shape": Shape(),
    "what": Choice(("grid", "grid+coefficients")), "stochastic": Flag(), "near": Each(Instance((sdediff.tuned.Tuned,)), 0),
    "trajectories": Integer(8, MOST), "iterations": Integer(1, MOST), "starts": Integer(1, MOST), "seed": Integer(0),
    "rtol": Real(0.0, 1.0, "low", none=True), "dtype": DType((torch.float32, torch.float64), none=False)},
     beside={"shape": {"data": OMIT}, "steps": {"nfe": OMIT}}, costly=True, also={"shape": ("shape", "data")})

# -- guidance and measurements --------------------------------------------------------------------------------------------
SCALE = OneOf((Real(0.0, inside=(0.0, 2.0)), Function(inside=(lambda level: 2.0,))))
BETWEEN = Pair(0.0, none=True, inside=((0.3, 5.0), (0.0, math.inf)))
EXACT = TARGET.score
for function, call in ((guidance.classifier_free, {"score": SCORE, "scale": 2.0}),
    (guidance.autoguidance, {"score": SCORE, "weak": EXACT, "scale": 2.0})):
    door(function, call, {"weak": SCORED, "scale": SCALE, "null": Names(inside=({"y": 2},)), "interval": BETWEEN,
        "rescale": Real(0.0, 1.0, inside=(0.5,))})
door(guidance.classifier, {"score": SCORE, "classifier": TARGET.log_posterior, "scale": 2.0}, {
    "classifier": Function(inside=(TARGET.log_posterior,)), "scale": SCALE, "label": Text()})
door(guidance.temperature, {"score": SCORE, "T": 0.5}, {"T": positive(2.0),
    "scale": Real(0.0, None, "low", infinite="inf", inside=(2.0, math.inf))})
door(guidance.conditioned, {"score": SCORE}, {"**conditions": Free("a network's own")})
door(guidance.rows_of, {"score": SCORE, "start": 0, "stop": 1}, {"start": Integer(0, inside=(1,)), "stop": Integer(0, inside=(1,))})
door(guidance.cast, {"score": SCORE, "autocast": torch.bfloat16}, {"autocast": DType((torch.bfloat16, torch.float16), none=False)})
KNOWN = operators.Mask(torch.tensor([True, False]))
OPERATOR = Instance((operators.Operator,), inside=(KNOWN,), edges=(torch.eye(2), operators.Mask))
SEEN = {"score": SCORE, "operator": KNOWN, "std": 0.1, "y": torch.tensor([0.5])}
for function in (inverse.observe, inverse.plug_in, inverse.pigdm, inverse.tweedie, inverse.diffpir, inverse.ddnm):
    door(function, SEEN, {"operator": OPERATOR, "std": positive(1.0), "y": State((1,), none=True, inside=(X[0, :1].double(),)),
        "strength": positive(0.5),
                          "scale": positive(2.0), "trust": Real(0.0, infinite="inf", inside=(math.inf, 0.0)),
        "iterations": Integer(1, MOST, inside=(3,))},
         also={"y": ("measurement",)})
EVENT = Shape(False, inside=((1, 4, 4), (3, 2, 2)))
door(operators.Matrix, {"weights": [[1.0, 2.0]]}, {"weights": Numbers((2,), inside=(X, X.double())),
    "event": Shape(False, True, inside=((2, 1), ()))})
door(operators.Mask, {"known": [True, False]}, {"known": Bools(inside=([[True], [False]],))})
door(operators.Downsample, {"event": (1, 4, 4)}, {"event": EVENT, "factor": Integer(1, 4, inside=(1, 4))})
door(operators.Colourise, {"event": (3, 2, 2)}, {"event": EVENT})
door(operators.Blur, {"event": (1, 4, 4)}, {"event": EVENT, "std": positive(2.0), "floor": Real(0.0, 1.0, "low high", inside=(0.5,))})
door(operators.check, {"operator": KNOWN}, {"operator": OPERATOR, "decomposition": Flag(), "seed": Integer(0, inside=(1,)),
    "tolerance": positive(1e-6)})
door(KNOWN.__call__, {"x": X}, {"x": State((None, 2), inside=(X,), finite=False)}, name="Operator.__call__")

# -- noise ----------------------------------------------------------------------------------------------------------------
GENERATOR = {"generator": Instance((torch.Generator,), inside=(torch.Generator(),))}
NOISE = {"dtype": DType(none=False), "device": Device(none=False)}
door(random.WhiteNoise, {"seed": 0, "shape": (2, 2)}, {"seed": Seed(generator=False), **NOISE})
door(random.source, {"seed": 0, "shape": (2, 2)}, NOISE)
door(random.GeneratorNoise, {"generator": torch.Generator(), "shape": (2, 2)}, {**GENERATOR, **NOISE})
door(random.Normals, {"seed": 0, "shape": (2, 2)}, {"seed": Seed(none=False, generator=False), **NOISE})
door(random.BrownianPath, {"seed": 0, "shape": (2, 2)}, {"seed": Seed(generator=False), "span": Pair(None, inside=((0.0, 2.0),)),
    "clock": Function(none=True),
                                                         "resolution": Real(0.0, 1.0, "low", inside=(0.5,)), **NOISE})
door(random.quadratic_variation, {}, {"eta": positive(0.5)})
door(random.canonical_seed, {"seed": 0, "batch": 2}, {"seed": Seed(generator=False), "batch": Integer(0, inside=(0,))},
    beside={"batch": {"seed": 0}})
door(random.fresh_seed, {})
PATH, WHITE = random.BrownianPath(0, (2, 2)), random.WhiteNoise(0, (2, 2))
door(PATH.value, {"c": 0.5}, {"c": Real(0.0, 1.0, inside=(0.0, 1.0))}, name="BrownianPath.value", also={"c": ("clock value",)})

# -- targets --------------------------------------------------------------------------------------------------------------
MEANS = [[-1.0, 0.5], [1.0, -0.5]]
door(targets.GaussianMixture, {"means": MEANS}, {
    "means": Numbers((2,), 2, inside=(X,)), "covs": Numbers((0, 1, 2, 3), 2, 0.0, inside=(0.5, [0.5, 0.25], X**2)),
    "weights": Numbers((1,), 2, 0.0, none=True, inside=([1.0, 0.0],)),
    "labels": Numbers((1,), 2, 0, 1, none=True, whole=True, inside=([0, 1], [0, 0])), "name": Text()},
     also={"covs": ("covs", "cov")})
door(targets.Gaussian, {"mean": [0.0, 1.0]}, {"mean": Numbers((1,), inside=(X[0],)),
    "cov": Numbers((0, 1, 2), 2, 0.0, inside=(0.5, [0.5, 0.25])), "name": Text()},
     also={"cov": ("covs",), "mean": ("mean",)})
door(targets.Empirical, {"data": MEANS}, {"data": Numbers((2, 3), inside=(X, X[..., None])), "name": Text()})
NOISY, REFINE = {"noise": positive(0.5)}, {"refine": Real(0.0, None, "low", inside=(0.5,))}
for function in (targets.two_moons, targets.swiss_roll, targets.two_spirals, targets.rings):
    door(function, {}, {**NOISY, **REFINE})
door(targets.pinwheel, {}, REFINE)
door(targets.banana, {}, {"noise": Real(0.0, 1.0, "low high", inside=(0.5,)), **REFINE})
door(targets.funnel, {}, {"width": Real(0.0, inside=(0.0,)), **REFINE})
door(targets.checkerboard, {}, {"cells": Integer(2, inside=(2,))})
door(targets.eight_gaussians, {})
door(targets.twenty_five_gaussians, {})
door(targets.toy, {"name": "two-moons"}, {"name": Choice(tuple(targets.TOYS))})
XS = {"x": State((None, 2), inside=(X, X[:0]), finite=False)}
WITH_LEVEL = {**XS, "level": LEVEL}
door(TARGET.score, {"x": X, "level": VP.at(0.5)}, WITH_LEVEL, name="Target.score")
door(TARGET.log_prob, {"x": X}, XS, name="Target.log_prob")
door(TARGET.sample, {"n": 2}, {"n": Integer(0, inside=(0, 2))}, name="Target.sample", beside={"n": {"seed": 0}})
door(TARGET.log_posterior, {"x": X}, XS, name="GaussianMixture.log_posterior")
door(TARGET.of_class, {"y": 1}, {"y": Integer(0, 1, inside=(0,))}, name="GaussianMixture.of_class")
door(TARGET.sample_labels, {"n": 2}, {"n": Integer(0, inside=(0, 2))}, name="GaussianMixture.sample_labels", beside={"n": {"seed": 0}})
door(TARGET.tempered, {"y": 0, "w": 1.5, "n": 2}, {"y": Integer(0, 1, inside=(1,)), "w": Real(0.0, inside=(0.0, 3.0)),
    "n": Integer(0, inside=(0, 3)),
                                                   "seed": Integer(0, inside=(1,))}, name="GaussianMixture.tempered")
door(TARGET.posterior, {"x": X, "level": VP.at(0.5)}, WITH_LEVEL, name="GaussianMixture.posterior")
for function in (TARGET.given, TARGET.log_evidence):
    door(function, {"operator": KNOWN, "y": [0.5], "std": 0.1}, {
        "operator": OneOf((OPERATOR, Numbers((2,), 1, inside=([[1.0, 0.0]],)))), "y": Numbers((0, 1), 1, inside=(X[0, :1], 0.5)),
        "std": positive(1.0)},
         name=f"GaussianMixture.{function.__name__}")
door(POINTS_LAW.flow, {"x": X, "t": VP.at(0.5), "s": VP.at(0.1)}, {**XS, "t": LEVEL, "s": LEVEL}, name="Gaussian.flow",
    also={"t": ("level",), "s": ("level",)})
door(TARGET.conditional.condition, {"y": 1}, {"y": Free("labels, checked against the batch at the call")}, name="ClassScore.condition")

# -- methods and their options --------------------------------------------------------------------------------------------
UNIT, COUNT = Real(0.0, 1.0, inside=(0.0, 1.0)), Integer(1, MOST, inside=(2,))
BUDGET = Integer(1, MOST, inside=(MOST,))
ONE_STEP = OneOf((Choice(("ddim", "heun")), Instance((recipes.Method,), inside=(sdediff.method("heun"),))))
OPTIONS: dict[str, Domain] = {
    "eta": ETA, "tau": ETA, "start": Flag(), "form": Choice(("x0", "eps")), "variable": Choice(("t", "rho")), "scale": positive(2.0),
    "kernel": Choice(("bh1", "bh2", "exact")), "rtol": Real(0.0, inside=(1e-3,)), "atol": Real(0.0, inside=(1e-3,)),
    "max_steps": BUDGET, "max_calls": BUDGET, "safety": Real(0.0, 1.0, "low high", inside=(0.5,)),
    "exponent": Real(0.0, 1.0, "low", inside=(1.0,)),
    "inner": ONE_STEP, "S_churn": Real(0.0, inside=(0.0,)), "S_tmin": Real(0.0, inside=(0.0,)),
    "S_tmax": Real(0.0, infinite="inf", inside=(math.inf,)),
    "S_noise": Real(0.0, inside=(0.0, 1.01)),
    "intervals": Each(Each(Real(0.0), 3, 4), 0, inside=([(0.06, 0.3, 2)], [[0.1, 0.5, 1, 2]], ())),
    "snr": positive(0.1),
    "corrector_steps": COUNT, "steps_per_level": COUNT, "rule": Choice(("level", "norm")), "window": COUNT, "tol": Real(0.0, inside=(0.1,)),
    "secant": Flag(), "repeats": COUNT, "jump": COUNT, "zeta": positive(0.5), "eta_b": UNIT,
    "particles": Integer(1, MOST, none=True, inside=(2,)),
    "threshold": UNIT, "trust": Real(0.0, infinite="inf", inside=(math.inf,)),
    "variance": OneOf((Choice(("posterior", "beta", "optimal")), Function())),
    "predictor": METHOD, "corrector": Flag(), "density": Function(none=True)}
OWN: dict[str, dict[str, Domain]] = {
    **{name: {"eta": UNIT} for name in ("ddim", "ancestral", "euler-ancestral", "dpm2-ancestral", "dpm++2s-ancestral", "ddrm")},
    "sa-solver": {"predictor": Integer(1, 4, inside=(1, 4)), "corrector": Integer(0, 5, inside=(0, 5)), "kernel": OPTIONS["kernel"]},
    "pc": {"corrector": Choice(("langevin",)), "predictor": Choice(("ddim", "euler-maruyama"))}, "mala": {"density": Function()},
    "picard": {"inner": Choice(("ddim", "euler"))}}
OBSERVED = inverse.observe(SCORE, KNOWN, 0.1, torch.tensor([0.5]))
for name in (*recipes.methods(), *recipes.methods(True)):
    given = {**RUN, "score": OBSERVED if name in recipes.methods(True) else SCORE, "shape": (2, 2), "seed": 0, "method": name} | (
        {"density": TARGET.log_prob} if name == "mala" else {}) | ({"particles": 2} if name == "smc" else {})
    known: dict[str, Domain] = {**OPTIONS, **OWN.get(name, {})}
    DOORS[f"method {name}"] = Door(f"method {name}", sampling.sample, functools.partial(dict, given), {
        option: known[option] for option in recipes.options(name) if option in known}, also={"intervals": ("low", "high", "repeats")})

# -- solvers --------------------------------------------------------------------------------------------------------------
INNER = {"inner": Instance((sdediff.solvers.Solver,), inside=(solvers.DDIM(),), edges=(solvers.DDIM, "ddim"))}
NODES, FORM = Integer(1, 4, inside=(1, 3)), Choice(("x0", "eps"))
OVER = dict.fromkeys(("levels", "grid", "last"), Free("set by ``over`` for a run", False))
STEP_BY_TOLERANCE = {"rtol": OPTIONS["rtol"], "atol": OPTIONS["atol"], "max_steps": COUNT, "max_calls": COUNT}
for kind, call, own in (
        (solvers.DDIM, {}, {"eta": UNIT, "variance": OneOf((Choice(("posterior", "beta")), Function()))}),
    (solvers.DDRM, {}, {"eta": UNIT, "eta_b": UNIT}),
        (solvers.DPS, {"inner": solvers.DDIM()}, {**INNER, "zeta": positive(0.5)}), (solvers.ERSDE, {}, {"nodes": NODES}),
    (solvers.IPNDM, {}, {}),
        (solvers.SRA1, {}, {}), (solvers.EulerMaruyama, {}, {}), (solvers.ReverseDiffusion, {}, {}), (solvers.StochasticHeun, {}, {}),
        (solvers.AdamsBashforth, {}, {"nodes": NODES, "variable": OPTIONS["variable"]}), (solvers.Rosenbrock, {}, {"nodes": NODES}),
        (solvers.Ancestral, {"inner": solvers.DDIM()}, {**INNER, "eta": UNIT}), (solvers.Angular, {}, {
            "nodes": NODES, "corrector": Integer(0, 5, inside=(0, 4)), "scale": positive(2.0)}),
        (solvers.Chain, {"predictor": solvers.DDIM(), "corrector": solvers.Langevin()}, {"predictor": SOLVER, "corrector": SOLVER}),
        (solvers.Churn, {"inner": solvers.DDIM()}, {**INNER, **{k: OPTIONS[k] for k in ("S_churn", "S_tmin", "S_noise")},
                                                   "S_tmax": Real(0.05, infinite="inf", inside=(math.inf,)),
    "steps": Integer(1, MOST, none=True)}),
        (solvers.Exploded, {"inner": solvers.EULER}, {"inner": SOLVER}), (solvers.Exponential, {}, {
            "nodes": NODES, "form": FORM, "kernel": Choice(("exact", "published"))}),
        (solvers.GottaGoFast, {}, {**STEP_BY_TOLERANCE, "safety": OPTIONS["safety"], "exponent": OPTIONS["exponent"]}),
        (solvers.Interval, {"low": 0.1, "high": 0.5}, {"low": Real(0.0, 0.5, "low high", inside=(0.2,)),
    "high": Real(0.1, None, "low", inside=(1.0,)),
                                                       "repeats": Integer(0, MOST, inside=(2,)),
    "steps": Integer(1, MOST, none=True, inside=(2,))}),
        (solvers.Langevin, {}, {"snr": positive(0.5), "steps": COUNT, "rule": OPTIONS["rule"],
    "density": Function(none=True, inside=(TARGET.log_prob,))}),
        (solvers.PredictorCorrector, {}, {"nodes": NODES, "corrector": Integer(1, 5, inside=(2,)), "kernel": OPTIONS["kernel"],
    "form": FORM}),
        (solvers.Replacement, {"inner": solvers.DDIM()}, {**INNER, **OVER, "repeats": COUNT, "jump": COUNT}),
        (solvers.Restart, {"inner": solvers.DDIM()}, {**INNER, "intervals": Each(Instance((solvers.Interval,)), 1,
    inside=((solvers.Interval(0.1, 0.2),),))}),
        (solvers.SciPy, {}, {"method": Choice(("RK45", "DOP853", "LSODA")), **STEP_BY_TOLERANCE}),
        (solvers.TorchDiffEq, {}, {"method": Choice(("dopri5", "dopri8", "bosh3")), **STEP_BY_TOLERANCE}),
        (solvers.TorchDiffEqFixed, {}, {"method": Choice(("rk4",))}), (solvers.TorchSDE, {}, {"method": Choice(("euler", "srk"))}),
        (solvers.Start, {"starter": solvers.DDIM(), "multistep": solvers.Exponential(3)}, {
            "starter": SOLVER, "multistep": Instance((solvers.Multistep,), inside=(solvers.Exponential(2),), edges=(solvers.DDIM(),))}),
        (solvers.AdaptiveRungeKutta, {}, {"pair": Instance((solvers.EmbeddedPair,), inside=(solvers.BOGACKI_SHAMPINE,)), **OVER,
    **STEP_BY_TOLERANCE}),
        (solvers.Picard, {"inner": solvers.DDIM()}, {**INNER, **OVER, "window": COUNT, "tol": OPTIONS["tol"], "secant": Flag()}),
        (solvers.TwistedSMC, {}, {**OVER, **{k: OPTIONS[k] for k in ("particles", "threshold", "scale", "trust")}})):
    door(kind, call, own, also={"low": ("high",), "S_tmin": ("S_tmax",)})
    DOORS[f"solvers.{kind.__name__}"] = DOORS.pop(next(reversed(DOORS)))
door(solvers.analytic_variance, {"sde": VP, "score": SCORE, "data": POINTS},
    {"data": State(rank=2, inside=(POINTS,)), "seed": Integer(0, inside=(1,))})
door(solvers.as_torchsde, {"process": VP, "event": (2,)}, {
    "process": Instance((SDE, sdediff.ReverseSDE), inside=(VP, sdediff.ReverseSDE(VP, SCORE))),
    "event": Shape(False, True, inside=((1, 2), ())),
    "noise_type": Choice(("diagonal", "additive")), "sde_type": Choice(("ito", "stratonovich"))})
door(solvers.dpm_solver, {"order": 2}, {"order": Integer(1, 3, inside=(1, 3)), "form": FORM})
door(solvers.unipc, {"order": 2}, {"order": Integer(1, 4, inside=(1, 4)), "kernel": OPTIONS["kernel"], "form": FORM})
door(solvers.extended_eta, {"level": VP.at(0.5)}, {"level": LEVEL})
door(solvers.started, {"multistep": solvers.Exponential(3)}, {"multistep": Instance((solvers.Multistep,), inside=(solvers.Exponential(2),),
    edges=(solvers.DDIM(),))})
door(solvers.table, {"solver": solvers.DDIM(), "sde": VP, "levels": VP.levels([0.9, 0.1])}, {
    "solver": SOLVER, "levels": Each(Instance((NoiseLevel,)), 2), "eta": ETA, "predicts": Choice(("x0", "eps", "score", "v", "velocity"))},
     beside={"eta": {"solver": solvers.Exponential(1)}})

# -- analysis, metrics, selection -----------------------------------------------------------------------------------------
VARIANCES = Numbers((1,), low=0.0, none=True, inside=([1.0, 0.5],))
door(analysis.gaussian_error, {"method": "ddim", "sde": VP, "steps": 2}, {
    "method": Choice(("ddim", "heun", "euler-maruyama")), "steps": Integer(1, MOST, inside=(3,)),
    "times": Times(none=True, inside=([0.9, 0.1],)),
    "spectrum": VARIANCES, "mean": Numbers((0, 1), 2, inside=(0.5,)), "multiplicity": Numbers((0, 1), 2, 0.0, inside=(2.0,)),
    "prior": Flag()},
     beside={"nfe": {"steps": OMIT}, "times": {"steps": OMIT}, "mean": {"spectrum": [1.0, 0.5]}, "multiplicity": {"spectrum": [1.0, 0.5]}},
    also=ALSO)
door(analysis.spectrum_of, {"data": POINTS}, {"data": OneOf((State(rank=2, inside=(POINTS,)),
    Instance((targets.Target,), inside=(TARGET,))))})
door(analysis.ranking, {"sde": VP, "nfe": 3, "methods": ["ddim"], "grids": ["logsnr"]}, {
    "nfe": Integer(1, MOST, inside=(2,)), "spectrum": VARIANCES, "methods": Each(Choice(("ddim", "heun")), 1, none=True), "grids": Each(
        OneOf((Choice(tuple(grids.GRIDS)), Instance((grids.Grid,)))), 1, inside=(["karras"],)), "stochastic": Flag(inside=(False,)),
    "**how": Unknown()},
     costly=True, also={"methods": ("method",), "grids": ("grid",), "nfe": ("nfe",)})
PAIR = {"x": State(rank=2, inside=(POINTS,)), "y": State(rank=2, inside=(POINTS.double(),))}
CLOUDS = {"x": POINTS, "y": POINTS.flip(0) + 0.1}
REAL_SEED = {"seed": Integer(0, inside=(1,))}
for function, own in (
        (metrics.sliced_w2, {"projections": Integer(1, inside=(2,)), "blocks": Integer(2, inside=(2,)), **REAL_SEED}),
        (metrics.w2, {"size": Integer(1, 40, none=True, inside=(5,))}),
        (metrics.energy_distance, {"chunk": Integer(1, none=True, inside=(5,))}),
        (metrics.mmd, {"bandwidth": OneOf((positive(1.0), Each(positive(1.0), 1, inside=([0.5, 1.0],))), none=True),
                       "chunk": Integer(1, none=True)}),
        (metrics.psnr, {"x": State(rank=2), "y": State(rank=2), "span": positive(20.0)}),
        (metrics.nearest, {"k": Integer(1, 40, inside=(2,))}), (metrics.precision_recall, {"k": Integer(1, 39, inside=(2,))})):
    door(function, CLOUDS | ({"span": 10.0} if function is metrics.psnr else {}), {**PAIR, **own}, also={"span": ("span", "y")})
door(metrics.median_bandwidth, {"y": POINTS}, {"y": PAIR["y"]})
door(metrics.moments, {"x": POINTS}, {"x": PAIR["x"]})
TARGETED = Instance((targets.Target,), inside=(TARGET, POINTS_LAW))
AT_LEVEL = {"level": EVERYWHERE["level"], **REAL_SEED, "n": Integer(1, inside=(5,)), "draws": Integer(2, inside=(2,)), "target": TARGETED,
            "reference": State((40, 2), none=True), "mixture": Instance((GaussianMixture,), inside=(TARGET,)),
            "share": Real(0.0, 1.0, "low", inside=(1.0,))}
door(metrics.compare, {"x": POINTS, "target": TARGET}, {**PAIR, **AT_LEVEL}, also={"reference": ("y",)}, costly=True)
door(metrics.noised, {"target": TARGET, "n": 5}, AT_LEVEL)
door(metrics.floor, {"metric": metrics.energy_distance, "target": TARGET, "n": 5, "draws": 2}, {
    **AT_LEVEL, "metric": Function(inside=(metrics.energy_distance,))})
door(metrics.floors, {"target": TARGET, "n": 8, "draws": 2}, {**AT_LEVEL, "n": Integer(4)}, costly=True)
door(metrics.nll, {"x": POINTS, "target": TARGET}, {**PAIR, **AT_LEVEL})
door(metrics.excess_nll, {**CLOUDS, "target": TARGET}, {**PAIR, **AT_LEVEL})
for function in (metrics.modes, metrics.mode_coverage, metrics.mode_chi2, metrics.mode_test):
    door(function, {"x": POINTS, "mixture": TARGET}, {**PAIR, **AT_LEVEL})
EYE = [[1.0, 0.0], [0.0, 1.0]]
LAW = {"mean": Numbers((1,), 2, inside=([0.0, 1.0],)), "cov": Numbers((2,), 2, inside=(EYE,))}
door(metrics.moment_errors, {"x": POINTS, "mean": [0.0, 0.0], "cov": EYE}, {**PAIR, **LAW})
for function in (metrics.gaussian_w2, metrics.gaussian_kl):
    door(function, {"mean_a": [0.0, 0.0], "cov_a": EYE, "mean_b": [1.0, 0.0], "cov_b": EYE},
         {f"{k}_{w}": v for k, v in LAW.items() for w in "ab"},
         also={f"{k}_{w}": (f"{k}_a", f"{k}_b") for k in LAW for w in "ab"})
door(metrics.judge, {"x": POINTS, "labels": (POINTS[:, 0] > 0).long()}, {"x": PAIR["x"], "labels": Classes(40)}, costly=True)
door(metrics.copying, {"x": POINTS, "train": POINTS + 0.1, "held_out": POINTS - 0.1}, {**PAIR, "train": PAIR["y"], "held_out": PAIR["x"]},
     also={"train": ("y",), "held_out": ("x",)})
door(selection.untuned, {"calls": 8}, {"calls": Integer(1, inside=(1, 20)), "scale": positive(2.0)})
A_RUN = recipes.Run(VP, SCORE, nfe=8)
door(selection.auto, {"run": A_RUN}, {
    "run": Instance((recipes.Run,)), "spectrum": VARIANCES, "data": State(rank=2, none=True), "stochastic": Flag()}, costly=True)
door(sdediff.tuned.best, {"methods": {}, "nfe": 8}, {"methods": Free("what ``read`` returns", False), "nfe": Integer(1, inside=(1,))})
