"""The Detectron2 side of a detection run: its models, transforms, optimizer and precise BN, in our loop.

Imports Detectron2. What is not Detectron2's: the order of the images (`batches`), the loop, the metric (both
verified to equal Detectron2's where they can be compared), and the state that a run resumes from.
"""

import importlib.util
import itertools
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn
from torch.utils.data import Dataset

from carryover.configs import UserError
from carryover.configs.files import write_atomic
from carryover.core.backbones.architecture import is_counter
from carryover.core.backbones.source import Source
from carryover.core.backbones.verify import prove_carried
from carryover.core.data.objects.dataset import DetectionImage
from carryover.core.data.steps import step_loader
from carryover.core.formats.backbone import AttentionConfig
from carryover.core.formats.receipt import Receipt, read_receipt, receipt_path
from carryover.core.training.device import random_states_kept
from carryover.core.training.distributed import Ranks, barrier
from carryover.core.training.provenance import host
from carryover.transfer.convert.conversion import convert
from carryover.transfer.convert.detectron2 import backbone_tensors
from carryover.transfer.convert.detectron2_timm import is_timms
from carryover.transfer.convert.detectron2_vit import own_vit
from carryover.transfer.convert.target import quiet
from carryover.transfer.tasks.backend import Backend
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.detection.data import Steps, annotated_images
from carryover.transfer.tasks.detection.detectron2.config import Surroundings, build_cfg, norm_in_words
from carryover.transfer.tasks.detection.detectron2.data import (
    TestInputs,
    TrainInputs,
    mask_format,
    registered,
)
from carryover.transfer.tasks.detection.model import (
    CAUSE,
    DetectionRun,
    Detector,
    Step,
    decay_of,
    losses_of,
)
from carryover.transfer.tasks.detection.model_config import FPNConfig
from carryover.transfer.tasks.detection.predictions import ImagePrediction, encode_masks
from carryover.transfer.tasks.detection.pyramid import (
    as_trained,
    attending,
    attention_in_words,
    require_detectable,
)
from carryover.transfer.tasks.optimizers import build_layered

log = logging.getLogger(__name__)

BACKBONE_NAME = "backbone.pkl"
CFG_NAME = "detectron2.yaml"
TRUNKS = ("backbone.net.body.", "backbone.bottom_up.body.", "backbone.net.")


@dataclass
class Detectron2Detector:
    """A model of Detectron2 in a run; see `detection.model.Detector`."""

    run: DetectionRun
    cfg: Any
    model: nn.Module
    carried: int
    images: Sequence[DetectionImage]
    facts: Mapping[str, Any]
    artifacts: Mapping[str, str]
    cause: str = CAUSE

    def build_optimizer(self) -> torch.optim.Optimizer:
        solver = self.run.config.solver
        if solver.layered:
            network = self.run.source.backbone
            return build_layered(self.model, network, TRUNKS, solver, decay_of(solver))
        optimizer: torch.optim.Optimizer = build_optimizer(self.cfg, self.model)
        return optimizer

    def steps(self, start: int, stop: int) -> Generator[Step, None, None]:
        config, ranks = self.run.config, self.run.ranks
        jitter = config.input if config.input.jitter is not None else None
        dataset = TrainInputs(self.images, self.cfg, jitter)
        size = config.solver.ims_per_batch
        draws = Steps(self.images, size, config.seed, start, stop, ranks.rank, ranks.world)
        for iteration, inputs in enumerate(step_loader(dataset, draws, config.workers), start):
            # The heads write statistics of every step into the storage that is open.
            with EventStorage(iteration):
                yield (inputs,)

    def losses(self, shared: nn.Module, step: Step, iteration: int) -> dict[str, Tensor]:
        return losses_of(self.run, shared, step, iteration)

    def recalibrate(self, start: int, stop: int) -> int:
        self.model.train()
        layers = get_bn_modules(self.model)
        if layers:
            with closing(self.steps(start, stop)) as steps:
                update_bn_stats(self.model, (inputs for (inputs,) in steps), stop - start)
        return len(layers)

    def test_images(self, images: Sequence[DetectionImage]) -> Dataset[dict[str, Any]]:
        return TestInputs(images, self.cfg)

    def detect(self, loaded: Mapping[str, Any], source: DetectionImage) -> ImagePrediction:
        found = self.model([loaded])[0]["instances"].to("cpu")
        return ImagePrediction(
            image_id=source.id,
            boxes=found.pred_boxes.tensor.numpy().astype(np.float32),
            scores=found.scores.numpy().astype(np.float32),
            labels=found.pred_classes.numpy(),
            masks=encode_masks(found.pred_masks.numpy()) if found.has("pred_masks") else None,
        )


