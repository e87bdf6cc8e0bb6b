"""The loop on a toy: exact resume, the global batch, the curve, the errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from idgbr.config import Runtime
from idgbr.errors import BadRequest, Disagreement, Interrupted, Missing
from idgbr.training.batches import slice_of
from idgbr.training.curve import read_curve
from idgbr.training.loop import NotFinite, train


@dataclasses.dataclass(frozen=True)
class Settings:
    batch_images: int = 4
    accumulate: int = 1
    train_images: int = 80
    lr: float = 1e-2
    weight_decay: float = 0.01
    warmup_images: int = 16
    clip_norm: float = 1.0
    ema_images: float = 20.0
    checkpoint_images: int = 12


class Samples(torch.utils.data.Dataset):
    """Noisy halves: the target is the sign of a smooth image."""

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(i))
        return {"image": image, "target": (image.mean(0) > 0).to(torch.uint8), "seed": torch.tensor(i)}


class Toy(nn.Module):
    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.BatchNorm2d(8) if norm == "batch" else nn.GroupNorm(2, 8)
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), layer, nn.ReLU(), nn.Dropout(0.1 if norm == "batch" else 0), nn.Conv2d(8, 2, 1)
        )

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = nn.functional.cross_entropy(self.network(batch["image"]), batch["target"].long(), reduction="none").mean((1, 2))
        return loss, {"half": loss / 2}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_curve(folder)]


def test_the_loss_falls_and_the_curve_counts_every_image_once(tmp_path: Path) -> None:
    reports: list[dict] = []
    train(Toy(), Samples(), Settings(), seed=1, out=tmp_path, report=lambda **values: reports.append(values))
    curve = read_curve(tmp_path)
    assert [line["images"] for line in curve] == list(range(4, 81, 4))
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert all(line["half"] == pytest.approx(line["loss"] / 2) for line in curve)
    assert curve[0]["lr"] == pytest.approx(1e-2 * 4 / 16)
    assert max(line["lr"] for line in curve) == pytest.approx(1e-2, rel=0.02)
    assert curve[-1]["lr"] < 2e-4
    assert len(reports) == len(curve)
    assert reports[-1]["total"] == 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.jsonl", "model.safetensors"]


@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_resume_is_bit_exact(tmp_path: Path, stop_after: int) -> None:
    train(Toy(), Samples(), Settings(), seed=1, out=tmp_path / "whole")
    polls = iter(range(1000))
    with pytest.raises(Interrupted) as stopped:
        train(
            Toy(), Samples(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "scratch", stop=lambda: next(polls) >= stop_after
        )
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "a").exists()
    train(Toy(), Samples(), Settings(), seed=1, out=tmp_path / "b", scratch=tmp_path / "scratch")
    assert losses(tmp_path / "b") == losses(tmp_path / "whole")
    assert [line["images"] for line in read_curve(tmp_path / "b")] == [line["images"] for line in read_curve(tmp_path / "whole")]
    one, two = load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert len(list((tmp_path / "scratch").iterdir())) == 1, "checkpoints are their owner's, who deletes them when the result is safe"


def test_a_crash_between_checkpoints_resumes_from_the_last_one(tmp_path: Path) -> None:
    class Dies(Samples):
        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            if i == 39:
                raise RuntimeError("killed")
            return super().__getitem__(i)

    with pytest.raises(RuntimeError, match="killed"):
        train(Toy(), Dies(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "scratch")
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == ["checkpoint-000000000036"]
    seen: list[int] = []

    class Watched(Samples):
        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            seen.append(i)
            return super().__getitem__(i)

    train(Toy(), Watched(), Settings(), seed=1, out=tmp_path / "b", scratch=tmp_path / "scratch")
    train(Toy(), Samples(), Settings(), seed=1, out=tmp_path / "whole")
    assert seen == list(range(36, 80))
    assert losses(tmp_path / "b") == losses(tmp_path / "whole")


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, accumulate: int) -> None:
    for n in (1, accumulate):
        train(Toy("group"), Samples(), Settings(accumulate=n), seed=1, out=tmp_path / str(n))
    assert losses(tmp_path / str(accumulate)) == pytest.approx(losses(tmp_path / "1"), rel=1e-4)


def test_loader_workers_change_nothing(tmp_path: Path) -> None:
    train(Toy(), Samples(), Settings(train_images=24), seed=1, out=tmp_path / "a")
    train(Toy(), Samples(), Settings(train_images=24), seed=1, out=tmp_path / "b", runtime=Runtime(loader_workers=1))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_slices_of_all_ranks_make_the_global_batch() -> None:
    for size in (1, 2, 3, 4, 7):
        together = [i for rank in range(size) for i in slice_of(5, 8, rank, size)]
        assert together == list(range(40, 48))
        assert all(len(slice_of(5, 8, rank, size)) for rank in range(size))


def test_the_average_forgets_by_half_life(tmp_path: Path) -> None:
    """A weight that goes 0 -> 1 in one step and stays: after one half-life the average is half way."""

    class Jump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(1, 1)

        def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return self.network(batch["x"]).sum(1) * 0 + 1.0, {}

    from idgbr.training.distributed import World
    from idgbr.training.loop import _Run

    run = _Run(Jump(), None, Settings(batch_images=1, ema_images=10.0), 0, World(), Runtime(), torch.device("cpu"))
    run.step = 10_000
    run.ema = {k: torch.zeros_like(v) for k, v in run.network_state().items()}
    with torch.no_grad():
        for p in run.module.parameters():
            p.fill_(1)
    for _ in range(10):
        run.average()
    assert all(torch.allclose(v, torch.tensor(0.5)) for v in run.ema.values())


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    class Bad(Samples):
        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            sample = super().__getitem__(i)
            return {**sample, "image": sample["image"] * (float("nan") if i == 21 else 1)}

    with pytest.raises(NotFinite, match=r"step 5 \(images 20 to 24\)"):
        train(Toy(), Bad(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "scratch")
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    polls = iter(range(100))
    with pytest.raises(Interrupted):
        train(Toy(), Samples(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "s", stop=lambda: next(polls) > 3)
    with pytest.raises(Disagreement, match="another run"):
        train(Toy(), Samples(), Settings(), seed=2, out=tmp_path / "a", scratch=tmp_path / "s")
    other = Toy()
    other.network = nn.Sequential(*other.network, nn.Conv2d(2, 2, 1))
    with pytest.raises(Disagreement, match="does not fit"):
        train(other, Samples(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "s")
    for file in (tmp_path / "s").rglob("state.json"):
        file.write_text("{")
    with pytest.raises(Disagreement, match="cannot read the checkpoint"):
        train(Toy(), Samples(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "s")


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    real = torch.save
    calls = iter(range(100))

    def full(*args: object, **kwargs: object) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Missing, match="no space left"):
        train(Toy(), Samples(), Settings(), seed=1, out=tmp_path / "a", scratch=tmp_path / "s")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["checkpoint-000000000024"]
    assert json.loads(next((tmp_path / "s").rglob("state.json")).read_text())["step"] == 6


def test_bad_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="precision"):
        train(Toy(), Samples(), Settings(), seed=1, out=tmp_path, runtime=Runtime(precision="fp8"))
    with pytest.raises(BadRequest, match="unknown device"):
        train(Toy(), Samples(), Settings(), seed=1, out=tmp_path, runtime=Runtime(device="abacus"))


def test_bf16_autocast_trains(tmp_path: Path) -> None:
    train(Toy(), Samples(), Settings(), seed=1, out=tmp_path, runtime=Runtime(precision="bf16"))
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]
