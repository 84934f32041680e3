"""A stage: a callable with its parameters, what it waits for, and the statement that tells it from others."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from carryover.configs.files import sha256_file
from carryover.configs.identity import Difference, Identity, as_of_v1
from carryover.slurm.calls import Call
from carryover.slurm.errors import RequestError
from carryover.slurm.resources import Resources

_OUTPUT = "$output"


@dataclass(frozen=True)
class Output:
    """A file or directory in another stage's output directory; becomes its Path when the stage runs.

    Inside a stage's parameters it also makes that stage wait for the other. Without a stage's name it is a
    path in the run directory itself, wherever that lies.
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
        A function, an import string ``module:function``, or the name of a registered `Call`; it becomes a
        `Call`. It is called with `params` and ``out: Path``; called again with the same `out`, it resumes.
        Interrupted by a signal, it saves its state and leaves with ``SystemExit(128 + signal number)``.
    params
        JSON-able keyword arguments; may hold `Output`s anywhere.
    depends_on
        Stages that must have finished. (Those named by an `Output` need not be repeated.)
    after
        Stages that must have ended, well or badly, before this one starts: a report is written from what
        there is. If one of them was missing, a finished stage runs again when it no longer is.
    inputs
        Files whose contents (SHA-256) this stage's output depends on.
    requires
        Paths that must exist before anything is run or submitted; their contents are not read.
    version
        Version of the callable: raise it when its results change. (A call with an `identify` says it itself.)
    known
        Digests of what the work reads, by name ("data"); None for one that is not known. They are part of the
        work's identity. What is found in ``identity.json`` in the output directory overrides them.
    """

    name: str
    call: Call | Callable[..., object] | str
    params: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    depends_on: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    requires: tuple[Path, ...] = ()
    version: int = 1
    known: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("depends_on", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("inputs", "requires"):
            object.__setattr__(self, name, tuple(Path(p).absolute() for p in getattr(self, name)))
        if "out" in self.params:
            raise RequestError(f"stage {self.name}: 'out' is given by the ledger and cannot be a parameter")
        object.__setattr__(self, "call", Call.of(self.call))
        object.__setattr__(self, "params", decode(encode(self.params, f"stage {self.name}: params")))

    @property
    def upstream(self) -> tuple[str, ...]:
        """Stages whose success this one needs, named or through an `Output`, each once, in order."""
        named = (o.stage for o in outputs_in(self.params) if o.stage)
        return tuple(dict.fromkeys((*self.depends_on, *named)))

    @property
    def calls(self) -> Call:
        """The call, as what it is after construction."""
        assert isinstance(self.call, Call)
        return self.call

    @property
    def leaves(self) -> tuple[str, ...]:
        """The outputs that its call declares."""
        return self.calls.outputs


def portable(stage: Stage) -> Stage:
    """Return the stage as a job is best given it; see `Call.portable`."""
    return replace(stage, call=stage.calls.portable())


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


class InputDigests:
    """SHA-256 of input files, each read once; None for one that is not there."""

    def __init__(self) -> None:
        self._found: dict[Path, str | None] = {}

    def __call__(self, path: Path) -> str | None:
        """Return a file's digest."""
        if path not in self._found:
            try:
                self._found[path] = sha256_file(path)
            except OSError:
                self._found[path] = None
        return self._found[path]

    def of(self, stage: Stage) -> list[str | None] | None:
        """Return the digests of a stage's inputs; None unless all are there."""
        found = [self(path) for path in stage.inputs]
        return None if None in found else found

    def require(self, stage: Stage) -> None:
        """Raise RequestError if an input of the stage cannot be read."""
        for path in stage.inputs:
            if self(path) is None:
                raise RequestError(f"stage {stage.name}: input file {path}: No such file, or not readable")


@dataclass(frozen=True)
class Statement:
    """All that determines a stage's output.

    That is its work's identity (of the call's own telling, or its name, version and every parameter), the
    hashes of the stages whose outputs it takes or after which it runs, and its input files. Resources, the
    stage's name and the git revision do not enter; neither does the order of waiting where the call tells its
    identity itself.
    """

    identity: Identity
    hash: str
    needed: Mapping[str, str]

    @classmethod
    def of(cls, stage: Stage, upstream: Mapping[str, str], inputs: InputDigests) -> "Statement":
        """State a stage, given the hashes of the stages before it."""
        needed = [o for o in outputs_in(stage.params) if o.stage]
        needs = {str(i): f"{upstream[o.stage]}/{o.path}" for i, o in enumerate(needed)}
        identify = stage.calls.identifier
        parts: dict[str, Any] = {
            "needs": needs,
            # By name: a report of the same results under another name is another report.
            "after": {name: upstream[name] for name in stage.after},
            "inputs": inputs.of(stage),
        }
        if identify is not None:
            own = identify(stage.params)
            parts = {**own.parts, **parts}
        else:
            params = replace_outputs(stage.params, _without_stage)
            own = Identity(stage.calls.name, stage.version, params, params)
            parts["upstream"] = {str(i): h for i, h in enumerate(sorted(upstream[n] for n in stage.upstream))}
        parts |= stage.known
        identity = Identity(own.kind, own.version, own.stated, own.hashed, parts)
        names = (*stage.upstream, *stage.after)
        return cls(identity, identity.hash, {name: upstream[name] for name in names})

    def to_json(self) -> dict[str, Any]:
        """Return what the stage's record keeps."""
        return self.identity.to_json()

    def changed_from(self, there: Mapping[str, Any]) -> list[Difference]:
        """List in what the stage differs from one that was stated so; nothing where it is the same work."""
        return self.identity.changed_from(there)


def hash_of_v1(
    stage: Stage, plain: Mapping[str, Any], upstream: Mapping[str, str], inputs: InputDigests
) -> str:
    """Return the content hash that version 1 gave a stage, whose callable it names in `plain`."""
    params = as_of_v1(replace_outputs(stage.params, lambda o: _output_of_v1(o, upstream)))
    content = {
        "call": plain["call"],
        "version": plain.get("version", 1),
        "params": params,
        "upstream": sorted(upstream[name] for name in stage.upstream),
        "after": sorted(upstream[name] for name in stage.after),
        "inputs": [inputs(path) for path in stage.inputs],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _output_of_v1(output: Output, upstream: Mapping[str, str]) -> Any:
    # Version 1 had no outputs of the run itself.
    return {"output of": upstream[output.stage], "path": output.path} if output.stage else ""


def _without_stage(output: Output) -> str:
    return f"output {output.path}" if output.stage else f"run directory {output.path}".rstrip()
