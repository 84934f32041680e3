"""Names of transformers, and torchvision's of ConvNeXts -> those of the networks' authors or of timm."""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

ANCHORS = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "stages.0.downsample_layers.0.weight",
)
"""First tensors of transformers' networks, by which their encoders are found in a file."""
MAKER = "Hugging Face transformers"

# In turn; each on what those before it left. `layer` with a number is a block in all of their transformers.
_VIT = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^(encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\2."),
    (r"^encoder\.layers\.(\d+)\.", r"layers.\1."),
    (r"\.attention\.(attention|self)\.relative_position_bias_table$", ".attn.relative_position_bias_table"),
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.(attention|self)\.(query|key|value)\.", r".attn.\2."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attn.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_(\d)$", r".gamma_\1"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^(layernorm|layer_norm)\.", "norm."),
)
# DINOv3's: with a gate the authors' three matrices, without it timm's two.
_GATED = (
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
)
_PLAIN = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))
_CONVNEXT = (
    (r"^classifier\.", "head."),
    (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
    (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
    (
        r"^(encoder\.|model\.)?stages\.(\d)\.(downsampling_layer|downsample_layers)\.(\d)\.",
        r"downsample_layers.\2.\4.",
    ),
    (r"^(encoder\.|model\.)?stages\.(\d)\.layers\.(\d+)\.", r"stages.\2.\3."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.layer_?norm\.", ".norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"\.grn\.weight$", ".grn.gamma"),
    (r"\.grn\.bias$", ".grn.beta"),
    (r"^(layernorm|layer_norm)\.", "norm."),
)
# torchvision's, also under the names that mayaku gives its stages.
_TORCHVISION_CONVNEXT = (
    (r"^features\.0\.", "downsample_layers.0."),
    (r"^stem\.(\d)\.", r"downsample_layers.0.\1."),
    (r"^features\.([246])\.", lambda m: f"downsample_layers.{int(m[1]) // 2}."),
    (r"^_res_downs\.res([345])\.", lambda m: f"downsample_layers.{int(m[1]) - 2}."),
    (r"^features\.([1357])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.{m[2]}."),
    (r"^_res_stages\.res([2-5])\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 2}.{m[2]}."),
    (r"\.layer_scale$", ".gamma"),
    (r"\.block\.0\.", ".dwconv."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".pwconv1."),
    (r"\.block\.5\.", ".pwconv2."),
    (r"^classifier\.0\.", "norm."),
    (r"^classifier\.2\.", "head."),
)
_QKV = re.compile(r"(.+\.attn)\.query\.(weight|bias)")


def is_transformers(raw: Collection[str]) -> bool:
    """Return whether an encoder's tensors are under the names of Hugging Face's transformers."""
    return any(name in raw for name in ANCHORS)


def by_authors_names(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's tensors under names that timm reads; the three matrices of an attention joined.

    Tensors under any other maker's names are returned as they are.
    """
    if any(re.search(r"^(features\.1|_res_stages\.res2)\.0\.layer_scale$", name) for name in raw):
        found = {_renamed(name, _TORCHVISION_CONVNEXT): value for name, value in raw.items()}
        # One scale a channel, (C, 1, 1) there.
        return {n: v.flatten() if n.endswith(".gamma") else v for n, v in found.items()}
    if not is_transformers(raw):
        return dict(raw)
    if any(re.search(r"stages\.\d\.layers\.\d+\.(dwconv|depthwise_conv)\.", name) for name in raw):
        return {_renamed(name, _CONVNEXT): value for name, value in raw.items()}
    gate = _GATED if any(".mlp.gate_proj." in name for name in raw) else _PLAIN
    found = {_renamed(name, (*_VIT, *gate)): value for name, value in raw.items()}
    rotary = "pos_embed" not in found and any(".ls1.gamma" in name for name in found)
    if rotary and "register_tokens" in found:
        found["storage_tokens"] = found.pop("register_tokens")
    return _joined(found, biases=rotary)


def _renamed(name: str, table: tuple[tuple[str, object], ...]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)  # type: ignore[call-overload]
    return name


def _joined(found: dict[str, Tensor], biases: bool) -> dict[str, Tensor]:
    """Join query, key and value; a key without bias has one of zeros where `biases`, as its authors' has.

    BEiT's biases of query and value stay two tensors, as timm has them.
    """
    joined: dict[str, Tensor] = {}
    for name, value in found.items():
        match = _QKV.fullmatch(name)
        if match is None:
            if not re.search(r"\.attn\.(key|value)\.(weight|bias)$", name):
                joined[name] = value
            continue
        place, kind = match.groups()
        key, last = found.get(f"{place}.key.{kind}"), found.get(f"{place}.value.{kind}")
        if last is None or (key is None and kind == "weight"):
            joined[name] = value
        elif key is not None:
            joined[f"{place}.qkv.{kind}"] = torch.cat([value, key, last])
        elif biases:
            joined[f"{place}.qkv.bias"] = torch.cat([value, torch.zeros_like(value), last])
        else:
            joined[f"{place}.q_bias"], joined[f"{place}.v_bias"] = value, last
    return joined
