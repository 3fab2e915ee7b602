"""The doors of the workshop: networks, data, training, pictures, health, adapters, the instruments of ``testing`` and the benchmark.

What is trained, drawn, measured or written here is as small as it can be; what takes seconds all the same is ``costly``.
"""
from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import tempfile
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import nn

import sdediff
from sdediff import adapters, bench, data, doctor, evaluate, grids, metrics, nets, plots, runs, targets, testing, training, tuned
from sdediff.recipes import Method
from sdediff.sde import SDE, NoiseLevel
from sdediff.solvers import Solver

from .domains import (
    OMIT,
    Choice,
    Classes,
    Device,
    DType,
    Each,
    File,
    Flag,
    Function,
    Instance,
    Integer,
    Names,
    Numbers,
    OneOf,
    Real,
    Shape,
    State,
    Text,
    Times,
    Unknown,
)
from .doors import CHAIN, ETA, NETWORK, POINTS, SCORE, TARGET, VP, X, door, positive

SEED, MAYBE, SHARE = {"seed": Integer(0, inside=(1,))}, Integer(1, none=True, inside=(2,)), Real(0.0, 1.0, "high", inside=(0.0, 0.5))
GIVEN, COUNT = Names(inside=({},)), Integer(1, inside=(2,))
function: Any               # what the loops below run over


@functools.cache
def folder() -> pathlib.Path:
    """A folder of this process's own, gone with it."""
    made = tempfile.TemporaryDirectory(prefix="sdediff-")
    folder.kept = made                                                                        # type: ignore[attr-defined]
    return pathlib.Path(made.name)


@functools.cache
def run() -> pathlib.Path:
    """The folder of a run of two steps."""
    job = runs.Job("two-moons", network=runs.NetworkConfig(width=8, depth=1), training=CONFIG)
    runs.prepare(folder() / "run", yaml.safe_dump(dataclasses.asdict(job)), resume=False, overwrite=False)
    runs.train(job, folder() / "run", MOONS, progress=False)
    return folder() / "run"


@functools.cache
def measured() -> dict[str, Any]:
    """The likelihood of that run."""
    return evaluate.measure(run(), HEUN, 2, draws=4)


@functools.cache
def benched() -> pathlib.Path:
    """The folder of a benchmark of one cell."""
    bench.run(STUDY, folder() / "bench", progress=False)
    return folder() / "bench"


def written() -> pathlib.Path:
    """A file of tuned methods."""
    tuned.write(folder() / "tuned.json", BEST)
    return folder() / "tuned.json"


# -- networks ---------------------------------------------------------------------------------------------------------
INPUTS = {"frequencies": Integer(0, inside=(0, 3)), "time_scale": positive(2.0), "classes": MAYBE, **SEED, "width": COUNT}
door(nets.MLP, {"event": 2, "width": 8}, {
    **INPUTS, "event": OneOf((Integer(1, inside=(3,)), Shape(False, True, inside=((1, 2, 2), ())))), "depth": Integer(0, inside=(0,)),
    "fourier": Integer(0, 16, inside=(2,)), "outputs": MAYBE})
door(nets.UNet, {"event": (1, 4, 4), "width": 8, "multipliers": (1,)}, {
    **INPUTS, "event": Shape(False, inside=((2, 1, 4, 4),)), "width": Integer(8, inside=(16,)),
    "multipliers": Each(Integer(1), inside=((1, 2),)), "blocks": COUNT, "attention": Each(Integer(1), 0, inside=((4,), ())),
    "patch": Integer(1, inside=(2,)), "embedding": MAYBE, "context": MAYBE})
door(nets.Autoencoder, {"event": (1, 4, 4), "width": 8}, {
    **INPUTS, "event": Shape(False, inside=((3, 8, 4),)), "latent": COUNT, "width": Integer(8, inside=(9,)),
    "noise": Real(0.0, inside=(0.0,)), "penalty": Real(0.0, inside=(0.0,))})
