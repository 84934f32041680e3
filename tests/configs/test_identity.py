"""What makes two pieces of work the same: every key is protocol or incidental, defaults do not count."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from carryover.configs import Identity, Incidental, Section, load, protocol, recipe_hash, recipe_names
from carryover.configs.identity import differences, digest, incidental_fields, without_defaults
from tests.configs.models import recipe_models

MODELS = recipe_models()
DOCUMENT = Path(__file__).parents[2] / "docs" / "identity.md"


def filled(model: type[BaseModel]) -> BaseModel:
    """An instance with every required field filled in somehow."""
    required = {n: _some(f.annotation) for n, f in model.model_fields.items() if f.is_required()}
    return model.model_construct(**required)


def _some(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return filled(annotation)
    if get_origin(annotation) is Annotated:
        return _some(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) in (tuple, list):
        return (_some(get_args(annotation)[0]),)
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    return _some(arguments[0]) if arguments else {int: 3, float: 0.5, str: "text"}.get(annotation, Path("x"))


def another(value: Any) -> Any:
    """A value that is told from `value` in JSON."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return (*value, 7)
    return "another" if value != "another" else "yet another"


@pytest.mark.filterwarnings("ignore::UserWarning:pydantic.*")
def test_every_field_is_protocol_or_incidental() -> None:
    for name, model in MODELS.items():
        base, incidental = filled(model), set(incidental_fields(model))
        for field in model.model_fields:
            changed = base.model_copy(update={field: another(getattr(base, field))})
            counts = digest(without_defaults(changed)) != digest(without_defaults(base))
            assert counts == (field not in incidental), f"{name}.{field}"


def test_both_lists_are_stated_in_one_document() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) ?\|(.*)\|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    stated = {name: (_names(first), _names(second)) for name, first, second in rows}
    found = {}
    for name, model in MODELS.items():
        incidental = list(incidental_fields(model))
        found[name] = ([f for f in model.model_fields if f not in incidental], incidental)
    assert stated == found, "docs/identity.md is behind the models"


def _names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(",") if name.strip()]


def test_what_is_incidental_changes_no_hash_of_a_shipped_recipe() -> None:
    for kind, overrides in (
        ("pretrain", ["workers=1", "log_every=3", "checkpoint_every=2", "data.root=/elsewhere"]),
        ("transfer", ["workers=1", "log_every=3", "data.root=/elsewhere"]),
    ):
        name = "unigrad_r50_100ep" if kind == "pretrain" else "voc0712_c4_24k"
        assert recipe_hash(load(kind, name)) == recipe_hash(load(kind, name, overrides))


def test_no_two_shipped_recipes_of_other_protocols_share_a_hash() -> None:
    for kind in ("pretrain", "transfer"):
        recipes = [load(kind, name) for name in recipe_names(kind)]
        by_hash: dict[str, Any] = {}
        for recipe in recipes:
            seen = by_hash.setdefault(recipe_hash(recipe), protocol(recipe))
            assert seen == protocol(recipe), recipe.name


class _Red(Section):
    name: Literal["red"] = "red"
    depth: int = 1


class _Blue(Section):
    name: Literal["blue"] = "blue"
    depth: int = 1


class _Paint(Section):
    color: _Red | _Blue = _Blue(depth=4)
    coats: int = 2
    brush: Annotated[str, Incidental] = "flat"


class _PaintOfTomorrow(_Paint):
    varnish: bool = False


def identity(recipe: BaseModel, version: int = 1, **parts: Any) -> Identity:
    return Identity.of(recipe, kind="paint", version=version, **parts)


def test_a_new_key_with_a_default_changes_nothing() -> None:
    today, tomorrow = identity(_Paint(coats=3)), identity(_PaintOfTomorrow(coats=3))
    assert today.hash == tomorrow.hash
    assert not tomorrow.changed_from(today.to_json())
    varnished = identity(_PaintOfTomorrow(coats=3, varnish=True))
    assert [str(d) for d in varnished.changed_from(today.to_json())] == ["varnish: not stated -> true"]


def test_members_of_a_union_are_told_apart_by_their_names_alone() -> None:
    red, blue = identity(_Paint(color=_Red())), identity(_Paint(color=_Blue()))
    assert red.hash != blue.hash != identity(_Paint()).hash
    assert [d.key for d in red.changed_from(blue.to_json())] == ["color.name"]


def test_each_difference_is_named_with_its_old_and_new_value() -> None:
    old = identity(_Paint(), seed=0, data="a" * 64)
    new = identity(_Paint(coats=5, brush="round"), version=2, seed=1, data="b" * 64)
    assert [str(d) for d in new.changed_from(old.to_json())] == [
        "version: 1 -> 2",
        "coats: 2 -> 5",
        "seed: 0 -> 1",
        "data: aaaaaaaa -> bbbbbbbb",
    ]


def test_what_one_side_does_not_know_contradicts_nothing() -> None:
    known, unknown = identity(_Paint(), data="a" * 64), identity(_Paint(), data=None)
    assert not known.changed_from(unknown.to_json()) and not unknown.changed_from(known.to_json())
    silent = {k: v for k, v in known.to_json().items() if k != "data"}
    assert not known.changed_from(silent)


def test_a_key_that_is_no_more_is_a_difference() -> None:
    found = differences({"protocol": {"a": 1, "b": 2}}, {"protocol": {"b": 2}})
    assert [str(d) for d in found] == ["a: 1 -> not stated"]


def test_version_1_did_not_know_the_keys_of_today():
    from carryover.configs.identity import as_of_v1

    plain = {
        "data": {"root": "x", "orientation": "exif", "defects": {"zero_area": "drop", "below_pixel": "fatal"}}
    }
    assert as_of_v1(plain) == {"data": {"root": "x", "defects": {"zero_area": "drop"}}}
    assert as_of_v1({"data": [{"orientation": "stored"}]}) == {"data": [{"orientation": "stored"}]}
