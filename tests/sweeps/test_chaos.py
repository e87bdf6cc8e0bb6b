"""A study that is disturbed without pause gives the table of one that nobody disturbs: `benchmarks/chaos.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


def chaos(*words: str) -> dict[str, Any]:
    ended = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def survived(found: dict[str, Any]) -> bool:
    (only,) = found["rounds"]
    return bool(only["same_table"]) and not (only["trials_lost"] or only["trials_doubled"] or only["trials_failed"])


@pytest.mark.timeout(1800)
def test_drivers_that_are_killed_and_stopped_and_a_store_that_fails_change_no_table() -> None:
    found = chaos("--trials", "12", "--images", "16", "--nodes", "0", "--every-s", "1", "--events", "5", "--seed", "3")
    assert survived(found)
    assert sum(found["events"].values()) >= 3  # each kind once, but the study may end before the last ones


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_sixty_trials_on_four_nodes_while_everything_fails_give_the_same_table(request: pytest.FixtureRequest) -> None:
    if "chaos" not in request.config.option.markexpr:
        pytest.skip("takes 20 minutes or more: python -m pytest -m chaos")
    found = chaos("--trials", "60", "--seed", "1")
    assert survived(found)
    assert set(found["events"]) >= {"worker", "node", "join", "driver", "stop", "throttle", "stall", "away", "device"}
