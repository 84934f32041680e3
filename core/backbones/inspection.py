"""The contract's reading side: any checkpoint as a live backbone, or as a description of what is in it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from carryover.core.backbones.architecture import expected_tensors
from carryover.core.backbones.assumptions import in_words
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.imported import Imported
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.stated import Stated
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.formats.receipt import Fate


@dataclass(frozen=True)
class Inspection:
    """What `carryover inspect` prints.

    Attributes
    ----------
    layout
        "canonical", "safetensors", "torch", "torch (legacy)" or "pickle".
    maker, encoder, alternatives
        Whose layout it is, which encoder was taken, and the others as "role at 'prefix'".
    metadata
        What a canonical checkpoint would say: architecture, width, stem, norm, pixel statistics, provenance.
    fates
        One entry for every tensor of the file.
    carried, expected
        Backbone tensors found in the file and those the architecture has (counters set to 0 not counted).
    notes
        What was chosen, converted or assumed, in sentences.
    """

    path: Path
    layout: str
    maker: str
    encoder: str
    alternatives: tuple[str, ...]
    metadata: CanonicalMetadata
    fates: tuple[Fate, ...]
    carried: int
    expected: int
    notes: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """The share of the backbone's tensors that the file holds, 0 to 1."""
        return self.carried / self.expected

    def report(self, every_tensor: bool = False) -> str:
        """The inspection as text: what it is, what was taken and assumed, and what became of the tensors.

        One line for each reason why tensors were dropped, or with `every_tensor` one for each tensor.
        """
        about = self.metadata
        trained = [about.method, about.dataset] + ([f"{about.epochs:g} epochs"] if about.epochs else [])
        rows = [
            ("layout", f"{self.layout} file, {self.maker}"),
            ("backbone", _in_words(about)),
            ("encoder", self.encoder + "".join(f"; also {other}" for other in self.alternatives)),
            ("trained", ", ".join(trained)),
            ("pixels", f"{about.channel_order}, mean {about.pixel_mean}, std {about.pixel_std}"),
            ("coverage", f"{self.carried} of {self.expected} backbone tensors ({self.coverage:.0%})"),
            *(("note", note) for note in self.notes),
            *(("", line) for line in in_words(about.assumed)),
        ]
        lines = [str(self.path), *(f"  {label:<9} {text}" for label, text in rows)]
        if not every_tensor:
            return "\n".join([*lines, *self._dropped()])
        lines.append("")
        width = max(len(fate.source) for fate in self.fates)
        for fate in self.fates:
            became = f"-> {fate.target}" if fate.fate == "carried" else f"dropped: {fate.reason}"
            lines.append(f"  {fate.source:<{width}}  {became}")
        return "\n".join(lines)

    def _dropped(self) -> list[str]:
        """Say how many tensors were dropped for which reason, with the first of them."""
        reasons: dict[str, list[str]] = {}
        for fate in self.fates:
            if fate.fate != "carried":
                reasons.setdefault(fate.reason or "", []).append(fate.source)
        found = []
        for reason, names in reasons.items():
            more = f", ... ({len(names)} in all)" if len(names) > 1 else ""
            found.append(f"  {'dropped':<9} {names[0]}{more}: {reason}")
        return [*found, "  every tensor by name: carryover inspect --tensors"]


def _in_words(about: CanonicalMetadata) -> str:
    backbone = about.backbone
    if backbone.is_resnet:
        return ", ".join(
            [f"{backbone.arch}, width x{backbone.width}, {backbone.stem} stem, {about.norm.upper()}"]
            + [word for word in (backbone.variants,) if word and backbone.stem == "imagenet"]
        )
    return ", ".join(word for word in (backbone.arch, backbone.variants) if word)


def load_backbone(
    path: Path, encoder: str | None = None, stated: Stated | None = None
) -> tuple[nn.Module, CanonicalMetadata]:
    """Build the backbone of a checkpoint with its weights loaded, strictly.

    Returns the module of `build_backbone` in float32 on the CPU, in training mode, and the metadata. Takes
    canonical checkpoints and, through the importers, every supported maker's file.

    Raises
    ------
    UserError
        Naming the file and the tensors, unless every tensor is there with its shape and dtype and finite, and
        no other.
    """
    imported = take_backbone(path, encoder, stated)
    return live_backbone(imported), imported.metadata


def live_backbone(imported: Imported) -> nn.Module:
    """The module that a checked state dict belongs to, with that state loaded."""
    # Built without values: initialising them would draw from the caller's random numbers for nothing.
    with torch.device("meta"):
        backbone = build_backbone(imported.metadata.backbone)
    held = sum(1 for _ in backbone.parameters()) + sum(1 for _ in backbone.buffers())
    if len(backbone.state_dict()) == held:
        backbone.to_empty(device="cpu")
    else:
        # Buffers that no checkpoint holds (indices of windows, frequencies of rotary positions) are computed.
        with torch.random.fork_rng(devices=[]):
            backbone = build_backbone(imported.metadata.backbone)
    backbone.load_state_dict(dict(imported.state), strict=True)
    return backbone


def inspect_checkpoint(path: Path, encoder: str | None = None, stated: Stated | None = None) -> Inspection:
    """Describe a checkpoint of any supported maker: layout, backbone, encoder taken, every key's fate.

    Raises UserError, naming the tensor, for a file whose backbone could not be carried whole.
    """
    imported = take_backbone(path, encoder, stated)
    expected = len(expected_tensors(imported.metadata.backbone)) - len(imported.filled)
    return Inspection(
        path=path,
        layout=imported.layout,
        maker=imported.metadata.maker,
        encoder=imported.encoder,
        alternatives=imported.alternatives,
        metadata=imported.metadata,
        fates=imported.fates,
        carried=sum(fate.fate == "carried" for fate in imported.fates),
        expected=expected,
        notes=imported.notes,
    )
