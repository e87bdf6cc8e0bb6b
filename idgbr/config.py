"""Settings: one frozen dataclass a stage, all inside `Experiment`.

A setting belongs to the stage whose dataclass holds it, and only that stage's key (and those after it) depend on it.
Recipes (`recipes.py`) are functions that return an `Experiment`; `apply` sets `stage.field=value` overrides.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from idgbr.errors import BadRequest, Disagreement, nearest
from idgbr.interfaces import Json
from idgbr.refiner.settings import RefinerConfig, SamplerConfig
from idgbr.settings import About, Section, When, about, cast, inherited, setting
from idgbr.training.settings import TrainingConfig

CONFIG_VERSION = 1

_SYNTHETIC = When("data.source", ("synthetic",))
_OUT_OF_FOLD = When("coarse.source", ("out_of_fold", "mixed", "thirds"))
_SIMULATED = When("coarse.source", ("simulated", "mixed"))
_CORRUPTED = When("coarse.source", ("simulated", "mixed", "thirds"))


@dataclass(frozen=True)
class DataConfig(Section):
    """Which scenes, how they are read and split."""

    name = "data"
    source: str = setting("synthetic", "data set: naip_fields, synthetic, folder (your own), or a published one (docs/data.md)")
    root: str = setting("", "folder of the unpacked data set; synthetic scenes and naip_fields need none", path=True, in_key=False)
    classes: str = setting("", "class table (JSON file); empty: the one of the source", path=True)
    bands: tuple[int, ...] = setting((1, 2, 3), "bands read from each image, from 1, in this order")
    split_table: str = setting("", "folder: split table (CSV) below the root; empty: splits.csv")
    elsewhere: str = setting(
        "",
        "another split table of the source, whose scenes are refined and scored in place of the data set's own; nothing trains on them",
        key_at_default=False,
    )
    where: str = setting("", 'filter on columns of the split table, e.g. "zoom == 20"')
    variant: str = setting("", "which of several products of a data set (Potsdam: RGB, IRRG or RGBIR); empty: see its reader")
    val_ids: tuple[str, ...] = setting((), "ISPRS: official training tiles that validate; empty: see idgbr/datasets/isprs.py")
    allow_duplicates: bool = setting(False, "go on although one image stands in two splits")
    block_m: float = setting(150.0, "side of ground blocks, the unit of inference where a split has too few scenes", low=1)
    layout_seed: int = setting(0, "synthetic: seed of the scenes", low=0, read_when=_SYNTHETIC)
    train_scenes: int = setting(6, "synthetic: training scenes", low=1, high=10_000, read_when=_SYNTHETIC)
    val_scenes: int = setting(3, "synthetic: validation scenes", low=0, high=10_000, read_when=_SYNTHETIC)
    test_scenes: int = setting(3, "synthetic: test scenes", low=0, high=10_000, read_when=_SYNTHETIC)
    scene_px: int = setting(256, "synthetic: side of a scene", low=64, high=20_000, read_when=_SYNTHETIC)
    n_classes: int = setting(2, "synthetic: 2 (background, building), 3 (and road) or 4 (and field)", low=2, high=4, read_when=_SYNTHETIC)

    @property
    def trained(self) -> DataConfig:
        """The data set that the networks learn from."""
        return dataclasses.replace(self, elsewhere="")

    @property
    def shown(self) -> DataConfig:
        """The data set whose scenes are refined and scored."""
        return dataclasses.replace(self, split_table=self.elsewhere, elsewhere="") if self.elsewhere else self


@dataclass(frozen=True)
class BackboneConfig(TrainingConfig):
    """Stage I: a timm encoder with an smp decoder."""

    name = "backbone"
    batch_images: int = inherited(TrainingConfig, "batch_images", 8)
    train_images: int = inherited(TrainingConfig, "train_images", 2400)
    warmup_images: int = inherited(TrainingConfig, "warmup_images", 160)
    ema_images: float = inherited(TrainingConfig, "ema_images", 400.0)
    checkpoint_images: int = inherited(TrainingConfig, "checkpoint_images", 800)
    encoder: str = setting("resnet18", "any timm encoder with features_only")
    decoder: str = setting(
        "fpn",
        "smp decoder",
        choices=("unet", "fpn", "deeplabv3plus", "upernet", "segformer", "dpt", "unetplusplus", "pspnet", "linknet", "manet", "pan"),
    )
    weights: str = setting("", "safetensors file with encoder weights (timm keys); empty: random", path=True)
    img_size: int = setting(0, "input side fixed at build time, for encoders that need it (Swin, plain ViT); 0: the crop", low=0)
    crop_px: int = setting(192, "training crop", low=32, high=2048)


@dataclass(frozen=True)
class CoarseConfig(Section):
    """Coarse maps: of held-out scenes by the backbone; of training scenes out of fold, simulated, or from a folder."""

    name = "coarse"
    source: str = setting(
        "out_of_fold",
        "where the refiner's training maps come from; thirds: out of fold, in fold, and in fold corrupted to the IoU of validation maps",
        choices=("out_of_fold", "in_fold", "simulated", "mixed", "thirds", "external"),
    )
    folds: int = setting(
        3, "out of fold: number of folds, by scene, or by block where scenes are fewer", low=2, high=20, read_when=_OUT_OF_FOLD
    )
    pool: tuple[str, ...] = setting(
        (),
        "fold n of the refiner's training maps is by the n-th of these networks (encoder/decoder), from random weights: one refiner for"
        " the maps of all backbones; empty: by the backbone itself",
        read_when=When("refiner.kind", ("diffusion", "cascade", "one_pass")),
        in_key=False,
        key_at_default=False,
    )
    root: str = setting("", "external: folder of class maps or probabilities, named like the images", path=True)
    iou: float = setting(0.8, "simulated: wanted IoU of every class against the target", low=0.05, high=0.999, read_when=_SIMULATED)
    iou_high: float = setting(
        0.0,
        "simulated: the IoU of every raster (block of 1024 px) is drawn between iou and this; 0: it is iou",
        low=0,
        high=0.999,
        read_when=_SIMULATED,
        key_at_default=False,
    )
    modes: tuple[str, ...] = setting(
        ("resample", "jitter", "holes", "missed", "false", "shift"), "simulated: kinds of error", read_when=_CORRUPTED
    )
    tile_px: int = setting(256, "prediction window", low=32, high=4096)
    overlap_px: int = setting(64, "overlap of windows, blended", low=0, high=2048)
    temperature: float = setting(1.0, "softmax temperature of the coarse probabilities", low=0.05, high=20)


@dataclass(frozen=True)
class ScoreConfig(Section):
    """Which counts are taken. Conventions that can be chosen at read time are not here."""

    name = "score"
    tile_px: int = setting(256, "side of scoring tiles, the unit of pairing", low=16, high=8192)
    boundary_ratio: float = setting(0.005, "boundary IoU: width as share of the tile's diagonal (at least 1 px)", low=1e-5, high=0.5)
    boundary_px: float = setting(0.0, "boundary IoU: width in px; above 0 it takes the place of the ratio", low=0)
    boundary_m: float = setting(0.0, "boundary IoU: width in metres on the ground; above 0 it takes the place of the others", low=0)
    tolerance_px: float = setting(3.0, "boundary F: tolerance (inclusive disk)", low=0, high=100)
    tolerance_m: float = setting(0.0, "boundary F: tolerance in metres on the ground; above 0 it takes the place of px", low=0)
    trimap_px: int = setting(3, "trimap IoU: width on either side", low=1, high=100)
    distance_edges_px: tuple[float, ...] = setting((1.0, 2.0, 3.0, 5.0, 8.0, 16.0), "edges of the bands of distance to the target boundary")
    band_levels: int = setting(4, "frequency bands: boxes of 1, 2, ... 2^levels px", low=1, high=10)
    legacy: bool = setting(True, "also the weighted F-measures as the authors' code computes them, defects included")
    surface: bool = setting(False, "also HD95 and ASSD, of each tile by itself")
    objects: bool = setting(
        False,
        "also boundary IoU at 1, 2 and 4 px, matched objects, outlines, parts and holes, of each tile by itself",
        key_at_default=False,
    )
    uncertainty: bool = setting(
        False, "also calibration, detection of errors and energy score; probabilities and samples are kept for it", key_at_default=False
    )


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a result. `seed` is a replicate, never an axis to optimise over."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    coarse: CoarseConfig = field(default_factory=CoarseConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    seed: int = 0
    reseed: str = "refiner"  # first stage that draws from `seed`; "backbone" retrains stage I for every replicate

    def __post_init__(self) -> None:
        if self.reseed not in ("backbone", "refiner"):
            raise BadRequest("unknown setting reseed", value=repr(self.reseed), allowed="backbone, refiner")
        if self.sampler.overlap_px >= self.sampler.tile_px:
            raise BadRequest(
                "sampler.overlap_px must be smaller than sampler.tile_px",
                value=f"sampler.overlap_px={self.sampler.overlap_px}, sampler.tile_px={self.sampler.tile_px}",
            )
        if self.coarse.overlap_px >= self.coarse.tile_px:
            raise BadRequest(
                "coarse.overlap_px must be smaller than coarse.tile_px",
                value=f"coarse.overlap_px={self.coarse.overlap_px}, coarse.tile_px={self.coarse.tile_px}",
            )
        if self.coarse.pool and self.coarse.source not in _OUT_OF_FOLD.values:
            raise BadRequest(
                "coarse.pool makes out-of-fold maps",
                value=f"coarse.source={self.coarse.source}",
                allowed="coarse.source=" + " or ".join(map(str, _OUT_OF_FOLD.values)),
            )
        for name in self.coarse.pool:
            self.pool_backbone(name)

    def pool_backbone(self, name: str) -> BackboneConfig:
        """The backbone's settings with the network `name`, encoder/decoder, of `coarse.pool`; from random weights.

        Raises:
            BadRequest: not written encoder/decoder, or no such decoder.
        """
        encoder, slash, decoder = name.partition("/")
        if not slash or not encoder:
            raise BadRequest("a network of coarse.pool is written encoder/decoder", value=name, hint="resnet18/fpn")
        return dataclasses.replace(self.backbone, encoder=encoder, decoder=decoder, weights="")


SECTIONS: dict[str, type[Section]] = {
    cls.name: cls for cls in (DataConfig, BackboneConfig, CoarseConfig, RefinerConfig, SamplerConfig, ScoreConfig)
}


@dataclass(frozen=True)
class Runtime:
    """How fast, never what: nothing here may change a result beyond rounding, so nothing here is in a key."""

    device: str = "auto"  # auto, cpu, cuda
    precision: str = "fp32"  # fp32, bf16
    threads: int = 0  # torch threads of one process; 0: leave
    compile: str = ""  # mode of torch.compile: default, reduce-overhead; empty: not compiled
    loader_workers: int = 0
    micro_images: int = 0  # images of one forward pass of a training at most; 0: batch_images over processes and `accumulate`
    gpu_share: float = 1.0  # of a GPU's memory that is this process's, where several share one
    checkpoint_seconds: float = 120.0


# ---- dict and back -------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Section)


def to_dict(experiment: Experiment) -> Json:
    """Plain values for JSON, with the version of the settings' format; `from_dict` reads them."""
    return {"version": CONFIG_VERSION, **dataclasses.asdict(experiment)}


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """Settings from plain values, as `to_dict` gives them.

    Raises:
        Disagreement: written by another version. BadRequest: an unknown section or setting; names the nearest right
            one.
    """
    data = dict(data)
    version = data.pop("version", None)
    if version != CONFIG_VERSION:
        raise Disagreement(
            "config of another version",
            value=version,
            allowed=str(CONFIG_VERSION),
            hint="resolve the recipe again with `idgbr config RECIPE`",
        )
    values: Json = {}
    for name, value in data.items():
        if name in SECTIONS:
            values[name] = section_from_dict(SECTIONS[name], value)
        elif name in ("seed", "reseed"):
            values[name] = value
        else:
            raise BadRequest("unknown section in a config", value=name, allowed=", ".join([*SECTIONS, "seed", "reseed"]))
    return Experiment(**values)


