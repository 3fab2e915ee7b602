r"""Video: clips of a moving digit as one tensor, 8 frames for channels, and clips continued from their first frames.

A digit of 14x14 pixels moves in a frame of 20x20 at a constant speed of up to 2 pixels a frame each way and is thrown back by the walls.
A clip (8, 20, 20) is one sample: the network sees all frames at once, so that motion is part of the law that it learns (as in Ho et al.
2022, without their factorised attention). Continuation needs no network of its own: given frames are a measurement, the others follow from
the posterior (inverse.tweedie), which is how any known part of a sample is filled in.

What is measured against held-out clips: the law of the digit's velocity from frame to frame (sliced W2 of the ways of its centre of mass,
beside two floors: other real clips, and the same clips with frames in random order), how like one another frames are with the time
between them, and how far continued frames are from the true ones, which three frames determine up to bounces (beside holding the last
frame). Six minutes at most on two cores; `--quick true` below one; interrupted and given again, it goes on.
"""
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn.functional import avg_pool2d

import sdediff
from sdediff import inverse, metrics, nets, operators, plots, training
from sdediff.data import load

FRAMES, SIDE, DIGIT, GIVEN = 8, 20, 14, 3


def clips(digits: Tensor, seed: int) -> Tensor:
    """A clip (n, 8, 20, 20) of each digit (n, 1, 28, 28): a place and a velocity at random, thrown back by the walls."""
    generator = torch.Generator().manual_seed(seed)
    small, room = avg_pool2d(digits, 2), SIDE - DIGIT
    clip = digits.new_full((len(digits), FRAMES, SIDE, SIDE), -1.0)
    place = torch.randint(room + 1, (len(digits), 2), generator=generator)
    speed = torch.randint(-2, 3, (len(digits), 2), generator=generator)
    for k in range(FRAMES):
        for i, (row, column) in enumerate(place.tolist()):
            clip[i, k, row:row + DIGIT, column:column + DIGIT] = small[i, 0]
        place = place + speed
        beyond = (place < 0) | (place > room)
        place = torch.where(place < 0, -place, torch.where(place > room, 2 * room - place, place))
        speed = torch.where(beyond, -speed, speed)
    return clip


def velocity(clip: Tensor) -> Tensor:
    """How the centre of mass moves from frame to frame (n, 14), in pixels."""
    mass = ((clip + 1) / 2).clamp(0, 1) + 1e-6
    at = torch.arange(SIDE, dtype=clip.dtype)
    total = mass.sum((2, 3))
    centre = torch.stack([(mass.sum(3) * at).sum(2), (mass.sum(2) * at).sum(2)], 2) / total[..., None]
    return centre.diff(dim=1).flatten(1)


def likeness(clip: Tensor) -> list[float]:
    """The mean correlation of frames that are 1, 2, 4 and 7 apart."""
    flat = clip.flatten(2) - clip.flatten(2).mean(2, keepdim=True)
    return [float(torch.nn.functional.cosine_similarity(flat[:, k:], flat[:, :-k], dim=2).mean()) for k in (1, 2, 4, 7)]


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
    data, sde, n = load("mnist"), sdediff.VPSDE(), 64 if quick else 400
    train = torch.cat([clips(data.train, seed + k) for k in range(2 if quick else 8)])
    held, fresh = clips(data.held_out(1000)[:n], seed + 100), clips(data.fresh(1000)[:n], seed + 101)
    network = nets.UNet(train.shape[1:], 16 if quick else 48, (1, 2, 2), patch=2, attention=(5,), seed=seed).to(device)
    config = training.TrainingConfig(steps=150 if quick else 2500, batch=64, lr=2e-3, weighting="v", ema=0.99, seed=seed,
                                     checkpoint_every=200)
    score = training.train(sdediff.from_network(network, predicts="v", time_input="lam"), sde, train, config,
                           checkpoint=out / "checkpoint.safetensors", resume=True).score
    x = sdediff.sample(sde, score, shape=held.shape, method="dpm++2m", steps=10 if quick else 30, seed=seed, device=device)
    x = x.clamp(-1, 1).cpu()

    order = torch.stack([torch.randperm(FRAMES, generator=torch.Generator().manual_seed(k)) for k in range(n)])
    shuffled = x.gather(1, order[:, :, None, None].expand_as(x))
    lines = [f"{'':<28}{'velocity, sliced W2':>20}   frames 1, 2, 4, 7 apart alike"]
    for title, these in (("samples", x), ("real clips, others", fresh), ("samples, frames shuffled", shuffled)):
        apart = metrics.sliced_w2(velocity(these), velocity(held))
        lines.append(f"{title:<28}{f'{apart.value:.3f} ± {apart.stderr:.3f}':>20}   " + ", ".join(f"{v:.2f}" for v in likeness(these)))
    lines.append(f"{'held-out clips':<28}{'':>20}   " + ", ".join(f"{v:.2f}" for v in likeness(held)))

    few = held[:8 if quick else 32]
    known = torch.zeros(train.shape[1:], dtype=torch.bool)
    known[:GIVEN] = True
    seen = operators.Mask(known)
    guided = inverse.tweedie(score, seen, std=0.05)
    going = sdediff.sample(sde, guided, shape=few.shape, method="dpm++2m-sde", steps=10 if quick else 60, seed=seed, device=device,
                           conditions={"measurement": seen(few).to(device)}).clamp(-1, 1).cpu()
    rms = lambda a: float((a[:, GIVEN:] - few[:, GIVEN:]).square().mean().sqrt())
    unrelated = clips(data.fresh(1000)[-len(few):], seed + 102)
    lines.append(f"frames {GIVEN + 1} to {FRAMES} from {GIVEN}: root mean square error {rms(going):.3f}; the last frame held "
                 f"{rms(few[:, GIVEN - 1:GIVEN].expand_as(few)):.3f}; another clip {rms(unrelated):.3f}")
    print("\n".join(lines))
    (out / "measured.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    frames = lambda clip: clip.flatten(0, 1)[:, None]
    plots.sheet(frames(x[:8]), (8, FRAMES)).save(out / "clips.png")
    plots.sheet(frames(torch.stack([few[:4], going[:4]], 1).flatten(0, 1)), (8, FRAMES)).save(out / "continued.png")
    plots.film(out / "clips.gif", x[:24], (4, 6))
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
