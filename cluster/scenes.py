"""Many scenes over Ray workers, each with its own copy of the model.

    python -m cluster refine scenes.csv -o refined/ --model KEY|DIR            columns: scene, coarse[, out]
    python -m cluster refine SCENES/ --coarse COARSE/ -o refined/ --model DIR  files matched by name

A scene is refined by one worker; its result does not depend on which one, nor on their number. Run the same command
again to go on: finished scenes are skipped, interrupted ones continue with their finished rows. One scene's error
does not stop the others.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from idgbr.config import Runtime, SamplerConfig
from idgbr.errors import BadRequest, Disagreement, IdgbrError, Missing, SomeFailed

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from idgbr.labels import ClassTable
    from idgbr.scene.model import Model

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
TRIES = 3  # a scene whose worker died (node lost, out of memory) goes to another one, and continues with its finished rows


@dataclass(frozen=True)
class Order:
    """One scene to refine."""

    scene: Path
    coarse: Path
    out: Path


def orders(source: Path, coarse: Path | None, out: Path) -> list[Order]:
    """The scenes of a folder (with a folder of coarse maps of the same names) or of a CSV list with columns scene,
    coarse and perhaps out.

    Paths in a list are taken from the list's folder; outputs without a path go to `out`.

    Raises:
        Missing: no such list or folder, no scene in it, or files that are not there.
        BadRequest: wrong columns, two scenes with one output, or an output that is an input.
    """
    from idgbr.files import check_apart

    found: list[Order] = []
    if source.is_dir():
        if coarse is None or not coarse.is_dir():
            raise BadRequest(
                "a folder of scenes needs a folder of coarse maps",
                value=f"--coarse {coarse or ''}",
                hint="--coarse DIR, with files of the same names",
            )
        by_name = {path.stem: path for path in _rasters(coarse)}
        scenes = _rasters(source)
        found = [Order(path, by_name.get(path.stem, coarse / f"{path.stem}.tif"), out / f"{path.stem}.tif") for path in scenes]
    elif source.is_file():
        try:
            with open(source, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadRequest(
                f"{source} is not a CSV in UTF-8", value=error, allowed="scene, coarse, out", hint="save it as CSV UTF-8"
            ) from error
        if rows and not {"scene", "coarse"} <= set(rows[0]):
            raise BadRequest(
                f"{source} has other columns", value=", ".join(map(str, rows[0])), allowed="scene, coarse, out (the last may be left out)"
            )
        for row in rows:
            scene, guess = source.parent / row["scene"], source.parent / row["coarse"]
            found.append(Order(scene, guess, source.parent / row["out"] if row.get("out") else out / f"{scene.stem}.tif"))
    else:
        raise Missing("no such list or folder of scenes", value=source)
    if not found:
        raise Missing(f"no scene in {source}", allowed=", ".join(SUFFIXES))
    absent = [str(path) for order in found for path in (order.scene, order.coarse) if not path.is_file()]
    if absent:
        raise Missing(
            f"{len(absent)} of {2 * len(found)} input files are not there",
            value=", ".join(absent[:5]) + (" ..." if len(absent) > 5 else ""),
        )
    twice = {order.out for order in found if sum(o.out == order.out for o in found) > 1}
    if twice:
        raise BadRequest("two scenes would write one output", value=", ".join(map(str, sorted(twice))), hint="an `out` column in the list")
    for order in found:
        check_apart(order.out, order.scene, order.coarse)
    return found


class SceneWorker:
    """Holds one copy of the model, loaded with the first scene; lives in a Ray actor."""

    def __init__(self, model: str, store: str, runtime: Runtime, settings: Mapping[str, object], codes: ClassTable | None = None):
        self.request = model, store, runtime
        self.codes = codes
        self.settings = dict(settings)
        self.model: Model | None = None

    def _load(self) -> tuple[Model, SamplerConfig]:
        from idgbr.scene.model import load_model, with_settings

        if self.model is None:
            runtime = self.request[2]
            if runtime.threads:
                import torch

                torch.set_num_threads(runtime.threads)
            self.model = load_model(*self.request)
        return self.model, with_settings(self.model.sampler, **self.settings)

    def refine(self, order: Order, seed: int, confidence: bool, overwrite: bool) -> tuple[bool, str]:
        """(success, what was done or what is wrong)."""
        from idgbr.files import check_output
        from idgbr.scene.geotiff import SceneRequest, refine_scene, result_tags

        try:
            model, sampler = self._load()
            if order.out.exists() and not overwrite:
                want = result_tags(model, sampler, seed)
                if _tags(order.out, want) == want:
                    return True, "is there already"
                raise Disagreement(f"{order.out} is there, made by another model or with other settings", hint="another -o, or --overwrite")
            check_output(order.out)
            request = SceneRequest(
                order.scene, order.coarse, order.out, seed=seed, confidence=confidence, resume=not overwrite, overwrite=overwrite
            )
            tally, _ = refine_scene(model, sampler, request, codes=self.codes)
        except IdgbrError as error:
            return False, str(error)
        return True, str(tally)


def refine_scenes(
    todo: Sequence[Order],
    model: str,
    *,
    store: str,
    settings: Mapping[str, object],
    seed: int = 0,
    confidence: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    cpus: float = 1.0,
    gpus: float = 0.0,
    runtime: Runtime | None = None,
    codes: ClassTable | None = None,
) -> Iterator[tuple[Order, bool, str]]:
    """Refine all scenes on the connected Ray cluster; yields each as it ends: (order, whether it went well, what to
    say).

    Args:
        workers: at most so many at a time; 0: as many as the cluster has room for. cpus, gpus: of one worker.
        codes: what the codes of the coarse maps mean, where they are not the model's.

    Raises:
        Missing: no node has room for one worker.
    """
    import ray

    runtime = runtime or Runtime(threads=max(1, int(cpus)))
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [min((int(node.get(name, 0) // amount) for name, amount in wanted.items()), default=len(todo)) for node in nodes]
    count = min(sum(room), len(todo), workers or len(todo))
    if count < 1:
        raise Missing("no node has room for one worker", value=f"a worker needs {cpus:g} CPUs and {gpus:g} GPUs", hint="--cpus, --gpus")
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": TRIES, "max_task_retries": TRIES}
    actor = ray.remote(SceneWorker).options(**options)
    idle = [actor.remote(model, store, runtime, dict(settings), codes) for _ in range(count)]
    waiting = list(todo)
    running: dict[ObjectRef, tuple[ActorHandle, Order]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                worker, order = idle.pop(), waiting.pop(0)
                running[worker.refine.remote(order, seed, confidence, overwrite)] = (worker, order)
            done, _ = ray.wait(list(running), num_returns=1)
            worker, order = running.pop(done[0])
            try:
                good, text = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:  # not one of our own errors: those come back as text
                good, text = False, str(error).strip().splitlines()[-1]
            except ray.exceptions.RayActorError as error:
                good, text = False, f"its worker died {TRIES + 1} times: {str(error).strip().splitlines()[0]}"
                worker = actor.remote(model, store, runtime, dict(settings), codes)
            idle.append(worker)
            yield order, good, text
    finally:
        for worker in [*idle, *(worker for worker, _ in running.values())]:
            ray.kill(worker)


@dataclass(frozen=True)
class Refining:
    """How scenes are refined: see `python -m cluster refine --help`. None in `settings`: the model's own."""

    model: str
    store: str
    settings: Mapping[str, float | int | None] = field(default_factory=dict)
    seed: int = 0
    confidence: bool = False
    overwrite: bool = False
    workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    bf16: bool = False
    classes: Path | None = None


