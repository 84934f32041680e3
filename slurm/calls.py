"""Calls of stages, by short names: a run directory holds no code, and modules can be moved."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carryover.configs.identity import Identity
from carryover.slurm.errors import RequestError

_KNOWN: dict[str, "Call"] = {}


@dataclass(frozen=True)
class Call:
    """A callable under the name that run directories know it by.

    Attributes
    ----------
    name
        Short ("pretrain"); of a callable that is not registered, ``module:qualified name``.
    target
        The function, or an import string ``module:function``.
    identify
        Import string of a function that returns the `Identity` of the work from the stage's parameters; where
        there is none, every parameter counts.
    outputs
        What it leaves, relative to its output directory; where none is stated, everything that it left there.
    known_as
        Names that earlier releases wrote into run directories.
    upgrade
        Import string of a function that turns the parameters of a run directory of version 1 into today's.
    of_v1
        Import string of a function that returns, from a stage's parameters and the output directory that
        version 1 left, what its statement says otherwise than today's; asked of version 1's stages alone.
    """

    name: str
    target: Callable[..., object] | str
    identify: str = ""
    outputs: tuple[str, ...] = ()
    known_as: tuple[str, ...] = ()
    upgrade: str = ""
    of_v1: str = ""

    @classmethod
    def of(cls, given: "Call | Callable[..., object] | str") -> "Call":
        """Return the registered call of a name, an import string or a function; else one of its own name."""
        if isinstance(given, Call):
            return given
        name = given if isinstance(given, str) else _qualified(given)
        return _KNOWN.get(name, cls(name, given))

    @property
    def registered(self) -> bool:
        """Return whether this process knows the call by more than what a file says."""
        return _KNOWN.get(self.name) is self

    def load(self) -> Callable[..., object]:
        """Return the function; raises RequestError when it cannot be imported."""
        return load_function(self.target) if isinstance(self.target, str) else self.target

    def portable(self) -> "Call":
        """Return the call as another process can be given it: a function that can be imported, by name.

        Unpickled, it brings in none of the function's own imports before the job listens for signals.
        """
        if isinstance(self.target, str) or self.target.__module__ == "__main__":
            return self
        name = _qualified(self.target)
        try:
            same = load_function(name) is self.target
        except RequestError:
            same = False
        return replace(self, target=name) if same else self

    def cannot_be_sent(self, stage: str, error: Exception) -> RequestError:
        """Return the error that says that a job cannot be given this call."""
        return RequestError(
            f"stage {stage}: {self.name} cannot be sent to another process ({type(error).__name__}: {error});"
            " make it a function of a module"
        )

    def require_module(self, stage: str) -> None:
        """Raise RequestError if an import string's module does not exist; nothing heavy is imported."""
        if not isinstance(self.target, str):
            return
        module, colon, function = self.target.partition(":")
        if not (module and colon and function):
            known = ", ".join(sorted({call.name for call in _KNOWN.values()})) or "there is none"
            raise RequestError(
                f"stage {stage}: there is no call {self.name!r}, which is not of the form 'module:function'"
                f" and no registered name ({known})"
            )
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise RequestError(f"stage {stage}: there is no module {module!r} to call {function!r} from")

    def stated_by_v1(self, params: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Return what version 1's statement of a stage says otherwise than today's; `out` is its output."""
        return dict(load_function(self.of_v1)(params, out)) if self.of_v1 else {}

    @property
    def identifier(self) -> Callable[..., Identity] | None:
        """The function that says what decides the work's result."""
        return load_function(self.identify) if self.identify else None


def register(call: Call) -> Call:
    """Make a call known under its name, its import string and its former names; return it.

    Stages that are read back from a run directory can call only what is registered.
    """
    names = {call.name, *call.known_as}
    names.add(call.target if isinstance(call.target, str) else _qualified(call.target))
    for name in names:
        _KNOWN[name] = call
    return call


def load_function(name: str) -> Callable[..., Any]:
    """Import ``module:qualified name``; raises RequestError when there is no such thing."""
    module, _, qualified = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise RequestError(f"there is no module {module!r} to call {qualified!r} from") from None
    except AttributeError:
        raise RequestError(f"module {module!r} has no {qualified!r}") from None
    if not callable(found):
        raise RequestError(f"{name} cannot be called")
    return found


def _qualified(function: Callable[..., object]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
