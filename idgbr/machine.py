"""What this process may use of the machine it runs on: cores, a folder for caches, the home of the user."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path

from idgbr.errors import Missing


def allowed_cores() -> int:
    """How many cores this process may use: the smallest of the CPU affinity (taskset, cpusets), the CPU quota of its
    control groups (containers, systemd) rounded down, and SLURM_CPUS_PER_TASK; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [float(affinity), *cgroup_quotas(), *([float(slurm)] if slurm.isdigit() else [])]
    return max(1, int(min(limits)))


def cgroup_quotas(own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """CPU quotas in cores of the control groups that hold this process, and of all groups above them; [] without a
    quota.

    Args:
        own: which groups the process is in, lines `number:controllers:path`. mount: where the groups lie, version 1
            or 2.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # no Linux, or no /proc
        return []
    found = []
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = [mount / name for name in (controllers, "cpu") if name] if controllers else [mount, mount / "unified"]
        for root in roots:
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                quota = _quota(folder) if folder.is_relative_to(root) else None
                found += [quota] if quota else []
    return found


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
