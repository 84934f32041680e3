"""Result of an inspection, and its text (torch-free)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from carryover.configs import UserError
from carryover.core.formats.backbone import CHANGES_FEATURES
from carryover.core.formats.canonical import IMPORTED, CanonicalMetadata
from carryover.core.formats.receipt import Fate
from carryover.core.formats.said import Said


@dataclass(frozen=True)
class Inspection:
    """Output of `carryover inspect`.

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
        """Return how many tensors were dropped for which reason, with the first of them."""
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


def in_words(assumed: Mapping[str, str]) -> list[str]:
    """Return the assumptions as lines; those that change features begin with "warning"."""
    lead = {True: "warning: assumed", False: "assumed"}
    return [f"{lead[about in CHANGES_FEATURES]}: {sentence}" for about, sentence in assumed.items()]


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
    assumed = {about: sentence for about, sentence in metadata.assumed.items() if about not in stated}
    return metadata.model_copy(update={**stated, "stated": facts, "assumed": assumed})
