"""Stage "data": opens every pair once, checks it, measures the bands, and writes the index. Pixels of user data are
never copied.

out/scenes.parquet    one row a raster (index.SCHEMA)
out/classes.json      the class table
out/looks.npz         a small grey picture of every raster, to find near-duplicates
out/stats.json        band statistics of the training rasters, and what was read from where
out/*.tif             synthetic scenes only
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idgbr.config import DataConfig
from idgbr.datasets import index, looks, synthetic
from idgbr.datasets.digest import digests, digests_beside
from idgbr.datasets.folder import select, some
from idgbr.datasets.ids import told_apart
from idgbr.datasets.layout import SPLITS, Entry, Found, Layout
from idgbr.datasets.looks import Looker
from idgbr.datasets.moments import SAMPLES, Gatherer, Moments, band_stats
from idgbr.datasets.sources import layout
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.files import require_variables
from idgbr.interfaces import Report
from idgbr.labels import IGNORE, ClassTable
from idgbr.machine import allowed_cores, expanded
from idgbr.rasters.beside import files_beside

STRIP_PX = 4_000_000  # pixels read at once: bounds memory for scenes of any size, whole rows so that JPEG and striped files decode once
SPAWN_BYTES = 300_000_000  # compressed imagery above which a second process pays for its start


def prepare(config: DataConfig, out: Path, report: Report | None = None) -> None:
    """Index the data set of `config` into `out`.

    Args:
        report: called as report(stage="data", done=, total=) for every raster.

    Raises:
        Missing: root, files or class table not there; says what was expected and found.
        Disagreement: unreadable or truncated file, image and label of different size, unknown codes, one scene or one
            image in two splits.
        BadRequest: unknown source, wrong filter.
    """
    from idgbr.rasters.codes import settled

    source = layout(config.source)
    out.mkdir(parents=True, exist_ok=True)
    root: Path | None = None
    if source.find is None:
        found = Found(tuple(synthetic.write(config, out, report)))
        base, table = out.absolute(), synthetic.table(config.n_classes)
    else:
        root = base = _root(config, source)
        found = find(config)
        table = class_table(config, source, found)
    check_splits(found.entries)
    table, settled_notes = settled([path for e in found.entries for path in (e.label, e.label_eroded) if path is not None], table)
    found = dataclasses.replace(found, notes=(*found.notes, *settled_notes))
    contents = digests(_paths(found))
    rows: list[dict[str, Any]] = []
    totals: dict[bool, Moments] = {}  # of training rasters, of others
    flat: set[str] = set()
    pictures = []
    meant: dict[str, list[str]] = defaultdict(list)  # how label files are read, where that is not plain
    for entry, (row, moment) in zip(found.entries, _inspect_all(found.entries, table, config.bands, report, source.alpha_is_data)):
        row |= {"image": _below(entry.image, base), "label": _below(entry.label, base), "label_eroded": _below(entry.label_eroded, base)}
        row |= {"image_digest": contents[entry.image], "label_digest": contents[entry.label] if entry.label else None}
        pictures.append(row.pop("_look"))
        if note := row.pop("_note"):
            meant[note].append(entry.id)
        rows.append(row)
        train = entry.split == "train"
        totals[train] = totals[train] + moment if train in totals else moment
        if moment.flat:
            flat.add(entry.id)
    _place(rows)
    notes = [*found.notes, *(f"{note}: {len(ids)} label files ({some(ids, 3)})" for note, ids in meant.items())]
    notes += _duplicates([r for r in rows if r["id"] not in flat], config.allow_duplicates)
    stats = band_stats(totals[True] if True in totals else totals[False])
    facts = {
        "source": config.source,
        "root": "" if root is None or root == source.built_in else str(root),
        "bands": list(config.bands),
        "block_m": config.block_m,
        "notes": notes,
        "measured_on": "train" if True in totals else "all",
        "alpha_is_data": source.alpha_is_data,
    }
    looks.save(out, [row["id"] for row in rows], pictures)
    index.save(out, rows, table, stats, facts)


def rehash(config: DataConfig) -> None:
    """Read every file of the data set again for its digest, whatever is remembered of it.

    Raises: as `input_digest`.
    """
    if layout(config.source).find is not None:
        found = find(config)
        paths = _paths(found)
        beside = [other for others in files_beside(paths).values() for other in others]
        digests([*paths, *found.extra_files, *beside], rehash=True)


def _paths(found: Found) -> list[Path]:
    return [path for e in found.entries for path in (e.image, e.label, e.label_eroded) if path is not None]


def input_digest(config: DataConfig) -> str:
    """Digest of everything the files contribute to stage "data": names, splits, contents, class table. Paths above
    the root do not count.

    Files beside an image or a label that decide what it says (`rasters.beside`) count too; a set without any keeps
    its digest.

    Raises:
        Missing, Disagreement, BadRequest: as `prepare`, as far as names tell.
    """
    source = layout(config.source)
    if source.find is None:
        return f"synthetic-{synthetic.VERSION}"
    root, found = _root(config, source), find(config)
    contents = digests([*_paths(found), *found.extra_files])

    def named(path: Path | None) -> list[str] | None:
        return None if path is None else [str(_below(path, root)), contents[path]]

    parts = [[e.id, e.scene, e.split, named(e.image), named(e.label), named(e.label_eroded), e.gsd_m, e.x_m, e.y_m] for e in found.entries]
    known = {path for e in found.entries if e.gsd_m is not None for path in (e.image, e.label, e.label_eroded)}
    beside = [[str(_below(path, root)), named] for path, named in sorted(digests_beside(_paths(found), known).items())]
    more = [beside] if beside else []
    text = json.dumps([parts, json.loads(class_table(config, source, found).to_json()), [contents[p] for p in found.extra_files], *more])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def find(config: DataConfig) -> Found:
    """What the layout's reader finds below the root, by name only.

    Raises:
        Missing, Disagreement, BadRequest: as `prepare`.
    """
    source = layout(config.source)
    if source.find is None:
        raise BadRequest("synthetic scenes are made, not found", value=f"data.source={config.source}")
    root = _root(config, source)
    found = source.find(root, config)
    found = dataclasses.replace(found, entries=told_apart(found.entries, root))
    if config.where and not source.filters_rows:
        rows = [{"id": e.id, "scene": e.scene, "split": e.split} for e in found.entries]
        kept = {row["id"] for row in select(rows, config.where, Path(source.title))}
        found = dataclasses.replace(found, entries=tuple(e for e in found.entries if e.id in kept))
    if not found.entries:
        raise Missing(f"no image and label pairs of {source.title} in {config.root}", allowed=source.expected)
    ids = defaultdict(list)
    for entry in found.entries:
        ids[entry.id].append(entry.image)
    twice = [f"{name}: {', '.join(str(p) for p in paths)}" for name, paths in ids.items() if len(paths) > 1]
    if twice:
        raise Disagreement("one file for two rasters", value=some(twice, 3), hint="take one of them out of the split table")
    return found


def class_table(config: DataConfig, source: Layout, found: Found) -> ClassTable:
    """`data.classes`, else classes.json of an own folder, else the table of the layout."""
    if config.classes:
        return ClassTable.load(expanded(config.classes))
    table = found.table or source.table
    return table if table is not None else ClassTable.load(_root(config, source) / "classes.json")


def check_splits(entries: Sequence[Entry]) -> None:
    """Raises:
    Disagreement: a scene in two splits, or one file for two rasters of different splits.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.split not in SPLITS:
            raise Disagreement(f"{entry.id} is in an unknown split", value=entry.split, allowed=", ".join(SPLITS))
        splits[entry.scene].add(entry.split)
    shared = sorted(scene for scene, found in splits.items() if len(found) > 1)
    if shared:
        raise Disagreement(
            "one scene in two splits: its pixels would be trained on and judged by",
            value=some([f"{s} ({', '.join(sorted(splits[s]))})" for s in shared]),
            hint="give every scene to one split; `scene` in the split table says what belongs together",
        )


