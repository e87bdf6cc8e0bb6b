"""What is settled before Ray starts: shapes, paths, names, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import train as sharded
from idgbr.config import SECTIONS, Experiment, apply
from idgbr.errors import BadRequest, Missing, SomeFailed
from idgbr.settings import names_of_paths


def test_paths_become_absolute_because_workers_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{name}.{setting}" for name, section in SECTIONS.items() for setting in names_of_paths(section)]
    assert "refiner.condition_weights" in names
    before = apply(Experiment(), {name: f"files/{name}" for name in names})
    after = sharded._absolute(before)
    assert after == apply(before, {name: str(tmp_path / "files" / name) for name in names})
    assert sharded._absolute(Experiment()) == Experiment()  # an empty path means "none" and stays empty


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
