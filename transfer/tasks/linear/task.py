"""Linear evaluation by protocol, or on cached features: a recipe and a checkpoint in, a record out."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from carryover.configs import WorkError
from carryover.configs.files import write_atomic
from carryover.core.backbones.source import Source
from carryover.core.data.labelled import subsets
from carryover.core.data.labelled.config import check_data
from carryover.core.data.labelled.splits import LabelledSubset, Splits, choose_labelled, open_splits
from carryover.core.data.labelled.subsets import Indices
from carryover.core.formats.claims import Work
from carryover.core.formats.state import STATE_NAME, previous
from carryover.core.training.distributed import Ranks, barrier, joined
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import METRICS_NAME
from carryover.transfer.results.record import ResultRecord, make_record, write_record
from carryover.transfer.tasks.accuracy import Accuracy, accuracy_metrics, count
from carryover.transfer.tasks.frozen.backbone import Frozen, open_frozen
from carryover.transfer.tasks.frozen.features import FeatureSet
from carryover.transfer.tasks.identity import identify
from carryover.transfer.tasks.linear.config import CachedMode, LinearConfig, ProtocolMode
from carryover.transfer.tasks.linear.logistic import Logistic, fit, fit_path
from carryover.transfer.tasks.linear.training import Probe, heads_accuracy, require_finite, train_heads
from carryover.transfer.tasks.outputs import RECIPE_NAME, finished_record, spread

log = logging.getLogger(__name__)

CHOICES_NAME = "choices.csv"

# Rows of features in memory at a time.
_CHUNK = 65_536

Facts = dict[str, str | int | float | bool | None]


def evaluate(config: LinearConfig, checkpoint: Path | Source, out: Path) -> ResultRecord:
    """Train linear classifiers on a frozen network's features of labelled images, and test the chosen one.

    Resumes from a half-finished `out`. Under torchrun every rank calls this with the same arguments and
    `out` on a shared file system. The task recorded is "linear" in protocol mode, "linear_cached" in cached
    mode.

    Raises
    ------
    UserError
        Data, checkpoint or recipe that cannot work together.
    WorkError
        A loss or features that are not finite, or a frozen network that has changed.
    """
    check_data(config.data)
    frozen = open_frozen(config, checkpoint)
    work = Work(out, config, identify(config, frozen.source))
    if (finished := finished_record(out, work.identity, frozen.source.sha256)) is not None:
        log.info("%s: already evaluated, nothing to do", out)
        return finished
    before = {name: value.clone() for name, value in frozen.backbone.state_dict().items()}
    with joined() as ranks, StopRequest() as stop:
        splits = open_splits(config.data)
        subset = choose_labelled(config.labels, splits, config.seed)
        work = replace(work, v1=(config.seed, frozen.source.sha256, subset.digest))
        if ranks.first:
            work.claim()
        barrier()
        job = _Job(config, frozen, splits, subset, out, ranks, work)
        outcome = _by_protocol(job, config.mode, stop) if isinstance(config.mode, ProtocolMode) else None
        if outcome is None:
            assert isinstance(config.mode, CachedMode)
            outcome = _on_cached_features(job, config.mode)
        after = frozen.backbone.state_dict()
        changed = [name for name, value in before.items() if not torch.equal(after[name].cpu(), value)]
        if changed:
            raise WorkError(f"the network is frozen, but {', '.join(changed[:5])} changed")
        record = make_record(
            recipe=config,
            task=outcome.task,
            source=frozen.source,
            data_digest=work.identity.parts["data"],
            dataset=config.data.title,
            split=config.data.test_split,
            backend="carryover",
            seed=config.seed,
            metrics=accuracy_metrics(outcome.tested, len(splits.classes)),
            wall_seconds=outcome.seconds,
            selection="last" if outcome.selected_on is None else "best",
            selected_on=outcome.selected_on,
            train_images=outcome.train_images,
            label_fraction=len(subset.indices) / len(splits.train),
            facts=outcome.facts
            | {
                "labels": subset.what,
                "images per class": spread(subset.counts),
                "backbone tensors unchanged": len(before),
                "devices": ranks.world,
            },
            artifacts={"recipe": RECIPE_NAME} | outcome.artifacts,
        )
        if ranks.first:
            # The record comes before the state goes, so that there is always something to go on from.
            write_record(record, out)
            for state in (out / STATE_NAME, previous(out / STATE_NAME)):
                state.unlink(missing_ok=True)
        barrier()
    return record


@dataclass(frozen=True)
class _Job:
    config: LinearConfig
    frozen: Frozen
    splits: Splits
    subset: LabelledSubset
    out: Path
    ranks: Ranks
    work: Work

    def hold_out(self, fraction: float) -> tuple[Indices, Indices]:
        """Split the labelled images into a part to fit on and a part to choose on."""
        labels, classes = self.subset.labels, self.splits.classes
        return subsets.hold_out(labels, classes, self.subset.positions, fraction, self.config.seed)

    def write_choices(self, rows: list[dict[str, float | str]]) -> None:
        """Write what every candidate came to on the held-out images."""
        if self.ranks.first:
            write_atomic(self.out / CHOICES_NAME, pd.DataFrame(rows).to_csv(index=False))


@dataclass(frozen=True)
class _Outcome:
    task: str
    tested: Accuracy
    train_images: int
    seconds: float
    selected_on: str | None
    facts: Facts
    artifacts: dict[str, str]


def _by_protocol(job: _Job, mode: ProtocolMode, stop: StopRequest) -> _Outcome:
    fit_on, held = job.subset.positions, None
    if mode.held_out is not None:
        fit_on, held = job.hold_out(mode.held_out)
    images = job.subset.images.take(fit_on)
    probe = Probe(job.config, mode, job.frozen, images, job.out, job.ranks, job.work)
    heads, seconds = train_heads(probe, stop)

    began = time.monotonic()
    index = 0
    facts: Facts = {
        "mode": "protocol: random crops every epoch",
        "classifiers trained at once": len(heads.specs),
        "epochs": mode.schedule.epochs,
        "images per batch": mode.batch_size,
        "optimiser": mode.optimizer.name,
    }
    artifacts = {"metrics": METRICS_NAME}
    if held is not None:
        found = heads_accuracy(probe, heads, job.subset.images.take(held))
        index = max(range(len(found)), key=lambda i: found[i].top1)
        facts |= {"held-out images": len(held), "held-out top-1, %": found[index].top1_percent}
        job.write_choices(
            [
                {
                    "depth": s.depth,
                    "lr": s.lr,
                    "weight_decay": s.weight_decay,
                    "held_out_top1": a.top1_percent,
                }
                for s, a in zip(heads.specs, found)
            ]
        )
        artifacts["choices"] = CHOICES_NAME
    require_finite(heads, index)
    facts["classifier"] = heads.specs[index].label
    tested = heads_accuracy(probe, heads, job.splits.test)[index]
    seconds += time.monotonic() - began
    return _Outcome("linear", tested, len(fit_on), seconds, _held(mode.held_out), facts, artifacts)


def _on_cached_features(job: _Job, mode: CachedMode) -> _Outcome:
    began = time.monotonic()
    ranks, classes = job.ranks, len(job.splits.classes)
    train = job.frozen.features(job.subset.images, job.out, ranks)
    test = job.frozen.features(job.splits.test, job.out, ranks)
    extracted = time.monotonic()

    fit_on, held = job.hold_out(mode.held_out)
    scale = _Scale.of(train.pooled, fit_on, mode)
    candidates = fit_path(*_rows(train, fit_on, scale, ranks), classes, mode.costs, mode.tolerance)
    found = [_accuracy(c, *_rows(train, held, scale, ranks), ranks) for c in candidates]
    best = max(range(len(found)), key=lambda i: found[i].top1)
    cost = mode.costs[best]
    job.write_choices([{"C": c, "held_out_top1": a.top1_percent} for c, a in zip(mode.costs, found)])

    scale = _Scale.of(train.pooled, job.subset.positions, mode)
    rows = _rows(train, job.subset.positions, scale, ranks)
    final = fit(*rows, classes, cost, start=candidates[best], tolerance=mode.tolerance)
    tested = _accuracy(final, *_rows(test, np.arange(len(test.labels)), scale, ranks), ranks)
    finished = time.monotonic()
    facts: Facts = {
        "mode": "cached: central crops, logistic regression by L-BFGS",
        "C": cost,
        "held-out images": len(held),
        "held-out top-1, %": found[best].top1_percent,
        "gradient at the end": final.gradient,
        "seconds for features": extracted - began,
        "seconds for all fits": finished - extracted,
    }
    return _Outcome(
        "linear_cached",
        tested,
        len(job.subset.positions),
        finished - began,
        _held(mode.held_out),
        facts,
        {"choices": CHOICES_NAME},
    )


@dataclass(frozen=True)
class _Scale:
    """An affine map of every feature dimension, measured on training images."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor, indices: Indices, mode: CachedMode) -> "_Scale":
        width = features.shape[1]
        if mode.scaling == "none":
            return cls(torch.zeros(width), torch.ones(width))
        # A chunk at a time: the features are a file, which may be larger than memory.
        chunks = torch.from_numpy(indices).split(_CHUNK)
        mean = torch.zeros(width, dtype=torch.float64)
        for chunk in chunks:
            mean += features[chunk].sum(dim=0, dtype=torch.float64) / len(indices)
        variance = torch.zeros(width, dtype=torch.float64)
        for chunk in chunks:
            variance += (features[chunk] - mean).square().sum(dim=0) / len(indices)
        deviation = variance.sqrt().float()
        # A dimension that never changes says nothing; divided by one it stays at zero.
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0))


def _rows(features: FeatureSet, indices: Indices, scale: _Scale, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the chosen features, scaled, and of the labels, on its device."""
    own = torch.from_numpy(np.array_split(indices, ranks.world)[ranks.rank])
    x = (features.pooled[own] - scale.mean) / scale.deviation
    return x.to(ranks.device), features.labels[own].to(ranks.device)


def _accuracy(classifier: Logistic, x: Tensor, y: Tensor, ranks: Ranks) -> Accuracy:
    chunks = zip(x.split(_CHUNK), y.split(_CHUNK))
    return count(((classifier.logits(a), b) for a, b in chunks), ranks.device)


def _held(fraction: float | None) -> str | None:
    return None if fraction is None else f"held-out {100 * fraction:g} % of the labelled training images"
