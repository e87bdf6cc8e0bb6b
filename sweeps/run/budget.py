"""A study cut to a budget of GPU-hours: fewer seeds first, then fewer backbones from the end of its list, and what
that leaves out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from idgbr.errors import BadRequest
from sweeps.study import Study


@dataclass(frozen=True)
class Cut:
    """A smaller study. `settings`: the words that make it so on the command line; `lost`: what it no longer says."""

    study: Study
    settings: tuple[str, ...]
    lost: str
    gpu_hours: float


def backbones_of(study: Study) -> tuple[str, ...]:
    """Names of the networks of stage I that a study compares, in its order."""
    names = [_name(point) for point in study.points if _is_backbone(point)]
    names += [str(value) for axis in study.axes if axis.name == "backbone.encoder" for value in axis.values]
    return tuple(dict.fromkeys(names))


def smaller(study: Study, seeds: int | None = None, backbones: int | None = None) -> Study:
    """The study with its first `seeds` seeds and its first `backbones` backbones, and its parts likewise.

    Raises:
        BadRequest: none left, or more than there are.
    """
    if seeds is not None:
        _check("seeds", seeds, len(study.seeds))
        study = dataclasses.replace(study, replicates=study.seeds[:seeds])
    if backbones is not None:
        _check("backbones", backbones, len(backbones_of(study)))
        kept = backbones_of(study)[:backbones]
        study = dataclasses.replace(
            study,
            points=tuple(point for point in study.points if not _is_backbone(point) or _name(point) in kept),
            axes=tuple(
                dataclasses.replace(axis, values=tuple(v for v in axis.values if str(v) in kept))
                if axis.name == "backbone.encoder"
                else axis
                for axis in study.axes
            ),
        )
    return dataclasses.replace(study, parts=tuple(smaller(part, seeds, backbones) for part in study.parts))


def cuts(study: Study, hours: float, gpu_hours: Callable[[Study], float]) -> Iterator[Cut]:
    """Smaller and smaller studies, each with what it costs; ends with the first that fits `hours`."""
    seeds, backbones = len(study.seeds), len(backbones_of(study))
    while seeds > 1 or backbones > 1:
        if seeds > 1:
            seeds -= 1
        else:
            backbones -= 1
        left_out = backbones_of(study)[backbones:]
        words = [f"seeds={seeds}"] + ([f"backbones={backbones}"] if left_out else [])
        lost = f"{seeds} of {len(study.seeds)} seeds" + ("" if seeds > 1 else ": no interval between seeds")
        lost += f"; without {', '.join(left_out)}" if left_out else ""
        part = smaller(study, seeds, backbones if left_out else None)
        cut = Cut(part, tuple(words), lost, gpu_hours(part))
        yield cut
        if cut.gpu_hours <= hours:
            return


def _check(what: str, wanted: int, there: int) -> None:
    if not there:
        raise BadRequest(f"the study compares no {what}", value=f"{what}={wanted}", hint=f"the study without {what}=")
    if not 1 <= wanted <= there:
        raise BadRequest(f"the study has {there} {what}", value=f"{what}={wanted}", allowed=f"1 to {there}")


def _is_backbone(point: object) -> bool:
    return isinstance(point, dict) and "backbone.encoder" in point


def _name(point: object) -> str:
    assert isinstance(point, dict)
    return "+".join(str(point[name]) for name in ("backbone.encoder", "backbone.decoder") if name in point)
