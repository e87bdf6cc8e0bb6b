"""What every test shares: no network beyond loopback, one torch thread, where the real data lies."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and reference numbers, beside the repository; users do not have it."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"needs {SHARED} (real data and reference numbers for developers; not shipped)")
    return SHARED


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Library code never opens a socket to fetch anything: an address that is not this machine's is refused."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host = str(address[0])
            own = host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0", socket.gethostname()) or host in _own_addresses()
            if not own:
                raise OSError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _own_addresses() -> set[str]:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # a UDP "connect" sends nothing; it names this machine's address
        try:
            socket.socket.connect.__wrapped__ if hasattr(socket.socket.connect, "__wrapped__") else None
            found.add(probe.getsockname()[0])
        except OSError:
            return found
    return found
