"""One page about a study in the terminal, for anybody who can read the store; no driver need run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from idgbr.errors import Outage, SomeFailed
from idgbr.store import Store
from sweeps.run.claims import Heartbeats
from sweeps.run.live import Live, LiveUnit
from sweeps.run.progress import time_text
from sweeps.run.state import Scores, StudyState, last_failures, state_of

MOST_UNITS = 24  # one line each; more: one line a node
MOST_NODES = 24
MOST_FAILURES = 3
NO_PLACE = "waiting for a place"


def watch(name: str, store: Store, *, once: bool = False, every_s: float = 5.0) -> None:
    """Show the page, again and again until every trial has its row and no driver works on the study.

    Where stdout is no terminal the page is printed whenever a trial has ended.

    Raises:
        SomeFailed: the study has ended, and trials failed. Missing: no such study in this store.
    """
    heartbeats = Heartbeats(store)
    state = state_of(name, store, heartbeats)
    scores = Scores(store, name, state.goal)
    if not once:
        with _display() as show:
            show(page(state, scores, store), state)
            while not state.is_over:
                time.sleep(every_s)
                try:
                    state = state_of(name, store, heartbeats)
                    lines = page(state, scores, store)
                except Outage as error:  # the store may answer again
                    lines = [str(error)]
                show(lines, state)
    if once or sys.stdout.isatty():  # the live page has gone with its block
        print("\n".join(page(state, scores, store)))
    if not once and (failed := state.count("failed")):
        raise SomeFailed(f"{failed} of {state.total} trials of {name} failed", hint=f"python -m sweeps status {name}")


@contextlib.contextmanager
def _display() -> Iterator[Callable[[list[str], StudyState], None]]:
    """How pages are shown: in place on a terminal, else one after the other."""
    if not sys.stdout.isatty():
        shown: dict[str, Mapping[str, str]] = {}

        def printed(lines: list[str], state: StudyState) -> None:
            if shown.get("status") != state.status or state.is_over:
                print("\n".join([*lines, ""]), flush=True)
            shown["status"] = state.status

        yield printed
        return
    from rich.live import Live as Block
    from rich.text import Text

    with Block(Text(""), refresh_per_second=2, transient=True) as block:
        yield lambda lines, state: block.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))


def page(state: StudyState, scores: Scores, store: Store) -> list[str]:
    """The lines: trials, best so far, GPU-hours, drivers, units by node, last failures."""
    counts = ", ".join(f"{state.count(s)} {s}" for s in ("failed", "pruned") if state.count(s))
    lines = [
        f"{state.study}: {state.count('done')} of {state.total} trials done" + (f", {counts}" if counts else "") + f", {state.open} open"
    ]
    best = scores.best(state)
    lines += [f"best {state.goal} {best[0]:.4f}: {best[1]}"] if best else []
    recorded = (*state.alive, *state.over)
    if recorded:
        running = sum(live["gpu_hours"] for live in state.alive)
        lines.append(f"GPU-hours {state.gpu_hours:.2f}" + (f", {running:.2f} of them by what runs now" if running else ""))
    lines += [_driver_line(live) for live in state.alive]
    said = {live["driver"]["driver"] for live in state.alive}
    lines += [f"driver {d['host']} process {d['pid']}: starting" for d in state.working if d["driver"] not in said]
    if not state.working:
        lines.append("no driver runs" + (f"; python -m sweeps run {state.study} goes on" if state.open or not state.is_complete else ""))
    lines += _units(state)
    lines += [f"tried again: {text}" for live in recorded[:3] for text in live["lost"][-MOST_FAILURES:]]
    lines += [f"failed: {label}: {error}" for label, error in last_failures(store, state, MOST_FAILURES)]
    return lines


def _driver_line(live: Live) -> str:
    who = live["driver"]
    parts = [f"driver {who['host']} process {who['pid']}: {live['workers']} workers, {time_text(live['seconds'])}"]
    return ", ".join([*parts, *([live["to_go"]] if live["to_go"] else [])])


def _units(state: StudyState) -> list[str]:
    """Running units below their node; of many units only how many of each stage."""
    nodes: dict[str, list[LiveUnit]] = defaultdict(list)
    for live in state.alive:
        for unit in live["units"]:
            nodes[" ".join(unit["device"].split()[:2]) if "seconds" in unit else NO_PLACE].append(unit)
    lines: list[str] = []
    is_long = sum(map(len, nodes.values())) > MOST_UNITS
    for node in sorted(nodes, key=lambda node: (node == NO_PLACE, node))[:MOST_NODES]:
        units = nodes[node]
        stages = Counter(unit["title"].split()[0] for unit in units)
        lines.append(f"{node or 'this machine'}: " + ", ".join(f"{n} {stage}" for stage, n in stages.items()))
        if not is_long and node != NO_PLACE:
            lines += [_unit_line(unit) for unit in units]
    lines += [f"and {len(nodes) - MOST_NODES} more nodes"] if len(nodes) > MOST_NODES else []
    return lines


def _unit_line(unit: LiveUnit) -> str:
    gpu = " ".join(unit["device"].split()[2:])
    return "  " + "  ".join(filter(None, (unit["title"], gpu, time_text(unit.get("seconds", 0.0)), unit["beside"])))
