"""Training state for resuming: atomic, the previous one kept, read without executing anything."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from carryover.configs.errors import WorkError
from carryover.configs.files import atomic_file
from carryover.configs.formats import Format

FORMAT: Final = Format("training state", 2)
STATE_NAME: Final = "checkpoint.pt"
STATE_NAME_MMSEG_V1: Final = "checkpoint.pth"
"""mmengine's own checkpoint, which version 1 resumed segmentation from."""

log = logging.getLogger(__name__)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain containers to `path`; the file that was there becomes `path` + ".prev".

    At every instant at least one whole state is on disk: a crash while writing leaves the old one in place.

    Raises WorkError for a disk that is full.
    """
    with atomic_file(path) as temporary:
        try:
            torch.save(FORMAT.stamped(state), temporary)
        except RuntimeError as error:
            # torch's writer reports a full disk as a failed assertion about its position in the file.
            if "inline_container" not in str(error):
                raise
            raise WorkError(f"{path}: could not be written whole: is the disk full? ({error})") from None
        if path.exists():
            path.replace(previous(path))


def load_state(path: Path) -> dict[str, Any] | None:
    """Read the newest whole state, or None when there is none; a torn file is passed over, and said so.

    Raises NewerFormatError for the state of a release whose format this one does not know.
    """
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = torch.load(candidate, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
            log.warning("%s is damaged (%s); trying the state before it", candidate, error)
            continue
        return FORMAT.current(state, candidate)
    return None


def states_in(out: Path) -> list[Path]:
    """Return the training states in a directory, the newest first; version 1's of mmseg among them."""
    found = [
        path for name in (STATE_NAME, STATE_NAME_MMSEG_V1) for path in (out / name, previous(out / name))
    ]
    return [path for path in found if path.is_file()]


def remove_states(out: Path) -> None:
    """Remove the training states in a directory: its work is done."""
    for path in states_in(out):
        path.unlink()


def read_state_identity(path: Path) -> Any:
    """Return what a state says of its work, without reading its tensors; None if it is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError):
        return None
    state = FORMAT.current(state, path)
    if path.name.startswith(STATE_NAME_MMSEG_V1):
        return state["meta"].get("carryover", {}).get("identity")
    return state.get("identity", state.get("recipe_hash"))


def previous(path: Path) -> Path:
    """Return where `save_state` keeps the state before the newest."""
    return path.with_name(path.name + ".prev")
