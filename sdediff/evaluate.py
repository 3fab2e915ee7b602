r"""What `sdediff likelihood`, `sdediff interpolate`, `sdediff inpaint` and `sdediff tune` do with a trained run.

*Likelihood.* Held-out data are noised to the clean end t_end, z = alpha x + sigma eps, and everything is said of the law of z: its log
density under the probability flow; the bound on it of the reverse SDE; the law's own, for a toy, whose exact density the run was trained
on: the mean difference from the flow is the Kullback-Leibler divergence of the model. Flow and SDE have one law only for an exact score, so
that the bound, which is the SDE's, may lie on either side of the flow where the network is wrong.

*Bits.* Of data on a lattice, either put uniformly on their bins as the run was trained (``training.dequantise``), or with the noise at
t_end alone: in both cases log P(k) >= E[log p(z) - log r(z)], r(z) = sum_k q(z|k) (``likelihood``).
"""
from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import contracts, files, inverse, latent, likelihood, metrics, operators, plots, runs, sampling, targets, tuned, tuning
from .contracts import MOST, choice, device_of, flags, instance, integer, known, real, sequence, shape, state
from .data import Dataset
from .likelihood import Bins, bits_per_dim
from .recipes import methods
from .sde import NoiseLevel
from .tuned import Tuned

FILE, PICTURE = "likelihood.json", "interpolation.png"
PARTS = {"upper": (slice(None, 0.5), slice(None)), "lower": (slice(0.5, None), slice(None)), "left": (slice(None), slice(None, 0.5)),
         "right": (slice(None), slice(0.5, None))}


@dataclass(frozen=True)
class Row:
    """A line of the table: means over the samples, each with its standard error; bits per dimension."""

    label: str
    nats: float
    nats_stderr: float
    bits: float
    bits_stderr: float

    def line(self) -> str:
        """A line of the table."""
        nats, bits = (f"{v:9.4f} ± {e:.4f}" for v, e in ((self.nats, self.nats_stderr), (self.bits, self.bits_stderr)))
        return f"{self.label:<22}{nats:<24}{bits}"


def log_reference(bins: Bins, z: Tensor, level: NoiseLevel, dequantised: bool) -> Tensor:
    """log sum_k q(z|k), (B,): the densities of all levels at z, noised to the level, with or without uniform noise on their bins."""
    instance("bins", bins, Bins, "sdediff.Bins()"), instance("level", level, NoiseLevel, "a level such as sde.at(0.01)")
    flags(dequantised=dequantised)
    z, centres = state("z", z).double()[..., None], bins.centres.to(z.device)
    if dequantised:                             # what q(z|k), a difference of normal distribution functions, sums up to
        ends = [torch.special.ndtr((z[..., 0] - level.alpha * edge) / level.sigma) for edge in (bins.low, bins.high)]
        each = torch.log((ends[0] - ends[1]).clamp_min(1e-300) / (level.alpha * bins.width))
    else:
        each = torch.logsumexp(-0.5 * ((z - level.alpha * centres) / level.sigma)**2, -1) - math.log(level.sigma * math.sqrt(2 * math.pi))
    return each.reshape(len(each), -1).sum(1)


