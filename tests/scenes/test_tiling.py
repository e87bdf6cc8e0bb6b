"""Windows cover everything; blending gives back what all tiles agree on, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idgbr.errors import BadRequest
from idgbr.rasters.tiling import Strip, hann, windows

sizes = st.tuples(st.integers(1, 150), st.integers(1, 150), st.integers(2, 50)).flatmap(
    lambda t: st.tuples(st.just(t[0]), st.just(t[1]), st.just(t[2]), st.integers(0, t[2] - 1))
)


@settings(max_examples=80, deadline=None)
@given(sizes)
def test_windows_cover_every_pixel_and_stay_inside(size):
    height, width, tile, overlap = size
    seen = np.zeros((max(height, tile), max(width, tile)), int)
    for w in windows(height, width, tile, overlap):
        assert (w.height, w.width) == (tile, tile)
        assert 0 <= w.row <= max(height - tile, 0)
        assert 0 <= w.col <= max(width - tile, 0)
        seen[w.row : w.row + tile, w.col : w.col + tile] += 1
    assert seen[:height, :width].min() >= 1


@settings(max_examples=80, deadline=None)
@given(sizes, st.randoms(use_true_random=False))
def test_blending_tiles_that_agree_gives_the_raster_back_in_any_order(size, random):
    height, width, tile, overlap = size
    truth = np.random.default_rng(0).random((2, height, width), dtype=np.float32)
    padded = np.pad(truth, ((0, 0), (0, max(tile - height, 0)), (0, max(tile - width, 0))), mode="edge")
    todo = windows(height, width, tile, overlap)
    order = list(todo)
    random.shuffle(order)
    results = []
    for sequence in (todo, order):
        strip, out, end = Strip(2, height, width, tile, overlap), np.full_like(truth, np.nan), 0
        for w in sequence:
            for row, block in strip.add(w, padded[:, w.row : w.row + tile, w.col : w.col + tile]):
                assert row == end
                end = row + block.shape[1]
                out[:, row:end] = block
        assert end == height
        results.append(out)
    assert np.abs(results[0] - truth).max() < 1e-5
    assert (results[0] == results[1]).all()


def test_blending_is_the_weighted_mean_of_the_tiles():
    height, width, tile, overlap = 100, 130, 48, 20
    rng = np.random.default_rng(0)
    tiles = {w: rng.random((1, tile, tile), dtype=np.float32) for w in windows(height, width, tile, overlap)}
    top, bottom = np.zeros((height, width)), np.zeros((height, width))
    weight = hann(tile, overlap).astype(float)
    for w, values in tiles.items():
        top[w.row : w.row + tile, w.col : w.col + tile] += weight * values[0]
        bottom[w.row : w.row + tile, w.col : w.col + tile] += weight
    strip, got = Strip(1, height, width, tile, overlap), np.zeros((height, width))
    for w, values in tiles.items():
        for row, block in strip.add(w, values):
            got[row : row + block.shape[1]] = block[0]
    assert np.abs(got - top / bottom).max() < 1e-6


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (64, 32), (10, 0), (33, 7)])
def test_weights_of_neighbours_sum_to_one_and_are_never_zero(tile, overlap):
    weight = hann(tile, overlap)
    assert weight.min() > 0
    line = np.sqrt(np.diag(weight))
    assert np.allclose(line[:overlap] + line[tile - overlap :][:overlap] if overlap else 1, 1)


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(BadRequest, match="smaller than the tile"):
        windows(10, 10, 8, 8)
