"""Real Ray on loopback: trainings over both nodes, placement groups that dead drivers leave, and a store that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import words
from tiny_sweeps import counted, final_tables, same_tables, sweep, tiny

from idgbr.store import Store
from sweeps import tables
from sweeps.run import commands, nodes
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


PLAIN = """
import sys
import ray
from ray import tune
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(address=sys.argv[1], logging_level="CRITICAL", log_to_driver=False)
def loop(config): open(config["seen"], "w").close()
def trial(config):
    TorchTrainer(loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=2)).fit()
tune.Tuner(trial, param_space={"seen": sys.argv[2] + "/seen"}, run_config=tune.RunConfig(storage_path=sys.argv[2])).fit()
"""


def test_trainings_over_both_nodes_take_turns_where_plain_tune_waits_for_ever_and_what_it_leaves_behind_is_freed(
    store: Store, study_file: str, tmp_path: Path, ray_cluster: Any
) -> None:
    """Ray#54305: a trial holds a CPU while its two workers want both. Then two such trainings of ours, ready to start at once."""
    import ray
    from ray.util import placement_group_table

    (tmp_path / "plain.py").write_text(PLAIN)
    command = [sys.executable, str(tmp_path / "plain.py"), ray_cluster.address, str(tmp_path)]
    stuck = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    ray.init(address=ray_cluster.address, logging_level="CRITICAL", log_to_driver=False)

    def groups(states: tuple[str, ...]) -> int:
        return sum(g["state"] in states for g in placement_group_table().values())

    try:
        deadline = time.monotonic() + 240
        while stuck.poll() is None and not groups(("PENDING",)) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)  # it waits for the CPU that the trial itself holds
        assert groups(("PENDING",))
        assert stuck.poll() is None
        assert not (tmp_path / "seen").exists()
    finally:
        os.killpg(stuck.pid, signal.SIGKILL)
        stuck.wait()
    for _ in range(8):
        time.sleep(0.5)
        nodes.free_orphans("plain.py")  # its controller may ask for workers once more after its driver's death
    assert not groups(("CREATED", "PENDING"))
    ray.shutdown()
    before = counted(store)
    process = sweep(*words(study_file, ray_cluster.address, "wide"), "--workers", "2", store=store.root)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert set(tables.statuses(store, "wide").values()) == {"done"}
    assert counted(store)["refiner"] == before["refiner"] + 2
    assert not store.names("scratch", recursive=True)


def test_a_full_disk_stops_the_study_with_one_clear_error_and_blames_no_trial(
    made: Path, study_file: str, tmp_path: Path, ray_cluster: Any
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        command = words(study_file, ray_cluster.address)
        process = sweep(*command, store=place / "store")
        _, told = process.communicate()
        assert process.returncode == 3, told
        assert "no space left" in told.splitlines()[-1]
        assert "Traceback" not in told
        assert "failed" not in set(tables.statuses(Store(place / "store"), "tiny").values())
        subprocess.run(["mount", "-o", "remount,size=300m", str(place)], check=True)
        commands.run(tiny(), Store(place / "store"), Placement(), RunOptions(local=True, preflight=False, show=False))
        same_tables(final_tables(Store(made)), final_tables(Store(place / "store")))
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # this process keeps rasters of the store open
