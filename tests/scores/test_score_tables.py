"""From the rasters of a data set to tables, and from tables to scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from idgbr.config import DataConfig, ScoreConfig
from idgbr.datasets import Dataset, load, prepare
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.rasters.read import Grid, read_labels
from idgbr.rasters.write import write_class_map, write_probabilities
from idgbr.scores import BANDS_SCHEMA, COUNTS_SCHEMA, METRICS, count_rasters, count_tile, evaluate, read_counts, score_table
from idgbr.scores import read as reading
from idgbr.scores.counts import TablesWriter
from idgbr.scores.schema import OBJECTS, UNCERTAINTY, counts_schema

CONFIG = ScoreConfig(tile_px=100, boundary_px=2, band_levels=3, surface=True)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path, dict[str, tuple[np.ndarray, ...]]]:
    """A synthetic data set with eroded labels, shifted predictions, and its counts in out/."""
    folder = tmp_path_factory.mktemp("counted")
    prepare(DataConfig(train_scenes=1, val_scenes=2, test_scenes=0, scene_px=230, n_classes=4), folder)
    dataset = load(folder)
    rasters, maps = [], {}
    for name in ("refined", "coarse"):
        (folder / name).mkdir()
    for raster in dataset.rasters:
        assert raster.label is not None
        target, grid = read_labels(raster.label, dataset.table), Grid.of(raster.label)
        eroded = target.copy()
        eroded[::3] = 255
        path = folder / f"{raster.id}_eroded.tif"
        write_class_map(path, eroded, grid, _index_table(dataset))
        rasters.append(dataclasses.replace(raster, label=folder / f"{raster.id}_full.tif", label_eroded=path))
        write_class_map(rasters[-1].label, target, grid, _index_table(dataset))
        clean = np.where(target == 255, 0, target).astype(np.uint8)
        refined, coarse = np.roll(clean, 2, 0), np.roll(clean, 5, 1)
        write_class_map(folder / "refined" / f"{raster.id}.tif", refined, grid, dataset.table)
        write_probabilities(folder / "coarse" / f"{raster.id}.tif", np.moveaxis(np.eye(4, dtype=np.float32)[coarse], -1, 0), grid)
        maps[raster.id] = (refined, target, eroded, coarse)
    dataset = dataclasses.replace(dataset, rasters=tuple(rasters), table=_index_table(dataset), block_m=30.0)
    said: list[int] = []
    count_rasters(CONFIG, dataset, "val", folder / "refined", folder / "coarse", folder / "out", report=lambda **v: said.append(v["done"]))
    assert said == [1, 2]
    return dataset, folder, maps


def _index_table(dataset: Dataset):
    from idgbr.rasters.coarse_map import index_table

    return index_table(dataset.table)


def test_tables_have_the_schemas_and_every_tile_of_both_label_sets(counted) -> None:
    _, folder, _ = counted
    for name, schema in (("counts", COUNTS_SCHEMA), ("bands", BANDS_SCHEMA)):
        assert pq.read_schema(folder / "out" / f"{name}.parquet").equals(schema, check_metadata=True)
    frame = read_counts(folder / "out" / "counts.parquet")
    assert sorted(frame["label_set"].unique()) == ["eroded", "full"]
    assert len(frame) == 2 * 9 * 5 * 2  # rasters, tiles, classes and the whole, label sets
    assert frame["trial"].null_count() == len(frame)
    first = frame.filter((pl.col("row") == 0) & (pl.col("col") == 0)).row(0, named=True)
    assert first["block"] == f"{first['scene']}/0_0"  # 100 px of 0.3 m: the middle lies at 15 m, in the first block of 30 m
    assert frame["block"].n_unique() == 2 * 9


def test_pooled_tiles_of_the_table_are_the_rasters_scored_whole(counted) -> None:
    dataset, folder, maps = counted
    frame = read_counts(folder / "out" / "counts.parquet")
    for raster in dataset.of("val"):
        refined, full, eroded, coarse = maps[raster.id]
        for label_set, target in (("full", full), ("eroded", eroded)):
            part = frame.filter((pl.col("raster") == raster.id) & (pl.col("label_set") == label_set))
            whole = count_tile(refined, target, 4, dataclasses.replace(CONFIG, surface=False), coarse)[0]
            for row in whole:
                here = part.filter(pl.col("class") == row["class"])
                for name, value in row.items():
                    if isinstance(value, int) and name != "class" and not name.startswith("mba"):  # mBA's radii go by the tile
                        assert abs(here[name].sum() - value) <= (18 if name.endswith("_loss") else 0), name


def test_scores_from_the_table_equal_what_another_engine_computes_from_the_file(counted) -> None:
    duckdb = pytest.importorskip("duckdb")
    _, folder, _ = counted
    path = folder / "out" / "counts.parquet"
    frame = read_counts(path).filter(pl.col("label_set") == "full")
    query = f"""select avg(iou) from (select class, sum(tp) / sum(tp + fp + fn) as iou from '{path}'
                where class >= 0 and label_set = 'full' group by class having sum(tp + fp + fn) > 0)"""
    assert evaluate(frame, "miou").score == pytest.approx(duckdb.sql(query).fetchall()[0][0], abs=1e-12)
    query = f"select sum(repaired - damaged) / sum(repaired + still_wrong) from '{path}' where class = -1 and label_set = 'full'"
    assert evaluate(frame, "net_gain").score == pytest.approx(duckdb.sql(query).fetchall()[0][0], abs=1e-12)


def test_every_metric_has_a_value_and_low_and_high_bands_sum_to_the_error_rate(counted) -> None:
    _, folder, _ = counted
    frame = read_counts(folder / "out" / "counts.parquet").filter(pl.col("label_set") == "full")
    values = score_table(frame)
    assert set(values) == {name for name, m in METRICS.items() if not set(m.columns) & {*OBJECTS, *UNCERTAINTY}}
    assert all(np.isfinite(v.score) for v in values.values())
    assert values["low_band_error"].score + values["high_band_error"].score == pytest.approx(1 - values["oa"].score, abs=1e-12)
    assert values["net_gain"].score > 0  # shifted by 2 px instead of 5
    everything = counts_schema(objects=True, uncertainty=True).names
    assert all(set(wanted.columns) <= set(everything) for wanted in METRICS.values())
    for name in values:
        wanted = METRICS[name]
        assert set(wanted.columns) <= set(COUNTS_SCHEMA.names), name
        assert len(values[name].per_class) == (4 if wanted.per_class else 0), name


def test_resampled_units_can_be_pooled_again_from_their_sums(counted) -> None:
    _, folder, _ = counted
    frame = read_counts(folder / "out" / "counts.parquet").filter(pl.col("label_set") == "full")
    for name, wanted in METRICS.items():
        if wanted.how != "pooled" or not set(wanted.columns) <= set(frame.columns):
            continue
        keys, columns = reading.sums(frame, name, ("scene",))
        again = wanted.score({c: v.sum(0) for c, v in columns.items()})
        assert len(keys) == 2
        assert float(again) == pytest.approx(evaluate(frame, name).score, abs=1e-12)


def test_the_curve_over_distance_holds_every_pixel_once(counted) -> None:
    _, folder, _ = counted
    counts, bands = (read_counts(folder / "out" / f"{n}.parquet", s) for n, s in (("counts", COUNTS_SCHEMA), ("bands", BANDS_SCHEMA)))
    counts, bands = (f.filter(pl.col("label_set") == "eroded") for f in (counts, bands))
    curve = reading.distance_curve(bands)
    assert [e["low_px"] for e in curve] == [0.0, *CONFIG.distance_edges_px]
    assert sum(e["valid"] for e in curve) == counts.filter(pl.col("class") == -1)["valid"].sum()
    assert all(e["kept"] + e["repaired"] + e["damaged"] + e["still_wrong"] == e["valid"] for e in curve)
    assert curve[0]["accuracy"] < curve[-1]["accuracy"]


def test_label_sets_are_never_mixed_in_one_score(counted) -> None:
    _, folder, _ = counted
    frame = read_counts(folder / "out" / "counts.parquet")
    with pytest.raises(Disagreement, match="label_set") as caught:
        evaluate(frame, "miou")
    assert caught.value.exit_code == 4
    with pytest.raises(BadRequest, match="boundary_iou"):
        evaluate(frame.filter(pl.col("label_set") == "full"), "boundary_jou")
    with pytest.raises(Missing):
        evaluate(frame.clear(), "miou")


def test_undefined_rasters_are_counted_and_do_not_enter_the_mean() -> None:
    rows = []
    for i, target in enumerate((np.zeros((20, 20), np.uint8), np.eye(20, dtype=np.uint8))):
        for row in count_tile(target, target, 3, CONFIG)[0]:
            rows.append({**row, "scene": "a", "raster": str(i), "row": 0, "col": 0, "split": "val", "label_set": "full"})
    value = evaluate(pl.DataFrame(rows, infer_schema_length=None), "miou")
    assert value.undefined == (0, 1, 2)
    assert value.of == 2
    assert value.score == 1.0
    assert np.isnan(value.per_class[2])


def test_a_failure_while_counting_leaves_no_table(tmp_path: Path) -> None:
    def stops() -> None:
        with TablesWriter(tmp_path / "counts.parquet", tmp_path / "bands.parquet") as tables:
            tables.write([{"class": 0, "tp": 1}], [])
            raise RuntimeError("the machine stops here")

    with pytest.raises(RuntimeError):
        stops()
    assert list(tmp_path.iterdir()) == []


def test_missing_and_misplaced_maps_are_named(counted, tmp_path: Path) -> None:
    dataset, folder, _ = counted
    with pytest.raises(Missing, match="no map"):
        count_rasters(CONFIG, dataset, "val", tmp_path, folder / "coarse", tmp_path / "out")
    raster = dataset.of("val")[0]
    for other in dataset.of("val"):
        write_class_map(tmp_path / f"{other.id}.tif", np.zeros((50, 60), np.uint8), Grid(50, 60), dataset.table)
    with pytest.raises(Disagreement, match=raster.id):
        count_rasters(CONFIG, dataset, "val", tmp_path, folder / "coarse", tmp_path / "out")
    assert not (tmp_path / "out" / "counts.parquet").exists()


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"class": [0]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(Disagreement, match="kind and version"):
        read_counts(tmp_path / "other.parquet")
    with pytest.raises(Missing):
        read_counts(tmp_path / "absent.parquet")
