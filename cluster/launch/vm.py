"""Machines that one logs in to: Ray cluster-launcher YAML for AWS, GCP and on-premise hosts, and plain `ray start` scripts."""

from __future__ import annotations

import shlex
from typing import Any

from cluster.launch.slurm import SETTINGS, environment
from cluster.launch.spec import ClusterSpec, temp_dir

HEAD_TYPE, WORKER_TYPE = "head", "worker"
# Any free port: by default every Ray's agent wants 52365, and where another user's Ray holds it, this head would take no jobs.
AGENT = "--dashboard-agent-listen-port=0"


def home(path: str) -> str:
    """`path` quoted for a shell; a leading `~/` stays the home folder of whoever runs it."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def remote_token(spec: ClusterSpec) -> str:
    """Where the launcher puts the token on the machines; not Ray's default place, which another cluster may use."""
    return f"~/.idgbr/{spec.slug}.token"


def exports(spec: ClusterSpec) -> str:
    """One line of `export` for the commands that start Ray, and for the command of a job."""
    variables = {"RAY_AUTH_MODE": "token", **SETTINGS, "IDGBR_STORE": spec.store, **spec.env}
    if spec.network_interface:
        variables |= {"GLOO_SOCKET_IFNAME": spec.network_interface, "NCCL_SOCKET_IFNAME": spec.network_interface}
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return "export " + " ".join([*words, f"RAY_AUTH_TOKEN_PATH={home(remote_token(spec))}"])


def launcher(spec: ClusterSpec) -> dict[str, Any]:
    """The launcher's configuration as a plain mapping (schema: `ray/autoscaler/ray-schema.json` of Ray 2.60)."""
    section: Any = getattr(spec, spec.kind)
    config: dict[str, Any] = {"cluster_name": spec.slug}
    if spec.kind == "onprem":
        workers = len(spec.onprem.workers)
        config |= {
            "provider": {"type": "local", "head_ip": spec.onprem.head, "worker_ips": list(spec.onprem.workers)},
            "max_workers": workers,
        }
        config["auth"] = {"ssh_user": spec.onprem.ssh_user, **({"ssh_private_key": spec.onprem.ssh_key} if spec.onprem.ssh_key else {})}
    else:
        most = max(section.max_nodes, spec.nodes)
        provider = {"type": spec.kind, "region": section.region, "availability_zone": section.zone, "cache_stopped_nodes": False}
        if spec.kind == "gcp":
            provider["project_id"] = spec.gcp.project
        node = _aws_node if spec.kind == "aws" else _gcp_node
        worker_resources = {"CPU": spec.cpus_per_node, **({"GPU": spec.gpus_per_node} if spec.gpus_per_node else {})}
        config |= {
            "provider": provider,
            "auth": {"ssh_user": section.ssh_user},
            "max_workers": most,
            "idle_timeout_minutes": section.idle_minutes,
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                # no CPU on the head: trainings go to the workers, the driver still fits
                HEAD_TYPE: {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": node(spec, head=True)},
                WORKER_TYPE: {
                    "resources": worker_resources,
                    "min_workers": spec.nodes,
                    "max_workers": most,
                    "node_config": node(spec, head=False),
                },
            },
        }
    if spec.container:
        gpus = ["--gpus=all"] if spec.gpus_per_node and spec.kind == "onprem" else []
        config["docker"] = {
            "image": spec.container,
            "container_name": "idgbr",
            "pull_before_run": True,
            "run_options": ["--ulimit=nofile=65536:65536", "--shm-size=8g", *gpus],
        }
    config["file_mounts"] = {remote_token(spec): spec.token_path}
    config["setup_commands"] = [f"chmod 700 {home('~/.idgbr')} && chmod 600 {home(remote_token(spec))}", *spec.setup]
    python = shlex.quote(spec.python)
    start = f"{exports(spec)}; ulimit -n 65536; {python} -m ray.scripts.scripts start {AGENT}"
    # Dashboard and Ray client: loopback and the machines' own network; `ray dashboard cluster.yaml` makes a tunnel.
    config["head_start_ray_commands"] = [
        f"{python} -m ray.scripts.scripts stop",
        f"{start} --head --port={spec.ports.gcs} --dashboard-host=127.0.0.1 --dashboard-port={spec.ports.dashboard} "
        f"--include-dashboard=true --ray-client-server-port={spec.ports.client} "
        "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats"
        + (f" --num-cpus={spec.cpus_per_node} --num-gpus={spec.gpus_per_node}" if spec.kind == "onprem" else ""),
    ]
    config["worker_start_ray_commands"] = [
        f"{python} -m ray.scripts.scripts stop",
        f'{start} --address="$RAY_HEAD_IP:{spec.ports.gcs}" --disable-usage-stats'
        + (f" --num-cpus={spec.cpus_per_node} --num-gpus={spec.gpus_per_node}" if spec.kind == "onprem" else ""),
    ]
    return config


