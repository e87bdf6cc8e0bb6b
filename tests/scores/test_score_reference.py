"""Every number that the reference implementations give for the mask pairs and triples, through the one door `tests/oracles/by_name.py`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "reference" / "scores"
_spec = importlib.util.spec_from_file_location("by_name", Path(__file__).resolve().parents[1] / "oracles" / "by_name.py")
assert _spec is not None
assert _spec.loader is not None
by_name = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(by_name)

EXPECTED: dict[str, Any] = json.loads((SHARED / "expected.json").read_text()) if SHARED.is_dir() else {"pairs": {}, "triples": {}}


def same(got: Any, wanted: Any, tol: float) -> bool:
    if isinstance(wanted, dict):
        return isinstance(got, dict) and set(got) == set(wanted) and all(same(got[k], wanted[k], tol) for k in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(same(g, w, tol) for g, w in zip(got, wanted))
    if wanted is None or got is None:
        return wanted is got
    if isinstance(wanted, str) and wanted not in ("nan", "inf", "-inf"):
        return bool(got == wanted)
    return bool(np.isclose(got, float(wanted), rtol=0, atol=tol, equal_nan=True))


def differences(got: dict[str, Any], values: dict[str, Any]) -> list[str]:
    # *_tie_range tells how far other rules for ties would move a value; the rule here is scipy's, so the value itself is met
    wanted = {name: entry for name, entry in values.items() if not name.endswith("tie_range")}
    return [f"{name}: {got.get(name, 'missing')} is not {entry['value']}" for name, entry in wanted.items()
            if name not in got or not same(got[name], entry["value"], entry.get("tol") or 0)]  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("name", list(EXPECTED["pairs"]) or ["absent"])
def test_pair_scores_are_those_of_the_reference_implementations(name: str, shared: Path) -> None:
    vectors, pair = np.load(SHARED / "vectors.npz"), EXPECTED["pairs"][name]
    meta = pair["meta"]
    got = by_name.scores_by_name(vectors[f"{name}__pred"], vectors[f"{name}__gt"], meta["num_classes"], meta["ignore_index"])
    assert not differences(got, pair["values"])


@pytest.mark.shared
@pytest.mark.parametrize("name", list(EXPECTED["triples"]) or ["absent"])
def test_triple_scores_are_those_of_the_reference_implementations(name: str, shared: Path) -> None:
    vectors, triple = np.load(SHARED / "vectors.npz"), EXPECTED["triples"][name]
    meta = triple["meta"]
    maps = (vectors[f"{name}__{m}"] for m in ("coarse", "refined", "gt"))
    got = by_name.triple_scores_by_name(*maps, meta["num_classes"], meta["ignore_index"])
    assert not differences(got, triple["values"])
    assert sum(got["ledger"].values()) == np.prod(meta["shape"])
