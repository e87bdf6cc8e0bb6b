"""Figures. Colours: Okabe and Ito (2008), distinguishable with every kind of colour vision; never by colour alone.

Figures for the report are SVG whose ink is `currentColor` and whose grid is `var(--grid)`, so that they follow light,
dark and print.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from idgbr.labels import IGNORE
from sweeps.analysis.breakdowns import BandCurve, DistanceCurve, Point
from sweeps.report.ablation_tables import COSTS, CostPoint
from sweeps.report.tile_panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#D8C300",
    "#8A8A8A",
)
CYCLE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_NAME = 56  # letters of a row's name in one line: the axes keep more than half of the width
_INK, _GRID = "#010203", "#010204"  # placeholders, replaced in the SVG


@contextlib.contextmanager
def style(themed: bool = True) -> Iterator[None]:
    """Our rcParams for the time of the block; also a decorator.

    Matplotlib reads some when it draws, so it covers making and saving.

    Args:
        themed: ink and grid are placeholders that `svg` replaces.
    """
    import matplotlib

    ink, grid = (_INK, _GRID) if themed else ("#222222", "#DDDDDD")
    with matplotlib.rc_context():
        for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
            matplotlib.rcParams[key] = ink
        matplotlib.rcParams.update(
            {
                "grid.color": grid,
                "svg.fonttype": "none",
                "font.family": "DejaVu Sans",
                "font.size": 9,
                "text.parse_math": False,  # a class may be called $x$
                "axes.spines.top": False,
                "axes.spines.right": False,
                "legend.frameon": False,
                "axes.facecolor": "none",
                "svg.hashsalt": "idgbr",
            }
        )
        yield


def new_figure(width: float, height: float, themed: bool = True) -> Figure:
    """A figure that belongs to no window and no pyplot."""
    from matplotlib.figure import Figure as MplFigure

    return MplFigure(figsize=(width, height), layout="constrained", facecolor="none" if themed else "white")


@style()
def svg(figure: Figure, ink: str = "currentColor", grid: str = "var(--grid)") -> str:
    """Inline SVG without declaration, as wide as its container but no wider than it was drawn; in a file of its own
    `ink` and `grid` are colours.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, ink).replace(_GRID, grid)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1sans-serif", text)
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    # never larger than it was drawn, so that all figures of a page have letters of one size
    return f'{head} style="max-width:{figure.get_figwidth() * 96:.0f}px">{rest}'


# ---- places ----------------------------------------------------------------------------------------------------------

DRAWN = {"target": "#FFFFFF", "coarse": "#FF7A1A", "refined": "#22D3FF"}  # on images, over a dark halo
DRAWN_AS = {"target": "target (drawn by hand or given)", "coarse": "coarse map", "refined": "refined map"}


def edges(index: np.ndarray) -> list[list[tuple[float, float]]]:
    """Segments (x, y) between pixels of different classes of a map [H,W], in pixels of the map; none beside ignored
    ones.
    """
    known = index != IGNORE
    rows, cols = np.nonzero((index[:, 1:] != index[:, :-1]) & known[:, 1:] & known[:, :-1])
    upright = [[(c + 0.5, r - 0.5), (c + 0.5, r + 0.5)] for r, c in zip(rows.tolist(), cols.tolist())]
    rows, cols = np.nonzero((index[1:] != index[:-1]) & known[1:] & known[:-1])
    return upright + [[(c - 0.5, r + 0.5), (c + 0.5, r + 0.5)] for r, c in zip(rows.tolist(), cols.tolist())]


