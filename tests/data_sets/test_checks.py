"""What `idgbr prepare` warns of: labels that lie beside the image, exchanged classes, grey rims, and near-duplicates between splits."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from idgbr import datasets
from idgbr.commands.prepare import prepare
from idgbr.config import DataConfig, Experiment
from idgbr.datasets import checks, looks, synthetic
from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, ClassTable, LabelClass, binary

Scene = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Image [H,W,3] and building mask [H,W]."""
    made = [synthetic.scene(3, number, 256) for number in range(8)]
    return [(image.transpose(1, 2, 0), (label == 1).astype(np.uint8)) for image, label in made]


def write(root: Path, scenes: list[Scene], splits: list[str], name: str = "building", suffix: str = "png") -> DataConfig:
    for i, (image, label) in enumerate(scenes):
        for kind, pixels in (("images", image), ("masks", label if label.max() > 1 else label * np.uint8(255))):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{i}.{suffix if kind == 'masks' else 'png'}")
    (root / "splits.csv").write_text("name,split\n" + "".join(f"{i},{s}\n" for i, s in enumerate(splits)))
    (root / "classes.json").write_text(binary(name).to_json())
    return DataConfig(source="folder", root=str(root))


def told(config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    prepare(Experiment(data=config), str(tmp_path / "store"))
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("warning", "label edges"))]


# ---- shifts -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-6, 0), (0, 9), (-4, 5)])
def test_the_best_shift_is_the_one_that_was_made(down: int, right: int, scenes: list[Scene]) -> None:
    for image, label in scenes[:3]:
        moved = np.roll(label, (down, right), (0, 1))
        found = checks.edge_shift(image.transpose(2, 0, 1).astype(np.float32), moved, 2)
        assert found is not None
        assert (found.down, found.right) == (-down, -right)
        assert found.clear
        assert (found.gain > 0.1) == (found.px > 2)


@pytest.mark.parametrize("change", ["16 bit", "one band", "float and dark", "partly ignored", "three classes"])
def test_the_shift_does_not_depend_on_how_the_image_is_stored(change: str, scenes: list[Scene]) -> None:
    pixels, label = scenes[0]
    image, label, k = pixels.transpose(2, 0, 1).astype(np.float32), np.roll(label, (4, 3), (0, 1)), 2
    if change == "16 bit":
        image *= 200
    elif change == "one band":
        image = image[1:2]
    elif change == "float and dark":
        image = image / 2550 - 3
    elif change == "partly ignored":
        label[:, :100] = IGNORE
    else:
        label, k = np.where(np.arange(256)[:, None] < 128, label, label * 2).astype(np.uint8), 3
    found = checks.edge_shift(image, label, k)
    assert found is not None
    assert (found.down, found.right) == (-4, -3)


def test_what_shows_no_edges_has_no_clear_shift(scenes: list[Scene]) -> None:
    image, label = scenes[0]
    noise = np.random.default_rng(0).normal(0, 1, (3, 256, 256)).astype(np.float32)
    found = checks.edge_shift(noise, label, 2)
    assert found is None or not found.clear or found.gain < 0.1
    assert checks.edge_shift(np.zeros((3, 256, 256), np.float32), label, 2) is None
    assert checks.edge_shift(image.transpose(2, 0, 1).astype(np.float32), np.zeros((256, 256), np.uint8), 2) is None


