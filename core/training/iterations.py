"""Trainings that count iterations (detectors, segmenters): a model, its losses and its rate, for the loop."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks, data_parallel
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import Plan, evenly, require_finite, step_seed, train

S = TypeVar("S")


class Pace(Protocol):
    """A recipe's seed, and how often its training is saved (times in all) and logged (iterations)."""

    @property
    def seed(self) -> int: ...

    @property
    def checkpoints(self) -> int: ...

    @property
    def log_every(self) -> int: ...


class Run(Protocol):
    """One training: its recipe, its ranks, and the work that it is."""

    @property
    def config(self) -> Pace: ...

    @property
    def ranks(self) -> Ranks: ...

    @property
    def work(self) -> Work: ...


class _Iterations(Generic[S]):
    """A model in training by its losses, as the loop sees it."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps_from: Callable[[int], Generator[S, None, None]],
        losses_of: Callable[[nn.Module, S, int], dict[str, Tensor]],
        rate_at: Callable[[int], float],
    ) -> None:
        self._run, self._model, self._optimizer = run, model, optimizer
        self._steps_from, self._losses_of, self._rate_at = steps_from, losses_of, rate_at
        self._wrapped = model
        self._rate = 0.0

    def begin(self, step: int) -> None:
        """Share the model among the ranks."""
        self._model.train()
        self._wrapped = data_parallel(self._model, self._run.ranks)

    def batches(self, step: int) -> Generator[S, None, None]:
        """Yield this rank's parts of the steps."""
        return self._steps_from(step)

    def step(self, batch: S, step: int) -> dict[str, Tensor]:
        """Take one step on the sum of the losses."""
        self._rate = self._rate_at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        torch.manual_seed(step_seed(self._run.config.seed, step, self._run.ranks.rank))
        losses = self._losses_of(self._wrapped, batch, step)
        self._optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self._optimizer.step()
        return losses

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Say the rate."""
        return {"lr": self._rate}

    def require_finite(self, step: int) -> None:
        """Refuse weights that are not finite."""
        require_finite(dict(self._model.named_parameters()), step)

    def state(self) -> dict[str, Any]:
        """Return the model and the optimiser."""
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load them."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def train_iterations(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stop: StopRequest,
    title: str,
    iterations: int,
    images_per_step: int,
    steps_from: Callable[[int], Generator[S, None, None]],
    losses_of: Callable[[nn.Module, S, int], dict[str, Tensor]],
    rate_at: Callable[[int], float],
    cause: str,
) -> float:
    """Train `model` in place to the end of its schedule, from the state in the run's directory if any.

    Parameters
    ----------
    steps_from
        Yields the steps from a 0-based iteration on; closed when the training ends or is left.
    losses_of
        The losses of a step, by the model (as the ranks share it), the step and its 0-based iteration; their
        sum, which is what is minimised, is "loss".
    rate_at
        The learning rate of a 0-based iteration.
    cause
        What most likely made a loss infinite.

    Returns
    -------
    float
        Seconds spent, all attempts together.

    Raises what `loop.train` does.
    """
    saved = evenly(iterations, run.config.checkpoints)
    plan = Plan(
        title=title,
        end=iterations,
        reports=lambda step: step % run.config.log_every == 0,
        saves=lambda step: step in saved,
        images_per_step=images_per_step,
        log_pace=False,
        cause=cause,
    )
    trainee = _Iterations(run, model, optimizer, steps_from, losses_of, rate_at)
    return train(run.work, plan, trainee, run.ranks, stop)
