"""Stand-ins for classes that other people's pickles name: they keep what they are given and do nothing."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any


class Inert:
    """An object of a class that was never imported.

    Attributes
    ----------
    named
        Module and name of the class, as the pickle says it.
    args
        What it was made from.
    state
        What it was given as its attributes, if that was a dictionary.
    items, members
        What it holds as a dictionary and as a list.
    """

    named = ""

    def __new__(cls, *args: object, **_: object) -> "Inert":
        made = super().__new__(cls)
        made.args, made.state, made.items, made.members = args, {}, {}, []
        return made

    args: tuple[object, ...]
    state: dict[Any, Any]
    items: dict[Any, Any]
    members: list[object]

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        # Objects with slots give a pair: their attributes, and those of the slots.
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, Mapping):
                self.state.update(part)
            elif part is not None:
                self.args = (*self.args, part)

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, value: object) -> None:
        """Keep a member of a list."""
        self.members.append(value)

    def extend(self, values: Any) -> None:
        """Keep the members of a list."""
        self.members.extend(values)

    def add(self, value: object) -> None:
        """Keep a member of a set."""
        self.members.append(value)

    def __call__(self, *args: object, **_: object) -> "Inert":
        return Inert(*args)


@cache
def stand_in(named: str) -> type[Inert]:
    """Return the class that stands in for the one of this module and name."""
    return type(named.rpartition(".")[2], (Inert,), {"named": named})


def is_module(node: object) -> bool:
    """Return whether a stand-in is of a torch module, which was saved whole."""
    return isinstance(node, Inert) and {"_parameters", "_buffers", "_modules"} <= node.state.keys()


def module_parts(node: Inert) -> Iterator[tuple[str, object]]:
    """Yield parameters, persistent buffers and submodules by the names that a state dict has for them."""
    passing: object = node.state.get("_non_persistent_buffers_set", ())
    passing = passing if isinstance(passing, set | frozenset) else ()
    for kind in ("_parameters", "_buffers", "_modules"):
        held = node.state[kind]
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if value is not None and not (kind == "_buffers" and name in passing):
                yield str(name), value


def parts(node: object) -> Iterator[tuple[str, object]]:
    """Yield what a container, or the stand-in of one, holds, by name or index."""
    if isinstance(node, Inert):
        if is_module(node):
            yield from module_parts(node)
            return
        # Settings of omegaconf: a node holds its value as `_val`, a dictionary its nodes as `_content`.
        content = node.state.get("_content", node.state)
        yield from parts(node.items)
        yield from parts(node.members)
        yield from parts(content)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield str(index), value


def plain(node: object) -> str | int | float | bool | None:
    """Return the text, number or truth that a node is or stands for (an enumeration's, omegaconf's)."""
    value: Any = node
    if isinstance(node, Inert):
        if "_val" in node.state:
            value = node.state["_val"]
        elif len(node.args) == 1 and not (node.state or node.items or node.members):
            value = node.args[0]
    return value if isinstance(value, str | int | float | bool) else None
