"""Whose file it is and which encoders lie in it, from the file's own keys (never from its name)."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.huggingface import MAKER, is_transformers
from carryover.core.backbones.naming import (
    Scheme,
    from_detectron2,
    from_mayaku,
    from_sequential,
    from_torchvision,
    from_transformers,
    seen_through,
    stage_prefixes,
)
from carryover.core.backbones.reading import Contents

Role = Literal["online", "momentum", "student", "teacher"]
SAME_ROLE: dict[str, str] = {
    "online": "student",
    "student": "online",
    "momentum": "teacher",
    "teacher": "momentum",
}

# Wrappers that add a word to every name and mean nothing: DDP, DataParallel (also both), torch.compile.
_WRAPPERS = {"module", "_orig_mod"}
_MOMENTUM_WORDS = {
    "encoder_k",
    "momentum_encoder",
    "momentum_backbone",
    "backbone_momentum",
    "moco_encoder",
    "target_net",
    "target_network",
    "target_encoder",
    "target_backbone",
    "ema",
    "ema_model",
    "model_ema",
    "state_dict_ema",
}
_TEACHER_WORDS = {"teacher", "teacher_backbone"}
_STUDENT_WORDS = {"student", "student_backbone"}


@dataclass(frozen=True)
class Encoder:
    """One backbone in a file: where it lies, in which role, and its tensors under torchvision's names.

    `tensors` maps torchvision names to the file's full names, `others` lists the names under the same prefix
    that belong to no ResNet (classifier, projector), `stages` are the numbers that the file gives the
    residual stages. Of scheme "own" `tensors` are all those under the prefix, by the maker's own names.
    """

    prefix: str
    role: Role
    scheme: Scheme
    tensors: Mapping[str, str]
    others: tuple[str, ...]
    stages: tuple[int, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The prefix without the words that wrappers add."""
        return tuple(word for word in self.prefix.split(".") if word and word not in _WRAPPERS)


@dataclass(frozen=True)
class _Signature:
    """A maker's file: the words of the prefix its encoder lies under, and keys that must lie beside it."""

    maker: str
    words: str
    scheme: Scheme | None = "torchvision"
    beside: str | None = None
    also: str | None = None

    def fits(self, encoder: Encoder, names: Collection[str], entries: Collection[str]) -> bool:
        return (
            self.scheme in (encoder.scheme, None)
            and re.fullmatch(self.words, ".".join(encoder.words)) is not None
            and all(
                any(re.match(pattern, n) for n in (*names, *entries))
                for pattern in (self.beside, self.also)
                if pattern is not None
            )
        )


