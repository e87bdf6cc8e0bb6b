"""A reader that has gone is no error of a command; output that cannot be written is one line and exit code 3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from idgbr.rasters.grid import Grid
from idgbr.rasters.write import write_class_map

ROOT = Path(__file__).resolve().parents[2]
COMMANDS: dict[str, tuple[list[str], int]] = {
    "config": (["-m", "idgbr", "config", "synthetic"], 0),
    "help": (["-m", "idgbr", "--help"], 0),
    "help of a verb": (["-m", "idgbr", "refine", "--help"], 0),
    "unbuffered": (["-u", "-m", "idgbr", "config", "synthetic"], 0),
    "score": (["-m", "idgbr", "score", "FOLDER/pred.tif", "FOLDER/truth.tif"], 0),
    "score as JSON": (["-m", "idgbr", "score", "FOLDER/pred.tif", "FOLDER/truth.tif", "--json"], 0),
    "plan": (["-m", "sweeps", "plan", "quickstart", "--no-preflight", "--store", "FOLDER/store", "--json"], 0),
    "cluster": (["-m", "cluster", "--help"], 0),
    "wrong recipe": (["-m", "idgbr", "config", "nonsuch"], 2),
    "wrong flag": (["-m", "idgbr", "score", "--nonsuch"], 2),
    "wrong verb": (["-m", "cluster", "nonsuch"], 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("maps")
    for name, shift in (("pred", 1), ("truth", 0)):
        index = np.zeros((64, 64), np.uint8)
        index[10 + shift : 40 + shift, 10:50] = 1
        write_class_map(made / f"{name}.tif", index, Grid(64, 64))
    return made


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def run(words: list[str], folder: Path, **streams: int) -> subprocess.CompletedProcess[str]:
    words = [word.replace("FOLDER", str(folder)) for word in words]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, text=True, env=env, **{"stderr": subprocess.PIPE, **streams})


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone_is_no_error(name: str, folder: Path) -> None:
    words, code = COMMANDS[name]
    pipe = closed_pipe()
    try:
        done = run(words, folder, stdout=pipe)
        assert done.returncode == code, done.stderr[-500:]
        assert "Exception ignored" not in done.stderr
        assert "BrokenPipe" not in done.stderr
        if name in ("score", "plan", "wrong recipe"):
            assert run(words, folder, stdout=pipe, stderr=pipe).returncode == code
    finally:
        os.close(pipe)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["config", "help", "unbuffered", "score", "plan", "cluster"])
def test_output_that_cannot_be_written_is_one_line(name: str, folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(COMMANDS[name][0], folder, stdout=full.fileno())
    assert done.returncode == 3, done.stderr[-500:]
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("score:", "pred", "counts"))]
    assert len(lines) == 1, lines
    assert "cannot write to stdout" in lines[0]


@pytest.mark.parametrize(
    "close",
    [lambda: os.close(1), lambda: os.close(2), lambda: (os.close(1), os.close(2))],
    ids=["stdout", "stderr", "both"],
)
def test_closed_streams_are_no_error(close: Callable[[], object], folder: Path) -> None:
    words = [word.replace("FOLDER", str(folder)) for word in COMMANDS["score"][0]]
    assert subprocess.run([sys.executable, *words], cwd=ROOT, preexec_fn=close, timeout=120).returncode == 0


def test_work_goes_on_without_its_reader(tmp_path: Path) -> None:
    """`prepare | head -1`: the artefact is stored all the same."""
    pipe = closed_pipe()
    words = ["-m", "idgbr", "prepare", "synthetic", "data.scene_px=64", "--store", "FOLDER"]
    try:
        assert run(words, tmp_path, stdout=pipe, stderr=pipe).returncode == 0
    finally:
        os.close(pipe)
    assert list(tmp_path.glob("artifacts/data/*/*/manifest.json"))
