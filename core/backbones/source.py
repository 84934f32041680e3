"""The checkpoint that an evaluation is of: opened once, hashed as it was loaded."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from carryover.configs import UserError
from carryover.core.backbones.inspection import load_backbone
from carryover.core.formats.canonical import CanonicalMetadata, backbone_digest
from carryover.core.formats.checkpoint_files import parts_of, sha256_checkpoint


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was loaded.

    Attributes
    ----------
    sha256
        Of the file; of several, of their names and digests.
    digest
        Of what the backbone computes (`core.formats.canonical.backbone_digest`).
    backbone
        The network, in float32 on the CPU, in training mode.
    """

    path: Path
    sha256: str
    digest: str
    backbone: nn.Module
    metadata: CanonicalMetadata

    @property
    def in_memory(self) -> bool:
        """Return whether it is a network in memory, whose path is only what it is called."""
        return self.path.name.startswith("<")


def open_source(path: Path) -> Source:
    """Load a checkpoint for an evaluation.

    Raises UserError for a missing or unfit file, and for one that was replaced while it was being read.
    """
    before = _stamps(path)
    backbone, metadata = load_backbone(path)
    sha256 = sha256_checkpoint(path)
    if _stamps(path) != before:
        raise UserError(f"{path}: was replaced while it was being read; run again when it is whole")
    return Source(path, sha256, backbone_digest(backbone.state_dict(), metadata), backbone, metadata)


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    stats = [part.stat() for part in parts_of(path)]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
