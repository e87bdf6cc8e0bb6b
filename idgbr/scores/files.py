"""Class map files of other people: which files belong together, and what their values mean.

Without a class table the values decide, for all files of one side together: only 0 and 255 is a mask (255 is the
class), anything else are class indices. With a table, files are read as `idgbr.rasters.codes` says. Targets must hold
only known codes; a prediction's unknown numbers are outside the classes and count as wrong.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import IGNORE, ClassTable, LabelClass
from idgbr.scores.region import Map

SUFFIXES = (".tif", ".tiff", ".png", ".jp2", ".img", ".vrt", ".bmp", ".gif", ".webp", ".jpg", ".jpeg")
OUTSIDE = 254  # in predictions: a value that is no class
MOST_CLASSES = 64  # that are guessed without a table
_COLORS = ((40, 40, 40), (255, 80, 40), (60, 160, 60), (70, 110, 220), (240, 200, 60), (160, 80, 180))


# ---- which files --------------------------------------------------------------------------------------------------------------


def matched(sides: dict[str, Path]) -> tuple[list[tuple[str, dict[str, Path]]], list[str]]:
    """Which files are compared, and what is left out.

    Returns:
        (name, file of every side): one entry if the sides are files, one a name (without suffix) if they are folders.
        A note for every folder with files that are no class maps; a name that begins with "_" counts like any other.

    Raises:
        BadRequest: a file against a folder. Missing: no such path, or a folder without class maps.
        Disagreement: names without a partner (listed), or one name twice in a folder.
    """
    for side, path in sides.items():
        if not path.exists():
            raise Missing(f"{side}: no such file or folder", value=path, hint="check the path")
    folders = {side: path.is_dir() for side, path in sides.items()}
    if len(set(folders.values())) > 1:
        kinds = ", ".join(f"{side} is a {'folder' if f else 'file'}" for side, f in folders.items())
        raise BadRequest("files are compared with files, folders with folders", value=kinds)
    if not any(folders.values()):
        return [(next(iter(sides.values())).stem, sides)], []
    names, left_out = {}, []
    for side, path in sides.items():
        names[side], others = _by_name(side, path)
        if others:
            left_out.append(f"{side}: left out, for they are no class maps: {_few(others)}")
    everywhere = set.intersection(*(set(n) for n in names.values()))
    alone = {side: sorted(set(n) - everywhere) for side, n in names.items()}
    if any(alone.values()):
        listed = "; ".join(f"only in {side} ({sides[side]}): {_few(found)}" for side, found in alone.items() if found)
        raise Disagreement(
            "files are matched by name without suffix, and some have no partner",
            value=listed,
            hint="the same names in both folders; move the others away",
        )
    return [(name, {side: found[name] for side, found in names.items()}) for name in sorted(everywhere)], left_out


def _by_name(side: str, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Class maps by name without suffix, and the names of everything else: hidden files, folders, other kinds of
    files."""
    found: dict[str, Path] = {}
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES or path.is_dir():
            others.append(path.name + "/" * path.is_dir())
            continue
        name = unicodedata.normalize("NFC", path.stem)  # the same name from a Mac and from Linux differs in its bytes
        if name in found:
            raise Disagreement(f"{side}: one name twice in a folder", value=f"{found[name].name}, {path.name}", hint="keep one of them")
        found[name] = path
    if not found:
        there = f"; it holds {_few(others)}" if others else ""
        raise Missing(f"{side}: no class maps in the folder", value=f"{folder}{there}", allowed=", ".join(SUFFIXES))
    return found, others


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- what the values mean -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileValues:
    """What a file holds: colours or numbers, whether a palette, the class names it was written with, and its distinct
    whole numbers."""

    path: Path
    colours: bool
    palette: bool
    written_as: tuple[str, ...]  # class names, if this program wrote it as a class map
    numbers: frozenset[int]  # of valid pixels, as shown (see `idgbr.rasters.readings.shown`); empty for colours
    doubtful: bool = False  # 255 is declared as nodata and occurs, and beside it only 0: a mask of gdal_calc.py, or one without the class


