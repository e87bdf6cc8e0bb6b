"""Data sets of many places: farm fields (installed with idgbr) and building masks from public benchmarks.

A place is a scene: the unit that folds keep whole and that intervals resample.
"""

from __future__ import annotations

from pathlib import Path

from idgbr.datasets.folder import Row, find_rows
from idgbr.datasets.layout import Layout
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


def _place(row: Row) -> dict[str, object]:
    return {"scene": row["place"]}


BUILDINGS_WORLD = Layout(
    name="buildings_world",
    title="buildings of 20 places",
    table=binary("building"),
    expected="splits.csv (image, mask, place, split, grade) and the files it names",
    find=lambda root, config: find_rows(root, config, _place),
    filters_rows=True,
)

LAYOUTS = (NAIP_FIELDS, BUILDINGS_WORLD)
