"""Files that an evaluation left beside its record, and none from elsewhere."""

from pathlib import Path

from carryover.transfer.report.collection import Numbered


def artifact(run: Numbered, name: str, otherwise: str | None = None) -> Path | None:
    """Return an artifact's path: below the record's directory and there, else None.

    `otherwise` is the file name to look for where the record names none.
    """
    root = run.path.parent.resolve()
    relative = run.record.artifacts.get(name, otherwise)
    path = (root / relative).resolve() if relative else None
    return path if path is not None and path.is_relative_to(root) and path.exists() else None
