"""What the doctor says of what it found: pure functions, every kind of trouble, no cluster."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.doctor.checks import Check, Limits, Node, as_text, judge, rounds, skew, verdict

SPACE = {"free_gb": 100.0, "total_gb": 200.0, "device": 1}
FACTS: dict[str, Any] = {
    "host": "h",
    "python": "3.11.7",
    "versions": {"torch": "2.15.0", "ray": "2.60.0", "idgbr": "0.1.0"},
    "code": "abc",
    "weights": {"/w": "5 bytes, aa"},
    "gpus": {"names": ["A100", "A100"], "driver": "570", "usable": 2},
    "space": {"/tmp": SPACE},
    "shared_memory_gb": 8.0,
    "interface": "eth0",
}
LABELS = ["a", "b", "c"]


def cluster() -> list[Node]:
    return [Node(label, f"10.0.0.{i}", copy.deepcopy(FACTS), seen=set(LABELS)) for i, label in enumerate(LABELS)]


def pairs() -> dict[tuple[str, str], dict[str, Any]]:
    return {pair: {"rounds": 9, "gb_per_s": 1.5} for pair in combinations(LABELS, 2)}


def look(nodes: list[Node], results: dict[tuple[str, str], dict[str, Any]] | None = None, expected: int = 3) -> dict[str, Check]:
    checks = judge(nodes, pairs() if results is None else results, Limits(), "/store", expected)
    return {c.name: c for c in checks}


def test_a_sound_cluster_passes_every_check() -> None:
    found = look(cluster())
    assert all(c.code == 0 for c in found.values()), as_text(list(found.values()))
    assert verdict(list(found.values())) == 0
    assert "all 13 checks passed" not in as_text([])


def spoil(nodes: list[Node], what: str) -> None:
    b = nodes[1]
    match what:
        case "python":
            b.facts["python"] = "3.12.1"
        case "ray" | "torch" | "idgbr":
            b.facts["versions"][what] = "missing"
        case "sources":
            b.facts["code"] = "xyz"
        case "store":
            b.store_error = "PermissionError: no"
        case "store place":
            b.seen = {"b"}
            nodes[0].seen = nodes[2].seen = {"a", "c"}
        case "gpus":
            b.facts["gpus"]["usable"] = 1
        case "weights":
            b.facts["weights"]["/w"] = "error: No such file or directory"
        case "clocks":
            b.skew_s, b.skew_error_s = -7.0, 0.1
        case "disk":
            b.facts["space"]["/tmp"] = {**SPACE, "free_gb": 0.2}
        case "shared memory":
            b.facts["shared_memory_gb"] = 0.064
        case "ports":
            b.unreachable = {"10.0.0.0:7000": "timed out"}
        case "answers":
            b.silent = "no answer to 'ping' within 90 s"


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("python", 4, "3.11.7 on 2 node(s), but 3.12.1 on b"),
        ("ray", 4, "missing on b"),
        ("torch", 4, "missing on b"),
        ("idgbr", 4, "missing on b"),
        ("sources", 4, "xyz on b"),
        ("store", 3, "b cannot use /store: PermissionError: no"),
        ("store place", 4, "another place on b than on a, c"),
        ("gpus", 3, "b: 2 GPU(s) by nvidia-smi, 1 usable by torch"),
        ("weights", 3, "b: /w: No such file"),
        ("clocks", 4, "b is -7.0 s from here"),
        ("disk", 3, "b: 0.2 GB free of 200.0 GB at /tmp"),
        ("shared memory", 3, "b: 0.06 GB"),
        ("ports", 3, "b cannot reach 10.0.0.0:7000 (timed out)"),
        ("answers", 3, "b: no answer"),
    ],
)
def test_each_trouble_is_found_alone_named_with_its_node_and_says_what_to_do(what: str, code: int, words: str) -> None:
    nodes = cluster()
    spoil(nodes, what)
    found = look(nodes)
    failed = [c for c in found.values() if c.code]
    assert [c.name for c in failed] == [what]
    assert failed[0].code == code == verdict(list(found.values()))
    assert words in failed[0].found
    assert len(failed[0].do) > 20
    assert f"do: {failed[0].do}" in as_text(failed)


def test_a_node_that_did_not_join_and_a_pair_that_cannot_reduce_are_found() -> None:
    assert "3 alive, 4 expected" in look(cluster(), expected=4)["nodes"].found
    broken = pairs()
    broken["a", "c"] = {"error": "RuntimeError: connectFullMesh failed"}
    check = look(cluster(), broken)["all-reduce"]
    assert check.code == 3
    assert "a with c: RuntimeError: connectFullMesh failed" in check.found
    assert "network_interface" in check.do


def test_other_drivers_disagree_but_a_head_without_gpus_is_usual() -> None:
    nodes = cluster()
    nodes[0].facts["gpus"] = {"names": [], "driver": "", "usable": 0}
    assert look(nodes)["gpus"].code == 0
    nodes[1].facts["gpus"]["driver"] = "535"
    assert look(nodes)["gpus"].code == 4


def test_weights_of_other_content_disagree() -> None:
    nodes = cluster()
    nodes[2].facts["weights"]["/w"] = "5 bytes, bb"
    check = look(nodes)["weights"]
    assert check.code == 4
    assert "5 bytes, bb on c" in check.found


@given(st.integers(1, 12))
def test_every_pair_meets_once_in_rounds_of_disjoint_pairs(n: int) -> None:
    labels = [f"n{i}" for i in range(n)]
    plan = rounds(labels)
    met = [frozenset(pair) for meeting in plan for pair in meeting]
    assert len(met) == len(set(met)) == n * (n - 1) // 2
    for meeting in plan:
        assert len({label for pair in meeting for label in pair}) == 2 * len(meeting)
    assert len(plan) <= max(n - 1 + n % 2, 0)


@given(st.floats(-1e4, 1e4), st.lists(st.tuples(st.floats(0.001, 3), st.floats(0, 1)), min_size=1, max_size=5))
def test_clock_skew_is_within_its_stated_doubt_of_the_truth(offset: float, trips: list[tuple[float, float]]) -> None:
    """Each sample: asked at t, their clock read somewhere on the way, answered after the round trip."""
    now, samples = 1000.0, []
    for length, share in trips:
        samples.append((now, now + share * length + offset, now + length))
        now += length + 1
    estimate, doubt = skew(samples)
    assert abs(estimate - offset) <= doubt + 1e-6
