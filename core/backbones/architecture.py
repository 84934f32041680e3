"""Recognition of a backbone from names and shapes of its tensors alone."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.shapes_only import shapes_only
from carryover.core.backbones.timm_network import timms_model
from carryover.core.formats.backbone import Architecture, BackboneConfig

_DEPTHS: dict[tuple[str, tuple[int, ...]], Architecture] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_MOBILE: tuple[Architecture, ...] = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
)
_STAGE = re.compile(r"layer(\d+)\.(\d+)\.")
_COUNTER = "num_batches_tracked"
_SHOWN = 5


@dataclass(frozen=True)
class TensorSpec:
    """Requirement on one tensor of a backbone."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@cache
def _specs(config: BackboneConfig) -> tuple[tuple[str, TensorSpec], ...]:
    with shapes_only():
        network = timms_model(config) if config.family == "timm" else build_backbone(config)
        state = network.state_dict()
    return tuple((name, TensorSpec(tuple(value.shape), value.dtype)) for name, value in state.items())


def expected_tensors(config: BackboneConfig) -> dict[str, TensorSpec]:
    """Return every tensor of a backbone under torchvision's names, in the order of its state dict."""
    return dict(_specs(config))


def is_counter(name: str) -> bool:
    """Return whether a tensor is a BatchNorm's batch counter, which does not affect the features."""
    return name.rpartition(".")[2] == _COUNTER


def check_whole(state: Mapping[str, Tensor], config: BackboneConfig, where: str, finite: bool = True) -> None:
    """Raise UserError unless `state` is exactly `config`: names, shapes, dtypes, finite values.

    The message names the first offending tensors of every kind and says what was expected. Without `finite`
    no values are looked at.
    """
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    defects = []
    if missing:
        defects.append(f"{len(missing)} of {len(expected)} tensors missing: {listed(missing)}")
    if unexpected:
        defects.append(f"{len(unexpected)} tensors that {config.label} does not have: {listed(unexpected)}")
    for name in expected:
        if name not in state:
            continue
        value, spec = state[name], expected[name]
        if tuple(value.shape) != spec.shape:
            defects.append(f"'{name}' has shape {tuple(value.shape)}, expected {spec.shape}")
        elif value.dtype != spec.dtype:
            defects.append(f"'{name}' has dtype {value.dtype}, expected {spec.dtype}")
        elif finite and value.is_floating_point() and not torch.isfinite(value).all():
            defects.append(f"'{name}' has values that are not finite")
    if defects:
        shown = "; ".join(defects[:_SHOWN])
        more = f"; and {len(defects) - _SHOWN} more" if len(defects) > _SHOWN else ""
        raise UserError(f"{where}: not a whole {config.label} ({config.stem} stem): {shown}{more}")


def recognize(state: Mapping[str, Tensor], where: Path, prefix: str) -> BackboneConfig:
    """Recognize a ResNet's depth, width and stem from tensors under torchvision's names.

    `prefix` is where the tensors lie in the file, for messages. Missing tensors do not confuse it as long as
    every block has one left. Raises UserError, by name, for what is not a plain BatchNorm ResNet: deep stems
    (ResNet-C/D), GroupNorm, ResNeXt, Wide ResNet, squeeze-and-excitation, inputs other than three channels.
    """
    if any(name.startswith("features.") for name in state):
        return _recognize_mobile(state, where, prefix)
    _refuse_variants(state, where, prefix)
    arch, kind = _depth(state, where, prefix)
    stem = state.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        found = "missing" if stem is None else f"of shape {tuple(stem.shape)}"
        raise UserError(f"{where}: '{prefix}conv1.weight', the stem convolution of {arch}, is {found}")
    out, channels, *kernel = stem.shape
    if channels != 3:
        raise UserError(f"{where}: '{prefix}conv1.weight' takes {channels} channels, expected 3 (RGB)")
    if tuple(kernel) not in ((7, 7), (3, 3)):
        raise UserError(
            f"{where}: '{prefix}conv1.weight' is {kernel[0]}x{kernel[1]}, expected 7x7 (ImageNet) "
            "or 3x3 (CIFAR)"
        )
    width = out // 64
    if out % 64 or width not in (1, 2, 4):
        raise UserError(
            f"{where}: '{prefix}conv1.weight' has {out} output channels, expected 64, 128 (x2) or 256 (x4)"
        )
    if kind == "bottleneck":
        _refuse_inner_widths(state, where, prefix, arch, 64 * width)
    return BackboneConfig(arch=arch, width=width, stem="imagenet" if kernel[0] == 7 else "cifar")


