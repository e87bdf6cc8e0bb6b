"""State of a study, for anybody who can read the store: its rows, its drivers and what they last said. No Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from idgbr.errors import Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run.claims import Driver, Heartbeats, drivers
from sweeps.run.goals import is_higher_better
from sweeps.run.live import Live, lives


@dataclass(frozen=True)
class StudyState:
    """State of a study at one moment.

    Args:
        total: trials of the study; of a search, that it will have. status: of each trial that has one. labels: by trial.
        working: drivers that are alive. alive, over: what drivers that live, or have ended, last wrote.
        is_complete: false while a search may still propose trials.
    """

    study: str
    total: int
    status: Mapping[str, str]
    labels: Mapping[str, str]
    working: tuple[Driver, ...]
    alive: tuple[Live, ...]
    over: tuple[Live, ...]
    goal: str = "boundary_iou"
    is_complete: bool = True
    claims: Mapping[str, str] = field(default_factory=dict)  # claimed unit -> its driver

    def count(self, status: str) -> int:
        """Trials with this status."""
        return sum(found == status for found in self.status.values())

    @property
    def open(self) -> int:
        """Trials that are neither done, failed nor pruned."""
        return self.total - len(self.status)

    @property
    def is_over(self) -> bool:
        """Every trial has its row, and no driver works on the study."""
        return self.is_complete and not self.open and not self.working

    @property
    def gpu_hours(self) -> float:
        """Held by all drivers of the study so far."""
        return sum(live["gpu_hours"] for live in (*self.alive, *self.over))

    @property
    def in_hand(self) -> list[str]:
        """Units that living drivers have claimed."""
        ids = {driver["driver"] for driver in self.working}
        return [unit for unit, driver in self.claims.items() if driver in ids]


def state_of(name: str, store: Store, heartbeats: Heartbeats | None = None, *, claims: bool = False) -> StudyState:
    """State of a study now.

    Args:
        heartbeats: of who asks repeatedly: then drivers on other hosts that have died are told from the living.
        claims: also read who has claimed what, one file a unit.

    Raises:
        Missing: no such study in this store.
    """
    data = store.read_bytes(f"studies/{name}.json")
    if data is None:
        known = sorted(n.rpartition("/")[2].removesuffix(".json") for n in store.names("studies", suffix=".json"))
        raise Missing(
            f"no study {name} in the store {store.root}", allowed=", ".join(known) or "none there yet", hint="python -m sweeps run STUDY"
        )
    definition = json.loads(data)
    found = tables.statuses(store, name)
    labels = {trial: facts["label"] for trial, facts in definition["trials"].items()}
    total, search = len(labels), definition["search"]
    is_complete = not search or definition["complete"]
    if not is_complete:  # lists what was proposed when a run ended; rows know more
        labels = {trial: trial for trial in found} | labels
        aside = sum(facts.get("role", "trial") != "trial" for facts in definition["trials"].values())
        total = max(len(labels), aside + search["trials"] * len(definition["replicates"]))
    working = [driver for driver in drivers(store) if driver["study"] == name]
    if heartbeats is not None:
        working = [driver for driver in working if heartbeats.is_alive(driver)]
    ids = {driver["driver"] for driver in working}
    seen = lives(store, name)
    return StudyState(
        study=name,
        total=total,
        status={trial: status for trial, status in found.items() if trial in labels},
        labels=labels,
        working=tuple(working),
        alive=tuple(live for live in seen if live["driver"]["driver"] in ids and not live["is_over"]),
        over=tuple(live for live in seen if live["driver"]["driver"] not in ids or live["is_over"]),
        goal=search["goals"][0].removeprefix("-") if search else "boundary_iou",
        is_complete=bool(is_complete),
        claims=_claims(store) if claims else {},
    )


def _claims(store: Store) -> dict[str, str]:
    names = store.names("claims", ".json")
    return {n.rpartition("/")[2].removesuffix(".json"): json.loads(store.read_bytes(n) or b"{}").get("driver", "") for n in names}


class Scores:
    """The goal of every finished trial; rows that were read once are not read again."""

    def __init__(self, store: Store, study: str, goal: str):
        from idgbr.scores import METRICS

        self.store, self.study, self.goal = store, study, goal
        self.is_score = goal in METRICS
        self.known: dict[str, float] = {}

    def best(self, state: StudyState) -> tuple[float, str] | None:
        """The best value so far and the label of its trial; None while there is none, or the goal is no score."""
        done = [trial for trial, status in state.status.items() if status == "done"]
        if not self.is_score:
            return None
        self._read(trial for trial in done if trial not in self.known)
        sign = 1.0 if is_higher_better(self.goal) else -1.0
        values = [(sign * self.known[t], t) for t in done if t in self.known and self.known[t] == self.known[t]]
        if not values:
            return None
        value, trial = max(values)
        return sign * value, state.labels.get(trial, trial)

    def _read(self, trials: Iterable[str]) -> None:
        import polars as pl

        from idgbr.scores import evaluate

        wanted = list(trials)
        if not wanted:
            return
        frame = pl.DataFrame(pl.from_arrow(tables.rows_of(self.store, "counts", self.study, wanted)))
        for (trial,), rows in frame.group_by("trial", maintain_order=True):
            self.known[str(trial)] = evaluate(rows.filter(rows["label_set"] == rows["label_set"][0]), self.goal).score


def last_failures(store: Store, state: StudyState, most: int) -> list[tuple[str, str]]:
    """Label and error of the trials that failed last."""
    infos = store.infos(f"tables/trials/study={state.study}")
    failed = [(i.mtime_ns or 0, i.base_name.rpartition("-failed")[0]) for i in infos if i.base_name.endswith("-failed.parquet")]
    trials = [trial for _, trial in sorted(failed, reverse=True) if state.status.get(trial) == "failed"][:most]
    return [(state.labels.get(trial, trial), tables.error_of(store, state.study, trial)) for trial in trials]
