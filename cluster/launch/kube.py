"""KubeRay manifests of a `ClusterSpec`: a RayCluster, a RayJob, and the network policy that keeps others out.

Fields of `ray.io/v1` as of KubeRay 1.6 (`authOptions` came with 1.5.1, `autoscalerOptions.version` with 1.4).
Values go through a YAML writer, never into a text template.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping, Sequence

from cluster.launch.slurm import SETTINGS
from cluster.launch.spec import ClusterSpec, WorkerGroup, with_program
from idgbr.interfaces import Json

KUBERAY_VERSION = "1.6"
RAY_VERSION = "2.60.0"
LABEL = "idgbr/cluster"


def dump(documents: Sequence[Json], heading: str) -> str:
    """YAML documents below a comment."""
    import yaml

    lines = "".join(f"# {line}\n" for line in heading.splitlines())
    return lines + yaml.safe_dump_all(list(documents), sort_keys=False, width=1000, allow_unicode=True, explicit_start=True)


def ray_cluster_spec(spec: ClusterSpec) -> Json:
    """`spec` of a RayCluster, and `rayClusterSpec` of a RayJob: a head that only directs, `nodes` workers that
    compute."""
    k = spec.kuberay
    groups = (
        WorkerGroup("workers", spec.nodes, k.max_nodes, spec.cpus_per_node, spec.gpus_per_node, spec.memory_gb_per_node, k.node_selector),
        *k.groups,
    )
    cluster: Json = {"rayVersion": RAY_VERSION, "authOptions": {"mode": "token"}}
    may_grow = any(group.max_nodes > group.nodes for group in groups)
    if may_grow:
        options = {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": 600}
        if k.user:
            options["securityContext"] = _container_security()
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": options}
    if k.redis:
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": k.redis}
        if k.redis_password:
            name, _, key = k.redis_password.partition("/")
            cluster["gcsFaultToleranceOptions"]["redisPassword"] = {"valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
    # The operator and the service reach the dashboard on the pod's address, so it listens on all of the pod's; the
    # network policy and the token keep others out. num-cpus 0: no training lands on the head.
    cluster["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": _pod(
            spec,
            "ray-head",
            cpus=k.head_cpus,
            memory_gb=k.head_memory_gb,
            gpus=0,
            ports=[("gcs-server", spec.ports.gcs), ("dashboard", spec.ports.dashboard), ("client", spec.ports.client)],
        ),
    }
    cluster["headGroupSpec"]["rayStartParams"] |= {
        "port": str(spec.ports.gcs),
        "dashboard-port": str(spec.ports.dashboard),
        "ray-client-server-port": str(spec.ports.client),
    }
    if may_grow:  # autoscaler 2 knows a node by its pod: none may come back under the same name
        cluster["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Never"
    cluster["workerGroupSpecs"] = [_worker_group(spec, group, may_grow) for group in groups]
    return cluster


def _worker_group(spec: ClusterSpec, group: WorkerGroup, may_grow: bool) -> Json:
    template = _pod(spec, "ray-worker", cpus=group.cpus, memory_gb=group.memory_gb, gpus=group.gpus, ports=[], overlay=group.pod)
    if group.node_selector:
        template["spec"]["nodeSelector"] = dict(group.node_selector)
    if may_grow:
        template["spec"]["restartPolicy"] = "Never"
    return {
        "groupName": group.name,
        "replicas": group.nodes,
        "minReplicas": group.nodes,
        "maxReplicas": max(group.nodes, group.max_nodes),
        "rayStartParams": {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)},
        "template": template,
    }


def _container_security() -> Json:
    """What the restricted Pod Security Standard asks of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pod_security(user: int) -> Json:
    """What it asks of a pod; new files of a volume belong to the group of the user, so that it may write them."""
    return {
        "runAsNonRoot": True, "runAsUser": user, "fsGroup": user, "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def _pod(
    spec: ClusterSpec,
    name: str,
    *,
    cpus: int,
    memory_gb: int,
    gpus: int,
    ports: list[tuple[str, int]],
    overlay: Mapping[str, object] | None = None,
) -> Json:
    k = spec.kuberay
    amounts: dict[str, str] = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"}
    if gpus:
        amounts[k.gpu_resource] = str(gpus)
    variables = {**SETTINGS, "IDGBR_STORE": spec.store, **spec.env}
    if spec.network_interface:
        variables |= {"GLOO_SOCKET_IFNAME": spec.network_interface, "NCCL_SOCKET_IFNAME": spec.network_interface}
    container: Json = {
        "name": name,
        "image": k.image,
        "env": [{"name": n, "value": v} for n, v in variables.items()],
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
        "securityContext": _container_security() if k.user else {"allowPrivilegeEscalation": False},
    }
    if ports:
        container["ports"] = [{"name": n, "containerPort": p} for n, p in ports]
    if spec.workdir:
        container["workingDir"] = spec.workdir
    # /dev/shm of a container is 64 MB by default, too little for Ray's object store
    volumes: list[Json] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{k.shared_memory_gb}Gi"}}]
    if k.claim:
        container["volumeMounts"].append({"name": "store", "mountPath": spec.store if spec.store_is_path else "/store"})
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": k.claim}})
    for n, (claim, path) in enumerate(k.volumes.items()):
        container["volumeMounts"].append({"name": f"data-{n}", "mountPath": path, "readOnly": True})
        volumes.append({"name": f"data-{n}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
    for n, (secret, path) in enumerate(k.secret_files.items()):
        container["volumeMounts"].append({"name": f"secret-{n}", "mountPath": path, "readOnly": True})
        volumes.append({"name": f"secret-{n}", "secret": {"secretName": secret, "defaultMode": 0o440}})
    if k.secret_env:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in k.secret_env]
    pod: Json = {"containers": [container], "volumes": volumes}
    if k.user:
        pod["securityContext"] = _pod_security(k.user)
    if k.service_account:
        pod["serviceAccountName"] = k.service_account
    if k.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": k.image_pull_secret}]
    pod |= copy.deepcopy(dict(overlay or k.pod))
    return {"metadata": _pod_metadata(spec), "spec": pod}


def _pod_metadata(spec: ClusterSpec) -> Json:
    k = spec.kuberay
    return {"labels": {**k.labels, LABEL: spec.slug}, **({"annotations": dict(k.annotations)} if k.annotations else {})}


def _metadata(spec: ClusterSpec) -> Json:
    # the name as it was written: labels cannot hold it, annotations can
    k = spec.kuberay
    return {
        "name": spec.slug,
        "namespace": k.namespace,
        "labels": {**k.labels, LABEL: spec.slug},
        "annotations": {**k.annotations, "idgbr/name": spec.name},
    }


def network_policy(spec: ClusterSpec) -> Json:
    """Pods of the cluster reach each other; besides them only the KubeRay operator reaches the dashboard."""
    operator: Json = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    names = {"matchLabels": {"kubernetes.io/metadata.name": spec.kuberay.operator_namespace}} if spec.kuberay.operator_namespace else {}
    operator = {"namespaceSelector": names, **operator}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(spec),
        "spec": {
            "podSelector": {"matchLabels": {LABEL: spec.slug}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {LABEL: spec.slug}}}]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": spec.ports.dashboard}]},
            ],
        },
    }


