"""Training one classifier from a carried backbone: exact to resume, optionally judged on held-out images."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from carryover.configs import UserError
from carryover.core.data.config import AugmentConfig
from carryover.core.data.labelled.loading import laid_out, training_loader
from carryover.core.data.prepared import Batch, Dataset, EvaluationLoader
from carryover.core.formats.claims import Work
from carryover.core.training.convolution import use_products
from carryover.core.training.device import bf16_autocast
from carryover.core.training.distributed import Ranks, data_parallel, share_buffers, with_sync_bn
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import Plan, epochs, require_finite, train
from carryover.core.training.validation import PREFIX, left_as_it_was, looks
from carryover.transfer.results.outcomes.rankings import Rankings
from carryover.transfer.tasks.accuracy import Accuracy, count, rankings
from carryover.transfer.tasks.finetune.config import FinetuneConfig
from carryover.transfer.tasks.finetune.mixing import mixed, require_groups
from carryover.transfer.tasks.finetune.model import Classifier, build_optimizer, set_rates
from carryover.transfer.tasks.schedules import rate_factor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """One classifier to be trained.

    Attributes
    ----------
    backbone
        Builds the carried backbone with its weights; returns it with its feature dimension.
    images
        The labeled images that are trained on.
    lr_backbone, lr_head
        Peak rates, scaled to the batch.
    out
        Where state and metrics go.
    work
        Identifies the training, so that another training's state is an error.
    judge
        Held-out images on which the best epoch is chosen; None: the last epoch counts.
    watched
        Images on which accuracy is measured for the log, where the recipe asks for it.
    """

    config: FinetuneConfig
    backbone: Callable[[], tuple[nn.Module, int]]
    images: Dataset
    augment: AugmentConfig
    lr_backbone: float
    lr_head: float
    out: Path
    ranks: Ranks
    work: Work
    judge: Dataset | None = None
    watched: Dataset | None = None


@dataclass(frozen=True)
class Trained:
    """A trained classifier, the epoch it is of, the seconds it took, its accuracy on the judge's images."""

    model: Classifier
    epoch: int
    seconds: float
    judged: Accuracy | None


def train_classifier(training: Training, stop: StopRequest) -> Trained:
    """Train to the end of the schedule, from the newest state in `training.out` if there is one.

    Every rank calls this. SIGUSR2 or SIGTERM saves the state and leaves through `Interrupted`.

    Raises
    ------
    UserError
        Too few images for one step, groups of mixed images that are cut by the ranks, or a directory that
        holds another training's state.
    WorkError
        A loss that is not finite.
    """
    _require_two_in_a_batch(training)
    if training.config.mix is not None:
        require_groups(training.config.mix, training.config.batch_size, training.ranks)
    finetuning = _Finetuning(training)
    seconds = train(training.work, finetuning.plan(), finetuning, training.ranks, stop)
    return finetuning.finished(seconds)


def accuracy(model: Classifier, images: Dataset, training: Training) -> Accuracy:
    """Test on all of `images`, each resized and cropped centrally; every rank gets the same answer."""
    share_buffers(model)
    return count(_predictions(model, images, training), training.ranks.device)[0]


def ranked(model: Classifier, images: Dataset, training: Training) -> Rankings:
    """Rank the classes for all of `images`, as `accuracy` counts them; every rank gets the same answer."""
    share_buffers(model)
    return rankings(_predictions(model, images, training), images)


