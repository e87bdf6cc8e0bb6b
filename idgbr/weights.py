"""Whether a safetensors file holds the weights of a network: names and shapes from the file's header, before anything
trains.

No tensor is read, so gigabytes are checked in milliseconds. timm renames and resamples some tensors when it loads
them: names are compared without dots, and tensors that depend on the input's size or bands are compared by name
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from idgbr.errors import Disagreement

Shapes = dict[str, tuple[int, ...]]
RESAMPLED = ("pos_embed", "patch_embed", "relative_position", "rel_pos", "attn_mask")


def header(path: Path) -> Shapes:
    """Name -> shape of every tensor of a safetensors file.

    Raises:
        Disagreement: not a safetensors file, or a truncated one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Disagreement(f"{path} is not a whole safetensors file: {error}", hint="copy or convert it again") from error


def misfit(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], skip: tuple[str, ...] = ()) -> str:
    """Why a file with tensors `found` does not hold a network of tensors `wanted`; empty where it does.

    Args:
        skip: beginnings of names that need not be there.
    """
    there = {plain(name): shape for name, shape in found.items()}
    needed = {plain(name): shape for name, shape in wanted.items() if not name.startswith(skip)}
    absent = sorted(name for name in needed if name not in there)
    if absent:
        return f"{len(absent)} of {len(needed)} tensors are not in the file, first {absent[0]}"
    other = sorted(name for name, shape in needed.items() if not _same(name, there[name], shape))
    if other:
        return f"{len(other)} of {len(needed)} tensors have another shape, first {other[0]}: {there[other[0]]}, not {needed[other[0]]}"
    return ""


def plain(name: str) -> str:
    """A tensor's name as it is compared: timm's feature extractors write a level's dots as underscores."""
    return name.replace(".", "_")


def _same(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if any(part in name for part in RESAMPLED):
        return True
    # the first convolution is adapted to another number of bands
    return found == wanted or (len(found) == len(wanted) == 4 and found[1] == 3 and (found[0], *found[2:]) == (wanted[0], *wanted[2:]))
