"""Parts from local diffusers folders (random weights of the same layout), the frozen teacher, and cached latents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small_stable_diffusion
import torch
from small_refiner import TINY, band_stats, class_table
from torch import Tensor, nn

from idgbr.config import RefinerConfig
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.refiner.loss import Numbered, RefinerTraining, cached_encoder
from idgbr.refiner.refiner import Refiner
from idgbr.refiner.stable_diffusion import clip_empty_prompt, empty_prompt

Build = Callable[..., Refiner]
Batch = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.5 folder in small: the same files, classes and layout, random weights."""
    return small_stable_diffusion.write(tmp_path_factory.mktemp("stable-diffusion"))


def sd_config(folder: Path, **settings: object) -> RefinerConfig:
    small = {"base": str(folder), "codec": "vae", "guidance_width": 16, "guidance_heads": 2, "crop_px": 64, "train_timesteps": 100}
    return RefinerConfig(**{**small, **settings})


def test_the_empty_prompt_is_clips_text_transformer(folder: Path) -> None:
    """Against torch's own pre-norm transformer layers with the same weights."""
    from safetensors.torch import load_file

    w = {k.removeprefix("text_model."): v for k, v in load_file(folder / "text_encoder" / "model.safetensors").items()}
    x = (w["embeddings.token_embedding.weight"][[9, 10, 10, 10, 10, 10, 10]] + w["embeddings.position_embedding.weight"])[None]
    for i in range(2):
        p = {k.removeprefix(f"encoder.layers.{i}."): v for k, v in w.items() if k.startswith(f"encoder.layers.{i}.")}
        layer = nn.TransformerEncoderLayer(
            24, 2, 96, dropout=0, activation=lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
        )
        names = {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "linear1": "mlp.fc1",
            "linear2": "mlp.fc2",
            "self_attn.out_proj": "self_attn.out_proj",
        }
        state = {f"{ours}.{kind}": p[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")}
        state |= {f"self_attn.in_proj_{kind}": torch.cat([p[f"self_attn.{n}_proj.{kind}"] for n in "qkv"]) for kind in ("weight", "bias")}
        layer.load_state_dict(state)
        x = layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(7), is_causal=True)
    x = nn.functional.layer_norm(x, (24,), w["final_layer_norm.weight"], w["final_layer_norm.bias"])
    assert torch.allclose(empty_prompt(folder), x, atol=1e-5)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    assert torch.equal(clip_empty_prompt(w, config), empty_prompt(folder))


def test_the_split_unet_is_diffusers_own_unet_with_controlnet_residuals(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    refiner = Refiner.build(sd_config(folder), 3, class_table(2), band_stats(3)).eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 77])
    prompt = empty_prompt(folder).expand(2, -1, -1)
    with torch.no_grad():
        features = refiner.denoiser.encode(z, t)
        assert torch.allclose(refiner.denoiser.decode(features), unet(z, t, prompt).sample, atol=1e-5)
        extra = [torch.randn_like(f) for f in (*features.skips, features.middle)]
        theirs = unet(z, t, prompt, down_block_additional_residuals=extra[:-1], mid_block_additional_residual=extra[-1]).sample
        assert torch.allclose(refiner.denoiser.decode(features.with_guidance(extra)), theirs, atol=1e-4)


def test_a_refiner_from_a_stable_diffusion_folder_trains_saves_and_refines(folder: Path, batch: Batch, tmp_path: Path) -> None:
    config = sd_config(folder, gradient_checkpointing=True, condition_dropout=0.1, parameterisation="v", schedule="scaled_linear")
    refiner = Refiner.build(config, 3, class_table(3), band_stats(3))
    training, samples = RefinerTraining(refiner).train(), batch(1, n_classes=3, side=128)
    frozen = {n: p.clone() for n, p in training.named_parameters() if not p.requires_grad}
    assert any("condition_encoder" in n for n in frozen)
    assert any("vae" in n for n in frozen)
    free = {n: p.detach().clone() for n, p in training.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], 1e-3, weight_decay=0)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = training({**samples, "seed": samples["seed"] + step})
        assert torch.isfinite(loss).all()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    now = dict(training.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    still = {n for n, p in free.items() if torch.equal(now[n], p) and not n.endswith("to_k.bias")}
    assert still == set()

    refiner.eval().save(tmp_path)
    assert str(folder) not in json.dumps(json.loads((tmp_path / "config.json").read_text())["parts"])
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace(str(folder), "/gone"))
    again = Refiner.load(tmp_path)  # the folder it was built from is not needed any more
    a, b = (
        r.refine(samples["image"][..., :50, :60], samples["coarse"][..., :50, :60], steps=2, guidance_scale=2.0) for r in (refiner, again)
    )
    assert a.shape == (1, 50, 60)
    assert torch.equal(a, b)


