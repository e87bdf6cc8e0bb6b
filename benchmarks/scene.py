"""Memory and time of refining a large scene in strips, against holding the scene in memory.

    python benchmarks/scene.py                 2048 and 4096 px: peak memory of both ways, seconds
    python benchmarks/scene.py --side 20000    the large one, in strips only (some minutes)

A synthetic three-band scene with a handful of buildings; the small refiner (default settings, random weights) with `reach_px`, so that only
tiles near a building's border are computed. Each way runs in a process of its own; the peak is that process's maximum resident set.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BUILDINGS = 6
STEPS = 1


def make(folder: Path, side: int) -> None:
    """scene.tif (three bands, tiled, deflate) and coarse.tif, written in strips."""
    from affine import Affine
    from rasterio.crs import CRS

    from idgbr.rasters.read import Grid, RasterWriter

    grid = Grid(side, side, Affine(0.1, 0, 400000, 0, -0.1, 5000000), CRS.from_epsg(32633))
    rng = np.random.default_rng(0)
    corners = rng.integers(40, side - 200, (BUILDINGS, 2))
    texture = (np.arange(side) % 23).astype(np.uint8)
    with RasterWriter(folder / "scene.tif", grid, 3) as scene, RasterWriter(folder / "coarse.tif", grid, nodata=255) as coarse:
        for row in range(0, side, 512):
            n = min(512, side - row)
            truth, guess = np.zeros((n, side), np.uint8), np.zeros((n, side), np.uint8)
            for y, x in corners:
                for target, shift in ((truth, 0), (guess, 3)):
                    top, bottom = max(y + shift - row, 0), max(y + 120 - row, 0)
                    target[top:bottom, x + shift : x + 150] = 1
            image = truth * np.uint8(120) + texture + (np.arange(row, row + n) % 31).astype(np.uint8)[:, None]
            scene.write(row, np.stack([image, image // 2, 200 - image]))
            coarse.write(row, guess)


def refiner() -> tuple[Any, Any]:
    import torch

    from idgbr.config import RefinerConfig
    from idgbr.datasets import BandStats
    from idgbr.labels import ClassTable, LabelClass
    from idgbr.refiner.refiner import Refiner

    torch.manual_seed(0)
    table = ClassTable((LabelClass("background", (0,), (40, 40, 40)), LabelClass("building", (1,), (255, 80, 40))))
    network = Refiner.build(RefinerConfig(), 3, table, BandStats((80.0,) * 3, (40.0,) * 3, (0.0,) * 3, (255.0,) * 3)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # a fresh guidance network has no effect
    return network, table


def in_strips(folder: Path) -> Any:
    from idgbr.config import SamplerConfig
    from idgbr.scene.geotiff import SceneRequest, refine_scene
    from idgbr.scene.model import Model
    from idgbr.scene.tiles import TorchTiles

    network, table = refiner()
    sampler = SamplerConfig(tile_px=256, overlap_px=64, steps=STEPS, reach_px=12, batch_tiles=4)
    model = Model("benchmark", TorchTiles(network), table, (1, 2, 3), sampler)
    tally, _ = refine_scene(
        model, sampler, SceneRequest(folder / "scene.tif", folder / "coarse.tif", folder / "strips.tif", confidence=True)
    )
    return tally


def in_memory(folder: Path) -> Any:
    """The plain way: everything read, every sum kept for the whole scene. The same tiles are computed."""
    from idgbr.config import SamplerConfig
    from idgbr.rasters.coarse_map import CoarseMap
    from idgbr.rasters.edges import changeable
    from idgbr.rasters.read import Reader, write_class_map
    from idgbr.rasters.tiling import hann, tile_seed, windows
    from idgbr.scene.strips import Tally
    from idgbr.scene.tiles import TorchTiles

    network, table = refiner()
    tiles, sampler = TorchTiles(network), SamplerConfig(tile_px=256, overlap_px=64, steps=STEPS, reach_px=12)
    reader = Reader(folder / "scene.tif")
    side = reader.grid.height
    image, valid = reader.read(0, 0, side, side)
    strip = CoarseMap(folder / "coarse.tif", table).strip(0, side)
    coarse, may = strip.probabilities(0, 0, side, side), changeable(strip.index, None, 12, 0)
    total, weight, line = np.zeros((2, side, side), np.float32), np.zeros((side, side), np.float32), hann(256, 64)
    tally = Tally()
    for w in windows(side, side, 256, 64):
        part = np.s_[w.row : w.row + 256, w.col : w.col + 256]
        tally.tiles += 1
        if may[part].any():
            tally.computed += 1
            condition = tiles.condition(image[(None, slice(None), *part)], coarse[(None, slice(None), *part)], valid[(None, *part)])
            total[(slice(None), *part)] += line * tiles.draw(condition, [tile_seed(0, "scene", w.row, w.col)], sampler)[0, 0]
            weight[part] += line
    index = np.where(may, (total / np.where(weight > 0, weight, 1)).argmax(axis=0), strip.index).astype(np.uint8)
    tally.changed = int((index != strip.index).sum())
    write_class_map(folder / "memory.tif", index, reader.grid, table, cog=True)
    return tally


def same(one: Path, other: Path) -> bool:
    from idgbr.rasters.read import Reader

    return all(
        (a == b).all()
        for a, b in zip(*(Reader(p, ()).read(0, 0, Reader(p, ()).grid.height, Reader(p, ()).grid.width) for p in (one, other)), strict=True)
    )


def measured(way: str, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--way", way, "--folder", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=("strips", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        import torch

        torch.set_num_threads(given.threads)
        tally = (in_strips if given.way == "strips" else in_memory)(given.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        print(json.dumps({"peak_mb": round(peak), "tiles": tally.tiles, "computed": tally.computed, "changed_px": tally.changed}))
        return
    results: dict[str, Any] = {"benchmark": "scene", "steps": STEPS, "scenes": []}
    for side in given.side:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, side)
            row: dict[str, Any] = {"side": side, "strips": measured("strips", folder)}
            if side <= 8192:
                row["memory"] = measured("memory", folder)
                row["memory_ratio"] = round(row["memory"]["peak_mb"] / row["strips"]["peak_mb"], 2)
                row["same_pixels"] = same(folder / "strips.tif", folder / "memory.tif")
            results["scenes"].append(row)
            print(f"{side} px: {row}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
