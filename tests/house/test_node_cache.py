"""The cache of a node: one fetch for all processes, a budget, nothing deleted that is in use."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from idgbr import node_cache
from idgbr.errors import BadRequest, NoSpace
from idgbr.node_cache import NodeCache
from idgbr.store import Store

FETCH = """
import sys, time
from pathlib import Path
from idgbr.node_cache import NodeCache

root, action = Path(sys.argv[1]), sys.argv[2]

def fetch(folder):
    with open(root / "fetches", "a") as log:
        log.write("x")
    folder.mkdir()
    time.sleep(0.5)
    (folder / "file").write_bytes(b"x" * 1000)

print((NodeCache(root / "cache").folder("refiner/key/a-1", 1000, fetch) / "file").stat().st_size, flush=True)
if action == "stay":
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _nothing_in_use() -> Iterator[None]:
    yield
    for descriptor in node_cache._used.values():
        os.close(descriptor)
    node_cache._used.clear()


def process(root: Path, action: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, str(root), action], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def of_size(n: int, calls: list[Path] | None = None) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        folder.mkdir()
        (folder / "file").write_bytes(bytes(n))
        if calls is not None:
            calls.append(folder)

    return fetch


def test_processes_of_a_node_that_ask_at_once_fetch_once(tmp_path: Path) -> None:
    asked = [process(tmp_path, "end") for _ in range(4)]
    assert [p.communicate()[0] for p in asked] == ["1000\n"] * 4
    assert (tmp_path / "fetches").read_text() == "x"


def test_what_another_process_uses_stays_and_goes_when_it_has_ended(tmp_path: Path) -> None:
    other = process(tmp_path, "stay")
    assert other.stdout is not None
    assert other.stdout.readline() == "1000\n"
    cache = NodeCache(tmp_path / "cache")
    assert cache.shrink(0) == 0
    other.communicate()
    assert cache.shrink(0) == 1000
    assert not (tmp_path / "cache/refiner/key/a-1").exists()


def test_the_least_recently_used_goes_when_the_budget_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache, "IN_USE", 1)
    monkeypatch.setenv("IDGBR_CACHE_GB", str(2500 / 1e9))
    cache, calls = NodeCache(tmp_path), list[Path]()
    for n, name in enumerate(("a", "b", "a", "c")):
        folder = cache.folder(f"refiner/{name}/a-1", 1000, of_size(1000, calls))
        os.utime(folder.with_name("a-1.lock"), (n, n))
    assert len(calls) == 3
    assert sorted(p.parent.name for p in tmp_path.glob("refiner/*/a-1")) == ["a", "c"]
    assert cache.folder("refiner/b/a-1", 1000, of_size(1000)).is_dir()  # fetched again


def test_a_node_need_not_fetch_what_it_has_made(tmp_path: Path) -> None:
    made = tmp_path / "cache" / "writing" / "a-1"
    made.mkdir(parents=True)
    (made / "file").write_bytes(b"made here")
    cache = NodeCache(tmp_path / "cache")
    cache.adopt("refined/a/a-1", made, 9)
    assert (cache.folder("refined/a/a-1", 9, of_size(1000)) / "file").read_bytes() == b"made here"
    assert not made.exists()


def test_without_a_budget_the_cache_takes_half_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache, "IN_USE", 1)
    monkeypatch.delenv("IDGBR_CACHE_GB", raising=False)
    cache, free = NodeCache(tmp_path), [10_000]
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]}))
    for n, name in enumerate("abc"):
        folder = cache.folder(f"refiner/{name}/a-1", 1000, of_size(1000))
        os.utime(folder.with_name("a-1.lock"), (n, n))
    assert len(list(tmp_path.glob("refiner/*/a-1"))) == 3
    free[0] = 1000  # with the three copies 4,000: two may stay
    cache.folder("refiner/d/a-1", 1000, of_size(1000))
    assert sorted(p.parent.name for p in tmp_path.glob("refiner/*/a-1")) == ["c", "d"]


def test_a_full_disk_costs_what_is_not_in_use_and_then_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache, "IN_USE", 1)
    cache = NodeCache(tmp_path)
    for name in ("a", "b"):
        cache.folder(f"refiner/{name}/a-1", 1000, of_size(1000))

    def fetch(folder: Path) -> None:
        if (tmp_path / "refiner/a/a-1").exists():
            folder.mkdir()
            raise NoSpace("no space left")
        of_size(10)(folder)

    assert cache.folder("refiner/c/a-1", 10, fetch).is_dir()
    with pytest.raises(NoSpace):
        cache.folder("refiner/d/a-1", 10, lambda folder: (_ for _ in ()).throw(NoSpace("no space left")))
    assert not list(tmp_path.rglob(".*"))  # no half copies


def test_a_full_disk_of_the_node_is_no_fault_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fs, "copy_files", full)
    with pytest.raises(NoSpace, match="no space left while writing"):
        Store(tmp_path / "store").fetch("artifacts", tmp_path / "here")


@pytest.mark.parametrize("text", ["0", "-1", "much"])
def test_a_budget_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGBR_CACHE_GB", text)
    with pytest.raises(BadRequest, match="IDGBR_CACHE_GB"):
        node_cache.budget_bytes()
