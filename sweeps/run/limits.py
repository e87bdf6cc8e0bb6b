"""Limits that end a run early, and the count of GPU time. No Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class RunLimits:
    """Limits that end a run early.

    Args:
        max_failures: how often a unit is tried again after an outage or a lost worker without having advanced.
        max_failed: trials that may fail for reasons of their own; 0: any number.
        gpu_hours: that may be held, running jobs included; 0: any number.
    """

    max_failures: int = 2
    max_failed: int = 0
    gpu_hours: float = 0.0


class GpuClock:
    """GPU time that units hold, from the moment a worker has taken them until they leave it."""

    def __init__(self, gpus: float):
        self.gpus = gpus  # of one worker
        self._seconds = 0.0
        self._running: dict[str, tuple[float, int]] = {}  # unit -> when it began, its workers

    def start(self, unit: str, workers: int) -> None:
        self._running[unit] = (time.monotonic(), workers)

    def stop(self, unit: str) -> None:
        began, workers = self._running.pop(unit, (0.0, 0))
        self._seconds += (time.monotonic() - began) * workers * self.gpus

    @property
    def hours(self) -> float:
        """Held so far, running units included."""
        now = time.monotonic()
        return (self._seconds + sum((now - began) * workers * self.gpus for began, workers in self._running.values())) / 3600
