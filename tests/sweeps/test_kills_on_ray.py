"""Real Ray on loopback: the driver, a worker or the head dies, Ray's state is damaged. The same command gives the same table."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from ray_clusters import busy_workers, loopback_cluster, wait_for, words
from tiny_sweeps import counted, final_tables, same_tables, sweep

from idgbr.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_kill_9_of_the_driver_of_workers_and_of_the_head_and_the_same_command_gives_the_same_table(
    made: Path, study_file: str, tmp_path: Path
) -> None:
    """Three drivers one after the other, on two clusters. A lost node: test_live_cluster.py."""
    store, scratch = Store(tmp_path / "store"), tmp_path / "scratch"
    scratch.mkdir()
    environment = {"TMPDIR": str(scratch)}

    def spoil() -> int:
        """Rubbish in all files that Tune would restore from."""
        states = [p for p in scratch.rglob("*") if p.is_file()]
        for path in states:
            path.write_bytes(b"rubbish")
        return len(states)

    with loopback_cluster() as cluster:
        address = cluster.address
        command = words(study_file, address)
        first = sweep(*command, store=store.root, env=environment)
        wait_for(first, store, "coarse")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert counted(store)["coarse"]
        assert spoil()
        second = sweep(*command, store=store.root, env=environment)
        wait_for(second, store, "refined")  # of the coarse map; the refiners train
        for pid in busy_workers(cluster):
            os.kill(pid, signal.SIGKILL)
        spoil()  # while it is in use
        wait_for(second, store, "refiner")
        assert second.poll() is None, "the driver outlives its workers"
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        _, told = second.communicate()
        assert second.returncode not in (0, 2), told
    before = counted(store)
    with loopback_cluster(int(address.rpartition(":")[2])) as another:
        assert another.address == address
        third = sweep(*command, store=store.root)
        _, told = third.communicate()
    assert third.returncode == 0, told
    same_tables(final_tables(Store(made)), final_tables(store))
    once = counted(Store(made))
    assert all(n == once[stage] == before[stage] for stage, n in counted(store).items() if stage in ("data", "backbone", "coarse"))
    # two places, lost twice: so much can have been in flight, whole but for its manifest
    assert sum(counted(store).values()) <= sum(once.values()) + 4
