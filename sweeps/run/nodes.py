"""The Ray cluster of a sweep: join or start it, free resources that dead drivers hold, and find out why no work
starts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

from cluster.ray_private import dead_jobs
from cluster.session import SETTINGS, alive_nodes, connected, node_resources, require_answer
from idgbr.errors import Missing
from sweeps.run.placement import Placement, slots

QUIET = {
    **SETTINGS,
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C is handled here
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nothing restores from Tune's state
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "100000",  # the watchdog's message says more
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
JOB_DIGITS = 8
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head alone


@contextlib.contextmanager
def cluster(placement: Placement, cores: int | None = None) -> Iterator[list[dict[str, float]]]:
    """Resources of each node of the cluster of `placement.address`, or of one started on this machine for the time of
    the block.

    Raises:
        Missing: no cluster answers at the address.
        Disagreement: the cluster refuses our token.
        BadRequest: this process is connected to another cluster already.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Train's placement groups are freed through the dashboard after a stop (ray#54305)
    with connected(placement.address, cpus=cores, dashboard=placement.workers > 1, log_level="CRITICAL"):
        yield node_resources()


def is_on_head() -> bool:
    """Whether this process runs on the head of the connected cluster."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and HEAD in node["Resources"] for node in alive_nodes())


def free_orphans(program: str = "-m sweeps") -> int:
    """Remove placement groups of dead drivers of `program` (part of their command line). Returns how many.

    Ray frees a job's groups when its driver dies. A Ray Train controller that outlives the driver by a moment, and
    was waiting for its workers, then requests them once more. That group belongs to a job that has ended, and its
    resources are never freed (Ray 2.60).
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    dead = dead_jobs(program)
    lost = [key for key, group in placement_group_table().items() if group["state"] != "REMOVED" and key[-JOB_DIGITS:] in dead]
    for key in lost:  # the id of a group ends with that of its job
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))
    return len(lost)


def why_idle(placement: Placement) -> str:
    """What the cluster lacks, for the watchdog; also frees placement groups of dead drivers."""
    import ray

    address = ray.get_runtime_context().gcs_address
    try:
        require_answer(address)
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
    amounts = ", ".join(f"{free.get(name, 0.0):g} of {whole.get(name, 0.0):g} {name}s are free" for name in placement.shape)
    shape = " and ".join(f"{need:g} {name}" for name, need in placement.shape.items())
    return f"on the cluster {amounts}; a worker takes {shape}" + (f", {placement.workers} start together" if placement.workers > 1 else "")


# Ray's names of the kinds of GPU (`accelerator_type:` resources of a node), and the memory of each in GB; of kinds that were sold with
# several sizes the largest, so that no training is refused that may fit
KINDS_GB = {
    "T4": 16, "P100": 16, "V100": 32, "L4": 24, "A10": 24, "A10G": 24, "A40": 48, "L40": 48, "L40S": 48, "A100": 80, "A100-40G": 40,
    "A100-80G": 80, "H100": 80, "H20": 96, "H200": 141, "B200": 180,
}  # fmt: skip


def gpu_memory_gb(has_cluster: bool = True) -> list[float]:
    """Memory of each kind of GPU of the connected cluster, in GB; without a cluster, of this machine's. Empty where one is not known."""
    if has_cluster:
        return kinds_gb(node_resources())
    import torch

    return [torch.cuda.get_device_properties(i).total_memory / 1e9 for i in range(torch.cuda.device_count())]


def kinds_gb(nodes: Sequence[Mapping[str, float]]) -> list[float]:
    """`gpu_memory_gb` of these nodes' resources: those with a GPU name its kind, e.g. {"GPU": 8.0, "accelerator_type:H100": 1.0}."""
    found: list[float] = []
    for node in nodes:
        if not node.get("GPU"):
            continue
        kinds = {name.partition(":")[2] for name in node if name.startswith("accelerator_type:")}
        if not kinds or kinds - KINDS_GB.keys():
            return []
        found.append(float(min(KINDS_GB[kind] for kind in kinds)))  # a node may carry both A100 and A100-40G
    return found
