"""One tensor's name in every layout a ResNet is stored under; torchvision's is the common one."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Literal

Scheme = Literal["torchvision", "sequential", "detectron2", "mayaku", "transformers", "own"]

_D2_CONV = re.compile(r"(stem|res(\d)\.(\d+))\.(conv\d|shortcut)\.(?:(norm)\.)?(\w+)")
_TV_PART = re.compile(r"(?:layer(\d)\.(\d+)\.)?(conv(\d)|bn(\d)|downsample\.([01]))\.(\w+)")
_STAGE_CONV = {
    "torchvision": re.compile(r"((?:.*\.)?)layer([1-4])\.\d+\.conv\d\.weight"),
    "sequential": re.compile(r"((?:.*\.)?)(\d)\.\d+\.conv\d\.weight"),
    "detectron2": re.compile(r"((?:.*\.)?)res([2-5])\.\d+\.conv\d\.weight"),
    "transformers": re.compile(
        r"((?:.*\.)?)encoder\.stages\.([0-3])\.layers\.\d+\.layer\.\d\.convolution\.weight"
    ),
}
_TRANSFORMERS = re.compile(
    r"(?:encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|(shortcut))|embedder\.embedder)"
    r"\.(convolution|normalization)\.(\w+)"
)
# Words that wrappers of whole networks and of blocks put into names: torch.compile, FSDP, checkpointing.
_WRAPPED = re.compile(
    r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)(?=\.)"
)
_INNER_MODULE = re.compile(
    r"((?:^|\.)(?:layer[1-4]|res[2-5]|blocks|stages|layers|layer|features)(?:\.\d+)*)\.module(?=\.)"
)
_MOBILE_FIRST = re.compile(r"((?:.*\.)?)features\.0\.0\.weight")


def to_detectron2(name: str) -> str:
    """torchvision's name of a ResNet tensor -> Detectron2's, without the prefix of the model that holds it.

    ``conv1`` -> ``stem.conv1``, ``layer1.0.bn2`` -> ``res2.0.conv2.norm``, ``downsample.0`` -> ``shortcut``.
    Raises KeyError for a name that no ResNet has.
    """
    match = _TV_PART.fullmatch(name)
    if match is None:
        raise KeyError(name)
    stage, block, _, conv, norm, shortcut, kind = match.groups()
    place = f"res{int(stage) + 1}.{block}" if stage else "stem"
    layer = "shortcut" if shortcut else f"conv{conv or norm}"
    is_norm = bool(norm) or shortcut == "1"
    return f"{place}.{layer}.norm.{kind}" if is_norm else f"{place}.{layer}.{kind}"


def from_detectron2(name: str) -> str | None:
    """Detectron2's name (without the model's prefix) -> torchvision's; None for no backbone tensor."""
    match = _D2_CONV.fullmatch(name)
    if match is None:
        return None
    _, stage, block, layer, norm, kind = match.groups()
    place = f"layer{int(stage) - 1}.{block}." if stage else ""
    if layer == "shortcut":
        return f"{place}downsample.{1 if norm else 0}.{kind}"
    return f"{place}{'bn' if norm else 'conv'}{layer[-1]}.{kind}"


def from_mayaku(name: str) -> str | None:
    """mayaku's name of a ResNet tensor -> torchvision's; None for no backbone tensor.

    Its stem is a Sequential, its stages are torchvision's under Detectron2's numbers.
    """
    first, _, rest = name.partition(".")
    if first == "stem":
        number, _, kind = rest.partition(".")
        return f"{ {'0': 'conv1', '1': 'bn1'}[number] }.{kind}" if number in ("0", "1") else None
    return f"layer{int(first[3:]) - 1}.{rest}" if re.fullmatch(r"res[2-5]", first) else None


def from_sequential(stages: Collection[int]) -> Callable[[str], str | None]:
    """Names of an nn.Sequential of a ResNet's children -> torchvision's.

    `stages` are the four indices that hold residual blocks: 4..7 for torchvision's children, fewer where an
    activation or the pooling has no module of its own. The stem convolution is 0 and its norm 1.
    """
    ordered = sorted(stages)
    places = {str(index): f"layer{stage}" for stage, index in enumerate(ordered, 1)} | {
        "0": "conv1",
        "1": "bn1",
    }

    def rename(name: str) -> str | None:
        first, _, rest = name.partition(".")
        return f"{places[first]}.{from_torchvision(rest)}" if first in places else None

    return rename


def from_torchvision(name: str) -> str:
    """torchvision's own names, with the `shortcut` of CIFAR ResNets read as `downsample`."""
    return name.replace("shortcut.", "downsample.")


def from_transformers(name: str) -> str | None:
    """Hugging Face's name of a ResNet tensor -> torchvision's; None for no backbone tensor."""
    match = _TRANSFORMERS.fullmatch(name)
    if match is None:
        return None
    stage, block, layer, shortcut, part, kind = match.groups()
    norm = part == "normalization"
    if stage is None:
        return f"{'bn1' if norm else 'conv1'}.{kind}"
    place = f"layer{int(stage) + 1}.{block}"
    if shortcut:
        return f"{place}.downsample.{1 if norm else 0}.{kind}"
    return f"{place}.{'bn' if norm else 'conv'}{int(layer) + 1}.{kind}"


def seen_through(names: Collection[str]) -> dict[str, str]:
    """Names without the words that wrappers put into them -> the names as they are in the file.

    Names that would be the same without them stay as they are.
    """
    plain = {name: _INNER_MODULE.sub(r"\1", _WRAPPED.sub("", name).removeprefix(".")) for name in names}
    counts = Counter(plain.values())
    return {new if counts[new] == 1 else name: name for name, new in plain.items()}


def stage_prefixes(names: Collection[str]) -> dict[tuple[str, Scheme], set[int]]:
    """Every place of a file where residual stages lie: (prefix, naming scheme) -> the stage numbers seen.

    A place counts when it has at least three stages, so that one lost or renamed tensor does not hide it.
    """
    found: dict[tuple[str, Scheme], set[int]] = {}
    for name in names:
        for scheme, pattern in _STAGE_CONV.items():
            if match := pattern.fullmatch(name):
                found.setdefault((match[1], scheme), set()).add(int(match[2]))  # type: ignore[arg-type]
                break
        match = _MOBILE_FIRST.fullmatch(name)
        # torchvision's ConvNeXts have features too, and scales in them.
        if match and f"{match[1]}features.1.0.layer_scale" not in names:
            found[match[1], "torchvision"] = {1, 2, 3, 4}
    return {place: stages for place, stages in found.items() if len(stages) >= 3}
