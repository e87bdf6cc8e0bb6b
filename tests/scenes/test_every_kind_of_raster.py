"""Every kind of raster that rasterio's own tests hold, and more, through the command line: read right, or one clear line.

Each file is made here. `read`: the labels (or the image) that were meant come out. `refused`: exit code 2 to 4 and one line on stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from scene_doubles import blobs, small_refiner

from idgbr import cli
from idgbr.labels import IGNORE, ClassTable, LabelClass
from idgbr.rasters.grid import Grid
from idgbr.rasters.read import read_labels

H, W = 28, 32  # one tile of the refiner
TABLE = ClassTable((LabelClass("land", (0, (0, 0, 0)), (40, 40, 40)), LabelClass("building", (1, 255, (255, 255, 255)), (255, 80, 40))))
HERE = from_origin(500000, 5800000, 0.5, 0.5)
UTM = "EPSG:32633"
MASK = blobs(np.random.default_rng(3), H, W, 2, size=8)
PHOTO = np.random.default_rng(0).integers(1, 255, (3, H, W)).astype(np.uint8)
UNKNOWN = np.zeros((H, W), bool)
UNKNOWN[:, 26:] = True
RPCS = RPC(height_off=100, height_scale=500, lat_off=52, lat_scale=0.1, line_den_coeff=[1] + [0] * 19, line_num_coeff=[0, 0, -1] + [0] * 17,
           line_off=20, line_scale=20, long_off=15, long_scale=0.1, samp_den_coeff=[1] + [0] * 19, samp_num_coeff=[0, 1] + [0] * 18,
           samp_off=22, samp_scale=22, err_bias=None, err_rand=None)  # fmt: skip
POINTS = [GroundControlPoint(r, c, 500000 + c, 5800000 - r) for r, c in ((0, 0), (0, W), (H, 0), (H, W))]
Make = Callable[[Path], Path]


def tif(bands: np.ndarray, **profile: Any) -> Make:
    """A GeoTIFF; `marks`, `palette`, `mask`, `msk`, `gcps`, `rpcs` are set after writing."""
    after = {name: profile.pop(name, None) for name in ("marks", "palette", "mask", "msk", "gcps", "rpcs")}
    bands = bands if bands.ndim == 3 else bands[None]
    profile = {"driver": "GTiff", "crs": UTM, "transform": HERE, "dtype": bands.dtype} | profile

    def make(path: Path) -> Path:
        known = after["mask"] if after["mask"] is not None else after["msk"]
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=after["msk"] is None):
            with rasterio.open(path, "w", count=len(bands), height=bands.shape[1], width=bands.shape[2], **profile) as file:
                file.write(bands)
                if after["palette"]:
                    file.write_colormap(1, after["palette"])
                if after["gcps"]:
                    file.gcps = (after["gcps"], CRS.from_string(UTM))
                if after["rpcs"]:
                    file.rpcs = after["rpcs"]
            if after["marks"] or known is not None:
                with rasterio.open(path, "r+") as file:
                    if after["marks"]:
                        file.colorinterp = after["marks"]
                    if known is not None:
                        file.write_mask(np.where(known, 255, 0).astype(np.uint8))
        return path

    return make


def bare(bands: np.ndarray, **profile: Any) -> Make:
    return tif(bands, crs=None, transform=Affine.identity(), **profile)


def unknown(value: Any, kind: str) -> np.ndarray:
    """The mask with `value` where nothing is known."""
    return np.where(UNKNOWN, np.array(value, kind), MASK.astype(kind))


def vrt(of: Make, *, head: str = "") -> Make:
    def make(path: Path) -> Path:
        inner = of(path.with_name(f"of_{path.stem}.tif"))
        rasterio.shutil.copy(inner, path.with_suffix(".vrt"), driver="VRT")
        if head:
            text = path.with_suffix(".vrt").read_text()
            start = text.index("<VRTRasterBand")
            path.with_suffix(".vrt").write_text(text[:start].split("<SRS")[0].split("<GeoTransform")[0] + head + text[start:])
        return path.with_suffix(".vrt")

    return make


def picture(mode: str, suffix: str, array: np.ndarray = MASK * 255, **options: Any) -> Make:
    def make(path: Path) -> Path:
        Image.fromarray(array).convert(mode).save(path.with_suffix(suffix), **options)
        return path.with_suffix(suffix)

    return make


def raw(data: bytes, suffix: str = ".tif") -> Make:
    def make(path: Path) -> Path:
        path.with_suffix(suffix).write_bytes(data)
        return path.with_suffix(suffix)

    return make


def truncated(path: Path) -> Path:
    whole = tif(np.random.default_rng(0).integers(0, 2, (1, H, W)).astype(np.uint8))(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    return path


def container(path: Path) -> Path:
    for name, more in (("first", {}), ("second", {"APPEND_SUBDATASET": "YES"})):
        tif(MASK, driver="GPKG", RASTER_TABLE=name, **more)(path.with_suffix(".gpkg"))
    return path.with_suffix(".gpkg")


ROTATED = Affine(0.4, 0.3, 500000, 0.3, -0.4, 5800000)
GCP_HEAD = (
    f'<SRS>{UTM}</SRS><GCPList Projection="{UTM}">'
    + "".join(f'<GCP Id="{i}" Pixel="{p.col}" Line="{p.row}" X="{p.x}" Y="{p.y}"/>' for i, p in enumerate(POINTS))
    + "</GCPList>"
)
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
BLACK, WHITE = (0, 0, 0, 255), (255, 255, 255, 255)
BLACK_WHITE, WHITE_BLACK = {0: BLACK, 1: WHITE}, {0: WHITE, 1: BLACK}
RGB = np.stack([MASK * 255] * 3)
ALPHA = np.where(UNKNOWN, 0, 255).astype(np.uint8)

VRT_OF_NOTHING = (
    b'<VRTDataset rasterXSize="32" rasterYSize="28"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    b"<SourceFilename>/nowhere/a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
)

# kind of class map: (maker, what comes out: the mask, the mask with unknown pixels, or None for refused)
MAPS: dict[str, tuple[Make, np.ndarray | None]] = {
    "plain": (tif(MASK), MASK),
    "rotated": (tif(MASK, transform=ROTATED), MASK),
    "south up": (tif(MASK, transform=Affine(0.5, 0, 500000, 0, 0.5, 5800000)), MASK),
    "degrees": (tif(MASK, crs="EPSG:4326", transform=from_origin(13, 52, 1e-5, 1e-5)), MASK),
    "no crs": (bare(MASK), MASK),
    "transform without crs": (tif(MASK, crs=None), MASK),
    **{kind: (tif(MASK.astype(kind)), MASK) for kind in ("int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64")},
    "float with nan": (tif(unknown(np.nan, "float32"), nodata=np.nan), np.where(UNKNOWN, IGNORE, MASK)),
    "float with nan undeclared": (tif(unknown(np.nan, "float64")), np.where(UNKNOWN, IGNORE, MASK)),
    "float with -3.4e38": (tif(unknown(-3.4028234663852886e38, "float32"), nodata=-3.4028234663852886e38), np.where(UNKNOWN, IGNORE, MASK)),
    "int16 with -9999": (tif(unknown(-9999, "int16"), nodata=-9999), np.where(UNKNOWN, IGNORE, MASK)),
    "nodata 255 of 0 and 1": (tif(unknown(255, "uint8"), nodata=255), np.where(UNKNOWN, IGNORE, MASK)),
    "nodata 0 of 0 and 255": (tif(MASK * 255, nodata=0), MASK),
    "complex": (tif(MASK.astype(np.complex64)), None),
    "complex int": (tif(MASK.astype(np.int16), dtype="complex_int16"), None),
    "1 bit": (tif(MASK, nbits=1), MASK),
    "1 bit white is zero": (tif(1 - MASK, nbits=1, photometric="MINISWHITE", compress="CCITTFAX4"), MASK),
    "8 bit white is zero": (tif(255 - MASK * 255, photometric="MINISWHITE"), MASK),
    "12 bit": (tif(MASK.astype(np.uint16) * 4095, nbits=12), MASK),
    "16 bit": (tif(MASK.astype(np.uint16) * 65535), MASK),
    "palette": (tif(MASK, palette=BLACK_WHITE), MASK),
    "palette of white and black": (tif(1 - MASK, palette=WHITE_BLACK), MASK),
    "palette with nodata": (tif(unknown(9, "uint8"), palette=BLACK_WHITE, nodata=9), np.where(UNKNOWN, IGNORE, MASK)),
    "mask file": (tif(MASK, msk=~UNKNOWN), np.where(UNKNOWN, IGNORE, MASK)),
    "internal mask": (tif(MASK, mask=~UNKNOWN), np.where(UNKNOWN, IGNORE, MASK)),
    "grey and alpha": (tif(np.stack([MASK, ALPHA]), marks=(ColorInterp.gray, ColorInterp.alpha)), np.where(UNKNOWN, IGNORE, MASK)),
    "colours": (tif(RGB, photometric="RGB"), MASK),
    "colours by pixel": (tif(RGB, photometric="RGB", interleave="pixel"), MASK),
    "colours by band": (tif(RGB, photometric="RGB", interleave="band", tiled=True, blockxsize=16, blockysize=16), MASK),
    "colours and alpha": (tif(np.concatenate([RGB, ALPHA[None]]), photometric="RGB", alpha="YES"), np.where(UNKNOWN, IGNORE, MASK)),
    "big endian": (tif(MASK.astype(np.uint16), endianness="big", bigtiff="yes"), MASK),
    "vrt": (vrt(tif(MASK)), MASK),
    "png": (picture("L", ".png"), MASK),
    "png of 1 bit": (picture("1", ".png"), MASK),
    "png with a palette": (picture("P", ".png"), MASK),
    "bmp": (picture("1", ".bmp"), MASK),
    "gif": (picture("L", ".gif"), MASK),
    **{f"{n} bits white is zero": (tif((1 - MASK) * (2**n - 1), nbits=n, photometric="MINISWHITE"), MASK) for n in (2, 4)},
    **{f"{n} bits scaled": (tif(MASK * (2**n - 1), nbits=n), MASK) for n in (2, 4)},
    **{f"{n} bits, palette white first": (tif(1 - MASK, nbits=n, palette=WHITE_BLACK | {2: BLACK, 3: BLACK}), MASK) for n in (2, 4)},
    "2 bits, palette, nodata": (
        tif(unknown(3, "uint8"), nbits=2, nodata=3, palette=BLACK_WHITE | {2: BLACK, 3: BLACK}),
        np.where(UNKNOWN, IGNORE, MASK),
    ),
    "2 bits, white is zero, stored codes": (tif(MASK, nbits=2, photometric="MINISWHITE"), None),
    "uint16 with 65535": (tif(unknown(65535, "uint16"), nodata=65535), np.where(UNKNOWN, IGNORE, MASK)),
    "uint16 with 65535 undeclared": (tif(unknown(65535, "uint16")), None),
    "int8 with -128": (tif(unknown(-128, "int8"), nodata=-128), np.where(UNKNOWN, IGNORE, MASK)),
    "int8 with -1 undeclared": (tif(unknown(-1, "int8")), None),
    "float with 0.5": (tif(unknown(0.5, "float32"), nodata=0.5), np.where(UNKNOWN, IGNORE, MASK)),
    "0 and declared 255": (tif(MASK * 255, nodata=255), None),
    "png with a transparent grey": (picture("L", ".png", unknown(7, "uint8"), transparency=7), np.where(UNKNOWN, IGNORE, MASK)),
    "png with a transparent colour": (
        picture("RGB", ".png", np.where(UNKNOWN[..., None], (1, 2, 3), MASK[..., None] * 255).astype(np.uint8), transparency=(1, 2, 3)),
        np.where(UNKNOWN, IGNORE, MASK),
    ),
    "png of colours with holes": (picture("RGBA", ".png", np.dstack([MASK * 255] * 3 + [ALPHA])), np.where(UNKNOWN, IGNORE, MASK)),
    "colours of 16 bits": (tif(RGB.astype(np.uint16) * 257, photometric="RGB"), MASK),
    "blue, green, red": (tif(RGB, marks=COLOURS[::-1]), MASK),
    "flipped from east to west": (tif(MASK, transform=Affine(-0.5, 0, 500000, 0, -0.5, 5800000)), MASK),
    "crs without a code": (tif(MASK, crs="+proj=tmerc +lat_0=1 +lon_0=15.5 +k=0.9 +x_0=1 +y_0=2 +ellps=bessel"), MASK),
    "engineering crs": (tif(MASK, crs=CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')), MASK),
    "jpeg in tiff": (tif(MASK * 255, compress="JPEG"), None),
    "two bands": (tif(np.stack([MASK, MASK])), None),
    "five bands": (tif(np.stack([MASK] * 5)), None),
    "fractions": (tif(MASK * np.float32(0.7)), None),
    "1 and 255": (tif(unknown(255, "uint8")), None),
    "unknown code": (tif(unknown(7, "uint8")), None),
    "photograph": (tif(PHOTO, photometric="RGB"), None),
    "lossy": (picture("L", ".jpg", quality=30), None),
    "container": (container, None),
    "empty file": (raw(b""), None),
    "text": (raw(b"hello, I am no raster"), None),
    "truncated": (truncated, None),
    "vrt of nothing": (raw(VRT_OF_NOTHING, ".vrt"), None),
}  # fmt: skip

# kind of scene: (maker, whether `refine` takes it)
SCENES: dict[str, tuple[Make, bool]] = {
    "plain": (tif(PHOTO), True),
    "rotated": (tif(PHOTO, transform=ROTATED), True),
    "south up": (tif(PHOTO, transform=Affine(0.5, 0, 500000, 0, 0.5, 5800000)), True),
    "no crs": (bare(PHOTO), True),
    "control points": (bare(PHOTO, gcps=POINTS), False),
    "control points and crs": (vrt(bare(PHOTO), head=GCP_HEAD), False),
    "rpcs": (bare(PHOTO, rpcs=RPCS), False),
    "rpcs of an orthoimage": (tif(PHOTO, rpcs=RPCS), True),
    **{kind: (tif(PHOTO.astype(kind)), True) for kind in ("uint16", "int16", "uint32", "int32", "float32", "float64")},
    "int8": (tif((PHOTO // 2).astype(np.int8)), True),
    "float with nan": (tif(np.where(UNKNOWN, np.nan, PHOTO).astype(np.float32), nodata=np.nan), True),
    "12 bit": (tif(PHOTO.astype(np.uint16) * 16, nbits=12), True),
    "complex": (tif(PHOTO.astype(np.complex64)), False),
    "mask file": (tif(PHOTO, msk=~UNKNOWN), True),
    "alpha": (tif(np.concatenate([PHOTO, ALPHA[None]]), photometric="RGB", alpha="YES"), True),
    "infrared marked as alpha": (tif(np.concatenate([PHOTO, PHOTO[:1] // 64]), photometric="RGB", alpha="YES"), True),
    "palette": (tif(MASK, palette=BLACK_WHITE), True),
    "by pixel": (tif(PHOTO, interleave="pixel", photometric="YCBCR", compress="JPEG"), True),
    "by band": (tif(PHOTO, interleave="band"), True),
    "one band": (tif(PHOTO[:1]), False),
    "coordinates too large to tell pixels apart": (tif(PHOTO, transform=Affine(0.5, 0, 5e12, 0, -0.5, 5e15)), False),
    "png": (picture("RGB", ".png", np.moveaxis(PHOTO, 0, -1)), True),
    "jpeg": (picture("RGB", ".jpg", np.moveaxis(PHOTO, 0, -1)), True),
    "cmyk": (picture("CMYK", ".jpg", np.moveaxis(PHOTO, 0, -1)), True),
    "crs of a rotated pole": (tif(PHOTO, crs="+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +ellps=WGS84"), False),
    "container": (container, False),
    "empty file": (raw(b""), False),
    "truncated": (truncated, False),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    yield small_refiner(tmp_path_factory.mktemp("model"))
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: object) -> tuple[int, str]:
        """Exit code and stderr of `idgbr WORDS`; any exception but an exit is a failure."""
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        code = stopped.value.code or 0
        said = capsys.readouterr().err
        assert isinstance(code, int)
        if code:
            assert code in (2, 3, 4), said
            lines = [line for line in said.splitlines() if line.startswith("idgbr: ")]
            assert len(lines) == 1, said
            assert "Traceback" not in said
        return code, said

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "classes.json"
    path.write_text(TABLE.to_json())
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MAPS)
def test_a_class_map_is_read_right_or_refused_by_every_command(kind: str, tmp_path: Path, run: Any, table: Path, model: Path) -> None:
    make, want = MAPS[kind]
    path = make(tmp_path / "map.tif")
    if want is not None:
        assert (read_labels(path, TABLE) == want).all()
    scene = tif(PHOTO)(tmp_path / "scene.tif") if want is None else _on_the_same_grid(path, PHOTO, tmp_path / "scene.tif")
    before = set(tmp_path.iterdir())

    code, said = run("score", path, path, "--classes", table, "--json")  # as prediction and as target
    assert (code == 0) == (want is not None), said
    code, said = run("refine", scene, path, "-o", tmp_path / "refined.tif", "--model", model, "--steps", "1", "--reach-px", "0.5",
                     "--classes", table)  # fmt: skip
    assert (code == 0) == (want is not None), said
    if want is not None:
        refined = read_labels(tmp_path / "refined.tif", TABLE)
        assert ((refined == IGNORE) == (want == IGNORE)).all()
        inner = refined[:, :20] == MASK[:, :20]
        assert inner.mean() > 0.6  # a reach of half a pixel leaves the insides as they are
    code, said = run("align", path, "--like", scene, "-o", tmp_path / "aligned.tif")
    if want is not None:
        assert code == 0, said
        assert (read_labels(tmp_path / "aligned.tif", TABLE) == want).all()
        assert Grid.of(tmp_path / "aligned.tif") == Grid.of(scene)
    data = tmp_path / "data"
    data.mkdir()
    (data / "splits.csv").write_text(f"image,mask,split\n{scene},{path},train\n")
    table.rename(data / "classes.json")
    code, said = run("prepare", "synthetic", "data.source=folder", f"data.root={data}", "--store", tmp_path / "store")
    assert (code == 0) == (want is not None), said
    left = {p.name for p in set(tmp_path.iterdir()) - before} - {"refined.tif", "aligned.tif", "data", "store"}
    assert not left


def _on_the_same_grid(path: Path, bands: np.ndarray, out: Path) -> Path:
    grid = Grid.of(path)
    return tif(bands, crs=grid.crs, transform=grid.transform)(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SCENES)
def test_a_scene_is_refined_or_refused(kind: str, tmp_path: Path, run: Any, model: Path) -> None:
    make, taken = SCENES[kind]
    scene = make(tmp_path / "scene.tif")
    placed = kind not in ("container", "empty file", "truncated")
    coarse = _on_the_same_grid(scene, MASK, tmp_path / "coarse.tif") if placed else tif(MASK)(tmp_path / "coarse.tif")
    code, said = run("refine", scene, coarse, "-o", tmp_path / "out.tif", "--model", model, "--steps", "1", "--reach-px", "2")
    assert (code == 0) == taken, said
    assert (tmp_path / "out.tif").exists() == taken
    if taken:
        assert Grid.of(tmp_path / "out.tif") == Grid.of(scene)
        out = read_labels(tmp_path / "out.tif", TABLE)
        hidden = UNKNOWN if kind in ("float with nan", "mask file", "alpha") else np.zeros((H, W), bool)
        assert ((out == IGNORE) == hidden).all()
    code, said = run("align", coarse, "--like", scene, "-o", tmp_path / "aligned.tif")
    assert code == 0 or not taken or kind == "one band", said
