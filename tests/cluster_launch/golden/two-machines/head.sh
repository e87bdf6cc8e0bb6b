#!/bin/bash
# Written by `python -m cluster render`.
set -euo pipefail
umask 077
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME"/.idgbr/schedules.token
export RAY_TMPDIR=/tmp/r-6e9a1ab2
export RAY_USAGE_STATS_ENABLED=0
export RAY_DEDUP_LOGS=1
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=300
export RAY_worker_register_timeout_seconds=300
export RAY_agent_register_timeout_ms=300000
export PYTHONUNBUFFERED=1
export IDGBR_STORE=/nfs/idgbr-store
cd -- /nfs/idgbr || exit 3
python=/nfs/idgbr/.venv/bin/python
mkdir -p -- "$RAY_TMPDIR"
if [ ! -O "$RAY_TMPDIR" ]; then echo "$RAY_TMPDIR belongs to another user: set script.scratch" >&2; exit 3; fi
ip=$("$python" -m cluster.node address --interface '')
name=$("$python" -m cluster.node interface "$ip")
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$name}" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$name}"
"$python" -m cluster.node token "$RAY_AUTH_TOKEN_PATH" >/dev/null
echo "head: $ip:6379; dashboard and jobs: http://127.0.0.1:8265 (this machine only)"
echo "on each worker: copy $RAY_AUTH_TOKEN_PATH there (mode 0600), then: bash worker.sh $ip:6379"
printf "%s\n" "$$" >"$RAY_TMPDIR/head.pid"
exec "$python" -m cluster.ray_start --head --port=6379 --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=8265 --ray-client-server-port=10001 --block --node-ip-address="$ip" --dashboard-agent-listen-port=0 --num-cpus=16 --num-gpus=1 --disable-usage-stats
