"""Frozen features of a pretrained encoder as a condition."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_refiner import TINY, band_stats, class_table

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.refiner.refiner import Refiner


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return path


def build(weights: Path | str, encoder: str = "test_efficientnet") -> Refiner:
    config = RefinerConfig(**TINY, condition_encoder=encoder, condition_weights=str(weights))  # type: ignore[arg-type]
    return Refiner.build(config, 3, class_table(2), band_stats(3))


def test_the_encoder_holds_the_weights_of_the_file_and_stays_frozen(weights: Path) -> None:
    from safetensors.torch import load_file

    refiner = build(weights).train()
    assert refiner.pretrained is not None
    stored = load_file(weights)
    state = refiner.pretrained.encoder.state_dict()
    assert torch.equal(state["conv_stem.weight"], stored["conv_stem.weight"])
    assert not any(p.requires_grad for p in refiner.pretrained.encoder.parameters())
    assert all(not m.training for m in refiner.pretrained.encoder.modules())
    assert all(p.requires_grad for p in refiner.pretrained.project.parameters())


def test_the_saved_refiner_needs_the_file_no_more_and_gives_the_same_map(weights: Path, tmp_path: Path) -> None:
    refiner = build(weights).eval()
    refiner.save(tmp_path / "model")
    weights.unlink()
    loaded = Refiner.load(tmp_path / "model")
    image, coarse = torch.rand(1, 3, 32, 32) * 255, torch.rand(1, 2, 32, 32).softmax(1)
    draws = [r.sample(r.condition(image, coarse), [7], SamplerConfig(steps=2)) for r in (refiner, loaded)]
    assert torch.equal(*draws)


def test_wrong_encoders_and_weights_are_one_clear_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"test_efficientnet"):
        build(weights, "test_eficientnet")
    with pytest.raises(Missing, match="no weights of the condition encoder"):
        build(tmp_path / "nowhere.safetensors")
    with pytest.raises(Disagreement, match="does not fit"):
        build(weights, "test_resnet")
