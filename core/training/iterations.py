"""Trainings that count iterations (detectors, segmenters): a model with its losses, for the loop."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks, data_parallel
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import Plan, evenly, require_finite, step_seed, train
from carryover.core.training.validation import PREFIX, left_as_it_was, looks
from carryover.core.training.watch_config import WatchConfig

S = TypeVar("S")


class Solver(Protocol):
    """A recipe's schedule: how many iterations of how many images, and the rate of each (0-based)."""

    @property
    def iterations(self) -> int: ...

    @property
    def ims_per_batch(self) -> int: ...

    def rate(self, iteration: int) -> float: ...


class Recipe(Protocol):
    """A recipe's schedule and seed, and how often its training is saved (times in all) and logged."""

    @property
    def solver(self) -> Any: ...

    @property
    def seed(self) -> int: ...

    @property
    def checkpoints(self) -> int: ...

    @property
    def log_every(self) -> int: ...

    @property
    def watch(self) -> WatchConfig: ...


class Run(Protocol):
    """One training: its recipe, its ranks, and the work that it is."""

    @property
    def config(self) -> Recipe: ...

    @property
    def ranks(self) -> Ranks: ...

    @property
    def work(self) -> Work: ...


class Trainable(Protocol[S]):
    """A network with what trains it.

    Attributes
    ----------
    model
        The network.
    cause
        What most likely makes its loss infinite; ends the message.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def cause(self) -> str: ...

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimizer of the recipe over what is trained; its rate is set at every step."""

    def steps(self, start: int, stop: int) -> Generator[S, None, None]:
        """Yield this rank's part of steps `start` to `stop`: a function of the seed alone."""

    def losses(self, shared: nn.Module, step: S, iteration: int) -> dict[str, Tensor]:
        """Return the losses of a step by `shared`, the network as the ranks share it; "loss" is minimized."""


class _Iterations:
    """A model in training by its losses, as the loop sees it."""

    def __init__(self, run: Run, trainable: Trainable[Any]) -> None:
        self._run, self._trainable, self._model = run, trainable, trainable.model
        self._solver: Solver = run.config.solver
        self._optimizer = trainable.build_optimizer()
        self._shared = self._model
        self._rate = 0.0

    def begin(self, step: int) -> None:
        """Share the model among the ranks."""
        self._model.train()
        self._shared = data_parallel(self._model, self._run.ranks)

    def batches(self, step: int) -> Generator[Any, None, None]:
        """Yield this rank's parts of the steps."""
        return self._trainable.steps(step, self._solver.iterations)

    def step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Take one step on the sum of the losses."""
        self._rate = self._solver.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * group.get("factor", 1.0)
        torch.manual_seed(step_seed(self._run.config.seed, step, self._run.ranks.rank))
        losses = self._trainable.losses(self._shared, batch, step)
        self._optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self._optimizer.step()
        return losses

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Return the rate in words."""
        return {"lr": self._rate}

    def require_finite(self, step: int) -> None:
        """Refuse weights that are not finite."""
        require_finite(dict(self._model.named_parameters()), step)

    def state(self) -> dict[str, Any]:
        """Return the model and the optimizer."""
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load them."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def train_iterations(
    run: Run,
    trainable: Trainable[Any],
    title: str,
    stop: StopRequest,
    look: Callable[[int], Mapping[str, float]],
) -> float:
    """Train in place to the end of the schedule, from the state in the run's directory if there is one.

    A state is saved `config.checkpoints` times over the run, at its end, and on SIGUSR2 or SIGTERM. `look`
    returns the metrics of at most so many held-out images, in evaluation mode; it is called
    `config.watch.times` times. Returns the seconds spent, all attempts together. Raises what
    `loop.train` does.
    """
    config, solver, watch = run.config, run.config.solver, run.config.watch

    def looked() -> dict[str, float]:
        with left_as_it_was(trainable.model):
            return {PREFIX + name.replace(" ", "_"): v for name, v in look(watch.images).items()}

    saved = evenly(solver.iterations, config.checkpoints)
    plan = Plan(
        title=title,
        end=solver.iterations,
        reports=lambda step: step % config.log_every == 0,
        saves=lambda step: step in saved,
        images_per_step=solver.ims_per_batch,
        tensorboard=watch.tensorboard,
        log_pace=False,
        looks=looks(solver.iterations, watch),
        look=looked,
        falls=True,
        cause=trainable.cause,
    )
    return train(run.work, plan, _Iterations(run, trainable), run.ranks, stop)
