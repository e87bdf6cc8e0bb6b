"""The Ray cluster that a sweep runs on: joined or started, its nodes alike and on one store, and why nothing starts on it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.machine import allowed_cores
from idgbr.store import Store
from sweeps.run.placement import Placement, slots

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the user's settings stay what they are
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",  # of a cluster started here; Ray would put workers 15 steps below everything else on the machine
    "RAY_worker_register_timeout_seconds": "300",  # processes start slowly on a machine that is busy with other things
    "RAY_agent_register_timeout_ms": "300000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nobody restores from Tune's state
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "100000",  # the watchdog says it better
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large goes through it: artefacts lie in the store
START_TRIES = 4
JOB_DIGITS = 8
KNOCK_S = 10.0  # for a cluster's port to open


@contextlib.contextmanager
def cluster(placement: Placement, cores: int | None = None) -> Iterator[list[dict[str, float]]]:
    """Resources of each node of the cluster of `placement.address`, or of one started on this machine for the time of the block.

    Raises:
        Missing: no cluster answers at the address.
        BadRequest: this process is connected to another cluster already.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = placement.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        # Auth by token would leave ~/.ray/auth_token behind and change how a later cluster starts; this one listens on loopback only.
        os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "disabled")
    import ray

    _silence()
    if ray.is_initialized():  # a program that embeds a sweep
        connected = ray.get_runtime_context().gcs_address
        if placement.address not in ("", "auto", connected):
            raise BadRequest(
                "this process is connected to another Ray cluster",
                value=f"{connected}, asked for {placement.address}",
                hint="ray.shutdown() first, or give no address",
            )
        yield node_resources()
        return
    _refuse_deaf(address)
    _start(address, placement, cores)
    try:
        _silence()
        yield node_resources()
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            ray.shutdown()


def _start(address: str, placement: Placement, cores: int | None) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
    temporary = os.environ.get("RAY_TMPDIR", "/tmp/ray")
    own = {
        "address": "local",  # never by chance the cluster that somebody else has started on this host
        "num_cpus": cores or allowed_cores(),
        "include_dashboard": placement.workers > 1,  # Train's placement groups are freed through it after a stop (ray#54305)
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": temporary if len(temporary) <= 36 else "/tmp/ray",  # socket paths end at 107 bytes
    }
    for attempt in range(START_TRIES):
        try:
            ray.init(**quiet, **({"address": address} if address else own))
            return
        except Exception as error:  # Ray raises bare ones too
            ray.shutdown()
            if "timed out during startup" in str(error) and attempt < START_TRIES - 1:
                continue  # Ray gives a node 30 s to come up, too few where other work takes the machine
            where = f"at {address}" if address else "on this machine"
            raise Missing(
                f"no Ray cluster {where}: {_first_line(error)}",
                hint="python -m cluster doctor, or leave out --address to use this machine alone (--local: without Ray)",
            ) from error


def _refuse_deaf(address: str) -> None:
    """Ray itself knocks for ever at a port that nobody has opened.

    Raises:
        Missing: nobody listens there.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():  # "auto": Ray knows where to look
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise _no_cluster(f"at {address}", error.strerror or str(error)) from error


def _no_cluster(where: str, why: str) -> Missing:
    hint = "python -m cluster doctor, or leave out --address to use this machine alone (--local: without Ray)"
    return Missing(f"no Ray cluster {where}: {why}", hint=hint)


def node_resources() -> list[dict[str, float]]:
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def check_nodes(store: Store, versions: str) -> None:
    """On a cluster of several nodes: the same packages everywhere, and a store that every node reads and writes.

    Raises:
        Disagreement: other versions on a node. Missing: a node that does not see the store.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [n for n in ray.nodes() if n["Alive"]]
    if len(nodes) < 2:
        return
    nonce = f"_probe-{os.getpid()}-{time.monotonic_ns()}"
    store.write_bytes(nonce, b"driver")

    @ray.remote(num_cpus=0)
    def probe(name: str) -> tuple[str, bool]:
        from sweeps import tables

        seen = store.read_bytes(nonce) == b"driver"
        if seen:  # what is written into another store could not be removed from here
            store.write_bytes(name, b"node")
        return tables.versions(), seen

    try:
        for node in nodes:
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            name = f"{nonce}-{node['NodeID']}"
            pinned = probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            try:
                found, seen = ray.get(pinned.remote(name), timeout=120)
            except ray.exceptions.RayError as error:
                raise Missing(f"the node {where} cannot run this package or write the store: {_first_line(error)}") from error
            if found != versions:
                here, there = json.loads(versions), json.loads(found)
                other = ", ".join(f"{p} {there.get(p)} there, {v} here" for p, v in here.items() if there.get(p) != v)
                raise Disagreement(
                    f"other versions on the node {where}", value=other, hint="the same environment on every node: constraints.txt"
                )
            if not seen or store.read_bytes(name) != b"node":
                raise Missing(
                    f"the node {where} does not see the store {store.root}",
                    hint="--store on a shared file system or an object store (s3://, gs://)",
                )
            store.delete(name)
    finally:
        store.delete(nonce)


def _silence() -> None:
    for name in ("ray", "ray.tune", "ray.train", "ray.air", "ray._private", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def free_orphans(program: str = "-m sweeps") -> int:
    """Remove placement groups of dead drivers of `program` (part of their command line); returns how many.

    Ray frees a job's groups when its driver dies; a Ray Train controller that outlives it by a moment, and was waiting for its workers,
    then asks for them once more. That group belongs to a job that has ended: nobody uses it, and its place is gone for ever (Ray 2.60).
    """
    import ray
    from ray._private import state
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    dead = {job["JobID"] for job in state.jobs() if job["IsDead"] and program in job["Entrypoint"]}
    lost = [key for key, group in placement_group_table().items() if group["state"] != "REMOVED" and key[-JOB_DIGITS:] in dead]
    for key in lost:  # the id of a group ends with that of its job
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))
    return len(lost)


def why_idle(placement: Placement) -> str:
    """What the cluster lacks, for the watchdog; what dead drivers have left behind is freed by the way."""
    import ray

    address = ray.get_runtime_context().gcs_address
    try:
        _refuse_deaf(address)
    except Missing:
        return f"the head of the Ray cluster at {address} does not answer; if it is lost, start one and give the same command"
    lost = free_orphans()
    if lost:
        return f"{lost} placement groups of dead drivers held a part of the cluster; they are freed now"
    try:
        slots(placement, node_resources())
    except Missing as error:
        return f"the cluster has changed: {error}"
    free, whole = ray.available_resources(), ray.cluster_resources()
    told = ", ".join(f"{free.get(name, 0.0):g} of {whole.get(name, 0.0):g} {name}s are free" for name in placement.shape)
    shape = " and ".join(f"{need:g} {name}" for name, need in placement.shape.items())
    return f"on the cluster {told}; a worker takes {shape}" + (f", {placement.workers} start together" if placement.workers > 1 else "")
