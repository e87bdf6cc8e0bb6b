"""What the refiner learns from a batch, and `fit`, which runs the one training loop on it.

Everything random in a sample (timestep, noise, dropped condition) comes from a generator seeded by the sample's own
seed, so the loss of a sample is the same in any batch, on any number of workers, and after a resume.

Shape letters: B batch, C bands, K classes, H, W pixels, D latent channels, h, w latent grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgbr.config import RefinerConfig, Runtime
from idgbr.errors import BadRequest, Disagreement
from idgbr.interfaces import Report, Stop
from idgbr.labels import IGNORE
from idgbr.machine import expanded
from idgbr.refiner import saved
from idgbr.refiner.guidance import Condition
from idgbr.refiner.process import Draw
from idgbr.refiner.refiner import Refiner
from idgbr.refiner.tuning import tuned_decision
from idgbr.settings import network_shape
from idgbr.training.batches import Samples

if TYPE_CHECKING:
    from idgbr.datasets import Dataset
    from idgbr.training.distributed import World

BOUNDARY_PX = 3  # boundary weighting: pixels this near a target boundary ...
BOUNDARY_WEIGHT = 5.0  # ... count this often
FREQUENCY_POWER = 1.0  # frequency weighting: the squared error at frequency f counts (f / f_max + 0.1) ** power


class RefinerTraining(nn.Module):
    """forward(batch) -> (loss [B], parts {name: [B]}).

    Args:
        refiner: trained in place, as `.network`.

    A batch has image [B,C,H,W] raw, coarse [B,K,H,W], target [B,H,W] (255 ignored), valid [B,H,W], seed [B], and,
    where a setting asks for it, index [B]: how many images came before (fast track, alignment), and cached
    image_input, coarse_latent, target_latent, tokens.
    """

    def __init__(self, refiner: Refiner):
        super().__init__()
        self.network = refiner
        config = refiner.config
        if config.edge_loss and not refiner.process.reads_logits:
            raise BadRequest(
                "the edge loss compares class probabilities with the target, which a latent output has not",
                value=f"refiner.edge_loss={config.edge_loss}",
                allowed="a refiner that learns by cross-entropy",
            )
        if config.alignment:
            from idgbr.refiner.teacher import Aligner

            self.aligner: Aligner | None = Aligner(config, refiner.denoiser.skip_channels[-1], refiner.stats)
        else:
            self.aligner = None

    def shard_units(self) -> list[nn.Module]:
        """Blocks FSDP gathers one at a time: those of the U-Nets. `prepare` enters guidance blocks too: the whole
        gathers them."""
        units: list[nn.Module] = []
        for half in (self.network.denoiser, self.network.condition_encoder.encoder):
            units += [*half.down_blocks, half.mid_block, *(half.up_blocks if half.has_decoder else [])]
        return units

    def compile_parts(self, mode: str) -> None:
        """torch.compile of the denoiser's two halves, where the work is. The draws of timesteps and noise by sample
        fit in no graph."""
        denoiser: Any = self.network.denoiser
        denoiser.encode, denoiser.decode = torch.compile(denoiser.encode, mode=mode), torch.compile(denoiser.decode, mode=mode)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch (image [B,C,H,W], coarse [B,K,H,W], target and valid [B,H,W], seed [B]) -> loss [B] and its parts by
        name, each [B]."""
        network, config = self.network, self.network.config
        target, valid = batch["target"], batch["valid"]
        mask = valid & (target != IGNORE)
        image_input, coarse_latent, z0 = self._latents(batch, mask)
        weight_BHW = _pad_zero(self._pixel_weights(target, mask), network.multiple)
        process = network.process
        draw = process.draw(batch["seed"].tolist(), batch.get("index"), z0)
        condition = network.prepare(image_input, network.pad(batch["coarse"]), coarse_latent)
        source = self._guessed(condition, draw, z0) if draw.guesses else z0
        z, bar = process.seen(source, draw), process.abar(draw.t)
        output, middle = network.predict(z, draw.t, condition, keep=draw.keep)
        output = output.float() + network.prior(condition, z, bar)

        labels = _pad_value(torch.where(mask, target, IGNORE).long(), network.multiple)
        if process.reads_logits:
            loss = self._cross_entropy(output, labels, weight_BHW) * process.loss_weight(draw.t)
        else:
            loss = self._squared_error(output, process.target(z0, draw), weight_BHW) * process.loss_weight(draw.t)
            if bar is not None and bool(draw.task.any()):
                task = self._cross_entropy(process.x0(output, z, bar), labels, weight_BHW)
                loss = torch.where(draw.task, task, loss)
        if config.edge_loss:
            loss = loss + config.edge_loss * edge_difference(network.logits(output).softmax(1), labels)
        parts: dict[str, Tensor] = {}
        if self.aligner is not None:
            aligned = self.aligner(middle, batch)
            parts["alignment"] = aligned.detach()
            active = batch["index"] < config.alignment_images if config.alignment_images else torch.ones_like(draw.task)
            loss = loss + config.alignment * aligned * active  # times 0 rather than left out: DDP wants every parameter used
        return loss, parts

    @torch.no_grad()
    def _guessed(self, condition: Condition, draw: Draw, z0: Tensor) -> Tensor:
        """Clean latents: of the network's own first guess where recycled, else of the truth."""
        network, last = self.network, self.network.process.last
        rows = draw.recycled.nonzero()[:, 0]
        if not len(rows):  # sharded networks are evaluated by all processes or by none
            rows = torch.zeros(1, dtype=torch.long, device=z0.device)
        t = torch.full((len(rows),), last, device=z0.device)
        guess = network.estimate(draw.first[rows], t, network.process.abar(t), condition.take(rows)).x0
        found = torch.zeros_like(z0).index_copy_(0, rows, guess.to(z0.dtype))
        return torch.where(draw.recycled.view(-1, 1, 1, 1), found, z0)

    def _latents(self, batch: dict[str, Tensor], mask: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Condition input, coarse latent, target latent; read from the batch where they were cached."""
        network = self.network
        with torch.no_grad():
            if "target_latent" in batch:
                return batch.get("image_input"), batch["coarse_latent"], batch["target_latent"]
            return encode_sample(network, batch["image"], batch["coarse"], batch["target"], batch["valid"], mask)

    def _pixel_weights(self, target: Tensor, mask: Tensor) -> Tensor:
        """[B,1,H,W]: 0 where unlabelled; near target boundaries `BOUNDARY_WEIGHT` where asked."""
        weight = mask.float()[:, None]
        if self.network.config.loss_weighting != "boundary":
            return weight
        known = torch.where(mask, target.float(), torch.nan)[:, None]
        padded = F.pad(known, (1, 1, 1, 1), mode="replicate")
        # NaN compares unequal to nothing here: `>` and `<` are both false, so ignored pixels make no boundary
        edge = torch.zeros_like(weight)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            other = padded[..., dy : dy + known.shape[-2], dx : dx + known.shape[-1]]
            edge = torch.maximum(edge, ((other > known) | (other < known)).float())
        near = F.max_pool2d(edge, 2 * BOUNDARY_PX + 1, stride=1, padding=BOUNDARY_PX)
        return weight * (1 + (BOUNDARY_WEIGHT - 1) * near)

    def _cross_entropy(self, output: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        each = F.cross_entropy(self.network.logits(output), labels, ignore_index=IGNORE, reduction="none")
        weight = weight[:, 0]
        return (each * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1)

    def _squared_error(self, output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        w = self.network.codec.weights(weight).expand_as(target)
        error = output - target
        if self.network.config.loss_weighting != "frequency":
            return (error.square() * w).flatten(1).sum(1) / w.flatten(1).sum(1).clamp_min(1)
        # Parseval: the mean squared error is the mean of the power spectrum, which is then weighed by frequency (mean
        # weight 1)
        spectrum = torch.fft.fft2(self.network.codec.to_pixels(error * w), norm="ortho").abs().square()
        fy, fx = (torch.fft.fftfreq(side, device=error.device).abs() for side in spectrum.shape[-2:])
        by_frequency = ((fy[:, None].square() + fx[None].square()).sqrt() / 0.5**0.5 + 0.1) ** FREQUENCY_POWER
        return (spectrum * by_frequency / by_frequency.mean()).flatten(1).sum(1) / w.flatten(1).sum(1).clamp_min(1)


def edge_difference(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute difference [B] of the Sobel gradients of probabilities [B,K,H,W] and labels [B,H,W], where 3 x 3
    labels are known."""
    k = probabilities.shape[1]
    known = (labels != IGNORE)[:, None].float()
    hot = F.one_hot(torch.where(labels == IGNORE, 0, labels), k).movedim(-1, 1).float()
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=labels.device) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None].repeat(k, 1, 1, 1)
    gradients = F.conv2d(probabilities.float() - hot, kernels, groups=k).abs().mean(1)
    inside = F.avg_pool2d(known, 3, 1)[:, 0] > 0.999
    return (gradients * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)


