"""Training one classifier from a carried backbone: exact to resume, optionally judged on held-out images."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from carryover.configs import UserError, WorkError
from carryover.core.data.config import AugmentConfig
from carryover.core.data.prepared import Dataset, EvaluationLoader
from carryover.core.formats.claims import Work
from carryover.core.formats.metrics_log import MetricsLog
from carryover.core.formats.state import load_state, save_state
from carryover.core.training.allocation import freed_memory_kept
from carryover.core.training.convolution import use_products
from carryover.core.training.distributed import Ranks, barrier, with_sync_bn
from carryover.core.training.interrupt import Interrupted, StopRequest
from carryover.core.training.progress import progress
from carryover.core.training.schedules import warmup_cosine, warmup_multistep
from carryover.core.training.window import Window
from carryover.transfer.classify.classifier import Accuracy, Classifier, build_optimizer, count, set_rates
from carryover.transfer.classify.config import CosineSchedule, FinetuneConfig, Schedule
from carryover.transfer.classify.loading import laid_out, training_loader

log = logging.getLogger(__name__)

STATE_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Training:
    """One classifier to be trained.

    Attributes
    ----------
    backbone
        Builds the carried backbone with its weights; returns it with its feature dimension.
    images
        The labelled images that are trained on.
    lr_backbone, lr_head
        Peak rates, scaled to the batch.
    out
        Where state and metrics go.
    work
        Tells what is trained from any other, so that another training's state is refused.
    judge
        Held-out images on which the best epoch is chosen; None: the last epoch counts.
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
        Too few images for one step, or a directory that holds another training's state.
    WorkError
        A loss that is not finite.
    """
    config, ranks = training.config, training.ranks
    _require_two_in_a_batch(training)
    model, optimizer = _build(training)
    loader = training_loader(
        training.images, training.augment, config.batch_size, config.seed, ranks, config.workers
    )
    epoch_steps = loader.steps_per_epoch
    total = config.schedule.epochs * epoch_steps
    metrics = MetricsLog(training.out / METRICS_NAME, total)
    history = _History(training, model, optimizer)
    step = history.restore()
    if ranks.first:
        metrics.rewind(step)
    wrapped: nn.Module = model
    if ranks.world > 1:
        wrapped = DistributedDataParallel(
            model,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            broadcast_buffers=False,
        )

    with ExitStack() as stack:
        stack.enter_context(freed_memory_kept(ranks.device))
        bar = stack.enter_context(progress(f"fine-tune {config.name}", total, step, ranks.first))
        window = Window(config.batch_size)
        model.train()
        while step < total:
            epoch, start = divmod(step, epoch_steps)
            for batch in loader.epoch(epoch, start):
                window.batch_arrived()
                factor = rate_factor(config.schedule, step, epoch_steps)
                set_rates(optimizer, factor)
                _seed_step(config.seed, step, ranks)
                assert batch.label is not None
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    logits = wrapped(laid_out(batch.views[0], config.channels_last))
                loss = cross_entropy(logits.float(), batch.label)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                window.step_taken(loss, {})
                step += 1

                epoch_ends = step % epoch_steps == 0
                if epoch_ends and training.judge is not None:
                    history.judge(step // epoch_steps, accuracy(model, training.judge, training))
                    model.train()
                save = epoch_ends and (step // epoch_steps) % config.checkpoint_every == 0
                report = save or epoch_ends or step % config.log_every == 0
                # Several ranks agree on stopping by a collective call: they ask only where they meet anyway.
                leave = (report or ranks.world == 1) and stop.requested() and step < total
                if report or leave:
                    numbers = window.close(step)
                    if ranks.first:
                        rates = {
                            "lr_backbone": factor * training.lr_backbone,
                            "lr_head": factor * training.lr_head,
                        }
                        metrics.write(step, epoch=step / epoch_steps, **rates, **numbers)
                    window = Window(config.batch_size)
                    bar.advance(0, loss=numbers["loss"])
                if save or leave:
                    history.save(step)
                if leave:
                    raise Interrupted(stop.signum)
                bar.advance(1)
    return history.finished(config.schedule.epochs)


def rate_factor(schedule: Schedule, step: int, epoch_steps: int) -> float:
    """Return the factor on both peak rates at `step` (0-based), with `epoch_steps` steps an epoch."""
    if isinstance(schedule, CosineSchedule):
        if schedule.per == "step":
            return warmup_cosine(step, schedule.epochs * epoch_steps)
        return warmup_cosine(step // epoch_steps, schedule.epochs)
    return warmup_multistep(step // epoch_steps, schedule.milestones, schedule.gamma)


def accuracy(model: Classifier, images: Dataset, training: Training) -> Accuracy:
    """Test on all of `images`, each resized and cropped centrally; every rank gets the same answer."""
    if training.ranks.world > 1:
        # Each rank tracked statistics of its own; all test with the first one's.
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    return count(_predictions(model, images, training), training.ranks.device)


def _predictions(model: Classifier, images: Dataset, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
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
    with (
        torch.inference_mode(),
        torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        for batch in loader:
            assert batch.label is not None
            yield model(laid_out(batch.views[0], config.channels_last)), batch.label


def _require_two_in_a_batch(training: Training) -> None:
    images, batch = len(training.images), training.config.batch_size
    last = images % batch or min(images, batch)
    uses_batches = training.config.bn == "train" or training.config.head_norm == "batch"
    if uses_batches and last <= training.ranks.world:
        raise UserError(
            f"batch_size {batch} leaves one of {images} images for an epoch's last batch, which batch"
            " normalisation cannot train on; choose another batch_size, or bn: eval and head_norm: none"
        )


def _build(training: Training) -> tuple[Classifier, torch.optim.SGD]:
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


def _seed_step(seed: int, step: int, ranks: Ranks) -> None:
    """Seed torch for this step (stochastic depth draws from it): no generator's state needs saving."""
    own = np.random.SeedSequence([seed, step, ranks.rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(own[0]))


class _History:
    """What outlives this process: the state to resume from, the best epoch so far, the time spent."""

    def __init__(self, training: Training, model: Classifier, optimizer: torch.optim.Optimizer) -> None:
        self._training, self._model, self._optimizer = training, model, optimizer
        self._path = training.out / STATE_NAME
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._best: dict[str, Any] | None = None

    def restore(self) -> int:
        """Load the newest whole state; return the number of steps it has behind it, 0 when there is none."""
        state = load_state(self._path)
        if state is None:
            return 0
        self._training.work.require(self._path, state["identity"])
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = state["best"]
        self._seconds_before = state["seconds"]
        log.info("%s: resuming after step %d", self._training.out, state["step"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Save the state after `step` steps; every rank leaves when the file is there.

        Raises WorkError, and keeps the last good state, when a weight is not finite.
        """
        for name, value in self._model.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise WorkError(f"'{name}' has values that are not finite after step {step}")
        if self._training.ranks.first:
            state = {
                "identity": self._training.work.identity.to_json(),
                "step": step,
                "seconds": self._seconds(),
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "best": self._best,
            }
            save_state(self._path, state)
        barrier()

    def judge(self, epoch: int, found: Accuracy) -> None:
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

    def finished(self, epochs: int) -> Trained:
        """Return the model of the best epoch, or the last one's where nothing judged."""
        seconds = self._seconds()
        if self._best is None:
            return Trained(self._model, epochs, seconds, None)
        self._model.load_state_dict(self._best["model"])
        judged = Accuracy(self._best["images"], self._best["top1"], self._best["top5"])
        return Trained(self._model, self._best["epoch"], seconds, judged)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
