"""Class tables: names, raw codes, colours, ignore. Raw codes exist nowhere else; every other file sees class indices.

A class index is a uint8 position in the table; 255 is ignore (unlabelled, eroded rim, nodata).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idgbr.errors import Disagreement, Missing

IGNORE = 255
_UNKNOWN = 254  # a code that no class has; never leaves this file

Code = int | tuple[int, int, int]


@dataclass(frozen=True)
class LabelClass:
    """One class: how it is called, how files write it (grey values or RGB colours), how it is drawn (RGB)."""

    name: str
    codes: tuple[Code, ...]
    color: tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes in the order of their indices, and the raw codes that mean `ignore`.

    Raises:
        Disagreement: no class, more than 254, a name twice, or one code for two meanings.
    """

    classes: tuple[LabelClass, ...]
    ignore: tuple[Code, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= _UNKNOWN:
            raise Disagreement("a class table has between 1 and 254 classes", value=len(self.classes))
        if len(set(self.names)) != len(self.classes):
            raise Disagreement("a class name stands twice in a class table", value=", ".join(self.names))
        meanings: dict[Code, str] = {}
        for name, codes in [*((c.name, c.codes) for c in self.classes), ("ignore", self.ignore)]:
            for code in codes:
                if meanings.setdefault(code, name) != name:
                    raise Disagreement(f"code {code} means both {meanings[code]} and {name} in a class table")

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(c.color for c in self.classes)

    @property
    def has_colors(self) -> bool:
        """Whether any raw code is an RGB colour, so that paletted masks are to be read as colours, not as indices."""
        return any(isinstance(code, tuple) for code in [*self.ignore, *(k for c in self.classes for k in c.codes)])

    def encode(self, raw: NDArray[Any], where: object) -> NDArray[np.uint8]:
        """Raw codes [H,W], or colours [H,W,3] ([H,W,4]: alpha is not read), to class indices uint8 [H,W] (255 ignored).

        A grey picture saved as RGB (all three channels equal) is read as grey where the table has no such colour.

        Args:
            where: named in the error; the path of the file.

        Raises:
            Disagreement: a code that the table does not have, with a histogram of the codes found.
        """
        codes = [(code, i) for i, c in enumerate(self.classes) for code in c.codes] + [(code, IGNORE) for code in self.ignore]
        if raw.ndim == 3:
            rgb = raw[..., :3]
            if rgb.shape[-1] != 3:
                raise Disagreement(f"{where}: a label file has 1 band or 3 (RGB)", value=f"{raw.shape[-1]} bands")
            colours = {(k[0] << 16) | (k[1] << 8) | k[2]: i for k, i in codes if isinstance(k, tuple)}
            is_grey = (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all()
            if is_grey and not all((int(v) * 0x010101) in colours for v in np.unique(rgb[..., 0])):
                return self.encode(rgb[..., 0], where)
            packed = (rgb[..., 0].astype(np.uint32) << 16) | (rgb[..., 1].astype(np.uint32) << 8) | rgb[..., 2].astype(np.uint32)
            index = _lookup(packed, colours)
        else:
            if raw.dtype.kind == "f":
                if not (raw == np.floor(raw)).all():
                    raise Disagreement(f"{where}: label values are not whole numbers", value=f"{raw.dtype}, {raw.min()} to {raw.max()}")
                raw = raw.astype(np.int64)
            index = _lookup(raw, {k: i for k, i in codes if isinstance(k, int)})
        if (index == _UNKNOWN).any():
            raise Disagreement(
                f"{where}: codes that the class table does not have",
                value=_histogram(raw),
                allowed=self.describe_codes(),
                hint="a class table with these codes: --classes FILE.json, or data.classes=FILE.json in a recipe",
            )
        return index

    def colorize(self, index: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class indices [...] to RGB uint8 [...,3] in the table's colours; ignore (and anything else) is mid grey."""
        lut = np.full((256, 3), 128, np.uint8)
        lut[: self.n_classes] = self.colors
        return lut[index]

    def describe_codes(self) -> str:
        parts = [f"{c.name}: {_codes(c.codes)}" for c in self.classes]
        return "; ".join([*parts, f"ignore: {_codes(self.ignore)}"] if self.ignore else parts)

    def to_json(self) -> str:
        return json.dumps(
            {
                "classes": [{"name": c.name, "codes": list(c.codes), "color": list(c.color)} for c in self.classes],
                "ignore": list(self.ignore),
            },
            indent=1,
        )

    @staticmethod
    def from_json(text: str, where: object = "class table") -> ClassTable:
        """Raises:
        Disagreement: not JSON, or not of the form `{"classes": [{"name", "codes", "color"}], "ignore": []}`.
        """
        try:
            data = json.loads(text)
            classes = tuple(LabelClass(str(c["name"]), _read_codes(c["codes"]), _read_color(c["color"])) for c in data["classes"])
            return ClassTable(classes, _read_codes(data.get("ignore", [])))
        except (ValueError, KeyError, TypeError) as error:
            raise Disagreement(
                f"{where}: not a class table ({type(error).__name__}: {error})",
                allowed='{"classes": [{"name": "road", "codes": [255], "color": [255, 0, 0]}, ...], "ignore": []}',
            ) from error

    @staticmethod
    def load(path: str | Path) -> ClassTable:
        """Raises:
        Missing: no such file.
        Disagreement: not a class table.
        """
        path = Path(path)
        if not path.is_file():
            raise Missing("no class table", value=path, hint="an existing file; for a data set, classes.json in its folder")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Disagreement(f"{path}: not a class table, for it is not text in UTF-8", value=error) from error
        return ClassTable.from_json(text, path)


def binary(
    name: str,
    color: tuple[int, int, int] = (255, 80, 40),
    codes: tuple[Code, ...] = (255, 1),
    others: tuple[Code, ...] = (0,),
    ignore: tuple[Code, ...] = (),
) -> ClassTable:
    """Background and one class, as most binary sets write it: 0 and 255, or 0 and 1 after somebody's conversion."""
    return ClassTable((LabelClass("background", others, (40, 40, 40)), LabelClass(name, codes, color)), ignore)


def _lookup(raw: NDArray[Any], codes: dict[int, int]) -> NDArray[np.uint8]:
    if raw.dtype in (np.uint8, np.uint16, np.bool_):
        lut = np.full(65536 if raw.dtype == np.uint16 else 256, _UNKNOWN, np.uint8)
        for code, index in codes.items():
            if 0 <= code < len(lut):
                lut[code] = index
        return lut[raw.astype(np.uint8) if raw.dtype == np.bool_ else raw]
    if not codes:
        return np.full(raw.shape, _UNKNOWN, np.uint8)
    known = np.array(sorted(codes), raw.dtype if raw.dtype.kind == "u" else np.int64)
    values = np.array([codes[int(k)] for k in known], np.uint8)
    at = np.searchsorted(known, raw).clip(max=len(known) - 1)
    return np.where(known[at] == raw, values[at], np.uint8(_UNKNOWN))


def _histogram(raw: NDArray[Any], most: int = 12) -> str:
    flat = raw[..., :3].reshape(-1, 3) if raw.ndim == 3 else raw.reshape(-1, 1)
    packed = flat.astype(np.int64) @ np.array([65536, 256, 1][: flat.shape[1]] if flat.shape[1] == 3 else [1])
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts)
    names = [str((int(v) >> 16, int(v) >> 8 & 255, int(v) & 255)) if raw.ndim == 3 else str(int(v)) for v in values[order[:most]]]
    text = ", ".join(f"{n}: {c / packed.size:.2%}" for n, c in zip(names, counts[order]))
    return text + (f", and {len(values) - most} more" if len(values) > most else "")


def _codes(codes: Iterable[Code]) -> str:
    return " ".join(str(c) for c in codes)


def _read_codes(values: Any) -> tuple[Code, ...]:
    return tuple(v if isinstance(v, int) else _read_color(v) for v in values)


def _read_color(value: Any) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"a colour has three values from 0 to 255, not {value}")
    return red, green, blue
