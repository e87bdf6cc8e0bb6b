"""Class maps of every kind of file: reading what was written gives the labels that were meant, or a refusal. Never a window by itself."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, ClassTable, LabelClass
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.rasters.read import read_labels
from idgbr.scores.files import OUTSIDE

H, W = 24, 32
NUMBERS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767), "uint32": (0, 2**32 - 1),
           "int32": (-(2**31), 2**31 - 1), "float32": (-(2**24), 2**24), "float64": (-(2**40), 2**40)}  # fmt: skip
WAYS = {
    "colours": ["rgb", "palette"],
    "both": ["rgb", "palette", "number", "grey rgb"],
    "": ["number", "number", "palette as drawn", "grey palette", "grey rgb", "bits"],
}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compress": "deflate"},
    {"compress": "lzw", "interleave": "pixel"},
    {"compress": "packbits", "interleave": "band"},
    {"tiled": True, "blockxsize": 16, "blockysize": 16},
    {"endianness": "big"},
    {"compress": "zstd", "bigtiff": "yes"},
]


@dataclass
class Case:
    """A file as somebody may write it. index: the labels that are meant, 255 unknown."""

    table: ClassTable
    index: np.ndarray
    bands: np.ndarray
    profile: dict[str, Any]
    palette: dict[int, tuple[int, int, int, int]] | None = None
    mask: np.ndarray | None = None
    sidecar: bool = False
    alpha: bool = False
    said: str = ""

    def __repr__(self) -> str:
        marks = [name for name in ("sidecar", "alpha") if getattr(self, name)] + ["mask"] * (self.mask is not None)
        samples, labels = np.unique(self.bands).tolist(), np.unique(self.index).tolist()
        return f"{self.said}; {self.profile} palette {self.palette} {marks}: samples {samples[:20]}, labels {labels}"


def colours_of(count: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    return st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=count, max_size=count, unique=True)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[int], list[tuple[int, int, int]], ClassTable]:
    """Style, number codes, colours, and a table of them."""
    style = draw(st.sampled_from(["indices", "mask", "numbers", "colours", "both"]))
    k = 2 if style == "mask" else draw(st.integers(2, 5))
    colours = draw(colours_of(k))
    codes = {"indices": list(range(k)), "both": list(range(k)), "mask": [0, 255]}.get(style) or draw(
        st.lists(st.integers(-9999, 40000), min_size=k, max_size=k, unique=True)
        | st.lists(st.integers(0, 255), min_size=k, max_size=k, unique=True)
    )
    ignored = tuple(c for c in draw(st.sampled_from([(), (-1,), (255,), (70000,)])) if c not in codes and style in ("indices", "numbers"))
    of_class: list[tuple[Any, ...]] = {
        "colours": [(colour,) for colour in colours],
        "both": list(zip(codes, colours)),
        "mask": [(0,), draw(st.sampled_from([(255,), (255, 1)]))],
    }.get(style, [(code,) for code in codes])
    classes = tuple(LabelClass(f"c{i}", own, colours[i]) for i, own in enumerate(of_class))
    return style, codes, colours, ClassTable(classes, ignored)


def in_palette(way: str, index: np.ndarray, codes: list[int], colours: list[tuple[int, int, int]], order: np.ndarray) -> tuple[Any, ...]:
    shown = [(code, code, code) for code in codes] if way == "grey palette" else colours
    return order[index][None], "uint8", {int(order[i]): (*colour, 255) for i, colour in enumerate(shown)}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    style, codes, colours, table = draw(tables())
    k = len(codes)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    present = rng.permutation(k)[: draw(st.integers(1, k))]
    index = present[rng.integers(0, len(present), (H // 4, W // 4))].repeat(4, 0).repeat(4, 1).astype(np.uint8)
    way = draw(st.sampled_from(WAYS.get(style, WAYS[""])))
    bytes_only = min(codes) >= 0 and max(codes) < 256
    way = "number" if way in ("grey palette", "grey rgb", "bits") and not bytes_only else way
    fitting = [kind for kind, (low, high) in NUMBERS.items() if low <= min(codes) and max(codes) <= high]
    kind = "uint8" if way in ("rgb", "grey rgb", "bits") else draw(st.sampled_from(["uint8"] * 6 * bytes_only + fitting))
    values, palette = np.array(codes)[index], None
    profile: dict[str, Any] = {}
    if way == "rgb":
        bands = np.array(colours, np.uint8)[index].transpose(2, 0, 1)
    elif "palette" in way:
        order = rng.permutation(draw(st.sampled_from([k, 16])))[:k]
        bands, kind, palette = in_palette(way, index, codes, colours, order)
    elif way == "grey rgb":
        bands = np.repeat(values[None], 3, axis=0)
    else:
        bands = values[None]
        profile = {"nbits": max(1, max(codes).bit_length())} if way == "bits" else {}
    if kind in ("uint8", "uint16") and len(bands) == 1 and palette is None and draw(st.booleans()):  # stored so that it is shown as meant
        full = 2 ** profile.get("nbits", 8 * np.dtype(kind).itemsize) - 1
        profile["photometric"], bands = "MINISWHITE", full - bands.astype(np.int64)
    profile["dtype"] = kind
    said = f"{style}, {way}, {profile}, {table.describe_codes()}"
    case = Case(table, index, bands.astype(kind), profile, palette, said=said)
    draw(marks_of_the_unknown(case, codes, rng.random((H, W)) < draw(st.sampled_from([0.0, 0.0, 0.3]))))
    case.profile = {**case.profile, **draw(st.sampled_from(LAYOUTS))}
    if case.profile.get("nbits") == 1 and draw(st.booleans()):
        case.profile["compress"] = draw(st.sampled_from(["ccittfax4", "ccittrle"]))
    return case


@st.composite
def marks_of_the_unknown(draw: st.DrawFn, case: Case, codes: list[int], unknown: np.ndarray) -> None:
    """Marks pixels as unknown in one of the ways that files have."""
    marked = draw(st.sampled_from(["no", "mask", "msk", "alpha", "nodata", "code"]))
    bands, kind, plain = case.bands, case.bands.dtype, case.palette is None and "photometric" not in case.profile
    if "nbits" in case.profile and marked not in ("mask", "msk"):
        return
    if marked in ("mask", "msk"):
        case.mask, case.sidecar = ~unknown, marked == "msk"
    elif marked == "alpha" and plain:
        opaque = np.iinfo(kind).max if kind.kind in "iu" else 1
        case.bands, case.alpha = np.concatenate([bands, np.where(unknown, 0, opaque)[None].astype(kind)]), True
    elif marked == "nodata" and len(bands) == 1:
        full = np.iinfo(kind).max if kind.kind in "iu" else 256
        meant = {*codes, *case.table.numbers}  # a tile where a code is nodata and its class is absent can only be settled in its set
        taken = {*np.unique(bands).tolist(), *meant, *(full - code for code in meant), *(case.palette or ())}
        nodata = draw(st.sampled_from([n for n in (0, 1, 7, 99, 127, 200, 254, 255) if n <= full and n not in taken] or [None]))
        if nodata is None:
            return
        case.bands, case.profile = np.where(unknown[None], nodata, bands).astype(kind), {**case.profile, "nodata": nodata}
    elif marked == "code" and case.table.ignore and len(bands) == 1 and plain:
        code, (low, high) = case.table.ignore[0], NUMBERS[kind.name]
        if not isinstance(code, int) or not low <= code <= high:
            return
        case.bands = np.where(unknown[None], code, bands).astype(kind)
    else:
        return
    case.index = np.where(unknown, IGNORE, case.index).astype(np.uint8)


def write(case: Case, path: Path) -> None:
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not case.sidecar):
        warnings.simplefilter("ignore")
        profile = {"driver": "GTiff", "height": H, "width": W, "count": len(case.bands), **case.profile}
        if len(case.bands) >= 3 and profile["dtype"] in ("uint8", "uint16"):
            profile["photometric"] = "rgb"
        with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(5e5, 5e6, 0.5, 0.5), **profile) as file:
            file.write(case.bands)
            if case.palette:
                file.write_colormap(1, case.palette)
            if case.alpha:
                file.colorinterp = [*file.colorinterp[:-1], ColorInterp.alpha]
            if case.mask is not None:
                file.write_mask(np.where(case.mask, 255, 0).astype(np.uint8))


@settings(
    max_examples=300,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cases(), st.integers(0, H - 1), st.integers(0, W - 1))
def test_what_was_written_is_read_or_refused(case: Case, row: int, col: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.tif"
        write(case, path)
        try:
            found = read_labels(path, case.table)
        except Disagreement:
            event("refused")
            return
        event("read")
        assert (found == case.index).all(), case.said
        assert (read_labels(path, case.table, row, col, 5, 7) == _window(case.index, row, col)).all(), "a window is read otherwise"
        lenient = read_labels(path, case.table, unknown=OUTSIDE)
        assert (lenient == case.index).all(), "a prediction is read otherwise"
        try:
            coarse = CoarseMap(path, case.table)
        except Disagreement:
            return
        if not coarse.is_probabilities:
            assert (coarse.strip(0, H).index == case.index).all(), "a coarse map is read otherwise"


def _window(index: np.ndarray, row: int, col: int) -> np.ndarray:
    out = np.full((5, 7), IGNORE, np.uint8)
    part = index[row : row + 5, col : col + 7]
    out[: part.shape[0], : part.shape[1]] = part
    return out
