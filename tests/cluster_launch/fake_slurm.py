"""A stand-in for Slurm on one machine: sbatch, srun, squeue, sacct, scancel and scontrol requeue, called by symbolic links of these names.

It reads `#SBATCH` lines the way sbatch does, gives a job its number, log file and variables, really starts what srun is asked to, sends the
warning signal on request (file `warn` beside the job) and starts a job again that asks for it. It knows nothing of nodes: all are this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "fake-slurm-is-not-set"))
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


def run_job(number: str) -> None:
    folder = job_folder(number)
    options = directives((folder / "script").read_text())
    (folder / "options.json").write_text(json.dumps(options))
    output = Path(options["output"].replace("%%", "\0").replace("%j", number).replace("\0", "%"))
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
        with open(output, "ab") as log:
            job = subprocess.Popen(["bash", str(folder / "script")], env=env, stdout=log, stderr=log, start_new_session=True)
        (folder / "pid").write_text(str(job.pid))
        (folder / "state").write_text("RUNNING")
        while job.poll() is None:
            if (folder / "warn").exists():
                (folder / "warn").unlink()
                os.kill(job.pid, getattr(signal, "SIG" + options["signal"].removeprefix("B:").partition("@")[0]))
            time.sleep(0.1)
        if not (folder / "requeue").exists():
            break
    (folder / "code").write_text(str(job.returncode))
    cancelled = (folder / "cancelled").exists()
    (folder / "state").write_text("CANCELLED" if cancelled else "FAILED" if job.returncode else "COMPLETED")


def srun(arguments: list[str]) -> None:
    options = {}
    while arguments and arguments[0].startswith("--"):
        name, _, value = arguments.pop(0).removeprefix("--").partition("=")
        if name not in KNOWN_SRUN:
            raise SystemExit(f"srun: unrecognized option '--{name}'")
        options[name] = value
    tasks = [
        subprocess.Popen(arguments, env={**os.environ, "SLURM_PROCID": str(i), "SLURM_NODEID": str(i)})
        for i in range(int(options.get("ntasks", "1")))
    ]

    def forward(number: int, _: object) -> None:
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    raise SystemExit(max(abs(task.wait()) for task in tasks))


def squeue(arguments: list[str]) -> None:
    folder = job_folder(arguments[arguments.index("--jobs") + 1])
    state = (folder / "state").read_text() if folder.exists() else ""
    if state in ("PENDING", "RUNNING"):
        options = directives((folder / "script").read_text())
        print(f"{state}|0:05|fake0|{options['job-name']}")


def sacct(arguments: list[str]) -> None:
    folder = job_folder(arguments[arguments.index("--jobs") + 1])
    if folder.exists():
        options = directives((folder / "script").read_text())
        state, code = (folder / "state").read_text(), (folder / "code").read_text() if (folder / "code").exists() else "0"
        print(f"{state}|00:00:05|{code}:0|{options['job-name']}")


def scancel(arguments: list[str]) -> None:
    folder = job_folder(arguments[0])
    (folder / "cancelled").touch()
    os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


def scontrol(arguments: list[str]) -> None:
    verb, number = arguments
    if verb != "requeue":
        raise SystemExit(f"scontrol: {verb}?")
    (job_folder(number) / "requeue").touch()


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    if sys.argv[1:2] == ["run-job"]:
        run_job(sys.argv[2])
    else:
        {"sbatch": sbatch, "srun": srun, "squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}[name](sys.argv[1:])
