r"""DDPM on one picture: a U-Net learns to see the noise in a photograph of Grace Hopper, and takes it out again.

The chain of 300 steps, beta from 1e-4 to 0.04, abar_i = prod (1 - beta_j), noises and denoises by (Ho et al. 2020, eqs. 4, 11, 7)

    x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps,
    x_{i-1} = (x_i - beta_i/sqrt(1 - abar_i) eps_theta(x_i, i))/sqrt(1 - beta_i) + sqrt(beta_i (1 - abar_{i-1})/(1 - abar_i)) xi.

Two slips are often met with: 1 - abar_i in place of its root in the first, and 1 - beta_i in place of its root in the second, which blows
the picture up (the first column shows it, on the same network). A network that is not told i cannot know how much noise there is.

The network predicts the noise, and its squared error is weighted by 1/abar (`weighting="v"`). The plain mean square, `weighting="eps"`,
hardly asks what the picture is where the noise is large; after twice the training it gave it back from pure noise at 20 to 46 dB by the
start.

The chain is `method="ddpm"` on `VPSDE.from_betas`; the same network serves every other solver, in a tenth of the calls. There is one
training picture, so that the best that a network can do is to remember it: this is memorisation, it shows that the formulas and the loop
are right, and says nothing of generation. For that see 04_digits.py.

Four minutes on two cores, `--quick true` less than one. Interrupted and given again, it goes on.
"""
from pathlib import Path

import matplotlib.cbook
import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image, ImageOps

import sdediff
from sdediff import metrics, nets, plots, training

STEPS, SEEN = 300, 180                                  # of the chain; how far the picture is noised before it is given back
STARTS = 8                                              # noises, of which the least decibels count
FAST = ("ddim", "dpm++2m", "unipc-3", "deis-3", "ddpm", "sa-solver")


def picture(size: int) -> torch.Tensor:
    """Grace Hopper in grey, (1, 1, size, size) in [-1, 1]."""
    photograph = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("L")
    pixels = np.array(ImageOps.fit(photograph, (size, size), Image.Resampling.LANCZOS, centering=(0.5, 0.2)))
    return torch.from_numpy(pixels).float()[None, None] / 127.5 - 1


@torch.no_grad()
def slipped(betas: torch.Tensor, score, x: torch.Tensor) -> torch.Tensor:
    """The chain with 1/(1 - beta) in place of its root, and the variance beta: what not to do."""
    noise = torch.Generator().manual_seed(0)
    for i in reversed(range(len(betas))):
        eps = score.network(x, torch.full((len(x),), i, device=x.device))
        x = (x - betas[i] / (1 - torch.prod(1 - betas[:i + 1])).sqrt() * eps) / (1 - betas[i])
        x = x + betas[i].sqrt() * torch.randn(x.shape, generator=noise).to(x) * (i > 0)
    return x


def main(out: Path = Path("runs/single-image"), quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0) -> None:
    """Train on one picture, denoise it from step 180 and from noise by DDPM and by fast methods, and draw it all.

    Args:
        out: folder of the pictures and of the checkpoint from which an interrupted run goes on.
        quick: a smaller picture and network.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of weights, training and samples.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    x0, betas = picture(32 if quick else 64).to(device), torch.linspace(1e-4, 0.04, STEPS, dtype=torch.float64)
    sde = sdediff.VPSDE.from_betas(betas)
    network = nets.UNet(x0.shape[1:], *((16, (1, 2, 4)) if quick else (32, (1, 2, 4, 4))), patch=2, time_scale=10 / STEPS, seed=seed)
    score = sdediff.from_network(network.to(device), predicts="eps", time_input="index")
    config = training.TrainingConfig(steps=400 if quick else 1500, batch=8, lr=2e-3, weighting="v", ema=0.99 if quick else 0.995,
                                     seed=seed, checkpoint_every=200)
    score = training.train(score, sde, x0, config, checkpoint=out / "checkpoint.safetensors", resume=True).score

    path = sdediff.simulate(sde, x0.expand(STARTS, -1, -1, -1), times=[0.0, 30.0, 60.0, 120.0, float(SEEN), 240.0, 300.0], seed=seed)
    unit = lambda x, t: x / float(np.hypot(sde.at(t).alpha, sde.at(t).sigma))
    panels = [plots.Panel(f"step {t:.0f}", unit(x[:1], t).cpu(), rf"$\sigma/\alpha$ = {sde.at(t).sigma / sde.at(t).alpha:.2g}")
              for t, x in zip(path.times, path.x)]
    plots.samples(panels, heading="Noising: the forward chain").savefig(out / "forward.png")

    noised, start = path.x[4], torch.randn(path.x[4].shape, generator=torch.Generator().manual_seed(seed)).to(device)
    above, below, tracks = [plots.Panel("the picture", x0.cpu()), plots.Panel(f"noised to step {SEEN}", noised[:1].cpu())], [], []
    print(f"{'':<12}{f'from step {SEEN}':>26}{'from noise':>26}\n{'':<12}" + 2 * f"{'calls':>9}{'dB':>7}{'the least':>10}")
    for name, budget in (("ddpm", None), *((name, 30) for name in FAST)):
        line = f"{name:<12}"
        for x, t in ((noised, SEEN), (start, STEPS)):
            info = sdediff.sample_info(sde, score, x_init=x, method=name, t_start=float(t), seed=seed, record=True,
                                       **({"nfe": budget} if budget else {"steps": t}))
            decibels = metrics.psnr(info.x, x0)
            line += f"{info.nfe:>9}{decibels.mean():>7.1f}{decibels.min():>10.1f}"
            (above if t == SEEN else below).append(plots.Panel(name, info.x[:1].cpu(), f"{info.nfe} calls, {decibels[0]:.1f} dB"))
            if budget is None or (name == FAST[-1] and t == STEPS):
                tracks.append(plots.Track(f"{name}, {info.nfe} calls", info.times, info.trajectory[:, :1].cpu()))
        print(line, flush=True)
    wrong = slipped(betas.float(), score, start)
    decibels = metrics.psnr(wrong, x0)
    print(f"{'the slip':<12}{'':>26}{STEPS:>9}{decibels.mean():>7.1f}{decibels.min():>10.1f}")
    below = [plots.Panel("the slip: 1/alpha", wrong[:1].cpu(), f"{STEPS} calls, {decibels[0]:.1f} dB"),
             plots.Panel("noise", start[:1].cpu()), *below]
    heading = f"One network, trained on one picture: from step {SEEN} (above) and from noise (below)"
    plots.samples([*above, *below], columns=len(above), heading=heading).savefig(out / "denoised.png")
    plots.trajectory(out / "denoising.gif", sde, tracks, x0.cpu(), sheet=(1, 1), frames=36)
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
