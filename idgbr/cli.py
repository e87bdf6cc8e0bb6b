"""The `idgbr` command: thin verbs, heavy imports inside them. Results go to stdout, messages to stderr; exit codes as
in `errors.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from idgbr.commands.adapt import AdaptRequest
from idgbr.commands.refine import AS_TRAINED, BEST_OF_STORE, ModelChoice, SamplerChanges
from idgbr.commands.train import TrainingRequest, run_until
from idgbr.recipes import experiment
from idgbr.scene.geotiff import SceneRequest
from idgbr.store import default_root
from idgbr.verbs import leave, run_verbs

EXAMPLES = """Examples:
  idgbr demo                                          both stages on real fields, CPU; table, picture, what to run next
  idgbr refine scene.tif coarse.tif -o refined.tif --model DIR
  idgbr score refined.tif truth.tif --coarse coarse.tif
  idgbr config synthetic refiner.guidance_width=64

An override is written stage.field=value; `idgbr config RECIPE` shows them all. Sweeps: python -m sweeps --help"""

Recipe = Positional[str]
Overrides = Positional[tuple[str, ...]]
StorePath = Annotated[str, arg(help="folder or URI of the store")]


def demo(*, store: StorePath = "") -> None:
    """Real fields, both stages small on the CPU: scores of coarse, one-pass and refined maps, a picture, what to run
    on your own scene."""
    from idgbr.commands import demo as demo_

    demo_.demo(store or default_root())


def doctor(*, store: StorePath = "") -> None:
    """What is installed, missing, reachable; exit code 3 if something needed is not there."""
    from idgbr.commands.doctor import doctor as check

    check(store or default_root())


def config(
    recipe: Recipe, overrides: Overrides = (), /, *, diff: Annotated[str, arg(help="show only what differs from this recipe")] = ""
) -> None:
    """Print the resolved settings as JSON."""
    from idgbr.config import apply, to_dict
    from idgbr.recipes import recipe as find

    resolved = to_dict(apply(find(recipe), overrides))
    if diff:
        other = to_dict(find(diff))
        changed = {
            f"{section}.{name}": {"here": value, diff: other[section][name]}
            for section, values in resolved.items()
            if isinstance(values, dict)
            for name, value in values.items()
            if value != other[section][name]
        }
        print(json.dumps(changed, indent=1))
        return
    print(json.dumps(resolved, indent=1))


def prepare(
    recipe: Recipe,
    overrides: Overrides = (),
    /,
    *,
    store: StorePath = "",
    sheet: Annotated[str, arg(help="write a contact sheet in class colours to this PNG")] = "",
    rehash: Annotated[bool, arg(help="read all files again, also those whose size and times are as before")] = False,
) -> None:
    """Index the scenes of a recipe, check every pair, show the class histogram."""
    from idgbr.commands.prepare import prepare as run

    run(experiment(recipe, overrides), store or default_root(), sheet=Path(sheet) if sheet else None, rehash=rehash)


def train_backbone(request: TrainingRequest) -> None:
    """Train stage I (and the fold models that the coarse maps need). Run it again to resume."""
    run_until("backbone", request)


def train_refiner(request: TrainingRequest) -> None:
    """Train stage II, and everything before it that is missing. Run it again to resume. Prints the model's folder."""
    run_until("refiner", request)


def predict(
    recipe: Recipe,
    scene: Positional[Path],
    overrides: Overrides = (),
    /,
    *,
    out: Annotated[Path, arg(aliases=["-o"])],
    probabilities: Annotated[bool, arg(help="write quantised probabilities, one band a class, instead of the class map")] = False,
    store: StorePath = "",
    overwrite: bool = False,
) -> None:
    """Coarse map of a scene by the recipe's trained backbone."""
    from idgbr.commands.predict import predict as run

    run(experiment(recipe, overrides), scene, out, store=store or default_root(), probabilities=probabilities, overwrite=overwrite)


