"""The detector's training loop: steps of a schedule, resumable at any of them, bit for bit on a CPU."""

from contextlib import ExitStack, closing
from functools import partial

import torch
from torch import Tensor, nn

from configs import WorkError
from pretrain.distributed import data_parallel
from pretrain.interrupt import StopRequest
from pretrain.progress import progress
from pretrain.schedules import warmup_multistep
from transfer.detect.backend import Detector, Step, Training
from transfer.detect.config import SolverConfig
from transfer.iterations import Keeper, resume, save, step_seed

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
    start, before, window = resume(run.out, run.identity, model, optimizer)
    if start >= solver.iterations:
        return before
    model.train()
    trained = data_parallel(model, ranks)
    with ExitStack() as stack:
        title = f"train {config.model.label}"
        bar = stack.enter_context(progress(title, solver.iterations, start)) if ranks.first else None
        keeper = Keeper(run.out, config, solver.iterations, ranks, stop, bar, start, before, window, _CAUSE)
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

            keeper.after(
                iteration + 1,
                rate,
                {"loss": total, **losses},
                model,
                partial(save, run.out, run.identity, model, optimizer, keeper, iteration + 1),
            )
    return keeper.seconds


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
