"""Real Ray: reused actors, killed drivers, workers and nodes, two drivers at once, a store on S3. Real stages, tiny."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import final_tables, same_tables, sweep

from idgbr.errors import Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.placement import Placement

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[object]:
    """Head without CPUs and two nodes with one each, on loopback, started by us alone."""
    from sweeps import tuner

    for name, value in tuner.QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # a dead node is noticed within seconds rather than half a minute
    os.environ.update(RAY_health_check_period_ms="1000", RAY_health_check_timeout_ms="3000", RAY_health_check_failure_threshold="3")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster
    cluster.shutdown()


def words(study_file: str, address: str, function: str = "study") -> tuple[str, ...]:
    return ("run", f"{study_file}:{function}", "--no-preflight", "--no-show", *(("--address", address) if address else ()))


def wait_for(process: subprocess.Popen[str], store: Store, stage: str, at_least: int = 1) -> None:
    while process.poll() is None and len(store.runs(stage)) < at_least:
        time.sleep(0.05)


def busy_workers() -> list[int]:
    """Worker processes that hold a unit of work right now."""
    import psutil

    lines = {p.pid: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    return [pid for pid, line in lines.items() if line.startswith(("ray::ImplicitFunc", "ray::unit_of_work"))]


def test_a_sweep_on_ray_gives_the_table_of_one_in_this_process(made: Path, study_file: str, tmp_path: Path, ray_cluster) -> None:  # type: ignore[no-untyped-def]
    store = Store(tmp_path / "store")
    process = sweep(*words(study_file, ray_cluster.address), store=store.root)
    out, told = process.communicate()
    assert process.returncode == 0, told
    same_tables(final_tables(Store(made)), final_tables(store))
    assert out == ""  # Ray's and Tune's talk is silenced
    assert len(told.splitlines()) < 60, told
    assert "Traceback" not in told
    assert all(len(store.runs(s)) == len(Store(made).runs(s)) for s in ("data", "backbone", "coarse", "refiner", "refined", "counts"))
    assert not store.names("claims", recursive=True)


def test_kill_9_of_the_driver_a_worker_and_a_node_and_the_same_command_gives_the_same_table(
    made: Path, study_file: str, tmp_path: Path, ray_cluster
) -> None:  # type: ignore[no-untyped-def]
    store = Store(tmp_path / "store")
    command = words(study_file, ray_cluster.address)
    first = sweep(*command, store=store.root)
    wait_for(first, store, "coarse")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not tables.statuses(store, "tiny").get("x")

    second = sweep(*command, store=store.root)
    wait_for(second, store, "refined")
    for pid in busy_workers():
        os.kill(pid, signal.SIGKILL)
    wait_for(second, store, "counts", 2)
    node = ray_cluster.list_all_nodes()[-1]
    ray_cluster.remove_node(node, allow_graceful=False)
    ray_cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    _, told = second.communicate()
    if second.returncode != 0:  # whatever was lost, the same command mends it
        third = sweep(*command, "--retry-failed", store=store.root)
        _, told = third.communicate()
        assert third.returncode == 0, told
    same_tables(final_tables(Store(made)), final_tables(store))
    assert len(store.runs("data")) == len(store.runs("coarse")) == 1  # what was done before the kill was not done again


def test_two_drivers_on_one_study_share_the_work(made: Path, study_file: str, tmp_path: Path, ray_cluster) -> None:  # type: ignore[no-untyped-def]
    store = Store(tmp_path / "store")
    both = [sweep(*words(study_file, ray_cluster.address), store=store.root) for _ in range(2)]
    told = [p.communicate()[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], told
    same_tables(final_tables(Store(made)), final_tables(store))
    assert all(len(store.runs(s)) == len(Store(made).runs(s)) for s in ("data", "backbone", "coarse", "refiner", "refined", "counts"))


def test_a_store_on_s3_gives_the_same_table(made: Path, study_file: str, tmp_path: Path, ray_cluster) -> None:  # type: ignore[no-untyped-def]
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    old = dict(os.environ)
    os.environ.update(keys)
    try:
        fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True).create_dir("bucket")
        root = f"s3://bucket/store?endpoint_override={host}:{port}&scheme=http"
        process = sweep(
            "run", f"{study_file}:study", "--local", "--no-preflight", "--no-show", store=root, env={**keys, "HOME": str(tmp_path)}
        )
        _, told = process.communicate()
        assert process.returncode == 0, told
        store = Store(root, cache=tmp_path / "cache")
        same_tables(final_tables(Store(made)), final_tables(store))
        assert not store.names("claims", recursive=True)
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(old)


def test_an_address_where_no_cluster_answers_is_one_clear_error(study_file: str, tmp_path: Path) -> None:
    from sweeps import tuner

    with pytest.raises(Missing, match="no Ray cluster at"), tuner.cluster(Placement(address="127.0.0.1:1")):
        pass