door(nets.Principal, {"data": POINTS, "components": 1}, {
    "data": State(rank=2, inside=(POINTS.double(), POINTS[..., None])), "components": Integer(1, 2, inside=(2,))})
door(nets.build, {"config": nets.MLP(2, 8).config}, {"config": Names(none=False)})

# -- data -------------------------------------------------------------------------------------------------------------
NAMED = OneOf((Text(empty=True, inside=("two-moons", "")), Instance((pathlib.Path,), inside=(pathlib.Path("a"),))))
SMALL = torch.zeros(4, 1, 8, 8)
MOONS, ONE = data.load("two-moons"), torch.tensor(1.0)
GREY = data.Dataset("grey", SMALL, 0 * ONE, ONE, (), lambda part, n: SMALL[:n], 4, bins=(17, -1.0625, 1.0625))
PART = OneOf((Choice(("train", "held-out", "fresh-0")),))
UNITS = State((None, 2), finite=False, inside=(X, X.double(), X[:0]))
door(data.load, {"data": "two-moons"}, {**SEED, "data": Choice(("rings", "banana")), "size": Integer(1, 1024, none=True)})
door(data.is_name, {"data": "two-moons"}, {"data": NAMED})
door(data.is_folder, {"data": "two-moons"}, {"data": NAMED})
door(GREY.held_out, {"n": 2}, {"n": Integer(1, GREY.limit, inside=(3,))}, name="Dataset.held_out")
door(MOONS.fresh, {"n": 2}, {"n": Integer(1, inside=(3,)), "draw": Integer(0, inside=(1,))}, name="Dataset.fresh")
door(MOONS.labels_of, {"part": "train", "n": 2}, {"part": PART, "n": Integer(0, inside=(0, 3))}, name="Dataset.labels_of")
door(MOONS.label_of, {"name": "1"}, {"name": Choice(("0", "1"))}, name="Dataset.label_of", also={"name": ("class",)})
door(MOONS.standardise, {"x": X}, {"x": UNITS}, name="Dataset.standardise")
door(GREY.quantise, {"z": SMALL}, {"z": State(rank=0, finite=False, inside=(SMALL.double(), X))}, name="Dataset.quantise")
door(MOONS.restore, {"z": X}, {"z": UNITS}, name="Dataset.restore")

# -- training ---------------------------------------------------------------------------------------------------------
CONTINUOUS = Instance((SDE,), inside=(VP, sdediff.RectifiedFlow()), edges=("vp", sdediff.VPSDE))
LAW = {"law": Choice(training.TIMES), "sde": CONTINUOUS, "p_mean": Real(inside=(0.0,)), "p_std": positive(2.0), "sigma_data": positive(1.0)}
WEIGHT = {"weighting": Choice(tuple(training.WEIGHTINGS)), "gamma": positive(2.0), "sigma_data": LAW["sigma_data"]}
WITHIN = OneOf((State((2,), inside=(torch.tensor([0.2, 1.0]), torch.tensor([0.2, 1.0]).double())),))
HALVES = torch.tensor([0.25, 0.75], dtype=torch.float64)
door(training.weight, {"weighting": "eps", "level": VP.at(HALVES)}, {**WEIGHT, "level": Instance((NoiseLevel,), edges=(0.5, (0.5,) * 6))})
door(training.loss, {"score": SCORE, "sde": VP, "x0": X, "t": HALVES, "eps": X}, {
    **WEIGHT, "sigma_data": positive(1.0, none=True), "sde": Instance((SDE,), inside=(VP,), edges=("vp",)), "t": WITHIN,
    "x0": State((2, 2), finite=False, inside=(X,)), "eps": State((2, 2), finite=False, inside=(X.double(),))})
door(training.uniforms, {"n": 2, "rng": np.random.default_rng(0)}, {
    "n": Integer(0, inside=(0, 3)), "rng": Instance((np.random.Generator,), edges=(np.random.default_rng, np.random)),
    "low_discrepancy": Flag()})
door(training.times, {"law": "uniform", "sde": VP, "u": HALVES}, {
    **LAW, "sde": Instance((SDE,), inside=(CHAIN, VP), edges=("vp",)), "u": State(inside=(HALVES.float(),))}, also={"law": ("times",)})
