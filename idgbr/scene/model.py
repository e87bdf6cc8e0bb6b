"""The trained refiner that a scene is refined with: named by its folder or its key, or the best one of the store."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idgbr.config import Experiment, Runtime, SamplerConfig, from_dict
from idgbr.errors import BadRequest, Missing
from idgbr.general.one_class import BY_DEFAULT, is_one_class, shipped
from idgbr.interfaces import Json
from idgbr.labels import ClassTable
from idgbr.machine import expanded
from idgbr.scene.strips import TileRefiner
from idgbr.settings import digest
from idgbr.store import Store

PRIMARY = "boundary_iou"
PRECISIONS = ("fp32", "bf16")
GENERAL = "general"  # names the refiner that is installed with idgbr
GENERAL_TILE_PX, GENERAL_OVERLAP_PX = 256, 32


@dataclass(frozen=True)
class Model:
    """A trained refiner and what must be known to run it.

    Attributes:
        name: digest of its weights and config.
        table: classes. bands: of the image, from 1. sampler: the settings that it was scored with.
        runs: what else decides the result bit by bit: precision, kind of device, versions.
        decided: the sampler holds the decision saved with the refiner.
        one_class: it knows one class against the rest; a scene brings its classes along (`any_classes.py`).
    """

    name: str
    tiles: TileRefiner
    table: ClassTable
    bands: tuple[int, ...]
    sampler: SamplerConfig
    runs: Mapping[str, str] = field(default_factory=dict)
    decided: bool = False
    one_class: bool = False


@dataclass(frozen=True)
class Scored:
    """A refiner of the store by the best score of its trials, and that trial's experiment."""

    key: str
    score: float
    experiment: Experiment


def scored_refiners(store: Store) -> list[Scored]:
    """Diffusion refiners with stored counts of the split "val", each with its best trial; best first.

    Counts exist only of trials that were finished: one that failed or was pruned has none.
    """
    from idgbr.scores.read import evaluate, read_counts

    best: dict[str, Scored] = {}
    for counts in store.keys("counts"):
        record = store.manifest("counts", counts) or {}
        refined = store.manifest("refined", record.get("parents", {}).get("refined", "")) or {}
        key = refined.get("parents", {}).get("refiner")
        if key is None or "experiment" not in record:
            continue  # a coarse map, or an artefact of somebody's own
        experiment = from_dict(record["experiment"])
        if experiment.sampler.split != "val" or experiment.refiner.kind != "diffusion" or not store.has("refiner", key):
            continue
        frame = read_counts(store.path("counts", counts) / "counts.parquet")
        score = evaluate(frame.filter(frame["label_set"] == "full"), PRIMARY).score
        if score == score and (key not in best or score > best[key].score):
            best[key] = Scored(key, score, experiment)
    return sorted(best.values(), key=lambda s: (-s.score, s.key))


def best_refiner(root: str) -> Scored:
    """The refiner of the store with the highest boundary IoU on the split "val"; which one and why goes to stderr.

    Yardsticks of one pass are left out: they have to be named.

    Raises:
        Missing: no refiner in the store, or none that was scored. BadRequest: they belong to several data sets.
    """
    store = Store(root)
    found = scored_refiners(store)
    if not found:
        known = sorted(store.keys("refiner"))
        if not known:
            raise Missing(f"no refiner in the store {root}", hint="--model FOLDER, idgbr train-refiner RECIPE, or --model general")
        raise Missing(
            f'no refiner of the store {root} has been scored on the split "val", so none of them can be called the best',
            allowed=", ".join(known),
            hint=f"--model {known[0]}, or a study that scores them: python -m sweeps run STUDY",
        )
    sets: dict[str, Scored] = {}
    for scored in found:
        e = scored.experiment
        sets.setdefault(digest([dataclasses.asdict(e.data), dataclasses.asdict(e.score)]), scored)
    if len(sets) > 1:
        named = (f"{s.key} ({s.experiment.data.source}, {PRIMARY} {s.score:.4f})" for s in sets.values())
        raise BadRequest(
            f"the store {root} has refiners of {len(sets)} data sets, whose scores cannot be compared",
            allowed="the best of each: " + "; ".join(named),
            hint=f"--model {found[0].key}",
        )
    best = found[0]
    print(f"model: {best.key}, the best of {len(found)} scored refiners of {root}: {PRIMARY} {best.score:.4f} on val", file=sys.stderr)
    return best


