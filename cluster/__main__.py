"""Command line of clusters.

Examples:
  python -m cluster render cluster/examples/slurm.toml -- sweeps run schedules     print the files; nothing is started
  python -m cluster submit slurm.toml -- sweeps run schedules                      run one command there; again: resumes
  python -m cluster status slurm.toml                                              the last job, or --job ID
  python -m cluster logs   slurm.toml --follow
  python -m cluster down   slurm.toml
  python -m cluster doctor slurm.toml                                              can these nodes work together?

Instead of a spec: the address of a running cluster's dashboard, http://HOST:PORT, with --token-file.
Exit codes: 0 done, 1 the command failed there, 2 wrong request, 3 something is missing, 4 versions or owners disagree, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from idgbr.errors import BadRequest, Disagreement, Missing, SomeFailed, nearest
from idgbr.files import whole
from idgbr.machine import expanded
from idgbr.verbs import exit_code_of

VERBS = ("render", "submit", "status", "logs", "down", "doctor", "train", "refine")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadRequest(message, hint=f"{self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, about: str, target: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=about, description=about)
        if target:
            added.add_argument("target", metavar="SPEC|ADDRESS", help="TOML file, or http://HOST:PORT of a running cluster's dashboard")
            added.add_argument("--token-file", default="", help="of a cluster given by address; default: $RAY_AUTH_TOKEN_PATH")
            added.add_argument("--open", action="store_true", help="accept a cluster that asks for no token")
        return added

    render = verb("render", "print the files of a spec, or write them with -o")
    render.add_argument("-o", "--out", default="", metavar="DIR")
    render.add_argument("--file", default="", help="only this one")
    submit = verb("submit", "run one command on the cluster: submit SPEC -- sweeps run STUDY")
    submit.add_argument("--job", default="", metavar="ID", help="id of the job; the same id never runs twice")
    submit.add_argument("--working-dir", default="", metavar="DIR", help="send this folder (Jobs API); default: the package the nodes have")
    submit.add_argument("--wait", action="store_true", help="print its output and end as it ends")
    for name, about in (
        ("status", "state of a job"),
        ("logs", "output of a job"),
        ("down", "stop the job, and machines that were started for it"),
    ):
        added = verb(name, about)
        added.add_argument("--job", default="", metavar="ID", help="default: the last one submitted from here")
        if name == "status":
            added.add_argument("--json", action="store_true")
        if name == "logs":
            added.add_argument("-f", "--follow", action="store_true")
    doctor = verb("doctor", "check that the nodes can work together; ADDRESS may also be IP:PORT of Ray, or `here` inside a job")
    doctor.add_argument("--store", default="", help="default: the spec's, or $IDGBR_STORE")
    doctor.add_argument("--nodes", type=int, default=0, help="so many are expected")
    doctor.add_argument("--weights", action="append", default=[], metavar="FILE", help="each node must have it; may be repeated")
    doctor.add_argument("--free-gb", type=float, default=10.0)
    doctor.add_argument("--shared-memory-gb", type=float, default=1.0)
    doctor.add_argument("--clock-skew-s", type=float, default=2.0)
    doctor.add_argument("--folder", action="append", default=[], help="another folder that needs free space; may be repeated")
    doctor.add_argument("--seconds", type=float, default=2.0, help="of all-reduce for each pair of nodes")
    doctor.add_argument("--json", action="store_true")
    for name, about in (("train", "train one stage over several workers"), ("refine", "refine scenes over several nodes")):
        verbs.add_parser(name, help=about, add_help=False)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    stopped = "interrupted; a job that was submitted goes on: `python -m cluster status`"
    return exit_code_of(lambda: _main(words), "python -m cluster", stopped)


def _main(words: list[str]) -> int:
    if not words:
        raise BadRequest("no verb", allowed=", ".join(VERBS), hint="python -m cluster --help")
    if not words[0].startswith("-") and words[0] not in VERBS:
        raise BadRequest(
            f"unknown verb {words[0]!r}", allowed=", ".join(VERBS), hint=nearest(words[0], VERBS) or "python -m cluster --help"
        )
    if words[0] == "train":
        from cluster.train import main as train_main

        return int(train_main(words[1:]) or 0)
    if words[0] == "refine":
        from cluster.scenes import main as refine_main

        return int(refine_main(words[1:]) or 0)
    command: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1 :]
    given = parser().parse_args(words)
    return int(globals()[f"_{given.verb}"](given, command) or 0)


# ---- verbs ---------------------------------------------------------------------------------------------------------------


def _is_address(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _open(given: argparse.Namespace) -> tuple[Any, str]:
    """(launcher, slug the jobs are remembered under)."""
    from cluster.launch.launchers import Running, launcher
    from cluster.launch.spec import slug
    from cluster.launch.spec_file import load

    if _is_address(given.target):
        token = given.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or None
        return Running(given.target, token, open_cluster=given.open), slug(given.target.partition("://")[2])
    if not given.target.endswith(".toml") and given.target.rpartition(":")[2].isdigit() and not Path(given.target).exists():
        raise BadRequest(
            "jobs are sent to the dashboard's address",
            value=given.target,
            allowed="a spec, or http://HOST:PORT (8265 by default, not Ray's own port)",
        )
    spec = load(given.target)
    return launcher(spec), spec.slug


def _render(given: argparse.Namespace, command: list[str]) -> None:
    from cluster.launch.render import PLACEHOLDER, render
    from cluster.launch.spec_file import load

    files = render(load(given.target), command or PLACEHOLDER)
    if given.file:
        if given.file not in files:
            raise BadRequest(f"this spec has no file {given.file!r}", allowed=", ".join(files), hint=nearest(given.file, files) or None)
        files = {given.file: files[given.file]}
    if not given.out:
        for name, text in files.items():
            print(text if len(files) == 1 else f"# ==> {name} <==\n{text}", end="" if len(files) == 1 else "\n")
        return
    folder = Path(given.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with whole(folder / name) as temporary:
                temporary.write_text(text)
            print(folder / name)
    except OSError as error:
        raise Missing(f"cannot write the files to {folder}: {error.strerror}", hint="-o with a folder you may write to") from error


def _submit(given: argparse.Namespace, command: list[str]) -> int:
    from cluster.launch.launchers import job_name, remember
    from cluster.launch.spec import with_program

    with_program(command, "python")  # refuses an empty command before anything is asked of the cluster
    launcher, slug = _open(given)
    job_id = launcher.submit(command, given.job or job_name(slug), given.working_dir or None)
    follow = shlex.join(["python", "-m", "cluster", "logs", given.target, "--job", job_id, "--follow"])
    print(f"submitted {job_id}; follow it: {follow}", file=sys.stderr)
    print(job_id, flush=True)
    try:
        remember(slug, job_id, command)
    except Missing as error:  # the job runs all the same
        print(f"{error} From now on say --job {shlex.quote(job_id)}.", file=sys.stderr)
    if given.wait:
        launcher.logs(job_id, True, _write)
        return _ended(launcher, job_id)
    return 0


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _ended(launcher: Any, job_id: str) -> int:
    import time

    from cluster.launch.jobs import ENDED

    deadline = time.monotonic() + 60
    while (job := launcher.job(job_id)).state not in ENDED and time.monotonic() < deadline:
        time.sleep(1)
    if job.state != "SUCCEEDED":
        raise SomeFailed(
            f"job {job_id} {job.state.lower()}: {job.message or 'no message'}", hint="the same command again resumes what was done"
        )
    return 0


def _which(given: argparse.Namespace, slug: str) -> str:
    from cluster.launch.launchers import last_job

    return given.job or last_job(slug)


def _status(given: argparse.Namespace, command: list[str]) -> None:
    launcher, slug = _open(given)
    job = launcher.job(_which(given, slug))
    if given.json:
        print(json.dumps(dataclasses.asdict(job)))
    else:
        print(f"{job.id}  {job.state}  {job.seconds:.0f} s  {job.command}" + (f"\n{job.message}" if job.message else ""))


def _logs(given: argparse.Namespace, command: list[str]) -> None:
    launcher, slug = _open(given)
    launcher.logs(_which(given, slug), given.follow, _write)


def _down(given: argparse.Namespace, command: list[str]) -> None:
    launcher, slug = _open(given)
    job_id: str | None = given.job or None
    if job_id is None and type(launcher).__name__ == "SlurmQueue":
        job_id = _which(given, slug)
    print(launcher.down(job_id), file=sys.stderr)


def _doctor(given: argparse.Namespace, command: list[str]) -> int:
    from cluster.doctor import doctor

    limits = doctor.Limits(
        free_gb=given.free_gb, shared_memory_gb=given.shared_memory_gb, clock_skew_s=given.clock_skew_s, seconds=given.seconds
    )
    if given.target == "here" or (not _is_address(given.target) and ":" in given.target and not Path(given.target).exists()):
        address = os.environ.get("RAY_ADDRESS", "") if given.target == "here" else given.target
        if not address:
            raise Missing("`here` is for commands inside a job: RAY_ADDRESS is not set", hint="doctor SPEC, or doctor IP:PORT")
        if given.token_file:
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(expanded(given.token_file))
            os.environ["RAY_AUTH_MODE"] = "token"
        checks = doctor.examine(
            address,
            given.store or os.environ.get("IDGBR_STORE", ""),
            limits=limits,
            nodes=given.nodes,
            weights=given.weights,
            folders=given.folder,
        )
        print(json.dumps([dataclasses.asdict(c) for c in checks], indent=1) if given.json else doctor.as_text(checks))
        return doctor.verdict(checks)
    words = ["cluster", "doctor", "here", "--seconds", str(given.seconds), *(["--json"] if given.json else [])]
    if not _is_address(given.target):
        from cluster.launch.spec_file import load

        spec = load(given.target)
        doctor.before(spec)
        words += [
            "--nodes",
            str(spec.nodes),
            "--free-gb",
            str(spec.doctor.free_gb),
            "--shared-memory-gb",
            str(spec.doctor.shared_memory_gb),
            "--clock-skew-s",
            str(spec.doctor.clock_skew_s),
            "--store",
            spec.store,
        ]
        for path in spec.doctor.weights:
            words += ["--weights", path]
    else:
        words += [
            "--free-gb",
            str(given.free_gb),
            "--shared-memory-gb",
            str(given.shared_memory_gb),
            "--clock-skew-s",
            str(given.clock_skew_s),
        ]
        for option, values in (("--weights", given.weights), ("--folder", given.folder)):
            for value in values:
                words += [option, value]
        words += ["--store", given.store] if given.store else []
        words += ["--nodes", str(given.nodes)] if given.nodes else []
    given.job, given.working_dir, given.wait = "", "", True
    try:
        return _submit(given, words)
    except SomeFailed as error:  # what failed is in the report above; its exit code came back within the job's message
        code = re.search(r"exit code (\d+)", str(error))
        kind = {"3": Missing, "4": Disagreement}.get(code[1] if code else "", SomeFailed)
        raise kind("the doctor found something, or could not run there (see above)", value=str(error)) from error


if __name__ == "__main__":
    raise SystemExit(main())
