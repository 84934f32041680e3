"""A graph of stages: what waits for what."""

import heapq
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from carryover.slurm.errors import RequestError
from carryover.slurm.resources import Resources
from carryover.slurm.stage import InputDigests, Output, Stage, Statement, decode, encode

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*(/[A-Za-z0-9][A-Za-z0-9._+=,-]*)*")
_LONGEST_NAME = 200


class Graph:
    """Stages in an order in which each follows all it waits for.

    Raises
    ------
    RequestError
        Two stages of one name, a name that cannot be a directory, a dependency on no stage of this graph, or
        a circle of dependencies.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages: dict[str, Stage] = {}
        for stage in stages:
            _check_name(stage.name)
            if stage.name in self._stages:
                raise RequestError(f"two stages are called {stage.name!r}")
            self._stages[stage.name] = stage
        self._check_nesting()
        for stage in stages:
            for needed in (*stage.upstream, *stage.after):
                if needed not in self._stages:
                    raise RequestError(f"stage {stage.name!r} depends on {needed!r}, which is no stage here")
        self._order = self._sorted()

    def __iter__(self) -> Iterator[Stage]:
        return (self._stages[name] for name in self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, name: str) -> Stage:
        return self._stages[name]

    def __contains__(self, name: object) -> bool:
        return name in self._stages

    @property
    def names(self) -> tuple[str, ...]:
        """Stage names, each after all it waits for, otherwise as given."""
        return tuple(self._order)

    def with_upstream(self, names: Collection[str]) -> set[str]:
        """Return the given stages and all that they need, directly or not; raises RequestError on others."""
        for name in names:
            if name not in self:
                raise RequestError(f"there is no stage {name!r}; there are: {', '.join(self._order)}")
        wanted = set(names)
        for name in reversed(self._order):
            if name in wanted:
                wanted.update(self._stages[name].upstream)
        return wanted

    def hashes(self) -> dict[str, str]:
        """Return every stage's content hash, as of a run in which nothing has been done."""
        hashes: dict[str, str] = {}
        inputs = InputDigests()
        for stage in self:
            inputs.require(stage)
            hashes[stage.name] = Statement.of(stage, hashes, inputs).hash
        return hashes

    def to_json(self) -> list[dict[str, Any]]:
        """Return the stages, in order, as plain data."""
        return [_stage_to_json(stage) for stage in self]

    @classmethod
    def from_json(cls, plain: Sequence[Mapping[str, Any]]) -> "Graph":
        """Read what `to_json` wrote; a call that is not registered comes back as its name alone."""
        return cls([_stage_from_json(stage) for stage in plain])

    def _check_nesting(self) -> None:
        for name in self._stages:
            parts = name.split("/")
            for n in range(1, len(parts)):
                if "/".join(parts[:n]) in self._stages:
                    raise RequestError(f"stage {name!r} would lie inside stage {'/'.join(parts[:n])!r}")

    def _sorted(self) -> list[str]:
        place = {name: i for i, name in enumerate(self._stages)}
        sorter = TopologicalSorter({s.name: (*s.upstream, *s.after) for s in self._stages.values()})
        try:
            sorter.prepare()
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise RequestError(f"stages depend on one another in a circle: {circle}") from None
        order: list[str] = []
        ready: list[int] = []
        names = list(self._stages)
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, place[name])
            name = names[heapq.heappop(ready)]
            order.append(name)
            sorter.done(name)
        return order


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise RequestError(
            f"stage name {name!r} cannot be a directory: parts between slashes begin with a letter or digit "
            f"and hold letters, digits and any of . _ + = , - ({_LONGEST_NAME} characters at most)"
        )


def _stage_to_json(stage: Stage) -> dict[str, Any]:
    plain = {
        "name": stage.name,
        "call": stage.calls.name,
        "version": stage.version,
        "params": encode(stage.params, stage.name),
        "depends_on": list(stage.depends_on),
        "after": list(stage.after),
        "inputs": [str(p) for p in stage.inputs],
        "requires": [str(p) for p in stage.requires],
        "known": dict(stage.known),
        "resources": stage.resources.to_json(),
    }
    return {key: value for key, value in plain.items() if value not in ([], {})}


def _stage_from_json(plain: Mapping[str, Any]) -> Stage:
    return Stage(
        name=plain["name"],
        call=plain["call"],
        params=decode(plain.get("params", {})),
        resources=Resources.from_json(plain.get("resources", {})),
        depends_on=tuple(plain.get("depends_on", ())),
        after=tuple(plain.get("after", ())),
        inputs=tuple(Path(p) for p in plain.get("inputs", ())),
        requires=tuple(Path(p) for p in plain.get("requires", ())),
        version=plain.get("version", 1),
        known=plain.get("known", {}),
    )


__all__ = ["Graph", "Output", "Stage"]
