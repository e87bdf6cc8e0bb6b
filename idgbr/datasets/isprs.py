"""ISPRS 2D semantic labelling: Potsdam (38 tiles of 6000 px, 0.05 m) and Vaihingen (33 tiles, 0.09 m), Rottensteiner et al. 2012.

Files are known by name, in whatever folders the archives made. Full labels train and score; eroded ones (`noBoundary`: a black rim of 3 px
along every border is ignored) come along as `label_eroded`, for scores that papers quote. Classes as in the paper this project follows:
clutter first.

The official test tiles are test. The contest has no validation set: tiles of the official training set are taken (`data.val_ids`, or
those below).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.folder import some
from idgbr.datasets.layout import Entry, Found, Layout
from idgbr.datasets.unlisted import find_converted
from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.labels import ClassTable, LabelClass

TABLE = ClassTable(
    (
        LabelClass("clutter", ((255, 0, 0),), (255, 0, 0)),
        LabelClass("impervious", ((255, 255, 255),), (255, 255, 255)),
        LabelClass("building", ((0, 0, 255),), (0, 0, 255)),
        LabelClass("low vegetation", ((0, 255, 255),), (0, 255, 255)),
        LabelClass("tree", ((0, 255, 0),), (0, 255, 0)),
        LabelClass("car", ((255, 255, 0),), (255, 255, 0)),
    ),
    ignore=((0, 0, 0),),
)

# https://www.isprs.org/education/benchmarks/UrbanSemLab: tiles with labels for participants, and the rest
POTSDAM_TRAIN = (
    "2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12",
    "6_7", "6_8", "6_9", "6_10", "6_11", "6_12", "7_7", "7_8", "7_9", "7_10", "7_11", "7_12",
)  # fmt: skip
POTSDAM_TEST = ("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13")  # fmt: skip
POTSDAM_VAL = ("2_10", "3_12", "6_8", "7_11")  # our choice: apart from each other, among them 2_10, the usual single one
VAIHINGEN_TRAIN = ("1", "3", "5", "7", "11", "13", "15", "17", "21", "23", "26", "28", "30", "32", "34", "37")  # fmt: skip
VAIHINGEN_TEST = ("2", "4", "6", "8", "10", "12", "14", "16", "20", "22", "24", "27", "29", "31", "33", "35", "38")  # fmt: skip
VAIHINGEN_VAL = ("5", "15", "21", "30")  # held out by many papers that use the 16 training tiles only

_POTSDAM = re.compile(r"^top_potsdam_(\d+_\d+)_(RGBIR|RGB|IRRG|label_noBoundary|label)\.tiff?$", re.IGNORECASE)
_VAIHINGEN = re.compile(r"^top_mosaic_09cm_area(\d+)(_noBoundary)?\.tiff?$", re.IGNORECASE)
_OVERLAY = "4_12"  # its label in 5_Labels_all is the label drawn over the image (torchgeo issue 1727); the participants' copy is right

# mmsegmentation's converters cut tiles into img_dir/{train,val}/TILE_X0_Y0_X1_Y1.png and write codes: 0 is black (the eroded rim, no data)
# and is ignored there (reduce_zero_label), the classes follow in the order of its palette.
CONVERTED_TABLE = ClassTable(
    tuple(LabelClass(TABLE.classes[i].name, (code,), TABLE.classes[i].color) for i, code in enumerate((6, 1, 2, 3, 4, 5))),
    ignore=(0,),
)
_CONVERTED = re.compile(r"^(?:area)?(?P<tile>\d+(?:_\d+)?)(?:_noBoundary)?_(?P<x>\d+)_(?P<y>\d+)_\d+_\d+$")

Files = dict[str, dict[str, list[Path]]]  # tile -> kind -> files


def _converted(found: Found, where: str, official: tuple[tuple[str, ...], ...], config: DataConfig, gsd_m: float) -> Found:
    """Crops as mmsegmentation's converters cut them: the official split of the tile counts, whichever folder a crop lies in.

    Raises:
        BadRequest: data.val_ids that are no training tiles. Missing: no crop of an official tile.
    """
    train, val, test = _splits(where, official, config)
    entries, strange = [], []
    for entry in found.entries:
        match = _CONVERTED.match(entry.image.stem)
        tile = match["tile"] if match else ""
        if match is None or tile not in (*train, *test):
            strange.append(entry.image.name)
            continue
        split = "test" if tile in test else "val" if tile in val else "train"
        x, y = int(match["x"]), int(match["y"])
        place = {"gsd_m": gsd_m, "x_m": x * gsd_m, "y_m": y * gsd_m}
        entries.append(Entry(f"{where}_{tile}_{x}_{y}", f"{where}_{tile}", split, entry.image, entry.label, **place))  # type: ignore[arg-type]
    if not entries:
        raise Missing(
            f"no crops of {where} tiles",
            value=some(strange),
            allowed="names TILE_X0_Y0_X1_Y1.png, as mmsegmentation's converter writes them",
        )
    tiles = {e.scene for e in entries}
    notes = [
        f"as converted by mmsegmentation: crops of {len(tiles)} of {len(train) + len(test)} tiles; code 0 is ignored",
        f"official splits by tile, not by the converter's folders (its val is the official test); validation tiles: {' '.join(val)}",
    ]
    if strange:
        notes.append(f"crops of tiles the contest does not have, left out: {some(strange)}")
    return Found(tuple(entries), tuple(notes), table=CONVERTED_TABLE)


def _splits(where: str, official: tuple[tuple[str, ...], ...], config: DataConfig) -> tuple[tuple[str, ...], ...]:
    """(train, val, test), with the validation tiles of data.val_ids.

    Raises:
        BadRequest: they are no official training tiles.
    """
    train, val, test = official
    wrong = [name for name in config.val_ids if name not in train]
    if wrong:
        raise BadRequest(
            f"data.val_ids are official training tiles of {where}",
            value=", ".join(wrong),
            allowed=", ".join(train),
            hint=nearest(wrong[0], train) or None,
        )
    return train, config.val_ids or val, test


def _potsdam(root: Path, config: DataConfig) -> Found:
    converted = find_converted(root)
    if converted is not None:
        return _converted(converted, "potsdam", (POTSDAM_TRAIN, POTSDAM_VAL, POTSDAM_TEST), config, 0.05)
    files: Files = defaultdict(lambda: defaultdict(list))
    for path in sorted(root.rglob("*")):
        if match := _POTSDAM.search(path.name):
            kind = match[2].lower()
            files[match[1]][kind.upper() if not kind.startswith("label") else kind].append(path)
    composites = {name for tile in files.values() for name in tile if name.isupper()}
    wanted = ["RGBIR"] if max(config.bands) > 3 else ["IRRG", "RGB", "RGBIR"]
    if config.variant and config.variant.upper() not in ("RGB", "IRRG", "RGBIR"):
        raise BadRequest("Potsdam has no such composite", value=f"data.variant={config.variant}", allowed="RGB, IRRG, RGBIR")
    order = [config.variant.upper()] if config.variant else wanted
    composite = next((name for name in order if name in composites), None)
    if composite is None:
        raise Missing(
            f"no Potsdam images top_potsdam_R_C_{'|'.join(order)}.tif below {root}",
            value=f"found {', '.join(sorted(composites)) or 'no top_potsdam_* images'} ({len(files)} tiles)",
            hint="unpack 2_Ortho_RGB.zip, 3_Ortho_IRRG.zip or 4_Ortho_RGBIR.zip there, or another data.variant",
        )
    for tile in files.values():
        tile["image"] = tile[composite]
        tile["label"].sort(key=lambda p: "participants" not in str(p))
    notes = [f"composite {composite}"]
    overlay = files.get(_OVERLAY, {})
    for kind in ("label", "label_noboundary"):
        if overlay.get(kind) and not _has_table_colours(overlay[kind][0]):
            notes.append(
                f"tile {_OVERLAY}: {overlay[kind][0].name} is drawn over the image (as in 5_Labels_all.zip) and left out; "
                "5_Labels_for_participants.zip has the right one"
            )
            overlay[kind] = []
    if len(notes) > 1 and not overlay["label"]:
        overlay["image"] = []
    return _entries(root, "potsdam", files, (POTSDAM_TRAIN, POTSDAM_VAL, POTSDAM_TEST), config, 0.05, notes)


def _has_table_colours(path: Path) -> bool:
    """Whether the middle of a label file is in the table's colours."""
    from idgbr.rasters.read import Grid, read_labels

    grid = Grid.of(path)
    side = min(256, grid.height, grid.width)
    try:
        read_labels(path, TABLE, (grid.height - side) // 2, (grid.width - side) // 2, side, side)
    except Disagreement:
        return False
    return True


def _vaihingen(root: Path, config: DataConfig) -> Found:
    converted = find_converted(root)
    if converted is not None:
        return _converted(converted, "vaihingen", (VAIHINGEN_TRAIN, VAIHINGEN_VAL, VAIHINGEN_TEST), config, 0.09)
    files: Files = defaultdict(lambda: defaultdict(list))
    for path in sorted(root.rglob("*")):
        if match := _VAIHINGEN.search(path.name):
            kind = "label_noboundary" if match[2] else "image" if path.parent.name.lower() in ("top", "image", "images") else "label"
            files[match[1]][kind].append(path)
    if files and not any(tile["image"] for tile in files.values()):
        raise Missing(
            f"the Vaihingen images are not to be told from the labels below {root}",
            allowed="images in a folder `top`, labels in another",
            hint="unpack ISPRS_semantic_labeling_Vaihingen.zip there (it makes top/)",
        )
    return _entries(root, "vaihingen", files, (VAIHINGEN_TRAIN, VAIHINGEN_VAL, VAIHINGEN_TEST), config, 0.09, [])


def _entries(
    root: Path, place: str, files: Files, official: tuple[tuple[str, ...], ...], config: DataConfig, gsd_m: float, notes: list[str]
) -> Found:
    train, val, test = _splits(place, official, config)
    notes.append(f"validation tiles, taken from the official training tiles: {' '.join(val)} (data.val_ids)")
    entries: list[Entry] = []
    missing: list[str] = []
    without_image: list[str] = []
    unlabelled, eroded_only = [], []
    for name in (*train, *test):
        tile = files.get(name, {})
        split = "test" if name in test else "val" if name in val else "train"
        image, label, eroded = (_one(tile.get(kind, [])) for kind in ("image", "label", "label_noboundary"))
        if image is None:
            (missing if label is None else without_image).append(name)
            continue
        if label is None and eroded is not None:
            label = eroded
            eroded_only.append(name)
        if label is None:
            unlabelled.append(name)
            if split != "test":
                continue
        entries.append(Entry(f"{place}_{name}", f"{place}_{name}", split, image, label, eroded, gsd_m=gsd_m))
    total = len(train) + len(test)
    bare = [name for name in unlabelled if name not in test]
    if bare or not entries:
        raise Missing(
            f"{place}: found {sum(e.label is not None for e in entries)} of {total} pairs; missing labels of {some(bare) or 'all tiles'}",
            hint="unpack the labels (5_Labels_all.zip or ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip) below data.root",
        )
    if without_image:
        raise Missing(
            f"{place}: found {sum(e.label is not None for e in entries)} of {total} pairs; missing images of {some(without_image)}",
            hint="unpack the archive of the images again, or take the labels out",
        )
    if missing:
        notes.append(f"found {total - len(missing)} of {total} tiles; missing {some(missing, 40)}")
    if unlabelled:
        notes.append(f"test tiles without labels: {some(unlabelled, 40)}")
    if eroded_only:
        notes.append(f"only eroded labels of {some(eroded_only, 40)}: borders are ignored there, so scores at borders say nothing")
    strange = sorted(set(files) - set(train) - set(test))
    if strange:
        notes.append(f"tiles the contest does not have, left out: {some(strange)}")
    return Found(tuple(entries), tuple(notes))


def _one(paths: list[Path]) -> Path | None:
    """The file; of several copies the first if they are copies (or the preferred one stands first and is marked so by its folder)."""
    if len({p.stat().st_size for p in paths}) > 1 and not any("participants" in str(p) for p in paths):
        raise Disagreement("different files of one name", value=some([str(p) for p in paths]), hint="keep one of them below data.root")
    return paths[0] if paths else None


POTSDAM = Layout(
    "potsdam",
    "ISPRS Potsdam",
    TABLE,
    "top_potsdam_R_C_{RGB,IRRG,RGBIR}.tif, top_potsdam_R_C_label.tif (_label_noBoundary.tif)",
    _potsdam,
    alpha_is_data=True,  # some tools mark the fourth band of RGBIR files as alpha; it is near infrared
)
VAIHINGEN = Layout(
    "vaihingen", "ISPRS Vaihingen", TABLE, "top/top_mosaic_09cm_areaN.tif, labels of the same name in another folder", _vaihingen
)
