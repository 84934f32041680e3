"""A backbone read from another project's file, and what became of every tensor in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.architecture import is_counter
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.makers import Encoder
from carryover.core.backbones.reading import Contents
from carryover.core.backbones.relative_positions import begun
from carryover.core.backbones.timm_own import TimmsOwn
from carryover.core.backbones.values import never_trained, require_usable
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.formats.receipt import Fate

# What a network that was never trained on purpose is said to be pretrained by.
UNTRAINED = "random"
_LOOKED_THROUGH = 4 * 2**30
_TRAINING_STATE = re.compile(
    r"(^|\.)(optim|optimi[sz]ers?|optimizer_states|scaler|amp|lr_schedulers?|scheduler|loops)(\.|$)"
)


@dataclass(frozen=True)
class Imported:
    """A backbone taken out of a file.

    `state` is whole and strict (checked), `filled` names BatchNorm counters that the file lacked and
    that were set to zero, `alternatives` lists the other encoders as "role at 'prefix'", `notes` says what
    was chosen and converted; assumptions are in the metadata. `own` is what timm itself would load,
    where the file or its user names one of timm's models. `new` says how the tensors show that the network
    was never trained; "" where they do not.
    """

    state: Mapping[str, Tensor]
    metadata: CanonicalMetadata
    layout: str
    encoder: str
    alternatives: tuple[str, ...]
    fates: tuple[Fate, ...]
    filled: tuple[str, ...]
    notes: tuple[str, ...]
    own: TimmsOwn | None = None
    new: str = ""


def require_trained(imported: Imported, method: str, where: Path) -> None:
    """Raise UserError for a network that was never trained, unless its method is said to be "random"."""
    if imported.new and method != UNTRAINED:
        raise UserError(
            f"{where}: {imported.new}: it was never trained; take the file that the training wrote. As a"
            f" baseline of random weights it is taken with --method {UNTRAINED}"
        )


def live_backbone(imported: Imported) -> nn.Module:
    """Return the module that a checked state dict belongs to, with that state loaded."""
    # Built without values: initializing them would draw from the caller's random numbers for nothing.
    with torch.device("meta"):
        backbone = build_backbone(imported.metadata.backbone)
    held = sum(1 for _ in backbone.parameters()) + sum(1 for _ in backbone.buffers())
    if len(backbone.state_dict()) == held:
        backbone.to_empty(device="cpu")
    else:
        # Buffers that no checkpoint holds (indices of windows, frequencies of rotary positions) are computed.
        with torch.random.fork_rng(devices=[]):
            backbone = build_backbone(imported.metadata.backbone)
    added = imported.metadata.backbone.attention is not None
    state = begun(backbone, imported.state) if added else dict(imported.state)
    backbone.load_state_dict(state, strict=True)
    return backbone


def as_float32(name: str, value: Tensor) -> Tensor:
    """Return a tensor as it is carried: counters as one integer, everything else in float32."""
    if is_counter(name):
        return value.reshape(()).to(torch.int64) if value.numel() == 1 else value
    return value.to(torch.float32).contiguous() if value.is_floating_point() else value


def looked_through(
    contents: Contents, raw: Mapping[str, Tensor], where: str, values: bool
) -> tuple[tuple[str, ...], str]:
    """Check the values of the tensors that are taken; return what is to be said of that, and `Imported.new`.

    Without `values`, where nothing is carried, those of very large networks are left for later. Raises
    UserError for values that no trained network has.
    """
    size = sum(value.nbytes for value in raw.values())
    if not values and size > _LOOKED_THROUGH:
        return (f"its values ({size / 1e9:.1f} GB) were not read: convert and evaluate check them",), ""
    # What is carried stays in memory; what is only described need not.
    require_usable(raw, where, (lambda: None) if values else contents.forget)
    return (), never_trained(raw)


def choice_in_words(chosen: Encoder, found: tuple[Encoder, ...]) -> str:
    """Return which encoder was taken, and how the others would be."""
    others = ", ".join(
        f"the {e.role} encoder at '{e.prefix}' (--encoder {e.role})" for e in found if e is not chosen
    )
    return f"took the {chosen.role} encoder at '{chosen.prefix}'; the file also holds {others}"


def conversions_in_words(raw: Mapping[str, Tensor], filled: tuple[str, ...]) -> list[str]:
    """Return what was converted of the file's own tensors, and what was added to them."""
    notes = []
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for v in raw.values() if v.is_floating_point()})
    if dtypes != ["float32"]:
        notes.append(f"stored as {', '.join(dtypes)}; carried as float32")
    if filled:
        notes.append(f"{len(filled)} BatchNorm counters (num_batches_tracked) are not in the file; set to 0")
    return notes


def fates_of(
    contents: Contents,
    chosen: Encoder,
    found: tuple[Encoder, ...],
    carried: Mapping[str, str],
    reasons: Mapping[str, str],
) -> tuple[Fate, ...]:
    """Return every tensor's fate.

    Parameters
    ----------
    carried
        Full names in the file, and what they became.
    reasons
        Why some others were left out.
    """
    known = dict(reasons)
    for other in found:
        if other is not chosen and not chosen.prefix.startswith(other.prefix):
            reason = f"the {other.role} encoder (take it with --encoder {other.role})"
            known |= dict.fromkeys((*other.tensors.values(), *other.others), reason)
    heads = {*chosen.others, *chosen.tensors.values()}

    def reason_of(full: str) -> str:
        if full in known:
            return known[full]
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
