"""Ready-made studies. A user's own works the same: `python -m sweeps run path/to/file.py:function`.

Each begins with its command and what it costs. Numbers of images are sized for GPUs unless the recipe says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from idgbr.errors import BadRequest, nearest
from idgbr.recipes import load_function
from sweeps.claim_studies import STUDIES as CLAIM_STUDIES
from sweeps.paper_studies import STUDIES as PAPER_STUDIES
from sweeps.refiner_studies import STUDIES as REFINER_STUDIES
from sweeps.study import Axis, Overrides, Search, Study


def quickstart() -> Study:
    """`python -m sweeps run quickstart`: synthetic roofs, two cores, within 8 minutes.

    Noise schedule x guidance width are trained, the step count is only sampled; two seeds; the same network in one
    pass beside it.
    """
    return Study(
        name="quickstart",
        recipe="synthetic",
        axes=(
            Axis("refiner.schedule", ("cosine", "linear")),
            Axis("refiner.guidance_width", (32, 16)),
            Axis("sampler.steps", (4, 1, 8)),
        ),
        overrides={
            "data.train_scenes": 16,
            "data.val_scenes": 6,
            "data.test_scenes": 1,
            "data.scene_px": 192,
            "backbone.train_images": 1280,
            "backbone.warmup_images": 40,
            "refiner.train_images": 3840,
            "refiner.warmup_images": 200,
            "refiner.ema_images": 480,
            "refiner.channels": (24, 48),
            "refiner.condition_channels": (24, 48),
        },
        replicates=2,
        yardsticks=("coarse", "one_pass"),
        yardsticks_of="baseline",
    )


def demo() -> Study:
    """`make demo`, or `python -m sweeps run demo`: farm fields of real places, two cores, about 10 minutes.

    Step count, noise schedule and guidance width, one change at a time: with every pair of them the test would have
    twice as many comparisons to correct for. Intervals over the ten validation places; one seed.
    """
    return Study(
        name="demo",
        recipe="demo",
        points=({}, {"sampler.steps": 1}, {"refiner.schedule": "linear"}, {"refiner.guidance_width": 16}),
        yardsticks=("coarse", "one_pass"),
        yardsticks_of="baseline",
    )


def oam() -> Study:
    """Real data: noise schedule x guidance width (trained) x steps (sampled), two seeds: 12 refiners, two cores,
    about an hour.
    """
    return Study(
        name="oam",
        recipe="oam_buildings",
        axes=(
            Axis("refiner.schedule", ("cosine", "linear")),
            Axis("refiner.guidance_width", (64, 32)),
            Axis("sampler.steps", (4, 1, 8)),
        ),
        replicates=2,
        yardsticks=("coarse", "one_pass"),
    )


def oam_test() -> Study:
    """What `oam` chose on its validation scene, once on the test scenes (a place not in train, and one that is):
    sampling alone.
    """
    return Study(
        name="oam_test",
        recipe="oam_buildings",
        axes=(Axis("sampler.steps", (4,)),),
        overrides={"sampler.split": "test"},
        replicates=2,
        yardsticks=("coarse", "one_pass"),
    )


# One choice of the refiner at a time, against its defaults. Each is trained; arms of the process are sampled at every
# step count.
_PROCESS: tuple[Overrides, ...] = (
    {},
    {"refiner.schedule": "linear"},
    {"refiner.schedule": "scaled_linear"},
    {"refiner.schedule": "sigmoid"},
    {"refiner.parameterisation": "v"},
    {"refiner.parameterisation": "epsilon", "refiner.zero_terminal_snr": False},
)
_PARTS: tuple[Overrides, ...] = (
    {"refiner.guidance_attention": False},
    {"refiner.use_coarse": False},
    {"refiner.use_image": False},
    {"refiner.condition_encoder": "", "refiner.condition_weights": ""},
    {"refiner.coarse_residual": True},
    {"coarse.source": "in_fold"},
    {"refiner.alignment": 0.5, "refiner.teacher": "test_vit"},  # random weights: a control, name a file for the real thing
)


def choices(recipe: str = "oam_buildings", train_images: int = 4800) -> Study:
    """What each choice of the refiner buys: noise schedules and parameterisations over step counts, and every part
    left out in turn.
    """
    steps = (4, 1, 2, 8, 25)
    fast: Overrides = {"refiner.one_step_images": train_images // 3, "sampler.sampler": "one_step", "sampler.steps": 1}
    return Study(
        name="choices" if recipe == "oam_buildings" else f"choices_{recipe}",
        recipe=recipe,
        points=(*({**arm, "sampler.steps": n} for arm in _PROCESS for n in steps), *({**arm, "sampler.steps": 4} for arm in _PARTS), fast),
        overrides={"refiner.train_images": train_images},
        baseline={"sampler.steps": 4},
        yardsticks=("coarse", "one_pass"),
    )


def choices_dubai_landcover() -> Study:
    """`choices` on land cover of five classes."""
    return choices("dubai_landcover", 3200)


def schedules(recipe: str = "demo") -> Study:
    """`python -m sweeps run schedules`: noise schedule (trained) x steps (sampled), three seeds.

    The recipe's refiner learns from its own guesses, for which it must predict x0.
    """
    return Study(
        name="schedules",
        recipe=recipe,
        axes=(
            Axis("refiner.schedule", ("cosine", "linear", "scaled_linear", "sigmoid")),
            Axis("sampler.steps", (4, 1, 2, 8)),
        ),
        replicates=3,
        yardsticks=("coarse", "one_pass"),
    )


def guidance(recipe: str = "demo") -> Study:
    """`python -m sweeps run guidance`: guidance width x attention (trained), three seeds; and guidance scales (sampled).

    A scale needs a network that was also trained without condition, so those refiners see the condition through the
    guidance network alone: no channel a class, no head at full size.
    """
    trained = Study(
        name="guidance",
        recipe=recipe,
        axes=(Axis("refiner.guidance_width", (32, 16, 64)), Axis("refiner.guidance_attention", (True, False))),
        replicates=3,
        yardsticks=("coarse", "one_pass"),
    )
    scales = Study(
        name="guidance",
        recipe=recipe,
        axes=(Axis("sampler.guidance_scale", (1.0, 1.5, 3.0)),),
        overrides={"refiner.class_channels": False, "refiner.pixel_channels": 0, "refiner.condition_dropout": 0.1},
        replicates=3,
        yardsticks=("one_pass",),
    )
    return trained | scales


def steps(recipe: str = "demo") -> Study:
    """`python -m sweeps run steps`: step count x sampler, three seeds: one refiner a seed, the rest is sampling."""
    return Study(
        name="steps",
        recipe=recipe,
        axes=(Axis("sampler.sampler", ("renoise", "ddim", "dpm++", "euler")), Axis("sampler.steps", (4, 1, 2, 8, 16))),
        replicates=3,
        yardsticks=("coarse", "one_pass"),
    )


def coarse_quality(recipe: str = "synthetic") -> Study:
    """How good must the coarse map be: simulated coarse maps from 0.5 to 0.95 IoU."""
    return Study(
        name="coarse_quality",
        recipe=recipe,
        axes=(Axis("coarse.iou", (0.8, 0.5, 0.65, 0.9, 0.95)),),
        overrides={"coarse.source": "simulated"},
        replicates=3,
        yardsticks=("coarse", "one_pass"),
    )


def codec(recipe: str = "oam_buildings") -> Study:
    """Block of the lossless label code: resolution of the latent against cost."""
    return Study(
        name="codec",
        recipe=recipe,
        axes=(Axis("refiner.block_px", (4, 2, 8)),),
        replicates=3,
        yardsticks=("coarse", "one_pass"),
    )


def alignment(recipe: str = "oam_buildings") -> Study:
    """Weight of representation alignment with a frozen ViT; set the teacher: `refiner.teacher=...
    refiner.teacher_weights=...`.
    """
    return Study(
        name="alignment",
        recipe=recipe,
        axes=(Axis("refiner.alignment", (0.0, 0.1, 0.5, 1.0)),),
        overrides={"refiner.teacher": "vit_small_patch16_dinov3"},
        replicates=3,
    )


def search_sampler(recipe: str = "synthetic") -> Study:
    """Boundary score against seconds over the sampler's settings: a front by NSGA-II; nothing is trained but the one
    refiner.
    """
    return Study(
        name="search_sampler",
        recipe=recipe,
        axes=(
            Axis("sampler.steps", low=1, high=16, log=True),
            Axis("sampler.sampler", ("ddim", "dpm++", "euler")),
            Axis("sampler.strength", low=0.2, high=1.0),
        ),
        search=Search(goals=("boundary_iou", "-seconds"), sampler="nsga2", trials=24, start=({"sampler.steps": 4},)),
    )


def search_refiner(recipe: str = "synthetic") -> Study:
    """TPE over how the refiner is trained, the worse half stopped early."""
    return Study(
        name="search_refiner",
        recipe=recipe,
        axes=(
            Axis("refiner.lr", low=1e-4, high=3e-3, log=True),
            Axis("refiner.schedule", ("cosine", "linear", "sigmoid")),
            Axis("refiner.parameterisation", ("x0", "v")),
            Axis("refiner.boundary_share", low=0.0, high=1.0),
        ),
        search=Search(goals=("boundary_iou",), trials=20, rungs=(1600, 3200)),
    )


BUILT_IN: dict[str, Callable[[], Study]] = (
    {
        f.__name__: f
        for f in (
            quickstart,
            demo,
            oam,
            oam_test,
            choices,
            choices_dubai_landcover,
            schedules,
            guidance,
            steps,
            coarse_quality,
            codec,
            alignment,
            search_sampler,
            search_refiner,
        )
    }
    | CLAIM_STUDIES
    | PAPER_STUDIES
    | REFINER_STUDIES
)


def find(name: str) -> Study:
    """The study of a built-in function, or of `path.py:function`.

    Raises:
        BadRequest: no such study (names the nearest), or the function returns something else.
        Missing: no such file.
    """
    if ".py:" not in name:
        if name not in BUILT_IN:
            raise BadRequest(
                "no such study",
                value=name,
                allowed=", ".join(sorted(BUILT_IN)) + ", or path.py:function",
                hint=nearest(name, BUILT_IN) or None,
            )
        return BUILT_IN[name]()
    return load_function(name, Study)()
