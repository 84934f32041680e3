"""Selection of the classifier: of the last epoch, of the best epoch, or of a grid of rates."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from carryover.configs import UserError, WorkError
from carryover.core.backbones.architecture import expected_tensors
from carryover.core.backbones.build import build_backbone
from carryover.core.data.labelled.images import LabeledImages
from carryover.core.data.labelled.subsets import Indices
from carryover.core.data.prepared import Dataset
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.state import remove_states
from carryover.core.training.distributed import barrier
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.validation import spread_positions
from carryover.transfer.tasks.accuracy import Accuracy
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.finetune.attentive import tokens_of
from carryover.transfer.tasks.finetune.config import FC_NORM, BestEpoch, FinetuneConfig, GridOfRates
from carryover.transfer.tasks.finetune.grid import (
    GRID_NAME,
    GridPoint,
    best_point,
    read_points,
    write_points,
)
from carryover.transfer.tasks.finetune.training import Trained, Training, accuracy, train_classifier
from carryover.transfer.tasks.frozen.depths import POOLED, pooled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The classifier to test, and how it was arrived at.

    Attributes
    ----------
    seconds
        Of all trainings together, all attempts.
    held_out_images, held_out_top1
        On how many images it was chosen, and its accuracy (%) there; None where nothing was chosen.
    rates
        The base rates (backbone, head) that a grid chose; None without a grid.
    grid_points
        How many pairs of rates were tried.
    """

    trained: Trained
    train_images: int
    seconds: float
    held_out_images: int | None = None
    held_out_top1: float | None = None
    rates: tuple[float, float] | None = None
    grid_points: int | None = None


class Candidates:
    """The trainings of one evaluation: all from the same carried backbone, on parts of the same labels."""

    def __init__(self, run: Run[FinetuneConfig, LabeledImages]) -> None:
        self._run = run
        self.weights: dict[str, Tensor] = run.source.backbone.state_dict()

    def training(
        self,
        out: Path,
        images: Indices,
        judge: Dataset | None = None,
        base_rates: tuple[float, float] | None = None,
    ) -> Training:
        """Describe the training of one classifier on these of the labeled images."""
        run, config = self._run, self._run.config
        o, about = config.optimizer, run.source.metadata
        backbone, head = base_rates or (o.base_lr_backbone, o.base_lr_head)
        scale = config.batch_size / o.lr_per
        labeled = run.data.train.images
        return Training(
            config=config,
            backbone=self._carried,
            images=labeled.take(images),
            augment=config.image.augment(about.pixel_mean, about.pixel_std),
            lr_backbone=backbone * scale,
            lr_head=head * scale,
            out=out,
            ranks=run.ranks,
            work=run.work,
            judge=judge,
            watched=self._watched() if judge is None and out == run.out else None,
        )

    def _watched(self) -> Dataset | None:
        """Return images whose accuracy is logged: of the split to choose on, or else of the test split."""
        watch, data = self._run.config.watch, self._run.data
        if not watch.times:
            return None
        images = data.test if data.selection is None else data.selection
        return images.take(np.array(spread_positions(len(images), watch.images), dtype=np.int64))

    def train(self, stop: StopRequest) -> Chosen:
        """Train as the recipe's selection says, going on with what is finished already."""
        run, selection = self._run, self._run.config.selection
        everything = run.data.train.positions
        if isinstance(selection, BestEpoch):
            fit, held = run.data.to_choose(selection.held_out)
            trained = train_classifier(self.training(run.out, fit, judge=held), stop)
            assert trained.judged is not None
            return Chosen(trained, len(fit), trained.seconds, len(held), trained.judged.top1_percent)
        if isinstance(selection, GridOfRates):
            points = self._try_all(selection, stop)
            best = best_point(points)
            rates = (best.base_lr_backbone, best.base_lr_head)
            log.info("best on the held-out part: backbone %g, head %g; training on all labels", *rates)
            trained = train_classifier(self.training(run.out, everything, base_rates=rates), stop)
            seconds = trained.seconds + sum(p.seconds for p in points)
            return Chosen(
                trained, len(everything), seconds, best.images, best.top1_percent, rates, len(points)
            )
        trained = train_classifier(self.training(run.out, everything), stop)
        return Chosen(trained, len(everything), trained.seconds)

    def _try_all(self, selection: GridOfRates, stop: StopRequest) -> list[GridPoint]:
        run = self._run
        fit, judge = run.data.to_choose(selection.held_out)
        path = run.out / GRID_NAME
        done = read_points(path, run.work)
        for number, rates in enumerate(selection.points):
            if number < len(done):
                continue
            directory = run.out / "grid" / f"{number:02d}"
            training = self.training(directory, fit, base_rates=rates)
            log.info("grid point %d of %d: backbone %g, head %g", number + 1, len(selection.points), *rates)
            try:
                trained = train_classifier(training, stop)
                found = accuracy(trained.model, judge, training)
                point = GridPoint.of(rates, found, trained.seconds)
            except WorkError as error:
                # A rate that diverges is no candidate; the other points may be fine.
                log.warning("grid point %d: %s", number + 1, error)
                point = GridPoint.of(rates, Accuracy(len(judge), 0, 0), 0.0)
            done.append(point)
            if run.ranks.first:
                write_points(path, run.work, done)
                remove_states(directory)
            barrier()
        return done

    def _carried(self) -> tuple[nn.Module, int]:
        config = self._run.config
        about, weights = as_tuned(self._run.source.metadata.backbone, self.weights, config)
        backbone = build_backbone(about)
        backbone.load_state_dict(backbone.state_dict() | weights, strict=True)
        if config.attentive is None and config.feature in (POOLED, FC_NORM):
            return backbone, backbone.feature_dim
        shown = torch.zeros(1, 3, config.image.size, config.image.size)
        with torch.no_grad():
            if config.attentive is None:
                return backbone, pooled(backbone.eval(), shown, (config.feature,))[config.feature].shape[1]
            width = tokens_of(backbone.eval(), shown).shape[2]
        if width % config.attentive.heads:
            raise UserError(f"attentive.heads: {config.attentive.heads} heads do not divide {width} channels")
        return backbone, width


def as_tuned(
    about: BackboneConfig, weights: Mapping[str, Tensor], config: FinetuneConfig
) -> tuple[BackboneConfig, Mapping[str, Tensor]]:
    """Return a backbone as it is fine-tuned, and those of its weights that are carried.

    Raises UserError where the recipe asks a network for stochastic depth or a norm that it cannot have.
    """
    for key, asked in (("drop_path", config.drop_path is not None), ("feature", config.feature == FC_NORM)):
        if asked and about.family != "timm":
            raise UserError(f"{key}: {about.label} is no model of timm's; leave it out")
    if config.drop_path is not None:
        about = about.model_copy(update={"drop_path": config.drop_path})
    if config.feature != FC_NORM or about.pool == "avg":
        return about, weights
    pooling = about.model_copy(update={"pool": "avg"})
    kept = {name: value for name, value in weights.items() if not name.startswith("norm.")}
    expected = expected_tensors(pooling)
    if set(expected) - set(kept) != {"fc_norm.weight", "fc_norm.bias"}:
        raise UserError(f"feature: fc_norm: {about.label} has no last norm to put behind the mean")
    return pooling, kept
