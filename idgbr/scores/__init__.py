"""Counts of two class maps, and scores as pure functions of counts.

`count_tile` counts one tile, `count_rasters` the rasters of a split (stage "counts"), `read.METRICS` names every score.
"""

from idgbr.scores.counts import BANDS_SCHEMA, COUNTS_SCHEMA, count_rasters, count_tile
from idgbr.scores.read import METRICS, Metric, Value, evaluate, read_counts, score_table, sums

__all__ = [
    "BANDS_SCHEMA",
    "COUNTS_SCHEMA",
    "METRICS",
    "Metric",
    "Value",
    "count_rasters",
    "count_tile",
    "evaluate",
    "read_counts",
    "score_table",
    "sums",
]
