"""Stage keys stay the same, so that artefacts stored by an earlier version are found again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from idgbr import stages
from idgbr.config import SECTIONS, Experiment, about_setting, apply, is_read
from idgbr.settings import Section, identity, names_of_paths, network_shape, setting, settings
from sweeps.studies import coarse_quality, quickstart, search_refiner
from sweeps.study import expand

# First 16 digits of the SHA-256 of every (trial id, [(stage, name, key)]) of the study, as JSON.
KEYS = {quickstart: "72cf1a67cad2e59d", coarse_quality: "f1c5ea861ffaf379", search_refiner: "11492a0ad68da83b"}


@pytest.mark.parametrize("study", KEYS, ids=lambda s: s.__name__)
def test_keys_of_stored_studies_stay(study) -> None:
    keys = [[t.id, [(j.stage, j.name, j.key) for j in stages.jobs(t.experiment)]] for t in expand(study())]
    assert keys
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16] == KEYS[study]


# ---- what a setting says about itself -----------------------------------------------------------------------------------------


def settings_of(e: Experiment, stage: str) -> dict:
    return next(j for j in stages.jobs(e) if j.stage == stage).config


def test_every_setting_that_names_a_file_says_so(tmp_path: Path) -> None:
    """A path in a key counts by what lies there, so two copies of a file in different folders give one key."""
    paths = {f"{name}.{field}" for name, cls in SECTIONS.items() for field in names_of_paths(cls)}
    documented = {
        f"{name}.{field}"
        for name, cls in SECTIONS.items()
        for field, about in settings(cls)
        if re.search(
            r"safetensors file|folder of (the unpacked|class maps|a saved refiner)|(Diffusion|diffusers) folder|JSON file", about.doc
        )
    }
    assert paths == documented
    keys = []
    for copy in ("a", "b"):
        file = tmp_path / copy / "encoder.safetensors"
        file.parent.mkdir()
        file.write_bytes(b"the same weights")
        named = {"refiner.condition_encoder": "resnet18", "refiner.condition_weights": str(file), "backbone.weights": str(file)}
        keys.append([job.key for job in stages.jobs(apply(Experiment(), named))])
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("stage", "condition", "setting", "values"),
    [
        ("data", {"data.source": "synthetic"}, "data.layout_seed", (1, 2)),
        ("coarse", {"coarse.source": "in_fold"}, "coarse.iou", (0.5, 0.6)),
        ("coarse", {"coarse.source": "simulated"}, "coarse.folds", (4, 5)),
        ("coarse", {"coarse.source": "mixed"}, "coarse.folds", (4, 5)),
        ("coarse", {"coarse.source": "thirds"}, "coarse.folds", (4, 5)),
        ("coarse", {"coarse.source": "thirds"}, "coarse.iou", (0.5, 0.6)),
        ("refiner", {"refiner.kind": "one_pass"}, "refiner.schedule", ("linear", "sigmoid")),
        ("refiner", {}, "refiner.teacher", ("a", "b")),
        ("refiner", {"refiner.alignment": 0.5}, "refiner.teacher", ("a", "b")),
        ("refiner", {"refiner.guidance_attention": False}, "refiner.guidance_window", (4, 16)),
        ("refined", {"refiner.kind": "one_pass"}, "sampler.steps", (1, 2)),
        ("refined", {"refiner.kind": "none"}, "sampler.tile_px", (64, 96)),
    ],
)
def test_a_setting_that_is_not_read_is_in_no_key(stage: str, condition: dict, setting: str, values: tuple) -> None:
    found = [apply(Experiment(), {**condition, setting: value}) for value in values]
    keys = {next(j for j in stages.jobs(e) if j.stage == stage).key for e in found}
    assert (len(keys) == 1) is not is_read(found[0], about_setting(setting).read_when)
    assert (setting.partition(".")[2] in settings_of(found[0], stage)) is is_read(found[0], about_setting(setting).read_when)


def test_conditions_name_settings_and_values_that_exist() -> None:
    for name, cls in SECTIONS.items():
        for field, about in settings(cls):
            conditions = about.read_when if isinstance(about.read_when, tuple) else (about.read_when,)
            for condition in filter(None, conditions):
                other = about_setting(condition.name)
                assert not other.choices or set(condition.values) <= set(other.choices), f"{name}.{field}"


def test_one_pass_reads_boundary_weights_and_no_other_weighting() -> None:
    keys = {
        weighting: next(j.key for j in stages.jobs(apply(Experiment(), {"refiner.kind": "one_pass", "refiner.loss_weighting": weighting}))
                        if j.stage == "refiner")
        for weighting in ("uniform", "min_snr", "frequency", "boundary")
    }  # fmt: skip
    assert keys["uniform"] == keys["min_snr"] == keys["frequency"] != keys["boundary"]


def test_a_setting_added_later_is_in_no_key_at_its_default() -> None:
    @dataclasses.dataclass(frozen=True)
    class Before(Section):
        name = "refiner"
        lr: float = setting(1e-3, "")

    @dataclasses.dataclass(frozen=True)
    class After(Before):
        extra: tuple[int, ...] = setting((1, 2), "added later", key_at_default=False)
        fast: bool = setting(False, "", speed_only=True)

    assert identity(After(), paths=True) == identity(Before(), paths=True)
    assert identity(After(extra=[1, 2], fast=True), paths=True) == identity(Before(), paths=True)
    assert identity(After(extra=(2, 1)), paths=True) == {"lr": 1e-3, "extra": (2, 1)}


def test_networks_that_differ_only_in_training_settings_have_one_shape() -> None:
    base = Experiment().refiner
    for name in ("lr", "train_images", "batch_images", "accumulate", "ema_images", "boundary_share", "gradient_checkpointing"):
        value = getattr(base, name)
        other = not value if isinstance(value, bool) else 2 if name == "accumulate" else value / 2
        assert network_shape(dataclasses.replace(base, **{name: other})) == network_shape(base), name
    for name, value in (("channels", (8, 16)), ("guidance_width", 32), ("codec", "vae"), ("use_image", False), ("crop_px", 128)):
        assert network_shape(dataclasses.replace(base, **{name: value})) != network_shape(base), name


def test_simulated_training_maps_wait_for_no_backbone_and_serve_the_refiner_of_any() -> None:
    def jobs(**settings: object) -> dict[str, stages.Job]:
        e = apply(Experiment(), {"data.source": "synthetic", "coarse.source": "simulated", **settings})
        return {job.name: job for job in stages.jobs(e)}

    one, other, worse = jobs(), jobs(**{"backbone.decoder": "unet", "coarse.tile_px": 96}), jobs(**{"coarse.iou": 0.6})
    assert set(one["simulated"].parents) == {"data"}
    assert one["refiner"].parents == {"data": one["data"].key, "coarse": one["simulated"].key}
    assert one["refiner"].key == other["refiner"].key != worse["refiner"].key
    assert one["coarse"].key != other["coarse"].key
    assert one["refined"].parents["coarse"] == one["coarse"].key
    assert "simulated" not in jobs(**{"refiner.kind": "none"})
    assert "simulated" not in jobs(**{"coarse.source": "mixed"})
