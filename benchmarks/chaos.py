"""A study on a real Ray cluster on loopback, with its store on a real S3 server, while a seeded script breaks things.

    python benchmarks/chaos.py --minutes 20 --seed 1        rounds of 60 trials, each from an empty store
    python benchmarks/chaos.py --trials 12 --nodes 2        one short round
    python benchmarks/chaos.py --trials 12 --nodes 0        without Ray: the driver does the work; it and the store are disturbed

worker    a busy worker process is killed                  throttle  the store answers half of the requests with SlowDown
node      a node is killed                                 stall     the store answers nothing
join      a node is added                                  away      the store answers everything with an internal error
driver    the driver is killed; the same command again     disk      the disk of a node is full (needs the right to mount)
stop      the driver is interrupted; the same again        device    the device of a node raises errors of CUDA

An event comes every few seconds, but not before a further job has been done: slow machines are disturbed less often. Each round ends with a
comparison: the tables must equal those of a run in one process that nobody disturbed, with one row for each trial and none failed. The last
line is one JSON object; exit code 1 if a round was not survived.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from unkind_server import UnkindServer

from cluster import ray_private
from cluster.node import make_token, package_versions
from cluster.ray_private import RayletDied, patient_start
from cluster.session import START_TRIES
from idgbr.store import Store
from sweeps import tables
from sweeps.run.nodes import QUIET

STUDY = """
from sweeps.study import Axis, Study

TINY = {
    "data.train_scenes": 2, "data.val_scenes": 2, "data.test_scenes": 1, "data.scene_px": 64,
    "backbone.crop_px": 64, "backbone.train_images": 8, "backbone.batch_images": 4, "backbone.warmup_images": 4,
    "coarse.source": "simulated", "coarse.tile_px": 64, "coarse.overlap_px": 16,
    "refiner.channels": (16, 32), "refiner.condition_channels": (16, 32), "refiner.guidance_width": 16, "refiner.crop_px": 32,
    "refiner.batch_images": 8, "refiner.train_images": IMAGES, "refiner.warmup_images": 8, "refiner.checkpoint_images": 8,
    "sampler.tile_px": 64, "sampler.overlap_px": 16, "score.tile_px": 64,
}

def study():
    axes = (Axis("refiner.schedule", ("cosine", "linear", "sigmoid", "scaled_linear")), Axis("sampler.steps", tuple(range(1, STEPS + 1))))
    return Study("chaos", "synthetic", axes=axes, overrides=TINY, yardsticks=())
"""
BROKEN_DEVICE = """
import importlib.abc, importlib.util, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "idgbr.stages":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            run = module.run
            def raising(*args, **more):
                if os.path.exists(os.environ["CHAOS_DEVICE"]):
                    import torch
                    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
                return run(*args, **more)
            module.run = raising
        spec.loader.exec_module = exec_module
        return spec

if "CHAOS_DEVICE" in os.environ:
    sys.meta_path.insert(0, Finder())
