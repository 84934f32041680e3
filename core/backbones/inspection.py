"""The contract's reading side: any checkpoint as a live backbone, or as a description of what is in it."""

from pathlib import Path

from torch import nn

from carryover.core.backbones.architecture import expected_tensors
from carryover.core.backbones.imported import live_backbone, require_trained
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.inspected import Inspection
from carryover.core.backbones.stated import Stated
from carryover.core.formats.canonical import CanonicalMetadata


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
        no other; for a network that was never trained, unless `stated.method` is "random".
    """
    imported = take_backbone(path, encoder, stated)
    require_trained(imported, imported.metadata.method, path)
    return live_backbone(imported), imported.metadata


def inspect_checkpoint(path: Path, encoder: str | None = None, stated: Stated | None = None) -> Inspection:
    """Describe a checkpoint of any supported maker: layout, backbone, encoder taken, every key's fate.

    Raises UserError, naming the tensor, for a file whose backbone could not be carried whole.
    """
    imported = take_backbone(path, encoder, stated, values=False)
    require_trained(imported, imported.metadata.method, path)
    targets = {part for fate in imported.fates if fate.target for part in fate.target.split(" + ")}
    expected = len(expected_tensors(imported.metadata.backbone)) - len(imported.filled)
    return Inspection(
        path=path,
        layout=imported.layout,
        maker=imported.metadata.maker,
        encoder=imported.encoder,
        alternatives=imported.alternatives,
        metadata=imported.metadata,
        fates=imported.fates,
        carried=len(targets),
        expected=expected,
        notes=imported.notes,
    )
