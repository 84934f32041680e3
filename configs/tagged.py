"""Sections of a recipe whose model is found by name in a registry, so that a user's package can add one."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from carryover.configs.registry import Registry


class Tagged:
    """Marks a value whose key `tag` names, in `registry`, the model that it is.

    Write ``method: Annotated[MethodSection, Tagged(METHODS, "name")]``. Unlike a union of models, which is
    closed when it is written, every registered model may stand there.
    """

    def __init__(self, registry: Registry[Any], tag: str) -> None:
        self.registry, self.tag = registry, tag

    def members(self) -> Iterator[type[BaseModel]]:
        """Yield the models that the value may be."""
        yield from self.registry.values()

    def validate(self, value: Any) -> BaseModel:
        """Turn a mapping into the model that its tag names; a model stays as it is."""
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"expected keys, {self.tag} among them")
        name = value.get(self.tag)
        if name is None:
            raise self._refused(value, f"is missing; there are: {', '.join(self.registry.names())}")
        if not isinstance(name, str) or name not in self.registry:
            raise self._refused(name, self.registry.unknown(str(name)))
        model: type[BaseModel] = self.registry.get(name)
        return model.model_validate(dict(value))

    def _refused(self, value: Any, message: str) -> ValidationError:
        # The message is no template: braces in what the user wrote stay as they are.
        kind = PydanticCustomError("unknown_name", "{message}", {"message": message})
        line = InitErrorDetails(
            type=kind, loc=(self.tag,), input=None if isinstance(value, Mapping) else value
        )
        return ValidationError.from_exception_data(self.tag, [line])

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)
