"""Training mmseg's models in our loop: their losses, mmengine's schedule, our log and states."""

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from carryover.core.data.steps import step_loader
from carryover.core.formats.state import STATE_NAME, STATE_NAME_MMSEG_V1, load_state, previous, save_state
from carryover.core.training.distributed import barrier
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.iterations import train_iterations
from carryover.transfer.tasks.segmentation.data import Steps
from carryover.transfer.tasks.segmentation.mmseg.data import MmsegTrainingImages
from carryover.transfer.tasks.segmentation.model import Training
from carryover.transfer.tasks.segmentation.torchvision.training import CAUSE, lr_at

_OURS_V1 = "carryover"
_LOSSES = {"decode.loss_ce": "loss_seg", "aux.loss_ce": "loss_aux"}


def train_model(
    run: Training, model: nn.Module, stop: StopRequest, prove: Callable[[nn.Module], int]
) -> float:
    """Train `model` in place; see `backend.Segmenter.train`. `prove` is called before the first iteration."""
    config, solver, ranks = run.config, run.config.solver, run.ranks
    if ranks.first:
        _take_over_v1(run.out)
    barrier()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=solver.peak_lr, momentum=solver.momentum, weight_decay=solver.weight_decay
    )
    images = MmsegTrainingImages(run.dataset, config.input, config.seed)

    def steps_from(start: int) -> Generator[Any, None, None]:
        if start == 0:
            prove(_bare(model))
        size, stop_at = solver.ims_per_batch, solver.iterations
        steps = Steps(len(run.dataset.images), size, config.seed, start, stop_at, ranks.rank, ranks.world)
        yield from step_loader(images, steps, config.workers, pseudo_collate)

    def losses_of(trained: nn.Module, batch: Any, iteration: int) -> dict[str, Tensor]:
        own: Any = _bare(trained)
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=solver.precision == "bf16"):
            data = own.data_preprocessor(batch, True)
            losses = trained(**data, mode="loss")
        total, named = own.parse_losses(losses)
        return {"loss": total} | {ours: named[theirs] for theirs, ours in _LOSSES.items() if theirs in named}

    return train_iterations(
        run,
        model,
        optimizer,
        stop,
        f"train {config.model.label}",
        solver.iterations,
        solver.ims_per_batch,
        steps_from,
        losses_of,
        partial(lr_at, solver),
        CAUSE,
    )


def _take_over_v1(out: Path) -> None:
    """Turn mmengine's checkpoint of version 1 into a state that the loop goes on from."""
    state = None if (out / STATE_NAME).exists() else load_state(out / STATE_NAME_MMSEG_V1)
    if state is None:
        return
    ours = state["meta"][_OURS_V1]
    taken = {
        "iteration": state["meta"]["iter"],
        "model": state["state_dict"],
        "optimizer": state["optimizer"],
    }
    save_state(
        out / STATE_NAME, taken | {k: ours[k] for k in ("identity", "seconds", "window", "window_count")}
    )
    for path in (out / STATE_NAME_MMSEG_V1, previous(out / STATE_NAME_MMSEG_V1)):
        path.unlink(missing_ok=True)


def _bare(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model) if is_model_wrapper(model) else model
