"""Resources that a stage requests, and those that a cluster provides and allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from carryover.slurm.errors import RequestError

_TIME_MIN = 60
_SIGNAL_DELAY_S = 120
_MAX_TIMEOUTS = 3
_RESERVED = frozenset(
    [
        "array",
        "chdir",
        "clusters",
        "comment",
        "dependency",
        "error",
        "output",
        "parsable",
        "test-only",
        "wait",
    ]
)
_SHAPE = ("nodes", "tasks_per_node", "gpus_per_node", "chain")


@dataclass(frozen=True)
class Resources:
    """One stage's demand. Its shape is the stage's own; None leaves the rest to the cluster's defaults.

    Attributes
    ----------
    nodes, tasks_per_node, gpus_per_node
        Shape of the job; `tasks_per_node` processes run the stage's callable on each node.
    cpus_per_task
        CPUs for each of these processes.
    mem_gb
        Memory per node, in GiB.
    time_min
        Time limit of one job, in minutes (60, where the cluster says nothing either).
    partition, account, qos, constraint
        As sbatch takes them.
    signal_delay_s
        Seconds before the time limit at which USR2 reaches the stage: what saving its state may take (120).
    max_timeouts
        How often a stage that ran into its time limit is queued again (3). Preemptions are not counted.
    chain
        Jobs queued one behind the other for this stage, for a cluster that allows no requeueing.
    sbatch
        Further sbatch options, by long name without the dashes.
    setup
        Shell lines run in the batch script before the stage.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    time_min: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_delay_s: int | None = None
    max_timeouts: int | None = None
    chain: int = 1
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("time_min", 1), ("chain", 1)):
            self._check_least(name, least)
        for name in ("gpus_per_node", "signal_delay_s", "max_timeouts"):
            self._check_least(name, 0)
        object.__setattr__(self, "setup", tuple(self.setup))
        object.__setattr__(self, "sbatch", dict(self.sbatch))
        for name in sorted(_RESERVED.intersection(self.sbatch)):
            raise RequestError(f"resources: sbatch: {name} is reserved: carryover identifies its jobs by it")

    @property
    def time_limit_min(self) -> int:
        """Time limit of one job, in minutes."""
        return _TIME_MIN if self.time_min is None else self.time_min

    @property
    def signal_delay(self) -> int:
        """Seconds between the warning signal and the time limit."""
        return _SIGNAL_DELAY_S if self.signal_delay_s is None else self.signal_delay_s

    @property
    def timeouts_allowed(self) -> int:
        """Return the number of time limits that a stage may reach."""
        return _MAX_TIMEOUTS if self.max_timeouts is None else self.max_timeouts

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for: every GPU for the whole time limit of one job."""
        return self.nodes * self.gpus_per_node * self.time_limit_min / 60

    @property
    def summary(self) -> str:
        """The demand in a few words, for people."""
        shape = f"{self.nodes} node{'s' * (self.nodes > 1)}"
        if self.gpus_per_node:
            shape += f" x {self.gpus_per_node} GPU{'s' * (self.gpus_per_node > 1)}"
        elif self.tasks_per_node > 1:
            shape += f" x {self.tasks_per_node} tasks"
        hours, minutes = divmod(self.time_limit_min, 60)
        return f"{shape}, {hours}:{minutes:02} h"

    def over(self, defaults: "Resources") -> "Resources":
        """Return these resources with what they leave open taken from `defaults`.

        Further sbatch options are merged by name; the defaults' setup lines come first.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        open_ones = {k: getattr(defaults, k) for k, v in own.items() if v is None and k not in _SHAPE}
        sbatch = {**defaults.sbatch, **self.sbatch}
        return Resources(
            **{**own, **open_ones, "sbatch": sbatch, "setup": (*defaults.setup, *self.setup)},
        )

    def to_json(self) -> dict[str, Any]:
        """Return what differs from a blank demand, as plain data."""
        blank = Resources()
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: value for name, value in plain.items() if value != getattr(blank, name)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in changed.items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Resources":
        """Read what `to_json` wrote; raises RequestError on an unknown key."""
        keys = [f.name for f in fields(cls)]
        unknown = sorted(set(plain) - set(keys))
        if unknown:
            raise RequestError(f"resources: unknown key {unknown[0]!r}; the keys are: {', '.join(keys)}")
        return cls(**plain)

    def _check_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise RequestError(f"resources: {name} must be at least {least}, not {value}")


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
