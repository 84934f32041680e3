"""Every recipe as data, and the one way to load it."""

from configs.errors import CarryoverError, UserError, WorkError
from configs.load import dump, find, header, kind_of, load, recipe_names, register
from configs.recipe import Incidental, Recipe, Section, recipe_hash

__all__ = [
    "CarryoverError",
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
    "recipe_hash",
    "recipe_names",
    "register",
]
