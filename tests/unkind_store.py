"""A file system that throttles, times out, is away for a while, and shows files late: pyarrow's local one behind a script of faults."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs

from idgbr.retries import RetryPolicy
from idgbr.store import Store

FAULTS: tuple[Callable[[], OSError], ...] = (
    lambda: OSError("AWS Error SLOW_DOWN during HeadObject operation: Please reduce your request rate"),
    lambda: OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 28, Timeout was reached"),
    lambda: OSError(errno.ETIMEDOUT, "Connection timed out"),
    lambda: OSError(errno.ESTALE, "Stale file handle"),
)


class UnkindHandler(fs.FSSpecHandler):
    """Calls of the local file system, a share of which fail.

    Args:
        share: of the calls that fail. late: for so many looks a new file is not seen. seed: of the faults.
    """

    def __init__(self, share: float = 0.0, late: int = 0, seed: int = 0):
        from fsspec.implementations.local import LocalFileSystem

        super().__init__(LocalFileSystem(auto_mkdir=True))
        self.share, self.late, self.rng = share, late, random.Random(seed)
        self.calls = self.faults = 0
        self.is_away = False
        self.hidden: dict[str, int] = {}

    def _maybe_fail(self) -> None:
        self.calls += 1
        if self.is_away or self.rng.random() < self.share:
            self.faults += 1
            raise self.rng.choice(FAULTS)()

    def open_input_stream(self, path: str) -> Any:
        self._maybe_fail()
        if self.hidden.get(path, 0) > 0:
            self.hidden[path] -= 1
            raise FileNotFoundError(path)
        return super().open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._maybe_fail()
        if self.late and not Path(path).exists():
            self.hidden[path] = self.late
        return super().open_output_stream(path, metadata)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self._maybe_fail()
        return list(super().get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self._maybe_fail()
        return list(super().get_file_info_selector(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._maybe_fail()
        super().create_dir(path, recursive)

    def delete_file(self, path: str) -> None:
        self._maybe_fail()
        super().delete_file(path)


def unkind_store(root: Path, cache: Path, **faults: Any) -> tuple[Store, UnkindHandler]:
    """A store over such a file system, with short waits. It counts as remote: artefacts are fetched to `cache`."""
    store, handler = Store(root, cache=cache), UnkindHandler(**faults)
    root.mkdir(parents=True, exist_ok=True)
    store.fs, store.is_local = fs.PyFileSystem(handler), False
    store.retries = RetryPolicy(deadline_s=20.0, first_wait_s=0.002, longest_wait_s=0.02)
    store.has_answered = True
    return store, handler
