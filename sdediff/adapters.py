r"""Other packages' networks and samplers, and ours for them.

A model is a network with conventions: what it predicts, at which levels it was trained, and what it is told of them. All fit

    (process, score, grid),         x = alpha x0 + sigma eps,

and an adapter reads the three off what the package keeps:

    diffusers       model(x, i).sample, a beta table, i = 0..N-1         chain time t = i + 1; epsilon, sample, v_prediction = eps, x0, v
                    model(x, i).sample, flow matching, 0 <= i <= N       the straight path, t = i/N, velocity
    k-diffusion     model(x, sigma) = x0                                 alpha = 1, sigma = t
    EDM             F(c_in x, log(sigma)/4), sigma_data                  the same, with the preconditioning of Karras et al. 2022, Table 1
    score_sde       VP, sub-VP: -std score = model(x, 999 t)             our process of that name, eps
                    VE: score = model(x, sigma)                          the same, score
    a table         (alpha_i, sigma_i) or beta_i, any network            chain time t = i + 1

*The other way round.* A pipeline drives its own loop: it calls the network and hands the output to ``step``. A method's run is a straight
line of combinations, draws and network calls (``programs.Program``), so ``Scheduler`` walks along it, suspended at every call: a step of
several evaluations is several turns of the pipeline's loop. What has no such line (adaptive steps, Picard, norms, Jacobians) is refused.

Nothing here touches the network (of computers) or reads a pickle, and a package is imported where it is needed.

References: Ho et al. 2020; Nichol & Dhariwal 2021, eq. 17; Lin et al. 2024, Alg. 1 (zero terminal SNR); Saharia et al. 2022
(arXiv:2205.11487), Sec. 2.3 (dynamic thresholding); Karras et al. 2022; Song et al. 2021, App. C (conventions: its code's get_score_fn).
"""
from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import files, programs, random
from .contracts import choice, flags, integer, real, scored, sequence, shown, state
from .grids import DDPM, Grid, Karras, Uniform
from .recipes import Method
from .sampling import prepared, times_of
from .score import NetworkScore, Prediction, Score, TimeInput, from_network
from .sde import EDMSDE, SDE, VESDE, VPSDE, ChainSDE, ChainVESDE, ChainVPSDE, NoiseLevel, RectifiedFlow, SubVPSDE

PREDICTION_TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


class Adapted(NamedTuple):
    """A model in our terms: ``sample(sde, score, grid=grid, ...)`` runs any method where the package's own samplers run."""

    sde: SDE
    score: NetworkScore
    grid: Grid


@dataclass(frozen=True)
class Listed(Grid):
    """Another package's grid: ``listed(steps)`` are the times at which it calls the network. They are followed by ``end`` where the span
    ends at the process's t_min, else by the span's end. A list of more than ``steps`` times raises ValueError."""

    listed: Callable[[int], Iterable[float]]
    end: float = 0.0

    def times(self, sde: SDE, steps: int, start: float, end: float) -> list[float]:
        end = self.end if end == sde.t_min else end
        top = start * (1 + 1e-6)                                        # tables of single precision
        times = sorted({min(float(t), start) for t in self.listed(steps) if end < t <= top}, reverse=True)
        if len(times) > steps:
            raise ValueError(f"steps={steps}: the package's own grid lists {len(times)} levels, stages of its own method among them; "
                             "expected one of sdediff's, such as grid='ddpm'.")
        return [*times, end]


