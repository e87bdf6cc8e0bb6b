"""Content-addressed artefacts on any pyarrow filesystem.

    artifacts/<stage>/<2 hex>/<key>/   files ..., manifest.json written last
    runs/<stage>/<key>-<uuid>.json     one record for every time a stage was really computed (proof of what was not redone)

One writer per attempt; the manifest names the attempt's folder, so two writers of one key are both complete and the last manifest wins.
No manifest = not there. On object stores `rename` is not atomic, so the manifest itself is one small put.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from idgbr.errors import IdgbrError, Missing
from idgbr.files import unwritable


def open_filesystem(root: str | Path) -> tuple[fs.FileSystem, str]:
    """`root` (path or URI: file, s3, gs, hdfs) -> (filesystem, path within it)."""
    text = str(root)
    if "://" in text:
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except Exception as error:
            raise Missing(
                f"cannot open the store {text}: {error}", hint="a folder, or a URI that pyarrow.fs knows (s3://, gs://)"
            ) from error
        return filesystem, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(text).expanduser().absolute())


class Store:
    """Artefacts by (stage, key).

    Args:
        root: folder or URI; made when missing.
        cache: local folder where artefacts of a remote store are fetched to; not used by a local store.
    """

    def __init__(self, root: str | Path, cache: str | Path | None = None):
        self.root = str(root)
        self.fs, self.base = open_filesystem(root)
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)
        self.cache = Path(cache or Path.home() / ".cache" / "idgbr")

    def __reduce__(self) -> Any:
        """Absolute: a worker that unpacks this may stand in another folder."""
        return Store, (self.base if self.is_local else self.root, self.cache)

    # ---- small files -------------------------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> None:
        """Whole file or nothing: temporary name, fsync, rename (local); one put (object store)."""
        path = f"{self.base}/{name}"
        try:
            self.fs.create_dir(path.rpartition("/")[0], recursive=True)
            if not self.is_local:
                with self.fs.open_output_stream(path) as stream:
                    stream.write(data)
                return
            temporary = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}")
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error

    def read_bytes(self, name: str) -> bytes | None:
        try:
            with self.fs.open_input_stream(f"{self.base}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.root, error) from error

    def names(self, folder: str, suffix: str = "", recursive: bool = False) -> list[str]:
        """Names below `folder` relative to the root; names that begin with `_` or `.` are not there yet."""
        try:
            found = self.fs.get_file_info(fs.FileSelector(f"{self.base}/{folder}", allow_not_found=True, recursive=recursive))
        except OSError as error:
            raise unreadable(self.root, error) from error
        names = [i.path.removeprefix(self.base).lstrip("/") for i in found if i.type == fs.FileType.File]
        return sorted(n for n in names if n.endswith(suffix) and n.rpartition("/")[2][0] not in "_.")

    def delete(self, name: str) -> None:
        info = self.fs.get_file_info(f"{self.base}/{name}")
        if info.type == fs.FileType.Directory:
            self.fs.delete_dir(f"{self.base}/{name}")
        elif info.type == fs.FileType.File:
            self.fs.delete_file(f"{self.base}/{name}")

    # ---- artefacts ---------------------------------------------------------------------------------------------------

    def folder(self, stage: str, key: str) -> str:
        return f"artifacts/{stage}/{key[:2]}/{key}"

    def manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        """What is stored under the key, or None: the artefact is not there (or not complete, which is the same)."""
        data = self.read_bytes(f"{self.folder(stage, key)}/manifest.json")
        return json.loads(data) if data else None

    def has(self, stage: str, key: str) -> bool:
        return self.manifest(stage, key) is not None

    def put(self, stage: str, key: str, write: Callable[[Path], None], record: Mapping[str, Any]) -> dict[str, Any]:
        """Run `write(folder)`, then publish what it wrote under (stage, key). Returns the manifest.

        An exception leaves nothing behind. `record` (config, parents, ...) goes into the manifest.

        Raises:
            Missing: the disk is full or the store cannot be written.
        """
        attempt = f"a-{uuid.uuid4().hex[:12]}"
        started = time.time()
        target = f"{self.folder(stage, key)}/{attempt}"
        work = Path(f"{self.base}/{target}") if self.is_local else self.cache / "writing" / attempt
        try:
            work.mkdir(parents=True)
            write(work)
            if not self.is_local:
                fs.copy_files(str(work), f"{self.base}/{target}", source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.fs)
            files = {str(p.relative_to(work)): p.stat().st_size for p in sorted(work.rglob("*")) if p.is_file()}
            manifest = {
                "stage": stage,
                "key": key,
                "attempt": attempt,
                "files": files,
                "bytes": sum(files.values()),
                "seconds": round(time.time() - started, 3),
                "finished": time.time(),
                "host": socket.gethostname(),
                **record,
            }
            text = json.dumps(manifest, indent=1).encode()
            self.write_bytes(f"runs/{stage}/{key}-{uuid.uuid4().hex[:8]}.json", text)
            self.write_bytes(f"{self.folder(stage, key)}/manifest.json", text)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if not self.is_local and self.fs.get_file_info(f"{self.base}/{target}").type != fs.FileType.NotFound:
                self.delete(target)
            if isinstance(error, OSError):
                raise unwritable(f"{self.base}/{target}", error) from error
            raise
        if not self.is_local:
            shutil.rmtree(work, ignore_errors=True)
        return manifest

    def path(self, stage: str, key: str) -> Path:
        """Local folder with the artefact's files (fetched once from a remote store).

        Raises:
            Missing: it is not in the store.
        """
        manifest = self.manifest(stage, key)
        if manifest is None:
            raise Missing(f"no {stage} artefact {key} in the store {self.root}", hint="run the study or the stage that makes it")
        source = f"{self.base}/{self.folder(stage, key)}/{manifest['attempt']}"
        if self.is_local:
            return Path(source)
        local = self.cache / stage / key / manifest["attempt"]
        if not local.exists():
            temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
            temporary.mkdir(parents=True)
            fs.copy_files(source, str(temporary), source_filesystem=self.fs, destination_filesystem=fs.LocalFileSystem())
            try:
                temporary.rename(local)
            except OSError:  # another process fetched it meanwhile: theirs is the same
                shutil.rmtree(temporary, ignore_errors=True)
                if not local.exists():
                    raise
        return local

    def keys(self, stage: str) -> Iterator[str]:
        for name in self.names(f"artifacts/{stage}", suffix="/manifest.json", recursive=True):
            yield name.split("/")[3]

    def runs(self, stage: str) -> list[str]:
        """Keys in the order of `runs/`, one entry for every computation of this stage: the counter that proves reuse."""
        return [name.rpartition("/")[2].rpartition("-")[0] for name in self.names(f"runs/{stage}", suffix=".json")]

    def check_writable(self) -> None:
        """Raises:
        Missing: the store cannot be written or read back.
        """
        name = f"_probe-{uuid.uuid4().hex[:8]}"
        self.write_bytes(name, b"probe")
        if self.read_bytes(name) != b"probe":
            raise Missing(f"the store {self.root} does not return what was written to it")
        self.delete(name)


def unreadable(root: str, error: OSError) -> IdgbrError:
    """A store that does not answer: an endpoint that is down, no permission, a file where a folder should be."""
    return Missing(f"cannot read the store {root}: {str(error).splitlines()[0]}", hint="--store with a folder or URI that can be reached")


def default_root() -> str:
    return os.environ.get("IDGBR_STORE", "store")
