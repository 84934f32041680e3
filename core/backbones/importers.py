"""Any maker's checkpoint -> one backbone under torchvision's names, every key of the file accounted for."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.architecture import check_whole, expected_tensors, is_counter, recognise
from carryover.core.backbones.makers import Encoder, choose, encoders, maker_of
from carryover.core.backbones.reading import Contents, read_contents
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    IMPORTED,
    METADATA_KEY,
    CanonicalMetadata,
    load_canonical,
    parse_metadata,
)
from carryover.core.formats.receipt import Fate
from carryover.core.formats.said import Said

log = logging.getLogger(__name__)

EMBEDDED_KEY = METADATA_KEY
_ASSUMED_SIZE = 224
_Triple = tuple[float, float, float]
_TRAINING_STATE = re.compile(
    r"(^|\.)(optimi[sz]ers?|optimizer_states|scaler|amp|lr_schedulers?|scheduler|loops)(\.|$)"
)


@dataclass(frozen=True)
class Imported:
    """A backbone taken out of a file.

    `state` is whole and strict (checked), `filled` names BatchNorm counters that the file lacked and
    that were set to zero, `alternatives` lists the other encoders as "role at 'prefix'", `notes` says what
    was assumed.
    """

    state: Mapping[str, Tensor]
    metadata: CanonicalMetadata
    layout: str
    encoder: str
    alternatives: tuple[str, ...]
    fates: tuple[Fate, ...]
    filled: tuple[str, ...]
    notes: tuple[str, ...]


def import_checkpoint(
    path: Path, encoder: str | None = None, said: Said | None = None
) -> tuple[dict[str, Tensor], CanonicalMetadata]:
    """Read one backbone from a canonical checkpoint or from any supported maker's file.

    `encoder` chooses between the encoders of a file ("online", "momentum", "student", "teacher" or a prefix);
    `said` is what the user knows of a file that does not say it.
    Raises UserError naming the file and the tensor for everything that cannot be carried whole, and for what
    is said of a file that says otherwise.
    """
    taken = take_backbone(path, encoder)
    for note in taken.notes:
        log.info("%s: %s", path, note)
    return dict(taken.state), with_said(taken.metadata, said or Said(), path)


def with_said(metadata: CanonicalMetadata, said: Said, path: Path) -> CanonicalMetadata:
    """Return a file's metadata with what the user says of it; raises UserError where the file says otherwise.

    A label may be given to any file.
    """
    stated = said.stated()
    for name, value in stated.items():
        theirs = getattr(metadata, name)
        if name != "label" and metadata.recipe != IMPORTED and theirs != value:
            raise UserError(f"{path}: says itself that its {name} is {theirs}, not {value}")
    facts = tuple(dict.fromkeys([*metadata.stated, *(name for name in stated if name != "label")]))
    if metadata.recipe != IMPORTED:
        facts = metadata.stated
    return metadata.model_copy(update={**stated, "stated": facts})


def take_backbone(path: Path, encoder: str | None = None) -> Imported:
    """Like `import_checkpoint`, with every key's fate and what was assumed."""
    contents = read_contents(path)
    if contents.layout == "safetensors" and EMBEDDED_KEY in contents.entries:
        return _canonical(path, encoder)
    found = encoders(contents)
    chosen = choose(found, encoder, contents.tensors, path)
    maker = maker_of(chosen, contents)
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    config = recognise(raw, path, chosen.prefix)
    for name in (extra := _extra_counters(chosen, config)):
        del raw[name]
    embedded = _embedded_metadata(contents, path)
    metadata = embedded or _metadata(config, maker, chosen, contents, path)

    notes = [_choice(chosen, found)] if len(found) > 1 else []
    filled = tuple(name for name in expected_tensors(config) if is_counter(name) and name not in raw)
    state = {name: _as_float32(name, value) for name, value in raw.items()}
    state |= {name: torch.zeros((), dtype=torch.int64) for name in filled}
    state = {name: state[name] for name in (*expected_tensors(config), *state) if name in state}
    check_whole(state, config, f"{path} (under '{chosen.prefix}')" if chosen.prefix else str(path))
    notes += _notes(raw, filled, chosen, embedded)
    return Imported(
        state=state,
        metadata=metadata.model_copy(update={"backbone": config}),
        layout=contents.layout,
        encoder=chosen.role,
        alternatives=tuple(f"{e.role} at '{e.prefix}'" for e in found if e is not chosen),
        fates=_fates(contents, chosen, found, extra),
        filled=filled,
        notes=tuple(notes),
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


def _canonical(path: Path, encoder: str | None) -> Imported:
    state, metadata = load_canonical(path)
    require_encoder(path, metadata, encoder)
    check_whole(state, metadata.backbone, str(path))
    fates = tuple(Fate(name, "carried", name) for name in state)
    return Imported(state, metadata, "canonical", metadata.encoder, (), fates, (), ())


def _as_float32(name: str, value: Tensor) -> Tensor:
    if is_counter(name):
        return value.reshape(()).to(torch.int64) if value.numel() == 1 else value
    return value.to(torch.float32).contiguous() if value.is_floating_point() else value


def _choice(chosen: Encoder, found: tuple[Encoder, ...]) -> str:
    others = ", ".join(
        f"the {e.role} encoder at '{e.prefix}' (--encoder {e.role})" for e in found if e is not chosen
    )
    return f"took the {chosen.role} encoder at '{chosen.prefix}'; the file also holds {others}"


def _notes(
    raw: Mapping[str, Tensor], filled: tuple[str, ...], chosen: Encoder, embedded: CanonicalMetadata | None
) -> list[str]:
    notes = []
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for v in raw.values() if v.is_floating_point()})
    if dtypes != ["float32"]:
        notes.append(f"stored as {', '.join(dtypes)}; carried as float32")
    if filled:
        notes.append(f"{len(filled)} BatchNorm counters (num_batches_tracked) are not in the file; set to 0")
    if embedded is None:
        notes.append(
            "assumed: RGB input, ImageNet's pixel mean and deviation, 224 px crops (the file does not say)"
        )
        if chosen.scheme == "detectron2":
            notes.append("assumed: STRIDE_IN_1X1 False (the tensors do not tell)")
    return notes


