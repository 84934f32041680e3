"""Semantic segmentation: load, verify, train, test, score."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.configs.registry import imported
from carryover.core.data.masks.splits import Splits, read_splits
from carryover.core.formats.metrics_log import METRICS_NAME
from carryover.transfer.tasks.base import Outcome, Run, Task
from carryover.transfer.tasks.segmentation.announce import announce
from carryover.transfer.tasks.segmentation.config import METRIC_RULE, SegmentationConfig
from carryover.transfer.tasks.segmentation.labels import labeled_part

if TYPE_CHECKING:
    from carryover.core.backbones.source import Source
    from carryover.core.training.interrupt import StopRequest
    from carryover.transfer.tasks.backend import Backend
    from carryover.transfer.tasks.segmentation.model import Segmenter

log = logging.getLogger(__name__)

WEIGHTS_NAME = "segmenter.safetensors"


class Segmentation(Task[SegmentationConfig, Splits, "Segmenter"]):
    """Train a segmenter on the backbone, and test it, with torchvision or mmsegmentation.

    `out` then holds metrics.jsonl (losses), confusion.json, outcomes.npz, segmenter.safetensors (the tested
    weights, under the library's own names) and samples/*.png. With mmsegmentation, whose model, augmentation,
    losses and inference are its own, it also holds backbone.pth, the converted checkpoint, and its receipt.
    """

    def prepare(self, config: SegmentationConfig) -> Splits:
        """Read both splits; raises UserError for defects that the recipe does not forgive."""
        if config.backend == "mmseg" and importlib.util.find_spec("mmseg") is None:
            raise UserError("backend: mmseg needs mmsegmentation: pip install 'carryover-eval[mmseg]'")
        splits = labeled_part(config, read_splits(config.data))
        log.info("%s", announce(config, splits))
        return splits

    def require(self, config: SegmentationConfig, source: "Source") -> None:
        """Raise UserError for a checkpoint normalized differently, or a backbone that cannot be dilated."""
        from carryover.core.backbones.pixels import require_same_pixels
        from carryover.transfer.tasks.segmentation.maps import require_segmentable

        require_same_pixels(config.input, source.metadata, source.path)
        require_segmentable(source.metadata.backbone, config.model, config.input.crop_size)

    def begun_by_v1(self, run: Run[SegmentationConfig, Splits]) -> tuple[object, ...]:
        """Return seed and checkpoint."""
        return run.config.seed, run.source.sha256

    @contextmanager
    def build(self, run: Run[SegmentationConfig, Splits]) -> "Iterator[Segmenter]":
        """Build the recipe's segmenter in the recipe's library."""
        backend = backend_of(run.config)
        run.ranks.share_of(run.config.solver.ims_per_batch, "solver.ims_per_batch")
        backend.require(run.config, run.ranks)
        with backend.build(run) as segmenter:
            log.info(
                "all %d backbone tensors of the segmenter equal those of %s",
                segmenter.carried,
                run.source.path,
            )
            yield segmenter

    def train(self, run: Run[SegmentationConfig, Splits], model: "Segmenter", stop: "StopRequest") -> float:
        """Train to the end of the schedule."""
        from carryover.core.training.iterations import train_iterations
        from carryover.core.training.validation import spread
        from carryover.transfer.tasks.segmentation.scoring import confused

        def look(images: int) -> dict[str, float]:
            some = replace(run.data.test, images=spread(run.data.test.images, images))
            found = confused(some, model.segment, run.ranks).metrics()
            return {m.label: m.value for m in found if m.value is not None}

        return train_iterations(run, model, f"train {run.config.model.label}", stop, look)

    def test(self, run: Run[SegmentationConfig, Splits], model: "Segmenter") -> Outcome:
        """Segment every test image, and score all pixels together."""
        from carryover.core.training.distributed import share_buffers
        from carryover.transfer.tasks.backend import trained
        from carryover.transfer.tasks.outputs import save_weights
        from carryover.transfer.tasks.segmentation.facts import SegmentationFacts
        from carryover.transfer.tasks.segmentation.scoring import CONFUSION_NAME, SAMPLES_NAME, test

        config, data = run.config, run.data
        share_buffers(model.model)
        if run.ranks.first:
            save_weights(run.out / WEIGHTS_NAME, model.model)
        outcomes = test(data.test, model.segment, run.ranks, run.out, config.samples)
        backend = backend_of(config)
        return Outcome(
            outcomes=outcomes,
            train_images=len(data.train.images),
            label_fraction=config.label_fraction,
            backend=backend.name,
            backend_version=backend.version,
            model=config.model.label,
            facts=SegmentationFacts(
                **trained(run, model),
                classes=len(data.test.classes),
                classes_measured=outcomes.measured(),
                metric_rule=METRIC_RULE,
            ),
            artifacts={
                "metrics": METRICS_NAME,
                "confusion": CONFUSION_NAME,
                "weights": WEIGHTS_NAME,
                "samples": SAMPLES_NAME,
                **model.artifacts,
            },
        )


def backend_of(config: SegmentationConfig) -> "Backend[Segmenter]":
    """Return the recipe's library; imports it."""
    if config.backend == "mmseg":
        from carryover.transfer.convert.mmcv_stub import install

        install()
    found: Backend[Segmenter] = imported(
        f"carryover.transfer.tasks.segmentation.{config.backend}.backend:BACKEND"
    )
    return found
