"""Summary of a detector's data and training, printed before it starts."""

from collections import Counter

from carryover.configs.counted import counted
from carryover.core.data.defects import tally
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.splits import Splits
from carryover.transfer.tasks.detection.config import DetectionConfig


def announce(config: DetectionConfig, splits: Splits) -> str:
    """Return one block: images, objects of each class, sizes, schedule, and the rule of the metric."""
    shown, dropped = config.input, tally(d for d in splits.defects if d.action == "drop")
    sizes = (" to " if shown.min_size_sampling == "range" else ", ").join(map(str, shown.min_sizes_train))
    lines = [
        "plan",
        f"  train on {_contents(splits.train)}",
        f"  test on {_contents(splits.test)}",
        f"  short edge {sizes} in training (long edge at most {shown.max_size_train}),"
        f" {shown.min_size_test} in testing (at most {shown.max_size_test})",
        f"  {config.solver.describe()}",
        f"  {config.data.rule}",
    ]
    if dropped:
        lines.append(f"  left out: {dropped}")
    return "\n".join(lines)


def _contents(dataset: DetectionDataset) -> str:
    counts = Counter(int(label) for image in dataset.images for label in image.annotation.labels)
    of_each = ", ".join(f"{name} {counts[label]}" for label, name in enumerate(dataset.classes))
    return (
        f"{dataset.name}: {counted(dataset.images, 'image')}, {counted(counts.total(), 'object')} ({of_each})"
    )
