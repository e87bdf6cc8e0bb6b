"""The result of `idgbr score` as tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from idgbr.interfaces import Json

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

PER_CLASS = {
    "miou": "IoU", "f1": "F1", "precision": "prec.", "recall": "recall", "boundary_iou": "b. IoU", "boundary_f": "b. F",
    "trimap_iou": "trimap", "wfm_edge": "WFm e.", "wfm_region": "WFm r.", "hd95": "HD95", "assd": "ASSD",
}  # fmt: skip


def show(result: Json) -> None:
    """Print to stdout. `result` as `idgbr score --json` gives it."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)  # names of classes and files are text, whatever signs they hold
    for label_set, found in result["label_sets"].items():
        many = len(result["label_sets"]) > 1
        console.print(_heading(result, label_set if many else "", found))
        console.print(_widths(result["widths"]))
        console.print(_scores(found, console.width))
        if starred := [name for name, e in found["scores"].items() if e.get("gain_left_out")]:
            console.print(_left_out(found["scores"], starred))
        for table in _classes(result["classes"], found, console.width):
            console.print(table)
        if "objects" in found:
            console.print(_objects(result["classes"], found["objects"]))
        console.print(_distance(found["distance"]))
        console.print(_frequency(found["frequency"]))
        if "ledger" in found:
            console.print(_ledger(found))
        console.print()
    for note in result["notes"]:
        console.print(f"note: {note}")


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _heading(result: Json, label_set: str, found: Json) -> Text:
    from rich.text import Text

    pixels = found["pixels"]
    parts = [f"{result['rasters']} raster{'s' * (result['rasters'] > 1)}, {found['tiles']} tile{'s' * (found['tiles'] > 1)}",
             f"{pixels['valid']:,} px scored, {pixels['ignored']:,} ignored"]  # fmt: skip
    text = Text.assemble((f"{label_set} labels: ", "bold") if label_set else "", "; ".join(parts))
    if pixels["outside"]:
        text.append(f"; {pixels['outside']:,} predicted outside the classes (counted wrong)", "bold")
    return text


def _widths(widths: dict[str, list[float]]) -> str:
    def px(name: str) -> str:
        low, high = widths[name]
        return f"{low:g} px" if low == high else f"{low:g} to {high:g} px by the raster"

    return (f"boundary IoU within {px('boundary_px')}, boundary F within {px('tolerance_px')}, trimap {px('trimap_px')}, "
            f"fine structures below {px('band_px')}, tiles of {px('tile_px')}")  # fmt: skip


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True, overflow="ellipsis")
    return table


def _scores(found: Json, width: int) -> Table:
    entries = found["scores"]
    has_coarse = any("coarse" in e for e in entries.values())
    undefined = any(_undefined(e) for e in entries.values())
    titles = ["score", "value", *(("coarse", "gain") if has_coarse else ()), *(("undefined",) if undefined else ())]
    taken = max(map(len, entries)) + 10 * (len(titles) - 1) + (8 if undefined else 0)
    with_doc = width - taken > 36
    table = _table("scores", *titles, *(("what it is",) if with_doc else ()))
    if with_doc:
        table.columns[-1].justify, table.columns[-1].no_wrap, table.columns[-1].overflow = "left", False, "fold"
    for name, entry in entries.items():
        if name.startswith("trimap_iou_") and entry["score"] == entries["trimap_iou"]["score"]:
            continue  # the same width twice
        digits = 5 if name.endswith("band_error") else 4  # small by nature
        row = [name, _number(entry["score"], digits)]
        star = "*" if entry.get("gain_left_out") else ""
        row += [_number(entry.get("coarse"), digits), _signed(entry.get("gain"), digits) + star] if has_coarse else []
        row += [_undefined(entry)] if undefined else []
        table.add_row(*row, *((entry["doc"],) if with_doc else ()))
    return table


def _left_out(entries: Json, names: list[str]) -> str:
    counts = ", ".join(f"{name} {entries[name]['gain_left_out']} left out, {entries[name]['gain_of']} compared" for name in names)
    return f"* gain over what is defined in both maps, not the difference of the two columns: {counts}"


def _undefined(entry: Json) -> str:
    """The largest number of rasters (or tiles) without a value, over the classes."""
    most = max(entry["undefined"], default=0)
    unit = "raster" if entry["how"] == "pooled" else "tile"
    return f"{most} of {entry['of']} {unit}{'s' * (entry['of'] > 1)}" if most else ""


def _signed(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}"


def _classes(names: list[str], found: Json, width: int) -> Iterator[Table]:
    """As many tables as it takes for no number to be cut."""
    from rich.cells import cell_len  # a Chinese letter takes two columns

    columns = [(t, [_number(v, 3) for v in found["scores"][n]["per_class"]]) for n, t in PER_CLASS.items() if n in found["scores"]]
    lacking = found["scores"]["miou"]["undefined"]
    if any(lacking):
        columns.append(("rasters without", [str(n or "") for n in lacking]))
    first = min(max(map(cell_len, ["class", *names])), width // 3)
    part: list[tuple[str, list[str]]] = []
    for i, column in enumerate(columns):
        part.append(column)
        taken = first + 3 + sum(max(map(len, [title, *cells])) + 2 for title, cells in [*part, *columns[i + 1 : i + 2]])
        if taken > width or column is columns[-1]:
            table = _table("by class (- undefined)", "class", *(title for title, _ in part))
            table.columns[0].max_width = first
            for c, name in enumerate(names):
                table.add_row(name, *(cells[c] for _, cells in part))
            yield table
            part = []


def _objects(names: list[str], found: Json) -> Table:
    """One row a score, one column a class and map."""
    sides = list(found)
    titles = [name if side == "pred" else f"{name} ({side})" for name in names for side in sides]
    table = _table("objects and shape", "score", *titles)
    for name in found["pred"]["scores"]:
        digits = 0 if name.endswith("_error") else 3
        table.add_row(name, *(_number(found[side]["scores"][name][c], digits) for c in range(len(names)) for side in sides))
    return table


def _distance(curve: list[Json]) -> Table:
    has_coarse = any("kept" in e for e in curve)
    ledger = ("repaired", "damaged", "net gain") if has_coarse else ()
    table = _table("by distance to the target's boundary", "distance in px", "pixels", "accuracy", "mIoU", *ledger)
    for e in curve:
        place = f"{e['low_px']:g} to {e['high_px']:g}" if math.isfinite(e["high_px"]) else f"beyond {e['low_px']:g}"
        beside = (f"{e['repaired']:,}", f"{e['damaged']:,}", _number(e["net_gain"], 3)) if has_coarse else ()
        table.add_row(place, f"{e['valid']:,}", _number(e["accuracy"]), _number(e["miou"]), *beside)
    return table


def _frequency(found: Json) -> str:
    lines = []
    for name in ("pred", "coarse"):
        if name in found and found[name]["s"]:
            bands = ", ".join(f"{2**j} px {_number(b, 5)}" for j, b in enumerate(found[name]["bands"]))
            lines.append(f"error by structure size ({name}): {bands}, larger {_number(found[name]['low'], 5)}; their sum is the error rate")
    if "gain_low" in found:
        lines.append(f"gain over coarse: fine structures {_percent(found['gain_high'])}, large structures {_percent(found['gain_low'])}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %" if math.isfinite(value) else "-"


def _ledger(found: Json) -> str:
    ledger, gain = found["ledger"], found["scores"].get("net_gain", {}).get("score")
    cells = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in ledger.items())
    return f"ledger in px: {cells}; net gain {_percent(float('nan') if gain is None else gain)} of the coarse map's errors"
