"""What a stage's result depends on, stated so that a later change can be named, and hashed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carryover.configs.files import sha256_file
from carryover.configs.identity import Difference, Identity
from carryover.slurm.errors import RequestError
from carryover.slurm.stage import Output, Stage, outputs_in, replace_outputs


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
    params = replace_outputs(stage.params, lambda o: _output_of_v1(o, upstream))
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
