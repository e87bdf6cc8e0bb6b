"""The page about a study, with and without drivers, and the message at the end of a run."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_sweeps import sweep, tiny

from idgbr.errors import BadRequest, SomeFailed
from idgbr.store import Store
from sweeps import tables
from sweeps.run import commands, live
from sweeps.run import plan as planning
from sweeps.run.claims import Claims, Driver, Heartbeats, drivers
from sweeps.run.goals import score_of
from sweeps.run.live import LiveRecord, name_of
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement
from sweeps.run.progress import SweepProgress
from sweeps.run.schedule import Schedule
from sweeps.run.units import units_of
from sweeps.run.watch import watch


def run(store: Store, **more: object) -> None:
    commands.run(tiny(), store, Placement(), RunOptions(local=True, preflight=False, show=False, **more))  # type: ignore[arg-type]


def test_the_page_of_a_finished_study_names_the_best_trial_and_ends(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    watch("tiny", store)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 5 of 5 trials done, 0 open"
    definition = json.loads(store.read_bytes("studies/tiny.json") or b"")
    scores = {facts["label"]: score_of(store, facts["counts"], "boundary_iou") for facts in definition["trials"].values()}
    best = max(scores.values())
    assert lines[1].startswith(f"best boundary_iou {best:.4f}: ")
    assert scores[lines[1].partition(": ")[2]] == best
    assert "no driver runs" in lines


def test_failures_are_named_the_last_first_and_the_watch_ends_as_the_study_did(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    trials = list(planning.expand(tiny()))
    for n, trial in enumerate(trials[:4]):
        store.delete(tables.part_name("trials", "tiny", trial.id))
        row = tables.trial_row(trial.experiment, trial.jobs, {}, trial=trial.id, role="trial", label="", status="failed", error=f"bang {n}")
        tables.write_trial(store, "tiny", row)
        path = Path(store.base) / tables.part_name("trials", "tiny", trial.id, "failed")
        os.utime(path, ns=(n * 10**9, n * 10**9))
    with pytest.raises(SomeFailed, match="4 of 5 trials of tiny failed"):
        watch("tiny", store)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 1 of 5 trials done, 4 failed, 0 open"
    assert [line.rpartition(": ")[2] for line in lines if line.startswith("failed")] == ["bang 3", "bang 2", "bang 1"]


def test_what_a_driver_does_is_seen_from_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units by node, with device and progress; GPU-hours stay when the driver has ended."""
    store = Store(tmp_path)
    made = planning.make(tiny(), store)
    planning.record_definition(made, store)
    with Claims(store, "tiny") as claims:
        schedule = Schedule(made, units_of(made, 4), store, claims, 4, "", gpus=2.0)
        progress = SweepProgress("tiny", 5, workers=4)
        record = LiveRecord(store, claims.who, schedule, progress)
        unit = schedule.take()
        assert unit is not None
        progress.start(unit.id, unit.title)
        record.write()
        watch("tiny", store, once=True)
        assert "waiting for a place: 1 data" in capsys.readouterr().out
        schedule.started(unit.id, "node7 3fa2c1d0 GPU 0,1")
        progress.report(unit.id, {"done": 3, "total": 8})
        record.lost.append("refiner 12345678: its worker was lost")
        held = schedule.gpu_time.held[unit.id]
        schedule.gpu_time.held[unit.id] = type(held)(held.began - 1800, held.workers, held.device)
        record.write()
        watch("tiny", store, once=True)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "tiny: 0 of 5 trials done, 5 open"
        assert "GPU-hours 1.00, 1.00 of them by what runs now" in lines
        assert f"driver {socket.gethostname()} process {os.getpid()}: 4 workers, 0 s" in lines
        assert lines[lines.index("node7 3fa2c1d0: 1 data") + 1] == f"  {unit.title}  GPU 0,1  30 min  3/8"
        assert "tried again: refiner 12345678: its worker was lost" in lines
        schedule.complete(unit.id)
        record.write(is_over=True)
    watch("tiny", store, once=True)
    lines = capsys.readouterr().out.splitlines()
    assert "GPU-hours 1.00" in lines
    assert "no driver runs; python -m sweeps run tiny goes on" in lines


def test_many_units_are_counted_by_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    planning.record_definition(planning.make(tiny(), store), store)
    with Claims(store, "tiny") as claims:
        units = [
            live.LiveUnit(unit=str(n), title=f"refiner {n}", device=f"node{n % 40:02} aa GPU {n % 8}", beside="", seconds=1.0)
            for n in range(320)
        ]
        record = live.Live(
            driver=claims.who,
            at=0.0,
            seconds=1.0,
            is_over=False,
            workers=320,
            gpu_hours=0.0,
            units=units,
            lost=[],
            to_go="about 1 min to go",
        )
        store.write_bytes(name_of("tiny", claims.id), json.dumps(record).encode())
        watch("tiny", store, once=True)
    lines = capsys.readouterr().out.splitlines()
    assert "node00 aa: 8 refiner" in lines
    assert "and 16 more nodes" in lines
    assert len(lines) < 35


