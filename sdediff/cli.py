"""The command line: `sdediff compare`, `train`, `sample`, `inpaint`, `tune`, `likelihood`, `interpolate`, `doctor`, `methods`, `bench`,
`completion`. They are in `runs`, `evaluate` and `doctor`; here are words and arguments."""
from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

from . import completion, ranks

if TYPE_CHECKING:
    from .data import Dataset
    from .runs import Job

ABOUT = "Score-based diffusion: train a score network once, sample it with every method, and see how they compare."
EXAMPLES = """examples:
  sdediff compare                              two moons, six methods: a table and four pictures in runs/two-moons
  sdediff compare --data digits                the real 8x8 digits
  sdediff compare --data points.csv            your own points, one a row
  sdediff train --data photos --size 64        your own images, a folder of them
  sdediff sample runs/two-moons --method heun  draw more from a trained run, without training again
  sdediff inpaint runs/digits --measured upper  samples of what fits half a picture
  sdediff tune runs/two-moons --nfe 5 10 20    methods tuned to the run: the least error for a number of network calls
  sdediff likelihood runs/two-moons            log-likelihood of held-out data, with its error; bits per dimension
  sdediff interpolate runs/two-moons           a picture of ways through the latent space
  sdediff doctor runs/two-moons                is the trained network well? What is wrong, and what to do
  sdediff methods                              every method with its measured order; methods NAME: its coefficients
  sdediff bench --quick                        which method, how many calls, which grid? A page of answers in runs/bench
  sdediff compare --help                       every option; --dry-run says what a long line would do"""
EXIT = """exit codes:
  0    done
  1    the work failed: a loss or a network's answer that is not finite, a full disk, a process that ended
  2    the line cannot be carried out as it stands: an argument, a file, a package that is missing
  130  interrupted; where the work goes on when it is given again, the last line says so"""
COMPARE = """examples:
  sdediff compare --data pinwheel --methods ddim heun dpm++2m --out runs/pinwheel
  sdediff compare --methods ddim:steps=10 ddim:steps=100,eta=1 pc:snr=0.1 dpm++2m:grid=karras
  sdediff compare --data rings --training.steps 2000 --network.width 64
  sdediff compare --resume                     go on after an interruption; with other --methods: without training again
  sdediff compare --print_config > job.yaml    every setting, to be edited, then: sdediff compare --config job.yaml

The settings below are those for points; images, and the processes ve, edm and flow, bring defaults of their own:
sdediff compare --data digits --print_config shows them."""
TRAIN = """examples:
  sdediff train --data swiss-roll && sdediff sample runs/swiss-roll --method dpm++2m --steps 15
  torchrun --nproc-per-node 4 -m sdediff train --data swiss-roll --device cuda     four GPUs share every batch"""
SAMPLE = """examples:
  sdediff sample runs/two-moons --method dpm++2m --steps 15 --n 10000 --seed 7
  sdediff sample runs/two-moons --method ddim:eta=0.5 --nfe 20 --out points.csv
  sdediff sample runs/two-moons --n 10000000 --out x.npy      in chunks, in little memory; interrupted and given again, it goes on
  sdediff train --data digits --conditional true --out runs/classes && sdediff sample runs/classes --class 3 --guidance 2
  sdediff sample runs/classes --class 3 --guidance 2 --grid 8x8     a picture of 64 images; --out threes.gif: their way from noise
  torchrun --nproc-per-node 4 -m sdediff sample runs/two-moons -n 10000000 --out x.npy       the same bits, by four processes"""

TUNE = """examples:
  sdediff tune runs/two-moons --nfe 5 10 20 && sdediff sample runs/two-moons --method tuned --nfe 10
  sdediff tune runs/digits --nfe 8 --method eab-3 --what grid     the grid alone, for a method of your choice
  sdediff tune runs/two-moons --nfe 10 --stochastic --overwrite   an SDE method, by the law of its samples"""
LIKELIHOOD = """examples:
  sdediff likelihood runs/two-moons                                 the flow (rk45), the SDE's bound, and the exact law
  sdediff likelihood runs/two-moons --method dpm++2m:steps=100 --n 1000
  sdediff likelihood runs/digits --divergence hutchinson --probes 8     fewer backward passes, with an error bar
  sdediff train --data digits --training.weighting likelihood --training.times likelihood --training.importance true \\
      --training.dequantise 0.125                                   trained for it, on dequantised pixels"""
INTERPOLATE = """examples:
  sdediff interpolate runs/two-moons --n 6
  sdediff interpolate runs/digits --points 11 --method dpm++2m:steps=40 --seed 3"""


