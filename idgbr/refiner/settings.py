"""Settings of the refiner and of how it is run."""

from __future__ import annotations

from dataclasses import dataclass

from idgbr.settings import Section, When, setting
from idgbr.training.settings import TrainingConfig

_DIFFUSION = When("refiner.kind", ("diffusion",))
_STEPS = When("refiner.kind", ("diffusion", "cascade"))
_ANY_REFINER = When("refiner.kind", ("diffusion", "cascade", "one_pass"))
_ALIGNED = When("refiner.alignment")
_ATTENTION = When("refiner.guidance_attention")


@dataclass(frozen=True)
class RefinerConfig(TrainingConfig):
    """Stage II: what is trained to refine. Five independent choices of diffusion, the network, its training."""

    name = "refiner"
    kind: str = setting(
        "diffusion",
        "diffusion; one_pass: same network, no noise, no steps; cascade: steps without noise; none: the coarse map itself",
        choices=("diffusion", "cascade", "one_pass", "none"),
    )
    base: str = setting("", "local Stable Diffusion folder (diffusers layout) to build from; empty: the small U-Net below", path=True)
    # label code
    codec: str = setting("analog", "label map <-> latent", choices=("analog", "vae"))
    block_px: int = setting(4, "analog: space-to-depth block", low=1, high=32)
    code_scale: float = setting(1.0, "analog: amplitude of the code; below 1 hides more of it at every timestep", low=0.01, high=10)
    vae: str = setting(
        "", "vae: local diffusers folder of AutoencoderKL or AutoencoderTiny", path=True, read_when=When("refiner.codec", ("vae",))
    )
    # network
    channels: tuple[int, ...] = setting((32, 64, 96), "U-Net channels, one entry a level")
    layers: int = setting(1, "ResNet blocks a level", low=1, high=4)
    condition_channels: tuple[int, ...] = setting((48, 96, 144), "condition encoder channels, one entry a level")
    condition_encoder: str = setting("", "timm encoder whose frozen features of the image are one more condition (small U-Net); empty: no")
    condition_weights: str = setting(
        "", "safetensors file of that encoder (timm keys); empty: random", path=True, read_when=When("refiner.condition_encoder")
    )
    guidance_width: int = setting(64, "channels inside the guidance network", low=8, high=2048)
    guidance_heads: int = setting(4, "attention heads of the guidance network", low=1, high=64, read_when=_ATTENTION)
    guidance_attention: bool = setting(True, "attention branch of the guidance network")
    guidance_window: int = setting(
        8, "attention windows of this many latent positions a side; 0: over the whole map", low=0, high=256, read_when=_ATTENTION
    )
    attention_from_px: int = setting(
        0,
        "attention only where a latent position is at least so many pixels wide (block_px 2 with 4: none at the finest); 0: everywhere",
        low=0,
        high=4096,
        read_when=_ATTENTION,
        key_at_default=False,
    )
    use_image: bool = setting(True, "condition on the image")
    use_coarse: bool = setting(True, "condition on the coarse map")
    coarse_residual: bool = setting(False, "the network adds to what coarse and noised map say by themselves (x0, v, one_pass)")
    class_channels: bool = setting(
        False,
        "coarse probabilities in and logits out have a channel a class, lossless for any K; else both are codes",
        key_at_default=False,
    )
    input_condition: bool = setting(False, "image and coarse map also enter the denoiser beside z", key_at_default=False)
    pixel_channels: int = setting(
        0,
        "features a pixel of a light head at full size (two 3 x 3 convolutions); 0: no head",
        low=0,
        high=256,
        key_at_default=False,
    )
    # diffusion
    schedule: str = setting("cosine", "noise schedule", choices=("linear", "scaled_linear", "cosine", "sigmoid"), read_when=_DIFFUSION)
    zero_terminal_snr: bool = setting(True, "rescale the schedule so that the last step is pure noise", read_when=_DIFFUSION)
    train_timesteps: int = setting(1000, "length of the training schedule", low=10, high=10_000, read_when=_STEPS)
    amplitude: float = setting(
        1.0,
        "of the label code within z alone; below 1 every timestep hides more of it",
        low=0.01,
        high=10,
        read_when=_DIFFUSION,
        shapes_network=False,
        key_at_default=False,
    )
    parameterisation: str = setting("x0", "what the network predicts", choices=("epsilon", "v", "x0"), read_when=_DIFFUSION)
    target_loss: str = setting(
        "auto",
        "mse of the prediction; cross_entropy: output read as logits (x0); auto: that for x0, analog code",
        choices=("auto", "mse", "cross_entropy"),
        read_when=_DIFFUSION,
    )
    timestep_law: str = setting(
        "cubic",
        "law of training timesteps; grid: those of a sampler",
        choices=("uniform", "cubic", "logit_normal", "grid"),
        read_when=_STEPS,
    )
    grid_steps: int = setting(
        8,
        "grid: steps of that sampler (trailing spacing)",
        low=1,
        high=1000,
        read_when=When("refiner.timestep_law", ("grid",)),
        shapes_network=False,
        key_at_default=False,
    )
    last_share: float = setting(
        0.0,
        "share of training samples at the last timestep, where sampling starts; the others follow the law",
        low=0,
        high=1,
        read_when=_STEPS,
        shapes_network=False,
        key_at_default=False,
    )
    recycle: float = setting(
        0.0,
        "share of training samples whose z is made from the network's own first guess in place of the truth",
        low=0,
        high=1,
        read_when=_DIFFUSION,
        shapes_network=False,
        key_at_default=False,
    )
    recycle_hard: bool = setting(
        False,
        "a guess enters z as the code of its most probable classes, not as the expected code",
        read_when=_STEPS,
        shapes_network=False,
        key_at_default=False,
    )
    first_input: str = setting(
        "noise",
        "z of the first step: noise or zeros",
        choices=("noise", "zero"),
        read_when=_DIFFUSION,
        shapes_network=False,
        key_at_default=False,
    )
    warm_start: float = setting(
        0.0,
        "share of the training images, the first ones, that train the first step from zeros alone",
        low=0,
        high=1,
        read_when=_STEPS,
        shapes_network=False,
        key_at_default=False,
    )
    loss_weighting: str = setting(
        "uniform",
        "weights of the loss; boundary: pixels within 3 px of a target boundary count 5 times",
        choices=("uniform", "min_snr", "boundary", "frequency"),
        read_when=(_DIFFUSION, When("refiner.loss_weighting", ("boundary",))),
    )
    edge_loss: float = setting(
        0.0,
        "weight of the mean absolute difference of Sobel gradients of probabilities and target; 0: off",
        low=0,
        high=100,
        shapes_network=False,
        key_at_default=False,
    )
    condition_dropout: float = setting(
        0.0,
        "share of samples trained without condition, for guidance_scale > 1",
        low=0,
        high=0.9,
        read_when=_DIFFUSION,
        shapes_network=False,
    )
    one_step_images: int = setting(
        0,
        "fast track: last images fine-tuned end to end for one step with the task loss",
        low=0,
        read_when=_DIFFUSION,
        shapes_network=False,
    )
    # alignment
    alignment: float = setting(0.0, "weight of representation alignment with a frozen ViT; 0: off", low=0, high=100, shapes_network=False)
    alignment_images: int = setting(0, "images during which alignment lasts; 0: all", low=0, read_when=_ALIGNED, shapes_network=False)
    teacher: str = setting("", "timm name of the frozen ViT", read_when=_ALIGNED, shapes_network=False)
    teacher_weights: str = setting("", "safetensors file of the frozen ViT", path=True, read_when=_ALIGNED, shapes_network=False)
    # training
    crop_px: int = setting(96, "training crop", low=16, high=2048)
    crop_pool: int = setting(
        0, "crops repeat after this many, so that frozen latents and teacher tokens can be cached; 0: never", low=0, shapes_network=False
    )
    boundary_share: float = setting(0.75, "share of crops centred near a coarse or target boundary", low=0, high=1, shapes_network=False)
    held_out: float = setting(
        0.0,
        "share of the training ground that trains nothing and tunes the decision saved with the refiner; 0: none is saved",
        low=0,
        high=0.5,
        shapes_network=False,
        key_at_default=False,
    )
    temperature_spread: float = setting(
        0.0,
        "training: coarse probabilities are made more or less sure, p^(1/T) with log T of this standard deviation",
        low=0,
        high=2,
        shapes_network=False,
        key_at_default=False,
    )
    fresh_coarse: float = setting(
        0.0,
        "share of training crops whose coarse map is simulated anew from the target, with other errors every time",
        low=0,
        high=1,
        shapes_network=False,
        key_at_default=False,
    )
    fresh_iou: tuple[float, ...] = setting(
        (0.5, 0.95),
        "lowest and highest IoU of those maps",
        low=0.05,
        high=0.999,
        read_when=When("refiner.fresh_coarse"),
        shapes_network=False,
        key_at_default=False,
    )
    start: str = setting(
        "",
        "folder of a saved refiner whose weights the training starts from (fine-tuning); empty: random weights",
        path=True,
        shapes_network=False,
        key_at_default=False,
    )
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass", speed_only=True)
    micro_images: int = setting(
        0,
        "images of one forward pass on one device at most; the global batch stays. 0: as many as its memory holds (idgbr/costs.py)",
        low=0,
        speed_only=True,
    )


