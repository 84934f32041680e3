"""Clusters as recipes: what a cluster's jobs are given by default, and what it allows (torch-free)."""

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, PositiveInt

from carryover.configs import Recipe
from carryover.slurm.errors import RequestError
from carryover.slurm.resources import Cluster, Resources


def read_resources(value: Any) -> Resources:
    """Validate a section of resources (slurm.resources); raises ValueError naming an unknown key."""
    if isinstance(value, Resources):
        return value
    try:
        return Resources.from_json(value)
    except (RequestError, TypeError) as error:
        raise ValueError(str(error)) from None


StageResources = Annotated[
    Resources, PlainValidator(read_resources), PlainSerializer(lambda r: r.to_json(), return_type=dict)
]


class ClusterConfig(Recipe):
    """A file of configs/clusters; the keys are those of `slurm.resources.Cluster`."""

    defaults: StageResources = Resources()
    array_parallelism: PositiveInt = 64
    max_array_size: PositiveInt = 1000
    requeue: bool = True
    packages: tuple[str, ...] = Field(default=("carryover",))

    @property
    def cluster(self) -> Cluster:
        """The same as what the executor takes."""
        return Cluster(self.name, self.defaults, self.array_parallelism, self.max_array_size, self.requeue)
