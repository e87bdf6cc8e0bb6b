"""`idgbr predict`: the coarse map of a scene by a recipe's trained backbone, streamed strip by strip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from idgbr.config import Experiment, Runtime
from idgbr.errors import BadRequest, Missing
from idgbr.interfaces import Report

if TYPE_CHECKING:
    from idgbr.labels import ClassTable


def predict(
    experiment: Experiment,
    scene: Path,
    out: Path,
    *,
    store: str = "store",
    probabilities: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "fp32",
) -> None:
    """Write the class map of `scene` (or, with `probabilities`, one uint8 band a class, 255 for 1) by the
    experiment's full backbone.

    Nothing is trained here. Prints the output's path.

    Raises:
        Missing: the backbone is not in the store yet, no such scene, no space.
        BadRequest: `out` is there or no GeoTIFF, or the recipe has no backbone.
        Disagreement: the scene is damaged or has too few bands.
    """
    from idgbr import datasets, stages
    from idgbr.files import check_apart, check_output
    from idgbr.progress import Progress
    from idgbr.store import Store

    scene, out = Path(scene), Path(out)
    check_output(out, overwrite)
    check_apart(out, scene)
    place = Store(store)
    jobs = {(job.stage, job.name): job for job in stages.jobs(experiment)}
    job = jobs.get(("backbone", "full"))
    if job is None:
        raise BadRequest(
            "this recipe has no backbone of its own: its coarse maps come from elsewhere",
            value=f"coarse.source={experiment.coarse.source}",
            hint="coarse.source=out_of_fold",
        )
    if not place.has("backbone", job.key):
        raise Missing(
            "the backbone of this recipe is not trained yet",
            value=f"backbone {job.key} in {store}",
            hint="idgbr train-backbone RECIPE [overrides]",
        )
    table = datasets.load(place.path("data", job.parents["data"]), experiment.data).table
    runtime = Runtime(device=device, precision=precision)
    with Progress(f"predict {scene.name}") as progress:
        predict_scene(
            place.path("backbone", job.key), experiment, table, scene, out, runtime=runtime, probabilities=probabilities, report=progress
        )
    print(out)


def predict_scene(
    backbone_dir: Path,
    experiment: Experiment,
    table: ClassTable,
    scene: Path,
    out: Path,
    *,
    runtime: Runtime | None = None,
    probabilities: bool = False,
    report: Report | None = None,
) -> None:
    """`predict` for a backbone's folder. 255 (all bands 0 with `probabilities`) where the image has no data."""
    from idgbr.coarse import backbone
    from idgbr.rasters.read import IGNORE, RasterWriter, Reader, require_placed
    from idgbr.rasters.write import class_colours, class_tags, quantise
    from idgbr.training.distributed import device_of

    runtime = runtime or Runtime()
    reader = Reader(scene, experiment.data.bands)
    grid = reader.grid
    require_placed(scene)
    if reader.note:
        print(reader.note, file=sys.stderr)
    device = device_of(runtime)
    network = backbone.load(backbone_dir).to(device)
    strips = backbone.predict(
        network, reader, experiment.coarse.tile_px, experiment.coarse.overlap_px,
        temperature=experiment.coarse.temperature, device=device, precision=runtime.precision,
    )  # fmt: skip
    if probabilities:
        writer = RasterWriter(out, grid, table.n_classes, descriptions=table.names, tags={"IDGBR_KIND": "probabilities"}, cog=True)
    else:
        writer = RasterWriter(
            out, grid, nodata=IGNORE, colours=class_colours(table), tags=class_tags(table), descriptions=("class",), cog=True
        )
    with writer:
        for row, values in strips:
            valid = reader.valid(row, 0, values.shape[1], grid.width)
            if probabilities:
                block = quantise(values)
                block[:, ~valid] = 0
            else:
                block = values.argmax(axis=0).astype(np.uint8)
                block[~valid] = IGNORE
            writer.write(row, block)
            if report:
                report(stage="predict", done=row + values.shape[1], total=grid.height)
