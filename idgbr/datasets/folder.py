"""Own folders: images, masks and a split table.

    ROOT/splits.csv       columns `image`, `mask` (paths below ROOT), `split` (train, val, test); or `name` instead of the two paths:
                          ROOT/images/NAME.* and ROOT/masks/NAME.* optional: `scene` (kept together in folds; default:
                          the name), `gsd_m`, `x_m`, `y_m`, `mask_eroded`; any other column may be used in
                          `data.where`
    ROOT/classes.json     class table, unless `data.classes` names one

A test scene may come without a mask: leave the field empty.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.ids import safe_id
from idgbr.datasets.layout import IMAGE_SUFFIXES, SPLITS, Entry, Found, Layout
from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.labels import binary

SplitRow = dict[str, str]


def read_split_table(path: Path, root: Path) -> list[SplitRow]:
    """Rows of a CSV with a header, names and values stripped.

    Raises:
        Missing: no such file. Disagreement: no column `split`, or a split that is not train, val or test.
    """
    if not path.is_file():
        near = sorted(p.name for p in root.glob("*.csv"))
        raise Missing(
            f"no split table in {root}: expected {path.name}",
            value=f"found {', '.join(near) or 'no .csv file'}",
            allowed="a CSV with the columns image, mask, split (or name, split); without one, folders images and masks, "
            "train/images and train/masks, img_dir/train and ann_dir/train, or NAME.png beside NAME_gt.png",
            hint="data.split_table=FILE.csv",
        )
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [{(k or "").strip(): (v or "").strip() for k, v in row.items() if k is not None} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Disagreement(f"{path} is not a CSV in UTF-8", value=error, hint="save it again as CSV UTF-8") from error
    if not rows:
        raise Disagreement(f"{path} has no rows")
    if "split" not in rows[0]:
        raise Disagreement(
            f"{path} has no column 'split'",
            value=", ".join(rows[0]),
            allowed="split: train, val, test",
            hint="commas between the columns" if len(rows[0]) == 1 else nearest("split", rows[0]) or None,
        )
    wrong = sorted({row["split"] for row in rows} - set(SPLITS))
    if wrong:
        raise Disagreement(f"{path} has splits of another name", value=", ".join(map(repr, wrong)), allowed=", ".join(SPLITS))
    return rows


def select(rows: list[SplitRow], where: str, path: Path) -> list[SplitRow]:
    """Rows for which the SQL condition `where` holds; columns of numbers compare as numbers.

    Raises:
        BadRequest: not a condition, or on a column that is not there. Missing: no row is left.
    """
    if not where:
        return rows
    import polars as pl

    columns: dict[str, pl.Series] = {}
    for name in rows[0]:
        text = pl.Series(name, [row.get(name) or None for row in rows], pl.String)
        numbers = text.cast(pl.Float64, strict=False)
        columns[name] = numbers if numbers.null_count() == text.null_count() else text
    try:
        keep = pl.DataFrame(columns).select(pl.sql_expr(f"({where})").alias("keep").fill_null(False).cast(pl.Boolean))["keep"]
        keep = keep if len(keep) == len(rows) else pl.Series("keep", [bool(keep[0])] * len(rows))
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise BadRequest(
            "data.where is not a condition on the split table",
            value=f"data.where={where!r} ({str(error).splitlines()[0]})",
            allowed=f"SQL on the columns {', '.join(rows[0])} of {path.name}",
            hint="data.where='zoom == 20'",
        ) from error
    kept = [row for row, k in zip(rows, keep, strict=True) if k]
    if not kept:
        raise Missing(f"no row of {path} is left", value=f"data.where={where!r}")
    return kept


def by_stem(folder: Path) -> dict[str, Path]:
    """Raster files of a folder by name without suffix, and by the NFC form of the name.

    Raises:
        Missing: no such folder. Disagreement: two files differ only in the suffix.
    """
    if not folder.is_dir():
        raise Missing(f"no folder {folder}", allowed="images/ and masks/ beside the split table")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise Disagreement("two files of one name", value=f"{found[path.stem]}, {path}", hint="keep one of them")
            found[path.stem] = path
    for path in list(found.values()):  # a table from Linux finds the files of a Mac, which writes é as two letters
        found.setdefault(unicodedata.normalize("NFC", path.stem), path)
    return found


def slashes(text: str) -> str:
    """A relative path written on Windows (`images\\a.png`) with slashes; other paths as they are."""
    return text if "/" in text or text[1:2] == ":" else text.replace("\\", "/")


def place(root: Path, text: str) -> Path:
    """The file that a table names: with backslashes for slashes, and in the form of Unicode that the file system has,
    if need be."""
    path = root / slashes(text)
    if not path.is_file():
        for form in ("NFC", "NFD"):
            other = root / unicodedata.normalize(form, slashes(text))
            if other.is_file():
                return other
    return path


def _by_name(files: Mapping[str, Path], name: str) -> Path | None:
    return files.get(name, files.get(unicodedata.normalize("NFC", name)))


def find_rows(root: Path, config: DataConfig, derive: Callable[[SplitRow], Mapping[str, object]] | None = None) -> Found:
    """Entries of the split table. `derive` may add Entry fields that the publisher's names tell.

    Raises:
        Missing: table, folder or files not there ("found 12 of 38; missing ..."). Disagreement: the table is not as
            described above.
    """
    path = root / (config.split_table or "splits.csv")
    rows = select(read_split_table(path, root), config.where, path)
    named = "image" not in rows[0]
    if named and "name" not in rows[0]:
        raise Disagreement(
            f"{path} has neither a column 'image' nor a column 'name'", value=", ".join(rows[0]), hint=nearest("image", rows[0]) or None
        )
    images, masks = (by_stem(root / "images"), by_stem(root / "masks")) if named else ({}, {})
    entries, missing = [], []
    for row in rows:
        name = row["name"] if named else str(Path(slashes(row["image"])).with_suffix(""))
        image, mask = (_by_name(files, name) for files in (images, masks))
        if not named:
            image, mask = place(root, row["image"]), place(root, row["mask"]) if row.get("mask") else None
        eroded = place(root, row["mask_eroded"]) if row.get("mask_eroded") else None
        absent = [p for p in (image, mask, eroded) if p is not None and not named and not p.is_file()]
        if image is None or absent or (mask is None and (row["split"] == "train" or named)):
            missing.append(
                str(absent[0].relative_to(root))
                if absent
                else f"images/{name}.*"
                if image is None
                else f"masks/{name}.*"
                if named
                else f"mask of {name}"
            )
            continue
        try:
            numbers = {key: float(row[key]) for key in ("gsd_m", "x_m", "y_m") if row.get(key)}
        except ValueError as error:
            raise Disagreement(f"{path}: {error}", allowed="numbers in gsd_m, x_m, y_m") from error
        fields = {"scene": row.get("scene") or name, **numbers, **(derive(row) if derive else {})}
        entries.append(Entry(id=safe_id(name), split=row["split"], image=image, label=mask, label_eroded=eroded, **fields))  # type: ignore[arg-type]
    if missing:
        raise Missing(
            f"{path}: found {len(entries)} of {len(rows)} pairs; missing {some(missing)}",
            hint="paths below the folder of the table, with slashes, as on Linux"
            if any("\\" in name for name in missing)
            else "put the files there, or take the rows out",
        )
    return Found(tuple(entries), extra_files=(path,))


def some(names: list[str], most: int = 5) -> str:
    """The first `most` names for a message, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- hotosm tiles: the split table knows scenes and zoom, the names know the place --------------------------------------

_OAM_NAME = re.compile(r"(?P<scene>.+)_z(?P<zoom>\d+)_r(?P<row>\d+)_c(?P<col>\d+)$")
_OAM_CHIP_PX = 512


def _oam_place(row: SplitRow) -> dict[str, object]:
    match = _OAM_NAME.match(row["name"])
    if match is None:
        raise Disagreement("a chip's name tells its place", value=row["name"], allowed="SCENE_zZOOM_rROW_cCOLUMN")
    side = _OAM_CHIP_PX * float(row["gsd_m"])
    return {"x_m": int(match["col"]) * side, "y_m": int(match["row"]) * side}


OAM_BUILDINGS = Layout(
    name="oam_buildings",
    title="OpenAerialMap chips with buildings",
    table=binary("building"),
    find=lambda root, config: find_rows(root, config, _oam_place),
    filters_rows=True,
    expected="splits.csv, images/SCENE_zZOOM_rROW_cCOLUMN.jpg, masks/*.png",
)
