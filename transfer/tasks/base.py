"""Base class of tasks, and the function that runs one: load, verify, train, test, record."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from carryover.core.data.called import called
from carryover.core.formats.checkpoint_files import checkpoint_file
from carryover.transfer.results.record import RECORD_NAME, Facts, Metric, ResultRecord, require_same
from carryover.transfer.tasks.recipe import EvaluationRecipe

if TYPE_CHECKING:
    from carryover.core.backbones.source import Source
    from carryover.core.formats.claims import Work
    from carryover.core.training.distributed import Ranks
    from carryover.core.training.interrupt import StopRequest
    from carryover.transfer.results.outcomes.base import Outcomes

log = logging.getLogger(__name__)

# `core.formats.claims.IDENTITY_NAME`, which cannot be imported without torch.
_IDENTITY_NAME = "identity.json"

C = TypeVar("C", bound=EvaluationRecipe)
P = TypeVar("P")
M = TypeVar("M")


@dataclass(frozen=True)
class Run(Generic[C, P]):
    """One evaluation under way.

    Attributes
    ----------
    config
        The recipe.
    data
        What the task's `prepare` returned.
    source
        The checkpoint as it was loaded; `source.backbone` is the network, float32 on the CPU.
    out
        Where records, states and what else the task leaves go. Files are written by the first rank alone.
    ranks
        This process among those that evaluate together; one, mostly.
    work
        Identifies this evaluation, so that the state of another one in `out` is an error.
    """

    config: C
    data: P
    source: "Source"
    out: Path
    ranks: "Ranks"
    work: "Work"


@dataclass(frozen=True)
class Outcome:
    """Outcome of an evaluation.

    Attributes
    ----------
    metrics
        At least one; () where they are to be counted from `outcomes`.
    outcomes
        What was found in every test image. They are written before anything is counted from them, and the
        metrics must be what comes of them.
    train_images, label_fraction
        Images that were trained on, and the labeled share of the training split; None where it does not
        apply.
    selected_on
        Held-out images that the result was chosen on; None: nothing was chosen, the last state counts.
    facts
        What else a reader should know.
    artifacts
        Files in the run's `out` by name, relative to it.
    backend, backend_version
        The library that did the task; a version of None is looked up among the installed distributions.
    model
        What was built around the backbone ("Faster R-CNN C4"), where the task alone does not tell.
    recorded_as
        What the record calls the task, where its recipe has modes whose numbers do not compare.
    """

    metrics: Sequence[Metric] = ()
    outcomes: "Outcomes | None" = None
    train_images: int | None = None
    label_fraction: float | None = None
    selected_on: str | None = None
    facts: Facts = field(default_factory=Facts)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    backend: str = "carryover"
    backend_version: str | None = None
    model: str | None = None
    recorded_as: str | None = None


class Task(ABC, Generic[C, P, M]):
    """Base class of tasks: one protocol, whose recipes are of one class.

    `run_task` calls the methods in the order in which they stand here. Of all of them only `build` and what
    comes after it may take long; on several ranks every rank calls every method. A task whose backbone stays
    as it is derives from `transfer.tasks.frozen.task.FrozenTask`, which leaves only `test` to write.
    """

    def prepare(self, config: C) -> P:
        """Read and check the data; their defects are found here, before torch is imported.

        Raises UserError naming file, key and what was expected.
        """
        raise NotImplementedError

    def launch(self, config: C, checkpoint: "Path | Source", out: Path) -> ResultRecord | None:
        """Evaluate in processes that the task starts itself; None, mostly: evaluate in this one."""
        return None

    def require(self, config: C, source: "Source") -> None:
        """Raise UserError for a checkpoint that the recipe cannot evaluate."""

    def begun_by_v1(self, run: Run[C, P]) -> tuple[object, ...]:
        """Return what a training state of version 1 hashed besides the recipe; see `claims.Work`."""
        return ()

    @abstractmethod
    def build(self, run: Run[C, P]) -> AbstractContextManager[M]:
        """Build the tested model around the backbone, verify every loaded tensor, and clean up at the end.

        Raises UserError for what cannot work together, WorkError for a tensor that was not carried.
        """

    def train(self, run: Run[C, P], model: M, stop: "StopRequest") -> float:
        """Train, or go on with it; return the seconds spent, all attempts together.

        Only a task that trains overrides this. Raises Interrupted when `stop` is requested, WorkError for a
        loss that is not finite.
        """
        return 0.0

    @abstractmethod
    def test(self, run: Run[C, P], model: M) -> Outcome | None:
        """Measure on the test split.

        Ranks other than the first may return None: they get what the first one recorded.
        """


def run_task(task: Task[C, P, M], config: C, checkpoint: "Path | Source", out: Path) -> ResultRecord:
    """Evaluate `checkpoint` by a recipe of `task`; leaves the record and the task's own files in `out`.

    Resumes a half-finished `out`, on a CPU bit for bit as if it had never stopped, and returns the record of
    a finished one. Under torchrun every rank calls this with the same arguments and `out` on a shared file
    system.

    Raises
    ------
    UserError
        Data, checkpoint or recipe that cannot work together, found before torch is imported where that is
        possible; or `out` holds other work.
    WorkError
        A backbone tensor that was not carried over, a loss or features that are not finite.
    Interrupted
        The training was asked to stop; its state is saved.
    """
    if isinstance(checkpoint, Path):
        checkpoint_file(checkpoint)
    _refuse_other_protocol(config, out)
    data = task.prepare(config)
    if (record := task.launch(config, checkpoint, out)) is not None:
        return record

    from carryover.core.formats.claims import claimed_by_work_alone
    from carryover.core.training.distributed import is_first

    # Every rank of a job comes here; the first one writes.
    with claimed_by_work_alone(out) if is_first() else nullcontext():
        return _run(task, config, data, checkpoint, out)


def _refuse_other_protocol(config: EvaluationRecipe, out: Path) -> None:
    """Raise UserError for a directory that holds other work, as far as recipe and seed tell.

    Data and checkpoint are compared later: reading them takes a while.
    """
    from carryover.configs import Identity
    from carryover.configs.files import read_json

    there = read_json(out / _IDENTITY_NAME)
    if not isinstance(there, dict) or "protocol" not in there or (out / RECORD_NAME).exists():
        return
    from carryover.core.formats.claims import Work, require_same_work

    asked = Identity.of(config, kind=config.task, version=type(config).version, seed=config.seed)
    known = {key: there.get(key) for key in asked.to_json()}
    require_same_work(out, asked, Work(out, config, asked).as_trained(known))


@dataclass(frozen=True)
class Counted:
    """An evaluation's metrics, the file that they were counted from, and its digest."""

    metrics: Sequence[Metric]
    artifacts: Mapping[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    ties: tuple[int, ...] = ()


def equal_scores(ties: Sequence[int]) -> str:
    """Return what equal scores mean for a number, of how many guesses there are any.

    `ties` counts them for each set of guesses (each k and temperature, each rate of a grid).
    """
    few, most = min(ties), max(ties)
    of = f"{most:,}" if few == most else f"{few:,} to {most:,} (by setting)"
    noun = "guess has" if most == 1 else "guesses have"
    return (
        f"{of} {noun} the same score as another class or image; the first class, or the earlier image, counts"
        " as the higher one, so that the metric is the same on every machine"
    )


def count(outcome: Outcome, out: Path) -> Counted:
    """Write an evaluation's per-image outcomes, then count its metrics from them.

    Raises WorkError where the task's own metrics are others.
    """
    from carryover.configs.files import sha256_file
    from carryover.transfer.results.intervals import with_intervals
    from carryover.transfer.results.outcomes.base import OUTCOMES_NAME, write_outcomes

    if outcome.outcomes is None:
        return Counted(outcome.metrics)
    path = out / OUTCOMES_NAME
    write_outcomes(path, outcome.outcomes)
    ties, metrics = outcome.outcomes.ties(), outcome.outcomes.metrics()
    if any(ties):
        log.info("%s", equal_scores(ties))
    if outcome.metrics:
        require_same(outcome.metrics, metrics, path)
        metrics = tuple(outcome.metrics)
    metrics = with_intervals(metrics, outcome.outcomes)
    return Counted(metrics, {"outcomes": OUTCOMES_NAME}, {"outcomes": sha256_file(path)}, ties)


def _run(task: Task[C, P, M], config: C, data: P, checkpoint: "Path | Source", out: Path) -> ResultRecord:
    from carryover.core.backbones.source import open_source
    from carryover.core.formats.claims import RECIPE_NAME, Work
    from carryover.core.formats.state import remove_states
    from carryover.core.training.distributed import barrier, joined
    from carryover.core.training.interrupt import StopRequest
    from carryover.transfer.results.record import load_record, make_record, write_record
    from carryover.transfer.tasks.identity import identify, of_v1
    from carryover.transfer.tasks.outputs import RECORD_NAME, finished_record

    source = open_source(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    work = Work(out, config, identify(config, source))
    if (record := finished_record(work, source.sha256)) is not None:
        log.info("%s: already evaluated", out)
        return record
    task.require(config, source)
    with ExitStack() as held:
        ranks = held.enter_context(joined(config.device))
        run = Run(config, data, source, out, ranks, work)
        stated_by_v1 = partial(of_v1, config, ranks.world)
        run = replace(run, work=replace(work, v1=task.begun_by_v1(run), stated_by_v1=stated_by_v1))
        if ranks.first:
            run.work.claim()
        barrier()
        model = held.enter_context(task.build(run))
        seconds = 0.0
        if type(task).train is not Task.train:
            with StopRequest() as stop:
                seconds = task.train(run, model, stop)
        began = time.monotonic()
        outcome = task.test(run, model)
        if ranks.first:
            assert outcome is not None
            counted = count(outcome, out)
            record = make_record(
                recipe=config,
                task=outcome.recorded_as or config.task,
                source=source,
                data_digest=work.identity.parts["data"],
                dataset=called(config.data),
                split=config.data.test_label,
                backend=outcome.backend,
                backend_version=outcome.backend_version,
                seed=config.seed,
                metrics=counted.metrics,
                wall_seconds=seconds + time.monotonic() - began,
                selection="last" if outcome.selected_on is None else "best",
                selected_on=outcome.selected_on,
                train_images=outcome.train_images,
                label_fraction=outcome.label_fraction,
                model=outcome.model,
                facts=outcome.facts,
                artifacts={"recipe": RECIPE_NAME, **outcome.artifacts, **counted.artifacts},
                digests=counted.digests,
                ties=counted.ties,
                device=ranks.device,
                processes=ranks.world,
            )
            # The record comes before the state goes, so that there is always something to go on from.
            write_record(record, out)
            remove_states(out)
        barrier()
    return load_record(out / RECORD_NAME) if record is None else record
