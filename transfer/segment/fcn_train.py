"""The segmenter's training loop: steps of a schedule, resumable at any of them, bit for bit on a CPU."""

from contextlib import ExitStack, closing
from functools import partial

import torch
from torch import nn

from pretrain.distributed import data_parallel
from pretrain.interrupt import StopRequest
from pretrain.progress import progress
from transfer.draws import step_loader
from transfer.iterations import Keeper, resume, save, step_seed
from transfer.segment.backend import Training
from transfer.segment.batches import Steps, TrainingImages
from transfer.segment.config import SolverConfig
from transfer.segment.fcn_model import batch_of, losses
from transfer.segment.model_config import FCNConfig

CAUSE = "the learning rate is too high for this batch"


def train_segmenter(run: Training, model: nn.Module, stop: StopRequest) -> float:
    """Train `model` in place; see `backend.Segmenter.train`."""
    config, solver, ranks = run.config, run.config.solver, run.ranks
    assert isinstance(config.model, FCNConfig)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=solver.peak_lr, momentum=solver.momentum, weight_decay=solver.weight_decay
    )
    start, before, window = resume(run.out, run.identity, model, optimizer)
    if start >= solver.iterations:
        return before
    model.train()
    trained = data_parallel(model, ranks)
    images = TrainingImages(run.dataset, config.input, config.seed)
    steps = Steps(
        len(images.dataset.images),
        solver.ims_per_batch,
        config.seed,
        start,
        solver.iterations,
        ranks.rank,
        ranks.world,
    )
    with ExitStack() as stack:
        title = f"train {config.model.label}"
        bar = stack.enter_context(progress(title, solver.iterations, start)) if ranks.first else None
        keeper = Keeper(run.out, config, solver.iterations, ranks, stop, bar, start, before, window, CAUSE)
        # Closed here, or the loaders' processes would outlive an interruption.
        loaded = (examples for examples in step_loader(images, steps, config.workers))
        for iteration, examples in enumerate(stack.enter_context(closing(loaded)), start):
            rate = lr_at(solver, iteration)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(step_seed(config.seed, iteration, ranks.rank))
            pixels, labels = batch_of(examples, config.input, ranks.device)
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=solver.precision == "bf16"):
                logits = trained(pixels)
            parts = losses(logits, labels, config.model)
            total = torch.stack(list(parts.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()

            keeper.after(
                iteration + 1,
                rate,
                {"loss": total, **parts},
                model,
                partial(save, run.out, run.identity, model, optimizer, keeper, iteration + 1),
            )
    return keeper.seconds


def lr_at(solver: SolverConfig, iteration: int) -> float:
    """Return the rate of a 0-based iteration: polynomial, `final_lr` at the last one (mmengine's PolyLR)."""
    left = 1 - iteration / max(1, solver.iterations - 1)
    return solver.final_lr + (solver.peak_lr - solver.final_lr) * left**solver.power
