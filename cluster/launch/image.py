"""The Dockerfile of a `ClusterSpec`: the project and what it depends on, in one image for head and workers."""

from __future__ import annotations

import json

from cluster.launch.spec import ClusterSpec

# The CUDA libraries come with torch's wheels and the driver from the host's NVIDIA runtime, so no CUDA image is
# needed. Python 3.11 as in constraints.txt: Ray refuses nodes whose Python differs from the driver's.
BASE = "python:3.11-slim-bookworm"


def dockerfile(spec: ClusterSpec) -> str:
    """Build it in the repository's root: `docker build -t IMAGE --build-arg COMMIT=$(git rev-parse HEAD) -f Dockerfile .`

    The image holds no repository: rows of a study name the commit that was given to the build.
    Versions are those of constraints.txt, so every node holds the same ones. The program runs as a user without
    rights.
    """
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONUNBUFFERED": "1"}
    if spec.gpus_per_node:
        variables |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    env = " ".join(f"{name}={json.dumps(value)}" for name, value in variables.items())
    return f"""\
# Written by `python -m cluster render`. Build in the root of the repository:
#   docker build -t IMAGE --build-arg COMMIT=$(git rev-parse HEAD) -f Dockerfile .
FROM {BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# wget for KubeRay's probes, rsync and ssh for Ray's cluster launcher, procps for its commands
RUN apt-get update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \\
      iproute2 openssh-client procps rsync wget \\
 && rm -rf /var/lib/apt/lists/*
ENV {env}
COPY constraints.txt pyproject.toml README.md LICENSE /app/
COPY idgbr /app/idgbr
COPY sweeps /app/sweeps
COPY cluster /app/cluster
RUN pip install --no-cache-dir --constraint /app/constraints.txt /app
RUN useradd --create-home --uid 10001 idgbr && mkdir -p /store && chown idgbr /store
ARG COMMIT=""
ENV IDGBR_COMMIT=$COMMIT
USER idgbr
WORKDIR /app
CMD ["python", "-m", "cluster", "--help"]
"""
