"""Reading windows, label files and probabilities; writing that keeps grid, colours, nodata and tags; COG."""

from __future__ import annotations

import errno
import pickle
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.files import check_output
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.rasters.read import IGNORE, Grid, RasterWriter, Reader, read_labels, read_probabilities, write_class_map, write_probabilities

UTM = CRS.from_epsg(32633)
GRIDS = {
    "projected": Grid(300, 400, Affine(0.5, 0, 500000, 0, -0.5, 4600000), UTM),
    "odd numbers": Grid(300, 400, Affine(0.1 + 0.2, 0, 404211.9, 0, -1 / 3, 3285142.9000000004), CRS.from_epsg(25833)),
    "rotated": Grid(300, 400, Affine(0.4, 0.3, 500000, 0.3, -0.4, 4600000), UTM),
    "geographic": Grid(300, 400, Affine(1e-5, 0, 13.4, 0, -1e-5, 52.5), CRS.from_epsg(4326)),
    "south-up": Grid(300, 400, Affine(0.5, 0, 500000, 0, 0.5, 4600000), UTM),
    "no CRS": Grid(300, 400),
    "transform without CRS": Grid(300, 400, Affine(2, 0, 10, 0, -2, 20)),
    "CRS of its own": Grid(300, 400, Affine(1, 0, 0, 0, -1, 0), CRS.from_proj4("+proj=laea +lat_0=48.3 +lon_0=11.7 +ellps=WGS84 +units=m")),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("cog", [False, True])
def test_every_kind_of_grid_comes_back_exactly(tmp_path, table, name, cog):
    index = np.random.default_rng(0).integers(0, 3, (300, 400)).astype(np.uint8)
    index[:9] = IGNORE
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said about photographs without a CRS
        write_class_map(tmp_path / "m.tif", index, GRIDS[name], table, {"MADE_BY": "test"}, cog=cog)
        assert Grid.of(tmp_path / "m.tif") == GRIDS[name]
        assert (read_labels(tmp_path / "m.tif", table) == index).all()
    with warnings.catch_warnings(), rasterio.open(tmp_path / "m.tif") as file:
        assert file.nodata == IGNORE
        assert file.colormap(1)[2] == (80, 80, 255, 255)
        assert file.colormap(1)[255][3] == 0
        assert file.tags()["MADE_BY"] == "test"
        assert file.tags()["CLASS_1"] == "building"
        assert file.block_shapes == [(512, 512) if cog else (256, 256)]
    assert [p.name for p in tmp_path.iterdir()] == ["m.tif"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["projected", "rotated", "no CRS", "south-up"])
def test_cogs_pass_the_validator_and_have_true_overviews(tmp_path, table, name):
    big = Grid(1300, 1700, GRIDS[name].transform, GRIDS[name].crs)
    index = np.kron(np.random.default_rng(0).integers(0, 3, (13, 17)), np.ones((100, 100))).astype(np.uint8)
    write_class_map(tmp_path / "m.tif", index, big, table, cog=True)
    valid, errors, notes = cog_validate(tmp_path / "m.tif", strict=True, quiet=True)
    assert valid, (errors, notes)
    with rasterio.open(tmp_path / "m.tif") as file:
        assert file.overviews(1)[0] == 2
        small = file.read(1, out_shape=(650, 850))
        assert set(np.unique(small)) <= {0, 1, 2}
        assert (small == index[::2, ::2]).mean() > 0.98


@settings(max_examples=60, deadline=None)
@given(st.integers(-50, 90), st.integers(-50, 120), st.integers(1, 130), st.integers(1, 130))
def test_a_window_anywhere_is_the_array_with_its_edge_repeated(windows_file, row, col, height, width):
    reader, array, ok = windows_file
    image, valid = reader.read(row, col, height, width)
    assert image.dtype == np.float32
    assert image.shape == (3, height, width)
    rows, cols = np.arange(row, row + height), np.arange(col, col + width)
    inside = ((rows >= 0) & (rows < 60))[:, None] & ((cols >= 0) & (cols < 90))[None]
    at = np.ix_(rows.clip(0, 59), cols.clip(0, 89))
    assert (valid == (ok[at] & inside)).all()
    assert (reader.valid(row, col, height, width) == valid).all()
    if inside.any():
        assert (image == array[(slice(None), *at)]).all()


@pytest.fixture(scope="module")
def windows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "a.tif"
    array = np.random.default_rng(1).integers(0, 3, (3, 60, 90)).astype(np.uint16) * 900
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=60, width=90, dtype="uint16", nodata=0, crs=UTM, transform=Affine(1, 0, 5, 0, -1, 5)
    ) as file:
        file.write(array)
    return Reader(path), array.astype(np.float32), (array != 0).any(axis=0)


