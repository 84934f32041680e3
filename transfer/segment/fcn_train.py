"""The segmenter's training loop: steps of a schedule, resumable at any of them, bit for bit on a CPU."""

import logging
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from configs import UserError, WorkError
from pretrain.checkpoint import load_state, save_state
from pretrain.distributed import data_parallel
from pretrain.interrupt import Interrupted, StopRequest
from pretrain.metrics import MetricsLog
from pretrain.progress import progress
from transfer.segment.backend import Training
from transfer.segment.batches import Steps, TrainingImages, step_loader
from transfer.segment.config import SolverConfig
from transfer.segment.fcn_model import batch_of, losses
from transfer.segment.model_config import FCNConfig
from transfer.window import Window, save_points

log = logging.getLogger(__name__)

STATE_NAME = "checkpoint.pt"


def train_segmenter(run: Training, model: nn.Module, stop: StopRequest) -> float:
    """Train `model` in place; see `backend.Segmenter.train`."""
    config, solver, ranks = run.config, run.config.solver, run.ranks
    assert isinstance(config.model, FCNConfig)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=solver.peak_lr, momentum=solver.momentum, weight_decay=solver.weight_decay
    )
    metrics = MetricsLog(run.out / "metrics.jsonl", run.config.solver.iterations)
    start, before, window = _resume(run, model, optimizer)
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
            torch.manual_seed(dropout_seed(config.seed, iteration, ranks.rank))
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
                require_finite(window, model, done)
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
                raise Interrupted(stop.signum)
    return before + time.monotonic() - began


def lr_at(solver: SolverConfig, iteration: int) -> float:
    """Return the rate of a 0-based iteration: polynomial, `final_lr` at the last one (mmengine's PolyLR)."""
    left = 1 - iteration / max(1, solver.iterations - 1)
    return solver.final_lr + (solver.peak_lr - solver.final_lr) * left**solver.power


def dropout_seed(seed: int, iteration: int, rank: int) -> int:
    """Return what seeds torch at an iteration, so that a resumed run drops the same channels."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> 1)


def require_finite(window: Window, model: nn.Module, iteration: int) -> None:
    """Raise WorkError before a state that has lost its way is saved over a good one."""
    bad = [name for name, value in window.numbers().items() if not np.isfinite(value)]
    bad += [name for name, p in model.named_parameters() if not torch.isfinite(p).all()][:1]
    if bad:
        raise WorkError(
            f"iteration {iteration}: {', '.join(bad)} is not finite; the learning rate is too high for this"
            " batch"
        )


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
