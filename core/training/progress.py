"""Progress for people: a bar on a terminal, a sparse line in a log file."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """Progress of a loop; `numbers` are shown beside the bar."""

    def __init__(
        self, description: str, total: int, done: int, display: Progress | None, shown: bool = True
    ) -> None:
        self._description, self._total, self._display = description, total, display
        self._before, self._done, self._shown = done, done, shown
        self._said = self._started = time.monotonic()
        self._task: TaskID | None = None
        if display is not None:
            self._task = display.add_task(description, total=total, completed=done, numbers="")

    def advance(self, steps: int = 1, **numbers: float | str) -> None:
        """Count `steps` more as done."""
        self._done += steps
        if not self._shown:
            return
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
        if self._display is not None and self._task is not None:
            if numbers:
                self._display.update(self._task, advance=steps, numbers=text)
            else:
                self._display.update(self._task, advance=steps)
            return
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._said = now
            rate = (self._done - self._before) / max(now - self._started, 1e-9)
            log.info("%s: %d/%d (%.2f/s) %s", self._description, self._done, self._total, rate, text)


@contextmanager
def progress(description: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Bar]:
    """Show work of `total` steps, of which `done` were done before (a resumed run).

    A redirected output gets no bar, but a line every half minute. Ranks other than 0 are not `shown`: nothing
    comes of what they count.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield Bar(description, total, done, None, shown)
        return
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", style="dim"),
        console=console,
        refresh_per_second=4,
    )
    with display:
        yield Bar(description, total, done, display)
