"""Adaptive studies: Optuna proposes settings of one stage, the same workers run them, their trials are rows like any
others.

Everything upstream of the searched stage is prepared first, so that no trial waits for it. Proposals are kept in
Optuna's journal; a killed search resumes its open proposals. One driver at a time: a second one on the same search is
refused.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any, TypedDict

from idgbr.errors import Missing, SomeFailed
from idgbr.stages import STAGES
from idgbr.store import Store
from sweeps.run import journal
from sweeps.run import plan as planning
from sweeps.run import preflight as checks
from sweeps.run.driver import Display, run_context, say, stopped
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement
from sweeps.run.plan import StudyPlan
from sweeps.run.proposals import Proposals
from sweeps.study import Search, Setter, Study, Trial, yardsticks


def search(study: Study, store: Store, placement: Placement, options: RunOptions) -> None:
    """Prepare what is upstream, then run proposals until the study has its trials. The same command resumes.

    Raises:
        SomeFailed: some trials failed. Interrupted: the user asked.
        BadRequest, Missing, Disagreement: before anything starts. Missing: another driver searches; the disk is full.
    """
    spec = journal.spec_of(study)
    check_goals(spec)
    prepared = upstream(study, store, retry_failed=options.retry_failed)
    if options.preflight and prepared.to_do:
        checks.refuse_impossible(prepared, checks.preflight(prepared, store))
    if planning.record_definition(prepared, store, redefine=options.redefine):
        journal.drop(study, store)
    say("\n".join(planning.text_of(planning.summary(prepared, store))))
    with run_context(study, store, placement, options) as context:
        other = context.claims.take(f"search-{study.name}")
        if other is not None:
            raise Missing(
                f"another driver already searches {study.name}: {other['host']} process {other['pid']}",
                hint=f"wait for it (python -m sweeps status {shlex.quote(study.name)}), or stop it and give this command again",
            )
        journal.repair(study, store)
        if (prepared.open or prepared.to_do) and not context.compute(prepared):
            raise stopped("stopped while preparing", study)
        prepared = upstream(study, store)
        if prepared.to_do:
            raise SomeFailed(
                f"the stages upstream of the search {study.name} could not be made",
                value=", ".join(prepared.to_do),
                hint=f"logs: {context.worker.logs}",
            )
        proposals = Proposals(study, store, prepared, workers=placement.workers, retry_failed=options.retry_failed)
        schedule = context.schedule(dataclasses.replace(prepared, open=()), [], proposals)
        shown = Display(proposals.remaining * len(study.seeds), noun="trials", goal=proposals.primary, higher=proposals.sign[0] > 0)
        is_finished = context.execute(schedule, shown)
    planning.record_definition(dataclasses.replace(prepared, trials=proposals.all_trials()), store, complete=is_finished)
    if not is_finished:
        raise stopped(f"stopped; {proposals.ended_count} of {spec.trials} proposals done", study)
    if options.show:
        show(study, store)
    if schedule.failed_trials:
        first = next(iter(schedule.failed_trials.values()))
        raise SomeFailed(f"{len(schedule.failed_trials)} trials of {study.name} failed", value=first)


def check_goals(spec: Search) -> None:
    """Raises:
    BadRequest: a goal that is neither `seconds` nor a score.
    """
    from idgbr.scores.read import metric

    for goal in spec.goals:
        if goal.removeprefix("-") != "seconds":
            metric(goal.removeprefix("-"))


def upstream(study: Study, store: Store, *, retry_failed: bool = False) -> StudyPlan:
    """A plan of everything upstream of the searched stage, and of the yardsticks."""
    stage = study.axes[0].stage
    stage = {"sampler": "refined", "score": "counts"}.get(stage, stage)
    base = Setter(study.base())({})
    trials = [Trial({}, dataclasses.replace(base, seed=seed)) for seed in study.seeds]
    rows = yardsticks(study, trials, base) if STAGES.index(stage) > STAGES.index("coarse") else []
    made = planning.make(study, store, retry_failed=retry_failed, trials=[*rows, *trials])
    before = {job.key for t in trials for job in t.jobs if STAGES.index(job.stage) < STAGES.index(stage)}
    wanted = planning.needed([t for t in rows if t in made.open], made.jobs, made.stored)
    missing = [key for key in made.jobs if key in before and key not in made.stored]
    return dataclasses.replace(
        made,
        trials=tuple(rows),
        open=tuple(t for t in made.open if t in rows),
        to_do=tuple(key for key in made.jobs if key in {*wanted, *missing}),
    )


class SearchResult(TypedDict):
    """What a search has found: trials by Optuna's state; the best trials, each with its scores by goal; the file of
    Optuna's journal.
    """

    study: str
    goals: list[str]
    states: dict[str, int]
    best: list[dict[str, Any]]
    journal: str


# ---- show ------------------------------------------------------------------------------------------------------------


def result(study: Study, store: Store) -> SearchResult:
    """Best trial, or the front of two goals; counts of trials by state; where the journal lies."""
    found, spec = journal.opened(study, store), journal.spec_of(study)
    best = found.best_trials if any(t.state.name == "COMPLETE" for t in found.trials) else []
    states: dict[str, int] = {}
    for t in found.trials:
        states[t.state.name.lower()] = states.get(t.state.name.lower(), 0) + 1
    listed: list[dict[str, Any]] = [
        {
            "trial": t.user_attrs.get("trial"),
            **{g.removeprefix("-"): v for g, v in zip(spec.goals, t.values, strict=True)},
            "settings": t.params,
        }
        for t in sorted(best, key=lambda t: t.values[0])
    ]
    return {"study": study.name, "goals": list(spec.goals), "states": states, "best": listed, "journal": str(journal.path_of(study, store))}


def show(study: Study, store: Store, *, as_json: bool = False) -> None:
    """Print `result`."""
    found = result(study, store)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{study.name}: " + ", ".join(f"{n} {s}" for s, n in sorted(found["states"].items())))
    print("front:" if len(found["goals"]) > 1 else "best:")
    for best in found["best"]:
        goals = "  ".join(f"{g.removeprefix('-')} {best[g.removeprefix('-')]:.4f}" for g in found["goals"])
        print(f"  {goals}  {' '.join(f'{k}={v}' for k, v in best['settings'].items())}  trial {best['trial']}")
    print(shlex.join(["optuna-dashboard", found["journal"]]))
