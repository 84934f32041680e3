"""The protocol of a segmentation run: carry, prove, train, test, score, record."""

import hashlib
import logging
import os
import time
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import save
from torch import nn

from configs import UserError, dump, recipe_hash
from pretrain.canonical import CanonicalMetadata, sha256_file
from pretrain.distributed import Ranks, barrier, joined
from pretrain.interrupt import StopRequest
from transfer.checkpoints.canonical import load_backbone
from transfer.results import RECORD_NAME, ResultRecord, make_record, write_record
from transfer.segment.backend import Backend, Source, Training
from transfer.segment.config import SegmentationConfig
from transfer.segment.fcn_backbone import require_segmentable
from transfer.segment.metrics import as_metrics, scores
from transfer.segment.scoring import CONFUSION_NAME, SAMPLES_NAME, test
from transfer.segment.splits import Splits

log = logging.getLogger(__name__)

WEIGHTS_NAME = "segmenter.safetensors"
RECIPE_NAME = "recipe.yaml"
METRICS_NAME = "metrics.jsonl"


def run_protocol(
    backend: Backend, config: SegmentationConfig, splits: Splits, checkpoint: Path, out: Path
) -> ResultRecord:
    """Carry `checkpoint` into the recipe's segmenter, train and test it; see `torchvision_fcn.evaluate`."""
    sha256 = sha256_file(checkpoint)
    if (finished := _finished(out, config, sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    backbone, metadata = load_backbone(checkpoint)
    _require_same_pixels(config, metadata, checkpoint)
    require_segmentable(metadata.backbone)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        _require_divisible(config, ranks)
        backend.require(config, ranks)
        if ranks.first:
            out.mkdir(parents=True, exist_ok=True)
            _write_text(out / RECIPE_NAME, dump(config))
        barrier()
        identity = hashlib.sha256(f"{recipe_hash(config)} {config.seed} {sha256}".encode()).hexdigest()
        run = Training(config, splits.train, out, ranks, identity)
        source = Source(checkpoint, sha256, backbone, metadata)
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
            _save_weights(segmenter.model, out / WEIGHTS_NAME)
        matrix = test(splits.test, segmenter.segment, ranks, out, config.samples)

        record = make_record(
            recipe=config,
            task="segmentation",
            checkpoint=checkpoint,
            metadata=metadata,
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


def _finished(out: Path, config: SegmentationConfig, sha256: str) -> ResultRecord | None:
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


def _require_same_pixels(config: SegmentationConfig, metadata: CanonicalMetadata, checkpoint: Path) -> None:
    """Refuse a checkpoint that was trained on differently normalised images."""
    stated = config.input
    for name, ours, theirs in (
        ("pixel_mean", stated.pixel_mean, metadata.pixel_mean),
        ("pixel_std", stated.pixel_std, metadata.pixel_std),
    ):
        # Recipes count in 0..255, as the libraries do; checkpoints in 0..1.
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


def _require_divisible(config: SegmentationConfig, ranks: Ranks) -> None:
    size = config.solver.ims_per_batch
    if size % ranks.world:
        raise UserError(f"solver.ims_per_batch {size} cannot be divided evenly among {ranks.world} processes")


def _save_weights(segmenter: nn.Module, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: value.detach().cpu().contiguous() for name, value in segmenter.state_dict().items()}
    temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
