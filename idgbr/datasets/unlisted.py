"""Own folders without a split table: images and masks are found by the names of folders, or by suffixes in one folder.

    ROOT/{images}/NAME.*          ROOT/{masks}/NAME.*              {images}: images, img_dir, sat, ...; {masks}: masks, ann_dir, gt, ...
    ROOT/{images}/{split}/NAME.*  ROOT/{masks}/{split}/NAME.*      as mmsegmentation's converters write (img_dir/train, ann_dir/train)
    ROOT/{split}/{images}/NAME.*  ROOT/{split}/{masks}/NAME.*
    ROOT/NAME.png                 ROOT/NAME_gt.png                 in one folder (or ROOT/{split}/); the image may have a suffix too

{split} is train, val or test (or training, valid, validation, testing). Where no folder names a split, everything is
train.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.folder import find_rows, select, some
from idgbr.datasets.ids import safe_id
from idgbr.datasets.layout import IMAGE_SUFFIXES, SPLITS, Entry, Found, Layout
from idgbr.datasets.pairs import NOT_DATA, unique
from idgbr.errors import Disagreement, Missing

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "images_png", "sat", "rgb", "top", "3band", "8band", "jpegimages")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "gt", "gts", "ann_dir", "ann", "annotations", "masks_png", "labels_png", "map", "maps",
    "groundtruth", "ground_truth", "segmentationclass",
)  # fmt: skip
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_MASK_WORDS = "mask|masks|label|labels|gt|groundtruth|seg|segmentation|annotation|lab|m"
_MASK_NAME = re.compile(rf"^(?P<key>.+?)[ _.-]({_MASK_WORDS})$", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"^(?P<key>.+?)[ _.-](sat|image|img|rgb|photo)$", re.IGNORECASE)
CONVERTED = ("img_dir", "ann_dir")  # of mmsegmentation's converters
Where = tuple[str, str]  # split ("" where no folder tells it), folder below that


@dataclass(frozen=True)
class _Side:
    """Files of one side by place and name; `origin` is named in messages."""

    files: dict[tuple[Where, str], Path]
    origin: str


def find_unlisted(root: Path) -> Found | None:
    """Pairs below `root` (or below its only folder, up to three levels down); None where no arrangement of the above
    is there.

    Raises:
        Missing: images without masks or masks without images ("found 3 of 5 pairs; missing ...").
        Disagreement: two folders of images (or of masks), two files of one name.
    """
    base = _unwrapped(root)
    sides = _two_folders(base) or _split_folders(base) or _suffixes(base)
    if sides is None:
        return None
    images, masks, arrangement = sides
    labels = _matched(images, masks, base)
    entries, groups = [], []
    for (where, name), image in images.files.items():
        split = where[0] or "train"
        stem = "/".join(part for part in (where[1], name) if part)
        entries.append(Entry(safe_id(stem), safe_id(stem), split, image, labels.get((where, name))))
        groups.append(re.sub(r"\W+", "_", str(image.parent.relative_to(base))).lower())
    notes = [f"no split table: pairs found by name, {arrangement}; every raster counts as a scene of its own"]
    if not any(where[0] for where, _ in images.files):
        notes.append("no folder tells a split, so everything is train; a splits.csv (image, mask, split, scene) decides otherwise")
    order = {split: i for i, split in enumerate(SPLITS)}
    return Found(tuple(sorted(unique(entries, groups), key=lambda e: order[e.split])), tuple(notes))


def find_converted(root: Path) -> Found | None:
    """`find_unlisted` where the folders are those of mmsegmentation's converters (img_dir and ann_dir), else None.

    Raises: as `find_unlisted`.
    """
    base = _unwrapped(root)
    return find_unlisted(base) if all((base / name).is_dir() for name in CONVERTED) else None


def find_own(root: Path, config: DataConfig) -> Found:
    """By the split table, where there is one; by the names of folders and files otherwise.

    Raises:
        Missing: neither is there, or part of the files. Disagreement: a table that is no split table, names that are
            not clear.
    """
    if not config.split_table and not any(_is_split_table(path) for path in sorted(root.glob("*.csv"))):
        found = find_unlisted(root)
        if found is not None:
            if not config.where:
                return found
            rows = [{"id": e.id, "scene": e.scene, "split": e.split} for e in found.entries]
            kept = {row["id"] for row in select(rows, config.where, root)}
            return dataclasses.replace(found, entries=tuple(e for e in found.entries if e.id in kept))
    return find_rows(root, config)


def _is_split_table(path: Path) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return path.name == "splits.csv" or "split" in re.split(r"[,;\t]", file.readline().strip().lower())


def _unwrapped(root: Path) -> Path:
    known = {*IMAGE_FOLDERS, *MASK_FOLDERS, *SPLIT_WORDS}
    for _ in range(3):
        inside = [p for p in sorted(root.iterdir()) if not p.name.startswith(".") and p.name not in NOT_DATA]
        folders = [p for p in inside if p.is_dir()]
        if len(folders) != 1 or folders[0].name.lower() in known or any(_is_raster(p) for p in inside):
            break
        root = folders[0]
    return root


def _is_raster(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _folder(base: Path, names: Iterable[str], what: str) -> Path | None:
    """Raises:
    Disagreement: more than one of them.
    """
    found = [p for p in sorted(base.iterdir()) if p.is_dir() and p.name.lower() in names]
    if len(found) > 1:
        raise Disagreement(
            f"two folders of {what} in {base}",
            value=", ".join(p.name for p in found),
            hint="a splits.csv that names the files (image, mask, split), or take one folder out",
        )
    return found[0] if found else None


def _rasters(folder: Path, split: str) -> Iterator[tuple[Where, Path]]:
    """All raster files below a folder; a folder at the top that is called like a split tells it, where `split` is
    empty."""
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder).parent.parts
        if not _is_raster(path) or any(part.startswith(".") or part in NOT_DATA for part in below):
            continue
        if not split and below and below[0].lower() in SPLIT_WORDS:
            yield (SPLIT_WORDS[below[0].lower()], "/".join(below[1:])), path
        else:
            yield (split, "/".join(below)), path


def _side(files: Iterable[tuple[Where, Path]], origin: str) -> _Side:
    """Raises:
    Disagreement: two files differ only in the suffix.
    """
    out: dict[tuple[Where, str], Path] = {}
    for where, path in files:
        key = where, unicodedata.normalize("NFC", path.stem)
        if key in out:
            raise Disagreement("two files of one name", value=f"{out[key]}, {path}", hint="keep one of them")
        out[key] = path
    return _Side(out, origin)


def _two_folders(base: Path) -> tuple[_Side, _Side, str] | None:
    images, masks = _folder(base, IMAGE_FOLDERS, "images"), _folder(base, MASK_FOLDERS, "masks")
    if images is None or masks is None:
        return None
    sides = (_side(_rasters(folder, ""), str(folder)) for folder in (images, masks))
    return (*sides, f"images in {images.name}/, masks in {masks.name}/")  # type: ignore[return-value]


def _split_folders(base: Path) -> tuple[_Side, _Side, str] | None:
    images: list[tuple[Where, Path]] = []
    masks: list[tuple[Where, Path]] = []
    named: list[str] = []
    for folder in sorted(base.iterdir()):
        split = SPLIT_WORDS.get(folder.name.lower()) if folder.is_dir() else None
        pair = (_folder(folder, IMAGE_FOLDERS, "images"), _folder(folder, MASK_FOLDERS, "masks")) if split else (None, None)
        if split is None or pair == (None, None):
            continue
        if pair[0] is None or (pair[1] is None and split != "test"):
            there = ", ".join(p.name for p in pair if p)
            lacking = "images" if pair[0] is None else "masks"
            names = IMAGE_FOLDERS if pair[0] is None else MASK_FOLDERS
            raise Missing(f"no folder of {lacking} in {folder}", value=f"found {there}", allowed=", ".join(names))
        images += _rasters(pair[0], split)
        masks += _rasters(pair[1], split) if pair[1] else ()
        named.append(f"{folder.name}/{pair[0].name}" + (f" and {folder.name}/{pair[1].name}" if pair[1] else " without masks"))
    if not images:
        return None
    return _side(images, str(base)), _side(masks, str(base)), ", ".join(named)


def _suffixes(base: Path) -> tuple[_Side, _Side, str] | None:
    """Image and mask in one folder: at least one file is called as a mask, and has an image."""
    folders = [(SPLIT_WORDS[p.name.lower()], p) for p in sorted(base.iterdir()) if p.is_dir() and p.name.lower() in SPLIT_WORDS]
    files = [((split, ""), p) for split, folder in (folders or [("", base)]) for p in sorted(folder.iterdir()) if _is_raster(p)]
    there = {(where, p.stem.lower()) for where, p in files}
    masks, images = [], []
    for where, path in files:
        match = _MASK_NAME.match(path.stem)
        if match is not None:
            key = match["key"].lower()
            partners = {key, *(f"{key}{sign}{word}" for sign in " _.-" for word in ("sat", "image", "img", "rgb", "photo"))}
            if any((where, partner) in there for partner in partners):
                masks.append((where, path))
                continue
        images.append((where, path))
    return (_side(images, str(base)), _side(masks, str(base)), "the mask's name has a suffix (NAME_gt.png)") if masks else None


def _matched(images: _Side, masks: _Side, base: Path) -> dict[tuple[Where, str], Path]:
    """The mask of every image: of the same name, or of the same name without `_sat`, `_mask` and the like.

    Raises:
        Missing: not for all, in a split that has masks. Disagreement: two files that differ in such endings only.
    """
    keys = _by_key(images, _IMAGE_NAME), _by_key(masks, _MASK_NAME)
    out: dict[tuple[Where, str], Path] = {}
    labelled = {where[0] for where, _ in masks.files}
    missing: list[str] = []
    taken = set()
    for key, (name, image) in keys[0].items():
        mask = masks.files.get((key[0], name)) or keys[1].get(key, ("", None))[1]
        if mask is not None:
            out[key[0], name] = mask
            taken.add(mask)
        elif key[0][0] in labelled or key[0][0] != "test":
            missing.append(str(image.relative_to(base)))
    if missing:
        raise Missing(
            f"found {len(out)} of {len(out) + len(missing)} pairs in {base}; missing masks of {some(missing)}",
            hint="put the masks there, take the images out, or write a splits.csv (image, mask, split)",
        )
    bare = [str(path.relative_to(base)) for path in masks.files.values() if path not in taken]
    if bare:
        raise Missing(f"found {len(out)} of {len(masks.files)} pairs in {base}; missing images of {some(bare)}",
                      hint="put the images there, or take the masks out")  # fmt: skip
    return out


def _by_key(side: _Side, ending: re.Pattern[str]) -> dict[tuple[Where, str], tuple[str, Path]]:
    found: dict[tuple[Where, str], list[tuple[str, Path]]] = defaultdict(list)
    for (where, name), path in side.files.items():
        match = ending.match(name)
        found[where, (match["key"] if match else name).lower()].append((name, path))
    out: dict[tuple[Where, str], tuple[str, Path]] = {}
    for (where, key), same in found.items():
        if len(same) == 1:
            out[where, key] = same[0]
        else:  # A.png and A_rgb.png are two images: by their whole names
            out |= {(where, name): (name, path) for name, path in same}
    return out


LAYOUT = Layout(
    name="folder",
    title="own folder",
    table=None,
    find=find_own,
    filters_rows=True,
    expected="splits.csv (image, mask, split) and the files it names; or folders images and masks (with train, val, test); "
    "and classes.json, or data.classes",
)
