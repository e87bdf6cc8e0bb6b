"""What every test shares: no network beyond loopback, one torch thread, where the real data lies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
os.environ.setdefault("IDGBR_DATA", str(SHARED / "data"))  # where the recipes look for data and weights

# A shell starts background jobs with SIGINT ignored, and what they start inherits it: tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A minute and more each, longest first. Of several processes none should begin one of them last.
LONG = (
    "cluster_train/test_ray_training.py",
    "cluster_launch/test_slurm_ends.py",
    "sweeps/test_sweep_on_ray.py",
    "sweeps/test_wide_trainings_on_ray.py",
    "sweeps/test_kills_on_ray.py",
    "sweeps/test_sweep_here.py",
    "cluster_launch/test_slurm.py",
    "paper/test_paper_recipes.py",
    "sweeps/test_live_cluster.py",
    "sweeps/test_chaos.py",
    "cluster_launch/test_doctor_nodes.py",
    "cluster_launch/test_jobs_api.py",
    "training/test_several_processes.py",
    "training/test_backbones.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: n for n, name in enumerate(LONG)}
    assert all(path.is_file() for path in place), "LONG names files of this folder"
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and reference numbers, beside the repository; users do not have it."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"needs {SHARED} (real data and reference numbers for developers; not shipped)")
    return SHARED


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """Address of an S3 server in this process. Its buckets are the process's: a second server would show those of the first."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(_s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty folder in a bucket of its own."""
    from pyarrow import fs

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    fs.S3FileSystem(endpoint_override=_s3_server, scheme="http", allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/store?endpoint_override={_s3_server}&scheme=http"


@pytest.fixture(scope="module", autouse=True)
def _leaves_no_ray_behind() -> Iterator[None]:
    """A module that stays connected to its cluster, or keeps Ray's settings, spoils those after it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    yield
    ray = sys.modules.get("ray")
    connected = ray is not None and ray.is_initialized()
    if connected:
        ray.shutdown()
    after = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert not connected, "this module leaves the process connected to a Ray cluster"


def _own_address() -> str:
    """This machine's address as others see it. Connecting a datagram socket sends nothing; it only picks the interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737
        except OSError:  # no route: the machine has only loopback
            return "127.0.0.1"
        return str(probe.getsockname()[0])


_OWN = {"localhost", "::1", "0.0.0.0", socket.gethostname(), _own_address()}


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Library code never opens a socket to fetch anything: an address that is not this machine's is refused."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.type == socket.SOCK_STREAM and isinstance(address, tuple):
            host = str(address[0])
            if not host.startswith("127.") and host not in _OWN:
                raise OSError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
