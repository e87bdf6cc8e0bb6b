"""All counts of one tile: rows for the two tables, without identity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from idgbr.config import ScoreConfig
from idgbr.errors import BadRequest, Disagreement
from idgbr.interfaces import Json
from idgbr.labels import IGNORE
from idgbr.rasters.edges import distance_bands, label_edges
from idgbr.scores import bands, boundary, legacy, region, surface, wfm
from idgbr.scores.boundary import Inner, crop
from idgbr.scores.region import Map
from idgbr.scores.schema import JOINT, LEDGER, LOSS_UNIT, MAX_LEVELS, RATES, TRIMAP_WIDTHS_PX

TileRow = Json


@dataclass(frozen=True)
class Widths:
    """Settings in px of one raster: ratios and metres resolved, so that all its tiles are counted alike."""

    boundary_px: int
    tolerance_px: float
    trimap_px: int
    mba_radii: tuple[int, ...]
    distance_edges_px: tuple[float, ...]
    band_levels: int
    legacy: bool = True
    surface: bool = False

    @classmethod
    def of(cls, config: ScoreConfig, height: int, width: int, gsd_m: float | None = None) -> Widths:
        """For rasters of height x width px. Ratios refer to the tile: min(side, score.tile_px).

        Raises:
            BadRequest: metres asked for a raster whose pixel size is not known.
        """
        height, width = min(height, config.tile_px), min(width, config.tile_px)
        diagonal = math.hypot(height, width)
        boundary_px = config.boundary_px or config.boundary_ratio * diagonal
        tolerance_px = config.tolerance_px
        if config.boundary_m:
            boundary_px = config.boundary_m / _ground(gsd_m, "boundary_m", config.boundary_m)
        if config.tolerance_m:
            tolerance_px = config.tolerance_m / _ground(gsd_m, "tolerance_m", config.tolerance_m)
        return cls(
            max(1, round(boundary_px)),
            tolerance_px,
            config.trimap_px,
            boundary.mba_radii(height, width),
            tuple(sorted(config.distance_edges_px)),
            config.band_levels,
            config.legacy,
            config.surface,
        )

    @property
    def near_px(self) -> int:
        """Halo that makes every additive count of a tile exact, but for the distance of far false positives
        (`wfm.FAR_HALO_PX`)."""
        return max(
            self.boundary_px,
            math.floor(self.tolerance_px) + 1,
            self.trimap_px,
            *TRIMAP_WIDTHS_PX,
            *self.mba_radii,
            math.ceil(max(self.distance_edges_px, default=0)),
            (1 << self.band_levels) - 1,
            wfm.HALO_PX + wfm.EDGE_PX,
        )

    @property
    def halo_px(self) -> int:
        """How far in px pixels outside a tile can change its scores."""
        return max(self.near_px, wfm.FAR_HALO_PX)


def _ground(gsd_m: float | None, name: str, value: float) -> float:
    if not gsd_m:
        raise BadRequest(
            f"score.{name} needs the size of a pixel on the ground, and this raster does not say it",
            value=f"score.{name}={value}",
            allowed="rasters with a projected or geographic CRS",
            hint=f"give it in pixels: score.{name[:-2]}_px",
        )
    return gsd_m


def count_tile(
    refined: Map,
    target: Map,
    n_classes: int,
    config: ScoreConfig,
    coarse: Map | None = None,
    ignore: int = IGNORE,
) -> tuple[list[TileRow], list[TileRow]]:
    """Counts of one tile that is an image by itself (its frame is the frame of the scene).

    Args:
        refined, coarse: class indices uint8 [H,W]; a value >= n_classes is a prediction outside the classes, wrong
            everywhere.
        target: class indices uint8 [H,W]; `ignore` is not scored.

    Returns:
        rows of the counts table (n_classes rows and one of class -1), rows of the bands table; both without identity
        columns but `class`.

    Raises:
        Disagreement: shapes differ, or a target value is neither a class nor `ignore`.
    """
    target = clean_target(target, n_classes, ignore)
    widths = Widths.of(config, *target.shape)
    return count_window(refined, target, n_classes, widths, (0, target.shape[0], 0, target.shape[1]), coarse)


def clean_target(target: Map, n_classes: int, ignore: int) -> Map:
    """Ignored pixels as 255."""
    if target.dtype != np.uint8 or target.ndim != 2:
        raise Disagreement("a target is a map of class indices, uint8 [H,W]", value=f"{target.dtype} {list(target.shape)}")
    if ignore != IGNORE:
        target = np.where(target == ignore, np.uint8(IGNORE), target)
    strange = (target >= n_classes) & (target != IGNORE)
    if strange.any():
        found = ", ".join(f"{v}: {n}" for v, n in zip(*np.unique(target[strange], return_counts=True)))
        raise Disagreement(
            "target values that are no class",
            value=f"value: pixels {found}",
            allowed=f"0 to {n_classes - 1}, ignore {ignore}",
            hint="a class table with these codes: --classes FILE.json, or --ignore VALUE",
        )
    return target


def count_window(
    pred: Map, target: Map, n_classes: int, widths: Widths, inner: Inner, coarse: Map | None = None
) -> tuple[list[TileRow], list[TileRow]]:
    """Counts of the tile `inner` = (row0, row1, col0, col1) of a window that holds its halo; a side of `inner` at 0
    or at H (W) is a frame.

    Args: as `count_tile`, with ignored target pixels 255 already.

    Raises:
        Disagreement: shapes differ.
    """
    for name, m in (("pred", pred), ("coarse", coarse)):
        if m is not None and (m.shape != target.shape or m.dtype != np.uint8):
            raise Disagreement(
                f"{name} and target are not maps of one shape",
                value=f"{name} {m.dtype} {list(m.shape)}, target {list(target.shape)}",
                allowed="uint8 class indices [H,W]",
            )
    k = n_classes
    raw_pred, raw_target = np.ascontiguousarray(crop(pred, inner)), np.ascontiguousarray(crop(target, inner))
    far_target, far_inner = target, inner
    window = _near(inner, target.shape, widths.near_px)
    inner = (inner[0] - window[0], inner[1] - window[0], inner[2] - window[2], inner[3] - window[2])
    pred, target = crop(pred, window), np.ascontiguousarray(crop(target, window))
    valid = target < k
    outside = np.minimum(pred, np.uint8(k))  # K: predicted outside the classes
    # The zero_both convention: where the target is ignored, neither map is of any class.
    pred = np.where(valid, np.minimum(pred, np.uint8(k)), np.uint8(IGNORE))
    pred[pred == k] = IGNORE
    coarse = None if coarse is None else np.minimum(crop(coarse, window), np.uint8(k))

    rows: list[TileRow] = [{"class": c} for c in range(k)]
    tile: TileRow = {"class": -1}
    edges = label_edges(target, k)
    by_distance = _joint(
        crop(distance_bands(edges, widths.distance_edges_px), inner),
        len(widths.distance_edges_px) + 1,
        crop(target, inner),
        crop(outside, inner),
        None if coarse is None else crop(coarse, inner),
        k,
    )
    _fill_region(rows, tile, by_distance.sum(0), k)
    tile["ignored"] = raw_target.size - tile["valid"]

    for name, column in zip(("biou_intersection", "biou_union"), boundary.boundary_iou(pred, target, k, widths.boundary_px, inner)):
        _put(rows, name, column)
    names = ("bf_pred_hits", "bf_pred_pixels", "bf_target_hits", "bf_target_pixels")
    for name, column in zip(names, boundary.boundary_f(pred, target, k, widths.tolerance_px, inner)):
        _put(rows, name, column)
    _fill_trimaps(rows, edges, target, outside, widths.trimap_px, inner, k)
    hits, pixels = boundary.mba(pred, target, k, widths.mba_radii, inner)
    for i in range(5):
        tile[f"mba{i}_hits"], tile[f"mba{i}_pixels"] = int(hits[i]), int(pixels[i])

    of_class, of_all = bands.energies(pred, target, k, widths.band_levels, inner)
    for j in range(min(widths.band_levels, MAX_LEVELS) + 1):
        _put(rows, f"t{j}", of_class[:, j])
        tile[f"t{j}"] = int(of_all[j])

    far = wfm.Far(far_target, far_inner[0] - inner[0], far_inner[2] - inner[2], widths.near_px)
    region_sums = wfm.sums(pred, target, k, inner, far if far_target.shape != target.shape else None)
    far_edges = wfm.Far(far_target, far.row, far.col, widths.near_px - wfm.EDGE_PX, edges_of=k)
    edge_sums = wfm.sums(
        wfm.edge_labels(pred, k), wfm.edge_labels(target, k), k, inner, far_edges if far_target.shape != target.shape else None
    )
    for kind, s in (("region", region_sums), ("edge", edge_sums)):
        for name in ("target", "pred", "target_loss", "rest_loss"):
            column = getattr(s, name)
            _put(rows, f"wfm_{kind}_{name}", np.rint(column / LOSS_UNIT).astype(np.int64) if name.endswith("_loss") else column)
    if widths.legacy:
        _fill_legacy(
            rows, tile, raw_pred, raw_target, region_sums if raw_target.shape == far_target.shape and not tile["ignored"] else None, k
        )
    if widths.surface:
        surface.fill(rows, np.ascontiguousarray(crop(pred, inner)), np.ascontiguousarray(crop(target, inner)), k)
    return [*rows, tile], _band_rows(by_distance, widths.distance_edges_px, k)


def _near(inner: Inner, shape: tuple[int, ...], halo: int) -> Inner:
    return max(0, inner[0] - halo), min(shape[0], inner[1] + halo), max(0, inner[2] - halo), min(shape[1], inner[3] + halo)


def _put(rows: list[TileRow], name: str, values: np.ndarray) -> None:
    for row, value in zip(rows, values.tolist()):
        row[name] = value


def _joint(band: Map, n_bands: int, target: Map, pred: Map, coarse: Map | None, k: int) -> np.ndarray:
    """[bands, K, K+1] of (target, pred), or [bands, K, K+1, K+1] of (target, coarse, pred)."""
    if coarse is None:
        return region.joint([band, target, pred], [n_bands, k, k + 1])
    return region.joint([band, target, coarse, pred], [n_bands, k, k + 1, k + 1])


def _fill_region(rows: list[TileRow], tile: TileRow, cells: np.ndarray, k: int) -> None:
    table = cells if cells.ndim == 2 else cells.sum(1)
    for name, column in zip(RATES, region.rates(table)):
        _put(rows, name, column)
    for row, counts in zip(rows, table.tolist()):
        row["predicted_as"] = counts
    tile["valid"], tile["correct"], tile["outside"] = int(table.sum()), int(np.trace(table)), int(table[:, k].sum())
    if cells.ndim == 3:
        for name, column in region.ledger(cells).items():
            _put(rows, name, column)
            tile[name] = int(column.sum())
        for i, name in enumerate(JOINT):
            _put(rows, name, region.one_vs_rest_cells(cells)[:, i])


def _fill_trimaps(rows: list[TileRow], edges: Map, target: Map, pred: Map, width_px: int, inner: Inner, k: int) -> None:
    widths = tuple(sorted({*TRIMAP_WIDTHS_PX, width_px}))
    shells = crop(boundary.trimap_shells(edges, widths), inner)
    inside = region.joint([shells, crop(target, inner), crop(pred, inner)], [len(widths), k, k + 1]).cumsum(0)
    for width, table in zip(widths, inside):
        for name, column in zip(RATES, region.rates(table)):
            if width in TRIMAP_WIDTHS_PX:
                _put(rows, f"trimap{width}_{name}", column)
            if width == width_px:
                _put(rows, f"trimap_{name}", column)


def _fill_legacy(rows: list[TileRow], tile: TileRow, pred: Map, target: Map, same: wfm.WeightedSums | None, k: int) -> None:
    """The authors' values of this tile as a file of its own; `same`: sums that are equal to theirs, where they are."""
    s = same or wfm.sums(pred, target, k, (0, target.shape[0], 0, target.shape[1]))
    values = wfm.weighted_f(s.target, s.target_loss, s.rest_loss)
    for row, value in zip(rows, values.tolist()):
        row["wfm_region_legacy_value"] = None if math.isnan(value) else value
    for name, value in zip(("wfm_edge_legacy_0_value", "wfm_edge_legacy_1_value"), legacy.edge_f(pred, target).tolist()):
        tile[name] = None if math.isnan(value) else value


def _band_rows(by_distance: np.ndarray, edges_px: tuple[float, ...], k: int) -> list[TileRow]:
    out: list[TileRow] = []
    lows, highs = (0.0, *edges_px), (*edges_px, math.inf)
    for low, high, cells in zip(lows, highs, by_distance):
        table = cells if cells.ndim == 2 else cells.sum(1)
        columns = dict(zip(RATES, region.rates(table)))
        columns["valid"], columns["correct"] = table.sum(1), columns["tp"]
        if cells.ndim == 3:
            columns |= region.ledger(cells)
        place = {"low_px": low, "high_px": high}
        for c in range(k):
            out.append({"class": c, **place, **{name: int(column[c]) for name, column in columns.items()}})
        whole = ("valid", "correct", *LEDGER) if cells.ndim == 3 else ("valid", "correct")
        out.append({"class": -1, **place, **{name: int(columns[name].sum()) for name in whole}})
    return out