def refine(source: Path, coarse: Path | None, out: Path, work: Refining) -> None:
    """The verb: print the path of each refined scene to stdout, what happened to each to stderr.

    Raises:
        SomeFailed: some scenes failed; the others are written.
    """
    from cluster.session import connected
    from idgbr.labels import ClassTable
    from idgbr.scene.model import find_model

    todo = orders(source.absolute(), coarse and coarse.absolute(), out.absolute())  # workers run in other folders
    find_model(work.model, work.store)  # before a cluster is started
    codes = ClassTable.load(work.classes) if work.classes else None
    model = str(Path(work.model).absolute()) if Path(work.model).is_dir() else work.model
    store = work.store if "://" in work.store else str(Path(work.store).absolute())
    out.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(precision="bf16" if work.bf16 else "fp32", threads=max(1, int(work.cpus)))
    failed = []
    with connected():
        results = refine_scenes(
            todo, model, store=store, settings=work.settings, seed=work.seed, confidence=work.confidence,
            overwrite=work.overwrite, workers=work.workers, cpus=work.cpus, gpus=work.gpus, runtime=runtime, codes=codes,
        )  # fmt: skip
        for n, (order, good, text) in enumerate(results, 1):
            print(f"{n}/{len(todo)} {order.scene.name}: {text}", file=sys.stderr, flush=True)
            if good:
                print(order.out, flush=True)
            else:
                failed.append(order.scene.name)
    if failed:
        raise SomeFailed(
            f"{len(failed)} of {len(todo)} scenes failed: {', '.join(failed[:10])}", hint="repair them, then run the same command again"
        )


def _rasters(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def _tags(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    from idgbr.rasters.grid import opened

    with opened(path) as source:
        tags = source.tags()
    return {name: tags.get(name, "") for name in names}
