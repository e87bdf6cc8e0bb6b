"""Does `refine(image, coarse)` as users call it do harm? The decision saved with a refiner, on validation places.

    python benchmarks/saved_decision.py [RECIPE] [stage.field=value ...] [--store STORE] [--split val]
    python benchmarks/saved_decision.py --study backbones_oam_buildings      every backbone of a study

Trains what the recipe says, with a share of the ground held out to tune the decision (`refiner.held_out`), refines the
split with what was saved, and compares with the coarse map by scene, or by ground block where scenes are few. Stopped,
the same command goes on. The last line is one JSON object: differences in per cent with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import polars as pl

from idgbr import stages
from idgbr.config import Experiment, Runtime, apply
from idgbr.progress import Progress
from idgbr.recipes import experiment
from idgbr.refiner import Refiner
from idgbr.refiner.saved import OF_DECISIONS
from idgbr.scores import evaluate, read_counts
from idgbr.store import Store
from sweeps.analysis.stats import t_interval
from sweeps.studies import find
from sweeps.study import expand

SCORES = ("miou", "boundary_iou")
FEWEST_SCENES = 6


def ran(e: Experiment, store: Store, runtime: Runtime, before: tuple[str, ...] = ()) -> dict[str, stages.Job]:
    """The jobs of an experiment by name, all done, or those before the first of these stages."""
    jobs = stages.jobs(e)
    for job in jobs:
        if job.stage in before:
            break
        with Progress(f"{job.stage} {job.name}") as progress:
            stages.run(job, store, e, runtime, progress)
    return {job.name: job for job in jobs}


def by_unit(counts: pl.DataFrame) -> dict[str, list[float]]:
    """Scores in per cent of every scene, or of every block of ground."""
    counts = counts.filter(pl.col("label_set") == "full")
    by = ["scene"] if counts["scene"].n_unique() >= FEWEST_SCENES else ["scene", "block"]
    groups = counts.partition_by(by, as_dict=True)
    return {" ".join(key): [100 * evaluate(part, name).score for name in SCORES] for key, part in sorted(groups.items())}


def measured(e: Experiment, store: Store, runtime: Runtime) -> dict[str, Any]:
    """The decision saved with the refiner of `e`, and what refining with it changes."""
    refiner = ran(e, store, runtime, before=("refined", "counts"))["refiner"]
    saved = Refiner.load(store.path("refiner", refiner.key)).decision
    assert saved is not None
    decision: dict[str, Any] = {name: getattr(saved, name) for name in OF_DECISIONS}
    refined = dataclasses.replace(e, sampler=dataclasses.replace(e.sampler, **decision))
    maps = {"coarse": apply(e, {"refiner.kind": "none"}), "refined": refined}
    scores = {}
    for name, wanted in maps.items():
        if name == "refined" and not decision["trust"]:  # the coarse map as it is
            scores[name] = scores["coarse"]
            continue
        counts = ran(wanted, store, runtime)["counts"]
        scores[name] = by_unit(read_counts(store.path("counts", counts.key) / "counts.parquet"))
    units = sorted(scores["coarse"])
    result: dict[str, Any] = {"units": len(units), "decision": decision}
    for i, score in enumerate(SCORES):
        before, after = ([scores[name][unit][i] for unit in units] for name in ("coarse", "refined"))
        found = t_interval([a - b for a, b in zip(after, before, strict=True)])
        ends = [round(x, 2) for x in (found.estimate, found.low, found.high)]
        result[score] = {"coarse": round(sum(before) / len(units), 2), "difference": ends}
    return result


def networks_of(study: str, held_out: float) -> dict[str, Experiment]:
    """The diffusion trial of every backbone of a study, first seed, with ground held out."""
    found: dict[str, Experiment] = {}
    for trial in expand(find(study)):
        e = trial.experiment
        if e.refiner.kind == "diffusion":
            found.setdefault(f"{e.backbone.encoder}/{e.backbone.decoder}", apply(e, {"refiner.held_out": held_out}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="naip_fields")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--study", help="all backbones of this study in place of a recipe, a tenth of the ground held out")
    parser.add_argument("--store", default="store")
    parser.add_argument("--split", default="val")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    store, runtime = Store(options.store), Runtime(threads=options.threads)
    if options.study:
        wanted = networks_of(options.study, 0.1)
    else:
        wanted = {options.recipe: experiment(options.recipe, tuple(options.overrides))}
    result: dict[str, Any] = {"split": options.split}
    for name, e in wanted.items():
        if not e.refiner.held_out:
            sys.exit("the recipe holds no ground out, so no decision is tuned: refiner.held_out=0.1")
        result[name] = measured(apply(e, {"sampler.split": options.split}), store, runtime)
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
