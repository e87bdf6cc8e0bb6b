"""What training and running a network costs, counted on torch's meta device: FLOPs, parameters, memory. No data, no
weights, no GPU.

FLOPs are those of `torch.utils.flop_counter`, 2 a multiply-add. Memory is what a step holds at its fullest, at the
end of the forward pass: weights, gradients, moments, average, and every tensor that autograd keeps, under the casts
that CUDA autocast makes in bf16. Attention is counted as the fused kernels keep it, without the matrix of weights.

B batch, C bands, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from idgbr.config import BackboneConfig, Experiment, RefinerConfig
from idgbr.errors import BadRequest
from idgbr.training.batches import micro_batches

GB = 1e9
CARDS_GB = (16, 24, 40, 80)
RESERVED_GB = 1.5  # CUDA context, libraries' workspaces
FRAGMENTS = 1.05  # what the allocator cannot use
LARGEST_BLOCK = 0.2  # share of a network's activations in its largest block, which gradient checkpointing recomputes as one
COUNTED = 2  # images of the counted batch
# settings that change no count: one network is counted once
_UNCOUNTED: dict[str, Any] = {"bf16": False, "compile": "", "loader_workers": 0, "sharding": "ddp"}


@dataclass(frozen=True)
class NetworkCost:
    """Of one network at its training crop.

    Attributes:
        train_flop: forward and backward pass of one image, with the frozen encodings that every image needs.
        run_flop: what one tile needs once. step_flop: and again for every denoising step (0: there are none).
        parameters: all. trained: those with gradients. apart: of a frozen teacher, which is not averaged and not
        saved. kept_bytes: activations that one image keeps for the backward pass. precision: that `kept_bytes` is
        for.
    """

    train_flop: float
    run_flop: float
    step_flop: float
    parameters: int
    trained: int
    apart: int
    kept_bytes: float
    precision: str

    def memory_bytes(self, images: int, *, workers: int = 1, sharding: str = "ddp") -> float:
        """Of one GPU in training, `images` a forward pass: fp32 weights, gradients, two moments, average;
        activations; what is reserved."""
        states = 4.0 * (2 * self.parameters + 3 * self.trained) / (workers if sharding == "fsdp" else 1)
        return FRAGMENTS * (states + 4.0 * self.apart + images * self.kept_bytes) + RESERVED_GB * GB


def of_backbone(config: BackboneConfig, n_bands: int, n_classes: int, precision: str = "bf16") -> NetworkCost:
    """Cost of a network of stage I.

    Raises:
        BadRequest: a pair of encoder and decoder that cannot be built.
    """
    shape = dataclasses.replace(config, weights="", lr=1e-3, train_images=1, warmup_images=0, ema_images=0.0, **_UNCOUNTED)
    return _of_backbone(shape, n_bands, n_classes, precision)


@functools.lru_cache(maxsize=64)
def _of_backbone(config: BackboneConfig, n_bands: int, n_classes: int, precision: str) -> NetworkCost:
    from idgbr.coarse.encoders import build_body, built_side, side_multiple

    with torch.device("meta"):
        body = build_body(config, built_side(config), n_bands, n_classes, load=False).train()
    side = math.ceil(config.crop_px / (multiple := side_multiple(config, body))) * multiple
    image = torch.zeros(COUNTED, n_bands, side, side, device="meta")
    seen = _Count(precision, body)
    with seen:
        loss = F.cross_entropy(body(image).float(), torch.zeros(COUNTED, side, side, dtype=torch.long, device="meta"))
        seen.end_of_forward()
        loss.backward()
    everything = _size(body)
    return NetworkCost(seen.flop / COUNTED, seen.forward_flop / COUNTED, 0.0, everything, everything, 0, seen.kept / COUNTED, precision)


def of_refiner(config: RefinerConfig, n_bands: int, n_classes: int, precision: str = "bf16") -> NetworkCost:
    """Cost of a refiner. No weights are read; of a Stable Diffusion folder its config files, and which tensors it
    holds.

    Raises:
        BadRequest: settings that contradict each other. Missing, Disagreement: folders that are not there or do not
            fit.
    """
    shape = dataclasses.replace(config, lr=1e-3, train_images=1, warmup_images=0, ema_images=0.0, batch_images=16, accumulate=1)
    shape = dataclasses.replace(shape, timestep_law="cubic", boundary_share=0.0, alignment=float(bool(config.alignment)))
    shape = dataclasses.replace(shape, condition_weights="", teacher_weights="", micro_images=0, **_UNCOUNTED)
    if config.codec == "analog":  # one pass reads its output as the default loss does; of a VAE it needs the decoder
        shape = dataclasses.replace(shape, kind="diffusion")
    return _of_refiner(shape, n_bands, n_classes, precision)


@functools.lru_cache(maxsize=64)
def _of_refiner(config: RefinerConfig, n_bands: int, n_classes: int, precision: str) -> NetworkCost:
    if not config.gradient_checkpointing:
        return _counted_refiner(config, n_bands, n_classes, precision)
    # The pass that is done again would leave the casts: it is one step more. While it runs, one block's activations
    # are there.
    plain = _of_refiner(dataclasses.replace(config, gradient_checkpointing=False), n_bands, n_classes, precision)
    lean = _counted_refiner(config, n_bands, n_classes, precision, backward=False)
    return dataclasses.replace(
        plain, train_flop=plain.train_flop + plain.step_flop, kept_bytes=lean.kept_bytes + LARGEST_BLOCK * plain.kept_bytes
    )


def _counted_refiner(config: RefinerConfig, n_bands: int, n_classes: int, precision: str, backward: bool = True) -> NetworkCost:
    from idgbr.refiner.refiner import Refiner

    with torch.device("meta"):
        refiner: Any = Refiner.build(config, n_bands, *_any_data(n_bands, n_classes)).train()
        aligner = _aligner(config, refiner)
    side = math.ceil(config.crop_px / refiner.multiple) * refiner.multiple
    image = torch.zeros(COUNTED, n_bands, side, side, device="meta")
    labels = torch.zeros(COUNTED, side, side, dtype=torch.long, device="meta")
    coarse = torch.zeros(COUNTED, n_classes, side, side, device="meta")
    t = torch.zeros(COUNTED, device="meta")
    seen = _Count(precision, refiner, *((aligner.projector, aligner.teacher.vit) if aligner else ()))
    with seen:
        with torch.no_grad():
            latent = refiner.codec.encode(coarse)
            entry = refiner.image_input(image) if config.use_image else None
            seen.end_of_frozen()
            target = refiner.codec.encode(coarse)
            tokens = aligner.tokens(image) if aligner else None
        encoded = seen.flop
        condition = refiner.prepare(entry, coarse, latent)
        guided = seen.flop
        output, middle = refiner.predict(target, t, condition)
        step = seen.flop - guided
        if refiner.process.reads_logits:
            loss = F.cross_entropy(refiner.logits(output.float()), labels)
        else:
            loss = (output.float() - target).square().mean()
        if aligner is not None:
            loss = loss + aligner(middle, {"tokens": tokens}).mean()
        seen.end_of_forward()
        if backward:
            loss.backward()
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        refiner.codec.decode(target)
    once = seen.frozen_flop + (guided - encoded) + decoding.get_total_flops()
    trained = sum(p.numel() for p in refiner.parameters() if p.requires_grad) + (_size(aligner.projector) if aligner else 0)
    everything = _size(refiner) + (_size(aligner.projector) if aligner else 0)
    apart = _size(aligner.teacher.vit) if aligner else 0
    return NetworkCost(seen.flop / COUNTED, once / COUNTED, step / COUNTED, everything, trained, apart, seen.kept / COUNTED, precision)


def _any_data(n_bands: int, n_classes: int) -> tuple[Any, Any]:
    """A class table and band statistics of these sizes: what they hold changes no cost."""
    from idgbr.datasets.index import BandStats
    from idgbr.labels import ClassTable, LabelClass

    ones = (1.0,) * n_bands
    return ClassTable(tuple(LabelClass(f"class{i}", (i,), (i, i, i)) for i in range(n_classes))), BandStats(ones, ones, ones, ones)


def _aligner(config: RefinerConfig, refiner: Any) -> Any:
    if not config.alignment:
        return None
    from idgbr.refiner.teacher import Aligner

    return Aligner(config, refiner.denoiser.skip_channels[-1], refiner.stats)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- counting -------------------------------------------------------------------------------------------------------------


class _Count:
    """Context of a counted step: FLOPs, and bytes of the tensors that autograd keeps (parameters apart)."""

    def __init__(self, precision: str, *modules: nn.Module):
        self.counter = FlopCounterMode(display=False)
        self.casts = _Casts(precision)
        self.own = {_storage(p) for module in modules for p in module.parameters()}
        self.held: dict[int, Any] = {}
        self.kept = self.forward_flop = self.frozen_flop = 0.0

    @property
    def flop(self) -> float:
        return float(self.counter.get_total_flops())

    def __enter__(self) -> _Count:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        for context in (self.counter, self.casts, self.hooks):
            context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for context in (self.hooks, self.casts, self.counter):
            context.__exit__(*error)

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.own:
            self.held[_storage(tensor)] = tensor.untyped_storage()  # held, so that its number is not used again
        return tensor

    def end_of_frozen(self) -> None:
        self.frozen_flop = self.flop

    def end_of_forward(self) -> None:
        self.forward_flop = self.flop
        self.kept = float(sum(storage.nbytes() for storage in self.held.values()))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


_NARROW = {
    F.conv2d,
    torch.conv2d,
    F.linear,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    torch.mm,
    Tensor.matmul,
    Tensor.__matmul__,
}
_WIDE = {F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.cross_entropy, F.cosine_similarity, torch.group_norm,
         torch.layer_norm}  # fmt: skip


class _Casts(TorchFunctionMode):
    """Autocast as on CUDA, which torch does not offer on the meta device (torch 2.14), and fused attention."""

    def __init__(self, precision: str):
        super().__init__()
        self.narrow = torch.bfloat16 if precision == "bf16" else torch.float32

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in _NARROW:
            args, kwargs = _cast(args, self.narrow), _cast(kwargs, self.narrow)
        elif func in _WIDE:
            args, kwargs = _cast(args, torch.float32), _cast(kwargs, torch.float32)
        return func(*args, **kwargs)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, scale: float | None = None, **__: Any
    ) -> Tensor:
        q, k, v = (x.to(self.narrow) for x in (q, k, v))
        bias = None if attn_mask is None else attn_mask.to(self.narrow).expand(*q.shape[:3], k.shape[-2])
        fused: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)[0]
        return fused


def _cast(values: Any, kind: torch.dtype) -> Any:
    if isinstance(values, Tensor):
        return values.to(kind) if values.is_floating_point() and values.dtype != kind else values
    if isinstance(values, tuple | list):
        return type(values)(_cast(value, kind) for value in values)
    if isinstance(values, dict):
        return {name: _cast(value, kind) for name, value in values.items()}
    return values


# ---- what fits ------------------------------------------------------------------------------------------------------------


def of_stage(experiment: Experiment, stage: str, n_classes: int, precision: str = "bf16") -> NetworkCost:
    """Cost of the network that `stage` ("backbone" or "refiner") trains."""
    n_bands = len(experiment.data.bands)
    if stage == "backbone":
        return of_backbone(experiment.backbone, n_bands, n_classes, precision)
    return of_refiner(experiment.refiner, n_bands, n_classes, precision)


def refining_flop_px(experiment: Experiment, n_classes: int) -> float:
    """FLOPs that refining spends on a pixel of a scene: all evaluations of all samples, overlap of tiles included, no
    tile left out by `reach_px` or `keep_confidence`. 0 for the coarse map itself."""
    refiner, s = experiment.refiner, experiment.sampler
    if refiner.kind == "none" or s.trust == 0 or (refiner.kind == "diffusion" and s.strength == 0):
        return 0.0
    evaluations = 1.0
    if refiner.kind == "diffusion":
        evaluations = (1 if s.sampler == "one_step" else s.steps) * s.samples * (2.0 if s.guidance_scale > 1 else 1.0)
    elif refiner.kind == "cascade":
        evaluations = s.steps
    cost = of_stage(experiment, "refiner", n_classes)
    tiles = 1 / (s.tile_px - s.overlap_px) ** 2
    return tiles * (cost.run_flop + evaluations * cost.step_flop) * (s.tile_px / refiner.crop_px) ** 2


def images_at_once(batch_images: int, workers: int, accumulate: int, micro_images: int = 0) -> int:
    """Images of one forward pass on the fullest GPU (`training/batches.py` splits them so)."""
    return math.ceil(math.ceil(batch_images / workers) / micro_batches(batch_images, workers, accumulate, micro_images))


def fitting(cost: NetworkCost, batch_images: int, gpu_gb: float, *, workers: int = 1, sharding: str = "ddp") -> int | None:
    """Smallest number of micro-batches a step with which the global batch fits the GPUs; None where no number does."""
    for accumulate in range(1, max(1, batch_images // workers) + 1):
        images = images_at_once(batch_images, workers, accumulate)
        if cost.memory_bytes(images, workers=workers, sharding=sharding) <= gpu_gb * GB:
            return accumulate
    return None


def plan_memory(
    experiment: Experiment, stage: str, n_classes: int, gpu_gb: float, *, workers: int = 1, sharding: str = "ddp", precision: str = "bf16"
) -> int:
    """Images of one forward pass with which a training fits its GPUs; the global batch stays what it is.

    A refiner's step is cut into micro-batches, which change nothing but rounding, unless `refiner.micro_images` says
    how. A network of stage I has batch norm, whose statistics depend on them: it fits as it is, or not.

    Args:
        gpu_gb: memory of one GPU. workers: GPUs of the training.

    Raises:
        BadRequest: it does not fit; names settings with which it does.
    """
    settings = getattr(experiment, stage)
    cost = of_stage(experiment, stage, n_classes, precision)
    fixed = getattr(settings, "micro_images", 0)

    def gb(images: int) -> float:
        return cost.memory_bytes(images, workers=workers, sharding=sharding) / GB

    wanted = images_at_once(settings.batch_images, workers, settings.accumulate, fixed)
    if gb(wanted) <= gpu_gb:
        return wanted
    if stage == "refiner" and not fixed:
        pieces = fitting(cost, settings.batch_images, gpu_gb, workers=workers, sharding=sharding)
        if pieces is not None:
            return images_at_once(settings.batch_images, workers, pieces)
        wanted = images_at_once(settings.batch_images, workers, settings.batch_images)
    raise BadRequest(
        f"the {stage} needs {gb(wanted):.0f} GB on every GPU" + (", one image at a time" if wanted == 1 else ""),
        value=f"{gpu_gb:.3g} GB a GPU, {stage}.batch_images={settings.batch_images} over {workers} GPUs, {precision}",
        hint=" or ".join(_ways(experiment, stage, cost, n_classes, gpu_gb, workers, sharding)) or "larger GPUs, or smaller crops",
    )


def _ways(
    experiment: Experiment, stage: str, cost: NetworkCost, n_classes: int, gpu_gb: float, workers: int, sharding: str
) -> Iterator[str]:
    """Settings with which a training that does not fit does."""
    settings = getattr(experiment, stage)

    def fits(of: NetworkCost, n: int = workers, shards: str = sharding) -> int | None:
        return fitting(of, settings.batch_images, gpu_gb, workers=n, sharding=shards)

    if stage == "backbone":
        if (pieces := fits(cost)) is not None:
            yield f"backbone.accumulate={pieces} (batch norm then sees the smaller batches)"
    else:
        if settings.micro_images and (pieces := fits(cost)) is not None:
            yield f"refiner.micro_images={images_at_once(settings.batch_images, workers, pieces)}"
        if not settings.gradient_checkpointing:
            shape = dataclasses.replace(settings, gradient_checkpointing=True)
            if fits(of_refiner(shape, len(experiment.data.bands), n_classes, cost.precision)) is not None:
                yield "refiner.gradient_checkpointing=true"
    if sharding != "fsdp" and fits(cost, 8, "fsdp") is not None:
        yield "--workers 8 --sharding fsdp"
