"""`idgbr prepare RECIPE`: index the data set of a recipe, check every pair, and show what is there."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idgbr.config import Experiment
from idgbr.errors import BadRequest
from idgbr.labels import IGNORE, ClassTable

if TYPE_CHECKING:
    from idgbr.datasets import Dataset, Raster

CELL_PX = 176  # side of a picture on the contact sheet
CROP_PX = 512  # what it shows: the middle of the raster
PER_SPLIT = 8


def prepare(experiment: Experiment, store: str, *, sheet: Path | None = None, rehash: bool = False) -> Path:
    """Run stage "data" if it is not in the store, print what is there, and write a contact sheet if `sheet` is given.

    Args:
        rehash: read all files again, also those whose size and times of change are as they were.

    Returns:
        The folder with scenes.parquet, classes.json and stats.json; printed last.

    Raises:
        Missing, Disagreement, BadRequest: see `datasets.prepare`; and when the sheet is no PNG or cannot be written.
    """
    from idgbr import datasets, stages
    from idgbr.datasets import index
    from idgbr.files import check_place
    from idgbr.progress import Progress
    from idgbr.store import Store

    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise BadRequest(
                "the contact sheet is a PNG", value=f"--sheet {sheet}", hint=f"--sheet {quote(str(sheet.with_suffix('.png')))}"
            )
        check_place(sheet)
    place = Store(store)
    place.check_writable()
    if rehash:
        datasets.rehash(experiment.data)
    job = next(job for job in stages.jobs(experiment) if job.stage == "data")
    if place.has(job.stage, job.key):
        print(f"data {job.key}: in the store already", file=sys.stderr)
    else:
        with Progress(f"data {job.key}") as progress:
            stages.run(job, place, experiment, report=progress)
    folder = place.path(job.stage, job.key)
    dataset = datasets.load(folder, experiment.data)
    facts = json.loads((folder / "stats.json").read_text())
    print(summary(index.rows(folder), dataset.table, facts))
    if sheet is not None:
        write_sheet(dataset, sheet)
        print(sheet)
    print(folder)
    return folder


def summary(rows: Sequence[dict[str, Any]], table: ClassTable, facts: dict[str, Any]) -> str:
    """Rasters, scenes, size, ground size and shares of the classes by split; notes of the reader; what will be slow."""
    below = f", below {facts['root']}" if facts["root"] else ""
    lines = [f"{facts['source']}: {len(rows)} rasters in {len({r['scene'] for r in rows})} scenes{below}"]
    head = ["split", "scenes", "rasters", "Mpx", "px (m)", "ignored", *table.names]
    cells = [head]
    for split in ("train", "val", "test"):
        part = [r for r in rows if r["split"] == split]
        if not part:
            continue
        labelled = [r for r in part if r["class_px"] is not None]
        counts = np.sum([r["class_px"] for r in labelled], axis=0) if labelled else np.zeros(table.n_classes)
        seen, ignored = float(counts.sum()), sum(r["ignored_px"] for r in labelled)
        sizes = sorted({round(r["gsd_m"], 3) for r in part if r["gsd_m"]})
        ground = "unknown" if not sizes else f"{sizes[0]:g}" if len(sizes) == 1 else f"{sizes[0]:g} to {sizes[-1]:g}"
        shares = [f"{c / seen:.1%}" if seen else "-" for c in counts]
        name = split if len(labelled) == len(part) else f"{split} ({len(part) - len(labelled)} without labels)"
        area = sum(r["height"] * r["width"] for r in part)
        cells.append([name, str(len({r["scene"] for r in part})), str(len(part)), f"{area / 1e6:.1f}", ground,
                      f"{ignored / max(1.0, seen + ignored):.1%}", *shares])  # fmt: skip
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines += ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in cells]
    kinds = sorted({f"{r['image_bands']} x {r['dtype']}" for r in rows})
    lines.append(f"bands {', '.join(map(str, facts['bands']))} of {' or '.join(kinds)}; measured on {facts['measured_on']} rasters:")
    lines.append("  mean " + " ".join(f"{v:.4g}" for v in facts["mean"]) + ", std " + " ".join(f"{v:.4g}" for v in facts["std"]))
    empty = [name for name, count in zip(table.names, np.sum([r["class_px"] for r in rows if r["class_px"]], axis=0)) if not count]
    if empty:
        lines.append(f"note: no pixel of {', '.join(empty)}")
    slow = [r for r in rows if r["height"] * r["width"] > 4096**2 and r["block_rows"] * r["block_cols"] >= 4 * 512**2]
    slow += [r for r in rows if r["block_cols"] >= r["width"] > 4096 and r not in slow]
    if slow:
        lines.append(
            f"note: {len(slow)} large rasters are not tiled, so a window costs much of a file; "
            "once for each: `rio convert IN OUT.tif --co TILED=YES --co COMPRESS=DEFLATE`"
        )
    lines += [f"note: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def write_sheet(dataset: Dataset, path: Path) -> None:
    """PNG: the middle of up to 8 rasters of every split, image above label in class colours, with a legend.

    Raises:
        Missing: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    from idgbr.files import not_written, whole

    splits = {split: [r for r in dataset.rasters if r.split == split] for split in ("train", "val", "test")}
    chosen = {split: _spread(rasters) for split, rasters in splits.items() if rasters}
    columns = max(3, max(len(rasters) for rasters in chosen.values()))
    band, gap = 16, 4
    height = sum(2 * CELL_PX + band + gap for _ in chosen) + 24
    canvas = Image.new("RGB", (columns * (CELL_PX + gap) + gap, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for split, rasters in chosen.items():
        draw.text((gap, top + 2), f"{split}: {len(rasters)} of {len(splits[split])} rasters", fill="black")
        for i, raster in enumerate(rasters):
            left = gap + i * (CELL_PX + gap)
            image, label = _pictures(dataset, raster)
            canvas.paste(Image.fromarray(image), (left, top + band))
            if label is not None:
                canvas.paste(Image.fromarray(label), (left, top + band + CELL_PX))
        top += 2 * CELL_PX + band + gap
    left = gap
    for name, color in [*zip(dataset.table.names, dataset.table.colors), ("ignored", (128, 128, 128))]:
        draw.rectangle((left, top + 4, left + 12, top + 16), fill=color, outline="black")
        draw.text((left + 16, top + 4), name, fill="black")
        left += 28 + int(draw.textlength(name))
    data = io.BytesIO()
    canvas.save(data, "PNG")
    try:
        with whole(path) as temporary:
            temporary.write_bytes(data.getvalue())
    except OSError as error:
        raise not_written(path, error) from error


def _spread(rasters: Sequence[Raster]) -> list[Raster]:
    places = np.unique(np.linspace(0, len(rasters) - 1, min(PER_SPLIT, len(rasters))).astype(int))
    return [rasters[i] for i in places]


def _pictures(dataset: Dataset, raster: Raster) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Image (first three bands read, stretched between the 1st and 99th percentile) and label colours, [CELL_PX, CELL_PX, 3]."""
    import cv2

    from idgbr.rasters.read import read_labels

    side = min(CROP_PX, max(raster.height, raster.width))
    row, col = (max(0, (length - side) // 2) for length in (raster.height, raster.width))
    raw, valid = raster.reader(dataset.bands).read(row, col, side, side)
    bands = [0, 1, 2] if len(raw) >= 3 else [0, 0, 0]
    low, high = (np.array(v, np.float32)[bands] for v in (dataset.stats.low, dataset.stats.high))
    shown = np.clip((raw[bands].transpose(1, 2, 0) - low) / np.maximum(high - low, 1e-6), 0, 1)
    shown[~valid] = 1
    image = np.asarray(cv2.resize((shown * 255).astype(np.uint8), (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA), np.uint8)
    if raster.label is None:
        return image, None
    label = read_labels(raster.label, dataset.table, row, col, side, side)
    label[~valid] = IGNORE
    colours = cv2.resize(dataset.table.colorize(label), (CELL_PX, CELL_PX), interpolation=cv2.INTER_NEAREST)
    return image, np.asarray(colours, np.uint8)
