"""Jobs in Slurm's queue, by sbatch, squeue, scontrol, sacct and scancel."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.launch import slurm
from cluster.launch.jobs import ENDED, ClusterJob
from cluster.launch.programs import NoAnswer, ToolFailed, Write, need, tool
from cluster.launch.spec import ClusterSpec
from idgbr.errors import BadRequest, Missing, SomeFailed

WHERE = "log in to a node that has Slurm's commands; `python -m cluster render` works anywhere"
TOOL_S = 60.0  # for one of Slurm's commands
FOLLOW_S = 1800.0  # without an answer of Slurm, before following a log gives up
POLL_S = 2.0

STATES = {
    "PENDING": "PENDING",
    "CONFIGURING": "PENDING",
    "REQUEUED": "PENDING",
    "SUSPENDED": "PENDING",
    "RUNNING": "RUNNING",
    "COMPLETING": "RUNNING",
    "COMPLETED": "SUCCEEDED",
    "CANCELLED": "STOPPED",
    "FAILED": "FAILED",
    "TIMEOUT": "FAILED",
    "NODE_FAIL": "FAILED",
    "OUT_OF_MEMORY": "FAILED",
    "PREEMPTED": "FAILED",
    "BOOT_FAIL": "FAILED",
    "DEADLINE": "FAILED",
}
SHOWN = re.compile(
    r"JobName=(?P<name>.*?) UserId=\S+ GroupId=.*? JobState=(?P<state>\S+) Reason=(?P<reason>\S+) .*"
    r" ExitCode=(?P<code>\d+):(?P<signal>\d+) RunTime=(?P<elapsed>\S+)"
)


def _ask(*words: str, stdin: str | None = None) -> str:
    return tool(words, stdin=stdin, missing=WHERE, seconds=TOOL_S)


def _is_unknown_job(error: ToolFailed) -> bool:
    """Slurm's commands end with the same exit code whatever is wrong; that Slurm has forgotten a job stands in the
    text only."""
    return "Invalid job id" in error.said


def _has_no_accounting(error: ToolFailed) -> bool:
    """As above: "Slurm accounting storage is disabled" is told apart by its text only."""
    return "disabled" in error.said


class SlurmQueue:
    """The `Launcher` of kind slurm. Jobs are known by Slurm's number."""

    down_needs_job = True

    def __init__(self, spec: ClusterSpec):
        self.spec = spec
        self.folder = Path(spec.job_dir)

    def submit(self, command: Sequence[str], job_id: str, working_dir: str | None) -> str:
        """`job_id` is not used: Slurm chooses the number."""
        if working_dir is not None:
            raise BadRequest(
                "--working-dir is for clusters reached through the Jobs API", hint="workdir = ... in the spec: a folder all nodes share"
            )
        text = slurm.render(self.spec, command)
        need("sbatch", WHERE)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Missing(
                f"cannot make the folder for jobs {self.folder}: {error.strerror}", hint="workdir or slurm.job_dir in the spec"
            ) from error
        self._drop_tokens()
        number = _ask("sbatch", "--parsable", stdin=text).strip().partition(";")[0]
        if not number.isdigit():
            raise SomeFailed("sbatch gave no job number", value=number)
        (self.folder / f"{number}.sbatch").write_text(text)
        return number

    def job(self, job_id: str) -> ClusterJob:
        """From the queue; for a job that has left it, from the record the script wrote, then what Slurm remembers,
        then its accounting.

        Raises:
            Missing: none of them knows the job. NoAnswer, ToolFailed: Slurm does not answer.
        """
        if not job_id.isdigit():
            raise Missing(f"Slurm knows no job {job_id}", hint="`squeue --me` lists yours")
        if queued := self._queued(job_id):
            return queued
        ended = self._recorded(job_id) or self._remembered(job_id) or self._accounted(job_id)
        if ended is None:
            raise Missing(f"Slurm knows no job {job_id}", hint="`squeue --me` lists yours")
        for token in self.folder.glob(f"{job_id}/*/token"):  # of a job that a time limit or a lost node ended
            token.unlink(missing_ok=True)
        return ended

    def _queued(self, job_id: str) -> ClusterJob | None:
        try:
            words = _ask("squeue", "--noheader", "--jobs", job_id, "--format", "%T|%M|%R|%j").strip()
        except ToolFailed as error:
            if _is_unknown_job(error):  # Slurm has forgotten it (MinJobAge)
                return None
            raise
        if not words:
            return None
        state, elapsed, reason, name = words.splitlines()[0].split("|", 3)
        return ClusterJob(job_id, STATES.get(state, "UNKNOWN"), name, f"{state}, {reason}", _seconds(elapsed))

    def _recorded(self, job_id: str) -> ClusterJob | None:
        try:
            state, code, seconds = (self.folder / job_id / "end").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return ClusterJob(job_id, state, self.spec.name, f"exit code {code}", float(seconds), int(code))

    def _remembered(self, job_id: str) -> ClusterJob | None:
        try:
            shown = _ask("scontrol", "--oneliner", "show", "job", job_id)
        except ToolFailed as error:
            if _is_unknown_job(error):
                return None
            raise
        found = SHOWN.search(shown)
        if found is None:
            return None
        state = found["state"]
        message = f"{state}, {found['reason']}, exit code {found['code']}:{found['signal']}"
        return ClusterJob(job_id, STATES.get(state, "UNKNOWN"), found["name"], message, _seconds(found["elapsed"]), int(found["code"]))

    def _accounted(self, job_id: str) -> ClusterJob | None:
        """None also where the site keeps no accounting."""
        if shutil.which("sacct") is None:
            return None
        try:
            fields = "State,Elapsed,ExitCode,JobName"
            words = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job_id, "--format", fields).strip()
        except ToolFailed as error:
            if _has_no_accounting(error):
                return None
            raise
        if not words:
            return None
        state, elapsed, code, name = words.splitlines()[-1].split("|", 3)
        word = state.split()[0].rstrip("+")
        return ClusterJob(
            job_id, STATES.get(word, "UNKNOWN"), name, f"{word}, exit code {code}", _seconds(elapsed), int(code.partition(":")[0])
        )

    def logs(self, job_id: str, follow: bool, write: Write) -> None:
        """Output of a job, new text as it is written."""
        path = self.folder / f"{job_id}.log"
        if not path.exists() and not follow:
            raise Missing(f"job {job_id} has no log yet", value=path, hint=f"`status --job {job_id}`: it may still be waiting")
        place, ended, answered = 0, False, time.monotonic()
        while True:
            if path.exists():
                with open(path, errors="replace") as file:
                    file.seek(place)
                    if text := file.read():
                        write(text)
                    place = file.tell()
            if not follow or ended:
                return
            try:
                ended = self.job(job_id).state in ENDED  # then one more round, for what was written meanwhile
                answered = time.monotonic()
            except (NoAnswer, ToolFailed) as error:  # Slurm's controller is restarted, or busy
                if time.monotonic() - answered > FOLLOW_S:
                    raise
                print(f"Slurm does not answer, still following: {error}", file=sys.stderr)
            time.sleep(0 if ended else POLL_S)

    def down(self, job_id: str | None) -> str:
        """Stop the job in order: the command saves, Ray ends on every node. What is still there after that is
        cancelled."""
        if job_id is None:
            raise BadRequest("which job?", hint="--job NUMBER")
        job = self.job(job_id)
        if job.state == "RUNNING":
            _ask("scancel", "--batch", "--signal=USR2", job_id)
            deadline = time.monotonic() + self.spec.slurm.warn_s + 30
            while (job := self.job(job_id)).state not in ENDED and time.monotonic() < deadline:
                time.sleep(POLL_S / 4)
        if job.state not in ENDED:
            _ask("scancel", job_id)
        self._drop_tokens()
        return f"job {job_id} is stopped" if job.state in ENDED else f"job {job_id} cancelled"

    def _drop_tokens(self) -> None:
        """Delete tokens of jobs that have left the queue: a time limit or a lost node leaves them, and they open
        nothing any more."""
        tokens = list(self.folder.glob("*/*/token"))
        if not tokens:
            return
        queued = set(_ask("squeue", "--noheader", "--me", "--format", "%A").split())
        for token in tokens:
            if token.parts[-3] not in queued:
                with contextlib.suppress(OSError):  # of another user who shares the folder
                    token.unlink()


def _seconds(elapsed: str) -> float:
    """Slurm's D-HH:MM:SS, HH:MM:SS or MM:SS."""
    days, _, clock = elapsed.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = total * 60 + (int(part) if part.isdigit() else 0)
    return float(total + 86400 * int(days or 0))
