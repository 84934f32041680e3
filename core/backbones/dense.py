"""A vision transformer as detectors run it: its patches alone."""

from collections.abc import Mapping

from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.architecture import expected_tensors, listed
from carryover.core.backbones.description import describe
from carryover.core.formats.backbone import BackboneConfig

SIMPLE_SCALES = {
    8: (2.0, 1.0, 0.5, 0.25),
    14: (4.0, 2.0, 1.0, 0.5),
    16: (4.0, 2.0, 1.0, 0.5),
}
"""By the side of a plain transformer's patches, how much its map is enlarged for every level of a pyramid.

Strides are then the 4 to 32 pixels that detectors look for objects at: exactly for patches of 8 and 16, 3.5
to 28 for 14. ViTDet enlarges by deconvolution and halves by max pooling; a quarter is halved twice.
"""
_TOKENS = ("cls_token", "reg_token")
_POSITIONS = "pos_embed"


def can_drop_tokens(config: BackboneConfig) -> bool:
    """Return whether a network is a vision transformer whose patches need neither class token nor registers.

    True of transformers without registers: what a class token gives to the patches is little, and detectors
    do without it (Li et al. 2022, ViTDet). Registers hold what would otherwise stand in some patches (Darcet
    et al. 2024): without them features are others.
    """
    if describe(config).patch_size is None or "reg_token" in expected_tensors(config):
        return False
    try:
        expected_tensors(config.model_copy(update={"tokens": False}))
    except (UserError, TypeError):
        return False
    return True


def patches_alone(
    state: Mapping[str, Tensor], config: BackboneConfig
) -> tuple[dict[str, Tensor], BackboneConfig, dict[str, str]]:
    """Return a vision transformer without class token and registers, and why which tensor was dropped.

    Positions of the tokens go with them. Raises UserError for a network that cannot do without.
    """
    alone = config.model_copy(update={"tokens": False})
    expected = expected_tensors(alone)
    kept = {name: value for name, value in state.items() if name in expected}
    dropped = [name for name in state if name not in expected]
    if any(name not in _TOKENS for name in dropped) or kept.keys() != expected.keys():
        raise UserError(f"{config.label}: cannot be run on its patches alone ({listed(dropped)})")
    if _POSITIONS in expected:
        patches = expected[_POSITIONS].shape[1]
        kept[_POSITIONS] = kept[_POSITIONS][:, kept[_POSITIONS].shape[1] - patches :].contiguous()
    reason = "dropped with its position: detectors of plain transformers take the patches alone (ViTDet)"
    return kept, alone, dict.fromkeys(dropped, reason)
