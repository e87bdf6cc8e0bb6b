"""The driver of a study of 10,000 trials on 1,000 nodes, without the nodes: the real plan, units, schedule and claims
on a clock of their own. The last line is one JSON object.

    python benchmarks/large_cluster.py [--trials 10000] [--nodes 1000] [--train-s 180] [--tune-s 0.025]

Nodes are simulated: a node takes a unit, holds it for as long as its jobs take, and reports. The driver is real code and
one thread: what it does takes as many seconds as it takes here of a CPU, so a busy machine changes nothing, plus
`--tune-s` for each unit, which is what Ray Tune adds (`benchmarks/sweep.py --simulate`). The times of jobs are those of
the published study of fields on one H100: 180 s a refiner, 11 s a sampling, 7 s a count.

driver_mb, driver_mb_a_1000_jobs   resident memory at the end, and what plan and schedule have added to it
driver_requests                    to the store, for claims, heartbeats, records of progress and looks for what is there,
                                   as pyarrow makes them on S3: a small file is two (HEAD, GET), a look for a file that is
                                   not there two (HEAD, LIST), a folder one for 1,000 names
worker_requests                    24 a trial, as counted by a server (tests/sweeps/test_store_requests.py)
idle_share                         of the nodes' time until the last trial
idle_share_free_driver             the same if the driver took no time: what lies in the study itself
driver_busy_share                  of the wall time
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sweep import TINY

from idgbr.store import Store
from sweeps.run import claims as claims_module
from sweeps.run import plan as planning
from sweeps.run import schedule as schedule_module
from sweeps.run.claims import BEAT_S, Claims
from sweeps.run.live import WRITE_S
from sweeps.run.schedule import Schedule
from sweeps.run.units import Outcome, Unit, units_of
from sweeps.study import Axis, Study

SECONDS = {"data": 2.0, "backbone": 33.0, "coarse": 9.0, "refined": 11.0, "counts": 7.0}  # of one job on one H100
SPREAD = 0.2  # of the time of a training, either way
A_PAGE = 1000  # names in one answer of S3
REQUESTS_A_TRIAL = 24


class Counted(Store):
    """A store that counts the requests its small files would make on S3."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.is_local = False  # as far as the driver can tell
        self.requests = Counter[str]()

    def write_bytes(self, name: str, data: bytes) -> None:
        self.requests["PUT"] += 1
        super().write_bytes(name, data)

    def read_bytes(self, name: str) -> bytes | None:
        found = super().read_bytes(name)
        self.requests.update(HEAD=1, GET=found is not None)
        return found

    def infos(self, folder: str, recursive: bool = False) -> list[Any]:
        found = super().infos(folder, recursive)
        self.requests["LIST"] += max(1, math.ceil(len(found) / A_PAGE))
        return found

    def are_files(self, names: list[str]) -> list[bool]:
        found = super().are_files(names)
        self.requests.update(HEAD=len(names), LIST=len(names) - sum(found))
        return found

    def delete(self, name: str) -> None:
        self.requests.update(HEAD=1, DELETE=1)
        super().delete(name)


