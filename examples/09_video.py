r"""Video: clips of a moving digit, 8 frames as one tensor, and held-out clips continued from their first frames (Ho et al. 2022).

A digit of 12x12 pixels stands in a frame of 12x16, or moves through it by a pixel a frame, and is thrown back by the walls. A clip (8, 1,
12, 16) is one sample. The U-Net has one set of weights for all frames, and its convolutions see some channels one frame earlier and some
one frame later (Lin et al. 2019), so that motion is part of the law that it learns.

Frames that are given stand beside x (raised by 2; 0 where a frame is not given). In training they are the first 1 to 4, and in three of
ten clips none, so that the same network makes clips from nothing and continues others. There is a second way to continue: the law of whole
clips and the given frames as a measurement of it (inverse.tweedie), as for any known part of a sample.

What is measured against held-out clips: the law of the digit's velocity (sliced W2 of the ways of its centre of mass from frame to frame)
and how a velocity keeps from frame to frame (its autocorrelation), how like one another frames are with the time between them, all beside
other real clips and beside the samples' own frames in random order; and how far continued frames are from the true ones, which two given
frames determine up to the walls, beside holding the last frame.

Eight minutes on two cores; `--quick true` below one; interrupted and given again, it goes on.
"""
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn.functional import avg_pool2d, cosine_similarity

import sdediff
from sdediff import inverse, metrics, nets, operators, plots, training
from sdediff.data import load

FRAMES, DIGIT, ROOM, GIVEN = 8, 12, 4, 3


def clips(digits: Tensor, seed: int) -> Tensor:
    """A clip (n, 8, 1, 12, 16) of each digit (n, 1, 28, 28): a place and a velocity at random, thrown back by the walls."""
    generator = torch.Generator().manual_seed(seed)
    small = avg_pool2d(digits[:, :, 2:26, 2:26], 2)
    clip = digits.new_full((len(digits), FRAMES, 1, DIGIT, DIGIT + ROOM), -1.0)
    place = torch.randint(ROOM + 1, (len(digits),), generator=generator)
    speed = torch.randint(-1, 2, (len(digits),), generator=generator)
    for k in range(FRAMES):
        for i, column in enumerate(place.tolist()):
            clip[i, k, :, :, column:column + DIGIT] = small[i]
        speed = torch.where((place + speed < 0) | (place + speed > ROOM), -speed, speed)
        place = place + speed
    return clip


def given(clip: Tensor, frames: Tensor | int) -> Tensor:
    """What stands beside x where the first ``frames`` of each clip are given."""
    known = torch.arange(FRAMES) < torch.as_tensor(frames).reshape(-1, 1)
    return (clip + 2) * known[..., None, None, None]


def velocity(clip: Tensor) -> Tensor:
    """How the centre of mass moves from frame to frame (n, 7), in pixels to the right."""
    mass = ((clip + 1) / 2).clamp(0, 1).sum((2, 3)) + 1e-6                                  # of each column
    return ((mass * torch.arange(mass.shape[2], dtype=clip.dtype)).sum(2) / mass.sum(2)).diff(dim=1)


def kept(clip: Tensor) -> float:
    """The autocorrelation of the velocity from one frame to the next."""
    v = velocity(clip)
    return float((v[:, 1:] * v[:, :-1]).mean() / v.square().mean())


def likeness(clip: Tensor) -> list[float]:
    """The mean correlation of frames that are 1, 2, 4 and 7 apart."""
    flat = clip.flatten(2) - clip.flatten(2).mean(2, keepdim=True)
    return [float(cosine_similarity(flat[:, k:], flat[:, :-k], dim=2).mean()) for k in (1, 2, 4, 7)]


def main(out: Path = Path("runs/video"), quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0) -> None:
    """Train on clips, sample new ones, continue held-out ones, measure and draw.

    Args:
        out: folder of pictures and the checkpoint.
        quick: a small network and a short training.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of everything.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    data, sde, n = load("mnist"), sdediff.VPSDE(), 200 if quick else 400
    train = torch.cat([clips(data.train, seed + k) for k in range(1 if quick else 8)])
    held, fresh = clips(data.held_out(1000)[:n], seed + 100), clips(data.fresh(1000)[:n], seed + 101)
    shown = given(train, torch.randint(1, 5, (len(train),), generator=torch.Generator().manual_seed(seed)))
    network = nets.UNet(train.shape[1:], 8 if quick else 32, (1, 2, 2), patch=2, context=1, seed=seed).to(device)
    config = training.TrainingConfig(steps=150 if quick else 4000, batch=16, lr=2e-3, weighting="v", ema=0.99, drop=0.3, seed=seed,
                                     checkpoint_every=200)
    score = training.train(sdediff.from_network(network, predicts="v", time_input="lam"), sde, train, config, conditions={"context": shown},
                           null={"context": 0.0}, checkpoint=out / "checkpoint.safetensors", resume=True).score
    x = sdediff.sample(sde, score, shape=held.shape, method="dpm++2m", steps=10 if quick else 30, seed=seed, device=device)
    x = x.clamp(-1, 1).cpu()

    order = torch.stack([torch.randperm(FRAMES, generator=torch.Generator().manual_seed(k)) for k in range(n)])
    shuffled = x[torch.arange(n)[:, None], order]
    lines = [f"{'':<28}{'velocity, sliced W2':>20}{'kept':>7}   frames 1, 2, 4, 7 apart alike"]
    for title, these in (("samples", x), ("real clips, others", fresh), ("samples, frames shuffled", shuffled), ("held-out clips", held)):
        apart = metrics.sliced_w2(velocity(these), velocity(held))
        lines.append(f"{title:<28}{'' if these is held else f'{apart.value:.3f} ± {apart.stderr:.3f}':>20}{kept(these):>7.2f}   "
                     + ", ".join(f"{v:.2f}" for v in likeness(these)))

    few = held[:8 if quick else 32]
    told = sdediff.sample(sde, score, shape=few.shape, method="dpm++2m", steps=10 if quick else 30, seed=seed, device=device,
                          conditions={"context": given(few, GIVEN).to(device)}).clamp(-1, 1).cpu()
    known = (torch.arange(FRAMES) < GIVEN)[:, None, None, None].expand(train.shape[1:])
    seen = operators.Mask(known)
    measured = sdediff.sample(sde, inverse.tweedie(score, seen, std=0.05), shape=few.shape, method="dpm++2m-sde", steps=10 if quick else 60,
                              seed=seed, device=device, conditions={"measurement": seen(few).to(device)}).clamp(-1, 1).cpu()
    rms = lambda a: float((a[:, GIVEN:] - few[:, GIVEN:]).square().mean().sqrt())
    lines.append(f"frames {GIVEN + 1} to {FRAMES} from {GIVEN}, root mean square error: the network told {rms(told):.3f}, the posterior of "
                 f"whole clips {rms(measured):.3f}, the last frame held {rms(few[:, GIVEN - 1:GIVEN].expand_as(few)):.3f}, another clip "
                 f"{rms(fresh[:len(few)]):.3f}")
    print("\n".join(lines))
    (out / "measured.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    frames = lambda clip: clip.flatten(0, 1)
    plots.sheet(frames(x[:8]), (8, FRAMES)).save(out / "clips.png")
    plots.sheet(frames(torch.stack([few[:4], told[:4]], 1).flatten(0, 1)), (8, FRAMES)).save(out / "continued.png")
    plots.film(out / "clips.gif", x[:24], (4, 6))
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
