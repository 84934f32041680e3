"""Claim on an output directory: written first, and compared before anything is changed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from carryover.configs import Recipe, UserError, dump
from carryover.configs.errors import DamagedFileError
from carryover.configs.files import write_atomic
from carryover.configs.formats import FileModel, Format
from carryover.configs.identity import Difference, Identity, incidental_fields, protocol
from carryover.configs.leftovers import remove_abandoned, taken_back
from carryover.core.formats.state import read_state_identity, states_in

IDENTITY_NAME: Final = "identity.json"
RECIPE_NAME: Final = "recipe.yaml"
FORMAT: Final = Format("work identity", 2)
CLAIM: Final = frozenset({IDENTITY_NAME, RECIPE_NAME})
"""Files by which a directory belongs to one work."""
_MOST_SHOWN = 8


class _IdentityFile(FileModel):
    """identity.json."""

    kind: str
    version: int
    protocol: dict[str, Any]
    seed: int | None = None
    backbone: str | None = None
    data: str | None = None
    reading: int | str | None = None
    recipe_hash_v1: str | None = None

    def stated(self) -> dict[str, Any]:
        """Return it as `Identity.to_json` does."""
        return self.model_dump(exclude={"recipe_hash_v1"})


def read_identity(out: Path) -> _IdentityFile | None:
    """Read identity.json in `out`; None where there is none. Raises DamagedFileError for what is none."""
    path = out / IDENTITY_NAME
    plain = FORMAT.read(path)
    return None if plain is None else FORMAT.parse(_IdentityFile, plain, path)


@dataclass(frozen=True)
class Work:
    """One piece of work, and the directory that it is done in.

    Attributes
    ----------
    v1
        What a training state of version 1 hashed besides the recipe (seed, checkpoint, choice of images).
    stated_by_v1
        Returns what version 1's statement of this work says otherwise than today's; asked where it began it.
    """

    out: Path
    recipe: Recipe
    identity: Identity
    v1: tuple[object, ...] = ()
    stated_by_v1: Callable[[], Mapping[str, Any]] = dict

    def claim(self) -> None:
        """Write down that `out` holds this work: identity.json and the resolved recipe.yaml.

        Raises UserError, and changes nothing, when it holds other work, or another work's training state; see
        `require_same_work`.
        """
        hash_v1 = None
        known: dict[str, Any] = {}
        there = read_identity(self.out)
        if there is not None:
            hash_v1, known = there.recipe_hash_v1, there.stated()
            require_same_work(self.out, self.identity, self.as_trained(known))
        elif (self.out / RECIPE_NAME).exists():
            hash_v1 = self._begun_by_v1()
        for path in states_in(self.out):
            identity = read_state_identity(path)
            if identity is not None:
                self.require(path, identity)
        remove_abandoned(self.out, below=True)
        asked = self.identity.to_json()
        # What is not known now (data that are gone) was known when the work was begun.
        kept = {key: known.get(key) if value is None else value for key, value in asked.items()}
        FORMAT.write(self.out / IDENTITY_NAME, kept | ({"recipe_hash_v1": hash_v1} if hash_v1 else {}))
        write_atomic(self.out / RECIPE_NAME, dump(self.recipe, absolute_paths=True))

    def require(self, path: Path, there: Any, what: str = "training state") -> None:
        """Raise UserError unless a file is of this work, by the identity that it holds (`there`).

        A file of version 1 holds a hash; it is accepted when that fits the recipe beside which it lies. A
        training state of an older version of the task is accepted where that trained alike.
        """
        if isinstance(there, Mapping):
            there = self.as_trained(there) if what == "training state" else there
            require_same_work(path, self.identity, there, what)
        elif there is None or there != self._hash_v1():
            raise UserError(
                f"{path}: holds the {what} of another recipe, seed, checkpoint or choice of images, written"
                " by carryover 0.1, which did not record it; finish it with 0.1, or remove it to start again"
            )

    def _hash_v1(self) -> str | None:
        """Return what a file of version 1 says if it is of this work; None where 0.1 did not begin it."""
        there = read_identity(self.out)
        hash_v1 = None
        if there is not None:
            hash_v1 = there.recipe_hash_v1
        elif (self.out / RECIPE_NAME).exists():
            hash_v1 = self._begun_by_v1()
        if hash_v1 is None or not self.v1:
            return hash_v1
        return hashlib.sha256(" ".join(str(part) for part in (hash_v1, *self.v1)).encode()).hexdigest()

    def _begun_by_v1(self) -> str:
        """Return the hash of the recipe that 0.1 left alone in `out`; raises UserError for other work."""
        plain, recipe = read_recipe(self.out / RECIPE_NAME, type(self.recipe))
        seed = getattr(recipe, "seed", None)
        stated = {"kind": self.identity.kind, "version": 1, "protocol": protocol(recipe), "seed": seed}
        require_same_work(self.out, self.identity, self.as_trained(stated | dict(self.stated_by_v1())))
        return hash_of_v1(plain, recipe)

    def as_trained(self, there: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said of an unfinished work, in today's version where that trains alike."""
        since, version = type(self.recipe).trained_since, there.get("version")
        alike = since is not None and isinstance(version, int) and since <= version < self.identity.version
        return {**there, "version": self.identity.version} if alike else dict(there)