@dataclass(frozen=True)
class SamplerConfig(Section):
    """How the refiner is run over scenes. Nothing here ever trains anything."""

    name = "sampler"
    split: str = setting("val", "scenes refined and scored", choices=("train", "val", "test"))
    sampler: str = setting(
        "ddim",
        "sampler; renoise: every guess gets new noise",
        choices=("ddim", "dpm++", "euler", "renoise", "one_step"),
        read_when=_DIFFUSION,
    )
    steps: int = setting(4, "denoising steps", low=1, high=1000, read_when=_STEPS)
    spacing: str = setting("trailing", "timestep spacing", choices=("trailing", "leading", "linspace"), read_when=_DIFFUSION)
    guidance_scale: float = setting(1.0, "classifier-free guidance; 1 skips the second branch", low=0, high=30, read_when=_DIFFUSION)
    strength: float = setting(
        1.0, "1: start from noise; below: from the noised coarse map; 0: the coarse map itself", low=0, high=1, read_when=_DIFFUSION
    )
    samples: int = setting(1, "samples a tile, averaged", low=1, high=64, read_when=_DIFFUSION)
    shared_noise: bool = setting(
        False,
        "noise belongs to the ground, so that overlapping tiles share it; else every tile has its own",
        read_when=_DIFFUSION,
        key_at_default=False,
    )
    decision: str = setting(
        "mean",
        "of several samples: their mean; or mbr, the sample or mean that agrees best with the others at boundaries",
        choices=("mean", "mbr"),
        read_when=_DIFFUSION,
        key_at_default=False,
    )
    trust: float = setting(
        1.0,
        "l in log p = l log p_refined + (1 - l) log p_coarse; 0: the coarse map",
        low=0,
        high=1,
        read_when=_ANY_REFINER,
        key_at_default=False,
    )
    sure: float = setting(
        0.0,
        "pixels change only where the refined class has at least this probability; 0: everywhere",
        low=0,
        high=1,
        read_when=_ANY_REFINER,
        key_at_default=False,
    )
    average_steps: int = setting(
        1, "the result is the mean of the probabilities of this many last steps", low=1, high=1000, read_when=_STEPS, key_at_default=False
    )
    tile_px: int = setting(128, "tile side", low=16, high=2048, read_when=_ANY_REFINER)
    overlap_px: int = setting(32, "overlap of tiles, Hann blended", low=0, high=1024, read_when=_ANY_REFINER)
    batch_tiles: int = setting(16, "tiles a batch", low=1, high=4096, speed_only=True)
    reach_px: float = setting(
        0.0, "pixels farther than this from a coarse boundary keep the coarse class; 0: no limit", low=0, read_when=_ANY_REFINER
    )
    keep_confidence: float = setting(
        0.0, "pixels whose coarse probability is above this keep the coarse class; 0: none", low=0, high=1, read_when=_ANY_REFINER
    )

    @property
    def keeps_coarse(self) -> bool:
        """Whether the answer is the coarse map, whatever the refiner: no network is run."""
        return self.strength == 0 or self.trust == 0
