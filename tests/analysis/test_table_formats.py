"""The same table in Markdown, LaTeX, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess

import pytest

from sweeps.analysis.request import Comparison
from sweeps.analysis.trials import load_trials
from sweeps.analysis.views import views
from sweeps.report import formats
from sweeps.report.ablation_tables import ablation_tables
from sweeps.report.formats import Cell, Column, Table
from sweeps.report.score_tables import score_table

NASTY = Table(
    "nasty",
    "50 % of a_b & c#d {e} ~f^g \\h | ≤ 3 × 2",
    (("label set", "full_1"), ("path", "C:\\x")),
    (Column("name", "na_me", False), Column("value", "Δ [95 %]")),
    (
        (Cell("a&b|c"), Cell("-1.20 [-2.00, +0.10] *", {"estimate": -0.012, "low": float("nan")}, bold=True)),
        (Cell("日本"), Cell("1.5 ± 0.2", 1.5)),
    ),
    ("note with 100 % & more_",),
)


@pytest.fixture(scope="module")
def made_tables(made):
    view = next(views(load_trials([str(made)], ["made"]), ["miou", "boundary_iou", "wfm_edge"], labels="full"))
    return [score_table(view, Comparison()), *ablation_tables(view, "boundary_iou", "coarse", "")]


def check_latex(text: str) -> None:
    """Balanced groups and environments, the right number of cells a row, no character that LaTeX would trip over."""
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    bare = re.sub(r"\\[\\&%$#_{}~^]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert all(ord(c) < 0x250 for c in text)
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.split(r"\\")[:-1]:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1


def latex_document(body: str) -> str:
    """A document that compiles on its own with nothing but booktabs, graphicx and geometry."""
    head = [
        r"\documentclass[a4paper,landscape]{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,graphicx}",
        r"\usepackage[margin=1cm]{geometry}",
        r"\begin{document}",
    ]
    return "\n".join([*head, body, r"\end{document}"]) + "\n"


def test_latex_compiles_or_at_least_has_sound_syntax(made_tables, tmp_path):
    body = formats.render([*made_tables, NASTY], "latex")
    check_latex(body)
    assert r"\toprule" in body
    assert r"\bottomrule" in body
    engine = shutil.which("pdflatex") or shutil.which("tectonic")
    if engine is None:
        pytest.skip("syntax checked; no TeX engine here to compile with")
    (tmp_path / "t.tex").write_text(latex_document(body))
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in engine else []
    run = subprocess.run([engine, *options, "t.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stdout[-1500:]
    assert (tmp_path / "t.pdf").stat().st_size > 10_000


def test_latex_escape_leaves_no_active_character():
    check_latex(formats.to_latex(NASTY))
    assert r"\textbf{$-$1.20 {[}$-$2.00, +0.10{]} *}" in formats.to_latex(NASTY)


def test_markdown_rows_have_as_many_cells_as_the_head(made_tables):
    for table in [*made_tables, NASTY]:
        lines = [line for line in formats.to_markdown(table).splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 1}


def test_json_is_strict_and_holds_numbers_and_text(made_tables):
    found = json.loads(formats.render([*made_tables, NASTY], "json"), parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))
    assert found[0]["facts"]["split"] == "val"
    assert found[0]["printed"][0][0] == "coarse"
    assert found[-1]["rows"][0]["value"] == {"estimate": -0.012, "low": None}
    for table in found:
        assert {"label set", "split", "unit of inference", "seeds", "versions"} <= set(table["header"]) or table["name"] == "nasty"


def test_csv_gives_raw_numbers_that_round_to_the_printed_ones(made_tables):
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(made_tables))))
    printed = [dict(zip([c.name for c in made_tables[0].columns], [x.text for x in row])) for row in made_tables[0].rows]
    assert {r["table"] for r in rows} == {t.name for t in made_tables}
    assert all(None not in r for r in rows)  # no row is longer than the head
    for raw, text in zip(rows, printed):
        assert f"{100 * float(raw['miou.value']):.2f}" == text["miou"].split()[0]
        if raw.get("boundary_iou_effect.low"):
            assert f"{100 * float(raw['boundary_iou_effect.low']):+.2f}" in text["boundary_iou_effect"]


def test_terminal_text_is_plain_and_complete(made_tables):
    text = formats.to_text(made_tables[0])
    assert "\x1b" not in text
    assert all(row[0].text in text for row in made_tables[0].rows)


def test_narrow_terminal_leaves_out_the_least_columns_and_says_which(made_tables):
    table = made_tables[0]
    assert formats.fitting(table, 400) == list(range(len(table.columns)))
    text = formats.to_text(table, 120)
    assert max(map(len, text.splitlines())) <= 120
    assert "Left out, the terminal has 120 columns: Δ mIoU" in text
    head = text[: text.index("coarse ")]
    assert "Δ boundary IoU" in head
    assert "Δ WFm edge" not in head
