"""`idgbr prepare RECIPE`: index the data set of a recipe, check every pair, and show what is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np

from idgbr.config import Experiment
from idgbr.errors import BadRequest
from idgbr.interfaces import Json
from idgbr.labels import ClassTable

if TYPE_CHECKING:
    from idgbr.datasets import Dataset


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
    job = stages.data_job(experiment)
    if place.has(job.stage, job.key):
        print(f"data {job.key}: in the store already", file=sys.stderr)
    else:
        with Progress(f"data {job.key}") as progress:
            stages.run(job, place, experiment, report=progress)
    folder = place.path(job.stage, job.key)
    dataset = datasets.load(folder, experiment.data)
    facts = json.loads((folder / "stats.json").read_text())
    rows = index.rows(folder)
    print(summary(rows, dataset.table, facts))
    for line in warnings(dataset, rows, folder):
        print(line)
    if sheet is not None:
        from idgbr.commands.contact_sheet import write_sheet

        write_sheet(dataset, sheet)
        print(sheet)
    print(folder)
    return folder


def warnings(dataset: Dataset, rows: Sequence[Json], folder: Path) -> list[str]:
    """Lines about what may be wrong with the labels or the splits, measured on a sample of the rasters
    (`datasets.checks`)."""
    from idgbr.datasets import checks

    seen = list(checks.look(dataset))
    found = [*checks.unlikely_shares(rows, dataset.table), *checks.warnings_of(seen, dataset.table)]
    clear = [s.shift for s in seen if s.shift is not None and s.shift.clear]
    lines = []
    if clear:
        right, down = (float(np.median([getattr(shift, axis) for shift in clear])) for axis in ("right", "down"))
        lines.append(
            f"label edges agree best with the image when moved by ({right:+g}, {down:+g}) px (right, down): median of {len(clear)} rasters"
        )
    return [*lines, *(f"warning: {text}" for text in (*found, *near_duplicates(rows, folder)))]


def near_duplicates(rows: Sequence[Json], folder: Path) -> list[str]:
    """Rasters of validation and test that look like a training raster."""
    from idgbr.datasets import looks
    from idgbr.datasets.folder import some

    pictures = looks.load(folder)
    if pictures is None:
        return ["this data set was prepared by an earlier version, so near-duplicates between splits were not looked for"]
    by_split = {split: {r["id"]: pictures[r["id"]] for r in rows if r["split"] == split} for split in ("train", "val", "test")}
    out = []
    for split in ("val", "test"):
        if pairs := looks.alike(by_split["train"], by_split[split]):
            named = some([f"{a} and {b} ({c:.2f})" for a, b, c in pairs])
            out.append(f"{len(pairs)} rasters of {split} look like one of train (correlation of small copies): {named}")
    return out


def summary(rows: Sequence[Json], table: ClassTable, facts: Json) -> str:
    """Rasters, scenes, size, ground size and shares of the classes by split; notes of the reader; what will be
    slow."""
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
