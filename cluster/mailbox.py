"""Progress and stop requests between the workers of a training and its driver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from idgbr.interfaces import Json, Report, Stop

log = logging.getLogger("ray.train")


class Mailbox:
    """A Ray actor: the latest progress of the workers, the driver's request to stop, the first error that ends the
    training."""

    def __init__(self) -> None:
        self.progress: Json | None = None
        self.is_stopping = False
        self.error: Exception | None = None

    def report(self, progress: Json) -> None:
        """Called by rank 0: replaces progress that the driver has not taken."""
        self.progress = progress

    def exchange(self, stop: bool) -> Json | None:
        """Take the progress since the last call, and pass on whether to stop."""
        self.is_stopping = self.is_stopping or stop
        progress, self.progress = self.progress, None
        return progress

    def stopping(self) -> bool:
        """Whether the driver requests a stop."""
        return self.is_stopping

    def fail(self, error: Exception) -> None:
        """Keep the first error."""
        self.error = self.error or error

    def failure(self) -> Exception | None:
        """The error that was kept, or None."""
        return self.error


class Relay:
    """A thread of the driver that calls `report` and asks `stop` once a second while its block runs.

    An error of either stops the training, and is raised when the training has ended.

    Args:
        exchange: `Mailbox.exchange` of the actor.
    """

    def __init__(self, exchange: Callable[[bool], Json | None], report: Report | None, stop: Stop | None):
        self.exchange, self.report, self.stop = exchange, report, stop
        self.is_over = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        import ray

        while not self.is_over.wait(1.0):
            try:
                progress = self.exchange(self.error is not None or bool(self.stop and self.stop()))
                if progress and self.report and self.error is None:
                    self.report(**progress)
            except ray.exceptions.GetTimeoutError:
                continue  # the machine is busy
            except ray.exceptions.RayError as error:
                log.warning("the mailbox of this training does not answer; training continues without progress: %s", error)
                return
            except Exception as error:
                self.error = error

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.is_over.set()
        self.thread.join()
        if kind is None and self.error is not None:
            raise self.error
