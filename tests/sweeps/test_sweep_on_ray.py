"""Real Ray on loopback, a head and two nodes: drivers that share the work, a store on S3, Ctrl-C, refusals. Real stages, tiny."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import busy_workers, wait_for, words
from tiny_sweeps import counted, final_tables, same_tables, sweep

from cluster.node import package_versions
from cluster.session import check_nodes
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run import nodes
from sweeps.run.claims import Claims
from sweeps.run.placement import Placement

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_two_drivers_on_one_study_and_one_of_another_share_the_work(made: Path, study_file: str, tmp_path: Path, ray_cluster: Any) -> None:
    store = Store(tmp_path / "store")
    functions = ("study", "study", "other")  # the other trains one refiner more and samples nothing more of the shared one
    all_three = [sweep(*words(study_file, ray_cluster.address, f), store=store.root) for f in functions]
    told = [p.communicate()[1] for p in all_three]
    assert [p.returncode for p in all_three] == [0, 0, 0], told
    assert "the work is shared" in "".join(told)
    same_tables(final_tables(Store(made)), final_tables(store))
    assert set(tables.statuses(store, "other").values()) == {"done"}
    once = counted(Store(made))
    assert counted(store) == once | {"refiner": once["refiner"] + 1, "refined": once["refined"] + 1, "counts": once["counts"] + 1}
    with nodes.cluster(Placement(address=ray_cluster.address)):
        import ray

        assert ray.available_resources().get("CPU") == 2.0, "a node has lost a CPU for good (ray#64693; sweeps/groups.py)"


def test_a_driver_that_waits_for_another_holds_no_place_and_a_store_on_s3_gives_the_table_of_one_process(
    made: Path, study_file: str, tmp_path: Path, ray_cluster: Any, s3: str
) -> None:
    """Tune keeps an idle actor; if it did here, two drivers would wait for each other for ever on a cluster of one place."""
    import ray

    store = Store(s3, cache=tmp_path / "cache")
    refiners = Store(made).runs("refiner")
    ray.init(address=ray_cluster.address, logging_level="CRITICAL", log_to_driver=False)
    try:
        with Claims(store, "elsewhere") as claims:
            for key in refiners:
                assert claims.take(key) is None
            process = sweep(*words(study_file, ray_cluster.address), store=s3, env={"HOME": str(tmp_path)})  # artefacts are cached there
            wait_for(process, store, "counts")  # of the coarse map; the rest needs the refiners
            deadline = time.monotonic() + 120
            while process.poll() is None and ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert process.poll() is None
            assert ray.available_resources().get("CPU") == 2.0
            assert not store.runs("refiner")
        out, told = process.communicate()
    finally:
        ray.shutdown()
    assert process.returncode == 0, told
    same_tables(final_tables(Store(made)), final_tables(store))
    assert out == ""  # Ray's and Tune's own lines are silenced
    assert len(told.splitlines()) < 60, told
    assert "Traceback" not in told
    assert counted(store) == counted(Store(made)), told
    assert not store.names("claims", recursive=True)
    assert not store.names("scratch", recursive=True)


def test_ctrl_c_twice_ends_at_once_though_a_worker_hangs(study_file: str, tmp_path: Path, ray_cluster: Any) -> None:
    store = Store(tmp_path / "store")
    process = sweep(*words(study_file, ray_cluster.address, "slow"), store=store.root)
    wait_for(process, store, "coarse")
    frozen = busy_workers(ray_cluster)
    assert frozen
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        time.sleep(3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate()  # a driver that waits for its workers would not come back: they are stopped
        assert process.returncode == 130, told
        assert "Traceback" not in told
        assert not store.names("claims", recursive=True)
    finally:  # a worker that hangs keeps its place from all later tests
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_other_versions_on_a_node_and_a_store_that_nodes_do_not_share_are_refused(
    tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes.cluster(Placement(address=ray_cluster.address)) as found:
        assert sum(node.get("CPU", 0.0) for node in found) == 2.0
        with pytest.raises(BadRequest, match=r"another Ray cluster.*127\.0\.0\.1:1"), nodes.cluster(Placement(address="127.0.0.1:1")):
            pass
        store = Store(tmp_path / "store")
        check_nodes(store)
        with pytest.raises(Disagreement, match=r"other versions on the node.*torch .* there, 0\.1 here"):
            check_nodes(store, json.dumps({**json.loads(package_versions()), "torch": "0.1"}))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(Missing, match=r"not one place for all nodes.*does not see"):
            check_nodes(Store("/proc/self/cwd/private"))  # another folder in every process
        assert "of 2 CPUs are free; a worker takes 1 CPU" in nodes.why_idle(Placement())
        assert "the cluster has changed: a job needs 1 GPUs" in nodes.why_idle(Placement(gpus=1))


def test_an_address_where_no_cluster_answers_is_one_clear_error_before_ray_tries_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given["address"]))
    with pytest.raises(Missing, match=r"no Ray cluster at 127\.0\.0\.1:1"), nodes.cluster(Placement(address="127.0.0.1:1")):
        pass
    assert not asked
