"""How a GPU is used, without one: what a recipe chooses reaches the loop, and changes no result but by rounding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idgbr.config import BackboneConfig, Experiment, RefinerConfig, Runtime, apply
from idgbr.datasets import BandStats
from idgbr.errors import BadRequest
from idgbr.labels import ClassTable, LabelClass
from idgbr.preflight import gpu_runtime, training_runtime
from idgbr.refiner.loss import RefinerTraining
from idgbr.refiner.refiner import Refiner
from idgbr.training.batches import Plan, micro_batches
from idgbr.training.curve import read_curve
from idgbr.training.distributed import World
from idgbr.training.loop import _Run, adamw, train

CPU = Runtime(device="cpu", threads=1)
SMALL = RefinerConfig(
    channels=(8, 16), condition_channels=(8, 16), guidance_width=16, crop_px=32, batch_images=4, train_images=8, warmup_images=4, lr=1e-3
)


def refiner_training(config: RefinerConfig = SMALL) -> RefinerTraining:
    torch.manual_seed(0)
    ones = (1.0,) * 3
    table = ClassTable((LabelClass("a", (0,), (0, 0, 0)), LabelClass("b", (1,), (1, 1, 1))))
    return RefinerTraining(Refiner.build(config, 3, table, BandStats(ones, ones, (0.0,) * 3, (255.0,) * 3)))


class Samples(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        self.asked.append(i)
        g = torch.Generator().manual_seed(i)
        return {
            "image": 255 * torch.rand(3, 32, 32, generator=g), "coarse": torch.rand(2, 32, 32, generator=g).softmax(0),
            "target": torch.randint(0, 2, (32, 32), generator=g).to(torch.uint8), "valid": torch.ones(32, 32, dtype=torch.bool),
            "seed": torch.tensor(i), "index": torch.tensor(i),
        }  # fmt: skip


def losses(out: Path, runtime: Runtime, config: RefinerConfig = SMALL) -> list[float]:
    train(refiner_training(config), Samples(), config, seed=1, out=out, runtime=runtime)
    return [line["loss"] for line in read_curve(out)]


@pytest.mark.parametrize("micro_images", [1, 3])
def test_micro_batches_of_a_refiner_change_nothing_but_rounding(micro_images: int, tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", CPU)
    assert losses(tmp_path / "cut", dataclasses.replace(CPU, micro_images=micro_images)) == pytest.approx(whole, rel=1e-4)


def test_no_micro_batch_is_larger_than_asked_for_on_any_number_of_gpus() -> None:
    for batch, size, accumulate, micro in ((32, 1, 1, 5), (32, 8, 1, 3), (32, 8, 2, 0), (33, 4, 1, 2), (4, 4, 3, 1), (16, 1, 4, 8)):
        pieces = micro_batches(batch, size, accumulate, micro)
        for rank in range(size):
            plan = list(Plan(0, 1, batch, rank, size, pieces))
            assert len(plan) == pieces >= min(accumulate, batch // size)
            assert all(len(part) <= (micro or batch) for part in plan)
            assert [i for part in plan for i in part] == list(range(rank * batch // size, (rank + 1) * batch // size))


def test_bf16_runs_products_in_bf16_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is F.conv2d:
                seen.add(out.dtype)
            return out

    run = _Run(refiner_training(), Samples(), SMALL, 0, World(), dataclasses.replace(CPU, precision="bf16"), torch.device("cpu"))
    with Watch():
        run.train_step([torch.utils.data.default_collate([Samples()[i] for i in range(4)])])
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in run.module.parameters()} == {torch.float32}


def test_weights_and_images_are_channels_last() -> None:
    seen: list[bool] = []
    training = refiner_training()
    run = _Run(training, Samples(), SMALL, 0, World(), CPU, torch.device("cpu"))
    inner = training.forward

    def watched(batch: dict[str, Tensor]) -> Any:
        seen.append(batch["image"].is_contiguous(memory_format=torch.channels_last))
        return inner(batch)

    training.forward = watched  # type: ignore[method-assign]
    run.train_step([torch.utils.data.default_collate([Samples()[i] for i in range(4)])])
    assert seen == [True]
    kernels = [p for p in training.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_adamw_is_one_kernel_and_decays_no_norm() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    optimizer = adamw(module, BackboneConfig(weight_decay=0.1))
    assert optimizer.defaults["fused"] is True
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in module.parameters()] == [0.1, 0, 0, 0]


def test_attention_is_fused() -> None:
    """Every product of queries and keys is inside `scaled_dot_product_attention`, so that no matrix of weights is kept."""
    calls: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if name in ("scaled_dot_product_attention", "softmax", "bmm", "baddbmm"):
                calls.append(name)
            return func(*args, **(kwargs or {}))

    training = refiner_training()
    batch = torch.utils.data.default_collate([Samples()[i] for i in range(2)])
    with Watch():
        training(batch)
    assert set(calls) == {"scaled_dot_product_attention"}


def test_gradient_checkpointing_gives_the_same_losses_and_computes_blocks_again(tmp_path: Path) -> None:
    lean = dataclasses.replace(SMALL, gradient_checkpointing=True)
    assert losses(tmp_path / "lean", CPU, lean) == pytest.approx(losses(tmp_path / "plain", CPU), rel=1e-5)
    counts = []
    for config in (SMALL, lean):
        training = refiner_training(config)
        calls: list[int] = []
        training.network.denoiser.mid_block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss, _ = training(torch.utils.data.default_collate([Samples()[i] for i in range(2)]))
        loss.sum().backward()
        counts.append(len(calls))
    assert counts == [1, 2]


def test_compilation_is_of_the_denoiser_in_the_mode_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes a minute on a CPU, so torch's front end is run with a back end that only counts graphs."""
    from torch._dynamo.testing import CompileCounter

    counter, modes, plain = CompileCounter(), [], torch.compile

    def counted(function: Any, *, mode: str) -> Any:
        modes.append(mode)
        return plain(function, backend=counter)

    expected = refiner_training().eval()
    batch = torch.utils.data.default_collate([Samples()[i] for i in range(2)])
    monkeypatch.setattr(torch, "compile", counted)
    for mode in ("default", "reduce-overhead"):
        run = _Run(refiner_training(), Samples(), SMALL, 0, World(), dataclasses.replace(CPU, compile=mode), torch.device("cpu"))
    assert modes == ["default", "default", "reduce-overhead", "reduce-overhead"]
    found = run.module.eval()(batch)[0]
    assert counter.frame_count >= 2
    assert torch.allclose(found, expected(batch)[0], atol=1e-5)
    assert sorted(run.module.state_dict()) == sorted(expected.state_dict())


