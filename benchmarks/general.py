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

sys.path[:0] = [str(Path(__file__).parents[1])]

# source, folder below --data, split table's filter, tiles, source pixels that become one
TRAIN = (
    ("naip_fields", "", "", 200, (0.6, 3.0)),
    ("oam_buildings", "oam-buildings", "zoom == 20", 260, (0.8, 4.0)),
    ("oam_buildings", "oam-buildings", "zoom == 21", 50, (1.0, 2.0)),
    ("dubai_landcover", "dubai-landcover", "", 280, (0.6, 2.5)),
    ("synthetic", "", "", 50, (0.7, 1.5)),
)


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


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"tiles": tiles})
