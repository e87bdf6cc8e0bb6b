"""Results written to a local path: the whole file, or nothing."""

from __future__ import annotations

import uuid
from pathlib import Path

from idgbr.store import unwritable


def write_bytes(path: Path, data: bytes) -> Path:
    """
    Raises:
        Missing: no space, no permission.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(str(path), error) from error
    return path
