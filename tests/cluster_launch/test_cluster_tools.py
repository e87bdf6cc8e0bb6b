"""Clusters reached through other programs, kubectl and Slurm's commands: missing, failing, or a stand-in."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from launch_runs import FOLDER

from cluster.__main__ import main

EXAMPLES = FOLDER.parents[1] / "cluster" / "examples"


def stand_in(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first in PATH, for stand-ins; the home folder is the test's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IDGBR_STATE", raising=False)
    return folder


@pytest.mark.parametrize(("example", "program"), [("slurm", "sbatch"), ("kuberay", "kubectl")])
def test_a_program_that_is_not_here_is_named_with_what_to_do(
    example: str, program: str, commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(commands))
    spec = tmp_path / "spec.toml"
    spec.write_text((EXAMPLES / f"{example}.toml").read_text().replace("/home/me/idgbr", str(tmp_path)))
    assert main(["submit", str(spec), "--", "sweeps", "run", "schedules"]) == 3
    assert f"{program} is not on this machine. Try:" in capsys.readouterr().err


def test_what_sbatch_says_when_it_refuses_reaches_the_user(commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(commands, "sbatch", "echo 'sbatch: error: Invalid account or partition' >&2; exit 1")
    spec = tmp_path / "spec.toml"
    spec.write_text((EXAMPLES / "slurm.toml").read_text().replace("/home/me/idgbr", str(tmp_path)))
    assert main(["submit", str(spec), "--", "sweeps", "run", "schedules"]) == 1
    assert "Invalid account or partition" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.sbatch"))
    assert main(["status", str(spec)]) == 3, "nothing was submitted, so there is no last job"


KUBECTL = """
echo "$*" >>"$HOME/calls"
case "$3" in
    apply) cat >"$HOME/applied.yaml" ;;
    get) if [ "$5" = absent ]; then echo 'Error from server (NotFound)' >&2; exit 1; fi
         echo '{"spec": {"entrypoint": "e"}, "status": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed"}}' ;;
    logs) echo 'from the pod' ;;
    delete) echo 'rayjob deleted' ;;
esac
"""


def test_kubectl_gets_a_rayjob_of_its_own_name_for_every_submit(commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jsonschema import Draft7Validator

    stand_in(commands, "kubectl", KUBECTL)
    spec = str(EXAMPLES / "kuberay.toml")
    names = []
    for _ in range(2):
        assert main(["submit", spec, "--", "sweeps", "run", "it's $(x)"]) == 0
        names.append(capsys.readouterr().out.strip())
        schema = Draft7Validator(json.loads((FOLDER / "kuberay_fields.json").read_text()))
        policy, job = yaml.safe_load_all((tmp_path / "applied.yaml").read_text())
        schema.validate(policy)
        schema.validate(job)
        assert job["metadata"]["name"] == names[-1]
        assert shlex.split(job["spec"]["entrypoint"]) == ["python", "-m", "sweeps", "run", "it's $(x)"]
    assert names[0] != names[1]
    assert main(["status", spec]) == 0
    assert f"{names[1]}  FAILED" in capsys.readouterr().out
    assert main(["logs", spec]) == 0
    assert capsys.readouterr().out == "from the pod\n"
    assert main(["status", spec, "--job", "absent"]) == 1
    assert "NotFound" in capsys.readouterr().err
    assert main(["down", spec]) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(call.startswith("--namespace research ") for call in calls)
    assert calls[-1].endswith("delete rayjob,raycluster --selector idgbr/cluster=schedules")
