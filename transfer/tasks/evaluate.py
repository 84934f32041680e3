"""One evaluation recipe on one checkpoint: finds the task, runs it, writes the result record."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.transfer.results.record import RECORD_NAME, ResultRecord
from carryover.transfer.tasks.base import run_task
from carryover.transfer.tasks.config import implementation_of
from carryover.transfer.tasks.holding import IMPORT_NAME
from carryover.transfer.tasks.recipe import EvaluationRecipe

if TYPE_CHECKING:
    from torch import Tensor

    from carryover.core.backbones.source import Source
    from carryover.core.backbones.stated import Stated
    from carryover.core.formats.canonical import CanonicalMetadata
    from carryover.core.formats.said import Said

log = logging.getLogger(__name__)


def evaluate(config: EvaluationRecipe, checkpoint: "Path | Source", out: Path) -> ResultRecord:
    """Evaluate a canonical checkpoint, or by a frozen-feature task an open source; write `out`/result.json.

    Resumes a half-finished `out`. Returns the record that is there when the evaluation is finished already.

    Raises UserError, and changes nothing, when `out` holds other work: another protocol, version, seed,
    backbone or other data (`configs.identity`); each difference is named. Otherwise as `base.run_task`.
    """
    record = run_task(implementation_of(config), config, checkpoint, out)

    from carryover.core.training.distributed import is_first

    if not is_first():
        return record
    for metric in record.metrics:
        shown = "undefined" if metric.value is None else f"{metric.value:.2f} {metric.unit}"
        log.info("%s: %s %s", record.recipe, metric.label, shown)
    log.info("record: %s", out / RECORD_NAME)
    return record


def canonical_of(
    checkpoint: Path,
    out: Path,
    encoder: str | None = None,
    said: "Said | None" = None,
    stated: "Stated | None" = None,
) -> Path:
    """Return `checkpoint` when it is canonical, else its import, written to `out`/imported.safetensors.

    What is `said` of it is written into the import; of a canonical file with a label of its own, too.
    `stated` is what is known of another maker's network and pixels.
    Raises UserError for an `encoder` that the file does not hold, and what it says otherwise itself; and,
    changing nothing, where `out` holds an evaluation of other weights, or a result of the same ones that are
    described otherwise.
    """
    from carryover.core.backbones.importers import import_checkpoint, require_encoder
    from carryover.core.backbones.makers import SAY_NO_METHOD
    from carryover.core.formats.canonical import load_canonical, read_metadata, save_canonical
    from carryover.core.formats.claims import IDENTITY_NAME
    from carryover.core.formats.said import label_of

    if is_canonical(checkpoint):
        require_encoder(checkpoint, read_metadata(checkpoint), encoder)
        if stated is None and (said is None or not said.stated()):
            return checkpoint
    state, metadata = import_checkpoint(checkpoint, encoder, said, stated)
    if metadata.label is None and metadata.method in SAY_NO_METHOD:
        # A row of its own for every such file, by the name that its owner gave it.
        metadata = metadata.model_copy(update={"label": label_of(checkpoint.stem) or None})
    path = out / IMPORT_NAME
    finished = (out / RECORD_NAME).is_file()
    if path.is_file() and (finished or (out / IDENTITY_NAME).is_file()):
        _refuse_other(path, checkpoint, state, metadata, said if finished else None)
        if finished:
            return path
    save_canonical(path, state, metadata)
    load_canonical(path)
    log.info("%s: %s, %s encoder; imported as %s", checkpoint, metadata.maker, metadata.encoder, path)
    return path


def _refuse_other(
    path: Path,
    checkpoint: Path,
    state: "Mapping[str, Tensor]",
    metadata: "CanonicalMetadata",
    said: "Said | None",
) -> None:
    """Raise UserError unless `path`, which an evaluation rests on, holds this import, described as `said`."""
    from carryover.core.formats.canonical import backbone_digest, load_canonical

    known, about = load_canonical(path)
    elsewhere = "choose another directory with --out, or remove that one"
    if backbone_digest(known, about) != backbone_digest(state, metadata):
        raise UserError(
            f"{path.parent}: holds an evaluation of other weights than those of {checkpoint}, or of the same"
            f" read otherwise; {elsewhere}"
        )
    changed = [
        f"{key}: {getattr(about, key)} -> {value}"
        for key, value in (said.stated() if said else {}).items()
        if getattr(about, key) != value
    ]
    if changed:
        raise UserError(
            f"{path.parent}: holds the result of these weights, described otherwise ({'; '.join(changed)});"
            f" {elsewhere}"
        )


def is_canonical(checkpoint: Path) -> bool:
    """Return whether the header is that of a canonical checkpoint; raises UserError if unreadable."""
    from safetensors import SafetensorError, safe_open

    from carryover.core.formats.canonical import METADATA_KEY
    from carryover.core.formats.checkpoint_files import checkpoint_file

    try:
        with safe_open(str(checkpoint_file(checkpoint)), framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
