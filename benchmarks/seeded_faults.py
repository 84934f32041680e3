"""Seeded faults: a sound checkpoint turned into files that are not what they claim, one fault each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.stated import Pixels, Stated
from carryover.core.formats.canonical import CanonicalMetadata, load_canonical, save_canonical

State = dict[str, Tensor]


@dataclass(frozen=True)
class Fault:
    """A file with one fault, and the cause that `carryover verify` must name; None for a sound file.

    `stated` is what a maker's file does not say itself, as `--pixels`, `--stem` and `--input-size` do.
    """

    name: str
    cause: str | None
    path: Path
    stated: Stated | None = None


def seeded(path: Path, out: Path, other: Path | None = None, weaker: Path | None = None) -> Iterator[Fault]:
    """Write a checkpoint with every fault that its network can have, one file each; the sound one first.

    `other` is another checkpoint of the same network, whose batch statistics are put into this one; `weaker`
    one of worse features on these images, which lies in a file as the online encoder.
    """
    state, about = load_canonical(path)
    out.mkdir(parents=True, exist_ok=True)

    def written(name: str, cause: str | None, tensors: State, **claims: object) -> Fault:
        file = out / f"{name.replace(' ', '_')}.safetensors"
        save_canonical(file, tensors, about.model_copy(update=claims))
        return Fault(name, cause, file)

    yield written("sound", None, state)
    first = next(n for n, v in state.items() if v.dim() == 4 and v.shape[1] == 3)
    yield written("BGR weights", "channel order", state | {first: state[first].flip(1)})
    for name, mean, std in (
        ("claims one half", (0.5,) * 3, (0.5,) * 3),
        ("claims 0 to 1", (0.0,) * 3, (1.0,) * 3),
        ("claims 0 to 255", (0.485, 0.456, 0.406), (1 / 255,) * 3),
    ):
        if std != about.pixel_std:
            yield written(name, "mean/std", state, pixel_mean=mean, pixel_std=std)
    yield from _norms(state, other, written)
    yield from _networks(state, about, written)
    for factor in (2.0, 0.5) if about.backbone.input_size is None else ():
        size = int(about.input_size * factor)
        yield written(f"claims crops of {size} px", "size", state, input_size=size)
    torch.manual_seed(1)
    fresh: State = dict(build_backbone(about.backbone).state_dict())
    yield written("new weights", "random weights", fresh)
    yield written("new weights, statistics carried", "random weights", _with_statistics(fresh, state))
    pairs: list[tuple[str, str | None, State, State]] = [
        ("two encoders", None, state, _nearby(state)),
        ("new weights beside it", "encoder", _with_statistics(fresh, state), state),
    ]
    if weaker is not None:
        pairs.append(("weaker encoder beside it", "encoder", load_canonical(weaker)[0], state))
    stated = Stated(pixels=Pixels(about.pixel_mean, about.pixel_std), input_size=about.input_size)
    if about.backbone.is_resnet:
        stated = replace(stated, stem=about.backbone.stem)
    for name, cause, query, key in pairs:
        file = out / f"{name.replace(' ', '_')}.pth"
        torch.save({"state_dict": _moco(query, key)}, file)
        yield Fault(name, cause, file, stated)


def _norms(state: State, other: Path | None, written: Callable[..., Fault]) -> Iterator[Fault]:
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    if not norms:
        return
    cause = "batch-norm statistics"
    yield written("reset statistics", cause, _reset(state, norms))
    yield written("reset in the last half", cause, _reset(state, norms[len(norms) // 2 :]))
    if other is not None:
        theirs, _ = load_canonical(other)
        swapped = {n: theirs[n] if "running" in n else v for n, v in state.items()}
        yield written("another network's statistics", cause, swapped)


def _networks(state: State, about: CanonicalMetadata, written: Callable[..., Fault]) -> Iterator[Fault]:
    backbone = about.backbone
    if not backbone.is_resnet:
        return
    if backbone.stem == "cifar":
        for stem in ("cifar_maxpool", "cifar_no_relu"):
            claimed = backbone.model_copy(update={"stem": stem})
            yield written(f"claims {stem}", "stem", state, backbone=claimed)
    if backbone.arch == "resnet50":
        claimed = backbone.model_copy(update={"stride_in_1x1": True})
        yield written("claims stride in the 1x1", "stride", state, backbone=claimed)
    claimed = backbone.model_copy(update={"padding": "same"})
    yield written("claims TensorFlow's padding", "padding", state, backbone=claimed)


def _reset(state: State, norms: Sequence[str]) -> State:
    found = dict(state)
    for norm in norms:
        found[f"{norm}.running_mean"] = torch.zeros_like(state[f"{norm}.running_mean"])
        found[f"{norm}.running_var"] = torch.ones_like(state[f"{norm}.running_var"])
    return found


def _with_statistics(fresh: State, state: State) -> State:
    return {n: state[n] if "running" in n or "num_batches" in n else v for n, v in fresh.items()}


def _nearby(state: State) -> State:
    """Return what a momentum encoder would hold: the same weights up to a little."""
    generator = torch.Generator().manual_seed(0)
    return {
        n: v * (1 + 0.01 * torch.randn(v.shape, generator=generator)) if v.dim() > 1 else v
        for n, v in state.items()
    }


def _moco(query: State, key: State) -> State:
    both = {f"module.encoder_q.{n}": v for n, v in query.items()}
    return both | {f"module.encoder_k.{n}": v for n, v in key.items()}
