"""Finding pairs of image and label files by name, in the folders a publisher's archive unpacks to."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from idgbr.datasets.folder import some
from idgbr.datasets.ids import safe_id
from idgbr.datasets.layout import IMAGE_SUFFIXES, Entry
from idgbr.errors import Disagreement, Missing

Key = Callable[[str], str]
NOT_DATA = ("__MACOSX",)  # a shadow tree of ._NAME files that macOS packs into archives


@dataclass(frozen=True)
class Part:
    """One folder of images with its folder of labels. Each name is a list of alternatives, compared without case;
    "a/b" are two levels.

    `labels` empty: images without labels (a test set whose labels the publisher keeps).
    """

    split: str
    images: tuple[str, ...]
    labels: tuple[str, ...] = ()
    optional: bool = False
    prefix: str = ""  # of the ids, where the publisher's names are told apart by the folder only


def base_folder(root: Path, parts: Sequence[Part]) -> Path:
    """`root`, or the one folder up to three levels below it in which images or labels of a part are: archives unpack
    with wrapping folders.

    Raises:
        Missing: neither; says what was looked for and what is there.
    """
    level = [root]
    for _ in range(4):
        found = [folder for folder in level if any(child(folder, names) for part in parts for names in (part.images, part.labels))]
        if len(found) == 1:
            return found[0]
        if found:
            raise Disagreement("the data set is there twice", value=", ".join(map(str, found)), hint="data.root=ONE OF THEM")
        level = [sub for folder in level for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name not in NOT_DATA]
    there = some(sorted(p.name + "/" * p.is_dir() for p in root.iterdir()), 12) or "nothing"
    raise Missing(
        f"{root} does not hold the data set",
        value=f"found {there}",
        allowed=f"a folder {' or '.join(parts[0].images)}",
        hint="data.root=FOLDER of the unpacked download",
    )


def child(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` that is a folder below `folder`, whatever its case."""
    for name in names:
        place: Path | None = folder
        for level in name.split("/"):
            if place is None or not place.is_dir():
                place = None
                break
            same = [p for p in sorted(place.iterdir()) if p.is_dir() and p.name.lower() == level.lower()]
            place = same[0] if same else None
        if place is not None:
            return place
    return None


def pictures(folder: Path, key: Key) -> dict[str, Path]:
    """Raster files of a folder by `key(stem)`.

    Raises:
        Disagreement: two files with one key.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            name = key(unicodedata.normalize("NFC", path.stem))
            if name in found:
                raise Disagreement("two files are the same tile", value=f"{found[name]}, {path}", hint="keep one of them")
            found[name] = path
    return found


def find_parts(root: Path, parts: Sequence[Part], key: Key = str, gsd_m: float | None = None, title: str = "") -> list[Entry]:
    """Entries of all parts. Every tile is its own scene (where one tile lies beside another is not published).

    A split whose folder is not there at all is left out.

    Raises:
        Missing: no split, a folder of a split, or the label of an image is not there ("found 12 of 38 pairs; missing
            ...").
        Disagreement: two files with one name.
    """
    entries: list[Entry] = []
    groups: list[str] = []
    for part in parts:
        images = child(root, part.images)
        if images is None:
            labels_there = child(root, part.labels) if part.labels else None
            if labels_there is None and (part.optional or not child(root, [name.split("/")[0] for name in part.images])):
                continue  # this split was not unpacked; `counted` says how many tiles that makes
            raise Missing(
                f"{title or root}: no folder {' or '.join(part.images)} in {root}",
                value=f"labels in {labels_there}, but no images" if labels_there else f"found {some(_names(root), 12) or 'nothing'}",
                hint="unpack the images as well" if labels_there else None,
            )
        found = pictures(images, key)
        labels: dict[str, Path] = {}
        if part.labels:
            folder = child(root, part.labels)
            if folder is None:
                raise Missing(f"{title or root}: no folder {' or '.join(part.labels)} in {root}", value=f"found {some(_names(root), 12)}")
            labels = pictures(folder, key)
            missing = sorted(found.keys() - labels.keys())
            if missing:
                raise Missing(
                    f"{title} {part.split}: found {len(found) - len(missing)} of {len(found)} pairs; "
                    f"missing labels of {some(missing)} in {folder}",
                    hint="unpack the archive again, or take the images out",
                )
            bare = sorted(labels.keys() - found.keys())
            if bare:
                raise Missing(
                    f"{title} {part.split}: found {len(found)} of {len(labels)} pairs; missing images of {some(bare)} in {images}"
                )
        if not found:
            raise Missing(f"{title} {part.split}: no images in {images}", allowed=" ".join(IMAGE_SUFFIXES))
        ids = {name: safe_id(part.prefix + name) for name in found}
        entries += [Entry(ids[name], ids[name], part.split, path, labels.get(name), gsd_m=gsd_m) for name, path in found.items()]
        groups += [re.sub(r"\W+", "_", str(images.relative_to(root))).lower()] * len(found)
    if not entries:
        raise Missing(f"{title}: no images in {root}", value=f"found {some(_names(root), 12) or 'nothing'}")
    return unique(entries, groups)


def unique(entries: Sequence[Entry], groups: Sequence[str]) -> list[Entry]:
    """The same entries; where names are used again in another folder, all of them are told apart by the folder's
    name."""
    folders = {(e.id, group) for e, group in zip(entries, groups, strict=True)}
    if max(Counter(name for name, _ in folders).values(), default=0) < 2:
        return list(entries)
    return [dataclasses.replace(e, id=f"{group}_{e.id}", scene=f"{group}_{e.scene}") for e, group in zip(entries, groups, strict=True)]


def counted(entries: Sequence[Entry], published: dict[str, int], title: str) -> list[str]:
    """A note where the folder holds fewer (or more) than was published. `published`: by the splits used here."""
    notes = []
    for split, count in published.items():
        found = sum(e.split == split for e in entries)
        if found != count:
            notes.append(f"{title} {split}: found {found} of {count} tiles")
    return notes


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir())
