"""Families of encoders and decoders: build, train a step, predict; what cannot work says what can."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from idgbr.coarse import backbone
from idgbr.config import BackboneConfig
from idgbr.datasets import Dataset
from idgbr.errors import BadRequest, Disagreement, Interrupted, Missing
from idgbr.rasters.read import Reader
from idgbr.training.curve import read_curve

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights"
TINY = BackboneConfig(
    encoder="test_resnet", decoder="fpn", crop_px=64, batch_images=4, train_images=16, warmup_images=4, checkpoint_images=8
)


@dataclasses.dataclass(frozen=True)
class Stats:
    mean: tuple[float, ...] = (100.0, 110.0, 120.0)
    std: tuple[float, ...] = (30.0, 30.0, 30.0)


def bands(n: int) -> Stats:
    return Stats((100.0,) * n, (30.0,) * n)


PAIRS = [
    ("test_resnet", "unet"), ("test_resnet", "deeplabv3plus"), ("test_resnet", "pspnet"), ("test_convnext", "upernet"),
    ("test_convnext", "deeplabv3plus"), ("test_efficientnet", "fpn"), ("test_maxvit", "unet"), ("test_maxvit", "deeplabv3plus"),
    ("test_mambaout", "segformer"), ("test_vit", "dpt"), ("test_vit2", "dpt"), ("pvt_v2_b0", "segformer"),
]  # fmt: skip


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_each_family_trains_a_step_and_predicts_any_size(encoder: str, decoder: str) -> None:
    config = BackboneConfig(encoder=encoder, decoder=decoder, crop_px=96)
    torch.manual_seed(0)
    network = backbone.build(config, 4, 3, bands(4))
    module = backbone.BackboneTraining(network)
    batch = {
        "image": torch.rand(2, 4, 96, 96) * 255,
        "target": torch.randint(0, 3, (2, 96, 96), dtype=torch.uint8),
        "valid": torch.ones(2, 96, 96, dtype=torch.bool),
    }
    loss, parts = module(batch)
    assert loss.shape == parts["accuracy"].shape == (2,)
    loss.mean().backward()
    idle = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "DDP would wait for these for ever"
    network.eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 4, 70, 101) * 255).shape == (1, 3, 70, 101)


REAL = [
    ("resnet50", "deeplabv3plus"), ("convnext_tiny", "upernet"), ("tf_efficientnet_lite0", "fpn"), ("pvt_v2_b2", "segformer"),
    ("swin_tiny_patch4_window7_224", "upernet"), ("swin_tiny_patch4_window7_224", "deeplabv3plus"), ("maxvit_tiny_tf_224", "unet"),
    ("vit_base_patch16_224", "dpt"), ("vit_small_patch14_dinov2", "dpt"), ("resnet18", "pan"), ("resnet18", "unetplusplus"),
    ("resnet18", "manet"), ("resnet18", "linknet"),
]  # fmt: skip


@pytest.mark.parametrize(("encoder", "decoder"), REAL)
def test_real_encoders_pass_preflight_at_256_px(encoder: str, decoder: str) -> None:
    """On the meta device: no memory, no weights, a fraction of a second."""
    backbone.check(BackboneConfig(encoder=encoder, decoder=decoder, crop_px=256), 256, 3, 2)


def test_impossible_pairs_name_the_possible_ones() -> None:
    with pytest.raises(BadRequest, match=r"test_vit: decoder dpt\. Try: backbone\.decoder=dpt"):
        backbone.check(BackboneConfig(encoder="test_vit", decoder="unet"), 192, 3, 2)
    with pytest.raises(BadRequest, match=r"decoder unet, unetplusplus"):
        backbone.check(BackboneConfig(encoder="test_resnet", decoder="dpt"), 192, 3, 2)
    with pytest.raises(BadRequest, match="did you mean 'resnet50'"):
        backbone.check(BackboneConfig(encoder="resnett50"), 192, 3, 2)


def test_a_size_that_cannot_work_names_one_that_can() -> None:
    with pytest.raises(BadRequest, match=r"crop_px=(\d+)") as refused:
        backbone.check(BackboneConfig(encoder="test_resnet", decoder="pan", crop_px=64), 64, 3, 2)
    side = int(str(refused.value).partition("backbone.crop_px=")[2].split()[0])
    backbone.check(BackboneConfig(encoder="test_resnet", decoder="pan", crop_px=side), side, 3, 2)


def test_images_are_normalised_by_band() -> None:
    class Echo(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    network = backbone.Backbone(Echo(), (10.0, 20.0), (2.0, 5.0), 8)
    image = torch.tensor([12.0, 10.0]).view(1, 2, 1, 1).expand(1, 2, 5, 9)
    assert torch.equal(network(image)[0, :, 0, 0], torch.tensor([1.0, -2.0]))
    assert network(image).shape == image.shape
    with pytest.raises(Disagreement, match="number of bands"):
        network(torch.zeros(1, 3, 8, 8))


def test_loss_is_the_mean_over_valid_labelled_pixels() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return logits

    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4)
    target = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    target[0, 0] = 255
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0, 1] = False
    valid[1] = False
    loss, parts = backbone.BackboneTraining(Fixed())({"image": logits, "target": target, "valid": valid})
    log_p = logits.log_softmax(1)
    by_hand = [-log_p[0, int(target[0, y, x]), y, x] for y in (2, 3) for x in range(4)]
    assert loss[0].item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-6)
    assert loss[1] == 0
    assert parts["accuracy"][1] == 0


def test_fit_resumes_and_load_predicts_the_same(scenes: Dataset, tmp_path: Path) -> None:
    polls = iter(range(100))
    with pytest.raises(Interrupted):
        backbone.fit(TINY, scenes, scenes.of("train"), seed=3, out=tmp_path / "a", scratch=tmp_path / "s", stop=lambda: next(polls) == 2)
    backbone.fit(TINY, scenes, scenes.of("train"), seed=3, out=tmp_path / "b", scratch=tmp_path / "s")
    backbone.fit(TINY, scenes, scenes.of("train"), seed=3, out=tmp_path / "c")
    assert [x["loss"] for x in read_curve(tmp_path / "b")] == [x["loss"] for x in read_curve(tmp_path / "c")]
    assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "c/model.safetensors").read_bytes()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["backbone.json", "curve.jsonl", "model.safetensors"]
    network = backbone.load(tmp_path / "b")
    assert not network.training
    image = torch.rand(1, 3, 64, 64) * 255
    assert torch.equal(network(image), backbone.load(tmp_path / "c")(image))


def test_predicted_strips_cover_the_raster_and_equal_one_window_where_it_fits(scenes: Dataset) -> None:
    torch.manual_seed(0)
    network = backbone.build(TINY, 3, 2, scenes.stats).eval()
    raster = scenes.of("val")[0]
    reader = Reader(raster.image, scenes.bands)
    strips = list(backbone.predict(network, reader, 64, 16, batch_tiles=3))
    whole = np.concatenate([part for _, part in strips], axis=1)
    assert whole.shape == (2, raster.height, raster.width)
    assert whole.sum(0) == pytest.approx(1, abs=1e-5)
    again = np.concatenate([part for _, part in backbone.predict(network, reader, 64, 16, batch_tiles=1)], axis=1)
    assert again == pytest.approx(whole, abs=1e-5)
    (row, one), = backbone.predict(network, reader, 128, 0, temperature=2.0)  # fmt: skip
    with torch.inference_mode():
        plain = (network(torch.from_numpy(reader.read(0, 0, 128, 128)[0])[None]) / 2).softmax(1)[0].numpy()
    assert row == 0
    assert one == pytest.approx(plain, abs=1e-5)


@pytest.mark.shared
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs ../shared/data/weights")
@pytest.mark.parametrize(
    ("encoder", "file"),
    [("tf_efficientnet_lite0", "tf_efficientnet_lite0_in1k"), ("tf_efficientnet_lite2", "tf_efficientnet_lite2_in1k_fp16")],
)
def test_weights_of_a_local_file_arrive_in_the_encoder_whatever_the_bands(encoder: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    def refuse(*args: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    path = WEIGHTS / f"{file}.safetensors"
    stored = load_file(path)
    config = BackboneConfig(encoder=encoder, decoder="unet", weights=str(path))
    model = backbone.build(config, 3, 2, Stats()).body.encoder.model.state_dict()
    for name in ("conv_stem.weight", "blocks.6.0.bn3.running_var", "blocks.0.0.conv_dw.weight"):
        assert torch.equal(model[name], stored[name].float())
    four = backbone.build(config, 4, 2, bands(4)).body.encoder.model.state_dict()
    assert four["conv_stem.weight"].shape[1] == 4
    assert torch.equal(four["blocks.0.0.conv_dw.weight"], stored["blocks.0.0.conv_dw.weight"].float())
    with pytest.raises(Disagreement, match="weights are of another encoder"):
        backbone.build(dataclasses.replace(config, encoder="test_efficientnet"), 3, 2, Stats())


def test_missing_or_foreign_weights_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no such weights file"):
        backbone.check(dataclasses.replace(TINY, weights=str(tmp_path / "none.safetensors")), 64, 3, 2)
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(BadRequest, match="safetensors"):
        backbone.check(dataclasses.replace(TINY, weights=str(tmp_path / "weights.pth")), 64, 3, 2)
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(Disagreement, match="another encoder"):
        backbone.build(dataclasses.replace(TINY, weights=str(tmp_path / "other.safetensors")), 3, 2, Stats())


def test_a_folder_that_is_no_backbone_is_refused(scenes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no backbone"):
        backbone.load(tmp_path)
    backbone.fit(dataclasses.replace(TINY, train_images=4), scenes, scenes.of("train"), seed=0, out=tmp_path)
    facts = json.loads((tmp_path / "backbone.json").read_text())
    (tmp_path / "backbone.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(Disagreement, match="another version"):
        backbone.load(tmp_path)
    (tmp_path / "backbone.json").write_text(json.dumps({**facts, "n_classes": 5}))
    with pytest.raises(Disagreement, match="does not fit"):
        backbone.load(tmp_path)
