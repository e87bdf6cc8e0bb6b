"""Scenes that are refined and scored in place of the data set's own (`data.elsewhere`): apart from what is trained on."""

from __future__ import annotations

from idgbr.config import DataConfig
from idgbr.datasets.digest import digests
from idgbr.datasets.folder import some
from idgbr.datasets.scan import find
from idgbr.datasets.sources import layout
from idgbr.errors import BadRequest, Disagreement


def require_apart(config: DataConfig) -> None:
    """Check that no training image is among the scenes of `data.elsewhere`, by content.

    Raises:
        BadRequest: the source has no split tables.
        Disagreement: one is, and `data.allow_duplicates` is not set.
        Missing: as `scan.find`.
    """
    if layout(config.source).find is None:
        value = f"data.elsewhere={config.elsewhere}, data.source={config.source}"
        raise BadRequest("this source has no split tables", value=value, hint="data.elsewhere=")
    trained = {entry.image: entry.id for entry in find(config.trained).entries if entry.split == "train"}
    shown = {entry.image: entry.id for entry in find(config.shown).entries}
    contents = digests([*trained, *shown])
    known = {contents[image]: name for image, name in trained.items()}
    twice = [f"{known[contents[image]]} = {name}" for image, name in shown.items() if contents[image] in known]
    if twice and not config.allow_duplicates:
        raise Disagreement(
            "training images stand in data.elsewhere",
            value=f"{config.elsewhere}: {len(twice)}: {some(twice)}",
            hint="take them out of that split table; or data.allow_duplicates=true, to go on all the same",
        )
