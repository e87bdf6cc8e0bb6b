"""What a user hands to `Refiner.refine`: numpy or torch, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from idgbr.errors import Disagreement
from idgbr.labels import ClassTable

ArrayLike: TypeAlias = npt.ArrayLike | Tensor  # what may be given
Array: TypeAlias = npt.NDArray[np.generic] | Tensor  # what is returned: of the kind that was given


def read_image(image: ArrayLike, n_bands: int, valid: ArrayLike | None = None) -> tuple[Tensor, Tensor | None, Callable[[Tensor], Array]]:
    """[C,H,W] or [B,C,H,W] -> float32 [B,C,H,W] (0 where not valid), valid [B,H,W] or None, and the way back: it
    drops an added batch axis and gives the kind (and device) that was given.

    Args:
        valid: bool [H,W] or [B,H,W]; None: all is.

    Raises:
        Disagreement: not an image of `n_bands` bands, a valid value is not finite, or `valid` is of another size or
            kind.
    """
    tensor = _tensor(image, "image")
    batched = tensor.ndim == 4
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != n_bands:
        raise Disagreement(
            "an image must have the bands the refiner was trained on",
            value=f"image {tuple(tensor.shape)}",
            allowed=f"[{n_bands},H,W] or [B,{n_bands},H,W]",
            hint="bands first: image.transpose(2, 0, 1) of a H x W x C picture",
        )
    tensor = tensor.float() if batched else tensor.float()[None]
    mask = None if valid is None else _read_valid(valid, tensor)
    if mask is not None:
        tensor = torch.where(mask[:, None], tensor, 0.0)
    _finite(tensor, "image")

    def back(x: Tensor) -> Array:
        x = x if batched else x[0]
        return x.to(image.device) if isinstance(image, Tensor) else x.cpu().numpy()

    return tensor, mask, back


def _read_valid(valid: ArrayLike, image: Tensor) -> Tensor:
    mask = _tensor(valid, "valid mask").to(image.device)
    b, _, height, width = image.shape
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((b, height, width), (height, width)) or (mask.ndim == 2 and b != 1):
        raise Disagreement(
            "the valid mask must be boolean, one map an image",
            value=f"valid {tuple(mask.shape)} of {mask.dtype}, image {tuple(image.shape)}",
            allowed=f"bool [{b},{height},{width}]",
            hint="valid = image_band != nodata",
        )
    return mask.reshape(b, height, width)


def read_coarse(coarse: ArrayLike, table: ClassTable, image_shape: tuple[int, ...]) -> Tensor:
    """Class indices [(B,)H,W] or probabilities [(B,)K,H,W] -> probabilities float32 [B,K,H,W].

    Raises:
        Disagreement: another size than the image, a class the table lacks, probabilities out of 0..1, or a value that
            is not finite.
    """
    tensor = _tensor(coarse, "coarse map")
    b, _, height, width = image_shape
    n = table.n_classes
    if tuple(tensor.shape[-2:]) != (height, width):
        raise Disagreement(
            "coarse map and image differ in size",
            value=f"coarse {tuple(tensor.shape)}, image {image_shape}",
            hint="resample the coarse map to the image's grid (nearest neighbour for class indices)",
        )
    if tensor.is_floating_point():
        tensor = tensor.reshape(-1, *tensor.shape[-3:]) if tensor.ndim >= 3 else tensor[None, None]
        if tuple(tensor.shape[:2]) != (b, n):
            raise Disagreement(
                "coarse probabilities need one layer a class",
                value=f"{tuple(tensor.shape)} of {tensor.dtype}",
                allowed=f"[{b},{n},{height},{width}]",
                hint="class indices must have an integer dtype",
            )
        tensor = tensor.float()
        _finite(tensor, "coarse map")
        total = tensor.sum(1)
        if tensor.min() < -1e-4 or (total - 1).abs().max() > 1e-2:
            raise Disagreement(
                "coarse probabilities must be at least 0 and sum to 1",
                value=f"from {tensor.min():.4g}, sums from {total.min():.4g} to {total.max():.4g}",
                hint="softmax(logits) before the call",
            )
        return tensor.clamp_min(0) / tensor.clamp_min(0).sum(1, keepdim=True)
    if tuple(tensor.shape) not in ((b, height, width), (height, width)) or (tensor.ndim == 2 and b != 1):
        raise Disagreement(
            "a coarse map of class indices needs one map an image",
            value=f"coarse {tuple(tensor.shape)}, image {image_shape}",
            allowed=f"[{b},{height},{width}]",
        )
    index = tensor.reshape(b, height, width).long()
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= n:
        raise Disagreement(
            "the coarse map has a class that the table lacks",
            value=f"indices {low} to {high}",
            allowed="; ".join(f"{i} {name}" for i, name in enumerate(table.names)),
            hint="translate raw codes with ClassTable.encode; fill ignored pixels with a class",
        )
    return F.one_hot(index, n).movedim(-1, 1).float()


def is_probabilities(coarse: ArrayLike) -> bool:
    """Whether a coarse map holds probabilities, which say how sure it is, or class indices."""
    return _tensor(coarse, "coarse map").is_floating_point()


def _tensor(value: ArrayLike, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise Disagreement(f"the {what} must hold numbers", value=f"dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))


def _finite(tensor: Tensor, what: str) -> None:
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise Disagreement(
            f"the {what} holds values that are not finite",
            value=f"{bad} of {tensor.numel()} are NaN or infinite",
            hint="fill nodata first, e.g. numpy.nan_to_num(image, nan=band_mean)",
        )
