"""Content-addressed artefacts on any pyarrow filesystem.

    artifacts/<stage>/<2 hex>/<key>/   files ..., manifest.json written last
    runs/<stage>/<key>-<uuid>.json     one record for every time a stage was really computed (proof of what was not redone)

One writer per attempt; the manifest names the attempt's folder, so two writers of one key are both complete and the
last manifest wins. No manifest = not there. On object stores `rename` is not atomic, so the manifest itself is one
small put.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from idgbr.errors import IdgbrError, Missing, Outage
from idgbr.files import sync, unwritable, whole
from idgbr.interfaces import Json
from idgbr.machine import cache_folder, expanded
from idgbr.node_cache import NodeCache
from idgbr.retries import RetryPolicy, is_transient

T = TypeVar("T")
OBJECT_STORES = ("s3", "gcs", "abfs")  # without folders
FIRST_ANSWER = RetryPolicy(deadline_s=5.0)  # a wrong address should be an error soon


def open_filesystem(root: str | Path) -> tuple[fs.FileSystem, str]:
    """`root` (path or URI: file, s3, gs, hdfs) -> (filesystem, path within it)."""
    text = str(root)
    if "://" in text:
        try:
            filesystem, path = fs.FileSystem.from_uri(_with_small_writes(text))
        except Exception as error:
            raise Missing(
                f"cannot open the store {text}: {error}", hint="a folder, or a URI that pyarrow.fs knows (s3://, gs://)"
            ) from error
        return filesystem, path.rstrip("/")
    return fs.LocalFileSystem(), str(expanded(text).absolute())


def _with_small_writes(uri: str) -> str:
    """A URI with which pyarrow writes a small object by one request to S3, in place of three for a multipart upload."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


