"""Synthetic aerial scenes with known truth: the embedded default.

Plots of a village on a rotated lattice: rectangular and L-shaped roofs with ridges, chimneys and cast shadows; roads
with cars; ploughed fields, yards and bare ground in colours that roofs have too; trees, some over the eaves; broad
and fine texture, sensor blur and noise; another light, palette and direction in every scene. Every object is drawn
from its signed distance `d` (in px, negative inside): pixels are mixed by the area it covers, about clip(1/2 - d, 0,
1), and labelled where the pixel's centre is inside (d < 0). So the label has no grey rims, and the image carries the
evidence for every border to a fraction of a pixel (the lens blur has sigma 0.6 px).

Deterministic in (layout_seed, scene number, side): numpy's Philox, nothing from the clock.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.config import DataConfig
from idgbr.datasets.layout import Entry, Layout
from idgbr.interfaces import Report
from idgbr.labels import ClassTable, LabelClass

VERSION = 1  # raised when the scenes change, so that their keys do
GSD_M = 0.3
Floats = NDArray[np.float32]

TABLE2 = ClassTable((LabelClass("background", (0,), (40, 40, 40)), LabelClass("building", (1,), (255, 90, 40))))
TABLE4 = ClassTable((*TABLE2.classes, LabelClass("road", (2,), (240, 220, 90)), LabelClass("field", (3,), (90, 170, 80))))
TABLE3 = ClassTable(TABLE4.classes[:3])
_BUILDING, _ROAD, _FIELD = 1, 2, 3

# RGB digital numbers before light and palette shift; roofs share tiles' reds with ploughed soil, greys with roads and
# yards
_ROOFS = np.array(
    [(150, 84, 66), (128, 92, 72), (112, 110, 108), (156, 150, 142), (92, 88, 90), (176, 168, 150), (120, 122, 104)], np.float32
)
_FIELDS = np.array([(150, 112, 84), (126, 96, 72), (112, 120, 76), (146, 138, 94), (94, 110, 66), (138, 92, 72)], np.float32)
_YARDS = np.array([(150, 144, 134), (128, 122, 114), (146, 112, 88), (108, 106, 104)], np.float32)
_GRASS = np.array([(96, 108, 66), (112, 112, 74), (128, 116, 84)], np.float32)


def table(n_classes: int) -> ClassTable:
    """The class table of the synthetic scenes with 2, 3 or 4 classes."""
    return {2: TABLE2, 3: TABLE3, 4: TABLE4}[n_classes]


def scene(seed: int, number: int, side_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: image [3,H,W] uint8 and label [H,W] uint8 (0 background, 1 building, 2 road, 3 field), H = W =
    side_px, 0.3 m a pixel."""
    canvas = _Canvas(np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number]))), side_px)
    canvas.draw_plots()
    canvas.draw_trees(int(side_px * side_px / 5200))
    return canvas.developed(), canvas.label


