"""Studies: what may be an axis, how trials come of it, what a plan counts. No torch, no Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_sweeps import tiny

from idgbr.config import Experiment
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.recipes import recipe
from idgbr.store import Store
from sweeps import studies, tables
from sweeps.run import plan
from sweeps.study import Axis, Search, Study, expand


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("refiner.shedule", ("cosine",)), "refiner.schedule"),
        (lambda: Axis("seed", (1, 2)), "replicates"),
        (lambda: Axis("sampler.steps", ()), "empty"),
        (lambda: Axis("sampler.steps", (1, 1)), "twice"),
        (lambda: Axis("refiner.lr", low=1.0, high=0.1), "low >= high"),
        (lambda: Axis("refiner.lr", low=0.0, high=0.1, log=True), "logarithmic"),
        (lambda: Study("a b", "synthetic"), "file names"),
        (lambda: Study("s", "synthetic", design="gird"), "grid"),
        (lambda: Study("s", "synthetic", axes=(Axis("refiner.lr", low=1e-4, high=1e-3),)), "range"),
        (lambda: Study("s", "synthetic", axes=(Axis("sampler.steps", (1,)),), overrides={"sampler.steps": 2}), "twice"),
        (lambda: Study("s", "synthetic", replicates=0), "at least 1"),
        (lambda: Study("s", "synthetic", overrides={"seed": 3}), "replicate"),
        (lambda: Study("s", "synthetic", axes=(Axis("sampler.steps", (1,)), Axis("refiner.lr", (1e-3,))), search=Search()), "one stage"),
        (lambda: Search(goals=("boundary_iou", "-seconds"), rungs=(10,)), "two"),
        (lambda: Search(sampler="tpee"), "tpe"),
        (lambda: studies.find("quickstrat"), "quickstart"),
        (lambda: expand(Study("s", "syntetic")), "did you mean 'synthetic'"),
    ],
)
def test_a_wrong_study_is_one_clear_error_before_anything_starts(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRequest, match=message) as error:
        make()
    assert error.value.exit_code == 2


def test_a_value_out_of_range_names_the_setting_and_what_is_allowed() -> None:
    with pytest.raises(BadRequest, match=r"sampler\.steps.*at least 1"):
        expand(tiny(steps=(0, 1)))


def test_constraints_that_leave_nothing_are_refused() -> None:
    def never(e: Experiment) -> bool:
        return e.sampler.steps > 100

    with pytest.raises(BadRequest, match="leave no trial"):
        expand(tiny(constraints=(never,)))


def test_constraints_leave_trials_out() -> None:
    def cheap(e: Experiment) -> bool:
        return e.sampler.steps < 2

    assert {t.experiment.sampler.steps for t in expand(tiny(constraints=(cheap,))) if t.role == "trial"} == {1}


def test_a_grid_is_every_combination_times_the_seeds_and_the_yardsticks_once() -> None:
    trials = expand(tiny(replicates=3, yardsticks=("coarse", "one_pass")))
    roles = [t.role for t in trials]
    assert roles.count("trial") == 2 * 2 * 3
    assert roles.count("coarse") == 1  # the coarse map knows no refiner seed
    assert roles.count("one_pass") == 3
    assert len({t.id for t in trials}) == len(trials)


def test_one_pass_and_cascade_share_all_that_they_read_with_the_arm_beside_them() -> None:
    points = (
        {},
        {"sampler.steps": 2},
        {"refiner.schedule": "linear"},
        {"refiner.guidance_width": 8},
        {"refiner.loss_weighting": "boundary"},
        {"refiner.timestep_law": "uniform"},
        {"refiner.train_images": 5},
        {"sampler.reach_px": 4.0},
    )
    study = Study("arms", "synthetic", points=points, replicates=2, yardsticks=("one_pass", "cascade"))
    trials = expand(study)
    for kind, networks, trained in (("one_pass", 5, 4), ("cascade", 7, 5)):
        rows = [t for t in trials if t.role == kind]
        assert len(rows) == 2 * networks
        assert len({j.key for t in rows for j in t.jobs if j.stage == "refiner"}) == 2 * trained
    read_by_one_pass = ("guidance_width", "loss_weighting", "train_images", "channels", "crop_px", "lr")
    for trial in (t for t in trials if t.role == "trial"):
        alike = [
            t
            for t in trials
            if t.role == "one_pass"
            and t.experiment.seed == trial.experiment.seed
            and t.experiment.sampler.reach_px == trial.experiment.sampler.reach_px
            and all(getattr(t.experiment.refiner, n) == getattr(trial.experiment.refiner, n) for n in read_by_one_pass)
        ]
        assert len(alike) == 1
    alone = expand(dataclasses.replace(study, yardsticks_of="baseline"))
    assert [t.role for t in alone].count("one_pass") == 2
    with pytest.raises(BadRequest, match="arms, baseline"):
        dataclasses.replace(study, yardsticks_of="arm")


def test_a_yardstick_that_is_among_the_trials_is_there_once() -> None:
    one_pass = {"refiner.kind": "one_pass"}
    points = ({}, one_pass | {"refiner.schedule": "linear"}, one_pass | {"refiner.guidance_width": 8})
    trials = expand(Study("once", "synthetic", points=points, yardsticks=("one_pass",)))
    assert len({t.jobs[-1].key for t in trials}) == len(trials) == 3


def test_one_at_a_time_varies_one_axis_from_the_baseline() -> None:
    study = tiny(steps=(1, 2, 4), design="one_at_a_time", yardsticks=())
    points = [(t.experiment.refiner.schedule, t.experiment.sampler.steps) for t in expand(study)]
    assert points == [("cosine", 1), ("linear", 1), ("cosine", 2), ("cosine", 4)]


def test_a_union_holds_each_trial_once() -> None:
    union = tiny(steps=(1, 2)) | tiny("other", steps=(2, 4))
    assert {t.id for t in expand(union)} == {t.id for t in expand(tiny(steps=(1, 2, 4)))}


def test_trial_ids_depend_on_settings_alone() -> None:
    one = {t.id for t in expand(tiny(schedules=("cosine", "linear")))}
    other = {t.id for t in expand(tiny("renamed", schedules=("linear", "cosine")))}
    assert one == other


def test_every_ready_made_study_that_needs_no_data_expands() -> None:
    for name in ("quickstart", "coarse_quality"):
        assert len(expand(studies.find(name))) > 10


def test_studies_train_on_all_ground_unless_they_say_otherwise() -> None:
    for name in ("naip_fields", "naip_fields_pretrained", "oam_buildings", "dubai_landcover", "buildings_world"):
        assert recipe(name).refiner.held_out > 0
        assert Study("s", name).base().refiner.held_out == 0
    assert Study("s", "naip_fields", overrides={"refiner.held_out": 0.2}).base().refiner.held_out == 0.2


def test_a_user_study_is_a_file_and_a_function(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from sweeps.study import Axis, Study\n"
        "def wide(): return Study('wide', 'synthetic', axes=(Axis('refiner.guidance_width', (8, 512)),))\n"
        "def number(): return 3\n"
    )
    assert len(expand(studies.find(f"{path}:wide"))) == 3
    with pytest.raises(BadRequest, match="wide"):
        studies.find(f"{path}:wid")
    with pytest.raises(BadRequest, match="must return a Study"):
        studies.find(f"{path}:number")
    with pytest.raises(Missing, match="no such file"):
        studies.find(f"{tmp_path}/none.py:wide")


def test_a_plan_shares_trainings_and_says_what_nothing_shared_would_cost(tmp_path: Path) -> None:
    study = tiny(
        steps=(1, 2, 3, 4, 6, 8), schedules=("cosine", "linear", "sigmoid"), replicates=2, yardsticks=(),
    )  # fmt: skip
    study = Study(study.name, study.recipe, (*study.axes, Axis("refiner.guidance_width", (8, 16, 32))), overrides={
        k: v for k, v in study.overrides.items() if k != "refiner.guidance_width"}, replicates=2, yardsticks=())  # fmt: skip
    made = plan.make(study, Store(tmp_path))
    assert made.stages()["refiner"] == {"unique": 18, "stored": 0, "to_do": 18, "naive": 108}
    assert made.stages()["counts"]["unique"] == 108


def test_ten_thousand_trials_share_their_trainings(tmp_path: Path) -> None:
    """How long it takes: benchmarks/large_cluster.py."""
    study = Study(
        "big", "synthetic", replicates=4,
        axes=(Axis("refiner.lr", tuple(1e-4 * (1 + i / 100) for i in range(50))), Axis("sampler.steps", tuple(range(1, 51)))),
    )  # fmt: skip
    made = plan.make(study, Store(tmp_path))
    assert len(made.trials) == 10_001
    assert made.stages()["refiner"]["unique"] == 200


def test_the_same_name_may_grow_but_not_change(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan.record_definition(plan.make(tiny(), store), store)
    plan.record_definition(plan.make(tiny(steps=(1, 2, 3)), store), store)
    with pytest.raises(Disagreement, match="was defined otherwise") as error:
        plan.record_definition(plan.make(tiny(steps=(1, 4)), store), store)
    assert error.value.exit_code == 4
    plan.record_definition(plan.make(tiny(steps=(1, 4)), store), store, redefine=True)


def test_every_setting_is_a_typed_column_and_a_later_success_replaces_the_failure(tmp_path: Path) -> None:
    store, trial = Store(tmp_path), expand(tiny())[-1]
    common = {"trial": trial.id, "role": trial.role, "label": trial.label}
    tables.write_trial(store, "t", tables.trial_row(trial.experiment, trial.jobs, {}, status="failed", error="bang", **common))
    assert tables.statuses(store, "t") == {trial.id: "failed"}
    row = tables.scan(store, "trials", "t")
    assert row.schema.field("refiner.channels").type.value_type == "int64"
    assert row["refiner.lr"].type == "double"
    assert row["error"].to_pylist() == ["bang"]
    assert row["study"].to_pylist() == ["t"]
    tables.write_trial(store, "t", tables.trial_row(trial.experiment, trial.jobs, {}, status="done", **common))
    assert tables.statuses(store, "t") == {trial.id: "done"}
    assert tables.scan(store, "trials", "t").num_rows == 1
