r"""Run folders: train a network once, sample it by many methods, measure, draw, and read the run back.

    RUN/config.yaml               the job; `sdediff compare --config RUN/config.yaml --out NEW` does it again
    RUN/checkpoint.safetensors    the network, its average and the optimiser; training continues from it
    RUN/metrics.json              every number and how it came about; written last: a run that has it is finished
    RUN/samples.png, forward.png, score.png, trajectory.gif

Nothing in a folder is executed when it is read.
"""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from . import chunks, files, metrics, nets, plots, sampling, training
from .contracts import choice, integer, real
from .data import IMAGE, Dataset, is_folder, is_name, load
from .guidance import classifier_free
from .metrics import Estimate
from .ranks import ALONE, Ranks
from .recipes import Choice, Method, Run, chosen
from .recipes import spelled as spelled_method
from .score import NetworkScore, from_network
from .sde import SDE, process
from .training import TrainingConfig

NESTED = 20                 # lists in lists of settings
CONFIG, CHECKPOINT, METRICS, TUNED = "config.yaml", "checkpoint.safetensors", "metrics.json", "tuned.json"
# Steps where none are asked for: enough that a method's own error is small beside the noise of 4000 samples.
STEPS = {"euler-maruyama": 300, "reverse-diffusion": 300, "torchsde-euler": 300, "pc": 150, "ddpm": 200, "dpm++2m-sde": 100,
         "sde-heun": 100, "euler": 100, "ddim": 100, "dpm-solver-1": 100, "eab-1": 100, "deis-1": 100, "rosenbrock-1": 100,
         "ancestral": 100, "rk4": 20, "dpm-solver-3": 20, "dpm++3s": 20, "langevin": 500,
         "annealed-langevin": 15, "mala": 300, "sra1": 100, "torchsde-srk": 100, "dpm++3m-sde": 100, "sa-solver": 60, "er-sde-2": 60,
         "er-sde-3": 60, "euler-ancestral": 100, "picard": 100, "restart": 20, "gotta-go-fast": 1, "rk45": 1, "dopri5": 1, "rk23": 1,
         "scipy-rk45": 1, "scipy-dop853": 1, "scipy-lsoda": 1,
         "torchdiffeq-dopri5": 1, "torchdiffeq-dopri8": 1, "torchdiffeq-bosh3": 1}
REFERENCE, REFERENCES, FLOORS = "eab-3:steps=60", 3, 8
DEFAULT_METHODS = ("euler-maruyama", "pc", "ddpm", "ddim", "heun", "dpm++2m")
_TRAINED = ("data", "process", "process_options", "predicts", "time_input", "network", "training", "seed", "conditional", "size")
_TIME_SCALE: dict[str, float] = {"t": 10.0, "edm": 4.0}             # what brings a level to the span that the network resolves


@dataclass(frozen=True)
class NetworkConfig:
    """The score network, told the noise level.

    Args:
        kind: mlp, a residual MLP for points and small images, or unet, for images.
        width: units in a layer; of a unet, channels at the first resolution.
        depth: residual blocks of two layers each; of a unet, at each resolution.
        fourier: of an mlp, octaves of Fourier features of the points, which sharpen fine structure; 0 for none.
        multipliers: of a unet, times as many channels at each of the resolutions.
        attention: of a unet, heights at which pixels attend to each other.
        patch: of a unet, side of the squares of pixels that it takes together.
    """

    kind: str = "mlp"
    width: int = 64
    depth: int = 3
    fourier: int = 0
    multipliers: list[int] = field(default_factory=list)
    attention: list[int] = field(default_factory=list)
    patch: int = 1

    def build(self, event: tuple[int, ...], **options: Any) -> torch.nn.Module:
        """The untrained network for events of a shape; ``options`` of both kinds. ValueError on a setting of the other kind."""
        other = ("multipliers", "attention", "patch") if choice("network.kind", self.kind, ("mlp", "unet")) == "mlp" else ("fourier",)
        for name in other:
            if (value := getattr(self, name)) != getattr(NetworkConfig(), name):
                raise ValueError(f"network.{name}={value!r}: a network of kind {self.kind!r} has none; expected --network.kind "
                                 f"{'unet' if self.kind == 'mlp' else 'mlp'} with it.")
        if self.kind == "mlp":
            return nets.MLP(event, self.width, self.depth, fourier=self.fourier, **options)
        options |= {"attention": self.attention, "patch": self.patch}
        return nets.UNet(event, self.width, self.multipliers or (1, 2, 2), self.depth, **options)


