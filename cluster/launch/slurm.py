"""A Slurm batch script of a `ClusterSpec`: one Ray head and workers by srun, the command on the head, all gone at its
end.

Nothing here depends on the site: the job's number gives the ports (`cluster.node ports`) and the temporary folder,
shared storage carries the token (0600) and the addresses, and the address is always explicit, so jobs that share a
node never meet.

Signals. Slurm sends USR1 to the script `warn_s` (and up to 30 s more) before the wall time: the command is
interrupted, has half of `warn_s` to save, then is killed; the job is queued again before the limit. `down` sends
USR2: the same, without the queue. TERM comes at the limit and from scancel, with KillWait (30 s by default) until
KILL. srun answers TERM by killing its step at once, so steps are ended by USR2, which srun forwards; Slurm sends it
to every process of the step.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from cluster.launch.spec import ClusterSpec, with_program

# For every process of Ray. The waits are Ray's own, lengthened: from a busy shared file system Python alone may take
# minutes to start.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "PYTHONUNBUFFERED": "1",
}


def directive(option: str, value: object = None) -> str:
    """One `#SBATCH` line. sbatch reads these itself, no shell does: double quotes group, a backslash takes the next
    character as it is."""
    if value is None:
        return f"#SBATCH --{option}"
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9_.,:/@%+=-]+", text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{option}={text}"


def directives(spec: ClusterSpec) -> list[str]:
    """The #SBATCH lines of a spec."""
    s = spec.slurm
    job_dir = spec.job_dir.replace("%", "%%")  # `%` begins a pattern in file names
    lines = [
        directive("job-name", spec.name),
        directive("nodes", spec.nodes),
        directive("ntasks-per-node", 1),
        directive("cpus-per-task", spec.cpus_per_node),
    ]
    if spec.gpus_per_node:
        lines.append(directive("gpus-per-node", spec.gpus_per_node))
    if spec.memory_gb_per_node:
        lines.append(directive("mem", f"{spec.memory_gb_per_node}G"))
    lines.append(directive("time", spec.wall_time))
    for option, value in (
        ("account", s.account),
        ("partition", s.partition),
        ("qos", s.qos),
        ("constraint", s.constraint),
        ("reservation", s.reservation),
    ):
        if value:
            lines.append(directive(option, value))
    if s.exclusive:
        lines.append(directive("exclusive"))
    lines.append(directive("output", f"{job_dir}/%j.log"))
    lines.append(directive("open-mode", "append"))
    lines.append(directive("signal", f"B:USR1@{s.warn_s}"))
    lines.append(directive("requeue" if s.requeue else "no-requeue"))
    lines.append(directive("no-kill"))  # a lost node must not end the job: the study continues on the others
    for option in s.extra:
        name, equals, value = option.removeprefix("--").partition("=")
        lines.append(directive(name, value if equals else None))
    return lines


def environment(spec: ClusterSpec) -> list[str]:
    """Shell lines that every process of the job begins with: variables (quoted), then the site's own `setup` lines."""
    variables = {**SETTINGS, "IDGBR_STORE": spec.store, **spec.env}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    if spec.setup:
        lines += ["set +u  # module files and activate scripts often read variables that are not set", *spec.setup, "set -u"]
    if spec.workdir:
        lines.append(f"cd -- {shlex.quote(spec.workdir)} || exit 3")
    return lines


def inside(spec: ClusterSpec) -> str:
    """The words before every Python command: the container, if any."""
    if not spec.container:
        return ""
    binds = [path for path in (spec.workdir, spec.job_dir, spec.store if spec.store_is_path else "", spec.slurm.scratch) if path]
    words = ["apptainer", "exec", *(["--nv"] if spec.gpus_per_node else [])]
    for path in dict.fromkeys(binds):
        words += ["--bind", path]
    return shlex.join([*words, spec.container])


