"""The protocol of a segmentation run: carry, prove, train, test, score, record."""

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist

from carryover.core.backbones.pixels import require_same_pixels
from carryover.core.backbones.source import open_source
from carryover.core.data.masks.splits import Splits
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import barrier, joined
from carryover.core.training.interrupt import StopRequest
from carryover.transfer.results.record import ResultRecord, make_record, write_record
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record, save_weights
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.metrics import as_metrics, scores
from carryover.transfer.tasks.segmentation.model import Backend, Training
from carryover.transfer.tasks.segmentation.scoring import CONFUSION_NAME, SAMPLES_NAME, test
from carryover.transfer.tasks.segmentation.torchvision.backbone import require_segmentable

log = logging.getLogger(__name__)

WEIGHTS_NAME = "segmenter.safetensors"
METRICS_NAME = "metrics.jsonl"


def run_protocol(
    backend: Backend, config: SegmentationConfig, splits: Splits, checkpoint: Path, out: Path
) -> ResultRecord:
    """Carry `checkpoint` into the recipe's segmenter, train and test it; see `torchvision_fcn.evaluate`."""
    source = open_source(checkpoint)
    work = Work(out, config, identify(config, source), v1=(config.seed, source.sha256))
    if (finished := finished_record(out, work.identity, source.sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    require_same_pixels(config.input, source.metadata, checkpoint)
    require_segmentable(source.metadata.backbone)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        ranks.share_of(config.solver.ims_per_batch, "solver.ims_per_batch")
        backend.require(config, ranks)
        if ranks.first:
            work.claim()
        barrier()
        run = Training(config, splits.train, out, ranks, work)
        segmenter = stack.enter_context(backend.segmenter(run, source))
        log.info("all %d backbone tensors of the segmenter equal those of %s", segmenter.carried, checkpoint)
        with StopRequest() as stop:
            training_seconds = segmenter.train(stop)
        began = time.monotonic()
        if ranks.world > 1:
            # Each rank kept running statistics of its own; all test with the first one's.
            for buffer in segmenter.model.buffers():
                dist.broadcast(buffer, 0)
        if ranks.first:
            save_weights(out / WEIGHTS_NAME, segmenter.model)
        matrix = test(splits.test, segmenter.segment, ranks, out, config.samples)

        record = make_record(
            recipe=config,
            task="segmentation",
            source=source,
            data_digest=work.identity.parts["data"],
            dataset=config.data.title,
            split=config.data.test_label,
            backend=backend.name,
            backend_version=backend.version,
            seed=config.seed,
            metrics=as_metrics(scores(matrix), len(splits.test.images)),
            wall_seconds=training_seconds + time.monotonic() - began,
            train_images=len(splits.train.images),
            facts={
                "segmenter": config.model.label,
                "backbone tensors equal to the checkpoint's": segmenter.carried,
                "classes": len(splits.test.classes),
                "iterations": config.solver.iterations,
                "images per batch": config.solver.ims_per_batch,
                "learning rate": config.solver.peak_lr,
                "norm": config.model.norm,
                "defects forgiven": len(splits.defects),
                "devices": ranks.world,
            },
            artifacts={
                "metrics": METRICS_NAME,
                "confusion": CONFUSION_NAME,
                "weights": WEIGHTS_NAME,
                "recipe": RECIPE_NAME,
                "samples": SAMPLES_NAME,
                **segmenter.artifacts,
            },
        )
        if ranks.first:
            # The record comes before the state goes, so that there is always something to go on from.
            write_record(record, out)
            for state in segmenter.states:
                state.unlink(missing_ok=True)
        barrier()
    return record
