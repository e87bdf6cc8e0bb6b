"""Memory of the head, before a run starts."""

from __future__ import annotations

import re

import pytest

from idgbr.errors import Missing
from sweeps.run import head_memory
from sweeps.run.head_memory import DRIVER_GB, JOB_GB, RAY_GB, WIDE_GB, check_head


def of(monkeypatch: pytest.MonkeyPatch, total: float, free: float) -> None:
    monkeypatch.setattr(head_memory, "allowed_memory_gb", lambda: (total, free))


def test_a_head_that_is_too_small_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    of(monkeypatch, 32.0, 30.0)
    with pytest.raises(Missing) as refused:
        check_head(2000, 32, print)
    needed = DRIVER_GB + RAY_GB + 2000 * JOB_GB + 32 * WIDE_GB
    assert f"{needed:.1f} GB for 2,000 jobs with 32 trainings" in str(refused.value)
    assert "has 32.0 GB" in str(refused.value)
    said: list[str] = []
    check_head(2000, 32, said.append, is_head=False)  # the head is another machine: its trainings are not here
    check_head(2000, 16, said.append)
    assert not said


def test_too_little_free_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    of(monkeypatch, 64.0, 5.0)
    said: list[str] = []
    check_head(100, 2, said.append)
    assert not said
    check_head(100, 8, said.append)
    assert len(said) == 1
    assert re.search(r"warning: .*5\.0 of 64\.0 GB are free, and 11\.2 GB are still to come", said[0])
