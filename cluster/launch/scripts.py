"""Start scripts for machines without a scheduler, run by hand or by SkyPilot: head.sh, worker.sh, stop.sh, skypilot.yaml."""

from __future__ import annotations

import shlex

from cluster.launch.slurm import environment
from cluster.launch.spec import ClusterSpec, temp_dir
from idgbr.interfaces import Json

# Any free port. Ray's default is 52365; if another user's Ray holds it, this head would accept no jobs.
AGENT = "--dashboard-agent-listen-port=0"


def home(path: str) -> str:
    """`path` quoted for a shell; a leading `~/` becomes the home folder of the user who runs the script."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


SKYPILOT = """\
# Written by `python -m cluster render`: the same scripts on machines that SkyPilot starts in a cloud (fields as of SkyPilot 0.14).
# Choose the machines in `resources`, then, in this folder: sky launch --cluster NAME skypilot.yaml
"""


def skypilot(spec: ClusterSpec) -> Json:
    """A SkyPilot task whose nodes run head.sh or worker.sh. The token is copied to them as a file."""
    launch = "~/idgbr-launch"
    start = [
        "# rank 0 is the head; the others wait for it",
        f'head="$(printf \'%s\\n\' "$SKYPILOT_NODE_IPS" | head -n 1):{spec.ports.gcs}"',
        f'if [ "$SKYPILOT_NODE_RANK" = 0 ]; then exec bash {launch}/head.sh; else exec bash {launch}/worker.sh "$head"; fi',
    ]
    gpus = {"accelerators": f"L4:{spec.gpus_per_node}"} if spec.gpus_per_node else {}
    return {
        "name": spec.slug,
        "num_nodes": spec.nodes,
        "resources": {"cpus": f"{spec.cpus_per_node}+", **gpus, "use_spot": False},
        "file_mounts": {launch: ".", spec.token_path: spec.token_path},
        "run": "\n".join(start) + "\n",
    }


def render(spec: ClusterSpec) -> dict[str, str]:
    """The files by name. `head.sh` and `worker.sh HEAD_IP:PORT` run in the foreground until `stop.sh` or a signal."""
    from cluster.launch.kube import dump

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
        f'exec "$python" -m cluster.ray_start --head --port={p.gcs} --include-dashboard=true --dashboard-host=127.0.0.1 '
        f"--dashboard-port={p.dashboard} --ray-client-server-port={p.client} {options}",
    ]
    default = f"{spec.script.head}:{p.gcs}" if spec.script.head else ""
    worker = [
        *common,
        f"head=${{1:-{shlex.quote(default)}}}" if default else 'head="${1:?bash worker.sh HEAD_IP:PORT}"',
        'if [ ! -r "$RAY_AUTH_TOKEN_PATH" ]; then echo "no token $RAY_AUTH_TOKEN_PATH: copy it from the head (mode 0600)" >&2; exit 3; fi',
        '"$python" -m cluster.node listening "$head" 600',
        'printf "%s\\n" "$$" >"$RAY_TMPDIR/worker.pid"',
        f'exec "$python" -m cluster.ray_start --address="$head" {options}',
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
    scripts = {"head.sh": head, "worker.sh": worker, "stop.sh": stop}
    return {name: "\n".join(lines) + "\n" for name, lines in scripts.items()} | {"skypilot.yaml": SKYPILOT + dump([skypilot(spec)], "")}
