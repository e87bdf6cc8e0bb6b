"""Types that many files share: how long work is watched and stopped, and JSON objects."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from idgbr.errors import Interrupted

Json: TypeAlias = dict[str, Any]  # a JSON object: str, int, float, bool, None, lists and objects by name


class Report(Protocol):
    """Called while work goes on, with `done` and `total` and whatever else is worth showing: name=value."""

    def __call__(self, **values: Any) -> None: ...


class Stop(Protocol):
    """Asked between steps; true ends the work with `Interrupted`, its checkpoint kept."""

    def __call__(self) -> bool: ...


def end_if_stopped(stop: Stop | None, what: str) -> None:
    """Raises:
    Interrupted: `stop` is true.
    """
    if stop is not None and stop():
        raise Interrupted(f"{what} was stopped", hint="the same command goes on")


def until_stopped(report: Report | None, stop: Stop, stage: str) -> Report:
    """`report`, and the end of a stage that was asked to stop: after any raster but the last."""

    def told(**values: Any) -> None:
        if report is not None:
            report(**values)
        if values.get("done", 0) < values.get("total", 0):
            end_if_stopped(stop, f"the stage {stage}")

    return told
