"""Calibration, detection of errors and energy score: against scikit-learn, scipy.ndimage and plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import brier_score_loss, jaccard_score, roc_auc_score

from idgbr.cli import VERBS
from idgbr.commands.score import score
from idgbr.config import DataConfig, Experiment, SamplerConfig, ScoreConfig, apply
from idgbr.datasets import load, prepare
from idgbr.errors import BadRequest, Missing
from idgbr.rasters.grid import Grid
from idgbr.rasters.read import read_labels
from idgbr.rasters.write import write_class_map, write_probabilities
from idgbr.scene.stage import refine_split
from idgbr.scores import formulas
from idgbr.scores.boundary import boundary_iou
from idgbr.scores.counts import count_rasters
from idgbr.scores.metrics import METRICS
from idgbr.scores.rasters import PROBABILITIES, SAMPLES, Pair, tiles_of
from idgbr.scores.read import evaluate, read_counts, score_table
from idgbr.scores.sampled import Sampled
from idgbr.scores.schema import DOUBT_EDGES, UNCERTAINTY, VOTES_RIGHT, VOTES_WRONG, confidence_columns
from idgbr.scores.uncertainty import fill, level_sets
from idgbr.stages import jobs
from idgbr.verbs import run_verbs

SIDE, K = 60, 3


@dataclasses.dataclass
class Case:
    target: np.ndarray
    pred: np.ndarray
    p: np.ndarray  # 255ths, as they are kept
    samples: np.ndarray


def case(seed: int, n: int = 4, k: int = K) -> Case:
    rng = np.random.default_rng(seed)
    truth = np.stack([ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 4) for _ in range(k)]) * 12

    def noisy() -> np.ndarray:
        seen = truth + 3 * np.stack([ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 2) for _ in range(k)])
        powers = np.exp(4 * seen)
        return powers / powers.sum(0)

    draws = np.stack([noisy() for _ in range(n)])
    p = np.rint(draws.mean(0) * 255)
    p[0] += 255 - p.sum(0)  # so that they sum to one exactly
    target = truth.argmax(0).astype(np.uint8)
    target[:6, :15] = 255
    return Case(target, p.argmax(0).astype(np.uint8), p.astype(np.int64), draws.argmax(1).astype(np.uint8))


def filled(c: Case, inner: tuple[int, int, int, int] = (0, SIDE, 0, SIDE), k: int = K, width: int = 2) -> tuple[list[dict], dict]:
    rows: list[dict] = [{"class": i} for i in range(k)]
    tile: dict = {"class": -1}
    fill(rows, tile, c.pred, c.target, Sampled((c.p / 255).astype(np.float32), c.samples), k, width, inner)
    return rows, tile


def value(name: str, tile: dict) -> float:
    return float(METRICS[name].score({c: np.array(tile[c]) for c in METRICS[name].columns}))


def near(target: np.ndarray) -> np.ndarray:
    """Within 5 px of a boundary between two classes that are known, on either side."""
    edge = np.zeros(target.shape, bool)
    for axis in (0, 1):
        a, b = (np.moveaxis(target, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        differs = np.moveaxis((a != b) & (a != 255) & (b != 255), 0, axis)
        pad = [(0, 0), (0, 0)]
        for before in (0, 1):
            pad[axis] = (before, 1 - before)
            edge |= np.pad(differs, pad)
    return ndimage.binary_dilation(edge, np.ones((9, 9), bool))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("region", ["all", "near"])
def test_brier_calibration_and_error_detection_are_those_of_other_implementations(seed: int, region: str) -> None:
    c = case(seed)
    _, tile = filled(c)
    inside = (c.target != 255) & (near(c.target) if region == "near" else True)
    end = "" if region == "all" else "_near"
    p, truth, given = c.p[:, inside].T / 255, c.target[inside], c.pred[inside]
    assert value(f"brier{end}", tile) == pytest.approx(brier_score_loss(truth, p, scale_by_half=False, labels=list(range(K))), abs=1e-9)
    confidence, right = c.p[:, inside].T[np.arange(len(given)), given], given == truth
    doubt = np.searchsorted(DOUBT_EDGES, 255 - confidence, side="right")
    assert value(f"error_auroc{end}", tile) == pytest.approx(roc_auc_score(~right, doubt), abs=1e-9)
    assert value(f"error_auroc{end}", tile) == pytest.approx(roc_auc_score(~right, 255 - confidence), abs=0.01)
    ece = 0.0
    for low in range(15):
        bin_ = (confidence * 15 > low * 255) & (confidence * 15 <= (low + 1) * 255)
        if bin_.any():
            ece += bin_.mean() * abs(right[bin_].mean() - confidence[bin_].mean() / 255)
    assert value(f"ece{end}", tile) == pytest.approx(ece, abs=1e-9)
    orders = []
    for _ in range(200):  # ties in random order
        order = np.lexsort((np.random.default_rng(len(orders)).random(len(doubt)), doubt))
        orders.append((np.cumsum(~right[order]) / np.arange(1, len(order) + 1)).mean())
    assert value(f"aurc{end}", tile) == pytest.approx(np.mean(orders), abs=4 * np.std(orders) / np.sqrt(len(orders)) + 1e-9)


def test_detection_by_votes_is_that_of_scikit_learn() -> None:
    c = case(5)
    _, tile = filled(c)
    known = c.target != 255
    agreement = (c.samples == c.pred).mean(0)[known]
    expected = roc_auc_score((c.pred != c.target)[known], -agreement)
    assert value("error_auroc_votes", tile) == pytest.approx(expected, abs=1e-9)
    assert sum(tile[name] for name in (*VOTES_RIGHT, *VOTES_WRONG)) == known.sum()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_energy_score_is_its_definition_and_a_single_map_is_a_point(n: int) -> None:
    c = case(7, n)
    rows, tile = filled(c)
    known = c.target != 255
    maps = [*c.samples, c.target]
    for k in range(K):

        def d(a: np.ndarray, b: np.ndarray, k: int = k) -> float:
            return 1 - jaccard_score((a == k)[known], (b == k)[known], zero_division=1.0)

        def d_boundary(a: np.ndarray, b: np.ndarray, k: int = k) -> float:
            a, b = (np.where(known, m, 255).astype(np.uint8) for m in (a, b))
            inter, union = boundary_iou(a, b, K, 2, (0, SIDE, 0, SIDE))
            return 1 - inter[k] / union[k]

        for name, distance in (("iou", d), ("boundary", d_boundary)):
            missed = np.mean([distance(s, maps[-1]) for s in maps[:-1]])
            spread = np.mean([distance(a, b) for a, b in itertools.product(maps[:-1], repeat=2)])
            assert rows[k][f"energy_{name}_value"] == pytest.approx(missed - spread / 2)
            if n == 1:
                assert rows[k][f"energy_{name}_value"] == pytest.approx(distance(c.samples[0], c.target))
                assert rows[k][f"spread_{name}_value"] is None
                assert VOTES_RIGHT[0] not in tile
            else:
                assert rows[k][f"spread_{name}_value"] == pytest.approx(spread * n / (n - 1))


def test_level_sets_are_thresholds_of_two_classes_and_follow_the_probabilities_of_more() -> None:
    p = np.random.default_rng(3).dirichlet(np.ones(2), (20, 20)).transpose(2, 0, 1).astype(np.float32)
    assert (level_sets(p, 4) == np.stack([p[1] > u for u in (1 / 8, 3 / 8, 5 / 8, 7 / 8)])).all()
    p = np.full((3, 2, 2), [[[0.2]], [[0.5]], [[0.3]]], np.float32)
    maps = level_sets(p, 4000)
    assert (maps == maps[:, :1, :1]).all(), "pixels share their luck"
    assert np.bincount(maps[:, 0, 0], minlength=3) / 4000 == pytest.approx([0.2, 0.5, 0.3], abs=0.03)


def test_the_energy_of_level_sets_is_that_of_samples_cut_by_hand() -> None:
    c = case(5, k=2)
    cut = np.stack([c.p[1] / 255 > u for u in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]).astype(np.uint8)
    (rows, _), (by_hand, _) = filled(c, k=2), filled(dataclasses.replace(c, samples=cut), k=2)
    for name in ("iou", "boundary"):
        assert [r[f"energy_{name}_levels_value"] for r in rows] == [r[f"energy_{name}_value"] for r in by_hand]


def test_a_class_that_is_nowhere_has_no_energy_and_perfect_samples_have_none() -> None:
    c = case(1, k=2)
    c = dataclasses.replace(c, samples=np.stack([np.where(c.target == 255, 0, c.target)] * 3).astype(np.uint8))
    rows, _ = filled(dataclasses.replace(c, p=np.concatenate([c.p, 0 * c.p[:1]])))
    assert [row["energy_iou_value"] for row in rows] == [0, 0, None]
    assert [row["spread_boundary_value"] for row in rows] == [0, 0, None]


def test_whole_numbers_of_tiles_add_up_to_those_of_the_raster() -> None:
    c = case(3)
    p = (c.p / 255).astype(np.float32)

    def window(array: np.ndarray, row: int, col: int, height: int, width: int) -> np.ndarray:
        return array[..., row : row + height, col : col + width]

    pair = Pair(
        "r", "r", "val", SIDE, SIDE, K, lambda *w: window(c.pred, *w), {"full": lambda *w: window(c.target, *w)},
        sampled=lambda *w: Sampled(window(p, *w), window(c.samples, *w)),
    )  # fmt: skip
    config = ScoreConfig(uncertainty=True, boundary_px=2)
    whole = [r for counts, _ in tiles_of(pair, config) for r in counts]
    tiles = [r for counts, _ in tiles_of(pair, dataclasses.replace(config, tile_px=25)) for r in counts]
    assert len(tiles) == 9 * len(whole)
    for name in UNCERTAINTY:
        if not name.endswith("_value"):
            assert sum(r[name] for r in tiles if r["class"] == -1) == whole[-1][name], name
    assert [r for counts, _ in tiles_of(pair, ScoreConfig()) for r in counts][-1].keys().isdisjoint(UNCERTAINTY)


def test_undefined_without_pixels_of_either_kind() -> None:
    none = np.zeros(len(DOUBT_EDGES))
    some = none + 1
    assert np.isnan(formulas.error_auroc(some, none))
    assert np.isnan(formulas.risk_coverage(none, none))
    assert formulas.risk_coverage(some, none) == 0
    assert formulas.risk_coverage(none, some) == 1
    names = confidence_columns("all")
    assert len(names["right"]) == len(DOUBT_EDGES)


def test_keys_change_where_uncertainty_is_asked_for_and_nowhere_else() -> None:
    before, after, shaped = (
        {job.stage: job.key for job in jobs(apply(Experiment(), given))}
        for given in ({}, {"score.uncertainty": True}, {"score.objects": True})
    )
    assert {stage for stage in before if before[stage] != after[stage]} == {"refined", "counts"}
    assert {stage for stage in before if before[stage] != shaped[stage]} == {"counts"}


# ---- files ---------------------------------------------------------------------------------------------------------------------


def written(folder: Path, c: Case) -> dict[str, Path]:
    grid = Grid(SIDE, SIDE)
    paths = {name: folder / name / "a.tif" for name in ("pred", "target", "p", "s")}
    for path in paths.values():
        path.parent.mkdir()
    write_class_map(paths["pred"], c.pred, grid)
    write_class_map(paths["target"], c.target, grid)
    write_probabilities(paths["p"], c.p / 255, grid)
    write_probabilities(paths["s"], c.samples / 255, grid)
    return paths


def test_the_command_scores_probabilities_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = case(11)
    paths = written(tmp_path, c)
    rows, tile = filled(c)
    for pick in (lambda path: path, lambda path: path.parent):
        given = {name: pick(path) for name, path in paths.items()}
        words = [str(given["pred"]), str(given["target"]), "--probabilities", str(given["p"]), "--samples", str(given["s"])]
        assert run_verbs(VERBS, "idgbr", "", ["score", *words, "--boundary-px", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["label_sets"]["full"]["scores"]
        for name in ("brier", "ece_near", "error_auroc", "error_auroc_votes", "aurc"):
            assert found[name]["score"] == pytest.approx(value(name, tile), abs=1e-6)
        assert found["energy_boundary"]["per_class"] == pytest.approx([row["energy_boundary_value"] for row in rows])
    score(paths["pred"], paths["target"], json=True)
    assert "brier" not in json.loads(capsys.readouterr().out)["label_sets"]["full"]["scores"]
    with pytest.raises(BadRequest, match="beside probabilities"):
        score(paths["pred"], paths["target"], samples=paths["s"])
    with pytest.raises(Missing, match="probabilities: no such file"):
        score(paths["pred"], paths["target"], probabilities=tmp_path / "none.tif")


def test_the_stages_keep_and_count_what_a_coarse_map_says_about_its_confidence(tmp_path: Path) -> None:
    prepare(DataConfig(train_scenes=1, val_scenes=2, test_scenes=0, scene_px=96), tmp_path)
    dataset = load(tmp_path)
    rng = np.random.default_rng(0)
    expected, pixels = 0.0, 0
    for raster in dataset.rasters:
        assert raster.label is not None
        target = read_labels(raster.label, dataset.table)
        shown = ndimage.gaussian_filter((target == 1) + 0.3 * rng.standard_normal(target.shape), 2).clip(0, 1)
        p = np.rint(np.stack([1 - shown, shown]) * 255)
        (tmp_path / "coarse" / raster.id).parent.mkdir(parents=True, exist_ok=True)
        write_probabilities(tmp_path / "coarse" / f"{raster.id}.tif", p / 255, Grid.of(raster.label))
        if raster.split == "val":
            known = target != 255
            expected += (2 * (p[1] / 255 - (target == 1)) ** 2)[known].sum()
            pixels += int(known.sum())
    for asked in (False, True):
        out = tmp_path / f"refined{asked}"
        out.mkdir()
        refine_split(SamplerConfig(), None, dataset, tmp_path / "coarse", "val", seed=0, out=out, uncertainty=asked)
        assert (out / PROBABILITIES).is_dir() is asked
        assert not (out / SAMPLES).exists()
    plain, asked_for = tmp_path / "plain", tmp_path / "asked"
    config = ScoreConfig(uncertainty=True, objects=True)
    count_rasters(config, dataset, "val", tmp_path / "refinedTrue", tmp_path / "coarse", asked_for)
    count_rasters(ScoreConfig(), dataset, "val", tmp_path / "refinedFalse", tmp_path / "coarse", plain)
    frame, without = (read_counts(folder / "counts.parquet") for folder in (asked_for, plain))
    assert frame.select(without.columns).equals(without)
    assert evaluate(frame, "brier").score == pytest.approx(expected / pixels, abs=1e-6)
    assert set(METRICS) - set(score_table(frame)) == set()
    assert np.isnan(evaluate(frame, "error_auroc_votes").score)
    assert evaluate(frame, "boundary_iou_1px") == evaluate(frame, "boundary_iou")  # of such small scenes the width is 1 px
    with pytest.raises(Missing, match=r"score\.uncertainty=true"):
        evaluate(without, "brier")
    with pytest.raises(Missing, match=r"score\.objects=true"):
        evaluate(without, "object_f1")
    with pytest.raises(Missing, match="has no probabilities"):
        count_rasters(config, dataset, "val", tmp_path / "refinedFalse", tmp_path / "coarse", plain)
