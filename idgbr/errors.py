"""Every error a user may meet, with the exit code the command line gives it.

A message has up to four parts: what is wrong; the value and where it came from; what is allowed; what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class IdgbrError(Exception):
    """Base of all errors that the user can fix. `exit_code` is the process's exit status."""

    exit_code = 1

    def __init__(self, what: str, *, value: object = None, allowed: str | None = None, hint: str | None = None):
        parts = [what.rstrip(".") + "."]
        if value is not None:
            parts.append(f"Given: {value}.")
        if allowed:
            parts.append(f"Allowed: {allowed}.")
        if hint:
            parts.append(f"Try: {hint}")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Callable[..., IdgbrError], tuple[type[IdgbrError], str]]:
        # Ray pickles errors; the message is already composed, so rebuild without composing again
        return _rebuild, (type(self), str(self))


def _rebuild(kind: type[IdgbrError], message: str) -> IdgbrError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


class SomeFailed(IdgbrError):
    """The work ran, but part of it failed; the rest is recorded."""

    exit_code = 1


class BadRequest(IdgbrError):
    """The request is wrong: flag, override, recipe, axis."""

    exit_code = 2


class Missing(IdgbrError):
    """Something needed is not there: weights, data, GPU, space, permission."""

    exit_code = 3


class NoSpace(Missing):
    """A disk or store is full: nothing that writes to it can go on."""


class Outage(Missing):
    """A device, worker, node, network or store failed, not the work: the same work may succeed later or elsewhere."""


class Interrupted(IdgbrError):
    """Asked to stop; a checkpoint was written. Running the same command again goes on from it."""

    exit_code = 130


class Disagreement(IdgbrError):
    """Inputs disagree: grid, classes, label set, fingerprint, or file content against what was declared."""

    exit_code = 4


def nearest(name: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest of `choices`, or an empty string."""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.4)
    return f"did you mean '{match[0]}'?" if match else ""