# -- diffusers ------------------------------------------------------------------------------------------------------
def from_diffusers(model: Any, scheduler: Any = None, *, clip: bool | None = None, conditions: Mapping[str, Any] | None = None) -> Adapted:
    """A diffusers model as (sde, score, grid): its chain, or the straight path of flow matching; its network; its scheduler's timesteps.

    Parameters
    ----------
    model : a model, called as ``model(x, index, **conditions).sample``; a pipeline, whose ``unet`` and ``scheduler`` are taken; or a local
        folder: a model's (config.json, diffusion_pytorch_model.safetensors) or a pipeline's (unet/, scheduler/).
    scheduler : a diffusers scheduler with a beta table or of flow matching, its config, or the file or folder of that. A model alone needs
        one.
    clip : ``clip_sample`` and ``thresholding`` of the scheduler act on the model's x0, so here they are part of the score: it predicts the
        clipped x0, and the eps that belongs to it (theirs: ``use_clipped_model_output``). None: as the scheduler's config says (its default
        is often to clip); False: the model as it is; True: to the config's range, or [-1, 1], even if it does not ask for that.
    conditions : passed by keyword, such as ``class_labels`` or ``encoder_hidden_states``; ``sample(..., conditions=...)`` adds to them.

    Of a model that predicts its variance as well (twice the channels) the mean is used; a variance is the method's.

    Raises ImportError without diffusers, FileNotFoundError, and TypeError or ValueError for a scheduler of another kind, for an unknown
    prediction_type or beta_schedule, and for weights that are pickles.
    """
    folder = files.named("model", model) if isinstance(model, (str, os.PathLike)) else None
    if folder is not None and (folder / "unet").is_dir():
        folder, scheduler = folder / "unet", folder / "scheduler" if scheduler is None else scheduler
    elif not isinstance(model, torch.nn.Module) and hasattr(model, "unet"):
        model, scheduler = model.unet, model.scheduler if scheduler is None else scheduler
    if folder is None and not callable(model):
        raise TypeError(f"model={type(model).__name__}: expected a diffusers model such as UNet2DModel, a pipeline, or a folder of one.")
    if scheduler is None:
        raise TypeError("scheduler=None: a model does not say at which levels it was trained; expected a diffusers scheduler, such as "
                        "scheduler=pipe.scheduler, its config, or the folder of that.")
    schedule = _Schedule.of(scheduler, clip)
    network = _Denoises(model if folder is None else _diffusers_model(folder), schedule)
    return Adapted(schedule.sde, schedule.score(network, conditions), schedule.grid)


@dataclass(frozen=True, eq=False)
class _Schedule:
    """What a scheduler says of a model: ``scheduler``, theirs; the process, whose time is ``first`` + timestep/``per``; what the model
    ``predicts``; what is done to its x0."""

    scheduler: Any
    sde: SDE
    predicts: str
    clip: Callable[[Tensor], Tensor] | None
    first: float = 1.0
    per: int = 1

    @classmethod
    def of(cls, scheduler: Any, clip: bool | None) -> _Schedule:
        if clip is not None:
            flags(clip=clip)
        made = _diffusers_scheduler(scheduler)
        config, name = made.config, type(made).__name__
        flow = name.startswith("FlowMatch") and not config.get("invert_sigmas")
        prediction = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
        predicts = PREDICTION_TYPES[choice("scheduler.prediction_type", prediction, PREDICTION_TYPES)]
        if flow or (config.get("use_flow_sigmas") and predicts == "velocity"):
            return cls(made, RectifiedFlow(t_min=0.0), predicts, _clipping(config, clip), 0.0, config["num_train_timesteps"])
        theirs = getattr(made, "alphas_cumprod", None)
        if (theirs is None or "beta_schedule" not in config or config.get("timestep_type") == "continuous"
                or config.get("use_flow_sigmas") or predicts == "velocity"):
            raise ValueError(f"scheduler={name}: neither a beta table whose index the network is told, nor flow matching; expected one "
                             "such as DDPM, DDIM, DPMSolverMultistep or FlowMatchEulerDiscrete. adapters.from_edm and from_k_diffusion "
                             "take networks that are told sigma.")
        sde = VPSDE.from_betas(_betas(config))
        ours = sde.at(torch.arange(1, sde.knots + 1, dtype=torch.float64)).alpha**2
        if len(theirs) != len(ours) or not torch.allclose(theirs.double(), ours, rtol=0.0, atol=1e-4):
            raise ValueError(f"scheduler={name}: its alphas_cumprod are not those of its betas; expected a scheduler without a shift of "
                             "its own. adapters.from_table takes any table of levels.")
        return cls(made, sde, predicts, _clipping(config, clip))

    def time(self, timestep: Any) -> Any:
        """The process's time at a timestep."""
        return self.first + timestep / self.per

    def timestep(self, t: Any) -> Any:
        """The timestep, which the network is told, at the process's time t."""
        return (t - self.first) * self.per

    @property
    def gives(self) -> str:
        """What ``meant`` returns."""
        return self.predicts if self.clip is None else "x0"

    def score(self, network: Callable[..., Any], conditions: Mapping[str, Any] | None = None) -> NetworkScore:
        """A network that is told the timestep and returns what is ``meant``."""
        told: TimeInput = "index" if self.sde.knots else lambda m: self.timestep(m.t)
        return from_network(network, self.gives, time_input=told, conditions=conditions)

    @property
    def grid(self) -> Grid:
        config = self.scheduler.config
        at_first = config.get("final_sigmas_type") == "sigma_min" or config.get("set_alpha_to_one") is False
        return Listed(self._times, self.first if at_first else 0.0)

    def _times(self, steps: int) -> list[float]:
        scheduler = type(self.scheduler).from_config(self.scheduler.config)         # it keeps what it is set to
        scheduler.set_timesteps(steps)
        if self.sde.knots is None:
            return scheduler.sigmas.tolist()    # some round the timesteps
        return [self.time(i) for i in scheduler.timesteps.tolist()]

    def meant(self, x: Tensor, t: Any, out: Tensor) -> Tensor:
        """What the model's output for x at time t means, as ``gives``."""
        if x.ndim > 1 and out.shape[1:2] == (2 * x.shape[1],) and str(self.scheduler.config.get("variance_type")).startswith("learned"):
            out = out[:, :x.shape[1]]
        if self.clip is None or out.shape != x.shape:                   # which is refused where shapes are checked
            return out
        return self.clip(Prediction(x, self.sde.at(t).to(x), **{self.predicts: out}).x0)


