r"""Text to digit: captions such as "a bold upright seven" steer a U-Net, with an unCLIP prior as an option (Ramesh et al. 2022).

Captions are written from what is measured on the digit itself: its class, its ink (mean brightness, in thirds of its class: thin, regular,
bold) and its slant (the shear of its second moments, in thirds: left-slanted, upright, right-slanted), in one of several wordings that may
leave attributes out. Their encoder is learned along with the network: embedded words, averaged, through two layers. It knows the words
of VOCABULARY and no others: no claim of language understanding. Some combinations of known words are kept out of training.

    p(x | caption)                                                    by default
    p(embedding | caption) p(x | embedding)                           --prior true: a diffusion of the 16 first principal components of a
                                                                      digit, and one of pixels given them

What is measured: how often a judge of real digits finds the digit that was named, for captions seen and unseen; whether ink and slant,
measured on samples, move as they are told. `--quick true` is a small one; interrupted, it goes on.
"""
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import sdediff
from sdediff import guidance, metrics, nets, plots, training
from sdediff.data import load

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
INK, SLANT = ("thin", "regular", "bold"), ("left-slanted", "upright", "right-slanted")
WORDINGS = ("a {ink} {slant} {digit}", "the digit {digit} {ink} and {slant}", "a {ink} {digit}", "a {slant} {digit}", "the digit {digit}")
VOCABULARY = ["", "a", "the", "digit", "and", *DIGITS, *INK, *SLANT]
LENGTH = 7
UNSEEN = {(digit, (digit // 2) % 3, (digit + 1) % 3) for digit in range(10)}             # digit, ink, slant: in no caption of training


def tokens(caption: str) -> Tensor:
    """The numbers of a caption's words (7,), 0 where there is none. ValueError on a word that is not in VOCABULARY."""
    words = caption.split()
    for word in words:
        if word not in VOCABULARY[1:]:
            raise ValueError(f"caption={caption!r}: {word!r} is not among the words that it was trained on: {', '.join(VOCABULARY[1:])}.")
    return torch.tensor([VOCABULARY.index(w) for w in words] + [0] * (LENGTH - len(words)))


def measured(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ink, the mean brightness, and slant, the shear that sets a digit upright (right-slanted: positive), of images (n, 1, 28, 28)."""
    light = ((x + 1) / 2).clamp(0, 1).squeeze(1).double() + 1e-9
    at, total = torch.arange(28, dtype=torch.float64), light.sum((1, 2))
    row, column = (light.sum(2) * at).sum(1) / total, (light.sum(1) * at).sum(1) / total
    up, right = row[:, None, None] - at[:, None], at - column[:, None, None]
    return light.mean((1, 2)), (light * up * right).sum((1, 2)) / (light * up * up).sum((1, 2))


def thirds(v: Tensor, y: Tensor) -> Tensor:
    """0, 1 or 2: the third of its class in which each value lies."""
    out = torch.zeros_like(y)
    for k in range(10):
        out[y == k] = torch.bucketize(v[y == k], torch.quantile(v[y == k], torch.tensor([1 / 3, 2 / 3], dtype=v.dtype)))
    return out


class Reader(nn.Module):
    """What a caption (B, 7) of word numbers says, (B, width)."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words = nn.Embedding(len(VOCABULARY), width, padding_idx=0)
            self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, caption: Tensor) -> Tensor:
        return self.layers(self.words(caption).sum(1) / (caption > 0).sum(1, keepdim=True).clamp(min=1))


class Captioned(nn.Module):
    """A U-Net that is told a caption."""

    def __init__(self, unet: nets.UNet, seed: int) -> None:
        super().__init__()
        self.unet, self.reader = unet, Reader(unet.embedding, seed)

    def forward(self, x: Tensor, c: Tensor, caption: Tensor) -> Tensor:
        return self.unet(x, c, e=self.reader(caption))


class Prior(nn.Module):
    """A network for embeddings x (B, d), that is told a caption."""

    def __init__(self, d: int, width: int, seed: int) -> None:
        super().__init__()
        self.reader, self.mlp = Reader(32, seed), nets.MLP((d + 32,), width, 3, seed=seed)

    def forward(self, x: Tensor, c: Tensor, caption: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.reader(caption)], 1), c)[:, :x.shape[1]]


def main(out: Path = Path("runs/text"), prior: bool = False, quick: bool = False, device: str = "cpu", threads: int = 2, seed: int = 0,
         caption: list[str] = []) -> None:  # noqa: B006
    """Caption real digits, train, sample captions, measure and draw.

    Args:
        out: folder of pictures and checkpoints.
        prior: by way of an embedding of the picture.
        quick: a small network and a short training.
        device: cpu or cuda.
        threads: CPU threads.
        seed: of everything.
        caption: captions of your own, drawn to own.png.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    own = [tokens(text) for text in caption]
    data, sde = load("mnist"), sdediff.VPSDE()
    every, y = data.train, data.labels
    ink, slant = (thirds(v, y) for v in measured(every))
    seen = torch.tensor([row not in UNSEEN for row in zip(y.tolist(), ink.tolist(), slant.tolist())])
    told = lambda i, wording: tokens(wording.format(digit=DIGITS[y[i]], ink=INK[ink[i]], slant=SLANT[slant[i]]))
    captions = torch.stack([told(i, wording) for wording in WORDINGS for i in seen.nonzero().flatten().tolist()])
    pictures = every[seen].repeat(len(WORDINGS), 1, 1, 1)
    nothing = torch.zeros(LENGTH, dtype=torch.long)

    def learned(name: str, network: nn.Module, x: Tensor, steps: int, **given: Tensor):
        config = training.TrainingConfig(steps=150 if quick else steps, batch=64, lr=2e-3, weighting="v", ema=0.99, drop=0.1, seed=seed,
                                         checkpoint_every=200)
        null = {k: nothing if k == "caption" else 0.0 for k in given}
        return training.train(sdediff.from_network(network.to(device), predicts="v", time_input="lam"), sde, x, config, conditions=given,
                              null=null, checkpoint=out / f"{name}.safetensors", resume=True).score

    def sampled(score, null: Tensor, name: str, value: Tensor, shape: tuple[int, ...], scale: float) -> Tensor:
        null = null.to(device).expand(len(value), *null.shape)
        return sdediff.sample(sde, guidance.classifier_free(score, scale, null={name: null}), shape=(len(value), *shape),
                              method="dpm++2m", steps=10 if quick else 20, seed=seed, conditions={name: value.to(device)})

    unet = nets.UNet((1, 28, 28), 8 if quick else 32, (1, 2, 2), patch=2, embedding=16 if prior else 64, seed=seed)
    if prior:
        coder = nets.Principal(every, 16)
        codes = coder.encode(pictures)
        scale = codes.std(0)
        embed = learned("prior", Prior(16, 64 if quick else 256, seed), codes / scale, 3000, caption=captions)
        decode = learned("decoder", unet, pictures, 2500, e=codes / scale)
        drawn = lambda asked, w: sampled(decode, torch.zeros(16), "e", sampled(embed, nothing, "caption", asked, (16,), w),
                                         (1, 28, 28), 1.0)
    else:
        score = learned("network", Captioned(unet, seed), pictures, 2500, caption=captions)
        drawn = lambda asked, w: sampled(score, nothing, "caption", asked, (1, 28, 28), w)

    judge = metrics.judge(torch.cat([every, data.fresh(data.limit)]), torch.cat([y, data.labels_of("fresh-0", data.limit)]))
    each = 1 if quick else 5
    grid = [(d, i, s) for d in range(10) for i in range(3) for s in range(3)] * each
    asked = torch.stack([tokens(WORDINGS[0].format(digit=DIGITS[d], ink=INK[i], slant=SLANT[s])) for d, i, s in grid])
    digit, told_ink, told_slant = torch.tensor(grid).T
    new = torch.tensor([row in UNSEEN for row in grid])
    lines = []
    for w in (1.0, 2.0):
        x = drawn(asked, w).clamp(-1, 1).cpu()
        right = (judge(x) == digit).double()
        shades, shears = measured(x)
        lines.append(f"guidance {w:g}: the digit that was named {right[~new].mean():.1%}, in unseen combinations of words "
                     f"{right[new].mean():.1%}")
        for name, values, said in (("ink", shades, told_ink), ("slant", shears, told_slant)):
            words = INK if name == "ink" else SLANT
            means = [float(values[said == k].mean()) for k in range(3)]
            fresh = [float(values[(said == k) & new].mean()) for k in range(3)]
            lines.append(f"    {name}: " + ", ".join(f"{word} {m:+.3f} (unseen {u:+.3f})" for word, m, u in zip(words, means, fresh)))
    real = [(v[t == k].mean().item()) for v, t in zip(measured(every), (ink, slant)) for k in range(3)]
    lines.append("real digits: " + ", ".join(f"{word} {m:+.3f}" for word, m in zip((*INK, *SLANT), real)))
    print("\n".join(lines))
    (out / "measured.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = {row: x[k] for k, row in enumerate(grid[:90])}
    plots.sheet(torch.stack([table[d, i, s] for i in range(3) for s in range(3) for d in range(10)]), (9, 10)).save(out / "captions.png")
    if own:
        plots.sheet(drawn(torch.stack(own).repeat_interleave(8, 0), 2.0).cpu(), (len(own), 8)).save(out / "own.png")
    print(f"{out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


if __name__ == "__main__":
    auto_cli(main)
