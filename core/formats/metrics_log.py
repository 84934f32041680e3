"""metrics.jsonl: one line a step that was logged, safe to cut off at any byte and to resume."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from carryover.configs.files import write_atomic

METRICS_NAME: Final = "metrics.jsonl"


class MetricsLog:
    """Appends numbers by step to a JSON-lines file.

    `total`, the last step that there will be, goes into every line: whoever watches the file can tell what is
    left.
    """

    def __init__(self, path: Path, total: int | None = None) -> None:
        self.path = path
        self._total = {} if total is None else {"total": total}
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, **numbers: float | int | str | None) -> None:
        """Append one line; NaN and infinity, which JSON lacks, are written as null."""
        row: dict[str, Any] = {"step": step} | self._total
        for name, value in numbers.items():
            row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> None:
        """Drop every line of a step after `step`, as when training resumes from there."""
        kept = [json.dumps(row) for row in read_metrics(self.path) if row["step"] <= step]
        write_atomic(self.path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a metrics file; a last line cut off by a crash is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and "step" in row:
                yield row
