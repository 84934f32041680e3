"""OpenAI's CLIP files: the image tower is taken, by timm's own filter, once the user names the model."""

from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm", reason="timm is not installed")

from carryover.core.backbones.importers import take_backbone  # noqa: E402
from carryover.core.backbones.stated import Stated  # noqa: E402

NAME = "vit_base_patch32_clip_quickgelu_224.openai"


def openai_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's tensors as clip/model.py of OpenAI names them, with parts of the text tower."""
    words = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.",
        "norm.": "ln_post.",
        "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
        ".attn.qkv.": ".attn.in_proj_",
        ".attn.proj.": ".attn.out_proj.",
    }
    found = {}
    for name, value in model.state_dict().items():
        theirs = name
        for ours, word in words.items():
            if theirs.startswith(ours) or (ours.startswith(".") and ours in theirs):
                theirs = theirs.replace(ours, word, 1)
        value = value[0, 0] if name == "cls_token" else value[0] if name == "pos_embed" else value
        found[f"visual.{theirs}"] = value
    found["visual.proj"] = torch.zeros(768, 512)
    found["positional_embedding"] = torch.zeros(77, 512)
    found["transformer.resblocks.0.ln_1.weight"] = torch.ones(512)
    return found


def test_the_image_tower_of_openais_clip_is_taken_with_its_pixels(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    torch.save(openai_names(model), tmp_path / "clip.pt")
    taken = take_backbone(tmp_path / "clip.pt", None, Stated(architecture=f"timm/{NAME}"))
    for name, value in model.state_dict().items():
        assert torch.equal(taken.state[name], value), name
    assert taken.metadata.pixel_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    fates = {fate.source: fate.fate for fate in taken.fates}
    assert fates["visual.conv1.weight"] == "carried"
    assert fates["transformer.resblocks.0.ln_1.weight"] == fates["visual.proj"] == "dropped"
