"""The protocol of a detection run: carry, prove, train, recalibrate, test, score, record."""

import hashlib
import logging
import os
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import save
from torch import nn

from configs import UserError, dump, recipe_hash
from pretrain.canonical import CanonicalMetadata, sha256_file
from pretrain.checkpoint import previous
from pretrain.distributed import Ranks, barrier, joined
from pretrain.interrupt import StopRequest
from transfer.checkpoints.canonical import load_backbone
from transfer.detect.backend import Backend, Detector, Source, Training
from transfer.detect.batches import annotated_images
from transfer.detect.config import DetectionConfig
from transfer.detect.predictions_file import FILE_NAME as PREDICTIONS_NAME
from transfer.detect.predictions_file import write_predictions
from transfer.detect.rcnn_infer import predict
from transfer.detect.rcnn_train import STATE_NAME, train_detector
from transfer.detect.samples import draw_samples
from transfer.detect.scores import score
from transfer.detect.splits import Splits
from transfer.results import RECORD_NAME, ResultRecord, make_record, write_record

log = logging.getLogger(__name__)

WEIGHTS_NAME = "detector.safetensors"
RECIPE_NAME = "recipe.yaml"
METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples"


def run_protocol(
    backend: Backend, config: DetectionConfig, splits: Splits, checkpoint: Path, out: Path
) -> ResultRecord:
    """Carry `checkpoint` into the recipe's detector, train and test it; see `torchvision_rcnn.evaluate`."""
    sha256 = sha256_file(checkpoint)
    if (finished := _finished(out, config, sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    backbone, metadata = load_backbone(checkpoint)
    _require_same_pixels(config, metadata, checkpoint)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        _require_divisible(config, ranks)
        backend.require(config, ranks)
        if ranks.first:
            out.mkdir(parents=True, exist_ok=True)
            _write_text(out / RECIPE_NAME, dump(config))
        barrier()
        identity = hashlib.sha256(f"{recipe_hash(config)} {config.seed} {sha256}".encode()).hexdigest()
        images = annotated_images(splits.train)
        run = Training(config, images, out, ranks, identity)
        source = Source(checkpoint, sha256, backbone, metadata)
        detector = stack.enter_context(backend.detector(run, splits, source))
        log.info("all %d backbone tensors of the detector equal those of %s", detector.carried, checkpoint)
        with StopRequest() as stop:
            training_seconds = train_detector(run, detector, stop)
        began = time.monotonic()
        recalibrated = _recalibrate(run, detector)
        if ranks.first:
            _save_weights(detector.model, out / WEIGHTS_NAME)
        predictions = predict(run, detector, splits.test.images)
        metrics = score(config.data, splits.test, predictions, config.model.masks)

        record = make_record(
            recipe=config,
            task="detection",
            checkpoint=checkpoint,
            metadata=metadata,
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


def _finished(out: Path, config: DetectionConfig, sha256: str) -> ResultRecord | None:
    """Return the record in `out` if it is of this recipe, seed and checkpoint; refuse another's."""
    path = out / RECORD_NAME
    if not path.exists():
        return None
    try:
        record = ResultRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a result record ({error})") from None
    same = (record.recipe_hash, record.seed, record.checkpoint_sha256) == (
        recipe_hash(config),
        config.seed,
        sha256,
    )
    if not same:
        raise UserError(
            f"{out}: holds the result of another recipe, seed or checkpoint; choose another directory"
        )
    return record


def _require_same_pixels(config: DetectionConfig, metadata: CanonicalMetadata, checkpoint: Path) -> None:
    """Refuse a checkpoint that was trained on differently normalised images."""
    stated = config.input
    for name, ours, theirs in (
        ("pixel_mean", stated.pixel_mean, metadata.pixel_mean),
        ("pixel_std", stated.pixel_std, metadata.pixel_std),
    ):
        # Recipes count in 0..255, as Detectron2 does; checkpoints in 0..1.
        scaled = [255 * v for v in theirs]
        if any(abs(a - b) > 0.01 for a, b in zip(ours, scaled, strict=True)):
            shown = ", ".join(f"{v:.3f}" for v in scaled)
            raise UserError(
                f"{checkpoint}: was trained with {name} [{shown}], but the recipe says"
                f" input.{name}: {list(ours)}"
            )
    if metadata.channel_order != stated.channel_order:
        raise UserError(
            f"{checkpoint}: channel order {metadata.channel_order}, but the recipe says"
            f" input.channel_order: {stated.channel_order}"
        )


def _require_divisible(config: DetectionConfig, ranks: Ranks) -> None:
    size = config.solver.ims_per_batch
    if size % ranks.world:
        raise UserError(f"solver.ims_per_batch {size} cannot be divided evenly among {ranks.world} processes")


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


def _save_weights(detector: nn.Module, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
