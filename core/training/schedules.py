"""Learning-rate and momentum schedules as pure functions of the step: nothing to save, exact to resume."""

import math
from collections.abc import Sequence


def warmup_cosine(
    step: int, total: int, warmup: int = 0, floor: float = 0.0, over: int | None = None
) -> float:
    """Return the factor on the peak rate at `step` (0-based) of `total`.

    Rises linearly from `floor` to 1 over `warmup` steps, then falls along half a cosine to `floor`
    (Loshchilov and Hutter 2017, without restarts). The half cosine is `over` steps long; None: the steps that
    are left after the warm-up. A longer one is left before it has reached the floor.
    """
    if step < warmup:
        return floor + (1.0 - floor) * step / warmup
    progress = (step - warmup) / max(1, total - warmup if over is None else over)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_multistep(
    step: int,
    milestones: Sequence[int],
    gamma: float = 0.1,
    warmup: int = 0,
    warmup_factor: float = 1e-3,
) -> float:
    """Return the factor at `step` (0-based): multiplied by `gamma` at each milestone reached.

    During the first `warmup` steps it is further multiplied by a line from `warmup_factor` to 1, as in
    Detectron2's WarmupMultiStepLR.
    """
    factor = gamma ** sum(step >= m for m in milestones)
    if step < warmup:
        alpha = step / warmup
        factor *= warmup_factor * (1 - alpha) + alpha
    return factor


def check_milestones(milestones: Sequence[int], epochs: int) -> None:
    """Raise ValueError unless milestones (epochs) ascend and lie before the end of a schedule of `epochs`."""
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"milestones must ascend, got {list(milestones)}")
    if milestones and milestones[-1] >= epochs:
        raise ValueError(f"milestones: {milestones[-1]} is not before the end, {epochs} epochs")


def cosine_momentum(step: int, total: int, base: float, final: float = 1.0) -> float:
    """Return the momentum coefficient at `step`: from `base` to `final` along half a cosine (BYOL)."""
    return final - (final - base) * 0.5 * (1.0 + math.cos(math.pi * step / max(1, total)))
