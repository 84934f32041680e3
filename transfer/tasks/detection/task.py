"""The protocol of a detection run: carry, prove, train, recalibrate, test, score, record."""

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist

from carryover.core.backbones.pixels import require_same_pixels
from carryover.core.backbones.source import open_source
from carryover.core.data.objects.splits import Splits
from carryover.core.formats.claims import Work
from carryover.core.formats.state import STATE_NAME, previous
from carryover.core.training.distributed import barrier, joined
from carryover.core.training.interrupt import StopRequest
from carryover.transfer.results.record import ResultRecord, make_record, write_record
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.detection.data import annotated_images
from carryover.transfer.tasks.detection.inference import predict
from carryover.transfer.tasks.detection.metrics import score
from carryover.transfer.tasks.detection.model import Backend, Detector, Training
from carryover.transfer.tasks.detection.predictions_file import FILE_NAME as PREDICTIONS_NAME
from carryover.transfer.tasks.detection.predictions_file import write_predictions
from carryover.transfer.tasks.detection.samples import draw_samples
from carryover.transfer.tasks.detection.training import train_detector
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record, save_weights

log = logging.getLogger(__name__)

WEIGHTS_NAME = "detector.safetensors"
METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples"


def run_protocol(
    backend: Backend, config: DetectionConfig, splits: Splits, checkpoint: Path, out: Path
) -> ResultRecord:
    """Carry `checkpoint` into the recipe's detector, train and test it; see `torchvision_rcnn.evaluate`."""
    source = open_source(checkpoint)
    work = Work(out, config, identify(config, source), v1=(config.seed, source.sha256))
    if (finished := finished_record(out, work.identity, source.sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    require_same_pixels(config.input, source.metadata, checkpoint)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        ranks.share_of(config.solver.ims_per_batch, "solver.ims_per_batch")
        backend.require(config, ranks)
        if ranks.first:
            work.claim()
        barrier()
        images = annotated_images(splits.train)
        run = Training(config, images, out, ranks, work)
        detector = stack.enter_context(backend.detector(run, splits, source))
        log.info("all %d backbone tensors of the detector equal those of %s", detector.carried, checkpoint)
        with StopRequest() as stop:
            training_seconds = train_detector(run, detector, stop)
        began = time.monotonic()
        recalibrated = _recalibrate(run, detector)
        if ranks.first:
            save_weights(out / WEIGHTS_NAME, detector.model)
        predictions = predict(run, detector, splits.test.images)
        metrics = score(config.data, splits.test, predictions, config.model.masks)

        record = make_record(
            recipe=config,
            task="detection",
            source=source,
            data_digest=work.identity.parts["data"],
            dataset=config.data.title,
            split=config.data.test_label,
            backend=backend.name,
            backend_version=backend.version,
            seed=config.seed,
            metrics=metrics,
            wall_seconds=training_seconds + time.monotonic() - began,
            train_images=len(images),
            facts={
                "detector": config.model.label,
                "backbone tensors equal to the checkpoint's": detector.carried,
                "iterations": config.solver.iterations,
                "images per batch": config.solver.ims_per_batch,
                "learning rate": config.solver.peak_lr,
                "norm": config.model.norm,
                "layers with precise BN": recalibrated,
                "training images without objects, left out": len(splits.train.images) - len(images),
                "defects forgiven": len(splits.defects),
                "devices": ranks.world,
                **detector.facts,
            },
            artifacts={
                "metrics": METRICS_NAME,
                "predictions": PREDICTIONS_NAME,
                "weights": WEIGHTS_NAME,
                "recipe": RECIPE_NAME,
                "samples": SAMPLES_NAME,
                **detector.artifacts,
            },
        )
        if ranks.first:
            write_predictions(out / PREDICTIONS_NAME, predictions)
            draw_samples(splits.test, predictions, out / SAMPLES_NAME, config.samples)
            # The record comes before the state goes, so that there is always something to go on from.
            write_record(record, out)
            for state in (out / STATE_NAME, previous(out / STATE_NAME)):
                state.unlink(missing_ok=True)
        barrier()
    return record


def _recalibrate(run: Training, detector: Detector) -> int:
    """Measure the batch statistics on the training steps that would come next, if the recipe asks for it."""
    config, ranks = run.config, run.ranks
    measured = 0
    if config.precise_bn:
        torch.manual_seed(config.seed)
        last = config.solver.iterations
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.solver.precision == "bf16"):
            measured = detector.recalibrate(last, last + config.precise_bn)
    if ranks.world > 1:
        # Each rank kept running statistics of its own; all test with the first one's.
        for buffer in detector.model.buffers():
            dist.broadcast(buffer, 0)
    return measured
