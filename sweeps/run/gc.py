"""Garbage collection in the store: first what nothing can use, then artefacts by policy until the store fits its
budget.

Always: attempts without a manifest that no living driver may still write, and resume states of finished or pruned
trainings. With a budget: refined maps (computed again in seconds), then weights, oldest first, of trials that are
neither published nor among the best `keep` of a study. Counts and tables are never deleted: they are small, and they
are the result.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pyarrow import fs

from idgbr.errors import Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run.claims import drivers
from sweeps.run.goals import score_of

YOUNG_S = 3600.0  # an attempt younger than this may still be written by somebody without a heartbeat file (a plain `idgbr` command)
KEEP = 3  # refiners that stay by score in each study
LOSABLE = ("refined", "refiner")  # in this order; coarse maps, backbones and data stand under everything else


@dataclass(frozen=True)
class Item:
    """Something that can be deleted: its name below the store's root, its size, and why it may go."""

    name: str
    size_bytes: int
    why: str


def leftovers(store: Store) -> list[Item]:
    """What nothing can use any more."""
    out: list[Item] = []
    is_quiet = not drivers(store)
    found = _files(store, "artifacts")
    attempts: dict[str, list[fs.FileInfo]] = {}
    manifests: dict[str, str] = {}
    for info in found:
        name = _relative(store, info)
        parts = name.split("/")
        if len(parts) == 5 and parts[4] == "manifest.json":
            manifests["/".join(parts[:4])] = name
        elif len(parts) >= 6:
            attempts.setdefault("/".join(parts[:5]), []).append(info)
    for folder, infos in attempts.items():
        manifest = manifests.get(folder.rpartition("/")[0])
        current = json.loads(store.read_bytes(manifest) or b"{}").get("attempt") if manifest else None
        age = time.time() - max(i.mtime_ns for i in infos) / 1e9
        if current != folder.rpartition("/")[2] and (is_quiet or current is not None) and age > YOUNG_S:
            out.append(Item(folder, sum(i.size for i in infos), "attempt that was never finished, or was overtaken"))
    done = {m.split("/")[1] + "/" + m.split("/")[3] for m in manifests.values()}
    states: dict[str, int] = {}
    for info in _files(store, "scratch"):
        key = "/".join(_relative(store, info).split("/")[:3])
        states[key] = states.get(key, 0) + info.size
    pruned = _pruned_keys(store)
    for name, size in states.items():
        stage_key = name.removeprefix("scratch/")
        if stage_key in done:
            out.append(Item(name, size, "resume state of a finished training"))
        elif stage_key.rpartition("/")[2] in pruned and is_quiet:
            out.append(Item(name, size, "resume state of a pruned trial"))
    return out


def losable(store: Store, keep: int, published: Iterable[str] = ()) -> list[Item]:
    """Artefacts in the order in which they may go: refined maps before weights, and the oldest of the unwanted first."""
    kept = set(published) | _best_keys(store, keep)
    out: list[Item] = []
    for stage in LOSABLE:
        found = []
        for key in store.keys(stage):
            manifest = store.manifest(stage, key)
            if manifest is not None and key not in kept and (stage == "refined" or manifest["parents"].get("refiner") not in kept):
                found.append(
                    (
                        manifest["finished"],
                        Item(store.folder(stage, key), manifest["bytes"], f"{stage} that no best or published trial needs"),
                    )
                )
        out += [item for _, item in sorted(found, key=lambda pair: pair[0])]
    return out


def used_bytes(store: Store) -> int:
    """Size of all files of a store."""
    return sum(info.size for info in _files(store, ""))


def collect(store: Store, *, budget_gb: float = 0.0, keep: int = KEEP, dry_run: bool = False, as_json: bool = False) -> list[Item]:
    """Delete (or with `dry_run` list) leftovers, and with a budget losable artefacts until the store fits.

    Raises:
        Missing: the budget cannot be met without deleting what must stay.
    """
    before = used_bytes(store)
    chosen = leftovers(store)
    after = before - sum(i.size_bytes for i in chosen)
    if budget_gb:
        for item in losable(store, keep, _published_keys(store)):
            if after <= budget_gb * 1e9:
                break
            chosen.append(item)
            after -= item.size_bytes
    if not dry_run:
        for item in chosen:
            _delete(store, item)
    if as_json:
        print(
            json.dumps({"before_bytes": before, "after_bytes": after, "dry_run": dry_run, "items": [asdict(i) for i in chosen]}, indent=1)
        )
    else:
        for item in chosen:
            print(f"{item.size_bytes / 1e6:10.1f} MB  {item.name}  ({item.why})")
        verb = "would free" if dry_run else "freed"
        print(f"{verb} {(before - after) / 1e6:.1f} MB of {before / 1e6:.1f} MB in {len(chosen)} pieces", file=sys.stderr)
    if budget_gb and after > budget_gb * 1e9:
        raise Missing(
            f"the store needs {after / 1e9:.3g} GB for what must stay",
            value=f"--budget-gb {budget_gb:g}",
            hint="a smaller --keep, or a larger budget",
        )
    return chosen


