"""A plain vision transformer with ViTDet's attention: windows, and decomposed relative positions."""

from collections.abc import Sequence
from typing import Any

from timm.models import vision_transformer, vision_transformer_sam
from timm.models.vision_transformer_sam import (
    get_decomposed_rel_pos_bias,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from carryover.configs import UserError
from carryover.core.backbones.timm_network import TimmNetwork
from carryover.core.formats.backbone import AttentionConfig, BackboneConfig


class WindowedNetwork(TimmNetwork):
    """A plain transformer of timm, without class token and registers, whose blocks are `WindowedBlock`s.

    Tensors have timm's names; tables of relative positions are `blocks.N.attn.rel_pos_h` and `rel_pos_w`, as
    Detectron2 and timm's SAM call them, and begin at zero.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        assert config.attention is not None
        _require_plain(self.inner, config)
        self.vector_names = ()
        own: Any = self.inner.blocks
        self.inner.blocks = nn.ModuleList(
            WindowedBlock(block, config.attention, index) for index, block in enumerate(own)
        )

    def forward(self, x: Tensor) -> Tensor:
        last = self.maps_of(x, self.stages[-1:])[self.stages[-1]]
        inner: Any = self.inner
        pooled: Tensor = inner.forward_head(inner.norm(last.flatten(2).transpose(1, 2)))
        return pooled

    def maps_of(self, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        inner: Any = self.inner
        x = inner.patch_embed(x)
        rows, columns = x.shape[1:3]
        x = inner.norm_pre(inner._pos_embed(x)).unflatten(1, (rows, columns))
        found: dict[str, Tensor] = {}
        for name, block in zip(self.stages, inner.blocks, strict=True):
            x = block(x)
            if name in stages:
                found[name] = x.permute(0, 3, 1, 2)
            if len(found) == len(stages):
                break
        return found


class WindowedBlock(nn.Module):
    """A block of timm's transformer on maps (B, H, W, C), with the modules of that block.

    timm's block of SAM differs in training: its stochastic depth leaves out windows, not images.
    """

    def __init__(self, block: Any, attention: AttentionConfig, index: int) -> None:
        super().__init__()
        self.window = 0 if index in attention.global_blocks else attention.window
        self.norm1, self.ls1, self.drop_path1 = block.norm1, block.ls1, block.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2
        side = self.window or attention.grid
        self.attn = WindowAttention(block.attn, side if attention.relative_positions else None)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.norm1(x)
        if self.window:
            size = (x.shape[1], x.shape[2])
            windows, padded = window_partition(attended, self.window)
            attended = window_unpartition(self.attn(windows), self.window, size, padded)
        else:
            attended = self.attn(attended)
        x = x + self.drop_path1(self.ls1(attended))
        # The layers of a block take maps as they take sequences.
        grown: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return grown


class WindowAttention(vision_transformer_sam.Attention):
    """timm's attention of SAM with the modules of a block's own, on batches of heads.

    timm folds the heads into the batch, and torch's fused kernels do not take three dimensions.
    """

    def __init__(self, own: Any, side: int | None) -> None:
        size = None if side is None else (side, side)
        super().__init__(own.proj.in_features, own.num_heads, use_rel_pos=side is not None, input_size=size)
        self.qkv, self.proj, self.proj_drop = own.qkv, own.proj, own.proj_drop
        self.q_norm, self.k_norm, self.attn_drop = own.q_norm, own.k_norm, own.attn_drop

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, columns, _ = x.shape
        count, heads = rows * columns, self.num_heads
        qkv = self.qkv(x.flatten(1, 2)).view(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = self.q_norm(qkv[0]), self.k_norm(qkv[1]), qkv[2]
        bias = None
        if self.use_rel_pos:
            size, tables = (rows, columns), (self.rel_pos_h, self.rel_pos_w)
            # timm makes the indices where tensors are made by default: on the host, and then waits for them.
            with x.device:
                bias = get_decomposed_rel_pos_bias(q.flatten(0, 1), *tables, size, size)
            bias = bias.view(batch, heads, count, count)
        dropout = self.attn_drop.p if self.training else 0.0
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        projected: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        return projected.unflatten(1, (rows, columns))


def _require_plain(inner: Any, config: BackboneConfig) -> None:
    if getattr(inner, "num_prefix_tokens", 1):
        reason = "its class token or registers attend too, and windows are of patches alone"
    elif any(type(block) is not vision_transformer.Block for block in inner.blocks):
        reason = f"its blocks are timm's {type(inner.blocks[0]).__name__}"
    elif any(not _is_plain_attention(block.attn) for block in inner.blocks):
        reason = "its attention is gated or normalized"
    else:
        return
    raise UserError(f"{config.label}: no windows and relative positions here: {reason}")


def _is_plain_attention(attention: Any) -> bool:
    gated = getattr(attention, "gate", None) is not None
    return not gated and isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
