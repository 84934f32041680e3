"""Proof of carriage: the target's tensors and feature maps against the source's, tensor by tensor."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from carryover.configs import WorkError
from carryover.core.backbones.architecture import is_counter, listed
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.declared import InputRule
from carryover.core.backbones.description import description_of
from carryover.core.formats.receipt import ModelProof, Receipt, StageDifference

TOLERANCE = 1e-4
_INPUT_SHAPE = (2, 3, 64, 96)
_INPUT_SEED = 20211216


@dataclass(frozen=True)
class LoadedModel:
    """A model of the target library that has loaded the converted file itself.

    `tensors` holds every tensor of its backbone under the canonical names, `stages` computes its feature maps
    for images (B, 3, H, W), by the canonical names of the stages. `pooled` computes its pooled features;
    without it they are the last stage averaged.
    """

    name: str
    tensors: Mapping[str, Tensor]
    stages: Callable[[Tensor], Mapping[str, Tensor]]
    pooled: Callable[[Tensor], Tensor] | None = None


def probe(rule: InputRule | None = None) -> Tensor:
    """Return fixed random images to compare maps on, (2, 3, 64, 96) where a network takes any size."""
    shape = _INPUT_SHAPE if rule is None or rule.size is None else (2, 3, rule.size, rule.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(_INPUT_SEED))


def tensor_digest(value: Tensor) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and bytes."""
    array = value.detach().cpu().contiguous().numpy()
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def prove_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], where: str) -> None:
    """Raise WorkError, naming the tensors, unless `target` is `source`, bit for bit."""
    missing = [name for name in source if name not in target]
    unexpected = [name for name in target if name not in source]
    if missing or unexpected:
        parts = [f"without {listed(missing)}"] if missing else []
        parts += [f"with {listed(unexpected)}, which the source lacks"] if unexpected else []
        raise WorkError(f"{where}: the backbone arrived {' and '.join(parts)}")
    for name, value in source.items():
        arrived = target[name]
        if arrived.shape != value.shape:
            raise WorkError(
                f"{where}: '{name}' arrived with shape {tuple(arrived.shape)}, expected {tuple(value.shape)}"
            )
        if arrived.dtype != value.dtype:
            raise WorkError(f"{where}: '{name}' arrived as {arrived.dtype}, expected {value.dtype}")
        if not torch.equal(arrived.cpu(), value):
            raise WorkError(f"{where}: '{name}' arrived with other values than the source's")


def prove_model(
    source: nn.Module, model: LoadedModel, tensors: Mapping[str, Tensor] | None = None
) -> ModelProof:
    """Compare a loaded model with the source backbone: every tensor, and the feature maps of every stage.

    `tensors` are those that the model must have, where they are not all of the source's as they are.
    Raises WorkError naming the tensor or stage when a tensor differs or a feature map by more than 1e-4.
    """
    prove_tensors(source.state_dict() if tensors is None else tensors, model.tensors, model.name)
    images = probe(description_of(source).input)
    source.eval()
    with torch.no_grad():
        expected = feature_maps(source, images)
        found = dict(model.stages(images))
        if model.pooled is not None:
            expected, found["pooled"] = expected | {"pooled": source(images)}, model.pooled(images)
    if expected.keys() != found.keys():
        raise WorkError(f"{model.name}: stages {list(found)}, expected {list(expected)}")
    differences = []
    for stage, value in expected.items():
        if found[stage].shape != value.shape:
            raise WorkError(
                f"{model.name}: the feature map of '{stage}' has shape {tuple(found[stage].shape)}, "
                f"expected {tuple(value.shape)}"
            )
        largest = float((found[stage] - value).abs().max())
        # Written so that a difference that is not a number fails too.
        if not largest <= TOLERANCE:
            raise WorkError(
                f"{model.name}: the feature map of '{stage}' differs from the source's by {largest:.3g}, "
                f"more than {TOLERANCE:g}, although every tensor arrived: the library's network is another"
            )
        differences.append(StageDifference(stage=stage, largest=largest))
    return ModelProof(model=model.name, tensors=len(model.tensors), stages=tuple(differences))


def prove_carried(receipt: Receipt, tensors: Mapping[str, Tensor], where: str) -> int:
    """Check a live model against a receipt alone, before its first iteration; returns how many tensors agree.

    `tensors` are the model's backbone tensors under torchvision's names. Counters may be absent (FrozenBN has
    none). Raises WorkError naming every kind of tensor that is missing, unaccounted for, or differs.
    """
    expected = {tensor.source: tensor for tensor in receipt.tensors}
    missing = [name for name in expected if name not in tensors and not is_counter(name)]
    unknown = [name for name in tensors if name not in expected]
    differing = [
        name
        for name, value in tensors.items()
        if name in expected and tensor_digest(value) != expected[name].sha256
    ]
    for names, fault in (
        (missing, "not in the model"),
        (unknown, "in the model but not in the checkpoint"),
        (differing, "not the checkpoint's values"),
    ):
        if names:
            raise WorkError(
                f"{where}: {fault}: {listed(names)} (checked against {receipt.target.name}'s receipt)"
            )
    return len(tensors)