"""
KINDS = ("worker", "driver", "throttle", "node", "device", "stall", "join", "disk", "stop", "away")
WITHOUT_NODES = ("driver", "throttle", "stall", "stop", "away")
HOLD_S = {"throttle": 12.0, "stall": 8.0, "away": 8.0, "disk": 12.0, "device": 30.0}
DISK_MB = 24
ROUND_S = 1500.0
PATIENCE_S = 90.0  # after so long without a job an event comes all the same
TIMES = ("host", "git_commit", "finished")


class Machines:
    """A Ray cluster on loopback that requires a token: a head without CPUs and nodes of one CPU.

    Each node has a small disk of its own for its cache.
    """

    def __init__(self, folder: Path):
        from ray.cluster_utils import Cluster

        self.folder, self.made, self.mounts = folder, 0, []
        self.disks: dict[Any, Path] = {}  # node -> its disk
        head = {"num_cpus": 0, "temp_dir": str(folder / "r")}
        self.cluster = self._started(lambda: Cluster(initialize_head=True, head_node_args={**head, **self._settings()}))

    @staticmethod
    def _started(start: Callable[[], Any]) -> Any:
        """A raylet whose agents start slowly aborts after 15 s, so a busy machine needs several tries."""
        for _ in range(START_TRIES - 1):
            with contextlib.suppress(RayletDied), patient_start():
                return start()
        with patient_start():
            return start()

    @staticmethod
    def _settings() -> dict[str, Any]:
        names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        with contextlib.ExitStack() as held:
            probes = {name: held.enter_context(socket.socket()) for name in names}
            for probe in probes.values():
                probe.bind(("", 0))
            ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
        return {"object_store_memory": 80 * 2**20, "include_dashboard": False, **ports}

    @property
    def nodes(self) -> list[Any]:
        return [node for node in self.disks if node in self.cluster.worker_nodes]

    def add(self) -> None:
        disk = self.folder / f"disk{self.made}"
        self.made += 1
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)], capture_output=True)
        if not mounted.returncode:
            self.mounts.append(disk)
        variables = {"IDGBR_CACHE": str(disk / "cache"), "CHAOS_DEVICE": str(disk) + ".broken", "PYTHONPATH": os.environ["PYTHONPATH"]}
        self.disks[self._started(lambda: self.cluster.add_node(num_cpus=1, env_vars=variables, **self._settings()))] = disk

    def remove(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def busy_workers(self) -> list[int]:
        """Processes that hold a unit of work."""
        import psutil

        found: list[int] = []
        for node in self.nodes:
            for raylet in node.all_processes.get("raylet", ()):
                with contextlib.suppress(psutil.Error):
                    children = psutil.Process(raylet.process.pid).children()
                    found += [p.pid for p in children if p.name().startswith(("ray::ImplicitFunc", "ray::unit_of_wor"))]
        return found

    def close(self) -> None:
        self.cluster.shutdown()
        for disk in self.mounts:
            subprocess.run(["umount", "-l", str(disk)], check=False)


class Round:
    """One study from an empty store to its end, disturbed."""

    def __init__(
        self, machines: Machines | None, server: UnkindServer, command: list[str], folder: Path, rng: random.Random, every_s: float
    ):
        self.machines, self.server, self.command, self.folder, self.rng, self.every_s = machines, server, command, folder, rng, every_s
        self.events, self.most = Counter[str](), 10**9
        self.ends: Counter[str] = Counter()  # of drivers
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.deck: list[str] = []
        self.log = open(folder / "driver.log", "a")  # noqa: SIM115
        self.driver = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, stdout=self.log, stderr=self.log, start_new_session=True)

    def run(self) -> str:
        """To the end of the study; empty, or why it has not ended well."""
        began = time.monotonic()
        next_event, jobs = began + self.every_s, self.server.jobs
        try:
            while True:
                now = time.monotonic()
                for due in [entry for entry in self.later if entry[0] <= now]:
                    self.later.remove(due)
                    due[1]()
                code = self.driver.poll()
                if code is not None:
                    self.ends[str(code)] += 1
                    if code in (0, 1):
                        return "" if code == 0 else "trials have failed"
                    if code in (2, 4) or self.ends["3"] > 6:
                        return f"the driver ended with {code}"
                    time.sleep(1.0)
                    self.driver = self._start()
                if now - began > ROUND_S:
                    return f"not finished after {ROUND_S:.0f} s"
                if now >= next_event and self.events.total() < self.most and (self.server.jobs > jobs or now - next_event > PATIENCE_S):
                    self._event()
                    jobs = self.server.jobs
                    next_event = time.monotonic() + self.every_s * self.rng.uniform(0.5, 1.5)
                time.sleep(0.2)
        finally:
            for _, undo in self.later:
                undo()
            if self.driver.poll() is None:
                os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
            self.log.close()

    def _event(self) -> None:
        if not self.deck:  # each kind once before any comes again
            kinds = KINDS if self.machines else WITHOUT_NODES
            self.deck = self.rng.sample(kinds, len(kinds))
        kind = self.deck.pop()
        if self._to_driver_or_store(kind) or (self.machines and self._to_nodes(kind, self.machines)):
            self.events[kind] += 1
            print(f"  {kind}", file=sys.stderr, flush=True)

    def _to_driver_or_store(self, kind: str) -> bool:
        """Whether the event is one of theirs; then it has been made."""
        if kind in ("driver", "stop"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.driver.pid, signal.SIGKILL if kind == "driver" else signal.SIGINT)
        elif kind in ("throttle", "stall", "away"):
            self.server.mode = kind
            self._undo(kind, lambda: setattr(self.server, "mode", ""))
        else:
            return False
        return True

    def _to_nodes(self, kind: str, machines: Machines) -> bool:
        """Whether the event could be made."""
        nodes = machines.nodes
        if kind == "join" or len(nodes) < 2:
            machines.add()
            return kind == "join"
        node = self.rng.choice(nodes)
        disk = machines.disks[node]
        if kind == "worker":
            workers = machines.busy_workers()
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(self.rng.choice(workers), signal.SIGKILL)
            return bool(workers)
        if kind == "node":
            machines.remove(node)
            self.later.append((time.monotonic() + self.every_s, machines.add))
        elif kind == "device":
            flag = Path(f"{disk}.broken")
            flag.touch()
            self._undo(kind, lambda: flag.unlink(missing_ok=True))
        else:
            if disk not in machines.mounts:
                return False
            ballast = disk / "ballast"
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                file.write(bytes(DISK_MB * 2**20))
            self._undo(kind, lambda: ballast.unlink(missing_ok=True))
        return True

    def _undo(self, kind: str, undo: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + HOLD_S[kind], undo))


def final_tables(store: Store) -> dict[str, list[str]]:
    """The rows of every table as sorted text, without times and machines."""
    out = {}
    for name in ("trials", "counts", "bands", "curves"):
        found = tables.scan(store, name, "chaos")
        if name == "curves":
            found = found.filter(pa.compute.not_equal(found["name"], "images_per_s"))
        found = found.drop_columns([c for c in found.column_names if c in TIMES or c.startswith("seconds_")])
        out[name] = sorted(map(repr, found.to_pylist()))
    return out


def compared(store: Store, wanted: dict[str, list[str]], n_trials: int) -> dict[str, Any]:
    """Trials lost, doubled and failed, whether the tables are the same, and how many jobs were done more than once."""
    status = tables.statuses(store, "chaos")
    rows = Counter(tables.scan(store, "trials", "chaos")["trial"].to_pylist()) if status else Counter()
    runs = [store.runs(stage) for stage in ("data", "backbone", "coarse", "refiner", "refined", "counts")]
    return {
        "trials_lost": n_trials - len(status),
        "trials_doubled": sum(n > 1 for n in rows.values()),
        "trials_failed": sum(s != "done" for s in status.values()),
        "same_table": len(status) == n_trials and final_tables(store) == wanted,
        "jobs": sum(len(set(keys)) for keys in runs),
        "jobs_redone": sum(len(keys) - len(set(keys)) for keys in runs),
    }


def set_environment(folder: Path) -> None:
    """Of Ray with a token and of an S3 client with keys; the hook that makes a device raise is on the path of every process."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(BROKEN_DEVICE)
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, (str(folder / "hook"), str(root), os.environ.get("PYTHONPATH"))))
    os.environ |= {
        **QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(make_token(folder / "token")), "PYTHONPATH": path,
        "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5", "RAY_prestart_worker_first_driver": "0",
        "OMP_NUM_THREADS": "1", "IDGBR_CACHE": str(folder / "cache"), "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no further round after this time; 0: one round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=60, help="a multiple of 4")
    parser.add_argument("--images", type=int, default=160, help="that a refiner sees")
    parser.add_argument("--nodes", type=int, default=4, help="0: no cluster")
    parser.add_argument("--events", type=int, default=0, help="of a round, at most; 0: any number")
    parser.add_argument("--every-s", type=float, default=6.0, help="seconds between two events, on the average")
    o = parser.parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # short, for socket paths end at 107 bytes
    found: dict[str, Any] = {"seed": o.seed, "trials": o.trials, "nodes": o.nodes}
    events, ends, rounds = Counter[str](), Counter[str](), []
    set_environment(folder)
    ray_private.START_S = 300.0  # of a node: the machine may be busy with this and with other work
    with UnkindServer(o.seed) as server:
        study = folder / "chaos_study.py"
        study.write_text(STUDY.replace("IMAGES", str(o.images)).replace("STEPS", str(o.trials // 4)))
        command = [sys.executable, "-m", "sweeps", "run", f"{study}:study", "--no-preflight", "--no-show", "--store"]
        undisturbed = time.monotonic()
        subprocess.run([*command, str(folder / "undisturbed"), "--local"], check=True, capture_output=True)
        found["undisturbed_in_one_process_s"] = round(time.monotonic() - undisturbed, 1)
        wanted = final_tables(Store(folder / "undisturbed"))
        machines = Machines(folder) if o.nodes else None
        try:
            while not rounds or (time.monotonic() - began < o.minutes * 60 and rounds[-1]["survived"]):
                while machines and len(machines.nodes) < o.nodes:
                    machines.add()
                rng, uri, start = random.Random(o.seed + len(rounds)), server.uri(f"round-{len(rounds)}"), time.monotonic()
                words = [uri, *(("--address", machines.cluster.address) if machines else ("--local",)), "--max-failures", "20"]
                disturbed = Round(machines, server, [*command, *words], folder, rng, o.every_s)
                disturbed.most = o.events or disturbed.most
                why = disturbed.run()
                here = compared(Store(uri, cache=folder / f"check{len(rounds)}"), wanted, o.trials)
                survived = not why and here["same_table"] and not here["trials_doubled"]
                rounds.append({"survived": survived, "why": why, "wall_s": round(time.monotonic() - start, 1), **here})
                events.update(disturbed.events)
                ends.update(disturbed.ends)
                print(f"round {len(rounds)}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
        finally:
            if machines:
                machines.close()
    text = (folder / "driver.log").read_text()
    found |= {
        "survived": all(r["survived"] for r in rounds), "rounds": rounds, "events": dict(events), "driver_ends": dict(ends),
        "units_tried_again": text.count("tried again: "), "devices_left_out": text.count("no more work for "),
        "requests": server.requests, "requests_refused": server.refused, "versions": json.loads(package_versions()),
    }  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True) if found["survived"] else print(f"logs: {folder}", file=sys.stderr)
    print(json.dumps(found), flush=True)
    sys.exit(not found["survived"])


if __name__ == "__main__":
    main()
