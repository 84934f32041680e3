"""What decides the result of a pipeline's stages, from their parameters as a run directory keeps them."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from carryover.configs import Identity
from carryover.configs.loading import validate
from carryover.slurm.stage import Output, encode, replace_outputs


def of_pretrain(params: Mapping[str, Any]) -> Identity:
    """Return the identity of a pretraining, or of its part up to an epoch."""
    config = _recipe("pretrain", params["recipe"])
    until = params.get("until")
    parts = {} if until is None else {"until": until}
    return Identity.of(config, kind="pretrain", version=config.method.version, seed=config.seed, **parts)


def of_evaluate(params: Mapping[str, Any]) -> Identity:
    """Return the identity of an evaluation; its checkpoint is another stage's output."""
    config = _recipe("transfer", params["recipe"])
    return Identity.of(config, kind=config.task, version=type(config).version, seed=config.seed)


def of_convert(params: Mapping[str, Any]) -> Identity:
    """Return the identity of a conversion."""
    return _plain("convert", to=list(params["to"]))


def of_import_foreign(params: Mapping[str, Any]) -> Identity:
    """Return the identity of an import: the encoder that is taken and what is said of the file.

    The file itself is an input of the stage, and counts by its contents.
    """
    return _plain("import", encoder=params["encoder"], label=params["label"])


def of_make_shapes(params: Mapping[str, Any]) -> Identity:
    """Return the identity of the procedural data set."""
    return _plain("shapes", **params)


def of_report(params: Mapping[str, Any]) -> Identity:
    """Return the identity of a report: of its run directory, wherever that lies, under a title."""
    return _plain("report", title=params["title"])


def upgraded_report(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a report of version 1, which named its run directory by an absolute path."""
    return {**params, "run_dir": encode(Output(""), "run_dir")}


def _plain(kind: str, **stated: Any) -> Identity:
    return Identity(kind, 1, stated, stated)


def _recipe(kind: str, params: Mapping[str, Any]) -> Any:
    # Paths are incidental: a root that is another stage's output counts by that stage.
    plain = replace_outputs(params, _somewhere)
    return _validated(kind, json.dumps(plain, sort_keys=True))


@lru_cache(maxsize=4096)
def _validated(kind: str, text: str) -> Any:
    from carryover.pretrain.config import PretrainConfig
    from carryover.transfer.tasks.config import TransferConfig

    model = PretrainConfig if kind == "pretrain" else TransferConfig
    return validate(model, json.loads(text), f"{kind} recipe of a stage")


def _somewhere(output: Output) -> str:
    return f"output/{output.path}"
