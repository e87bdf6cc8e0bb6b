"""Figures. Colours: Okabe and Ito (2008), told apart with every kind of colour vision; never by colour alone.

Figures for the report are SVG whose ink is `currentColor` and whose grid is `var(--grid)`, so that they follow light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idgbr.labels import ClassTable
from sweeps.tile_panels import CHANGES, Panel

if TYPE_CHECKING:
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
CHANGE_COLORS = ("#F2F2F2", BLUE, VERMILLION, "#4D4D4D", "#C9B8DD")  # in the order of CHANGES
_INK, _GRID = "#010203", "#010204"  # stand-ins, replaced in the SVG


def new_figure(width: float, height: float, themed: bool = True) -> Figure:
    """A figure without any window; `themed`: ink and grid are stand-ins that `svg` replaces."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as MplFigure

    ink, grid = (_INK, _GRID) if themed else ("#222222", "#DDDDDD")
    for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
        matplotlib.rcParams[key] = ink
    matplotlib.rcParams.update(
        {
            "grid.color": grid,
            "svg.fonttype": "none",
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "axes.facecolor": "none",
            "svg.hashsalt": "idgbr",
        }
    )
    return MplFigure(figsize=(width, height), layout="constrained", facecolor="none" if themed else "white")


def svg(figure: Figure) -> str:
    """Inline SVG without declaration, sized by its container."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1sans-serif", text)
    return re.sub(
        r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"|(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2\3\4", text, count=1
    )


# ---- tiles ---------------------------------------------------------------------------------------------------------------------


def tiles_figure(panels: Sequence[Panel], table: ClassTable, title: str = "") -> Figure:
    """One row a tile: image, coarse, refined, target, change; class colours and change colours in a legend below."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    columns = ("image", "coarse", "refined", "target", "change")
    figure = new_figure(11, 2.35 * len(panels) + 0.9, themed=False)
    grid = figure.subplots(len(panels), 5, squeeze=False)
    for line, (axes, panel) in enumerate(zip(grid, panels)):
        pictures: list[Any] = [panel.image, *(table.colorize(m) for m in (panel.coarse, panel.refined, panel.target)), panel.change]
        for i, (ax, picture, name) in enumerate(zip(axes, pictures, columns)):
            if name == "change":
                ax.imshow(picture, cmap=ListedColormap(CHANGE_COLORS), vmin=-0.5, vmax=len(CHANGES) - 0.5, interpolation="nearest")
            else:
                ax.imshow(picture, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(True)
            if line == 0:
                ax.set_title(name, fontsize=10)
            if i == 0:
                ax.set_ylabel(panel.title, fontsize=8)
    handles = [Patch(facecolor="#{:02x}{:02x}{:02x}".format(*c.color), edgecolor="#555555", label=c.name) for c in table.classes]
    handles += [Patch(facecolor=c, edgecolor="#555555", label=n) for n, c in zip(CHANGES, CHANGE_COLORS)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save_png(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Whole file or nothing."""
    from sweeps.written import write_bytes

    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    write_bytes(path, out.getvalue())
    return path


# ---- effects -------------------------------------------------------------------------------------------------------------------


def forest(rows: Sequence[tuple[str, float, float, float, str]], xlabel: str) -> Figure:
    """One row an effect: (name, estimate, low, high, mark), with a line at zero; filled where it is marked significant."""
    figure = new_figure(7, 0.34 * len(rows) + 0.9)
    ax = figure.subplots()
    for i, (_, estimate, low, high, mark) in enumerate(rows):
        color = GREY if mark != "*" else (BLUE if estimate > 0 else VERMILLION)
        if np.isfinite(low):
            ax.plot([low, high], [i, i], color=color, linewidth=2, solid_capstyle="butt")
        ax.plot(estimate, i, "o", color=color, markersize=6, markerfacecolor=color if mark == "*" else "none", markeredgewidth=1.5)
    ax.axvline(0, color=_INK, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", linewidth=0.6)
    ax.set_axisbelow(True)
    return figure


def _band(ax: Any, x: np.ndarray, points: Sequence[Any], label: str, index: int, scale: float = 100.0) -> None:
    value, low, high = (scale * np.array([getattr(p, n) for p in points]) for n in ("value", "low", "high"))
    ax.plot(x, value, marker=MARKERS[index], color=CYCLE[index], markersize=5, linewidth=1.5, label=label)
    ax.fill_between(x, low, high, color=CYCLE[index], alpha=0.18, linewidth=0)


def distance_figure(curve: Any) -> Figure:
    """Accuracy by distance to the boundary, and the paired gain over the first map, with 95 % bands."""
    figure = new_figure(8.5, 3.3)
    left, right = figure.subplots(1, 2)
    x = np.arange(len(curve.low_px))
    names = [f"≤{high:g}" if np.isfinite(high) else f">{low:g}" for low, high in zip(curve.low_px, curve.high_px)]
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


def repair_figure(rows: Sequence[dict[str, float]], names: Sequence[str]) -> Figure:
    """For each class: repaired to the right, damaged to the left, in per cent of its pixels; hatching tells them apart without colour."""
    figure = new_figure(7, 0.45 * len(rows) + 1.2)
    ax = figure.subplots()
    y = np.arange(len(rows))
    repaired = 100 * np.array([r["repaired"] for r in rows])
    damaged = 100 * np.array([r["damaged"] for r in rows])
    ax.barh(y, repaired, color=BLUE, label="repaired")
    ax.barh(y, -damaged, color=VERMILLION, hatch="///", edgecolor="white", linewidth=0, label="damaged")
    for i, (r, d) in enumerate(zip(repaired, damaged)):
        ax.text(r, i, f" {r:.2f}", va="center", fontsize=8)
        ax.text(-d, i, f"{d:.2f} ", va="center", ha="right", fontsize=8)
    ax.axvline(0, color=_INK, linewidth=0.8)
    ax.set_yticks(y, names)
    ax.margins(x=0.18)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("share of the class's pixels (%)")
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def frequency_figure(gains: Sequence[tuple[str, Any]]) -> Figure:
    """Error energy removed by size of structure, with 95 % intervals."""
    figure = new_figure(7, 3)
    ax = figure.subplots()
    x = np.arange(len(gains))
    values = 100 * np.array([p.value for _, p in gains])
    low, high = (100 * np.array([getattr(p, n) for _, p in gains]) for n in ("low", "high"))
    ax.bar(x, values, color=[BLUE if v >= 0 else VERMILLION for v in values], width=0.6, alpha=0.85)
    known = np.isfinite(low)
    ax.errorbar(
        x[known], values[known], [values[known] - low[known], high[known] - values[known]], fmt="none", ecolor=_INK, capsize=4, linewidth=1
    )
    ax.axhline(0, color=_INK, linewidth=0.8)
    ax.set_xticks(x, [name for name, _ in gains])
    ax.set_xlabel("size of the erroneous structure (fine to coarse)")
    ax.set_ylabel("error energy removed (%)")
    ax.grid(axis="y", linewidth=0.6)
    ax.set_axisbelow(True)
    return figure


# ---- cost and course -----------------------------------------------------------------------------------------------------------


def pareto_figure(points: Sequence[dict[str, Any]], ylabel: str, scale: float = 100.0) -> Figure:
    """Score against seconds a megapixel and against training hours; the front is a step line, its variants are named."""
    figure = new_figure(9, 3.6)
    for ax, cost, xlabel in zip(
        figure.subplots(1, 2, sharey=True),
        ("seconds_per_megapixel", "training_hours"),
        ("refining (s per megapixel)", "training of the refiner (h)"),
    ):
        kinds = list(dict.fromkeys(p["kind"] for p in points))
        for i, kind in enumerate(kinds):
            mine = [p for p in points if p["kind"] == kind]
            ax.plot([p[cost] for p in mine], [scale * p["score"] for p in mine], MARKERS[i], color=CYCLE[i], markersize=6, label=kind)
        front = sorted((p for p in points if p[f"front_{cost}"]), key=lambda p: p[cost])
        ax.step([p[cost] for p in front], [scale * p["score"] for p in front], where="post", color=_INK, linewidth=1, linestyle="--")
        ax.set_xlabel(xlabel)
        ax.grid(linewidth=0.6)
        ax.margins(0.12)
        if cost == "seconds_per_megapixel":
            ax.set_ylabel(ylabel)
            ax.legend(fontsize=8, loc="lower right")
        for p in front[:8]:
            short = p["variant"].replace("diffusion, ", "").replace("guidance_width", "width")
            ax.annotate(short, (p[cost], scale * p["score"]), xytext=(4, -9), textcoords="offset points", fontsize=6.5)
    return figure


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
    figure = new_figure(8, 3.6)
    ax = figure.subplots()
    for i, (name, points) in enumerate(lines.items()):
        x, y = [p[0] for p in points], [scale * p[1] for p in points]
        error = [scale * p[2] for p in points] if points and len(points[0]) > 2 else None
        style: dict[str, Any] = {"color": CYCLE[i % len(CYCLE)], "linestyle": ("-", "--", ":")[i // len(CYCLE) % 3], "linewidth": 1.5}
        ax.errorbar(x, y, error, marker=MARKERS[i % len(MARKERS)] if len(x) < 30 else "", markersize=5, capsize=3, label=name, **style)
    for i, (name, value) in enumerate((levels or {}).items()):
        ax.axhline(scale * value, color=GREY, linestyle=("-.", ":")[i % 2], linewidth=1.2, label=name)
    if log_x:
        ax.set_xscale("log", base=2)
        ticks = sorted({p[0] for points in lines.values() for p in points})
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(linewidth=0.6)
    figure.legend(loc="outside right center", fontsize=7.5)
    return figure
