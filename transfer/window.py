"""The numbers of the iterations since the last line of metrics.jsonl; part of a run's state."""

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


class Window:
    """Sums that a resumed run goes on with, so that its log is that of a run which never stopped."""

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        self.count = count
        self.sums: dict[str, Tensor | float] = defaultdict(float, sums or {})

    def note(self, numbers: Mapping[str, Tensor]) -> None:
        """Add one iteration's; nothing waits for the device."""
        self.count += 1
        for name, value in numbers.items():
            self.sums[name] = self.sums[name] + value.detach()

    def numbers(self) -> dict[str, float]:
        """The sums so far."""
        return {name: float(value) for name, value in self.sums.items()}

    def close(self) -> dict[str, float]:
        """Return the means, and start anew."""
        means = {name: value / self.count for name, value in self.numbers().items()}
        self.sums.clear()
        self.count = 0
        return means


def save_points(iterations: int, checkpoints: int) -> frozenset[int]:
    """Return after which iterations the state is saved: so many times, evenly, and at the end."""
    return frozenset(round(iterations * (i + 1) / checkpoints) for i in range(checkpoints)) | {iterations}
