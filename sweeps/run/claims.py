"""Claim files with heartbeats, by which two drivers on one store share the work instead of doing it twice.

    claims/<name>.json            {driver, host, pid, ...}: this driver does it now
    claims/drivers/<driver>.json  a counter that grows while the driver lives

Results do not depend on claims: if two drivers compute one key, both artefacts are complete and the last manifest
wins. A driver of the same host is dead when its process is; a driver of another host when its counter has not changed
for `STALE_S`. Clocks are not compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import NotRequired, TypedDict

from idgbr.errors import IdgbrError
from idgbr.files import create, unwritable
from idgbr.store import Store

BEAT_S = 3.0
STALE_S = 30.0


class Driver(TypedDict):
    """A driver, as claims and heartbeats describe it. `started`: see `_started`."""

    driver: str
    host: str
    pid: int
    started: str
    study: str
    beat: NotRequired[int]


def _started(pid: int) -> str:
    """Start time of a living process in /proc, which distinguishes it from a later process of the same number; empty
    on other systems, and of a process that has ended but whose parent has not asked for its exit status.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


class Heartbeats:
    """Which drivers live: by their process on this host, by their heartbeats on another."""

    def __init__(self, store: Store):
        self.store = store
        self.seen: dict[str, tuple[int, float]] = {}  # driver -> (its counter, when this process saw it change)

    def is_alive(self, driver: Driver) -> bool:
        """Whether a driver still runs; of another host: whether its counter has changed in the last `STALE_S` seconds,
        or was not looked at before.
        """
        if driver["host"] == socket.gethostname():
            return _started(driver["pid"]) == driver["started"] != ""
        data = self.store.read_bytes(f"claims/drivers/{driver['driver']}.json")
        if data is None:
            return False
        beat, now = json.loads(data)["beat"], time.monotonic()
        if self.seen.get(driver["driver"], (None, 0.0))[0] != beat:
            self.seen[driver["driver"]] = (beat, now)
        return now - self.seen[driver["driver"]][1] < STALE_S


class Claims:
    """The claims of one driver. A context manager: heartbeats are written inside, claims are released at the end."""

    def __init__(self, store: Store, study: str):
        self.store = store
        self.id = uuid.uuid4().hex[:12]
        self.who: Driver = {
            "driver": self.id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "study": study,
        }
        self.mine: set[str] = set()
        self.heartbeats = Heartbeats(store)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> Claims:
        self._write_beat(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=10)
        with contextlib.suppress(IdgbrError):  # of a store that is away: claims end with their driver
            for name in list(self.mine):
                self.release(name)
            self.store.delete(f"claims/drivers/{self.id}.json")

    # ---- heartbeats --------------------------------------------------------------------------------------------------

    def _write_beat(self, count: int) -> None:
        self.store.write_bytes(f"claims/drivers/{self.id}.json", json.dumps(self.who | {"beat": count}).encode())

    def _beat(self) -> None:
        count = 0
        while not self._end.wait(BEAT_S):
            count += 1
            try:
                self._write_beat(count)
            except IdgbrError:  # a full disk: the work itself reports it; another driver may take over meanwhile, which is safe
                continue

    # ---- claims ------------------------------------------------------------------------------------------------------

    def take(self, name: str) -> Driver | None:
        """None: this driver has the claim now (or had it before). Else the driver that has it."""
        if name in self.mine:
            return None
        path = f"claims/{name}.json"
        holder = self._holder(path)
        if holder is not None and holder["driver"] == self.id:  # written before, and seen late
            self.mine.add(name)
            return None
        if holder is not None and self.heartbeats.is_alive(holder):
            return holder
        if holder is not None:
            self.store.delete(path)
        if not self._create(path):
            return self._holder(path) or self.who | {"driver": "another"}
        self.mine.add(name)
        return None

    def release(self, name: str) -> None:
        """Give a claim back, so that other drivers may take it."""
        self.mine.discard(name)
        self.store.delete(f"claims/{name}.json")

    def _create(self, path: str) -> bool:
        data = json.dumps(self.who).encode()
        if self.store.is_local:
            target = Path(self.store.base) / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                return create(target, data)
            except OSError as error:
                raise unwritable(str(target), error) from error
        self.store.write_bytes(path, data)
        return (self._holder(path) or self.who)["driver"] == self.id  # not seen yet: a claim saves work, it protects nothing

    def _holder(self, path: str) -> Driver | None:
        data = self.store.read_bytes(path)
        return json.loads(data) if data else None


def drivers(store: Store) -> list[Driver]:
    """Drivers with a heartbeat file, the dead of this host left out."""
    found = [json.loads(store.read_bytes(name) or b"{}") for name in store.names("claims/drivers", suffix=".json")]
    here = socket.gethostname()
    return [d for d in found if d and (d["host"] != here or _started(d["pid"]) == d["started"])]
