"""Training state for resuming: atomic, the previous one kept, read without executing anything."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from carryover.configs.files import atomic_file
from carryover.configs.formats import Format

FORMAT: Final = Format("training state", 2)

log = logging.getLogger(__name__)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain containers to `path`; the file that was there becomes `path` + ".prev".

    At every instant at least one whole state is on disk: a crash while writing leaves the old one in place.
    """
    with atomic_file(path) as temporary:
        torch.save(FORMAT.stamped(state), temporary)
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


def previous(path: Path) -> Path:
    """Return where `save_state` keeps the state before the newest."""
    return path.with_name(path.name + ".prev")
