"""The stages of a pipeline: plain functions of JSON-able parameters and an output directory.

Each resumes when called again with the same `out`. Heavy libraries are imported inside, so that a pipeline
is planned and submitted without them.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carryover.transfer.pipeline.calls import BACKBONE

log = logging.getLogger(__name__)


def make_shapes(out: Path, **arguments: int) -> None:
    """Write the procedural data set into `out`/data."""
    from carryover.core.data.shapes.write import write_shapes

    write_shapes(out / "data", **arguments)


def pretrain(
    out: Path,
    recipe: Mapping[str, Any],
    name: str,
    until: int | None = None,
    start: str | None = None,
    label: str | None = None,
) -> None:
    """Train a resolved pretraining recipe; leaves `out`/backbone.safetensors.

    With `until`, only to the end of that epoch; with `start`, from the state that another part left. `label`
    is what reports call it.
    """
    from carryover.configs.loading import validate
    from carryover.pretrain.config import PretrainConfig
    from carryover.pretrain.trainer import train

    config = validate(PretrainConfig, {**recipe, "name": name}, name)
    train(config, out, until=until, start=Path(start) if start else None, label=label)


def import_foreign(
    out: Path, checkpoint: str, label: str, encoder: str | None, said: Mapping[str, Any] | None = None
) -> None:
    """Bring a checkpoint of any known maker into canonical form; leaves `out`/backbone.safetensors.

    `label` names its row, `said` holds what else is known of the file (`core.formats.said.Said`).
    """
    from carryover.core.backbones.importers import import_checkpoint
    from carryover.core.formats.canonical import save_canonical
    from carryover.core.formats.said import Said

    known = Said(**{"label": label, **(said or {})})
    state, metadata = import_checkpoint(Path(checkpoint), encoder=encoder, said=known)
    save_canonical(out / BACKBONE, state, metadata)


def convert(out: Path, checkpoint: str, to: Sequence[str]) -> None:
    """Convert a canonical checkpoint for each library in `to`; a failed verification is an error."""
    from carryover.transfer.convert import TARGETS
    from carryover.transfer.convert import convert as convert_to

    for target in to:
        receipt = convert_to(Path(checkpoint), target, out / f"{target}{TARGETS.get(target).suffixes[0]}")
        log.info("%s: %s", target, receipt.summary)


def evaluate(out: Path, recipe: Mapping[str, Any], name: str, checkpoint: str) -> None:
    """Run a resolved evaluation recipe on a canonical checkpoint; leaves `out`/result.json."""
    from carryover.configs.loading import validate
    from carryover.transfer.tasks.config import TransferConfig
    from carryover.transfer.tasks.evaluate import evaluate as run

    run(validate(TransferConfig, {**recipe, "name": name}, name), Path(checkpoint), out)


def report(out: Path, run_dir: str, title: str) -> None:
    """Draw up the report of a run directory into its own `report/`."""
    from carryover.configs import UserError
    from carryover.transfer.pipeline.costs import write_costs
    from carryover.transfer.report import write_report

    if Path(run_dir).resolve() not in out.resolve().parents:
        raise UserError(
            f"{out}: holds the request for the report of another run, {run_dir}; nothing is written there"
        )
    write_costs(Path(run_dir))
    write_report([Path(run_dir)], Path(run_dir) / "report", title=title)
