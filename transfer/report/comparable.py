"""Published numbers that are comparable with a result, and deviations of its protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from carryover.configs import Identity, load, recipe_hash
from carryover.configs.identity import Difference
from carryover.transfer.report.published import PublishedNumber, published_numbers
from carryover.transfer.results.record import ResultRecord

# The keys that set the images per step, and what the linear scaling rule (Goyal et al. 2017) scales with it.
# The base rates and the batch they are stated for are keys of their own, which may not differ.
_BATCH: Final = {
    "solver.ims_per_batch": "rate and schedule",
    "batch_size": "rates",
    "mode.batch_size": "rates",
}
_PRECISION: Final = ("precision", "solver.precision")
_LAYOUT: Final = "channels_last"
# Restatements of a scaled rate, and a check of the checkpoint.
_DECIDE_NOTHING: Final = (
    "optimizer.lr_backbone",
    "optimizer.lr_head",
    "mode.lrs",
    "solver.lr",
    "image.input_size",
)
_BACKEND: Final = "backend"
_BACKENDS: Final = {"detectron2": "Detectron2", "mmseg": "mmsegmentation"}


@dataclass(frozen=True)
class ComparableNumber:
    """A published number that is comparable with a record.

    `deviations` are the differences that the comparison allows, in words; none where ours was measured as the
    published number was.
    """

    number: PublishedNumber
    deviations: tuple[str, ...]


def comparable_numbers(record: ResultRecord) -> tuple[ComparableNumber, ...]:
    """Find the published numbers of the record's protocol on its data, whatever the recipe is called.

    The record's protocol is that of a recipe that the numbers name but for the back end, the images per step
    under the linear scaling rule, and the arithmetic precision. Any other difference makes another protocol.
    A record that does not state its protocol has the numbers of the shipped recipe of its recipe's name, if
    it has the hash of that recipe.
    """
    numbers = _numbers_on(record.dataset)
    followed: dict[str, tuple[str, ...]] = {}
    for recipe in dict.fromkeys(name for number in numbers for name in number.recipe):
        deviations = _deviations(record, recipe)
        if deviations is not None:
            followed[recipe] = deviations
    found = []
    for number in numbers:
        recipe = next((name for name in number.recipe if name in followed), "")
        if recipe:
            found.append(ComparableNumber(number, (*_other_library(record, number), *followed[recipe])))
    return tuple(found)


@cache
def _numbers_on(dataset: str) -> tuple[PublishedNumber, ...]:
    return tuple(n for n in published_numbers() if n.recipe and n.data == dataset)


@cache
def _shipped(recipe: str) -> tuple[Identity, str]:
    loaded = load("transfer", recipe)
    return Identity.of(loaded, kind="", version=0), recipe_hash(loaded)


def _deviations(record: ResultRecord, recipe: str) -> tuple[str, ...] | None:
    """Return how the record's protocol deviates from a shipped recipe's; None: it is another protocol."""
    identity, shipped_hash = _shipped(recipe)
    if record.protocol is None:
        return () if (record.recipe, record.recipe_hash) == (recipe, shipped_hash) else None
    ours = {"kind": identity.kind, "version": identity.version, "protocol": record.protocol}
    told = []
    for difference in identity.changed_from(ours):
        if not _allowed(difference):
            return None
        told.append(_in_words(difference))
    return tuple(filter(None, told))


def _allowed(difference: Difference) -> bool:
    return difference.key in (_BACKEND, *_BATCH, *_PRECISION, _LAYOUT, *_DECIDE_NOTHING)


def _in_words(difference: Difference) -> str:
    """State a deviation; `old` is ours, `new` the shipped recipe's. Of back ends see `_other_library`."""
    if scaled := _BATCH.get(difference.key):
        return (
            f"ours: {difference.old} images per step, {scaled} scaled linearly"
            f" (published recipe: {difference.new})"
        )
    if difference.key in _PRECISION:
        return f"ours: {difference.old} arithmetic (published recipe: {difference.new})"
    if difference.key == _LAYOUT:
        return f"ours: {_layout(difference.old)} tensors (published recipe: {_layout(difference.new)})"
    return ""


def _layout(channels_last: bool) -> str:
    return "channels-last" if channels_last else "channels-first"


def _other_library(record: ResultRecord, number: PublishedNumber) -> tuple[str, ...]:
    """Name the library of a published number and ours where they differ.

    The library is that of the number, not of the shipped recipe, whose default is the one that every
    installation has.
    """
    stated: Mapping[str, Any] = record.protocol or {}
    ours = str(stated.get(_BACKEND, record.backend))
    if number.backend in (None, ours):
        return ()
    return (f"published with {_library(number.backend)}; ours: {_library(ours)}",)


def _library(backend: str | None) -> str:
    return _BACKENDS.get(backend or "", backend or "")
