"""Tables of an ablation: every printed number by DuckDB, pairing, seeds, ties, blocks, merging, filters."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import duckdb
import make_tables
import numpy as np
import polars as pl
import pytest
from scipy import stats as ss

from sweeps.analysis import breakdowns, stats
from sweeps.analysis import contrasts as ablation
from sweeps.analysis.request import SHOWN, Comparison, Output
from sweeps.analysis.trials import load_trials
from sweeps.analysis.variants import baseline_of, conditions, populations
from sweeps.analysis.views import views
from sweeps.report import formats
from sweeps.report.ablation_tables import ablation_tables, costs
from sweeps.report.commands import ablate, score_tables, table
from sweeps.report.score_tables import number

SUMS = """
create view unit as
  select c.trial, t.seed, t."refiner.kind" as kind, t."refiner.guidance_width" as width, t."sampler.steps" as steps, c.scene, c.class,
         sum(tp) as tp, sum(fp) as fp, sum(fn) as fn, sum(biou_intersection) as bi, sum(biou_union) as bu,
         sum(wfm_edge_target) as g, sum(wfm_edge_target_loss) as tl, sum(wfm_edge_rest_loss) as rl
  from read_parquet('{root}/tables/counts/study={study}/*.parquet') c
  join read_parquet('{root}/tables/trials/study={study}/*.parquet') t using (trial)
  where c.class >= 0 and c.label_set = '{labels}' and t.status = 'done'
  group by all;
