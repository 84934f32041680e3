"""Identity of work: one definition for ledger, records, states and published rows.

Work is the same when its protocol (the recipe's keys that can change a number), the version of the task or
method, the seed, the backbone and the data are. Where it ran, from which path and with how many workers is
incidental.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel

from carryover.configs.recipe import Incidental

FORMAT = 2
"""Version of how identities are hashed; 1 hashed every key of a recipe, its defaults included."""

_ABSENT: Any = object()
_DIGEST = re.compile(r"[0-9a-f]{64}(/|$)")


@dataclass(frozen=True)
class Difference:
    """One key in which two pieces of work differ, with the value of either; None where it is not stated."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True)
class Identity:
    """Everything that determines the result of one piece of work.

    Attributes
    ----------
    kind
        What is done: "pretrain", or a task's name.
    version
        The task's or method's version.
    stated
        The protocol with every key, as it is shown and compared.
    hashed
        The protocol without the keys that equal their default, so that a new key with a default is no change.
    parts
        Digests and other facts by name: "seed", "backbone", "data". None says that it is not known, which
        contradicts nothing.
    """

    kind: str
    version: int
    stated: Mapping[str, Any]
    hashed: Mapping[str, Any]
    parts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: BaseModel, *, kind: str, version: int, **parts: Any) -> "Identity":
        """Return the identity of carrying out `recipe`."""
        return cls(kind, version, protocol(recipe), without_defaults(recipe), parts)

    @property
    def hash(self) -> str:
        """SHA-256 (hex)."""
        content = {"kind": self.kind, "version": self.version, "protocol": self.hashed, **self.parts}
        return digest(content)

    def to_json(self) -> dict[str, Any]:
        """Return what a file keeps of it, so that a later difference can be named."""
        return {"kind": self.kind, "version": self.version, "protocol": dict(self.stated), **self.parts}

    def changed_from(self, there: Mapping[str, Any]) -> list[Difference]:
        """List in what this work differs from one whose `to_json` is `there`; [] for the same work."""
        defaults = leaves(self.stated).keys() - leaves(self.hashed).keys()
        found = differences(there, self.to_json(), {f"protocol.{key}" for key in defaults})
        # A recipe's task is the kind of its work.
        return [d for d in found if d.key != "kind" or not any(other.key == "task" for other in found)]


_SINCE_V1: Final[Mapping[str, object]] = {
    "orientation": "exif",
    "selection_split": None,
    "images": None,
    "annotations": None,
    "columns": {},
    "splits": {},
    "splits_seed": 0,
    "first_index": 0,
    "first_pixel": 1,
    "ambiguous_range": "fatal",
    "whole": False,
    "pool": None,
    "refit": False,
    "stride_in_1x1": False,
    "padding": "symmetric",
    "input_size": None,
    "zero_init_residual": False,
    "affine_last": True,
    "cosine_over": "after_warmup",
    "heads": None,
    "feature": "pooled",
    "label_fraction": 1.0,
    "label_seed": None,
    "algorithm": "sgd",
    "betas": [0.9, 0.999],
    "layer_decay": 1.0,
    "rise": 0,
    "rise_iters": 0,
    "decay_weights_only": False,
    "jitter": None,
    "square": None,
    "smoothing": 0.0,
    "attentive": None,
    "mix": None,
    "drop_last": False,
    "end": 0.0,
    "interpolation": "bilinear",
    "rand_augment": None,
    "erase": None,
    "tokens": True,
    "drop_path": None,
    "patch_size": None,
    "transformer": None,
    "output_norm": False,
    "prefix_tokens": None,
    "level_norm": "none",
    "frozen": False,
    "blocks": None,
    "head_convs": 1,
    "attention": None,
    "window_size": 0,
    "global_blocks": None,
    "relative_positions": False,
}
"""Keys that version 1 did not know, and their defaults: its hashes were of all keys, defaults included."""

