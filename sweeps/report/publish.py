"""Small published results: rows summed by scene, tables, report, README; and recomputing every published number from
those rows.

results/published/<study>/
    README.md, published.json           how it was made, with which expected scores; the request
    rows/trials.parquet, counts.parquet all trials; counts summed by trial, scene (or block), class
    rows/study.json                     the study's definition
    tables.json, tables.md, tables.tex  the same numbers three times
    report.html
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import math
import re
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path, PurePath

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from idgbr.config import SECTIONS
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.files import publish, temporary_beside, unwritable
from idgbr.scores.read import METRICS
from idgbr.scores.schema import COUNTS_SCHEMA, ENERGIES, LEDGER, counts_schema
from idgbr.settings import names_of_paths
from idgbr.store import Store
from sweeps import tables
from sweeps.analysis.request import SHOWN, Comparison
from sweeps.analysis.trials import Trials, load_trials
from sweeps.analysis.unit_sums import IDENTITY
from sweeps.analysis.views import View, views_of
from sweeps.report import formats
from sweeps.report.ablation_tables import ablation_tables
from sweeps.report.formats import Table, TableJson
from sweeps.report.page import EXTRA_COLUMNS, headline, leading
from sweeps.report.score_tables import TITLES, number, score_table

PUBLISHED_VERSION = 1
EVERY_COLUMN = counts_schema(objects=True, uncertainty=True)
MOST_ROW_BYTES = 1_000_000
TOLERANCE = 1e-9  # of a recomputed number: other summation order, nothing more


def build(views: Sequence[View], comparison: Comparison) -> list[Table]:
    """The tables that are published."""
    out = []
    for view in views:
        out.append(score_table(view, comparison, name=f"scores-{view.name}"))
        out += ablation_tables(view, comparison.metric, comparison.baseline, "")
    return out


def write(target: Path, study: str, trials: Trials, views: Sequence[View], comparison: Comparison, page: str) -> Path:
    """Write the folder, whole or not at all; an older one is replaced.

    Raises:
        BadRequest: a metric that is a mean over tiles cannot be recomputed from sums; the rows are over 1 MB.
        Disagreement: the summed rows do not give the tables' numbers.
        Missing: no space, no permission.
    """
    by_tile = [m for m in comparison.shown if METRICS[m].how != "pooled"]
    if by_tile:
        raise BadRequest("means over tiles cannot be recomputed from published rows", value=", ".join(by_tile), allowed="pooled metrics")
    folder = temporary_beside(target)
    try:
        (folder / "rows").mkdir(parents=True)
        write_summed_rows(folder / "rows", study, trials, views, comparison)
        found = build(views, comparison)
        with unpacked(folder / "rows", study) as store:
            again = build(_recomputed(store, study, comparison), comparison)
            differences = compare(*([formats.to_json(t) for t in built] for built in (found, again)))
        if differences:
            raise Disagreement("the summed rows do not give the tables' numbers", value="; ".join(differences[:3]))
        (folder / "tables.json").write_text(formats.render(found, "json"))
        (folder / "tables.md").write_text(formats.render(found, "md"))
        (folder / "tables.tex").write_text(formats.render(found, "latex"))
        (folder / "report.html").write_text(page)
        request = {"version": PUBLISHED_VERSION, "study": study, **comparison.to_json()}
        (folder / "published.json").write_text(json.dumps(request, indent=1) + "\n")
        (folder / "README.md").write_text(readme(study, views, comparison, found, (folder / "rows" / "study.json").is_file()))
        strip_folders(folder)
        old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex}")
        if target.exists():
            target.rename(old)
        publish(folder, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise unwritable(str(target), error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def strip_folders(folder: Path) -> None:
    """Settings that are paths keep the name of their file in every published file: the folders before it are of the
    machine that ran the study. Keys hold contents and no paths, so trials stay the same.
    """
    rows = folder / "rows" / "trials.parquet"
    table = pq.read_table(rows)
    names = {f"{name}.{field}" for name, section in SECTIONS.items() for field in names_of_paths(section)} & set(table.column_names)
    paths = {PurePath(value) for name in names for value in table[name].unique().to_pylist() if value}
    full = sorted((str(p) for p in paths if p.is_absolute() and p.name), key=len, reverse=True)
    for i, field in enumerate(table.schema):
        for path in full if pa.types.is_string(field.type) else ():
            table = table.set_column(i, field, pc.replace_substring(table.column(i), path, PurePath(path).name))
    pq.write_table(table, rows, compression="zstd")
    for file in (f for f in folder.rglob("*") if f.suffix in (".json", ".md", ".tex", ".html")):
        file.write_text(functools.reduce(lambda text, path: text.replace(path, PurePath(path).name), full, file.read_text()))


def write_summed_rows(folder: Path, study: str, trials: Trials, views: Sequence[View], comparison: Comparison) -> None:
    """trials.parquet as the study wrote it, counts.parquet summed by unit, study.json."""
    parts = [pq.read_table(p.path, filesystem=p.store.fs, partitioning=None) for p in trials.parts]
    pq.write_table(pa.concat_tables(parts, promote_options="default"), folder / "trials.parquet", compression="zstd")
    wanted = {c for m in comparison.shown for c in METRICS[m].columns} | {"valid", "ignored", *LEDGER, *ENERGIES}
    columns = [c for c in EVERY_COLUMN.names if c in wanted]
    summed = pl.concat([_by_unit(view, columns) for view in views])
    pq.write_table(_with_schema(summed), folder / "counts.parquet", compression="zstd", compression_level=12)
    part = trials.parts[0]
    definition = part.store.read_bytes(f"studies/{study}.json")
    if definition:
        (folder / "study.json").write_bytes(definition)
    size = sum(p.stat().st_size for p in folder.iterdir())
    if size > MOST_ROW_BYTES:
        raise BadRequest(
            "the published rows are too large for a repository",
            value=f"{size / 1e6:.2f} MB, {len(trials.parts)} trials",
            allowed=f"{MOST_ROW_BYTES / 1e6:g} MB",
            hint="publish fewer trials (--where), or one split",
        )


def _by_unit(view: View, columns: Sequence[str]) -> pl.DataFrame:
    """Counts of a view summed by trial, unit and class; a row stands where a tile stood."""
    block = pl.col("block") if view.sums.unit_kind == "block" else pl.lit("").alias("block")
    frames = []
    for part in view.population.parts:
        counts = part.of("counts")
        table = pq.read_table(counts.path, columns=[*IDENTITY, *columns], filesystem=counts.store.fs, partitioning=None)
        rows = pl.DataFrame(pl.from_arrow(table)).filter((pl.col("split") == view.split) & (pl.col("label_set") == view.label_set))
        total = [pl.when(pl.col(c).count() > 0).then(pl.col(c).sum()).alias(c) for c in columns]
        frames.append(
            rows.with_columns(block).group_by("trial", "split", "label_set", "scene", "block", "class", maintain_order=True).agg(total)
        )
    unit = pl.concat_str("scene", "block", separator=" ")
    return pl.concat(frames).with_columns(unit.alias("raster"), pl.lit(0).alias("row"), pl.lit(0).alias("col"))


def _with_schema(frame: pl.DataFrame) -> pa.Table:
    table = frame.to_arrow()
    schema = _schema_of(table.column_names)
    return table.select(schema.names).cast(schema)


def _schema_of(names: Sequence[str]) -> pa.Schema:
    return pa.schema([EVERY_COLUMN.field(n) for n in EVERY_COLUMN.names if n in names], metadata=COUNTS_SCHEMA.metadata)


# ---- recomputing -----------------------------------------------------------------------------------------------------


@contextmanager
def unpacked(rows: Path, study: str) -> Iterator[str]:
    """The rows as a store that everything else reads: a temporary folder with one part a trial.

    Raises:
        Missing: a file of the rows is not there. Disagreement: not Parquet.
    """
    try:
        trials, counts = (pq.read_table(rows / f"{name}.parquet") for name in ("trials", "counts"))
    except FileNotFoundError as error:
        raise Missing("published rows are not complete", value=str(error), hint="python -m sweeps publish STUDY") from error
    except pa.ArrowInvalid as error:
        raise Disagreement(f"the published rows in {rows} are not whole Parquet files", value=str(error).splitlines()[0]) from error
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        lacking = [COUNTS_SCHEMA.field(n) for n in COUNTS_SCHEMA.names if n not in counts.column_names]
        for field in lacking:
            counts = counts.append_column(field, pa.nulls(counts.num_rows, field.type))
        schema = _schema_of(counts.column_names)
        frame = pl.DataFrame(pl.from_arrow(counts.select(schema.names)))
        for i, trial in enumerate(trials["trial"].to_pylist()):
            part = frame.filter(pl.col("trial") == trial).to_arrow().cast(schema)
            tables.write_part(store, tables.part_name("counts", study, trial), part)
            tables.write_part(store, tables.part_name("trials", study, trial), trials.slice(i, 1))
        definition = rows / "study.json"
        if definition.is_file():
            store.write_bytes(f"studies/{study}.json", definition.read_bytes())
        yield folder


def _recomputed(store: str, study: str, comparison: Comparison) -> list[View]:
    return list(views_of(load_trials([store], [study]), comparison, EXTRA_COLUMNS))


def recompute(folder: Path) -> int:
    """Recompute every published number from the rows: tables (all three forms), README, tables and headline of the
    report.

    Returns:
        How many tables agreed.

    Raises:
        Missing: nothing published there, or not all of it. Disagreement: numbers differ; names the first.
    """
    try:
        request = json.loads((folder / "published.json").read_text())
        published = json.loads((folder / "tables.json").read_text())
    except FileNotFoundError as error:
        raise Missing(f"nothing is published in {folder}", hint="python -m sweeps publish STUDY") from error
    study, comparison = request["study"], Comparison.from_json(request)
    with unpacked(folder / "rows", study) as store:
        views = _recomputed(store, study, comparison)
        recomputed = build(views, comparison)
        said = [sentence for view in leading(views) for sentence in headline(view, comparison.metric)]
        about = readme(study, views, comparison, recomputed, (folder / "rows" / "study.json").is_file())
    differences = compare(published, [formats.to_json(t) for t in recomputed])
    texts = {
        "tables.md": _body(formats.render(recomputed, "md")),
        "tables.tex": _body(formats.render(recomputed, "latex")),
        "README.md": _body(about),
        "report.html": [cell.text for t in recomputed for row in t.rows for cell in row] + said,
    }
    for name, there in texts.items():
        try:
            text = (folder / name).read_text()
        except FileNotFoundError as error:
            raise Missing(f"{name} is not there any more", value=str(folder), hint="python -m sweeps publish STUDY") from error
        here = _cells(text, [t["name"] for t in published]) + _said(text) if name == "report.html" else _body(text)
        differences += [f"{name}: {a!r}, recomputed {b!r}" for a, b in zip_longest(here, there) if a != b]
    if differences:
        raise Disagreement(
            f"{len(differences)} published numbers are not what the rows give",
            value="; ".join(differences[:5]),
            hint="python -m sweeps publish STUDY writes them again",
        )
    return len(published)


def _body(text: str) -> list[str]:
    """The lines of a Markdown or LaTeX text that are rows of a table."""
    return [line for line in text.splitlines() if line.startswith("|") or line.endswith(r"\\")]


def _cells(page: str, names: Sequence[str]) -> list[str]:
    """Texts of the cells of these tables of a report, in the order of `names`."""
    tables = dict(re.findall(r'<table[^>]* data-table="([^"]*)">(.*?)</table>', page, re.DOTALL))
    cells = [
        cell for name in names for cell in re.findall(r'<td(?:[^>]* data-text="([^"]*)")?[^>]*>(.*?)</td>', tables.get(name, ""), re.DOTALL)
    ]
    return [html.unescape(full or text) for full, text in cells]


def _said(page: str) -> list[str]:
    """The sentences of a report's headline."""
    lead = re.search(r'<div class="lead">(.*?)</div>', page, re.DOTALL)
    return [html.unescape(s).replace("\u00a0", " ") for s in re.findall(r"<p>(.*?)</p>", lead[1] if lead else "", re.DOTALL)]


