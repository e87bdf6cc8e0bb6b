"""Memory of the head: what the driver and Ray's own processes need, against what the machine or its allocation has.

    GB = 0.9 + 0.7 + 0.05 for 1,000 jobs + 1.4 for each training over several workers that runs at once

0.9: a driver that has imported torch and Ray (0.86 measured). 0.7: Ray's head processes: GCS, raylet, dashboard, agents,
monitors (0.68). 0.05: plan and schedule (0.006 to 0.018) and Tune's trials (0.015), rounded up. 1.4: the process that
starts such a training, and Ray Train's controller, both on the head. Workers on the head come on top. docs/log.md, 2026-11-26.
"""

from __future__ import annotations

from collections.abc import Callable

from idgbr.errors import Missing
from idgbr.machine import allowed_memory_gb

DRIVER_GB = 0.9
RAY_GB = 0.7
JOB_GB = 0.05 / 1000
WIDE_GB = 1.4


def check_head(jobs: int, wide: int, say: Callable[[str], None], *, is_head: bool = True) -> None:
    """Compare what a run needs on this machine with what there is; a warning where only the free memory is too small.

    Args:
        jobs: of the run. wide: trainings over several workers at once, which have their controllers on the head.
        is_head: whether this machine is the head of the cluster; else the driver alone counts.

    Raises:
        Missing: the machine or its allocation is too small in all.
    """
    total, free = allowed_memory_gb()
    wide = wide if is_head else 0
    grows = jobs * JOB_GB + wide * WIDE_GB
    needed = DRIVER_GB + (RAY_GB if is_head else 0.0) + grows
    what = f"the driver{' and the head of the cluster need' if is_head else ' needs'} about {needed:.1f} GB for {jobs:,} jobs"
    what += f" with {wide} trainings over several workers at once" if wide else ""
    advice = "a head with more memory" + (", a smaller --concurrency, or fewer and wider trainings (--workers)" if wide else "")
    if needed > total:
        raise Missing(f"{what}; this machine or its allocation has {total:.1f} GB", hint=advice)
    if grows > free:
        say(f"warning: {what}; {free:.1f} of {total:.1f} GB are free, and {grows:.1f} GB are still to come: {advice}")
