"""`python -m sweeps VERB`: thin verbs, heavy imports inside them. Exit codes as in `idgbr/errors.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from idgbr.verbs import leave, run_verbs
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement

EXAMPLES = """Examples:
  python -m sweeps plan   quickstart                       what would run, what is stored, time, disk
  python -m sweeps run    quickstart                       stop it any time; the same line resumes
  python -m sweeps status quickstart                       from another terminal
  python -m sweeps table  quickstart --md                  coarse, one pass, refined, with intervals
  python -m sweeps ablate quickstart --baseline coarse     paired effects of every axis
  python -m sweeps report quickstart -o report.html        one file, no network
  python -m sweeps run    my_studies.py:wide data.root=/scenes
  python -m sweeps gc --budget-gb 50 --dry-run             what would be deleted
  python -m sweeps explain KEY refiner.lr=1e-4             what made it; what a change would remake"""

Study = Annotated[Positional[str], arg(help="ready-made study, or path.py:function")]
Studies = Annotated[Positional[tuple[str, ...]], arg(help="names of studies; several are merged")]
Overrides = Annotated[Positional[tuple[str, ...]], arg(help="stage.field=value for every trial")]
StorePath = Annotated[str, arg(help="folder or URI of the store")]
Stores = Annotated[UseAppendAction[tuple[str, ...]], arg(name="store", help="folder or URI of a store; may be repeated, tables are merged")]
Where = Annotated[UseAppendAction[tuple[str, ...]], arg(help='filter, e.g. "steps<=8 and schedule=cosine"; may be repeated')]


def _store(path: str) -> str:
    return path or os.environ.get("IDGBR_STORE", "store")


def plan(
    study: Study,
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
    from idgbr.store import Store
    from sweeps.run import commands

    commands.plan(commands.study_of(study, overrides), Store(_store(store)), placement, as_json=json, preflight=preflight,
                  cluster=cluster, budget_gpu_hours=budget_gpu_hours)  # fmt: skip


def run(
    study: Study,
    overrides: Overrides = (),
    /,
    *,
    store: StorePath = "",
    placement: Placement,
    execution: RunOptions,
) -> None:
    """Do what is missing. Stop it any time; the same line resumes."""
    from idgbr.store import Store
    from sweeps.run import commands

    commands.run(commands.study_of(study, overrides), Store(_store(store)), placement, execution)


def status(study: Study, /, *, store: StorePath = "", json: bool = False) -> None:
    """Where a study stands: rows, failures, who works on it."""
    from idgbr.store import Store
    from sweeps.run import commands

    commands.status(commands.name_of(study), Store(_store(store)), as_json=json)


def gc(
    *,
    store: StorePath = "",
    budget_gb: Annotated[float, arg(help="delete refiners by policy until the store is this small; 0: only what nothing can use")] = 0.0,
    keep: Annotated[int, arg(help="refiners to keep by score in each study")] = 3,
    dry_run: Annotated[bool, arg(help="list, delete nothing")] = False,
    json: bool = False,
) -> None:
    """Free disk: leftovers first, then artefacts by policy (published, then best, then newest stay)."""
    from idgbr.store import Store
    from sweeps.run.gc import collect

    collect(Store(_store(store)), budget_gb=budget_gb, keep=keep, dry_run=dry_run, as_json=json)


def explain(key: Positional[str], overrides: Overrides = (), /, *, store: StorePath = "", json: bool = False) -> None:
    """What made an artefact; with overrides, which stages would be made anew."""
    from idgbr.store import Store
    from sweeps.run.explain import explain as tell

    tell(key, Store(_store(store)), overrides, as_json=json)


def search(study: Study, /, *, store: StorePath = "", json: bool = False) -> None:
    """Best trial or front of an adaptive study, and the storage that optuna-dashboard opens."""
    from idgbr.store import Store
    from sweeps.run import commands
    from sweeps.run.search import show

    show(commands.study_of(study), Store(_store(store)), as_json=json)


# ---- analysis: tables alone, neither torch nor ray ---------------------------------------------------------------------------


def _form(md: bool, latex: bool, json: bool, csv: bool) -> str:
    from idgbr.errors import BadRequest

    asked = [name for name, is_wanted in (("md", md), ("latex", latex), ("json", json), ("csv", csv)) if is_wanted]
    if len(asked) > 1:
        raise BadRequest("one format at a time", value=" ".join(f"--{name}" for name in asked), hint="-o FILE once for each")
    return asked[0] if asked else "rich"


def _names(studies: tuple[str, ...]) -> tuple[str, ...]:
    from idgbr.errors import BadRequest
    from sweeps.run import commands

    if not studies:
        raise BadRequest("no study was named", hint="python -m sweeps table STUDY")
    return tuple(commands.name_of(s) for s in studies)


def _stores(stores: tuple[str, ...]) -> tuple[str, ...]:
    return stores or (_store(""),)


def table(
    studies: Studies,
    /,
    *,
    store: Stores = (),
    split: str = "",
    labels: str = "",
    metric: str = "boundary_iou",
    metrics: str = "",
    baseline: str = "coarse",
    by: str = "",
    where: Where = (),
    unit: str = "auto",
    md: bool = False,
    latex: bool = False,
    json: bool = False,
    csv: bool = False,
    out: Annotated[str, arg(aliases=["-o"])] = "",
) -> None:
    """Scores of every variant and its effect against the baseline, with intervals, from Parquet alone."""
    from sweeps.report import commands as analysis_commands

    analysis_commands.table(
        _names(studies), stores=_stores(store), split=split, labels=labels, metric=metric, metrics=metrics, baseline=baseline, by=by,
        where=where, unit=unit, form=_form(md, latex, json, csv), out=out,
    )  # fmt: skip


def ablate(
    studies: Studies,
    /,
    *,
    store: Stores = (),
    split: str = "",
    labels: str = "",
    metric: str = "boundary_iou",
    metrics: str = "",
    baseline: str = "coarse",
    by: str = "",
    where: Where = (),
    unit: str = "auto",
    md: bool = False,
    latex: bool = False,
    json: bool = False,
    csv: bool = False,
    out: Annotated[str, arg(aliases=["-o"])] = "",
) -> None:
    """Contrasts with Holm, main effects, interactions, cost, importance."""
    from sweeps.report import commands as analysis_commands

    analysis_commands.ablate(
        _names(studies), stores=_stores(store), split=split, labels=labels, metric=metric, metrics=metrics, baseline=baseline, by=by,
        where=where, unit=unit, form=_form(md, latex, json, csv), out=out,
    )  # fmt: skip


def report(
    studies: Studies,
    /,
    *,
    store: Stores = (),
    split: str = "",
    labels: str = "",
    metric: str = "boundary_iou",
    metrics: str = "",
    baseline: str = "coarse",
    where: Where = (),
    unit: str = "auto",
    out: Annotated[str, arg(aliases=["-o"])] = "report.html",
    tile_images: Annotated[bool, arg(help="pictures of tiles; needs the artefacts, not only the tables")] = True,
) -> None:
    """One self-contained HTML page."""
    from sweeps.report import commands as analysis_commands

    print(analysis_commands.report(
        _names(studies), stores=_stores(store), split=split, labels=labels, metric=metric, metrics=metrics, baseline=baseline, where=where,
        unit=unit, out=out, tile_images=tile_images,
    ))  # fmt: skip


def tiles(
    studies: Studies,
    /,
    *,
    store: Stores = (),
    split: str = "",
    labels: str = "",
    metric: str = "boundary_iou",
    where: Where = (),
    each: Annotated[int, arg(help="tiles of each kind")] = 1,
    out: Annotated[str, arg(aliases=["-o"])] = "tiles.png",
) -> None:
    """PNG of best, median and worst tiles: image, coarse, refined, target, change."""
    from sweeps.report import commands as analysis_commands

    print(analysis_commands.tiles(
        _names(studies), stores=_stores(store), split=split, labels=labels, metric=metric, where=where, each=each, out=out,
    ))  # fmt: skip


def publish(
    study: Study,
    /,
    *,
    store: Stores = (),
    split: str = "",
    labels: str = "",
    metric: str = "boundary_iou",
    metrics: str = "",
    baseline: str = "coarse",
    where: Where = (),
    unit: str = "auto",
    results: str = "results/published",
    tile_images: Annotated[bool, arg(help="pictures of tiles in the report; needs the artefacts, not only the tables")] = True,
) -> None:
    """Copy a study's small tables to a folder that is kept with the code."""
    from sweeps.report import commands as analysis_commands

    print(analysis_commands.publish(
        _names((study,))[0], stores=_stores(store), split=split, labels=labels, metric=metric, metrics=metrics, baseline=baseline,
        where=where, unit=unit, results=results, tile_images=tile_images,
    ))  # fmt: skip


def verify(studies: Studies = (), /, *, results: str = "results/published") -> None:
    """Recompute every published number from its rows; without a name, of all that is published."""
    from sweeps.report import commands as analysis_commands

    for study in _names(studies) if studies else analysis_commands.published(results):
        analysis_commands.verify(study, results=results)


VERBS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (plan, run, status, table, ablate, report, tiles, publish, verify, search, gc, explain)
}


def main(argv: list[str] | None = None) -> None:
    leave(run_verbs(VERBS, "python -m sweeps", EXAMPLES, argv))


if __name__ == "__main__":
    main()
