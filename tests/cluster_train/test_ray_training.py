"""One training over several workers of a loopback cluster: the curve of one process, whatever dies on the way.

Tolerance: 3e-3 of the loss. One process against itself, its first weights one unit in the last place larger, differs by up to 1e-3 over
400 images at this learning rate, and by 2e-2 at 1e-3: rounding in another order can be told from a fault only where steps are small.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import driver
from small_trainings import SMALL, one_process, prepared

from cluster.session import check_nodes
from cluster.train import RayTraining, run_on_cluster
from idgbr import stages
from idgbr.coarse import backbone
from idgbr.config import Experiment, Runtime, apply
from idgbr.errors import Interrupted, Missing
from idgbr.store import Store
from idgbr.training.curve import read_curve

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
CPU = Runtime(device="cpu", threads=1)
LONGER = {"backbone.train_images": 240, "backbone.checkpoint_images": 32}


def same_curve(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [x["images"] for x in other] == [x["images"] for x in one], "a step is missing or counted twice"
    assert [x["loss"] for x in other] == pytest.approx([x["loss"] for x in one], rel=3e-3)


def worker_processes(cluster: Any) -> list[int]:
    """Process ids of Ray Train's workers below this cluster's raylets."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent in raylets and b"TrainWorker" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
    return found


def test_a_killed_worker_and_a_lost_node_cost_only_the_steps_since_the_last_checkpoint(loopback: Any, store: Store, tmp_path: Path) -> None:
    """Two workers; one is killed; later a node dies and another joins. The curve is that of one undisturbed process."""
    experiment, job = prepared(store, **LONGER)
    lines: list[dict[str, Any]] = []
    done: list[str] = []

    def report(**values: Any) -> None:
        lines.append(values)
        if values["images"] >= 64 and "worker" not in done:
            done.append("worker")
            os.kill(worker_processes(loopback)[0], signal.SIGKILL)
        elif values["images"] >= 136 and "node" not in done:
            done.append("node")
            lost = loopback.workers.pop()
            threading.Thread(target=lambda: loopback.remove_node(lost, allow_graceful=False)).start()
            loopback.join()

    manifest = stages.run(job, store, experiment, CPU, report=report, fit=RayTraining(2))
    assert done == ["worker", "node"]
    same_curve(read_curve(one_process(store, experiment, job, tmp_path / "one")), read_curve(store.path(job.stage, job.key)))
    assert {"model.safetensors", "curve.jsonl", "backbone.json"} <= set(manifest["files"])
    backbone.load(store.path(job.stage, job.key))
    assert {x["workers"] for x in lines} == {2}
    assert manifest["processes"] == 2
    assert not store.names("scratch", recursive=True), "checkpoints go when the artefact is stored"


def test_a_stop_and_a_killed_driver_are_followed_by_other_numbers_of_workers_with_checkpoints_on_s3(
    loopback: Any, tmp_path: Path, s3: str
) -> None:
    """One worker, stopped; two sharded ones (FSDP) continue, their driver killed without notice; one worker ends the training.

    The URI of the store has a query (`endpoint_override`), behind which no path can be appended.
    """
    store = Store(s3, cache=tmp_path / "cache")
    experiment, job = prepared(store, **LONGER)
    with pytest.raises(Interrupted, match="of 240 images"):
        stages.run(job, store, experiment, CPU, stop=lambda: True, fit=RayTraining(1))
    assert not store.has(job.stage, job.key)
    assert any("checkpoint" in name for name in store.names(stages.scratch_name(job), recursive=True))
    words = [sys.executable, driver.__file__, loopback.address, s3, json.dumps(LONGER)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert process.stdout is not None
    seen = next((int(line) for line in process.stdout if line.strip().isdigit() and int(line) >= 64), None)
    assert seen is not None, "the driver ended by itself"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while worker_processes(loopback) and time.monotonic() < deadline:  # Ray ends the orphans
        time.sleep(0.2)
    lines: list[int] = []
    stages.run(job, store, experiment, CPU, report=lambda **values: lines.append(values["images"]), fit=RayTraining(1))
    assert not lines or lines[0] > 32, "it went on from a checkpoint"
    same_curve(read_curve(one_process(store, experiment, job, tmp_path / "one")), read_curve(store.path(job.stage, job.key)))
    backbone.load(store.path(job.stage, job.key))


def test_a_stage_that_does_not_train_runs_where_its_needs_are_met(loopback: Any, store: Store) -> None:
    """`cluster train --gpus 1` on a cluster without GPUs: data needs none and runs; the coarse map runs a network and is refused."""
    experiment = apply(Experiment(), SMALL)
    data, *_, coarse = [job for job in stages.jobs(experiment) if job.stage in ("data", "backbone", "coarse")]
    lines: list[dict[str, Any]] = []
    run_on_cluster(data, store, experiment, CPU, RayTraining(1, gpus=1), report=lambda **values: lines.append(values))
    assert store.has("data", data.key)
    with pytest.raises(Missing, match=r"no room for the workers: 1 x 1 GPU requested, 0 there"):
        run_on_cluster(coarse, store, experiment, CPU, RayTraining(1, gpus=1))
    with pytest.raises(Missing, match=r"run the study or the stage that makes it"):  # the stage's own error, from the node
        run_on_cluster(coarse, store, experiment, CPU, RayTraining(1))


def test_a_store_that_is_not_shared_is_refused_before_the_start(loopback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc/self/cwd` is another folder in every process: written here, not seen by the tasks on the nodes."""
    monkeypatch.chdir(tmp_path)
    private = Store("/proc/self/cwd/store")
    experiment, job = prepared(private)
    started = time.monotonic()
    with pytest.raises(Missing, match=r"not one place for all nodes.*does not see"):
        stages.run(job, private, experiment, CPU, fit=RayTraining(2))
    assert time.monotonic() - started < 60
    assert not (tmp_path / "store/scratch/preflight").exists()
    check_nodes(Store(tmp_path / "shared"))
    with pytest.raises(Missing, match=r"no room for the workers: 3 x 1 CPU requested, 2 there.*--workers 2"):
        stages.run(job, private, experiment, CPU, fit=RayTraining(3))
