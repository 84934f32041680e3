"""Training state for resuming: atomic, the previous one kept, read without executing anything."""

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain containers to `path`; the file that was there becomes `path` + ".prev".

    At every instant at least one whole state is on disk: a crash while writing leaves the old one in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(previous(path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read the newest whole state, or None when there is none; a torn file is passed over, and said so."""
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
            log.warning("%s is damaged (%s); trying the state before it", candidate, error)
            continue
        return state
    return None


def previous(path: Path) -> Path:
    """Return where `save_state` keeps the state before the newest."""
    return path.with_name(path.name + ".prev")
