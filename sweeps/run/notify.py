"""A message at the end of a run: a small JSON object, posted to a URL or given to a command on its standard input."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

from idgbr.errors import BadRequest, IdgbrError, Interrupted, SomeFailed
from idgbr.store import Store
from sweeps.run.driver import say
from sweeps.run.state import state_of

ANSWER_S = 30.0
SCHEMES = ("http://", "https://")


def check_target(target: str) -> None:
    """Raises:
    BadRequest: neither a URL nor a command that can be started here.
    """
    if target.startswith(SCHEMES):
        return
    try:
        words = shlex.split(target)
    except ValueError as error:
        raise BadRequest(f"--notify cannot be split into words: {error}", value=target) from error
    if not words or shutil.which(words[0]) is None:
        raise BadRequest(
            "--notify is neither a URL nor a command that can be started here", value=target,
            allowed="http://..., https://..., or a command, which gets JSON on its standard input",
        )  # fmt: skip


@contextlib.contextmanager
def notified(target: str, study: str, store: Store) -> Iterator[None]:
    """Tell `target` how the work inside has ended; nothing where `target` is empty. Its errors are one line.

    Raises:
        BadRequest: see `check_target`.
    """
    if not target:
        yield
        return
    check_target(target)
    began = time.monotonic()
    end, text = "error", ""
    try:
        yield
        end = "done"
    except SomeFailed as error:
        end, text = "failed", str(error)
        raise
    except (Interrupted, KeyboardInterrupt) as error:
        end, text = "stopped", str(error)
        raise
    except BaseException as error:
        text = str(error)
        raise
    finally:
        message = {"study": study, "store": store.root, "end": end, "message": text, "seconds": round(time.monotonic() - began, 1)}
        _send(target, message | {"host": socket.gethostname()} | _counts(study, store))


def _counts(study: str, store: Store) -> dict[str, object]:
    """Trials by status, and GPU-hours of all runs; nothing where the store does not answer or has no such study."""
    try:
        state = state_of(study, store)
    except IdgbrError:
        return {}
    statuses = {status: state.count(status) for status in ("done", "failed", "pruned")}
    return {"trials": state.total, **statuses, "open": state.open, "gpu_hours": round(state.gpu_hours, 3)}


def _send(target: str, message: dict[str, object]) -> None:
    data = json.dumps(message).encode()
    try:
        if target.startswith(SCHEMES):
            request = urllib.request.Request(target, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=ANSWER_S):
                return
        ended = subprocess.run(shlex.split(target), input=data, timeout=ANSWER_S, capture_output=True, check=False)
        if ended.returncode:
            last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
            say(f"--notify {target} ended with {ended.returncode}: {''.join(last)}")
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # URLError is an OSError
        say(f"--notify {target} has failed: {error}")
