"""Summary of a segmenter's data and training, printed before it starts."""

from carryover.configs.counted import counted
from carryover.core.data.defects import tally
from carryover.core.data.masks.splits import Splits, shares
from carryover.transfer.tasks.segmentation.config import METRIC_RULE, SegmentationConfig


def announce(config: SegmentationConfig, splits: Splits) -> str:
    """Return one block: images, sizes, schedule, the rule of the metric, and what was left out."""
    shown, dropped = config.input, tally(d for d in splits.defects if d.action == "drop")
    tested = "their own size" if shown.test_scale is None else "{} x {}".format(*shown.test_scale)
    parts = ((splits.train, splits.train_pixels), (splits.test, splits.test_pixels))
    train, test = (f"{d.name}: {counted(d.images, 'image')}; {shares(d, pixels)}" for d, pixels in parts)
    lines = [
        "plan",
        f"  train on {train}",
        f"  test on {test}",
        "  scaled into {} x {}, times {:g} to {:g}, crops of {} x {} (height x width); tested {}".format(
            *shown.scale,
            *shown.ratio_range,
            *shown.crop_size,
            f"{'whole' if shown.test_mode == 'whole' else 'in windows'}, at {tested}",
        ),
        f"  {config.solver.describe()}",
        f"  {METRIC_RULE}, over {len(splits.train.classes)} classes",
    ]
    if dropped:
        lines.append(f"  left out: {dropped}")
    return "\n".join(lines)