def compare(published: Sequence[TableJson], recomputed: Sequence[TableJson]) -> list[str]:
    """Differences in names, columns, numbers (beyond `TOLERANCE`) and printed text, in words."""
    if [t["name"] for t in published] != [t["name"] for t in recomputed]:
        return [f"tables {[t['name'] for t in published]} were published, {[t['name'] for t in recomputed]} recomputed"]
    out = []
    for old, new in zip(published, recomputed):
        for i, (a, b) in enumerate(zip(old["rows"], new["rows"])):
            out += [f"{old['name']} row {i} {text}" for text in _differences(a, b)]
        out += [
            f"{old['name']} row {i}: printed {a}, recomputed {b}" for i, (a, b) in enumerate(zip(old["printed"], new["printed"])) if a != b
        ]
        if len(old["rows"]) != len(new["rows"]):
            out.append(f"{old['name']}: {len(old['rows'])} rows published, {len(new['rows'])} recomputed")
    return out


def _differences(a: object, b: object, where: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        for key in a:
            yield from _differences(a[key], b[key], f"{where}.{key}" if where else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from _differences(x, y, f"{where}[{i}]")
    elif isinstance(a, int | float) and isinstance(b, int | float):
        if not math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{where}: published {a}, recomputed {b}"
    elif a != b:
        yield f"{where}: published {a!r}, recomputed {b!r}"


def options(comparison: Comparison) -> str:
    """The request as options of the command line; nothing where it is the default."""
    c, default = comparison, Comparison()
    found = {
        "split": c.split, "labels": c.labels, "metric": c.metric, "metrics": ",".join(c.shown), "baseline": c.baseline, "unit": c.unit
    }  # fmt: skip
    plain = {**dataclasses.asdict(default), "metrics": ",".join(SHOWN)}
    words = [*(f"--{name} {shlex.quote(value)}" for name, value in found.items() if value != plain[name])]
    words += [f"--where {shlex.quote(text)}" for text in c.where]
    return "".join(f" {w}" for w in words)


def readme(study: str, views: Sequence[View], comparison: Comparison, found: Sequence[Table], defined: bool) -> str:
    """How each file was made, and with which expected score."""
    metric, asked, name = comparison.metric, options(comparison), shlex.quote(study)
    commits = sorted({c for v in views for c in v.population.frame["git_commit"].to_list() if c})
    lines = [
        f"# {study}: published results",
        "",
        f"Made with `python -m sweeps publish {name}{asked}` at commit {', '.join(c[:12] + c[40:] for c in commits) or 'unknown'};",
        f"checked with `python -m sweeps verify {name}`, which recomputes every number of the tables from `rows/`.",
        "",
        "| file | made by |",
        "|---|---|",
        f"| rows/trials.parquet | `python -m sweeps run {name}`: one row a trial, settings, keys, seconds, versions |",
        "| rows/counts.parquet | counts of every trial, summed by scene (or ground block) and class |",
        *(["| rows/study.json | the definition that was run |"] if defined else []),
        f"| tables.md, tables.tex, tables.json | `python -m sweeps ablate {name}{asked}` with `--md`, `--latex`, `--json` |",
        f"| report.html | `python -m sweeps report {name}{asked}` |",
        "",
        f"Expected {TITLES.get(metric, metric)} when the study is run again (mean over seeds; other hardware moves the last digits):",
        "",
    ]
    for view in views:
        lines += [
            f"## Split {view.split}, label set {view.label_set}",
            "",
            f"| variant | seeds | {TITLES.get(metric, metric)} |",
            "|---|---|---:|",
        ]
        for v in view.population.variants:
            score = number(metric, float(view.scorer.seeds(v, metric).mean()))
            lines.append(f"| {v.label} | {', '.join(map(str, v.seeds))} | {score} |")
        lines.append("")
    lines.append(f"{len(found)} tables.")
    return "\n".join(lines) + "\n"
