"""A loopback cluster for the sweep tests, a head and two nodes; what is run on it, and its processes."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from loopback import RAY_ENVIRONMENT, patient, required_token

from idgbr.store import Store

NODE_ENVIRONMENT = {
    **RAY_ENVIRONMENT,
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # who has lost the head gives up after 60 s otherwise
    # keys of a store on S3 are a node's own, not the driver's
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def node_settings() -> dict[str, Any]:
    """Of one node. Ports are chosen here: a raylet that waits for its agents to choose theirs dies after 15 s."""
    ports = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as held:
        chosen = {}
        for name in ports:
            probe = held.enter_context(socket.socket())
            probe.bind(("", 0))
            chosen[name] = probe.getsockname()[1]
    return {"object_store_memory": 80 * 2**20, "include_dashboard": False, **chosen}


@contextlib.contextmanager
def loopback_cluster(port: int = 0, nodes: int = 2) -> Iterator[Any]:
    """A head without CPUs and nodes with one each, real raylets on loopback. `port` of the head; 0: any."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    from sweeps.run.nodes import QUIET

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short, for socket paths end at 107 bytes
    with required_token(folder), pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUIET, **NODE_ENVIRONMENT}.items():
            patch.setenv(name, value)
        patch.setattr(services, "get_node", patient(services.get_node))
        patch.setattr(services, "wait_for_node", patient(services.wait_for_node))
        cluster = None
        try:
            head = {"num_cpus": 0, "temp_dir": folder, **({"gcs_server_port": port} if port else {}), **node_settings()}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, **node_settings())
            yield cluster
        finally:
            if cluster is not None:
                cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def words(study_file: str, address: str, function: str = "study") -> tuple[str, ...]:
    """`sweeps run` of a study of the file, on the cluster at `address`."""
    return ("run", f"{study_file}:{function}", "--no-preflight", "--no-show", "--address", address)


def wait_for(process: subprocess.Popen[str], store: Store, stage: str, at_least: int = 1) -> None:
    """Until the store holds so many artefacts of the stage, or the process ends."""
    while process.poll() is None and len(store.runs(stage)) < at_least:
        time.sleep(0.05 if store.is_local else 0.5)  # the S3 server is in this process


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
