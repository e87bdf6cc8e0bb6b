"""Changes to a study by the words after its name on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from idgbr.config import split_name
from idgbr.errors import BadRequest
from sweeps.run.budget import smaller
from sweeps.study import Overrides, Study


def study_with(study: Study, words: Iterable[str]) -> Study:
    """The study with `stage.field=value` in all its trials, its first `seeds=N` seeds, its first `backbones=N`
    backbones.

    Raises:
        BadRequest: no such setting, one that is an axis, a number that the study does not have, or a number of
            backbones together with one backbone for all.
    """
    settings: dict[str, str] = {}
    counts: dict[str, int] = {}
    for text in words:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise BadRequest("an override is written stage.field=value", value=text)
        if name in ("seeds", "backbones"):
            if not value.isdigit():
                raise BadRequest(f"{name} is a number", value=text, allowed=f"{name}=1, {name}=2, ...")
            counts[name] = int(value)
            continue
        split_name(name)
        settings[name] = value
    if "backbones" in counts and "backbone.encoder" in settings:
        raise BadRequest(
            "backbone.encoder sets one backbone for all trials, and no number of backbones is left to choose",
            value=f"backbones={counts['backbones']}, backbone.encoder={settings['backbone.encoder']}",
            hint="give one of the two",
        )
    return smaller(overridden(study, settings), counts.get("seeds"), counts.get("backbones"))


def overridden(study: Study, settings: Overrides) -> Study:
    """The study with these settings in all its trials, those of its parts too; they replace those of its points.

    Raises:
        BadRequest: a setting that is one of its axes; `data.root` for parts that are of different data sets.
    """
    if not settings:
        return study
    if "data.root" in settings and len(sources := {part.base().data.source for part in (study, *study.parts)}) > 1:
        raise BadRequest(
            f"the study {study.name} is of several data sets, which have a folder each",
            value=f"data.root={settings['data.root']}, data sets {', '.join(sorted(sources))}",
            hint="export IDGBR_DATA=FOLDER, with one folder of that name for each",
        )
    return dataclasses.replace(
        study,
        overrides={**study.overrides, **settings},
        points=tuple({name: value for name, value in point.items() if name not in settings} for point in study.points),
        parts=tuple(overridden(part, settings) for part in study.parts),
    )