class Store:
    """Artefacts by (stage, key).

    Every access is tried again with growing waits while the file system or object store throttles, times out or is
    away (`retries`): for 5 s until it has answered once, for two minutes after that. What still fails is an `Outage`.

    Args:
        root: folder or URI; made when missing.
        cache: local folder where artefacts of a remote store are fetched to (default: `machine.cache_folder`); a
            local store needs none.
    """

    def __init__(self, root: str | Path, cache: str | Path | None = None):
        self.root = str(root)
        self.fs, self.base = open_filesystem(root)
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)
        self._cache = cache
        self.retries = RetryPolicy()
        self.has_answered = False
        self._manifests: dict[tuple[str, str], Json] = {}  # of a remote store, by stage and key

    def ask(self, work: Callable[[], T]) -> T:
        """`work()` on the file system, tried again by the store's policy.

        Raises:
            OSError: it still fails.
        """
        policy = self.retries if self.has_answered else min(self.retries, FIRST_ANSWER, key=lambda p: p.deadline_s)
        try:
            found = policy.call(work, self.is_transient)
        except FileNotFoundError:
            self.has_answered = True
            raise
        self.has_answered = True
        return found

    def is_transient(self, error: OSError) -> bool:
        """Whether the same request may succeed if it is made again."""
        return is_transient(error, remote=not self.is_local)

    def __reduce__(self) -> Any:
        """Absolute: a worker that unpacks this may run in another folder."""
        return Store, (self.base if self.is_local else self.root, self._cache)

    @property
    def cache(self) -> Path:
        """Where files of a remote store are copied to."""
        return Path(self._cache) if self._cache else cache_folder()

    # ---- small files -------------------------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> None:
        """Whole file or nothing: `files.whole` on a disk, one put in an object store."""
        path = f"{self.base}/{name}"
        try:
            self.ask(lambda: self._write_bytes(path, data))
        except OSError as error:
            raise unwritable(path, error, remote=not self.is_local) from error

    def _write_bytes(self, path: str, data: bytes) -> None:
        if self.fs.type_name not in OBJECT_STORES:
            self.fs.create_dir(path.rpartition("/")[0], recursive=True)
        if not self.is_local:
            with self.fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        with whole(Path(path)) as temporary:
            temporary.write_bytes(data)

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a small file; None if it is not there.

        Raises:
            Missing: the store cannot be reached.
        """

        def read() -> bytes:
            with self.fs.open_input_stream(f"{self.base}/{name}") as stream:
                return stream.read()

        try:
            return self.ask(read)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.unreadable(error) from error

    def names(self, folder: str, suffix: str = "", recursive: bool = False) -> list[str]:
        """Names below `folder` relative to the root; names that begin with `_` or `.` are not there yet."""
        found = self.infos(folder, recursive=recursive)
        names = [i.path.removeprefix(self.base).lstrip("/") for i in found if i.type == fs.FileType.File]
        return sorted(n for n in names if n.endswith(suffix) and n.rpartition("/")[2][0] not in "_.")

    def infos(self, folder: str, recursive: bool = False) -> list[fs.FileInfo]:
        """What lies in `folder`; nothing when it is not there."""
        selector = fs.FileSelector(f"{self.base}/{folder}".rstrip("/"), allow_not_found=True, recursive=recursive)
        try:
            return self.ask(lambda: self.fs.get_file_info(selector))
        except OSError as error:
            raise self.unreadable(error) from error

    def are_files(self, names: list[str]) -> list[bool]:
        """Whether each of these names is a file, in one go."""
        paths = [f"{self.base}/{name}" for name in names]
        try:
            return [info.type == fs.FileType.File for info in self.ask(lambda: self.fs.get_file_info(paths))]
        except OSError as error:
            raise self.unreadable(error) from error

    def delete(self, name: str) -> None:
        """A file, or a folder with all that is in it; nothing when it is not there."""

        def delete() -> None:
            info = self.fs.get_file_info(f"{self.base}/{name}")
            if info.type == fs.FileType.Directory:
                self.fs.delete_dir(f"{self.base}/{name}")
            elif info.type == fs.FileType.File:
                self.fs.delete_file(f"{self.base}/{name}")

        try:
            self.ask(delete)
        except FileNotFoundError:  # somebody else has deleted it
            return
        except OSError as error:
            raise unwritable(f"{self.base}/{name}", error, remote=not self.is_local) from error

    def unreadable(self, error: OSError) -> IdgbrError:
        """A store that does not answer: an endpoint that is down, no permission, a file where a folder should be."""
        kind = Outage if self.is_transient(error) else Missing
        return kind(
            f"cannot read the store {self.root}: {str(error).splitlines()[0]}", hint="--store with a folder or URI that can be reached"
        )

    def fetch(self, name: str, folder: Path) -> None:
        """Copy the files below `name` into a local folder, which is made.

        Raises:
            NoSpace: the local disk is full. Outage, Missing: the store cannot be read.
        """

        def fetch() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            fs.copy_files(f"{self.base}/{name}", str(folder), source_filesystem=self.fs, destination_filesystem=fs.LocalFileSystem())

        def is_late(error: OSError) -> bool:  # what a manifest names is there, and may be shown late
            return self.is_transient(error) or isinstance(error, FileNotFoundError)

        try:
            self.retries.call(fetch, is_late)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the local folder
                raise unwritable(str(folder), error) from error
            raise self.unreadable(error) from error

    def upload(self, folder: Path, name: str) -> None:
        """Copy the files of a local folder below `name`."""
        source = fs.LocalFileSystem()
        try:
            self.ask(lambda: fs.copy_files(str(folder), f"{self.base}/{name}", source_filesystem=source, destination_filesystem=self.fs))
        except OSError as error:
            raise unwritable(f"{self.base}/{name}", error, remote=not self.is_local) from error

    # ---- artefacts ---------------------------------------------------------------------------------------------------

    def folder(self, stage: str, key: str) -> str:
        """Where an artefact lies below the store's root."""
        return f"artifacts/{stage}/{key[:2]}/{key}"

    def manifest(self, stage: str, key: str) -> Json | None:
        """What is stored under the key, or None: the artefact is not there (or not complete, which is the same)."""
        data = self.read_bytes(f"{self.folder(stage, key)}/manifest.json")
        found: Json | None = json.loads(data) if data else None
        if found is not None and not self.is_local:
            self._manifests[stage, key] = found
        return found

    def known_manifest(self, stage: str, key: str) -> Json | None:
        """`manifest`, without a question to a remote store where this process has seen it before.

        It may have been replaced by an equal one or deleted since: not for deciding whether there is work to do.
        """
        return self._manifests.get((stage, key)) or self.manifest(stage, key)

    def has(self, stage: str, key: str) -> bool:
        """Whether the artefact is stored, and complete."""
        return self.manifest(stage, key) is not None

    def put(self, stage: str, key: str, write: Callable[[Path], None], record: Mapping[str, object]) -> Json:
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
            if self.is_local:
                sync(work)
            else:
                self.upload(work, target)
            files = {str(p.relative_to(work)): p.stat().st_size for p in sorted(work.rglob("*")) if p.is_file()}
            manifest: Json = {
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
            if not self.is_local:  # what follows reads it, and a store may show it late
                self.retries.wait_for(lambda: self.manifest(stage, key))
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if not self.is_local:
                with contextlib.suppress(IdgbrError):  # the first error counts; what is left has no manifest, and gc deletes it
                    self.delete(target)
            if isinstance(error, OSError):
                raise unwritable(f"{self.base}/{target}", error) from error
            raise
        if not self.is_local:
            NodeCache(self.cache).adopt(f"{stage}/{key}/{attempt}", work, manifest["bytes"])
        return manifest

    def path(self, stage: str, key: str) -> Path:
        """Local folder with the artefact's files; of a remote store fetched once for all processes of a node.

        Raises:
            Missing: it is not in the store. NoSpace: the disk of the cache is full. Outage: the store does not answer.
        """
        manifest = self.known_manifest(stage, key)
        if manifest is not None and not self.is_local and not (self.cache / stage / key / manifest["attempt"]).is_dir():
            manifest = self.manifest(stage, key)  # it is fetched: as it is now
        if manifest is None:
            raise Missing(f"no {stage} artefact {key} in the store {self.root}", hint="run the study or the stage that makes it")
        source = f"{self.folder(stage, key)}/{manifest['attempt']}"
        if self.is_local:
            return Path(f"{self.base}/{source}")

        def fetch(folder: Path) -> None:
            self.fetch(source, folder)
            sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
            damaged = [name for name, size in manifest["files"].items() if sizes.get(name) != size]
            if damaged:
                raise Outage(
                    f"the store {self.root} gave another {stage} artefact {key} than was put there",
                    value=f"{damaged[0]}: {sizes.get(damaged[0], 'no')} bytes, {manifest['files'][damaged[0]]} by its manifest",
                    hint=f"again; if it stays so, delete {self.folder(stage, key)} and run the same command: it is made anew",
                )

        return NodeCache(self.cache).folder(f"{stage}/{key}/{manifest['attempt']}", manifest["bytes"], fetch)

    def keys(self, stage: str) -> Iterator[str]:
        """Keys of all complete artefacts of a stage."""
        for name in self.names(f"artifacts/{stage}", suffix="/manifest.json", recursive=True):
            yield name.split("/")[3]

    def runs(self, stage: str) -> list[str]:
        """Keys in the order of `runs/`, one entry for every computation of this stage: the counter that proves
        reuse."""
        return [name.rpartition("/")[2].rpartition("-")[0] for name in self.names(f"runs/{stage}", suffix=".json")]

    def check_writable(self) -> None:
        """Raises:
        Missing: the store cannot be written or read back.
        """
        name = f"_probe-{uuid.uuid4().hex[:8]}"
        self.write_bytes(name, b"probe")
        if self.retries.wait_for(lambda: self.read_bytes(name)) != b"probe":  # a network file system may show it late
            raise Missing(f"the store {self.root} does not return what was written to it")
        self.delete(name)


def default_root() -> str:
    """The store where none is named: $IDGBR_STORE, or `store` in the current folder."""
    return os.environ.get("IDGBR_STORE", "store")
