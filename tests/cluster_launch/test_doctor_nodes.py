"""The doctor on three nodes that really differ: network, mount and host-name spaces of their own, joined by a bridge.

full: the head; the cache's disk is full and /dev/shm small. nostore: the store's path is a read-only file system there.
other: idgbr 9.9.9, and a store path that is its own disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launch_runs import environment

from cluster import node as here

HEAD = "full"
NODES = {
    "full": "mount -t tmpfs -o size=1m none {cache}; mount -t tmpfs -o size=200m none /dev/shm",
    "nostore": "mount -t tmpfs none {ray}; mount -t tmpfs -o ro,size=1m none {store}",
    "other": "mount -t tmpfs none {ray}; mount -t tmpfs -o size=8m none {store}; export PYTHONPATH={packages}:$PYTHONPATH",
}


def needs() -> str:
    """Why the test cannot run here, or nothing."""
    if os.getuid() != 0:
        return "needs root for network namespaces"
    if shutil.which("ip") is None:
        return "needs the `ip` program (Debian package iproute2)"
    tried = subprocess.run(["ip", "netns", "exec", "absent", "true"], capture_output=True, text=True)
    made = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True)
    return f"cannot make namespaces: {made.stderr.strip() or tried.stderr.strip()}" if made.returncode else ""


pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@dataclass
class Net:
    """Three namespaces on one bridge, 10.77.N.0/24, all inside namespaces: the machine's own network is not touched."""

    folder: Path
    octet: int = field(default_factory=lambda: os.getpid() % 250 + 1)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def space(self, name: str) -> str:
        return f"idgbr-{self.octet}-{name}"

    def ip(self, name: str) -> str:
        return f"10.77.{self.octet}.{list(NODES).index(name) + 1}"

    def make(self) -> None:
        hub = self.space("hub")
        commands = [
            f"ip netns add {hub}",
            f"ip netns exec {hub} ip link add bridge type bridge",
            f"ip netns exec {hub} ip link set bridge up",
        ]
        for i, name in enumerate(NODES):
            space = self.space(name)
            commands += [
                f"ip netns add {space}",
                f"ip -n {hub} link add v{i} type veth peer name eth0 netns {space}",
                f"ip -n {hub} link set v{i} master bridge up",
                f"ip -n {space} link set lo up",
                f"ip -n {space} addr add {self.ip(name)}/24 dev eth0",
                f"ip -n {space} link set eth0 up",
                f"ip -n {space} route add default dev eth0",  # Ray finds its address by the route to the world
            ]
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)

    def run(self, name: str, command: str) -> subprocess.Popen[bytes]:
        """`command` on the node, with its mounts and its host name."""
        prepared = NODES[name].format(
            ray=self.folder / "ray",
            store=self.folder / "store",
            cache=self.folder / "home" / ".cache" / "idgbr",
            packages=self.folder / "packages",
        )
        script = f"hostname {name}; {prepared}\n{command}"
        words = ["ip", "netns", "exec", self.space(name), "unshare", "--mount", "--uts", "bash", "-ec", script]
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(words, env=self.environment(name), stdout=log, stderr=log, start_new_session=True)

    def environment(self, name: str) -> dict[str, str]:
        # Every node uses the head's folder for Ray, as a disk of its own: two raylets that start at once in one folder may take the same
        # socket for their object stores, and one aborts.
        more = {
            "RAY_TMPDIR": str(self.folder / "ray"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_agent_register_timeout_ms": "300000",
        }
        return environment(self.folder / "home", **more)

    def start(self) -> None:
        """The head, then the others at once. Ray gives each 30 s to register, which two busy cores may not manage: three tries."""
        (self.folder / "ray").mkdir()
        # no CPUs, so that Ray starts no idle workers: the doctor's probes ask for none
        ray = f"{sys.executable} -m ray.scripts.scripts start --block --num-cpus=0 --object-store-memory=80000000 --disable-usage-stats"
        for name in NODES:
            more = "--head --port=6379 --include-dashboard=false" if name == HEAD else f"--address={self.ip(HEAD)}:6379"
            # ports that are known need not be waited for: Ray's agents would else report theirs before the node may register
            names = ("node-manager", "object-manager", "runtime-env-agent", "dashboard-agent-listen", "metrics-export")
            ports = " ".join(f"--{port}-port={7001 + i}" for i, port in enumerate(names)) + " --dashboard-agent-grpc-port=7010"
            command = f"{ray} {ports} --include-log-monitor=false --node-ip-address={self.ip(name)} {more}"
            self.processes[name] = self.run(name, f"{command} || {command} || {command}")
            if name == HEAD:
                self.wait_for(name)
        for name in NODES:
            self.wait_for(name)

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 300
        while "Ray runtime started" not in (log := (self.folder / f"{name}.log").read_text(errors="replace")):
            if time.monotonic() > deadline or self.processes[name].poll() is not None:
                pytest.fail(f"the node {name} did not start:\n{log[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
        for name in ("hub", *NODES):
            space = self.space(name)
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
            if left:
                subprocess.run(["kill", "-9", *left], check=False)
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@pytest.fixture(scope="module")
def report(short_folder: Path) -> Iterator[tuple[int, dict[str, dict[str, object]]]]:
    """Exit code and checks (by name) of one `python -m cluster doctor` on the head of the three nodes."""
    if why := needs():
        pytest.skip(why)
    folder = short_folder / "net"
    for name in ("home/.cache/idgbr", "store", "packages/idgbr-9.9.9.dist-info"):
        (folder / name).mkdir(parents=True)
    (folder / "packages" / "idgbr-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: idgbr\nVersion: 9.9.9\n")
    here.make_token(folder / "token")
    net = Net(folder)
    try:
        net.make()
        net.start()
        script = (
            f"exec {sys.executable} -m cluster doctor {net.ip(HEAD)}:6379 --store {folder}/store --nodes 3 --json"
            " --free-gb 0.1 --shared-memory-gb 0.5 --seconds 0.5"
        )
        words = ["ip", "netns", "exec", net.space(HEAD), "unshare", "--uts", "bash", "-ec", script]
        # Ray puts the driver's folder first in every worker's path: from the repository, its metadata would hide the other version
        done = subprocess.run(words, env=net.environment(HEAD), cwd=folder, capture_output=True, text=True, timeout=550)
        logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-800:]}" for p in folder.glob("*.log"))
        assert done.stdout.startswith("["), done.stderr + logs
        yield done.returncode, {c["name"]: c for c in json.loads(done.stdout)}
    finally:
        net.stop()
        time.sleep(0.5)


