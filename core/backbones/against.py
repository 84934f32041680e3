"""Features of the maker's own network against those of the converted one."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carryover.configs import UserError, WorkError
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.formats.receipt import MakerProof, StageDifference, file_record

IMAGES, POOLED = "images", "pooled"
RELATIVE = 1e-4


@dataclass(frozen=True)
class Reference:
    """Features of the authors' network for some images.

    Attributes
    ----------
    path
        The .npz that the maker's code wrote; None where the network was run here.
    images
        (N, 3, H, W) RGB in 0..1, before any normalization.
    features
        By name: "pooled" (N, D), or a stage's maps (N, C, h, w).
    """

    path: Path | None
    images: Tensor
    features: Mapping[str, Tensor]
    maker: str = "the maker"

    @property
    def where(self) -> str:
        """Return its name in messages."""
        return self.maker if self.path is None else str(self.path)


def read_reference(path: Path) -> Reference:
    """Read a .npz of `images` and features of the maker's own network.

    Raises UserError naming the array for what is not one, or no images of 0..1.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; `carryover inspect FILE --reference-script` prints a script for it"
        )
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path}: not a .npz of plain arrays ({error})") from None
    images = arrays.pop(IMAGES, None)
    if images is None or not arrays:
        raise UserError(
            f"{path}: holds {', '.join(arrays) or 'nothing else'}; expected 'images' (N, 3, H, W) and"
            " features"
        )
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        shown = f"{tuple(images.shape)} {images.dtype}"
        raise UserError(f"{path}: 'images' is {shown}, expected floats (N, 3, H, W)")
    if images.min() < 0 or images.max() > 1:
        raise UserError(
            f"{path}: 'images' reaches from {float(images.min()):.3g} to {float(images.max()):.3g}; expected"
            " RGB in 0..1, before normalization, so that it is verified too"
        )
    for name, value in arrays.items():
        if not value.is_floating_point() or len(value) != len(images) or not torch.isfinite(value).all():
            shown = f"{tuple(value.shape)} {value.dtype}"
            raise UserError(f"{path}: '{name}' is {shown}, expected finite floats (N, ...)")
    return Reference(path, images.float(), {name: value.float() for name, value in arrays.items()})


def prove_against(reference: Reference, model: LoadedModel, metadata: CanonicalMetadata) -> MakerProof:
    """Compare a loaded model's features of the reference's images with the maker's.

    Images are normalized as the checkpoint's metadata says: a wrong order or mean of pixels shows as well.

    Raises
    ------
    UserError
        The reference has features that this network has not.
    WorkError
        They differ by more than 1e-4 of the largest of them (or 1e-4, if that is more).
    """
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (metadata.pixel_mean, metadata.pixel_std))
    with torch.no_grad():
        images = (reference.images - mean) / std
        found = dict(model.stages(images))
        last = list(found)[-1]
        found[POOLED] = found[last].mean(dim=(2, 3)) if model.pooled is None else model.pooled(images)
    differences = []
    for name, theirs in reference.features.items():
        if name not in found:
            raise UserError(f"{reference.where}: '{name}': this network has {', '.join(found)}")
        ours = found[name]
        if ours.shape != theirs.shape:
            raise WorkError(
                f"{reference.where}: the maker's '{name}' is {tuple(theirs.shape)}, that of {model.name} is"
                f" {tuple(ours.shape)}"
            )
        largest = float((ours - theirs).abs().max())
        allowed = RELATIVE * max(1.0, float(theirs.abs().max()))
        if not largest <= allowed:
            correlation = float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])
            raise WorkError(
                f"{reference.where}: '{name}' of {model.name} differs from the maker's by {largest:.3g}, more"
                f" than {allowed:.2g} (correlation {correlation:.3f}): the network, its stride or padding, or"
                " the pixel statistics are others; `carryover inspect` lists what was assumed, and how to say"
                " otherwise"
            )
        differences.append(StageDifference(stage=name, largest=largest))
    return MakerProof(
        reference=None if reference.path is None else file_record(reference.path),
        maker=reference.maker,
        model=model.name,
        features=tuple(differences),
        tolerance=RELATIVE,
    )