def render(spec: ClusterSpec, command: Sequence[str]) -> str:
    """The batch script, whole; `sbatch FILE` runs it. The folder `spec.job_dir` must be there (`submit` makes it)."""
    words = shlex.join(with_program(command, spec.python))
    s = spec.slurm
    values = {
        "job_dir": spec.job_dir,
        "scratch": s.scratch.rstrip("/"),
        "python": spec.python,
        "interface": spec.network_interface,
        "low": spec.ports.low,
        "high": spec.ports.high,
        "cpus": spec.cpus_per_node,
        "gpus": spec.gpus_per_node,
        "max_requeues": s.max_requeues if s.requeue else 0,
        "save_s": max(1, s.warn_s // 2),
    }
    assignments = "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items())
    return _TEMPLATE.format(
        directives="\n".join(directives(spec)),
        name=_comment(spec.name),
        assignments=assignments,
        inside=inside(spec),
        environment="\n".join(environment(spec)),
        command=words,
        gpu_option=' --gpus-per-node="$gpus"' if spec.gpus_per_node else "",
    )


def _comment(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)


# The template: `{{` is a brace of the shell. Here-documents have quoted ends, so the shell expands nothing in them.
_TEMPLATE = """#!/bin/bash
{directives}

# Cluster: {name}
# Written by `python -m cluster render`. The same command resumes: a requeued job runs this script again.
# The dashboard listens on 127.0.0.1 of the head node; all other ports require the job's token.
set -euo pipefail
umask 077

{assignments}
job_folder="$job_dir/$SLURM_JOB_ID"
run_dir="$job_folder/${{SLURM_RESTART_COUNT:-0}}"
head_node="${{SLURMD_NODENAME:-$(hostname -s)}}"
mkdir -p -- "$run_dir"
rm -f -- "$job_folder/end" "$job_folder"/*/token "$run_dir/address" "$run_dir/exit-code" # of an earlier start that was lost

# ---- every process of the job begins with this ----
{{
    printf 'run_dir=%q scratch=%q python=%q interface=%q low=%q high=%q cpus=%q gpus=%q\\n' \\
        "$run_dir" "$scratch" "$python" "$interface" "$low" "$high" "$cpus" "$gpus"
    cat <<'END_OF_ENVIRONMENT'
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$run_dir/token"
export RAY_TMPDIR="$scratch/r-$SLURM_JOB_ID"
inside=({inside})
{environment}
END_OF_ENVIRONMENT
}} >"$run_dir/environment.sh"

# ---- what srun starts on a node: node.sh head | node.sh worker ADDRESS ----
cat >"$run_dir/node.sh" <<'END_OF_NODE'
# shellcheck disable=SC2154  # the lower-case variables come from environment.sh
set -euo pipefail
umask 077
asked='' ray_pid=''
# shellcheck disable=SC2317,SC2329  # called by the trap
end_ray() {{
    trap '' TERM INT USR1 USR2 # Slurm signals every process of the step: what follows must not be ended half way
    asked=$SECONDS
    if [ -n "$ray_pid" ]; then kill -TERM "$ray_pid" 2>/dev/null || true; fi
}}
trap end_ray TERM INT USR2
# shellcheck source=/dev/null
. "${{0%/*}}/environment.sh"
mkdir -p -- "$RAY_TMPDIR"
if [ ! -O "$RAY_TMPDIR" ]; then
    echo "$(hostname): $RAY_TMPDIR belongs to another user: set slurm.scratch" >&2
    exit 3
fi
ip=$("${{inside[@]}}" "$python" -m cluster.node address --interface "$interface")
name=$("${{inside[@]}}" "$python" -m cluster.node interface "$ip")
# gloo and NCCL would else ask the host name, which may resolve to loopback
export GLOO_SOCKET_IFNAME="${{GLOO_SOCKET_IFNAME:-$name}}" NCCL_SOCKET_IFNAME="${{NCCL_SOCKET_IFNAME:-$name}}"
options=(--node-ip-address="$ip" --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats)
port=$("${{inside[@]}}" "$python" -m cluster.node ports "$SLURM_JOB_ID" "$low" "$high")
options+=(--node-manager-port=$((port + 3)) --object-manager-port=$((port + 4)) --runtime-env-agent-port=$((port + 5))
    --dashboard-agent-listen-port=$((port + 6)) --dashboard-agent-grpc-port=$((port + 7)) --metrics-export-port=$((port + 8)))
if [ "$1" = head ]; then
    options+=(--head --port="$port" --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1))
        --ray-client-server-port=$((port + 2)))
    printf 'http://127.0.0.1:%s\\n' $((port + 1)) >"$run_dir/dashboard"
    printf '%s:%s\\n' "$ip" "$port" >"$run_dir/address.part"
    mv -- "$run_dir/address.part" "$run_dir/address"
else
    options+=(--address="$2")
fi
code=0
for attempt in 1 2 3 4 5; do # a raylet whose agents are late aborts
    if [ -n "$asked" ]; then break; fi
    begin=$SECONDS code=0
    set -m # Ray in a process group of its own, so that all of it can be ended, even half started
    "${{inside[@]}}" "$python" -m cluster.ray_start "${{options[@]}}" --block &
    ray_pid=$!
    set +m
    wait "$ray_pid" || code=$?
    while kill -0 "$ray_pid" 2>/dev/null && [ $((SECONDS - ${{asked:-$SECONDS}})) -lt 10 ]; do sleep 0.2; done
    kill -KILL -- "-$ray_pid" 2>/dev/null || true
    if [ "$code" = 0 ] || [ -n "$asked" ] || [ $((SECONDS - begin)) -gt 240 ]; then break; fi
    echo "$(hostname): Ray did not start (attempt $attempt, exit code $code)" >&2
done
trap '' TERM INT USR1 USR2
cp -r -- "$RAY_TMPDIR/ray/session_latest/logs" "$run_dir/ray-logs-$1-$(hostname -s)" 2>/dev/null || echo "no Ray logs kept" >&2
for _ in 1 2 3 4 5 6; do # processes that are just ending may still write there
    if rm -rf -- "$RAY_TMPDIR" 2>/dev/null; then break; fi
    sleep 0.5
done
if [ -e "$RAY_TMPDIR" ]; then echo "$RAY_TMPDIR is still in use" >&2; fi
exit "$code"
END_OF_NODE

# ---- the command; its exit code goes into a file ----
cat >"$run_dir/command.sh" <<'END_OF_COMMAND'
# shellcheck disable=SC2154
set -uo pipefail
# shellcheck source=/dev/null
. "${{0%/*}}/environment.sh"
trap : INT
code=0
"${{inside[@]}}" {command} || code=$?
printf '%s\\n' "$code" >"$run_dir/exit-code"
exit "$code"
END_OF_COMMAND

# ---- the end: the command saves, then Ray ends on every node, then the token goes ----
pids=()           # of the steps
command_pid=''    # leader of the command's process group
warned='' requeue='' stopped=''
step_s=25         # for Ray to end and its logs to be kept

# shellcheck disable=SC2317,SC2329  # called by traps
end_command() {{ # SECONDS: interrupted, it has so long to save; then TERM, then KILL
    local seconds=$1 name deadline
    if [ -z "$command_pid" ]; then return 0; fi # a bare `return` in a trap has the status of before
    for name in INT TERM KILL; do
        kill "-$name" -- "-$command_pid" 2>/dev/null || return 0
        deadline=$((SECONDS + seconds))
        while kill -0 -- "-$command_pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
        seconds=5
    done
}}

# shellcheck disable=SC2317,SC2329  # called by traps
end_steps() {{
    local name pid deadline seconds=$step_s
    for name in USR2 TERM KILL; do
        deadline=$((SECONDS + seconds))
        for pid in "${{pids[@]}}"; do
            kill "-$name" "$pid" 2>/dev/null || true
        done
        for pid in "${{pids[@]}}"; do
            while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
        done
        seconds=3
    done
}}

# shellcheck disable=SC2317,SC2329  # called by the trap
finish() {{
    local code=$? state=FAILED
    trap '' TERM INT USR1 USR2
    if [ -n "$warned" ] && [ -z "$requeue$stopped" ] && [ "$code" != 0 ] && may_requeue; then requeue=last; fi
    end_command "$save_s"
    end_steps
    rm -f -- "$run_dir/token"
    if [ "$requeue" = now ]; then exit 0; fi
    if [ "$requeue" = last ]; then
        echo "queueing the job again; the same command resumes" >&2
        if scontrol requeue "$SLURM_JOB_ID"; then exit 0; fi
    fi
    if [ -n "$stopped" ]; then state=STOPPED; elif [ "$code" = 0 ]; then state=SUCCEEDED; fi
    printf '%s %s %s\\n' "$state" "$code" "$SECONDS" >"$job_folder/end.part"
    mv -- "$job_folder/end.part" "$job_folder/end"
    exit "$code"
}}
trap finish EXIT

# shellcheck disable=SC2317,SC2329  # called by traps
may_requeue() {{ [ "${{SLURM_RESTART_COUNT:-0}}" -lt "$max_requeues" ]; }}

# shellcheck disable=SC2317,SC2329
warn() {{
    warned=1
    echo "wall time is near: stopping the command, what is done is kept" >&2
    if [ -n "$command_pid" ]; then end_command "$save_s" & fi
}}
trap warn USR1

# shellcheck disable=SC2317,SC2329
stop() {{
    stopped=1
    exit 143
}}
trap stop USR2

# shellcheck disable=SC2317,SC2329
terminate() {{ # at the limit, or by scancel; SIGKILL follows after Slurm's KillWait
    trap '' TERM
    save_s=8 step_s=10
    if [ -n "$warned" ] && may_requeue && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %r 2>/dev/null)" = TimeLimit ]; then
        echo "stopping took longer than the warning; queueing the job again" >&2
        if scontrol requeue "$SLURM_JOB_ID"; then requeue=now; fi
    else
        stopped=1
    fi
    exit 143
}}
trap terminate TERM

inside=()
# shellcheck source=/dev/null
. "$run_dir/environment.sh"
"${{inside[@]}}" "$python" -m cluster.node token "$run_dir/token" >/dev/null

wait_for() {{ # NODES SECONDS: until so many have joined, the time is over, or the head has ended
    "${{inside[@]}}" "$python" -m cluster.wait "$RAY_ADDRESS" "$1" "$2" &
    local waiter=$! code=0
    while kill -0 "$waiter" 2>/dev/null; do
        if ! kill -0 "${{pids[0]}}" 2>/dev/null; then
            echo "the Ray head has ended" >&2
            kill "$waiter" 2>/dev/null || true
        fi
        sleep 0.5
    done
    wait "$waiter" || code=$?
    return "$code"
}}
step=(srun --export=ALL --overlap --kill-on-bad-exit=0 --ntasks-per-node=1 --cpus-per-task="$cpus"{gpu_option})
"${{step[@]}}" --nodes=1 --ntasks=1 --nodelist="$head_node" bash "$run_dir/node.sh" head >"$run_dir/head.log" 2>&1 &
pids+=($!)
for _ in $(seq 1200); do
    if [ -s "$run_dir/address" ]; then break; fi
    if ! kill -0 "${{pids[0]}}" 2>/dev/null; then
        echo "the Ray head did not start; the end of $run_dir/head.log:" >&2
        tail -n 20 "$run_dir/head.log" >&2
        exit 3
    fi
    sleep 0.25
done
if [ ! -s "$run_dir/address" ]; then
    echo "the Ray head gave no address within 300 s: is $job_dir on storage that all nodes share?" >&2
    exit 3
fi
RAY_ADDRESS=$(cat "$run_dir/address")
export RAY_ADDRESS
echo "head $head_node, Ray at $RAY_ADDRESS, logs in $run_dir" >&2
if ! wait_for 1 400; then
    tail -n 20 "$run_dir/head.log" >&2
    exit 3
fi
workers=$((SLURM_JOB_NUM_NODES - 1))
if [ "$workers" -gt 0 ]; then
    "${{step[@]}}" --no-kill --nodes="$workers" --ntasks="$workers" --exclude="$head_node" \\
        bash "$run_dir/node.sh" worker "$RAY_ADDRESS" >"$run_dir/workers.log" 2>&1 &
    pids+=($!)
    if ! wait_for "$SLURM_JOB_NUM_NODES" 400; then
        tail -n 20 "$run_dir/workers.log" >&2
        exit 3
    fi
fi
code=130
if [ -z "$warned" ]; then
    set -m # in a process group of its own, so that a signal reaches all of the command and nothing else
    bash "$run_dir/command.sh" &
    command_pid=$!
    set +m
    while kill -0 "$command_pid" 2>/dev/null; do wait "$command_pid" || true; done
    code=$(cat "$run_dir/exit-code" 2>/dev/null || echo 130)
fi
exit "$code"
"""