def measure(run: Path, entry: runs.Entry, n: int, *, divergence: str = "exact", probes: int | None = None, draws: int = 64,
            refine: bool = True, t_end: float | None = None, seed: int = 0, progress: bool = False) -> dict[str, Any]:
    """The likelihood of n held-out samples of a run's data (fewer where there are fewer), as a document; ``rows`` are its table. Raises
    what ``log_prob`` and ``runs.read`` raise."""
    run, n = _asked(run, entry, seed), integer("n", n, 2)
    integer("draws", draws, 4), choice("divergence", divergence, likelihood.DIVERGENCES)
    flags(refine=refine, progress=progress)
    if probes is not None:
        integer("probes", probes, 1)
    if t_end is not None:
        real("t_end", t_end, 0.0)
    config, checkpoint, score = runs.read(run)
    dataset, sde = runs.data_of(config, checkpoint), checkpoint.sde
    n = min(n, dataset.limit or n)
    if t_end is not None:
        real("t_end", t_end, 0.0, sde.t_max, high_open=True)
    level = sde.at((1.0 if sde.knots else sde.t_min) if t_end is None else t_end)
    x, bins, width = dataset.held_out(n), _bins(dataset), checkpoint.config.dequantise
    if width and bins is not None:
        x = likelihood.dequantise(((x.double() - bins.low) / bins.width - 0.5).round(), bins, seed=seed).to(x)
    z = latent.renoise(sde, x, level.t, seed=seed + 1)
    method = entry.on(sde, score, up=True, t_end=level.t)
    budget = {} if method.solver.adaptive else entry.budget
    found = likelihood.log_prob(sde, score, z, method=method, divergence=divergence, probes=probes, refine=refine, t_end=level.t,
                                seed=None if divergence == "exact" else seed, progress=progress, **budget)
    bound = likelihood.elbo(sde, score, x, draws=draws, t_end=level.t, seed=seed)
    d, reference = bound.d, 0.0 if bins is None else log_reference(bins, z, level, width > 0)
    flow, sides = found.value.double(), {}
    sides[f"flow, {entry.label}"], sides["SDE, lower bound"] = flow, bound.value.double()
    if sde.knots and level.t == round(level.t):
        sides["chain, lower bound"] = likelihood.elbo(sde, score, x, draws=draws, t_end=level.t, seed=seed, chain=True).value.double()
    if dataset.target is not None:
        sides["the exact law"] = dataset.target.log_prob(z.double(), level)
    rows, gaps = [], {label: _mean(flow - nats) for label, nats in list(sides.items())[1:]}
    for label, nats in sides.items():
        bits = bits_per_dim(nats - reference, d)
        rows.append(Row(label, *_mean(nats), *_mean(bits)))
    error = None if found.error is None else _mean(found.error.double())[0]
    return {"rows": [asdict(row) for row in rows], "gaps": gaps, "n": n, "d": d, "seed": seed, "t_end": level.t, "sigma_end": level.sigma,
            "bits": "of the density" if bins is None else f"of the data, {bins.levels} levels, "
            + ("uniform noise on their bins" if width else "the noise at t_end alone"),
            "probes_stderr": _mean(found.stderr.double())[0] if divergence != "exact" else 0.0, "refinement": error,
            "units": {"log_scale": float(dataset.scale.log().sum()) * (1 if dataset.scale.ndim else d)},
            "flow": found.explain, "bound": bound.explain, "versions": runs.versions(),
            "samples": {"flow": flow.tolist(), "flow_stderr": found.stderr.tolist(), "bound": bound.value.tolist(),
                        "bound_stderr": bound.stderr.tolist()}}


def _measured(document: Any) -> None:
    if "rows" not in instance("document", document, dict, "a document of evaluate.measure"):
        raise ValueError(f"document={contracts.shown(document)}: expected a document of evaluate.measure, with its rows.")


def _asked(run: Any, entry: Any, seed: Any) -> Path:
    """A run's folder, what is drawn from it, and its seed."""
    instance("entry", entry, runs.Entry, "a method as runs.Entry.parse('heun:steps=30') reads it"), integer("seed", seed, 0)
    return files.named("run", run)


def _bins(dataset: Dataset) -> Bins | None:
    return None if dataset.bins is None else Bins(*dataset.bins)


def _mean(v: Tensor) -> tuple[float, float]:
    return v.mean().item(), (v.std() / math.sqrt(len(v))).item()


def report(document: dict[str, Any]) -> str:
    """The table of a document of ``measure``, and what it says."""
    _measured(document)
    lines = [f"{'':<22}{'nats':>9}{'':<15}{'bits/dim':>9}", *(Row(**row).line() for row in document["rows"])]
    lines.append(f"{document['n']} held-out samples of {document['d']} coordinates, noised to t={document['t_end']:.4g} (sigma "
                 f"{document['sigma_end']:.3g}); bits {document['bits']}")
    lines += [f"flow less {label}: {nats:.4f} ± {stderr:.4f} nats, sample by sample" for label, (nats, stderr) in document["gaps"].items()]
    if document["probes_stderr"]:
        lines.append(f"standard error of one sample's flow from its probes: {document['probes_stderr']:.2g} nats")
    if document["refinement"] is not None:
        lines.append(f"refining the solver changed a sample by {document['refinement']:.2g} nats on average")
    if document["units"]["log_scale"]:
        lines.append(f"nats are in standardised coordinates; in the data's own subtract {document['units']['log_scale']:.4f}")
    return "\n".join(lines)


