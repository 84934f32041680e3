"""Registries: what built-ins and users' packages add by name, found when it is first asked for.

A built-in registers itself by a call; a package of the user's own by an entry point of the registry's group
(``[project.entry-points."carryover.tasks"]``), or by the same call.
"""

import importlib
import logging
from collections.abc import Iterator
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from carryover.configs.errors import UserError
from carryover.configs.nearest import nearest

log = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name; a thing given as ``module:attribute`` is imported when it is asked for.

    Attributes
    ----------
    what
        What one of them is called in messages: "task", "method".
    group
        The entry points' group.
    """

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._entries: dict[str, T | str] = {}
        self._from: dict[str, str] = {}
        self._looked = False
        self._warned: set[str] = set()

    def register(self, name: str, entry: T | str) -> None:
        """Add one of them: itself, or where it is as ``module:attribute``.

        Raises UserError where another one has the name already.
        """
        self._add(name, entry, "")

    def names(self) -> list[str]:
        """List the names, built-ins first."""
        self._look()
        return list(self._entries)

    def get(self, name: str) -> T:
        """Return what is registered by `name`.

        Raises UserError with the nearest name where there is none, and with the reason where importing it
        fails.
        """
        self._look()
        if name not in self._entries:
            raise UserError(self.unknown(name))
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = cast(T, self._imported(name, entry))
            self._entries[name] = entry
        return entry

    def values(self) -> Iterator[T]:
        """Yield all of them; one that cannot be imported is left out with a warning."""
        for name in self.names():
            try:
                yield self.get(name)
            except UserError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    log.warning("%s", error)

    def unknown(self, name: str) -> str:
        """Return the message for a name that is not registered, with the nearest one."""
        guess = nearest(name, self.names())
        hint = f"did you mean '{guess}'? There" if guess else "there"
        return f"no {self.what} is called '{name}'; {hint} are: {', '.join(self.names())}"

    def __contains__(self, name: object) -> bool:
        self._look()
        return name in self._entries

    def _add(self, name: str, entry: T | str, source: str) -> None:
        there = self._entries.get(name)
        if there is not None and there != entry:
            by = f" by {self._from[name]}" if self._from.get(name) else ""
            raise UserError(f"{self.what} '{name}' is registered already{by}; choose another name")
        self._entries[name], self._from[name] = entry, source

    def _look(self) -> None:
        """Read the entry points of installed packages, once; one that clashes with a name is left out."""
        if self._looked:
            return
        self._looked = True
        for point in metadata.entry_points(group=self.group):
            source = point.dist.name if point.dist is not None else "an installed package"
            try:
                self._add(point.name, point.value, source)
            except UserError as error:
                log.warning("%s (entry point of %s)", error, source)

    def _imported(self, name: str, where: str) -> Any:
        module, _, attribute = where.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            source = f" of {self._from[name]}" if self._from.get(name) else ""
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.what} '{name}'{source}: importing {where} fails: {reason}") from error


def imported(where: str) -> Any:
    """Return what ``module:attribute`` names."""
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)
