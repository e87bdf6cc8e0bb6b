"""One training over several workers of a loopback cluster: the curve of one process, whatever dies on the way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import one_process, prepared

from cluster.train import check_storage, fit_sharded, ray_folder, run_name
from idgbr import backbone, stages
from idgbr.config import Runtime
from idgbr.errors import BadRequest, Missing
from idgbr.store import Store
from idgbr.train import read_curve

pytestmark = pytest.mark.ray
CPU = Runtime(device="cpu", threads=1)


def test_two_workers_give_the_curve_of_one_process_at_the_same_global_batch(loopback: Any, store: Store, tmp_path: Path) -> None:
    experiment, job = prepared(store)
    lines: list[dict[str, Any]] = []

    def fit(*args: Any, **kwargs: Any) -> None:
        fit_sharded(*args, **kwargs, workers=2)

    manifest = stages.run(job, store, experiment, CPU, report=lambda **values: lines.append(values), fit=fit)
    one = read_curve(one_process(store, experiment, job, tmp_path / "one"))
    two = read_curve(store.path(job.stage, job.key))
    assert [x["images"] for x in two] == [x["images"] for x in one]
    assert [x["loss"] for x in two] == pytest.approx([x["loss"] for x in one], rel=1e-3)
    assert {"model.safetensors", "curve.jsonl", "backbone.json"} <= set(manifest["files"])
    backbone.load(store.path(job.stage, job.key))
    assert lines[-1]["workers"] == 2
    assert not store.names(ray_folder(), recursive=True), "checkpoints go when the artefact is stored"
