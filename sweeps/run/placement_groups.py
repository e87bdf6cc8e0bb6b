"""A guard around a fault of Ray: placement groups that are removed while they are being reserved leak their resources
(ray#64693).

It uses private parts of Ray Tune, so it has a file of its own. On a Ray in which they have changed, the guard is left
out with a warning: sweeps then run, but a node may lose a CPU or GPU until it is restarted.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ray
    from ray.air.execution.resources import ResourceRequest

TESTED = "2.60"
PRIVATE = ("_request_to_staged_pgs", "_request_to_ready_pgs", "_pg_to_request", "_staging_future_to_pg")
LAST_WAIT_S = 1.0

log = logging.getLogger(__name__)


def missing_parts() -> list[str]:
    """Private parts of Ray that are used here and that the installed version does not have."""
    from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
    from ray.tune.execution import tune_controller

    manager = PlacementGroupResourceManager()
    missing = [f"PlacementGroupResourceManager.{name}" for name in PRIVATE if not hasattr(manager, name)]
    if not hasattr(tune_controller, "PlacementGroupResourceManager"):
        missing.append("tune_controller.PlacementGroupResourceManager")
    return missing


@contextlib.contextmanager
def patient_groups() -> Iterator[None]:
    """A Tune run inside the block removes a placement group only after it has been reserved.

    Tune requests a group when a unit may start, and removes it 2 ms later when a free process takes the unit.
    Resources of a group that is removed while they are being reserved are never released: the node has a CPU or GPU
    less until it is restarted (Ray 2.60, ray-project/ray#64693). Tune has no setting for the manager of its groups,
    so the class is replaced.
    """
    from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
    from ray.tune.execution import tune_controller
    from ray.util import remove_placement_group

    missing = missing_parts()
    if missing:
        log.warning("no guard against ray#64693: this Ray is not %s, it lacks %s", TESTED, ", ".join(missing))
        yield
        return

    class Patient(PlacementGroupResourceManager):
        def __init__(self, update_interval_s: float = 0.1) -> None:
            super().__init__(update_interval_s)
            self.surplus: Counter[ResourceRequest] = Counter()  # requested groups, by request, that are no longer needed

        def request_resources(self, resource_request: ResourceRequest) -> None:
            if self.surplus[resource_request]:
                self.surplus[resource_request] -= 1
            else:
                super().request_resources(resource_request)

        def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
            if self._request_to_staged_pgs[resource_request]:
                self.surplus[resource_request] += 1
            else:
                super().cancel_resource_request(resource_request)

        def get_resource_futures(self) -> list[ray.ObjectRef]:  # Tune calls this in every step, and wakes when one of them is there
            if self.surplus.total():
                self.update_state()
                for request in self.surplus:
                    ready = self._request_to_ready_pgs[request]
                    while self.surplus[request] and ready:
                        group = ready.pop()
                        self._pg_to_request.pop(group)
                        remove_placement_group(group)
                        self.surplus[request] -= 1
            return super().get_resource_futures()

        def clear(self) -> None:
            import ray

            staged = list(self._staging_future_to_pg)
            if staged and ray.is_initialized():  # what this run has just freed may be theirs at this moment
                ray.wait(staged, num_returns=len(staged), timeout=LAST_WAIT_S)
            super().clear()

    usual = tune_controller.PlacementGroupResourceManager
    tune_controller.PlacementGroupResourceManager = Patient
    try:
        yield
    finally:
        tune_controller.PlacementGroupResourceManager = usual
