"""`explain KEY`: what made an artefact, which trials depend on it, and what a change of a setting would recompute."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import NotRequired, TypedDict

from idgbr import stages
from idgbr.config import apply, from_dict
from idgbr.errors import BadRequest, Missing
from idgbr.stages import STAGES
from idgbr.store import Store
from sweeps import tables


class Made(TypedDict):
    """Where, when and in how long an artefact was made, and its size."""

    host: str
    seconds: float
    bytes: int
    at: str


class Change(TypedDict):
    """One job that a change of settings would replace: its key before and after, and whether that is stored."""

    stage: str
    name: str
    before: str | None
    after: str
    stored: bool


Explanation = TypedDict(
    "Explanation",
    {
        "stage": str,
        "key": str,
        "name": str,
        "settings": dict[str, object],
        "seed": int | None,
        "parents": dict[str, str],
        "made": Made,
        "reproduced": bool,
        "trials": list[dict[str, str]],
        "with": NotRequired[list[str]],
        "changes": NotRequired[list[Change]],
    },
)


def find(key: str, store: Store) -> tables.Manifest:
    """The manifest of a key, or of the one key that begins with it.

    Raises:
        Missing: no such artefact. BadRequest: several begin so.
    """
    exact = [(stage, key) for stage in STAGES if store.has(stage, key)]
    found = exact or [(stage, k) for stage in STAGES for k in store.keys(stage) if k.startswith(key)]
    if not found:
        raise Missing(f"no artefact {key} in the store {store.root}", hint="keys are in the columns key_* of tables/trials")
    if len(found) > 1:
        raise BadRequest("several artefacts begin with this", value=key, allowed=", ".join(f"{s} {k}" for s, k in found[:8]))
    manifest = store.manifest(*found[0])
    assert manifest is not None
    return manifest


def explained(key: str, store: Store, overrides: Iterable[str] = ()) -> Explanation:
    """Facts of an artefact; with overrides, for every stage its key before and after and whether the new one is stored.

    Raises:
        Missing, BadRequest: see `find`; an unknown setting.
    """
    manifest = find(key, store)
    experiment = from_dict(manifest["experiment"])
    by_identity = {(j.stage, j.name): j for j in stages.jobs(experiment)}
    now = by_identity.get((manifest["stage"], manifest["name"]))
    out: Explanation = {
        "stage": manifest["stage"],
        "key": manifest["key"],
        "name": manifest["name"],
        "settings": manifest["settings"],
        "seed": manifest["seed"],
        "parents": manifest["parents"],
        "made": {
            "host": manifest["host"],
            "seconds": manifest["seconds"],
            "bytes": manifest["bytes"],
            "at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest["finished"])),
        },
        "reproduced": now is not None and now.key == manifest["key"],  # today's code, settings and files give this key again
        "trials": _users(manifest, store),
    }
    overrides = tuple(overrides)
    if overrides:
        changed = stages.jobs(apply(experiment, overrides))
        out["with"] = list(overrides)
        out["changes"] = [
            {
                "stage": job.stage,
                "name": job.name,
                "before": getattr(by_identity.get((job.stage, job.name)), "key", None),
                "after": job.key,
                "stored": store.has(job.stage, job.key),
            }
            for job in changed
            if getattr(by_identity.get((job.stage, job.name)), "key", None) != job.key
        ]
    return out


def _users(manifest: tables.Manifest, store: Store) -> list[dict[str, str]]:
    try:
        table = tables.scan(store, "trials").select(["study", "trial", "label", f"key_{manifest['stage']}"])
    except Missing:
        return []
    return [
        {k: row[k] for k in ("study", "trial", "label")} for row in table.to_pylist() if row[f"key_{manifest['stage']}"] == manifest["key"]
    ]


def explain(key: str, store: Store, overrides: Iterable[str] = (), *, as_json: bool = False) -> None:
    """Print it."""
    found = explained(key, store, overrides)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    made = found["made"]
    print(f"{found['stage']} {found['name']} {found['key']}: {made['bytes'] / 1e6:.1f} MB")
    print(f"made in {made['seconds']:.1f} s on {made['host']}, {made['at']}")
    print(
        "settings: "
        + " ".join(f"{k}={v}" for k, v in found["settings"].items())
        + (f" seed={found['seed']}" if found["seed"] is not None else "")
    )
    for name, parent in found["parents"].items():
        print(f"from {name} {parent}")
    print("the same settings and files give this key today" if found["reproduced"] else "today's code or files would give another key")
    print(
        f"{len(found['trials'])} trials depend on it"
        + (": " + "; ".join(t["label"] for t in found["trials"][:5]) if found["trials"] else "")
    )
    if "changes" in found:
        remade = [c for c in found["changes"] if not c["stored"]]
        print(f"with {' '.join(found['with'])}: {len(found['changes'])} keys change, {len(remade)} would be computed")
        for change in found["changes"]:
            stored = "  (stored)" if change["stored"] else ""
            print(f"  {change['stage']:<9} {change['name']:<9} {change['before']} -> {change['after']}{stored}")
