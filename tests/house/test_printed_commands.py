"""Command lines and options in messages can be pasted into a shell, whatever the paths are called."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from idgbr.errors import IdgbrError
from idgbr.files import check_output, check_place
from idgbr.rasters import grid
from idgbr.rasters.write import RasterWriter, write_class_map
from sweeps.run import driver, search

ODD = ["my data", "it's here", "$HOME;x", "a&b (1)", "北京 图", 'say "so"']


def message(call: Callable[[], object]) -> str:
    with pytest.raises(IdgbrError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("odd", ODD)
def test_hints_about_files_can_be_pasted(odd: str, tmp_path: Path) -> None:
    hint = message(lambda: check_output(tmp_path / odd / "map.png")).partition("Try: ")[2]
    assert shlex.split(hint) == ["-o", str(tmp_path / odd / "map.tif")]
    hint = message(lambda: check_place(tmp_path / odd / "map.tif")).partition("Try: ")[2]
    assert shlex.split(hint) == ["mkdir", "-p", str(tmp_path / odd)]
    (tmp_path / odd).mkdir()
    for name, side in (("a b.tif", 8), ("c.tif", 9)):
        write_class_map(tmp_path / odd / name, np.zeros((side, side), np.uint8), grid.Grid(side, side))
    first, second = (str(tmp_path / odd / name) for name in ("a b.tif", "c.tif"))
    text = message(lambda: grid.require_same_grid(grid.Grid.of(first), grid.Grid.of(second), first, second))
    found = re.search(r"by nearest neighbour: `(.*)`$", text)
    assert found is not None
    assert shlex.split(found[1]) == ["idgbr", "align", second, "--like", first, "-o", "ALIGNED.tif"]
    damaged = tmp_path / odd / "damaged.tif"
    damaged.write_text("no raster")
    found = re.search(r"`(rio info .*)` shows", message(lambda: grid.Grid.of(damaged)))
    assert found is not None
    assert shlex.split(found[1]) == ["rio", "info", str(damaged)]


@pytest.mark.parametrize("odd", ODD)
def test_lines_of_sweeps_can_be_pasted(odd: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"study": odd, "goals": ["miou"], "states": {}, "best": [], "journal": f"/data/{odd}/s.optuna.log"}
    monkeypatch.setattr(search, "result", lambda *_: found)
    search.show(SimpleNamespace(name=odd), None)  # type: ignore[arg-type]
    assert shlex.split(capsys.readouterr().out.splitlines()[-1]) == ["optuna-dashboard", found["journal"]]
    given = ["run", f"{odd}.py:study", f"data.root=/x/{odd}", "--store", odd]
    monkeypatch.setattr(sys, "argv", ["sweeps", *given, "--retry-failed"])
    assert shlex.split(driver.resume_line(SimpleNamespace(name="s"))) == ["python", "-m", "sweeps", *given]  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert shlex.split(driver.resume_line(SimpleNamespace(name=odd))) == ["python", "-m", "sweeps", "run", odd]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["map[1]", "map*", "a?b", "[!x]", "map[1-9]"])
def test_names_of_outputs_are_no_patterns(name: str, tmp_path: Path) -> None:
    """Neither is a temporary file left, nor is a file of somebody else taken for one."""
    here = grid.Grid(64, 64)
    write_class_map(tmp_path / f"{name}.tif", np.zeros((64, 64), np.uint8), here, cog=True)
    with pytest.raises(ValueError, match="stopped"), RasterWriter(tmp_path / f"{name}.tif", here):
        raise ValueError("stopped")
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.tif"]


def test_removing_by_the_beginning_of_a_name_takes_no_other_file(tmp_path: Path) -> None:
    from idgbr.files import remove_beginning

    for name in ("a[1].x", "a[1].y", "a1.x", "b.x"):
        (tmp_path / name).touch()
    remove_beginning(tmp_path, "a[1].")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a1.x", "b.x"]


def test_polygons_leave_nothing_behind_whatever_their_name(tmp_path: Path) -> None:
    from idgbr.labels import binary
    from idgbr.rasters.polygons import write_polygons

    index = np.zeros((32, 32), np.uint8)
    index[8:20, 8:20] = 1
    write_class_map(tmp_path / "m.tif", index, grid.Grid(32, 32), binary("building"))
    for name in ("p[1].gpkg", "p*.geojson"):
        write_polygons(tmp_path / name, tmp_path / "m.tif", binary("building"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tif", "p*.geojson", "p[1].gpkg"]
