"""Read YAML files as plain data; duplicate keys are errors."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from carryover.configs.errors import UserError

_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STR = "tag:yaml.org,2002:str"
_FLOAT = "tag:yaml.org,2002:float"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(_FAST):
    """YAML 1.1 with what OmegaConf changes in it, for whole files: ``1e-3`` is a number, a date is text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag != _STR:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping",
                    node.start_mark,
                    f"found duplicate key {key.value}",
                    key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
        |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    A file is parsed once per process and version of it: what is returned is shared, and must not be changed.

    Raises
    ------
    UserError
        The file is no YAML, repeats a key (with its line), or holds something else than a mapping.
    """
    return _read(path, version_of(path))


def version_of(path: Path) -> tuple[int, int]:
    """Return what changes with a file's content: time and size."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def leading_comment(path: Path) -> list[str]:
    """Return the lines of the comment that a file begins with, without their ``#``."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


@lru_cache(maxsize=512)
def _read(path: Path, version: tuple[int, int]) -> dict[str, Any]:
    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.constructor.ConstructorError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{path}: {error.problem}{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(plain).__name__}")
    return {str(k): v for k, v in plain.items()}
