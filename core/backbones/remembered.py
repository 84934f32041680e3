"""Cache of the contents of checkpoints (torch-free on a hit).

Kept in the user's cache directory by the file's place, and what is stated of it. It counts while the size and
time of change of the file, of a configuration beside it and of carryover's own importers are what they were.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from carryover.configs.errors import UserError
from carryover.configs.files import cache_folder, stamp
from carryover.configs.formats import Format
from carryover.core.backbones.inspected import Inspection
from carryover.core.backbones.stated import Stated
from carryover.core.formats.checkpoint_files import parts_of

log = logging.getLogger(__name__)

FORMAT: Final = Format("what was found in a checkpoint", 1)
_BESIDE: Final = ("config.json", "config.yaml", "preprocessor_config.json")
_INSPECTION: Final = TypeAdapter(Inspection)


def look_into(path: Path, encoder: str | None = None, stated: Stated | None = None) -> Inspection:
    """Return what `core.backbones.inspection.inspect_checkpoint` does; only a new file is read for it."""
    where = path.expanduser().absolute()
    file = _place(where, encoder, stated)
    basis = _basis(where, parts_of(where))
    if file is not None and (known := _read(file, basis)) is not None:
        return _INSPECTION.validate_python({**known, "path": path})
    from carryover.core.backbones.light import import_torchvision

    import_torchvision()
    from carryover.core.backbones.inspection import inspect_checkpoint

    found = inspect_checkpoint(path, encoder, stated)
    if file is not None:
        plain = _INSPECTION.dump_python(found, mode="json")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            FORMAT.write(file, {"basis": basis, "inspection": plain}, durable=False)
        except OSError as error:
            log.debug("%s: not written (%s)", file, error)
    return found


def _place(path: Path, encoder: str | None, stated: Stated | None) -> Path | None:
    """Return the file that what is found is kept in; None where the user has no place for it."""
    key = repr((str(path), encoder, None if stated is None else sorted(asdict(stated).items(), key=repr)))
    try:
        folder = cache_folder("inspected")
    except RuntimeError:
        return None
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _basis(path: Path, parts: Sequence[Path]) -> dict[str, str]:
    """Return what the answer follows from."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    found = {file.name: stamp(file) for file in (path, *(parts[0].with_name(name) for name in _BESIDE))}
    found |= {file.name: stamp(file) for file in parts}
    found["importers"] = hashlib.sha256("".join(map(stamp, code)).encode()).hexdigest()[:16]
    for library in ("torch", "torchvision", "timm"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = ""
    return found


def _read(file: Path, basis: dict[str, str]) -> dict[str, Any] | None:
    try:
        plain = FORMAT.read(file)
        if plain is None or plain.get("basis") != basis:
            return None
        known: dict[str, Any] = plain["inspection"]
        _INSPECTION.validate_python({**known, "path": file})
    except (UserError, OSError, KeyError, TypeError, ValidationError):
        # It only spares work: what cannot be read is looked up again.
        return None
    return known
