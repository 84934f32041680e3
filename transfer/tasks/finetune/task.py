"""Fine-tuning on few labels: a pretrained backbone and a new linear head, trained and tested."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carryover.configs import WorkError
from carryover.core.data.labelled.images import LabeledImages
from carryover.core.formats.metrics_log import METRICS_NAME
from carryover.transfer.tasks.base import Outcome, Run, Task
from carryover.transfer.tasks.facts import LabeledFacts
from carryover.transfer.tasks.finetune.config import FinetuneConfig, GridOfRates, LastEpoch

if TYPE_CHECKING:
    from torch import Tensor

    from carryover.core.backbones.source import Source
    from carryover.core.training.interrupt import StopRequest
    from carryover.transfer.tasks.finetune.model import Classifier
    from carryover.transfer.tasks.finetune.selection import Candidates, Chosen

WEIGHTS_NAME = "classifier.safetensors"
# What a record calls the probe, whose numbers do not compare with a fine-tuning's.
ATTENTIVE = "attentive"

FinetuneRun = Run[FinetuneConfig, LabeledImages]


class FinetuneFacts(LabeledFacts):
    """Facts in the record of a fine-tuning.

    Attributes
    ----------
    epochs, result_epoch
        Length of the training, and the epoch that is tested.
    lr_backbone, lr_head
        Peak rates at the recipe's batch; those that a grid chose.
    bn, sync_bn
        Batch norm in training.
    top5_left_out
        With five classes or fewer, top-5 says nothing and is not recorded.
    grid_points, base_lr_backbone, base_lr_head
        Pairs of rates that were tried, and the base rates chosen.
    held_out_images, held_out_top1
        On how many images the result was chosen, and its accuracy (%) there.
    unchanged_tensors
        Tensors of a frozen backbone found to be what they were.
    """

    epochs: int
    result_epoch: int
    batch_size: int
    lr_backbone: float
    lr_head: float
    bn: str
    sync_bn: bool
    frozen_backbone: bool
    head_init: str
    head_norm: str
    top5_left_out: bool
    grid_points: int | None = None
    base_lr_backbone: float | None = None
    base_lr_head: float | None = None
    held_out_images: int | None = None
    held_out_top1: float | None = None
    unchanged_tensors: int | None = None


@dataclass
class Tuned:
    """The trainings to choose among, and, when they are over, the one that was chosen."""

    candidates: "Candidates"
    chosen: "Chosen | None" = None


class Finetune(Task[FinetuneConfig, LabeledImages, Tuned]):
    """The backbone and a new linear head, fine-tuned on the labeled subset."""

    def prepare(self, config: FinetuneConfig) -> LabeledImages:
        """Check that the data set is there."""
        return LabeledImages(config.data, config.labels, config.seed)

    def require(self, config: FinetuneConfig, source: "Source") -> None:
        """Raise UserError where the images' size or normalization are not the checkpoint's."""
        from carryover.core.backbones.pixels import require_same_crops

        require_same_crops(config.image, source.metadata, source.path)

    def begun_by_v1(self, run: FinetuneRun) -> tuple[object, ...]:
        """Return seed, checkpoint and choice of images."""
        return run.config.seed, run.source.sha256, run.data.train.digest

    @contextmanager
    def build(self, run: FinetuneRun) -> Iterator[Tuned]:
        """Keep the carried weights, from which every training begins."""
        from carryover.transfer.tasks.finetune.selection import Candidates

        yield Tuned(Candidates(run))

    def train(self, run: FinetuneRun, model: Tuned, stop: "StopRequest") -> float:
        """Train, over a grid of rates if asked to, and choose."""
        model.chosen = model.candidates.train(stop)
        return model.chosen.seconds

    def test(self, run: FinetuneRun, model: Tuned) -> Outcome:
        """Test the chosen classifier; keeps its weights where the recipe says so.

        Raises WorkError for a frozen backbone that has changed.
        """
        from carryover.transfer.tasks.finetune.grid import GRID_NAME
        from carryover.transfer.tasks.finetune.training import ranked
        from carryover.transfer.tasks.outputs import save_weights

        config, data, chosen = run.config, run.data, model.chosen
        assert chosen is not None
        classifier = chosen.trained.model
        as_trained = model.candidates.training(run.out, data.train.positions)
        outcomes = ranked(classifier, data.test, as_trained)
        unchanged = _assert_frozen(classifier, model.candidates.weights) if config.freeze_backbone else None
        artifacts = {"metrics": METRICS_NAME}
        if isinstance(config.selection, GridOfRates):
            artifacts["grid"] = GRID_NAME
        if config.keep_weights:
            artifacts["weights"] = WEIGHTS_NAME
            if run.ranks.first:
                save_weights(run.out / WEIGHTS_NAME, classifier)
        return Outcome(
            outcomes=outcomes,
            train_images=chosen.train_images,
            label_fraction=data.label_fraction,
            selected_on=_selected_on(config),
            facts=_facts(run, chosen, unchanged),
            artifacts=artifacts,
            recorded_as=None if config.attentive is None else ATTENTIVE,
        )


def _selected_on(config: FinetuneConfig) -> str | None:
    if isinstance(config.selection, LastEpoch):
        return None
    return config.data.chosen_on(config.selection.held_out)


def _facts(run: FinetuneRun, chosen: "Chosen", unchanged: int | None) -> FinetuneFacts:
    from carryover.transfer.results.outcomes.rankings import TOP

    config = run.config
    scale = config.batch_size / config.optimizer.lr_per
    rates = (config.lr_backbone, config.lr_head)
    if chosen.rates is not None:
        rates = (scale * chosen.rates[0], scale * chosen.rates[1])
    return FinetuneFacts.of(
        run,
        epochs=config.schedule.epochs,
        result_epoch=chosen.trained.epoch,
        batch_size=config.batch_size,
        lr_backbone=rates[0],
        lr_head=rates[1],
        bn=config.bn,
        sync_bn=config.sync_bn,
        frozen_backbone=config.freeze_backbone,
        head_init=config.head_init,
        head_norm=config.head_norm,
        top5_left_out=len(run.data.classes) <= max(TOP),
        grid_points=chosen.grid_points,
        base_lr_backbone=None if chosen.rates is None else chosen.rates[0],
        base_lr_head=None if chosen.rates is None else chosen.rates[1],
        held_out_images=chosen.held_out_images,
        held_out_top1=chosen.held_out_top1,
        unchanged_tensors=unchanged,
    )


def _assert_frozen(model: "Classifier", weights: "dict[str, Tensor]") -> int:
    import torch

    now = model.backbone.state_dict()
    changed = [name for name, value in weights.items() if not torch.equal(now[name].cpu(), value)]
    if changed:
        raise WorkError(f"the backbone is frozen, but training changed {', '.join(changed[:5])}")
    return len(weights)
