"""Grouping stages into jobs: arrays of stages that ask for the same and wait for the same."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from carryover.slurm.plan import Action, Decision
from carryover.slurm.resources import Resources
from carryover.slurm.stage import Stage


@dataclass(frozen=True)
class Batch:
    """Stages submitted with one sbatch, as a job or a job array; `needs` and `follows` are not done yet."""

    stages: tuple[Stage, ...]
    resources: Resources
    needs: tuple[str, ...]
    follows: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the stages' names have in common, or the first's and how many more there are."""
        first, last = min(s.name for s in self.stages), max(s.name for s in self.stages)
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        common = re.sub(r"[^A-Za-z0-9]+$", "", "".join(c for c, _ in alike))
        return common or f"{self.stages[0].name}+{len(self.stages) - 1}"

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for, if every job of the batch took its whole time limit once."""
        return len(self.stages) * self.resources.gpu_hours


def make_batches(plan: Sequence[Decision], defaults: Resources, max_array_size: int) -> list[Batch]:
    """Group a plan's stages into batches, in an order in which each follows all it waits for.

    Stages share a batch when they ask for the same resources and wait for the same stages: a group that
    waited for the union of several stages' dependencies would start late, and fail with any of them. A
    chained stage is a batch of its own.
    """
    pending = {d.stage.name for d in plan if d.action.works or d.action is Action.IN_FLIGHT}
    groups: dict[object, Batch] = {}
    for decision in plan:
        if not decision.action.works:
            continue
        stage = decision.stage
        resources = stage.resources.over(defaults)
        needs = tuple(sorted(pending.intersection(stage.upstream)))
        follows = tuple(sorted(pending.intersection(stage.after).difference(needs)))
        alone = stage.name if resources.chain > 1 else ""
        key = (repr(resources), needs, follows, alone)
        own = replace(stage, resources=resources)
        group = groups.get(key)
        groups[key] = (
            Batch((own,), resources, needs, follows)
            if group is None
            else replace(group, stages=(*group.stages, own))
        )
    return [part for group in _in_order(groups.values()) for part in _parts(group, max_array_size)]


def dependency(batch: Batch, jobs: Mapping[str, Sequence[str]]) -> str | None:
    """Return sbatch's --dependency for a batch, given the jobs of what it waits for.

    A stage's last job is the one that counts; an array of which every element is needed is named whole.
    """
    clauses = []
    for kind, names in (("afterok", batch.needs), ("afterany", batch.follows)):
        ids = _whole_arrays([jobs[name][-1] for name in names], jobs.values())
        if ids:
            clauses.append(":".join([kind, *ids]))
    return ",".join(clauses) or None


def _in_order(groups: Iterable[Batch]) -> list[Batch]:
    waiting = list(groups)
    unplaced = Counter(stage.name for group in waiting for stage in group.stages)
    ordered: list[Batch] = []
    while waiting:
        ready = [g for g in waiting if not any(unplaced[n] for n in (*g.needs, *g.follows))]
        ordered.extend(ready)
        placed = {id(g) for g in ready}
        waiting = [g for g in waiting if id(g) not in placed]
        for group in ready:
            unplaced.subtract(stage.name for stage in group.stages)
    return ordered


def _parts(batch: Batch, size: int) -> list[Batch]:
    starts = range(0, len(batch.stages), size)
    return [replace(batch, stages=batch.stages[start : start + size]) for start in starts]


def _whole_arrays(ids: Sequence[str], known: Iterable[Sequence[str]]) -> list[str]:
    sizes = Counter(job.partition("_")[0] for jobs in known for job in jobs if "_" in job)
    asked = Counter(job.partition("_")[0] for job in ids if "_" in job)
    whole = {base for base, count in asked.items() if count == sizes[base]}
    return list(dict.fromkeys(b if (b := job.partition("_")[0]) in whole else job for job in ids))
