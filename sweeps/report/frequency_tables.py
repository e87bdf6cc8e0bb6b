"""Which sizes of error each kind of map removes, by share of the training images: the claim that diffusion learns high
frequencies and discriminative networks low ones (arXiv 2507.01573, introduction), as a table and a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from idgbr.errors import BadRequest
from sweeps.analysis import breakdowns
from sweeps.analysis.breakdowns import Point
from sweeps.analysis.variants import Variant
from sweeps.analysis.views import View
from sweeps.report.formats import Cell, Column, Table
from sweeps.report.score_tables import heading

IMAGES = "refiner.train_images"
KINDS = ("one_pass", "cascade", "diffusion")


def by_images(view: View) -> dict[int, list[Variant]]:
    """Training images of the refiner, most first -> its one_pass, cascade and diffusion, those that are there.

    Raises:
        BadRequest: several variants of one kind saw the same images: which one is meant?
    """
    out: dict[int, list[Variant]] = {}
    for kind in KINDS:
        for v in view.population.variants:
            if v.kind != kind or v.axes.get(IMAGES) is None:
                continue
            images = int(float(str(v.axes[IMAGES])))
            if any(other.kind == kind for other in out.setdefault(images, [])):
                raise BadRequest(
                    f"several variants of {kind} were trained on {images} images", value=v.label, hint='--where "..." leaves one of them'
                )
            out[images].append(v)
    return dict(sorted(out.items(), reverse=True))


def title_of(images: int, most: int) -> str:
    """`50 % of the training images (3,000)`."""
    return f"{100 * images / most:.0f} % of the training images ({images:,})"


def columns_of(view: View) -> list[tuple[int, list[Variant]]]:
    """(images, coarse map and refined ones) for each number of training images; empty without an axis of them."""
    coarse = [v for v in view.population.variants if v.kind == "coarse"]
    if IMAGES not in view.population.axes or len(coarse) != 1:
        return []
    return [(images, [coarse[0], *found]) for images, found in by_images(view).items()]


def frequency_table(view: View, metric: str) -> Table | None:
    """Share of the coarse map's error removed in every frequency band; None without an axis of training images or
    without frequency counts.
    """
    rows: list[Sequence[Cell]] = []
    names: tuple[str, ...] = ()
    for images, maps in columns_of(view):
        bands = breakdowns.by_band(view, maps)
        if bands is None:
            return None
        names = bands.names
        for kind, points in bands.removed.items():
            rows.append([Cell(f"{images}", images, sort=images), Cell(kind), *(_cell(p) for p in points)])
    if not rows:
        return None
    header, facts = heading(view, "coarse", metric)
    columns = [Column("images", "training images"), Column("map", "map", False)]
    columns += [Column(f"removed_{i}", f"{name} px [95 %]") for i, name in enumerate(names)]
    notes = (
        "Share of the coarse map's error removed, in per cent, by size of the erroneous structure (docs/scores.md): high frequencies left, "
        "low ones right; below zero where error was added. Seeds averaged.",
        f"Intervals: jackknife over {view.sums.unit_kind}s (t), each by itself: no test, and no correction for how many there are.",
    )
    study = ", ".join(view.trials.studies)
    return Table(
        f"frequency-{view.name}", f"{study}: error removed by frequency band", header, tuple(columns), tuple(map(tuple, rows)), notes, facts
    )


def _cell(p: Point) -> Cell:
    text = f"{100 * p.value:+.1f}"
    if math.isfinite(p.low):
        text += f" [{100 * p.low:+.1f}, {100 * p.high:+.1f}]"
    return Cell(text, {"value": p.value, "low": p.low, "high": p.high}, sort=p.value)


def paragraph(view: View) -> str:
    """What the figure shows, in words: where each kind of map removes most, and whether diffusion's bands differ from
    one pass's.
    """
    sentences = []
    found = columns_of(view)
    most = max((images for images, _ in found), default=0)
    for images, maps in found:
        bands = breakdowns.by_band(view, maps)
        if bands is None:
            continue
        told = []
        for kind, points in bands.removed.items():
            sure = [name for name, p in zip(bands.names, points) if p.low > 0]
            worse = [name for name, p in zip(bands.names, points) if p.high < 0]
            text = f"{kind} removes error of {', '.join(sure)} px" if sure else f"{kind} removes error of no size for certain"
            told.append(text + (f" and adds error of {', '.join(worse)} px" if worse else ""))
        sentences.append(f"With {title_of(images, most)}: {'; '.join(told)}.")
        paired = by_pair(view, maps)
        if paired:
            sentences.append(paired)
    return " ".join(sentences)


def by_pair(view: View, maps: Sequence[Variant]) -> str:
    """Diffusion against one pass, band by band, paired by unit; empty where one of them is missing."""
    kinds = {v.kind: v for v in maps}
    if not {"one_pass", "diffusion"} <= set(kinds):
        return ""
    bands = breakdowns.by_band(view, [kinds["one_pass"], kinds["diffusion"]])
    if bands is None:
        return ""
    points = dict(zip(bands.names, bands.removed["diffusion"]))
    told = [f"{100 * p.value:+.1f} % [{100 * p.low:+.1f}, {100 * p.high:+.1f}] at {name} px" for name, p in points.items()]
    sure = [name for name, p in points.items() if p.low > 0 or p.high < 0]
    verdict = f"clear of zero at {', '.join(sure)} px" if sure else "none clear of zero"
    return f"Of one_pass's error diffusion removes {', '.join(told)}: {verdict}."