def claimed_by_work_alone(out: Path) -> AbstractContextManager[None]:
    """Take back the claim on `out` that was made inside, when an error leaves nothing new beside it.

    A call with one wrong key is repeated with the same directory after the key was corrected.
    """
    return taken_back(out, CLAIM)


def require_same_work(where: Path, identity: Identity, there: Mapping[str, Any], what: str = "work") -> None:
    """Raise UserError naming every key in which `identity` differs from what `where` holds (`there`).

    What is not known on one side contradicts nothing.
    """
    found = identity.changed_from(there)
    if found:
        raise UserError(
            f"{where}: holds another {what}: {describe(found)}; choose another directory, or remove this one"
        )


def describe(found: list[Difference]) -> str:
    """Return the differences of two pieces of work in one line."""
    more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return ", ".join(str(difference) for difference in found[:_MOST_SHOWN]) + more


def read_recipe(path: Path, model: Any) -> tuple[dict[str, Any], Any]:
    """Read a resolved recipe, plain and as `model`; raises DamagedFileError when it is none."""
    from pydantic import TypeAdapter

    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return plain, TypeAdapter(model).validate_python(plain)
    except (ValueError, yaml.YAMLError, OSError) as error:
        first = str(error).splitlines()[0]
        raise DamagedFileError(f"{path}: not a recipe that this release can read ({first})") from None


def hash_of_v1(plain: Mapping[str, Any], recipe: BaseModel) -> str:
    """Hash a resolved recipe as version 1 did: all that its file states, but for incidental fields.

    `plain` is the file's content, `recipe` what it was validated into: it tells which fields are incidental.
    Keys that later releases added are not in such a file, and so not in the hash.
    """
    text = json.dumps(_stated(plain, recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _stated(plain: Any, value: Any) -> Any:
    if isinstance(value, BaseModel) and isinstance(plain, Mapping):
        left_out = {"name", "source"} if isinstance(value, Recipe) else set()
        kept = type(value).model_fields.keys() - left_out - set(incidental_fields(type(value)))
        return {k: _stated(v, getattr(value, k)) for k, v in plain.items() if k in kept}
    if isinstance(value, list | tuple) and isinstance(plain, list):
        return [_stated(p, v) for p, v in zip(plain, value, strict=True)]
    if isinstance(value, Mapping) and isinstance(plain, Mapping):
        return {str(k): _stated(p, value[k]) for k, p in plain.items() if k in value}
    # As pydantic dumps it: a float that YAML read as a whole number is a float.
    return float(plain) if isinstance(value, float) and isinstance(plain, int) else plain