door(training.density, {"law": "uniform", "sde": VP, "t": HALVES}, {**LAW, "t": State(rank=0, finite=False, inside=(HALVES.float(),))},
     also={"law": ("times",)})
door(training.TrainingConfig, {}, {
    **SEED, **{name: domain for name, domain in {**WEIGHT, **LAW}.items() if name in ("gamma", "p_mean", "p_std", "weighting")},
    **dict.fromkeys(("beta2", "ema", "drop"), SHARE), **dict.fromkeys(("weight_decay", "dequantise"), Real(0.0, inside=(0.0, 0.5))),
    **dict.fromkeys(("steps", "batch", "checkpoint_every"), Integer(1, inside=(3,))), "lr": positive(0.1), "warmup": Integer(0,
    inside=(0,)),
    "schedule": Choice(training.SCHEDULES), "clip": positive(2.0, none=True), "times": LAW["law"], "low_discrepancy": Flag(),
    "importance": Flag()})
CONFIG = training.TrainingConfig(2, 4, warmup=0)
RUN = {"data": State(inside=(POINTS.double(),)), "config": Instance((training.TrainingConfig,), none=True, edges=({}, 3)),
       "checkpoint": File(none=True), "resume": Flag(), "labels": Classes(40),
       "null": GIVEN, "conditions": GIVEN}
CLASSES = (POINTS[:, 0] > 0).long()
for function, _call, own in (
        (training.train, lambda: {"score": sdediff.from_network(nets.MLP(2, 8), "eps"), "sde": VP},
         {"score": Function(), "conditions": GIVEN}),
        (training.train_classifier, lambda: {"classifier": sdediff.from_classifier(nets.MLP(2, 8, outputs=2)), "sde": VP,
                                             "labels": CLASSES}, {"classifier": Function()}),
        (training.train_autoencoder, lambda: {"coder": nets.Autoencoder((1, 4, 4), width=8), "data": torch.zeros(8, 1, 4, 4)},
         {"coder": Instance((nn.Module,))})):
    door(function, functools.partial(lambda call: {"data": POINTS, "config": CONFIG, "progress": False} | call(), _call), {**RUN, **own},
         costly=True)
DOCUMENT = {"step": 0}
PARTS = Names(none=False, edges=([("network", {})], {"network": 3}, {"network": {"w": 3}}))
door(training.save_checkpoint, lambda: {"path": folder() / "a.safetensors", "document": DOCUMENT, "parts": {}, "losses": X[0]}, {
    "path": File(), "document": Names(none=False), "parts": PARTS, "losses": State((None,), finite=False)}, costly=True)
door(training.load_checkpoint, lambda: {"path": run() / runs.CHECKPOINT}, {"path": File()})
door(training.previous, {"path": "a.safetensors"}, {"path": File(inside=(pathlib.Path("b.safetensors"),))})
door(training.sde_config, {"sde": VP}, {"sde": Instance((SDE,), inside=(CHAIN,), edges=("vp", sdediff.VPSDE))})
door(training.build_sde, {"config": training.sde_config(VP)}, {"config": Names(none=False,
    inside=(training.sde_config(sdediff.EDMSDE()),))})
door(training.fingerprint, {"data": X, "conditions": {}, "null": {}}, {
    "data": Instance((torch.Tensor,), inside=(X.half(),)), **dict.fromkeys(("conditions", "null"), Names(
        none=False, inside=({"y": X},), edges=([("y", 1)], {1: X}, {"y": 3})))})


