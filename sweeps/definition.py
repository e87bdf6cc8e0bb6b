"""The definition of a study as `studies/<name>.json` in the store holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NotRequired, TypedDict

from idgbr.config import CONFIG_VERSION, SECTIONS
from idgbr.settings import digest, identity
from sweeps.study import Study, Trial


class TrialFacts(TypedDict):
    """A trial in the definition of its study."""

    role: str
    label: str
    overrides: object
    seed: int
    counts: str


class Definition(TypedDict):
    """What `studies/<name>.json` holds; `complete`: of a search, that nothing more will be proposed."""

    study: str
    recipe: str
    overrides: object
    axes: dict[str, object]
    design: str
    replicates: list[int]
    baseline: dict[str, object]
    yardsticks: list[str]
    search: object
    fingerprint: str
    trials: dict[str, TrialFacts]
    complete: NotRequired[bool]


def definition(study: Study, trials: Iterable[Trial]) -> Definition:
    """What `studies/<name>.json` holds: for people and for the analysis; `fingerprint` covers the trials."""
    listed: dict[str, TrialFacts] = {
        t.id: {"role": t.role, "label": t.label, "overrides": _plain(t.overrides), "seed": t.experiment.seed, "counts": t.jobs[-1].key}
        for t in trials
    }
    parts = (study, *study.parts)
    return {
        "study": study.name,
        "recipe": study.recipe,
        "overrides": _plain(study.overrides),
        "axes": {a.name: _plain(a.values) if a.values else {"low": a.low, "high": a.high, "log": a.log}
                 for part in parts for a in part.axes},
        "design": study.design,
        "replicates": list(study.seeds),
        "baseline": {name: _plain(value) for name, value in study.baseline_overrides().items()},
        "yardsticks": list(study.yardsticks),
        "search": _plain(dataclasses.asdict(study.search)) if study.search else None,
        "fingerprint": digest(sorted(listed)) if not study.search else digest(_search_identity(study)),
        "trials": listed,
    }  # fmt: skip


def _search_identity(study: Study) -> dict[str, object]:
    assert study.search is not None
    base = study.base()
    sections = {name: identity(getattr(base, name), paths=False) for name in SECTIONS}
    return {
        "recipe": {"version": CONFIG_VERSION, **sections, "seed": base.seed, "reseed": base.reseed},
        "axes": _plain({a.name: [a.values, a.low, a.high, a.step, a.log] for a in study.axes}),
        "goals": list(study.search.goals), "sampler": study.search.sampler, "seeds": list(study.seeds),
    }  # fmt: skip


def _plain(value: object) -> object:
    """Tuples to lists, mappings to dicts: what JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
