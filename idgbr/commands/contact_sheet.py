"""The contact sheet of `idgbr prepare --sheet`: a few rasters of every split as image, label edges on the image, and
label."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idgbr.labels import IGNORE

if TYPE_CHECKING:
    from idgbr.datasets import Dataset, Raster

CELL_PX = 224  # side of a picture on the sheet
CROP_PX = 448  # what it shows: the middle of the raster, every second pixel
PER_SPLIT = 8
LINE = (255, 0, 255)  # label edges: a colour that hardly occurs on the ground
Picture = NDArray[np.uint8]


def write_sheet(dataset: Dataset, path: Path) -> None:
    """PNG of the middle of up to 8 rasters of every split, with ids, the best shift of the label, and a legend.

    Raises:
        Missing: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    from idgbr.datasets.checks import spread
    from idgbr.files import write_bytes

    splits = {split: [r for r in dataset.rasters if r.split == split] for split in ("train", "val", "test")}
    chosen = {split: spread(rasters, PER_SPLIT) for split, rasters in splits.items() if rasters}
    columns = max(3, max(len(rasters) for rasters in chosen.values()))
    line, gap = 14, 4
    block = 2 * line + 3 * CELL_PX + gap
    canvas = Image.new("RGB", (columns * (CELL_PX + gap) + gap, block * len(chosen) + 24), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for split, rasters in chosen.items():
        draw.text((gap, top + 1), f"{split}: {len(rasters)} of {len(splits[split])} rasters; lines: label edges on the image", fill="black")
        for i, raster in enumerate(rasters):
            left = gap + i * (CELL_PX + gap)
            pictures, caption = _pictures(dataset, raster)
            draw.text((left, top + line + 1), _shortened(draw, f"{raster.id} {caption}", CELL_PX), fill="black")
            for j, picture in enumerate(pictures):
                canvas.paste(Image.fromarray(picture), (left, top + 2 * line + j * CELL_PX))
        top += block
    left = gap
    for name, color in [*zip(dataset.table.names, dataset.table.colors), ("ignored", (128, 128, 128))]:
        draw.rectangle((left, top + 4, left + 12, top + 16), fill=color, outline="black")
        name = _shortened(draw, name, CELL_PX)
        draw.text((left + 16, top + 4), name, fill="black")
        left += 28 + int(draw.textlength(name))
    data = io.BytesIO()
    canvas.save(data, "PNG")
    write_bytes(path, data.getvalue())


def _shortened(draw: object, text: str, width: int) -> str:
    text = " ".join(text.split())
    while draw.textlength(text) > width and len(text) > 4:  # type: ignore[attr-defined]
        text = text[:-4] + "..."
    return text


def _pictures(dataset: Dataset, raster: Raster) -> tuple[list[Picture], str]:
    """[image], or [image, image with label edges, label colours], each [CELL_PX, CELL_PX, 3]; and a caption.

    The image is the first three bands read, stretched between the 1st and 99th percentile of the training rasters.
    """
    import cv2

    from idgbr.datasets.checks import edge_shift
    from idgbr.rasters.read import read_labels

    side = min(CROP_PX, max(raster.height, raster.width))
    row, col = (max(0, (length - side) // 2) for length in (raster.height, raster.width))
    raw, valid = raster.reader(dataset.bands).read(row, col, side, side)
    bands = [0, 1, 2] if len(raw) >= 3 else [0, 0, 0]
    low, high = (np.array(v, np.float32)[bands] for v in (dataset.stats.low, dataset.stats.high))
    shown = np.clip((raw[bands].transpose(1, 2, 0) - low) / np.maximum(high - low, 1e-6), 0, 1)
    shown[~valid] = 1
    image = np.asarray(cv2.resize((shown * 255).astype(np.uint8), (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA), np.uint8)
    if raster.label is None:
        return [image], "(no label)"
    label = read_labels(raster.label, dataset.table, row, col, side, side)
    label[~valid] = IGNORE
    shift = edge_shift(raw, label, dataset.table.n_classes)
    small = np.asarray(cv2.resize(label, (CELL_PX, CELL_PX), interpolation=cv2.INTER_NEAREST), np.uint8)
    outlined = image.copy()
    outlined[:, :-1][small[:, :-1] != small[:, 1:]] = LINE  # of the two pixels at an edge, the left or upper one: thin lines
    outlined[:-1][small[:-1] != small[1:]] = LINE
    caption = "" if shift is None or not shift.clear else f"best at {shift.right:+d},{shift.down:+d} px"
    return [image, outlined, dataset.table.colorize(small)], caption
