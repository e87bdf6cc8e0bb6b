"""Command lines made of verbs: parsing, errors as one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn, TextIO

import tyro
from tyro.conf import OmitArgPrefixes

from idgbr.errors import BadRequest, IdgbrError, Interrupted, Missing, NoSpace, nearest

SETTING = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*=")  # stage.field=value, seeds=1
STOPPED = "stopped; nothing half-written is left, the same command goes on"


def leave(code: int) -> NoReturn:
    """End the process. After a Ctrl-C, another while the interpreter ends would put death by signal in the place of
    exit code 130."""
    if code == Interrupted.exit_code:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run_verbs(
    verbs: dict[str, Callable[..., None]], prog: str, examples: str, argv: Sequence[str] | None = None, stopped: str = STOPPED
) -> int:
    """Parse, run one verb, turn errors into one line on stderr and an exit code."""
    words = sys.argv[1:] if argv is None else argv

    def work() -> None:
        if words and not words[0].startswith("-") and words[0] not in verbs:
            raise BadRequest(f"unknown verb {words[0]!r}", allowed=", ".join(verbs), hint=nearest(words[0], verbs) or f"{prog} --help")
        _check_settings_together(words)
        tyro.extras.subcommand_cli_from_dict(
            verbs, prog=prog, description=examples, args=words, sort_subcommands=False, config=(OmitArgPrefixes,)
        )

    return exit_code_of(work, prog, stopped)


def _check_settings_together(words: Sequence[str]) -> None:
    """Raises:
    BadRequest: words like stage.field=value stand in two places; the parser reads only those of the first.
    """
    places = [
        i for i, word in enumerate(words) if SETTING.match(word) and ("." in word.partition("=")[0] or not words[i - 1].startswith("-"))
    ]
    apart = [words[i] for before, i in pairwise(places) if i != before + 1]
    if apart:
        raise BadRequest("settings stand in two places with an option between them", value=apart[0], hint="all settings, then all options")


def exit_code_of(work: Callable[[], int | None], prog: str, stopped: str) -> int:
    """Run a command to its end and give its exit code; what went wrong is one line on stderr, after Ctrl-C it is
    `stopped`.

    A reader of stdout or stderr that has gone (`| head`) is no error, and the work goes on; output that cannot be
    written (a full disk) is.
    """
    code = 0
    try:
        _guard_streams()
        try:
            code = work() or 0
        except SystemExit as ended:  # of the parser: 0 after --help, 2 after an error that it has explained
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if sys.stdout is not None:
            sys.stdout.flush()
    except IdgbrError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: {stopped}", file=sys.stderr)
        return Interrupted.exit_code
    return code


# ---- standard streams whose reader has closed -------------------------------------------------------------------------------------


class _Output(io.RawIOBase):
    """A standard stream. Once its reader has gone, or an error of it was raised, it takes everything and keeps
    nothing."""

    def __init__(self, descriptor: int, name: str):
        self.descriptor, self.name, self.is_gone = descriptor, name, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: Any, /) -> int:
        if not self.is_gone:
            try:
                return os.write(self.descriptor, data)
            except OSError as error:
                self.is_gone = True
                if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal has been closed
                    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else Missing
                    raise kind(f"cannot write to {self.name}: {error.strerror}", hint="a terminal, a pipe, or a disk with space") from error
        return memoryview(data).nbytes


def _guard_streams() -> None:
    """Put `_Output` below stdout and stderr, where they are the process's own."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue  # closed (`>&-`), or somebody's own: a test, a notebook
        stream.flush()
        raw = _Output(stream.fileno(), name)
        below: io.RawIOBase | io.BufferedWriter = raw if stream.write_through else io.BufferedWriter(raw)
        lines, through = stream.line_buffering, stream.write_through
        setattr(sys, name, io.TextIOWrapper(below, stream.encoding, stream.errors, line_buffering=lines, write_through=through))
