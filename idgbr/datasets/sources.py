"""All data sets by name of `data.source`."""

from __future__ import annotations

from idgbr.datasets import folder, isprs, places, published, synthetic, unlisted
from idgbr.datasets.layout import Layout
from idgbr.errors import BadRequest, nearest

SOURCES: dict[str, Layout] = {
    each.name: each
    for each in (
        synthetic.LAYOUT,
        *places.LAYOUTS,
        unlisted.LAYOUT,
        folder.OAM_BUILDINGS,
        isprs.POTSDAM,
        isprs.VAIHINGEN,
        *published.LAYOUTS,
    )
}


def layout(name: str) -> Layout:
    """Raises:
    BadRequest: no such source; names the nearest.
    """
    if name not in SOURCES:
        raise BadRequest("unknown data set", value=f"data.source={name}", allowed=", ".join(SOURCES), hint=nearest(name, SOURCES) or None)
    return SOURCES[name]
