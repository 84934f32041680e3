"""The training loop: resumable at any step, with logs, checkpoints and an orderly stop on a signal."""

import logging
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from carryover.configs import WorkError
from carryover.configs.files import write_atomic
from carryover.core.formats.claims import Work
from carryover.core.formats.metrics_log import METRICS_NAME, read_metrics
from carryover.core.formats.state import STATE_NAME, load_state, save_state
from carryover.core.training.allocation import freed_memory_kept
from carryover.core.training.distributed import Ranks, barrier
from carryover.core.training.interrupt import Interrupted, StopRequest
from carryover.core.training.journal import Journal
from carryover.core.training.progress import progress
from carryover.core.training.window import Window

log = logging.getLogger(__name__)

Numbers = Mapping[str, Tensor]
"""Scalars on the device, of one step on one rank; what is minimized is "loss"."""


class Trainee(Protocol):
    """Trainee of a loop: the source of its batches, one step, the content of its state."""

    def begin(self, step: int) -> None:
        """Get ready to go on after `step` steps; the state is loaded."""
        ...

    def batches(self, step: int) -> Generator[Any, None, None]:
        """Yield the batches of the steps from `step` (0-based) on; closed when the loop is left."""
        ...

    def step(self, batch: Any, step: int) -> Numbers:
        """Take one step (0-based) and return its numbers; nothing need wait for the device."""
        ...

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Return what a line of the log says besides the means of the numbers, after `step` steps.

        Called on every rank. Raises WorkError to end a training that has lost its way.
        """
        ...

    def require_finite(self, step: int) -> None:
        """Raise WorkError rather than let a state that is not finite be saved over a good one."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what `load` needs: tensors and plain containers. Called on every rank."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a state, of this release or (with the keys of then) of version 1."""
        ...


@dataclass(frozen=True)
class Plan:
    """Length of a training, and its logging and saving intervals.

    Attributes
    ----------
    title
        What the progress line calls it.
    end
        Steps of this part of the training.
    reports, saves
        Whether a line of metrics.jsonl is written, or a state saved, after so many steps.
    images_per_step
        Over all ranks.
    out
        Where state and log lie, if not in the directory that the work was claimed in.
    start
        A state to begin from, left by the part before; the directory's own goes before it.
    log_pace
        Whether lines say images per second and the time waited for images: without, two logs are equal.
    looks, look
        After how many steps held-out images are looked at, and what returns the numbers for the log; called
        on every rank, and to leave the training as it was.
    cause
        What most likely made a loss infinite; ends the message.
    falls
        Whether a loss that ends above where it began is warned of: no method's is known to rise that learns
        from labels.
    """

    title: str
    end: int
    reports: Callable[[int], bool]
    saves: Callable[[int], bool]
    images_per_step: int
    out: Path | None = None
    start: Path | None = None
    tensorboard: bool = False
    log_pace: bool = True
    looks: frozenset[int] = frozenset()
    look: Callable[[], Mapping[str, float]] | None = None
    cause: str = "stopped, and the last good checkpoint is kept"
    falls: bool = False


def train(work: Work, plan: Plan, trainee: Trainee, ranks: Ranks, stop: StopRequest) -> float:
    """Take every step not yet taken; return the seconds spent, all attempts together.

    Every rank calls this. A training that is interrupted and called again ends with the same weights and the
    same log, bit for bit on a CPU, as one that never stopped.

    Raises
    ------
    UserError
        The state in `work.out` is of other work.
    WorkError
        A loss or weight that is not finite, with the last good state kept.
    Interrupted
        A rank was asked to stop; the state is saved.
    """
    out = plan.out or work.out
    history = _History(work, out, trainee, ranks)
    step, window = history.restore(plan)
    if step >= plan.end:
        return history.seconds()
    trainee.begin(step)
    with ExitStack() as stack:
        stack.enter_context(freed_memory_kept(ranks.device))
        journal = None
        if ranks.first:
            journal = stack.enter_context(Journal(out, step, plan.tensorboard, plan.end))
        bar = stack.enter_context(progress(plan.title, plan.end, step, ranks.first))
        # Closed here, or loaders' processes and what else a library has open would outlive an interruption.
        batches = stack.enter_context(closing(trainee.batches(step)))
        for batch in batches:
            window.batch_arrived()
            window.step_taken(trainee.step(batch, step))
            step += 1
            after_step(step)
            looking = plan.look is not None and step in plan.looks
            saving = plan.saves(step) or step == plan.end
            reporting = plan.reports(step) or step == plan.end or looking
            leaving = stop.requested() and step < plan.end
            shown: dict[str, float | str] = {}
            if saving or leaving:
                window.require_finite(step)
                trainee.require_finite(step)
            if reporting:
                means, pace = window.close(step)
                numbers = means | (pace if plan.log_pace else {}) | trainee.describe(step, means)
                if looking and plan.look is not None:
                    numbers |= plan.look()
                if journal is not None:
                    journal.write(step, numbers)
                shown = _shown(means | pace)
                window = Window(plan.images_per_step, plan.cause)
            if saving or leaving:
                history.save(step, window)
            if leaving:
                if ranks.first:
                    log.warning(
                        "%s: stopped by %s after step %d of %d; the state is saved, and the same command"
                        " resumes from there",
                        out,
                        signal.Signals(stop.signum).name,
                        step,
                        plan.end,
                    )
                raise Interrupted(stop.signum)
            bar.advance(1, **shown)
            if step >= plan.end:
                break
    if plan.falls and ranks.first:
        _warn_of_rise(out)
    return history.seconds()


def _warn_of_rise(out: Path) -> None:
    losses = [row["loss"] for row in read_metrics(out / METRICS_NAME) if row.get("loss") is not None]
    if losses and losses[-1] > losses[0]:
        log.warning(
            "%s: the loss ended at %.4g, above the %.4g that it began with: the learning rate may be too high"
            " for these features",
            out,
            losses[-1],
            losses[0],
        )


def after_step(step: int) -> None:
    """Do nothing: the place where tests interrupt a training, after `step` steps of this process's loop."""


