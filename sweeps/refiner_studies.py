"""What earns its cost in a refiner: the arms of the second design, compared on equal terms.

    python -m sweeps run refiner_screen_naip_fields       every arm, one seed
    python -m sweeps run refiner_confirm_naip_fields      the best of them, three seeds
    python -m sweeps run refiner_decisions_naip_fields    sampling alone: samples, averaging, reach

The same for `oam_buildings` and `dubai_landcover`. Test places: `backbones_test` and `backbones_elsewhere`.

The rule, fixed before any of them was run: an arm wins if its paired difference in boundary IoU over `one_pass` with
the same network is above 0 (interval over places) and its mIoU is not below the coarse map's by more than 0.2. Fair
means: the same images, crops, loss, weights and tiles for every arm, and `one_pass` and `cascade` with the same
network as the diffusion arm they stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sweeps.claim_studies import NETWORKS, SETS
from sweeps.study import Overrides, Setting, Study

Settings = dict[str, Setting]

RECIPES = {"naip_fields": "naip_fields_pretrained", "oam_buildings": "oam_buildings", "dubai_landcover": "dubai_landcover"}
STEPS = (4, 1, 2, 8)

# For all arms: a channel a class in and out, and crops of the size of a tile.
COMMON: Settings = {"refiner.class_channels": True, "refiner.crop_px": 128, "sampler.tile_px": 128, "sampler.overlap_px": 32}

# What the arms change, as the first design had it: recipes may begin with the second.
FIRST: Settings = {
    "coarse.source": "out_of_fold",
    "refiner.timestep_law": "cubic",
    "refiner.last_share": 0.0,
    "refiner.recycle": 0.0,
    "refiner.warm_start": 0.0,
    "refiner.first_input": "noise",
    "refiner.amplitude": 1.0,
    "refiner.pixel_channels": 0,
    "refiner.input_condition": False,
    "sampler.sampler": "ddim",
}
BEST = "warm_small_pixels"  # of the screen, on naip_fields and oam_buildings (docs/log.md, 2026-11-26)
SIMULATED: Settings = {"coarse.source": "simulated"}

_GRID: Settings = {"refiner.timestep_law": "grid", "refiner.grid_steps": 8, "refiner.last_share": 0.5}
_SMALL: Settings = {"refiner.amplitude": 0.2}
_RECYCLE: Settings = {**_GRID, "refiner.recycle": 1.0, "sampler.sampler": "renoise"}
_WARM: Settings = {**_RECYCLE, "refiner.warm_start": 0.5, "refiner.last_share": 0.25, "refiner.first_input": "zero"}
_PIXELS: Settings = {"refiner.pixel_channels": 16}
_INPUT: Settings = {"refiner.input_condition": True}

ONE_PASS: Settings = {"refiner.kind": "one_pass"}
CASCADE: Settings = {**_GRID, "refiner.kind": "cascade"}
DIFFUSION: dict[str, Settings] = {
    "today": {},
    "grid": _GRID,
    "grid_small": _GRID | _SMALL,
    "recycle": _RECYCLE,
    "recycle_small": _RECYCLE | _SMALL,
    "warm": _WARM,
    "warm_small": _WARM | _SMALL,
    "warm_small_pixels": _WARM | _SMALL | _PIXELS,
    "warm_small_pixels_input": _WARM | _SMALL | _PIXELS | _INPUT,
    "warm_pixels_input": _WARM | _PIXELS | _INPUT,
}


def refiner_screen(data: str, train_images: int = 4800) -> Study:
    """Every arm once: one pass with and without the added parts, a cascade (is it iteration or diffusion?), and ten
    kinds of diffusion.

    One seed, 14 refiners, each diffusion and cascade sampled with 1, 2, 4 and 8 steps.
    """
    points = [ONE_PASS, ONE_PASS | _PIXELS, ONE_PASS | _PIXELS | _INPUT, *_steps(CASCADE)]
    for arm in DIFFUSION.values():
        points += _steps(arm)
    return _study("screen", data, points, train_images, 1)


def refiner_confirm(data: str) -> Study:
    """The best arm of the screen against one pass and a cascade of the same network; three seeds. All learn on simulated
    coarse maps, and what they know of their errors is scored too.

    On naip_fields with a pretrained encoder, 12,800 images a refiner: for a GPU. On the others with the small network of
    `claim_studies`, on maps of a pretrained network: after `backbones_oam_buildings` or `backbones_dubai_landcover` it
    trains nothing.
    """
    if data != "naip_fields":
        points = [ONE_PASS, *_steps({"refiner.kind": "cascade"}), *_steps({}), _sampled(4, samples=4), _sampled(4, average=2)]
        return _small_study("confirm", data, "lite0_fpn", points, {"score.uncertainty": True})
    arm = DIFFUSION[BEST]
    network = _network(arm)
    points = [ONE_PASS | network, *_steps(CASCADE | network), *_steps(arm)]
    points += [arm | _sampled(4, samples=4), arm | _sampled(4, average=2), arm | _sampled(8, samples=8)]
    return _study("confirm", data, [point | SIMULATED for point in points], 12_800, 3, {"score.uncertainty": True})


def refiner_decisions(data: str) -> Study:
    """Sampling alone: samples x averaging over the last steps x reach, of diffusion with four steps; and one pass at
    every reach. Three seeds, small networks; on coarse maps that refining improves on naip_fields (a decision about maps
    that it does not improve is to leave them as they are).

    After `backbones` (naip_fields) or `backbones_...` of the data set it trains nothing.
    """
    reaches: list[Settings] = [{"sampler.reach_px": reach} for reach in (0.0, 4.0, 8.0)]
    points = [_sampled(4, samples=n, average=k) | reach for n in (1, 4) for k in (1, 2) for reach in reaches]
    return _small_study("decisions", data, "small_pan", points + [ONE_PASS | reach for reach in reaches])


def _network(arm: Settings) -> Settings:
    """The parts of the arm's network that `one_pass` and `cascade` share with it."""
    return {name: value for name, value in arm.items() if name in (*_PIXELS, *_INPUT)}