INPAINT = """examples:
  sdediff inpaint runs/two-moons --measured 1                       the second coordinate from the first
  sdediff inpaint runs/digits --measured upper --n 8                the lower halves of held-out digits
  sdediff inpaint runs/digits --measured mean:2 --posterior pigdm --method heun --steps 40      from 4x4 means
  sdediff inpaint runs/digits --measured blur:1 --posterior tweedie:iterations=3 --std 0.1

tweedie, pigdm, plug_in, diffpir and ddnm guide any --method; replacement, repaint, dps:zeta=..., ddrm and smc are methods themselves."""
DOCTOR = """examples:
  sdediff doctor runs/two-moons
  sdediff doctor runs/two-moons --out health.json --strict && sdediff sample runs/two-moons        no samples of a sick model

Each line is OK, look or bad, with the reason and what to do. The exit code is 0 when the examination ran, whatever it found; with --strict
it is 1 where something is bad."""
COMPLETION = """examples:
  sdediff completion bash > ~/.local/share/bash-completion/completions/sdediff
  source <(sdediff completion zsh)                     in ~/.zshrc
  sdediff completion fish > ~/.config/fish/completions/sdediff.fish"""
METHODS = """examples:
  sdediff methods                      the catalogue
  sdediff methods dpm++2m              its coefficients on three steps
  sdediff methods unipc-3 --steps 5 --process edm --predicts x0"""


BENCH = """examples:
  sdediff bench --quick --jobs 2                              the main methods: 3 minutes
  sdediff bench --quick --solver mypackage.mymodule:MySolver  your solver in the same table
  sdediff bench --methods ddim dpm++2m sa-solver:tau=0.5 --nfe 10 20 40 --targets two-moons --out runs/three
  sdediff bench --quick --scores network:runs/two-moons       a trained run's score: the whole pipeline's error
  sdediff bench --budget runs/two-moons --methods dpm++2m ddim:steps=50    whose fault is what is wrong with its samples
  sdediff bench --jobs 2                                      every method, an hour; a line that was stopped goes on when it is given again
  sdediff bench --quick --print_config > study.yaml           every setting, to be edited, then: sdediff bench --config study.yaml"""


