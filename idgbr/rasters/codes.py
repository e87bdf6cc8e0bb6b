"""Which class every sample of a class map stands for: labels, coarse maps and predictions are all read by this rule.

Decided once for a file and a class table, from the file's meaning and its distinct values, so that a window never decides.

- Transparency and masks are no classes: their pixels are unknown.
- A palette goes by colour: by the table's colour codes; by the colours its classes are drawn in; by grey levels that are number codes
  (white and black for masks); else its indices are number codes.
- White is zero (photometric interpretation): the number codes are what is shown, `full - sample`.
- Samples of other than 8 bits may be number codes, or grey levels scaled to 8 bits (1 of 1 bit, 65535 of 16 bits are 255).
- Three bands hold colour codes; if they are grey everywhere, number codes; else the colours that the table's classes are drawn in.
- Declared nodata is unknown, unless it is a code of a class. It is also unknown if another code of that class occurs. If the class has
  another code that does not occur, a file alone is refused (0 and declared 255: a mask of gdal_calc.py, or one without the class?); in a
  set of several files it is the class.
- 1 and 255 of one class in one file are refused unless one is declared nodata: nobody can tell whether 255 is the class or unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, UNKNOWN, ClassTable, LabelClass, histogram, look_up, pack, pack_array
from idgbr.rasters.grid import file_key
from idgbr.rasters.meaning import Meaning, Values, colours_scale, eight_bits, is_code, is_nodata, meaning_of, values_of
from idgbr.rasters.readings import PLAIN, Classes, Reading, choose, drawn_colours, must_look, readings_of


@dataclass(frozen=True, eq=False)
class Coding:
    """How the samples of one file become class indices.

    bands: one, or red, green and blue. note: what was decided against the plain numbers, for reports; or None.
    """

    meaning: Meaning
    table: ClassTable
    bands: tuple[int, ...]
    scale: int
    grey: bool
    classes: Classes
    note: str | None

    def read(self, source: Any, window: GdalWindow, strict: bool = True) -> NDArray[np.uint8]:
        """Class indices uint8 [h, w]; `IGNORE` where nothing is known.

        Args:
            strict: refuse codes that the table does not have; else they come as `UNKNOWN`.

        Raises:
            Disagreement: such a code, with a histogram of the window.
        """
        ok = self.meaning.known(source, window)
        raw = source.read(self.bands, window=window)
        if len(self.bands) == 3:
            colours = eight_bits(np.moveaxis(raw, 0, -1), self.scale)
            samples = colours[..., 0] if self.grey else pack_array(colours)
        else:
            samples = raw[0]
        if samples.dtype.kind == "f":
            ok &= np.isfinite(samples)
            nodata = self.meaning.nodata[self.bands[0] - 1]
            if nodata is not None and not is_code(nodata):
                ok &= ~is_nodata(samples, nodata)
        index = look_up(samples, self.classes)
        index[~ok] = IGNORE
        if strict and (index == UNKNOWN).any():
            raise self._unknown(samples[ok])
        return index

    def _unknown(self, samples: NDArray[Any]) -> Disagreement:
        if samples.dtype.kind == "f" and (samples != np.rint(samples)).any():
            fraction = samples[samples != np.rint(samples)][0]
            return Disagreement(
                f"{self.meaning.path}: label values are not whole numbers", value=f"e.g. {fraction:.6g}", hint="threshold the mask first"
            )
        values, counts = np.unique(samples, return_counts=True)
        colours = len(self.bands) == 3 and not self.grey
        return self.table.unknown_codes(self.meaning.path, histogram(values.tolist(), counts.tolist(), colours))


def index_table(table: ClassTable) -> ClassTable:
    """The same classes, written as 0 .. K-1 with 255 for none: how this program writes class maps."""
    return ClassTable(tuple(LabelClass(c.name, (i,), c.color) for i, c in enumerate(table.classes)), (IGNORE,))


def coding_of(
    path: str | Path, table: ClassTable, seen: frozenset[int] = frozenset(), *, strict: bool = True, by_tags: bool = True
) -> Coding:
    """How a file is read with a class table.

    Args:
        seen: codes (packed colours for colour codes) that occur in other files of the same set; they count as occurring.
        strict: as in `Coding.read`; a file whose values fit no reading is refused, or else read by its plain numbers.
        by_tags: a file that this program wrote is read by the class names in its tags, whatever the table's codes.

    Raises:
        Missing: no such file. Disagreement: unreadable, bands that are no class map, codes that the table does not have, a file written by
        this program with other classes, 1 and 255 for one class, or a two-valued mask that would come out inverted.
    """
    return _coding(Path(path), table, seen, strict, by_tags, file_key(path))


@functools.lru_cache(maxsize=8192)
def _coding(path: Path, table: ClassTable, seen: frozenset[int], strict: bool, by_tags: bool, key: tuple[Any, ...]) -> Coding:
    meaning = meaning_of(path)
    if meaning.probabilities:
        raise Disagreement(f"{path} holds probabilities, not classes", value=f"{len(meaning.data)} bands", hint="a class map")
    if meaning.written_as and by_tags:
        table = _as_written(path, meaning.written_as, table)
        return Coding(meaning, table, meaning.data[:1], 1, False, table.numbers, None)
    bands = class_bands(meaning)
    if len(bands) == 3:
        return _of_colours(meaning, table, bands, seen, strict)
    readings = readings_of(meaning, table)
    nodata = _nodata(meaning, bands)
    values = values_of(path, bands) if must_look(meaning, readings, nodata) else None
    reading = readings[0] if values is None else choose(meaning, table, readings, values, nodata, strict)
    classes = _with_nodata(path, reading, nodata, values, seen, table.names)
    if values is not None:
        _refuse_mixture(path, reading, classes, values, table)
    note = None if reading.name == PLAIN else f"read by {reading.name}"
    return Coding(meaning, table, bands, 1, False, classes, note)


def _as_written(path: Path, names: tuple[str, ...], table: ClassTable) -> ClassTable:
    if set(names) != set(table.names):
        raise Disagreement(f"{path} was written with other classes", value=", ".join(names), allowed=", ".join(table.names))
    by_name = {c.name: c for c in table.classes}
    return ClassTable(tuple(LabelClass(n, (names.index(n),), by_name[n].color) for n in table.names), (IGNORE,))


def class_bands(meaning: Meaning) -> tuple[int, ...]:
    """The band of a class map, or its red, green and blue.

    Raises:
        Disagreement: two, four or more data bands that are no opaque transparency without its mark.
    """
    data = meaning.data
    bands = meaning.rgb if len(meaning.rgb) == 3 and len(data) >= 3 else data[:1]
    extra = [band for band in data if band not in bands]
    if meaning.palette is not None and len(data) == 1:
        return data
    if not extra:
        return bands
    if len(extra) == 1 and meaning.full is not None:
        found = values_of(meaning.path, (extra[0],))
        if found.numbers == (meaning.full,):  # opaque everywhere, only not marked as transparency
            return bands
    raise Disagreement(
        f"{meaning.path} is no class map: it has {len(data)} data bands",
        value=f"{len(data)} bands of {meaning.dtypes[0]}" + (" and transparency" if meaning.alpha else ""),
        allowed="1 band of codes, or 3 of colours, with or without a band marked as alpha",
        hint="write the class band alone, or mark the last band as alpha (gdal_edit.py -colorinterp_2 alpha FILE)",
    )


def _nodata(meaning: Meaning, bands: tuple[int, ...]) -> int | None:
    """The declared nodata as a sample (packed for colours), if all bands declare one that a sample can have."""
    declared = [meaning.nodata[band - 1] for band in bands]
    if any(value is None or not is_code(value) for value in declared):
        return None
    numbers = [int(value) for value in declared if value is not None]
    if len(numbers) == 1:
        return numbers[0]
    return pack((numbers[0], numbers[1], numbers[2])) if all(0 <= n <= 255 for n in numbers) else None


def _with_nodata(
    path: Path, reading: Reading, nodata: int | None, values: Values | None, seen: frozenset[int], names: tuple[str, ...]
) -> Classes:
    """The classes with the declared nodata decided: see the head of this file."""
    if nodata is None:
        return reading.classes
    kind = reading.classes.get(nodata)
    if kind is None or kind == IGNORE:
        return {**reading.classes, nodata: IGNORE}
    own = reading.codes[nodata]
    used = set(values.numbers) - {nodata} if values is not None else set()
    others = any(reading.classes.get(s) == kind for s in used)
    of_class = {code for sample, code in reading.codes.items() if reading.classes[sample] == kind and code != own}
    repeated = any(s < nodata and code == own for s, code in reading.codes.items())  # a palette's colour that an earlier entry has
    if others or repeated or seen & of_class or (of_class and not used):
        return {**reading.classes, nodata: IGNORE}
    if of_class and not seen and values is not None and nodata in values.numbers:
        raise Disagreement(
            f"{path}: {own} is declared as nodata and is a code of {names[kind]}, no other code of which occurs",
            value=histogram(values.numbers, values.counts),
            hint=f"a class table (--classes, data.classes): {own} alone if it is {names[kind]}; without {own} if it is unknown",
        )
    return reading.classes


def _refuse_mixture(path: Path, reading: Reading, classes: Classes, values: Values, table: ClassTable) -> None:
    used = {reading.codes[s]: classes[s] for s in values.numbers if s in reading.codes and classes[s] != IGNORE}
    if 1 in used and used.get(255) == used[1]:
        raise Disagreement(
            f"{path}: 1 and 255 both occur and both are codes of {table.names[used[1]]}; 255 may as well mean unknown",
            value=histogram([reading.codes.get(s, s) for s in values.numbers], values.counts),
            hint="declare 255 as nodata if it is unknown, or give a class table (--classes, data.classes) with one of the two",
        )


# ---- three bands --------------------------------------------------------------------------------------------------------


def _of_colours(meaning: Meaning, table: ClassTable, bands: tuple[int, ...], seen: frozenset[int], strict: bool) -> Coding:
    path, colours, numbers = meaning.path, table.rgb, table.numbers
    nodata = _nodata(meaning, bands)
    scale = colours_scale(path, bands)
    own = Reading("its colours", colours, {c: c for c in colours})
    if colours and not numbers and nodata is None:
        return Coding(meaning, table, bands, scale, False, colours, None)
    values = values_of(path, bands)
    used = set(values.numbers) - {nodata}
    grey = {v * 0x010101: v for v in range(256)}
    if colours and used <= colours.keys():
        reading, as_grey = own, False
    elif numbers and used <= grey.keys():
        levels = {g: v for g, v in grey.items() if v in numbers}
        reading, as_grey = Reading("grey levels", {g: numbers[v] for g, v in levels.items()}, levels), True
    else:
        drawn = drawn_colours(table)
        reading, as_grey = (
            (
                own
                if colours or not used <= drawn.keys()
                else Reading("the colours that classes are drawn in", drawn, {c: c for c in drawn})
            ),
            False,
        )
    if strict and (values.many or not used <= reading.classes.keys()):
        more = f"more than {len(values.numbers) - 1} different colours" if values.many else ""
        shown = [grey.get(c, c) for c in values.numbers] if as_grey else values.numbers
        raise table.unknown_codes(path, more or histogram(shown, values.counts, not as_grey))
    classes = _with_nodata(path, reading, nodata, values, seen, table.names)
    if as_grey:
        _refuse_mixture(path, reading, classes, values, table)
        classes = {grey[g]: index for g, index in classes.items() if g in grey}
    note = None if reading is own or as_grey else f"read by {reading.name}"
    return Coding(meaning, table, bands, scale, as_grey, classes, note)


# ---- a set of files -----------------------------------------------------------------------------------------------------


def codes_in(path: str | Path, table: ClassTable) -> frozenset[int]:
    """Codes (packed for colours) of the classes that occur in a file, without its declared nodata. For `coding_of(seen=)`."""
    meaning = meaning_of(path)
    if meaning.written_as or meaning.probabilities:
        return frozenset()
    bands = class_bands(meaning)
    values, nodata = values_of(path, bands), _nodata(meaning, bands)
    if len(bands) == 3:
        return frozenset(values.numbers) - {nodata}
    reading = choose(meaning, table, readings_of(meaning, table), values, nodata, strict=False)
    return frozenset(reading.codes[s] for s in values.numbers if s in reading.codes and s != nodata)


def settled(paths: Iterable[Path], table: ClassTable) -> tuple[ClassTable, tuple[str, ...]]:
    """The class table with codes moved to `ignore` that the files of a set declare as nodata while they write the class another way.

    If no file of several writes it another way, the code is the class, and the other codes are taken out of the table.
    Only files that declare a number code of a class as nodata are looked at, and the others only if that class has several number codes.

    Returns:
        The table, and notes for reports.
    """
    paths = list(paths)
    numbers = table.numbers
    several = {i for i, c in enumerate(table.classes) if sum(isinstance(code, int) for code in c.codes) > 1}
    declared: dict[int, int] = {}
    for path in paths if several else ():
        meaning = meaning_of(path)
        nodata = _nodata(meaning, meaning.data[:1]) if len(meaning.data) == 1 else None
        if nodata is not None and numbers.get(nodata) in several and not meaning.written_as:
            declared[nodata] = declared.get(nodata, 0) + 1
    moved = []
    for nodata in declared:
        others = {code for code, index in numbers.items() if index == numbers[nodata] and code != nodata}
        if any(others & codes_in(path, table) for path in paths):
            moved.append(nodata)
    kept = {n: numbers[n] for n in declared if n not in moved} if len(paths) > 1 else {}
    if not moved and not kept:
        return table, ()
    for path in paths if moved else ():
        meaning = meaning_of(path)
        clash = set(moved) & codes_in(path, table) if not meaning.written_as else set()
        if clash:
            code = min(clash)
            raise Disagreement(
                f"{code} is declared as nodata in {declared[code]} files of the set, but is a class in {path}",
                value=f"{code} is a code of {table.names[numbers[code]]}, which other files write as another code",
                hint="declare it as nodata everywhere, or write the class as one code everywhere",
            )
    gone = {n for n, index in numbers.items() if index in kept.values() and n not in kept} | set(moved)
    classes = tuple(LabelClass(c.name, tuple(k for k in c.codes if k not in gone), c.color) for c in table.classes)
    notes = [
        f"{n} is declared as nodata in {declared[n]} labels and is unknown in all; {table.names[numbers[n]]} has another code"
        for n in moved
    ]
    notes += [
        f"{n} is declared as nodata in {declared[n]} labels and is {table.names[k]} all the same: no label has another code of it"
        for n, k in kept.items()
    ]
    return ClassTable(classes, (*table.ignore, *moved)), tuple(notes)
