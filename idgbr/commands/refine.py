"""`idgbr refine`: sharpen any model's class map of a scene. Grid, nodata and colours are kept; whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.config import Runtime
from idgbr.errors import BadRequest
from idgbr.scene.geotiff import confidence_path, load_model, refine_scene, with_settings

if TYPE_CHECKING:
    pass


def refine(
    scene: Path,
    coarse: Path,
    out: Path,
    *,
    model: str,
    steps: int | None = None,
    samples: int | None = None,
    reach_px: float | None = None,
    reach_m: float | None = None,
    seed: int = 0,
    confidence: bool = False,
    polygons: Path | None = None,
    simplify_px: float = 0.0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    store: str = "store",
    tile_px: int | None = None,
    classes: Path | None = None,
) -> None:
    """Refine `coarse` (any model's class map, or probabilities) of `scene`; print the paths written, last the map.

    Settings that are None are those the model was trained and scored with. `reach_m` gives the reach in metres on the ground.
    The confidence bands go beside the map, as `OUT_confidence.tif`. `classes` says what the codes or colours of `coarse` mean, where they
    are not the model's: a class table with the model's class names.

    Raises:
        BadRequest: an output exists, is an input or has a wrong name, a setting is out of range, metres without a CRS.
        Missing: model, files, space.
        Disagreement: grids, bands or classes differ; a file is damaged.
    """
    from idgbr.files import check_apart, check_output
    from idgbr.labels import ClassTable
    from idgbr.progress import Progress
    from idgbr.rasters.grid import Grid
    from idgbr.rasters.polygons import check_polygons

    scene, coarse, out = Path(scene), Path(coarse), Path(out)
    check_output(out, overwrite)
    check_apart(out, scene, coarse)
    if confidence:
        check_output(confidence_path(out), overwrite)
        check_apart(confidence_path(out), scene, coarse)
    if polygons is not None:
        check_polygons(Path(polygons), simplify_px, overwrite)
    codes = ClassTable.load(classes) if classes is not None else None
    if reach_m is not None:
        if reach_px is not None:
            raise BadRequest("the reach is given twice", value=f"{reach_px} px and {reach_m} m", hint="one of the two")
        reach_px = Grid.of(scene).pixels(reach_m, "the reach")
    loaded = load_model(model, store, Runtime(device=device, precision=precision))
    sampler = with_settings(loaded.sampler, steps=steps, samples=samples, reach_px=reach_px, tile_px=tile_px)
    with Progress(f"refine {scene.name}") as progress:
        tally, written = refine_scene(
            loaded, sampler, scene, coarse, out, seed=seed, confidence=confidence, polygons=polygons, simplify_px=simplify_px,
            resume=resume, afresh=overwrite, report=progress, codes=codes,
        )  # fmt: skip
    print(tally, file=sys.stderr)
    for path in written:
        print(path)
