"""`idgbr refine`: sharpen any model's class map of a scene. Grid, nodata and colours are kept; whole or not at all."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from idgbr.config import Runtime
from idgbr.errors import BadRequest
from idgbr.scene.geotiff import SceneRequest, confidence_path, refine_scene
from idgbr.scene.model import load_model, with_settings
from idgbr.store import default_root


@dataclass(frozen=True)
class ModelChoice:
    """Which refiner, and how it runs."""

    model: Annotated[
        str,
        arg(help="a refiner's folder, its key in the store, or general; empty: the store's best by boundary IoU"),
    ] = ""
    store: Annotated[str, arg(help="folder or URI of the store")] = ""
    device: str = "auto"
    precision: Annotated[str, arg(help="fp32 or bf16")] = "fp32"


@dataclass(frozen=True)
class SamplerChanges:
    """Settings that replace those the model was trained and scored with."""

    steps: Annotated[int | None, arg(help="denoising steps; none given: 4")] = None
    samples: Annotated[int | None, arg(help="samples a tile; more than 1 gives agreement and entropy")] = None
    reach_px: Annotated[float | None, arg(help="pixels farther than this from a coarse boundary are never changed; 0: no limit")] = None
    reach_m: Annotated[float | None, arg(help="the same in metres")] = None
    trust: Annotated[float | None, arg(help="0: the coarse map, 1: the refined map; between them a mean of log probabilities")] = None
    tile_px: Annotated[int | None, arg(help="tile side")] = None


BEST_OF_STORE, AS_TRAINED = ModelChoice(), SamplerChanges()


def refine(
    request: SceneRequest, using: ModelChoice = BEST_OF_STORE, changes: SamplerChanges = AS_TRAINED, *, classes: Path | None = None
) -> None:
    """Refine a class map or probabilities of any model; print the paths written, last the map.

    The confidence bands go beside the map, as `OUT_confidence.tif`.

    Args:
        classes: what the codes or colours of the coarse map mean, where they are not the model's: a class table
            (JSON) with the model's class names.

    Raises:
        BadRequest: an output exists, is an input or has a wrong name, a setting is out of range, metres without a CRS.
        Missing: model, files, space.
        Disagreement: grids, bands or classes differ; a file is damaged.
    """
    from idgbr.files import check_apart, check_output, check_place
    from idgbr.labels import ClassTable
    from idgbr.progress import Progress
    from idgbr.rasters.grid import Grid
    from idgbr.rasters.polygons import check_polygons
    from idgbr.rasters.style import style_path

    scene, coarse, out = request.scene, request.coarse, request.out
    for path in (out, confidence_path(out)) if request.confidence else (out,):
        check_output(path, request.overwrite)
        check_apart(path, scene, coarse)
    if request.polygons is not None:
        check_polygons(request.polygons, request.simplify_px, request.overwrite)
    if request.style:
        check_place(style_path(out), request.overwrite)
    codes = ClassTable.load(classes) if classes is not None else None
    reach_px = changes.reach_px
    if changes.reach_m is not None:
        if reach_px is not None:
            raise BadRequest("the reach is given twice", value=f"{reach_px} px and {changes.reach_m} m", hint="one of the two")
        reach_px = Grid.of(scene).pixels(changes.reach_m, "the reach")
    loaded = load_model(using.model, using.store or default_root(), Runtime(device=using.device, precision=using.precision))
    given = {name: getattr(changes, name) for name in ("steps", "samples", "trust", "tile_px")}
    sampler = with_settings(loaded.sampler, reach_px=reach_px, **given)
    with Progress(f"refine {scene.name}") as progress:
        tally, written = refine_scene(loaded, sampler, request, codes=codes, report=progress)
    print(tally, file=sys.stderr)
    for path in written:
        print(path)
