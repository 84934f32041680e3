"""The methods: each is views, a target branch, a head and an objective."""

import torch
from torch import nn

from carryover.configs import UserError
from carryover.configs.registry import imported
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.resnet import zero_last_norms
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder, build_projector
from carryover.pretrain.methods.base import DataFacts, Method, Moment, Outcome
from carryover.pretrain.transformer import in_training, prepare

__all__ = ["DataFacts", "Method", "Moment", "Outcome", "build_method", "method_around"]


def build_method(config: PretrainConfig, facts: DataFacts) -> Method:
    """Build the method of a recipe with freshly initialized networks, from the recipe's seed.

    The backbone's initialization depends on the seed and on nothing else of the method. Raises UserError when
    the method needs labels and the data set has none.
    """
    if config.method.wants_labels and facts.classes is None:
        raise UserError(f"method {config.method.name} needs labels, but the data set has none")
    torch.manual_seed(config.seed)
    backbone = build_backbone(in_training(config))
    if config.zero_init_residual:
        zero_last_norms(backbone)
    prepare(backbone, config)
    head: nn.Module = nn.Identity()
    if config.projector is not None:
        head = build_projector(config.projector, backbone.feature_dim)
    elif config.method.wants_labels and facts.classes is not None:
        head = nn.Linear(backbone.feature_dim, facts.classes)
    return method_around(Encoder(backbone, head, config.precision == "bf16"), config, facts)


def method_around(online: Encoder, config: PretrainConfig, facts: DataFacts) -> Method:
    """Build the method of a recipe around an online network whose embeddings are `projector.out` wide.

    Raises UserError where what carries the method out cannot be imported.
    """
    where = config.method.implementation
    try:
        kind: type[Method] = imported(where)
    except (ImportError, AttributeError) as error:
        name = config.method.name
        raise UserError(f"method '{name}': {where or 'implementation'}: {error}") from error
    return kind.of(config, online, facts)
