"""The protocol of a fine-tuning run: carry, choose labels, train (over a grid, if asked), test, record."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from carryover.configs import WorkError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.pixels import require_same_crops
from carryover.core.backbones.source import open_source
from carryover.core.data.labelled import subsets
from carryover.core.data.labelled.splits import LabelledSubset, Splits, choose_labelled, open_splits
from carryover.core.data.labelled.subsets import Indices
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.formats.claims import Work
from carryover.core.formats.state import STATE_NAME, previous
from carryover.core.training.distributed import Ranks, barrier, joined
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import METRICS_NAME
from carryover.transfer.results.record import ResultRecord, make_record, write_record
from carryover.transfer.tasks.accuracy import TOP, Accuracy, accuracy_metrics
from carryover.transfer.tasks.finetune.config import BestEpoch, FinetuneConfig, GridOfRates
from carryover.transfer.tasks.finetune.grid import GRID_NAME, GridPoint, best_point, read_points, write_points
from carryover.transfer.tasks.finetune.model import Classifier
from carryover.transfer.tasks.finetune.training import (
    Trained,
    Training,
    accuracy,
    train_classifier,
)
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record, save_weights, spread

log = logging.getLogger(__name__)

WEIGHTS_NAME = "classifier.safetensors"


def run_protocol(config: FinetuneConfig, checkpoint: Path, out: Path) -> ResultRecord:
    """Fine-tune and test as `config` says; see `transfer.tasks.finetune.entry.evaluate`."""
    source = open_source(checkpoint)
    backbone, metadata = source.backbone, source.metadata
    work = Work(out, config, identify(config, source))
    if (finished := finished_record(out, work.identity, source.sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    require_same_crops(config.image, metadata, checkpoint)
    with joined() as ranks, StopRequest() as stop:
        splits = open_splits(config.data)
        subset = choose_labelled(config.labels, splits, config.seed)
        work = replace(work, v1=(config.seed, source.sha256, subset.digest))
        if ranks.first:
            work.claim()
        barrier()
        run = _Run(config, splits, subset, backbone.state_dict(), metadata, ranks, stop, work)
        outcome = _select_and_train(run, out)

        began = time.monotonic()
        final = run.training(out, subset.positions)
        tested = accuracy(outcome.trained.model, splits.test, final)
        facts = outcome.facts | _facts(run, outcome)
        if config.freeze_backbone:
            facts["backbone tensors unchanged"] = _assert_frozen(outcome.trained.model, run.weights)
        artifacts = {"metrics": METRICS_NAME, "recipe": RECIPE_NAME}
        if isinstance(config.selection, GridOfRates):
            artifacts["grid"] = GRID_NAME
        if config.keep_weights:
            artifacts["weights"] = WEIGHTS_NAME
        record = make_record(
            recipe=config,
            task="finetune",
            source=source,
            data_digest=work.identity.parts["data"],
            dataset=config.data.title,
            split=config.data.test_split,
            backend="carryover",
            seed=config.seed,
            metrics=accuracy_metrics(tested, len(splits.classes)),
            wall_seconds=outcome.seconds + time.monotonic() - began,
            selection="last" if outcome.selected_on is None else "best",
            selected_on=outcome.selected_on,
            train_images=outcome.train_images,
            label_fraction=len(subset.indices) / len(splits.train),
            facts=facts,
            artifacts=artifacts,
        )
        if ranks.first:
            if config.keep_weights:
                save_weights(out / WEIGHTS_NAME, outcome.trained.model)
            # The record comes before the state goes, so that there is always something to go on from.
            write_record(record, out)
            _forget_state(out)
        barrier()
    return record


@dataclass(frozen=True)
class _Run:
    """What every training of one evaluation shares."""

    config: FinetuneConfig
    splits: Splits
    subset: LabelledSubset
    weights: dict[str, Tensor]
    metadata: CanonicalMetadata
    ranks: Ranks
    stop: StopRequest
    work: Work

    def training(
        self,
        out: Path,
        images: Indices,
        judge: Indices | None = None,
        base_rates: tuple[float, float] | None = None,
    ) -> Training:
        """Describe the training of one classifier on these of the labelled images."""
        o = self.config.optimizer
        backbone, head = base_rates or (o.base_lr_backbone, o.base_lr_head)
        scale = self.config.batch_size / o.lr_per
        return Training(
            config=self.config,
            backbone=self._carried,
            images=self.subset.images.take(images),
            augment=self.config.image.augment(self.metadata.pixel_mean, self.metadata.pixel_std),
            lr_backbone=backbone * scale,
            lr_head=head * scale,
            out=out,
            ranks=self.ranks,
            work=self.work,
            judge=None if judge is None else self.subset.images.take(judge),
        )

    def hold_out(self, fraction: float) -> tuple[Indices, Indices]:
        """Split the labelled subset into a part to fit on and a part to select on."""
        labels, classes = self.subset.labels, self.splits.classes
        return subsets.hold_out(labels, classes, self.subset.positions, fraction, self.config.seed)

    def _carried(self) -> tuple[nn.Module, int]:
        backbone = build_backbone(self.metadata.backbone)
        backbone.load_state_dict(self.weights, strict=True)
        return backbone, backbone.feature_dim


@dataclass(frozen=True)
class _Outcome:
    """The classifier to test, and how it was arrived at."""

    trained: Trained
    train_images: int
    seconds: float
    selected_on: str | None
    facts: dict[str, str | int | float | bool | None]


def _select_and_train(run: _Run, out: Path) -> _Outcome:
    selection = run.config.selection
    everything = run.subset.positions
    if isinstance(selection, BestEpoch):
        fit, held = run.hold_out(selection.held_out)
        trained = train_classifier(run.training(out, fit, judge=held), run.stop)
        assert trained.judged is not None
        facts = {"held-out images": len(held), "held-out top-1, %": trained.judged.top1_percent}
        return _Outcome(trained, len(fit), trained.seconds, _part(selection.held_out), dict(facts))
    if isinstance(selection, GridOfRates):
        points = _try_all(run, selection, out)
        chosen = best_point(points)
        rates = (chosen.base_lr_backbone, chosen.base_lr_head)
        log.info("best on the held-out part: backbone %g, head %g; training on all labels", *rates)
        trained = train_classifier(run.training(out, everything, base_rates=rates), run.stop)
        seconds = trained.seconds + sum(p.seconds for p in points)
        facts = {
            "grid points": len(points),
            "chosen backbone base rate": rates[0],
            "chosen head base rate": rates[1],
            "held-out images": chosen.images,
            "held-out top-1, %": chosen.top1_percent,
        }
        return _Outcome(trained, len(everything), seconds, _part(selection.held_out), dict(facts))
    trained = train_classifier(run.training(out, everything), run.stop)
    return _Outcome(trained, len(everything), trained.seconds, None, {})


def _try_all(run: _Run, selection: GridOfRates, out: Path) -> list[GridPoint]:
    fit, held = run.hold_out(selection.held_out)
    judge = run.subset.images.take(held)
    path = out / GRID_NAME
    done = read_points(path, run.work)
    for number, rates in enumerate(selection.points):
        if number < len(done):
            continue
        directory = out / "grid" / f"{number:02d}"
        training = run.training(directory, fit, base_rates=rates)
        log.info("grid point %d of %d: backbone %g, head %g", number + 1, len(selection.points), *rates)
        try:
            trained = train_classifier(training, run.stop)
            found = accuracy(trained.model, judge, training)
            point = GridPoint.of(rates, found, trained.seconds)
        except WorkError as error:
            # A rate that diverges is no candidate; the other points may be fine.
            log.warning("grid point %d: %s", number + 1, error)
            point = GridPoint.of(rates, Accuracy(len(held), 0, 0), 0.0)
        done.append(point)
        if run.ranks.first:
            write_points(path, run.work, done)
            _forget_state(directory)
        barrier()
    return done


def _part(fraction: float) -> str:
    return f"held-out {100 * fraction:g} % of the labelled training images"


def _facts(run: _Run, outcome: _Outcome) -> dict[str, str | int | float | bool | None]:
    config = run.config
    facts: dict[str, str | int | float | bool | None] = {
        "labels": run.subset.what,
        "images per class": spread(run.subset.counts),
        "classes": len(run.splits.classes),
        "epochs": config.schedule.epochs,
        "epoch of the result": outcome.trained.epoch,
        "images per batch": config.batch_size,
        "learning rate, backbone": config.lr_backbone,
        "learning rate, head": config.lr_head,
        "batch norm in training": config.bn + (", synchronised" if config.sync_bn else ""),
        "frozen backbone": config.freeze_backbone,
        "head initialisation": config.head_init,
        "head normalisation": config.head_norm,
        "devices": run.ranks.world,
    }
    if isinstance(config.selection, GridOfRates):
        scale = config.batch_size / config.optimizer.lr_per
        facts["learning rate, backbone"] = scale * float(outcome.facts["chosen backbone base rate"] or 0)
        facts["learning rate, head"] = scale * float(outcome.facts["chosen head base rate"] or 0)
    if len(run.splits.classes) <= max(TOP):
        facts["top-5"] = f"left out: with {len(run.splits.classes)} classes it says nothing"
    return facts


def _assert_frozen(model: Classifier, weights: dict[str, Tensor]) -> int:
    now = model.backbone.state_dict()
    changed = [name for name, value in weights.items() if not torch.equal(now[name].cpu(), value)]
    if changed:
        raise WorkError(f"the backbone is frozen, but training changed {', '.join(changed[:5])}")
    return len(weights)


def _forget_state(directory: Path) -> None:
    for state in (directory / STATE_NAME, previous(directory / STATE_NAME)):
        state.unlink(missing_ok=True)
