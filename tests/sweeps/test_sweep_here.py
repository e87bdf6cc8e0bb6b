"""Whole sweeps of real stages without Ray: resume, reuse, failures, stop, full disk, gc, explain, search."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny_sweeps import TINY, counted, final_tables, same_tables, sweep, tiny

from idgbr.errors import BadRequest, Disagreement, Missing, SomeFailed
from idgbr.store import Store
from sweeps import tables
from sweeps.run import commands, gc, plan
from sweeps.run.claims import Claims
from sweeps.run.explain import explained
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement
from sweeps.run.search import result
from sweeps.study import Axis, Search, Study


def run(study: Study, store: Store, **more: object) -> None:
    commands.run(study, store, Placement(), RunOptions(local=True, preflight=False, show=False, **more))  # type: ignore[arg-type]


def test_every_trial_has_its_rows_and_every_unique_job_ran_once(store: Store) -> None:
    assert counted(store) == {"data": 1, "backbone": 1, "coarse": 1, "refiner": 2, "refined": 5, "counts": 5}
    found = final_tables(store)
    assert found["trials"].num_rows == 5
    assert set(found["trials"]["status"].to_pylist()) == {"done"}
    assert set(found["counts"]["trial"].to_pylist()) == set(found["trials"]["trial"].to_pylist())
    assert set(found["curves"]["part"].to_pylist()) == {"full", "refiner"}


def test_the_second_run_does_nothing(store: Store) -> None:
    before, names = counted(store), store.names("", recursive=True)
    run(tiny(), store)
    assert counted(store) == before
    assert [n for n in store.names("", recursive=True) if n not in names] == []


def test_one_more_step_count_trains_nothing(store: Store) -> None:
    before = counted(store)
    run(tiny(steps=(1, 2, 3)), store)
    after = counted(store)
    assert {k: after[k] - before[k] for k in after} == {"data": 0, "backbone": 0, "coarse": 0, "refiner": 0, "refined": 2, "counts": 2}


def test_step_counts_share_the_loaded_weights_and_the_condition_features(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from idgbr.refiner.refiner import Refiner
    from idgbr.scene import tiles as kept_refiner

    loaded, seen, load = [], [], Refiner.load
    monkeypatch.setattr(Refiner, "load", lambda folder: loaded.append(folder) or load(folder))
    tiles_of = kept_refiner.tiles_of
    monkeypatch.setattr(kept_refiner, "tiles_of", lambda *given: seen.append(tiles_of(*given)) or seen[-1])
    run(tiny(steps=(1, 2, 3, 4, 5)), store)
    assert len(loaded) == 2  # refiners, for six sampling jobs
    assert len(seen) == 6
    assert all(tiles.reused == 2 * tiles.encoded > 0 for tiles in seen)


def test_another_study_over_the_same_artefacts_only_writes_rows(store: Store) -> None:
    before = counted(store)
    run(tiny("twin"), store)
    assert counted(store) == before
    same_tables({k: t.drop_columns(["study"]) for k, t in final_tables(store, "twin").items()}, final_tables(store, "tiny"))


def test_lost_rows_come_back_the_same(store: Store) -> None:
    before = final_tables(store)
    store.delete("tables")
    run(tiny(), store)
    same_tables(before, final_tables(store))


def test_a_failing_trial_is_a_row_and_does_not_sink_the_study(store: Store) -> None:
    study = tiny(steps=(1, 2), overrides={"sampler.split": "train"})  # no refined map of this split is stored
    broken = next(j for t in plan.expand(study) for j in t.jobs if j.stage == "refiner")
    attempt = store.path("refiner", broken.key)
    shutil.move(attempt / "model.safetensors", attempt / "hidden")
    with pytest.raises(SomeFailed, match="2 of 5 trials") as error:
        run(study, store, redefine=True)
    assert error.value.exit_code == 1
    found = tables.scan(store, "trials", "tiny").to_pylist()
    assert sorted(r["status"] for r in found) == ["done", "done", "done", "failed", "failed"]
    assert all(r["error"].startswith("refined ") for r in found if r["status"] == "failed")
    with pytest.raises(SomeFailed):  # not tried again unasked
        run(study, store)
    shutil.move(attempt / "hidden", attempt / "model.safetensors")
    run(study, store, retry_failed=True)
    assert set(tables.statuses(store, "tiny").values()) == {"done"}


def test_a_study_of_another_definition_under_the_same_name_is_refused(store: Store) -> None:
    with pytest.raises(Disagreement):
        run(tiny(steps=(4,)), store)


def test_impossible_models_are_named_before_anything_starts(tmp_path: Path) -> None:
    study = Study(
        "bad", "synthetic", axes=(Axis("refiner.condition_channels", ((16, 32), (16, 32, 64))),), overrides={
            k: v for k, v in TINY.items() if k != "refiner.condition_channels"})  # fmt: skip
    store = Store(tmp_path / "store")
    with pytest.raises(BadRequest, match=r"1 of 3 trials cannot be built.*Nothing was launched"):
        commands.run(study, store, Placement(), RunOptions(local=True, show=False))
    assert not store.runs("data")


def test_kill_9_in_mid_run_and_the_same_command_give_the_same_table(made: Path, study_file: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "killed")
    words = ("run", f"{study_file}:study", "--local", "--no-preflight", "--no-show")
    for stage in ("coarse", "refined"):  # killed twice: while the refiner trains, and among the samplings
        process = sweep(*words, store=store.root)
        while process.poll() is None and not store.runs(stage):
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < len(store.runs("counts")) + len(store.runs("refined")) < 10
    before = counted(store)
    run(tiny(), store)
    same_tables(final_tables(Store(made)), final_tables(store))
    assert all(counted(store)[stage] == n for stage, n in before.items() if stage in ("data", "backbone", "coarse"))


def test_ctrl_c_writes_a_checkpoint_exits_130_and_prints_the_line_that_resumes(study_file: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    process = sweep("run", f"{study_file}:slow", "--local", "--no-preflight", "--no-show", store=store.root)
    while process.poll() is None and not store.runs("coarse"):
        time.sleep(0.02)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert f"python -m sweeps run {study_file}:slow" in told
    assert not store.names("claims", recursive=True)
    if not store.runs("refiner"):  # it was in the middle of the first one
        assert list(Path(store.base).glob("scratch/refiner/*/checkpoint-*"))


def test_a_second_ctrl_c_ends_it_at_once(study_file: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    process = sweep("run", f"{study_file}:slow", "--local", "--no-preflight", "--no-show", store=store.root)
    while process.poll() is None and not store.runs("coarse"):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)  # nothing if it has obeyed the first one already
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert not store.names("claims", recursive=True)


def test_a_budget_frees_what_nothing_needs_and_stops_the_study_where_that_is_not_enough(store: Store) -> None:
    used, best = gc.used_bytes(store), gc._best_keys(store, 1)
    unwanted = set(store.keys("refiner")) - best
    budget = gc.Budget(store, (used - 1000) / 1e9, keep=1)
    assert "what is left is needed" in str(budget.spend("data", "none", needed={*store.keys("refiner"), *store.keys("refined")}))
    assert budget.spend("data", "none", needed=unwanted) is None  # a refined map was enough
    assert unwanted | best <= {*store.keys("refiner"), *store.keys("refined")}
    assert gc.Budget(store, (used - 100_000) / 1e9, keep=1).spend("data", "none", needed=set()) is None
    assert not unwanted & set(store.keys("refiner"))
    room = gc.used_bytes(store) / 1e9 + 2e-3
    with pytest.raises(Missing, match=r"the store has grown to .* beyond its budget"):
        run(tiny("deep", schedules=("cosine",), overrides={"refiner.channels": (16, 256)}), store, budget_gb=room)  # by past sizes it fits
    with pytest.raises(Missing, match=r"would grow to .*from .* GB on"):
        run(tiny(steps=(1, 2, 3, 4)), store, budget_gb=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("run", "quickstrat"), 2, "did you mean 'quickstart'"),
        (("plan", "quickstart", "refiner.shedule=linear"), 2, "did you mean 'refiner.schedule'"),
        (("run", "quickstart", "sampler.strength=7"), 2, r"sampler\.strength"),
        (("run", "quickstart", "backbone.weights=none.safetensors"), 3, r"backbone\.weights names a file that is not there"),
        (("run", "quickstart", "--address", "127.0.0.1:1"), 3, "no Ray cluster at"),
        (("run", "quickstart", "--gpus", "999"), 3, "999"),
        (("run", "quickstart", "--callback", "mlfow"), 2, "did you mean 'mlflow'"),
        (("search", "quickstart"), 2, "is not a search"),
        (("plan", "quickstart", "seeds=1", "--json", "refiner.lr=1e-3"), 2, r"settings stand in two places.*refiner\.lr=1e-3.*all options"),
        (("plan", "quickstart", "backbones=1", "backbone.encoder=resnet18"), 2, r"one backbone for all.*give one of the two"),
        (("plan", "quickstart", "backbones=1"), 2, "compares no backbones"),
    ],
)
def test_a_wrong_request_is_one_line_and_starts_nothing(
    words: tuple[str, ...], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    from sweeps.__main__ import VERBS, run_verbs

    extra = ("--no-preflight",) if words[0] == "run" else ()
    assert run_verbs(VERBS, "python -m sweeps", "", [*words, *extra, "--store", str(tmp_path / "store")]) == code
    told = capsys.readouterr().err
    assert re.search(message, told.splitlines()[-1]), told
    assert not Store(tmp_path / "store").runs("data")


def test_status_tells_from_another_terminal(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    commands.status("tiny", store, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["trials"], found["done"], found["open"], found["drivers"]) == (5, 5, 0, [])
    assert found["computed"]["refiner"] == 2
    with pytest.raises(Missing, match="tiny"):
        commands.status("tinny", store)


def test_plan_as_json_counts_and_costs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    commands.plan(tiny(steps=(1, 2, 3)), store, Placement(), as_json=True, preflight=False)
    found = json.loads(capsys.readouterr().out)
    assert found["to_run"] == 2
    assert found["stages"]["refiner"]["to_do"] == 0
    assert found["worker_hours"] > 0
    assert found["gigabytes"] > 0
    assert found["without_past_timings"] == []


def test_explain_reproduces_a_key_and_tells_what_a_change_would_remake(store: Store) -> None:
    row = tables.scan(store, "trials", "tiny").to_pylist()[-1]
    for stage in ("data", "backbone", "coarse", "refined", "counts"):
        found = explained(row[f"key_{stage}"][:10], store)
        assert found["reproduced"]
        assert row["trial"] in {t["trial"] for t in found["trials"]}
    changes = explained(row["key_counts"], store, ["score.tile_px=32"])["changes"]
    assert [(c["stage"], c["stored"]) for c in changes] == [("counts", False)]
    with pytest.raises(Missing):
        explained("ffffffffff", store)


def test_gc_lists_first_deletes_then_and_never_counts(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(store.base) / "artifacts/refiner/aa/aadead/a-123"
    old.mkdir(parents=True)
    (old / "model.safetensors").write_bytes(b"0" * 1000)
    os.utime(old / "model.safetensors", (1, 1))
    counts = set(store.keys("counts"))
    listed = gc.collect(store, dry_run=True)
    assert [i.name for i in listed] == ["artifacts/refiner/aa/aadead/a-123"]
    assert old.exists()
    gc.collect(store)
    assert not old.exists()
    used = gc.used_bytes(store)
    best = gc._best_keys(store, 1)
    gc.collect(store, budget_gb=(used - 100_000) / 1e9, keep=1)
    assert gc.used_bytes(store) <= used - 100_000
    assert best & set(store.keys("refiner"))
    assert set(store.keys("counts")) == counts
    with pytest.raises(Missing, match="must stay"):
        gc.collect(store, budget_gb=1e-6)
    with pytest.raises(Missing, match="would grow"):
        gc.check_budget(store, 1e-6, 10)
    capsys.readouterr()


def test_a_search_makes_rows_stops_the_worse_and_goes_on_where_it_was(store: Store) -> None:
    study = Study(
        "seek", "synthetic", axes=(Axis("refiner.lr", low=1e-5, high=1e-2, log=True),), overrides=TINY,
        search=Search(trials=3, rungs=(16,), start=({"refiner.lr": 1e-3},)),
    )  # fmt: skip
    run(study, store)
    first = result(study, store)
    assert sum(first["states"].values()) == 3
    assert first["states"].get("pruned", 0) + first["states"]["complete"] == 3
    found = tables.statuses(store, "seek")
    assert list(found.values()).count("pruned") == first["states"].get("pruned", 0)
    before = counted(store)
    run(study, store)
    assert counted(store) == before
    more = Study(study.name, study.recipe, study.axes, overrides=TINY, search=Search(trials=4, rungs=(16,), start=({"refiner.lr": 1e-3},)))
    run(more, store)
    assert sum(result(more, store)["states"].values()) == 4


def test_a_search_over_two_goals_trains_nothing_and_shows_a_front(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(
        "front", "synthetic", axes=(Axis("sampler.steps", low=1, high=3),), overrides=TINY,
        search=Search(goals=("boundary_iou", "-seconds"), sampler="nsga2", trials=3, start=({"sampler.steps": 2},)),
    )  # fmt: skip
    trained = counted(store)["refiner"]
    run(study, store)
    assert counted(store)["refiner"] == trained
    found = result(study, store)
    assert found["best"]
    assert {"boundary_iou", "seconds", "settings", "trial"} <= set(found["best"][0])
    from io import BytesIO
    from wsgiref.util import setup_testing_defaults

    import optuna_dashboard
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    dashboard = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(found["journal"])))

    def asked(path: str) -> dict:
        environ: dict = {"PATH_INFO": path, "wsgi.input": BytesIO()}
        setup_testing_defaults(environ)
        return json.loads(b"".join(dashboard(environ, lambda *answer: None)))

    listed = asked("/api/studies")["study_summaries"]
    assert [s["study_name"] for s in listed] == ["front"]
    assert len(asked(f"/api/studies/{listed[0]['study_id']}")["trials"]) == 3
    commands.status("front", store, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["trials"], told["done"], told["open"]) == (len(tables.statuses(store, "front")),) * 2 + (0,)


def test_a_search_whose_journal_was_torn_goes_on_tries_again_what_failed_and_has_one_driver(store: Store) -> None:
    study = Study(
        "torn", "synthetic", axes=(Axis("sampler.steps", low=1, high=9),), overrides={**TINY, "sampler.split": "train"},
        search=Search(trials=2, start=({"sampler.steps": 1}, {"sampler.steps": 2})),
    )  # fmt: skip
    [refiner] = [j.key for t in plan.expand(tiny(schedules=("cosine",), steps=(1,), yardsticks=())) for j in t.jobs if j.stage == "refiner"]
    weights = store.path("refiner", refiner) / "model.safetensors"
    shutil.move(weights, weights.with_name("hidden"))
    with pytest.raises(SomeFailed, match="2 trials of torn failed"):
        run(study, store)
    shutil.move(weights.with_name("hidden"), weights)
    with open(result(study, store)["journal"], "a") as file:
        file.write('{"op_code": 4, "wor')  # a full disk, or kill -9
    run(study, store, retry_failed=True)
    assert list(tables.statuses(store, "torn").values()).count("done") == 3
    assert result(study, store)["states"] == {"complete": 2, "fail": 2}
    before = counted(store)
    run(study, store, retry_failed=True)
    assert counted(store) == before
    with Claims(store, "torn") as other:
        other.take("search-torn")
        with pytest.raises(Missing, match="another driver already searches torn"):
            run(study, store)
    journal = Path(result(study, store)["journal"])
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "rubbish\n", *lines[2:]]))
    with pytest.raises(Disagreement, match="damaged"):
        run(study, store)
    wider = Study("torn", "synthetic", axes=(Axis("sampler.steps", (1, 4)),), overrides=TINY, search=Search(trials=1))
    with pytest.raises(Disagreement, match="defined otherwise"):
        run(wider, store)
    run(wider, store, redefine=True)
    assert result(wider, store)["states"] == {"complete": 1}
    assert len(tables.statuses(store, "torn")) == 2


def test_mlflow_and_tensorboard_write_files_and_a_broken_callback_costs_nothing(store: Store) -> None:
    run(tiny(steps=(1, 2, 5)), store, callbacks=("mlflow", "tensorboard"))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(Path(store.base) / "mlflow").absolute().as_uri())
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert {r.data.params["sampler.steps"] for r in runs} == {"5"}
    assert all("boundary_iou" in r.data.metrics for r in runs)
    assert list((Path(store.base) / "tensorboard").rglob("events*"))


def test_wandb_writes_its_offline_runs(store: Store) -> None:
    pytest.importorskip("wandb")
    run(tiny(steps=(1, 2, 5)), store, callbacks=("wandb",))
    assert len(list((Path(store.base) / "wandb").glob("offline-run-*/*.wandb"))) == 2


def test_wilcoxon_stops_a_worse_sampler_and_lets_an_equal_one_go_on() -> None:
    import random

    from sweeps.run.pruning import Watch, _paired_trial

    watch = Watch("s", "t", "boundary_iou", True, wilcoxon=0.05)
    rng = random.Random(0)
    stopped = {"equal": 0, "worse": 0}
    for kind, shift in (("equal", 0.0), ("worse", -0.15)):
        for _ in range(40):
            scene = [rng.gauss(0.7, 0.1) for _ in range(20)]
            trial = _paired_trial({str(i): v + rng.gauss(0, 0.05) for i, v in enumerate(scene)}, watch)
            for i, v in enumerate(scene):
                trial.report(v + shift + rng.gauss(0, 0.05), i)
                if trial.should_prune():
                    stopped[kind] += 1
                    break
    assert stopped["worse"] >= 38
    assert stopped["equal"] <= 12  # looked at after every raster: more than the level of one look, still seldom
