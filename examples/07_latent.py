r"""Latent diffusion: an autoencoder brings the 784 pixels of a digit to a tenth of the numbers, and the process runs there (Rombach 2022).

Two autoencoders: principal components, which are linear, and a small convolutional one. Their latents are brought to unit variance, a
network learns their score by class, and samples are decoded. The error that the autoencoder makes, on held-out digits, is reported apart
from what the sampler adds: a judge of real digits grades the decoded samples, and decoded real digits beside them, and MMD is measured
against held-out digits for both. With principal components and Gaussian data the latent sampler and the one on pixels are the same, path by
path (tests/test_examples.py).

Nine minutes on two cores; `--quick true` below one; interrupted and given again (to as many threads), it goes on.
"""
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli

import sdediff
from sdediff import metrics, nets, plots, training
from sdediff.data import load


def main(out: Path = Path("runs/latent"), quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0) -> None:
    """Fit two autoencoders, train in their latent spaces, sample, decode, measure and draw.

    Args:
        out: folder of pictures and checkpoints.
        quick: small networks and a short training.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of everything.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    data, sde, n = load("mnist"), sdediff.VPSDE(), 100 if quick else 500
    train, held, fresh, y = data.train.to(device), data.held_out(n), data.fresh(n), torch.arange(n) % 10
    judge = metrics.judge(torch.cat([data.train, data.fresh(data.limit)]), torch.cat([data.labels, data.labels_of("fresh-0", data.limit)]))
    width = metrics.median_bandwidth(held)
    right = lambda x, y: float((judge(x) == y).double().mean())

    convolutional = nets.Autoencoder(data.event, 2, 16 if quick else 32, seed=seed).to(device)
    fitting = training.TrainingConfig(steps=200 if quick else 1500, batch=64, lr=2e-3, ema=0.99, seed=seed, checkpoint_every=200)
    coders = {"principal": nets.Principal(train, 64),
              "convolutional": training.train_autoencoder(convolutional, train, fitting, checkpoint=out / "autoencoder.safetensors",
                                                          resume=True).ema}
    lines = [f"{'':<16}{'numbers':>8}{'error':>9}{'decoded right':>15}{'samples right':>15}{'MMD^2 decoded':>20}{'samples':>20}"
             f"{'seconds':>9}"]
    rows = [held[:10]]
    for name, coder in coders.items():
        with torch.no_grad():
            z = coder.encode(train)
            centre, scale = z.mean(0), z.std()
            back = coder.decode(coder.encode(held.to(device))).clamp(-1, 1).cpu()
        if name == "principal":
            network = nets.MLP(coder.latent, 64 if quick else 320, 3, classes=10, seed=seed)
        else:
            network = nets.UNet(coder.latent, 16 if quick else 64, (1, 2), classes=10, seed=seed)
        config = training.TrainingConfig(steps=200 if quick else 3000, batch=64, lr=2e-3, weighting="v", ema=0.99, seed=seed,
                                         checkpoint_every=200)
        score = training.train(sdediff.from_network(network.to(device), predicts="v", time_input="lam"), sde, (z - centre) / scale, config,
                               conditions={"y": data.labels}, checkpoint=out / f"{name}.safetensors", resume=True).score
        began = time.perf_counter()
        latents = sdediff.sample(sde, score, shape=(n, *coder.latent), method="dpm++2m", steps=10 if quick else 30, seed=seed,
                                 conditions={"y": y.to(device)})
        with torch.no_grad():
            x = coder.decode(latents * scale + centre).clamp(-1, 1).cpu()
        seconds = time.perf_counter() - began
        rows += [back[:10], x[:10]]
        mmd = [metrics.mmd(v, held, bandwidth=width) for v in (coder.decode(coder.encode(fresh.to(device))).detach().clamp(-1, 1).cpu(), x)]
        lines.append(f"{name:<16}{z[0].numel():>8}{float((back - held).square().mean().sqrt()):>9.3f}"
                     f"{right(back, data.labels_of('held-out', n)):>15.1%}{right(x, y):>15.1%}"
                     + "".join(f"{f'{m.value:.4f} ± {m.stderr:.4f}':>20}" for m in mmd) + f"{seconds:>9.1f}")
    floor = metrics.mmd(fresh, held, bandwidth=width)
    lines.append(f"real digits: the judge {right(held, data.labels_of('held-out', n)):.1%}, MMD^2 {floor.value:.4f} ± {floor.stderr:.4f}")
    lines.append("rows of the picture: held-out digits; then, of each autoencoder, the same decoded, and samples")
    print("\n".join(lines))
    (out / "measured.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plots.sheet(torch.cat(rows), (len(rows), 10)).save(out / "latent.png")
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
