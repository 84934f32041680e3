"""The mmsegmentation side of a segmentation run: its model, its losses and its inference, in our loop."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.source import Source
from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.data.steps import step_loader
from carryover.core.formats.receipt import Receipt, read_receipt, receipt_path
from carryover.core.formats.state import STATE_NAME, STATE_NAME_MMSEG_V1, load_state, previous, save_state
from carryover.core.training.device import bf16_autocast
from carryover.core.training.distributed import Ranks, barrier
from carryover.transfer.convert import convert
from carryover.transfer.tasks.backend import Backend
from carryover.transfer.tasks.optimizers import build_layered
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.data import Steps
from carryover.transfer.tasks.segmentation.mmseg.data import (
    MmsegTrainingImages,
    as_mmseg,
    compose,
    pipeline_for_test,
)
from carryover.transfer.tasks.segmentation.mmseg.model import build_model, model_settings, prove
from carryover.transfer.tasks.segmentation.model import (
    CAUSE,
    SegmentationRun,
    Segmenter,
    decay_of,
    require_batches,
)

BACKBONE_NAME = "backbone.pth"
_OURS_V1 = "carryover"
_LOSSES = {"decode.loss_ce": "loss_seg", "aux.loss_ce": "loss_aux"}


@dataclass
class MmsegSegmenter:
    """An mmseg model in a run; see `segmentation.model.Segmenter`."""

    run: SegmentationRun
    model: Any
    receipt: Receipt
    carried: int
    cause: str = CAUSE
    facts: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(
        default_factory=lambda: {
            "backbone": BACKBONE_NAME,
            "receipt": receipt_path(Path(BACKBONE_NAME)).name,
        }
    )

    def __post_init__(self) -> None:
        self.pipeline = compose(pipeline_for_test(self.run.config.input))

    def build_optimizer(self) -> torch.optim.Optimizer:
        solver = self.run.config.solver
        if solver.layered or solver.decay_weights_only:
            network, trunks = self.run.source.backbone, ("backbone.body.", "backbone.")
            return build_layered(self.model, network, trunks, solver, decay_of(solver))
        return torch.optim.SGD(
            self.model.parameters(),
            lr=solver.peak_lr,
            momentum=solver.momentum,
            weight_decay=solver.weight_decay,
        )

    def steps(self, start: int, stop: int) -> Generator[Any, None, None]:
        if start == 0:
            prove(_bare(self.model), self.receipt)
        config, dataset, ranks = self.run.config, self.run.data.train, self.run.ranks
        images, size = len(dataset.images), config.solver.ims_per_batch
        draws = Steps(images, size, config.seed, start, stop, ranks.rank, ranks.world)
        loaded = MmsegTrainingImages(dataset, config.input, config.seed)
        yield from step_loader(loaded, draws, config.workers, pseudo_collate)

    def losses(self, shared: nn.Module, step: Any, iteration: int) -> dict[str, Tensor]:
        own: Any = _bare(shared)
        bf16 = self.run.config.solver.precision == "bf16"
        with bf16_autocast(self.run.ranks.device, bf16):
            data = own.data_preprocessor(step, True)
            losses = shared(**data, mode="loss")
        total, named = own.parse_losses(losses)
        return {"loss": total} | {ours: named[theirs] for theirs, ours in _LOSSES.items() if theirs in named}

    @torch.inference_mode()
    def segment(self, source: SegmentationImage) -> np.ndarray:
        self.model.eval()
        loaded = self.pipeline(as_mmseg(source))
        batch = {"inputs": [loaded["inputs"]], "data_samples": [loaded["data_samples"]]}
        found = self.model.test_step(batch)[0].pred_sem_seg.data[0]
        labels: np.ndarray = found.to(torch.uint8).cpu().numpy()
        return labels


def converted_backbone(run: SegmentationRun, source: Source) -> Receipt:
    """Convert the checkpoint into `out`/backbone.pth, unless that is there from an earlier attempt."""
    path = run.out / BACKBONE_NAME
    if run.ranks.first and not _already(path, source):
        convert(source.path, "mmseg", path)
    barrier()
    return read_receipt(path)


def _already(path: Path, source: Source) -> bool:
    try:
        return read_receipt(path).source.sha256 == source.sha256
    except UserError:
        return False


def _require(config: SegmentationConfig, ranks: Ranks) -> None:
    if ranks.world > 1 and ranks.device.type == "cpu":
        raise UserError("mmseg trains in several processes on GPUs only; train in one, or on torchvision")
    require_batches(config, ranks)


@contextmanager
def _build(run: SegmentationRun) -> Iterator[MmsegSegmenter]:
    if run.ranks.first:
        _take_over_v1(run.out)
    receipt = converted_backbone(run, run.source)
    # mmseg's SyncBN runs on several GPUs only; in one process BN is the same.
    norm = run.config.model.norm if run.ranks.world > 1 else "BN"
    classes, about = len(run.data.train.classes), run.source.metadata.backbone
    settings = model_settings(run.config, about, classes, run.out / BACKBONE_NAME, norm)
    model, carried = build_model(settings, receipt, run.config.seed)
    yield MmsegSegmenter(run, model.to(run.ranks.device), receipt, carried)


def _take_over_v1(out: Path) -> None:
    """Turn mmengine's checkpoint of version 1 into a state from which the loop resumes."""
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


BACKEND: Backend[Segmenter] = Backend("mmsegmentation", None, _require, _build)
