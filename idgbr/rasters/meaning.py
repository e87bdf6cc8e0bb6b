"""What the samples of a raster file mean: which bands are data, which one is transparency, palette, photometric interpretation, bit depth,
nodata, masks, tags. Decided once for a file from its metadata; distinct values by one pass in blocks. Both are cached by `file_key`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as GdalWindow

from idgbr.errors import Disagreement
from idgbr.labels import pack_array
from idgbr.rasters.grid import Grid, file_key, grid_of, opened

PREFIX = "IDGBR_"  # of the tags this program writes
BLOCK_SAMPLES = 4_000_000  # read at once in a pass over a file
TOLERANCE = 1e-4  # probabilities this far below 0 are rounding
MOST_VALUES = 4096  # distinct values after which a file is no class map
FEW_ALPHAS = 32  # distinct values of transparency that is drawn in steps
_BIG = 2**53  # floats beyond it are not counted one by one
_COLOUR_BANDS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_OTHER_COLOURS = {"cyan", "magenta", "yellow", "black", "hue", "saturation", "lightness", "Y", "Cb", "Cr"}


@dataclass(frozen=True, eq=False)
class Meaning:
    """What the metadata of a file say about its samples. Bands are numbered from 1.

    data: all bands but transparency. alpha: the band marked as transparency, or None.
    rgb: the bands of red, green and blue: by their marks, else the first three data bands; () if there are fewer.
    palette: uint8 [n, 4] RGBA, and `in_palette` bool [n] for the entries that exist; None without a palette.
    bits: of a sample, as stored. full: the largest sample of unsigned whole numbers of so many bits, else None.
    white_is_zero: 0 is white and `full` black (palettes say it themselves).
    nodata: per band, None if not declared. nodata_by_tag: given as one colour, by a tag. masked: a mask file or an internal mask.
    written_as: class names, if this program wrote the file as a class map. probabilities: this program's tag says so.
    """

    path: Path
    grid: Grid
    dtypes: tuple[str, ...]
    data: tuple[int, ...]
    alpha: int | None
    rgb: tuple[int, ...]
    palette: NDArray[np.uint8] | None
    in_palette: NDArray[np.bool_] | None
    bits: int
    full: int | None
    white_is_zero: bool
    nodata: tuple[float | int | None, ...]
    nodata_by_tag: bool
    masked: bool
    written_as: tuple[str, ...]
    probabilities: bool

    @property
    def is_float(self) -> bool:
        """Whether samples are floating-point numbers."""
        return np.dtype(self.dtypes[0]).kind == "f"

    def known(self, source: Any, window: GdalWindow) -> NDArray[np.bool_]:
        """Pixels bool [h, w] that mask and transparency leave; declared nodata are not looked at."""
        ok = np.ones((int(window.height), int(window.width)), bool)
        if self.masked:
            ok &= source.read_masks(self.data[0], window=window) > 0
        if self.alpha is not None:
            ok &= source.read(self.alpha, window=window) > 0
        return ok


def meaning_of(path: str | Path) -> Meaning:
    """
    Raises:
        Missing: no such file. Disagreement: unreadable, complex numbers, or a colour space other than RGB.
    """
    return _meaning(Path(path), file_key(path))


@functools.lru_cache(maxsize=8192)
def _meaning(path: Path, key: tuple[Any, ...]) -> Meaning:
    with opened(path) as source:
        dtypes = tuple(source.dtypes)
        if any("complex" in kind for kind in dtypes):
            raise Disagreement(
                f"{path} has complex numbers", value=", ".join(sorted(set(dtypes))), hint="write amplitude or intensity first"
            )
        marks = source.colorinterp
        other = sorted({mark.name for mark in marks} & _OTHER_COLOURS)
        if other:
            raise Disagreement(f"{path} has colours that are not RGB", value=", ".join(other), allowed="red, green, blue, grey, palette",
                               hint="convert it to RGB first")  # fmt: skip
        alphas = [band for band, mark in enumerate(marks, 1) if mark == ColorInterp.alpha and source.count > 1]
        alpha = alphas[-1] if alphas else None
        data = tuple(band for band in source.indexes if band not in alphas)
        if not data:
            raise Disagreement(f"{path} has no band but transparency", value=f"{source.count} bands marked as alpha")
        by_mark = tuple(marks.index(mark) + 1 for mark in _COLOUR_BANDS if mark in marks)
        structure, of_band = source.tags(ns="IMAGE_STRUCTURE"), source.tags(data[0], ns="IMAGE_STRUCTURE")
        kind = np.dtype(dtypes[data[0] - 1])
        bits = int(of_band.get("NBITS", kind.itemsize * 8))
        palette, present = _palette(source) if marks[0] == ColorInterp.palette else (None, None)
        flags = source.mask_flag_enums[data[0] - 1]
        tags: Mapping[str, str] = source.tags()
        return Meaning(
            path=path,
            grid=grid_of(source),
            dtypes=dtypes,
            data=data,
            alpha=alpha,
            rgb=by_mark if len(by_mark) == 3 else data[:3] if len(data) >= 3 else (),
            palette=palette,
            in_palette=present,
            bits=bits,
            full=2**bits - 1 if kind.kind == "u" else None,
            white_is_zero=structure.get("MINISWHITE") == "YES" and palette is None and kind.kind == "u",
            nodata=_by_tag(tags, source.count) or tuple(source.nodatavals),
            nodata_by_tag=bool(_by_tag(tags, source.count)),
            masked=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags and MaskFlags.nodata not in flags,
            written_as=_written_as(tags, path),
            probabilities=tags.get(f"{PREFIX}KIND") == "probabilities",
        )


def _by_tag(tags: Mapping[str, str], count: int) -> tuple[float, ...]:
    """Nodata by band that the tag NODATA_VALUES gives (the transparent colour of an RGB PNG), or ()."""
    words = tags.get("NODATA_VALUES", "").split()
    try:
        return tuple(float(word) for word in words) if len(words) == count else ()
    except ValueError:
        return ()


def _palette(source: Any) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    entries = source.colormap(1)
    size = max(256, max(entries, default=0) + 1)
    palette, present = np.zeros((size, 4), np.uint8), np.zeros(size, bool)
    for index, colour in entries.items():
        palette[index], present[index] = colour, True
    return palette, present


def _written_as(tags: Mapping[str, str], path: Path) -> tuple[str, ...]:
    text = tags.get(f"{PREFIX}CLASSES")
    if text is None:
        return ()
    try:
        return tuple(str(each["name"]) for each in json.loads(text)["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise Disagreement(
            f"{path}: the tag {PREFIX}CLASSES is damaged",
            value=text[:80],
            hint=f"write the classes again, or remove the tag: gdal_edit.py -unsetmd {quote(str(path))}",
        ) from error


def is_nodata(samples: NDArray[Any], nodata: float | int | None) -> NDArray[np.bool_]:
    """Where samples are the declared nodata value; nowhere if none is declared or the sample type cannot hold it."""
    if nodata is None:
        return np.zeros(samples.shape, bool)
    if samples.dtype.kind == "f":
        return np.isnan(samples) if np.isnan(nodata) else samples == samples.dtype.type(nodata)
    limits = np.iinfo(samples.dtype)
    if not np.isfinite(nodata) or nodata != int(nodata) or not limits.min <= nodata <= limits.max:
        return np.zeros(samples.shape, bool)
    return np.asarray(samples == samples.dtype.type(int(nodata)))


def blocks(source: Any) -> Iterator[GdalWindow]:
    """Windows over a whole file, whole rows, about `BLOCK_SAMPLES` pixels each."""
    tall = source.block_shapes[0][0]
    rows = max(1, BLOCK_SAMPLES // source.width)
    if rows > tall:
        rows -= rows % tall
    for top in range(0, source.height, rows):
        yield GdalWindow(0, top, source.width, min(rows, source.height - top))  # pyright: ignore


# ---- distinct values ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Values:
    """Distinct samples of the pixels that mask and transparency leave, in rising order, with their number of pixels.

    Declared nodata count as values if they are whole numbers. Not-a-number and infinity are left out.
    fraction: a sample that is not a whole number, or None. many: there are more than `MOST_VALUES`, and the rest was not counted.
    """

    numbers: tuple[int, ...]
    counts: tuple[int, ...]
    fraction: float | None = None
    many: bool = False


def values_of(path: str | Path, bands: tuple[int, ...]) -> Values:
    """Of one band its numbers, of three bands (red, green, blue) the packed colours 0xRRGGBB, counted once for a file.

    16-bit colours are scaled to 8 bits if every sample is a multiple of 257; else samples above 255 give 0xFFFFFFFF.
    """
    return _values(Path(path), tuple(bands), file_key(path))


@functools.lru_cache(maxsize=8192)
def _values(path: Path, bands: tuple[int, ...], key: tuple[Any, ...]) -> Values:
    meaning = meaning_of(path)
    found: dict[int, int] = {}
    fraction = None
    with opened(path) as source:
        for window in blocks(source):
            ok = meaning.known(source, window)
            if len(bands) == 3:
                raw = eight_bits(np.moveaxis(source.read(bands, window=window), 0, -1)[ok], colours_scale(path, bands))
                part: NDArray[Any] = pack_array(raw)
            else:
                raw = source.read(bands[0], window=window)[ok]
                if raw.dtype.kind == "f":
                    raw, odd = _whole(raw, meaning.nodata[bands[0] - 1])
                    fraction = odd if fraction is None else fraction
                part = raw
            for value, count in _count(part):
                found[value] = found.get(value, 0) + count
            if len(found) > MOST_VALUES:
                break
    order = sorted(found)
    return Values(tuple(order), tuple(found[v] for v in order), fraction, len(found) > MOST_VALUES)


def _whole(raw: NDArray[Any], nodata: float | None) -> tuple[NDArray[np.int64], float | None]:
    raw = raw[np.isfinite(raw)]
    if nodata is not None and not is_code(nodata):
        raw = raw[~is_nodata(raw, nodata)]
    odd = raw[raw != np.rint(raw)]
    return np.clip(raw, -_BIG, _BIG).astype(np.int64), float(odd[0]) if len(odd) else None


def is_code(number: float) -> bool:
    """Whether a declared nodata value could be a code: a whole number of at most 53 bits."""
    return bool(np.isfinite(number)) and abs(number) <= _BIG and number == int(number)


def _count(raw: NDArray[Any]) -> Iterator[tuple[int, int]]:
    if raw.dtype in (np.uint8, np.uint16):
        counts = np.bincount(raw.reshape(-1))
        for value in np.flatnonzero(counts):
            yield int(value), int(counts[value])
    elif raw.dtype == np.uint32 and raw.size and len(sample := np.unique(raw[:: max(1, raw.size // 4096)])) <= 64:
        rest = raw
        for value in sample:  # few colours, as in class maps: cheaper than sorting all pixels
            same = rest == value
            yield int(value), int(same.sum())
            rest = rest[~same]
        yield from zip(*(each.tolist() for each in np.unique(rest, return_counts=True)))
    else:
        yield from zip(*(each.tolist() for each in np.unique(raw, return_counts=True)))


def colours_scale(path: str | Path, bands: tuple[int, ...]) -> int:
    """What colour samples are divided by: 257 for 16-bit colours all of whose samples are multiples of 257, else 1."""
    return _scale(Path(path), tuple(bands), file_key(path))


@functools.lru_cache(maxsize=8192)
def _scale(path: Path, bands: tuple[int, ...], key: tuple[Any, ...]) -> int:
    meaning = meaning_of(path)
    if any(meaning.dtypes[band - 1] != "uint16" for band in bands):
        return 1
    above = False
    with opened(path) as source:
        for window in blocks(source):
            raw = source.read(bands, window=window)[:, meaning.known(source, window)]
            if (raw % 257).any():
                return 1
            above |= bool((raw > 255).any())
    return 257 if above else 1


def eight_bits(colours: NDArray[Any], scale: int) -> NDArray[Any]:
    """16-bit colours as uint8, where `scale` (257, or 1 for none) says that they are 8-bit ones stretched."""
    return colours if scale == 1 else (colours // scale).astype(np.uint8)


def is_transparency(path: str | Path) -> bool:
    """Whether the band marked as alpha holds transparency, and not data, as near infrared.

    It does if no pixel is 0, if at least as many pixels are opaque as are partly so, if all pixels where it is 0 have one colour, if it has
    two values, or few that are far apart (transparency drawn in steps; dark infrared has few that are close together).
    """
    return _is_transparency(Path(path), file_key(path))


@functools.lru_cache(maxsize=8192)
def _is_transparency(path: Path, key: tuple[Any, ...]) -> bool:
    meaning = meaning_of(path)
    if meaning.alpha is None or np.dtype(meaning.dtypes[meaning.alpha - 1]).kind not in "iu":
        return meaning.alpha is not None
    most = np.iinfo(meaning.dtypes[meaning.alpha - 1]).max if meaning.full is None else meaning.full
    found: set[int] = set()
    behind: set[tuple[int | float, ...]] = set()  # colours where it is 0, at most two
    opaque = partly = 0
    with opened(path) as source:
        windows = list(blocks(source))
        for window in windows[:: max(1, len(windows) // 8)]:  # at most about 16 blocks, spread over the file
            raw = source.read(meaning.alpha, window=window)
            found.update(np.unique(raw).tolist())
            opaque += int((raw == most).sum())
            partly += int(((raw != most) & (raw != 0)).sum())
            if len(behind) < 2 and (clear := raw == 0).any():
                colours = source.read(meaning.data, window=window)[:, clear]
                behind.update(tuple(each.tolist()) for each in (colours[:, 0], *colours.T[(colours != colours[:, :1]).any(axis=0)][:1]))
    if 0 not in found or len(behind) < 2 or (opaque and opaque >= partly):
        return True
    return len(found) == 2 or (len(found) <= FEW_ALPHAS and max(found) >= 2 * len(found))


# ---- probabilities ------------------------------------------------------------------------------------------------------


def why_no_probabilities(path: str | Path) -> str | None:
    """None if the data bands of a file look like probabilities of classes; else the reason why not.

    They do if in all known pixels their sum is the same (up to rounding; pixels whose bands are all 0 are unknown), no number is
    negative, and no band is constant except at 0. Looks at the whole file, once.
    """
    return _no_probabilities(Path(path), file_key(path))


@functools.lru_cache(maxsize=8192)
def _no_probabilities(path: Path, key: tuple[Any, ...]) -> str | None:
    meaning = meaning_of(path)
    bands = meaning.data
    low, high = np.full(len(bands), np.inf), np.full(len(bands), -np.inf)
    least, most = np.inf, -np.inf
    with opened(path) as source:
        for window in blocks(source):
            raw = source.read(bands, window=window, out_dtype=np.float32)
            ok = meaning.known(source, window) & known_probabilities(raw, [meaning.nodata[b - 1] for b in bands])
            raw = raw[:, ok & (raw != 0).any(axis=0)]
            if not raw.size:
                continue
            if raw.min() < -TOLERANCE:
                return f"negative numbers, down to {raw.min():.6g}"
            sums = raw.sum(axis=0, dtype=np.float64)
            least, most = min(least, sums.min()), max(most, sums.max())
            low, high = np.minimum(low, raw.min(axis=1)), np.maximum(high, raw.max(axis=1))
    if not most > 0:
        return "no pixel with a number above 0"
    whole = all(np.dtype(meaning.dtypes[b - 1]).kind in "iu" for b in bands)
    if most - least > max(2 * len(bands) if whole else 0, 0.02 * most):
        return f"sums of the bands from {least:.6g} to {most:.6g}"
    constant = [str(band) for band, a, b in zip(bands, low, high) if a == b != 0]
    if constant:
        return f"band {', '.join(constant)} has one value everywhere"
    return None


def known_probabilities(values: NDArray[np.float32], nodata: Sequence[float | int | None]) -> NDArray[np.bool_]:
    """Pixels bool [h, w] of bands [K, h, w] that declared nodata, not-a-number and infinity leave.

    A pixel is unknown where all bands have their nodata value, or any band has a negative one, which no probability is.
    """
    ok: NDArray[np.bool_] = np.all(np.isfinite(values), axis=0)
    said = [value if value is not None and np.isfinite(value) else None for value in nodata]
    if any(value is not None for value in said):
        is_nodata = np.stack([np.zeros(band.shape, bool) if v is None else band == np.float32(v) for band, v in zip(values, said)])
        negative = [v is not None and v < 0 for v in said]
        ok[is_nodata.all(axis=0)] = False
        ok[is_nodata[negative].any(axis=0)] = False
    return ok