def test_cuda_graphs_take_one_micro_batch_a_step(tmp_path: Path) -> None:
    runtime = dataclasses.replace(CPU, compile="reduce-overhead", micro_images=1)
    with pytest.raises(BadRequest, match=r"4 micro-batches a step.*Try: compile=default"):
        losses(tmp_path, runtime)
    with pytest.raises(BadRequest, match=r"unknown mode of compilation"):
        losses(tmp_path, dataclasses.replace(CPU, compile="fast"))


# ---- what a recipe chooses -----------------------------------------------------------------------------------------------------

CHOSEN = {"refiner.bf16": True, "refiner.compile": "default", "refiner.loader_workers": 6}


def test_what_a_recipe_chooses_holds_on_gpus_and_what_is_asked_for_holds_everywhere() -> None:
    settings = apply(Experiment(), CHOSEN).refiner
    found = gpu_runtime(settings, Runtime(), cores=4)
    assert (found.precision, found.compile, found.loader_workers) == ("bf16", "default", 3)  # one core trains
    asked = gpu_runtime(settings, Runtime(compile="reduce-overhead", loader_workers=9), cores=4)
    assert (asked.compile, asked.loader_workers) == ("reduce-overhead", 9)
    plain = gpu_runtime(RefinerConfig(), Runtime(precision="bf16"), cores=4)
    assert (plain.precision, plain.compile, plain.loader_workers) == ("bf16", "", 0)


def test_on_a_cpu_a_recipe_for_gpus_trains_as_any_other() -> None:
    experiment = apply(Experiment(), CHOSEN | {"refiner.micro_images": 2})
    found = training_runtime(experiment, "refiner", 2, CPU, World())
    assert found == dataclasses.replace(CPU, micro_images=2)


def test_on_a_gpu_the_step_is_cut_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is pretended; memory is counted for real."""
    from idgbr import costs, preflight

    class OnGpu(World):
        def device(self, runtime: Runtime) -> torch.device:
            return torch.device("cuda")

        def min(self, values: Tensor) -> Tensor:
            return values

    experiment = apply(Experiment(), CHOSEN | {"refiner.batch_images": 64})
    cost = costs.of_stage(experiment, "refiner", 2)
    card_gb = cost.memory_bytes(20) / 1e9
    monkeypatch.setattr(preflight, "gpu_gb", lambda runtime: card_gb)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "tensor", lambda value, device: torch.full((), value))
    found = training_runtime(experiment, "refiner", 2, Runtime(threads=4), OnGpu())
    assert found.micro_images == 16  # 64 images in 4 parts: 3 would be 22 at once
    assert (found.precision, found.loader_workers) == ("bf16", 3)
