"""Recipes by name: YAML, merged over its bases and the command line's overrides, into typed models."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from carryover.configs.catalogue import Place, place_in_file, place_of, recipes_in, row_at
from carryover.configs.errors import UserError
from carryover.configs.keys import narrowed, sibling_keys, valid_keys, with_default_tags
from carryover.configs.merging import apply_overrides, interpolate, merge
from carryover.configs.nearest import nearest
from carryover.configs.paths import absolute, anchored
from carryover.configs.registry import Registry
from carryover.configs.story import filled, story, title_lines
from carryover.configs.tables import STORY_KEYS, TABLE_KEYS

KINDS: Registry[Any] = Registry("kind of recipe", "carryover.kinds")
"""The types of recipes by kind, each a Recipe or what stands for several; imported when asked for."""

for _kind, _where in {
    "pretrain": "carryover.pretrain.config:PretrainConfig",
    "transfer": "carryover.transfer.tasks.config:TransferConfig",
    "pipelines": "carryover.transfer.pipeline.config:PipelineConfig",
    "clusters": "carryover.transfer.pipeline.clusters:ClusterConfig",
}.items():
    KINDS.register(_kind, _where)


def load(kind: str, name_or_path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Load one recipe: its file over its bases, then `overrides`, validated.

    Parameters
    ----------
    kind
        "pretrain", "transfer", "pipelines" or "clusters".
    name_or_path
        A shipped recipe's name (``unigrad_r50_100ep``), the path of a YAML file of the user's own, or path
        and row where that file is a table (``mine.yaml:ROW``, see `configs.tables`).
    overrides
        ``dotted.key=value`` strings; the value is read as YAML.

    Returns
    -------
    A model of the kind's type, with `name` set to the name of the file or row.

    Raises
    ------
    UserError
        A missing or unreadable file, a missing or circular base, a table without its row, a duplicate or
        unknown key (answered with the nearest valid one), or a value that does not fit; each names the file,
        the row and the key.
    """
    place = find(kind, name_or_path)
    model = KINDS.get(kind)
    where = str(place)
    merged = interpolate(apply_overrides(_content(kind, place), overrides, model), where)
    merged["name"] = place.name
    merged = with_default_tags(model, merged)
    return _validate(model, merged, where, overrides, () if place.row is None else (*TABLE_KEYS, *STORY_KEYS))


def recipe_names(kind: str) -> list[str]:
    """List the shipped recipes of `kind` by name, tables' rows among them; not the bases."""
    return recipes_in(_shipped(kind))


def header(kind: str, name_or_path: str | Path) -> str:
    """Return a recipe's story: what it reproduces, the expected number, the reported cost.

    It is the comment that the file begins with. A row of a table has its own title above it. The keys
    `expected` and `cost` add what configs/published has (`configs.expected`), `note` what else is known.
    """
    place = find(kind, name_or_path)
    return story(place, lambda: _content(kind, place))


def title(kind: str, name_or_path: str | Path) -> str:
    """Return the first sentence of a recipe's story, on one line; no published number is looked up for it."""
    place = find(kind, name_or_path)
    return " ".join(line.strip() for line in title_lines(place, lambda: _content(kind, place)))


def find(kind: str, name_or_path: str | Path) -> Place:
    """Return where a recipe given by name or by path stands; raises UserError with the nearest name."""
    return place_of(kind, _shipped(kind), name_or_path)


_ADAPTERS: dict[int, tuple[Any, TypeAdapter[Any]]] = {}


