"""A stand-in for Slurm on one machine: sbatch, srun, squeue, scancel and scontrol, called by symbolic links of these names.

For machines without Slurm. As unkind as Slurm is (test_slurm_ends.py runs on both): srun ends its step at once on TERM and forwards only
USR1 and USR2; signals reach every process of a step or job; a time limit warns, then ends; a job that has ended is unknown to squeue; there
is no accounting. It knows nothing of nodes: all are this one. A requeued job starts again when the file `start` is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "fake-slurm-is-not-set"))
KILL_WAIT_S = 30.0
KNOWN_SRUN = {
    "export",
    "overlap",
    "kill-on-bad-exit",
    "ntasks-per-node",
    "cpus-per-task",
    "gpus-per-node",
    "nodes",
    "ntasks",
    "nodelist",
    "exclude",
    "no-kill",
}


def split_directive(line: str) -> list[str]:
    """Words of a `#SBATCH` line by sbatch's own rules: quotes group, a backslash takes the next character, `#` outside quotes ends it."""
    words, word, quote, escaped, inside = [], "", "", False, False
    for c in line:
        if escaped:
            word, escaped = word + c, False
        elif c == "\\":
            escaped = inside = True
        elif quote:
            if c == quote:
                quote = ""
            else:
                word += c
        elif c in "\"'":
            quote, inside = c, True
        elif c.isspace():
            if inside:
                words.append(word)
            word, inside = "", False
        elif c == "#":
            break
        else:
            word, inside = word + c, True
    return [*words, word] if inside else words


def directives(script: str) -> dict[str, str]:
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            for word in split_directive(line.removeprefix("#SBATCH")):
                name, _, value = word.removeprefix("--").partition("=")
                found[name] = value
    return found


def job_folder(number: str) -> Path:
    return STATE / number


def sbatch(arguments: list[str]) -> None:
    script = sys.stdin.read() if not arguments or arguments[-1].startswith("--") else Path(arguments[-1]).read_text()
    first = int(os.environ.get("FAKE_SLURM_FIRST", "4001"))
    number = str(first + sum(1 for f in STATE.iterdir() if f.is_dir()))
    folder = job_folder(number)
    folder.mkdir(parents=True)
    (folder / "script").write_text(script)
    (folder / "state").write_text("PENDING")
    subprocess.Popen(
        [sys.executable, __file__, "run-job", number],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f"{number};fake" if "--parsable" in arguments else f"Submitted batch job {number}")


