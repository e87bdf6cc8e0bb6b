"""Refining a scene of any size: rows of tiles stream through, memory is set by the strip and not by the scene.

    coarse strip (with halo) -> which pixels may change -> tiles that hold such pixels -> refiner -> Hann blending ->
    finished rows

A pixel may change if it is valid, within `reach_px` of a coarse boundary, and not surer than `keep_confidence`; all
others keep the coarse class. So a tile without such a pixel need not be computed, and leaving
it out changes nothing (band gating). Every tile draws from its own seed, hash(seed, raster id, row, col), or with
`shared_noise` the noise of the ground it lies on: batches, workers and order of tiles have no influence.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from idgbr.config import SamplerConfig
from idgbr.interfaces import Json, Report
from idgbr.labels import ClassTable
from idgbr.rasters.coarse_map import CoarseMap, CoarseStrip, MemoryCoarse
from idgbr.rasters.edges import changeable
from idgbr.rasters.read import IGNORE, Grid, RasterWriter, Reader, require_same_grid
from idgbr.rasters.tiling import Ground, Seed, Strip, Window, starts, tile_seed
from idgbr.rasters.write import class_map_writer, quantise
from idgbr.refiner.decisions import decide, guarded, refuse_confidence

MAX_OPEN_ROWS = 4  # rows of tiles kept while a batch fills up


class TileRefiner(Protocol):
    """What computes tiles. `TorchTiles` wraps the trained refiner; tests bring their own."""

    def condition(self, image: NDArray[np.float32], coarse: NDArray[np.float32], valid: NDArray[np.bool_]) -> Any:
        """Image raw [B,C,T,T], coarse probabilities [B,K,T,T], valid [B,T,T] -> what `draw` needs, computed once for
        all samples."""

    def draw(self, condition: Any, seeds: Sequence[Seed], sampler: SamplerConfig) -> NDArray[np.float32]:
        """All samples of all tiles: probabilities [S,B,K,T,T]. `seeds` has one number a tile."""


@dataclass
class Tally:
    """What was done to a scene."""

    tiles: int = 0
    computed: int = 0
    pixels: int = 0
    changed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        share = self.changed / self.pixels if self.pixels else 0.0
        return f"{self.computed} of {self.tiles} tiles computed, {self.tiles - self.computed} copied; {share:.2%} of the pixels changed"


@dataclass(frozen=True)
class Rows:
    """Finished rows: classes uint8 [n, W], 255 where nothing is known; bands uint8 [b, n, W] as `band_names`, or none
    (b = 0); if asked for, the probabilities in 255ths uint8 [K, n, W] and the classes of every sample uint8
    [S, n, W]."""

    row: int
    index: NDArray[np.uint8]
    bands: NDArray[np.uint8]
    probabilities: NDArray[np.uint8] | None = None
    samples: NDArray[np.uint8] | None = None


@dataclass
class _TileRow:
    """What must be remembered of a row of tiles until its pixels are final."""

    row: int
    coarse: CoarseStrip
    open: NDArray[np.bool_]  # may change, [h, W]
    valid: NDArray[np.bool_]
    tiles: int = 0
    computed: int = 0


def band_names(samples: int) -> tuple[str, ...]:
    """Of the confidence file: probability of the class given; with several samples also the share of them that voted
    for the most frequent class, and the entropy of the mean probabilities in units of log K."""
    return ("confidence", "agreement", "entropy") if samples > 1 else ("confidence",)


def refine_rows(
    tiles: TileRefiner | None,
    sampler: SamplerConfig,
    image: Reader,
    coarse: CoarseMap | MemoryCoarse,
    n_classes: int,
    *,
    raster_id: str,
    seed: int,
    bands: bool = False,
    samples: int = 0,
    mask_nodata: bool = True,
    first_row: int = 0,
    tally: Tally | None = None,
    report: Report | None = None,
) -> Iterator[Rows]:
    """Rows of the refined map from top to bottom.

    Args:
        tiles: None gives the coarse map back.
        bands: also the bands named by `band_names`, quantised to 0..255, all 0 where nothing is known.
        samples: above 0: also the probabilities, and the classes of this many samples, each blended over the tiles
            and guarded as the result is.
        mask_nodata: 255 where the image has no data; else the coarse class is kept there.
        first_row: leave out what lies above (an earlier run delivered it). The rest is bitwise the same.
        tally: counted up in place.

    Raises:
        Disagreement: image and coarse map are on different grids.
        BadRequest: `keep_confidence` or `trust` with a class map, which says nothing about confidence.
    """
    grid = image.grid
    if not coarse.is_probabilities:
        refuse_confidence(sampler)
    tally = tally if tally is not None else Tally()
    size, n_samples = sampler.tile_px, sampler.samples if tiles is not None else 1
    with_votes = bands and n_samples > 1
    strip = Strip(n_classes * (1 + with_votes + samples), grid.height, grid.width, size, sampler.overlap_px)
    strip.restart(first_row)
    cols = starts(grid.width, size, sampler.overlap_px)
    total, done = len(strip.rows) * len(cols), (len(strip.rows) - len(strip.due)) * len(cols)
    opened: dict[int, _TileRow] = {}
    queue: list[tuple[Window, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]] = []

    def finish(window: Window, values: NDArray[np.float32] | None) -> Iterator[Rows]:
        nonlocal done
        done += 1
        for row, blend in strip.add(window, values):
            rows = _finished(opened.pop(row), row, blend, n_classes, bands, n_samples, samples, mask_nodata, first_row, tally)
            if rows is not None:
                yield rows
            if report:
                report(stage="refined", done=done, total=total, computed=tally.computed)

    def run_queue() -> Iterator[Rows]:
        if tiles is None or not queue:
            return
        condition = tiles.condition(*(np.stack([q[i] for q in queue]) for i in (1, 2, 3)))
        draws = tiles.draw(condition, [_seed_of(q[0], sampler, seed, raster_id) for q in queue], sampler)
        before = np.stack([q[2] for q in queue])
        parts = [decide(draws, before, sampler.decision, sampler.trust, sampler.sure)]
        if with_votes:
            votes = draws.argmax(axis=2)[:, :, None] == np.arange(n_classes)[:, None, None]
            parts.append(votes.mean(axis=0, dtype=np.float32))
        if samples:
            parts += [guarded(draw, before, sampler.trust, sampler.sure) for draw in draws]
        results = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        finished = [q[0] for q in queue]
        queue.clear()
        for window, values in zip(finished, results, strict=True):
            yield from finish(window, values)

    for row in strip.due:
        context = _tile_row(image, coarse, sampler, row, tiles is not None)
        opened[row] = context
        skipped = []
        for col in cols:
            window = Window(row, col, size, size)
            context.tiles += 1
            if context.open[:, col : col + size].any():
                context.computed += 1
                pixels, valid = image.read(*window)
                queue.append((window, pixels, context.coarse.probabilities(0, col, size, size), valid))
            else:
                skipped.append(window)
            if len(queue) == sampler.batch_tiles:
                yield from run_queue()
        for window in skipped:
            yield from finish(window, None)
        if len(opened) > MAX_OPEN_ROWS:
            yield from run_queue()
    yield from run_queue()


def _seed_of(window: Window, sampler: SamplerConfig, seed: int, raster_id: str) -> Seed:
    if sampler.shared_noise:
        return Ground(tile_seed(seed, raster_id, 0, 0), window.row, window.col)
    return tile_seed(seed, raster_id, window.row, window.col)


def _tile_row(image: Reader, coarse: CoarseMap | MemoryCoarse, sampler: SamplerConfig, row: int, may_change: bool) -> _TileRow:
    grid = image.grid
    height = min(sampler.tile_px, grid.height - row)
    halo = math.ceil(sampler.reach_px) + 1  # the row beyond tells whether a pixel at distance reach_px touches another class
    top = min(halo, row)
    wide = coarse.strip(row - top, top + height + halo)
    inner = wide.rows(top, top + height)
    valid = image.valid(row, 0, height, grid.width)
    if not may_change or sampler.keeps_coarse:
        return _TileRow(row, inner, np.zeros(inner.index.shape, bool), valid)
    may = valid & (inner.index != IGNORE)
    confidence = wide.confidence() if sampler.keep_confidence else None
    may &= changeable(wide.index, confidence, sampler.reach_px, sampler.keep_confidence)[top : top + height]
    return _TileRow(row, inner, may, valid)


def _finished(
    context: _TileRow,
    row: int,
    blend: NDArray[np.float32],
    n_classes: int,
    bands: bool,
    n_samples: int,
    kept: int,
    mask_nodata: bool,
    first_row: int,
    tally: Tally,
) -> Rows | None:
    if row >= first_row:  # rows of tiles above were counted by the run that delivered them
        tally.tiles += context.tiles
        tally.computed += context.computed
    skip = max(first_row - row, 0)
    n = blend.shape[1]
    if skip >= n:
        return None
    rows = slice(skip, n)
    blend, may, coarse, valid = blend[:, rows], context.open[rows], context.coarse.rows(skip, n), context.valid[rows]
    index = coarse.index.copy()
    chosen = blend[:n_classes, may].argmax(axis=0).astype(np.uint8)
    index[may] = chosen
    tally.pixels += index.size
    tally.changed += int((index != coarse.index).sum())
    if mask_nodata:
        index[~valid] = IGNORE
    out = np.zeros((0, *index.shape), np.uint8)
    if bands:
        known = index != IGNORE
        values = np.zeros((len(band_names(n_samples)), *index.shape), np.float32)
        values[0] = coarse.confidence()
        values[0][may] = np.take_along_axis(blend[:n_classes, may], chosen[None], axis=0)[0]
        if n_samples > 1:
            values[1] = 1
            values[1][may] = blend[n_classes:, may].max(axis=0)
            mean = np.where(may, blend[:n_classes], coarse.probabilities(0, 0, *index.shape)).clip(1e-12)
            values[2] = -(mean * np.log(mean)).sum(axis=0) / math.log(n_classes)
        out = quantise(values)
        out[:, ~known] = 0
    if not kept:
        return Rows(row + skip, index, out)
    probabilities = quantise(np.where(may, blend[:n_classes], coarse.probabilities(0, 0, *index.shape)))
    drawn = np.repeat(coarse.index[None], kept, 0)
    for s, values in enumerate(np.split(blend[-kept * n_classes :], kept)):
        drawn[s, may] = values[:, may].argmax(axis=0)
    return Rows(row + skip, index, out, probabilities, drawn)


def refine_raster(
    tiles: TileRefiner | None,
    sampler: SamplerConfig,
    image: Reader,
    coarse: CoarseMap | MemoryCoarse,
    out: Path,
    *,
    raster_id: str,
    seed: int,
    table: ClassTable,
    mask_nodata: bool = True,
    confidence: Path | None = None,
    probabilities: Path | None = None,
    samples: tuple[Path, int] | None = None,
    tags: dict[str, str] | None = None,
    cog: bool = False,
    report: Report | None = None,
) -> Tally:
    """Refine one raster and write the class map (and what else is asked for) on the same grid; whole or nothing.

    Args:
        confidence: bands as `band_names`. probabilities: one band a class. samples: one band of classes a sample, and
            how many there are; with `probabilities` only.

    Raises:
        Disagreement: the grids differ. BadRequest, Missing: `out` cannot be written.
    """
    require_same_grid(image.grid, coarse.grid, str(image.path), str(getattr(coarse, "path", "coarse map")))
    tally, started = Tally(), time.perf_counter()
    settings: Json = {"raster_id": raster_id, "seed": seed, "bands": confidence is not None, "mask_nodata": mask_nodata}
    if probabilities is not None:
        settings["samples"] = samples[1] if samples is not None else 1
    rows = refine_rows(tiles, sampler, image, coarse, table.n_classes, **settings, tally=tally, report=report)
    write_rows(
        rows, out, image.grid, table, confidence=confidence, samples=sampler.samples, tags=tags, cog=cog,
        beside=_beside(image.grid, table, probabilities, samples),
    )  # fmt: skip
    tally.seconds = time.perf_counter() - started
    return tally


def _beside(grid: Grid, table: ClassTable, probabilities: Path | None, samples: tuple[Path, int] | None) -> dict[str, RasterWriter]:
    """Writers of the fields of `Rows` that are asked for."""
    found: dict[str, RasterWriter] = {}
    if probabilities is not None:
        found["probabilities"] = RasterWriter(
            probabilities, grid, table.n_classes, descriptions=table.names, tags={"IDGBR_KIND": "probabilities"}
        )
    if samples is not None:
        path, n = samples
        found["samples"] = RasterWriter(path, grid, n, descriptions=tuple(f"sample {i}" for i in range(n)))
    return found


def write_rows(
    rows: Iterator[Rows],
    out: Path,
    grid: Grid,
    table: ClassTable,
    *,
    confidence: Path | None = None,
    samples: int = 1,
    tags: dict[str, str] | None = None,
    cog: bool = False,
    beside: Mapping[str, RasterWriter] | None = None,
) -> None:
    """Rows into the class map `out` and, if asked for, the confidence bands and the fields named by `beside`; all
    appear at the end or none does."""
    writers = dict(beside or {})
    if confidence is not None:
        names = band_names(samples)
        writers["bands"] = RasterWriter(confidence, grid, len(names), tags=tags, descriptions=names, cog=cog)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(class_map_writer(out, grid, table, tags, cog=cog))
        opened = {name: stack.enter_context(each) for name, each in writers.items()}
        for part in rows:
            writer.write(part.row, part.index)
            for name, each in opened.items():
                each.write(part.row, getattr(part, name))
