"""The tables of a study: Arrow schemas with a version, atomic part files, listing. No torch, no Ray.

    tables/trials/study=<s>/<trial>.parquet             one row; the file is written last: it is what "finished" means
    tables/trials/study=<s>/<trial>-<status>.parquet    the same of a trial that failed or was pruned
    tables/counts/study=<s>/<trial>.parquet             tile x class
    tables/bands/study=<s>/<trial>.parquet              tile x class x band of distance
    tables/curves/study=<s>/<trial>.parquet             training curves: stage, part, images, name, value

The study is the folder's name (hive), not a column. One writer a file; names that begin with `_` or `.` are not there
yet.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import subprocess
import time
import typing
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.node import package_versions
from idgbr.config import SECTIONS, Experiment
from idgbr.errors import Missing
from idgbr.stages import STAGES, Job
from idgbr.store import Store
from idgbr.training.curve import NAME as CURVE_FILE
from idgbr.training.curve import read_curve

Row = dict[str, Any]  # of the trials table by column: settings of every type beside keys and times
Manifest = Mapping[str, Any]  # of an artefact, as the store gives it

SCHEMA_VERSION = 1
VERSION_KEY = b"idgbr.version"
STATUSES = ("done", "failed", "pruned")
READERS = 16  # parts that are read at once

_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _arrow_type(hint: type) -> pa.DataType:
    if typing.get_origin(hint) is tuple:
        return pa.list_(_SCALARS[typing.get_args(hint)[0]])
    return _SCALARS[hint]


def settings_fields() -> list[tuple[str, pa.DataType]]:
    """`stage.field` and its type, every setting of `Experiment`, always."""
    out = []
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        out += [(f"{section}.{f.name}", _arrow_type(hints[f.name])) for f in dataclasses.fields(cls)]
    return out


TRIALS_SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("role", pa.string()),  # trial, coarse, one_pass
        ("label", pa.string()),  # what was varied
        *settings_fields(),
        ("seed", pa.int64()),
        ("reseed", pa.string()),
        *((f"key_{stage}", pa.string()) for stage in STAGES),
        *((f"seconds_{stage}", pa.float64()) for stage in STAGES),  # to make the artefact, in whichever study; folds summed
        ("processes_backbone", pa.int64()),  # that shared the training, each on its device
        ("processes_refiner", pa.int64()),
        ("gflop_per_megapixel", pa.float64()),  # of refining; 0 of a coarse map
        ("host", pa.string()),  # that made the counts
        ("versions", pa.string()),  # JSON
        ("git_commit", pa.string()),
        ("finished", pa.timestamp("us", tz="UTC")),
    ],
    metadata={b"idgbr.table": b"trials", VERSION_KEY: str(SCHEMA_VERSION).encode()},
)

CURVES_SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("stage", pa.string()),
        ("part", pa.string()),  # full, fold0, ... or refiner
        ("images", pa.int64()),
        ("name", pa.string()),
        ("value", pa.float64()),
    ],
    metadata={b"idgbr.table": b"curves", VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


@functools.cache
def git_commit() -> str:
    """Commit of the code that runs, `+` when files differ from it. Outside a repository, as in an image: what
    IDGBR_COMMIT says, or empty.
    """
    here = Path(__file__).resolve().parent
    try:
        run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, timeout=10, check=True)
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return commit + ("+" if run(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("IDGBR_COMMIT", "")


# ---- parts -----------------------------------------------------------------------------------------------------------


def part_name(table: str, study: str, trial: str, status: str = "done") -> str:
    """Name of a part below the root of the store."""
    suffix = "" if status == "done" else f"-{status}"
    return f"tables/{table}/study={study}/{trial}{suffix}.parquet"


def write_part(store: Store, name: str, table: pa.Table) -> None:
    """Whole file or nothing."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    store.write_bytes(name, buffer.getvalue())


def statuses(store: Store, study: str) -> dict[str, str]:
    """Trial id -> status, from the names of the parts alone; done wins."""
    found: dict[str, str] = {}
    for name in store.names(f"tables/trials/study={study}", suffix=".parquet"):
        trial, _, status = name.rpartition("/")[2].removesuffix(".parquet").partition("-")
        if found.get(trial) != "done":
            found[trial] = status or "done"
    return found


