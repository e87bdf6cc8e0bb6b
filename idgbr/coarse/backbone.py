"""Stage I: any timm encoder with any segmentation-models-pytorch decoder, from raw digital numbers to class logits.

What families of encoders want, and which pairs cannot be, is in `encoders.py`.

B batch, C bands, K classes, H, W.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from idgbr.coarse.encoders import build_body, built_side, check, side_multiple
from idgbr.config import BackboneConfig, Runtime, section_from_dict
from idgbr.errors import Disagreement, Missing
from idgbr.files import write_bytes
from idgbr.interfaces import Report, Stop
from idgbr.labels import IGNORE
from idgbr.rasters.tiling import Strip, windows
from idgbr.training.distributed import World
from idgbr.training.loop import train

if TYPE_CHECKING:
    from idgbr.datasets import BandStats, Dataset, Raster
    from idgbr.rasters.read import Reader

FORMAT = 1  # of a saved folder


class Backbone(nn.Module):
    """Normalises raw bands, pads to a side the encoder takes, and returns logits of the input's size.

    Args:
        body: smp model, [B,C,H',W'] -> [B,K,h,w].
        mean, std: of each band.
        multiple: H' and W' are multiples of this.
    """

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float], multiple: int):
        super().__init__()
        self.body = body
        self.multiple = multiple
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).clamp(min=1e-6).view(1, -1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Raw digital numbers [B,C,H,W], any H and W -> logits [B,K,H,W].

        Raises:
            Disagreement: another number of bands.
        """
        if image_BCHW.shape[1] != self.mean.shape[1]:
            raise Disagreement(
                "the image has another number of bands than the backbone",
                value=f"{image_BCHW.shape[1]} bands",
                allowed=f"{self.mean.shape[1]} bands",
            )
        height, width = image_BCHW.shape[-2:]
        x = (image_BCHW - self.mean) / self.std
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            x = nn.functional.pad(x, (0, right, 0, below), mode="replicate")
        logits = self.body(x)
        if logits.shape[-2:] != x.shape[-2:]:  # a decoder that ends at another stride (DPT with patches of 14 px)
            logits = nn.functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


class BackboneTraining(nn.Module):
    """forward(batch) -> (cross-entropy of each sample over its valid, labelled pixels [B], {"accuracy": [B]})."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch (image [B,C,H,W], target and valid [B,H,W]) -> cross-entropy [B], the mean over labelled pixels, and
        {"accuracy": [B]}."""
        target = batch["target"].long().masked_fill(~batch["valid"], IGNORE)
        logits = self.network(batch["image"]).float()
        loss = nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        labelled = target != IGNORE
        pixels = labelled.sum((1, 2)).clamp(min=1)  # a sample without a label adds nothing
        right = ((logits.argmax(1) == target) & labelled).sum((1, 2))
        return loss.sum((1, 2)) / pixels, {"accuracy": (right / pixels).detach()}


# ---- build ----------------------------------------------------------------------------------------------------------------


def build(config: BackboneConfig, n_bands: int, n_classes: int, stats: BandStats) -> Backbone:
    """The network, initialised from `config.weights` where given, else by torch's global generator.

    Raises:
        BadRequest: unknown encoder, or a pair or size that cannot work; says what can.
        Missing: no such weights file. Disagreement: weights of another model; bands and statistics that differ.
    """
    if len(stats.mean) != n_bands:
        raise Disagreement("as many band statistics as bands are needed", value=f"{len(stats.mean)} statistics, {n_bands} bands")
    unused = check(config, built_side(config), n_bands, n_classes)
    body = build_body(config, built_side(config), n_bands, n_classes, load=bool(config.weights))
    for name, parameter in body.named_parameters():
        if name in unused:  # a last norm or a head that the decoder never reads: DDP must not wait for its gradient
            parameter.requires_grad_(False)
    return Backbone(body, stats.mean, stats.std, side_multiple(config, body))


# ---- train, save, load -----------------------------------------------------------------------------------------------------


def fit(
    config: BackboneConfig,
    dataset: Dataset,
    rasters: Sequence[Raster],
    *,
    seed: int,
    out: Path,
    scratch: Path | None = None,
    world: World | None = None,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
) -> None:
    """Train on `rasters`; leaves `model.safetensors`, `backbone.json`, `curve.jsonl` in `out`. See `train.train` for
    the rest."""
    from idgbr.training.samples import TrainSamples

    if not rasters:
        raise Disagreement("no raster to train the backbone on", hint="a split table with train scenes, or fewer folds")
    world = world or World()
    n_bands, n_classes = len(dataset.stats.mean), dataset.table.n_classes
    check(config, config.crop_px, n_bands, n_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same start on every rank
        module = BackboneTraining(build(config, n_bands, n_classes, dataset.stats))
    samples = TrainSamples(dataset, rasters, config.crop_px, seed)
    train(module, samples, config, seed=seed, out=out, scratch=scratch, world=world, runtime=runtime, report=report, stop=stop)
    if world.rank == 0:
        facts = {"format": FORMAT, "config": dataclasses.asdict(config), "n_classes": n_classes,
                 "classes": list(dataset.table.names), "mean": list(dataset.stats.mean), "std": list(dataset.stats.std)}  # fmt: skip
        write_bytes(out / "backbone.json", json.dumps(facts, indent=1).encode())


@dataclass(frozen=True)
class _Stats:
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(folder: Path) -> Backbone:
    """The trained backbone in eval mode, on the CPU.

    Raises:
        Missing: nothing trained there. Disagreement: saved by another version, or files that do not fit together.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "backbone.json").is_file() or not (folder / "model.safetensors").is_file():
        raise Missing(
            f"no backbone in {folder}", allowed="a folder with backbone.json and model.safetensors", hint="idgbr train-backbone RECIPE"
        )
    facts = json.loads((folder / "backbone.json").read_text())
    if facts.get("format") != FORMAT:
        raise Disagreement(
            f"the backbone in {folder} was saved by another version",
            value=f"format {facts.get('format')}",
            allowed=f"format {FORMAT}",
            hint="train it again",
        )
    config = dataclasses.replace(section_from_dict(BackboneConfig, facts["config"]), weights="")
    stats: Any = _Stats(tuple(facts["mean"]), tuple(facts["std"]))
    network = build(config, len(stats.mean), facts["n_classes"], stats)
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise Disagreement(
            f"model.safetensors in {folder} does not fit backbone.json: {str(error).splitlines()[0]}", hint="train it again"
        ) from error
    return network.eval()


# ---- predict ----------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    network: nn.Module,
    reader: Reader,
    tile_px: int,
    overlap_px: int,
    *,
    batch_tiles: int = 8,
    temperature: float = 1.0,
    device: torch.device | None = None,
    precision: str = "fp32",
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Class probabilities of a raster of any size, in strips from top to bottom: (first row, [K, rows, width]).

    Overlapping windows are blended with Hann weights; memory depends on the width, not the height.
    """
    device = device or torch.device("cpu")
    grid = reader.grid
    todo = windows(grid.height, grid.width, tile_px, overlap_px)
    strip: Strip | None = None
    for first in range(0, len(todo), batch_tiles):
        batch = todo[first : first + batch_tiles]
        image = torch.from_numpy(np.stack([reader.read(*window)[0] for window in batch])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(image.contiguous(memory_format=torch.channels_last))
        probabilities = (logits.float() / temperature).softmax(1).cpu().numpy()
        strip = strip or Strip(probabilities.shape[1], grid.height, grid.width, tile_px, overlap_px)
        for window, values in zip(batch, probabilities):
            yield from strip.add(window, values)
