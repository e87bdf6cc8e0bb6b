"""Real Ray on loopback: a head and two nodes. Whatever dies, the same command gives the same table. Real stages, tiny."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ray_clusters import loopback_cluster, node_settings
from tiny_sweeps import STAGES, final_tables, same_tables, sweep

from cluster.node import package_versions
from cluster.session import check_nodes
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run import nodes
from sweeps.run.claims import Claims
from sweeps.run.placement import Placement

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def words(study_file: str, address: str, function: str = "study") -> tuple[str, ...]:
    return ("run", f"{study_file}:{function}", "--no-preflight", "--no-show", "--address", address)


def wait_for(process: subprocess.Popen[str], store: Store, stage: str, at_least: int = 1) -> None:
    while process.poll() is None and len(store.runs(stage)) < at_least:
        time.sleep(0.05)


def busy_workers(cluster: Any) -> list[int]:
    """Worker processes of this cluster that hold a unit of work right now."""
    import psutil

    found = []
    for node in cluster.list_all_nodes():
        for raylet in node.all_processes.get("raylet", ()):
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(raylet.process.pid).children()
                found += [p.pid for p in children if p.name().startswith(("ray::ImplicitFunc", "ray::unit_of_wor"))]
    return found


def counted(store: Store) -> dict[str, int]:
    return {stage: len(store.runs(stage)) for stage in STAGES}


def test_a_sweep_on_ray_with_its_store_on_s3_gives_the_table_of_one_in_this_process(
    made: Path, study_file: str, tmp_path: Path, ray_cluster: Any, s3: str
) -> None:
    process = sweep(*words(study_file, ray_cluster.address), store=s3, env={"HOME": str(tmp_path)})  # artefacts are cached there
    out, told = process.communicate()
    assert process.returncode == 0, told
    store = Store(s3, cache=tmp_path / "cache")
    same_tables(final_tables(Store(made)), final_tables(store))
    assert out == ""  # Ray's and Tune's own lines are silenced
    assert len(told.splitlines()) < 60, told
    assert "Traceback" not in told
    assert counted(store) == counted(Store(made)), told
    assert not store.names("claims", recursive=True)
    assert not store.names("scratch", recursive=True)


def test_kill_9_of_the_driver_a_worker_and_a_node_and_rubbish_for_rays_state_and_the_same_command_gives_the_same_table(
    made: Path, study_file: str, tmp_path: Path, ray_cluster: Any
) -> None:
    store, scratch = Store(tmp_path / "store"), tmp_path / "scratch"
    scratch.mkdir()
    environment = {"TMPDIR": str(scratch)}
    command = words(study_file, ray_cluster.address)
    first = sweep(*command, store=store.root, env=environment)
    wait_for(first, store, "coarse")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = counted(store)
    assert done["coarse"] == 1

    def spoil() -> int:
        states = [p for p in scratch.rglob("*") if p.is_file()]
        for path in states:
            path.write_bytes(b"rubbish")
        return len(states)

    assert spoil()  # what Tune would have restored from
    second = sweep(*command, store=store.root, env=environment)
    wait_for(second, store, "refined")
    for pid in busy_workers(ray_cluster):
        os.kill(pid, signal.SIGKILL)
    spoil()  # under the feet of the one that runs
    wait_for(second, store, "counts", 2)
    ray_cluster.remove_node(ray_cluster.list_all_nodes()[-1], allow_graceful=False)
    ray_cluster.add_node(num_cpus=1, **node_settings())
    _, told = second.communicate()
    if second.returncode != 0:  # whatever was lost, the same command mends it
        third = sweep(*command, "--retry-failed", store=store.root)
        _, told = third.communicate()
        assert third.returncode == 0, told
    same_tables(final_tables(Store(made)), final_tables(store))
    once = counted(Store(made))
    assert all(n == once[stage] for stage, n in counted(store).items() if stage in ("data", "coarse"))
    assert sum(counted(store).values()) <= sum(once.values()) + 2  # two places: so much can have been in flight, whole but for its manifest


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


def test_a_driver_that_waits_for_another_holds_no_place_on_the_cluster(
    made: Path, study_file: str, tmp_path: Path, ray_cluster: Any
) -> None:
    """Tune keeps an idle actor; if it did here, two drivers would wait for each other for ever on a cluster of one place."""
    import ray

    store = Store(tmp_path / "store")
    refiners = Store(made).runs("refiner")
    ray.init(address=ray_cluster.address, logging_level="CRITICAL", log_to_driver=False)
    try:
        with Claims(store, "elsewhere") as claims:
            for key in refiners:
                assert claims.take(key) is None
            process = sweep(*words(study_file, ray_cluster.address), store=store.root)
            wait_for(process, store, "counts")  # of the coarse map; the rest needs the refiners
            deadline = time.monotonic() + 120
            while process.poll() is None and ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert process.poll() is None
            assert ray.available_resources().get("CPU") == 2.0
            assert not store.runs("refiner")
        _, told = process.communicate()
    finally:
        ray.shutdown()
    assert process.returncode == 0, told
    assert "Traceback" not in told
    same_tables(final_tables(Store(made)), final_tables(store))


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
    import sys

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
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate()
        assert process.returncode == 130, told
        assert time.monotonic() - started < 30
        assert "Traceback" not in told
        assert not store.names("claims", recursive=True)
    finally:  # a worker that hangs keeps its place from all later tests
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


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
        again = sweep("run", f"{study_file}:study", "--no-preflight", "--no-show", "--local", store=place / "store")
        _, told = again.communicate()
        assert again.returncode == 0, told
        same_tables(final_tables(Store(made)), final_tables(Store(place / "store")))
    finally:
        subprocess.run(["umount", str(place)], check=True)


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


def test_an_address_where_no_cluster_answers_is_one_clear_error_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(Missing, match=r"no Ray cluster at 127\.0\.0\.1:1"), nodes.cluster(Placement(address="127.0.0.1:1")):
        pass
    assert time.monotonic() - started < 10


def test_kill_9_of_the_head_and_the_same_command_on_a_new_one_gives_the_same_table(made: Path, study_file: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with loopback_cluster() as cluster:
        address = cluster.address
        process = sweep(*words(study_file, address), store=store.root)
        wait_for(process, store, "refiner")
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        _, told = process.communicate()
        assert process.returncode not in (0, 2), told
    before = counted(store)
    with loopback_cluster(int(address.rpartition(":")[2])) as cluster:
        assert cluster.address == address
        process = sweep(*words(study_file, address), store=store.root)
        _, told = process.communicate()
    assert process.returncode == 0, told
    same_tables(final_tables(Store(made)), final_tables(store))
    assert all(counted(store)[stage] == n for stage, n in before.items() if stage in ("data", "backbone", "coarse"))
