"""What every recipe is: a frozen pydantic model that refuses keys it does not know, and its hash."""

import hashlib
import json
from typing import Annotated, Any, final

from pydantic import BaseModel, ConfigDict


@final
class Incidental:
    """Marks a field that says where or by whom the work is done, not what is done.

    Data roots, worker counts and seeds are incidental: two runs that differ only there follow the same
    recipe, so these fields stay out of `recipe_hash`. Write ``root: Annotated[Path, Incidental]``.
    """


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors; values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Recipe(Section):
    """A whole recipe: everything needed to redo a published row.

    Attributes
    ----------
    name
        The recipe's file name without its suffix; filled in by `configs.load`.
    source
        Paper, table and row that the recipe reproduces.
    """

    name: Annotated[str, Incidental] = ""
    source: Annotated[str, Incidental] = ""


def protocol(recipe: BaseModel) -> dict[str, Any]:
    """Return the recipe as plain data without its incidental fields."""
    plain = recipe.model_dump(mode="json")
    return {
        key: _protocol_value(getattr(recipe, key), plain[key])
        for key, field in type(recipe).model_fields.items()
        if Incidental not in field.metadata
    }


def recipe_hash(recipe: BaseModel) -> str:
    """Return the SHA-256 (hex) of what the recipe does, whatever it is called and wherever it runs."""
    text = json.dumps(protocol(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _protocol_value(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return protocol(value)
    if isinstance(value, list | tuple):
        return [_protocol_value(v, p) for v, p in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {str(k): _protocol_value(v, plain[str(k)]) for k, v in value.items()}
    return plain
