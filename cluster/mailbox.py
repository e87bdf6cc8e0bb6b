"""Between the workers of a training and its driver: lines of the curve out, the wish to stop in."""

from __future__ import annotations

import logging
import threading
from typing import Any

from idgbr.interfaces import Report, Stop

log = logging.getLogger("ray.train")


class Mailbox:
    """An actor: lines of the curve to the driver, the wish to stop and errors that no retry mends."""

    def __init__(self) -> None:
        self.line: dict[str, Any] | None = None
        self.is_leaving = False
        self.error: Any = None

    def put(self, line: dict[str, Any]) -> None:
        self.line = line

    def exchange(self, leave: bool) -> dict[str, Any] | None:
        self.is_leaving = self.is_leaving or leave
        line, self.line = self.line, None
        return line

    def leaving(self) -> bool:
        return self.is_leaving

    def fail(self, error: Any) -> None:
        self.error = self.error or error

    def failure(self) -> Any:
        return self.error


class Postman:
    """A thread of the driver: reports out, wishes in. An error of `report` or `stop` ends the training and is raised when it has ended."""

    def __init__(self, mailbox: Any, report: Report | None, stop: Stop | None):
        self.mailbox, self.report, self.stop = mailbox, report, stop
        self.is_over = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        import ray

        while not self.is_over.wait(1.0):
            try:
                leave = self.error is not None or bool(self.stop and self.stop())
                line = ray.get(self.mailbox.exchange.remote(leave), timeout=30)
                if line and self.report and self.error is None:
                    self.report(**line)
            except ray.exceptions.GetTimeoutError:
                continue  # the machine is busy
            except ray.exceptions.RayError as error:
                log.warning("the mailbox of this training does not answer; training goes on without progress: %s", error)
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
