"""Training samples: crops of scenes, augmented exactly. The i-th image ever seen is a pure function of (seed, i), on
any number of workers.

numpy only at import; torch when a sample is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from idgbr.coarse.simulate import fresh
from idgbr.datasets.index import BandStats, Dataset, Raster
from idgbr.errors import BadRequest
from idgbr.labels import IGNORE
from idgbr.rasters.edges import label_edges
from idgbr.training.held_out import held_out_blocks, hide

if TYPE_CHECKING:
    import torch

CACHE_BYTES = 1 << 30  # rasters of all together less than this are kept decoded, in every process that reads them
REDRAWS = 8  # rasters tried for a crop on a boundary
BOUNDARY_POINTS = 1_000_000  # kept for one raster; thinned regularly above
NEAR_PX = 8  # a crop on a boundary is centred within this many pixels of one

Floats = NDArray[np.float32]


def sample_seed(seed: int, i: int) -> int:
    """Seed of the i-th sample: 63 bits of numpy's SeedSequence over (seed, i). Neighbouring seeds and indices are
    unrelated."""
    return int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] >> np.uint64(1))


Element = TypeVar("Element", bound=np.generic)


class _Pixels(NamedTuple):
    """A raster decoded: image [C,H,W] in the smallest type that holds it, valid [H,W], label [H,W]."""

    image: NDArray[np.generic]
    valid: NDArray[np.bool_]
    label: NDArray[np.uint8]


class TrainSamples:
    """A map-style data set for `torch.utils.data.DataLoader`; may be pickled to spawned workers, which open files for
    themselves.

    Sample i: a raster with probability proportional to its area; a crop, uniform over all positions, or (with
    probability `boundary_share`) centred within 8 px of a boundary of the target or, with `coarse_dir`, of the coarse
    map; one of the 8 symmetries of the square; light, contrast, gamma and noise per band. Rasters smaller than the
    crop are padded: the nearest edge pixel, invalid, ignored. A raster without a boundary is drawn again up to 8
    times, then a uniform crop is taken.

    Windows of JPEG, PNG and striped files decode much more than the window; so where all rasters together take less
    than 1 GiB decoded, each process keeps them in memory from first use. Larger sets are read window by window: tiled
    GeoTIFFs are fast, large others slow (`idgbr prepare` names them, with the command that tiles them).

    Args:
        rasters: with labels, usually a part of `dataset.of("train")`.
        crop_px: side of a crop.
        seed: of the order, the crops and the augmentation.
        coarse_dir: folder of coarse maps as written by stage "coarse"; adds `coarse` to the samples.
        augment: False: no symmetry and no radiometry (the crop is still random).
        held_out: share of blocks of ground whose labels are hidden (`held_out.py`).
        temperature_spread: coarse probabilities p become p^(1/T), T = exp(N(0, spread)) a crop: how sure a map is
            differs between maps.
        fresh_coarse: share of samples whose coarse map is simulated anew from the target of the crop. fresh_iou: lowest
            and highest IoU of these maps.

    Raises:
        BadRequest: no rasters, or one without a label.
    """

    def __init__(
        self,
        dataset: Dataset,
        rasters: Sequence[Raster],
        crop_px: int,
        seed: int,
        coarse_dir: Path | None = None,
        boundary_share: float = 0.0,
        augment: bool = True,
        held_out: float = 0.0,
        temperature_spread: float = 0.0,
        fresh_coarse: float = 0.0,
        fresh_iou: tuple[float, ...] = (0.5, 0.95),
    ):
        if not rasters:
            raise BadRequest("no rasters to train on", hint="a split table with rasters in split 'train'")
        bare = [r.id for r in rasters if r.label is None]
        if bare:
            raise BadRequest("rasters without labels cannot be trained on", value=", ".join(bare[:5]))
        self.table, self.stats, self.bands = dataset.table, dataset.stats, dataset.bands
        self.rasters = tuple(rasters)
        self.crop_px, self.seed, self.boundary_share, self.augment = crop_px, seed, boundary_share, augment
        self.coarse_dir = Path(coarse_dir) if coarse_dir else None
        self.held_out, self.temperature_spread = held_out_blocks(self.rasters, held_out), temperature_spread
        self.fresh_coarse, self.fresh_iou = fresh_coarse, (min(fresh_iou), max(fresh_iou))
        areas = np.array([r.height * r.width for r in self.rasters], np.float64)
        self.cumulative = np.cumsum(areas) / areas.sum()
        # bytes a pixel: 8-bit bands (wider types are checked when read), valid, label, float32 coarse probabilities
        pixel_bytes = len(self.bands) + 2 + (4 * self.table.n_classes if self.coarse_dir else 0)
        self.cached = float(areas.sum()) * pixel_bytes <= CACHE_BYTES
        self._forget()

    def _forget(self) -> None:
        self._pixels: dict[str, _Pixels] = {}
        self._pixel_bytes = 0
        self._boundaries: dict[str, NDArray[np.int64]] = {}
        self._coarse_maps: dict[str, Floats] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": {}, "_pixel_bytes": 0, "_boundaries": {}, "_coarse_maps": {}}

    def __len__(self) -> int:
        return 1 << 40  # endless; the training loop counts images

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """image float32 [C,h,w] raw; target uint8 [h,w] (255 ignored); valid bool [h,w]; coarse float32 [K,h,w]; seed
        int64 []."""
        import torch

        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, int(i)])))
        raster, row, col = self._place(rng)
        image, valid, target = self._window(raster, row, col)
        arrays: dict[str, NDArray[Any]] = {"image": image, "target": target, "valid": valid}
        if self.coarse_dir is not None:
            if self.fresh_coarse and rng.random() < self.fresh_coarse:
                arrays["coarse"] = fresh(target, self.table.n_classes, self.fresh_iou, rng)
            else:
                arrays["coarse"] = self._coarse(raster, row, col)
            if self.temperature_spread:
                arrays["coarse"] = tempered(arrays["coarse"], float(np.exp(rng.normal(0, self.temperature_spread))))
        if self.augment:
            symmetry = int(rng.integers(8))
            arrays = {name: dihedral(array, symmetry) for name, array in arrays.items()}
            arrays["image"] = radiometric(arrays["image"], self.stats, rng)
        sample = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        sample["seed"] = torch.tensor(sample_seed(self.seed, int(i)), dtype=torch.int64)
        return sample

    # ---- where -------------------------------------------------------------------------------------------------------

    def _draw(self, rng: np.random.Generator) -> Raster:
        return self.rasters[min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.rasters) - 1)]

    def _place(self, rng: np.random.Generator) -> tuple[Raster, int, int]:
        raster = self._draw(rng)
        if self.boundary_share > 0 and rng.random() < self.boundary_share:
            for _ in range(REDRAWS):
                points = self._boundary(raster)
                if len(points):
                    row, col = divmod(int(points[rng.integers(len(points))]), raster.width)
                    row, col = (int(v) - self.crop_px // 2 + int(rng.integers(-NEAR_PX, NEAR_PX + 1)) for v in (row, col))
                    return raster, _inside(row, raster.height, self.crop_px), _inside(col, raster.width, self.crop_px)
                raster = self._draw(rng)
        row, col = (int(rng.integers(0, max(side - self.crop_px, 0) + 1)) for side in (raster.height, raster.width))
        return raster, row, col

    def _boundary(self, raster: Raster) -> NDArray[np.int64]:
        """Flat indices of the pixels beside a boundary of target or coarse map; computed once a raster and process."""
        if raster.id not in self._boundaries:
            from idgbr.rasters.read import read_labels

            assert raster.label is not None
            label = self._load(raster).label if self.cached else read_labels(raster.label, self.table)
            label = hide(label, self.held_out.get(raster.id, ()))
            edge = label_edges(label) > 0
            if self.coarse_dir is not None:
                coarse = self._load_coarse(raster).argmax(0).astype(np.uint8)
                edge |= (label_edges(coarse) > 0) & (label != IGNORE)
            points = np.flatnonzero(edge)
            self._boundaries[raster.id] = points[:: max(1, len(points) // BOUNDARY_POINTS)]
        return self._boundaries[raster.id]

    # ---- pixels ------------------------------------------------------------------------------------------------------

    def _window(self, raster: Raster, row: int, col: int) -> tuple[Floats, NDArray[np.bool_], NDArray[np.uint8]]:
        from idgbr.rasters.read import read_labels

        n = self.crop_px
        if self.cached:
            pixels = self._load(raster)
            part = (slice(row, row + n), slice(col, col + n))
            image, valid, target = pixels.image[:, *part].astype(np.float32), pixels.valid[part], pixels.label[part].copy()
            pad = ((0, n - valid.shape[0]), (0, n - valid.shape[1]))
            if pad != ((0, 0), (0, 0)):
                image = np.pad(image, ((0, 0), *pad), mode="edge")
                valid, target = np.pad(valid, pad), np.pad(target, pad, constant_values=IGNORE)
        else:
            assert raster.label is not None
            image, valid = raster.reader(self.bands).read(row, col, n, n)
            target = read_labels(raster.label, self.table, row, col, n, n)
        target[~valid] = IGNORE
        return image, valid, hide(target, self.held_out.get(raster.id, ()), row, col)

    def _load(self, raster: Raster) -> _Pixels:
        if raster.id not in self._pixels:
            from idgbr.rasters.read import read_labels

            assert raster.label is not None
            image, valid = raster.reader(self.bands).read(0, 0, raster.height, raster.width)
            pixels = _Pixels(smallest(image), valid, read_labels(raster.label, self.table))
            self._pixel_bytes += sum(a.nbytes for a in pixels)
            if self._pixel_bytes > CACHE_BYTES:  # 16-bit or float imagery after all: from now on window by window, with the same result
                self._forget()
                self.cached = False
                return pixels
            self._pixels[raster.id] = pixels
        return self._pixels[raster.id]

    def _coarse(self, raster: Raster, row: int, col: int) -> Floats:
        assert self.coarse_dir is not None
        n = self.crop_px
        if self.cached:
            coarse = self._load_coarse(raster)[:, row : row + n, col : col + n]
        else:
            from idgbr.rasters.coarse_map import read_coarse

            coarse = read_coarse(self.coarse_dir, raster.id, (row, col, min(n, raster.height - row), min(n, raster.width - col)))
        pad = ((0, 0), (0, n - coarse.shape[1]), (0, n - coarse.shape[2]))
        return np.pad(coarse, pad, mode="edge") if pad != ((0, 0),) * 3 else coarse

    def _load_coarse(self, raster: Raster) -> Floats:
        from idgbr.rasters.coarse_map import read_coarse

        assert self.coarse_dir is not None
        if not self.cached:
            return read_coarse(self.coarse_dir, raster.id)
        if raster.id not in self._coarse_maps:
            self._coarse_maps[raster.id] = read_coarse(self.coarse_dir, raster.id)
        return self._coarse_maps[raster.id]


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """p^(1/T) / sum for probabilities [K,h,w]: above 1 less sure, below 1 surer, the same classes."""
    powers = probabilities.clip(1e-6) ** np.float32(1 / temperature)
    return np.asarray(powers / powers.sum(axis=0), np.float32)


def _inside(start: int, side: int, crop: int) -> int:
    return max(0, min(start, side - crop))


def smallest(image: NDArray[np.float32]) -> NDArray[np.generic]:
    """The same numbers as uint8 or uint16 where that loses nothing, else as they are."""
    low, high = image.min(initial=0), image.max(initial=0)
    for kind in (np.uint8, np.uint16):
        if low >= 0 and high <= np.iinfo(kind).max:
            small = image.astype(kind)
            if (small == image).all():
                return small
    return image


def dihedral(array: NDArray[Element], symmetry: int) -> NDArray[Element]:
    """One of the 8 symmetries of the square on the last two axes: `symmetry` % 4 quarter turns, then a mirror for
    4..7. Exact."""
    turned = np.rot90(array, symmetry % 4, axes=(-2, -1))
    return np.flip(turned, -1) if symmetry >= 4 else turned


def radiometric(image: Floats, stats: BandStats, rng: np.random.Generator) -> Floats:
    """Another light on the same ground. Sizes are in units of each band's standard deviation on the training set
    (8-bit and 16-bit alike): brightness +-0.3 (all bands) and +-0.1 (each), contrast x exp(+-0.2), gamma exp(+-0.2)
    between the 1st and 99th percentile, noise up to 0.06.
    """
    shape = (-1, 1, 1)
    mean, std, low, high = (np.asarray(v, np.float32).reshape(shape) for v in (stats.mean, stats.std, stats.low, stats.high))
    n = len(mean)
    share = (image - low) / np.maximum(high - low, 1e-6)
    gamma = np.float32(np.exp(rng.uniform(-0.2, 0.2)))
    share = np.where((share > 0) & (share < 1), np.abs(share) ** gamma, share)  # identity outside: monotone, continuous, nothing clipped
    image = low + share * np.maximum(high - low, 1e-6)
    contrast = np.float32(np.exp(rng.uniform(-0.2, 0.2)))
    shift = (rng.uniform(-0.3, 0.3) + rng.uniform(-0.1, 0.1, n)).astype(np.float32).reshape(shape)
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.06))
    return np.asarray(mean + (image - mean) * contrast + (shift + noise) * std, np.float32)
