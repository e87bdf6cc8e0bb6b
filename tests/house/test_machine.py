"""What this process may use: cores under affinity, quotas and Slurm; a home that may not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from idgbr import machine
from idgbr.errors import Missing
from idgbr.machine import allowed_cores, allowed_memory_gb, cache_folder, cgroup_quotas, expanded
from idgbr.store import Store
from sweeps.run import commands
from sweeps.run.placement import Placement

ROOT = Path(__file__).resolve().parents[2]
NOBODY = ("unshare", "-U", "--map-user=54321")  # a user number without an entry in passwd


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),  # a container with its own view of the groups
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/\n", {}, []),  # the root group of a machine has no such file
        ("0::/k/pod/box\n", {"k/pod/cpu.max": "400000 100000", "k/pod/box/cpu.max": "max 100000", "k/cpu.max": "800000 100000"}, [4, 8]),
        ("4:memory:/a\n3:cpu,cpuacct:/a/b\n",
         {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n"}, [2]),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("3:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("3:cpu:/a\n0::/b\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000", "unified/b/cpu.max": "max 1"}, [3]),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(own: str, files: dict[str, str], quotas: list[float], tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    assert sorted(set(cgroup_quotas(tmp_path / "own", write(tmp_path / "mount", files)))) == quotas
    assert cgroup_quotas(tmp_path / "no such file") == []


MEMINFO = "MemTotal:  16000000 kB\nMemFree: 1 kB\nMemAvailable:  4000000 kB\n"


@pytest.mark.parametrize(
    ("files", "slurm", "expected"),
    [
        ({}, "", (16.384, 4.096)),
        ({"memory.max": "max"}, "", (16.384, 4.096)),
        ({"memory.max": "2000000000", "memory.current": "1500000000", "memory.stat": "inactive_file 700000000\n"}, "", (2.0, 1.2)),
        ({"memory.max": "8000000000", "memory.current": "1000000000", "memory.stat": ""}, "", (8.0, 4.096)),
        ({}, "3000", (3.145728, 3.145728)),
        ({}, "0", (16.384, 4.096)),  # Slurm's word for a whole node
    ],
)
def test_memory_of_the_machine_its_groups_and_its_job(
    files: dict[str, str], slurm: str, expected: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "own").write_text("0::/\n")
    assert allowed_memory_gb(tmp_path / "meminfo", tmp_path / "own", write(tmp_path / "mount", files)) == pytest.approx(expected)
    assert allowed_memory_gb(tmp_path / "no such file", tmp_path / "own", tmp_path / "mount")[0] > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_the_smallest_limit_counts_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(machine, "cgroup_quotas", list)
    assert allowed_cores() == len(before)
    for slurm, quotas, cores in (
        ("", [0.5], 1),
        ("", [2.7, 900.0], min(2, len(before))),
        ("1", [], 1),
        ("1000", [], len(before)),
        ("1", [3.0], 1),
    ):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
        monkeypatch.setattr(machine, "cgroup_quotas", lambda quotas=quotas: quotas)
        assert allowed_cores() == cores
        assert commands._concurrency(Placement()) == cores, "`sweeps plan` counts the workers that fit"
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    monkeypatch.setattr(machine, "cgroup_quotas", list)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert allowed_cores() == commands._concurrency(Placement()) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_nothing_counts_the_cores_of_the_machine_by_itself() -> None:
    for package in ("idgbr", "cluster", "sweeps"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "machine.py":
                assert not any(word in path.read_text() for word in ("cpu_count()", "sched_getaffinity", "process_cpu_count")), path


# ---- no home -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    machine._temporary_cache.cache_clear()
    monkeypatch.delenv("IDGBR_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(home))
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


def test_a_local_store_needs_no_home(no_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(no_home / "store")
    store.put("data", "k" * 20, lambda folder: (folder / "x").write_bytes(b"1"), {})
    assert store.path("data", "k" * 20).is_dir()
    assert capsys.readouterr().err == ""


def test_a_cache_without_a_home_lies_in_a_temporary_folder_and_this_is_said_once(no_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_folder() == Store("gs://anonymous@bucket/x").cache == no_home / "temporary" / f"idgbr-{os.getuid()}"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(cache_folder()) in said
    assert "IDGBR_CACHE" in said
    with pytest.raises(Missing, match=r"~/scenes begins with ~.*set HOME"):
        expanded("~/scenes")
    assert expanded("scenes") == Path("scenes")


@pytest.mark.skipif(
    subprocess.run(["unshare", "-U", "--map-user=54321", "true"], capture_output=True).returncode != 0, reason="no user namespaces"
)
@pytest.mark.parametrize(
    "words",
    [
        ["-m", "sweeps", "plan", "quickstart", "--no-preflight", "--store", "STORE"],
        ["-m", "idgbr", "prepare", "synthetic", "data.scene_px=64", "--store", "STORE"],
        ["-m", "idgbr", "config", "synthetic"],
    ],
    ids=lambda words: " ".join(words[1:3]),
)
def test_commands_of_a_user_without_home_and_passwd_entry(words: list[str], tmp_path: Path) -> None:
    words = [str(tmp_path / "store") if word == "STORE" else word for word in words]
    done = subprocess.run(
        [*NOBODY, "env", *(word for name in ("HOME", "USER", "LOGNAME", "IDGBR_CACHE") for word in ("-u", name)), sys.executable, *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-600:]
    assert "Traceback" not in done.stderr