# -- pictures ---------------------------------------------------------------------------------------------------------
ONE_AND_MANY = Each(Text(), 0, inside=(["a", "b"], ()))
TITLE, CELLS = {"title": Text(empty=True)}, Each(Integer(1), 2, 2, inside=((1, 2),))
IMAGES = torch.zeros(4, 1, 4, 4)
STATES = torch.stack([X, X, X])
PICTURED = State((None, 2), inside=(POINTS,))
door(plots.samples, {"panels": [plots.Panel("data", POINTS), plots.Panel("ddim", POINTS)]}, {
    "panels": Each(Instance((plots.Panel,), edges=((1, 2), plots.Panel("x", X.long()), plots.Panel("x", X, cast(Any, 3))))),
    "floor": Instance((metrics.Estimate,), none=True, edges=(0.5,)), "axes": ONE_AND_MANY, "heading": Text(empty=True), "columns": MAYBE,
    "sheet": COUNT}, costly=True)
door(plots.sheet, {"x": IMAGES, "grid": (2, 2)}, {"x": State((None,) * 4, inside=(IMAGES,)), "grid": CELLS, "width": COUNT})
door(plots.film, lambda: {"path": folder() / "a.gif", "clips": torch.zeros(2, 3, 1, 4, 4), "grid": (1, 2)}, {
    "path": File(), "clips": State((None,) * 5), "grid": CELLS, "width": COUNT, "milliseconds": COUNT}, costly=True)
TRACK = plots.Track("ddim", [1.0, 0.5, 0.1], STATES)
door(plots.trajectory, lambda: {"path": folder() / "b.gif", "sde": VP, "tracks": [TRACK], "data": POINTS, "frames": 3}, {
    "path": File(), "tracks": Each(Instance((plots.Track,), edges=(TRACK._replace(times=[1.0]), TRACK._replace(states=X)))),
    "data": PICTURED, "frames": Integer(2), "seconds": positive(), "sheet": CELLS}, costly=True)
door(plots.forward, {"sde": VP, "times": [0.0, 0.5, 1.0], "x": STATES}, {
    "times": Times(1.0, False), "x": State((3, None, 2)), "axes": ONE_AND_MANY, "paths": COUNT}, costly=True)
door(plots.score_field, {"sde": VP, "score": SCORE, "data": POINTS, "noise": POINTS}, {
    "data": State((40, 2)), "noise": State((40, 2)), "exact": Function(none=True), "ratios": Each(positive())}, costly=True)
door(plots.interpolation, {"paths": STATES, "data": POINTS}, {"paths": State((None, None, 2)), "data": PICTURED, **TITLE}, costly=True)
door(plots.posteriors, {"truth": X, "measured": X, "draws": torch.stack([X, X], 1), "data": POINTS}, {
    "truth": State((2, 2)), "measured": State((2, 2)), "draws": State((2, None, 2)), "data": PICTURED, **TITLE}, costly=True)
KNOTS = tuned.Knots((1.0, 0.5, 0.1), tuple(m.lam for m in VP.levels([1.0, 0.5, 0.1])))
BEST = {2: tuned.Tuned("tuned", sdediff.solvers.DDIM(), 0.0, KNOTS, calls=2, gain=tuned.Gain("path", "ddim", 0.2, 0.1, 2.0, 1.0, 3.0))}
KEPT = Names(none=False, edges=([("y", 1)], {2: 3}, {"2": BEST[2]}, {2: sdediff.method("ddim")}))
door(plots.tuned, {"sde": VP, "methods": BEST}, {"methods": KEPT, **TITLE}, costly=True)
door(tuned.write, lambda: {"path": folder() / "tuned.json", "methods": BEST}, {"path": File(), "methods": KEPT})
door(tuned.read, lambda: {"path": written()}, {"path": File()})


# -- health and the likelihood of a run -------------------------------------------------------------------------------
door(doctor.examine, {"sde": VP, "score": SCORE, "data": POINTS, "levels": 2}, {
    **SEED, "data": State(rank=2), "train": State((None, 2), none=True), "target": Instance((targets.Target,), none=True),
    "train_conditions": GIVEN, "raw": Function(none=True), "levels": Integer(2), "n": Integer(16, none=True)}, costly=True)
