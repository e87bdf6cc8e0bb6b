"""Tune's placement groups, given back without losing their places."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

LAST_WAIT_S = 1.0


@contextlib.contextmanager
def patient_groups() -> Iterator[None]:
    """A Tune run inside the block removes a placement group only once it stands.

    Tune asks for a group when a unit may start, and 2 ms later, when a process that is free takes the unit, for its removal. A group
    that is removed while its places are being reserved never gives them back: the node has a CPU or GPU less for the rest of its life
    (Ray 2.60, ray-project/ray#64693). Tune has no setting for the manager of its groups, so its name is replaced.
    """
    from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
    from ray.tune.execution import tune_controller
    from ray.util import remove_placement_group

    class Patient(PlacementGroupResourceManager):
        def __init__(self, update_interval_s: float = 0.1) -> None:
            super().__init__(update_interval_s)
            self.surplus: Counter[Any] = Counter()  # groups on their way, by request, that nobody wants any more

        def request_resources(self, resource_request: Any) -> None:
            if self.surplus[resource_request]:
                self.surplus[resource_request] -= 1
            else:
                super().request_resources(resource_request)

        def cancel_resource_request(self, resource_request: Any) -> None:
            if self._request_to_staged_pgs[resource_request]:
                self.surplus[resource_request] += 1
            else:
                super().cancel_resource_request(resource_request)

        def get_resource_futures(self) -> list[Any]:  # Tune asks in every step, and wakes when one of them is there
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
