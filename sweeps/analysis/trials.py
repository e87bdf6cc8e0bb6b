"""Reading the trials table: studies of several stores merged, filters, duplicates, schema versions.

`unit_sums.py` sums the counts.

tables/trials/study=<s>/<trial>.parquet    one row
tables/counts/study=<s>/<trial>.parquet    tile x class (class -1: the whole tile), integers that may be added
tables/bands/study=<s>/<trial>.parquet     the same by distance band
tables/curves/study=<s>/<trial>.parquet    images, name, value
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from idgbr.config import SECTIONS, about_setting
from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.settings import When
from idgbr.store import Store

KIND = "refiner.kind"
KINDS_OF_REFINER = about_setting(KIND).choices


@dataclass(frozen=True)
class TablePart:
    """One Parquet file of a study in a store."""

    store: Store
    name: str  # relative to the store's root

    @property
    def trial(self) -> str:
        """Id of its trial."""
        return self.name.rpartition("/")[2].removesuffix(".parquet")

    @property
    def path(self) -> str:
        """Path below the store's file system."""
        return f"{self.store.base}/{self.name}"

    def of(self, table: str) -> TablePart:
        """The part of the same trial in another table."""
        return TablePart(self.store, self.name.replace("tables/trials/", f"tables/{table}/", 1))


@dataclass(frozen=True)
class Trials:
    """Rows of the trials table that count, with their parts.

    Attributes:
        frame: finished trials, one a result (`key_counts`), in the order of (study, trial); settings that a kind does
            not read are null.
        failed: the others.
        parts: trials-table part of every row of `frame`.
        notes: what was left out and why, in sentences.
    """

    frame: pl.DataFrame
    failed: pl.DataFrame
    parts: tuple[TablePart, ...]
    studies: tuple[str, ...]
    duplicates: int = 0
    notes: tuple[str, ...] = ()

    def only(self, keep: Sequence[bool] | pl.Series) -> Trials:
        """The trials for which `keep` is true, in the order of the frame's rows."""
        mask = list(keep)
        parts = tuple(p for p, k in zip(self.parts, mask) if k)
        return Trials(self.frame.filter(pl.Series(mask, dtype=pl.Boolean)), self.failed, parts, self.studies, self.duplicates, self.notes)


# ---- trials ----------------------------------------------------------------------------------------------------------


def load_trials(stores: Sequence[str], studies: Sequence[str], where: Sequence[str] = (), schema_version: int | None = None) -> Trials:
    """Trials of several studies in several stores, merged: the same result (`key_counts`) counts once.

    Raises:
        Missing: no such study in any of the stores; no trial finished.
        Disagreement: a part is half-written or foreign, or parts have different schema versions.
        BadRequest: a filter that is not understood.
    """
    found: list[TablePart] = []
    for study in studies:
        here = [TablePart(store, name) for store in map(Store, stores) for name in store.names(f"tables/trials/study={study}", ".parquet")]
        if not here:
            known = sorted({s for store in map(Store, stores) for s in study_names(store)})
            raise Missing(
                f"no study {study!r} in {', '.join(stores)}",
                allowed=", ".join(known) or "none there yet",
                hint=nearest(study, known) or "python -m sweeps run STUDY makes one; --store says where to look",
            )
        found += here
    heads = [_check_part(part, schema_version) for part in found]
    one_version([(part.path, version) for part, (version, _) in zip(found, heads)])
    frame = _read_rows(found, [columns for _, columns in heads])
    frame = frame.sort("study", "trial", maintain_order=True)
    return _choose(frame, found, tuple(dict.fromkeys(studies)), where)


