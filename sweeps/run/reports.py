"""What running jobs report: names and values."""

from __future__ import annotations

from collections.abc import Mapping


def furthest(values: Mapping[str, object]) -> float:
    """How far a job is by its report, in images or steps."""
    found = values.get("images", values.get("done"))
    return float(found) if isinstance(found, int | float) else 0.0
