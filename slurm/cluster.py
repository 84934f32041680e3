"""A cluster: what its jobs are given by default, and what it allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from carryover.slurm.errors import RequestError
from carryover.slurm.resources import Resources


@dataclass(frozen=True)
class Cluster:
    """Defaults and limits of one SLURM cluster (a file in ``configs/clusters``).

    Attributes
    ----------
    defaults
        What a stage is given where it asks for nothing itself.
    array_parallelism
        How many elements of one job array may run at a time.
    max_array_size
        How many elements an array may have: at most the cluster's MaxArraySize - 1.
    requeue
        Whether jobs may be requeued here; without, use `Resources.chain`.
    """

    name: str = "default"
    defaults: Resources = field(default_factory=Resources)
    array_parallelism: int = 64
    max_array_size: int = 1000
    requeue: bool = True

    def __post_init__(self) -> None:
        for name in ("array_parallelism", "max_array_size"):
            if getattr(self, name) < 1:
                raise RequestError(f"cluster {self.name}: {name} must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"defaults": self.defaults.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Cluster":
        """Read a cluster from plain data; raises RequestError on an unknown key."""
        unknown = sorted(set(plain) - {f.name for f in fields(cls)})
        if unknown:
            keys = ", ".join(f.name for f in fields(cls))
            raise RequestError(f"cluster: unknown key {unknown[0]!r}; the keys are: {keys}")
        return cls(**{**plain, "defaults": Resources.from_json(plain.get("defaults", {}))})
