"""timm's own model, loaded by timm with the same tensors: what a network named after it is held against."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.against import POOLED, Reference, prove_against
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.timm_network import library, options_of
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.core.formats.receipt import MakerProof
from carryover.core.training.device import random_states_kept

_SEED, _COUNT, _SIDE = 20211216, 2, 96


@dataclass(frozen=True)
class TimmsOwn:
    """A file's tensors under the file's names, and the model of timm that its user or configuration names."""

    name: str
    config: BackboneConfig
    tensors: Mapping[str, Tensor]

    def reference(self, metadata: CanonicalMetadata) -> Reference:
        """Return what timm's model makes of a few seeded images, its maps and its pooled features.

        timm builds the model, renames the tensors, drops the classifier and loads. Images are normalized as
        timm says of the very weights where the name has their tag, otherwise as `metadata` says.
        """
        with random_states_kept():
            model = self._loaded()
        size = self.config.input_size or (None if _any_size(model) else _own_size(model)) or _SIDE
        generator = torch.Generator().manual_seed(_SEED)
        images = torch.rand(_COUNT, 3, size, size, generator=generator)
        mean, std = metadata.pixel_mean, metadata.pixel_std
        if "." in self.name:
            mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        x = (images - _column(mean)) / _column(std)
        with torch.no_grad():
            maps = model.forward_intermediates(x, intermediates_only=True)
            pooled = model(x)
        info = model.feature_info
        stages = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
        features = dict(zip(stages, maps, strict=True)) | {POOLED: pooled}
        timm = library()
        return Reference(None, images, features, f"timm {timm.__version__}'s own {self.name}")

    def _loaded(self) -> Any:
        options = options_of(self.config)
        raw = {n: v.float() if v.is_floating_point() else v for n, v in self.tensors.items()}
        try:
            model: Any = library().create_model(
                self.name, pretrained=True, pretrained_cfg_overlay={"state_dict": raw}, **options
            )
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"timm itself cannot load these tensors as {self.name}: {error}") from None
        return model.eval()


def prove_own(own: TimmsOwn, network: nn.Module, metadata: CanonicalMetadata) -> MakerProof:
    """Compare a loaded network with timm's own.

    Raises WorkError where they differ by more than `against.RELATIVE`.
    """
    network = network.eval()
    label = metadata.backbone.label
    model = LoadedModel(label, {}, lambda images: feature_maps(network, images), network)
    return prove_against(own.reference(metadata), model, metadata)


def _any_size(model: Any) -> bool:
    return bool(getattr(model, "dynamic_img_size", False)) or not model.pretrained_cfg.get("fixed_input_size")


def _own_size(model: Any) -> int:
    return int(model.pretrained_cfg["input_size"][-1])


def _column(values: Any) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
