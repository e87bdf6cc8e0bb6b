"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from idgbr.settings import Section, setting


@dataclass(frozen=True)
class TrainingConfig(Section):
    """What the training loop reads; shared by the two stages that train."""

    batch_images: int = setting(16, "global batch, whatever the number of workers", low=1, shapes_network=False)
    train_images: int = setting(8000, "images seen in all", low=1, shapes_network=False)
    lr: float = setting(1e-3, "peak learning rate of AdamW", low=1e-8, high=1, shapes_network=False)
    weight_decay: float = setting(1e-2, "of AdamW", low=0, high=1, shapes_network=False)
    warmup_images: int = setting(800, "linear warm-up", low=0, shapes_network=False)
    clip_norm: float = setting(1.0, "gradient norm clip; 0: none", low=0, shapes_network=False)
    ema_images: float = setting(800.0, "half-life of the weight average in images; 0: none", low=0, shapes_network=False)
    accumulate: int = setting(1, "micro-batches a step", low=1, shapes_network=False)
    checkpoint_images: int = setting(4000, "images between resume checkpoints", low=1, speed_only=True)
    # how a GPU is used; on CPUs none of these has an effect
    bf16: bool = setting(False, "GPU: mixed precision, bf16 by autocast; weights and optimiser stay fp32", speed_only=True)
    compile: str = setting(
        "",
        "GPU: mode of torch.compile; reduce-overhead captures CUDA graphs, for one micro-batch a step; empty: not compiled",
        choices=("", "default", "reduce-overhead"),
        speed_only=True,
    )
    loader_workers: int = setting(0, "GPU: processes that load for each, at most the cores it has beside its own", low=0, speed_only=True)
    sharding: str = setting(
        "ddp",
        "GPUs of one training: whole copies of the model (ddp), or its states spread (fsdp)",
        choices=("ddp", "fsdp"),
        speed_only=True,
    )