def converted(source: Source, path: Path, ranks: Ranks, attention: AttentionConfig | None = None) -> Receipt:
    """Convert the checkpoint to `path` unless that is done already; returns the receipt on every rank.

    `attention` is that of the detector, which the receipt verifies.

    Raises
    ------
    UserError
        Detectron2 has no place for such a backbone.
    WorkError
        The conversion could not be verified.
    """
    if ranks.first and not _is_converted(source, path, attention):
        log.info("%s", convert(source.path, "detectron2", path, attention=attention).summary)
    barrier()
    return read_receipt(path)


def carried_model(cfg: Any, receipt: Receipt) -> tuple[nn.Module, int]:
    """Build the model, let Detectron2 load its weights, and verify that every backbone tensor was loaded.

    Returns the model and how many tensors were found equal to the receipt's (counters, which are no weights,
    not counted); everything new is initialized from `cfg.SEED`. Raises WorkError, naming the tensors, when
    one differs from the receipt.
    """
    with random_states_kept(), quiet("detectron2", "fvcore", "fvcore.common.checkpoint"):
        torch.manual_seed(cfg.SEED)
        model: nn.Module = build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    where = f"Detectron2's {cfg.MODEL.ROI_HEADS.NAME} on {cfg.MODEL.BACKBONE.NAME}"
    tensors = backbone_tensors(model)
    prove_carried(receipt, tensors, where)
    return model, sum(not is_counter(name) for name in tensors)


def outputs_in_float32(model: Any) -> None:
    """End autocast after every part of the network: boxes are computed from what comes out of it.

    Detectron2 rounds the corners of regions to the type of the features; in bfloat16 that is 8 bits.
    """
    parts = [model.backbone, model.proposal_generator.rpn_head, model.roi_heads.box_predictor]
    if getattr(model.roi_heads, "mask_on", False):
        parts.append(model.roi_heads.mask_head.predictor)
    for part in parts:
        part.register_forward_hook(lambda module, inputs, output: _float32(output))


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, dict):
        return {name: _float32(part) for name, part in value.items()}
    return type(value)(_float32(part) for part in value)


def _is_converted(source: Source, path: Path, attention: AttentionConfig | None) -> bool:
    try:
        receipt = read_receipt(path)
    except UserError:
        return False
    return receipt.source.sha256 == source.sha256 and receipt.metadata.backbone.attention == attention


def _require(config: DetectionConfig, ranks: Ranks) -> None:
    if ranks.world > 1 and ranks.device.type == "cpu" and "SyncBN" in config.model.norms:
        raise UserError(
            "torch has no SyncBN over several CPU processes; train in one process, or choose naiveSyncBN or"
            " BN for model.norm, model.fpn_norm and model.head_norm"
        )