def test_the_page_follows_a_run_of_another_process_to_its_end(store: Store, study_file: str) -> None:
    trial = next(iter(planning.expand(tiny())))
    store.delete(tables.part_name("trials", "tiny", trial.id))
    store.delete(store.folder("counts", trial.jobs[-1].key))
    watcher = sweep("watch", "tiny", "--every-s", "0.2", store=store.base)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "tiny: 4 of 5 trials done, 1 open\n"
    driver = sweep("run", f"{study_file}:study", "--local", "--no-show", "--no-preflight", store=store.base)
    pages = watcher.stdout.read().strip().split("\n\n")  # to the end of the watch
    assert watcher.wait() == 0
    assert driver.wait(timeout=60) == 0
    assert "no driver runs; python -m sweeps run tiny goes on" in pages[0]
    assert pages[-1].startswith("tiny: 5 of 5 trials done, 0 open")
    assert pages[-1].endswith("no driver runs")
    record = live.lives(store, "tiny")[-1]  # the first is of the run that made the store
    assert (record["driver"]["pid"], record["is_over"]) == (driver.pid, True)


def test_a_killed_driver_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    """A process whose parent has not asked for its end is still in /proc: its claims kept others waiting."""
    code = "import os, sys, time\nfrom idgbr.store import Store\nfrom sweeps.run.claims import Claims\n"
    code += f"with Claims(Store({str(tmp_path)!r}), 'other') as claims:\n    claims.take('unit')\n"
    code += "    print('there', flush=True)\n    time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "there\n"
    store = Store(tmp_path)
    with Claims(store, "mine") as mine:
        holder = mine.take("unit")
        assert holder is not None
        assert holder["pid"] == other.pid
        other.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # has ended, and is still there
        assert Path(f"/proc/{other.pid}").exists()
        assert mine.take("unit") is None
        assert [driver["driver"] for driver in drivers(store)] == [mine.id]
    other.wait()


def test_a_driver_of_another_host_is_dead_when_its_counter_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    store, beats = Store(tmp_path), Heartbeats(Store(tmp_path))
    far: Driver = {"driver": "far", "host": "elsewhere", "pid": 1, "started": "1", "study": "tiny"}
    seen = []
    for beat, clock[0] in ((1, 0.0), (2, 20.0), (2, 45.0), (2, 51.0), (3, 60.0)):
        store.write_bytes("claims/drivers/far.json", json.dumps(far | {"beat": beat}).encode())
        seen.append(beats.is_alive(far))
    assert seen == [True, True, True, False, True]


def test_a_unit_that_is_silent_is_named_though_others_report(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = SweepProgress("tiny", 3)
    progress.start("a", "refiner a")
    progress.start("b", "refiner b")
    named = []
    for minute in range(26):
        clock[0] = 60.0 * minute
        progress.report("b", {"done": minute, "total": 30})
        named += [(minute, title) for title in progress.silent()]
    assert named == [(10, "refiner a"), (20, "refiner a")]
    progress.leave("a")
    clock[0] += 6000.0
    assert progress.silent() == ["refiner b"]


# ---- the message at the end ------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Address of a server on loopback, and what was posted to it."""
    got: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204 if self.path == "/here" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not to the terminal."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()


def test_the_end_is_posted(store: Store, listener: tuple[str, list[dict[str, object]]]) -> None:
    url, got = listener
    run(store, notify=f"{url}/here")
    (message,) = got
    assert {name: message[name] for name in ("study", "store", "end", "trials", "done", "failed", "open")} == {
        "study": "tiny", "store": store.root, "end": "done", "trials": 5, "done": 5, "failed": 0, "open": 0,
    }  # fmt: skip


def test_a_command_gets_the_end_on_its_standard_input(store: Store, tmp_path: Path) -> None:
    trial = next(iter(planning.expand(tiny())))
    store.delete(tables.part_name("trials", "tiny", trial.id))
    row = tables.trial_row(trial.experiment, trial.jobs, {}, trial=trial.id, role="trial", label="", status="failed", error="bang")
    tables.write_trial(store, "tiny", row)
    with pytest.raises(SomeFailed):
        run(store, notify=f"tee {tmp_path / 'message'}")
    message = json.loads((tmp_path / "message").read_text())
    assert (message["end"], message["failed"], message["done"]) == ("failed", 1, 4)
    assert "1 of 5 trials of tiny failed" in message["message"]


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/nobody", "{url}/error", "false", "sh -c 'echo no such room >&2; exit 4'"])
def test_a_message_that_cannot_be_sent_is_one_line(
    store: Store, target: str, listener: tuple[str, list[dict[str, object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    target = target.replace("{url}", listener[0])
    run(store, notify=target)
    lines = [line for line in capsys.readouterr().err.splitlines() if "--notify" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"--notify {target} ")


def test_a_target_that_cannot_be_told_is_refused_before_anything_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for target in ("ftp://host/x", "no-such-program-here -v", "'unclosed"):
        with pytest.raises(BadRequest, match="--notify"):
            run(store, notify=target)
    assert not store.names("", recursive=True)
