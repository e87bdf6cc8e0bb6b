"""Roads to a cluster through other programs: kubectl, Slurm's commands, Ray's launcher; missing, failing, or stood in for."""

from __future__ import annotations

import json
import shlex
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_runs import FOLDER, RunningHead, toml

from cluster.__main__ import main
from cluster.launch.spec_file import load
from cluster.launch.vm import remote_token

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


@pytest.mark.parametrize(("example", "program"), [("slurm", "sbatch"), ("kuberay", "kubectl"), ("aws", "ray")])
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


RAY = """
echo "$1 $2" >>"$HOME/calls"
if [ "$1" = exec ]; then
    echo "Loaded cached provider configuration"
    cd "$HOME" && bash -c "$3"
fi
"""


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_rays_launcher_brings_the_command_to_the_head_and_the_answer_back(
    head: RunningHead, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray up` and `ray down` are stood in for; what `ray exec` would run on the head really runs, against a real dashboard."""
    stand_in(commands, "ray", RAY)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    data: dict[str, Any] = {
        "name": "two machines $(touch PWNED)",
        "kind": "onprem",
        "nodes": 2,
        "store": str(tmp_path / "store"),
        "python": sys.executable,
        "workdir": str(tmp_path),
        "ports": {"dashboard": int(head.address.rpartition(":")[2])},
        "onprem": {"head": "10.0.0.1", "workers": ["10.0.0.2"], "ssh_user": "me"},
    }
    path = tmp_path / "spec.toml"
    path.write_text(toml(data))
    spec = load(path)
    token = Path(remote_token(spec)).expanduser()
    token.parent.mkdir(mode=0o700)
    shutil.copy(head.token_file, token)
    assert main(["submit", str(path), "--wait", "--", "bash", "-c", "echo said; exit 5"]) == 1
    said = capsys.readouterr()
    assert "said" in said.out
    assert "exit code 5" in said.err
    assert main(["status", str(path), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["command"]) == ("FAILED", shlex.join(["bash", "-c", "echo said; exit 5"]))
    assert main(["down", str(path)]) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "up --yes"
    assert calls[-1] == "down --yes"
    written = tmp_path / ".idgbr" / "clusters" / f"{spec.slug}.yaml"
    assert yaml.safe_load(written.read_text())["file_mounts"] == {remote_token(spec): remote_token(spec)}
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("**/PWNED"))
