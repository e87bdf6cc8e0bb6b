"""Checkpoints of a one-worker training survive its node when the store is an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import tiny

from idgbr import stages
from idgbr.config import Runtime
from idgbr.errors import Interrupted
from idgbr.store import Store


def test_a_training_on_s3_goes_on_from_its_checkpoint_on_a_node_with_another_cache(tmp_path: Path, s3: str) -> None:
    experiment = tiny(schedules=("cosine",), steps=(1,), yardsticks=()).base()
    jobs = {job.stage: job for job in stages.jobs(experiment)}
    first, second, runtime = Store(s3, cache=tmp_path / "first"), Store(s3, cache=tmp_path / "second"), Runtime(device="cpu")
    for stage in ("data", "backbone", "coarse"):
        stages.run(jobs[stage], first, experiment, runtime)
    reached: list[int] = []

    def note(**values: Any) -> None:
        reached.append(int(values.get("images", values.get("done", 0))))

    with pytest.raises(Interrupted):
        stages.run(jobs["refiner"], first, experiment, runtime, report=note, stop=lambda: bool(reached) and reached[-1] >= 16)
    at_stop = reached[-1]
    assert 16 <= at_stop < 32
    scratch = stages.scratch_name(jobs["refiner"])
    assert second.read_bytes(f"{scratch}/latest.json")
    reached.clear()
    stages.run(jobs["refiner"], second, experiment, runtime, report=note)
    assert reached[0] > at_stop  # not from the beginning
    assert second.has("refiner", jobs["refiner"].key)
    assert not second.names(scratch, recursive=True)
