"""One process a GPU of this machine, started with Detectron2's `launch`, that together run one evaluation."""

import logging
import multiprocessing
import os
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from carryover.configs import CarryoverError, WorkError
from carryover.core.training.distributed import rank
from carryover.core.training.interrupt import SIGNALS, Interrupted, StopRequest
from carryover.transfer.results.record import RECORD_NAME, ResultRecord, load_record
from carryover.transfer.tasks.detection.config import DetectionConfig

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue


def evaluate_in_processes(
    processes: int, config: DetectionConfig, checkpoint: Path, out: Path
) -> ResultRecord:
    """Evaluate in `processes` processes of this machine; return what they recorded.

    A signal to stop is passed on to all of them. Raises what they raise: UserError, WorkError, Interrupted.
    """
    from detectron2.engine import launch

    context: SpawnContext = multiprocessing.get_context("spawn")
    refusals: SimpleQueue[CarryoverError] = context.SimpleQueue()
    arguments = (config, checkpoint, out, logging.getLogger().level, refusals)
    with _PassedOn() as stop:
        try:
            launch(_evaluate, processes, dist_url="auto", args=arguments)
        except (ProcessRaisedException, ProcessExitedException) as error:
            if not refusals.empty():
                raise refusals.get() from None
            # Stopped itself after saving, or was hit before it could listen for the signal.
            if signum := stop.signum or _stopped_by(error):
                raise Interrupted(signum) from None
            raise WorkError(f"one of {processes} processes failed: {error}") from error
    return load_record(out / RECORD_NAME)


def _evaluate(
    config: DetectionConfig, checkpoint: Path, out: Path, level: int, refusals: "SimpleQueue[CarryoverError]"
) -> None:
    from carryover.transfer.tasks.evaluate import evaluate

    logging.basicConfig(level=level if rank() == 0 else logging.WARNING, format="%(message)s")
    try:
        evaluate(config, checkpoint, out)
    except CarryoverError as error:
        refusals.put(error)
        raise


def _stopped_by(error: ProcessRaisedException | ProcessExitedException) -> int:
    status = error.exit_code if isinstance(error, ProcessExitedException) else 0
    return next((number for number in SIGNALS if status == 128 + number), 0)


class _PassedOn(StopRequest):
    """Passes a signal to stop on to the processes that do the work; they save, and say so by leaving."""

    def _note(self, signum: int, frame: FrameType | None) -> None:
        super()._note(signum, frame)
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, signum)
