"""Directives from the driver of a sweep to its workers on other nodes, through a Ray actor.

They do not use the store: a store that is slow or unavailable neither delays a stop nor fails a running job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LOOK_S = 2.0  # how often a worker asks; with 1,000 workers 500 small calls a second
ANSWER_S = 5.0
SILENCE_S = 30.0  # after no answer, until a worker asks again


@dataclass(frozen=True)
class Directives:
    """Instructions of the driver to its workers.

    Args:
        stop: write a checkpoint and end. over: the run has ended; workers that occupy a left-out device end too.
        left_out: devices that get no more work.
        crowded: every place is occupied by a worker that has returned its unit; those workers end.
    """

    stop: bool = False
    over: bool = False
    left_out: frozenset[str] = frozenset()
    crowded: bool = False


class ControlActor:
    """Holds the directives; runs on the driver's node and ends with it."""

    def __init__(self) -> None:
        self.directives = Directives()

    def put(self, directives: Directives) -> None:
        """Called by the driver."""
        self.directives = directives

    def get(self) -> Directives:
        """Called by the workers."""
        return self.directives


def start_control() -> ActorHandle:
    """Start the actor on the driver's node, without a CPU of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    handle: ActorHandle = ray.remote(ControlActor).options(num_cpus=0, scheduling_strategy=here).remote()
    return handle


class ControlReader:
    """The worker's side. If the actor does not answer, the last answer holds and no work fails."""

    def __init__(self, actor: ActorHandle):
        self.actor, self.last, self._next = actor, Directives(), 0.0

    def directives(self, *, now: bool = False) -> Directives:
        """The latest, asked at most every `LOOK_S` seconds unless `now`."""
        import ray

        if now or time.monotonic() >= self._next:
            try:
                self.last = ray.get(self.actor.get.remote(), timeout=ANSWER_S)
                self._next = time.monotonic() + LOOK_S
            except ray.exceptions.RayError:
                self._next = time.monotonic() + SILENCE_S
        return self.last


class ControlWriter:
    """The driver's side: sends changes without waiting for an answer. The actor may hold the last of an earlier run."""

    def __init__(self, actor: ActorHandle):
        self.actor = actor
        self.sent: Directives | None = None

    def send(self, directives: Directives) -> None:
        """Send the directives to the actor if they differ from the last ones."""
        if directives != self.sent:
            self.actor.put.remote(directives)
            self.sent = directives


def device_name() -> str:
    """Of the node and the GPUs that Ray gave this worker, e.g. `node7 3fa2c1d0 GPU 0`."""
    import socket

    import ray

    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return f"{socket.gethostname()} {context.get_node_id()[:8]}" + (f" GPU {','.join(map(str, gpus))}" if gpus else "")
