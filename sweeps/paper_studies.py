"""Studies of the published data sets (`idgbr/paper_recipes.py`): the table of arXiv 2507.01573 for each, and all of
them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from idgbr.paper_recipes import BACKBONES, SETS, SIZES, TEACHER, papers_own, weights_path
from sweeps.study import Overrides, Setting, Study

SEEDS = 3


def paper_study(name: str, size: str = "small") -> Study:
    """The paper's table for one set: 4 backbones, 3 ways each, 4 ablations, 3 seeds, on the split that the paper's
    tables are of.
    """
    published = SETS[name]
    suffix = "" if size == "small" else f"_{size}"
    return Study(
        name=f"paper_{name}{suffix}",
        recipe=f"{name}{suffix}",
        points=(
            *(backbone.settings() for backbone in BACKBONES.values()),
            *ablations(size),
            *((papers_own(name),) if size == "sd15" else ()),
        ),
        overrides={"sampler.split": published.test_split},
        replicates=SEEDS,
        yardsticks=("coarse", "one_pass"),
        yardsticks_of="baseline",
        sized_for="gpu",
    )


def ablations(size: str) -> tuple[Overrides, ...]:
    """The paper's, one change each.

    Alignment is on in `sd15`, as in the paper, and off in `small`, which has a frozen encoder already.
    """
    aligned: dict[str, Setting] = {"refiner.alignment": 0.5, "refiner.alignment_images": 80_000, "refiner.teacher": TEACHER}
    alignment: Overrides = {"refiner.alignment": 0.0} if size == "sd15" else aligned | {"refiner.teacher_weights": weights_path(TEACHER)}
    return ({"refiner.use_coarse": False}, {"refiner.use_image": False}, alignment, {"refiner.timestep_law": "uniform"})


def paper(size: str = "small") -> Study:
    """The five data sets of the paper, each in its folder below IDGBR_DATA."""
    first, *others = (paper_study(name, size) for name, published in SETS.items() if published.in_paper)
    return dataclasses.replace(first, name="paper" if size == "small" else f"paper_{size}", parts=tuple(others))


def paper_sd15() -> Study:
    """`paper` with the refiner built from Stable Diffusion 1.5."""
    return paper("sd15")


def _study(name: str, size: str) -> Callable[[], Study]:
    def make() -> Study:
        return paper_study(name, size)

    made = make()
    make.__name__ = made.name
    make.__doc__ = f"{SETS[name].title}: the paper's table with the {size} refiner; `python -m sweeps plan {made.name}` says what it costs."
    return make


STUDIES: dict[str, Callable[[], Study]] = {
    make.__name__: make for make in (paper, paper_sd15, *(_study(name, size) for size in SIZES for name in SETS))
}
