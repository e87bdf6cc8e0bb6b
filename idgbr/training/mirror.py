"""Checkpoints of a training on one node, copied to a store that is not a local folder, so that another node can go on
from them.

scratch/<stage>/<key>/checkpoint-<images>/   the files
scratch/<stage>/<key>/latest.json            names the newest whole one; written after its files
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path

from idgbr.errors import Outage
from idgbr.files import publish
from idgbr.store import Store

log = logging.getLogger(__name__)


class CheckpointMirror:
    """Of one training.

    Args:
        name: its folder below the store's root; deleted by its owner when the training's result is stored.
    """

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name

    def latest(self) -> str | None:
        """Name of the newest checkpoint on the store."""
        data = self.store.read_bytes(f"{self.name}/latest.json")
        return str(json.loads(data)["checkpoint"]) if data else None

    def fetch(self, scratch: Path) -> None:
        """Bring the newest checkpoint of the store to `scratch`, unless one as new is there.

        Raises:
            Outage: the store does not answer.
        """
        latest = self.latest()
        here = max((p.name for p in scratch.glob("checkpoint-*")), default="")
        if latest is None or here >= latest:
            return
        temporary = scratch / f".fetching-{uuid.uuid4().hex[:8]}"
        try:
            self.store.fetch(f"{self.name}/{latest}", temporary)
            publish(temporary, scratch / latest)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint to the store; older ones are deleted there. A store that is away costs a warning, not the
        training."""
        try:
            before = self.latest()
            self.store.upload(folder, f"{self.name}/{folder.name}")
            self.store.write_bytes(f"{self.name}/latest.json", json.dumps({"checkpoint": folder.name}).encode())
            if before is not None and before != folder.name:
                self.store.delete(f"{self.name}/{before}")
        except Outage as error:
            log.warning("the checkpoint %s is on this node only: %s", folder.name, error)
