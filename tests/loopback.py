"""What every Ray cluster of the tests needs: settings for raylets on one busy machine, and patience with their start."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# no token file in the home folder of whoever runs the tests
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_agent_register_timeout_ms": "600000",  # a raylet whose agents are late kills itself
    "RAY_health_check_period_ms": "1000",  # a dead node is noticed in seconds, a slow one is left alone
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
}


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
