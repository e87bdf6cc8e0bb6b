"""Every use of a part of Ray that Ray does not promise to keep. Tested with Ray 2.60.0; each function says what
happens without it.

tests/cluster_launch/test_own_ray.py fails when an upgrade of Ray changes one of them.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import time
from collections.abc import Iterator

TESTED_WITH = "2.60.0"
START_S = 90.0
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

log = logging.getLogger(__name__)


def refusal(address: str) -> str:
    """Why the Ray at `address` (IP:PORT) refuses our token, or "" if it does not or nothing answers.

    `ray.init` would try for 20 s and then report only that it could not connect. Without `GcsClient`: "", and
    `ray.init` reports.
    """
    import ray

    try:
        from ray._raylet import GcsClient
    except ImportError:
        _absent("ray._raylet.GcsClient", "a refused token is reported as a cluster that does not answer")
        return ""
    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError as error:
        return str(error).strip().partition(". ")[0]
    except Exception:  # nothing there, or not Ray: `ray.init` reports it
        return ""
    return ""


def is_version_mismatch(error: BaseException) -> bool:
    """Whether `ray.init` failed because the cluster runs another Ray or Python: a bare RuntimeError, known by its
    text only."""
    return "ersion mismatch" in str(error) or "Python version" in str(error)


class JobsError(enum.Enum):
    """What Ray's Jobs API objects to."""

    ID_IN_USE = enum.auto()
    NO_SUCH_JOB = enum.auto()
    FOLDER_TOO_LARGE = enum.auto()
    NO_AGENT_YET = enum.auto()  # the dashboard answers before the agent that starts jobs is up
    OTHER = enum.auto()


def jobs_error(error: RuntimeError) -> JobsError:
    """The kind of an error of `JobSubmissionClient`.

    It raises a bare RuntimeError for every status but 200, the answer's status and text in its message: only the text
    tells them apart.
    """
    text = str(error)
    if "already exists" in text:
        return JobsError.ID_IN_USE
    if "exceeds the maximum size" in text or "too large" in text.lower():
        return JobsError.FOLDER_TOO_LARGE
    if "No available agent" in text:
        return JobsError.NO_AGENT_YET
    return JobsError.NO_SUCH_JOB if "status code 404" in text else JobsError.OTHER


def read_authentication_again() -> None:
    """Take RAY_AUTH_MODE and the token from the environment as it is now.

    Ray reads both once a process. Without these classes a second cluster in one process is refused its own token.
    """
    try:
        from ray._raylet import AuthenticationTokenLoader, Config
    except ImportError:
        _absent("ray._raylet.AuthenticationTokenLoader", "one process can use one token only")
        return
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """A Ray that is started inside the block listens on 127.0.0.1 alone.

    This is Ray's default on macOS and Windows. On Linux Ray would listen on all addresses, whatever
    `_node_ip_address` says. Without the switch the token alone protects the cluster; `cluster.session.connected`
    warns.
    """
    from ray._private import ray_constants

    before = os.environ.get(LOOPBACK_SWITCH), getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    os.environ[LOOPBACK_SWITCH] = "0"  # for Ray's own processes
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which may have imported Ray already
    try:
        yield
    finally:
        os.environ.pop(LOOPBACK_SWITCH)
        if before[0] is not None:
            os.environ[LOOPBACK_SWITCH] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


class RayletDied(Exception):
    """The raylet ended while its node was starting: Ray 2.60 gives its agents 15 s to report their ports, then
    aborts. Start it again."""


@contextlib.contextmanager
def patient_start() -> Iterator[None]:
    """A Ray node that is started inside the block has `START_S` to register. Ray has 30 s written into its code.

    Raises:
        RayletDied: it never will.
    """
    import psutil  # Ray brings its own copy, on the path once Ray is imported
    from ray._private import services

    def living() -> set[int]:
        return {child.pid for child in psutil.Process().children() if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE}

    look, before = services.get_node, living()

    def patiently(address: str, node_id: str) -> object:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return look(address, node_id)
            except RuntimeError as error:
                if not living() - before:
                    raise RayletDied(f"the raylet ended while it was starting: {error}") from error
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    services.get_node = patiently
    try:
        yield
    finally:
        services.get_node = look


def raised_by_training(error: BaseException) -> list[BaseException]:
    """What the training code raised on the workers of Ray Train; empty where a worker was lost or did not answer.

    Ray wraps such an exception in a class of its own and gives no access to it.
    """
    failures = getattr(error, "worker_failures", {}).values()
    found = [getattr(failure, "_base_exc", None) for failure in failures]
    return [one for one in found if one is not None] if all(found) else []


def dead_jobs(program: str) -> set[str]:
    """Ids of Ray jobs whose driver is dead and has `program` in its command line. Without the state module: none."""
    try:
        from ray._private import state

        return {job["JobID"] for job in state.jobs() if job["IsDead"] and program in job["Entrypoint"]}
    except (ImportError, AttributeError, KeyError):
        _absent("ray._private.state.jobs", "placement groups that dead drivers left behind are not freed")
        return set()


def _absent(name: str, consequence: str) -> None:
    import ray

    log.warning("Ray %s has no %s (tested with Ray %s): %s", ray.__version__, name, TESTED_WITH, consequence)