_INCIDENTAL_SINCE_V1: Final = frozenset(
    {
        "device",
        "test_in_train",
        "two_labels",
        "duplicate_image",
        "below_pixel",
        "box_mask_mismatch",
        "absent_class",
        "untested_class",
        "counted_from_zero",
        "repeated_object",
        "repeated_image",
        "lost_masks",
        "lossy_mask",
        "single_class",
        "interpolated_class",
        "palette_order",
        "online",
        "watch",
    }
)
"""Keys that version 1 did not know and that change no number, whatever they say."""


def as_of_v1(plain: Any) -> Any:
    """Return a recipe's plain values without the newer keys that change nothing."""
    if isinstance(plain, list | tuple):
        return [as_of_v1(value) for value in plain]
    if not isinstance(plain, Mapping):
        return plain
    newer = {key for key, default in _SINCE_V1.items() if key in plain and plain[key] == default}
    newer |= _INCIDENTAL_SINCE_V1
    return {key: as_of_v1(value) for key, value in plain.items() if key not in newer}


def protocol(recipe: BaseModel) -> dict[str, Any]:
    """Return the recipe as plain data without its incidental fields."""
    return _plain(recipe, sparse=False)


def without_defaults(recipe: BaseModel) -> dict[str, Any]:
    """Return the recipe's protocol without the keys that equal their default.

    What tells the members of a union apart (a method's or an optimizer's name) always stays.
    """
    return _plain(recipe, sparse=True)


def recipe_hash(recipe: BaseModel) -> str:
    """Return the SHA-256 (hex) of what the recipe does, whatever it is called and wherever it runs."""
    return digest({"protocol": without_defaults(recipe)})


def digest(content: Mapping[str, Any]) -> str:
    """Hash plain data, the version of the hash's format included."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Sequence[str] | set[str] = ()
) -> list[Difference]:
    """Compare two pieces of plain data leaf by leaf.

    `defaults` are the keys of `new` that equal their default: `old` need not state them, as it may have been
    written before they existed. A leaf that is None at its top level ("data", "backbone") is unknown.
    """
    before, now = leaves(old), leaves(new)
    found = []
    for key in dict.fromkeys((*now, *before)):
        was, is_ = before.get(key, _ABSENT), now.get(key, _ABSENT)
        unknown = "." not in key and (was in (None, _ABSENT) or is_ in (None, _ABSENT))
        if was == is_ or unknown or (was is _ABSENT and key in defaults):
            continue
        if was in (None, _ABSENT) and is_ in (None, _ABSENT):
            # A section that was none, or is none now: its keys say so.
            continue
        found.append(
            Difference(
                key.removeprefix("protocol."),
                None if was is _ABSENT else was,
                None if is_ is _ABSENT else is_,
            )
        )
    return found


def incidental_fields(model: type[BaseModel]) -> Iterator[str]:
    """Yield the names of the fields of one model that are no part of an identity."""
    return (name for name, info in model.model_fields.items() if Incidental in info.metadata)


def _plain(recipe: BaseModel, sparse: bool) -> dict[str, Any]:
    dumped = recipe.model_dump(mode="json")
    kept = {}
    for name, info in type(recipe).model_fields.items():
        if Incidental in info.metadata:
            continue
        value = getattr(recipe, name)
        optional = not info.is_required() and not _is_tag(info.annotation)
        if sparse and optional and value == info.get_default(call_default_factory=True):
            continue
        kept[name] = _plain_value(value, dumped[name], sparse)
    return kept


def _plain_value(value: Any, dumped: Any, sparse: bool) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value, sparse)
    if isinstance(value, list | tuple):
        return [_plain_value(v, d, sparse) for v, d in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {str(k): _plain_value(v, dumped[str(k)], sparse) for k, v in value.items()}
    return dumped


def _is_tag(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested plain data by dotted key."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            found |= leaves(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, str) and _DIGEST.match(value):
        return value[:8] + value[64:]
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