def study(trials: int) -> Study:
    """Five step counts of each refiner, as in the studies of steps."""
    rates = tuple(1e-4 * (1 + i / trials) for i in range(trials // 5))
    axes = (Axis("refiner.lr", rates), Axis("sampler.steps", (1, 2, 4, 8, 16)))
    return Study("large", "synthetic", axes=axes, overrides=TINY, yardsticks=())


class Driver:
    """A schedule on a clock of its own, and nodes that only take time."""

    def __init__(self, store: Store, trials: int, nodes: int, train_s: float, tune_s: float):
        self.store, self.nodes, self.train_s, self.tune_s = store, nodes, train_s, tune_s
        self.made = planning.make(study(trials), store)
        self.now = self.free_at = self.busy_s = 0.0
        self.rng = random.Random(0)

    def seconds(self, unit: Unit) -> float:
        """What the jobs of a unit take on a node."""
        return sum(SECONDS.get(t.job.stage) or self.train_s * self.rng.uniform(1 - SPREAD, 1 + SPREAD) for t in unit.tasks)

    def works(self, began: float, more_s: float = 0.0) -> None:
        """The driver has worked since `began`, in CPU seconds, one thing after the other."""
        took = time.process_time() - began + more_s
        self.busy_s += took
        self.free_at = max(self.free_at, self.now) + took

    def run(self, *, is_free: bool = False) -> dict[str, float]:
        """To the end of the schedule; `is_free`: what the driver does takes no time."""
        held, ends = 0.0, []
        rows = Path(self.store.base) / "tables/trials/study=large"
        rows.mkdir(parents=True, exist_ok=True)
        with Claims(self.store, "large") as claims:
            schedule = Schedule(self.made, units_of(self.made, self.nodes), self.store, claims, self.nodes, "")
            while not schedule.is_finished:
                while True:
                    began = time.process_time()
                    unit = schedule.take()
                    self.works(began, self.tune_s if unit else 0.0)
                    if unit is None:
                        break
                    starts = self.now if is_free else self.free_at
                    took = self.seconds(unit)
                    held += took
                    heapq.heappush(ends, (starts + took, unit.id))
                self.now, unit_id = heapq.heappop(ends)
                began = time.process_time()
                for task in schedule.running[unit_id].tasks:
                    for end in task.ends:
                        (rows / f"{end.trial}.parquet").touch()
                    outcome = Outcome(task.job.key, task.job.stage, "done", 0.0, trials=tuple(end.trial for end in task.ends))
                    schedule.finish_task(outcome, unit_id)
                schedule.complete(unit_id)
                self.works(began)
                assert not schedule.failed_trials
            assert len(schedule.done_trials) == len(self.made.trials)
        return {"wall_s": self.now, "held_s": held, "idle_share": 1 - held / (self.now * self.nodes)}


def memory_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def simulate(
    root: Path, trials: int, nodes: int, train_s: float, tune_s: float, *, is_free: bool
) -> tuple[Driver, dict[str, float], Counter[str]]:
    """One study from an empty store."""
    store = Counted(root)
    driver = Driver(store, trials, nodes, train_s, tune_s)
    store.requests.clear()
    clock = types.SimpleNamespace(monotonic=lambda: driver.now)
    before = schedule_module.time
    schedule_module.time = clock  # type: ignore[assignment]
    claims_module.BEAT_S = 1e6  # heartbeats follow the real clock: they are added below
    try:
        found = driver.run(is_free=is_free)
    finally:
        schedule_module.time, claims_module.BEAT_S = before, BEAT_S
    store.requests["PUT"] += round(found["wall_s"] / BEAT_S + found["wall_s"] / WRITE_S)
    return driver, found, store.requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--train-s", type=float, default=180.0)
    parser.add_argument("--tune-s", type=float, default=0.025)
    o = parser.parse_args()
    before = memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        driver, found, requests = simulate(Path(folder) / "real", o.trials, o.nodes, o.train_s, o.tune_s, is_free=False)
        after = memory_mb()
        _, free, _ = simulate(Path(folder) / "free", o.trials, o.nodes, o.train_s, o.tune_s, is_free=True)
    jobs = len(driver.made.to_do)
    found_out = {
        "trials": o.trials, "nodes": o.nodes, "jobs": jobs, "train_s": o.train_s, "tune_s": o.tune_s,
        "driver_mb": round(after), "driver_mb_a_1000_jobs": round((after - before) / jobs * 1000, 1),
        "driver_requests": dict(requests), "driver_requests_a_trial": round(requests.total() / o.trials, 1),
        "worker_requests": o.trials * REQUESTS_A_TRIAL, "wall_s": round(found["wall_s"]),
        "idle_share": round(found["idle_share"], 3), "idle_share_free_driver": round(free["idle_share"], 3),
        "driver_busy_s": round(driver.busy_s), "driver_busy_share": round(driver.busy_s / found["wall_s"], 3), "load": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(found_out))


if __name__ == "__main__":
    main()
