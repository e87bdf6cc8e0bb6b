"""Slurm on this machine: slurmctld and some nodes, each with its own network, host name, processes and scratch folder.

Debian's slurm-wlm, munge and iproute2, and root for the namespaces. All files are below one temporary folder; the machine's own /etc/slurm
and network are not touched. Jobs run as the user who runs the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter", "unshare")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

CONF = """
ClusterName=tests
SlurmctldHost=login({net}.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
KillWait=30
MinJobAge=2
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 State=UP
"""


def missing() -> str:
    """Why Slurm cannot run here, or nothing."""
    path = f"{os.environ['PATH']}:{PATH}"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian packages slurm-wlm, munge, iproute2; `.ci/run` installs them)"
    if os.getuid() != 0:
        return "needs root for network and process namespaces"
    made = subprocess.run(["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"cannot make namespaces: {made.stderr.strip()}" if made.returncode else ""


class Slurm:
    """A cluster of `nodes` nodes with 4 CPUs and one (countable, useless) GPU each; a login node without any."""

    def __init__(self, nodes: int = 3):
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))  # short: Ray's sockets are in the scratch folder below
        self.scratch = self.folder / "l"  # another folder on every node
        number = os.getpid() % 250 + 1
        self.net = f"10.78.{number}"
        self.space = f"slurm{os.getpid()}"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf"), "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def start(self) -> None:
        self._write_files()
        self._make_network()
        munged = ["munged", "--foreground", "--force", f"--socket={self.folder}/munge", f"--key-file={self.folder}/munge.key"]
        munged += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", munged)
        self._until(lambda: (self.folder / "munge").exists(), "munged")
        self._daemon("login", [*self._inside("login"), f"{self._hosts('login')}; exec slurmctld -D"])
        for name in self.nodes:
            self.join(name)
        self._until(lambda: self.run("sinfo", "--noheader", "--format", "%T").stdout.split() == ["idle"], "the nodes")

    def join(self, name: str) -> None:
        """The node (again) up: slurmd as the first process of its own process namespace."""
        local = self.folder / f"local-{name}"
        local.mkdir(exist_ok=True)
        script = f"{self._hosts(name)}; mount --bind {local} {self.scratch}; exec slurmd -D -N {name}"
        self._daemon(name, [*self._inside(name, "--pid", "--fork", "--kill-child", "--mount-proc"), script])

    def lose(self, name: str) -> None:
        """All processes of the node end without notice."""
        os.kill(self.daemons[name].pid, signal.SIGKILL)
        self.daemons.pop(name).wait()

    def run(self, *words: str, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """A command on the login node."""
        return subprocess.run(self.at_login(*words), env=self.environment | more, capture_output=True, text=True, timeout=timeout)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """slurmctld does not answer."""
        self.daemons["login"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.daemons["login"].send_signal(signal.SIGCONT)

    def variables(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def at_login(self, *words: str) -> list[str]:
        """The words of a process that runs `words` on the login node."""
        return ["nsenter", f"--net=/run/netns/{self.space}-login", *words]

    def stop(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.run("scancel", "--full", "--user=root", "--signal=KILL", timeout=10)
        for name in [*self.nodes, "login", "munged"]:
            if name in self.daemons:
                self.lose(name)
        for name in [*self.nodes, "login"]:
            subprocess.run(["ip", "netns", "del", f"{self.space}-{name}"], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- parts of the start ----------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for name in ("state", "l"):
            (self.folder / name).mkdir()
        lines = [f"NodeName={name} NodeAddr={self._ip(name)} CPUs=4 RealMemory=16000 Gres=gpu:1 State=UNKNOWN" for name in self.nodes]
        conf = CONF.format(folder=self.folder, net=self.net, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = ["127.0.0.1 localhost", *(f"{self._ip(name)} {name}" for name in ("login", *self.nodes))]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def _ip(self, name: str) -> str:
        return f"{self.net}.{1 if name == 'login' else 10 + self.nodes.index(name)}"

    def _make_network(self) -> None:
        login = f"{self.space}-login"
        commands = [f"ip netns add {login}", f"ip -n {login} link set lo up", f"ip -n {login} link add hub0 type bridge"]
        commands += [f"ip -n {login} addr add {self._ip('login')}/24 dev hub0", f"ip -n {login} link set hub0 up"]
        for i, name in enumerate(self.nodes):
            space = f"{self.space}-{name}"
            commands += [
                f"ip netns add {space}",
                f"ip -n {space} link set lo up",
                f"ip -n {login} link add v{i} type veth peer name eth0 netns {space}",
                f"ip -n {login} link set v{i} master hub0 up",
                f"ip -n {space} addr add {self._ip(name)}/24 dev eth0",
                f"ip -n {space} link set eth0 up",
                f"ip -n {space} route add default dev eth0",  # Ray finds its address by the route to the world
            ]
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True, env=os.environ | {"PATH": f"{os.environ['PATH']}:{PATH}"})

    def _inside(self, name: str, *kinds: str) -> list[str]:
        """nsenter rather than `ip netns exec`, which mounts a fresh /sys that slurmd cannot use."""
        return ["nsenter", f"--net=/run/netns/{self.space}-{name}", "unshare", "--uts", "--mount", *kinds, "bash", "-ec"]

    def _hosts(self, name: str) -> str:
        return f"hostname {name}; mount --bind {self.folder}/hosts /etc/hosts"

    def _daemon(self, name: str, words: list[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _until(self, what: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + 60
        while not what():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text(errors="replace")[-800:] for path in self.folder.glob("*.[ol][uo][tg]"))
                raise RuntimeError(f"Slurm: {name} did not come up:\n{logs}")
            time.sleep(0.1)
