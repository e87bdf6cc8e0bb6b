"""What a driver is doing, in the store for whoever can read it: `live/<study>/<driver>.json`, written every few seconds.

The file stays when the driver has ended, so its GPU-hours and its last failures are not lost with it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from typing import NotRequired, TypedDict

from idgbr.errors import IdgbrError
from idgbr.store import Store
from sweeps.run.claims import Driver
from sweeps.run.progress import SweepProgress
from sweeps.run.schedule import Schedule

WRITE_S = 10.0
MOST_UNITS = 2000  # described one by one
LAST = 5  # lost units that are named


class LiveUnit(TypedDict):
    """A running unit. `seconds`: since a worker took it; absent while it waits for a place."""

    unit: str
    title: str
    device: str
    beside: str  # what it last reported
    seconds: NotRequired[float]


class Live(TypedDict):
    """Content of a driver's file. Times: `seconds` since it began, `at` by its own clock."""

    driver: Driver
    at: float
    seconds: float
    is_over: bool
    workers: int
    gpu_hours: float
    units: list[LiveUnit]
    lost: list[str]
    to_go: str


def name_of(study: str, driver: str) -> str:
    """Of a driver's file below the root of the store."""
    return f"live/{study}/{driver}.json"


def lives(store: Store, study: str) -> list[Live]:
    """Of every driver that has worked on a study, the oldest first."""
    found = [json.loads(store.read_bytes(name) or b"null") for name in store.names(f"live/{study}", suffix=".json")]
    return sorted((live for live in found if live), key=lambda live: live["at"] - live["seconds"])


class LiveRecord:
    """Writes the file of one driver. A context manager: every `WRITE_S` inside, and once at the end.

    A store that does not take the file is no reason to end a study: the next write may succeed.
    """

    def __init__(self, store: Store, who: Driver, schedule: Schedule, progress: SweepProgress):
        self.store, self.who, self.schedule, self.progress = store, who, schedule, progress
        self.lost: deque[str] = deque(maxlen=LAST)
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="live record")

    def __enter__(self) -> LiveRecord:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=WRITE_S)
        self.write(is_over=True)

    def _run(self) -> None:
        while True:
            self.write()
            if self._end.wait(WRITE_S):
                return

    def write(self, *, is_over: bool = False) -> None:
        """The file, now."""
        with contextlib.suppress(IdgbrError):
            self.store.write_bytes(name_of(self.who["study"], self.who["driver"]), json.dumps(self.now(is_over)).encode())

    def now(self, is_over: bool = False) -> Live:
        """What the driver is doing at this moment."""
        now, schedule, progress = time.monotonic(), self.schedule, self.progress
        held, beside = schedule.gpu_time.held.copy(), progress.beside.copy()
        units: list[LiveUnit] = []
        for unit in [] if is_over else list(schedule.running.copy().values())[:MOST_UNITS]:
            place = held.get(unit.id)
            known = LiveUnit(unit=unit.id, title=unit.title, device=place.device if place else "", beside=beside.get(unit.id, ""))
            units.append(known if place is None else {**known, "seconds": round(now - place.began, 1)})
        return {
            "driver": self.who,
            "at": time.time(),
            "seconds": round(now - self._began, 1),
            "is_over": is_over,
            "workers": progress.workers,
            "gpu_hours": round(schedule.gpu_time.hours, 4),
            "units": units,
            "lost": list(self.lost),
            "to_go": "" if is_over else progress.to_go(),
        }
