"""Verify a checkpoint: read it every way that it can be read, compare, and name the likely cause."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from carryover.configs import UserError
from carryover.configs.counted import signed
from carryover.core.backbones.imported import Imported
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.inspected import in_words
from carryover.core.backbones.stated import Stated
from carryover.core.data.called import called
from carryover.core.data.config import DataConfig
from carryover.core.data.datasets import Dataset
from carryover.core.data.prepared import build_dataset, open_dataset, prepare
from carryover.core.training.device import choose_device
from carryover.transfer.verify.config import VerifyConfig
from carryover.transfer.verify.diagnose import Compared, compare, name, reading_of, undecided
from carryover.transfer.verify.evidence import Evidence, Images, Measure, estimated_anew, measure, some
from carryover.transfer.verify.findings import Finding, Reading, Verification
from carryover.transfer.verify.hypotheses import Look, copied, other_encoders, random_networks, readings
from carryover.transfer.verify.published import claims_of
from carryover.transfer.verify.weights import EDGE, constant_vectors, edge_ratios, untouched_norms

log = logging.getLogger(__name__)

_ANEW = "running statistics estimated anew on these images"
_CONTROL = "a new network of this kind"


def verify(
    path: Path, config: VerifyConfig, encoder: str | None = None, stated: Stated | None = None
) -> Verification:
    """Determine whether a checkpoint of any known maker is what it claims, on the images at hand.

    With labeled images every reading of the file's tensors (`hypotheses.readings`) is classified by k-NN and
    by a linear classifier on cached features; with or without labels batch statistics are compared with the
    running ones. Without images only the tensors themselves are looked at.

    Raises
    ------
    UserError
        A file whose backbone could not be carried whole, or images that cannot be read.
    """
    imported = take_backbone(path, encoder, stated)
    named = _of_tensors(path, imported)
    images = _images(config)
    assumed = imported.metadata.assumed if images is None else _assumed(imported)
    remarks = [*imported.notes, *in_words(assumed)]
    if images is None:
        questions = ("everything but the tensors: give images (data.root=DIRECTORY, or images=FOLDER)",)
        return Verification(
            str(path), _about(imported), "no images", named, (), (), (), tuple(remarks), questions
        )
    observed = observe(path, imported, images, config)
    looks, found = observed.looks, observed.found
    compared, estimated = compare(looks, found), compare(*observed.anew)[0]
    if observed.size_known:
        claimed = compared
    else:
        claimed = [c for c in compared if c.look.cause != "size"]
        remarks.append(_best_size(looks[0].size, compared))
    if named is None:
        named = name(found[0], claimed, estimated if found[0].mismatch is not None else None)
    open_ = [] if named is not None else undecided(found[0], claimed)
    table = [reading_of("as it is", looks[0].words, found[0])]
    table += [reading_of(c.look.cause, c.look.words, c.evidence, c) for c in compared]
    if found[0].mismatch is not None:
        table.append(reading_of("batch-norm statistics", _ANEW, estimated.evidence, estimated))
    controls = [reading_of("random weights", _CONTROL, e) for e in observed.controls]
    return Verification(
        path=str(path),
        about=_about(imported),
        images=_what(config, images, looks[0].size),
        named=named,
        readings=tuple(table),
        controls=tuple(controls),
        claims=tuple(claims_of(imported.metadata, config.data.title, len(images.train), found[0])),
        remarks=tuple(remarks),
        open_questions=tuple(_open_questions(table, controls, images, named) + open_),
        layers=() if found[0].mismatch is None else found[0].mismatch.layers,
    )


@dataclass(frozen=True)
class Observed:
    """Everything that was measured of a file on some images.

    Attributes
    ----------
    looks, found
        Its readings, the file as it is first, and what each came to.
    size_known
        Whether the file, or the user, says on what size of images it was trained.
    estimated
        The file as it is with running statistics of these images.
    controls
        Networks of its kind with new weights.
    """

    looks: Sequence[Look]
    found: Sequence[Evidence]
    size_known: bool
    estimated: Evidence
    controls: Sequence[Evidence]

    @property
    def anew(self) -> tuple[list[Look], list[Evidence]]:
        """The file as it is, and with new statistics, as `compare` takes them."""
        first = self.looks[0]
        return [first, replace(first, words=_ANEW)], [self.found[0], self.estimated]


def observe(
    path: Path, imported: Imported, images: Images, config: VerifyConfig, measured: Measure = measure
) -> Observed:
    """Measure every reading of a file on some images."""
    device = choose_device(config.device)
    native = _native(images.test)
    known = config.size or (imported.metadata.input_size if _knows_size(imported) else None)
    looks = list(readings(path, imported, known or native, native))
    found = measured(looks, images, config, device)
    anew = replace(looks[0], words=_ANEW, network=copied(looks[0].network))
    estimated_anew(anew, images.train, config, device)
    extra = [anew, *_controls(looks[0], imported, images, config, device)]
    others = measured(extra, images, config, device)
    return Observed(looks, found, known is not None, others[0], others[1:])


def _of_tensors(path: Path, imported: Imported) -> Finding | None:
    """Return what the tensors give away; new weights beside a trained encoder: the wrong one was taken."""
    named = structural(imported)
    if named is None or named.cause != "random weights":
        return named
    for prefix, words in other_encoders(imported):
        if structural(take_backbone(path, prefix)) is None:
            why = f"{named.words}; those of {words} are not"
            return Finding("encoder", f"the file also holds {words}", why, f"--encoder {prefix}")
    return named


def structural(imported: Imported) -> Finding | None:
    """Return what the tensors alone give away: weights or running statistics of a new network."""
    state: Mapping[str, torch.Tensor] = imported.state
    new, norms = untouched_norms(state)
    ratios = edge_ratios(state)
    beyond = sum(ratio > EDGE for ratio in ratios.values())
    constant, vectors = constant_vectors(state)
    # A short training leaves no direction beyond the edge, but no scale and no shift where it was either.
    if ratios and beyond <= 0.05 * len(ratios) and 2 * constant >= vectors:
        return Finding(
            "random weights",
            "the weights are independent draws, as a new network's",
            f"no singular value beyond the edge of independent draws in {len(ratios) - beyond} of"
            f" {len(ratios)} weights, and {constant} of {vectors} scales, shifts and biases are one number",
            "take the file that the training wrote, not the one it began with",
        )
    if new:
        which = (
            "every batch norm" if len(new) == norms else f"{len(new)} of {norms} batch norms ({new[0]}, ...)"
        )
        return Finding(
            "batch-norm statistics",
            f"{which} has the running statistics of a new network: mean 0, variance 1",
            "although the weights are trained",
            "take a checkpoint that was saved whole, with its buffers",
        )
    return None


def _images(config: VerifyConfig) -> Images | None:
    """Open what is at hand: a labeled data set, or a folder of images without labels."""
    if config.data.root is not None:
        return _labeled(config)
    if config.images is None:
        return None
    if not config.images.expanduser().is_dir():
        raise UserError(f"images: {config.images}: no such folder")
    place = config.images.expanduser().absolute()
    folder = DataConfig.model_validate({"root": place.parent, "split": place.name})
    everything = some(build_dataset(folder), config.test_images, config.seed)
    return Images(everything, everything, False)


def _labeled(config: VerifyConfig) -> Images:
    """Open both splits of a labeled data set; only the images that are taken are read."""
    train, test = open_dataset(config.data.train), open_dataset(config.data.test)
    for dataset, split in ((train, config.data.split), (test, config.data.test_split)):
        if dataset.labels is None or len(dataset.classes) < 2:
            raise UserError(
                f"data: split {split}: labels of at least two classes are needed; or images=FOLDER"
            )
    if list(train.classes) != list(test.classes):
        other = ", ".join(sorted(set(train.classes) ^ set(test.classes))[:10])
        raise UserError(
            f"data: the classes of {config.data.split} and {config.data.test_split} differ: {other}"
        )
    parts = some(train, config.train_images, config.seed), some(test, config.test_images, config.seed)
    return Images(prepare(parts[0], config.data.train), prepare(parts[1], config.data.test), True)


def _controls(
    first: Look, imported: Imported, images: Images, config: VerifyConfig, device: torch.device
) -> list[Look]:
    if not images.labeled:
        return []
    found = []
    for network in random_networks(imported.metadata.backbone, config.random_controls, config.seed + 1):
        control = replace(first, words=_CONTROL, network=network)
        estimated_anew(control, images.train, config, device)
        found.append(control)
    return found


def _best_size(size: int, compared: Sequence[Compared]) -> str:
    """State that a file names no size, and which of the tried ones fits best."""
    tried = [c for c in compared if c.look.cause == "size" and c.better(len(compared))]
    best = max(tried, key=lambda c: c.difference or 0.0, default=None)
    said = f"the file does not say on what crops it was trained; shown at {size} px, the data's own size"
    if best is None:
        return said
    return f"{said}; it reads better at {best.look.size} px ({signed(best.difference or 0.0)} points)"


def _assumed(imported: Imported) -> dict[str, str]:
    """Return what is assumed of a file, without the size of its crops: `_best_size` tells of that."""
    found = dict(imported.metadata.assumed)
    if not _knows_size(imported):
        found.pop("input_size", None)
    return found


def _knows_size(imported: Imported) -> bool:
    return imported.metadata.knows("input_size") or "input_size" in imported.metadata.stated


def _native(images: Dataset) -> int:
    """Return the usual shorter side of some images in pixels."""
    some_of = [min(images.read(i).shape[1:]) for i in range(0, len(images), max(1, len(images) // 15))]
    return int(sorted(some_of)[len(some_of) // 2])


def _about(imported: Imported) -> str:
    about = imported.metadata
    words = [about.method, about.backbone.label, about.dataset]
    words += [f"{about.epochs:g} epochs"] if about.epochs else []
    words += [about.backbone.variants] if about.backbone.variants else []
    return ", ".join(words)


def _what(config: VerifyConfig, images: Images, size: int) -> str:
    if not images.labeled:
        return f"{len(images.test):,} images of {config.images} without labels, shown at {size} px"
    return (
        f"{len(images.train):,} training and {len(images.test):,} test images of {called(config.data)},"
        f" {images.classes} classes, shown at {size} px"
    )


def _open_questions(
    table: Sequence[Reading], controls: Sequence[Reading], images: Images, named: Finding | None
) -> list[str]:
    """Return what these images cannot decide."""
    said = []
    if not images.labeled:
        said.append("channel order and encoder: their features are told apart by labels only")
        return said
    # Where all readings of a kind are within a point of the file, the images do not depend on it.
    for reading in table[1:]:
        near = reading.low is not None and reading.high is not None and reading.low < 0 < reading.high
        if near and reading.cause in ("channel order", "encoder") and named is None:
            d = reading.difference or 0.0
            said.append(f"{reading.cause}: {reading.words}: {signed(d)} points, no difference found")
    if controls and named is None:
        best = max(_mean(c) for c in controls)
        own = _mean(table[0])
        if own - best < 2.0:
            said.append(
                f"whether it learned anything: {own:.1f} % here, {best:.1f} % with new weights; more images"
                " (train_images, test_images) or others may tell"
            )
    return said


def _mean(reading: Reading) -> float:
    return ((reading.knn or 0.0) + (reading.linear or 0.0)) / 2
