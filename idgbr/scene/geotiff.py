"""One georeferenced scene refined by a saved model: grid, nodata and colours are kept; the output is whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgbr.config import Experiment, Runtime, SamplerConfig, from_dict
from idgbr.errors import BadRequest, IdgbrError, Missing
from idgbr.interfaces import Report
from idgbr.labels import ClassTable
from idgbr.machine import expanded
from idgbr.rasters.read import require_placed
from idgbr.scene.strips import Tally, TileRefiner


def newest_refiner(root: str) -> str:
    from idgbr.errors import Missing
    from idgbr.store import Store

    store = Store(root)
    found = [m for key in store.keys("refiner") if (m := store.manifest("refiner", key))]
    if not found:
        raise Missing(f"no refiner in the store {root}", hint="--model FOLDER, or idgbr train-refiner RECIPE")
    newest = max(found, key=lambda m: m["finished"])
    print(f"model: {newest['key']}, the newest refiner of {root}", file=sys.stderr)
    return str(newest["key"])


PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Model:
    """A trained refiner and what must be known to run it: class table, bands of the image, sampler settings it was scored with."""

    name: str
    tiles: TileRefiner
    table: ClassTable
    bands: tuple[int, ...]
    sampler: SamplerConfig


def find_model(model: str, store: str) -> tuple[Path, Experiment | None]:
    """Folder of a refiner, given as that folder or as its key in the store, and the experiment that trained it (None for a bare folder).

    Raises:
        Missing: neither.
    """
    from idgbr.store import Store

    folder = expanded(model)
    if folder.is_dir():
        manifest = folder.parent / "manifest.json"
        record = json.loads(manifest.read_text()) if manifest.is_file() else {}
    else:
        place = Store(store)
        found = [key for key in place.keys("refiner") if key.startswith(model)] if model else []
        if len(found) != 1:
            known = ", ".join(place.keys("refiner")) or "none"
            raise Missing("no such refiner" if not found else "more than one refiner begins like this", value=f"--model {model}",
                          allowed=f"a folder with config.json and model.safetensors, or a key of the store {store}: {known}",
                          hint="idgbr train-refiner RECIPE prints the folder")  # fmt: skip
        folder, record = place.path("refiner", found[0]), place.manifest("refiner", found[0]) or {}
    return folder, from_dict(record["experiment"]) if "experiment" in record else None


def load_model(model: str, store: str, runtime: Runtime) -> Model:
    """Raises:
    Missing: no such model. BadRequest: an unknown precision.
    """
    from idgbr.refiner.refiner import Refiner
    from idgbr.scene.tiles import TorchTiles

    if runtime.precision not in PRECISIONS:
        raise BadRequest("unknown precision", value=f"--precision {runtime.precision}", allowed=", ".join(PRECISIONS))
    folder, experiment = find_model(model, store)
    refiner = Refiner.load(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes() + (folder / "config.json").read_bytes()).hexdigest()[:16]
    if experiment is not None:
        bands, sampler = experiment.data.bands, experiment.sampler
    else:
        side = refiner.config.crop_px
        bands, sampler = tuple(range(1, refiner.n_bands + 1)), SamplerConfig(tile_px=side, overlap_px=side // 4)
    return Model(digest, TorchTiles(refiner, runtime), refiner.table, bands, sampler)


def with_settings(sampler: SamplerConfig, **given: Any) -> SamplerConfig:
    """The settings that are not None; a new tile keeps the share of overlap."""
    values = {name: value for name, value in given.items() if value is not None}
    if "tile_px" in values:
        values["overlap_px"] = min(values["tile_px"] * sampler.overlap_px // sampler.tile_px, values["tile_px"] - 1)
    return dataclasses.replace(sampler, **values)


def sampler_tag(sampler: SamplerConfig) -> str:
    """The settings that decide the result, as JSON; written into the output's tags."""
    return json.dumps({k: v for k, v in dataclasses.asdict(sampler).items() if k not in ("split", "batch_tiles")}, sort_keys=True)


def confidence_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_confidence.tif")


def refine_scene(
    model: Model,
    sampler: SamplerConfig,
    scene: Path,
    coarse: Path,
    out: Path,
    *,
    seed: int = 0,
    confidence: bool = False,
    polygons: Path | None = None,
    simplify_px: float = 0.0,
    resume: bool = False,
    afresh: bool = False,
    report: Report | None = None,
    codes: ClassTable | None = None,
) -> tuple[Tally, list[Path]]:
    """One scene by a loaded model. Tiles' seeds depend on `seed`, the scene's file name without folder and suffix, and the tile's place.

    Finished rows are kept in a hidden folder beside `out` until it is whole: after Ctrl-C or a crash, `resume` goes on from there.
    An error of the request or the inputs removes them.

    Returns:
        The counts, and the files written (the map last).
    """
    from idgbr.rasters.coarse_map import CoarseMap
    from idgbr.rasters.polygons import write_polygons
    from idgbr.rasters.read import Reader, require_same_grid
    from idgbr.scene.resume import Parts
    from idgbr.scene.strips import refine_rows, write_rows

    image = Reader(scene, model.bands)
    require_placed(scene)
    guess = CoarseMap(coarse, model.table, codes)
    require_same_grid(image.grid, guess.grid, str(scene), str(coarse), f"{coarse.stem}_aligned.tif")
    bands = confidence or polygons is not None
    settings = sampler_tag(sampler)
    request = {"scene": _stamp(scene), "coarse": _stamp(coarse), "model": model.name, "seed": seed, "bands": bands, "sampler": settings}
    parts = Parts(out, request | ({"classes": codes.to_json()} if codes is not None else {}))
    first_row, tally = parts.begin(resume, afresh)
    name = scene.stem
    beside = (confidence_path(out) if confidence else out.with_name(f".{out.stem}.{uuid.uuid4().hex}.conf.tif")) if bands else None
    try:
        if first_row < image.grid.height:
            rows = refine_rows(
                model.tiles, sampler, image, guess, model.table.n_classes,
                raster_id=name, seed=seed, bands=bands, first_row=first_row, tally=tally, report=report,
            )  # fmt: skip
            for part in rows:
                parts.save(part, tally)
        tags = {"IDGBR_MODEL": model.name, "IDGBR_SEED": str(seed), "IDGBR_SAMPLER": settings}
        write_rows(parts.rows(), out, image.grid, model.table, confidence=beside, samples=sampler.samples, tags=tags, cog=True)
        written = [out]
        if confidence and beside is not None:
            written.insert(0, beside)
        if polygons is not None:
            n = write_polygons(Path(polygons), out, model.table, beside, simplify_px)
            if report:
                report(polygons=n)
            written.insert(0, Path(polygons))
    except IdgbrError:
        parts.discard()
        raise
    except KeyboardInterrupt:
        print(f"{out}: finished rows are kept; add --resume to the same command to go on", file=sys.stderr)
        raise
    finally:
        if beside is not None and not confidence:
            beside.unlink(missing_ok=True)
    parts.discard()
    return tally, written


def _stamp(path: Path) -> list[Any]:
    """Tells another file from the same one without reading gigabytes."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]
