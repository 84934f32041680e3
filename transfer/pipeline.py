"""pretrain -> convert -> evaluate x (checkpoints x recipes x seeds) -> report, as a graph of slurm stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import UserError, load
from slurm.graph import Graph
from slurm.resources import Resources
from slurm.stage import Output, Stage
from transfer.pipeline_config import CheckpointEntry, EvaluationEntry, PipelineConfig, PretrainEntry
from transfer.stages import BACKBONE

_SHAPES = "shapes:"
_SHAPES_STAGE = "data/shapes"


def plan(config: PipelineConfig, run_dir: Path) -> Graph:
    """Lay a pipeline out as stages; every recipe in it is resolved and validated first.

    Parameters
    ----------
    run_dir
        Where the run will live; only the report stage needs to know it.

    Raises
    ------
    UserError
        A recipe that does not resolve, or ``shapes:...`` without a `shapes` section.
    """
    import pretrain.config  # noqa: F401 (registers the kind)
    import transfer.config  # noqa: F401 (registers the kind)

    stages: list[Stage] = []
    if config.shapes is not None:
        arguments = config.shapes.model_dump()
        stages.append(_stage(config, "data", _SHAPES_STAGE, "make_shapes", arguments))
    sources: dict[str, str] = {}
    for entry in config.pretrain:
        for seed in entry.seeds:
            stage = _pretrain_stage(config, entry, seed)
            stages.append(stage)
            sources[_seeded(entry.key, seed)] = stage.name
    for given in config.checkpoints:
        stage = _import_stage(config, given)
        stages.append(stage)
        sources[given.key] = stage.name
    evaluations: list[str] = []
    for source, made_by in sources.items():
        checkpoint = Output(made_by, BACKBONE)
        proof = f"convert/{source}"
        stages.append(
            _stage(
                config, "convert", proof, "convert", {"checkpoint": checkpoint, "to": list(config.convert)}
            )
        )
        for evaluation in config.evaluate:
            for seed in evaluation.seeds:
                stage = _evaluate_stage(config, evaluation, seed, source, checkpoint, proof)
                stages.append(stage)
                evaluations.append(stage.name)
    if evaluations:
        params = {"run_dir": str(run_dir), "title": config.report_title}
        stages.append(_stage(config, "report", "report", "report", params, after=tuple(evaluations)))
    return Graph(stages)


def _pretrain_stage(config: PipelineConfig, entry: PretrainEntry, seed: int) -> Stage:
    overrides = [*entry.overrides, f"seed={seed}"]
    recipe = load("pretrain", entry.recipe, overrides)
    name = f"pretrain/{_seeded(entry.key, seed)}"
    params = {"recipe": _plain(config, recipe), "name": entry.key}
    return _stage(config, "pretrain", name, "pretrain", params, requires=_roots(recipe))


def _import_stage(config: PipelineConfig, given: CheckpointEntry) -> Stage:
    path = given.path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"checkpoints: {given.label}: {path}: no such file")
    params = {"checkpoint": str(path), "label": given.label, "encoder": given.encoder}
    return _stage(config, "convert", f"import/{given.key}", "import_foreign", params, inputs=(path,))


def _evaluate_stage(
    config: PipelineConfig, entry: EvaluationEntry, seed: int, source: str, checkpoint: Output, proof: str
) -> Stage:
    recipe = load("transfer", entry.recipe, [*entry.overrides, f"seed={seed}"])
    params = {"recipe": _plain(config, recipe), "name": entry.key, "checkpoint": checkpoint}
    name = f"evaluate/{source}/{_seeded(entry.key, seed)}"
    return _stage(config, "evaluate", name, "evaluate", params, depends_on=(proof,), requires=_roots(recipe))


def _stage(
    config: PipelineConfig,
    kind: str,
    name: str,
    function: str,
    params: Mapping[str, Any],
    **more: Any,
) -> Stage:
    resources = {str(k): v for k, v in config.resources.items()}.get(kind, Resources())
    return Stage(name=name, call=f"transfer.stages:{function}", params=params, resources=resources, **more)


def _plain(config: PipelineConfig, recipe: Any) -> Any:
    """Return the recipe as plain data, with ``shapes:...`` turned into the output of the shapes stage."""
    plain = recipe.model_dump(mode="json", exclude={"name"})
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


def _roots(recipe: Any) -> tuple[Path, ...]:
    """Return the paths that must be there before anything is submitted."""
    root = getattr(getattr(recipe, "data", None), "root", None)
    if root is None or str(root).startswith(_SHAPES):
        return ()
    return (Path(root),)


def _seeded(key: str, seed: int) -> str:
    return f"{key}-seed{seed}"
