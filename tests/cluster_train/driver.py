"""A driver to be killed: `python driver.py ADDRESS STORE` trains the backbone of small_trainings.SMALL over two sharded workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main(address: str, root: str, overrides: str) -> None:
    import ray
    from small_trainings import prepared

    from cluster.train import RayTraining
    from idgbr import stages
    from idgbr.config import Runtime
    from idgbr.store import Store

    store = Store(root)
    experiment, job = prepared(store, **json.loads(overrides))
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)

    fit = RayTraining(workers=2, sharding="fsdp")
    stages.run(job, store, experiment, Runtime(device="cpu", threads=1), report=lambda **v: print(v["images"], flush=True), fit=fit)


if __name__ == "__main__":
    main(*sys.argv[1:])
