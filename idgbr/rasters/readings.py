"""Ways to read the samples of one band as codes of a class table, and which of them fits a file (rules:
`idgbr.rasters.codes`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, UNKNOWN, ClassTable, histogram, pack, pack_array
from idgbr.rasters.meaning import Meaning, Values

WHITE, BLACK = 0xFFFFFF, 0
PLAIN = "its numbers"
Classes = dict[int, int]  # sample, or packed colour -> class index or IGNORE


@dataclass(frozen=True)
class Reading:
    """One way to read samples. classes: sample -> class index; codes: sample -> the code it stands for."""

    name: str
    classes: Classes
    codes: Mapping[int, int]


def readings_of(meaning: Meaning, table: ClassTable) -> list[Reading]:
    """Ways to read one band, the preferred first, the plain numbers last (left out where white is zero)."""
    numbers = table.numbers
    plain = Reading(PLAIN, numbers, {n: n for n in numbers})
    if meaning.palette is not None:
        return [*_palette_readings(meaning, table), plain]
    full = meaning.full
    if full is None:
        return [plain]
    scaled = {code * full // 255: code for code in numbers if 0 <= code <= 255 and code * full % 255 == 0}
    ways = [] if full == 255 else [scaled]
    if meaning.white_is_zero:
        ways = [{full - code: code for code in numbers if code <= full}, *({full - s: c for s, c in way.items()} for way in ways)]
        return [Reading("its photometric interpretation: white is zero", {s: numbers[c] for s, c in way.items()}, way) for way in ways]
    more = [Reading("grey levels scaled to 8 bits", {s: numbers[c] for s, c in way.items()}, way) for way in ways]
    return [*more, plain]


def _palette_readings(meaning: Meaning, table: ClassTable) -> list[Reading]:
    assert meaning.palette is not None
    assert meaning.in_palette is not None
    packed = pack_array(meaning.palette[:, :3])
    entries = {int(i): int(packed[i]) for i in np.flatnonzero(meaning.in_palette)}
    found = []
    colours, numbers = table.rgb, table.numbers
    if colours:
        found.append(_by_palette("the colours of its palette", entries, colours))
    drawn = drawn_colours(table)
    if drawn and not colours:
        found.append(_by_palette("the colours of its palette", entries, drawn))
    # Grey levels, and black and white as 0 and 1, only if no entry that is a number code of the table has another
    # colour.
    named = {entries[n] for n in numbers if n in entries and n != meaning.nodata[0]} - {BLACK}
    greys = {v * 0x010101: i for v, i in numbers.items() if 0 <= v <= 255}
    of_classes = {grey: i for grey, i in greys.items() if i != IGNORE}
    if named <= of_classes.keys():
        found.append(_by_palette("the grey levels of its palette", entries, of_classes))
    if named <= {WHITE} and {0, 1} <= numbers.keys():
        pair = {BLACK: numbers[0], WHITE: numbers[1]}
        if table.n_classes == 2 and set(pair.values()) == {0, 1}:  # the second class is the foreground
            pair = {BLACK: 0, WHITE: 1}
        found.append(_by_palette("black and white of its palette", entries, pair))
    if named <= greys.keys():
        found.append(_by_palette("the grey levels of its palette", entries, greys))
    return found


def _by_palette(name: str, entries: Mapping[int, int], classes: Mapping[int, int]) -> Reading:
    codes = {sample: colour for sample, colour in entries.items() if colour in classes}
    return Reading(name, {sample: classes[colour] for sample, colour in codes.items()}, codes)


def drawn_colours(table: ClassTable) -> dict[int, int]:
    """Packed colours that the classes are drawn in, and their index; empty if two classes share one."""
    colours = {pack(color): i for i, color in enumerate(table.colors)}
    return colours if len(colours) == table.n_classes else {}


def must_look(meaning: Meaning, readings: list[Reading], nodata: int | None) -> bool:
    """Whether the values of the file decide anything."""
    several = len(readings) > 1 or meaning.white_is_zero
    return (
        several
        or any(_has_both(r) for r in readings)
        or (nodata is not None and any(r.classes.get(nodata, IGNORE) != IGNORE for r in readings))
    )


def _has_both(reading: Reading) -> bool:
    by_code = {code: reading.classes[sample] for sample, code in reading.codes.items()}
    return by_code.get(1, IGNORE) == by_code.get(255, UNKNOWN)


def choose(meaning: Meaning, table: ClassTable, readings: list[Reading], values: Values, nodata: int | None, strict: bool) -> Reading:
    """The reading of a class map's samples that fits the values in it.

    Args:
        readings: those the file allows, plain numbers last.
        strict: refuse values that fit none; else they are read as plain numbers.

    Raises:
        Disagreement: values that are no class map's, or codes that the class table lacks.
    """
    path = meaning.path
    if values.many or values.fraction is not None:
        if strict:
            what = f"e.g. {values.fraction:.6g}" if values.fraction is not None else f"more than {len(values.numbers) - 1} different values"
            raise Disagreement(f"{path} is no class map", value=what, allowed=table.describe_codes(), hint="threshold or classify it first")
        return readings[-1]
    used = set(values.numbers) - {nodata}
    plain = readings[-1]
    if meaning.white_is_zero:
        return _shown(meaning, table, readings, values, used)
    fits = [r for r in readings if used <= r.classes.keys() and _tells_apart(r, plain, used)]
    if meaning.palette is None:
        fits = [r for r in (plain, *readings[:-1]) if r in fits]  # plain numbers first where nothing speaks against them
    if not fits:
        if strict:
            raise table.unknown_codes(path, histogram(values.numbers, values.counts))
        return plain
    if fits[0] is plain and meaning.palette is not None:
        _refuse_inverted(meaning, table, plain, used)
    return fits[0]


def _tells_apart(reading: Reading, plain: Reading, used: set[int]) -> bool:
    """Not so if samples that are different number codes would be one class, as with a palette that was never filled
    in."""
    if reading is plain or not used <= plain.classes.keys():
        return True
    return len({reading.codes[s] for s in used}) == len(used)


def _shown(meaning: Meaning, table: ClassTable, readings: list[Reading], values: Values, used: set[int]) -> Reading:
    """Where white is zero: the codes as shown, unless the samples as stored would be codes too and mean something
    else."""
    fits = [r for r in readings if used <= r.classes.keys()]
    stored = table.numbers
    extremes = used <= {0, meaning.full}
    if fits and (extremes or not used <= stored.keys() or all(stored[s] == fits[0].classes[s] for s in used)):
        return fits[0]
    raise _white_is_zero(meaning, values, table.describe_codes())


def _white_is_zero(meaning: Meaning, values: Values, allowed: str) -> Disagreement:
    return Disagreement(
        f"{meaning.path}: white is zero in this file, and its values are no codes as they are shown",
        value=f"as stored: {histogram(values.numbers, values.counts)}",
        allowed=allowed,
        hint="write it again with black as zero (gdal_translate -co PHOTOMETRIC=MINISBLACK), with the values that are meant",
    )


def _refuse_inverted(meaning: Meaning, table: ClassTable, plain: Reading, used: set[int]) -> None:
    """Two classes, and the second would cover what the palette calls black, or the darker of two greys."""
    assert meaning.palette is not None
    if table.n_classes != 2:
        return
    shown = {k: [meaning.palette[s, :3].tolist() for s in used if plain.classes[s] == k] for k in (0, 1)}
    if not shown[0] or not shown[1]:
        return
    black = [0, 0, 0]
    grey = all(c[0] == c[1] == c[2] for colours in shown.values() for c in colours)
    darker = grey and max(shown[1]) < min(shown[0])
    if darker or (black in shown[1] and black not in shown[0]):
        raise Disagreement(
            f"{meaning.path}: by its numbers, {table.names[1]} is what its palette calls black",
            value="; ".join(f"{table.names[k]}: {colours}" for k, colours in shown.items()),
            hint="write it again without a palette, or give a class table with the palette's colours as codes",
        )


def shown(meaning: Meaning, values: Values) -> list[int]:
    """The numbers of one band as they are shown, where no class table says what they mean; declared nodata left out.

    A palette of black and white with the white first is turned, as are files where white is zero; the highest number
    of 12 or 16 bits is 255 if there is no other but 0.

    Raises:
        Disagreement: white is zero, and the values are not just black and white.
    """
    nodata = meaning.nodata[meaning.data[0] - 1]
    used = [n for n in values.numbers if n != nodata]
    full = meaning.full
    if meaning.palette is not None and meaning.in_palette is not None:
        colours = {n: int(pack_array(meaning.palette[n : n + 1, :3])[0]) if meaning.in_palette[n] else UNKNOWN for n in used}
        whites = np.flatnonzero((meaning.palette[:, :3] == 255).all(axis=-1) & meaning.in_palette)
        blacks = np.flatnonzero((meaning.palette[:, :3] == 0).all(axis=-1) & meaning.in_palette)
        if set(colours.values()) <= {WHITE, BLACK} and len(used) <= 2 and len(whites) and len(blacks):
            white = next((n for n in used if colours[n] == WHITE), int(whites[0]))
            black = next((n for n in used if colours[n] == BLACK), int(blacks[0]))
            if white < black:
                return [white + black - n for n in used]
        return used
    if meaning.white_is_zero and full is not None:
        if not set(used) <= {0, full}:
            raise _white_is_zero(meaning, values, "without a class table, only black and white")
        used = [full - n for n in used]
    if full is not None and (full > 255 or meaning.white_is_zero) and full > 1 and set(used) <= {0, full}:
        return [255 if n else 0 for n in used]
    return used
