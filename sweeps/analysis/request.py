"""What is asked of the tables of a study: which rows, which scores, compared with what, and where the output goes.

The dataclasses are options of the command line too (`sweeps/__main__.py`), so this file imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypedDict

from tyro.conf import UseAppendAction, arg

from idgbr.errors import BadRequest

if TYPE_CHECKING:
    from sweeps.analysis.trials import Trials

SHOWN = ("miou", "boundary_iou", "wfm_edge")
PRIMARY = "boundary_iou"


class PublishedRequest(TypedDict):
    """A comparison as `published.json` keeps it."""

    metric: str
    metrics: list[str]
    baseline: str
    split: str
    labels: str
    unit: str
    where: list[str]


@dataclass(frozen=True)
class Selection:
    """Which trials and which of their counts are read."""

    stores: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="store", help="folder or URI of a store; may be repeated, tables are merged")
    ] = ()
    split: Annotated[str, arg(help="val, test, ...; empty: a table for each split")] = ""
    labels: Annotated[str, arg(help="label set, full or eroded; empty: a table for each")] = ""
    metric: Annotated[str, arg(help="primary metric: its comparisons are tested")] = PRIMARY
    where: Annotated[UseAppendAction[tuple[str, ...]], arg(help='filter, e.g. "steps<=8 and schedule=cosine"; may be repeated')] = ()

    def trials(self, studies: Sequence[str]) -> Trials:
        """The trials of these studies that pass the filters.

        Raises:
            Missing: no such study in any of the stores. Disagreement: a part is half-written or foreign. BadRequest:
                a filter.
        """
        from idgbr.store import default_root
        from sweeps.analysis.trials import load_trials

        return load_trials(self.stores or (default_root(),), studies, self.where)


@dataclass(frozen=True)
class Comparison(Selection):
    """Which scores are shown, what every variant is compared with, and what is resampled."""

    metrics: Annotated[str, arg(help=f"metrics shown, separated by commas; empty: {','.join(SHOWN)}")] = ""
    baseline: Annotated[str, arg(help="coarse, one_pass, steps=1, resnet50, or the label of a variant")] = "coarse"
    unit: Annotated[str, arg(help="unit of inference: auto, scene or block")] = "auto"

    @property
    def shown(self) -> list[str]:
        """Names of the metrics shown, the primary one among them.

        Raises:
            BadRequest: no such metric; names the nearest.
        """
        from idgbr.scores.read import metric as metric_named

        names = [m.strip() for m in self.metrics.split(",") if m.strip()] or list(SHOWN)
        return [metric_named(m).name for m in dict.fromkeys([*names, self.metric])]

    def to_json(self) -> PublishedRequest:
        """All but the stores, which are folders of one machine."""
        return {
            "metric": self.metric, "metrics": self.shown, "baseline": self.baseline, "split": self.split, "labels": self.labels,
            "unit": self.unit, "where": list(self.where),
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: PublishedRequest) -> Comparison:
        """The comparison that `to_json` wrote; without stores."""
        return cls(
            split=found["split"], labels=found["labels"], metric=found["metric"], where=tuple(found.get("where", ())),
            metrics=",".join(found["metrics"]), baseline=found["baseline"], unit=found["unit"],
        )  # fmt: skip


@dataclass(frozen=True)
class Output:
    """Form and place of a table: at most one form; the terminal's own without any."""

    md: Annotated[bool, arg(help="Markdown")] = False
    latex: Annotated[bool, arg(help="LaTeX (booktabs)")] = False
    json: bool = False
    csv: bool = False
    out: Annotated[str, arg(aliases=["-o"], help="file to write instead of standard output")] = ""

    @property
    def form(self) -> str:
        """md, latex, json, csv or rich.

        Raises:
            BadRequest: more than one form.
        """
        flags: Mapping[str, bool] = {"md": self.md, "latex": self.latex, "json": self.json, "csv": self.csv}
        asked = [name for name, is_asked in flags.items() if is_asked]
        if len(asked) > 1:
            raise BadRequest("one format at a time", value=" ".join(f"--{name}" for name in asked), hint="-o FILE once for each")
        return asked[0] if asked else "rich"
