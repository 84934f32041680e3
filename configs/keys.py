"""Valid keys of a recipe, and the nearest one to an invalid key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from carryover.configs.tagged import Tagged


def valid_keys(model: Any) -> list[str]:
    """List every dotted key that a recipe of type `model` may have, unions' members included."""
    return sorted(set(_walk(model, "")))


def sibling_keys(model: Any, location: Sequence[str | int]) -> list[str]:
    """List the keys allowed where pydantic found an unknown one at `location` (its last element)."""
    types = [model]
    for step in location[:-1]:
        types = [inner for t in types for inner in _enter(t, step)]
    return sorted({name for t in types for m in _members(t) for name in m.model_fields})


def narrowed(model: Any, data: Any) -> Any:
    """Return the one model that `data` names, where `model` stands for several; else `model`."""
    if get_origin(model) is Annotated and isinstance(data, Mapping):
        for extra in get_args(model)[1:]:
            if isinstance(extra, Tagged) and data.get(extra.tag) in extra.registry:
                return extra.registry.get(data[extra.tag])
    return model


def with_default_tags(model: Any, data: Any) -> Any:
    """Fill in the tag of a discriminated union where a recipe states other keys of it but not the tag.

    ``optimizer: {base_lr: 1}`` then means the default optimizer with another rate.
    """
    if not isinstance(data, Mapping) or not isinstance(model, type) or not issubclass(model, BaseModel):
        return data
    filled = dict(data)
    for name, field in model.model_fields.items():
        value = filled.get(name)
        if not isinstance(value, Mapping):
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        if isinstance(default, BaseModel):
            if isinstance(field.discriminator, str):
                value = {field.discriminator: getattr(default, field.discriminator), **value}
                tag = str(value[field.discriminator])
                kind: Any = next((m for m in _members(field.annotation) if _has_tag(m, tag)), type(default))
            else:
                kind = type(default)
        else:
            kind = field.annotation
            tagged = next((extra for extra in field.metadata if isinstance(extra, Tagged)), None)
            if tagged is not None and value.get(tagged.tag) in tagged.registry:
                kind = tagged.registry.get(value[tagged.tag])
        filled[name] = with_default_tags(kind, value)
    return filled


def fields_of(types: Sequence[Any], key: str) -> list[FieldInfo]:
    """List the fields `key` of any of the models that `types` may be."""
    return [m.model_fields[key] for t in types for m in _members(t) if key in m.model_fields]


def field_types(types: Sequence[Any], key: str) -> list[Any]:
    """List the annotations that the field `key` has in any of the models that `types` may be."""
    return [annotation_of(field) for field in fields_of(types, key)]


def annotation_of(field: FieldInfo) -> Any:
    """Return a field's annotation, with the registry that its value's model is found in, if there is one."""
    tagged = next((extra for extra in field.metadata if isinstance(extra, Tagged)), None)
    return field.annotation if tagged is None else Annotated[field.annotation, tagged]


def named_by_tag(types: Sequence[Any]) -> bool:
    """Return whether ``name`` says which of several models a value of these annotations is."""
    return any(get_origin(annotation) is Literal for annotation in field_types(types, "name"))


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a value of this annotation may be (Optional, Union, Annotated, containers)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        inside, *extras = get_args(annotation)
        tagged = next((extra for extra in extras if isinstance(extra, Tagged)), None)
        yield from _members(inside) if tagged is None else tagged.members()
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _members(argument)


def _enter(annotation: Any, step: str | int) -> list[Any]:
    """Return the annotations found one `step` of a pydantic error location further in."""
    if isinstance(step, int):
        return [annotation]
    inside = field_types([annotation], step)
    if inside:
        return inside
    # A step that is no field is the tag of a discriminated union, or the name of a union's member.
    tagged = [m for m in _members(annotation) if _has_tag(m, step) or m.__name__ == step]
    return list(tagged or [annotation])


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(
        get_origin(f.annotation) is Literal and tag in get_args(f.annotation)
        for f in model.model_fields.values()
    )


def _walk(annotation: Any, prefix: str) -> Iterator[str]:
    if get_origin(annotation) in (list, tuple, dict):
        return
    if get_origin(annotation) is Union or not isinstance(annotation, type):
        for member in _members(annotation):
            yield from _walk(member, prefix)
        return
    if issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield prefix + name
            yield from _walk(annotation_of(field), f"{prefix}{name}.")
