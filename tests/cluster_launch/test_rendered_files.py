"""Rendered files: golden copies, and every check that can be made without a cluster."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.launch.kube import ray_job
from cluster.launch.render import render
from cluster.launch.spec import ClusterSpec
from cluster.launch.spec_file import load, parse
from idgbr.errors import BadRequest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "cluster" / "examples").glob("*.toml"))
GOLDEN = Path(__file__).parent / "golden"
NASTY = 'my job\'s "best" $(touch PWNED) `touch PWNED` ${HOME} %j ; #x \\ &'


def nasty(path: Path) -> ClusterSpec:
    """The example with every free text replaced by one that would harm a shell, a YAML reader or sbatch."""
    spec = load(path)
    return dataclasses.replace(
        spec, name=NASTY, store=f"/s/{NASTY}", workdir=f"/w/{NASTY}", env={"MARK": NASTY}, python=f"/p/{NASTY}", setup=()
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_rendered_files_are_the_golden_ones(path: Path) -> None:
    """To accept a change: IDGBR_ACCEPT_GOLDEN=1 python -m pytest tests/cluster_launch/test_rendered_files.py, then read the difference."""
    files = render(load(path))
    assert files == render(load(path)), "rendering is a pure function"
    for name, text in files.items():
        golden = GOLDEN / path.stem / name
        if os.environ.get("IDGBR_ACCEPT_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text)
        assert text == golden.read_text(), f"{golden} differs"
    assert {p.name for p in (GOLDEN / path.stem).iterdir()} == set(files)


def shell_texts(spec: ClusterSpec) -> dict[str, str]:
    """Shell scripts among the files of a spec, and those that they write in here-documents."""
    texts = {name: text for name, text in render(spec, ["echo", NASTY]).items() if name.endswith((".sh", ".sbatch"))}
    for name, text in list(texts.items()):
        for end, inner in re.findall(r"<<'(\w+)'\n(.*?)\n\1\n", text, re.DOTALL) or []:
            texts[f"{name}:{end}"] = "#!/bin/bash\n" + inner + "\n"
    return texts


@pytest.mark.parametrize("harmful", [False, True], ids=["example", "harmful"])
@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem in ("slurm", "two-machines")], ids=lambda p: p.stem)
def test_shell_scripts_parse_and_pass_shellcheck(path: Path, harmful: bool, tmp_path: Path) -> None:
    spec = nasty(path) if harmful else load(path)
    variants = [spec]
    if spec.kind == "slurm":
        variants.append(dataclasses.replace(spec, container="/images/idgbr 1.sif"))
    for variant in variants:
        for name, text in shell_texts(variant).items():
            script = tmp_path / name.replace(":", "-")
            script.write_text(text)
            subprocess.run(["bash", "-n", str(script)], check=True)
            # SC2016: that nothing expands in single quotes is what we want; in parts, variables cross between files
            ignored = "SC2016,SC1091" + (",SC2034,SC2154" if ":" in name else "")
            checked = subprocess.run(
                [str(Path(sys.executable).parent / "shellcheck"), "-e", ignored, str(script)], capture_output=True, text=True
            )
            assert checked.returncode == 0, f"{name}:\n{checked.stdout}"


def test_a_skypilot_task_holds_known_fields_and_starts_the_scripts_by_rank(tmp_path: Path) -> None:
    """Fields of SkyPilot 0.14's task schema. The run line starts head.sh on rank 0 and worker.sh with the head's address elsewhere."""
    spec = load(ROOT / "cluster" / "examples" / "two-machines.toml")
    task = yaml.safe_load(render(spec)["skypilot.yaml"])
    assert set(task) == {"name", "num_nodes", "resources", "file_mounts", "run"}
    assert set(task["resources"]) <= {"cpus", "accelerators", "use_spot"}
    assert task["num_nodes"] == spec.nodes
    launch = tmp_path / "idgbr-launch"
    launch.mkdir()
    for name in ("head.sh", "worker.sh"):
        (launch / name).write_text(f'echo {name} "$@"\n')
    said = []
    for rank in ("0", "1"):
        variables = {
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "SKYPILOT_NODE_RANK": rank,
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        }
        said.append(subprocess.run(["bash", "-c", task["run"]], env=variables, capture_output=True, text=True, check=True).stdout)
    assert said == ["head.sh\n", "worker.sh 10.0.0.1:6379\n"]


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("harmful", [False, True], ids=["example", "harmful"])
@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_kuberay_manifests_hold_only_known_fields_of_the_right_types(name: str, harmful: bool) -> None:
    from jsonschema import Draft7Validator

    path = ROOT / "cluster" / "examples" / "kuberay.toml"
    spec = nasty(path) if harmful else load(path)
    spec = dataclasses.replace(
        spec,
        kuberay=dataclasses.replace(spec.kuberay, max_nodes=9, service_account="me", image_pull_secret="pull", node_selector={"gpu": "a"}),
    )
    schema = Draft7Validator(json.loads((Path(__file__).parent / "kuberay_fields.json").read_text()))
    found = documents(render(spec, ["echo", NASTY])[name])
    for document in found:
        schema.validate(document)
    assert [d["kind"] for d in found] == ["NetworkPolicy", "RayJob" if name == "rayjob.yaml" else "RayCluster"]
    broken = copy.deepcopy(found[1])
    cluster = broken["spec"].get("rayClusterSpec", broken["spec"])
    cluster["workerGroupSpecs"][0]["replica"] = cluster["workerGroupSpecs"][0].pop("replicas")
    assert not schema.is_valid(broken), "the schema is strict: a misspelt key is found"


OVERLAY = """
max_nodes = 9
labels = { "kueue.x-k8s.io/queue-name" = "research" }
annotations = { "example.org/owner" = "me: it's" }
volumes = { potsdam = "/data/potsdam" }
secret_files = { weights-key = "/etc/keys" }
secret_env = ["s3-keys"]
redis = "redis.research:6379"
redis_password = "redis/password"

