"""Bad input to the analysis: clear errors, or clearly marked results."""

from __future__ import annotations

import shutil

import make_tables
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.analysis.request import Comparison, Output
from sweeps.analysis.trials import load_trials, parse_where
from sweeps.report.commands import score_tables, table


@pytest.fixture
def copy(many, tmp_path):
    shutil.copytree(many / "tables", tmp_path / "tables")
    return tmp_path


def parts(root, name, study="many"):
    return sorted((root / "tables" / name / f"study={study}").glob("*.parquet"))


def rewrite(path, change):
    found = pq.read_table(path)
    pq.write_table(pa.Table.from_pandas(change(found.to_pandas()), schema=found.schema, preserve_index=False), path)


def test_no_such_study_names_the_nearest(copy):
    with pytest.raises(Missing, match=r"no study 'mani'.*did you mean 'many'"):
        load_trials([str(copy)], ["mani"])


def test_half_written_part_is_named(copy):
    path = parts(copy, "counts")[2]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Disagreement, match=rf"{path.stem}.*not a whole Parquet file"):
        table(["many"], Comparison(stores=(str(copy),)))
    path = parts(copy, "trials")[0]
    path.write_bytes(b"PAR1")
    with pytest.raises(Disagreement, match="not a whole Parquet file"):
        load_trials([str(copy)], ["many"])


def test_names_of_parts_being_written_are_skipped(copy):
    (copy / "tables" / "trials" / "study=many" / ".part.parquet.tmp").write_bytes(b"half")
    (copy / "tables" / "trials" / "study=many" / "_part.parquet").write_bytes(b"half")
    assert load_trials([str(copy)], ["many"]).frame.height


def test_foreign_parquet_is_refused(copy):
    pq.write_table(
        pa.table({"trial": ["x"], "status": ["done"], "key_counts": ["k"]}), copy / "tables" / "trials" / "study=many" / "x.parquet"
    )
    with pytest.raises(Disagreement, match="was not written by a study"):
        load_trials([str(copy)], ["many"])


def test_mixed_schema_versions_are_refused(copy):
    for name in ("trials", "counts"):
        path = parts(copy, name)[1]
        found = pq.read_table(path)
        pq.write_table(found.replace_schema_metadata({**found.schema.metadata, b"idgbr.version": b"99"}), path)
        with pytest.raises(Disagreement, match="different schema versions"):
            table(["many"], Comparison(stores=(str(copy),)))
        pq.write_table(found, path)


def test_done_trial_without_counts_is_an_error(copy):
    parts(copy, "counts")[0].unlink()
    with pytest.raises(Disagreement, match="recorded as done"):
        table(["many"], Comparison(stores=(str(copy),)))


def test_label_sets_are_never_mixed_in_one_table(made):
    found = score_tables(load_trials([str(made)], ["made"]), Comparison())
    assert [dict(t.header)["label set"] for t in found] == ["eroded", "full"]
    with pytest.raises(BadRequest, match="no counts of that split and label set"):
        score_tables(load_trials([str(made)], ["made"]), Comparison(labels="rough"))


def test_baseline_that_is_not_there_lists_what_is(made):
    with pytest.raises(BadRequest, match=r"baseline is not in the study.*sampler.steps=1"):
        table(["made"], Comparison(stores=(str(made),), baseline="resnet50"))
    with pytest.raises(BadRequest, match="baseline is not in the study"):
        table(["made"], Comparison(stores=(str(made),), baseline="steps=7"))


def test_unknown_metric_and_filter_name_the_nearest(made):
    with pytest.raises(BadRequest, match="did you mean 'boundary_iou'"):
        table(["made"], Comparison(stores=(str(made),), metric="boundary_ious"))
    with pytest.raises(BadRequest, match=r"no such column.*steps"):
        load_trials([str(made)], ["made"], ["stepps<=8"])
    for text in ("steps", "steps<<8", "steps<=", "steps in"):
        with pytest.raises(BadRequest, match="filter not understood"):
            parse_where(text, ["sampler.steps"])
    with pytest.raises(BadRequest, match=r"no such unit of inference.*auto, scene, block"):
        table(["made"], Comparison(stores=(str(made),), unit="tile"))
    with pytest.raises(Missing, match="no trial passes the filter"):
        load_trials([str(made)], ["made"], ["seed>=99"])


def test_metric_that_is_undefined_everywhere_is_printed_as_undefined(made, capsys):
    table(["made"], Comparison(stores=(str(made),), metrics="hd95", metric="hd95", labels="full"), Output(md=True))
    text = capsys.readouterr().out
    assert "undefined" in text
    assert " * |" not in text


def test_tile_that_one_trial_lacks_is_left_out_for_all_and_told(copy, capsys):
    rewrite(parts(copy, "counts")[0], lambda f: f[~((f.scene == "scene003") & (f.col == 0))])
    table(["many"], Comparison(stores=(str(copy),)), Output(md=True))
    text = capsys.readouterr().out
    assert "1 of 72 tiles are not in every trial" in text
    assert "71, paired" in text


def test_trials_without_a_common_tile_are_not_compared(copy):
    rewrite(parts(copy, "counts")[0], lambda f: f.assign(row=f.row + 7))
    with pytest.raises(Disagreement, match="no tile in common"):
        table(["many"], Comparison(stores=(str(copy),)))


def test_study_whose_trials_all_failed_says_so(tmp_path):
    study = make_tables.small_study("lost", 1)
    make_tables.write_study(tmp_path, study, make_tables.Layout(), failed=range(100))
    with pytest.raises(Missing, match="no trial has finished"):
        load_trials([str(tmp_path)], ["lost"])


def test_trial_that_failed_once_and_was_done_later_counts_as_done(copy):
    row = pl.read_parquet(parts(copy, "trials")[0]).row(0, named=True)
    failed = {**row, "status": "failed", "error": "boom"}
    tables.write_part(
        Store(copy), tables.part_name("trials", "many", row["trial"], "failed"), pa.Table.from_pylist([failed], schema=tables.TRIALS_SCHEMA)
    )
    found = load_trials([str(copy)], ["many"])
    assert found.failed.height == 0


def test_output_that_cannot_be_written_is_one_error(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Missing, match="cannot write"):
        table(["made"], Comparison(stores=(str(made),), labels="full"), Output(md=True, out=str(tmp_path / "file" / "t.md")))
