"""The methods: each is views, a target branch, a head and an objective; and the registry that builds them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.pretrain.bank import MemoryBank
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder, build_projector
from carryover.pretrain.method_config import (
    BarlowTwinsConfig,
    BYOLConfig,
    DirectPredConfig,
    MoCoConfig,
    MSBRegConfig,
    NPIDConfig,
    SimCLRConfig,
    SiMoConfig,
    SimSiamConfig,
    SqrtKLConfig,
    SupervisedConfig,
    UniGradConfig,
    VICRegConfig,
)
from carryover.pretrain.methods.asymmetric import BYOL, DirectPred
from carryover.pretrain.methods.base import Method, Moment, Outcome
from carryover.pretrain.methods.contrastive import MoCo, SimCLR, SiMo
from carryover.pretrain.methods.decorrelation import BarlowTwins, VICReg
from carryover.pretrain.methods.instance import NPID, SqrtKL
from carryover.pretrain.methods.msbreg import MSBReg
from carryover.pretrain.methods.supervised import Supervised
from carryover.pretrain.methods.unigrad import UniGrad
from carryover.pretrain.sharded_bank import ShardedBank

__all__ = ["DataFacts", "Method", "Moment", "Outcome", "build_method", "method_around"]


@dataclass(frozen=True)
class DataFacts:
    """What a method must know of the data set: its size, and its number of classes when it has labels."""

    images: int
    classes: int | None


def build_method(config: PretrainConfig, facts: DataFacts) -> Method:
    """Build the method of a recipe with freshly initialised networks, from the recipe's seed.

    The backbone's initialisation depends on the seed and on nothing else of the method. Raises UserError when
    the method needs labels and the data set has none.
    """
    if config.method.wants_labels and facts.classes is None:
        raise UserError(f"method {config.method.name} needs labels, but the data set has none")
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.backbone)
    head: nn.Module = nn.Identity()
    if config.projector is not None:
        head = build_projector(config.projector, backbone.feature_dim)
    elif config.method.wants_labels and facts.classes is not None:
        head = nn.Linear(backbone.feature_dim, facts.classes)
    return method_around(Encoder(backbone, head, config.precision == "bf16"), config, facts)


def method_around(online: Encoder, config: PretrainConfig, facts: DataFacts) -> Method:
    """Build the method of a recipe around an online network whose embeddings are `projector.out` wide."""
    return _BUILDERS[config.method.name](config, online, facts)


def _width(config: PretrainConfig) -> int:
    assert config.projector is not None
    return config.projector.out


def _bank(config: PretrainConfig, facts: DataFacts) -> MemoryBank | ShardedBank:
    method = cast(SqrtKLConfig | NPIDConfig, config.method)
    dtype = torch.bfloat16 if method.bank_precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(config.seed)
    kind = ShardedBank if method.bank_sharded else MemoryBank
    return kind.random(facts.images, _width(config), generator, dtype=dtype)


_BUILDERS: dict[str, Callable[[PretrainConfig, Encoder, DataFacts], Method]] = {
    "unigrad": lambda c, online, _: UniGrad(
        cast(UniGradConfig, c.method), online, _width(c), c.augment.cutmix, c.seed
    ),
    "simo": lambda c, online, _: SiMo(cast(SiMoConfig, c.method), online),
    "moco": lambda c, online, _: MoCo(cast(MoCoConfig, c.method), online, _width(c), c.seed),
    "simclr": lambda c, online, _: SimCLR(cast(SimCLRConfig, c.method), online),
    "byol": lambda c, online, _: BYOL(cast(BYOLConfig, c.method), online, _width(c)),
    "simsiam": lambda c, online, _: BYOL(cast(SimSiamConfig, c.method), online, _width(c)),
    "directpred": lambda c, online, _: DirectPred(cast(DirectPredConfig, c.method), online, _width(c)),
    "barlow_twins": lambda c, online, _: BarlowTwins(cast(BarlowTwinsConfig, c.method), online),
    "vicreg": lambda c, online, _: VICReg(cast(VICRegConfig, c.method), online),
    "msbreg": lambda c, online, _: MSBReg(cast(MSBRegConfig, c.method), online, _width(c)),
    "sqrtkl": lambda c, online, facts: SqrtKL(cast(SqrtKLConfig, c.method), online, _bank(c, facts)),
    "npid": lambda c, online, facts: NPID(cast(NPIDConfig, c.method), online, _bank(c, facts)),
    "supervised": lambda c, online, _: Supervised(cast(SupervisedConfig, c.method), online),
    "random": lambda c, online, _: Method(online),
}