def write(run: Path, document: dict[str, Any]) -> Path:
    """The document in the run's folder."""
    run = files.named("run", run)
    _measured(document)
    files.write(run / FILE, json.dumps(document, indent=1) + "\n")
    return run / FILE


def interpolate(run: Path, entry: runs.Entry, n: int | None, points: int, *, seed: int = 0) -> tuple[Path, float]:
    """A picture of n (None: 5, or as many as there are) interpolations between pairs of held-out samples, in the run's folder: its path,
    and the median error of the round trip of the ends relative to them. Raises what ``interpolate`` and ``runs.read`` raise."""
    run, points = _asked(run, entry, seed), integer("points", points, 2)
    if n is not None:
        integer("n", n, 1)
    config, checkpoint, score = runs.read(run)
    dataset, sde = runs.data_of(config, checkpoint), checkpoint.sde
    most = dataset.limit and dataset.limit // 2
    n = integer("n", min(5, most or 5) if n is None else n, 1, most)
    if len(dataset.event) == 1 and dataset.event[0] < 2:
        raise ValueError(f"run='{run}': its data have one coordinate; expected points of two or more, or images.")
    pool = dataset.held_out(min(dataset.limit or 4000, 4000))
    chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(integer("seed", seed, 0)))[:2 * n]
    ends = pool[chosen]
    # the first time of the flow where a process ends at sigma = 0, from where no eps is known
    budget = entry.budget | ({"t_end": 1.0} if sde.knots else {})
    method = entry.on(sde, score, up=True, t_end=budget.get("t_end"))
    paths = latent.interpolate(sde, score, ends[:n], ends[n:], points=points, method=method, **budget)
    back = torch.cat([paths[0], paths[-1]])
    rms = lambda v: v.reshape(len(v), -1).square().mean(1).sqrt().median().item()
    figure = plots.interpolation(paths, pool, "latent arcs between held-out samples")
    runs.picture(figure, run / PICTURE)
    return run / PICTURE, rms(back - ends) / rms(ends)