FOLDER = {"run": File()}
door(doctor.of_run, lambda: {"run": run()}, {**FOLDER, **SEED}, costly=True)
HEALTH = doctor.Report("a model", "VPSDE", 40, 2, (doctor.Line("prior", doctor.OK, "as it should be"),))
door(doctor.write, lambda: {"report": HEALTH, "path": folder() / "doctor.json"}, {"report": Instance((doctor.Report,)), "path": File()})
BINS = sdediff.Bins(4, -2.0, 2.0)
door(evaluate.log_reference, {"bins": BINS, "z": X, "level": VP.at(0.5), "dequantised": True}, {
    "bins": Instance((sdediff.Bins,), inside=(BINS,)), "z": State(inside=(X.double(),)), "dequantised": Flag(),
    "level": Instance((NoiseLevel,), inside=(VP.at(0.1),), edges=(0.5, (0.5,) * 6))})
door(evaluate.measurement, {"text": "1", "event": (2,)}, {
    **SEED, "text": Choice(("1,2", "2", "random:0.9")), "event": Shape(False, inside=((3,),))}, also={"text": ("measured",)})
ENTRY = {**SEED, "entry": Instance((runs.Entry,), edges=("ddim",)), "n": Integer(2, inside=(2,)), **FOLDER}
HEUN = runs.Entry.parse("heun:steps=2")
door(evaluate.measure, lambda: {"run": run(), "entry": HEUN, "n": 2, "draws": 4}, {
    **ENTRY, "divergence": Choice(("exact", "hutchinson", "hutch++")), "probes": MAYBE, "draws": Integer(4), "refine": Flag(),
    "t_end": Real(0.0, 1.0, "high", none=True)}, costly=True)
DOCUMENTED = Names(none=False, edges=([("y", 1)], {1: 2}, {"n": 3}))
door(evaluate.report, lambda: {"document": measured()}, {"document": DOCUMENTED})
door(evaluate.write, lambda: {"run": run(), "document": measured()}, {**FOLDER, "document": DOCUMENTED})
door(evaluate.interpolate, lambda: {"run": run(), "entry": HEUN, "n": 1, "points": 2}, {
    **ENTRY, "n": MAYBE, "points": Integer(2)}, costly=True)
door(evaluate.inpaint, lambda: {"run": run(), "measured": "1", "posterior": "pigdm", "steps": 2, "n": 1, "draws": 2, "overwrite": True}, {
    **SEED, **FOLDER, "measured": Text(none=True), "posterior": Choice(("pigdm", "tweedie", "ddrm")), "method": Choice(("ddim", "dpm++2m")),
    "steps": Integer(1, none=True), "nfe": Integer(1, none=True), "std": positive(), "n": COUNT, "draws": COUNT, "overwrite": Flag(),
    "device": Device()}, costly=True, beside={"nfe": {"steps": OMIT}})
door(evaluate.tune, lambda: {"run": run(), "budgets": [3], "method": "ddim", "overwrite": True, "trajectories": 8, "iterations": 1,
                             "starts": 1}, {
    **FOLDER, "budgets": Each(Integer(1)), "method": Choice(("auto", "ddim")), "overwrite": Flag(), "device": Device(),
    "**settings": Unknown()}, costly=True, also={"budgets": ("nfe",)})


# -- adapters ---------------------------------------------------------------------------------------------------------
RANGE = {"sigma_min": Real(0.0, 80.0, "low high", inside=(0.01,)), "sigma_max": Real(0.002, None, "low", inside=(9.0,)),
    "rho": positive(5.0)}
CALLED = {"network": Function(), "denoiser": Function()}
BETAS = [0.1, 0.2]
door(adapters.from_k_diffusion, {"denoiser": NETWORK, "sigma_min": 0.002, "sigma_max": 80.0}, {**CALLED, **RANGE},
     also={"sigma_min": ("sigma_max",)})
door(adapters.to_k_diffusion, {"sde": VP, "score": SCORE})
door(adapters.from_edm, {"network": NETWORK}, {**CALLED, **RANGE, "sigma_min": Real(0.0, 80.0, "high", inside=(0.0,)),
                                                  "weights": File(none=True), "sigma_data": positive(1.0)},
     also={"sigma_min": ("sigma_max",)})
