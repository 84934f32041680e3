"""Arrays whose elements wait for different things: few calls to SLURM, however many stages there are.

sbatch gives all elements of an array one --dependency. Thirty pretrainings with fifty evaluations each would
take thirty calls and more. Here everything that asks for the same machines is one array, submitted with a
begin time a year ahead; then one scontrol tells each stretch of elements what it waits for and lets it begin,
in one request, those that wait for most first. A submitter that is killed in between leaves elements behind
that will not begin, and that the next one cancels.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from carryover.slurm.batches import Batch, arrays_of, batches_of_one, dependency, joined
from carryover.slurm.graph import Graph
from carryover.slurm.plan import Decision
from carryover.slurm.resources import Resources

NOT_YET = "now+365days"
"""Begin time of an array whose dependencies are not set yet."""

_FEW_CALLS = 5
_MANY_STAGES = 50
# What such an option means depends on the begin time.
_OWN_TIME = ("begin", "deadline", "hold")


@dataclass(frozen=True)
class Stretch:
    """Neighbors in an array that wait for the same; at most `depth` others run one after another before."""

    batch: Batch
    depth: int


@dataclass(frozen=True)
class SharedArray:
    """Stages that ask for the same machines, in one array; `batch` asks for their longest time limit."""

    batch: Batch
    stretches: tuple[Stretch, ...]

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for, if every job took its whole time limit once."""
        return sum(stretch.batch.gpu_hours for stretch in self.stretches)


@dataclass(frozen=True)
class Update:
    """A request to scontrol: what some jobs wait for, whereupon they may begin."""

    jobs: tuple[str, ...]
    request: str


def worth_sharing(batches: Sequence[Batch], arrays: Sequence[SharedArray]) -> bool:
    """Return whether shared arrays take fewer calls to SLURM than batches, of more than a few."""
    if any(name in batch.resources.sbatch for batch in batches for name in _OWN_TIME):
        return False
    calls = sum(batch.resources.chain for batch in batches)
    return calls > max(_FEW_CALLS, 1 + sum(array.batch.resources.chain for array in arrays))


def share(
    plan: Sequence[Decision],
    defaults: Resources,
    max_array_size: int,
    behind: Mapping[str, tuple[str, ...]] | None = None,
) -> list[SharedArray]:
    """Group a plan's stages into arrays of those that ask for the same, but for their time limit.

    A stage that waits for very many others in its own array has one apart, so that it can name theirs whole.
    """
    kinds: dict[object, dict[object, list[Batch]]] = {}
    depths: dict[str, int] = {}
    machines: dict[str, str] = {}
    for one in batches_of_one(plan, defaults, behind or {}):
        depth = 1 + max((depths.get(name, -1) for name in one.waits_for), default=-1)
        asked = repr(replace(one.resources, time_min=None))
        depths[one.stages[0].name], machines[one.stages[0].name] = depth, asked
        wide = len(one.waits_for) > _MANY_STAGES
        kind = (asked, wide and any(machines.get(name) == asked for name in one.waits_for))
        key = (depth, one.needs, one.follows, one.behind, one.resources.time_limit_min)
        kinds.setdefault(kind, {}).setdefault(key, []).append(one)
    arrays: list[SharedArray] = []
    for groups in kinds.values():
        stretches = [Stretch(joined(ones), depths[ones[0].stages[0].name]) for ones in groups.values()]
        stretches.sort(key=lambda stretch: stretch.depth)
        arrays.extend(map(_array, _cut(stretches, max_array_size)))
    return sorted(arrays, key=lambda array: array.stretches[0].depth)


def updates(
    arrays: Sequence[SharedArray],
    given: Mapping[str, Sequence[str]],
    jobs: Mapping[str, Sequence[str]],
    graph: Graph,
) -> list[Update]:
    """Return the requests that make submitted arrays wait and begin, in the order in which to send them.

    `given` are the jobs of the arrays' stages, one for each link of a chain; `jobs` those that were submitted
    earlier. Whatever is waited for comes last: nothing ends before all that waits for it does wait.
    """
    sizes, known = arrays_of(given), {**jobs, **given}

    def implied(names: Collection[str]) -> list[str]:
        """Return the jobs that end well before those of many stages can."""
        many = len(names) > _MANY_STAGES
        return [given[name][-1] for name in graph.with_upstream(names) if name in given] if many else []

    found: list[tuple[int, int, Update]] = []
    for array in arrays:
        for stretch in array.stretches:
            waits = dependency(stretch.batch, known, sizes, implied)
            limit = stretch.batch.resources.time_limit_min
            more = () if limit == array.batch.resources.time_limit_min else (f"TimeLimit={limit}",)
            own = [given[stage.name] for stage in stretch.batch.stages]
            found.append((stretch.depth, 1, _update([ids[0] for ids in own], sizes, waits, more)))
            for link in range(2, array.batch.resources.chain + 1):
                for ids in own:
                    behind = ",".join(filter(None, [waits, f"afterany:{ids[link - 2]}"]))
                    found.append((stretch.depth, link, _update([ids[link - 1]], sizes, behind, more)))
    found.sort(key=lambda entry: entry[:2], reverse=True)
    return [update for _, _, update in found]


def _update(jobs: Sequence[str], sizes: Mapping[str, int], waits: str | None, more: Sequence[str]) -> Update:
    """Make the request for neighbors in one array, or for a job of its own."""
    base, _, first = jobs[0].partition("_")
    last = jobs[-1].partition("_")[2]
    name = jobs[0] if len(jobs) == 1 else base if len(jobs) == sizes[base] else f"{base}_[{first}-{last}]"
    words = [f"JobId={name}", *([f"Dependency={waits}"] if waits else []), *more, "StartTime=now"]
    return Update(tuple(jobs), " ".join(words))


def _array(stretches: Sequence[Stretch]) -> SharedArray:
    stages = tuple(stage for stretch in stretches for stage in stretch.batch.stages)
    asked = [stretch.batch.resources for stretch in stretches]
    longest = max(asked, key=lambda resources: resources.time_limit_min)
    return SharedArray(Batch(stages, longest, (), ()), tuple(stretches))


def _cut(stretches: Sequence[Stretch], size: int) -> Iterator[list[Stretch]]:
    """Yield stretches for arrays of at most `size` stages, cut where they have to be."""
    room, some = size, []
    for stretch in stretches:
        rest = stretch.batch.stages
        while rest:
            now, rest = rest[:room], rest[room:]
            some.append(Stretch(replace(stretch.batch, stages=now), stretch.depth))
            room -= len(now)
            if room == 0:
                yield some
                room, some = size, []
    if some:
        yield some
