"""Settings: typed overrides, errors that name the right one, an exact round trip."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from idgbr.config import SECTIONS, Experiment, apply, from_dict, to_dict
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.recipes import BUILT_IN, recipe
from idgbr.settings import canonical_json


def test_every_recipe_survives_json() -> None:
    for name in BUILT_IN:
        experiment = recipe(name)
        assert from_dict(json.loads(canonical_json(to_dict(experiment)))) == experiment


def test_every_setting_can_be_overridden_from_text_with_its_own_value() -> None:
    experiment = Experiment()
    for section in SECTIONS:
        for field in dataclasses.fields(getattr(experiment, section)):
            value = getattr(getattr(experiment, section), field.name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert apply(experiment, [f"{section}.{field.name}={text}"]) == experiment, field.name


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("refiner.guidance_widht=3", "did you mean 'refiner.guidance_width'"),
        ("refner.kind=one_pass", "did you mean 'refiner.kind'"),
        ("refiner.guidance_width=3", "at least 8"),
        ("refiner.schedule=cosin", "did you mean 'cosine'"),
        ("sampler.steps=many", "wrong type"),
        ("sampler.steps=2.5", "wrong type"),
        ("sampler.steps=0", "at least 1"),
        ("refiner.lr=nan", "not a number"),
        ("sampler.steps", "written stage.field=value"),
        ("sampler.overlap_px=500", "smaller than sampler.tile_px"),
    ],
)
def test_a_wrong_override_names_the_right_one(override: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        apply(Experiment(), [override])


def test_overrides_are_typed() -> None:
    changed = apply(Experiment(), ["refiner.channels=8,16", "refiner.zero_terminal_snr=off", "refiner.lr=1e-3", "seed=3"])
    assert changed.refiner.channels == (8, 16)
    assert changed.refiner.zero_terminal_snr is False
    assert changed.refiner.lr == 1e-3
    assert changed.seed == 3


def test_config_of_another_version_or_with_unknown_names_is_refused() -> None:
    data = to_dict(Experiment())
    with pytest.raises(Disagreement, match="another version"):
        from_dict(data | {"version": 0})
    with pytest.raises(BadRequest, match="unknown section"):
        from_dict(data | {"sampling": {}})
    data["refiner"]["guidance"] = 3
    with pytest.raises(BadRequest, match=r"refiner\.guidance"):
        from_dict(data)


def test_recipes_come_from_files_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from idgbr.recipes import synthetic\ndef small():\n    return synthetic()\ndef wrong():\n    return 3\n")
    assert recipe(f"{file}:small") == recipe("synthetic")
    with pytest.raises(BadRequest, match="did you mean 'small'"):
        recipe(f"{file}:smal")
    with pytest.raises(BadRequest, match="must return an Experiment"):
        recipe(f"{file}:wrong")
    with pytest.raises(Missing, match="no such file"):
        recipe(f"{tmp_path}/other.py:small")
    with pytest.raises(BadRequest, match="did you mean 'synthetic'"):
        recipe("sintetic")
