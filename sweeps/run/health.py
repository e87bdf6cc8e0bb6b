"""Which devices fail: a device on which two different units failed in a row gets no more work. No Ray."""

from __future__ import annotations

LIMIT = 2  # different units in a row
SHARE = 0.5  # of the devices may be left out at most; when more fail, the work is the likelier cause


class Health:
    """Failures by device (a GPU of a node, or a node), as reported to the driver.

    If a unit succeeds on another device, its failure counts against the first one; if it fails everywhere, it counts
    against none.
    """

    def __init__(self) -> None:
        self.failures: dict[str, list[str]] = {}  # device -> units that failed on it since its last success
        self.seen: set[str] = set()
        self.reasons: dict[str, str] = {}

    def used(self, device: str) -> None:
        """A device has begun a unit."""
        if device:
            self.seen.add(device)

    def succeeded(self, device: str) -> None:
        """A device has completed a unit: its failures in a row start anew."""
        self.failures.pop(device, None)

    def failed(self, device: str, unit: str, reason: str) -> None:
        """Count a failure of a unit on a device; `reason` is what the user is shown."""
        if device:
            self.seen.add(device)
            units = self.failures.setdefault(device, [])
            if unit not in units:
                units.append(unit)
            self.reasons[device] = reason

    def withdraw(self, unit: str) -> None:
        """The unit failed wherever it was tried: no device is to blame for it."""
        for device, units in list(self.failures.items()):
            if unit in units:
                units.remove(unit)
            if not units:
                del self.failures[device]

    def readmit(self, devices: set[str]) -> None:
        """These devices get work again: they are all that is left. Devices of lost nodes count among those seen."""
        for device in devices:
            self.failures.pop(device, None)

    @property
    def left_out(self) -> frozenset[str]:
        """Devices that get no more work: those with most failures, at most a share of all that were seen."""
        bad = [device for device, units in self.failures.items() if len(units) >= LIMIT]
        return frozenset(sorted(bad, key=lambda device: -len(self.failures[device]))[: int(len(self.seen) * SHARE)])
