"""Files appear whole or not at all, and only one of several writers makes a file."""

from __future__ import annotations

import errno
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from idgbr.errors import Missing, NoSpace
from idgbr.files import create, publish, replacing, temporary_beside, whole, write_bytes

ROOT = Path(__file__).resolve().parents[2]


def test_only_one_file_gives_files_their_names() -> None:
    """Temporary name, to the disk, rename: written once, in idgbr/files.py."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("idgbr", "cluster", "sweeps")
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bos\.(replace|rename|link|fsync)\(|temporary\.(replace|rename)\(", line)
    ]
    assert {name.partition(":")[0] for name in found} == {"idgbr/files.py"}, found


def fail_within(path: Path, error: Exception) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(path.suffix)
        raise error


@pytest.mark.parametrize("name", ["map.tif", "报告.json", "a [1]*.png", "no_suffix", ".hidden"])
def test_a_file_is_the_new_one_or_the_old_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(RuntimeError):
        fail_within(path, RuntimeError())
    assert os.listdir(tmp_path) == []
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError):
        fail_within(path, RuntimeError())
    assert path.read_bytes() == b"old"
    with whole(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [name]


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number)))
    with whole(tmp_path / "file") as temporary:
        temporary.write_bytes(b"x")
    folder = temporary_beside(tmp_path / "folder")
    (folder / "below").mkdir(parents=True)
    for inner in ("a", "below/b"):
        (folder / inner).write_bytes(b"x")
    publish(folder, tmp_path / "folder")
    assert synced == [(tmp_path / name).stat().st_ino for name in ("file", "folder/a", "folder/below/b")]


def test_a_disk_that_is_full_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    for number, kind in ((errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, Missing)):
        with pytest.raises(kind, match=str(tmp_path / "x")):
            fail_within(tmp_path / "x", OSError(number, os.strerror(number)))
        assert os.listdir(tmp_path) == []


def test_one_of_many_writers_makes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: create(path, f"{i:06d}".encode() * 500, mode=0o600), range(40)))
    assert sum(made) == 1
    assert path.read_bytes() == f"{made.index(True):06d}".encode() * 500
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["claim"]