create macro f(g, tl, rl) as 2 * (1 - tl/g) * ((g - tl) / (g - tl + rl)) / ((1 - tl/g) + (g - tl) / (g - tl + rl));
"""
PER_CLASS = "tp / (tp + fp + fn) as miou, bi / bu as boundary_iou, f(g, tl / 2^32, rl / 2^32) as wfm_edge"


def frame(relation):
    return pl.DataFrame(relation.fetchall(), schema=relation.columns, orient="row", infer_schema_length=None)


def in_sql(root, study, labels):
    """(pooled scores by trial, scores by trial and scene), mean over classes, straight from the files."""
    db = duckdb.connect()
    db.execute(SUMS.format(root=root, study=study, labels=labels))
    mean = ", ".join(f"avg({m}) as {m}" for m in SHOWN)
    total = ", ".join(f"sum({c}) as {c}" for c in ("tp", "fp", "fn", "bi", "bu", "g", "tl", "rl"))
    who = "trial, seed, kind, width, steps"
    pooled = frame(
        db.sql(f"""select {who}, {mean} from (select {who}, {PER_CLASS} from
        (select {who}, class, {total} from unit group by all)) group by all""")
    )
    by_scene = frame(db.sql(f"select {who}, scene, {mean} from (select {who}, scene, {PER_CLASS} from unit) group by all order by scene"))
    return pooled, by_scene


def rows_of(found, row):
    """The trials of a printed row."""
    kind = {"coarse": "none"}.get(row["map"], row["map"])
    found = found.filter(pl.col("kind") == kind)
    if kind != "none":
        found = found.filter(pl.col("width") == int(row["refiner.guidance_width"]))
    return found.filter(pl.col("steps") == int(row["sampler.steps"])) if kind == "diffusion" else found


@pytest.mark.parametrize("labels", ["full", "eroded"])
def test_every_number_of_the_printed_table_is_recomputed_by_duckdb(made, labels):
    pooled, by_scene = in_sql(made, "made", labels)
    (found,) = score_tables(load_trials([str(made)], ["made"]), Comparison(labels=labels))
    coarse_scene = by_scene.filter(pl.col("kind") == "none")
    place = {c.name: i for i, c in enumerate(found.columns)}
    p_raw, checked = [], 0
    for cells in found.rows:
        row = {c.name: cell.text for c, cell in zip(found.columns, cells)}
        mine, mine_scene = rows_of(pooled, row), rows_of(by_scene, row)
        assert row["seeds"] == str(mine.height)
        for m in SHOWN:
            text = number(m, mine[m].mean()) + (f" ± {100 * mine[m].std():.2f}" if mine.height > 1 else "")
            assert row[m] == text
            checked += 1
            if row["map"] == "coarse":
                assert row[f"{m}_effect"] == "–"
                continue
            wide = mine_scene.pivot("scene", index="seed", values=m).sort("seed").drop("seed").to_numpy()  # [S, U]
            interval = stats.two_level_interval([wide, -coarse_scene[m].to_numpy()[None]])
            expected = f"{number(m, interval.estimate, True)} [{number(m, interval.low, True)}, {number(m, interval.high, True)}]"
            assert row[f"{m}_effect"].startswith(expected)
            d = wide.mean(axis=0) - coarse_scene[m].to_numpy()
            assert interval.estimate == pytest.approx(d.mean())
            if m == "boundary_iou":
                p = ss.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True).pvalue
                p_raw.append((p, cells[place["boundary_iou_p"]].data))
    raw, printed = np.array(p_raw).T
    assert printed == pytest.approx(stats.holm(raw))
    assert checked == 6 * 3


def test_table_of_twenty_four_scenes_is_the_cluster_bootstrap_of_scipy(many):
    """Pooled counts resampled by scene: the interval agrees with scipy's paired percentile bootstrap of the same ratio."""
    (found,) = score_tables(load_trials([str(many)], ["many"]), Comparison())
    row = next(r for r in found.rows if r[0].data is None and r[0].text == "one_pass")
    effect = row[[c.name for c in found.columns].index("boundary_iou_effect")].data
    assert effect["method"] == "bootstrap"
    assert effect["units"] == 24
    db = duckdb.connect()
    db.execute(SUMS.format(root=many, study="many", labels="full"))
    sums = frame(db.sql("select kind, seed, scene, class, bi, bu from unit order by kind, seed, scene, class"))

    def of(kind, column):
        return sums.filter(pl.col("kind") == kind)[column].to_numpy().reshape(-1, 24, 2)  # [S, U, K]

    a, b = [of("one_pass", c) for c in ("bi", "bu")], [of("none", c) for c in ("bi", "bu")]

    def statistic(places, axis=-1):
        places = np.atleast_2d(places)
        one = (a[0][:, places].sum(2) / a[1][:, places].sum(2)).mean(-1).mean(0)
        two = (b[0][:, places].sum(2) / b[1][:, places].sum(2)).mean(-1).mean(0)
        return one - two

    assert effect["pooled"] == pytest.approx(statistic(np.arange(24))[0])
    scipys = ss.bootstrap((np.arange(24),), statistic, n_resamples=4000, method="percentile", vectorized=True, batch=500, rng=0)
    width = scipys.confidence_interval.high - scipys.confidence_interval.low
    assert effect["low"] == pytest.approx(scipys.confidence_interval.low, abs=0.15 * width)
    assert effect["high"] == pytest.approx(scipys.confidence_interval.high, abs=0.15 * width)
    assert effect["high"] - effect["low"] > 0.97 * width  # seeds and the expansion only widen


def test_main_effects_and_interactions_are_differences_of_cell_means(made):
    view = next(views(load_trials([str(made)], ["made"]), ["boundary_iou"], labels="full"))
    cells = {
        (v.axes["refiner.guidance_width"], v.axes["sampler.steps"]): view.scorer.term(v, "boundary_iou", 1.0).unit.mean(axis=0)
        for v in view.population.variants
        if v.kind == "diffusion"
    }
    found = ablation.main_effects(view.scorer, view.population, "boundary_iou", {"sampler.steps": 4, "refiner.guidance_width": 32})
    effects = {(axis, level): c.effect.estimate for axis, level, *_, c in found}
    steps = (cells[32, 1] + cells[16, 1] - cells[32, 4] - cells[16, 4]).mean() / 2
    assert effects["sampler.steps", 1] == pytest.approx(steps)
    ((_, n, c),) = ablation.interactions(view.scorer, view.population, "boundary_iou")
    assert n == 1
    assert abs(c.effect.estimate) == pytest.approx(abs((cells[32, 4] - cells[32, 1] - cells[16, 4] + cells[16, 1]).mean()))


def test_variants_that_share_a_refiner_have_paired_seeds_and_others_have_not(made):
    (population,) = populations(load_trials([str(made)], ["made"], ["guidance_width==32"]))
    group = {v.label: v.group for v in population.variants}
    assert group["diffusion, steps=1"] == group["diffusion, steps=4"]
    assert len({group["coarse"], group["one_pass"], group["diffusion, steps=1"]}) == 3


