"""What is settled before Ray starts: shapes, paths, names, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cluster import train as sharded
from idgbr.config import Experiment, apply
from idgbr.errors import BadRequest, Missing, SomeFailed


def test_paths_become_absolute_because_workers_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = apply(Experiment(), {"data.root": "scenes", "backbone.weights": "w.safetensors"})
    after = sharded._absolute(before)
    assert after.data.root == str(tmp_path / "scenes")
    assert after.backbone.weights == str(tmp_path / "w.safetensors")
    assert after.refiner == before.refiner
    assert dataclasses.replace(after, data=before.data, backbone=before.backbone) == before


@pytest.mark.parametrize("shape", [{"workers": 0}, {"min_workers": 3}, {"cpus": 0}, {"gpus": -1}])
def test_impossible_shapes_are_refused(shape: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match="shape of workers"):
        sharded._check_shape(**{"workers": 2, "min_workers": 0, "sharding": "ddp", "cpus": 1.0, "gpus": 0.0} | shape)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="ddp, fsdp"):
        sharded._check_shape(2, 0, "zero", 1.0, 0.0)


def test_an_error_of_the_training_comes_to_the_driver_as_itself() -> None:
    own = BadRequest("lr is out of range")
    with pytest.raises(BadRequest, match="lr is out of range"):
        sharded._raise_own(own, RuntimeError("worker group died"), "backbone-x", 2, 3)

    class ControllerError(RuntimeError):
        pass

    with pytest.raises(Missing, match="no place for its workers"):
        sharded._raise_own(None, ControllerError("timed out"), "backbone-x", 2, 3)
    with pytest.raises(SomeFailed, match="max_failures=3"):
        sharded._raise_own(None, RuntimeError("died"), "backbone-x", 2, 3)
    sharded._raise_own(None, None, "backbone-x", 2, 3)
