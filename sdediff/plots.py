r"""The pictures of a run: samples side by side, the way from noise to data, the way from data to noise, and the learned field.

Each function returns a matplotlib ``Figure`` (``trajectory`` writes its GIF) and leaves matplotlib's global state alone. Points of two
or more coordinates are drawn in their first two, one coordinate as a histogram, images as sheets. Apart from ``samples``, which speaks
the user's units, pictures are drawn in the network's, and states as x_t / sqrt(alpha_t^2 + sigma_t^2): their variance is then about 1
at every time of every process. Noise levels are spaced by the angle atan(sigma/alpha), from 0 (data) to pi/2 (noise).

Colours: Okabe & Ito's, and matplotlib's cividis, plasma and Blues: readable without colour vision.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import contracts, files, grids
from .metrics import Estimate
from .score import Score
from .sde import SDE, NoiseLevel
from .tuned import Tuned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#22262b", "#6b7480", "#c3c9d0"
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "axes.titlepad": 4, "legend.frameon": False, "mathtext.fontset": "cm",
    "savefig.dpi": 160, "figure.dpi": 160, "image.interpolation": "nearest"}


class Panel(NamedTuple):
    """One set of samples (n, *D): a title, a second line, and its distance to held-out data where there is one."""

    title: str
    x: Tensor
    note: str = ""
    distance: Estimate | None = None


def _points(name: str, x: Any, rank: int = 2, like: Tensor | None = None) -> Tensor:
    """States to draw, finite, at least of that rank; ``like``: with their events, whose shape theirs is."""
    contracts.state(name, x, rank)
    if like is not None and x.shape[rank - 1:] != like.shape[1:]:
        raise ValueError(f"{name}.shape={tuple(x.shape)}: expected samples shaped as those of data, {tuple(like.shape)}.")
    return x


def _images(name: str, x: Any, rank: int) -> Tensor:
    if contracts.state(name, x, rank).ndim != rank:
        raise ValueError(f"{name}.shape={tuple(x.shape)}: expected {'(n, C, H, W)' if rank == 4 else '(n, frames, C, H, W)'}.")
    return x


def _cells(name: str, value: Any) -> tuple[int, int]:
    """(rows, columns)."""
    sizes = [contracts.integer(f"{name}[{k}]", n, 1) for k, n in enumerate(contracts.sequence(name, value, "(rows, columns)", 2))]
    if len(sizes) != 2:
        raise ValueError(f"{name}={contracts.shown(value)}: expected (rows, columns).")
    return sizes[0], sizes[1]


def _names(name: str, value: Any) -> list[str]:
    return [contracts.text(f"{name}[{k}]", v, "x") for k, v in enumerate(contracts.sequence(name, value, "names such as ('x', 'y')", 0))]


def _words(name: str, value: Any) -> str:
    return contracts.instance(name, value, str, "a string, empty for none")


def _process(sde: Any) -> SDE:
    return contracts.instance("sde", sde, SDE, "a forward process such as sdediff.VPSDE()")


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib
    with matplotlib.rc_context(STYLE):
        yield


def _figure(width: float, height: float, **options: Any) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    figure = Figure((width, height), **{"layout": ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05), **options})
    FigureCanvasAgg(figure)
    return figure


# -- samples -------------------------------------------------------------------------------------------------------------------
def samples(panels: Sequence[Panel], *, floor: Estimate | None = None, axes: Sequence[str] = (), heading: str = "",
            columns: int | None = None, sheet: int = 8) -> Figure:
    """Small multiples on common axes, the first panel in grey (the data), and the distances in a chart of their own.

    ``floor``: the distance of fresh data, drawn as a line with its standard error. ``axes``: the coordinates' names, in the data's units.
    ``columns``: panels in a row; ``sheet``: images in a panel's.
    """
    for k, panel in enumerate(contracts.each("panels", panels, Panel, "Panel('data', x)")):
        _words(f"panels[{k}].title", panel.title), _words(f"panels[{k}].note", panel.note)
        contracts.floating(f"panels[{k}].x", panel.x)
        contracts.instance(f"panels[{k}].distance", panel.distance, Estimate, "an Estimate", none=True)
    contracts.instance("floor", floor, Estimate, "an Estimate of sdediff.metrics", none=True)
    axes, columns = _names("axes", axes), None if columns is None else contracts.integer("columns", columns, 1)
    _words("heading", heading), contracts.integer("sheet", sheet, 1)
    first = panels[0].x
    measured = [p for p in panels if p.distance is not None]
    count = len(panels) + bool(measured)
    columns = columns or (count if count <= 4 else math.ceil(count / 2) if count <= 10 else math.ceil(math.sqrt(1.6 * count)))
    rows = math.ceil(count / columns)
    with _style():
        bounds = _bounds(first)
        figure = _figure(2.45 * columns, (2.1 * _shape(bounds) + 0.58) * rows + 0.35 + 0.3 * bool(heading))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, (ax, panel) in enumerate(zip(grid, panels)):
            _draw(ax, panel.x, bounds, colour=MUTED if i == 0 else BLUE, reference=None if i == 0 else first, sheet=sheet)
            ax.set_title(panel.title, loc="left", fontweight="bold", pad=16, fontsize=_fitting(panel.title, 10))
            ax.text(0, 1.022, panel.note, transform=ax.transAxes, fontsize=8, color=MUTED, va="bottom")
            outer = i // columns == rows - 1
            if first.ndim == 2:
                ax.tick_params(labelbottom=outer, labelleft=i % columns == 0)
                if axes and outer:
                    ax.set_xlabel(axes[0])
                if i % columns == 0:
                    ax.set_ylabel(axes[1] if first.shape[1] > 1 and axes else "density")
        if measured:
            _chart(grid[len(panels)], measured, floor, _shape(bounds))
        for ax in grid[count:]:
            ax.set_axis_off()
        if heading:
            figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return figure


def _fitting(title: str, size: float, room: int = 22) -> float:
    """A font size at which a title keeps to its panel."""
    return size * min(1.0, room / max(1, len(title)))


def _bounds(x: Tensor) -> list[tuple[float, float]]:
    """Of the first two coordinates, with a margin."""
    if x.ndim != 2:
        return []
    low, high = x[:, :2].min(0).values, x[:, :2].max(0).values
    centre, half = (low + high) / 2, (high - low).clamp(min=1e-12) / 2
    return [(float(c - 1.12 * h), float(c + 1.12 * h)) for c, h in zip(centre, half)]


def _dots(ax: Axes, x: Tensor, size: float, colour: str, alpha: float = 1.0) -> None:
    ax.scatter(x[:, 0].numpy(), x[:, 1].numpy(), size, colour, alpha=alpha, lw=0, zorder=2, rasterized=True)


def _density(x: Tensor, edges: np.ndarray) -> np.ndarray:
    """A histogram over the bins that counts all of the samples, also those outside."""
    return np.histogram(x.flatten().numpy(), edges)[0] / (max(1, len(x)) * np.diff(edges))


def _shape(bounds: list[tuple[float, float]]) -> float:
    """Height over width of a panel: one scale on both axes, unless the coordinates are very different."""
    if len(bounds) < 2:
        return 1.0
    ratio = (bounds[1][1] - bounds[1][0]) / (bounds[0][1] - bounds[0][0])
    return ratio if 0.55 < ratio < 1.5 else 1.0


def _draw(ax: Axes, x: Tensor, bounds: list[tuple[float, float]], *, colour: str = BLUE, reference: Tensor | None = None,
          sheet: int = 8) -> None:
    if x.ndim == 4:
        _show(ax, x, sheet)
    elif x.shape[1] == 1:
        edges = np.linspace(*bounds[0], 61)
        if reference is not None:
            ax.stairs(_density(reference, edges), edges, fill=True, color=FAINT)
        ax.stairs(_density(x, edges), edges, fill=reference is None, color=colour, lw=1.2)
        ax.set_xlim(*bounds[0])
        ax.spines[["top", "right"]].set_visible(False)
    else:
        _dots(ax, x, min(6.0, 9000 / len(x)), colour, 0.55)
        ax.set(xlim=bounds[0], ylim=bounds[1], box_aspect=_shape(bounds))
        inside = torch.stack([(x[:, i] >= a) & (x[:, i] <= b) for i, (a, b) in enumerate(bounds)]).all(0)
        if not bool(inside.all()):
            ax.text(0.97, 0.03, f"{int((~inside).sum())} outside", transform=ax.transAxes, ha="right", fontsize=7, color=MUTED)


def _sheet(x: Tensor, columns: int, rows: int | None = None, gap: int = 1) -> np.ndarray:
    """Images in [-1, 1] beside and below each other on white, in up to ``rows`` (default: as many as columns): (h, w, 3), or (h, w) where
    they are not of three channels."""
    n, channels, height, width = x.shape
    columns = min(columns, n)
    rows = min(rows or columns, -(-n // columns))
    sheet = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    for k in range(min(n, rows * columns)):
        i, j = k // columns * (height + gap), k % columns * (width + gap)
        sheet[i:i + height, j:j + width] = ((x[k].permute(1, 2, 0) + 1) / 2).clamp(0, 1)
    return sheet.numpy() if channels == 3 else sheet[..., 0].numpy()


def sheet(x: Tensor, grid: tuple[int, int], width: int = 720) -> Any:
    """Images (n, C, H, W) in [-1, 1] as a PIL image of ``grid`` = (rows, columns), enlarged a whole number of times to about ``width``
    pixels."""
    from PIL import Image
    _images("x", x, 4), _cells("grid", grid), contracts.integer("width", width, 1)
    image = Image.fromarray(np.round(255 * _sheet(x, grid[1], grid[0])).astype(np.uint8))
    times = max(1, round(width / image.width))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def film(path: str | Path, clips: Tensor, grid: tuple[int, int], *, width: int = 480, milliseconds: int = 120) -> None:
    """Clips (n, frames, C, H, W) in [-1, 1] as a GIF of ``grid`` = (rows, columns), each to its end and again."""
    path = files.named("path", path)
    _images("clips", clips, 5), contracts.integer("milliseconds", milliseconds, 1)
    images = [sheet(clips[:, k], grid, width) for k in range(clips.shape[1])]
    files.write(path, lambda file: images[0].save(file, "GIF", save_all=True, append_images=images[1:], loop=0,
                                                  duration=[milliseconds] * (len(images) - 1) + [4 * milliseconds]))


def _show(ax: Axes, x: Tensor, columns: int, rows: int | None = None) -> Any:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(_sheet(x, columns, rows), cmap="gray", vmin=0, vmax=1)


def _chart(ax: Axes, panels: Sequence[Panel], floor: Estimate | None, shape: float) -> None:
    from matplotlib.ticker import MaxNLocator
    ax.set_title("sliced $W_2$", loc="left", fontweight="bold", pad=16)
    ax.text(0, 1.022, "to held-out data", transform=ax.transAxes, fontsize=8, color=MUTED, va="bottom")
    rows = [("fresh data", floor, MUTED)] if floor is not None else []
    rows += [(p.title, p.distance, BLUE) for p in panels if p.distance is not None]
    far = 1.05 * max(d.value + (d.stderr if d.stderr == d.stderr else 0) for _, d, _ in rows)
    if floor is not None:
        ax.axvline(floor.value, color=MUTED, lw=0.8, ls=(0, (1, 2)))
    for k, (title, distance, colour) in enumerate(rows):
        ax.errorbar(distance.value, -k, xerr=distance.stderr, fmt="o", ms=4.5, color=colour, elinewidth=1.4)
        ax.text(-0.03 * far, -k, title, fontsize=_fitting(title, 7.5, 15), color=INK if colour == BLUE else MUTED, va="center", ha="right",
                in_layout=False)
    ax.set(xlim=(-0.95 * far, far), ylim=(0.4 - len(rows), 0.6), yticks=[], box_aspect=shape)
    ax.set_xticks([t for t in MaxNLocator(3).tick_values(0, far) if 0 <= t <= far])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, far)


# -- from noise to data --------------------------------------------------------------------------------------------------------
class Track(NamedTuple):
    """A method's recorded run: ``times`` (steps+1), decreasing, and ``states`` (steps+1, B, *D)."""

    title: str
    times: Sequence[float]
    states: Tensor


