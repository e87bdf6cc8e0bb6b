"""Finished rows of a long scene, kept beside the output until it is whole, so that `--resume` goes on strip by strip.

.<output name>.parts/   request.json, rows-<first row>.npz ...
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from idgbr.errors import BadRequest, Disagreement
from idgbr.files import not_written, whole
from idgbr.scene.strips import Rows, Tally


class KeptRows:
    """Rows already refined of one output.

    Args:
        out: the output's path.
        request: everything that decides the result (inputs, model, settings); parts of another request are never
            mixed in.
    """

    def __init__(self, out: Path, request: Mapping[str, object]):
        self.out = out
        self.folder = out.with_name(f".{out.name}.parts")
        self.request = json.loads(json.dumps(request))

    def begin(self, resume: bool, afresh: bool = False) -> tuple[int, Tally]:
        """First row still to do, and the counts so far. `resume` goes on; `afresh` throws earlier parts away.

        Raises:
            BadRequest: neither was asked for, and an interrupted run of the same request is there.
            Disagreement: `resume`, and the parts are of another request. Missing: the folder cannot be written.
        """
        record = self.folder / "request.json"
        there = json.loads(record.read_text()) if record.is_file() else {}
        if there == self.request and self._files() and not resume and not afresh:
            raise BadRequest(
                f"an interrupted run of {self.out} is there (or one is still going on)",
                hint="--resume to go on, --overwrite to start afresh",
            )
        if resume and there:
            differ = sorted(name for name in {*there, *self.request} if there.get(name) != self.request.get(name))
            if differ:
                name = differ[0]
                raise Disagreement(
                    f"the interrupted run of {self.out} was another one: {', '.join(differ)} differ",
                    value=f"{name}: then {there.get(name)}, now {self.request.get(name)}",
                    hint="the same settings and files as then; or start afresh: --overwrite, and no --resume",
                )
            row, tally = 0, Tally()
            for path in self._files():
                if self._row(path) != row:
                    break
                with np.load(path) as file:
                    row += len(file["index"])
                    tally = Tally(**json.loads(str(file["tally"])))
            return row, tally
        self.discard()
        try:
            self.folder.mkdir()
            (self.folder / "request.json").write_text(json.dumps(self.request, indent=1))
        except OSError as error:
            raise not_written(self.folder, error) from error
        return 0, Tally()

    def save(self, rows: Rows, tally: Tally) -> None:
        """Raises:
        Missing: no space left.
        """
        counts = np.array(json.dumps(dataclasses.asdict(tally)))
        try:
            with whole(self.folder / f"rows-{rows.row:010d}.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, index=rows.index, bands=rows.bands, tally=counts)
        except OSError as error:
            raise not_written(self.out, error) from error

    def rows(self) -> Iterator[Rows]:
        """All parts from the top, as far as they follow on each other."""
        row = 0
        for path in self._files():
            if self._row(path) != row:
                return
            with np.load(path) as file:
                part = Rows(row, file["index"], file["bands"])
            yield part
            row += len(part.index)

    def discard(self) -> None:
        """Delete the kept rows."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.npz"))

    @staticmethod
    def _row(path: Path) -> int:
        return int(path.stem.removeprefix("rows-"))
