"""The refiner: image + coarse map -> refined map.

    refiner = Refiner.load(folder)
    refined = refiner.refine(image, coarse)          # numpy or torch, any size, index map or probabilities

A label map is written as a latent by a denoising diffusion process whose decoder is led by a conditioning guidance network
(METHOD.md, section 1). All that depends on image and coarse map alone is computed once a tile (`condition`) and reused by every step,
sample and step count.

Shape letters: B batch, C bands, K classes, H, W pixels, D latent channels, h, w latent grid, S samples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.config import CONFIG_VERSION, RefinerConfig, SamplerConfig, section_from_dict
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.files import replacing
from idgbr.labels import ClassTable
from idgbr.rasters.edges import keeps_coarse
from idgbr.refiner.codec import AnalogCodec, Codec, VaeCodec, encode_mode
from idgbr.refiner.denoiser import ConditionEncoder, Denoiser, position_sizes, small_unet
from idgbr.refiner.diffusion import Diffusion, Sampler, noise_like
from idgbr.refiner.guidance import Condition, GuidanceNetwork, Prepared, stack
from idgbr.refiner.inputs import read_coarse, read_image
from idgbr.refiner.pretrained import PretrainedFeatures
from idgbr.refiner.stable_diffusion import Parts

if TYPE_CHECKING:
    from idgbr.datasets import BandStats


@dataclass(frozen=True)
class Refined:
    """A refined map with its uncertainty, in the kind (numpy or torch) and with the batch axis of the image given.

    index: class map uint8 [(B,)H,W]. probabilities: mean over samples [(B,)K,H,W]. agreement: share of samples that voted for the most
    frequent class [(B,)H,W]. entropy: of the mean probabilities, in units of log K, 0..1 [(B,)H,W].
    """

    index: Any
    probabilities: Any
    agreement: Any
    entropy: Any


class Refiner(nn.Module):
    """Denoiser, condition encoder, guidance network, label code and band statistics in one module.

    Build with `Refiner.build`, or read a saved one with `Refiner.load`.
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
        if config.kind == "none":
            raise BadRequest("refiner.kind=none has no network", allowed="diffusion, one_pass")
        if len(config.channels) != len(config.condition_channels) and not config.base:
            raise BadRequest(
                "refiner.channels and refiner.condition_channels must have as many levels",
                value=f"{config.channels} and {config.condition_channels}",
            )
        self.config, self.table, self.n_bands, self.stats = config, table, n_bands, stats
        self.part_configs = parts.configs()
        self.diffusion = Diffusion(config)
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
        inputs = int(c.use_image) + int(c.use_coarse)
        if parts.unet is not None:
            self.denoiser = Denoiser(parts.unet, parts.prompt)
            encoder = Denoiser(parts.condition_unet, parts.prompt, decoder=False)
        else:
            self.denoiser = Denoiser(small_unet(d, d, c.channels, c.layers, "refiner.channels"))
            image = self.n_bands * self.codec.factor**2
            entry = image * c.use_image + d * c.use_coarse
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
            attention=c.guidance_attention,
            window=c.guidance_window,
        )

    # ---- build, save, load -------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, config: RefinerConfig, n_bands: int, table: ClassTable, stats: BandStats) -> Refiner:
        """A new refiner with random weights, or from `config.base` / `config.vae` (local diffusers folders).

        Args:
            n_bands: C of the images. table: the K classes. stats: of the training rasters, one entry a band.

        Raises:
            BadRequest: settings that contradict each other. Missing: no such folder or no weights in it.
        """
        return cls(config, n_bands, table, stats, Parts.read(config))

    def save_config(self, folder: str | Path) -> None:
        """Write config.json: all that `load` needs besides the weights."""
        record = {
            "version": CONFIG_VERSION,
            "kind": "idgbr refiner",
            "refiner": dataclasses.asdict(self.config),
            "n_bands": self.n_bands,
            "table": json.loads(self.table.to_json()),
            "stats": {n: list(getattr(self.stats, n)) for n in ("mean", "std", "low", "high")},
            "parts": self.part_configs,
        }
        with replacing(Path(folder) / "config.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1))

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; each appears whole or not at all."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        with replacing(Path(folder) / "model.safetensors") as temporary:
            save_file(state, temporary)
        self.save_config(folder)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Refiner:
        """Read a refiner that `save` or `fit` wrote, in eval mode.

        Raises:
            Missing: no such folder, no config or no weights in it. BadRequest: config of another version.
            Disagreement: the weights do not fit.
        """
        from safetensors.torch import load_file

        from idgbr.datasets import BandStats

        folder = Path(folder)
        for name, what in (("config.json", "config"), ("model.safetensors", "weights")):
            if not (folder / name).is_file():
                raise Missing(
                    f"no refiner {what} in {folder}",
                    allowed="a folder with config.json and model.safetensors",
                    hint="the folder of a finished `refiner` stage, or one written by Refiner.save",
                )
        record = json.loads((folder / "config.json").read_text())
        if record.get("version") != CONFIG_VERSION:
            raise BadRequest(
                f"the refiner in {folder} has a config of another version",
                value=record.get("version"),
                allowed=str(CONFIG_VERSION),
                hint="train it again with this version of idgbr",
            )
        # the frozen encoder's weights are among the saved ones: the file they came from is not needed again
        config = replace(section_from_dict(RefinerConfig, record["refiner"]), condition_weights="")
        stats = BandStats(**{name: tuple(values) for name, values in record["stats"].items()})
        refiner = cls(
            config, record["n_bands"], ClassTable.from_json(json.dumps(record["table"])), stats, Parts.from_configs(record["parts"])
        )
        try:
            refiner.load_state_dict(load_file(str(folder / "model.safetensors")))
        except RuntimeError as error:
            raise Disagreement(f"the weights in {folder} do not fit its config.json", value=str(error).splitlines()[0]) from error
        return refiner.to(device).eval()

    # ---- forward parts -----------------------------------------------------------------------------------------------

    @property
    def multiple(self) -> int:
        """Sides of padded images are multiples of this, in pixels."""
        return self.codec.factor * self.denoiser.multiple

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def pad(self, x: Tensor) -> Tensor:
        """[B,*,H,W] -> sides padded to `multiple` at the lower right by repeating the rim."""
        down, right = -x.shape[-2] % self.multiple, -x.shape[-1] % self.multiple
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x

    def image_input(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Raw image [B,C,H,W] -> input of the condition encoder [B,*,h,w]. Pixels that are not `valid` [B,H,W] become 0, the middle."""
        if isinstance(self.codec, VaeCodec) and self.condition_encoder.frozen:
            # the autoencoder was trained on [-1, 1]: robust range of the training rasters, first three bands (METHOD.md B21)
            x = ((image - self.low) / (self.high - self.low).clamp_min(1e-6) * 2 - 1).clamp(-1, 1)
            if valid is not None:
                x = torch.where(valid[:, None], x, 0.0)
            x = x[:, :3] if self.n_bands >= 3 else x[:, :1].expand(-1, 3, -1, -1)
            return encode_mode(self.codec.vae, x)
        x = ((image - self.mean) / self.std.clamp_min(1e-6)).clamp(-8, 8)
        if valid is not None:
            x = torch.where(valid[:, None], x, 0.0)
        return F.pixel_unshuffle(x, self.codec.factor)

    def guide(self, image_input: Tensor | None, coarse_latent: Tensor) -> tuple[Prepared, ...]:
        """Condition features, keys, values and convolution shares of all guidance blocks."""
        parts = [image_input] if self.config.use_image and image_input is not None else []
        if self.config.use_coarse:
            parts.append(coarse_latent)
        if self.pretrained is not None:
            assert image_input is not None
            parts.append(self.pretrained(image_input))
        return self.guidance.prepare(self.condition_encoder(parts))

    def predict(self, z: Tensor, t: Tensor, prepared: Sequence[Prepared], guidance_scale: float = 1.0) -> Tensor:
        """One network evaluation at z [B,D,h,w], t [B]; the second branch runs only where guidance_scale is not 1."""
        features = self.denoiser.encode(z, t)
        guidance = self.guidance((*features.skips, features.middle), prepared)
        if guidance_scale == 1.0:
            return self.denoiser.decode(features.with_guidance(guidance))
        free, led = self.denoiser.decode(features.doubled(guidance)).chunk(2)
        return free + guidance_scale * (led - free)

    def clean(self, output: Tensor, z: Tensor, bar: Tensor) -> tuple[Tensor, Tensor | None]:
        """Network output -> (x0, class logits where the output is read as logits)."""
        if self.reads_logits:
            logits = self.codec.logits(output)
            return self.codec.encode(logits.softmax(1)), logits
        x0 = self.diffusion.x0(output.float(), z, bar)
        return (x0 if self.codec.bound is None else x0.clamp(-self.codec.bound, self.codec.bound)), None

    def prior(self, coarse_latent: Tensor, z: Tensor | None, bar: Tensor | None) -> Tensor | float:
        """What is added to the network's output at z and noise level abar (`bar`; None for one_pass).

        With `coarse_residual` the network adds the image's evidence to what coarse map and z say by themselves: an untrained one returns
        the coarse map, and one that sees a nearly clean z returns z.
        """
        c = self.config
        if not (c.coarse_residual and c.use_coarse):
            return 0.0
        if c.kind == "diffusion" and c.parameterisation == "epsilon":
            return 0.0  # near the clean map any change of x0 is a huge change of epsilon
        if c.kind == "diffusion" and c.parameterisation == "v":
            assert bar is not None
            return -(1 - bar).sqrt() * coarse_latent  # so that x0 = sqrt(abar) z - sqrt(1 - abar) v = sqrt(abar) z + (1 - abar) coarse
        return self.codec.prior(coarse_latent, z, bar, self.reads_logits)

    @property
    def reads_logits(self) -> bool:
        """Whether the network's output is class logits (cross-entropy), not a latent (squared error)."""
        c = self.config
        if c.kind == "one_pass" or c.target_loss != "auto":
            return c.kind == "one_pass" or c.target_loss == "cross_entropy"
        return c.parameterisation == "x0" and c.codec == "analog" and c.loss_weighting != "frequency"

    # ---- refining ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def condition(self, image: Tensor, coarse: Tensor, valid: Tensor | None = None) -> Condition:
        """Run the condition encoder and prepare the guidance once for all steps.

        Args:
            image: raw digital numbers [B,C,H,W]. coarse: probabilities [B,K,H,W]. valid: [B,H,W] bool, False at nodata.
        """
        image, coarse = image.to(self.device, torch.float32), coarse.to(self.device, torch.float32)
        valid = None if valid is None else self.pad(valid.to(self.device)[:, None].float())[:, 0] > 0
        # On the CPU kernels pick their summation order by batch size: tile by tile, a tile's result cannot depend on its neighbours.
        size = 1 if self.device.type == "cpu" else len(image)
        rows = []
        for i in range(0, len(image), size):
            guess = coarse[i : i + size]
            latent = self.codec.encode(self.pad(guess))
            seen = None
            if self.config.use_image:
                seen = self.image_input(self.pad(image[i : i + size]), None if valid is None else valid[i : i + size])
            rows.append(Condition(guess, latent, self.guide(seen, latent)))
        return stack(rows)

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int], config: SamplerConfig) -> Tensor:
        """Probabilities [B,K,H,W], mean over `config.samples` draws; noise of tile b comes from seeds[b] alone."""
        return self.draw(condition, seeds, config).mean(0)

    @torch.no_grad()
    def draw(self, condition: Condition, seeds: Sequence[int], config: SamplerConfig) -> Tensor:
        """All draws [S,B,K,H,W]. Strength 0 returns the coarse probabilities; one_pass refiners have one draw."""
        if len(seeds) != len(condition):
            raise BadRequest("one seed a tile", value=f"{len(seeds)} seeds, {len(condition)} tiles")
        if config.guidance_scale != 1 and self.config.condition_dropout == 0 and self.config.kind == "diffusion":
            raise BadRequest(
                "classifier-free guidance needs a refiner trained with condition dropout",
                value=f"sampler.guidance_scale={config.guidance_scale}, refiner.condition_dropout=0",
                hint="sampler.guidance_scale=1, or train with refiner.condition_dropout=0.1",
            )
        if config.strength == 0:
            return condition.coarse[None]
        if self.device.type == "cpu" and len(condition) > 1:
            rows = [self._draw(row, [seed], config) for row, seed in zip(condition.rows(), seeds, strict=True)]
            return torch.cat(rows, 1)
        return self._draw(condition, seeds, config)

    def _draw(self, condition: Condition, seeds: Sequence[int], config: SamplerConfig) -> Tensor:
        height, width = condition.coarse.shape[-2:]
        latent = condition.latent
        if self.config.kind == "one_pass":
            t = torch.full((len(latent),), self.diffusion.steps - 1, device=self.device)
            output = self.predict(torch.zeros_like(latent), t, condition.prepared).float() + self.prior(latent, None, None)
            return self.codec.logits(output).softmax(1)[None, ..., :height, :width]
        noise = noise_like(seeds, tuple(latent.shape[1:]), config.samples).to(self.device)  # type: ignore[arg-type]
        if config.sampler == "one_step" and self.config.one_step_images and config.strength == 1:
            noise = noise[:1] * 0  # the fast track is trained from zeros (arXiv 2409.11355): one draw
        draws = [self._walk(condition, n, config)[..., :height, :width] for n in noise]
        return torch.stack(draws)

    def _walk(self, condition: Condition, noise: Tensor, config: SamplerConfig) -> Tensor:
        sampler = Sampler(self.diffusion, config)
        z = sampler.start(noise, condition.latent)
        logits = None
        for step, t in enumerate(sampler.timesteps):
            seen = sampler.network_input(z, step)
            output = self.predict(seen, t.to(self.device).expand(len(z)), condition.prepared, config.guidance_scale)
            output = output.float() + self.prior(condition.latent, seen, sampler.bar(step))
            if config.sampler == "one_step" and self.config.one_step_images:
                return self.codec.logits(self.diffusion.x0(output, seen, sampler.bar(step))).softmax(1)
            x0, logits = self.clean(output, seen, sampler.bar(step))
            z = sampler.next(z, x0, step)
        return self.codec.decode(z) if logits is None else logits.softmax(1)

    def refine(
        self,
        image: Any,
        coarse: Any,
        *,
        seeds: int | Sequence[int] = 0,
        config: SamplerConfig | None = None,
        return_probabilities: bool = False,
        **settings: Any,
    ) -> Any:
        """Refine a coarse map.

        Args:
            image: raw digital numbers [C,H,W] or [B,C,H,W], numpy or torch, any dtype.
            coarse: class indices [H,W] / [B,H,W], or probabilities [K,H,W] / [B,K,H,W].
            seeds: one integer, or one a tile. config, settings: of the sampler, e.g. steps=8, samples=4, reach_px=6, strength=0.5.
            return_probabilities: a `Refined` (class map, probabilities, agreement, entropy) in place of the class map.

        Returns:
            class map uint8 [H,W] / [B,H,W], numpy or torch as the image was.

        Raises:
            Disagreement: sizes, bands or classes differ, or a value is not finite. BadRequest: a wrong setting.
        """
        if unknown := set(settings) - {f.name for f in dataclasses.fields(SamplerConfig)}:
            section_from_dict(SamplerConfig, dict.fromkeys(unknown))  # raises, naming the nearest setting
        sampler = replace(config or SamplerConfig(), **settings)
        image_BCHW, back = read_image(image, self.n_bands)
        coarse_BKHW = read_coarse(coarse, self.table, tuple(image_BCHW.shape))
        seeds = [seeds] * len(image_BCHW) if isinstance(seeds, int) else list(seeds)
        was_training = self.training
        self.eval()
        draws = self.draw(self.condition(image_BCHW, coarse_BKHW), seeds, sampler)
        self.train(was_training)
        coarse_BKHW = coarse_BKHW.to(draws.device)
        probabilities = draws.mean(0)
        if sampler.reach_px or sampler.keep_confidence:
            for b, guess in enumerate(coarse_BKHW.cpu().numpy()):
                kept = torch.from_numpy(keeps_coarse(guess, sampler.reach_px, sampler.keep_confidence)).to(draws.device)
                probabilities[b] = torch.where(kept, coarse_BKHW[b], probabilities[b])
                draws[:, b] = torch.where(kept, coarse_BKHW[b], draws[:, b])
        index = probabilities.argmax(1).to(torch.uint8)
        if not return_probabilities:
            return back(index)
        votes = F.one_hot(draws.argmax(2), self.table.n_classes).float().mean(0)
        entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1) / np.log(self.table.n_classes)
        return Refined(back(index), back(probabilities), back(votes.amax(-1)), back(entropy))
