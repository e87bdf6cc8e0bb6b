"""The store: whole or nothing, manifest last, local disk and a real S3 server on loopback."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from pathlib import Path

import pytest

from idgbr.errors import Missing
from idgbr.store import Store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    root = str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3")
    return Store(root, cache=tmp_path / "cache")


def write_two(out: Path) -> None:
    (out / "a.txt").write_text("a")
    (out / "deep").mkdir()
    (out / "deep" / "b.txt").write_text("bb")


def test_what_was_put_is_there_with_its_manifest(store: Store) -> None:
    assert not store.has("data", "00key")
    manifest = store.put("data", "00key", write_two, {"settings": {"x": 1}})
    assert store.has("data", "00key")
    assert manifest["files"] == {"a.txt": 1, "deep/b.txt": 2}
    assert store.manifest("data", "00key")["settings"] == {"x": 1}  # type: ignore[index]
    folder = store.path("data", "00key")
    assert (folder / "deep" / "b.txt").read_text() == "bb"
    assert list(store.keys("data")) == ["00key"]
    assert store.runs("data") == ["00key"]


def test_an_error_leaves_nothing_and_is_not_counted(store: Store) -> None:
    def fails(out: Path) -> None:
        write_two(out)
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        store.put("data", "00key", fails, {})
    assert not store.has("data", "00key")
    assert store.names("artifacts", recursive=True) == []
    assert store.runs("data") == []


def test_two_writers_of_one_key_both_leave_a_whole_artefact(store: Store) -> None:
    store.put("data", "00key", write_two, {"n": 1})
    first = store.path("data", "00key")
    store.put("data", "00key", write_two, {"n": 2})
    assert store.manifest("data", "00key")["n"] == 2  # type: ignore[index]
    assert (first / "a.txt").read_text() == "a"
    assert store.runs("data") == ["00key", "00key"]


def test_a_missing_artefact_is_one_clear_error(store: Store) -> None:
    with pytest.raises(Missing, match="no refiner artefact 00key"):
        store.path("refiner", "00key")


def test_a_store_that_cannot_be_reached_or_written_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    far = Store("s3://bucket/store?endpoint_override=127.0.0.1:9&scheme=http", cache=tmp_path / "cache")
    with pytest.raises(Missing, match="cannot write"):
        Store(tmp_path / "file").check_writable()
    with pytest.raises(Missing, match="cannot write"):
        far.check_writable()
    with pytest.raises(Missing, match="cannot read the store"):
        far.names("tables")
    with pytest.raises(Missing, match="cannot read the store"):
        far.read_bytes("studies/s.json")
    with pytest.raises(Missing, match="cannot open the store"):
        Store("nosuch://bucket/store")


def test_a_store_without_write_permission_is_one_clear_error() -> None:
    """As somebody who may not write; root may always, so root steps down for the time."""
    place = Path(tempfile.mkdtemp())
    as_root = os.geteuid() == 0
    try:
        place.chmod(0o555)
        if as_root:
            os.seteuid(65534)
        with pytest.raises(Missing, match=r"cannot write.*store you may write to"):
            Store(place / "store").check_writable()
    finally:
        if as_root:
            os.seteuid(0)
        place.rmdir()


def test_a_store_named_by_a_relative_path_is_the_same_place_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    store.write_bytes("here", b"yes")
    packed = pickle.dumps(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(packed).read_bytes("here") == b"yes"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def full(out: Path) -> None:
        write_two(out)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Missing, match="no space left") as error:
        store.put("data", "00key", full, {})
    assert error.value.exit_code == 3
    assert store.names("artifacts", recursive=True) == []


def test_a_store_on_a_really_full_file_system(tmp_path: Path) -> None:
    """A tmpfs of 1 MB, where we may mount one."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        store = Store(place / "store")
        with pytest.raises(Missing, match="no space left"):
            store.put("data", "00key", lambda out: (out / "big").write_bytes(b"0" * 2_000_000) and None, {})
        assert not store.has("data", "00key")
        store.put("data", "00key", write_two, {})
        assert store.has("data", "00key")
    finally:
        subprocess.run(["umount", str(place)], check=True)
