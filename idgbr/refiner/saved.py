"""Saved refiners: a folder with config.json (settings, classes, band statistics, shapes of parts) and
model.safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from idgbr.config import CONFIG_VERSION, RefinerConfig, SamplerConfig, section_from_dict
from idgbr.errors import Disagreement, Missing
from idgbr.files import replacing, write_tensors
from idgbr.labels import ClassTable
from idgbr.refiner.network import RefinerNetwork
from idgbr.refiner.stable_diffusion import Parts

OF_DECISIONS = ("sampler", "steps", "samples", "average_steps", "decision", "trust", "reach_px", "keep_confidence", "sure")

Network = TypeVar("Network", bound=RefinerNetwork)


def write_config(network: RefinerNetwork, folder: Path) -> None:
    """config.json: all that `read` needs besides the weights."""
    record = {
        "version": CONFIG_VERSION,
        "kind": "idgbr refiner",
        "refiner": dataclasses.asdict(network.config),
        "n_bands": network.n_bands,
        "table": json.loads(network.table.to_json()),
        "stats": {n: list(getattr(network.stats, n)) for n in ("mean", "std", "low", "high")},
        "parts": network.part_configs,
    }
    if network.decision is not None:
        record["decision"] = {name: getattr(network.decision, name) for name in OF_DECISIONS}
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1))


def write(network: RefinerNetwork, folder: Path) -> None:
    """config.json and model.safetensors; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with replacing(folder / "model.safetensors") as temporary:
        write_tensors(state, temporary)
    write_config(network, folder)


def read(make: Callable[..., Network], folder: Path) -> Network:
    """The network that `make(config, n_bands, table, stats, parts)` builds, with the weights in the folder.

    Raises:
        Missing: no such folder, no config or no weights in it.
        Disagreement: a config of another version, or weights that do not fit it.
    """
    from safetensors.torch import load_file

    from idgbr.datasets import BandStats

    for name, what in (("config.json", "config"), ("model.safetensors", "weights")):
        if not (folder / name).is_file():
            raise Missing(
                f"no refiner {what} in {folder}",
                allowed="a folder with config.json and model.safetensors",
                hint="the folder of a finished `refiner` stage, or one written by Refiner.save",
            )
    record = json.loads((folder / "config.json").read_text())
    if record.get("version") != CONFIG_VERSION:
        raise Disagreement(
            f"the refiner in {folder} has a config of another version",
            value=record.get("version"),
            allowed=str(CONFIG_VERSION),
            hint="train it again with this version of idgbr",
        )
    # the frozen encoder's weights are among the saved ones: the file they came from is not needed again
    config = replace(section_from_dict(RefinerConfig, record["refiner"]), condition_weights="")
    stats = BandStats(**{name: tuple(values) for name, values in record["stats"].items()})
    table = ClassTable.from_json(json.dumps(record["table"]))
    network = make(config, record["n_bands"], table, stats, Parts.from_configs(record["parts"]))
    try:
        network.load_state_dict(load_file(str(folder / "model.safetensors")))
    except RuntimeError as error:
        raise Disagreement(f"the weights in {folder} do not fit its config.json", value=str(error).splitlines()[0]) from error
    if "decision" in record:
        network.decision = section_from_dict(SamplerConfig, record["decision"])
    return network
