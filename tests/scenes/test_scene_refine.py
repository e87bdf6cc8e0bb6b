"""A scene refined strip by strip: identity, gating, layouts, seams, small scenes, nodata."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from scene_doubles import KnowingRefiner, blobs
from scipy.ndimage import distance_transform_edt

from idgbr.config import SamplerConfig
from idgbr.errors import BadRequest, Disagreement
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.coarse_map import CoarseMap, MemoryCoarse
from idgbr.rasters.read import IGNORE, Grid, Reader, write_class_map, write_probabilities
from idgbr.rasters.tiling import windows
from idgbr.scene.strips import Tally, refine_raster, refine_rows

SAMPLER = SamplerConfig(tile_px=64, overlap_px=16, batch_tiles=5)


@pytest.fixture
def scene(tmp_path, grid, write_image):
    """Image that shows the truth, truth, and a coarse map that is the truth shifted by 3 px."""
    rng = np.random.default_rng(7)
    truth = blobs(rng, 230, 310)
    coarse = np.roll(truth, (3, 3), (0, 1))
    g = grid(230, 310)
    image = write_image(tmp_path / "scene.tif", np.stack([truth * 10, truth * 0 + 7, truth * 0 + 9]), g)
    return Reader(image), truth, coarse, g


def run(reader, coarse, refiner, sampler=SAMPLER, n_classes=3, **more):
    tally = Tally()
    parts = list(
        refine_rows(
            refiner, sampler, reader, MemoryCoarse(coarse, n_classes, reader.grid), n_classes, raster_id="s", seed=3, tally=tally, **more
        )
    )
    assert [p.row for p in parts] == list(np.cumsum([0, *(len(p.index) for p in parts)])[:-1] + parts[0].row)
    return np.concatenate([p.index for p in parts]), tally, np.concatenate([p.bands for p in parts], axis=1)


def test_a_refiner_that_knows_the_truth_mends_the_whole_scene(scene):
    reader, truth, coarse, _ = scene
    out, tally, _ = run(reader, coarse, KnowingRefiner(3))
    assert (out == truth).all()
    assert tally.computed == tally.tiles == 5 * 7
    assert tally.changed == (coarse != truth).sum()


def test_probabilities_and_samples_are_those_of_the_map_and_do_not_change_it(scene, tmp_path):
    reader, _, coarse, g = scene
    sampler = dataclasses.replace(SAMPLER, samples=3, reach_px=6.0)
    soft = np.eye(3, dtype=np.float32)[coarse].transpose(2, 0, 1) * 0.8 + 0.2 / 3
    before = MemoryCoarse(soft, 3, g)
    plain, kept = (
        list(refine_rows(KnowingRefiner(3, noise=1.2), sampler, reader, before, 3, raster_id="s", seed=3, samples=n)) for n in (0, 3)
    )
    assert all(part.probabilities is None and part.samples is None for part in plain)
    index = np.concatenate([part.index for part in kept])
    assert (index == np.concatenate([part.index for part in plain])).all()
    p, samples = (np.concatenate([getattr(part, name) for part in kept], axis=1) for name in ("probabilities", "samples"))
    assert (np.take_along_axis(p, index[None].astype(int), 0)[0] == p.max(0)).all()
    assert abs(p.sum(0, dtype=int) - 255).max() <= 1
    still = np.isclose(p / 255, soft, atol=1 / 255).all(0)
    assert still.mean() > 0.1  # beyond reach
    assert (samples[:, still] == coarse[still]).mean() > 0.99
    differs = [(a != b).mean() for a, b in ((samples[0], samples[1]), (samples[0], samples[2]), (samples[0], index))]
    assert min(differs) > 0.01
    paths = {"probabilities": tmp_path / "p.tif", "samples": (tmp_path / "s.tif", 3)}
    table = ClassTable(tuple(LabelClass(name, (i,), (i, i, i)) for i, name in enumerate("abc")))
    refine_raster(KnowingRefiner(3, noise=1.2), sampler, reader, before, tmp_path / "m.tif", raster_id="s", seed=3, table=table, **paths)
    with rasterio.open(tmp_path / "s.tif") as file:
        assert (file.read() == samples).all()
    with rasterio.open(tmp_path / "p.tif") as file:
        assert (file.read() == p).all()


def test_tiles_are_told_their_ground_where_they_share_noise(scene):
    reader, _, coarse, _ = scene
    seen = []

    class Asked(KnowingRefiner):
        def draw(self, condition, seeds, sampler):
            seen.extend(seeds)
            return super().draw(condition, range(len(seeds)), sampler)

    run(reader, coarse, Asked(3), dataclasses.replace(SAMPLER, shared_noise=True))
    assert len({s.seed for s in seen}) == 1
    assert {(s.row, s.col) for s in seen} == {(w.row, w.col) for w in windows(230, 310, 64, 16)}
    seen.clear()
    run(reader, coarse, Asked(3))
    assert len({*seen}) == len(seen) == len(windows(230, 310, 64, 16))


def test_pixels_beyond_reach_keep_the_coarse_class_and_the_others_are_those_of_no_limit(scene):
    reader, _, coarse, _ = scene

    # a refiner that would change everything: it sees classes rolled by one
    class Contrary(KnowingRefiner):
        def draw(self, condition, seeds, sampler):
            return np.roll(super().draw((condition[1].argmax(axis=1)[:, None] * 10.0, condition[1]), seeds, sampler), 1, axis=2)

    free, _, _ = run(reader, coarse, Contrary(3))
    assert (free != coarse).all()
    for reach in (1.0, 4.5, 9.0):
        out, _, _ = run(reader, coarse, Contrary(3), dataclasses.replace(SAMPLER, reach_px=reach))
        edge = np.zeros(coarse.shape, bool)
        edge[:, 1:] |= coarse[:, 1:] != coarse[:, :-1]
        edge[:, :-1] |= coarse[:, 1:] != coarse[:, :-1]
        edge[1:] |= coarse[1:] != coarse[:-1]
        edge[:-1] |= coarse[1:] != coarse[:-1]
        far = distance_transform_edt(~edge) > reach
        assert (out[far] == coarse[far]).all()
        assert (out[~far] == free[~far]).all()


def test_tiles_left_out_by_gating_change_nothing(scene, monkeypatch):
    reader, _, _, _ = scene
    coarse = np.zeros((230, 310), np.uint8)
    coarse[20:40, 200:230] = 1  # one small patch
    sampler = dataclasses.replace(SAMPLER, reach_px=5.0)
    gated, tally, _ = run(reader, coarse, KnowingRefiner(3, noise=1.0), sampler)
    assert 0 < tally.computed < 8 < tally.tiles
    assert (gated != coarse).any()

    class Everywhere(np.ndarray):  # a mask that claims every tile has something to do
        def any(self, *args, **kwargs):
            return True if not args and not kwargs else super().any(*args, **kwargs)

    from idgbr.scene import strips

    plain = strips._tile_row
    monkeypatch.setattr(strips, "_tile_row", lambda *a: dataclasses.replace(r := plain(*a), open=r.open.view(Everywhere)))
    full, tally_full, _ = run(reader, coarse, KnowingRefiner(3, noise=1.0), sampler)
    assert tally_full.computed == tally_full.tiles
    assert (gated == full).all()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_same_output_for_any_batch(scene, batch):
    reader, _, coarse, _ = scene
    want, _, bands = run(reader, coarse, KnowingRefiner(3, noise=2.0), dataclasses.replace(SAMPLER, samples=3), bands=True)
    assert (want != run(reader, coarse, KnowingRefiner(3, noise=2.0))[0]).any()  # the noise matters
    got, _, got_bands = run(
        reader, coarse, KnowingRefiner(3, noise=2.0), dataclasses.replace(SAMPLER, samples=3, batch_tiles=batch), bands=True
    )
    assert (got == want).all()
    assert (got_bands == bands).all()


def test_going_on_from_any_row_gives_the_same_rows(scene):
    reader, _, coarse, _ = scene
    want, whole, _ = run(reader, coarse, KnowingRefiner(3, noise=2.0))
    for first in (1, 47, 48, 49, 100, 166, 200, 229):
        got, _, _ = run(reader, coarse, KnowingRefiner(3, noise=2.0), first_row=first)
        assert (got == want[first:]).all()
    head = Tally()
    for part in refine_rows(
        KnowingRefiner(3, noise=2.0), SAMPLER, reader, MemoryCoarse(coarse, 3, reader.grid), 3, raster_id="s", seed=3, tally=head
    ):
        if part.row + len(part.index) >= 96:
            break
    assert (head.pixels + run(reader, coarse, KnowingRefiner(3, noise=2.0), first_row=96)[1].pixels) == whole.pixels


@pytest.mark.parametrize("setting", ["strength", "trust"])
def test_strength_or_trust_zero_and_no_refiner_return_the_coarse_map_exactly(scene, setting):
    reader, _, coarse, _ = scene
    coarse[5:9, 5:90] = IGNORE
    refiner = KnowingRefiner(3)
    assert (run(reader, coarse, refiner, dataclasses.replace(SAMPLER, **{setting: 0}))[0] == coarse).all()
    assert (run(reader, coarse, None)[0] == coarse).all()
    assert refiner.batches == []


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (40, 63), (64, 64)])
def test_scenes_smaller_than_a_tile_are_padded_and_cropped_back(tmp_path, grid, write_image, size):
    truth = blobs(np.random.default_rng(1), *size, size=8)
    reader = Reader(write_image(tmp_path / "s.tif", np.stack([truth * 10] * 3), grid(*size)))
    for coarse in (np.zeros(size, np.uint8), np.eye(3, dtype=np.float32)[np.roll(truth, 1)].transpose(2, 0, 1)):
        out, _, _ = run(reader, coarse, KnowingRefiner(3))
        assert out.shape == size
        assert (out == truth).all()


def test_seams_are_no_worse_than_elsewhere(tmp_path, grid, write_image):
    """Each tile gets a bias of its own. Blended, errors at tile borders are no more frequent than inside; set side by side, they are."""

    class Biased(KnowingRefiner):
        def draw(self, condition, seeds, sampler):
            image, _ = condition
            value = np.array([np.random.default_rng(s).normal(0, 0.15) for s in seeds], np.float32)
            p = (image[:, 0] / 255 + value[:, None, None]).clip(0, 1)
            return np.stack([1 - p, p], axis=1)[None].astype(np.float32)

    rng = np.random.default_rng(2)
    import cv2

    level = cv2.GaussianBlur(rng.standard_normal((512, 512)).astype(np.float32), (0, 0), 6)
    level = (level / level.std() * 60 + 127.5).clip(0, 255)
    truth = (np.rint(level) > 127.5).astype(np.uint8)
    reader = Reader(write_image(tmp_path / "s.tif", np.stack([np.rint(level).astype(np.uint8)] * 3), grid(512, 512)))

    def jumps(overlap: int) -> tuple[float, float]:
        """Share of neighbouring pixel pairs across which the error changes: at columns where a tile's core begins, and elsewhere."""
        out, _, _ = run(reader, np.zeros((512, 512), np.uint8), Biased(2), SamplerConfig(tile_px=64, overlap_px=overlap), n_classes=2)
        wrong = out != truth
        change = (wrong[:, 1:] != wrong[:, :-1]).mean(axis=0)
        step = 64 - overlap
        at = np.zeros(511, bool)
        for start in range(step, 512 - 64 + 1, step):
            at[start - 1] = True  # first pixel of a tile
            at[start + overlap - 1] = True  # first pixel after the tile before
        return change[at].mean(), change[~at].mean()

    seam, elsewhere = jumps(32)
    assert seam <= elsewhere * 1.15
    hard_seam, hard_elsewhere = jumps(0)
    assert hard_seam > hard_elsewhere * 1.3  # the test can see a seam