def _choose(frame: pl.DataFrame, found: list[TablePart], studies: tuple[str, ...], where: Sequence[str]) -> Trials:
    notes: list[str] = []
    done = frame.filter(pl.col("status") == "done")
    others = frame.filter(~pl.col("trial").is_in(done["trial"].implode()))  # a trial that failed once and was done later is done
    failed = others.filter(pl.col("status") == "failed")
    running = others.height - failed.height
    if failed.height:
        notes.append(f"{failed.height} of {frame.height} trials failed and are not in the table.")
    if running:
        notes.append(f"{running} of {frame.height} trials were pruned and are not in the table.")
    done = null_unread(fill_added(done))
    first = done.unique("key_counts", keep="first", maintain_order=True)
    duplicates = done.height - first.height
    if duplicates:
        notes.append(f"{duplicates} trials whose counts have the key of another one (the same result) were counted once.")
    before = first.height
    for text in where:
        first = first.filter(parse_where(text, first.columns))
    if where:
        notes.append(f"Filter {' and '.join(where)!r}: {first.height} of {before} results kept.")
    if not first.height:
        what = "no trial passes the filter" if before else "no trial has finished"
        raise Missing(
            f"{what} in {', '.join(studies)}",
            value=", ".join(where) or f"{failed.height} failed, {running} pruned",
            hint="python -m sweeps status STUDY",
        )
    parts = tuple(found[i] for i in first["_part"])
    return Trials(first.drop("_part"), failed.drop("_part"), parts, studies, duplicates, tuple(notes))


def study_names(store: Store) -> list[str]:
    """Studies with rows in a store, in alphabetical order."""
    names = store.names("tables/trials", ".parquet", recursive=True)
    return sorted({m.group(1) for n in names if (m := re.search(r"study=([^/]+)/", n))})


def null_unread(frame: pl.DataFrame) -> pl.DataFrame:
    """Settings that a trial does not read, given its kind of refiner, become null: they may differ and mean nothing."""
    changes = []
    for name in frame.columns:
        section = name.partition(".")[0]
        if section not in SECTIONS or name == KIND:
            continue
        condition = about_setting(name).read_when
        kinds = condition.values if isinstance(condition, When) and condition.name == KIND else KINDS_OF_REFINER
        if section == "refiner":
            kinds = tuple(k for k in kinds if k != "none")
        unread = [k for k in KINDS_OF_REFINER if k not in kinds]
        if unread:
            changes.append(pl.when(pl.col(KIND).is_in(unread)).then(None).otherwise(pl.col(name)).alias(name))
    return frame.with_columns(changes) if changes else frame


def fill_added(frame: pl.DataFrame) -> pl.DataFrame:
    """Settings that did not exist when a trial was stored have their default, which is what the code did then."""
    changes = []
    for name in frame.columns:
        section, _, field = name.partition(".")
        if section in SECTIONS and not about_setting(name).key_at_default:
            default = SECTIONS[section].__dataclass_fields__[field].default
            changes.append(pl.col(name).fill_null(", ".join(map(str, default)) if isinstance(default, tuple) else default))
    return frame.with_columns(changes) if changes else frame


def damaged(part: TablePart, error: Exception, hint: str) -> Disagreement:
    """A part that cannot be read as Parquet, with the first line of what the reader says."""
    return Disagreement(f"{part.path} is not a whole Parquet file", value=str(error).splitlines()[0], hint=hint)


