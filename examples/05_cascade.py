r"""A cascade: digits of 7x7 pixels from noise, then twice as many pixels each way, 14x14 and 28x28 (Ho et al. 2021).

Three networks: one learns the small pictures, two learn the large picture given the small one, which stands beside x at the large size. A
generator's small pictures are not quite real ones. Hence noise-conditioning augmentation (sec. 4.2): in training the small picture is
disturbed, a = s + w eps with a random w in (0, 0.5), and the network is told w; in sampling a small w hides the first stage's errors.

What is measured: that a large picture is true to the small one it was made from (mean |pool(x) - s|, against the mean noise w sqrt(2/pi)
that it was given), that one small picture has several large ones (their spread), and that they are nearer to real digits than bicubic
enlargement is (MMD to held-out digits). At most eight minutes on two cores; `--quick true` below one; interrupted, it goes on.
"""
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

import sdediff
from sdediff import metrics, nets, plots, training
from sdediff.data import load

MOST, GIVEN = 0.5, 0.1                                  # the strongest augmentation in training; that of sampling
SIDES = (7, 14, 28)


class SuperResolution(nn.Module):
    """A U-Net beside whose x stands a smaller picture, disturbed by noise of a strength that it is told."""

    def __init__(self, side: int, **options) -> None:
        super().__init__()
        self.unet = nets.UNet((1, side, side), context=1, embedding=1, **options)

    def forward(self, x: Tensor, c: Tensor, small: Tensor, strength: Tensor | None = None) -> Tensor:
        """``strength`` (B,): that of the noise which ``small`` has already; None (training): noise of a random strength is added."""
        if strength is None:
            strength = MOST * torch.rand(len(x), device=x.device)
            small = small + strength[:, None, None, None] * torch.randn_like(small)
        return self.unet(x, c, e=strength[:, None], context=interpolate(small, x.shape[2:], mode="bilinear"))


def main(out: Path = Path("runs/cascade"), quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0) -> None:
    """Train the three stages, chain them, measure and draw.

    Args:
        out: folder of pictures and checkpoints.
        quick: small networks and a short training.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of everything.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    data, sde = load("mnist"), sdediff.VPSDE()
    sized = lambda x, side: avg_pool2d(x, 28 // side)
    base = nets.MLP((1, 7, 7), 64 if quick else 256, 3, seed=seed)
    wide = {"width": 8 if quick else 32, "multipliers": (1, 2), "seed": seed}
    stages = [base, SuperResolution(14, **wide), SuperResolution(28, patch=2, **wide)]
    scores = []
    for network, side, steps in zip(stages, SIDES, (300, 80, 80) if quick else (3000, 1200, 1200)):
        score = sdediff.from_network(network.to(device), predicts="v", time_input="lam")
        config = training.TrainingConfig(steps=steps, batch=256 if side == 7 else 64, lr=2e-3, weighting="v", ema=0.99, seed=seed,
                                         checkpoint_every=200)
        small = {} if side == 7 else {"conditions": {"small": sized(data.train, side // 2)}}
        scores.append(training.train(score, sde, sized(data.train, side), config, checkpoint=out / f"stage-{side}.safetensors", resume=True,
                                     **small).score)

    def enlarged(small: Tensor, side: int, seed: int) -> Tensor:
        disturbed = small + GIVEN * torch.randn(small.shape, generator=torch.Generator().manual_seed(seed)).to(small)
        strength = torch.full((len(small),), GIVEN, device=small.device)
        return sdediff.sample(sde, scores[SIDES.index(side)], shape=(len(small), 1, side, side), method="dpm++2m", steps=8 if quick else 20,
                              seed=seed, conditions={"small": disturbed, "strength": strength}).clamp(-1, 1)

    n = 64 if quick else 500
    first = sdediff.sample(sde, scores[0], shape=(n, 1, 7, 7), method="dpm++2m", steps=20, seed=seed).clamp(-1, 1)
    second = enlarged(first, 14, seed + 1)
    third = enlarged(second, 28, seed + 2)
    real, held = sized(data.held_out(n), 7), data.held_out(n).to(device)            # of real small pictures, the truth is known
    again = [enlarged(enlarged(real[:40].to(device), 14, seed + 10 + k), 28, seed + 30 + k) for k in range(4)]

    lines, fresh = [], data.fresh(n).to(device)
    for side, large, small in ((14, second, first), (28, third, second)):
        error = float((avg_pool2d(large, 2) - small).abs().mean())
        given = GIVEN * (2 / torch.pi)**0.5
        lines.append(f"{side // 2}x{side // 2} to {side}x{side}: mean |pool(x) - small| {error:.3f}, of the noise {given:.3f}")
    spread = float(torch.stack(again).std(0).mean())
    lines.append(f"spread of a pixel over 4 enlargements of one 7x7 picture: {spread:.3f}")
    larger = {"the cascade": third, "bicubic from the same 7x7": interpolate(first, (28, 28), mode="bicubic").clamp(-1, 1),
              "real digits": fresh}
    width = metrics.median_bandwidth(held)
    for name, x in larger.items():
        found = metrics.mmd(x, held, bandwidth=width)
        lines.append(f"MMD^2 to held-out digits, {name:<26} {found.value:.4f} ± {found.stderr:.4f}")
    print("\n".join(lines))
    (out / "measured.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    same = lambda x: interpolate(x, (28, 28), mode="nearest").cpu()
    rows = torch.cat([same(x[:12]) for x in (first, second, third, larger["bicubic from the same 7x7"])])
    plots.sheet(rows, (4, 12)).save(out / "cascade.png")
    several = torch.stack([same(real[:8]), *(x[:8].cpu() for x in again), held[:8].cpu()], 1).flatten(0, 1)
    plots.sheet(several, (8, 6), 480).save(out / "several.png")
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
