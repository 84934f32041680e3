"""Pipelines as recipes: which pretrainings, carried where, evaluated how, over which seeds (torch-free)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from configs import Incidental, Recipe, Section, register
from transfer.cluster_config import StageResources

Overrides = tuple[str, ...]
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]


class ShapesSection(Section):
    """The procedural data set that the pipeline makes for itself; addressed as ``shapes:...`` in roots."""

    seed: int = 0
    n_train: PositiveInt = 2000
    n_val: PositiveInt = 500
    n_detection: PositiveInt = 200


class PretrainEntry(Section):
    """One pretraining recipe, trained once for each of its seeds.

    Attributes
    ----------
    label
        The row's name in the report; the recipe's name where it is not given.
    """

    recipe: str
    seeds: Seeds = (0,)
    overrides: Overrides = ()
    label: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")

    @property
    def key(self) -> str:
        """How stages and reports call this entry."""
        return self.label or self.recipe


class CheckpointEntry(Section):
    """A checkpoint that is there already: canonical, or any maker's that the importers know."""

    path: Annotated[Path, Incidental]
    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    encoder: Literal["online", "momentum", "student", "teacher"] | None = None

    @property
    def key(self) -> str:
        """How stages and reports call this entry."""
        return self.label


class EvaluationEntry(Section):
    """One evaluation recipe, run for every checkpoint and each of its seeds."""

    recipe: str
    seeds: Seeds = (0,)
    overrides: Overrides = ()
    label: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")

    @property
    def key(self) -> str:
        """How stages call this entry."""
        return self.label or self.recipe


StageKind = Literal["data", "pretrain", "convert", "evaluate", "report"]


class PipelineConfig(Recipe):
    """pretrain -> convert -> evaluate x seeds -> report.

    Attributes
    ----------
    roots
        Data set roots by name; recipes' overrides refer to them as ``${roots.NAME}``. A root that starts
        with ``shapes:`` lies in the data set that the pipeline makes itself.
    resources
        What each kind of stage asks of a cluster, over the cluster's own defaults (slurm.resources).
    convert
        The libraries that every checkpoint is proven to load into before anything is evaluated.
    """

    shapes: ShapesSection | None = None
    roots: Annotated[dict[str, str], Incidental] = Field(default_factory=dict)
    pretrain: tuple[PretrainEntry, ...] = ()
    checkpoints: tuple[CheckpointEntry, ...] = ()
    convert: tuple[Literal["torchvision", "detectron2", "mmseg", "timm"], ...] = ("torchvision",)
    evaluate: tuple[EvaluationEntry, ...] = ()
    resources: Annotated[dict[StageKind, StageResources], Incidental] = Field(default_factory=dict)
    report_title: Annotated[str, Incidental] = "What the pretraining carries over"

    @model_validator(mode="after")
    def _has_something_to_evaluate(self) -> "PipelineConfig":
        if not self.pretrain and not self.checkpoints:
            raise ValueError("a pipeline needs pretrainings (pretrain:) or checkpoints (checkpoints:)")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "PipelineConfig":
        sources = [e.key for e in self.pretrain] + [e.key for e in self.checkpoints]
        for what, keys in (("pretrain/checkpoints", sources), ("evaluate", [e.key for e in self.evaluate])):
            twice = sorted({k for k in keys if keys.count(k) > 1})
            if twice:
                raise ValueError(f"{what}: '{twice[0]}' is there twice; give one of them a label")
        return self


register("pipelines", PipelineConfig)
