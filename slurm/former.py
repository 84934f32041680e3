"""Former stages: those that a run directory holds and its pipeline no longer names."""

import os
from collections.abc import Collection

from carryover.slurm.ledger import Ledger

_OWN_FOLDERS = ("out", "logs", "rendezvous")


def former_stages(ledger: Ledger, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the stages that have a record in a run directory and are not among `names`, sorted.

    Without `names`, those of its pipeline.json are meant. A directory without one has no former stages.

    Raises DamagedFileError or NewerFormatError for a pipeline.json that cannot be read.
    """
    if names is None:
        names = ledger.names() if ledger.pipeline_file.is_file() else None
    if names is None:
        return ()
    root = ledger.directory("")
    found = []
    for folder, folders, files in os.walk(root):
        if ledger.record_file("").name not in files:
            continue
        name = os.path.relpath(folder, root).replace(os.sep, "/")
        found += [] if name in names else [name]
        folders[:] = [f for f in folders if f.partition(".")[0] not in _OWN_FOLDERS]
    return tuple(sorted(found))
