"""One loopback cluster of several raylets for a module."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loopback import RAY_ENVIRONMENT, patient, required_token

from cluster import node as here
from idgbr.store import Store

ENVIRONMENT = {
    **RAY_ENVIRONMENT,
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # patience: the machine may be busy
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # keys of a store on S3 are a node's own, not the driver's
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "PYTHONPATH": str(Path(__file__).parent),
}


def node_arguments(n: int) -> dict[str, Any]:
    """One CPU, and ports that are known: a raylet waits 15 s for the ports its agents choose, then ends itself; busy cores need more."""
    first = here.free_ports(os.getpid() * 8 + n, 20000, 32000)  # two processes of xdist have neighbouring ids
    names = ("node_manager", "object_manager", "metrics_agent", "metrics_export", "runtime_env_agent", "dashboard_agent_listen")
    return {"num_cpus": 1, "object_store_memory": 80 * 2**20, **{f"{name}_port": first + i for i, name in enumerate(names)}}


@pytest.fixture(scope="module")
def loopback() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of two raylets with one CPU each: the head, and a node that may be lost (`workers`, `join()`)."""
    import ray
    from ray._private import services, utils
    from ray.cluster_utils import Cluster

    patience = pytest.MonkeyPatch()
    patience.setattr(services, "get_node", patient(services.get_node))
    # A raylet dies with the thread that started it (PR_SET_PDEATHSIG), so a thread that outlives the tests starts them; only the main
    # thread may set signal handlers, and this fixture ends the nodes itself
    starter = ThreadPoolExecutor(max_workers=1)
    patience.setattr(utils, "set_sigterm_handler", lambda handler: None)
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short, for socket paths end at 107 bytes
    cluster: Any = None
    numbers = itertools.count()
    token = contextlib.ExitStack()
    try:
        token.enter_context(required_token(folder))
        head = {**node_arguments(next(numbers)), "temp_dir": folder, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.workers = []

        def join() -> None:
            cluster.workers.append(cluster.add_node(**node_arguments(next(numbers))))

        cluster.join = lambda: starter.submit(join).result()
        cluster.join()
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        starter.shutdown()
        token.close()
        patience.undo()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