[kuberay.pod]
priorityClassName = "low"
tolerations = [{ key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" }]
affinity = { nodeAffinity = {} }

[[kuberay.groups]]
name = "cpu-only"
nodes = 2
cpus = 16
memory_gb = 32
node_selector = { pool = "cpu" }
pod = { priorityClassName = "lowest" }
"""


def overlaid(tmp_path: Path, more: str = OVERLAY) -> ClusterSpec:
    path = tmp_path / "kuberay.toml"
    path.write_text((ROOT / "cluster" / "examples" / "kuberay.toml").read_text() + more)
    return load(path)


def test_kuberay_pods_take_what_a_cluster_asks_for_and_stay_restricted(tmp_path: Path) -> None:
    from jsonschema import Draft7Validator

    schema = Draft7Validator(json.loads((Path(__file__).parent / "kuberay_fields.json").read_text()))
    for name in ("rayjob.yaml", "raycluster.yaml"):
        policy, found = documents(render(overlaid(tmp_path), ["echo", NASTY])[name])
        schema.validate(found)
        assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        cluster = found["spec"].get("rayClusterSpec", found["spec"])
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        assert (groups["workers"]["maxReplicas"], groups["cpu-only"]["maxReplicas"]) == (9, 2)
        pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in groups.values())]
        for pod in pods:
            assert pod["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research", **policy["spec"]["podSelector"]["matchLabels"]}
            assert pod["metadata"]["annotations"] == {"example.org/owner": "me: it's"}
            assert pod["spec"]["restartPolicy"] == "Never"  # autoscaler 2
            (container,) = pod["spec"]["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "s3-keys"}}]
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            assert volumes[mounts["/data/potsdam"]]["persistentVolumeClaim"] == {"claimName": "potsdam", "readOnly": True}
            assert volumes[mounts["/etc/keys"]]["secret"]["secretName"] == "weights-key"
        if name == "rayjob.yaml":
            pods.append(found["spec"]["submitterPodTemplate"])
        for pod in pods:  # the restricted Pod Security Standard
            assert pod["spec"]["securityContext"]["runAsNonRoot"]
            assert pod["spec"]["securityContext"]["fsGroup"] == 10001  # else a claim that belongs to root cannot be written
            assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["spec"]["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        spec = groups["workers"]["template"]["spec"]
        assert (spec["priorityClassName"], spec["tolerations"][0]["key"]) == ("low", "nvidia.com/gpu")
        assert groups["cpu-only"]["template"]["spec"]["priorityClassName"] == "lowest"
        assert "tolerations" not in groups["cpu-only"]["template"]["spec"]
        assert groups["cpu-only"]["template"]["spec"]["nodeSelector"] == {"pool": "cpu"}
        assert "nvidia.com/gpu" not in groups["cpu-only"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert cluster["autoscalerOptions"]["version"] == "v2"
        password = cluster["gcsFaultToleranceOptions"]["redisPassword"]
        assert password == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert "user" not in render(overlaid(tmp_path, "user = 0"), ["echo"])["rayjob.yaml"].lower()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[kuberay.pod]\ncontainers = []", "kuberay.pod may not set containers"),
        ('labels = { "idgbr/cluster" = "mine" }', "label idgbr/cluster is ours"),
        ('volumes = { potsdam = "data" }', "potsdam is mounted at a relative path"),
        ('secret_env = ["Not A Name"]', "no Kubernetes name"),
        ('[[kuberay.groups]]\nname = "workers"', "no name of its own"),
        ('[[kuberay.groups]]\nname = "a"\nnodes = 3\nmax_nodes = 2', "impossible size"),
        ('groups = ["a"]', "is a section"),
        ('redis = "redis"', "kuberay.redis is no address"),
        ('redis_password = "hunter2"', "names a key of a Secret"),
    ],
)
def test_an_impossible_overlay_is_refused(more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=message) as error:
        overlaid(tmp_path, more)
    assert "hunter2" not in str(error.value)


def test_kuberay_head_trains_nothing_and_only_the_operator_reaches_the_dashboard_from_outside() -> None:
    policy, job = documents(render(load(ROOT / "cluster" / "examples" / "kuberay.toml"))["rayjob.yaml"])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    label = policy["spec"]["podSelector"]["matchLabels"]
    pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"], job["spec"]["submitterPodTemplate"]]
    assert all(pod["metadata"]["labels"] == label for pod in pods)
    own, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": label}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_the_entrypoint_of_a_rayjob_survives_the_two_shells_on_its_way(tmp_path: Path) -> None:
    """KubeRay puts it into a script for bash, `ray job submit` joins the words it gets, and the job runs the line in a shell."""
    line = ray_job(
        load(ROOT / "cluster" / "examples" / "kuberay.toml"),
        [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", NASTY, "$HOME"],
    )
    show = shlex.join([sys.executable, "-c", "import shlex, sys; print(shlex.join(sys.argv[1:]))"])
    joined = subprocess.run(
        ["bash", "-c", f"{show} {line['spec']['entrypoint']} ;"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    words = subprocess.run(joined, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert json.loads(words) == [NASTY, "$HOME"]
    assert not list(tmp_path.iterdir())


def lint_dockerfile(text: str) -> list[str]:
    """Findings after hadolint's rules that matter here (their numbers in brackets)."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    known = {"FROM", "SHELL", "RUN", "ARG", "ENV", "COPY", "USER", "WORKDIR", "CMD"}
    found = [f"unknown instruction {word}" for word, *_ in lines if word not in known]
    if lines[0][0] != "FROM":
        found.append("does not begin with FROM")
    for word, rest in lines:
        if word == "FROM" and (":" not in rest or rest.endswith(":latest")):
            found.append("image without a version (DL3006, DL3007)")
        if word == "RUN" and "apt-get install" in rest:
            for needed, rule in (
                ("--yes", "DL3014"),
                ("--no-install-recommends", "DL3015"),
                ("rm -rf /var/lib/apt/lists", "DL3009"),
                ("apt-get update", "DL3009"),
            ):
                if needed not in rest:
                    found.append(f"apt-get without {needed} ({rule})")
        if word == "RUN" and "pip install" in rest and ("--no-cache-dir" not in rest or "--constraint" not in rest):
            found.append("pip without --no-cache-dir or versions (DL3042, DL3013)")
        if word in ("CMD", "SHELL"):
            json.loads(rest)  # exec form (DL3025)
        if word == "WORKDIR" and not rest.startswith("/"):
            found.append("relative WORKDIR (DL3000)")
        if re.search(r"(?i)(token|secret|password)=", rest):
            found.append("a secret in the image")
    users = [rest for word, rest in lines if word == "USER"]
    if not users or users[-1] in ("root", "0"):
        found.append("runs as root (DL3002)")
    return found


def test_the_dockerfile_is_clean_and_copies_what_the_repository_has() -> None:
    text = render(load(ROOT / "cluster" / "examples" / "kuberay.toml"))["Dockerfile"]
    assert lint_dockerfile(text) == []
    assert lint_dockerfile(text.replace("USER idgbr\n", "").replace("slim-bookworm", "latest").replace(":3.11-latest", ":latest")) != []
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
    for command in re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.MULTILINE):
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_dashboards_listen_on_loopback_tokens_are_asked_for_and_none_is_written(path: Path) -> None:
    for name, text in render(load(path)).items():
        if name in ("Dockerfile", "stop.sh", "skypilot.yaml"):
            continue
        if name.startswith("ray"):
            assert "mode: token" in text
        else:
            assert "RAY_AUTH_MODE=token" in text
        if "--dashboard-host" in text:
            assert "--dashboard-host=127.0.0.1" in text
        assert not re.search(r"RAY_AUTH_TOKEN=", text), "a token would be readable in the file"
        assert "address=auto" not in text


def test_a_slurm_directive_is_read_back_as_it_was_written() -> None:
    from fake_slurm import directives

    spec = parse(
        {
            "name": NASTY,
            "kind": "slurm",
            "store": "/s",
            "workdir": '/w/50% "x"',
            "wall_time": "1:00:00",
            "slurm": {"account": "a b", "extra": ["--mail-user=me@x.org", "--contiguous"]},
        }
    )
    found = directives(render(spec)["job.sbatch"])
    assert found["job-name"] == NASTY
    assert found["account"] == "a b"
    assert found["output"] == '/w/50%% "x"/.cluster/%j.log'
    assert found["mail-user"] == "me@x.org"
    assert "contiguous" in found
