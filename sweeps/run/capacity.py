"""How many workers the cluster holds, followed while nodes come and go.

Nodes of a cloud come minutes after the head, so the start waits for a first one that can hold a job. While the study
runs, capacity is counted again every few seconds: new nodes get work, lost ones do not hold it up. An autoscaler sees
what waits: with `max_workers`, so many units are handed to Ray although they do not fit yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from idgbr.errors import Missing, Outage
from sweeps.run.nodes import node_resources
from sweeps.run.placement import Placement, slots
from sweeps.run.progress import SweepProgress
from sweeps.run.schedule import Schedule

COUNT_S = 3.0
REPORT_S = 15.0
POLL_S = 1.0


class Capacity:
    """Workers that may be busy at once.

    Args:
        wait_s: for nodes that can hold a job, at the start and again when the last of them is lost.
        max_workers: workers at once at most, handed to Ray whether they fit or not; 0: what fits.
    """

    def __init__(self, placement: Placement, *, wait_s: float = 0.0, max_workers: int = 0):
        self.placement, self.wait_s, self.max_workers = placement, wait_s, max_workers
        self.count = 0
        self.beside = 0  # units without a GPU that fit besides
        self.whole: int | None = None  # see `Placement.whole`
        self._counted = -COUNT_S
        self._enough = time.monotonic()  # when a job last fitted

    def wait(self, say: Callable[[str], None]) -> int:
        """Workers that fit now, or as soon as nodes have come.

        Raises:
            Missing: no node can hold a job, or a training's workers do not fit, for `wait_s`.
        """
        started = time.monotonic()
        reported = started - REPORT_S
        has_asked = False
        try:
            while True:
                try:
                    fits = self._fitting()
                except Missing as lack:
                    now = time.monotonic()
                    if now - started >= self.wait_s:
                        raise
                    if now - reported >= REPORT_S:
                        say(f"waiting for nodes ({now - started:.0f} of {self.wait_s:.0f} s): {lack}")
                        reported = now
                    has_asked = has_asked or self._ask(self.placement.workers)
                    time.sleep(POLL_S)
                    continue
                self.count, self._enough = self.max_workers or fits, time.monotonic()
                return self.count
        finally:
            if has_asked:
                self._ask(0)

    def _fitting(self) -> int:
        nodes = node_resources()
        self.beside, self.whole = self.placement.beside(nodes), self.placement.whole(nodes)
        return slots(self.placement, nodes)

    def _ask(self, workers: int) -> bool:
        """Ask the cluster's autoscaler, if it has one, for room for so many workers."""
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[self.placement.shape] * workers)
        return True

    def now(self, schedule: Schedule, progress: SweepProgress) -> int:
        """Counted again every few seconds. Ends the study when for `wait_s` nothing runs and no node can hold a job."""
        now = time.monotonic()
        if now - self._counted < COUNT_S:
            return self.count
        self._counted = now
        try:
            fits = self._fitting()
            self._enough = now
        except Missing as lack:
            fits = 0
            if not schedule.running and now - self._enough > self.wait_s and not schedule.stopping:
                schedule.stop_for(Outage(f"for {now - self._enough:.0f} s: {lack}"))
        count = self.max_workers or fits
        if count != self.count:
            change = f"the cluster has {'grown' if count > self.count else 'shrunk'}: room for {count} workers, {self.count} before"
            progress.say(change + ("" if count else f"; waiting up to {self.wait_s:.0f} s for nodes"))
            self.count = progress.workers = count
        return self.count
