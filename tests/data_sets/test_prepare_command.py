"""`idgbr prepare`: what it prints, the contact sheet, and that it runs once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniature_layouts import loveda
from PIL import Image

from idgbr.commands.prepare import prepare
from idgbr.config import DataConfig, Experiment
from idgbr.errors import BadRequest, Missing
from idgbr.store import Store


def test_prepare_tells_what_is_there_and_runs_once(
    own_folder: Callable[..., DataConfig], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = Experiment(data=own_folder())
    folder = prepare(experiment, str(tmp_path / "store"))
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("folder: 5 rasters in 5 scenes, below ")
    assert printed.splitlines()[1].split() == ["split", "scenes", "rasters", "Mpx", "px", "(m)", "ignored", "background", "building"]
    assert printed.splitlines()[2].split()[:5] == ["train", "3", "3", "0.0", "0.5"]
    assert printed.splitlines()[-1] == str(folder)
    prepare(experiment, str(tmp_path / "store"))
    assert "in the store already" in capsys.readouterr().err
    assert len(Store(tmp_path / "store").runs("data")) == 1


def test_the_contact_sheet_shows_labels_in_class_colours(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    loveda(tmp_path / "data")
    experiment = Experiment(data=DataConfig(source="loveda", root=str(tmp_path / "data")))
    prepare(experiment, str(tmp_path / "store"), sheet=tmp_path / "sheet.png")
    seen = {tuple(c) for c in np.unique(np.array(Image.open(tmp_path / "sheet.png")).reshape(-1, 3), axis=0)}
    assert {(255, 0, 0), (159, 129, 183), (255, 195, 128), (128, 128, 128)} <= seen
    printed = capsys.readouterr().out
    assert "test (1 without labels)" in printed
    assert "note: LoveDA train: found 2 of 2522 tiles" in printed
    with pytest.raises(Missing, match=r"no folder .*nowhere to write into"):
        prepare(experiment, str(tmp_path / "store"), sheet=tmp_path / "nowhere" / "sheet.png")
    with pytest.raises(BadRequest, match="is a PNG"):
        prepare(experiment, str(tmp_path / "store"), sheet=tmp_path / "sheet.jpg")
    assert capsys.readouterr().out == ""  # before anything is indexed or shown
