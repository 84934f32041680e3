"""The receipt of a conversion: which tensors were converted, and how the target library verified them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import JsonValue

from carryover.configs import UserError
from carryover.configs.files import sha256_file
from carryover.configs.formats import FileModel, Format
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.formats.checkpoint_files import parts_of, sha256_checkpoint

STRUCTURE_ONLY = "structure only"


def _from_v1(plain: dict[str, Any]) -> dict[str, Any]:
    metadata = {k: v for k, v in plain.get("metadata", {}).items() if k != "format"}
    return {k: v for k, v in plain.items() if k != "format"} | {"metadata": metadata}


FORMAT: Final = Format("receipt", 3, {1: _from_v1})


@dataclass(frozen=True)
class Fate:
    """Fate of one tensor of a file: carried to `target`, or dropped because of `reason`."""

    source: str
    fate: Literal["carried", "dropped"]
    target: str | None = None
    reason: str | None = None


class FileRecord(FileModel):
    """One file: its name, SHA-256 (hex) and size in bytes."""

    name: str
    sha256: str
    size: int


class CarriedTensor(FileModel):
    """One backbone tensor as it lies in the target file.

    `name` is the target's name for it and `source` torchvision's; `sha256` covers dtype, shape and bytes.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class StageDifference(FileModel):
    """The largest absolute difference between source and target feature maps after one stage."""

    stage: str
    largest: float


class ModelProof(FileModel):
    """One model of the target library after it loaded the file itself: tensors and features compared."""

    model: str
    tensors: int
    stages: tuple[StageDifference, ...]


class MakerProof(FileModel):
    """Features of the maker's own network, compared with those of a model of the target library.

    `reference` is the .npz that the maker's code wrote; None where the maker's library ran here, on seeded
    images. `maker` says whose network it is, `tolerance` the largest difference allowed, relative to the
    largest feature.
    """

    reference: FileRecord | None
    maker: str = "the maker"
    model: str
    features: tuple[StageDifference, ...]
    tolerance: float

    @property
    def where(self) -> str:
        """Return the source of the authors' features."""
        return self.maker if self.reference is None else self.reference.name

    @property
    def largest(self) -> float:
        """The largest absolute difference."""
        return max(feature.largest for feature in self.features)


class Receipt(FileModel):
    """Proof of carriage, written beside the converted file.

    Attributes
    ----------
    source, target
        The file that was converted and the file that was written.
    metadata
        What the canonical checkpoint says (backbone, encoder, maker, pixel statistics).
    fates
        Every tensor of the source file: carried to which tensor, or dropped and why.
    tensors
        Every backbone tensor of the target file.
    expected
        How many tensors the backbone has; all must be carried.
    verified_in
        The library and version that loaded the file, or "structure only" when it is not installed.
    proofs
        One entry for each model of that library.
    tolerance
        Largest difference allowed in float32.
    settings
        What the target library must be told to build the same backbone.
    against
        The comparison with the maker's own network; None: only the equality of the target's network and
        carryover's was verified, not that this is the maker's.
    """

    to: str
    source: FileRecord
    target: FileRecord
    metadata: CanonicalMetadata
    fates: tuple[Fate, ...]
    tensors: tuple[CarriedTensor, ...]
    expected: int
    verified_in: str
    proofs: tuple[ModelProof, ...]
    tolerance: float
    settings: dict[str, JsonValue]
    notes: tuple[str, ...]
    git_revision: str
    library_versions: dict[str, str]
    against: MakerProof | None = None

    @property
    def proof(self) -> Literal["consistent", "equal to timm's own model", "verified against the maker"]:
        """Return the level of verification.

        Features written by the maker's code verify network, weights and pixels. timm's own model, run with
        the file's tensors, verifies that the network is the one named, neither the name nor the weights.
        """
        if self.against is None:
            return "consistent"
        if self.against.reference is None:
            return "equal to timm's own model"
        return "verified against the maker"

    @property
    def largest_difference(self) -> float | None:
        """The largest feature difference over all models and stages; None when no library loaded the file."""
        return max((stage.largest for proof in self.proofs for stage in proof.stages), default=None)

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        difference = self.largest_difference
        shown = "" if difference is None else f"; largest feature difference {difference:.2g}"
        models = f" ({', '.join(proof.model for proof in self.proofs)})" if self.proofs else ""
        return (
            f"{self.target.name}: {self.metadata.backbone.label} for {self.to}, {len(self.tensors)} of "
            f"{self.expected} tensors carried{shown}; loaded in {self.verified_in}{models}; {self._proof()}"
        )

    def _proof(self) -> str:
        if self.against is None:
            return "consistent with carryover's own network (compare with the maker's features: --against)"
        found = f"({self.against.where}, largest difference {self.against.largest:.2g})"
        if self.against.reference is None:
            return f"equal to timm's own model {found}; --against checks weights and pixels too"
        return f"verified against the maker {found}"


def receipt_path(target: Path) -> Path:
    """Return the path of the receipt of a converted file: FILE.receipt.json."""
    return target.with_name(f"{target.name}.receipt.json")


def file_record(path: Path) -> FileRecord:
    """Describe a file, or a folder or index of shards, as receipts do."""
    size = sum(part.stat().st_size for part in parts_of(path))
    return FileRecord(name=path.name, sha256=sha256_checkpoint(path), size=size)


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write a receipt as indented JSON, atomically."""
    FORMAT.write(path, receipt.model_dump(mode="json"))


def read_receipt(target: Path) -> Receipt:
    """Read the receipt of a converted file and check that it is this file's.

    Raises UserError when there is no receipt, it is not one, or the file has changed since it was written.
    """
    path = receipt_path(target)
    if not target.is_file():
        raise UserError(f"{target}: no such converted checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: no receipt beside {target.name}; convert the checkpoint again")
    receipt = FORMAT.parse(Receipt, FORMAT.read(path) or {}, path)
    if receipt.target.sha256 != sha256_file(target):
        raise UserError(f"{target}: differs from the file its receipt was written for; convert it again")
    return receipt