def epochs(loader: Any, step: int) -> Generator[Any, None, None]:
    """Yield a loader's batches from a step (0-based) on, epoch after epoch without end."""
    while True:
        epoch, begun = divmod(step, loader.steps_per_epoch)
        for batch in loader.epoch(epoch, begun):
            yield batch
            step += 1


def evenly(total: int, times: int) -> frozenset[int]:
    """Return after which steps something is done so many times, evenly, the last one at the end.

    After the last step in any case.
    """
    return frozenset(round(total * (i + 1) / times) for i in range(times)) | {total}


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return what seeds torch at a step, so that a resumed run draws (samples, drops) the same."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def require_finite(named: Mapping[str, Tensor], step: int) -> None:
    """Raise WorkError naming the first tensor that has values which are not finite."""
    floating = {name: value for name, value in named.items() if value.is_floating_point()}
    if not floating:
        return
    # All of them are looked at before the host waits for the answer.
    finite = torch.stack([torch.isfinite(value).all() for value in floating.values()]).tolist()
    for name, is_finite in zip(floating, finite, strict=True):
        if not is_finite:
            raise WorkError(
                f"'{name}' has values that are not finite after step {step}; stopped, and the last good state"
                " is kept"
            )


class _History:
    """State that outlives the process: the checkpoint to resume from, and the time spent."""

    def __init__(self, work: Work, out: Path, trainee: Trainee, ranks: Ranks) -> None:
        self._work, self._out, self._trainee, self._ranks = work, out, trainee, ranks
        self._path = out / STATE_NAME
        self._before = 0.0
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Return the wall seconds of this training, those before interruptions included."""
        return self._before + time.monotonic() - self._began

    def restore(self, plan: Plan) -> tuple[int, Window]:
        """Load the newest whole state; return the steps behind it, and the open line of the log."""
        window = Window(plan.images_per_step, plan.cause)
        state, path, work = load_state(self._path), self._path, self._work
        if state is None and plan.start is not None:
            state, path = load_state(plan.start), plan.start
            work = replace(work, out=path.parent)
            if state is None:
                raise WorkError(f"{path}: no complete state to resume from")
            log_there = path.with_name(METRICS_NAME)
            if self._ranks.first and log_there.exists():
                write_atomic(self._out / METRICS_NAME, log_there.read_text(encoding="utf-8"))
        if state is None:
            return 0, window
        work.require(path, state.get("identity", state.get("recipe_hash")))
        self._trainee.load(state)
        self._before = state["seconds"]
        step = int(state["step"] if "step" in state else state["iteration"])
        log.info("%s: resuming after step %d", self._out, step)
        window.load(state, self._ranks.device)
        return step, window

    def save(self, step: int, window: Window) -> None:
        """Save the state after `step` steps; every rank leaves when the file is there."""
        # Gathered by every rank (a sharded bank), though only the first one writes.
        own = self._trainee.state()
        if self._ranks.first:
            kept = {
                "identity": self._work.identity.to_json(),
                "step": step,
                "seconds": self.seconds(),
                "window": window.state(),
            }
            save_state(self._path, kept | own)
        # Launchers end every process as soon as one has left: none may leave before it is saved.
        barrier()


def _shown(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Pick what the progress line says of a line of the log."""
    return {
        "loss": numbers["loss"],
        "images/s": numbers["images_per_second"],
        "waited for images": f"{numbers['loader_wait']:.0%} of the time",
    }
