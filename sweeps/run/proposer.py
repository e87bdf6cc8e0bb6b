"""Where further units of a schedule come from while it runs: the proposals of a search. An interface, no code."""

from __future__ import annotations

from typing import Protocol

from sweeps.run.units import Unit
from sweeps.study import Trial


class Proposer(Protocol):
    """Makes units until it is exhausted, and hears how their trials end."""

    @property
    def is_exhausted(self) -> bool:
        """Nothing more will come."""

    def propose(self) -> tuple[list[Unit], list[Trial]] | None:
        """Units of the next proposal and its trials; None: nothing now."""

    def ended(self, trial: Trial, status: str, error: str | None) -> None:
        """A trial is done, failed or pruned, and its row is written."""

    def needed(self) -> set[str]:
        """Keys that further proposals will read or write."""
