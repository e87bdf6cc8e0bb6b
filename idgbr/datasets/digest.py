"""What files contain, as a digest that is computed once for a given size and times of change.

Digests are kept in one SQLite file in the user's cache (`IDGBR_CACHE`, else `~/.cache/idgbr`), so that planning a
study over 30 GB of imagery does not read it again. A cache that cannot be written costs time only: the digest is then
computed again. Programs that keep a file's modification time (`cp -p`, `rsync -t`, `touch -r`) still change its
status time, which counts as well; where a file system keeps neither, `idgbr prepare --rehash` reads the files again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from idgbr.errors import Missing
from idgbr.machine import allowed_cores, cache_folder
from idgbr.rasters.beside import AUX, aux_digest, files_beside, is_world_file

Stamp = tuple[str, int, int, int]  # path, size, time of modification, time of status change (ns)
_known: dict[Stamp, str] = {}


def digests(paths: Iterable[Path], *, rehash: bool = False) -> dict[Path, str]:
    """Content digest (BLAKE2b, 32 hex digits) of every file.

    Args:
        rehash: read every file, whatever is remembered of it.

    Raises:
        Missing: a file is not there or may not be read.
    """
    stamps: dict[Path, Stamp] = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise Missing(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
        stamps[path] = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    unknown = {p: s for p, s in stamps.items() if rehash or s not in _known}
    if unknown:
        if not rehash:
            _recall(set(unknown.values()))
            unknown = {p: s for p, s in unknown.items() if s not in _known}
        with ThreadPoolExecutor(min(4, allowed_cores())) as pool:  # hashing releases the GIL
            fresh = dict(zip(unknown.values(), pool.map(_digest, unknown), strict=True))
        _known.update(fresh)
        _remember(fresh)
    return {path: _known[stamp] for path, stamp in stamps.items()}


def digests_beside(paths: Sequence[Path], placed: Collection[Path | None] = ()) -> dict[Path, list[tuple[str, str]]]:
    """(name, digest) of the files beside each that decide what it says, for those that have such (`rasters.beside`).

    Args:
        placed: files whose place is known, so that world files do not matter.
    """
    beside = files_beside(paths)
    for path in beside.keys() & set(placed):
        beside[path] = [other for other in beside[path] if not is_world_file(other)]
    plain = digests({other for others in beside.values() for other in others if not other.name.lower().endswith(AUX)})
    out = {}
    for path, others in beside.items():
        named = [(other.name, plain[other] if other in plain else aux_digest(other)) for other in others]
        out[path] = [(name, told) for name, told in named if told is not None]
    return {path: named for path, named in out.items() if named}


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error


def _connect() -> sqlite3.Connection:
    cache_folder().mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(cache_folder() / "digests.sqlite", timeout=20)
    connection.execute(
        "create table if not exists digests_2 (path text, size integer, mtime integer, ctime integer, digest text, primary key (path))"
    )
    return connection


def _recall(stamps: set[Stamp]) -> None:
    try:
        with closing(_connect()) as connection:
            for stamp in stamps:
                row = connection.execute(
                    "select digest from digests_2 where path = ? and size = ? and mtime = ? and ctime = ?", stamp
                ).fetchone()
                if row:
                    _known[stamp] = row[0]
    except (sqlite3.Error, OSError):
        return  # no cache: digests are computed, which is slower and the same


def _remember(fresh: dict[Stamp, str]) -> None:
    try:
        with closing(_connect()) as connection, connection:
            connection.executemany(
                "insert or replace into digests_2 values (?, ?, ?, ?, ?)", [(*stamp, digest) for stamp, digest in fresh.items()]
            )
    except (sqlite3.Error, OSError):
        return  # as above
