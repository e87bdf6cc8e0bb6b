"""What is refused before anything trains: other models' weights, half a Stable Diffusion folder, missing tiles, GPUs that are too small."""

from __future__ import annotations

import dataclasses
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from paper_miniatures import tiny

from idgbr import preflight, stages
from idgbr.config import Experiment, Runtime, apply
from idgbr.costs import plan_memory
from idgbr.datasets.scan import find as find_data
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.paper_recipes import paper_experiment
from idgbr.store import Store
from idgbr.weights import header, misfit
from sweeps.run import commands
from sweeps.run import plan as planning
from sweeps.run import preflight as checks
from sweeps.run.cost_lines import forecast_lines
from sweeps.run.nodes import kinds_gb
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement
from sweeps.run.units import units_of
from sweeps.run.worker import why_too_small
from sweeps.study import Axis, Study


@pytest.mark.parametrize(
    ("recipe", "setting", "check"),
    [
        ("potsdam", "backbone.weights", preflight.check_backbone),
        ("potsdam", "refiner.condition_weights", preflight.check_refiner),
        ("potsdam_sd15", "refiner.teacher_weights", preflight.check_refiner),
    ],
)
def test_weights_of_another_architecture_are_refused(recipe: str, setting: str, check: Any, data_folder: Path, tmp_path: Path) -> None:
    experiment = tiny(recipe, data_folder)
    check(experiment, 3, 6)
    other = "test_efficientnet" if setting == "refiner.teacher_weights" else "test_vit"
    wrong = data_folder / "weights" / f"{other}.safetensors"
    with pytest.raises(Disagreement, match=r"tensors are not in the file, first") as caught:
        check(apply(experiment, {setting: str(wrong)}), 3, 6)
    assert wrong.name in str(caught.value)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(wrong.read_bytes()[:-1000])
    with pytest.raises(Disagreement, match=r"torn\.safetensors is not a whole safetensors file"):
        check(apply(experiment, {setting: str(torn)}), 3, 6)
    with pytest.raises(Missing, match=r"nowhere\.safetensors"):
        check(apply(experiment, {setting: str(tmp_path / "nowhere.safetensors")}), 3, 6)


def test_names_and_shapes_decide_whether_weights_fit(data_folder: Path) -> None:
    found = header(data_folder / "weights" / "test_efficientnet.safetensors")
    assert misfit(found, found) == ""
    first = next(name for name, shape in found.items() if len(shape) == 4)
    assert misfit(found, found | {first: (7, *found[first][1:])}).startswith(f"1 of {len(found)} tensors have another shape")
    assert (
        misfit(found, found | {"blocks.9.new.weight": (1,)})
        == f"1 of {len(found) + 1} tensors are not in the file, first blocks_9_new_weight"
    )
    assert misfit(found, found | {"head.new": (1,)}, skip=("head",)) == ""
    stem = {"stem.weight": (16, 3, 3, 3)}
    assert misfit(stem, {"stem_weight": (16, 5, 3, 3)}) == "", "the first convolution is adapted to the number of bands"


