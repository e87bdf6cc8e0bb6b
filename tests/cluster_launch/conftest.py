"""A head started by our own rendered script, and a Slurm that runs on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_runs import RunningHead, environment, toml

from cluster import node as here
from cluster.launch.spec import temp_dir
from cluster.launch.spec_file import parse


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """Ray's socket paths leave no room for pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def head(short_folder: Path) -> Iterator[RunningHead]:
    """One Ray head with a dashboard and a token, started by the rendered head.sh."""
    from cluster.launch.render import render

    home = short_folder / "home"
    home.mkdir()
    port = here.free_ports(os.getpid(), 20000, 32000)
    data: dict[str, Any] = {
        "name": "the tests' cluster",
        "kind": "script",
        "nodes": 1,
        "cpus_per_node": 1,
        "store": str(short_folder / "store"),
        "python": sys.executable,
        "token_file": str(home / "token"),
        "ports": {"gcs": port, "dashboard": port + 1, "client": port + 2},
        "script": {"scratch": str(short_folder)},
    }
    spec = parse(data)
    spec_file = home / "spec.toml"
    spec_file.write_text(toml(data))
    files = render(spec)
    for name, text in files.items():
        (home / name).write_text(text)
    with open(home / "head.log", "w") as log:
        process = subprocess.Popen(["bash", str(home / "head.sh")], env=environment(home), stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port + 1}"
    try:
        from cluster.launch.jobs import Cluster
        from idgbr.errors import Missing

        deadline = time.monotonic() + 240
        while True:
            try:
                Cluster(address, home / "token").jobs()
                break
            except Missing:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the head did not start:\n{(home / 'head.log').read_text()[-2000:]}")
                time.sleep(0.5)
        yield RunningHead(spec, spec_file, address, f"{here.address()}:{port}", home / "token", home)
    finally:
        subprocess.run(["bash", str(home / "stop.sh")], env=environment(home), check=False)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(temp_dir(spec), ignore_errors=True)
