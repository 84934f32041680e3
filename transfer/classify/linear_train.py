"""Training many linear classifiers on one frozen network's random crops; exact to resume."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carryover.configs import WorkError
from carryover.core.data.prepared import Dataset, EvaluationLoader
from carryover.core.formats.claims import Work
from carryover.core.formats.metrics_log import MetricsLog
from carryover.core.formats.state import load_state, save_state
from carryover.core.training.distributed import Ranks, barrier, sum_over_ranks
from carryover.core.training.interrupt import Interrupted, StopRequest
from carryover.core.training.progress import progress
from carryover.core.training.window import Window
from carryover.transfer.classify.classifier import TOP, Accuracy
from carryover.transfer.classify.depths import pooled
from carryover.transfer.classify.finetune_train import METRICS_NAME, STATE_NAME, rate_factor
from carryover.transfer.classify.frozen import Frozen
from carryover.transfer.classify.loading import laid_out, training_loader
from carryover.transfer.classify.probe_config import LARSHeads, LinearConfig, ProtocolMode
from carryover.transfer.classify.stacked_heads import StackedHeads, StackedSGD, head_losses

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
    config, mode, ranks = probe.config, probe.mode, probe.ranks
    heads, optimizer = _build(probe)
    loader = training_loader(
        probe.images, probe.frozen.augment, mode.batch_size, config.seed, ranks, config.workers
    )
    epoch_steps = loader.steps_per_epoch
    total = mode.schedule.epochs * epoch_steps
    metrics = MetricsLog(probe.out / METRICS_NAME, total)
    step, seconds_before = _restore(probe, heads, optimizer)
    started = time.monotonic()
    if ranks.first:
        metrics.rewind(step)
    wrapped: nn.Module = heads
    if ranks.world > 1:
        wrapped = DistributedDataParallel(
            heads, device_ids=[ranks.device] if ranks.device.type == "cuda" else None
        )

    with ExitStack() as stack:
        bar = stack.enter_context(progress(f"linear {config.name}", total, step, ranks.first))
        window = Window(mode.batch_size)
        while step < total:
            epoch, start = divmod(step, epoch_steps)
            for batch in loader.epoch(epoch, start):
                window.batch_arrived()
                factor = rate_factor(mode.schedule, step, epoch_steps)
                optimizer.set_factor(factor)
                assert batch.label is not None
                logits = wrapped(_features(probe, batch.views[0]))
                losses = head_losses(logits, batch.label)
                optimizer.zero_grad(set_to_none=True)
                losses.sum().backward()
                optimizer.step()
                # One head of a grid may diverge; only the best one has to be finite.
                window.step_taken(losses.nan_to_num(nan=torch.inf).min(), {})
                step += 1

                epoch_ends = step % epoch_steps == 0
                save = epoch_ends and (step // epoch_steps) % config.checkpoint_every == 0
                report = save or epoch_ends or step % config.log_every == 0
                # Several ranks agree on stopping by a collective call: they ask only where they meet anyway.
                leave = (report or ranks.world == 1) and stop.requested() and step < total
                if report or leave:
                    numbers = window.close(step)
                    if ranks.first:
                        metrics.write(step, epoch=step / epoch_steps, lr_factor=factor, **numbers)
                    window = Window(mode.batch_size)
                    bar.advance(0, loss=numbers["loss"])
                if save or leave:
                    _save(probe, heads, optimizer, step, seconds_before + time.monotonic() - started)
                if leave:
                    raise Interrupted(stop.signum)
                bar.advance(1)
    return heads, seconds_before + time.monotonic() - started


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


def _restore(probe: Probe, heads: StackedHeads, optimizer: StackedSGD) -> tuple[int, float]:
    state = load_state(probe.out / STATE_NAME)
    if state is None:
        return 0, 0.0
    probe.work.require(probe.out / STATE_NAME, state["identity"])
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: resuming after step %d", probe.out, state["step"])
    return int(state["step"]), float(state["seconds"])


def _save(probe: Probe, heads: StackedHeads, optimizer: StackedSGD, step: int, seconds: float) -> None:
    if probe.ranks.first:
        state = {
            "identity": probe.work.identity.to_json(),
            "step": step,
            "seconds": seconds,
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save_state(probe.out / STATE_NAME, state)
    barrier()


def require_finite(heads: StackedHeads, index: int) -> None:
    """Raise WorkError when the head of this index has diverged."""
    per_depth = len(heads.specs) // len(heads.depths)
    weight = heads.weights[index // per_depth][index % per_depth]
    if not torch.isfinite(weight).all():
        raise WorkError(f"the classifier {heads.specs[index].label} has weights that are not finite")
