"""Jobs that show no sign of life: their stacks are written, their process ends, and they are tried again. No Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_sweeps import tiny

from idgbr import stages
from idgbr.config import Runtime
from idgbr.silence import SignsOfLife
from idgbr.store import Store
from sweeps.run import plan as planning
from sweeps.run import tuner
from sweeps.run.capacity import Capacity
from sweeps.run.claims import Claims
from sweeps.run.control import ControlWriter
from sweeps.run.limits import RunLimits
from sweeps.run.placement import Placement
from sweeps.run.progress import SweepProgress
from sweeps.run.schedule import Schedule
from sweeps.run.units import Task, units_of
from sweeps.run.worker import WorkerContext, do_task, log_of

HANGS = {
    "in Python": "import threading; threading.Event().wait(60)",
    "holding the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(60)",
}


@pytest.mark.parametrize("where", HANGS)
def test_a_hanging_process_writes_its_stacks_and_ends(tmp_path: Path, where: str) -> None:
    program = f"""
import sys
from pathlib import Path
from idgbr.silence import SignsOfLife
def stuck_here():
    {HANGS[where]}
with SignsOfLife(0.5, Path(sys.argv[1])).watched():
    stuck_here()
"""
    log = tmp_path / "logs" / "job.log"
    ended = subprocess.run([sys.executable, "-c", program, str(log)], timeout=30, capture_output=True)
    assert ended.returncode == 1
    assert "stuck_here" in log.read_text()


def test_signs_of_life_start_the_clock_again(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    life = SignsOfLife(0.4, log, ends=False)
    report, stop = life.reporting(None), life.asking(None)
    with life.watched():
        for _ in range(4):
            time.sleep(0.2)
            report(done=1)
            time.sleep(0.2)
            assert not stop()
        assert not log.read_text()
        time.sleep(0.6)
    assert "test_signs_of_life" in log.read_text()


def test_a_silent_job_is_described_in_its_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(), store)
    job, experiment = made.jobs[made.to_do[0]]
    monkeypatch.setattr(stages, "run", lambda *_, **__: time.sleep(0.5))
    context = WorkerContext(store, Runtime(), logs=tmp_path / "logs", silent_s=0.2, is_own_process=False)
    assert do_task(Task(job, experiment), context).status == "done"
    log = log_of(context.logs, job)
    assert log is not None
    assert "do_task" in log.read_text()


def test_a_worker_that_ended_in_silence_is_an_outage_that_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    made = planning.make(tiny(), store)
    clock = [time.monotonic()]
    lost: list[str] = []
    with Claims(store, "tiny") as claims:
        schedule = Schedule(made, units_of(made, 2), store, claims, 2, "", limits=RunLimits(max_failures=2))
        schedule.on_lost = lambda unit, error: lost.append(error)
        context = WorkerContext(store, Runtime(), logs=tmp_path / "logs", silent_s=600.0)
        run = tuner.Run(schedule, SweepProgress("tiny", 1), Capacity(Placement()), ControlWriter(None), context)  # type: ignore[arg-type]
        for silence_s in (30.0, 601.0):
            monkeypatch.setattr(time, "monotonic", lambda: clock[0])
            clock[0] += 100.0  # the pause before a lost unit is tried again
            unit = schedule.take()
            assert unit is not None
            run.units["trial"] = unit.id
            run.heard["trial"] = clock[0]
            run.started("trial", "node1")
            clock[0] += silence_s
            run.left("trial", True)
    assert lost[0] == tuner.LOST
    assert "601 s without a report (--silent-after 600)" in lost[1]
    assert str(log_of(context.logs, unit.tasks[0].job)) in lost[1]
    assert schedule.waiting[unit.id].losses == 2