def test_ties_are_decided_by_the_test_and_not_by_digits(made):
    view = next(views(load_trials([str(made)], ["made"]), ["oa", "boundary_iou"], labels="full"))
    best = ablation.best_and_ties(view.scorer, view.population, "boundary_iou")
    scores = {v.label: view.scorer.seeds(v, "boundary_iou").mean() for v in view.population.variants}
    assert max(scores, key=lambda k: scores[k]) in best
    assert "coarse" not in best
    few = next(views(load_trials([str(made)], ["made"], ["guidance_width==32"]), ["boundary_iou"], labels="full", unit="scene"))
    assert ablation.best_and_ties(few.scorer, few.population, "boundary_iou")


def test_fewer_than_six_scenes_fall_back_to_ground_blocks_and_say_so(tmp_path, capsys):
    make_tables.write_study(tmp_path, make_tables.small_study("few", 1), make_tables.Layout(scenes=3, tiles=8, blocks=4), bands=False)
    table(["few"], Comparison(stores=(str(tmp_path),)), Output(md=True))
    text = capsys.readouterr().out
    assert "12 ground blocks of 150 m in 3 scenes" in text
    assert "Blocks of one scene are not independent" in text.replace("\n", " ")


def test_too_few_scenes_are_called_so_instead_of_starred(tmp_path, capsys):
    make_tables.write_study(tmp_path, make_tables.small_study("six", 2), make_tables.Layout(scenes=6, tiles=3), bands=False)
    table(["six"], Comparison(stores=(str(tmp_path),)), Output(md=True))
    text = capsys.readouterr().out
    assert "(too few scenes)" in text
    assert " * |" not in text
    assert "no result could be below 0.05" in text
    assert "Nothing is bold: 6 scenes are too few" in text
    assert "**" not in text


def test_one_scene_with_one_block_has_scores_and_no_interval(tmp_path, capsys):
    make_tables.write_study(tmp_path, make_tables.small_study("one", 2), make_tables.Layout(scenes=1, tiles=4, blocks=1), bands=False)
    ablate(["one"], Comparison(stores=(str(tmp_path),)), Output(md=True))
    assert "(one unit: no interval)" in capsys.readouterr().out


def test_the_same_results_in_two_stores_and_studies_are_counted_once(made, tmp_path):
    shutil.copytree(made / "tables", tmp_path / "tables")
    make_tables.write_study(
        tmp_path, make_tables.small_study("wider", 3, (4, 1, 8)), make_tables.Layout(8, 4, 3, label_sets=("eroded", "full")), bands=False
    )
    once = load_trials([str(made)], ["made"])
    twice = load_trials([str(made), str(tmp_path)], ["made"])
    assert twice.frame.height == once.frame.height
    assert twice.duplicates == once.frame.height
    assert any(f"{once.frame.height} trials whose counts" in n for n in twice.notes)
    merged = load_trials([str(made), str(tmp_path)], ["made", "wider"])
    assert merged.frame.height == 1 + 3 + 2 * 3 * 3
    first, _ = score_tables(twice, Comparison()), score_tables(merged, Comparison())
    assert [formats.to_json(t)["printed"] for t in first] == [formats.to_json(t)["printed"] for t in score_tables(once, Comparison())]


def test_trials_of_other_data_stand_in_a_table_of_their_own_that_says_so(many, tmp_path):
    other = dataclasses.replace(make_tables.small_study("other", 1, (4,)), overrides={"data.scene_px": 192})
    make_tables.write_study(tmp_path, other, make_tables.Layout(scenes=7, tiles=3), bands=False)
    found = score_tables(load_trials([str(many), str(tmp_path)], ["many", "other"]), Comparison())
    assert [t.name for t in found] == ["scores-val-full", "scores-val-full-2"]
    assert [t.facts["units"] for t in found] == [24, 7]
    assert len({dict(t.header)["data"] for t in found}) == 2
    assert all(any("2 groups that cannot be compared (other data)" in n for n in t.notes) for t in found)


