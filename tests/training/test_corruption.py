"""Corrupted targets reach the wanted IoU (computed here by its definition), and look and behave as promised."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idgbr.coarse.simulate import MODES, corrupt, soften
from idgbr.errors import BadRequest


def scene(n_classes: int, seed: int, side: int = 128) -> np.ndarray:
    """Rotated rectangles on background, some of it ignored."""
    rng = np.random.default_rng(seed)
    target = np.zeros((side, side), np.uint8)
    for n in range(14):
        box = cv2.boxPoints(
            (tuple(map(float, rng.uniform(0, side, 2))), tuple(map(float, rng.uniform(8, 30, 2))), float(rng.uniform(0, 90)))
        )
        cv2.fillPoly(target, [box.astype(np.int32)], 1 + n % (n_classes - 1))
    target[: side // 8, : side // 3] = 255
    return target


def plain_iou(index: np.ndarray, target: np.ndarray, c: int) -> float:
    known = target != 255
    here, there = (index == c) & known, (target == c) & known
    return (here & there).sum() / (here | there).sum()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_classes=st.integers(2, 6),
    iou=st.floats(0.3, 0.98),
    modes=st.lists(st.sampled_from(MODES), min_size=1, unique=True),
)
def test_every_class_but_the_largest_is_within_a_point_of_the_wanted_iou(seed: int, n_classes: int, iou: float, modes: list[str]) -> None:
    target = scene(n_classes, seed)
    found = corrupt(target, n_classes, iou, modes, np.random.default_rng(seed))
    assert found.dtype == np.uint8
    assert ((found == 255) == (target == 255)).all()
    counts = np.bincount(target[target != 255], minlength=n_classes)
    for c in np.flatnonzero(counts):
        if c != counts.argmax():
            assert abs(plain_iou(found, target, c) - iou) <= max(0.01, 1 / counts[c])


def test_each_class_may_have_its_own_iou() -> None:
    target = scene(4, 3)
    found = corrupt(target, 4, [1.0, 0.5, 0.7, 0.9], MODES, np.random.default_rng(0))
    assert [plain_iou(found, target, c) for c in (1, 2, 3)] == pytest.approx([0.5, 0.7, 0.9], abs=0.01)


def test_the_same_generator_gives_the_same_map_and_another_another() -> None:
    target = scene(3, 1)
    one, two, three = (corrupt(target, 3, 0.7, MODES, np.random.default_rng(s)) for s in (5, 5, 6))
    assert (one == two).all()
    assert (one != three).any()


def test_missed_leaves_out_whole_objects_and_jitter_keeps_them() -> None:
    target = scene(2, 8)
    n, parts = cv2.connectedComponents((target == 1).astype(np.uint8))

    def kept(modes: tuple[str, ...]) -> list[float]:
        found = corrupt(target, 2, 0.5, modes, np.random.default_rng(1))
        objects = [parts == p for p in range(1, n) if (parts == p).sum() > 60]  # a sliver at the frame may jitter out of it
        return [float((found[o] == 1).mean()) for o in objects]

    assert min(kept(("missed",))) == 0
    assert min(kept(("jitter",))) > 0.1


def test_one_class_alone_comes_back_as_it_is() -> None:
    target = np.zeros((32, 32), np.uint8)
    target[:4] = 255
    assert (corrupt(target, 2, 0.6, MODES, np.random.default_rng(0)) == target).all()
    ignored = np.full((32, 32), 255, np.uint8)
    assert (corrupt(ignored, 2, 0.6, MODES, np.random.default_rng(0)) == 255).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_classes=st.integers(2, 5))
def test_soft_probabilities_keep_the_map_and_are_unsure_at_its_borders(seed: int, n_classes: int) -> None:
    index = scene(n_classes, seed)
    p = soften(index, n_classes, np.random.default_rng(seed))
    assert p.sum(0) == pytest.approx(1, abs=1e-5)
    known = index != 255
    assert (np.rint(p * 255).argmax(0)[known] == index[known]).all()
    filled = np.where(known, index, 0)
    edges = cv2.dilate(cv2.morphologyEx(filled, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)), np.ones((3, 3))) > 0
    far = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, 3) > 8
    unsure, sure = p.max(0)[edges & known].mean(), p.max(0)[far & known].mean()
    assert unsure < 0.85
    assert sure > 0.9
    assert sure - unsure > 0.1


def test_bad_requests_name_what_is_allowed() -> None:
    target = scene(2, 0)
    with pytest.raises(BadRequest, match="did you mean 'jitter'"):
        corrupt(target, 2, 0.7, ("jiter",), np.random.default_rng(0))
    with pytest.raises(BadRequest, match="wanted IoU"):
        corrupt(target, 2, 1.2, MODES, np.random.default_rng(0))
    with pytest.raises(BadRequest, match="needs a mode"):
        corrupt(target, 2, 0.7, (), np.random.default_rng(0))
