"""The one training loop, of the backbone and of the refiner, on one process or many.

Progress is counted in images. Step s of a run sees the samples [s * batch, (s + 1) * batch), and sample i is a pure
function of (seed, i): whatever the number of workers or micro-batches, the same global batch, hence the same loss up
to rounding. Nothing but weights, optimiser, average and the counter is state, so a resumed run repeats an undisturbed
one exactly.

    curve.jsonl         one line a report: images, loss, its parts, lr, grad_norm, images_per_s
    model.safetensors   the snapshot: averaged (EMA) weights of `module.network`, for use
    checkpoint-*        everything to go on with, in `scratch`

B batch, C bands, H, W.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idgbr.config import Runtime, TrainingConfig
from idgbr.errors import BadRequest, Disagreement, IdgbrError, Interrupted
from idgbr.files import replacing, unwritable, write_tensors
from idgbr.interfaces import Json, Report, Stop
from idgbr.training.batches import Plan, Samples, batches, micro_batches
from idgbr.training.checkpoint import copy_whole, full_state, gathered, load_full_state, local
from idgbr.training.curve import write_curve
from idgbr.training.distributed import World, use_threads

REPORTS = 200  # lines of a curve
EMA_RAMP = 0.1  # the average's half-life is at most this share of the images seen, so that it soon forgets the start (EDM2, sec. 3)
NEVER = 2**62


class NotFinite(IdgbrError):
    """The loss is no longer a number."""


def train(
    module: nn.Module,
    samples: Samples,
    settings: TrainingConfig,
    *,
    seed: int,
    out: Path,
    scratch: Path | None = None,
    world: World | None = None,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
) -> None:
    """Train `module` and leave `model.safetensors` and `curve.jsonl` in `out`.

    Args:
        module: `module(batch) -> (loss [B], {name: [B]})`; `module.network` is what is saved. Where it has
            `compile_parts(mode)`, that compiles it, else it is compiled whole. Everything random in it must come from
            `batch["seed"]` (int64 [B]); torch's global generator is seeded by (seed, step, rank) for what does not.
        samples: `samples[i]` is the i-th image ever seen: a dict of tensors of one shape.
        settings: `train_images` is rounded up to whole batches.
        seed: of the run (torch's generator; the samples have their own).
        out: folder of the result; made when missing.
        scratch: folder of checkpoints, the same for every attempt at this training; its owner deletes it once the
            result is safe. Default: `out/checkpoint`, deleted at the end.
        world: the processes that train together.
        report: called on rank 0 with each line of the curve, plus total_images, eta_s and memory_bytes.
        stop: polled between steps (by rank 0 at reports where there are several); true ends the run.

    Raises:
        Interrupted: `stop` returned true; a checkpoint is in `scratch`.
        NotFinite: a loss or gradient is NaN or infinite; names the step.
        Disagreement: the checkpoint belongs to another module or seed.
        Missing: no space to write.
    """
    world, runtime = world or World(), runtime or Runtime()
    keep = scratch is not None
    scratch = scratch or out / "checkpoint"
    device = world.device(runtime)
    if settings.batch_images < world.size:
        raise BadRequest(
            "batch_images is smaller than the number of workers",
            value=f"batch_images={settings.batch_images}, workers={world.size}",
            hint=f"batch_images={world.size} or fewer workers",
        )
    if runtime.precision not in ("fp32", "bf16"):
        raise BadRequest("unknown precision", value=runtime.precision, allowed="fp32, bf16")
    if runtime.compile not in ("", "default", "reduce-overhead"):
        raise BadRequest("unknown mode of compilation", value=runtime.compile, allowed="default, reduce-overhead, or empty")
    use_threads(runtime)
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        run = _Run(module, samples, settings, seed, world, runtime, device)
        try:
            _loop(run, out, scratch, report, stop)
            if not keep:
                world.drop_checkpoints(scratch)
        except OSError as error:
            raise unwritable(str(scratch), error) from error


def adamw(module: nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW of the trained parameters in one kernel; norms and biases are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed, plain = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, fused=True)


class _Run:
    """What lives from step to step."""

    def __init__(
        self, module: nn.Module, samples: Samples, settings: TrainingConfig, seed: int, world: World, runtime: Runtime, device: torch.device
    ):
        self.module, self.samples, self.settings, self.seed, self.world, self.runtime, self.device = (
            module, samples, settings, seed, world, runtime, device)  # fmt: skip
        self.batch = settings.batch_images
        self.pieces = micro_batches(self.batch, world.size, settings.accumulate, runtime.micro_images)
        if runtime.compile == "reduce-overhead" and self.pieces > 1:
            raise BadRequest(
                "CUDA graphs keep one forward pass a step: the next one overwrites its gradients",
                value=f"compile=reduce-overhead, {self.pieces} micro-batches a step",
                hint="compile=default, or a batch that fits one GPU at once",
            )
        self.steps = math.ceil(settings.train_images / self.batch)
        self.step = 0
        self.report_steps = max(1, self.steps // REPORTS)
        self.curve: list[Json] = []
        self.seconds = 0.0  # of training before the last resume
        module.to(device).train()
        if world.sharding != "fsdp":
            module.to(memory_format=torch.channels_last)
        if runtime.compile:
            compile_parts: Any = getattr(module, "compile_parts", None)
            compile_parts(runtime.compile) if compile_parts else module.compile(mode=runtime.compile)
        self.wrapped = world.wrap(module, runtime)
        self.optimizer = adamw(module, settings)
        self.ema = {name: value.detach().clone() for name, value in self.network_state().items()} if settings.ema_images else {}
        self.names: list[str] = []  # of the sums: loss, its parts
        self.reset_sums()

    @property
    def images(self) -> int:
        return self.step * self.batch

    def network_state(self) -> dict[str, Tensor]:
        return self.module.network.state_dict()  # type: ignore[union-attr]

    def reset_sums(self) -> None:
        self.sums = torch.zeros(0, dtype=torch.float64, device=self.device)  # over images since the last report
        self.norms = torch.zeros((), dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), NEVER, dtype=torch.int64, device=self.device)

    def lr(self) -> float:
        """Linear warm-up, then cosine to zero, in images at the end of the step."""
        s, images = self.settings, self.images + self.batch
        if images < s.warmup_images:
            return s.lr * images / s.warmup_images
        rest = max(1, self.steps * self.batch - s.warmup_images)
        return s.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (self.images - s.warmup_images) / rest if images > s.warmup_images else 0.0)))

    # ---- one step ----------------------------------------------------------------------------------------------------

    def train_step(self, micro_batches: list[dict[str, Tensor]]) -> None:
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self.seed}/{self.step}/{self.world.rank}".encode()).digest()[:7], "big"))
        lr = self.lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        if self.runtime.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        for n, batch in enumerate(micro_batches):
            batch = {name: _to(value, self.device) for name, value in batch.items()}
            with self.world.last_micro_batch(self.wrapped, n == len(micro_batches) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.runtime.precision == "bf16"):
                    loss, parts = self.wrapped(batch)
                # DDP and FSDP average over ranks; slices may be uneven, so weigh by images of the global batch.
                (loss.float().sum() * (self.world.size / self.batch)).backward()
            self.count(loss, parts)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.norms += norm.double()
        self.mark(norm)
        self.optimizer.step()
        self.step += 1
        self.average()
        if self.device.type == "cpu" and self.world.size == 1:
            self.check_finite()

    @torch.no_grad()
    def count(self, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        if not self.names:
            self.names = ["loss", *parts]
        values = torch.stack([loss.detach().double().sum(), *(parts[name].detach().double().sum() for name in self.names[1:])])
        self.sums = values if not len(self.sums) else self.sums + values
        self.mark(values[0])

    @torch.no_grad()
    def mark(self, value: Tensor) -> None:
        """Remember the first step with a value that is not finite, without waiting for the device."""
        here = torch.full_like(self.bad_step, self.step)
        self.bad_step = torch.where(torch.isfinite(value), self.bad_step, torch.minimum(self.bad_step, here))

    def check_finite(self) -> None:
        bad = int(self.world.min(self.bad_step))
        if bad != NEVER:
            raise NotFinite(
                f"loss or gradient not finite in step {bad} (images {bad * self.batch} to {(bad + 1) * self.batch})",
                value=f"lr={self.settings.lr}, clip_norm={self.settings.clip_norm}, precision={self.runtime.precision}",
                hint="a smaller lr, clip_norm=1, a longer warm-up, or precision fp32",
            )

    @torch.no_grad()
    def average(self) -> None:
        """EMA by half-life in images: beta = 0.5 ** (batch / half-life) (EDM2, training loop)."""
        if not self.ema:
            return
        half_life = min(self.settings.ema_images, EMA_RAMP * self.images)
        weight = 1 - 0.5 ** (self.batch / half_life)
        now = self.network_state()
        pairs = [(local(old), local(now[name])) for name, old in self.ema.items()]
        floats = [(old, new) for old, new in pairs if old.is_floating_point()]
        torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], weight)
        for old, new in pairs:
            if not old.is_floating_point():
                old.copy_(new)

    # ---- housekeeping --------------------------------------------------------------------------------------------------

    def line(self, seconds: float, steps: int) -> Json:
        """One line of the curve: means over the images since the last one."""
        sums = (self.world.sum(self.sums) / (steps * self.batch)).tolist()
        values = dict(zip(self.names, sums))
        return {"images": self.images, **values, "lr": self.lr_before, "grad_norm": float(self.norms) / steps,
                "images_per_s": round(steps * self.batch / max(seconds, 1e-9), 3)}  # fmt: skip

    @property
    def lr_before(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def save(self, folder: Path) -> None:
        """Gather with every rank, keep and write on rank 0."""
        is_first = self.world.rank == 0
        model, optimizer = full_state(self.module, self.optimizer, keep=is_first)
        ema = gathered(self.ema, keep=is_first)
        sums = self.world.sum(self.sums).tolist()
        if not is_first:
            return
        write_tensors(model, folder / "model.safetensors")
        if ema:
            write_tensors(ema, folder / "ema.safetensors")
        torch.save(optimizer, folder / "optimizer.pt")
        state = {"step": self.step, "seed": self.seed, "batch": self.batch, "names": self.names, "sums": sums, "norms": float(self.norms),
                 "curve": self.curve}  # fmt: skip
        (folder / "state.json").write_text(json.dumps(state))

    def restore(self, folder: Path) -> None:
        """Raises:
        Disagreement: it is not a checkpoint of this run.
        """
        from safetensors.torch import load_file

        try:
            state = json.loads((folder / "state.json").read_text())
            model = load_file(folder / "model.safetensors")
            ema = load_file(folder / "ema.safetensors") if self.ema else {}
            optimizer = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        except Exception as error:
            raise Disagreement(
                f"cannot read the checkpoint {folder}: {error}", hint=f"delete {folder} to start this training afresh"
            ) from error
        if (state["seed"], state["batch"]) != (self.seed, self.batch):
            raise Disagreement(
                f"the checkpoint {folder} belongs to another run",
                value=f"seed={state['seed']}, batch_images={state['batch']}",
                allowed=f"seed={self.seed}, batch_images={self.batch}",
                hint=f"delete {folder} to start this training afresh",
            )
        try:
            load_full_state(self.module, self.optimizer, model, optimizer)
            for name, value in self.ema.items():
                copy_whole(value, ema[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise Disagreement(
                f"the checkpoint {folder} does not fit this module: {error}", hint=f"delete {folder} to start this training afresh"
            ) from error
        self.step, self.curve, self.names = state["step"], state["curve"], state["names"]
        share = 1.0 if self.world.rank == 0 else 0.0  # the sums so far are counted once
        self.sums = torch.tensor(state["sums"], dtype=torch.float64, device=self.device) * share
        self.norms = torch.tensor(state["norms"], dtype=torch.float64, device=self.device)

    def write_snapshot(self, out: Path) -> None:
        weights = gathered(self.ema or self.network_state(), keep=self.world.rank == 0)
        if self.world.rank:
            return
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "model.safetensors") as temporary:
            write_tensors(weights, temporary)
        write_curve(out, self.curve)


def _loop(run: _Run, out: Path, scratch: Path, report: Report | None, stop: Stop | None) -> None:
    world = run.world
    with world.latest_checkpoint(scratch) as folder:
        if folder is not None:
            run.restore(folder)
    plan = Plan(run.step, run.steps, run.batch, world.rank, world.size, run.pieces)
    stream = batches(run.samples, plan, run.seed, run.runtime.loader_workers, pin_memory=run.device.type == "cuda")
    mark_time, mark_step, saved_time, saved_images = time.monotonic(), run.step, time.monotonic(), run.images
    first = run.step
    while True:
        done = run.step == run.steps
        is_tick = (run.step % run.report_steps == 0 and run.step > 0) or done

        # report
        if is_tick and run.step > first:
            run.check_finite()
            now = time.monotonic()
            # a run resumed between two reports has sums from before: the mean is over the whole interval, the speed
            # over what ran here
            since = run.step - (run.curve[-1]["images"] // run.batch if run.curve else 0)
            line = run.line((now - mark_time) * since / max(1, run.step - mark_step), since)
            run.curve.append(line)
            if report and world.rank == 0:
                left = (run.steps - run.step) * run.batch
                eta_s = left / max(line["images_per_s"], 1e-9)
                total = run.steps * run.batch
                report(done=line["images"], total=total, eta_s=eta_s, memory_bytes=_memory(run.device), **line)
            run.reset_sums()
            mark_time, mark_step = now, run.step

        # snapshot
        if done:
            run.write_snapshot(out)

        # checkpoint and stop: one decision of rank 0, where all ranks come by
        wanted = leaving = False
        if (is_tick or world.size == 1) and not done:
            elapsed = time.monotonic() - saved_time
            is_due = run.images - saved_images >= run.settings.checkpoint_images or elapsed >= run.runtime.checkpoint_seconds
            leaving = world.rank == 0 and stop is not None and stop()
            wanted, leaving = world.broadcast((is_due or leaving, leaving))
        if wanted and (run.step > first or leaving):
            run.check_finite()
            world.keep_checkpoint(scratch, run.images, run.save, run.curve[-1] if run.curve else {})
            saved_time, saved_images = time.monotonic(), run.images

        # stop
        if done:
            world.barrier()
            return
        if leaving:
            raise Interrupted(
                f"stopped after {run.images} of {run.steps * run.batch} images; a checkpoint is in {scratch}",
                hint="the same command again goes on from there",
            )

        run.train_step(next(stream))


def _to(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4 and value.is_floating_point():
        return value.to(device, non_blocking=True, memory_format=torch.channels_last)
    return value.to(device, non_blocking=True)


def _memory(device: torch.device) -> int:
    """Peak bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
