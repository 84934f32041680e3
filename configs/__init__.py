"""Recipes as data, the one way to load them, and what every floor shares: errors, files, identity."""

import importlib
from typing import TYPE_CHECKING, Any

from carryover.configs.errors import CarryoverError, UserError, WorkError

if TYPE_CHECKING:
    from carryover.configs.identity import Identity, protocol, recipe_hash
    from carryover.configs.loading import dump, find, header, kind_of, load, recipe_names, title
    from carryover.configs.recipe import Incidental, Recipe, Section

# Imported when first asked for: a job that only keeps its record needs no YAML reader.
_HOMES = {
    "carryover.configs.identity": ("Identity", "protocol", "recipe_hash"),
    "carryover.configs.loading": (*("dump", "find", "header", "kind_of", "load", "recipe_names", "title"),),
    "carryover.configs.recipe": ("Incidental", "Recipe", "Section"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CarryoverError",
    "Identity",
    "Incidental",
    "Recipe",
    "Section",
    "UserError",
    "WorkError",
    "dump",
    "find",
    "header",
    "kind_of",
    "load",
    "protocol",
    "recipe_hash",
    "recipe_names",
    "title",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'configs' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
