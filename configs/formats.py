"""Versions of the files that are written here: older ones are migrated, newer majors are errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from carryover.configs.errors import DamagedFileError, NewerFormatError
from carryover.configs.files import read_json, write_json

DISTRIBUTION = "carryover-eval"
"""Name of the distribution; the one called carryover belongs to another project."""
VERSION_KEY = "schema_version"
WRITER_KEY = "written_by"
# Files of version 1 either had no version or named their format in words.
_FIRST = 1

Plain = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


class FileModel(BaseModel):
    """Base of what is read from files: fields that a later minor release added are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes
    ----------
    name
        What messages call it: "result record".
    version
        The major version that this release writes. It rises when an older reader would misunderstand the
        file; a field that older readers may pass over does not raise it.
    migrations
        Turn a file's plain content of version n into that of version n + 1.
    """

    name: str
    version: int
    migrations: Mapping[int, Callable[[Plain], Plain]] = field(default_factory=dict)

    def stamped(self, plain: Mapping[str, Any]) -> Plain:
        """Return `plain` with the version of its format and the release that wrote it in front."""
        return {VERSION_KEY: self.version, WRITER_KEY: writer(), **plain}

    def current(self, plain: Any, where: Path | str) -> Plain:
        """Return a file's content in today's version.

        Raises
        ------
        NewerFormatError
            The file is of a newer major version; the message names both releases.
        DamagedFileError
            It is no mapping, or its version is none.
        """
        if not isinstance(plain, Mapping):
            raise DamagedFileError(f"{where}: damaged: expected a {self.name}, found {type(plain).__name__}")
        content = dict(plain)
        version = self._version(content, where)
        if version > self.version:
            release_there = content.get(WRITER_KEY, "a newer carryover")
            raise NewerFormatError(
                f"{where}: a {self.name} of format {version}, written by {release_there}; this is {writer()},"
                f" which knows formats up to {self.version}: use the newer release"
            )
        for step in range(version, self.version):
            migrate = self.migrations.get(step)
            content = migrate(content) if migrate is not None else content
        content[VERSION_KEY] = self.version
        return content

    def write(self, path: Path, plain: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write a JSON file of this format, atomically."""
        write_json(path, self.stamped(plain), durable=durable)

    def read(self, path: Path) -> Plain | None:
        """Return a JSON file's content in today's version; None when there is no such file, or an empty one.

        Raises what `current` does, and DamagedFileError for what is not JSON.
        """
        plain = read_json(path)
        return None if plain is None else self.current(plain, path)

    def parse(self, model: type[Model], plain: Mapping[str, Any], where: Path | str) -> Model:
        """Return content of today's version as `model`; unknown fields are passed over, at any depth.

        Raises DamagedFileError naming the file and the first field that does not fit.
        """
        content = {key: value for key, value in plain.items() if key not in (VERSION_KEY, WRITER_KEY)}
        if VERSION_KEY in model.model_fields:
            content[VERSION_KEY] = self.version
        return self._parsed(model, content, where)

    def _parsed(self, model: type[Model], content: Plain, where: Path | str) -> Model:
        try:
            return model.model_validate(content)
        except ValidationError as error:
            problems = error.errors()
            unknown = [e["loc"] for e in problems if e["type"] == "extra_forbidden"]
            if len(unknown) < len(problems):
                first = next(e for e in problems if e["type"] != "extra_forbidden")
                key = ".".join(str(step) for step in first["loc"]) or self.name
                raise DamagedFileError(f"{where}: not a {self.name}: {key}: {first['msg']}") from None
        return self._parsed(model, _without(content, unknown), where)

    def _version(self, content: Plain, where: Path | str) -> int:
        found = content.get(VERSION_KEY, _FIRST)
        if isinstance(found, str) and found.startswith("carryover-"):
            return _FIRST
        if not isinstance(found, int) or isinstance(found, bool) or found < _FIRST:
            raise DamagedFileError(f"{where}: damaged: {VERSION_KEY} is {found!r}, expected a whole number")
        return found


@cache
def writer() -> str:
    """Return this release as files name it: "carryover 0.2.0"."""
    return f"carryover {release()}"


@cache
def release() -> str:
    """Return the version of the installed distribution; "unknown" where there is none."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def _without(content: Plain, locations: list[tuple[int | str, ...]]) -> Plain:
    """Return a copy of nested plain data without the keys at pydantic's `locations`."""

    def copied(value: Any, path: tuple[int | str, ...]) -> Any:
        if isinstance(value, Mapping):
            kept = ((k, (*path, k)) for k in value if not any(_is_at((*path, k), at) for at in locations))
            return {k: copied(value[k], where) for k, where in kept}
        if isinstance(value, list | tuple):
            return [copied(item, (*path, i)) for i, item in enumerate(value)]
        return value

    found: Plain = copied(content, ())
    if found == content:
        raise AssertionError(f"no key found at {locations}")
    return found


def _is_at(path: tuple[int | str, ...], location: tuple[int | str, ...]) -> bool:
    """Return whether a key's path is a pydantic location, which has the tags of unions among its steps."""
    steps = iter(location)
    return path[-1] == location[-1] and all(step in steps for step in path)
