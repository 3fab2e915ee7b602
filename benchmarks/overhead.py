"""What a step costs beyond the network: microseconds per step over bare forwards, and the ratio to them.

    python benchmarks/overhead.py [--steps 50] [--rounds 15] [--processes 3] [--only ddim,heun] [--out FILE.csv]

One thread, and processor time, in which waiting for other processes does not count. Every round times each contender once, in turn, so
that a slow moment of the machine meets all of them; a contender's number is the median over the rounds of its difference to the bare
forwards of the same round. Bare forwards: as many network calls as the method makes, on the same input and the same time input. The
minimal loop: the method by hand, with coefficients that are floats made beforehand, ``torch.randn`` for noise, and no check of anything.
Peers are those that are installed; each runs its own loop on its own grid of as many steps, given a network that predicts eps. Memory that
is freed stays with the process: the hidden states are as large as what the C library gives back to the system at once, and whether a
forward pays for their pages again, a third of its time, would be a matter of chance. Where its vectors lie is one as well, worth some
microseconds a step for a whole process: each cell is measured in several fresh processes, and the median of theirs counts.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import csv
import ctypes
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sdediff
from sdediff.solvers import table

METHODS = ("ddim", "ddpm", "dpm++2m", "heun", "euler-maruyama")
SDE = sdediff.VPSDE()


class MLP(nn.Module):
    """2-128-128-128-2 beside its input, and nothing else: it does not even read c. eps = x + small keeps a run at unit size. States that
    grow, as they do for eps = small, end in exponentials of hundreds and then in subnormal numbers, on which the forwards of a run, but
    not the bare ones, are slow."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(),
                                    nn.Linear(128, 2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.layers(x)


class UNet(nn.Module):
    """Two resolutions, six convolutions, a skip connection, the time as a bias, the input added: a small U-Net for 28 x 28 pictures."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.time = nn.Linear(1, w)
        self.enter, self.same = nn.Conv2d(1, w, 3, padding=1), nn.Conv2d(w, w, 3, padding=1)
        self.down, self.deep = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(2 * w, w, 2, stride=2), nn.Conv2d(2 * w, 1, 3, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.act(self.enter(x) + self.time(c.view(-1, 1)).view(-1, self.time.out_features, 1, 1))
        skip = self.act(self.same(h))
        h = self.act(self.deep(self.act(self.down(skip))))
        return x + self.leave(torch.cat([skip, self.up(h)], 1))


def keep_memory() -> None:
    """Freed memory is kept, where the C library can be told so (glibc: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter in (-1, -3) if mallopt else ():
        mallopt(parameter, 1 << 30)


def grid(name: str, steps: int) -> list[float]:
    return sdediff.method(name).default_grid(SDE)(SDE, steps, None, None)


def calls(name: str, steps: int) -> int:
    return steps * (2 if name == "heun" else 1)


def minimal(name: str, net: Callable[..., Tensor], x: Tensor, steps: int) -> Callable[[], Tensor]:
    """The method by hand."""
    recipe, levels = sdediff.method(name), SDE.levels(grid(name, steps))
    whole = table(recipe.solver, SDE, levels, eta=recipe.eta)
    assert len(whole.inputs) == calls(name, steps)
    c = [torch.full((len(x),), level.t) for level in whole.levels]
    pairs = list(pairwise(levels))

    def one_noise() -> list[tuple[float, float, float]]:
        rows = []
        for t, s in pairs:
            form = table(recipe.solver, SDE, [t, s], eta=recipe.eta).states[1]
            rows.append((form[("x",)], form[("D", 0)], next((v for k, v in form.items() if k[0] == "noise"), 0.0)))
        return rows

    if name in ("ddim", "ddpm", "euler-maruyama"):
        rows = one_noise()

        def loop() -> Tensor:
            y = x
            for (a, b, g), time_input in zip(rows, c):
                y = a * y + b * net(y, time_input)
                if g:
                    y = y + g * torch.randn(x.shape)
            return y
    elif name == "dpm++2m":
        halves = []                             # x_s = a x + p D_k + q D_{k-1}, D = (x - sigma eps)/alpha
        for k, (t, s) in enumerate(pairs):
            h, before = s.lam - t.lam, levels[k - 1] if k else None
            w = -torch.expm1(torch.tensor(-h, dtype=torch.float64)).item() * s.alpha
            r = h / (2 * (t.lam - before.lam)) if before else 0.0
            halves.append((1 / t.alpha, -t.sigma / t.alpha, s.sigma / t.sigma, w * (1 + r), -w * r))

        def loop() -> Tensor:
            y, older = x, None
            for (i, j, a, p, q), time_input in zip(halves, c):
                x0 = i * y + j * net(y, time_input)
                y = a * y + p * x0 if older is None else a * y + p * x0 + q * older
                older = x0
            return y
    else:
        slopes = [(t.f, 0.5 * t.g2 / t.sigma, s.f, 0.5 * s.g2 / s.sigma, s.t - t.t) for t, s in pairs]

        def loop() -> Tensor:
            y = x
            for k, (f, g, f1, g1, h) in enumerate(slopes):
                slope = f * y + g * net(y, c[2 * k])
                z = y + h * slope
                y = y + h / 2 * (slope + (f1 * z + g1 * net(z, c[2 * k + 1])))
            return y
    return loop


def peers(name: str, net: Callable[..., Tensor], x: Tensor, steps: int) -> dict[str, Callable[[], object]]:
    """The same method in other libraries, where they have it and are installed."""
    found: dict[str, Callable[[], object]] = {}
    batch = len(x)
    try:
        import diffusers
        made = {"ddim": lambda: diffusers.DDIMScheduler(clip_sample=False), "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
                "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(), "heun": lambda: diffusers.HeunDiscreteScheduler()}.get(name)
        if made:
            scheduler = made()

            def diffuse() -> Tensor:
                scheduler.set_timesteps(steps)
                y = x
                for t in scheduler.timesteps:
                    y = scheduler.step(net(scheduler.scale_model_input(y, t), t.expand(batch)), t, y).prev_sample
                return y

            found[f"diffusers {diffusers.__version__}"] = diffuse
    except ImportError:
        pass
    try:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from benchmarks.peers import k_diffusion_
        library = k_diffusion_.sampling()
        sampler = {"ddim": "sample_euler", "ddpm": "sample_euler_ancestral", "dpm++2m": "sample_dpmpp_2m", "heun": "sample_heun"}.get(name)
        if sampler:
            sigmas = torch.tensor([m.sigma / m.alpha for m in SDE.levels(grid(name, steps))])

            def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
                return y - sigma[:, None].reshape(-1, *[1] * (y.ndim - 1)) * net(y, sigma)

            run = getattr(library, sampler)
            found["k-diffusion"] = lambda: run(denoiser, x * sigmas[0], sigmas, disable=True)
    except (ImportError, StopIteration, FileNotFoundError):
        pass
    try:
        import azula.denoise
        import azula.noise
        import azula.sample
        kind = {"ddim": "DDIMSampler", "ddpm": "DDPMSampler", "heun": "HeunSampler"}.get(name)
        if kind and hasattr(azula.sample, kind):
            schedule = azula.noise.VPSchedule()

            class Denoiser(azula.denoise.Denoiser):
                def __init__(self) -> None:
                    super().__init__()
                    self.schedule = schedule

                def forward(self, y: Tensor, t: Tensor, **_: object) -> object:
                    alpha, sigma = schedule(t)
                    eps = net(y, t.expand(batch))
                    return azula.denoise.DiracPosterior(mean=(y - sigma * eps) / alpha)

            sampler_ = getattr(azula.sample, kind)(Denoiser(), steps=steps, silent=True)
            sampler_(x)
            found["azula"] = lambda: sampler_(x)
    except Exception as error:                  # an interface that moved: said, not hidden
        print(f"azula left out for {name}: {type(error).__name__}: {error}", file=sys.stderr)
    if name == "euler-maruyama" and x.ndim == 2:
        try:
            import torchsde
            form = sdediff.as_torchsde(sdediff.ReverseSDE(SDE, sdediff.from_network(net), 1.0), x.shape[1:])
            ts = torch.linspace(-1.0, -1e-3, steps + 1)
            found["torchsde"] = lambda: torchsde.sdeint(form, x, ts, dt=1 / steps, method="euler")
        except Exception as error:
            print(f"torchsde left out: {type(error).__name__}: {error}", file=sys.stderr)
    return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"mlp1": (MLP, (1, 2)), "mlp256": (MLP, (256, 2)),
                                                                       "unet": (UNet, (8, 1, 28, 28))}


def repeated(processes: int, *cell: Any) -> dict[str, Any]:
    """A cell measured in several processes, one after the other: the medians of theirs."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = [pool.submit(measure, *cell).result() for _ in range(processes)]
    median = lambda values: statistics.median(list(values))
    return rows[0] | {"bare us a call": median(row["bare us a call"] for row in rows),
                      "above minimal": median(row["above minimal"] for row in rows),
                      **{what: {key: median(row[what][key] for row in rows) for key in rows[0][what]} for what in ("over", "ratio")}}


def measure(name: str, network: str, steps: int, rounds: int, compiled: bool, others: bool, alone: bool) -> dict[str, Any]:
    """Medians of one cell: seconds of the bare forwards, and for every contender microseconds a step over them and the ratio. ``alone``:
    only compiled runs take turns with the bare forwards."""
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made, shape = NETWORKS[network]
    net = made().requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    c, score, n = torch.full(shape[:1], 0.5), sdediff.from_network(net), calls(name, steps)

    def bare() -> None:
        for _ in range(n):
            net(x, c)

    ours = lambda **how: (lambda: sdediff.sample(SDE, score, x_init=x, method=name, steps=steps, seed=0, **how))
    contenders: dict[str, Callable[[], object]] = {"bare": bare, "minimal loop": minimal(name, net, x, steps), "sdediff": ours(),
                                                   "sdediff, readable": ours(table=False)}
    if compiled:
        contenders["sdediff, compiled"] = ours(compile=True)
    if alone:
        contenders = {"bare": bare, "sdediff, compiled": ours(compile=True)}
    elif others:
        contenders |= peers(name, net, x, steps)
    took: dict[str, list[float]] = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, contender in list(contenders.items()):
            try:
                contender()                     # warm
                took[key] = []
            except Exception as error:
                if key.startswith(("sdediff", "bare", "minimal")):
                    raise
                print(f"{key} left out for {name}: {type(error).__name__}: {error}", file=sys.stderr)
        for _ in range(rounds):
            for key, times in took.items():
                began = time.process_time()
                contenders[key]()
                times.append(time.process_time() - began)
    above = math.nan if alone else statistics.median(a - b for a, b in zip(took["sdediff"], took["minimal loop"]))
    return {"method": name, "shape": shape, "steps": steps, "bare us a call": statistics.median(took["bare"]) / n * 1e6,
            "over": {key: statistics.median(a - b for a, b in zip(times, took["bare"])) / steps * 1e6 for key, times in took.items()},
            "ratio": {key: statistics.median(a / b for a, b in zip(times, took["bare"])) for key, times in took.items()},
            "above minimal": above / steps * 1e6}


COLUMNS = ("method", "shape", "steps", "bare_us_a_call", "contender", "us_a_step_over_bare", "ratio_to_bare")


def listed(rows: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """A line for each contender of each cell."""
    return [(row["method"], "x".join(map(str, row["shape"])), row["steps"], f"{row['bare us a call']:.1f}", key, f"{over:.1f}",
             f"{row['ratio'][key]:.3f}") for row in rows for key, over in row["over"].items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--networks", default="mlp1,mlp256,unet", help="of mlp1, mlp256, unet")
    parser.add_argument("--no-compile", action="store_true", help="leave compile=True out (it takes some seconds a method)")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--compiled-alone", action="store_true", help="compiled runs take turns with bare forwards, and nothing else")
    parser.add_argument("--out", type=Path, help="write the numbers there, as CSV")
    a = parser.parse_args()
    rows = []
    for key in a.networks.split(","):
        for name in a.only.split(","):
            rounds, mlp = a.rounds if key != "unet" else max(3, a.rounds // 3), key != "unet"
            row = repeated(a.processes, name, key, a.steps, rounds, mlp and not a.no_compile, mlp and not a.no_peers, a.compiled_alone)
            rows.append(row)
            ours = "" if a.compiled_alone else f"; sdediff {row['above minimal']:+.1f} us a step above the minimal loop"
            print(f"\n{name}, {key} {row['shape']}, {a.steps} steps: bare forward {row['bare us a call']:.0f} us{ours}")
            for contender, over in row["over"].items():
                print(f"    {contender:22s} {row['ratio'][contender]:6.3f} x   {over:+9.1f} us a step over bare forwards")
            sys.stdout.flush()
    if a.out:
        with a.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *listed(rows)])


if __name__ == "__main__":
    main()