def _predictions(model: Classifier, images: Dataset, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (B, 1, classes) and labels, in float32 whatever the precision of the training.

    In bfloat16 logits have 8 bits, and the best classes of several images in a hundred are equals.
    """
    config, ranks = training.config, training.ranks
    loader = EvaluationLoader(
        images,
        training.augment,
        config.batch_size,
        ranks.rank,
        ranks.world,
        config.workers,
        ranks.device,
    )
    model.eval()
    for batch in loader:
        assert batch.label is not None
        # Around the network alone: what is yielded is looked at in the caller's own modes.
        with torch.no_grad():
            logits = model(laid_out(batch.views[0], config.channels_last))
        yield logits.unsqueeze(1), batch.label


def _require_two_in_a_batch(training: Training) -> None:
    images, batch = len(training.images), training.config.batch_size
    last = batch if training.config.drop_last else images % batch or min(images, batch)
    uses_batches = training.config.bn == "train" or training.config.head_norm == "batch"
    if uses_batches and last <= training.ranks.world:
        raise UserError(
            f"batch_size {batch} leaves one of {images} images for an epoch's last batch, which batch"
            " normalization cannot train on; choose another batch_size, or bn: eval and head_norm: none"
        )


def _build(training: Training) -> tuple[Classifier, torch.optim.Optimizer]:
    config, ranks = training.config, training.ranks
    labels = training.images.labels
    assert labels is not None
    # The head's first weights come from torch's own generator.
    torch.manual_seed(config.seed)
    backbone, feature_dim = training.backbone()
    model = Classifier(backbone, feature_dim, len(training.images.classes), config)
    if config.sync_bn and ranks.world > 1:
        with_sync_bn(model, ranks.device)
    model.to(ranks.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    use_products(model)
    return model, build_optimizer(model, config, training.lr_backbone, training.lr_head)


class _Finetuning:
    """A classifier in training, as the loop sees it; remembers the best epoch where images are held out."""

    def __init__(self, training: Training) -> None:
        config, ranks = training.config, training.ranks
        self._training = training
        self._model, self._optimizer = _build(training)
        self._wrapped: nn.Module = self._model
        self._loader = training_loader(
            training.images,
            training.augment,
            config.batch_size,
            config.seed,
            ranks,
            config.workers,
            config.drop_last,
        )
        self._best: dict[str, Any] | None = None
        self._judged: dict[str, float] = {}
        self._factor = 0.0

    def plan(self) -> Plan:
        """Plan the whole schedule."""
        config, each = self._training.config, self._loader.steps_per_epoch
        end = config.schedule.epochs * each
        return Plan(
            title=f"fine-tune {config.name}",
            end=end,
            reports=lambda step: step % each == 0 or step % config.log_every == 0,
            saves=lambda step: step % (each * config.checkpoint_every) == 0,
            images_per_step=config.batch_size,
            out=self._training.out,
            tensorboard=config.watch.tensorboard,
            looks=looks(end, config.watch),
            look=None if self._training.watched is None else self._look,
            falls=True,
        )

    def _look(self) -> dict[str, float]:
        training = self._training
        assert training.watched is not None
        with left_as_it_was(self._model):
            found = accuracy(self._model, training.watched, training)
        return {f"{PREFIX}top1": found.top1_percent}

    def begin(self, step: int) -> None:
        """Share the model among the ranks."""
        self._wrapped = data_parallel(self._model, self._training.ranks)
        self._model.train()

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield labeled batches."""
        yield from epochs(self._loader, step)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Take one step on the cross-entropy; judge the model at the end of an epoch."""
        training, config = self._training, self._training.config
        each = self._loader.steps_per_epoch
        self._factor = rate_factor(config.schedule, step, each)
        set_rates(self._optimizer, self._factor)
        # Stochastic depth draws from torch's generator: seeded afresh, its state needs no saving.
        own = np.random.SeedSequence([config.seed, step, training.ranks.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(own[0]))
        images, target, smoothing = batch.views[0], batch.label, config.smoothing
        assert target is not None
        if config.mix is not None:
            classes = len(training.images.classes)
            images, target = mixed(images, target, classes, config, step, training.ranks)
            # The mixed targets are smooth already.
            smoothing = 0.0
        with bf16_autocast(training.ranks.device, config.precision == "bf16"):
            logits = self._wrapped(laid_out(images, config.channels_last))
        loss = cross_entropy(logits.float(), target, label_smoothing=smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        if training.judge is not None and (step + 1) % each == 0:
            found = accuracy(self._model, training.judge, training)
            self._judge((step + 1) // each, found)
            self._judged = {f"{PREFIX}top1": found.top1_percent}
            self._model.train()
        return {"loss": loss}

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Return the epoch, both rates, and at its end the accuracy on the images for selection."""
        training, judged = self._training, self._judged
        self._judged = {}
        return judged | {
            "epoch": step / self._loader.steps_per_epoch,
            "lr_backbone": self._factor * training.lr_backbone,
            "lr_head": self._factor * training.lr_head,
        }

    def require_finite(self, step: int) -> None:
        """Refuse weights that are not finite."""
        require_finite(self._model.state_dict(), step)

    def state(self) -> dict[str, Any]:
        """Return the model, the optimizer and the best model so far."""
        model, optimizer = self._model.state_dict(), self._optimizer.state_dict()
        return {"model": model, "optimizer": optimizer, "best": self._best}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load them."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = state["best"]

    def finished(self, seconds: float) -> Trained:
        """Return the model of the best epoch, or the last one's where nothing judged."""
        if self._best is None:
            return Trained(self._model, self._training.config.schedule.epochs, seconds, None)
        self._model.load_state_dict(self._best["model"])
        judged = Accuracy(self._best["images"], self._best["top1"], self._best["top5"])
        return Trained(self._model, self._best["epoch"], seconds, judged)

    def _judge(self, epoch: int, found: Accuracy) -> None:
        """Remember the model if it is the best so far; of equals the earliest is kept."""
        log.info("epoch %d: %.2f %% of the held-out images", epoch, found.top1_percent)
        if self._best is None or found.top1 > self._best["top1"]:
            self._best = {
                "epoch": epoch,
                "images": found.images,
                "top1": found.top1,
                "top5": found.top5,
                "model": _copied(self._model.state_dict()),
            }


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
