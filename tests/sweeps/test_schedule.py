"""What may start when, who has claimed what, what no node can hold: properties of the schedule with a simulated worker."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_sweeps import tiny
from unkind_store import unkind_store

from idgbr.errors import BadRequest, Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run import plan as planning
from sweeps.run.claims import Claims
from sweeps.run.placement import Placement, slots
from sweeps.run.plan import StudyPlan
from sweeps.run.progress import SweepProgress
from sweeps.run.pruning import Halving, Watch, survives
from sweeps.run.schedule import Schedule
from sweeps.run.units import Outcome, Unit, units_of


def simulate(made: StudyPlan, store: Store, places: int, *, fail: str = "", rng: random.Random | None = None) -> tuple[Schedule, list[str]]:
    """Run a schedule with workers that do nothing; units end in random order. Returns the keys in the order they were done."""
    order: list[str] = []
    rng = rng or random.Random(0)
    with Claims(store, made.study.name) as claims:
        schedule = Schedule(made, units_of(made, places), store, claims, places, "")
        busy: list[Unit] = []
        while not schedule.is_finished:
            while (unit := schedule.take()) is not None:
                busy.append(unit)
            assert sum(u.workers for u in busy) <= places
            assert busy, "nothing runs and nothing may start"
            unit = busy.pop(rng.randrange(len(busy)))
            for task in unit.tasks:
                failed = fail and task.job.key == fail
                order.append(task.job.key)
                schedule.finish_task(Outcome(task.job.key, task.job.stage, "failed" if failed else "done", 0.0, "bang" if failed else None))
            schedule.complete(unit.id)
        return schedule, order


@pytest.mark.parametrize("seed", range(5))
def test_every_job_runs_once_and_after_its_parents(tmp_path: Path, seed: int) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(replicates=2, yardsticks=("coarse", "one_pass")), store)
    _, order = simulate(made, store, 3, rng=random.Random(seed))
    assert sorted(order) == sorted(made.to_do)
    for key in order:
        assert all(order.index(parent) < order.index(key) for parent in made.jobs[key][0].parents.values())


def test_a_failed_training_fails_its_trials_and_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(), store)
    broken = next(key for key, (job, e) in made.jobs.items() if job.stage == "refiner" and e.refiner.schedule == "linear")
    schedule, order = simulate(made, store, 2, fail=broken)
    failed = {t.id for t in made.trials if t.role == "trial" and t.experiment.refiner.schedule == "linear"}
    assert set(schedule.failed_trials) == failed
    assert {t for t, s in tables.statuses(store, "tiny").items() if s == "failed"} == failed
    assert set(tables.scan(store, "trials", "tiny")["error"].to_pylist()) == {"bang"}
    assert not {t.jobs[-1].key for t in made.trials if t.id in failed} & set(order)


def test_a_wide_training_waits_for_room_and_is_not_starved(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(replicates=2), store)
    with Claims(store, "tiny") as claims:
        schedule = Schedule(made, units_of(made, 4, workers=3), store, claims, 4, "")
        while (unit := schedule.take()) is not None or schedule.running:
            if unit is None:
                unit = next(iter(schedule.running.values()))
                for task in unit.tasks:
                    schedule.finish_task(Outcome(task.job.key, task.job.stage, "done", 0.0))
                schedule.complete(unit.id)
            assert schedule.busy <= 4
        assert schedule.is_finished


def test_a_training_on_one_node_gets_its_node_emptied_and_leaves_the_rest_to_small_units(tmp_path: Path) -> None:
    store, shape = Store(tmp_path), Placement(workers=2, one_node=True)
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert (shape.whole(nodes), shape.whole([{"CPU": 1.0}] * 4), Placement(workers=2).whole(nodes)) == (2, 0, None)
    with pytest.raises(Missing, match="largest node has 1"):
        slots(shape, [{"CPU": 1.0}] * 4)
    for wrong in (Placement(workers=1, one_node=False), Placement(workers=2)):
        assert slots(wrong, nodes) == 6
    for given in ({"workers": 1}, {"workers": 2, "min_workers": 1}):
        with pytest.raises(BadRequest, match="one-node"):
            Placement(one_node=True, **given)
    made = planning.make(tiny(schedules=("cosine", "linear", "sigmoid", "scaled_linear"), replicates=2, yardsticks=()), store)
    refiners = [u for u in units_of(made, 6, workers=2) if u.tasks[0].job.stage == "refiner"]
    wide, small = refiners[:3], [dataclasses.replace(u, workers=1) for u in refiners[3:]]
    with Claims(store, "tiny") as claims:
        schedule = Schedule(made, [*wide, *small], store, claims, slots(shape, nodes), "")
        schedule.whole = shape.whole(nodes)
        schedule.made |= {parent for unit in refiners for parent in unit.tasks[0].job.parents.values()}
        first, second = schedule.take(), schedule.take()
        assert first is not None
        assert second is not None
        assert first.workers == second.workers == 2
        assert schedule.take() is None  # two places are free, but which ones? both trainings may still wait for theirs
        schedule.advanced(first.id, 8.0)
        assert schedule.take() is None
        schedule.advanced(second.id, 8.0)
        rest = [schedule.take(), schedule.take(), schedule.take()]
        assert [u and u.workers for u in rest] == [1, 1, None]  # not the third training: no node is free for it
        schedule.complete(first.id)
        third = schedule.take()
        assert third is not None
        assert third.workers == 2


def test_a_wide_training_starts_with_fewer_workers_where_the_cluster_has_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(), store)
    refiners = [u for u in units_of(made, 4, workers=4) if u.workers == 4][-2:]
    with Claims(store, "tiny") as claims:
        for least, places, starts in ((0, 3, False), (3, 3, True), (3, 2, False), (2, 8, True)):
            schedule = Schedule(made, refiners, store, claims, places, "", least=least)
            schedule.made |= {parent for unit in refiners for parent in unit.tasks[0].job.parents.values()}
            assert (schedule.take() is not None) == starts
            if starts and places < 8:
                assert schedule.take() is None  # it holds all there is
            elif starts:
                assert schedule.take() is not None
    assert slots(Placement(workers=4, min_workers=2), [{"CPU": 3.0}]) == 3
    with pytest.raises(Missing, match="over 2 workers"):
        slots(Placement(workers=4, min_workers=2), [{"CPU": 1.0}])
    with pytest.raises(BadRequest, match="min-workers"):
        Placement(workers=2, min_workers=3)


def test_what_needs_no_gpu_runs_beside_what_does_and_holds_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(replicates=2, steps=(1, 2, 4)), store)
    units = units_of(made, 2, apart=True)
    assert sorted(t.job.key for u in units for t in u.tasks) == sorted(made.to_do)
    for unit in units:
        stages = {t.job.stage for t in unit.tasks}
        assert len(stages) == 1
        assert unit.on_cpu == (stages <= {"data", "counts"} or unit.tasks[0].job.name == "simulated")
    together, done = 0, []
    with Claims(store, "tiny") as claims:
        schedule = Schedule(made, units, store, claims, 2, "", gpus=1.0)
        schedule.cpu_slots = 1
        rng = random.Random(0)
        while not schedule.is_finished:
            while (taken := schedule.take()) is not None:
                schedule.started(taken.id)
            running = list(schedule.running.values())
            on_cpu = [u for u in running if u.on_cpu]
            assert len(on_cpu) <= 1
            assert schedule.busy == len(running) - len(on_cpu) <= 2
            together = max(together, len(running))
            assert all(schedule.gpu_time.held[u.id].workers == (not u.on_cpu) for u in running)
            unit = rng.choice(running)
            for task in unit.tasks:
                done.append(task.job.key)
                schedule.finish_task(Outcome(task.job.key, task.job.stage, "done", 0.0))
            schedule.complete(unit.id)
    assert together == 3
    assert sorted(done) == sorted(made.to_do)


def test_room_beside_gpu_workers() -> None:
    two = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 16.0}]
    assert Placement(gpus=1, cpus=4).beside(two) == 16  # the CPUs of the GPU node are taken
    assert Placement(gpus=1, cpus=3).beside(two) == 8 + 16
    assert Placement(gpus=1, cpus=3, concurrency=2).beside(two) == 2
    assert Placement(cpus=3).beside(two) == 0


@pytest.mark.parametrize("apart", [False, True])
def test_two_drivers_share_the_work_and_do_nothing_twice(tmp_path: Path, apart: bool) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(replicates=2), store)
    done: list[str] = []
    with Claims(store, "tiny") as mine, Claims(store, "tiny") as theirs:
        both = [Schedule(made, units_of(made, 2, apart=apart), store, claims, 2, "") for claims in (mine, theirs)]
        seen_waiting = False
        for _ in range(400):
            for schedule in both:
                schedule._checked = 0.0  # look again at once
                unit = schedule.take()
                if unit is None:
                    seen_waiting |= "another driver" in schedule.why_waiting()
                    continue
                for task in unit.tasks:
                    store.put(task.job.stage, task.job.key, lambda out: None, {})
                    for end in task.ends:
                        row = tables.trial_row(end.experiment, end.jobs, {}, trial=end.trial, role=end.role, label=end.label, status="done")
                        tables.write_trial(store, "tiny", row)
                    done.append(task.job.key)
                    schedule.finish_task(Outcome(task.job.key, task.job.stage, "done", 0.0, trials=tuple(e.trial for e in task.ends)))
                schedule.complete(unit.id)
            if all(s.is_finished for s in both):
                break
        assert all(s.is_finished for s in both)
    assert sorted(done) == sorted(made.to_do)


def test_a_driver_is_idle_when_all_that_is_left_lies_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(), store)
    with Claims(store, "tiny") as mine, Claims(store, "tiny") as theirs:
        schedule = Schedule(made, units_of(made, 2), store, mine, 2, "")
        data = made.to_do[0]
        assert theirs.take(data) is None
        assert schedule.take() is None
        assert not schedule.is_idle  # not yet: the other may be about to finish
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 10)
        assert schedule.is_idle
        assert "another driver" in schedule.why_waiting()
        theirs.release(data)
        assert schedule.take() is not None
        assert not schedule.is_idle


def test_a_claim_of_a_dead_process_is_taken_over_at_once_and_of_a_living_one_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    living = Claims(store, "s")
    assert living.take("job") is None
    assert Claims(store, "s").take("job")["pid"] == living.who["pid"]  # type: ignore[index]
    code = f"from idgbr.store import Store; from sweeps.run.claims import Claims; Claims(Store({str(tmp_path)!r}), 's').take('other')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "claims" / "other.json").exists()
    assert Claims(store, "s").take("other") is None


def test_a_driver_of_another_host_is_dead_when_its_counter_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, here = Store(tmp_path), Claims(Store(tmp_path), "s")
    there = {"driver": "far", "host": "elsewhere", "pid": 1, "started": "1", "study": "s"}
    store.write_bytes("claims/job.json", json.dumps(there).encode())
    store.write_bytes("claims/drivers/far.json", json.dumps(there | {"beat": 5}).encode())
    assert here.take("job") == there
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)
    store.write_bytes("claims/drivers/far.json", json.dumps(there | {"beat": 6}).encode())
    assert here.take("job") == there  # it beats
    monkeypatch.setattr(time, "monotonic", lambda: now + 2000)
    assert here.take("job") is None


@pytest.mark.parametrize(
    ("placement", "nodes", "message"),
    [
        (Placement(gpus=4), [{"CPU": 8.0, "GPU": 2.0}], "4 GPUs on one node; the cluster's largest node has 2"),
        (Placement(cpus=16), [{"CPU": 8.0}, {"CPU": 8.0}], "16 CPUs on one node"),
        (Placement(gpus=1), [{"CPU": 8.0}], "--gpus 0"),
        (Placement(workers=5), [{"CPU": 2.0}, {"CPU": 2.0}], "needs 5 places"),
        (Placement(cpus=4, gpus=1), [{"CPU": 8.0}, {"GPU": 1.0, "CPU": 1.0}], "together"),
    ],
)
def test_a_shape_that_no_node_can_hold_is_refused_with_the_reason(placement: Placement, nodes: list, message: str) -> None:
    with pytest.raises(Missing, match=message):
        slots(placement, nodes)


def test_concurrency_is_the_floor_of_every_node() -> None:
    assert slots(Placement(cpus=3), [{"CPU": 8.0}, {"CPU": 4.0}]) == 3
    assert slots(Placement(cpus=1, gpus=0.5), [{"CPU": 8.0, "GPU": 2.0}]) == 4
    assert slots(Placement(concurrency=2), [{"CPU": 8.0}]) == 2


def test_the_watchdog_says_why_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepProgress("s", 3, why=lambda: "1 unit is in the hands of another driver (node7 process 12)", quiet_s=0.2):
        time.sleep(0.8)
    (said, *_) = [line for line in capsys.readouterr().err.splitlines() if "nothing has moved" in line]
    assert "node7" in said


def test_progress_is_plain_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepProgress("s", 2) as progress:
        progress.start("a", "refiner 1234")
        progress.report("a", {"done": 3, "total": 9, "loss": 0.25})
        progress.finish("done", 1.0, "steps=4", 0.7)
        progress.finish("failed", 1.0)
    told = capsys.readouterr().err
    assert "1 of 2 jobs done" in told
    assert "1 failed" in told
    assert "0.7000 (steps=4)" in told
    assert "\x1b" not in told


def test_time_to_go_is_counted_by_stage_for_a_training_takes_longer_than_a_sampling() -> None:
    progress = SweepProgress("s", 12, workers=2, stages={"data": 1, "refiner": 3, "counts": 8})
    assert progress.to_go() == ""
    progress.finish("done", 1.0, stage="data")
    assert progress.to_go() == ""
    progress.finish("done", 60.0, stage="refiner")
    assert progress.to_go() == "at least 60 s to go"  # two more of 60 s on two workers; of the counts nothing is known
    progress.finish("done", 2.0, stage="counts")
    assert progress.to_go() == "about 67 s to go"
    known = SweepProgress("s", 12, total_seconds=100.0, workers=2, stages={"refiner": 3})
    assert known.to_go() == "about 50 s to go"


def test_halving_keeps_the_best_half_and_never_stops_the_first() -> None:
    assert survives(0.1, [], 2)
    assert survives(0.9, [0.1, 0.2, 0.3], 2)
    assert not survives(0.1, [0.9], 2)
    rng = random.Random(1)
    kept = []
    values: list[float] = []
    for _ in range(400):
        value = rng.random()
        if survives(value, values, 4):
            kept.append(value)
        values.append(value)
    assert 0.2 < len(kept) / 400 < 0.35  # about a quarter
    assert min(kept[100:], default=1.0) > 0.6


def test_a_rung_reads_all_rivals_in_one_listing(tmp_path: Path) -> None:
    store, counted = unkind_store(tmp_path / "store", tmp_path / "cache")
    calls: list[int] = []
    for n in range(40):
        halving = Halving(Watch("s", f"t{n:02}", "boundary_iou", True, rungs=(16,)), store, None, None)
        before = counted.calls
        halving.report(images=16, loss=1e-7 * (n + 1))
        calls.append(counted.calls - before)
        assert halving.is_pruned == (n > 0)  # each is worse than the one before
    assert max(calls) == calls[0]  # however many rivals there are
    assert "of 40" in halving.reason
    assert halving._others(16) == [-1e-7 * (n + 1) for n in range(39)]
    store.write_bytes("studies/s/rungs/16/old.json", b'{"value": -0.5}')  # of an older version
    assert sorted(halving._others(16))[0] == -0.5
