"""At which depth of a network a parameter lies, for learning rates that decay from the head to the stem."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from carryover.core.backbones.declared import Declared

UNDECAYED = frozenset({"cls_token", "reg_token", "dist_token", "mask_token", "pos_embed"})
"""Tokens and positions of a vision transformer, which AdamW's recipes do not decay."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_FIRST = re.compile(r"(cls_token|reg_token|pos_embed|mask_token|patch_embed|norm_pre)\b")


def rate_factors(network: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor on every parameter's rate, `decay` to the number of layers above it, by its name.

    Of a vision transformer of L blocks, tokens, positions and patch embedding are layer 0, block i (from 0)
    is layer i + 1, and everything after the blocks is layer L + 1, whose factor is 1 as a new head's (Clark
    et al. 2020; `lr_decay.py` of MAE and BEiT; Detectron2's `get_vit_lr_decay_rate`). Other networks of timm
    have the layers that timm groups them into; of all others every stage is one.
    """
    layers = _layers(network)
    # A plain transformer's last norm is on the head's layer; of other networks nothing is.
    top = max(layers.values(), default=0) + (0 if _is_plain(network) else 1)
    return {name: decay ** (top - layer) for name, layer in layers.items()}


def undecayed(network: nn.Module) -> frozenset[str]:
    """Return the library's names of the parameters that take no weight decay although they are matrices.

    Tokens and positions, and whatever else timm says of its model (tables of relative positions).
    """
    own: Any = getattr(getattr(network, "inner", None), "no_weight_decay", None)
    return UNDECAYED | frozenset(() if own is None else own())


def in_library(name: str) -> str:
    """Return a parameter's name as the library of its network says it, without the modules around it."""
    return ".".join(part for part in name.split(".") if part != "inner")


def _names(network: nn.Module) -> list[str]:
    return [in_library(name) for name, _ in network.named_parameters()]


def _is_plain(network: Any) -> bool:
    return getattr(network, "patch_size", None) is not None


def _layers(network: Any) -> dict[str, int]:
    names = _names(network)
    groups: Any = getattr(getattr(network, "inner", None), "group_matcher", None)
    if _is_plain(network):
        blocks = len(network.stages)
        # A detector may add relative positions to the blocks.
        added = [f"blocks.{index}.attn.rel_pos_{axis}" for index in range(blocks) for axis in "hw"]
        return {name: _of_transformer(name, blocks) for name in (*names, *added)}
    if groups is not None:
        from timm.models import group_parameters

        found: dict[str, int] = group_parameters(network.inner, groups(coarse=False), reverse=True)
        return {name: found[name] for name in names}
    parts = network.parts if isinstance(network, Declared) else ()
    return {name: _of_parts(name, parts) for name in names}


def _of_transformer(name: str, blocks: int) -> int:
    if match := _BLOCK.match(name):
        return int(match[1]) + 1
    return 0 if _FIRST.match(name) else blocks + 1


def _of_parts(name: str, parts: Sequence[Sequence[str]]) -> int:
    for number, part in enumerate(parts):
        if name.startswith(tuple(f"{module}." for module in part)):
            return number
    return max(len(parts) - 1, 0)