def test_curve_over_steps_averages_the_other_axes_when_there_are_too_many_lines(made):
    view = next(views(load_trials([str(made)], ["made"]), ["boundary_iou"], labels="full"))
    lines, averaged = breakdowns.by_steps(view, "boundary_iou")
    assert list(lines) == ["guidance_width=16", "guidance_width=32"]
    assert averaged == []
    one, averaged = breakdowns.by_steps(view, "boundary_iou", most=1)
    assert averaged == ["guidance_width"]
    for i, (steps, value, sd) in enumerate(one["diffusion"]):
        assert (steps, sd) == ((1.0, 4.0)[i], 0.0)
        assert value == pytest.approx(np.mean([points[i][1] for points in lines.values()]))


def test_filters_keep_what_they_name_and_yardsticks_that_do_not_read_the_setting(made):
    trials = load_trials([str(made)], ["made"], ["steps<=1 and guidance_width in 32,64"])
    kinds = trials.frame.group_by("refiner.kind").len().sort("refiner.kind").rows()
    assert kinds == [("diffusion", 3), ("none", 1), ("one_pass", 3)]
    assert any("Filter" in n for n in trials.notes)


def test_baseline_by_level_compares_variants_that_are_alike_in_everything_else(made):
    (population,) = populations(load_trials([str(made)], ["made"]))
    wanted = conditions("steps=1", population)
    pairs = {v.label: b.label for v in population.variants if (b := baseline_of(v, wanted, population))}
    assert pairs == {f"diffusion, guidance_width={w}, steps=4": f"diffusion, guidance_width={w}, steps=1" for w in (16, 32)}
    one_pass = conditions("one_pass", population)
    assert baseline_of(next(v for v in population.variants if "width=16, steps=4" in v.label), one_pass, population) is None


def test_pareto_front_holds_exactly_the_points_no_other_beats():
    rng = np.random.default_rng(0)
    points = [(float(c), float(s)) for c, s in rng.integers(0, 6, (30, 2))] + [(math.nan, 9.0)]
    for i, (c, s) in enumerate(points):
        beaten = any((x <= c and y >= s) and (x, y) != (c, s) for x, y in points)
        assert ablation.pareto(points)[i] == (not beaten and math.isfinite(c))


def test_training_cost_counts_every_process_that_shared_it(made):
    view = next(views(load_trials([str(made)], ["made"]), ["boundary_iou"], labels="full"))
    variant = next(v for v in view.population.variants if v.kind == "diffusion")
    seconds, hours = costs(view, variant)
    assert hours == pytest.approx((100 + variant.axes["refiner.guidance_width"]) / 3600)
    for trial in variant.trials:
        assert view.population.rows[trial]["processes_refiner"] == 1
        view.population.rows[trial]["processes_refiner"] = 4
    assert costs(view, variant) == (seconds, pytest.approx(4 * hours))


def test_metric_that_is_a_mean_over_tiles_equals_the_mean_in_the_files(made):
    view = next(views(load_trials([str(made)], ["made"]), ["wfm_edge_legacy", "mba"], labels="full"))
    coarse = view.population.variants[0]
    path = f"{made}/tables/counts/study=made/{coarse.trials[0]}.parquet"
    ((value,),) = duckdb.sql(f"""select avg(wfm_edge_legacy_1_value) from read_parquet('{path}')
        where class = -1 and label_set = 'full'""").fetchall()
    assert view.scorer.seeds(coarse, "wfm_edge_legacy")[0] == pytest.approx(value)


def test_importance_carries_its_right_name_and_a_warning(made):
    view = next(views(load_trials([str(made)], ["made"]), ["boundary_iou"], labels="full"))
    found = next(t for t in ablation_tables(view, "boundary_iou", "coarse", "") if t.name.startswith("importance"))
    assert "PED-ANOVA" in found.title
    assert "Not a share of variance" in found.notes[0]


def test_tables_are_read_without_torch_ray_or_optuna(made):
    code = (
        "import sys; from sweeps.report.commands import table; "
        "from sweeps.analysis.request import Comparison, Output; "
        f"table(['made'], Comparison(stores=({str(made)!r},), labels='full'), Output(json=True)); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'optuna')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-500:]
    assert json.loads(run.stdout)[0]["facts"]["label_set"] == "full"
