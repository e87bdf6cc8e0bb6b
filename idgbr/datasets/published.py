"""Readers of published layouts: the download, unpacked, nothing moved. Facts and sources stand with each data set.

What publishers leave open is decided here and told in the notes of `idgbr prepare`: a validation split is taken from
the training tiles where the publisher has none, never from test tiles.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.folder import read_split_table, some
from idgbr.datasets.ids import safe_id
from idgbr.datasets.layout import Entry, Found, Layout
from idgbr.datasets.pairs import Part, base_folder, child, counted, find_parts, pictures
from idgbr.datasets.unlisted import find_converted
from idgbr.errors import Disagreement, Missing
from idgbr.labels import ClassTable, LabelClass, binary

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

# ---- CHN6-CUG: Zhu et al., ISPRS J. 175, 2021; 512 px, 0.5 m, {train,val}/{images,gt}, NAME_sat.jpg + NAME_mask.png, 0/255 ------------


def _chn6(root: Path, config: DataConfig) -> Found:
    """The publisher's "val" is what papers test on: here it is test, and the last tenth (by name) of each city's
    training tiles is val."""
    parts = [
        Part("train", ("train/images",), ("train/gt", "train/labels")),
        Part("test", ("val/images", "test/images"), ("val/gt", "test/labels")),
    ]
    found = find_parts(base_folder(root, parts), parts, lambda s: re.sub(r"_(sat|mask)$", "", s), 0.5, CHN6_CUG.title)
    cities: dict[str, list[Entry]] = defaultdict(list)
    for entry in found:
        if entry.split == "train":
            cities[re.sub(r"\d.*$", "", entry.id)].append(entry)
    held = {e.id for city in cities.values() for e in sorted(city, key=lambda e: e.id)[len(city) - len(city) // 10 :]}
    entries = [dataclasses.replace(e, split="val") if e.id in held else e for e in found]
    notes = counted(found, {"train": 3608, "test": 903}, CHN6_CUG.title)
    return Found(
        tuple(entries),
        (*notes, f"the publisher's val is test here; val is the last tenth by name of each city's training tiles ({len(held)})"),
    )


CHN6_CUG = Layout("chn6_cug", "CHN6-CUG", binary("road", codes=(255, 1)), "train/images, train/gt, val/images, val/gt", _chn6)

# ---- FGFD: Li et al., TGRS 2024 (github Henryjiepanli/DBBANet): {train,val,test}/{img,label}, *_image_* + *_label_*, paletted ---------


def _fgfd(root: Path, config: DataConfig) -> Found:
    parts = [
        Part(split, (f"{split}/img", f"{split}/image", f"{split}/images"), (f"{split}/label", f"{split}/labels"), optional=split == "test")
        for split in ("train", "val", "test")
    ]
    found = find_parts(base_folder(root, parts), parts, lambda s: re.sub(r"_(image|img|label)(?=_|$)", "", s), None, FGFD.title)
    return Found(
        tuple(found), ("both kinds of farmland (with and without crops) are one class; the ground size of a pixel is not published",)
    )


FGFD = Layout(
    "fgfd",
    "FGFD",
    ClassTable(
        (LabelClass("background", (_BLACK, 0), (40, 40, 40)), LabelClass("farmland", ((128, 0, 0), (0, 128, 0), 1, 2), (90, 170, 80)))
    ),
    "train/img, train/label, val/..., test/...",
    _fgfd,
)

# ---- WHU building, aerial: Ji et al., TGRS 57, 2019: {train,val,test}/{image,label}, or {Image,Mask} in mirrors; 512 px, 0.3 m, 0/255 --


def _whu(root: Path, config: DataConfig) -> Found:
    parts = [
        Part(split, (f"{split}/image", f"{split}/images"), (f"{split}/label", f"{split}/mask", f"{split}/labels", f"{split}/masks"))
        for split in ("train", "val", "test")
    ]
    found = find_parts(base_folder(root, parts), parts, str, 0.3, WHU_BUILDING.title)
    return Found(tuple(found), tuple(counted(found, {"train": 4736, "val": 1036, "test": 2416}, WHU_BUILDING.title)))


WHU_BUILDING = Layout("whu_building", "WHU-Building", binary("building"), "train/image, train/label, val/..., test/...", _whu)

# ---- Massachusetts: Mnih, thesis 2013: {train,valid,test}/{sat,map}, NAME.tiff + NAME.tif, 1500 px, 1 m (or tiff/{train,train_labels})


def _massachusetts(root: Path, title: str, published: dict[str, int]) -> Found:
    names = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
    parts = [
        Part(
            split,
            tuple(t for n in folders for t in (f"{n}/sat", f"tiff/{n}", f"png/{n}")),
            tuple(t for n in folders for t in (f"{n}/map", f"tiff/{n}_labels", f"png/{n}_labels")),
        )
        for split, folders in names.items()
    ]
    found = find_parts(base_folder(root, parts), parts, str, 1.0, title)
    return Found(tuple(found), tuple(counted(found, published, title)))


MASSACHUSETTS_ROADS = Layout(
    "massachusetts_roads",
    "Massachusetts roads",
    binary("road", codes=(255, 1, _WHITE), others=(0, _BLACK)),
    "train/sat, train/map, valid/..., test/...",
    lambda root, config: _massachusetts(root, "Massachusetts roads", {"train": 1108, "val": 14, "test": 49}),
)
MASSACHUSETTS_BUILDINGS = Layout(
    "massachusetts_buildings",
    "Massachusetts buildings",
    binary("building", codes=(255, 1, (255, 0, 0), _WHITE), others=(0, _BLACK)),
    "train/sat, train/map, valid/..., test/...",
    lambda root, config: _massachusetts(root, "Massachusetts buildings", {"train": 137, "val": 4, "test": 10}),
)

# ---- INRIA aerial image labeling: Maggiori et al., IGARSS 2017: train/{images,gt}, test/images without labels; 5000 px, 0.3 m, 0/255 ---


def _inria(root: Path, config: DataConfig) -> Found:
    """Validation is what the publisher advises: the first five tiles of each city."""
    parts = [Part("train", ("train/images",), ("train/gt",)), Part("test", ("test/images",), optional=True)]
    found = find_parts(base_folder(root, parts), parts, str, 0.3, INRIA.title)
    first = [dataclasses.replace(e, split="val") if e.split == "train" and _number(e.id) <= 5 else e for e in found]
    notes = counted(first, {"train": 155, "val": 25}, INRIA.title)
    return Found(tuple(first), (*notes, "validation: tiles 1 to 5 of each city, as the publisher advises; the test tiles have no labels"))


def _number(name: str) -> int:
    match = re.search(r"(\d+)$", name)
    if match is None:
        raise Disagreement("INRIA tiles are called by city and number", value=name, allowed="austin1.tif, tyrol-w36.tif, ...")
    return int(match[1])


INRIA = Layout("inria", "INRIA aerial image labeling", binary("building", others=(0,)), "train/images, train/gt (test/images)", _inria)

# ---- LoveDA: Wang et al., NeurIPS 2021 (zenodo 5706578): {Train,..}/{Urban,Rural}/{images_png,masks_png}; 0.3 m; 0: no data


def _loveda(root: Path, config: DataConfig) -> Found:
    """As published, Urban or Rural or both; or as mmsegmentation's converter leaves it: all in
    img_dir/{train,val,test} and ann_dir."""
    converted = find_converted(root)
    if converted is not None:
        entries = tuple(dataclasses.replace(e, gsd_m=0.3) for e in converted.entries)
        notes = counted(entries, {"train": 2522, "val": 1669}, LOVEDA.title)
        return Found(entries, (*notes, "as converted by mmsegmentation: the names do not tell urban from rural"))
    parts = [
        Part(
            split,
            (f"{split}/{area}/images_png",),
            (f"{split}/{area}/masks_png",) if split != "test" else (),
            optional=True,  # Urban or Rural alone is usual in domain adaptation
            prefix=f"{area.lower()}_",
        )
        for split in ("train", "val", "test")
        for area in ("Urban", "Rural")
    ]
    base = base_folder(root, parts)
    found = find_parts(base, parts, str, 0.3, LOVEDA.title)
    notes = counted(found, {"train": 2522, "val": 1669}, LOVEDA.title)
    return Found(tuple(found), (*notes, "the publisher keeps the test labels", "urban or rural only: data.where=\"id LIKE 'urban%'\""))


LOVEDA = Layout(
    "loveda",
    "LoveDA",
    ClassTable(
        (
            LabelClass("background", (1,), _WHITE),
            LabelClass("building", (2,), (255, 0, 0)),
            LabelClass("road", (3,), (255, 255, 0)),
            LabelClass("water", (4,), (0, 0, 255)),
            LabelClass("barren", (5,), (159, 129, 183)),
            LabelClass("forest", (6,), (0, 255, 0)),
            LabelClass("agriculture", (7,), (255, 195, 128)),
        ),
        ignore=(0,),
    ),
    "Train/Urban/images_png, Train/Urban/masks_png, Train/Rural/..., Val/... (Test/...)",
    _loveda,
)

# ---- LandCover.ai: Boguszewski et al., CVPRW 2021: images/*.tif, masks/*.tif (EPSG:2180, 0.25 or 0.5 m), output/NAME_K.jpg


def _landcover(root: Path, config: DataConfig) -> Found:
    """With output/ (the publisher's split.py was run): the official chips and lists. Without: the orthophotos, split
    by orthophoto."""
    base = base_folder(root, [Part("train", ("images", "output"))])
    output = child(base, ("output",))
    if output is None:
        found = find_parts(base, [Part("train", ("images",), ("masks",))], str, None, LANDCOVER_AI.title)
        splits = {3: "val", 4: "test"}
        entries = [dataclasses.replace(e, split=splits.get(i % 5, "train")) for i, e in enumerate(sorted(found, key=lambda e: e.id))]
        notes = counted(found, {"train": 41}, LANDCOVER_AI.title)
        told = "the official lists split chips of one photo; here whole photos are split: by name, the 4th of five is val, the 5th test"
        return Found(tuple(entries), (*notes, f"{told}. For the official split run the publisher's split.py first (makes output/)"))
    everything = pictures(output, str)
    chips, lists = [], []
    missing: list[str] = []
    for split in ("train", "val", "test"):
        path = base / f"{split}.txt"
        if not path.is_file():
            raise Missing(f"no list {path}", allowed="train.txt, val.txt, test.txt of the download")
        lists.append(path)
        for name in path.read_text().split():
            image, label = everything.get(name), everything.get(f"{name}_m")
            if image is None or label is None:
                missing.append(name)
            else:
                chips.append(Entry(safe_id(name), safe_id(name), split, image, label))
    if missing:
        total = len(chips) + len(missing)
        raise Missing(
            f"{LANDCOVER_AI.title}: found {len(chips)} of {total} chips; missing {some(missing)} in {output}", hint="run split.py again"
        )
    note = "official lists: chips of one photo are in train, val and test, and every chip counts as a scene; 0.25 m, 8 of 41 photos 0.5 m"
    return Found(tuple(chips), (*counted(chips, {"train": 7470, "val": 1602, "test": 1602}, LANDCOVER_AI.title), note), tuple(lists))


LANDCOVER_AI = Layout(
    "landcover_ai",
    "LandCover.ai",
    ClassTable(
        (
            LabelClass("background", (0,), (235, 235, 220)),
            LabelClass("building", (1,), (97, 74, 74)),
            LabelClass("woodland", (2,), (38, 115, 0)),
            LabelClass("water", (3,), (0, 197, 255)),
            LabelClass("road", (4,), (207, 207, 207)),
        )
    ),
    "images/*.tif and masks/*.tif (or output/ with train.txt, val.txt, test.txt)",
    _landcover,
)

# ---- Dubai land cover (Humans in the Loop, MBRSC): Tile N/{images,masks}/image_part_00P, 3 x 3 adjoining parts, colour masks

_DUBAI_SPLITS = {"train": ("5", "6", "7", "8"), "val": ("3",), "test": ("1",)}


def _dubai(root: Path, config: DataConfig) -> Found:
    """Tiles overlap on the ground: 7 and 8 are one scene, tile 1 part 1 (in tile 3) and tiles 2 and 4 are left out.
    splits.csv, where there is one (columns tile, part, split), takes the place of this list."""
    parts = [Part("train", ("Tile 5/images",))]
    base = base_folder(root, parts)
    table = base / (config.split_table or "splits.csv")
    if table.is_file() or config.split_table:
        chosen = [(row["tile"], int(row["part"]), row["split"]) for row in read_split_table(table, base)]
    else:
        chosen = [
            (tile, part, split)
            for split, tiles in _DUBAI_SPLITS.items()
            for tile in tiles
            for part in range(1, 10)
            if (tile, part) != ("1", 1)
        ]
    entries, missing = [], []
    for tile, part, split in chosen:
        name = f"image_part_{part:03d}"
        image, mask = base / f"Tile {tile}" / "images" / f"{name}.jpg", base / f"Tile {tile}" / "masks" / f"{name}.png"
        if not image.is_file() or not mask.is_file():
            missing.append(f"Tile {tile}/{name}")
            continue
        row, col = divmod(part - 1, 3)
        scene, (width, height) = "tile_7_8" if tile in ("7", "8") else f"tile_{tile}", _size(image)
        x, y = float(col * width), float(row * height)
        entries.append(Entry(f"tile{tile}_part{part}", scene, split, image, mask, x_m=x + 1e5 * (tile == "8"), y_m=y))
    if missing:
        raise Missing(f"{DUBAI_LANDCOVER.title}: found {len(entries)} of {len(chosen)} parts; missing {some(missing)} in {base}")
    notes = ("tiles 7 and 8 overlap and are one scene; the ground size of a pixel is not published: a pixel counts as 1 m",)
    return Found(tuple(entries), notes, (table,) if table.is_file() else ())


def _size(path: Path) -> tuple[int, int]:
    from idgbr.rasters.read import Grid

    grid = Grid.of(path)
    return grid.width, grid.height


DUBAI_LANDCOVER = Layout(
    "dubai_landcover",
    "Dubai land cover",
    ClassTable(
        (
            LabelClass("building", ((60, 16, 152),), (60, 16, 152)),
            LabelClass("land", ((132, 41, 246),), (132, 41, 246)),
            LabelClass("road", ((110, 193, 228),), (110, 193, 228)),
            LabelClass("vegetation", ((254, 221, 58),), (254, 221, 58)),
            LabelClass("water", ((226, 169, 41),), (226, 169, 41)),
        ),
        ignore=((155, 155, 155), _BLACK),
    ),
    "Tile 1/images/image_part_001.jpg, Tile 1/masks/image_part_001.png, ...",
    _dubai,
)

LAYOUTS = (
    CHN6_CUG, FGFD, WHU_BUILDING, MASSACHUSETTS_ROADS, MASSACHUSETTS_BUILDINGS, INRIA, LOVEDA, LANDCOVER_AI, DUBAI_LANDCOVER,
)  # fmt: skip
