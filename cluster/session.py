"""Ray before a training starts: the cluster to join or start, and a store that is one place for all its nodes."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import uuid
from collections.abc import Iterator
from typing import Any

from cluster.node import refusal
from idgbr.errors import Disagreement, Missing
from idgbr.machine import allowed_cores, expanded
from idgbr.store import Store

START_TRIES = 3
POLL_S = "0.5"  # Ray looks at its workers that often; a report waits for it


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """The Ray of this process, or of `RAY_ADDRESS`, or one of this machine alone for the time of the block.

    Raises:
        Missing: no cluster answers.
        Disagreement: the one at `RAY_ADDRESS` refuses our token.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    environment()
    address = os.environ.get("RAY_ADDRESS", "")
    # On a cluster the token is the site's; alone on loopback Ray would write one into the home folder and change later starts.
    os.environ.setdefault("RAY_AUTH_MODE", "token" if address else "disabled")
    if address.rpartition(":")[2].isdigit() and "://" not in address and (why := refusal(address)):
        raise Disagreement(
            f"the cluster at RAY_ADDRESS={address} refuses us: it is another user's, or our token is old",
            value=why,
            hint="RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH of the cluster you started",
        )
    temporary = os.environ.get("RAY_TMPDIR", "/tmp/ray")
    own: dict[str, Any] = {
        "address": "local",  # never by chance the cluster that somebody else has started on this machine
        "num_cpus": allowed_cores(),
        "include_dashboard": False,
        "object_store_memory": 150 * 2**20,
        "_temp_dir": temporary if len(temporary) <= 36 else "/tmp/ray",
    }
    for attempt in range(START_TRIES):
        try:
            ray.init(**({"address": address} if address else own), logging_level=logging.ERROR, log_to_driver=False)
            break
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if not address and "timed out during startup" in str(error) and attempt < START_TRIES - 1:
                ray.shutdown()
                continue  # Ray gives a node 30 s to come up, too few where other work takes the machine
            raise Missing(
                f"no Ray cluster {'at ' + address if address else 'on this machine'}: {' '.join(str(error).split())[:300]}",
                hint=shlex.join(["python", "-m", "cluster", "doctor", address])
                if address
                else "a short RAY_TMPDIR (36 characters) with some GB free",
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def environment() -> None:
    """What Ray reads from the environment; a user's own values win."""
    for name, value in {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": POLL_S,
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # of a cluster started here; Ray would put workers 15 steps below this process
    }.items():
        os.environ.setdefault(name, value)


def check_room(workers: int, cpus: float, gpus: float) -> None:
    """Without `RAY_ADDRESS` the cluster is what it is: workers that do not fit would be waited for in vain. Others may grow.

    Raises:
        Missing: fewer CPUs or GPUs than the workers need together.
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        there = ray.cluster_resources().get(name, 0.0)
        if each * workers > there:
            raise Missing(
                f"no room for the workers: {workers} x {each:g} {name} asked, {there:g} there",
                hint=f"--workers {int(there // each)}" if there >= each else "RAY_ADDRESS of a larger cluster",
            )


def check_storage(store: Store) -> None:
    """Every node reads what this process wrote in the store, and this process reads what every node wrote.

    Raises:
        Missing: the store cannot be written here, or is another place on some node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    base = f"scratch/preflight-{uuid.uuid4().hex[:12]}"
    root = root_for_all(store)
    store.write_bytes(f"{base}/driver", b"driver")

    def visit(root: str, node: str) -> str:
        try:
            there = Store(root)
            if there.read_bytes(f"{base}/driver") != b"driver":
                return "does not see what the driver wrote"
            there.write_bytes(f"{base}/{node}", node.encode())
        except Exception as error:  # told to the driver, whatever it is
            return f"cannot use it: {error}"
        return ""

    try:
        task = ray.remote(num_cpus=0, max_retries=0)(visit)
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        asked = {
            node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(root, node) for node in nodes
        }
        bad = []
        for node, answer in asked.items():
            try:
                trouble = ray.get(answer, timeout=120)
            except ray.exceptions.RayError as error:
                trouble = f"does not answer: {type(error).__name__}"
            if not trouble and store.read_bytes(f"{base}/{node}") != node.encode():
                trouble = "writes to another place"
            if trouble:
                bad.append(f"{nodes[node]} {trouble}")
        if bad:
            raise not_shared(store, bad)
    finally:
        store.delete(base)


def not_shared(store: Store, where: list[str]) -> Missing:
    return Missing(
        f"the store {store.root} is not one place for all nodes: {'; '.join(where)}",
        hint="a shared folder (NFS, Lustre, a ReadWriteMany volume) mounted alike on all nodes, or a URI such as s3://BUCKET/PREFIX",
    )


def root_for_all(store: Store) -> str:
    """The store's root as it reads on every node: a URI, or an absolute path (workers run in folders of their own)."""
    return store.root.rstrip("/") if "://" in store.root else str(expanded(store.root).absolute())
