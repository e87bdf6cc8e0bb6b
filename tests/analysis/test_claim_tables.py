"""Tables and figures of the claims: by backbone, by frequency band and share of the training images; the page of all results."""

from __future__ import annotations

from pathlib import Path

import make_tables
import numpy as np
import polars as pl
import pytest

from idgbr.errors import BadRequest
from sweeps.analysis.request import Comparison, Selection
from sweeps.analysis.views import views
from sweeps.report import overview
from sweeps.report.ablation_tables import by_axes
from sweeps.report.backbone_tables import backbones_table
from sweeps.report.commands import frequency, publish, verify
from sweeps.report.frequency_tables import frequency_table
from sweeps.report.page import EXTRA_COLUMNS
from sweeps.study import Study

KINDS = ("one_pass", "cascade", "diffusion")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies "networks" (two encoders) and "images" (two numbers of training images), three kinds of refined map, eight scenes."""
    root = tmp_path_factory.mktemp("claims")
    for name, setting, values in (
        ("networks", "backbone.encoder", ("resnet18", "resnet34")),
        ("images", "refiner.train_images", (400, 200)),
    ):
        points = tuple({setting: value, "refiner.kind": kind} for value in values for kind in KINDS)
        study = Study(name, "synthetic", points=points, replicates=2, yardsticks=("coarse",))
        make_tables.write_study(root, study, make_tables.Layout(scenes=8, tiles=2))
    return root


def view_of(root: Path, study: str):  # type: ignore[no-untyped-def]
    return next(views(Comparison(stores=(str(root),)).trials([study]), ["boundary_iou"], columns=EXTRA_COLUMNS))


def test_every_backbone_has_a_row_and_all_of_them_together_one(claims: Path) -> None:
    view = view_of(claims, "networks")
    table = backbones_table(view, "boundary_iou", by_axes(view, ""))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["resnet18", "resnet34", "all"]
    places = {c.name: i for i, c in enumerate(table.columns)}
    for kind in KINDS:
        one, other, every = (row[places[f"{kind}_effect"]].data for row in table.rows)
        assert every["estimate"] == pytest.approx((one["estimate"] + other["estimate"]) / 2)
        assert every["low"] < every["estimate"] < every["high"]
        for row, label in zip(table.rows, ("resnet18", "resnet34")):
            variant = next(v for v in view.population.variants if v.kind == kind and v.axes["backbone.encoder"] == label)
            assert row[places[kind]].data == pytest.approx(float(view.scorer.seeds(variant, "boundary_iou").mean()))
    assert backbones_table(view_of(claims, "images"), "boundary_iou", []) is None


def test_error_removed_by_band_is_what_the_counts_give(claims: Path) -> None:
    view = view_of(claims, "images")
    table = frequency_table(view, "boundary_iou")
    assert table is not None
    assert [(row[0].text, row[1].text) for row in table.rows] == [(n, kind) for n in ("400", "200") for kind in KINDS]
    counts = pl.concat([pl.read_parquet(p) for p in sorted(claims.glob("tables/counts/study=images/*.parquet"))])
    whole = counts.filter(pl.col("class") == -1).group_by("trial").agg(pl.col("t0").sum(), pl.col("t1").sum())
    finest = {t: e0 / 2 - e1 / 32 for t, e0, e1 in whole.iter_rows()}
    variant = next(v for v in view.population.variants if v.kind == "cascade" and str(v.axes["refiner.train_images"]) == "200")
    coarse = next(v for v in view.population.variants if v.kind == "coarse")
    expected = 1 - np.mean([finest[t] for t in variant.trials]) / finest[coarse.trials[0]]
    assert table.rows[4][2].data["value"] == pytest.approx(expected)
    assert frequency_table(view_of(claims, "networks"), "boundary_iou") is None


def test_the_figure_has_a_column_for_each_number_of_images_and_is_a_file_of_its_own(claims: Path, tmp_path: Path) -> None:
    out = tmp_path / "frequency.svg"
    said = frequency(["images"], Selection(stores=(str(claims),)), out=str(out))
    drawn = out.read_text()
    for text in ("100 % of the training images (400)", "50 % of the training images (200)", "cascade", "distance to the target"):
        assert text in drawn
    assert "currentColor" not in drawn
    assert "var(--" not in drawn
    assert 'xmlns="http://www.w3.org/2000/svg"' in drawn
    assert said.count("Of one_pass's error diffusion removes") == 2
    with pytest.raises(BadRequest, match=r"refiner\.train_images"):
        frequency(["networks"], Selection(stores=(str(claims),)), out=str(out))
    with pytest.raises(BadRequest, match=r"another kind than its name says.*frequency\.png.*Try: -o .*frequency\.svg"):
        frequency(["images"], Selection(stores=(str(claims),)), out=str(tmp_path / "frequency.png"))
    assert not (tmp_path / "frequency.png").exists()


def test_published_claims_are_verified_and_listed(claims: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for study in ("images", "networks"):
        publish(study, Comparison(stores=(str(claims),)), results=str(tmp_path), tile_images=False)
        verify(study, results=str(tmp_path))
    page = overview.text([tmp_path / "images", tmp_path / "networks"])
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert [row.split("]")[0] for row in rows] == ["| [images", "| [networks"]
    assert all("8 scenes | 2 |" in row for row in rows)
    assert "`python -m sweeps run images`" in page


def test_the_page_of_results_and_the_readme_show_what_is_published() -> None:
    folders = sorted(p.parent for p in (ROOT / "results" / "published").glob("*/published.json"))
    page = (ROOT / "results" / "README.md").read_text()
    assert page == overview.text(folders), "run: python -m sweeps overview"
    readme = (ROOT / "README.md").read_text()
    assert overview.BEGIN in readme
    assert readme == overview.quote(page, readme), "run: python -m sweeps overview"
