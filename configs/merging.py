"""Precedence of recipe keys: override, then table row, then table, then bases.

OmegaConf is imported where it is needed: most recipes have neither interpolations nor overrides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from carryover.configs.errors import UserError
from carryover.configs.keys import field_types, named_by_tag, valid_keys
from carryover.configs.nearest import nearest


def merge(base: Mapping[str, Any], own: Mapping[str, Any], types: Sequence[Any]) -> dict[str, Any]:
    """Lay `own` over `base`: sections key by key, lists and values whole; `types` are what they may become.

    A section whose `name` says which one of several types it is (which method, which optimizer) is another
    thing altogether when that name changes, and is replaced, so that no parameter of the former is left
    behind in it. Where a name is only what people call it (a data set's) it is a key like any other.
    """
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            inside = field_types(types, key)
            same = not named_by_tag(inside) or value.get("name", old.get("name")) == old.get("name")
            merged[key] = merge(old, value, inside) if same else value
    return merged


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], model: Any) -> dict[str, Any]:
    """Lay ``dotted.key=value`` strings over `data`; raises UserError for one without a key or a value."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            guess = nearest(key, valid_keys(model))
            hint = f" (the nearest key is '{guess}')" if guess else ""
            raise UserError(f"'{override}': an override is written dotted.key=value{hint}")
        value = _read_value(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        data = merge(data, value, [model])
    return data


def interpolate(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Fill in OmegaConf's interpolations (``${roots.imagenet}``)."""
    if not _has_interpolations(data):
        return data
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {error.full_key or 'interpolation'}: {error.msg}") from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _has_interpolations(value: Any) -> bool:
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, Mapping):
        return any(_has_interpolations(v) for v in value.values())
    return isinstance(value, list) and any(_has_interpolations(v) for v in value)


def _read_value(text: str) -> Any:
    """Read an override's value as YAML; what is not YAML is text, and its type is checked later."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException):
        return text
    assert isinstance(plain, dict)
    return plain["value"]
