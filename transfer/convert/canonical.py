"""Any maker's checkpoint -> the canonical one, so that a fine-tuned backbone can be carried further."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from carryover.configs.formats import release
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.inspection import load_backbone
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, load_canonical, save_canonical
from carryover.transfer.convert.target import Target, unchanged


def _require(config: BackboneConfig) -> None:
    """Every backbone has a canonical form."""


def _write(path: Path, tensors: Mapping[str, Tensor], about: CanonicalMetadata) -> None:
    save_canonical(path, tensors, about)


def _read(path: Path) -> Mapping[str, Tensor]:
    return load_canonical(path)[0]


def _version() -> tuple[str | None, str]:
    return f"carryover {release()}", ""


def _load(path: Path, config: BackboneConfig) -> Iterator[LoadedModel]:
    backbone, about = load_backbone(path)
    backbone.eval()
    yield LoadedModel(
        about.backbone.label,
        backbone.state_dict(),
        lambda images: feature_maps(backbone, images),
        backbone if about.backbone.family == "timm" else None,
    )


def _settings(about: CanonicalMetadata) -> dict[str, JsonValue]:
    return dict(about.backbone.model_dump(mode="json"))


TARGET = Target(
    name="canonical",
    suffixes=(".safetensors",),
    require=_require,
    rename=unchanged,
    rename_back=unchanged,
    write=_write,
    read=_read,
    version=_version,
    load=_load,
    settings=_settings,
)