def test_shifted_labels_are_reported_and_right_ones_are_not(
    scenes: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["train"] * 6 + ["val", "test"]
    assert told(write(tmp_path / "good", scenes, splits), tmp_path, capsys) == [
        "label edges agree best with the image when moved by (+0, +0) px (right, down): median of 8 rasters"
    ]
    moved = [(image, np.roll(label, (-3, 4), (0, 1))) for image, label in scenes]
    lines = told(write(tmp_path / "bad", moved, splits), tmp_path, capsys)
    assert lines[0].startswith("label edges agree best with the image when moved by (-4, +3) px")
    assert "label edges of 8 of 8 rasters with clear edges" in lines[1]
    assert "0 (-4, +3), 1 (-4, +3)" in lines[1]
    assert "all together by about (-4, +3)" in lines[1]
    lines = told(write(tmp_path / "one", [*moved[:1], *scenes[1:]], splits), tmp_path, capsys)
    assert "label edges of 1 of 8 rasters" in lines[1]


# ---- classes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "share", "warned"),
    [("building", 0.7, True), ("Buildings", 0.61, True), ("building", 0.5, False), ("parked cars", 0.4, True), ("road", 0.8, True),
     ("non-building", 0.9, False), ("field", 0.9, False), ("background", 0.9, False), ("shipyard", 0.9, False)],
)  # fmt: skip
def test_a_class_that_covers_more_than_its_name_makes_likely(name: str, share: float, warned: bool) -> None:
    rows = [{"split": "train", "class_px": [round(1000 * (1 - share)), round(1000 * share)]}, {"split": "test", "class_px": None}]
    table = ClassTable((LabelClass("rest", (0,), (0, 0, 0)), LabelClass(name, (1,), (9, 9, 9))))
    found = checks.unlikely_shares(rows, table)
    assert bool(found) == warned
    if warned:
        assert f"{name} covers {share:.0%} of train" in found[0]


