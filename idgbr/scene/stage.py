"""Stage "refined": the class maps of all rasters of a split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.config import Runtime, SamplerConfig
from idgbr.interfaces import Json, Report
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.scene.strips import TileRefiner, refine_raster
from idgbr.scores.sampled import PROBABILITIES, SAMPLES

if TYPE_CHECKING:
    from idgbr.datasets import Dataset


def refine_split(
    sampler: SamplerConfig,
    refiner_dir: Path | None,
    dataset: Dataset,
    coarse_dir: Path,
    split: str,
    *,
    seed: int,
    out: Path,
    uncertainty: bool = False,
    runtime: Runtime | None = None,
    report: Report | None = None,
) -> None:
    """Stage "refined": `out/<raster id>.tif` class maps of all rasters of a split, and `out/tiles.json` with what was
    done.

    Without a refiner the maps are the argmax of the coarse probabilities.

    Args:
        uncertainty: also `out/_probabilities/<raster id>.tif`, one band a class, and where there are several samples
            `out/_samples/<raster id>.tif`, the classes of each.

    Raises:
        Missing: no raster in the split, or a coarse map is not there.
    """
    rasters = dataset.of(split)
    tiles: TileRefiner | None = None
    n_samples = 1
    if refiner_dir is not None:
        from idgbr.scene.tiles import tiles_of

        tiles = tiles_of(refiner_dir, runtime)
        n_samples = tiles.refiner.process.draws(sampler) if sampler.strength else 1
    done: Json = {}
    for i, raster in enumerate(rasters):
        image = raster.reader(dataset.bands)
        coarse = CoarseMap(Path(coarse_dir) / f"{raster.id}.tif", dataset.table)
        path = Path(out) / f"{raster.id}.tif"
        _made(path)  # ids may name folders
        kept: Json = {}
        if uncertainty:
            kept["probabilities"] = _made(Path(out) / PROBABILITIES / f"{raster.id}.tif")
            if n_samples > 1:
                kept["samples"] = (_made(Path(out) / SAMPLES / f"{raster.id}.tif"), n_samples)
        tally = refine_raster(
            tiles, sampler, image, coarse, path, raster_id=raster.id, seed=seed, table=dataset.table, mask_nodata=False, **kept
        )
        done[raster.id] = dataclasses.asdict(tally)
        if report:
            report(stage="refined", done=i + 1, total=len(rasters), tiles=tally.tiles, computed=tally.computed)
    (Path(out) / "tiles.json").write_text(json.dumps(done, indent=1))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
