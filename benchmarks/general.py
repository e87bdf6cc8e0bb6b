"""The general refiner: its training tiles, its decision, and its scores on places never trained on.

python benchmarks/general.py tiles OUT --data FOLDER [--share 1.0]     training tiles; FOLDER holds oam-buildings and dubai-landcover
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

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


def score(
    model: Positional[str],
    data: Annotated[Path, arg(help="folder with buildings-world")],
    coarse: Annotated[tuple[Path, ...], arg(help="folders of maps of backbones")] = (),
    chips: Annotated[int, arg(help="chips a place at most")] = 3,
    crop_px: Annotated[int, arg(help="middle of every chip that is refined and scored")] = 256,
    simulated: Annotated[tuple[float, ...], arg(help="IoU of the simulated coarse maps")] = (0.6, 0.75, 0.9),
    seed: int = 5,
) -> None:
    """Print a table for every kind of coarse map."""
    import csv
    from collections import defaultdict

    import numpy as np
    from general_scores import CLASSICAL, HEAD, by_place, line

    from idgbr.coarse.simulate import MODES, corrupt, soften
    from idgbr.general.scale import moments, scaled
    from idgbr.labels import binary
    from idgbr.rasters.coarse_map import read_coarse
    from idgbr.rasters.read import Reader, read_labels
    from idgbr.refiner import Refiner

    refiner = Refiner.general(None if model == "general" else model)
    root, rng = data / "buildings-world", np.random.default_rng(seed)
    places = defaultdict(list)
    with open(root / "splits.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["grade"] in ("A", "B"):
                places[row["place"]].append(row)
    chosen = [rows[i] for _, rows in sorted(places.items()) for i in sorted(rng.permutation(len(rows))[:chips])]
    kinds = {f"simulated, IoU {q}": q for q in simulated} | {folder.name: folder for folder in coarse}
    found = {kind: defaultdict(list) for kind in kinds}
    for row in chosen:
        width, height = map(int, row["size"].split("x"))
        image, _ = Reader(root / row["image"]).read(0, 0, height, width)
        target = read_labels(root / row["mask"], binary("building"))
        top, left = (height - crop_px) // 2, (width - crop_px) // 2
        part = (slice(top, top + crop_px), slice(left, left + crop_px))
        mean, std = moments(image, np.ones((height, width), bool))
        picture = np.rint(scaled(image, mean, std)[:, *part]).astype(np.uint8)  # the scale of the whole chip for everyone
        target = target[part]
        for kind, source in kinds.items():
            if isinstance(source, float):
                p = soften(corrupt(target, 2, source, MODES, rng), 2, rng, float(np.exp(rng.uniform(0, 1.4))))
            else:
                p = read_coarse(source, Path(row["image"]).stem)[:, *part]
            refined = {name: refiner.refine(picture, p, **settings) > 0 for name, settings in WAYS.items()}
            rgb = np.ascontiguousarray(picture.transpose(1, 2, 0))
            maps = {"coarse": p[1] > 0.5, **refined, **{name: sharpen(rgb, p[1]) for name, sharpen in CLASSICAL.items()}}
            for name, one in maps.items():
                found[kind][name].append((row["place"], one, target))
    for kind, methods in found.items():
        values = {name: by_place(maps) for name, maps in methods.items()}
        print(f"\n{kind}, {len(places)} places, {len(chosen)} chips\n\n{HEAD}")
        for name, each in values.items():
            print(line(name, each, values["coarse"]))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"tiles": tiles, "score": score})
