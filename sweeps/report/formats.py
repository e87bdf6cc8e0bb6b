"""One table, five ways out: terminal (rich), Markdown, LaTeX (booktabs), JSON, CSV.

A cell holds the printed text and the numbers behind it, so that all formats agree and every printed number can be
recomputed.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from idgbr.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMATS = ("rich", "md", "latex", "json", "csv")
TABLE_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """Printed text and the numbers behind it. `bold`: best, or tied with the best by the test."""

    text: str
    data: object = None
    bold: bool = False
    sort: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table. `rank`: of the columns that a narrow terminal leaves out, the highest rank first; 0: never."""

    name: str  # for machines
    title: str  # for people
    is_number: bool = True
    rank: int = 0  # what a narrow terminal leaves out first: the highest; 0 never


@dataclass(frozen=True)
class Table:
    """Attributes:
    header: what the numbers are about (label set, split, scenes, seeds, versions), as (name, text).
    rows: one list of cells a row, in the order of `columns`.
    notes: what a reader must know not to be misled.
    """

    name: str
    title: str
    header: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)  # the header for machines


def render(tables: Sequence[Table], form: str) -> str:
    """All tables as one text.

    Raises:
        BadRequest: unknown format.
    """
    if form == "json":
        return json.dumps([to_json(t) for t in tables], indent=1, allow_nan=False) + "\n"
    if form == "csv":
        return to_csv(tables)
    one = {"md": to_markdown, "latex": to_latex, "rich": to_text}
    if form not in one:
        raise BadRequest("unknown table format", value=form, allowed=", ".join(FORMATS))
    return "\n".join(one[form](t) for t in tables)


class TableJson(TypedDict):
    """A table as `tables.json` holds it. `rows`: the numbers by column; `printed`: the text of every cell."""

    version: int
    name: str
    title: str
    header: dict[str, str]
    facts: object
    columns: list[str]
    rows: list[dict[str, object]]
    printed: list[list[str]]
    notes: list[str]


def to_json(table: Table) -> TableJson:
    """Plain JSON: no NaN (null stands for "not defined")."""
    return {
        "version": TABLE_VERSION,
        "name": table.name,
        "title": table.title,
        "header": dict(table.header),
        "facts": finite(table.facts),
        "columns": [c.name for c in table.columns],
        "rows": [
            {c.name: finite(cell.text if cell.data is None else cell.data) for c, cell in zip(table.columns, row)} for row in table.rows
        ],
        "printed": [[cell.text for cell in row] for row in table.rows],
        "notes": list(table.notes),
    }


def finite(value: object) -> object:
    """The same value with NaN and infinities as None and numpy scalars as Python's."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    return value if not isinstance(value, float) or math.isfinite(value) else None


def to_markdown(table: Table) -> str:
    """A Markdown table with its header as a list before it and its notes after it."""

    def clean(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [f"### {table.title}", ""]
    lines += [f"- {name}: {clean(text)}" for name, text in table.header]
    lines += ["", "| " + " | ".join(clean(c.title) for c in table.columns) + " |"]
    lines += ["|" + "|".join("---:" if c.is_number else "---" for c in table.columns) + "|"]
    for row in table.rows:
        lines.append("| " + " | ".join(f"**{clean(c.text)}**" if c.bold else clean(c.text) for c in row) + " |")
    lines += [""] + [f"{i}. {clean(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "–": "--",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "[": "{[}",
    "]": "{]}",
    "½": r"$\frac12$",
    "°": r"$^\circ$",
}


def tex(text: str) -> str:
    """Escaped for LaTeX, one pass; characters outside its reach become '?', which a reader sees, and never a failed
    compilation.
    """
    return "".join(_TEX.get(c, c if ord(c) < 0x250 else "?") for c in text)


def tex_number(text: str) -> str:
    """A signed number keeps its sign in math mode, so that minus signs are minus signs."""
    return tex(text.replace("-", "−"))


def to_latex(table: Table) -> str:
    """A `table*` that shrinks to the text's width where it is wider; needs the packages booktabs and graphicx."""
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{tex(table.title)}. " + " ".join(f"{tex(n)}: {tex(t)}." for n, t in table.header) + "}",
        rf"\label{{tab:{''.join(c if c.isalnum() else '-' for c in table.name)}}}",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\sbox0{{\begin{{tabular}}{{{''.join('r' if c.is_number else 'l' for c in table.columns)}}}",
        r"\toprule",
        " & ".join(tex(c.title) for c in table.columns) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [tex_number(cell.text) if c.is_number else tex(cell.text) for c, cell in zip(table.columns, row)]
        lines.append(" & ".join(rf"\textbf{{{text}}}" if cell.bold else text for text, cell in zip(cells, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    lines += [r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"]
    if table.notes:
        lines += ["", r"\vspace{2pt}", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [tex(note) + r"\par" for note in table.notes]
        lines += [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """Raw numbers, one column a number: `effect.low`, `effect.high`, ...; one head for all tables, so that any
    program reads it.

    The column `table` names the table; columns that a table has not are empty.
    """
    flat = [_flat(table, row) for table in tables for row in table.rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(table: Table, row: Sequence[Cell]) -> dict[str, object]:
    values: dict[str, object] = {"table": table.name}
    for column, cell in zip(table.columns, row):
        data = finite(cell.text if cell.data is None else cell.data)
        if isinstance(data, dict):
            values |= {f"{column.name}.{k}": v if not isinstance(v, list) else " ".join(map(str, v)) for k, v in data.items()}
        else:
            values[column.name] = data
    return values


def fitting(table: Table, width: int) -> list[int]:
    """Places of the columns that a terminal of `width` characters has room for: ranked columns are left out, the
    highest rank first.
    """
    sizes = [max(len(c.title), *(len(row[i].text) for row in table.rows), 0) + 3 for i, c in enumerate(table.columns)]
    kept = list(range(len(sizes)))
    while 1 + sum(sizes[i] for i in kept) > width and any(table.columns[i].rank for i in kept):
        kept.remove(max(kept, key=lambda i: (table.columns[i].rank, i)))
    return kept


def rich_renderables(table: Table, width: int) -> list[RenderableType]:
    """For `rich.console.Console.print`: heading, table (without the columns that `width` has no room for), notes."""
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    out = RichTable(title=escape(table.title), title_justify="left", show_lines=False, header_style="bold")
    kept = fitting(table, width)
    for c in (table.columns[i] for i in kept):
        out.add_column(escape(c.title), justify="right" if c.is_number else "left", no_wrap=c.is_number, overflow="fold")
    for row in table.rows:
        out.add_row(*[Text(row[i].text, style="bold green" if row[i].bold else "") for i in kept])
    notes_shown = list(table.notes)
    if len(kept) < len(table.columns):
        left_out = ", ".join(c.title for i, c in enumerate(table.columns) if i not in kept)
        notes_shown.append(f"Left out, the terminal has {width} columns: {left_out}. --md, --csv and -o FILE have them.")
    head = Text("\n".join(f"{name}: {text}" for name, text in table.header), style="dim")
    notes = Text("\n".join(f"{i}. {note}" for i, note in enumerate(notes_shown, 1)), style="dim")
    return [head, out, notes]


def to_text(table: Table, width: int = 400) -> str:
    """What a terminal of that width would show, without colours."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False)
    for part in rich_renderables(table, width):
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
