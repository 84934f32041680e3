"""The published rows of the method that a file claims, on the data at hand."""

from collections.abc import Iterator
from typing import Final

from carryover.core.formats.canonical import CanonicalMetadata
from carryover.transfer.report.published import published_numbers
from carryover.transfer.verify.evidence import Evidence
from carryover.transfer.verify.findings import Claim

_WORDS: Final = {"knn": "k-NN", "linear": "linear"}


def claims_of(about: CanonicalMetadata, data: str, images: int, first: Evidence) -> Iterator[Claim]:
    """Yield the published k-NN and linear accuracies of a method on a data set, beside what was measured.

    Rows agree in method, backbone and data, and in epochs where both say them. What is measured is on cached
    features of part of the images: another protocol, which says so.
    """
    for task, right in (("knn", first.knn), ("linear", first.linear)):
        if right is None:
            continue
        measured = 100 * float(right.mean())
        for number in published_numbers():
            if number.task != task or number.metric != "top1" or _key(number.data) != _key(data):
                continue
            if _key(number.method) != _key(about.method) or number.backbone != about.backbone.label:
                continue
            if about.epochs and number.pretrain_epochs and about.epochs != number.pretrain_epochs:
                continue
            variant = f", {number.variant}" if number.variant else ""
            yield Claim(
                f"{number.method}{variant}, {number.backbone}, {number.data}, {_WORDS[task]}: {number.where}",
                number.value,
                measured,
                f"cached features of {images:,} training images, {len(right):,} test images",
            )


def _key(name: str | None) -> str:
    return "".join(c for c in (name or "").casefold() if c.isalnum())
