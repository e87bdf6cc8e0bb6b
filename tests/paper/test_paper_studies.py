"""The paper's studies: what they train, how command-line settings reach every trial, what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgbr.errors import BadRequest
from idgbr.paper_recipes import BACKBONES, SETS
from sweeps.run.budget import backbones_of, cuts
from sweeps.run.forecast import GpuCluster
from sweeps.run.overrides import overridden, study_with
from sweeps.studies import find
from sweeps.study import Study, expand


def test_a_study_has_every_backbone_three_ways_and_the_papers_ablations(data_folder: Path) -> None:
    for suffix in ("", "_sd15"):
        study = find(f"paper_potsdam{suffix}")
        points = [dict(point) for point in study.points]
        assert [(p["backbone.encoder"], p["backbone.decoder"]) for p in points if "backbone.encoder" in p] == [
            (b.encoder, b.decoder) for b in BACKBONES.values()
        ]
        changed = [name for point in points for name in point if name.startswith("refiner.")]
        assert {"refiner.use_coarse", "refiner.use_image", "refiner.alignment", "refiner.timestep_law"} <= set(changed)
        assert study.base().refiner.alignment == (0.5 if suffix else 0.0)
        assert study.base().sampler.split == "test"


def test_settings_of_the_command_line_hold_for_points_and_parts(data_folder: Path) -> None:
    scratch = dict.fromkeys(("backbone.weights", "refiner.condition_weights", "refiner.teacher_weights"), "")
    study = overridden(find("paper"), scratch | {"refiner.train_images": "64"})
    assert [part.base().refiner.train_images for part in study.parts] == [64] * 4
    experiments = [trial.experiment for trial in expand(study.parts[0])]
    assert {e.backbone.encoder for e in experiments} == {b.encoder for b in BACKBONES.values()}
    assert {(e.backbone.weights, e.refiner.train_images, e.refiner.teacher_weights) for e in experiments} == {("", 64, "")}


def test_several_data_sets_take_no_single_folder(data_folder: Path) -> None:
    with pytest.raises(BadRequest, match=r"of several data sets.*IDGBR_DATA"):
        overridden(find("paper"), {"data.root": "/somewhere"})
    assert overridden(find("paper_inria"), {"data.root": "/somewhere"}).base().data.root == "/somewhere"


def test_the_paper_is_the_union_of_its_five_sets(data_folder: Path) -> None:
    study = find("paper")
    assert {part.base().data.source for part in (study, *study.parts)} == {name for name, s in SETS.items() if s.in_paper}
    assert len(study.parts) == 4


def test_a_smaller_study_keeps_the_first_seeds_and_backbones(data_folder: Path) -> None:
    study = study_with(find("paper"), ["seeds=1", "backbones=2"])
    for part in (study, *study.parts):
        assert part.seeds == (0,)
        assert backbones_of(part) == ("mit_b2+segformer", "resnet50+deeplabv3plus")
        assert {"refiner.use_coarse": False} in part.points  # ablations stay
    with pytest.raises(BadRequest, match=r"has 3 seeds"):
        study_with(find("paper"), ["seeds=4"])
    with pytest.raises(BadRequest, match=r"backbones is a number"):
        study_with(find("paper"), ["backbones=all"])


def test_a_budget_drops_seeds_before_backbones(data_folder: Path) -> None:
    def hours(study: Study) -> float:
        return 10.0 * len(study.seeds) * len(backbones_of(study))

    found = list(cuts(find("paper_potsdam"), 25.0, hours))
    assert [cut.settings for cut in found] == [("seeds=2",), ("seeds=1",), ("seeds=1", "backbones=3"), ("seeds=1", "backbones=2")]
    assert [cut.gpu_hours for cut in found] == [80.0, 40.0, 30.0, 20.0]
    assert "no interval between seeds; without convnext_tiny+upernet, resnet50+unet" in found[-1].lost
    assert [cut.settings for cut in cuts(find("paper_potsdam"), 1.0, hours)][-1] == ("seeds=1", "backbones=1")


@pytest.mark.parametrize(("text", "gpus", "card"), [("8xH100", 8, "H100"), ("h100", 1, "H100"), ("4 x A100-40GB", 4, "A100-40GB")])
def test_a_cluster_is_written_as_a_number_of_cards(text: str, gpus: int, card: str) -> None:
    assert GpuCluster.parse(text) == GpuCluster(gpus, card)


@pytest.mark.parametrize("text", ["8xH1OO", "0xH100", "", "eight"])
def test_an_unknown_cluster_names_the_cards_there_are(text: str) -> None:
    with pytest.raises(BadRequest, match=r"H200, H100, A100"):
        GpuCluster.parse(text)
