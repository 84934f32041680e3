"""Recognition of networks beyond plain ResNets: the usual models of timm that fit."""

import re
from collections.abc import Mapping

from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones import huggingface
from carryover.core.backbones.timm_import import Filtered, candidates
from carryover.core.backbones.timm_network import library
from carryover.core.backbones.traced import without_values

_VIT = re.compile(r"blocks\.(\d+)\.attn\.(qkv|q_proj|q)\.weight")
_CONVNEXT = re.compile(r"stages\.(\d)\.(?:blocks\.)?(\d+)\.(?:dwconv|conv_dw)\.weight")
_SWIN = "layers.0.blocks.0.attn.relative_position_bias_table"
_SIZES = {
    192: "tiny",
    384: "small",
    768: "base",
    1024: "large",
    1280: "huge",
    1408: "giant",
    1536: "giant",
    4096: "7b",
}
_CONVNEXTS = {
    (40, 6): "atto",
    (48, 6): "femto",
    (64, 6): "pico",
    (80, 8): "nano",
    (96, 9): "tiny",
    (96, 27): "small",
    (128, 27): "base",
    (192, 27): "large",
    (256, 27): "xlarge",
    (352, 27): "huge",
}
_SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}

_DEPTHS: dict[tuple[int, ...], int] = {
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
    (2, 2, 2, 2): 26,
}

ANCHORS = (
    "patch_embed.proj.weight",
    "downsample_layers.0.0.weight",
    "stem.0.weight",
    "features.0.0.weight",
    *huggingface.ANCHORS,
)
"""First tensors of the networks that `usual_models` knows, by which their encoders are found in a file."""


def usual_models(raw: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return timm's names of the usual vision transformers, ConvNeXts and Swins of these sizes."""
    raw = huggingface.by_authors_names(without_values(raw))
    if any(_VIT.fullmatch(name) for name in raw) and "patch_embed.proj.weight" in raw:
        return _vision_transformers(raw)
    if any(_CONVNEXT.fullmatch(name) for name in raw):
        first = raw.get("downsample_layers.0.0.weight", raw.get("stem.0.weight"))
        third = 1 + max((int(m[2]) for m in map(_CONVNEXT.fullmatch, raw) if m and m[1] == "2"), default=-1)
        size = _CONVNEXTS.get((0 if first is None else first.shape[0], third))
        version = "v2" if any("grn" in name for name in raw) else ""
        return (f"convnext{version}_{size}",) if size else ()
    if _SWIN in raw and "patch_embed.proj.weight" in raw:
        depth = len([n for n in raw if re.fullmatch(r"layers\.2\.blocks\.\d+\.norm1\.weight", n)])
        size = _SWINS.get((raw["patch_embed.proj.weight"].shape[0], depth))
        window = {169: "window7_224", 529: "window12_384"}.get(raw[_SWIN].shape[0])
        return (f"swin_{size}_patch4_{window}",) if size and window else ()
    return ()


def usual_resnets(raw: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return timm's names of the ResNets that are no plain ones: grouped, wide, deep stems, GroupNorm."""
    blocks = [
        1 + max((int(n.split(".")[1]) for n in raw if n.startswith(f"layer{s}.")), default=-1)
        for s in range(1, 5)
    ]
    depth = _DEPTHS.get(tuple(blocks))
    second = raw.get("layer1.0.conv2.weight")
    if depth is None or second is None or second.ndim != 4:
        return ()
    if second.shape[0] != second.shape[1]:
        groups = second.shape[0] // second.shape[1]
        return (f"resnext{depth}_{groups}x{second.shape[1]}d",)
    if any(name.startswith("conv1.0.") for name in raw):
        return tuple(f"resnet{depth}{letter}" for letter in "dtcs")
    if not any(name.endswith("running_mean") for name in raw):
        return (f"resnet{depth}_gn",)
    return (f"wide_resnet{depth}_2",)


def the_one(raw: Mapping[str, Tensor], names: tuple[str, ...], where: str) -> Filtered | None:
    """Return `raw` as the only model of `names` that fits; None where none does.

    Raises UserError listing them where several do.
    """
    try:
        known = set(library().list_models()) if names else set()
    except UserError:
        # Without timm nothing can be said.
        return None
    found = candidates(raw, tuple(name for name in names if name in known), where)
    if len(found) == 2 and found[1].config.arch == f"{found[0].config.arch}_qkvb":
        # DINOv3: the first has no biases of query and value, which fits a file whose biases are all zero.
        return found[0]
    if len(found) > 1 and all("_gap_" in f.config.arch or not f.config.tokens for f in found):
        return found[0]
    if len(found) > 1:
        listed = ", ".join(f"--architecture {f.config.arch}" for f in found)
        raise UserError(f"{where}: several networks have these tensors; choose one: {listed}")
    return found[0] if found else None


def _blocks(raw: Mapping[str, Tensor], stage: str) -> int:
    return 1 + max((int(n.split(".")[1]) for n in raw if n.startswith(stage)), default=-1)


def _vision_transformers(raw: Mapping[str, Tensor]) -> tuple[str, ...]:
    weight = raw["patch_embed.proj.weight"]
    size, patch = _SIZES.get(weight.shape[0]), weight.shape[-1]
    if size is None:
        return ()
    scaled = any(re.search(r"\.(ls1\.gamma|gamma_1)$", name) for name in raw)
    registers = any(name in raw for name in ("register_tokens", "reg_token"))
    if "dist_token" in raw:
        return (f"deit_{size}_distilled_patch{patch}_224", f"deit3_{size}_distilled_patch{patch}_224")
    table = next((v for n, v in raw.items() if n.endswith(".attn.relative_position_bias_table")), None)
    if table is not None:
        side = {732: 224, 2212: 384, 3972: 512}.get(table.shape[0])
        return (f"beit_{size}_patch{patch}_{side}",) if side else ()
    rotary = registers or any(n in raw for n in ("storage_tokens", "rope_embed.periods"))
    if "pos_embed" not in raw and rotary:
        plus = "_plus" if size != "7b" and any(".mlp.w1." in n or ".fc1_g." in n for n in raw) else ""
        return tuple(f"vit_{size}{plus}_patch{patch}_dinov3{bias}" for bias in ("", "_qkvb"))
    if registers or scaled:
        return (
            f"vit_{size}_patch{patch}_{'reg4_' if registers else ''}dinov2",
            f"deit3_{size}_patch{patch}_224",
            f"beit_{size}_patch{patch}_224",
        )
    plain = f"vit_{size}_patch{patch}_224"
    if "cls_token" in raw:
        return (plain,)
    # Without a class token: the plain one, built so, before timm's own (whose base has 16 heads).
    return (plain, f"vit_{size}_patch{patch}_gap_224", f"vit_{size}_patch{patch}_gap_448")
