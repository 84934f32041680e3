"""What trainings that count iterations share: the log's window, when and what to save, how to go on."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from configs import UserError, WorkError
from pretrain.checkpoint import load_state, save_state
from pretrain.distributed import Ranks

log = logging.getLogger(__name__)

STATE_NAME: Final = "checkpoint.pt"


class Window:
    """The numbers of the iterations since the last line of metrics.jsonl.

    They are part of a run's state, so that a resumed run's log is that of a run which never stopped.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self.count = count
        self.sums: dict[str, Tensor | float] = defaultdict(float, sums or {})

    def note(self, numbers: Mapping[str, Tensor]) -> None:
        """Add one iteration's; nothing waits for the device."""
        self.count += 1
        for name, value in numbers.items():
            self.sums[name] = self.sums[name] + value.detach()

    def numbers(self) -> dict[str, float]:
        """The sums so far."""
        return {name: float(value) for name, value in self.sums.items()}

    def close(self) -> dict[str, float]:
        """Return the means, and start anew."""
        means = {name: value / self.count for name, value in self.numbers().items()}
        self.sums.clear()
        self.count = 0
        return means


def save_points(iterations: int, checkpoints: int) -> frozenset[int]:
    """Return after which iterations the state is saved: so many times, evenly, and at the end."""
    return frozenset(round(iterations * (i + 1) / checkpoints) for i in range(checkpoints)) | {iterations}


def require_divisible(ims_per_batch: int, ranks: Ranks) -> None:
    """Raise UserError where a step's images do not divide among the processes."""
    if ims_per_batch % ranks.world:
        raise UserError(
            f"solver.ims_per_batch {ims_per_batch} cannot be divided evenly among {ranks.world} processes"
        )


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Return what seeds torch at an iteration, so that a resumed run draws (samples, drops) the same."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0] >> 1)


def require_finite(window: Window, model: nn.Module, iteration: int, cause: str) -> None:
    """Raise WorkError before a state that has lost its way is saved over a good one.

    `cause` ends the message "... is not finite; ".
    """
    bad = [name for name, value in window.numbers().items() if not np.isfinite(value)]
    bad += [name for name, p in model.named_parameters() if not torch.isfinite(p).all()][:1]
    if bad:
        raise WorkError(f"iteration {iteration}: {', '.join(bad)} is not finite; {cause}")


def resume(
    out: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float, Window]:
    """Load the state in `out`, if there is one: iterations done, seconds spent, the open window.

    Raises UserError for the state of a run with another identity.
    """
    state = load_state(out / STATE_NAME)
    if state is None:
        return 0, 0.0, Window()
    if state["identity"] != identity:
        raise UserError(
            f"{out}: holds the training state of another recipe, seed or checkpoint; choose another directory"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: resumed at iteration %d", out, state["iteration"])
    return state["iteration"], state["seconds"], Window(state["window"], state["window_count"])


def save(
    out: Path,
    identity: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    seconds: float,
    window: Window,
) -> None:
    """Save what `resume` needs, atomically; the state before it is kept."""
    state: dict[str, Any] = {
        "identity": identity,
        "iteration": iteration,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "window": window.numbers(),
        "window_count": window.count,
    }
    save_state(out / STATE_NAME, state)
