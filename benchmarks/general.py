"""The general refiner: its training tiles, its decision, and its scores on places never trained on.

python benchmarks/general.py train --data FOLDER            tiles (once) and training
python benchmarks/general.py tiles OUT --data FOLDER        the tiles alone
python benchmarks/general.py score general --data FOLDER    tables; needs idgbr[benchmarks]
python benchmarks/general.py pictures OUT --data FOLDER     pictures of six places

FOLDER holds oam-buildings, dubai-landcover, weights and buildings-world, as IDGBR_DATA.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

# source, folder below --data, split table's filter, tiles, source pixels that become one
TRAIN = (
    ("naip_fields", "", "", 200, (0.6, 3.0)),
    ("oam_buildings", "oam-buildings", "zoom == 20", 260, (0.8, 4.0)),
    ("oam_buildings", "oam-buildings", "zoom == 21", 50, (1.0, 2.0)),
    ("dubai_landcover", "dubai-landcover", "", 280, (0.6, 2.5)),
    ("synthetic", "", "", 50, (0.7, 1.5)),
)

WAYS: dict[str, dict[str, float]] = {"general refiner": {}, "general refiner, unguarded": {"sure": 0.0, "trust": 1.0}}


def tiles(
    out: Positional[Path],
    data: Annotated[Path, arg(help="folder with oam-buildings and dubai-landcover")],
    share: Annotated[float, arg(help="of the tiles, for a quick look")] = 1.0,
    split: Annotated[str, arg(help="split of the data sets; tiles go into a split of the same name")] = "train",
    seed: int = 0,
) -> None:
    """Cut the tiles of all sources into OUT."""
    from idgbr import datasets
    from idgbr.config import DataConfig
    from idgbr.general.tiles import TileSet, write_tiles
    from idgbr.progress import Progress

    sets = []
    with tempfile.TemporaryDirectory() as work, Progress("tiles") as progress:
        for number, (source, folder, where, count, shrink) in enumerate(TRAIN):
            config = DataConfig(
                source=source, root=str(data / folder) if folder else "", where=where, train_scenes=12, val_scenes=4, test_scenes=4,
                scene_px=512, n_classes=4 if source == "synthetic" else 2,
            )  # fmt: skip
            index = Path(work) / str(number)
            datasets.prepare(config, index)
            name = source + where[-2:].strip()
            sets.append(TileSet(name, datasets.load(index, config), split, max(1, round(share * count)), shrink, split))
        write_tiles(sets, out, seed=seed, turned=0.25 if split == "train" else 0.0, report=progress)
    print(out)


def train(
    data: Annotated[Path, arg(help="folder with oam-buildings, dubai-landcover and weights, as IDGBR_DATA")],
    overrides: Positional[tuple[str, ...]] = (),
    out: Annotated[Path | None, arg(help="folder of the tiles; none: DATA/general")] = None,
    share: Annotated[float, arg(help="of the tiles, for a quick look")] = 1.0,
    store: str = "",
    device: str = "auto",
) -> None:
    """Tiles, then the training of the recipe `general`; a stopped run goes on exactly, from its last checkpoint.

    OVERRIDES are settings of the recipe, as refiner.train_images=6400. Prints the refiner's folder.
    """
    import os

    from idgbr import stages
    from idgbr.config import Runtime
    from idgbr.progress import Progress
    from idgbr.recipes import experiment
    from idgbr.store import Store, default_root

    os.environ["IDGBR_DATA"] = str(data)
    folder = out or data / "general"
    if not (folder / "splits.csv").is_file():  # written last
        tiles(folder, data, share)
    given = experiment("general", (f"data.root={folder}", f"coarse.root={folder / 'coarse'}", *overrides))
    where = Store(store or default_root())
    todo = {job.stage: job for job in stages.jobs(given)}
    for stage in ("data", "coarse", "refiner"):
        with Progress(f"{stage} {todo[stage].key}") as progress:
            stages.run(todo[stage], where, given, Runtime(device=device), report=progress)
    print(where.path("refiner", todo["refiner"].key))


def score(
    model: Positional[str],
    data: Annotated[Path, arg(help="folder with buildings-world, and the other sets that are scored")],
    source: Annotated[tuple[str, ...], arg(help="buildings_world, or test images of naip_fields, oam_buildings, dubai_landcover")] = (
        "buildings_world",
    ),
    coarse: Annotated[tuple[Path, ...], arg(help="folders of maps of backbones")] = (),
    chips: Annotated[int, arg(help="chips a place at most, of buildings_world")] = 3,
    crop_px: Annotated[int, arg(help="middle of every image that is refined and scored")] = 256,
    simulated: Annotated[tuple[float, ...], arg(help="IoU of the simulated coarse maps")] = (0.6, 0.75, 0.9),
    seed: int = 5,
) -> None:
    """Print a table for every source and kind of coarse map."""
    from collections import defaultdict

    import numpy as np
    from general_places import chips_of
    from general_scores import CLASSICAL, HEAD, by_place, line

    from idgbr.rasters.coarse_map import read_coarse
    from idgbr.refiner import Refiner

    refiner = Refiner.general(None if model == "general" else model)
    kinds = {f"simulated, IoU {q}": q for q in simulated} | {folder.name: folder for folder in coarse}
    for name_of_source in source:
        rng = np.random.default_rng(seed)
        chosen = chips_of(name_of_source, data, crop_px, chips, rng)
        found = {kind: defaultdict(list) for kind in kinds}
        for chip in chosen:
            for kind, origin in kinds.items():
                p = rough(chip.target, origin, rng) if isinstance(origin, float) else read_coarse(origin, chip.name)[:, *chip.part]
                refined = {name: refiner.refine(chip.picture, p, **settings) > 0 for name, settings in WAYS.items()}
                rgb = np.ascontiguousarray(chip.picture.transpose(1, 2, 0))
                maps = {"coarse": p[1] > 0.5, **refined, **{name: sharpen(rgb, p[1]) for name, sharpen in CLASSICAL.items()}}
                for name, one in maps.items():
                    found[kind][name].append((chip.place, one, chip.target))
        for kind, methods in found.items():
            values = {name: by_place(maps) for name, maps in methods.items()}
            places = len(values["coarse"])
            print(f"\n{name_of_source}, {kind}, {places} places, {len(chosen)} chips\n\n{HEAD}")
            for name, each in values.items():
                print(line(name, each, values["coarse"]), flush=True)


def rough(target: NDArray[np.uint8], iou: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Probabilities [2,H,W] of a coarse map with simulated errors and about this IoU."""
    import numpy as np

    from idgbr.coarse.simulate import MODES, corrupt, soften

    return soften(corrupt(target, 2, iou, MODES, rng), 2, rng, float(np.exp(rng.uniform(0, 1.4))))


