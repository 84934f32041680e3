"""Stages grouped into batches, each submitted with one sbatch, and what each batch waits for."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from carryover.slurm.plan import Action, Decision
from carryover.slurm.resources import Resources
from carryover.slurm.stage import Stage


@dataclass(frozen=True)
class Batch:
    """Stages submitted with one sbatch, as a job or a job array; `needs` and `follows` are not done yet.

    `behind` are jobs of former submissions of these stages that are on their way out of the queue.
    """

    stages: tuple[Stage, ...]
    resources: Resources
    needs: tuple[str, ...]
    follows: tuple[str, ...]
    behind: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the common part of the stages' names, or the first and the number of others."""
        first, last = min(s.name for s in self.stages), max(s.name for s in self.stages)
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        common = re.sub(r"[^A-Za-z0-9]+$", "", "".join(c for c, _ in alike))
        return common or f"{self.stages[0].name}+{len(self.stages) - 1}"

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The stages that are not done yet and have to end first."""
        return (*self.needs, *self.follows)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for, if every job of the batch took its whole time limit once."""
        return len(self.stages) * self.resources.gpu_hours


def make_batches(
    plan: Sequence[Decision],
    defaults: Resources,
    max_array_size: int,
    behind: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Batch]:
    """Group a plan's stages into batches, in an order in which each follows all it waits for.

    Stages share a batch when they ask for the same resources and wait for the same stages: a group that
    waited for the union of several stages' dependencies would start late, and fail with any of them. A
    chained stage is a batch of its own. `behind` gives stages' former jobs that are leaving the queue.
    """
    groups: dict[object, list[Batch]] = {}
    for one in batches_of_one(plan, defaults, behind or {}):
        alone = one.stages[0].name if one.resources.chain > 1 else ""
        key = (repr(one.resources), one.needs, one.follows, alone, one.behind)
        groups.setdefault(key, []).append(one)
    return [part for g in _in_order(map(joined, groups.values())) for part in parts(g, max_array_size)]


def batches_of_one(
    plan: Sequence[Decision], defaults: Resources, behind: Mapping[str, tuple[str, ...]]
) -> Iterator[Batch]:
    """Yield every stage of a plan that is going to run as a batch by itself, in the plan's order."""
    pending = {d.stage.name for d in plan if d.action.works or d.action is Action.IN_FLIGHT}
    for decision in plan:
        if not decision.action.works:
            continue
        stage = decision.stage
        resources = stage.resources.over(defaults)
        needs = tuple(sorted(pending.intersection(stage.upstream)))
        follows = tuple(sorted(pending.intersection(stage.after).difference(needs)))
        own = replace(stage, resources=resources)
        yield Batch((own,), resources, needs, follows, behind.get(stage.name, ()))


def joined(batches: Sequence[Batch]) -> Batch:
    """Return one batch of the stages of several that ask and wait for the same."""
    return replace(batches[0], stages=tuple(stage for batch in batches for stage in batch.stages))


def parts(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of at most `size` stages."""
    starts = range(0, len(batch.stages), size)
    return [replace(batch, stages=batch.stages[start : start + size]) for start in starts]


def dependency(
    batch: Batch,
    jobs: Mapping[str, Sequence[str]],
    arrays: Mapping[str, int] | None = None,
    implied: Callable[[Collection[str]], Collection[str]] = lambda names: (),
) -> str | None:
    """Return sbatch's --dependency for a batch, given the jobs of what it waits for.

    A stage's last job is the one that counts. An array of which every element is needed is named whole, if
    `arrays` holds its size: of one submitted earlier, elements may have failed that nobody waits for now.
    Elements that are not needed themselves count too if those that are cannot end without them: `implied`
    returns the jobs without which stages cannot.
    """
    needs = _whole_arrays([jobs[name][-1] for name in batch.needs], arrays or {}, implied(batch.needs))
    follows = _whole_arrays([jobs[name][-1] for name in batch.follows], arrays or {}, implied(batch.follows))
    clauses = {"afterok": needs, "afterany": [*follows, *batch.behind]}
    return ",".join(":".join([kind, *ids]) for kind, ids in clauses.items() if ids) or None


def arrays_of(given: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the arrays among the jobs of one submission, each with the number of its elements."""
    return dict(Counter(job.partition("_")[0] for jobs in given.values() for job in jobs if "_" in job))


def _in_order(groups: Iterable[Batch]) -> list[Batch]:
    waiting = list(groups)
    unplaced = Counter(stage.name for group in waiting for stage in group.stages)
    ordered: list[Batch] = []
    while waiting:
        ready = [g for g in waiting if not any(unplaced[n] for n in g.waits_for)]
        ordered.extend(ready)
        placed = {id(g) for g in ready}
        waiting = [g for g in waiting if id(g) not in placed]
        for group in ready:
            unplaced.subtract(stage.name for stage in group.stages)
    return ordered


def _whole_arrays(ids: Sequence[str], sizes: Mapping[str, int], implied: Collection[str]) -> list[str]:
    asked = Counter(job.partition("_")[0] for job in {*ids, *implied} if "_" in job)
    whole = {base for base, count in asked.items() if count == sizes.get(base)}
    return list(dict.fromkeys(b if (b := job.partition("_")[0]) in whole else job for job in ids))
