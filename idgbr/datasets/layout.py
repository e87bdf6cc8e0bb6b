"""What a reader of a data set's layout hands over: entries (one a raster), a class table, and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.labels import ClassTable

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".bmp")


@dataclass(frozen=True)
class Entry:
    """One image with its label, as found by name; nothing has been opened yet.

    `x_m`, `y_m` are None where the names do not tell the place: a georeferenced image then tells it itself.
    """

    id: str
    scene: str
    split: str
    image: Path
    label: Path | None
    label_eroded: Path | None = None
    gsd_m: float | None = None
    x_m: float | None = None
    y_m: float | None = None


@dataclass(frozen=True)
class Found:
    """All entries of a data set, and what is worth telling: folders taken, pairs missing, choices made."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    extra_files: tuple[Path, ...] = ()  # split tables and the like: their content counts in the digest
    table: ClassTable | None = None  # where the files decide it


@dataclass(frozen=True)
class Layout:
    """One layout of folders and files.

    `find` raises `Missing` (folder or files not there) or `Disagreement`; None: nothing is found, scenes are made.
    `built_in` is the folder of a data set that is installed with idgbr; None: the user names it in `data.root`.
    """

    name: str
    title: str
    table: ClassTable | None  # None: classes.json of the folder, or data.classes
    expected: str
    find: Callable[[Path, DataConfig], Found] | None
    built_in: Path | None = None
    alpha_is_data: bool = False  # a band marked as alpha is one of the sensor's
    filters_rows: bool = False  # `data.where` is about columns of its split table; else about id, scene and split
