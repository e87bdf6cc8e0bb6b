"""Jobs on a running cluster, through Ray's Jobs API (the dashboard's port). Tokens travel in a header and appear
nowhere else.

The job's id is chosen here, before anything is sent: if the connection is lost in mid-submit, `status` shows whether
the job exists, and submitting again under the same id cannot run it twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.node import check_token
from cluster.ray_private import JobsError, jobs_error
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.interfaces import Json
from idgbr.machine import expanded

if TYPE_CHECKING:
    import requests
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
EXCLUDES = [".git", ".venv", "store", "results", "__pycache__", "*.tif", "*.safetensors", ".cluster", "*.egg-info"]
TIMEOUT_S = 30.0
AGENT_S = 90.0


@dataclasses.dataclass(frozen=True)
class ClusterJob:
    """One job as the cluster knows it."""

    id: str
    state: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    command: str
    message: str
    seconds: float
    exit_code: int | None = None  # of the command, where it is known


def new_id(name: str) -> str:
    """A new id for a job."""
    return f"{name}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class Cluster:
    """The Jobs API at `address` (http://HOST:PORT of the dashboard).

    Args:
        address: of the dashboard; it listens on the head's loopback, so from elsewhere this is the near end of a
            tunnel.
        token_file: the cluster's token, mode 0600; None for a cluster without authentication.
        open_cluster: accept a cluster that asks for no token. Off by default: on a shared machine it may be anybody's.

    Raises:
        BadRequest: the address is not a URL.
        Missing: nothing answers there, or what answers is not Ray; no token file.
        Disagreement: the cluster refuses the token, asks for none, or runs another version of Ray.
    """

    def __init__(self, address: str, token_file: str | Path | None = None, *, open_cluster: bool = False):
        if not address.startswith(("http://", "https://")):
            raise BadRequest(
                "the address of a dashboard is a URL",
                value=address,
                allowed="http://HOST:PORT",
                hint=f"http://{address}" if address.rpartition(":")[2].isdigit() else "http://127.0.0.1:8265",
            )
        self.address = address.rstrip("/")
        self.headers: dict[str, str] = {}
        if token_file is not None:
            self.headers["Authorization"] = f"Bearer {check_token(token_file).read_text().strip()}"
        self._check(open_cluster)
        self._client: JobSubmissionClient | None = None

    def _check(self, open_cluster: bool) -> None:
        bare = self._get("/api/version", {})
        if bare.status_code == 200 and not open_cluster:
            raise Disagreement(
                f"the cluster at {self.address} asks for no token: anyone who reaches it can run programs there, and it was not started "
                "by our scripts, so it may be another user's",
                hint="the address our scripts print; or --open if it is yours and alone",
            )
        answer = self._get("/api/version", self.headers) if self.headers else bare
        if answer.status_code == 401:
            raise Missing(
                f"the cluster at {self.address} requires a token",
                hint="token_file in the spec (or --token-file FILE), copied from the head",
            )
        if answer.status_code == 403:
            raise Disagreement(
                f"the cluster at {self.address} refuses our token: it is another user's cluster, or was started anew",
                hint="check the address and the port, or copy the token file from the head again",
            )
        try:
            there = str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise Missing(
                f"what answers at {self.address} is not a Ray dashboard (status {answer.status_code})",
                hint="the dashboard's port, 8265 by default",
            ) from error
        here = _ray_version()
        if there != here:
            raise Disagreement(
                "the cluster runs another version of Ray",
                value=f"Ray {there} at {self.address}, Ray {here} here",
                hint=f"pip install ray=={there} here, or the image of this version there",
            )

    def _get(self, path: str, headers: dict[str, str]) -> requests.Response:
        import requests

        try:
            return requests.get(f"{self.address}{path}", headers=headers, timeout=TIMEOUT_S)
        except requests.exceptions.RequestException as error:
            raise Missing(
                f"no Ray dashboard answers at {self.address} ({type(error).__name__})",
                hint="is the head running? From another machine: ssh -N -L 8265:127.0.0.1:8265 HEAD, then http://127.0.0.1:8265",
            ) from error

    @property
    def client(self) -> JobSubmissionClient:
        """Ray's client for jobs, made at first use."""
        if self._client is None:
            import logging

            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it reports every closed socket
            self._client = JobSubmissionClient(self.address, headers=dict(self.headers))
        return self._client

    def submit(
        self, command: Sequence[str], *, job_id: str, working_dir: str | Path | None = None, env: dict[str, str] | None = None
    ) -> str:
        """Start `command` (words, quoted here once); returns the job's id. `working_dir` is packed and becomes the
        job's folder (at most 512 MB); without it the nodes' installed package is used.

        Raises:
            BadRequest: no such working folder, or it is too large; the id is in use for another command.
            Missing: the cluster was lost in mid-submit.
        """
        runtime_env: Json = {"env_vars": dict(env or {})}
        if working_dir is not None:
            folder = expanded(working_dir).resolve()
            if not folder.is_dir():
                raise BadRequest("no such working folder", value=folder)
            runtime_env |= {"working_dir": str(folder), "excludes": EXCLUDES}
        line = shlex.join(command)
        try:
            return self._submit(line, job_id, runtime_env)
        except RuntimeError as error:
            kind = jobs_error(error)
            if kind is JobsError.ID_IN_USE:
                known = self.job(job_id)
                if known.command == line:
                    return job_id  # an earlier submit went through after all
                raise BadRequest(f"the id {job_id} is in use for another command", value=known.command) from error
            if kind is JobsError.FOLDER_TOO_LARGE:
                raise BadRequest(
                    f"the working folder is too large to send: {error}",
                    hint="install the package on the nodes, and submit without --working-dir",
                ) from error
            raise self._lost(job_id, error) from error
        except (ConnectionError, OSError) as error:
            raise self._lost(job_id, error) from error

    def _submit(self, line: str, job_id: str, runtime_env: Json) -> str:
        """The dashboard answers before the head's agent, which starts jobs, is up: until then it is asked again."""
        deadline = time.monotonic() + AGENT_S
        while True:
            try:
                return str(self.client.submit_job(entrypoint=line, submission_id=job_id, runtime_env=runtime_env))
            except RuntimeError as error:
                if jobs_error(error) is not JobsError.NO_AGENT_YET:
                    raise
                if time.monotonic() > deadline:
                    raise Missing(
                        f"the cluster at {self.address} could not start jobs for {AGENT_S:.0f} s; {job_id} was not started",
                        value=_first_line(error),
                        hint="dashboard_agent.log among the head's logs says why",
                    ) from error
            time.sleep(0.5)

    def _lost(self, job_id: str, error: Exception) -> Missing:
        named = f"--job {shlex.quote(job_id)}"
        return Missing(
            f"the cluster at {self.address} was lost while the job {job_id} was being submitted: it may or may not have started",
            value=_first_line(error),
            hint=f"`status {named}` once the cluster answers; submitting again with {named} cannot run it twice",
        )

    def job(self, job_id: str) -> ClusterJob:
        """Raises:
        Missing: no job of this id, or the cluster does not answer.
        """
        try:
            details = self.client.get_job_info(job_id)
        except RuntimeError as error:
            if jobs_error(error) is JobsError.NO_SUCH_JOB:
                known = ", ".join(sorted(job.id for job in self.jobs())) or "none"
                raise Missing(f"the cluster at {self.address} has no job {job_id}", allowed=f"jobs there: {known}") from error
            raise Missing(f"the cluster at {self.address} does not answer: {_first_line(error)}") from error
        except (ConnectionError, OSError) as error:
            raise Missing(
                f"the cluster at {self.address} does not answer: {_first_line(error)}", hint="is the head still running?"
            ) from error
        return _job(details)

    def jobs(self) -> list[ClusterJob]:
        """All jobs of the cluster."""
        return [_job(details) for details in self.client.list_jobs() if details.submission_id]

    def logs(self, job_id: str, follow: bool = False) -> Iterator[str]:
        """The job's output, in pieces; with `follow` until it ends."""
        self.job(job_id)
        if not follow:
            yield self.client.get_job_logs(job_id)
            return
        # The client tails by a coroutine; this runs it a piece at a time, so that callers need no event loop.
        loop = asyncio.new_event_loop()
        pieces = self.client.tail_job_logs(job_id)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(pieces))
                except StopAsyncIteration:
                    return
                except (RuntimeError, OSError) as error:
                    raise Missing(
                        f"the cluster at {self.address} was lost while following the log: {_first_line(error)}",
                        hint=f"`status --job {shlex.quote(job_id)}`",
                    ) from error
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def wait(self, job_id: str, seconds: float = float("inf")) -> ClusterJob:
        """Until the job has ended, or `seconds` are over."""
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id)).state not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        return job

    def stop(self, job_id: str) -> ClusterJob:
        """Asks the job to end (SIGTERM, then SIGKILL); returns it as it then is."""
        if self.job(job_id).state not in ENDED:
            self.client.stop_job(job_id)
        return self.wait(job_id, 30)


def _job(details: JobDetails) -> ClusterJob:
    state = getattr(details.status, "value", str(details.status))
    begin, end = (details.start_time or 0) / 1000, (details.end_time or 0) / 1000
    seconds = max(0.0, (end or time.time()) - begin) if begin else 0.0
    return ClusterJob(
        details.submission_id,
        state,
        details.entrypoint,
        _first_line(details.message or "").partition(", last available logs")[0],
        round(seconds, 1),
        details.driver_exit_code,
    )


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")