def refine(
    request: SceneRequest,
    using: ModelChoice = BEST_OF_STORE,
    changes: SamplerChanges = AS_TRAINED,
    *,
    classes: Annotated[Path | None, arg(help="class table (JSON): the model's classes with the codes or colours of COARSE")] = None,
) -> None:
    """Sharpen any model's class map of a scene. CRS, grid, nodata and colours are kept."""
    from idgbr.commands.refine import refine as run

    run(request, using, changes, classes=classes)


def adapt(request: AdaptRequest) -> None:
    """Fine-tune the general refiner on a few labelled images. Run it again to resume. Prints the copy's folder."""
    from idgbr.commands.adapt import adapt as run

    run(request)


def align(
    map: Positional[Path],
    /,
    *,
    like: Annotated[Path, arg(help="the scene whose grid is wanted")],
    out: Annotated[Path, arg(aliases=["-o"])],
    overwrite: bool = False,
) -> None:
    """Bring a class map onto another grid, by nearest neighbour."""
    from idgbr.commands.align import align as run

    run(map, like, out, overwrite=overwrite)


def score(
    pred: Positional[Path],
    target: Positional[Path],
    /,
    *,
    coarse: Annotated[Path | None, arg(help="the map before refinement: adds repaired and damaged")] = None,
    eroded: Annotated[Path | None, arg(help="a second set of targets with eroded borders (ISPRS), shown apart")] = None,
    classes: Annotated[Path | None, arg(help="class table (JSON)")] = None,
    ignore: Annotated[int, arg(help="label value that is not scored")] = 255,
    tolerance_px: Annotated[float, arg(help="boundary F tolerance")] = 3.0,
    tolerance_m: Annotated[float, arg(help="the same in metres; above 0 it takes the place of pixels")] = 0.0,
    boundary_ratio: Annotated[float, arg(help="boundary IoU: width as share of the diagonal")] = 0.005,
    boundary_px: Annotated[float, arg(help="boundary IoU: width in pixels instead")] = 0.0,
    boundary_m: Annotated[float, arg(help="boundary IoU: width in metres instead")] = 0.0,
    trimap_px: Annotated[int, arg(help="trimap IoU: width on either side")] = 3,
    tile_px: Annotated[int, arg(help="side of the tiles that counts are taken over")] = 1024,
    band_levels: Annotated[int, arg(help="frequency bands: boxes of 1, 2, ... 2^levels px")] = 4,
    iou_imp_k: Annotated[float, arg(help="k of IoU_imp = IoU_RF - k (1 - IoU_RT)")] = 1.0,
    surface: Annotated[bool, arg(help="also HD95 and ASSD")] = False,
    objects: Annotated[bool, arg(help="also objects, outlines and topology; rasters are read whole")] = False,
    probabilities: Annotated[Path | None, arg(help="of PRED, one band a class: adds calibration and error detection")] = None,
    samples: Annotated[Path | None, arg(help="of PRED, one band of class indices a sample: adds energy scores")] = None,
    json: Annotated[bool, arg(help="JSON to stdout")] = False,
    out: Annotated[Path | None, arg(help="write the counts as Parquet")] = None,
    overwrite: bool = False,
) -> None:
    """Scores of any two class maps (files, or folders matched by name): IoU, boundaries, frequency bands, repair
    ledger."""
    from idgbr.commands.score import score as run

    run(
        pred, target, coarse=coarse, eroded=eroded, classes=classes, ignore=ignore, tolerance_px=tolerance_px, tolerance_m=tolerance_m,
        boundary_ratio=boundary_ratio, boundary_px=boundary_px, boundary_m=boundary_m, trimap_px=trimap_px, tile_px=tile_px,
        band_levels=band_levels, iou_imp_k=iou_imp_k, surface=surface, objects=objects, probabilities=probabilities,
        samples=samples, json=json, out=out, overwrite=overwrite,
    )  # fmt: skip


VERBS: dict[str, Callable[..., None]] = {
    "demo": demo, "doctor": doctor, "config": config, "prepare": prepare, "train-backbone": train_backbone, "train-refiner": train_refiner,
    "predict": predict, "refine": refine, "adapt": adapt, "align": align, "score": score,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 part failed, 2 bad request, 3 missing, 4 disagreement, 130 stopped by the
    user."""
    leave(run_verbs(VERBS, "idgbr", EXAMPLES, argv))