class _Usage(Exception):
    """A command line that cannot be read."""


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Options with their defaults, examples as they are written."""


class _Parser(ArgumentParser):
    line = ""                   # as it was typed, where a command records it

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        command = self.prog.split()[-1]
        raise _Usage(f"{' '.join(message.split()).rstrip('.')}. See: sdediff {'' if command == 'sdediff' else command + ' '}--help") from ex


def _parsers(argv: Sequence[str]) -> tuple[ArgumentParser, dict[str, ArgumentParser], dict[str, str]]:
    """The whole command line, the parser of each command, and what it does."""
    from . import __version__
    parser = _Parser(prog="sdediff", description=ABOUT, epilog=f"{EXAMPLES}\n\n{EXIT}", formatter_class=_Help,
                     usage="sdediff COMMAND [options]", version=__version__)
    _common(parser)
    each = {"compare": (_compare_parser(argv), "train, sample by several methods, measure, draw"),
            "train": (_train_parser(argv), "train only"),
            "sample": (_sample_parser(), "draw samples from a trained run"),
            "inpaint": (_inpaint_parser(), "draw from the posteriors of measured held-out samples"),
            "tune": (_tune_parser(), "tune methods to a trained run, one for each number of network calls"),
            "likelihood": (_likelihood_parser(), "log-likelihood of held-out data under a trained run"),
            "interpolate": (_interpolate_parser(), "ways between held-out samples through a run's latent space"),
            "doctor": (_doctor_parser(), "the health of a trained run: what is wrong, and what to do"),
            "methods": (_methods_parser(), "the catalogue of methods, and what each one computes"),
            "bench": (_bench_parser(argv), "work and precision of methods on exact targets"),
            "completion": (_completion_parser(), "a script that completes this command line in a shell")}
    commands = parser.add_subcommands(required=True, dest="command", title="commands", metavar="COMMAND")
    for name, (sub, text) in each.items():
        sub.epilog = f"{sub.epilog}\n\n{EXIT}"
        commands.add_subcommand(name, sub, help=text)
    return parser, {name: sub for name, (sub, _) in each.items()}, {name: text for name, (_, text) in each.items()}


def _common(parser: ArgumentParser, progress: bool = False, shared: bool = False, dry: bool = False) -> ArgumentParser:
    if progress:
        parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is fastest for small networks")
        if shared:
            parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda; under torchrun each process takes a GPU of its own")
        parser.add_argument("--quiet", action="store_true", help="no progress bars; they are lines where the output is no terminal")
    if dry:
        parser.add_argument("--dry-run", dest="dry_run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _job_parser(argv: Sequence[str], description: str, epilog: str, name: str) -> ArgumentParser:
    from .runs import DEFAULT_METHODS, Job, preset
    parser = _Parser(description=description, epilog=epilog, formatter_class=_Help, usage=f"sdediff {name} [options]")
    parser.add_argument("--config", action="config", help="a YAML file of these settings; what follows it on the line overrides it")
    parser.add_argument("--data", type=str, default="two-moons", help="what to learn: a toy (two-moons, swiss-roll, checkerboard, "
                        "8-gaussians, 25-gaussians, pinwheel, two-spirals, rings, banana, funnel), digits or mnist (real, 8x8 and 28x28), "
                        "a .npy or .csv file, one point a row, or a folder of images (of folders: each a class)")
    if name == "compare":
        parser.add_argument("--methods", type=str, nargs="+", default=list(DEFAULT_METHODS), metavar="METHOD",
                            help="NAME or NAME:KEY=VALUE,... where keys are steps, nfe, grid and the method's own options")
        parser.add_argument("-n", "--n", type=int, default=4000, help="samples of each method, and held-out points to measure them against")
    parser.add_argument("--out", type=str | None, default=None, help="the run folder (default: runs/ and the name of the data)")
    parser.add_argument("--seed", type=int, default=0, help="of everything: data, first weights, training and samples")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, from its checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start the run in the folder again")
    parser.add_class_arguments(Job, skip={"data", "seed"})
    parser.link_arguments("seed", "training.seed")
    if argv[:1] == [name]:
        said = _said(argv, ("data", "process", "conditional", "size", "network.kind", "network.patch", "network.multipliers"))
        parser.set_defaults(preset(said.get("data", "two-moons"), said.get("process", "vp"), said.get("conditional", "").lower() == "true",
                                   int(said["size"]) if said.get("size", "").isdecimal() else None,
                                   ["mlp"] if said.get("network.kind") == "mlp" else [k[8:] for k in said if k.startswith("network.")
                                                                                      and k != "network.kind"]))
    return parser


def _said(argv: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What the line and its config files say about a few options, before it is parsed: other defaults hang on them."""
    from .runs import settings
    said: dict[str, str] = {}
    pairs = [(a.split("=", 1) if "=" in a else [a, b]) for a, b in zip(argv, [*argv[1:], ""]) if a.startswith("--")]
    for option, value in pairs:
        if option == "--config" and Path(value).is_file():
            given = settings(Path(value))
            if (out := Path(str(given.get("out") or "."))).is_absolute() or ".." in out.parts:
                raise ValueError(f"config='{value}': out='{out}' leads out of this folder; expected a name in it, or --out on the line.")
            for name in ("network", "training"):            # a word would be the path of a file, or of a class to import
                if not isinstance(given.get(name, {}), dict):
                    raise ValueError(f"config='{value}': {name}={given[name]!r}; expected its settings, such as {{{name}: {{...}}}}.")
            said |= {k: str(given[k]) for k in names if k in given}
        elif option[2:] in names:
            said[option[2:]] = value
    return said


def _compare_parser(argv: Sequence[str]) -> ArgumentParser:
    parser = _job_parser(argv, "Train a score network, sample it by several methods, and compare them: a table, four pictures, one folder.",
                         COMPARE, "compare")
    parser.add_argument("--reference", type=bool, default=True, help="also measure against a fine solution of the same network")
    parser.add_argument("--pictures", type=bool, default=True, help="draw samples.png, forward.png, score.png and trajectory.gif")
    return _common(parser, progress=True, dry=True)


def _train_parser(argv: Sequence[str]) -> ArgumentParser:
    return _common(_job_parser(argv, "Train a score network into a run folder.", TRAIN, "train"), progress=True, shared=True,
                   dry=True)