def test_nodata_of_the_image_is_nodata_of_the_output(tmp_path, grid, write_image, table):
    truth = blobs(np.random.default_rng(3), 120, 150) + 1
    truth[:, :37] = 0  # nodata collar
    g = grid(120, 150)
    reader = Reader(write_image(tmp_path / "s.tif", np.stack([truth * 10] * 3), g, nodata=0))
    coarse = np.ones((120, 150), np.uint8)
    out, _, bands = run(reader, coarse, KnowingRefiner(4), n_classes=4, bands=True)
    assert (out[:, :37] == IGNORE).all()
    assert (out[:, 37:] == truth[:, 37:]).all()
    assert (bands[0][:, :37] == 0).all()
    assert (bands[0][:, 37:] > 100).all()
    kept, _, _ = run(reader, coarse, KnowingRefiner(4), n_classes=4, mask_nodata=False)
    assert (kept[:, :37] == 1).all()


def test_the_written_map_has_grid_nodata_colours_and_names(tmp_path, scene, table):
    reader, truth, coarse, g = scene
    soft = np.eye(3, dtype=np.float32)[coarse].transpose(2, 0, 1) * 0.7 + 0.1
    write_probabilities(tmp_path / "c.tif", soft, g)
    out, beside = tmp_path / "o.tif", tmp_path / "conf.tif"
    sampler = dataclasses.replace(SAMPLER, samples=2)
    tally = refine_raster(
        KnowingRefiner(3),
        sampler,
        reader,
        CoarseMap(tmp_path / "c.tif", table),
        out,
        raster_id="s",
        seed=0,
        table=table,
        confidence=beside,
        cog=True,
    )
    assert tally.changed == (coarse != truth).sum()
    assert Grid.of(out) == Grid.of(beside) == g
    with rasterio.open(out) as file:
        assert (file.read(1) == truth).all()
        assert file.nodata == IGNORE
        assert file.colormap(1)[1] == (255, 80, 40, 255)
        assert file.tags()["CLASS_2"] == "road"
    with rasterio.open(beside) as file:
        assert file.descriptions == ("confidence", "agreement", "entropy")
        assert (file.read(2) == 255).all()  # a refiner without noise agrees with itself
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.tif", "conf.tif", "o.tif", "scene.tif"]