class _Denoises(torch.nn.Module):
    """A diffusers model as a network (x, timestep) -> what its schedule ``gives``."""

    def __init__(self, model: Any, schedule: _Schedule) -> None:
        super().__init__()
        self.model, self.schedule, self.__name__ = model, schedule, type(model).__name__

    def forward(self, x: Tensor, timestep: Tensor, **conditions: Any) -> Any:
        out = self.model(x, timestep, **conditions)
        out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            return out                          # refused by name where it is checked
        return self.schedule.meant(x, self.schedule.time(timestep.double()).reshape(-1, *[1] * (x.ndim - 1)), out)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    """The beta table of a scheduler's config, in double precision."""
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    else:
        n, a, b = (config[k] for k in ("num_train_timesteps", "beta_start", "beta_end"))
        kinds: dict[str, Callable[[], np.ndarray]] = {
            "linear": lambda: np.linspace(a, b, n), "scaled_linear": lambda: np.linspace(a**0.5, b**0.5, n)**2,
            "squaredcos_cap_v2": lambda: _cosine_betas(n), "sigmoid": lambda: a + (b - a) / (1 + np.exp(-np.linspace(-6, 6, n)))}
        betas = kinds[choice("scheduler.beta_schedule", config["beta_schedule"], kinds)]()
    return _zero_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def _cosine_betas(n: int) -> np.ndarray:
    """1 - abar(t_{i+1})/abar(t_i), at most 0.999, with abar the square of Nichol & Dhariwal's cosine."""
    abar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2)**2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def _zero_snr(betas: np.ndarray) -> np.ndarray:
    """sqrt(abar) shifted to end at 0 and scaled to begin where it did."""
    root = np.sqrt(np.cumprod(1 - betas))
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1]))**2
    return 1 - abar / np.concatenate([[1.0], abar[:-1]])


def _clipping(config: Mapping[str, Any], clip: bool | None) -> Callable[[Tensor], Tensor] | None:
    """What a config does to x0; ``clip``: as it says (None), never, or at any rate, to its ``clip_sample_range``."""
    if clip is False:
        return None
    if config.get("thresholding"):
        share, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]

        def threshold(x0: Tensor) -> Tensor:
            s = torch.quantile(x0.abs().flatten(1), share, dim=1).clamp(1, most).reshape(-1, *[1] * (x0.ndim - 1))
            return x0.clamp(-s, s) / s

        return threshold
    if clip or config.get("clip_sample"):
        limit = config.get("clip_sample_range", 1.0)
        return lambda x0: x0.clamp(-limit, limit)
    return None


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(f"diffusers cannot be imported ({error}); pip install 'sdediff[adapters]'") from error


