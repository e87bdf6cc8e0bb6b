"""Early stopping of trials of a search. The worker decides, from values in the store; nothing is killed.

Rungs (asynchronous successive halving, Li et al., MLSys 2020): at a rung a training writes its value to the store and
continues if it is among the best 1/reduction of all trainings that have reached the rung. A stopped training writes a
checkpoint first, so it can resume.

Tiles: while a sampler works through the rasters of the split, its scores are compared with those of the best trial on
the same rasters, by Wilcoxon's signed-rank test (Optuna's `WilcoxonPruner`).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from idgbr.datasets.index import Raster

from idgbr.config import Experiment
from idgbr.errors import IdgbrError
from idgbr.interfaces import Report, Stop
from idgbr.stages import Job
from idgbr.store import Store
from sweeps.run.goals import counts_of
from sweeps.run.reports import furthest


class Pruned(IdgbrError):
    """Stopped early: others are better at the same point."""


@dataclass(frozen=True)
class Watch:
    """When a unit of a search is stopped early. `rival`: key of the counts of the best trial so far."""

    study: str
    trial: str
    goal: str
    higher_is_better: bool
    rungs: tuple[int, ...] = ()
    reduction: int = 2
    rung_goal: str = "-loss"
    wilcoxon: float = 0.0
    rival: str | None = None


def survives(value: float, others: list[float], reduction: int) -> bool:
    """Whether `value` (larger is better) is among the best 1/reduction of all that reached the rung, itself included.

    The first value at a rung always survives: asynchronous halving does not wait for others.
    """
    ranked = sorted([value, *others], reverse=True)
    return value >= ranked[max(1, len(ranked) // reduction) - 1]


class Halving:
    """Report and stop hooks of one training."""

    def __init__(self, watch: Watch, store: Store, report: Report | None, stop: Stop | None):
        self.watch, self.store, self._report, self._stop = watch, store, report, stop
        self.is_pruned = False
        self.reason = ""
        self.left = list(watch.rungs)

    def report(self, values: Mapping[str, object] | None = None, **more: object) -> None:
        values = {**(values or {}), **more}
        name = self.watch.rung_goal.removeprefix("-")
        images, measured = furthest(values), values.get(name)
        while self.left and images >= self.left[0] and isinstance(measured, int | float) and not self.is_pruned:
            rung = self.left.pop(0)
            value = float(measured) * (-1.0 if self.watch.rung_goal.startswith("-") else 1.0)
            others = self._others(rung)
            self.store.write_bytes(f"{self._folder(rung)}/{self.watch.trial}={value!r}.json", json.dumps({"value": value}).encode())
            if not survives(value, others, self.watch.reduction):
                self.is_pruned = True
                self.reason = (
                    f"pruned at {rung} images: {name} {abs(value):.4g} is not among the best 1/{self.watch.reduction} of {len(others) + 1}"
                )
        if self._report:
            self._report(**values)

    def stop(self) -> bool:
        return self.is_pruned or (self._stop is not None and self._stop())

    def _folder(self, rung: int) -> str:
        return f"studies/{self.watch.study}/rungs/{rung}"

    def _others(self, rung: int) -> list[float]:
        """Values of the other trials at a rung, from one listing: the names carry them. Files of older versions are read."""
        found: dict[str, float] = {}
        for name in self.store.names(self._folder(rung), ".json"):
            trial, sign, value = name.rpartition("/")[2].removesuffix(".json").partition("=")
            found[trial] = float(value) if sign else json.loads(self.store.read_bytes(name) or b'{"value": NaN}')["value"]
        found.pop(self.watch.trial, None)
        return list(found.values())


class WatchedStore(Store):
    """A store that knows the folder of the artefact that is being written (`out`)."""

    out: Path | None = None

    def put(self, stage: str, key: str, write: Callable[[Path], None], record: Mapping[str, Any]) -> dict[str, Any]:
        """As `Store.put`; `out` is set while `write` runs."""

        def watched(out: Path) -> None:
            self.out = out
            write(out)

        return super().put(stage, key, watched, record)


class TileTest:
    """Report hook of one "refined" job: scores every finished raster and compares it with the rival's score of the
    same raster.
    """

    def __init__(self, watch: Watch, store: WatchedStore, job: Job, experiment: Experiment, report: Report | None):
        from idgbr import datasets

        self.watch, self.store, self.experiment, self._report = watch, store, experiment, report
        self.dataset = datasets.load(store.path("data", job.parents["data"]), experiment.data)
        self.coarse_dir = store.path("coarse", job.parents["coarse"])
        self.rasters = self.dataset.of(experiment.sampler.split)
        self.rival = raster_scores(store.path("counts", watch.rival or "") / "counts.parquet", watch.goal)
        self.trial = _paired_trial(self.rival, watch)

    def report(self, values: Mapping[str, object] | None = None, **more: object) -> None:
        values = {**(values or {}), **more}
        done = values.get("done", 0)
        if values.get("stage") == "refined" and isinstance(done, int) and done and self.store.out is not None:
            raster = self.rasters[done - 1]
            if raster.id in self.rival:
                self.trial.report(self._score(raster), list(self.rival).index(raster.id))
                if self.trial.should_prune():
                    raise Pruned(
                        f"pruned after {done} of {len(self.rasters)} rasters: surely worse than the best (Wilcoxon, {self.watch.wilcoxon})"
                    )
        if self._report:
            self._report(**values)

    def _score(self, raster: Raster) -> float:
        from idgbr import scores

        assert self.store.out is not None
        only = dataclasses.replace(self.dataset, rasters=(raster,))
        with tempfile.TemporaryDirectory() as folder:
            scores.count_rasters(self.experiment.score, only, raster.split, self.store.out, self.coarse_dir, Path(folder))
            return raster_scores(Path(folder) / "counts.parquet", self.watch.goal)[raster.id]


def raster_scores(path: Path, goal: str) -> dict[str, float]:
    """The goal's value of each raster, on the table's first label set; rasters where it is undefined are left out."""
    from idgbr.scores import evaluate

    found = {str(name): evaluate(part, goal).score for (name,), part in counts_of(path).group_by("raster", maintain_order=True)}
    return {name: value for name, value in found.items() if value == value}


def _paired_trial(rival: dict[str, float], watch: Watch) -> optuna.Trial:
    """An Optuna trial beside a finished one with the rival's values: what `WilcoxonPruner` compares."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.WilcoxonPruner(p_threshold=watch.wilcoxon)
    study = optuna.create_study(direction="maximize" if watch.higher_is_better else "minimize", pruner=pruner)
    mean = sum(rival.values()) / max(1, len(rival))
    study.add_trial(optuna.trial.create_trial(value=mean, intermediate_values=dict(enumerate(rival.values()))))
    return study.ask()