def test_sharded_it_has_the_same_loss_and_gradients(folder: Path, batch: Batch, tmp_path: Path) -> None:
    """FSDP2 in one process: parameters become DTensors that must be gathered whenever they are used, in forward and backward."""
    from idgbr.training.distributed import shard

    samples = batch(2, side=64)

    def gradients(sharded: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        training = RefinerTraining(Refiner.build(sd_config(folder, gradient_checkpointing=True), 3, class_table(2), band_stats(3))).train()
        module = shard(training, 1, torch.device("cpu"), "fp32") if sharded else training
        loss, _ = module(samples)
        loss.sum().backward()
        found = {n: p.grad.full_tensor() if sharded else p.grad for n, p in training.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **found}

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        sharded = gradients(True)
    finally:
        torch.distributed.destroy_process_group()
    whole = gradients(False)
    assert sharded.keys() == whole.keys()
    assert all(torch.allclose(sharded[n], whole[n], atol=1e-5) for n in whole)


@pytest.mark.parametrize("vae", ["vae", "tiny"])
def test_vae_latents_are_the_mode_and_work_with_the_small_unet(folder: Path, batch: Batch, vae: str) -> None:
    refiner = Refiner.build(RefinerConfig(**{**TINY, "codec": "vae", "vae": str(folder / vae)}), 3, class_table(4), band_stats(3)).eval()
    assert (refiner.codec.factor, refiner.codec.latent_channels) == (8, 4)
    samples = batch(2, n_classes=4, side=64)
    index = samples["target"].long()
    assert torch.equal(refiner.codec.encode_index(index), refiner.codec.encode_index(index))
    probabilities = refiner.codec.decode(refiner.codec.encode_index(index))
    nearest = (
        (refiner.codec.colours(refiner.codec.encode_index(index))[:, None] - refiner.codec.codes[None, :, :, None, None])
        .square()
        .sum(2)
        .argmin(1)
    )
    assert torch.equal(probabilities.argmax(1), nearest)
    assert refiner.refine(samples["image"], samples["coarse"], steps=2).shape == (2, 64, 64)
    loss, _ = RefinerTraining(refiner)(samples)
    loss.sum().backward()


def test_cached_latents_and_tokens_give_the_same_loss(folder: Path, batch: Batch) -> None:
    config = sd_config(folder, alignment=0.5, alignment_images=3, teacher="test_vit")
    refiner = Refiner.build(config, 3, class_table(2), band_stats(3))
    training, samples = RefinerTraining(refiner).eval(), batch(4, side=64)

    class Stream:
        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return {k: v[i] for k, v in samples.items() if k != "index"}

    def collated(stream: Numbered) -> dict[str, Tensor]:
        rows = [stream[i] for i in (0, 1, 2, 3, 4, 5)]
        return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

    cached = collated(Numbered(Stream(), 4, cached_encoder(training)))
    plain = collated(Numbered(Stream(), 4))
    assert {"target_latent", "coarse_latent", "image_input", "tokens"} <= cached.keys() - plain.keys()
    with torch.no_grad():
        a, b = training(cached), training(plain)
    assert torch.allclose(a[0], b[0], rtol=1e-3, atol=1e-5)
    assert torch.allclose(a[1]["alignment"], b[1]["alignment"], atol=1e-4)


def test_alignment_pulls_features_towards_the_teacher_and_ends_when_told(build: Build, batch: Batch) -> None:
    training, samples = RefinerTraining(build(alignment=1.0, alignment_images=4, teacher="test_vit")).train(), batch(4)
    optimizer = torch.optim.AdamW(training.parameters(), 3e-3)
    values = []
    for _ in range(12):
        loss, parts = training(samples)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        values.append(parts["alignment"].mean().item())
    assert values[-1] < 0.85 * values[0]
    late = {**samples, "index": samples["index"] + 4}
    with torch.no_grad():
        during, after = training(samples)[0], training(late)[0]
        assert torch.allclose(during - after, training(samples)[1]["alignment"], atol=1e-5)
    assert not any("teacher" in name for name in training.state_dict())
    training.zero_grad()
    training(late)[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in training.aligner.parameters())  # in the graph, for DDP


def test_folders_that_cannot_be_used_are_one_clear_error(folder: Path, tmp_path: Path) -> None:
    def build(**settings: object) -> Refiner:
        return Refiner.build(sd_config(folder, **settings), 3, class_table(2), band_stats(3))

    with pytest.raises(Missing, match="no diffusers model"):
        build(base=str(tmp_path / "nowhere"))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text())
    with pytest.raises(Missing, match="no weights in"):
        build(base=str(tmp_path), vae=str(folder / "vae"))
    with pytest.raises(BadRequest, match=r"codec=vae"):
        build(codec="analog")
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(BadRequest, match="cannot be used"):
        build(base=str(tmp_path), vae=str(folder / "vae"))
    with pytest.raises(Missing, match="empty prompt"):
        empty_prompt(tmp_path)
    with pytest.raises(Missing, match="weights of the teacher"):
        RefinerTraining(build(alignment=1.0, teacher="test_vit", teacher_weights=str(tmp_path / "no.safetensors")))
    weights = str(folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(Disagreement, match="holds no weights for test_vit"):
        RefinerTraining(build(alignment=1.0, teacher="test_vit", teacher_weights=weights))