UNKNOWN_MAKER = "unknown maker"
_TORCHVISION_NAMES = "torchvision names in a training checkpoint"
_RELEASE = "torchvision / timm / VICReg release"
SAY_NO_METHOD = frozenset({UNKNOWN_MAKER, _TORCHVISION_NAMES, _RELEASE, "PyTorch Lightning"})
"""Layouts of files that anybody writes: they do not tell how a network was trained."""
_DINOV2 = r"((student|teacher)\.backbone|teacher|model)?"
# The first that fits names the maker.
_SIGNATURES = (
    _Signature("MoCo v1/v2", r"state_dict\.encoder_[qk]"),
    _Signature(
        "MoCo v3", r"state_dict\.(base|momentum)_encoder", beside=r"state_dict\.(module\.)*base_encoder\."
    ),
    _Signature("UniGrad", r"model\.(momentum_)?encoder", scheme="sequential"),
    _Signature("iBOT", r"(student|teacher)\.backbone", scheme="own", beside=r"(student|teacher)\..*mask"),
    _Signature("DINO", r"(student|teacher)\.backbone", scheme=None),
    _Signature("MoCo v3", r"state_dict\.(base|momentum)_encoder", scheme="own"),
    _Signature(
        "I-JEPA",
        r"(target_)?encoder",
        scheme="own",
        beside=r"target_encoder\.",
        also=r"predictor\.(module\.)*predictor_blocks\.",
    ),
    _Signature("MAE", r"model", scheme="own", beside=r"model\.(module\.)*decoder_"),
    _Signature(
        "DINOv2", r"((student|teacher)\.backbone|teacher|model)?", scheme="own", beside=r".*register_tokens$"
    ),
    _Signature(
        "DINOv2", r"((student|teacher)\.backbone|teacher)?", scheme="own", beside=r".*(^|\.)mask_token$"
    ),
    _Signature("mayaku", r"model\.backbone\.bottom_up", scheme="own", beside=r"mayaku$"),
    _Signature(
        "torchvision", r"(model|state_dict)?", scheme="own", beside=r"(.+\.)?features\.1\.0\.layer_scale$"
    ),
    _Signature("ConvNeXt", r"(model)?", scheme="own", beside=r"(.+\.)?downsample_layers\."),
    _Signature("timm", r"(state_dict(_ema)?)?", scheme="own"),
    _Signature("MMSelfSup / mmpretrain", r"state_dict(\.[\w.]+)?", beside=r"(meta|message_hub|author)$"),
    _Signature("VISSL", r"(classy_state_dict\..*|.*)_feature_blocks"),
    _Signature("lightly", r"state_dict\.[\w.]+", scheme="sequential"),
    _Signature("lightly", r"state_dict\.(backbone_momentum|student_backbone|teacher_backbone)"),
    _Signature("lightly", r"state_dict\.backbone", beside=r"state_dict\.backbone_momentum\."),
    _Signature(
        "solo-learn",
        r"state_dict\.(momentum_)?(backbone|encoder)",
        beside=r"pytorch-lightning_version$",
        # Its methods train a linear classifier beside the network.
        also=r"state_dict\.(momentum_)?(projector|classifier)\.",
    ),
    _Signature("PyTorch Lightning", r"state_dict\.[\w.]+", scheme=None, beside=r"pytorch-lightning_version$"),
    _Signature("SimSiam", r"state_dict\.encoder", beside=r"state_dict\.(module\.)*predictor\."),
    _Signature("Barlow Twins / VICReg", r"model\.backbone", beside=r"model\.(module\.)*projector\."),
    _Signature(
        "SwAV / DeepCluster v2",
        r"(state_dict)?",
        beside=r"(state_dict\.)?(module\.)*(projection_head|prototypes)",
    ),
    _Signature("BYOL", r".*(online|target)_(net|network|encoder|backbone)\b.*"),
    _Signature("Detectron2", r".*", scheme="detectron2"),
    _Signature("mayaku", r".*", scheme="mayaku"),
    _Signature("torchvision detector", r"(.+\.)?backbone\.body"),
    _Signature("timm", r"state_dict(_ema)?", beside=r"arch$|state_dict_ema\."),
    _Signature(_RELEASE, r""),
    _Signature(_TORCHVISION_NAMES, r"(state_dict|model)"),
)


EVALUATED: Mapping[str, Role] = {
    "DINO": "teacher",
    "iBOT": "teacher",
    "DINOv2": "teacher",
    "I-JEPA": "momentum",
}
"""Encoder that a method's authors evaluate; unknown for every other method."""


def own_encoders(
    contents: Contents, anchors: Collection[str], children: Collection[str] = ()
) -> tuple[Encoder, ...]:
    """Find every place of a file under which one of the tensors `anchors` lies, in the file's order.

    `children` are the network's own modules: a place inside one of them is none.
    """
    names = seen_through(contents.tensors)
    prefixes = dict.fromkeys(
        name[: -len(anchor)]
        for name in names
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    )
    return tuple(
        Encoder(
            prefix,
            _role(prefix),
            "own",
            {n[len(prefix) :]: full for n, full in names.items() if n.startswith(prefix)},
            (),
        )
        for prefix in prefixes
        if not any(
            prefix != other and prefix.startswith(other) and prefix[len(other) :].split(".")[0] in children
            for other in prefixes
        )
    )


def encoders(contents: Contents) -> tuple[Encoder, ...]:
    """Find every ResNet and small network in a file, in the file's order."""
    names = seen_through(contents.tensors)
    found = []
    for (prefix, scheme), stages in stage_prefixes(names).items():
        if scheme == "sequential" and sorted(stages) != list(range(min(stages), min(stages) + 4)):
            continue
        if scheme == "detectron2" and f"{prefix}stem.0.weight" in names:
            scheme = "mayaku"
        found.append(_encoder(names, prefix, scheme, stages))
    return tuple(found)


def maker_of(encoder: Encoder, contents: Contents) -> str:
    """Name the maker whose layout a file has; "unknown maker" where the names fit none."""
    if encoder.scheme == "transformers" or is_transformers(encoder.tensors):
        return MAKER
    names = list(seen_through(contents.tensors))
    for signature in _SIGNATURES:
        if signature.fits(encoder, names, list(contents.entries)):
            return signature.maker
    return UNKNOWN_MAKER


