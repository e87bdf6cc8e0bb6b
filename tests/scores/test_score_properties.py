"""What must hold for any pair of class maps, and agreement with independent implementations on random ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from idgbr.config import ScoreConfig
from idgbr.errors import BadRequest, Disagreement
from idgbr.rasters import edges as edges_of
from idgbr.scores import boundary, formulas, legacy, nearest, region, surface, wfm
from idgbr.scores.schema import BANDS_SCHEMA, COUNTS_SCHEMA, IDENTITY, LEDGER
from idgbr.scores.tile import Widths, count_tile, count_window

_spec = importlib.util.spec_from_file_location("plain_scores", Path(__file__).resolve().parents[2] / "benchmarks" / "scores.py")
assert _spec is not None
assert _spec.loader is not None
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)

SMALL = ScoreConfig(tile_px=64, band_levels=3, distance_edges_px=(1.0, 2.0, 4.0, 6.0), boundary_px=2)
quick = settings(max_examples=25, deadline=None)


@dataclasses.dataclass(frozen=True)
class Maps:
    pred: np.ndarray
    target: np.ndarray
    coarse: np.ndarray
    k: int


@st.composite
def maps(draw: st.DrawFn, ignore: bool = True, outside: bool = True, smallest: int = 1, largest: int = 40) -> Maps:
    """Blobs with holes, ignored areas and predictions outside the classes, of any shape."""
    k, seed = draw(st.integers(2, 5)), draw(st.integers(0, 2**32 - 1))
    height, width = draw(st.integers(smallest, largest)), draw(st.integers(smallest, largest))
    smooth, error = draw(st.sampled_from([0.0, 1.0, 3.0])), draw(st.sampled_from([0.0, 0.05, 0.5]))
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal((height, width)), smooth) for _ in range(k)]
    target = np.stack(fields).argmax(0).astype(np.uint8)
    pred, coarse = (np.where(rng.random(target.shape) < error, rng.integers(0, k, target.shape), target).astype(np.uint8) for _ in range(2))
    if draw(st.booleans()):
        pred = np.roll(pred, draw(st.integers(-3, 3)), axis=draw(st.integers(0, 1)))
    if outside and draw(st.booleans()):
        pred[rng.random(target.shape) < 0.05] = draw(st.sampled_from([k, 200, 255]))
    if ignore and draw(st.booleans()):
        target[ndimage.gaussian_filter(rng.standard_normal(target.shape), 2) > draw(st.sampled_from([0.05, 0.2]))] = 255
    return Maps(pred, target, coarse, k)


@quick
@given(maps())
def test_ledger_cells_sum_to_valid_pixels(m: Maps) -> None:
    rows, bands = count_tile(m.pred, m.target, m.k, SMALL, m.coarse)
    whole, valid = rows[-1], int((m.target < m.k).sum())
    assert sum(whole[name] for name in LEDGER) == whole["valid"] == valid
    assert sum(row[name] for row in rows[:-1] for name in LEDGER) == valid
    assert sum(row[name] for row in bands if row["class"] >= 0 for name in LEDGER) == valid
    assert sum(row["valid"] for row in bands if row["class"] == -1) == valid
    assert all(sum(row[f"joint_{t}{c}{r}"] for t in (0, 1) for c in (0, 1) for r in (0, 1)) == valid for row in rows[:-1])
    right = m.pred[m.target < m.k] == m.target[m.target < m.k]
    assert whole["correct"] == whole["kept"] + whole["repaired"] == right.sum()


@quick
@given(maps())
def test_bands_and_low_sum_to_the_pixel_error_rate_and_none_is_negative(m: Maps) -> None:
    whole = count_tile(m.pred, m.target, m.k, SMALL)[0][-1]
    s = formulas.energies({name: np.array(whole[name]) for name in ("valid", "t0", "t1", "t2", "t3")})
    if not whole["valid"]:
        assert np.isnan(s).all()
        return
    bands = s[:-1] - s[1:]
    assert (bands >= -1e-15).all()
    assert math.isclose(bands.sum() + s[-1], 1 - whole["correct"] / whole["valid"], abs_tol=1e-12)


# Not among them: boundary F (seg2bmap looks to the E, S and SE), weighted F (ties go to the smaller column), mBA (OpenCV's ellipse of
# 2 px and more is not the same when turned by a quarter).
SYMMETRIC = ("tp", "fp", "fn", "biou_intersection", "biou_union", "trimap1_tp", "trimap3_fp", "trimap10_fn", "kept", "damaged",
             "valid", "correct", "ignored", "outside", "t0", "t1", "t2", "t3", "wfm_edge_target", "hausdorff")  # fmt: skip


@quick
@given(maps(), st.integers(0, 7))
def test_flips_and_quarter_turns_leave_every_symmetric_score_unchanged(m: Maps, turn: int) -> None:
    def turned(a: np.ndarray) -> np.ndarray:
        a = np.rot90(a, turn % 4)
        return np.ascontiguousarray(a[::-1] if turn >= 4 else a)

    config = dataclasses.replace(SMALL, surface=True)
    before = count_tile(m.pred, m.target, m.k, config, m.coarse)
    after = count_tile(turned(m.pred), turned(m.target), m.k, config, turned(m.coarse))
    for a, b in zip(before[0], after[0]):
        assert {n: a.get(n) for n in SYMMETRIC} == {n: b.get(n) for n in SYMMETRIC}
    assert before[1] == after[1]


@quick
@given(maps(smallest=20, largest=70), st.integers(7, 30))
def test_tiles_pooled_are_the_scene_scored_whole(m: Maps, step: int) -> None:
    """All columns but those documented as values of one tile by itself; losses within the rounding to 2^-32 px."""
    height, width = m.target.shape
    widths = dataclasses.replace(Widths.of(SMALL, height, width), legacy=False)
    whole, whole_bands = count_window(m.pred, m.target, m.k, widths, (0, height, 0, width), m.coarse)
    pooled: dict[int, dict[str, int]] = {}
    pooled_bands: dict[tuple[Any, ...], int] = {}
    for top in range(0, height, step):
        for left in range(0, width, step):
            window, inner = _with_halo((top, min(top + step, height), left, min(left + step, width)), m.target.shape, widths.halo_px)
            part = count_window(m.pred[window], m.target[window], m.k, widths, inner, m.coarse[window])
            for row in part[0]:
                total = pooled.setdefault(row["class"], {})
                for name, value in row.items():
                    if isinstance(value, int) and name != "class":
                        total[name] = total.get(name, 0) + value
            for row in part[1]:
                for name in ("valid", "correct", *LEDGER):
                    key = (row["class"], row["low_px"], name)
                    pooled_bands[key] = pooled_bands.get(key, 0) + row[name]
    tiles = math.ceil(height / step) * math.ceil(width / step)
    for row in whole:
        for name, value in row.items():
            if isinstance(value, int) and name != "class":
                assert abs(pooled[row["class"]][name] - value) <= (2 * tiles if name.endswith("_loss") else 0), name
    assert all(pooled_bands[row["class"], row["low_px"], n] == row[n] for row in whole_bands for n in ("valid", "correct", *LEDGER))


def _with_halo(tile: tuple[int, int, int, int], shape: tuple[int, ...], halo: int) -> tuple[Any, tuple[int, int, int, int]]:
    r0, r1, c0, c1 = tile
    top, left = max(0, r0 - halo), max(0, c0 - halo)
    window = slice(top, min(shape[0], r1 + halo)), slice(left, min(shape[1], c1 + halo))
    return window, (r0 - top, r1 - top, c0 - left, c1 - left)


def test_a_halo_that_ends_before_the_nearest_object_costs_less_than_a_millionth() -> None:
    """False positives far from any object are the one count that reaches beyond the near halo; the far halo bounds the error."""
    target, pred = np.zeros((64, 700), np.uint8), np.zeros((64, 700), np.uint8)
    target[10:20, 2:12] = 1
    pred[30:34, 600:604] = 1
    widths = Widths.of(SMALL, *target.shape)
    whole = count_window(pred, target, 2, widths, (0, 64, 0, 700))[0][1]["wfm_region_rest_loss"]
    window, inner = _with_halo((0, 64, 512, 700), target.shape, widths.halo_px)
    part = count_window(pred[window], target[window], 2, widths, inner)[0][1]["wfm_region_rest_loss"]
    assert whole > 0
    assert abs(part - whole) < 1e-6 * whole


@quick
@given(maps(ignore=False, outside=False))
def test_every_score_equals_its_plain_definition(m: Maps) -> None:
    inner = (0, m.target.shape[0], 0, m.target.shape[1])
    for name, (ours, oracle) in plain.cases(m.pred, m.target, m.coarse, m.k).items():
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = np.array(ours(), float), np.array(oracle(), float)
        assert np.allclose(a, b, rtol=0, atol=1e-9, equal_nan=True), (name, a, b)
    assert inner[1] == m.target.shape[0]


@quick
@given(maps())
def test_ignored_pixels_never_count_whatever_is_predicted_there(m: Maps) -> None:
    other = np.where(m.target < m.k, m.pred, np.uint8(0))
    config = dataclasses.replace(SMALL, legacy=False)  # the authors' code looks at ignored pixels
    assert count_tile(m.pred, m.target, m.k, config, m.coarse) == count_tile(other, m.target, m.k, config, m.coarse)


@quick
@given(maps(ignore=False, outside=False))
def test_predictions_outside_the_classes_are_wrong_and_never_dropped(m: Maps) -> None:
    pred = m.pred.copy()
    pred[::2] = m.k + 1
    whole = count_tile(pred, m.target, m.k, SMALL)[0]
    assert whole[-1]["valid"] == m.target.size
    assert whole[-1]["outside"] == pred[::2].size
    assert whole[-1]["correct"] == (pred == m.target).sum()
    assert sum(r["tp"] + r["fn"] for r in whole[:-1]) == m.target.size


@settings(max_examples=15, deadline=None)
@given(maps(ignore=False, outside=False, smallest=8))
def test_surface_distances_agree_with_monai(m: Maps) -> None:
    torch, monai_metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    for c in range(m.k):
        pred, target = m.pred == c, m.target == c
        lists = surface.directed(m.pred, m.target, m.k)[c]
        if not pred.any() or not target.any():
            assert lists is None
            continue
        assert lists is not None
        found = surface.describe(*lists)
        one_hot = [torch.from_numpy(a.astype(np.float32))[None, None] for a in (pred, target)]
        hd95 = monai_metrics.compute_hausdorff_distance(*one_hot, include_background=True, percentile=95).item()
        assd = monai_metrics.compute_average_surface_distance(*one_hot, include_background=True, symmetric=True).item()
        assert math.isclose(found["hd95_directed"], hd95, rel_tol=1e-5, abs_tol=1e-5)
        assert math.isclose(found["assd_sum"] / found["assd_pixels"], assd, rel_tol=1e-5, abs_tol=1e-5)


def test_distances_of_far_pixels_equal_a_distance_transform() -> None:
    rng = np.random.default_rng(0)
    labels = np.full((300, 400), 255, np.uint8)
    labels[rng.integers(0, 300, 6), rng.integers(0, 400, 6)] = np.arange(6) % 3
    rows, cols = (a.reshape(-1) for a in np.mgrid[0:300:2, 0:400:2])
    for c in range(4):
        found = nearest.squared_distances(labels, 4, rows, cols, np.full(len(rows), c))
        if c == 3:
            assert np.isinf(found).all()
            continue
        exact = ndimage.distance_transform_edt(labels != c)[rows, cols] ** 2
        assert np.allclose(found, exact, rtol=0, atol=1e-6)


def test_bands_of_distance_are_the_same_by_disks_and_by_distance_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    target = (np.add.outer(np.arange(120) // 40, np.arange(150) // 50) % 3).astype(np.uint8)
    edges, edges_px = edges_of.label_edges(target, 3), (0.5, 1.0, 2.5, 7.0, 16.0)
    by_disks = edges_of.distance_bands(edges, edges_px)
    monkeypatch.setattr(edges_of, "_DISK_PX", 0)
    assert (edges_of.distance_bands(edges, edges_px) == by_disks).all()
    exact = 1 + ndimage.distance_transform_edt(edges == 0)
    assert (by_disks == np.digitize(exact, edges_px, right=True)).all()


def test_a_prediction_unlike_the_target_everywhere_still_scores_exactly() -> None:
    """Many far pixels: where searching rows gives way to a distance transform, and gathering to filtering."""
    rng = np.random.default_rng(3)
    target, pred = np.zeros((150, 500), np.uint8), rng.integers(0, 2, (150, 500)).astype(np.uint8)
    target[3, 4] = 1
    s = wfm.sums(pred, target, 2, (0, 150, 0, 500))
    wanted = [plain.plain_wfm(pred == c, target == c) for c in (0, 1)]
    assert np.allclose(wfm.weighted_f(s.target, s.target_loss, s.rest_loss), wanted, rtol=0, atol=1e-9)


def test_empty_classes_are_undefined_and_a_class_only_predicted_scores_zero() -> None:
    pred, target = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    pred[4:9, 4:9] = 1
    rows = count_tile(pred, target, 3, SMALL)[0]

    def per_class(function: Any, *names: str) -> list[float]:
        return function(*(np.array([r[n] for r in rows[:-1]]) for n in names)).tolist()

    found = {
        "iou": per_class(formulas.iou, "tp", "fp", "fn"),
        "biou": per_class(formulas.ratio, "biou_intersection", "biou_union"),
        "bf": per_class(formulas.boundary_f, "bf_pred_hits", "bf_pred_pixels", "bf_target_hits", "bf_target_pixels"),
        "wfm": per_class(formulas.weighted_f, *(f"wfm_region_{n}" for n in ("target", "pred", "target_loss", "rest_loss"))),
    }
    for name, (background, predicted, absent) in found.items():
        assert math.isnan(absent), name
        assert predicted == 0, name
        assert background >= 0, name


def test_corrected_edge_score_sees_what_the_authors_edge_score_does_not() -> None:
    """Swapped classes and thin structures: the legacy score is perfect, the corrected one is not."""
    rng = np.random.default_rng(1)
    blobs = (ndimage.gaussian_filter(rng.standard_normal((80, 80)), 4) > 0).astype(np.uint8)
    stripes = np.tile(np.array([0, 1], np.uint8), (40, 20))
    for target in (blobs, stripes):
        pred = 1 - target
        assert legacy.edge_f(pred, target)[0] == 1.0
        a, b = (wfm.edge_labels(m, 2) for m in (pred, target))
        s = wfm.sums(a, b, 2, (0, *target.shape[:1], 0, target.shape[1]))
        assert (wfm.weighted_f(s.target, s.target_loss, s.rest_loss) < 0.3).all()


def test_counts_beyond_what_float32_histograms_hold_stay_exact() -> None:
    big = np.zeros((5000, 4000), np.uint8)
    big[0, :3] = 1
    assert region.joint([big, big], [2, 2]).tolist() == [[19_999_997, 0], [0, 3]]


def test_more_than_eight_classes_use_more_than_one_bit_plane() -> None:
    rng = np.random.default_rng(2)
    target = rng.integers(0, 19, (40, 40)).astype(np.uint8)
    pred = np.where(rng.random(target.shape) < 0.2, 3, target).astype(np.uint8)
    ours = formulas.boundary_f(*boundary.boundary_f(pred, target, 19, 1, (0, 40, 0, 40)))
    assert np.allclose(ours, [plain.plain_boundary_f(pred == c, target == c, 1) for c in range(19)], equal_nan=True)


def test_target_values_that_are_no_class_are_an_error_and_shapes_must_agree() -> None:
    target = np.array([[0, 1, 7]], np.uint8)
    with pytest.raises(Disagreement, match="7: 1") as caught:
        count_tile(target, target, 2, SMALL)
    assert caught.value.exit_code == 4
    with pytest.raises(Disagreement, match="one shape"):
        count_tile(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), 2, SMALL)
    with pytest.raises(BadRequest, match="tolerance_m"):
        Widths.of(ScoreConfig(tolerance_m=1.0), 64, 64, None)


def test_metres_become_pixels_of_the_raster() -> None:
    widths = Widths.of(ScoreConfig(tolerance_m=1.2, boundary_m=0.9), 100, 100, gsd_m=0.3)
    assert widths.boundary_px == 3
    assert math.isclose(widths.tolerance_px, 4.0)


def test_every_column_that_a_tile_gives_is_in_the_schemas() -> None:
    target = np.eye(40, dtype=np.uint8)
    rows, bands = count_tile(target, target, 2, dataclasses.replace(SMALL, surface=True, band_levels=10), target)
    identity = {name for name, _ in IDENTITY}
    assert {n for row in rows for n in row} == set(COUNTS_SCHEMA.names) - identity | {"class"}
    assert {n for row in bands for n in row} == set(BANDS_SCHEMA.names) - identity | {"class"}