def trial_row(
    experiment: Experiment,
    jobs: Iterable[Job],
    manifests: Mapping[str, Manifest | None],
    *,
    trial: str,
    role: str,
    label: str,
    status: str,
    error: str | None = None,
    commit: str = "",
    gflop_per_megapixel: float | None = None,
) -> Row:
    """One row of the trials table; `manifests` by key, of the jobs that are in the store."""
    row: Row = {"trial": trial, "status": status, "error": error, "role": role, "label": label}
    for section in SECTIONS:
        values = getattr(experiment, section)
        row |= {f"{section}.{f.name}": _plain(getattr(values, f.name)) for f in dataclasses.fields(values)}
    row |= {"gflop_per_megapixel": gflop_per_megapixel}
    row |= {"seed": experiment.seed, "reseed": experiment.reseed, "host": None, "versions": package_versions(), "git_commit": commit}
    for job in jobs:
        if job.name in ("full", job.stage):  # not those of a fold or of the pool that the refiner was trained on
            row[f"key_{job.stage}"] = job.key
        manifest = manifests.get(job.key)
        if manifest is not None:
            row[f"seconds_{job.stage}"] = row.get(f"seconds_{job.stage}", 0.0) + float(manifest["seconds"])
            if job.trains:
                row[f"processes_{job.stage}"] = manifest.get("processes", 1)
            if job.stage == "counts":
                row["host"] = manifest["host"]
    return row | {"finished": int(time.time() * 1e6)}


def write_trial(store: Store, study: str, row: Row) -> None:
    """The row itself: written last of a trial's parts. A part of another status is taken away after it."""
    values = {name: row.get(name) for name in TRIALS_SCHEMA.names}
    write_part(store, part_name("trials", study, row["trial"], row["status"]), pa.Table.from_pylist([values], schema=TRIALS_SCHEMA))
    for status in STATUSES:
        if status != row["status"]:
            store.delete(part_name("trials", study, row["trial"], status))


def write_counts(store: Store, study: str, trial: str, counts_key: str) -> None:
    """Counts and bands of an artefact as parts of a trial.

    Raises:
        Missing: the artefact or one of its tables is not there.
    """
    folder = store.path("counts", counts_key)
    for table in ("counts", "bands"):
        path = folder / f"{table}.parquet"
        if not path.is_file():
            raise Missing(f"the counts artefact {counts_key} has no {table}.parquet", value=str(folder))
        found = pq.read_table(path)
        column = pa.array([trial] * found.num_rows, pa.string())
        position = found.schema.get_field_index("trial")
        found = found.set_column(position, "trial", column) if position >= 0 else found.add_column(0, "trial", column)
        write_part(store, part_name(table, study, trial), found)


def write_curves(store: Store, study: str, trial: str, jobs: Iterable[Job]) -> None:
    """Training curves of a trial, long; empty when nothing of it is trained."""
    rows = []
    for job in jobs:
        if not job.trains:
            continue
        folder = store.path(job.stage, job.key)
        for values in read_curve(folder) if (folder / CURVE_FILE).is_file() else ():
            images = values.pop("images")
            rows += [
                {"trial": trial, "stage": job.stage, "part": job.name, "images": images, "name": name, "value": float(value)}
                for name, value in values.items()
                if isinstance(value, int | float)
            ]
    write_part(store, part_name("curves", study, trial), pa.Table.from_pylist(rows, schema=CURVES_SCHEMA))


def write_parts(store: Store, study: str, row: Row, jobs: Iterable[Job]) -> None:
    """All parts of a finished trial, in the order that makes the last one mean "finished"."""
    jobs = tuple(jobs)
    write_counts(store, study, row["trial"], row["key_counts"])
    write_curves(store, study, row["trial"], jobs)
    write_trial(store, study, row)


def rows_of(store: Store, table: str, study: str, trials: Iterable[str]) -> pa.Table:
    """Rows of some finished trials, those of each together. A part that is not there is left out."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda trial: store.read_bytes(part_name(table, study, trial)), trials)
        return pa.concat_tables([pq.read_table(io.BytesIO(data)) for data in found if data], promote_options="default")


def error_of(store: Store, study: str, trial: str) -> str:
    """The error in the row of a failed trial; empty where there is no such row."""
    data = store.read_bytes(part_name("trials", study, trial, "failed"))
    return str(pq.read_table(io.BytesIO(data), columns=["error"])["error"][0].as_py()) if data else ""


def scan(store: Store, table: str, study: str | None = None) -> pa.Table:
    """A whole table, `study` as a column.

    Raises:
        Missing: nothing was written yet.
    """
    import pyarrow.dataset as ds

    names = store.names(f"tables/{table}" + (f"/study={study}" if study else ""), suffix=".parquet", recursive=True)
    if not names:
        raise Missing(
            f"no rows in the table {table}", value=f"store {store.root}, study {study or 'any'}", hint="python -m sweeps run STUDY"
        )
    partitioning = ds.partitioning(pa.schema([("study", pa.string())]), flavor="hive")
    paths = [f"{store.base}/{name}" for name in names]
    return ds.dataset(
        paths, filesystem=store.fs, format="parquet", partitioning=partitioning, partition_base_dir=f"{store.base}/tables/{table}"
    ).to_table()


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
