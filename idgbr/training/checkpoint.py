"""Tensors of a training gathered from its ranks and spread again, by name: independent of the number of ranks and of
their sharding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from idgbr.interfaces import Json


def local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value


def whole(value: Tensor) -> Tensor:
    """The full tensor on the CPU, in plain layout, with memory of its own (safetensors stores no views)."""
    value = value.detach()
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    return value.cpu().contiguous().clone()


@torch.no_grad()
def copy_whole(target: Any, value: Tensor) -> None:
    """Copy a full tensor into a tensor that may be sharded."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def gathered(values: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """`whole` of each, one after the other, on the ranks that `keep` them: the others lend their shards and hold no
    second copy.

    To be called on every rank alike. {} where not kept.
    """
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        value = value.detach()
        if keep:
            found[name] = whole(value)
        elif hasattr(value, "full_tensor"):
            value.full_tensor()
    return found


def full_state(module: nn.Module, optimizer: torch.optim.Optimizer, keep: bool = True) -> tuple[dict[str, Tensor], Json]:
    """Weights and AdamW's moments by parameter name: independent of ranks and of the kind of sharding. `keep` as in
    `gathered`."""
    model = gathered(module.state_dict(), keep)
    names = {id(p): name for name, p in module.named_parameters()}
    moments = {names[id(p)]: gathered(state, keep) for p, state in optimizer.state.items()}
    return model, moments


def load_full_state(module: nn.Module, optimizer: torch.optim.Optimizer, model: dict[str, Tensor], moments: Json) -> None:
    """Load full weights by name, and the optimiser's moments, into a module that may be sharded.

    Raises:
        KeyError: names of weights differ.
    """
    state = module.state_dict()
    if state.keys() != model.keys():
        odd = sorted(state.keys() ^ model.keys())
        raise KeyError(f"weights differ: {', '.join(odd[:3])}")
    for name, value in state.items():
        copy_whole(value, model[name])
    for name, parameter in module.named_parameters():
        if name not in moments:
            continue
        fresh: dict[str, Tensor] = {}
        for key, value in moments[name].items():
            if value.ndim == 0:  # the step counter of a fused AdamW lives beside its parameter
                fresh[key] = value.to(parameter.device)
            else:
                fresh[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()
                copy_whole(fresh[key], value)
        optimizer.state[parameter] = fresh
