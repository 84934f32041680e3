"""Training many linear classifiers on one frozen network's random crops; exact to resume."""

import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carryover.configs import WorkError
from carryover.core.data.labelled.loading import laid_out, training_loader
from carryover.core.data.prepared import Batch, Dataset, EvaluationLoader
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks, sum_over_ranks
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import Plan, epochs, train
from carryover.transfer.tasks.accuracy import TOP, Accuracy
from carryover.transfer.tasks.frozen.backbone import Frozen
from carryover.transfer.tasks.linear.config import LARSHeads, LinearConfig, ProtocolMode
from carryover.transfer.tasks.linear.depths import pooled
from carryover.transfer.tasks.linear.model import StackedHeads, StackedSGD, head_losses
from carryover.transfer.tasks.schedules import rate_factor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A frozen network, the labelled images that heads are trained on, and where state and metrics go.

    `work` tells what is trained from any other, so that another probe's state is refused.
    """

    config: LinearConfig
    mode: ProtocolMode
    frozen: Frozen
    images: Dataset
    out: Path
    ranks: Ranks
    work: Work


def train_heads(probe: Probe, stop: StopRequest) -> tuple[StackedHeads, float]:
    """Train every head to the end of the schedule, from the newest state in `probe.out` if there is one.

    Every rank calls this. SIGUSR2 or SIGTERM saves the state and leaves through `Interrupted`.

    Returns
    -------
    The heads, and the seconds spent over all attempts.

    Raises
    ------
    UserError
        A batch that the ranks cannot share, a depth that the network lacks, another probe's state.
    WorkError
        A loss that is not finite.
    """
    probing = _Probing(probe)
    seconds = train(probe.work, probing.plan(), probing, probe.ranks, stop)
    return probing.heads, seconds


class _Probing:
    """Heads in training on a frozen network's features, as the loop sees them."""

    def __init__(self, probe: Probe) -> None:
        config, mode = probe.config, probe.mode
        self._probe = probe
        self.heads, self._optimizer = _build(probe)
        self._wrapped: nn.Module = self.heads
        self._loader = training_loader(
            probe.images, probe.frozen.augment, mode.batch_size, config.seed, probe.ranks, config.workers
        )
        self._factor = 0.0

    def plan(self) -> Plan:
        """Plan the whole schedule."""
        config, mode, each = self._probe.config, self._probe.mode, self._loader.steps_per_epoch
        return Plan(
            title=f"linear {config.name}",
            end=mode.schedule.epochs * each,
            reports=lambda step: step % each == 0 or step % config.log_every == 0,
            saves=lambda step: step % (each * config.checkpoint_every) == 0,
            images_per_step=mode.batch_size,
        )

    def begin(self, step: int) -> None:
        """Share the heads among the ranks."""
        ranks = self._probe.ranks
        if ranks.world > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(self.heads, device_ids=devices)

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield labelled batches."""
        yield from epochs(self._loader, step)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Take one step of every head at once."""
        self._factor = rate_factor(self._probe.mode.schedule, step, self._loader.steps_per_epoch)
        self._optimizer.set_factor(self._factor)
        assert batch.label is not None
        losses = head_losses(self._wrapped(_features(self._probe, batch.views[0])), batch.label)
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._optimizer.step()
        # One head of a grid may diverge; only the best one has to be finite.
        return {"loss": losses.nan_to_num(nan=torch.inf).min()}

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Say which epoch it is, and the factor on every rate."""
        return {"epoch": step / self._loader.steps_per_epoch, "lr_factor": self._factor}

    def require_finite(self, step: int) -> None:
        """Let heads diverge: the one that is chosen is looked at in the end."""

    def state(self) -> dict[str, Any]:
        """Return the heads and the optimiser."""
        return {"heads": self.heads.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load them."""
        self.heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])


def heads_accuracy(probe: Probe, heads: StackedHeads, images: Dataset) -> list[Accuracy]:
    """Test every head on all of `images`, resized and cropped centrally; every rank gets the same answer."""
    total = torch.zeros((len(heads.specs), len(TOP)), dtype=torch.int64, device=probe.ranks.device)
    for logits, labels in _predictions(probe, heads, images):
        ranked = logits.topk(min(max(TOP), logits.shape[2]), dim=2).indices
        hit = ranked == labels.view(-1, 1, 1)
        total += torch.stack([hit[:, :, :n].any(dim=2).sum(dim=0) for n in TOP], dim=1)
    return [Accuracy(len(images), int(top1), int(top5)) for top1, top5 in sum_over_ranks(total).tolist()]


def _predictions(probe: Probe, heads: StackedHeads, images: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    ranks = probe.ranks
    share = -(-probe.config.extract_batch // ranks.world)
    loader = EvaluationLoader(
        images, probe.frozen.augment, share, ranks.rank, ranks.world, probe.config.workers, ranks.device
    )
    with torch.no_grad():
        for batch in loader:
            assert batch.label is not None
            yield heads(_features(probe, batch.views[0])), batch.label


def _features(probe: Probe, images: Tensor) -> dict[str, Tensor]:
    """Look through the frozen network, all depths at once; features come out in float32."""
    bf16 = probe.config.precision == "bf16"
    with torch.no_grad(), torch.autocast(probe.ranks.device.type, torch.bfloat16, enabled=bf16):
        found = pooled(probe.frozen.backbone, laid_out(images, channels_last=True), probe.mode.depths)
    return {depth: values.float() for depth, values in found.items()}


def _build(probe: Probe) -> tuple[StackedHeads, StackedSGD]:
    mode, device = probe.mode, probe.ranks.device
    probe.frozen.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = probe.config.image.size
    dims = {d: v.shape[1] for d, v in _features(probe, torch.zeros(1, 3, size, size, device=device)).items()}
    # The heads' first weights come from torch's own generator.
    torch.manual_seed(probe.config.seed)
    heads = StackedHeads(dims, mode.scaled_lrs, mode.weight_decays, len(probe.images.classes)).to(device)
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