door(adapters.from_score_sde, {"network": NETWORK, "sde": VP}, {**CALLED, "sde": Instance((SDE,), inside=(VP, CHAIN), edges=("vp",))})
door(adapters.from_table, {"network": NETWORK, "betas": BETAS}, {
    **CALLED, "betas": Numbers((1,), low=1e-12, inside=([0.5, 1.0],)), "alphas": Numbers((1,), 2, 0.0, inside=([0.9, 0.5],)),
    "sigmas": Numbers((1,), 2, 1e-12, inside=([0.1, 0.9],)), "predicts": Choice(("x0", "eps", "score", "v", "velocity")),
    "time_input": OneOf((Choice(("t", "lam", "sigma", "index", "edm")), Function(inside=(lambda level: level.t,))), none=True)},
     beside={"alphas": {"betas": OMIT, "sigmas": [0.1, 0.9]}, "sigmas": {"betas": OMIT, "alphas": [0.9, 0.5]}})

THEIRS = {"scheduler": OneOf((File(), Names())), "clip": Flag(none=True), "conditions": GIVEN}


def theirs() -> dict[str, Any]:
    """A scheduler of diffusers, which is imported here and not before."""
    return {"scheduler": importlib.import_module("diffusers").DDPMScheduler(10)}


door(adapters.from_diffusers, lambda: {"model": NETWORK, **theirs()}, {**THEIRS, "model": OneOf((Function(), File()))})
door(adapters.Scheduler, lambda: {"method": "ddim", **theirs()}, {
    **THEIRS, "method": Choice(("ddim", "dpm++2m")), "seed": Integer(0, none=True, inside=(1,)), "grid": OneOf((
        Choice(tuple(grids.GRIDS)), Instance((grids.Grid,)), Each(Real(0.0, 10.0), 2)), none=True), "**options": Unknown()},
     also={"grid": ("grid", "times")})

# -- instruments ------------------------------------------------------------------------------------------------------
METHOD = OneOf((Choice(("ddim", "heun")), Instance((Method,), inside=(sdediff.method("heun"),))))
STEPS = {"steps": Each(Integer(1, 10**6), inside=((2, 4),)), "grid": Instance((grids.Grid,), none=True, inside=(grids.Karras(),))}
ENDS = {"t_start": Real(0.0, 1.0, "low", none=True, inside=(0.5,)), "t_end": Real(0.0, 1.0, "high", none=True, inside=(0.1,))}
PROBLEM = {"problem": Instance((testing.Problem,), edges=("gaussian", testing.gaussian_problem))}
NORMAL = {"mean": Real(inside=(0.0,)), "variance": positive(1.0)}
LEVELS = {"levels": Each(Instance((NoiseLevel,)), 2)}
CANDIDATE = {"solver": OneOf((METHOD, Instance((Solver,), inside=(sdediff.solvers.DDIM(),)), Function()))}
EXPECTED = {"expected_failures": Names(inside=({},), edges=([("order", 1)], {1: 2}, {"no-such-check": "why"}))}
MAYBE_SDE = {"sde": Instance((SDE,), none=True, edges=("vp", sdediff.VPSDE))}
FEW = testing.Problem("gaussian", VP, testing.gaussian_problem().target, 2)
door(testing.Problem, {"name": "mine", "sde": VP, "target": TARGET}, {
    "target": Instance((targets.Target,), inside=(TARGET,), edges=("mixture",)), "rows": COUNT})
for function in (testing.gaussian_problem, testing.mixture_problem, testing.overlap_problem):
    door(function, {}, MAYBE_SDE)
door(testing.converge, {"method": "ddim", "problem": FEW, "steps": (2, 4)}, {"method": METHOD, **PROBLEM, **STEPS, **ENDS},
     also={"t_start": ("t_start", "grid")})
for function in (testing.affine_law, testing.affine_laws):
    door(function, {"method": "ddim", "sde": VP, "levels": VP.levels([0.9, 0.1])}, {"method": METHOD, **LEVELS, **NORMAL})
