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


@dataclass(frozen=True)
class Held:
    """A unit that a worker holds.

    Args:
        began: time.monotonic() at its start. workers: that share it. device: see `control.device_name`; empty where
            there is only one.
    """

    began: float
    workers: int
    device: str = ""


class GpuClock:
    """GPU time that units hold, from the moment a worker has taken them until they leave it."""

    def __init__(self, gpus: float):
        self.gpus = gpus  # of one worker
        self._seconds = 0.0
        self.held: dict[str, Held] = {}  # by unit

    def start(self, unit: str, workers: int, device: str = "") -> None:
        """A unit begins on `workers` workers."""
        self.held[unit] = Held(time.monotonic(), workers, device)

    def stop(self, unit: str) -> None:
        """A unit has ended: its time is counted."""
        held = self.held.pop(unit, None)
        if held is not None:
            self._seconds += (time.monotonic() - held.began) * held.workers * self.gpus

    @property
    def hours(self) -> float:
        """Held so far, running units included."""
        now = time.monotonic()
        return (self._seconds + sum((now - h.began) * h.workers * self.gpus for h in self.held.copy().values())) / 3600
