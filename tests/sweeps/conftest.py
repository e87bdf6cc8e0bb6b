"""Fixtures of the sweep tests: a finished store of the tiny study, and a loopback cluster for a module."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idgbr.store import Store

pytest.register_assert_rewrite("tiny_sweeps", "ray_clusters")
from ray_clusters import loopback_cluster  # noqa: E402
from tiny_sweeps import STUDY_FILE, tiny  # noqa: E402


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("studies") / "tiny_study.py"
    path.write_text(STUDY_FILE)
    return str(path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tiny study done, undisturbed, by one process. Not to be written to: see `store`."""
    from sweeps.run import commands
    from sweeps.run.options import RunOptions
    from sweeps.run.placement import Placement

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its parent is shared by all processes of xdist, and the first one makes the store for all
        base = base.parent
    root = base / "made" / "store"
    with open(base / "made.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "made" / "finished").exists():
            commands.run(tiny(), Store(root), Placement(), RunOptions(local=True, preflight=False, show=False))
            (base / "made" / "finished").touch()
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """A copy of the finished store that a test may spoil."""
    shutil.copytree(made, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    with loopback_cluster() as cluster:
        yield cluster