def encode_sample(
    network: Refiner, image: Tensor, coarse: Tensor, target: Tensor, valid: Tensor, mask: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Frozen codes of a batch: condition input (None without image), coarse latent, target latent; padded."""
    # nothing is known about ignored pixels: they hold the coarse map, and the loss leaves them out
    n_classes = network.codec.n_classes
    hot = F.one_hot(torch.where(mask, target, 0).long(), n_classes).movedim(-1, 1).to(coarse.dtype)
    truth = torch.where(mask[:, None], hot, coarse)
    seen = None
    if network.config.use_image:
        seen = network.image_input(network.pad(image), network.pad(valid[:, None].float())[:, 0] > 0)
    return seen, network.codec.encode(network.pad(coarse)), network.codec.encode(network.pad(truth))


def _pad_zero(x: Tensor, multiple: int) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple))


def _pad_value(labels: Tensor, multiple: int) -> Tensor:
    return F.pad(labels, (0, -labels.shape[-1] % multiple, 0, -labels.shape[-2] % multiple), value=IGNORE)


class Numbered(torch.utils.data.Dataset):
    """Adds `index`, the number of images before this one, and lets crops repeat after `pool` (0: never), with their
    frozen codes cached.

    A repeated crop keeps the seed of its own place in the stream: only what the codec and the teacher see repeats.
    """

    def __init__(self, samples: Samples, pool: int = 0, encode: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None):
        self.samples, self.pool, self.encode = samples, pool, encode
        self.cache: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        place = i % self.pool if self.pool else i
        sample = self.cache.get(place)
        if sample is None:
            sample = self.samples[place]
            if self.encode is not None:
                sample = self.encode(sample)
            if self.pool:
                self.cache[place] = sample
        # the multiplier is odd and large: seeds of later rounds never meet those of the first
        seed = (sample["seed"] + (i - place) * 0x9E3779B97F4A7C1) % (1 << 62)
        return {**sample, "seed": torch.as_tensor(seed), "index": torch.tensor(i)}


def fit(
    config: RefinerConfig,
    dataset: Dataset,
    coarse_dir: Path,
    *,
    seed: int,
    out: Path,
    scratch: Path | None = None,
    world: World | None = None,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
    max_images: int | None = None,
    tuning_dir: Path | None = None,
) -> None:
    """Train a refiner on the training rasters of `dataset` and their coarse maps; leaves a folder that `Refiner.load`
    reads.

    Args:
        coarse_dir: folder of the coarse stage. seed: of the replicate: initial weights, crops, noise.
        max_images: train on fewer images than `config.train_images` (quick looks, early rungs); the schedule is
            shortened too.
        tuning_dir: coarse maps on which the saved decision is tuned; None: `coarse_dir`.
        scratch, world, runtime, report, stop: see `idgbr.training.loop.train`.

    Raises:
        BadRequest, Missing, Disagreement: settings or inputs that cannot be used. Interrupted: `stop` returned true.
    """
    from idgbr.training.distributed import World
    from idgbr.training.loop import train
    from idgbr.training.samples import TrainSamples

    if max_images is not None:
        config = dataclasses.replace(config, train_images=min(max_images, config.train_images))
    world = world or World()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same start on every rank
        refiner = started(config, dataset)
        module = RefinerTraining(refiner)
    samples = TrainSamples(
        dataset,
        dataset.of("train"),
        config.crop_px,
        seed,
        coarse_dir=coarse_dir,
        boundary_share=config.boundary_share,
        held_out=config.held_out,
        temperature_spread=config.temperature_spread,
        fresh_coarse=config.fresh_coarse,
        fresh_iou=config.fresh_iou,
    )
    stream = Numbered(samples, config.crop_pool, cached_encoder(module) if config.crop_pool else None)
    train(module, stream, config, seed=seed, out=out, scratch=scratch, world=world, runtime=runtime, report=report, stop=stop)
    if world.rank == 0:
        saved.write_config(refiner, out)
        if config.held_out:
            refiner = Refiner.load(out, world.device(runtime or Runtime()))
            refiner.decision = tuned_decision(refiner, dataset, tuning_dir or coarse_dir, config.held_out)
            saved.write_config(refiner, out)


def started(config: RefinerConfig, dataset: Dataset) -> Refiner:
    """A refiner for the data set: with random weights, or with those of the saved refiner `config.start`, whose band
    statistics it keeps.

    Raises:
        Missing: no such folder. Disagreement: its network or its number of bands or classes is another one.
    """
    if not config.start:
        return Refiner.build(config, len(dataset.stats.mean), dataset.table, dataset.stats)
    saved_one = Refiner.load(expanded(config.start))
    here, there = (network_shape(c) for c in (dataclasses.replace(config, condition_weights=""), saved_one.config))
    counts = (len(dataset.stats.mean), dataset.table.n_classes), (saved_one.n_bands, saved_one.table.n_classes)
    if here != there or counts[0] != counts[1]:
        raise Disagreement(
            "the refiner to start from has another network",
            value=f"refiner.start={config.start}: {counts[1][0]} bands, {counts[1][1]} classes",
            allowed=f"{counts[0][0]} bands, {counts[0][1]} classes, and the network settings of the training",
            hint="`idgbr adapt` takes the settings from the saved refiner",
        )
    refiner = Refiner.build(dataclasses.replace(config, condition_weights="", start=""), counts[0][0], dataset.table, saved_one.stats)
    refiner.load_state_dict(saved_one.state_dict())
    return refiner


def cached_encoder(module: RefinerTraining) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """What is frozen about a sample, computed once: latents of a VAE (analog codes cost less than their copies),
    teacher tokens."""
    network = module.network

    @torch.no_grad()
    def encode(sample: dict[str, Tensor]) -> dict[str, Tensor]:
        added: dict[str, Tensor] = {}
        batch = {k: torch.as_tensor(v)[None].to(network.device) for k, v in sample.items()}
        if network.config.codec == "vae":
            mask = batch["valid"] & (batch["target"] != IGNORE)
            latents = encode_sample(network, batch["image"], batch["coarse"], batch["target"], batch["valid"], mask)
            names = ("image_input", "coarse_latent", "target_latent")
            added |= {name: value[0].cpu() for name, value in zip(names, latents, strict=True) if value is not None}
        if module.aligner is not None:
            added["tokens"] = module.aligner.tokens(batch["image"])[0].cpu()
        return {**sample, **added}

    return encode
