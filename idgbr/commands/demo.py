"""`idgbr demo`: synthetic scenes, both stages small on the CPU, without Ray; scores of coarse, one-pass and refined maps side by side."""

from __future__ import annotations

import dataclasses

import polars as pl
from rich.console import Console
from rich.table import Table

from idgbr import stages
from idgbr.progress import Progress
from idgbr.recipes import recipe
from idgbr.scores.read import evaluate
from idgbr.store import Store

SHOWN = ("miou", "boundary_iou", "boundary_f", "wfm_edge")
KINDS = {"none": "coarse", "one_pass": "one_pass", "diffusion": "refined"}


def demo(root: str) -> dict[str, dict[str, float]]:
    """Run the `synthetic` recipe on its validation scenes; print the table and the refiner's folder; return the scores by map."""
    store = Store(root)
    store.check_writable()
    base = recipe("synthetic")
    scores: dict[str, dict[str, float]] = {}
    folder = ""
    for kind, shown in KINDS.items():
        experiment = dataclasses.replace(base, refiner=dataclasses.replace(base.refiner, kind=kind))
        todo = stages.jobs(experiment)
        for job in todo:
            if not store.has(job.stage, job.key):
                with Progress(
                    f"{job.stage} {job.name if job.name != job.stage else ''} {shown if job.stage == 'refiner' else ''}"
                ) as progress:
                    stages.run(job, store, experiment, report=progress)
            if job.stage == "refiner":
                folder = str(store.path("refiner", job.key))
        counts = pl.read_parquet(store.path("counts", todo[-1].key) / "counts.parquet")
        scores[shown] = {name: evaluate(counts, name).score for name in SHOWN}
    table = Table("map", *SHOWN, title=f"synthetic scenes, split {base.sampler.split}, {base.sampler.steps} steps, one seed")
    for shown, values in scores.items():
        table.add_row(shown, *(f"{values[name]:.4f}" for name in SHOWN))
    Console().print(table)
    print(f"refiner: {folder}")
    return scores
