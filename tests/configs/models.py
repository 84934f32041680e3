"""Every model that a recipe may be made of, found from the recipes' types."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from carryover.configs.keys import annotation_of
from carryover.configs.tagged import Tagged
from carryover.pretrain.config import PretrainConfig
from carryover.transfer.tasks.config import TransferConfig


def recipe_models() -> dict[str, type[BaseModel]]:
    """Return the models of pretraining and evaluation recipes by name, ``module.Class`` if it repeats."""
    found: dict[type[BaseModel], None] = {}
    for root in (PretrainConfig, TransferConfig):
        for model in _reached(root, set()):
            found[model] = None
    names = [m.__name__ for m in found]
    titles = (m.__name__ if names.count(m.__name__) == 1 else _long(m) for m in found)
    return dict(sorted(zip(titles, found, strict=True)))


def _long(model: type[BaseModel]) -> str:
    module = model.__module__.removeprefix("carryover.")
    return f"{module.removesuffix('_config').removesuffix('.config')}.{model.__name__}"


def _reached(annotation: Any, seen: set[Any]) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            yield annotation
            for field in annotation.model_fields.values():
                yield from _reached(annotation_of(field), seen)
    elif get_origin(annotation) is Annotated:
        inside, *extras = get_args(annotation)
        tagged = next((extra for extra in extras if isinstance(extra, Tagged)), None)
        for member in [inside] if tagged is None else tagged.members():
            yield from _reached(member, seen)
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _reached(argument, seen)