@style(themed=False)
def places_figure(panels: Sequence[Panel], title: str = "") -> Figure:
    """One column a place: above the coarse map's edges over the image, below the refined map's, both with the target's."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    figure = new_figure(3.75 * len(panels) + 0.25, 8.25 + (0.3 if title else 0), themed=False)
    grid = figure.subplots(2, len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        maps = {"target": panel.target, "coarse": panel.coarse, "refined": panel.refined}
        for line, kind in enumerate(("coarse", "refined")):
            ax = grid[line, column]
            ax.imshow(panel.image, interpolation="bilinear")
            for name in ("target", kind):
                for width, color in ((3.4, "#000000A0"), (1.7, DRAWN[name])):
                    ax.add_collection(LineCollection(edges(maps[name]), colors=color, linewidths=width, capstyle="projecting"))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if line == 0:
                ax.set_title(panel.title, fontsize=10, loc="left")
            if column == 0:
                ax.set_ylabel(DRAWN_AS[kind], fontsize=11)
    handles = [Line2D([], [], color=color, linewidth=3, label=DRAWN_AS[name]) for name, color in DRAWN.items()]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=3, fontsize=10, frameon=True, facecolor="#5A6470", edgecolor="none"
    )
    for text in legend.get_texts():
        text.set_color("white")
    if title:
        figure.suptitle(textwrap.fill(title, 110, break_long_words=False), fontsize=10)
    return figure


@style(themed=False)
def jpeg(figure: Figure, dpi: int = 100) -> bytes:
    """The contents of a JPEG file: for photographs, a fifth of a PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="jpg", dpi=dpi, pil_kwargs={"quality": 88})
    return out.getvalue()