@dataclass(frozen=True)
class Job:
    """The score network and how it is trained.

    Args:
        data: what to learn: a toy (two-moons, swiss-roll, checkerboard, 8-gaussians, 25-gaussians, pinwheel, two-spirals, rings,
            banana, funnel), "digits" (real, 8x8) or "mnist" (real, 28x28), a .npy or .csv file with one point a row, or a folder of
            images.
        process: the forward process: vp, sub-vp, cosine, ve, edm, flow or ddpm.
        process_options: its parameters, as '{beta_max: 15}'.
        predicts: what the network predicts: eps, x0, v, score, velocity or edm.
        time_input: how the network is told the noise level: lam (half the log-SNR), t or edm.
        network: The network.
        training: Its training.
        seed: of everything: data, first weights, training and samples.
        conditional: learn the classes of the data too (digits, mnist, folders in a folder, toys of several parts), for --class and
            --guidance of `sdediff sample`.
        size: the side in pixels to which a folder's images are brought, 32 where nothing is said.
    """

    data: str = "two-moons"
    process: str = "vp"
    process_options: dict[str, float] = field(default_factory=dict)
    predicts: str = "eps"
    time_input: str = "lam"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    conditional: bool = False
    size: int | None = None

    @property
    def sde(self) -> SDE:
        """The forward process."""
        try:
            return process(self.process, **self.process_options)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise TypeError(f"process_options={self.process_options!r}: process {self.process!r} has no such option ({error}).") from None

    def score(self, dataset: Dataset) -> NetworkScore:
        """The untrained score."""
        choice("time_input", self.time_input, ("lam", "t", "edm"))
        if self.conditional:
            dataset.labels_of("train", 0)       # refused where there are none
        network = self.network.build(dataset.event, seed=self.seed, time_scale=_TIME_SCALE.get(self.time_input, 1.0),
                                     classes=len(dataset.classes) if self.conditional else None)
        return from_network(network, self.predicts, time_input=self.time_input, sigma_data=round(float(dataset.train.std()), 3))


