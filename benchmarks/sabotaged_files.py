"""Which of carryover's checks catch a file that is not what it seems to be: sabotages, one at a time.

    python benchmarks/sabotaged_files.py

A maker's network has random weights; its file, its network or what its user states is made wrong, and the
reference features are those of the network as it was. Every case is inspected, converted without more,
converted after the user named timm's model (timm's own is run then), and converted with `--against`. A row
says what each of the four answered. Writes a dated table to benchmarks/results/.
"""

import datetime
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import write_table
from carryover.configs import CarryoverError
from carryover.core.backbones.importers import take_backbone
from carryover.core.formats.canonical import IMAGENET_MEAN, IMAGENET_STD
from carryover.transfer.cli.commands import stated
from carryover.transfer.convert import convert

State = dict[str, Tensor]
VIT, CONVNEXT, RESNET = "vit_tiny_patch16_224", "convnext_atto", "resnet18"


@dataclass(frozen=True)
class Sabotage:
    """What is wrong: tensors of the file, the maker's network, its normalization, or the file's bytes."""

    network: str
    tensors: Callable[[State], State] = dict
    made: Callable[[], nn.Module] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    told: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    cut: bool = False


def built(network: str, **options: Any) -> nn.Module:
    """Build a maker's network: torchvision's ResNet, or timm's."""
    if network == RESNET:
        model = torchvision.models.resnet18()
        model.fc = nn.Identity()
        return model
    model_: nn.Module = timm.create_model(network, num_classes=0, **options)
    return model_


def randomized(model: nn.Module, seed: int) -> nn.Module:
    """Give every tensor values as of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
            elif value.ndim in (2, 4):
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


def on(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    """Change the tensors whose names end so."""
    return lambda s: {n: change(v).contiguous() if n.endswith(name) else v for n, v in s.items()}


def swapped(a: str, b: str) -> Callable[[State], State]:
    """Exchange the tensors under two prefixes."""

    def change(s: State) -> State:
        names = {n: n.replace(a, b, 1) if n.startswith(a) else n.replace(b, a, 1) for n in s}
        touched = {n for n in s if n.startswith((a, b))}
        return {n: s[names[n]] if n in touched else v for n, v in s.items()}

    return change


def without(*endings: str) -> Callable[[State], State]:
    """Leave out the tensors whose names end so."""
    return lambda s: {n: v for n, v in s.items() if not n.endswith(endings)}


def qkv(order: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """Put query, key and value in another order."""
    return lambda v: torch.cat([v.chunk(3)[i] for i in order])


def grid_turned(positions: Tensor) -> Tensor:
    """Exchange rows and columns of the positions."""
    token, grid = positions[:, :1], positions[:, 1:]
    side = int(grid.shape[1] ** 0.5)
    return torch.cat([token, grid.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)], dim=1)


def replaced(network: str, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Build a network in which every module of a kind is another one."""
    model = built(network)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, make(child))
    return model


def strided_first() -> nn.Module:
    """Build a ResNet-50 that strides in the 1x1 convolutions."""
    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


def other_eps(eps: float) -> Callable[[], nn.Module]:
    """Build the transformer with another epsilon of its norms."""

    def make(old: nn.Module) -> nn.Module:
        new = nn.LayerNorm(old.weight.shape[0], eps=eps)  # type: ignore[arg-type]
        new.load_state_dict(old.state_dict())
        return new

    return lambda: replaced(VIT, nn.LayerNorm, make)


def flushed(v: Tensor) -> Tensor:
    """Return small values as half precision leaves them."""
    return (v * 1e-8).half()


def teacher(s: State) -> State:
    """Put the true weights under the teacher, others under the student, names exchanged."""
    other = {n: v * 1.3 if v.is_floating_point() else v for n, v in s.items()}
    return {f"teacher.backbone.{n}": v for n, v in other.items()} | {
        f"student.backbone.{n}": v for n, v in s.items()
    }


def negative(v: Tensor) -> Tensor:
    """Return the first value negated."""
    return torch.cat([-v[:1], v[1:]])


def not_finite(v: Tensor) -> Tensor:
    """Return the first value as no number."""
    return torch.cat([v[:1] * float("nan"), v[1:]])