def test_exchanged_masks_are_reported_by_split(scenes: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exchanged = [(image, 1 - label if i > 5 else label) for i, (image, label) in enumerate(scenes)]
    lines = told(write(tmp_path / "d", exchanged, ["train"] * 6 + ["val", "test"]), tmp_path, capsys)
    assert [line.split(",")[0].split(" of ")[1] for line in lines if "building covers" in line] == ["val", "test"]


# ---- grey rims ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG of a JPEG", "smoothly resampled"])
def test_masks_with_grey_rims_are_refused_with_what_to_do(kind: str, scenes: list[Scene], tmp_path: Path) -> None:
    config = write(tmp_path, scenes[:2], ["train", "val"])
    path = tmp_path / "masks" / "0.png"
    mask = np.array(Image.open(path))
    if kind == "smoothly resampled":
        mask = cv2.resize(cv2.resize(mask, (180, 180), interpolation=cv2.INTER_LINEAR), (256, 256), interpolation=cv2.INTER_LINEAR)
        Image.fromarray(mask).save(path)
    else:
        data = io.BytesIO()
        Image.fromarray(mask).save(data, "JPEG", quality=80)
        path.unlink()
        if kind == "JPEG":
            (tmp_path / "masks" / "0.jpg").write_bytes(data.getvalue())
        else:
            Image.open(data).save(path)
    with pytest.raises(Disagreement, match=r"has grey rims: .*% of its pixels.*original masks.*Given: .*0: "):
        datasets.prepare(config, tmp_path / "out")


def test_an_unknown_class_is_no_grey_rim(scenes: list[Scene], tmp_path: Path) -> None:
    image, label = scenes[0]
    other = label * np.uint8(255)
    other[40:200, 40:200] = 77
    config = write(tmp_path, [(image, other)], ["train"])
    with pytest.raises(Disagreement, match="codes that the class table does not have") as caught:
        datasets.prepare(config, tmp_path / "out")
    assert "rims" not in str(caught.value)


def test_a_class_that_lies_only_between_others_is_reported() -> None:
    """Class indices resampled smoothly: 0 beside 2 gives a rim of 1."""
    coarse = np.kron(np.random.default_rng(1).integers(0, 2, (16, 16)) * 2, np.ones((16, 16))).astype(np.float32)
    label = np.rint(cv2.GaussianBlur(coarse, (0, 0), 1.0)).astype(np.uint8)
    table = ClassTable(tuple(LabelClass(n, (i,), (i, 0, 0)) for i, n in enumerate(("ground", "hedge", "field"))))
    raster = datasets.Raster("r", "r", "train", Path("i"), Path("l"), None, 256, 256, None)
    found = checks.warnings_of([checks.Seen(raster, None, checks.rim_shares(label, 3))], table)
    assert len(found) == 1
    assert "hedge" in found[0]
    assert "nearest neighbour" in found[0]
    label[:128, :128] = 1  # a real field of hedges
    assert checks.warnings_of([checks.Seen(raster, None, checks.rim_shares(label, 3))], table) == []


# ---- near-duplicates ----------------------------------------------------------------------------------------------------------------


def picture(image: np.ndarray) -> np.ndarray:
    looker = looks.Looker(image.shape[0])
    for row in range(0, image.shape[0], 100):
        looker.add(row, image[row : row + 100].transpose(2, 0, 1).astype(np.float32))
    return looker.result()


@pytest.mark.parametrize("copy", ["JPEG", "brightened", "smaller", "flipped", "turned", "all together"])
def test_a_changed_copy_looks_alike_and_another_scene_does_not(copy: str, scenes: list[Scene]) -> None:
    image = scenes[0][0]
    if copy in ("brightened", "all together"):
        image = np.clip(image * 0.8 + 30, 0, 255).astype(np.uint8)
    if copy in ("smaller", "all together"):
        image = cv2.resize(image, (170, 170), interpolation=cv2.INTER_AREA)
    if copy in ("flipped", "all together"):
        image = image[:, ::-1]
    if copy in ("turned", "all together"):
        image = np.rot90(image)
    if copy in ("JPEG", "all together"):
        data = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(data, "JPEG", quality=50)
        image = np.array(Image.open(data))
    others = {f"s{i}": picture(scene) for i, (scene, _) in enumerate(scenes)}
    assert [pair[:2] for pair in looks.alike(others, {"copy": picture(image)})] == [("s0", "copy")]


def test_flat_pictures_look_like_nothing() -> None:
    flat = {name: picture(np.full((64, 64, 3), value, np.uint8)) for name, value in (("a", 0), ("b", 255))}
    assert looks.alike(flat, flat) == []
    assert looks.alike({}, flat) == []


def test_near_duplicates_between_splits_are_reported(scenes: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [(np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8)[:, ::-1], label[:, ::-1]) for image, label in scenes[:2]]
    config = write(tmp_path / "d", [*scenes, *again], ["train"] * 6 + ["val", "test"] * 2)
    lines = told(config, tmp_path, capsys)
    assert [line.split(" (")[0] for line in lines if "look like" in line] == [
        "warning: 1 rasters of val look like one of train",
        "warning: 1 rasters of test look like one of train",
    ]
    assert "0 and 8" in lines[-2]
    assert "1 and 9" in lines[-1]


def test_a_data_set_prepared_before_there_were_pictures_says_so(
    scenes: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "d", scenes[:2], ["train", "val"])
    folder = prepare(Experiment(data=config), str(tmp_path / "store"))
    (folder / looks.FILE).chmod(0o600)
    (folder / looks.FILE).unlink()
    capsys.readouterr()
    assert any("earlier version" in line for line in told(config, tmp_path, capsys))


def test_the_sheet_shows_label_edges_on_the_image(scenes: list[Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from idgbr.commands.contact_sheet import CELL_PX, LINE

    config = write(tmp_path / "d", scenes[:3], ["train", "train", "val"], name="building\n[新] " + "x" * 300)
    prepare(Experiment(data=dataclasses.replace(config)), str(tmp_path / "store"), sheet=tmp_path / "sheet.png")
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    lines = (sheet == LINE).all(-1)
    assert lines[28 + CELL_PX : 28 + 2 * CELL_PX, 4 : 4 + CELL_PX].sum() > 200
    assert not lines[28 : 28 + CELL_PX].any()
    assert not lines[28 + 2 * CELL_PX : 28 + 3 * CELL_PX].any()