def choose(found: tuple[Encoder, ...], wanted: str | None, contents: Contents, where: Path) -> Encoder:
    """Choose the encoder to carry.

    `wanted` is a role ("online", "momentum", "student", "teacher"; online and student mean the same, so do
    momentum and teacher) or a prefix as `inspect` prints it. By default the one that the method's authors
    evaluate, where the method is known, else the online encoder; a student or teacher is not guessed.

    Raises
    ------
    UserError
        When no encoder fits, or when several different ones do: each is listed.
    """
    tensors = contents.tensors
    if not found:
        raise UserError(f"{where}: {_no_resnet(list(tensors))}")
    menu = ", ".join(f"{e.role} at '{e.prefix}'" for e in found)
    if wanted is None:
        wanted = _usual(found, contents, where, menu)
    by_prefix = [e for e in found if wanted.rstrip(".") == e.prefix.rstrip(".")]
    fitting = by_prefix or [e for e in found if wanted in (e.role, SAME_ROLE[e.role])]
    if not fitting:
        raise UserError(f"{where}: no '{wanted}' encoder in this file; it holds {menu}")
    first = fitting[0]
    if any(not _same(first, other, tensors) for other in fitting[1:]):
        raise UserError(
            f"{where}: several different backbones could be meant: {menu}; choose with --encoder PREFIX"
        )
    return first


def _usual(found: tuple[Encoder, ...], contents: Contents, where: Path, menu: str) -> str:
    roles = {encoder.role for encoder in found}
    known = {EVALUATED.get(maker_of(encoder, contents)) for encoder in found} - {None}
    if "teacher" not in roles:
        if "momentum" in known & roles:
            return "momentum"
        return "online" if roles & {"online", "student"} else "momentum"
    if len(roles) == 1 or "teacher" in known:
        return "teacher"
    raise UserError(
        f"{where}: holds {menu}, and it is not known whose method this is, so not which of them its authors"
        " evaluate; choose with --encoder student or --encoder teacher"
    )


def _encoder(names: Mapping[str, str], prefix: str, scheme: Scheme, stages: set[int]) -> Encoder:
    rename = {
        "torchvision": from_torchvision,
        "sequential": from_sequential(stages) if scheme == "sequential" else from_torchvision,
        "detectron2": from_detectron2,
        "mayaku": from_mayaku,
        "transformers": from_transformers,
    }[scheme]
    places = [prefix]
    if scheme == "detectron2" and 5 not in stages:
        # In a C4 model res5 is the head of the regions of interest, beside the backbone.
        places.append(re.sub(r"backbone\.$", "roi_heads.", prefix))
    carried: dict[str, str] = {}
    others = []
    for name, full in names.items():
        place = next((p for p in reversed(places) if name.startswith(p)), None)
        if place is None:
            continue
        renamed = rename(name[len(place) :])
        if renamed is None or not _is_backbone(renamed):
            others.append(full)
        else:
            carried[renamed] = full
    return Encoder(prefix, _role(prefix), scheme, carried, tuple(others), tuple(sorted(stages)))


def _is_backbone(name: str) -> bool:
    # Stems and norms that no supported backbone has are kept in, so that the error raised later names them.
    return re.match(r"(conv1|bn1|gn1|ln1|stem|layer\d|features)\.", name) is not None


def _role(prefix: str) -> Role:
    words = set(prefix.split("."))
    if words & _TEACHER_WORDS:
        return "teacher"
    if words & _STUDENT_WORDS:
        return "student"
    return "momentum" if words & _MOMENTUM_WORDS else "online"


def _same(one: Encoder, other: Encoder, tensors: Mapping[str, Tensor]) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        tensors[one.tensors[name]].equal(tensors[other.tensors[name]]) for name in one.tensors
    )


def _no_resnet(names: list[str]) -> str:
    if not names:
        return "holds no tensors at all"
    if any(
        re.search(r"(patch_embed|attn\.qkv|self_attention|encoder\.layer\.\d+\.attention)", n) for n in names
    ):
        return (
            "a vision transformer that none of the usual ones fits; say which of timm's models it is:"
            " --architecture timm/NAME"
        )
    if any(n.endswith("_w") and "res2_0_branch" in n for n in names):
        return "a Caffe2 / Detectron1 pickle (BGR weights, folded BatchNorm), which carryover does not carry"
    shown = ", ".join(f"'{n}'" for n in names[:3])
    return (
        f"no ResNet under any known naming among its {len(names)} tensors (the first: {shown}); expected "
        "names like 'layer1.0.conv1.weight', '4.0.conv1.weight' or 'res2.0.conv1.weight', or say which of"
        " timm's models it is: --architecture timm/NAME"
    )