def section_from_dict(cls: type[S], data: Mapping[str, object]) -> S:
    """A section of the class `cls` from plain values; settings that are not named keep their defaults.

    Raises:
        BadRequest: a name that is no setting of the section, or a value it refuses.
    """
    known = {f.name for f in dataclasses.fields(cls)}
    for name in data:
        if name not in known:
            raise BadRequest(f"unknown setting {cls.name}.{name}", allowed=", ".join(sorted(known)), hint=nearest(name, known) or None)
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})


# ---- overrides ----------------------------------------------------------------------------------------------------------


def apply(experiment: Experiment, overrides: Iterable[str] | Mapping[str, Any]) -> Experiment:
    """Set `stage.field=value` (strings, typed by the field) or a mapping of `stage.field` to values.

    Raises:
        BadRequest: unknown stage or field (names the nearest), a value of another type, out of range or not a choice.
    """
    if not isinstance(overrides, Mapping):
        pairs: Json = {}
        for text in overrides:
            name, equals, value = text.partition("=")
            if not equals:
                raise BadRequest("an override is written stage.field=value", value=text)
            pairs[name.strip()] = value.strip()
        overrides = pairs
    changes: dict[str, Json] = {}
    top: Json = {}
    for name, value in overrides.items():
        if name == "seed":
            top["seed"] = cast(value, int, f"seed={value!r}")
            continue
        if name == "reseed":
            top["reseed"] = value
            continue
        section, field_name = split_name(name)
        changes.setdefault(section, {})[field_name] = value
    for section, values in changes.items():
        top[section] = dataclasses.replace(getattr(experiment, section), **values)
    return dataclasses.replace(experiment, **top)


