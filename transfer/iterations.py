"""What trainings that count iterations share: the log's window, when and what to save, how to go on."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from configs import UserError, WorkError
from pretrain.checkpoint import load_state, save_state
from pretrain.distributed import Ranks, barrier
from pretrain.interrupt import Interrupted, StopRequest
from pretrain.metrics import MetricsLog
from pretrain.progress import Bar

log = logging.getLogger(__name__)

STATE_NAME: Final = "checkpoint.pt"


class Window:
    """The numbers of the iterations since the last line of metrics.jsonl.

    They are part of a run's state, so that a resumed run's log is that of a run which never stopped.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self.count = count
        self.sums: dict[str, Tensor | float] = defaultdict(float, sums or {})

    def note(self, numbers: Mapping[str, Tensor]) -> None:
        """Add one iteration's; nothing waits for the device."""
        self.count += 1
        for name, value in numbers.items():
            self.sums[name] = self.sums[name] + value.detach()

    def numbers(self) -> dict[str, float]:
        """The sums so far."""
        return {name: float(value) for name, value in self.sums.items()}

    def close(self) -> dict[str, float]:
        """Return the means, and start anew."""
        means = {name: value / self.count for name, value in self.numbers().items()}
        self.sums.clear()
        self.count = 0
        return means


class Pace(Protocol):
    """How often a recipe wants its training saved (times in all) and logged (iterations)."""

    @property
    def checkpoints(self) -> int: ...

    @property
    def log_every(self) -> int: ...


class Keeper:
    """What happens after each iteration: it is logged and checked, saved when that is due, and left if asked.

    `window` and `before` (seconds) are what the attempts before this one left, `start` their iterations;
    `cause` is what most likely made a loss infinite.
    """

    def __init__(
        self,
        out: Path,
        pace: Pace,
        iterations: int,
        ranks: Ranks,
        stop: StopRequest,
        bar: Bar | None,
        start: int,
        before: float,
        window: Window,
        cause: str,
    ) -> None:
        self.iterations, self.log_every, self.ranks = iterations, pace.log_every, ranks
        self.stop, self.bar, self.window, self.cause = stop, bar, window, cause
        self.due = save_points(iterations, pace.checkpoints)
        self.metrics = MetricsLog(out / "metrics.jsonl", iterations)
        if ranks.first:
            self.metrics.rewind(start)
        self._before, self._began = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent, all attempts together."""
        return self._before + time.monotonic() - self._began

    def after(
        self, done: int, rate: float, losses: Mapping[str, Tensor], model: nn.Module, save: Callable[[], None]
    ) -> None:
        """Look after the iteration that made `done` of them; `save` is called on the first rank only.

        Raises WorkError for a loss or weight that is not finite, with the last good state kept, and
        Interrupted when a rank was asked to stop, after the state is saved.
        """
        self.window.note(losses)
        stopping = self.stop.requested()
        saving = done in self.due or stopping
        logging_now = done % self.log_every == 0
        if saving or logging_now:
            require_finite(self.window, model, done, self.cause)
        if logging_now or done == self.iterations:
            row = self.window.close()
            if self.ranks.first:
                self.metrics.write(done, lr=rate, **row)
            if self.bar is not None:
                self.bar.advance(0, loss=row["loss"])
        if self.bar is not None:
            self.bar.advance()
        if saving and self.ranks.first:
            save()
        if stopping:
            # Launchers end every process as soon as one has left: none may leave before it is saved.
            barrier()
            raise Interrupted(self.stop.signum)


def save_points(iterations: int, checkpoints: int) -> frozenset[int]:
    """Return after which iterations the state is saved: so many times, evenly, and at the end."""
    return frozenset(round(iterations * (i + 1) / checkpoints) for i in range(checkpoints)) | {iterations}


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Return what seeds torch at an iteration, so that a resumed run draws (samples, drops) the same."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> 1)


def require_finite(window: Window, model: nn.Module, iteration: int, cause: str) -> None:
    """Raise WorkError before a state that has lost its way is saved over a good one.

    `cause` ends the message "... is not finite; ".
    """
    bad = [name for name, value in window.numbers().items() if not np.isfinite(value)]
    bad += [name for name, p in model.named_parameters() if not torch.isfinite(p).all()][:1]
    if bad:
        raise WorkError(f"iteration {iteration}: {', '.join(bad)} is not finite; {cause}")


def resume(
    out: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, Window]:
    """Load the state in `out`, if there is one: iterations done, seconds spent, the open window.

    Raises UserError for the state of a run with another identity.
    """
    state = load_state(out / STATE_NAME)
    if state is None:
        return 0, 0.0, Window()
    if state["identity"] != identity:
        raise UserError(
            f"{out}: holds the training state of another recipe, seed or checkpoint; choose another directory"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: resumed at iteration %d", out, state["iteration"])
    return state["iteration"], state["seconds"], Window(state["window"], state["window_count"])


def save(
    out: Path,
    identity: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keeper: Keeper,
    iteration: int,
) -> None:
    """Save what `resume` needs, atomically; the state before it is kept."""
    state: dict[str, Any] = {
        "identity": identity,
        "iteration": iteration,
        "seconds": keeper.seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "window": keeper.window.numbers(),
        "window_count": keeper.window.count,
    }
    save_state(out / STATE_NAME, state)
