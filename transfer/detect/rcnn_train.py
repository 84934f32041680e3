"""The detector's training loop: steps of a schedule, resumable at any of them, bit for bit on a CPU."""

import time
from contextlib import ExitStack, closing

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs import WorkError
from pretrain.distributed import barrier
from pretrain.interrupt import Interrupted, StopRequest
from pretrain.metrics import MetricsLog
from pretrain.progress import progress
from pretrain.schedules import warmup_multistep
from transfer.detect.backend import Detector, Step, Training
from transfer.detect.config import SolverConfig
from transfer.iterations import require_finite, resume, save, save_points, step_seed

_CAUSE = "the learning rate is too high for this batch, or the warm-up too short"


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
    start, before, window = resume(run.out, run.identity, model, optimizer)
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
            torch.manual_seed(step_seed(config.seed, iteration, ranks.rank))
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
                require_finite(window, model, done, _CAUSE)
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
                save(run.out, run.identity, model, optimizer, done, spent, window)
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
        raise WorkError(f"iteration {iteration + 1}: {error} (something is not finite; {_CAUSE})") from None
    return losses
