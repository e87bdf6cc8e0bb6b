"""`idgbr score`: names of any kind are printed as they are, every file counts or is named, and gains compare what both maps define."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from idgbr import cli
from idgbr.commands.score import score


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = "PNG" if path.suffix == ".png" else "GTiff"
    with rasterio.open(path, "w", driver=driver, width=values.shape[1], height=values.shape[0], count=1, dtype="uint8") as file:
        file.write(values.astype(np.uint8), 1)
    return path


def square(row: int = 20, col: int = 20, side: int = 12, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    out[row : row + side, col : col + side] = 1
    return out


def result(capsys: pytest.CaptureFixture[str], *args: Any, **options: Any) -> dict[str, Any]:
    score(*args, json=True, **options)
    return json.loads(capsys.readouterr().out)


NAMES = ["roof [bold]", "[/]", "[red]paved[/red] [link=x]", ":house: :road:", "a\\[b", "[i", "屋顶 [新]"]


@pytest.mark.parametrize("name", NAMES)
def test_class_names_are_printed_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    table = {"classes": [{"name": "bg", "codes": [0], "color": [0, 0, 0]}, {"name": name, "codes": [1], "color": [255, 0, 0]}]}
    (tmp_path / "t.json").write_text(json.dumps(table), encoding="utf-8")
    pred, target = write(tmp_path / "p.tif", square(21)), write(tmp_path / "t.tif", square())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["score", str(pred), str(target), "--coarse", str(pred), "--classes", str(tmp_path / "t.json")])
    assert not stopped.value.code
    assert name in capsys.readouterr().out


def test_names_in_notes_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for side in ("pred", "truth"):
        write(tmp_path / side / "a[1].tif", square())
    (tmp_path / "pred" / "notes [draft].txt").write_text("x")
    score(tmp_path / "pred", tmp_path / "truth")
    assert "notes [draft].txt" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["__init__", "_", "_MASK_01", "~temporary", "#7", "北京_1"])
def test_every_class_map_of_a_folder_counts_whatever_its_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "truth" / f"{name}.tif", square())
    write(tmp_path / "pred" / f"{name}.tif", square(40))
    for side in ("pred", "truth"):
        write(tmp_path / side / "good.tif", square())
    found = result(capsys, tmp_path / "pred", tmp_path / "truth")
    assert found["rasters"] == 2
    assert found["notes"] == []
    assert found["label_sets"]["full"]["scores"]["oa"]["score"] == 1 - 2 * 144 / (2 * 64 * 64)


def test_what_is_no_class_map_is_named_as_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("pred", "truth"):
        write(tmp_path / side / "a.tif", square())
    write(tmp_path / "pred" / "more" / "b.tif", square())
    write(tmp_path / "pred" / ".hidden.tif", square())
    (tmp_path / "truth" / "a.npy").write_bytes(b"")
    assert result(capsys, tmp_path / "pred", tmp_path / "truth")["notes"] == [
        "pred: left out, for they are no class maps: .hidden.tif, more/",
        "target: left out, for they are no class maps: a.npy",
    ]


def test_one_name_in_two_forms_of_unicode_is_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, form in (("pred", "NFD"), ("truth", "NFC")):
        write(tmp_path / side / f"{unicodedata.normalize(form, 'Köln é')}.tif", square())
    assert result(capsys, tmp_path / "pred", tmp_path / "truth")["rasters"] == 1


# ---- gains --------------------------------------------------------------------------------------------------------------------


def scores(capsys: pytest.CaptureFixture[str], folder: Path, pred: Any, coarse: Any, target: Any, **options: Any) -> dict[str, Any]:
    paths = [write(folder / f"{name}.png", values) for name, values in (("p", pred), ("t", target), ("c", coarse))]
    return result(capsys, *paths[:2], coarse=paths[2], **options)["label_sets"]["full"]["scores"]


SURFACE = ("hd95", "hd95_directed", "assd")


def test_deleting_one_of_two_classes_in_one_of_two_tiles_is_no_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tile with the loss drops out of both means; the other tile is compared, and there nothing changed."""
    target = np.zeros((64, 128), np.uint8)
    target[20:40, 20:40] = target[20:40, 84:104] = 1
    coarse = np.roll(target, 6, 1)
    pred = coarse.copy()
    pred[:, :64] = 0
    found = scores(capsys, tmp_path, pred, coarse, target, surface=True, tile_px=64)
    for name in SURFACE:
        assert found[name]["gain_of"] == 3
        assert found[name]["gain_left_out"] == 1
        assert found[name]["gain"] <= 0


def test_a_gain_that_is_defined_nowhere_is_null_with_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, coarse = np.ones((32, 32), np.uint8), square(4, 4, 8, (32, 32))
    found = scores(capsys, tmp_path, np.zeros_like(target), coarse, target, surface=True)
    for name in SURFACE:
        assert found[name] | {"doc": "", "per_class": 0, "undefined": 0} == {
            "score": None, "coarse": found[name]["coarse"], "gain": None, "gain_of": 0, "gain_left_out": 1, "of": 1, "how": "tile_mean",
            "higher_is_better": False, "doc": "", "per_class": 0, "undefined": 0,
        }  # fmt: skip
        assert found[name]["per_class"] == [None, None]
        assert found[name]["undefined"] == [1, 1]
        assert found[name]["coarse"] is not None


def test_removing_a_class_that_the_target_lacks_is_judged_by_the_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The coarse map's false class has IoU 0; without it the mean is over fewer classes, which alone would look like a gain of a third."""
    target = square()
    coarse = target.copy()
    coarse[0, 0] = 2
    found = scores(capsys, tmp_path, target, coarse, target)
    assert found["miou"]["score"] == 1
    assert found["miou"]["coarse"] < 0.67
    assert 0 < found["miou"]["gain"] < 0.001
    assert (found["miou"]["gain_of"], found["miou"]["gain_left_out"]) == (2, 1)


def test_where_all_is_defined_the_gain_is_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores(capsys, tmp_path, square(21), square(25), square(), surface=True, tile_px=64)
    compared = {name: entry for name, entry in found.items() if entry.get("gain") is not None}
    assert {*SURFACE, "miou", "boundary_iou", "wfm_edge", "mba", "high_band_error"} <= set(compared)
    for entry in compared.values():
        better = entry["score"] - entry["coarse"] if entry["higher_is_better"] else entry["coarse"] - entry["score"]
        assert entry["gain"] == pytest.approx(better, abs=1e-12)
        assert entry["gain_left_out"] == 0


@pytest.mark.parametrize("kind", ["pred empty", "target empty", "both empty", "pred full"])
def test_surface_scores_stand_in_the_result_whenever_they_were_asked_for(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    empty, full = np.zeros((24, 30), np.uint8), np.ones((24, 30), np.uint8)
    some = square(4, 4, 9, (24, 30))
    pairs = {"pred empty": (empty, full), "target empty": (full, empty), "both empty": (empty, empty), "pred full": (full, some)}
    pred, target = pairs[kind]
    paths = write(tmp_path / "p.png", pred), write(tmp_path / "t.png", target)
    found = result(capsys, *paths, surface=True)["label_sets"]["full"]["scores"]
    assert not set(SURFACE) & set(result(capsys, *paths)["label_sets"]["full"]["scores"])
    for name in SURFACE:
        assert found[name]["per_class"][0 if kind != "both empty" else 1] is None
        assert found[name]["undefined"][0 if kind != "both empty" else 1] == 1
    score(*paths, surface=True)
    assert "hd95_directed" in capsys.readouterr().out
