"""pretrain -> convert -> evaluate x (checkpoints x recipes x seeds) -> report, as a graph of slurm stages."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from carryover.configs import UserError, load
from carryover.core.backbones.pixels import WillBeTrainedOn
from carryover.core.data.digest import recipe_digest
from carryover.core.formats.checkpoint_files import parts_of
from carryover.slurm.graph import Graph
from carryover.slurm.resources import Resources
from carryover.slurm.stage import Output, Stage
from carryover.transfer.pipeline.calls import BACKBONE, STATE
from carryover.transfer.pipeline.config import (
    CheckpointEntry,
    EvaluationEntry,
    PipelineConfig,
    PretrainEntry,
)
from carryover.transfer.pipeline.foresight import read_metadata, refuse_other_pixels, refuse_unfit

_Entry = TypeVar("_Entry", PretrainEntry, CheckpointEntry, EvaluationEntry)
_SHAPES = "shapes:"
_SHAPES_STAGE = "data/shapes"


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation of the pipeline with its recipe resolved for each of its seeds."""

    entry: EvaluationEntry
    recipes: Mapping[int, Any]


@dataclass
class _Plan:
    """The stages so far, and the names of those whose results the report waits for."""

    config: PipelineConfig
    evaluations: Sequence[_Evaluation]
    stages: list[Stage] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    digests: "_Digests" = field(default_factory=lambda: _Digests())


class _Digests:
    """Digests of the data sets that recipes read, each taken once."""

    def __init__(self) -> None:
        self._found: dict[str, str | None] = {}

    def of(self, recipe: Any) -> dict[str, str | None]:
        """Return the digest of a recipe's data as a stage's `known`; of data yet to be made, nothing."""
        root = recipe.data.root
        if root is None or str(root).startswith(_SHAPES):
            return {}
        labels = getattr(recipe, "labels", None)
        key = repr((type(recipe.data), recipe.data, labels))
        if key not in self._found:
            self._found[key] = recipe_digest(recipe)
        return {"data": self._found[key]}


def plan(config: PipelineConfig, run_dir: Path) -> Graph:
    """Lay a pipeline out as stages; every recipe in it is resolved and validated first.

    Parameters
    ----------
    run_dir
        Where the run will live. Nothing that a stage is given depends on it.

    Raises
    ------
    UserError
        Nothing to evaluate, a recipe that does not resolve, ``shapes:...`` without a `shapes` section, a
        checkpoint that cannot be read, or a backbone that an evaluation or a library has no place for.
    """
    only = set(config.only)
    rows = only & ({e.key for e in config.pretrain} | {e.key for e in config.given})
    columns = only & {e.key for e in config.evaluate}
    pretrainings, given = _chosen(config.pretrain, rows), _chosen(config.given, rows)
    if not pretrainings and not given:
        raise UserError(
            f"{config.name}: nothing to evaluate: give a checkpoint (checkpoint=FILE) or pretrainings"
        )
    evaluated = _chosen(config.evaluate, columns)
    trained, judging = _all_resolved(config, pretrainings, evaluated)
    laid = _Plan(config, [_Evaluation(e, recipes) for e, recipes in zip(evaluated, judging, strict=True)])
    if config.shapes is not None:
        _add(laid, "data", _SHAPES_STAGE, "make_shapes", config.shapes.model_dump())
    sources: dict[str, tuple[str, str]] = {}
    problems: list[UserError] = []
    for entry, recipes in zip(pretrainings, trained, strict=True):
        for seed, recipe in recipes.items():
            sources[_seeded(entry.key, seed)] = entry.key, _add_pretraining(laid, entry, seed, recipe)
    for checkpoint in given:
        try:
            sources[checkpoint.key] = "", _add_import(laid, checkpoint)
        except UserError as error:
            problems.append(error)
    _raise_all(problems)
    for source, (key, made_by) in sources.items():
        _add_judgement(laid, source, made_by, [e for e in laid.evaluations if _is_for(e.entry, key)])
    if laid.results:
        arguments = {"run_dir": Output(""), "title": config.report_title}
        _add(laid, "report", "report", "report", arguments, after=tuple(laid.results))
    return Graph(laid.stages)


