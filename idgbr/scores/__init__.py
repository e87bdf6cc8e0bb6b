"""Counts of two class maps, and scores as pure functions of counts.

`count_tile` counts one tile, `count_rasters` the rasters of a split (stage "counts"), `read.METRICS` names every
score. Definitions and conventions: docs/scores.md.
"""

from typing import Any

from idgbr.scores.read import METRICS, Metric, Value, evaluate, read_counts, score_table, sums
from idgbr.scores.schema import BANDS_SCHEMA, COUNTS_SCHEMA

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


def __getattr__(name: str) -> Any:  # counting needs OpenCV; reading tables does not
    if name in ("count_rasters", "count_tile"):
        from idgbr.scores import counts

        return getattr(counts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
