"""Ray for this process: the cluster it joins or starts, its room, and a store that is one place for all its nodes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from cluster.node import make_token, package_versions
from cluster.ray_private import RayletDied, is_version_mismatch, loopback_only, patient_start, read_authentication_again, refusal
from idgbr.errors import BadRequest, Disagreement, IdgbrError, Missing
from idgbr.machine import allowed_cores, expanded
from idgbr.store import Store

START_TRIES = 4
CONNECT_S = 10.0
NODE_CHECK_S = 120.0
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large passes through it: artefacts are in the store
TEMPORARY_LIMIT = 36  # characters: a socket path ends at 107 bytes

# What Ray reads from the environment; a user's own values win.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in the user's settings stay valid
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how often the controller polls; `ray.train.report` waits for it
    "RAY_worker_niceness": "0",  # of a cluster started here; Ray's default is 15, below everything else on the machine
    "RAY_worker_register_timeout_seconds": "300",  # processes start slowly on a busy machine
    "RAY_agent_register_timeout_ms": "300000",
}


class NodeInfo(TypedDict):
    """The part of `ray.nodes()` that is used."""

    NodeID: str
    NodeManagerAddress: str
    NodeManagerHostname: str
    Resources: dict[str, float]


@contextlib.contextmanager
def connected(address: str = "", *, cpus: int | None = None, dashboard: bool = False, log_level: str = "ERROR") -> Iterator[None]:
    """Connect this process to Ray for the time of the block.

    The cluster is, in this order: the one this process is connected to; the one at `address`; the one at
    `RAY_ADDRESS`; one started on this machine, which listens on 127.0.0.1, requires the token of a file only its
    owner can read, and ends with the block.

    Args:
        address: IP:PORT of the head, or "auto".
        cpus: of a cluster started here; default: all this process may use.
        dashboard: of a cluster started here. Ray Train needs it to free placement groups after a stop (ray#54305).
        log_level: of Ray's own loggers.

    Raises:
        BadRequest: this process is connected to another cluster than `address`.
        Missing: no cluster answers.
        Disagreement: the cluster refuses our token.
    """
    environment()
    import ray

    _set_log_level(log_level)
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if address not in ("", "auto", joined):
            raise BadRequest(
                "this process is connected to another Ray cluster",
                value=f"{joined}, requested {address}",
                hint="ray.shutdown() first, or give no address",
            )
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    with _joined(address, log_level) if address else _started(cpus, dashboard, log_level):
        _set_log_level(log_level)  # `ray.init` has set its own
        yield


def environment() -> None:
    """Set what Ray reads from the environment, before it is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _joined(address: str, log_level: str) -> Iterator[None]:
    import ray

    require_answer(address)
    read_authentication_again()
    if _host_and_port(address) and (why := refusal(address)):
        raise _refused(address, why)
    try:
        ray.init(address=address, logging_level=log_level, log_to_driver=False)
    except ray.exceptions.AuthenticationError as error:
        raise _refused(address, _last_line(error)) from error
    except Exception as error:  # Ray also raises bare exceptions
        ray.shutdown()
        if is_version_mismatch(error):
            raise Disagreement(
                f"the Ray cluster at {address} runs other versions than this process",
                value=" ".join(str(error).split())[:400],
                hint="the same environment everywhere (constraints.txt), or run this inside the cluster: python -m cluster submit",
            ) from error
        raise no_cluster(f"at {address}", _last_line(error)) from error
    try:
        yield
    finally:
        _shutdown()


@contextlib.contextmanager
def _started(cpus: int | None, dashboard: bool, log_level: str) -> Iterator[None]:
    import ray

    before = {name: os.environ.pop(name, None) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")}
    temporary = os.environ.get("RAY_TMPDIR", "/tmp/ray")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="idgbr-ray-"))
        stack.callback(_restore, before)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(make_token(Path(folder) / "token"))}
        read_authentication_again()
        stack.enter_context(loopback_only())
        for attempt in range(1, START_TRIES + 1):
            try:
                with patient_start():
                    ray.init(
                        address="local",  # never a cluster that somebody else has started on this machine
                        num_cpus=cpus or allowed_cores(),
                        include_dashboard=dashboard,
                        object_store_memory=OBJECT_STORE_BYTES,
                        _temp_dir=temporary if len(temporary) <= TEMPORARY_LIMIT else "/tmp/ray",
                        logging_level=log_level,
                        log_to_driver=False,
                    )
                break
            except Exception as error:  # Ray also raises bare exceptions
                ray.shutdown()
                if not isinstance(error, RayletDied) or attempt == START_TRIES:
                    raise no_cluster("on this machine", _last_line(error)) from error
        stack.callback(_shutdown)
        where = ray.get_runtime_context().gcs_address
        if not where.startswith("127."):
            logging.getLogger(__name__).warning("Ray listens on %s, not on loopback alone; it still requires the token", where)
        yield


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    read_authentication_again()


def _shutdown() -> None:
    import ray

    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C must not leave Ray's processes behind
        ray.shutdown()


