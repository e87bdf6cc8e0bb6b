"""Files that belong to a raster file and decide what it says, found by name; GDAL is not asked.

    NAME.tif.aux.xml   palette, nodata, colour interpretation, CRS (statistics and histograms decide nothing and do not count)
    NAME.tif.msk       mask
    NAME.tfw, .wld     place (world files)
    NAME.hdr, .prj, .ige   header, CRS, samples of formats that keep them apart
    and the files that a virtual raster (.vrt) names, with theirs

Overviews (.ovr) are left out: samples are read at full resolution.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from idgbr.errors import Missing

AUX = ".aux.xml"
_BEHIND = (AUX, ".msk")  # after the whole name
_INSTEAD = (".wld", ".hdr", ".prj", ".ige")  # in place of the suffix, as are world files
_DEPTH = 8  # of virtual rasters in virtual rasters


def files_beside(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """For every file those that belong to it, sorted; files that have none are left out. Each folder is listed
    once."""
    folders: dict[Path, dict[str, list[Path]]] = {}
    found = {path: sorted(_of(path, folders, _DEPTH)) for path in paths}
    return {path: others for path, others in found.items() if others}


def _of(path: Path, folders: dict[Path, dict[str, list[Path]]], depth: int) -> set[Path]:
    folder = path.parent
    if folder not in folders:
        folders[folder] = {}
        try:
            for name in os.listdir(folder):
                folders[folder].setdefault(name.lower(), []).append(folder / name)
        except OSError:
            return set()  # whoever opens the file says what is wrong
    suffix = path.suffix.lower().removeprefix(".")
    world = {f".{suffix}w", f".{suffix[:1]}{suffix[-1:]}w"} if suffix else set()
    names = [path.name + end for end in _BEHIND] + [path.stem + end for end in (*_INSTEAD, *world)]
    out = {each for name in names for each in folders[folder].get(name.lower(), ()) if each != path}
    if suffix == "vrt" and depth:
        for source in vrt_sources(path):
            if source.is_file():
                out |= {source, *_of(source, folders, depth - 1)}
    return out


def is_world_file(path: Path) -> bool:
    """Whether the name is that of a world file (.wld, .tfw, .pgw, ...) or of a CRS (.prj)."""
    suffix = path.suffix.lower()
    return suffix in (".wld", ".prj") or (suffix.endswith("w") and len(suffix) > 2)


def vrt_sources(path: Path) -> list[Path]:
    """Files of the file system that a virtual raster names; empty if it is no XML. Not: GDAL's own file systems,
    parts of containers."""
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError):
        return []
    out = []
    for element in tree.iter("SourceFilename"):
        name = (element.text or "").strip()
        if name and not name.startswith(("/vsi", "<")) and ":" not in name:
            out.append(path.parent / name if element.get("relativeToVRT") == "1" else Path(name))
    return out


def aux_digest(path: Path) -> str | None:
    """Digest of what an .aux.xml says but for statistics and histograms, which viewers add; None if it says nothing
    else.

    Raises:
        Missing: it may not be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError:
        return hashlib.blake2b(data, digest_size=16).hexdigest()
    _without_statistics(tree)
    if not len(tree):
        return None
    text = ElementTree.canonicalize(ElementTree.tostring(tree), strip_text=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _without_statistics(element: ElementTree.Element) -> None:
    for child in list(element):
        _without_statistics(child)
        statistics = child.tag == "Histograms" or (child.tag == "MDI" and child.get("key", "").startswith("STATISTICS_"))
        if statistics or (child.tag in ("Metadata", "PAMRasterBand") and not len(child)):
            element.remove(child)
