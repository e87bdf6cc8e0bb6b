"""The networks of a refiner as one module: denoiser, condition encoder, guidance network, label code and band
statistics.

All that depends on image and coarse map alone is computed once a tile (`condition`) and reused by every step, sample
and step count.

Shape letters: B batch, C bands, K classes, H, W pixels, D latent channels, h, w latent grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.errors import BadRequest, Disagreement
from idgbr.labels import ClassTable
from idgbr.refiner.codec import AnalogCodec, Codec, VaeCodec, encode_mode
from idgbr.refiner.denoiser import ConditionEncoder, Denoiser, PixelHead, position_sizes, small_unet
from idgbr.refiner.guidance import Condition, GuidanceNetwork, stack
from idgbr.refiner.pretrained import PretrainedFeatures
from idgbr.refiner.process import Estimate, Process, process_of
from idgbr.refiner.stable_diffusion import Parts

if TYPE_CHECKING:
    from idgbr.datasets import BandStats


class RefinerNetwork(nn.Module):
    """See the head of this file.

    Args:
        config: what to build. n_bands: C. table: the K classes. stats: of the training rasters, one entry a band.
            parts: modules read from folders.

    Raises:
        BadRequest: settings that contradict each other. Disagreement: statistics of another number of bands.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: RefinerConfig, n_bands: int, table: ClassTable, stats: BandStats, parts: Parts):
        super().__init__()
        if not (config.use_image or config.use_coarse):
            raise BadRequest(
                "a refiner needs a condition", value="refiner.use_image=false, refiner.use_coarse=false", allowed="at least one of the two"
            )
        if len(config.channels) != len(config.condition_channels) and not config.base:
            raise BadRequest(
                "refiner.channels and refiner.condition_channels must have as many levels",
                value=f"{config.channels} and {config.condition_channels}",
            )
        self.config, self.table, self.n_bands, self.stats = config, table, n_bands, stats
        self.part_configs = parts.configs()
        self.process: Process = process_of(config)
        self.decision: SamplerConfig | None = None  # how to sample and decide, tuned on ground that trained nothing
        check_additions(config, self.process.reads_logits)
        for name in ("mean", "std", "low", "high"):
            values = torch.tensor(getattr(stats, name), dtype=torch.float32)
            if len(values) != n_bands:
                raise Disagreement("band statistics of another number of bands", value=f"{len(values)} of {name}, {n_bands} bands")
            self.register_buffer(name, values.view(1, -1, 1, 1))
        self.codec: Codec = (
            AnalogCodec(table.n_classes, config.block_px, config.code_scale)
            if config.codec == "analog"
            else VaeCodec(table.n_classes, parts.vae)
        )
        self._build_networks(parts)
        if torch.get_default_device().type != "meta":
            self.to(memory_format=torch.channels_last)

    def _build_networks(self, parts: Parts) -> None:
        c, d = self.config, self.codec.latent_channels
        self.pretrained: PretrainedFeatures | None = None
        self.head: PixelHead | None = None
        inputs = int(c.use_image) + int(c.use_coarse)
        if parts.unet is not None:
            self.denoiser = Denoiser(parts.unet, parts.prompt)
            encoder = Denoiser(parts.condition_unet, parts.prompt, decoder=False)
        else:
            block = self.codec.factor**2
            coarse = self.codec.n_classes * block if c.class_channels else d
            entry = self.n_bands * block * c.use_image + coarse * c.use_coarse
            out = (self.codec.n_classes + c.pixel_channels) * block if c.class_channels else d
            self.denoiser = Denoiser(small_unet(d + entry * c.input_condition, out, c.channels, c.layers, "refiner.channels"))
            if c.pixel_channels:
                self.head = PixelHead(c.pixel_channels + (d + entry) // block, self.codec.n_classes)
            if c.condition_encoder and c.use_image:
                self.pretrained = PretrainedFeatures(
                    c.condition_encoder, c.condition_weights, self.n_bands, self.codec.factor, c.condition_channels[0]
                )
                entry += self.pretrained.width
            encoder = Denoiser(small_unet(entry, d, c.condition_channels, c.layers, "refiner.condition_channels"), decoder=False)
        self.denoiser.checkpointing = c.gradient_checkpointing
        self.condition_encoder = ConditionEncoder(encoder, frozen=parts.unet is not None, inputs=inputs)
        side = max(1, c.crop_px // self.codec.factor)
        self.guidance = GuidanceNetwork(
            self.denoiser.skip_channels,
            self.condition_encoder.channels,
            position_sizes(self.denoiser.skip_levels, side),
            width=c.guidance_width,
            heads=c.guidance_heads,
            attention=[c.guidance_attention and self.codec.factor * 2**level >= c.attention_from_px for level in self.denoiser.skip_levels],
            window=c.guidance_window,
        )

    # ---- forward parts -----------------------------------------------------------------------------------------------

    @property
    def multiple(self) -> int:
        """Sides of padded images are multiples of this, in pixels."""
        return self.codec.factor * self.denoiser.multiple

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def pad(self, x: Tensor) -> Tensor:
        """[B,*,H,W] -> sides padded to `multiple` at the lower right by repeating the rim."""
        down, right = -x.shape[-2] % self.multiple, -x.shape[-1] % self.multiple
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x

    def image_input(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Raw image [B,C,H,W] -> input of the condition encoder [B,*,h,w]. Pixels that are not `valid` [B,H,W] become
        0, the middle."""
        if isinstance(self.codec, VaeCodec) and self.condition_encoder.frozen:
            # the autoencoder was trained on [-1, 1]: robust range of the training rasters, first three bands
            x = ((image - self.low) / (self.high - self.low).clamp_min(1e-6) * 2 - 1).clamp(-1, 1)
            if valid is not None:
                x = torch.where(valid[:, None], x, 0.0)
            x = x[:, :3] if self.n_bands >= 3 else x[:, :1].expand(-1, 3, -1, -1)
            return encode_mode(self.codec.vae, x)
        x = ((image - self.mean) / self.std.clamp_min(1e-6)).clamp(-8, 8)
        if valid is not None:
            x = torch.where(valid[:, None], x, 0.0)
        return F.pixel_unshuffle(x, self.codec.factor)

    def prepare(self, image_input: Tensor | None, coarse: Tensor, latent: Tensor) -> Condition:
        """Condition features, keys, values and convolution shares of all guidance blocks.

        Args:
            image_input: see `image_input`. coarse: probabilities [B,K,H,W]. latent: their code [B,D,h,w], padded.
        """
        c = self.config
        parts = [image_input] if c.use_image and image_input is not None else []
        if c.use_coarse:
            parts.append(F.pixel_unshuffle(self.pad(coarse) * 2 - 1, self.codec.factor) if c.class_channels else latent)
        entry = torch.cat(parts, 1) if c.input_condition or c.pixel_channels else None
        if self.pretrained is not None:
            assert image_input is not None
            parts.append(self.pretrained(image_input))
        return Condition(coarse, latent, self.guidance.prepare(self.condition_encoder(parts)), entry)

    def predict(
        self, z: Tensor, t: Tensor, condition: Condition, *, keep: Tensor | None = None, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """One network evaluation at z [B,D,h,w], t [B] -> output, middle feature with guidance.

        The output is a latent [B,D,h,w], or with `class_channels` logits [B,K,H,W] of the padded size.

        Args:
            keep: factors of the guidance [B]. guidance_scale: the second branch runs only where it is not 1.
        """
        z = z.contiguous(memory_format=torch.channels_last)  # joined with features of another layout it would be copied twice
        seen = torch.cat([z, condition.entry], 1) if self.config.input_condition and condition.entry is not None else z
        features = self.denoiser.encode(seen, t)
        guidance = self.guidance((*features.skips, features.middle), condition.prepared)
        if guidance_scale != 1.0:
            free, led = self.denoiser.decode(features.doubled(guidance)).chunk(2)
            output, middle = free + guidance_scale * (led - free), features.middle + guidance[-1]
        else:
            led_features = features.with_guidance(guidance if keep is None else [g * keep.view(-1, 1, 1, 1) for g in guidance])
            output, middle = self.denoiser.decode(led_features), led_features.middle
        if not self.config.class_channels:
            return output, middle
        pixels = F.pixel_shuffle(output, self.codec.factor)
        if self.head is None:
            return pixels, middle
        assert condition.entry is not None
        logits, detail = pixels.split([self.codec.n_classes, self.config.pixel_channels], 1)
        return logits + self.head(torch.cat([detail, F.pixel_shuffle(torch.cat([condition.entry, z], 1), self.codec.factor)], 1)), middle

    def logits(self, output: Tensor) -> Tensor:
        """Network output (or x0) read as class logits [B,K,H,W]."""
        return output if self.config.class_channels else self.codec.logits(output)

    def estimate(
        self,
        z: Tensor,
        t: Tensor,
        bar: Tensor | None,
        condition: Condition,
        *,
        guidance_scale: float = 1.0,
        as_logits: bool = False,
    ) -> Estimate:
        """The clean map as the network sees it at z [B,D,h,w], timestep t [B] and noise level `bar` (None: z holds no
        noised map).

        as_logits: read a latent output as logits too, as networks trained by the task loss want it.
        """
        output = self.predict(z, t, condition, guidance_scale=guidance_scale)[0].float() + self.prior(condition, z, bar)
        x0 = output if bar is None else self.process.x0(output, z, bar)
        if self.process.reads_logits or as_logits:
            probabilities = self.logits(x0).softmax(1)
            hard = self.config.recycle_hard
            return Estimate(self.codec.encode_index(probabilities.argmax(1)) if hard else self.codec.encode(probabilities), probabilities)
        return Estimate(x0 if self.codec.bound is None else x0.clamp(-self.codec.bound, self.codec.bound), None)

    def prior(self, condition: Condition, z: Tensor, bar: Tensor | None) -> Tensor | float:
        """What is added to the network's output at z and noise level abar (`bar`; None: z holds no noised map).

        With `coarse_residual` the network adds the image's evidence to what coarse map and z say by themselves: an
        untrained one returns the coarse map, and one that sees a nearly clean z returns z.
        """
        kind = self.process.parameterisation
        if not (self.config.coarse_residual and self.config.use_coarse) or kind == "epsilon":
            return 0.0  # epsilon: near the clean map any change of x0 is a huge change of epsilon
        if kind == "v":
            assert bar is not None
            return -(1 - bar).sqrt() * condition.latent  # so that x0 = sqrt(abar) z - sqrt(1 - abar) v = sqrt(abar) z + (1 - abar) coarse
        given = None if bar is None else z
        if self.config.class_channels:
            assert isinstance(self.codec, AnalogCodec)  # `check_additions` refuses others
            return self.codec.class_prior(self.pad(condition.coarse), given, bar)
        return self.codec.prior(condition.latent, given, bar, self.process.reads_logits)

    @torch.no_grad()
    def condition(self, image: Tensor, coarse: Tensor, valid: Tensor | None = None) -> Condition:
        """Run the condition encoder and prepare the guidance once for all steps.

        Args:
            image: raw digital numbers [B,C,H,W]. coarse: probabilities [B,K,H,W]. valid: [B,H,W] bool, False at
                nodata.
        """
        image, coarse = image.to(self.device, torch.float32), coarse.to(self.device, torch.float32)
        valid = None if valid is None else self.pad(valid.to(self.device)[:, None].float())[:, 0] > 0
        # On the CPU kernels pick their summation order by batch size: tile by tile, a tile's result cannot depend on
        # its neighbours.
        size = 1 if self.device.type == "cpu" else len(image)
        rows = []
        for i in range(0, len(image), size):
            guess = coarse[i : i + size]
            latent = self.codec.encode(self.pad(guess))
            seen = None
            if self.config.use_image:
                seen = self.image_input(self.pad(image[i : i + size]), None if valid is None else valid[i : i + size])
            rows.append(self.prepare(seen, guess, latent))
        return stack(rows)


def check_additions(config: RefinerConfig, reads_logits: bool) -> None:
    """Raises:
    BadRequest: a part of the network that the other settings leave no place for.
    """
    given = ", ".join(f"refiner.{n}={getattr(config, n)}" for n in ("class_channels", "input_condition", "pixel_channels"))

    def refuse(wrong: object, why: str, allowed: str) -> None:
        if wrong:
            raise BadRequest(why, value=given, allowed=allowed)

    refuse(
        config.class_channels and config.codec != "analog",
        "class channels have the pixels of the label map, which the latents of a VAE have not",
        "refiner.codec=analog",
    )
    refuse(
        config.class_channels and not reads_logits,
        "with a channel a class the network puts out logits, so it must learn by cross-entropy",
        "refiner.parameterisation=x0 and refiner.target_loss=cross_entropy or auto",
    )
    refuse(
        config.pixel_channels and not config.class_channels,
        "the head at full size adds to class logits",
        "refiner.class_channels=true",
    )
    refuse(config.input_condition and config.base, "a Stable Diffusion U-Net has no input channels for a condition", "refiner.base= (none)")
    refuse(
        config.condition_dropout and (config.input_condition or config.pixel_channels),
        "condition dropout leaves out the guidance, but here the denoiser sees the condition elsewhere too",
        "refiner.condition_dropout=0",
    )
