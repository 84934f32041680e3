"""Selection of a protocol's classifier: the best on held-out images, refitted if asked."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from carryover.configs.formats import FileModel, Format
from carryover.core.data.labelled.images import LabeledImages
from carryover.core.data.labelled.subsets import Indices
from carryover.core.data.prepared import Dataset
from carryover.core.formats.claims import Work
from carryover.core.formats.state import remove_states
from carryover.core.training.distributed import barrier
from carryover.core.training.interrupt import StopRequest
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.frozen.backbone import Frozen
from carryover.transfer.tasks.linear.config import LinearConfig, ProtocolMode
from carryover.transfer.tasks.linear.training import Probe

log = logging.getLogger(__name__)

SELECTION_NAME, SELECTION_FOLDER = "selection.json", "selection"
FORMAT: Final = Format("choice of a classifier", 1)


class Candidate(FileModel):
    """One classifier: its features, scaled rate and weight decay, and the held-out images it got right."""

    depth: str
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    images: PositiveInt
    top1: NonNegativeInt

    @property
    def top1_percent(self) -> float:
        """Share of the held-out images whose first guess is right, in %."""
        return 100.0 * self.top1 / self.images


class _SelectionFile(FileModel):
    identity: dict[str, Any]
    candidates: tuple[Candidate, ...]
    seconds: NonNegativeFloat


@dataclass(frozen=True)
class Trained:
    """The classifiers as they ended, and which of them is tested.

    Attributes
    ----------
    index
        Its number among the probe's heads.
    seconds
        Of all trainings together, all attempts.
    candidates
        What each came to on the held-out images; empty where nothing was chosen.
    """

    probe: Probe
    index: int
    seconds: float
    candidates: Sequence[Candidate] = ()

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that was chosen."""
        return self.candidates[best(self.candidates)] if self.candidates else None


def best(candidates: Sequence[Candidate]) -> int:
    """Return the number of the one that got most held-out images right; of equals the first."""
    return max(range(len(candidates)), key=lambda i: candidates[i].top1)


def train_protocol(
    run: Run[LinearConfig, LabeledImages], frozen: Frozen, mode: ProtocolMode, stop: StopRequest
) -> Trained:
    """Train every classifier at once and choose one; train that on all labeled images, where `mode.refit`.

    The first of two trainings has a folder of its own, ``selection``; its outcome is kept in selection.json,
    so that an interrupted second one goes on by itself. Every rank calls this.

    Raises what `Probe` and its training do.
    """
    everything = run.data.train.positions
    if mode.held_out is None:
        probe = _probe(run, frozen, mode, everything)
        return Trained(probe, 0, probe.train(stop))
    fit, held = run.data.to_choose(mode.held_out)
    if not mode.refit:
        probe = _probe(run, frozen, mode, fit)
        seconds = probe.train(stop)
        began = time.monotonic()
        found = _judged(probe, held)
        return Trained(probe, best(found), seconds + time.monotonic() - began, found)
    path = run.out / SELECTION_NAME
    selection = _read(path, run.work)
    if selection is None:
        probe = _probe(run, frozen, mode, fit, run.out / SELECTION_FOLDER)
        seconds = probe.train(stop)
        began = time.monotonic()
        found = _judged(probe, held)
        seconds += time.monotonic() - began
        selection = _SelectionFile(
            identity=run.work.identity.to_json(), candidates=tuple(found), seconds=seconds
        )
        if run.ranks.first:
            FORMAT.write(path, selection.model_dump(mode="json"))
            remove_states(run.out / SELECTION_FOLDER)
        barrier()
    only = mode.only(best(selection.candidates))
    probe = _probe(run, frozen, only, everything)
    log.info("best on the held-out part: %s; training it on all labels", probe.heads.specs[0].label)
    return Trained(probe, 0, selection.seconds + probe.train(stop), selection.candidates)


def _probe(
    run: Run[LinearConfig, LabeledImages],
    frozen: Frozen,
    mode: ProtocolMode,
    images: Indices,
    out: Path | None = None,
) -> Probe:
    return Probe(frozen, mode, run.data.train.images.take(images), run.work, out)


def _judged(probe: Probe, held: Dataset) -> list[Candidate]:
    found = probe.accuracy(held)
    return [
        Candidate(depth=s.depth, lr=s.lr, weight_decay=s.weight_decay, images=a.images, top1=a.top1)
        for s, a in zip(probe.heads.specs, found, strict=True)
    ]


def _read(path: Path, work: Work) -> _SelectionFile | None:
    """Read what was chosen, if it was; raises UserError for another work's file."""
    plain = FORMAT.read(path)
    if plain is None:
        return None
    file = FORMAT.parse(_SelectionFile, plain, path)
    work.require(path, file.identity, "choice of a classifier")
    return file