def preset(data: str, process: str, conditional: bool = False, size: int | None = None, said: Sequence[str] = ()) -> dict[str, Any]:
    """Defaults that suit a dataset (of a folder of images: at a size) and a process, by dotted name; what the user says comes first.
    ``said``: of the network, where it is not what suits: "mlp" for its kind, or names that were said ("patch", "multipliers")."""
    chosen: dict[str, Any] = {"training.steps": 4000, "training.batch": 512, "training.lr": 3e-3}
    if data == "digits":
        chosen |= {"network.width": 320, "network.depth": 3, "predicts": "v", "training.weighting": "v", "training.steps": 6000,
                   "training.batch": 256, "training.lr": 1e-3}
    if data == "mnist" or is_folder(data):
        chosen |= {"predicts": "v", "training.weighting": "v", "training.steps": 2500, "training.batch": 64, "training.lr": 2e-3,
                   "training.ema": 0.995}
    if (data == "mnist" or is_folder(data)) and "mlp" not in said:
        side = 28 if data == "mnist" else size or IMAGE
        patch = next((p for p in (8, 4, 2) if side % p == 0 and side // p >= 14), 1)               # 14 to 28 pixels or patches a side
        chosen |= {"network.kind": "unet", "network.width": 32, "network.depth": 1, "network.multipliers": [1, 2, 2],
                   "network.patch": patch, "network.attention": [] if said else [-(-side // (2 * patch))]}
    if process == "flow":
        chosen |= {"predicts": "velocity", "time_input": "t", "training.weighting": "velocity"}
    if process in ("ve", "edm"):
        chosen |= {"predicts": "edm", "time_input": "edm", "training.weighting": "edm"}
    if process == "edm":                                # t = sigma, of which a hundredth is below the data's spread
        chosen |= {"training.times": "lognormal"}
    if conditional:
        chosen |= {"training.drop": 0.1}
    return chosen


# -- folders -------------------------------------------------------------------------------------------------------------------
def prepare(out: Path, config: str, *, resume: bool, overwrite: bool, dry: bool = False) -> None:
    """Make the folder and write its config.yaml. FileExistsError for a folder that holds a run, unless it is to be continued
    (``resume``) or started again (``overwrite``), and for one that holds something else; ValueError for a continuation of a run
    that was trained differently. A refusal leaves the folder as it was, and so does ``dry``, which refuses and does nothing else."""
    import yaml
    out = files.named("out", out)
    files.sweep(out, CONFIG)
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out='{out}' is a file; expected a folder, new or empty.")
    if there and CONFIG not in there:
        raise FileExistsError(f"out='{out}' holds {there[0]!r} and no {CONFIG}: not a run of sdediff; expected a new or empty folder.")
    if there and not resume and not overwrite:
        state = "a finished run" if METRICS in there else "an unfinished run" if CHECKPOINT in there else "a run that was not trained yet"
        raise FileExistsError(f"out='{out}' holds {state}; --resume continues it from its checkpoint, --overwrite starts it again, "
                              "--out NEW keeps both.")
    if resume and CHECKPOINT in there:
        old, new = _flat(settings(out / CONFIG)), _flat(yaml.safe_load(config))
        unsaid = _flat(dataclasses.asdict(Job()))           # a config of an older version says less
        keys = {k for k in old.keys() | new.keys() if k.partition(".")[0] in _TRAINED and not k.endswith(".checkpoint_every")}
        for key in sorted(keys, key=lambda k: ("." in k or k == "predicts", k)):           # what others follow from comes first
            was, now = (tree.get(key, unsaid.get(key)) for tree in (old, new))
            if was != now:
                raise ValueError(f"{key}={now!r}: the run in '{out}' was trained with {key}={was!r}; expected the same, to continue it, or "
                                 "another --out.")
    if dry:
        return
    out.mkdir(parents=True, exist_ok=True)
    files.sweep(out)                                                # it is ours
    trained = (CHECKPOINT, training.previous(CHECKPOINT).name, TUNED, "tuned.png")
    for name in (METRICS, *(trained if overwrite else ())):         # no longer finished; and no longer trained
        (out / name).unlink(missing_ok=True)
    files.write(out / CONFIG, config)


def settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file. ValueError, with its name, where it is no mapping of names, or holds aliases, which can unfold without
    end, or the path of a class or another file, which would be imported or read."""
    import yaml
    try:
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > NESTED:
                raise ValueError(f"it holds an alias, *{event.anchor}" if depth <= NESTED else f"its lists are {depth} deep")
        tree = yaml.safe_load(text)
        if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
            raise ValueError(f"it holds {type(tree).__name__}")
        for name in _flat(tree):
            if {"class_path", "init_args", "config"} & set(name.split(".")):
                raise ValueError(f"{name} would import or read what it names")
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"'{path}' cannot be read ({' '.join(str(error).split())}); expected settings in YAML, NAME: VALUE, as "
                         "`--print_config` shows them.") from None
    return tree


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, branch in tree.items() for k, v in _flat(branch, f"{prefix}{name}.").items()}


def train(job: Job, out: Path, dataset: Dataset, *, progress: bool = True, ranks: Ranks = ALONE,
          device: torch.device | str = "cpu") -> training.Trained:
    """Train into the folder, or go on from its checkpoint; a finished training is only read. ``ranks`` share every batch."""
    score = job.score(dataset)
    return training.train(dataclasses.replace(score, network=score.network.to(device)), job.sde, dataset.train,   # type: ignore[attr-defined]
                          dataclasses.replace(job.training, seed=job.seed), conditions={"y": dataset.labels} if job.conditional else None,
                          null={"y": len(dataset.classes)} if job.conditional else None, checkpoint=out / CHECKPOINT, resume=True,
                          progress=progress, group=ranks.group)


def data_of(config: dict[str, Any], checkpoint: training.Checkpoint) -> Dataset:
    """The data of a run. ValueError where a file or folder is not what the run was trained on: its parts and classes would be others."""
    data = load(config["data"], seed=config.get("seed", 0), size=config.get("size"))
    conditions = {"y": data.labels} if config.get("conditional", False) else {}
    null = {"y": torch.tensor(len(data.classes))} if conditions and checkpoint.config.drop else {}
    if not is_name(config["data"]) and training.fingerprint(data.train, conditions, null) != checkpoint.document["data"]:
        raise ValueError(f"data='{config['data']}': it has changed since the run was trained on it ({len(data.train)} training samples"
                         + (f", classes {', '.join(data.classes)}" if data.classes else "")
                         + " now); expected it as it was, or a new run.")
    return data


def read(run: Path) -> tuple[dict[str, Any], training.Checkpoint, NetworkScore]:
    """A trained run's config, checkpoint and score, with the methods tuned to it. ValueError where the folder holds none."""
    if not (run / CONFIG).is_file() or not (run / CHECKPOINT).is_file():
        raise ValueError(f"run='{run}': no {CONFIG} with a {CHECKPOINT} in it; expected the folder of a run, as `sdediff train` makes it.")
    checkpoint = training.load_checkpoint(run / CHECKPOINT)
    if checkpoint.step < checkpoint.config.steps:
        raise ValueError(f"run='{run}': trained for {checkpoint.step} of {checkpoint.config.steps} steps; expected a finished training: "
                         "run it again with --resume.")
    config = settings(run / CONFIG)
    if not isinstance(config.get("data"), str):
        raise ValueError(f"'{run / CONFIG}': data={config.get('data')!r}; expected the name or the path of what the run was trained on.")
    score = checkpoint.score(_network(checkpoint))
    return config, checkpoint, dataclasses.replace(score, tuned=run / TUNED) if (run / TUNED).is_file() else score


def _network(checkpoint: training.Checkpoint) -> torch.nn.Module:
    """The untrained network of a checkpoint. ValueError, with the file's name, where its document describes none, or one larger than its
    weights, which would be made before they are found not to fit."""
    config, weights = checkpoint.document["network"], sum(v.numel() for v in checkpoint.parts["network"].values())
    for name, value in (config or {}).items():
        sizes = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int) and name != "seed"]
        if max(sizes, default=0) > weights:
            raise ValueError(f"{checkpoint.path}: its network has {name}={value!r}, and {weights} weights; expected those of that network.")
    try:
        return nets.build(config)
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None


# -- methods with options --------------------------------------------------------------------------------------------------------
def spelled(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of NAME:KEY=VALUE,...; ValueError where a part has no value."""
    import yaml
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (v.strip() for v in part.partition("="))
        if not equals:
            raise ValueError(f"method={text!r}: {part!r} has no value; expected NAME:KEY=VALUE,..., such as ddim:steps=50,eta=0.5.")
        options[key] = yaml.safe_load(value)
        if isinstance(options[key], str):
            with contextlib.suppress(ValueError):
                options[key] = float(options[key])              # 1e-5 is a word in YAML
    return name, options


@dataclass(frozen=True)
class Entry:
    """A method as a user writes it, NAME or NAME:KEY=VALUE,...: keys are steps, nfe, grid, and the method's own options."""

    label: str
    method: Method | Choice
    budget: dict[str, Any]

    @staticmethod
    def parse(text: str, **given: Any) -> Entry:
        """``given``: steps, nfe or grid said elsewhere; the text comes first. ValueError or TypeError on what no method takes."""
        name, options = spelled(text)
        budget = {k: v for k, v in given.items() if v is not None} | {k: options.pop(k) for k in ("steps", "nfe", "grid") if k in options}
        if "steps" in budget and "nfe" in budget:
            raise ValueError(f"method={text!r}: steps={budget['steps']}, nfe={budget['nfe']}; expected one of them.")
        method = spelled_method(name, **options)
        if "steps" not in budget and "nfe" not in budget:
            budget["steps"] = STEPS.get(name, 30)
        return Entry(text, method, budget)

    def on(self, sde: SDE, score: NetworkScore, *, up: bool = False, t_end: float | None = None) -> Method:
        """The method itself, on a run of this budget; ``up``: one that encodes."""
        budget = self.budget
        return chosen(self.method, Run(sde, score, budget.get("steps"), budget.get("nfe"), None, t_end, budget.get("grid"), up))

    def draw(self, sde: SDE, score: NetworkScore, shape: Sequence[int], seed: int, *, record: bool = False,
             progress: bool = False) -> sampling.SampleInfo:
        """Samples, in the network's units."""
        return sampling.sample_info(sde, score, shape=shape, method=self.on(sde, score), seed=seed, record=record,
                                    progress=progress, **self.budget)


# -- the comparison --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """A line of the table. ``sliced_w2`` and ``energy``: to held-out data; ``reference``: sliced W2 to an accurate solution of the
    same network's equation, which leaves the network's own error out."""

    label: str
    steps: int | None
    nfe: int | None
    seconds: float | None
    sliced_w2: Estimate
    energy: Estimate
    reference: Estimate | None = None

    def line(self, width: int) -> str:
        """The table's line, with a column of ``width`` for the label."""
        show = lambda v, form: "-" if v is None else format(v, form)
        reference = "" if self.reference is None else _plus_minus(self.reference, 4)
        return (f"{self.label:<{width}}{show(self.steps, 'd'):>6}{show(self.nfe, 'd'):>6}{show(self.seconds, '.2f'):>9}   "
                f"{_plus_minus(self.sliced_w2, 4):<17} {_plus_minus(self.energy, 5):<20} {reference}").rstrip()


FLOOR = "fresh data (the floor)"


def _head(width: int) -> str:
    return f"{'method':<{width}}{'steps':>6}{'NFE':>6}{'seconds':>9}   {'sliced W2':<17} {'energy distance':<20} vs reference"


def _plus_minus(e: Estimate, places: int) -> str:
    """Value and standard error, with fewer decimals for large values."""
    places -= max(0, math.floor(math.log10(max(abs(e.value), 1.0))))
    return f"{e.value:.{max(0, places)}f} ± {e.stderr:.{max(0, places)}f}"


def compare(job: Job, trained: training.Trained, dataset: Dataset, entries: Sequence[Entry], n: int, *, reference: bool = True,
            progress: bool = False, report: Callable[[str], None] = print) -> tuple[list[Row], list[dict[str, Any]], list[Tensor]]:
    """Sample by every method and measure; lines go to ``report`` as they come. Returns the rows (the floor is the last), a record of
    each method, and its samples.

    A distance of samples fluctuates by a third. Hence the floor is a mean over ``FLOORS`` draws of fresh data (where data have no
    end), and the reference, an accurate solution of the network's probability-flow ODE, is drawn ``REFERENCES`` times from other
    seeds than the methods': a method's distance is the mean over them, the floor of that column the mean over their pairs. (The SDEs
    share the ODE's law, but for the network's own error.) Standard errors are those of one distance.
    """
    sde, score, shape = trained.sde, trained.score, (n, *dataset.event)
    held, fresh = dataset.held_out(n), [dataset.fresh(n, k) for k in range(1 if dataset.limit else FLOORS)]
    fine = [Entry.parse(REFERENCE).draw(sde, score, shape, job.seed + 1 + k, progress=progress).x
            for k in range(REFERENCES if reference else 0)]
    against = lambda x: _mean([metrics.sliced_w2(x, y) for y in fine]) if fine else None
    rows, records, drawn = [], [], []
    width = max(len(label) for label in (FLOOR, *(entry.label for entry in entries)))
    report(_head(width))
    for entry in entries:
        start = time.perf_counter()
        info = entry.draw(sde, score, shape, job.seed, progress=progress)
        seconds = time.perf_counter() - start
        row = Row(entry.label, len(info.times) - 1, info.nfe, seconds, metrics.sliced_w2(info.x, held),
                  metrics.energy_distance(info.x, held), against(info.x))
        rows.append(row)
        drawn.append(info.x)
        method = entry.on(sde, score)
        records.append(_record(row) | {"method": method.name, "solver": repr(method.solver), "eta": _plain(method.eta),
                                       "seed": job.seed, "explain": info.explain, "times": list(info.times)})
        report(row.line(width))
    rows.append(Row(FLOOR, None, None, None, _mean([metrics.sliced_w2(x, held) for x in fresh]),
                    metrics.energy_distance(fresh[0], held),
                    _mean([metrics.sliced_w2(x, y) for x, y in itertools.combinations(fine, 2)]) if fine else None))
    report(rows[-1].line(width))
    return rows, records, drawn


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(*(sum(v) / len(v) for v in zip(*estimates)))


def _record(row: Row) -> dict[str, Any]:
    return {k: v._asdict() if isinstance(v, Estimate) else v for k, v in dataclasses.asdict(row).items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else repr(value)


def run(job: Job, out: Path, dataset: Dataset, entries: Sequence[Entry], n: int, *, reference: bool = True, pictures: bool = True,
        progress: bool = False, report: Callable[[str], None] = print) -> list[Row]:
    """The whole of `sdediff compare`, in a folder that ``prepare`` made: train or go on, sample, measure, draw, write metrics.json."""
    start = time.perf_counter()
    n = min(n, dataset.limit or n)
    trained = train(job, out, dataset, progress=progress)
    after_training = time.perf_counter()
    rows, records, drawn = compare(job, trained, dataset, entries, n, reference=reference, progress=progress, report=report)
    after_sampling = time.perf_counter()
    if pictures:
        draw_pictures(job, out, dataset, trained, entries, rows, drawn)
    seconds = {"training": after_training - start, "sampling": after_sampling - after_training,
               "pictures": time.perf_counter() - after_sampling}
    document = {"versions": versions(), "data": job.data, "n": n, "seed": job.seed, "sde": repr(trained.sde), "seconds": seconds,
                "threads": torch.get_num_threads(), "training": {"steps": len(trained.losses), "loss": float(trained.losses[-500:].mean()),
                                                                 "parameters": sum(p.numel() for p in trained.network.parameters())},
                "units": "the network's: standardised coordinates of a table, a toy's own, pixels in [-1, 1]",
                "floor": _record(rows[-1]), "methods": records,
                "reference": REFERENCE if reference else None}
    files.write(out / METRICS, json.dumps(document, indent=1) + "\n")
    report(f"{out}: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()) + "; " + ", ".join(sorted(p.name for p in out.iterdir())))
    return rows


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    from . import __version__
    return {"sdediff": __version__, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}


def picture(figure: Any, path: Path) -> None:
    """A figure, in a .png file."""
    files.write(path, lambda file: figure.savefig(file, format="png"))


def draw_pictures(job: Job, out: Path, dataset: Dataset, trained: training.Trained, entries: Sequence[Entry], rows: Sequence[Row],
                  drawn: Sequence[Tensor]) -> None:
    """samples.png, forward.png, score.png and trajectory.gif."""
    sde, score, held = trained.sde, trained.score, dataset.held_out(min(4000, dataset.limit or 4000))
    panels = [plots.Panel("data", dataset.restore(dataset.held_out(len(drawn[0]))), "held out")]
    for row, x in zip(rows, drawn):
        panels.append(plots.Panel(row.label, dataset.restore(x), f"NFE {row.nfe}   $W_2$ {row.sliced_w2.value:.3f}", row.sliced_w2))
    picture(plots.samples(panels, floor=rows[-1].sliced_w2, axes=dataset.axes), out / "samples.png")

    start = dataset.train[:4000 if not dataset.is_image else 600]
    path = sampling.simulate(sde, start, times=_times(sde), seed=job.seed)
    picture(plots.forward(sde, path.times, path.x), out / "forward.png")

    noise = torch.randn(held.shape, generator=torch.Generator().manual_seed(job.seed))
    exact = dataset.target.score if dataset.target is not None else None
    picture(plots.score_field(sde, score, held, noise, exact=exact), out / "score.png")

    shown = sorted({0, math.ceil((len(entries) - 1) / 2), len(entries) - 1})
    tracks = []
    for k in shown:
        info = entries[k].draw(sde, score, (64 if dataset.is_image else 600, *dataset.event), job.seed, record=True)
        if info.trajectory is not None:
            tracks.append(plots.Track(f"{entries[k].label}, NFE {info.nfe}", info.times, info.trajectory))
    plots.trajectory(out / "trajectory.gif", sde, tracks, held)


def _times(sde: SDE, steps: int = 200) -> list[float]:
    """Times for a picture of the forward process: a chain's knots, else equal steps, quadratic where t is sigma itself."""
    if sde.knots is not None:
        return sorted({float(round(sde.knots * k / steps)) for k in range(steps + 1)})
    power = 3 if sde.t_max > 2 else 1
    return [sde.t_max * (k / steps)**power for k in range(steps + 1)]


def guided(score: NetworkScore, drop: float, n: int, labels: Sequence[int] | None, scale: float | None) -> Any:
    """The score of n samples of these classes, one after the other, under classifier-free guidance. ValueError where the network was
    trained without classes, or, for guidance, without the unconditional score (``drop`` = 0)."""
    classes = getattr(score.network, "classes", None)
    if labels is None:
        if scale is not None:
            raise ValueError(f"guidance={scale:g}: there is no class that it leads to; expected --class as well, such as --class 3.")
        return score
    if classes is None:
        raise ValueError(f"class={list(labels)}: this run was trained without classes; expected one of `sdediff train --conditional true`.")
    for label in labels:
        integer("class", label, 0, classes - 1)
    scale = 1.0 if scale is None else real("guidance", scale, 0.0, hint="1 is the conditional law")
    if scale != 1 and not drop:
        raise ValueError(f"guidance={scale:g}: this run was trained with drop=0, without the unconditional score that guidance needs; "
                         "expected guidance=1, or a run trained with --training.drop 0.1.")
    y = torch.tensor(labels)[torch.arange(n) % len(labels)] if len(labels) > 1 else labels[0]
    return (score if scale == 1 else classifier_free(score, scale)).condition(y=y)


PICTURES = (".png", ".gif")


def draw(run: Path, entry: Entry, n: int | None, seed: int, out: Path | None = None, *, labels: Sequence[str] | None = None,
         guide: float | None = None, sheet: tuple[int, int] | None = None, chunk: int | None = None, overwrite: bool = False,
         progress: bool = False, ranks: Ranks = ALONE, device: torch.device | str = "cpu",
         dry: Callable[[training.Checkpoint, Any, tuple[int, ...], chunks.Chunks | None], None] | None = None) -> Path:
    """Draw n samples from a trained run, in the units of its data, into a .npy or .csv file, or into a picture: .png, the samples, or .gif,
    their way from noise. Returns its path. Numbers are drawn in chunks, so that memory does not grow with n. ``labels``: of a conditional
    run, the classes to draw from, one after the other; ``guide``: the scale of classifier-free guidance (default: 1, none); ``sheet``: rows
    and columns of a picture of images, which is then what is written. ``ranks`` share the chunks of a .npy file; one that was interrupted
    goes on. ``dry`` is given the checkpoint, the score, the shape and the chunks (None for an animation) in place of the work."""
    config, checkpoint, score = read(run)
    data = data_of(config, checkpoint)
    of = "" if labels is None else f"-class{'-'.join(labels)}" + (f"-guidance{guide:g}" if guide is not None else "")
    suffix = ".npy" if sheet is None else ".png"
    path = files.inside(run, "samples", f"{entry.label}{of}-seed{seed}{suffix}") if out is None else files.named("out", out)
    if path.suffix not in (".npy", ".csv", *PICTURES)[:1 if ranks.size > 1 else 4]:
        raise ValueError(f"out='{path}': expected a file that ends in .npy"
                         + (", which processes can share." if ranks.size > 1 else ", .csv, .png or .gif."))
    n, sheet = _laid(data, path, n, sheet)
    if path.suffix == ".gif" and chunk is not None:
        raise ValueError(f"chunk={chunk}, out='{path}': an animation is drawn at once; expected chunk=None.")
    if path.suffix == ".gif" and entry.on(checkpoint.sde, score).solver.adaptive:
        raise ValueError(f"method={entry.label!r}, out='{path}': it chooses its own steps, of which an animation cannot be made; expected "
                         "another method.")

    def place() -> None:
        if path.is_dir() or (path.exists() and not overwrite):
            raise FileExistsError(f"out='{path}' " + ("is a folder; expected a file." if path.is_dir() else
                                                      "exists; --overwrite replaces it, or choose another name."))
        if dry is None:
            path.parent.mkdir(parents=True, exist_ok=True)

    score = dataclasses.replace(score, network=score.network.to(device))                    # type: ignore[attr-defined]
    score = guided(score, checkpoint.config.drop, n, None if labels is None else [data.label_of(label) for label in labels], guide)
    ranks.first(place)
    sde, shape = checkpoint.sde, (n, *data.event)
    drawn = sampling.chunked(sde, score, shape=shape, method=entry.on(sde, score), seed=seed, chunk=chunk, group=ranks.group,
                             **entry.budget).then(data.restore, torch.float64)
    if dry is not None:
        dry(checkpoint, score, shape, None if path.suffix == ".gif" else drawn)
        return path
    if path.suffix == ".gif":
        info = entry.draw(sde, score, shape, seed, record=True, progress=progress)
        plots.trajectory(path, sde, [plots.Track(f"{entry.label}, NFE {info.nfe}", info.times, info.trajectory.cpu())],   # type: ignore
                         data.held_out(min(4000, data.limit or 4000)), sheet=sheet or (8, 8))
        return path
    if path.suffix == ".npy":
        drawn.write(path, overwrite=overwrite, progress=progress)
    elif path.suffix == ".csv":
        _table(path, data.axes, drawn, progress)
    else:
        x = torch.cat(list(drawn.each(progress)))
        if sheet is not None:
            image = plots.sheet(x, sheet)
            files.write(path, lambda file: image.save(file, "PNG"))
        else:
            picture(plots.samples([plots.Panel("data", data.restore(data.held_out(min(n, data.limit or n))), "held out"),
                                   plots.Panel(entry.label, x)], axes=data.axes), path)
    return path


def _laid(data: Dataset, path: Path, n: int | None, sheet: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
    """How many samples a file holds, and the rows and columns of a picture of images."""
    picture = path.suffix in PICTURES
    if sheet is not None and not (picture and data.is_image):
        raise ValueError(f"grid='{sheet[0]}x{sheet[1]}': a sheet of images; expected a run of images, and a picture, --out x.png or x.gif "
                         f"({'out=' + repr(str(path)) if data.is_image else data.name + ' are points'}).")
    if not (picture and data.is_image):
        return n or (600 if path.suffix == ".gif" else 4000), None
    if sheet is None:
        columns = 8 if n is None else math.ceil(math.sqrt(n))
        sheet = (8 if n is None else -(-n // columns), columns)
    elif n is not None and n != sheet[0] * sheet[1]:
        raise ValueError(f"n={n}, grid='{sheet[0]}x{sheet[1]}': a sheet of {sheet[0] * sheet[1]} images; expected one of them.")
    return n or sheet[0] * sheet[1], sheet


def _table(path: Path, axes: Sequence[str], drawn: Any, progress: bool) -> None:
    """A .csv file, which appears whole or not at all."""
    import numpy as np
    plain = str.maketrans("", "", "${}_")                                                   # the plots' $x_{1}$ is x1 in a file
    names = ",".join(axis.translate(plain) if axis.startswith("$") else axis for axis in axes)

    def rows(file: IO[bytes]) -> None:
        file.write((names and names + "\n").encode())
        for x in drawn.each(progress):
            np.savetxt(file, x.flatten(1).numpy(), delimiter=",", fmt="%.8g")

    files.sweep(path.parent, path.name)
    files.write(path, rows)
