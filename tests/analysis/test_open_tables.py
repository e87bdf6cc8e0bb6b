"""The tables are open: DuckDB, polars and pandas give the same numbers, with the very code of docs/tables.md; an object store works too."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from idgbr.scores.schema import BANDS_SCHEMA, COUNTS_SCHEMA
from sweeps import tables
from sweeps.analysis.request import Comparison
from sweeps.analysis.trials import load_trials
from sweeps.analysis.views import views
from sweeps.report import formats
from sweeps.report.commands import score_tables

DOCS = Path(__file__).parents[2] / "docs" / "tables.md"


def test_the_three_examples_of_the_docs_give_the_table_of_the_command(made):
    text = DOCS.read_text().replace("STORE", str(made)).replace("STUDY", "made")
    sql, polars_code, pandas_code = re.findall(r"```(?:sql|python)\n(.*?)```", text, re.DOTALL)
    by_duckdb = dict(duckdb.sql(sql).fetchall())
    scope: dict = {}
    exec(polars_code, scope)
    by_polars = dict(scope["result"].rows())
    exec(pandas_code, scope)
    by_pandas = scope["result"].to_dict()
    view = next(views(load_trials([str(made)], ["made"]), ["boundary_iou"], labels="full"))
    seeds: dict = {}
    for v in view.population.variants:
        seeds.setdefault({"coarse": "none"}.get(v.kind, v.kind), []).extend(view.scorer.seeds(v, "boundary_iou"))
    expected = {kind: sum(x) / len(x) for kind, x in seeds.items()}
    for found in (by_duckdb, by_polars, by_pandas):
        assert found == pytest.approx(expected, abs=1e-12)


def test_docs_name_the_schema_version_and_every_table():
    text = DOCS.read_text()
    assert f"Schema version {tables.SCHEMA_VERSION};" in text
    for schema in (tables.TRIALS_SCHEMA, tables.CURVES_SCHEMA, COUNTS_SCHEMA, BANDS_SCHEMA):
        assert schema.metadata[b"idgbr.version"] == str(tables.SCHEMA_VERSION).encode()
        assert f"## {schema.metadata[b'idgbr.table'].decode()}" in text or f"{schema.metadata[b'idgbr.table'].decode()}:" in text


def test_an_object_store_gives_the_same_table_as_the_folder(many, s3):
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(s3)
    fs.copy_files(str(many), path, destination_filesystem=filesystem)
    remote = score_tables(load_trials([s3], ["many"]), Comparison())
    local = score_tables(load_trials([str(many)], ["many"]), Comparison())
    assert [formats.to_json(t)["printed"] for t in remote] == [formats.to_json(t)["printed"] for t in local]
