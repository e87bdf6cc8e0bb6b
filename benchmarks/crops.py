"""Training crops a second of one core at 512 px, by file format, and how many `loader_workers` each of 8 GPUs needs.

    python benchmarks/crops.py [--crops 60]

A folder of real aerial images (naip_fields, mirrored to the wanted side) with masks is written in each format and indexed like a user's
own. One process on one core then makes samples as a training does: the window of image and mask, valid pixels, a random symmetry and
change of brightness; with a coarse map for the refiner. Sides are those of published sets: Potsdam's tiles are large GeoTIFFs, sets in
JPEG and PNG come in tiles of about 1,024 px, of which the whole is decoded.

What a GPU takes is predicted (`sweeps/run/forecast.py`): FLOPs of a training image of the recipe `potsdam` over a share of an H100's peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.paper_recipes import CROP_PX, paper_experiment
from idgbr.training.samples import TrainSamples
from sweeps.run.forecast import CARDS, share_of

GPUS = 8
TFLOP = {"backbone": 0.524, "refiner": 0.764}  # of a training image of the recipe `potsdam` (docs/paper-costs.md)
FORMATS = {
    "tiled_geotiff": (4096, ".tif", {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}),
    "jpeg": (1024, ".jpg", {"driver": "JPEG", "quality": 90}),
    "png": (1024, ".png", {"driver": "PNG"}),
}


def mirrored(image: np.ndarray, side: int) -> np.ndarray:
    """[C,h,w] -> [C,side,side], reflected at its edges as often as needed."""
    rows, columns = (np.arange(side) % (2 * n) for n in image.shape[-2:])
    rows, columns = (np.where(i < n, i, 2 * n - 1 - i) for i, n in zip((rows, columns), image.shape[-2:], strict=True))
    return image[:, rows[:, None], columns]


def write_set(folder: Path, name: str, count: int) -> datasets.Dataset:
    """`count` images of a format with PNG masks (GeoTIFF masks for GeoTIFF), prepared as an own folder."""
    side, suffix, profile = FORMATS[name]
    source = datasets.load(prepared(folder / "naip", DataConfig(source="naip_fields")), DataConfig(source="naip_fields"))
    lines = ["image,mask,split"]
    mask_suffix, mask_profile = (".tif", profile) if suffix == ".tif" else (".png", {"driver": "PNG"})
    for kind in ("images", "masks"):
        (folder / name / kind).mkdir(parents=True)
    for i in range(count):
        with rasterio.open(source.rasters[i % len(source.rasters)].image) as file:
            image = mirrored(file.read([1, 2, 3]), side)
        mask = (image.mean(0) > np.median(image)).astype(np.uint8)[None]
        for kind, array, end, how in (("images", image, suffix, profile), ("masks", mask, mask_suffix, mask_profile)):
            path = folder / name / kind / f"place{i}{end}"
            with rasterio.open(path, "w", width=side, height=side, count=len(array), dtype="uint8", **how) as file:
                file.write(array)
        lines.append(f"images/place{i}{suffix},masks/place{i}{mask_suffix},train")
    (folder / name / "splits.csv").write_text("\n".join(lines) + "\n")
    classes = [{"name": "other", "codes": [0], "color": [0, 0, 0]}, {"name": "field", "codes": [1], "color": [255, 255, 255]}]
    (folder / name / "classes.json").write_text(json.dumps({"classes": classes}))
    config = DataConfig(source="folder", root=str(folder / name))
    return datasets.load(prepared(folder / f"{name}-index", config), config)


def prepared(out: Path, config: DataConfig) -> Path:
    if not out.exists():
        datasets.prepare(config, out)
    return out


def crops_a_second(samples: TrainSamples, count: int) -> float:
    """Of a core, by its CPU time: other processes on the machine do not count. Files are in the page cache after the first crops."""
    for i in range(12):
        samples[i]
    started = time.process_time()
    for i in range(12, 12 + count):
        samples[i]
    return count / (time.process_time() - started)


def images_a_gpu_takes(stage: str) -> float:
    """Predicted images a second of one H100 in training."""
    share = share_of(stage, paper_experiment("potsdam"))
    return CARDS["H100"].peak * share.value / (TFLOP[stage] * 1e12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=60, help="crops a measurement")
    parser.add_argument("--images", type=int, default=6, help="images a format")
    options = parser.parse_args()
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="idgbr-crops-"))
    result: dict[str, float] = {"crop_px": CROP_PX, "gpus": GPUS}
    try:
        needs = {stage: images_a_gpu_takes(stage) for stage in ("backbone", "refiner")}
        result |= {f"{stage}_images_per_s_of_a_gpu_predicted": need for stage, need in needs.items()}
        for name in FORMATS:
            dataset = write_set(folder, name, options.images)
            coarse = folder / f"{name}-coarse"
            write_coarse(dataset, coarse)
            for stage, more in (("backbone", {}), ("refiner", {"coarse_dir": coarse, "boundary_share": 0.75})):
                samples = TrainSamples(dataset, dataset.of("train"), CROP_PX, seed=0, **more)
                samples.cached = False
                speed = crops_a_second(samples, options.crops)
                workers = math.ceil(needs[stage] / speed)
                result[f"{name}_{stage}_crops_per_s_a_core"], result[f"{name}_{stage}_loader_workers_a_gpu"] = speed, workers
                print(
                    f"{name:14} {stage:9} {speed:7.1f} crops/s a core; a GPU takes {needs[stage]:.0f}/s (predicted): "
                    f"loader_workers={workers}, {GPUS * workers} cores for {GPUS} GPUs",
                    flush=True,
                )
        print(json.dumps({name: round(value, 2) for name, value in result.items()}))
    finally:
        shutil.rmtree(folder)


def write_coarse(dataset: datasets.Dataset, out: Path) -> None:
    """Simulated coarse maps of the training images, as the coarse stage writes them."""
    from idgbr.coarse import stage
    from idgbr.config import CoarseConfig

    out.mkdir()
    stage.write(dataclasses.replace(CoarseConfig(), source="simulated"), dataset, {}, seed=0, out=out)


if __name__ == "__main__":
    main()
