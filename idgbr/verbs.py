"""Command lines made of verbs: parsing, errors as one line and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import tyro
from tyro.conf import OmitArgPrefixes

from idgbr.errors import IdgbrError


def leave(code: int) -> NoReturn:
    """End the process. After a Ctrl-C, another while the interpreter ends would put death by signal in the place of exit code 130."""
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run_verbs(verbs: dict[str, Callable[..., None]], prog: str, examples: str, argv: list[str] | None = None) -> int:
    """Parse, run one verb, turn errors into one line on stderr and an exit code."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            verbs, prog=prog, description=examples, args=argv, sort_subcommands=False, config=(OmitArgPrefixes,)
        )
    except IdgbrError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: stopped; nothing half-written is left, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0
