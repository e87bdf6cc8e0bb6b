"""The processes that train together: rank, size, device, and how a module is spread over them.

`World` is one process. `DistributedWorld` uses torch.distributed (gloo or nccl) with DDP or FSDP2. Ray Train
(`cluster/train.py`), torchrun, `idgbr train-*` or a test start the processes; nothing here imports Ray.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from idgbr.config import Runtime
from idgbr.errors import BadRequest, Missing
from idgbr.files import publish, temporary_beside
from idgbr.interfaces import Json
from idgbr.machine import allowed_cores
from idgbr.training.mirror import CheckpointMirror

Save = Callable[[Path], None]


def device_of(runtime: Runtime) -> torch.device:
    """The device `runtime.device` names; `auto` is CUDA where there is one.

    Raises:
        BadRequest: a device torch does not know.
        Missing: CUDA is requested, and there is none.
    """
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(runtime.device)
    except RuntimeError as error:
        raise BadRequest("unknown device", value=runtime.device, allowed="auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Missing("no GPU on this machine", value=f"device={runtime.device}", hint="device=auto or device=cpu")
    return device


def use_threads(runtime: Runtime) -> None:
    """Let torch use `runtime.threads` threads; 0: no more than this process may use cores, which torch does not know
    under a CPU quota."""
    torch.set_num_threads(runtime.threads or min(torch.get_num_threads(), allowed_cores()))


Sent = TypeVar("Sent")


class World:
    """One process. The methods are what `train` needs of several."""

    rank: int = 0
    size: int = 1
    sharding: str = "none"
    mirror: CheckpointMirror | None = None  # where checkpoints are copied to, when `scratch` is on this node only

    def __init__(self, device: torch.device | None = None):
        self._device = device

    def device(self, runtime: Runtime) -> torch.device:
        """The device this process computes on."""
        return self._device or device_of(runtime)

    # ---- the module --------------------------------------------------------------------------------------------------

    def wrap(self, module: nn.Module, runtime: Runtime) -> nn.Module:
        """The callable of the training step; `module` stays the owner of names and weights."""
        return module

    def last_micro_batch(self, wrapped: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged in the last micro-batch only."""
        return contextlib.nullcontext()

    # ---- collectives --------------------------------------------------------------------------------------------------------

    def broadcast(self, value: Sent) -> Sent:
        """Rank 0's value, on every rank."""
        return value

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all processes."""
        return values

    def min(self, values: Tensor) -> Tensor:
        """Element-wise minimum over all processes."""
        return values

    def barrier(self) -> None:
        """Return once every process has called this."""

    # ---- checkpoints: the world decides where they are kept, the loop what is in them ---------------------------------

    @contextlib.contextmanager
    def latest_checkpoint(self, scratch: Path) -> Iterator[Path | None]:
        """The newest complete checkpoint as a local folder, or None."""
        if self.mirror is not None:
            if self.rank == 0:
                self.mirror.fetch(scratch)
            self.barrier()
        found = sorted(scratch.glob("checkpoint-*")) if scratch.is_dir() else []
        yield found[-1] if found else None

    def keep_checkpoint(self, scratch: Path, images: int, save: Save, record: Json) -> None:
        """`save(folder)` writes it (called on every rank; only rank 0's folder is kept). Atomic: a complete name or
        nothing."""
        if self.rank == 0:
            scratch.mkdir(parents=True, exist_ok=True)
        final = scratch / f"checkpoint-{images:012d}"
        temporary = temporary_beside(final)
        try:
            if self.rank == 0:
                temporary.mkdir()
            save(temporary)
            if self.rank == 0:
                shutil.rmtree(final, ignore_errors=True)
                publish(temporary, final)
                for old in scratch.glob("checkpoint-*"):
                    if old.name < final.name:
                        shutil.rmtree(old, ignore_errors=True)
                if self.mirror is not None:
                    self.mirror.upload(final)
        finally:
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)

    def drop_checkpoints(self, scratch: Path) -> None:
        """After success: the weights are published, nothing is left to resume."""
        if self.rank == 0:
            for old in [*scratch.glob("checkpoint-*"), *scratch.glob(".checkpoint-*")]:
                shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):  # other files of the owner of this folder may lie in it
                scratch.rmdir()


class DistributedWorld(World):
    """A process group that is already initialised, with `sharding` ddp or fsdp."""

    def __init__(self, sharding: str = "ddp", device: torch.device | None = None):
        if sharding not in ("ddp", "fsdp"):
            raise BadRequest("unknown sharding", value=sharding, allowed="ddp, fsdp")
        super().__init__(device)
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self.sharding = sharding

    def device(self, runtime: Runtime) -> torch.device:
        device = super().device(runtime)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return device

    def wrap(self, module: nn.Module, runtime: Runtime) -> nn.Module:
        device = self.device(runtime)
        if self.size > 1:
            synchronise_batch_norm(module, device)
        if self.sharding == "fsdp":
            return shard(module, self.size, device, runtime.precision)
        if self.size == 1:  # one worker of Ray: there are no gradients to exchange
            return module
        # No search for unused parameters: every parameter of a LossModule takes part in every step.
        # Buffers are not broadcast: batch norm is synchronised, so they are equal on all ranks as it is.
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True, forward_sync_buffers=False
        )

    def last_micro_batch(self, wrapped: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
        if self.sharding == "fsdp":
            wrapped.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            return contextlib.nullcontext()
        return contextlib.nullcontext() if is_last or self.size == 1 else wrapped.no_sync()  # type: ignore[operator]

    def broadcast(self, value: Sent) -> Sent:
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def min(self, values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MIN)
        return values

    def barrier(self) -> None:
        torch.distributed.barrier()


# ---- FSDP2 --------------------------------------------------------------------------------------------------------------


def shard_units(module: nn.Module) -> list[nn.Module]:
    """Blocks to gather one at a time: the innermost members of lists and sequences that hold at least 1/128 of the
    parameters.

    Innermost, because `fully_shard` gathers in a module's `forward`, and a network that is driven through its own
    `encode` and `decode` calls the forward of its blocks, not that of their containers. A module may name its own
    with `shard_units()`.
    """
    named: Any = getattr(module, "shard_units", None)
    if named is not None:
        return list(named())
    least = sum(p.numel() for p in module.parameters()) / 128
    listed = [child for parent in module.modules() if isinstance(parent, nn.ModuleList | nn.Sequential) for child in parent]
    blocks = [m for m in listed if not isinstance(m, nn.ModuleList) and sum(p.numel() for p in m.parameters()) >= least]
    ids = {id(m) for m in blocks}
    innermost = [m for m in blocks if not any(id(inner) in ids for inner in m.modules() if inner is not m)]
    return list(dict.fromkeys(innermost))


def shard(module: nn.Module, size: int, device: torch.device, precision: str) -> nn.Module:
    """`fully_shard` of the units, then of the whole (in place: names stay). Gradients are averaged in fp32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs are not cast: raw digital numbers would lose their lower bits before they are normalised. Autocast does
    # the rest.
    narrow = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
    policy = MixedPrecisionPolicy(**narrow, cast_forward_inputs=False)
    module.to(memory_format=torch.contiguous_format)  # flat shards know no channels-last
    mesh = init_device_mesh(device.type, (size,))
    for unit in shard_units(module):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return module


# ---- batch norm over the global batch ----------------------------------------------------------------------------------------


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Batch norm sees the global batch, so that the number of workers changes no loss. In place; names of weights
    stay.

    torch's SyncBatchNorm is CUDA only; over gloo the same statistics are one all-reduce a layer and direction.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        for name, child in list(module.named_children()):
            setattr(module, name, convert_sync_batchnorm(child))
        return
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = types.MethodType(_global_batch_norm, layer)  # type: ignore[method-assign]


class _GlobalBatchNorm(torch.autograd.Function):
    """Batch norm by statistics over all ranks: one all-reduce forward, one backward; the small ones cost latency, not
    bytes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns y like x, and mean [C], variance [C], count [] over all ranks' pixels."""
        dims = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        variance, mean = variance.double(), mean.double()  # in double, E[x^2] - E[x]^2 loses nothing that float32 holds
        total = torch.cat([mean, variance + mean.square(), mean.new_ones(1)]) * (x.numel() / x.shape[1])
        torch.distributed.all_reduce(total)
        mean, square = (total[:-1] / total[-1]).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        y = nn.functional.batch_norm(x, mean.float(), variance.float(), weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean.float(), torch.rsqrt(variance + eps).float(), total[-1])
        count = total[-1].clone()
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: object) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        gradient = gradient.float()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])
        own = sums.clone()  # of weight and bias: summed over ranks with all other gradients
        torch.distributed.all_reduce(sums)  # every rank's loss depends on the statistics of all
        shift, slope = (sums / count).float()
        scale = scale if weight is None else scale * weight
        into = (gradient - shift.view(shape) - normal * slope.view(shape)) * scale.view(shape)
        return into.to(x.dtype), None if weight is None else own[1], None if weight is None else own[0], None


def _global_batch_norm(self: Any, x: Tensor) -> Tensor:
    """Forward of a batch norm in training: mean and variance over all ranks' pixels (Ioffe and Szegedy 2015, over the
    global batch)."""
    if not self.training:
        y = nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    else:
        y, mean, variance, count = _GlobalBatchNorm.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), rate)
    if hasattr(self, "act"):  # timm's BatchNormAct2d
        y = self.act(self.drop(y))
    return y
