"""How far a stage has come, read from the metrics.jsonl in its output directory."""

import json
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 16384


@dataclass(frozen=True)
class Progress:
    """The last line's ``step``, and its ``total`` where the stage writes one."""

    step: int
    total: int | None = None


def read_progress(out: Path) -> Progress | None:
    """Return the progress of the stage that writes into `out`; None when it tells none.

    Only the file's end is read, and a line cut off by a crash is passed over.
    """
    try:
        with (out / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return Progress(int(row["step"]), int(row["total"]) if "total" in row else None)
        except (ValueError, KeyError, TypeError):
            continue
    return None
