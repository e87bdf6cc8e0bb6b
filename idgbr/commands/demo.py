"""`idgbr demo`: both stages on the CPU, without Ray; scores of the coarse, one-pass and refined maps, a picture, and
the lines that refine a scene of the user's own.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from idgbr import datasets, stages
from idgbr.config import Experiment
from idgbr.files import write_bytes
from idgbr.progress import Progress
from idgbr.recipes import experiment as experiment_of
from idgbr.scores.read import evaluate
from idgbr.store import Store

SHOWN = ("miou", "boundary_iou", "boundary_f", "wfm_edge")
KINDS = {"none": "coarse", "one_pass": "one_pass", "diffusion": "refined"}
SHOWN_AS = {"coarse": "coarse map", "refined": "refined", "target": "drawn by hand"}
WINDOW_PX = 384  # side of the windows shown; a place smaller than this is shown whole
ZOOM = 1.25
STEP_PX = 64

Map = NDArray[np.uint8]


def demo(root: str, recipe: str = "demo", overrides: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Run a recipe on its validation places; whatever the store holds is not computed again.

    Prints the table, the picture's path and two commands; returns the scores by map.

    Raises:
        Missing: the store cannot be written. BadRequest: no such recipe or setting.
    """
    store = Store(root)
    store.check_writable()
    base = experiment_of(recipe, tuple(overrides))
    scores: dict[str, dict[str, float]] = {}
    done: dict[str, dict[str, str]] = {}
    for kind, shown in KINDS.items():
        experiment = dataclasses.replace(base, refiner=dataclasses.replace(base.refiner, kind=kind))
        done[shown] = _run(experiment, store, shown)
        counts = pl.read_parquet(store.path("counts", done[shown]["counts"]) / "counts.parquet")
        scores[shown] = {name: evaluate(counts, name).score for name in SHOWN}
    table = Table("map", *SHOWN, title=f"{base.data.source}, split {base.sampler.split}, {base.sampler.steps} steps, one seed")
    for shown, values in scores.items():
        table.add_row(shown, *(f"{values[name]:.4f}" for name in SHOWN))
    Console().print(table)
    path = Path(store.base if store.is_local else store.cache) / "demo.png"
    shown_windows = picture(base, store, done, path)
    print(f"picture: {path} ({'; '.join(shown_windows)})")
    given = shlex.join([recipe, "scene.tif", *overrides])
    model = shlex.quote(str(store.path("refiner", done["refined"]["refiner"])))
    print("\nOn a scene of your own (GeoTIFF, bands as above, pixels of 1 to 2 m); the coarse map may also come from another model:")
    print(f"  idgbr predict {given} -o coarse.tif --store {shlex.quote(root)}")
    print(f"  idgbr refine scene.tif coarse.tif -o refined.tif --model {model}")
    return scores


def _run(experiment: Experiment, store: Store, shown: str) -> dict[str, str]:
    """Make sure that every artefact of the experiment is in the store; their keys by stage."""
    keys = {}
    for job in stages.jobs(experiment):
        keys[job.stage] = job.key
        if not store.has(job.stage, job.key):
            with Progress(f"{job.stage} {job.name if job.name != job.stage else ''} {shown if job.stage == 'refiner' else ''}") as progress:
                stages.run(job, store, experiment, report=progress)
    return keys


# ---- picture ------------------------------------------------------------------------------------------------------------


