"""What other programs read of a refined map, and `rio idgbr`."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from rasterio.enums import ColorInterp
from scene_doubles import refine, small_refiner

from idgbr.commands.rio import rio_idgbr
from idgbr.errors import BadRequest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_refiner(tmp_path_factory.mktemp("model"))


@pytest.fixture
def inputs(tmp_path: Path, grid: Any, write_image: Any) -> tuple[Path, Path]:
    """A scene of 64 x 64 px whose first three columns are unknown, and a coarse map."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (3, 64, 64)).astype(np.uint8)
    pixels[:, :, :3] = 0
    scene = write_image(tmp_path / "scene.tif", pixels, grid(64, 64))
    with rasterio.open(scene, "r+") as file:
        file.nodata = 0
    return scene, write_image(tmp_path / "coarse.tif", (np.indices((64, 64))[1] > 30).astype(np.uint8)[None], grid(64, 64))


def test_a_map_says_its_classes_colours_and_nodata_to_gdal_and_qgis(model_dir: Path, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "refined.tif"
    refine(*inputs, out, model=str(model_dir), steps=1, style=True)
    with rasterio.open(out) as file:
        assert (file.count, file.dtypes, file.nodata) == (1, ("uint8",), 255)
        assert file.colorinterp == (ColorInterp.palette,)
        colours = file.colormap(1)
        assert (colours[0], colours[1]) == ((40, 40, 40, 255), (255, 80, 40, 255))
        assert colours[255][3] == 0, "nodata is transparent"
        assert (file.tags()["CLASS_0"], file.tags()["CLASS_1"]) == ("land", "building")
        index = file.read(1)
        assert set(np.unique(index[:, 3:])) <= {0, 1}
        assert (index[:, :3] == 255).all()
        assert (file.read_masks(1) == np.where(index == 255, 0, 255)).all()
    root = ET.parse(tmp_path / "refined.qml").getroot()
    assert root.tag == "qgis"
    renderer = root.find("./pipe/rasterrenderer")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = [(e.get("value"), e.get("label"), e.get("color")) for e in renderer.iterfind("colorPalette/paletteEntry")]
    assert entries == [("0", "land", "#282828"), ("1", "building", "#ff5028")]
    out.unlink()
    with pytest.raises(BadRequest, match=r"refined\.qml is there already"):
        refine(*inputs, out, model=str(model_dir), steps=1, style=True)
    assert not out.exists()


def test_rio_finds_the_command_by_its_entry_point(tmp_path: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["rasterio.rio_plugins"]
    about = tmp_path / "idgbr_here-0.dist-info"  # also where idgbr was installed before it had the command
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: idgbr-here\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[rasterio.rio_plugins]\n" + "".join(f"{k} = {v}\n" for k, v in declared.items()))
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    code = "from rasterio.rio.main import main_group; main_group(['idgbr', '--help'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=True
    )
    assert "Sharpen COARSE" in ran.stdout


def test_rio_idgbr_refines_and_keeps_the_exit_codes(model_dir: Path, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    scene, coarse = map(str, inputs)
    words = [scene, coarse, "-o", str(tmp_path / "out.tif"), "--model", str(model_dir)]
    ran = CliRunner().invoke(rio_idgbr, words)
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "out.tif").is_file()
    assert (tmp_path / "out.qml").is_file()
    again = CliRunner().invoke(rio_idgbr, words)
    assert again.exit_code == 2
    assert "is there already" in again.output
