"""Other programs, called with a time limit and with errors as types: Slurm's commands, kubectl."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence

from idgbr.errors import Missing, SomeFailed

Write = Callable[[str], object]


def need(program: str, missing: str) -> None:
    """Raises:
    Missing: the program is not on this machine; `missing` says what to do.
    """
    if shutil.which(program) is None:
        raise Missing(f"{program} is not on this machine", hint=missing)


class ToolFailed(SomeFailed):
    """A program ended with an error; `said` is what it printed."""

    said = ""


class NoAnswer(Missing):
    """A program did not end in time: what it asks does not answer."""


def tool(words: Sequence[str], *, stdin: str | None = None, missing: str, write: Write | None = None, seconds: float | None = None) -> str:
    """Output of another program; with `write`, line by line as it comes.

    Args:
        seconds: it may take; None: any time.

    Raises:
        Missing: the program is not on this machine. NoAnswer: it did not end in time.
        ToolFailed: it failed; the message holds what it said.
    """
    need(words[0], missing)
    if write is None:
        try:
            done = subprocess.run(list(words), input=stdin, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise NoAnswer(f"{words[0]} did not answer within {error.timeout:g} s", hint="try again later") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-800:] or "no message"
            failed = ToolFailed(f"{words[0]} failed with exit code {done.returncode}", value=said)
            failed.said = said
            raise failed
        return done.stdout
    with subprocess.Popen(list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            write(line)
    if running.returncode:
        raise SomeFailed(f"{' '.join(words[:2])} ended with exit code {running.returncode}")
    return ""
