"""A folder as IDGBR_DATA names it: every published data set in miniature, weights, and Stable Diffusion in small."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
pytest.register_assert_rewrite("paper_miniatures")
from miniature_layouts import Truth  # noqa: E402
from paper_miniatures import write_data_folder  # noqa: E402


@pytest.fixture(scope="package")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Truth]]:
    """Truth of every set; IDGBR_DATA names the folder for as long as the tests of this folder run."""
    folder = tmp_path_factory.mktemp("idgbr-data")
    made = write_data_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDGBR_DATA", str(folder))
        yield made


@pytest.fixture
def data_folder(truths: dict[str, Truth]) -> Path:
    return Path(os.environ["IDGBR_DATA"])