def _all_resolved(
    config: PipelineConfig, pretrainings: Sequence[PretrainEntry], evaluated: Sequence[EvaluationEntry]
) -> tuple[list[dict[int, Any]], list[dict[int, Any]]]:
    """Return every entry's recipes by seed; one UserError names all that do not resolve, by their place."""
    problems: list[UserError] = []

    def recipes(where: str, kind: str, entry: PretrainEntry | EvaluationEntry) -> dict[int, Any]:
        try:
            return {seed: resolved(config, kind, entry, seed) for seed in entry.seeds}
        except UserError as error:
            problems.append(UserError(f"{config.name}: {where}: {entry.key}: {error}"))
            return {}

    found = (
        [recipes("pretrain", "pretrain", entry) for entry in pretrainings],
        [recipes("evaluate", "transfer", entry) for entry in evaluated],
    )
    _raise_all(problems)
    return found


def _raise_all(problems: Sequence[UserError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError("\n".join(map(str, problems)))


def resolved(config: PipelineConfig, kind: str, entry: PretrainEntry | EvaluationEntry, seed: int) -> Any:
    """Load an entry's recipe; the root and the precision that the pipeline has for it precede its overrides.

    `kind` is "pretrain" or "transfer". Raises UserError for a recipe that does not resolve.
    """
    overrides = [*entry.overrides, f"seed={seed}"]
    recipe = load(kind, entry.recipe, overrides)
    common = []
    if (root := config.root_of(getattr(recipe, "data", None))) is not None:
        common.append(f"data.root={root}")
    if config.precision is not None and (key := _precision_key(recipe)) is not None:
        common.append(f"{key}={config.precision}")
    return load(kind, entry.recipe, [*common, *overrides]) if common else recipe


def _precision_key(recipe: Any) -> str | None:
    if hasattr(recipe, "precision"):
        return "precision"
    return "solver.precision" if hasattr(getattr(recipe, "solver", None), "precision") else None


def _add_pretraining(laid: _Plan, entry: PretrainEntry, seed: int, recipe: Any) -> str:
    """Add one pretraining, if so wanted in parts that are each evaluated; return the last part's name."""
    where = f"pretrain: {entry.key}"
    judged = [e for e in laid.evaluations if _is_for(e.entry, entry.key)]
    judges = [r for e in judged for r in e.recipes.values()]
    refuse_unfit(where, recipe.backbone, laid.config.convert, judges)
    augment = recipe.augment
    refuse_other_pixels(where, WillBeTrainedOn(augment.mean, augment.std, augment.view.size), judges)
    requires = _roots(recipe, where) if recipe.method.trains else ()
    known = laid.digests.of(recipe) if recipe.method.trains else {}
    params: dict[str, Any] = {"recipe": _plain(laid.config, recipe), "name": entry.key}
    if entry.label is not None:
        params["label"] = entry.label
    key = _seeded(entry.key, seed)
    every = laid.config.evaluate_every
    for epochs in range(every, recipe.schedule.epochs, every) if every else ():
        half_way = f"{key}-epoch{epochs}"
        name, part = f"pretrain/{half_way}", {**params, "until": epochs}
        _add(laid, "pretrain", name, "pretrain", part, entry.resources, requires=requires, known=known)
        _add_judgement(laid, half_way, name, [e for e in judged if e.entry.intermediate])
        params["start"] = Output(name, STATE)
    _add(
        laid,
        "pretrain",
        f"pretrain/{key}",
        "pretrain",
        params,
        entry.resources,
        requires=requires,
        known=known,
    )
    return f"pretrain/{key}"


def _add_import(laid: _Plan, given: CheckpointEntry) -> str:
    path = given.path.expanduser().absolute()
    where = f"checkpoints: {given.key}"
    if not path.exists():
        raise UserError(f"{where}: {path}: no such file")
    try:
        parts = parts_of(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    metadata = read_metadata(path, given.encoder, given.said)
    judges = [r for e in laid.evaluations for r in e.recipes.values()]
    refuse_unfit(where, metadata.backbone, laid.config.convert, judges)
    refuse_other_pixels(where, metadata, judges)
    # What the row is called is `label`, whether or not it was given: 0.1 knew that alone.
    params: dict[str, Any] = {"checkpoint": str(path), "label": given.key, "encoder": given.encoder}
    if said := given.said.stated():
        params["said"] = said
    _add(laid, "convert", f"import/{given.key}", "import_foreign", params, inputs=parts)
    return f"import/{given.key}"


def _add_judgement(laid: _Plan, source: str, made_by: str, evaluations: Sequence[_Evaluation]) -> None:
    """Add one checkpoint's verified conversions, and all its evaluations, which depend on them."""
    checkpoint, proof = Output(made_by, BACKBONE), f"convert/{source}"
    _add(laid, "convert", proof, "convert", {"checkpoint": checkpoint, "to": list(laid.config.convert)})
    for evaluation in evaluations:
        entry = evaluation.entry
        for seed, recipe in evaluation.recipes.items():
            name = f"evaluate/{source}/{_seeded(entry.key, seed)}"
            requires = _roots(recipe, f"evaluate: {entry.key}")
            plain = _plain(laid.config, recipe)
            params = {"recipe": plain, "name": entry.key, "checkpoint": checkpoint}
            more = {"depends_on": (proof,), "requires": requires, "known": laid.digests.of(recipe)}
            _add(laid, "evaluate", name, "evaluate", params, entry.resources, **more)
            laid.results.append(name)


def _add(
    laid: _Plan,
    kind: str,
    name: str,
    function: str,
    params: Mapping[str, Any],
    own: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    of_kind = {str(k): v for k, v in laid.config.resources.items()}.get(kind, Resources())
    resources = Resources.from_json({**of_kind.to_json(), **(own or {})})
    laid.stages.append(Stage(name=name, call=function, params=params, resources=resources, **more))


def _chosen(entries: Sequence[_Entry], only: Set[str]) -> list[_Entry]:
    """Return the entries named in `only`; all of them where it is empty."""
    return [e for e in entries if e.key in only or not only]


def _is_for(entry: EvaluationEntry, key: str) -> bool:
    return not (entry.of and key) or key in entry.of


def _plain(config: PipelineConfig, recipe: Any) -> Any:
    """Return the recipe as plain data, with ``shapes:...`` turned into the output of the shapes stage.

    A root becomes absolute: jobs and retries start in other directories.
    """
    plain = recipe.model_dump(mode="json", exclude={"name"})
    root = plain.get("data", {}).get("root")
    if root is not None and not root.startswith(_SHAPES):
        plain["data"]["root"] = str(Path(root).expanduser().absolute())
    return _with_outputs(plain, config.shapes is not None)


def _with_outputs(value: Any, has_shapes: bool) -> Any:
    if isinstance(value, dict):
        return {k: _with_outputs(v, has_shapes) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_outputs(v, has_shapes) for v in value]
    if isinstance(value, str) and value.startswith(_SHAPES):
        if not has_shapes:
            raise UserError(f"'{value}': this pipeline makes no shapes data set; give it a `shapes:` section")
        return Output(_SHAPES_STAGE, "data/" + value.removeprefix(_SHAPES))
    return value


def _roots(recipe: Any, where: str) -> tuple[Path, ...]:
    """Return the paths that must be there before anything is submitted."""
    data: Any = getattr(recipe, "data", None)
    root = getattr(data, "root", None)
    if root is None:
        if hasattr(data, "root"):
            raise UserError(
                f"{where}: data.root is not given: set it with `overrides: [data.root=...]`, or name the data"
                f" set, '{data.title}', under one of the pipeline's roots in `holds`"
            )
        return ()
    if str(root).startswith(_SHAPES):
        return ()
    return (Path(root).expanduser(),)


def _seeded(key: str, seed: int) -> str:
    return f"{key}-seed{seed}"
