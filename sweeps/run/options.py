"""Options of a run: retries, output, limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from idgbr.errors import BadRequest


@dataclass(frozen=True)
class RunOptions:
    """Options of `python -m sweeps run`.

    Raises:
        BadRequest: a negative number.
    """

    retry_failed: bool = False
    redefine: Annotated[bool, arg(help="drop the rows of an older definition under this name")] = False
    local: Annotated[bool, arg(help="one job after the other in this process, without Ray")] = False
    preflight: Annotated[bool, arg(help="build every model on the meta device first")] = True
    show: Annotated[bool, arg(help="print the table at the end")] = True
    callbacks: Annotated[UseAppendAction[tuple[str, ...]], arg(name="callback", help="tensorboard, mlflow, wandb; may be repeated")] = ()
    budget_gb: Annotated[float, arg(help="of the store: checked before, kept to by the policy of gc while it runs; 0: none")] = 0.0
    budget_gpu_hours: Annotated[float, arg(help="GPU-hours that this command may hold; then it stops and can be resumed; 0: none")] = 0.0
    max_failed: Annotated[int, arg(help="stop when more trials than this have failed for reasons of their own; 0: never")] = 0
    max_failures: Annotated[int, arg(help="how often a unit is tried again after an outage if it has not advanced")] = 2
    max_workers: Annotated[int, arg(help="workers at once at most, asked of the cluster's autoscaler; 0: what fits")] = 0
    silent_after: Annotated[float, arg(help="seconds without a sign of life until a job is ended and tried again; 0: never")] = 7200.0
    notify: Annotated[str, arg(metavar="URL|COMMAND", help="told as JSON how the run has ended: posted, or on standard input")] = ""
    wait_s: Annotated[float, arg(help="seconds to wait for nodes of a cluster that can hold a job")] = 600.0

    def __post_init__(self) -> None:
        for name in ("budget_gb", "budget_gpu_hours", "max_failed", "max_failures", "max_workers", "silent_after", "wait_s"):
            if getattr(self, name) < 0:
                raise BadRequest(f"--{name.replace('_', '-')} is not negative", value=getattr(self, name))
