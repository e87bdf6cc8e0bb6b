"""A study of real stages small enough for tests: two scenes of 64 px, a tiny encoder, refiners that see 32 images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from idgbr.store import Store
from sweeps.study import Axis, Study

TINY = {
    "data.train_scenes": 2,
    "data.val_scenes": 2,
    "data.test_scenes": 1,
    "data.scene_px": 64,
    "backbone.crop_px": 64,
    "backbone.train_images": 8,
    "backbone.batch_images": 4,
    "backbone.warmup_images": 4,
    "coarse.source": "in_fold",
    "coarse.tile_px": 64,
    "coarse.overlap_px": 16,
    "refiner.channels": (16, 32),
    "refiner.condition_channels": (16, 32),
    "refiner.guidance_width": 16,
    "refiner.crop_px": 32,
    "refiner.batch_images": 8,
    "refiner.train_images": 32,
    "refiner.warmup_images": 8,
    "refiner.checkpoint_images": 8,
    "sampler.tile_px": 64,
    "sampler.overlap_px": 16,
    "score.tile_px": 64,
}


def tiny(name: str = "tiny", steps: tuple[int, ...] = (1, 2), schedules: tuple[str, ...] = ("cosine", "linear"), **more: object) -> Study:
    axes = (Axis("refiner.schedule", schedules), Axis("sampler.steps", steps))
    overrides = {**TINY, **more.pop("overrides", {})}  # type: ignore[dict-item]
    return Study(name, "synthetic", axes=axes, overrides=overrides, **more)  # type: ignore[arg-type]


STUDY_FILE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_sweeps import tiny

def study(): return tiny()
def other(): return tiny("other", schedules=("cosine", "sigmoid"), steps=(2,))
def wide(): return tiny("wide", schedules=("scaled_linear", "sigmoid"), steps=(1,))
def many(): return tiny("many", schedules=("cosine", "linear", "sigmoid", "scaled_linear"), steps=(1,))
def slow(): return tiny("slow", overrides={{"refiner.train_images": 400}})
"""


def sweep(*words: str, store: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m sweeps ...` as a process of its own group."""
    command = [sys.executable, "-m", "sweeps", *words, "--store", str(store)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **(env or {})}
    )


STAGES = ("data", "backbone", "coarse", "refiner", "refined", "counts")

# Times, and what is of the machine or of the repository: somebody may commit while the tests run.
TIMES = ("host", "git_commit", "finished", *(f"seconds_{stage}" for stage in STAGES))


def final_tables(store: Store, study: str = "tiny") -> dict[str, pa.Table]:
    """All tables of a study, sorted, without what is a time or a machine."""
    from sweeps import tables

    out = {}
    for name in ("trials", "counts", "bands", "curves"):
        found = tables.scan(store, name, study)
        if name == "curves":
            found = found.filter(pa.compute.not_equal(found["name"], "images_per_s"))
        found = found.drop_columns([c for c in TIMES if c in found.column_names])
        keys = [(c, "ascending") for c in found.column_names if not pa.types.is_list(found.schema.field(c).type)]
        out[name] = found.sort_by(keys).combine_chunks()
    return out


def same_tables(left: dict[str, pa.Table], right: dict[str, pa.Table]) -> None:
    for name, table in left.items():
        for column in table.column_names:  # NaN is NaN here; pyarrow's equality says otherwise
            mine, theirs = table[column].to_pylist(), right[name][column].to_pylist()
            assert list(map(repr, mine)) == list(map(repr, theirs)), f"{name}.{column}"


def counted(store: Store) -> dict[str, int]:
    """Number of artefacts of each stage."""
    return {stage: len(store.runs(stage)) for stage in STAGES}