def _sample_parser() -> ArgumentParser:
    parser = _Parser(description="Draw samples from a trained run, in the units of its data.", epilog=SAMPLE, formatter_class=_Help,
                     usage="sdediff sample RUN [options]")
    parser.add_argument("run", type=str, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--method", type=str, default="dpm++2m", help="NAME or NAME:KEY=VALUE,..., see `sdediff methods`")
    parser.add_argument("--class", type=str, nargs="+", default=None, metavar="LABEL", help="of a run trained with --conditional true: "
                        "the class to draw from, its name or number; of several, one after the other")
    parser.add_argument("--guidance", type=float | None, default=None, metavar="SCALE", help="of classifier-free guidance to that class: "
                        "1 (none), 0 (no class), more than 1 (away from the other classes, at two network calls each)")
    parser.add_argument("--steps", type=int | None, default=None, help="grid intervals (default: the method's)")
    parser.add_argument("--nfe", type=int | None, default=None, help="a budget of network calls, in place of steps")
    parser.add_argument("--grid", type=str | None, default=None, metavar="GRID|ROWSxCOLUMNS", help="of times: uniform, quadratic, logsnr, "
                        "karras, sech, ddpm (default: its own); of images: a picture of so many rows and columns, as 8x8")
    parser.add_argument("-n", "--n", type=int | None, default=None, help="how many samples (default: 4000 numbers, 64 images in a picture; "
                        "after torchrun -n, as it takes --n for its own)")
    parser.add_argument("--seed", type=int, default=1, help="of the samples; compare uses the seed of the run, 0 by default")
    parser.add_argument("--chunk", type=int | None, default=None, help="samples drawn at a time, whatever n (default: by their size)")
    parser.add_argument("--out", type=str | None, default=None, help="a .npy or .csv file; or a picture, .png, or .gif, the way from noise "
                        "(default: RUN/samples/METHOD-SEED.npy)")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    return _common(parser, progress=True, shared=True, dry=True)


def _tune_parser() -> ArgumentParser:
    parser = _Parser(description="Tunes a method to a run for each budget of network calls: its grid and its coefficients, against a fine "
                     "solution for the run's own network. tuned.json and tuned.png in the run; then --method tuned.", epilog=TUNE,
                     formatter_class=_Help, usage="sdediff tune RUN --nfe CALLS ... [options]")
    parser.add_argument("run", type=str, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 10, 20], metavar="CALLS", help="budgets in network calls")
    parser.add_argument("--method", type=str, default="auto", help="a method of `sdediff methods`, or auto: the best few of all families")
    parser.add_argument("--what", type=str, default="grid+coefficients", help="grid, or grid+coefficients")
    parser.add_argument("--stochastic", action="store_true", help="an SDE method, tuned by the law of its samples")
    parser.add_argument("--trajectories", type=int, default=256, help="to fit on; as many again choose, and as many tell the gain")
    parser.add_argument("--iterations", type=int, default=200, help="of L-BFGS from each start")
    parser.add_argument("--starts", type=int, default=3, help="the best standard methods and grids that are descended from")
    parser.add_argument("--seed", type=int, default=0, help="of the starts")
    parser.add_argument("--overwrite", action="store_true", help="tune budgets again that the run has a method for")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    return _common(parser, progress=True, dry=True)


def _inpaint_parser() -> ArgumentParser:
    parser = _Parser(description="Measures held-out samples of a run's data, y = A x + noise, and draws from the posterior of each: "
                     "inpaint.png and inpaint.npy in the run. For toys whose posterior is known, the distance to it.", epilog=INPAINT,
                     formatter_class=_Help, usage="sdediff inpaint RUN [options]")
    parser.add_argument("run", type=str, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--measured", type=str | None, default=None, metavar="WHAT", help="of images: upper (the default), lower, "
                        "left, right, outside, blur:STD or mean:FACTOR; of points: coordinates, 1 (the default) or 1,3; of either "
                        "random:SHARE")
    parser.add_argument("--posterior", type=str, default="smc", help="NAME or NAME:KEY=VALUE,... of tweedie, pigdm, plug_in, diffpir, "
                        "ddnm, replacement, repaint, dps, ddrm, smc")
    parser.add_argument("--method", type=str, default="dpm++2m-sde", help="of a guidance: NAME or NAME:KEY=VALUE,...")
    parser.add_argument("--steps", type=int | None, default=None, help="grid intervals (default: 100)")
    parser.add_argument("--nfe", type=int | None, default=None, help="a budget of network calls, in place of steps")
    parser.add_argument("--std", type=float, default=0.05, help="of the measurement's noise, in the network's units")
    parser.add_argument("-n", "--n", type=int, default=6, help="held-out samples that are measured")
    parser.add_argument("--draws", type=int, default=64, help="samples of each posterior; the particles of smc")
    parser.add_argument("--seed", type=int, default=0, help="of the choice, the noise and the samples")
    parser.add_argument("--overwrite", action="store_true", help="replace inpaint.npy if it exists")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    return _common(parser, progress=True)


