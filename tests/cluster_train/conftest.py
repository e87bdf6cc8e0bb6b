"""One loopback cluster of several raylets for a module."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import here
from idgbr.store import Store

# Short, for socket paths end at 107 bytes; and no token file in the home folder of whoever runs the tests.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # patience: the machine may be busy
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",  # a raylet whose agents are late kills itself
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_health_check_period_ms": "1000",  # a dead node is noticed in seconds, a slow one is left alone
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parent),
}


def patient(look: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a node 30 s to register, which two busy cores may not manage; here it has five minutes."""

    def get_node(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + 300
        while True:
            try:
                return look(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return get_node


def node_arguments(n: int) -> dict[str, Any]:
    """One CPU, and ports that are known: a raylet waits 15 s for the ports its agents choose, then ends itself; busy cores need more."""
    first = here.free_ports(os.getpid() + n, 20000, 32000)
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
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    cluster: Any = None
    numbers = itertools.count()
    try:
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
        patience.undo()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
