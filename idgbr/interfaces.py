"""What long work is handed so that it can be watched and stopped."""

from __future__ import annotations

from typing import Any, Protocol


class Report(Protocol):
    """Called while work goes on, with `done` and `total` and whatever else is worth showing: name=value."""

    def __call__(self, **values: Any) -> None: ...


class Stop(Protocol):
    """Asked between steps; true ends the work with `Interrupted`, its checkpoint kept."""

    def __call__(self) -> bool: ...
