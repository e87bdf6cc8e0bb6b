"""Goals of a search: scores of a trial's counts on their first label set, or the seconds of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.store import Store

if TYPE_CHECKING:
    import polars as pl


def counts_of(path: Path) -> pl.DataFrame:
    """The rows of a counts table that belong to its first label set."""
    from idgbr.scores import read_counts

    frame = read_counts(path)
    return frame.filter(frame["label_set"] == frame["label_set"][0])


def score_of(store: Store, counts_key: str, goal: str) -> float:
    """A score of a counts artefact; NaN where it is undefined.

    Raises:
        Missing: the artefact is not in the store. BadRequest: no such score.
    """
    from idgbr.scores import evaluate

    return evaluate(counts_of(store.path("counts", counts_key) / "counts.parquet"), goal).score


def is_higher_better(goal: str) -> bool:
    """Of a goal without its sign."""
    from idgbr.scores.read import metric

    return metric(goal).higher_is_better if goal != "seconds" else False
