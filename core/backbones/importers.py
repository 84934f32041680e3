"""Any maker's checkpoint -> one backbone under its library's names, every key of the file accounted for."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.architecture import check_whole, expected_tensors, is_counter, recognize
from carryover.core.backbones.assumptions import metadata_of, require_nothing_stated, resolve
from carryover.core.backbones.configuration import said_by_file
from carryover.core.backbones.imported import (
    Imported,
    as_float32,
    choice_in_words,
    conversions_in_words,
    fates_of,
    live_backbone,
    looked_through,
    require_trained,
)
from carryover.core.backbones.inspected import in_words, with_said
from carryover.core.backbones.makers import Encoder, choose, encoders, maker_of, own_encoders
from carryover.core.backbones.reading import Contents, read_contents
from carryover.core.backbones.recognition import ANCHORS
from carryover.core.backbones.stated import Stated
from carryover.core.backbones.timm_checkpoint import take_as, take_recognized, take_variant
from carryover.core.backbones.timm_own import prove_own
from carryover.core.backbones.values import untouched
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import (
    METADATA_KEY,
    CanonicalMetadata,
    load_canonical,
    parse_metadata,
    read_metadata,
)
from carryover.core.formats.receipt import Fate, read_receipt, receipt_path
from carryover.core.formats.said import Said
from carryover.core.once import log_once

log = logging.getLogger(__name__)

EMBEDDED_KEY = METADATA_KEY
# The convolution that takes the image, of a ResNet and of the small networks.
_FIRST = ("conv1.weight", "features.0.0.weight")


def import_checkpoint(
    path: Path, encoder: str | None = None, said: Said | None = None, stated: Stated | None = None
) -> tuple[dict[str, Tensor], CanonicalMetadata]:
    """Read one backbone from a canonical checkpoint or from any supported maker's file.

    `encoder` chooses between the encoders of a file ("online", "momentum", "student", "teacher" or a prefix);
    `said` is what the user knows of a file that does not say it, `stated` what he knows of its network and
    pixels.
    A file that is named after a model of timm is held against timm's own model (`timm_own`).
    Raises UserError naming the file and the tensor for everything that cannot be carried whole, and for what
    is said of a file that says otherwise, and for a network that was never trained unless its method is said
    to be "random"; WorkError where timm's own model has other features.
    """
    taken = take_backbone(path, encoder, stated)
    if taken.own is not None:
        proof = prove_own(taken.own, live_backbone(taken), taken.metadata)
        log.info("%s: as %s has it, largest difference %.2g", path, proof.where, proof.largest)
    for note in taken.notes:
        log_once(log, logging.INFO, "%s: %s", path, note)
    metadata = with_said(taken.metadata, said or Said(), path)
    require_trained(taken, metadata.method, path)
    for line in in_words(metadata.assumed):
        log_once(log, logging.WARNING, "%s: %s", path, line)
    return dict(taken.state), metadata


def take_backbone(
    path: Path, encoder: str | None = None, stated: Stated | None = None, values: bool = True
) -> Imported:
    """Like `import_checkpoint`, with every key's fate; assumptions are in the metadata.

    Without `values` the tensors have none: the file is described, and its values are looked at only to find
    those that no trained network has.
    """
    contents = read_contents(path)
    said = stated or Stated()
    if contents.layout == "safetensors" and EMBEDDED_KEY in contents.entries:
        return _canonical(path, contents, encoder, said, values)
    embedded = _embedded_metadata(contents, path)
    found = encoders(contents)
    told = said
    if embedded is None:
        told = said.over(said_by_file(contents, path, any(e.scheme == "detectron2" for e in found)))
    elif embedded.backbone.family == "timm":
        told = said.over(Stated(architecture=embedded.backbone.arch))
    if told.architecture is not None and "/" in told.architecture:
        try:
            renamed = tuple(e for e in found if embedded is not None and e.scheme == "detectron2")
            return take_as(path, contents, told, encoder, embedded, values, renamed)
        except UserError as error:
            if embedded is None:
                raise
            raise UserError(
                f"{path}: carryover converted it for a library that holds less than the network (its receipt"
                f" says what was dropped or folded); take the file that it was converted from ({error})"
            ) from None
    if not found and (own := own_encoders(contents, ANCHORS)):
        return take_recognized(path, contents, told, own, encoder, embedded, values)
    chosen = choose(found, encoder, contents, path)
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    try:
        config = recognize(raw, path, chosen.prefix)
    except UserError:
        variant = take_variant(path, contents, told, chosen, found, embedded, values)
        if variant is None:
            raise
        return variant
    return _resnet(path, contents, chosen, found, config, told, embedded, values)


def _resnet(
    path: Path,
    contents: Contents,
    chosen: Encoder,
    found: tuple[Encoder, ...],
    recognized: BackboneConfig,
    told: Stated,
    embedded: CanonicalMetadata | None,
    values: bool,
) -> Imported:
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    where = f"{path} (under '{chosen.prefix}')" if chosen.prefix else str(path)
    maker = maker_of(chosen, contents)
    extra = _extra_counters(chosen, recognized)
    for name in extra:
        del raw[name]
    notes = [choice_in_words(chosen, found)] if len(found) > 1 else []
    notes += contents.notes
    turned = False
    if embedded is None:
        resolved = resolve(recognized, chosen, maker, contents, told, path)
        config = resolved.config
        metadata = metadata_of(resolved, maker, chosen, contents, told)
        turned = resolved.pixels.order == "BGR"
    else:
        # The file is ours: its own metadata were verified.
        require_nothing_stated(told, path)
        config, metadata = embedded.backbone, embedded
    filled = tuple(name for name in expected_tensors(config) if is_counter(name) and name not in raw)
    taken = raw if values else {name: value.to("meta") for name, value in raw.items()}
    state = {name: as_float32(name, value) for name, value in taken.items()}
    state |= {name: torch.zeros((), dtype=torch.int64) for name in filled}
    state = {name: state[name] for name in (*expected_tensors(config), *state) if name in state}
    check_whole(state, config, where, finite=embedded is not None and values)
    new = ""
    if embedded is None:
        remarks, new = looked_through(contents, raw, where, values)
        notes += remarks
        if untouched(raw) and not new:
            notes.append("every batch norm has the statistics of a new network: was it ever trained?")
    if turned:
        state = {n: v.flip(1) if n in _FIRST else v for n, v in state.items()}
        notes.append("the weights expect BGR images: the first convolution's channels were turned to RGB")
    notes += conversions_in_words(raw, filled)
    notes += [f"by {told.where}"] if told.where and embedded is None else []
    carried = {full: name for name, full in chosen.tensors.items() if name not in extra}
    reasons = {chosen.tensors[name]: "a counter that takes no part in the features" for name in extra}
    return Imported(
        state=state,
        metadata=metadata.model_copy(update={"backbone": config}),
        layout=contents.layout,
        encoder=chosen.role,
        alternatives=tuple(f"{e.role} at '{e.prefix}'" for e in found if e is not chosen),
        fates=fates_of(contents, chosen, found, carried, reasons),
        filled=filled,
        notes=tuple(notes),
        new=new,
    )


def _extra_counters(chosen: Encoder, config: BackboneConfig) -> frozenset[str]:
    """Names of counters that no layer here has (wrapped norms leave them behind); they compute nothing."""
    expected = expected_tensors(config)
    return frozenset(name for name in chosen.tensors if is_counter(name) and name not in expected)


def require_encoder(path: Path, metadata: CanonicalMetadata, encoder: str | None) -> None:
    """Raise UserError unless a canonical file holds the `encoder` asked for (None: whichever it holds)."""
    if encoder not in (None, metadata.encoder):
        raise UserError(
            f"{path}: no '{encoder}' encoder in this file; a canonical checkpoint holds one: "
            f"{metadata.encoder}"
        )


def _canonical(path: Path, contents: Contents, encoder: str | None, told: Stated, values: bool) -> Imported:
    state, metadata = load_canonical(path) if values else (dict(contents.tensors), read_metadata(path))
    require_encoder(path, metadata, encoder)
    check_whole(state, metadata.backbone, str(path), finite=values)
    require_nothing_stated(told, path)
    fates = tuple(Fate(name, "carried", name) for name in state)
    notes = () if values else looked_through(contents, state, str(path), values)[0]
    return Imported(state, metadata, "canonical", metadata.encoder, (), fates, (), notes)


def _embedded_metadata(contents: Contents, path: Path) -> CanonicalMetadata | None:
    """Return the metadata of a file that carryover converted; None for any other file.

    A library that loads tensors only leaves no place for it; the receipt beside the file has it then.
    """
    if EMBEDDED_KEY not in contents.entries:
        return _received(path)
    return parse_metadata(str(contents.entries[EMBEDDED_KEY]), f"{path}: '{EMBEDDED_KEY}'")


def _received(path: Path) -> CanonicalMetadata | None:
    """Return the metadata in a converted file's receipt; None without one, or if the file has changed."""
    if not path.is_file() or not receipt_path(path).is_file():
        return None
    try:
        return read_receipt(path).metadata
    except UserError as error:
        log.warning("%s: its receipt is ignored: %s", path, error)
        return None
