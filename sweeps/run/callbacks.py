"""Optional observers of a run: TensorBoard, MLflow, W&B. Off by default; the Parquet tables are the record, these are
copies to look at.

`python -m sweeps run STUDY --callback tensorboard --callback mlflow`. All write files below the store (or its cache)
and reach no network, unless MLFLOW_TRACKING_URI or WANDB_MODE says otherwise. A callback that fails is reported once
and dropped; no trial fails for it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol, cast

from idgbr.errors import BadRequest, Missing, nearest
from idgbr.store import Store
from sweeps.study import Trial


class Observer(Protocol):
    """Receives every report of a running job and every finished trial."""

    def report(self, unit: str, title: str, values: Mapping[str, object]) -> None:
        """Progress of a unit; called at most every few seconds."""

    def trial(self, trial: Trial, score: float | None, goal: str) -> None:
        """A trial has ended well, with its score."""

    def close(self) -> None:
        """The run has ended."""


class TensorBoard:
    """Loss curves by images, one run a training; scores of trials. `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self.folder, self.writer = folder, functools.cache(lambda name: SummaryWriter(str(folder / name)))
        self.names: set[str] = set()

    def report(self, unit: str, title: str, values: Mapping[str, object]) -> None:
        images = values.get("images")
        if images is None:
            return
        self.names.add(title)
        for name, value in values.items():
            if name != "images" and isinstance(value, int | float):
                self.writer(title).add_scalar(name, value, images)

    def trial(self, trial: Trial, score: float | None, goal: str) -> None:
        if score is not None:
            self.names.add("trials")
            self.writer("trials").add_text(trial.id, f"{trial.label}: {goal} {score:.4f}")
            self.writer("trials").add_scalar(goal, score, len(self.names))

    def close(self) -> None:
        for name in self.names:
            self.writer(name).close()


class MLflow:
    """One MLflow run a trial: its settings as parameters, its score as a metric; in a file store unless
    MLFLOW_TRACKING_URI says else.
    """

    def __init__(self, folder: Path, study: str):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or folder.absolute().as_uri())
        found = self.client.get_experiment_by_name(study)
        self.experiment = found.experiment_id if found else self.client.create_experiment(study)

    def report(self, unit: str, title: str, values: Mapping[str, object]) -> None:
        """Curves of shared trainings belong to many trials; they are in the curves table."""

    def trial(self, trial: Trial, score: float | None, goal: str) -> None:
        run = self.client.create_run(self.experiment, run_name=trial.label, tags={"trial": trial.id, "role": trial.role})
        for name, value in {**trial.overrides, "seed": trial.experiment.seed}.items():
            self.client.log_param(run.info.run_id, name, value)
        if score is not None:
            self.client.log_metric(run.info.run_id, goal, score)
        self.client.set_terminated(run.info.run_id)

    def close(self) -> None:
        """Every call has written its file."""


class WandB:
    """One W&B run a trial: its settings as config, its score as summary; `wandb sync FOLDER/wandb/offline-run-*`
    sends them.
    """

    def __init__(self, folder: Path, study: str):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.module, self.folder, self.study = wandb, folder, study

    def report(self, unit: str, title: str, values: Mapping[str, object]) -> None:
        """Curves of shared trainings belong to many trials; they are in the curves table."""

    def trial(self, trial: Trial, score: float | None, goal: str) -> None:
        mode = cast(Literal["online", "offline", "disabled"], os.environ.get("WANDB_MODE", "offline"))  # W&B checks it
        run = self.module.init(
            project=self.study, id=trial.id, name=trial.label, job_type=trial.role, dir=str(self.folder), reinit="create_new",
            mode=mode, config={**trial.overrides, "seed": trial.experiment.seed},
            settings=self.module.Settings(silent=True),
        )  # fmt: skip
        if score is not None:
            run.summary[goal] = score
        run.finish()

    def close(self) -> None:
        """Every run is finished."""


MAKERS: dict[str, Callable[[Path, str], Observer]] = {
    "tensorboard": lambda folder, study: TensorBoard(folder / "tensorboard" / study),
    "mlflow": lambda folder, study: MLflow(folder / "mlflow", study),
    "wandb": lambda folder, study: WandB(folder, study),
}
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow-skinny", "wandb": "wandb"}


class Careful:
    """An observer whose errors end itself, not the study."""

    def __init__(self, name: str, observer: Observer):
        self.name, self.observer, self.is_broken = name, observer, False

    def report(self, unit: str, title: str, values: Mapping[str, object]) -> None:
        self._call(lambda: self.observer.report(unit, title, values))

    def trial(self, trial: Trial, score: float | None, goal: str) -> None:
        self._call(lambda: self.observer.trial(trial, score, goal))

    def close(self) -> None:
        self._call(self.observer.close)

    def _call(self, work: Callable[[], None]) -> None:
        if self.is_broken:
            return
        try:
            work()
        except Exception as error:  # an observer must not fail a trial
            self.is_broken = True
            print(f"callback {self.name} has failed and is dropped: {error}", file=sys.stderr)


def started(names: Iterable[str], study: str, store: Store) -> list[Observer]:
    """Raises:
    BadRequest: no such callback. Missing: its package is not installed.
    """
    folder = Path(store.base if store.is_local else store.cache)
    out: list[Observer] = []
    for name in names:
        if name not in MAKERS:
            raise BadRequest("no such callback", value=name, allowed=", ".join(MAKERS), hint=nearest(name, MAKERS) or None)
        try:
            out.append(Careful(name, MAKERS[name](folder, study)))
        except ImportError as error:
            raise Missing(
                f"the callback {name} needs a package that is not installed: {error.name}", hint=f"pip install {PACKAGES[name]}"
            ) from error
    return out
