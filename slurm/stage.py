"""A stage: a callable with its parameters, its resources and what it waits for."""

import importlib
import importlib.util
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle

from slurm.errors import RequestError
from slurm.resources import Resources

_OUTPUT = "$output"


@dataclass(frozen=True)
class Output:
    """A file or directory in another stage's output directory; becomes its Path when the stage runs.

    Inside a stage's parameters it also makes that stage wait for the other.
    """

    stage: str
    path: str = ""


@dataclass(frozen=True)
class Stage:
    """One piece of work: `call(**params, out=directory)`.

    Attributes
    ----------
    name
        Unique in its graph; names the stage's directory, so slashes group stages.
    call
        A function, or an import string ``module:function``. It is called with `params` and ``out: Path``;
        called again with the same `out`, it resumes. Interrupted by a signal, it saves its state and leaves
        with ``SystemExit(128 + signal number)``.
    params
        JSON-able keyword arguments; may hold `Output`s anywhere.
    depends_on
        Stages that must have finished. (Those named by an `Output` need not be repeated.)
    after
        Stages that must have ended, well or badly, before this one starts: a report is drawn up from what
        there is. If one of them was missing, a finished stage runs again when it no longer is.
    inputs
        Files whose contents (SHA-256) this stage's output depends on.
    requires
        Paths that must exist before anything is run or submitted; their contents are not read.
    version
        Version of the callable: raise it when its results change.
    """

    name: str
    call: Callable[..., object] | str
    params: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    depends_on: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    requires: tuple[Path, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        for name in ("depends_on", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("inputs", "requires"):
            object.__setattr__(self, name, tuple(Path(p).absolute() for p in getattr(self, name)))
        if "out" in self.params:
            raise RequestError(f"stage {self.name}: 'out' is given by the ledger and cannot be a parameter")
        object.__setattr__(self, "params", decode(encode(self.params, f"stage {self.name}: params")))

    @property
    def upstream(self) -> tuple[str, ...]:
        """Stages whose success this one needs, named or through an `Output`, each once, in order."""
        return tuple(dict.fromkeys((*self.depends_on, *(o.stage for o in outputs_in(self.params)))))

    @property
    def call_name(self) -> str:
        """The callable as ``module:qualified name``."""
        if isinstance(self.call, str):
            return self.call
        named = self.call if hasattr(self.call, "__qualname__") else type(self.call)
        return f"{named.__module__}:{named.__qualname__}"

    @property
    def importable(self) -> bool:
        """Whether another process can find the callable by its name alone."""
        if isinstance(self.call, str):
            return True
        if self.call.__module__ == "__main__":
            return False
        try:
            return load_call(self.call_name) is self.call
        except RequestError:
            return False

    def pickled_call(self) -> bytes:
        """Return the callable as bytes for another process; raises RequestError when it cannot be carried."""
        try:
            return cloudpickle.dumps(self.call)
        except (TypeError, pickle.PicklingError, AttributeError) as error:
            raise RequestError(f"stage {self.name}: {self.call_name} cannot be pickled: {error}") from None


def portable(stage: Stage) -> Stage:
    """Return the stage as it is best pickled: a callable that can be imported, by name only.

    Unpickled, it then brings in none of the callable's own imports before the job listens for signals.
    """
    return replace(stage, call=stage.call_name) if stage.importable else stage


def check_call(stage: Stage) -> None:
    """Raise RequestError if an import string's module does not exist; nothing of its weight is imported."""
    if not isinstance(stage.call, str):
        return
    module, colon, function = stage.call.partition(":")
    if not (module and colon and function):
        raise RequestError(
            f"stage {stage.name}: callable {stage.call!r} is not of the form 'module:function'"
        )
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise RequestError(f"stage {stage.name}: there is no module {module!r} to call {function!r} from")


def load_call(call_name: str) -> Callable[..., object]:
    """Import ``module:qualified name``; raises RequestError when there is no such thing."""
    module, _, qualified = call_name.partition(":")
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
        raise RequestError(f"{call_name} cannot be called")
    return found


def outputs_in(value: Any) -> Iterator[Output]:
    """Yield every `Output` in nested parameters."""
    if isinstance(value, Output):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from outputs_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from outputs_in(item)


def replace_outputs(value: Any, put: Callable[[Output], Any]) -> Any:
    """Return nested parameters with every `Output` replaced by what `put` makes of it."""
    if isinstance(value, Output):
        return put(value)
    if isinstance(value, Mapping):
        return {key: replace_outputs(item, put) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_outputs(item, put) for item in value]
    return value


def encode(params: Any, where: str) -> Any:
    """Return nested parameters as plain JSON data; raises RequestError naming the key that is not."""
    if isinstance(params, Output):
        return {_OUTPUT: params.stage, "path": params.path}
    if isinstance(params, Path):
        return str(params)
    if isinstance(params, Mapping):
        if _OUTPUT in params:
            raise RequestError(f"{where}: the key {_OUTPUT!r} is reserved")
        for key in params:
            if not isinstance(key, str):
                raise RequestError(f"{where}: keys must be strings, not {key!r}")
        return {key: encode(item, f"{where}.{key}") for key, item in params.items()}
    if isinstance(params, Sequence) and not isinstance(params, str | bytes):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(params)]
    try:
        return json.loads(json.dumps(params, allow_nan=False))
    except (TypeError, ValueError):
        raise RequestError(
            f"{where}: {params!r} ({type(params).__name__}) cannot be written as JSON"
        ) from None


def decode(plain: Any) -> Any:
    """Read what `encode` wrote."""
    if isinstance(plain, dict):
        if _OUTPUT in plain:
            return Output(plain[_OUTPUT], plain["path"])
        return {key: decode(item) for key, item in plain.items()}
    return [decode(item) for item in plain] if isinstance(plain, list) else plain
