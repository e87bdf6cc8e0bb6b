"""Stage "refined": the class maps of all rasters of a split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.config import Runtime, SamplerConfig
from idgbr.interfaces import Json, Report, Stop, end_if_stopped
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.scene.strips import TileRefiner, refine_raster
from idgbr.scores.sampled import PROBABILITIES, SAMPLES

if TYPE_CHECKING:
    from idgbr.datasets import Dataset

TILES_FILE = "tiles.json"


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
    stop: Stop | None = None,
) -> None:
    """Stage "refined": `out/<raster id>.tif` class maps of all rasters of a split that are not there yet, and
    `out/tiles.json` with what was done.

    Without a refiner the maps are the argmax of the coarse probabilities.

    Args:
        uncertainty: also `out/_probabilities/<raster id>.tif`, one band a class, and where there are several samples
            `out/_samples/<raster id>.tif`, the classes of each.
        stop: asked between strips of a raster.

    Raises:
        Interrupted: `stop` was true; whole files stay.
        Missing: no raster in the split, or a coarse map is not there.
    """
    rasters = dataset.of(split)
    tiles: TileRefiner | None = None
    n_samples = 1
    if refiner_dir is not None:
        from idgbr.scene.tiles import tiles_of

        tiles = tiles_of(refiner_dir, runtime)
        n_samples = tiles.refiner.process.draws(sampler) if not sampler.keeps_coarse else 1
    listed = Path(out) / TILES_FILE
    done: Json = json.loads(listed.read_text()) if listed.exists() else {}  # of a run that was interrupted

    def stop_between_strips(**_: object) -> None:
        end_if_stopped(stop, "the stage refined")

    for i, raster in enumerate(rasters):
        path = _made(Path(out) / f"{raster.id}.tif")  # ids may name folders
        kept: Json = {}
        if uncertainty:
            kept["probabilities"] = _made(Path(out) / PROBABILITIES / f"{raster.id}.tif")
            if n_samples > 1:
                kept["samples"] = (_made(Path(out) / SAMPLES / f"{raster.id}.tif"), n_samples)
        wanted = [path, *([kept["probabilities"]] if "probabilities" in kept else []), *([kept["samples"][0]] if "samples" in kept else [])]
        if raster.id in done and all(file.exists() for file in wanted):
            continue
        image = raster.reader(dataset.bands)
        coarse = CoarseMap(Path(coarse_dir) / f"{raster.id}.tif", dataset.table)
        tally = refine_raster(
            tiles, sampler, image, coarse, path, raster_id=raster.id, seed=seed, table=dataset.table, mask_nodata=False,
            report=stop_between_strips, **kept,
        )  # fmt: skip
        done[raster.id] = dataclasses.asdict(tally)
        listed.write_text(json.dumps(done, indent=1))
        if report:
            report(stage="refined", done=i + 1, total=len(rasters), tiles=tally.tiles, computed=tally.computed)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
