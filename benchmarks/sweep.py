"""What sharing and reused actors are worth, side by side in one run at toy size; the last line is one JSON object.

    python benchmarks/sweep.py [--cores 2] [--jobs 12] [--simulate 2000]

overhead_vs_bare_tune        wall time a job beyond the job itself, ours over a bare Ray Tune function trial (one process a trial, torch
                             imported); at most 1.3 is wanted, below 1 is better than bare
overhead_s_per_sampling_job  worker seconds a sampling-and-scoring job beyond its own, once its actor is warm: a long run less a short one
trainings, naive_trainings   refiners of a 3 schedules x 3 widths x 6 step counts x 2 seeds study: unique, and with nothing shared
wall_over_ideal              wall time of that study (refiners of `--images`) over the sum of its unique jobs divided by the workers
speedup_vs_naive             a toy study (`--toy` schedules and widths) by Ray Tune alone, a trial a grid point, nothing shared, over ours
plan_10000_s                 seconds to plan 10,000 trials on an empty store
driver_mb_at_end             memory of the driver after `--simulate` no-op trials on a cluster of four nodes on loopback, and
                             seconds_per_1000_trials, by quarter of the run
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.node import make_token, package_versions
from cluster.ray_private import read_authentication_again
from idgbr.store import Store
from sweeps.run import plan as planning
from sweeps.run import tuner
from sweeps.run.capacity import Capacity
from sweeps.run.claims import Claims
from sweeps.run.driver import RunContext, worker_context
from sweeps.run.nodes import QUIET, cluster
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement, slots
from sweeps.run.progress import SweepProgress
from sweeps.run.schedule import Schedule
from sweeps.study import Axis, Study

TINY = {
    "data.train_scenes": 2, "data.val_scenes": 2, "data.test_scenes": 1, "data.scene_px": 64,
    "backbone.crop_px": 64, "backbone.train_images": 16, "backbone.batch_images": 4, "backbone.warmup_images": 4,
    "coarse.source": "simulated", "coarse.tile_px": 64, "coarse.overlap_px": 16,
    "refiner.channels": (16, 32), "refiner.condition_channels": (16, 32), "refiner.guidance_width": 16, "refiner.crop_px": 32,
    "refiner.batch_images": 8, "refiner.train_images": 160, "refiner.warmup_images": 8,
    "sampler.tile_px": 64, "sampler.overlap_px": 16, "score.tile_px": 64,
}  # fmt: skip


def study(name: str, schedules: int = 3, widths: int = 3, steps: int = 6, seeds: int = 2, images: int = 160) -> Study:
    axes = (
        Axis("refiner.schedule", ("cosine", "linear", "sigmoid")[:schedules]),
        Axis("refiner.guidance_width", (8, 16, 32)[:widths]),
        Axis("sampler.steps", tuple(range(1, steps + 1))),
    )
    overrides = {k: v for k, v in TINY.items() if k not in {a.name for a in axes}} | {"refiner.train_images": images}
    return Study(name, "synthetic", axes=axes, overrides=overrides, replicates=seeds, yardsticks=())


def ours(what: Study, store: Store, placement: Placement, places: int) -> dict[str, float]:
    """Wall time of a study inside a started cluster, and the seconds its jobs took by themselves."""
    made = planning.make(what, store)
    began = time.monotonic()
    with Claims(store, what.name) as claims:
        context = RunContext(what, worker_context(store, placement), placement, RunOptions(), claims, places, Capacity(placement))
        context.compute(made)
    wall = time.monotonic() - began
    inside = sum(
        (store.manifest(job.stage, key) or {"seconds": 0.0})["seconds"] for key, (job, _) in made.jobs.items() if key in made.to_do
    )
    return {"wall": wall, "inside": inside, "jobs": float(len(made.to_do))}


def bare_tune(trials: int, function: Any, concurrency: int) -> float:
    """Wall time of so many plain Tune function trials."""
    from ray import tune

    with tempfile.TemporaryDirectory() as folder, tuner.discarded_stdout():
        began = time.monotonic()
        tune.Tuner(
            tune.with_resources(function, {"CPU": 1}),
            param_space={"i": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrency),
            run_config=tune.RunConfig(storage_path=folder, name="bare", verbose=0),
        ).fit()
        return time.monotonic() - began


def naive_trial(config: dict[str, Any], experiments: list[Any], root: str) -> None:
    """One grid point as Ray Tune alone would run it: everything from raw scenes, nothing shared."""
    from idgbr import stages
    from idgbr.config import Runtime

    store = Store(f"{root}/{config['i']}")
    for job in stages.jobs(experiments[config["i"]]):
        stages.run(job, store, experiments[config["i"]], Runtime(threads=1))


def empty_trial(config: dict[str, Any]) -> None:
    import torch

    torch.zeros(1)


def simulated(trials: int, store: Store, placement: Placement) -> dict[str, Any]:
    """Scheduling alone: no-op jobs through the same Tune run, time by quarter, memory of this process."""
    what = Study("simulated", "synthetic", axes=(Axis("refiner.lr", tuple(1e-4 * (1 + i / trials) for i in range(trials))),), yardsticks=(),
                 overrides=TINY)  # fmt: skip
    made = planning.make(what, store)
    marks: list[float] = []

    class Marked(Schedule):
        def complete(self, unit_id: str, *lost: Any) -> None:
            super().complete(unit_id, *lost)
            marks.append(time.monotonic())

    from sweeps.run.units import Task, Unit

    jobs = [made.jobs[t.jobs[-3].key] for t in made.trials]
    waiting = [Unit((Task(job, e),)) for job, e in jobs]
    with Claims(store, "simulated") as claims, four_nodes() as address, cluster(Placement(address=address)) as nodes:
        places = slots(placement, nodes)
        schedule = Marked(made, waiting, store, claims, places, "")
        schedule.made |= {p for u in waiting for t in u.tasks for p in t.job.parents.values()}
        context, work = worker_context(store, placement), tuner.work
        with SweepProgress("simulated", trials, workers=places) as progress:
            tuner.work = no_op
            try:
                tuner.execute(schedule, progress, context, placement, Capacity(placement))
            finally:
                tuner.work = work
    quarter = len(marks) // 4
    return {
        "simulated_trials": len(marks),
        "seconds_per_1000_trials": [round((marks[(i + 1) * quarter - 1] - marks[i * quarter]) / quarter * 1000, 1) for i in range(4)],
        "driver_mb_at_end": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


@contextlib.contextmanager
def four_nodes() -> Iterator[str]:
    """Address of a cluster on loopback: a head and three nodes, one CPU each. Ports are chosen here, for a busy machine's sake."""
    from ray.cluster_utils import Cluster

    def settings() -> dict[str, Any]:
        names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        with contextlib.ExitStack() as held:
            probes = {name: held.enter_context(socket.socket()) for name in names}
            for probe in probes.values():
                probe.bind(("", 0))
            ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
        return {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False, **ports}

    with tempfile.TemporaryDirectory() as folder:
        token = str(make_token(Path(folder) / "token"))
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token, **QUIET})
        read_authentication_again()
        nodes = Cluster(initialize_head=True, head_node_args=settings())
        try:
            for _ in range(3):
                nodes.add_node(**settings())
            yield nodes.address
        finally:
            nodes.shutdown()


