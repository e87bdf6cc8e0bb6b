"""One georeferenced scene refined by a saved model: grid, nodata and colours are kept; the output is whole or not at
all."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from idgbr.config import SamplerConfig
from idgbr.errors import IdgbrError, NoSpace, Outage
from idgbr.files import temporary_beside
from idgbr.interfaces import Json, Report
from idgbr.labels import ClassTable
from idgbr.rasters.beside import files_beside
from idgbr.rasters.read import require_placed
from idgbr.rasters.style import style_path, write_style
from idgbr.refiner.decisions import without_confidence
from idgbr.scene.model import Model
from idgbr.scene.strips import Rows, Tally


@dataclass(frozen=True)
class SceneRequest:
    """A scene to refine, and the files to write."""

    scene: Annotated[Positional[Path], arg(metavar="SCENE", help="image, with the bands that the model was trained on")]
    coarse: Annotated[Positional[Path], arg(metavar="COARSE", help="class map or probabilities of any model, on the grid of the image")]
    out: Annotated[Path, arg(aliases=["-o"], help="the refined class map, a GeoTIFF")]
    seed: Annotated[int, arg(help="of the noise")] = 0
    confidence: Annotated[bool, arg(help="write confidence beside the map")] = False
    polygons: Annotated[Path | None, arg(help="also write patches as .gpkg or .geojson")] = None
    simplify_px: Annotated[float, arg(help="simplification tolerance of the polygons in px")] = 0.0
    style: Annotated[bool, arg(help="also write a style for QGIS beside the map: names and colours of the classes")] = False
    resume: Annotated[bool, arg(help="continue an interrupted scene strip by strip")] = False
    overwrite: bool = False


def sampler_tag(sampler: SamplerConfig) -> str:
    """The settings that decide the result, as JSON; written into the output's tags."""
    return json.dumps({k: v for k, v in dataclasses.asdict(sampler).items() if k not in ("split", "batch_tiles")}, sort_keys=True)


def result_tags(model: Model, sampler: SamplerConfig, seed: int) -> dict[str, str]:
    """What made a map, for its tags: two maps of the same inputs with the same tags are the same."""
    tags = {"IDGBR_MODEL": model.name, "IDGBR_SEED": str(seed), "IDGBR_SAMPLER": sampler_tag(sampler)}
    return tags | {f"IDGBR_{name.upper()}": value for name, value in model.runs.items()}


def confidence_path(out: Path) -> Path:
    """The file of the confidence beside the refined map."""
    return out.with_name(f"{out.stem}_confidence.tif")


def refine_scene(
    model: Model,
    sampler: SamplerConfig,
    request: SceneRequest,
    *,
    codes: ClassTable | None = None,
    report: Report | None = None,
) -> tuple[Tally, list[Path]]:
    """One scene by a loaded model. Tiles' seeds depend on the seed, the scene's file name without folder and suffix,
    and the tile's place.

    Finished rows are also kept in a hidden folder beside the output until it is whole: after Ctrl-C, a crash or a
    full disk, `resume` goes on from there. Other errors remove them.

    Args:
        codes: what the codes or colours of the coarse map mean, where they are not the model's.

    Returns:
        The counts, and the files written (the map last).

    Raises:
        BadRequest, Missing, Disagreement: inputs that cannot be read or do not fit, an interrupted run of another
            request.
        NoSpace, Outage: the output cannot be written.
    """
    from idgbr.rasters.coarse_map import CoarseMap
    from idgbr.rasters.polygons import write_polygons
    from idgbr.rasters.read import Reader, require_same_grid
    from idgbr.scene import any_classes
    from idgbr.scene.resume import KeptRows
    from idgbr.scene.strips import refine_rows, write_rows

    scene, coarse, out = Path(request.scene), Path(request.coarse), Path(request.out)
    image = Reader(scene, any_classes.bands_of(scene) if model.one_class else model.bands)
    require_placed(scene)
    if model.one_class:
        model = any_classes.for_scene(model, image, coarse, codes)
    if image.note:
        print(image.note, file=sys.stderr)
    guess = CoarseMap(coarse, model.table, codes)
    require_same_grid(image.grid, guess.grid, str(scene), str(coarse), f"{coarse.stem}_aligned.tif")
    plain = without_confidence(sampler)
    if sampler.trust != model.sampler.trust:  # asked for, not the model's: refused below where it needs probabilities
        plain = dataclasses.replace(plain, trust=sampler.trust)
    if model.decided and not guess.is_probabilities and sampler != plain:
        print(f"{coarse.name} holds classes without probabilities: of the model's decision only the reach is used", file=sys.stderr)
        sampler = plain
    if model.decided and model.sampler.trust == sampler.trust == 0:
        print(
            "where the model was tuned it was not surely better than the coarse map, so it keeps that; --trust 1 takes the refined map",
            file=sys.stderr,
        )
    bands = request.confidence or request.polygons is not None
    decides: Json = {
        "scene": _stamps(scene), "coarse": _stamps(coarse), "model": model.name, "seed": request.seed, "bands": bands,
        "sampler": sampler_tag(sampler), **model.runs,
    }  # fmt: skip
    parts = KeptRows(out, decides | ({"classes": codes.to_json()} if codes is not None else {}))
    first_row, tally = parts.begin(request.resume, request.overwrite)

    def rows() -> Iterator[Rows]:
        yield from parts.rows()
        if first_row < image.grid.height:
            for part in refine_rows(
                model.tiles, sampler, image, guess, model.table.n_classes,
                raster_id=scene.stem, seed=request.seed, bands=bands, first_row=first_row, tally=tally, report=report,
            ):  # fmt: skip
                parts.save(part, tally)
                yield part

    beside = (confidence_path(out) if request.confidence else temporary_beside(out.with_suffix(".tif"))) if bands else None
    tags = result_tags(model, sampler, request.seed)
    try:
        write_rows(rows(), out, image.grid, model.table, confidence=beside, samples=sampler.samples, tags=tags, cog=True)
        written = [out]
        if request.confidence and beside is not None:
            written.insert(0, beside)
        if request.polygons is not None:
            n = write_polygons(Path(request.polygons), out, model.table, beside, request.simplify_px)
            if report:
                report(polygons=n)
            written.insert(0, Path(request.polygons))
        if request.style:
            write_style(style_path(out), model.table)
            written.insert(0, style_path(out))
    except (NoSpace, Outage, KeyboardInterrupt):
        print(f"{out}: finished rows are kept; add --resume to the same command to go on", file=sys.stderr)
        raise
    except IdgbrError:
        parts.discard()
        raise
    finally:
        if beside is not None and not request.confidence:
            beside.unlink(missing_ok=True)
    parts.discard()
    return tally, written


def _stamps(path: Path) -> list[object]:
    """Tell another file from the same one without reading gigabytes; files beside it hold its mask, palette or
    place."""
    files = [path, *files_beside([path]).get(path, ())]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
