"""The verbs plan, run and status: what they print and in what order. Results go to stdout, messages to stderr."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path

from idgbr.errors import Missing, SomeFailed
from idgbr.machine import allowed_cores
from idgbr.stages import STAGES
from idgbr.store import Store
from sweeps import studies, tables
from sweeps.run import plan as planning
from sweeps.run import preflight as checks
from sweeps.run.driver import resume_line, run_context, say, stopped, worker_context, write_rows
from sweeps.run.nodes import gpu_memory_gb
from sweeps.run.notify import notified
from sweeps.run.options import RunOptions
from sweeps.run.overrides import study_with
from sweeps.run.placement import Placement, slots
from sweeps.run.plan import StudyPlan, summary, text_of
from sweeps.run.state import state_of
from sweeps.study import Study


def study_of(name: str, overrides: Iterable[str] = ()) -> Study:
    """The study, with what is said on the command line: `stage.field=value`, `seeds=N`, `backbones=N`.

    Raises:
        BadRequest: no such study or setting, or the setting is one of its axes.
    """
    return study_with(studies.find(name), overrides)


def name_of(study: str) -> str:
    """The name of a study in the tables: of a definition (`path.py:function`), or the name itself."""
    return studies.find(study).name if ".py:" in study else study


# ---- plan ------------------------------------------------------------------------------------------------------------


def plan(
    study: Study,
    store: Store,
    placement: Placement,
    *,
    as_json: bool = False,
    preflight: bool = True,
    cluster: str = "",
    budget_gpu_hours: float = 0.0,
) -> None:
    """What would run, what is stored, what a sweep that shares nothing would train, time, disk, and what cannot be
    built.

    cluster, budget_gpu_hours: see `sweeps/run/cost_lines.py`.
    """
    if study.search is not None:
        from sweeps.run.search import upstream

        made = upstream(study, store)  # what comes after is proposed one by one
    else:
        made = planning.make(study, store)
    found = summary(made, store)
    found["concurrency"] = None if cluster else _concurrency(placement)  # of a stated cluster, the forecast's clock says it
    found["impossible"] = checks.preflight(made, store) if preflight and made.to_do else []
    lines: list[str] = []
    if (cluster or budget_gpu_hours) and not found["impossible"]:
        from sweeps.run.cost_lines import forecast_lines  # imports torch

        found["forecast"], lines = forecast_lines(study, made, store, placement, cluster, budget_gpu_hours)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join([*text_of(found), *lines]))
    if found["impossible"]:
        checks.refuse_impossible(made, found["impossible"])


def _concurrency(placement: Placement) -> int | None:
    """Of the cluster where one is named, else of this machine; None where no cluster can be asked without starting
    one.
    """
    import os

    if placement.address or os.environ.get("RAY_ADDRESS"):
        from sweeps.run.nodes import cluster

        with cluster(placement) as nodes:
            return slots(placement, nodes)
    if placement.gpus:
        return None
    return slots(placement, [{"CPU": float(allowed_cores())}])


GPU_CPUS = 4.0  # beside a GPU: one trains, the others load


def placement_of(study: Study, placement: Placement) -> Placement:
    """Of a study that is sized for GPUs: one GPU a job and bf16, unless --gpus or --device says otherwise."""
    if study.sized_for != "gpu" or placement.gpus or placement.device != "auto":
        return placement
    say(f"{study.name} is sized for GPUs: each job takes one, in bf16 (--device cpu: none)")
    return dataclasses.replace(placement, gpus=1.0, cpus=max(placement.cpus, GPU_CPUS), bf16=True)


# ---- run -------------------------------------------------------------------------------------------------------------


def run(study: Study, store: Store, placement: Placement, options: RunOptions | None = None) -> None:
    """Compute what is missing. The same command resumes.

    Raises:
        SomeFailed: some trials failed; their rows say why. Interrupted: the user asked.
        BadRequest, Missing, Disagreement: before anything starts.
    """
    options = options or RunOptions()
    with notified(options.notify, study.name, store):
        store.check_writable()
        _run(study, store, placement_of(study, placement), options)


def _run(study: Study, store: Store, placement: Placement, options: RunOptions) -> None:
    if study.search is not None:
        from sweeps.run.search import search

        search(study, store, placement, options)
        return
    made = planning.make(study, store, retry_failed=options.retry_failed)
    say("\n".join(text_of(summary(made, store))))
    if options.preflight and made.to_do:  # first: what is refused leaves no definition, so the corrected command is not another one
        checks.refuse_impossible(made, checks.preflight(made, store))
    planning.record_definition(made, store, redefine=options.redefine)
    if made.open and not made.to_do:
        write_rows(made, worker_context(store, placement))
    elif made.open:
        if options.budget_gb:
            from sweeps.run.gc import check_budget

            reads = {key for wanted in made.to_do for key in (wanted, *made.jobs[wanted][0].parents.values())}
            check_budget(store, options.budget_gb, planning.cost(made, store).size_bytes, reads)
        with run_context(study, store, placement, options) as context:
            if options.preflight and placement.gpus:
                checks.refuse_small_gpus(made, gpu_memory_gb(has_cluster=context.capacity is not None), placement)
            is_finished = context.compute(made)
        if not is_finished:
            raise stopped(f"stopped; {_counted(study, store, made)}", study)
    finish(study, store, made, show=options.show)


def finish(study: Study, store: Store, made: StudyPlan, *, show: bool) -> None:
    """Print the table, the picture of tiles and the place of the rows; then report what failed.

    Raises:
        SomeFailed: some trials have failed.
    """
    status = tables.statuses(store, study.name)
    failed = [t for t in made.trials if status.get(t.id) == "failed"]
    missing = [t for t in made.trials if t.id not in status]
    if show and any(s == "done" for s in status.values()):
        from sweeps.analysis.request import Comparison
        from sweeps.report.commands import table, tiles

        shown = Comparison(stores=(store.root,))
        table((study.name,), shown)
        picture = Path(store.base if store.is_local else store.cache) / "figures" / f"{study.name}-tiles.png"
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            say(f"tiles: {tiles((study.name,), shown, out=str(picture))}")
        except Missing as error:  # a study without a refined variant, or artefacts that gc took away, has no tiles to show
            say(f"no picture of tiles: {error}")
    say(f"rows: {store.root}/tables/*/study={study.name}/*.parquet")
    if failed or missing:
        raise SomeFailed(
            f"{len(failed)} of {len(made.trials)} trials of {study.name} failed" + (f", {len(missing)} are unfinished" if missing else ""),
            value=f"{failed[0].label}: {tables.error_of(store, study.name, failed[0].id)}" if failed else None,
            hint=f"{resume_line(study)} --retry-failed" if failed else resume_line(study),
        )


def _counted(study: Study, store: Store, made: StudyPlan) -> str:
    status = tables.statuses(store, study.name)
    done = sum(status.get(t.id) == "done" for t in made.trials)
    return f"{done} of {len(made.trials)} trials done"


# ---- status ----------------------------------------------------------------------------------------------------------


def status(name: str, store: Store, *, as_json: bool = False) -> None:
    """State of a study, from another terminal: its rows, its jobs, its drivers.

    Raises:
        Missing: no such study in this store.
    """
    state = state_of(name, store, claims=True)
    counts = {s: state.count(s) for s in tables.STATUSES}
    if as_json:
        out = {
            "study": name,
            "trials": state.total,
            **counts,
            "open": state.open,
            "gpu_hours": state.gpu_hours,
            "drivers": [{"host": driver["host"], "pid": driver["pid"]} for driver in state.working],
            "in_hand": state.in_hand,
            "computed": {stage: len(store.runs(stage)) for stage in STAGES},
            "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        print(json.dumps(out, indent=1))
        return
    print(f"{name}: {counts['done']} of {state.total} trials done, {counts['failed']} failed, {counts['pruned']} pruned, {state.open} open")
    print("driver: " + (", ".join(f"{d['host']} process {d['pid']}" for d in state.working) or "none is running"))
    in_hand = state.in_hand
    if in_hand:
        print("in hand: " + ", ".join(in_hand[:8]) + (" ..." if len(in_hand) > 8 else ""))
    for trial, label in state.labels.items():
        if state.status.get(trial) == "failed":
            print(f"failed: {label}: {tables.error_of(store, name, trial)}")
