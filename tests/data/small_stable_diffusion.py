"""A Stable Diffusion 1.5 folder in small: the same files, classes and layout, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def write(base: Path) -> Path:
    """unet/, vae/, tiny/ (AutoencoderTiny) and text_encoder/ below `base`, which is returned."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=2,
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=8,
        ).save_pretrained(base / "unet")
        AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
        ).save_pretrained(base / "vae")
        AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        ).save_pretrained(base / "tiny")
        (base / "text_encoder").mkdir()
        sizes = {
            "max_position_embeddings": 7,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "hidden_size": 24,
            "hidden_act": "quick_gelu",
        }
        (base / "text_encoder" / "config.json").write_text(json.dumps(sizes))
        weights = {
            "embeddings.token_embedding.weight": (11, 24),
            "embeddings.position_embedding.weight": (7, 24),
            "final_layer_norm.weight": (24,),
            "final_layer_norm.bias": (24,),
        }
        square = [(f"self_attn.{n}_proj", (24, 24)) for n in ("q", "k", "v", "out")]
        for i in range(2):
            for name, shape in (("layer_norm1", (24,)), ("layer_norm2", (24,)), ("mlp.fc1", (96, 24)), ("mlp.fc2", (24, 96)), *square):
                weights |= {f"encoder.layers.{i}.{name}.weight": shape, f"encoder.layers.{i}.{name}.bias": shape[:1]}
        save_file({f"text_model.{k}": 0.3 * torch.randn(v) for k, v in weights.items()}, base / "text_encoder" / "model.safetensors")
    return base