def _set_log_level(level: str) -> None:
    for name in ("ray", "ray.tune", "ray.train", "ray.air", "ray._private", "ray.data"):
        logging.getLogger(name).setLevel(level)


def _host_and_port(address: str) -> tuple[str, int] | None:
    """None for "auto" and other addresses that Ray looks up itself."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def require_answer(address: str) -> None:
    """Fail at once if nothing listens at `address`; Ray itself would try without end.

    Raises:
        Missing: nothing listens there.
    """
    found = _host_and_port(address)
    if found is None:
        return
    try:
        socket.create_connection(found, timeout=CONNECT_S).close()
    except OSError as error:
        raise no_cluster(f"at {address}", error.strerror or str(error)) from error


def _refused(address: str, why: str) -> Disagreement:
    return Disagreement(
        f"the Ray cluster at {address} refuses our token: it is another user's, or was started again",
        value=why,
        hint="RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (doctor: --token-file) of the cluster you started",
    )


def no_cluster(where: str, why: str) -> Missing:
    """The error for a cluster that does not answer."""
    return Missing(
        f"no Ray cluster {where}: {why}",
        hint="python -m cluster doctor; or no address (--address, RAY_ADDRESS), to use this machine alone",
    )


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__


# ---- what is on the cluster ----------------------------------------------------------------------------------------------


def alive_nodes() -> list[NodeInfo]:
    """Nodes of the connected cluster that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def node_resources() -> list[dict[str, float]]:
    """Of each node that is alive, e.g. {"CPU": 8.0, "GPU": 2.0}."""
    return [dict(node["Resources"]) for node in alive_nodes()]


def check_room(workers: int, cpus: float, gpus: float) -> None:
    """Refuse workers that do not fit on a cluster of this machine alone. Others may grow.

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
                f"no room for the workers: {workers} x {each:g} {name} requested, {there:g} there",
                hint=f"--workers {int(there // each)}" if there >= each else "RAY_ADDRESS of a larger cluster",
            )


def check_nodes(store: Store, versions: str = "") -> None:
    """On a cluster of several nodes: every node reads what this process wrote in the store, and this process reads
    what they wrote.

    Args:
        versions: of packages, as JSON; nodes with others are refused. Default: this process's.

    Raises:
        Disagreement: a node has other versions.
        Missing: a node does not answer, cannot use the store, or has another folder at its path.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes, versions = alive_nodes(), versions or package_versions()
    if len(nodes) < 2:  # this machine alone
        return
    base = f"scratch/preflight-{uuid.uuid4().hex[:12]}"
    store.write_bytes(f"{base}/driver", b"driver")
    visit = ray.remote(num_cpus=0, max_retries=0)(_visit)
    silent, apart = [], []
    try:
        asked = {
            node["NodeID"]: visit.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                root_for_all(store), base, node["NodeID"]
            )
            for node in nodes
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_CHECK_S)
        for node in nodes:
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                found, trouble = ray.get(asked[node["NodeID"]], timeout=0)
            except ray.exceptions.RayError as error:
                silent.append(f"{where}: {_last_line(error)}")
                continue
            if found != versions:
                raise _other_versions(where, versions, found)
            if not trouble and store.read_bytes(f"{base}/{node['NodeID']}") != node["NodeID"].encode():
                trouble = "writes to another place"
            if trouble:
                apart.append(f"{where} {trouble}")
        if silent:
            raise Missing(
                f"{len(silent)} of {len(nodes)} nodes cannot run this package, or were lost during the check: {'; '.join(silent)}",
                hint="the same environment on every node; then the same command again",
            )
        if apart:
            raise not_shared(store, apart)
    finally:
        store.delete(base)


def _visit(root: str, base: str, node: str) -> tuple[str, str]:
    """Runs on a node: (versions of its packages, what is wrong with its store or "")."""
    found = package_versions()
    try:
        there = Store(root)
        if there.read_bytes(f"{base}/driver") != b"driver":
            return found, "does not see what the driver wrote"  # what is written there could not be removed from here
        there.write_bytes(f"{base}/{node}", node.encode())
    except (IdgbrError, OSError) as error:
        return found, f"cannot use it: {error}"
    return found, ""


def _other_versions(where: str, versions: str, found: str) -> Disagreement:
    here, there = json.loads(versions), json.loads(found)
    other = ", ".join(f"{p} {there.get(p)} there, {v} here" for p, v in here.items() if there.get(p) != v)
    return Disagreement(f"other versions on the node {where}", value=other, hint="the same environment on every node: constraints.txt")


def not_shared(store: Store, where: list[str]) -> Missing:
    """The error for a store that is another folder on some nodes."""
    return Missing(
        f"the store {store.root} is not one place for all nodes: {'; '.join(where)}",
        hint="a shared folder (NFS, Lustre, a ReadWriteMany volume) mounted alike on all nodes, or a URI such as s3://BUCKET/PREFIX",
    )


def root_for_all(store: Store) -> str:
    """The store's root as it reads on every node: a URI, or an absolute path (workers run in folders of their own)."""
    return store.root.rstrip("/") if "://" in store.root else str(expanded(store.root).absolute())