def planned(trials: int, store: Store) -> float:
    """Seconds to plan so many trials: 50 step counts, the rest trainings."""
    rates = tuple(1e-4 * (1 + i / trials) for i in range(trials // 50))
    axes = (Axis("refiner.lr", rates), Axis("sampler.steps", tuple(range(1, 51))))
    what = Study("planned", "synthetic", axes=axes, overrides=TINY, yardsticks=())
    began = time.monotonic()
    assert len(planning.make(what, store).trials) == trials
    return time.monotonic() - began


def no_op(unit: Any, context: Any) -> Any:
    from sweeps.run.units import Outcome

    for task in unit.tasks:
        yield Outcome(task.job.key, task.job.stage, "done", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=12, help="bare Tune trials to time")
    parser.add_argument("--simulate", type=int, default=0, help="no-op trials to schedule; 0: leave out")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--images", type=int, default=2400, help="that a refiner of the study of 18 sees; 2,400: some 12 s each")
    parser.add_argument("--toy", type=int, default=2, help="schedules and widths of the study that is really run")
    options = parser.parse_args()
    placement = Placement()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        counted = planning.make(study("counted"), Store(root / "counted"))
        toy = study("toy", options.toy, options.toy, options.steps, 1)
        with cluster(placement, cores=options.cores) as nodes:
            places = slots(placement, nodes)
            bare = bare_tune(options.jobs, empty_trial, places) * places / options.jobs  # seconds of a worker a trial
            whole = ours(study("whole", images=options.images), Store(root / "whole"), placement, places)
            done = ours(toy, Store(root / "ours"), placement, places)
            few, many = (
                ours(study("toy", options.toy, options.toy, options.steps + more, 1), Store(root / "ours"), placement, places)
                for more in (2, 14)
            )
            experiments = [t.experiment for t in planning.make(toy, Store(root / "naive")).trials]
            wall_naive = bare_tune(len(experiments), lambda config: naive_trial(config, experiments, f"{folder}/naive"), places)
        # What two runs of different length share, their start, falls out.
        warm = {name: many[name] - few[name] for name in few}
        overhead = max(0.0, whole["wall"] * places - whole["inside"]) / whole["jobs"]
        found: dict[str, Any] = {
            "bare_tune_s_per_trial": round(bare, 3),
            "overhead_s_per_job": round(overhead, 3),
            "overhead_vs_bare_tune": round(overhead / bare, 3),
            "overhead_s_per_sampling_job": round((warm["wall"] * places - warm["inside"]) / warm["jobs"], 3),
            "trainings": counted.stages()["refiner"]["unique"],
            "naive_trainings": counted.stages()["refiner"]["naive"],
            "wall_over_ideal": round(whole["wall"] / (whole["inside"] / places), 3),
            "wall_s": round(whole["wall"], 1),
            "speedup_vs_naive": round(wall_naive / done["wall"], 2),
            "plan_10000_s": round(planned(10_000, Store(root / "planned")), 2),
            "workers": places,
            "trials": len(experiments),
            "versions": json.loads(package_versions()),
        }
        if options.simulate:
            found |= simulated(options.simulate, Store(root / "simulated"), placement)
    print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