def test_the_node_that_cannot_write_the_store_is_named(report: tuple[int, dict[str, dict[str, object]]]) -> None:
    check = report[1]["store"]
    assert check["code"] == 3
    assert str(check["found"]).startswith("nostore (10.77.")
    assert "Read-only file system" in str(check["found"])


def test_the_node_whose_store_is_another_disk_is_named(report: tuple[int, dict[str, dict[str, object]]]) -> None:
    check = report[1]["store place"]
    assert check["code"] == 4
    assert "is another place on other (10.77." in str(check["found"])
    assert str(check["found"]).count("nostore") == 0


def test_the_node_with_another_version_is_named(report: tuple[int, dict[str, dict[str, object]]]) -> None:
    check = report[1]["idgbr"]
    assert check["code"] == 4
    assert "on 2 node(s), but 9.9.9 on other (10.77." in str(check["found"])


def test_the_node_with_a_full_disk_and_little_shared_memory_is_named(report: tuple[int, dict[str, dict[str, object]]]) -> None:
    disk, shared = report[1]["disk"], report[1]["shared memory"]
    assert disk["code"] == shared["code"] == 3
    assert "full (10.77." in str(disk["found"])
    assert ".cache/idgbr" in str(disk["found"])
    assert "full (10.77." in str(shared["found"])
    assert "0.2" in str(shared["found"])


def test_all_pairs_reduce_over_the_network_between_them_and_the_rest_is_sound(report: tuple[int, dict[str, dict[str, object]]]) -> None:
    code, checks = report
    assert code == 4
    assert "3 pair(s) right" in str(checks["all-reduce"]["found"])
    sound = {"nodes", "python", "ray", "torch", "sources", "gpus", "clocks", "ports", "all-reduce"}
    assert {name for name, c in checks.items() if not c["code"]} == sound
