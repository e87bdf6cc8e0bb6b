"""Adaptive studies: Optuna proposes settings, each proposal becomes a unit of work, its score is reported back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from idgbr.config import SECTIONS
from idgbr.errors import Missing
from idgbr.files import unwritable
from idgbr.store import Store
from sweeps import tables
from sweeps.run import journal
from sweeps.run.claims import Claims
from sweeps.run.journal import is_higher_better
from sweeps.run.plan import Plan
from sweeps.run.pruning import Watch
from sweeps.run.schedule import end_of
from sweeps.run.worker import Outcome, Task, Unit, write_failed
from sweeps.study import Axis, Setter, Study, Trial

REPEATS = 25  # proposals in a row that are known already before the space counts as exhausted


def propose(trial: Any, axes: tuple[Axis, ...]) -> dict[str, Any]:
    """Overrides for one Optuna trial. Values that Optuna cannot store (tuples) go by their text."""
    out: dict[str, Any] = {}
    for axis in axes:
        if axis.values:
            by_text = {_text(v): v for v in axis.values}
            out[axis.name] = by_text[trial.suggest_categorical(axis.name, list(by_text))]
        elif _is_integer(axis):
            step = int(axis.step or 1)
            out[axis.name] = trial.suggest_int(
                axis.name, int(axis.low or 0), int(axis.high or 0), step=1 if axis.log else step, log=axis.log
            )
        else:
            out[axis.name] = trial.suggest_float(axis.name, axis.low, axis.high, step=None if axis.log else axis.step, log=axis.log)
    return out


def _text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _is_integer(axis: Axis) -> bool:
    import typing

    return typing.get_type_hints(SECTIONS[axis.stage])[axis.name.partition(".")[2]] is int


class Proposals:
    """Asks Optuna for what to do next and tells it what came of it. Drawn from like `schedule.Schedule`."""

    def __init__(self, study: Study, store: Store, claims: Claims, slots: int, commit: str, prepared: Plan, *, retry_failed: bool = False):
        import optuna

        self.study, self.store, self.claims, self.slots, self.commit = study, store, claims, slots, commit
        self.spec = journal.spec_of(study)
        self.plan = prepared
        self.setter = Setter(study.base())
        self.sign = [-1.0 if g.startswith("-") or not is_higher_better(g) else 1.0 for g in self.spec.goals]
        self.primary = self.spec.goals[0].removeprefix("-")
        self.running: dict[str, Unit] = {}
        self.asked: dict[str, tuple[Any, list[Trial]]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.trials: dict[str, Trial] = {t.id: t for t in prepared.trials}
        self.failed_trials: dict[str, str] = {}
        self.stopping = False
        self.fatal: str | None = None
        self.is_exhausted = False
        self.best: tuple[float, str] | None = None  # primary goal (larger is better), key of its counts
        self.is_idle = False  # a search waits for no other driver
        self.optuna = journal.opened(study, store)
        state = optuna.trial.TrialState
        for old in self.optuna.get_trials(deepcopy=False):
            if old.state in (state.RUNNING, state.WAITING):  # in hand when the last driver ended: goes on from its checkpoint
                if old.state == state.RUNNING:
                    self.optuna.tell(old.number, state=state.FAIL)
                    self.optuna.enqueue_trial(old.params, user_attrs={"again": old.number})
            elif old.state == state.COMPLETE and "counts" in old.user_attrs:
                self._note_best(old.values[0], old.user_attrs["counts"])
        if retry_failed:
            self._retry()
        if not self.optuna.trials:
            for point in self.spec.start:
                self.optuna.enqueue_trial({k: _text(v) for k, v in point.items()}, skip_if_exists=True)

    def _retry(self) -> None:
        """Propose again what has failed."""
        failed = {t for t, s in tables.statuses(self.store, self.study.name).items() if s == "failed"}
        for old in self.optuna.get_trials(deepcopy=False):
            if old.state == _state("FAIL") and old.user_attrs.get("trial") in failed:
                failed.discard(old.user_attrs["trial"])
                self.optuna.enqueue_trial(old.params, user_attrs={"retry_of": old.number})

    @property
    def told_count(self) -> int:
        """Proposals that came to an end, in all runs. Those that a driver's end cut off do not count, nor those that are tried again."""
        found = self.optuna.get_trials(deepcopy=False)
        return sum(t.state.is_finished() and "trial" in t.user_attrs for t in found) - sum("retry_of" in t.user_attrs for t in found)

    @property
    def remaining(self) -> int:
        return max(0, self.spec.trials - self.told_count - len(self.running))

    @property
    def is_finished(self) -> bool:
        return not self.running and (self.stopping or self.is_exhausted or self.remaining == 0)

    def all_trials(self) -> tuple[Trial, ...]:
        """Yardsticks and every proposal that Optuna's journal holds, of this run and of those before."""
        for old in self.optuna.get_trials(deepcopy=False):
            if "trial" in old.user_attrs:
                values = {a.name: {_text(v): v for v in a.values}.get(old.params[a.name], old.params[a.name]) for a in self.study.axes}
                experiment = self.setter(values)
                for seed in self.study.seeds:
                    trial = Trial(values, dataclasses.replace(experiment, seed=seed))
                    self.trials.setdefault(trial.id, trial)
        return tuple(self.trials.values())

    def take(self) -> Unit | None:
        try:
            return self._take()
        except (OSError, Missing) as error:
            self._end(error)
            return None

    def _end(self, error: Exception) -> None:
        """The journal or a row cannot be written: the search ends, and the next run goes on with what was in hand."""
        self.stopping = True
        problem = unwritable(str(journal.path_of(self.study, self.store)), error) if isinstance(error, OSError) else error
        self.fatal = self.fatal or str(problem)

    def _take(self) -> Unit | None:
        if self.stopping or self.is_exhausted or len(self.running) >= self.slots:
            return None
        for _ in range(REPEATS):
            if self.remaining == 0:
                return None
            asked = self.optuna.ask()
            overrides = propose(asked, self.study.axes)
            experiment = self.setter(overrides)
            if not all(constraint(experiment) for constraint in self.study.constraints):
                asked.set_user_attr("refused", "constraint")
                self.optuna.tell(asked, state=_state("FAIL"))
                continue
            trials = [Trial(overrides, dataclasses.replace(experiment, seed=seed)) for seed in self.study.seeds]
            self.trials |= {t.id: t for t in trials}
            unit = self._unit(trials)
            if unit.id in self.running:
                asked.set_user_attr("refused", "in hand already")
                self.optuna.tell(asked, state=_state("FAIL"))
                continue
            status = tables.statuses(self.store, self.study.name)
            if all(status.get(t.id) == "done" for t in trials):  # known: tell, and ask for another
                self._tell(asked, trials)
                continue
            self.running[unit.id] = unit
            self.asked[unit.id] = (asked, trials)
            return unit
        self.is_exhausted = not self.running
        return None

    def _unit(self, trials: list[Trial]) -> Unit:
        tasks: list[Task] = []
        for trial in trials:
            for job in trial.jobs:
                is_known = job.key in self.plan.stored or any(t.job.key == job.key for t in tasks)
                last = job is trial.jobs[-1]
                if job.stage in ("refiner", "refined", "counts", "backbone", "coarse") and (last or not is_known):
                    tasks.append(Task(job, trial.experiment, (end_of(trial, self.study.name),) if last else ()))
        spec, rival = self.spec, self.best[1] if self.best else None
        watch = Watch(
            self.study.name, trials[0].id, self.primary, self.sign[0] > 0, spec.rungs, spec.reduction, spec.rung_goal, spec.wilcoxon, rival
        )
        return Unit(tuple(tasks), watch=watch if spec.rungs or spec.wilcoxon else None, name=tasks[-1].job.key)

    # ---- what came of it -----------------------------------------------------------------------------------------------

    def finish_task(self, outcome: Outcome) -> None:
        self.outcomes[outcome.key] = outcome
        if outcome.status == "no_space":
            self.fatal, self.stopping = outcome.error, True

    def complete(self, unit_id: str, error: str | None = None) -> None:
        unit = self.running.pop(unit_id)
        asked, trials = self.asked.pop(unit_id)
        if self.fatal:
            return
        try:
            self._complete(unit, asked, trials, error)
        except (OSError, Missing) as problem:
            self._end(problem)

    def _complete(self, unit: Unit, asked: Any, trials: list[Trial], error: str | None) -> None:
        found = [self.outcomes.pop(t.job.key, None) for t in unit.tasks]
        pruned = next((o for o in found if o is not None and o.status == "pruned"), None)
        failed = next((o.error for o in found if o is not None and o.status == "failed"), error)
        if pruned is not None:
            for trial in trials:
                write_failed(end_of(trial, self.study.name), pruned.error or "", self.store, self.commit, status="pruned")
            asked.set_user_attr("trial", trials[0].id)
            self.optuna.tell(asked, state=_state("PRUNED"))
        elif failed is not None:
            for trial in trials:
                self.failed_trials[trial.id] = failed
                write_failed(end_of(trial, self.study.name), failed, self.store, self.commit)
            asked.set_user_attr("trial", trials[0].id)
            self.optuna.tell(asked, state=_state("FAIL"))
        elif any(o is None or o.status != "done" for o in found):  # interrupted: stays in hand, the next run goes on with it
            return
        else:
            self._tell(asked, trials)
        journal.save(self.study, self.store)

    def _tell(self, asked: Any, trials: list[Trial]) -> None:
        values = [sum(v) / len(v) for v in zip(*(self._values(t) for t in trials), strict=True)]
        asked.set_user_attr("trial", trials[0].id)
        asked.set_user_attr("counts", trials[0].jobs[-1].key)
        if any(v != v for v in values):
            asked.set_user_attr("undefined", True)
            self.optuna.tell(asked, state=_state("FAIL"))
            return
        self.optuna.tell(asked, values)
        self._note_best(values[0], trials[0].jobs[-1].key)

    def _values(self, trial: Trial) -> list[float]:
        from idgbr.scores import evaluate, read_counts

        frame = read_counts(self.store.path("counts", trial.jobs[-1].key) / "counts.parquet")
        frame = frame.filter(frame["label_set"] == frame["label_set"][0])
        refined = next(j.key for j in trial.jobs if j.stage == "refined")
        out = []
        for goal in self.spec.goals:
            name = goal.removeprefix("-")
            out.append(
                float((self.store.manifest("refined", refined) or {})["seconds"]) if name == "seconds" else evaluate(frame, name).score
            )
        return out

    def _note_best(self, value: float, counts: str) -> None:
        if self.best is None or value * self.sign[0] > self.best[0]:
            self.best = (value * self.sign[0], counts)

    def needed(self) -> set[str]:
        """Keys that what runs, or may be proposed, will read or write."""
        return {*self.plan.jobs, *(t.job.key for unit in self.running.values() for t in unit.tasks)}

    def trials_of(self, ids: Iterable[str]) -> list[Trial]:
        return [self.trials[i] for i in ids if i in self.trials]

    def why_waiting(self) -> str:
        return f"stopping: {len(self.running)} running trials write their checkpoints" if self.stopping else ""


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]