@pytest.mark.parametrize("part", ["vae", "unet", "vae/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_a_stable_diffusion_folder_without_a_part_is_refused(part: str, data_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(data_folder / "stable-diffusion-v1-5", tmp_path / "sd")
    lost = base / part
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    experiment = apply(tiny("potsdam_sd15", data_folder), {"refiner.base": str(base)})
    with pytest.raises(Missing, match=rf"no (diffusers model|weights) in .*sd/{part.partition('/')[0]}"):
        preflight.check_refiner(experiment, 3, 6)


def test_weights_of_another_unet_than_its_config_are_refused(data_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(data_folder / "stable-diffusion-v1-5", tmp_path / "sd")
    shutil.copy(base / "vae" / "diffusion_pytorch_model.safetensors", base / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(Disagreement, match=r"of another model than its config\.json"):
        preflight.check_refiner(apply(tiny("potsdam_sd15", data_folder), {"refiner.base": str(base)}), 3, 6)


@pytest.mark.parametrize(("name", "kind"), [("potsdam", "image"), ("vaihingen", "image"), ("whu_building", "image"), ("inria", "label")])
def test_a_set_with_half_a_pair_is_refused(name: str, kind: str, data_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data_folder / name, tmp_path / name)
    data = apply(tiny(name, data_folder), {"data.root": str(root)}).data
    entry = next(entry for entry in find_data(data).entries if entry.label is not None)
    Path(getattr(entry, kind)).unlink()
    with pytest.raises(Missing, match=rf"found \d+ of \d+ pairs; missing {kind}s of "):
        find_data(data)


def test_data_are_prepared_before_any_weights_are_there(data_folder: Path) -> None:
    experiment = paper_experiment("potsdam")  # at full size: of its weights files none is in the miniature's folder
    with pytest.raises(Missing, match=r"mit_b2\.safetensors"):
        stages.jobs(experiment)
    assert stages.data_job(experiment).key == stages.jobs(tiny("potsdam", data_folder))[0].key


def test_what_many_trials_lack_is_said_once_and_the_corrected_study_is_no_other_one(
    small_study: tuple[Study, Store], data_folder: Path, tmp_path: Path
) -> None:
    study, store = small_study[0], Store(tmp_path)
    weights = {name: str(data_folder / "weights" / f"{name}.safetensors") for name in ("test_vit", "test_efficientnet")}
    settings = dict(study.overrides) | {"refiner.condition_encoder": "test_efficientnet", "refiner.condition_weights": weights["test_vit"]}
    study = dataclasses.replace(study, overrides=settings, axes=(Axis("refiner.kind", ("one_pass", "diffusion")),))
    with pytest.raises(Disagreement, match=r"2 of 2 trials.*Nothing was launched.*and 1 more \(2 trials\)") as caught:
        commands.run(study, store, Placement(), RunOptions(local=True, show=False))
    assert str(caught.value).count("does not fit test_efficientnet") == 1
    right = dataclasses.replace(study, overrides=settings | {"refiner.condition_weights": weights["test_efficientnet"]})
    assert not planning.record_definition(planning.make(right, store), store), "a refused study left a definition"


# ---- GPUs that are too small ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_study(truths: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """One experiment of the tiny networks, on synthetic scenes."""
    settings = {
        "backbone.encoder": "test_efficientnet", "backbone.crop_px": 64, "refiner.channels": (16, 32), "refiner.crop_px": 64,
        "refiner.condition_channels": (16, 32), "refiner.guidance_width": 16, "refiner.batch_images": 64, "coarse.folds": 2,
    }  # fmt: skip
    return Study("small", "synthetic", overrides=settings, yardsticks=()), Store(tmp_path_factory.mktemp("store"))


def test_a_cluster_whose_largest_gpu_is_too_small_is_refused_before_anything_starts(small_study: tuple[Study, Store]) -> None:
    made = planning.make(*small_study)
    checks.refuse_small_gpus(made, [80.0], Placement(gpus=1))
    checks.refuse_small_gpus(made, [], Placement(gpus=1))
    with pytest.raises(BadRequest, match=r"study small does not fit the GPUs.*Nothing was launched.*the (backbone|refiner) needs "):
        checks.refuse_small_gpus(made, [1.0, 1.2], Placement(gpus=1))
    with pytest.raises(BadRequest, match=r"0\.8 GB a GPU"):
        checks.refuse_small_gpus(made, [80.0], Placement(gpus=0.01))


def test_kinds_of_gpu_tell_their_memory() -> None:
    head = {"CPU": 8.0}
    assert kinds_gb([head, {"GPU": 8.0, "accelerator_type:H100": 1.0}, {"GPU": 1.0, "accelerator_type:T4": 1.0}]) == [80.0, 16.0]
    assert kinds_gb([{"GPU": 4.0, "accelerator_type:A100": 1.0, "accelerator_type:A100-40G": 1.0}]) == [40.0]
    assert kinds_gb([head]) == []
    assert kinds_gb([{"GPU": 1.0, "accelerator_type:H100": 1.0}, {"GPU": 1.0, "accelerator_type:Unheard-of": 1.0}]) == []


def test_a_worker_on_a_small_gpu_gives_a_training_back(small_study: tuple[Study, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    units = {unit.tasks[0].job.stage: unit for unit in units_of(planning.make(*small_study), 1)}
    assert why_too_small(units["refiner"], Runtime(device="cpu")) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(total_memory=1.2e9))
    assert "the refiner needs" in why_too_small(units["refiner"], Runtime())
    assert why_too_small(units["data"], Runtime()) == ""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(total_memory=80e9))
    assert why_too_small(units["refiner"], Runtime()) == ""


def test_a_training_asked_for_on_a_small_gpu_is_refused_first(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from idgbr.training import distributed

    monkeypatch.setattr(distributed, "device_of", lambda runtime: torch.device("cuda"))
    monkeypatch.setattr(preflight, "gpu_gb", lambda runtime: 1.2)
    with pytest.raises(BadRequest, match=r"the backbone needs .* GB on every GPU.*1\.2 GB a GPU"):
        preflight.check_training(tiny("potsdam", data_folder), ("backbone",), 6, Runtime())


def test_plan_says_memory_and_shares_and_refuses_a_card_that_is_too_small(
    small_study: tuple[Study, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.run import forecast

    study, store = small_study
    made = planning.make(study, store)
    found, lines = forecast_lines(study, made, store, Placement(), "2xH100", 0.0)
    text = "\n".join(lines)
    assert "refiner 1% measured" in text
    assert "backbone 8% assumed" in text
    assert "GB at 64 images a pass" in text
    assert found["micro_images"]["refiner"] == 64
    monkeypatch.setitem(forecast.CARDS, "RTX4090", forecast.Card(165e12, 1.2))
    with pytest.raises(BadRequest, match=r"1\.2 GB a GPU"):
        forecast_lines(study, made, store, Placement(), "RTX4090", 0.0)


def test_small_gpus_cut_a_step_and_keep_the_global_batch() -> None:
    experiment = apply(Experiment(), {"refiner.batch_images": 32})
    whole = plan_memory(experiment, "refiner", 2, 80.0)
    assert whole == 32
    parts = plan_memory(experiment, "refiner", 2, 1.75)
    assert 1 <= parts < 32
    assert plan_memory(apply(experiment, {"refiner.micro_images": 2}), "refiner", 2, 80.0) == 2
    assert plan_memory(experiment, "refiner", 2, 80.0, workers=8) == 4
    with pytest.raises(BadRequest, match=r"one image at a time.*1\.58 GB a GPU, refiner\.batch_images=32 over 1 GPUs"):
        plan_memory(experiment, "refiner", 2, 1.58)
    with pytest.raises(BadRequest, match=r"Try: refiner\.micro_images=\d+"):
        plan_memory(apply(experiment, {"refiner.micro_images": 32}), "refiner", 2, 1.75)
    with pytest.raises(BadRequest, match=r"Try: backbone\.accumulate=\d+ \(batch norm"):
        plan_memory(apply(experiment, {"backbone.encoder": "test_efficientnet", "backbone.batch_images": 64}), "backbone", 2, 1.8)
