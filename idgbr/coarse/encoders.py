"""Encoders come in families that want different things; here every timm encoder meets every smp decoder, or says why
not.

Nothing is ever fetched: weights come from a file or are random.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idgbr.config import BackboneConfig
from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.machine import expanded
from idgbr.weights import header, misfit


@dataclass(frozen=True)
class Family:
    """What encoders of one timm module want: keyword arguments from the input side, and the multiple that sides must
    keep."""

    kwargs: Callable[[int], dict[str, Any]]
    multiple: Callable[[int], int] = lambda side: 1


_ANY_SIDE = Family(lambda side: {})
# Position embeddings are resampled to the input: any multiple of the patch.
_VIT = Family(lambda side: {"img_size": side, "dynamic_img_size": True})
# Attention windows are side/32 wide and high at every level, so the input divides into windows only at multiples of
# the side.
_MAXVIT = Family(lambda side: {"img_size": _up(side, 32)}, multiple=lambda side: _up(side, 32))
# Windows are padded where the feature map does not divide; the side only sets the buffers that are made in advance.
_SWIN = Family(lambda side: {"img_size": side, "strict_img_size": False})
_FIXED = Family(lambda side: {"img_size": side}, multiple=lambda side: side)

FAMILIES: dict[str, Family] = {  # timm module -> family; all others take any side
    "vision_transformer": _VIT, "deit": _VIT, "eva": _VIT, "beit": _VIT,
    "maxxvit": _MAXVIT,
    "swin_transformer": _SWIN, "swin_transformer_v2": _SWIN,
    "vision_transformer_relpos": _FIXED, "swin_transformer_v2_cr": _FIXED, "hiera": _FIXED, "mvitv2": _FIXED, "davit": _ANY_SIDE,
}  # fmt: skip

# Nothing random but what comes from the sample's seed: dropout off, so that workers and resumes change no loss.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("Unet", {}),
    "unetplusplus": ("UnetPlusPlus", {}),
    "fpn": ("FPN", {"decoder_dropout": 0.0}),
    "deeplabv3plus": ("DeepLabV3Plus", {"decoder_aspp_dropout": 0.0}),
    "upernet": ("UPerNet", {}),
    "segformer": ("Segformer", {}),
    "dpt": ("DPT", {"decoder_intermediate_channels": (64, 128, 192, 192), "decoder_fusion_channels": 128}),
    "pspnet": ("PSPNet", {"psp_dropout": 0.0}),
    "linknet": ("Linknet", {}),
    "manet": ("MAnet", {}),
    "pan": ("PAN", {}),
}


def check(config: BackboneConfig, tile_px: int, n_bands: int, n_classes: int) -> frozenset[str]:
    """Preflight without memory or time: build on torch's meta device, one forward and backward pass at `tile_px`.

    Returns:
        names of parameters that take no part.

    Raises:
        BadRequest: the pair or the size cannot work; names the nearest that can.
        Missing: no such weights file. Disagreement: weights of another encoder.
    """
    if config.weights:
        _weights(config)
    _module_of(config.encoder)
    key = dataclasses.replace(config, weights="")
    failure = attempt(key, tile_px, n_bands, n_classes)
    if isinstance(failure, frozenset):
        if config.weights:
            with torch.device("meta"):
                _check_file(config, build_body(key, built_side(key), n_bands, n_classes, load=False))
        return failure
    given = f"backbone.encoder={config.encoder}, backbone.decoder={config.decoder}, side {tile_px} px, backbone.img_size={config.img_size}"
    for side in sorted({_up(max(tile_px, built_side(config)), m) for m in (32, 64, 128, 224, 256)}):
        if isinstance(attempt(dataclasses.replace(key, img_size=side), tile_px, n_bands, n_classes), frozenset):
            raise BadRequest(f"this backbone cannot work at this size: {failure}", value=given, hint=f"backbone.img_size={side}")
        if isinstance(attempt(dataclasses.replace(key, img_size=0, crop_px=side), side, n_bands, n_classes), frozenset):
            raise BadRequest(
                f"this backbone cannot work at this size: {failure}",
                value=given,
                hint=f"backbone.img_size=0 backbone.crop_px={side} coarse.tile_px={side}",
            )
    elsewhere = dataclasses.replace(key, img_size=224)
    others = [d for d in DECODERS if isinstance(attempt(dataclasses.replace(elsewhere, decoder=d), 224, n_bands, n_classes), frozenset)]
    raise BadRequest(
        f"this encoder and this decoder do not go together: {failure}",
        value=given,
        allowed=f"with {config.encoder}: decoder {', '.join(others) or 'none'}",
        hint=f"backbone.decoder={others[0]}" if others else None,
    )


@functools.lru_cache(maxsize=256)
def attempt(config: BackboneConfig, side: int, n_bands: int, n_classes: int) -> frozenset[str] | str:
    """Names of unused parameters, or why it does not work."""
    try:
        with torch.device("meta"):
            body = build_body(config, built_side(config), n_bands, n_classes, load=False)
        multiple = side_multiple(config, body)
        padded = _up(side, multiple)
        out = body.train()(torch.zeros(2, n_bands, padded, padded, device="meta"))
        if out.ndim != 4 or out.shape[1] != n_classes:
            return f"it returns {tuple(out.shape)}"
        out.float().sum().backward()
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return frozenset(name for name, p in body.named_parameters() if p.grad is None)


# SegFormer's encoder (Xie et al., NeurIPS 2021) is in segmentation-models-pytorch and not in timm; its weights have
# the authors' keys.
MIX_TRANSFORMERS = tuple(f"mit_b{i}" for i in range(6))


def built_side(config: BackboneConfig) -> int:
    """Side in px of the images that position embeddings and windows are built for."""
    return config.img_size or config.crop_px


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _module_of(encoder: str) -> str:
    """timm's module that holds the encoder, e.g. `swin_transformer`; `mix_transformer` for those of
    `MIX_TRANSFORMERS`.

    Raises:
        BadRequest: no such encoder.
    """
    if encoder in MIX_TRANSFORMERS:
        return "mix_transformer"
    import timm

    name = encoder.partition(".")[0]
    if not timm.is_model(name):
        close = nearest(name, [*MIX_TRANSFORMERS, *timm.list_models()])
        allowed = f"names of timm.list_models(), or {MIX_TRANSFORMERS[0]} to {MIX_TRANSFORMERS[-1]}"
        raise BadRequest("unknown encoder", value=f"backbone.encoder={encoder}", allowed=allowed, hint=close or None)
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def build_body(config: BackboneConfig, side: int, n_bands: int, n_classes: int, *, load: bool) -> nn.Module:
    """Encoder and decoder: image [B, n_bands, side, side] -> logits [B, n_classes, side, side].

    Args:
        load: with the encoder's pretrained weights, from `backbone.weights`.

    Raises:
        Disagreement: the weights are those of another encoder. Missing: no such file.
    """
    import segmentation_models_pytorch as smp
    import timm

    if config.encoder in MIX_TRANSFORMERS:
        return _mix_transformer(config, n_bands, n_classes, load=load)
    family = FAMILIES.get(_module_of(config.encoder), _ANY_SIDE)
    kind, options = DECODERS[config.decoder]
    options = dict(options)
    kwargs = family.kwargs(side)
    if config.decoder == "dpt":
        with torch.device("meta"):
            probe: Any = timm.create_model(config.encoder, pretrained=False, num_classes=0)
        blocks = len(getattr(probe, "blocks", ()))
        if len({info["reduction"] for info in getattr(probe, "feature_info", [{"reduction": 0}, {"reduction": 1}])}) != 1 or not blocks:
            raise ValueError("DPT reads plain ViT encoders, whose blocks all have one stride")
        depth = min(4, blocks)
        if not getattr(probe, "num_prefix_tokens", 0):
            options["decoder_readout"] = "ignore"
        options |= {"encoder_depth": depth, "decoder_intermediate_channels": options["decoder_intermediate_channels"][-depth:]}
        kwargs["num_classes"] = 0
        if probe.patch_embed.patch_size[0] not in (8, 16, 32):  # DPT's levels are powers of two apart
            kwargs["patch_size"] = 16  # timm resamples the patch kernel of the weights
    elif config.decoder == "pan" and not _dilates(config.encoder):
        options["encoder_output_stride"] = 32
    if load:
        kwargs["pretrained_cfg_overlay"] = {"file": str(_weights(config))}
    with warnings.catch_warnings(), quiet("timm.models._builder"):  # it reports unused heads; `_check_file` reports what is missing
        warnings.filterwarnings("ignore", message=".*encoder_weights.*")
        arguments = {"encoder_name": f"tu-{config.encoder}", "encoder_weights": True if load else None, "in_channels": n_bands,
                     "classes": n_classes, **options, **kwargs}  # fmt: skip
        try:
            if config.decoder == "deeplabv3plus" and not _dilates(config.encoder):
                body = _UndilatedDeepLab(**arguments)
            else:
                body = getattr(smp, kind)(**arguments)
        except RuntimeError as error:
            if load:
                with torch.device("meta"):  # raises again where the network itself cannot be built
                    build_body(config, side, n_bands, n_classes, load=False)
                raise _other_weights(config, str(error).splitlines()[-1].strip()) from error
            raise
    if load:
        _check_file(config, body)
    return body


def _mix_transformer(config: BackboneConfig, n_bands: int, n_classes: int, *, load: bool) -> nn.Module:
    import segmentation_models_pytorch as smp

    kind, options = DECODERS[config.decoder]
    wanted = torch.get_default_device()
    # its constructor reads values of tensors, which the meta device has not
    with torch.device("cpu" if wanted.type == "meta" else wanted):
        body = getattr(smp, kind)(encoder_name=config.encoder, encoder_weights=None, in_channels=3, classes=n_classes, **options)
        body.encoder.reset_drop_path(0.0)  # nothing random but what comes from the sample's seed
    if load:
        _load_mix_transformer(config, body.encoder)
    if n_bands != 3:
        body.encoder.set_in_channels(n_bands, pretrained=load)
    return body.to(wanted)


def _load_mix_transformer(config: BackboneConfig, encoder: Any) -> None:
    from safetensors.torch import load_file

    state = {name: value for name, value in load_file(_weights(config)).items() if not name.startswith("head.")}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise _other_weights(config, str(error).splitlines()[-1].strip()) from error


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Within the block the logger `name` writes errors only."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@functools.lru_cache(maxsize=64)
def _dilates(encoder: str) -> bool:
    """Whether timm can trade the encoder's last stride for dilation (most attention encoders cannot)."""
    import timm

    try:
        with torch.device("meta"):
            timm.create_model(encoder, features_only=True, pretrained=False, output_stride=16)
    except (TypeError, NotImplementedError, AssertionError):
        return False
    return True


