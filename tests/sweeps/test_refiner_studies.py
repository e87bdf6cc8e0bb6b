"""The studies of the refiner compare like with like, and every arm of them is a refiner that can be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgbr.config import Experiment
from idgbr.settings import network_shape
from sweeps import refiner_studies, studies
from sweeps.study import Trial, expand

SHARED = ("train_images", "batch_images", "crop_px", "lr", "boundary_share", "loss_weighting", "class_channels", "channels")


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as IDGBR_DATA names it; plans ask for the content of the weights file alone."""
    monkeypatch.setenv("IDGBR_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    for name in ("tf_efficientnet_lite0_in1k", "tf_efficientnet_lite2_in1k_fp16"):
        (tmp_path / "weights" / f"{name}.safetensors").write_bytes(b"weights")


def trials(name: str) -> list[Trial]:
    return expand(studies.find(f"{name}_naip_fields"))


def refiners(found: list[Trial]) -> dict[str, Experiment]:
    """Experiments of the trained refiners, by key."""
    return {job.key: t.experiment for t in found for job in t.jobs if job.stage == "refiner"}


def test_the_screen_trains_every_arm_once_on_equal_terms() -> None:
    found = refiners(trials("refiner_screen"))
    kinds = [e.refiner.kind for e in found.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"one_pass": 3, "cascade": 1, "diffusion": len(refiner_studies.DIFFUSION)}
    for name in SHARED:
        assert len({getattr(e.refiner, name) for e in found.values()}) == 1, name


@pytest.mark.parametrize("name", ["refiner_confirm", "refiner_decisions"])
def test_one_pass_and_cascade_have_the_network_of_the_arm_beside_them(name: str) -> None:
    found = refiners(trials(name))
    best = [e.refiner for e in found.values() if e.refiner.kind == "diffusion"]
    assert len(best) == 3  # seeds
    others = [e.refiner for e in found.values() if e.refiner.kind != "diffusion"]
    assert others
    for other in others:
        for field in ("channels", "pixel_channels", "input_condition", "class_channels", "guidance_width", "block_px"):
            assert getattr(other, field) == getattr(best[0], field)
    assert len({network_shape(b) for b in best}) == 1


@pytest.mark.parametrize("name", ["refiner_decisions_naip_fields", "backbones_test"])
def test_decisions_and_test_places_train_nothing_that_the_networks_of_the_validation_places_did_not(name: str) -> None:
    validation, found = (expand(studies.find(study)) for study in ("backbones", name))
    assert set(refiners(found)) <= set(refiners(validation))
    trained = [{job.key for t in part for job in t.jobs if job.stage == "backbone"} for part in (found, validation)]
    assert trained[0] <= trained[1]


def test_every_arm_can_be_built_and_sampled_as_the_study_says() -> None:
    from idgbr.refiner.process import process_of

    for name in ("refiner_screen", "refiner_confirm", "refiner_decisions"):
        for trial in trials(name):
            if trial.experiment.refiner.kind != "none":
                process_of(trial.experiment.refiner).check(trial.experiment.sampler)
