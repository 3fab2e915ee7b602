r"""Digits from a sketch and a class: an outline stands beside x, a label says which digit (in small what Gafni et al. 2022 do with scenes).

The sketch is the outline of a digit, where the length of Sobel's gradient exceeds a half of its maximum. Both conditions are dropped
together in one of ten samples, so that both can be amplified (classifier-free guidance).

What is measured, on held-out sketches: the correlation of the outlines of samples with the sketch they were given, and with those of other
digits of the same class; and by a judge who saw real digits alone, whether they are of the class that was asked for. Then conflicts: the
outline of one digit, the class of another; the numbers say which wins, at several scales of guidance.

Six minutes on two cores; `--quick true` below one; interrupted and given again, it goes on.
"""
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn.functional import conv2d

import sdediff
from sdediff import guidance, metrics, nets, plots, training
from sdediff.data import load


def outline(x: Tensor) -> Tensor:
    """The sketch (B, 1, H, W) of images in [-1, 1]: 1 on outlines, else 0."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=x.device)
    slope = conv2d(x, torch.stack([across, across.T])[:, None], padding=1).square().sum(1, keepdim=True).sqrt()
    return (slope > 0.5 * slope.amax((1, 2, 3), keepdim=True)).to(x)


def correlation(a: Tensor, b: Tensor) -> float:
    """The mean over pairs of images of the correlation of their pixels."""
    a, b = ((v.flatten(1) - v.flatten(1).mean(1, keepdim=True)) for v in (a.cpu(), b.cpu()))
    return float(torch.nn.functional.cosine_similarity(a, b).mean())


def main(out: Path = Path("runs/sketch"), quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0) -> None:
    """Train on outlines and classes, sample from held-out outlines, measure and draw.

    Args:
        out: folder of pictures and the checkpoint.
        quick: a small network and a short training.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of everything.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    data, sde, n = load("mnist"), sdediff.VPSDE(), 100 if quick else 500
    network = nets.UNet((1, 28, 28), 8 if quick else 32, (1, 2, 2), patch=2, classes=10, context=1, seed=seed).to(device)
    config = training.TrainingConfig(steps=150 if quick else 2000, batch=64, lr=2e-3, weighting="v", ema=0.99, drop=0.1, seed=seed,
                                     checkpoint_every=200)
    score = training.train(sdediff.from_network(network, predicts="v", time_input="lam"), sde, data.train, config,
                           conditions={"y": data.labels, "context": outline(data.train)}, null={"y": 10, "context": 0.0},
                           checkpoint=out / "checkpoint.safetensors", resume=True).score
    judge = metrics.judge(torch.cat([data.train, data.fresh(data.limit)]), torch.cat([data.labels, data.labels_of("fresh-0", data.limit)]))

    def drawn(sketches: Tensor, y: Tensor, scale: float) -> Tensor:
        guided = score if scale == 1 else guidance.classifier_free(score, scale, null={"y": 10, "context": torch.zeros_like(sketches[:1])})
        return sdediff.sample(sde, guided, shape=(len(y), 1, 28, 28), method="dpm++2m", steps=10 if quick else 20, seed=seed,
                              conditions={"y": y.to(device), "context": sketches.to(device)}).clamp(-1, 1).cpu()

    held, y = data.held_out(n), data.labels_of("held-out", n)
    sketches = outline(held)
    order = torch.argsort(y, stable=True)
    other = torch.empty_like(order)
    other[order] = order.roll(1)                            # another digit, of the same class but for ten
    wrong = (y + 1 + torch.arange(n) % 9) % 10              # a class that is not the sketch's
    lines = [f"{'':<24}{'outline':>10}{'of another':>12}{'class':>9}{'of the sketch':>15}"]
    rows = [held[:10], sketches[:10] * 2 - 1]
    for title, given, scale in (("as sketched", y, 1.0), ("as sketched", y, 2.0), ("in conflict", wrong, 1.0), ("in conflict", wrong, 3.0)):
        x = drawn(sketches, given, scale)
        said, edges = judge(x), outline(x)
        asked, seen = (float((said == k).double().mean()) for k in (given, y))
        own, theirs = correlation(edges, sketches), correlation(edges, sketches[other])
        lines.append(f"{f'{title}, guidance {scale:g}':<24}{own:>10.3f}{theirs:>12.3f}{asked:>9.1%}{seen:>15.1%}")
        rows.append(x[:10])
    lines.append(f"the judge on held-out digits: {float((judge(held) == y).double().mean()):.1%}")
    lines.append("first row of the picture: digits; second: their sketches; then as listed; classes in conflict "
                 + " ".join(map(str, wrong[:10].tolist())))
    print("\n".join(lines))
    (out / "measured.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plots.sheet(torch.cat(rows), (len(rows), 10)).save(out / "sketches.png")
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
