"""The detector's training: its losses and its schedule; resumable at any step, bit for bit on a CPU."""

import torch
from torch import Tensor, nn

from carryover.configs import WorkError
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.iterations import train_iterations
from carryover.core.training.schedules import warmup_multistep
from carryover.transfer.tasks.detection.config import SolverConfig
from carryover.transfer.tasks.detection.model import Detector, Step, Training

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
    config, solver = run.config, run.config.solver

    def losses_of(model: nn.Module, step: Step, iteration: int) -> dict[str, Tensor]:
        with torch.autocast(run.ranks.device.type, torch.bfloat16, enabled=solver.precision == "bf16"):
            losses = _losses(model, step, iteration)
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    return train_iterations(
        run,
        detector.model,
        detector.build_optimizer(),
        stop,
        f"train {config.model.label}",
        solver.iterations,
        solver.ims_per_batch,
        lambda start: detector.steps(start, solver.iterations),
        losses_of,
        lambda iteration: solver.peak_lr * lr_factor(solver, iteration),
        _CAUSE,
    )


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
