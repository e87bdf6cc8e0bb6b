"""Objects and shape: against scipy.ndimage and plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from idgbr.commands.score import score
from idgbr.config import ScoreConfig
from idgbr.errors import BadRequest
from idgbr.scores import objects
from idgbr.scores.schema import OBJECT_WIDTHS_PX
from idgbr.scores.tile import count_tile

EIGHT = np.ones((3, 3))


def maps(seed: int, k: int = 3, shape: tuple[int, int] = (70, 90)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 2.5) for _ in range(k)]
    target = np.stack(fields).argmax(0).astype(np.uint8)
    pred = np.stack([f + 0.5 * ndimage.gaussian_filter(rng.standard_normal(shape), 2) for f in fields]).argmax(0).astype(np.uint8)
    target[:9, :20] = 255
    pred[-5:, -7:] = 200  # no class
    return pred, target


def slow(pred: np.ndarray, target: np.ndarray, c: int) -> dict[str, int]:
    a, b = (pred == c) & (target != 255), target == c
    (la, na), (lb, nb) = ndimage.label(a, EIGHT), ndimage.label(b, EIGHT)
    matched = sum(
        ((la == i) & (lb == j)).sum() / ((la == i) | (lb == j)).sum() > 0.5 for i in range(1, na + 1) for j in np.unique(lb[la == i]) if j
    )
    holes = []
    for mask in (a, b):
        filled = ndimage.binary_fill_holes(mask, ndimage.generate_binary_structure(2, 1))
        holes.append(ndimage.label(filled & ~mask, ndimage.generate_binary_structure(2, 1))[1])
    lengths = [int(np.abs(np.diff(m.astype(int), axis=axis)).sum()) for m in (a, b) for axis in (0, 1)]
    return {
        "objects_matched": int(matched), "objects_pred": na, "objects_target": nb, "perimeter_pred": sum(lengths[:2]),
        "perimeter_target": sum(lengths[2:]), "parts_error": abs(na - nb), "holes_error": abs(holes[0] - holes[1]),
        "parts_target": nb, "holes_target": holes[1],
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_plain_loops(seed: int) -> None:
    pred, target = maps(seed)
    found = objects.count(pred, target, 3)
    for c in range(3):
        assert {name: int(found[name][c]) for name in slow(pred, target, c)} == slow(pred, target, c)


@pytest.mark.parametrize("width", OBJECT_WIDTHS_PX)
def test_boundary_iou_is_that_of_the_counts_at_this_width(width: int) -> None:
    pred, target = maps(7)
    found = objects.count(pred, target, 3)
    rows, _ = count_tile(pred, target, 3, ScoreConfig(boundary_px=width))
    for name in ("intersection", "union"):
        assert found[f"biou{width}_{name}"].tolist() == [row[f"biou_{name}"] for row in rows[:3]]


def test_known_shapes() -> None:
    ring = np.zeros((20, 30), np.uint8)
    ring[5:15, 5:15] = 1
    ring[8:11, 8:11] = 0
    disk = ring.copy()
    disk[5:15, 5:15] = 1
    disk[5:15, 20:25] = 1
    found = objects.count(disk, ring, 2)
    assert (found["parts_error"][1], found["holes_error"][1]) == (1, 1)
    assert (found["objects_matched"][1], found["objects_pred"][1], found["objects_target"][1]) == (1, 2, 1)
    assert found["perimeter_target"][1] == 40 + 12
    assert found["perimeter_pred"][1] == 40 + 30
    values = objects.scores(found)
    assert values["object_precision"][1] == 0.5
    assert values["object_recall"][1] == 1
    same = objects.scores(objects.count(ring, ring, 2))
    for name, value in same.items():
        assert value == ([0, 0] if name.endswith("error") else [1, 1])


def test_a_class_in_neither_map_is_undefined() -> None:
    found = objects.scores(objects.count(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8), 2))
    assert all(np.isnan(found[name][1]) for name in ("boundary_iou_2px", "object_f1", "object_recall", "perimeter_ratio"))


def test_the_command_adds_up_rasters_and_shows_the_coarse_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total: dict[str, np.ndarray] = {}
    for i in range(2):
        pred, target = maps(i, 2)
        pred[pred == 200] = 0
        objects.add(total, objects.count(pred, target, 2))
        for name, pixels in (("p", pred), ("t", target), ("c", np.roll(pred, 2, 0))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    args = {"coarse": tmp_path / "c", "objects": True}
    score(tmp_path / "p", tmp_path / "t", json=True, **args)  # type: ignore[arg-type]
    found = json.loads(capsys.readouterr().out)["label_sets"]["full"]["objects"]
    assert found["pred"]["counts"] == {name: values.tolist() for name, values in total.items()}
    assert found["coarse"]["scores"]["boundary_iou_1px"][1] < found["pred"]["scores"]["boundary_iou_1px"][1]
    score(tmp_path / "p", tmp_path / "t", **args)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "object_recall" in shown
    assert "boundary_iou_4px" in shown


def test_rasters_too_large_to_be_read_whole_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from idgbr.commands import score as command

    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(command, "WHOLE_PX", 1000)
    with pytest.raises(BadRequest, match=r"--objects reads rasters whole.*40 x 40"):
        score(tmp_path / "a.png", tmp_path / "a.png", objects=True)
