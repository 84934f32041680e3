"""Values that no trained network has are refused; what sound files hold of zeros and ones is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, vit_b_16

from carryover.configs import UserError
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import inspect_checkpoint, load_backbone
from carryover.core.backbones.stated import Stated
from carryover.core.backbones.values import never_trained, require_usable
from carryover.core.formats.said import Said
from carryover.transfer.convert import convert
from carryover.transfer.pipeline.foresight import read_metadata
from tests.core.backbones.makers_networks import randomized

State = dict[str, Tensor]
NEW = "norms .* are as a new network has them .*never trained.*--method random"


def of_timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=0, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "torchvision's ResNet": (resnet18, 64),
    "zero-initialized residuals": (lambda: resnet50(zero_init_residual=True), 64),
    "a vision transformer": (of_timm("vit_tiny_patch16_224"), 224),
    "layer scale and registers": (of_timm("vit_small_patch14_reg4_dinov2", img_size=56), 56),
    "BEiT": (of_timm("beit_base_patch16_224"), 224),
    "ConvNeXt V2": (of_timm("convnextv2_atto"), 64),
    "Swin": (of_timm("swin_tiny_patch4_window7_224"), 224),
    "group norm": (of_timm("resnet50_gn"), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_network_is_told_from_one_that_took_a_single_step(name: str) -> None:
    torch.manual_seed(0)
    build, side = NETWORKS[name]
    model = build()
    assert str(len([n for n, v in model.state_dict().items() if n.endswith(".weight") and v.ndim == 1])) in (
        never_trained(model.state_dict())
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, side, side)).square().mean().backward()
    optimizer.step()
    assert not never_trained(model.state_dict())
    require_usable(model.state_dict(), "after one step")


def test_a_forward_pass_alone_moves_batch_statistics() -> None:
    model = resnet18().train()
    assert never_trained(model.state_dict())
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert not never_trained(model.state_dict())


def test_a_new_network_is_refused_everywhere_unless_it_is_said_to_be_meant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, meant = tmp_path / "c.pth", Stated(method="random")
    for model in (resnet18(), timm.create_model("vit_tiny_patch16_224")):
        torch.save(model.state_dict(), path)
        for reads in (inspect_checkpoint, load_backbone, import_checkpoint):
            with pytest.raises(UserError, match=NEW) as refused:
                reads(path)
            assert str(path) in str(refused.value)
        with pytest.raises(UserError, match=NEW):
            convert(path, "canonical", tmp_path / "out.safetensors")
        assert inspect_checkpoint(path, None, meant).metadata.method == "random"
        assert load_backbone(path, None, meant)[1].method == "random"
        assert import_checkpoint(path, said=Said(method="random"))[1].method == "random"
        convert(path, "canonical", tmp_path / "out.safetensors", said=Said(method="random"))
        # A pipeline's plan looks into the file before it is imported.
        with pytest.raises(UserError, match=NEW):
            read_metadata(path, None, Said(label="new"))
        assert read_metadata(path, None, Said(label="new", method="random")).method == "random"
        # Carryover's own file says itself what it is.
        assert inspect_checkpoint(tmp_path / "out.safetensors").metadata.method == "random"


def folded(state: State) -> State:
    """As converters from Caffe write batch norms: statistics folded into scale and shift."""
    new = {n: v.clone() for n, v in state.items()}
    for name in [n.removesuffix("running_mean") for n in state if n.endswith("running_mean")]:
        new[f"{name}running_mean"].zero_()
        new[f"{name}running_var"].fill_(1.0)
    return new


def statistics_alone(state: State) -> State:
    """Norms whose scale and shift were never learnt, as frozen ones are."""
    one = ("bn1.weight", "bn2.weight", "downsample.1.weight")
    zero = ("bn1.bias", "bn2.bias", "downsample.1.bias")
    return {
        n: torch.ones_like(v) if n.endswith(one) else torch.zeros_like(v) if n.endswith(zero) else v
        for n, v in state.items()
    }


def with_zeros(*ends: str) -> Callable[[State], State]:
    return lambda state: {n: torch.zeros_like(v) if n.endswith(ends) else v for n, v in state.items()}


def qkv_without_key_bias(state: State) -> State:
    new = dict(state)
    for name in [n for n in state if n.endswith("qkv.bias")]:
        third = len(state[name]) // 3
        new[name] = state[name].clone()
        new[name][third : 2 * third] = 0
    return new


SOUND: dict[str, tuple[Callable[[], nn.Module], Callable[[State], State]]] = {
    "statistics folded into the scales": (resnet18, folded),
    "frozen scales and shifts": (resnet18, statistics_alone),
    "scales of zero, as residual branches may begin": (resnet18, with_zeros("bn2.weight")),
    "biases of zero": (of_timm("vit_tiny_patch16_224"), with_zeros("qkv.bias", "proj.bias", "fc1.bias")),
    "key biases of zero, as BEiT's and DINOv3's": (of_timm("vit_tiny_patch16_224"), qkv_without_key_bias),
    "shifts of zero": (of_timm("vit_tiny_patch16_224"), with_zeros("norm.bias")),
    "half precision": (of_timm("vit_tiny_patch16_224"), lambda s: {n: v.half() for n, v in s.items()}),
    "bfloat16": (of_timm("vit_tiny_patch16_224"), lambda s: {n: v.bfloat16() for n, v in s.items()}),
    "a mask token of zero": (
        of_timm("vit_tiny_patch16_224"),
        lambda s: s | {"mask_token": torch.zeros(1, 1, 192)},
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_zeros_and_ones_of_sound_files_pass(name: str, tmp_path: Path) -> None:
    build, change = SOUND[name]
    torch.save(change(randomized(build()).state_dict()), tmp_path / "c.pth")
    inspect_checkpoint(tmp_path / "c.pth")
    load_backbone(tmp_path / "c.pth")


def test_a_patch_embedding_that_stays_as_it_was_drawn_passes(tmp_path: Path) -> None:
    """MoCo v3 freezes it; position tables of sines are never trained either."""
    state = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=0)).state_dict()
    drawn = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    kept = {n: drawn[n] for n in drawn if n.startswith(("patch_embed", "pos_embed"))}
    torch.save(state | kept, tmp_path / "c.pth")
    inspect_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_weights_below_half_precision_are_refused(precision: torch.dtype, tmp_path: Path) -> None:
    """A layer scaled down and saved in half precision, whatever it was converted to afterwards."""
    state = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=0)).state_dict()
    name = "blocks.3.mlp.fc2.weight"
    # As small, but in float32 all along: nothing was lost.
    torch.save(state | {name: state[name] * 1e-5}, tmp_path / "c.pth")
    inspect_checkpoint(tmp_path / "c.pth")
    torch.save(state | {name: (state[name] * 1e-5).half().to(precision)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"'blocks\.3\.mlp\.fc2\.weight' underflowed in half precision"):
        inspect_checkpoint(tmp_path / "c.pth")


def test_layer_scales_that_underflowed_are_refused(tmp_path: Path) -> None:
    state = randomized(of_timm("vit_small_patch14_reg4_dinov2", img_size=56)()).state_dict()
    name = "blocks.0.ls1.gamma"
    for scale, message in ((1e-5, "underflowed"), (1e-9, "is all zero")):
        torch.save(state | {name: (state[name] * scale).half()}, tmp_path / "c.pth")
        with pytest.raises(UserError, match=f"'blocks.0.ls1.gamma' {message}"):
            load_backbone(tmp_path / "c.pth", None, Stated(architecture="timm/vit_small_patch14_reg4_dinov2"))


def test_too_few_norms_say_nothing() -> None:
    assert not never_trained({"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)})
    assert never_trained(vit_b_16().state_dict())
