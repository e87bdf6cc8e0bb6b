"""What every Ray cluster of the tests needs: settings for raylets on one busy machine, and patience with their start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.node import make_token
from cluster.ray_private import read_authentication_again

RAY_ENVIRONMENT = {
    "RAY_agent_register_timeout_ms": "600000",  # a raylet whose agents are late kills itself
    "RAY_health_check_period_ms": "1000",  # a dead node is noticed in seconds, a slow one is left alone
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
}


@contextlib.contextmanager
def required_token(folder: str) -> Iterator[None]:
    """Clusters that start inside the block require a token of a file in `folder`: none is open to other users of the machine."""
    token = make_token(Path(folder) / "token")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        read_authentication_again()
        yield
    read_authentication_again()


def patient(look: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a node 30 s to register, which two busy cores may not manage; here it has five minutes."""

    def patiently(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + 300
        while True:
            try:
                return look(*args, **kwargs)
            except (RuntimeError, TimeoutError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return patiently
