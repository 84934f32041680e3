"""The segmenter's training: its losses and its schedule; resumable at any step, bit for bit on a CPU."""

from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor, nn

from carryover.core.data.steps import step_loader
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.iterations import train_iterations
from carryover.transfer.tasks.segmentation.config import SolverConfig
from carryover.transfer.tasks.segmentation.data import Steps, TrainingImages
from carryover.transfer.tasks.segmentation.model import Training
from carryover.transfer.tasks.segmentation.model_config import FCNConfig
from carryover.transfer.tasks.segmentation.torchvision.model import batch_of, losses
from carryover.transfer.tasks.segmentation.transforms import Example

CAUSE = "the learning rate is too high for this batch"


def train_segmenter(run: Training, model: nn.Module, stop: StopRequest) -> float:
    """Train `model` in place; see `backend.Segmenter.train`."""
    config, solver, ranks = run.config, run.config.solver, run.ranks
    model_config = config.model
    assert isinstance(model_config, FCNConfig)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=solver.peak_lr, momentum=solver.momentum, weight_decay=solver.weight_decay
    )
    images = TrainingImages(run.dataset, config.input, config.seed)

    def steps_from(start: int) -> Generator[list[Example], None, None]:
        size, stop_at = solver.ims_per_batch, solver.iterations
        steps = Steps(len(run.dataset.images), size, config.seed, start, stop_at, ranks.rank, ranks.world)
        yield from step_loader(images, steps, config.workers)

    def losses_of(trained: nn.Module, examples: list[Example], iteration: int) -> dict[str, Tensor]:
        pixels, labels = batch_of(examples, config.input, ranks.device)
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=solver.precision == "bf16"):
            logits = trained(pixels)
        parts = losses(logits, labels, model_config)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    title, rate_at = f"train {model_config.label}", partial(lr_at, solver)
    return train_iterations(
        run,
        model,
        optimizer,
        stop,
        title,
        solver.iterations,
        solver.ims_per_batch,
        steps_from,
        losses_of,
        rate_at,
        CAUSE,
    )


def lr_at(solver: SolverConfig, iteration: int) -> float:
    """Return the rate of a 0-based iteration: polynomial, `final_lr` at the last one (mmengine's PolyLR)."""
    left = 1 - iteration / max(1, solver.iterations - 1)
    return solver.final_lr + (solver.peak_lr - solver.final_lr) * left**solver.power
