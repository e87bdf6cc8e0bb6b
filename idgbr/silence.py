"""A limit on how long a job may show no sign of life."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from idgbr.interfaces import Report, Stop

MOST_EVERY_S = 1.0  # each sign starts the clock again, but no more often than this


class SignsOfLife:
    """The clock of one job. When it runs out, the stacks of all threads are written to the job's log and the process
    ends with exit code 1: Python cannot end a thread that hangs.

    The clock is a thread of `faulthandler`, so it also runs out where a library holds the interpreter.

    Args:
        limit_s: seconds without a sign; 0: no limit.
        log: the stacks are appended to it; None: standard error.
        ends: False: the stacks are written, and the process goes on.
    """

    def __init__(self, limit_s: float, log: Path | None = None, *, ends: bool = True):
        self.limit_s, self.log, self.ends = limit_s, log, ends
        self._file: IO[str] | None = None
        self._signed = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The clock runs inside the block. One block of a process at a time."""
        if not self.limit_s:
            yield
            return
        with contextlib.ExitStack() as stack:
            self._file = sys.__stderr__
            if self.log is not None:
                with contextlib.suppress(OSError):  # a full disk: the stacks go to standard error
                    self.log.parent.mkdir(parents=True, exist_ok=True)
                    self._file = stack.enter_context(open(self.log, "a"))
            self._start()
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._file = None

    def sign(self) -> None:
        """The job is alive: the clock starts again."""
        if self._file is not None and time.monotonic() - self._signed >= min(MOST_EVERY_S, self.limit_s / 10):
            self._start()

    def _start(self) -> None:
        assert self._file is not None
        self._signed = time.monotonic()
        faulthandler.dump_traceback_later(self.limit_s, exit=self.ends, file=self._file)

    def reporting(self, report: Report | None) -> Report:
        """`report`; each call is a sign of life."""

        def signed(**values: Any) -> None:
            self.sign()
            if report is not None:
                report(**values)

        return signed

    def asking(self, stop: Stop | None) -> Stop:
        """`stop`; each call is a sign of life."""

        def signed() -> bool:
            self.sign()
            return stop is not None and stop()

        return signed
