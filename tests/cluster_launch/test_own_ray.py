"""A Ray that this project starts is closed to others; the private parts of Ray that this rests on are still there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import node, ray_private
from cluster.session import connected

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CLIENT = """
import os, sys
import ray
from cluster.session import connected
from idgbr.errors import IdgbrError
if len(sys.argv) > 2:  # after the imports: another user may have no right to this Python
    os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
try:
    with connected(sys.argv[1]):
        print("let in")
except IdgbrError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def others() -> set[int]:
    """Processes that other tests have started, such as a head that is to listen on all addresses."""
    pytest.importorskip("ray")  # brings its own copy of psutil
    import psutil

    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module")
def own(others: set[int]) -> Iterator[str]:
    """Address of the head of a cluster as `sweeps run` and `cluster train` start it."""
    import ray

    folder = tempfile.mkdtemp(prefix="o", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a user's setting for other clusters does not open this one
        with connected(cpus=1, dashboard=True):
            yield ray.get_runtime_context().gcs_address
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    shutil.rmtree(folder, ignore_errors=True)


def listening(others: set[int]) -> dict[tuple[str, int], str]:
    """(address, port) -> process, of this process and all it has started but `others`."""
    import psutil

    found = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        if process.pid in others:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            for at in process.net_connections(kind="inet"):
                if at.status == psutil.CONN_LISTEN:
                    found[at.laddr.ip.removeprefix("::ffff:"), at.laddr.port] = process.name()
    return found


def client(address: str, home: Path, *user: str) -> str:
    """What `connected(address)` says in a process of its own, without the token; as another user where one is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, *user],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        cwd="/",
    )
    return done.stdout + done.stderr


def test_a_cluster_started_here_listens_on_loopback_only_with_a_token_file_of_its_owner(own: str, others: set[int]) -> None:
    found = listening(others)
    assert len(found) > 5, "gcs, raylet, agents, dashboard"
    assert {ip for ip, _ in found} == {"127.0.0.1"}, found
    assert own.startswith("127.0.0.1:")
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert not (Path.home() / ".ray" / "auth_token").is_relative_to(token.parent)


def test_a_client_without_the_token_is_refused_at_every_address(own: str, tmp_path: Path) -> None:
    said = client(own, tmp_path)
    assert said.startswith("Disagreement"), said
    assert "refuses our token" in said
    outer = node.address()
    if outer.startswith("127."):
        pytest.skip("this machine has only loopback")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((outer, int(own.rpartition(":")[2])), timeout=5)
    said = client(f"{outer}:{own.rpartition(':')[2]}", tmp_path)
    assert said.startswith("Missing no Ray cluster at"), said


def test_another_user_of_the_machine_cannot_read_the_token_and_is_refused(own: str, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can run a process as another user")
    nobody = 65534
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    read = subprocess.run(["cat", token], user=nobody, group=nobody, capture_output=True, text=True)
    assert "Permission denied" in read.stderr
    said = client(own, tmp_path, str(nobody))
    assert said.startswith("Disagreement"), said


def test_a_second_cluster_in_one_process_has_a_token_of_its_own_and_the_first_ones_is_gone() -> None:
    """Ray caches the token and the mode for the process (`ray_private.read_authentication_again`)."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", ray_private.LOOPBACK_SWITCH)
    before = [os.environ.get(name) for name in names]
    tokens = []
    for _ in range(2):
        with connected(cpus=1):
            tokens.append(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text())
            assert ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote()) == "token"
            place = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert not place.parent.exists()
    assert len(set(tokens)) == 2
    assert [os.environ.get(name) for name in names] == before


def test_the_private_parts_of_ray_in_use_are_there() -> None:
    """Fails on an upgrade that moves one of them; see ray_private.py for what is lost without each."""
    import inspect

    import ray
    from ray._private import ray_constants, services, state
    from ray._raylet import AuthenticationTokenLoader, Config, GcsClient

    assert ray.__version__ == ray_private.TESTED_WITH, "read this file and ray_private.py, then change TESTED_WITH"
    assert callable(AuthenticationTokenLoader.instance().reset_cache)
    assert callable(Config.initialize)
    assert GcsClient
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == ray_private.LOOPBACK_SWITCH
    assert "ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services.get_node_ip_address)
    assert callable(state.jobs)
    assert list(inspect.signature(services.get_node).parameters) == ["gcs_address", "node_id"]


def test_a_raylet_that_dies_while_it_starts_is_noticed_beside_one_that_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    raylet = str(shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet"))  # a process is known by its program's name

    def not_there(address: str, node_id: str) -> object:
        raise RuntimeError("GCS cannot find the node")

    monkeypatch.setattr(services, "get_node", not_there)
    other = subprocess.Popen([raylet, "600"])
    try:
        with ray_private.patient_start():
            dead = subprocess.Popen([raylet, "0"])
            os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(ray_private.RayletDied, match="cannot find the node"):
                services.get_node("", "")
        assert services.get_node is not_there
        dead.wait()
    finally:
        other.kill()
        other.wait()
