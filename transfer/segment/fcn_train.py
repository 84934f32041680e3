"""The segmenter's training loop: steps of a schedule, resumable at any of them, bit for bit on a CPU."""

import time
from contextlib import ExitStack

import torch
from torch import nn

from pretrain.distributed import data_parallel
from pretrain.interrupt import Interrupted, StopRequest
from pretrain.metrics import MetricsLog
from pretrain.progress import progress
from transfer.iterations import require_finite, resume, save, save_points, step_seed
from transfer.segment.backend import Training
from transfer.segment.batches import Steps, TrainingImages, step_loader
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
    metrics = MetricsLog(run.out / "metrics.jsonl", run.config.solver.iterations)
    start, before, window = resume(run.out, run.identity, model, optimizer)
    began = time.monotonic()
    if start >= solver.iterations:
        return before
    if ranks.first:
        metrics.rewind(start)
    due = save_points(solver.iterations, config.checkpoints)
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
        for iteration, examples in enumerate(step_loader(images, steps, config.workers), start):
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

            done = iteration + 1
            window.note({"loss": total, **parts})
            stopping = stop.requested()
            saving = done in due or stopping
            if saving or done % config.log_every == 0:
                require_finite(window, model, done, CAUSE)
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
                raise Interrupted(stop.signum)
    return before + time.monotonic() - began


def lr_at(solver: SolverConfig, iteration: int) -> float:
    """Return the rate of a 0-based iteration: polynomial, `final_lr` at the last one (mmengine's PolyLR)."""
    left = 1 - iteration / max(1, solver.iterations - 1)
    return solver.final_lr + (solver.peak_lr - solver.final_lr) * left**solver.power
