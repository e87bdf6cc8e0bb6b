"""What a node finds out about itself before Ray starts: its address, its network interface, free ports, a token.

    python -m cluster.node address [--interface ib0]
    python -m cluster.node interface ADDRESS
    python -m cluster.node ports SEED LOW HIGH        # first of 16 free ports, by the job's number
    python -m cluster.node token FILE                 # makes FILE (0600) unless it is there
    python -m cluster.node listening ADDRESS SECONDS  # waits until the head listens

Called by the rendered scripts, before Ray may be there: standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import platform
import secrets
import shlex
import socket
import struct
import sys
import time
from importlib import metadata
from pathlib import Path

from idgbr.errors import BadRequest, Disagreement, IdgbrError, Missing
from idgbr.files import create
from idgbr.machine import expanded

BLOCK = 16
SIOCGIFADDR = 0x8915
PACKAGES = ("idgbr", "torch", "timm", "segmentation-models-pytorch", "diffusers", "ray", "optuna", "numpy", "rasterio", "pyarrow")


def package_versions() -> str:
    """JSON of the installed versions of what a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return json.dumps(found, sort_keys=True)


def interfaces() -> dict[str, str]:
    """IPv4 address of every network interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
            except OSError:  # the interface is down or has no IPv4 address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def address(interface: str = "") -> str:
    """IPv4 address the other nodes reach this one at: that of `interface`, else of the host name, else of the first
    interface that is not loopback. A host name that resolves to 127.* (Debian's habit) would make gloo connect every
    node to itself.

    Raises:
        Missing: no such interface, or none with an address.
    """
    known = interfaces()
    if interface:
        if interface not in known:
            raise Missing(
                f"this node ({socket.gethostname()}) has no interface {interface!r} with an IPv4 address",
                allowed=", ".join(f"{n} ({a})" for n, a in known.items()),
                hint="network_interface = ... in the spec",
            )
        return known[interface]
    usable = [a for n, a in known.items() if not a.startswith("127.")]
    try:
        named = [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except socket.gaierror:
        named = []
    for candidate in (*(a for a in named if a in usable), *usable, *known.values()):
        return candidate
    raise Missing(f"this node ({socket.gethostname()}) has no IPv4 address", hint="network_interface = ... in the spec")


def interface_of(ip: str) -> str:
    """Name of the interface that holds `ip`.

    Raises:
        Missing: no interface of this node holds it.
    """
    known = interfaces()
    for name, held in known.items():
        if held == ip:
            return name
    raise Missing(
        f"no interface of this node ({socket.gethostname()}) holds {ip}", allowed=", ".join(f"{n} ({a})" for n, a in known.items())
    )


def free_ports(seed: int, low: int, high: int) -> int:
    """First port of a block of 16 free ports in [low, high): block `seed` modulo the number of blocks, or another
    that is free.

    Jobs whose numbers differ by less than the number of blocks begin with blocks of their own. Where one is in use
    the search goes on far away: the next block is that of the next job, which may be starting at this moment.

    Raises:
        Missing: every block has a port in use.
    """
    blocks = (high - low) // BLOCK
    stride = next(s for s in range(max(1, round(0.618 * blocks)), 2 * blocks + 2) if math.gcd(s, blocks) == 1)  # meets every block
    for turn in range(blocks):
        first = low + (seed + turn * stride) % blocks * BLOCK
        if all(_is_free(port) for port in range(first, first + BLOCK)):
            return first
    raise Missing(
        "no block of 16 free ports on this node",
        value=f"{low} to {high} on {socket.gethostname()}",
        hint="ports.low and ports.high in the spec",
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def wait_for_port(where: str, seconds: float) -> None:
    """Block until something listens at `where` (IP:PORT).

    Raises:
        Missing: nothing does in time.
    """
    host, _, port = where.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Missing(f"nothing listens at {where} after {seconds:.0f} s: {error}", hint="is the head running there?") from error
            time.sleep(0.5)


def make_token(path: str | Path) -> Path:
    """A token file only its owner can read; an existing one is kept. The token itself is never printed.

    Raises:
        Disagreement: the file is there, but others can read it or it is not ours.
        Missing: it cannot be written.
    """
    target = expanded(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        create(target, secrets.token_hex(32).encode(), mode=0o600)  # one that is there already is kept: checked below
    except OSError as error:
        raise Missing(
            f"cannot write the token file {target}: {error.strerror}", hint="token_file (or slurm.job_dir) in the spec"
        ) from error
    check_token(target)
    return target


def check_token(path: str | Path) -> Path:
    """Raises:
    Missing: no token file.
    Disagreement: others can read it, or it belongs to somebody else.
    """
    target = expanded(path)
    try:
        status = target.stat()
    except FileNotFoundError as error:
        raise Missing(f"no token file {target}", hint="copy it from the head (mode 0600), or start the cluster from here") from error
    if status.st_uid != os.getuid():
        raise Disagreement(
            f"the token file {target} belongs to another user", value=f"user id {status.st_uid}", hint="token_file = ... in the spec"
        )
    if status.st_mode & 0o077:
        raise Disagreement(
            f"others can read the token file {target}",
            value=f"mode {status.st_mode & 0o777:04o}",
            hint=f"chmod 600 {shlex.quote(str(target))}, and make a new token",
        )
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.node", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("address").add_argument("--interface", default="")
    verbs.add_parser("interface").add_argument("address")
    for name in (ports := verbs.add_parser("ports"), ("seed", "low", "high"))[1]:
        ports.add_argument(name, type=int)
    verbs.add_parser("token").add_argument("file")
    listening = verbs.add_parser("listening")
    listening.add_argument("address")
    listening.add_argument("seconds", type=float)
    given = parser.parse_args(arguments)
    try:
        match given.verb:
            case "address":
                print(address(given.interface))
            case "interface":
                print(interface_of(given.address))
            case "ports":
                print(free_ports(given.seed, given.low, given.high))
            case "token":
                print(make_token(given.file))
            case "listening":
                wait_for_port(given.address, given.seconds)
            case _:
                raise BadRequest(f"unknown verb {given.verb}")
    except IdgbrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
