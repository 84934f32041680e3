"""Build timm's networks: as they are, or with windows and relative positions in a detector."""

from carryover.core.backbones.timm_network import TimmNetwork, library
from carryover.core.formats.backbone import BackboneConfig


def build_timm(config: BackboneConfig) -> TimmNetwork:
    """Build a model of timm by the name after ``timm/``.

    Raises UserError where timm is not installed, or knows no model of that name, or where windows and
    relative positions are asked of a network that is no plain transformer.
    """
    if config.attention is None:
        return TimmNetwork(config)
    library()
    from carryover.core.backbones.windowed import WindowedNetwork

    return WindowedNetwork(config)
