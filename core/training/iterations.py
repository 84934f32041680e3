"""What trainings that count iterations share: the loop, its log, when and what to save, how to go on."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from carryover.configs import WorkError
from carryover.core.formats.claims import Work
from carryover.core.formats.metrics_log import MetricsLog
from carryover.core.formats.state import load_state, save_state
from carryover.core.training.distributed import Ranks, barrier, data_parallel
from carryover.core.training.interrupt import Interrupted, StopRequest
from carryover.core.training.progress import Bar, progress

log = logging.getLogger(__name__)

STATE_NAME: Final = "checkpoint.pt"
S = TypeVar("S")


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
    """A recipe's seed, and how often its training is saved (times in all) and logged (iterations)."""

    @property
    def seed(self) -> int: ...

    @property
    def checkpoints(self) -> int: ...

    @property
    def log_every(self) -> int: ...


class Run(Protocol):
    """One training: its recipe, where its state is kept, its ranks, and the work that it is."""

    @property
    def config(self) -> Pace: ...

    @property
    def out(self) -> Path: ...

    @property
    def ranks(self) -> Ranks: ...

    @property
    def work(self) -> Work: ...


class Keeper:
    """What happens after each iteration: it is logged and checked, saved when that is due, and left if asked.

    `window` and `before` (seconds) are what the attempts before this one left, `start` their iterations;
    `cause` is what most likely made a loss infinite.
    """

    def __init__(
        self,
        run: Run,
        iterations: int,
        stop: StopRequest,
        bar: Bar,
        start: int,
        before: float,
        window: Window,
        cause: str,
    ) -> None:
        self.iterations, self.log_every, self.ranks = iterations, run.config.log_every, run.ranks
        self.stop, self.bar, self.window, self.cause = stop, bar, window, cause
        self.due = save_points(iterations, run.config.checkpoints)
        self.metrics = MetricsLog(run.out / "metrics.jsonl", iterations)
        if self.ranks.first:
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
            self.bar.advance(0, loss=row["loss"])
        self.bar.advance()
        if saving and self.ranks.first:
            save()
        if stopping:
            # Launchers end every process as soon as one has left: none may leave before it is saved.
            barrier()
            raise Interrupted(self.stop.signum)


def train(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stop: StopRequest,
    title: str,
    iterations: int,
    steps_from: Callable[[int], Generator[S, None, None]],
    losses_of: Callable[[nn.Module, S, int], dict[str, Tensor]],
    rate_at: Callable[[int], float],
    cause: str,
) -> float:
    """Train `model` in place to the end of its schedule, from the state in `run.out` if there is one.

    Parameters
    ----------
    steps_from
        Yields the steps from a 0-based iteration on; closed when the training ends or is left.
    losses_of
        The losses of a step, by the model (as the ranks share it), the step and its 0-based iteration; their
        sum, which is what is minimised, is "loss".
    rate_at
        The learning rate of a 0-based iteration.

    Returns
    -------
    float
        Seconds spent, all attempts together.

    Raises UserError for the state of another run, and what `Keeper.after` does.
    """
    start, before, window = resume(run, model, optimizer)
    if start >= iterations:
        return before
    model.train()
    trained = data_parallel(model, run.ranks)
    with ExitStack() as stack:
        bar = stack.enter_context(progress(title, iterations, start, run.ranks.first))
        keeper = Keeper(run, iterations, stop, bar, start, before, window, cause)
        # Closed here, or loaders' processes and what else a library has open would outlive an interruption.
        steps = stack.enter_context(closing(steps_from(start)))
        for iteration, step in enumerate(steps, start):
            rate = rate_at(iteration)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(step_seed(run.config.seed, iteration, run.ranks.rank))
            losses = losses_of(trained, step, iteration)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
            done = iteration + 1
            keeper.after(done, rate, losses, model, partial(_save, run, model, optimizer, keeper, done))
    return keeper.seconds


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


def resume(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, Window]:
    """Load the run's state, if there is one: iterations done, seconds spent, the open window.

    Raises UserError for the state of a run with another identity.
    """
    state = load_state(run.out / STATE_NAME)
    if state is None:
        return 0, 0.0, Window()
    run.work.require(run.out / STATE_NAME, state["identity"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: resumed at iteration %d", run.out, state["iteration"])
    return state["iteration"], state["seconds"], Window(state["window"], state["window_count"])


def _save(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, keeper: Keeper, iteration: int
) -> None:
    """Save what `resume` needs, atomically; the state before it is kept."""
    state: dict[str, Any] = {
        "identity": run.work.identity.to_json(),
        "iteration": iteration,
        "seconds": keeper.seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "window": keeper.window.numbers(),
        "window_count": keeper.window.count,
    }
    save_state(run.out / STATE_NAME, state)
