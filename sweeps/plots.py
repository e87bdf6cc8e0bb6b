"""Figures. Colours: Okabe and Ito (2008), told apart with every kind of colour vision; never by colour alone.

Figures for the report are SVG whose ink is `currentColor` and whose grid is `var(--grid)`, so that they follow light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
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
    for axes, panel in zip(grid, panels):
        pictures: list[Any] = [panel.image, *(table.colorize(m) for m in (panel.coarse, panel.refined, panel.target)), panel.change]
        for i, (ax, picture, name) in enumerate(zip(axes, pictures, columns)):
            if name == "change":
                ax.imshow(picture, cmap=ListedColormap(CHANGE_COLORS), vmin=-0.5, vmax=len(CHANGES) - 0.5, interpolation="nearest")
            else:
                ax.imshow(picture, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(True)
            if axes is grid[0]:
                ax.set_title(name, fontsize=10)
            if i == 0:
                ax.set_ylabel(panel.title, fontsize=8)
    handles = [Patch(facecolor=np.array(c.color) / 255, edgecolor="#555555", label=c.name) for c in table.classes]
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
