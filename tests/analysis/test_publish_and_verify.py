"""Published results: small, complete, and every number is what the rows give."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idgbr.errors import BadRequest, Disagreement, Missing
from sweeps.analysis.request import Comparison
from sweeps.report.commands import publish, verify
from sweeps.report.commands import published as all_published
from sweeps.report.publish import strip_folders

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published(made, tmp_path_factory):
    results = tmp_path_factory.mktemp("published")
    publish("made", Comparison(stores=(str(made),)), results=str(results), tile_images=False)
    return results


@pytest.fixture
def copy(published, tmp_path):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_published_folder_is_small_complete_and_verified(published, capsys):
    folder = published / "made"
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "published.json",
        "report.html",
        "rows",
        "tables.json",
        "tables.md",
        "tables.tex",
    }
    assert sum(p.stat().st_size for p in (folder / "rows").iterdir()) < 1_000_000
    verify("made", results=str(published))
    assert "every number" in capsys.readouterr().out
    readme = (folder / "README.md").read_text()
    assert "python -m sweeps run made" in readme
    assert re.search(r"\| coarse \| 0 \| \d+\.\d\d \|", readme)


def test_changed_numbers_are_found_wherever_they_stand(copy):
    folder = copy / "made"
    text = (folder / "tables.md").read_text()
    (folder / "tables.md").write_text(re.sub(r"(\d\d\.\d)(\d) ", lambda m: f"{m[1]}{(int(m[2]) + 1) % 10} ", text, count=1))
    with pytest.raises(Disagreement, match=r"tables\.md"):
        verify("made", results=str(copy))
    (folder / "tables.md").write_text(text)
    for name, pattern in (
        ("README.md", r"coarse \| 0 \| \d"),
        ("report.html", r"changed boundary IoU by \+\d"),
        ("report.html", r">\d\d\.\d"),
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(re.sub(pattern, lambda m: m[0][:-1] + str((int(m[0][-1]) + 1) % 10), text, count=1))
        with pytest.raises(Disagreement, match=re.escape(name)):
            verify("made", results=str(copy))
        (folder / name).write_text(text)
    tables = json.loads((folder / "tables.json").read_text())
    tables[0]["rows"][1]["miou"]["value"] += 1e-4
    (folder / "tables.json").write_text(json.dumps(tables))
    with pytest.raises(Disagreement, match="miou"):
        verify("made", results=str(copy))


def test_changed_rows_are_found(copy):
    path = copy / "made" / "rows" / "counts.parquet"
    rows = pq.read_table(path)
    tp = rows["tp"].to_pylist()
    tp[next(i for i, x in enumerate(tp) if x)] += 50
    pq.write_table(rows.set_column(rows.schema.get_field_index("tp"), "tp", pa.array(tp, pa.int64())), path)
    with pytest.raises(Disagreement, match="not what the rows give"):
        verify("made", results=str(copy))


def test_nothing_published_and_unpublishable_metrics_are_clear_errors(made, tmp_path):
    with pytest.raises(Missing, match="nothing is published"):
        verify("made", results=str(tmp_path))
    with pytest.raises(BadRequest, match="means over tiles"):
        publish("made", Comparison(stores=(str(made),), metrics="wfm_edge_legacy"), results=str(tmp_path), tile_images=False)
    assert not list(tmp_path.iterdir())


def test_what_is_published_with_the_code_is_what_its_rows_give(capsys, tmp_path):
    results = str(Path(__file__).resolve().parents[2] / "results" / "published")
    for study in all_published(results):
        verify(study, results=results)
        assert f"{study}: every number" in capsys.readouterr().out
    with pytest.raises(Missing, match="nothing is published"):
        all_published(str(tmp_path))


def test_published_files_hold_no_folders_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    weights, label = "/somewhere/of/mine/net.safetensors", "backbone.weights=/somewhere/of/mine/net.safetensors seed=0"
    rows = {"label": [label, "coarse"], "backbone.weights": [weights, ""], "refiner.train_images": [8, 8]}
    pq.write_table(pa.table(rows), tmp_path / "rows" / "trials.parquet")
    (tmp_path / "report.html").write_text(f"<td>{label}</td> /somewhere/of")
    strip_folders(tmp_path)
    found = pq.read_table(tmp_path / "rows" / "trials.parquet").to_pydict()
    assert found == rows | {"label": ["backbone.weights=net.safetensors seed=0", "coarse"], "backbone.weights": ["net.safetensors", ""]}
    assert (tmp_path / "report.html").read_text() == "<td>backbone.weights=net.safetensors seed=0</td> /somewhere/of"


@pytest.mark.parametrize("folder", sorted((ROOT / "results" / "published").iterdir()), ids=lambda p: p.name)
def test_what_this_repository_publishes_holds_none_either(folder: Path) -> None:
    table = pq.read_table(folder / "rows" / "trials.parquet")
    texts = [v for f in table.schema if pa.types.is_string(f.type) for v in table[f.name].unique().to_pylist() if v]
    assert not [v for v in texts if v.startswith("/") or "=/" in v]