def _delete(store: Store, item: Item) -> None:
    store.delete(f"{item.name}/manifest.json")  # first, so that what is half deleted counts as not there
    store.delete(item.name)


class Budget:
    """What the store may grow to while a study runs: beyond it artefacts go by policy, and where that is not enough
    the study stops.
    """

    def __init__(self, store: Store, budget_gb: float, keep: int = KEEP):
        self.store, self.limit, self.keep = store, budget_gb * 1e9, keep
        self.used = used_bytes(store)

    def spend(self, stage: str, key: str, needed: set[str]) -> Missing | None:
        """An artefact was made. Returns why the study must stop, or None.

        Args:
            needed: keys that open trials still read; they stay.
        """
        self.used += (self.store.manifest(stage, key) or {"bytes": 0})["bytes"]
        if self.used <= self.limit:
            return None
        self.used = used_bytes(self.store)
        others = len(drivers(self.store)) > 1  # they may be about to read what this one would delete
        for item in [] if others or self.used <= self.limit else losable(self.store, self.keep, _published_keys(self.store)):
            if self.used <= self.limit:
                break
            if item.name.rpartition("/")[2] not in needed:
                _delete(self.store, item)
                self.used -= item.size_bytes
        if self.used <= self.limit:
            return None
        return Missing(
            f"the store has grown to {self.used / 1e9:.3g} GB, beyond its budget of {self.limit / 1e9:.3g} GB"
            + (", and another driver works on it" if others else ", and what is left is needed"),
            hint="a larger --budget-gb, or python -m sweeps gc --dry-run",
        )


def check_budget(store: Store, budget_gb: float, more_bytes: int, needed: set[str] | None = None) -> None:
    """Whether what is planned fits, with all freed that the policy may take and that `needed` (keys) does not name.

    Raises:
        Missing: the store with what is planned would be larger than the budget.
    """
    used, budget = used_bytes(store), budget_gb * 1e9
    if used + more_bytes <= budget:
        return
    free = sum(i.size_bytes for i in losable(store, KEEP, _published_keys(store)) if i.name.rpartition("/")[2] not in (needed or set()))
    if used + more_bytes - free > budget:
        raise Missing(
            f"the store would grow to {(used + more_bytes) / 1e9:.3g} GB",
            value=f"{used / 1e9:.3g} GB used, about {more_bytes / 1e9:.3g} GB to come, budget {budget_gb:g} GB",
            allowed=f"from {(used + more_bytes - free) / 1e9:.3g} GB on, for no more than {free / 1e9:.3g} GB may be freed",
            hint="python -m sweeps gc --dry-run, or a larger --budget-gb",
        )


# ---- what must stay --------------------------------------------------------------------------------------------------


def _rows(store: Store, columns: list[str]) -> list[tables.Row]:
    try:
        return tables.scan(store, "trials").select(["study", "trial", "status", *columns]).to_pylist()
    except Missing:
        return []


def _pruned_keys(store: Store) -> set[str]:
    return {r["key_refiner"] for r in _rows(store, ["key_refiner"]) if r["status"] == "pruned" and r["key_refiner"]}


def _best_keys(store: Store, keep: int, goal: str = "boundary_iou") -> set[str]:
    """Refiner and refined keys of the best `keep` trials of each study."""
    scored: dict[str, list[tuple[float, tables.Row]]] = {}
    seen: dict[str, float] = {}
    for row in _rows(store, ["key_refiner", "key_refined", "key_counts"]):
        key = row["key_counts"]
        if row["status"] != "done" or not row["key_refiner"] or not store.has("counts", key):
            continue
        if key not in seen:
            seen[key] = score_of(store, key, goal)
        if seen[key] == seen[key]:
            scored.setdefault(row["study"], []).append((seen[key], row))
    best = [row for rows in scored.values() for _, row in sorted(rows, key=lambda pair: -pair[0])[:keep]]
    return {row[name] for row in best for name in ("key_refiner", "key_refined")}


def _published_keys(store: Store) -> set[str]:
    """Keys named by rows under results/published beside where the command runs, if there are any."""
    from pathlib import Path

    import pyarrow.parquet as pq

    out: set[str] = set()
    for path in Path("results").glob("**/trials*.parquet") if Path("results").is_dir() else ():
        names = [n for n in pq.read_schema(path).names if n in ("key_refiner", "key_refined")]
        for column in pq.read_table(path, columns=names).to_pydict().values():
            out |= {key for key in column if key}
    return out


def _files(store: Store, folder: str) -> list[fs.FileInfo]:
    return [i for i in store.infos(folder, recursive=True) if i.type == fs.FileType.File]


def _relative(store: Store, info: fs.FileInfo) -> str:
    return info.path.removeprefix(store.base).lstrip("/")