def _fates(
    contents: Contents, chosen: Encoder, found: tuple[Encoder, ...], extra: frozenset[str]
) -> tuple[Fate, ...]:
    carried = {full: name for name, full in chosen.tensors.items() if name not in extra}
    reasons = {chosen.tensors[name]: "a counter that takes no part in the features" for name in extra}
    for other in found:
        if other is not chosen and not chosen.prefix.startswith(other.prefix):
            reason = f"the {other.role} encoder (take it with --encoder {other.role})"
            reasons |= dict.fromkeys((*other.tensors.values(), *other.others), reason)
    heads = set(chosen.others)

    def reason_of(full: str) -> str:
        if full in reasons:
            return reasons[full]
        if _TRAINING_STATE.search(full):
            return "training state"
        if full in heads:
            return "on top of the backbone (classifier, projector or predictor)"
        return "not part of the encoder that was taken"

    return tuple(
        Fate(full, "carried", carried[full])
        if full in carried
        else Fate(full, "dropped", reason=reason_of(full))
        for full in contents.tensors
    )


def _embedded_metadata(contents: Contents, path: Path) -> CanonicalMetadata | None:
    """What a file that carryover itself converted says of itself; None for everybody else's."""
    if EMBEDDED_KEY not in contents.entries:
        return None
    return parse_metadata(str(contents.entries[EMBEDDED_KEY]), f"{path}: '{EMBEDDED_KEY}'")


def _pixel_statistics(contents: Contents, path: Path) -> tuple[_Triple, _Triple]:
    """The pixel mean and deviation in [0, 1] units; Detectron2 models may keep theirs, in 0..255."""
    known = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
    for name, value in contents.tensors.items():
        field = name.rpartition(".")[2]
        if field not in known or value.numel() != 3:
            continue
        first, second, third = (float(number) for number in value.flatten())
        # ImageNet's mean red is brighter than its mean blue.
        if field == "pixel_mean" and first < third:
            raise UserError(
                f"{path}: '{name}' is {[first, second, third]}: the weights expect BGR images; carryover "
                f"carries RGB weights (mean {[round(255 * mean, 3) for mean in IMAGENET_MEAN]})"
            )
        known[field] = (first / 255, second / 255, third / 255)
    return known["pixel_mean"], known["pixel_std"]


def _metadata(
    config: BackboneConfig, maker: str, encoder: Encoder, contents: Contents, path: Path
) -> CanonicalMetadata:
    epoch = contents.entries.get("epoch")
    mean, std = _pixel_statistics(contents, path)
    return CanonicalMetadata(
        backbone=config,
        pixel_mean=mean,
        pixel_std=std,
        input_size=_ASSUMED_SIZE,
        method=maker,
        epochs=float(epoch) if isinstance(epoch, int | float) and not isinstance(epoch, bool) else None,
        dataset="unknown",
        seed=None,
        recipe=IMPORTED,
        recipe_hash=None,
        git_revision="unknown",
        library_versions={},
        maker=maker,
        encoder=encoder.role,
    )
