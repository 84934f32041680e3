"""Recipes by name: YAML, merged over its bases and the command line's overrides, into typed models."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError

from carryover.configs.errors import UserError
from carryover.configs.keys import (
    field_types,
    named_by_tag,
    nearest,
    sibling_keys,
    valid_keys,
    with_default_tags,
)

_TYPES: dict[str, Any] = {}


def register(kind: str, model: Any) -> None:
    """Declare that recipes of `kind` are of type `model` (a Recipe, or a discriminated union of them)."""
    _TYPES[kind] = model


def load(kind: str, name_or_path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Load one recipe: its file over its bases, then `overrides`, validated.

    Parameters
    ----------
    kind
        "pretrain", "transfer", "pipelines" or "clusters"; the floor that owns the kind registers its type.
    name_or_path
        A shipped recipe's name (``unigrad_r50_100ep``) or the path of a YAML file of the user's own.
    overrides
        ``dotted.key=value`` strings; the value is read as YAML.

    Returns
    -------
    The model that was registered for `kind`, with `name` set to the file's name.

    Raises
    ------
    UserError
        A missing or unreadable file, a missing or circular base, a duplicate or unknown key (answered with
        the nearest valid one), or a value that does not fit; each names the file and the key.
    """
    path = find(kind, name_or_path)
    model = _TYPES[kind]
    merged = _resolved(_apply_overrides(_with_bases(kind, path, ()), overrides, model), path)
    merged["name"] = path.stem
    merged = with_default_tags(model, merged)
    return validate(model, merged, str(path), overrides)


def recipe_names(kind: str) -> list[str]:
    """List the shipped recipes of `kind` by name; files that start with an underscore are bases only."""
    return sorted(p.stem for p in _shipped(kind).glob("*.yaml") if not p.name.startswith("_"))


def header(kind: str, name_or_path: str | Path) -> str:
    """Return a recipe's header comment: what it reproduces, the expected number, the reported cost."""
    lines = []
    for line in find(kind, name_or_path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def find(kind: str, name_or_path: str | Path) -> Path:
    """Return the file of a recipe given by name or by path; raises UserError with the nearest name."""
    given = Path(name_or_path)
    if given.suffix in (".yaml", ".yml"):
        if given.is_file():
            return given
        raise UserError(f"{given}: no such recipe file")
    shipped = _shipped(kind) / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    names = recipe_names(kind)
    guess = nearest(str(name_or_path), names)
    hint = f"; did you mean '{guess}'?" if guess else f"; there are: {', '.join(names) or 'none'}"
    raise UserError(f"no {kind} recipe is called '{name_or_path}'{hint}")


def validate(model: Any, data: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Any:
    """Turn plain data into `model`; every problem is reported at once, by key, in one UserError."""
    try:
        return _adapter(model).validate_python(data)
    except ValidationError as error:
        given = [o.split("=", 1)[0] for o in overrides]
        problems = [_explain(model, e, given) for e in error.errors()]
        raise UserError(f"{where}:\n  " + "\n  ".join(problems)) from None


def dump(recipe: BaseModel) -> str:
    """Return the fully resolved recipe as YAML that `load` reads back to an equal model."""
    plain = recipe.model_dump(mode="json", exclude={"name"})
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def kind_of(path: Path) -> str:
    """Return the kind of recipe that a file of the user's own is: the one that knows most of its keys.

    Only top-level keys count, its bases' included. Raises UserError where no kind has its base.
    """
    known: dict[str, int] = {}
    refused: list[str] = []
    for kind, model in _TYPES.items():
        try:
            keys = _with_bases(kind, find(kind, path), ())
        except UserError as error:
            refused.append(str(error))
        else:
            known[kind] = len(keys.keys() & set(sibling_keys(model, ["any"])))
    if not known:
        raise UserError("\n".join(dict.fromkeys(refused)))
    return max(known, key=known.__getitem__)


def _shipped(kind: str) -> Path:
    if kind not in _TYPES:
        raise KeyError(f"recipes of kind {kind!r} have no type yet: import the module that registers it")
    return Path(str(resources.files("carryover.configs"))) / kind


@cache
def _cached_adapter(key: int) -> TypeAdapter[Any]:
    return TypeAdapter(next(m for m in _TYPES.values() if id(m) == key))


def _adapter(model: Any) -> TypeAdapter[Any]:
    # Building an adapter for a large union costs tens of milliseconds; registered types are kept.
    return _cached_adapter(id(model)) if any(m is model for m in _TYPES.values()) else TypeAdapter(model)


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
    except yaml.constructor.ConstructorError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{path}: {error.problem}{line}") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    plain = OmegaConf.to_container(loaded)
    if not isinstance(plain, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(plain).__name__}")
    return {str(k): v for k, v in plain.items()}


def _with_bases(kind: str, path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        chain = " -> ".join(p.stem for p in (*seen, path))
        raise UserError(f"{seen[0]}: circular base: {chain}")
    own = _read(path)
    base = own.pop("base", None)
    if base is None:
        return own
    beside = path.parent / f"{base}.yaml"
    try:
        base_path = beside if beside.is_file() else find(kind, base)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    return merge(_with_bases(kind, base_path, (*seen, path)), own, [_TYPES[kind]])


def merge(base: Mapping[str, Any], own: Mapping[str, Any], types: Sequence[Any]) -> dict[str, Any]:
    """Lay `own` over `base`: sections key by key, lists and values whole; `types` are what they may become.

    A section whose `name` says which one of several types it is (which method, which optimiser) is another
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


def _apply_overrides(data: dict[str, Any], overrides: Sequence[str], model: Any) -> dict[str, Any]:
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


def _read_value(text: str) -> Any:
    """Read an override's value as YAML; what is not YAML is text, and its type is checked later."""
    try:
        plain = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException):
        return text
    assert isinstance(plain, dict)
    return plain["value"]


def _resolved(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fill in OmegaConf's interpolations (``${roots.imagenet}``)."""
    try:
        plain = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or 'interpolation'}: {error.msg}") from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _explain(model: Any, error: Any, overridden: Sequence[str]) -> str:
    location = list(error["loc"])
    if error["type"] == "extra_forbidden":
        wrong = str(location[-1])
        siblings = sibling_keys(model, location)
        guess = nearest(wrong, siblings)
        if guess is None:
            # Not the key itself: it may be valid in another kind of recipe.
            nearby = (nearest(o, valid_keys(model)) for o in overridden if wrong in o.split("."))
            guess = next((g for g in nearby if g and g not in overridden), None)
        hint = f"; did you mean '{guess}'?" if guess else f"; the keys here are: {', '.join(siblings)}"
        return f"unknown key '{_dotted(model, location)}'{hint}"
    key = _dotted(model, location) or "recipe"
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    shown = (
        ""
        if isinstance(value, dict | list | BaseModel) or error["type"] == "missing"
        else f" (got {value!r})"
    )
    return f"{key}: {message[0].lower()}{message[1:]}{shown}" if message else key


def _dotted(model: Any, location: Sequence[str | int]) -> str:
    """Drop the union tags that pydantic puts into a location, so that the user reads his own keys."""
    known = {k.rsplit(".", 1)[-1] for k in valid_keys(model)}
    kept = [s for i, s in enumerate(location) if i == len(location) - 1 or isinstance(s, int) or s in known]
    return ".".join(str(s) for s in kept)
