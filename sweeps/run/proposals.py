"""Proposals of an adaptive study: Optuna proposes settings, each seed of a proposal becomes units of work, its score
is reported back.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idgbr.config import SECTIONS
from idgbr.stages import Job
from idgbr.store import Store
from sweeps import tables
from sweeps.run import journal
from sweeps.run.goals import is_higher_better, score_of
from sweeps.run.plan import StudyPlan
from sweeps.run.pruning import Watch
from sweeps.run.units import Task, Unit, end_of
from sweeps.study import Axis, Overrides, Setter, Setting, Study, Trial

if TYPE_CHECKING:
    import optuna

REPEATS = 25  # after so many known proposals in a row the space counts as exhausted


def suggest(trial: optuna.Trial, axes: tuple[Axis, ...]) -> dict[str, Setting]:
    """Overrides for one Optuna trial. Values that Optuna cannot store (tuples) go by their text."""
    out: dict[str, Setting] = {}
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
            low, high = float(axis.low or 0.0), float(axis.high or 0.0)
            out[axis.name] = trial.suggest_float(axis.name, low, high, step=None if axis.log else axis.step, log=axis.log)
    return out


def _text(value: Setting) -> bool | int | float | str | None:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _is_integer(axis: Axis) -> bool:
    import typing

    return typing.get_type_hints(SECTIONS[axis.stage])[axis.name.partition(".")[2]] is int


@dataclass
class Proposal:
    """What Optuna has asked for: one trial for each seed, and how those that have ended did."""

    asked: optuna.Trial
    trials: list[Trial]
    status: dict[str, str] = dataclasses.field(default_factory=dict)


class Proposals:
    """Asks Optuna for settings to try and reports their scores to it; a `proposer.Proposer`.

    Args:
        prepared: plan of everything upstream of the searched stage, all of it stored.
        workers: that share one training through Ray Train. slots: workers that may be busy at once.
    """

    def __init__(self, study: Study, store: Store, prepared: StudyPlan, *, workers: int = 1, retry_failed: bool = False):
        import optuna

        self.study, self.store, self.plan, self.workers = study, store, prepared, workers
        self.spec = journal.spec_of(study)
        self.setter = Setter(study.base())
        self.sign = [-1.0 if g.startswith("-") or not is_higher_better(g) else 1.0 for g in self.spec.goals]
        self.primary = self.spec.goals[0].removeprefix("-")
        self.open: dict[str, Proposal] = {}  # trial -> its proposal
        self.trials: dict[str, Trial] = {t.id: t for t in prepared.trials}
        self.is_space_exhausted = False
        self.best: tuple[float, str] | None = None  # primary goal (larger is better), key of its counts
        self.optuna = journal.opened(study, store)
        state = optuna.trial.TrialState
        for old in self.optuna.get_trials(deepcopy=False):
            if old.state in (state.RUNNING, state.WAITING):  # open when the last driver ended: resumes from its checkpoint
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

    # ---- progress ----------------------------------------------------------------------------------------------------

    @property
    def ended_count(self) -> int:
        """Proposals that have ended, in all runs; not those that ended with their driver, nor those that are tried
        again.
        """
        found = self.optuna.get_trials(deepcopy=False)
        return sum(t.state.is_finished() and "trial" in t.user_attrs for t in found) - sum("retry_of" in t.user_attrs for t in found)

    @property
    def remaining(self) -> int:
        """Number of trials that may still be proposed."""
        return max(0, self.spec.trials - self.ended_count - len({id(p) for p in self.open.values()}))

    @property
    def is_exhausted(self) -> bool:
        """Whether no more trials will be proposed."""
        return self.is_space_exhausted or self.remaining == 0

    def all_trials(self) -> tuple[Trial, ...]:
        """Yardsticks and every proposal that Optuna's journal holds, of this run and of those before."""
        for old in self.optuna.get_trials(deepcopy=False):
            if "trial" in old.user_attrs:
                values = {a.name: {_text(v): v for v in a.values}.get(old.params[a.name], old.params[a.name]) for a in self.study.axes}
                for trial in self._trials(values):
                    self.trials.setdefault(trial.id, trial)
        return tuple(self.trials.values())

    def _trials(self, overrides: Overrides) -> list[Trial]:
        experiment = self.setter(overrides)
        return [Trial(overrides, dataclasses.replace(experiment, seed=seed)) for seed in self.study.seeds]

    # ---- what to do next ---------------------------------------------------------------------------------------------

    def propose(self) -> tuple[list[Unit], list[Trial]] | None:
        """Units of the next proposal that is not known already, and its trials, one a seed; None: nothing now, or
        nothing more.

        Raises:
            OSError: the journal cannot be written.
        """
        for _ in range(REPEATS):
            if self.is_exhausted:
                return None
            asked = self.optuna.ask()
            overrides = suggest(asked, self.study.axes)
            trials = self._trials(overrides)
            if not all(constraint(trials[0].experiment) for constraint in self.study.constraints):
                self._refuse(asked, "constraint")
            elif any(t.id in self.open for t in trials):
                self._refuse(asked, "in hand already")
            else:
                self.trials |= {t.id: t for t in trials}
                status = tables.statuses(self.store, self.study.name)
                proposal = Proposal(asked, trials, {t.id: "done" for t in trials if status.get(t.id) == "done"})
                waiting = [t for t in trials if t.id not in proposal.status]
                if waiting:
                    self.open |= {t.id: proposal for t in waiting}
                    return [unit for t in waiting for unit in self._units(t)], waiting
                self._tell(proposal)  # known: report it, and ask for another
        self.is_space_exhausted = not self.open
        return None

    def _refuse(self, asked: optuna.Trial, why: str) -> None:
        asked.set_user_attr("refused", why)
        self.optuna.tell(asked, state=_state("FAIL"))

    def _units(self, trial: Trial) -> list[Unit]:
        """One unit; with several workers a training, each training is one, and so is what lies between them."""
        last = trial.jobs[-1]
        end = end_of(trial, self.study.name)
        jobs = [job for job in trial.jobs if job is last or job.key not in self.plan.stored]
        watch = self._watch(trial)

        def tasks(of: list[Job]) -> tuple[Task, ...]:
            return tuple(Task(job, trial.experiment, (end,) if job is last else ()) for job in of)

        if self.workers == 1:
            return [Unit(tasks(jobs), watch=watch)]
        units: list[Unit] = []
        group: list[Job] = []
        for job in jobs:
            if job.trains:
                units += [Unit(tasks(group), watch=watch)] if group else []
                units.append(Unit(tasks([job]), self.workers, watch))
                group = []
            else:
                group.append(job)
        return [*units, Unit(tasks(group), watch=watch)]

    def _watch(self, trial: Trial) -> Watch | None:
        spec, rival = self.spec, self.best[1] if self.best else None
        if not (spec.rungs or spec.wilcoxon):
            return None
        return Watch(
            self.study.name, trial.id, self.primary, self.sign[0] > 0, spec.rungs, spec.reduction, spec.rung_goal, spec.wilcoxon, rival
        )

    # ---- outcomes ----------------------------------------------------------------------------------------------------

    def ended(self, trial: Trial, status: str, error: str | None) -> None:
        """A trial has its row. When it was the last seed of its proposal, the proposal's scores go to Optuna.

        Raises:
            OSError, Missing: the journal cannot be written.
        """
        proposal = self.open.pop(trial.id, None)
        if proposal is None:
            return
        proposal.status[trial.id] = status
        if len(proposal.status) < len(proposal.trials):
            return
        if "failed" in proposal.status.values():
            self._end(proposal, "FAIL")
        elif "pruned" in proposal.status.values():
            self._end(proposal, "PRUNED")
        else:
            self._tell(proposal)
        journal.save(self.study, self.store)

    def _end(self, proposal: Proposal, state: str) -> None:
        proposal.asked.set_user_attr("trial", proposal.trials[0].id)
        self.optuna.tell(proposal.asked, state=_state(state))

    def _tell(self, proposal: Proposal) -> None:
        """Mean scores over the seeds."""
        asked, trials = proposal.asked, proposal.trials
        values = [sum(v) / len(v) for v in zip(*(self._values(t) for t in trials), strict=True)]
        asked.set_user_attr("counts", trials[0].jobs[-1].key)
        if any(v != v for v in values):
            asked.set_user_attr("undefined", True)
            self._end(proposal, "FAIL")
            return
        asked.set_user_attr("trial", trials[0].id)
        self.optuna.tell(asked, values)
        self._note_best(values[0], trials[0].jobs[-1].key)

    def _values(self, trial: Trial) -> list[float]:
        refined = next(j.key for j in trial.jobs if j.stage == "refined")
        out = []
        for goal in self.spec.goals:
            name = goal.removeprefix("-")
            if name == "seconds":
                out.append(float((self.store.manifest("refined", refined) or {"seconds": 0.0})["seconds"]))
            else:
                out.append(score_of(self.store, trial.jobs[-1].key, name))
        return out

    def _note_best(self, value: float, counts: str) -> None:
        if self.best is None or value * self.sign[0] > self.best[0]:
            self.best = (value * self.sign[0], counts)

    def needed(self) -> set[str]:
        """Keys that further proposals will read."""
        return set(self.plan.jobs)


def _state(name: str) -> optuna.trial.TrialState:
    import optuna

    return optuna.trial.TrialState[name]