CASES: dict[str, Sabotage] = {
    "none (control), ResNet": Sabotage(RESNET),
    "none (control), ViT": Sabotage(VIT),
    "none (control), ConvNeXt": Sabotage(CONVNEXT),
    "BGR weights": Sabotage(RESNET, on("conv1.weight", lambda v: v.flip(1) if v.shape[1] == 3 else v)),
    "stride in the 1x1": Sabotage("resnet50", made=strided_first),
    "two tensors of one shape exchanged": Sabotage(RESNET, swapped("layer3.1.conv1.", "layer3.1.conv2.")),
    "kernels transposed": Sabotage(RESNET, on("conv2.weight", lambda v: v.transpose(2, 3))),
    "blocks off by one": Sabotage(VIT, swapped("blocks.3.", "blocks.4.")),
    "batch-norm statistics reset": Sabotage(
        RESNET, lambda s: on("running_mean", torch.zeros_like)(on("running_var", torch.ones_like)(s))
    ),
    "all biases zero": Sabotage(VIT, on("bias", torch.zeros_like)),
    "mean and deviation of 0.5": Sabotage(RESNET, mean=(0.5,) * 3, std=(0.5,) * 3),
    "TensorFlow's padding": Sabotage("tf"),
    "blur pooling": Sabotage("resnetblur18"),
    "anti-aliased pooling": Sabotage("resnetaa50"),
    "student and teacher exchanged": Sabotage(VIT, teacher, told={}),
    "half precision underflows": Sabotage(RESNET, on("running_var", flushed)),
    "negative variance": Sabotage(RESNET, on("bn1.running_var", negative)),
    "not a number": Sabotage(VIT, on("norm1.bias", not_finite)),
    "file cut short": Sabotage(VIT, cut=True),
    "a tensor missing": Sabotage(RESNET, without("layer2.0.bn1.bias")),
    "QKV in another order": Sabotage(VIT, on("qkv.weight", qkv((1, 0, 2)))),
    "number of heads": Sabotage(VIT, made=lambda: built(VIT, num_heads=12)),
    "grid of positions transposed": Sabotage(VIT, on("pos_embed", grid_turned)),
    "class token's position left out": Sabotage(VIT, on("pos_embed", lambda v: v[:, 1:])),
    "class token's position zero": Sabotage(
        VIT, on("pos_embed", lambda v: torch.cat([0 * v[:, :1], v[:, 1:]], dim=1))
    ),
    "epsilon of the norms 1e-3": Sabotage(VIT, made=other_eps(1e-3)),
    "GELU by tanh": Sabotage(VIT, made=lambda: replaced(VIT, nn.GELU, lambda _: nn.GELU(approximate="tanh"))),
    "ReLU for GELU": Sabotage(VIT, made=lambda: replaced(VIT, nn.GELU, lambda _: nn.ReLU())),
    "a block dropped": Sabotage(
        VIT, lambda s: {n: v for n, v in s.items() if not n.startswith("blocks.11.")}
    ),
    "last norm left out": Sabotage(VIT, lambda s: {n: v for n, v in s.items() if not n.startswith("norm.")}),
    "LayerScale dropped (set to one)": Sabotage(CONVNEXT, on("gamma", torch.ones_like)),
    "LayerScale left out": Sabotage(CONVNEXT, without("gamma")),
    "depthwise kernels transposed": Sabotage(CONVNEXT, on("conv_dw.weight", lambda v: v.transpose(2, 3))),
    "bfloat16 and back": Sabotage(VIT, lambda s: {n: v.bfloat16().float() for n, v in s.items()}),
}


def _padded() -> nn.Module:
    from timm.layers import Conv2dSame, create_pool2d

    def make(old: Any) -> nn.Module:
        if old.kernel_size == (1, 1):
            return old  # type: ignore[no-any-return]
        return Conv2dSame(old.in_channels, old.out_channels, old.kernel_size, old.stride, bias=False)

    model: Any = replaced(RESNET, nn.Conv2d, make)
    model.maxpool = create_pool2d("max", 3, 2, padding="same")
    return model  # type: ignore[no-any-return]


def answers(name: str, case: Sabotage, seed: int, folder: Path) -> list[str]:
    """Return what inspection, conversion, timm's own model and the maker's features answer."""
    make = _padded if case.network == "tf" else case.made or (lambda: built(case.network))
    model = randomized(make(), seed)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (case.mean, case.std))
    with torch.no_grad():
        features = model((images - mean) / std)
    np.savez(folder / "r.npz", images=images.numpy(), pooled=features.numpy())
    path = folder / "theirs.safetensors"
    save_file(case.tensors({n: v.contiguous() for n, v in model.state_dict().items()}), path)
    if case.cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    plain = {"tf": RESNET, "resnetblur18": RESNET, "resnetaa50": "resnet50"}.get(case.network, case.network)
    named = {**case.told, "architecture": f"timm/{plain}"}
    out = folder / "ours.safetensors"
    return [
        _inspected(path, case),
        _converted(lambda: convert(path, "canonical", out, stated=stated(**case.told))),
        _converted(lambda: convert(path, "canonical", out, stated=stated(**named))),
        _converted(
            lambda: convert(path, "canonical", out, stated=stated(**case.told), against=folder / "r.npz")
        ),
    ]


def _inspected(path: Path, case: Sabotage) -> str:
    try:
        found = take_backbone(path, None, stated(**case.told))
    except CarryoverError as error:
        return f"refused: {_short(error)}"
    said = [note for note in found.notes if "new network" in note or "encoder" in note]
    changing = [a for a in found.metadata.assumed if a != "input_size"]
    return "; ".join(said + ([f"assumes {', '.join(changing)}"] if changing else [])) or "nothing"


def _converted(run: Callable[[], Any]) -> str:
    try:
        receipt = run()
    except CarryoverError as error:
        return f"refused: {_short(error)}"
    return str(receipt.proof)


def _short(error: Exception) -> str:
    text = str(error)
    for begin in ("theirs.safetensors: ", "theirs.safetensors (under", "r.npz: "):
        text = text.partition(begin)[2] or text
    return text[:70].replace("|", "/").replace("\n", " ")


def main() -> None:
    lines = [
        "# What catches a file that is not what it seems",
        "",
        f"`python benchmarks/sabotaged_files.py`, {datetime.date.today().isoformat()}, torch"
        f" {torch.__version__}, timm {timm.__version__}. Random weights, a seed for every row.",
        "",
        "| sabotage | network | inspect | convert | convert --architecture timm/... | convert --against |",
        "|---|---|---|---|---|---|",
    ]
    for seed, (name, case) in enumerate(CASES.items()):
        with tempfile.TemporaryDirectory() as folder:
            row = answers(name, case, 1000 + seed, Path(folder))
        lines.append(f"| {name} | {case.network} | {' | '.join(row)} |")
        print(lines[-1], flush=True)
    write_table("sabotaged-files", lines)


if __name__ == "__main__":
    main()