def find_model(model: str, root: str) -> tuple[Path, Experiment | None]:
    """Folder of a refiner, given as that folder or as its key in the store, and the experiment that trained it (None
    for a bare folder).

    Args:
        model: "general": the one that is installed. Empty: `best_refiner`, with the experiment of its best trial; in a
            store without refiners the general one, if that is taken by default.

    Raises:
        Missing: none of them. BadRequest: as `best_refiner`.
    """
    if model == GENERAL or (BY_DEFAULT and not (model or next(iter(Store(root).keys("refiner")), None))):
        folder = shipped()
        if folder is not None:
            print("model: the general refiner that comes with idgbr, for coarse maps below about 0.8 IoU (docs/models.md); "
                  "--model DIR takes your own", file=sys.stderr)  # fmt: skip
            return folder, None
        if model:
            raise Missing("this installation has no general refiner", value=f"--model {model}",
                          hint="docs/models.md says how one is trained; --model FOLDER")  # fmt: skip
    if not model:
        best = best_refiner(root)
        return Store(root).path("refiner", best.key), best.experiment
    folder = expanded(model)
    if folder.is_dir():
        manifest = folder.parent / "manifest.json"
        record: Json = json.loads(manifest.read_text()) if manifest.is_file() else {}
    else:
        store = Store(root)
        found = [key for key in store.keys("refiner") if key.startswith(model)]
        if len(found) != 1:
            known = ", ".join(store.keys("refiner")) or "none"
            raise Missing("no such refiner" if not found else "more than one refiner begins like this", value=f"--model {model}",
                          allowed=f"a folder with config.json and model.safetensors, or a key of the store {root}: {known}",
                          hint="idgbr train-refiner RECIPE prints the folder")  # fmt: skip
        folder, record = store.path("refiner", found[0]), store.manifest("refiner", found[0]) or {}
    return folder, from_dict(record["experiment"]) if "experiment" in record else None


def load_model(model: str, root: str, runtime: Runtime) -> Model:
    """The refiner of `find_model`, loaded on the runtime's device.

    Raises:
        Missing: no such model or device. BadRequest: an unknown precision, and as `best_refiner`.
    """
    if runtime.precision not in PRECISIONS:
        raise BadRequest("unknown precision", value=f"--precision {runtime.precision}", allowed=", ".join(PRECISIONS))
    import torch

    from idgbr.refiner.refiner import Refiner
    from idgbr.refiner.saved import OF_DECISIONS
    from idgbr.scene.tiles import TorchTiles

    folder, experiment = find_model(model, root)
    refiner = Refiner.load(folder)
    name = hashlib.sha256((folder / "model.safetensors").read_bytes() + (folder / "config.json").read_bytes()).hexdigest()[:16]
    one_class = is_one_class(refiner.table)
    if experiment is not None:
        bands, sampler = experiment.data.bands, experiment.sampler
    elif one_class:
        bands, sampler = (1, 2, 3), SamplerConfig(tile_px=GENERAL_TILE_PX, overlap_px=GENERAL_OVERLAP_PX)
    else:
        side = refiner.config.crop_px
        bands, sampler = tuple(range(1, refiner.n_bands + 1)), SamplerConfig(tile_px=side, overlap_px=side // 4)
    if refiner.decision is not None:
        sampler = dataclasses.replace(sampler, **{name: getattr(refiner.decision, name) for name in OF_DECISIONS})
    tiles = TorchTiles(refiner, runtime)
    runs = {
        "precision": runtime.precision,
        "device": tiles.device.type,
        "versions": f"idgbr {importlib.metadata.version('idgbr')}, torch {torch.__version__}",
    }
    return Model(name, tiles, refiner.table, bands, sampler, runs, refiner.decision is not None, one_class)


def with_settings(sampler: SamplerConfig, **given: Any) -> SamplerConfig:
    """The settings that are not None; a new tile keeps the share of overlap."""
    values = {name: value for name, value in given.items() if value is not None}
    if "tile_px" in values:
        values["overlap_px"] = min(values["tile_px"] * sampler.overlap_px // sampler.tile_px, values["tile_px"] - 1)
    return dataclasses.replace(sampler, **values)