def descendants(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def seconds_of(clock: str) -> int:
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return hours * 3600 + minutes * 60 + seconds


def run_job(number: str) -> None:
    folder = job_folder(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would its children
    options = directives((folder / "script").read_text())
    (folder / "options.json").write_text(json.dumps(options))
    output = Path(options["output"].replace("%%", "\0").replace("%j", number).replace("\0", "%"))
    warning = getattr(signal, "SIG" + options["signal"].removeprefix("B:").partition("@")[0])
    limit = seconds_of(options["time"])
    warn = limit - int(options["signal"].partition("@")[2])
    for restart in range(10):
        env = {
            **os.environ,
            "SLURM_JOB_ID": number,
            "SLURM_JOB_NUM_NODES": options["nodes"],
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
            "SLURM_JOB_NAME": options["job-name"],
            "SLURMD_NODENAME": "fake0",
            "SLURM_JOB_NODELIST": "fake[0-9]",
        }
        if restart:
            env["SLURM_RESTART_COUNT"] = str(restart)
        (folder / "requeue").unlink(missing_ok=True)
        (folder / "reason").write_text("None")
        with open(output, "ab") as log:
            job = subprocess.Popen(["bash", str(folder / "script")], env=env, stdout=log, stderr=log, start_new_session=True)
        (folder / "pid").write_text(str(job.pid))
        (folder / "state").write_text("RUNNING")
        begin, warned, ended = time.monotonic(), False, 0.0
        while job.poll() is None:
            spent = time.monotonic() - begin
            if spent > warn and not warned:
                warned = True
                os.kill(job.pid, warning)
            if not ended and (spent > limit or (folder / "end").exists() or (folder / "requeue").exists()):
                if spent > limit:
                    (folder / "reason").write_text("TimeLimit")
                ended = time.monotonic()
                signal_all(descendants(job.pid), signal.SIGTERM)
            if ended and time.monotonic() - ended > KILL_WAIT_S:
                signal_all(descendants(job.pid), signal.SIGKILL)
            time.sleep(0.1)
        if not (folder / "requeue").exists():
            break
        (folder / "state").write_text("PENDING")
        (folder / "restarts").write_text(str(restart + 1))
        while not (folder / "start").exists() and not (folder / "end").exists():
            time.sleep(0.1)
        if (folder / "end").exists():
            break
        (folder / "start").unlink()
    (folder / "state").write_text("")
    (folder / "over").touch()


def srun(arguments: list[str]) -> None:
    options = {}
    while arguments and arguments[0].startswith("--"):
        name, _, value = arguments.pop(0).removeprefix("--").partition("=")
        if name not in KNOWN_SRUN:
            raise SystemExit(f"srun: unrecognized option '--{name}'")
        options[name] = value
    tasks = [
        subprocess.Popen(arguments, env={**os.environ, "SLURM_PROCID": str(i), "SLURM_NODEID": str(i)}, start_new_session=True)
        for i in range(int(options.get("ntasks", "1")))
    ]

    def step() -> list[int]:
        return [pid for task in tasks if task.poll() is None for pid in descendants(task.pid)]

    def end(number: int, _: object) -> None:
        signal_all(step(), signal.SIGKILL)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: signal_all(step(), number))
    raise SystemExit(max(abs(task.wait()) for task in tasks))


def known(number: str) -> Path:
    folder = job_folder(number)
    if not folder.exists() or (folder / "over").exists():
        raise SystemExit("slurm_load_jobs error: Invalid job id specified")
    return folder


def squeue(arguments: list[str]) -> None:
    if "--jobs" not in arguments:
        print("\n".join(path.name for path in STATE.iterdir() if not (path / "over").exists()))
        return
    folder = known(arguments[arguments.index("--jobs") + 1])
    options = directives((folder / "script").read_text())
    reason = (folder / "reason").read_text() if (folder / "reason").exists() else "Priority"
    line = arguments[arguments.index("--format") + 1]
    shown = {"%T": (folder / "state").read_text(), "%M": "0:05", "%r": reason, "%R": reason, "%j": options["job-name"]}
    for sign, value in shown.items():
        line = line.replace(sign, value)
    print(line)


def scancel(arguments: list[str]) -> None:
    folder = known(arguments[-1])
    named = [word.partition("=")[2] for word in arguments if word.startswith("--signal=")]
    if named:
        pid = int((folder / "pid").read_text())
        signal_all([pid] if "--batch" in arguments else descendants(pid), getattr(signal, f"SIG{named[0]}"))
    else:
        (folder / "end").touch()


def scontrol(arguments: list[str]) -> None:
    verb = next(word for word in arguments if not word.startswith("--"))
    named = [word.removeprefix("JobId=") for word in arguments if word.startswith("JobId=")]
    folder = known(named[0] if named else arguments[-1])
    if verb == "requeue":
        (folder / "requeue").touch()
    elif verb == "show":
        name = directives((folder / "script").read_text())["job-name"]
        state, restarts = (folder / "state").read_text(), (folder / "restarts").read_text() if (folder / "restarts").exists() else "0"
        print(
            f"JobId={folder.name} JobName={name} UserId=me(1) GroupId=me(1) JobState={state} Reason=None Requeue=1 Restarts={restarts} "
            "ExitCode=0:0 RunTime=00:00:05 TimeLimit=01:00:00"
        )
    elif verb == "update":
        (folder / "start").touch()
    else:
        raise SystemExit(f"scontrol: {verb}?")


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    if sys.argv[1:2] == ["run-job"]:
        run_job(sys.argv[2])
    else:
        {"sbatch": sbatch, "srun": srun, "squeue": squeue, "scancel": scancel, "scontrol": scontrol}[name](sys.argv[1:])
