"""`idgbr score`: any two class maps, files or folders, to counts and scores."""

from __future__ import annotations

import dataclasses
import json as json_format
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.config import ScoreConfig
from idgbr.errors import BadRequest, Disagreement
from idgbr.interfaces import Json
from idgbr.labels import ClassTable

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from idgbr.rasters.grid import Grid
    from idgbr.scores.rasters import Pair

TILE_PX = 1024  # images up to this size are scored whole; larger rasters in tiles of it
WHOLE_PX = 100_000_000  # pixels of the largest raster that is read whole for objects
VERSION = 1


@dataclass(frozen=True)
class Inputs:
    """Files that are scored, and how they are read. maps: name of the map (pred, coarse) -> pairs."""

    table: ClassTable
    maps: dict[str, list[Pair]]
    notes: tuple[str, ...]
    grids: tuple[Grid, ...]


def score(
    pred: Path,
    target: Path,
    *,
    coarse: Path | None = None,
    eroded: Path | None = None,
    classes: Path | None = None,
    ignore: int = 255,
    tolerance_px: float = 3.0,
    tolerance_m: float = 0.0,
    boundary_ratio: float = 0.005,
    boundary_px: float = 0.0,
    boundary_m: float = 0.0,
    trimap_px: int = 3,
    tile_px: int = TILE_PX,
    band_levels: int = 4,
    iou_imp_k: float = 1.0,
    surface: bool = False,
    objects: bool = False,
    probabilities: Path | None = None,
    samples: Path | None = None,
    json: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Score `pred` against `target` and print a table, or JSON.

    Args:
        coarse: the map before refinement: adds the repair ledger, and every score of the coarse map beside it.
        eroded: a second set of targets with eroded object borders (ISPRS), scored in the same pass and shown apart.
        classes: class table (JSON); without it the values decide (indices, or 0/255 masks).
        ignore: target value that is not scored.
        objects: also match objects and compare outlines and topology (`idgbr.scores.objects`); rasters are read whole.
        probabilities: of `pred`, one band a class: adds calibration and the detection of errors. samples: class indices,
            one band a sample of the map: adds the energy score (needs `probabilities`).
        out: also write the counts here (Parquet, both label sets, `trial` pred or coarse) and the bands beside it
            (`<name>.bands.parquet`).

    Raises:
        BadRequest: a setting out of range, a file against a folder, an output that is there already, samples without
            probabilities.
        Missing: no such path, an empty folder. Disagreement: grids, sizes, codes or names that do not agree.
    """
    config = ScoreConfig(
        tile_px=tile_px, boundary_ratio=boundary_ratio, boundary_px=boundary_px, boundary_m=boundary_m, tolerance_px=tolerance_px,
        tolerance_m=tolerance_m, trimap_px=trimap_px, band_levels=band_levels, surface=surface,
        uncertainty=probabilities is not None,
    )  # fmt: skip
    if out is not None:
        _check_out(Path(out), overwrite)
    inputs = with_confidence(open_inputs(pred, target, coarse, eroded, classes, ignore), pred, probabilities, samples)
    for name in ("boundary_m", "tolerance_m"):
        if getattr(config, name):
            for grid in inputs.grids:
                grid.require_square(name)
    if objects:
        _require_whole(inputs)
    counts, bands = _count(inputs, config, None if out is None else Path(out))
    result: Json = {
        "version": VERSION, "pred": str(pred), "target": str(target), "coarse": None if coarse is None else str(coarse),
        "classes": list(inputs.table.names), "ignore": ignore, "rasters": len(inputs.maps["pred"]), "settings": dataclasses.asdict(config),
        "widths": _widths(inputs.maps["pred"], config), "notes": list(inputs.notes), "label_sets": {},
    }  # fmt: skip
    from idgbr.scores.summary import summarise

    for label_set in counts["label_set"].unique(maintain_order=True).to_list():
        result["label_sets"][label_set] = summarise(counts, bands, label_set, config, iou_imp_k)
        if objects:
            result["label_sets"][label_set]["objects"] = _objects(inputs, label_set)
    if json:
        print(json_format.dumps(_plain(result), allow_nan=False))
    else:
        from idgbr.scores.show import show

        show(result)
    if out is not None:
        print(f"counts: {out}, bands: {bands_path(Path(out))}", file=sys.stderr)


def _require_whole(inputs: Inputs) -> None:
    for pair in inputs.maps["pred"]:
        if pair.height * pair.width > WHOLE_PX:
            raise BadRequest(
                "--objects reads rasters whole, and this one is too large",
                value=f"{pair.raster}: {pair.width} x {pair.height}",
                allowed=f"up to {WHOLE_PX / 1e6:g} megapixels",
                hint="cut the maps into scenes first, or leave --objects out",
            )


def _objects(inputs: Inputs, label_set: str) -> Json:
    """Counts and scores of objects and shape of every map, summed over the rasters."""
    from idgbr.scores import objects

    out: Json = {}
    for side, pairs in inputs.maps.items():
        total: Json = {}
        for pair in pairs:
            window = (0, 0, pair.height, pair.width)
            objects.add(total, objects.count(pair.pred(*window), pair.targets[label_set](*window), pair.n_classes))
        out[side] = objects.summary(total)
    return out


def _widths(pairs: list[Pair], config: ScoreConfig) -> dict[str, list[float]]:
    """Settings in px as they came out: (least, largest) over the rasters."""
    from idgbr.scores.tile import Widths

    found = [Widths.of(config, p.height, p.width, p.gsd_m) for p in pairs]
    each: dict[str, list[float]] = {
        "boundary_px": [w.boundary_px for w in found],
        "tolerance_px": [w.tolerance_px for w in found],
        "trimap_px": [w.trimap_px for w in found],
        "band_px": [2**w.band_levels for w in found],
        "tile_px": [min(config.tile_px, max(p.height, p.width)) for p in pairs],
    }
    return {name: [float(min(values)), float(max(values))] for name, values in each.items()}


def bands_path(counts: Path) -> Path:
    """The table of frequency bands beside the table of counts."""
    return counts.with_name(f"{counts.stem}.bands.parquet")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != ".parquet":
        raise BadRequest("counts are written as Parquet", value=out, allowed="a name that ends in .parquet")
    for path in (out, bands_path(out)):
        if path.exists() and not overwrite:
            raise BadRequest("the output is there already", value=path, hint="another --out, or --overwrite")


# ---- what is scored ---------------------------------------------------------------------------------------------------------


def open_inputs(
    pred: Path, target: Path, coarse: Path | None = None, eroded: Path | None = None, classes: Path | None = None, ignore: int = 255
) -> Inputs:
    """Match files, compare grids, find out what the values mean.

    Raises: as `score`.
    """
    from idgbr.rasters.grid import Grid, require_same_grid
    from idgbr.scores.files import guess_table, look, matched, side_of
    from idgbr.scores.rasters import Pair

    sides = {"pred": pred, "target": target, "coarse": coarse, "target (eroded)": eroded}
    found, notes = matched({side: Path(path) for side, path in sides.items() if path is not None})
    grids = {}
    for name, files in found:
        grids[name] = Grid.of(files["target"])
        for side, path in files.items():
            if side != "target":
                require_same_grid(grids[name], Grid.of(path), str(files["target"]), str(path))
    values = {side: [look(files[side]) for _, files in found] for side in found[0][1]}
    if classes is not None:
        table, masks = ClassTable.load(classes), dict.fromkeys(values, False)
        if table.n_classes < 2:
            raise Disagreement(
                "scoring needs at least two classes", value=f"{classes}: {', '.join(table.names)}", hint="add a background class"
            )
    else:
        table, masks = guess_table(values, ignore)
        notes += [
            f"{side}: read as a 0/255 mask, 255 is `{table.names[1]}` (--classes decides otherwise)" for side, m in masks.items() if m
        ]
    reading = {side: side_of(side, files, table, masks[side], ignore) for side, files in values.items()}

    def reader(side: str, path: Path) -> Callable[..., NDArray[np.uint8]]:
        return lambda *window: reading[side].read(path, *window)

    maps: dict[str, list[Pair]] = {side: [] for side in ("pred", "coarse") if side in values}
    for name, files in found:
        targets = {"full": reader("target", files["target"])}
        if eroded is not None:
            targets["eroded"] = reader("target (eroded)", files["target (eroded)"])
        before = reader("coarse", files["coarse"]) if coarse is not None else None
        for side, pairs in maps.items():
            pairs.append(
                Pair(name, name, "all", grids[name].height, grids[name].width, table.n_classes, reader(side, files[side]), targets,
                     before if side == "pred" else None, grids[name].metres())
            )  # fmt: skip
    return Inputs(table, maps, tuple(notes), tuple(grids.values()))


def with_confidence(inputs: Inputs, pred: Path, probabilities: Path | None, samples: Path | None) -> Inputs:
    """The inputs with what is known of `pred` beside its classes.

    Raises:
        BadRequest: samples without probabilities. Missing: a file is not there. Disagreement: another grid or number
            of classes, or probabilities of another map.
    """
    from idgbr.rasters.grid import Grid, require_same_grid
    from idgbr.rasters.meaning import meaning_of
    from idgbr.scores.files import matched
    from idgbr.scores.sampled import sampled_reader

    if probabilities is None:
        if samples is not None:
            raise BadRequest("samples are scored beside probabilities", value=f"--samples {samples}", hint="--probabilities FILE")
        return inputs
    sides = {"pred": Path(pred), "probabilities": Path(probabilities)} | ({"samples": Path(samples)} if samples is not None else {})
    files = dict(matched(sides)[0])
    pairs = []
    for pair in inputs.maps["pred"]:
        found = files[pair.raster]
        for side in sides:
            require_same_grid(Grid.of(found["pred"]), Grid.of(found[side]), str(found["pred"]), str(found[side]))
        n = len(meaning_of(found["probabilities"]).data)
        if n != pair.n_classes:
            raise Disagreement(f"{found['probabilities']} has {n} bands", allowed=f"{pair.n_classes}, a probability for each class")
        pairs.append(dataclasses.replace(pair, sampled=sampled_reader(found["probabilities"], found.get("samples"))))
    return dataclasses.replace(inputs, maps=inputs.maps | {"pred": pairs})


# ---- counting ---------------------------------------------------------------------------------------------------------------


def _count(inputs: Inputs, config: ScoreConfig, out: Path | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All counts of all maps, with `trial` pred or coarse; written to `out` too if given, whole or not at all."""
    import contextlib

    from idgbr.progress import Progress
    from idgbr.scores.counts import Collected, TablesWriter
    from idgbr.scores.rasters import n_tiles, tiles_of
    from idgbr.scores.schema import counts_schema

    schema = counts_schema(uncertainty=config.uncertainty)
    collected = Collected(schema)
    todo = [(trial, pair) for trial, pairs in inputs.maps.items() for pair in pairs]
    total = sum(n_tiles(pair, config) for _, pair in todo)
    large = any(p.height * p.width > 4 * TILE_PX**2 for _, p in todo)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(TablesWriter(out, bands_path(out), schema)) if out is not None else None
        report = stack.enter_context(Progress("score")) if len(todo) > 2 or large else None
        done = 0
        for trial, pair in todo:
            for counts, bands in _named(tiles_of(pair, config), trial):
                collected.write(counts, bands)
                if writer is not None:
                    writer.write(counts, bands)
                done += 1
                if report is not None:
                    report(done=done, total=total, raster=pair.raster)
    return collected.frames()


def _named(tiles: Iterator[tuple[list[dict], list[dict]]], trial: str) -> Iterator[tuple[list[dict], list[dict]]]:
    for counts, bands in tiles:
        for row in (*counts, *bands):
            row["trial"] = trial
        yield counts, bands


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: undefined is null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