def look(path: Path) -> FileValues:
    """Look a file through once, in blocks.

    Raises:
        Missing: no such file. Disagreement: unreadable, fractions or not-a-number only, probabilities, complex
            numbers, no class map.
    """
    from idgbr.rasters.codes import class_bands
    from idgbr.rasters.meaning import meaning_of, values_of
    from idgbr.rasters.readings import shown

    meaning = meaning_of(path)
    if meaning.probabilities or (meaning.is_float and len(meaning.data) > 1):
        raise Disagreement(
            f"{path} holds probabilities, not classes",
            value=f"{len(meaning.data)} bands of {meaning.dtypes[0]}",
            hint="score a class map: the most probable class of every pixel",
        )
    bands = class_bands(meaning)
    palette = meaning.palette is not None
    if len(bands) == 3:
        return FileValues(path, True, palette, meaning.written_as, frozenset())
    values = values_of(path, bands)
    if values.fraction is not None:
        raise Disagreement(
            f"{path} holds fractions where class codes were expected",
            value=f"e.g. {values.fraction:.6g}",
            hint="threshold the mask first: 0 and 255, or class indices",
        )
    if values.many:
        found = values.numbers
        raise Disagreement(
            f"{path} holds more than {len(found) - 1} different numbers, so it is no class map", value=f"{found[0]} to {found[-1]}"
        )
    numbers = frozenset(shown(meaning, values))
    doubtful = meaning.nodata[bands[0] - 1] == IGNORE and set(values.numbers) == {0, IGNORE} and not (palette or meaning.written_as)
    return FileValues(path, False, palette, meaning.written_as, numbers, doubtful)


def guess_table(sides: Mapping[str, Sequence[FileValues]], ignore: int) -> tuple[ClassTable, dict[str, bool]]:
    """Class indices as a table, and which sides are 0/255 masks. Classes: 0 to the highest value of any side, but for
    `ignore` and 255.

    Raises:
        Disagreement: colours without a class table, negative numbers, more than `MOST_CLASSES` classes, or a single
        file of 0 and declared 255.
        BadRequest: `ignore` leaves fewer than two classes.
    """
    masks: dict[str, bool] = {}
    highest = 1
    for side, files in sides.items():
        colours = next((f for f in files if f.colours), None)
        if colours is not None:
            raise Disagreement(f"{side}: colours need a class table to be classes", value=colours.path, hint="--classes TABLE.json")
        found = frozenset[int]().union(*(f.numbers for f in files))
        doubtful = [f for f in files if f.doubtful and found == {0}]
        if doubtful and len(files) == 1:
            raise Disagreement(
                f"{side}: 255 is declared as nodata, and beside it there is only 0: 255 may be the class or unknown",
                value=doubtful[0].path,
                hint="--classes TABLE.json, which says what 255 is; if it is the class: gdal_edit.py -unsetnodata FILE",
            )
        masks[side] = found <= {0, 255} and (255 in found or bool(doubtful)) and not any(f.written_as for f in files)
        if masks[side]:
            continue
        codes = found - {ignore, IGNORE}
        strange = sorted(c for c in codes if not 0 <= c < MOST_CLASSES)
        if strange:
            where = next(f.path for f in files if strange[0] in f.numbers)
            raise Disagreement(
                f"{side}: values that cannot be class indices",
                value=f"{_few([str(c) for c in strange])} in {where}",
                allowed=f"0 to {MOST_CLASSES - 1}, 255",
                hint="--classes TABLE.json, which says what the codes mean",
            )
        highest = max(highest, max(codes, default=0))
    if highest > 1:  # one side has more classes, so 255 on the other is no class
        masks = dict.fromkeys(masks, False)
    names = next((f.written_as for files in sides.values() for f in files if len(f.written_as) == highest + 1), ())
    names = names or (("background", "object") if highest == 1 else tuple(f"class {i}" for i in range(highest + 1)))
    target_masks = [m for side, m in masks.items() if side.startswith("target")]
    if not any(target_masks):
        left = tuple(i for i in range(highest + 1) if i != ignore)
    else:
        left = () if ignore == 0 else (0, 1)
    if len(left) < 2:
        raise BadRequest(
            f"--ignore {ignore} leaves fewer than two classes",
            value="the target is a 0/255 mask" if any(target_masks) else f"classes 0 to {highest}",
            hint="another --ignore, or --classes TABLE.json, which says what the codes mean",
        )
    return ClassTable(tuple(LabelClass(names[i], (i,), _COLORS[i % len(_COLORS)]) for i in left), ()), masks