def picture(experiment: Experiment, store: Store, done: dict[str, dict[str, str]], path: Path) -> list[str]:
    """PNG of two windows, coarse, refined and true boundaries drawn over the image: where the refiner corrects most,
    and a typical one.

    The typical window is the median by gain (pixels corrected minus pixels spoilt) of those that hold a boundary.

    Args:
        done: keys of the artefacts by map ("coarse", "refined") and stage.

    Returns:
        What each row shows, in words.
    """
    from idgbr.rasters.read import read_labels

    dataset = datasets.load(store.path("data", done["refined"]["data"]), experiment.data)
    folders = {name: store.path("refined", done[name]["refined"]) for name in ("coarse", "refined")}
    windows: list[tuple[int, str, int, int]] = []
    maps: dict[str, dict[str, Map]] = {}
    for raster in dataset.of(experiment.sampler.split):
        if raster.label is None:
            continue
        target = read_labels(raster.label, dataset.table)
        maps[raster.id] = {name: read_labels(folder / f"{raster.id}.tif", dataset.table) for name, folder in folders.items()} | {
            "target": target
        }
        windows += [(gain, raster.id, row, col) for gain, row, col in _gains(maps[raster.id])]
    windows.sort()
    rasters = {r.id: r for r in dataset.rasters}
    rows, lines = [], []
    for name, (gain, key, row, col) in (("largest gain", windows[-1]), ("median gain", windows[len(windows) // 2])):
        image, _ = rasters[key].reader(dataset.bands).read(row, col, WINDOW_PX, WINDOW_PX)
        cut = {kind: index[row : row + WINDOW_PX, col : col + WINDOW_PX] for kind, index in maps[key].items()}
        rows.append((image, cut))
        lines.append(f"{name}: {key} at row {row}, column {col}, {gain:+d} px")
    write_bytes(path, _panels(rows, dataset.stats.low, dataset.stats.high))
    return lines


def _gains(maps: dict[str, Map]) -> list[tuple[int, int, int]]:
    """(gain, row, column) of the windows with a boundary of the target: pixels corrected minus pixels spoilt."""
    from idgbr.labels import IGNORE
    from idgbr.rasters.edges import label_edges

    coarse, refined, target = maps["coarse"], maps["refined"], maps["target"]
    known = target != IGNORE
    gain = ((refined == target) & known).astype(np.int32) - ((coarse == target) & known)
    edges = label_edges(target)
    height, width = target.shape
    found = []
    for row in range(0, max(height - WINDOW_PX, 0) + 1, STEP_PX):
        for col in range(0, max(width - WINDOW_PX, 0) + 1, STEP_PX):
            part = (slice(row, row + WINDOW_PX), slice(col, col + WINDOW_PX))
            if edges[part].any():
                found.append((int(gain[part].sum()), row, col))
    return found


def _panels(rows: Sequence[tuple[NDArray[np.float32], dict[str, Map]]], low: Sequence[float], high: Sequence[float]) -> bytes:
    """PNG bytes: a row of panels a window, one panel a map, its boundary drawn over the image."""
    import cv2
    from PIL import Image, ImageDraw, ImageFont

    side, band, gap = round(WINDOW_PX * ZOOM), 30, 6
    canvas = Image.new("RGB", (len(SHOWN_AS) * (side + gap) - gap, band + len(rows) * (side + gap) - gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(SHOWN_AS.values()):
        draw.text((i * (side + gap) + 4, 4), title, fill="black", font=ImageFont.load_default(18))
    scale = np.array(low, np.float32).reshape(-1, 1, 1), np.array(high, np.float32).reshape(-1, 1, 1)
    for y, (image, maps) in enumerate(rows):
        grey = np.clip((image - scale[0]) / np.maximum(scale[1] - scale[0], 1e-6), 0, 1)[[0, min(1, len(image) - 1), len(image) - 1]]
        rgb = cv2.resize(
            np.ascontiguousarray((grey * 255).astype(np.uint8).transpose(1, 2, 0)), (side, side), interpolation=cv2.INTER_CUBIC
        )
        for x, kind in enumerate(SHOWN_AS):
            panel = rgb.copy()
            large = cv2.resize(maps[kind], (side, side), interpolation=cv2.INTER_NEAREST)
            for value in np.unique(large)[1:]:
                outline, _ = cv2.findContours((large == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(panel, outline, -1, (0, 0, 0), 4)
                cv2.drawContours(panel, outline, -1, (255, 230, 0), 2)
            canvas.paste(Image.fromarray(panel), (x * (side + gap), band + y * (side + gap)))
    data = io.BytesIO()
    canvas.save(data, "PNG")
    return data.getvalue()
