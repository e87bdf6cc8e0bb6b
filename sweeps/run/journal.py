"""Optuna's journal of an adaptive study, `studies/<name>.optuna.log`: one driver appends to it, any process reads it.

It is in the store if that is local, else in the store's cache and copied to the store after every trial.
optuna-dashboard opens it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from idgbr.errors import BadRequest, Disagreement
from idgbr.store import Store
from sweeps.run.goals import is_higher_better
from sweeps.study import Search, Study

if TYPE_CHECKING:
    import optuna


def spec_of(study: Study) -> Search:
    """Raises:
    BadRequest: the study is not a search.
    """
    if study.search is None:
        raise BadRequest(f"the study {study.name} is not a search", hint="Study(search=Search(...))")
    return study.search


def path_of(study: Study, store: Store) -> Path:
    """Of the journal on this machine."""
    return Path(store.base if store.is_local else store.cache) / "studies" / f"{study.name}.optuna.log"


def opened(study: Study, store: Store) -> optuna.Study:
    """The Optuna study behind a search, made when missing."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec, path = spec_of(study), path_of(study, store)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not store.is_local and not path.exists():
        stored = store.read_bytes(f"studies/{study.name}.optuna.log")
        if stored:
            path.write_bytes(stored)
    storage = JournalStorage(JournalFileBackend(str(path)))
    directions: list[Literal["minimize", "maximize"]] = [
        "minimize" if g.startswith("-") or not is_higher_better(g) else "maximize" for g in spec.goals
    ]
    found = optuna.create_study(storage=storage, study_name=study.name, directions=directions, load_if_exists=True)
    # The same seed again would propose the same points again.
    seed = spec.seed + len(found.trials)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, spec.trials // 4))),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    found.sampler = samplers[spec.sampler]()
    return found


def repair(study: Study, store: Store) -> None:
    """Cut off an incomplete last line, left by a full disk or a killed driver: Optuna would append to it and then
    fail to read the file.

    For the one driver that may write.

    Raises:
        Disagreement: a line before the last is damaged.
    """
    path = path_of(study, store)
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    bad = [n for n, line in enumerate(lines) if not _is_whole(line)]
    if not bad:
        return
    if bad[0] != len(lines) - 1:
        raise Disagreement(
            f"the journal of the search {study.name} is damaged", value=f"{path}, line {bad[0] + 1} of {len(lines)}",
            hint="move it away: the search starts again; its artefacts and rows are kept",
        )  # fmt: skip
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) for line in lines[:-1]))


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


def save(study: Study, store: Store) -> None:
    """Copy the journal to a store that is not local."""
    if not store.is_local:
        store.write_bytes(f"studies/{study.name}.optuna.log", path_of(study, store).read_bytes())


def drop(study: Study, store: Store) -> None:
    """The journal of an older definition."""
    path_of(study, store).unlink(missing_ok=True)
    store.delete(f"studies/{study.name}.optuna.log")