class _UndilatedDeepLab(nn.Module):
    """DeepLabV3+ on the encoder's own stride-16 level, for encoders whose last stage cannot be dilated: one stage
    fewer."""

    def __init__(self, encoder_name: str, encoder_weights: Any, in_channels: int, classes: int, decoder_aspp_dropout: float, **kwargs: Any):
        super().__init__()
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
        from segmentation_models_pytorch.encoders import get_encoder

        self.encoder = get_encoder(encoder_name, in_channels=in_channels, depth=4, weights=encoder_weights, **kwargs)
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=self.encoder.out_channels, encoder_depth=4, out_channels=256, atrous_rates=(12, 24, 36), output_stride=16,
            aspp_separable=True, aspp_dropout=decoder_aspp_dropout,
        )  # fmt: skip
        self.segmentation_head = SegmentationHead(in_channels=256, out_channels=classes, kernel_size=1, upsampling=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.segmentation_head(self.decoder(self.encoder(x)))


def side_multiple(config: BackboneConfig, body: nn.Module) -> int:
    """Sides of the input must be multiples of this many px."""
    family = FAMILIES.get(_module_of(config.encoder), _ANY_SIDE)
    stride = int(getattr(body.encoder, "output_stride", 32))
    if config.decoder == "dpt":
        stride *= 2  # its coarsest level has half the tokens
    return int(np.lcm(stride, family.multiple(built_side(config))))


def _weights(config: BackboneConfig) -> Path:
    path = expanded(config.weights)
    if not path.is_file():
        raise Missing("no such weights file", value=f"backbone.weights={config.weights}", hint="a .safetensors file with timm's keys")
    if path.suffix != ".safetensors":
        raise BadRequest(
            "encoder weights must be a safetensors file",
            value=f"backbone.weights={config.weights}",
            hint="convert once: safetensors.torch.save_file(torch.load(file, weights_only=True), 'weights.safetensors')",
        )
    return path


def _check_file(config: BackboneConfig, body: nn.Module) -> None:
    """Every tensor of the encoder is in the weights file: timm loads feature extractors leniently, and preflights
    load nothing.

    Raises:
        Disagreement: weights of another encoder, or no whole safetensors file.
    """
    encoder: Any = body.encoder
    wanted = {name.removeprefix("model."): tuple(value.shape) for name, value in getattr(encoder, "model", encoder).state_dict().items()}
    why = misfit(header(_weights(config)), wanted, skip=("fc_norm", "norm", "head"))
    if why:
        raise _other_weights(config, why)


def _other_weights(config: BackboneConfig, why: str) -> Disagreement:
    return Disagreement(
        f"the weights are of another encoder: {why}",
        value=f"backbone.encoder={config.encoder}, backbone.weights={config.weights}",
        hint="the timm name the file was saved from, with timm's keys",
    )