def _check_part(part: TablePart, schema_version: int | None) -> tuple[str, tuple[str, ...]]:
    """Schema version and columns of a trials part, from its footer."""
    try:
        head = pq.read_metadata(part.path, filesystem=part.store.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(part, error, "move it away and run the study again: its trial is redone from what is stored") from error
    version = (head.metadata or {}).get(b"idgbr.version", b"").decode()
    columns = tuple(head.schema.to_arrow_schema().names)
    if not version or head.num_rows != 1 or not {"trial", "status", "key_counts"} <= set(columns):
        raise Disagreement(
            f"{part.path} was not written by a study",
            value=f"{head.num_rows} rows, schema version {version or 'none'}",
            allowed="one row with trial, status and key_counts, and a schema version in its metadata",
            hint="move it out of tables/trials",
        )
    if schema_version is not None and version != str(schema_version):
        raise Disagreement(
            f"{part.path} has another schema version",
            value=version,
            allowed=str(schema_version),
            hint="read it with the idgbr that wrote it, or run the study again (artefacts are reused)",
        )
    return version, columns


def _read_rows(parts: Sequence[TablePart], columns: Sequence[tuple[str, ...]]) -> pl.DataFrame:
    """One row a part, in no order, with `study` and the part's place `_part`; parts of like columns are read in one
    go.
    """
    groups: dict[tuple[bool, tuple[str, ...]], list[int]] = {}
    for i, (part, names) in enumerate(zip(parts, columns)):
        groups.setdefault((part.store.is_local, names), []).append(i)
    frames = []
    for (is_local, _), places in groups.items():
        if is_local:
            rows = pl.read_parquet([parts[i].path for i in places], hive_partitioning=False, glob=False)
        else:
            tables = [pq.read_table(parts[i].path, filesystem=parts[i].store.fs, partitioning=None) for i in places]
            rows = pl.DataFrame(pa.concat_tables(tables))
        studies = [re.sub(r".*study=([^/]*)/.*", r"\1", parts[i].name) for i in places]
        frames.append(rows.with_columns(pl.Series("_part", places, dtype=pl.Int64), pl.Series("study", studies, dtype=pl.String)))
    frame = pl.concat(frames, how="diagonal_relaxed")
    # lists become text, so that they group and print like any other setting
    lists = [c for c, kind in frame.schema.items() if isinstance(kind, pl.List)]
    return frame.with_columns(pl.col(c).cast(pl.List(pl.String)).list.join(", ") for c in lists)


def version_of(schema: pa.Schema) -> str | None:
    """Schema version in the metadata of a part; None where there is none."""
    value = (schema.metadata or {}).get(b"idgbr.version")
    return value.decode() if value else None


def one_version(versions: Iterable[tuple[str, str | None]]) -> None:
    """Check that all parts have one schema version. `versions`: (path, version).

    Raises:
        Disagreement: parts of different versions.
    """
    seen: dict[str | None, str] = {}
    for path, version in versions:
        seen.setdefault(version, path)
    if len(seen) > 1:
        raise Disagreement(
            "parts of different schema versions cannot be merged",
            value="; ".join(f"{p} has version {v}" for v, p in seen.items()),
            hint="run the older study again with this idgbr: its artefacts are reused, only the tables are written again",
        )


# ---- filters ---------------------------------------------------------------------------------------------------------

_OPERATORS: dict[str, Callable[[pl.Expr, bool | float | str], pl.Expr]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"^\s*([A-Za-z_][\w.]*)\s*(<=|>=|!=|==|=|<|>|\bin\b)\s*([^<>=!\s].*?)\s*$")


def resolve(name: str, columns: Iterable[str]) -> str:
    """`steps` or `sampler.steps` -> the column.

    Raises:
        BadRequest: no such column, or several.
    """
    columns = list(columns)
    if name in columns:
        return name
    matches = [c for c in columns if c.partition(".")[0] in SECTIONS and c.partition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise BadRequest(f"{name} names several settings", allowed=", ".join(matches))
    short = {c.rpartition(".")[2]: c for c in columns}
    raise BadRequest(
        "no such column",
        value=name,
        hint=nearest(name, [*columns, *short]) or "stage.field, or the field alone where only one stage has it",
    )


def parse_where(text: str, columns: Iterable[str]) -> pl.Expr:
    """`steps<=8 and schedule in cosine,linear` -> a polars expression.

    A setting that a trial does not read passes every filter.

    Raises:
        BadRequest: not a comparison, or no such column.
    """
    columns = list(columns)
    out = pl.lit(True)
    for condition in re.split(r"\s+and\s+|\s*&&\s*", text.strip()):
        match = _CONDITION.match(condition)
        if match is None:
            raise BadRequest(
                "filter not understood",
                value=condition,
                allowed='name op value, op one of <= >= != == < > in; joined by "and"',
                hint='--where "steps<=8 and schedule in cosine,linear"',
            )
        name, op, raw = match.groups()
        column = pl.col(resolve(name, columns))
        values = [_literal(v) for v in (raw.strip("[]()").split(",") if op == "in" else [raw])]
        tests = [_compare(column, "==" if op == "in" else op, v) for v in values]
        out = out & (column.is_null() | pl.any_horizontal(tests))
    return out


def _literal(text: str) -> bool | int | float | str:
    text = text.strip().strip("'\"")
    for cast in (int, float):
        try:
            return cast(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _compare(column: pl.Expr, op: str, value: bool | float | str) -> pl.Expr:
    if isinstance(value, str):
        return _OPERATORS[op](column.cast(pl.String), value)
    if isinstance(value, bool):
        return _OPERATORS[op](column.cast(pl.Boolean, strict=False), value)
    return _OPERATORS[op](column.cast(pl.Float64, strict=False), float(value))
