"""State dicts under the names of Hugging Face's transformers, made of timm's, without that library."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """One of transformers' networks: timm's model, and how its tensors are called there."""

    timm: str
    rename: Callable[[State], State]
    prefix: str
    config: dict[str, Any]
    options: dict[str, Any]


def _split(name: str, value: Tensor, place: str) -> State:
    """Take an attention's joined matrix apart."""
    kind = name.rpartition(".")[2]
    return {f"{place}.{n}.{kind}": part for n, part in zip(("query", "key", "value"), value.chunk(3))}


def vit(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        new = name.replace("pos_embed", "embeddings.position_embeddings")
        new = new.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        new = re.sub(r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1", new)
        new = re.sub(r"^blocks\.", "encoder.layer.", new)
        if ".attn.qkv." in new:
            found |= _split(new, value, new.partition(".attn.")[0] + ".attention.attention")
            continue
        new = new.replace(".attn.proj.", ".attention.output.dense.").replace("norm.", "layernorm.")
        if "ls1" in "".join(state):
            new = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", new)
        else:
            new = new.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")
            new = new.replace(".norm1.", ".layernorm_before.").replace(".norm2.", ".layernorm_after.")
        found[new] = value
    return found


def dinov3(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        new = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.")
        new = new.replace("cls_token", "embeddings.cls_token").replace(
            "reg_token", "embeddings.register_tokens"
        )
        new = re.sub(r"^blocks\.", "layer.", new)
        place = new.partition(".attn.")[0] + ".attention"
        for ours, theirs in (("fc1_g", "gate_proj"), ("fc1_x", "up_proj"), ("fc2", "down_proj")):
            new = new.replace(f".mlp.{ours}.", f".mlp.{theirs}.")
        if ".attn.qkv." in new:
            parts = zip("qkv", value.chunk(3))
            found |= {f"{place}.{letter}_proj.weight": part for letter, part in parts}
            continue
        new = re.sub(r"\.attn\.([qv])_bias$", r".attention.\1_proj.bias", new)
        new = new.replace(".attn.proj.", ".attention.o_proj.")
        new = re.sub(r"\.gamma_(\d)$", r".layer_scale\1.lambda1", new)
        found[new.replace(".mlp.fc1.", ".mlp.up_proj.").replace(".mlp.fc2.", ".mlp.down_proj.")] = value
    return found


def convnext(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        new = name.replace("stem.0.", "embeddings.patch_embeddings.").replace(
            "stem.1.", "embeddings.layernorm."
        )
        new = re.sub(r"^stages\.(\d)\.blocks\.", r"encoder.stages.\1.layers.", new)
        new = re.sub(r"^stages\.(\d)\.downsample\.", r"encoder.stages.\1.downsampling_layer.", new)
        new = new.replace("conv_dw", "dwconv").replace("mlp.grn", "grn").replace("mlp.fc", "pwconv")
        new = re.sub(r"\.norm\.", ".layernorm.", new).replace("head.layernorm.", "layernorm.")
        new = new.replace(".gamma", ".layer_scale_parameter")
        if "pwconv" in new and value.ndim == 4:
            value = value[..., 0, 0]
        found[new] = value.view(1, 1, 1, -1) if ".grn." in new else value
    return found


def resnet(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        new = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        new = re.sub(r"^bn1\.", "embedder.embedder.normalization.", new)
        new = re.sub(r"^layer(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.", new)
        new = re.sub(r"\.downsample\.0\.", ".shortcut.convolution.", new)
        new = re.sub(r"\.downsample\.1\.", ".shortcut.normalization.", new)
        new = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", new)
        found[re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", new)] = value
    return found


_HEADS = {"num_attention_heads": 3}
KINDS: dict[str, Kind] = {
    "ViT": Kind("vit_tiny_patch16_224", vit, "", {"model_type": "vit"} | _HEADS, {}),
    "ViTMAE": Kind("vit_tiny_patch16_224", vit, "vit.", {"model_type": "vit_mae"} | _HEADS, {}),
    "Dinov2": Kind(
        "vit_small_patch14_dinov2",
        vit,
        "dinov2.",
        {"model_type": "dinov2", "num_attention_heads": 6},
        {"img_size": 56},
    ),
    "DINOv3ViT": Kind(
        "vit_small_patch16_dinov3_qkvb",
        dinov3,
        "",
        {"model_type": "dinov3_vit", "num_attention_heads": 6},
        {},
    ),
    "ConvNext": Kind("convnext_atto", convnext, "convnext.", {"model_type": "convnext"}, {}),
    "ConvNextV2": Kind("convnextv2_atto", convnext, "", {"model_type": "convnextv2"}, {}),
    "ResNet": Kind("resnet18", resnet, "resnet.", {"model_type": "resnet"}, {}),
}
