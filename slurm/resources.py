"""What a stage asks of the machine it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from slurm.errors import RequestError


@dataclass(frozen=True)
class Resources:
    """One stage's demand; None leaves the choice to the cluster's own default.

    Attributes
    ----------
    nodes, tasks_per_node, gpus_per_node, cpus_per_task
        Shape of the job; `tasks_per_node` processes run the stage's callable on each node.
    mem_gb
        Memory per node, in GiB.
    time_min
        Time limit of one job, in minutes.
    partition, account, qos, constraint
        As sbatch takes them.
    signal_delay_s
        Seconds before the time limit at which USR2 reaches the stage: what saving its state may take.
    max_timeouts
        How often a stage that ran into its time limit is queued again. Preemptions are not counted.
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
    time_min: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_delay_s: int = 120
    max_timeouts: int = 3
    chain: int = 1
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "time_min", "chain"):
            if getattr(self, name) < 1:
                raise RequestError(f"resources: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("gpus_per_node", "signal_delay_s", "max_timeouts"):
            if getattr(self, name) < 0:
                raise RequestError(f"resources: {name} must not be negative, but is {getattr(self, name)}")
        object.__setattr__(self, "setup", tuple(self.setup))
        object.__setattr__(self, "sbatch", dict(self.sbatch))

    @property
    def tasks(self) -> int:
        """Number of processes of the job."""
        return self.nodes * self.tasks_per_node

    @property
    def gpu_hours(self) -> float:
        """GPU-hours asked for: every GPU for the whole time limit of one job."""
        return self.nodes * self.gpus_per_node * self.time_min / 60

    def over(self, defaults: "Resources") -> "Resources":
        """Return these resources with what they leave at its default taken from `defaults`."""
        blank = Resources()
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: value for name, value in own.items() if value != getattr(blank, name)}
        if "sbatch" in chosen:
            chosen["sbatch"] = {**defaults.sbatch, **chosen["sbatch"]}
        return replace(defaults, **chosen)

    def to_json(self) -> dict[str, Any]:
        """Return only what differs from the defaults, as plain data."""
        blank = Resources()
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != getattr(blank, f.name):
                plain[f.name] = list(value) if isinstance(value, tuple) else value
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Resources":
        """Read what `to_json` wrote; raises RequestError on an unknown key."""
        unknown = sorted(set(plain) - {f.name for f in fields(cls)})
        if unknown:
            raise RequestError(
                f"resources: unknown key {unknown[0]!r}; the keys are: "
                + ", ".join(f.name for f in fields(cls))
            )
        return cls(**plain)
