"""Output files on a local path: checked before work starts, written whole or not at all. And what input files hold."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from idgbr.errors import BadRequest, IdgbrError, Missing, NoSpace, Outage
from idgbr.machine import expanded
from idgbr.retries import is_transient
from idgbr.settings import digest

if TYPE_CHECKING:
    from torch import Tensor


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder, with the same suffix, that no other process uses."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its name: on the disk first, so that after a power cut the name means the whole
    content.

    Raises:
        OSError: no space, no permission; for a folder also, `path` is there and not empty.
    """
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    for file in (path,) if path.is_file() else (p for p in path.rglob("*") if p.is_file()):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write under the temporary name that is given; `path` is the complete file, or what it was before.

    Raises:
        OSError: no space, no permission.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """`whole`, with one clear error.

    Raises:
        NoSpace, Outage, Missing: as `unwritable`.
    """
    try:
        with whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise unwritable(str(path), error) from error


def create(path: Path, data: bytes, mode: int = 0o666) -> bool:
    """Make a file that is not there: whole, and by one of several processes only. False: another one was there first.

    Raises:
        OSError: no space, no permission.
    """
    temporary = temporary_beside(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        sync(temporary)
        os.link(temporary, path)  # is made or refused, never both
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full (ENOSPC); safetensors reports that by an error of its own without a number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        if shutil.disk_usage(path.parent).free < sum(t.numel() * t.element_size() for t in tensors.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def unwritable(path: str, error: OSError, *, remote: bool = False) -> IdgbrError:
    """One clear error: `NoSpace` for a full disk, `Outage` for a file system that does not answer, else `Missing`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"no space left while writing {path}", hint="free some space (`python -m sweeps gc --dry-run`), then run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Missing(f"cannot write {path}: {error.strerror}", hint="a store you may write to: --store FOLDER")
    if is_transient(error, remote):
        return Outage(f"cannot write {path}: {error}", hint="the same command again, when the file system or store answers")
    return Missing(f"cannot write {path}: {error}")


def data_path(name: str) -> str:
    """`name` below the folder IDGBR_DATA; where that is not set, a path that is refused when it is first used, with
    what to set."""
    return str(Path(os.environ.get("IDGBR_DATA") or "$IDGBR_DATA") / name)


def require_variables(path: str, where: str) -> None:
    """Refuse a path that begins with an environment variable which is not set.

    Raises:
        Missing: `path` begins with `$NAME`; recipes write this where the user has not said yet in which folder the
            data are.
    """
    if path.startswith("$"):
        name = path[1:].split("/")[0]
        raise Missing(f"{name} is not set", value=f"{where}={path}", hint=f"export {name}=FOLDER, or {where}=PATH")


def content_digest(path: str, where: str) -> str:
    """sha256 of a file, or of all files of a folder with their names; remembered while size and time of change stay
    the same.

    Raises:
        Missing: nothing is there.
    """
    require_variables(path, where)
    place = expanded(path)
    if not place.exists():
        raise Missing(f"{where} names a file that is not there", value=str(place), hint=f"an existing path: {where}=PATH")
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file() and not p.name.startswith("."))
    names = [p.name if place.is_file() else str(p.relative_to(place)) for p in files]
    stamps = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return digest([[name, _file_digest(*stamp)] for name, stamp in zip(names, stamps, strict=True)])


@functools.lru_cache(maxsize=100_000)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(path: Path, overwrite: bool = True) -> None:
    """Raises: BadRequest: not a GeoTIFF name, or it exists and may not be overwritten. Missing: its folder is not
    there or cannot be written.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise BadRequest(
            "rasters are written as GeoTIFF",
            value=path,
            allowed="names that end in .tif or .tiff",
            hint=f"-o {quote(str(path.with_suffix('.tif')))}",
        )
    check_place(path, overwrite)


def check_place(path: Path, overwrite: bool = True) -> None:
    """Raises:
    BadRequest: it exists and may not be overwritten. Missing: its folder is not there or cannot be written.
    """
    if path.is_dir():
        raise BadRequest(f"{path} is a folder", hint="name a file")
    if path.exists() and not overwrite:
        raise BadRequest(f"{path} is there already", hint="another name, or --overwrite")
    if not path.parent.is_dir():
        raise Missing(f"no folder {path.parent} to write into", value=path, hint=f"mkdir -p {quote(str(path.parent))}")
    probe = temporary_beside(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> IdgbrError:
    """One clear error for an output that cannot be written: no permission, read-only, no space."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Missing(f"cannot write {path}: {error.strerror}", hint="an output in a folder you may write to")
    return unwritable(str(path), error)


def check_apart(out: Path, *inputs: Path) -> None:
    """Raises:
    BadRequest: the output is one of the inputs, which would be lost.
    """
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise BadRequest(f"the output {out} is an input of this command", value=path, hint="another name")


def remove_beginning(folder: Path, start: str) -> None:
    """Remove the files of a folder whose names begin with `start`, whatever characters it has: a name is never a
    pattern."""
    for left in folder.glob(f"{glob.escape(start)}*"):
        left.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a whole file; its folder is made.

    Raises:
        NoSpace, Outage, Missing: as `unwritable`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(str(path), error) from error
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path
