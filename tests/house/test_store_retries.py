"""A store that throttles, times out or is away costs waiting, not work; what does not come back is one `Outage`."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from unkind_store import unkind_store

from idgbr.errors import Missing, NoSpace, Outage
from idgbr.files import unwritable
from idgbr.retries import RetryPolicy
from idgbr.store import Store


def test_every_access_survives_a_store_of_which_a_third_of_the_calls_fail(tmp_path: Path) -> None:
    store, handler = unkind_store(tmp_path / "store", tmp_path / "cache", share=0.33, seed=1)
    for n in range(20):
        store.write_bytes(f"claims/{n}.json", str(n).encode())
    assert [store.read_bytes(f"claims/{n}.json") for n in range(20)] == [str(n).encode() for n in range(20)]
    assert len(store.names("claims")) == 20
    store.delete("claims/3.json")
    assert store.read_bytes("claims/3.json") is None
    made = store.put("data", "ab12", lambda out: (out / "x").write_text("artefact") and None, {})
    assert store.manifest("data", "ab12") == made
    assert (store.path("data", "ab12") / "x").read_text() == "artefact"
    store.check_writable()
    assert handler.faults > 15


def test_what_stays_away_is_an_outage_after_the_deadline_and_a_first_contact_fails_sooner(tmp_path: Path) -> None:
    store, handler = unkind_store(tmp_path / "store", tmp_path / "cache")
    store.retries = RetryPolicy(deadline_s=0.4, first_wait_s=0.01)
    handler.is_away = True
    for access in (lambda: store.read_bytes("x"), lambda: store.write_bytes("x", b""), lambda: store.names("x"), lambda: store.delete("x")):
        started = time.monotonic()
        with pytest.raises(Outage):
            access()
        assert 0.3 < time.monotonic() - started < 3
    assert Store(tmp_path).retries.deadline_s > 60
    fresh, handler = unkind_store(tmp_path / "store", tmp_path / "cache")
    fresh.has_answered, handler.is_away, fresh.retries = False, True, RetryPolicy(deadline_s=600.0, first_wait_s=0.01)
    started = time.monotonic()
    with pytest.raises(Outage):
        fresh.check_writable()
    assert time.monotonic() - started < 10


def test_an_artefact_that_is_not_what_was_stored_is_an_outage_that_names_it_and_is_not_kept(tmp_path: Path) -> None:
    store, _ = unkind_store(tmp_path / "store", tmp_path / "cache")
    store.put("refiner", "ab12", lambda out: (out / "model.safetensors").write_text("weights") and None, {})
    other, _ = unkind_store(tmp_path / "store", tmp_path / "of another node")
    (stored,) = (tmp_path / "store").rglob("model.safetensors")
    whole = stored.read_bytes()
    stored.write_bytes(b"")
    with pytest.raises(Outage, match=r"refiner artefact ab12.*\n?.*model.safetensors: 0 bytes, 7 by its manifest"):
        other.path("refiner", "ab12")
    stored.write_bytes(whole)
    assert (other.path("refiner", "ab12") / "model.safetensors").read_bytes() == whole


def test_an_absent_file_or_a_missing_permission_is_not_tried_again(tmp_path: Path) -> None:
    store, handler = unkind_store(tmp_path / "store", tmp_path / "cache")
    assert store.read_bytes("nothing") is None
    assert handler.calls == 1
    tries = []

    def refused() -> None:
        tries.append(1)
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        store.ask(refused)
    assert len(tries) == 1


def test_errors_of_writing_have_types() -> None:
    assert isinstance(unwritable("x", OSError(errno.ENOSPC, "No space left on device")), NoSpace)
    assert isinstance(unwritable("x", OSError(errno.EDQUOT, "Disk quota exceeded")), NoSpace)
    assert isinstance(unwritable("x", OSError(errno.ESTALE, "Stale file handle")), Outage)
    assert type(unwritable("x", OSError(errno.EACCES, "Permission denied"))) is Missing
    assert type(unwritable("x", OSError("a raster library's words"))) is Missing
    assert isinstance(unwritable("x", OSError("AWS Error SLOW_DOWN"), remote=True), Outage)