def _likelihood_parser() -> ArgumentParser:
    parser = _Parser(description="The log-likelihood of a run's held-out data, in nats and bits per dimension with standard errors: by the "
                     "probability flow, and a lower bound by the reverse SDE. A table, and likelihood.json in the run.", epilog=LIKELIHOOD,
                     formatter_class=_Help, usage="sdediff likelihood RUN [options]")
    parser.add_argument("run", type=str, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--method", type=str, default="rk45", help="of the flow: NAME or NAME:KEY=VALUE,..., see `sdediff methods`")
    parser.add_argument("-n", "--n", type=int, default=200, help="held-out samples")
    parser.add_argument("--divergence", type=str, default="exact", help="exact, hutchinson or hutch++")
    parser.add_argument("--probes", type=int | None, default=None, help="of hutchinson and hutch++ (default: 16)")
    parser.add_argument("--draws", type=int, default=256, help="random times of a sample in the bound")
    parser.add_argument("--refine", type=bool, default=True, help="also solve with twice the steps or a tenth of the tolerances")
    parser.add_argument("--t_end", type=float | None, default=None, help="the clean end (default: the process's t_min)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, probes and times")
    return _common(parser, progress=True)


def _interpolate_parser() -> ArgumentParser:
    parser = _Parser(description="Held-out samples are encoded by the probability flow, their codes joined by arcs and decoded: "
                     "interpolation.png in the run, points in the plane or images.", epilog=INTERPOLATE, formatter_class=_Help,
                     usage="sdediff interpolate RUN [options]")
    parser.add_argument("run", type=str, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--method", type=str, default="heun:steps=60,grid=logsnr", help="NAME or NAME:KEY=VALUE,..., see `sdediff methods`")
    parser.add_argument("-n", "--n", type=int | None, default=None, help="pairs of samples (default: 5, or as many as there are)")
    parser.add_argument("--points", type=int, default=9, help="of each way, the ends included")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    return _common(parser, progress=True)


def _doctor_parser() -> ArgumentParser:
    parser = _Parser(description="Examines a trained run on its held-out data: the prior, the score's error by level, Stein's identities, "
                     "its Jacobian's symmetry, what it remembers of its training data, the averaged weights, the flow up and down, and how "
                     "many network calls are enough. A table, and doctor.json in the run. Less than a minute for small networks.",
                     epilog=DOCTOR, formatter_class=_Help, usage="sdediff doctor RUN [options]")
    parser.add_argument("run", type=str, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--out", type=str | None, default=None, metavar="FILE", help="the report as JSON (default: RUN/doctor.json)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where something is bad")
    parser.add_argument("--seed", type=int, default=0, help="of noise and probes")
    return _common(parser, progress=True)


def _completion_parser() -> ArgumentParser:
    parser = _Parser(description="Prints a script with which a shell completes commands, options and their values.", epilog=COMPLETION,
                     formatter_class=_Help, usage="sdediff completion SHELL")
    parser.add_argument("shell", type=str, metavar="SHELL", help="bash, zsh or fish")
    return _common(parser)


def _methods_parser() -> ArgumentParser:
    parser = _Parser(description="The catalogue: every method with its declared order and, in brackets, the measured one. With a name: its "
                     "options and its coefficients, read off its step.", epilog=METHODS, formatter_class=_Help,
                     usage="sdediff methods [NAME] [options]")
    parser.add_argument("name", type=str | None, nargs="?", default=None, metavar="NAME", help="a method")
    parser.add_argument("--steps", type=int, default=3, help="of the coefficients' grid")
    parser.add_argument("--process", type=str, default="vp", help="of the coefficients: vp, sub-vp, cosine, ve, edm, flow or ddpm")
    parser.add_argument("--predicts", type=str, default="eps", help="what the network's outputs D are")
    parser.add_argument("--measure", type=str | None, default=None, metavar="FILE", help="measure every order anew and write them as JSON")
    return _common(parser)


def _bench_parser(argv: Sequence[str]) -> ArgumentParser:
    parser = _Parser(description="Which method, how many network calls, which grid? Methods on targets whose exact solution is known, "
                     "error against calls and seconds: a page, a table, one folder.", epilog=BENCH, formatter_class=_Help,
                     usage="sdediff bench [options]")
    parser.add_argument("--config", action="config", help="a YAML file of these settings; what follows it on the line overrides it")
    parser.add_argument("--quick", action="store_true", help="few methods, targets and budgets, not all; lists given replace its own")
    lists: dict[str, tuple[type, str]] = {
        "methods": (str, "NAME or NAME:KEY=VALUE,..., see `sdediff methods`"),
        "solvers": (str, "plug-ins, MODULE:NAME of a Solver class, an instance, a Method, or a function that returns one"),
        "grids": (str, "own (the method's own on the process), uniform, quadratic, logsnr, karras or sech"),
        "nfe": (int, "budgets in network calls; a method takes the most steps that fit"),
        "tolerances": (float, "rtol = atol of the methods that choose their steps"),
        "processes": (str, "of the exact scores: VPSDE, SubVPSDE, CosineVPSDE, VESDE, EDMSDE, RectifiedFlow"),
        "targets": (str, "of the exact scores: toys, gaussian, mixture, or plug-ins, MODULE:NAME"),
        "scores": (str, "exact, and network:FOLDER of trained runs, which bring their own process and target")}
    metavars = {"processes": "PROCESS", "nfe": "CALLS"}
    for name, (kind, text) in lists.items():
        short = {"solvers": ["--solver"], "targets": ["--target"], "scores": ["--score"]}.get(name, [])
        metavar = metavars.get(name, name.removesuffix("s").upper())
        parser.add_argument(f"--{name}", *short, type=kind, nargs="*", metavar=metavar, help=text)
    parser.add_argument("--budget", type=str | None, default=None, metavar="RUN", help="the error budget of a trained run in place of a "
                        "study: prior, truncation, score, discretisation, Monte Carlo, for each of --methods (dpm++2m)")
    parser.add_argument("--train", type=bool, help="also train a small network for each process and target (toys)")
    parser.add_argument("-n", "--n", type=int, help="samples of a cell")
    parser.add_argument("--seed", type=int, help="of starts, noises, exact samples and training")
    parser.add_argument("--out", type=str, default="runs/bench", help="the folder; finished cells in it are kept")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, one thread each")
    parser.add_argument("--quiet", action="store_true", help="no progress bar; it is lines where the output is no terminal")
    if argv[:1] == ["bench"]:
        from .bench import full, quick
        parser.line = shlex.join(["sdediff", *(a if not Path(a).is_absolute() else Path(a).name for a in argv)])
        said = _said(argv, ("quick",))
        study = (quick if "--quick" in argv or said.get("quick") == "True" else full)()
        parser.set_defaults({f.name: list(v) if isinstance(v := getattr(study, f.name), tuple) else v for f in dataclasses.fields(study)})
        if _said(argv, ("budget",)):
            parser.set_defaults(methods=["dpm++2m"])
    return _common(parser, dry=True)


WRONG = (_Usage, ValueError, TypeError, ImportError, FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError,
         PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 where the work failed, 2 for a line that cannot be carried out as it stands, 130 for
    an interrupt. An error is one line on stderr, with ``--traceback`` anywhere on the line the exception itself."""
    given = list(sys.argv[1:] if argv is None else argv)
    argv = [word for word in given if word != "--traceback"] or ["--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            parser, commands, about = _parsers(argv)
            config = parser.parse_args(argv)
            chosen = config[config.command]
            if "threads" in chosen:
                import torch

                from .contracts import integer
                torch.set_num_threads(integer("threads", chosen.threads, 1))
            if config.command not in ("train", "sample") and ranks.launched():
                raise ValueError(f"sdediff {config.command} is the work of one process; expected it without torchrun.")
            if config.command == "completion":
                print(completion.script(chosen.shell, commands, about), end="")
                code = 0
            else:
                code = COMMANDS[config.command](chosen, commands[config.command])
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        again = {"compare": " --resume", "train": " --resume", "sample": "", "tune": "", "bench": ""}.get(argv[0])
        _say("interrupted." if again is None else
             f"interrupted; `sdediff {' '.join(argv)}{'' if '--resume' in argv else again}` goes on.")
        return 130
    except BrokenPipeError:                         # who read the output has enough: `sdediff methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--traceback" in given:
            raise
        from .score import NetworkError
        from .solvers import StepBudgetError
        text = " ".join(str(error).split())
        named = isinstance(error, (*WRONG, FloatingPointError, OSError, ranks.RankError, StepBudgetError)) and text
        _say(f"error: {text}" if named else f"error: {type(error).__name__}: {text} (--traceback shows where)", BAD)
        return 2 if isinstance(error, WRONG) and not isinstance(error, NetworkError) else 1


OK, LOOK, BAD = "32", "33", "31"                    # green, yellow, red


def _painted(text: str, colour: str, stream: Any) -> str:
    """A text in colour, on a terminal that wants it (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"


def _say(text: str, colour: str = LOOK) -> None:
    """One line on stderr. Of several processes rank 0 says what all find on the command line; each says what it met at work."""
    rank, (kind, colon, rest) = ranks.current(), text.partition(": ")
    if not rank or ranks.working():
        print(f"sdediff: {f'rank {rank}: ' if rank else ''}{_painted(kind + colon, colour, sys.stderr) if colon else kind}{rest}",
              file=sys.stderr)


def _warned(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning, as a line."""
    _say(f"warning: {' '.join(str(message).split())}")


# -- commands -------------------------------------------------------------------------------------------------------------------
def _begin(command: str, chosen: Namespace, parser: ArgumentParser,
           processes: ranks.Ranks = ranks.ALONE) -> tuple[Job, Path, Dataset]:
    """The job, its folder with its config.yaml, and its data: everything that can be refused is refused here. A dry run makes no folder."""
    from . import __version__, data, files, runs
    if chosen.resume and chosen.overwrite:
        raise ValueError("--resume and --overwrite exclude each other: one goes on, the other starts again.")
    made = (getattr(parser, "instantiate", None) or parser.instantiate_classes)(chosen)
    job = runs.Job(**{f.name: made[f.name] for f in dataclasses.fields(runs.Job)})
    dataset = data.load(job.data, seed=job.seed, size=job.size)
    job.score(dataset), job.sde
    if not data.is_name(job.data):
        job = dataclasses.replace(job, data=str(Path(job.data).resolve()))
        chosen.data = job.data
    name = dataset.name if data.is_folder(job.data) else Path(dataset.name).stem
    out = Path(chosen.out or files.inside("runs", name))
    own = ("config", "out", "resume", "overwrite", "traceback", "quiet", "device", "dry_run")
    kept = Namespace({k: v for k, v in vars(chosen).items() if k not in own})
    text = parser.dump(kept, skip_link_targets=True, skip_validation=True)
    text = f"# sdediff {__version__}; again: sdediff {command} --config {out / runs.CONFIG} --out NEW\n{text}"
    processes.first(lambda: runs.prepare(out, text, resume=chosen.resume, overwrite=chosen.overwrite, dry=chosen.dry_run))
    return job, out, dataset


def _planned(lines: Sequence[str]) -> int:
    """Say what would be done."""
    print("\n".join(f"would {line}" for line in lines))
    return 0


def _compare(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import plans, runs
    from .contracts import integer
    entries = [runs.Entry.parse(text) for text in chosen.methods]
    labels = [entry.label for entry in entries]
    if len(set(labels)) < len(labels):
        raise ValueError(f"methods={labels}: a method is named twice; expected different ones (options make them different).")
    integer("n", chosen.n, 2)
    job, out, dataset = _begin("compare", chosen, parser)
    if chosen.dry_run:
        return _planned(plans.compare(job, out, dataset, entries, chosen.n, reference=chosen.reference, pictures=chosen.pictures,
                                      overwrite=chosen.overwrite))
    runs.run(job, out, dataset, entries, chosen.n, reference=chosen.reference, pictures=chosen.pictures, progress=not chosen.quiet)
    return 0


def _train(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import plans, runs
    with ranks.job(chosen.device) as (processes, device):
        job, out, dataset = _begin("train", chosen, parser, processes)
        if chosen.dry_run:
            return _planned(plans.train(job, out, dataset, chosen.overwrite)) if not processes.rank else 0
        trained = runs.train(job, out, dataset, progress=not chosen.quiet, ranks=processes, device=device)
    if not processes.rank:
        print(f"{out / runs.CHECKPOINT}: {len(trained.losses)} steps, loss {float(trained.losses[-500:].mean()):.4f} (mean of the last "
              f"{min(500, len(trained.losses))}). Samples: sdediff sample {out}; is it well: sdediff doctor {out}")
    return 0


def _sample(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import plans, runs
    from .contracts import integer
    sheet = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", chosen.grid or "")
    if sheet is None and chosen.grid and chosen.grid[0].isdecimal():
        raise ValueError(f"grid={chosen.grid!r}: expected ROWSxCOLUMNS of images, as 8x8, or a grid of times, as karras.")
    entry = runs.Entry.parse(chosen.method, steps=chosen.steps, nfe=chosen.nfe, grid=None if sheet else chosen.grid)
    integer("n", 1 if chosen.n is None else chosen.n, 1), integer("seed", chosen.seed, 0)
    planned: list[Any] = []
    with ranks.job(chosen.device) as (processes, device):
        path = runs.draw(Path(chosen.run), entry, chosen.n, chosen.seed, None if chosen.out is None else Path(chosen.out),
                         labels=chosen["class"], guide=chosen.guidance, chunk=chosen.chunk,
                         sheet=(int(sheet[1]), int(sheet[2])) if sheet else None,
                         overwrite=chosen.overwrite, progress=not chosen.quiet, ranks=processes, device=device,
                         dry=(lambda *what: planned.extend(what)) if chosen.dry_run else None)
    if processes.rank:
        return 0
    if chosen.dry_run:
        checkpoint, score, shape, drawn = planned
        return _planned(plans.sample(path, entry, checkpoint, score, shape, drawn, chosen.overwrite))
    print(path)
    return 0


def _inpaint(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import evaluate
    from .contracts import device
    budget = {"steps": chosen.steps if chosen.steps is not None or chosen.nfe is not None else 100, "nfe": chosen.nfe}
    print(evaluate.inpaint(Path(chosen.run), chosen.measured, chosen.posterior, method=chosen.method, **budget, std=chosen.std, n=chosen.n,
                           draws=chosen.draws, seed=chosen.seed, overwrite=chosen.overwrite, device=device("device", chosen.device),
                           progress=not chosen.quiet))
    return 0


def _tune(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import evaluate, plans, runs
    from .contracts import device
    name, options = runs.spelled(chosen.method)
    settings = {key: chosen[key] for key in ("what", "stochastic", "trajectories", "iterations", "starts", "seed", "overwrite")} | options
    if chosen.dry_run:
        little = {key: chosen[key] for key in ("trajectories", "iterations", "starts", "overwrite")}
        return _planned(plans.tune(Path(chosen.run), chosen.nfe, **little))
    for m in evaluate.tune(Path(chosen.run), chosen.nfe, method=name, device=device("device", chosen.device),
                           progress=not chosen.quiet, **settings):
        print(f"{m.calls:3d} calls: {m.gain}", flush=True)
    print(f"{Path(chosen.run) / runs.TUNED}. Samples: sdediff sample {chosen.run} --method tuned --nfe {max(chosen.nfe)}")
    return 0


def _likelihood(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import evaluate, runs
    entry, run = runs.Entry.parse(chosen.method), Path(chosen.run)
    document = evaluate.measure(run, entry, chosen.n, divergence=chosen.divergence, probes=chosen.probes, draws=chosen.draws,
                                refine=chosen.refine, t_end=chosen.t_end, seed=chosen.seed,
                                progress=not chosen.quiet)
    print(evaluate.report(document))
    print(evaluate.write(run, document))
    return 0


def _interpolate(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import evaluate, runs
    path, error = evaluate.interpolate(Path(chosen.run), runs.Entry.parse(chosen.method), chosen.n, chosen.points, seed=chosen.seed)
    print(f"{path}: round trip of the ends to {error:.1e} of their size")
    return 0


def _doctor(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import doctor
    run = Path(chosen.run)
    report = doctor.of_run(run, seed=chosen.seed, progress=not chosen.quiet)
    colours = {doctor.OK: OK, doctor.LOOK: LOOK, doctor.BAD: BAD}
    print(report.table(lambda text, verdict: _painted(text, colours[verdict], sys.stdout)))
    print(f"\n{doctor.write(report, Path(chosen.out) if chosen.out else run / doctor.FILE)}: {report.verdict}")
    return 1 if chosen.strict and report.verdict == doctor.BAD else 0


def _methods(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import catalogue
    from .recipes import describe, methods, options
    from .sde import process
    if chosen.measure is not None:
        catalogue.write_measurements(chosen.measure)
    if chosen.name is None:
        print(catalogue.report())
        print("\nwith a measurement, on a score of sdediff.inverse.observe (`sdediff inpaint`):")
        for name in methods(observing=True):
            print(f"{name:<18}  {describe(name)}")
        return 0
    choices = ", ".join(f"{k}={v!r}" for k, v in options(chosen.name).items())
    print(f"{chosen.name}: {describe(chosen.name)}\noptions: {choices or 'none'}\n")
    if chosen.name in methods(observing=True):
        print("Its steps read a measurement, so that it has no table of coefficients; see sdediff.inverse and `sdediff inpaint`.")
        return 0
    print(catalogue.tableau(chosen.name, process(chosen.process), steps=chosen.steps, predicts=chosen.predicts))
    return 0


def _bench(chosen: Namespace, parser: ArgumentParser) -> int:
    from . import bench, plans
    if "" not in sys.path:                                          # plug-ins lie in the current folder, unless they are installed
        sys.path.append("")
    if chosen.budget is not None:
        from .bench import budget
        if chosen.dry_run:
            return _planned(plans.budget(chosen.budget, chosen.methods, Path(chosen.out)))
        for found in budget.write(chosen.budget, chosen.out, chosen.methods, seed=chosen.seed, progress=not chosen.quiet):
            print(found, end="\n\n")
        print(Path(chosen.out) / "index.html")
        return 0
    study = bench.Study(**{f.name: chosen[f.name] for f in dataclasses.fields(bench.Study)})
    if chosen.dry_run:
        return _planned(plans.study(study, Path(chosen.out), chosen.jobs))
    rows = bench.run(study, chosen.out, jobs=chosen.jobs, progress=not chosen.quiet, command=getattr(parser, "line", ""))
    failed = bench.failures(chosen.out)
    print(f"{Path(chosen.out) / 'index.html'}: {len({row.cell for row in rows})} cells with {len(rows)} numbers"
          + (f", {len(failed)} cells that failed or diverged" if failed else "") + ".")
    return 0


COMMANDS: dict[str, Any] = {"compare": _compare, "train": _train, "sample": _sample, "inpaint": _inpaint, "tune": _tune,
                            "likelihood": _likelihood, "interpolate": _interpolate, "doctor": _doctor, "methods": _methods, "bench": _bench}