def _sampled(steps: int, *, samples: int = 1, average: int = 1) -> Settings:
    return {"sampler.steps": steps, "sampler.samples": samples, "sampler.average_steps": average}


def _steps(arm: Settings) -> list[Settings]:
    return [arm | {"sampler.steps": steps} for steps in STEPS]


def _study(what: str, data: str, points: Iterable[Overrides], train_images: int, replicates: int, extra: Settings | None = None) -> Study:
    return Study(
        name=f"refiner_{what}_{data}",
        recipe=RECIPES[data],
        points=tuple(points),
        overrides=COMMON | FIRST | (extra or {}) | {"refiner.train_images": train_images},
        baseline=ONE_PASS,
        replicates=replicates,
        yardsticks=("coarse",),
    )


def _small_study(what: str, data: str, network: str, points: Iterable[Overrides], extra: Settings | None = None) -> Study:
    """A study of the refiners that `claim_studies.backbones...` trains for the set, on the maps of one of its networks."""
    recipe, settings = SETS[data]
    return Study(
        name=f"refiner_{what}_{data}",
        recipe=recipe,
        points=tuple(points),
        overrides=settings | NETWORKS[network] | (extra or {}),
        baseline=ONE_PASS,
        replicates=3,
        yardsticks=("coarse",),
    )


def _named(make: Callable[[str], Study], data: str) -> Callable[[], Study]:
    def study() -> Study:
        return make(data)

    study.__name__ = f"{make.__name__}_{data}"
    study.__doc__ = make.__doc__
    return study


STUDIES: dict[str, Callable[[], Study]] = {
    f"{make.__name__}_{data}": _named(make, data) for make in (refiner_screen, refiner_confirm, refiner_decisions) for data in RECIPES
}
