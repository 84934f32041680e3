"""The detector's training loop: steps of a schedule, resumable at any of them, bit for bit on a CPU."""

import logging
import time
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs import UserError, WorkError
from pretrain.checkpoint import load_state, save_state
from pretrain.distributed import barrier
from pretrain.interrupt import Interrupted, StopRequest
from pretrain.metrics import MetricsLog
from pretrain.progress import progress
from pretrain.schedules import warmup_multistep
from transfer.detect.backend import Detector, Step, Training
from transfer.detect.config import SolverConfig
from transfer.window import Window, save_points

log = logging.getLogger(__name__)

STATE_NAME = "checkpoint.pt"
_CAUSE = "is not finite; the learning rate is too high for this batch, or the warm-up too short"


def train_detector(run: Training, detector: Detector, stop: StopRequest) -> float:
    """Train the detector in place to the end of the schedule, from the state in `out` if there is one.

    A state is saved `config.checkpoints` times over the run, at its end, and on SIGUSR2 or SIGTERM.

    Returns
    -------
    float
        Seconds spent, all attempts together.

    Raises
    ------
    UserError
        `out` holds the state of another run.
    WorkError
        A loss is not finite; the last good state is kept.
    Interrupted
        The run was asked to stop, and its state is saved.
    """
    config, solver, ranks = run.config, run.config.solver, run.ranks
    model, optimizer = detector.model, detector.build_optimizer()
    metrics = MetricsLog(run.out / "metrics.jsonl", run.config.solver.iterations)
    start, before, window = _resume(run, model, optimizer)
    began = time.monotonic()
    if start >= solver.iterations:
        return before
    if ranks.first:
        metrics.rewind(start)
    due = save_points(solver.iterations, config.checkpoints)
    model.train()
    trained: nn.Module = model
    if ranks.world > 1:
        trained = DistributedDataParallel(model, broadcast_buffers=False)

    with ExitStack() as stack:
        title = f"train {config.model.label}"
        bar = stack.enter_context(progress(title, solver.iterations, start)) if ranks.first else None
        # Closed here, or loaders and what else a library has open would outlive an interruption.
        steps = stack.enter_context(closing(detector.steps(start, solver.iterations)))
        for iteration, step in enumerate(steps, start):
            rate = solver.peak_lr * lr_factor(solver, iteration)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(_sampling_seed(config.seed, iteration, ranks.rank))
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=solver.precision == "bf16"):
                losses = _losses(trained, step, iteration)
                total = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()

            done = iteration + 1
            window.note({"loss": total, **losses})
            stopping = stop.requested()
            saving = done in due or stopping
            if saving or done % config.log_every == 0:
                _require_finite(window, model, done)
            if done % config.log_every == 0 or done == solver.iterations:
                row = window.close()
                if ranks.first:
                    metrics.write(done, lr=rate, **row)
                if bar is not None:
                    bar.advance(0, loss=row["loss"])
            if bar is not None:
                bar.advance()
            if saving and ranks.first:
                spent = before + time.monotonic() - began
                _save(run, model, optimizer, done, spent, window)
            if stopping:
                # Launchers end every process as soon as one has left: none may leave before it is saved.
                barrier()
                raise Interrupted(stop.signum)
    return before + time.monotonic() - began


def lr_factor(solver: SolverConfig, iteration: int) -> float:
    """Return the factor on the peak rate at a 0-based iteration."""
    return warmup_multistep(iteration, solver.milestones, solver.gamma, solver.warmup, solver.warmup_factor)


def _losses(model: nn.Module, step: Step, iteration: int) -> dict[str, Tensor]:
    try:
        losses: dict[str, Tensor] = model(*step)
    except FloatingPointError as error:
        # Detectron2 looks at its proposals before there is a loss.
        raise WorkError(f"iteration {iteration + 1}: {error} (something {_CAUSE})") from None
    return losses


def _require_finite(window: Window, model: nn.Module, iteration: int) -> None:
    """Raise before a state that has lost its way is saved over a good one."""
    bad = [name for name, value in window.numbers().items() if not np.isfinite(value)]
    bad += [name for name, p in model.named_parameters() if not torch.isfinite(p).all()][:1]
    if bad:
        raise WorkError(f"iteration {iteration}: {', '.join(bad)} {_CAUSE}")


def _resume(run: Training, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, Window]:
    state = load_state(run.out / STATE_NAME)
    if state is None:
        return 0, 0.0, Window()
    if state["identity"] != run.identity:
        raise UserError(
            f"{run.out}: holds the training state of another recipe, seed or checkpoint;"
            " choose another directory"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: resumed at iteration %d", run.out, state["iteration"])
    return state["iteration"], state["seconds"], Window(state["window"], state["window_count"])


def _save(
    run: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    seconds: float,
    window: Window,
) -> None:
    state: dict[str, Any] = {
        "identity": run.identity,
        "iteration": iteration,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "window": window.numbers(),
        "window_count": window.count,
    }
    save_state(run.out / STATE_NAME, state)


def _sampling_seed(seed: int, iteration: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> 1)