def validate(model: Any, data: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Any:
    """Turn plain data into `model`; every problem is reported at once, by key, in one UserError."""
    return _validate(model, data, where, overrides, ())


def _validate(
    model: Any, data: Mapping[str, Any], where: str, overrides: Sequence[str], more: Sequence[str]
) -> Any:
    try:
        return _adapter(model).validate_python(data)
    except ValidationError as error:
        given = [o.split("=", 1)[0] for o in overrides]
        named = narrowed(model, data)
        problems = [_explain(named, e, given, more) for e in error.errors()]
        raise UserError(f"{where}:\n  " + "\n  ".join(problems)) from None


def dump(recipe: BaseModel, *, absolute_paths: bool = False) -> str:
    """Return the fully resolved recipe as YAML that `load` reads back to an equal model.

    With `absolute_paths` it can be read from anywhere.
    """
    plain = recipe.model_dump(mode="json", exclude={"name"})
    if absolute_paths:
        plain = anchored(plain, Path.cwd(), [type(recipe)])
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def kind_of(path: Path) -> str:
    """Return the kind of recipe that a file of the user's own is: the one that knows most of its keys.

    Only top-level keys count, its bases' included. Raises UserError where no kind has its base.
    """
    known: dict[str, int] = {}
    refused: list[str] = []
    for kind in KINDS.names():
        model = KINDS.get(kind)
        try:
            keys = _content(kind, find(kind, path))
        except UserError as error:
            refused.append(str(error))
        else:
            known[kind] = len(keys.keys() & set(sibling_keys(model, ["any"])))
    if not known:
        raise UserError("\n".join(dict.fromkeys(refused)))
    return max(known, key=known.__getitem__)


def _shipped(kind: str) -> Path:
    return _folder() / kind


@cache
def _folder() -> Path:
    return Path(str(resources.files("carryover.configs")))


def _adapter(model: Any) -> TypeAdapter[Any]:
    # Building an adapter for a large model costs tens of milliseconds; those of registered types are kept.
    if id(model) not in _ADAPTERS:
        _ADAPTERS[id(model)] = model, TypeAdapter(model)
    return _ADAPTERS[id(model)][1]


def _content(kind: str, place: Place, seen: tuple[Place, ...] = ()) -> dict[str, Any]:
    """Return a recipe's keys, its bases' included; for a row, those of its table's entries laid over them."""
    if place in seen:
        chain = " -> ".join(p.name for p in (*seen, place))
        raise UserError(f"{seen[0].path}: circular base: {chain}")
    row = row_at(place)
    merged: dict[str, Any] = {}
    # A shipped recipe's root is a proposal, relative to where the command is given.
    layers: Sequence[Mapping[str, Any]] = row.layers
    if not place.path.is_relative_to(_shipped(kind)):
        layers = [anchored(layer, place.path.parent.absolute(), [KINDS.get(kind)]) for layer in layers]
    for layer in layers:
        if layer.get("base") is not None:
            base = _content(kind, _base(kind, place, str(layer["base"])), (*seen, place))
            merged = merge(merged, base, [KINDS.get(kind)])
    for layer in layers:
        stated = {k: v for k, v in layer.items() if k != "base" and k not in STORY_KEYS}
        merged = merge(merged, stated, [KINDS.get(kind)])
    if place.row is not None and isinstance(merged.get("source"), str):
        merged["source"] = filled(row, lambda: merged, f"{place}: source", merged["source"])
    return merged


def _base(kind: str, place: Place, base: str) -> Place:
    """Return the place of a base: a file beside the recipe's own (``FILE`` or ``FILE:ROW``), or a name."""
    stem, _, of_table = base.partition(":")
    beside = place.path.parent / (stem if stem.endswith((".yaml", ".yml")) else f"{stem}.yaml")
    try:
        if beside.is_file():
            return place_in_file(beside, of_table or None)
        return find(kind, absolute(base, place.path.parent.absolute(), always=False))
    except UserError as error:
        raise UserError(f"{place.path}: base: {error}") from None


_IN_WORDS = {
    "tuple_type": "a list is expected, such as [20, 200]",
    "list_type": "a list is expected, such as [20, 200]",
    "dict_type": "keys and values are expected, such as {key: value}",
    "model_type": "keys and values are expected, such as {key: value}",
    "model_attributes_type": "keys and values are expected, such as {key: value}",
    "string_type": "a text is expected",
    "bool_type": "true or false is expected",
    "bool_parsing": "true or false is expected",
    "int_type": "a whole number is expected",
    "int_parsing": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "float_parsing": "a number is expected",
    "path_type": "a path is expected",
    "missing": "this key is required",
}
"""What pydantic calls by Python's types, in the words of YAML."""


def _explain(model: Any, error: Any, overridden: Sequence[str], more: Sequence[str]) -> str:
    location = list(error["loc"])
    if error["type"] == "extra_forbidden":
        wrong = str(location[-1])
        siblings = sibling_keys(model, location)
        guess = nearest(wrong, [*siblings, *more] if len(location) == 1 else siblings)
        if guess is None:
            # Not the key itself: it may be valid in another kind of recipe.
            nearby = (nearest(o, valid_keys(model)) for o in overridden if wrong in o.split("."))
            guess = next((g for g in nearby if g and g not in overridden), None)
        hint = f"; did you mean '{guess}'?" if guess else f"; the keys here are: {', '.join(siblings)}"
        return f"unknown key '{_dotted(model, location)}'{hint}"
    key = _dotted(model, location) or "recipe"
    message = _IN_WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
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