def test_a_one_hot_file_and_a_class_map_file_give_the_same(tmp_path, scene, table):
    reader, _, coarse, g = scene
    write_class_map(tmp_path / "index.tif", coarse, g, table)
    write_probabilities(tmp_path / "hot.tif", np.eye(3, dtype=np.float32)[coarse].transpose(2, 0, 1), g)
    sampler = dataclasses.replace(SAMPLER, reach_px=4)
    seen = []
    for name in ("index.tif", "hot.tif"):
        out = tmp_path / f"out_{name}"
        refine_raster(
            KnowingRefiner(3, noise=1.5), sampler, reader, CoarseMap(tmp_path / name, table), out, raster_id="s", seed=0, table=table
        )
        seen.append(out.read_bytes())
    assert seen[0] == seen[1]


def test_another_grid_is_refused_with_both_grids_and_the_command(tmp_path, scene, table, grid):
    reader, _, coarse, g = scene
    moved = Grid(g.height, g.width, Affine(0.5, 0, 500000.25, 0, -0.5, 4600000.0), g.crs)
    write_class_map(tmp_path / "c.tif", coarse, moved, table)
    with pytest.raises(Disagreement) as error:
        refine_raster(None, SAMPLER, reader, CoarseMap(tmp_path / "c.tif", table), tmp_path / "o.tif", raster_id="s", seed=0, table=table)
    for part in (str(g), str(moved), "idgbr align", "c.tif", "--like"):
        assert part in str(error.value)
    assert error.value.exit_code == 4
    assert not (tmp_path / "o.tif").exists()


