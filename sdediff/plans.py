"""What a command would do, in words: `--dry-run`. Everything is checked that can be checked, and nothing is written or drawn."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import bench, runs, sampling, training, tuned
from .chunks import Chunks
from .contracts import integer
from .data import Dataset

PICTURES = "samples.png, forward.png, score.png, trajectory.gif"


def train(job: runs.Job, out: Path, dataset: Dataset, overwrite: bool = False) -> list[str]:
    """Of `sdediff train`, and the first part of `sdediff compare`."""
    network = job.score(dataset).network
    parameters = sum(p.numel() for p in network.parameters())                                    # type: ignore[attr-defined]
    t, path, done = job.training, out / runs.CHECKPOINT, 0
    lines = [f"start '{out}' again, and lose the training that is there"] if overwrite and path.is_file() else []
    if path.is_file() and not overwrite:
        done = training.load_checkpoint(path).step
    todo = f"train {t.steps} steps of {t.batch} samples" if not done else \
        f"go on from step {done} of {t.steps}" if done < t.steps else f"keep the training of {done} steps that is there"
    return [*lines, f"{todo}: {dataset.name}, {len(dataset.train)} samples of shape {dataset.event}; {type(network).__name__} "
            f"of {parameters} parameters; {type(job.sde).__name__}",
            f"write {runs.CONFIG}, {runs.CHECKPOINT} (every {t.checkpoint_every} steps) in '{out}'"]


def compare(job: runs.Job, out: Path, dataset: Dataset, entries: Sequence[runs.Entry], n: int, *, reference: bool, pictures: bool,
            overwrite: bool) -> list[str]:
    """Of `sdediff compare`."""
    n, score = min(n, dataset.limit or n), job.score(dataset)
    drawn = [f"draw {n} samples by {entry.label}: {_run(entry, job.sde, score)}" for entry in entries]
    if reference:
        drawn.append(f"draw {n} samples {runs.REFERENCES} times by {runs.REFERENCE}, the reference")
    return [*train(job, out, dataset, overwrite), *drawn, f"write {runs.METRICS}{', ' + PICTURES if pictures else ''} in '{out}'"]


def sample(path: Path, entry: runs.Entry, checkpoint: training.Checkpoint, score: Any, shape: tuple[int, ...], drawn: Chunks | None,
           overwrite: bool) -> list[str]:
    """Of `sdediff sample`."""
    lines = [f"draw {shape[0]} samples of shape {shape[1:]} by {entry.label}: {_run(entry, checkpoint.sde, score)}"]
    if drawn is not None:
        done = drawn.done(path) if path.suffix == ".npy" and not overwrite else 0
        lines.append(f"draw them in {len(drawn)} chunks of {drawn.chunk}" + (f", of which {done} are there already" if done else ""))
    return [*lines, f"write '{path}'" + (", in place of the one that is there" if path.exists() else "")]


def tune(run: Path, budgets: Sequence[int], *, trajectories: int, iterations: int, starts: int, overwrite: bool) -> list[str]:
    """Of `sdediff tune`."""
    runs.read(run)
    kept = tuned.read(run / runs.TUNED) if (run / runs.TUNED).is_file() and not overwrite else {}
    lines = []
    for nfe in sorted({integer("nfe", nfe, 1) for nfe in budgets}):
        found = tuned.best(kept, nfe)
        lines.append(f"keep {found.label} for {nfe} calls, which is there" if found else
                     f"tune a method for {nfe} calls: {starts} starts of at most {iterations} iterations on {trajectories} trajectories, "
                     f"and {2 * trajectories} more to choose and to tell")
    return [*lines, f"write {runs.TUNED}, tuned.png in '{run}'"]


def study(wanted: bench.Study, out: Path, jobs: int) -> list[str]:
    """Of `sdediff bench`."""
    from .bench import cells
    from .bench.study import claimed
    folder, found = claimed(out), wanted.cells()
    missing = [cell for cell in found if cells.kept(cells.identify(cell), folder) is None]
    calls = sum(cell.nfe or 0 for cell in missing)
    free = sum(cell.nfe is None for cell in missing)
    trained = len(wanted.processes) * len(wanted.targets) if wanted.train else 0
    lines = [f"train {trained} networks, one for each process and target, but for those there; their cells come on top"] if trained else []
    return [*lines, f"run {len(missing)} of {len(found)} cells of {wanted.n} samples by {jobs} process{'es' if jobs > 1 else ''}: {calls} "
            "network calls" + (f", and those of {free} cells that choose their steps" if free else ""),
            f"write the cells, results.csv, study.json, index.html, README.md, figures in '{out}'"]


def budget(run: str, methods: Sequence[str], out: Path) -> list[str]:
    """Of `sdediff bench --budget`."""
    from .bench.study import claimed
    claimed(out)
    _, checkpoint, score = runs.read(Path(run))
    entries = [runs.Entry.parse(text, steps=None if "steps=" in text or "nfe=" in text else 20) for text in methods]
    each = "8 repeats of 2000 samples, three runs and two of a fine reference each"
    return [*(f"account for the error of {entry.label}: {_run(entry, checkpoint.sde, score)}, {each}" for entry in entries),
            f"write budget.json, index.html, README.md, figures in '{out}'"]


def _run(entry: runs.Entry, sde: Any, score: Any) -> str:
    """Steps and calls of a method."""
    method, spent = entry.on(sde, score), entry.budget
    times = sampling.times_of(method, sde, spent.get("steps"), spent.get("nfe"), spent.get("grid"), None, None, score)
    if method.solver.adaptive:
        return "as many network calls as its tolerance takes"
    return f"{len(times) - 1} steps, {sampling.count_calls(method, sde, times, score)} network calls"
