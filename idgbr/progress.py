"""One live line for one job: rich on a terminal, a plain line every few seconds otherwise. On stderr, always."""

from __future__ import annotations

import sys
import time
from typing import Any

from idgbr.interfaces import Json

PLAIN_EVERY_S = 10.0


class Progress:
    """Call it with keyword arguments: `done` and `total` move the bar, everything else is shown beside it.

    A stage calls `report(stage=..., done=..., total=..., loss=..., images_per_s=...)`; unknown names are shown as
    name=value.
    """

    def __init__(self, title: str):
        self.title = " ".join(title.split())
        self.is_terminal = sys.stderr.isatty()
        self.last_plain = 0.0
        self.started = time.monotonic()
        self.last: Json = {}

    def __enter__(self) -> Progress:
        if self.is_terminal:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[beside]}", markup=False), console=Console(stderr=True))
            self.task = self.bar.add_task(self.title, total=None, beside="")
            self.bar.start()
        return self

    def __call__(self, **values: Any) -> None:
        self.last = values
        done, total = values.pop("done", None), values.pop("total", None)
        values.pop("stage", None)
        beside = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self.is_terminal:
            self.bar.update(self.task, completed=done, total=total, beside=beside)
        elif time.monotonic() - self.last_plain > PLAIN_EVERY_S:
            self.last_plain = time.monotonic()
            share = f"{done}/{total}" if total is not None else ""
            print(f"{self.title} {share} {beside}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.is_terminal:
            self.bar.stop()
        if kind is None:
            print(f"{self.title}: done, {time.monotonic() - self.started:.1f} s", file=sys.stderr, flush=True)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
