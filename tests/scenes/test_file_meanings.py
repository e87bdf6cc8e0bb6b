"""What the samples of a file mean: photometric interpretation, palettes, bit depth, transparency, probabilities."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp

from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, ClassTable, LabelClass, binary
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.rasters.codes import coding_of
from idgbr.rasters.grid import Grid, opened
from idgbr.rasters.meaning import meaning_of
from idgbr.rasters.read import Reader, read_labels, require_placed
from idgbr.scores.files import guess_table, look, side_of

BUILDING = binary("building")
ZERO_ONE = binary("building", codes=(1,))
FULL = binary("building", codes=(255,))


# ---- photometric interpretation, palettes, bit depth ---------------------------------------------------------------------


@pytest.mark.parametrize("table", [BUILDING, ZERO_ONE, FULL], ids=["0; 255, 1", "0; 1", "0; 255"])
def test_a_mask_of_black_and_white_is_the_same_however_it_is_stored(tmp_path, write_map, mask, table):
    """White is the building: 1, 4, 8, 12 and 16 bits, white or black as zero, palettes in both orders, PNG, BMP and GIF."""
    black, white = (0, 0, 0), (255, 255, 255)
    files = [
        write_map(1 - mask, "white1.tif", photometric="MINISWHITE", nbits=1),
        write_map(1 - mask, "fax.tif", photometric="MINISWHITE", nbits=1, compress="CCITTFAX4"),
        write_map(mask, "black1.tif", nbits=1),
        write_map(1 - mask, "p01.tif", palette={0: white, 1: black}),
        write_map(mask, "p10.tif", palette={0: black, 1: white}),
        write_map((1 - mask) * 255, "p255.tif", palette={0: white, 255: black}),
        write_map(mask * 7 + 3, "p3.tif", palette={3: black, 10: white}),
    ]
    if table is not ZERO_ONE:
        files += [
            write_map((1 - mask) * 255, "white8.tif", photometric="MINISWHITE"),
            write_map((1 - mask) * 15, "white4.tif", photometric="MINISWHITE", nbits=4),
            write_map((1 - mask.astype(np.uint16)) * 65535, "white16.tif", photometric="MINISWHITE"),
            write_map(mask * 15, "black4.tif", nbits=4),
            write_map(mask.astype(np.uint16) * 4095, "black12.tif", nbits=12),
            write_map(mask.astype(np.uint16) * 65535, "black16.tif"),
            write_map(np.repeat(mask[None] * 255, 3, axis=0), "rgb.tif", photometric="RGB"),
        ]
    picture = Image.fromarray(mask * 255)
    for suffix in ("png", "tif", "bmp"):
        picture.convert("1").save(tmp_path / f"one.{suffix}")
        files.append(tmp_path / f"one.{suffix}")
    if table is not ZERO_ONE:
        for suffix in ("gif", "png", "jp2"):
            picture.save(tmp_path / f"eight.{suffix}", **({"irreversible": False} if suffix == "jp2" else {}))
            files.append(tmp_path / f"eight.{suffix}")
    for path in files:
        assert (read_labels(path, table) == mask).all(), path.name
        assert (CoarseMap(path, table).strip(0, 32).index == mask).all(), path.name
        assert (read_labels(path, table, 20, 0, 12, 48) == 0).all(), "a window without a building"
        if path.name in ("black4.tif", "rgb.tif"):  # without a class table 15 is an index, and colours are refused
            continue
        values = {"pred": [look(path)], "target": [look(path)]}
        guessed, masks = guess_table(values, 255)
        for side in values:
            reading = side_of(side, values[side], guessed, masks[side], 255)
            assert (reading.read(path, 0, 0, 32, 48) == mask).all(), (path.name, side)


def test_a_tile_without_a_building_is_background_however_it_is_stored(write_map, mask):
    empty = np.zeros_like(mask)
    for path in (
        write_map(1 - empty, "white1.tif", photometric="MINISWHITE", nbits=1),
        write_map(1 - empty, "p.tif", palette={0: (255, 255, 255), 1: (0, 0, 0)}),
        write_map(255 - empty, "white8.tif", photometric="MINISWHITE"),
        write_map(empty, "black.tif", nbits=1),
    ):
        assert (read_labels(path, BUILDING) == 0).all(), path.name


def test_a_palette_goes_by_colour_and_says_so(write_map, mask):
    drawn = ClassTable(
        (LabelClass("land", (0,), (10, 60, 10)), LabelClass("water", (1,), (0, 0, 200)), LabelClass("road", (2,), (90, 90, 90)))
    )
    index = np.arange(48, dtype=np.uint8)[None].repeat(32, 0) % 3
    swapped = write_map(np.array([2, 0, 1], np.uint8)[index], palette={2: (10, 60, 10), 0: (0, 0, 200), 1: (90, 90, 90)})
    assert (read_labels(swapped, drawn) == index).all()
    assert "colours of its palette" in str(coding_of(swapped, drawn).note)
    plain = write_map(index, "plain.tif", palette={0: (1, 2, 3), 1: (4, 5, 6), 2: (7, 8, 9)})  # colours of somebody else: the numbers count
    assert (read_labels(plain, drawn) == index).all()
    assert coding_of(plain, drawn).note is None
    coloured = write_map(np.moveaxis(np.array(drawn.colors, np.uint8)[index], -1, 0), "rgb.tif", photometric="RGB")
    assert (read_labels(coloured, drawn) == index).all()
    never_filled = write_map(mask, "black.tif", palette={0: (0, 0, 0), 1: (0, 0, 0)})  # says nothing
    assert (read_labels(never_filled, BUILDING) == mask).all()


def test_what_would_come_out_inverted_is_refused(write_map, mask):
    for path in (
        write_map(mask, "dark.tif", palette={0: (200, 200, 200), 1: (20, 20, 20)}),
        write_map(mask, "green.tif", palette={0: (0, 128, 0), 1: (0, 0, 0)}),
        write_map(mask, "stored.tif", photometric="MINISWHITE"),  # 0 and 1 of 8 bits: white, and nearly white
        write_map(mask * 2, "three.tif", photometric="MINISWHITE"),
    ):
        table = binary("building", codes=(1, 2))
        with pytest.raises(Disagreement, match=r"palette calls black|white is zero"):
            read_labels(path, table)


def test_an_image_with_a_palette_or_white_as_zero_is_read_as_shown(tmp_path, write_map):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (256, 3)).astype(np.uint8)
    index = rng.integers(0, 256, (32, 48)).astype(np.uint8)
    path = write_map(index, palette={i: tuple(c.tolist()) for i, c in enumerate(colours)})
    image, valid = Reader(path).read(0, 0, 32, 48)
    assert (image == np.moveaxis(colours[index], -1, 0)).all()
    assert valid.all()
    assert (Reader(path, (3, 1)).read(4, 4, 9, 9)[0] == np.moveaxis(colours[index], -1, 0)[[2, 0], 4:13, 4:13]).all()
    with pytest.raises(Disagreement, match=r"3 band.*band 4"):
        Reader(path, (4,)).read(0, 0, 1, 1)
    grey = write_map(255 - index, "white.tif", photometric="MINISWHITE")
    assert (Reader(grey, (1,)).read(0, 0, 32, 48)[0][0] == index).all()
    twelve = write_map((4095 - index.astype(np.uint16)), "white12.tif", photometric="MINISWHITE", nbits=12)
    assert (Reader(twelve, (1,)).read(0, 0, 32, 48)[0][0] == index).all()


def test_colours_in_another_order_and_of_16_bits(write_map):
    table = ClassTable((LabelClass("a", ((255, 0, 10),), (0, 0, 0)), LabelClass("b", ((0, 255, 10),), (1, 1, 1))))
    index = (np.arange(48)[None].repeat(32, 0) // 7 % 2).astype(np.uint8)
    rgb = np.moveaxis(np.array([[255, 0, 10], [0, 255, 10]], np.uint8)[index], -1, 0)
    marks = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    assert (read_labels(write_map(rgb[::-1], "bgr.tif", marks), table) == index).all()
    assert (read_labels(write_map(rgb.astype(np.uint16) * 257, "u16.tif", photometric="RGB"), table) == index).all()
    assert (read_labels(write_map(rgb.astype(np.float32), "f4.tif"), table) == index).all()
    with pytest.raises(Disagreement, match="no colour of 8 bits"):  # (0, 256, 10) is not (1, 0, 10)
        read_labels(write_map(np.where(rgb == 255, 256, rgb.astype(np.uint16)), "odd.tif", photometric="RGB"), table)


def test_grey_levels_of_three_bands_are_shown_as_numbers(write_map, mask):
    rgb = np.stack([mask * 255] * 3)
    rgb[:, :2] = 7
    with pytest.raises(Disagreement, match=r"Given: 0: .*, 7: "):
        read_labels(write_map(rgb, photometric="RGB"), BUILDING)


# ---- transparency and probabilities ---------------------------------------------------------------------------------------


def test_transparency_is_a_mask_and_never_a_class(tmp_path, write_map, mask):
    clear = np.zeros(mask.shape, bool)
    clear[:, 40:] = True
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    want = np.where(clear, IGNORE, mask)
    grey = (ColorInterp.gray, ColorInterp.alpha)
    colour = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    soft = np.where(clear, 0, 1 + np.arange(48) % 250).astype(np.uint8)
    Image.fromarray(np.dstack([mask * 255, alpha]), "LA").save(tmp_path / "la.png")
    Image.fromarray(np.dstack([mask * 255] * 3 + [alpha]), "RGBA").save(tmp_path / "rgba.png")
    three = binary("building", codes=(255, 1, (255, 255, 255)), others=(0, (0, 0, 0)))
    files = [
        write_map(np.stack([mask, alpha]), "index.tif", grey),
        write_map(np.stack([mask * 255, soft]), "soft.tif", grey),
        write_map(np.stack([mask, alpha]).astype(np.uint16), "u2.tif", grey),
        write_map(np.stack([mask, clear == 0]).astype(np.float32), "f4.tif", grey),
        write_map(np.stack([mask * 255] * 3 + [alpha]), "rgba.tif", colour, photometric="RGB", alpha="YES"),
        tmp_path / "la.png",
        tmp_path / "rgba.png",
    ]
    for path in files:
        for table in (BUILDING, three):
            assert (read_labels(path, table) == want).all(), path.name
            coarse = CoarseMap(path, table)
            assert not coarse.is_probabilities
            assert (coarse.strip(0, 32).index == want).all(), path.name
        assert look(path).colours == path.name.startswith("rgba")


def test_several_bands_are_probabilities_only_if_the_whole_file_says_so(write_map, mask):
    """Three byte bands of one sum are probabilities of three classes without colours, whatever colours GDAL marks them with."""
    table = ClassTable(tuple(LabelClass(n, (i,), (i, 50, 99)) for i, n in enumerate("abc")))
    index = (np.arange(48)[None].repeat(32, 0) // 5 % 3).astype(np.uint8)
    p = np.stack([np.where(index == i, 200, 25) for i in range(3)]).astype(np.uint8)
    want = np.where(index[..., None] == np.arange(3), 0.8, 0.1).transpose(2, 0, 1)
    for path in (
        write_map(p, "marked.tif", photometric="RGB"),
        write_map(p, "grey.tif", photometric="MINISBLACK"),
        write_map((p / 250).astype(np.float32), "f4.tif"),
        write_map(p.astype(np.uint16) * 40, "u2.tif"),
        write_map(np.concatenate([p, np.full((1, 32, 48), 255, np.uint8)]), "alpha.tif", photometric="RGB", alpha="YES"),
    ):
        strip = (coarse := CoarseMap(path, table)).strip(0, 32)
        assert coarse.is_probabilities, path.name
        assert np.abs(strip.values - want).max() < 1e-6
        assert (strip.index == index).all()
    last = p.copy()
    last[:, -1] = 90  # only the last row has another sum
    for path in (
        write_map(last, "last.tif", photometric="RGB"),
        write_map((last / 250).astype(np.float32), "last_f4.tif"),
        write_map(np.stack([mask, mask, np.full_like(mask, 255)]), "constant.tif"),
    ):
        with pytest.raises(
            Disagreement, match=r"neither a class map nor probabilities|probabilities of 4 classes|class table does not have"
        ):
            CoarseMap(path, table)
    for second in (mask, 1 - mask, np.full_like(mask, 3)):  # two bands without a mark that are no probabilities of two classes
        pair = np.stack([mask * 200, second])
        with pytest.raises(Disagreement, match="neither a class map nor probabilities"):
            CoarseMap(write_map(pair, "pair.tif"), BUILDING)


@pytest.mark.parametrize("nodata", [-1.0, -9999.0, -3.4028234663852886e38, float("nan"), 255.0, 0.0])
def test_unknown_pixels_of_probabilities_are_unknown_before_any_arithmetic(write_map, mask, nodata):
    p = np.stack([0.9 - 0.8 * mask, 0.1 + 0.8 * mask]).astype(np.float32)
    p[:, :, :5] = nodata
    coarse = CoarseMap(write_map(p, nodata=nodata), BUILDING)
    strip = coarse.strip(0, 32)
    assert (strip.index == np.where(np.arange(48) < 5, IGNORE, mask)).all()
    assert np.isfinite(strip.values).all()
    assert np.allclose(strip.values[:, :, :5], 0.5)
    assert np.allclose(strip.values[:, :, 5:], p[:, :, 5:], atol=1e-6)
    if nodata < 0:  # one band with it is enough: no probability is negative
        p[0, :, 5:7] = nodata
        assert (CoarseMap(write_map(p, "one.tif", nodata=nodata), BUILDING).strip(0, 32).index[:, 5:7] == IGNORE).all()
        with pytest.raises(Disagreement, match="negative numbers"):
            CoarseMap(write_map(p, "undeclared.tif"), BUILDING)
    p[:] = np.stack([1 + 1e-5 - mask, mask - 1e-5])  # rounding below 0
    rounded = CoarseMap(write_map(p, "rounded.tif"), BUILDING).strip(0, 32)
    assert (rounded.index == mask).all()
    assert rounded.values.min() == 0


# ---- refusals ------------------------------------------------------------------------------------------------------------


def test_containers_name_their_parts(tmp_path, mask):
    """A GeoPackage of two maps has no bands of its own."""
    for name, more in (("first", {}), ("second", {"APPEND_SUBDATASET": "YES"})):
        options = {"height": 32, "width": 48, "count": 1, "dtype": "uint8", "crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
        with rasterio.open(tmp_path / "maps.gpkg", "w", driver="GPKG", RASTER_TABLE=name, **options, **more) as file:
            file.write(mask, 1)
    container = tmp_path / "maps.gpkg"
    for read in (Grid.of, look, lambda path: read_labels(path, BUILDING), lambda path: CoarseMap(path, BUILDING), require_placed):
        with pytest.raises(Disagreement, match=r"container \(GPKG\) without bands of its own.*GPKG:.*:first.*gdal_translate") as error:
            read(container)
        assert error.value.exit_code == 4


def test_a_photograph_is_no_class_map_and_says_so(write_map):
    photo = np.random.default_rng(0).integers(0, 255, (3, 96, 96)).astype(np.uint8)
    table = binary("building", codes=(255, (255, 255, 255)))
    with pytest.raises(Disagreement, match=r"more than \d+ different colours"):
        read_labels(write_map(photo, photometric="RGB"), table)
    with pytest.raises(Disagreement, match="not whole numbers"):
        read_labels(write_map(np.random.default_rng(0).random((1, 32, 48)).astype(np.float32), "f.tif", nodata=1), table)


def test_a_large_file_is_decided_in_little_memory(tmp_path):
    """100 million pixels of one bit, looked through once: the peak stays far below the size of the map in memory."""
    script = (
        "import resource, sys\nimport rasterio, numpy as np\nfrom rasterio.windows import Window\n"
        "from idgbr.labels import binary\nfrom idgbr.rasters.read import read_labels\n"
        "path, n = sys.argv[1], 16000\n"
        "with rasterio.open(path, 'w', driver='GTiff', height=n, width=n, count=1, dtype='uint8', nbits=1, photometric='MINISWHITE',"
        " compress='ccittfax4', tiled=True) as f:\n"
        "    for row in range(0, n, 1000):\n        f.write(np.ones((1, 1000, n), 'u1'), window=Window(0, row, n, 1000))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert (read_labels(path, binary('building'), 15990, 15990, 10, 10) == 0).all()\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "big.tif")], capture_output=True, text=True, check=False,
        env={"GDAL_CACHEMAX": "32", "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 120  # MB; the map has 256


def test_the_meaning_is_decided_anew_for_a_replaced_file(write_map, mask):
    path = write_map(mask)
    assert (read_labels(path, BUILDING) == mask).all()
    assert meaning_of(path).nodata == (None,)
    path.unlink()
    path = write_map(np.where(mask > 0, 1, 255).astype(np.uint8), nodata=255)
    assert (read_labels(path, BUILDING) == np.where(mask > 0, 1, IGNORE)).all()
    with opened(path) as source:
        assert source.nodata == 255
