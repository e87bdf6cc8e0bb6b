"""Places that are there and take no unit: held by a worker that has returned one, or of nodes that come back. No Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_sweeps import tiny

from idgbr.config import Runtime
from idgbr.store import Store
from sweeps.run import capacity, tuner
from sweeps.run import plan as planning
from sweeps.run.capacity import Capacity
from sweeps.run.claims import Claims
from sweeps.run.control import ControlReader, ControlWriter, Directives
from sweeps.run.placement import Placement
from sweeps.run.progress import SweepProgress
from sweeps.run.schedule import IDLE_S, RETURNS, Schedule
from sweeps.run.units import Outcome, Unit, units_of
from sweeps.run.worker import WorkerContext

TWO_NODES = [{"CPU": 1.0}, {"CPU": 1.0}]


class Actor:
    """The methods of the control actor, in this process."""

    def __init__(self) -> None:
        self.held = Directives()
        self.put = self.get = self

    def remote(self, *directives: Directives) -> Directives:
        self.held = directives[0] if directives else self.held
        return self.held


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


@pytest.fixture
def schedule(tmp_path: Path, clock: list[float]) -> Iterator[Schedule]:
    """Of two places; its data are made, so that two units may start: the backbone and simulated coarse maps."""
    store = Store(tmp_path)
    made = planning.make(tiny(overrides={"coarse.source": "simulated"}), store)
    with Claims(store, "tiny") as claims:
        state = Schedule(made, units_of(made, 2), store, claims, 2, "")
        data = state.take()
        assert data is not None
        state.finish_task(Outcome(data.id, "data", "done", 0.0), data.id)
        state.complete(data.id)
        yield state


def returned(unit: Unit) -> Outcome:
    return Outcome(unit.id, unit.tasks[0].job.stage, "returned", 0.0)


def started(run: tuner.Run, trial: str, device: str) -> Unit:
    unit = run.next()
    assert isinstance(unit, Unit)
    run.units[trial] = unit.id
    run.started(trial, device)
    return unit


def test_when_workers_that_returned_their_units_hold_every_place_the_run_goes_on_and_they_let_go(
    schedule: Schedule, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "node_resources", lambda: TWO_NODES)
    actor: Any = Actor()
    context = WorkerContext(schedule.store, Runtime())
    run = tuner.Run(schedule, SweepProgress("tiny", 1), Capacity(Placement()), ControlWriter(actor), context)
    lost = [started(run, "a", "node1"), started(run, "b", "node2")]  # each is placed on the device that it avoids
    run.outcome("a", returned(lost[0]))
    run.next()
    assert not actor.held.crowded  # the other place may become free
    run.outcome("b", returned(lost[1]))
    clock[0] += IDLE_S + 1
    assert run.next() is None, "a run that has work is not over"
    assert actor.held == Directives(crowded=True)
    run.left("a", False)
    run.left("b", False)
    again = [started(run, "c", "node2"), started(run, "d", "node1")]
    assert sorted(u.id for u in again) == sorted(u.id for u in lost)
    assert [u.returned for u in again] == [1, 1] < [RETURNS] * 2
    assert not actor.held.crowded


def test_devices_that_were_left_out_are_used_again_when_no_other_is_left(
    schedule: Schedule, clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices of nodes that are gone count among those seen, of which at most a half is left out."""
    monkeypatch.setattr(capacity, "node_resources", lambda: TWO_NODES)
    actor: Any = Actor()
    run = tuner.Run(
        schedule, SweepProgress("tiny", 1), Capacity(Placement()), ControlWriter(actor), WorkerContext(schedule.store, Runtime())
    )
    for lost in ("node3", "node4"):
        schedule.health.used(lost)
    for node in ("node1", "node2"):
        for unit in ("u", "v"):
            schedule.health.failed(node, unit, "CUDA error")
    units = [started(run, "a", "node1"), started(run, "b", "node2")]
    run.outcome("a", returned(units[0]))
    run.next()
    assert actor.held.left_out == {"node1", "node2"}
    run.outcome("b", returned(units[1]))
    run.next()
    assert actor.held == Directives(crowded=True)
    assert "used again, for nothing else is left: node1, node2" in capsys.readouterr().err
    run.left("a", False)
    run.left("b", False)
    clock[0] += 10.0  # a unit that was returned pauses for a moment
    assert isinstance(run.next(), Unit)


@pytest.mark.parametrize(
    ("directives", "held_s"),
    [
        (Directives(), tuner.HOLD_S),
        (Directives(crowded=True), 0.0),
        (Directives(over=True), 0.0),
        (Directives(crowded=True, left_out=frozenset({"node1"})), None),
    ],
)
def test_how_long_a_worker_holds_a_place(directives: Directives, held_s: float | None, clock: list[float], monkeypatch: Any) -> None:
    reader: Any = ControlReader(None)  # type: ignore[arg-type]
    reader.last, began = directives, clock[0]

    def current() -> Directives:
        if clock[0] - began > 10 * tuner.HOLD_S:
            reader.last = Directives(stop=True)
        return reader.last

    monkeypatch.setattr(reader, "directives", current)
    tuner.hold("node1", reader)
    assert clock[0] - began == pytest.approx(10 * tuner.HOLD_S + tuner.HOLD_POLL_S if held_s is None else held_s, abs=0.01)


def test_a_driver_between_two_runs_sees_nodes_that_come_back(
    schedule: Schedule, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    came = clock[0] + 20
    monkeypatch.setattr(capacity, "node_resources", lambda: TWO_NODES if clock[0] >= came else [])
    schedule.slots = 0
    unit = tuner.next_unit(schedule, SweepProgress("tiny", 1), Capacity(Placement(), wait_s=60.0))
    assert isinstance(unit, Unit)
    assert clock[0] >= came


def test_a_driver_whose_nodes_are_lost_waits_for_them_and_then_gives_up(
    schedule: Schedule, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "node_resources", list)
    schedule.slots, began = 0, clock[0]
    assert tuner.next_unit(schedule, SweepProgress("tiny", 1), Capacity(Placement(), wait_s=60.0)) is None
    assert 60.0 < clock[0] - began < 70.0
    assert "for 6" in str(schedule.fatal)


def test_a_writer_of_a_new_run_replaces_what_the_actor_holds_of_the_last() -> None:
    actor: Any = Actor()
    ControlWriter(actor).send(Directives(over=True))
    ControlWriter(actor).send(Directives())
    assert actor.held == Directives()
