"""table, ablate, tiles, report, frequency, publish, verify, overview: plain functions behind `python -m sweeps`.

They import neither torch nor ray.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from idgbr.errors import BadRequest, Missing
from idgbr.files import write_bytes
from sweeps.analysis.breakdowns import by_band, by_distance
from sweeps.analysis.request import Comparison, Output, Selection
from sweeps.analysis.trials import Trials
from sweeps.analysis.views import by_level, views, views_of
from sweeps.report import formats
from sweeps.report.ablation_tables import ablation_tables
from sweeps.report.formats import Table
from sweeps.report.score_tables import score_table
from sweeps.report.tile_panels import panels_of

RESULTS = "results/published"


def table(studies: Sequence[str], comparison: Comparison, output: Output | None = None, *, by: str = "") -> None:
    """Scores of every variant and its effect against the baseline, from Parquet alone.

    Args:
        by: axis or stage; one table for each of its levels.

    Raises:
        Missing: no such study. BadRequest: a baseline, metric, split or label set that is not there.
    """
    emit(score_tables(comparison.trials(studies), comparison, by), output or Output())


def ablate(studies: Sequence[str], comparison: Comparison, output: Output | None = None, *, by: str = "") -> None:
    """The main table, then refined against coarse, diffusion against one pass, main effects, interactions, cost,
    importance.

    Args:
        by: axis or stage; refined against coarse gets one row for each of its levels.

    Raises:
        Missing: no such study. BadRequest: a baseline, metric, split or label set that is not there.
    """
    from sweeps.report.page import EXTRA_COLUMNS

    found: list[Table] = []
    for view in views_of(comparison.trials(studies), comparison, EXTRA_COLUMNS):
        found.append(score_table(view, comparison, name=f"scores-{view.name}"))
        found += ablation_tables(view, comparison.metric, comparison.baseline, by)
    emit(found, output or Output())


def score_tables(trials: Trials, comparison: Comparison, by: str = "") -> list[Table]:
    """The main table of every population, split and label set, or of every level of `by`."""
    out = []
    for view in views_of(trials, comparison):
        for level, part in by_level(view, by):
            name = "-".join(["scores", view.name, *([level] if level else [])])
            out.append(score_table(part, comparison, name=name))
    return out


def emit(tables: Sequence[Table], output: Output) -> None:
    """To a file (whole or not at all) or to standard output; on a terminal in colour.

    Raises:
        Missing: the file cannot be written.
    """
    if output.out:
        write_bytes(Path(output.out), formats.render(tables, output.form).encode())
        print(output.out, file=sys.stderr)
    elif output.form == "rich" and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for t in tables:
            for part in formats.rich_renderables(t, console.width):
                console.print(part)
    else:
        print(formats.render(tables, output.form), end="")


def tiles(studies: Sequence[str], selection: Selection, *, each: int = 1, out: str = "tiles.png") -> Path:
    """PNG of the best, median and worst places by gain of the best refined variant over its coarse map, boundaries drawn.

    Args:
        each: places of each kind.

    Raises:
        Missing: no refined variant, or the artefacts are not in the store. BadRequest: `out` is not named *.png.
    """
    from sweeps.report import plots

    path = _named(out, ".png")

    view = next(views(selection.trials(studies), [selection.metric], split=selection.split, labels=selection.labels))
    shown, _, title = panels_of(view, selection.metric, each)
    return write_bytes(path, plots.png(plots.places_figure(shown, title)))


def report(studies: Sequence[str], comparison: Comparison, *, out: str = "report.html", tile_images: bool = True) -> Path:
    """One self-contained HTML page.

    Raises:
        Missing: no such study. BadRequest: a baseline, metric, split or label set that is not there; or `out` is not
            named *.html.
    """
    from sweeps.report.page import EXTRA_COLUMNS, page

    path = _named(out, ".html")
    trials = comparison.trials(studies)
    text = page(trials, list(views_of(trials, comparison, EXTRA_COLUMNS)), comparison, tile_images)
    return write_bytes(path, text.encode())


def frequency(studies: Sequence[str], selection: Selection, *, out: str = "frequency.svg") -> str:
    """SVG of the error removed by size of structure and by distance to the boundary, one column a number of training
    images.

    Returns:
        The same in words.

    Raises:
        BadRequest: the study does not vary the training images, or has several variants of a kind; or `out` is not
            named *.svg.
    """
    from sweeps.report import plots
    from sweeps.report.frequency_tables import IMAGES, columns_of, paragraph, title_of
    from sweeps.report.page import EXTRA_COLUMNS

    path = _named(out, ".svg")
    view = next(views(selection.trials(studies), [selection.metric], split=selection.split, labels=selection.labels, columns=EXTRA_COLUMNS))
    found = columns_of(view)
    if not found:
        raise BadRequest(
            "the figure compares numbers of training images", value=", ".join(studies), hint=f"a study with an axis {IMAGES}: frequency"
        )
    most = max(images for images, _ in found)
    columns = {}
    for images, maps in found:
        bands = by_band(view, maps)
        if bands is None:
            raise Missing("the counts hold no frequency bands", value=", ".join(studies), hint="run the study again with this version")
        columns[title_of(images, most)] = (bands, by_distance(view, maps))
    drawn = plots.svg(plots.shares_figure(columns), ink="#222222", grid="#DDDDDD")
    write_bytes(
        path, drawn.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).encode() if "xmlns=" not in drawn else drawn.encode()
    )
    return paragraph(view)


def overview(*, results: str = RESULTS, out: str = "results/README.md") -> Path:
    """Write the page that lists every published study, from the published folders alone; the README.md of the folder
    above quotes its table.

    Raises:
        Missing: nothing is published, or a folder is not complete.
    """
    from sweeps.report.overview import quote, text

    page = text([Path(results) / name for name in published(results)])
    above = Path(out).absolute().parent.parent / "README.md"
    if above.is_file():
        write_bytes(above, quote(page, above.read_text()).encode())
    return write_bytes(Path(out), page.encode())


def publish(study: str, comparison: Comparison, *, results: str = RESULTS, tile_images: bool = True) -> Path:
    """results/published/<study>/: rows under 1 MB, tables, report, README.

    Raises:
        Missing: no such study, or nowhere to write. BadRequest: rows too large, or a metric that rows by scene cannot
            give.
    """
    from sweeps.report.page import EXTRA_COLUMNS, page
    from sweeps.report.publish import write

    trials = comparison.trials([study])
    found = list(views_of(trials, comparison, EXTRA_COLUMNS))
    return write(Path(results) / study, study, trials, found, comparison, page(trials, found, comparison, tile_images))


def published(results: str = RESULTS) -> tuple[str, ...]:
    """Names of all published studies.

    Raises:
        Missing: there is none.
    """
    names = tuple(sorted(p.parent.name for p in Path(results).glob("*/published.json")))
    if not names:
        raise Missing("nothing is published", value=results, hint="python -m sweeps publish STUDY")
    return names


def verify(study: str, *, results: str = RESULTS) -> None:
    """Recompute every published number from its rows.

    Raises:
        Missing: nothing published under that name. Disagreement: a number is not what the rows give.
    """
    from sweeps.report.publish import recompute

    n = recompute(Path(results) / study)
    print(f"{study}: every number of {n} tables is what the rows give")


def _named(out: str, suffix: str) -> Path:
    """`out` as a path.

    Raises:
        BadRequest: it has another suffix, so that other programs would take the file for what it is not.
    """
    path = Path(out)
    if path.suffix.lower() != suffix:
        raise BadRequest("the output is of another kind than its name says", value=f"-o {out}", allowed=f"*{suffix}",
                         hint=f"-o {path.with_suffix(suffix)}")  # fmt: skip
    return path