def measurement(text: str, event: Sequence[int], seed: int = 0) -> operators.Operator:
    """A linear operator as a command line spells it, on events of a shape: of images "upper", "lower", "left", "right" (the half that is
    known), "outside" (all but the middle), "blur:STD", "mean:FACTOR"; of points coordinates "1,3", counted from 1; "random:SHARE" of
    either. Raises ValueError on anything else."""
    kind, _, value = contracts.text("measured", text, "1").partition(":")
    event = shape("event", event)
    integer("seed", seed, 0)
    image = len(event) == 3
    expected = ("upper, lower, left, right, outside, random:SHARE, blur:STD or mean:FACTOR" if image else
                "coordinates such as 1 or 1,3, or random:SHARE")
    known = torch.zeros(tuple(event), dtype=torch.bool)
    try:
        if value and kind not in ("random", "blur", "mean"):
            raise ValueError(f"{kind!r} takes no value")
        if kind == "random":
            known = torch.rand(*event, generator=torch.Generator().manual_seed(seed)) < real("SHARE", float(value), 0.0, 1.0, low_open=True)
        elif image and kind in PARTS:
            cut = [slice(*(None if v is None else int(v * n) for v in (part.start, part.stop))) for part, n in zip(PARTS[kind], event[1:])]
            known[:, cut[0], cut[1]] = True
        elif image and kind == "outside":
            known[:] = True
            known[:, event[1] // 4:-(event[1] // 4) or None, event[2] // 4:-(event[2] // 4) or None] = False
        elif image and kind == "blur":
            return operators.Blur(tuple(event), float(value))
        elif image and kind == "mean":
            return operators.Downsample(tuple(event), int(value))
        elif not image:
            for part in text.split(","):
                known[integer("coordinate", int(part), 1, event[0]) - 1] = True
        else:
            raise ValueError("no such kind")
        return operators.Mask(known)
    except ValueError as error:
        raise ValueError(f"measured={text!r} ({str(error).rstrip('.')}); expected {expected}.") from None


@dataclass(frozen=True)
class Inpainted:
    """What `sdediff inpaint` made: its files; ``agreement``, the root mean square of (A x - y)/std, 1 where the posterior fits its noise;
    network calls; the least effective sample size of a cloud, of smc; sliced W2 to the exact posterior and its floor, for a toy."""

    picture: Path
    samples: Path
    agreement: float
    nfe: int
    ess: float | None
    distance: float | None
    floor: float | None

    def __str__(self) -> str:
        parts = [f"{self.nfe} network calls", f"|A x - y|/std {self.agreement:.2f}"]
        parts += [f"least effective sample size {self.ess:.0f}"] if self.ess is not None else []
        parts += [f"sliced W2 to the exact posterior {self.distance:.3f} (floor {self.floor:.3f})"] if self.distance is not None else []
        return f"{self.picture}, {self.samples}: " + "; ".join(parts)


def inpaint(run: Path, measured: str | None, posterior: str, *, method: str = "dpm++2m-sde", steps: int | None = None,
            nfe: int | None = None, std: float = 0.05, n: int = 6, draws: int = 64, seed: int = 0, overwrite: bool = False,
            progress: bool = False, device: torch.device | str = "cpu") -> Inpainted:
    """Measures n held-out samples (``measurement``, by default "upper" of images and "1" of points; noise ``std``, in the network's units)
    and draws from their posteriors: inpaint.png and inpaint.npy (n, draws, *D) in the run's folder, in the data's units. ``posterior``:
    NAME or NAME:KEY=VALUE,... of ``inverse.GUIDANCES``, sampled by ``method``, or of a method on the state. Raises FileExistsError where
    inpaint.npy is there, and what ``inverse.observe`` and ``sample`` raise."""
    import numpy as np
    run, device = files.named("run", run), device_of("device", device)
    integer("n", n, 1), integer("draws", draws, 1), integer("seed", seed, 0), real("std", std, 0.0, low_open=True)
    flags(overwrite=overwrite, progress=progress)
    contracts.text("posterior", posterior, "pigdm"), contracts.text("method", method, "dpm++2m-sde")
    if measured is not None:
        contracts.text("measured", measured, "upper")
    for name, value in (("steps", steps), ("nfe", nfe)):
        if value is not None:
            integer(name, value, 1, MOST)
    choice("posterior", runs.spelled(posterior)[0], [*inverse.GUIDANCES, *methods(observing=True)])
    choice("method", runs.spelled(method)[0], methods())
    config, checkpoint, score = runs.read(run)
    dataset, sde = runs.data_of(config, checkpoint), checkpoint.sde
    n = integer("n", n, 1, dataset.limit)
    picture, path = run / "inpaint.png", run / "inpaint.npy"
    name, options = runs.spelled(posterior)
    measured = measured or ("upper" if dataset.is_image else "1")
    operator = measurement(measured, dataset.event, seed)
    score = replace(score, network=score.network.to(device))                                # type: ignore[attr-defined]
    if name in inverse.GUIDANCES:
        seen: Any = inverse.GUIDANCES[name](score, operator, std, **options)
        entry = runs.Entry.parse(method, steps=steps, nfe=nfe)
    else:
        seen = inverse.observe(score, operator, std)
        said = f"{posterior}{',' if options else ':'}particles={draws}" if name == "smc" and "particles" not in options else posterior
        entry = runs.Entry.parse(said, steps=steps, nfe=nfe)
    if path.exists() and not overwrite:
        raise FileExistsError(f"out='{path}' exists; --overwrite replaces it.")
    generator = torch.Generator().manual_seed(seed)
    pool = dataset.held_out(min(dataset.limit or 4000, 4000))
    truth = pool[torch.randperm(len(pool), generator=generator)[:n]]
    y = operator(truth) + std * torch.randn(n, *operator.measured, generator=generator)
    info = sampling.sample_info(sde, seen, shape=(n * draws, *dataset.event), method=entry.on(sde, seen), seed=seed, progress=progress,
                                conditions={"measurement": y.repeat_interleave(draws, 0).to(device)}, **entry.budget)
    x = info.x.cpu().reshape(n, draws, *dataset.event)
    off = (operator(x.flatten(0, 1)) - y.repeat_interleave(draws, 0)) / std
    ess = info.diagnostics.get("ess")
    distance = floor = None
    if isinstance(dataset.target, targets.GaussianMixture):             # a toy's units are the network's
        exact = [dataset.target.given(operator, one, std) for one in y]
        fresh = [[p.sample(draws, seed=seed + 1 + k, dtype=x.dtype) for k in range(2)] for p in exact]
        distance = sum(metrics.sliced_w2(a, b).value for a, (b, _) in zip(x, fresh)) / n if draws > 20 else None
        floor = sum(metrics.sliced_w2(a, b).value for a, b in fresh) / n if draws > 20 else None
    restore = dataset.restore
    drawn = torch.stack([restore(v) for v in x])
    runs.picture(plots.posteriors(restore(truth), restore(operator.pinv(y)), drawn, restore(pool),
                                  f"measured: {measured}; posterior: {posterior}"), picture)
    files.write(path, lambda file: np.save(file, drawn.numpy()))
    return Inpainted(picture, path, float(off.square().mean().sqrt()), info.nfe, None if ess is None else float(ess.min()), distance, floor)


_SETTINGS = {name: p.default for name, p in inspect.signature(tuning.tune).parameters.items() if name in (
    "what", "stochastic", "trajectories", "iterations", "starts", "seed", "rtol", "conditions", "t_start", "t_end")}


def tune(run: Path, budgets: Sequence[int], *, method: str = "auto", overwrite: bool = False, progress: bool = False,
         device: torch.device | str = "cpu", **settings: Any) -> Iterator[Tuned]:
    """Tunes a method for each budget of network calls on the run's training data, the smallest first, each a start for the next; yields
    them. They are kept in the run's folder one by one, so that an interrupted line goes on when it is given again; budgets that are there
    already are yielded as they are, unless ``overwrite``. Last, a picture of grids and gains (``tuned.png``). ``settings``: of
    ``tuning.tune``, which says what is raised."""
    run, device = files.named("run", run), device_of("device", device)
    budgets = [integer("nfe", nfe, 1, MOST) for nfe in sequence("budgets", budgets, "such as [5, 10, 20]")]
    flags(overwrite=overwrite, progress=progress)
    choice("method", runs.spelled(contracts.text("method", method, "auto"))[0], ["auto", *methods()])
    known("evaluate.tune", settings, _SETTINGS)
    config, checkpoint, score = runs.read(run)
    data = runs.data_of(config, checkpoint).train.to(device)
    score = replace(score, network=score.network.to(device))                                 # type: ignore[attr-defined]
    kept: dict[int, Tuned] = {}
    with contextlib.suppress(*([ValueError] if overwrite else [])):          # a file that cannot be read is what --overwrite is for
        kept = tuned.read(run / runs.TUNED) if (run / runs.TUNED).is_file() else {}
    asked = method != "auto" or settings.get("what", "grid+coefficients") != "grid+coefficients"
    for nfe in sorted(set(budgets)):
        found = None if overwrite else tuned.best(kept, nfe)
        if found is not None and (asked or found.stochastic != settings.get("stochastic", False)):
            raise ValueError(f"nfe={nfe}: '{run / runs.TUNED}' has {found.label} for it; expected --overwrite to tune another, or a line "
                             "without --method, --what and --stochastic to keep it.")
        if found is None:
            near = sorted((m for m in kept.values() if m.calls < nfe and not m.stochastic), key=lambda m: m.calls)[-1:]
            kept = {calls: m for calls, m in kept.items() if not m.fits(nfe)}
            found = tuning.tune(method, checkpoint.sde, score, nfe=nfe, data=data, near=near, progress=progress, **settings)
            kept[found.calls] = found
            tuned.write(run / runs.TUNED, kept)
        yield found
    runs.picture(plots.tuned(checkpoint.sde, kept, "path errors on held-out starts"), run / "tuned.png")
