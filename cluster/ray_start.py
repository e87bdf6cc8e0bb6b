"""`ray start` that gives a node 90 s to register, where Ray gives 30 s: too few on a busy machine or a slow file
system.

    python -m cluster.ray_start --head --port=6379 ... --block

Called by the rendered scripts. Arguments are those of `ray start`.
"""

from __future__ import annotations

import sys


def main(words: list[str]) -> None:
    from ray.scripts import scripts

    from cluster.ray_private import patient_start

    with patient_start():
        scripts.start.main(words, prog_name="ray start")


if __name__ == "__main__":
    main(sys.argv[1:])
