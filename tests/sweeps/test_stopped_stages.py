"""Stages that train nothing end when they are asked to; coarse and refined maps go on raster by raster, also on another node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio
from tiny_sweeps import tiny

from idgbr import stages
from idgbr.config import Experiment, Runtime
from idgbr.errors import Interrupted
from idgbr.stages import Job
from idgbr.store import Store

RUNTIME = Runtime(device="cpu")
StoreOf = Callable[[str], Store]


@pytest.fixture(params=["folder", "s3"])
def store_of(request: pytest.FixtureRequest, tmp_path: Path) -> StoreOf:
    """One store, as each node has it: with a cache of its own."""
    root = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "store")
    return lambda node: Store(root, cache=tmp_path / node)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """The coarse map is the result: nothing is trained but its backbone. Two validation scenes are refined."""
    return tiny(schedules=("cosine",), steps=(1,), overrides={"refiner.kind": "none", "data.test_scenes": 2}).base()


def jobs_of(experiment: Experiment) -> dict[str, Job]:
    return {job.stage: job for job in stages.jobs(experiment)}


def maps_of(store: Store, job: Job) -> dict[str, bytes]:
    found = {}
    for path in sorted(store.path(job.stage, job.key).rglob("*.tif")):
        with rasterio.open(path) as raster:
            found[path.name] = raster.read().tobytes()
    return found


def interrupted_after(n: int, job: Job, store: Store, experiment: Experiment) -> None:
    told: list[dict[str, Any]] = []
    with pytest.raises(Interrupted):
        stages.run(job, store, experiment, RUNTIME, report=lambda **v: told.append(v), stop=lambda: len(told) >= n)
    assert len(told) == n
    assert not store.has(job.stage, job.key)


def test_every_stage_ends_when_asked_and_coarse_and_refined_go_on_on_another_node(
    store_of: StoreOf, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, first, second, whole = jobs_of(experiment), store_of("first"), store_of("second"), Store(tmp_path / "undisturbed")
    for stage in ("data", "backbone", "coarse", "refined", "counts"):
        job = jobs[stage]
        stages.run(job, whole, experiment, RUNTIME)
        if stage == "backbone":
            stages.run(job, first, experiment, RUNTIME)
            continue
        interrupted_after(1, job, first, experiment)
        kept = first.names(stages.scratch_name(job), recursive=True)
        assert bool(kept) == (stage in ("coarse", "refined"))
        told: list[dict[str, Any]] = []
        stages.run(job, second, experiment, RUNTIME, report=lambda told=told, **v: told.append(v))
        rasters = told[-1]["total"]
        assert told[-1]["done"] == rasters > 1
        assert len(told) == rasters - 1 or not kept  # what was kept is not done again
        assert not second.names(stages.scratch_name(job), recursive=True)
        if stage in ("coarse", "refined"):
            assert set(maps_of(second, job)) == set(maps_of(whole, job))
            if stage == "refined":
                assert maps_of(second, job) == maps_of(whole, job)
    names = {path.name for path in second.path("refined", jobs["refined"].key).iterdir()}
    assert "tiles.json" in names


def test_a_stage_that_is_stopped_inside_a_raster_keeps_the_whole_ones_only(experiment: Experiment, tmp_path: Path) -> None:
    """Large rasters take longer than a warning before the wall time: a stop is looked for between strips."""
    store, job = Store(tmp_path / "store"), jobs_of(experiment)["coarse"]
    for stage in ("data", "backbone"):
        stages.run(jobs_of(experiment)[stage], store, experiment, RUNTIME)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2  # the first raster: once in its one strip, once after it

    with pytest.raises(Interrupted):
        stages.run(job, store, experiment, RUNTIME, stop=stop)
    assert len(store.names(stages.scratch_name(job), recursive=True)) == 1
    stages.run(job, store, experiment, RUNTIME)
    assert store.has("coarse", job.key)
    assert len(maps_of(store, job)) == 6
