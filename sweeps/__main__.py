"""`python -m sweeps VERB`: thin verbs, heavy imports inside them. Exit codes as in `idgbr/errors.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from idgbr.verbs import leave, run_verbs
from sweeps.analysis.request import Comparison, Output, Selection
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement

if TYPE_CHECKING:
    from idgbr.store import Store

EXAMPLES = """Examples:
  python -m sweeps plan   quickstart                       what would run, what is stored, time, disk
  python -m sweeps run    quickstart                       stop it any time; the same command resumes
  python -m sweeps status quickstart                       from another terminal
  python -m sweeps watch  quickstart                       the same as a live page; ends with the study
  python -m sweeps table  quickstart --md                  coarse, one pass, refined, with intervals
  python -m sweeps ablate quickstart --baseline coarse     paired effects of every axis
  python -m sweeps report quickstart -o report.html        one file, no network
  python -m sweeps run    my_studies.py:wide data.root=/scenes
  python -m sweeps gc --budget-gb 50 --dry-run             what would be deleted
  python -m sweeps explain KEY refiner.lr=1e-4             what made it; what a change would recompute"""

StudyName = Annotated[Positional[str], arg(help="ready-made study, or path.py:function")]
StudyNames = Annotated[Positional[tuple[str, ...]], arg(help="names of studies; several are merged")]
Overrides = Annotated[Positional[tuple[str, ...]], arg(help="stage.field=value for every trial")]
StorePath = Annotated[str, arg(help="folder or URI of the store")]
By = Annotated[str, arg(help="axis or stage: a table, or a row, for each of its levels")]
TileImages = Annotated[bool, arg(help="pictures of places; needs the artefacts, not only the tables")]


def _store(path: str) -> Store:
    from idgbr.store import Store, default_root

    return Store(path or default_root())


def plan(
    study: StudyName,
    overrides: Overrides = (),
    /,
    *,
    store: StorePath = "",
    json: bool = False,
    preflight: Annotated[bool, arg(help="build every model on the meta device")] = True,
    cluster: Annotated[str, arg(help="COUNTxCARD such as 8xH100: predicts GPU-hours, wall time and disk from counted FLOPs")] = "",
    budget_gpu_hours: Annotated[float, arg(help="proposes fewer seeds, then fewer backbones, until the forecast fits; 0: none")] = 0.0,
    placement: Placement,
) -> None:
    """What would run, what is stored, what it costs, what cannot be built. Starts nothing."""
    from sweeps.run import commands

    commands.plan(commands.study_of(study, overrides), _store(store), placement, as_json=json, preflight=preflight,
                  cluster=cluster, budget_gpu_hours=budget_gpu_hours)  # fmt: skip


def run(
    study: StudyName,
    overrides: Overrides = (),
    /,
    *,
    store: StorePath = "",
    placement: Placement,
    execution: RunOptions,
) -> None:
    """Compute what is missing. Stop it any time; the same command resumes."""
    from sweeps.run import commands

    commands.run(commands.study_of(study, overrides), _store(store), placement, execution)


def status(study: StudyName, /, *, store: StorePath = "", json: bool = False) -> None:
    """Where a study stands: rows, failures, who works on it."""
    from sweeps.run import commands

    commands.status(commands.name_of(study), _store(store), as_json=json)


def watch(
    study: StudyName,
    /,
    *,
    store: StorePath = "",
    once: Annotated[bool, arg(help="print one page")] = False,
    every_s: Annotated[float, arg(help="seconds between two looks at the store")] = 5.0,
) -> None:
    """One live page: trials, units by node, GPU-hours, best so far, last failures. Ends with the study."""
    from sweeps.run import commands
    from sweeps.run.watch import watch as show

    show(commands.name_of(study), _store(store), once=once, every_s=every_s)


def gc(
    *,
    store: StorePath = "",
    budget_gb: Annotated[float, arg(help="delete refiners by policy until the store is this small; 0: only what nothing can use")] = 0.0,
    keep: Annotated[int, arg(help="refiners to keep by score in each study")] = 3,
    dry_run: Annotated[bool, arg(help="list, delete nothing")] = False,
    json: bool = False,
) -> None:
    """Free disk: leftovers first, then artefacts by policy (published, then best, then newest stay)."""
    from sweeps.run.gc import collect

    collect(_store(store), budget_gb=budget_gb, keep=keep, dry_run=dry_run, as_json=json)


def explain(key: Positional[str], overrides: Overrides = (), /, *, store: StorePath = "", json: bool = False) -> None:
    """What made an artefact; with overrides, which stages would be recomputed."""
    from sweeps.run import explain as command

    command.explain(key, _store(store), overrides, as_json=json)


def search(study: StudyName, /, *, store: StorePath = "", json: bool = False) -> None:
    """Best trial or front of an adaptive study, and the storage that optuna-dashboard opens."""
    from sweeps.run import commands
    from sweeps.run.search import show

    show(commands.study_of(study), _store(store), as_json=json)


# ---- analysis: tables alone, neither torch nor ray -------------------------------------------------------------------


def _names(studies: tuple[str, ...]) -> tuple[str, ...]:
    from idgbr.errors import BadRequest
    from sweeps.run import commands

    if not studies:
        raise BadRequest("no study was named", hint="python -m sweeps table STUDY")
    return tuple(commands.name_of(s) for s in studies)


def table(studies: StudyNames, /, *, comparison: Comparison, output: Output, by: By = "") -> None:
    """Scores of every variant and its effect against the baseline, with intervals, from Parquet alone."""
    from sweeps.report import commands

    commands.table(_names(studies), comparison, output, by=by)


def ablate(studies: StudyNames, /, *, comparison: Comparison, output: Output, by: By = "") -> None:
    """Contrasts with Holm, main effects, interactions, cost, importance."""
    from sweeps.report import commands

    commands.ablate(_names(studies), comparison, output, by=by)


def report(
    studies: StudyNames,
    /,
    *,
    comparison: Comparison,
    out: Annotated[str, arg(aliases=["-o"])] = "report.html",
    tile_images: TileImages = True,
) -> None:
    """One self-contained HTML page."""
    from sweeps.report import commands

    print(commands.report(_names(studies), comparison, out=out, tile_images=tile_images))


def tiles(
    studies: StudyNames,
    /,
    *,
    selection: Selection,
    each: Annotated[int, arg(help="places of each kind")] = 1,
    out: Annotated[str, arg(aliases=["-o"])] = "tiles.png",
) -> None:
    """PNG of the best, median and worst places: boundaries of the coarse and the refined map over the image."""
    from sweeps.report import commands

    print(commands.tiles(_names(studies), selection, each=each, out=out))


def frequency(studies: StudyNames, /, *, selection: Selection, out: Annotated[str, arg(aliases=["-o"])] = "frequency.svg") -> None:
    """SVG of the error removed by size of structure and by distance, for each number of training images; and in words."""
    from sweeps.report import commands

    print(commands.frequency(_names(studies), selection, out=out))
    print(out)


def publish(study: StudyName, /, *, comparison: Comparison, results: str = "results/published", tile_images: TileImages = True) -> None:
    """Copy a study's small tables to a folder that is kept with the code."""
    from sweeps.report import commands

    print(commands.publish(_names((study,))[0], comparison, results=results, tile_images=tile_images))


def verify(studies: StudyNames = (), /, *, results: str = "results/published") -> None:
    """Recompute every published number from its rows; without a name, of all that is published."""
    from sweeps.report import commands

    for study in _names(studies) if studies else commands.published(results):
        commands.verify(study, results=results)


def overview(*, results: str = "results/published", out: Annotated[str, arg(aliases=["-o"])] = "results/README.md") -> None:
    """Write the page that lists all published studies, with their headlines, commands and hours."""
    from sweeps.report import commands

    print(commands.overview(results=results, out=out))


VERBS: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (plan, run, status, watch, table, ablate, report, tiles, frequency, publish, verify, overview, search, gc, explain)
}


def main(argv: list[str] | None = None) -> None:
    leave(run_verbs(VERBS, "python -m sweeps", EXAMPLES, argv))


if __name__ == "__main__":
    main()
