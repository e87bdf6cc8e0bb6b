"""`idgbr score` on files as users have them, and on wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import rasterio
from rasterio.transform import from_origin
from scipy import ndimage

from idgbr import cli
from idgbr.commands.score import score
from idgbr.config import ScoreConfig
from idgbr.errors import BadRequest, Disagreement, IdgbrError, Missing
from idgbr.scores.tile import count_tile

HERE = from_origin(400000, 5000000, 0.5, 0.5)


def write(path: Path, values: np.ndarray, crs: str | None = "EPSG:32633", transform: Any = HERE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    place = {"crs": crs, "transform": transform} if crs else {}
    driver = "PNG" if path.suffix == ".png" else "GTiff"
    with rasterio.open(path, "w", driver=driver, width=bands.shape[2], height=bands.shape[1], count=len(bands), dtype=bands.dtype,
                       **place, **options) as file:  # fmt: skip
        file.write(bands)
    return path


def blobs(k: int, seed: int, shape: tuple[int, int] = (90, 120)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 5) for _ in range(k)]).argmax(0).astype(np.uint8)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    target = blobs(2, 0)
    return np.roll(target, 2, 0), target


def run(capsys: pytest.CaptureFixture[str], *args: Any, **options: Any) -> dict[str, Any]:
    score(*args, json=True, **options)
    return json.loads(capsys.readouterr().out)


def scores_of(result: dict[str, Any], label_set: str = "full") -> dict[str, float]:
    return {name: entry["score"] for name, entry in result["label_sets"][label_set]["scores"].items()}


def test_the_same_maps_score_the_same_as_indices_masks_colours_and_floats(tmp_path, pair, capsys) -> None:
    pred, target = pair
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"classes": [{"name": "ground", "codes": [[0, 0, 0]], "color": [0, 0, 0]},
                                             {"name": "house", "codes": [[255, 0, 0]], "color": [255, 0, 0]}]}))  # fmt: skip
    colours = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    indices = run(capsys, write(tmp_path / "p.tif", pred), write(tmp_path / "t.tif", target))
    masks = run(capsys, write(tmp_path / "p255.tif", pred * 255), write(tmp_path / "t255.tif", target * 255))
    mixed = run(capsys, tmp_path / "p255.tif", tmp_path / "t.tif")
    coloured = run(capsys, write(tmp_path / "pc.tif", colours[pred]), write(tmp_path / "tc.tif", colours[target]), classes=table)
    index_and_colour = run(capsys, tmp_path / "p.tif", tmp_path / "tc.tif", classes=table)
    floats = run(capsys, write(tmp_path / "pf.tif", pred.astype(np.float32)), write(tmp_path / "tf.tif", target.astype(np.int16)))
    wanted = scores_of(indices)
    for other in (masks, mixed, coloured, index_and_colour, floats):
        assert scores_of(other) == wanted
    assert coloured["classes"] == ["ground", "house"]
    assert any("0/255" in note for note in masks["notes"])
    assert indices["notes"] == []


def test_a_small_image_scores_as_the_array_and_json_holds_the_parts(tmp_path, pair, capsys) -> None:
    pred, target = pair
    coarse = np.roll(target, 5, 1)
    result = run(capsys, write(tmp_path / "p.png", pred, None), write(tmp_path / "t.png", target, None),
                 coarse=write(tmp_path / "c.png", coarse, None), iou_imp_k=2.0)  # fmt: skip
    rows = count_tile(pred, target, 2, ScoreConfig(tile_px=1024), coarse)[0]
    found = result["label_sets"]["full"]
    assert found["ledger"] == {n: rows[-1][n] for n in ("kept", "repaired", "damaged", "still_wrong")}
    assert found["pixels"]["valid"] == target.size
    assert [row[:2] for row in found["confusion"]] == [r["predicted_as"][:2] for r in rows[:-1]]
    assert found["scores"]["miou"]["coarse"] == pytest.approx(np.mean([_iou(coarse, target, c) for c in (0, 1)]))
    assert found["frequency"]["gain_high"] == pytest.approx(
        1 - (found["frequency"]["pred"]["s"][0] - found["frequency"]["pred"]["low"])
        / (found["frequency"]["coarse"]["s"][0] - found["frequency"]["coarse"]["low"])
    )  # fmt: skip
    one = found["improvement"]["per_class"][1]
    assert one["iou_imp"] == pytest.approx(one["iou_rf"] - 2 * (1 - one["iou_rt"]))
    assert "hd95" not in found["scores"]


def _iou(pred: np.ndarray, target: np.ndarray, c: int) -> float:
    return ((pred == c) & (target == c)).sum() / ((pred == c) | (target == c)).sum()


def test_a_large_raster_in_tiles_scores_as_in_one_piece(tmp_path, capsys) -> None:
    target = blobs(3, 1, (300, 260))
    target[:40, :40] = 255
    paths = write(tmp_path / "p.tif", np.roll(blobs(3, 1, (300, 260)), 3, 1)), write(tmp_path / "t.tif", target)
    whole = run(capsys, *paths, tile_px=512, boundary_px=2)
    tiled = run(capsys, *paths, tile_px=64, boundary_px=2, out=tmp_path / "counts.parquet")
    assert tiled["label_sets"]["full"]["tiles"] == 25
    local = [n for n in scores_of(whole) if "legacy" not in n and n != "mba"]  # those are of the tile by itself
    assert {n: scores_of(tiled)[n] for n in local} == pytest.approx({n: scores_of(whole)[n] for n in local}, abs=1e-9)
    assert tiled["label_sets"]["full"]["distance"] == whole["label_sets"]["full"]["distance"]
    frame = pl.read_parquet(tmp_path / "counts.parquet")
    assert frame["trial"].unique().to_list() == ["pred"]
    assert frame.filter(pl.col("class") == -1)["ignored"].sum() == 1600
    assert (tmp_path / "counts.bands.parquet").is_file()


def test_folders_are_matched_by_name_and_pooled(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for i in range(3):
        target = blobs(3, i)
        write(tmp_path / "target" / f"tile_{i}.png", target, None)
        write(tmp_path / "pred" / f"tile_{i}.tif", np.roll(target, i, 0), None)
    result = run(capsys, tmp_path / "pred", tmp_path / "target")
    assert result["rasters"] == 3
    assert 0 < scores_of(result)["miou"] < 1
    with pytest.raises(SystemExit) as stopped:
        cli.main(["score", str(tmp_path / "pred"), str(tmp_path / "target"), "--surface"])
    assert not stopped.value.code
    shown = capsys.readouterr()
    assert "…" not in shown.out  # a table too wide for the terminal is two, its numbers are whole
    assert "boundary IoU within 1 px, boundary F within 3 px" in shown.out
    assert "boundary_iou" in shown.out
    assert "class 2" in shown.out
    assert "score" in shown.err  # progress


def test_full_and_eroded_labels_are_scored_in_one_pass_and_shown_apart(tmp_path, pair, capsys) -> None:
    pred, target = pair
    eroded = np.where(ndimage.grey_erosion(target, 5) == ndimage.grey_dilation(target, 5), target, 255).astype(np.uint8)
    args = write(tmp_path / "p.tif", pred), write(tmp_path / "t.tif", target)
    both = run(capsys, *args, eroded=write(tmp_path / "e.tif", eroded), out=tmp_path / "c.parquet")
    assert scores_of(both, "full") == scores_of(run(capsys, *args))
    assert scores_of(both, "eroded") == scores_of(run(capsys, tmp_path / "p.tif", tmp_path / "e.tif"))
    assert scores_of(both, "eroded")["oa"] > scores_of(both, "full")["oa"]


def test_predictions_outside_the_classes_count_as_wrong(tmp_path, capsys) -> None:
    table = tmp_path / "table.json"
    table.write_text(
        json.dumps({"classes": [{"name": n, "codes": [c], "color": [c, 0, 0]} for n, c in (("a", 1), ("b", 2))], "ignore": [6]})
    )
    target = blobs(2, 3) + np.uint8(1)
    target[:, :10] = 6
    pred = target.copy()
    pred[:30] = 99
    result = run(capsys, write(tmp_path / "p.tif", pred), write(tmp_path / "t.tif", target), classes=table)["label_sets"]["full"]
    assert result["pixels"] == {"valid": 90 * 110, "correct": 60 * 110, "ignored": 900, "outside": 30 * 110}
    assert result["scores"]["oa"]["score"] == pytest.approx(2 / 3)


def test_nodata_and_ignored_values_are_left_out_and_nothing_valid_is_undefined(tmp_path, pair, capsys) -> None:
    pred, target = pair
    target = target.copy()
    target[:20] = 7
    result = run(capsys, write(tmp_path / "p.tif", pred), write(tmp_path / "t.tif", target), ignore=7)["label_sets"]["full"]
    assert result["pixels"]["ignored"] == 20 * 120
    declared = run(capsys, tmp_path / "p.tif", write(tmp_path / "n.tif", target, nodata=7))["label_sets"]["full"]
    assert declared["scores"] == result["scores"]
    nothing = run(capsys, tmp_path / "p.tif", write(tmp_path / "v.tif", np.full_like(target, 9)), ignore=9)["label_sets"]["full"]
    assert nothing["scores"]["miou"] | {"doc": ""} == {"score": None, "per_class": [None, None], "undefined": [1, 1], "of": 1,
                                                       "how": "pooled", "higher_is_better": True, "doc": ""}  # fmt: skip


def test_an_ignored_index_is_no_class(tmp_path, capsys) -> None:
    target = blobs(3, 4)
    paths = write(tmp_path / "p.tif", np.roll(target, 1, 0)), write(tmp_path / "t.tif", target)
    result = run(capsys, *paths, ignore=0)
    assert result["classes"] == ["class 1", "class 2"]
    pixels = result["label_sets"]["full"]["pixels"]
    assert pixels["ignored"] == (target == 0).sum()
    assert pixels["outside"] == ((np.roll(target, 1, 0) == 0) & (target > 0)).sum()
    for values in (target > 0, np.uint8(255) * (target > 0)):  # indices, a 0/255 mask
        both = write(tmp_path / "b.tif", values.astype(np.uint8))
        with pytest.raises(BadRequest, match="fewer than two classes"):
            run(capsys, both, both, ignore=0)


BAD: dict[str, tuple[type[IdgbrError], int, str]] = {
    "other size": (Disagreement, 4, "different grids"),
    "shifted by half a pixel": (Disagreement, 4, "idgbr align"),
    "other CRS": (Disagreement, 4, "EPSG:32632"),
    "unknown code": (Disagreement, 4, "9"),
    "float mask": (Disagreement, 4, "fractions"),
    "probabilities": (Disagreement, 4, "probabilities"),
    "colours without a table": (Disagreement, 4, "--classes"),
    "no such file": (Missing, 3, "no such file"),
    "file against folder": (BadRequest, 2, "folders with folders"),
    "empty folder": (Missing, 3, "no class maps"),
    "unmatched names": (Disagreement, 4, "only in pred"),
    "output is there": (BadRequest, 2, "--overwrite"),
    "not parquet": (BadRequest, 2, ".parquet"),
    "ignore is a class": (BadRequest, 2, "--ignore 1"),
    "truncated file": (Disagreement, 4, "cannot read"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_stops_with_a_reason_and_its_exit_code(what: str, tmp_path, pair, capsys) -> None:
    pred, target = pair
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"classes": [{"name": n, "codes": [c], "color": [c, 0, 0]} for n, c in (("a", 0), ("b", 1))]}))
    a, b = write(tmp_path / "pred" / "x.tif", pred), write(tmp_path / "target" / "x.tif", target)
    options: dict[str, Any] = {}
    if what == "other size":
        write(a, pred[:-1])
    elif what == "shifted by half a pixel":
        write(a, pred, transform=from_origin(400000.25, 5000000, 0.5, 0.5))
    elif what == "other CRS":
        write(a, pred, crs="EPSG:32632")
    elif what == "unknown code":
        options["classes"] = table
        write(b, np.where(target == 1, 9, 0).astype(np.uint8))
    elif what == "float mask":
        write(a, pred * np.float32(0.7))
    elif what == "probabilities":
        write(a, np.stack([1 - pred, pred], -1) * np.float32(0.9))
    elif what == "colours without a table":
        write(a, np.stack([pred] * 3, -1))
    elif what == "no such file":
        a = tmp_path / "absent.tif"
    elif what == "file against folder":
        b = tmp_path / "target"
    elif what == "empty folder":
        (tmp_path / "empty").mkdir()
        a, b = tmp_path / "empty", tmp_path / "target"
    elif what == "unmatched names":
        write(tmp_path / "pred" / "y.tif", pred)
        a, b = tmp_path / "pred", tmp_path / "target"
    elif what == "output is there":
        options["out"] = tmp_path / "counts.parquet"
        options["out"].write_text("")
    elif what == "not parquet":
        options["out"] = tmp_path / "counts.csv"
    elif what == "ignore is a class":
        options |= {"classes": table, "ignore": 1}
    elif what == "truncated file":
        a.write_bytes(a.read_bytes()[: a.stat().st_size // 2])
    kind, code, said = BAD[what]
    before = set(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        score(a, b, **options)
    assert caught.value.exit_code == code
    assert said in str(caught.value)
    assert set(tmp_path.rglob("*")) == before  # nothing half-written
    if what in ("other CRS", "empty folder", "file against folder"):  # one of each code through the command line itself
        with pytest.raises(SystemExit) as stopped:
            cli.main(["score", str(a), str(b)])
        assert stopped.value.code == code
        assert said in capsys.readouterr().err
