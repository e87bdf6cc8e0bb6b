"""`idgbr adapt`: a few labelled tiles, and a copy of the general refiner that has learnt from them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from idgbr.config import CoarseConfig, DataConfig, Experiment, Runtime
from idgbr.errors import BadRequest
from idgbr.scene.model import GENERAL, find_model
from idgbr.store import Store, default_root

LR = 3e-4
FRESH = 0.5  # share of training crops with simulated errors where the user's coarse maps teach too


@dataclass(frozen=True)
class AdaptRequest:
    """What to learn from, and how long."""

    data: Annotated[Positional[str], arg(metavar="DATA", help="folder of images and masks (docs/data.md), or the name of a data set")]
    out: Annotated[Path, arg(aliases=["-o"], help="folder of the adapted refiner")]
    coarse: Annotated[str, arg(help="folder of your model's maps of the images, named like them; empty: errors are simulated")] = ""
    model: Annotated[str, arg(help="what to start from: general, or the folder of an adapted refiner")] = GENERAL
    images: Annotated[int, arg(help="training crops")] = 1200
    tiles: Annotated[int, arg(help="tiles of 256 px that are cut from the labelled images")] = 120
    seed: int = 0
    store: Annotated[str, arg(help="folder or URI of the store: a stopped run goes on from there")] = ""
    device: str = "auto"


def adapt(request: AdaptRequest) -> None:
    """Fine-tune the general refiner on labelled images; print the folder of the copy, for `idgbr refine --model FOLDER`.

    Windows of the images become tiles of one class against the rest, and the ordinary training runs on them from the
    weights of the model; the same command goes on after an interruption. A tenth of the tiles trains nothing and tunes
    how far the copy is trusted.

    Raises:
        BadRequest: OUT exists, or a model that is not a general one. Missing: no such data, maps or model.
        Disagreement: data that cannot be read.
    """
    from idgbr import datasets, stages
    from idgbr.general.one_class import is_one_class
    from idgbr.general.tiles import TileSet, write_tiles
    from idgbr.progress import Progress
    from idgbr.refiner.refiner import Refiner

    if request.out.exists():
        raise BadRequest("the output folder exists", value=request.out, hint="another --out, or remove it")
    store = Store(request.store or default_root())
    store.check_writable()
    folder, _ = find_model(request.model, store.root)
    refiner = Refiner.load(folder)
    if not is_one_class(refiner.table):
        raise BadRequest(
            "only a general refiner can be adapted",
            value=f"{folder}: {', '.join(refiner.table.names)}",
            hint=f"idgbr train-refiner RECIPE refiner.start={folder} goes on with a refiner of your classes",
        )
    runtime = Runtime(device=request.device)
    given = _data(request)
    jobs = {job.stage: job for job in (stages.jobs(given)[:2] if request.coarse else [stages.data_job(given)])}
    for stage, job in jobs.items():
        with Progress(f"{stage} {job.key}") as progress:
            stages.run(job, store, given, runtime, report=progress)
    dataset = datasets.load(store.path("data", jobs["data"].key), given.data)
    maps = store.path("coarse", jobs["coarse"].key) if request.coarse else None
    name = "-".join([*(job.key for job in jobs.values()), str(request.tiles), str(request.seed)])
    tiles = Path(store.base if store.is_local else store.cache) / "scratch" / "adapt" / name
    if not (tiles / "splits.csv").is_file():  # written last
        with Progress("tiles") as progress:
            write_tiles([TileSet("own", dataset, "train", request.tiles, (0.8, 1.25), coarse_dir=maps)], tiles,
                        seed=request.seed, turned=0.0, report=progress)  # fmt: skip
    config = replace(
        refiner.config, start=str(folder), condition_weights="", lr=LR, train_images=request.images, warmup_images=request.images // 10,
        ema_images=max(1.0, request.images / 8), held_out=0.1, fresh_coarse=FRESH if request.coarse else 1.0, checkpoint_images=200,
    )  # fmt: skip
    training = Experiment(
        data=DataConfig(source="folder", root=str(tiles)),
        coarse=CoarseConfig(source="external", root=str(tiles / "coarse")),
        refiner=config,
        seed=request.seed,
    )
    todo = {job.stage: job for job in stages.jobs(training)}
    for stage in ("data", "coarse", "refiner"):
        with Progress(f"{stage} {todo[stage].key}") as progress:
            stages.run(todo[stage], store, training, runtime, report=progress)
    shutil.copytree(store.path("refiner", todo["refiner"].key), request.out)
    shutil.rmtree(tiles)
    decision = Refiner.load(request.out).decision
    if decision is not None and decision.trust == 0:
        print(
            "on the tiles held out, no setting was surely better than the coarse map: the copy keeps that, unless told --trust 1",
            file=sys.stderr,
        )
    print(request.out)


def _data(request: AdaptRequest) -> Experiment:
    """The user's data and coarse maps as an experiment."""
    from idgbr.datasets import SOURCES

    named = request.data in SOURCES
    data = DataConfig(source=request.data) if named else DataConfig(source="folder", root=request.data)
    return Experiment(data=data, coarse=CoarseConfig(source="external", root=request.coarse))
