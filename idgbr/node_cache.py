"""Copies of artefacts of a remote store on a node's disk: fetched once for all its processes, kept within a budget.

    <cache>/<stage>/<key>/<attempt>/        the files, whole
    <cache>/<stage>/<key>/<attempt>.lock    held exclusively while it is fetched or deleted, and shared while in use

A process counts as using the last `IN_USE` artefacts that it has asked for, until it ends. Those are never deleted.
Where they are the least recently used of all, deletion begins with the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from idgbr.errors import BadRequest, NoSpace
from idgbr.files import publish, temporary_beside, unwritable

BUDGET = "IDGBR_CACHE_GB"
IN_USE = 16
_used: OrderedDict[Path, int] = OrderedDict()  # lock file -> open descriptor with a shared lock


def budget_bytes() -> float | None:
    """Of the cache: IDGBR_CACHE_GB in bytes; None where it is not set.

    Raises:
        BadRequest: not a positive number.
    """
    text = os.environ.get(BUDGET, "")
    try:
        found = float(text) * 1e9 if text else None
    except ValueError:
        found = 0.0
    if found is not None and not found > 0:
        raise BadRequest(f"{BUDGET} is a positive number of gigabytes", value=text)
    return found


class NodeCache:
    """The cache of a node. Its file system must know locks (`flock`), as those of local disks do.

    It may take IDGBR_CACHE_GB; by default half of what the disk has free without it.
    """

    def __init__(self, root: Path):
        self.root = root

    def folder(self, name: str, size_bytes: int, fetch: Callable[[Path], None]) -> Path:
        """Folder of a copy; `fetch(temporary folder)` makes it if no process of this node has.

        Raises:
            NoSpace: the disk is full, and nothing that is not in use is left to delete.
        """
        target = self.root / name
        lock = target.with_name(f"{target.name}.lock")
        with contextlib.suppress(FileNotFoundError):
            self._use(lock)
            if target.is_dir():
                os.utime(lock)  # for the order of deletion
                return target
            self._leave(lock)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(lock, fcntl.LOCK_EX):
                if not target.is_dir():
                    self._fetch(target, size_bytes, fetch)
            self._use(lock)
        except OSError as error:
            raise unwritable(str(target), error) from error
        return target if target.is_dir() else self.folder(name, size_bytes, fetch)  # deleted between the two locks

    def _fetch(self, target: Path, size_bytes: int, fetch: Callable[[Path], None]) -> None:
        self._make_room(size_bytes)
        temporary = temporary_beside(target)
        try:
            try:
                fetch(temporary)
            except NoSpace:
                if not self.shrink(0):
                    raise
                shutil.rmtree(temporary, ignore_errors=True)
                fetch(temporary)
            publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def adopt(self, name: str, made: Path, size_bytes: int) -> None:
        """Take a folder that was made on this node and stored: whoever needs it here need not fetch it."""
        target = self.root / name
        lock = target.with_name(f"{target.name}.lock")
        try:
            self._make_room(size_bytes)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(lock, fcntl.LOCK_EX):
                made.rename(target)
        except OSError as error:
            raise unwritable(str(target), error) from error

    def _make_room(self, more_bytes: int) -> None:
        found = sorted(self._copies(), key=lambda copy: copy[0])
        budget = budget_bytes()
        if budget is None:
            budget = (shutil.disk_usage(self.root).free + sum(size for _, size, _ in found)) / 2 if found else float("inf")
        self._shrink(found, budget - more_bytes)

    def shrink(self, wanted_bytes: float) -> int:
        """Delete copies that no process uses, the least recently used first, until the rest is this small.

        Returns how many bytes were freed.
        """
        return self._shrink(sorted(self._copies(), key=lambda copy: copy[0]), wanted_bytes)

    @staticmethod
    def _shrink(found: list[tuple[float, int, Path]], wanted_bytes: float) -> int:
        total, freed = sum(size for _, size, _ in found), 0
        for _, size, lock in found:
            if total - freed <= wanted_bytes:
                break
            with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                freed += size
        return freed

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        """(when it was last asked for, bytes, lock file) of every copy."""
        for lock in self.root.glob("*/*/*.lock"):
            folder = lock.with_suffix("")
            with contextlib.suppress(FileNotFoundError):  # another process deletes at the same time
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                if folder.is_dir():
                    yield lock.stat().st_mtime, size, lock

    @staticmethod
    def _use(lock: Path) -> None:
        """Hold the lock of a copy together with others, until it is the oldest of more than `IN_USE`.

        Raises:
            FileNotFoundError: no copy was ever there.
        """
        if lock not in _used:
            descriptor = os.open(lock, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _used[lock] = descriptor
        _used.move_to_end(lock)
        while len(_used) > IN_USE:
            os.close(_used.popitem(last=False)[1])

    @staticmethod
    def _leave(lock: Path) -> None:
        descriptor = _used.pop(lock, None)
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def _locked(lock: Path, how: int) -> Iterator[None]:
    """Raises:
    BlockingIOError: it is held, and `how` does not wait.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
