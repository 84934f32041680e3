"""Heads: the layers between a backbone's features and the embeddings that an objective sees."""

from torch import Tensor, nn

from carryover.core.training.device import bf16_autocast
from carryover.pretrain.config import ProjectorConfig
from carryover.pretrain.method_config import PredictorConfig
from carryover.pretrain.objectives.precision import promote


def build_projector(config: ProjectorConfig, in_dim: int) -> nn.Sequential:
    """Build a projector mapping features (B, in_dim) to embeddings (B, config.out), not normalized.

    Hidden layers are linear, norm, ReLU; a linear layer that a norm follows has no bias (UniGrad's public
    code; the norm takes it away again). The last one is linear, with a norm after it if `norm_last`, without
    weight and bias unless `affine_last`.
    """
    layers: list[nn.Module] = []
    width = in_dim
    for index in range(config.depth):
        last = index == config.depth - 1
        out = config.out if last else config.hidden
        normed = config.norm != "none" and (config.norm_last or not last)
        layers.append(nn.Linear(width, out, bias=not normed))
        if normed:
            affine = config.affine_last or not last
            batch = config.norm == "batch"
            layers.append(
                nn.BatchNorm1d(out, affine=affine) if batch else nn.LayerNorm(out, elementwise_affine=affine)
            )
        if not last:
            layers.append(nn.ReLU(inplace=True))
        width = out
    return nn.Sequential(*layers)


class Predictor(nn.Module):
    """BYOL's second head, on the online branch only: embeddings (B, d) to predictions (B, d)."""

    def __init__(self, config: PredictorConfig, width: int, bf16: bool) -> None:
        super().__init__()
        layers = ProjectorConfig(
            depth=config.depth,
            hidden=config.hidden,
            out=width,
            norm=config.norm,
            norm_last=config.output_norm,
            affine_last=not config.output_norm,
        )
        self.layers = build_projector(layers, width)
        self.constant_lr = config.constant_lr
        self.bf16 = bf16

    def forward(self, z: Tensor) -> Tensor:
        with bf16_autocast(z.device, self.bf16):
            prediction: Tensor = self.layers(z)
        return promote(prediction)


class Encoder(nn.Module):
    """A backbone and a head: images (B, 3, H, W) to embeddings (B, d), in float32 at least.

    With `bf16` the networks run under autocast; what leaves is float32 all the same, since objectives take
    differences of nearly equal numbers.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.bf16 = bf16

    def forward(self, x: Tensor) -> Tensor:
        with bf16_autocast(x.device, self.bf16):
            embedding: Tensor = self.head(self.backbone(x))
        return promote(embedding)
