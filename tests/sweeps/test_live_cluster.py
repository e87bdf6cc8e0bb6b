"""Real Ray on loopback: machines that come and go during a study. Same table as undisturbed, no trial failed."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_clusters import loopback_cluster, node_settings
from tiny_sweeps import final_tables, same_tables, sweep

from idgbr.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


class Watched:
    """A sweep process whose stderr is read while it runs."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process, self.lines = process, []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.text)

    @property
    def text(self) -> str:
        return "".join(self.lines)


def test_a_study_waits_for_nodes_and_follows_the_cluster_as_it_grows_and_shrinks(made: Path, study_file: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with loopback_cluster(nodes=0) as cluster:
        # GPUs by name alone: counts and data are placed beside them, on the second CPU of a node
        options = ["--no-preflight", "--no-show", "--gpus", "1", "--device", "cpu", "--address"]
        watched = Watched(sweep("run", f"{study_file}:study", *options, cluster.address, store=store.root))
        watched.wait_for("waiting for nodes (0 of 600 s): a job needs 1 CPUs on one node; the cluster's largest node has 0")
        nodes = [cluster.add_node(num_cpus=2, num_gpus=1, **node_settings()) for _ in range(2)]
        watched.wait_until(lambda: len(store.runs("coarse")) > 0)
        assert "on up to 1 workers" in watched.text or "on up to 2 workers" in watched.text
        cluster.remove_node(nodes[0], allow_graceful=False)
        watched.wait_for("the cluster has shrunk: room for 1 workers, 2 before")
        cluster.add_node(num_cpus=2, num_gpus=1, **node_settings())
        watched.wait_for("the cluster has grown: room for 2 workers, 1 before")
        assert watched.process.wait(600) == 0, watched.text
    same_tables(final_tables(Store(made)), final_tables(store))
    assert "failed:" not in watched.text
