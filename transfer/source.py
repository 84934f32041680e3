"""The checkpoint that a detector or a segmenter is built around."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pretrain.canonical import CanonicalMetadata


@dataclass(frozen=True)
class Source:
    """The canonical checkpoint to carry: its file, the SHA-256 of it, its backbone, and what it says."""

    path: Path
    sha256: str
    backbone: nn.Module
    metadata: CanonicalMetadata