door(testing.weak_convergence, {"method": "ddim", "steps": (2, 4)}, {"method": METHOD, **STEPS, **ENDS, **NORMAL, **MAYBE_SDE})
PATHS = {**SEED, "finest": Integer(1, 10**6, inside=(8,)), "paths": COUNT, "reference": OneOf(METHOD.domains, none=True),
         "source": Function(none=True)}
door(testing.strong_convergence, {"method": "euler-maruyama", "problem": FEW, "steps": (2, 4), "finest": 8, "paths": 2},
     {"method": METHOD, **PROBLEM, **STEPS, **ENDS, **PATHS},
     also={"reference": ("method",)})
door(testing.KnotPath, {"seed": 0, "shape": (2, 2), "levels": VP.levels([0.9, 0.1])}, {**SEED, **LEVELS})
door(testing.knot_path, {"seed": 0, "shape": (2, 2), "steps": 1}, {**SEED, **MAYBE_SDE, "steps": COUNT})
door(testing.path_reference, {"recipe": sdediff.method("euler-maruyama")}, {"recipe": Instance((Method,), edges=("ddim",))})
door(testing.Twins, {}, {"variance": positive(1.0)})
door(testing.checks, {}, {"level": Choice(("fast", "full"))})
CLAIMS = {**CANDIDATE, **EXPECTED, "order": Integer(1, 20, none=True), "stochastic": Flag(none=True),
          "eta": OneOf(ETA.domains, none=True), "level": Choice(("fast", "full")), "**options": Unknown()}
for function in (testing.check_solver, testing.assert_conforms):
    door(function, {"solver": "ddim"}, CLAIMS, costly=True)
door(testing.run_check, {"name": "calls", "solver": "ddim"}, {**CLAIMS, "name": Choice(testing.checks())}, costly=True,
     also={"name": ("check",)})
door(testing.check_sde, {"sde": VP}, EXPECTED, costly=True)
door(testing.run_sde_check, {"name": "snr", "sde": VP}, {"name": Choice(("snr", "prior"))}, also={"name": ("check",)})
door(testing.check_score, {"score": SCORE, "sde": VP, "shape": (2, 2)}, {
    **EXPECTED, "shape": Shape(inside=((3, 1, 2),)), "dtype": DType((torch.float32, torch.float64), none=False),
    "tolerance": positive(1e-3, none=True), "curl": positive(1.0, none=True)})

# -- the benchmark ----------------------------------------------------------------------------------------------------
LISTS: dict[str, Any] = {"methods": ("ddim",), "nfe": (5,), "processes": ("VPSDE",), "targets": ("gaussian",), "n": 20}
STUDY = bench.Study(**LISTS)
door(bench.Study, LISTS, {
    "methods": Each(Choice(("heun", "ddim:eta=0.5")), 0, inside=(["heun"],)), "solvers": Each(Choice(("sdediff.solvers:DDIM",)), 0),
    "grids": Each(Choice(("own", "karras")), 0, inside=(["karras"],)), "nfe": Each(Integer(1), 0, inside=([2, 3],)),
    "tolerances": Each(Real(0.0, 1.0, "low"), 0, inside=([0.1],)), "processes": Each(Choice(("VPSDE", "EDMSDE")), 0),
    "targets": Each(Choice(("gaussian", "mixture", "two-moons")), 0), "scores": Each(Choice(("exact",)), 1), "train": Flag(inside=(False,)),
    "n": Integer(20, inside=(30,)), "seed": Integer(0, (1 << 28) - 1, inside=(1,))},
     also={"processes": ("process",), **{name: (name[:-1],) for name in ("methods", "solvers", "grids", "targets", "scores")}})
for function in (bench.quick, bench.full):
    door(function, {}, {"**lists": Unknown()})
door(bench.run, lambda: {"study": STUDY, "out": folder() / "bench", "progress": False}, {
    "study": Instance((bench.Study,)), "out": File(), "jobs": Integer(1), "command": Text(empty=True)}, costly=True)
for function in (bench.read, bench.failures):
    door(function, lambda: {"path": benched()}, {"path": File()})