def split_name(name: str) -> tuple[str, str]:
    """`stage.field` -> (stage, field), or a `BadRequest` that names the nearest right one."""
    section, _, field_name = name.partition(".")
    everything = [f"{s}.{f.name}" for s, cls in SECTIONS.items() for f in dataclasses.fields(cls)]
    if name not in everything:
        same = [n for n in everything if n.startswith(section + ".")]
        allowed = ", ".join(n.partition(".")[2] for n in same) if same else ", ".join(SECTIONS)
        raise BadRequest(
            f"unknown setting {name}",
            allowed=f"{section}: {allowed}" if same else allowed,
            hint=nearest(name, same or everything) or "`idgbr config RECIPE` lists every setting",
        )
    return section, field_name


def is_read(experiment: Experiment, condition: When | tuple[When, ...] | None) -> bool:
    """Whether a setting with this `read_when` has an effect in the experiment."""
    if condition is None:
        return True
    if isinstance(condition, tuple):
        return any(is_read(experiment, one) for one in condition)
    section, _, name = condition.name.partition(".")
    return condition.holds(getattr(getattr(experiment, section), name))


@functools.cache
def about_setting(name: str) -> About:
    """What the setting `stage.field` says about itself.

    Raises:
        BadRequest: no such setting.
    """
    section, field_name = split_name(name)
    return about(SECTIONS[section].__dataclass_fields__[field_name])