def trajectory(path: str | Path, sde: SDE, tracks: Sequence[Track], data: Tensor, *, frames: int = 48, seconds: float = 4.0,
               sheet: tuple[int, int] = (8, 8)) -> None:
    """A GIF of the methods side by side on their way from noise to data, which lies behind them, faint.

    Points keep one colour, by the first coordinate of their noise, so that equal starts can be told across methods. States are interpolated
    linearly between a method's own steps, and the last frame is held. Images are sheets of up to ``sheet`` = (rows, columns). Raises
    TypeError or ValueError on an argument that does not fit the others.
    """
    from PIL import Image
    path, sheet = files.named("path", path), _cells("sheet", sheet)
    _process(sde), _points("data", data), contracts.integer("frames", frames, 2), contracts.real("seconds", seconds, 0.0, low_open=True)
    for k, track in enumerate(contracts.each("tracks", tracks, Track, "Track('ddim', times, states)")):
        _words(f"tracks[{k}].title", track.title), _points(f"tracks[{k}].states", track.states, 3)
        _points(f"tracks[{k}].states[0]", track.states[0], 2, data)
        times = contracts.sequence(f"tracks[{k}].times", track.times, "decreasing times, one for each of the states", 2)
        if len(times) != len(track.states):
            raise ValueError(f"tracks[{k}].times={contracts.shown(track.times)}: expected {len(track.states)}, one for each of the states.")
    angles = np.linspace(math.pi / 2, 0, frames)
    ways = [_resampled(sde, track, angles) for track in tracks]
    images = []
    with _style():
        wide, high = 2.5, 2.5
        if data.ndim == 4:                                         # an image's pixel is a pixel or more
            rows, columns = min(sheet[0], -(-len(tracks[0].states[0]) // sheet[1])), min(sheet[1], len(tracks[0].states[0]))
            wide = max(2.5, 5.0 / len(tracks), columns * (data.shape[3] + 1) / 100)
            high = wide * rows * data.shape[2] / (columns * data.shape[3])
        figure = _figure(wide * len(tracks), high + 0.5, dpi=100)
        axes = figure.subplots(1, len(tracks), squeeze=False)[0]
        updates = [_moving(ax, way, data, sheet) for ax, way in zip(axes, ways)]
        for ax, track in zip(axes, tracks):
            ax.set_title(track.title, fontweight="bold", fontsize=_fitting(track.title, 10))
        for k in range(frames):
            for update in updates:
                update(k)
            figure.supxlabel(rf"noise level $\sigma/\alpha$ = {math.tan(min(angles[k], _span(sde)[0])):.2f}", fontsize=9, color=MUTED)
            figure.canvas.draw()
            if k == 0:
                figure.set_layout_engine("none")               # the layout of the first frame serves all
            images.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]))        # type: ignore[attr-defined]
    palette = Image.fromarray(np.concatenate([np.asarray(images[k]) for k in (0, frames // 2, -1)])).quantize(128)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.sum(1).argmax()] = 255                         # paper is white
    palette.putpalette(colours.flatten().tolist())
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    step = round(1000 * seconds / frames / 10) * 10
    files.write(path, lambda file: images[0].save(file, "GIF", save_all=True, append_images=images[1:], loop=0, optimize=True,
                                                  duration=[600] + [step] * (frames - 2) + [2000]))


def _moving(ax: Axes, way: Tensor, data: Tensor, sheet: tuple[int, int]) -> Callable[[int], Any]:
    """Draws a panel of the animation; returns what brings it to frame k."""
    ax.set(xticks=[], yticks=[])
    if way.ndim == 5:
        rows, columns = sheet
        picture = _show(ax, way[0], columns, rows)
        return lambda k: picture.set_data(_sheet(way[k], columns, rows))
    ax.set(xlim=(-2.9, 2.9), box_aspect=1)
    if way.shape[2] == 1:
        edges = np.linspace(-2.9, 2.9, 61)
        ax.stairs(_density(data, edges), edges, fill=True, color=FAINT)
        ax.set_ylim(0, 1.4 * ax.get_ylim()[1])
        law = lambda k: _density(way[k], edges)
        stairs = ax.stairs(law(0), edges, color=BLUE, lw=1.2)
        return lambda k: stairs.set_data(law(k))
    ax.set_ylim(-2.9, 2.9)
    _dots(ax, data[:3000], 2.5, FAINT)
    points = way[..., :2].numpy()
    dots = ax.scatter(points[0, :, 0], points[0, :, 1], s=5, c=points[0, :, 0], cmap="plasma", vmin=-2.2, vmax=2.9, lw=0, zorder=3)
    return lambda k: dots.set_offsets(points[k])


def _angle(level: NoiseLevel) -> float:
    return math.atan2(level.sigma, level.alpha)


def _span(sde: SDE) -> tuple[float, float]:
    return _angle(sde.at(sde.t_max)), _angle(sde.at(sde.t_min))


def _resampled(sde: SDE, track: Track, angles: np.ndarray) -> Tensor:
    """The scaled states (frames, B, *D) at the given noise levels, linear in the angle in between."""
    levels = [sde.at(t) for t in track.times]
    own = np.array([_angle(m) for m in levels])
    scaled = torch.stack([x / math.hypot(m.alpha, m.sigma) for x, m in zip(track.states, levels)])
    position = torch.from_numpy(np.interp(-angles, -own, np.arange(len(own))))
    left = position.long().clamp(max=len(own) - 2)
    weight = (position - left).view(-1, *[1] * (scaled.ndim - 1)).to(scaled)
    return torch.lerp(scaled[left], scaled[left + 1], weight)


# -- from data to noise --------------------------------------------------------------------------------------------------------
def forward(sde: SDE, times: Sequence[float] | Tensor, x: Tensor, *, axes: Sequence[str] = (), paths: int = 6) -> Figure:
    """The forward process ``x`` (steps+1, B, *D) at ``times``: five snapshots, sample paths of one coordinate over the density of all,
    and that coordinate's law beside N(0, 1). Raises TypeError or ValueError on times or shapes that do not fit."""
    from scipy.ndimage import gaussian_filter
    _process(sde), contracts.integer("paths", paths, 1)
    times = contracts.sequence("times", times, "rising times such as [0.0, 0.5, 1.0]", 2)
    axes, times = _names("axes", axes), [contracts.real(f"times[{k}]", t, 0.0, sde.t_max) for k, t in enumerate(times)]
    if times != sorted(set(times)):
        raise ValueError(f"times={contracts.shown(times)}: expected rising times.")
    if len(_points("x", x, 3)) != len(times):
        raise ValueError(f"x.shape={tuple(x.shape)}: expected ({len(times)}, B, ...), states at each of the times.")
    levels = sde.levels(times)
    x = torch.stack([v / math.hypot(m.alpha, m.sigma) for v, m in zip(x, levels)])
    scale = "" if all(abs(m.alpha**2 + m.sigma**2 - 1) < 1e-6 for m in levels[1:]) else r" / \sqrt{\alpha_t^2 + \sigma_t^2}"
    image = x.ndim == 5
    pixel = x[0].var(0).flatten().argmax() if image else 0
    values = x.flatten(2)[..., pixel]                                             # (steps+1, B)
    name = f"${'x_t' if image or x.shape[2] == 1 else 'x_{t,1}'}{scale}$"
    # five levels, spaced by the angle and closer together near the data, where the law changes most
    own = np.array([_angle(m) for m in levels])
    shots = [int(np.abs(own - a).argmin()) for a in own[0] + (own[-1] - own[0]) * np.array([0, 0.12, 0.3, 0.55, 1])]
    top = image or x.shape[2] > 1
    with _style():
        figure = _figure(10, 7.4 if top else 5.3)
        grid = figure.add_gridspec(3 if top else 2, 5, height_ratios=[1.45, 1.75, 1][0 if top else 1:])
        if top:
            for j, k in enumerate(shots):
                ax = figure.add_subplot(grid[0, j])
                if image:
                    _show(ax, x[k], 5)
                else:
                    _dots(ax, x[k, :2000], 3, BLUE, 0.5)
                    ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), box_aspect=1, xticks=(-2, 0, 2), yticks=(-2, 0, 2))
                    ax.tick_params(labelleft=j == 0)
                ax.set_title(f"$t = {times[k]:.3g}$")
        ax = figure.add_subplot(grid[-2, :])
        edges = np.linspace(-3.4, 3.4, 90)
        density = gaussian_filter(np.stack([_density(v, edges) for v in values], 1), 1.2)
        ax.pcolormesh(times, (edges[1:] + edges[:-1]) / 2, density, cmap="Greys", vmin=0, vmax=1.6 * float(np.quantile(density, 0.98)),
                      shading="gouraud", rasterized=True)
        chosen = values[0].argsort()[torch.linspace(0.04, 0.96, paths).mul(values.shape[1] - 1).long()]
        for k, colour in zip(chosen.tolist(), (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK) * paths):
            ax.plot(times, values[:, k].numpy(), color=colour, lw=0.9)
        for k in shots:
            ax.axvline(times[k], color=MUTED, lw=0.6, ls=(0, (1, 2)))
        if times[-1] > 2 and sde.knots is None:                # t is sigma: most of the story is near zero
            ax.set_xscale("symlog", linthresh=0.1)
        ax.set(xlim=(times[0], times[-1]), ylim=(-3.4, 3.4), xlabel="time $t$", ylabel=name)
        ax.set_title(f"{len(chosen)} sample paths over the density of {values.shape[1]}", loc="left")
        z = np.linspace(-3.4, 3.4, 177)
        peak = None
        for j, k in enumerate(shots):
            ax = figure.add_subplot(grid[-1, j], sharey=peak)
            peak = peak or ax
            ax.stairs(_density(values[k], z[::4]), z[::4], fill=True, color=SKY, alpha=0.7)
            ax.plot(z, np.exp(-z**2 / 2) / math.sqrt(2 * math.pi), color=VERMILLION, lw=1.2, label="N(0, 1)")
            ax.set(xlim=(-3.4, 3.4), xlabel=name, xticks=(-2, 0, 2))
            ax.set_title(f"$t = {times[k]:.3g}$")
            ax.tick_params(labelleft=j == 0)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_ylim(0, min(1.2, ax.get_ylim()[1]))
            if j == 0:
                ax.set_ylabel("density")
            if j == 4:
                ax.legend(loc="upper right", borderaxespad=0, handlelength=1.2)
        return figure


# -- the learned field -----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def score_field(sde: SDE, score: Score, data: Tensor, noise: Tensor, *, exact: Score | None = None,
                ratios: Sequence[float] = (2.0, 0.7, 0.25, 0.08)) -> Figure:
    """The score at four noise levels sigma/alpha: its direction by arrows, its length by colour, with noised data (``data`` and
    ``noise``, both (n, *D)) faint; with ``exact``, its relative root mean square error on the noised data. Images: the noised ones
    above, what the network takes for their clean mean below. Raises TypeError or ValueError on shapes that do not fit."""
    _process(sde), contracts.scored("score", score), _points("data", data), _points("noise", noise, 2, data)
    if exact is not None:
        contracts.scored("exact", exact)
    if len(noise) != len(data):
        raise ValueError(f"noise.shape={tuple(noise.shape)}, data.shape={tuple(data.shape)}: expected noise shaped as data.")
    levels = [sde.level_of(-math.log(contracts.real(f"ratios[{k}]", r, 0.0, low_open=True)))
              for k, r in enumerate(contracts.sequence("ratios", ratios, "such as (2.0, 0.25)"))]
    with _style():
        if data.ndim == 4:
            return _denoised(score, data, noise, levels)
        figure = _figure(2.6 * len(levels), 3.75 if data.shape[1] > 1 else 2.6)
        axes = figure.subplots(1, len(levels), squeeze=False)[0]
        for ax, level in zip(axes, levels):
            noised = level.alpha * data + level.sigma * noise
            scale = math.hypot(level.alpha, level.sigma)
            error = ""
            if exact is not None:
                truth = exact(noised, level).score
                error = f",  error {float((score(noised, level).score - truth).norm() / truth.norm()):.1%}"
            ax.set_title(rf"$\sigma/\alpha$ = {level.sigma / level.alpha:.2g}{error}")
            if data.shape[1] == 1:
                x = torch.linspace(-3, 3, 400).unsqueeze(1) * scale
                edges = np.linspace(-3, 3, 61)
                ax.stairs(_density(noised / scale, edges), edges, fill=True, color=FAINT)
                twin = ax.twinx()
                twin.plot((x / scale).numpy(), score(x, level).score.numpy(), color=BLUE, lw=1.2)
                twin.axhline(0, color=MUTED, lw=0.6)
                twin.set_ylabel("score" if ax is axes[-1] else "")
                ax.set(xlabel="$x$", ylabel="density" if ax is axes[0] else "", xlim=(-3, 3), yticks=[])
                continue
            mesh = _field(ax, score, level, noised, scale)
            ax.tick_params(labelleft=ax is axes[0])
            ax.set(xlabel="$x_1$", ylabel="$x_2$" if ax is axes[0] else "")
        if data.shape[1] > 1:
            figure.colorbar(mesh, ax=list(axes), location="bottom", shrink=0.4, aspect=40, pad=0.03,
                            label=r"$\sigma\,\Vert\nabla\log p_t\Vert$, the length of the score in units of $1/\sigma$"
                            + ("; error: relative, against the exact score" if exact is not None else ""))
        return figure


def _field(ax: Axes, score: Score, level: NoiseLevel, noised: Tensor, scale: float) -> Any:
    """One panel; returns what the colour bar describes. More than two coordinates: the field at noised data, its first two components."""
    half = 2.9
    _dots(ax, noised[:1500] / scale, 2.5, ORANGE, 0.6)
    if noised.shape[1] == 2:
        line = torch.linspace(-half, half, 121)
        fine = torch.cartesian_prod(line, line)
        length = level.sigma * score(fine * scale, level).score.norm(dim=1).view(121, 121)
        mesh: Any = ax.pcolormesh(line.numpy(), line.numpy(), length.T.numpy(), cmap="Blues", norm=_log_norm(), shading="gouraud",
                                  rasterized=True, zorder=1)
        at = torch.cartesian_prod(*[torch.linspace(-half, half, 18)[1:-1]] * 2)
        s = score(at * scale, level).score
        colours: list[Any] = []
    else:
        at = noised[:250] / scale
        s = score(noised[:250], level).score
        mesh = None
        colours = [(level.sigma * s.norm(dim=1)).numpy()]
    arrow = s[:, :2] / s.norm(dim=1, keepdim=True).clamp(min=1e-12)
    size: Any = {"angles": "xy", "scale_units": "xy", "scale": 4.2, "width": 0.0042, "headwidth": 4.5, "pivot": "mid", "zorder": 3}
    quiver = ax.quiver(*at[:, :2].T.numpy(), *arrow.T.numpy(), *colours, **size)
    if mesh is None:
        quiver.set(cmap="cividis", norm=_log_norm())
    else:
        quiver.set(color=INK)
    ax.set(xlim=(-half, half), ylim=(-half, half), box_aspect=1, xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    return mesh or quiver


def _log_norm() -> Any:
    from matplotlib.colors import LogNorm
    return LogNorm(0.1, 50, clip=True)


def _denoised(score: Score, data: Tensor, noise: Tensor, levels: Sequence[NoiseLevel]) -> Figure:
    figure = _figure(2.3 * len(levels), 4.9)
    axes = figure.subplots(2, len(levels))
    for (above, below), level in zip(axes.T, levels):
        noised = (level.alpha * data + level.sigma * noise)[:25]
        _show(above, noised / math.hypot(level.alpha, level.sigma), 5)
        _show(below, score(noised, level).x0, 5)
        above.set_title(rf"$\sigma/\alpha$ = {level.sigma / level.alpha:.2g}")
    axes[0, 0].set_ylabel("noised $x_t$")
    axes[1, 0].set_ylabel("denoised $E[x_0 | x_t]$")
    return figure


# -- the latent space ------------------------------------------------------------------------------------------------------------
def interpolation(paths: Tensor, data: Tensor, title: str = "") -> Figure:
    """Paths (n, B, *D) from sample to sample: images in a row each, points as B curves over the data (N, *D)."""
    _points("data", data), _points("paths", paths, 3), _points("paths[0]", paths[0], 2, data), _words("title", title)
    n, rows = paths.shape[:2]
    with _style():
        if data.ndim == 4:
            figure = _figure(0.55 * n, 0.55 * rows + 0.35)
            _show(figure.subplots(), paths.transpose(0, 1).flatten(0, 1).float(), n, rows)
        else:
            bounds = _bounds(torch.cat([data[:, :2], paths.flatten(0, 1)[:, :2]]))
            figure = _figure(4.6, 4.6 * _shape(bounds) + 0.35)
            ax = figure.subplots()
            _draw(ax, data, bounds, colour=FAINT)
            for k in range(rows):
                x, y = paths[:, k, 0].numpy(), paths[:, k, 1].numpy()
                colour = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)[k % 6]
                ax.plot(x, y, "-o", color=colour, lw=1.2, ms=3, zorder=3)
                ax.plot(x[[0, -1]], y[[0, -1]], "o", color=colour, ms=6, mec="white", mew=0.8, zorder=4)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return figure


def posteriors(truth: Tensor, measured: Tensor, draws: Tensor, data: Tensor, title: str = "") -> Figure:
    """Posterior samples (n, draws, *D) of n measurements: images in a row each, after the truth and what was ``measured`` of it; points in
    a panel each, over the data. Raises TypeError or ValueError on shapes that do not fit."""
    _points("data", data), _words("title", title)
    for name, x in (("truth", truth), ("measured", measured)):
        _points(name, x, 2, data)
    if _points("draws", draws, 3).shape[2:] != data.shape[1:] or not len(truth) == len(measured) == len(draws):
        raise ValueError(f"truth.shape={tuple(truth.shape)}, measured.shape={tuple(measured.shape)}, draws.shape={tuple(draws.shape)}: "
                         f"expected (n, *D), (n, *D) and (n, draws, *D) with D={tuple(data.shape[1:])}, that of data.")
    n, spread = len(truth), torch.linspace(0, draws.shape[1] - 1, min(10, draws.shape[1])).long().unique()
    with _style():
        if data.ndim == 4:
            block = torch.cat([truth[:, None], measured[:, None], draws[:, spread]], 1)
            figure = _figure(0.62 * block.shape[1], 0.62 * n + 0.65)
            ax = figure.subplots()
            _show(ax, block.flatten(0, 1).float(), block.shape[1], n)
            for column, name in enumerate(("truth", "measured", "draws")):
                ax.text(column / block.shape[1], 1.01, name, transform=ax.transAxes, fontsize=8, color=MUTED, va="bottom")
        else:
            bounds, wide = _bounds(data), min(n, 4)
            figure = _figure(2.45 * wide, 2.1 * _shape(bounds) * -(-n // wide) + 0.6)
            for k, ax in enumerate(figure.subplots(-(-n // wide), wide, squeeze=False).ravel()):
                if k >= n:
                    ax.set_axis_off()
                    continue
                _draw(ax, data, bounds, colour=FAINT)
                _dots(ax, draws[k], 7, BLUE, 0.7)
                ax.plot(truth[k, 0], truth[k, 1] if truth.shape[1] > 1 else 0, "X", color=VERMILLION, ms=7, mec="white", mew=0.8, zorder=4)
                ax.tick_params(labelbottom=k + wide >= n, labelleft=k % wide == 0)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return figure


def tuned(sde: SDE, methods: Mapping[int, Tuned], title: str = "") -> Figure:
    """Tuned methods by network calls: their knots in log-SNR beside standard grids of as many steps, and their errors before and after."""
    _process(sde), _words("title", title)
    rows = Tuned.by_calls(methods)
    names = {"tuned": VERMILLION, "logsnr": MUTED, "karras": BLUE, "uniform": GREEN}
    with _style():
        figure = _figure(8.2, 1.3 + 0.5 * len(rows))
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        for k, (_, m) in enumerate(rows):
            for j, (name, colour) in enumerate(names.items()):
                times = m.grid.knots if name == "tuned" else grids.grid(name)(sde, m.grid.steps, m.grid.knots[0], m.grid.knots[-1])  # type: ignore[union-attr, arg-type]
                lam = [level.lam for level in sde.levels(times) if math.isfinite(level.lam)]
                left.plot(lam, [k + 0.3 - 0.2 * j] * len(lam), "|", color=colour, ms=7, mew=1.4 if name == "tuned" else 0.9,
                          label=name if not k else None)
        left.set(yticks=range(len(rows)), yticklabels=[f"{nfe} calls" for nfe, _ in rows], ylim=(-0.6, len(rows) - 0.3),
                 xlabel=r"knots at $\lambda = \log(\alpha/\sigma)$")
        left.legend(ncols=4, loc="lower right", bbox_to_anchor=(1.0, 0.98), handletextpad=0.2, columnspacing=1.0)
        left.set_title("grids", loc="left")
        gains = [(nfe, m.gain) for nfe, m in rows if m.gain]
        calls = [nfe for nfe, _ in gains]
        right.plot(calls, [g.before for _, g in gains], "o--", color=MUTED, ms=4, lw=1, label="best standard")
        right.plot(calls, [g.after for _, g in gains], "s-", color=VERMILLION, ms=4, lw=1.3, label="tuned")
        right.set(xscale="log", yscale="log", xlabel="network calls", ylabel=" and ".join(sorted({g.kind for _, g in gains})))
        right.set_title(title, loc="left")
        right.set_xticks(calls, labels=[str(n) for n in calls])
        right.minorticks_off()
        errors = [e for _, g in gains for e in (g.before, g.after)]
        if errors and min(errors) > 0 and max(errors) < 10 * min(errors):            # within a decade there may be no power of ten to label
            ends = sorted({min(errors), max(errors)})
            right.set_yticks(ends, labels=[f"{e:.2g}" for e in ends])
        right.margins(y=0.15)
        right.legend()
        return figure
