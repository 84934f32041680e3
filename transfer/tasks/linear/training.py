"""Training many linear classifiers on one frozen network's random crops; exact to resume."""

import logging
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carryover.configs import WorkError
from carryover.core.data.labelled.loading import laid_out, training_loader
from carryover.core.data.prepared import Batch, Dataset, EvaluationLoader
from carryover.core.formats.claims import Work
from carryover.core.training.device import bf16_autocast, device_ids
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import Plan, epochs, train
from carryover.transfer.results.outcomes.rankings import Rankings
from carryover.transfer.tasks.accuracy import Accuracy, count, rankings
from carryover.transfer.tasks.frozen.backbone import Frozen
from carryover.transfer.tasks.frozen.depths import pooled
from carryover.transfer.tasks.linear.config import LARSHeads, LinearConfig, ProtocolMode
from carryover.transfer.tasks.linear.model import StackedHeads, StackedSGD, head_losses
from carryover.transfer.tasks.schedules import rate_factor

log = logging.getLogger(__name__)


class Probe:
    """Heads on a frozen network's features, and their training, as the loop sees it.

    Attributes
    ----------
    heads
        The classifiers.
    images
        The labeled images that they are trained on.
    """

    def __init__(
        self, frozen: Frozen, mode: ProtocolMode, images: Dataset, work: Work, out: Path | None = None
    ) -> None:
        """Put new heads on the network; state and log lie in `out`, if not in the work's own directory.

        Raises UserError for a batch that the ranks cannot share, or a depth that the network lacks.
        """
        assert isinstance(frozen.config, LinearConfig)
        self._frozen, self._config, self._mode, self.images, self._work = (
            frozen,
            frozen.config,
            mode,
            images,
            work,
        )
        self._out = out
        self.heads, self._optimizer = self._build()
        self._wrapped: nn.Module = self.heads
        self._loader = training_loader(
            images, frozen.augment, mode.batch_size, self._config.seed, frozen.ranks, self._config.workers
        )
        self._factor = 0.0

    def train(self, stop: StopRequest) -> float:
        """Train every head to the end of the schedule, from the newest state if there is one.

        Every rank calls this. SIGUSR2 or SIGTERM saves the state and leaves through `Interrupted`. Returns
        the seconds spent over all attempts.

        Raises UserError for another probe's state, WorkError for a loss that is not finite.
        """
        return train(self._work, self.plan(), self, self._frozen.ranks, stop)

    def accuracy(self, images: Dataset) -> list[Accuracy]:
        """Test every head on all of `images`, cropped centrally; every rank gets the same answer."""
        return count(self._predictions(images), self._frozen.ranks.device)

    def ranked(self, images: Dataset, head: int) -> Rankings:
        """Rank the classes for all of `images` by one head; every rank gets the same answer."""
        predictions = self._predictions(images)
        return rankings(((logits[:, head : head + 1], labels) for logits, labels in predictions), images)

    def plan(self) -> Plan:
        """Plan the whole schedule."""
        config, mode, each = self._config, self._mode, self._loader.steps_per_epoch
        return Plan(
            title=f"linear {config.name}",
            end=mode.schedule.epochs * each,
            reports=lambda step: step % each == 0 or step % config.log_every == 0,
            saves=lambda step: step % (each * config.checkpoint_every) == 0,
            images_per_step=mode.batch_size,
            out=self._out,
            falls=True,
        )

    def begin(self, step: int) -> None:
        """Share the heads among the ranks."""
        ranks = self._frozen.ranks
        if ranks.world > 1:
            # Unlike `data_parallel`, it broadcasts running statistics: every rank tests the norms of heads.
            self._wrapped = DistributedDataParallel(self.heads, device_ids=device_ids(ranks.device))

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield labeled batches."""
        yield from epochs(self._loader, step)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Take one step of every head at once."""
        self._factor = rate_factor(self._mode.schedule, step, self._loader.steps_per_epoch)
        self._optimizer.set_factor(self._factor)
        assert batch.label is not None
        losses = head_losses(self._wrapped(self._features(batch.views[0])), batch.label)
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._optimizer.step()
        # One head of a grid may diverge; only the best one has to be finite.
        return {"loss": losses.nan_to_num(nan=torch.inf).min()}

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Return the epoch and the factor on every rate."""
        return {"epoch": step / self._loader.steps_per_epoch, "lr_factor": self._factor}

    def require_finite(self, step: int) -> None:
        """Allow heads to diverge: only the selected one is checked at the end."""

    def state(self) -> dict[str, Any]:
        """Return the heads and the optimizer."""
        return {"heads": self.heads.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load them."""
        self.heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _predictions(self, images: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        config, ranks = self._config, self._frozen.ranks
        share = -(-config.extract_batch // ranks.world)
        loader = EvaluationLoader(
            images, self._frozen.augment, share, ranks.rank, ranks.world, config.workers, ranks.device
        )
        for batch in loader:
            assert batch.label is not None
            with torch.no_grad():
                logits = self.heads(self._features(batch.views[0]))
            yield logits, batch.label

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Look through the frozen network, all depths at once; features come out in float32."""
        bf16, device = self._config.precision == "bf16", self._frozen.ranks.device
        with torch.no_grad(), bf16_autocast(device, bf16):
            found = pooled(self._frozen.backbone, laid_out(images, channels_last=True), self._mode.depths)
        return {depth: values.float() for depth, values in found.items()}

    def _build(self) -> tuple[StackedHeads, StackedSGD]:
        mode, device = self._mode, self._frozen.ranks.device
        self._frozen.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        size = self._config.image.size
        shown = torch.zeros(1, 3, size, size, device=device)
        dims = {depth: values.shape[1] for depth, values in self._features(shown).items()}
        # The heads' first weights come from torch's own generator.
        torch.manual_seed(self._config.seed)
        classes = len(self.images.classes)
        heads = StackedHeads(dims, mode.scaled_lrs, mode.weight_decays, classes).to(device)
        o = mode.optimizer
        if isinstance(o, LARSHeads):
            return heads, StackedSGD(heads, o.momentum, trust_coefficient=o.trust_coefficient)
        return heads, StackedSGD(heads, o.momentum, o.nesterov)


def require_finite(heads: StackedHeads, index: int) -> None:
    """Raise WorkError when the head of this index has diverged."""
    per_depth = len(heads.specs) // len(heads.depths)
    weight = heads.weights[index // per_depth][index % per_depth]
    if not torch.isfinite(weight).all():
        raise WorkError(f"the classifier {heads.specs[index].label} has weights that are not finite")
