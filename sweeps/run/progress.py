"""Progress of a sweep on stderr: a live display on a terminal, plain lines elsewhere; and a watchdog that reports why
nothing happens.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from sweeps.run.callbacks import Observer
    from sweeps.run.gc import Budget

PLAIN_EVERY_S = 10.0
QUIET_S = 60.0  # without an event for so long, the watchdog reports why
SILENT_S = 600.0  # a running unit that has reported nothing for so long is named, and again after as long


class SweepProgress:
    """Done, running and failed; the current jobs; the best so far; when it ends; why it waits.

    Args:
        title: of the block. total: jobs (`noun`: or trials) to do. total_seconds: estimate of the whole by past
            timings, 0 if unknown.
        stages: how many of the jobs are of which stage; a training takes minutes and a sampling seconds.
        workers: that share the work. why: one sentence when nothing moves, or an empty one. why_idle: what the
            cluster lacks.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        total_seconds: float = 0.0,
        workers: int = 1,
        why: Callable[[], str] = lambda: "",
        higher_is_better: bool = True,
        goal: str = "boundary_iou",
        quiet_s: float = QUIET_S,
        why_idle: Callable[[], str] | None = None,
        noun: str = "jobs",
        stages: Mapping[str, int] | None = None,
    ):
        self.title, self.total, self.total_seconds, self.workers, self.why = title, total, total_seconds, workers, why
        self.higher_is_better, self.goal, self.quiet_s = higher_is_better, goal, quiet_s
        self.noun = noun
        self.stages = dict(stages or {})
        self.why_idle = why_idle or (lambda: "")
        self.stream = sys.stderr  # as it is now: a job of this process sends its own to a log
        self.is_terminal = self.stream.isatty()
        self.started = self.last_event = time.monotonic()
        self.last_plain = 0.0
        self.done = self.failed = self.pruned = 0
        self.finished: Counter[str] = Counter()  # by stage
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.running: dict[str, str] = {}  # unit -> its title
        self.beside: dict[str, str] = {}  # unit -> what it reports
        self.heard: dict[str, float] = {}  # unit -> when it has reported last, or was named as silent
        self.best: tuple[float, str] | None = None
        self.observers: list[Observer] = []
        self.budget: Budget | None = None
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._live: Live | None = None

    # ---- events ------------------------------------------------------------------------------------------------------

    def start(self, unit: str, title: str) -> None:
        """A unit has started."""
        with self._lock:
            self.running[unit] = title
            self.last_event = self.heard[unit] = time.monotonic()
        self._plain(force=False)

    def report(self, unit: str, values: Mapping[str, object]) -> None:
        """A running unit reports values; observers receive them too."""
        values = dict(values)
        for observer in self.observers:
            observer.report(unit, self.running.get(unit, unit), values)
        done, total = values.pop("done", None), values.pop("total", None)
        shown = [f"{done}/{total}"] if done is not None and total is not None else []
        shown += [f"{k} {_short(v)}" for k, v in values.items() if k in ("loss", "images_per_s", "eta_s", "step")]
        with self._lock:
            self.beside[unit] = " ".join(shown)
            self.last_event = self.heard[unit] = time.monotonic()
        self._plain(force=False)

    def finish(self, status: str, seconds: float, label: str = "", score: float | None = None, stage: str = "") -> None:
        """One job has ended."""
        with self._lock:
            self.last_event = time.monotonic()
            self.done += status == "done"
            self.failed += status == "failed"
            self.pruned += status == "pruned"
            self.finished[stage] += 1
            self.seconds[stage] += seconds
            if score is not None and (self.best is None or (score > self.best[0]) == self.higher_is_better):
                self.best = (score, label)
        self._plain(force=False)

    def leave(self, unit: str) -> None:
        """A unit has ended."""
        with self._lock:
            self.running.pop(unit, None)
            self.beside.pop(unit, None)
            self.heard.pop(unit, None)
            self.last_event = time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    # ---- display -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> SweepProgress:
        if self.is_terminal:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(get_renderable=self._block, console=Console(file=self.stream), refresh_per_second=2, transient=True)
            self._live.start()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for observer in self.observers:
            observer.close()
        if self._live is not None:
            self._live.stop()
        print(self.summary(), file=self.stream, flush=True)

    def to_go(self) -> str:
        """By past timings where there are some, else by what the finished jobs of each stage took, else by the share
        of what is done.
        """
        spent = sum(self.seconds.values())
        finished = self.done + self.failed + self.pruned
        word = "about"
        if spent < self.total_seconds:
            left = (self.total_seconds - spent) / max(1, self.workers)
        elif self.stages:
            open_jobs = {stage: n - self.finished[stage] for stage, n in self.stages.items() if n > self.finished[stage]}
            left = sum(n * self.seconds[s] / self.finished[s] for s, n in open_jobs.items() if self.finished[s]) / max(1, self.workers)
            if not all(self.finished[s] for s in open_jobs):
                word = "at least"  # of the other stages none has come to its end
        elif finished:
            left = (time.monotonic() - self.started) / finished * (self.total - finished)
        else:
            return ""
        return f"{word} {time_text(left)} to go" if left else ""

    def summary(self) -> str:
        """Counts, elapsed and remaining time, and the best score, in one line."""
        waiting = max(0, self.total - self.done - self.failed - self.pruned - len(self.running))
        counts = f"{self.done} of {self.total} {self.noun} done, {len(self.running)} running, {waiting} waiting, {self.failed} failed"
        counts += f", {self.pruned} pruned" if self.pruned else ""
        parts = [f"{self.title}: {counts}"]
        parts.append(f"{time_text(time.monotonic() - self.started)} elapsed")
        if waiting + len(self.running) and (to_go := self.to_go()):
            parts.append(to_go)
        if self.best is not None:
            parts.append(f"best {self.goal} {self.best[0]:.4f} ({self.best[1]})")
        return ", ".join(parts)

    def _block(self) -> Text:
        from rich.text import Text

        with self._lock:
            lines = [self.summary()]
            lines += [f"  {title}  {self.beside.get(unit, '')}".rstrip() for unit, title in list(self.running.items())[:6]]
            if len(self.running) > 6:
                lines.append(f"  and {len(self.running) - 6} more")
        why = self.why()
        return Text("\n".join([*lines, *([f"  {why}"] if why else [])]))

    def _plain(self, force: bool) -> None:
        if self._live is not None or self._end.is_set():
            return
        now = time.monotonic()
        if force or now - self.last_plain >= PLAIN_EVERY_S:
            self.last_plain = now
            with self._lock:
                running = "; ".join(f"{t} {self.beside.get(u, '')}".strip() for u, t in list(self.running.items())[:4])
            print(f"{self.summary()}" + (f" [{running}]" if running else ""), file=self.stream, flush=True)

    def silent(self) -> list[str]:
        """Titles of running units that have reported nothing for `SILENT_S`, each once in that time: one that hangs
        does not hide behind others that move.
        """
        now, found = time.monotonic(), []
        with self._lock:
            for unit, at in self.heard.items():
                if now - at >= SILENT_S and unit in self.running:
                    self.heard[unit] = now
                    found.append(self.running[unit])
        return found

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self.quiet_s / 4)):
            if hung := self.silent():
                self.say(f"no report for {SILENT_S / 60:.0f} min from: {', '.join(hung)}")
            quiet = time.monotonic() - self.last_event
            if quiet >= self.quiet_s:
                silent = "jobs without a report: " + ", ".join(self.running.values()) if self.running else "no job runs here"
                reason = self.why() or "; ".join(filter(None, (silent, self.why_idle())))
                self.say(f"nothing has moved for {quiet:.0f} s: {reason}")
                with self._lock:
                    self.last_event = time.monotonic()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def time_text(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 5 min`."""
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h {seconds % 3600 // 60} min"