def ray_cluster(spec: ClusterSpec) -> Json:
    """A cluster that stays until `down`."""
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": _metadata(spec), "spec": ray_cluster_spec(spec)}


def ray_job(spec: ClusterSpec, command: Sequence[str]) -> Json:
    """One command on a cluster of its own, which is deleted when the command has ended.

    KubeRay splits `entrypoint` like a shell and the job runs it in one, so the words are quoted once, as a shell
    would want them.
    """
    job: Json = {
        "entrypoint": shlex.join(with_program(command, spec.python)),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 3600,
        "backoffLimit": spec.kuberay.backoff_limit,
    }
    if spec.wall_time:
        job["activeDeadlineSeconds"] = spec.wall_seconds
    job["rayClusterSpec"] = ray_cluster_spec(spec)
    # the pod that submits needs the label too, or the network policy would keep it from the dashboard
    k = spec.kuberay
    job["submitterPodTemplate"] = {
        "metadata": _pod_metadata(spec),
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": spec.kuberay.image,
                    "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
                    **({"securityContext": _container_security()} if k.user else {}),
                }
            ],
            **({"securityContext": _pod_security(k.user)} if k.user else {}),
            **({"imagePullSecrets": [{"name": spec.kuberay.image_pull_secret}]} if spec.kuberay.image_pull_secret else {}),
        },
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(spec), "spec": job}


def render(spec: ClusterSpec, command: Sequence[str]) -> dict[str, str]:
    """File name -> text: rayjob.yaml (one command, then gone) and raycluster.yaml (stays); apply one of the two."""
    about = (
        f"KubeRay {KUBERAY_VERSION} or later (authOptions), Ray {RAY_VERSION}. Every port requires the cluster's token, which the\n"
        "operator keeps in a Secret; the NetworkPolicy lets in the cluster's own pods, and the operator to the dashboard."
    )
    return {
        "rayjob.yaml": dump([network_policy(spec), ray_job(spec, command)], about),
        "raycluster.yaml": dump([network_policy(spec), ray_cluster(spec)], about),
    }
