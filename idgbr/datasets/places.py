"""Data sets of many places: farm fields (installed with idgbr) and building masks from public benchmarks.

A place is a scene: the unit that folds keep whole and that intervals resample.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.folder import OAM_BUILDINGS, SplitRow, find_rows
from idgbr.datasets.layout import Found, Layout
from idgbr.labels import binary

# ---- naip_fields: 34 places in the US Midwest, 1024 x 1024 px at 1 or 2 m, fields outlined by hand -------------------------------
# Images: USDA NAIP 2017-2020 (public domain); outlines: agoro-field-boundary-detector (MIT). naip_fields/README.md
# says what was changed.

NAIP_FIELDS = Layout(
    name="naip_fields",
    title="NAIP fields",
    table=binary("field", (90, 170, 80)),
    expected="splits.csv (name, split), images/NAME.jpg, masks/NAME.png",
    find=find_rows,
    built_in=Path(__file__).parent / "naip_fields",
    filters_rows=True,
)

# ---- buildings_world: 119 chips of 256 to 650 px from 20 places, eight benchmarks; splits.csv grades how well masks fit the images


def _place(row: SplitRow) -> dict[str, object]:
    return {"scene": row["place"]}


BUILDINGS_WORLD = Layout(
    name="buildings_world",
    title="buildings of 20 places",
    table=binary("building"),
    expected="splits.csv (image, mask, place, split, grade) and the files it names",
    find=lambda root, config: find_rows(root, config, _place),
    filters_rows=True,
)

# ---- buildings_elsewhere: trained on oam_buildings, with the places of buildings_world as test places ----------------------------


def _elsewhere(root: Path, config: DataConfig) -> Found:
    """Entries of ROOT/oam-buildings without its test scenes, and all of ROOT/buildings-world as split test.

    `data.where` is about the columns of the first; of the second, chips of grade C are left out.
    """
    oam = OAM_BUILDINGS.find(root / "oam-buildings", config) if OAM_BUILDINGS.find else Found(())
    world = find_rows(root / "buildings-world", dataclasses.replace(config, where="grade <> 'C'"), _place)
    entries = [e for e in oam.entries if e.split != "test"] + [dataclasses.replace(e, split="test") for e in world.entries]
    return Found(tuple(entries), (*oam.notes, *world.notes), (*oam.extra_files, *world.extra_files))


BUILDINGS_ELSEWHERE = Layout(
    name="buildings_elsewhere",
    title="buildings: trained on oam_buildings, tested on 18 other places",
    table=binary("building"),
    expected="the folders oam-buildings and buildings-world, each as its own source expects it",
    find=_elsewhere,
    filters_rows=True,
)

LAYOUTS = (NAIP_FIELDS, BUILDINGS_WORLD, BUILDINGS_ELSEWHERE)
