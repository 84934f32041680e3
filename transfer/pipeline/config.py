"""Pipelines as recipes: which pretrainings, carried where, evaluated how, over which seeds (torch-free)."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from carryover.configs import Incidental, Recipe, Section
from carryover.configs.catalogue import name_of
from carryover.configs.nearest import nearest
from carryover.configs.paths import Relative
from carryover.core.formats.said import Label, Said
from carryover.transfer.pipeline.clusters import StageResources, read_resources


def _known(resources: dict[str, Any]) -> dict[str, Any]:
    read_resources(resources)
    return resources


def _called(recipe: str) -> str:
    """Return the name of a recipe that may be given by its path, as part of a stage's name."""
    return _fitting(name_of(recipe))


def _fitting(name: str) -> str:
    """Turn a name into one that can be part of a stage's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("_.-") or "unnamed"


Overrides = tuple[str, ...]
RecipeName = Annotated[str, Relative()]
"""A shipped recipe's name, or a file of the user's own."""
OwnResources = Annotated[dict[str, Any], AfterValidator(_known), Incidental]
"""Resources of one entry's stages, which override `resources` of their kind key by key."""
Encoder = Literal["online", "momentum", "student", "teacher"]
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

    recipe: RecipeName
    seeds: Seeds = (0,)
    overrides: Overrides = ()
    label: Label | None = None
    resources: OwnResources = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the name of this entry in stages and reports."""
        return self.label or _called(self.recipe)


class CheckpointEntry(Section):
    """A checkpoint that is there already: canonical, or any maker's that the importers know.

    Attributes
    ----------
    label
        The row's name in the report; the file's name where it is not given.
    method, dataset, epochs, input_size
        What is known of a file that does not say it itself: how it was pretrained, on what, for how long, on
        crops of how many pixels a side.
    """

    path: Annotated[Path, Incidental]
    label: Label | None = None
    encoder: Encoder | None = None
    method: str | None = None
    dataset: str | None = None
    epochs: PositiveFloat | None = None
    input_size: PositiveInt | None = None

    @property
    def said(self) -> Said:
        """Return the statements about the file."""
        return Said(self.label, self.method, self.dataset, self.epochs, self.input_size)

    @property
    def key(self) -> str:
        """Return the name of this entry in stages and reports."""
        return self.label or _fitting(self.path.stem)


class EvaluationEntry(Section):
    """One evaluation recipe, run for every checkpoint and each of its seeds.

    Attributes
    ----------
    of
        The pretrainings that it is for; all, where empty. Checkpoints that are there already are always
        evaluated.
    intermediate
        Whether checkpoints from half-way (`evaluate_every`) are evaluated as well.
    """

    recipe: RecipeName
    seeds: Seeds = (0,)
    overrides: Overrides = ()
    label: Label | None = None
    of: tuple[str, ...] = ()
    intermediate: bool = True
    resources: OwnResources = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the name of this entry in stages."""
        return self.label or _called(self.recipe)


StageKind = Literal["data", "pretrain", "convert", "evaluate", "report"]


class PipelineConfig(Recipe):
    """pretrain -> convert -> evaluate x seeds -> report.

    Relative paths in a pipeline's file, of recipes, roots and checkpoints, are relative to the file's folder.

    Attributes
    ----------
    roots
        Data set roots by name. A root that starts with ``shapes:`` lies in the data set that the pipeline
        makes itself. An entry's overrides may refer to one as ``${roots.NAME}``.
    holds
        The data sets under each root, by the title that recipes give them; ``TITLE (KIND)`` means only the
        recipes that read that kind of layout. Their `data.root` is then the root, unless the entry overrides
        it.
    checkpoint, encoder
        A checkpoint that is there already, in short: `checkpoints` with one entry named after its file.
    evaluate_every
        Evaluate the pretrainings' states after every so many epochs too, each as soon as it is there, while
        the training goes on. Each part is a stage of its own, and on a cluster a job of its own.
    only
        Labels (or recipes) of pretrainings, checkpoints and evaluations: of the kinds that are named, no
        others take part.
    precision
        The arithmetic of every network, in place of the recipes' own; an entry's overrides come after it.
    resources
        What each kind of stage asks of a cluster, over the cluster's own defaults (slurm.resources).
    convert
        The libraries for which every checkpoint is converted and verified before any evaluation; "canonical"
        verifies only that it is complete.
    """

    shapes: ShapesSection | None = None
    roots: Annotated[dict[str, Annotated[str, Relative(always=True)]], Incidental] = Field(
        default_factory=dict
    )
    holds: Annotated[dict[str, tuple[str, ...]], Incidental] = Field(default_factory=dict)
    pretrain: tuple[PretrainEntry, ...] = ()
    checkpoint: Annotated[Path | None, Incidental] = None
    encoder: Encoder | None = None
    checkpoints: tuple[CheckpointEntry, ...] = ()
    evaluate_every: PositiveInt | None = None
    only: tuple[str, ...] = ()
    precision: Literal["bf16", "fp32"] | None = None
    convert: tuple[Literal["torchvision", "detectron2", "mmseg", "timm", "canonical"], ...] = ("torchvision",)
    evaluate: tuple[EvaluationEntry, ...] = ()
    resources: Annotated[dict[StageKind, StageResources], Incidental] = Field(default_factory=dict)
    report_title: Annotated[str, Incidental] = "What the pretraining carries over"

    @property
    def given(self) -> tuple[CheckpointEntry, ...]:
        """The checkpoints that are there already."""
        if self.checkpoint is None:
            return self.checkpoints
        one = CheckpointEntry(path=self.checkpoint, encoder=self.encoder)
        return (one, *self.checkpoints)

    def root_of(self, data: Any) -> str | None:
        """Return the root that holds the data set of a recipe's `data` section; None where none does."""
        title, kind = getattr(data, "title", ""), getattr(data, "kind", "")
        for name in (f"{title} ({kind})", title):
            for root, titles in self.holds.items():
                if name in titles:
                    return self.roots[root]
        return None

    @model_validator(mode="after")
    def _data_sets_have_one_root(self) -> "PipelineConfig":
        titles = [title for held in self.holds.values() for title in held]
        for root in self.holds:
            if root not in self.roots:
                raise ValueError(f"holds: {_unknown(root, list(self.roots))}")
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"holds: '{title}' is under two roots")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "PipelineConfig":
        sources = [e.key for e in self.pretrain] + [e.key for e in self.given]
        for what, keys in (("pretrain/checkpoints", sources), ("evaluate", [e.key for e in self.evaluate])):
            twice = sorted({k for k in keys if keys.count(k) > 1})
            if twice:
                raise ValueError(f"{what}: '{twice[0]}' is listed twice; give one of them a label")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> "PipelineConfig":
        trained = [e.key for e in self.pretrain]
        for entry in self.evaluate:
            for name in entry.of:
                if name not in trained:
                    raise ValueError(f"evaluate: {entry.key}: of: {_unknown(name, trained)}")
        named = [*trained, *(e.key for e in self.given), *(e.key for e in self.evaluate)]
        for name in self.only:
            if name not in named:
                raise ValueError(f"only: {_unknown(name, named)}")
        if self.encoder is not None and self.checkpoint is None:
            raise ValueError("encoder: belongs to checkpoint; an entry of checkpoints has its own")
        return self


def _unknown(name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(known) or 'none'}"
    return f"nothing here is called '{name}'; {hint}"