def listed(names: Collection[str]) -> str:
    """Return the first names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _depth(state: Collection[str], where: Path, prefix: str) -> tuple[Architecture, str]:
    blocks: dict[int, int] = Counter()
    for name in state:
        if match := _STAGE.match(name):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks[stage], block + 1)
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    if sorted(blocks) != [1, 2, 3, 4]:
        raise UserError(
            f"{where}: {_below(prefix)}the stages are {listed([f'layer{s}' for s in sorted(blocks)])}, "
            "expected 'layer1' to 'layer4'"
        )
    kind = "bottleneck" if any(".conv3." in name for name in state) else "basic"
    arch = _DEPTHS.get((kind, counts))
    if arch is None:
        known = ", ".join(f"{name} {list(c)}" for (_, c), name in _DEPTHS.items())
        raise UserError(
            f"{where}: {_below(prefix)}layer1 to layer4 have {counts} {kind} blocks; known: {known}"
        )
    return arch, kind


def _below(prefix: str) -> str:
    """Return where tensors are in their file; nothing where they have no prefix."""
    return f"under '{prefix}' " if prefix else ""


def _recognize_mobile(state: Mapping[str, Tensor], where: Path, prefix: str) -> BackboneConfig:
    for arch in _MOBILE:
        config = BackboneConfig(arch=arch)
        specs = expected_tensors(config)
        weights = {name for name in specs if not is_counter(name)}
        if weights <= state.keys() and all(tuple(state[n].shape) == specs[n].shape for n in weights):
            return config
    raise UserError(
        f"{where}: the tensors under '{prefix}features.' are not those of torchvision's {', '.join(_MOBILE)}"
    )


def _refuse_variants(state: Mapping[str, Tensor], where: Path, prefix: str) -> None:
    for name in state:
        last = name.split(".")[-1]
        if re.match(r"(conv1|stem)\.\d+\.", name):
            raise UserError(
                f"{where}: '{prefix}{name}' belongs to a deep stem (ResNet-C/D, ResNetV1c/V1d); carryover "
                "carries the plain 7x7 or 3x3 stem: take a ResNet without the deep stem"
            )
        if re.search(r"(^|\.)(gn|ln)\d?\.", name):
            raise UserError(
                f"{where}: '{prefix}{name}' belongs to GroupNorm or LayerNorm, expected BatchNorm"
            )
        if re.search(r"\.downsample\.1\.weight$", name) and state[name].ndim == 4:
            raise UserError(
                f"{where}: '{prefix}{name}' is a convolution after average pooling (ResNet-D), "
                "expected BatchNorm"
            )
        if last in ("weight_orig", "weight_g", "weight_v"):
            raise UserError(
                f"{where}: '{prefix}{name}' is a reparametrized weight, expected a plain 'weight'"
            )
    if any(name.startswith("layer") for name in state) and not any(n.endswith("running_mean") for n in state):
        raise UserError(
            f"{where}: no '{prefix}...running_mean' at all: GroupNorm, LayerNorm, or BatchNorm folded into "
            "weight and bias; expected BatchNorm with its running statistics"
        )


def _refuse_inner_widths(
    state: Mapping[str, Tensor], where: Path, prefix: str, arch: Architecture, base: int
) -> None:
    first, second = state.get("layer1.0.conv1.weight"), state.get("layer1.0.conv2.weight")
    if second is not None and second.ndim == 4 and second.shape[0] != second.shape[1]:
        groups = second.shape[0] // max(1, second.shape[1])
        raise UserError(
            f"{where}: '{prefix}layer1.0.conv2.weight' of shape {tuple(second.shape)} is a grouped "
            f"convolution ({groups} groups): a ResNeXt, not a plain {arch}"
        )
    if first is not None and first.shape[0] != base and first.shape[0] % base == 0:
        raise UserError(
            f"{where}: '{prefix}layer1.0.conv1.weight' has {first.shape[0]} inner channels over a stem of "
            f"{base}: a Wide ResNet (only inner layers widened); carryover's x2 and x4 widen every layer"
        )
