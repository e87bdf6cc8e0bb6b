"""Stores with tables of known content, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # make_tables.py and make_artifacts.py are shared with benchmarks/tables.py

import make_artifacts
import make_tables


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Study "made": coarse, one_pass, 2 x 2 diffusion variants, 3 seeds, 8 scenes, 3 classes, two label sets; one trial failed."""
    root = tmp_path_factory.mktemp("made")
    layout = make_tables.Layout(scenes=8, tiles=4, n_classes=3, label_sets=("eroded", "full"))
    make_tables.write_study(root, make_tables.small_study(), layout, failed=(15,))
    return root


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """Study "many": 24 scenes, one axis, 2 seeds: the bootstrap's side."""
    root = tmp_path_factory.mktemp("many")
    study = make_tables.small_study("many", replicates=2, steps=(4,))
    make_tables.write_study(root, study, make_tables.Layout(scenes=24, tiles=3), bands=False)
    return root


@pytest.fixture(scope="session")
def mapped(tmp_path_factory):
    """Study "mapped": real scenes, maps and counts; one trial failed."""
    root = tmp_path_factory.mktemp("mapped")
    make_artifacts.write_mapped_study(root)
    return root
