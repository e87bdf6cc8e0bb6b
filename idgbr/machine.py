"""What this process may use of the machine it runs on: cores, a folder for caches, the home of the user."""

from __future__ import annotations

import functools
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from idgbr.errors import Missing

OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def allowed_cores() -> int:
    """How many cores this process may use: the smallest of the CPU affinity (taskset, cpusets), the CPU quota of its
    control groups (containers, systemd) rounded down, and SLURM_CPUS_PER_TASK; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [float(affinity), *cgroup_quotas(), *([float(slurm)] if slurm.isdigit() else [])]
    return max(1, int(min(limits)))


def allowed_memory_gb(meminfo: Path = Path("/proc/meminfo"), own: Path = OWN_GROUPS, mount: Path = GROUPS) -> tuple[float, float]:
    """Memory in GB that this process may use: (in all, of it free now).

    The smallest of the machine's, that of its control groups (containers, systemd, Slurm), and SLURM_MEM_PER_NODE
    (its job may hold so much on a node). A group's file cache counts as free. Infinite where nothing is known.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (float(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):  # no Linux
        total = free = math.inf
    for folder in _group_folders("memory", own, mount):
        found = _memory(folder)
        if found is not None:
            total, free = min(total, found[0]), min(free, found[0] - found[1])
    slurm = os.environ.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdigit() and int(slurm):  # MB; 0 is the whole node
        total, free = min(total, int(slurm) * 2**20), min(free, int(slurm) * 2**20)
    return total / 1e9, free / 1e9


def _memory(folder: Path) -> tuple[float, float] | None:
    """(limit, used without file cache) of one control group, in bytes; None without a limit."""
    try:
        is_second = (folder / "memory.max").exists()
        limit_file, used_file = ("memory.max", "memory.current") if is_second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit = (folder / limit_file).read_text().strip()
        if limit == "max" or int(limit) > 2**60:  # version 1 without a limit: a number near 2**63
            return None
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = int(stat.get("inactive_file" if is_second else "total_inactive_file", 0))
        return float(limit), float(int((folder / used_file).read_text()) - cache)
    except (OSError, ValueError):  # no such file here
        return None


def cgroup_quotas(own: Path = OWN_GROUPS, mount: Path = GROUPS) -> list[float]:
    """CPU quotas in cores of the control groups that hold this process, and of all groups above them; [] without a
    quota.

    Args:
        own: which groups the process is in, lines `number:controllers:path`. mount: where the groups lie, version 1
            or 2.
    """
    return [quota for folder in _group_folders("cpu", own, mount) if (quota := _quota(folder))]


def _group_folders(controller: str, own: Path, mount: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process, and of all groups above them, for one controller."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # no Linux, or no /proc
        return
    for _, controllers, path in lines:
        if controllers and controller not in controllers.split(","):
            continue
        roots = [mount / name for name in (controllers, controller) if name] if controllers else [mount, mount / "unified"]
        for root in roots:
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """Of one control group, in cores."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if quota.strip() != "max" and float(quota) > 0 else None
    except (OSError, ValueError):  # no such file here, or the kernel is set up without quotas
        return None


def expanded(path: str | Path) -> Path:
    """The path with `~` as the user's home.

    Raises:
        Missing: it begins with `~`, and this user has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise Missing(f"{path} begins with ~, and this user has no home folder", hint="the whole path, or set HOME") from error


def cache_folder() -> Path:
    """Where copies that can be made again are kept: IDGBR_CACHE, else ~/.cache/idgbr; for a user without a home a
    temporary folder."""
    named = os.environ.get("IDGBR_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "idgbr"
    except RuntimeError:
        return _temporary_cache()


@functools.cache  # said once
def _temporary_cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"idgbr-{os.getuid()}"
    print(f"this user has no home folder: caches are kept in {folder} (IDGBR_CACHE=FOLDER names another)", file=sys.stderr)
    return folder
