"""Stage "counts": the rasters of a split to counts.parquet and bands.parquet. The schemas and `count_tile` are
offered here as well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from idgbr.config import ScoreConfig
from idgbr.files import publish, temporary_beside, unwritable
from idgbr.interfaces import Report
from idgbr.scores.schema import BANDS_SCHEMA, COUNTS_SCHEMA, counts_schema
from idgbr.scores.tile import TileRow, Widths, count_tile, count_window

if TYPE_CHECKING:
    from idgbr.datasets import Dataset

__all__ = ["BANDS_SCHEMA", "COUNTS_SCHEMA", "Collected", "TablesWriter", "Widths", "count_rasters", "count_tile", "count_window"]

ROWS_A_GROUP = 20_000


class TablesWriter:
    """counts.parquet and bands.parquet in pieces, both whole at the end or not there at all. schema: of the
    counts."""

    def __init__(self, counts: Path, bands: Path | None, schema: pa.Schema = COUNTS_SCHEMA):
        self.paths = [(counts, schema)] + ([(bands, BANDS_SCHEMA)] if bands else [])
        self.temporary = [temporary_beside(path) for path, _ in self.paths]
        self.waiting: list[list[TileRow]] = [[] for _ in self.paths]
        self.writers: list[pq.ParquetWriter] = []

    def __enter__(self) -> TablesWriter:
        try:
            for (path, schema), temporary in zip(self.paths, self.temporary):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.writers.append(pq.ParquetWriter(temporary, schema, compression="zstd"))
        except OSError as error:
            self.__exit__(type(error), error, None)
            raise unwritable(str(self.paths[0][0]), error) from error
        return self

    def write(self, counts: Iterable[TileRow], bands: Iterable[TileRow]) -> None:
        """Add rows; they reach the files in groups of `ROWS_A_GROUP`."""
        for waiting, rows, writer, (_, schema) in zip(self.waiting, (counts, bands), self.writers, self.paths):
            waiting += rows
            if len(waiting) >= ROWS_A_GROUP:
                self._flush(waiting, writer, schema)

    def _flush(self, waiting: list[TileRow], writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        try:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
        except OSError as error:
            raise unwritable(str(self.paths[0][0]), error) from error
        waiting.clear()

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        try:
            if kind is None:
                for waiting, writer, (_, schema) in zip(self.waiting, self.writers, self.paths):
                    self._flush(waiting, writer, schema)
            for writer in self.writers:
                writer.close()
            if kind is None:
                for (path, _), temporary in zip(self.paths, self.temporary):
                    publish(temporary, path)
        finally:
            for temporary in self.temporary:
                temporary.unlink(missing_ok=True)


class Collected:
    """The same rows in memory, as columns (rows of Python objects would take ten times the space)."""

    def __init__(self, schema: pa.Schema = COUNTS_SCHEMA) -> None:
        self.schemas = (schema, BANDS_SCHEMA)
        self.waiting: tuple[list[TileRow], list[TileRow]] = ([], [])
        self.tables: tuple[list[pa.Table], list[pa.Table]] = ([], [])

    def write(self, counts: Iterable[TileRow], bands: Iterable[TileRow]) -> None:
        """Add rows; they are folded into tables in groups of `ROWS_A_GROUP`."""
        for waiting, rows in zip(self.waiting, (counts, bands)):
            waiting += rows
        if max(map(len, self.waiting)) >= ROWS_A_GROUP:
            self._fold()

    def _fold(self) -> None:
        for waiting, tables, schema in zip(self.waiting, self.tables, self.schemas):
            tables.append(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(counts, bands)"""
        self._fold()
        counts, bands = (pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))) for tables in self.tables)
        return counts, bands


def require_square(config: ScoreConfig, images: Iterable[Path]) -> None:
    """Raises:
    BadRequest: a width is given in metres, and the pixels of an image are not square on the ground.
    """
    from idgbr.rasters.read import Grid

    for name in ("boundary_m", "tolerance_m"):
        if getattr(config, name):
            for image in images:
                Grid.of(image).require_square(f"score.{name}")


def count_rasters(
    config: ScoreConfig,
    dataset: Dataset,
    split: str,
    refined_dir: Path,
    coarse_dir: Path,
    out: Path,
    report: Report | None = None,
) -> None:
    """Write out/counts.parquet and out/bands.parquet of the labelled rasters of a split. `trial` stays null: the
    table of trials fills it.

    Args:
        refined_dir: class maps `<raster id>.tif` (indices, 255 = outside the classes).
            With score.uncertainty also what `scene.uncertain` keeps beside them.
        coarse_dir: probabilities `<raster id>.tif`, K bands uint8; the most probable class counts.

    Raises:
        Missing: a map is not there, or no raster of the split has labels.
        Disagreement: a map is not on the grid of its labels, or holds other classes.
    """
    from idgbr.scores.rasters import dataset_pairs, tiles_of

    pairs = dataset_pairs(dataset, split, Path(refined_dir), Path(coarse_dir), uncertainty=config.uncertainty)
    require_square(config, [raster.image for raster in dataset.of(split) if raster.label is not None])
    schema = counts_schema(objects=config.objects, uncertainty=config.uncertainty)
    with TablesWriter(Path(out) / "counts.parquet", Path(out) / "bands.parquet", schema) as tables:
        for done, pair in enumerate(pairs):
            for counts, bands in tiles_of(pair, config):
                tables.write(counts, bands)
            if report is not None:
                report(stage="counts", done=done + 1, total=len(pairs))
