r"""The pictures of a benchmark: work-precision curves, slopes against declared orders, sample grids, and the error budget as one bar.

Each function returns a matplotlib ``Figure`` and leaves matplotlib's global state alone. The style is that of ``sdediff.plots``. A method
is told by its colour (Okabe & Ito's), its marker and its dashes at once, so that the pictures survive print in black and white; it
keeps all three over all pictures. ODE methods are drawn solid with filled markers, SDE methods dashed with open ones; whoever is
not named is grey. Written for print at the width of a page: ``png`` gives 300 dots per inch there.
"""
from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..plots import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, _figure, _style
from .findings import BASELINES, KINDS, MOMENT, PATH, ROUNDING, SHORT, SLICED, Case, Contestant, Results, Row, Slope

if TYPE_CHECKING:
    from ..plots import Axes, Figure

WIDTH = 7.6                                                     # inches; a page's text is about 7
DPI = 280
AXES = {PATH: "path RMSE [data units]", SLICED: "sliced $W_2$ [data units]", MOMENT: "$W_2$ of exact moments [data units]"}
CALLS, SECONDS = "NFE [network calls per sample]", "wall time of the run [seconds]"


class Mark(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str
    dashes: Any
    filled: bool


_BEST = {"ODE": [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D")],
         "SDE": [(ORANGE, "o"), (SKY, "s"), (PURPLE, "^"), (GREEN, "D")]}
_DASHES = ((0, (4.5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.2, 1.2, 1.2)))


def marks(named: Sequence[Contestant]) -> dict[Contestant, Mark]:
    """Colour, marker and dashes of each: the baselines dark grey, guests black, the best in colours."""
    found = {}
    for kind in KINDS:
        mine = [who for who in named if who.kind == kind]
        guests = [who for who in mine if who.source != "sdediff"]
        best = [who for who in mine if who.source == "sdediff"]
        for k, who in enumerate(mine):
            if who in guests:
                colour, marker = INK, "*PXd"[guests.index(who) % 4]
            elif who.method == BASELINES[kind]:
                colour, marker = MUTED, "v"
            else:
                colour, marker = _BEST[kind][best.index(who) % 4]
            found[who] = Mark(colour, marker, "-" if kind == "ODE" else _DASHES[k % 3], kind == "ODE")
    return found


@cache
def _palette() -> Any:
    """Every colour of the pictures in nine tints, from itself to white, and a ramp of greys."""
    from PIL import Image
    tints = []
    for colour in (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, MUTED):
        base = np.array([int(colour[k:k + 2], 16) for k in (1, 3, 5)])
        tints += [np.round(255 - (255 - base) * k / 9) for k in range(1, 10)]
    tints += [np.full(3, 255)] + [np.full(3, v) for v in np.linspace(0, 243, 55)]
    image = Image.new("P", (1, 1))
    image.putpalette(np.array(tints, dtype=int).ravel().tolist())
    return image


def png(figure: Figure) -> bytes:
    """The picture in a palette of 128 colours, which keeps a page of many small."""
    from PIL import Image
    figure.set_dpi(DPI)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())        # type: ignore[attr-defined]
    file = io.BytesIO()
    image.quantize(palette=_palette(), dither=Image.Dither.NONE).save(file, "PNG", optimize=True, dpi=(DPI, DPI))
    return file.getvalue()


# -- work and precision ----------------------------------------------------------------------------------------------------------
def metrics_of(results: Results, case: Case) -> list[str]:
    """Those that a case's figure shows: path RMSE, sliced W2 and the W2 of exact moments, where they were measured."""
    return [metric for metric in AXES if any(other == case and any(math.isfinite(r.value) for r in runs)
                                             for (_, other), runs in results.curves(metric).items())]


def work_precision(results: Results, case: Case, named: Mapping[Contestant, Mark]) -> Figure:
    """Error against NFE and against seconds, log-log, one row a metric, with 95 % bands for those named and the floor shaded."""
    shown = metrics_of(results, case)
    height, above, below, gap = 2.25, 0.46, 0.45, 0.28                        # inches
    total = len(shown) * (height + gap) - gap + above + below
    with _style():
        figure = _figure(WIDTH, total, layout="none")
        grid = figure.subplots(len(shown), 2, squeeze=False, sharex="col")
        for k, (metric, (left, right)) in enumerate(zip(shown, grid)):
            place = (total - above - (k + 1) * height - k * gap) / total
            left.set_position((0.088, place, 0.325, height / total))
            right.set_position((0.662, place, 0.325, height / total))
            found = {who: runs for (who, other), runs in results.curves(metric).items() if other == case}
            bottom = _axes(left, right, metric, found)
            for ax, key in ((left, "nfe"), (right, "seconds")):
                _floor(ax, metric, found, words=ax is right)
                for who, runs in found.items():
                    _curve(ax, runs, key, named.get(who), bottom)
            _labels(left, [(who, runs) for who, runs in found.items() if who in named], named)
        for ax, label in zip(grid[-1], (CALLS, SECONDS)):
            ax.set_xlabel(label)
        for ax in grid.flat:
            _decades(ax)
        figure.suptitle(f"{case.target}, {case.process}", x=0.01, y=1 - 0.06 / total, ha="left", va="top", fontsize=10.5, fontweight="bold")
        return figure


def _axes(left: Axes, right: Axes, metric: str, found: Mapping[Contestant, Sequence[Row]]) -> float:
    """Scales and limits that serve both columns; returns the least error drawn."""
    values = [r.value for runs in found.values() for r in runs if math.isfinite(r.value) and r.value > 0]
    floors = [v for runs in found.values() for r in runs for v in (r.floor_low, r.floor_high, r.floor) if v is not None and v > 0]
    least = ROUNDING / 20 if metric in (PATH, MOMENT) else 1e-12
    low, high = max(min([*values, *floors], default=1e-3), least), min(max([*values, *floors], default=1.0), 1e3)
    room = (max(high, low * 3) / low)**0.04
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", ylim=(low / room, max(high, low * 3) * room))
        ax.grid(True, color=FAINT, lw=0.4, alpha=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    right.tick_params(labelleft=False)
    left.set_ylabel(AXES[metric])
    left.yaxis.set_label_coords(-0.2, 0.5)
    return low


def _decades(ax: Axes) -> None:
    """Labels at 1, 2, 5 where an axis spans little, at powers of ten where it spans much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        span = math.log10(high / low)
        stride = math.ceil(span / 8)
        digits = (1, 2, 5) if span < 2.4 else (1,)
        ticks = [d * 10.0**k for k in range(first, last + 1) if k % stride == 0 for d in digits if low <= d * 10.0**k <= high]
        plain = all(1e-3 <= t < 1e4 for t in ticks)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter((lambda v, _: f"{v:g}") if plain else lambda v, _: _power(v)))


def _power(value: float) -> str:
    """10⁻⁵, 2·10⁻⁵."""
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _floor(ax: Axes, metric: str, found: Mapping[Contestant, Sequence[Row]], *, words: bool) -> None:
    every = [r for runs in found.values() for r in runs]
    with_floor = [r for r in every if r.floor is not None]
    if with_floor:
        middle = lambda values: float(np.median([v for v in values if v is not None]))
        floor = middle([r.floor for r in with_floor])
        low, high = (middle([getattr(r, name) if getattr(r, name) is not None else r.floor for r in with_floor])
                     for name in ("floor_low", "floor_high"))
        text = f"floor, two exact samples of n = {with_floor[0].n}"
    elif any(r.at_floor for r in every):
        floor, low, high, text = ROUNDING, 0.0, ROUNDING, "accuracy of the reference"
    else:
        return
    bottom, _ = ax.get_ylim()
    ax.axhspan(max(low, bottom), high, color=MUTED, alpha=0.22, lw=0, zorder=0.5)
    ax.axhline(floor, color=MUTED, lw=0.7, ls=(0, (1, 2)), zorder=0.6)
    if words:
        ax.set_title(f"shaded: {text}", loc="right", fontsize=6.8, color=MUTED, pad=3)


def _curve(ax: Axes, runs: Sequence[Row], key: str, mark: Mark | None, bottom: float) -> None:
    finite = [r for r in runs if math.isfinite(r.value) and (getattr(r, key) or 0) > 0]
    x, y = [float(getattr(r, key)) for r in finite], [max(r.value, bottom) for r in finite]
    if mark is None:
        ax.plot(x, y, color=FAINT, lw=0.5, zorder=1, marker="." if len(x) == 1 else "", ms=3)
        return
    until = next((k + 1 for k, r in enumerate(finite) if r.at_floor), len(finite))           # at the floor the bands would only cover it
    low, high = ([max(getattr(r, end), bottom) for r in finite[:until]] for end in ("low", "high"))
    ax.fill_between(x[:until], low, high, color=mark.colour, alpha=0.16, lw=0, zorder=2)
    ax.plot(x, y, color=mark.colour, ls=mark.dashes, lw=1.2, zorder=3, **_point(mark))


def _point(mark: Mark) -> dict[str, Any]:
    return {"marker": mark.marker, "ms": 3.6, "mfc": mark.colour if mark.filled else "white", "mec": mark.colour, "mew": 0.9}


def _labels(ax: Axes, entries: Sequence[tuple[Contestant, Sequence[Row]]], named: Mapping[Contestant, Mark]) -> None:
    """Names beside the axes, in the order of the last errors, each with its mark and a thin line to its curve's end."""
    ends = []
    bottom, top = ax.get_ylim()
    for who, runs in entries:
        finite = [r for r in runs if math.isfinite(r.value)]
        if finite:
            y = min(max(finite[-1].value, bottom), top)
            ends.append((math.log(y / bottom) / math.log(top / bottom), finite[-1].nfe, y, who))
    ends.sort(key=lambda end: -end[0])
    for (_, x, y, who), height in zip(ends, _spread([end[0] for end in ends], 0.07)):
        mark = named[who]
        ax.annotate("", (x, y), (1.03, height), xycoords="data", textcoords="axes fraction", annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "lw": 0.45, "color": mark.colour, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2.5})
        ax.plot([1.03, 1.115], [height] * 2, transform=ax.transAxes, clip_on=False, color=mark.colour, ls=mark.dashes, lw=1.2,
                markevery=[1], **_point(mark))
        name = str(who)
        ax.annotate(name, (1.145, height), xycoords="axes fraction", va="center", fontsize=7 * min(1, 26 / len(name)), color=INK,
                    annotation_clip=False)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights, decreasing, moved as little as it takes to lie ``gap`` apart inside [0, 1]: the nearest monotone fit after taking the gaps
    out, by pooling adjacent violators."""
    gap = min(gap, 1 / max(1, len(heights) - 1))
    blocks: list[list[float]] = []                                            # [mean, size]
    for k, height in enumerate(heights):
        blocks.append([height + k * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    placed = [mean for mean, size in blocks for _ in range(int(size))]
    low, high = (len(heights) - 1) * gap, 1.0
    return [min(max(mean, low), high) - k * gap for k, mean in enumerate(placed)]


# -- slopes ----------------------------------------------------------------------------------------------------------------------
def orders(slopes: Sequence[Slope]) -> Figure:
    """The slopes of a method in every case, on every grid (dots; crosses where they are short) beside its declared order (bar)."""
    slopes = [s._replace(who=s.who._replace(grid="")) for s in slopes]
    everyone = sorted({s.who for s in slopes}, key=lambda who: (who.order is None, who.order or 0, who.kind, str(who)))
    columns = 2 if len(everyone) > 16 else 1
    length = math.ceil(len(everyone) / columns)
    far = 2.5 + max((who.order or 0 for who in everyone), default=0)                        # steeper ones are drawn at the edge
    with _style():
        figure = _figure(WIDTH, 0.155 * length + 1.0)
        for j, ax in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
            part = everyone[j * length:(j + 1) * length]
            for k, who in enumerate(part):
                mine = [s for s in slopes if s.who == who]
                fine, short = [s.slope for s in mine if not s.short and s.slope <= far], [s.slope for s in mine if s.short]
                steep = [far for s in mine if s.slope > far]
                if who.order is not None:
                    ax.plot([who.order - SHORT, who.order], [-k, -k], color=FAINT, lw=4, solid_capstyle="butt", zorder=1)
                    ax.plot([who.order] * 2, [-k - 0.36, -k + 0.36], color=INK, lw=1.4, zorder=3)
                ax.plot(np.maximum(fine, -0.4), [-k] * len(fine), "o", ms=3, mfc="none", mec=BLUE, mew=0.8, zorder=4)
                ax.plot(steep, [-k] * len(steep), ">", ms=3.4, color=BLUE, mew=0, zorder=4)
                ax.plot(np.maximum(short, -0.4), [-k] * len(short), "x", ms=3.6, color=VERMILLION, mew=1.1, zorder=5)
            ax.set_yticks([-k for k in range(len(part))], [str(who) for who in part], fontsize=6.8)
            ax.set(xlim=(-0.5, far + 0.1), ylim=(0.4 - length, 0.7))
            ax.set_xticks(range(math.floor(far) + 1))
            ax.grid(True, axis="x", color=FAINT, lw=0.4, alpha=0.6)
            ax.tick_params(axis="y", length=0)
            ax.spines[["top", "right", "left"]].set_visible(False)
        from matplotlib.lines import Line2D
        entries: list[Any] = [Line2D([], [], color=INK, lw=1.4, marker="|", ls="", ms=7, mew=1.4, label="declared order"),
                              Line2D([], [], ls="", marker="o", mfc="none", mec=BLUE, ms=4, label="a case, at its order"),
                              Line2D([], [], ls="", marker="x", color=VERMILLION, ms=4.5, label=f"a case, short by more than {SHORT}")]
        figure.supxlabel("slope of log error over log NFE, sign reversed", fontsize=9)
        figure.legend(handles=entries, loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.5)
        return figure


# -- samples ---------------------------------------------------------------------------------------------------------------------
def samples(case: Case, exact: Sequence[np.ndarray], methods: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]) -> Figure:
    """A column each of exact draws, in grey, and of every method: (name, its runs as (note, x (n, 2))), few calls above many."""
    columns = [("exact", [("one draw", exact[0]), ("another draw", exact[1])])] if exact else []
    columns += [(name, list(runs)) for name, runs in methods]
    frame = np.concatenate(exact) if exact else columns[0][1][-1][1]
    low, high = (np.quantile(frame, q, axis=0) for q in (0.002, 0.998))
    margin = 0.1 * (high - low) + 1e-9
    lines = max(len(runs) for _, runs in columns)
    side = (WIDTH - 0.65) / 4 - 0.12
    with _style():
        height = lines * (side + 0.38) + 0.85
        figure = _figure(WIDTH, height, layout="none")
        for j, (name, runs) in enumerate(columns):
            for i, (note, x) in enumerate(runs):
                below = (height - 0.72 - i * (side + 0.38) - side) / height
                ax = figure.add_axes(((0.58 + j * (side + 0.12)) / WIDTH, below, side / WIDTH, side / height))
                inside = np.isfinite(x).all(1) & (x >= low - margin).all(1) & (x <= high + margin).all(1)
                ax.scatter(x[inside, 0], x[inside, 1], s=2.2, color=MUTED if exact and j == 0 else BLUE, alpha=0.6, lw=0)
                ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
                ax.tick_params(labelleft=j == 0, labelbottom=i == len(runs) - 1)
                outside = f", {int((~inside).sum())} outside" if not inside.all() else ""
                ax.text(0, 1.02, note + outside, transform=ax.transAxes, fontsize=7, color=MUTED, va="bottom")
                if i == 0:
                    ax.set_title(name, loc="left", fontweight="bold", fontsize=8 * min(1, 24 / len(name)), pad=13)
                if i == len(runs) - 1:
                    ax.set_xlabel("$x_1$ [data units]", fontsize=7.5)
                if j == 0:
                    ax.set_ylabel("$x_2$ [data units]", fontsize=7.5)
        figure.suptitle(str(case), x=0.01, y=1 - 0.06 / height, ha="left", va="top", fontsize=10.5, fontweight="bold")
        return figure


# -- the error budget ------------------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """One ingredient of an error budget, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


def budget(parts: Sequence[Part], total: Part | None, label: str) -> Figure:
    """One stacked bar of the ingredients, negative ones left of zero, above a bar of the total with its interval."""
    looks = ((BLUE, ""), (VERMILLION, "////"), (GREEN, "...."), (ORANGE, "\\\\\\\\"), (SKY, "xxxx"), (PURPLE, "----"), (MUTED, "++++"))
    with _style():
        figure = _figure(WIDTH, 1.9 + 0.16 * math.ceil(len(parts) / 3))
        ax = figure.subplots()
        right, left = 0.0, 0.0
        for k, part in enumerate(parts):
            start = right if part.value >= 0 else left + part.value
            colour, hatch = looks[k % len(looks)]
            ax.barh(1, abs(part.value), left=start, height=0.55, color=colour, hatch=hatch, edgecolor="white", lw=0.6, label=part.name)
            right, left = right + max(part.value, 0.0), left + min(part.value, 0.0)
        names = ["sum of parts"]
        if total is not None:
            ax.barh(0, total.value, height=0.55, color=FAINT, edgecolor=INK, lw=0.8)
            ax.errorbar(total.value, 0, xerr=[[max(0.0, total.value - total.low)], [max(0.0, total.high - total.value)]], color=INK,
                        elinewidth=1.2, capsize=3)
            names.append("total, measured")
        ax.set_yticks([1, 0][:len(names)], names)
        ax.axvline(0, color=INK, lw=0.6)
        ax.set(xlabel=label, ylim=(-0.5, 1.5) if total is not None else (0.5, 1.5))
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=3)
        return figure
