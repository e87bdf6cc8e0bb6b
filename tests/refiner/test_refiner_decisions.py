"""From draws to one map, and the decision that is saved with a refiner."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from small_refiner import CLASSES, TINY
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest
from idgbr.refiner.decisions import Block, _counts, _gain_error, _scores, boundary_bands, decide, decided_map, guarded, tune
from idgbr.refiner.refiner import Refiner
from idgbr.training.held_out import BLOCK_PX, held_out_blocks, hide
from idgbr.training.samples import TrainSamples, tempered

Build = Callable[..., Refiner]
Batch = Callable[..., dict[str, Tensor]]
Stir = Callable[[Refiner], Refiner]


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(np.float32)


def blobs(rng: np.random.Generator, n_classes: int, side: int = 48) -> np.ndarray:
    """Smooth random class map."""
    return np.stack([ndimage.gaussian_filter(rng.normal(size=(side, side)), 5) for _ in range(n_classes)]).argmax(0).astype(np.uint8)


def soft(index: np.ndarray, n_classes: int, sure: float = 0.9) -> np.ndarray:
    hot = np.arange(n_classes)[:, None, None] == index
    return np.where(hot, sure, (1 - sure) / (n_classes - 1)).astype(np.float32)


def test_the_guard_lies_between_the_two_maps() -> None:
    rng = np.random.default_rng(0)
    refined, coarse = softmax(rng.normal(size=(2, 4, 8, 8)), 1), softmax(rng.normal(size=(2, 4, 8, 8)), 1)
    assert np.array_equal(guarded(refined, coarse, 1.0), refined)
    np.testing.assert_allclose(guarded(refined, coarse, 0.0), coarse, rtol=1e-4)
    half = guarded(refined, coarse, 0.5)
    np.testing.assert_allclose(half.sum(1), 1, rtol=1e-5)
    assert np.array_equal(half.argmax(1), (refined * coarse).argmax(1))


def test_pixels_without_a_sure_class_keep_their_coarse_probabilities() -> None:
    rng = np.random.default_rng(3)
    refined, coarse = softmax(2 * rng.normal(size=(1, 2, 3, 16, 16)), 2), softmax(rng.normal(size=(2, 3, 16, 16)), 1)
    found = decide(refined, coarse, sure=0.7)
    sure = refined[0].max(1) >= 0.7
    assert 0.1 < sure.mean() < 0.9
    assert np.array_equal(found.swapaxes(0, 1)[:, sure], refined[0].swapaxes(0, 1)[:, sure])
    assert np.array_equal(found.swapaxes(0, 1)[:, ~sure], coarse.swapaxes(0, 1)[:, ~sure])


def test_tuning_takes_a_sure_class_where_unsure_changes_do_harm() -> None:
    rng = np.random.default_rng(0)
    truth, coarse, refined = np.zeros((48, 48), np.uint8), np.zeros((48, 48), np.uint8), np.zeros((2, 48, 48), np.float32)
    truth[8:40, 8:40] = 1
    coarse[8:40, 8:30] = 1
    refined[1] = np.where(truth, 0.95, 0.05)
    noisy = rng.random((48, 48)) < 0.3
    refined[1][noisy] = np.where(truth, 0.4, 0.6)[noisy]  # wrong, and unsure
    refined[0] = 1 - refined[1]
    tuned = tune([Block(refined, soft(coarse, 2), truth)], (0.0, 0.8))
    assert tuned.sure == 0.8
    assert tuned.apply(SamplerConfig()).sure == 0.8
    assert tuned.boundary_iou > tuned.coarse_boundary_iou


def test_bands_are_the_pixels_near_the_edge_of_their_class() -> None:
    index = blobs(np.random.default_rng(1), 3)
    bands = boundary_bands(index, 3)
    for k in range(3):
        mask = index == k
        inner = ndimage.binary_erosion(mask, np.ones((5, 5)), border_value=1)
        assert np.array_equal(bands[k], mask & ~inner)


def test_the_least_risk_is_that_of_all_candidates() -> None:
    """Against a plain rendering: the map with the highest mean boundary IoU against the draws."""
    rng = np.random.default_rng(2)
    truth = blobs(rng, 2)
    draws = np.stack([soft(np.roll(truth, shift, axis=1), 2)[None] for shift in (0, 1, 1, 6)])
    found = decide(draws, draws[0], "mbr")[0]

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        x, y = boundary_bands(a, 2), boundary_bands(b, 2)
        return float(((x & y).sum((1, 2)) / (x | y).sum((1, 2))).mean())

    maps = [draws.mean(0)[0], *draws[:, 0]]
    classes = [m.argmax(0).astype(np.uint8) for m in maps]
    scores = [np.mean([iou(classes[i], classes[j]) for j in range(1, 5) if j != i]) for i in range(5)]
    assert np.array_equal(found, maps[int(np.argmax(scores))])
    assert not np.array_equal(found, draws[3, 0])  # not the one that stands alone
    assert np.array_equal(decide(draws[:1], draws[0], "mbr"), draws[0])
    assert np.array_equal(decide(draws, draws[0]), draws.mean(0))


@pytest.mark.parametrize("n", [3, 9])
def test_a_gain_within_its_standard_error_is_taken_for_none(n: int) -> None:
    """Better on one block and a little worse on the others: their sum gains, but the next block may not."""

    def block(coarse_shift: int, refined_shift: int) -> Block:
        target = np.zeros((48, 48), np.uint8)
        target[12:36, 12:36] = 1
        return Block(soft(np.roll(target, refined_shift, 1), 2), soft(np.roll(target, coarse_shift, 1), 2), target)

    steady = tune([block(1 + i % 3, 0) for i in range(n)])
    assert steady.trust > 0
    assert steady.boundary_iou == 1
    lucky = [block(7, 0)] * (n // 3) + [block(0, 1)] * (n - n // 3)
    before, after = (_scores(_counts(lucky, maps).sum(axis=0)) for maps in (
        [b.coarse.argmax(0).astype(np.uint8) for b in lucky], [b.refined.argmax(0).astype(np.uint8) for b in lucky]
    ))  # fmt: skip
    assert after > before
    tuned = tune(lucky)
    assert (tuned.trust, tuned.miou, tuned.boundary_iou) == (0, *before)


def test_the_standard_error_is_that_of_the_mean_where_the_score_is_a_mean() -> None:
    rng = np.random.default_rng(0)
    before, after = np.ones((2, 12, 4, 1), np.int64) * 1000
    before[:, 2, 0], after[:, 2, 0] = rng.integers(100, 900, (2, 12))
    gains = (after - before)[:, 2, 0] / 1000
    assert _gain_error(before, after) == pytest.approx(gains.std(ddof=1) / np.sqrt(12))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_classes=st.integers(2, 4), good=st.booleans())
def test_a_tuned_decision_does_no_harm_on_its_blocks(seed: int, n_classes: int, good: bool) -> None:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        target = blobs(rng, n_classes)
        refined = target if good else blobs(rng, n_classes)
        coarse = soft(np.roll(target, 2, axis=0), n_classes, 0.8)
        known = np.where(rng.random(target.shape) < 0.05, 255, target).astype(np.uint8)
        made.append(Block(soft(refined, n_classes), coarse, known))
    tuned = tune(made)
    assert tuned.miou >= tuned.coarse_miou
    assert tuned.boundary_iou >= tuned.coarse_boundary_iou
    if good:
        assert tuned.boundary_iou > 0.95
    maps = [decided_map(b.refined, b.coarse, tuned.trust, tuned.reach_px, tuned.keep_confidence) for b in made]
    if not tuned.trust:
        assert all(np.array_equal(m, b.coarse.argmax(0)) for m, b in zip(maps, made, strict=True))
    # the scores are those of the maps: IoU of every class over all known pixels
    truth, found = (np.concatenate([x[b.target != 255] for x, b in zip(xs, made, strict=True)]) for xs in ([b.target for b in made], maps))
    ious = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in range(n_classes)]
    assert tuned.miou == pytest.approx(np.mean(ious))


def test_class_maps_have_no_confidence_to_decide_by(build: Build, batch: Batch) -> None:
    refiner, sample = build(), batch(1)
    for wrong in ({"trust": 0.5}, {"keep_confidence": 0.9}):
        with pytest.raises(BadRequest, match="says nothing about confidence"):
            refiner.refine(sample["image"], sample["target"], **wrong)


def test_without_settings_the_saved_decision_holds(build: Build, batch: Batch, stir: Stir, tmp_path: Path) -> None:
    refiner, sample = stir(build()), batch(1)
    image, coarse, index = sample["image"], sample["coarse"], sample["target"]
    plain = refiner.refine(image, coarse, return_probabilities=True)
    refiner.decision = SamplerConfig(sampler="renoise", steps=2, samples=3, trust=0.5, reach_px=4.0, keep_confidence=0.7)
    refiner.save(tmp_path)
    loaded = Refiner.load(tmp_path)
    assert loaded.decision == refiner.decision
    found = loaded.refine(image, coarse, return_probabilities=True).probabilities
    assert torch.equal(found, loaded.refine(image, coarse, config=refiner.decision, return_probabilities=True).probabilities)
    assert not torch.equal(found, plain.probabilities)
    one = dataclasses.replace(refiner.decision, steps=1)
    assert torch.equal(loaded.refine(image, coarse, steps=1), loaded.refine(image, coarse, config=one))
    assert torch.equal(loaded.refine(image, coarse, config=SamplerConfig()), plain.index)
    # a class map says nothing about confidence: the reach alone is left
    assert torch.equal(
        loaded.refine(image, index), refiner.refine(image, index, config=dataclasses.replace(refiner.decision, trust=1, keep_confidence=0))
    )
    loaded.decision = dataclasses.replace(refiner.decision, trust=0)
    assert torch.equal(loaded.refine(image, index), index)


def test_scenes_are_refined_by_the_saved_decision(build: Build, tmp_path: Path) -> None:
    from idgbr.config import Runtime
    from idgbr.scene.model import load_model

    refiner = build()
    refiner.save(tmp_path / "plain")
    refiner.decision = SamplerConfig(sampler="renoise", steps=2, samples=3, trust=0.5, reach_px=4.0, keep_confidence=0.7)
    refiner.save(tmp_path / "tuned")
    plain, tuned = (load_model(str(tmp_path / name), str(tmp_path / "store"), Runtime(device="cpu")) for name in ("plain", "tuned"))
    assert not plain.decided
    assert tuned.decided
    assert tuned.sampler == dataclasses.replace(refiner.decision, tile_px=plain.sampler.tile_px, overlap_px=plain.sampler.overlap_px)


# ---- ground that trains nothing ---------------------------------------------------------------------------------------------------


def test_held_out_ground_is_never_a_target(large_scenes) -> None:
    dataset, coarse_dir = large_scenes
    rasters = dataset.of("train")
    places = held_out_blocks(rasters, 0.25)
    assert sum(map(len, places.values())) == 2  # of 2 x 4 blocks
    assert places == held_out_blocks(rasters[::-1], 0.25)
    assert sum(map(len, held_out_blocks(rasters, 1e-6).values())) == 1
    assert held_out_blocks(rasters, 0.0) == {}
    shown, hidden = (TrainSamples(dataset, rasters, 96, 0, coarse_dir, augment=False, held_out=share) for share in (0.0, 0.25))
    for i in range(20):
        (raster, row, col), target = (
            hidden._place(np.random.Generator(np.random.Philox(np.random.SeedSequence([0, i])))),
            hidden[i]["target"].numpy(),
        )
        mask = np.zeros((300, 300), bool)
        for top, left in places.get(raster.id, ()):
            mask[top : top + BLOCK_PX, left : left + BLOCK_PX] = True
        inside = mask[row : row + 96, col : col + 96]
        assert (target[inside] == 255).all()
        assert np.array_equal(target[~inside], shown[i]["target"].numpy()[~inside])
        assert torch.equal(hidden[i]["image"], shown[i]["image"])
    window = hide(np.zeros((4, 4), np.uint8), ((0, 0),), row=254, col=254)
    assert (window == np.array([[255, 255, 0, 0], [255, 255, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])).all()


def test_temperature_changes_how_sure_a_map_is_and_not_what_it_says(large_scenes) -> None:
    dataset, coarse_dir = large_scenes
    p = softmax(np.random.default_rng(0).normal(size=(3, 8, 8)), 0)
    for t in (0.5, 2.0):
        q = tempered(p, t)
        assert np.array_equal(q.argmax(0), p.argmax(0))
        np.testing.assert_allclose(np.log(q[0] / q[1]), np.log(p[0] / p[1]) / t, rtol=1e-3, atol=1e-5)
    plain, spread = (TrainSamples(dataset, dataset.of("train"), 64, 0, coarse_dir, temperature_spread=s) for s in (0.0, 0.3))
    factors = []
    for i in range(40):
        a, b = plain[i], spread[i]
        odds = [torch.log(x["coarse"].clamp(1e-6)[0] / x["coarse"].clamp(1e-6)[1]) for x in (a, b)]
        if a["target"].unique().numel() > 1:
            factors.append(float(odds[0].abs().median() / odds[1].abs().median()))
    assert 0.15 < np.std(np.log(factors)) < 0.5


def test_fit_saves_a_decision_that_does_no_harm_on_the_held_out_ground(large_scenes, tmp_path: Path) -> None:
    from idgbr.refiner.loss import fit

    dataset, coarse_dir = large_scenes
    small = {**TINY, "target_loss": "auto", "batch_images": 4, "train_images": 8, "held_out": 0.1, "recycle": 1.0}
    fit(RefinerConfig(**small), dataset, coarse_dir, seed=0, out=tmp_path)
    decision = Refiner.load(tmp_path).decision
    assert decision is not None
    assert (decision.sampler, decision.steps, decision.samples) == ("renoise", 4, 1)
    assert decision.trust == 0  # after two steps it has learnt nothing: the coarse map stays
    assert json.loads((tmp_path / "config.json").read_text())["decision"]["trust"] == 0
    fit(RefinerConfig(**{**small, "held_out": 0.0}), dataset, coarse_dir, seed=0, out=tmp_path / "none")
    assert Refiner.load(tmp_path / "none").decision is None


def test_on_real_fields_the_saved_decision_loses_nothing_on_its_ground(tmp_path: Path) -> None:
    """Two windows of the fields that come with idgbr: IoU by plain loops, and the coarse map where nothing helps."""
    from PIL import Image

    import idgbr.datasets
    from idgbr.coarse.simulate import corrupt
    from idgbr.coarse.simulate import soften as softened
    from idgbr.config import DataConfig
    from idgbr.datasets import load, prepare
    from idgbr.labels import IGNORE, ClassTable, LabelClass
    from idgbr.rasters.coarse_map import read_coarse
    from idgbr.rasters.read import Grid, read_labels, write_probabilities
    from idgbr.refiner.loss import fit
    from idgbr.refiner.tuning import _blocks, default_sampler

    fields = Path(idgbr.datasets.__file__).parent / "naip_fields"
    names = ["f38p7482_w89p6549", "f39p6679_w95p4288"]
    for name in names:
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.open(fields / kind / f"{name}.{suffix}").crop((300, 300, 812, 556)).convert("RGB" if kind == "images" else "L").point(
                lambda v, m=kind: v if m == "images" else int(v > 0)
            ).save(tmp_path / kind / f"{name}.png")
    lines = [f"images/{name}.png,masks/{name}.png,train,{name}" for name in names]
    (tmp_path / "splits.csv").write_text("\n".join(["image,mask,split,scene", *lines]))
    table = ClassTable((LabelClass("other", (0,), (0, 0, 0)), LabelClass("field", (1,), (255, 255, 0))))
    (tmp_path / "classes.json").write_text(table.to_json())
    prepare(DataConfig(source="folder", root=str(tmp_path)), tmp_path / "data")
    dataset = load(tmp_path / "data")
    for raster in dataset.rasters:
        assert raster.label is not None
        rng = np.random.default_rng(0)
        index = corrupt(read_labels(raster.label, dataset.table), 2, 0.75, ("jitter", "missed", "shift"), rng)
        (tmp_path / "coarse" / raster.id).parent.mkdir(parents=True, exist_ok=True)
        write_probabilities(tmp_path / "coarse" / f"{raster.id}.tif", softened(index, 2, rng), Grid.of(raster.label))
    config = RefinerConfig(
        **{**TINY, **CLASSES, "crop_px": 64, "batch_images": 8, "train_images": 32, "lr": 3e-3, "held_out": 0.25, "kind": "one_pass"}
    )
    fit(config, dataset, tmp_path / "coarse", seed=0, out=tmp_path / "refiner")
    refiner = Refiner.load(tmp_path / "refiner")
    decision = refiner.decision
    assert decision is not None
    blocks = list(_blocks(refiner, default_sampler(refiner), dataset, tmp_path / "coarse", 0.25))
    assert len(blocks) == 1
    truth = np.concatenate([b.target.ravel() for b in blocks])
    known = truth != IGNORE
    scores = []
    for maps in (
        [b.coarse.argmax(0) for b in blocks],
        [decided_map(b.refined, b.coarse, decision.trust, decision.reach_px, decision.keep_confidence) for b in blocks],
        [b.refined.argmax(0) for b in blocks],
    ):
        found = np.concatenate([m.ravel() for m in maps])[known]
        here, there = (np.stack([m == k for k in range(2)]) for m in (found, truth[known]))
        scores.append(((here & there).sum(1) / (here | there).sum(1)).mean())
    coarse, decided, unguarded = scores
    assert decided >= coarse
    assert unguarded < coarse  # after 32 images the bare refiner loses, so the decision is what keeps the score
    if decision.trust == 0:
        image, valid = dataset.rasters[0].reader(dataset.bands).read(0, 0, 64, 64)
        before = read_coarse(tmp_path / "coarse", dataset.rasters[0].id, (0, 0, 64, 64))
        assert np.array_equal(refiner.refine(image, before, valid=valid), before.argmax(0))