class _Canvas:
    def __init__(self, rng: np.random.Generator, side: int):
        self.rng, self.side = rng, side
        angle = rng.uniform(0, np.pi / 2)
        self.axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)  # rows: u, v in (x, y)
        sun = rng.uniform(0, 2 * np.pi)
        self.sun = np.array([np.cos(sun), np.sin(sun)], np.float32)  # where shadows fall to, in (x, y)
        self.shadow_px = rng.uniform(5, 12)
        self.label = np.zeros((side, side), np.uint8)
        grass = _GRASS[rng.integers(len(_GRASS))] + rng.normal(0, 6, 3).astype(np.float32)
        broad = self.noise(64, 2)
        self.image = grass + broad[..., None] * np.array([16, 12, 10], np.float32) + self.noise(9, 2)[..., None] * 6
        self.light = np.ones((side, side), np.float32)

    def noise(self, cell_px: int, octaves: int) -> Floats:
        """Smooth noise [side, side] of unit scale, the first octave with cells of `cell_px`."""
        out = np.zeros((self.side, self.side), np.float32)
        for octave in range(octaves):
            n = max(2, int(np.ceil(self.side / (cell_px / 2**octave))) + 2)
            grid = self.rng.standard_normal((n, n), np.float32)
            out += cv2.resize(grid, (self.side, self.side), interpolation=cv2.INTER_CUBIC) / 2**octave
        return out

    # ---- geometry ----------------------------------------------------------------------------------------------------

    def box(self, center: NDArray[np.floating], reach: float) -> tuple[slice, slice] | None:
        """The part of the canvas within `reach` px of `center` (x, y), or None."""
        x0, y0 = np.floor(center - reach).astype(int)
        x1, y1 = np.ceil(center + reach).astype(int) + 1
        rows, cols = slice(max(y0, 0), min(y1, self.side)), slice(max(x0, 0), min(x1, self.side))
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None

    def local(self, at: tuple[slice, slice], center: NDArray[np.floating], axes: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Coordinates (u, v) of the pixel centres of a box, in the frame `axes` about `center`."""
        x = np.arange(at[1].start, at[1].stop, dtype=np.float32)[None, :] + 0.5 - center[0]
        y = np.arange(at[0].start, at[0].stop, dtype=np.float32)[:, None] + 0.5 - center[1]
        return axes[0, 0] * x + axes[0, 1] * y, axes[1, 0] * x + axes[1, 1] * y

    def paint(self, at: tuple[slice, slice], distance: Floats, color: NDArray[np.floating], code: int | None, opacity: float = 1.0) -> None:
        cover = np.clip(0.5 - distance, 0, 1)[..., None] * np.float32(opacity)
        self.image[at] += cover * (color - self.image[at])
        if code is not None:
            self.label[at][distance < 0] = code

    # ---- objects -----------------------------------------------------------------------------------------------------

    def draw_plots(self) -> None:
        """Macro cells of a lattice: roads between them, inside a village, a field or open ground."""
        rng = self.rng
        pitch = np.array([rng.uniform(150, 210), rng.uniform(105, 140)], np.float32)
        road_px = rng.uniform(12, 20)
        origin = np.array([self.side / 2, self.side / 2], np.float32) + rng.uniform(-30, 30, 2).astype(np.float32)
        n = int(np.ceil(self.side * 0.75 / pitch.min())) + 1
        cells = [(i, j) for i in range(-n, n + 1) for j in range(-n, n + 1)]
        kinds = {
            cell: ("village" if cell == (0, 0) else str(rng.choice(["village", "field", "open"], p=[0.58, 0.27, 0.15]))) for cell in cells
        }
        for (i, j), kind in kinds.items():
            if kind == "field":
                self.field(origin + self.axes.T @ (pitch * (i, j)).astype(np.float32), (pitch - road_px) / 2 - rng.uniform(2, 12))
        self.roads(origin, pitch, road_px, n)
        for (i, j), kind in kinds.items():
            if kind == "village":
                self.village(origin + self.axes.T @ (pitch * (i, j)).astype(np.float32), pitch - road_px)

    def field(self, center: NDArray[np.floating], half: NDArray[np.floating]) -> None:
        at = self.box(center, float(np.hypot(*half)) + 2)
        if at is None:
            return
        u, v = self.local(at, center, self.axes)
        color = _FIELDS[self.rng.integers(len(_FIELDS))] + self.rng.normal(0, 8, 3).astype(np.float32)
        rows = np.sin((u if self.rng.random() < 0.5 else v) * np.float32(2 * np.pi / self.rng.uniform(3.5, 9))) * self.rng.uniform(2, 8)
        self.paint(at, _rectangle(u, v, half), color + rows[..., None] + self.noise_like(at, 5)[..., None], _FIELD)

    def roads(self, origin: NDArray[np.floating], pitch: NDArray[np.floating], width: float, n: int) -> None:
        at = (slice(0, self.side), slice(0, self.side))
        u, v = self.local(at, origin, self.axes)
        u += np.float32(self.rng.uniform(0, 9)) * np.sin(v / np.float32(self.rng.uniform(50, 110)))
        distance = np.minimum(_lines(u, float(pitch[0])), _lines(v, float(pitch[1]))) - np.float32(width / 2)
        grey = self.rng.uniform(92, 132)
        color = np.array([grey, grey - 2, grey - 4], np.float32)
        verge = color * 0.5 + np.array([70, 60, 42], np.float32)
        self.paint(at, distance - np.float32(self.rng.uniform(0, 4)), verge, None, 0.6)
        self.paint(at, distance, color + self.noise_like(at, 3)[..., None], _ROAD)
        for _ in range(int(self.side**2 / 9000) + 1):  # cars
            row, col = self.rng.integers(0, self.side, 2)
            if distance[row, col] < -3:
                self.car(np.array([col, row], np.float32))

    def car(self, center: NDArray[np.floating]) -> None:
        at = self.box(center, 10)
        if at is None:
            return
        u, v = self.local(at, center, self.axes)
        half = np.array([7.5, 3.2], np.float32) if self.rng.random() < 0.5 else np.array([3.2, 7.5], np.float32)
        self.paint(at, _rectangle(u, v, half), self.rng.choice(np.array([(225, 225, 222), (60, 62, 70), (160, 50, 45)], np.float32)), None)

    def village(self, center: NDArray[np.floating], size: NDArray[np.floating]) -> None:
        rng = self.rng
        columns = max(1, round(float(size[0]) / 62))
        places = np.stack(np.meshgrid((np.arange(columns) + 0.5) / columns - 0.5, (-0.25, 0.25), indexing="ij"), -1).reshape(-1, 2)
        plot = np.array([size[0] / columns, size[1] / 2], np.float32)
        for place in places:
            middle = center + self.axes.T @ (place * size + rng.uniform(-4, 4, 2)).astype(np.float32)
            half = np.minimum(plot / 2 - 4, np.array([rng.uniform(13, 27), rng.uniform(11, 21)], np.float32))
            roof = _ROOFS[rng.integers(len(_ROOFS))] + rng.normal(0, 8, 3).astype(np.float32)
            if rng.random() < 0.16:  # a slab without a house: flat, no shadow, in a roof's colour
                self.yard(middle, half * np.float32(0.8), roof)
                continue
            if rng.random() < 0.65:  # a third of the yards look much like the roof they lie beside
                yard = roof if rng.random() < 0.35 else _YARDS[rng.integers(len(_YARDS))]
                self.yard(middle, plot / 2 * rng.uniform(0.7, 0.98, 2).astype(np.float32), yard + rng.normal(0, 9, 3).astype(np.float32))
            self.building(middle, np.maximum(half, 8).astype(np.float32), roof)

    def yard(self, center: NDArray[np.floating], half: NDArray[np.floating], color: NDArray[np.floating]) -> None:
        at = self.box(center, float(np.hypot(*half)) + 2)
        if at is None:
            return
        u, v = self.local(at, center, self.axes)
        self.paint(at, _rectangle(u, v, half), color + self.noise_like(at, 4)[..., None], None, self.rng.uniform(0.5, 0.95))

    def building(self, center: NDArray[np.floating], half: NDArray[np.floating], color: NDArray[np.floating]) -> None:
        """A roof with its shadow: rectangle or L, flat or gabled, a few degrees off the lattice."""
        rng = self.rng
        at = self.box(center, float(np.hypot(*half)) + self.shadow_px + 3)
        turn, height_px = rng.normal(0, 0.06), self.shadow_px * rng.uniform(0.6, 1.3)
        is_l, cut = rng.random() < 0.45, half * rng.uniform(0.55, 1.15, 2).astype(np.float32) * rng.choice([-1, 1], 2).astype(np.float32)
        slope, speckle, chimneys = rng.choice([0.0, 1.0]) * rng.uniform(0.06, 0.2), rng.uniform(2, 5), rng.integers(0, 3)
        spots = rng.uniform(-0.6, 0.6, (2, 2)).astype(np.float32)
        if at is None:
            return
        turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], np.float32) @ self.axes
        u, v = self.local(at, center, turned)

        def footprint(u: Floats, v: Floats) -> Floats:
            whole = _rectangle(u, v, half)
            if not is_l:
                return whole
            corner = np.sign(cut) * half - cut / 2
            return np.maximum(whole, -_rectangle(u - corner[0], v - corner[1], np.abs(cut) / 2))

        roof = footprint(u, v)
        shift = turned @ self.sun
        shadow = roof
        for t in np.linspace(0, height_px, max(2, int(height_px / 1.5)))[1:].astype(np.float32):  # the roof swept along the light
            shadow = np.minimum(shadow, footprint(u - t * shift[0], v - t * shift[1]))
        self.image[at] *= (1 - 0.55 * np.clip(0.5 - shadow, 0, 1))[..., None]
        lit = np.float32(slope) * np.sign(v if half[0] >= half[1] else u) * np.sign(shift[1] if half[0] >= half[1] else shift[0])
        texture = self.noise_like(at, float(speckle))
        self.paint(at, roof, color * (1 - lit)[..., None] + texture[..., None], _BUILDING)
        for spot in spots[:chimneys]:
            inner = np.maximum(_rectangle(u - spot[0] * half[0], v - spot[1] * half[1], np.array([2.2, 1.8], np.float32)), roof)
            self.paint(at, inner, color * np.float32(0.6 if rng.random() < 0.6 else 1.3), None)

    def noise_like(self, at: tuple[slice, slice], scale: float) -> Floats:
        shape = (at[0].stop - at[0].start, at[1].stop - at[1].start)
        return self.rng.standard_normal(shape, np.float32) * np.float32(scale)

    def draw_trees(self, n: int) -> None:
        """Irregular crowns with shadows. What a crown hides is background in the label: the label is true to the
        image."""
        rng = self.rng
        for _ in range(n):
            center = rng.uniform(0, self.side, 2).astype(np.float32)
            radius, phase = np.float32(rng.uniform(4, 13)), rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
            row, col = min(int(center[1]), self.side - 1), min(int(center[0]), self.side - 1)
            crowded = self.label[row, col] == _ROAD or (self.label[row, col] == _BUILDING and rng.random() < 0.85)
            at = self.box(center, float(radius) * 1.4 + self.shadow_px)
            if crowded or at is None:
                continue
            u, v = self.local(at, center, np.eye(2, dtype=np.float32))

            def crown(u: Floats, v: Floats, radius: np.float32 = radius, phase: Floats = phase) -> Floats:
                angle = np.arctan2(v, u)
                edge = 1 + 0.12 * np.sin(3 * angle + phase[0]) + 0.09 * np.sin(5 * angle + phase[1]) + 0.06 * np.sin(9 * angle + phase[2])
                return np.asarray(np.hypot(u, v) - radius * edge, np.float32)

            reach = np.float32(0.6 * self.shadow_px)
            self.image[at] *= (1 - 0.4 * np.clip(0.5 - crown(u - reach * self.sun[0], v - reach * self.sun[1]), 0, 1))[..., None]
            round_light = 1 - 0.25 * (u * self.sun[0] + v * self.sun[1]) / radius
            color = np.array([62, 82, 44], np.float32) * np.float32(rng.uniform(0.75, 1.25))
            self.paint(at, crown(u, v), color * round_light[..., None] + self.noise_like(at, 7)[..., None], 0)

    def developed(self) -> NDArray[np.uint8]:
        """The camera: a palette shift, broad haze, lens blur, noise, 8 bits. [3,H,W]."""
        rng = self.rng
        light = np.float32(rng.uniform(0.82, 1.2)) * (1 + 0.04 * self.noise(96, 1))
        image = self.image * light[..., None] * rng.normal(1, 0.05, 3).astype(np.float32) + rng.normal(0, 6, 3).astype(np.float32)
        image += self.noise(5, 2)[..., None] * 2.5
        image = cv2.GaussianBlur(image, (0, 0), 0.6)
        image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2.5, 5.0))
        return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(2, 0, 1))


def _rectangle(u: Floats, v: Floats, half: NDArray[np.floating]) -> Floats:
    """Signed distance of (u, v) to an axis-parallel rectangle about 0 with half sides `half` (exact inside and beside
    the sides)."""
    return np.maximum(np.abs(u) - half[0], np.abs(v) - half[1]).astype(np.float32)


def _lines(u: Floats, pitch: float) -> Floats:
    """Distance to the nearest of the lines half-way between multiples of `pitch`."""
    return np.abs(np.mod(u, np.float32(pitch)) - np.float32(pitch / 2))


# ---- as a data set ------------------------------------------------------------------------------------------------------


def _numbered(config: DataConfig) -> list[tuple[str, int]]:
    counts = [("train", config.train_scenes), ("val", config.val_scenes), ("test", config.test_scenes)]
    splits = [split for split, count in counts for _ in range(count)]
    return [(split, number) for number, split in enumerate(splits)]


def write(config: DataConfig, folder: Path, report: Report | None = None) -> list[Entry]:
    """Write all scenes as GeoTIFFs (0.3 m, UTM) into `folder`; returns what a layout reader would find there."""
    import rasterio
    from rasterio.transform import from_origin

    classes = table(config.n_classes)
    entries = []
    for split, number in _numbered(config):
        image, label = scene(config.layout_seed, number, config.scene_px)
        label[label >= config.n_classes] = 0
        name = f"{split}_{number:04d}"
        entry = Entry(name, name, split, folder / f"{name}.tif", folder / f"{name}_label.tif", gsd_m=GSD_M)
        transform = from_origin(400_000 + 2 * number * config.scene_px * GSD_M, 5_800_000, GSD_M, GSD_M)
        shape = {
            "driver": "GTiff",
            "height": config.scene_px,
            "width": config.scene_px,
            "dtype": "uint8",
            "crs": "EPSG:32633",
            "transform": transform,
            "compress": "deflate",
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
        }
        with rasterio.open(entry.image, "w", **shape, count=3, photometric="RGB", interleave="pixel") as file:
            file.write(image)
        assert entry.label is not None
        with rasterio.open(entry.label, "w", **shape, count=1) as file:
            file.write(label, 1)
            file.write_colormap(1, dict(enumerate(classes.colors)))
        entries.append(entry)
        if report is not None:
            report(stage="data", done=number + 1, total=len(_numbered(config)), making="scenes")
    return entries


LAYOUT = Layout(name="synthetic", title="synthetic scenes, 0.3 m", table=TABLE2, expected="nothing: the scenes are made", find=None)
