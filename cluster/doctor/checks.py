"""What the doctor found, judged: pure functions from facts to checks, so that every one is tested without a
cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from idgbr.interfaces import Json


@dataclass(frozen=True)
class Limits:
    """Least (or greatest) values that pass."""

    free_gb: float = 10.0
    shared_memory_gb: float = 1.0
    clock_skew_s: float = 2.0
    seconds: float = 2.0  # of all-reduce for each pair


LIMITS = Limits()


@dataclass(frozen=True)
class Check:
    """One finding. `code` is the exit code it asks for: 0, 3 something is missing, 4 nodes disagree."""

    name: str
    code: int
    found: str
    do: str = ""


@dataclass
class Node:
    """What is known of a node. `seen` are the store probes it can read; `skew_s` its clock against ours,
    `skew_error_s` the doubt."""

    label: str
    ip: str
    facts: Json = field(default_factory=dict)
    silent: str = ""
    skew_s: float = 0.0
    skew_error_s: float = 0.0
    store_error: str = ""
    seen: set[str] = field(default_factory=set)
    unreachable: dict[str, str] = field(default_factory=dict)


def judge(nodes: Sequence[Node], pairs: Mapping[tuple[str, str], Json], limits: Limits, store: str, expected: int = 0) -> list[Check]:
    """All checks. `pairs` holds the all-reduce result of each pair of node labels."""
    answered = [n for n in nodes if not n.silent]
    checks = [_count(nodes, expected)]
    checks += [
        Check("answers", 3, f"{n.label}: {n.silent}", "look at Ray's logs on that node (RAY_TMPDIR/ray/session_latest/logs); restart it")
        for n in nodes
        if n.silent
    ]
    checks.append(
        _same(
            "python", {n.label: n.facts["python"] for n in answered}, "use one image, or one environment on shared storage, for all nodes"
        )
    )
    for name in ("ray", "torch", "idgbr"):
        versions = {n.label: n.facts["versions"][name] for n in answered}
        checks.append(_same(name, versions, f"install one version on all nodes: pip install --constraint constraints.txt {name}"))
    checks.append(
        _same(
            "sources",
            {n.label: n.facts["code"] for n in answered},
            "the same version number but other files: install the package anew on the nodes named",
        )
    )
    checks += _store(answered, store)
    checks += [
        _gpus(answered),
        *_weights(answered),
        _clocks(answered, limits),
        *_space(answered, limits),
        _shared_memory(answered, limits),
        _ports(answered),
        _pairs(pairs),
    ]
    return checks


def _count(nodes: Sequence[Node], expected: int) -> Check:
    found = f"{len(nodes)} alive" + (f", {expected} expected" if expected else "") + ": " + ", ".join(n.label for n in nodes)
    if len(nodes) < expected:
        return Check(
            "nodes",
            3,
            found,
            "look at the log of the workers that did not join; is network_interface right, are ports open between the nodes?",
        )
    return Check("nodes", 0, found)


def _same(name: str, values: Mapping[str, str], do: str) -> Check:
    if not values:
        return Check(name, 3, "no node answered", do)
    usual, _ = Counter(values.values()).most_common(1)[0]
    others = {label: value for label, value in values.items() if value != usual}
    if others:
        return Check(
            name, 4, f"{usual} on {len(values) - len(others)} node(s), but " + ", ".join(f"{v} on {n}" for n, v in others.items()), do
        )
    if usual == "missing":
        return Check(name, 3, f"{name} is on no node", do)
    return Check(name, 0, f"{usual} on {len(values)} node(s)")


def _store(nodes: Sequence[Node], store: str) -> list[Check]:
    checks = []
    failed = {n.label: n.store_error for n in nodes if n.store_error}
    if failed:
        found = "; ".join(f"{label} cannot use {store}: {error}" for label, error in failed.items())
        checks.append(Check("store", 3, found, "mount it on the nodes named (or give them the right to it), then run the doctor again"))
    wrote = [n for n in nodes if not n.store_error]
    groups: dict[frozenset[str], list[str]] = {}
    for n in wrote:
        groups.setdefault(frozenset(n.seen & {m.label for m in wrote}), []).append(n.label)
    if len(groups) > 1:
        most = max(groups, key=lambda seen: len(groups[seen]))
        apart = [label for seen, labels in groups.items() if seen != most for label in labels]
        checks.append(
            Check(
                "store place",
                4,
                f"{store} is another place on {', '.join(apart)} than on {', '.join(groups[most])}: they do not see each other's files",
                "the path must be shared storage (NFS, Lustre, a ReadWriteMany volume) or a URI; see `findmnt -T` of it there",
            )
        )
    if not checks:
        checks.append(Check("store", 0, f"{store} is read and written by {len(nodes)} node(s), and is one place"))
    return checks


def _gpus(nodes: Sequence[Node]) -> Check:
    words = {}
    for n in nodes:
        g = n.facts["gpus"]
        if g["names"] and g["usable"] < len(g["names"]):
            return Check(
                "gpus",
                3,
                f"{n.label}: {len(g['names'])} GPU(s) by nvidia-smi, {g['usable']} usable by torch",
                f"driver {g['driver']} may be older than torch's CUDA needs, or the container lacks --gpus / --nv",
            )
        words[n.label] = (
            ", ".join(f"{count} x {name}" for name, count in Counter(g["names"]).items())
            + (f", driver {g['driver']}" if g["driver"] else "")
            or "none"
        )
    kinds = Counter(words.values())
    if len(kinds) > 1:
        # Not an error: a head without GPUs is usual. Different drivers on nodes that have some is worth a look.
        drivers = {n.facts["gpus"]["driver"] for n in nodes if n.facts["gpus"]["driver"]}
        found = "; ".join(f"{n}: {w}" for n, w in words.items())
        return Check("gpus", 4 if len(drivers) > 1 else 0, found, "bring the nodes to one driver" if len(drivers) > 1 else "")
    return Check("gpus", 0, f"{next(iter(kinds), 'none')} on each of {len(nodes)} node(s)")


def _weights(nodes: Sequence[Node]) -> list[Check]:
    checks = []
    for path in nodes[0].facts["weights"] if nodes else ():
        values = {n.label: n.facts["weights"][path] for n in nodes}
        failed = {label: v for label, v in values.items() if v.startswith("error")}
        if failed:
            found = "; ".join(f"{label}: {path}: {v.removeprefix('error: ')}" for label, v in failed.items())
            checks.append(Check("weights", 3, found, "copy the file there, or put it on the shared storage"))
        else:
            same = _same(f"weights {path}", values, "copy the right file to the nodes named")
            checks.append(Check("weights", same.code, f"{path}: {same.found}", same.do))
    return checks


def _clocks(nodes: Sequence[Node], limits: Limits) -> Check:
    wrong = {n.label: n for n in nodes if abs(n.skew_s) - n.skew_error_s > limits.clock_skew_s}
    if wrong:
        found = ", ".join(f"{label} is {n.skew_s:+.1f} s from here (± {n.skew_error_s:.2f} s)" for label, n in wrong.items())
        return Check("clocks", 4, found, "start time synchronisation there (`timedatectl set-ntp true`, chrony)")
    worst = max((abs(n.skew_s) for n in nodes), default=0.0)
    return Check("clocks", 0, f"within {worst:.2f} s of here (allowed {limits.clock_skew_s:g} s)")


def _space(nodes: Sequence[Node], limits: Limits) -> list[Check]:
    short = []
    for n in nodes:
        seen: set[object] = set()
        for path, space in n.facts["space"].items():
            if "error" in space:
                short.append(f"{n.label}: {path}: {space['error']}")
            elif space["free_gb"] < limits.free_gb and space["device"] not in seen:  # one finding a file system
                short.append(f"{n.label}: {space['free_gb']:.1f} GB free of {space['total_gb']:.1f} GB at {path}")
                seen.add(space["device"])
    if short:
        return [
            Check(
                "disk",
                3,
                f"{'; '.join(short)} (needed: {limits.free_gb:g} GB)",
                "free some space there, or point scratch (Ray's folder) or the store elsewhere",
            )
        ]
    least = min((s["free_gb"] for n in nodes for s in n.facts["space"].values()), default=0.0)
    return [Check("disk", 0, f"at least {least:.0f} GB free everywhere (needed {limits.free_gb:g} GB)")]


def _shared_memory(nodes: Sequence[Node], limits: Limits) -> Check:
    small = [f"{n.label}: {n.facts['shared_memory_gb']:.2f} GB" for n in nodes if n.facts["shared_memory_gb"] < limits.shared_memory_gb]
    if small:
        return Check(
            "shared memory",
            3,
            f"/dev/shm is too small on {'; '.join(small)} (needed: {limits.shared_memory_gb:g} GB): objects go to the disk",
            "docker run --shm-size=8g; Kubernetes: kuberay.shared_memory_gb in the spec",
        )
    least = min((n.facts["shared_memory_gb"] for n in nodes), default=0.0)
    return Check("shared memory", 0, f"at least {least:.1f} GB")


def _ports(nodes: Sequence[Node]) -> Check:
    failed = [f"{n.label} cannot reach {target} ({why})" for n in nodes for target, why in n.unreachable.items()]
    if failed:
        return Check(
            "ports",
            3,
            "; ".join(failed[:6]) + (f"; and {len(failed) - 6} more" if len(failed) > 6 else ""),
            "open all TCP ports between the nodes (Ray's workers listen on many); is network_interface the one they share?",
        )
    return Check("ports", 0, "every node reaches Ray's ports on every other")


def _pairs(pairs: Mapping[tuple[str, str], Json]) -> Check:
    failed = [f"{a} with {b}: {r['error']}" for (a, b), r in pairs.items() if "error" in r]
    if failed:
        return Check(
            "all-reduce",
            3,
            "; ".join(failed[:6]) + (f"; and {len(failed) - 6} more" if len(failed) > 6 else ""),
            "set network_interface in the spec (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), and open the ports between the nodes",
        )
    if not pairs:
        return Check("all-reduce", 0, "one node, nothing to reduce with")
    rates = {pair: float(r["gb_per_s"]) for pair, r in pairs.items()}
    slow = min(rates, key=lambda pair: rates[pair])
    return Check(
        "all-reduce",
        0,
        f"{len(pairs)} pair(s) right; slowest {rates[slow]:.3f} GB/s ({slow[0]} and {slow[1]}), fastest {max(rates.values()):.3f} GB/s",
    )


def rounds(labels: Sequence[str]) -> list[list[tuple[str, str]]]:
    """All pairs in rounds of disjoint pairs (circle method): n - 1 rounds for an even number of nodes, n for an odd
    one."""
    circle: list[str | None] = [*labels, *([None] if len(labels) % 2 else [])]
    n = len(circle)
    plan = []
    for _ in range(n - 1):
        met = [(circle[i], circle[n - 1 - i]) for i in range(n // 2)]
        plan.append([(a, b) for a, b in met if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [r for r in plan if r]


def skew(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(offset, doubt) in seconds from samples (asked, theirs, answered): the quickest answer is the surest
    (Cristian's algorithm)."""
    asked, theirs, answered = min(samples, key=lambda s: s[2] - s[0])
    return theirs - (asked + answered) / 2, (answered - asked) / 2


def as_text(checks: Sequence[Check]) -> str:
    """The checks as lines for people."""
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if not check.code else 'FAIL'}  {check.name}: {check.found}")
        if check.code:
            lines.append(f"      do: {check.do}")
    bad = sum(1 for c in checks if c.code)
    lines.append(f"{bad} of {len(checks)} checks failed" if bad else f"all {len(checks)} checks passed")
    return "\n".join(lines)


def verdict(checks: Sequence[Check]) -> int:
    """Exit code of all checks together."""
    return max((check.code for check in checks), default=0)
