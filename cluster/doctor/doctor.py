"""Can these nodes work together? One probe a node (`probe.py`) gathers facts, `checks.py` judges them."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cluster.doctor.checks import LIMITS, Check, Limits, Node, as_text, judge, rounds, skew, verdict
from cluster.launch.spec import ClusterSpec
from cluster.session import connected
from idgbr.errors import BadRequest, Disagreement, Missing, SomeFailed
from idgbr.interfaces import Json
from idgbr.machine import expanded

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["Check", "Limits", "as_text", "before", "examine", "verdict"]

PATIENCE_S = 90.0  # first answer of a probe: a Python process must start there, on a slow file system


def before(spec: ClusterSpec) -> None:
    """What can be seen without a node, where this machine shares storage with them (Slurm's login nodes do).

    Raises:
        Missing: the store or the folder for jobs cannot be written from here.
    """
    from idgbr.store import Store

    if spec.kind == "slurm" and spec.store_is_path and Path(spec.store).parent.is_dir():
        Store(spec.store).check_writable()
    for path in spec.doctor.weights:
        if spec.kind == "slurm" and os.path.isabs(path) and not os.path.exists(path):
            raise Missing(f"the weights {path} are not there", hint="doctor.weights in the spec")


@dataclass(frozen=True)
class Request:
    """What the doctor is asked: see `python -m cluster doctor --help`."""

    store: str = ""
    nodes: int = 0
    weights: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    limits: Limits = LIMITS
    json: bool = False

    def words(self) -> list[str]:
        """The command line of the same request inside a job."""
        options = {"--store": self.store, "--nodes": self.nodes, **{f"--{n.replace('_', '-')}": v for n, v in asdict(self.limits).items()}}
        given = [str(word) for option, value in options.items() if value for word in (option, value)]
        repeated = [word for path in self.weights for word in ("--weights", path)] + [w for p in self.folders for w in ("--folder", p)]
        return ["cluster", "doctor", "here", *given, *repeated, *(["--json"] if self.json else [])]


def run(target: str, token_file: str, open_cluster: bool, request: Request) -> None:
    """The verb: from here where `target` is Ray's own address or `here`, else as a job on the cluster.

    Raises:
        Missing, Disagreement: a check failed (all are printed), or the cluster cannot be reached.
    """
    from cluster.launch.commands import followed, is_address, opened, submit
    from cluster.launch.spec_file import load

    if target == "here" or (not is_address(target) and ":" in target and not Path(target).exists()):
        address = os.environ.get("RAY_ADDRESS", "") if target == "here" else target
        if not address:
            raise Missing("`here` is for commands inside a job: RAY_ADDRESS is not set", hint="doctor SPEC, or doctor IP:PORT")
        if token_file:
            os.environ |= {"RAY_AUTH_TOKEN_PATH": str(expanded(token_file)), "RAY_AUTH_MODE": "token"}
        store = request.store or os.environ.get("IDGBR_STORE", "")
        found = examine(address, replace(request, store=store))
        print(json.dumps([asdict(check) for check in found], indent=1) if request.json else as_text(found))
        require_sound(found)
        return
    if not is_address(target):
        spec = load(target)
        before(spec)
        d = spec.doctor
        limits = replace(request.limits, free_gb=d.free_gb, shared_memory_gb=d.shared_memory_gb, clock_skew_s=d.clock_skew_s)
        request = replace(request, store=spec.store, nodes=spec.nodes, weights=(*d.weights, *request.weights), limits=limits)
    cluster = opened(target, token_file, open_cluster)
    job = followed(cluster, submit(cluster, request.words()))
    if job.state != "SUCCEEDED":
        kind = {Missing.exit_code: Missing, Disagreement.exit_code: Disagreement}.get(job.exit_code or 0, SomeFailed)
        raise kind("the doctor found something, or could not run there (see above)", value=f"job {job.id}: {job.message}")


def require_sound(checks: Sequence[Check]) -> None:
    """Raises:
    Disagreement: nodes disagree. Missing: something is missing, and nodes agree.
    """
    failed = [check.name for check in checks if check.code]
    if failed:
        kind = Disagreement if verdict(checks) == Disagreement.exit_code else Missing
        raise kind(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


def examine(address: str, request: Request) -> list[Check]:
    """Join the cluster at `address` (IP:PORT) as a driver and check every node that is alive.

    Takes about `limits.seconds` + 2 s for each of the n - 1 rounds of pairs.

    Raises:
        BadRequest: no store given; `auto`, which on a shared node may be another user's cluster.
        Missing, Disagreement: the cluster cannot be joined.
    """
    if not request.store:
        raise BadRequest("no store to check", hint="--store FOLDER or IDGBR_STORE")
    if address == "auto":
        raise BadRequest("`auto` joins whatever Ray runs on this machine, perhaps another user's", allowed="IP:PORT")
    with connected(address):
        return _examine(request)


def _examine(request: Request) -> list[Check]:
    store, limits = request.store, request.limits
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.doctor import probe

    cloudpickle.register_pickle_by_value(probe)  # a node may hold another idgbr, or none
    actor = ray.remote(num_cpus=0, max_restarts=0)(probe.Probe)
    alive = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: n["NodeManagerAddress"])
    nodes, probes = {}, {}
    for n in alive:
        ip = n["NodeManagerAddress"]
        label = f"{n.get('NodeManagerHostname') or 'node'} ({ip})"
        label = label if label not in nodes else f"{label} {n['NodeID'][:6]}"
        nodes[label] = Node(label, ip)
        probes[label] = actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote()
    ask = _asker(nodes, probes)

    ask("ping", lambda label: ())  # starts the processes; what takes long once does not count as clock skew below
    checked = [os.environ.get("RAY_TMPDIR", "/tmp"), "~/.cache/idgbr", *([] if "://" in store else [store]), *request.folders]
    for label, facts in ask("facts", lambda label: (store, list(request.weights), checked)).items():
        nodes[label].facts = facts
    for label in list(probes):
        samples = []
        for _ in range(3):
            asked = time.time()
            answer = ask("ping", lambda label: (), only=[label])
            if label in answer:
                samples.append((asked, answer[label], time.time()))
        if samples:
            nodes[label].skew_s, nodes[label].skew_error_s = skew(samples)

    _compare_store(store, nodes, ask)
    targets = {
        n["NodeManagerAddress"]: [(n["NodeManagerAddress"], n["NodeManagerPort"]), (n["NodeManagerAddress"], n["ObjectManagerPort"])]
        for n in alive
    }
    others = {label: [t for ip, ts in targets.items() if ip != nodes[label].ip for t in ts] for label in probes}
    for label, failed in ask("connect", lambda label: (others[label], 5.0)).items():
        nodes[label].unreachable = failed
    return judge(list(nodes.values()), _reduce(nodes, probes, limits), limits, store, request.nodes)


Ask = Callable[..., Json]
Probes: TypeAlias = "dict[str, ActorHandle]"  # a `probe.Probe` on each node, by the node's name


def _asker(nodes: dict[str, Node], probes: Probes) -> Ask:
    """A function that calls one method on all probes at once; a probe that does not answer is taken off, with the
    reason."""
    import ray

    def ask(method: str, arguments: Callable[[str], tuple[object, ...]], only: Sequence[str] | None = None) -> Json:
        refs = {label: getattr(probes[label], method).remote(*arguments(label)) for label in (only or list(probes))}
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=PATIENCE_S)
        answers = {}
        for label, ref in refs.items():
            try:
                answers[label] = ray.get(ref, timeout=0)
            except ray.exceptions.GetTimeoutError:
                nodes[label].silent = f"no answer to {method!r} within {PATIENCE_S:.0f} s"
            except ray.exceptions.RayError as error:
                nodes[label].silent = f"{method!r} failed: {str(error).strip().splitlines()[-1][:300]}"
            if nodes[label].silent:
                probes.pop(label)
        return answers

    return ask


def _compare_store(store: str, nodes: dict[str, Node], ask: Ask) -> None:
    """Each node writes a file with a text of its own, then reads those of all nodes: if all are there, the store is one place."""
    mark = secrets.token_hex(6)
    names = {label: f"_doctor-{mark}-{i}" for i, label in enumerate(nodes)}
    for label, error in ask("write", lambda label: (store, names[label], f"{mark} {label}")).items():
        nodes[label].store_error = error
    wrote = [label for label in nodes if not nodes[label].silent and not nodes[label].store_error]
    for label, found in ask(
        "read", lambda label: (store, list(names.values())), only=[label for label in nodes if not nodes[label].silent]
    ).items():
        nodes[label].seen = {other for other in wrote if found.get(names[other]) == f"{mark} {other}"} | {
            n for n in nodes if n not in wrote
        }
    if wrote:
        ask("remove", lambda label: (store, list(names.values())), only=[label for label in wrote if not nodes[label].silent])


def _reduce(nodes: dict[str, Node], probes: Probes, limits: Limits) -> dict[tuple[str, str], Json]:
    import ray

    results: dict[tuple[str, str], Json] = {}
    wait = 20.0
    for meeting in rounds(sorted(probes)):
        refs = {}
        for a, b in meeting:
            port = ray.get(probes[a].free_port.remote(), timeout=PATIENCE_S)
            refs[a, b] = [
                probes[label].all_reduce.remote(rank, nodes[a].ip, port, limits.seconds, wait) for rank, label in enumerate((a, b))
            ]
        everything = list(itertools.chain.from_iterable(refs.values()))
        ray.wait(everything, num_returns=len(everything), timeout=limits.seconds + 2 * wait + PATIENCE_S)
        for pair, both in refs.items():
            try:
                answers = ray.get(both, timeout=0)
                results[pair] = next((r for r in answers if "error" in r), answers[0])
            except ray.exceptions.RayError as error:
                results[pair] = {"error": str(error).strip().splitlines()[-1][:300] or type(error).__name__}
    return results
