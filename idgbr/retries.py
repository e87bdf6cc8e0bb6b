"""One retry policy for stores on networks and shared disks: exponential backoff with jitter, up to a deadline."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# What a network file system or a busy kernel reports and may not report a moment later.
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED,
        errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO,
    }
)  # fmt: skip
PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_transient(error: OSError, remote: bool = False) -> bool:
    """Whether trying again may help. Object stores give errors without a number: all of them count as transient but
    the named kinds."""
    if isinstance(error, PERMANENT):
        return False
    return error.errno in TRANSIENT_ERRNOS or (remote and error.errno is None)


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often something is tried again.

    Args:
        deadline_s: time from the first try after which no further one begins.
        first_wait_s: mean wait after the first failure; each further one is twice as long, up to `longest_wait_s`.
    """

    deadline_s: float = 120.0
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def call(self, work: Callable[[], T], retry: Callable[[OSError], bool]) -> T:
        """`work()`, tried again after each OSError for which `retry` is true.

        Raises:
            OSError: the last one, when `retry` is false for it or the deadline has passed.
        """
        started, wait = time.monotonic(), self.first_wait_s
        while True:
            try:
                return work()
            except OSError as error:
                left = started + self.deadline_s - time.monotonic()
                if left <= 0 or not retry(error):
                    raise
            time.sleep(min(left, wait * random.uniform(0.5, 1.5)))
            wait = min(2 * wait, self.longest_wait_s)

    def wait_for(self, look: Callable[[], T | None]) -> T | None:
        """The first value of `look()` that is not None; None when the deadline has passed."""
        started, wait = time.monotonic(), self.first_wait_s
        while True:
            found = look()
            left = started + self.deadline_s - time.monotonic()
            if found is not None or left <= 0:
                return found
            time.sleep(min(left, wait * random.uniform(0.5, 1.5)))
            wait = min(2 * wait, self.longest_wait_s)
