"""Masks, palettes, places and sources that lie beside an unchanged raster file are noticed; what viewers add is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from miniature_layouts import drawn, picture

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.labels import IGNORE, binary
from idgbr.rasters.beside import aux_digest, files_beside, vrt_sources
from idgbr.rasters.read import read_labels

VRT = (
    '<VRTDataset rasterXSize="{w}" rasterYSize="{h}"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    '<SourceFilename relativeToVRT="1">{name}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
)
STATISTICS = (
    '<PAMDataset><PAMRasterBand band="1"><Histograms><HistItem><HistMin>0</HistMin></HistItem></Histograms>'
    '<Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata></PAMRasterBand></PAMDataset>'
)


@pytest.fixture
def folder(tmp_path: Path) -> DataConfig:
    pixels, labels = drawn("a", 2)
    picture(tmp_path / "images" / "a.png", pixels)
    picture(tmp_path / "masks" / "a.png", labels * np.uint8(255))
    (tmp_path / "classes.json").write_text(binary("building").to_json())
    return DataConfig(source="folder", root=str(tmp_path))


def nodata_of(path: Path, value: int) -> None:
    path.with_name(f"{path.name}.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><NoDataValue>{value}</NoDataValue></PAMRasterBand></PAMDataset>'
    )


def masked(path: Path) -> None:
    with rasterio.open(path) as source:
        shape = source.shape
    with rasterio.open(f"{path}.msk", "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint8") as file:
        file.write(np.full((1, *shape), 255, np.uint8))
        file.update_tags(INTERNAL_MASK_FLAGS_1="2")  # one mask for all bands


@pytest.mark.parametrize(
    "change",
    [
        lambda root: nodata_of(root / "masks" / "a.png", 7),
        lambda root: nodata_of(root / "images" / "a.png", 7),
        lambda root: masked(root / "masks" / "a.png"),
        lambda root: (root / "images" / "a.pgw").write_text("0.3\n0\n0\n-0.3\n500000\n5000000\n"),
        lambda root: (root / "images" / "A.WLD").write_text("0.3\n0\n0\n-0.3\n500000\n5000000\n"),
    ],
    ids=["nodata of a mask", "nodata of an image", "mask file", "world file", "world file in capitals"],
)
def test_a_file_beside_an_unchanged_one_is_another_data_set(change: Callable[[Path], object], folder: DataConfig) -> None:
    before = datasets.input_digest(folder)
    change(Path(folder.root))
    assert datasets.input_digest(folder) != before


def test_the_sources_of_a_virtual_raster_count(folder: DataConfig) -> None:
    masks = Path(folder.root) / "masks"
    (masks / "a.png").rename(masks.parent / "labels.png")
    with rasterio.open(masks.parent / "labels.png") as source:
        h, w = source.shape
    (masks / "a.vrt").write_text(VRT.format(w=w, h=h, name="../inner.vrt"))
    (masks.parent / "splits.csv").write_text("image,mask,split\nimages/a.png,masks/a.vrt,train\n")
    (masks.parent / "inner.vrt").write_text(VRT.format(w=w, h=h, name="labels.png"))
    assert [p.resolve().name for p in files_beside([masks / "a.vrt"])[masks / "a.vrt"]] == ["inner.vrt", "labels.png"]
    before = datasets.input_digest(folder)
    picture(masks.parent / "labels.png", np.zeros((h, w), np.uint8))
    assert datasets.input_digest(folder) != before
    assert vrt_sources(masks.parent / "labels.png") == []


def test_statistics_of_a_viewer_and_overviews_change_nothing(folder: DataConfig) -> None:
    before = datasets.input_digest(folder)
    aux = Path(folder.root) / "images" / "a.png.aux.xml"
    aux.write_text(STATISTICS)
    (aux.parent / "a.png.ovr").write_bytes(b"overviews")
    (aux.parent / "b.png.msk").write_bytes(b"of another file")
    assert aux_digest(aux) is None
    assert datasets.input_digest(folder) == before
    nodata_of(aux.parent / "a.png", 7)
    alone = aux_digest(aux)
    aux.write_text(aux.read_text().replace("</PAMRasterBand>", '<Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata></PAMRasterBand>'))
    assert aux_digest(aux) == alone


def test_a_process_that_goes_on_sees_nodata_and_masks_that_come_later(folder: DataConfig) -> None:
    path = Path(folder.root) / "masks" / "a.png"
    table = binary("building")
    before = read_labels(path, table)
    assert set(np.unique(before)) == {0, 1}
    masked(path)
    with rasterio.open(f"{path}.msk", "r+") as file:
        mask = file.read(1)
        mask[:5] = 0
        file.write(mask, 1)
    found = read_labels(path, table)
    assert (found[:5] == IGNORE).all()
    assert (found[5:] == before[5:]).all()
