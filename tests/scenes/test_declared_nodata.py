"""Declared nodata: when it means unknown, when it is a class, and what is refused; within a file and over a set."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, ClassTable, LabelClass, binary
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.rasters.codes import settled
from idgbr.rasters.read import Reader, read_labels
from idgbr.scores.files import guess_table, look, side_of

BUILDING = binary("building")
ZERO_ONE = binary("building", codes=(1,))
FULL = binary("building", codes=(255,))


def test_declared_nodata_wins_when_another_code_of_its_class_occurs(write_map, mask):
    unknown = np.zeros(mask.shape, bool)
    unknown[:, :6] = True
    want = np.where(unknown, IGNORE, mask)
    for name, values, nodata in (("255.tif", np.where(unknown, 255, mask), 255), ("1.tif", np.where(unknown, 1, mask * 255), 1)):
        for path in (
            write_map(values.astype(np.uint8), name, nodata=nodata),
            write_map(values.astype(np.int16), f"i2_{name}", nodata=nodata),
            write_map(values.astype(np.float32), f"f4_{name}", nodata=nodata),
        ):
            assert (read_labels(path, BUILDING) == want).all(), path.name
            assert (read_labels(path, BUILDING, 0, 0, 3, 48) == want[:3]).all(), "a window without the other code"
            assert (CoarseMap(path, BUILDING).strip(0, 32).index == want).all()
    assert (read_labels(write_map(mask * 255, "z.tif", nodata=0), BUILDING) == mask).all()  # 0 is the only code of its class
    assert (read_labels(write_map(np.full_like(mask, 255), "all.tif", nodata=255), BUILDING) == IGNORE).all()
    several = ClassTable((LabelClass("a", (0,), (0, 0, 0)), LabelClass("b", (3, 5), (9, 9, 9))))
    five = write_map(np.where(unknown, 5, mask * 3).astype(np.uint8), "five.tif", nodata=5)
    assert (read_labels(five, several) == want).all()


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_0_and_declared_255_alone_is_refused_and_in_a_set_it_is_the_class(write_map, mask, kind):
    """gdal_calc.py declares 255 by itself; but the same file may be a tile of 0, 1 and nodata 255 that has no building."""
    paths = [write_map((m * 255).astype(kind), f"{i}.tif", nodata=255) for i, m in enumerate((mask, np.flip(mask)))]
    for read in (read_labels, lambda path, table: CoarseMap(path, table).strip(0, 32).index):
        with pytest.raises(Disagreement, match=r"255 is declared as nodata.*255: 10.42%.*255 alone if it is building"):
            read(paths[0], BUILDING)
        only_255, only_1 = binary("building", codes=(255,)), binary("building", codes=(1,))
        assert (read(paths[0], only_255) == mask).all()
        assert (read(paths[0], only_1) == np.where(mask, IGNORE, 0)).all()
    table, notes = settled(paths, BUILDING)
    assert "is building all the same" in notes[0]
    assert (read_labels(paths[0], table) == mask).all()
    assert (read_labels(paths[1], table) == np.flip(mask)).all()
    values = [look(path) for path in paths]
    with pytest.raises(Disagreement, match="may be the class or unknown"):
        guess_table({"pred": values[:1]}, 255)
    table, masks = guess_table({"pred": values}, 255)
    assert (side_of("pred", values, table, masks["pred"], 255).read(paths[0], 0, 0, 32, 48) == mask).all()
    side = side_of("target", values, BUILDING, False, 255)
    assert (side.read(paths[0], 0, 0, 32, 48) == mask).all()


def test_a_mixture_of_1_and_255_is_refused_unless_declared(write_map, mask):
    mixed = mask.copy()
    mixed[:2] = 255
    for path in (
        write_map(mixed),
        write_map(mixed.astype(np.int32), "i4.tif"),
        write_map(np.repeat(mixed[None], 3, 0), "rgb.tif", photometric="RGB"),
    ):
        with pytest.raises(Disagreement, match=r"1 and 255 both occur.*0: \d.*255: 6.25%"):
            read_labels(path, BUILDING, 0, 0, 1, 1)
        with pytest.raises(Disagreement, match="1 and 255"):
            CoarseMap(path, BUILDING)
    one = ClassTable(ZERO_ONE.classes, (255,))
    assert (read_labels(write_map(mixed), one) == np.where(mixed == 255, IGNORE, mixed)).all()


def test_a_set_of_files_is_settled_together(tmp_path, write_map, mask):
    """Tiles of 0, 1 and declared 255; one has no building. Alone its 255 could be the class, in its set it is not."""
    border = np.zeros_like(mask)
    border[:, :5] = 255
    paths = [write_map(np.where(border > 0, border, mask), "a.tif", nodata=255), write_map(border, "b.tif", nodata=255)]
    table, notes = settled(paths, BUILDING)
    assert "255 is declared as nodata in 2 labels" in notes[0]
    assert (read_labels(paths[1], table) == np.where(border > 0, IGNORE, 0)).all()
    assert settled(paths[1:], BUILDING) == (BUILDING, ())
    with pytest.raises(Disagreement, match="255 is declared as nodata"):
        read_labels(paths[1], BUILDING)
    with pytest.raises(Disagreement, match="but is a class in"):
        settled([*paths, write_map(mask * 255, "c.tif")], BUILDING)
    values = {"target": [look(path) for path in paths]}
    side = side_of("target", values["target"], BUILDING, False, 255)
    assert (side.read(paths[1], 0, 0, 32, 48) == np.where(border > 0, IGNORE, 0)).all()


def test_nodata_that_the_samples_cannot_hold_is_no_error(write_map, mask):
    """Codes and nodata beyond the type: as VRTs and other programs declare them."""
    table = ClassTable((LabelClass("a", (0, -1), (0, 0, 0)), LabelClass("b", (1, 2**40), (1, 1, 1))), (-9999, 70000))
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        path = write_map(mask.astype(kind), f"{kind}.tif")
        assert (read_labels(path, table) == mask).all(), kind
        text = f'<VRTDataset rasterXSize="48" rasterYSize="32"><VRTRasterBand dataType="{_gdal(kind)}" band="1">'
        text += "<NoDataValue>-9999.5</NoDataValue>"
        vrt = path.with_suffix(".vrt")
        vrt.write_text(f"{text}<SimpleSource><SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>")
        assert (read_labels(vrt, table) == mask).all(), kind
        assert Reader(vrt, (1,)).read(0, 0, 32, 48)[1].all()


def _gdal(kind: str) -> str:
    return {"uint8": "Byte", "int8": "Int8", "float32": "Float32", "float64": "Float64"}.get(
        kind, kind.replace("ui", "UI").replace("int", "Int")
    )


def test_colours_are_unknown_only_where_all_bands_say_so(tmp_path, write_map):
    colours = np.array([[255, 255, 255], [0, 0, 255], [0, 255, 0], [9, 9, 9]], np.uint8)
    table = ClassTable(tuple(LabelClass(f"c{i}", (tuple(c.tolist()),), (0, 0, i)) for i, c in enumerate(colours)))
    index = np.repeat(np.arange(4, dtype=np.uint8), 12)[None].repeat(32, 0)
    rgb = np.moveaxis(colours[index], -1, 0)
    for nodata in (0, 9, 255, 7):
        assert (read_labels(write_map(rgb, f"n{nodata}.tif", photometric="RGB", nodata=nodata), table) == index).all(), nodata
    gone = rgb.copy()
    gone[:, :4] = 7
    assert (read_labels(write_map(gone, "gone.tif", photometric="RGB", nodata=7), table)[:4] == IGNORE).all()
    entries = {i: tuple(c.tolist()) for i, c in enumerate(colours)}
    for nodata in range(4):  # the entry's colour is a class of the table
        assert (read_labels(write_map(index, f"p{nodata}.tif", palette=entries, nodata=nodata), table) == index).all(), nodata
    other = np.where(np.arange(32)[:, None] < 4, 4, index).astype(np.uint8)
    assert (read_labels(write_map(other, "p.tif", palette=entries, nodata=4), table)[:4] == IGNORE).all()
    again = write_map(other, "q.tif", palette=entries | {4: (255, 255, 255)}, nodata=4)  # white a second time, and white occurs
    assert (read_labels(again, table)[:4] == IGNORE).all()
    Image.fromarray(np.moveaxis(rgb, 0, -1)).save(tmp_path / "t.png", transparency=(0, 0, 255))
    assert (read_labels(tmp_path / "t.png", table) == index).all()
