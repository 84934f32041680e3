"""Comparisons of masks before training: the recipe's classes, neighboring classes, each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from carryover.configs.counted import counted, counted_of
from carryover.core.data.defects import Defect, MaskDefectPolicy
from carryover.core.data.masks.dataset import IGNORED, DecodedMask

LISTED_VALUES = 10
_BETWEEN = 0.95
"""Share of a class's pixels that lie between a lower and a higher class from which on it is no class."""
_RARE = 0.05
"""Largest share of all labeled pixels that such a class has."""

Color = tuple[int, int, int]


@dataclass
class MaskCounts:
    """Counts over the masks of a split.

    Attributes
    ----------
    pixels
        (256,) pixels of each label.
    between
        (256,) of them, those with a lower and a higher label among their eight neighbors.
    indices
        For each color of the palettes: the indices that it has in masks, each with the first of these.
    lossy
        Masks in a format that changes pixels.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORED + 1, dtype=np.int64))
    between: np.ndarray = field(default_factory=lambda: np.zeros(IGNORED + 1, dtype=np.int64))
    indices: dict[Color, dict[int, Path]] = field(default_factory=dict)
    lossy: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, mask: Path, decoded: DecodedMask) -> "MaskCounts":
        """Count one decoded mask."""
        labels, palette = decoded.labels, decoded.palette
        pixels = np.bincount(labels.ravel(), minlength=IGNORED + 1)
        between = np.zeros_like(pixels)
        # Two labels have nothing between them.
        if np.count_nonzero(pixels[:IGNORED]) > 2:
            between = np.bincount(labels[_is_between(labels)], minlength=IGNORED + 1)
        colors = {color: index for index, color in palette.items()}
        # A color that one palette has twice says nothing.
        unique = colors if len(colors) == len(palette) else {}
        indices = {color: {index: mask} for color, index in unique.items()}
        return cls(pixels, between, indices, [mask] if decoded.lossy else [])

    def add(self, other: "MaskCounts") -> None:
        """Add the counts of other masks."""
        self.pixels += other.pixels
        self.between += other.between
        self.lossy += other.lossy
        for color, indices in other.indices.items():
            known = self.indices.setdefault(color, {})
            for index, mask in indices.items():
                known.setdefault(index, mask)


def compare_masks(
    train: MaskCounts, test: MaskCounts, classes: Sequence[str], policy: MaskDefectPolicy, root: Path
) -> list[Defect]:
    """Compare the masks of both splits with the recipe's classes and with each other; one defect a kind."""
    both = MaskCounts()
    both.add(train)
    both.add(test)
    found = [
        *_absent(train.pixels, classes, taught=True),
        *_absent(test.pixels, classes, taught=False),
        *_interpolated(both, classes),
        *_palettes(both.indices),
        *_lossy(both.lossy),
    ]
    return [policy.defect(root, kind, message) for kind, message in found]


def _absent(pixels: np.ndarray, classes: Sequence[str], taught: bool) -> Iterator[tuple[str, str]]:
    """Yield one finding that names every class without a pixel."""
    absent = [f"'{title}' ({label})" for label, title in enumerate(classes) if not pixels[label]]
    if not absent:
        return
    where = "training" if taught else "test"
    lacking = counted_of(absent, classes, "class", "has", "have")
    message = f"{lacking} no pixel in the {where} masks: {_some(absent)}"
    if len(classes) == 2 and pixels[IGNORED]:
        message += (
            f"; {100 * pixels[IGNORED] / pixels.sum():.1f} % of all pixels are ignored ({IGNORED}). Masks"
            " painted 0 and 255 need `ignore: null` and `palette: [[0, 0, 0], [255, 255, 255]]`"
        )
    if not taught:
        yield "untested_class", message
    else:
        yield "single_class" if len(absent) == len(classes) - 1 else "absent_class", message


def _interpolated(counts: MaskCounts, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield one finding for the classes that occur only where a lower one meets a higher one."""
    labeled = max(1, int(counts.pixels[:IGNORED].sum()))
    odd = [
        f"'{title}' ({label}): {counts.pixels[label]} pixels"
        for label, title in enumerate(classes)
        if 0 < counts.pixels[label] < _RARE * labeled
        and counts.between[label] >= _BETWEEN * counts.pixels[label]
    ]
    if odd:
        yield (
            "interpolated_class",
            f"{counted_of(odd, classes, 'class', 'has', 'have')} pixels only where a lower class meets a"
            f" higher one: {_some(odd)}. Were the masks resized with interpolation?"
            " Resize them with nearest neighbor",
        )


def _palettes(indices: Mapping[Color, Mapping[int, Path]]) -> Iterator[tuple[str, str]]:
    """Yield one finding where a color has other indices in other masks."""
    torn = {color: masks for color, masks in indices.items() if len(masks) > 1}
    if torn:
        color, masks = next(iter(torn.items()))
        example = " and ".join(f"{index} in {mask.name}" for index, mask in list(masks.items())[:2])
        shown = "#{:02x}{:02x}{:02x}".format(*color)
        yield (
            "palette_order",
            f"{len(torn)} colors have different indices in different masks ({shown} is {example}): the order"
            " is that of a program that reduced colors, not of the classes. Use `kind: folders` with"
            " `palette:`, the color of each class",
        )


def _lossy(masks: Sequence[Path]) -> Iterator[tuple[str, str]]:
    if masks:
        yield (
            "lossy_mask",
            f"{counted(masks, 'mask is a JPEG file', 'masks are JPEG files')} ({masks[0].name}),"
            " whose compression turns labels into others along every edge: use the masks from before,"
            " or save them again as PNG",
        )


def _is_between(labels: np.ndarray) -> np.ndarray:
    """Return for each pixel whether lower and higher labels are among its neighbors; (height, width) bool."""
    lowest, highest = labels.copy(), np.where(labels == IGNORED, 0, labels)
    upper = highest.copy()
    for axis in (0, 1):
        # Rows first, then columns of what rows gave: all eight neighbors.
        for reduced, of, reduce in ((lowest, lowest.copy(), np.minimum), (upper, upper.copy(), np.maximum)):
            ahead, behind = (_along(axis, s) for s in (slice(1, None), slice(None, -1)))
            reduce(reduced[behind], of[ahead], out=reduced[behind])
            reduce(reduced[ahead], of[behind], out=reduced[ahead])
    return (lowest < labels) & (upper > highest) & (labels != IGNORED)


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (part,) if axis == 0 else (slice(None), part)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED_VALUES]) + (", ..." if len(names) > LISTED_VALUES else "")
