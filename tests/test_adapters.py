"""Adapters against the packages themselves: real classes, small random networks, the packages' own samplers on the same start and noise.

Theirs keep tables in single precision (see test_oracles.py), so equality is to ``SINGLE``, relative to the greatest entry. Measured with
diffusers 0.42.1 and k-diffusion 0.1.1; score_sde's and EDM's conventions are written out here from their papers and published code."""
import importlib.metadata
import importlib.util
import itertools
import json
import math
import socket
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdediff
from sdediff import adapters, testing
from sdediff.adapters import Scheduler, from_diffusers, from_edm, from_k_diffusion, from_score_sde, from_table, to_k_diffusion
from sdediff.random import WhiteNoise
from sdediff.sde import ChainSDE

diffusers = pytest.importorskip("diffusers", reason="diffusers is adapted here: pip install 'sdediff[adapters]'")
SINGLE = 2e-5
STEPS = 5
BETAS = np.linspace(1e-3, 0.05, 40)
# numpy 2 on torch's tensors, inside theirs
pytestmark = [pytest.mark.filterwarnings(f"ignore:{name}:DeprecationWarning") for name in ("__array__ implementation", "__array_wrap__")]


@pytest.fixture(scope="module")
def unet():
    return make_unet()


def make_unet(out=2, classes=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(8, 2, out, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
                                     num_class_embeds=classes, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                     up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


def start(rows=2, event=(2, 8, 8), dtype=torch.float32):
    return WhiteNoise(4, (rows, *event), dtype=dtype).normal()


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def gap(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def scheduler(name, **config):
    return getattr(diffusers, name + "Scheduler")(**config)


@torch.no_grad()
def driven(network, theirs, steps, x, **step):
    """A pipeline's loop: the sample at the end, from x at the first call, which is what the network is first given."""
    theirs.set_timesteps(steps)
    x = x * theirs.init_noise_sigma
    first = theirs.scale_model_input(x, theirs.timesteps[0]) if len(theirs.timesteps) else x
    for t in theirs.timesteps:
        x = theirs.step(network(theirs.scale_model_input(x, t), t).sample, t, x, **step).prev_sample
    return first, x


# -- diffusers: a model here ----------------------------------------------------------------------------------------
CONFIGS = {
    "linear": {}, "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"}, "trained": {"trained_betas": BETAS.tolist(), "num_train_timesteps": 40},
    "zero-snr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}}


@pytest.mark.parametrize("config", [*CONFIGS.values(), {"beta_schedule": "sigmoid"}], ids=[*CONFIGS, "sigmoid"])
def test_the_chain_is_the_scheduler_s(unet, config):
    theirs = scheduler("DDPM", **config)
    sde, score, _ = from_diffusers(unet, theirs)
    levels = sde.levels(range(1, len(theirs.betas) + 1))
    # zero-snr: theirs are 1 - a ratio of products in float32, each of about 1, so that some units of 2^-24 are lost whatever beta is
    assert np.allclose(sde.betas, theirs.betas.double(), rtol=1e-5, atol=2.0**-21 if "rescale_betas_zero_snr" in config else 0)
    assert np.allclose([m.alpha**2 for m in levels], theirs.alphas_cumprod.double(), atol=1e-6)
    assert (levels[-1].alpha == 0) == ("rescale_betas_zero_snr" in config)
    assert score.predicts == "x0"               # clip_sample is DDPM's default


PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_ddim(unet, prediction, config):
    """With the same generator: theirs draws in every step that is not deterministic, as ours does."""
    eta = 0.6 if prediction == "v_prediction" else 0.0
    if prediction == "epsilon" and "rescale_betas_zero_snr" in config:
        pytest.skip("eps says nothing at zero signal, see test_wrong_calls")
    theirs = scheduler("DDIM", **{"timestep_spacing": "leading", **config}, prediction_type=prediction, clip_sample=False)
    first, expected = driven(unet, theirs, STEPS, start(), eta=eta, generator=generator())
    sde, score, grid = from_diffusers(unet, theirs)
    ours = sdediff.sample(sde, score, x_init=first, method="ddim", eta=eta, steps=STEPS, grid=grid, seed=generator())
    assert gap(ours, expected) < SINGLE


SAMPLERS = {
    "DDPM": ("DDPM", {"clip_sample": False}, "ddpm", {}), "DDPM trailing": ("DDPM", {"clip_sample": False, "timestep_spacing": "trailing"}, "ddpm", {}),
    "DDPM large": ("DDPM", {"clip_sample": False, "variance_type": "fixed_large"}, "ddpm", {"variance": "beta"}),
    "DPM-Solver++ 2M": ("DPMSolverMultistep", {}, "dpm++2m", {}),
    "DPM-Solver++ 2M leading": ("DPMSolverMultistep", {"timestep_spacing": "leading", "steps_offset": 1}, "dpm++2m", {}),
    "DPM-Solver++ 2M cosine, trailing": ("DPMSolverMultistep", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}, "dpm++2m", {}),
    "SDE-DPM-Solver++ 2M": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpm++2m-sde", {}),
    "DPM-Solver++ 3M": ("DPMSolverMultistep", {"solver_order": 3, "lower_order_final": False}, "dpm++3m-published", {}),
    "Euler": ("EulerDiscrete", {"timestep_spacing": "trailing"}, "ddim", {}),
    "Euler ancestral": ("EulerAncestralDiscrete", {"timestep_spacing": "trailing"}, "euler-ancestral", {}),
    "Heun": ("HeunDiscrete", {"timestep_spacing": "trailing"}, "edm-heun", {}),
    "DDIM of Stable Diffusion": ("DDIM", {**CONFIGS["scaled_linear"], "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}, "ddim", {})}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name, config, method, options", SAMPLERS.values(), ids=SAMPLERS)
def test_their_samplers(unet, name, config, method, options, prediction):
    if (name, prediction) == ("EulerAncestralDiscrete", "sample"):
        pytest.skip("not implemented there")
    theirs = scheduler(name, prediction_type=prediction, **config)
    first, expected = driven(unet, theirs, STEPS, start(), **({} if name == "HeunDiscrete" else {"generator": generator()}))
    sde, score, grid = from_diffusers(unet, theirs)
    ours = sdediff.sample(sde, score, x_init=first, method=method, steps=STEPS, grid=grid, seed=generator(), **options)
    assert gap(ours, expected) < SINGLE


@pytest.mark.parametrize("config", [{}, {"clip_sample_range": 0.7}, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}],
                         ids=["clipped", "to 0.7", "thresholded"])
def test_clipping_belongs_to_the_score(unet, config):
    """clip_sample is the default of DDPM and DDIM; theirs clips x0 inside the step, ours in what the score says."""
    theirs = scheduler("DDPM", **config)
    first, expected = driven(unet, theirs, STEPS, 2 * start(), generator=generator())
    sde, score, grid = from_diffusers(unet, theirs)
    run = {"x_init": first, "steps": STEPS, "grid": grid}
    assert gap(sdediff.sample(sde, score, **run, method="ddpm", seed=generator()), expected) < SINGLE
    theirs = scheduler("DDIM", **config)
    first, expected = driven(unet, theirs, STEPS, 2 * start(), use_clipped_model_output=True)
    assert gap(sdediff.sample(sde, score, **run, method="ddim"), expected) < SINGLE
    free = from_diffusers(unet, theirs, clip=False)
    plain = from_diffusers(unet, scheduler("DDIM", clip_sample=False))
    assert torch.equal(*(sdediff.sample(*m[:2], **run, method="ddim") for m in (free, plain)))
    assert gap(sdediff.sample(*free[:2], **run, method="ddim"), expected) > 1e-2
    assert torch.equal(*(sdediff.sample(*m[:2], **run, method="ddim") for m in (from_diffusers(unet, scheduler("DDIM", clip_sample=False), clip=True),
                                                                              from_diffusers(unet, scheduler("DDIM")))))


FLOWS = {"Euler": ("FlowMatchEulerDiscrete", {}, "euler"), "Euler, shifted": ("FlowMatchEulerDiscrete", {"shift": 3.0}, "euler"),
         "Heun": ("FlowMatchHeunDiscrete", {}, "heun"), "DPM-Solver++ 2M": ("DPMSolverMultistep", {
             "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}, "dpm++2m")}


@pytest.mark.parametrize("name, config, method", FLOWS.values(), ids=FLOWS)
def test_flow_matching(unet, name, config, method):
    """The straight path: our sampler here, in their loop, and theirs. DPM-Solver tells the network a *rounded* timestep: there it is told
    none."""
    theirs = scheduler(name, **config)
    network = unet if name.startswith("Flow") else lambda x, t: unet(x, 500)
    theirs.init_noise_sigma, theirs.scale_model_input = 1.0, lambda x, t: x
    first, expected = driven(network, theirs, STEPS, start())
    sde, score, grid = from_diffusers(network, theirs)
    assert gap(sdediff.sample(sde, score, x_init=first, method=method, steps=STEPS, grid=grid), expected) < SINGLE
    assert gap(driven(network, Scheduler(method, theirs), STEPS, first)[1], expected) < SINGLE


def test_conditions_and_the_mean_of_a_model_with_a_variance():
    labels = torch.tensor([2, 0])
    both, theirs = make_unet(4, classes=3), scheduler("DDPM", variance_type="learned_range", clip_sample=False)
    sde, score, _ = from_diffusers(both, theirs, conditions={"class_labels": labels})
    x, level = start(), sde.at(300.0)
    with torch.no_grad():
        assert torch.equal(score(x, level).eps, both(x, 299, class_labels=labels).sample[:, :2])
        assert not torch.equal(score(x, level).eps, both(x, 299, class_labels=labels.flip(0)).sample[:, :2])
        with pytest.raises(sdediff.NetworkError, match=r"UNet2DModel at t=300: returned shape \(2, 4, 8, 8\)"):
            from_diffusers(both, scheduler("DDPM", clip_sample=False), conditions={"class_labels": labels}).score(x, level)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network of computers was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_folders(unet, tmp_path, offline):
    """A pipeline's folder, a model's folder with a scheduler in any of its forms, a pipeline, and the parts say the same."""
    theirs = scheduler("DDIM", **CONFIGS["scaled_linear"], prediction_type="v_prediction", clip_sample=False)
    pipe = diffusers.DDIMPipeline(unet, theirs)
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    run = {"x_init": start(), "method": "dpm++2m", "steps": 5}
    forms = [(tmp_path,), (str(tmp_path / "unet"), tmp_path / "scheduler"), (tmp_path / "unet", tmp_path / "scheduler" / "scheduler_config.json"),
             (tmp_path / "unet", tmp_path), (unet, config), (unet, theirs), (pipe,), (unet, Scheduler("ddim", theirs))]
    first, *others = (sdediff.sample(sde, score, grid=grid, **run) for sde, score, grid in itertools.starmap(from_diffusers, forms))
    assert all(torch.equal(other, first) for other in others)


def test_pickles_are_refused(unet, tmp_path, offline):
    unet.save_pretrained(tmp_path, safe_serialization=False)
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin: a pickle"):
        from_diffusers(tmp_path, scheduler("DDPM"))
    (tmp_path / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.safetensors: no such"):
        from_diffusers(tmp_path, scheduler("DDPM"))


# -- diffusers: our methods there -----------------------------------------------------------------------------------
NOT_DRIVEN = {"rosenbrock": "Jacobian", "rk45": "chooses its network calls", "dopri5": "chooses its", "rk23": "chooses its", "scipy": "chooses its",
              "gotta-go-fast": "chooses its", "torchdiffeq": "", "torchsde": "another library", "picard": "chooses its", "mala": "density"}


@pytest.mark.parametrize("method", sdediff.methods())
def test_every_method_in_a_pipeline_s_loop(method):
    """The same sample as in our own loop, from the same seed; or a refusal that says why."""
    theirs = scheduler("DPMSolverMultistep", trained_betas=BETAS.tolist(), num_train_timesteps=40)
    network = lambda x, t, **_: types.SimpleNamespace(sample=torch.tanh(x) + 0.01 * torch.as_tensor(t))
    reason = next((why for name, why in NOT_DRIVEN.items() if method.startswith(name)), None)
    if reason is not None:
        with pytest.raises(ValueError, match=f"(?s)(method='{method}'|density=).*{reason}"):
            Scheduler(method, theirs)
        return
    x = start(3, (2,), torch.float64)
    ours = Scheduler(method, theirs, seed=3)
    first, driven_there = driven(network, ours, 6, x)
    sde, score, grid = from_diffusers(lambda x, t: network(x, t[0]), theirs)
    here = sdediff.sample_info(sde, score, x_init=x, method=method, steps=6, grid=grid, seed=3)
    whole = not ours.timesteps.is_floating_point()              # a fraction is told in single precision
    assert torch.equal(first, x) and gap(driven_there, here.x) < (1e-12 if whole else 1e-7)
    assert len(ours.timesteps) == here.nfe


PIPELINES = {"DDPM": ("DDPM", "DDPM", {"clip_sample": False}, "ddpm"), "DDPM, clipped": ("DDPM", "DDPM", {}, "ddpm"),
             "DDPM, v": ("DDPM", "DDPM", {"prediction_type": "v_prediction"}, "ddpm"),
             "DDIM": ("DDIM", "DDIM", {"clip_sample": False}, "ddim"),
             "DDIM, zero SNR": ("DDIM", "DDIM", {"clip_sample": False, "prediction_type": "v_prediction", **CONFIGS["zero-snr"]}, "ddim"),
             "DPM-Solver++": ("DDPM", "DPMSolverMultistep", {}, "dpm++2m"),
             "SDE-DPM-Solver++": ("DDPM", "DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpm++2m-sde")}


@pytest.mark.parametrize("each", [False, True], ids=["a generator", "one per sample"])
@pytest.mark.parametrize("pipeline, name, config, method", PIPELINES.values(), ids=PIPELINES)
def test_their_pipelines_with_our_methods(unet, pipeline, name, config, method, each):
    """A real pipeline, its own scheduler and ours: the same images from the same generator."""
    pipe = getattr(diffusers, pipeline + "Pipeline")(unet, scheduler("DDIM"))
    pipe.set_progress_bar_config(disable=True)
    images = []
    for made in (scheduler(name, **config), Scheduler(method, scheduler(name, **config))):
        pipe.scheduler = made
        source = [generator(5), generator(6)] if each else generator()
        images.append(pipe(batch_size=2, generator=source, num_inference_steps=STEPS, output_type="pt").images)
    assert images[0].std() > 0.1 and gap(images[1], images[0]) < SINGLE


def test_methods_of_several_calls_in_a_pipeline(unet):
    """Heun of theirs, in their loop, is ours, in their pipeline: 2 n - 1 calls in both."""
    theirs = scheduler("HeunDiscrete", timestep_spacing="leading")
    ours = Scheduler("edm-heun", theirs)
    expected = driven(unet, theirs, STEPS, start())[1]
    assert gap(driven(unet, ours, STEPS, start())[1], expected) < SINGLE
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() and len(ours.timesteps) == 2 * STEPS - 1 and ours.order == theirs.order == 2
    pipe = diffusers.DDPMPipeline(unet, ours)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(generator=generator(), num_inference_steps=STEPS, output_type="pt").images
    x = torch.randn(1, 2, 8, 8, generator=generator())
    assert gap(image, (driven(unet, theirs, STEPS, x)[1] / 2 + 0.5).clamp(0, 1)) < SINGLE


def test_a_seed_belongs_to_a_sample(unet):
    x, theirs = start(3), scheduler("DDPM")
    whole = driven(unet, Scheduler("ddpm", theirs, seed=[5, 6, 7]), 5, x)[1]
    alone = driven(unet, Scheduler("ddpm", theirs, seed=[6]), 5, x[1:2])[1]
    assert gap(alone, whole[1:2]) < SINGLE
    torch.manual_seed(0)
    fresh = [driven(unet, Scheduler("ddpm", theirs), 5, x)[1] for _ in range(2)]
    assert not torch.equal(*fresh)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(driven(unet, Scheduler("ddpm", theirs), 5, x)[1], fresh[0]) and not torch.equal(before, torch.get_rng_state())
    before = torch.get_rng_state()
    driven(unet, Scheduler("dpm++2m", theirs), 5, x)
    assert torch.equal(before, torch.get_rng_state())           # a deterministic method draws nothing


@torch.no_grad()
def loop(network, made, timesteps, x, change=lambda k, x: x):
    for k, t in enumerate(timesteps):
        x = change(k, made.step(network(x, t).sample, t, x, return_dict=False)[0])
    return x


@pytest.mark.parametrize("name, method", [("DDIM", "ddim"), ("DPMSolverMultistep", "dpm++2m")])
def test_a_sample_that_the_pipeline_changes(unet, name, method):
    """As inpainting does between steps. The last step is left as it is: it shows whether the steps used what they were given."""
    theirs, mask = scheduler(name, **({"clip_sample": False} if name == "DDIM" else {})), torch.arange(8.0) > 3
    ours = Scheduler(method, theirs)
    change = lambda k, x: torch.where(mask, x, 0.1 * k) if k < STEPS - 1 else x
    runs = []
    for made in (theirs, ours):
        made.set_timesteps(STEPS)
        runs.append(loop(unet, made, made.timesteps, start(), change))
    assert gap(*runs[::-1]) < SINGLE


@pytest.mark.parametrize("method, calls", [("ddim", 1), ("edm-heun", 2), ("unipc-2", 1)])
def test_a_run_that_begins_later(unet, method, calls):
    """Image to image: timesteps[order k:], on the picture with the noise of that level."""
    theirs, picture, noise = scheduler("DDIM", clip_sample=False), 0.3 * start(), start(2).flip(0)
    ours = Scheduler(method, theirs)
    ours.set_timesteps(8)
    t = ours.timesteps[3 * ours.order:]
    assert ours.order == calls
    x = ours.add_noise(picture, noise, t[:1].repeat(2))
    assert gap(x, theirs.add_noise(picture, noise, t[:1].repeat(2))) < SINGLE
    sde, score, grid = from_diffusers(unet, theirs)
    here = sdediff.sample(sde, score, x_init=x, method=method, grid=grid(sde, 8)[3:])
    assert gap(loop(unet, ours, t, x), here) < SINGLE
    ours.set_timesteps(timesteps=ours.timesteps[::ours.order].tolist())
    assert gap(loop(unet, ours, ours.timesteps, x), sdediff.sample(sde, score, x_init=x, method=method, grid=grid(sde, 8))) < SINGLE


def test_a_grid_of_one_s_own(unet):
    """A list of times; and a method tuned to a model, which has its own grid."""
    theirs, times = scheduler("DDPM", clip_sample=False), [1000.0, 700.0, 250.5, 0.0]
    sde, score, _ = from_diffusers(unet, theirs)
    ours = Scheduler("dpm++2m", theirs, grid=times)
    assert ours.num_inference_steps == 3 and ours.timesteps.tolist() == [999.0, 699.0, 249.5]
    assert gap(driven(unet, ours, 3, start())[1], sdediff.sample(sde, score, x_init=start(), method="dpm++2m", grid=times)) < SINGLE
    target = sdediff.targets.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], 0.1)
    tuned = sdediff.tune("dpm++2m", sde, target.score, nfe=4, data=target.sample(50, seed=0), trajectories=8, iterations=2, starts=1)
    there = driven(unet, Scheduler(tuned, theirs, grid=tuned.grid), 4, start())[1]
    assert gap(there, sdediff.sample(sde, score, x_init=start(), method=tuned, nfe=4)) < SINGLE


def test_half_precision_is_integrated_in_single(unet):
    half, theirs = make_unet().to(torch.bfloat16), scheduler("DDIM", clip_sample=False)
    x = start(dtype=torch.float32).to(torch.bfloat16)
    there = driven(half, Scheduler("dpm++2m", theirs), STEPS, x)[1]
    sde, score, grid = from_diffusers(half, theirs)
    assert there.dtype == torch.bfloat16
    assert torch.equal(there, sdediff.sample(sde, score, x_init=x, method="dpm++2m", steps=STEPS, grid=grid))


def test_a_scheduler_is_used_again_and_after_an_interruption(unet):
    ours = Scheduler("dpm++2m", scheduler("DDPM"))
    once = driven(unet, ours, 6, start())[1]
    out = torch.zeros(2, 2, 8, 8)
    ours.step(out, ours.timesteps[0], start())
    with pytest.raises(ValueError, match="timestep=3: the run's next network call is at"):
        ours.step(out, 3, start())
    assert torch.equal(driven(unet, ours, 6, start())[1], once)
    assert torch.equal(loop(unet, ours, ours.timesteps, start()), once)
    assert ours.step(out, ours.timesteps[0], start()).pred_original_sample.shape == out.shape
    assert Scheduler("auto", ours).timesteps.tolist() and ours.config.num_train_timesteps == 1000


# -- k-diffusion ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def k():
    """sampling.py and external.py of k-diffusion, without the image libraries that its __init__ asks for: of its utils they use append_dims
    alone."""
    try:
        files = {f.name: f.locate() for f in importlib.metadata.files("k-diffusion") or () if f.parent.name == "k_diffusion"}
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is adapted here: pip install --no-deps k-diffusion==0.1.1")
    package, utils = types.ModuleType("k_diffusion_beside"), types.ModuleType("k_diffusion_beside.utils")
    utils.append_dims = lambda v, n: v[(..., *(None,) * (n - v.ndim))]
    package.utils, package.__path__ = utils, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package.__name__, package)
        patch.setitem(sys.modules, utils.__name__, utils)
        for name in ("sampling", "external"):
            spec = importlib.util.spec_from_file_location(f"{package.__name__}.{name}", files[name + ".py"])
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, module.__name__, module)
            setattr(package, name, module)
            spec.loader.exec_module(module)
    return package


class F(torch.nn.Module):
    """A small raw network (x, c, y) of points."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))

    def forward(self, x, c, y=None):
        y = torch.zeros(len(x)) if y is None else y
        return self.layers(torch.cat([x, c[:, None].to(x), y[:, None].to(x)], 1))


class Preconditioned(torch.nn.Module):
    """D(x, sigma) of Karras et al. 2022, Table 1, around F."""

    def __init__(self, network, sigma_data=0.5):
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x, sigma, **extra):
        s, d = sigma.reshape(-1, 1), self.sigma_data
        raw = self.network(x / (s**2 + d**2).sqrt(), sigma.log() / 4, **extra)
        return d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * raw


K_SAMPLERS = {"sample_euler": "ddim", "sample_heun": "edm-heun", "sample_dpmpp_2m": "dpm++2m", "sample_dpm_2": "dpm-solver-2",
              "sample_euler_ancestral": "euler-ancestral", "sample_dpmpp_2s_ancestral": "dpm++2s-ancestral"}


def k_run(k, name, denoiser, x, sigmas, **extra):
    """Their sampler, with the noise of our seed 9 where it draws."""
    draws, options = iter(range(len(sigmas))), {}
    if "ancestral" in name:
        white = WhiteNoise(9, tuple(x.shape), dtype=x.dtype)
        options["noise_sampler"] = lambda *_: white.at(next(draws)).normal(0)
    with torch.no_grad(), torch.random.fork_rng():              # theirs draws noise that it does not use
        return getattr(k.sampling, name)(denoiser, x, sigmas, extra_args=extra, disable=True, **options)


@pytest.mark.parametrize("name, method", K_SAMPLERS.items())
def test_a_k_diffusion_denoiser(k, name, method):
    denoiser, y = Preconditioned(F()), torch.arange(6.0)
    sde, score, grid = from_k_diffusion(denoiser, sigma_min=0.02, sigma_max=40.0, conditions={"y": y})
    sigmas = k.sampling.get_sigmas_karras(10, 0.02, 40.0)
    x = 40.0 * start(6, (2,))
    assert np.allclose(grid(sde, 10), sigmas, rtol=1e-5, atol=0)
    expected = k_run(k, name, denoiser, x, torch.tensor(grid(sde, 10)), y=y)
    assert gap(sdediff.sample(sde, score, x_init=x, method=method, steps=10, grid=grid, seed=9), expected) < SINGLE


@pytest.mark.parametrize("kind, prediction", [("DiscreteEpsDDPMDenoiser", "epsilon"), ("DiscreteVDDPMDenoiser", "v_prediction")])
def test_their_denoisers_around_a_discrete_model(k, unet, kind, prediction):
    """Their own grid; and the same model by way of diffusers: on a grid of whole timesteps one answer."""
    theirs = scheduler("DDIM", prediction_type=prediction, clip_sample=False)
    denoiser = getattr(k.external, kind)(lambda x, t: unet(x, t).sample, theirs.alphas_cumprod, quantize=False)
    sde, score, grid = from_k_diffusion(denoiser)
    sigmas = denoiser.get_sigmas(8)
    x = float(sigmas[0]) * start()
    assert np.allclose(grid(sde, 8), sigmas, rtol=1e-6)
    ours = sdediff.sample(sde, score, x_init=x, method="dpm++2m", steps=8, grid=grid)
    assert gap(ours, k_run(k, "sample_dpmpp_2m", denoiser, x, sigmas)) < SINGLE
    chain, model, _ = from_diffusers(unet, theirs)
    knots = [1000.0, 700.0, 400.0, 100.0, 0.0]
    levels = chain.levels(knots)
    there = k_run(k, "sample_dpmpp_2m", denoiser, x, torch.tensor([m.sigma / m.alpha for m in levels]))
    assert gap(sdediff.sample(chain, model, x_init=levels[0].alpha * x, method="dpm++2m", grid=knots), there) < SINGLE


@pytest.mark.parametrize("sde", [sdediff.VPSDE(), sdediff.VESDE(), sdediff.EDMSDE(), sdediff.VPSDE.from_betas(BETAS)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpmpp_2m"])
def test_our_score_in_their_samplers(k, sde, name):
    """In their chart, x/alpha and sigma/alpha, from one of our grids."""
    y = torch.arange(5.0)
    score = sdediff.from_network(F().double(), "eps", time_input=lambda m: m.lam / 4)
    times = sdediff.grids.LogSNR()(sde, 10)
    levels = sde.levels(times)
    x = levels[0].sigma * start(5, (2,), torch.float64)
    denoiser = to_k_diffusion(sde, score)
    there = k_run(k, name, denoiser, x / levels[0].alpha, torch.tensor([m.sigma / m.alpha for m in levels], dtype=torch.float64), y=y)
    here = sdediff.sample(sde, score, x_init=x, method=K_SAMPLERS[name], grid=times, conditions={"y": y})
    assert gap(levels[-1].alpha * there, here) < 1e-12
    assert denoiser.sigma_max == pytest.approx(levels[0].sigma / levels[0].alpha)


# -- EDM ------------------------------------------------------------------------------------------------------------
def edm_heun(denoiser, x, steps, low=0.002, high=80.0, rho=7.0):
    """Karras et al. 2022, Alg. 1, in double precision."""
    i = torch.arange(steps, dtype=torch.float64)
    t = [*((high**(1 / rho) + i / (steps - 1) * (low**(1 / rho) - high**(1 / rho)))**rho), torch.tensor(0.0, dtype=torch.float64)]
    for now, then in itertools.pairwise(t):
        d = (x - denoiser(x, now.expand(len(x)))) / now
        end = x + (then - now) * d
        if then > 0:
            end = x + (then - now) * (d + (end - denoiser(end, then.expand(len(x)))) / then) / 2
        x = end
    return x


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_an_edm_network_from_a_file(tmp_path, sigma_data):
    network, other = F().double(), F().double()
    save_file(network.state_dict(), tmp_path / "F.safetensors")
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    sde, score, grid = from_edm(other, tmp_path / "F.safetensors", sigma_data=sigma_data)
    x = 80.0 * start(6, (2,), torch.float64)
    with torch.no_grad():
        expected = edm_heun(Preconditioned(network, sigma_data), x, 12)
    assert gap(sdediff.sample(sde, score, x_init=x, method="edm-heun", steps=12, grid=grid), expected) < 1e-12
    single = from_edm(F(), sigma_data=sigma_data)
    assert gap(sdediff.sample(*single[:2], x_init=x.float(), method="edm-heun", steps=12, grid=single.grid), expected) < SINGLE
    whole = from_k_diffusion(Preconditioned(network, sigma_data), sigma_min=0.002, sigma_max=80.0)
    assert gap(sdediff.sample(*whole[:2], x_init=x, method="edm-heun", steps=12, grid=whole.grid), expected) < 1e-12


def test_files_that_are_not_its_weights(tmp_path):
    torch.save(F().state_dict(), tmp_path / "F.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" * 100)
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, said in (("F.pt", "a pickle"), ("broken.safetensors", "damaged"), ("other.safetensors", "not the weights of this F")):
        with pytest.raises(ValueError, match=f"(?s){name}: .*{said}"):
            from_edm(F(), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        from_edm(F(), tmp_path / "none.safetensors")


# -- score_sde ------------------------------------------------------------------------------------------------------
def published_score(kind, model, x, t):
    """get_score_fn of score_sde, written out: what the model is told, and what its output is divided by; t (B,) in (0, 1]."""
    b = 0.1 * t + 0.5 * t**2 * (20.0 - 0.1)
    std = {"vp": (1 - (-b).exp()).sqrt(), "sub-vp": 1 - (-b).exp()}
    if kind == "ve":
        return model(x, 0.01 * (50.0 / 0.01)**t)
    return -model(x, 999 * t) / std[kind][:, None]


SONG = {"vp": sdediff.VPSDE(), "sub-vp": sdediff.SubVPSDE(), "ve": sdediff.VESDE()}


@pytest.mark.parametrize("kind", SONG)
def test_a_continuous_score_sde_network(kind):
    """Its score at times of every sample's own, and its Euler-Maruyama sampler (uniform in t from 1 to eps) on the same noise."""
    network = F().double()
    model = lambda x, c: network(x, torch.log1p(c))
    sde, score, grid = from_score_sde(model, SONG[kind])
    x, t = start(7, (2,), torch.float64), torch.linspace(0.01, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        assert gap(score(x, sde.at(t[:, None])).score, published_score(kind, model, x, t)) < 1e-12
        assert gap(score(x, sde.at(0.5)).score, published_score(kind, model, x, torch.full((7,), 0.5, dtype=torch.float64))) < 1e-12
        noise, eps, n = WhiteNoise(9, (7, 2), dtype=torch.float64), {"ve": 1e-5}.get(kind, 1e-3), 20
        y, dt = x, (1 - eps) / n
        for i in range(n):
            now = torch.full((7,), 1 - i * dt, dtype=torch.float64)
            beta, b = 0.1 + now[0] * 19.9, 0.1 * now[0] + 0.5 * now[0]**2 * 19.9
            drift, g = {"vp": (-beta / 2, beta.sqrt()), "sub-vp": (-beta / 2, (beta * (1 - (-2 * b).exp())).sqrt()),
                        "ve": (0.0, 0.01 * 5000.0**now[0] * math.sqrt(2 * math.log(5000.0)))}[kind]
            y = y - dt * (drift * y - g**2 * published_score(kind, model, y, now)) + math.sqrt(dt) * g * noise.at(i).normal(0)
    assert gap(sdediff.sample(sde, score, x_init=x, method="euler-maruyama", steps=n, grid=grid, seed=9), y) < 1e-10


def test_a_discrete_score_sde_network():
    """VP: told the index, eps. VE: told the index from the noisiest level down (NCSN's order), and the output is the score."""
    heard = []
    model = lambda x, c: (heard.append(c), x)[1]
    n, betas = 30, np.linspace(0.1, 20.0, 30) / 30
    sde, score, _ = from_score_sde(model, sdediff.VPSDE.from_betas(betas))
    x = start(3, (2,), torch.float64)
    std = math.sqrt(1 - np.prod(1 - betas[:5]))
    assert gap(score(x, sde.at(5.0)).score, -x / std) < 1e-12 and heard.pop().tolist() == [4] * 3
    ladder, score, _ = from_score_sde(model, sdediff.VESDE.from_sigmas(np.geomspace(0.01, 50.0, n)))
    assert torch.equal(score(x, ladder.at(30.0)).score, x) and heard.pop().tolist() == [0] * 3
    times = torch.tensor([[1.0], [4.0], [30.0]], dtype=torch.float64)
    assert torch.equal(score(x, ladder.at(times)).score, x) and heard.pop().tolist() == [29, 26, 0]


# -- tables ---------------------------------------------------------------------------------------------------------
def test_tables_of_any_kind():
    """A beta table, the same as (alpha, sigma), and the same process in other units: one answer at the knots; a ladder as a table."""
    abar = np.cumprod(1 - BETAS)
    network = F().double()
    x = start(6, (2,), torch.float64)
    run = {"method": "dpm++2m", "steps": 8}
    sde, score, grid = from_table(network, betas=BETAS)
    expected = sdediff.sample(sde, score, x_init=x, grid=grid, **run)
    chain = sdediff.VPSDE.from_betas(BETAS)
    assert torch.equal(expected, sdediff.sample(chain, sdediff.from_network(network, "eps", time_input="index"), x_init=x, grid="ddpm", **run))
    sde, score, grid = from_table(network, alphas=np.sqrt(abar), sigmas=np.sqrt(1 - abar))
    assert gap(sdediff.sample(sde, score, x_init=x, grid=grid, **run), expected) < 1e-12
    scaled = lambda x, i: network(x / torch.tensor([1.5 if i[0] else 1.25], dtype=torch.float64), i)
    units = np.where(np.arange(40) > 0, 1.5, 1.25)
    sde, score, grid = from_table(scaled, alphas=units * np.sqrt(abar), sigmas=units * np.sqrt(1 - abar))
    assert gap(sdediff.sample(sde, score, x_init=1.5 * x, grid=grid, **run), expected) < 1e-12
    ladder = np.geomspace(0.01, 20.0, 30)
    ve, table = sdediff.VESDE.from_sigmas(ladder), from_table(network, alphas=np.ones(30), sigmas=ladder).sde
    for t in (0.0, 0.4, 1.0, 7.25, 30.0):
        assert np.allclose(ve.at(t)[:4], table.at(t)[:4], rtol=1e-12, atol=0) and ve.at(t).g2 == pytest.approx(table.at(t).g2)


@pytest.mark.parametrize("end", [1e-3, 0.0], ids=["signal left", "zero SNR"])
def test_a_table_is_a_process(end):
    """The nine checks of a process, between the knots too."""
    abar = np.geomspace(0.999, 1e-4, 40)
    abar[-1] = end**2
    assert testing.check_sde(ChainSDE(1.3 * np.sqrt(abar), 2 * np.sqrt(1 - abar))).ok


# -- wrong calls ----------------------------------------------------------------------------------------------------
def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'sdediff\[adapters\]'"):
        from_diffusers(lambda x, t: x, {"_class_name": "DDPMScheduler"})


WRONG = {
    "no scheduler": (TypeError, "scheduler=None", lambda net: from_diffusers(net)),
    "no model": (TypeError, "model=int", lambda net: from_diffusers(3, scheduler("DDPM"))),
    "no such folder": (FileNotFoundError, "config.json: no such file", lambda net: from_diffusers("nowhere", scheduler("DDPM"))),
    "another object": (TypeError, "scheduler=list", lambda net: from_diffusers(net, [1])),
    "a network's config": (ValueError, "_class_name is 'UNet2DModel'", lambda net: from_diffusers(net, {"_class_name": "UNet2DModel"})),
    "no class name": (ValueError, "_class_name is None", lambda net: from_diffusers(net, {"prediction_type": "epsilon"})),
    "flow upside down": (ValueError, "FlowMatchEulerDiscreteScheduler: neither", lambda net: from_diffusers(
        net, scheduler("FlowMatchEulerDiscrete", invert_sigmas=True))),
    "EDM": (ValueError, "EDMEulerScheduler: neither a beta table", lambda net: from_diffusers(net, scheduler("EDMEuler"))),
    "continuous": (ValueError, "neither a beta table whose index", lambda net: from_diffusers(
        net, scheduler("EulerDiscrete", timestep_type="continuous", prediction_type="v_prediction"))),
    "shifted": (ValueError, "its alphas_cumprod are not those of its betas", lambda net: from_diffusers(net, scheduler("CogVideoXDDIM"))),
    "prediction": (ValueError, "scheduler.prediction_type='score' is unknown", lambda net: from_diffusers(
        net, scheduler("DDIM", prediction_type="score"))),
    "flow on a beta table": (ValueError, "DPMSolverMultistepScheduler: neither", lambda net: from_diffusers(
        net, scheduler("DPMSolverMultistep", prediction_type="flow_prediction"))),
    "betas": (ValueError, "scheduler.beta_schedule='laplace' is unknown", lambda net: from_diffusers(net, scheduler("DDPM", beta_schedule="laplace"))),
    "clip": (TypeError, "clip='yes'", lambda net: from_diffusers(net, scheduler("DDPM"), clip="yes")),
    "stages in the grid": (ValueError, "steps=6: the package's own grid lists", lambda net: sdediff.sample(
        *(m := from_diffusers(net, scheduler("PNDM")))[:2], shape=(1, 2, 8, 8), steps=6, grid=m.grid)),
    "eps at zero SNR": (ValueError, "alpha = 0", lambda net: sdediff.sample(
        *(m := from_diffusers(net, scheduler("DDIM", **CONFIGS["zero-snr"], clip_sample=False)))[:2], shape=(1, 2, 8, 8), method="ddim", steps=6, grid=m.grid)),
    "steps": (ValueError, "num_inference_steps=1001", lambda net: Scheduler("ddim", scheduler("DDPM")).set_timesteps(1001)),
    "steps and timesteps": (ValueError, "give exactly one", lambda net: Scheduler("ddim", scheduler("DDPM")).set_timesteps(3, timesteps=[3])),
    "option": (TypeError, "order=3", lambda net: Scheduler("ddim", scheduler("DDPM"), order=3)),
    "below index 0": (ValueError, "below its timestep 0", lambda net: Scheduler("ddim", scheduler("DDPM"), grid=sdediff.grids.LogSNR()).set_timesteps(
        timesteps=[999, -0.5])),
    "noise before the call": (ValueError, "its first network call is not at its start", lambda net: Scheduler(
        "edm-stochastic", scheduler("DDPM"), S_tmin=0.0, S_tmax=1e9).set_timesteps(timesteps=[600, 300])),
    "eta": (ValueError, "eta=0.5: it is an option of the method", lambda net: step(eta=0.5)),
    "unclipped": (ValueError, "use_clipped_model_output=False", lambda net: step(use_clipped_model_output=False)),
    "out of turn": (ValueError, "timestep=998: a run begins at", lambda net: step(timestep=998)),
    "output": (ValueError, r"model_output.shape=\(2, 1\)", lambda net: step(model_output=torch.zeros(2, 1))),
    "sample": (TypeError, "sample=", lambda net: step(sample=[1.0])),
    "generators": (TypeError, "one per sample", lambda net: step("ddpm", generator=[generator()])),
    "a starter": (ValueError, "calls from there, not those", lambda net: step("eab-4", 200, timestep=494)),
    "no denoiser": (TypeError, "denoiser=int", lambda net: from_k_diffusion(3)),
    "no range": (TypeError, "sigma_min=None", lambda net: from_k_diffusion(F())),
    "range": (ValueError, "sigma_max=0.01", lambda net: from_k_diffusion(F(), sigma_min=0.02, sigma_max=0.01)),
    "no score": (TypeError, "score=F", lambda net: to_k_diffusion(sdediff.VPSDE(), F())),
    "no process": (TypeError, "sde=str", lambda net: to_k_diffusion("vp", F())),
    "extra": (TypeError, r"extra_args \['y'\]", lambda net: to_k_diffusion(sdediff.VPSDE(), sdediff.targets.toy("two-moons").score)(
        torch.zeros(1, 2), torch.ones(1), y=1)),
    "no module": (TypeError, "network=function", lambda net: from_edm(lambda x, c: x, "F.safetensors")),
    "process of song": (TypeError, "sde=EDMSDE: expected one that score_sde knows", lambda net: from_score_sde(F(), sdediff.EDMSDE())),
    "subtract_min": (ValueError, "subtract_min=True", lambda net: from_score_sde(F(), sdediff.VESDE(subtract_min=True))),
    "no table": (TypeError, "betas=None, alphas=None, sigmas=None: expected either", lambda net: from_table(F())),
    "half a table": (TypeError, r"alphas=\[0.9\], sigmas=None: expected either", lambda net: from_table(F(), alphas=[0.9])),
    "two tables": (TypeError, r"betas=\[0.1\], alphas=\[0.9\], sigmas=\[0.1\]: expected either", lambda net: from_table(F(), betas=[0.1], alphas=[0.9], sigmas=[0.1])),
    "lengths": (ValueError, "tables of 2 and 1 numbers", lambda net: from_table(F(), alphas=[0.9, 0.8], sigmas=[0.1])),
    "alpha": (ValueError, r"alphas\[0\]=0.0", lambda net: from_table(F(), alphas=[0.0, 0.0], sigmas=[0.1, 0.2])),
    "order": (ValueError, r"at index 1 is not below that at index 0.*alphas\[::-1\]", lambda net: from_table(F(), alphas=[0.8, 0.9], sigmas=[0.2, 0.1]))}


def step(method="ddim", steps=4, **given):
    ours = Scheduler(method, scheduler("DDPM"), grid="ddpm")
    ours.set_timesteps(steps)
    call = {"model_output": torch.zeros(2, 2), "timestep": ours.timesteps[0], "sample": torch.zeros(2, 2), **given}
    return ours.step(**call)


@pytest.mark.parametrize("kind, said, call", WRONG.values(), ids=WRONG)
def test_wrong_calls(unet, kind, said, call):
    with pytest.raises(kind, match=f"(?s){said}"):
        call(unet)


def test_the_package_s_door():
    assert sdediff.adapters is adapters and all(callable(getattr(adapters, n)) for n in ("from_diffusers", "Scheduler", "from_table"))
