"""What is settled before Ray starts: shapes, paths, names, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.train import RayTraining, absolute_paths
from idgbr import stages
from idgbr.config import SECTIONS, Experiment, apply
from idgbr.errors import BadRequest, Outage, SomeFailed
from idgbr.settings import names_of_paths


def test_paths_become_absolute_because_workers_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{name}.{setting}" for name, section in SECTIONS.items() for setting in names_of_paths(section)]
    assert "refiner.condition_weights" in names
    before = apply(Experiment(), {name: f"files/{name}" for name in names})
    after = absolute_paths(before)
    assert after == apply(before, {name: str(tmp_path / "files" / name) for name in names})
    assert absolute_paths(Experiment()) == Experiment()  # an empty path means "none" and stays empty


@pytest.mark.parametrize("shape", [{"workers": 0}, {"min_workers": 3}, {"cpus": 0}, {"gpus": -1}])
def test_impossible_shapes_are_refused(shape: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match="shape of workers"):
        RayTraining(**shape).check()  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="ddp, fsdp"):
        RayTraining(sharding="zero").check()


def test_an_error_of_the_training_comes_to_the_driver_as_itself_and_rays_are_told_apart_by_class() -> None:
    from ray.train import ControllerError

    training, job = RayTraining(2), stages.jobs(Experiment())[1]
    own = BadRequest("lr is out of range")
    with pytest.raises(BadRequest, match="lr is out of range"):
        training.raise_cause(own, RuntimeError("worker group died"), job)
    with pytest.raises(Outage, match=f"workers of the training backbone {job.key} could not be placed"):
        training.raise_cause(None, ControllerError(RuntimeError("timed out")), job)
    with pytest.raises(Outage, match="max_failures=3"):
        training.raise_cause(None, RuntimeError("died"), job)
    training.raise_cause(None, None, job)


def test_lost_workers_are_no_result_of_the_training_and_its_own_error_is() -> None:
    """A sweep tries the first again; the second fails the trial."""
    import torch
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback  # what Ray 2.60 wraps an error of our code in
    from ray.train.v2.api.exceptions import WorkerGroupError

    training, job = RayTraining(2), stages.jobs(Experiment())[1]

    def failed(*causes: Exception) -> WorkerGroupError:
        return WorkerGroupError("worker errors", dict(enumerate(causes)))

    def ours(error: Exception) -> Exception:
        return UserExceptionWithTraceback(error, "Traceback ...")

    peer_gone = ours(RuntimeError("Connection closed by peer"))
    link = torch.distributed.DistBackendError("NCCL error: unhandled system error")
    for error in (failed(peer_gone, ActorDiedError()), failed(ours(link), ours(link)), failed(ours(torch.AcceleratorError("CUDA error")))):
        with pytest.raises(Outage, match="max_failures=3"):
            training.raise_cause(None, error, job)
    with pytest.raises(SomeFailed, match="raised ValueError: shapes"):
        training.raise_cause(None, failed(ours(ValueError("shapes")), ours(ValueError("shapes"))), job)