def _diffusers_class(source: str, name: Any, base: str) -> Any:
    """A class of diffusers that a config names."""
    diffusers = _diffusers()
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, getattr(diffusers, base))):
        raise ValueError(f"{source}: its _class_name is {name!r}; expected the name of a {base} of diffusers.")
    return kind


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the config that save_pretrained writes.")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON ({error}); expected the config that save_pretrained writes.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON {type(config).__name__}; expected the config that save_pretrained writes.")
    return config


def _diffusers_scheduler(scheduler: Any) -> Any:
    """A scheduler object of diffusers from itself, one of ours, a config, or the place of one."""
    if isinstance(scheduler, Scheduler):
        return scheduler.schedule.scheduler
    source = f"scheduler={type(scheduler).__name__}"
    if isinstance(scheduler, (str, os.PathLike)):
        path = files.named("scheduler", scheduler)
        if path.is_dir():
            path = next((p for p in (path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json") if p.is_file()), path)
        source, scheduler = str(path), _read_config(path)
    if isinstance(scheduler, Mapping):
        return _diffusers_class(source, scheduler.get("_class_name"), "SchedulerMixin").from_config(scheduler)
    if not isinstance(scheduler, _diffusers().SchedulerMixin):
        raise TypeError(f"{source}: expected a diffusers scheduler, such as DDPMScheduler(), its config, or the file or folder of that.")
    return scheduler


def _diffusers_model(folder: Path) -> torch.nn.Module:
    """The model of a local folder."""
    kind = _diffusers_class(str(folder / "config.json"), _read_config(folder / "config.json").get("_class_name"), "ModelMixin")
    if not any(folder.glob(WEIGHTS + "*")):                    # the file, or the index of several
        for path in sorted(folder.iterdir()):
            _refuse_pickle(path)
        raise FileNotFoundError(f"{folder / WEIGHTS}: no such file; expected the weights that save_pretrained writes.")
    return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: a pickle, which runs what it holds when it is read; expected safetensors. Where it is trusted, "
                         "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors') converts it.")


# -- k-diffusion, EDM -----------------------------------------------------------------------------------------------
def from_k_diffusion(denoiser: Callable[..., Tensor], *, sigma_min: float | None = None, sigma_max: float | None = None,
                     rho: float = 7.0, conditions: Mapping[str, Any] | None = None) -> Adapted:
    """A k-diffusion denoiser, ``denoiser(x, sigma, **extra)`` = x0 with sigma (B,), as (sde, score, grid). An EDM network with its
    preconditioning around it (Karras et al.'s code) is one too.

    ``sigma_min``, ``sigma_max``: its range, by default its own attributes of that name. The grid is the denoiser's ``get_sigmas`` if it has
    one, else Karras' with ``rho``; both end at sigma = 0. ``conditions``: its ``extra_args``. Raises TypeError or ValueError on what is no
    such denoiser or range.
    """
    if not callable(denoiser):
        raise TypeError(f"denoiser={type(denoiser).__name__}: expected a callable denoiser(x, sigma, **extra).")
    span = {}
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        value = getattr(denoiser, name, None) if value is None else value
        if value is None:
            raise TypeError(f"{name}=None: {type(denoiser).__name__} has no {name} of its own; expected the range it was trained on, such "
                            "as sigma_min=0.002, sigma_max=80.0.")
        span[name] = real(name, value, 0.0, low_open=True)
    sde = EDMSDE(**span)
    own = getattr(denoiser, "get_sigmas", None)
    grid = Listed(lambda steps: own(steps).tolist()) if own is not None else _karras(sde, rho)
    return Adapted(sde, from_network(denoiser, "x0", time_input="sigma", conditions=conditions), grid)


def _karras(sde: SDE, rho: float) -> Grid:
    """Karras' grid from sigma_max to sigma_min, then 0."""
    inner = Karras(rho)
    return Listed(lambda steps: inner(sde, steps, t_end=0.0))


@dataclass(frozen=True)
class Denoiser:
    """One of our scores as a k-diffusion denoiser, ``denoiser(x, sigma, **extra)`` = x0; made by ``to_k_diffusion``. ``sigma_min`` (of the
    process's t_min) and ``sigma_max`` are the range in which it may be asked; the latter is infinite where alpha reaches 0."""

    sde: SDE
    score: Score

    @property
    def sigma_min(self) -> float:
        return math.exp(-self.sde.at(self.sde.t_min).lam)

    @property
    def sigma_max(self) -> float:
        return math.exp(-self.sde.at(self.sde.t_max).lam)

    def __call__(self, x: Tensor, sigma: Any, **extra: Any) -> Tensor:
        """E[x_0 | x_0 + sigma z = x], shaped as x. ``sigma``: a number or (B,); ``extra``: conditions of the score."""
        score = self.score
        if extra:
            if not hasattr(score, "condition"):
                raise TypeError(f"extra_args {sorted(extra)}: this score takes none; expected a network score, sdediff.from_network(...).")
            score = score.condition(**extra)
        ratio = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
        level = self.sde.level_of(-torch.log(ratio))
        return score(level.to(x).alpha * x, level).x0


def to_k_diffusion(sde: SDE, score: Score) -> Denoiser:
    """A score under a process as a denoiser for k-diffusion's samplers, whose state is x/alpha and whose clock is sigma/alpha. Raises
    TypeError on what is no process or no score."""
    if not isinstance(sde, SDE):
        raise TypeError(f"sde={type(sde).__name__}: expected a forward process such as sdediff.VPSDE().")
    return Denoiser(sde, scored("score", score))


def from_edm(network: Any, weights: str | os.PathLike[str] | None = None, *, sigma_data: float = 0.5, sigma_min: float = 0.002,
             sigma_max: float = 80.0, rho: float = 7.0, conditions: Mapping[str, Any] | None = None) -> Adapted:
    """The raw network F of an EDM denoiser D = c_skip x + c_out F(c_in x, log(sigma)/4) as (sde, score, grid); the grid is Karras' from
    ``sigma_max`` to ``sigma_min``, then 0. (D itself is a denoiser: ``from_k_diffusion``.)

    ``weights``: a safetensors file that is loaded into ``network``, a module of exactly those parameters, first. Raises FileNotFoundError,
    and TypeError or ValueError on a file that is damaged, a pickle, or another network's.
    """
    sde = EDMSDE(sigma_min, sigma_max)
    score = from_network(network, "edm", sigma_data=sigma_data, conditions=conditions)
    if weights is not None:
        _load(network, files.named("weights", weights))
    return Adapted(sde, score, _karras(sde, rho))


def _load(network: Any, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"network={type(network).__name__}: expected a torch.nn.Module to load {path} into.")
    _refuse_pickle(path)
    try:
        network.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file ({error}).") from None
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of this {type(network).__name__}; {error}") from None


# -- score_sde, tables ----------------------------------------------------------------------------------------------
_SCORE_SDE: dict[type, tuple[str, TimeInput]] = {
    VPSDE: ("eps", lambda m: 999 * m.t), SubVPSDE: ("eps", lambda m: 999 * m.t), VESDE: ("score", "sigma"), ChainVPSDE: ("eps", "index")}


def from_score_sde(network: Callable[..., Tensor], sde: SDE, *, conditions: Mapping[str, Any] | None = None) -> Adapted:
    """A network of Song et al.'s score_sde as (sde, score, grid). The process says which of its conventions holds:

    ``VPSDE``, ``SubVPSDE``: continuous training; told 999 t, score = -network/std, std that of the process. ``VESDE``: told sigma(t), the
    network's output is the score. ``VPSDE.from_betas``: told the index, eps. ``VESDE.from_sigmas``: told the index from the *noisiest*
    level down, the score. The grid is uniform; t_min is its code's eps, 1e-3 (VE: 1e-5). Raises TypeError or ValueError on another process.
    """
    told = {**_SCORE_SDE, ChainVESDE: ("score", lambda m: _whole(sde.t_max - m.t))}.get(type(sde))
    if told is None:
        raise TypeError(f"sde={type(sde).__name__}: expected one that score_sde knows, {', '.join(k.__name__ for k in _SCORE_SDE)} or "
                        "VESDE.from_sigmas(sigmas).")
    if isinstance(sde, VESDE) and sde.subtract_min:
        raise ValueError("sde=VESDE(subtract_min=True): score_sde's networks are told sigma_min (sigma_max/sigma_min)^t; expected "
                         "subtract_min=False.")
    return Adapted(sde, from_network(network, told[0], time_input=told[1], conditions=conditions), Uniform())


def _whole(index: Any) -> Any:
    return index.round().long() if isinstance(index, Tensor) else round(index)


def from_table(network: Callable[..., Tensor], *, betas: Any = None, alphas: Any = None, sigmas: Any = None, predicts: str = "eps",
               time_input: TimeInput = "index", conditions: Mapping[str, Any] | None = None) -> Adapted:
    """Any network on a table of levels as (sde, score, grid): ``betas``, or ``alphas`` and ``sigmas`` of p(x_i | x_0) = N(alpha_i x_0,
    sigma_i^2 I), from the cleanest level to the noisiest. The network is told the index; ``predicts``, ``time_input`` as in
    ``from_network``. The grid is ``steps`` of the table's levels, evenly spaced. Raises TypeError or ValueError on a bad table."""
    if (betas is None) == (alphas is None) or (alphas is None) != (sigmas is None):
        given = ", ".join(f"{name}={shown(table)}" for name, table in (("betas", betas), ("alphas", alphas), ("sigmas", sigmas)))
        raise TypeError(f"{given}: expected either betas=, or alphas= and sigmas=.")
    sde = VPSDE.from_betas(betas) if betas is not None else ChainSDE(alphas, sigmas)
    return Adapted(sde, from_network(network, predicts, time_input=time_input, conditions=conditions), DDPM())


# -- our methods in their pipelines ---------------------------------------------------------------------------------
class Stepped(NamedTuple):
    """``prev_sample``: what the network is given next, after the last call the sample; ``pred_original_sample``: the model's x0."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Scheduler:
    """Any method that has a coefficient table, as a scheduler object for diffusers' pipelines:

        pipe.scheduler = sdediff.adapters.Scheduler("dpm++2m", pipe.scheduler)

    ``timesteps`` has one entry for every network call of the run, what the network is told (a fraction between two knots);
    ``num_inference_steps`` counts grid intervals. Nothing else may be assumed of the order of levels: a second stage looks ahead.

    Parameters
    ----------
    method, **options : as in ``sample``; "auto" chooses.
    scheduler : a diffusers scheduler, or what ``from_diffusers`` takes for one: its betas, prediction_type and clipping are used. Its
        ``config`` is ours, for the pipelines that look there.
    grid : as in ``sample``; by default the scheduler's timesteps and where it ends. (A tuned method m: ``grid=m.grid``.)
    seed : an int, or one per sample. Without one, noise comes from the pipeline's ``generator``, else from a fresh seed.
    clip : as in ``from_diffusers``.

    A pipeline that starts at a later timestep (image to image) starts a run there. It may change the sample between two steps (inpainting):
    the step uses it. DDIMPipeline turns every scheduler that it is built with into its own: assign to ``pipe.scheduler`` afterwards.
    Raises ValueError for methods that no pipeline can drive, and as ``from_diffusers`` does.
    """

    def __init__(self, method: str | Method, scheduler: Any, *, grid: Any = None, seed: random.Seed = None,
                 clip: bool | None = None, **options: Any) -> None:
        self.schedule = _Schedule.of(scheduler, clip)
        if isinstance(seed, (list, tuple)):
            for k, value in enumerate(sequence("seed", seed, "an integer for each sample")):
                integer(f"seed[{k}]", value, 0)
        elif seed is not None:
            integer("seed", seed, 0)
        if isinstance(grid, (list, tuple)):
            sequence("grid", grid, "two times or more, such as [10.0, 5.0, 0.0]", 2)
        self.method, self.options, self.seed = method, options, seed
        self.grid = self.schedule.grid if grid is None else grid
        self.config = self.schedule.scheduler.config
        self.score = self.schedule.score(_driven)
        self.init_noise_sigma = self.schedule.sde.prior_std()
        own = len(self.grid) - 1 if isinstance(self.grid, (list, tuple)) else getattr(self.grid, "steps", None)
        self.set_timesteps(own or min(3, self.schedule.sde.knots or 3))         # refuses what cannot be driven

    @property
    def order(self) -> int:
        """Network calls of a step, for pipelines that count in them."""
        return round(len(self._levels) / (len(self._times) - 1))

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[float] | None = None) -> None:
        """Lays out a run: its grid of ``num_inference_steps`` intervals, or from ``timesteps``, decreasing, down to the end of the
        grid; and its network calls. Raises TypeError or ValueError on a wrong grid, and ValueError for methods that cannot be driven."""
        sde, grid, steps = self.schedule.sde, self.grid, num_inference_steps
        if (steps is None) == (timesteps is None):
            raise ValueError(f"num_inference_steps={steps!r}, timesteps={timesteps!r}: give exactly one.")
        if timesteps is not None:
            grid = [*(self.schedule.time(float(i)) for i in timesteps), getattr(grid, "end", sde.t_min)]
        else:
            integer("num_inference_steps", steps, 1, sde.knots)
        recipe, eq, _ = prepared(sde, self.score, self.method, None, self.options, steps=steps, grid=grid)
        self._method, self._eta = recipe, eq.eta
        self._times = times_of(recipe, sde, steps, None, grid, None, None)
        self._levels = self._traced(self._times, None).levels           # those of the network calls, whatever the source of noise
        self._run: _Run | None = None
        told = torch.tensor([self.schedule.timestep(m.t) for m in self._levels], dtype=torch.float64)
        whole = self.schedule.sde.knots and bool(((told - told.round()).abs() < 1e-9).all())         # as from_network tells it
        self.timesteps = (told.round().long() if whole else told.float()).to(device)
        self.num_inference_steps = len(self._times) - 1

    def _traced(self, times: Sequence[float], source: random.Noise | None) -> programs.Program:
        """The program of a run."""
        solver, sde, name = self._method.solver, self.schedule.sde, f"method={self._method.name!r}"
        try:
            p = programs.program(solver, sde, sde.levels(times), self._eta, self.score, source)
        except TypeError as error:
            raise ValueError(f"{name}: no pipeline can drive it: {str(error).rstrip('.')}. Expected a method with a coefficient table, "
                             "such as 'dpm++2m'; sdediff.sample, with adapters.from_diffusers, runs them all.") from None
        op = next(iter(p.steps[0].ops), None)
        if not isinstance(op, programs.Evaluate) or op.source != 0 or p.steps[0].scale != 1:
            raise ValueError(f"{name}: its first network call is not at its start, where a pipeline makes it; expected a method that "
                             "begins with the score, such as 'dpm++2m'.")
        lowest, first = min(m.t for m in p.levels), self.schedule.first
        if lowest < first - 1e-9:
            raise ValueError(f"{name}: it asks the network at t={lowest:g}, below its timestep 0 (t={first:g}); expected a grid that ends "
                             f"at {first} or goes from there to 0.0.")
        return p

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: what ``step`` returns is what the network is given."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float | None = None,
             use_clipped_model_output: bool | None = None, generator: Any = None, return_dict: bool = True) -> Stepped:
        """From a network call to the next: ``model_output`` is what the model returned for ``sample`` (B, *D) at ``timestep``. The result
        is a tuple with names, which serves as either result of ``return_dict``. ``generator``, a torch.Generator or one per sample, is read
        at a run's first step. ``eta`` is the method's own option: another value than pipelines pass by default is a ValueError, and so is
        ``use_clipped_model_output=False`` where the model is clipped. Raises ValueError on a timestep out of turn."""
        if eta:
            raise ValueError(f"eta={eta}: it is an option of the method here; expected Scheduler('ddim', ..., eta={eta}).")
        if use_clipped_model_output is False and self.schedule.clip is not None:
            raise ValueError("use_clipped_model_output=False: a clipped x0 is used throughout here; expected None, or Scheduler(..., "
                             "clip=False).")
        run = self._run or self._begin(timestep, sample, generator)
        level = run.levels[run.call]
        if not self._at(level.t, timestep):
            raise ValueError(f"timestep={float(timestep):g}: the run's next network call is at {self.schedule.timestep(level.t):g}; "
                             "expected the timesteps in turn. set_timesteps starts another run.")
        x = run.given if sample is run.shown else sample.to(run.given.dtype)
        out = self.schedule.meant(x, level.t, model_output.to(x.dtype))
        if out.shape != x.shape:
            raise ValueError(f"model_output.shape={tuple(model_output.shape)}: expected {tuple(x.shape)}, that of sample.")
        preview = Prediction(x, level, **{self.schedule.gives: out}).x0.to(sample.dtype)
        self._run = None                        # should this be interrupted
        try:
            given = run.walk.send((x, out))
        except StopIteration as end:
            return Stepped(end.value.to(sample.dtype), preview)
        self._run = run._replace(call=run.call + 1, given=given, shown=given.to(sample.dtype))
        return Stepped(self._run.shown, preview)

    def _begin(self, timestep: Any, sample: Tensor, generator: Any) -> _Run:
        """A run from its first call, or from a later knot."""
        x = state("sample", sample)
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        starts = [self._levels[0].t, *self._times[1:-1]]
        k = next((k for k, t in enumerate(starts) if self._at(t, timestep)), None)
        if k is None:
            raise ValueError(f"timestep={float(timestep):g}: a run begins at one of its grid's, {float(self.timesteps[0]):g} or a later "
                             "one; expected the timesteps that set_timesteps lays out.")
        source = self._noise(x, generator)
        p = self._traced(self._times[k:], source)
        if p.levels != self._levels[-len(p.levels):]:
            raise ValueError(f"timestep={float(timestep):g}: method={self._method.name!r} makes {len(p.levels)} calls from there, not "
                             "those of the rest of the run; expected to begin at the first, or a method without a starter (start=False).")
        walk = _walk(p, x, source)
        return _Run(p.levels, walk, 0, next(walk), sample)

    def _at(self, t: float, timestep: Any) -> bool:
        """Whether a timestep, perhaps in single precision, is that of time t."""
        return math.isclose(self.schedule.time(float(timestep)), t, rel_tol=1e-6)

    def _noise(self, x: Tensor, generator: Any) -> random.Noise | None:
        if not self._method.stochastic:
            return None
        place: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
        if self.seed is not None or generator is None:
            return random.WhiteNoise(self.seed, tuple(x.shape), **place)
        if isinstance(generator, torch.Generator):
            return random.GeneratorNoise(generator, tuple(x.shape), **place)
        return _OnePerSample(generator, tuple(x.shape), **place)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at the ``timesteps`` (B,)."""
        t = self.schedule.time(timesteps.to(original_samples.device).double()).reshape(-1, *[1] * (original_samples.ndim - 1))
        level = self.schedule.sde.at(t).to(original_samples)
        return level.alpha * original_samples + level.sigma * noise


class _Run(NamedTuple):
    """A walk under way: its next ``call``, at ``levels[call]``, on ``given``; ``shown`` is the same as the pipeline has it."""

    levels: tuple[NoiseLevel, ...]
    walk: Generator[Tensor, tuple[Tensor, Tensor], Tensor]
    call: int
    given: Tensor
    shown: Tensor


def _walk(p: programs.Program, x: Tensor, source: random.Noise | None) -> Generator[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Along a program, suspended at every network call: it yields what the network is given and is sent that, or what took its place, with
    the output. It returns the state at the end."""
    held: list[Any] = [x] + [None] * (p.registers - 1)
    draws = iter(p.draws(source))
    for step in p.steps:
        for op in step.ops:
            if isinstance(op, programs.Sum):
                y = held[op.source] if op.lead is None else p.leads[op.lead] * held[op.source]
                for v, c in op.terms:
                    y = torch.add(y, held[v], alpha=c)
                held[op.dest] = y
            elif isinstance(op, programs.Evaluate):
                held[op.source], out = yield held[op.source]
                for dest in op.dests:
                    if dest is not None:
                        held[dest] = out
            else:
                held[op.dest] = next(draws)
        for dead in step.frees:
            held[dead] = None
    return held[step.state] / step.scale


def _driven(x: Tensor, index: Tensor) -> Tensor:
    raise RuntimeError("a Scheduler's network is called by its pipeline.")


class _OnePerSample(random.GeneratorNoise):
    """Noise from a generator for each sample, in order of asking."""

    def __init__(self, generators: Any, shape: tuple[int, ...], **place: Any) -> None:
        generators = list(generators) if isinstance(generators, (list, tuple)) else generators
        if not isinstance(generators, list) or len(generators) != shape[0] or not all(isinstance(g, torch.Generator) for g in generators):
            raise TypeError(f"generator={generators!r}: expected a torch.Generator, or a list of {shape[0]}, one per sample.")
        super().__init__(generators[0], shape, **place)
        self.rows = [random.GeneratorNoise(g, (1, *shape[1:]), **place) for g in generators]

    def normal(self, use: int = 1) -> Tensor:
        return torch.cat([row.normal(use) for row in self.rows])