def test_confidence_limit_needs_probabilities(scene):
    reader, _, coarse, _ = scene
    with pytest.raises(BadRequest, match="probabilit"):
        run(reader, coarse, KnowingRefiner(3), dataclasses.replace(SAMPLER, keep_confidence=0.9))


def test_sure_pixels_keep_the_coarse_class(scene):
    reader, truth, coarse, _ = scene
    soft = np.eye(3, dtype=np.float32)[coarse].transpose(2, 0, 1) * 0.7 + 0.1
    sure = np.zeros(coarse.shape, bool)
    sure[:, 100:] = True
    soft[:, sure] = np.eye(3, dtype=np.float32)[coarse[sure]].T
    out, tally, _ = run(reader, soft, KnowingRefiner(3), dataclasses.replace(SAMPLER, keep_confidence=0.95))
    assert (out[sure] == coarse[sure]).all()
    assert (out[~sure] == truth[~sure]).all()
    assert tally.computed < tally.tiles


def test_a_reader_and_a_coarse_map_travel_to_other_processes(tmp_path, scene, table):
    reader, _, coarse, g = scene
    write_class_map(tmp_path / "c.tif", coarse, g, table)
    again = pickle.loads(pickle.dumps((reader, CoarseMap(tmp_path / "c.tif", table))))
    assert (again[0].read(3, 4, 10, 10)[0] == reader.read(3, 4, 10, 10)[0]).all()
    assert (again[1].strip(10, 20).index == coarse[10:30]).all()


def test_an_error_in_the_middle_leaves_nothing(tmp_path, scene, table):
    reader, _, coarse, g = scene

    class Breaking(KnowingRefiner):
        def draw(self, condition, seeds, sampler):
            if len(self.batches) == 3:
                raise KeyboardInterrupt
            return super().draw(condition, seeds, sampler)

    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        refine_raster(
            Breaking(3),
            SAMPLER,
            reader,
            MemoryCoarse(coarse, 3, g),
            folder / "o.tif",
            raster_id="s",
            seed=0,
            table=table,
            confidence=folder / "c.tif",
        )
    assert list(folder.iterdir()) == []


def test_the_output_path_is_a_path(tmp_path, scene, table):
    reader, _, coarse, g = scene
    with pytest.raises(BadRequest, match=r"\.tif"):
        refine_raster(None, SAMPLER, reader, MemoryCoarse(coarse, 3, g), Path(tmp_path / "o.png"), raster_id="s", seed=0, table=table)