def _root(config: DataConfig, source: Layout) -> Path:
    if not config.root and source.built_in is not None:
        return source.built_in
    require_variables(config.root, "data.root")
    if not config.root:
        raise Missing(f"{source.title} needs its folder", allowed=f"a folder with {source.expected}", hint="data.root=FOLDER")
    root = expanded(config.root).absolute()
    if not root.is_dir():
        parent = next(p for p in root.parents if p.is_dir())
        there = some(sorted(p.name for p in parent.iterdir() if p.is_dir())) or "no folders"
        raise Missing(
            f"no folder {root}",
            value=f"data.root={config.root}; {parent} holds {there}",
            allowed=f"a folder with {source.expected}",
            hint="data.root=FOLDER of the unpacked download",
        )
    return root


def _below(path: Path | None, root: Path) -> str | None:
    if path is None:
        return None
    text, above = str(path.absolute()), f"{root}{os.sep}"
    return text[len(above) :] if text.startswith(above) else text


# ---- one raster ---------------------------------------------------------------------------------------------------------


def inspect(
    entry: Entry, table: ClassTable, bands: tuple[int, ...], samples: int = SAMPLES, alpha_is_data: bool = False
) -> tuple[dict[str, Any], Moments]:
    """Read one pair completely. Returns its row of the index (without paths) and the moments of its bands.

    Raises:
        Missing, Disagreement: see `prepare`.
    """
    from idgbr.rasters.codes import coding_of
    from idgbr.rasters.read import Grid, Reader, opened

    reader = Reader(entry.image, bands, alpha_is_data=alpha_is_data)
    grid = reader.grid
    for label in (entry.label, entry.label_eroded):
        if label is not None:
            other = Grid.of(label)
            if (other.height, other.width) != (grid.height, grid.width):
                raise Disagreement(
                    f"image and label of {entry.id} differ in size",
                    value=f"{entry.image} is {grid.width} x {grid.height}, {label} is {other.width} x {other.height}",
                    hint="put the right pair together; labels are never resampled",
                )
    with opened(entry.image) as source:
        facts = {
            "image_bands": source.count,
            "dtype": source.dtypes[0],
            "compression": source.compression.value if source.compression else None,
            "block_rows": source.block_shapes[0][0],
            "block_cols": source.block_shapes[0][1],
        }
    count = max(1, STRIP_PX // grid.width)
    class_px = np.zeros(256, np.int64)
    gatherer = Gatherer(len(bands), facts["dtype"], grid.height * grid.width, samples)
    looker = Looker(grid.height)
    for row in range(0, grid.height, count):
        height = min(count, grid.height - row)
        image, valid = reader.read(row, 0, height, grid.width)
        gatherer.add(image, valid)
        looker.add(row, image)
        if entry.label is not None:
            classes = _classes(entry.label, table, row, height, grid.width)
            classes[~valid] = IGNORE
            class_px += np.bincount(classes.ravel(), minlength=256)
        if entry.label_eroded is not None:
            _classes(entry.label_eroded, table, row, height, grid.width)
    gsd = entry.gsd_m if entry.gsd_m is not None else grid.metres()
    sides = grid.sides_m() or (gsd, gsd)
    row_of_index = {
        "id": entry.id,
        "scene": entry.scene,
        "split": entry.split,
        "height": grid.height,
        "width": grid.width,
        "gsd_m": gsd,
        "x_m": entry.x_m,
        "y_m": entry.y_m,
        "_corner": (grid.transform.c, -grid.transform.f, *(grid.unit_m() or (1.0, 1.0))) if grid.crs is not None else None,
        "_sides": sides if gsd else None,
        "crs": grid.crs.to_string() if grid.crs else None,
        "transform": list(grid.transform)[:6],
        "nodata": _number(reader.nodata),
        **facts,
        "valid_px": gatherer.n,
        "_look": looker.result(),
        "_note": coding_of(entry.label, table).note if entry.label else None,
        "ignored_px": int(class_px[IGNORE]) if entry.label else None,
        "class_px": class_px[: table.n_classes].tolist() if entry.label else None,
    }
    return row_of_index, gatherer.result()


def _classes(path: Path, table: ClassTable, row: int, height: int, width: int) -> NDArray[np.uint8]:
    """`read_labels` of whole rows; unknown codes that are grey rims are called so."""
    from idgbr.rasters.read import read_labels

    try:
        return read_labels(path, table, row, 0, height, width)
    except Disagreement as error:
        from idgbr.datasets.checks import grey_rims

        rims = grey_rims(path, table)
        if rims is None:
            raise
        raise Disagreement(rims, value=str(error).partition("Given: ")[2].partition(" Allowed:")[0].rstrip(".") or None) from error


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _inspect_all(
    entries: Sequence[Entry], table: ClassTable, bands: tuple[int, ...], report: Report | None, alpha_is_data: bool
) -> Iterator[tuple[dict[str, Any], Moments]]:
    cores = allowed_cores()
    size = sum(e.image.stat().st_size for e in entries)
    each = (entries, *([value] * len(entries) for value in (table, bands, max(200, SAMPLES // len(entries)), alpha_is_data)))
    if cores < 2 or size < SPAWN_BYTES or len(entries) < 2:
        results: Iterator[Any] = map(inspect, *each)
        yield from _told(results, len(entries), report)
        return
    with ProcessPoolExecutor(min(cores, 8), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from _told(pool.map(inspect, *each, chunksize=max(1, min(16, len(entries) // 64))), len(entries), report)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _told(results: Iterator[Any], total: int, report: Report | None) -> Iterator[Any]:
    for done, result in enumerate(results, 1):
        if report is not None:
            report(stage="data", done=done, total=total)
        yield result


# ---- over all rasters ---------------------------------------------------------------------------------------------------


def _place(rows: list[dict[str, Any]]) -> None:
    """x_m, y_m: by the names, else by the georeference relative to the scene's upper left, else 0.

    One scale for all rasters of a scene: a degree of longitude is 0.01 % shorter a kilometre farther from the
    equator, and coordinates are large. Where a pixel is not square on the ground, the corner is put such that the
    raster's middle is where it is: `index.block` asks.
    """
    corners = defaultdict(list)
    for row in rows:
        if row["_corner"] is not None:
            corners[row["scene"], row["crs"]].append(row["_corner"])
    for row in rows:
        corner, sides = row.pop("_corner"), row.pop("_sides")
        if row["x_m"] is None or row["y_m"] is None:
            row["x_m"] = row["y_m"] = 0.0
            if corner:
                others = corners[row["scene"], row["crs"]]
                for axis, (name, length) in enumerate((("x_m", "width"), ("y_m", "height"))):
                    unit = sum(c[2 + axis] for c in others) / len(others)
                    row[name] = (corner[axis] - min(c[axis] for c in others)) * unit
                    if sides and max(sides) > 1.001 * min(sides):
                        row[name] += (sides[axis] - row["gsd_m"]) * row[length] / 2


def _duplicates(rows: list[dict[str, Any]], allowed: bool) -> list[str]:
    """Fills `same_image_as`.

    Raises:
        Disagreement: the same bytes in two splits.
    """
    first: dict[str, dict[str, Any]] = {}
    across: list[str] = []
    within: list[str] = []
    for row in rows:
        original = first.setdefault(row["image_digest"], row)
        row["same_image_as"] = None if original is row else original["id"]
        if original is not row:
            (within if original["split"] == row["split"] else across).append(
                f"{original['id']} ({original['split']}) = {row['id']} ({row['split']})"
            )
    if across and not allowed:
        raise Disagreement(
            "the same image stands in two splits",
            value=f"{len(across)}: {some(across)}",
            hint="take one of each pair out of the split table; or data.allow_duplicates=true, to go on all the same",
        )
    return [f"{len(d)} images stand twice {where}: {some(d)}" for d, where in ((across, "in two splits"), (within, "in one split")) if d]