@style(themed=False)
def png(figure: Figure, dpi: int = 120) -> bytes:
    """The contents of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


# ---- effects ---------------------------------------------------------------------------------------------------------


@style()
def forest(rows: Sequence[tuple[str, float, float, float, str]], xlabel: str) -> Figure:
    """One row an effect: (name, estimate, low, high, mark), with a line at zero; filled where it is marked
    significant.
    """
    names = [textwrap.fill(name, MOST_NAME, break_long_words=False) for name, *_ in rows]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    figure = new_figure(9.5, (0.14 + 0.14 * lines) * len(rows) + 0.9)
    ax = figure.subplots()
    for i, (_, estimate, low, high, mark) in enumerate(rows):
        color = GREY if mark != "*" else (BLUE if estimate > 0 else VERMILLION)
        if np.isfinite(low):
            ax.plot([low, high], [i, i], color=color, linewidth=2, solid_capstyle="butt")
        ax.plot(estimate, i, "o", color=color, markersize=6, markerfacecolor=color if mark == "*" else "none", markeredgewidth=1.5)
    ax.axvline(0, color=_INK, linewidth=0.8)
    ax.set_yticks(range(len(rows)), names, fontsize=9 if lines == 1 else 8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(xlabel, fontsize=9)  # of the figure: beside long names the axes are narrower than their label
    ax.grid(axis="x", linewidth=0.6)
    ax.set_axisbelow(True)
    return figure


def _band(ax: Axes, x: np.ndarray, points: Sequence[Point], label: str, index: int, scale: float = 100.0) -> None:
    value, low, high = (scale * np.array([getattr(p, n) for p in points]) for n in ("value", "low", "high"))
    ax.plot(x, value, marker=MARKERS[index], color=CYCLE[index], markersize=5, linewidth=1.5, label=label)
    ax.fill_between(x, low, high, color=CYCLE[index], alpha=0.18, linewidth=0)


@style()
def distance_figure(curve: DistanceCurve) -> Figure:
    """Accuracy by distance to the boundary, and the paired gain over the first map, with 95 % bands."""
    figure = new_figure(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    x = np.arange(len(curve.low_px))
    names = distance_names(curve)
    order = {name: i for i, name in enumerate(curve.accuracy)}
    for name, points in curve.accuracy.items():
        _band(left, x, points, name, order[name])
    for name, points in curve.gain.items():
        _band(right, x, points, name, order[name])
    right.axhline(0, color=_INK, linewidth=0.8)
    first = next(iter(curve.accuracy))
    for ax, text in ((left, "pixel accuracy (%)"), (right, f"gain over {first} (points)")):
        ax.set_xticks(x, names)
        ax.set_xlabel("distance to the target's boundary (px)")
        ax.set_ylabel(text)
        ax.grid(axis="y", linewidth=0.6)
    left.legend(fontsize=8)
    return figure


@style()
def repair_figure(rows: Sequence[dict[str, float]], names: Sequence[str]) -> Figure:
    """For each class: repaired to the right, damaged to the left, in per cent of its pixels; hatching distinguishes
    them without colour.
    """
    figure = new_figure(5.8, 0.34 * len(rows) + 1.3)
    ax = figure.subplots()
    y = np.arange(len(rows))
    repaired = 100 * np.array([r["repaired"] for r in rows])
    damaged = 100 * np.array([r["damaged"] for r in rows])
    ax.barh(y, repaired, color=BLUE, label="repaired")
    ax.barh(y, -damaged, color=VERMILLION, hatch="///", edgecolor="white", linewidth=0, label="damaged")
    for i, (r, d) in enumerate(zip(repaired, damaged)):
        ax.annotate(f"{r:.2f}", (r, i), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
        ax.annotate(f"{d:.2f}", (-d, i), xytext=(-3, 0), textcoords="offset points", va="center", ha="right", fontsize=8)
    ax.axvline(0, color=_INK, linewidth=0.8)
    ax.set_yticks(y, names)
    ax.margins(x=0.18)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")  # damage to the left is no negative share
    ax.set_xlabel("share of the class's pixels (%)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


@style()
def band_figure(bands: BandCurve) -> Figure:
    """Wrong pixels by size of the erroneous structure, and the share of the first map's that each removed, with 95 %
    bands.
    """
    figure = new_figure(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    x = np.arange(len(bands.names))
    for i, (name, points) in enumerate(bands.error.items()):
        _band(left, x, points, name, i)
        if name in bands.removed:
            _band(right, x, bands.removed[name], name, i)
    right.axhline(0, color=_INK, linewidth=0.8)
    first = next(iter(bands.error))
    for ax, text in ((left, "error (% of all pixels)"), (right, f"share of the error of {first} removed (%)")):
        ax.set_xticks(x, bands.names)
        ax.set_xlabel("size of the erroneous structure (px)")
        ax.set_ylabel(text)
        ax.grid(axis="y", linewidth=0.6)
    left.legend(fontsize=8)
    return figure


@style()
def shares_figure(columns: Mapping[str, tuple[BandCurve, DistanceCurve | None]]) -> Figure:
    """One column a share of the training images: above the error removed by size of structure, below the gain in
    accuracy by distance to the boundary; axes shared along a row.
    """
    figure = new_figure(3.6 * len(columns) + 0.4, 6.2)
    grid = figure.subplots(2, len(columns), squeeze=False, sharey="row")
    for column, (title, (bands, distance)) in enumerate(columns.items()):
        order = {name: i for i, name in enumerate(bands.error)}
        above, below = grid[:, column]
        for name, points in bands.removed.items():
            _band(above, np.arange(len(points)), points, name, order[name])
        above.set_title(title, fontsize=10)
        above.set_xticks(range(len(bands.names)), bands.names)
        above.set_xlabel("size of the erroneous structure (px)")
        if distance is not None:
            for name, points in distance.gain.items():
                _band(below, np.arange(len(points)), points, name, order[name])
            below.set_xticks(range(len(distance.low_px)), distance_names(distance))
            below.set_xlabel("distance to the target's boundary (px)")
        for ax in (above, below):
            ax.axhline(0, color=_INK, linewidth=0.8)
            ax.grid(axis="y", linewidth=0.6)
    first = next(iter(next(iter(columns.values()))[0].error))
    grid[0, 0].set_ylabel(f"share of the error of {first} removed (%)")
    grid[1, 0].set_ylabel(f"gain in accuracy over {first} (points)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def distance_names(curve: DistanceCurve) -> list[str]:
    """`≤2` for each band of distance, `>16` for the last."""
    return [f"≤{high:g}" if np.isfinite(high) else f">{low:g}" for low, high in zip(curve.low_px, curve.high_px)]


# ---- cost and course -------------------------------------------------------------------------------------------------


def numbered_fronts(points: Sequence[CostPoint]) -> dict[str, int]:
    """Variants on either front, numbered by rising cost of refining: names are too long to stand beside their points."""
    front = [p for p in points if any(p.is_on_front.values())]
    front.sort(key=lambda p: [p.cost[cost] for cost in COSTS])
    return {p.variant: i for i, p in enumerate(front, 1)}


@style()
def pareto_figure(points: Sequence[CostPoint], ylabel: str, scale: float = 100.0) -> Figure:
    """Score against seconds a megapixel and against device time of training; the front is a step line, variants carry
    `numbered_fronts`.
    """
    figure = new_figure(9.5, 3.8)
    longest = max((p.cost["training_hours"] for p in points if np.isfinite(p.cost["training_hours"])), default=0.0)
    unit, factor = ("h", 1.0) if longest >= 1 else ("min", 60.0) if longest >= 1 / 60 else ("s", 3600.0)
    numbers, kinds = numbered_fronts(points), list(dict.fromkeys(p.kind for p in points))
    for ax, cost, xlabel, times in zip(
        figure.subplots(1, 2, sharey=True),
        COSTS,
        ("refining (s per megapixel)", f"training of the refiner (device time, {unit})"),
        (1.0, factor),
    ):
        for i, kind in enumerate(kinds):
            of_kind = [p for p in points if p.kind == kind]
            x, y = [times * p.cost[cost] for p in of_kind], [scale * p.score for p in of_kind]
            ax.plot(x, y, MARKERS[i % len(MARKERS)], color=CYCLE[i % len(CYCLE)], markersize=6, label=kind)
        front = sorted((p for p in points if p.is_on_front[cost]), key=lambda p: p.cost[cost])
        steps = [times * p.cost[cost] for p in front], [scale * p.score for p in front]
        ax.step(*steps, where="post", color=_INK, linewidth=1, linestyle="--", label="Pareto front")
        for p, *place in zip(front, *steps):
            ax.annotate(str(numbers[p.variant]), place, xytext=(-5, 5), textcoords="offset points", ha="right", fontsize=8)
        ax.set_xlabel(xlabel)
        ax.grid(linewidth=0.6)
        ax.set_axisbelow(True)
        ax.margins(0.12)
    figure.axes[0].set_ylabel(ylabel)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds) + 1, fontsize=8)
    return figure


@style()
def lines_figure(
    lines: Mapping[str, Sequence[tuple[float, ...]]],
    xlabel: str,
    ylabel: str,
    *,
    scale: float = 1.0,
    log_x: bool = False,
    levels: dict[str, float] | None = None,
) -> Figure:
    """Named lines of (x, y) or (x, y, half width of an error bar), and named horizontal levels."""
    legend_columns = 3 if max(map(len, [*lines, *(levels or {})]), default=0) < 34 else 2
    wrapped = {name: textwrap.fill(name, MOST_NAME, break_long_words=False) for name in lines}
    high = max((name.count("\n") + 1 for name in wrapped.values()), default=1)
    legend_rows = -(-(len(lines) + len(levels or {})) // legend_columns) * high
    figure = new_figure(9.5, 3.3 + 0.19 * legend_rows)
    ax = figure.subplots()
    for i, (name, points) in enumerate(lines.items()):
        x, y = [p[0] for p in points], [scale * p[1] for p in points]
        error = [scale * p[2] for p in points] if points and len(points[0]) > 2 else None
        ax.errorbar(
            x, y, error, marker=MARKERS[i % len(MARKERS)] if len(x) < 30 else "", markersize=5, capsize=3, label=wrapped[name],
            color=CYCLE[i % len(CYCLE)], linestyle=("-", "--", ":")[i // len(CYCLE) % 3], linewidth=1.5,
        )  # fmt: skip
    for i, (name, value) in enumerate((levels or {}).items()):
        ax.axhline(scale * value, color=GREY, linestyle=("-.", ":", "--")[i % 3], linewidth=1.2, label=name)
    if log_x:
        ax.set_xscale("log", base=2)
        ticks = sorted({p[0] for points in lines.values() for p in points})
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=legend_columns, fontsize=8)
    return figure
