"""Pretraining of vision transformers: positions for the crops, initialization, frozen parts."""

import math
from typing import Any

import torch
from torch import nn

from carryover.configs import UserError
from carryover.core.backbones.description import describe
from carryover.core.backbones.timm_network import for_crops, with_drop_path
from carryover.core.data.config import AugmentConfig
from carryover.core.formats.backbone import BackboneConfig
from carryover.pretrain.config import PretrainConfig, TransformerConfig


def sized(config: PretrainConfig) -> BackboneConfig:
    """Return the backbone that a recipe trains: with positions for its crops, where the network has any.

    Raises UserError, naming the key, for views that the network does not take.
    """
    if config.backbone.family != "timm":
        return config.backbone
    _require_whole_patches(config, describe(config.backbone).input.multiple)
    backbone = for_crops(config.backbone, config.augment.view.size)
    rule = describe(backbone).input
    for key, size in _sizes(config.augment).items():
        if rule.size is not None and not rule.any_size and size != rule.size:
            raise UserError(
                f"augment.{key}: {backbone.label} takes images of one size, here {rule.size} px, not of"
                f" {size}; choose another backbone, or views of one size"
            )
    return backbone


def in_training(config: PretrainConfig) -> BackboneConfig:
    """Return `sized`, without the stochastic depth of timm's model unless the recipe states one."""
    backbone = sized(config)
    if backbone.family != "timm" or backbone.drop_path is not None:
        return backbone
    return with_drop_path(backbone, 0.0)


def prepare(network: Any, config: PretrainConfig) -> None:
    """Give a new network the first weights of the recipe, and freeze what it says.

    Raises UserError where there is no plain vision transformer to prepare.
    """
    if config.transformer is not None:
        _begin(network.inner, config.transformer, config.backbone)


def _sizes(augment: AugmentConfig) -> dict[str, int]:
    """Return the sides of all views, by their keys."""
    sizes = {"view.size": augment.view.size, "test.size": augment.test_view.size}
    if augment.second is not None:
        sizes["second.size"] = augment.second.size
    if augment.local is not None:
        sizes["local.view.size"] = augment.local.view.size
    return sizes


def _require_whole_patches(config: PretrainConfig, multiple: int) -> None:
    for key, size in _sizes(config.augment).items():
        if size % multiple:
            near = max(1, round(size / multiple)) * multiple
            raise UserError(
                f"augment.{key}: {size} px is no multiple of the patches of {config.backbone.label},"
                f" {multiple} px; choose {near}, or another backbone.patch_size"
            )


def _begin(inner: Any, config: TransformerConfig, backbone: BackboneConfig) -> None:
    embed: Any = getattr(inner, "patch_embed", None)
    projection: Any = getattr(embed, "proj", None)
    positions: Any = getattr(inner, "pos_embed", None)
    plain = isinstance(projection, nn.Conv2d) and hasattr(inner, "blocks")
    if not plain or (config.positions == "sincos" and not _has_grid(positions, embed)):
        raise UserError(
            f"transformer: {backbone.label} is no plain vision transformer with one projection of patches and"
            " positions of a grid; set transformer: null"
        )
    if config.init == "moco_v3":
        _as_moco_v3(inner, projection)
    if config.positions == "sincos":
        _fixed_positions(inner, positions, embed.grid_size)
    if config.frozen_patch_embed:
        projection.requires_grad_(False)


def _has_grid(positions: Any, embed: Any) -> bool:
    return isinstance(positions, nn.Parameter) and positions.ndim == 3 and embed.grid_size is not None


@torch.no_grad()
def _as_moco_v3(inner: Any, projection: nn.Conv2d) -> None:
    """Draw the weights of MoCo v3's code (vits.py)."""
    from timm.models.vision_transformer import init_weights_vit_moco

    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear):
            init_weights_vit_moco(module, name)
    if getattr(inner, "cls_token", None) is not None:
        nn.init.normal_(inner.cls_token, std=1e-6)
    inputs = projection.weight[0].numel()
    bound = math.sqrt(6 / (inputs + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


@torch.no_grad()
def _fixed_positions(inner: Any, positions: nn.Parameter, grid: tuple[int, int]) -> None:
    """Set the positions to sines and cosines of row and column, those of tokens that are no patch to 0."""
    from timm.layers import build_sincos2d_pos_embed

    if positions.shape[2] % 4:
        raise UserError(f"transformer.positions: sincos: {positions.shape[2]} channels do not divide by 4")
    made = build_sincos2d_pos_embed(list(grid), positions.shape[2], interleave_sin_cos=True)
    positions.zero_()
    positions[0, positions.shape[1] - len(made) :] = made
    positions.requires_grad_(False)
