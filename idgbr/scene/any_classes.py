"""A scene for a refiner of one class against the rest: the classes come from the coarse map, the scale from the scene."""

from __future__ import annotations

import colorsys
import dataclasses
from pathlib import Path

from idgbr.errors import Disagreement
from idgbr.general.one_class import OneAgainstRest
from idgbr.labels import IGNORE, ClassTable, LabelClass, binary
from idgbr.rasters.meaning import Meaning, meaning_of, why_no_probabilities
from idgbr.rasters.read import Reader
from idgbr.scene.model import Model

STRIP_ROWS = 256
MOST_STRIPS = 64  # of a scene, evenly spaced: enough for means and standard deviations


def for_scene(model: Model, image: Reader, coarse: Path, codes: ClassTable | None) -> Model:
    """The model with the classes of the coarse map (`codes`, where given) and the band statistics of the scene.

    Raises:
        Disagreement: the file does not say what its classes are, or the scene has no valid pixel.
    """
    from idgbr.datasets.moments import Gatherer, band_stats

    grid = image.grid
    dtype = meaning_of(image.path).dtypes[0]
    gatherer = Gatherer(image.n_bands, dtype, grid.height * grid.width)
    rows = range(0, grid.height, STRIP_ROWS)
    for row in rows[:: -(-len(rows) // MOST_STRIPS)]:
        gatherer.add(*image.read(row, 0, min(STRIP_ROWS, grid.height - row), grid.width))
    stats = band_stats(gatherer.result())
    return dataclasses.replace(model, tiles=OneAgainstRest(model.tiles, stats.mean, stats.std), table=codes or classes_of(coarse))


def bands_of(scene: Path) -> tuple[int, ...]:
    """The first three bands of a scene; one band three times where it has fewer."""
    meaning = meaning_of(scene)
    return (1, 2, 3) if meaning.palette is not None or len(meaning.data) >= 3 else (meaning.data[0],) * 3


def classes_of(path: Path) -> ClassTable:
    """The class table that a coarse map brings along: by its bands, tags and values. Codes of class maps stay.

    Raises:
        Disagreement: colours without a class table, fractions, codes that are no class indices.
    """
    from idgbr.scores.files import guess_table, look

    meaning = meaning_of(path)
    n = len(meaning.data)
    if meaning.probabilities or (n > 1 and (meaning.is_float or n > 4 or why_no_probabilities(path) is None)):
        return _numbered(_band_names(path, meaning))
    if meaning.written_as:
        return _drawn(_numbered(meaning.written_as), meaning)
    found = look(path)
    if found.colours:
        raise Disagreement(f"{path} holds colours, and nothing says which classes they are", hint="--classes TABLE.json")
    table, masks = guess_table({"coarse": [found]}, IGNORE)
    if masks["coarse"]:
        return binary("object", codes=(255,))
    return _drawn(table, meaning)


def _drawn(table: ClassTable, meaning: Meaning) -> ClassTable:
    """The table with the colours of the file's palette, if it has one with a colour of its own for every class."""
    if meaning.palette is None:
        return table
    shown = [(int(r), int(g), int(b)) for r, g, b, _ in meaning.palette[: table.n_classes]]
    if len(set(shown)) < table.n_classes:
        return table
    return ClassTable(tuple(LabelClass(c.name, c.codes, rgb) for c, rgb in zip(table.classes, shown, strict=True)), table.ignore)


def _band_names(path: Path, meaning: Meaning) -> tuple[str, ...]:
    from idgbr.rasters.grid import opened

    with opened(path) as source:
        names = [source.descriptions[band - 1] or "" for band in meaning.data]
    whole = all(names) and len(set(names)) == len(names)
    return tuple(names) if whole else tuple(f"class {i}" for i in range(len(names)))


def _numbered(names: tuple[str, ...]) -> ClassTable:
    """Classes with colours around the colour circle; the first one dark."""
    n = max(1, len(names) - 1)
    circle = [colorsys.hsv_to_rgb(i / n, 0.7, 0.9) for i in range(n)]
    colours = [(40, 40, 40), *(tuple(round(255 * part) for part in colour) for colour in circle)]
    return ClassTable(tuple(LabelClass(name, (i,), rgb) for i, (name, rgb) in enumerate(zip(names, colours))))  # type: ignore[arg-type]
