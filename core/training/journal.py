"""Log of a training: metrics.jsonl, and TensorBoard."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from carryover.core.formats.metrics_log import MetricsLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Journal:
    """Writes numbers by step to both; what was written after the step resumed from is dropped."""

    def __init__(self, out: Path, resumed_from: int, tensorboard: bool, total: int | None = None) -> None:
        self._metrics = MetricsLog(out / "metrics.jsonl", total)
        self._metrics.rewind(resumed_from)
        self._writer = _tensorboard(out, resumed_from) if tensorboard else None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Note the numbers of a step, under their names."""
        self._metrics.write(step, **numbers)
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)


def _tensorboard(out: Path, resumed_from: int) -> "SummaryWriter":
    # Imported here: it takes a second, and not everyone wants it.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=resumed_from + 1)