def _aws_node(spec: ClusterSpec, *, head: bool) -> dict[str, Any]:
    a = spec.aws
    node: dict[str, Any] = {"InstanceType": a.head_instance_type if head else a.instance_type}
    if a.image_id:
        node["ImageId"] = a.image_id
    node["BlockDeviceMappings"] = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": a.disk_gb, "VolumeType": "gp3", "Encrypted": True}}]
    node["MetadataOptions"] = {"HttpTokens": "required"}
    if a.instance_profile:
        node["IamInstanceProfile"] = {"Arn": a.instance_profile}
    if a.spot and not head:
        node["InstanceMarketOptions"] = {"MarketType": "spot"}
    return node


def _gcp_node(spec: ClusterSpec, *, head: bool) -> dict[str, Any]:
    g = spec.gcp
    image = g.image or "projects/deeplearning-platform-release/global/images/family/common-cpu"
    node: dict[str, Any] = {
        "machineType": g.head_machine_type if head else g.machine_type,
        "disks": [
            {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": {"diskSizeGb": g.disk_gb, "sourceImage": image}}
        ],
    }
    scheduling: list[dict[str, Any]] = []
    if not head and spec.gpus_per_node:
        if g.accelerator:
            kind = f"projects/{g.project}/zones/{g.zone}/acceleratorTypes/{g.accelerator}"
            node["guestAccelerators"] = [{"acceleratorType": kind, "acceleratorCount": spec.gpus_per_node}]
        node["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        scheduling.append({"onHostMaintenance": "TERMINATE"})  # machines with GPUs cannot move while they run
    if not head and g.spot:
        scheduling.append({"preemptible": True})
    if scheduling:
        node["scheduling"] = scheduling
    return node


def render_launcher(spec: ClusterSpec) -> str:
    """`cluster.yaml` for `ray up`."""
    from cluster.launch.kube import dump

    return dump(
        [launcher(spec)],
        f"Ray cluster launcher ({spec.kind}), Ray 2.60. The token comes from {spec.token_path}; the dashboard listens on the\n"
        "head's loopback only (`ray dashboard cluster.yaml` makes a tunnel), the other ports want the token.",
    )


# ---- plain scripts -------------------------------------------------------------------------------------------------------


def render_scripts(spec: ClusterSpec) -> dict[str, str]:
    """head.sh, worker.sh HEAD_IP, stop.sh: for machines nobody manages. They run in the foreground until `stop.sh` or a signal."""
    common = [
        "#!/bin/bash",
        "# Written by `python -m cluster render`.",
        "set -euo pipefail",
        "umask 077",
        "export RAY_AUTH_MODE=token",
        f"export RAY_AUTH_TOKEN_PATH={home(spec.token_path)}",
        f"export RAY_TMPDIR={shlex.quote(temp_dir(spec))}",
        *environment(spec),
        f"python={shlex.quote(spec.python)}",
        'mkdir -p -- "$RAY_TMPDIR"',
        'if [ ! -O "$RAY_TMPDIR" ]; then echo "$RAY_TMPDIR belongs to another user: set script.scratch" >&2; exit 3; fi',
        f'ip=$("$python" -m cluster.node address --interface {shlex.quote(spec.network_interface)})',
        'name=$("$python" -m cluster.node interface "$ip")',
        'export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$name}" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$name}"',
    ]
    options = (
        f'--block --node-ip-address="$ip" {AGENT} --num-cpus={spec.cpus_per_node} --num-gpus={spec.gpus_per_node} --disable-usage-stats'
    )
    p = spec.ports
    head = [
        *common,
        '"$python" -m cluster.node token "$RAY_AUTH_TOKEN_PATH" >/dev/null',
        f'echo "head: $ip:{p.gcs}; dashboard and jobs: http://127.0.0.1:{p.dashboard} (this machine only)"',
        f'echo "on each worker: copy $RAY_AUTH_TOKEN_PATH there (mode 0600), then: bash worker.sh $ip:{p.gcs}"',
        'printf "%s\\n" "$$" >"$RAY_TMPDIR/head.pid"',
        f'exec "$python" -m ray.scripts.scripts start --head --port={p.gcs} --include-dashboard=true --dashboard-host=127.0.0.1 '
        f"--dashboard-port={p.dashboard} --ray-client-server-port={p.client} {options}",
    ]
    default = f"{spec.script.head}:{p.gcs}" if spec.script.head else ""
    worker = [
        *common,
        f"head=${{1:-{shlex.quote(default)}}}" if default else 'head="${1:?bash worker.sh HEAD_IP:PORT}"',
        'if [ ! -r "$RAY_AUTH_TOKEN_PATH" ]; then echo "no token $RAY_AUTH_TOKEN_PATH: copy it from the head (mode 0600)" >&2; exit 3; fi',
        'printf "%s\\n" "$$" >"$RAY_TMPDIR/worker.pid"',
        f'exec "$python" -m ray.scripts.scripts start --address="$head" {options}',
    ]
    stop = [
        "#!/bin/bash",
        "# Stops this cluster's Ray on this machine, and no other (`ray stop` would stop all of yours).",
        "set -euo pipefail",
        f"folder={shlex.quote(temp_dir(spec))}",
        'for file in "$folder"/worker.pid "$folder"/head.pid; do',
        '    if [ -r "$file" ]; then kill -TERM "$(cat "$file")" 2>/dev/null || true; rm -f -- "$file"; fi',
        "done",
    ]
    return {name: "\n".join(lines) + "\n" for name, lines in (("head.sh", head), ("worker.sh", worker), ("stop.sh", stop))}
