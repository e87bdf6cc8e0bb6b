"""What the doctor runs on every node. Sent by value, so that it also works where idgbr is missing or another version:
standard library only, everything else is imported inside and may fail, which is then the finding."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from typing import Any, TypeAlias

GIGABYTE = 1e9
PACKAGES = ("torch", "ray", "idgbr")

Facts: TypeAlias = dict[str, Any]  # plain values by name


class Probe:
    """One a node. Every method returns plain values and raises nothing of this node's making: a failure is part of
    the answer."""

    def ping(self) -> float:
        """The node's clock, seconds since 1970."""
        return time.time()

    def facts(self, store: str, weights: list[str], folders: list[str]) -> Facts:
        """Versions, GPUs, files and free space of this node."""
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in PACKAGES},
            "code": _code_digest(),
            "gpus": _gpus(),
            "weights": {path: _file(path) for path in weights},
            "space": {path: _space(path) for path in folders},
            "shared_memory_gb": _space("/dev/shm").get("total_gb", 0.0),
            "interface": os.environ.get("GLOO_SOCKET_IFNAME", ""),
        }

    def write(self, store: str, name: str, text: str) -> str:
        """Writes a small file into the store and reads it back; returns what went wrong, or nothing."""
        try:
            filesystem, base = _open(store)
            filesystem.create_dir(base, recursive=True)
            with filesystem.open_output_stream(f"{base}/{name}") as stream:
                stream.write(text.encode())
            with filesystem.open_input_stream(f"{base}/{name}") as stream:
                return "" if stream.read().decode() == text else "it does not return what was written to it"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def read(self, store: str, names: list[str]) -> dict[str, str]:
        """Text of the named files; those that are not there are left out."""
        found = {}
        try:
            filesystem, base = _open(store)
        except Exception:  # `write` is called first, and has reported why
            return {}
        for name in names:
            # a file that is not there is an answer, and the caller compares
            with contextlib.suppress(OSError), filesystem.open_input_stream(f"{base}/{name}") as stream:
                found[name] = stream.read().decode()
        return found

    def remove(self, store: str, names: list[str]) -> None:
        """Delete what the probe has written."""
        filesystem, base = _open(store)
        for name in names:
            with contextlib.suppress(OSError):  # another node has removed it already
                filesystem.delete_file(f"{base}/{name}")

    def connect(self, targets: list[tuple[str, int]], seconds: float) -> dict[str, str]:
        """Which of `targets` cannot be reached, and why."""
        failed = {}
        for host, port in targets:
            try:
                socket.create_connection((host, port), timeout=seconds).close()
            except OSError as error:
                failed[f"{host}:{port}"] = str(error)
        return failed

    def free_port(self) -> int:
        """A port that is free on the node now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def all_reduce(self, rank: int, host: str, port: int, seconds: float, wait: float) -> Facts:
        """Sums 4 MB with one other node for `seconds`, over gloo, and checks every sum.

        Returns `gb_per_s` (bytes of the array a second, each way) and `rounds`, or `error`.
        """
        try:
            import datetime

            import torch
            import torch.distributed as dist

            limit = datetime.timedelta(seconds=wait)
            store = dist.TCPStore(host, port, 2, rank == 0, timeout=limit)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
            try:
                values = torch.empty(1_000_000)
                rounds, begin = 0, time.monotonic()
                go = torch.ones(1)
                while True:
                    values.fill_(rank + 1.0)
                    dist.all_reduce(values)
                    if not bool((values == 3.0).all()):
                        return {"error": "a sum came back wrong"}
                    rounds += 1
                    # both must stop after the same round: rank 0's clock decides
                    go[0] = float(time.monotonic() - begin < seconds)
                    dist.broadcast(go, 0)
                    if not go[0]:
                        break
                spent = time.monotonic() - begin
                return {"rounds": rounds, "gb_per_s": rounds * values.numel() * 4 / GIGABYTE / spent}
            finally:
                dist.destroy_process_group()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else 'no message'}"}


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _code_digest() -> str:
    """Digest of the installed sources: two nodes may say 0.1.0 and yet run different code."""
    import hashlib
    import importlib.util

    digest = hashlib.sha256()
    for package in ("idgbr", "cluster", "sweeps"):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else ["missing"]:
            for root, _, files in sorted(os.walk(folder)):
                for name in sorted(files):
                    if name.endswith(".py"):
                        path = os.path.join(root, name)
                        digest.update(os.path.relpath(path, folder).encode())
                        with open(path, "rb") as file:
                            digest.update(file.read())
    return digest.hexdigest()[:12]


def _gpus() -> Facts:
    """Names and driver by nvidia-smi (does not need torch), and how many torch can use."""
    answer: Facts = {"names": [], "driver": "", "usable": 0}
    if shutil.which("nvidia-smi"):
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
        rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
        answer["names"] = [name.strip() for name, _, _ in rows]
        answer["driver"] = rows[0][2].strip() if rows else ""
        # in a process of its own: Ray hides GPUs from a task that requested none, and CUDA would stay open here
        program = "import torch; print(torch.cuda.device_count())"
        visible = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        counted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=visible, timeout=120)
        answer["usable"] = int(counted.stdout) if counted.stdout.strip().isdigit() else 0
    return answer


def _file(path: str) -> str:
    """Size and first megabyte's digest of a file or of all files of a folder, or why it cannot be read."""
    import hashlib

    target = os.path.expanduser(path)
    try:
        names = [target]
        if os.path.isdir(target):
            names = sorted(os.path.join(root, name) for root, _, files in os.walk(target) for name in files)
        digest, total = hashlib.sha256(), 0
        for name in names:
            total += os.path.getsize(name)
            with open(name, "rb") as file:
                digest.update(file.read(1_000_000))
        return f"{total} bytes, {digest.hexdigest()[:12]}"
    except OSError as error:
        return f"error: {error.strerror}"


def _space(path: str) -> Facts:
    """Free and total space of the file system that holds `path`, or would once it is made."""
    target = os.path.abspath(os.path.expanduser(path))
    while not os.path.exists(target):
        target = os.path.dirname(target)
    try:
        usage = shutil.disk_usage(target)
        return {"free_gb": usage.free / GIGABYTE, "total_gb": usage.total / GIGABYTE, "device": os.stat(target).st_dev}
    except OSError as error:
        return {"error": str(error)}


def _open(store: str) -> tuple[Any, str]:
    from pyarrow import fs

    if "://" in store:
        filesystem, path = fs.FileSystem.from_uri(store)
        return filesystem, path.rstrip("/")
    return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(store))
