"""Identity of a pipeline's stages, from their parameters as stored in a run directory."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from carryover.configs import Identity, UserError
from carryover.configs.loading import validate
from carryover.core.data.pictures import READING
from carryover.slurm.stage import Output, encode, replace_outputs


def of_pretrain(params: Mapping[str, Any]) -> Identity:
    """Return the identity of a pretraining, or of its part up to an epoch."""
    config = _recipe("pretrain", params["recipe"])
    until = params.get("until")
    parts: dict[str, Any] = {} if until is None else {"until": until}
    if config.method.trains:
        parts["reading"] = READING
    return Identity.of(config, kind="pretrain", version=config.method.version, seed=config.seed, **parts)


def of_evaluate(params: Mapping[str, Any]) -> Identity:
    """Return the identity of an evaluation; its checkpoint is another stage's output."""
    config = _recipe("transfer", params["recipe"])
    return Identity.of(
        config, kind=config.task, version=type(config).version, seed=config.seed, reading=READING
    )


def pretrain_of_v1(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return what the statement of a pretraining by carryover 0.1 says otherwise than today's."""
    from carryover.core.data.reading import reading_of_v1

    config = _recipe("pretrain", params["recipe"])
    return {"version": 1} | ({"reading": reading_of_v1(config)} if config.method.trains else {})


def evaluate_of_v1(params: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return what the statement of an evaluation by carryover 0.1, which lies in `out`, says otherwise."""
    from carryover.transfer.results.record import RECORD_NAME, load_record
    from carryover.transfer.tasks.identity import of_v1, processes_of_v1

    try:
        processes = processes_of_v1(load_record(out / RECORD_NAME).facts)
    except (UserError, OSError):
        processes = None
    return of_v1(_recipe("transfer", params["recipe"]), processes)


def of_convert(params: Mapping[str, Any]) -> Identity:
    """Return the identity of a conversion."""
    return _plain("convert", to=list(params["to"]))


def of_import_foreign(params: Mapping[str, Any]) -> Identity:
    """Return the identity of an import: the encoder that is used and the statements about the file.

    The file itself is an input of the stage, and counts by its contents.
    """
    said = {f"said.{name}": value for name, value in params.get("said", {}).items() if name != "label"}
    return _plain("import", encoder=params["encoder"], label=params["label"], **said)


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
