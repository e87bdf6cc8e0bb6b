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
def cases(draw: st.DrawFn) -> Case:
    k = draw(st.integers(2, 5))
    style = draw(st.sampled_from(["indices", "mask", "numbers", "colours", "both"]))
    kind = draw(st.sampled_from(["uint8"] * 6 + list(NUMBERS)))
    low, high = NUMBERS[kind]
    k = 2 if style == "mask" else k
    colours = draw(colours_of(k + 1))
    if style in ("indices", "both"):
        codes = list(range(k))
    elif style == "mask":
        codes = [0, 255]
    else:
        codes = draw(st.lists(st.integers(max(low, -9999), min(high, 40000)), min_size=k, max_size=k, unique=True))
    ignored = draw(st.sampled_from([(), (-1,), (255,), (70000,)])) if style in ("indices", "numbers") and 255 not in codes else ()
    ignored = tuple(code for code in ignored if code not in codes)
    given_codes: list[tuple[Any, ...]] = [(code,) for code in codes]
    if style == "mask":
        given_codes[1] = draw(st.sampled_from([(255,), (255, 1)]))
    if style == "colours":
        given_codes = [(colour,) for colour in colours[:k]]
    if style == "both":
        given_codes = [(code, colour) for code, colour in zip(codes, colours)]
    table = ClassTable(tuple(LabelClass(f"c{i}", own, colours[i]) for i, own in enumerate(given_codes)), ignored)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    present = rng.permutation(k)[: draw(st.integers(1, k))]
    index = present[rng.integers(0, len(present), (H // 4, W // 4))].repeat(4, 0).repeat(4, 1).astype(np.uint8)
    unknown = rng.random((H, W)) < draw(st.sampled_from([0.0, 0.0, 0.3]))

    way = draw(st.sampled_from(WAYS.get(style, WAYS[""])))
    profile: dict[str, Any] = {"dtype": kind}
    palette = None
    values = np.array(codes)[index]
    if way in ("rgb", "grey rgb", "palette", "palette as drawn", "grey palette") or kind not in NUMBERS:
        profile["dtype"] = "uint8"
    if way == "rgb":
        bands = np.array(colours[:k], np.uint8)[index].transpose(2, 0, 1)
    elif way in ("palette", "palette as drawn"):
        order = rng.permutation(draw(st.sampled_from([k, 16])))[:k]
        palette = {int(order[i]): (*colours[i], 255) for i in range(k)}
        bands = order[index][None].astype(np.uint8)
    elif way == "grey palette":
        order = rng.permutation(k)
        palette = {int(order[i]): (codes[i], codes[i], codes[i], 255) for i in range(k)} if max(codes) < 256 and min(codes) >= 0 else None
        bands = (order[index] if palette else values)[None]
        profile["dtype"] = "uint8" if palette else kind
    elif way == "grey rgb":
        bands = np.repeat(values[None], 3, axis=0)
        profile["dtype"] = "uint8" if values.min() >= 0 and values.max() < 256 else kind
    else:
        bands = values[None]
        if way == "bits" and min(codes) >= 0 and max(codes) < 4096:
            profile |= (
                {"dtype": "uint8", "nbits": max(1, max(codes).bit_length())} if max(codes) < 256 else {"dtype": "uint16", "nbits": 12}
            )
    white = profile["dtype"] in ("uint8", "uint16") and len(bands) == 1 and palette is None and draw(st.booleans())
    if white:  # stored so that it is shown as meant
        full = 2 ** profile.get("nbits", 8 * np.dtype(profile["dtype"]).itemsize) - 1
        if bands.max() <= full:
            profile["photometric"], bands = "MINISWHITE", full - bands.astype(np.int64)
    bands = bands.astype(profile["dtype"])
    case = Case(table, index, bands, profile, palette, said=f"{style}, {way}, {profile}, codes {given_codes}, ignore {ignored}")

    marked = draw(st.sampled_from(["no", "mask", "msk", "alpha", "nodata", "code"]))
    if unknown.any() and marked in ("mask", "msk"):
        case.mask, case.sidecar = ~unknown, marked == "msk"
        case.index = np.where(unknown, IGNORE, index).astype(np.uint8)
    elif marked == "alpha" and "nbits" not in profile and palette is None and "photometric" not in profile:
        opaque = np.iinfo(profile["dtype"]).max if bands.dtype.kind in "iu" else 1
        case.bands, case.alpha = np.concatenate([bands, np.where(unknown, 0, opaque)[None].astype(bands.dtype)]), True
        case.index = np.where(unknown, IGNORE, index).astype(np.uint8)
    elif marked == "nodata" and "nbits" not in profile:
        free = sorted(set(range(256)) - set(np.unique(bands).tolist()) - set(codes) - set(palette or ()))
        nodata = draw(st.sampled_from(free[:3] + free[-3:]))
        full = np.iinfo(profile["dtype"]).max if bands.dtype.kind in "iu" else 256
        if nodata <= full and way not in ("rgb", "grey rgb") and (not white or full - nodata not in codes):
            case.bands = np.where(unknown[None], nodata, bands).astype(bands.dtype)
            case.profile = {**profile, "nodata": nodata}
            case.index = np.where(unknown, IGNORE, index).astype(np.uint8)
    elif marked == "code" and ignored and len(bands) == 1 and palette is None and not white and way == "number":
        limits = NUMBERS[profile["dtype"]]
        if limits[0] <= ignored[0] <= limits[1]:
            case.bands = np.where(unknown[None], ignored[0], bands).astype(bands.dtype)
            case.index = np.where(unknown, IGNORE, index).astype(np.uint8)
    case.profile = {**case.profile, **draw(st.sampled_from(LAYOUTS))}
    if case.profile.get("nbits") == 1 and draw(st.booleans()):
        case.profile["compress"] = draw(st.sampled_from(["ccittfax4", "ccittrle"]))
    return case


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
