"""A cluster spec from its TOML file, and whether such a cluster is possible, before anything is asked of a machine."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.launch.spec import KINDS, TEMP_DIR_LIMIT, ClusterSpec
from idgbr.errors import BadRequest, Missing, nearest
from idgbr.interfaces import Json


def check_spec(spec: ClusterSpec) -> None:
    """Raise `BadRequest` for a spec that cannot be."""
    if spec.kind not in KINDS:
        raise BadRequest(f"unknown kind of cluster {spec.kind!r}", allowed=", ".join(KINDS), hint=nearest(spec.kind, KINDS) or None)
    if not spec.name.strip():
        raise BadRequest("the cluster has no name", value=repr(spec.name), hint='name = "schedules"')
    if not spec.store.strip():
        raise BadRequest(
            "the cluster has no store: nodes would have nowhere to put results",
            value=repr(spec.store),
            hint='store = "/a/folder/all/nodes/share" or "s3://bucket/folder"',
        )
    for where, text in _texts(spec):
        if any(ord(c) < 32 or ord(c) == 127 for c in text):  # a line break would start a line of its own in a rendered file
            raise BadRequest(f"{where} holds a control character", value=repr(text), allowed="one line of printable text")
    for name in spec.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BadRequest(f"env: {name!r} is no name of a variable", allowed="letters, digits and _")
        if re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", name):
            raise BadRequest(
                f"env: {name} looks like a secret, and rendered files are readable",
                allowed="names of files, settings",
                hint="put it into a file with mode 0600 that `setup` reads, or give the node a role",
            )
    _whole_numbers(spec)
    if spec.store_is_path and not os.path.isabs(spec.store):
        raise BadRequest(
            "the store is a relative path, which means another folder on each node", value=spec.store, allowed="an absolute path or a URI"
        )
    if spec.workdir and not os.path.isabs(spec.workdir):
        raise BadRequest("workdir is a relative path", value=spec.workdir, allowed="an absolute path")
    if spec.wall_time and not re.fullmatch(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", spec.wall_time):
        raise BadRequest("wall_time cannot be read", value=spec.wall_time, allowed="HH:MM:SS or D-HH:MM:SS", hint='wall_time = "12:00:00"')
    if spec.gpus_per_trial > spec.gpus_per_node:
        raise BadRequest(
            "a trial asks for more GPUs than a node has",
            value=f"gpus_per_trial={spec.gpus_per_trial}, gpus_per_node={spec.gpus_per_node}",
            hint=f"gpus_per_trial = {spec.gpus_per_node}, or nodes with more GPUs",
        )
    if spec.cpus_per_node < spec.gpus_per_node:
        raise BadRequest(
            "a node has fewer CPUs than GPUs",
            value=f"cpus_per_node={spec.cpus_per_node}, gpus_per_node={spec.gpus_per_node}",
            hint=f"cpus_per_node = {spec.gpus_per_node * 4}",
        )
    if spec.ports.high - spec.ports.low < 16:
        raise BadRequest(
            "the range of ports is too small",
            value=f"ports.low={spec.ports.low}, ports.high={spec.ports.high}",
            allowed="at least 16 ports",
        )
    _KIND_CHECKS[spec.kind](spec)


def _texts(spec: ClusterSpec) -> typing.Iterator[tuple[str, str]]:
    def walk(where: str, value: object) -> typing.Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield where, value
        elif dataclasses.is_dataclass(value):
            for f in dataclasses.fields(value):
                yield from walk(f"{where}.{f.name}".lstrip("."), getattr(value, f.name))
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from walk(f"{where}.{name}", item)
        elif isinstance(value, tuple | list):
            for i, item in enumerate(value):
                yield from walk(f"{where}[{i}]", item)

    return walk("", spec)


def _whole_numbers(spec: ClusterSpec) -> None:
    bounds = {
        "nodes": (1, 10_000),
        "cpus_per_node": (1, 4096),
        "gpus_per_node": (0, 64),
        "memory_gb_per_node": (0, 65_536),
        "gpus_per_trial": (0, 64),
    }
    for name, (low, high) in bounds.items():
        if not low <= getattr(spec, name) <= high:
            raise BadRequest(f"{name} is out of range", value=getattr(spec, name), allowed=f"{low} to {high}")
    for section in (getattr(spec, spec.kind), spec.doctor):
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            if isinstance(value, int | float) and not 0 <= value < 1e6:
                raise BadRequest(f"{type(section).__name__.lower()}.{f.name} is out of range", value=value, allowed="0 to 1,000,000")
    for name, port in dataclasses.asdict(spec.ports).items():
        if not 1024 <= port <= 65535:
            raise BadRequest(f"ports.{name} is out of range", value=port, allowed="1024 to 65535")


def _need(spec: ClusterSpec, names: tuple[str, ...], why: str = "") -> None:
    section = getattr(spec, spec.kind)
    for name in names:
        if not getattr(section, name):
            raise BadRequest(f"kind {spec.kind} needs {spec.kind}.{name}{why}", hint=f"[{spec.kind}] with {name} = ...")


def _slurm(spec: ClusterSpec) -> None:
    if not spec.workdir and not spec.slurm.job_dir:
        raise BadRequest(
            "kind slurm needs workdir (or slurm.job_dir): a folder on shared storage for the job's token, addresses and logs",
            hint='workdir = "/home/me/project"',
        )
    if not spec.wall_time:
        raise BadRequest("kind slurm needs wall_time", hint='wall_time = "12:00:00"')
    if spec.slurm.warn_s >= spec.wall_seconds:
        raise BadRequest("slurm.warn_s is longer than the wall time", value=f"warn_s={spec.slurm.warn_s}, wall_time={spec.wall_time}")
    for option in spec.slurm.extra:
        if not re.match(r"--[a-z][a-z0-9-]*(=|$)", option):
            raise BadRequest("slurm.extra holds something that is no option", value=option, allowed="--name or --name=value")
        if re.match(r"--(array|nodes|ntasks|job-name|signal|output|requeue|no-requeue)\b", option):
            raise BadRequest(f"slurm.extra may not set {option.partition('=')[0]}: the script depends on it", value=option)
    longest = f"{spec.slurm.scratch.rstrip('/')}/r-4294967295"
    if not os.path.isabs(spec.slurm.scratch) or len(longest) > TEMP_DIR_LIMIT:
        raise BadRequest(
            "slurm.scratch is too long for Ray's sockets, or not absolute",
            value=spec.slurm.scratch,
            allowed=f"an absolute path of at most {TEMP_DIR_LIMIT - len('/r-4294967295')} characters, local to the node",
            hint='scratch = "/tmp"',
        )


def _kuberay(spec: ClusterSpec) -> None:
    _need(spec, ("image",))
    if spec.store_is_path:
        _need(spec, ("claim",), ": the store is a path, so a volume must be mounted there")
    if spec.memory_gb_per_node < 1:
        raise BadRequest(
            "kind kuberay needs memory_gb_per_node: a pod without a limit is the first to be evicted", hint="memory_gb_per_node = 64"
        )
    for where, name in (("kuberay.namespace", spec.kuberay.namespace), ("kuberay.claim", spec.kuberay.claim)):
        if name and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name):
            raise BadRequest(f"{where} is no Kubernetes name", value=name, allowed="lower-case letters, digits and -")
    if 0 < spec.kuberay.max_nodes < spec.nodes:
        raise BadRequest("kuberay.max_nodes is below nodes", value=f"{spec.kuberay.max_nodes} < {spec.nodes}")
    _overlay(spec)


RENDERED = ("containers", "initContainers", "volumes", "nodeSelector", "serviceAccountName", "imagePullSecrets", "securityContext")


def _overlay(spec: ClusterSpec) -> None:
    """What is added to the pods, and further groups of workers."""
    k = spec.kuberay
    names = {**k.volumes, **k.secret_files, **dict.fromkeys(k.secret_env, "/")}
    for name, path in names.items():
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,51}[a-z0-9])?", name):
            raise BadRequest("a claim or Secret has no Kubernetes name", value=name, allowed="lower-case letters, digits and -")
        if not os.path.isabs(path):
            raise BadRequest(f"{name} is mounted at a relative path", value=path, allowed="an absolute path")
    for where, pod in (("kuberay.pod", k.pod), *((f"kuberay.groups {g.name}", g.pod) for g in k.groups)):
        for name in pod:
            if name in RENDERED or not re.fullmatch(r"[a-z][A-Za-z]*", name):
                raise BadRequest(
                    f"{where} may not set {name}", allowed="other fields of a pod's spec: tolerations, affinity, priorityClassName",
                    hint="volumes, secret_files, secret_env, node_selector, service_account, user",
                )  # fmt: skip
    if "idgbr/cluster" in {**k.labels, **k.annotations}:
        raise BadRequest("the label idgbr/cluster is ours: the network policy finds the pods by it", hint="another name")
    for group in k.groups:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", group.name) or group.name == "workers":
            raise BadRequest("a group of workers has no name of its own", value=group.name, allowed="lower-case letters, digits and -")
        if min(group.nodes, group.cpus, group.memory_gb) < 1 or group.gpus < 0 or 0 < group.max_nodes < group.nodes:
            raise BadRequest(f"the group {group.name} of workers has an impossible size", value=group)
    if len({group.name for group in k.groups}) < len(k.groups):
        raise BadRequest("two groups of workers have one name", value=", ".join(g.name for g in k.groups))
    if k.redis and not re.fullmatch(r"[A-Za-z0-9.-]+:\d+", k.redis):
        raise BadRequest("kuberay.redis is no address", value=k.redis, allowed="HOST:PORT")
    if k.redis_password and (not k.redis or not re.fullmatch(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", k.redis_password)):
        raise BadRequest("kuberay.redis_password names a key of a Secret, beside kuberay.redis", value="(not shown)", allowed="SECRET/KEY")


def _script(spec: ClusterSpec) -> None:
    longest = f"{spec.script.scratch.rstrip('/')}/r-{spec.slug}"
    if not os.path.isabs(spec.script.scratch) or len(f"{spec.script.scratch.rstrip('/')}/r-00000000") > TEMP_DIR_LIMIT:
        raise BadRequest("script.scratch is too long for Ray's sockets, or not absolute", value=longest, hint='scratch = "/tmp"')


_KIND_CHECKS = {"slurm": _slurm, "kuberay": _kuberay, "script": _script}


def load(path: str | Path) -> ClusterSpec:
    """Raises:
    Missing: no such file.
    BadRequest: not TOML, an unknown key, a value of another type, an impossible cluster.
    """
    try:
        data = tomllib.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise Missing(f"no cluster spec {path}", hint="copy one of cluster/examples/*.toml") from error
    except IsADirectoryError as error:
        raise Missing(f"{path} is a folder, not a cluster spec", hint="copy one of cluster/examples/*.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path} is not TOML: {error}", hint="compare with cluster/examples/*.toml") from error
    return parse(data, str(path))


def parse(data: Mapping[str, object], where: str = "spec") -> ClusterSpec:
    """A spec from its plain form. `where` is named in errors."""
    for needed, example in (("name", 'name = "schedules"'), ("kind", 'kind = "slurm"'), ("store", 'store = "/shared/idgbr-store"')):
        if needed not in data:
            unknown = nearest(needed, set(data) - {f.name for f in dataclasses.fields(ClusterSpec)})
            raise BadRequest(
                f"{where} has no {needed}",
                allowed=f"kinds: {', '.join(KINDS)}" if needed == "kind" else None,
                hint=f"add {example}" + (f"; {unknown.replace('did you mean', 'or rename')}".rstrip("?") if unknown else ""),
            )
    spec: ClusterSpec = _build(ClusterSpec, data, where)
    check_spec(spec)
    return spec


def _build(cls: type, data: Mapping[str, object], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    values: Json = {}
    for name, value in data.items():
        if name not in hints:
            raise BadRequest(f"{where}: unknown key {name!r}", allowed=", ".join(hints), hint=nearest(name, hints) or None)
        values[name] = _typed(value, hints[name], f"{where}: {name}")
    return cls(**values)


def _typed(value: object, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise BadRequest(f"{where} is a section", value=repr(value), hint=f"[{where.rpartition(': ')[2]}] on a line of its own")
        return _build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        of = typing.get_args(hint)[0]
        if not isinstance(value, list):
            allowed = 'a list of texts, e.g. ["a", "b"]' if of is str else f"[[{where.rpartition(': ')[2]}]] and its settings"
            raise BadRequest(f"{where} has the wrong type", value=repr(value), allowed=allowed)
        return tuple(_typed(item, of, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise BadRequest(f"{where} has the wrong type", value=repr(value), allowed='a table of texts, e.g. {NAME = "value"}')
        of = typing.get_args(hint)[1]
        return types.MappingProxyType({name: item if of is object else _typed(item, of, f"{where}.{name}") for name, item in value.items()})
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise BadRequest(f"{where} has the wrong type", value=repr(value), allowed=hint.__name__)
    return value
