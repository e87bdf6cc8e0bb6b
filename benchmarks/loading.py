"""Loading: windows read straight from scenes, against whole-file reading, against memory, and against what a training step needs.

    python benchmarks/loading.py [--side 2048] [--windows 60]

Two synthetic scenes are written as tiled GeoTIFF (deflate), striped GeoTIFF and JPEG. Measured in one run:
- windows a second, read by window and by reading the whole file and cutting (what a loader without windows does);
- training samples a second (192 px, augmented) from memory and by window, with 0, 1 and 2 spawned workers;
- images a second that one training step of the default backbone uses on this machine (resnet18 + FPN, eight 192 px crops).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch

from idgbr import datasets
from idgbr.coarse import backbone
from idgbr.config import BackboneConfig, DataConfig
from idgbr.rasters.read import Reader
from idgbr.training.samples import TrainSamples

CROP_PX = 192


def rate(work: Callable[[int], object], count: int) -> float:
    """Calls a second; one call beforehand opens files."""
    work(0)
    started = time.perf_counter()
    for i in range(1, count + 1):
        work(i)
    return count / (time.perf_counter() - started)


def write_formats(source: Path, folder: Path) -> dict[str, Path]:
    with rasterio.open(source) as file:
        image, profile = file.read(), file.profile
    paths = {"tiled": folder / "tiled.tif", "striped": folder / "striped.tif", "jpeg": folder / "scene.jpg"}
    common = {"width": profile["width"], "height": profile["height"], "count": 3, "dtype": "uint8"}
    with rasterio.open(
        paths["tiled"], "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, compress="deflate", **common
    ) as file:
        file.write(image)
    with rasterio.open(paths["striped"], "w", driver="GTiff", compress="deflate", **common) as file:
        file.write(image)
    with rasterio.open(paths["jpeg"], "w", driver="JPEG", quality=90, **common) as file:
        file.write(image)
    return paths


def windows_a_second(path: Path, side: int, count: int) -> tuple[float, float]:
    """By window, and by the whole file."""
    corners = np.random.default_rng(0).integers(0, side - CROP_PX, (count + 1, 2))
    reader = Reader(path)

    def whole(i: int) -> object:
        with rasterio.open(path) as file:
            row, col = corners[i]
            return file.read()[:, row : row + CROP_PX, col : col + CROP_PX].astype(np.float32)

    return rate(lambda i: reader.read(*map(int, corners[i]), CROP_PX, CROP_PX), count), rate(whole, max(3, count // 10))


def samples_a_second(samples: TrainSamples, workers: int, count: int) -> float:
    """Behind a DataLoader with batches of 8; the first two batches (start of the workers, opening of files) are not counted."""
    loader = torch.utils.data.DataLoader(
        samples, batch_size=8, sampler=range(count + 16), num_workers=workers, multiprocessing_context="spawn" if workers else None
    )
    started = 0.0
    for i, _ in enumerate(loader):
        if i == 1:
            started = time.perf_counter()
    return count / (time.perf_counter() - started)


def images_a_step_needs(dataset: datasets.Dataset, samples: TrainSamples) -> float:
    """Images a second that forward, backward and step of the default backbone take."""
    network = backbone.build(BackboneConfig(), 3, dataset.table.n_classes, dataset.stats).train()
    optimiser = torch.optim.AdamW(network.parameters())
    batch = torch.utils.data.default_collate([samples[i] for i in range(8)])

    def step(_: int) -> None:
        optimiser.zero_grad()
        logits = network(batch["image"])
        torch.nn.functional.cross_entropy(logits, batch["target"].long(), ignore_index=255).backward()
        optimiser.step()

    return 8 * rate(step, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="side of a scene in px")
    parser.add_argument("--windows", type=int, default=60, help="windows a measurement")
    options = parser.parse_args()
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    folder = Path(tempfile.mkdtemp(prefix="idgbr-loading-"))
    try:
        config = DataConfig(train_scenes=2, val_scenes=0, test_scenes=0, scene_px=options.side)
        started = time.perf_counter()
        datasets.prepare(config, folder / "data")
        prepared = time.perf_counter() - started
        dataset = datasets.load(folder / "data", config)
        megapixels = 2 * options.side**2 / 1e6
        print(f"made and indexed {megapixels:.1f} Mpx of synthetic scenes in {prepared:.1f} s")
        result: dict[str, float] = {"scene_px": options.side, "crop_px": CROP_PX}
        for name, path in write_formats(dataset.rasters[0].image, folder).items():
            by_window, whole = windows_a_second(path, options.side, options.windows)
            result[f"{name}_windows_per_s"], result[f"{name}_window_against_whole_file"] = by_window, by_window / whole
            print(f"{name:8} {by_window:8.1f} windows/s by window, {whole:8.1f} by whole file: {by_window / whole:.1f} x")
        need = 0.0
        for kept in (True, False):
            samples = TrainSamples(dataset, dataset.of("train"), CROP_PX, seed=0)
            samples.cached = kept
            need = need or images_a_step_needs(dataset, samples)
            for workers in (0, 1, 2):
                speed = samples_a_second(samples, workers, 4 * options.windows)
                where = "memory" if kept else "windows"
                result[f"samples_per_s_{where}_{workers}_workers"] = speed
                result[f"samples_against_step_{where}_{workers}_workers"] = speed / need
                print(f"samples from {where:8} {workers} workers: {speed:8.1f}/s, {speed / need:6.1f} x a training step ({need:.1f}/s)")
        result["step_images_per_s"] = need
        print(json.dumps({name: round(value, 3) for name, value in result.items()}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
