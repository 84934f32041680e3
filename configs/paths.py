"""Paths in a file of the user's own: a relative one is relative to the folder of that file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from carryover.configs.keys import field_types, fields_of
from carryover.configs.recipe import Incidental

_ELSEWHERE = ("~", "$", "shapes:", "<")
_FILES = (".yaml", ".yml", ".txt", ".csv", ".json")
_BELOW_THE_ROOT = ("list_file", "test_list_file")
# Keys whose values are paths, where an entry overrides them in another recipe.
_IN_OVERRIDES = ("root", "store", "list_file", "test_list_file", "list")


@dataclass(frozen=True)
class Relative:
    """Marks a text that may name a file or folder; incidental fields of the type Path need no mark.

    Attributes
    ----------
    always
        It is a path whatever it looks like. Otherwise what has neither a folder nor the ending of a file in
        it is a name.
    """

    always: bool = False


def anchored(content: Mapping[str, Any], folder: Path, types: Sequence[Any]) -> dict[str, Any]:
    """Return a file's content with its relative paths made absolute by its `folder`.

    `types` are what the content may become; paths are known by the types of their fields.
    """
    found: dict[str, Any] = {}
    for key, value in content.items():
        fields = fields_of(types, key)
        mark = next((m for f in fields if (m := _mark_of(f)) is not None), None)
        if key == "overrides" and isinstance(value, Sequence) and not isinstance(value, str):
            found[key] = [_override(text, folder) for text in value]
        elif key in _BELOW_THE_ROOT and value is not None and not (folder / str(value)).is_file():
            # Looked for under the data set's root.
            found[key] = value
        else:
            found[key] = _anchored(value, folder, field_types(types, key), mark)
    return found


def absolute(value: str, folder: Path, always: bool = True) -> str:
    """Return a path that is written in a file of `folder`; what is none, or is absolute, comes back."""
    path, row = (value[: value.rindex(":")], value[value.rindex(":") :]) if _is_row(value) else (value, "")
    is_path = always or "/" in path or path.endswith(_FILES)
    if not is_path or value.startswith(_ELSEWHERE) or Path(path).is_absolute():
        return value
    return str((folder / path).resolve()) + row


def _anchored(value: Any, folder: Path, types: Sequence[Any], mark: Relative | None) -> Any:
    if isinstance(value, Mapping):
        inside = next((m for t in types for m in _marks_of_values(t)), None)
        if inside is not None:
            return {k: _anchored(v, folder, (), inside) for k, v in value.items()}
        return anchored(value, folder, types)
    if isinstance(value, list):
        return [_anchored(v, folder, types, mark) for v in value]
    if isinstance(value, Path):
        return Path(absolute(str(value), folder))
    if mark is None or not isinstance(value, str):
        return value
    return absolute(value, folder, mark.always)


def _mark_of(field: FieldInfo) -> Relative | None:
    """Return what a field says of paths: a mark, or that it is an incidental Path.

    A Path that is part of the protocol (a split's folder) is relative to the data set's root.
    """
    mark = next((m for a in (field.annotation, *field.metadata) if (m := _mark(a)) is not None), None)
    incidental = any(extra is Incidental or isinstance(extra, Incidental) for extra in field.metadata)
    is_path = field.annotation is Path or Path in get_args(field.annotation)
    return Relative(always=True) if mark is None and incidental and is_path else mark


def _mark(annotation: Any) -> Relative | None:
    if isinstance(annotation, Relative):
        return annotation
    if get_origin(annotation) in (dict, Mapping):
        return None
    return next((m for a in get_args(annotation) if (m := _mark(a)) is not None), None)


def _marks_of_values(annotation: Any) -> list[Relative]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is not dict:
        return []
    mark = _mark(get_args(annotation)[1])
    return [] if mark is None else [mark]


def _override(text: Any, folder: Path) -> Any:
    key, equals, value = str(text).partition("=")
    last = key.rpartition(".")[2]
    if not equals or last not in _IN_OVERRIDES or not value or value == "null":
        return text
    return f"{key}={absolute(value, folder, always=last != 'list')}"


def _is_row(value: str) -> bool:
    """Return whether a text is ``mine.yaml:ROW`` and not other text with a colon."""
    return any(f"{ending}:" in value for ending in _FILES[:2])
