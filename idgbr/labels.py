"""Class tables: names, raw codes, colours, ignore.

A class index is a uint8 position in the table; `IGNORE` (255) marks pixels without a class: unlabelled, eroded rim,
nodata. `idgbr.rasters.codes` decides which codes the samples of a file stand for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idgbr.errors import Disagreement, Missing

IGNORE = 255
UNKNOWN = 254  # result of `look_up` for a code that the table does not have

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
        if not 1 <= len(self.classes) <= UNKNOWN:
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
        """Number of classes, K; class indices are 0 to K - 1."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices."""
        return tuple(c.name for c in self.classes)

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """RGB colours (0 to 255) of the classes in the order of their indices."""
        return tuple(c.color for c in self.classes)

    @property
    def has_colors(self) -> bool:
        """Whether any raw code is an RGB colour, so that paletted masks are to be read as colours, not as indices."""
        return any(isinstance(code, tuple) for code in [*self.ignore, *(k for c in self.classes for k in c.codes)])

    @property
    def numbers(self) -> dict[int, int]:
        """Number codes and their class index; `IGNORE` for ignore codes."""
        return {code: index for code, index in self._pairs() if isinstance(code, int)}

    @property
    def rgb(self) -> dict[int, int]:
        """Colour codes, packed as 0xRRGGBB, and their class index; `IGNORE` for ignore codes."""
        return {pack(code): index for code, index in self._pairs() if not isinstance(code, int)}

    def _pairs(self) -> list[tuple[Code, int]]:
        return [(code, i) for i, c in enumerate(self.classes) for code in c.codes] + [(code, IGNORE) for code in self.ignore]

    def encode(self, raw: NDArray[Any], where: object) -> NDArray[np.uint8]:
        """Raw codes [H,W], or colours [H,W,3], of a whole image to class indices uint8 [H,W] (255 ignored).

        A grey image saved as RGB (all three channels equal) is read as grey if the table lacks one of its colours.

        Args:
            where: named in the error; the path of the file.

        Raises:
            Disagreement: a code that the table does not have, with a histogram of the codes found.
        """
        if raw.ndim == 3:
            if raw.shape[-1] != 3:
                raise Disagreement(f"{where}: a label file has 1 band or 3 (RGB)", value=f"{raw.shape[-1]} bands")
            colours = self.rgb
            packed = pack_array(raw)
            grey = (raw[..., 0] == raw[..., 1]).all() and (raw[..., 1] == raw[..., 2]).all()
            if grey and not all(int(v) in colours for v in np.unique(packed)):
                return self.encode(raw[..., 0], where)
            index = look_up(packed, colours)
        else:
            if raw.dtype.kind == "f" and not (raw == np.floor(raw)).all():
                raise Disagreement(f"{where}: label values are not whole numbers", value=f"{raw.dtype}, {raw.min()} to {raw.max()}")
            index = look_up(raw, self.numbers)
        if (index == UNKNOWN).any():
            values, counts = np.unique(packed if raw.ndim == 3 else raw, return_counts=True)
            raise self.unknown_codes(where, histogram(values.tolist(), counts.tolist(), raw.ndim == 3))
        return index

    def unknown_codes(self, where: object, found: str) -> Disagreement:
        """The error for codes that the table does not have. `found`: a histogram of the codes."""
        return Disagreement(
            f"{where}: codes that the class table does not have",
            value=found,
            allowed=self.describe_codes(),
            hint="a class table with these codes: --classes FILE.json, or data.classes=FILE.json in a recipe",
        )

    def colorize(self, index: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class indices [...] to RGB uint8 [...,3] in the table's colours; ignore (and anything else) is mid grey."""
        lut = np.full((256, 3), 128, np.uint8)
        lut[: self.n_classes] = self.colors
        return lut[index]

    def describe_codes(self) -> str:
        """Classes and their raw codes in one line, for messages."""
        parts = [f"{c.name}: {_codes(c.codes)}" for c in self.classes]
        return "; ".join([*parts, f"ignore: {_codes(self.ignore)}"] if self.ignore else parts)

    def to_json(self) -> str:
        """The table as the text of a classes.json."""
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


def look_up(raw: NDArray[Any], codes: Mapping[int, int]) -> NDArray[np.uint8]:
    """The value of every code, uint8 in the shape of `raw`; `UNKNOWN` where `codes` lacks it (NaN and fractions
    included)."""
    if raw.dtype == np.bool_:
        raw = raw.view(np.uint8)
    if raw.dtype in (np.uint8, np.uint16):
        lut = np.full(65536 if raw.dtype == np.uint16 else 256, UNKNOWN, np.uint8)
        for code, index in codes.items():
            if 0 <= code < len(lut):
                lut[code] = index
        return lut[raw]
    if raw.dtype.kind in "iu":  # codes outside the sample type cannot occur
        limits = np.iinfo(raw.dtype)
        codes = {code: index for code, index in codes.items() if limits.min <= code <= limits.max}
    if not codes:
        return np.full(raw.shape, UNKNOWN, np.uint8)
    known = np.array(sorted(codes), raw.dtype if raw.dtype.kind == "u" else np.float64 if raw.dtype.kind == "f" else np.int64)
    values = np.array([codes[int(k)] for k in known], np.uint8)
    at = np.searchsorted(known, raw).clip(max=len(known) - 1)
    return np.where(known[at] == raw, values[at], np.uint8(UNKNOWN))


def pack(colour: tuple[int, int, int]) -> int:
    """(red, green, blue) as 0xRRGGBB."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def pack_array(rgb: NDArray[Any]) -> NDArray[np.uint32]:
    """Colours [...,3] as 0xRRGGBB, uint32 [...]; 0xFFFFFFFF where a sample is not a whole number from 0 to 255."""
    with np.errstate(invalid="ignore"):
        wide = rgb.astype(np.uint32)
    packed = ((wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]).astype(np.uint32)
    if rgb.dtype != np.uint8:
        packed[~((rgb >= 0) & (rgb <= 255) & (rgb == wide)).all(axis=-1)] = 0xFFFFFFFF
    return packed


def histogram(values: Sequence[float], counts: Sequence[int], colours: bool = False, most: int = 12) -> str:
    """`code: share` of the most frequent codes. `colours`: the values are packed colours."""
    total = sum(counts)
    order = sorted(range(len(values)), key=lambda i: -counts[i])[:most]
    shown = [(_color_text(int(values[i])) if colours else f"{values[i]:.12g}", counts[i]) for i in order]
    text = ", ".join(f"{name}: {count / total:.2%}" for name, count in shown)
    return text + (f", and {len(values) - most} more" if len(values) > most else "")


def _color_text(packed: int) -> str:
    return "no colour of 8 bits" if packed > 0xFFFFFF else str((packed >> 16, packed >> 8 & 255, packed & 255))


def _codes(codes: Iterable[Code]) -> str:
    return " ".join(str(c) for c in codes)


def _read_codes(values: object) -> tuple[Code, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"codes are a list of numbers and colours, not {values!r}")
    return tuple(_whole(v) if not isinstance(v, list | tuple) else _read_color(v) for v in values)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a code is a whole number or a colour [red, green, blue], not {value!r}")
    return value


def _read_color(value: object) -> tuple[int, int, int]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"a colour has three values from 0 to 255, not {value!r}")
    red, green, blue = (_whole(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"a colour has three values from 0 to 255, not {value}")
    return red, green, blue