def with_ignore(table: ClassTable, ignore: int) -> ClassTable:
    """The table with one more ignore code; 255 stays a class where the table says so.

    Raises:
        BadRequest: another code that the table calls a class.
    """
    if ignore in table.ignore:
        return table
    of_class = next((c.name for c in table.classes if ignore in c.codes), None)
    if of_class is None:
        return ClassTable(table.classes, (*table.ignore, ignore))
    if ignore == IGNORE:
        return table
    raise BadRequest(
        f"--ignore {ignore} is the code of class {of_class}", hint="a class table without that class, and the code under `ignore`"
    )


@dataclass(frozen=True)
class Side:
    """How all files of one side are read. `is_target`: unknown codes are errors; else they become OUTSIDE."""

    table: ClassTable
    is_target: bool
    colours: bool
    seen: frozenset[int] = frozenset()  # codes that occur in the files of this side

    def read(self, path: Path, row: int, col: int, height: int, width: int) -> Map:
        """Class indices of a window uint8 [height, width]; ignored pixels 255 (in predictions OUTSIDE wherever there
        is no class)."""
        from idgbr.rasters.read import read_labels

        if self.is_target or self.colours:
            return read_labels(path, self.table, row, col, height, width, seen=self.seen)
        out = read_labels(path, self.table, row, col, height, width, seen=self.seen, unknown=OUTSIDE)
        out[out == IGNORE] = OUTSIDE
        return out


def side_of(side: str, files: Sequence[FileValues], table: ClassTable, mask: bool, ignore: int) -> Side:
    """How the files of a side are read with a class table (given or guessed).

    Raises:
        Disagreement: other class names in the file's own tags, colours without codes for them, or no known code at
            all in a prediction.
    """
    is_target = side.startswith("target")
    seen = frozenset[int]().union(*(f.numbers for f in files)) if len(files) > 1 else frozenset()
    if mask:
        binary = ClassTable(tuple(LabelClass(c.name, (i * 255,), c.color) for i, c in enumerate(table.classes[:2])), ())
        classes = binary.classes + tuple(LabelClass(c.name, (i,), c.color) for i, c in enumerate(table.classes[2:], 2))
        return Side(ClassTable(classes, () if ignore == IGNORE else (ignore,)), is_target, False, seen)
    written = {f.written_as for f in files if f.written_as}
    if written:
        wrong = next((names for names in written if set(names) != set(table.names)), None)
        if wrong is not None:
            raise Disagreement(f"{side}: written with other classes than these", value=", ".join(wrong), allowed=", ".join(table.names))
        return Side(with_ignore(table, ignore) if is_target and not all(f.written_as for f in files) else table, is_target, False, seen)
    colours = any(f.colours for f in files) or (any(f.palette for f in files) and table.has_colors)
    numbers = {code for c in table.classes for code in c.codes if isinstance(code, int)}
    if not colours and not numbers:  # one band, but the table has only colours: indices
        table = ClassTable(tuple(LabelClass(c.name, (i,), c.color) for i, c in enumerate(table.classes)), (IGNORE,))
        numbers = set(range(table.n_classes))
    found = frozenset[int]().union(*(f.numbers for f in files))
    if not is_target and not colours and found and not found & numbers and not any(f.palette for f in files):
        raise Disagreement(
            f"{side}: none of its values is a class",
            value=_few([str(v) for v in sorted(found)]),
            allowed=table.describe_codes(),
            hint="--classes TABLE.json with the codes of both",
        )
    return Side(with_ignore(table, ignore) if is_target else table, is_target, colours, seen)
