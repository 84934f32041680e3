"""Linear evaluation by protocol, or on cached features."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carryover.configs import WorkError
from carryover.configs.files import write_atomic
from carryover.core.data.labelled.images import LabeledImages
from carryover.core.formats.metrics_log import METRICS_NAME
from carryover.transfer.tasks.base import Outcome, Run, Task
from carryover.transfer.tasks.facts import LabeledFacts
from carryover.transfer.tasks.frozen.task import require_crops
from carryover.transfer.tasks.linear.config import CachedMode, LinearConfig, ProtocolMode

if TYPE_CHECKING:
    from torch import Tensor

    from carryover.core.backbones.source import Source
    from carryover.core.training.interrupt import StopRequest
    from carryover.transfer.tasks.frozen.backbone import Frozen
    from carryover.transfer.tasks.linear.selection import Trained

CHOICES_NAME = "choices.csv"

LinearRun = Run[LinearConfig, LabeledImages]


class LinearFacts(LabeledFacts):
    """Facts in the record of either mode.

    Attributes
    ----------
    mode
        "protocol": random crops in every epoch; "cached": central crops, logistic regression by L-BFGS.
    held_out_images, held_out_top1
        On how many images the classifier was chosen, and its accuracy (%) there.
    unchanged_tensors
        Tensors of the backbone found to be what they were.
    """

    mode: str
    held_out_images: int | None = None
    held_out_top1: float | None = None
    unchanged_tensors: int


class ProtocolFacts(LinearFacts):
    """Facts of the papers' mode."""

    classifiers: int
    classifier: str
    epochs: int
    batch_size: int
    optimizer: str


class CachedFacts(LinearFacts):
    """Facts of cached mode; `gradient` is the largest entry at the end of the fit."""

    C: float
    gradient: float
    feature_seconds: float
    fit_seconds: float


@dataclass
class Probed:
    """A frozen backbone and, in protocol mode, the classifiers that were trained on it."""

    frozen: "Frozen"
    before: "dict[str, Tensor]"
    trained: "Trained | None" = None


class Linear(Task[LinearConfig, LabeledImages, Probed]):
    """Linear classifiers on a frozen network's features of labeled images; the chosen one is tested.

    The task recorded is "linear" in protocol mode, "linear_cached" in cached mode.
    """

    def prepare(self, config: LinearConfig) -> LabeledImages:
        """Check that the data set is there."""
        return LabeledImages(config.data, config.labels, config.seed)

    def require(self, config: LinearConfig, source: "Source") -> None:
        """Raise UserError where the images' size or normalization are not the checkpoint's."""
        require_crops(config, source)

    def begun_by_v1(self, run: LinearRun) -> tuple[object, ...]:
        """Return seed, checkpoint and choice of images."""
        return run.config.seed, run.source.sha256, run.data.train.digest

    @contextmanager
    def build(self, run: LinearRun) -> Iterator[Probed]:
        """Fix the backbone."""
        from carryover.transfer.tasks.frozen.backbone import frozen_of

        frozen = frozen_of(run)
        yield Probed(frozen, {name: value.clone() for name, value in frozen.backbone.state_dict().items()})

    def train(self, run: LinearRun, model: Probed, stop: "StopRequest") -> float:
        """Train every head at once, and choose; cached mode trains nothing that could be interrupted."""
        from carryover.transfer.tasks.linear.selection import train_protocol

        if not isinstance(run.config.mode, ProtocolMode):
            return 0.0
        model.trained = train_protocol(run, model.frozen, run.config.mode, stop)
        return model.trained.seconds

    def test(self, run: LinearRun, model: Probed) -> Outcome:
        """Test what was chosen.

        Raises WorkError for a chosen classifier that has diverged, or a frozen network that has changed.
        """
        mode = run.config.mode
        if isinstance(mode, ProtocolMode):
            return _tested_by_protocol(run, mode, model)
        return _tested_on_cached_features(run, mode, model)


def _tested_by_protocol(run: LinearRun, mode: ProtocolMode, model: Probed) -> Outcome:
    from carryover.transfer.tasks.linear.training import require_finite

    trained, data = model.trained, run.data
    assert trained is not None
    probe, index, chosen = trained.probe, trained.index, trained.chosen
    artifacts = {"metrics": METRICS_NAME}
    if chosen is not None:
        rows: list[dict[str, float | str]] = [
            {"depth": c.depth, "lr": c.lr, "weight_decay": c.weight_decay, "held_out_top1": c.top1_percent}
            for c in trained.candidates
        ]
        _write_choices(run, rows)
        artifacts["choices"] = CHOICES_NAME
    require_finite(probe.heads, index)
    outcomes = probe.ranked(data.test, index)
    facts = ProtocolFacts.of(
        run,
        held_out_images=None if chosen is None else chosen.images,
        held_out_top1=None if chosen is None else chosen.top1_percent,
        mode="protocol",
        unchanged_tensors=_unchanged(model),
        classifiers=mode.heads,
        classifier=probe.heads.specs[index].label,
        epochs=mode.schedule.epochs,
        batch_size=mode.batch_size,
        optimizer=mode.optimizer.name,
    )
    return Outcome(
        outcomes=outcomes,
        train_images=len(probe.images),
        # Held-out images whose classifier is not trained again are no part of it.
        label_fraction=len(probe.images) / len(data.splits.train),
        selected_on=_chosen_on(run, mode.held_out),
        facts=facts,
        artifacts=artifacts,
        recorded_as="linear",
    )


def _tested_on_cached_features(run: LinearRun, mode: CachedMode, model: Probed) -> Outcome:
    from carryover.transfer.tasks.linear.cached import fit_and_test

    data = run.data
    fitted = fit_and_test(mode, data, model.frozen)
    _write_choices(run, fitted.choices)
    facts = CachedFacts.of(
        run,
        mode="cached",
        held_out_images=fitted.held_out.images,
        held_out_top1=fitted.held_out.top1_percent,
        unchanged_tensors=_unchanged(model),
        C=fitted.cost,
        gradient=fitted.gradient,
        feature_seconds=fitted.feature_seconds,
        fit_seconds=fitted.fit_seconds,
    )
    return Outcome(
        outcomes=fitted.tested,
        train_images=len(data.train.positions),
        label_fraction=data.label_fraction,
        selected_on=_chosen_on(run, mode.held_out),
        facts=facts,
        artifacts={"choices": CHOICES_NAME},
        recorded_as="linear_cached",
    )


def _write_choices(run: LinearRun, rows: list[dict[str, float | str]]) -> None:
    """Write what every candidate came to on the held-out images."""
    import pandas as pd

    if run.ranks.first:
        write_atomic(run.out / CHOICES_NAME, pd.DataFrame(rows).to_csv(index=False))


def _unchanged(model: Probed) -> int:
    import torch

    after = model.frozen.backbone.state_dict()
    changed = [name for name, value in model.before.items() if not torch.equal(after[name].cpu(), value)]
    if changed:
        raise WorkError(f"the network is frozen, but {', '.join(changed[:5])} changed")
    return len(model.before)


def _chosen_on(run: LinearRun, fraction: float | None) -> str | None:
    return None if fraction is None else run.config.data.chosen_on(fraction)