def test_bands_in_any_order_and_all_of_them(tmp_path, grid, write_image):
    array = np.random.default_rng(0).integers(0, 9999, (4, 20, 30)).astype(np.uint16)
    path = write_image(tmp_path / "a.tif", array, grid(20, 30))
    assert (Reader(path, (4, 1)).read(0, 0, 20, 30)[0] == array[[3, 0]]).all()
    assert (Reader(path, ()).read(0, 0, 20, 30)[0] == array).all()
    assert Reader(path, ()).n_bands == 4


def test_valid_pixels_do_not_depend_on_the_bands_read(tmp_path, grid, write_image):
    """A band marked as alpha masks pixels for every choice of bands if it holds transparency, and for none if it holds infrared."""
    rng = np.random.default_rng(0)
    array = rng.integers(1, 255, (4, 64, 64)).astype(np.uint8)
    infrared = array.copy()
    infrared[3, :20] = 0  # water
    alpha = array.copy()
    alpha[3] = np.where(np.arange(64)[:, None] < 20, 0, 255)
    steps = array.copy()
    steps[3] = (np.arange(64) // 8)[None] * 16  # a soft border, nowhere opaque
    dark = array.copy()
    dark[3] = (np.arange(64) // 8)[None]  # a lake: few values, all of them low
    black = array.copy()
    black[3] = 0
    frame = array.copy()
    frame[:, :20] = 0  # infrared and colours: the frame of a mosaic, which no colour tells from transparency
    zero_one = array.copy()
    zero_one[3] = np.arange(64)[None] < 40
    nodata = array.copy()
    nodata[:3, :20], nodata[3, :20] = 0, np.arange(20)[:, None]  # no data only where infrared is 0 too
    for name, pixels, want, options in (
        ("infrared", infrared, np.ones((64, 64), bool), {"photometric": "RGB", "alpha": "YES"}),
        ("alpha", alpha, alpha[3] > 0, {"photometric": "RGB", "alpha": "YES"}),
        ("steps", steps, steps[3] > 0, {"photometric": "RGB", "alpha": "YES"}),
        ("dark", dark, np.ones((64, 64), bool), {"photometric": "RGB", "alpha": "YES"}),
        ("black", black, np.ones((64, 64), bool), {"photometric": "RGB", "alpha": "YES"}),
        ("frame", frame, frame[3] > 0, {"photometric": "RGB", "alpha": "YES"}),
        ("zero_one", zero_one, zero_one[3] > 0, {"photometric": "RGB", "alpha": "YES"}),
        ("nodata", nodata, (nodata != 0).any(axis=0), {"photometric": "RGB", "alpha": "NO", "nodata": 0}),
    ):
        path = write_image(tmp_path / f"{name}.tif", pixels, grid(64, 64), **options)
        for bands in ((1, 2, 3), (1, 2, 3, 4), (4,), ()):
            image, valid = (reader := Reader(path, bands)).read(0, 0, 64, 64)
            assert (valid == want).all(), (name, bands)
            assert (reader.valid(0, 0, 64, 64) == valid).all()
            assert (image == pixels[[b - 1 for b in bands or (1, 2, 3, 4)]]).all()


def test_nan_and_infinity_are_no_data_and_come_as_zero(tmp_path, grid, write_image):
    array = np.ones((3, 10, 10), np.float32)
    array[1, 2, 3], array[0, 4, 5] = np.nan, np.inf
    image, valid = (reader := Reader(write_image(tmp_path / "a.tif", array, grid(10, 10)))).read(0, 0, 10, 10)
    assert sorted(map(tuple, np.argwhere(~valid))) == [(2, 3), (4, 5)]
    assert np.isfinite(image).all()
    assert (reader.valid(0, 0, 10, 10) == valid).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_photographs_without_a_grid_are_read_in_silence(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / f"a.{suffix}", **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = Reader(tmp_path / f"a.{suffix}")
        image, valid = reader.read(0, 0, 40, 50)
    assert valid.all()
    assert reader.grid == Grid(40, 50)
    assert "not georeferenced" in str(reader.grid)
    assert (
        np.abs(image - np.asarray(Image.open(tmp_path / f"a.{suffix}"), np.float32).transpose(2, 0, 1)).max() <= 2
    )  # two decoders of JPEG


def test_many_threads_and_a_pickled_copy_read_the_same(windows_file):
    reader, array, _ = windows_file
    copy = pickle.loads(pickle.dumps(reader))
    wrong = []

    def work(k):
        for _ in range(30):
            got = (reader if k % 2 else copy).read(k, k, 20, 20)[0]
            if not (got == array[:, k : k + 20, k : k + 20]).all():
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == []


def test_more_files_than_the_pool_holds(tmp_path, grid, write_image):
    readers = [Reader(write_image(tmp_path / f"{i}.tif", np.full((3, 8, 8), i, np.uint8), grid(8, 8))) for i in range(80)]
    for _ in range(2):
        assert [int(r.read(0, 0, 1, 1)[0][0, 0, 0]) for r in readers] == list(range(80))


def test_a_file_replaced_under_its_name_is_read_anew(tmp_path, grid, write_image):
    path = write_image(tmp_path / "a.tif", np.full((3, 8, 8), 1, np.uint8), grid(8, 8))
    assert Reader(path).read(0, 0, 1, 1)[0][0, 0, 0] == 1
    write_image(tmp_path / "b.tif", np.full((3, 8, 8), 2, np.uint8), grid(8, 8)).replace(path)
    assert Reader(path).read(0, 0, 1, 1)[0][0, 0, 0] == 2


# ---- labels ------------------------------------------------------------------------------------------------------------

COLOURS = ClassTable(
    (LabelClass("land", ((0, 0, 0),), (0, 0, 0)), LabelClass("crop", ((128, 0, 0), (0, 128, 0)), (0, 255, 0))), ignore=((255, 255, 255),)
)  # fmt: skip


def test_palettes_colours_and_codes_become_indices(tmp_path, grid, write_image, table):
    codes = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    want = np.array([0, 1, 1], np.uint8)[codes]
    paletted = Image.fromarray(codes, mode="P")
    paletted.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    paletted.save(tmp_path / "p.png")
    paletted.convert("RGB").save(tmp_path / "c.png")
    for name in ("p.png", "c.png"):
        assert (read_labels(tmp_path / name, COLOURS) == want).all()
        assert (read_labels(tmp_path / name, COLOURS, 5, 6, 10, 12) == want[5:15, 6:18]).all()
    assert (read_labels(tmp_path / "p.png", table) == codes).all()  # a table of numbers reads the indices of the palette


def test_a_label_window_beyond_the_frame_and_nodata_are_ignored(tmp_path, grid, write_image, table):
    codes = np.ones((1, 30, 40), np.uint8)
    codes[0, :5] = 77
    path = write_image(tmp_path / "a.tif", codes, grid(30, 40), nodata=77)
    out = read_labels(path, table, -4, 30, 20, 20)
    assert (out[:9] == IGNORE).all()
    assert (out[:, 10:] == IGNORE).all()
    assert (out[9:, :10] == 1).all()
    zero = write_image(tmp_path / "z.tif", codes * 0, grid(30, 40), nodata=0)
    assert (read_labels(zero, table) == 0).all()  # 0 is the code of a class: the table wins over a declaration


def test_unknown_codes_name_the_file_and_show_a_histogram(tmp_path, grid, write_image, table):
    path = write_image(tmp_path / "a.tif", np.full((1, 30, 40), 9, np.uint8), grid(30, 40))
    with pytest.raises(Disagreement, match=r"a\.tif.*9: 100\.00%"):
        read_labels(path, table)


# ---- probabilities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_probabilities_come_back_within_a_step_and_sum_to_one(tmp_path, grid, k):
    p = np.random.default_rng(k).dirichlet([0.3] * k, (70, 90)).transpose(2, 0, 1).astype(np.float32)
    write_probabilities(tmp_path / "p.tif", p, grid(70, 90), names=tuple("abcdefg"[:k]))
    got = read_probabilities(tmp_path / "p.tif")
    assert np.abs(got.sum(axis=0) - 1).max() < 1e-6
    assert np.abs(got - p).max() <= 0.5 * k / 255 + 1e-6
    assert (read_probabilities(tmp_path / "p.tif", 3, 4, 20, 30) == got[:, 3:23, 4:34]).all()
    with rasterio.open(tmp_path / "p.tif") as file:
        assert file.descriptions == tuple("abcdefg"[:k])
        assert file.mask_flag_enums[0] == [rasterio.enums.MaskFlags.all_valid]  # a fourth class is no transparency
    hard = np.eye(k, dtype=np.float32)[np.random.default_rng(0).integers(0, k, (70, 90))].transpose(2, 0, 1)
    write_probabilities(tmp_path / "h.tif", hard, grid(70, 90))
    assert (read_probabilities(tmp_path / "h.tif") == hard).all()


def test_logits_are_not_probabilities(tmp_path, grid, write_image):
    path = write_image(tmp_path / "a.tif", np.random.default_rng(0).normal(size=(3, 9, 9)).astype(np.float32), grid(9, 9))
    with pytest.raises(Disagreement, match="softmax"):
        read_probabilities(path)


# ---- metres ------------------------------------------------------------------------------------------------------------


def test_pixel_sizes_on_the_ground():
    assert GRIDS["projected"].metres() == pytest.approx(0.5, rel=1e-3)
    assert GRIDS["rotated"].metres() == pytest.approx(0.5, rel=1e-3)
    assert GRIDS["south-up"].metres() == pytest.approx(0.5, rel=1e-3)
    lat = np.radians(52.5 - 150e-5)  # a degree of longitude and of latitude there, by series (NIMA TR 8350.2)
    east = 111412.84 * np.cos(lat) - 93.5 * np.cos(3 * lat) + 0.118 * np.cos(5 * lat)
    north = 111132.92 - 559.82 * np.cos(2 * lat) + 1.175 * np.cos(4 * lat)
    assert GRIDS["geographic"].metres() == pytest.approx(1e-5 * np.sqrt(east * north), rel=1e-4)
    mercator = Grid(10, 10, Affine(1, 0, 0, 0, -1, 8399737.889818357), CRS.from_epsg(3857))  # 60 degrees north: scale 2
    assert mercator.metres() == pytest.approx(0.5, rel=3e-3)
    assert Grid(10, 10).metres() is None


def test_metres_without_a_crs_are_refused():
    assert GRIDS["projected"].pixels(4, "the reach") == pytest.approx(8, rel=1e-3)
    with pytest.raises(BadRequest, match=r"metres.*no coordinate reference system.*hint|no coordinate reference system") as error:
        Grid(10, 10).pixels(4, "the reach")
    assert error.value.exit_code == 2


def test_grids_that_differ_in_one_number_are_different():
    g = GRIDS["projected"]
    assert g == Grid(300, 400, Affine(0.5, 0, 500000, 0, -0.5, 4600000), CRS.from_wkt(UTM.to_wkt()))
    for other in (
        Grid(301, 400, g.transform, g.crs),
        Grid(300, 400, Affine(0.5, 0, 500000.0000001, 0, -0.5, 4600000), g.crs),
        Grid(300, 400, g.transform, CRS.from_epsg(25833)),
        Grid(300, 400, g.transform),
    ):
        assert other != g
        assert str(other) != str(g)
        assert "\n" not in str(other)


# ---- bad files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_truncated_file_is_one_clear_error(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(array).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Disagreement, match=r"truncated") as error:
        Reader(path).read(200, 0, 100, 300)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 4


def test_the_error_of_one_file_is_never_told_of_the_next(tmp_path, grid, write_image, table):
    """rasterio leaves GDAL's last error standing after a failed read; asking the next file for its colours raised it there."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 200, 200), np.uint8)
    whole = write_image(tmp_path / "whole.tif", noise, grid(200, 200), nodata=255)
    (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[:60_000])
    good = write_image(tmp_path / "good.tif", np.zeros((1, 200, 200), np.uint8), grid(200, 200))
    for _ in range(3):
        with pytest.raises(Disagreement, match=r"cannot read .*cut\.tif"):
            Reader(tmp_path / "cut.tif").read(0, 0, 200, 200)
        assert (CoarseMap(good, table).strip(0, 200).index == 0).all()


def test_too_few_bands_no_file_and_no_raster(tmp_path, grid, write_image):
    path = write_image(tmp_path / "a.tif", np.zeros((1, 9, 9), np.uint8), grid(9, 9))
    with pytest.raises(Disagreement, match=r"1 band.*band 2.*Allowed: 1"):
        Reader(path).read(0, 0, 9, 9)
    with pytest.raises(Missing, match="no such raster") as error:
        _ = Reader(tmp_path / "none.tif").grid
    assert error.value.exit_code == 3
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "folder.tif").mkdir()
    for name in ("text.tif", "folder.tif"):
        with pytest.raises(Disagreement, match="not a raster"):
            _ = Reader(tmp_path / name).grid
    write_image(tmp_path / "c.tif", np.zeros((3, 9, 9), np.complex64), grid(9, 9))
    with pytest.raises(Disagreement, match="complex"):
        _ = Reader(tmp_path / "c.tif").grid


def test_output_names_and_folders_are_checked_first(tmp_path, grid, table):
    with pytest.raises(BadRequest, match="GeoTIFF"):
        write_class_map(tmp_path / "a.png", np.zeros((9, 9), np.uint8), grid(9, 9))
    with pytest.raises(Missing, match="mkdir"):
        write_class_map(tmp_path / "no" / "a.tif", np.zeros((9, 9), np.uint8), grid(9, 9))


def test_a_read_only_file_system_is_one_clear_error(tmp_path, monkeypatch):
    """There even removing a file that does not exist is refused."""

    def refused(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(Missing, match=r"cannot write .*a\.tif: Read-only file system. Try: an output in a folder you may write to"):
        check_output(tmp_path / "a.tif")


def test_an_error_while_writing_keeps_the_old_file_and_leaves_nothing_else(tmp_path, grid, table):
    path = tmp_path / "a.tif"
    write_class_map(path, np.zeros((300, 300), np.uint8), grid(300, 300), table)
    before = path.read_bytes()

    def half() -> None:
        with RasterWriter(path, grid(300, 300)) as writer:
            writer.write(0, np.ones((100, 300), np.uint8))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


# ---- real files --------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(("name", "nodata"), [("RGB.byte.tif", 0), ("OSBS_029.tif", 255)])
def test_nodata_and_grid_of_real_scenes_survive(shared, tmp_path, table, name, nodata):
    path = shared / "data" / "scenes" / name
    reader = Reader(path)
    assert reader.nodata == nodata
    _, valid = reader.read(0, 0, reader.grid.height, reader.grid.width)
    with rasterio.open(path) as file:
        assert (valid == (file.read() != nodata).any(axis=0)).all()
    index = np.where(valid, 1, IGNORE).astype(np.uint8)
    write_class_map(tmp_path / "m.tif", index, reader.grid, table, cog=True)
    assert Grid.of(tmp_path / "m.tif") == reader.grid
    with rasterio.open(tmp_path / "m.tif") as ours, rasterio.open(path) as theirs:
        assert ours.profile["transform"] == theirs.profile["transform"]
        assert ours.crs == theirs.crs
        assert (ours.read_masks(1).astype(bool) == valid).all()
