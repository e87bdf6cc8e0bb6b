"""Ids of rasters: from file names, safe as the names of other files, never empty, and never the same for two files."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from idgbr.datasets.layout import Entry

MOST_BYTES = 210  # of an id in UTF-8: file names end at 255, and outputs add a suffix of their own


def safe_id(name: str) -> str:
    """An id for a file name: letters, marks and digits of every script (in NFC), `.`, `_` and `-`; anything else
    becomes `_`.

    Where nothing would be left, or a sign outside ASCII was lost, or the id would be too long, a digest of the name
    makes it unique.
    """
    kept = "".join(c if _fits(c) else "\0" for c in unicodedata.normalize("NFC", name))
    lost = any(ord(c) > 127 and not _fits(c) for c in unicodedata.normalize("NFC", name))
    text = re.sub("\0+", "_", kept).strip("_")
    if not text.strip("."):
        return f"raster_{_digest(name)}"
    if len(text.encode()) > MOST_BYTES:
        return f"{text.encode()[: MOST_BYTES - 10].decode(errors='ignore')}_{_digest(name)}"
    return f"{text}_{_digest(name)}" if lost else text


def _fits(c: str) -> bool:
    return c in "._-" or (c.isalnum() if c < "\x80" else unicodedata.category(c)[0] in "LMN")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def told_apart(entries: Sequence[Entry], root: Path) -> tuple[Entry, ...]:
    """The same entries; where different files have one id (`a b.tif` and `a_b.tif`), those whose own name it is not
    get a digest of their path below `root`. Two entries of one file keep their id: that is for the caller to refuse.
    """
    files: dict[str, set[Path]] = defaultdict(set)
    for entry in entries:
        files[entry.id].add(entry.image)
    out = []
    for entry in entries:
        same = files[entry.id]
        bearers = {path for path in same if path.stem == entry.id}
        if len(same) > 1 and bearers != {entry.image}:
            name = entry.image.relative_to(root).as_posix() if entry.image.is_relative_to(root) else str(entry.image)
            new = f"{entry.id}_{_digest(name)}"
            entry = dataclasses.replace(entry, id=new, scene=new if entry.scene == entry.id else entry.scene)
        out.append(entry)
    return tuple(out)
