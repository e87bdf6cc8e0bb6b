"""The curve of a training: one JSON line a report, in `curve.jsonl`. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from idgbr.errors import Missing
from idgbr.files import replacing
from idgbr.interfaces import Json

NAME = "curve.jsonl"


def write_curve(folder: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """
    Raises:
        NoSpace, Outage, Missing: as `files.unwritable`.
    """
    with replacing(folder / NAME) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_curve(folder: Path) -> list[Json]:
    """Lines of the curve in a folder, each with `images` and the values of the report.

    Raises:
        Missing: there is none.
    """
    try:
        return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]
    except FileNotFoundError as error:
        raise Missing(f"no {NAME} in {folder}") from error
