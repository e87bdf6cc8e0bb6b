"""Every recipe of a published data set runs from its files to its scores, on miniatures that have the publisher's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from miniature_layouts import Truth
from paper_miniatures import tiny

from idgbr import stages
from idgbr.config import apply
from idgbr.paper_recipes import RECIPES, SETS, papers_own
from idgbr.scores import evaluate, read_counts
from idgbr.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all: both sizes of a set share its index, its backbones and its coarse maps."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_from_files_to_scores(recipe: str, truths: dict[str, Truth], data_folder: Path, store: Store) -> None:
    experiment = tiny(recipe, data_folder)
    jobs = stages.jobs(experiment)
    assert [job.stage for job in jobs if job.trains] == ["backbone"] * 3 + ["refiner"]
    for job in jobs:
        stages.run(job, store, experiment)
    counts = read_counts(store.path("counts", jobs[-1].key) / "counts.parquet")
    full = counts.filter(pl.col("label_set") == "full")
    assert np.isfinite(evaluate(full, "miou").score)
    assert np.isfinite(evaluate(full, "boundary_iou").score)
    published = SETS[experiment.data.source]
    scored = {name for name, (split, index) in truths[published.source].items() if split == published.test_split and index is not None}
    assert set(counts["raster"].unique()) == scored
    label_sets = set(counts["label_set"].unique())
    assert label_sets == ({"full", "eroded"} if published.source in ("potsdam", "vaihingen") else {"full"})


def test_the_papers_own_configuration_trains_and_samples(truths: dict[str, Truth], data_folder: Path, store: Store) -> None:
    """In small, and with 2 of its 25 steps."""
    name = "chn6_cug"
    small = {"refiner.batch_images": 4, "refiner.warmup_images": 4, "refiner.alignment_images": 4, "sampler.steps": 2}
    experiment = apply(tiny(f"{name}_sd15", data_folder), papers_own(name) | small)
    for job in stages.jobs(experiment):
        stages.run(job, store, experiment)
    counts = read_counts(store.path("counts", stages.jobs(experiment)[-1].key) / "counts.parquet")
    assert np.isfinite(evaluate(counts, "miou").score)
