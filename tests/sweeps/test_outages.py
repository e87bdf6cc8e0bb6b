"""What is an outage and what is a result: devices that fail, workers that are lost, stores that do not answer, limits. No Ray."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
import torch
from tiny_sweeps import final_tables, same_tables, tiny
from unkind_store import unkind_store

from idgbr import stages
from idgbr.config import Runtime
from idgbr.errors import BadRequest, Interrupted, Missing, NoSpace, Outage, SomeFailed
from idgbr.store import Store
from sweeps import tables
from sweeps.run import commands, schedule
from sweeps.run import plan as planning
from sweeps.run.claims import Claims
from sweeps.run.limits import RunLimits
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement
from sweeps.run.schedule import RETURNS, Schedule
from sweeps.run.units import Outcome, Task, Unit, units_of
from sweeps.run.worker import WorkerContext, do_task
from sweeps.study import Axis, Study

BROKEN = "node3 GPU 5"


def refiners(count: int) -> Study:
    """So many refiners, each sampled once."""
    rates = tuple(1e-4 * (1 + n) for n in range(count))
    return tiny("rates", schedules=("cosine",), steps=(1,), yardsticks=()) | Study(
        "more", "synthetic", axes=(Axis("refiner.lr", rates),), overrides=tiny().overrides, yardsticks=()
    )


class Cluster:
    """Simulated devices, each with one worker. A unit on a broken one, or one that breaks devices, is an outage; else it is done."""

    def __init__(self, state: Schedule, devices: list[str], broken: set[str], poison: set[str] | None = None):
        self.schedule, self.devices, self.broken, self.poison = state, devices, broken, poison or set()
        self.ran: list[tuple[str, str]] = []  # device, unit
        self.clock = 0.0

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedule.time, "monotonic", lambda: self.clock)
        busy: dict[str, Unit] = {}
        held: dict[str, float] = {}  # by a worker that has returned a unit
        order = sorted(self.devices, key=lambda d: d not in self.broken)  # a broken device is the first that is free: it fails at once
        for _ in range(10_000):
            if self.schedule.is_finished:
                return
            for device in order:
                if device in busy or device in self.schedule.health.left_out or held.get(device, 0.0) > self.clock:
                    continue
                unit = self.schedule.take()
                if unit is None:
                    continue
                self.schedule.started(unit.id, device)
                if device in unit.avoid and unit.returned < RETURNS:
                    self.schedule.give_back(unit.id)
                    held[device] = self.clock + 20
                    continue
                busy[device] = unit
                self.ran.append((device, unit.id))
            for device in [d for d in busy if d in self.broken] or list(busy)[:1]:
                unit = busy.pop(device)
                if device in self.broken or unit.id in self.poison:
                    self.schedule.complete(unit.id, "AcceleratorError: CUDA error", device)
                    continue
                for task in unit.tasks:
                    ends = tuple(e.trial for e in task.ends)
                    done = Outcome(task.job.key, task.job.stage, "done", 1.0, trials=ends, device=device)
                    self.schedule.finish_task(done, unit.id)
                self.schedule.complete(unit.id)
            self.clock += 1.0
        raise AssertionError("the schedule does not end")


@pytest.fixture
def state(tmp_path: Path):  # type: ignore[no-untyped-def]
    store = Store(tmp_path)
    made = planning.make(refiners(40), store)
    with Claims(store, "rates") as claims:
        yield Schedule(made, units_of(made, 8), store, claims, 8, "", limits=RunLimits(max_failures=2), gpus=1.0)


def test_one_broken_device_of_eight_costs_no_trial_and_is_left_out_and_named(state: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [f"node3 GPU {n}" for n in range(8)]
    lost: list[str] = []
    state.on_lost = lambda unit, error: lost.append(error)
    cluster = Cluster(state, devices, {BROKEN})
    cluster.run(monkeypatch)
    assert not state.failed_trials
    assert len(state.done_trials) == 41
    assert state.health.left_out == {BROKEN}
    assert "CUDA" in state.health.reasons[BROKEN]
    assert [d for d, _ in cluster.ran].count(BROKEN) == len(lost) == 2


def test_a_unit_that_fails_everywhere_is_a_failed_trial_and_no_device_is_blamed(state: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = {[key for key in state.plan.to_do if state.plan.jobs[key][0].stage == "refiner"][-1]}
    cluster = Cluster(state, [f"node3 GPU {n}" for n in range(8)], set(), poison)
    cluster.run(monkeypatch)
    assert len(state.failed_trials) == 1
    assert "3 times without having advanced" in next(iter(state.failed_trials.values()))
    assert not state.health.left_out
    visited = [d for d, unit in cluster.ran if unit in poison]
    assert len(visited) == len(set(visited)) == 3  # each time elsewhere


def test_when_most_devices_fail_the_work_is_suspected_and_half_of_them_stay(state: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [f"node3 GPU {n}" for n in range(4)]
    refused = {key for key in state.plan.to_do if state.plan.jobs[key][0].stage == "refiner"}
    cluster = Cluster(state, devices, set(), refused)
    cluster.run(monkeypatch)
    assert len(state.failed_trials) == 41
    assert len(state.health.left_out) <= 2


def test_losses_count_only_while_a_unit_does_not_advance(state: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])
    for images in range(10, 200, 10):  # nineteen lost workers, each a little further
        clock[0] += 1000
        unit = state.take()
        assert unit is not None
        assert unit.tasks[0].job.stage == "data"
        state.started(unit.id, "node3")
        state.advanced(unit.id, images)
        state.complete(unit.id, "its worker was lost", "node3")
    assert not state.failed_trials
    for _ in range(2):
        clock[0] += 1000
        unit = state.take()
        assert unit is not None
        state.advanced(unit.id, 50)
        state.complete(unit.id, "its worker was lost", "node3")
    assert len(state.failed_trials) == 41


def test_a_study_whose_trials_fail_for_their_own_reasons_stops_at_max_failed(state: Schedule) -> None:
    state.limits = RunLimits(max_failed=3)
    state.made |= {key for key in state.plan.to_do if state.plan.jobs[key][0].stage in ("data", "backbone", "coarse")}
    while (unit := state.take()) is not None:
        job = unit.tasks[0].job
        status = "failed" if job.stage == "refiner" else "done"
        state.finish_task(Outcome(job.key, job.stage, status, 0.0, "bang" if status == "failed" else None))
        state.complete(unit.id)
    assert isinstance(state.fatal, SomeFailed)
    assert "--max-failed 3" in str(state.fatal)
    assert len(state.failed_trials) == 4
    assert state.is_finished


def test_gpu_hours_are_counted_while_they_are_held_and_end_the_study(state: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    state.limits = RunLimits(gpu_hours=2.0)
    unit = state.take()
    assert unit is not None
    state.started(unit.id, "node3 GPU 0")
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert state.gpu_time.hours == pytest.approx(1.0, rel=1e-3)
    state.complete(unit.id)
    monkeypatch.setattr(time, "monotonic", lambda: now + 36000)
    assert state.gpu_time.hours == pytest.approx(1.0, rel=1e-3)  # nothing is held
    assert state.fatal is None
    state.gpu_time.start("x", 2)
    monkeypatch.setattr(time, "monotonic", lambda: now + 39600)
    assert state.take() is None
    assert isinstance(state.fatal, Missing)
    assert "2 GPU-hours" in str(state.fatal)


@pytest.mark.parametrize(
    ("error", "status", "blames"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "outage", True),
        (torch.distributed.DistBackendError("NCCL error"), "outage", True),
        (torch.OutOfMemoryError("CUDA out of memory"), "failed", False),
        (Outage("cannot read the store"), "outage", False),
        (OSError(errno.ESTALE, "Stale file handle"), "outage", False),
        (NoSpace("no space left"), "no_space", False),
        (Interrupted("stopped after 3 of 9 images"), "interrupted", False),
        (ValueError("a class of its own"), "failed", False),
        (FileNotFoundError(errno.ENOENT, "No such file"), "failed", False),
        (BadRequest("batch_images is smaller than the number of workers"), "failed", False),
    ],
)
def test_errors_are_told_apart_by_type(
    error: Exception, status: str, blames: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(stages, "run", fail)
    job, experiment = stages.jobs(tiny().base())[0], tiny().base()
    outcome = do_task(Task(job, experiment), WorkerContext(Store(tmp_path), Runtime(device="cpu"), device="node3 GPU 0"))
    assert (outcome.status, outcome.blames_device) == (status, blames)
    assert outcome.device == "node3 GPU 0"


def test_a_whole_sweep_over_a_store_that_throttles_times_out_and_shows_files_late_gives_the_same_table(made: Path, tmp_path: Path) -> None:
    store, handler = unkind_store(tmp_path / "store", tmp_path / "cache", share=0.1, late=2, seed=3)
    commands.run(tiny(), store, Placement(), RunOptions(local=True, preflight=False, show=False))
    assert handler.faults > 20
    same_tables(final_tables(Store(made)), final_tables(Store(tmp_path / "store")))
    assert not Store(tmp_path / "store").names("claims", recursive=True)


def test_a_store_that_goes_away_ends_the_driver_and_blames_no_trial(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from idgbr.retries import RetryPolicy

    store, handler = unkind_store(tmp_path / "store", tmp_path / "cache")
    store.retries = RetryPolicy(deadline_s=0.2, first_wait_s=0.01)
    put = store.put

    def away(stage: str, *args: object, **more: object) -> object:
        handler.is_away = stage == "refiner"
        return put(stage, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "put", away)
    monkeypatch.setattr(schedule, "PAUSE_S", 0.01)
    with pytest.raises(Outage):
        commands.run(tiny(), store, Placement(), RunOptions(local=True, preflight=False, show=False))
    handler.is_away = False
    assert "failed" not in set(tables.statuses(Store(tmp_path / "store"), "tiny").values())
    monkeypatch.undo()
    store.delete("claims")  # of a driver that is this process, and so alive
    commands.run(tiny(), store, Placement(), RunOptions(local=True, preflight=False, show=False))
    same_tables(final_tables(Store(made)), final_tables(Store(tmp_path / "store")))


def test_parts_of_a_gpu_are_counted_by_device() -> None:
    eight = [{"CPU": 64.0, "GPU": 8.0}]
    assert [Placement(gpus=part).fitting(eight) for part in (0.25, 0.3, 0.4, 0.5, 0.6, 1.0, 3.0)] == [32, 24, 16, 16, 8, 8, 2]
    for wrong in ({"gpus": 1.5}, {"gpus": 0.5, "workers": 2}):
        with pytest.raises(BadRequest, match="part of a GPU"):
            Placement(**wrong)  # type: ignore[arg-type]


def test_the_private_parts_of_ray_tune_that_are_used_are_there() -> None:
    from sweeps.run.placement_groups import missing_parts

    assert missing_parts() == [], "Ray has changed: see sweeps/run/placement_groups.py"