# Places whose images may be shown (docs/models.md). Of a place of buildings-world the first chip by name of grade A or B; of the
# other sources the first test images by name whose middle has a class with 3 to 90 %.
SHOWN = {"buildings_world": ("paris",), "naip_fields": 4, "dubai_landcover": 1}


def pictures(
    out: Positional[Path],
    data: Annotated[Path, arg(help="folder with buildings-world and dubai-landcover")],
    model: str = "general",
    iou: Annotated[float, arg(help="of the simulated coarse maps")] = 0.75,
    crop_px: int = 256,
    seed: int = 0,
) -> None:
    """Write PLACE.jpg for six places into OUT, and print their scores: coarse map, guarded, unguarded, side by side."""
    import cv2
    import numpy as np
    from general_places import WORLD, of_test_split, of_world
    from general_scores import by_place, side_by_side

    from idgbr.refiner import Refiner

    refiner, rng = Refiner.general(None if model == "general" else model), np.random.default_rng(seed)
    chosen = []
    for source, which in SHOWN.items():
        of_source = (of_world(data, place, crop_px) for place in which) if source == WORLD else of_test_split(source, data, crop_px)
        chosen += [(f"{source}_{chip.name}", chip) for chip in itertools.islice(of_source, which if source != WORLD else None) if chip]
    out.mkdir(parents=True, exist_ok=True)
    print("| picture | class | coarse | guarded | unguarded |\n|---|---|---|---|---|")
    for name, chip in chosen:
        p = rough(chip.target, iou, rng)
        maps = {"coarse": p[1] > 0.5, **{way: refiner.refine(chip.picture, p, **settings) > 0 for way, settings in WAYS.items()}}
        picture = side_by_side(chip.picture.transpose(1, 2, 0), list(maps.values()), chip.target)
        cv2.imwrite(str(out / f"{name}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 65])
        cells = [", ".join(f"{v:.1f}" for v in by_place([("", one, chip.target)])[""]) for one in maps.values()]
        print(f"| {name} | {chip.kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"tiles": tiles, "train": train, "score": score, "pictures": pictures})