def tokens_in_words(source: Source, config: DetectionConfig) -> str | None:
    """Return what becomes of a plain transformer's class token and registers; None for other backbones.

    Raises UserError for a backbone that carries no such detector, or that Detectron2 cannot run as asked.
    """
    backbone, model = source.metadata.backbone, config.model
    if not is_timms(backbone):
        if config.solver.layered:
            raise UserError(
                f"solver.algorithm, solver.layer_decay: Detectron2's own ResNet ({backbone.label}) is trained"
                " by SGD at one rate; set backend: torchvision"
            )
        return None
    require_detectable(backbone, model)
    own = own_vit(backbone) is not None
    if isinstance(model, FPNConfig) and model.attends and not own:
        raise UserError(
            f"model.window_size, model.relative_positions: Detectron2's own ViT, which has them, cannot be"
            f" {backbone.label}; leave them out, or set backend: torchvision"
        )
    if isinstance(model, FPNConfig) and not own and model.prefix_tokens is None:
        model = model.model_copy(update={"prefix_tokens": "keep"})
    trained, _, words = as_trained(backbone, source.backbone.state_dict(), model, config.input)
    if own and trained.tokens and words != "none":
        raise UserError(
            f"model.prefix_tokens: keep: Detectron2's own ViT runs the patches of {backbone.label} alone;"
            " leave it out, or set backend: torchvision"
        )
    if not own and not trained.tokens:
        raise UserError(
            f"model.prefix_tokens: drop: Detectron2 runs {backbone.label} by timm's network, tokens and all;"
            " leave it out, or set backend: torchvision"
        )
    return words


@contextmanager
def _build(run: DetectionRun) -> Iterator[Detectron2Detector]:
    config, ranks, path = run.config, run.ranks, run.out / BACKBONE_NAME
    splits, source, images = run.data, run.source, annotated_images(run.data.train)
    masks, tokens = config.model.masks, tokens_in_words(source, config)
    backbone = attending(source.metadata.backbone, config.model, config.input)
    names = [f"carryover_{run.work.identity.hash[:16]}_{part}" for part in ("train", "test")]
    around = Surroundings(
        classes=len(splits.train.classes),
        train=names[0],
        test=names[1],
        mask_format=mask_format(images, config.input) if masks else "polygon",
        weights=path,
        out=run.out,
        device=str(ranks.device),
        processes=ranks.world,
    )
    cfg = build_cfg(config, source.metadata.backbone, around)
    norm = norm_in_words(config.model, ranks.world)
    if norm != config.model.norm:
        log.info("norm %s", norm)
    with ExitStack() as stack:
        stack.enter_context(_local_group(ranks))
        stack.enter_context(registered(names[0], splits.train, images, masks))
        stack.enter_context(registered(names[1], splits.test, splits.test.images, masks))
        receipt = converted(source, path, ranks, backbone.attention)
        model, carried = carried_model(cfg, receipt)
        if config.solver.precision == "bf16":
            outputs_in_float32(model)
        if ranks.first:
            write_atomic(run.out / CFG_NAME, cfg.dump())
        facts: dict[str, Any] = {
            "norm": norm,
            "detectron2": "unbuilt" if importlib.util.find_spec("detectron2._C") is None else "built",
            "conversion_difference": receipt.largest_difference,
            "receipt": receipt_path(path).name,
        }
        if tokens is not None:
            facts |= {"prefix_tokens": tokens, "attention": attention_in_words(backbone)}
        if masks:
            facts["mask_format"] = cfg.INPUT.MASK_FORMAT
        artifacts = {"receipt": receipt_path(path).name, "detectron2": CFG_NAME}
        yield Detectron2Detector(run, cfg, model, carried, images, facts, artifacts)
    # The receipt stays; a run that was interrupted needs the file as well.
    if ranks.first:
        path.unlink(missing_ok=True)


@contextmanager
def _local_group(ranks: Ranks) -> Iterator[None]:
    """Set for Detectron2 which ranks share a machine, as its own `launch` does."""
    if ranks.world == 1 or comm._LOCAL_PROCESS_GROUP is not None:
        yield
        return
    hosts: list[str] = [""] * ranks.world
    dist.all_gather_object(hosts, host())
    sizes = {len(list(group)) for _, group in itertools.groupby(hosts)}
    if len(sizes) > 1:
        raise UserError(f"Detectron2 needs equally many processes on every machine, not {sorted(sizes)}")
    comm.create_local_process_group(sizes.pop())
    try:
        yield
    finally:
        # Otherwise a second run in this process would be given the first one's group.
        comm.create_local_process_group.cache_clear()
        comm._LOCAL_PROCESS_GROUP = None


BACKEND: Backend[Detector] = Backend("detectron2", detectron2.__version__, _require, _build)
